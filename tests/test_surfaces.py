"""The surface Dice loss: its formula, its ball in mm, and what an absent class costs."""

from typing import Any

import pytest
import torch
from loss_list import ENTRIES, SOFTMAX, assert_is_its_formula, each, labels_like
from memory import peak_extra_bytes
from monai.data import MetaTensor

from monai_extra_losses import SurfaceDiceLoss
from monai_extra_losses.ops.balls import argmax_of_ball, argmin_of_box

ENTRY = ENTRIES["SurfaceDiceLoss"]


@each("options", [{}, *ENTRY.variants.values(), *ENTRY.further, {"tolerance_mm": 2.5, "spacing": True}])
@each("kind", ["labels", "labels and mask", "soft and mask"])
@each("shape", [(2, 3, 6, 5), (1, 2, 4, 3, 5), (2, 2, 11)])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_value_and_gradient_are_those_of_the_formula(
    activation: str, shape: tuple[int, ...], kind: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    if "spacing" in options:
        options = {**options, "spacing": (0.7, 1.3, 2.0)[: len(shape) - 2]}
    assert_is_its_formula(ENTRY, activation, shape, kind, options)


@each("radius", [0.1, 1.0, 1.5, 3.0, 50.0])
@each("spacing", [(1.0, 1.0, 1.0), (0.5, 1.2, 3.0), (0.1, 0.3, 0.1)])
def test_a_ball_is_in_mm(spacing: tuple[float, ...], radius: float) -> None:
    """Its largest number, wherever the border is; on a radius of whole steps the last voxel is in."""
    x = torch.rand(6, 7, 5)
    at = torch.stack(torch.meshgrid(*map(torch.arange, x.shape), indexing="ij"), -1).double().flatten(0, 2)
    at = at * torch.tensor(spacing, dtype=torch.float64)
    near = (at[:, None] - at[None]).square().sum(-1) <= radius**2 * (1 + 1e-9)
    expected = torch.where(near, x.flatten(), -1).amax(1)
    place = argmax_of_ball(x, radius, spacing)
    assert torch.equal(x.flatten()[place.flatten().long()], expected)
    assert argmax_of_ball(x[0, 0], 0.3, (0.1,)).shape == (5,)
    three_steps = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert argmax_of_ball(three_steps, 0.3, (0.1,)).tolist() == [3, 3, 3, 3]


def test_the_least_of_a_box_is_where_it_is() -> None:
    x = torch.rand(6, 7, 5)
    padded = torch.nn.functional.pad(-x, [1] * 6, value=-torch.inf)[None, None]
    expected = -torch.nn.functional.max_pool3d(padded, 3, 1)[0, 0]
    assert torch.equal(x.flatten()[argmin_of_box(x).flatten().long()].view_as(x), expected)


def test_the_spacing_of_the_target_is_that_of_the_ball() -> None:
    labels = torch.zeros(1, 1, 12, 12)
    labels[..., 4:8, 4:8] = 1
    along = {axis: 30 * (2 * torch.cat([1 - labels, labels], 1).roll(2, axis) - 1) for axis in (2, 3)}
    fine = MetaTensor(labels, affine=torch.diag(torch.tensor([0.5, 4.0, 1.0, 1.0], dtype=torch.float64)))
    loss = SurfaceDiceLoss(tolerance_mm=1.0, include_background=False, **SOFTMAX)
    assert loss(along[2], fine) < loss(along[3], fine)  # two voxels off: 1 mm along the first axis, 8 along the second
    assert loss(along[2], labels) == pytest.approx(loss(along[3], labels).item())
    given = SurfaceDiceLoss(tolerance_mm=1.0, include_background=False, spacing=(0.5, 4.0), **SOFTMAX)
    assert given(along[2], labels) == loss(along[2], fine)


def test_a_larger_tolerance_forgives_more() -> None:
    labels = torch.zeros(1, 1, 20, 20)
    labels[..., 6:14, 6:14] = 1
    moved = labels.roll(2, 3)
    costs = [SurfaceDiceLoss(t)(moved, labels).item() for t in (0.5, 1.0, 2.0, 3.0)]
    assert costs == sorted(costs, reverse=True)
    assert SurfaceDiceLoss()(labels, labels).item() == pytest.approx(0, abs=1e-6)
    assert SurfaceDiceLoss()(torch.zeros_like(labels), labels).item() == pytest.approx(1, abs=1e-5)


def test_a_class_in_neither_leaves_the_mean() -> None:
    labels = torch.zeros(1, 1, 8, 8, dtype=torch.int64)
    labels[..., 2:5, 2:5] = 1
    p = torch.cat([1.0 - labels, 0.8 * labels, 0 * labels], 1)
    p[:, 0] = 1 - p[:, 1]
    loss, skip = (
        SurfaceDiceLoss(to_onehot_y=True, include_background=False, absent_class=rule) for rule in ("smooth", "skip")
    )
    alone = SurfaceDiceLoss(include_background=False)(p[:, :2], torch.cat([1.0 - labels, 1.0 * labels], 1))
    assert loss(p, labels) == skip(p, labels) == alone
    p[0, 2, 6, 6] = 0.5
    assert skip(p, labels) == alone
    assert loss(p, labels).item() == pytest.approx((alone.item() + 1) / 2, abs=1e-4)


def test_memory_is_ten_times_the_scores_of_the_classes_kept() -> None:
    scores = torch.randn(1, 4, 32, 32, 24, requires_grad=True)
    labels, loss = labels_like(scores, dtype=torch.uint8), SurfaceDiceLoss(**SOFTMAX)
    loss(scores, labels).backward()
    scores.grad = None
    peak = peak_extra_bytes(lambda: loss(scores, labels).backward())
    assert peak <= 10 * scores.numel() * 4, f"{peak / scores.numel() / 4:.2f} times the scores"
