"""Every row of the contract, for every loss of the list."""

import copy
import inspect
import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from loss_list import (
    ENTRIES,
    LOSSES,
    LossCase,
    LossEntry,
    assert_lean,
    each,
    every_case,
    every_loss,
    every_mechanism,
    labels_like,
    one_hot,
    told,
    value_and_gradient,
)
from memory import peak_extra_bytes
from monai.data import MetaTensor
from torch import Tensor, nn

from monai_extra_losses import losses
from monai_extra_losses.losses import (
    CompoundLoss,
    CrossEntropyLoss,
    ExponentialLogarithmicLoss,
    FusedDiceCELoss,
    FusedDiceFocalLoss,
    FusedDiceLoss,
    FusedFocalLoss,
    ShapeMismatchError,
)
from monai_extra_losses.losses.base import SegmentationLoss

SHAPE = (2, 3, 4, 5, 3)
CLOSE: dict[str, float] = {"atol": 1e-6, "rtol": 1e-6}
EXACT: dict[str, float] = {"atol": 1e-12, "rtol": 1e-10}  # for float64 inputs


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], **tolerance: float) -> None:
    """Value and gradient agree; a gradient relative to its largest too, because gradients of means are small."""
    tolerance = tolerance or (EXACT if got[1].dtype == torch.float64 else CLOSE)
    torch.testing.assert_close(got[0], expected[0], **tolerance)
    scale = expected[1].abs().max().clamp_min(1e-3)
    torch.testing.assert_close(got[1] / scale, expected[1] / scale, atol=10 * tolerance["atol"], rtol=tolerance["rtol"])


# --- ignored is deleted ---


