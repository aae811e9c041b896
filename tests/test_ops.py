"""The analytic slab kernels against the plain definitions, differentiated by autograd."""

import contextlib
import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_list import labels_like, one_hot
from torch import Tensor, nn

from monai_extra_losses import losses
from monai_extra_losses.ops import plan as plans
from monai_extra_losses.ops import slab_pass
from monai_extra_losses.ops.call_data import CallData, Voxels
from monai_extra_losses.ops.formulas import CrossEntropyFormula, SoftFocalFormula
from monai_extra_losses.ops.fused_sums import fused_sums
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
    probabilities,
)


def focal(log_pt: Tensor) -> Tensor:
    return (-torch.expm1(log_pt)) ** 2 * -log_pt


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


ALL = [(activation, name) for activation in ("softmax", "sigmoid", "none") for name in terms_of(activation)]


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


def totals(results: list[Tensor], terms: list[Term]) -> list[Tensor]:
    """Where a term does not want its classes apart, only their total has a meaning."""
    apart = [not isinstance(term, TrueClassSums) or term.by_class for term in terms]
    return [r if a else r.sum(-1, keepdim=True) for r, a in zip(results, apart, strict=True)]


def definitions(data: CallData, terms: list[Term]) -> list[Tensor]:
    """The plain definitions, on all voxels at once."""
    results = [term.definition(data.whole()) for term in terms]
    return [
        result.reshape(*result.shape[:2], *data.scores.shape[2:]) if isinstance(term, VoxelMap) else result
        for term, result in zip(terms, results, strict=True)
    ]


def results_and_gradient(function: Any, data: CallData, terms: list[Term]) -> tuple[list[Tensor], Tensor]:
    """Results, and the gradient of their sum with an own random factor for each number."""
    leaf = data.scores.detach().requires_grad_()
    same = CallData(leaf, data.target, data.mask, data.labels, data.ignore_index)
    results = totals(function(same, terms), terms)
    generator = torch.Generator().manual_seed(3)
    factors = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    total = torch.stack([(r * f).sum().double() for r, f in zip(results, factors, strict=True)]).sum()
    gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    return [r.detach() for r in results], torch.zeros_like(leaf) if gradient is None else gradient


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


