"""Series of DICOM slices."""

import math
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.nifti import TOLERANCE, regular_size
from monai_extra_losses.data.remarks import FOREIGN_FILES
from monai_extra_losses.data.text_headers import refuse_too_many
from monai_extra_losses.data.volume_source import (
    IMAGE_POSITION,
    IMAGER_SPACING,
    PIXEL_SPACING,
    SERIES_DESCRIPTION,
    SERIES_UID,
    VOLUME_SUFFIXES,
    DicomSeries,
    VolumeGrid,
    VolumeSource,
    quiet_itk,
    refuse_odd_grid,
    refuse_other_encoding,
    unreadable,
)

_DICOM_SUFFIXES = (".dcm", ".ima")


# Storage classes (DICOM PS3.4, B.5): segmentations, and objects that often lie beside images and hold none.
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"


_WITHOUT_IMAGE = re.compile(
    r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(11|88|104)\..*|5\.1\.4\.1\.1\.66(\.[123])?|5\.1\.4\.1\.1\.481\.5)"
)


_RESCALE = {"RescaleIntercept": "0028|1052", "RescaleSlope": "0028|1053"}


_LONG_KINDS = (b"OB", b"OW", b"SQ", b"UN", b"UT")  # of elements of group 8 whose length takes four bytes


_JPEG_RATIO = 5000  # bytes that a byte of a compressed slice may stand for, and far more than any does


def open_series(folder: Path, wanted: str | None) -> VolumeSource:
    files, segmentations, others = _dicom_files(folder)
    if segmentations and not files:
        kinds = " and ".join(sorted(set(segmentations.values())))
        raise DatasetError(
            f"{folder}: expected a series of images, got {kinds}; convert it to a label volume, "
            "DICOM-SEG with segimage2itkimage of dcmqi, RTSTRUCT with plastimatch convert."
        )
    if not files:
        volumes = [file.name for file in sorted(folder.iterdir()) if file.name.lower().endswith(VOLUME_SUFFIXES)]
        hint = f"; move {volumes[0]} out of its own folder and name it as the case" if volumes else ""
        raise DatasetError(f"{folder}: expected a DICOM series, got a folder without DICOM images{hint}.")
    found: dict[str, list[_Slice]] = {}
    for file in files:
        slice_ = _read_slice(file)
        found.setdefault(slice_.uid, []).append(slice_)
    series = [
        DicomSeries(uid, slices[0].description, tuple(slice_.file for slice_ in slices))
        for uid, slices in found.items()
    ]
    chosen = _choose_series(folder, series, wanted)
    slices = _stacked(folder, found[chosen.uid])
    first, last = slices[0], slices[-1]
    distance = float(np.linalg.norm(np.subtract(last.origin, first.origin))) / (len(slices) - 1)
    types = {slice_.pixel_type for slice_ in slices}
    grid = VolumeGrid((*first.shape, len(slices)), (*first.spacing, distance), first.origin, first.direction)
    refuse_odd_grid(folder, grid)
    return VolumeSource(
        path=folder,
        files=(ordered := tuple(slice_.file for slice_ in slices)),
        grid=grid,
        # SimpleITK would round each slice to the type of the first (PET has a scale factor per slice).
        pixel_type=types.pop() if len(types) == 1 else sitk.sitkFloat64,
        series=DicomSeries(chosen.uid, chosen.description, ordered),
        segmentations=tuple(segmentations),
        remarks=(FOREIGN_FILES,) if others else (),
    )


