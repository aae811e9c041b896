"""Means over the neighbourhood of each voxel, as plain differentiable torch."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_mean(x: Tensor) -> Tensor:
    """Mean of each voxel of (B, C, *spatial) and its face neighbours, which are 0 beyond the border."""
    axes = x.ndim - 2
    padded = F.pad(x, [1, 1] * axes)
    total = x
    for axis in range(2, x.ndim):
        line = padded
        for other in range(2, x.ndim):
            if other != axis:
                line = line.narrow(other, 1, x.shape[other])
        total = total + line.narrow(axis, 0, x.shape[axis]) + line.narrow(axis, 2, x.shape[axis])
    return total / (2 * axes + 1)


def dilated(mask: Tensor, connectivity: int) -> Tensor:
    """The voxels of (B, *spatial) bool, and their neighbours: those up to one step off in `connectivity` axes."""
    within = [mask] * (connectivity + 1)  # of at most so many steps, each along another axis
    for axis in range(1, mask.ndim):
        within = [mask] + [more | _beside(fewer, axis) for fewer, more in itertools.pairwise(within)]
    return within[-1]


def _beside(mask: Tensor, axis: int) -> Tensor:
    """The voxels one step off along an axis."""
    n = mask.shape[axis] - 1
    edge = torch.zeros_like(mask.narrow(axis, 0, 1))
    return torch.cat([mask.narrow(axis, 1, n), edge], axis) | torch.cat([edge, mask.narrow(axis, 0, n)], axis)


def window_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussian mean and variance of x in 3 voxels per axis of (B, C, *spatial).

    Axis by axis, by the law of total variance: Var[x] = E[Var[x | axis]] + Var[E[x | axis]]. Every part is a mean of
    centred squares, so nothing cancels and no variance is below 0.
    """
    side = math.exp(-0.5 / 1.5**2)
    total = 1 + 2 * side
    mean = F.pad(x, [1, 1] * (x.ndim - 2), mode="reflect")
    variance: Tensor | None = None
    for axis in range(2, x.ndim):
        parts = [mean.narrow(axis, start, x.shape[axis]) for start in range(3)]
        mean = torch.add(parts[1], parts[0] + parts[2], alpha=side) / total
        spread = ((parts[1] - mean) ** 2 + side * ((parts[0] - mean) ** 2 + (parts[2] - mean) ** 2)) / total
        if variance is not None:
            low, middle, high = (variance.narrow(axis, start, x.shape[axis]) for start in range(3))
            spread = spread + torch.add(middle, low + high, alpha=side) / total
        variance = spread
    assert variance is not None
    return mean, variance
