"""Seeded phantom volumes: one large organ, small lesions in it, bright blobs around it that are none."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.storage import storage_reason

_LABELS = {"0": "background", "1": "organ", "2": "lesion"}
_WITHOUT_LESION = 5  # every fifth case has none
# Mean intensities before bias and scale; lesions are as bright as the blobs around the organ, and overlap with the
# organ by noise, so that neither brightness alone nor shape alone finds them.
_AIR, _TISSUE, _ORGAN = 0.05, 0.45, 0.75

_Volume = NDArray[np.float64]


def write_phantom(
    folder: str | Path,
    *,
    num_cases: int = 24,
    num_test: int = 2,
    shape: Sequence[int] = (64, 64, 24),
    spacing: Sequence[float] = (1.0, 1.0, 3.0),
    seed: int = 0,
) -> Path:
    """Write a data set of phantom volumes in the Decathlon layout.

    Each case is drawn from the seed and its own number, so a larger data set begins with the smaller one. Lesions fill
    0.1 to 2 % of a volume's voxels; every fifth case has none.

    Args:
        folder: new or empty folder.
        num_cases: labelled cases for training and validation (imagesTr, labelsTr).
        num_test: further cases (imagesTs, labelsTs), listed under `test` with their labels.
        shape: voxels along x, y, z; at least 16, 16, 8.
        spacing: millimetres along x, y, z.
        seed: another seed gives other volumes.

    Returns:
        The folder.

    Raises:
        DatasetError: the folder is not empty or cannot be written.
        ValueError: a number out of range.
    """
    if num_cases < 1 or num_test < 0:
        raise ValueError(
            f"expected num_cases of at least 1 and num_test of at least 0, got {num_cases} and {num_test}."
        )
    if len(shape) != 3 or any(n < least for n, least in zip(shape, (16, 16, 8), strict=True)):
        raise ValueError(f"expected a shape of three sizes of at least 16, 16, 8, got {tuple(shape)}.")
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"expected a spacing of three positive millimetres, got {tuple(spacing)}.")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder}: expected a new or empty folder for the phantom, got one in use; name another.")
    try:
        listed = {
            "training": _write_cases(folder, "Tr", num_cases, shape, spacing, (seed, 0)),
            "test": _write_cases(folder, "Ts", num_test, shape, spacing, (seed, 1)),
        }
        description = {
            "name": "Phantom",
            "description": "Simulated organ with small lesions",
            "tensorImageSize": "3D",
            "modality": {"0": "simulated"},
            "labels": _LABELS,
            "numTraining": num_cases,
            "numTest": num_test,
            **listed,
        }
        (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    except BaseException as error:
        for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):  # the folder was empty
            shutil.rmtree(folder / part, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        reason = storage_reason(error) or error
        raise DatasetError(f"{folder}: expected a folder that can be written, got: {reason}; name another.") from error
    return folder


def _write_cases(
    folder: Path, part: str, count: int, shape: Sequence[int], spacing: Sequence[float], seed: tuple[int, int]
) -> list[dict[str, str]]:
    for kind in ("images", "labels"):
        (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
    listed = []
    for number in range(count):
        random = np.random.default_rng([*seed, number])
        with_lesions = number % _WITHOUT_LESION != _WITHOUT_LESION - 1
        image, label = _draw_case(random, tuple(shape), np.asarray(spacing, dtype=float), with_lesions)
        affine = np.diag([*spacing, 1.0])
        # The origin of a scanner is somewhere in the patient, never a corner of the volume.
        affine[:3, 3] = -np.asarray(spacing) * (np.asarray(shape) - 1) / 2 + random.uniform(-20, 20, size=3).round(1)
        name = f"phantom_{'test_' if part == 'Ts' else ''}{number:03d}.nii.gz"
        entry = {"image": f"./images{part}/{name}", "label": f"./labels{part}/{name}"}
        for data, file in ((image, entry["image"]), (label, entry["label"])):
            volume = nib.Nifti1Image(data, affine)
            volume.header.set_xyzt_units("mm")
            nib.save(volume, folder / file)
        listed.append(entry)
    return listed


def _draw_case(
    random: np.random.Generator, shape: tuple[int, ...], spacing: NDArray[np.float64], with_lesions: bool
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    size = np.asarray(shape) * spacing
    unit = size.min() / 2  # lengths below are fractions of the smallest half width
    grid = np.stack(
        np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    )

    organ_depth = _organ(random, grid, size, spacing, unit)
    body_radius = np.sqrt(sum((grid[i] / (0.47 * size[i])) ** 2 for i in range(2)))
    body = body_radius + 0.04 * _smooth_field(random, shape, spacing, 0.4 * unit) < 1

    label = np.zeros(shape, dtype=np.uint8)
    label[organ_depth > 0] = 1
    contrast = random.uniform(0.22, 0.36)
    clean = np.where(body, _TISSUE, _AIR) + body * 0.05 * _smooth_field(random, shape, spacing, 0.15 * unit)
    clean[label == 1] = _ORGAN + 0.03 * _smooth_field(random, shape, spacing, 0.15 * unit)[label == 1]

    around = body & (organ_depth < -0.1) & (body_radius < 0.9)
    blobs = _blobs(random, grid, spacing, unit, around, int(random.integers(3, 7)), random.uniform(0.004, 0.012))
    clean[blobs] = _ORGAN + contrast
    if with_lesions:
        fraction = np.exp(random.uniform(np.log(0.0012), np.log(0.012)))
        lesions = _blobs(random, grid, spacing, unit, _eroded(organ_depth > 0), int(random.integers(1, 6)), fraction)
        label[lesions] = 2
        clean[lesions] = _ORGAN + contrast

    blurred = _gaussian(clean, np.array([0.7, 0.7, 0.5]))  # voxels: partial volume
    bias = np.exp(0.12 * _smooth_field(random, shape, spacing, 0.9 * unit))
    noisy = blurred * bias + random.uniform(0.05, 0.09) * random.standard_normal(shape)
    image = np.abs(noisy) * random.uniform(400, 1200)  # magnitude images have no negative values
    return image.round().astype(np.int16), label


def _organ(
    random: np.random.Generator,
    grid: _Volume,
    size: NDArray[np.float64],
    spacing: NDArray[np.float64],
    unit: float,
) -> _Volume:
    """Depth inside a bent, bumpy ovoid: positive inside, about 1 at its middle."""
    half = np.array([min(size[:2]), min(size[:2]), size[2]]) / 2
    centre = random.uniform(-0.12, 0.12, size=3)
    x, y, z = grid / half[:, None, None, None] - centre[:, None, None, None]
    angle = random.uniform(-np.pi, np.pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    across = across + random.uniform(0.25, 0.45) * (along**2 - 0.3)  # bent like a kidney
    radii = random.uniform((0.6, 0.42, 0.5), (0.75, 0.55, 0.65))
    radius = np.sqrt((along / radii[0]) ** 2 + (across / radii[1]) ** 2 + (z / radii[2]) ** 2)
    inside: np.ndarray = 1 - radius + 0.09 * _smooth_field(random, grid.shape[1:], spacing, 0.2 * unit)
    return inside


def _blobs(
    random: np.random.Generator,
    grid: _Volume,
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
    nearness += 0.03 * unit * _smooth_field(random, room.shape, spacing, 0.08 * unit)
    voxels = min(math.ceil(fraction * room.size), len(inside))
    nearest = inside[np.argpartition(nearness.ravel()[inside], voxels - 1)[:voxels]]
    blobs = np.zeros(room.size, dtype=bool)
    blobs[nearest] = True
    return blobs.reshape(room.shape)


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels whose six neighbours lie in the mask too."""
    neighbours = [np.roll(mask, shift, axis) for axis in range(mask.ndim) for shift in (-1, 1)]
    inner: NDArray[np.bool_] = np.logical_and.reduce([mask, *neighbours])
    return inner


def _smooth_field(
    random: np.random.Generator, shape: tuple[int, ...], spacing: NDArray[np.float64], width_mm: float
) -> _Volume:
    """A random field of mean 0 and standard deviation 1 that varies over about `width_mm`."""
    field = _gaussian(random.standard_normal(shape), width_mm / spacing)
    field -= field.mean()
    normalised: NDArray[np.float64] = field / field.std()
    return normalised


def _gaussian(volume: _Volume, sigma: NDArray[np.float64]) -> _Volume:
    """Gaussian filter of `sigma` voxels per axis, periodic at the border."""
    spectrum = np.fft.rfftn(volume)
    for axis, (n, s) in enumerate(zip(volume.shape, sigma, strict=True)):
        frequency = np.fft.rfftfreq(n) if axis == volume.ndim - 1 else np.fft.fftfreq(n)
        response = np.exp(-2 * (np.pi * s * frequency) ** 2)
        spectrum *= response.reshape([-1 if i == axis else 1 for i in range(volume.ndim)])
    return np.fft.irfftn(spectrum, s=volume.shape, axes=range(volume.ndim))
