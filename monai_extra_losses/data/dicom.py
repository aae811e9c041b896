"""Series of DICOM slices."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from monai_extra_losses.data.dicom_header import DicomHeader, read_header, storage_class
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.nifti import RIGHT_ANGLES, TOLERANCE, regular_size
from monai_extra_losses.data.quiet import quiet_pydicom
from monai_extra_losses.data.remarks import FOREIGN_FILES
from monai_extra_losses.data.text_headers import refuse_too_many
from monai_extra_losses.data.volume_source import (
    VOLUME_SUFFIXES,
    DicomSeries,
    VolumeGrid,
    VolumeSource,
    cannot_be_read,
    read_slice,
    refuse_odd_grid,
    refuse_other_encoding,
)

_DICOM_SUFFIXES = (".dcm", ".ima")


LABEL_OBJECTS: dict[str, str] = {
    SegmentationStorage: "DICOM SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "DICOM SEG",  # Label Map Segmentation, which pydicom 3.0 has no name for
    RTStructureSetStorage: "RTSTRUCT",
}
"""Storage class -> kind of an object that outlines structures in a series."""


# Storage classes (DICOM PS3.4, B.5) of objects that often lie beside images and hold none.
_WITHOUT_IMAGE = re.compile(
    r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(11|88|104)\..*|5\.1\.4\.1\.1\.66(\.[123])?|5\.1\.4\.1\.1\.481\.5)"
)


_RESCALE = ("RescaleIntercept", "RescaleSlope")


_STORED = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", *_RESCALE)


_JPEG_RATIO = 5000  # bytes that a byte of a compressed slice may stand for, and far more than any does


@quiet_pydicom
def open_series(folder: Path, wanted: str | None) -> VolumeSource:
    files, segmentations, others = _dicom_files(folder)
    if segmentations and not files:
        kinds = " and ".join(sorted(set(segmentations.values())))
        raise DatasetError(
            f"{folder}: expected a series of images, got {kinds}; monai-extra-losses prepare takes it as a label, by "
            "--labels FOLDER, with the series that it refers to as --images FOLDER."
        )
    if not files:
        volumes = [file.name for file in sorted(folder.iterdir()) if file.name.lower().endswith(VOLUME_SUFFIXES)]
        hint = f"; move {volumes[0]} out of its own folder and name it as the case" if volumes else ""
        raise DatasetError(f"{folder}: expected a DICOM series, got a folder without DICOM images{hint}.")
    found: dict[str, list[DicomHeader]] = {}
    for file, is_dicom_inside in files.items():
        header = _read_whole(file, is_dicom_inside)
        found.setdefault(header.text("SeriesInstanceUID"), []).append(header)
    series = [
        DicomSeries(uid, headers[0].text("SeriesDescription"), tuple(header.file for header in headers))
        for uid, headers in found.items()
    ]
    chosen = _choose_series(folder, series, wanted)
    slices = _stacked(folder, [_slice(header) for header in found[chosen.uid]])
    first, last = slices[0], slices[-1]
    distance = float(np.linalg.norm(np.subtract(last.origin, first.origin))) / (len(slices) - 1)
    grid = VolumeGrid((*first.shape, len(slices)), (*first.spacing, distance), first.origin, first.direction)
    refuse_odd_grid(folder, grid)
    return VolumeSource(
        path=folder,
        files=(ordered := tuple(slice_.file for slice_ in slices)),
        grid=grid,
        pixel_type=_pixel_type(slices),
        series=DicomSeries(chosen.uid, chosen.description, ordered),
        segmentations=tuple(segmentations),
        remarks=(FOREIGN_FILES,) if others else (),
    )


@dataclass(frozen=True)
class _Slice:
    """One file of a series: where its pixels lie, and how they are stored."""

    file: Path
    shape: tuple[int, int]
    spacing: tuple[float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    rescaled: tuple[bool, ...]  # whether there is an entry, for each of `_RESCALE`
    stored: tuple[Any, ...]  # what the type of the values depends on


def _dicom_files(folder: Path) -> tuple[dict[Path, bool], dict[Path, str], list[Path]]:
    """DICOM images below a folder (-> whether their content is DICOM), segmentation objects (-> kind), other files."""
    files: dict[Path, bool] = {}
    segmentations: dict[Path, str] = {}
    others: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(parent) / name
            storage = storage_class(file)
            if storage in LABEL_OBJECTS:
                segmentations[file] = LABEL_OBJECTS[storage]
            elif _is_dicom(file, storage) and not _WITHOUT_IMAGE.fullmatch(storage or ""):
                files[file] = storage is not None
            elif storage is None and not name.startswith("."):
                others.append(file)
    return files, segmentations, others


def images_below(folder: Path) -> tuple[Path, ...]:
    """The DICOM images below a folder."""
    return tuple(_dicom_files(folder)[0])


@quiet_pydicom
def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM by its content, or by its name; hidden files are none."""
    return _is_dicom(file, None) or _is_dicom(file, storage_class(file))


