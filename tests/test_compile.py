"""torch.compile traces every loss in one graph and gives what eager gives, at its memory."""

import copy
import itertools
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import pytest
import torch
from loss_list import (
    LossCase,
    LossEntry,
    assert_lean,
    every_case,
    every_mechanism,
    labels_like,
    one_hot,
    value_and_gradient,
)
from marks import slow, slow_but
from monai.data import MetaTensor
from torch import Tensor, fx, nn
from torch._dynamo.testing import CompileCounterWithBackend

from monai_extra_losses.losses import (
    ComboLoss,
    CompoundLoss,
    CrossEntropyLoss,
    DiceTopKLoss,
    ExponentialLogarithmicLoss,
    FusedDiceCELoss,
    FusedDiceLoss,
    FusedFocalLoss,
    FusedGeneralizedDiceLoss,
    HingeLoss,
    HuberLoss,
    PolyLoss,
    SurfaceLoss,
    UnifiedFocalLoss,
)
from monai_extra_losses.losses.base import DistributionLoss
from monai_extra_losses.losses.options import SegmentationOptions
from monai_extra_losses.ops.formulas import Spelled

CLOSE = {"atol": 1e-6, "rtol": 1e-5}
SOFTMAX: dict[str, Any] = {"to_onehot_y": True, "softmax": True}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own
        yield


# What is one graph is Dynamo's to find out; that it is differentiated as one is shown for each mechanism below.
@every_case(only=lambda entry: entry.lean, variants=False, activations=("softmax",), long=True)
def test_one_graph_equal_to_eager(case: LossCase) -> None:
    torch.compiler.reset()
    scores = case.scores(2, 3, 4, 5)
    labels = labels_like(scores)
    loss = case()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        value_and_gradient(compiled, scores, labels), value_and_gradient(loss, scores, labels), **CLOSE
    )


@every_mechanism(only=lambda entry: entry.lean, long=True)
def test_with_mask_ignore_index_and_weight(case: LossCase) -> None:
    scores = case.scores(2, 3, 4, 5)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5)
    labels[:, :, 1] = 255
    loss = case(ignore_index=255, **case.weighted([1.0, 2.0, 0.5]))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        value_and_gradient(compiled, scores, labels, mask), value_and_gradient(loss, scores, labels, mask), **CLOSE
    )


@every_mechanism(only=lambda entry: entry.lean, long=True)
def test_two_classes_one_hot_and_none(case: LossCase) -> None:
    scores = case.scores(2, 2, 4, 5)
    target = one_hot(labels_like(scores), 2)
    loss = case(to_onehot_y=False, reduction=case.entry.reductions[-1])
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        value_and_gradient(compiled, scores, target), value_and_gradient(loss, scores, target), **CLOSE
    )


def test_a_compound_of_any_parts() -> None:
    scores = torch.randn(2, 3, 4, 5)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5)
    parts = [FusedGeneralizedDiceLoss(**SOFTMAX), PolyLoss(**SOFTMAX), ComboLoss(**SOFTMAX)]
    loss = CompoundLoss(parts, [1.0, 0.5, 0.25])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for data in ((scores, labels), (scores, labels, mask)):
        torch.testing.assert_close(value_and_gradient(compiled, *data), value_and_gradient(loss, *data), **CLOSE)


def operators(graph: fx.Graph) -> list[str]:
    """The terms of each of our operators in a graph."""
    return [node.args[5] for node in graph.nodes if "monai_extra_losses.fused_sums" in str(node.target)]


def traced_operators(loss: Callable[..., Tensor], *data: Tensor) -> list[str]:
    """Those of the one graph of a loss, which gives what the loss gives."""
    graphs: list[fx.Graph] = []

    def backend(module: fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(module.graph)
        return module.forward

    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend=backend)(*data), loss(*data), **CLOSE)
    (graph,) = graphs
    return operators(graph)


class SquaredLogLoss(DistributionLoss):
    """A loss of somebody else."""

    def voxel_formula(self, log_pt: Tensor) -> Tensor:
        return log_pt**2