def without_ignored(
    case: LossCase, scores: Tensor, target: Tensor, keep: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Value and gradient of the loss of the voxels that are left, with the others cut out of the data."""
    samples = range(scores.shape[0])

    def cut(tensor: Tensor, sample: int) -> Tensor:
        return tensor[sample].flatten(1)[:, keep[sample].flatten()].unsqueeze(0)

    leaf = scores.clone().requires_grad_()
    loss = case(**options)
    if options.get("batch", False):
        value = loss(torch.cat([cut(leaf, n) for n in samples], 2), torch.cat([cut(target, n) for n in samples], 2))
    else:
        values = torch.stack([loss(cut(leaf, n), cut(target, n)) for n in samples])
        if options["reduction"] == "mean":
            voxels = keep.flatten(1).sum(1) if case.entry.mean_over == "voxels" else torch.ones(len(samples))
            values = values * voxels / voxels.sum()
        value = values.sum()
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def ignoring(kind: str, scores: Tensor) -> tuple[dict[str, Any], Tensor, Tensor | None, Tensor]:
    """Options, target, mask, and which voxels count; unequal numbers in the two samples."""
    labels = labels_like(scores)
    keep = torch.ones_like(labels, dtype=torch.bool)
    keep[0, :, 1:3] = False
    keep[1, :, :, 0] = False
    keep[1, :, 0, 1] = False
    if kind in ("255", "-1"):
        return {"ignore_index": int(kind)}, labels.masked_fill(~keep, int(kind)), None, keep
    if kind == "class":
        return {"ignore_index": 1}, labels, None, labels != 1
    if kind == "class of a one-hot target":
        keep = labels != 1
        return {"ignore_index": 1, "to_onehot_y": False}, one_hot(labels, scores.shape[1], scores.dtype), None, keep
    if kind == "mask":
        return {}, labels, keep, keep
    if kind == "mask of a one-hot target":
        return {"to_onehot_y": False}, one_hot(labels, scores.shape[1], scores.dtype), keep, keep
    mask = torch.ones_like(keep)
    mask[0, :, 0] = False
    mask[1, :, 2, 1:] = False
    assert kind == "mask and ignore_index"
    return {"ignore_index": 255}, labels.masked_fill(~keep, 255), mask.to(scores.dtype), keep & mask


IGNORING = [
    "255",
    "-1",
    "class",
    "class of a one-hot target",
    "mask",
    "mask of a one-hot target",
    "mask and ignore_index",
]
EVERY_WAY_TO_IGNORE = IGNORING[-3:]  # labels, channels, both


@every_case(only=lambda entry: not entry.reads_neighbours)
@each("kind", IGNORING)
def test_ignored_is_deleted(case: LossCase, kind: str) -> None:
    if kind not in EVERY_WAY_TO_IGNORE and (case.variant or case.activation != case.entry.activations[0]):
        pytest.skip("which voxels count is found out before anything of a loss is")
    scores = case.scores(*SHAPE, dtype=torch.float64)
    options, target, mask, keep = ignoring(kind, scores)
    kept_per_sample = keep.flatten(1).sum(1)
    assert kept_per_sample[0] != kept_per_sample[1]
    for reduction in ("mean", "sum"):
        for batch in (False, True) if case.entry.accepts("batch") else (False,):
            if not batch and (case.entry.sum_pools or (case.entry.mean_over == "parts" and reduction == "mean")):
                continue  # its parts have two kinds of mean: see test_ignored_is_deleted_in_the_parts
            if batch and reduction == "sum" and case.entry.name == "FusedDiceFocalLoss":
                continue  # focal's sum is that of the means of the samples
            more = {**options, "reduction": reduction, **({"batch": True} if batch else {})}
            expected = without_ignored(case, scores, target, keep, **more)
            assert_same(value_and_gradient(case(**more), scores, target, mask), expected)
            assert expected[1].abs().masked_fill(keep, 0).max() == 0


@pytest.mark.parametrize("kind", IGNORING)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_ignored_is_deleted_in_the_parts(activation: str, kind: str) -> None:
    scores = torch.randn(SHAPE, dtype=torch.float64)
    options, target, mask, _ = ignoring(kind, scores)
    options = {"to_onehot_y": True, activation: True, **options}
    dice = value_and_gradient(FusedDiceLoss(**options), scores, target, mask)
    cross_entropy = value_and_gradient(CrossEntropyLoss(**options), scores, target, mask)
    both = value_and_gradient(FusedDiceCELoss(lambda_dice=0.3, lambda_ce=2.0, **options), scores, target, mask)
    assert_same(both, (0.3 * dice[0] + 2 * cross_entropy[0], 0.3 * dice[1] + 2 * cross_entropy[1]))


@every_case(variants=False, long=True)
def test_what_is_ignored_changes_nothing(case: LossCase) -> None:
    scores = case.scores(*SHAPE)
    options, target, mask, keep = ignoring("mask and ignore_index", scores)
    anything = torch.tensor([math.inf, -math.inf, 1e30, -1e30])[torch.randint(4, SHAPE)]
    others = [case.scores(*SHAPE, seed=7), torch.full(SHAPE, math.nan), anything]
    for reduction in case.entry.unlike_reductions:
        both = [case(reduction=reduction, **options)]
        if case.activation == "none" and case.entry.accepts("other_act"):
            both.append(case(reduction=reduction, other_act=lambda x: x.softmax(1), **options))
        for loss in both:
            first = value_and_gradient(loss, scores, target, mask)
            assert first[1].masked_fill(keep, 0).abs().max() == 0
            for other in others:
                second = value_and_gradient(loss, torch.where(keep, scores, other), target, mask)
                torch.testing.assert_close(first, second, atol=0, rtol=0)


@every_mechanism()
def test_mask_of_ones_is_no_mask(case: LossCase) -> None:
    scores = case.scores(*SHAPE)
    labels = labels_like(scores)
    for reduction in case.entry.unlike_reductions:
        loss = case(reduction=reduction)
        expected = value_and_gradient(loss, scores, labels)
        for dtype in (torch.bool, torch.float32, torch.float16):
            assert_same(value_and_gradient(loss, scores, labels, torch.ones_like(labels, dtype=dtype)), expected)


@every_case(
    only=lambda entry: not entry.reads_neighbours and "TopK" not in entry.name, long=True
)  # it multiplies before ranking
@each("target_kind", ["labels", "onehot"])
def test_float_mask_counts_a_voxel_that_many_times(case: LossCase, target_kind: str) -> None:
    scores = case.scores(1, 3, 12, dtype=torch.float64)
    labels = labels_like(scores)
    target = labels if target_kind == "labels" else one_hot(labels, 3, torch.float64)
    times = torch.tensor([0, 1, 2, 3] * 3)
    repeated = torch.arange(12).repeat_interleave(times)
    for reduction in ("mean", "sum"):
        loss = case(reduction=reduction, to_onehot_y=target_kind == "labels")
        leaf = scores.clone().requires_grad_()
        value = loss(leaf[..., repeated], target[..., repeated])
        expected = value.detach(), torch.autograd.grad(value, leaf)[0]
        assert_same(value_and_gradient(loss, scores, target, times.double().view(1, 1, -1)), expected)


@every_case(family="distribution")
def test_float_mask_multiplies_the_map(case: LossCase) -> None:
    if case.entry.name == "BalancedCrossEntropyLoss" or "mode" in case.options:
        pytest.skip("its factors follow the mask too")
    scores = case.scores(*SHAPE)
    labels, mask = labels_like(scores), torch.rand(2, 1, *SHAPE[2:])
    loss = case(reduction="none")
    torch.testing.assert_close(loss(scores, labels, mask), loss(scores, labels) * mask, **CLOSE)


@every_case(variants=False, long=True)
@each("how", ["ignore_index", "bool mask", "float mask", "both"])
def test_all_ignored_gives_exactly_zero(case: LossCase, how: str) -> None:
    scores = case.scores(*SHAPE)
    labels = labels_like(scores) if "mask" in how else torch.full((2, 1, *SHAPE[2:]), 255)
    mask = (
        None
        if how == "ignore_index"
        else torch.zeros(2, 1, *SHAPE[2:], dtype=torch.float32 if "float" in how else bool)
    )
    options = {} if "mask" in how else {"ignore_index": 255}
    changes = ({}, {"smooth_nr": 0.0, "smooth_dr": 0.0}, {"absent_class": "skip"}, {"batch": True})
    for reduction in case.entry.unlike_reductions:
        for more in changes if how in ("ignore_index", "float mask") else changes[:1]:
            if all(map(case.entry.accepts, more)):
                value, gradient = value_and_gradient(case(reduction=reduction, **options, **more), scores, labels, mask)
                assert (value == 0).all(), (reduction, more)
                assert (gradient == 0).all(), (reduction, more)


@every_case(variants=False, long=True)
@each("how", ["ignore_index", "mask"])
def test_a_fully_ignored_sample_leaves_the_mean(case: LossCase, how: str) -> None:
    scores = case.scores(*SHAPE, dtype=torch.float64)
    labels, mask = labels_like(scores), None
    options = {}
    if how == "mask":
        mask = torch.ones_like(labels, dtype=torch.bool)
        mask[0] = False
    else:
        labels[0], options = 255, {"ignore_index": 255}
    for more in ({}, {"smooth_nr": 0.0, "smooth_dr": 0.0}):
        if all(map(case.entry.accepts, more)):
            loss = case(**options, **more)
            value, gradient = value_and_gradient(loss, scores, labels, mask)
            alone = value_and_gradient(loss, scores[1:], labels[1:])
            assert_same((value, gradient[1:]), alone)
            assert (gradient[0] == 0).all()


@every_mechanism()
def test_ignore_index_without_such_a_voxel_changes_nothing(case: LossCase) -> None:
    scores = case.scores(*SHAPE)
    labels = labels_like(scores)
    for reduction in case.entry.reductions:
        expected = value_and_gradient(case(reduction=reduction), scores, labels)
        assert_same(value_and_gradient(case(reduction=reduction, ignore_index=255), scores, labels), expected)


@every_mechanism()
def test_a_sentinel_ignores_nothing_of_a_one_hot_target(case: LossCase) -> None:
    """An all-zero voxel is background of every channel, not ignored."""
    scores = case.scores(*SHAPE)
    target = one_hot(labels_like(scores), 3)
    target[:, :, 1] = 0
    options = {"to_onehot_y": False}
    expected = value_and_gradient(case(**options), scores, target)
    for ignore_index in (-1, 3, 255):  # of channels 0 to 2
        with told(ignore_index):
            assert_same(value_and_gradient(case(ignore_index=ignore_index, **options), scores, target), expected)


# --- absent classes ---


@every_case(variants=False, family="region", only=lambda entry: entry.mean_over == "pairs")
@each("include_background", [True, False])
@each("batch", [False, True])
def test_absent_class_skip_leaves_the_mean(case: LossCase, batch: bool, include_background: bool) -> None:
    scores = case.scores(2, 4, 4, 5)
    labels = labels_like(scores) % 3  # class 3 is absent
    labels[0] = labels[0] % 2  # class 2 from the first sample too
    weight = [0.5, 1.0, 2.0, 4.0][0 if include_background else 1 :]
    options: dict[str, Any] = {"batch": batch, "include_background": include_background}
    each = value_and_gradient(case(reduction="none", weight=weight, **options), scores, labels)[0][:, :, 0, 0]
    present = torch.tensor([[1, 1, 1, 0]] if batch else [[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    present = present if include_background else present[:, 1:]
    skip = {"absent_class": "skip", "weight": weight, **options}
    torch.testing.assert_close(case(**skip)(scores, labels), each[present].mean(), **CLOSE)
    torch.testing.assert_close(case(reduction="sum", **skip)(scores, labels), each[present].sum(), **CLOSE)
    none = case(reduction="none", **skip)(scores, labels)[:, :, 0, 0]
    torch.testing.assert_close(none, each.where(present, 0), **CLOSE)


@every_case(variants=False, family="region")
def test_absent_class_skip_without_any_class_is_zero(case: LossCase) -> None:
    scores, labels = case.scores(2, 3, 4, 5), torch.zeros(2, 1, 4, 5)
    for smooth in (1e-5, 0.0):
        smoothing = {name: smooth for name in ("smooth_nr", "smooth_dr") if case.entry.accepts(name)}
        loss = case(absent_class="skip", include_background=False, **smoothing)
        value, gradient = value_and_gradient(loss, scores, labels)
        assert value == 0
        assert (gradient == 0).all()


@every_case(variants=False, family="region", only=lambda entry: entry.mean_over == "pairs")
def test_a_class_whose_voxels_are_all_ignored_is_absent(case: LossCase) -> None:
    scores = case.scores(2, 3, 4, 5)
    labels = labels_like(scores)
    each = case(reduction="none", ignore_index=2)(scores, labels)[:, :, 0, 0]
    skipped = case(absent_class="skip", ignore_index=2)(scores, labels)
    torch.testing.assert_close(skipped, each[:, :2].mean(), **CLOSE)
    masked = case(absent_class="skip")(scores, labels, labels != 2)
    torch.testing.assert_close(masked, each[:, :2].mean(), **CLOSE)


@every_case(variants=False, family="region")
def test_absent_class_skip_with_all_present_is_smooth(case: LossCase) -> None:
    scores = case.scores(2, 3, 6, 5)
    labels = torch.arange(3).repeat(20).view(2, 1, 6, 5)
    expected = value_and_gradient(case(), scores, labels)
    assert_same(value_and_gradient(case(absent_class="skip"), scores, labels), expected)


# Where a false positive of an absent class may cost no more though it is surer, or has more voxels, and why.
NOT_SURER = {
    "AverageCalibrationLoss": "a mean over the bins that are filled",
    "SurfaceLoss": "no boundary to measure from",
    "HausdorffLoss": "below 0.5 there is no predicted boundary",
    "LogHausdorffLoss": "likewise",
    "HausdorffERLoss": "an erosion leaves nothing",
    "HingeLoss": "nothing within the margin",
    "SquaredHingeLoss": "likewise",
    "CategoricalHingeLoss": "likewise",
    "NoiseRobustDiceLoss": "sum p^gamma / sum p^2 falls",
    "TopologicalInteractionLoss": "what touches nothing that it must not",
    "CenterlineBoundaryDiceLoss": "below 0.5 there is no skeleton",
    "SkeletonRecallLoss": "a recall",
}
NOT_MORE = {
    "AverageCalibrationLoss": "a mean over the bins that are filled",
    "SurfaceLoss": "no boundary to measure from",
    "HausdorffERLoss": "an erosion leaves nothing",
    "HausdorffLoss": "below 0.5 there is no predicted boundary",
    "LogHausdorffLoss": "likewise",
    "TopKLoss": "beyond k per cent",
    "LovaszLoss": "the largest error",
    "CorrelationMaximizedStructuralSimilarityLoss": "a mean over the voxels that differ",
    "CenterlineBoundaryDiceLoss": "below 0.5 there is no skeleton",
    "CenterlineDiceLoss": "a thicker block may have a shorter skeleton",
    "TopologicalInteractionLoss": "what touches nothing that it must not",
    "SkeletonRecallLoss": "a recall",
}


def false_positive(case: LossCase, sure: float, voxels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input that is right but for class 2, which the labels lack; the labels; and where class 2 is predicted."""
    labels = torch.zeros(1, 1, 6, 6, dtype=torch.int64)
    labels[..., 3:] = 1
    where = torch.zeros(6, 6, dtype=torch.bool)
    where[:, :3] = torch.arange(18).view(6, 3) < voxels  # a block that grows row by row, in class 0
    p = one_hot(labels, 3, torch.float64)
    p[0, 2, where] = sure
    if case.activation != "sigmoid":
        p[0, 0, where] = 1 - sure
    if case.entry.raw_scores:
        return 6 * p - 3, labels, where
    scores = {"softmax": p.log(), "sigmoid": p.logit(), "none": p}[case.activation]
    return scores.clamp(-80, 80), labels, where


@every_case(long=True)
def test_a_false_positive_of_an_absent_class_costs_more_the_more_is_predicted(case: LossCase) -> None:
    if case.variant in ("skip", "range") or "label_smoothing" in case.options:
        pytest.skip("left out, or of weight 0 as in the paper, or right in no case")
    if case.activation == "none" and case.entry.name in ("FusedDiceCELoss", "FusedDiceFocalLoss"):
        pytest.skip("probabilities are no scores")
    of_true_class = case.entry.family == "distribution" and not case.entry.every_channel
    of_true_class |= case.entry.name == "ExponentialLogarithmicLoss"
    reads_class = case.activation != "none" or not of_true_class  # else what is missing from the true class

    def cost(sure: float, voxels: int) -> float:
        scores, labels, where = false_positive(case, sure, voxels)
        value, gradient = value_and_gradient(case(), scores, labels)
        if voxels and case.entry.name not in NOT_SURER:
            assert gradient[0, 2 if reads_class else 0, where].abs().max() > 0
        return value.item()

    nothing = cost(0.0, 0)
    if case.entry.smallest is not None:
        assert 0 <= nothing <= case.entry.smallest
    surer = [nothing, *(cost(sure, 6) for sure in (0.02, 0.1, 0.3, 0.6, 0.9))]
    more = [nothing, *(cost(0.5, voxels) for voxels in (1, 3, 6, 12, 18))]
    assert surer == sorted(set(surer)) or case.entry.name in NOT_SURER, surer
    assert more == sorted(set(more)) or case.entry.name in NOT_MORE, more


@every_case(accepts="absent_class")
def test_skip_leaves_an_absent_class_out(case: LossCase) -> None:
    """Whatever is predicted of it: under a softmax the others see what is missing from them."""
    if case.activation == "softmax" or case.entry.family == "compound":
        pytest.skip("the class is read by the others too, or by a cross-entropy")
    loss = case(absent_class="skip")
    scores, labels, where = false_positive(case, 0.0, 0)
    other = scores.clone()
    other[0, 2, where.logical_not()] = 0.4
    expected = value_and_gradient(loss, scores, labels)
    got = value_and_gradient(loss, other, labels)
    assert_same(got, expected, atol=0, rtol=0)
    assert (got[1][0, 2] == 0).all()
    assert loss(torch.full_like(scores, 0.5), torch.zeros_like(labels)) >= 0


def test_only_the_other_part_of_a_compound_sees_an_absent_class() -> None:
    scores, labels = torch.randn(2, 3, 4, 5), torch.zeros(2, 1, 4, 5)
    options = {"to_onehot_y": True, "softmax": True, "include_background": False}
    compound = FusedDiceCELoss(absent_class="skip", **options)
    only_ce = CrossEntropyLoss(to_onehot_y=True, softmax=True)
    assert_same(value_and_gradient(compound, scores, labels), value_and_gradient(only_ce, scores, labels))


# --- weights ---


@every_mechanism(accepts="weight", long=True)
@each("kind", ["number", "list", "tuple", "tensor", "integers"])
def test_weight_is_never_mutated(case: LossCase, kind: str) -> None:
    values = [1.0, 2.0, 3.0]
    weight = {
        "number": 2.0,
        "list": values,
        "tuple": tuple(values),
        "tensor": torch.tensor(values),
        "integers": [1, 2, 3],
    }
    given = weight[kind]
    before = copy.deepcopy(given)
    loss = case(weight=given)
    state = {name: buffer.clone() for name, buffer in loss.state_dict().items()}
    assert state, "a weight belongs to the state"
    scores = case.scores(*SHAPE)
    labels = labels_like(scores)
    first = value_and_gradient(loss, scores, labels)
    assert_same(value_and_gradient(loss, scores, labels), first, atol=0, rtol=0)
    assert torch.equal(torch.as_tensor(given), torch.as_tensor(before))
    for name, buffer in loss.state_dict().items():
        assert buffer.shape == state[name].shape
        assert torch.equal(buffer, state[name])
    expected = value_and_gradient(case(weight=torch.as_tensor(before, dtype=torch.float32)), scores, labels)
    assert_same(first, expected, atol=0, rtol=0)


def test_a_weight_tensor_is_copied() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    loss = FusedDiceLoss(to_onehot_y=True, softmax=True, weight=weight)
    scores = torch.randn(SHAPE)
    before = loss(scores, labels_like(scores))
    weight.zero_()
    assert loss(scores, labels_like(scores)) == before


@every_case(variants=False, family="region", only=lambda entry: entry.mean_over == "pairs")
def test_region_weight_multiplies_each_class_kept(case: LossCase) -> None:
    scores = case.scores(*SHAPE)
    labels = labels_like(scores)
    each = case(reduction="none")(scores, labels)
    weight = torch.tensor([0.5, 2.0, 3.0])
    weighted = each * weight.view(1, 3, 1, 1, 1)
    torch.testing.assert_close(case(weight=weight)(scores, labels), weighted.mean(), **CLOSE)
    torch.testing.assert_close(case(weight=weight, reduction="sum")(scores, labels), weighted.sum(), **CLOSE)
    foreground = case(weight=weight[1:], include_background=False)(scores, labels)
    torch.testing.assert_close(foreground, weighted[:, 1:].mean(), **CLOSE)
    torch.testing.assert_close(case(weight=2.0)(scores, labels), 2 * each.mean(), **CLOSE)


@every_mechanism(accepts="weight")
def test_weight_of_the_wrong_length_is_refused(case: LossCase) -> None:
    scores = case.scores(*SHAPE)
    with pytest.raises(ValueError, match=r"weight.*(number of|expected).*(classes|channels|numbers)"):
        case(weight=[1.0, 2.0])(scores, labels_like(scores))


def test_a_wrong_number_of_weights_is_told_what_the_loss_takes() -> None:
    """Without background Dice takes one less than Dice + CE."""
    scores, labels = torch.randn(SHAPE), torch.zeros(2, 1, *SHAPE[2:])
    options = {"to_onehot_y": True, "include_background": False}
    with_background = "classes, with the background, which only Dice leaves out: expected 3 numbers, got 2"
    kept_alone = "the weight should not include the background category class 0: expected 2 numbers, got 3"
    all_classes = r"should be the same as the number of classes: expected 3 numbers, got 2\."
    told: list[tuple[nn.Module, str]] = []
    for activation in ("softmax", "sigmoid"):
        told.append((FusedDiceCELoss(weight=[1.0, 2.0], **options, **{activation: True}), with_background))
        told.append((FusedDiceLoss(weight=[1.0, 2.0, 3.0], **options, **{activation: True}), kept_alone))
    told.append((CrossEntropyLoss(weight=[1.0, 2.0, 3.0], sigmoid=True, **options), kept_alone))
    with pytest.warns(UserWarning, match="no effect"):
        told.append((CrossEntropyLoss(weight=[1.0, 2.0], softmax=True, **options), all_classes))
    told.append((FusedDiceLoss(weight=[1.0, 2.0], softmax=True, to_onehot_y=True), all_classes))
    for loss, match in told:
        with pytest.raises(ValueError, match=match):
            loss(scores, labels)


@every_loss(accepts="weight")
def test_bad_weights_are_refused(entry: LossEntry) -> None:
    with pytest.raises(ValueError, match="no less than 0"):
        entry.make(weight=[1.0, -2.0, 3.0])
    with pytest.raises(ValueError, match="no less than 0"):
        entry.make(weight=-1.0)
    with pytest.raises(ValueError, match=r"expected a weight of one number or one per class, got shape \(2, 2\)"):
        entry.make(weight=torch.ones(2, 2))
    with pytest.raises(ValueError, match="weight"):
        entry.make(weight=[1.0, math.nan, 3.0])

    for number in (math.inf, [1.0, math.inf, 3.0], torch.tensor([1.0, 2.0, math.inf])):
        with pytest.raises(
            ValueError, match=r"expected weight to be finite, got .*inf.*: give a class that never occurs"
        ):
            entry.make(weight=number)
    with pytest.raises(ValueError, match="expected a weight without gradient, got one that requires it"):
        entry.make(weight=nn.Parameter(torch.ones(3)))


@every_mechanism(accepts="weight", long=True)
def test_weights_keep_their_digits(case: LossCase) -> None:
    """In float64, and in a module that is cast to another precision: a half has no 1e-8 and no 1e5."""
    if case.entry.extended:
        pytest.skip("0 where every error is small")
    scores = case.scores(*SHAPE, dtype=torch.float64)
    labels = labels_like(scores)
    weight = torch.tensor([1 / 3, 1e5 / 7, 1e-8], dtype=torch.float64)
    for reduction in case.entry.reductions:
        loss = case(reduction=reduction, weight=weight)
        expected = value_and_gradient(loss, scores, labels)
        rounded = value_and_gradient(case(reduction=reduction, weight=weight.float()), scores, labels)
        assert not torch.equal(expected[0], rounded[0]), "weights that went through float32"
        assert_same(expected, rounded, atol=1e-6, rtol=1e-6)
        state = loss.state_dict()
        for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.float, lambda module: module.to(torch.float16)):
            module = cast(nn.Sequential(case(reduction=reduction, weight=weight)))
            got = value_and_gradient(module[0], scores, labels)
            torch.testing.assert_close(got, expected, atol=0, rtol=0)
            module[0].load_state_dict(state)
            assert all(torch.equal(module[0].state_dict()[name], buffer) for name, buffer in state.items())
        half = value_and_gradient(loss, scores.half(), labels)
        assert half[0].isfinite().all(), "weights that went through float16"


