"""Read a volume from the formats that medical images come in: NIfTI, NRRD, MetaImage and DICOM series.

SimpleITK does the reading. What it reads without complaint although the result would be wrong is refused here: a NIfTI
file that is cut off, a DICOM series with a missing slice, several acquisitions in one.
"""

import contextlib
import gzip
import math
import os
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from monai_extra_losses.data.checks import TOLERANCE, corner_distance_mm
from monai_extra_losses.data.errors import DatasetError

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""File names that `read_volume` takes, in lower or upper case; a DICOM series is a folder."""

_NIFTI_SUFFIXES = (".nii.gz", ".nii")
_DICOM_SUFFIXES = (".dcm", ".ima")
_META_SUFFIXES = (".mha", ".mhd")
_META_BYTES = {  # of a voxel; the sizes of the others differ between systems
    **{f"MET_{sign}CHAR": 1 for sign in ("", "U")},
    **{f"MET_{sign}SHORT": 2 for sign in ("", "U")},
    **{f"MET_{sign}INT": 4 for sign in ("", "U")},
    **{f"MET_{sign}LONG_LONG": 8 for sign in ("", "U")},
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
_CHUNK = 1 << 22
# Storage classes (DICOM PS3.4, B.5): segmentations, and objects that often lie beside images and hold none.
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_WITHOUT_IMAGE = re.compile(
    r"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.1\.1\.(11|88|104)\..*|5\.1\.4\.1\.1\.66(\.[123])?|5\.1\.4\.1\.1\.481\.5)"
)
_UID, _DESCRIPTION, _POSITION = "0020|000e", "0008|103e", "0020|0032"


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
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

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
    """

    path: Path
    files: tuple[Path, ...]
    grid: VolumeGrid
    pixel_type: int
    series: DicomSeries | None = None
    segmentations: tuple[Path, ...] = ()

    def load(self) -> sitk.Image:
        """Read the voxels; a volume of three dimensions, without the header's other entries.

        Raises:
            DatasetError: voxels that cannot be read.
        """
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


def read_volume(path: str | Path, series: str | None = None) -> sitk.Image:
    """Read a volume of three dimensions with one value per voxel.

    Args:
        path: a file with one of `VOLUME_SUFFIXES`, or the folder of a DICOM series, which may have sub-folders.
        series: picks a series of a DICOM folder, as `open_volume` says; a file has none.

    Raises:
        DatasetError: as `open_volume`, or voxels that cannot be read.
    """
    return open_volume(path, series).load()


def open_volume(path: str | Path, series: str | None = None) -> VolumeSource:
    """Read and check the header of a volume.

    Args:
        path: a file with one of `VOLUME_SUFFIXES`, or the folder of a DICOM series, which may have sub-folders.
        series: picks a series of a DICOM folder: its SeriesInstanceUID or SeriesDescription, else a part of the
            description (whatever the case); None where the folder holds one series. A file has none.

    Raises:
        DatasetError: no volume, no permission, another format; more or fewer than three dimensions, several values
            per voxel, oblique axes that are not at right angles; a NIfTI or MetaImage file that is cut off; a DICOM
            folder without the one series, or a series with missing, doubled, uneven or tilted slices.
    """
    path = Path(path)
    _refuse_other_encoding(path)
    if path.is_dir():
        return _open_series(path, series)
    if not path.is_file():
        raise DatasetError(f"{path}: expected a volume, got no such file.")
    if not path.name.lower().endswith(VOLUME_SUFFIXES):
        raise DatasetError(
            f"{path}: expected {', '.join(VOLUME_SUFFIXES)} or the folder of a DICOM series, got another file; "
            "convert it."
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
    if len(shape) > 3:
        raise DatasetError(
            f"{path}: expected a volume of three dimensions, got shape {tuple(shape)}; "
            "write each channel as a file of its own, NAME_0000, NAME_0001, ..."
        )
    grid = _grid(path, reader)
    if path.name.lower().endswith(_NIFTI_SUFFIXES):
        _refuse_odd_nifti(path, grid)
    if path.name.lower().endswith(_META_SUFFIXES):
        _refuse_cut_metaimage(path, math.prod(shape))
    return VolumeSource(path, (path, *_data_files(path)), grid, reader.GetPixelID())


def _grid(path: Path, header: Any) -> VolumeGrid:
    """The grid of a header (or image) of SimpleITK, which must be that of a volume."""
    dimension = header.GetDimension()
    shape = tuple(header.GetSize()[:3])
    if header.GetNumberOfComponents() != 1 or "complex" in sitk.GetPixelIDValueAsString(header.GetPixelID()):
        raise DatasetError(
            f"{path}: expected one real number per voxel, got {header.GetNumberOfComponents()} of type "
            f"{sitk.GetPixelIDValueAsString(header.GetPixelID())}; write each channel as a file of its own, "
            "NAME_0000, NAME_0001, ..."
        )
    if len(shape) < 3 or min(shape) < 2:
        raise DatasetError(f"{path}: expected a volume of several slices, got the 2D shape {shape}.")
    direction = np.reshape(header.GetDirection(), (dimension, dimension))[:3, :3]
    numbers = np.array([*header.GetSpacing()[:3], *header.GetOrigin()[:3]])
    # Rounded headers are off by 1e-4 or so.
    if not np.isfinite(numbers).all() or np.abs(direction.T @ direction - np.eye(3)).max() > 0.01:
        raise DatasetError(
            f"{path}: expected axes at right angles, got the directions {direction.round(4).tolist()}; "
            "resample it onto such a grid."
        )
    return VolumeGrid(
        shape=(shape[0], shape[1], shape[2]),
        spacing=tuple(header.GetSpacing()[:3]),
        origin=tuple(header.GetOrigin()[:3]),
        direction=tuple(direction.ravel().tolist()),
    )


def _refuse_odd_nifti(path: Path, grid: VolumeGrid) -> None:
    """ITK fills a file that is cut off with zeros, and takes the qform where the sform is sheared."""
    found = 0
    try:
        header: Any = nib.load(path)
        expected = header.dataobj.offset + header.dataobj.dtype.itemsize * math.prod(header.shape)
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as stream:
            while chunk := stream.read(_CHUNK):  # to the end, so that the checksum is verified
                found += len(chunk)
    except (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise DatasetError(f"{path}: expected a whole file, got a damaged one ({error}); copy it again.") from error
    if found < expected:
        raise DatasetError(f"{path}: expected {expected} bytes, got {found}; copy the file again.")
    oriented = header.header["sform_code"] > 0 or header.header["qform_code"] > 0
    if oriented and corner_distance_mm(grid.shape, grid.affine, header.affine) > TOLERANCE * min(grid.spacing):
        raise DatasetError(
            f"{path}: expected one orientation, got a sheared sform and another qform; "
            "correct the header, or resample the volume onto a grid at right angles."
        )


def _refuse_cut_metaimage(path: Path, voxels: int) -> None:
    """MetaIO prints lines of its own about a file that is cut off, and ITK calls it missing."""
    with path.open("rb") as stream:
        start = stream.read(1 << 16)
    last = re.search(rb"^ElementDataFile[ \t]*=[ \t]*(.*?)\r?\n", start, re.MULTILINE)
    if last is None:
        return
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition("=") for line in _lines(start[: last.end()]))
    }
    if last[1].strip().upper() == b"LOCAL":
        found = path.stat().st_size - last.end()
    elif len(files := _data_files(path)) == 1 and fields.get("HeaderSize", "0") == "0":
        found = files[0].stat().st_size
    else:
        return
    if fields.get("CompressedData", "False").lower() in ("true", "1"):
        expected = int(size) if (size := fields.get("CompressedDataSize", "")).isdecimal() else 0
    else:
        expected = voxels * _META_BYTES.get(fields.get("ElementType", ""), 0)
    if found < expected:
        raise DatasetError(
            f"{path}: expected {expected} bytes of voxels, got {found}; the data end early, copy the file again."
        )


