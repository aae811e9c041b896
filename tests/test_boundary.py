"""The boundary losses against their formulas with scipy's distances, and what they are for: mm, holes, directions."""

import functools
import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import references as ref
import torch
import torch.nn.functional as F
from loss_list import LABELS, LOSSES, SOFTMAX, LossEntry, each, labels_like, one_hot, told, value_and_gradient
from monai.data import MetaTensor, list_data_collate
from monai.losses import DeepSupervisionLoss
from monai.transforms import CenterSpatialCropd, Compose, RandFlipd, RandSpatialCropd, SpatialPadd, Zoomd
from torch import Tensor, nn

from monai_extra_losses import losses
from monai_extra_losses.engines import LossWithMaps
from monai_extra_losses.losses import (
    CompoundLoss,
    CrossEntropyLoss,
    DistancePenaltyCrossEntropyLoss,
    FusedDiceLoss,
    GeneralizedSurfaceLoss,
    HausdorffERLoss,
    HausdorffLoss,
    LogHausdorffLoss,
    ShapeAwareLoss,
    ShapeMismatchError,
    SurfaceLoss,
)

BOUNDARY = [entry for entry in LOSSES if entry.measures and not entry.extended]  # erosions have a harness below


def blobs(shape: tuple[int, ...]) -> Tensor:
    """(B, 1, *spatial) labels of some extent: the classes of three samples differ, and the last lacks one."""
    generator = torch.Generator().manual_seed(sum(shape))
    coarse = torch.randint(0, shape[1], (shape[0], 1, *[(n + 1) // 2 for n in shape[2:]]), generator=generator)
    for axis in range(2, len(shape)):
        coarse = coarse.repeat_interleave(2, axis).narrow(axis, 0, shape[axis])
    coarse[-1][coarse[-1] == shape[1] - 1] = 0
    return coarse


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("entry", BOUNDARY, ids=lambda entry: entry.name)
def test_value_and_gradient_are_those_of_the_formula(entry: LossEntry, activation: str) -> None:
    if activation == "none" and entry.family == "distribution":
        pytest.skip("of probabilities its voxels are those of the softmax")
    plane, solid = (2, 3, 5, 4), (2, 2, 2, 3, 4)
    cases = [({}, plane, "mm", kind) for kind in ("labels", "onehot", "mask", "ignored")]
    cases += [({}, plane, None, "labels"), ({}, solid, "mm", "mask"), ({}, solid, None, "ignored")]
    more = [(options, plane, "mm", "mask") for options in (*entry.variants.values(), *entry.further)]
    for options, shape, spacing, kind in [*cases, *more]:
        with told(options, shape, spacing, kind):
            compare_with_the_formula(entry, options, shape, activation, spacing, kind)


def compare_with_the_formula(
    entry: LossEntry, own: dict[str, Any], shape: tuple[int, ...], activation: str, spacing: str | None, kind: str
) -> None:
    mm = None if spacing is None else (0.7, 6.0, 1.3)[: len(shape) - 2]
    torch.manual_seed(0)
    x = 2 * torch.randn(shape, dtype=torch.float64)
    x = x.softmax(1) if activation == "none" else x
    labels = blobs(shape)
    w = torch.ones(shape[0], 1, *shape[2:], dtype=torch.float64)
    options: dict[str, Any] = {"to_onehot_y": kind != "onehot", "spacing": mm, **own}
    target, mask = labels, None
    g = ref.one_hot(labels.numpy(), shape[1])
    if kind == "onehot":
        target = torch.from_numpy(g)
    if kind in ("mask", "ignored"):
        w = (torch.rand(w.shape, generator=torch.Generator().manual_seed(1)) > 0.2).double()
        if kind == "mask":
            mask = w = w * (0.5 + torch.rand(w.shape, generator=torch.Generator().manual_seed(2)).double())
        else:
            target, options["ignore_index"] = labels.masked_fill(w == 0, 255), 255
    value, gradient = value_and_gradient(entry.make(activation, **options), x, target, mask)

    def formula(moved: ref.Array) -> float:
        return entry.reference(moved, g, activation, w.numpy(), spacing=mm, **own)

    # The distances are float32.
    assert value.item() == pytest.approx(formula(x.numpy()), rel=2e-6, abs=1e-7)
    atol = 2e-6 * gradient.abs().max().item() + 1e-10
    ref.assert_gradient(gradient.numpy(), formula, x.numpy(), atol, rtol=1e-5)


def mean_by_erosion(p: ref.Array, g: ref.Array, w: ref.Array, **knobs: Any) -> float:
    return float(ref.hausdorff_by_erosion(p, g, w, **knobs).mean())


@each("masked", [False, True])
@each("shape", [(1, 2, 10, 11), (1, 2, 6, 8, 7)])
def test_hausdorff_by_erosion_is_its_formula(shape: tuple[int, ...], masked: bool) -> None:
    """Errors of some extent, of all sizes: those of noise are gone after one erosion."""
    labels = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.int64)
    labels[..., 1:5, 2:7] = 1
    torch.manual_seed(0)
    p = 0.9 * one_hot(labels, 2, torch.float64).roll((4, 2), (2, 3)) + 0.1 * torch.rand(shape, dtype=torch.float64)
    mask = (torch.rand(shape[0], 1, *shape[2:]) > 0.05).double() * 1.5 if masked else None
    w = np.ones((shape[0], 1, *shape[2:])) if mask is None else mask.numpy()
    g = ref.one_hot(labels.numpy(), 2)
    for knobs in ({}, {"alpha": 1.0, "erosions": 3}):
        value, gradient = value_and_gradient(HausdorffERLoss(**LABELS, **knobs), p, labels, mask)
        expected = ref.hausdorff_by_erosion(p.numpy(), g, w, **knobs).mean()
        assert value.item() == pytest.approx(expected, rel=1e-10)
        assert value > 0.01
        formula = functools.partial(mean_by_erosion, g=g, w=w, **knobs)
        ref.assert_gradient(gradient.numpy(), formula, p.numpy(), 1e-6 * gradient.abs().max().item(), step=1e-7)


# --- millimetres ---


def box(shift: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    target = torch.zeros(1, 1, 16, 16, 16)
    target[..., 4:8, 4:8, 4:8] = 1
    return target.roll(shift, (2, 3, 4))


@pytest.mark.parametrize("loss", [SurfaceLoss, GeneralizedSurfaceLoss, HausdorffLoss, LogHausdorffLoss])
def test_an_error_along_the_thick_axis_costs_more_in_mm(loss: type[nn.Module]) -> None:
    thin, thick = box((2, 0, 0)), box((0, 0, 2))
    in_voxels = loss(spacing=None)
    assert in_voxels(thin, box()) == pytest.approx(in_voxels(thick, box()).item(), rel=1e-6)
    in_mm = loss(spacing=(1.0, 1.0, 6.0))
    # the bounded loss weighs an error against all others, in mm too
    assert in_mm(thick, box()) > (1.2 if loss in (GeneralizedSurfaceLoss, LogHausdorffLoss) else 2) * in_mm(thin, box())


def test_spacing_comes_from_the_affine_of_each_item() -> None:
    spacings = [(0.5, 1.0, 6.0), (2.0, 1.5, 1.0)]
    torch.manual_seed(0)
    items, alone = [], []
    scores = torch.randn(2, 2, 6, 5, 4)
    for n, spacing in enumerate(spacings):
        rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
        affine = torch.eye(4, dtype=torch.float64)
        affine[:3, :3] = rotation @ torch.diag(torch.tensor(spacing, dtype=torch.float64))  # an oblique volume
        affine[:3, 3] = 17.0
        label = blobs((2, 2, 6, 5, 4))[n]
        items.append({"label": MetaTensor(label, affine=affine)})
        alone.append(SurfaceLoss(spacing=spacing, **SOFTMAX)(scores[n : n + 1], label.unsqueeze(0)))
        one = MetaTensor(label.unsqueeze(0), affine=affine)  # no batch axis in the affine
        torch.testing.assert_close(SurfaceLoss(**SOFTMAX)(scores[n : n + 1], one), alone[-1])
    batch = list_data_collate(items)["label"]
    assert batch.affine.shape == (2, 4, 4)
    torch.testing.assert_close(SurfaceLoss(**SOFTMAX)(scores, batch), torch.stack(alone).mean())
    voxels = SurfaceLoss(spacing=None, **SOFTMAX)
    torch.testing.assert_close(voxels(scores, batch), SurfaceLoss(**SOFTMAX)(scores, batch.as_tensor()))
    assert not torch.isclose(voxels(scores, batch), torch.stack(alone).mean())


IN_MM = {
    name: getattr(losses, name)
    for name in (
        "SurfaceLoss",
        "GeneralizedSurfaceLoss",
        "HausdorffLoss",
        "LogHausdorffLoss",
        "DistancePenaltyCrossEntropyLoss",
        "ShapeAwareLoss",
    )
}
LEVELS = ((12, 16, 6), (6, 8, 3), (3, 8, 2))  # the last by unequal factors


def collated(spacing: tuple[float, ...] = (1.0, 2.0, 3.0)) -> MetaTensor:
    """Two labels as MONAI's loader gives them."""
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    label = torch.zeros(1, *LEVELS[0])
    label[:, 3:9, 3:12, 1:5] = 1
    return list_data_collate([{"label": MetaTensor(label.roll(n, 2), affine=affine)} for n in range(2)])["label"]


def resized(label: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(label, size=size, mode="nearest-exact")


@pytest.mark.parametrize("name", IN_MM)
@each("how", ["collated", "by hand", "compound", "spacing given", "spacing given to a MetaTensor"])
@each("first", [0, 1])
def test_each_level_of_deep_supervision_measures_on_its_own_grid(name: str, how: str, first: int) -> None:
    """MONAI interpolates the target to each level, and leaves the affine of the whole."""
    loss, label = IN_MM[name], collated()
    spacing = {"spacing": (1.0, 2.0, 3.0)} if "given" in how else {}
    if how == "by hand":
        label = MetaTensor(label.as_tensor(), affine=label.affine[0])
    given = label.as_tensor() if how == "spacing given" else label
    scores = [torch.randn(2, 2, *size) for size in LEVELS[first:]]
    weights = [1.0, 0.5, 0.25][first:]
    one = loss(**SOFTMAX, **spacing)
    supervised = DeepSupervisionLoss(CompoundLoss([one]) if how == "compound" else one, weights=weights)
    expected = torch.zeros(())
    for weight, x in zip(weights, scores, strict=True):
        mm = [s * whole / part for s, whole, part in zip((1.0, 2.0, 3.0), LEVELS[0], x.shape[2:], strict=True)]
        expected = expected + weight * loss(spacing=mm, **SOFTMAX)(x, resized(label.as_tensor(), x.shape[2:]))
    torch.testing.assert_close(supervised(scores, given), expected)
    voxels = DeepSupervisionLoss(loss(**SOFTMAX, spacing=None), weights=weights)(scores, given)
    of_plain = DeepSupervisionLoss(loss(**SOFTMAX), weights=weights)(scores, label.as_tensor())
    torch.testing.assert_close(voxels, of_plain)  # voxels stay voxels
    assert not torch.isclose(voxels, expected)


class WithMap(nn.Module):
    """Hands a loss the map that fits the level."""

    def __init__(self, loss: nn.Module, maps: dict[tuple[int, ...], Tensor]) -> None:
        super().__init__()
        self.loss, self.maps = loss, maps

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self.loss(input, target, distance=self.maps[tuple(input.shape[2:])])


@pytest.mark.parametrize("name", sorted(IN_MM.keys() - {"ShapeAwareLoss"}))
def test_levels_with_a_map_measure_the_rest_on_their_own_grid(name: str) -> None:
    loss, label = IN_MM[name], collated()
    scores = [torch.randn(2, 2, *size) for size in LEVELS]
    maps = {size: torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0)) for size in LEVELS}
    got = DeepSupervisionLoss(WithMap(loss(**SOFTMAX), maps), weights=[1.0] * 3)(scores, label)
    expected = torch.zeros(())
    for x in scores:
        mm = [s * whole / part for s, whole, part in zip((1.0, 2.0, 3.0), LEVELS[0], x.shape[2:], strict=True)]
        target = resized(label.as_tensor(), x.shape[2:])
        expected = expected + loss(spacing=mm, **SOFTMAX)(x, target, distance=maps[tuple(x.shape[2:])])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", IN_MM)
def test_a_target_interpolated_by_hand_is_noticed(name: str) -> None:
    loss, label = IN_MM[name](**SOFTMAX), collated()
    whole, half = torch.randn(2, 2, *LEVELS[0]), torch.randn(2, 2, *LEVELS[1])
    for order in ((0, 1), (1, 0)):
        label = collated()
        calls = [(whole, label), (half, resized(label, LEVELS[1]))]
        assert loss(*calls[order[0]]).isfinite()
        with pytest.raises(ValueError, match=r"expected an affine of the target's own grid, got that of a target of"):
            loss(*calls[order[1]])
        loss(*calls[order[0]])
        IN_MM[name](spacing=(2.0, 4.0, 6.0), **SOFTMAX)(half, resized(label, LEVELS[1]))
        IN_MM[name](spacing=None, **SOFTMAX)(half, resized(label, LEVELS[1]))
    own = MetaTensor(resized(label.as_tensor(), LEVELS[1]), affine=torch.diag(torch.tensor([2.0, 4.0, 6.0, 1.0])))
    torch.testing.assert_close(
        loss(half, own), IN_MM[name](spacing=(2.0, 4.0, 6.0), **SOFTMAX)(half, own.as_tensor()), rtol=1e-6, atol=0
    )


def test_crops_and_pads_keep_the_spacing_of_their_file() -> None:
    """Their shape is none that the file or another item of the data set has."""
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))

    def item(n: int) -> dict[str, MetaTensor]:
        label = MetaTensor(torch.zeros(1, 20, 22, 12), affine=affine, meta={"spatial_shape": np.array([20, 22, 12])})
        label[:, 6:15, 5:14, 3:9] = n % 2
        return {"label": label}

    pipelines = [
        RandSpatialCropd("label", (16, 12, 8), random_size=False),
        SpatialPadd("label", (32, 32, 16)),
        Compose([RandSpatialCropd("label", (10, 12, 8), random_size=False), SpatialPadd("label", (16, 16, 8))]),
        CenterSpatialCropd("label", (8, 8, 4)),
        RandFlipd("label", prob=1.0, spatial_axis=0),
    ]
    for transform in pipelines:
        batch = list_data_collate([transform(item(n)) for n in (1, 1)])["label"]
        # parts by indexing, as a loop over windows takes them, too
        parts = [batch[..., 2:6], batch[:, :, 1:, 2:].clone()]
        for target in (*parts, batch, batch.to(torch.uint8), batch[:1], *parts):
            scores = torch.randn(target.shape[0], 2, *target.shape[2:])
            expected = SurfaceLoss(spacing=(1.0, 2.0, 3.0), **SOFTMAX)(scores, target.as_tensor())
            torch.testing.assert_close(SurfaceLoss(**SOFTMAX)(scores, target), expected)
    zoomed = Zoomd("label", 0.5, mode="nearest", keep_size=False)(item(1))["label"].unsqueeze(0)
    scores = torch.randn(1, 2, *zoomed.shape[2:])
    expected = SurfaceLoss(spacing=(2.0, 4.0, 6.0), **SOFTMAX)(scores, zoomed.as_tensor())
    torch.testing.assert_close(SurfaceLoss(**SOFTMAX)(scores, zoomed), expected)