def test_class_frequencies_keep_their_digits() -> None:
    scores = torch.randn(SHAPE, dtype=torch.float64)
    labels = labels_like(scores)
    loss = ExponentialLogarithmicLoss(to_onehot_y=True, softmax=True, class_frequencies=[1e9, 7e8, 1 / 3])
    expected = loss(scores, labels)
    assert loss.half()(scores, labels) == expected
    rounded = torch.tensor([1e9, 7e8, 1 / 3])
    other = ExponentialLogarithmicLoss(to_onehot_y=True, softmax=True, class_frequencies=rounded)
    assert other(scores, labels) != expected


def test_weights_move_with_their_module() -> None:
    loss = CrossEntropyLoss(to_onehot_y=True, softmax=True, weight=[1.0, 1e-8])
    assert loss.to("meta").class_weight.device.type == "meta"
    assert loss.to_empty(device="cpu").class_weight.shape == (2,)


# --- labels ---

INTEGER_DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32]
FLOAT_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@every_mechanism(long=True)
def test_labels_of_any_dtype(case: LossCase) -> None:
    scores = case.scores(*SHAPE)
    labels = labels_like(scores)
    for reduction in case.entry.unlike_reductions:
        expected = value_and_gradient(case(reduction=reduction), scores, labels)
        for dtype in INTEGER_DTYPES + FLOAT_DTYPES:
            got = value_and_gradient(case(reduction=reduction), scores, labels.to(dtype))
            torch.testing.assert_close(got, expected, atol=0, rtol=0)


@every_mechanism(only=lambda entry: entry.axis_of_one, long=True)  # windows of 300 classes take long
@each(
    ("num_classes", "dtype", "largest"),
    [(257, torch.uint8, 255), (129, torch.int8, 127), (256, torch.uint8, 255), (301, torch.bfloat16, 256)],
)
def test_more_classes_than_a_dtype_has_numbers(
    case: LossCase, num_classes: int, dtype: torch.dtype, largest: int
) -> None:
    scores = case.scores(1, num_classes, 2, 3)
    labels = labels_like(scores) % 128
    labels[0, 0, 0, 0] = largest
    expected = value_and_gradient(case(), scores, labels)
    torch.testing.assert_close(value_and_gradient(case(), scores, labels.to(dtype)), expected, atol=0, rtol=0)
    wrong = {torch.int8: -1, torch.bfloat16: 302}.get(dtype)
    if wrong is not None:
        labels[0, 0, 0, 0] = wrong
        with pytest.raises(ValueError, match=rf"expected whole labels in 0\.\.{num_classes - 1} .*, got {wrong}"):
            case()(scores, labels.to(dtype))


@every_mechanism()
def test_bool_labels(case: LossCase) -> None:
    scores = case.scores(2, 2, 4, 5)
    labels = labels_like(scores)
    expected = value_and_gradient(case(), scores, labels)
    torch.testing.assert_close(value_and_gradient(case(), scores, labels.bool()), expected, atol=0, rtol=0)
    scores = case.scores(2, 1, 4, 5)
    options = {"to_onehot_y": False, **({"softmax": False} if case.entry.accepts("softmax") else {})}
    if case.activation == "softmax" or case.entry.name == "CategoricalHingeLoss":
        return
    expected = value_and_gradient(case(**options), scores, labels.float())
    torch.testing.assert_close(value_and_gradient(case(**options), scores, labels.bool()), expected, atol=0, rtol=0)


