"""Each loss against its formula, its identities, and the direction that each of its options pulls."""

import copy
import itertools
import pickle
from typing import Any

import monai.losses
import numpy as np
import pytest
import references as ref
import torch
import torch.nn.functional as F
from loss_list import (
    ENTRIES,
    LABELS,
    SOFTMAX,
    LossEntry,
    assert_lean,
    each,
    every_loss,
    labels_like,
    one_hot,
    told,
    value_and_gradient,
)
from monai.bundle import ConfigParser
from torch import Tensor, nn

from monai_extra_losses import losses
from monai_extra_losses.losses import (
    CrossEntropyLoss,
    FocalTverskyLoss,
    FusedDiceCELoss,
    FusedDiceLoss,
    FusedFocalLoss,
    FusedTverskyLoss,
    JaccardLoss,
    inputs,
)
from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.contours import contour_sizes

# Lovasz and the structural similarity have a harness of their own below, what measures distances in test_boundary.py.
of_the_list = every_loss(only=lambda entry: entry.lean)


def options_of_references(entry: LossEntry) -> list[dict[str, Any]]:
    return [{}, *entry.variants.values(), *entry.further]


@of_the_list
def test_value_and_gradient_are_those_of_the_formula(entry: LossEntry) -> None:
    kinds = ["labels", "labels and mask", *(() if entry.hard_reference else ("soft", "soft and mask"))]
    shapes = [(2, 3, 3, 5), (2, 2, 2, 3, 2)]
    cases = itertools.product([{}], shapes, kinds)
    more = itertools.product(options_of_references(entry)[1:], shapes[:1], ["labels and mask", kinds[-1]])
    for (options, shape, kind), activation in itertools.product([*cases, *more], entry.activations):
        with told(options, activation, shape, kind):
            compare_with_the_formula(entry, options, activation, shape, kind)


def compare_with_the_formula(
    entry: LossEntry, options: dict[str, Any], activation: str, shape: tuple[int, ...], kind: str
) -> None:
    torch.manual_seed(0)
    scores = 2 * torch.randn(shape, dtype=torch.float64)
    if activation == "none" and not entry.raw_scores:
        scores = (scores / 4).softmax(1)  # differences near p = 0 would be wrong
    labels = labels_like(scores)
    soft = torch.rand(shape, dtype=torch.float64)
    if shape[1] > 2:  # one class is absent in one sample
        labels[0], soft[0, 2] = labels[0] % 2, 0
    target = soft / soft.sum(1, keepdim=True) if "soft" in kind else labels
    mask = torch.rand(shape[0], 1, *shape[2:], dtype=torch.float64) if "mask" in kind else None
    loss = entry.make(activation, to_onehot_y="labels" in kind, **options)
    value, gradient = value_and_gradient(loss, scores, target, mask)
    g = target.numpy() if "soft" in kind else ref.one_hot(labels.numpy(), shape[1])
    w = np.ones((shape[0], 1, *shape[2:])) if mask is None else mask.numpy()
    x = scores.numpy()
    assert value.item() == pytest.approx(entry.reference(x, g, activation, w, **options), rel=1e-12)
    if options.get("mode") == "prediction":
        return  # its factors follow the prediction, without gradient: see the test of that name
    # The error of the differences is about 1e-10.
    ref.assert_gradient(gradient.numpy(), lambda moved: entry.reference(moved, g, activation, w, **options), x, 1e-9)


@of_the_list
@each("num_classes", [2, 3, 12])
@each("activation", ["softmax", "sigmoid"])
def test_masked_classes_and_hopeless_voxels_are_those_of_the_formula(
    entry: LossEntry, activation: str, num_classes: int
) -> None:
    """In float32: scores of -inf, which the formula has as very small ones, and a voxel with p_t below 1e-30."""
    if activation not in entry.activations:
        pytest.skip("reads raw scores")
    torch.manual_seed(0)
    scores = 2 * torch.randn(2, num_classes, 4, 6)
    labels = labels_like(scores)
    true = one_hot(labels, num_classes) > 0
    scores[1, :, 2, 3] = torch.where(true[1, :, 2, 3], -100.0, 0.0)
    scores = scores.masked_fill(~true & (torch.rand(scores.shape) < 0.4), -torch.inf)
    scores[0, :, 0] = torch.where(true[0, :, 0], scores[0, :, 0], -torch.inf)  # no class but the true one
    x = scores.double().clamp_min(-1e4).numpy()
    g, w = ref.one_hot(labels.numpy(), num_classes), np.ones((2, 1, 4, 6))
    for options in options_of_references(entry):
        if "label_smoothing" in options:
            continue  # every class has a share in its loss
        for target in (labels, true.float()):
            with told(options, target.shape):
                loss = entry.make(activation, to_onehot_y=target is labels, **options)
                value, gradient = value_and_gradient(loss, scores, target)
                assert value.item() == pytest.approx(entry.reference(x, g, activation, w, **options), rel=2e-6)
                assert gradient.isfinite().all()
                assert (gradient[scores.isinf()] == 0).all()


def test_gradient_of_dice_is_that_of_its_docstring() -> None:
    p = torch.rand(1, 1, 4, 5, dtype=torch.float64)
    g = torch.randint(0, 2, (1, 1, 4, 5)).double()
    _, gradient = value_and_gradient(FusedDiceLoss(smooth_nr=0, smooth_dr=0), p, g)
    total = p.sum() + g.sum()
    torch.testing.assert_close(gradient, -(2 * g * total - 2 * (p * g).sum()) / total**2)


def test_soft_label_dice_is_min_overlap_and_zero_for_the_target_itself() -> None:
    p, g = torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    loss = FusedDiceLoss(soft_label=True)
    expected = ENTRIES["FusedDiceLoss"].reference(p.numpy(), g.numpy(), "none", np.ones((2, 1, 4, 5)), soft_label=True)
    assert loss(p, g).item() == pytest.approx(expected, rel=1e-12)
    assert loss(g, g).item() == pytest.approx(0, abs=1e-12)
    assert FusedDiceLoss()(g, g) > 0.1


def test_smoothing_of_one_halves_the_loss_of_a_missed_voxel() -> None:
    p, g = torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    g[..., 4, 4] = 1
    assert FusedDiceLoss()(p, g).item() == pytest.approx(1.0, abs=1e-4)
    assert FusedDiceLoss(smooth_nr=1, smooth_dr=1)(p, g).item() == 0.5


def test_the_smoothing_of_the_authors_makes_missed_small_objects_cheap() -> None:
    """The numbers of the docstrings: an object of five voxels, missed."""
    p, g = torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    g[..., 4, :5] = 1
    for cls, ours, theirs in ((FocalTverskyLoss, 1.0, 0.83), (losses.LogCoshDiceLoss, 0.43, 0.31)):
        assert cls()(p, g).item() == pytest.approx(ours, abs=5e-3)
        assert cls(smooth_nr=1, smooth_dr=1)(p, g).item() == pytest.approx(theirs, abs=5e-3)


def unified_focal_of_the_code(
    p: ref.Array, g: ref.Array, *, weight: float, delta: float, gamma: float, asymmetric: bool
) -> float:
    """Of two classes as the authors' code has it: `weight` is that of the Tversky part."""
    tp, fn, fp = ((a * b).sum((2, 3)) for a, b in ((p, g), (1 - p, g), (p, 1 - g)))
    missed = 1 - (tp + 1e-5) / (tp + delta * fn + (1 - delta) * fp + 1e-5)
    background = missed[:, 0] if asymmetric else missed[:, 0] ** (1 - gamma)
    tversky = np.stack([background, missed[:, 1] ** (1 - gamma)]).mean()
    entropy = -g * np.log(p)
    foreground = entropy[:, 1] if asymmetric else (1 - p[:, 1]) ** gamma * entropy[:, 1]
    focal = ((1 - delta) * (1 - p[:, 0]) ** gamma * entropy[:, 0] + delta * foreground).mean()
    return float(weight * tversky + (1 - weight) * focal)


def symmetric_unified_focal_of_the_paper(
    p: ref.Array, g: ref.Array, weight: float, delta: float, gamma: float
) -> float:
    """lambda L_mF + (1-lambda) L_mFT with the exponents 1 - gamma and gamma."""
    return unified_focal_of_the_code(p, g, weight=1 - weight, delta=delta, gamma=1 - gamma, asymmetric=False)


def test_unified_focal_converts_to_the_code_and_to_the_paper() -> None:
    scores = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    labels = labels_like(scores)
    p, g = ref.softmax(scores.numpy()), ref.one_hot(labels.numpy(), 2)
    for asymmetric in (False, True):
        loss = losses.UnifiedFocalLoss(weight_focal=1 - 0.3, delta=0.7, gamma=0.2, asymmetric=asymmetric, **SOFTMAX)
        theirs = unified_focal_of_the_code(p, g, weight=0.3, delta=0.7, gamma=0.2, asymmetric=asymmetric)
        assert loss(scores, labels).item() == pytest.approx(theirs, rel=1e-12)
    loss = losses.UnifiedFocalLoss(weight_focal=0.3, delta=0.7, gamma=1 - 0.2, **SOFTMAX)
    paper = symmetric_unified_focal_of_the_paper(p, g, weight=0.3, delta=0.7, gamma=0.2)
    assert loss(scores, labels).item() == pytest.approx(paper, rel=1e-12)
    default = losses.UnifiedFocalLoss(**SOFTMAX)(scores, labels).item()
    theirs = unified_focal_of_the_code(p, g, weight=0.5, delta=0.6, gamma=0.5, asymmetric=False)
    paper = symmetric_unified_focal_of_the_paper(p, g, weight=0.5, delta=0.6, gamma=0.5)
    assert default == pytest.approx(theirs, rel=1e-12) == pytest.approx(paper, rel=1e-12)


