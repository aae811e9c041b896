"""Losses of thin structures: their formulas, what a cut costs, and their memory."""

from typing import Any

import monai.losses
import numpy as np
import pytest
import references as ref
import torch
from loss_list import ENTRIES, SOFTMAX, each, labels_like, one_hot, value_and_gradient
from memory import peak_extra_bytes
from scipy import ndimage
from torch import Tensor

from monai_extra_losses import CenterlineDiceLoss, FusedDiceLoss, PartialLabelLoss, TopologicalInteractionLoss
from monai_extra_losses.ops import skeletons
from monai_extra_losses.ops.neighbourhoods import dilated


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
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
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
    loss = entry.make(activation, to_onehot_y="labels" in kind, **options)
    value, gradient = value_and_gradient(loss, scores, target, mask)
    x = scores.numpy()
    assert value.item() == pytest.approx(entry.reference(x, g, activation, w, **options), rel=1e-10)
    # Small steps: the order of neighbours must stay.
    ref.assert_gradient(
        gradient.numpy(), lambda moved: entry.reference(moved, g, activation, w, **options), x, 1e-7, step=1e-7
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
    torch.testing.assert_close(skeletons._skeleton(a[0, 0], iterations), expected[0, 0].detach())
    for keep in range(iterations + 2):
        got = skeletons._slope_of_skeleton(a[0, 0], factor[0, 0].clone(), iterations, keep)
        torch.testing.assert_close(got, slope[0, 0], rtol=1e-12, atol=1e-15)


def test_the_skeleton_of_a_mask_is_that_of_its_numbers() -> None:
    mask = torch.rand(6, 7, 8) > 0.2
    assert torch.equal(skeletons._skeleton(mask, 3).float(), skeletons._skeleton(mask.float(), 3))


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
@each("options", [{}, {"iterations": 3}, {"iterations": 40}, {"include_background": True}])
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