@every_mechanism()
@each(
    ("ignore_index", "dtype", "there"),
    [(-1, torch.uint8, 255), (300, torch.uint8, 44), (255, torch.int8, -1), (-1, torch.bool, 1)],
)
def test_ignore_index_does_not_wrap_around(case: LossCase, ignore_index: int, dtype: torch.dtype, there: int) -> None:
    scores = case.scores(2, 2, 4, 5)
    labels = labels_like(scores)
    if dtype == torch.bool:
        expected = value_and_gradient(case(), scores, labels)
        assert_same(value_and_gradient(case(ignore_index=ignore_index), scores, labels.bool()), expected)
        return
    labels = labels.to(dtype)
    labels[0, 0, 1, 1] = there
    with pytest.raises(ValueError, match=rf"expected whole labels in 0\.\.1 .*got {there}"):
        case(ignore_index=ignore_index)(scores, labels)


WRONG_LABELS: dict[str, list[float]] = {
    "negative": [-1],
    "just too large": [],  # the number of classes
    "too large": [12],
    "much too large": [1e5],
    "fractional": [1.5],
    "a little fractional": [1 + 2**-20],
    "fractional below zero": [-0.5],
    "fractional on both sides of zero": [-0.5, 0.5],
    "fractions that add up": [0.5, 1.5],
    "too large and fractional": [2.5],
    "NaN": [math.nan],
    "infinite": [math.inf],
    "minus infinite": [-math.inf],
    "ignored and too large": [255, 256],
}


@every_mechanism(long=True)
@each("num_classes", [2, 3, 12])
@each("wrong", WRONG_LABELS)
def test_wrong_labels_are_refused(case: LossCase, wrong: str, num_classes: int) -> None:
    scores = case.scores(2, num_classes, 4, 5)
    labels = labels_like(scores, dtype=torch.float32)
    values = [num_classes] if wrong == "just too large" else WRONG_LABELS[wrong]
    labels[1, 0, 2, : len(values)] = torch.tensor(values)
    options = {"ignore_index": 255} if "ignored" in wrong else {}
    hint = "remap them, give the network more channels, or set ignore_index"
    if "fraction" in wrong or "infinite" in wrong or wrong == "NaN":
        hint = "resample labels with mode='nearest'"
    expected = rf"expected whole labels in 0\.\.{num_classes - 1} \(input has {num_classes} channels\)"
    for reduction in case.entry.unlike_reductions:
        with pytest.raises(ValueError, match=rf"^{expected}.*, got .*: {hint}\.$"):
            case(reduction=reduction, **options)(scores, labels)


@every_mechanism()
@each("num_classes", [2, 3, 12])
def test_wrong_integer_labels_are_refused(case: LossCase, num_classes: int) -> None:
    scores = case.scores(2, num_classes, 4, 5, 3)
    for dtype, value in ((torch.uint8, 200), (torch.int64, -1), (torch.int32, num_classes), (torch.int64, 2**40)):
        labels = labels_like(scores, dtype=dtype)
        labels[1, 0, 1, 1, 1] = value
        expected = rf"expected whole labels in 0\.\.{num_classes - 1} .*got {value:g}".replace("+", r"\+")
        with told(dtype, value), pytest.raises(ValueError, match=expected):
            case()(scores, labels)


@every_mechanism(activations=("sigmoid", "none"))
@each("value", [2.0, 255.0, -1.0, math.nan])
@each("num_classes", [1, 3])
def test_targets_of_channels_outside_zero_to_one_are_refused(case: LossCase, num_classes: int, value: float) -> None:
    if case.entry.name == "CategoricalHingeLoss" and num_classes == 1:
        pytest.skip("wants at least two channels")
    scores = case.scores(2, num_classes, 4, 5)
    target = one_hot(labels_like(scores), num_classes)
    target[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match=r"expected a target of . channel.* with values in \[0, 1\], got"):
        case(to_onehot_y=False)(scores, target)


# --- precision ---


@every_mechanism(long=True)
@each("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_float32_value(case: LossCase, dtype: torch.dtype) -> None:
    scores = case.scores(1, 2, 48, 48, 48, dtype=dtype)  # more voxels than the largest half
    labels = torch.zeros(1, 1, 48, 48, 48, dtype=torch.uint8)
    labels[..., :15] = 1
    value, gradient = value_and_gradient(case(), scores, labels)
    expected, expected_gradient = value_and_gradient(case(), scores.float(), labels)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    # The value of the rounded input is exact; the gradient is stored in half, where small numbers are few.
    torch.testing.assert_close(value, expected, atol=0, rtol=1e-6)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.float(), expected_gradient, atol=float(smallest), rtol=torch.finfo(dtype).eps)


@every_case(variants=False, only=lambda entry: not entry.extended, long=True)
def test_float64_in_float64_out(case: LossCase) -> None:
    scores = case.scores(*SHAPE, dtype=torch.float64)
    labels = labels_like(scores)
    for reduction in case.entry.reductions:
        value, gradient = value_and_gradient(case(reduction=reduction), scores, labels)
        assert value.dtype == gradient.dtype == torch.float64
        single, single_gradient = value_and_gradient(case(reduction=reduction), scores.float(), labels)
        assert single.dtype == single_gradient.dtype == torch.float32
        assert_same((single, single_gradient), (value.float(), gradient.float()))
        assert not torch.equal(single.double(), value), "float64 that went through float32"


@every_mechanism(long=True)
@each("target_kind", ["labels", "onehot"])
@each("num_classes", [2, 3])
def test_autocast_changes_nothing(case: LossCase, num_classes: int, target_kind: str) -> None:
    scores = case.scores(2, num_classes, 16, 17)
    labels, mask = labels_like(scores), torch.rand(2, 1, 16, 17)
    target = labels if target_kind == "labels" else one_hot(labels, num_classes)
    loss = case(to_onehot_y=target_kind == "labels", **case.weighted([0.5, 2.0, 3.0][:num_classes]))
    for data in ((scores, target), (scores, target, mask)):
        expected = value_and_gradient(loss, *data)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = value_and_gradient(loss, *data)
        assert got[0].dtype == torch.float32
        assert_same(got, expected)


@every_mechanism()
def test_result_type(case: LossCase) -> None:
    scores = case.scores(*SHAPE, dtype=torch.bfloat16)
    value = case()(scores, labels_like(scores))
    assert type(value) is Tensor
    assert value.shape == ()
    assert value.dtype == torch.float32


# --- memory formats ---


def strided_versions(tensor: Tensor) -> dict[str, Tensor]:
    """The same numbers in other memory formats."""
    spatial = tensor.ndim - 2
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    backwards = tuple(reversed(range(tensor.ndim)))
    padded = torch.full([n + 2 for n in tensor.shape], 77).to(tensor.dtype)
    inner = padded[tuple(slice(1, -1) for _ in tensor.shape)]
    inner.copy_(tensor)
    stepped = tensor.repeat_interleave(2, -1)[..., ::2]
    last_first = tensor.transpose(2, -1).contiguous().transpose(2, -1)
    return {
        "channels_last": tensor.contiguous(memory_format=formats[spatial]),
        "transposed": tensor.permute(backwards).contiguous().permute(backwards),
        "spatial axes swapped": last_first,
        "slice": inner,
        "every second": stepped,
        "batch inside": tensor.transpose(0, 1).contiguous().transpose(0, 1),
    }


@every_mechanism(long=True)
@each("shape, target_kind", [((2, 2, 4, 6), "labels"), ((2, 3, 4, 5, 3), "labels"), ((2, 3, 4, 5, 3), "onehot")])
def test_memory_formats(case: LossCase, shape: tuple[int, ...], target_kind: str) -> None:
    scores = case.scores(*shape)
    labels = labels_like(scores)
    target = labels if target_kind == "labels" else one_hot(labels, shape[1])
    mask = torch.rand(2, 1, *shape[2:])
    versions = [strided_versions(tensor) for tensor in (scores, target, mask)]
    for reduction in case.entry.unlike_reductions:
        loss = case(reduction=reduction, to_onehot_y=target_kind == "labels")
        expected = value_and_gradient(loss, scores, target, mask)
        for name in versions[0]:
            x, t, m = (version[name] for version in versions)
            apart = [(x, target, mask), (scores, t, mask), (scores, target, m)] if reduction == "mean" else []
            for data in (*apart, (x, t, m)):
                assert_same(value_and_gradient(loss, *data), expected)
            assert torch.equal(x, scores), "the input was written to"


@every_mechanism()
def test_expanded_tensors(case: LossCase) -> None:
    scores = case.scores(1, 3, 4, 5).expand(2, 3, 4, 5)
    labels, mask = labels_like(scores[:1]).expand(2, 1, 4, 5), torch.rand(1, 1, 4, 1).expand(2, 1, 4, 5)
    expected = value_and_gradient(case(), scores.contiguous(), labels.contiguous(), mask.contiguous())
    value = case()(scores.detach().requires_grad_(), labels, mask)
    torch.testing.assert_close(value.detach(), expected[0], **CLOSE)
    leaf = scores[:1].clone().requires_grad_()
    case()(leaf.expand(2, 3, 4, 5), labels, mask).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected[1].sum(0, keepdim=True), **CLOSE)


@every_mechanism()
def test_meta_tensors_in_plain_tensor_out(case: LossCase) -> None:
    scores = case.scores(*SHAPE)
    labels, mask = labels_like(scores, dtype=torch.float32), torch.rand(2, 1, *SHAPE[2:])
    for reduction in case.entry.unlike_reductions:
        loss = case(reduction=reduction)
        expected = value_and_gradient(loss, scores, labels, mask)
        meta = MetaTensor(scores.clone()).requires_grad_()
        value = loss(meta, MetaTensor(labels), MetaTensor(mask))
        assert type(value) is Tensor
        got = value_and_gradient(loss, MetaTensor(scores), MetaTensor(labels), MetaTensor(mask))
        torch.testing.assert_close(got[0], expected[0], atol=0, rtol=0)
        torch.testing.assert_close(torch.Tensor(got[1]), expected[1], atol=0, rtol=0)


# --- numbers that are none, or at the end of their range ---