def test_the_compound_in_nnu_net_s_form_pools_top_k_alone() -> None:
    scores = torch.randn(3, 3, 6, 7, dtype=torch.float64)
    labels = labels_like(scores)
    dice = FusedDiceLoss(include_background=False, **SOFTMAX)
    loss = losses.CompoundLoss([dice, losses.TopKLoss(k=10, batch=True, **SOFTMAX)])
    voxels = F.cross_entropy(scores, labels[:, 0], reduction="none").flatten()
    p, g = scores.softmax(1)[:, 1:], one_hot(labels, 3, torch.float64)[:, 1:]
    overlap = (2 * (p * g).sum((2, 3)) + 1e-5) / (p.sum((2, 3)) + g.sum((2, 3)) + 1e-5)
    expected = 1 - overlap.mean() + voxels.topk(int(voxels.numel() * 10 / 100)).values.mean()
    torch.testing.assert_close(loss(scores, labels), expected)


# --- what the harness above does not fit ---


@each("activation", ["softmax", "sigmoid", "none"])
@each("masked", [False, True])
@each("shape", [(2, 2, 3, 4), (1, 2, 2, 3, 2)])
@each("options", options_of_references(ENTRIES["CorrelationMaximizedStructuralSimilarityLoss"]))
def test_structural_similarity_is_its_formula(
    shape: tuple[int, ...], masked: bool, activation: str, options: dict[str, float]
) -> None:
    torch.manual_seed(0)
    entry = ENTRIES["CorrelationMaximizedStructuralSimilarityLoss"]
    scores = torch.randn(shape, dtype=torch.float64)
    x = (scores.softmax(1) if activation == "none" else scores).numpy()
    labels = labels_like(scores)
    mask = torch.rand(shape[0], 1, *shape[2:], dtype=torch.float64) if masked else None
    w = np.ones((shape[0], 1, *shape[2:]))
    if mask is not None:
        mask[0, 0, 1] = 0
        w = mask.numpy()
    g = ref.one_hot(labels.numpy(), shape[1])
    value, gradient = value_and_gradient(entry.make(activation, **options), torch.from_numpy(x), labels, mask)
    assert value.item() == pytest.approx(entry.reference(x, g, activation, w, **options), rel=1e-10)
    expected = ref.gradient(lambda moved: entry.reference(moved, g, activation, w, **options), x)
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-8)


@each("kind", ["labels", "labels and mask", "onehot"])
@each("options", options_of_references(ENTRIES["LovaszLoss"]))
@each("shape", [(3, 4, 2, 3), (2, 2, 2, 2, 3)])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_lovasz_is_its_formula(shape: tuple[int, ...], activation: str, options: dict[str, Any], kind: str) -> None:
    torch.manual_seed(0)
    entry = ENTRIES["LovaszLoss"]
    scores = torch.randn(shape, dtype=torch.float64)
    scores = scores.softmax(1) if activation == "none" else scores
    labels = labels_like(scores) % max(2, shape[1] - 1)  # of four classes one is absent from the batch
    labels[0] = labels[0] % 2
    mask = torch.rand(shape[0], 1, *shape[2:]) > 0.3 if "mask" in kind else None
    w = np.ones((shape[0], 1, *shape[2:])) if mask is None else mask.double().numpy()
    g = ref.one_hot(labels.numpy(), shape[1])
    target = torch.from_numpy(g) if kind == "onehot" else labels
    loss = entry.make(activation, to_onehot_y=kind != "onehot", **options)
    value, gradient = value_and_gradient(loss, scores, target, mask)
    x = scores.numpy()
    assert value.item() == pytest.approx(entry.reference(x, g, activation, w, **options), rel=1e-12)
    expected = ref.gradient(lambda moved: entry.reference(moved, g, activation, w, **options), x, 1e-7)
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-7)


def test_an_absent_class_costs_lovasz_its_largest_error() -> None:
    """As the authors' code for one channel of probabilities: 0.5 at p = 0.5."""
    empty = torch.zeros(2, 1, 4, 5)
    p = torch.full((2, 1, 4, 5), 0.2)
    p[1, 0, 2, 3] = 0.7
    assert losses.LovaszLoss(other_act=torch.clone)(torch.full_like(p, 0.5), empty).item() == pytest.approx(0.5)
    assert losses.LovaszLoss(other_act=torch.clone)(p, empty).item() == pytest.approx((0.2 + 0.7) / 2)
    assert losses.LovaszLoss(other_act=torch.clone, batch=True)(p, empty).item() == pytest.approx(0.7)
    assert losses.LovaszLoss(other_act=torch.clone, absent_class="skip")(p, empty) == 0


def test_lovasz_hinge_of_raw_scores_of_one_channel() -> None:
    scores = torch.randn(2, 1, 4, 5, dtype=torch.float64)
    g = torch.randint(0, 2, (2, 1, 4, 5)).double()
    g[1] = 0  # errors there are the largest margin missed, as in the authors' code
    errors = (1 - (2 * g - 1) * scores).clamp_min(0)
    first = ref.lovasz_of_set(errors[0].flatten().numpy(), g[0].flatten().numpy())
    expected = (first + errors[1].max().item()) / 2
    assert losses.LovaszLoss()(scores, g).item() == pytest.approx(expected, rel=1e-12)
    assert losses.LovaszLoss(absent_class="skip")(scores, g).item() == pytest.approx(first, rel=1e-12)
    pooled = ref.lovasz_of_set(errors.flatten().numpy(), g.flatten().numpy())
    assert losses.LovaszLoss(batch=True)(scores, g).item() == pytest.approx(pooled, rel=1e-12)
    assert losses.LovaszLoss()(torch.full((1, 1, 4, 5), -2.0), torch.zeros(1, 1, 4, 5)) == 0


def test_lovasz_of_hard_predictions_is_the_jaccard_loss() -> None:
    for seed in range(3):
        p = one_hot(labels_like(torch.empty(2, 3, 5, 6), seed=seed), 3, torch.float64)
        labels = labels_like(p, seed=seed + 10)
        jaccard = JaccardLoss(smooth_nr=0, smooth_dr=0, **LABELS)(p, labels)
        torch.testing.assert_close(losses.LovaszLoss(**LABELS)(p, labels), jaccard, atol=1e-12, rtol=1e-10)


def test_lovasz_keeps_its_gradient_in_a_large_volume() -> None:
    """Each voxel adds 1e-7 to the Jaccard loss: in float32 that would be rounding errors."""
    g = torch.zeros(1, 1, 1 << 22)
    g[..., : 1 << 21] = 1
    p = torch.rand(1, 1, 1 << 22, generator=torch.Generator().manual_seed(0))
    # other_act: without one, raw scores of one channel are a hinge
    loss = losses.LovaszLoss(other_act=lambda x: x)
    single, double = (value_and_gradient(loss, x, g)[1].double() for x in (p, p.double()))
    torch.testing.assert_close(single, double, rtol=1e-5, atol=0)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_cross_entropy_weighted_by_the_prediction_has_factors_without_gradient(activation: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, 3, 3, 5, dtype=torch.float64)
    scores = scores.softmax(1) if activation == "none" else scores
    labels, mask = labels_like(scores), torch.rand(3, 1, 3, 5, dtype=torch.float64)
    active = {} if activation == "none" else {activation: True}
    loss = losses.WeightedCrossEntropyLoss(mode="prediction", **LABELS, **active)
    x, g, w = scores.numpy(), ref.one_hot(labels.numpy(), 3), mask.numpy()
    total = ref.over_voxels(ref.activated(x, activation), w)
    beta = (ref.over_voxels(w) - total) / total
    value, gradient = value_and_gradient(loss, scores, labels, mask)
    assert value.item() == pytest.approx(ref.beta_cross_entropy(x, g, activation, w, beta, 1.0), rel=1e-12)
    expected = ref.gradient(lambda moved: ref.beta_cross_entropy(moved, g, activation, w, beta, 1.0), x)
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("cls", [losses.WeightedCrossEntropyLoss, losses.BalancedCrossEntropyLoss])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_maps_with_weights_add_up_to_the_sums(cls: type[nn.Module], activation: str) -> None:
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    scores = scores.softmax(1) if activation == "none" else scores
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5, dtype=torch.float64)
    active = {} if activation == "none" else {activation: True}
    modes = [{"mode": mode} for mode in ("fixed", "prediction", "target")] if "Weighted" in cls.__name__ else [{}]
    for options in modes:
        for more in ({"weight": [0.5, 2.0, 3.0]}, {"weight": [2.0, 3.0], "include_background": False}):
            none, total = (
                cls(reduction=reduction, **LABELS, **active, **options, **more)(scores, labels, mask)
                for reduction in ("none", "sum")
            )
            torch.testing.assert_close(none.sum(), total, atol=1e-12, rtol=1e-10)


