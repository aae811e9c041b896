"""NIfTI files: the one reading of header and voxels that every command shares.

nibabel says what a header means. What it takes without a word although other programs read it otherwise is refused
here, or named in a remark; so is a header that the file behind it cannot fulfil, before memory is asked for.
"""

import gzip
import io
import logging
import math
import os
import stat
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import ArrayLike, NDArray

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import NIFTI_SUFFIXES
from monai_extra_losses.data.remarks import LONE_INTERCEPT, NO_ORIENTATION, OTHER_QFORM, OTHER_SPACING, SKEWED

TOLERANCE = 0.05
"""Two grids are one when no corner of the volume moves by more than this fraction of the smallest voxel spacing."""

RIGHT_ANGLES = 0.01
"""How far the product of two unit vectors along axes may be from 0: the rounding of headers, and some more."""

DEFLATE_RATIO = 1032
"""Bytes that a byte of a deflate stream can stand for, at most (RFC 1951: 258 bytes in two bits)."""

_GZIP = b"\x1f\x8b"
_LARGEST_AXIS = (1 << 15) - 1  # of NIfTI-1, in which results are written
_CHUNK = 1 << 22
_UNITS = {1: "metres", 3: "microns"}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_silent = logging.Logger("nibabel's remarks on headers", level=logging.CRITICAL + 1)  # lines without a file's name


