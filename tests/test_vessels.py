"""Losses of thin structures: their formulas, what a cut costs, and their memory."""

import sys
from typing import Any

import monai.losses
import numpy as np
import pytest
import references as ref
import torch
from loss_list import ENTRIES, SOFTMAX, each, labels_like, one_hot, value_and_gradient
from marks import slow
from memory import peak_extra_bytes
from monai.transforms import RandAffine
from scipy import ndimage
from torch import Tensor

from monai_extra_losses import (
    CenterlineBoundaryDiceLoss,
    CenterlineDiceLoss,
    CompoundLoss,
    FusedDiceLoss,
    HeadLoss,
    PartialLabelLoss,
    SkeletonRecallLoss,
    TopologicalInteractionLoss,
)
from monai_extra_losses.engines import LossWithMaps, PrepareBatchMaps
from monai_extra_losses.ops import skeletons
from monai_extra_losses.ops.neighbourhoods import dilated
from monai_extra_losses.transforms import Skeleton, Skeletond


def options_of(name: str) -> list[dict[str, Any]]:
    return [{}, *ENTRIES[name].variants.values(), *ENTRIES[name].further]


def tube_and(*shape: int) -> Tensor:
    """(1, 1, *shape) a tube 3 voxels thick along the last axis."""
    tube = torch.zeros(1, 1, *shape)
    middle = (slice(shape[0] // 2 - 1, shape[0] // 2 + 2),) * (len(shape) - 1)
    tube[(0, 0, *middle, slice(1, -1))] = 1
    return tube


@each("kind", ["labels", "labels and mask", "soft and mask"])
@each("shape", [(2, 3, 4, 5), (1, 2, 3, 4, 3), (1, 2, 11)])
@each("options", options_of("CenterlineDiceLoss"))
@pytest.mark.parametrize("activation", ["softmax", *slow("sigmoid", "none")])
def test_centerline_dice_is_its_formula(
    options: dict[str, Any], activation: str, shape: tuple[int, ...], kind: str
) -> None:
    torch.manual_seed(0)
    entry = ENTRIES["CenterlineDiceLoss"]
    scores = torch.randn(shape, dtype=torch.float64)
    scores = scores.softmax(1) if activation == "none" else scores
    labels = labels_like(scores)
    labels[0] = labels[0] % 2
    soft = torch.rand(shape, dtype=torch.float64)
    mask = torch.rand(shape[0], 1, *shape[2:], dtype=torch.float64) if "mask" in kind else None
    if mask is not None:
        mask[0, 0, 1] = 0
    target = soft if "soft" in kind else labels
    g = soft.numpy() if "soft" in kind else ref.one_hot(labels.numpy(), shape[1])
    w = np.ones((shape[0], 1, *shape[2:])) if mask is None else mask.numpy()
    options = entry.required | options
    loss = entry.make(activation, to_onehot_y="labels" in kind, **options)
    value, gradient = value_and_gradient(loss, scores, target, mask)
    x = scores.numpy()
    assert value.item() == pytest.approx(entry.reference(x, g, activation, w, **options), rel=1e-10)
    # Small steps: the order of neighbours must stay.
    ref.assert_gradient(
        gradient.numpy(), lambda moved: entry.reference(moved, g, activation, w, **options), x, 1e-7, step=1e-7
    )


@each("kind", ["labels", "labels and mask", "soft and mask"])
@each("shape", [(2, 3, 5, 4), (1, 2, 5, 4, 3), (1, 2, 11)])
@each(
    "options", [{}, {"radius_weight": "linear", "smooth": 1.0}, {"absent_class": "skip", "include_background": False}]
)
@pytest.mark.parametrize("activation", ["softmax", *slow("sigmoid", "none")])
def test_centerline_boundary_dice_is_its_formula(
    options: dict[str, Any], activation: str, shape: tuple[int, ...], kind: str
) -> None:
    """Of blocks with an inside, and a prediction that is sure of them here and there."""
    torch.manual_seed(0)
    entry = ENTRIES["CenterlineBoundaryDiceLoss"]
    labels = blocks_like(torch.empty(shape))
    scores = torch.randn(shape, dtype=torch.float64) + 3 * one_hot(labels.roll(1, 2), shape[1], torch.float64)
    scores = scores.softmax(1) if activation == "none" else scores
    soft = (0.3 * torch.rand(shape, dtype=torch.float64) + 0.6 * one_hot(labels, shape[1], torch.float64)).clamp(max=1)
    mask = 0.1 + torch.rand(shape[0], 1, *shape[2:], dtype=torch.float64) if "mask" in kind else None
    if mask is not None:
        mask[0, 0, 1] = 0
    target = soft if "soft" in kind else labels
    g = soft.numpy() if "soft" in kind else ref.one_hot(labels.numpy(), shape[1])
    w = np.ones((shape[0], 1, *shape[2:])) if mask is None else mask.numpy()
    options = entry.required | options
    loss = entry.make(activation, to_onehot_y="labels" in kind, **options)
    value, gradient = value_and_gradient(loss, scores, target, mask)
    x = scores.numpy()
    assert value.item() == pytest.approx(entry.reference(x, g, activation, w, **options), rel=1e-6)
    assert gradient.any()
    # Small steps: what is above 0.5 must stay. Distances have the digits of float32.
    ref.assert_gradient(
        gradient.numpy(), lambda moved: entry.reference(moved, g, activation, w, **options), x, 2e-6, step=1e-6
    )


@each("axes", [1, 2, 3])
@each("iterations", [1, 4])
def test_the_skeleton_is_that_of_the_definition_whatever_is_kept(axes: int, iterations: int) -> None:
    """Value and gradient, of every number of states that there is room for."""
    a = torch.rand(1, 1, *(9, 8, 7)[:axes], dtype=torch.float64)
    factor = torch.rand_like(a)
    leaf = a.clone().requires_grad_()
    expected = skeletons.soft_skeleton(leaf, iterations)
    np.testing.assert_allclose(expected[0, 0].detach(), ref.soft_skeleton(a[0, 0].numpy(), iterations), rtol=1e-12)
    (slope,) = torch.autograd.grad((expected * factor).sum(), leaf)
    torch.testing.assert_close(skeletons.skeleton_of_map(a[0, 0], iterations), expected[0, 0].detach())
    for keep in range(iterations + 2):
        got = skeletons._slope_of_skeleton(a[0, 0], factor[0, 0].clone(), iterations, keep)
        torch.testing.assert_close(got, slope[0, 0], rtol=1e-12, atol=1e-15)


def test_the_skeleton_of_a_mask_is_that_of_its_numbers() -> None:
    mask = torch.rand(6, 7, 8) > 0.2
    assert torch.equal(skeletons.skeleton_of_map(mask, 3).float(), skeletons.skeleton_of_map(mask.float(), 3))


def test_centerline_dice_of_a_case_by_hand() -> None:
    """A line of 7 voxels, as a line itself is its skeleton: T_p = 1, T_s = (5 + s) / (7 + s) with two missed."""
    line = torch.zeros(1, 1, 9, 9)
    line[..., 4, 1:8] = 1
    part = line.clone()
    part[..., 4, 1:3] = 0
    for smooth in (1e-5, 1.0):
        sensitivity = (5 + smooth) / (7 + smooth)
        got = CenterlineDiceLoss(smooth=smooth)(part, line).item()
        assert got == pytest.approx(1 - 2 * sensitivity / (1 + sensitivity), rel=1e-6)
    aside = torch.zeros_like(line)
    aside[..., 7, 1:8] = 1
    assert CenterlineDiceLoss()(aside, line).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(13, 32), (13, 13, 32)], ids=["2D", "3D"])
