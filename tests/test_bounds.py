"""Thresholds of the data checks, the options and the doctor, each from both sides and by its number."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from loss_list import each

from monai_extra_losses import losses
from monai_extra_losses.bundle.options import numbers_per_axis, positive_number, whole_number, window
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.geometry import automatic_patch
from monai_extra_losses.data.label_ids import listed_ids
from monai_extra_losses.data.nifti import is_one_grid, is_skewed
from monai_extra_losses.doctor.findings import _about_equal_scores


def case(*shape: int, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Any:
    return SimpleNamespace(shape=shape, spacing=spacing, affine=np.diag([*spacing, 1.0]).tolist())


@each(
    "shape, patch",
    [
        ((95, 96, 97), (80, 96, 96)),  # 96 at most
        ((111, 112, 512), (96, 96, 96)),
        ((15, 16, 17), (16, 16, 16)),  # 16 at least
        ((1, 31, 32), (16, 16, 32)),  # rounded down to multiples of 16
    ],
)
def test_the_automatic_patch_is_between_16_and_96(shape: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    assert automatic_patch([case(*shape)]) == patch


def test_the_automatic_patch_of_a_deep_network_has_its_step() -> None:
    assert automatic_patch([case(95, 200, 40)], step=32) == (64, 96, 32)
    assert automatic_patch([case(95, 200, 40)], step=8) == (80, 96, 32)
    assert automatic_patch([case(48, 48, 24, spacing=(1.0, 1.0, 2.0))], pixdim=(1.0, 2.0, 1.0)) == (48, 16, 48)


@each("cosine, skewed", [(0.0, False), (0.0099, False), (-0.0099, False), (0.0101, True), (-0.0101, True)])
def test_axes_are_at_right_angles_to_a_hundredth(cosine: float, skewed: bool) -> None:
    direction = np.eye(3)
    direction[:2, 1] = cosine, math.sqrt(1 - cosine**2)
    assert is_skewed(direction) is skewed


@each("share, one", [(0.0, True), (0.049, True), (0.051, False)])
def test_one_grid_is_to_a_twentieth_of_the_smallest_spacing(share: float, one: bool) -> None:
    affine, moved = np.diag([0.5, 2.0, 3.0, 1.0]), np.diag([0.5, 2.0, 3.0, 1.0])
    moved[2, 3] += 0.5 * share
    assert is_one_grid((10, 10, 10), moved, affine) is one


@each("number", [1e-12, 0.5, 1e12, "1e-3", 3])
def test_a_positive_number_is_above_0(number: Any) -> None:
    assert positive_number("learning_rate", number) == float(number)


@each("wrong", [0, 0.0, -1e-12, "0", math.inf, math.nan, True, "much", None])
def test_other_numbers_are_refused(wrong: Any) -> None:
    with pytest.raises(StartUpRefused, match="Expected learning_rate to be a number above 0, got"):
        positive_number("learning_rate", wrong)


def test_a_whole_number_is_at_least_the_least() -> None:
    assert whole_number("epochs", 1, least=1) == whole_number("epochs", "1", least=1) == 1
    assert whole_number("epochs", 0, least=0) == 0
    for wrong in (0, -1, 1.5, True, "0"):
        with pytest.raises(StartUpRefused, match=r"Expected epochs to be a whole number of at least 1, got"):
            whole_number("epochs", wrong, least=1)


def test_numbers_per_axis_are_above_0_and_windows_are_not_empty() -> None:
    assert numbers_per_axis("pixdim", [1e-3, 1, 2], example="1") == (1e-3, 1.0, 2.0)
    with pytest.raises(StartUpRefused, match="Expected pixdim to be three numbers above 0"):
        numbers_per_axis("pixdim", [0, 1, 2], example="1")
    assert window("hu_window", [-1, -0.999], example="1") == (-1.0, -0.999)
    for wrong in ([1, 1], [2, 1], [0, math.inf]):
        with pytest.raises(StartUpRefused, match="Expected hu_window to be two numbers, the lower one first"):
            window("hu_window", wrong, example="1")


def test_up_to_20_ids_are_listed_one_by_one() -> None:
    assert listed_ids(range(20)) == ", ".join(map(str, range(20)))
    assert listed_ids(range(21)) == "21 ids, 0 to 20"
    assert listed_ids([*range(20), 30]) == "21 ids, 0 to 19, 30"


@each("off, level", [(-0.0099, "ok"), (0.0, "ok"), (0.0099, "ok"), (0.0105, "warning"), (-0.0105, "warning")])
def test_the_loss_of_equal_scores_is_as_expected_to_a_hundredth(off: float, level: str) -> None:
    training: Any = SimpleNamespace(loss=losses.CrossEntropyLoss(to_onehot_y=True, softmax=True), multi_label=False)
    label = torch.zeros(1, 1, 4, 4, 4)
    finding = _about_equal_scores(training, (1 + off) * math.log(3), label, 3, every_class=True)
    assert finding.level == level
    assert "= 1.099 expected" in finding.text
