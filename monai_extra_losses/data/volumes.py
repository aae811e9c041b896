"""Read a volume from the formats that medical images come in: NIfTI, NRRD, MetaImage and DICOM series.

nibabel reads NIfTI, as it does in training; SimpleITK the rest. What is read without complaint although the result
would be wrong is refused here: a file that is cut off, a DICOM series with a missing slice, several acquisitions in
one.
"""

import contextlib
import math
import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.nifti import (
    DEFLATE_RATIO,
    NIFTI_SUFFIXES,
    TOLERANCE,
    NiftiFile,
    corner_distance_mm,
    is_nifti,
    is_skewed,
    open_nifti,
    regular_size,
)
from monai_extra_losses.data.remarks import FOREIGN_FILES, NO_FRAME, NO_SPACING

VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".nhdr", ".mha", ".mhd")
"""File names that `read_volume` takes, in lower or upper case; a DICOM series is a folder."""

_DICOM_SUFFIXES = (".dcm", ".ima")
_META_SUFFIXES = (".mha", ".mhd")
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t", "double"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
}
_FRAMES = re.compile(r"(left|right)-(anterior|posterior)-(superior|inferior)(-time)?|[lr][ap][si]t?")
_MILLIMETRES = re.compile(r"mm|millimet(er|re)s?|\?|unknown|")
_LONGEST_HEADER = 1 << 20
_META_BYTES = {  # of a voxel; the sizes of the others differ between systems
    **{f"MET_{sign}CHAR": 1 for sign in ("", "U")},
    **{f"MET_{sign}SHORT": 2 for sign in ("", "U")},
    **{f"MET_{sign}INT": 4 for sign in ("", "U")},
    **{f"MET_{sign}LONG_LONG": 8 for sign in ("", "U")},
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
# Storage classes (DICOM PS3.4, B.5): segmentations, and objects that often lie beside images and hold none.
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_WITHOUT_IMAGE = re.compile(
    r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(11|88|104)\..*|5\.1\.4\.1\.1\.66(\.[123])?|5\.1\.4\.1\.1\.481\.5)"
)
_UID, _DESCRIPTION, _POSITION = "0020|000e", "0008|103e", "0020|0032"
_PIXEL_SPACING, _IMAGER_SPACING = "0028|0030", "0018|1164"
_RESCALE = {"RescaleIntercept": "0028|1052", "RescaleSlope": "0028|1053"}
_LONG_KINDS = (b"OB", b"OW", b"SQ", b"UN", b"UT")  # of elements of group 8 whose length takes four bytes
_JPEG_RATIO = 5000  # bytes that a byte of a compressed slice may stand for, and far more than any does
_TO_LEFT_AND_BACK = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS and the reverse


