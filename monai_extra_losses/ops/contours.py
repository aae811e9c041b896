"""Contours of a target: the voxels of a class with a face neighbour outside it."""

import torch
from torch import Tensor

from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.numbers import has_numbers, sum_dtype


def contour_sizes(data: CallData) -> Tensor:
    """Count the contour voxels of each sample and class.

    The border of the volume counts as outside, an ignored or masked voxel belongs to no class, and a voxel of a target
    of C channels belongs to a class above 0.5.

    Args:
        data: the call's data.

    Returns:
        (B, C) counts in float64.
    """
    counted = data.voxels_that_count()
    sizes = data.target.new_zeros(data.scores.shape[:2], dtype=sum_dtype(data.scores.device))
    for n in range(data.scores.shape[0]):
        sizes[n] = _sizes(data, n, None if counted is None else counted[n])
    return sizes


def _sizes(data: CallData, sample: int, counted: Tensor | None) -> Tensor:
    """(C,) counts of one sample; a byte per voxel at a time, beside scores of four and more."""
    classes = range(data.scores.shape[1])
    target = data.target[sample]
    if not data.labels:
        sizes = []
        for c in classes:
            inside = target[c : c + 1] > 0.5
            if counted is not None:
                inside &= counted
            sizes.append((on_contour(inside) & inside).count_nonzero())
        return torch.stack(sizes)
    index = target.to(torch.uint8 if len(classes) < 256 else torch.int32)
    if counted is not None:
        index = index.masked_fill(~counted, len(classes))
    contour = on_contour(index)
    if index.device.type != "cpu" or not has_numbers(index):  # bincount would wait for the device
        return torch.stack([(contour & (index == c)).count_nonzero() for c in classes])
    # Labels out of range are counted with what is on no contour; the pass over the voxels refuses them.
    index = index.masked_fill(contour.logical_not_(), len(classes)).clamp_(0, len(classes))
    return torch.bincount(index.flatten(), minlength=len(classes) + 1)[:-1]


def on_contour(regions: Tensor) -> Tensor:
    """(C, *spatial) bool: voxels with a face neighbour of another value, or on the border of the volume."""
    contour = torch.zeros_like(regions, dtype=torch.bool)
    for axis in range(1, regions.ndim):
        length = regions.shape[axis]
        contour.narrow(axis, 0, 1).fill_(True)
        contour.narrow(axis, length - 1, 1).fill_(True)
        if length > 1:
            differs = regions.narrow(axis, 1, length - 1) != regions.narrow(axis, 0, length - 1)
            contour.narrow(axis, 1, length - 1).logical_or_(differs)
            contour.narrow(axis, 0, length - 1).logical_or_(differs)
    return contour


def contours_of(regions: Tensor) -> Tensor:
    """(B, C, *spatial) bool: voxels of each region on its contour."""
    return on_contour(regions.flatten(0, 1)).view_as(regions).logical_and_(regions)
