"""The analytic slab kernels against the plain definitions, differentiated by autograd."""

import contextlib
import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_list import each, labels_like, one_hot, told
from marks import slow_but
from term_checks import (
    CubeSums,
    SizeSums,
    SquareRootSums,
    TwiceOutcomeSums,
    TwiceSums,
    VolumeSums,
    definitions,
    focal,
    formulas_of,
    results_and_gradient,
)
from torch import Tensor

from monai_extra_losses.ops import plan as plans
from monai_extra_losses.ops import slab_pass
from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.formulas import CrossEntropyFormula, FocalFormula, PowerFormula, SoftFocalFormula
from monai_extra_losses.ops.fused_sums import fused_sums
from monai_extra_losses.ops.kernels.labels import sum_by_label
from monai_extra_losses.ops.kernels.slab import derivative
from monai_extra_losses.ops.terms import (
    Activation,
    CountSums,
    ErrorSums,
    LeadSums,
    LogSums,
    MapOf,
    MapSums,
    MarginSums,
    OutcomeLogSums,
    OutcomeSums,
    TargetSums,
    Term,
    TrueClassSums,
    VoxelFormula,
    VoxelMap,
    VoxelSums,
)


def margin(s: Tensor) -> Tensor:
    return F.relu(1 - s) ** 2


def voxel_sums(activation: Activation, formula: VoxelFormula, **options: Any) -> VoxelSums:
    if options.pop("one_vs_rest", activation == "sigmoid"):
        return OutcomeSums(activation, formula)
    return TrueClassSums(activation, formula, **options)


def terms_of(activation: Activation) -> dict[str, list[Term]]:
    """Terms to compute in one pass: each alone, and those that compounds ask for together."""
    linear = voxel_sums(activation, CrossEntropyFormula())
    curved = voxel_sums(activation, focal)
    logs = OutcomeLogSums(activation) if activation == "sigmoid" else LogSums(activation)
    counts = CountSums(activation)
    cases: dict[str, list[Term]] = {
        "target": [TargetSums()],
        "counts": [counts],
        "squares": [CountSums(activation, squares=True)],
        "linear": [linear],
        "curved": [curved],
        "logs": [logs],
        "map": [VoxelMap(curved)],
        "linear map": [VoxelMap(linear)],
        "Dice and cross-entropy": [counts, TargetSums(), linear],
        "errors": [ErrorSums(activation, 1.5), TargetSums()],
        "squared errors": [ErrorSums(activation, 2.0), counts],
        "other errors": [ErrorSums(activation, 1.0), ErrorSums(activation, 1.3)],
        "margins": [MarginSums(margin)],
        "map of margins": [VoxelMap(MarginSums(margin))],
        "squares, focal and smoothing": [CountSums(activation, squares=True), TargetSums(), curved, logs],
        "all": [counts, CountSums(activation, squares=True), linear, curved, logs, VoxelMap(linear), VoxelMap(curved)],
    }
    if activation != "sigmoid":
        cases["not by class"] = [voxel_sums(activation, focal, by_class=False)]
        cases["linear, not by class"] = [voxel_sums(activation, CrossEntropyFormula(), by_class=False)]
    if activation == "softmax":  # of several channels
        cases["margins, categorical"] = [LeadSums(margin)]
    if activation != "sigmoid":
        one_vs_rest = voxel_sums(activation, focal, one_vs_rest=True)
        cases["one-vs-rest"] = [one_vs_rest]
        cases["map one-vs-rest"] = [VoxelMap(one_vs_rest)]
        linear_one_vs_rest = voxel_sums(activation, CrossEntropyFormula(), one_vs_rest=True)
        cases["linear one-vs-rest"] = [linear_one_vs_rest]
        cases["Combo"] = [counts, TargetSums(), linear_one_vs_rest]
    return cases


