"""Read a volume from the formats that medical images come in: NIfTI, NRRD, MetaImage and DICOM series.

nibabel reads NIfTI, as it does in training; pydicom reads the headers of DICOM slices, SimpleITK their voxels and the
rest. What is read without complaint although the result
would be wrong is refused here: a file that is cut off, a DICOM series with a missing slice, several acquisitions in
one.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from monai_extra_losses.data.dicom import open_series
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.nifti import is_nifti, open_nifti, regular_size
from monai_extra_losses.data.quiet import quiet_itk
from monai_extra_losses.data.text_headers import (
    META_SUFFIXES,
    data_files,
    meta_header,
    meta_remarks,
    nrrd_header,
    nrrd_remarks,
    refuse_cut_metaimage,
    refuse_cut_nrrd,
)
from monai_extra_losses.data.volume_source import (
    VOLUME_SUFFIXES,
    VolumeGrid,
    VolumeSource,
    flat,
    refuse_odd_grid,
    refuse_other_encoding,
    unreadable,
)


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
    refuse_other_encoding(path)
    if path.is_dir():
        return open_series(path, series)
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
    files = data_files(path)
    for file in files:
        regular_size(file)
    is_meta = path.name.lower().endswith(META_SUFFIXES)
    remarks = tuple((meta_remarks if is_meta else nrrd_remarks)(path, (meta_header if is_meta else nrrd_header)(path)))
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet_itk:
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise DatasetError(unreadable(path, error)) from error
    shape = list(reader.GetSize())
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) > (4 if layered else 3):
        raise DatasetError(_four_axes(path, shape))
    grid = _grid(path, reader, layered)
    layers = reader.GetNumberOfComponents() * math.prod(shape[3:])
    (refuse_cut_metaimage if is_meta else refuse_cut_nrrd)(path, math.prod(shape))
    return VolumeSource(path, (path, *files), grid, reader.GetPixelID(), remarks=remarks, layers=layers)


def _open_nifti(path: Path, layered: bool) -> VolumeSource:
    file = open_nifti(path)
    if len(file.shape) > 3 and not layered:
        raise DatasetError(_four_axes(path, file.shape))
    grid = VolumeGrid.of_affine(file.shape, file.affine)
    refuse_odd_grid(path, grid)
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
        raise DatasetError(flat(path, shape))
    direction = np.reshape(header.GetDirection(), (dimension, dimension))[:3, :3]
    grid = VolumeGrid(
        shape=(shape[0], shape[1], shape[2]),
        spacing=tuple(header.GetSpacing()[:3]),
        origin=tuple(header.GetOrigin()[:3]),
        direction=tuple(direction.ravel().tolist()),
    )
    refuse_odd_grid(path, grid)
    return grid


def _four_axes(path: Path, shape: Sequence[int]) -> str:
    return (
        f"{path}: expected a volume of three dimensions, got shape {tuple(shape)}; "
        "write each channel as a file of its own, NAME_0000, NAME_0001, ..."
    )