def test_the_surface_loss_subtracts_the_smallest_spacing() -> None:
    target = torch.tensor([[[0.0, 1.0, 1.0, 1.0, 0.0]]])
    for spacing, unit in ((None, 1.0), ((3.0,), 3.0)):
        assert SurfaceLoss(spacing=spacing)(target, target).item() == pytest.approx(-unit / 5)
    plane = torch.zeros(1, 1, 1, 5)
    plane[..., 1:4] = 1  # inside 2, 4, 2 mm
    assert SurfaceLoss(spacing=(0.5, 2.0))(plane, plane).item() == pytest.approx(-(1.5 + 3.5 + 1.5) / 5)


def test_bad_spacing_is_refused() -> None:
    for bad in ("mm", 2.0, (), (1.0, 0.0), (1.0, -2.0), (float("nan"),), (float("inf"),)):
        with pytest.raises(ValueError, match="expected spacing 'auto', None or one number > 0"):
            SurfaceLoss(spacing=bad)
    scores, flat = torch.randn(1, 2, 4, 4), torch.ones(1, 1, 4, 4).tril()
    with pytest.raises(ValueError, match="expected a spacing of 2 positive numbers, one per spatial axis"):
        SurfaceLoss(spacing=(1.0,), **SOFTMAX)(scores, flat, distance=torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="expected a spacing of 2 positive numbers"):
        SurfaceLoss(spacing=(1.0, 1.0, 1.0), **SOFTMAX)(torch.randn(1, 2, 4, 4), torch.ones(1, 1, 4, 4).tril())
    three = MetaTensor(torch.ones(2, 1, 4, 4).tril())
    three.affine = torch.eye(4).repeat(3, 1, 1)
    with pytest.raises(
        ValueError, match=r"expected the target's affine to be \(4, 4\) or \(2, 4, 4\), got \(3, 4, 4\)"
    ):
        SurfaceLoss(**SOFTMAX)(torch.randn(2, 2, 4, 4), three)