def test_a_cut_costs_more_than_as_many_voxels_off_the_side(shape: tuple[int, ...]) -> None:
    tube = tube_and(*shape)
    cut, thinned = tube.clone(), tube.clone()
    cut[..., 15] = 0
    missed = int(tube.sum() - cut.sum())
    side = (slice(None), slice(None), *[shape[0] // 2 - 1] * (len(shape) - 1))
    thinned[(*side, slice(4, 4 + missed))] = 0
    assert tube.sum() - thinned.sum() == missed
    dice = FusedDiceLoss()
    assert dice(cut, tube) == dice(thinned, tube)
    loss = CenterlineDiceLoss()
    assert loss(tube, tube) == 0
    assert loss(cut, tube) > 2 * loss(thinned, tube)


def test_centerline_dice_reads_thickness_where_iterations_are_none() -> None:
    thick = torch.zeros(2, 1, 15, 30)
    thick[0, :, 4:11, 2:28] = 1  # 7 voxels: 4 erosions
    thick[1, :, 7, 2:28] = 1
    assert skeletons.half_widths(thick > 0) == [4, 1]
    assert skeletons.half_widths(torch.zeros(1, 2, 5, 5, dtype=torch.bool)) == [1]
    assert skeletons.half_widths(torch.ones(1, 1, 5, 9, dtype=torch.bool)) == [9]
    p = torch.rand(thick.shape)
    got = CenterlineDiceLoss(iterations=None, reduction="none")(p, thick)
    for sample, number in enumerate((4, 1)):
        alone = CenterlineDiceLoss(iterations=number)(p[sample : sample + 1], thick[sample : sample + 1])
        torch.testing.assert_close(got[sample].squeeze(), alone)
    with pytest.raises(
        ValueError, match=r"expected a number of iterations where the target cannot be read .* got None"
    ):
        CenterlineDiceLoss(iterations=None)(p.to("meta"), thick.to("meta"))


def test_iterations_are_whole_and_at_least_one() -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=rf"expected iterations >= 1, or None, got {wrong}"):
            CenterlineDiceLoss(iterations=wrong)
    with pytest.raises(TypeError, match=r"expected iterations to be a whole number, got 2\.5"):
        CenterlineDiceLoss(iterations=2.5)


def test_one_channel_is_monai_s_centerline_dice_without_its_epsilon() -> None:
    p, g = torch.rand(1, 1, 9, 9, 9, dtype=torch.float64), (torch.rand(1, 1, 9, 9, 9) > 0.4).double()
    ours = CenterlineDiceLoss(iterations=3, smooth=1.0)
    theirs = monai.losses.SoftclDiceLoss(iter_=3, smooth=1e-300)
    (value, gradient), expected = value_and_gradient(ours, p, g), value_and_gradient(theirs, p, g)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient, expected[1])
    default = monai.losses.SoftclDiceLoss()
    assert default(g, g).item() == pytest.approx(0.5e-4, rel=0.01)  # of a perfect prediction: 1e-4 / (2 + 1e-4)
    assert ours(g, g) == 0


