"""The sources of a case, read and checked: headers and voxels."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_extra_losses.data.dicom_labels import open_dicom_label
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.intensities import intensity_problem
from monai_extra_losses.data.label_ids import count_ids, refusals_of, remarks_of
from monai_extra_losses.data.label_layers import LayeredLabel, open_label, refuse_values_without_segment
from monai_extra_losses.data.manifest import Stamp, stamp_of
from monai_extra_losses.data.nifti import TOLERANCE, corner_distance_mm, is_nifti
from monai_extra_losses.data.pairing import SourceCase
from monai_extra_losses.data.remarks import orientation_hint
from monai_extra_losses.data.volume_source import VolumeGrid, VolumeSource
from monai_extra_losses.data.volumes import open_volume


@dataclass(frozen=True)
class CheckedCase:
    """A case whose headers and voxels are read and checked.

    Args:
        name: of the case.
        images: one per channel, all on one grid.
        label: None for a case to segment.
        voxels: label id of the sources -> voxels on the image's grid.
        sources: every file read -> its stamp.
        names: label id of the sources -> its name, where the label names them.
        outside: label id -> (voxels outside the image, voxels in all), of those that another grid leaves out.
        vanished: label ids without a voxel on the image's grid, and with some on their own.
        remarks: path -> what is assumed of it, keys of `remarks.REMARKS`.
        combinations: label id of the sources -> names of the structures in which its voxels are, where these overlap.
    """

    name: str
    images: tuple[VolumeSource, ...]
    label: VolumeSource | None
    voxels: dict[int, int]
    sources: dict[str, Stamp]
    names: dict[int, str] = field(default_factory=dict)
    outside: dict[int, tuple[int, int]] = field(default_factory=dict)
    vanished: tuple[int, ...] = ()
    remarks: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    combinations: dict[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def grid(self) -> VolumeGrid:
        """The images' grid."""
        return self.images[0].grid

    @property
    def resampled(self) -> bool:
        """Whether the label lies on another grid and is brought onto the images'."""
        return self.label is not None and not self.label.grid.matches(self.grid)


def check_case(
    case: SourceCase,
    *,
    series: str | None,
    resample_labels: bool,
    structures: Collection[str] = (),
    overlapping: bool = False,
) -> CheckedCase:
    """Read the headers and all voxels of a case.

    The voxels of an integer NIfTI image are left out: `open_volume` has read that file to its end, and it holds no NaN.

    Args:
        case: its files and folders.
        series: picks the DICOM series of each image; the folder of a label holds one.
        resample_labels: accept a label on another grid than its image.
        structures: names of those to read of a DICOM SEG or RTSTRUCT; empty: all.
        overlapping: structures may share voxels.

    Raises:
        DatasetError: all problems of the case at once.
    """
    problems: list[str] = []
    images, label, found = [], None, _LabelVoxels({})
    names: dict[int, str] = {}
    combinations: dict[int, tuple[str, ...]] = {}
    for path, of_image in zip(case.images, case.series or (series,) * len(case.images), strict=True):
        try:
            images.append(image := open_volume(path, of_image))
            problems += _voxel_problems(image)
        except DatasetError as error:
            problems += error.problems
    for image in images[1:]:
        problems += _grid_problems(image, images[0], "resample it onto that grid")
    try:
        if case.label is not None:
            label, names = _opened_label(case, case.label, images, structures, overlapping)
        if label is not None and len(images) == len(case.images):
            found = _checked_label(label, images[0], resample_labels)
            if isinstance(label, LayeredLabel) and label.overlapping:
                combinations = {value: label.combination(value) for value in found.voxels if value}
                names = {value: " + ".join(parts) for value, parts in combinations.items()}
            refuse_values_without_segment(label.path, list(found.voxels), names)
    except DatasetError as error:
        problems += error.problems
    if problems:
        raise DatasetError(problems)
    files = [file for volume in (*images, *([label] if label else [])) for file in volume.files]
    sources = {str(file.absolute()): stamp_of(file) for file in files}
    remarks = {volume.path: volume.remarks for volume in images}
    if label is not None:
        remarks[label.path] = (*label.remarks, *found.remarks)
    return CheckedCase(
        case.name,
        tuple(images),
        label,
        found.voxels,
        sources,
        names,
        found.outside,
        found.vanished,
        remarks,
        combinations,
    )