@every_case(variants=False, long=True)
@each("num_classes", [1, 2, 3, 12])
def test_nan_in_a_voxel_that_counts_is_nan(case: LossCase, num_classes: int) -> None:
    if num_classes == 1 and (case.activation == "softmax" or case.entry.name == "CategoricalHingeLoss"):
        pytest.skip("wants at least two channels")
    scores = case.scores(2, num_classes, 4, 5)
    labels = labels_like(scores)
    one, channel = scores.clone(), scores.clone()
    one[1, :, 2, 3], channel[1, -1, 2, 3] = math.nan, math.nan
    mask = torch.ones(2, 1, 4, 5)
    mask[1, 0, 0] = 0
    targets = [one_hot(labels, num_classes) if num_classes > 1 else labels.float()] if num_classes < 4 else []
    for target in (*targets, *([labels] if num_classes > 1 else [])):
        for reduction in case.entry.unlike_reductions:
            loss = case(reduction=reduction, to_onehot_y=target is labels)
            everywhere = torch.full_like(scores, math.nan)
            for spoilt, *data in ((one, target), (one, target, mask), (channel, target), (everywhere, target, mask)):
                value = loss(spoilt, *data)
                assert value.isnan().any()
                if reduction == "none" and spoilt is everywhere:
                    assert value.isnan().sum() == value.numel() - (value == 0).sum(), "a number from NaN"
                elif reduction == "none":
                    assert value[0].isfinite().all(), "NaN in another sample"


@every_case(accepts="absent_class")
def test_nan_does_not_pass_for_an_absent_class(case: LossCase) -> None:
    scores, labels = torch.full((2, 3, 4, 5), math.nan), torch.zeros(2, 1, 4, 5)
    for batch in ({}, {"batch": True}) if case.entry.accepts("batch") else ({},):
        for reduction in case.entry.reductions:
            loss = case(reduction=reduction, absent_class="skip", include_background=False, **batch)
            assert loss(scores, labels).isnan().any()


def test_nan_does_not_pass_for_a_class_of_weight_zero() -> None:
    scores, labels = torch.full((2, 3, 4, 5), math.nan), torch.zeros(2, 1, 4, 5)
    assert CrossEntropyLoss(to_onehot_y=True, softmax=True, weight=[0.0, 1.0, 1.0])(scores, labels).isnan()