@dataclass(frozen=True, eq=False)
class NiftiFile:
    """A NIfTI file whose header is read and checked.

    Args:
        path: of the file.
        shape: voxels along the three axes, and the number of channels where there is a fourth of more than one.
        affine: from voxels to millimetres towards the patient's right, front and head.
        stored: type of the voxels in the file.
        slope, intercept: values are `stored * slope + intercept`.
        offset: byte of the first voxel in the uncompressed file.
        remarks: keys of `remarks.REMARKS` that hold for this file.
    """

    path: Path
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    stored: np.dtype[Any]
    slope: float
    intercept: float
    offset: int
    remarks: tuple[str, ...]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres along the three axes."""
        first, second, third = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return first, second, third

    @property
    def is_scaled(self) -> bool:
        """Whether the values are others than those stored."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    def read_stored(self) -> NDArray[Any]:
        """The voxels as stored, once the file is read to its end and its checksum verified.

        Raises:
            DatasetError: a file that is cut off or damaged, or more voxels than fit into memory.
        """
        count = math.prod(self.shape) * self.stored.itemsize
        try:
            # pages that no data reach cost nothing
            content = np.empty(count, np.uint8)
            found = self._read_into(content.data)
        except MemoryError:
            raise DatasetError(
                f"{self.path}: expected a volume that fits into memory, got shape {self.shape} of {self.stored} "
                f"({count / 1e9:.3g} GB)."
            ) from None
        if found < count:
            raise DatasetError(_ends_early(self.path, self.offset + count, self.offset + found))
        voxels = content.view(self.stored).reshape(self.shape, order="F")
        return voxels.astype(self.stored.newbyteorder("="), copy=False)

    def read(self) -> NDArray[Any]:
        """The values of the voxels, as nibabel's `dataobj` has them.

        Raises:
            DatasetError: as `read_stored`.
        """
        return self.scaled(self.read_stored())

    def verify(self) -> None:
        """Read the file to its end and keep nothing.

        Raises:
            DatasetError: a file that is cut off or damaged.
        """
        count = math.prod(self.shape) * self.stored.itemsize
        found = self._read_into(None)
        if found < count:
            raise DatasetError(_ends_early(self.path, self.offset + count, self.offset + found))

    def scaled(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The values of some stored voxels."""
        values = apply_read_scaling(stored, np.float64(self.slope), np.float64(self.intercept))
        # neither torch nor ITK knows longer floats
        return values.astype(np.float64) if values.dtype.kind == "f" and values.dtype.itemsize > 8 else values

    def _read_into(self, content: memoryview | None) -> int:
        """Bytes of voxels in the file, up to the length of `content` if that is given."""
        found = 0
        try:
            with _opened(self.path) as stream:
                stream.seek(self.offset)
                while content is not None and found < len(content):
                    if not (got := stream.readinto(content[found : found + _CHUNK])):
                        break
                    found += got
                while rest := stream.read(_CHUNK):  # to the end, so that the checksum is verified
                    found += len(rest)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DatasetError(_damaged_gzip(self.path, error)) from error
        except OSError as error:
            raise DatasetError(_not_readable(self.path, error)) from error
        return found


def open_nifti(path: Path) -> NiftiFile:
    """Read and check the header of a NIfTI file, and nothing of its voxels.

    Args:
        path: a file with one of `NIFTI_SUFFIXES`.

    Raises:
        DatasetError: no regular file, another format, or a compressed file with the name of an uncompressed one and the
            reverse; a header that is damaged or declares more voxels than the file can hold; fewer than three
            dimensions or more than four, colours or complex numbers as voxels; another unit than millimetres; no
            spacing or an affine that cannot be inverted; voxels that begin inside the header.
    """
    size = regular_size(path)
    packed = path.name.lower().endswith(".gz")
    block = _first_bytes(path, size, packed)
    header = _raw_header(path, block)
    shape = _shape(path, header)
    stored = _stored_type(path, header)
    offset = _offset(path, header)
    declared = offset + math.prod(shape) * stored.itemsize
    if size * (DEFLATE_RATIO if packed else 1) < declared:
        raise DatasetError(_ends_early(path, declared, size, packed))
    _refuse_odd_spacing(path, header)
    try:
        header.check_fix(logger=_silent)
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        slope, intercept = header.get_slope_inter()
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise DatasetError(_damaged_header(path, str(error).partition("\n")[0])) from error
    _refuse_odd_affine(path, affine)
    return NiftiFile(
        path=path,
        shape=shape,
        affine=affine,
        stored=stored,
        slope=1.0 if slope is None else slope,
        intercept=intercept or 0.0,
        offset=offset,
        remarks=tuple(_remarks(header, shape, affine)),
    )


def is_nifti(path: Path) -> bool:
    """Whether a file has the name of a NIfTI file."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def regular_size(path: Path) -> int:
    """Bytes of a file.

    Raises:
        DatasetError: no file, or one that is read like a file and is none: a named pipe never ends, or never begins.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise DatasetError(_not_readable(path, error)) from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for has, name in _KINDS if has(status.st_mode)), "something else")
        raise DatasetError(f"{path}: expected a readable file, got {kind}.")
    return status.st_size


def corner_distance_mm(shape: Sequence[int], affine: ArrayLike, other: ArrayLike) -> float:
    """How far the corner voxels of a volume lie apart, at most, by two affines."""
    corners = np.array([(*corner, 1.0) for corner in product(*[(0, n - 1) for n in shape])])
    difference = corners @ (np.asarray(affine) - np.asarray(other)).T
    return float(np.linalg.norm(difference[:, :3], axis=1).max())


def is_one_grid(shape: Sequence[int], affine: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two affines put the corners of a volume at one place, to `TOLERANCE` of the spacing of `other`."""
    allowed = TOLERANCE * float(np.linalg.norm(other[:3, :3], axis=0).min())
    return corner_distance_mm(shape, affine, other) <= allowed


def _opened(path: Path) -> io.BufferedIOBase:
    return gzip.GzipFile(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _first_bytes(path: Path, size: int, packed: bool) -> bytes:
    """The header's bytes; a file whose name is wrong about its compression is refused."""
    if size == 0:
        raise DatasetError(f"{path}: expected a NIfTI file, got an empty one; copy it again.")
    try:
        with path.open("rb") as stream:
            start = stream.read(nib.Nifti2Header.sizeof_hdr)
        if start.startswith(_GZIP) and not packed:
            raise DatasetError(
                f"{path}: expected an uncompressed file, as its name says, got a gzip; rename it to {path.name}.gz."
            )
        if packed and not start.startswith(_GZIP) and _header_class(start) is not None:
            raise DatasetError(
                f"{path}: expected a gzip, as its name says, got an uncompressed NIfTI file; "
                f"rename it to {path.name[:-3]}."
            )
        if not packed:
            return start
        with gzip.open(path, "rb") as unpacked:
            return unpacked.read(nib.Nifti2Header.sizeof_hdr)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(_damaged_gzip(path, error)) from error
    except OSError as error:
        raise DatasetError(_not_readable(path, error)) from error


def _header_class(block: bytes) -> type[Any] | None:
    """nibabel's class of the header by its magic number, which a pair has too."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if _bare(kind, block, "<")["magic"].item() in (kind.single_magic, kind.pair_magic):
            return kind
    return None


def _bare(kind: type[Any], block: bytes, endian: str) -> Any:
    """A header with nothing mended, and zeros for what is cut off."""
    return kind(block[: kind.sizeof_hdr].ljust(kind.sizeof_hdr, b"\0"), endian, check=False)


def _raw_header(path: Path, block: bytes) -> Any:
    """The header, with nothing mended."""
    header_class: type[Any] = _header_class(block) or nib.AnalyzeHeader
    size = header_class.sizeof_hdr
    if len(block) < size:
        raise DatasetError(_damaged_header(path, f"it ends after {len(block)} bytes"))
    # nibabel guesses the byte order by `dim`, and would take a damaged one for that of the other order
    headers = [_bare(header_class, block, endian) for endian in "<>"]
    header = next((header for header in headers if header["sizeof_hdr"] == size), None)
    kind = None
    if header_class is nib.AnalyzeHeader:
        kind = "something else" if header is None else "an Analyze header, which knows no orientation"
    elif headers[0]["magic"].item() == header_class.pair_magic:
        kind = "the header of a pair (.hdr and .img)"
    if kind is not None:
        raise DatasetError(f"{path}: expected a NIfTI file (.nii or .nii.gz), got {kind}; convert it.")
    if header is None:
        raise DatasetError(_damaged_header(path, f"sizeof_hdr is not {size}"))
    return header


def _shape(path: Path, header: Any) -> tuple[int, ...]:
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise DatasetError(_damaged_header(path, f"dim[0], the number of dimensions, is {dim[0]}"))
    shape = dim[1 : dim[0] + 1]
    if min(shape) < 1:
        raise DatasetError(_damaged_header(path, f"the shape is {tuple(shape)}"))
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if not 3 <= len(shape) <= 4:
        raise DatasetError(
            f"{path}: expected a volume of three dimensions, got shape {tuple(shape)}; split or convert it."
        )
    if max(shape) > _LARGEST_AXIS:
        raise DatasetError(
            f"{path}: expected at most {_LARGEST_AXIS} voxels along an axis, got shape {tuple(shape)}; split it."
        )
    return tuple(shape)


def _stored_type(path: Path, header: Any) -> np.dtype[Any]:
    try:
        stored: np.dtype[Any] = header.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError):
        stored = np.dtype("V0")
    if stored.itemsize == 0:
        raise DatasetError(_damaged_header(path, f"the voxels have the unknown type {header['datatype']}"))
    if stored.names is not None:
        raise DatasetError(
            f"{path}: expected one real number per voxel, got colours ({''.join(stored.names)}); export the "
            "intensities or the label values themselves, not a picture of them."
        )
    if stored.kind not in "iuf":
        raise DatasetError(
            f"{path}: expected one real number per voxel, got voxels of type {stored}; "
            "write the magnitude, or real and imaginary part as channels."
        )
    return stored


def _offset(path: Path, header: Any) -> int:
    offset, least = float(header["vox_offset"]), header.single_vox_offset
    if not (math.isfinite(offset) and offset >= least):
        raise DatasetError(
            f"{path}: expected the voxels from byte {least} on, got vox_offset {offset:g}, inside the header, where "
            "each program begins elsewhere; write the file anew with the program that made it, or correct vox_offset."
        )
    return int(offset)


def _refuse_odd_spacing(path: Path, header: Any) -> None:
    """What nibabel mends without a word that a user would see."""
    if (unit := int(header["xyzt_units"]) & 7) in _UNITS:
        raise DatasetError(
            f"{path}: expected millimetres, got a header in {_UNITS[unit]} (xyzt_units), which few programs read; "
            'write it anew with an affine in mm and image.header.set_xyzt_units("mm") of nibabel.'
        )
    for name in ("qform_code", "sform_code"):
        if not 0 <= (code := int(header[name])) <= 5:
            raise DatasetError(_damaged_header(path, f"{name} is {code}"))
    spacing = [float(n) for n in header["pixdim"][1:4]]
    if int(header["sform_code"]) == 0 and not all(math.isfinite(n) and n > 0 for n in spacing):
        raise DatasetError(
            f"{path}: expected a spacing above 0, got {spacing} mm (pixdim); correct the header, or convert the "
            "original again."
        )


def _refuse_odd_affine(path: Path, affine: NDArray[np.float64]) -> None:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    usable = bool(np.isfinite(affine).all()) and bool((lengths > 0).all())
    if not usable or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
        raise DatasetError(
            f"{path}: expected an affine that can be inverted, got {affine.tolist()}; correct the header."
        )


def _remarks(header: Any, shape: Sequence[int], affine: NDArray[np.float64]) -> Iterable[str]:
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not has_sform and not has_qform:
        yield NO_ORIENTATION
    elif has_sform and has_qform and _qform_lies_apart(header, shape[:3], affine):
        yield OTHER_QFORM
    elif has_sform and not np.allclose(header["pixdim"][1:4], lengths, rtol=0.01):
        yield OTHER_SPACING
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if (slope == 0 or not math.isfinite(slope)) and math.isfinite(intercept) and intercept != 0:
        yield LONE_INTERCEPT
    if is_skewed(affine[:3, :3] / lengths):
        yield SKEWED


def is_skewed(direction: NDArray[np.float64]) -> bool:
    """Whether the unit vectors in the columns are not at right angles."""
    return bool(np.abs(direction.T @ direction - np.eye(3)).max() > RIGHT_ANGLES)


def _qform_lies_apart(header: Any, shape: Sequence[int], affine: NDArray[np.float64]) -> bool:
    try:
        return not is_one_grid(shape, header.get_qform(), affine)  # NaN lies apart
    except (ValueError, nib.spatialimages.HeaderDataError):
        return True


def _ends_early(path: Path, declared: int, found: int, packed: bool = False) -> str:
    got = f"a gzip of {found}, which cannot hold them" if packed else f"{found}"
    return (
        f"{path}: expected a whole NIfTI file of {declared} bytes, as its header declares, got {got}; "
        "it is cut off or its header damaged, copy it again."
    )


def _damaged_gzip(path: Path, error: Exception) -> str:
    return f"{path}: expected a whole gzip file, got a damaged one ({error}); copy it again."


def _damaged_header(path: Path, reason: str) -> str:
    return f"{path}: expected a whole NIfTI file, got a damaged header ({reason}); copy it again."


def _not_readable(path: Path, error: Exception) -> str:
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
    return f"{path}: expected a readable file, got an error ({reason})."