def test_confident_wrong_voxels_keep_their_gradient_one_vs_rest_under_softmax() -> None:
    """log(1 - p) of p = 1 - 1e-20: a clamped logarithm in float32 would have lost it."""
    scores = torch.tensor([46.0, 0.0, 0.0]).view(1, 3, 1, 1)
    labels = torch.ones(1, 1, 1, 1)
    loss = losses.WeightedCrossEntropyLoss(**SOFTMAX)
    single, double = (value_and_gradient(loss, x, labels) for x in (scores, scores.double()))
    assert double[0].item() == pytest.approx((46 + 46 - np.log(2)) / 3, rel=1e-6)
    torch.testing.assert_close(single[0], double[0].float())
    torch.testing.assert_close(single[1], double[1].float())
    assert single[1][0, 0].item() == pytest.approx(2 / 3, rel=1e-6)


def test_one_vs_rest_under_softmax_with_ties() -> None:
    scores = torch.zeros(1, 3, 2, dtype=torch.float64)
    scores[0, :2, 1] = 5
    labels = torch.tensor([[[0, 2]]])
    x, g = scores.numpy(), ref.one_hot(labels.numpy(), 3)
    value, gradient = value_and_gradient(losses.WeightedCrossEntropyLoss(**SOFTMAX), scores, labels)
    w = np.ones((1, 1, 2))
    assert value.item() == pytest.approx(ref.beta_cross_entropy(x, g, "softmax", w, 1.0, 1.0), rel=1e-12)
    expected = ref.gradient(lambda moved: ref.beta_cross_entropy(moved, g, "softmax", w, 1.0, 1.0), x)
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("target_kind", ["labels", "onehot"])
@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 6, 7), (2, 4, 5, 6, 5)], ids=["1D", "2D", "3D"])
def test_contours_are_counted(shape: tuple[int, ...], target_kind: str) -> None:
    torch.manual_seed(0)
    labels = (torch.arange(shape[2]).view(-1, *[1] * (len(shape) - 3)) // 3 + torch.zeros(shape[2:])).long()
    labels = labels.expand(shape[0], 1, *shape[2:]).clone()
    labels[1] = torch.randint(0, 2, (1, *shape[2:]))
    mask = torch.rand(shape[0], 1, *shape[2:]) > 0.15
    g = ref.one_hot(labels.numpy(), shape[1])
    target = labels if target_kind == "labels" else torch.from_numpy(g)
    for weight in (None, mask):
        data = CallData(torch.empty(shape), target, weight, target_kind == "labels", None)
        w = np.ones_like(mask.numpy()) if weight is None else mask.numpy()
        np.testing.assert_array_equal(contour_sizes(data).numpy(), ref.contour_sizes(g, w))
    ignored = labels.masked_fill(~mask, 255).to(torch.uint8)
    data = CallData(torch.empty(shape), ignored, None, True, 255)
    np.testing.assert_array_equal(contour_sizes(data).numpy(), ref.contour_sizes(g, mask.numpy()))


@pytest.mark.parametrize("how", ["mask", "ignore_index"])
@pytest.mark.parametrize(
    "cls", [losses.BoundaryDoULoss, losses.CorrelationMaximizedStructuralSimilarityLoss], ids=lambda cls: cls.__name__
)
def test_where_neighbours_count_an_ignored_voxel_adds_nothing(cls: type[nn.Module], how: str) -> None:
    """It belongs to no class, its prediction is replaced by its target, and its logits change nothing."""
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    labels = labels_like(scores)
    keep = torch.rand(2, 1, 6, 7) > 0.2
    options = {"ignore_index": 255} if how == "ignore_index" else {}
    target = labels.masked_fill(~keep, 255) if options else labels
    mask = None if options else keep
    loss = cls(sigmoid=True, **LABELS, **options)
    value, gradient = value_and_gradient(loss, scores, target, mask)
    assert (gradient.masked_fill(keep, 0) == 0).all()
    other = torch.where(keep, scores, 50.0)
    torch.testing.assert_close(value_and_gradient(loss, other, target, mask), (value, gradient), atol=0, rtol=0)
    if cls is losses.BoundaryDoULoss:
        # the same as a target without the voxels' labels and a prediction of 0 there
        g = one_hot(labels, 3, torch.float64) * keep
        outside = torch.where(keep, scores.sigmoid(), 0)
        torch.testing.assert_close(value, cls()(outside, g), atol=1e-12, rtol=1e-10)


def test_top_k_counts_the_voxels_kept_exactly() -> None:
    """floor(n k / 100) of the voxels kept, at least one; never NaN."""
    p = torch.linspace(0.1, 0.9, 20, dtype=torch.float64).view(1, 1, 20)
    target = torch.ones_like(p)
    ranked = -p.flatten().log()  # the largest first
    for k, number in ((10, 2), (14.9, 2), (15, 3), (4, 1), (100, 20)):
        assert losses.TopKLoss(k=k)(p, target).item() == pytest.approx(ranked[:number].mean().item(), rel=1e-12)
    keep = torch.ones(1, 1, 20, dtype=torch.bool)
    keep[..., :5] = False
    for k, number in ((10, 1), (20, 3), (100, 15)):
        expected = ranked[5 : 5 + number].mean().item()
        assert losses.TopKLoss(k=k)(p, target, keep).item() == pytest.approx(expected, rel=1e-12)
    # a float mask multiplies first
    weight = torch.ones(1, 1, 20, dtype=torch.float64)
    weight[..., 0] = 0.01
    assert losses.TopKLoss(k=5)(p, target, weight).item() == pytest.approx(ranked[1].item(), rel=1e-12)
    # a sample in which nothing is kept leaves the mean
    both = torch.cat([keep, torch.zeros_like(keep)])
    got = losses.TopKLoss(k=20)(p.expand(2, 1, 20), target.expand(2, 1, 20), both)
    assert got.item() == pytest.approx(ranked[5:8].mean().item(), rel=1e-12)


def test_top_k_pools_the_batch() -> None:
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = labels_like(scores)
    voxels = CrossEntropyLoss(reduction="none", **SOFTMAX)(scores, labels).flatten()
    got = losses.TopKLoss(k=25, batch=True, **SOFTMAX)(scores, labels)
    torch.testing.assert_close(got, voxels.sort(descending=True).values[:10].mean())
    each = voxels.view(2, -1).sort(1, descending=True).values[:, :5].mean(1)
    torch.testing.assert_close(losses.TopKLoss(k=25, reduction="sum", **SOFTMAX)(scores, labels), each.sum())


def test_exponential_logarithmic_with_given_frequencies() -> None:
    scores = torch.randn(3, 3, 3, 5, dtype=torch.float64)
    labels, frequencies = labels_like(scores), np.array([0.5, 0.25, 0.125])
    g, w = ref.one_hot(labels.numpy(), 3), np.ones((3, 1, 3, 5))
    for activation in ("softmax", "sigmoid"):
        loss = losses.ExponentialLogarithmicLoss(class_frequencies=frequencies.tolist(), **LABELS, **{activation: True})
        expected = ref.exponential_logarithmic(scores.numpy(), g, activation, w, frequencies)
        assert loss(scores, labels).item() == pytest.approx(expected, rel=1e-12)
    counts = losses.ExponentialLogarithmicLoss(class_frequencies=[400, 200, 100], **SOFTMAX)
    shares = losses.ExponentialLogarithmicLoss(class_frequencies=[4 / 7, 2 / 7, 1 / 7], **SOFTMAX)
    torch.testing.assert_close(counts(scores, labels), shares(scores, labels), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=r"expected class_frequencies in \[0, 1\], the share of each channel"):
        losses.ExponentialLogarithmicLoss(class_frequencies=[400, 200, 100], sigmoid=True, **LABELS)(scores, labels)
    with pytest.raises(ValueError, match="expected class_frequencies of 3 numbers, one per channel, got"):
        losses.ExponentialLogarithmicLoss(class_frequencies=[0.5, 0.5], **SOFTMAX)(scores, labels)


def test_include_background_of_compounds_is_for_the_region_part() -> None:
    """One-vs-rest it drops channel 0 of the cross-entropy too."""
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = labels_like(scores)
    x, g, w = scores.numpy(), ref.one_hot(labels.numpy(), 3), np.ones((2, 1, 4, 5))
    for activation in ("softmax", "sigmoid"):
        options: dict[str, Any] = {**LABELS, activation: True, "include_background": False}
        p = ref.activated(x, activation)
        dice = ref.dice_loss(ref.soft_counts(p, g), 1.0, 1.0)[:, 1:].mean()
        log_p, log_not_p = ref.log_one_vs_rest(x, activation)
        cross_entropy = -(0.7 * g * log_p + (1 - 0.7) * (1 - g) * log_not_p)[:, 1:].mean()
        combo_loss = losses.ComboLoss(beta=0.7, **options)(scores, labels)
        assert combo_loss.item() == pytest.approx((dice + cross_entropy) / 2, rel=1e-12)
        dice = ref.dice_loss(ref.soft_counts(p, g))[:, 1:].mean()
        kept = slice(1, None) if activation == "sigmoid" else slice(None)
        voxels = (
            ref.binary_cross_entropy_map(x, g) if activation == "sigmoid" else ref.cross_entropy_map(x, g, "softmax")
        )
        ranked = ref.top_k_mean(voxels[:, kept], w > 0, 10)
        assert losses.DiceTopKLoss(**options)(scores, labels).item() == pytest.approx(dice + ranked, rel=1e-12)
    softmax_options = {**SOFTMAX, "include_background": False}
    tversky = ref.tversky_loss(ref.soft_counts(ref.softmax(x), g), 0.4, 0.6)[:, 1:] ** 0.5
    with_background = ref.unified_focal(x, g, "softmax", w, weight_focal=1.0)  # every voxel has a true class
    got = losses.UnifiedFocalLoss(**softmax_options)(scores, labels).item()
    assert got == pytest.approx((with_background + tversky.mean()) / 2, rel=1e-12)


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


def test_log_cosh_dice_is_log_cosh_of_each_dice() -> None:
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = labels_like(scores)
    each = FusedDiceLoss(reduction="none", **SOFTMAX)(scores, labels)
    torch.testing.assert_close(losses.LogCoshDiceLoss(**SOFTMAX)(scores, labels), each.cosh().log().mean())


@pytest.mark.parametrize("w_type", ["square", "simple", "uniform"])
def test_generalized_dice_of_one_class_is_dice(w_type: str) -> None:
    scores, target = torch.randn(2, 1, 4, 5, dtype=torch.float64), torch.randint(0, 2, (2, 1, 4, 5)).double()
    dice = value_and_gradient(FusedDiceLoss(sigmoid=True, smooth_nr=0, smooth_dr=0), scores, target)
    generalized = losses.FusedGeneralizedDiceLoss(sigmoid=True, smooth_nr=0, smooth_dr=0, w_type=w_type)
    torch.testing.assert_close(value_and_gradient(generalized, scores, target), dice, atol=1e-12, rtol=1e-10)


def test_generalized_dice_of_samples_without_a_class_left_is_that_of_the_others() -> None:
    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5))
    labels[0] = 0
    loss = losses.FusedGeneralizedDiceLoss(absent_class="skip", include_background=False, **SOFTMAX)
    torch.testing.assert_close(loss(scores, labels), loss(scores[1:], labels[1:]))