def test_monai_s_centerline_dice_hides_a_lost_vessel_behind_a_large_class() -> None:
    """Its sums run over all channels: a vessel that is missed altogether costs next to nothing beside a large one."""
    target = torch.zeros(1, 2, 40, 40)
    target[:, 0, ::3] = 1
    target[:, 1, 1, 3:8] = 1
    missed = target.clone()
    missed[:, 1] = 0
    assert monai.losses.SoftclDiceLoss()(missed, target) < 0.01
    assert CenterlineDiceLoss(include_background=True)(missed, target).item() == pytest.approx(0.5, abs=1e-4)


@each("num_classes", [2, 3, 4, 14])
@each("options", [{}, {"iterations": 3}, {"include_background": True}])
def test_centerline_dice_takes_eight_times_the_scores(num_classes: int, options: dict[str, Any]) -> None:
    scores = torch.randn(1, num_classes, 32, 32, 24, requires_grad=True)
    labels = labels_like(scores, dtype=torch.uint8)
    loss = CenterlineDiceLoss(**SOFTMAX, **options)
    loss(scores, labels).backward()
    scores.grad = None
    peak = peak_extra_bytes(lambda: loss(scores, labels).backward())
    assert peak <= 8 * scores.numel() * 4, f"{peak / scores.numel() / 4:.2f} times the scores"


