"""Each loss against its formula, its identities, and the direction that each of its options pulls."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import references as ref
import torch
import torch.nn.functional as F
from loss_list import labels_like, one_hot, value_and_gradient
from torch import Tensor, nn

from monai_extra_losses.losses import (
    CrossEntropyLoss,
    FocalTverskyLoss,
    FusedDiceCELoss,
    FusedDiceLoss,
    FusedFocalLoss,
    FusedTverskyLoss,
    JaccardLoss,
)

LABELS: dict[str, Any] = {"to_onehot_y": True}
SOFTMAX: dict[str, Any] = {**LABELS, "softmax": True}
Reference = Callable[[ref.Array, ref.Array, str, ref.Array], float]


def mean_dice(x: ref.Array, g: ref.Array, activation: str, w: ref.Array) -> float:
    return float(ref.dice_loss(ref.soft_counts(ref.activated(x, activation), g, w)).mean())


def mean_cross_entropy(x: ref.Array, g: ref.Array, activation: str, w: ref.Array, smoothing: float = 0.0) -> float:
    if activation == "sigmoid":
        return float((w * ref.binary_cross_entropy_map(x, g, "sigmoid", smoothing)).sum() / (w.sum() * x.shape[1]))
    return float((w * ref.cross_entropy_map(x, g, activation, smoothing)).sum() / w.sum())


def mean_focal(x: ref.Array, g: ref.Array, activation: str, w: ref.Array) -> float:
    voxels = ref.focal_softmax_map(x, g, 2.0) if activation == "softmax" else ref.focal_sigmoid_map(x, g, 2.0)
    return float((w * voxels).sum() / (w.sum() * x.shape[1]))


def batch_dice(x: ref.Array, g: ref.Array, activation: str, w: ref.Array) -> float:
    return float(ref.dice_loss(ref.soft_counts(ref.activated(x, activation), g, w, batch=True)).mean())


def foreground_dice(x: ref.Array, g: ref.Array, activation: str, w: ref.Array) -> float:
    return float(ref.dice_loss(ref.soft_counts(ref.activated(x, activation), g, w))[:, 1:].mean())


def squared_dice(x: ref.Array, g: ref.Array, activation: str, w: ref.Array) -> float:
    return float(ref.squared_dice_loss(ref.activated(x, activation), g, w).mean())


def mean_jaccard(x: ref.Array, g: ref.Array, activation: str, w: ref.Array) -> float:
    return float(ref.jaccard_loss(ref.soft_counts(ref.activated(x, activation), g, w)).mean())


def mean_tversky(x: ref.Array, g: ref.Array, activation: str, w: ref.Array) -> float:
    return float(ref.tversky_loss(ref.soft_counts(ref.activated(x, activation), g, w), 0.3, 0.7).mean())


def mean_focal_tversky(x: ref.Array, g: ref.Array, activation: str, w: ref.Array) -> float:
    counts = ref.soft_counts(ref.activated(x, activation), g, w)
    return float(ref.focal_tversky_loss(counts, alpha=0.3, beta=0.7, gamma=4 / 3).mean())


def smoothed_cross_entropy(x: ref.Array, g: ref.Array, activation: str, w: ref.Array) -> float:
    return mean_cross_entropy(x, g, activation, w, 0.1)


def dice_and_cross_entropy(x: ref.Array, g: ref.Array, activation: str, w: ref.Array) -> float:
    # Without an activation the cross-entropy still reads its input as scores.
    scores = "sigmoid" if activation == "sigmoid" else "softmax"
    return 0.3 * mean_dice(x, g, activation, w) + 0.7 * mean_cross_entropy(x, g, scores, w)


FORMULAS: dict[str, tuple[type[nn.Module], dict[str, Any], Reference]] = {
    "Dice": (FusedDiceLoss, {}, mean_dice),
    "Dice, batch": (FusedDiceLoss, {"batch": True}, batch_dice),
    "Dice, foreground": (FusedDiceLoss, {"include_background": False}, foreground_dice),
    "Dice, squared": (FusedDiceLoss, {"squared_pred": True}, squared_dice),
    "Jaccard": (JaccardLoss, {}, mean_jaccard),
    "Tversky": (FusedTverskyLoss, {"alpha": 0.3, "beta": 0.7}, mean_tversky),
    "focal Tversky": (FocalTverskyLoss, {}, mean_focal_tversky),
    "cross-entropy": (CrossEntropyLoss, {}, mean_cross_entropy),
    "cross-entropy, smoothed": (CrossEntropyLoss, {"label_smoothing": 0.1}, smoothed_cross_entropy),
    "focal": (FusedFocalLoss, {}, mean_focal),
    "Dice and cross-entropy": (FusedDiceCELoss, {"lambda_dice": 0.3, "lambda_ce": 0.7}, dice_and_cross_entropy),
}
HARD_TARGETS_ONLY = {"focal"}  # with soft ones it is MONAI's, see test_drop_in.py


@pytest.mark.parametrize("kind", ["labels", "labels and mask", "soft", "soft and mask"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("shape", [(2, 2, 3, 4), (2, 3, 2, 3, 2)], ids=["2D", "3D"])
@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_are_those_of_the_formula(
    name: str, shape: tuple[int, ...], activation: str, kind: str
) -> None:
    cls, options, reference = FORMULAS[name]
    if name in HARD_TARGETS_ONLY and ("soft" in kind or activation == "none"):
        pytest.skip("not in the formula")
    torch.manual_seed(0)
    scores = 2 * torch.randn(shape, dtype=torch.float64)
    if activation == "none":
        scores = scores.softmax(1)
    labels = labels_like(scores)
    soft = torch.rand(shape, dtype=torch.float64)
    target = soft / soft.sum(1, keepdim=True) if "soft" in kind else labels
    mask = torch.rand(shape[0], 1, *shape[2:], dtype=torch.float64) if "mask" in kind else None
    if cls is FusedFocalLoss:
        active = {"use_softmax": activation == "softmax"}
    else:
        active = {activation: True} if activation != "none" else {}
    value, gradient = value_and_gradient(cls(to_onehot_y="labels" in kind, **active, **options), scores, target, mask)
    g = target.numpy() if "soft" in kind else ref.one_hot(labels.numpy(), shape[1])
    w = np.ones((shape[0], 1, *shape[2:])) if mask is None else mask.numpy()
    x = scores.numpy()
    assert value.item() == pytest.approx(reference(x, g, activation, w), rel=1e-12)
    # The error of the differences is about 1e-10.
    expected = ref.gradient(lambda moved: reference(moved, g, activation, w), x)
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-9)


def test_gradient_of_dice_is_that_of_its_docstring() -> None:
    p = torch.rand(1, 1, 4, 5, dtype=torch.float64)
    g = torch.randint(0, 2, (1, 1, 4, 5)).double()
    _, gradient = value_and_gradient(FusedDiceLoss(smooth_nr=0, smooth_dr=0), p, g)
    total = p.sum() + g.sum()
    torch.testing.assert_close(gradient, -(2 * g * total - 2 * (p * g).sum()) / total**2)


def test_soft_label_dice_is_min_overlap_and_zero_for_the_target_itself() -> None:
    p, g = torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    loss = FusedDiceLoss(soft_label=True)
    assert loss(p, g).item() == pytest.approx(ref.soft_label_dice_loss(p.numpy(), g.numpy()).mean(), rel=1e-12)
    assert loss(g, g).item() == pytest.approx(0, abs=1e-12)
    assert FusedDiceLoss()(g, g) > 0.1


def test_smoothing_of_one_halves_the_loss_of_a_missed_voxel() -> None:
    p, g = torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    g[..., 4, 4] = 1
    assert FusedDiceLoss()(p, g).item() == pytest.approx(1.0, abs=1e-4)
    assert FusedDiceLoss(smooth_nr=1, smooth_dr=1)(p, g).item() == 0.5


# --- torch as a second reference ---


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [None, 255, 1])
@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 3.0]])
def test_cross_entropy_is_that_of_torch(weight: list[float] | None, ignore_index: int | None, reduction: str) -> None:
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = labels_like(scores)
    if ignore_index == 255:
        labels[0, 0, 1:3] = 255
    mine = value_and_gradient(
        CrossEntropyLoss(weight=weight, ignore_index=ignore_index, reduction=reduction, **SOFTMAX), scores, labels
    )
    theirs = nn.CrossEntropyLoss(
        weight=None if weight is None else torch.tensor(weight).double(),
        ignore_index=-100 if ignore_index is None else ignore_index,
        reduction=reduction,
    )

    class Theirs(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            value = theirs(x, y[:, 0])
            return value.unsqueeze(1) if reduction == "none" else value

    expected = value_and_gradient(Theirs(), scores, labels)
    torch.testing.assert_close(mine, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True])
def test_label_smoothing_is_that_of_torch(soft: bool, reduction: str) -> None:
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = labels_like(scores)
    target = torch.rand(2, 3, 4, 5, dtype=torch.float64).softmax(1) if soft else labels
    loss = CrossEntropyLoss(label_smoothing=0.2, softmax=True, to_onehot_y=not soft, reduction=reduction)
    expected = F.cross_entropy(scores, target if soft else labels[:, 0], label_smoothing=0.2, reduction=reduction)
    torch.testing.assert_close(loss(scores, target).squeeze(), expected.squeeze(), atol=1e-12, rtol=1e-10)


def test_weighted_cross_entropy_with_a_mask_and_smoothing() -> None:
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5, dtype=torch.float64)
    weight = [0.5, 2.0, 3.0]
    g = ref.one_hot(labels.numpy(), 3)
    expected = ref.weighted_cross_entropy(scores.numpy(), g, np.array(weight), mask.numpy())
    assert CrossEntropyLoss(weight=weight, **SOFTMAX)(scores, labels, mask).item() == pytest.approx(expected, rel=1e-12)
    for target, options in ((labels, SOFTMAX), (one_hot(labels, 3, torch.float64), {"softmax": True})):
        values = {
            reduction: CrossEntropyLoss(weight=weight, label_smoothing=0.1, reduction=reduction, **options)(
                scores, target
            )
            for reduction in ("none", "sum", "mean")
        }
        torch.testing.assert_close(values["none"].sum(), values["sum"], atol=1e-12, rtol=1e-10)
    smoothed = CrossEntropyLoss(weight=weight, label_smoothing=0.1, **SOFTMAX)(scores, labels)
    theirs = F.cross_entropy(scores, labels[:, 0], torch.tensor(weight).double(), label_smoothing=0.1)
    torch.testing.assert_close(smoothed, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("channels", [1, 3])
def test_binary_cross_entropy_is_that_of_torch(channels: int) -> None:
    scores = torch.randn(2, channels, 4, 5, dtype=torch.float64)
    target = torch.rand(2, channels, 4, 5, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(scores, target)
    torch.testing.assert_close(CrossEntropyLoss(sigmoid=True)(scores, target), expected, atol=1e-12, rtol=1e-10)
    p = scores.sigmoid()
    if channels == 1:
        torch.testing.assert_close(CrossEntropyLoss()(p, target), expected, atol=1e-12, rtol=1e-10)


def test_sigmoid_class_weights_are_normalised() -> None:
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels, weight = labels_like(scores), torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    each = ref.binary_cross_entropy_map(scores.numpy(), ref.one_hot(labels.numpy(), 3)).mean((0, 2, 3))
    expected = float((weight.numpy() * each).sum() / weight.sum())
    assert CrossEntropyLoss(sigmoid=True, weight=weight, **LABELS)(scores, labels).item() == pytest.approx(expected)
    twice = CrossEntropyLoss(sigmoid=True, weight=2 * weight, **LABELS)(scores, labels)
    assert twice.item() == pytest.approx(expected, rel=1e-12)
    foreground = CrossEntropyLoss(sigmoid=True, weight=[2.0, 3.0], include_background=False, **LABELS)(scores, labels)
    assert foreground.item() == pytest.approx((2 * each[1] + 3 * each[2]) / 5, rel=1e-12)


def test_dice_ce_sigmoid_weight_is_pos_weight() -> None:
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels, weight = labels_like(scores), torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    target = one_hot(labels, 3, torch.float64)
    bce = F.binary_cross_entropy_with_logits(scores, target, pos_weight=weight.view(3, 1, 1))
    for data, options in ((labels, LABELS), (target, {})):
        loss = FusedDiceCELoss(sigmoid=True, weight=weight, lambda_dice=0.0, **options)
        torch.testing.assert_close(loss(scores, data), bce, atol=1e-12, rtol=1e-10)


# --- identities ---


def pair(first: nn.Module, second: nn.Module, factor: float = 1.0, **tolerance: float) -> None:
    scores = torch.randn(2, 3, 4, 5, 3, dtype=torch.float64)
    labels = labels_like(scores)
    a, b = value_and_gradient(first, scores, labels), value_and_gradient(second, scores, labels)
    tolerance = tolerance or {"atol": 1e-12, "rtol": 1e-10}
    torch.testing.assert_close(a, (factor * b[0], factor * b[1]), **tolerance)


def test_tversky_of_halves_is_dice() -> None:
    # Tversky's s stands against half of Dice's counts.
    halves = FusedTverskyLoss(alpha=0.5, beta=0.5, smooth_nr=1e-5, smooth_dr=1e-5, **SOFTMAX)
    pair(halves, FusedDiceLoss(smooth_nr=2e-5, smooth_dr=2e-5, **SOFTMAX))


def test_tversky_of_ones_is_jaccard_is_dice_with_jaccard() -> None:
    pair(FusedTverskyLoss(alpha=1.0, beta=1.0, **SOFTMAX), JaccardLoss(**SOFTMAX))
    pair(JaccardLoss(**SOFTMAX), FusedDiceLoss(jaccard=True, smooth_nr=2e-5, smooth_dr=2e-5, **SOFTMAX))


def test_focal_tversky_with_gamma_one_is_tversky() -> None:
    pair(FocalTverskyLoss(gamma=1.0, **SOFTMAX), FusedTverskyLoss(alpha=0.3, beta=0.7, **SOFTMAX))


def test_focal_tversky_takes_the_power_per_class_then_the_mean() -> None:
    scores = torch.randn(2, 3, 4, 5)
    labels = labels_like(scores)
    each = FusedTverskyLoss(alpha=0.3, beta=0.7, reduction="none", **SOFTMAX)(scores, labels)
    got = FocalTverskyLoss(gamma=2.0, **SOFTMAX)(scores, labels)
    torch.testing.assert_close(got, each.sqrt().mean(), atol=1e-6, rtol=0)
    assert abs(got - each.mean().sqrt()) > 1e-4


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    focal = FusedFocalLoss(to_onehot_y=True, gamma=0.0, use_softmax=True)
    pair(focal, CrossEntropyLoss(**SOFTMAX), factor=1 / 3)  # MONAI's mean is over the channels too
    pair(FusedFocalLoss(to_onehot_y=True, gamma=0.0), CrossEntropyLoss(to_onehot_y=True, sigmoid=True))


def test_focal_alpha_of_a_half_is_half() -> None:
    pair(FusedFocalLoss(to_onehot_y=True, alpha=0.5), FusedFocalLoss(to_onehot_y=True), factor=0.5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_dice_ce_is_the_weighted_sum_of_its_parts(reduction: str, activation: str) -> None:
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5, dtype=torch.float64)
    options: dict[str, Any] = {**LABELS, activation: True, "reduction": reduction, "ignore_index": 0}
    both = value_and_gradient(FusedDiceCELoss(lambda_dice=0.3, lambda_ce=2.5, **options), scores, labels, mask)
    dice = value_and_gradient(FusedDiceLoss(**options), scores, labels, mask)
    ce = value_and_gradient(CrossEntropyLoss(**options), scores, labels, mask)
    expected = tuple(0.3 * d + 2.5 * c for d, c in zip(dice, ce, strict=True))
    torch.testing.assert_close(both, expected, atol=1e-12, rtol=1e-10)


def test_two_classes_under_softmax_are_one_channel_under_sigmoid() -> None:
    scores = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    labels = labels_like(scores)
    z = scores[:, 1:] - scores[:, :1]
    options: dict[str, Any] = {"include_background": False, **SOFTMAX}
    for loss, one in (
        (FusedDiceLoss(**options), FusedDiceLoss(sigmoid=True)),
        (FocalTverskyLoss(**options), FocalTverskyLoss(sigmoid=True)),
        (CrossEntropyLoss(**SOFTMAX), CrossEntropyLoss(sigmoid=True)),
    ):
        torch.testing.assert_close(loss(scores, labels), one(z, labels.double()), atol=1e-12, rtol=1e-10)


# --- directions: what an option pulls at ---


def masks() -> tuple[Tensor, Tensor, Tensor]:
    """A target of 20 voxels; a prediction with 8 false positives only; one with 8 false negatives only."""
    target = torch.zeros(1, 1, 10, 10)
    target[..., 2:6, 2:7] = 1
    too_much, too_little = target.clone(), target.clone()
    too_much[..., 6:8, 2:6] = 1
    too_little[..., 2:4, 2:6] = 0
    return target, too_much, too_little


@pytest.mark.parametrize("cls", [FusedTverskyLoss, FocalTverskyLoss])
def test_alpha_is_against_false_positives_and_beta_against_false_negatives(cls: type[nn.Module]) -> None:
    target, too_much, too_little = masks()

    def loss(alpha: float, beta: float, prediction: Tensor) -> float:
        return cls(alpha=alpha, beta=beta)(prediction, target).item()

    assert loss(0.9, 0.4, too_much) > loss(0.2, 0.4, too_much) + 0.1
    assert loss(0.9, 0.4, too_little) == pytest.approx(loss(0.2, 0.4, too_little), abs=1e-7)
    assert loss(0.4, 0.9, too_little) > loss(0.4, 0.2, too_little) + 0.1
    assert loss(0.4, 0.9, too_much) == pytest.approx(loss(0.4, 0.2, too_much), abs=1e-7)
    # the paper's choice for lesions: missing voxels costs more
    default = FocalTverskyLoss()
    assert default(too_little, target) > default(too_much, target)
    # counted by hand: TP 20 and 12, 8 errors
    assert FusedTverskyLoss(alpha=0.3, beta=0.7)(too_much, target).item() == pytest.approx(1 - 20 / 22.4, abs=1e-6)
    assert FusedTverskyLoss(alpha=0.3, beta=0.7)(too_little, target).item() == pytest.approx(1 - 12 / 17.6, abs=1e-6)
    assert default(too_much, target).item() == pytest.approx((1 - 20 / 22.4) ** 0.75, abs=1e-6)


def test_gamma_of_focal_tversky_raises_the_gradient_of_nearly_right_classes() -> None:
    target = masks()[0]
    nearly = 0.95 * target + 0.05 * (1 - target)
    slopes = [value_and_gradient(FocalTverskyLoss(gamma=g), nearly, target)[1].abs().sum() for g in (1.0, 4 / 3, 2.0)]
    assert slopes[0] < slopes[1] < slopes[2]


def test_gamma_of_focal_takes_weight_from_easy_voxels() -> None:
    scores = torch.tensor([[[3.0, -0.5]]], dtype=torch.float64)  # an easy and a hard positive
    target = torch.ones(1, 1, 2, dtype=torch.float64)
    shares = []
    for gamma in (0.0, 1.0, 2.0, 5.0):
        _, gradient = value_and_gradient(FusedFocalLoss(gamma=gamma), scores, target)
        shares.append((gradient[0, 0, 0] / gradient[0, 0, 1]).item())
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 4 * shares[2] > 0


def test_alpha_of_focal_is_on_the_positives() -> None:
    scores = torch.zeros(1, 1, 1)
    for positive in (0.0, 1.0):
        plain = FusedFocalLoss()(scores, torch.full((1, 1, 1), positive))
        weighted = FusedFocalLoss(alpha=0.25)(scores, torch.full((1, 1, 1), positive))
        assert (weighted / plain).item() == pytest.approx(0.25 if positive else 0.75)


def test_label_smoothing_makes_the_best_prediction_less_sure() -> None:
    labels = torch.zeros(1, 1, 1)
    for e in (0.0, 0.1, 0.3):
        loss = CrossEntropyLoss(label_smoothing=e, **SOFTMAX)
        best = torch.tensor([1 - e + e / 2, e / 2]).clamp_min(1e-12).log().view(1, 2, 1)
        _, gradient = value_and_gradient(loss, best, labels)
        assert gradient.abs().max() < 1e-6


def test_weight_pulls_towards_its_class() -> None:
    scores = torch.zeros(1, 2, 2, dtype=torch.float64)  # one voxel of each class
    labels = torch.tensor([[[0, 1]]])
    for loss in (CrossEntropyLoss, FusedDiceCELoss):
        _, gradient = value_and_gradient(loss(weight=[1.0, 3.0], **SOFTMAX), scores, labels)
        assert gradient[0, 1].sum() < -1e-3  # descent raises the score of class 1
    _, gradient = value_and_gradient(CrossEntropyLoss(weight=[1.0, 3.0], **SOFTMAX), scores, labels)
    assert (gradient[0, 1, 1] / gradient[0, 1, 0]).item() == pytest.approx(-3)


def test_batch_pools_the_counts_of_samples() -> None:
    target, too_much, _ = masks()
    empty = torch.zeros_like(target)
    prediction, both = torch.cat([too_much, 0.1 * target]), torch.cat([target, empty])
    pooled = ref.dice_loss(ref.soft_counts(prediction.double().numpy(), both.double().numpy(), batch=True)).mean()
    assert FusedDiceLoss(batch=True)(prediction, both).item() == pytest.approx(pooled, abs=1e-6)
    assert FusedDiceLoss()(prediction, both) > 0.5  # the empty sample alone costs 1


@pytest.mark.parametrize("bad", [{"gamma": 0.0}, {"gamma": -1.0}])
def test_focal_tversky_refuses_gamma(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected gamma > 0, got"):
        FocalTverskyLoss(**bad)


def test_other_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected label_smoothing in \[0, 1\], got 1.5"):
        CrossEntropyLoss(label_smoothing=1.5)
    with pytest.raises(ValueError, match="expected gamma >= 0, got -2"):
        FusedFocalLoss(gamma=-2)
    for cls in (FusedTverskyLoss, FocalTverskyLoss):
        for option in ("alpha", "beta"):
            with pytest.raises(ValueError, match=f"{option} should be no less than 0.0, got -0.5"):
                cls(**{option: -0.5})
    with pytest.raises(ValueError, match=r"label_smoothing.*-0.1"):
        FusedDiceCELoss(label_smoothing=-0.1)