def test_poly_of_epsilon_zero_is_cross_entropy() -> None:
    for options in (SOFTMAX, {**LABELS, "sigmoid": True}):
        pair(losses.PolyLoss(epsilon=0.0, **options), CrossEntropyLoss(**options))


def test_generalized_cross_entropy_is_cross_entropy_for_small_q_and_mae_for_one() -> None:
    loss = losses.GeneralizedCrossEntropyLoss
    for options in (SOFTMAX, {**LABELS, "sigmoid": True}):
        pair(loss(q=1e-9, **options), CrossEntropyLoss(**options), atol=1e-7, rtol=1e-7)
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = labels_like(scores)
    error = (scores.softmax(1) - one_hot(labels, 3, torch.float64)).abs().sum(1).mean() / 2
    torch.testing.assert_close(loss(q=1.0, **SOFTMAX)(scores, labels), error)


def test_top_k_of_all_is_cross_entropy() -> None:
    for options in (SOFTMAX, {**LABELS, "sigmoid": True}):
        pair(losses.TopKLoss(k=100.0, **options), CrossEntropyLoss(**options))


def test_noise_robust_dice_of_two_is_v_net_dice() -> None:
    pair(losses.NoiseRobustDiceLoss(gamma=2.0, **SOFTMAX), FusedDiceLoss(squared_pred=True, **SOFTMAX))


def test_weighted_cross_entropy_of_one_is_cross_entropy_of_each_channel() -> None:
    options = {**LABELS, "sigmoid": True}
    pair(losses.WeightedCrossEntropyLoss(**options), CrossEntropyLoss(**options))
    balanced = losses.BalancedCrossEntropyLoss(beta_range=(0.5, 0.5), **options)
    pair(balanced, CrossEntropyLoss(**options), factor=0.5)


def test_two_class_dice_in_closed_form() -> None:
    """n voxels with n/2 positives, all predicted q: both ratios have the same form."""
    for q in (0.2, 0.5, 0.9):
        target = (torch.arange(8) < 4).double().view(1, 1, 8)
        value = losses.TwoClassDiceLoss(smooth_nr=0, smooth_dr=0)(torch.full((1, 1, 8), q, dtype=torch.float64), target)
        # 2 TP / (sum p + sum g) = 2 (4 q) / (8 q + 4), and with 1 - q
        assert value.item() == pytest.approx(1 - (8 * q / (8 * q + 4) + 8 * (1 - q) / (8 * (1 - q) + 4)) / 2)
    assert losses.TwoClassDiceLoss()(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)) == 0
    two = losses.TwoClassDiceLoss(sigmoid=True)
    scores, target = torch.randn(1, 1, 8), torch.randint(0, 2, (1, 1, 8)).float()
    torch.testing.assert_close(two(scores, target), two(-scores, 1 - target))


def test_exponents_of_one_make_unified_focal_plain() -> None:
    """gamma 0, delta 1/2: half the cross-entropy, and Dice."""
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = labels_like(scores)
    dice = FusedDiceLoss(smooth_nr=2e-5, smooth_dr=2e-5, **SOFTMAX)(scores, labels)
    cross_entropy = CrossEntropyLoss(**SOFTMAX)(scores, labels)
    for asymmetric in (False, True):
        loss = losses.UnifiedFocalLoss(weight_focal=0.4, delta=0.5, gamma=0.0, asymmetric=asymmetric, **SOFTMAX)
        torch.testing.assert_close(loss(scores, labels), 0.4 * cross_entropy / 2 + 0.6 * dice)


def test_squared_hinge_is_the_square_and_hinges_are_zero_beyond_the_margin() -> None:
    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5))
    none = losses.HingeLoss(reduction="none", **LABELS)(scores, labels)
    torch.testing.assert_close(losses.SquaredHingeLoss(**LABELS)(scores, labels), (none**2).mean())
    theirs = F.multi_margin_loss(scores.movedim(1, -1).reshape(-1, 3), labels.flatten(), reduction="none")
    crammer = losses.CategoricalHingeLoss(**LABELS)(scores, labels)
    assert theirs.mean() * 3 >= crammer  # torch adds the violations of all classes, and divides by C
    far = 3.0 * (2 * one_hot(labels, 3) - 1)
    for name in ("HingeLoss", "SquaredHingeLoss", "CategoricalHingeLoss"):
        assert getattr(losses, name)(**LABELS)(far, labels) == 0
    with pytest.raises(ValueError, match="expected at least two channels, got one: HingeLoss takes one"):
        losses.CategoricalHingeLoss()(scores[:, :1], labels.clamp_max(1))


PARTS: dict[str, tuple[nn.Module, list[tuple[float, nn.Module]]]] = {
    "Dice, focal": (
        losses.FusedDiceFocalLoss(lambda_dice=0.3, lambda_focal=2.0, gamma=1.0, ignore_index=1, **SOFTMAX),
        [
            (0.3, FusedDiceLoss(ignore_index=1, **SOFTMAX)),
            (2.0, FusedFocalLoss(to_onehot_y=True, use_softmax=True, gamma=1.0, ignore_index=1)),
        ],
    ),
    "Dice, focal, sum": (
        losses.FusedDiceFocalLoss(sigmoid=True, reduction="sum", weight=[1.0, 2.0, 0.5], **LABELS),
        [
            (1.0, FusedDiceLoss(sigmoid=True, reduction="sum", weight=[1.0, 2.0, 0.5], **LABELS)),
            (1.0, FusedFocalLoss(reduction="sum", weight=[1.0, 2.0, 0.5], **LABELS)),
        ],
    ),
    "Dice, focal, none": (
        losses.FusedDiceFocalLoss(sigmoid=True, reduction="none", lambda_dice=0.3, **LABELS),
        [
            (0.3, FusedDiceLoss(sigmoid=True, reduction="none", **LABELS)),
            (1.0, FusedFocalLoss(reduction="none", **LABELS)),
        ],
    ),
    "Dice, focal, none, without background": (
        losses.FusedDiceFocalLoss(sigmoid=True, reduction="none", lambda_focal=2.0, include_background=False, **LABELS),
        [
            (1.0, FusedDiceLoss(sigmoid=True, reduction="none", include_background=False, **LABELS)),
            (2.0, FusedFocalLoss(reduction="none", include_background=False, **LABELS)),
        ],
    ),
    "Dice, top-k": (
        losses.DiceTopKLoss(k=20, lambda_dice=0.3, lambda_topk=2.0, ignore_index=2, weight=[1.0, 2.0, 3.0], **SOFTMAX),
        [
            (0.3, FusedDiceLoss(ignore_index=2, weight=[1.0, 2.0, 3.0], **SOFTMAX)),
            (2.0, losses.TopKLoss(k=20, ignore_index=2, **SOFTMAX)),
        ],
    ),
    "Combo": (
        losses.ComboLoss(alpha=0.3, beta=0.8, batch=True, ignore_index=1, **SOFTMAX),
        [
            (0.7, FusedDiceLoss(smooth_nr=1, smooth_dr=1, batch=True, ignore_index=1, **SOFTMAX)),
            (0.3, losses.BalancedCrossEntropyLoss(beta_range=(0.8, 0.8), ignore_index=1, **SOFTMAX)),
        ],
    ),
    "unified focal": (
        losses.UnifiedFocalLoss(weight_focal=0.3, delta=0.7, gamma=0.25, sigmoid=True, ignore_index=1, **LABELS),
        [
            (0.7, FocalTverskyLoss(alpha=1 - 0.7, beta=0.7, gamma=1 / 0.75, sigmoid=True, ignore_index=1, **LABELS)),
            (0.3, losses.UnifiedFocalLoss(1.0, 0.7, 0.25, sigmoid=True, ignore_index=1, **LABELS)),
        ],
    ),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_a_compound_is_the_weighted_sum_of_its_parts(name: str, masked: bool) -> None:
    compound, parts = PARTS[name]
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5, dtype=torch.float64) if masked else None
    leaf = scores.clone().requires_grad_()
    expected = sum((weight * part(leaf, labels, mask) for weight, part in parts), torch.zeros(()))
    factors = torch.linspace(0.5, 1.5, max(expected.numel(), 1), dtype=torch.float64).view(expected.shape)
    (gradient,) = torch.autograd.grad((expected * (factors if expected.ndim else 1)).sum(), leaf)
    got = value_and_gradient(compound, scores, labels, mask)
    torch.testing.assert_close(got, (expected.detach(), gradient), atol=1e-12, rtol=1e-10)


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


