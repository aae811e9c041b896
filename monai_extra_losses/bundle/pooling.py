"""How DynUNet halves a patch level by level: kernels and strides that follow from voxels and their spacing."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Axes = tuple[int, int, int]
"""A whole number per body axis (R, A, S)."""

LEAST_VOXELS = 4  # that a halved axis keeps

_ALONE = 3 * LEAST_VOXELS  # voxels from which an axis is halved that no other is halved with

_RATIO = 2.0  # of spacings, from which an axis is coarser than another


@dataclass(frozen=True)
class PoolingPlan:
    """Kernels of the convolutions of each level, and the strides that lead to it; the first level has the patch.

    Args:
        kernel_sizes, strides: a number per axis, for each level.
    """

    kernel_sizes: tuple[Axes, ...]
    strides: tuple[Axes, ...]

    @property
    def multiples(self) -> Axes:
        """What the sides of a patch must be multiples of."""
        return product_of(self.strides)

    def rounded_up(self, size: Sequence[int]) -> Axes:
        """The smallest patch that holds another and can be halved so."""
        return _per_axis(-(-n // m) * m for n, m in zip(size, self.multiples, strict=True))


def pooling_plan(size: Sequence[int], spacing_mm: Sequence[float]) -> PoolingPlan:
    """Kernels and strides of a patch by the rule of nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z).

    From level to level the axes are halved that have 8 voxels or more, so that 4 are left. Of these the finest are
    halved, and those less than twice as coarse; a single one needs 12 voxels. So thick slices wait until the other
    axes are as coarse. A kernel is 1 wide along an axis that was twice as coarse as the finest on every level so far,
    and 3 else; on the last level it is 3.

    Args:
        size: voxels per axis; an odd number is halved to the larger half, as in the patch `rounded_up` to.
        spacing_mm: of these voxels.
    """
    voxels, spacing = list(size), list(spacing_mm)
    kernel = [1, 1, 1]
    kernel_sizes, strides = [], [_per_axis([1, 1, 1])]
    while halved := _halved_axes(voxels, spacing):
        kernel = [3 if mm < _RATIO * min(spacing) else wide for wide, mm in zip(kernel, spacing, strict=True)]
        kernel_sizes.append(_per_axis(kernel))
        stride = [2 if axis in halved else 1 for axis in range(3)]
        strides.append(_per_axis(stride))
        voxels = [-(-n // by) for n, by in zip(voxels, stride, strict=True)]
        spacing = [mm * by for mm, by in zip(spacing, stride, strict=True)]
    return PoolingPlan((*kernel_sizes, (3, 3, 3)), tuple(strides))


def product_of(strides: Sequence[Axes]) -> Axes:
    """By what all the strides together divide, per axis."""
    return _per_axis(math.prod(stride[axis] for stride in strides) for axis in range(3))


def _halved_axes(voxels: Sequence[int], spacing: Sequence[float]) -> list[int]:
    long_enough = [axis for axis in range(3) if voxels[axis] >= 2 * LEAST_VOXELS]
    finest = min((spacing[axis] for axis in long_enough), default=0.0)
    halved = [axis for axis in long_enough if spacing[axis] < _RATIO * finest]
    return [] if len(halved) == 1 and voxels[halved[0]] < _ALONE else halved


def _per_axis(numbers: Iterable[int]) -> Axes:
    first, second, third = numbers
    return first, second, third
