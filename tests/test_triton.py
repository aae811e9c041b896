"""The GPU kernels against the plain definitions and the slab kernels: in triton's interpreter, or on a GPU if there is.

`conftest.py` asks for the interpreter before anything imports triton.
"""

import importlib.util
import itertools
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_list import LossCase, each, labels_like, loss_cases, one_hot, told, value_and_gradient
from marks import slow, slow_but
from term_checks import CubeSums, SquareRootSums, TwiceSums, definitions, focal, results_and_gradient
from torch import Tensor

from monai_extra_losses import losses
from monai_extra_losses.losses.base import SegmentationLoss
from monai_extra_losses.ops import kernel_check
from monai_extra_losses.ops import plan as plans
from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.formulas import (
    CrossEntropyFormula,
    FocalFormula,
    GeneralizedCrossEntropyFormula,
    PolyFormula,
    PowerFormula,
    SoftFocalFormula,
)
from monai_extra_losses.ops.fused_sums import fused_sums
from monai_extra_losses.ops.terms import (
    Activation,
    CountSums,
    ErrorSums,
    ForeignTerm,
    LogSums,
    OutcomeLogSums,
    OutcomeSums,
    TargetSums,
    Term,
    TrueClassSums,
    VoxelFormula,
    VoxelMap,
    VoxelSums,
)

if importlib.util.find_spec("triton") is None:
    pytest.skip("the GPU kernels need triton: pip install triton (Linux).", allow_module_level=True)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _kernels_taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plans, "_TRITON", "1")
    # numpy, behind the interpreter, says so of 0/0 in what is selected away.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


FORMULAS: dict[str, VoxelFormula] = {
    "cross_entropy": CrossEntropyFormula(),
    "focal 2": FocalFormula(2.0),
    "focal 0.5": FocalFormula(0.5),
    "focal 0": FocalFormula(0.0),
    "focal 3.5": FocalFormula(3.5),
    "poly": PolyFormula(0.7),
    "generalized cross-entropy": GeneralizedCrossEntropyFormula(0.3),
    "mean absolute error": GeneralizedCrossEntropyFormula(1.0),
    "power": PowerFormula(0.4),
}


def voxel_sums(activation: Activation, name: str = "cross_entropy", **options: Any) -> VoxelSums:
    if options.pop("one_vs_rest", activation == "sigmoid"):
        return OutcomeSums(activation, FORMULAS[name])
    return TrueClassSums(activation, FORMULAS[name], **options)


def terms_of(activation: Activation) -> dict[str, list[Term]]:
    """Each term alone, and those that losses ask for together."""
    counts, logs = CountSums(activation), (OutcomeLogSums if activation == "sigmoid" else LogSums)(activation)
    squares, linear = CountSums(activation, squares=True), voxel_sums(activation)
    cases: dict[str, list[Term]] = {
        "target": [TargetSums()],
        "counts": [counts],
        "squares": [squares],
        "soft overlap": [CountSums(activation, soft_overlap=True)],
        "logs": [logs],
        **{name: [voxel_sums(activation, name)] for name in FORMULAS},
        "Dice and cross-entropy": [counts, TargetSums(), linear],
        "counts and squares": [TargetSums(), counts, squares],
        "squares, focal and smoothing": [squares, TargetSums(), voxel_sums(activation, "focal 2"), logs],
        "unified focal": [voxel_sums(activation, "focal 0.5"), TargetSums(), linear, counts],
    }
    if activation == "softmax":
        cases["not by class"] = [voxel_sums(activation, by_class=False), counts]
        cases["one-vs-rest"] = [voxel_sums(activation, one_vs_rest=True)]
        cases["Combo"] = [counts, TargetSums(), voxel_sums(activation, one_vs_rest=True)]
    return cases


ALL = [(activation, name) for activation in ("softmax", "sigmoid") for name in terms_of(activation)]
FEW = [
    ("softmax", "Dice and cross-entropy"),
    ("softmax", "squares, focal and smoothing"),
    ("softmax", "one-vs-rest"),
    ("sigmoid", "unified focal"),
    ("sigmoid", "poly"),
]
every_term = pytest.mark.parametrize(("activation", "name"), slow_but(FEW, ALL))


def made(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    scores = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(shape[-1]), dtype=torch.float64)
    return scores.to(dtype), labels_like(scores)


