"""The sources of a case, read and checked: headers and voxels."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.intensities import intensity_problem
from monai_extra_losses.data.label_ids import LabelCount, count_ids, refusals_of, remarks_of
from monai_extra_losses.data.manifest import Stamp, stamp_of
from monai_extra_losses.data.nifti import TOLERANCE, corner_distance_mm, is_nifti
from monai_extra_losses.data.pairing import SourceCase
from monai_extra_losses.data.remarks import orientation_hint
from monai_extra_losses.data.volumes import VolumeGrid, VolumeSource, open_volume


@dataclass(frozen=True)
class CheckedCase:
    """A case whose headers and voxels are read and checked.

    Args:
        name: of the case.
        images: one per channel, all on one grid.
        label: None for a case to segment.
        voxels: label id of the sources -> voxels on the image's grid.
        sources: every file read -> its stamp.
        remarks: path -> what is assumed of it, keys of `remarks.REMARKS`.
    """

    name: str
    images: tuple[VolumeSource, ...]
    label: VolumeSource | None
    voxels: dict[int, int]
    sources: dict[str, Stamp]
    remarks: dict[Path, tuple[str, ...]]

    @property
    def grid(self) -> VolumeGrid:
        """The images' grid."""
        return self.images[0].grid

    @property
    def resampled(self) -> bool:
        """Whether the label lies on another grid and is brought onto the images'."""
        return self.label is not None and not self.label.grid.matches(self.grid)


def check_case(case: SourceCase, *, series: str | None, resample_labels: bool) -> CheckedCase:
    """Read the headers and all voxels of a case.

    The voxels of an integer NIfTI image are left out: `open_volume` has read that file to its end, and it holds no NaN.

    Args:
        case: its files and folders.
        series: picks the DICOM series of each image; the folder of a label holds one.
        resample_labels: accept a label on another grid than its image.

    Raises:
        DatasetError: all problems of the case at once.
    """
    problems: list[str] = []
    images, label, count = [], None, LabelCount({})
    for path in case.images:
        try:
            images.append(image := open_volume(path, series))
            problems += _voxel_problems(image)
        except DatasetError as error:
            problems += error.problems
    for image in images[1:]:
        problems += _grid_problems(image, images[0], "resample it onto that grid")
    try:
        label = open_volume(case.label) if case.label is not None else None
        if label is not None and len(images) == len(case.images):
            count = _checked_label(label, images[0], resample_labels)
    except DatasetError as error:
        problems += error.problems
    if problems:
        raise DatasetError(problems)
    files = [file for volume in (*images, *([label] if label else [])) for file in volume.files]
    sources = {str(file.absolute()): stamp_of(file) for file in files}
    remarks = {volume.path: volume.remarks for volume in images}
    if label is not None:
        remarks[label.path] = (*label.remarks, *remarks_of(count))
    return CheckedCase(case.name, tuple(images), label, count.voxels, sources, remarks)


def _voxel_problems(image: VolumeSource) -> Iterable[str]:
    is_float = image.pixel_type in (sitk.sitkFloat32, sitk.sitkFloat64)
    if is_float or not is_nifti(image.path):
        loaded = image.load()  # a view does not keep its image alive
        if problem := intensity_problem(sitk.GetArrayViewFromImage(loaded)):
            yield f"{image.path}: {problem}"


def _checked_label(label: VolumeSource, image: VolumeSource, resample: bool) -> LabelCount:
    """What the label holds on the image's grid."""
    if label.segmentations:
        raise DatasetError(
            f"{label.path}: expected label values as pixels, got {label.segmentations[0].name}, a DICOM-SEG or "
            "RTSTRUCT; convert it to a label volume."
        )
    if not resample:
        hint = "resample it onto that grid, or let --resample-labels do it"
        if problems := list(_grid_problems(label, image, hint)):
            raise DatasetError(problems)
    loaded = label_on_grid(label, image.grid)
    count = count_ids(sitk.GetArrayViewFromImage(loaded))
    if problems := [f"{label.path}: {sentence}" for sentence in refusals_of(count)]:
        raise DatasetError(problems)
    return count


def _grid_problems(volume: VolumeSource, reference: VolumeSource, hint: str) -> Iterable[str]:
    grid, expected = volume.grid, reference.grid
    remark = orientation_hint(
        volume.path, reference.path, {volume.path: volume.remarks, reference.path: reference.remarks}
    )
    if grid.shape != expected.shape:
        yield f"{volume.path}: expected shape {expected.shape} of {reference.path}, got {grid.shape}; {hint}."
    elif not grid.matches(expected):
        distance = corner_distance_mm(grid.shape, grid.affine, expected.affine)
        yield (
            f"{volume.path}: expected the grid of {reference.path} (corners within "
            f"{TOLERANCE * min(expected.spacing):.3g} mm, {TOLERANCE:.0%} of the smallest spacing), got corners "
            f"{distance:.3g} mm away; {hint}.{remark}"
        )


def label_on_grid(label: VolumeSource, grid: VolumeGrid) -> sitk.Image:
    """The voxels of a label; resampled with nearest neighbours where its grid is another.

    Raises:
        DatasetError: voxels that cannot be read, or a label that lies elsewhere altogether.
    """
    loaded = label.load()
    if label.grid.matches(grid):
        return loaded
    resampled = sitk.Resample(
        loaded,
        grid.shape,
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        grid.origin,
        grid.spacing,
        grid.direction,
        0,
        loaded.GetPixelID(),
    )
    if sitk.GetArrayViewFromImage(loaded).any() and not sitk.GetArrayViewFromImage(resampled).any():
        raise DatasetError(f"{label.path}: expected a label inside its image, got one elsewhere; is the pair right?")
    return resampled
