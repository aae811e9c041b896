"""Contours of a target: the voxels of a class with a face neighbour outside it."""

import torch
from torch import Tensor

from monai_extra_losses.ops.slabs import Layout
from monai_extra_losses.ops.terms import sum_dtype


def contour_sizes(layout: Layout) -> Tensor:
    """Count the contour voxels of each sample and class.

    The border of the volume counts as outside, an ignored or masked voxel belongs to no class, and a voxel of a target
    of C channels belongs to a class above 0.5.

    Args:
        layout: the call's data.

    Returns:
        (B, C) counts in float64.
    """
    num_classes = layout.scores.shape[1]
    voxels = layout.whole()
    counts = None if voxels.weight is None else voxels.weight.reshape(layout.scores[:, :1].shape) > 0
    if not layout.labels:
        inside = layout.target > 0.5
        if counts is not None:
            inside &= counts
        return (on_contour(inside) & inside).flatten(2).sum(2, dtype=sum_dtype(inside.device))
    index = voxels.index().reshape(layout.target.shape)
    if counts is not None:
        index = index.masked_fill(~counts, -1)
    contour = on_contour(index)
    return torch.stack(
        [(contour & (index == c)).flatten(1).sum(1, dtype=sum_dtype(index.device)) for c in range(num_classes)], 1
    )


def on_contour(regions: Tensor) -> Tensor:
    """(B, C, *spatial) bool: voxels with a face neighbour of another value, or on the border of the volume."""
    contour = torch.zeros_like(regions, dtype=torch.bool)
    for axis in range(2, regions.ndim):
        length = regions.shape[axis]
        contour.narrow(axis, 0, 1).fill_(True)
        contour.narrow(axis, length - 1, 1).fill_(True)
        if length > 1:
            differs = regions.narrow(axis, 1, length - 1) != regions.narrow(axis, 0, length - 1)
            contour.narrow(axis, 1, length - 1).logical_or_(differs)
            contour.narrow(axis, 0, length - 1).logical_or_(differs)
    return contour