def _is_dicom(file: Path, storage: str | None) -> bool:
    return not file.name.startswith(".") and (storage is not None or file.name.lower().endswith(_DICOM_SUFFIXES))


def _read_whole(file: Path, is_dicom_inside: bool) -> DicomHeader:
    """The header of a file that holds all pixels that it declares."""
    refuse_other_encoding(file)
    size = regular_size(file)
    if not is_dicom_inside:
        raise DatasetError(cannot_be_read(file, "its content is no DICOM"))
    header = read_header(file, size)
    voxels = header.whole_number("Rows") * header.whole_number("Columns") * header.frames
    refuse_too_many(file, voxels, size * _JPEG_RATIO)
    if header.pixel_bytes is None:
        read_slice(file)
    elif _is_grey(header):
        declared = math.ceil(voxels * header.whole_number("BitsAllocated") / 8)
        if header.pixel_bytes < declared:
            raise DatasetError(cannot_be_read(file, f"{header.pixel_bytes} bytes of pixels in place of {declared}"))
    return header


def _is_grey(header: DicomHeader) -> bool:
    has_palette = header.text("PhotometricInterpretation") == "PALETTE COLOR"
    return header.whole_number("SamplesPerPixel", 1) == 1 and not has_palette


def _slice(header: DicomHeader) -> _Slice:
    file, frames = header.file, header.frames
    if not _is_grey(header) or (frames == 1 and not header.has("ImagePositionPatient")):
        raise DatasetError(
            f"{file}: expected a grey slice with a position (ImagePositionPatient), got a picture without; "
            "leave screenshots and projections out of the folder."
        )
    if frames > 1:
        raise DatasetError(
            f"{file}: expected one slice per file, got {frames}; convert it with dcm2niix, "
            "which knows the positions inside such files."
        )
    if not header.has("PixelSpacing"):
        raise DatasetError(
            f"{file}: expected the distance of its pixels in the patient (PixelSpacing), got none"
            + (
                ", but that on the detector (ImagerPixelSpacing), which is larger"
                if header.has("ImagerPixelSpacing")
                else ", which would be taken as 1 mm"
            )
            + "; export the series again with it."
        )
    down, across = header.numbers("PixelSpacing", 2)  # from row to row first
    left, back, head = header.numbers("ImagePositionPatient", 3)
    if min(down, across) <= 0:
        raise DatasetError(f"{file}: expected a spacing above 0, got {down:g} and {across:g} mm; correct the header.")
    return _Slice(
        file=file,
        shape=(header.whole_number("Columns"), header.whole_number("Rows")),
        spacing=(across, down),
        origin=(left, back, head),
        direction=_direction(header),
        rescaled=tuple(header.has(name) for name in _RESCALE),
        stored=(header.text("SOPClassUID"), *(header.numbers(name) for name in _STORED)),
    )


def _direction(header: DicomHeader) -> tuple[float, ...]:
    """Unit vectors along a row, down a column and to the next slice, the columns of a matrix, row by row."""
    numbers = header.numbers("ImageOrientationPatient", 6)
    if not numbers:
        raise DatasetError(
            f"{header.file}: expected the directions of its rows and columns (ImageOrientationPatient), got none, "
            "which would be taken as those of an axial slice; export the series again with them."
        )
    row, column = np.reshape(numbers, (2, 3))
    lengths = np.linalg.norm([row, column], axis=1)
    if min(lengths) < RIGHT_ANGLES or abs(row @ column) > RIGHT_ANGLES * math.prod(lengths):
        raise DatasetError(
            f"{header.file}: expected rows and columns at right angles (ImageOrientationPatient), got the directions "
            f"{row.tolist()} and {column.tolist()}; export the series again."
        )
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    column = column / lengths[1]
    return tuple(np.column_stack([np.cross(column, normal), column, normal]).ravel().tolist())


