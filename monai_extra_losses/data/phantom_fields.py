"""Random ingredients of phantom volumes: smooth fields, blobs, and what a scanner adds."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Mean intensities before bias and scale.
AIR, TISSUE = 0.05, 0.45

Volume = NDArray[np.float64]


def centred_grid(shape: Sequence[int], spacing: Sequence[float] | NDArray[np.float64]) -> Volume:
    """(3, X, Y, Z) mm of each voxel from the middle of the volume."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def radius_in_body(grid: Volume, size: NDArray[np.float64]) -> Volume:
    """(X, Y, Z) distance from the axis of a body that fills the volume: 1 at its skin."""
    radius: Volume = np.sqrt(sum((grid[i] / (0.47 * size[i])) ** 2 for i in range(2)))
    return radius


def scanned(
    random: np.random.Generator,
    clean: Volume,
    spacing: NDArray[np.float64],
    unit: float,
    noise: tuple[float, float],
) -> NDArray[np.int16]:
    """A volume as a scanner gives it: with a smooth bias, noise between two deviations, and a scale of its own."""
    bias = np.exp(0.12 * smooth_field(random, clean.shape, spacing, 0.9 * unit))
    noisy = clean * bias + random.uniform(*noise) * random.standard_normal(clean.shape)
    image: Volume = np.abs(noisy) * random.uniform(400, 1200)  # magnitude images have no negative values
    return image.round().astype(np.int16)


def blob_mask(
    random: np.random.Generator,
    grid: Volume,
    spacing: NDArray[np.float64],
    unit: float,
    room: NDArray[np.bool_],
    count: int,
    fraction: float,
) -> NDArray[np.bool_]:
    """`count` irregular blobs inside `room` that fill together `fraction` of the volume (or of the room)."""
    inside = np.flatnonzero(room)
    centres = grid.reshape(3, -1)[:, random.choice(inside, size=count)]
    nearness = np.full(room.shape, np.inf)
    for centre, radius in zip(centres.T, random.uniform(0.6, 1.0, size=count), strict=True):
        distance = np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(axis=0))
        nearness = np.minimum(nearness, distance / radius)
    nearness += 0.03 * unit * smooth_field(random, room.shape, spacing, 0.08 * unit)
    voxels = min(math.ceil(fraction * room.size), len(inside))
    nearest = inside[np.argpartition(nearness.ravel()[inside], voxels - 1)[:voxels]]
    blobs = np.zeros(room.size, dtype=bool)
    blobs[nearest] = True
    return blobs.reshape(room.shape)


def smooth_field(
    random: np.random.Generator, shape: tuple[int, ...], spacing: NDArray[np.float64], width_mm: float
) -> Volume:
    """A random field of mean 0 and standard deviation 1 that varies over about `width_mm`."""
    field = gaussian(random.standard_normal(shape), width_mm / spacing)
    field -= field.mean()
    normalised: NDArray[np.float64] = field / field.std()
    return normalised


def gaussian(volume: Volume, sigma: NDArray[np.float64]) -> Volume:
    """Gaussian filter of `sigma` voxels per axis, periodic at the border."""
    spectrum = np.fft.rfftn(volume)
    for axis, (n, s) in enumerate(zip(volume.shape, sigma, strict=True)):
        frequency = np.fft.rfftfreq(n) if axis == volume.ndim - 1 else np.fft.fftfreq(n)
        response = np.exp(-2 * (np.pi * s * frequency) ** 2)
        spectrum *= response.reshape([-1 if i == axis else 1 for i in range(volume.ndim)])
    return np.fft.irfftn(spectrum, s=volume.shape, axes=range(volume.ndim))