def test_centerline_dice_of_partly_annotated_data() -> None:
    """A class without annotation leaves the mean, and is part of a background that no vessel loss reads."""
    scores, known = torch.randn(2, 4, 8, 9, dtype=torch.float64), torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0]]).bool()
    labels = labels_like(scores)
    labels[0] = labels[0].masked_fill(labels[0] == 2, 0)
    labels[1] = labels[1].masked_fill(labels[1] == 3, 0)
    own = CenterlineDiceLoss(reduction="none", **SOFTMAX)(scores, labels)[:, :, 0, 0]
    loss = PartialLabelLoss(CenterlineDiceLoss(**SOFTMAX))
    torch.testing.assert_close(loss(scores, labels, annotated=known), own[known[:, 1:]].mean())
    everything = torch.ones_like(known)
    torch.testing.assert_close(
        loss(scores, labels, annotated=everything), CenterlineDiceLoss(**SOFTMAX)(scores, labels)
    )


# --- centerline boundary Dice ---


def tubes_of(*radii: int) -> list[Tensor]:
    """(1, 1, 40, 16, 20) round tubes along the last axis, side by side."""
    x, y, _ = torch.meshgrid([torch.arange(n) for n in (40, 16, 20)], indexing="ij")
    middles = [8 + 20 * number for number in range(len(radii))]
    return [((x - m) ** 2 + (y - 8) ** 2 <= r**2)[None, None].float() for m, r in zip(middles, radii, strict=True)]


@each("radius_weight", ["inverse", "linear"])
def test_a_thin_vessel_counts_more_than_a_thick_one(radius_weight: Any) -> None:
    thick, thin = tubes_of(5, 2)
    loss = CenterlineBoundaryDiceLoss(radius_weight=radius_weight)
    assert loss(thick + thin, thick + thin) == 0
    assert loss(thick, thick + thin) > 1.5 * loss(thin, thick + thin)
    plain = CenterlineDiceLoss()
    assert plain(thick, thick + thin) < 1.1 * plain(thin, thick + thin)


def test_a_prediction_off_the_middle_costs_though_its_skeleton_is_inside() -> None:
    (tube,) = tubes_of(5)
    aside = tube.roll(2, 2)
    assert CenterlineDiceLoss()(aside, tube).item() == pytest.approx(0, abs=1e-6)
    assert CenterlineBoundaryDiceLoss()(aside, tube) > 0.2


def test_thin_beside_the_middle_of_thick_costs_less_than_nothing() -> None:
    """And the other way round in another vessel, so that both T exceed 1: the formula is no Dice."""
    (thick, other_thick), (thin, other_thin) = tubes_of(5, 5), [tube.roll(1, 2) for tube in tubes_of(2, 2)]
    assert CenterlineBoundaryDiceLoss()(thin + other_thick, thick + other_thin) < -0.1


def test_nothing_above_a_half_has_no_gradient() -> None:
    (tube,) = tubes_of(3)
    value, gradient = value_and_gradient(CenterlineBoundaryDiceLoss(), 0.5 * tube, tube)
    assert value.item() == pytest.approx(1, abs=1e-3)
    assert not gradient.any()
    with pytest.raises(ValueError, match=r"Unsupported radius_weight: square, available options"):
        CenterlineBoundaryDiceLoss(radius_weight="square")
    with pytest.raises(ValueError, match="expected iterations >= 1, got 0"):
        CenterlineBoundaryDiceLoss(iterations=0)


@each("shape", [(1, 2, 32, 32, 24), (2, 4, 32, 32, 24), (1, 14, 32, 32, 24)])
def test_centerline_boundary_dice_takes_twice_the_scores_and_maps_of_one_class(shape: tuple[int, ...]) -> None:
    labels = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.uint8)
    labels[..., 8:20, 8:20, :] = 1
    scores = (torch.randn(shape) + 4 * one_hot(labels, shape[1])).requires_grad_()
    loss = CenterlineBoundaryDiceLoss(include_background=True, **SOFTMAX)
    loss(scores, labels).backward()
    scores.grad = None
    peak = peak_extra_bytes(lambda: loss(scores, labels).backward())
    assert peak <= (2 * scores.numel() + 20 * scores[0, 0].numel()) * 4


