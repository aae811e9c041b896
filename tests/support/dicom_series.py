"""DICOM series written with pydicom, element by element, and the DICOM SEG objects of inference on them."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from volume_files import rotation

from monai_extra_losses.bundle.dicom_segmentation import DicomSegmentation

ROOT = "1.2.826.0.1.3680043.2.1125.77"
STUDY = f"{ROOT}.1"
FRAME = f"{ROOT}.2"

# The columns: along a row, down a column, and to the next slice.
PLANES = {
    "axial": np.eye(3),
    "sagittal": np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "coronal": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]),
    "oblique": rotation(20, -10, 35),
}

# What anonymisation takes out and a series needs not.
OPTIONAL = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "SeriesDescription", "SliceThickness"),
)


def write_series(
    folder: Path,
    voxels: NDArray[np.int16],
    *,
    plane: str = "axial",
    spacing: Sequence[float] = (0.7, 1.1, 2.5),
    origin: Sequence[float] = (12.3, -45.6, 78.9),
    series: int = 1,
    descending: bool = False,
    leave_out: Sequence[str] = (),
    tags: Mapping[str, Any] | None = None,
) -> Path:
    """Write voxels of axes column, row and slice.

    Args:
        folder: for the files, whose names tell nothing.
        plane: of `PLANES`.
        spacing: mm along a row, down a column and from slice to slice.
        origin: of the first voxel.
        series: makes the UIDs.
        descending: number and name the slices from the last one on.
        leave_out: keywords of elements that are not written.
        tags: keyword -> value, of further elements.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row, column, normal = PLANES[plane].T
    count = voxels.shape[2]
    for number in range(count):
        place = np.array(origin) + number * spacing[2] * normal
        rank = count - number if descending else number + 1
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{ROOT}.3.{series}.{rank}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        values = {
            "SpecificCharacterSet": "ISO_IR 100",
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "StudyInstanceUID": STUDY,
            "SeriesInstanceUID": f"{ROOT}.4.{series}",
            "FrameOfReferenceUID": FRAME,
            "Modality": "CT",
            "PatientID": "P-17",
            "PatientName": "Müller^Jörg",
            "PatientBirthDate": "19700101",
            "PatientSex": "O",
            "StudyID": "4",
            "StudyDate": "20250102",
            "StudyTime": "101112",
            "AccessionNumber": "A9",
            "ReferringPhysicianName": "",
            "SeriesNumber": str(series),
            "SeriesDescription": "Portal venous",
            "InstanceNumber": str(rank),
            "ImagePositionPatient": [f"{x:.9g}" for x in place],
            "ImageOrientationPatient": [f"{x:.9g}" for x in (*row, *column)],
            "PixelSpacing": [spacing[1], spacing[0]],
            "SliceThickness": "1",
            "Rows": voxels.shape[1],
            "Columns": voxels.shape[0],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            "RescaleIntercept": "0",
            "RescaleSlope": "1",
            **(tags or {}),
        }
        for keyword, value in values.items():
            if keyword not in leave_out:
                setattr(slice_, keyword, value)
        slice_.PixelData = np.ascontiguousarray(voxels[:, :, number].T, "<i2").tobytes()
        slice_.save_as(folder / f"IM{(rank * 389 + 7) % 997:03d}", enforce_file_format=True)
    return folder


def write_seg(
    folder: Path, label: NDArray[Any], classes: Mapping[str, Sequence[int]], file: Path, segments: Any = None
) -> Any:
    """The object of a label on the grid of a series, as highdicom reads it."""
    writes = DicomSegmentation(
        cases={"case": (folder,)},
        series=None,
        classes=classes,
        segments=segments or {},
        made_of={"case": {"model": "0123456789abcdef" * 4}},
    )
    writes("case", label, file)
    import highdicom as hd

    return hd.seg.segread(file)


def dcmqi(program: str) -> str:
    """A program of dcmqi; without it the test is skipped."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which(program, path=places)
    if found is None:
        pytest.skip(f"{program} of dcmqi, which knows DICOM SEG too, is not installed")
    return found