def _opened_label(
    case: SourceCase, path: Path, images: Sequence[VolumeSource], structures: Collection[str], overlapping: bool
) -> tuple[VolumeSource | None, dict[int, str]]:
    """The label of a case and its names; none where the image that it refers to could not be read."""
    if case.refers_to is None:
        return open_label(path, case.masks, overlapping=overlapping)
    image = next((image for image in images if image.path == case.refers_to), None)
    if image is None:
        return None, {}
    label = open_dicom_label(path, image, structures, overlapping=overlapping)
    return label, label.names


def _voxel_problems(image: VolumeSource) -> Iterable[str]:
    is_float = image.pixel_type in (sitk.sitkFloat32, sitk.sitkFloat64)
    if is_float or not is_nifti(image.path):
        loaded = image.load()  # a view does not keep its image alive
        if problem := intensity_problem(sitk.GetArrayViewFromImage(loaded)):
            yield f"{image.path}: {problem}"


@dataclass(frozen=True)
class _LabelVoxels:
    """The fields of these names of `CheckedCase`."""

    voxels: dict[int, int]
    outside: dict[int, tuple[int, int]] = field(default_factory=dict)
    vanished: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()


def _checked_label(label: VolumeSource, image: VolumeSource, resample: bool) -> _LabelVoxels:
    """The label's voxels on the image's grid, and what that grid leaves out."""
    if label.segmentations:
        raise DatasetError(
            f"{label.path}: expected label values as pixels, got {label.segmentations[0].name}, a DICOM SEG or "
            "RTSTRUCT, beside images; give the folder of all labels, without a pattern, as --labels."
        )
    if not resample:
        hint = "resample it onto that grid, or let --resample-labels do it"
        if problems := list(_grid_problems(label, image, hint)):
            raise DatasetError(problems)
    loaded = label_on_grid(label, image.grid)
    count = count_ids(sitk.GetArrayViewFromImage(loaded))
    if problems := [f"{label.path}: {sentence}" for sentence in refusals_of(count)]:
        raise DatasetError(problems)
    if label.grid.matches(image.grid):
        return _LabelVoxels(count.voxels, remarks=tuple(remarks_of(count)))
    before = label.load()
    whole = count_ids(sitk.GetArrayViewFromImage(before)).voxels
    outside = {
        value: (number, whole.get(value, number))
        for value, number in voxels_outside(sitk.GetArrayViewFromImage(before), label.grid, image.grid).items()
    }
    vanished = tuple(value for value in whole if value not in count.voxels)
    return _LabelVoxels(count.voxels, outside, vanished, tuple(remarks_of(count)))


def voxels_outside(label: NDArray[Any], grid: VolumeGrid, image: VolumeGrid) -> dict[int, int]:
    """Label id above 0 -> voxels whose centres lie outside an image.

    Args:
        label: of axes z, y, x.
        grid: of the label.
        image: grid of the image; a point is inside up to half a voxel beyond the centres of the outermost.
    """
    to_image = np.linalg.inv(image.affine) @ grid.affine
    last = np.array(image.shape) - 0.5
    found: Counter[int] = Counter()
    for z, plane in enumerate(label):
        y, x = np.nonzero(plane)
        index = to_image[:3, :3] @ np.array([x, y, np.full_like(x, z)]) + to_image[:3, 3:]
        # a hair beyond the edge is rounding, and SimpleITK takes it
        outside = ((index < -0.5 - 1e-6) | (index > last[:, None] + 1e-6)).any(axis=0)
        found.update(count_ids(plane[y[outside], x[outside]]).voxels)
    return dict(found)


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
