"""Data sets of seeded phantom volumes."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.phantom_organ import draw_organ
from monai_extra_losses.data.phantom_vessels import draw_vessels
from monai_extra_losses.data.storage import storage_reason

_Case = tuple[NDArray[np.int16], NDArray[np.uint8]]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What a phantom shows; `draw` gives image and label of a case by its number."""

    description: str
    labels: tuple[str, ...]
    draw: Callable[[np.random.Generator, tuple[int, ...], NDArray[np.float64], int], _Case]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    least: tuple[int, int, int]


_KINDS = {
    "organ": _Kind(
        "Simulated organ with small lesions",
        ("organ", "lesion"),
        draw_organ,
        shape=(64, 64, 24),
        spacing=(1.0, 1.0, 3.0),
        least=(16, 16, 8),
    ),
    "vessels": _Kind(
        "Simulated artery and vein with gaps in contrast",
        ("artery", "vein"),
        draw_vessels,
        shape=(64, 64, 64),
        spacing=(1.0, 1.0, 1.0),
        least=(32, 32, 16),
    ),
}


def write_phantom(
    folder: str | Path,
    *,
    kind: str = "organ",
    num_cases: int = 24,
    num_test: int = 2,
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    seed: int = 0,
) -> Path:
    """Write a data set of phantom volumes in the Decathlon layout.

    Each case is drawn from the seed and its own number, so a larger data set begins with the smaller one.

    "organ": one large organ, small lesions in it, bright blobs around it that are none. Lesions fill 0.1 to 2 % of a
    volume's voxels; every fifth case has none.

    "vessels": an artery and a vein that touch at their trunks. Each is one piece without a loop and forks up to four
    times; the radii follow Murray's law. In gaps a vessel nearly vanishes from the image, while the label goes on.

    Args:
        folder: new or empty folder.
        kind: "organ" or "vessels".
        num_cases: labelled cases for training and validation (imagesTr, labelsTr).
        num_test: further cases (imagesTs, labelsTs), listed under `test` with their labels.
        shape: voxels along x, y, z; at least 16, 16, 8, of vessels 32, 32, 16. None: 64, 64, 24, of vessels 64, 64, 64.
        spacing: millimetres along x, y, z. None: 1, 1, 3, of vessels 1, 1, 1.
        seed: another seed gives other volumes.

    Returns:
        The folder.

    Raises:
        DatasetError: the folder is not empty or cannot be written.
        ValueError: a kind or number out of range; a volume without room for the vessels.
    """
    if kind not in _KINDS:
        raise ValueError(f"expected a kind of {' or '.join(map(repr, _KINDS))}, got {kind!r}.")
    chosen = _KINDS[kind]
    shape, spacing = shape or chosen.shape, spacing or chosen.spacing
    if num_cases < 1 or num_test < 0:
        raise ValueError(
            f"expected num_cases of at least 1 and num_test of at least 0, got {num_cases} and {num_test}."
        )
    if len(shape) != 3 or any(n < least for n, least in zip(shape, chosen.least, strict=True)):
        least = ", ".join(map(str, chosen.least))
        raise ValueError(f"expected a shape of three sizes of at least {least}, got {tuple(shape)}.")
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"expected a spacing of three positive millimetres, got {tuple(spacing)}.")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder}: expected a new or empty folder for the phantom, got one in use; name another.")
    try:
        listed = {
            "training": _write_cases(folder, "Tr", num_cases, chosen, shape, spacing, (seed, 0)),
            "test": _write_cases(folder, "Ts", num_test, chosen, shape, spacing, (seed, 1)),
        }
        description = {
            "name": "Phantom",
            "description": chosen.description,
            "tensorImageSize": "3D",
            "modality": {"0": "simulated"},
            "labels": {str(value): name for value, name in enumerate(("background", *chosen.labels))},
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
    folder: Path,
    part: str,
    count: int,
    kind: _Kind,
    shape: Sequence[int],
    spacing: Sequence[float],
    seed: tuple[int, int],
) -> list[dict[str, str]]:
    for contents in ("images", "labels"):
        (folder / f"{contents}{part}").mkdir(parents=True, exist_ok=True)
    listed = []
    for number in range(count):
        random = np.random.default_rng([*seed, number])
        image, label = kind.draw(random, tuple(shape), np.asarray(spacing, dtype=float), number)
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
