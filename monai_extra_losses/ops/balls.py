"""Extremes over the neighbourhood of each voxel, in mm: where they are, so that plain torch differentiates them."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def argmin_of_box(x: Tensor) -> Tensor:
    """(*spatial) int32: the place, in the flat map, of the least of each voxel of x (*spatial) and its neighbours.

    3 voxels per axis; what is beyond the border has no say.
    """
    negative, places = -x, _places(x)
    for axis in range(x.ndim):
        negative, places = _largest_of_line(negative, places, axis, 1)
    return places


@torch.no_grad()
def argmax_of_ball(x: Tensor, radius_mm: float, spacing: Sequence[float]) -> Tensor:
    """(*spatial) int32: the place, in the flat map, of the largest of x (*spatial) within a radius of each voxel.

    Args:
        x: map, 1D to 3D.
        radius_mm: largest distance between the centres of two voxels, inclusive.
        spacing: mm per spatial axis.
    """
    *others, last = spacing
    # A little more: sums of squares of mm are rounded.
    limit = radius_mm**2 * (1 + 1e-9)
    reach = [min(int(math.sqrt(limit) / mm), side - 1) for mm, side in zip(others, x.shape[:-1], strict=True)]
    best, places = torch.full_like(x, -torch.inf), _places(x)
    lines: dict[int, tuple[Tensor, Tensor]] = {}
    for steps in itertools.product(*(range(-n, n + 1) for n in reach)):
        left = limit - sum((step * mm) ** 2 for step, mm in zip(steps, others, strict=True))
        if left < 0:
            continue
        length = min(int(math.sqrt(left) / last), x.shape[-1] - 1)
        if length not in lines:
            lines[length] = _largest_of_line(x, _places(x), x.ndim - 1, length)
        _take_larger(best, places, *lines[length], steps)
    return places


def _places(x: Tensor) -> Tensor:
    numbers = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
    # Like x, of which vmap has one for each call.
    return torch.zeros_like(x, dtype=torch.int32, memory_format=torch.contiguous_format).add_(numbers)


def _largest_of_line(x: Tensor, places: Tensor, axis: int, reach: int) -> tuple[Tensor, Tensor]:
    """The largest of each voxel and those up to `reach` off along an axis, and of these the place."""
    best, found = x.clone(memory_format=torch.contiguous_format), places.clone()
    for step in range(1, reach + 1):
        for side in (step, -step):
            _take_larger(best, found, x, places, [0] * axis + [side])
    return best, found


def _take_larger(best: Tensor, found: Tensor, x: Tensor, places: Tensor, steps: Sequence[int]) -> None:
    """Put into `best` and `found` what is larger so many steps off along the first axes."""
    sides = list(zip(steps, x.shape, strict=False))
    own = tuple(slice(max(-step, 0), side - max(step, 0)) for step, side in sides)
    other = tuple(slice(max(step, 0), side - max(-step, 0)) for step, side in sides)
    better = x[other] > best[own]
    found[own] = torch.where(better, places[other], found[own])
    best[own] = torch.where(better, x[other], best[own])