def on_the_cpu(data: CallData, terms: list[Term]) -> list[Tensor]:
    """The results of the kernels, to compare."""
    assert plans._gpu_kernels(data, terms) is not None
    return [result.cpu() for result in fused_sums(data, terms)]


def assert_equal_to_the_definition(data: CallData, terms: list[Term], rtol: float = 4e-6) -> None:
    """Results and gradient in float32 against those of the definitions in float64, on the same numbers."""
    double = CallData(data.scores.double(), data.target, data.mask, data.labels, data.ignore_index)
    expected, expected_gradient = results_and_gradient(definitions, double, terms)
    moved = [None if t is None else t.to(DEVICE) for t in (data.scores, data.target, data.mask)]
    assert moved[0] is not None
    assert moved[1] is not None
    on_device = CallData(moved[0], moved[1], moved[2], data.labels, data.ignore_index)
    got, gradient = results_and_gradient(on_the_cpu, on_device, terms)
    for result, value in zip(got, expected, strict=True):
        assert result.dtype == torch.float64
        torch.testing.assert_close(result, value, atol=rtol * max(1.0, value.abs().max().item()), rtol=rtol)
    assert gradient.dtype == data.scores.dtype
    assert gradient.stride() == data.scores.stride()
    scale = expected_gradient.abs().max().clamp_min(1e-6)
    coarse = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(data.scores.dtype, 0.0)
    torch.testing.assert_close(
        gradient.cpu().double() / scale, expected_gradient / scale, atol=max(rtol, coarse), rtol=max(rtol, coarse)
    )


@every_term
@each("num_classes", [2, 5])
def test_label_maps(activation: Activation, name: str, num_classes: int) -> None:
    """With a mask, ignored voxels of NaN, and labels of an integer and a float dtype."""
    scores, labels = made((2, num_classes, 5, 3, 7))
    terms = terms_of(activation)[name]
    if num_classes > 2:
        assert_equal_to_the_definition(CallData(scores, labels, None, True, None), terms)
    mask = torch.rand(2, 1, 5, 3, 7) * (torch.rand(2, 1, 5, 3, 7) > 0.3)
    labels[torch.rand(labels.shape) < 0.2] = 255
    scores = scores.masked_fill((labels == 255) | (mask == 0), torch.nan)
    dtype = torch.uint8 if num_classes == 2 else torch.float32
    assert_equal_to_the_definition(CallData(scores, labels.to(dtype), mask, True, 255), terms)


@every_term
@each("num_classes", [2, 3])
def test_targets_of_channels(activation: Activation, name: str, num_classes: int) -> None:
    scores, labels = made((2, num_classes, 5, 6))
    soft = torch.rand(2, num_classes, 5, 6).softmax(1)
    terms = terms_of(activation)[name]
    ignored = num_classes - 1
    if num_classes == 2:
        assert_equal_to_the_definition(CallData(scores, soft, None, False, ignored), terms)
        return
    assert_equal_to_the_definition(CallData(scores, soft, torch.rand(2, 1, 5, 6) > 0.4, False, None), terms)
    assert_equal_to_the_definition(
        CallData(scores, one_hot(labels, num_classes).to(torch.uint8), None, False, ignored), terms
    )


@each("name", [name for activation, name in ALL if activation == "sigmoid"])
def test_one_channel(name: str) -> None:
    scores, labels = made((2, 1, 9, 5))
    terms = terms_of("sigmoid")[name]
    for target, ignored in ((labels.float(), None), (torch.rand(2, 1, 9, 5), 1), (labels + 254, 255)):
        target = target.clamp_max(1) if ignored is None else target
        target = torch.where(target > 1, target, target % 2) if ignored == 255 else target
        assert_equal_to_the_definition(CallData(scores, target, None, False, ignored), terms)


def test_focal_loss_of_soft_targets() -> None:
    for gamma, num_classes in itertools.product((0.5, 2.0), (1, 3)):
        terms: list[Term] = [OutcomeSums("sigmoid", SoftFocalFormula(gamma))]
        scores, _ = made((2, num_classes, 5, 6))
        assert_equal_to_the_definition(CallData(scores, torch.rand(scores.shape), None, False, None), terms)