@dataclass(frozen=True)
class VolumeGrid:
    """Where the voxels of a volume lie.

    Args:
        shape: voxels along the three axes.
        spacing: millimetres along the three axes.
        origin: centre of the first voxel, in mm towards the patient's left, back and head (LPS, as SimpleITK has it).
        direction: unit vectors of the axes in the same frame, the columns of a 3 x 3 matrix, row by row.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel index to mm towards the patient's right, front and head (RAS, as NIfTI has it)."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(self.direction, (3, 3)) * self.spacing
        affine[:3, 3] = self.origin
        return _TO_LEFT_AND_BACK @ affine

    @classmethod
    def of_affine(cls, shape: Sequence[int], affine: NDArray[np.float64]) -> Self:
        """The grid of a NIfTI file."""
        to_lps = _TO_LEFT_AND_BACK @ affine
        spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
        return cls(
            shape=(shape[0], shape[1], shape[2]),
            spacing=tuple(spacing.tolist()),
            origin=tuple(to_lps[:3, 3].tolist()),
            direction=tuple((to_lps[:3, :3] / spacing).ravel().tolist()),
        )

    def matches(self, other: "VolumeGrid") -> bool:
        """Whether the shapes are equal and no corner lies farther apart than `TOLERANCE` allows."""
        allowed = TOLERANCE * min(other.spacing)
        return self.shape == other.shape and corner_distance_mm(self.shape, self.affine, other.affine) <= allowed


@dataclass(frozen=True)
class DicomSeries:
    """One series among the files of a folder.

    Args:
        uid: SeriesInstanceUID.
        description: SeriesDescription, empty where there is none.
        files: one per slice; sorted along the slice axis in a `VolumeSource`.
    """

    uid: str
    description: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{self.description or 'without description'!r} ({len(self.files)} slices, UID {self.uid})"


@dataclass(frozen=True)
class VolumeSource:
    """A volume whose header is read and checked; `load` reads the voxels.

    Args:
        path: the file, or the folder of the DICOM series.
        files: every file that the volume is read from; the slices of a DICOM series in their order.
        grid: where its voxels lie.
        pixel_type: SimpleITK's number of the type that the voxels are read as.
        series: of a DICOM folder.
        segmentations: DICOM-SEG and RTSTRUCT files that lie beside the series.
        nifti: of a NIfTI file its header.
        remarks: what is assumed where the header says nothing or two things, keys of `remarks.REMARKS`.
        layers: values per voxel; more than one only where `open_volume` was asked for them.
    """

    path: Path
    files: tuple[Path, ...]
    grid: VolumeGrid
    pixel_type: int
    series: DicomSeries | None = None
    segmentations: tuple[Path, ...] = ()
    nifti: NiftiFile | None = None
    remarks: tuple[str, ...] = ()
    layers: int = 1

    def load(self) -> sitk.Image:
        """Read the voxels; a volume of three dimensions, without the header's other entries.

        Raises:
            DatasetError: voxels that cannot be read.
        """
        if self.nifti is not None:
            image = sitk.GetImageFromArray(self.nifti.read().T)  # SimpleITK's arrays have the axes z, y, x
            image.SetSpacing(self.grid.spacing)
            image.SetOrigin(self.grid.origin)
            image.SetDirection(self.grid.direction)
            return image
        try:
            with _quiet_itk():
                if self.series is None:
                    image = sitk.ReadImage(str(self.path))
                else:
                    reader = sitk.ImageSeriesReader()
                    reader.SetImageIO("GDCMImageIO")
                    reader.SetFileNames([str(file) for file in self.files])
                    reader.SetOutputPixelType(self.pixel_type)
                    image = reader.Execute()
        except RuntimeError as error:
            raise DatasetError(_unreadable(self.path, error)) from error
        image = image[(slice(None),) * 3 + (0,) * (image.GetDimension() - 3)]
        for key in image.GetMetaDataKeys():
            image.EraseMetaData(key)
        return image

    def load_layers(self) -> NDArray[Any]:
        """Read the voxels of all layers, of axes layer, z, y, x.

        Raises:
            DatasetError: voxels that cannot be read.
        """
        if self.nifti is not None:
            return self.nifti.read().T.reshape(self.layers, *self.grid.shape[::-1])
        try:
            with _quiet_itk():
                image = sitk.ReadImage(str(self.path))
        except RuntimeError as error:
            raise DatasetError(_unreadable(self.path, error)) from error
        voxels = sitk.GetArrayFromImage(image)
        if image.GetNumberOfComponentsPerPixel() > 1:
            voxels = np.moveaxis(voxels, -1, 0)
        return voxels.reshape(self.layers, *self.grid.shape[::-1])


def read_volume(path: str | Path, series: str | None = None) -> sitk.Image:
    """Read a volume of three dimensions with one value per voxel.

    Args:
        path: a file with one of `VOLUME_SUFFIXES`, or the folder of a DICOM series, which may have sub-folders.
        series: picks a series of a DICOM folder, as `open_volume` says; a file has none.

    Raises:
        DatasetError: as `open_volume`, or voxels that cannot be read.
    """
    return open_volume(path, series).load()


def open_volume(path: str | Path, series: str | None = None, *, layered: bool = False) -> VolumeSource:
    """Read and check the header of a volume.

    Args:
        path: a file with one of `VOLUME_SUFFIXES`, or the folder of a DICOM series, which may have sub-folders.
        series: picks a series of a DICOM folder: its SeriesInstanceUID or SeriesDescription, else a part of the
            description (whatever the case); None where the folder holds one series. A file has none.
        layered: take a file of several values per voxel, as a label with a layer per structure is.

    Raises:
        DatasetError: no volume, no permission, another format; more or fewer than three dimensions, several values
            per voxel, oblique axes that are not at right angles; a NIfTI or MetaImage file that is cut off; a DICOM
            folder without the one series, or a series with missing, doubled, uneven or tilted slices.
    """
    path = Path(path)
    _refuse_other_encoding(path)
    if path.is_dir():
        return _open_series(path, series)
    if not path.exists():
        raise DatasetError(f"{path}: expected a volume, got no such file.")
    regular_size(path)  # refuses named pipes and devices
    if not path.name.lower().endswith(VOLUME_SUFFIXES):
        raise DatasetError(
            f"{path}: expected {', '.join(VOLUME_SUFFIXES)} or the folder of a DICOM series, got another file; "
            "convert it."
        )
    if is_nifti(path):
        return _open_nifti(path, layered)
    files = _data_files(path)
    for file in files:
        regular_size(file)
    is_meta = path.name.lower().endswith(_META_SUFFIXES)
    remarks = tuple(
        (_meta_remarks if is_meta else _nrrd_remarks)(path, (_meta_header if is_meta else _nrrd_header)(path))
    )
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with _quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise DatasetError(_unreadable(path, error)) from error
    shape = list(reader.GetSize())
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) > (4 if layered else 3):
        raise DatasetError(_four_axes(path, shape))
    grid = _grid(path, reader, layered)
    layers = reader.GetNumberOfComponents() * math.prod(shape[3:])
    (_refuse_cut_metaimage if is_meta else _refuse_cut_nrrd)(path, math.prod(shape))
    return VolumeSource(path, (path, *files), grid, reader.GetPixelID(), remarks=remarks, layers=layers)


def _open_nifti(path: Path, layered: bool) -> VolumeSource:
    file = open_nifti(path)
    if len(file.shape) > 3 and not layered:
        raise DatasetError(_four_axes(path, file.shape))
    grid = VolumeGrid.of_affine(file.shape, file.affine)
    _refuse_odd_grid(path, grid)
    file.verify()
    # of one voxel; what a scale factor makes of it too
    pixel_type = sitk.GetImageFromArray(file.scaled(np.zeros((1, 1, 1), file.stored.newbyteorder("=")))).GetPixelID()
    layers = math.prod(file.shape[3:])
    return VolumeSource(path, (path,), grid, pixel_type, nifti=file, remarks=file.remarks, layers=layers)


def _grid(path: Path, header: Any, layered: bool = False) -> VolumeGrid:
    """The grid of a header (or image) of SimpleITK, which must be that of a volume."""
    dimension = header.GetDimension()
    shape = tuple(header.GetSize()[:3])
    is_complex = "complex" in sitk.GetPixelIDValueAsString(header.GetPixelID())
    if (header.GetNumberOfComponents() != 1 and not layered) or is_complex:
        raise DatasetError(
            f"{path}: expected one real number per voxel, got {header.GetNumberOfComponents()} of type "
            f"{sitk.GetPixelIDValueAsString(header.GetPixelID())}; write each channel as a file of its own, "
            "NAME_0000, NAME_0001, ..."
        )
    if len(shape) < 3:
        raise DatasetError(_flat(path, shape))
    direction = np.reshape(header.GetDirection(), (dimension, dimension))[:3, :3]
    grid = VolumeGrid(
        shape=(shape[0], shape[1], shape[2]),
        spacing=tuple(header.GetSpacing()[:3]),
        origin=tuple(header.GetOrigin()[:3]),
        direction=tuple(direction.ravel().tolist()),
    )
    _refuse_odd_grid(path, grid)
    return grid


def _refuse_odd_grid(path: Path, grid: VolumeGrid) -> None:
    if min(grid.shape) < 2:
        raise DatasetError(_flat(path, grid.shape))
    direction = np.reshape(grid.direction, (3, 3))
    if not np.isfinite([*grid.spacing, *grid.origin, *grid.direction]).all() or min(grid.spacing) <= 0:
        raise DatasetError(
            f"{path}: expected a spacing above 0 and a position, got the spacing {grid.spacing} mm and the origin "
            f"{grid.origin}; correct the header."
        )
    if is_skewed(direction):
        raise DatasetError(
            f"{path}: expected axes at right angles, got the directions {direction.round(4).tolist()}; "
            "resample it onto such a grid."
        )


def _flat(path: Path, shape: Sequence[int]) -> str:
    return f"{path}: expected a volume of several slices, got the 2D shape {tuple(shape)}."


def _four_axes(path: Path, shape: Sequence[int]) -> str:
    return (
        f"{path}: expected a volume of three dimensions, got shape {tuple(shape)}; "
        "write each channel as a file of its own, NAME_0000, NAME_0001, ..."
    )


@dataclass(frozen=True)
class _TextHeader:
    """The header of a NRRD or MetaImage file: field -> value, and where the voxels begin in a file that holds both."""

    fields: dict[str, str]
    end: int


def _meta_header(path: Path) -> _TextHeader:
    """The names of the fields as MetaIO spells them."""
    start = _start_of(path)
    last = re.search(rb"^ElementDataFile[ \t]*=[ \t]*(.*?)\r?(\n|\Z)", start, re.MULTILINE)
    end = len(start) if last is None else last.end()
    pairs = (line.partition("=") for line in start[:end].decode("latin-1").splitlines())
    return _TextHeader({key.strip(): value.strip() for key, _, value in pairs}, end)


def _nrrd_header(path: Path) -> _TextHeader:
    """The names of the fields in lower case."""
    start = _start_of(path)
    blank = re.search(rb"\r?\n\r?\n", start)
    end = len(start) if blank is None else blank.end()
    pairs = (line.partition(":") for line in start[:end].decode("latin-1").splitlines() if not line.startswith("#"))
    return _TextHeader(
        {key.strip().lower(): value.strip() for key, _, value in pairs if not value.startswith("=")}, end
    )


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_LONGEST_HEADER)
    except OSError as error:
        raise DatasetError(f"{path}: expected a readable file, got an error ({error.strerror}).") from error


def _meta_remarks(path: Path, header: _TextHeader) -> Iterable[str]:
    _refuse_other_units(path, [header.fields.get("DistanceUnits", "")])
    spacing = header.fields.get("ElementSpacing", header.fields.get("ElementSize"))
    if spacing is None:
        yield NO_SPACING
    else:
        _refuse_odd_spacing(path, spacing.split())
    if not {"TransformMatrix", "Orientation", "Rotation"} & header.fields.keys():
        yield NO_FRAME


def _nrrd_remarks(path: Path, header: _TextHeader) -> Iterable[str]:
    for name in ("space units", "units"):
        _refuse_other_units(path, re.findall(r'"([^"]*)"', header.fields.get(name, "")))
    directions = re.findall(r"none|\([^)]*\)", header.fields.get("space directions", "").lower())
    spacings = header.fields.get("spacings", "").split()
    if not directions and not spacings:
        yield NO_SPACING
    elif len(directions) == 3 and "none" in directions:
        raise DatasetError(
            f"{path}: expected a direction of each axis, got {' '.join(directions)}; correct the header."
        )
    elif len(spacings) == 3:
        _refuse_odd_spacing(path, spacings)
    if not _FRAMES.fullmatch(header.fields.get("space", "").lower()):
        yield NO_FRAME


def _refuse_other_units(path: Path, units: Sequence[str]) -> None:
    for unit in units:
        if not _MILLIMETRES.fullmatch(unit.strip().lower()):
            raise DatasetError(
                f"{path}: expected millimetres, got a header in {unit!r}, which few programs read; "
                "write it anew with spacing and origin in mm."
            )


def _refuse_odd_spacing(path: Path, spacing: Sequence[str]) -> None:
    """ITK turns a negative spacing round, and takes 1 for one that is no number."""
    try:
        usable = all(math.isfinite(number) and number > 0 for number in map(float, spacing))
    except ValueError:
        usable = False
    if not usable:
        raise DatasetError(f"{path}: expected a spacing above 0, got {' '.join(spacing)} mm; correct the header.")


def _refuse_cut_metaimage(path: Path, voxels: int) -> None:
    """MetaIO prints lines of its own about a file that is cut off, and ITK calls it missing."""
    header = _meta_header(path)
    fields = header.fields
    if fields.get("ElementDataFile", "").upper() == "LOCAL":
        found = path.stat().st_size - header.end
    elif len(files := _data_files(path)) == 1 and fields.get("HeaderSize", "0") == "0":
        found = files[0].stat().st_size
    else:
        return
    expected = voxels * _META_BYTES.get(fields.get("ElementType", ""), 0)
    if fields.get("CompressedData", "False").lower() in ("true", "1"):
        _refuse_too_many(path, expected, found * DEFLATE_RATIO)
        expected = int(size) if (size := fields.get("CompressedDataSize", "")).isdecimal() else 0
    if found < expected:
        raise DatasetError(
            f"{path}: expected {expected} bytes of voxels, got {found}; the data end early, copy the file again."
        )


def _refuse_cut_nrrd(path: Path, voxels: int) -> None:
    """ITK takes memory for all voxels that the header declares before it looks for them."""
    header = _nrrd_header(path)
    files = _data_files(path)
    if len(files) > 1:
        return
    found = files[0].stat().st_size if files else path.stat().st_size - header.end
    encoding = header.fields.get("encoding", "").lower()
    ratio = {"raw": 1, "gzip": DEFLATE_RATIO, "gz": DEFLATE_RATIO}.get(encoding)
    if ratio is not None:
        _refuse_too_many(path, voxels * _NRRD_BYTES.get(header.fields.get("type", "").lower(), 0), found * ratio)


def _refuse_too_many(path: Path, declared: int, most: int) -> None:
    if declared > most:
        raise DatasetError(
            f"{path}: expected {declared} bytes of voxels, as the header declares, got {most} at most; the file is cut "
            "off or its header damaged, copy the file again."
        )


def _data_files(path: Path) -> tuple[Path, ...]:
    """The files beside a header (.mhd, .nhdr) that hold its voxels, as far as it names them one by one and has them."""
    if not path.name.lower().endswith((".mhd", ".nhdr")):
        return ()
    text = _start_of(path).decode("utf-8", errors="replace")
    found = re.search(r"^(?:ElementDataFile *=|data ?file:)(.*)", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    if found is None:
        return ()
    names = [line.strip() for line in found[1].splitlines() if line.strip()]
    if len(names) == 1 and (counted := re.fullmatch(r"(\S*%0?\d*d\S*) +(\d+) +(\d+)( +\d+){0,2}", names[0])):
        names = [counted[1] % number for number in range(int(counted[2]), int(counted[3]) + 1)]
    return tuple(file for file in (path.parent / name for name in names) if file.exists() and not file.is_dir())


def _open_series(folder: Path, wanted: str | None) -> VolumeSource:
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
    _refuse_odd_grid(folder, grid)
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
    _refuse_other_encoding(file)
    size = regular_size(file)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        with _quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise DatasetError(_unreadable(file, error)) from error
    width, height, *frames = reader.GetSize()
    _refuse_too_many(file, math.prod(reader.GetSize()), size * _JPEG_RATIO)
    return _Slice(
        file=file,
        uid=_tag(reader, _UID),
        description=_tag(reader, _DESCRIPTION),
        shape=(width, height),
        frames=frames[0] if frames else 1,
        spacing=tuple(reader.GetSpacing()[:2]),
        origin=tuple(reader.GetOrigin()[:3]),
        direction=tuple(reader.GetDirection()),
        pixel_type=reader.GetPixelID(),
        is_plane=reader.GetNumberOfComponents() == 1 and (frames != [1] or reader.HasMetaDataKey(_POSITION)),
        has_spacing=bool(_tag(reader, _PIXEL_SPACING)),
        has_imager_spacing=bool(_tag(reader, _IMAGER_SPACING)),
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


def _refuse_other_encoding(path: Path) -> None:
    """SimpleITK ends the whole process at such a name."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise DatasetError(f"{path}: expected a name in UTF-8, got {os.fsencode(path)!r}; rename it.") from None


def _unreadable(path: Path, error: RuntimeError) -> str:
    reason = " ".join(re.sub(r"\(0x\w+\)", "", str(error).partition("ERROR:")[2]).split())
    if path.exists() and reason.endswith("No such file or directory"):  # MetaIO's reason for whatever it cannot read
        reason = "damaged data, or a header without its data"
    return f"{path}: expected a whole volume, got one that cannot be read ({reason}); copy it again."


_itk_is_quiet = threading.Lock()
_itk_reads = 0
_itk_warned = True


@contextlib.contextmanager
def _quiet_itk() -> Iterator[None]:
    """Without ITK's warnings on stderr, which speak of its own source files; threads may read at once."""
    global _itk_reads, _itk_warned
    with _itk_is_quiet:
        if _itk_reads == 0:
            _itk_warned = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
        _itk_reads += 1
    try:
        yield
    finally:
        with _itk_is_quiet:
            _itk_reads -= 1
            if _itk_reads == 0:
                sitk.ProcessObject.SetGlobalWarningDisplay(_itk_warned)