def test_a_plain_call_and_one_without_numbers_compute_the_same() -> None:
    """The definition, which a compiled graph has, and the pass class by class."""
    labels = blocks_like(torch.empty(2, 3, 8, 6, 5))
    scores = torch.randn(2, 3, 8, 6, 5, dtype=torch.float64) + 3 * one_hot(labels, 3, torch.float64)
    loss = CenterlineBoundaryDiceLoss(reduction="none", **SOFTMAX)
    expected = torch.vmap(lambda x, y: loss(x[None], y[None])[0])(scores, labels)
    torch.testing.assert_close(loss(scores, labels), expected)


# --- topological interaction ---

INTERACTIONS: list[dict[str, Any]] = [
    {"exclusion": [[1, 2]]},
    {"exclusion": [[0, 2]], "connectivity": 1},
    {"inclusion": [[2, 1]]},
    {"exclusion": [[1, 3]], "inclusion": [[2, 3], [1, 0]]},
]


@each("kind", ["labels", "labels and mask", "one-hot and ignored"])
@each("shape", [(2, 4, 5, 6), (2, 4, 4, 3, 4), (1, 4, 9)])
@each("options", [*INTERACTIONS, {"exclusion": [[1, 2]], "connectivity": 2}])
def test_topological_interaction_is_its_formula(options: dict[str, Any], shape: tuple[int, ...], kind: str) -> None:
    if (options.get("connectivity") or 1) > len(shape) - 2:
        pytest.skip("more steps than axes")
    torch.manual_seed(0)
    scores = 2 * torch.randn(shape, dtype=torch.float64)
    labels, mask = labels_like(scores), None
    w = np.ones((shape[0], 1, *shape[2:]))
    more = {}
    if "mask" in kind:
        mask = torch.rand(w.shape, dtype=torch.float64) * (torch.rand(w.shape) > 0.3)
        w = mask.numpy()
    if "ignored" in kind:
        more, w = {"ignore_index": 3, "to_onehot_y": False}, (labels != 3).double().numpy()
    g = ref.one_hot(labels.numpy(), 4)
    loss = ENTRIES["TopologicalInteractionLoss"].make(**{"exclusion": None, **options, **more})
    value, gradient = value_and_gradient(loss, scores, torch.from_numpy(g) if more else labels, mask)
    x = scores.numpy()

    def reference(x: ref.Array) -> float:
        return ref.topological_interaction(x, g, "softmax", w, **options)

    assert value.item() == pytest.approx(reference(x), rel=1e-10)
    ref.assert_gradient(gradient.numpy(), reference, x, 1e-8)


def test_neighbours_are_those_of_scipy() -> None:
    for axes in (1, 2, 3):
        mask = torch.rand(2, *(7, 6, 5)[:axes]) > 0.9
        for connectivity in range(1, axes + 1):
            structure = ndimage.generate_binary_structure(axes, connectivity)
            expected = np.stack([ndimage.binary_dilation(sample, structure) for sample in mask.numpy()])
            np.testing.assert_array_equal(dilated(mask, connectivity), expected)


def test_interactions_by_hand() -> None:
    """A ring of class 2 around class 1: nothing breaks the rule; a hole in it does, at its rim."""
    predicted = torch.zeros(1, 1, 7, 7, dtype=torch.int64)
    predicted[..., 1:6, 1:6], predicted[..., 2:5, 2:5] = 2, 1
    loss = TopologicalInteractionLoss(inclusion=[[1, 2]], reduction="none", **SOFTMAX)
    assert not loss(10 * one_hot(predicted, 3), predicted).any()
    leaking = predicted.clone()
    leaking[..., 3, 5] = 0
    critical = loss(10 * one_hot(leaking, 3), predicted)[0, 0] > 0
    assert critical.nonzero().tolist() == [[2, 4], [3, 4], [3, 5], [4, 4]]
    ignored = predicted.masked_fill(leaking != predicted, 255)
    assert not TopologicalInteractionLoss(inclusion=[[1, 2]], ignore_index=255, **SOFTMAX)(
        10 * one_hot(leaking, 3), ignored
    ), "an ignored voxel is not what is neither"