@pytest.mark.parametrize("activation", ["softmax", *slow("sigmoid")])
@each("shape", [(1, 2, 1), (3, 3, 1, 1), (1, 14, 13, 17), (1, 105, 5, 9), (2, 256, 7, 10), (1, 2, 2100), (1, 33, 130)])
def test_class_counts_and_sizes(activation: Activation, shape: tuple[int, ...]) -> None:
    """One voxel, odd sizes, classes that fill their tile and do not, several tiles and programs."""
    scores, labels = made(shape)
    for name in ("unified focal", "squares, focal and smoothing", *(["Combo"] * (activation == "softmax"))):
        assert_equal_to_the_definition(CallData(scores, labels, None, True, 1), terms_of(activation)[name])


@each("dtype", [torch.float16, torch.bfloat16])
@each("activation", ["softmax", "sigmoid"])
def test_half_precision(activation: Activation, dtype: torch.dtype) -> None:
    scores, labels = made((2, 5, 5, 6), dtype)
    for name in ("Dice and cross-entropy", "squares, focal and smoothing"):
        assert_equal_to_the_definition(CallData(scores, labels.to(dtype), None, True, 2), terms_of(activation)[name])


@each(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float64]
)
@each("mask_dtype", [None, torch.bool, torch.float64])
def test_dtypes_of_labels_and_masks(dtype: torch.dtype, mask_dtype: torch.dtype | None) -> None:
    if mask_dtype is not None and dtype not in (torch.uint8, torch.float16):
        pytest.skip("one integer and one float dtype are enough beside a mask")
    scores, labels = made((1, 2, 5, 6))
    mask = None if mask_dtype is None else (torch.rand(1, 1, 5, 6) * 2).to(mask_dtype)
    terms = terms_of("softmax")["Dice and cross-entropy"]
    for ignored in (None, -1, 255, 1):
        target = labels.to(dtype, copy=True)
        if ignored == -1 and dtype.is_signed:
            target[..., :2] = -1
        assert_equal_to_the_definition(CallData(scores, target, mask, True, ignored), terms)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_channels_last(activation: Activation) -> None:
    scores, labels = made((2, 3, 5, 4, 6))
    last = scores.contiguous(memory_format=torch.channels_last_3d)
    soft = scores.softmax(1)
    terms = terms_of(activation)["Dice and cross-entropy"]
    assert_equal_to_the_definition(CallData(last, labels, None, True, None), terms)
    for s, t in ((last, soft), (scores, soft.contiguous(memory_format=torch.channels_last_3d))):
        assert_equal_to_the_definition(CallData(s, t, None, False, 0), terms)
    assert_equal_to_the_definition(CallData(last[:1, :, 2:4], labels[:1, :, 2:4], None, True, None), terms[:1])


def test_confident_voxels_keep_their_digits() -> None:
    """Far from, and far over, the decision, from both sides; one voxel per sample, so one sum each."""
    margins = torch.tensor([-90.0, -20.0, 0.0, 8.0, 14.0, 90.0])
    scores = torch.full((len(margins), 3, 1), -2.0)
    scores[:, 0], scores[:, 1, 0] = 0, margins
    for true_class, activation in itertools.product((0, 1), ("softmax", "sigmoid")):
        labels = torch.full((len(margins), 1, 1), true_class)
        data = CallData(scores.to(DEVICE), labels.to(DEVICE), None, True, None)
        double = CallData(scores.double(), labels, None, True, None)
        for name, terms in terms_of(activation).items():
            with told(name, true_class):
                if name in ("logs", "focal 0.5", "focal 2", "poly", "generalized cross-entropy", "one-vs-rest"):
                    got, gradient = results_and_gradient(on_the_cpu, data, terms)
                    expected, expected_gradient = results_and_gradient(definitions, double, terms)
                    torch.testing.assert_close(got, expected, atol=1e-7, rtol=2e-6)
                    torch.testing.assert_close(gradient.cpu().double(), expected_gradient, atol=1e-7, rtol=4e-6)


def test_wrong_labels_are_clamped() -> None:
    scores, labels = made((1, 3, 40))
    terms = terms_of("softmax")["Dice and cross-entropy"]
    for wrong in (labels.float() * 1e9 - 1e9, labels * 1000 - 1000):
        datas = [CallData(scores.to(DEVICE), t.to(DEVICE), None, True, None) for t in (wrong, wrong.clamp(0, 2).long())]
        for a, b in zip(*(fused_sums(data, terms) for data in datas), strict=True):
            assert torch.equal(a, b)


