"""What holds of every loss for any call: properties, each with the losses it is of, and the calls it is tried with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import references as ref
import torch
from drawn_calls import DTYPES, FORMATS, Call, calls, reformatted
from hypothesis import assume
from hypothesis import strategies as st
from loss_list import LOSSES, LossEntry
from torch import Tensor

Losses = Callable[[LossEntry], bool]
# A prediction is a region, or in a bin, from a threshold on, or each value is measured by the largest.
JUMPS = {
    "AverageCalibrationLoss",
    "CenterlineBoundaryDiceLoss",
    "CorrelationMaximizedStructuralSimilarityLoss",
    "HausdorffERLoss",
    "HausdorffLoss",
    "LogHausdorffLoss",
}


@dataclass(frozen=True)
class Property:
    """Something that holds of a call.

    Attributes:
        holds: raises AssertionError where it does not; takes the call and a number drawn for it.
        of: which losses.
        drawn: keywords of `calls`.
    """

    holds: Callable[[Call, int], None]
    of: Losses = lambda entry: True
    drawn: dict[str, Any] = field(default_factory=dict)

    @property
    def entries(self) -> list[LossEntry]:
        return [entry for entry in LOSSES if self.of(entry)]

    def of_entry(self, entry: LossEntry) -> st.SearchStrategy[tuple[Call, int]]:
        return st.tuples(calls(entry, **self.drawn), st.integers(0, 2**16))

    def drawn_call(self) -> st.SearchStrategy[tuple[Call, int]]:
        return st.sampled_from(self.entries).flatmap(self.of_entry)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_close(got: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    """Relative to the largest, which is what a sum of all of them is exact to."""
    scale = expected.abs().max().clamp_min(1e-3).item() if expected.numel() else 1.0
    torch.testing.assert_close(got.as_subclass(Tensor), expected, atol=rtol * scale, rtol=rtol)


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert_close(got[0], expected[0])
    assert_close(got[1], expected[1])


def is_finite(call: Call, seed: int) -> None:
    """Value and gradient are numbers, and the value is not below 0 where a perfect prediction costs least."""
    value, gradient = call.value_and_gradient()
    assert value.isfinite().all(), f"value {value.tolist()}"
    assert gradient.isfinite().all(), "gradient"
    if call.entry.smallest is not None:
        assert (value >= -1e-6).all(), f"value {value.tolist()}"
    if not call.keep.any():
        assert (value == 0).all(), f"value {value.tolist()} of nothing"
        assert (gradient == 0).all(), "gradient of nothing"


def is_its_reference(call: Call, seed: int) -> None:
    """The value is that of the float64 reference, for the options that it knows."""
    choices = [{}, *call.entry.variants.values(), *call.entry.further]
    options = {**call.entry.required, **choices[seed % len(choices)]}
    assume(call.keep.flatten(1).any(1).all() and call.scores.shape[1] > 1)  # references have no single channel
    hard = call.entry.hard_reference or call.entry.reads_neighbours
    assume(not hard or bool(((call.target == 0) | (call.target == 1)).all()) or call.labelled)
    # Its reference selects voxels, where the loss counts them.
    assume(call.entry.name != "LovaszLoss" or call.mask is None or call.mask.dtype == torch.bool)
    w = np.ones(call.keep.shape) if call.mask is None else call.mask.double().numpy()
    g = ref.one_hot(call.target.numpy(), call.scores.shape[1]) if call.labelled else call.target.numpy()
    with np.errstate(all="ignore"):
        expected = call.entry.reference(call.scores.numpy(), g, call.case.activation, w, **options)
    assume(np.isfinite(expected))
    got = call.but(options={"to_onehot_y": call.labelled, **options}).value().item()
    # (1 - index) and its like are clamped at 1e-7, of which a root is taken. Distances are float32's,
    # and the tolerance that of test_boundary.py.
    rel, least = (2e-6, 1e-7) if call.entry.measures else (1e-8, 1e-9)
    assert got == pytest.approx(expected, rel=rel, abs=(call.entry.smallest or 0) + least)


def any_order_of_samples(call: Call, seed: int) -> None:
    order = torch.randperm(call.scores.shape[0], generator=random(seed))
    mask = None if call.mask is None else call.mask[order]
    value, gradient = call.value_and_gradient()
    moved = call.but(scores=call.scores[order], target=call.target[order], mask=mask).value_and_gradient()
    pooled = not value.ndim or value.shape[0] != len(order)
    assert_same(moved, (value if pooled else value[order], gradient[order]))


def any_order_of_voxels(call: Call, seed: int) -> None:
    shape = call.scores.shape[2:]
    order = torch.randperm(shape.numel(), generator=random(seed))

    def shuffled(tensor: Tensor) -> Tensor:
        return tensor.flatten(2)[..., order].reshape(tensor.shape)

    mask = None if call.mask is None else shuffled(call.mask)
    value, gradient = call.value_and_gradient()
    moved = call.but(scores=shuffled(call.scores), target=shuffled(call.target), mask=mask).value_and_gradient()
    assert_same(moved, (shuffled(value) if value.shape[2:] == shape else value, shuffled(gradient)))


def any_order_of_classes(call: Call, seed: int) -> None:
    """With their weights."""
    channels = call.scores.shape[1]
    order = torch.randperm(channels, generator=random(seed))
    options: dict[str, Any] = {"include_background": True}
    if call.entry.name in ("FusedFocalLoss", "FusedDiceFocalLoss"):  # of a softmax it treats the background apart
        options["alpha"] = None
    weight = call.options.get("weight")
    weighed = weight is not None and isinstance(weight, list) and len(weight) == channels
    assume(weight is None or weighed)
    moved = {**options, **({"weight": [weight[c] for c in order.tolist()]} if weighed else {})}
    place = order.argsort()
    if call.labelled:
        inside = (call.target >= 0) & (call.target < channels)
        target = torch.where(inside, place[call.target.clamp(0, channels - 1)], call.target)
    else:
        target = call.target[:, order]
    value, gradient = call.value_and_gradient(**options)
    other = call.but(scores=call.scores[:, order], target=target)
    assert_same(other.value_and_gradient(**moved), (value, gradient[:, order]))


def constants_change_nothing(call: Call, seed: int) -> None:
    """Added to the logits of a voxel."""
    shift = 30 * torch.randn(call.keep.shape, generator=random(seed), dtype=torch.float64)
    expected = call.value_and_gradient()
    assert_same(call.but(scores=call.scores + shift).value_and_gradient(), expected)


def ignored_voxels_change_nothing(call: Call, seed: int) -> None:
    """Whatever their scores are, and they get no gradient."""
    first = call.value_and_gradient()
    assert (first[1].masked_fill(call.keep, 0) == 0).all(), "gradient of what is ignored"
    worst = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e4, -3.0], dtype=call.scores.dtype)
    anything = worst[torch.randint(0, 5, call.scores.shape, generator=random(seed))]
    second = call.but(scores=torch.where(call.keep, call.scores, anything)).value_and_gradient()
    assert torch.equal(second[0], first[0]), f"{second[0]} instead of {first[0]}"
    assert torch.equal(second[1], first[1])


def padding_changes_nothing(call: Call, seed: int) -> None:
    """That is ignored: the value and gradient are those of the crop."""
    axes = call.scores.ndim - 2
    sides = [int(n) for n in torch.randint(0, 3, (2 * axes,), generator=random(seed))]

    def padded(tensor: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(tensor, sides, value=fill)

    inner = padded(torch.ones_like(call.keep, dtype=torch.uint8), 0).bool()
    mask = padded(torch.ones_like(call.keep, dtype=torch.float64) if call.mask is None else call.mask.double(), 0)
    larger = call.but(scores=padded(call.scores, 7.0), target=padded(call.target, 0), mask=mask)
    value, gradient = larger.value_and_gradient()
    expected = call.value_and_gradient()
    cut = gradient[inner.expand_as(gradient)].reshape(expected[1].shape)
    assert_same((value, cut), expected)


def gradient_is_the_slope(call: Call, seed: int) -> None:
    """In a direction, by differences."""
    direction = torch.randn(call.scores.shape, generator=random(seed), dtype=torch.float64)
    x = call.scores

    def moved(step: float) -> float:
        return call.but(scores=x + step * direction).value().sum().item()

    step = 1e-6
    slopes = [(moved(h) - moved(-h)) / (2 * h) for h in (step, 2 * step)]
    assume(abs(slopes[0] - slopes[1]) <= 1e-6 * max(1, abs(slopes[0])))  # else it has a kink nearby
    got = (call.value_and_gradient()[1] * direction).sum().item()
    assert got == pytest.approx(slopes[0], rel=1e-5, abs=1e-6 * max(1.0, abs(call.value().sum().item())))


def writes_to_nothing(call: Call, seed: int) -> None:
    """Of its tensors and of torch's random numbers, in any memory format, of which all give the same."""
    call = call if seed % 5 == 4 else reformatted(call, FORMATS[seed % 5])
    tensors = [tensor for tensor in (call.scores, call.target, call.mask) if tensor is not None]
    before, state = [tensor.clone() for tensor in tensors], torch.get_rng_state()
    value, _ = call.value_and_gradient()
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True)), "a tensor was written to"
    assert torch.equal(torch.get_rng_state(), state), "random numbers were drawn"
    plain = [None if t is None else t.as_subclass(Tensor).contiguous() for t in (call.scores, call.target, call.mask)]
    assert plain[0] is not None
    assert plain[1] is not None
    assert_close(value, call.but(scores=plain[0], target=plain[1], mask=plain[2]).value(), 1e-9)


