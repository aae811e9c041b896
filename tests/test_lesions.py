"""Losses of components: their formulas, what one component costs, cells given and cut, time and memory."""

import sys
import time
from typing import Any

import numpy as np
import pytest
import references as ref
import torch
from loss_list import ENTRIES, SOFTMAX, assert_lean, each, labels_like, one_hot, value_and_gradient
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor

from monai_extra_losses import BlobDiceCELoss, ComponentDiceCELoss, CompoundLoss, FusedDiceCELoss, HeadLoss
from monai_extra_losses.engines import LossWithMaps, PrepareBatchMaps
from monai_extra_losses.ops import plan as plans
from monai_extra_losses.ops.components import cells_of_regions, components_of_regions

BOTH = ["ComponentDiceCELoss", "BlobDiceCELoss"]


def options_of(name: str) -> list[dict[str, Any]]:
    return [{}, *ENTRIES[name].variants.values(), *ENTRIES[name].further]


def spots_like(scores: Tensor, share: float = 0.15) -> Tensor:
    """(B, 1, *spatial) labels of small components: background, and each other class here and there."""
    return labels_like(scores) * (torch.rand(scores.shape[0], 1, *scores.shape[2:]) < share)


@each("options", options_of("ComponentDiceCELoss"))
@each("kind", ["labels", "labels and mask", "one-hot and ignored", "regions", "soft and mask"])
@each("shape", [(2, 3, 9, 8), (1, 4, 5, 6, 4), (2, 2, 5, 4, 6), (1, 2, 17)])
@pytest.mark.parametrize("name", BOTH)
def test_value_and_gradient_are_those_of_a_loop_over_components(
    name: str, shape: tuple[int, ...], kind: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    scores = 2 * torch.randn(shape, dtype=torch.float64)
    labels, mask, w = spots_like(scores), None, np.ones((shape[0], 1, *shape[2:]))
    g, more = ref.one_hot(labels.numpy(), shape[1]), {"to_onehot_y": "labels" in kind}
    activation = "sigmoid" if kind in ("regions", "soft and mask") else "softmax"
    if "mask" in kind:
        mask = torch.rand(w.shape, dtype=torch.float64) * (torch.rand(w.shape) > 0.2)
        w = mask.numpy()
    if "ignored" in kind:
        more, w = {"ignore_index": 1, "to_onehot_y": False}, (labels != 1).double().numpy()
    if kind == "regions":
        g[:, 0] = np.maximum(g[:, 0], g[:, -1])  # they overlap
    if kind == "soft and mask":
        g = g * 0.7 + 0.2 * torch.rand(shape, dtype=torch.float64).numpy()
    target = labels if "labels" in kind else torch.from_numpy(g)
    entry = ENTRIES[name]
    value, gradient = value_and_gradient(entry.make(activation, **options, **more), scores, target, mask)
    x = scores.numpy()
    assert value.item() == pytest.approx(entry.reference(x, g, activation, w, **options), rel=1e-10)
    ref.assert_gradient(gradient.numpy(), lambda moved: entry.reference(moved, g, activation, w, **options), x, 1e-7)


# --- components and cells ---


@each("axes", [1, 2, 3])
def test_components_are_those_of_scipy(axes: int) -> None:
    regions = torch.rand(60, 2, *(9, 8, 7)[:axes]) > torch.linspace(0.4, 1, 60).view(-1, *[1] * (axes + 1))
    regions[0, 1] = False
    for connectivity in (None, *range(1, axes + 1)):
        got = components_of_regions(regions, connectivity)
        structure = ndimage.generate_binary_structure(axes, connectivity or axes)
        for n, c in np.ndindex(60, 2):
            expected, number = ndimage.label(regions[n, c].numpy(), structure)
            pairs = set(zip(got[n, c].flatten().tolist(), expected.flatten().tolist(), strict=True))
            assert len(pairs) == len(np.unique(expected)), "another numbering of the same components"
            assert got[n, c].max() == number
    with pytest.raises(ValueError, match=rf"expected connectivity in 1 to {axes} for {axes} spatial axes, got 4; None"):
        components_of_regions(regions, 4)


@each("spacing", [None, (2.0, 0.5, 1.0), [(1.0, 1.0, 1.0), (3.0, 1.0, 0.7)]])
def test_a_cell_is_what_is_nearest_in_mm(spacing: Any) -> None:
    regions = torch.rand(2, 2, 11, 9, 8) > 0.97
    regions[1, 1] = False
    cells, components = cells_of_regions(regions, None, spacing), components_of_regions(regions, None)
    assert not cells[1, 1].any()
    rows = np.broadcast_to(np.ones(3) if spacing is None else np.array(spacing), (2, 3))
    for n, c in ((0, 0), (0, 1), (1, 0)):
        own, known = cells[n, c].numpy(), components[n, c].numpy()
        distances = np.stack(
            [ndimage.distance_transform_edt(known != k, sampling=rows[n]) for k in range(1, known.max() + 1)]
        )
        chosen = np.take_along_axis(distances, own[None].astype(np.int64) - 1, 0)[0]
        np.testing.assert_allclose(chosen, distances.min(0), rtol=1e-12)
        assert (own[known > 0] == known[known > 0]).all()
        assert len(np.unique(own)) > 3


def test_spacing_of_the_target_decides_what_is_nearest() -> None:
    labels = torch.zeros(1, 1, 9, 9)
    labels[..., 0, 4], labels[..., 8, 0] = 1, 1
    scores = torch.randn(1, 2, 9, 9)
    affine = torch.diag(torch.tensor([1.0, 5.0, 1.0, 1.0], dtype=torch.float64))
    got = ComponentDiceCELoss(**SOFTMAX)(scores, MetaTensor(labels, affine=affine))
    assert got == ComponentDiceCELoss(spacing=(1.0, 5.0), **SOFTMAX)(scores, labels)
    assert got != ComponentDiceCELoss(**SOFTMAX)(scores, labels)
    assert ComponentDiceCELoss(spacing=None, **SOFTMAX)(scores, MetaTensor(labels, affine=affine)) == (
        ComponentDiceCELoss(**SOFTMAX)(scores, labels)
    )


# --- what a component costs ---


@pytest.mark.parametrize("cls", [ComponentDiceCELoss, BlobDiceCELoss])
def test_one_component_is_the_loss_of_the_whole(cls: type) -> None:
    """Its cell is the sample: Dice and one-vs-rest cross-entropy of it."""
    scores, labels = torch.randn(2, 2, 8, 9, dtype=torch.float64), torch.zeros(2, 1, 8, 9)
    labels[..., 2:5, 3:6] = 1
    parts = FusedDiceCELoss(include_background=False, **SOFTMAX)  # of two classes a softmax is one-vs-rest
    torch.testing.assert_close(
        value_and_gradient(cls(**SOFTMAX), scores, labels), value_and_gradient(parts, scores, labels)
    )


@pytest.mark.parametrize("cls", [ComponentDiceCELoss, BlobDiceCELoss])
def test_a_small_component_costs_as_much_as_a_large_one(cls: type) -> None:
    labels = torch.zeros(1, 1, 40, 40)
    labels[..., 2:30, 2:30], labels[..., 36, 36:38] = 1, 1
    small, large = labels.clone(), labels.clone()
    small[..., 36, 36:38], large[..., 2:30, 2:30] = 0, 0
    loss = cls(lambda_ce=0.0)
    for missed in (small, large):
        assert loss(missed, labels).item() == pytest.approx(0.5, abs=1e-4)
    assert loss(labels, labels) == 0


def test_moving_a_component_changes_its_own_term_alone() -> None:
    labels, moved = torch.zeros(1, 1, 5, 60), torch.zeros(1, 1, 5, 60)
    cells = torch.ones(1, 1, 5, 60, dtype=torch.int32)
    cells[..., 20:40], cells[..., 40:] = 2, 3
    for first in (4, 25, 50):
        labels[..., 2, first : first + 3] = 1
        moved[..., 2, first + 5 * (first == 25) : first + 5 * (first == 25) + 3] = 1
    scores, loss = torch.randn(1, 2, 5, 60, dtype=torch.float64), ComponentDiceCELoss(**SOFTMAX)
    before, slope = value_and_gradient(lambda x: loss(x, labels, cells=cells), scores)
    after, other = value_and_gradient(lambda x: loss(x, moved, cells=cells), scores)
    own = [ComponentDiceCELoss(**SOFTMAX)(scores, g, cells == 2, cells=cells) for g in (labels, moved)]
    torch.testing.assert_close(before - after, (own[0] - own[1]) / 3)
    assert before != after
    changed = ((slope - other) != 0).any(1)
    assert changed[..., 20:40].any()
    assert not changed[..., :20].any()
    assert not changed[..., 40:].any()


def test_two_classes_are_judged_apart() -> None:
    scores, labels = torch.randn(1, 3, 12, 13, dtype=torch.float64), torch.zeros(1, 1, 12, 13, dtype=torch.int64)
    labels[..., 1:3, 1:3], labels[..., 3, 3:6], labels[..., 9, 9:11] = 1, 2, 2  # they touch, and are two
    for cls in (ComponentDiceCELoss, BlobDiceCELoss):
        each_class = cls(reduction="none", **SOFTMAX)(scores, labels)[0, :, 0, 0]
        for c in (1, 2):
            region = (labels == c).float()
            alone = cls(include_background=True)(scores.softmax(1)[:, c : c + 1], region)
            torch.testing.assert_close(each_class[c - 1], alone)
        torch.testing.assert_close(cls(**SOFTMAX)(scores, labels), each_class.mean())
        weighted = cls(weight=[2.0, 3.0], **SOFTMAX)(scores, labels)
        torch.testing.assert_close(weighted, (2 * each_class[0] + 3 * each_class[1]) / 2)


@pytest.mark.parametrize("cls", [ComponentDiceCELoss, BlobDiceCELoss])
def test_a_class_without_components(cls: type) -> None:
    """ "smooth": the sample is its cell, so that a false positive costs; "skip": it leaves the mean."""
    scores, labels = torch.randn(2, 3, 8, 9, dtype=torch.float64), torch.zeros(2, 1, 8, 9, dtype=torch.int64)
    labels[0, 0, 4, 2:5], labels[1, 0, 3, 3], labels[1, 0, 6, 6:8] = 1, 1, 2
    smooth, skip = (cls(absent_class=rule, **SOFTMAX) for rule in ("smooth", "skip"))
    table = cls(reduction="none", **SOFTMAX)(scores, labels)[:, :, 0, 0]
    p = scores.softmax(1)[0, 2]
    torch.testing.assert_close(table[0, 1], 1 - 1e-5 / (p.sum() + 1e-5) - torch.log1p(-p).mean())
    torch.testing.assert_close(smooth(scores, labels), table.mean())
    torch.testing.assert_close(skip(scores, labels), (table.sum() - table[0, 1]) / 3)
    empty = torch.zeros_like(labels)
    value, gradient = value_and_gradient(skip, scores, empty)
    assert value == 0
    assert not gradient.any()
    assert smooth(60 * one_hot(empty, 3), empty) < 1e-6


# --- cells that are given ---


@pytest.mark.parametrize("cls", [ComponentDiceCELoss, BlobDiceCELoss])
def test_given_cells_are_those_of_the_call(cls: type) -> None:
    scores = torch.randn(2, 4, 9, 8, 7, dtype=torch.float64)
    labels = spots_like(scores, 0.1)
    regions = one_hot(labels, 4) > 0
    cells = cells_of_regions(regions, None, None)
    for options, given in (
        ({}, cells),
        ({}, cells[:, 1:]),
        ({}, cells.float()),
        ({}, cells.to(torch.int16)),
        ({"include_background": True}, cells),
    ):
        loss = cls(**SOFTMAX, **options)
        got = value_and_gradient(lambda x, y, f=loss, z=given: f(x, y, cells=z), scores, labels)
        torch.testing.assert_close(got, value_and_gradient(loss, scores, labels))
    far_apart = torch.where(cells > 0, 7 * cells + 1000, 0)  # what the numbers are does not matter
    torch.testing.assert_close(cls(**SOFTMAX)(scores, labels, cells=far_apart), cls(**SOFTMAX)(scores, labels))


def test_a_component_that_a_crop_cuts_stays_what_it_is() -> None:
    """A ring whose crop are two pieces is one component; a cell whose component is beyond the crop leaves the mean."""
    labels = torch.zeros(1, 1, 20, 30)
    labels[..., 2:18, 4], labels[..., 2:18, 12], labels[..., 17, 4:13], labels[..., 4, 25] = 1, 1, 1, 1
    cells = cells_of_regions(labels > 0, None, None)
    scores = torch.randn(1, 2, 20, 30, dtype=torch.float64)
    crop = (..., slice(0, 10), slice(0, 23))
    assert set(cells[crop].unique().tolist()) == {1, 2}
    got = ComponentDiceCELoss(**SOFTMAX)(scores[crop], labels[crop], cells=cells[crop])
    ring = cells[crop] == 1
    expected = ComponentDiceCELoss(**SOFTMAX)(scores[crop], labels[crop], ring, cells=torch.ones_like(ring).int())
    torch.testing.assert_close(got, expected)
    assert components_of_regions(labels[crop] > 0, None).max() == 2
    assert got != ComponentDiceCELoss(**SOFTMAX)(scores[crop], labels[crop])


@each("activation", ["softmax", "sigmoid"])
@each("num_classes", [2, 4])
@pytest.mark.parametrize("name", BOTH)
def test_memory_is_that_of_a_lean_loss(name: str, num_classes: int, activation: str) -> None:
    scores = torch.randn(1, num_classes, 40, 64, 64)
    labels = spots_like(scores, 0.01).byte()
    cells = cells_of_regions(one_hot(labels, num_classes)[:, 1:] > 0, None, None)
    loss = ENTRIES[name].make(activation, include_background=False)
    assert_lean(lambda x, y: loss(x, y, cells=cells), scores, labels)


def test_the_time_of_many_components_is_that_of_few() -> None:
    """Without a loop over them; the number itself is that of benchmarks/bench_components.py."""
    scores = torch.randn(1, 2, 64, 64, 64, requires_grad=True)
    few, many = torch.zeros(1, 1, 64, 64, 64), torch.zeros(1, 1, 64, 64, 64)
    few[..., :32] = 1
    many[..., ::6, ::6, ::6] = 1
    loss, cells = ComponentDiceCELoss(**SOFTMAX), [cells_of_regions(y > 0, None, None) for y in (few, many)]
    assert [int(z.max()) for z in cells] == [1, 11**3]

    def step(labels: Tensor, known: Tensor) -> float:
        start = time.perf_counter()
        loss(scores, labels, cells=known).backward()
        return time.perf_counter() - start

    times = [[step(y, z) for y, z in zip((few, many), cells, strict=True)] for _ in range(7)]
    assert min(after for _, after in times) < 3 * min(before for before, _ in times)


@pytest.mark.slow
def test_500_components_take_at_most_twice_the_time_of_dice_and_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both in plain torch: sums of components have no compiled loop."""
    monkeypatch.setattr(plans, "_NUMBA", "0")
    scores, labels = torch.randn(1, 2, 128, 128, 128, requires_grad=True), torch.zeros(1, 1, 128, 128, 128).byte()
    labels[..., 4::16, 4::16, 4::16] = 1
    cells = cells_of_regions(labels > 0, None, None)
    assert cells.max() == 512

    def step(loss: torch.nn.Module, **maps: Tensor) -> float:
        start = time.perf_counter()
        loss(scores, labels, **maps).backward()
        return time.perf_counter() - start

    own, other = ComponentDiceCELoss(**SOFTMAX), FusedDiceCELoss(**SOFTMAX)
    times = [(step(own, cells=cells), step(other)) for _ in range(16)][1:]
    assert float(np.median([a / b for a, b in times])) <= 2.5  # 1.7 on a quiet machine


def test_cells_reach_the_loss_through_a_batch_and_a_compound() -> None:
    scores = torch.randn(2, 3, 12, 11)
    labels = spots_like(scores)
    cells = cells_of_regions(one_hot(labels, 3)[:, 1:] > 0, None, None)
    own, dice_ce = ComponentDiceCELoss(**SOFTMAX), FusedDiceCELoss(**SOFTMAX)
    _, target = PrepareBatchMaps("cells")({"image": scores, "label": labels, "cells": cells})
    compound = CompoundLoss({"dice_ce": dice_ce, "components": own}, weights=[0.5, 0.5])
    expected = (dice_ce(scores, labels) + own(scores, labels)) / 2
    torch.testing.assert_close(LossWithMaps(compound, maps=["cells"])(scores, target), expected)
    with pytest.raises(TypeError, match="expected a loss that reads cells, got CompoundLoss"):
        LossWithMaps(CompoundLoss([dice_ce]), maps=["cells"])
    with pytest.raises(ValueError, match="expected a part that reads `cells`, got FusedDiceCELoss: leave it out"):
        CompoundLoss([dice_ce])(scores, labels, cells=cells)
    head, features = torch.nn.Conv2d(4, 3, 1), torch.randn(2, 4, 12, 11)
    got = HeadLoss(head, own)(features, labels, cells=cells)
    torch.testing.assert_close(got, own(head(features), labels))
    with pytest.raises(ValueError, match="expected a loss that reads `cells`, got FusedDiceCELoss: leave it out"):
        HeadLoss(head, dice_ce)(features, labels, cells=cells)


def test_wrong_cells_are_refused() -> None:
    scores, labels = torch.randn(1, 3, 8, 9), torch.zeros(1, 1, 8, 9)
    labels[..., 3, 3:5] = 1
    cells = torch.ones(1, 2, 8, 9, dtype=torch.int32)
    loss = ComponentDiceCELoss(**SOFTMAX)
    with pytest.raises(ValueError, match=r"expected cells \(1, 3, 8, 9\) like the input, or without its background"):
        loss(scores, labels, cells=cells[:, :1])
    with pytest.raises(ValueError, match=r"expected cells of 3 classes with include_background=True, got 2"):
        ComponentDiceCELoss(include_background=True, **SOFTMAX)(scores, labels, cells=cells)
    for wrong in (-cells, cells + 0.5, cells * float("nan")):
        with pytest.raises(ValueError, match="expected cells that are whole numbers >= 0, got"):
            loss(scores, labels, cells=wrong)
    with pytest.raises(TypeError, match=r"expected cells of whole numbers, got torch\.bool"):
        loss(scores, labels, cells=cells > 0)
    cells[..., 4] = 0
    with pytest.raises(ValueError, match=r"expected cells with a component for every voxel .*, got 1 voxels without"):
        loss(scores, labels, cells=cells)
    with pytest.raises(ValueError, match=r"expected cells where the target cannot be read \(vmap\), got none"):
        torch.vmap(lambda x, y: loss(x[None], y[None]))(scores, labels)
    cells[:] = 1
    got = torch.vmap(lambda x, y, z: loss(x[None], y[None], cells=z[None]))(scores, labels, cells)
    torch.testing.assert_close(got[0], loss(scores, labels))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = torch.randn(1, 2, 8, 9), torch.zeros(1, 1, 8, 9)
    labels[..., 3, 3], labels[..., 6, 6] = 1, 1
    for module, package in (("scipy.ndimage", "scipy"), ("cc3d", "connected-components-3d")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"expected {package}, .* got none; install it: pip install {package}"):
            ComponentDiceCELoss(**SOFTMAX)(scores, labels)
