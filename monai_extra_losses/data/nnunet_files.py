"""The files of a case as nnU-Net wants them: a .nii.gz per channel and one for the label, all with one header's grid.

nnU-Net reads NIfTI with SimpleITK and compares spacing, origin and direction. A file is copied where SimpleITK finds
there what nibabel does; else its voxels are written anew.
"""

import gzip
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_extra_losses.data.datalist import LabelledCase
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.label_ids import renumber
from monai_extra_losses.data.nifti import NiftiFile, is_one_grid, open_nifti
from monai_extra_losses.data.quiet import quiet_itk
from monai_extra_losses.data.volume_source import VolumeGrid

ENDING = ".nii.gz"
"""Of all files."""

_OF_THE_GRID = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


@dataclass(frozen=True)
class CaseFiles:
    """What was written of a case.

    Args:
        name: of the case.
        kept: files that are copied, or linked.
        written: files whose voxels were written anew.
    """

    name: str
    kept: int
    written: int


def write_case(case: LabelledCase, folder: Path, part: str, new_ids: Mapping[int, int], link: bool) -> CaseFiles:
    """Write imagesTr/NAME_0000.nii.gz, ... and labelsTr/NAME.nii.gz (with `part` "Ts" imagesTs and labelsTs).

    Args:
        case: checked, as by `check_cases`.
        folder: of the data set, with the folders of the part.
        part: "Tr" or "Ts".
        new_ids: label value of the case -> value there.
        link: whether files are linked and not copied, where they stay as they are.

    Raises:
        DatasetError: a grid that SimpleITK does not read, or files of different file systems to link.
    """
    writer = _CaseWriter(link)
    for path in case.image:
        file = open_nifti(path)
        channels = file.shape[3] if len(file.shape) > 3 else 1
        for channel in range(channels):
            out = folder / f"images{part}" / f"{case.name}_{writer.channels:04d}{ENDING}"
            writer.image(file, None if channels == 1 else channel, out)
    if case.label is not None:
        writer.label(open_nifti(case.label), new_ids, folder / f"labels{part}" / f"{case.name}{ENDING}")
    return CaseFiles(case.name, writer.kept, writer.written)


class _CaseWriter:
    """Writes the files of one case; the first image has the grid that all get."""

    def __init__(self, link: bool) -> None:
        self.link = link
        self.channels = self.kept = self.written = 0
        self._first: Path | None = None
        self._grid: _Grid | None = None
        self._last: tuple[Path, NDArray[Any]] | None = None  # a file of several channels is read once

    def image(self, file: NiftiFile, channel: int | None, out: Path) -> None:
        """Write one channel."""
        grid = None if channel is not None else _grid_of(file.path)
        if grid is not None and (grid == self._grid if self._grid else grid.is_of(file)):
            self._keep(file.path, out)
        else:
            voxels = self._voxels(file)
            self._write(file, voxels if channel is None else voxels[..., channel], out)
        self.channels += 1
        if self._grid is None:
            self._first, self._grid = out, _grid_of(out)
            if self._grid is None:
                raise DatasetError(_unread(file.path))

    def label(self, file: NiftiFile, new_ids: Mapping[int, int], out: Path) -> None:
        """Write the label."""
        assert self._grid is not None  # an image came first
        values = file.read()
        voxels = renumber(values, new_ids)
        grid = _grid_of(file.path)
        if grid is not None and grid.is_near(self._grid) and np.array_equal(values, voxels):
            self._keep(file.path, out)
        else:
            self._write(file, voxels, out)

    def _voxels(self, file: NiftiFile) -> NDArray[Any]:
        """The values of an image; what a header scales from 16 bits in float32, in which networks compute."""
        if self._last is None or self._last[0] != file.path:
            values = file.read()
            scaled = file.is_scaled and file.stored.itemsize <= 2
            self._last = file.path, values.astype(np.float32) if scaled else values
        return self._last[1]

    def _keep(self, source: Path, out: Path) -> None:
        self.kept += 1
        if not source.name.lower().endswith(ENDING):
            with source.open("rb") as stored, out.open("wb") as packed, _gzip(packed) as stream:
                shutil.copyfileobj(stored, stream, 1 << 22)
        elif not self.link:
            shutil.copyfile(source, out)
        else:
            try:
                os.link(source.resolve(), out)
            except OSError as error:
                raise DatasetError(
                    f"{source}: expected a file that can be linked into {out.parent.parent.parent}, got an error "
                    f"({error.strerror}); leave --link out."
                ) from None

    def _write(self, file: NiftiFile, voxels: NDArray[Any], out: Path) -> None:
        self.written += 1
        if self._first is None:
            affine = _right_angled(file)
            volume = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
            volume.set_qform(affine, code="scanner")
            volume.set_sform(affine, code="scanner")
            volume.header.set_xyzt_units("mm")
        else:
            header: Any = nib.load(self._first).header
            kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
            volume = kind(voxels, None, dtype=voxels.dtype)
            for name in _OF_THE_GRID:
                volume.header[name] = header[name]
        nib.save(volume, out)
        if self._grid is not None and _grid_of(out) != self._grid:
            raise DatasetError(_unread(file.path))


@dataclass(frozen=True)
class _Grid:
    """Of a volume, as SimpleITK reads it."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def is_near(self, other: "_Grid") -> bool:
        """Whether nnU-Net finds no difference."""
        places = ((self.spacing, other.spacing), (self.origin, other.origin), (self.direction, other.direction))
        return self.shape == other.shape and all(np.allclose(*pair) for pair in places)

    def is_of(self, file: NiftiFile) -> bool:
        """Whether nibabel puts the voxels at the same place."""
        first, second, third = self.shape
        grid = VolumeGrid((first, second, third), self.spacing[:3], self.origin[:3], self.direction)  # type: ignore[arg-type]
        return self.shape == file.shape and is_one_grid(file.shape, grid.affine, file.affine)


def _grid_of(path: Path) -> _Grid | None:
    """None where SimpleITK reads no volume of three dimensions."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet_itk:
            reader.ReadImageInformation()
    except RuntimeError:
        return None
    if reader.GetDimension() != 3:
        return None
    return _Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def _right_angled(file: NiftiFile) -> NDArray[np.float64]:
    """The affine of a file with axes at exactly right angles, as SimpleITK demands."""
    affine: NDArray[np.float64] = file.affine.copy()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    affine[:3, :3] = left @ right * spacing
    if not is_one_grid(file.shape[:3], affine, file.affine):
        raise DatasetError(_unread(file.path))
    return affine


def _unread(path: Path) -> str:
    return (
        f"{path}: expected axes at right angles, with which SimpleITK reads NIfTI for nnU-Net, got others; resample it "
        "onto such a grid."
    )


def _gzip(stream: Any) -> gzip.GzipFile:
    return gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=1, mtime=0)