def test_sensitivity_weight_is_on_missed_voxels() -> None:
    target, too_much, too_little = masks()

    def loss(weight: float, prediction: Tensor) -> float:
        return losses.SensitivitySpecificityLoss(sensitivity_weight=weight)(prediction, target).item()

    assert loss(0.8, too_little) > loss(0.2, too_little) + 0.1
    assert loss(0.8, too_much) < loss(0.2, too_much) - 0.05
    assert loss(0.3, too_little) == pytest.approx(0.3 * 8 / 20, abs=1e-6)
    unsmoothed = losses.SensitivitySpecificityLoss(sensitivity_weight=0.3, smooth_dr=0)
    value, gradient = value_and_gradient(unsmoothed, too_much, torch.zeros_like(target))  # an absent class
    assert value.item() == pytest.approx(0.7 * 28 / 100)
    assert gradient.isfinite().all()
    assert loss(0.3, too_much) == pytest.approx(0.7 * 8 / 80, abs=1e-6)


def test_gamma_of_noise_robust_dice_counts_large_errors_more() -> None:
    target = masks()[0]
    shares = []
    for gamma in (1.0, 1.5, 2.0):
        prediction = target.clone()
        prediction[..., 2, 2], prediction[..., 3, 3] = 0.1, 0.6  # a large and a small error
        _, gradient = value_and_gradient(losses.NoiseRobustDiceLoss(gamma=gamma), prediction, target)
        shares.append((gradient[0, 0, 2, 2] / gradient[0, 0, 3, 3]).item())
    assert shares == sorted(shares)
    assert shares[2] > 1.5 * shares[0]


