"""Sizes of volumes along the axes of the body (R, A, S), to which training turns them, and the patch that follows."""

import statistics
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from monai_extra_losses.data.checks import CaseSummary

BODY_AXES = ("right to left", "back to front", "foot to head")
"""R, A and S in words."""

SMALLEST_AUTOMATIC_PATCH = 16
LARGEST_AUTOMATIC_PATCH = 96
_AUTOMATIC_PATCH_STEP = 16

Triple = tuple[float, float, float]


def body_shape(case: CaseSummary) -> tuple[int, int, int]:
    """Voxels along R, A, S."""
    first, second, third = (case.shape[axis] for axis in _file_axes(case))
    return first, second, third


def body_spacing(case: CaseSummary) -> Triple:
    """Millimetres along R, A, S."""
    first, second, third = (case.spacing[axis] for axis in _file_axes(case))
    return first, second, third


def automatic_patch(cases: Sequence[CaseSummary], pixdim: Triple | None = None, step: int = 1) -> tuple[int, int, int]:
    """Per body axis the median shape, rounded down to a multiple of 16 and kept within 16 and 96.

    Args:
        cases: of the data set.
        pixdim: spacing in mm to which the volumes are resampled; None: as each is.
        step: by which the network divides a patch, a power of 2; above 16 it takes the place of 16.
    """
    step = max(step, _AUTOMATIC_PATCH_STEP)
    medians = (n // step * step for n in median_shape(cases, pixdim))
    first, second, third = (max(min(median, LARGEST_AUTOMATIC_PATCH), step) for median in medians)
    return first, second, third


def median_shape(cases: Sequence[CaseSummary], pixdim: Triple | None = None) -> tuple[int, int, int]:
    """Voxels per body axis of the median volume; arguments as of `automatic_patch`."""
    shapes = []
    for case in cases:
        shape = body_shape(case)
        if pixdim is not None:
            millimetres = (n * s for n, s in zip(shape, body_spacing(case), strict=True))
            first, second, third = (round(length / new) for length, new in zip(millimetres, pixdim, strict=True))
            shape = first, second, third
        shapes.append(shape)
    first, second, third = (int(statistics.median(axis)) for axis in zip(*shapes, strict=True))
    return first, second, third


def median_spacing(cases: Sequence[CaseSummary]) -> Triple:
    """Millimetres per body axis, the median of each."""
    first, second, third = map(statistics.median, zip(*map(body_spacing, cases), strict=True))
    return first, second, third


def _file_axes(case: CaseSummary) -> list[int]:
    """The axis of the file that runs along R, along A and along S, either way."""
    order: list[int] = np.argsort(nib.io_orientation(np.array(case.affine))[:, 0]).tolist()
    return order