@dataclass(frozen=True)
class _Slice:
    """The header of one file of a series."""

    file: Path
    uid: str
    description: str
    shape: tuple[int, int]
    frames: int
    spacing: tuple[float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    pixel_type: int
    is_plane: bool  # grey, and with a position in the patient
    has_spacing: bool  # in the patient; ITK takes 1 mm where there is none
    has_imager_spacing: bool
    rescaled: tuple[bool, ...]  # whether there is an entry, for each of `_RESCALE`


def _dicom_files(folder: Path) -> tuple[list[Path], dict[Path, str], list[Path]]:
    """DICOM images below a folder, the segmentation objects (-> their kind) among them, and files that are no DICOM."""
    files: list[Path] = []
    segmentations: dict[Path, str] = {}
    others: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(parent) / name
            storage = _storage_class(file)
            if storage in (_SEGMENTATION, _STRUCTURES):
                segmentations[file] = "DICOM-SEG" if storage == _SEGMENTATION else "RTSTRUCT"
            elif is_dicom(file) and not _WITHOUT_IMAGE.fullmatch(storage or ""):
                files.append(file)
            elif storage is None and not name.startswith("."):
                others.append(file)
    return files, segmentations, others


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM by its content, or by its name; hidden files are none."""
    if file.name.startswith("."):
        return False
    return file.name.lower().endswith(_DICOM_SUFFIXES) or _storage_class(file) is not None


def _storage_class(file: Path) -> str | None:
    """MediaStorageSOPClassUID of a DICOM file, which GDCM tells only where there are pixels; None for other files."""
    if not file.is_file():  # a named pipe would never end
        return None
    try:
        with file.open("rb") as stream:
            start = stream.read(1024)
    except OSError:
        return None
    if start[128:132] != b"DICM":
        return _class_without_preamble(start)
    at = start.find(b"\x02\x00\x02\x00UI", 132)  # (0002,0002); these first elements are always explicit little endian
    if at < 0:
        return ""
    length = int.from_bytes(start[at + 6 : at + 8], "little")
    return start[at + 8 : at + 8 + length].rstrip(b"\0 ").decode("ascii", errors="replace")


def _class_without_preamble(start: bytes) -> str | None:
    """The storage class among elements that begin at once, as older programs write them; None where none do."""
    at, storage = 0, ""
    seen: list[tuple[int, int]] = []
    while at + 8 <= len(start):
        tag = struct.unpack_from("<HH", start, at)
        if tag[0] not in (2, 8) or (seen and tag <= seen[-1]):
            break
        kind = start[at + 4 : at + 6]
        if kind in _LONG_KINDS:
            length, at = int.from_bytes(start[at + 8 : at + 12], "little"), at + 12
        elif kind.isalpha() and kind.isupper():
            length, at = int.from_bytes(start[at + 6 : at + 8], "little"), at + 8
        else:  # no kind is written
            length, at = int.from_bytes(start[at + 4 : at + 8], "little"), at + 8
        if tag in ((2, 2), (8, 0x16)):
            storage = start[at : at + length].rstrip(b"\0 ").decode("ascii", errors="replace")
        seen.append(tag)
        at += length
    return storage if len(seen) > 1 else None  # two elements in order, end to start, are no accident


def _read_slice(file: Path) -> _Slice:
    refuse_other_encoding(file)
    size = regular_size(file)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise DatasetError(unreadable(file, error)) from error
    width, height, *frames = reader.GetSize()
    refuse_too_many(file, math.prod(reader.GetSize()), size * _JPEG_RATIO)
    return _Slice(
        file=file,
        uid=_tag(reader, SERIES_UID),
        description=_tag(reader, SERIES_DESCRIPTION),
        shape=(width, height),
        frames=frames[0] if frames else 1,
        spacing=tuple(reader.GetSpacing()[:2]),
        origin=tuple(reader.GetOrigin()[:3]),
        direction=tuple(reader.GetDirection()),
        pixel_type=reader.GetPixelID(),
        is_plane=reader.GetNumberOfComponents() == 1 and (frames != [1] or reader.HasMetaDataKey(IMAGE_POSITION)),
        has_spacing=bool(_tag(reader, PIXEL_SPACING)),
        has_imager_spacing=bool(_tag(reader, IMAGER_SPACING)),
        rescaled=tuple(bool(_tag(reader, key)) for key in _RESCALE.values()),
    )


def _tag(reader: sitk.ImageFileReader, key: str) -> str:
    if not reader.HasMetaDataKey(key):
        return ""
    # Bytes of another character set come as surrogates, which no terminal prints.
    return reader.GetMetaData(key).encode("utf-8", errors="replace").decode().strip("\0 ")


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


def _stacked(folder: Path, slices: Iterable[_Slice]) -> list[_Slice]:
    """The slices of a series in their order, which must make an even stack at right angles."""
    slices = list(slices)
    first = slices[0]
    for slice_ in slices:
        if not slice_.is_plane:
            raise DatasetError(
                f"{slice_.file}: expected a grey slice with a position (ImagePositionPatient), got a picture without; "
                "leave screenshots and projections out of the folder."
            )
        if slice_.frames > 1:
            raise DatasetError(
                f"{slice_.file}: expected one slice per file, got {slice_.frames}; convert it with dcm2niix, "
                "which knows the positions inside such files."
            )
        if not slice_.has_spacing:
            raise DatasetError(
                f"{slice_.file}: expected the distance of its pixels in the patient (PixelSpacing), got none"
                + (
                    ", but that on the detector (ImagerPixelSpacing), which is larger"
                    if slice_.has_imager_spacing
                    else ", which would be taken as 1 mm"
                )
                + "; export the series again with it."
            )
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
