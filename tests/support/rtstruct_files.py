"""RTSTRUCT objects written with pydicom: contours of any kind and form."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dicom_series import FRAME, ROOT, STUDY
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

Contours = Sequence[tuple[str, NDArray[Any]]]
"""Geometric type and (N, 3) points in mm of each."""


def write_rtstruct(
    file: Path,
    structures: Mapping[str, Contours],
    *,
    series: int = 1,
    colors: Mapping[str, Sequence[int]] | None = None,
    instance: int = 1,
) -> Path:
    """Write the structures of a series of `dicom_series.write_series`."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = f"{ROOT}.5.{instance}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    content.SOPClassUID = RTStructureSetStorage
    content.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    content.StudyInstanceUID = STUDY
    content.SeriesInstanceUID = f"{ROOT}.6.{instance}"
    content.SeriesDescription = "Contours"
    content.Modality = "RTSTRUCT"
    of_series, of_study, of_frame = Dataset(), Dataset(), Dataset()
    of_series.SeriesInstanceUID = f"{ROOT}.4.{series}"
    of_study.RTReferencedSeriesSequence = [of_series]
    of_frame.FrameOfReferenceUID = FRAME
    of_frame.RTReferencedStudySequence = [of_study]
    content.ReferencedFrameOfReferenceSequence = [of_frame]
    content.StructureSetROISequence, content.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), start=3):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        drawn.ReferencedROINumber = number
        if colors and name in colors:
            drawn.ROIDisplayColor = list(colors[name])
        drawn.ContourSequence = []
        for kind, points in contours:
            contour = Dataset()
            contour.ContourGeometricType = kind
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{x:.6f}" for x in points.ravel()]
            drawn.ContourSequence.append(contour)
        content.StructureSetROISequence.append(roi)
        content.ROIContourSequence.append(drawn)
    file.parent.mkdir(parents=True, exist_ok=True)
    content.save_as(file, enforce_file_format=True)
    return file
