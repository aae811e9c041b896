"""Raw folders of nnU-Net v2, as its documentation describes them (documentation/dataset_format.md)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from volume_files import random_image, volume, write

SHAPE = (12, 10, 8)


def label_of(values: Sequence[int], shape: Sequence[int] = SHAPE) -> NDArray[np.uint8]:
    """A label map with voxels of 0 and of each value, of which the smaller have more."""
    label = np.zeros(shape, np.uint8)
    for number, value in enumerate(values):
        label[2 + number : 8, 2:7, 1 + number // 2 : 6] = value
    return label


def write_raw(
    folder: Path,
    *,
    labels: Mapping[str, Any] | None = None,
    values: Sequence[int] = (1, 2),
    channels: Sequence[str] = ("CT",),
    ending: str = ".nii.gz",
    cases: Sequence[str] = ("p_1", "p_2", "p_3"),
    test_cases: Sequence[str] = (),
    **more: Any,
) -> Path:
    """Write imagesTr, labelsTr, imagesTs and dataset.json.

    Args:
        folder: such as Dataset004_X.
        labels: of dataset.json; None: background, a, b.
        values: of the voxels of each label map, beside 0.
        channels: names.
        ending: of all files.
        cases, test_cases: names.
        more: further entries of dataset.json, in place of those of these arguments; None leaves one out.
    """
    for seed, case in enumerate((*cases, *test_cases)):
        part = "Tr" if case in cases else "Ts"
        for channel in range(len(channels)):
            image = volume(random_image(10 * seed + channel, SHAPE))
            write(image, folder / f"images{part}" / f"{case}_{channel:04d}{ending}")
        if part == "Tr":
            write(volume(label_of(values)), folder / "labelsTr" / f"{case}{ending}")
    content = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": labels or {"background": 0, "a": 1, "b": 2},
        "numTraining": len(cases),
        "file_ending": ending,
        **more,
    }
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_picture(file: Path) -> Path:
    """A picture of two dimensions."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(80, dtype=np.uint8).reshape(10, 8)), str(file))
    return file