def test_the_sum_of_the_authors_is_lambda_times_the_voxels() -> None:
    scores = torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)
    labels = labels_like(scores)
    mean, total = (
        TopologicalInteractionLoss(exclusion=[[1, 2]], reduction=reduction, **SOFTMAX)(scores, labels)
        for reduction in ("mean", "sum")
    )
    torch.testing.assert_close(1e-6 * total, (1e-6 * labels.numel()) * mean)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, r"expected pairs of classes, got none; give exclusion, inclusion or both"),
        ({"exclusion": []}, r"expected pairs of classes, got none"),
        (
            {"exclusion": [1, 2]},
            r"expected exclusion to be a list of pairs of classes, got \[1, 2\]; write \[\[1, 2\]\]",
        ),
        ({"inclusion": [[1, 2, 3]]}, r"expected inclusion to be a list of pairs of classes"),
        ({"exclusion": [[1, 1]]}, r"expected exclusion to be pairs of two classes, .* got \[1, 1\]"),
        ({"exclusion": [[-1, 1]]}, r"expected exclusion to be pairs of two classes, .* got \[-1, 1\]"),
        ({"exclusion": [[1, 2]], "sigmoid": True}, r"expected sigmoid=False, got True: regions that overlap"),
        ({"exclusion": [[1, 2]], "connectivity": 4}, r"expected connectivity in 1 to 3, or None, got 4"),
    ],
)
def test_wrong_interactions_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TopologicalInteractionLoss(**options)


def test_interactions_that_the_input_has_not_are_refused() -> None:
    scores, labels = torch.randn(1, 3, 4, 5), torch.zeros(1, 1, 4, 5)
    with pytest.raises(ValueError, match=r"expected pairs of classes in 0\.\.2 \(input has 3 channels\), got \[1, 3\]"):
        TopologicalInteractionLoss(exclusion=[[1, 3]], **SOFTMAX)(scores, labels)
    with pytest.raises(ValueError, match=r"expected connectivity in 1 to 2 for an input of 2 spatial axes, got 3"):
        TopologicalInteractionLoss(exclusion=[[1, 2]], connectivity=3, **SOFTMAX)(scores, labels)


def test_an_interaction_with_a_class_that_is_not_annotated_is_no_rule() -> None:
    """What is merged with the background can neither be touched nor enclose."""
    scores = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    labels, known = labels_like(scores) % 2, torch.tensor([[True, True, False], [True, True, True]])
    for rule in ({"exclusion": [[1, 2]]}, {"inclusion": [[1, 2]]}):
        loss = TopologicalInteractionLoss(reduction="none", **rule, **SOFTMAX)
        got = PartialLabelLoss(loss)(scores, labels, annotated=known)
        assert not got[0].any()
        torch.testing.assert_close(got[1], loss(scores, labels)[1])
        assert got[1].any()


# --- skeleton recall ---