def _pixel_type(slices: Sequence[_Slice]) -> int:
    """SimpleITK's number of the type that holds the values of all slices.

    GDCM is asked, because its own rule makes it of the stored bits and the scale factor; one of slices stored alike
    tells for all.
    """
    types: set[int] = set()
    for slice_ in {slice_.stored: slice_ for slice_ in reversed(slices)}.values():
        types.add(read_slice(slice_.file))
        if len(types) > 1 or sitk.sitkFloat64 in types:
            # SimpleITK would round each slice to the type of the first (PET has a scale factor per slice).
            return int(sitk.sitkFloat64)
    return types.pop()


def _choose_series(folder: Path, series: Sequence[DicomSeries], wanted: str | None) -> DicomSeries:
    listed = ", ".join(str(one) for one in series)
    if wanted is None:
        if len(series) > 1:
            raise DatasetError(
                f"{folder}: expected one DICOM series, got {len(series)}: {listed}; "
                "pick one by its description or UID (series, on the command line --series)."
            )
        return series[0]
    text = wanted.casefold()
    rules = (
        [one for one in series if one.uid == wanted],
        [one for one in series if one.description.casefold() == text],
        [one for one in series if text in one.description.casefold()],
    )
    fitting = next((found for found in rules if found), [])
    if len(fitting) != 1:
        raise DatasetError(
            f"{folder}: expected one DICOM series {wanted!r} (its description, a part of it, or its UID), "
            f"got {len(fitting)} of {listed}."
        )
    return fitting[0]


def _stacked(folder: Path, slices: list[_Slice]) -> list[_Slice]:
    """The slices of a series in their order, which must make an even stack at right angles."""
    first = slices[0]
    for slice_ in slices:
        for name, has, first_has in zip(_RESCALE, slice_.rescaled, first.rescaled, strict=True):
            if has != first_has:
                lacking, other = (first, slice_) if has else (slice_, first)
                raise DatasetError(
                    f"{folder}: expected {name} in every slice or in none, got none in {lacking.file.name} and one in "
                    f"{other.file.name}, so that their values have different scales; export the series again."
                )
        same = np.allclose((*slice_.spacing, *slice_.direction), (*first.spacing, *first.direction), atol=1e-3)
        if slice_.shape != first.shape or not same:
            raise DatasetError(
                f"{folder}: expected slices of one size, spacing and direction, got {first.file.name} and "
                f"{slice_.file.name}; leave scout images out, or keep one acquisition per folder."
            )
    if len(slices) < 2:
        raise DatasetError(f"{folder}: expected a volume of several slices, got the 2D image {first.file.name}.")
    normal = np.reshape(first.direction, (3, 3))[:, 2]
    positions = np.array([np.dot(slice_.origin, normal) for slice_ in slices])
    order = np.argsort(positions, kind="stable")
    slices, positions = [slices[i] for i in order], positions[order]
    gaps = np.diff(positions)
    gap = float(np.median(gaps))
    doubled = np.flatnonzero(gaps <= 0.01 * gap) if gap else np.array([0])
    if doubled.size:
        pair = f"{slices[doubled[0]].file.name} and {slices[doubled[0] + 1].file.name}"
        raise DatasetError(
            f"{folder}: expected one slice per position, got {pair} at {positions[doubled[0]]:.2f} mm; "
            "keep one phase, echo or copy of the series."
        )
    wide = np.flatnonzero(gaps > 1.5 * gap)
    if wide.size:
        pair = f"{slices[wide[0]].file.name} and {slices[wide[0] + 1].file.name}"
        raise DatasetError(
            f"{folder}: expected slices {gap:.3g} mm apart, got {gaps[wide[0]]:.3g} mm between {pair}"
            f"{f' and {len(wide) - 1} more such gaps' if len(wide) > 1 else ''}; "
            "slices are missing, export the series again."
        )
    even = np.linspace(positions[0], positions[-1], len(slices))
    if np.abs(positions - even).max() > TOLERANCE * gap:
        raise DatasetError(
            f"{folder}: expected evenly spaced slices, got distances from {gaps.min():.3g} to {gaps.max():.3g} mm; "
            "resample the series, or keep one acquisition per folder."
        )
    steps = np.array([slice_.origin for slice_ in slices]) - slices[0].origin
    sideways = np.linalg.norm(steps - np.outer(steps @ normal, normal), axis=1).max()
    if sideways > TOLERANCE * min(*first.spacing, gap):
        raise DatasetError(
            f"{folder}: expected slices straight above each other, got a stack that leans by {sideways:.3g} mm "
            "(a tilted gantry); convert it with dcm2niix, which corrects that."
        )
    return slices