# --- precomputed maps ---

MAPPED = [SurfaceLoss, GeneralizedSurfaceLoss, HausdorffLoss, LogHausdorffLoss, DistancePenaltyCrossEntropyLoss]


@pytest.mark.parametrize("loss", MAPPED)
@each("activation", ["softmax", "sigmoid"])
def test_a_given_distance_is_the_one_computed(loss: type[nn.Module], activation: str) -> None:
    shape = (3, 3, 5, 6, 4)
    labels, scores = blobs(shape), torch.randn(shape)
    labels[1] = 0  # one label only
    mm = (0.7, 6.0, 1.3)
    ones = np.ones((3, 1, 5, 6, 4))
    distance = torch.from_numpy(ref.signed_distances(ref.one_hot(labels.numpy(), 3), ones, mm)).float()
    kept = distance.clone()
    make = loss(spacing=mm, **LABELS, **{activation: True})
    got = value_and_gradient(lambda x, y: make(x, y, distance=distance), scores, labels)
    torch.testing.assert_close(got, value_and_gradient(make, scores, labels), atol=1e-6, rtol=1e-5)
    assert torch.equal(distance, kept)
    other = value_and_gradient(lambda x, y: make(x, y, distance=distance * distance.abs()), scores, labels)
    assert not torch.isclose(other[0], got[0], rtol=1e-4)
    half = make(scores, labels, distance=distance.half())
    torch.testing.assert_close(half, got[0], atol=1e-2 * got[0].abs().item(), rtol=0)


