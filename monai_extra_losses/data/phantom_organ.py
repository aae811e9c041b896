"""The phantom of an organ: large, small lesions in it, bright blobs around it that are none."""

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.data.phantom_fields import (
    AIR,
    TISSUE,
    Volume,
    blob_mask,
    centred_grid,
    gaussian,
    radius_in_body,
    scanned,
    smooth_field,
)

_WITHOUT_LESION = 5  # every fifth case has none
# Lesions are as bright as the blobs around the organ, and overlap with the organ by noise, so that neither brightness
# alone nor shape alone finds them.
_ORGAN = 0.75


def draw_organ(
    random: np.random.Generator, shape: tuple[int, ...], spacing: NDArray[np.float64], number: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Image and label of a case by its number: every fifth has no lesion."""
    with_lesions = number % _WITHOUT_LESION != _WITHOUT_LESION - 1
    size = np.asarray(shape) * spacing
    unit = size.min() / 2  # lengths below are fractions of the smallest half width
    grid = centred_grid(shape, spacing)

    organ_depth = _organ(random, grid, size, spacing, unit)
    body_radius = radius_in_body(grid, size)
    body = body_radius + 0.04 * smooth_field(random, shape, spacing, 0.4 * unit) < 1

    label = np.zeros(shape, dtype=np.uint8)
    label[organ_depth > 0] = 1
    contrast = random.uniform(0.22, 0.36)
    clean = np.where(body, TISSUE, AIR) + body * 0.05 * smooth_field(random, shape, spacing, 0.15 * unit)
    clean[label == 1] = _ORGAN + 0.03 * smooth_field(random, shape, spacing, 0.15 * unit)[label == 1]

    around = body & (organ_depth < -0.1) & (body_radius < 0.9)
    blobs = blob_mask(random, grid, spacing, unit, around, int(random.integers(3, 7)), random.uniform(0.004, 0.012))
    clean[blobs] = _ORGAN + contrast
    if with_lesions:
        fraction = np.exp(random.uniform(np.log(0.0012), np.log(0.012)))
        lesions = blob_mask(random, grid, spacing, unit, _eroded(organ_depth > 0), int(random.integers(1, 6)), fraction)
        label[lesions] = 2
        clean[lesions] = _ORGAN + contrast

    blurred = gaussian(clean, np.array([0.7, 0.7, 0.5]))  # voxels: partial volume
    return scanned(random, blurred, spacing, unit, noise=(0.05, 0.09)), label


def _organ(
    random: np.random.Generator,
    grid: Volume,
    size: NDArray[np.float64],
    spacing: NDArray[np.float64],
    unit: float,
) -> Volume:
    """Depth inside a bent, bumpy ovoid: positive inside, about 1 at its middle."""
    half = np.array([min(size[:2]), min(size[:2]), size[2]]) / 2
    centre = random.uniform(-0.12, 0.12, size=3)
    x, y, z = grid / half[:, None, None, None] - centre[:, None, None, None]
    angle = random.uniform(-np.pi, np.pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    across = across + random.uniform(0.25, 0.45) * (along**2 - 0.3)  # bent like a kidney
    radii = random.uniform((0.6, 0.42, 0.5), (0.75, 0.55, 0.65))
    radius = np.sqrt((along / radii[0]) ** 2 + (across / radii[1]) ** 2 + (z / radii[2]) ** 2)
    inside: np.ndarray = 1 - radius + 0.09 * smooth_field(random, grid.shape[1:], spacing, 0.2 * unit)
    return inside


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels whose six neighbours lie in the mask too."""
    neighbours = [np.roll(mask, shift, axis) for axis in range(mask.ndim) for shift in (-1, 1)]
    inner: NDArray[np.bool_] = np.logical_and.reduce([mask, *neighbours])
    return inner