def test_boundary_dou_gives_a_large_object_more_for_its_contour() -> None:
    """a rises with the size of an object for its contour, up to 0.8."""
    values = []
    for side in (4, 10, 40):
        target = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
        target[..., :side, :side] = 1
        prediction = target.clone()
        prediction[..., : side // 2, :side] = 0  # half of it, whatever the size
        a = min(1 - 2 * (4 * side - 4 + 1e-5) / (side**2 + 1e-5), 0.8)
        value = losses.BoundaryDoULoss()(prediction, target).item()
        volume = side**2
        assert value == pytest.approx(volume / 2 / (1.5 * volume - (1 + a) * volume / 2), rel=1e-5)
        values.append(value)
    assert values == sorted(values)


@pytest.mark.parametrize(("w_type", "power"), [("square", 2), ("simple", 1), ("uniform", 0)])
def test_w_type_of_generalized_dice_weights_by_volume(w_type: str, power: int) -> None:
    """Missing the small of two classes, or the large."""
    target = torch.zeros(1, 2, 100)
    target[:, 0, :10], target[:, 1, 10:90] = 1, 1
    missed = [target * torch.tensor([0.0, 1.0]).view(1, 2, 1), target * torch.tensor([1.0, 0.0]).view(1, 2, 1)]
    small, large = (losses.FusedGeneralizedDiceLoss(w_type=w_type)(p, target).item() for p in missed)
    # 1 - 2 w V / (2 w V + w' V') with w V = V^(1-power)
    a, b = 10.0 ** (1 - power), 80.0 ** (1 - power)
    assert small == pytest.approx(1 - 2 * b / (2 * b + a), abs=1e-4)
    assert large == pytest.approx(1 - 2 * a / (2 * a + b), abs=1e-4)


def slopes(loss: nn.Module, p: float, target: float) -> float:
    """Gradient of one voxel of one channel with probability p."""
    score = torch.tensor(p, dtype=torch.float64).logit().view(1, 1, 1)
    return value_and_gradient(loss, score, torch.full((1, 1, 1), target, dtype=torch.float64))[1].item()


def test_epsilon_of_poly_raises_the_gradient_of_nearly_right_voxels() -> None:
    plain, more = (losses.PolyLoss(epsilon=e, sigmoid=True) for e in (0.0, 2.0))
    assert slopes(more, 0.9, 1.0) / slopes(plain, 0.9, 1.0) == pytest.approx(1 + 2 * 0.9)
    assert slopes(more, 0.1, 1.0) / slopes(plain, 0.1, 1.0) == pytest.approx(1 + 2 * 0.1)


def test_q_of_generalized_cross_entropy_forgives_voxels_that_contradict() -> None:
    shares = []
    for q in (0.1, 0.5, 0.9):
        loss = losses.GeneralizedCrossEntropyLoss(q=q, sigmoid=True)
        shares.append(slopes(loss, 0.02, 1.0) / slopes(loss, 0.5, 1.0))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 2 * shares[2]


def test_beta_of_weighted_cross_entropy_is_on_the_positives() -> None:
    for positive, factor in ((1.0, 3.0), (0.0, 1.0)):
        plain, weighted = (losses.WeightedCrossEntropyLoss(beta=beta, sigmoid=True) for beta in (1.0, 3.0))
        assert slopes(weighted, 0.4, positive) / slopes(plain, 0.4, positive) == pytest.approx(factor)
    rare = torch.zeros(1, 1, 10)
    rare[..., 0] = 1
    for mode, share in (("target", 0.1), ("prediction", 0.5)):
        loss = losses.WeightedCrossEntropyLoss(mode=mode, sigmoid=True)
        expected = ((1 - share) / share * 1 + 9) / 10 * np.log(2)
        assert loss(torch.zeros(1, 1, 10), rare).item() == pytest.approx(expected, rel=1e-5)


@each("positives, beta", [(1, 1e3), (4, 999.0), (3996, 4 / 3996), (3999, 1e-3)])
def test_odds_of_weighted_cross_entropy_are_kept_within_a_thousand(positives: int, beta: float) -> None:
    """Of 4000 voxels; so many positives, and as many voxels predicted."""
    target = torch.zeros(1, 1, 4000, dtype=torch.float64)
    target[..., :positives] = 1
    of_target = losses.WeightedCrossEntropyLoss(mode="target", sigmoid=True)(torch.zeros_like(target), target)
    expected = (beta * positives + 4000 - positives) / 4000 * np.log(2)
    assert of_target.item() == pytest.approx(expected, rel=1e-9)
    p = torch.full_like(target, positives / 4000)
    of_prediction = losses.WeightedCrossEntropyLoss(mode="prediction")(p, torch.ones_like(target))
    assert of_prediction.item() == pytest.approx(-beta * np.log(positives / 4000), rel=1e-9)


def test_balanced_cross_entropy_gives_both_sides_the_same_gradient() -> None:
    rare = torch.zeros(1, 1, 20, dtype=torch.float64)
    rare[..., :2] = 1
    _, gradient = value_and_gradient(losses.BalancedCrossEntropyLoss(sigmoid=True), torch.zeros_like(rare), rare)
    assert gradient[..., :2].sum().item() == pytest.approx(-gradient[..., 2:].sum().item())
    empty = torch.zeros_like(rare)
    for beta_range, has_loss in (((0.0, 1.0), False), ((0.05, 0.95), True)):
        loss = losses.BalancedCrossEntropyLoss(beta_range=beta_range, sigmoid=True)
        assert bool(loss(torch.full_like(rare, 5.0), empty) > 0) == has_loss


def test_k_of_top_k_looks_at_the_worst_voxels() -> None:
    scores = torch.linspace(-2, 2, 10, dtype=torch.float64).view(1, 1, 10)
    target = torch.ones_like(scores)
    values = []
    for k in (10.0, 50.0, 100.0):
        value, gradient = value_and_gradient(losses.TopKLoss(k=k, sigmoid=True), scores, target)
        values.append(value.item())
        assert (gradient != 0).sum() == k / 10
        assert (gradient[..., : int(k / 10)] < 0).all()
    assert values == sorted(values, reverse=True)


def test_knobs_of_combo() -> None:
    target, too_much, too_little = masks()

    def loss(prediction: Tensor, **knobs: float) -> float:
        soft = 0.9 * prediction + 0.05
        return losses.ComboLoss(**knobs)(soft, target).item()

    assert loss(too_little, beta=0.8, alpha=0.5) > loss(too_little, beta=0.3, alpha=0.5)
    assert loss(too_much, beta=0.8, alpha=0.5) < loss(too_much, beta=0.3, alpha=0.5)
    dice = 1 - (2 * (0.95 * 12 + 0.05 * 8) + 1) / (20 + (0.95 * 12 + 0.05 * 88) + 1)
    assert loss(too_little, alpha=0.0) == pytest.approx(dice, abs=1e-6)


def test_delta_of_unified_focal_is_on_missed_foreground() -> None:
    target, too_much, too_little = masks()
    for weight_focal in (0.0, 0.5, 1.0):
        for asymmetric in (False, True):

            def loss(delta: float, prediction: Tensor) -> float:
                cls = losses.UnifiedFocalLoss(weight_focal=weight_focal, delta=delta, asymmetric=asymmetric)  # noqa: B023
                return cls(0.9 * prediction + 0.05, target).item()

            assert loss(0.8, too_little) > loss(0.3, too_little)
            assert loss(0.8, too_much) < loss(0.3, too_much)


def test_gamma_of_unified_focal_takes_weight_from_easy_background_and_adds_it_to_nearly_right_classes() -> None:
    scores = torch.tensor([[[3.0, -0.5], [0.0, 0.0]]], dtype=torch.float64)  # easy and hard background
    background = torch.zeros(1, 1, 2)
    shares = []
    for gamma in (0.0, 0.3, 0.8):
        loss = losses.UnifiedFocalLoss(weight_focal=1.0, gamma=gamma, asymmetric=True, **SOFTMAX)
        _, gradient = value_and_gradient(loss, scores, background)
        shares.append((gradient[0, 0, 0] / gradient[0, 0, 1]).item())
    assert shares == sorted(shares, reverse=True)
    target = masks()[0]
    nearly = 0.95 * target + 0.05 * (1 - target)
    sizes = []
    for gamma in (0.0, 0.3, 0.6):
        loss = losses.UnifiedFocalLoss(weight_focal=0.0, gamma=gamma)
        sizes.append(value_and_gradient(loss, nearly, target)[1].abs().sum().item())
    assert sizes == sorted(sizes)


def test_asymmetric_unified_focal_keeps_the_loss_of_rare_foreground() -> None:
    """(1 - p)^gamma is on the background alone."""
    scores = torch.tensor([[[0.0], [2.0]]], dtype=torch.float64)
    foreground = torch.ones(1, 1, 1)
    plain, focal = (
        losses.UnifiedFocalLoss(weight_focal=1.0, asymmetric=a, **SOFTMAX)(scores, foreground) for a in (True, False)
    )
    assert plain.item() == pytest.approx(0.6 * np.log1p(np.exp(-2.0)))
    assert focal < 0.5 * plain


@each(
    "loss, perfect",
    [
        (FocalTverskyLoss(gamma=2.0), 1e-7**0.5),
        (losses.UnifiedFocalLoss(weight_focal=0.0, gamma=0.25), 1e-7**0.75),
        (losses.ExponentialLogarithmicLoss(weight_cross_entropy=0.0), 0.8 * (-np.log(1 - 1e-6)) ** 0.3),
        (losses.ExponentialLogarithmicLoss(weight_dice=0.0), 0.2 * 2 * 2**0.5 * 1e-7**0.3 / 2),
    ],
)
def test_a_perfect_prediction_costs_the_bound_under_a_root(loss: nn.Module, perfect: float) -> None:
    """Where the power has no finite gradient; two classes of half the voxels each."""
    labels = (torch.arange(16) % 2).view(1, 1, 4, 4)
    p = one_hot(labels, 2, torch.float64)
    value, gradient = value_and_gradient(loss, p, p)
    assert value.item() == pytest.approx(perfect, rel=1e-9)
    assert gradient.isfinite().all()


def test_a_dice_of_0_costs_the_bound_under_its_logarithm() -> None:
    options = {"weight_cross_entropy": 0.0, "smooth_nr": 0.0, "smooth_dr": 0.0}
    g = torch.zeros(1, 1, 8, dtype=torch.float64)
    g[..., :4] = 1
    value = losses.ExponentialLogarithmicLoss(**options)(1 - g, g).item()
    assert value == pytest.approx(0.8 * (-np.log(1e-7)) ** 0.3, rel=1e-9)


def test_exponential_logarithmic_raises_the_weight_of_rare_classes() -> None:
    scores = torch.zeros(1, 2, 20, dtype=torch.float64)
    labels = (torch.arange(20) < 2).long().view(1, 1, 20)
    loss = losses.ExponentialLogarithmicLoss(weight_dice=0.0, gamma_cross_entropy=1.0, **SOFTMAX)
    _, gradient = value_and_gradient(loss, scores, labels)
    assert (gradient[0, 1, 0] / gradient[0, 0, 5]).item() == pytest.approx(3)  # (18 / 2)^(1/2)
    nearly = torch.tensor([[[4.0], [0.0]]])
    sizes = []
    for gamma in (0.3, 0.6, 1.0):
        loss = losses.ExponentialLogarithmicLoss(weight_dice=0.0, gamma_cross_entropy=gamma, **SOFTMAX)
        sizes.append(value_and_gradient(loss, nearly, torch.zeros(1, 1, 1))[1].abs().max().item())
    assert sizes == sorted(sizes, reverse=True)  # a lower gamma: more gradient for what is nearly right
    assert (
        value_and_gradient(losses.ExponentialLogarithmicLoss(**SOFTMAX), 50 * nearly, torch.zeros(1, 1, 1))[1]
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("part", ["gamma_dice", "gamma_cross_entropy"])
def test_gammas_of_exponential_logarithmic_look_at_nearly_right_or_at_wrong_classes(part: str) -> None:
    """x^gamma: below 1 a small x counts more than itself, above 1 less; and the other way round beyond x = 1."""
    labels = (torch.arange(16) % 2).view(1, 1, 4, 4)
    right = torch.cat([1 - labels, labels], 1).float()
    only = {"weight_dice": float(part == "gamma_dice"), "weight_cross_entropy": float(part != "gamma_dice")}

    def value(gamma: float, scores: Tensor) -> float:
        return losses.ExponentialLogarithmicLoss(**{part: gamma}, **only, **SOFTMAX)(scores, labels).item()

    assert value(0.3, 8 * right) > 2 * value(1.0, 8 * right) > 8 * value(2.0, 8 * right)
    assert value(0.3, -20 * right) < value(1.0, -20 * right) < value(2.0, -20 * right)


def test_stability_of_structural_similarity_flattens_the_structures_that_differ() -> None:
    target = (torch.arange(64) % 8 > 3).float().view(1, 1, 8, 8)
    scores = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def value(stability: float) -> float:
        loss = losses.CorrelationMaximizedStructuralSimilarityLoss(
            weight_cross_entropy=0.0, stability=stability, sigmoid=True
        )
        return loss(scores, target).item()

    assert value(0.001) > value(0.1) + 0.2 > value(10.0) + 0.4


def test_structural_similarity_weights_the_voxels_that_differ_in_structure() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(1, 1, 8, 8), torch.randint(0, 2, (1, 1, 8, 8)).float()
    loss = losses.CorrelationMaximizedStructuralSimilarityLoss
    plain = loss(weight_cross_entropy=1.0, sigmoid=True)(scores, labels)
    torch.testing.assert_close(plain, F.binary_cross_entropy_with_logits(scores, labels))
    chosen = []
    for threshold in (0.1, 0.5, 0.9):
        one = loss(weight_cross_entropy=0.0, threshold=threshold, sigmoid=True)
        chosen.append(one(scores, labels).item())
    assert chosen == sorted(chosen)  # fewer voxels, with larger e


@each("activation", ["softmax", "sigmoid", "none"])
def test_structural_similarity_holds_its_weights_where_they_have_no_gradient(activation: str) -> None:
    torch.manual_seed(0)
    entry = ENTRIES["CorrelationMaximizedStructuralSimilarityLoss"]
    scores = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    x = (scores.softmax(1) if activation == "none" else scores).numpy()
    labels, w = labels_like(scores), np.ones((2, 1, 3, 4))
    g = ref.one_hot(labels.numpy(), 2)
    whole = value_and_gradient(entry.make(activation), torch.from_numpy(x), labels)
    held = value_and_gradient(entry.make(activation, weight_gradient=False), torch.from_numpy(x), labels)
    assert held[0] == whole[0]
    expected = ref.gradient(lambda moved: ref.structural_similarity(moved, g, activation, w, weighed_at=x), x)
    np.testing.assert_allclose(held[1].numpy(), expected, atol=1e-8)
    assert not torch.allclose(held[1], whole[1], rtol=0.1)


# --- CompoundLoss ---


def test_compound_loss_is_the_weighted_sum_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5, dtype=torch.float64)
    parts = [
        FusedDiceLoss(**SOFTMAX),
        CrossEntropyLoss(**SOFTMAX),
        losses.LovaszLoss(**SOFTMAX),
        losses.ComboLoss(**SOFTMAX),
        FusedDiceLoss(include_background=False, **SOFTMAX),
    ]
    weights = [0.5, 2.0, 0.25, 1.0, 0.1]
    compound = losses.CompoundLoss(parts, weights)
    alone = [value_and_gradient(part, scores, labels, mask) for part in parts]
    expected = tuple(sum(w * a[i] for w, a in zip(weights, alone, strict=True)) for i in range(2))
    got = value_and_gradient(compound, scores, labels, mask)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)
    assert list(compound.components) == [
        "FusedDiceLoss",
        "CrossEntropyLoss",
        "LovaszLoss",
        "ComboLoss",
        "FusedDiceLoss_2",
    ]
    for value, (part, _) in zip(compound.components.values(), alone, strict=True):
        torch.testing.assert_close(value, part, check_dtype=False)
        assert not value.requires_grad
    calls = []
    real = inputs.fused_sums
    monkeypatch.setattr(inputs, "fused_sums", lambda data, terms: calls.append(terms) or real(data, terms))
    compound(scores, labels)
    assert len(calls) == 1
    compound.weights = [0.0, 1.0, 0.0, 0.0, 0.0]  # as a schedule would
    torch.testing.assert_close(compound(scores, labels, mask), alone[1][0])