def reductions_agree(call: Call, seed: int) -> None:
    """The mean and the sum are those of "none"."""
    none, mean, total = (call.value(reduction=reduction) for reduction in ("none", "mean", "sum"))
    if call.entry.of_reduced:
        none, mean, total = (torch.expm1(value) for value in (none, mean, total))
    added = none.flatten(2).sum(2)
    if call.entry.name == "FusedFocalLoss":  # its sum averages over space first, as MONAI's
        voxels = torch.ones_like(call.keep).double() if call.mask is None else call.mask.double()
        voxels = voxels * call.keep
        added = added / voxels.flatten(1).sum(1, keepdim=True).clamp_min(1e-7)
    assert_close(total, added.sum(), 1e-8)
    leave = ("AverageCalibrationLoss", "SkeletonRecallLoss")  # by default what is absent leaves the mean
    skips = call.options.get("absent_class") == "skip" or call.entry.name in leave
    if call.mask is None and call.keep.all() and "weight" not in call.options and not skips:
        assert_close(mean, none.mean(), 1e-8)


def float32_is_float64(call: Call, seed: int) -> None:
    """To 1e-5 of the value, in float32 and of the numbers that a half has."""
    dtype = DTYPES[1 + seed % 3]
    scores = call.scores.to(dtype)
    expected = call.but(scores=scores.double()).value()
    got = call.but(scores=scores).value()
    assert got.dtype == torch.float32
    assert_close(got.double(), expected, 1e-5)