ACTIVATIONS: tuple[Activation, ...] = ("softmax", "sigmoid", "none")
ALL = [(activation, name) for activation in ACTIVATIONS for name in terms_of(activation)]
# Most kinds of sums are in one of these.
FEW = (
    "Dice and cross-entropy",
    "squared errors",
    "map of margins",
    "all",
    "linear one-vs-rest",
    "margins, categorical",
)
every_term = pytest.mark.parametrize(("activation", "name"), slow_but([pair for pair in ALL if pair[1] in FEW], ALL))


def has_kernels(terms: list[Term], num_classes: int = 3) -> bool:
    return any(slab.computes(terms, num_classes) for slab in plans._SLABS)


def test_sums_have_kernels() -> None:
    """Every sum of a label map that a loss asks for with a softmax or sigmoid; maps one-vs-rest are general."""
    for activation in ("softmax", "sigmoid"):
        for name, terms in terms_of(activation).items():
            general = name in ("map of margins", "one-vs-rest", "map one-vs-rest") or (
                activation == "sigmoid" and any(isinstance(term, LogSums) for term in terms)
            )
            assert has_kernels(terms) is not general, f"{activation}: {name}"


def scores_and_labels(shape: tuple[int, ...], activation: Activation, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(math.prod(shape))
    scores = 3 * torch.randn(shape, dtype=torch.float64)
    if activation == "none":
        scores = scores.softmax(1) if shape[1] > 1 else scores.sigmoid()
    return scores.to(dtype), labels_like(scores)


def assert_equal_to_the_definition(data: CallData, terms: list[Term]) -> None:
    expected, expected_gradient = results_and_gradient(definitions, data, terms)
    got, gradient = results_and_gradient(fused_sums, data, terms)
    double = data.scores.dtype == torch.float64
    # float32 sums are compared relative to their size, gradients relative to the largest.
    rtol = 1e-11 if double else 2e-6
    for result, value in zip(got, expected, strict=True):
        assert result.dtype == (value.dtype if value.ndim > 3 else torch.float64)
        torch.testing.assert_close(result, value, atol=rtol * max(1.0, value.abs().max().item()), rtol=rtol)
    scale = expected_gradient.abs().max().clamp_min(1e-6)
    torch.testing.assert_close(gradient / scale, expected_gradient / scale, atol=2 * rtol, rtol=rtol)


@pytest.fixture(autouse=True)
def _in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels in plain torch; those that numba compiles have tests of their own (test_jit.py)."""
    monkeypatch.setattr(plans, "_NUMBA", "0")


@pytest.fixture
def _many_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even a small volume into many slabs, with a remainder."""
    monkeypatch.setattr(plans, "slab_length", lambda data, floats: 23)
    monkeypatch.setattr(plans, "_FEW_BYTES", 0)  # no slab is kept


@every_term
@each("weights", ["none", "mask", "ignore_index", "both"])
@each("num_classes, dtype", [(2, torch.float64), (3, torch.float64), (3, torch.float32), (5, torch.float32)])
@pytest.mark.usefixtures("_many_slabs")
def test_kernels_equal_the_definitions(
    activation: Activation, name: str, dtype: torch.dtype, num_classes: int, weights: str
) -> None:
    scores, labels = scores_and_labels((2, num_classes, 5, 3, 4), activation, dtype)
    mask = torch.rand(2, 1, 5, 3, 4) * 2 if weights in ("mask", "both") else None
    if weights in ("ignore_index", "both"):
        labels[torch.rand(labels.shape) < 0.3] = 255
    data = CallData(scores, labels, mask, True, 255 if weights in ("ignore_index", "both") else None)
    assert len(list(data.pieces(23))) == 6
    assert_equal_to_the_definition(data, terms_of(activation)[name])


@every_term
@each("length", [17, 61, 125, 10**6])
def test_slabs_of_several_samples(
    activation: Activation, name: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "slab_length", lambda data, floats: length)
    monkeypatch.setattr(plans, "_FEW_BYTES", 0)
    for num_classes, weighted in ((2, True), (3, False), (12, True)):
        scores, labels = scores_and_labels((5, num_classes, 5, 3, 4), activation, torch.float64)
        mask = torch.rand(5, 1, 5, 3, 4) * 2 if weighted else None
        if weighted:
            labels[torch.rand(labels.shape) < 0.3] = 255
        data = CallData(scores, labels, mask, True, 255 if weighted else None)
        assert_equal_to_the_definition(data, terms_of(activation)[name])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@each("shape", [(1, 3, 1), (1, 2, 1, 1), (3, 5, 1, 1, 1), (2, 3, 17), (1, 2, 1, 19), (2, 4, 3, 1, 5)])
def test_one_voxel_and_odd_sizes(activation: Activation, shape: tuple[int, ...]) -> None:
    scores, labels = scores_and_labels(shape, activation, torch.float64)
    for name, terms in terms_of(activation).items():
        with told(name):
            assert_equal_to_the_definition(CallData(scores, labels, None, True, None), terms)


@every_term
@each("dtype", [torch.float64, torch.float32])
@each("num_classes", [1, 2, 3])
@pytest.mark.usefixtures("_many_slabs")
def test_soft_and_one_hot_targets(activation: Activation, name: str, num_classes: int, dtype: torch.dtype) -> None:
    if activation == "softmax" and num_classes == 1:
        pytest.skip("no softmax of one channel")
    scores, labels = scores_and_labels((2, num_classes, 5, 6), activation, dtype)
    soft = torch.rand(2, num_classes, 5, 6, dtype=dtype)
    for target in (one_hot(labels, num_classes, dtype), soft / soft.sum(1, keepdim=True)):
        for mask in (None, torch.rand(2, 1, 5, 6) > 0.4):
            assert_equal_to_the_definition(CallData(scores, target, mask, False, None), terms_of(activation)[name])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("_many_slabs")
def test_soft_overlap_and_soft_focal(activation: Activation) -> None:
    scores, _ = scores_and_labels((2, 3, 5, 6), activation, torch.float64)
    data = CallData(scores, torch.rand(2, 3, 5, 6, dtype=torch.float64), None, False, None)
    assert_equal_to_the_definition(data, [CountSums(activation, soft_overlap=True)])
    if activation != "softmax":
        assert_equal_to_the_definition(data, [voxel_sums(activation, SoftFocalFormula(2.0), one_vs_rest=True)])


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.usefixtures("_many_slabs")
def test_maps_with_factors(activation: Activation, num_classes: int) -> None:
    """One tensor for both outcomes, or two, of classes or of samples and classes."""
    scores, labels = scores_and_labels((2, num_classes, 5, 6), activation, torch.float32)
    data = CallData(scores, labels, torch.rand(2, 1, 5, 6), True, None)
    sums = voxel_sums(activation, focal)
    same, own = torch.rand(num_classes), torch.rand(2, 2, num_classes)
    for positive, negative in ((same, same), (same, None), tuple(own)):
        terms: list[Term] = [VoxelMap(sums, positive, negative)]
        assert has_kernels(terms)
        assert_equal_to_the_definition(data, terms)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("of", ["probability", "error", "surface"])
@each("target_kind", ["labels", "labels and mask", "soft"])
@each("num_classes", [2, 3])
@pytest.mark.usefixtures("_many_slabs")
def test_sums_with_a_map(activation: Activation, of: MapOf, num_classes: int, target_kind: str) -> None:
    for dtype in (torch.float64, torch.float32):
        scores, labels = scores_and_labels((2, num_classes, 5, 3, 4), activation, dtype)
        mask = torch.rand(2, 1, 5, 3, 4) * 2 if target_kind == "labels and mask" else None
        soft = torch.rand(scores.shape, dtype=dtype) if target_kind == "soft" else None
        data = CallData(scores, labels if soft is None else soft, mask, soft is None, None)
        values = torch.randn(scores.shape)
        counts = CountSums(activation)
        for terms in (
            [MapSums(activation, values, of)],
            [MapSums(activation, values, of, torch.tensor([0.4, 0.1]))],
            [counts, MapSums(activation, values, of), MapSums(activation, values.abs(), "probability")],
        ):
            if target_kind != "soft" and activation != "none":
                assert has_kernels(terms)
            assert_equal_to_the_definition(data, terms)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@each("masked", [False, True])
@each("num_classes", [1, 2, 3, 12])
@pytest.mark.usefixtures("_many_slabs")
def test_a_term_without_a_kernel_has_its_definition(activation: Activation, num_classes: int, masked: bool) -> None:
    scores, labels = scores_and_labels((2, num_classes, 5, 6), activation, torch.float64)
    mask = torch.rand(2, 1, 5, 6) * (torch.rand(2, 1, 5, 6) > 0.3) if masked else None
    labels = labels.clamp_max(num_classes - 1)
    twice = (TwiceOutcomeSums if activation == "sigmoid" else TwiceSums)(activation, CrossEntropyFormula())
    for data in (
        CallData(scores, labels, mask, True, None),
        CallData(scores, one_hot(labels, num_classes, torch.float64), mask, False, None),
    ):
        for terms in (
            [CubeSums(activation)],
            [CubeSums(activation), CountSums(activation), TargetSums()],
            [SquareRootSums(activation), VolumeSums(activation)],
            [twice, VoxelMap(twice)],
            [SizeSums(), CountSums(activation)],
        ):
            assert_equal_to_the_definition(data, terms)


STRIDES = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last_3d),
    "reversed": lambda t: t.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
    "spatial axes swapped": lambda t: t.transpose(2, 4).contiguous().transpose(2, 4),
    "every second": lambda t: t.repeat_interleave(2, 3)[:, :, :, ::2],
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@each("which", ["scores", "target", "mask", "all"])
@each("strides", STRIDES)
@pytest.mark.usefixtures("_many_slabs")
def test_strides_without_a_flat_view(activation: Activation, strides: str, which: str) -> None:
    for num_classes in (2, 3):
        scores, labels = scores_and_labels((2, num_classes, 5, 3, 4), activation, torch.float64)
        mask = torch.rand(2, 1, 5, 3, 4)
        change = STRIDES[strides]
        data = CallData(
            change(scores) if which in ("scores", "all") else scores,
            change(labels) if which in ("target", "all") else labels,
            change(mask) if which in ("mask", "all") else mask,
            True,
            None,
        )
        assert_equal_to_the_definition(
            data, terms_of(activation)["all" if num_classes == 3 else "Dice and cross-entropy"]
        )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_second_backward_of_one_graph(activation: Activation) -> None:
    """The first backward may use up what the forward left for it."""
    scores, labels = scores_and_labels((2, 3, 5, 6), activation, torch.float64)
    leaf = scores.clone().requires_grad_()
    terms = terms_of(activation)["Dice and cross-entropy"]
    total = torch.cat([r.flatten() for r in fused_sums(CallData(leaf, labels, None, True, None), terms)]).sum()
    first = torch.autograd.grad(total, leaf, retain_graph=True)[0].clone()  # whatever the second writes over
    (second,) = torch.autograd.grad(total, leaf, retain_graph=True)
    torch.testing.assert_close(first, second, atol=1e-15, rtol=1e-13)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_real_slabs(activation: Activation, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes of several slabs with the share of large ones."""
    monkeypatch.setattr(plans, "_FEW_BYTES", 0)
    scores, labels = scores_and_labels((1, num_classes, 37, 41, 43), activation, torch.float32)
    data = CallData(scores, labels, None, True, None)
    assert len(list(data.pieces(plans.plan(data, terms_of(activation)["counts"], keeps=False).length))) > 4
    for name in ("Dice and cross-entropy", "squares, focal and smoothing"):
        assert_equal_to_the_definition(data, terms_of(activation)[name])


def test_the_pieces_cover_every_voxel_once() -> None:
    """Pieces of one sample, of whole samples, and of all; of rows where there is no flat view."""
    for shape in ((1, 2, 7), (1, 14, 40, 41), (5, 3, 3, 4, 5), (1, 2, 1, 1, 1)):
        for scores in (torch.empty(shape), torch.empty(shape).transpose(2, -1), torch.empty(*shape, 2)[..., 0]):
            for length in (1, 7, 59, 61, 130, 10**6):
                data = CallData(scores, scores[:, :1].long(), None, True, None)
                seen = torch.zeros(scores.shape)
                for piece in data.pieces(length):
                    piece.write(seen, piece.read(seen) + 1)
                assert bool((seen == 1).all())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_of_some_results(activation: Activation) -> None:
    """Each of several results alone: the gradients of the others are absent, not zero."""
    for num_classes in (2, 3):
        scores, labels = scores_and_labels((2, num_classes, 5, 6), activation, torch.float64)
        terms = terms_of(activation)["all"]
        for i, term in enumerate(terms):
            leaf = scores.clone().requires_grad_()
            fused = fused_sums(CallData(leaf, labels, None, True, None), terms)[i]
            (gradient,) = torch.autograd.grad(fused.sum(), leaf)
            (expected,) = torch.autograd.grad(
                definitions(CallData(leaf, labels, None, True, None), [term])[0].sum(), leaf
            )
            torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@each("num_classes", [2, 3])
def test_nothing_waits_for_a_gpu(activation: Activation, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without data stand for those of a GPU: a number that is read of one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
    scores = torch.empty(2, num_classes, 5, 6, device="meta")
    labels, mask = scores[:, :1].long(), scores[:, :1]
    for name, terms in terms_of(activation).items():
        for data in (CallData(scores, labels, None, True, None), CallData(scores, labels, mask, True, 1)):
            with told(name):
                chosen = plans.plan(data, terms, keeps=True)
                results = slab_pass.forward(data, terms, chosen)
                assert slab_pass.backward(data, terms, results, chosen).shape == scores.shape


@pytest.mark.parametrize("num_classes", [2, 3])
def test_confident_voxels_keep_their_digits_one_vs_rest(num_classes: int) -> None:
    """Value and gradient of log p_t and all log(1-p_c) in float32, from both sides, alone in a slab and together."""
    margins = torch.tensor([-300.0, -90.0, -60.0, -20.0, -1.0, 0.0, 1.0, 8.0, 14.0, 30.0, 90.0])
    scores = torch.zeros(1, num_classes, len(margins))
    scores[0, 1] = margins
    scores[0, 2:] = -2
    terms: list[Term] = [voxel_sums("softmax", CrossEntropyFormula(), one_vs_rest=True)]
    for true_class in range(num_classes):
        for chosen in [slice(None), *[slice(i, i + 1) for i in range(len(margins))]]:
            data = CallData(scores[..., chosen], torch.full((1, 1, 99), true_class)[..., chosen], None, True, None)
            data = dataclasses.replace(data, target=data.target[..., : data.scores.shape[-1]])
            double = dataclasses.replace(data, scores=data.scores.double())
            assert has_kernels(terms)
            (value,), gradient = results_and_gradient(fused_sums, data, terms)
            (expected,), expected_gradient = results_and_gradient(definitions, double, terms)
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(gradient.double(), expected_gradient, atol=1e-7, rtol=2e-6)


@each("num_classes", [3, 12])
@each("margin", [8.0, 14.0, 20.0])
def test_a_small_gradient_keeps_its_digits_one_vs_rest(num_classes: int, margin: float) -> None:
    """Of a voxel that is right and sure, beside which no other hides it: 1 - p of a p that rounds to 1."""
    scores = torch.full((1, num_classes, 1), -2.0)
    scores[0, :2, 0] = torch.tensor([0.0, margin])
    terms: list[Term] = [voxel_sums("softmax", CrossEntropyFormula(), one_vs_rest=True)]
    data = CallData(scores, torch.ones(1, 1, 1), None, True, None)
    _, gradient = results_and_gradient(fused_sums, data, terms)
    _, expected = results_and_gradient(definitions, dataclasses.replace(data, scores=scores.double()), terms)
    torch.testing.assert_close(gradient.double(), expected, atol=0, rtol=1e-5)


def test_sums_by_label_are_of_float64() -> None:
    """A million of 0.1 added one after the other in float32 are 100958."""
    values = torch.full((2, 1 << 20), 0.1)
    labels = torch.zeros(2, 1 << 20, dtype=torch.int64)
    expected = values[0, 0].double().item() * (1 << 20)
    sums = sum_by_label(labels, values, 3)
    torch.testing.assert_close(sums, torch.tensor([[expected, 0, 0]] * 2, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_confident_voxels_keep_their_digits(num_classes: int) -> None:
    """log p_t of a voxel far from, and far over, the decision, in float32."""
    margins = torch.tensor([-300.0, -90.0, -60.0, -20.0, -1.0, 1.0, 8.0, 14.0, 30.0])
    scores = torch.zeros(1, num_classes, len(margins))
    scores[0, 1] = margins
    scores[0, 2:] = -400  # a third class without a say
    labels = torch.ones(1, 1, len(margins))
    expected = F.softplus(-margins.double())
    terms: list[Term] = [VoxelMap(voxel_sums("softmax", CrossEntropyFormula()))]
    (loss,) = fused_sums(CallData(scores, labels, None, True, None), terms)
    torch.testing.assert_close(loss[0, 0].double(), expected, atol=1e-7, rtol=1e-6)
    for i, margin in enumerate(margins):  # each in a slab of its own
        (alone,) = fused_sums(CallData(scores[..., i : i + 1], labels[..., i : i + 1], None, True, None), terms)
        torch.testing.assert_close(alone.double().flatten(), expected[i : i + 1], atol=1e-7, rtol=1e-6, msg=str(margin))


@pytest.mark.parametrize("reads", ["log_pt", "margin"])
def test_slopes_are_the_derivatives_of_their_formulas(reads: str) -> None:
    log_pt = -torch.logspace(-8, 2.5, 400, dtype=torch.float64)
    values = torch.linspace(-3, 3, 101, dtype=torch.float64) + 0.01 if reads == "margin" else log_pt
    formulas = formulas_of(reads, 0.3, 0.5, 1.0, 2.0, 3.5)
    assert len(formulas) >= (2 if reads == "margin" else 21)
    for formula in [*formulas, *([FocalFormula(0.0)] if reads == "log_pt" else [])]:
        with told(formula):
            slope = formula.slope
            if isinstance(slope, float):
                torch.testing.assert_close(derivative(formula, values), torch.full_like(values, slope))
                continue
            expected = derivative(formula, values)
            torch.testing.assert_close(slope(values), expected, atol=1e-14, rtol=1e-10)
            single = slope(values.float())
            torch.testing.assert_close(single.double(), expected, atol=1e-7 * expected.abs().max().item(), rtol=1e-5)
            for end in (0.0, -1e4):
                assert slope(torch.tensor([end])).isfinite()


def test_a_power_has_no_slope_below_its_smallest_loss() -> None:
    """Where it is flat; and the one of its formula just above."""
    formula = PowerFormula(0.3)
    below, above = (torch.tensor([-factor * formula.smallest], dtype=torch.float64) for factor in (0.9, 1.1))
    assert formula(below) == formula(torch.zeros(1, dtype=torch.float64)) == 1e-7**0.3
    assert formula.slope(below) == 0
    assert formula.slope(above).item() == pytest.approx(-0.3 * 1.1e-7**-0.7)