def test_compound_loss_takes_any_loss() -> None:
    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5))
    theirs = monai.losses.DiceLoss(**SOFTMAX)
    compound = losses.CompoundLoss({"monai": theirs, "255": CrossEntropyLoss(ignore_index=255, **SOFTMAX)})
    expected = theirs(scores, labels) + CrossEntropyLoss(**SOFTMAX)(scores, labels)
    torch.testing.assert_close(compound(scores, labels), expected)
    assert set(compound.components) == {"monai", "255"}
    x, y = torch.rand(2, 1, 4, 5), torch.rand(2, 1, 4, 5)
    both = losses.CompoundLoss([losses.MeanSquaredErrorLoss(), losses.HuberLoss()], [1.0, 0.5])
    torch.testing.assert_close(both(x, y), F.mse_loss(x, y) + 0.5 * F.huber_loss(x, y))
    nested = losses.CompoundLoss([both, losses.MeanAbsoluteErrorLoss()])
    torch.testing.assert_close(nested(x, y), both(x, y) + F.l1_loss(x, y))


class Smoothness(nn.Module):
    """A loss of another package: of the scores alone, without our options."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return input.softmax(1).diff(dim=2).abs().mean()


class MaskedSmoothness(Smoothness):
    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input if mask is None else input * mask, target)


def test_a_mask_goes_to_the_parts_that_take_one_and_is_refused_beside_one_that_does_not() -> None:
    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5))
    mask = (torch.arange(5) > 1).expand(2, 1, 4, 5)
    ours, theirs = FusedDiceLoss(**SOFTMAX), MaskedSmoothness()
    expected = ours(scores, labels, mask) + theirs(scores, labels, mask)
    torch.testing.assert_close(losses.CompoundLoss([ours, theirs])(scores, labels, mask), expected)
    torch.testing.assert_close(
        losses.CompoundLoss([losses.CompoundLoss([theirs]), ours])(scores, labels, mask), expected
    )
    foreign = losses.CompoundLoss({"dice": ours, "smooth": Smoothness()})
    torch.testing.assert_close(foreign(scores, labels), ours(scores, labels) + Smoothness()(scores, labels))
    with pytest.raises(
        ValueError, match="expected parts that take a `mask`, got smooth, which would count masked voxels"
    ):
        foreign(scores, labels, mask)


def test_compound_loss_is_built_from_yaml_and_copied() -> None:
    part = {"to_onehot_y": True, "softmax": True}
    config = {
        "loss": {
            "_target_": "monai_extra_losses.losses.CompoundLoss",
            "losses": [
                {"_target_": "monai_extra_losses.losses.FusedDiceLoss", **part},
                {"_target_": "monai_extra_losses.losses.TopKLoss", "k": 20, **part},
            ],
            "weights": [1.0, 0.5],
        },
        "named": {
            "_target_": "monai_extra_losses.losses.CompoundLoss",
            "losses": {
                "overlap": {"_target_": "monai_extra_losses.losses.FusedDiceLoss", **part},
                "worst": {"_target_": "monai_extra_losses.losses.TopKLoss", "k": 20, **part},
            },
            "weights": [1.0, 0.5],
        },
    }
    parser = ConfigParser(config)
    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5))
    expected = losses.DiceTopKLoss(k=20, lambda_topk=0.5, **SOFTMAX)(scores, labels)
    for name in ("loss", "named"):
        loss = parser.get_parsed_content(name)
        torch.testing.assert_close(loss(scores, labels), expected)
        assert copy.deepcopy(loss)(scores, labels) == loss(scores, labels)
        assert pickle.loads(pickle.dumps(loss))(scores, labels) == loss(scores, labels)
    assert set(parser.get_parsed_content("named").components) == {"overlap", "worst"}


def test_compound_loss_refuses() -> None:
    dice = FusedDiceLoss(**SOFTMAX)
    with pytest.raises(ValueError, match="expected at least one loss, got none"):
        losses.CompoundLoss([])
    with pytest.raises(TypeError, match=r"expected losses that are torch\.nn\.Module, got str as str"):
        losses.CompoundLoss(["FusedDiceLoss"])
    with pytest.raises(ValueError, match="expected 2 weights, one per loss, got 1"):
        losses.CompoundLoss([dice, dice], [1.0])
    with pytest.raises(ValueError, match=r"expected weights >= 0 and finite, got \[-1.0\]"):
        losses.CompoundLoss([dice], [-1.0])
    with pytest.raises(ValueError, match="expected reduction 'mean' or 'sum' of every part, got 'none' of FusedDice"):
        losses.CompoundLoss([FusedDiceLoss(reduction="none")])


WRONG_WEIGHTS: dict[str, tuple[Any, type[Exception], str]] = {
    "NaN": ([1.0, float("nan")], ValueError, r"expected weights >= 0 and finite, got \[1.0, nan\]"),
    "infinite": ([float("inf"), 1.0], ValueError, r"expected weights >= 0 and finite, got \[inf, 1.0\]"),
    "negative": ([1.0, -0.5], ValueError, r"expected weights >= 0 and finite, got \[1.0, -0.5\]"),
    "too few": ([1.0], ValueError, "expected 2 weights, one per loss, got 1"),
    "too many": ([1.0, 1.0, 1.0], ValueError, "expected 2 weights, one per loss, got 3"),
    "none": ([], ValueError, "expected 2 weights, one per loss, got 0"),
    "a number": (0.5, TypeError, "expected a list of weights, one number per loss, got 0.5"),
    "a dict": ({"a": 1, "b": 2}, TypeError, "expected a list of weights, one number per loss, got"),
    "words": (["a", "b"], TypeError, "expected weights that are one number each, got 'a'"),
    "vectors": ([torch.ones(2), 1.0], TypeError, "expected weights that are one number each, got tensor"),
    "negative parameters": (nn.Parameter(torch.tensor([1.0, -2.0])), ValueError, "expected weights >= 0 and finite"),
}


@pytest.mark.parametrize("kind", WRONG_WEIGHTS)
def test_wrong_weights_of_a_compound_are_refused_at_once_and_when_they_are_set_later(kind: str) -> None:
    weights, error, match = WRONG_WEIGHTS[kind]
    parts = [FusedDiceLoss(**SOFTMAX), CrossEntropyLoss(**SOFTMAX)]
    with pytest.raises(error, match=match):
        losses.CompoundLoss(parts, weights)
    later = losses.CompoundLoss(parts)
    later.weights = weights
    with pytest.raises(error, match=match):
        later(torch.randn(1, 3, 4, 5), torch.zeros(1, 1, 4, 5))
    if isinstance(weights, list) and len(weights) == 2:
        one_by_one = losses.CompoundLoss(parts)
        one_by_one.weights[:] = weights
        with pytest.raises(error, match=match):
            one_by_one(torch.randn(1, 3, 4, 5), torch.zeros(1, 1, 4, 5))


@pytest.mark.parametrize("form", ["one of the list", "all"])
def test_a_parameter_as_weight_of_a_compound_is_learnt(form: str) -> None:
    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5))
    parts = [FusedDiceLoss(**SOFTMAX), CrossEntropyLoss(**SOFTMAX)]
    values = [part(scores, labels).item() for part in parts]
    weight = nn.Parameter(torch.tensor(0.25) if form == "one of the list" else torch.tensor([2.0, 0.25]))
    compound = losses.CompoundLoss(parts, [2.0, weight] if form == "one of the list" else weight)
    assert [id(parameter) for parameter in compound.parameters()] == [id(weight)]
    value = compound(scores, labels)
    assert value.item() == pytest.approx(2 * values[0] + 0.25 * values[1])
    assert compound.weight_values == [2.0, 0.25]
    value.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == pytest.approx(values[1] if weight.ndim == 0 else values)
    name = "weights.1" if form == "one of the list" else "weights"
    assert list(compound.state_dict()) == [name]
    state = {name: torch.full_like(weight.detach(), 3.0)}
    compound.load_state_dict(state)
    other = 3.0 if weight.ndim else 2.0
    for same in (compound, copy.deepcopy(compound), pickle.loads(pickle.dumps(compound))):
        assert same(scores, labels).item() == pytest.approx(other * values[0] + 3 * values[1])
    with torch.no_grad():
        weight.fill_(-1.0)  # as an optimizer might
    with pytest.raises(ValueError, match="expected weights >= 0 and finite"):
        compound(scores, labels)


def test_a_weight_of_a_compound_that_another_module_learns_keeps_its_gradient() -> None:
    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5))
    compound = losses.CompoundLoss([FusedDiceLoss(**SOFTMAX), CrossEntropyLoss(**SOFTMAX)])
    uncertainty = torch.zeros(2, requires_grad=True)
    compound.weights = list((-uncertainty).exp())
    compound(scores, labels).backward()
    assert uncertainty.grad is not None
    expected = [-value.item() for value in compound.components.values()]
    assert uncertainty.grad.tolist() == pytest.approx(expected)
    compound.weights = [1.0, nn.Parameter(torch.tensor(1.0))]  # in no state, of no optimizer
    with pytest.raises(ValueError, match=r"expected a learnt weight to be registered.*torch\.nn\.ParameterList"):
        compound(scores, labels)


def test_every_part_of_a_compound_checks_its_input_in_whatever_order() -> None:
    flat, flat_target = torch.randn(4, 3), (torch.rand(4, 3) > 0.5).float()
    volumes, labels = torch.randn(1, 3, 4, 5), torch.zeros(1, 1, 4, 5)
    nan = float("nan")
    refused: list[tuple[list[nn.Module], tuple[Tensor, Tensor], str]] = [
        ([FusedFocalLoss(), FusedDiceLoss(sigmoid=True)], (flat, flat_target), "with 1 to 3 spatial axes, got shape"),
        (
            [CrossEntropyLoss(**SOFTMAX), FusedDiceLoss(softmax=True)],
            (volumes, labels),
            r"expected target \(1, 3, 4, 5\)",
        ),
        (
            [CrossEntropyLoss(ignore_index=255, **SOFTMAX), FusedDiceLoss(**SOFTMAX)],
            (volumes, labels.masked_fill(torch.rand(4, 5) > 0.5, 255)),
            "expected whole labels in 0..2 .*got 255",
        ),
        ([losses.SurfaceLoss(), FusedDiceLoss()], (volumes, torch.full((1, 3, 4, 5), nan)), r"with values in \[0, 1\]"),
    ]
    for parts, data, match in refused:
        for ordered in (parts, parts[::-1]):
            with pytest.raises(ValueError, match=match):
                losses.CompoundLoss(ordered)(*data)
    assert losses.CompoundLoss([FusedFocalLoss(), FusedFocalLoss()], [1.0, 0.5])(flat, flat_target).item() == (
        pytest.approx(1.5 * FusedFocalLoss()(flat, flat_target).item())
    )


def test_compound_loss_is_as_lean_as_its_parts() -> None:
    scores = torch.randn(1, 4, 64, 64, 32)
    labels = labels_like(scores, dtype=torch.uint8)
    assert_lean(losses.CompoundLoss([FusedDiceLoss(**SOFTMAX), CrossEntropyLoss(**SOFTMAX)]), scores, labels)


def test_every_part_of_a_compound_loss_names_what_one_channel_ignores() -> None:
    parts = [FusedDiceLoss(), CrossEntropyLoss(softmax=True), JaccardLoss(include_background=False)]
    with pytest.warns(UserWarning, match="single channel prediction") as caught:
        losses.CompoundLoss(parts)(torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    ignored = [str(warning.message).split("`")[1] for warning in caught]
    assert ignored == ["softmax=True", "include_background=False"]
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize(
    ("options", "channels", "ignored"),
    [
        ({"softmax": True, "to_onehot_y": True, "include_background": False, "weight": [3.0]}, 2, True),
        ({"sigmoid": True, "weight": 2.0}, 1, True),
        ({"sigmoid": True}, 1, False),
        ({"softmax": True, "to_onehot_y": True, "weight": [1.0, 3.0]}, 2, False),
    ],
)
def test_a_weight_of_one_class_is_said_to_be_ignored(
    options: dict[str, Any], channels: int, ignored: bool, recwarn: pytest.WarningsRecorder
) -> None:
    data = torch.rand(1, channels, 4, 4), torch.ones(1, 1, 4, 4)
    value = FusedDiceLoss(**options)(*data)
    assert [str(one.message) for one in recwarn] == ["one class counts, `weight` ignored."] * ignored
    if ignored:
        assert recwarn[0].filename == __file__
        assert value == FusedDiceLoss(**{**options, "weight": None})(*data)


def test_an_activation_is_taken_once_for_all_parts() -> None:
    calls = []

    def activation(x: Tensor) -> Tensor:
        calls.append(1)
        return x.softmax(1)

    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5))
    parts = [cls(to_onehot_y=True, other_act=activation) for cls in (FusedDiceLoss, JaccardLoss, CrossEntropyLoss)]
    losses.CompoundLoss(parts)(scores, labels)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        (
            "SensitivitySpecificityLoss",
            {"sensitivity_weight": 1.5},
            r"expected sensitivity_weight in \[0, 1\], got 1.5",
        ),
        ("NoiseRobustDiceLoss", {"gamma": 2.5}, r"expected gamma in \[1, 2\], got 2.5"),
        ("FusedGeneralizedDiceLoss", {"w_type": "cubic"}, "Unsupported w_type: cubic"),
        ("PolyLoss", {"epsilon": -2.0}, "expected epsilon >= -1, got -2.0"),
        ("GeneralizedCrossEntropyLoss", {"q": 0.0}, r"expected q in \(0, 1\], got 0.0"),
        ("WeightedCrossEntropyLoss", {"beta": 0.0}, "expected beta > 0, got 0.0"),
        ("WeightedCrossEntropyLoss", {"mode": "auto"}, "Unsupported mode: auto"),
        ("BalancedCrossEntropyLoss", {"beta_range": (0.9, 0.1)}, "expected beta_range"),
        ("TopKLoss", {"k": 0.0}, r"expected k in \(0, 100\] per cent, got 0.0"),
        ("DiceTopKLoss", {"lambda_topk": -1.0}, "lambda_topk should be no less than 0.0"),
        ("ComboLoss", {"alpha": 1.5}, r"expected alpha in \[0, 1\], got 1.5"),
        ("ComboLoss", {"beta": 1.0}, r"expected beta in \(0, 1\), got 1.0"),
        ("ExponentialLogarithmicLoss", {"gamma_dice": 0.0}, "expected gamma_dice > 0, got 0.0"),
        ("ExponentialLogarithmicLoss", {"weight_dice": -1.0}, "weight_dice should be no less than 0.0"),
        ("UnifiedFocalLoss", {"delta": 1.0}, r"expected delta in \(0, 1\), got 1.0"),
        ("UnifiedFocalLoss", {"gamma": 1.0}, r"expected gamma in \[0, 1\), got 1.0"),
        ("UnifiedFocalLoss", {"weight_focal": 2.0}, r"expected weight_focal in \[0, 1\], got 2.0"),
        (
            "CorrelationMaximizedStructuralSimilarityLoss",
            {"threshold": 1.0},
            r"expected threshold in \[0, 1\), got 1.0",
        ),
        ("CorrelationMaximizedStructuralSimilarityLoss", {"stability": 0.0}, "expected stability > 0, got 0.0"),
    ],
)
def test_new_options_out_of_range_are_refused(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        getattr(losses, name)(**options)
    nan = {option: float("nan") for option, value in options.items() if isinstance(value, float)}
    if nan:
        with pytest.raises(ValueError, match=next(iter(nan))):
            getattr(losses, name)(**nan)


def test_a_subclass_with_another_formula_has_its_own_gradient() -> None:
    """The kernels take slopes in closed form, which are those of the formula beside them."""
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    labels = labels_like(scores)
    for base in (losses.PolyLoss, losses.GeneralizedCrossEntropyLoss, CrossEntropyLoss, losses.CategoricalHingeLoss):
        raw = base is losses.CategoricalHingeLoss
        other = type("Other", (base,), {"voxel_formula": lambda self, x: x**2})
        loss = other(**(LABELS if raw else SOFTMAX))
        assert torch.autograd.gradcheck(lambda x, f=loss: f(x, labels), scores)
    squared = type("Squared", (FusedFocalLoss,), {"voxel_formula": lambda self, x: x**2})()
    target = torch.rand_like(scores)
    expected = (target * F.logsigmoid(scores) ** 2 + (1 - target) * F.logsigmoid(-scores) ** 2).mean()
    torch.testing.assert_close(squared(scores, target), expected)
    with pytest.raises(TypeError, match="expected Old to name its formula voxel_formula, got formula: rename it"):
        type("Old", (CrossEntropyLoss,), {"formula": lambda self, x: x**2})


def test_a_formula_reads_only_what_its_loss_asks_for() -> None:
    class Forgetful(JaccardLoss):
        def formula(self, c: Any) -> Tensor:
            return c.p_squared

    with pytest.raises(AttributeError, match=r"reads p_squared to have reads = Reads\(squares=True\)"):
        Forgetful(sigmoid=True)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