def test_one_operator_for_all_sums() -> None:
    scores = torch.randn(2, 3, 4, 5)
    labels = labels_like(scores)
    for loss, number in (
        (FusedDiceLoss(**SOFTMAX), 2),
        (FusedDiceCELoss(**SOFTMAX, label_smoothing=0.1), 4),
        (UnifiedFocalLoss(**SOFTMAX, asymmetric=True), 4),
        (ExponentialLogarithmicLoss(**SOFTMAX), 3),
        (CompoundLoss([FusedDiceLoss(**SOFTMAX), FusedDiceCELoss(**SOFTMAX), CrossEntropyLoss(**SOFTMAX)]), 3),
        (HingeLoss(to_onehot_y=True), 2),
        (DiceTopKLoss(**SOFTMAX), 2),  # the map of top-k is a plain definition
        (SquaredLogLoss(**SOFTMAX), 1),  # and so is a formula that the package does not know
    ):
        (terms,) = traced_operators(loss, scores, labels)
        assert terms.count(";") == number - 1, f"{type(loss).__name__}: {terms}"


def test_a_map_of_distances_beside_an_operator() -> None:
    scores = torch.randn(2, 3, 4, 5)
    labels, distance = labels_like(scores), torch.randn(2, 3, 4, 5)
    loss = CompoundLoss([FusedDiceLoss(**SOFTMAX), SurfaceLoss(**SOFTMAX, include_background=True)])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    data = (scores, labels, None, distance)
    torch.testing.assert_close(value_and_gradient(compiled, *data), value_and_gradient(loss, *data), **CLOSE)


def test_what_has_a_gradient_or_a_transform_stays_with_torch() -> None:
    """A target that is differentiated, and torch.func, which needs a rule for every operation."""
    scores, soft = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5).softmax(1)
    loss = FusedDiceCELoss(softmax=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, got = (
        torch.autograd.grad(f(scores, target), target)[0]
        for f, target in ((loss, soft.clone().requires_grad_()), (compiled, soft.clone().requires_grad_()))
    )
    torch.testing.assert_close(got, expected, **CLOSE)
    assert traced_operators(loss, scores, soft.requires_grad_()) == []
    labels = labels_like(scores)
    loss = FusedDiceCELoss(**SOFTMAX)
    pairs = scores.unsqueeze(1), labels.unsqueeze(1)
    mapped = torch.compile(torch.vmap(torch.func.grad_and_value(loss)), fullgraph=True, backend="aot_eager")
    gradients, values = mapped(*pairs)
    for i, pair in enumerate(zip(*pairs, strict=True)):
        torch.testing.assert_close((values[i], gradients[i]), value_and_gradient(loss, *pair), **CLOSE)


def test_a_wrong_target_gets_a_sentence() -> None:
    scores = torch.randn(2, 3, 4, 5)
    compiled = torch.compile(FusedDiceCELoss(**SOFTMAX, ignore_index=255), fullgraph=True, backend="aot_eager")
    labels = labels_like(scores)
    compiled(scores, labels)
    labels[0, 0, 0, 0] = 3
    with pytest.raises(ValueError, match=r"expected whole labels in 0\.\.2 .* or ignore_index=255, got 3: remap them"):
        compiled(scores, labels)
    compiled = torch.compile(FusedDiceLoss(softmax=True), fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"expected a target of 3 channel\(s\) with values in \[0, 1\], got 0 to 9"):
        compiled(scores, 9 * one_hot(labels, 3))


def keeps_no_sums(entry: LossEntry) -> bool:
    """Whether nothing but a map, or all voxels at once, is computed."""
    return entry.lean and ("TopK" in entry.name or (entry.family == "distribution" and "none" in entry.reductions))


@every_mechanism(only=keeps_no_sums, long=True)
def test_a_map_keeps_the_checks(case: LossCase) -> None:
    """Compiled to plain definitions, whose graph nothing but an operator can check."""
    scores = case.scores(2, 3, 4, 5)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5)
    reduction = case.entry.reductions[-1]
    channels = [one_hot(labels, 3)] if case.entry.name in ("TopKLoss", "CrossEntropyLoss") else []
    for target in (labels, *channels):
        loss = case(reduction=reduction, to_onehot_y=target is labels)
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        torch.testing.assert_close(
            value_and_gradient(compiled, scores, target, mask), value_and_gradient(loss, scores, target, mask), **CLOSE
        )
        wrong = target.clone()
        wrong[0, 0, 0, 0] = 255
        expected = r"expected whole labels in 0\.\.2 .*, got 255" if target is labels else r"values in \[0, 1\], got"
        with pytest.raises(ValueError, match=expected):
            compiled(scores, wrong, mask)
        with pytest.raises(ValueError, match="expected mask weights >= 0, got a negative number"):
            compiled(scores, target, mask - 0.5)