def masked_classes(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores of -inf where a class is not the true one, one voxel with no other class, one with p_t below 1e-30."""
    true = one_hot(labels, scores.shape[1]) > 0
    scores = scores.clone()
    scores[1, :, 2, 3] = torch.where(true[1, :, 2, 3], -100.0, scores[1, :, 2, 3])
    masked = scores.masked_fill(~true & (torch.rand(scores.shape) < 0.4), -math.inf)
    masked[0, :, 1, 1] = torch.where(true[0, :, 1, 1], masked[0, :, 1, 1], -math.inf)
    return masked


@every_case(variants=False, long=True)
@each("num_classes", [2, 3, 10, 12])
def test_masked_classes_infect_nothing(case: LossCase, num_classes: int) -> None:
    """Scores of -inf in float32 are as very small ones in float64, computed by the definitions."""
    if "label_smoothing" in case.options or (case.activation == "none" and not case.entry.raw_scores):
        pytest.skip("every class has a share in its loss, or probabilities")
    scores = case.scores(2, num_classes, 4, 5)
    labels = labels_like(scores)
    masked = masked_classes(scores, labels)
    target = one_hot(labels, num_classes, torch.float64)
    for reduction in case.entry.unlike_reductions:
        # A categorical margin grows with what is far below; the wrong side of a hinge ends at its margin.
        finite = masked.double().clamp_min(-1e4)
        expected = value_and_gradient(case(reduction=reduction, to_onehot_y=False), finite, target)
        for labelled, given in ((True, labels), (False, target.float())):
            value, gradient = value_and_gradient(case(reduction=reduction, to_onehot_y=labelled), masked, given)
            torch.testing.assert_close(value.double(), expected[0], atol=1e-6, rtol=1e-5)
            scale = expected[1].abs().max().clamp_min(1e-3)
            torch.testing.assert_close(gradient.double() / scale, expected[1] / scale, atol=2e-5, rtol=1e-5)
            assert (gradient[masked.isinf()] == 0).all()


@every_case(variants=False, long=True)
@each("num_classes", [2, 3, 12])
def test_an_infinite_loss_is_infinite(case: LossCase, num_classes: int) -> None:
    """Where the true class itself is masked: inf, as in torch, where the formula is; of its own voxel alone."""
    if case.activation == "none" and not case.entry.raw_scores:
        pytest.skip("probabilities, whose logarithm is finite")
    scores = case.scores(2, num_classes, 4, 5)
    labels = labels_like(scores)
    scores[1, labels[1, 0, 2, 3], 2, 3] = -math.inf
    target = one_hot(labels, num_classes, torch.float64)
    for reduction in case.entry.unlike_reductions:
        expected = case(reduction=reduction, to_onehot_y=False)(scores.double(), target)
        assert not expected.isnan().any()
        for labelled, given in ((True, labels), (False, target.float())):
            value = case(reduction=reduction, to_onehot_y=labelled)(scores, given)
            torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-5)


@every_case(variants=False, long=True)
@each(("largest", "dtype"), [(1e4, torch.float16), (65504, torch.float16), (1e30, torch.float32)])
@each("num_classes", [2, 3, 12])
def test_large_scores(case: LossCase, num_classes: int, largest: float, dtype: torch.dtype) -> None:
    if case.activation == "none" and not case.entry.raw_scores:
        pytest.skip("probabilities")
    if case.entry.name == "SquaredHingeLoss" and largest > 1e4:
        pytest.skip("the square is above float32, or its gradient above float16")
    scores = case.scores(2, num_classes, 4, 5)
    labels = labels_like(scores)
    scores = (largest * torch.where(scores.abs() < 0.3, 0, scores.sign())).to(dtype)
    for reduction in case.entry.unlike_reductions:
        expected = value_and_gradient(case(reduction=reduction), scores.double(), labels)
        value, gradient = value_and_gradient(case(reduction=reduction), scores, labels)
        assert expected[1].isfinite().all()
        # The logarithms of scores of this size lose what the scores have below their own last digit.
        atol = 1e-6 * expected[0].abs().max().clamp_min(1).item()
        torch.testing.assert_close(value.double(), expected[0], atol=atol, rtol=1e-5)
        if case.entry.name in ("HausdorffERLoss", "AverageCalibrationLoss"):
            continue  # means lie on the kink of an erosion, or are those of the target: either slope is right
        scale = expected[1].abs().max().clamp_min(1e-3)
        rounding = torch.finfo(dtype).eps
        torch.testing.assert_close(
            gradient.double() / scale, expected[1] / scale, atol=rounding + 5e-5, rtol=2 * rounding + 1e-5
        )


@every_mechanism(activations=("none",), accepts="other_act")
@each("dtype", [torch.float16, torch.bfloat16])
def test_an_activation_of_half_precision_gives_the_float32_value(case: LossCase, dtype: torch.dtype) -> None:
    scores = (8 * torch.randn(2, 3, 4, 5)).to(dtype)
    labels = labels_like(scores)
    for reduction in case.entry.reductions:
        loss = case(reduction=reduction, other_act=torch.sigmoid)
        value, gradient = value_and_gradient(loss, scores, labels)
        expected, expected_gradient = value_and_gradient(loss, scores.float(), labels)
        torch.testing.assert_close(value, expected, atol=0, rtol=1e-6)
        rounding = torch.finfo(dtype).eps * expected_gradient.abs().max().item()
        torch.testing.assert_close(gradient.float(), expected_gradient, atol=rounding, rtol=0)


# --- shapes ---


@every_mechanism()
@each("spatial", [(7,), (4, 5), (3, 4, 5), (1,), (1, 1, 1), (5, 1), (1, 5, 1)])
def test_one_two_and_three_dimensions(case: LossCase, spatial: tuple[int, ...]) -> None:
    scores = case.scores(2, 3, *spatial, dtype=torch.float64)
    labels = labels_like(scores)
    if not case.entry.axis_of_one and 1 in spatial:
        with pytest.raises(ValueError, match="expected at least 2 voxels per axis"):
            case()(scores, labels)
        return
    if case.entry.reads_neighbours:
        assert all(result.isfinite().all() for result in value_and_gradient(case(), scores, labels))
        return
    expected = value_and_gradient(case(), scores.flatten(2), labels.flatten(2))
    got = value_and_gradient(case(), scores, labels)
    assert_same((got[0], got[1].flatten(2)), expected)


def test_shapes_are_refused_with_a_sentence() -> None:
    loss = FusedDiceLoss(to_onehot_y=True, softmax=True)
    scores = torch.randn(2, 3, 8, 8)
    labels, one_hot_target = torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8)
    with pytest.raises(ShapeMismatchError, match=r"expected target \(2, 1, 8, 8\), got \(2, 8, 8\): add the channel"):
        loss(scores, labels[:, 0])
    with pytest.raises(ShapeMismatchError, match=r"got \(2, 3, 8, 8\): a one-hot target wants to_onehot_y=False"):
        loss(scores, one_hot_target)
    with pytest.raises(ShapeMismatchError, match=r"got \(2, 1, 8, 8\): for a target of labels set to_onehot_y=True"):
        FusedDiceLoss(softmax=True)(scores, labels)
    with pytest.raises(AssertionError, match="ground truth has different shape"):
        loss(scores, labels[..., :7])


@every_loss()
def test_every_loss_refuses_what_it_cannot_read(entry: LossEntry) -> None:
    loss = entry.make()
    scores = torch.randn(2, 3, 8, 8)
    labels = torch.zeros(2, 1, 8, 8)
    refused: list[tuple[Any, type[Exception], str]] = [
        ((scores, labels[:1]), ShapeMismatchError, r"expected target \(2, 1, 8, 8\), got \(1, 1, 8, 8\)"),
        ((scores, labels[..., :4]), ShapeMismatchError, r"expected target \(2, 1, 8, 8\), got \(2, 1, 8, 4\)"),
        ((scores, labels[:, 0]), ShapeMismatchError, r"add the channel axis with target.unsqueeze\(1\)"),
        ((scores, labels, labels[:, 0].bool()), ShapeMismatchError, r"expected mask \(2, 1, 8, 8\) for input"),
        ((scores, labels, torch.ones(2, 3, 8, 8)), ShapeMismatchError, r"expected mask \(2, 1, 8, 8\) for input"),
        ((scores, labels, labels.long()), TypeError, "expected a bool or floating-point mask, got torch.int64"),
        ((scores, labels.numpy()), TypeError, "expected target to be a tensor, got ndarray"),
        ((scores, None), TypeError, "expected target to be a tensor, got NoneType"),
        ((scores.long(), labels), TypeError, "expected a floating-point input, got torch.int64"),
        ((scores[0], labels[0]), ValueError, "expected (input|target)"),
        ((scores[..., None, None], labels[..., None, None]), ValueError, "1 to 3 spatial axes|0 to 3 spatial axes"),
        ((scores, labels.clone().requires_grad_()), ValueError, "expected a target without gradient"),
        ((scores, labels + 0j), TypeError, r"expected a real target, got torch.complex64: try target.real"),
        ((scores, labels, labels + 0j), TypeError, "expected a bool or floating-point mask, got torch.complex64"),
        ((scores + 0j, labels), TypeError, "expected a floating-point input, got torch.complex64"),
    ]
    for arguments, error, match in refused:
        with pytest.raises(error, match=match):
            loss(*arguments)


@every_loss()
@each("shape", [(2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0), (0, 0, 4), (2, 3, 0), (2, 3, 4, 5, 0)])
def test_no_channel_and_no_voxel_are_refused(entry: LossEntry, shape: tuple[int, ...]) -> None:
    scores = torch.zeros(shape)
    for reduction in entry.reductions:
        loss = entry.make(reduction=reduction)
        with pytest.raises(ValueError, match=rf"expected an input with channels and voxels, got shape \({shape[0]}, "):
            loss(scores, scores[:, :1] if shape[1] else scores)


@every_mechanism(long=True)
@each("num_classes", [1, 2, 12])
def test_an_empty_batch_costs_nothing(case: LossCase, num_classes: int) -> None:
    """As a batch in which everything is ignored."""
    if num_classes == 1 and (case.activation == "softmax" or case.entry.name == "CategoricalHingeLoss"):
        pytest.skip("wants at least two channels")
    scores, labels, mask = torch.zeros(0, num_classes, 4, 5), torch.zeros(0, 1, 4, 5), torch.zeros(0, 1, 4, 5)
    changes = ({}, {"batch": True}, {"smooth_nr": 0.0, "smooth_dr": 0.0}, {"absent_class": "skip"}, {"weight": 2.0})
    for more in (change for change in changes if all(map(case.entry.accepts, change))):
        for target in (labels, torch.zeros(scores.shape)):
            for data in ((target,), (target, mask)):
                for reduction in case.entry.reductions:
                    loss = case(reduction=reduction, to_onehot_y=target is labels, **more)
                    leaf = scores.clone().requires_grad_()
                    value = loss(leaf, *data)
                    assert (value == 0).all(), (more, reduction)
                    if reduction == "none":
                        has_map = case.entry.family in ("distribution", "compound")
                        assert value.shape[0] == (1 if "batch" in more and not has_map else 0)
                    else:
                        assert value.shape == ()
                    (gradient,) = torch.autograd.grad(value.sum(), leaf)
                    assert gradient.shape == scores.shape


OPTIONS = {
    name: {option: parameter.default for option, parameter in inspect.signature(loss).parameters.items()}
    for name in losses.__all__
    if isinstance(loss := getattr(losses, name), type) and issubclass(loss, SegmentationLoss)
}
NUMBERS = {"weight": 1.0, "alpha": 0.5, "class_frequencies": 1.0}  # those that are None, or a number


@pytest.mark.parametrize("name", OPTIONS)
def test_numbers_are_finite_numbers(name: str) -> None:
    loss = getattr(losses, name)
    for option, default in OPTIONS[name].items():
        if option == "beta_range":
            wrong: list[Any] = [(0.05, math.nan), (0.05, math.inf), (-math.inf, 1.0), (0.05, -0.5)]
        elif option in NUMBERS or isinstance(default, float):
            wrong = [math.nan, math.inf, -math.inf, torch.tensor(math.nan), np.float32("inf")]
            wrong += [-2.0] if option != "epsilon" or name != "PolyLoss" else [-1.1]
        elif isinstance(default, int) and not isinstance(default, bool):
            wrong = [-2, 0]
        else:
            continue
        for value in wrong:
            with pytest.raises(ValueError, match=rf"{option}.*got|weight without gradient"):
                loss(**{option: value})
        for text in ("1e-5", True, [None]):
            with pytest.raises(TypeError, match=rf"expected {option} to be a (whole )?number, got"):
                loss(**{option: text})
    if "smooth_nr" in OPTIONS[name]:
        with pytest.raises(TypeError, match=r"got '1e-5': YAML reads 1e-5 as text, and 1\.0e-5 as a number"):
            loss(smooth_nr="1e-5")


@pytest.mark.parametrize("name", OPTIONS)
def test_flags_are_true_or_false(name: str) -> None:
    loss = getattr(losses, name)
    flags = {option: default for option, default in OPTIONS[name].items() if isinstance(default, bool)}
    assert {"include_background"} <= flags.keys()
    for option, default in flags.items():
        loss(
            **{**ENTRIES[name].required, option: np.bool_(default)} if name in ENTRIES else {option: np.bool_(default)}
        )
        for value in ("False", "True", 0, 1, None, 1.0):
            with pytest.raises(TypeError, match=f"expected {option} to be True or False, got {value!r}"):
                loss(**{option: value})


def test_an_alpha_that_turns_the_sign_is_refused() -> None:
    for alpha in (-0.1, 1.1):
        for loss in (FusedFocalLoss, FusedDiceFocalLoss):
            with pytest.raises(ValueError, match=rf"expected alpha in \[0, 1\], got {alpha}"):
                loss(alpha=alpha)
    with pytest.raises(ValueError, match=r"expected alpha of numbers >= 0, got \(0.5, -0.1\)"):
        FusedFocalLoss(alpha=[0.5, -0.1])


@every_loss()
def test_bad_options_are_refused(entry: LossEntry) -> None:
    with pytest.raises(ValueError, match="Unsupported reduction: average, available options are"):
        entry.make(reduction="average")
    with pytest.raises(TypeError, match="expected ignore_index to be an int or None, got 'background'"):
        entry.make(ignore_index="background")
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such_option'"):
        entry.make(no_such_option=1)
    if entry.accepts("absent_class"):
        with pytest.raises(ValueError, match=r"absent_class: drop, available options are \['smooth', 'skip'\]"):
            entry.make(absent_class="drop")
    for option in ("smooth_nr", "smooth_dr"):
        if entry.accepts(option):
            with pytest.raises(ValueError, match=f"{option} should be no less than 0.0, got -1.0"):
                entry.make(**{option: -1.0})
    if entry.accepts("softmax"):
        with pytest.raises(ValueError, match="Incompatible values: more than 1 of"):
            entry.make("softmax", sigmoid=True)
        with pytest.raises(TypeError, match="other_act must be None or callable but is str"):
            entry.make("none", other_act="relu")


@every_loss()
def test_signature_lists_every_option(entry: LossEntry) -> None:
    parameters = inspect.signature(entry.loss).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    shared = {"include_background", "to_onehot_y", "reduction", "weight", "ignore_index", "sync_batch"}
    region = {"batch", "smooth_nr", "smooth_dr", "absent_class", "soft_label"}
    wanted = shared | (region if entry.family == "region" else set())
    left_out = entry.loss.left_out.keys() | ({"weight"} if entry.name == "FusedGeneralizedDiceLoss" else set())
    assert wanted - left_out <= parameters.keys()
    assert not left_out & parameters.keys()
    assert entry.loss.__doc__
    background = "include_background" not in entry.options
    defaults = {"include_background": background, "to_onehot_y": False, "reduction": "mean", "ignore_index": None}
    assert {name: parameters[name].default for name in defaults} == defaults


@every_loss()
def test_an_unknown_option_is_refused_by_the_name_of_the_loss(entry: LossEntry) -> None:
    """Not by that of a base or a part, which nobody has heard of."""
    options = ", ".join(inspect.signature(entry.loss).parameters)
    with pytest.raises(
        TypeError, match=rf"^{entry.name}: got an unexpected keyword argument 'nothing'; its options are {options}\.$"
    ):
        entry.loss(nothing=1)
    with pytest.raises(TypeError, match=rf"^{entry.name}: too many positional arguments; its options are {options}\.$"):
        entry.loss(*[False] * 30)


class _Own(FusedDiceLoss):
    """A loss of somebody else, who hands options on."""

    def __init__(self, **options: Any) -> None:
        self_made = options.pop("self_made")
        super().__init__(**options)
        self.self_made = self_made


def test_a_subclass_may_have_options_of_its_own() -> None:
    loss = _Own(self_made=3, softmax=True)
    assert (loss.self_made, loss.softmax) == (3, True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        _Own(self_made=3, nothing=1)


@every_loss()
def test_an_option_without_meaning_is_refused_with_its_reason(entry: LossEntry) -> None:
    for option, reason in entry.loss.left_out.items():
        with pytest.raises(TypeError, match=f"^{entry.name} has no option '{option}': .*{reason[-20:]}"):
            entry.loss(**{option: None})


@every_case(variants=False)
def test_shape_of_reduction_none(case: LossCase) -> None:
    scores = case.scores(2, 3, 4, 5, 6)
    labels = labels_like(scores)
    if "none" not in case.entry.reductions:
        with pytest.raises(ValueError, match="expected reduction 'mean' or 'sum', got 'none'"):
            case(reduction="none")
        return
    if case.entry.family in ("region", "structure", "boundary"):
        for batch, include_background in ((False, True), (True, True), (False, False), (True, False)):
            if batch and not case.entry.accepts("batch"):
                continue
            pooled = {"batch": True} if batch else {}
            loss = case(reduction="none", include_background=include_background, **pooled)
            classes = (3 if include_background else 2) if case.entry.mean_over == "pairs" else 1
            assert loss(scores, labels).shape == (1 if batch else 2, classes, 1, 1, 1)
        return
    channels = 3 if case.entry.per_channel(case.activation) else 1
    assert case(reduction="none")(scores, labels).shape == (2, channels, 4, 5, 6)
    if channels == 3:
        assert case(reduction="none", include_background=False)(scores, labels).shape == (2, 2, 4, 5, 6)


@every_case(variants=False, long=True)
def test_mean_and_sum_are_those_of_none(case: LossCase) -> None:
    if "none" not in case.entry.reductions or case.entry.family == "compound" or case.entry.name == "TopKLoss":
        pytest.skip("no reduction='none', or one of parts, or unranked")
    scores = case.scores(*SHAPE)
    labels = labels_like(scores)
    for options in ({}, {"include_background": False}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            none, mean, total = (case(reduction=r, **options)(scores, labels) for r in ("none", "mean", "sum"))
        if case.entry.of_reduced:  # log(1 + x)
            none, mean, total = (torch.expm1(value) for value in (none, mean, total))
        torch.testing.assert_close(mean, none.mean(), **CLOSE)
        expected = none.mean((2, 3, 4)).sum() if case.entry.name == "FusedFocalLoss" else none.sum()
        torch.testing.assert_close(total, expected, atol=1e-6, rtol=2e-6)


@every_case(variants=False)
def test_include_background_false_drops_the_result_not_the_softmax(case: LossCase) -> None:
    if "none" not in case.entry.reductions:
        pytest.skip("no reduction='none'")
    if case.entry.family == "distribution" and not case.entry.per_channel(case.activation):
        pytest.skip("one result per voxel")
    if case.entry.family in ("region", "boundary") and case.entry.mean_over == "samples":
        pytest.skip("one result per sample")
    if "alpha" in case.options and case.activation == "softmax":
        pytest.skip("without background a scalar alpha has no effect")
    scores = case.scores(*SHAPE)
    labels = labels_like(scores)
    kept = case(reduction="none", include_background=False)(scores, labels)
    torch.testing.assert_close(kept, case(reduction="none")(scores, labels)[:, 1:], **CLOSE)


def test_include_background_warns_once_where_it_has_no_effect() -> None:
    options = {"to_onehot_y": True, "softmax": True, "include_background": False}
    with pytest.warns(UserWarning, match="`include_background=False` has no effect on CrossEntropyLoss") as caught:
        loss = CrossEntropyLoss(**options)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores, labels = torch.randn(2, 3, 4, 5), torch.ones(2, 1, 4, 5)
        assert loss(scores, labels) == CrossEntropyLoss(to_onehot_y=True, softmax=True)(scores, labels)
        FusedDiceCELoss(**options)(scores, labels)  # it has an effect on Dice
        CrossEntropyLoss(to_onehot_y=True, sigmoid=True, include_background=False)(scores, labels)
        for entry in LOSSES:
            if entry.family != "distribution" or entry.every_channel:
                entry.make(include_background=False)(scores, labels)


# --- the rest of the table ---


@every_loss()
def test_sync_batch(entry: LossEntry) -> None:
    options = {"batch": True} if entry.accepts("batch") else {}
    if not entry.syncs:
        with pytest.raises(ValueError, match="expected sync_batch=False, got True"):
            entry.make(sync_batch=True, **options)
        return
    if entry.accepts("batch"):
        with pytest.raises(ValueError, match="expected batch=True with sync_batch=True"):
            entry.make(sync_batch=True)
    scores = torch.randn(SHAPE)
    labels = labels_like(scores)
    alone = value_and_gradient(entry.make(**options), scores, labels)
    assert_same(value_and_gradient(entry.make(sync_batch=True, **options), scores, labels), alone, atol=0, rtol=0)


@every_mechanism(only=lambda entry: entry.lean)
def test_double_backward_is_refused(case: LossCase) -> None:
    scores = case.scores(*SHAPE).requires_grad_()
    labels = labels_like(scores)
    for target, options in ((labels, {}), (one_hot(labels, 3), {"to_onehot_y": False})):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(case(**options)(scores, target), scores, create_graph=True)


@every_mechanism()
def test_copies(case: LossCase) -> None:
    scores = case.scores(*SHAPE)
    labels = labels_like(scores)
    loss = case(ignore_index=255, **case.weighted([1.0, 2.0, 0.5]))
    expected = loss(scores, labels)  # copies are made after a call
    assert copy.deepcopy(loss)(scores, labels) == expected
    assert pickle.loads(pickle.dumps(loss))(scores, labels) == expected
    if not case.entry.accepts("weight"):
        return
    other = case(weight=[1.0, 1.0, 1.0], ignore_index=255)
    assert case.entry.extended or other(scores, labels) != expected
    other.load_state_dict(loss.state_dict())
    assert other(scores, labels) == expected


def other_value(name: str, parameter: inspect.Parameter) -> Any:
    """A value of an option that is not its default."""
    known = {
        "reduction": "sum",
        "weight": [1.0, 2.0, 3.0],
        "ignore_index": 255,
        "absent_class": "skip",
        "radius_weight": "linear",
        "spacing": (1.0, 2.0),
        "w_type": "simple",
        "mode": "target",
        "beta_range": (0.1, 0.9),
        "class_frequencies": [0.5, 0.25, 0.25],
        "other_act": torch.tanh,
        "erosions": 3,
        "bins": 5,
        "iterations": 3,
        "exclusion": [[0, 2]],
        "inclusion": [[0, 2]],
        "connectivity": 1,
    }
    if name in known:
        return known[name] if known[name] != parameter.default else "smooth"
    if isinstance(parameter.default, bool):
        return not parameter.default
    return 1.25 if parameter.default == 1.5 else 0.25  # within the range of each


@every_loss()
def test_repr_shows_the_options_that_differ_from_their_defaults(entry: LossEntry) -> None:
    parts = entry.family == "compound"
    assert parts or entry.required or repr(entry.loss()) == f"{entry.name}()"
    for name, parameter in inspect.signature(entry.loss).parameters.items():
        value = other_value(name, parameter)
        options = {name: value, **({"batch": True} if name == "sync_batch" and entry.accepts("batch") else {})}
        if (name == "sync_batch" and not entry.syncs) or (name == "sigmoid" and entry.activations == ("softmax",)):
            continue
        shown = f"{name}={getattr(value, '__name__', repr(value))}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a background without effect
            text = repr(entry.loss(**{**entry.required, **options}))
        if parts and shown not in text:  # under the name that the part has for it
            assert text != repr(entry.loss())
        else:
            assert shown in text


def test_repr_of_a_compound_shows_its_weights_and_parts() -> None:
    parts = {"overlap": FusedDiceLoss(softmax=True, batch=True), "voxels": CrossEntropyLoss(weight=2.0)}
    text = repr(CompoundLoss(parts, [1.0, 0.5]))
    for shown in ("weights=[1.0, 0.5]", "(overlap): FusedDiceLoss(softmax=True, batch=True)", "(weight=2.0)"):
        assert shown in text
    assert "weights" not in repr(CompoundLoss(parts))
    act = nn.Softmax(1)
    assert "(other_act): Softmax(dim=1)" in repr(FusedDiceLoss(other_act=act))


@every_mechanism()
def test_repr_and_modes(case: LossCase) -> None:
    loss = case()
    assert type(loss).__name__ in repr(loss)
    assert isinstance(loss, nn.Module)
    assert list(loss.parameters()) == []
    scores = case.scores(*SHAPE)
    labels = labels_like(scores)
    assert loss.train()(scores, labels) == loss.eval()(scores, labels)
    weight = case.weighted([1.0, 2.0, 3.0])
    weighted = case(**weight).half()  # a model that holds its loss, in half
    expected = case(**weight)(scores, labels)
    torch.testing.assert_close(weighted(scores, labels), expected, **CLOSE)


@every_case(variants=False, only=lambda entry: not entry.reads_neighbours)
def test_order_of_voxels_does_not_matter(case: LossCase) -> None:
    scores = case.scores(*SHAPE, dtype=torch.float64)
    labels, mask = labels_like(scores), torch.rand(2, 1, *SHAPE[2:], dtype=torch.float64)
    order = torch.randperm(math.prod(SHAPE[2:]))

    def shuffled(tensor: Tensor) -> Tensor:
        return tensor.flatten(2)[..., order].reshape(tensor.shape)

    expected = value_and_gradient(case(), scores, labels, mask)
    got = value_and_gradient(case(), shuffled(scores), shuffled(labels), shuffled(mask))
    assert_same(got, (expected[0], shuffled(expected[1])))


@every_case(variants=False, only=lambda entry: not entry.background_apart)
def test_order_of_classes_does_not_matter(case: LossCase) -> None:
    if case.variant == "alpha":
        pytest.skip("background has a factor of its own")
    scores = case.scores(*SHAPE, dtype=torch.float64)
    labels = labels_like(scores)
    order = torch.tensor([2, 0, 1])
    expected = value_and_gradient(case(), scores, labels)
    got = value_and_gradient(case(), scores[:, order], order.argsort()[labels])
    assert_same(got, (expected[0], expected[1][:, order]))


@every_case(activations=("softmax",))
@each("num_classes", [2, 3])
def test_a_constant_added_to_the_logits_changes_nothing(case: LossCase, num_classes: int) -> None:
    scores = case.scores(2, num_classes, 4, 5, dtype=torch.float64)
    labels = labels_like(scores)
    shift = 30 * torch.randn(2, 1, 4, 5, dtype=torch.float64)
    expected = value_and_gradient(case(), scores, labels)
    assert_same(value_and_gradient(case(), scores + shift, labels), expected)
    assert expected[1].sum(1).abs().max() <= 1e-12  # so the gradient adds up to 0 over the classes


@every_case(long=True)
@each("num_classes", [2, 4])
def test_perfect_partial_and_wrong(case: LossCase, num_classes: int) -> None:
    if case.variant == "inclusion" and num_classes == 2:
        pytest.skip("there is nothing beside the two")
    labels = labels_like(torch.empty(2, num_classes, 6, 7))
    right = one_hot(labels, num_classes)
    wrong = right.roll(1, 1)
    half = torch.where(torch.arange(7) < 4, right, wrong)
    probabilities = case.activation == "none" and not case.entry.raw_scores
    scale = (lambda p: p) if probabilities else (lambda p: 80 * p - 40)
    results = [value_and_gradient(case(), scale(p), labels) for p in (right, half, wrong)]
    values = [value.item() for value, _ in results]
    assert values[0] < values[1]
    assert values[1] < values[2] or (case.entry.name == "TopKLoss" and values[1] == values[2])  # the worst are as bad
    assert all(gradient.isfinite().all() for _, gradient in results)
    smoothed = "label_smoothing" in case.options
    reads_scores = case.entry.name in ("FusedDiceCELoss", "FusedDiceFocalLoss")  # and gets probabilities here
    if case.entry.smallest is not None and not smoothed and not (reads_scores and case.activation == "none"):
        assert 0 <= values[0] <= case.entry.smallest


@every_case(long=True)
@each("num_classes, target_kind", [(2, "labels"), (3, "labels"), (3, "onehot")])
def test_gradcheck(case: LossCase, num_classes: int, target_kind: str) -> None:
    if case.options.get("mode") == "prediction":
        pytest.skip("its factors follow the prediction, without gradient")
    if case.variant and (num_classes, target_kind) != (3, "labels"):
        pytest.skip("the kernels are those of the defaults")
    scores = case.scores(2, num_classes, 3, 4, dtype=torch.float64).requires_grad_()
    labels, mask = labels_like(scores), torch.rand(2, 1, 3, 4, dtype=torch.float64)
    target = labels if target_kind == "labels" else one_hot(labels, num_classes, torch.float64)
    weight = [0.5, 2.0, 1.5][:num_classes]
    for reduction in case.entry.unlike_reductions:
        loss = case(reduction=reduction, to_onehot_y=target_kind == "labels", **case.weighted(weight))
        assert torch.autograd.gradcheck(loss, (scores, target, mask), fast_mode=True)


@every_case(variants=False, long=True)
def test_saturated_scores_are_finite(case: LossCase) -> None:
    if case.activation == "none":
        pytest.skip("probabilities")
    for num_classes in (2, 3):
        scores = 200 * torch.where(case.scores(2, num_classes, 8, 9) > 0, 1.0, -1.0)
        labels = labels_like(scores)
        for reduction in case.entry.reductions:
            value, gradient = value_and_gradient(case(reduction=reduction), scores, labels)
            assert value.isfinite().all()
            assert gradient.isfinite().all()


@every_case(variants=False, activations=("none",))
def test_probabilities_of_zero_and_one_are_finite(case: LossCase) -> None:
    for num_classes in (2, 3):
        labels = labels_like(torch.empty(2, num_classes, 8, 9))
        scores = one_hot(labels.roll(1, 2), num_classes)
        for reduction in case.entry.reductions:
            value, gradient = value_and_gradient(case(reduction=reduction), scores, labels)
            assert value.isfinite().all()
            assert gradient.isfinite().all()
            # The logarithm of 0 is float32's in float64 too.
            torch.testing.assert_close(case(reduction=reduction)(scores.double(), labels).float(), value, **CLOSE)


@every_mechanism()
def test_the_same_bits_twice(case: LossCase) -> None:
    scores = case.scores(2, 3, 40, 41)
    labels, mask = labels_like(scores), torch.rand(2, 1, 40, 41)
    first, second = (value_and_gradient(case(), scores, labels, mask) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@every_mechanism()
def test_without_gradient(case: LossCase) -> None:
    scores = case.scores(*SHAPE)
    labels = labels_like(scores)
    for reduction in case.entry.reductions:
        loss = case(reduction=reduction)
        expected = value_and_gradient(loss, scores, labels)[0]
        value = loss(scores, labels)
        assert not value.requires_grad
        torch.testing.assert_close(value, expected, atol=0, rtol=0)
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                torch.testing.assert_close(loss(scores.requires_grad_(), labels), expected, atol=0, rtol=0)
            scores = scores.detach()


@every_mechanism(only=lambda entry: not entry.extended)
def test_gradient_of_some_of_the_outputs(case: LossCase) -> None:
    if "none" not in case.entry.reductions:
        pytest.skip("one output")
    scores = case.scores(*SHAPE)
    labels = labels_like(scores)
    leaf = scores.clone().requires_grad_()
    values = case(reduction="none")(leaf, labels)
    (gradient,) = torch.autograd.grad(values[1, 0].sum(), leaf, retain_graph=True)
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).any()
    (everything,) = torch.autograd.grad(values.sum(), leaf, retain_graph=True)
    (rest,) = torch.autograd.grad(values.sum() - values[1, 0].sum(), leaf)  # a graph that is kept can be used again
    torch.testing.assert_close(gradient + rest, everything, **CLOSE)


@every_mechanism()
def test_the_input_and_target_are_not_changed(case: LossCase) -> None:
    scores = case.scores(*SHAPE).requires_grad_()
    labels, mask = (
        labels_like(scores).masked_fill(torch.rand(2, 1, *SHAPE[2:]) < 0.2, 255),
        torch.rand(2, 1, *SHAPE[2:]),
    )
    before = scores.detach().clone(), labels.clone(), mask.clone()
    for reduction in case.entry.reductions:
        case(reduction=reduction, ignore_index=255)(scores, labels, mask).sum().backward()
    assert all(torch.equal(now, then) for now, then in zip((scores.detach(), labels, mask), before, strict=True))


def test_other_act_reads_as_the_activation_it_is() -> None:
    scores = torch.randn(SHAPE)
    labels = labels_like(scores)

    def softmax(x: Tensor) -> Tensor:
        return x.softmax(1)

    for loss in (FusedDiceLoss, FusedDiceCELoss, CrossEntropyLoss):
        expected = value_and_gradient(loss(to_onehot_y=True, softmax=True), scores, labels)
        assert_same(value_and_gradient(loss(to_onehot_y=True, other_act=softmax), scores, labels), expected)
    with pytest.raises(
        ShapeMismatchError, match=r"expected other_act to keep the shape \(2, 3, 4, 5, 3\), got \(2, 1, 4, 5, 3\)"
    ):
        FusedDiceLoss(to_onehot_y=True, other_act=lambda x: x[:, :1])(scores, labels)


def test_focal_takes_inputs_without_spatial_axes() -> None:
    scores, labels = torch.randn(4, 3), torch.tensor([[0], [2], [1], [1]])
    for use_softmax in (True, False):
        loss = FusedFocalLoss(to_onehot_y=True, use_softmax=use_softmax)
        expected = value_and_gradient(loss, scores[..., None], labels[..., None])
        got = value_and_gradient(loss, scores, labels)
        assert_same((got[0], got[1][..., None]), expected)


# --- memory ---


def map_of_top_k(case: LossCase, num_classes: int) -> float:
    """The map that top-k ranks, and the places (int64) of those that count, as a share of float32 logits."""
    if "TopK" not in case.entry.name:
        return 0.0
    k = case.options.get("k", 10.0)
    return (1.0 if case.activation == "sigmoid" else 1 / num_classes) * (1 + (2 * k / 100 if k < 100 else 0))


MEMORY_CASES = [(2, torch.float32), (2, torch.uint8), (4, torch.int64), (14, torch.float32), (105, torch.uint8)]


def large_scores_and_labels(case: LossCase, num_classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scores = case.scores(1, num_classes, 32 if num_classes > 2 else 64, 32, 32 if num_classes < 100 else 16)
    return scores, labels_like(scores, dtype=dtype)


@every_mechanism(only=lambda entry: entry.lean, long=True)
@each("num_classes, dtype", MEMORY_CASES)
def test_memory(case: LossCase, num_classes: int, dtype: torch.dtype) -> None:
    scores, labels = large_scores_and_labels(case, num_classes, dtype)
    assert_lean(case(), scores, labels, maps=map_of_top_k(case, num_classes))


@every_case(only=lambda entry: entry.lean, long=True)
def test_memory_of_every_loss(case: LossCase) -> None:
    if case.variant and case.activation != case.entry.activations[0]:
        pytest.skip("an activation and a variant have their buffers apart")
    scores, labels = large_scores_and_labels(case, 4, torch.int64)
    assert_lean(case(), scores, labels, maps=map_of_top_k(case, 4))


@every_case(only=lambda entry: entry.lean, long=True)
@each("num_classes, dtype", [(2, torch.float32), (3, torch.float32), (14, torch.float32), (3, torch.float64)])
def test_memory_of_small_calls(case: LossCase, num_classes: int, dtype: torch.dtype) -> None:
    """At the size at which the slab of a call is nearly too large to be kept, and above: 4 MiB more."""
    if case.variant and case.activation != case.entry.activations[0]:
        pytest.skip("an activation and a variant have their buffers apart")
    for length in (12, 40):
        scores = case.scores(1, num_classes, length, 32, 32, dtype=dtype).requires_grad_()
        labels, loss = labels_like(scores, dtype=torch.float32), case()
        loss(scores, labels).backward()
        scores.grad = None
        peak, size = peak_extra_bytes(lambda: loss(scores, labels).backward()), scores.numel() * scores.element_size()  # noqa: B023
        maps = map_of_top_k(case, num_classes)
        assert peak <= max((1.25 + maps) * size, (1 + maps) * size + 4 * 2**20), f"{peak / 2**20:.2f} MiB"


@every_mechanism(only=lambda entry: entry.lean and entry.family != "region" and "none" in entry.reductions, long=True)
@each("num_classes, dtype", MEMORY_CASES[1:3])
def test_memory_of_a_map(case: LossCase, num_classes: int, dtype: torch.dtype) -> None:
    scores, labels = large_scores_and_labels(case, num_classes, dtype)
    loss = case(reduction="none")
    assert_lean(loss, scores, labels, maps=loss(scores, labels).shape[1] / num_classes)


@every_mechanism(only=lambda entry: entry.lean, activations=("softmax",), long=True)
@each("what", ["mask", "float mask", "ignore_index", "weight", "one-hot", "half", "channels_last"])
def test_memory_with_options(case: LossCase, what: str) -> None:
    scores = case.scores(2, 4, 32, 32, 32, dtype=torch.float16 if what == "half" else torch.float32)
    labels = labels_like(scores, dtype=torch.float32)
    options: dict[str, Any] = case.weighted([1.0, 2.0, 3.0, 4.0]) if what == "weight" else {}
    if what == "ignore_index":
        labels[:, :, 3:9], options = 255, {"ignore_index": 255}
    if what == "one-hot":
        labels, options = one_hot(labels, 4), {"to_onehot_y": False}
    if what == "channels_last":
        scores, labels = (t.contiguous(memory_format=torch.channels_last_3d) for t in (scores, labels))
    mask = (
        [torch.rand_like(labels) if what == "float mask" else torch.rand_like(labels) > 0.3] if "mask" in what else []
    )
    maps = map_of_top_k(case, 4) * 4 / scores.element_size()
    assert_lean(case(**options), scores, labels, *mask, maps=maps)