def test_an_ignored_voxel_has_no_gradient_at_all() -> None:
    scores, labels = made((1, 3, 8, 8))
    scores[..., :4, :] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e38]).view(4, 1)
    labels[..., :4, :] = 255
    for activation, name in ALL:
        data = CallData(scores.to(DEVICE), labels.to(DEVICE), None, True, 255)
        results, gradient = results_and_gradient(fused_sums, data, terms_of(activation)[name])
        assert all(r.isfinite().all() for r in results)
        assert (gradient[..., :4, :] == 0).all()
        assert gradient.isfinite().all()


@every_term
@each("num_classes", [2, 4])
def test_classes_that_are_masked(activation: Activation, name: str, num_classes: int) -> None:
    """Scores of -inf, p = 0, are as very small ones; the only class of a voxel that is left has p = 1."""
    if name == "logs" or "smooth" in name:
        pytest.skip("every class has a share")
    if num_classes == 2 and name != "unified focal":
        pytest.skip("the same kernel, of a smaller tile")
    scores, labels = made((2, num_classes, 5, 6))
    true = one_hot(labels, num_classes) > 0
    masked = scores.masked_fill(~true & (torch.rand(scores.shape) < 0.3), -torch.inf)
    masked[:, :, 0] = torch.where(true[:, :, 0], masked[:, :, 0], -torch.inf)
    terms = terms_of(activation)[name]
    for target in (labels, true.float()):
        labelled = target is labels
        finite = CallData(masked.clamp_min(-1e4).double(), target, None, labelled, None)
        expected, expected_gradient = results_and_gradient(definitions, finite, terms)
        data = CallData(masked.to(DEVICE), target.to(DEVICE), None, labelled, None)
        got, gradient = results_and_gradient(on_the_cpu, data, terms)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=4e-6)
        torch.testing.assert_close(gradient.cpu().double(), expected_gradient, atol=1e-5, rtol=4e-6)


@every_term
def test_nan_is_not_lost(activation: Activation, name: str) -> None:
    if name == "target":
        pytest.skip("reads no scores")
    scores, labels = made((1, 3, 5, 6))
    for channel in (0, 2):
        spoilt = scores.clone()
        spoilt[0, channel, 2, 3] = torch.nan
        for target in (labels, one_hot(labels, 3)):
            data = CallData(spoilt.to(DEVICE), target.to(DEVICE), None, target is labels, None)
            terms = terms_of(activation)[name]
            reading = zip(on_the_cpu(data, terms), terms, strict=True)
            assert all(result.isnan().any() for result, term in reading if term != TargetSums())


def test_what_stays_with_torch() -> None:
    scores, labels = made((2, 3, 5, 6))
    data = CallData(scores, labels, None, True, None)
    unnamed = TrueClassSums("softmax", focal)
    for terms in (
        [unnamed],
        [OutcomeSums("none", SoftFocalFormula(2.0))],
        [ErrorSums("softmax", 1.5)],
        [VoxelMap(voxel_sums("softmax"))],
        [CountSums("none")],
        [CountSums("softmax"), CountSums("sigmoid")],
        [voxel_sums("softmax", "focal 2", one_vs_rest=True)],
        [voxel_sums("softmax"), voxel_sums("softmax", "poly"), voxel_sums("softmax", "focal 2")],
        [OutcomeLogSums("softmax")],
        [ForeignTerm(CubeSums("softmax"))],
        [SquareRootSums("softmax")],
        [TwiceSums("softmax", CrossEntropyFormula())],
    ):
        assert plans._gpu_kernels(data, terms) is None
    counts = [CountSums("softmax")]
    assert plans._gpu_kernels(data, counts) is not None
    for other in (
        CallData(scores.double(), labels, None, True, None),
        CallData(scores.transpose(2, 3).contiguous().transpose(2, 3), labels, None, True, None),
        CallData(scores[:, :, ::2], labels[:, :, ::2], None, True, None),
        CallData(scores[:0], labels[:0], None, True, None),
        CallData(torch.zeros(1, 257, 4), torch.zeros(1, 1, 4), None, True, None),
    ):
        assert plans._gpu_kernels(other, counts) is None
    plans._TRITON = "0"
    assert (plans._gpu_kernels(data, counts) is None) == (scores.device.type == "cpu")


