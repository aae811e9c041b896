"""A volume whose header is read: where its voxels lie, and how SimpleITK loads them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import NIFTI_SUFFIXES, OTHER_SUFFIXES
from monai_extra_losses.data.nifti import TOLERANCE, NiftiFile, corner_distance_mm, is_skewed
from monai_extra_losses.data.quiet import quiet_itk

VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *OTHER_SUFFIXES)
"""File names that `read_volume` takes, in lower or upper case; a DICOM series is a folder."""


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
        segmentations: DICOM SEG and RTSTRUCT files that lie beside the series.
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
        else:
            image = self._read() if self.series is None else self._read_slices()
            image = image[(slice(None),) * 3 + (0,) * (image.GetDimension() - 3)]
        if self.nifti is not None or self.series is not None:  # as nibabel and pydicom place voxels
            image.SetSpacing(self.grid.spacing)
            image.SetOrigin(self.grid.origin)
            image.SetDirection(self.grid.direction)
        for key in image.GetMetaDataKeys():
            image.EraseMetaData(key)
        return image

    def _read(self) -> sitk.Image:
        try:
            with quiet_itk:
                return sitk.ReadImage(str(self.path))
        except RuntimeError as error:
            raise DatasetError(unreadable(self.path, error)) from error

    def _read_slices(self) -> sitk.Image:
        reader = sitk.ImageSeriesReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileNames([str(file) for file in self.files])
        reader.SetOutputPixelType(self.pixel_type)
        try:
            with quiet_itk:
                image: sitk.Image = reader.Execute()
        except RuntimeError as error:
            for file in self.files:  # the error does not say which
                read_slice(file, voxels=True)
            raise DatasetError(unreadable(self.path, error)) from error
        if image.GetSize() != self.grid.shape:  # of an element that is there twice each library may take another
            raise DatasetError(
                cannot_be_read(self.path, f"voxels of shape {image.GetSize()} under headers of {self.grid.shape}")
            )
        return image

    def load_layers(self) -> NDArray[Any]:
        """Read the voxels of all layers, of axes layer, z, y, x.

        Raises:
            DatasetError: voxels that cannot be read.
        """
        if self.nifti is not None:
            return self.nifti.read().T.reshape(self.layers, *self.grid.shape[::-1])
        image = self._read()
        voxels = sitk.GetArrayFromImage(image)
        if image.GetNumberOfComponentsPerPixel() > 1:
            voxels = np.moveaxis(voxels, -1, 0)
        return voxels.reshape(self.layers, *self.grid.shape[::-1])


def refuse_odd_grid(path: Path, grid: VolumeGrid) -> None:
    if min(grid.shape) < 2:
        raise DatasetError(flat(path, grid.shape))
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


def flat(path: Path, shape: Sequence[int]) -> str:
    return f"{path}: expected a volume of several slices, got the 2D shape {tuple(shape)}."


def refuse_other_encoding(path: Path) -> None:
    """SimpleITK ends the whole process at such a name."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise DatasetError(f"{path}: expected a name in UTF-8, got {os.fsencode(path)!r}; rename it.") from None


def read_slice(file: Path, *, voxels: bool = False) -> int:
    """SimpleITK's number of the type that GDCM reads a slice as; with `voxels` they are read too.

    Raises:
        DatasetError: a file that GDCM cannot read.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        with quiet_itk:
            reader.ReadImageInformation()
            if voxels:
                reader.Execute()
    except RuntimeError as error:
        raise DatasetError(unreadable(file, error)) from error
    return int(reader.GetPixelID())


def unreadable(path: Path, error: RuntimeError) -> str:
    """A sentence of an error of SimpleITK."""
    reason = " ".join(re.sub(r"\(0x\w+\)", "", str(error).partition("ERROR:")[2]).split())
    if path.exists() and reason.endswith("No such file or directory"):  # MetaIO's reason for whatever it cannot read
        reason = "damaged data, or a header without its data"
    return cannot_be_read(path, reason)


def cannot_be_read(path: Path, reason: str) -> str:
    return f"{path}: expected a whole volume, got one that cannot be read ({reason}); copy it again."