def test_a_distance_that_does_not_fit_is_refused() -> None:
    scores, labels = torch.randn(2, 3, 4, 5), labels_like(torch.empty(2, 3, 4, 5))
    loss = SurfaceLoss(**SOFTMAX)
    with pytest.raises(ShapeMismatchError, match=r"expected distance \(2, 3, 4, 5\) like the input"):
        loss(scores, labels, distance=torch.zeros(2, 1, 4, 5))
    with pytest.raises(TypeError, match=r"expected a floating-point distance, got torch.int64"):
        loss(scores, labels, distance=torch.zeros(2, 3, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected a distance without gradient"):
        loss(scores, labels, distance=torch.zeros(2, 3, 4, 5, requires_grad=True))


def test_a_compound_shares_the_pass_and_hands_the_distance_on() -> None:
    shape = (2, 3, 5, 6, 4)
    scores, labels = torch.randn(shape, dtype=torch.float64), blobs(shape)
    parts = [FusedDiceLoss(**SOFTMAX), SurfaceLoss(**SOFTMAX), DistancePenaltyCrossEntropyLoss(**SOFTMAX)]
    compound = CompoundLoss(parts, weights=[1.0, 0.01, 0.5])
    generator = torch.Generator().manual_seed(0)
    for distance in (None, torch.randn(shape, generator=generator)):
        leaf = scores.clone().requires_grad_()
        expected = parts[0](leaf, labels) + 0.01 * parts[1](leaf, labels, distance=distance)
        expected = expected + 0.5 * parts[2](leaf, labels, distance=distance)
        (gradient,) = torch.autograd.grad(expected, leaf)
        got = value_and_gradient(lambda x, y, d=distance: compound(x, y, distance=d), scores, labels)
        torch.testing.assert_close(got, (expected.detach(), gradient), atol=1e-10, rtol=1e-8)


def test_a_compound_inside_a_compound_gets_the_distance_too() -> None:
    shape = (2, 3, 5, 6, 4)
    scores, labels, distance = torch.randn(shape), blobs(shape), torch.randn(shape)
    surface = SurfaceLoss(**SOFTMAX)
    nested = CompoundLoss([CompoundLoss([surface], weights=[0.5]), FusedDiceLoss(**SOFTMAX)])
    expected = 0.5 * surface(scores, labels, distance=distance) + FusedDiceLoss(**SOFTMAX)(scores, labels)
    torch.testing.assert_close(nested(scores, labels, distance=distance), expected)
    mask = torch.rand(2, 1, *shape[2:])
    expected = 0.5 * surface(scores, labels, mask) + FusedDiceLoss(**SOFTMAX)(scores, labels, mask)
    torch.testing.assert_close(nested(scores, labels, mask), expected)


def test_a_distance_that_no_part_reads_is_refused() -> None:
    scores, labels = torch.randn(1, 3, 4, 5), torch.zeros(1, 1, 4, 5)
    compound = CompoundLoss([FusedDiceLoss(**SOFTMAX), CompoundLoss([CrossEntropyLoss(**SOFTMAX)])])
    with pytest.raises(ValueError, match="expected a part that reads `distance`, got FusedDiceLoss, CompoundLoss"):
        compound(scores, labels, distance=torch.zeros(1, 3, 4, 5))
    with pytest.raises(TypeError, match="expected a loss that reads distance, got CompoundLoss"):
        LossWithMaps(compound)
    with pytest.raises(TypeError, match="expected a loss that reads distance, got HausdorffERLoss"):
        LossWithMaps(HausdorffERLoss())
    assert LossWithMaps(CompoundLoss([compound, SurfaceLoss()])).loss.reads_distance


def test_an_interpolated_map_does_not_turn_a_loss_around() -> None:
    """Rotated with linear interpolation, a map has small values of either sign beside the boundary."""
    target = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    leaf = target.clone().requires_grad_()
    SurfaceLoss(reduction="sum")(leaf, target, distance=torch.tensor([[[1.4, 0.4, -0.4, -1.4]]])).sum().backward()
    assert leaf.grad is not None
    assert (leaf.grad.flatten() * 4).tolist() == pytest.approx([1.4, 0.4, 0.0, -0.4])
    labels = target.long()
    off = torch.tensor([[[-1.4, -0.4, 0.3, 1.4], [1.4, 0.4, 0.3, -1.4]]])  # the boundary is half a voxel off
    factor = DistancePenaltyCrossEntropyLoss(reduction="none", **SOFTMAX)(torch.zeros(1, 2, 4), labels, distance=off)
    assert (factor.flatten() / np.log(2)).tolist() == pytest.approx([1.0, 2.0, 2.0, 1.0], rel=1e-5)


def test_nan_of_a_given_map_does_not_matter_where_nothing_counts() -> None:
    scores, labels, distance = torch.randn(1, 2, 4, 5), torch.ones(1, 1, 4, 5).tril(), torch.randn(1, 2, 4, 5)
    mask = torch.ones(1, 1, 4, 5)
    mask[..., 0] = 0
    for loss in MAPPED:
        expected = loss(**SOFTMAX)(scores, labels, mask, distance)
        assert torch.equal(loss(**SOFTMAX)(scores, labels, mask, distance.masked_fill(mask == 0, torch.nan)), expected)


def test_skewed_axes_warn() -> None:
    label = MetaTensor(torch.ones(1, 1, 4, 4, 4).tril(), affine=torch.eye(4))
    label.affine[0, 1] = 0.3
    with pytest.warns(UserWarning, match="axes are skewed"):
        SurfaceLoss(**SOFTMAX)(torch.randn(1, 2, 4, 4, 4), label)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is measured along them where the map is given
        SurfaceLoss(**SOFTMAX)(torch.randn(1, 2, 4, 4, 4), label, distance=torch.ones(1, 2, 4, 4, 4))


def test_targets_of_any_kind_in_the_voxel_losses() -> None:
    scores, labels = torch.randn(2, 3, 6, 7), blobs((2, 3, 6, 7))
    for loss in (DistancePenaltyCrossEntropyLoss, ShapeAwareLoss, SurfaceLoss):
        expected = loss(**SOFTMAX)(scores, labels)
        for target, options in (
            (one_hot(labels, 3).bool(), {"to_onehot_y": False}),
            (labels.to(torch.uint16), {}),
            (labels.to(torch.int8), {}),
        ):
            torch.testing.assert_close(loss(**{**SOFTMAX, **options})(scores, target), expected)
        assert loss(**SOFTMAX)(scores[:0], labels[:0]) == 0


def test_a_part_without_a_gradient_for_its_target_refuses_one_in_a_compound_too() -> None:
    scores, soft = torch.randn(1, 2, 4, 5), torch.rand(1, 2, 4, 5, requires_grad=True)
    for parts in ([FusedDiceLoss(), SurfaceLoss()], [SurfaceLoss(), FusedDiceLoss()]):
        with pytest.raises(ValueError, match="expected a target without gradient"):
            CompoundLoss(parts)(scores.sigmoid(), soft)


# --- directions and empty cases ---


def test_the_farther_a_false_positive_the_more_it_costs() -> None:
    near, far = box(), box()
    near[..., 9, 5, 5] = 1
    far[..., 15, 15, 15] = 1
    for loss in (SurfaceLoss(), HausdorffLoss(), HausdorffLoss(one_sided=True), LogHausdorffLoss()):
        assert loss(far, box()) > loss(near, box()) > loss(box(), box())
    assert GeneralizedSurfaceLoss()(far, box()) > GeneralizedSurfaceLoss()(near, box()) > 0
    ratio = [HausdorffLoss(a)(far, box()) / HausdorffLoss(a)(near, box()) for a in (1.0, 2.0)]
    assert ratio[1] > 2 * ratio[0]  # alpha stresses the far ones


def test_an_error_that_outlives_more_erosions_costs_more() -> None:
    target = torch.zeros(1, 1, 20, 20)
    values = []
    for side in (1, 3, 7, 11):
        prediction = target.clone()
        prediction[..., 4 : 4 + side, 4 : 4 + side] = 1
        values.append(HausdorffERLoss()(prediction, target).item() / side**2)
    assert values[0] == 0
    assert values[1] < values[2] < values[3]
    assert HausdorffERLoss(erosions=2)(prediction, target) < HausdorffERLoss(erosions=4)(prediction, target)


def test_distance_penalty_is_between_once_and_twice_the_cross_entropy() -> None:
    labels = torch.zeros(1, 1, 9, 9, dtype=torch.int64)
    labels[..., 2:4, 3] = 1  # a lesion one voxel wide: public versions give NaN
    factor = DistancePenaltyCrossEntropyLoss(reduction="none", **SOFTMAX)(torch.zeros(1, 2, 9, 9), labels) / np.log(2)
    assert factor[labels == 1].unique().tolist() == pytest.approx([2.0])
    assert factor.min() == pytest.approx(1.0)
    assert factor[0, 0, 2, 2] == pytest.approx(2.0)  # the background beside it
    assert factor[0, 0, 8, 8] == pytest.approx(1.0)  # the background farthest off
    single, scores = torch.zeros(1, 1, 9, 9), torch.randn(1, 2, 9, 9)
    torch.testing.assert_close(
        DistancePenaltyCrossEntropyLoss(**SOFTMAX)(scores, single), CrossEntropyLoss(**SOFTMAX)(scores, single)
    )


def test_class_weights_of_the_voxel_losses_are_torch_s() -> None:
    labels, scores = blobs((2, 3, 5, 6)), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    weight = [1.0, 2.0, 0.5]
    for loss in (DistancePenaltyCrossEntropyLoss, ShapeAwareLoss):
        none = loss(reduction="none", **SOFTMAX)(scores, labels)
        of_voxel = torch.tensor(weight, dtype=torch.float64)[labels]
        expected = (none * of_voxel).sum() / of_voxel.sum()
        torch.testing.assert_close(loss(weight=weight, **SOFTMAX)(scores, labels), expected)


def test_shape_aware_counts_how_far_the_contour_is_off() -> None:
    values = []
    for shift in (0, 1, 3):
        p = box((0, 0, shift))
        scores = 4 * torch.cat([1 - p, p], 1) - 2
        values.append([loss(**SOFTMAX)(scores, box()).item() for loss in (ShapeAwareLoss, CrossEntropyLoss)])
    assert values[0][0] == pytest.approx(values[0][1])  # no error: plain cross-entropy
    gains = [shape - plain for shape, plain in values]
    assert gains[2] > 2 * gains[1] > 0
    nothing = torch.cat([torch.ones(1, 1, 16, 16, 16), -torch.ones(1, 1, 16, 16, 16)], 1)
    plain = CrossEntropyLoss(**SOFTMAX)(nothing, box())
    got = ShapeAwareLoss(**SOFTMAX)(nothing, box())  # no predicted contour of the box; that of the background is inner
    assert got.item() == pytest.approx(plain.item(), rel=1e-6)


@each("absent_class", ["smooth", "skip"])
@each("activation", ["softmax", "sigmoid"])
def test_the_weights_of_the_generalized_surface_loss_are_those_given(activation: str, absent_class: str) -> None:
    shape = (3, 3, 6, 7)
    scores, labels = torch.randn(shape, dtype=torch.float64), blobs(shape)  # the last sample lacks a class
    weight = [0.2, 3.0, 1.5]
    options: dict[str, Any] = {**LABELS, activation: True, "absent_class": absent_class}
    x, g, w = scores.numpy(), ref.one_hot(labels.numpy(), 3), np.ones((3, 1, 6, 7))

    def formula(moved: ref.Array) -> float:
        p = ref.activated(moved, activation)
        return float(
            ref.generalized_surface(p, g, w, None, class_weight=np.array(weight), absent_class=absent_class).mean()
        )

    value, gradient = value_and_gradient(GeneralizedSurfaceLoss(weight=weight, **options), scores, labels)
    assert value.item() == pytest.approx(formula(x), rel=2e-6)
    np.testing.assert_allclose(gradient.numpy(), ref.gradient(formula, x), atol=1e-7)
    plain = GeneralizedSurfaceLoss(**options)(scores, labels)
    assert abs(plain - value) > 1e-3
    ones = GeneralizedSurfaceLoss(weight=2.0, smooth=2e-5, **options)(scores, labels)  # one number for all
    torch.testing.assert_close(ones, GeneralizedSurfaceLoss(weight=[1.0, 1.0, 1.0], **options)(scores, labels))
    kept = GeneralizedSurfaceLoss(weight=weight[1:], include_background=False, **options)(scores, labels)
    p = ref.activated(x, activation)[:, 1:]
    knobs: dict[str, Any] = {"class_weight": np.array(weight[1:]), "absent_class": absent_class}
    alone = ref.generalized_surface(p, g[:, 1:], w, None, **knobs).mean()
    assert kept.item() == pytest.approx(alone, rel=2e-6)


def test_weights_of_the_training_set_give_a_large_object_a_say_beside_a_small_one() -> None:
    """Missing half of the large one: with the weights of the patch it costs next to nothing."""
    target = torch.zeros(1, 2, 20, 20)
    target[:, 0, 2:18, 2:18], target[:, 1, 0, 0] = 1, 1
    prediction = target.clone()
    prediction[:, 0, 10:18] = 0
    of_patch = GeneralizedSurfaceLoss()(prediction, target)
    of_training_set = GeneralizedSurfaceLoss(weight=[0.5, 0.5])(prediction, target)
    assert of_patch < 0.01
    assert of_training_set > 10 * of_patch


@pytest.mark.parametrize("name", ["SurfaceLoss", "GeneralizedSurfaceLoss", "HausdorffLoss", "LogHausdorffLoss"])
def test_a_class_without_a_boundary_adds_nothing(name: str) -> None:
    """No distance is defined for a class without a voxel, or with all."""
    options = {"one_sided": True} if "Hausdorff" in name else {}
    options = {"absent_class": "skip"} if name == "GeneralizedSurfaceLoss" else options
    loss = getattr(losses, name)(**options)
    for target in (torch.zeros(2, 1, 6, 7), torch.ones(2, 1, 6, 7)):
        value, gradient = value_and_gradient(loss, torch.rand(2, 1, 6, 7), target)
        assert value == 0
        assert (gradient == 0).all()
    if "Hausdorff" in name:  # the predicted boundary counts
        p = torch.zeros(1, 1, 6, 7)
        p[..., 2:4, 2:4] = 1
        assert getattr(losses, name)()(p, torch.zeros(1, 1, 6, 7)) > 0


def test_of_many_classes_and_all_dtypes() -> None:
    """The label maps of the distances are bytes up to 255 classes."""
    labels = torch.arange(2 * 300).view(1, 1, 20, 30) // 2
    scores = torch.randn(1, 300, 20, 30)
    expected = SurfaceLoss(**SOFTMAX)(scores, labels)
    torch.testing.assert_close(SurfaceLoss(softmax=True)(scores, one_hot(labels, 300)), expected)
    for num_classes, dtype in itertools.product((254, 255, 256), (torch.uint8, torch.float32)):
        some = labels.clamp_max(num_classes - 1)
        with_hole = some.clone()
        with_hole[..., :3] = -1
        ignored = SurfaceLoss(ignore_index=-1, **SOFTMAX)(scores[:, :num_classes], with_hole)
        masked = SurfaceLoss(**SOFTMAX)(scores[:, :num_classes], some.to(dtype), with_hole >= 0)
        torch.testing.assert_close(masked, ignored)