def test_where_triton_fails_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    from monai_extra_losses.ops import fused_sums_triton

    def broken(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(fused_sums_triton, "probe", broken)
    plans._working_triton.cache_clear()
    data = CallData(*made((1, 3, 4)), None, True, None)
    with pytest.warns(UserWarning, match="without their GPU kernels, in plain torch: triton failed: Failed to find C"):
        assert plans._gpu_kernels(data, [CountSums("softmax")]) is None
    plans._working_triton.cache_clear()


def variant(terms: Sequence[Term], **given: Any) -> kernel_check.Variant:
    usual = {"channels": 3, "labels": True, "ignore_index": None, "scores": torch.float32, "target": torch.float32}
    return kernel_check.Variant(tuple(terms), **{**usual, "mask": None, "device": DEVICE, **given})


@each(
    "activation, name, kind",
    [
        *[("softmax", name, {}) for name in terms_of("softmax")],
        *[("sigmoid", name, {"labels": False}) for name in terms_of("sigmoid")],
        ("softmax", "counts", {"mask": torch.float32, "ignore_index": 255}),
        ("sigmoid", "counts", {"scores": torch.float16, "target": torch.uint8}),
        ("softmax", "Dice and cross-entropy", {"scores": torch.bfloat16, "mask": torch.bool}),
    ],
)
def test_what_a_call_needs_is_checked_before_its_first_use(
    activation: Activation, name: str, kind: dict[str, Any]
) -> None:
    from monai_extra_losses.ops import fused_sums_triton

    kernel_check.agree.cache_clear()
    terms = terms_of(activation)[name]
    if fused_sums_triton._plan(tuple(terms), kind.get("labels", True), 3) is None:
        pytest.skip("no kernel")
    assert kernel_check.agree(fused_sums_triton, variant(terms, **kind))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("fault", ["a number", "NaN", "no compiler"])
def test_kernels_that_deviate_are_left_with_one_warning(
    where: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monai_extra_losses.ops import fused_sums_triton

    right = getattr(fused_sums_triton, where)

    def wrong(*given: Any) -> Any:
        if fault == "no compiler":
            raise RuntimeError("Failed to find C compiler.")
        result = right(*given)
        first = result[0]
        first[(0,) * first.ndim] += 2e-3 * first.abs().max() if fault == "a number" else torch.nan
        return result

    monkeypatch.setattr(fused_sums_triton, where, wrong)
    monkeypatch.setattr(plans, "_TRITON", "")
    kernel_check.agree.cache_clear()
    said = {"a number": r"deviate by \d\.\de-03", "NaN": "deviate by nan", "no compiler": "fail: Failed to find C"}[
        fault
    ]
    asked = variant([CountSums("softmax")])
    with pytest.warns(UserWarning, match=rf"CountSums of 3 channels in plain torch: their GPU kernels {said}.*torch"):
        assert not kernel_check.agree(fused_sums_triton, asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernel_check.agree(fused_sums_triton, asked)
    kernel_check.agree.cache_clear()


def test_a_call_asks_for_the_check_unless_the_kernels_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[kernel_check.Variant] = []
    monkeypatch.setattr(plans, "agree", lambda kernels, one: bool(asked.append(one)))
    data = CallData(*made((1, 3, 4)), None, True, None)
    assert plans._gpu_kernels(data, [CountSums("softmax")]) is not None  # forced
    assert not asked
    monkeypatch.setattr(plans, "_TRITON", "")
    assert plans._gpu_kernels(data, [CountSums("softmax")]) is None  # on a CPU, or deviating
    assert len(asked) == (DEVICE.type == "cuda")


def test_a_second_backward_of_one_graph() -> None:
    scores, labels = made((2, 3, 5, 6))
    leaf = scores.to(DEVICE).requires_grad_()
    data = CallData(leaf, labels.to(DEVICE), None, True, None)
    terms = terms_of("softmax")["Dice and cross-entropy"]
    total = torch.cat([r.flatten() for r in fused_sums(data, terms)]).sum()
    (first,) = torch.autograd.grad(total, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(total, leaf, retain_graph=True)
    assert torch.equal(first, second)
    (alone,) = torch.autograd.grad(fused_sums(data, terms)[2].sum(), leaf)  # the gradients of the others absent
    expected = F.cross_entropy(leaf, labels[:, 0].to(DEVICE), reduction="sum")
    torch.testing.assert_close(alone, torch.autograd.grad(expected, leaf)[0], atol=1e-6, rtol=1e-5)


def taken(case: LossCase) -> bool:
    """Whether the kernels take all of the loss; a loss needs none, and is computed in torch where they do not."""
    from monai_extra_losses.ops import fused_sums_triton

    scores, labels = made((2, 4, 5, 7))
    loss = case()
    if not isinstance(loss, SegmentationLoss) or not case.entry.lean:
        return False
    terms = [term for _, term in loss.terms(loss.prepare(scores, labels)).values()]
    return fused_sums_triton.supports(CallData(scores, labels, None, True, None), terms)


CASES = [case for case in loss_cases(activations=("softmax", "sigmoid")) if taken(case)]


def test_the_kernels_take_the_usual_losses() -> None:
    names = {case.entry.name for case in CASES}
    assert names >= {
        "FusedDiceLoss",
        "JaccardLoss",
        "FusedTverskyLoss",
        "FusedGeneralizedDiceLoss",
        "BoundaryDoULoss",
        "CrossEntropyLoss",
        "FusedFocalLoss",
        "PolyLoss",
        "GeneralizedCrossEntropyLoss",
        "WeightedCrossEntropyLoss",
        "FusedDiceCELoss",
        "ComboLoss",
        "ExponentialLogarithmicLoss",
        "UnifiedFocalLoss",
    }
    assert "TopKLoss" not in names  # a map


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["FusedDiceLoss", "CrossEntropyLoss", "FusedFocalLoss", "FusedDiceCELoss"],
        dict.fromkeys(case.entry.name for case in CASES),
    ),
)
@each("data", ["labels", "ignored", "soft"])
def test_whole_losses(name: str, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradient of the kernels in float32 against those of torch in float64."""
    for case in CASES:
        if case.entry.name == name and (data == "labels" or not case.variant):
            with told(case), monkeypatch.context() as patch:
                compare_with_torch(case, data, patch)


def compare_with_torch(case: LossCase, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = made((2, 4, 5, 7))
    target: Tensor = labels
    if data == "ignored":
        target = labels.masked_fill(torch.rand(labels.shape) < 0.3, 255)
    if data == "soft":
        target = torch.rand(scores.shape, generator=torch.Generator().manual_seed(5)).softmax(1)
    loss = case(to_onehot_y=data != "soft", **({"ignore_index": 255} if data == "ignored" else {})).to(DEVICE)
    real, calls = plans._gpu_kernels, []

    def noted(data: CallData, terms: Any) -> Any:
        calls.append(real(data, terms))
        return calls[-1]

    monkeypatch.setattr(plans, "_gpu_kernels", noted)
    value, gradient = value_and_gradient(loss, scores.to(DEVICE), target.to(DEVICE))
    assert calls
    assert None not in calls
    calls.clear()
    expected, expected_gradient = value_and_gradient(loss, scores.double().to(DEVICE), target.to(DEVICE))
    assert calls
    assert set(calls) == {None}
    torch.testing.assert_close(value.double(), expected, atol=2e-6, rtol=4e-6)
    scale = expected_gradient.abs().max().clamp_min(1e-6)
    torch.testing.assert_close(gradient.double() / scale, expected_gradient / scale, atol=1e-5, rtol=1e-5)


def test_a_compiled_loss_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = plans._gpu_kernels, []
    monkeypatch.setattr(plans, "_gpu_kernels", lambda *call: calls.append(real(*call)) or calls[-1])
    scores, labels = (tensor.to(DEVICE) for tensor in made((2, 3, 5, 6)))
    loss = losses.FusedDiceCELoss(to_onehot_y=True, softmax=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = value_and_gradient(compiled, scores, labels)
    assert len(calls) == 2  # forward and backward
    assert None not in calls
    torch.testing.assert_close(got, value_and_gradient(loss, scores, labels), atol=1e-7, rtol=1e-6)


def test_triton_is_not_imported_before_it_is_used() -> None:
    code = "import sys, monai_extra_losses; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