@pytest.fixture
def _many_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even a small volume into many slabs, with a remainder."""
    monkeypatch.setattr(plans, "slab_length", lambda data, floats: 7)


@pytest.mark.parametrize("weights", ["none", "mask", "ignore_index", "both"])
@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("activation", "name"), ALL)
@pytest.mark.usefixtures("_many_slabs")
def test_kernels_equal_the_definitions(
    activation: Activation, name: str, dtype: torch.dtype, num_classes: int, weights: str
) -> None:
    scores, labels = scores_and_labels((2, num_classes, 5, 3, 4), activation, dtype)
    mask = torch.rand(2, 1, 5, 3, 4) * 2 if weights in ("mask", "both") else None
    if weights in ("ignore_index", "both"):
        labels[torch.rand(labels.shape) < 0.3] = 255
    data = CallData(scores, labels, mask, True, 255 if weights in ("ignore_index", "both") else None)
    assert len(list(data.pieces(7))) == 18
    assert_equal_to_the_definition(data, terms_of(activation)[name])


@pytest.mark.parametrize("length", [7, 61, 125, 10**6])
@pytest.mark.parametrize(("activation", "name"), ALL)
def test_slabs_of_several_samples(
    activation: Activation, name: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "slab_length", lambda data, floats: length)
    for num_classes, weighted in itertools.product((2, 3, 12), (False, True)):
        scores, labels = scores_and_labels((5, num_classes, 5, 3, 4), activation, torch.float64)
        mask = torch.rand(5, 1, 5, 3, 4) * 2 if weighted else None
        if weighted:
            labels[torch.rand(labels.shape) < 0.3] = 255
        data = CallData(scores, labels, mask, True, 255 if weighted else None)
        assert_equal_to_the_definition(data, terms_of(activation)[name])


@pytest.mark.parametrize(
    "shape", [(1, 3, 1), (1, 2, 1, 1), (3, 5, 1, 1, 1), (2, 3, 17), (1, 2, 1, 19), (2, 4, 3, 1, 5)]
)
@pytest.mark.parametrize(("activation", "name"), ALL)
def test_one_voxel_and_odd_sizes(activation: Activation, name: str, shape: tuple[int, ...]) -> None:
    scores, labels = scores_and_labels(shape, activation, torch.float64)
    assert_equal_to_the_definition(CallData(scores, labels, None, True, None), terms_of(activation)[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("num_classes", [1, 2, 3])
@pytest.mark.parametrize(("activation", "name"), ALL)
@pytest.mark.usefixtures("_many_slabs")
def test_soft_and_one_hot_targets(activation: Activation, name: str, num_classes: int, dtype: torch.dtype) -> None:
    if activation == "softmax" and num_classes == 1:
        pytest.skip("no softmax of one channel")
    scores, labels = scores_and_labels((2, num_classes, 5, 6), activation, dtype)
    soft = torch.rand(2, num_classes, 5, 6, dtype=dtype)
    for target in (one_hot(labels, num_classes, dtype), soft / soft.sum(1, keepdim=True)):
        for mask in (None, torch.rand(2, 1, 5, 6) > 0.4):
            assert_equal_to_the_definition(CallData(scores, target, mask, False, None), terms_of(activation)[name])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
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
    same, each = torch.rand(num_classes), torch.rand(2, 2, num_classes)
    for positive, negative in ((same, same), (same, None), tuple(each)):
        terms: list[Term] = [VoxelMap(sums, positive, negative)]
        assert has_kernels(terms)
        assert_equal_to_the_definition(data, terms)


@pytest.mark.parametrize("target_kind", ["labels", "labels and mask", "soft"])
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("of", ["probability", "error", "surface"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
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


@dataclasses.dataclass(frozen=True)
class CubeSums:
    """A term of somebody else: sum p^3 g, result (1, B, C)."""

    activation: Activation

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return 1, scores.shape[0], scores.shape[1]

    def definition(self, v: Voxels) -> Tensor:
        p = probabilities(v.scores, self.activation)
        return v.weighted(p**3 * v.one_hot()).sum(-1, dtype=torch.float64).unsqueeze(0)


class SquareRootSums(CountSums):
    """One that changes the definition of a term with a kernel: sum p^(1/2) and its square."""

    def definition(self, v: Voxels) -> Tensor:
        p = (probabilities(v.scores, self.activation) + 1e-3).sqrt()
        return torch.stack([v.weighted(part).sum(-1, dtype=torch.float64) for part in (p, p * p)])


class TwiceSums(TrueClassSums):
    """One that changes the losses of a term with a kernel."""

    def losses(self, v: Voxels) -> tuple[Tensor, Tensor]:
        positive, negative = TrueClassSums.losses(self, v)
        return 2 * positive, 2 * negative


class TwiceOutcomeSums(OutcomeSums):
    """The same one-vs-rest."""

    def losses(self, v: Voxels) -> tuple[Tensor, Tensor]:
        positive, negative = OutcomeSums.losses(self, v)
        return 2 * positive, 2 * negative


class SizeSums(TargetSums):
    """One that reads the scores where the term that it derives from does not."""

    reads_scores = True

    def definition(self, v: Voxels) -> Tensor:
        return v.weighted(v.scores**2).sum(-1, dtype=torch.float64).expand(2, -1, -1)


class VolumeSums(CubeSums):
    """One that reads the target alone: it has no gradient."""

    def definition(self, v: Voxels) -> Tensor:
        return v.weighted(v.one_hot()).sum(-1, dtype=torch.float64).unsqueeze(0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 12])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
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


@pytest.mark.parametrize("which", ["scores", "target", "mask", "all"])
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
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
        for name in ("all", "Dice and cross-entropy"):
            assert_equal_to_the_definition(data, terms_of(activation)[name])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_second_backward_of_one_graph(activation: Activation) -> None:
    """The first backward may use up what the forward left for it."""
    scores, labels = scores_and_labels((2, 3, 5, 6), activation, torch.float64)
    leaf = scores.clone().requires_grad_()
    terms = terms_of(activation)["Dice and cross-entropy"]
    total = torch.cat([r.flatten() for r in fused_sums(CallData(leaf, labels, None, True, None), terms)]).sum()
    (first,) = torch.autograd.grad(total, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(total, leaf, retain_graph=True)
    torch.testing.assert_close(first, second, atol=1e-15, rtol=1e-13)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_real_slabs(activation: Activation, num_classes: int) -> None:
    """Volumes of several slabs with the real constants."""
    scores, labels = scores_and_labels((1, num_classes, 37, 41, 43), activation, torch.float32)
    data = CallData(scores, labels, None, True, None)
    assert len(list(data.pieces(plans.plan(data, terms_of(activation)["counts"], keeps_softmax=False).length))) > 4
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


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
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


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize(("activation", "name"), ALL)
def test_nothing_waits_for_a_gpu(
    activation: Activation, name: str, num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without data stand for those of a GPU: a number that is read of one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
    terms = terms_of(activation)[name]
    scores = torch.empty(2, num_classes, 5, 6, device="meta")
    labels, mask = scores[:, :1].long(), scores[:, :1]
    for data in (CallData(scores, labels, None, True, None), CallData(scores, labels, mask, True, 1)):
        chosen = plans.plan(data, terms, keeps_softmax=True)
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


SLOPES: dict[str, nn.Module] = {
    **{f"focal {gamma}": losses.FusedFocalLoss(gamma=gamma) for gamma in (0.0, 0.5, 1.0, 2.0, 3.5)},
    "poly": losses.PolyLoss(0.7),
    "generalized cross-entropy": losses.GeneralizedCrossEntropyLoss(0.3),
    "unified focal": losses.UnifiedFocalLoss(gamma=0.3).focal,
    "exponential logarithmic": losses.ExponentialLogarithmicLoss(gamma_cross_entropy=0.4).cross_entropy,
    "hinge": losses.HingeLoss(),
    "squared hinge": losses.SquaredHingeLoss(),
    "categorical hinge": losses.CategoricalHingeLoss(),
}


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_are_the_derivatives_of_their_formulas(name: str) -> None:
    formula = SLOPES[name].formula
    log_pt = -torch.logspace(-8, 2.5, 400, dtype=torch.float64)
    values = torch.linspace(-3, 3, 101, dtype=torch.float64) + 0.01 if "hinge" in name else log_pt
    expected = derivative(formula, values)
    torch.testing.assert_close(formula.slope(values), expected, atol=1e-14, rtol=1e-10)
    single = formula.slope(values.float())
    torch.testing.assert_close(single.double(), expected, atol=1e-7 * expected.abs().max().item(), rtol=1e-5)
    for end in (0.0, -1e4):
        assert formula.slope(torch.tensor([end])).isfinite()