WRONG: dict[str, Callable[[Call], Call]] = {
    "integer scores": lambda call: call.but(scores=call.scores.to(torch.int64)),
    "complex scores": lambda call: call.but(scores=call.scores.to(torch.complex64)),
    "target of fewer samples": lambda call: call.but(target=torch.cat([call.target, call.target])),
    "target without channel": lambda call: call.but(target=call.target[:, 0]),
    "target of another side": lambda call: call.but(target=torch.cat([call.target, call.target], -1)),
    "target of two times the channels": lambda call: call.but(target=torch.cat([call.target, call.target], 1)),
    "mask of two channels": lambda call: call.but(mask=torch.ones_like(call.keep).expand(-1, 2, *call.keep.shape[2:])),
    "integer mask": lambda call: call.but(mask=torch.ones_like(call.keep, dtype=torch.int64)),
    "labels out of range": lambda call: call.but(
        target=torch.full_like(call.target, 7 if call.labelled else 1.5), mask=None
    ),
    "labels below": lambda call: call.but(target=torch.full_like(call.target, -2), mask=None),
    "no spatial axis": lambda call: call.but(scores=call.scores[..., None, None, None]),
    "unknown reduction": lambda call: call.with_options(reduction="average"),
    "flag that is text": lambda call: call.with_options(include_background="False"),
    "ignore_index that is text": lambda call: call.with_options(ignore_index="255"),
    "weight below 0": lambda call: call.with_options(weight=[-1.0] * call.scores.shape[1]),
    "weight of another length": lambda call: call.with_options(weight=[1.0] * 9),
    "unknown option": lambda call: call.with_options(alhpa=0.5),
}