def _lines(header: bytes) -> list[str]:
    return header.decode("latin-1").splitlines()


def _data_files(path: Path) -> tuple[Path, ...]:
    """The files beside a header (.mhd, .nhdr) that hold its voxels, as far as it names them one by one."""
    if not path.name.lower().endswith((".mhd", ".nhdr")):
        return ()
    text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^(?:ElementDataFile *=|data ?file:)(.*)", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    named = (path.parent / line.strip() for line in found[1].splitlines() if line.strip()) if found else ()
    return tuple(file for file in named if file.is_file())


def _open_series(folder: Path, wanted: str | None) -> VolumeSource:
    files, segmentations = _dicom_files(folder)
    if segmentations and not files:
        kinds = " and ".join(sorted(set(segmentations.values())))
        raise DatasetError(
            f"{folder}: expected a series of images, got {kinds}; convert it to a label volume, "
            "DICOM-SEG with segimage2itkimage of dcmqi, RTSTRUCT with plastimatch convert."
        )
    if not files:
        others = [file.name for file in sorted(folder.iterdir()) if file.name.lower().endswith(VOLUME_SUFFIXES)]
        hint = f"; move {others[0]} out of its own folder and name it as the case" if others else ""
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
    return VolumeSource(
        path=folder,
        files=(ordered := tuple(slice_.file for slice_ in slices)),
        grid=VolumeGrid((*first.shape, len(slices)), (*first.spacing, distance), first.origin, first.direction),
        # SimpleITK would round each slice to the type of the first (PET has a scale factor per slice).
        pixel_type=types.pop() if len(types) == 1 else sitk.sitkFloat64,
        series=DicomSeries(chosen.uid, chosen.description, ordered),
        segmentations=tuple(segmentations),
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


def _dicom_files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """DICOM images below a folder, and the segmentation objects (-> their kind) among them."""
    files, segmentations = [], {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(parent) / name
            storage = _storage_class(file)
            if storage in (_SEGMENTATION, _STRUCTURES):
                segmentations[file] = "DICOM-SEG" if storage == _SEGMENTATION else "RTSTRUCT"
            elif is_dicom(file) and not _WITHOUT_IMAGE.fullmatch(storage or ""):
                files.append(file)
    return files, segmentations


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM by its content, or by its name; hidden files are none."""
    if file.name.startswith("."):
        return False
    return file.name.lower().endswith(_DICOM_SUFFIXES) or _storage_class(file) is not None


def _storage_class(file: Path) -> str | None:
    """MediaStorageSOPClassUID of a DICOM file, which GDCM tells only where there are pixels; None for other files."""
    try:
        with file.open("rb") as stream:
            start = stream.read(1024)
    except OSError:
        return None
    if start[128:132] != b"DICM":
        return None
    at = start.find(b"\x02\x00\x02\x00UI", 132)  # (0002,0002); these first elements are always explicit little endian
    if at < 0:
        return ""
    length = int.from_bytes(start[at + 6 : at + 8], "little")
    return start[at + 8 : at + 8 + length].rstrip(b"\0 ").decode("ascii", errors="replace")


def _read_slice(file: Path) -> _Slice:
    _refuse_other_encoding(file)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        with _quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise DatasetError(_unreadable(file, error)) from error
    width, height, *frames = reader.GetSize()
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
