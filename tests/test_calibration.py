"""The loss of calibration: its formula in hard and soft bins, at their edges, and its memory."""

from typing import Any

import pytest
import torch
from loss_list import ENTRIES, SOFTMAX, assert_is_its_formula, assert_lean, each, labels_like
from marks import slow

from monai_extra_losses import AverageCalibrationLoss, CompoundLoss, FusedDiceCELoss

ENTRY = ENTRIES["AverageCalibrationLoss"]


@each("options", [{}, *ENTRY.variants.values(), *ENTRY.further, {"soft": True, "absent_class": "smooth"}])
@each("kind", ["labels", "labels and mask", "soft and mask"])
@each("shape", [(2, 3, 9, 8), (2, 2, 5, 4, 6), (1, 12, 60)])
@pytest.mark.parametrize("activation", ["softmax", *slow("sigmoid", "none")])
def test_value_and_gradient_are_those_of_the_formula(
    activation: str, shape: tuple[int, ...], kind: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    assert_is_its_formula(ENTRY, activation, shape, kind, options)


def test_a_bin_has_its_upper_edge_and_the_first_both() -> None:
    """Two voxels, one of them of the class: |mean p - 1/2| in one bin, else the mean of |p - 1| and |p' - 0|."""
    loss = AverageCalibrationLoss()
    for dtype in (torch.float32, torch.float64):
        for b in range(20):
            middle, edge = (torch.tensor(x / 20, dtype=dtype) for x in (b + 0.5, b + 1))
            below, above = (torch.nextafter(edge, edge * 0 + end) for end in (0.0, 2.0))
            for p, together in ((below, True), (edge, True), (above, b == 19)):
                pair = torch.stack([middle, p]).view(1, 1, 2)
                got = loss(pair, torch.tensor([[[1.0, 0.0]]], dtype=dtype)).item()
                one, two = abs((middle + p).item() - 1) / 2, (1 - middle.item() + p.item()) / 2
                assert got == pytest.approx(one if together else two, abs=1e-6), (b, p)
    zero = AverageCalibrationLoss(bins=2)(torch.tensor([[[0.0, 0.4]]]), torch.tensor([[[1.0, 0.0]]]))
    assert zero.item() == pytest.approx(0.3)


def test_a_calibrated_prediction_costs_nothing_however_unsure_it_is() -> None:
    g = (torch.arange(1000) % 4 == 0).float().view(1, 1, -1)
    assert AverageCalibrationLoss()(torch.full_like(g, 0.25), g) == 0
    assert AverageCalibrationLoss()(torch.full_like(g, 0.45), g).item() == pytest.approx(0.2)
    assert AverageCalibrationLoss(soft=True)(torch.full_like(g, 0.45), g).item() == pytest.approx(0.2)


@each("soft", [False, True])
@each("activation", ["softmax", "sigmoid"])
@each("num_classes", [2, 4, 14])
def test_memory_is_that_of_a_lean_loss(num_classes: int, activation: str, soft: bool) -> None:
    scores = torch.randn(1, num_classes, 64 if num_classes < 4 else 32, 32, 32)
    loss = ENTRY.make(activation, soft=soft)
    assert_lean(loss, scores, labels_like(scores, dtype=torch.uint8))


def test_it_stands_beside_dice_and_cross_entropy() -> None:
    scores = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    labels = labels_like(scores)
    parts = [FusedDiceCELoss(**SOFTMAX), AverageCalibrationLoss(**SOFTMAX)]
    compound = CompoundLoss(parts, weights=[1.0, 0.3])
    torch.testing.assert_close(compound(scores, labels), parts[0](scores, labels) + 0.3 * parts[1](scores, labels))
