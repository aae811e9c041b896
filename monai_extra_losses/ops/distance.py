"""Exact Euclidean distance maps of label maps and masks, between voxel centres, in mm."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import edt
import numpy as np
import torch
from torch import Tensor

from monai_extra_losses.ops.call_data import holds_value
from monai_extra_losses.ops.numbers import has_numbers, is_fake

# One row (D,) for all samples or one per sample (B, D), in mm; None counts in voxels.
VoxelSpacing: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | np.ndarray | Tensor | None

# What a loss or transform takes: "auto" is the spacing of the data's affine.
SpacingOption: TypeAlias = Literal["auto"] | Sequence[float] | None

# Elements of the largest buffer beside a few maps of one sample, where no CPU measures: 64 MiB of float32.
_CHUNK = 1 << 24


def checked_spacing(spacing: SpacingOption) -> SpacingOption:
    """Check an option `spacing`: "auto", None, or a tuple of mm per spatial axis.

    Raises:
        ValueError: another word, or what is not one to three numbers > 0.
    """
    if spacing is None or (isinstance(spacing, str) and spacing == "auto"):
        return spacing
    numbers = (
        tuple(float(mm) for mm in spacing) if isinstance(spacing, Sequence) and not isinstance(spacing, str) else ()
    )
    if not 1 <= len(numbers) <= 3 or not all(0 < mm < math.inf for mm in numbers):
        raise ValueError(f"expected spacing 'auto', None or one number > 0 (mm) per spatial axis, got {spacing!r}.")
    return numbers


def spacing_of_affine(affine: Tensor, axes: int, *, to_measure: bool = True) -> Tensor:
    """Read the step in mm from one voxel to the next along each axis.

    Args:
        affine: (..., n, n) from voxels to mm, n > axes.
        axes: number of spatial axes.
        to_measure: whether distances are measured with it: warn where the axes are not at right angles, because
            distances along them do not add up squared then.

    Returns:
        (..., axes) float64.
    """
    columns = affine[..., :-1, :axes].detach().to("cpu", torch.float64)
    spacing: Tensor = columns.norm(dim=-2)
    if not to_measure:
        return spacing
    cosines = (columns.mT @ columns) / (spacing.unsqueeze(-1) * spacing.unsqueeze(-2)).clamp_min(1e-12)
    if axes > 1 and (cosines - torch.eye(axes, dtype=cosines.dtype)).abs().max() > 0.05:
        warnings.warn(
            "the target's axes are skewed (RandAffined rotates anisotropic volumes in voxels), so distances in mm are "
            "approximate: measure them before the augmentation (SignedDistanced), or resample to cubic voxels.",
            stacklevel=2,
        )
    return spacing


def distance_to_other_label(labels: Tensor, spacing: VoxelSpacing) -> Tensor:
    """Measure how far the nearest voxel of another label in the same sample is, whatever the labels are.

    Args:
        labels: (B, *spatial) of any integer or bool dtype, 1D to 3D.
        spacing: mm per spatial axis, (D,) or (B, D); None measures in voxels.

    Returns:
        (B, *spatial) float32; infinite in a sample of one label.

    Raises:
        TypeError: if the labels are no integers.
        ValueError: if the shape or the spacing does not fit.
    """
    labels, rows = _checked_labels(labels, spacing)
    distance = labels.new_empty(labels.shape, dtype=torch.float32)
    _measure(labels, rows, distance, zero_at_zero=False)
    return distance


def distance_to_label(labels: Tensor, classes: Sequence[int], spacing: VoxelSpacing) -> Tensor:
    """Measure how far the nearest voxel of each class is: 0 inside the class.

    Args:
        labels: (B, *spatial) of any integer or bool dtype, 1D to 3D.
        classes: the labels to measure to, one channel each; a range, say.
        spacing: mm per spatial axis, (D,) or (B, D); None measures in voxels.

    Returns:
        (B, len(classes), *spatial) float32; infinite where a sample has no voxel of the class.

    Raises:
        TypeError: if the labels are no integers.
        ValueError: if the shape or the spacing does not fit.
    """
    labels, rows = _checked_labels(labels, spacing)
    return _outside(labels, classes, rows)


def distance_to_mask(mask: Tensor, spacing: VoxelSpacing) -> Tensor:
    """Measure how far the nearest True voxel of each channel is: 0 inside.

    Args:
        mask: (B, C, *spatial) bool, 1D to 3D; channels may overlap.
        spacing: mm per spatial axis, (D,) or (B, D); None measures in voxels.

    Returns:
        (B, C, *spatial) float32; infinite where a channel is empty.

    Raises:
        TypeError: if the mask is not bool.
        ValueError: if the shape or the spacing does not fit.
    """
    mask, rows = _checked_mask(mask, spacing)
    return _outside(mask, None, rows)


def signed_distance(regions: Tensor, classes: Sequence[int] | None, spacing: VoxelSpacing) -> Tensor:
    """Measure each class from both sides: outside how far its nearest voxel is, inside minus how far its end is.

    Args:
        regions: (B, *spatial) labels of any integer or bool dtype, or with `classes=None` a mask (B, C, *spatial) bool.
        classes: the labels to measure, one channel each; None for a mask.
        spacing: mm per spatial axis, (D,) or (B, D); None measures in voxels.

    Returns:
        (B, C, *spatial) float32: positive outside, negative inside, and one spacing, not 0, on either side of a flat
        boundary; 0 everywhere where a class has no voxel or all of them.

    Raises:
        TypeError: if labels are no integers, or a mask is not bool.
        ValueError: if the shape or the spacing does not fit.
    """
    return _both_sides(regions, classes, spacing, inside_sign=-1)


def boundary_distance(regions: Tensor, classes: Sequence[int] | None, spacing: VoxelSpacing) -> Tensor:
    """Measure how far the other side of each class's boundary is, inside and outside: the signed distance's size.

    Args:
        regions: (B, *spatial) labels of any integer or bool dtype, or with `classes=None` a mask (B, C, *spatial) bool.
        classes: the labels to measure, one channel each; None for a mask.
        spacing: mm per spatial axis, (D,) or (B, D); None measures in voxels.

    Returns:
        (B, C, *spatial) float32: the sum of the distance transforms of the class and of its complement; 0 everywhere
        where a class has no voxel or all of them.

    Raises:
        TypeError: if labels are no integers, or a mask is not bool.
        ValueError: if the shape or the spacing does not fit.
    """
    return _both_sides(regions, classes, spacing, inside_sign=1)


def _both_sides(
    regions: Tensor, classes: Sequence[int] | None, spacing: VoxelSpacing, *, inside_sign: Literal[-1, 1]
) -> Tensor:
    regions, rows = _checked_mask(regions, spacing) if classes is None else _checked_labels(regions, spacing)
    distance = _empty_maps(regions, classes)
    for channel, inside in zip(distance.unbind(1), _insides(regions, classes), strict=True):
        # A class and its complement are a map of two labels: one pass measures both sides.
        _measure(inside, rows, channel, zero_at_zero=False)
        channel.masked_fill_(channel.isinf(), 0)
        if inside_sign < 0:
            channel.copy_(torch.where(inside, -channel, channel))
    return distance


def _outside(regions: Tensor, classes: Sequence[int] | None, rows: list[list[float]]) -> Tensor:
    distance = _empty_maps(regions, classes)
    for channel, inside in zip(distance.unbind(1), _insides(regions, classes), strict=True):
        _measure(~inside, rows, channel, zero_at_zero=True)
    return distance


def _empty_maps(regions: Tensor, classes: Sequence[int] | None) -> Tensor:
    shape = regions.shape if classes is None else (regions.shape[0], len(classes), *regions.shape[1:])
    return regions.new_empty(shape, dtype=torch.float32)


def _insides(regions: Tensor, classes: Sequence[int] | None) -> Iterator[Tensor]:
    """(B, *spatial) bool of each channel: the voxels of the class, one map at a time."""
    if classes is None:
        yield from regions.unbind(1)
        return
    for c in classes:
        # Comparing uint8 labels with 300 would find 44.
        yield regions == c if holds_value(regions.dtype, c) else torch.zeros_like(regions, dtype=torch.bool)


def _plain(tensor: Tensor) -> Tensor:
    return tensor if is_fake(tensor) else tensor.as_subclass(Tensor)


def _checked_labels(labels: Tensor, spacing: VoxelSpacing) -> tuple[Tensor, list[list[float]]]:
    if labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise TypeError(f"expected labels of an integer or bool dtype, got {labels.dtype}: try labels.long().")
    if not 2 <= labels.ndim <= 4:
        raise ValueError(f"expected labels (B, *spatial) with 1 to 3 spatial axes, got shape {tuple(labels.shape)}.")
    return _plain(labels), spacing_rows(spacing, labels.shape[0], labels.ndim - 1)


def _checked_mask(mask: Tensor, spacing: VoxelSpacing) -> tuple[Tensor, list[list[float]]]:
    if mask.dtype != torch.bool:
        raise TypeError(f"expected a mask of dtype bool, got {mask.dtype}: name the classes to measure a label map.")
    if not 3 <= mask.ndim <= 5:
        raise ValueError(f"expected a mask (B, C, *spatial) with 1 to 3 spatial axes, got shape {tuple(mask.shape)}.")
    return _plain(mask), spacing_rows(spacing, mask.shape[0], mask.ndim - 2)


def spacing_rows(spacing: VoxelSpacing, batch: int, axes: int) -> list[list[float]]:
    """The spacing of each sample as a list of mm per spatial axis.

    Raises:
        ValueError: if it is not one positive number per axis, for all samples or for each.
    """
    if spacing is None:
        return [[1.0] * axes] * batch
    try:
        table = np.asarray(spacing.cpu() if isinstance(spacing, Tensor) else spacing, dtype=np.float64)
        fits = table.shape in ((axes,), (batch, axes)) and bool((np.isfinite(table) & (table > 0)).all())
    except (TypeError, ValueError):  # rows of several lengths; no numbers
        fits = False
    if not fits:
        raise ValueError(
            f"expected a spacing of {axes} positive numbers, or {batch} rows of them, got {spacing}: "
            "give one number in mm per spatial axis, or None to measure in voxels."
        )
    return [[float(mm) for mm in row] for row in np.broadcast_to(table, (batch, axes))]


def _measure(values: Tensor, rows: list[list[float]], distance: Tensor, *, zero_at_zero: bool) -> None:
    """Write the distance of each voxel of `values` (B, *spatial) to the nearest of another value.

    Args:
        values: any integer or bool dtype; bool with `zero_at_zero`.
        rows: mm per spatial axis, for each sample.
        distance: (B, *spatial) float32 to write into, each sample contiguous.
        zero_at_zero: whether the distance is 0 where the value is.
    """
    if not values.numel():
        return
    measure = _with_edt if values.device.type == "cpu" and has_numbers(values) else _with_torch
    for n, row in enumerate(rows):
        # With the last axis as unit the steps along it are whole numbers, which float32 adds and squares exactly; edt's
        # sums of mm are off by up to 1.3e-6 of the distance. Squares of isotropic voxels are exact along all axes.
        ratios = [mm / row[-1] for mm in row]
        squared = measure(values[n], ratios, zero_at_zero=zero_at_zero)
        distance[n].copy_(squared.mul_(row[-1] ** 2).sqrt_())


def _with_edt(values: Tensor, spacing: list[float], *, zero_at_zero: bool) -> Tensor:
    """Squared distances of one sample on the CPU; edt keeps the GIL, so that only its own threads help."""
    array = np.ascontiguousarray(values.numpy())  # edt adds up steps along the axis that is last in memory
    lowest, highest = int(array.min()), int(array.max())
    if lowest == highest:  # a class that is absent, or everywhere, needs no pass
        return torch.full(values.shape, 0.0 if zero_at_zero and not lowest else torch.inf, dtype=torch.float32)
    if not zero_at_zero:
        array = _without_zero(array, lowest, highest)
    elif array.dtype == np.bool_:
        array = array.view(np.uint8)  # edt queues a bool map line by line, and is slower
    if array.ndim == 1:
        array, spacing = array[None], [1.0, *spacing]
    # black_border=False: beyond the border of the volume there is nothing to measure to.
    squared = edt.edtsq(array, anisotropy=tuple(spacing), black_border=False, parallel=torch.get_num_threads())
    return torch.from_numpy(squared).view(values.shape)


def _without_zero(array: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """The labels shifted to 1 and up, in the smallest dtype: edt takes 0 for background, at distance 0."""
    sizes = (np.uint8, np.uint16, np.uint32, np.uint64)
    dtype = next(dtype for dtype in sizes if highest - lowest < np.iinfo(dtype).max)
    shifted = array.astype(dtype)  # modulo the dtype's range, as the sum is: the result is exact
    whole: np.ndarray = np.add(shifted, dtype((1 - lowest) % (np.iinfo(dtype).max + 1)), out=shifted)
    return whole


def _with_torch(values: Tensor, spacing: list[float], *, zero_at_zero: bool) -> Tensor:
    """Squared distances of one sample on any device, without a copy to the host or a look at the data.

    Axis by axis: let d(j) be the distance within the axes done so far. The nearest voxel of another value over the
    line of voxel i is at min_j [d²(j) where j has the value of i, else 0] + s²(i-j)². Where the value differs, that is
    least at the nearest such j: s²·steps². Adding d²(j) to the others of that kind gives nothing below it, so that the
    minimum of s²·steps² and of the lower envelope min_j d²(j) + s²(i-j)² over ALL j is the same number.
    """
    squared = values.new_full(values.shape, torch.inf, dtype=torch.float32)
    # The first axis needs no envelope, whose cost goes with the length of the axis: the longest is first.
    axes = sorted(range(values.ndim), key=lambda axis: -values.shape[axis])
    for axis in axes:
        length = values.shape[axis]
        lines = values.movedim(axis, -1).reshape(-1, length)
        nearest = torch.cat([_squared_steps(some) for some in lines.split(max(_CHUNK // (8 * length), 1))])
        nearest.mul_(spacing[axis] ** 2)
        if axis != axes[0]:
            below = squared.movedim(axis, -1)
            nearest = torch.minimum(nearest, _lower_envelope(below.reshape(-1, length), spacing[axis]))
        squared.movedim(axis, -1).copy_(nearest.view(squared.movedim(axis, -1).shape))
    return squared.masked_fill_(values == 0, 0) if zero_at_zero else squared


def _squared_steps(lines: Tensor) -> Tensor:
    """(L, n) float32: square of the steps to the nearest other value on the same line."""
    index = torch.arange(lines.shape[1], dtype=torch.float32, device=lines.device)
    changes = lines[:, 1:] != lines[:, :-1]
    none = torch.full_like(lines[:, :1], torch.inf, dtype=torch.float32)
    # The last voxel before the run of equal values, and the first behind it.
    before = torch.cat([-none, torch.where(changes, index[:-1], -torch.inf)], 1).cummax(1).values
    behind = torch.cat([torch.where(changes, index[1:], torch.inf), none], 1).flip(1).cummin(1).values.flip(1)
    return torch.minimum(index - before, behind - index).square_()


def _lower_envelope(squared: Tensor, spacing: float) -> Tensor:
    """(L, n) float32: min over j of squared[:, j] + spacing²(i-j)² for each voxel i of the lines."""
    index = torch.arange(squared.shape[1], dtype=torch.float32, device=squared.device)
    cost = (index.unsqueeze(1) - index).square_().mul_(spacing**2)
    chunk = max(_CHUNK // cost.numel(), 1)
    return torch.cat([(some.unsqueeze(1) + cost).amin(-1) for some in squared.split(chunk)])