@pytest.mark.slow
@every_mechanism(only=lambda entry: entry.family == "structure")
def test_whole_maps_keep_the_checks(case: LossCase) -> None:
    scores = case.scores(2, 3, 4, 5)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5)
    loss = case()
    compiled = torch.compile(loss, backend="aot_eager")
    torch.testing.assert_close(compiled(scores, labels, mask), loss(scores, labels, mask), **CLOSE)
    with pytest.raises(ValueError, match="expected mask weights >= 0, got a negative number"):
        compiled(scores, labels, mask - 0.5)
    labels[0, 0, 0, 0] = 255
    with pytest.raises(ValueError, match=r"expected whole labels in 0\.\.2 .*, got 255"):
        compiled(scores, labels, mask)


def test_a_regression_keeps_the_check_of_its_mask() -> None:
    x, y, mask = torch.randn(2, 3, 4, 5), 9 * torch.randn(2, 3, 4, 5), torch.rand(2, 1, 4, 5)
    loss = HuberLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y, mask), loss(x, y, mask), **CLOSE)
    with pytest.raises(ValueError, match="expected mask weights >= 0, got a negative number"):
        compiled(x, y, mask - 0.5)


def test_a_target_with_a_gradient_keeps_the_check() -> None:
    scores, soft = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5).softmax(1)
    compiled = torch.compile(FusedDiceLoss(softmax=True), fullgraph=True, backend="aot_eager")
    compiled(scores, soft.requires_grad_())
    with pytest.raises(ValueError, match=r"expected a target of 3 channel\(s\) with values in \[0, 1\]"):
        compiled(scores, (9 * soft).detach().requires_grad_())


@dataclass(frozen=True)
class OwnPolyFormula(Spelled):
    """-a L + b (1-p): of two hyper-parameters, without a slope, in the module of its loss."""

    a: float
    b: float

    def __call__(self, log_pt: Tensor) -> Tensor:
        return -self.a * log_pt - self.b * torch.expm1(log_pt)


class OwnPolyLoss(DistributionLoss):
    """`PolyLoss`, as CONTRIBUTING has a loss added."""

    def __init__(self, a: float = 1.0, b: float = 1.0, **options: Unpack[SegmentationOptions]) -> None:
        super().__init__(**options)
        self.a, self.b = a, b

    @property
    def voxel_formula(self) -> OwnPolyFormula:
        return OwnPolyFormula(self.a, self.b)