def bad_input_is_refused(call: Call, seed: int) -> None:
    """With one sentence, a ValueError or a TypeError; a number never comes back."""
    kind = list(WRONG)[seed % len(WRONG)]
    # Of one class kept the weight is not read, as in MONAI.
    assume(not kind.startswith("weight") or (call.entry.accepts("weight") and call.scores.shape[1] > 2))
    with pytest.raises((ValueError, TypeError)) as caught:
        WRONG[kind](call).value()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1, f"{kind}: {caught.value}"
    assert len(lines[0]) > 20, f"{kind}: {caught.value}"


def has_slope(entry: LossEntry) -> bool:
    """Whether nothing of its formula is held."""
    held = {"WeightedCrossEntropyLoss", "CenterlineBoundaryDiceLoss", "CorrelationMaximizedStructuralSimilarityLoss"}
    return entry.name not in held and entry.name not in JUMPS - {"HausdorffLoss", "LogHausdorffLoss"}


SOME = ("none", "bool", "float")
PROPERTIES: dict[str, Property] = {
    "finite, and not below 0": Property(is_finite, drawn={"dtypes": DTYPES}),
    "its float64 reference": Property(
        is_its_reference, drawn={"tame": True, "plain": True, "masks": ("none", "bool", "float"), "ignoring": False}
    ),
    # Of equal scores one comes first, and has the gradient.
    "any order of samples": Property(any_order_of_samples, drawn={"tame": True}),
    "any order of voxels": Property(
        any_order_of_voxels, lambda entry: not entry.reads_neighbours, drawn={"tame": True}
    ),
    "any order of classes": Property(
        any_order_of_classes, lambda entry: not entry.background_apart, drawn={"tame": True}
    ),
    "a constant on the logits": Property(
        constants_change_nothing,
        lambda entry: "softmax" in entry.activations,
        drawn={"tame": True, "activations": ("softmax",)},
    ),
    "what is ignored changes nothing": Property(ignored_voxels_change_nothing, drawn={"dtypes": DTYPES[:2]}),
    "ignored padding changes nothing": Property(
        padding_changes_nothing, lambda entry: not entry.reads_neighbours, drawn={"tame": True, "ignoring": False}
    ),
    "the gradient is the slope": Property(gradient_is_the_slope, has_slope, drawn={"tame": True}),
    "nothing is written to": Property(writes_to_nothing),
    "reductions agree": Property(
        reductions_agree,
        lambda entry: "none" in entry.reductions and entry.family != "compound" and entry.name != "TopKLoss",
        drawn={"masks": SOME},
    ),
    "float32 is float64": Property(
        float32_is_float64, lambda entry: entry.name not in JUMPS, drawn={"tame": True, "masks": SOME}
    ),
    "bad input is refused": Property(bad_input_is_refused, drawn={"masks": SOME}),
}
