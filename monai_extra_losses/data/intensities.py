"""Intensities that training cannot use: no numbers, numbers beyond float32, and those that blank an image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = float(np.finfo(np.float32).max)
"""Training and inference compute in float32."""

ONE_GREY = 1e-2
"""Spread of intensities, in standard deviations of the image, that looks like one value to a network."""

_SLAB = 1 << 22  # voxels looked at together
_SAMPLE = 10_000
_FEW = 1e-3  # share of the voxels that may lie anywhere
_GROUPS = 3  # of one grey each: a filler below, one above, and the image


@dataclass(frozen=True)
class BlankedIntensities:
    """Intensities that become one grey once the image is normalised, because of others far away.

    Args:
        low, high: where they lie.
        share: of all voxels, 0 to 1.
        outlier: the intensity that is farthest from them.
    """

    low: float
    high: float
    share: float
    outlier: float


def intensity_problem(voxels: NDArray[Any]) -> str | None:
    """Why an image cannot be used, without the name of its file; None where it can.

    Args:
        voxels: values of the image.
    """
    if voxels.dtype.kind != "f":
        return None
    if odd := voxels.size - int(np.count_nonzero(np.isfinite(voxels))):
        return f"expected numbers, got {odd} voxels of NaN or infinity; replace them."
    return too_large(float(voxels.min()), float(voxels.max()))


def too_large(low: float, high: float) -> str | None:
    """The sentence for intensities from `low` to `high` that float32 does not hold; None where it does."""
    if max(-low, high) <= LARGEST:
        return None
    return (
        f"expected intensities that float32 holds (up to {LARGEST:.2g}), got {low if -low > high else high:g}; "
        "replace such voxels."
    )


def deviation(voxels: NDArray[Any], mean: float) -> float:
    """Standard deviation of voxels of any type, without a copy of all of them.

    Args:
        voxels: finite.
        mean: theirs.
    """
    flat = voxels.ravel(order="K")
    squares = sum(
        float(np.square(flat[start : start + _SLAB].astype(np.float64) - mean).sum())
        for start in range(0, flat.size, _SLAB)
    )
    return float(np.sqrt(squares / flat.size))


def blanked_intensities(voxels: NDArray[Any], deviation: float) -> BlankedIntensities | None:
    """What training would see as one grey in each part of an image that it normalises by mean and deviation.

    An image is blank where nearly all voxels lie in three groups at most, each no wider than `ONE_GREY`, of which one
    has different values nevertheless. A group of equal voxels, such as a background of 0, loses nothing.

    Args:
        voxels: finite, of one channel.
        deviation: their standard deviation.

    Returns:
        The largest group that loses its differences; None where the image stays visible.
    """
    flat = voxels.ravel(order="K")
    chosen = flat[np.random.default_rng(0).integers(0, flat.size, _SAMPLE)] if flat.size > _SAMPLE else flat
    sample = np.sort(chosen.astype(np.float64))
    width = ONE_GREY * deviation
    cuts = np.flatnonzero(np.diff(sample) > width)
    begins, ends = np.r_[0, cuts + 1], np.r_[cuts, sample.size - 1]
    sizes = ends - begins + 1
    kept = sizes > _FEW / 2 * sample.size
    sizes, firsts, lasts = sizes[kept], sample[begins[kept]], sample[ends[kept]]
    varied = lasts > firsts
    many = sizes.sum() >= (1 - _FEW) * sample.size and sizes.size <= _GROUPS
    if not many or not varied.any() or (lasts - firsts > width).any():
        return None
    largest = int(np.argmax(np.where(varied, sizes, 0)))
    # the sample may have missed the ends
    inside = flat[(flat >= firsts[largest] - width) & (flat <= lasts[largest] + width)]
    low, high = float(inside.min()), float(inside.max())
    outlier = max(float(flat.min()), float(flat.max()), key=lambda end: max(low - end, end - high))
    return BlankedIntensities(low, high, inside.size / flat.size, outlier)