@pytest.mark.parametrize(
    ("activation", "reduction"),
    slow_but([("softmax", "mean")], itertools.product(("softmax", "sigmoid", "none"), ("mean", "none"))),
)
def test_a_formula_without_slope_beside_its_loss(activation: str, reduction: str) -> None:
    """The pass differentiates it, in eager mode and in the operator, for labels and channels, of any number of them."""
    for channels in (1, 2, 3):
        scores = torch.randn(2, channels, 4, 5)
        scores = scores if activation != "none" else scores.sigmoid() if channels == 1 else scores.softmax(1)
        labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5)
        for target in (labels, one_hot(labels, channels)) if channels > 1 else (labels,):
            options = {"to_onehot_y": target is labels and channels > 1, "reduction": reduction, "weight": 2.0}
            options |= {activation: True} if activation != "none" and (channels, activation) != (1, "softmax") else {}
            loss, expected = OwnPolyLoss(b=0.3, **options), PolyLoss(0.3, **options)
            wanted = value_and_gradient(expected, scores, target, mask)
            torch.compiler.reset()
            compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
            for same in (loss, compiled, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
                torch.testing.assert_close(value_and_gradient(same, scores, target, mask), wanted, **CLOSE)


@pytest.mark.slow  # test_memory is quick
def test_the_memory_of_a_formula_without_slope() -> None:
    scores = torch.randn(1, 14, 32, 32, 32)
    labels = labels_like(scores)
    for target in (labels, one_hot(labels, 14)):
        for options in ({"softmax": True}, {"sigmoid": True}):
            loss = OwnPolyLoss(b=0.3, to_onehot_y=target is labels, **options)
            for step in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
                value_and_gradient(step, scores, target)  # compiles
                assert_lean(step, scores, target)
                scores = scores.detach()


def test_a_second_derivative_is_refused() -> None:
    scores = torch.randn(2, 3, 4, 5, requires_grad=True)
    compiled = torch.compile(FusedDiceLoss(**SOFTMAX), fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(scores, labels_like(scores)), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):  # torch's own words
        gradient.square().sum().backward()


def test_memory() -> None:
    scores = torch.randn(1, 14, 32, 32, 32)
    labels = labels_like(scores)
    for loss in (FusedDiceCELoss(**SOFTMAX), FusedFocalLoss(to_onehot_y=True), HingeLoss(to_onehot_y=True)):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        value_and_gradient(compiled, scores, labels)  # compiles
        assert_lean(compiled, scores, labels)
        scores = scores.detach()


@pytest.mark.slow  # test_a_training_step compiles with it too
@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="inductor needs a C compiler")
def test_inductor() -> None:
    scores = torch.randn(1, 14, 32, 32, 32)
    labels = labels_like(scores)
    loss = FusedDiceCELoss(**SOFTMAX)
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(
        value_and_gradient(compiled, scores, labels), value_and_gradient(loss, scores, labels), **CLOSE
    )
    assert_lean(compiled, scores, labels)
    top_k = torch.compile(DiceTopKLoss(**SOFTMAX), fullgraph=True)
    top_k(scores, labels)
    labels[0, 0, 0, 0, 0] = 14
    for refuses in (compiled, top_k):
        with pytest.raises(ValueError, match=r"expected whole labels in 0\.\.13 .*, got 14"):
            refuses(scores, labels)


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="inductor needs a C compiler")
def test_a_training_step() -> None:
    """Network, loss and backward, where the compiler chooses the strides in between."""
    torch.manual_seed(0)
    image = torch.randn(2, 1, 8, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    labels = torch.randint(0, 3, (2, 1, 8, 8, 8))
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 1))
    loss = FusedDiceCELoss(**SOFTMAX)

    def step() -> Tensor:
        return loss(network(image), labels)

    results = []
    for forward in (step, torch.compile(step, fullgraph=True)):
        network.zero_grad()
        value = forward()
        value.backward()
        results.append([value.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("how", ["by itself", *slow("dynamic", "marked")])
def test_sizes_do_not_compile_anew(how: str) -> None:
    loss = FusedDiceCELoss(**SOFTMAX, ignore_index=2)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter, dynamic=True if how == "dynamic" else None)
    counts = []
    for shape in ((2, 3, 4, 5, 6), (3, 3, 6, 7, 8), (4, 3, 8, 4, 5), (2, 3, 9, 9, 5)):
        scores = torch.randn(shape)
        labels = labels_like(scores)
        if how == "marked":
            for tensor in (scores, labels):
                torch._dynamo.mark_dynamic(tensor, (0, 2, 3, 4))
        torch.testing.assert_close(compiled(scores, labels), loss(scores, labels), **CLOSE)
        counts.append(counter.frame_count)
    assert counts == {"by itself": [1, 2, 2, 2]}.get(how, [counts[0]] * 4)
    assert counts[0] <= 2  # a number that is to be a symbol, and may not


def test_a_changed_parameter_compiles_anew() -> None:
    scores = torch.randn(2, 3, 4, 5)
    labels = labels_like(scores)
    loss = FusedFocalLoss(to_onehot_y=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for loss.gamma in (2.0, 0.5, 3, 2.0):
        torch.testing.assert_close(compiled(scores, labels), loss(scores, labels), **CLOSE)


def test_half_precision_under_autocast() -> None:
    scores = torch.randn(2, 3, 4, 5).to(torch.bfloat16)
    labels = labels_like(scores)
    loss = FusedDiceCELoss(**SOFTMAX)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradient(compiled, scores, labels)
    torch.testing.assert_close(got, value_and_gradient(loss, scores, labels), atol=1e-6, rtol=1e-2)
    torch.testing.assert_close(got[0], loss(scores.float(), labels))


def test_meta_tensors() -> None:
    """MONAI's tensors; the other backends of torch 2.13 fail on the first call that is given any."""
    scores = torch.randn(2, 3, 4, 5)
    labels = labels_like(scores)
    loss = FusedDiceCELoss(**SOFTMAX)
    compiled = torch.compile(loss, backend="eager")
    got = value_and_gradient(compiled, MetaTensor(scores), MetaTensor(labels))
    torch.testing.assert_close(got, value_and_gradient(loss, scores, labels), **CLOSE)


@pytest.mark.parametrize("strict", [False, *slow(True)])
def test_export(strict: bool) -> None:
    """torch.export, without Dynamo too, where tensors are stand-ins of another class; it needs torch alone."""
    scores = torch.randn(2, 3, 4, 5)
    labels = labels_like(scores)
    for loss in (FusedDiceCELoss(**SOFTMAX), ComboLoss(**SOFTMAX)):
        exported = torch.export.export(loss, (scores, labels), strict=strict)
        assert operators(exported.graph) == []
        torch.testing.assert_close(exported.module()(scores, labels), loss(scores, labels), **CLOSE)