@each("kind", ["labels", "labels and mask", "one-hot and ignored", "regions"])
@each("shape", [(2, 3, 12, 11), (1, 3, 7, 8, 6), (1, 2, 11)])
@each("options", options_of("SkeletonRecallLoss"))
def test_skeleton_recall_is_its_formula(options: dict[str, Any], shape: tuple[int, ...], kind: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(shape, dtype=torch.float64)
    labels, mask, w = blocks_like(scores), None, np.ones((shape[0], 1, *shape[2:]))
    g, more = ref.one_hot(labels.numpy(), shape[1]), {"to_onehot_y": "labels" in kind}
    activation = "sigmoid" if kind == "regions" else "softmax"
    if "mask" in kind:
        mask = torch.rand(w.shape, dtype=torch.float64) * (torch.rand(w.shape) > 0.2)
        w = mask.numpy()
    if "ignored" in kind:
        more, w = {"ignore_index": 1, "to_onehot_y": False}, (labels != 1).double().numpy()
    if kind == "regions":
        g[:, 0] = g[:, 1]  # they overlap
    target = labels if "labels" in kind else torch.from_numpy(g)
    entry = ENTRIES["SkeletonRecallLoss"]
    value, gradient = value_and_gradient(entry.make(activation, **options, **more), scores, target, mask)
    x = scores.numpy()
    assert value.item() == pytest.approx(entry.reference(x, g, activation, w, **options), rel=1e-10)
    ref.assert_gradient(gradient.numpy(), lambda moved: entry.reference(moved, g, activation, w, **options), x, 1e-8)


def blocks_like(scores: Tensor) -> Tensor:
    """(B, 1, *spatial) labels that have an inside: one class after the other along the first axis."""
    length, classes = scores.shape[2], scores.shape[1]
    slabs = (torch.arange(length) * classes // length).view(1, 1, -1, *[1] * (scores.ndim - 3))
    return slabs.expand(len(scores), 1, *scores.shape[2:]).clone()


@each("union", [False, True])
def test_the_tubes_of_the_transform_are_those_of_the_call(union: bool) -> None:
    scores = torch.randn(2, 3, 16, 15, dtype=torch.float64)
    labels = blocks_like(scores)
    loss = SkeletonRecallLoss(union=union, **SOFTMAX)
    tubes = torch.stack([Skeleton(union=union)(label) for label in labels])
    assert tubes.dtype == torch.uint8
    assert 0 < tubes.sum() < (labels > 0).sum()
    expected = value_and_gradient(loss, scores, labels)
    leaf = scores.clone().requires_grad_()
    value = loss(leaf, labels, skeleton=tubes)
    torch.testing.assert_close((value.detach(), torch.autograd.grad(value, leaf)[0]), expected)
    regions = one_hot(labels, 3)
    own = SkeletonRecallLoss(union=union, sigmoid=True, include_background=True)
    tubes = torch.stack([Skeleton(union=union)(region) for region in regions])
    torch.testing.assert_close(own(scores, regions, skeleton=tubes), own(scores, regions))


def test_tubes_that_are_moved_with_the_label_lie_in_those_of_the_moved_label() -> None:
    """So they may be made before the augmentation, and cached: they are off by no more than a step."""
    grid = torch.stack(torch.meshgrid([torch.arange(40.0)] * 3, indexing="ij"))
    bent = (grid[0] - 20 - 6 * torch.sin(grid[2] / 7)) ** 2 + (grid[1] - 20) ** 2 < 10
    label, make = bent[None].float(), Skeleton()
    turn = RandAffine(prob=1.0, rotate_range=[(0.4, 0.4), (0.2, 0.2), (0.0, 0.0)], mode="nearest", padding_mode="zeros")
    for move in (lambda x: x.flip(1), lambda x: x.transpose(1, 3), lambda x: turn(x).as_tensor()):
        moved, again = move(make(label).float()) > 0, make(move(label)) > 0
        assert 2 * (moved & again).sum() / (moved.sum() + again.sum()) > 0.75
        for own, other in ((moved, again), (again, moved)):
            assert (own & ~dilated(other, 3)).sum() < 0.05 * own.sum()


def test_two_vessels_that_touch_lose_half_their_skeleton_in_the_union() -> None:
    labels = torch.zeros(1, 14, 30, dtype=torch.int64)
    labels[:, 3:7], labels[:, 7:11] = 1, 2
    apart, joined = Skeleton()(labels), Skeleton(union=True)(labels)
    assert apart.sum() > 1.3 * joined.sum()
    ignored = Skeleton(ignore_index=2)(labels)
    assert torch.equal(ignored, Skeleton()(labels * (labels == 1)))
    assert Skeleton(include_background=True)(labels).sum() > apart.sum()


def test_a_class_without_a_skeleton_leaves_the_mean() -> None:
    scores, labels = torch.randn(1, 3, 8, 9), torch.zeros(1, 1, 8, 9, dtype=torch.int64)
    labels[..., 4, :] = 1
    expected = 1 - scores.softmax(1)[0, 1, 4].mean()
    torch.testing.assert_close(SkeletonRecallLoss(**SOFTMAX)(scores, labels), expected)
    assert SkeletonRecallLoss(**SOFTMAX)(scores, torch.zeros_like(labels)) == 0
    known = torch.tensor([[True, False, True]])
    assert PartialLabelLoss(SkeletonRecallLoss(**SOFTMAX))(scores, torch.zeros_like(labels), annotated=known) == 0


def test_tubes_reach_the_loss_through_a_batch_and_a_compound() -> None:
    scores = torch.randn(2, 3, 16, 15)
    item = Skeletond(keys="label", skeleton_keys="skeleton")
    items = [item({"label": label, "image": label}) for label in blocks_like(scores)]
    batch = {key: torch.stack([one[key] for one in items]) for key in items[0]}
    _, target = PrepareBatchMaps("skeleton")(batch)
    recall, dice = SkeletonRecallLoss(**SOFTMAX), FusedDiceLoss(**SOFTMAX)
    compound = CompoundLoss({"dice": dice, "recall": recall})
    got = LossWithMaps(compound, maps=["skeleton"])(scores, target)
    expected = dice(scores, target["label"]) + recall(scores, target["label"], skeleton=target["skeleton"])
    torch.testing.assert_close(got, expected)
    with pytest.raises(TypeError, match="expected a loss that reads skeleton, got CompoundLoss"):
        LossWithMaps(CompoundLoss([dice]), maps=["skeleton"])
    with pytest.raises(ValueError, match="expected a part that reads `skeleton`, got FusedDiceLoss: leave it out"):
        CompoundLoss([dice])(scores, target["label"], skeleton=target["skeleton"])
    head, features = torch.nn.Conv2d(4, 3, 1), torch.randn(2, 4, 16, 15)
    got = HeadLoss(head, recall)(features, target["label"], skeleton=target["skeleton"])
    torch.testing.assert_close(got, recall(head(features), target["label"], skeleton=target["skeleton"]))
    with pytest.raises(ValueError, match="expected a loss that reads `skeleton`, got FusedDiceLoss: leave it out"):
        HeadLoss(head, dice)(features, target["label"], skeleton=target["skeleton"])
    everything = torch.ones(2, 3, dtype=torch.bool)
    partial = PartialLabelLoss(recall)(scores, target["label"], annotated=everything, skeleton=target["skeleton"])
    torch.testing.assert_close(partial, recall(scores, target["label"], skeleton=target["skeleton"]))


def test_wrong_tubes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = torch.randn(1, 3, 8, 9), torch.ones(1, 1, 8, 9)
    loss = SkeletonRecallLoss(**SOFTMAX)
    with pytest.raises(ValueError, match=r"expected skeleton \(1, 1, 8, 9\) like the target, got \(1, 3, 8, 9\); make"):
        loss(scores, labels, skeleton=torch.ones(1, 3, 8, 9))
    with pytest.raises(ValueError, match="expected a skeleton where the target cannot be read"):
        torch.vmap(lambda x, y: loss(x[None], y[None]))(scores, labels)
    assert torch.vmap(lambda x, y: loss(x[None], y[None], skeleton=y[None]))(scores, labels).shape == (1,)
    with pytest.raises(ValueError, match=r"expected a label \(1 or C, \*spatial\) with 1 to 3 spatial axes, got shape"):
        Skeleton()(labels[0, 0, 0])
    with pytest.raises(ValueError, match="expected 1 skeleton_keys, one new key per label, got"):
        Skeletond(keys="label", skeleton_keys="label")
    monkeypatch.setitem(sys.modules, "skimage.morphology", None)
    with pytest.raises(ImportError, match=r"expected scikit-image, .* got none; install it: pip install scikit-image"):
        loss(scores, labels)
