"""Where a loss meets tensors that are no ordinary ones: transforms of torch.func, no numbers, no float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from loss_list import ENTRIES, REDUCED, LossCase, each, every_case, labels_like, one_hot, value_and_gradient
from monai.data import MetaTensor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_extra_losses.losses import (
    CompoundLoss,
    CrossEntropyLoss,
    FusedDiceCELoss,
    FusedDiceLoss,
    GeneralizedSurfaceLoss,
    HuberLoss,
    LovaszLoss,
    SurfaceLoss,
)
from monai_extra_losses.losses.checks import CudaLabelCheck
from monai_extra_losses.ops import fused_sums, numbers

SHAPE = (2, 3, 4, 5)
CLOSE: dict[str, float] = {"atol": 1e-9, "rtol": 1e-9}
SOFTMAX: dict[str, Any] = {"to_onehot_y": True, "softmax": True}

# --- transforms of torch.func ---

ON_THE_HOST = ("SkeletonRecallLoss", "ComponentDiceCELoss", "BlobDiceCELoss")  # where the target is read


def sample_by_sample(loss: nn.Module) -> Callable[..., Tensor]:
    """The loss of one sample without its batch axis."""
    return lambda *data: loss(*(tensor[None] for tensor in data))


@every_case(variants=False, long=True)
def test_grad_jacrev_and_jvp_give_the_gradient(case: LossCase) -> None:
    scores = case.scores(*SHAPE, dtype=torch.float64)
    labels = labels_like(scores)
    targets = {True: labels, False: one_hot(labels, 3, torch.float64)}
    for derivative, to_onehot_y in ((grad, True), (jacrev, False)):
        target, loss = targets[to_onehot_y], case(to_onehot_y=to_onehot_y, **case.weighted([0.5, 2.0, 3.0]))
        value, gradient = value_and_gradient(loss, scores, target)
        torch.testing.assert_close(derivative(lambda x, f=loss, y=target: f(x, y))(scores), gradient, **CLOSE)
    direction = torch.randn(SHAPE, dtype=torch.float64)
    forwards = jvp(lambda x: loss(x, target), (scores,), (direction,))
    torch.testing.assert_close(forwards, (value, (gradient * direction).sum()), **CLOSE)


@every_case(variants=False, only=lambda entry: entry.name not in ON_THE_HOST, long=True)
def test_vmap_gives_each_sample_its_loss(case: LossCase) -> None:
    scores = case.scores(*SHAPE, dtype=torch.float64)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5, dtype=torch.float64)
    for reduction in case.entry.reductions:
        loss, data = case(reduction=reduction, ignore_index=1), (scores, labels, mask)
        expected = torch.stack([loss(*(tensor[n : n + 1] for tensor in data)) for n in range(2)])
        torch.testing.assert_close(vmap(sample_by_sample(loss))(*data), expected, **CLOSE)
    loss = case()
    gradients = torch.stack([value_and_gradient(loss, scores[n : n + 1], labels[n : n + 1])[1][0] for n in range(2)])
    torch.testing.assert_close(vmap(grad(sample_by_sample(loss)))(scores, labels), gradients, **CLOSE)


@every_case(variants=False, activations=("softmax",), long=True)
def test_hessian_is_the_derivative_of_the_gradient(case: LossCase) -> None:
    scores = case.scores(1, 3, 3, 4, dtype=torch.float64)
    labels = labels_like(scores)
    loss, step = case(), 1e-6
    direction = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ahead, behind = (value_and_gradient(loss, scores + sign * step * direction, labels)[1] for sign in (1, -1))
    second = hessian(lambda x: loss(x, labels))(scores)
    got = (second.flatten(4).flatten(0, 3) @ direction.flatten()).view_as(scores)
    scale = got.abs().max().clamp_min(1e-3)
    torch.testing.assert_close(got / scale, (ahead - behind) / (2 * step * scale), atol=1e-5, rtol=0)


@each("transform", ["grad", "vmap", "vmap of grad"])
@each("name", ["FusedDiceLoss", "CrossEntropyLoss", "HingeLoss", "LovaszLoss", "SurfaceLoss"])
def test_wrong_data_is_refused_under_a_transform(name: str, transform: str) -> None:
    loss, scores = ENTRIES[name].make(), torch.randn(SHAPE)
    run: dict[str, Callable[..., object]] = {
        "grad": lambda x, *data: grad(lambda y: loss(y, *data))(x),
        "vmap": vmap(sample_by_sample(loss)),
        "vmap of grad": vmap(grad(sample_by_sample(loss))),
    }
    labels, mask = labels_like(scores, dtype=torch.float32), torch.ones(2, 1, 4, 5)
    for wrong in (7.0, 0.5, -1.0):
        bad = labels.clone()
        bad[1, 0, 2, 2] = wrong
        with pytest.raises(ValueError, match=rf"expected whole labels in 0\.\.2 .*got {wrong:g}"):
            run[transform](scores, bad)
    mask[0, 0, 1, 1] = -1
    with pytest.raises(ValueError, match="expected mask weights >= 0"):
        run[transform](scores, labels, mask)


def test_a_target_of_channels_is_checked_under_a_transform() -> None:
    target = one_hot(torch.zeros(2, 1, 4, 5), 3)
    target[1, 2, 3, 3] = 2.0
    with pytest.raises(ValueError, match=r"expected a target of 3 channel.* with values in \[0, 1\], got 0 to 2"):
        vmap(sample_by_sample(FusedDiceLoss(softmax=True)))(torch.randn(SHAPE), target)


def test_functional_call_takes_other_weights() -> None:
    scores, labels = torch.randn(SHAPE), torch.randint(0, 3, (2, 1, 4, 5))
    loss = FusedDiceCELoss(weight=[1.0, 1.0, 1.0], **SOFTMAX)
    other = FusedDiceCELoss(weight=[0.5, 2.0, 3.0], **SOFTMAX)
    got = functional_call(loss, other.state_dict(), (scores, labels))
    assert torch.equal(got, other(scores, labels))
    compound = CompoundLoss([FusedDiceLoss(**SOFTMAX), CrossEntropyLoss(**SOFTMAX)], nn.Parameter(torch.ones(2)))
    weights = torch.tensor([0.5, 3.0])

    def of_weights(given: Tensor) -> Tensor:
        return functional_call(compound, {"weights": given}, (scores, labels))

    parts = torch.stack([part(scores, labels) for part in compound.losses.values()])
    torch.testing.assert_close(of_weights(weights), (weights * parts).sum())
    torch.testing.assert_close(grad(of_weights)(weights), parts)
    torch.testing.assert_close(vmap(of_weights)(weights.expand(2, 2)), (weights * parts).sum().expand(2))


def test_a_compound_and_a_regression_loss_under_transforms() -> None:
    scores, labels = torch.randn(SHAPE), torch.randint(0, 3, (2, 1, 4, 5))
    compound = CompoundLoss([FusedDiceLoss(**SOFTMAX), SurfaceLoss(**SOFTMAX), LovaszLoss(**SOFTMAX)], [1.0, 0.1, 0.5])
    expected = value_and_gradient(compound, scores, labels)[1]
    torch.testing.assert_close(grad(lambda x: compound(x, labels))(scores), expected)
    assert vmap(sample_by_sample(compound))(scores, labels).shape == (2,)
    target = torch.randn(SHAPE)
    expected = value_and_gradient(HuberLoss(), scores, target)[1]
    torch.testing.assert_close(jacrev(lambda x: HuberLoss()(x, target))(scores), expected)


def test_dual_tensors_are_refused_with_a_sentence() -> None:
    scores, labels = torch.randn(SHAPE), torch.zeros(2, 1, 4, 5)
    for loss in (FusedDiceLoss(**SOFTMAX), CrossEntropyLoss(reduction="none", **SOFTMAX), SurfaceLoss(**SOFTMAX)):
        with (
            forward_ad.dual_level(),
            pytest.raises(RuntimeError, match=r"no forward-mode derivative for dual tensors: .*torch\.func\.jvp"),
        ):
            loss(forward_ad.make_dual(scores, torch.ones_like(scores)), labels)
        assert jacfwd(lambda x, f=loss: f(x, labels).sum())(scores).shape == SHAPE


# --- no numbers ---


def value_and_gradient_of_sum(loss: nn.Module, scores: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
    leaf = scores.detach().requires_grad_()
    value = loss(leaf, *data)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


@every_case(variants=False, long=True)
@each("kind", ["meta", "fake"])
def test_tensors_without_numbers_get_shapes_and_dtypes(case: LossCase, kind: str) -> None:
    """A model can be built and traced before there is memory for it."""
    scores = case.scores(*SHAPE)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5)
    if kind == "fake" and case.activation != case.entry.activations[0]:
        pytest.skip("one activation is enough of tensors that act as those of meta, at ten times the cost")
    for reduction in case.entry.reductions if kind == "meta" else REDUCED:
        hard = reduction != "sum"
        target = labels if hard else one_hot(labels, 3)
        loss = case(reduction=reduction, to_onehot_y=hard, **case.weighted([0.5, 2.0, 3.0]))
        expected, gradient = value_and_gradient(loss, scores, target, mask)
        if kind == "meta":
            data = [tensor.to("meta") for tensor in (scores, target, mask)]
            value, got = value_and_gradient_of_sum(loss.to("meta"), *data)
        else:
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                data = [mode.from_tensor(tensor) for tensor in (scores, target, mask)]
                value, got = value_and_gradient_of_sum(loss, *data)
        assert (value.shape, value.dtype, value.is_meta) == (expected.shape, expected.dtype, kind == "meta")
        assert (got.shape, got.dtype) == (gradient.shape, gradient.dtype)


def test_what_needs_no_numbers_is_refused_without_them_too() -> None:
    scores = torch.randn(SHAPE, device="meta")
    with pytest.raises(ValueError, match=r"expected target \(2, 1, 4, 5\), got \(2, 4, 5\)"):
        FusedDiceLoss(**SOFTMAX)(scores, torch.zeros(2, 4, 5, device="meta"))
    with pytest.raises(ValueError, match="expected target on meta like the input, got cpu"):
        FusedDiceLoss(**SOFTMAX)(scores, torch.zeros(2, 1, 4, 5))


def test_a_loss_that_is_built_on_the_meta_device_keeps_its_numbers() -> None:
    """`to_empty` would fill them with whatever is in the memory."""
    scores, labels = torch.randn(SHAPE), torch.randint(0, 3, (2, 1, 4, 5))
    with torch.device("meta"):
        loss = FusedDiceCELoss(weight=[0.5, 2.0, 3.0], **SOFTMAX)
        with pytest.raises(ValueError, match="weight"):
            FusedDiceLoss(weight=[1.0, -2.0, 3.0])
    assert torch.equal(loss(scores, labels), FusedDiceCELoss(weight=[0.5, 2.0, 3.0], **SOFTMAX)(scores, labels))


# --- no float64 ---


class DoublesOnMeta(TorchDispatchMode):
    """Records the operations that read or write float64 on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor) and leaf.is_meta and leaf.dtype == torch.float64:
                self.found.add(str(func))
        return result


def doubles_on_meta(loss: nn.Module, *data: Tensor) -> set[str]:
    with DoublesOnMeta() as mode:
        value_and_gradient_of_sum(loss, *(tensor.to("meta") for tensor in data))
    return mode.found


@pytest.fixture
def meta_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the meta device stand for Apple's: no float64, no reading on the host, the same kernels as on a GPU."""
    monkeypatch.setitem(numbers._WITH_FLOAT64, "meta", False)
    monkeypatch.setattr(fused_sums, "has_numbers", lambda tensor: True)


@every_case(variants=False, long=True)
def test_nothing_is_float64_where_the_device_has_none(case: LossCase, meta_without_float64: None) -> None:
    scores = case.scores(*SHAPE)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5)
    more = {"spacing": (1.0, 2.0)} if case.entry.accepts("spacing") else {}
    more |= {"batch": True} if case.entry.accepts("batch") else {}
    for reduction in case.entry.unlike_reductions:
        loss = case(reduction=reduction, ignore_index=1, **case.weighted([0.5, 2.0, 3.0])).to("meta")
        assert doubles_on_meta(loss, scores, labels, mask) == set()
    soft = case(to_onehot_y=False, **more).to("meta")
    assert doubles_on_meta(soft, scores.half(), one_hot(labels, 3)) == set()


def test_nothing_else_is_float64_where_the_device_has_none(meta_without_float64: None) -> None:
    scores, labels = torch.randn(SHAPE), torch.randint(0, 3, (2, 1, 4, 5))
    weights = nn.Parameter(torch.ones(2))
    compound = CompoundLoss([FusedDiceLoss(**SOFTMAX), LovaszLoss(batch=True, **SOFTMAX)], weights).to("meta")
    assert doubles_on_meta(compound, scores, labels) == set()
    assert doubles_on_meta(HuberLoss(), scores, torch.randn(SHAPE), torch.ones(2, 1, 4, 5)) == set()
    affine = torch.diag(torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64))  # MONAI's stays on the host
    for loss in (SurfaceLoss(**SOFTMAX), GeneralizedSurfaceLoss(batch=True, **SOFTMAX)):
        assert doubles_on_meta(loss, scores, MetaTensor(labels, affine=affine)) == set()


def test_the_trace_would_find_float64(meta_without_float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(numbers._WITH_FLOAT64, "meta", True)
    assert doubles_on_meta(FusedDiceLoss(**SOFTMAX), torch.randn(SHAPE), torch.zeros(2, 1, 4, 5))


def test_the_precision_of_sums_is_that_of_the_device() -> None:
    assert numbers.sum_dtype(torch.device("mps")) == torch.float32
    assert numbers.sum_dtype(torch.device("cuda", 1)) == numbers.sum_dtype(torch.device("cpu")) == torch.float64
    assert numbers.sum_dtype(torch.device("xpu")) in (torch.float32, torch.float64)  # asked, and none is there


# --- labels on a GPU ---


class OnGpu(Tensor):
    """A tensor of the host that says it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)


class Event:
    """What a GPU has done by then is ready as soon as `ready` says so."""

    ready = True

    def record(self) -> None: ...

    def query(self) -> bool:
        return type(self).ready


@pytest.fixture
def _host_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **options: real(*size, **options))
    monkeypatch.setattr(Event, "ready", True)


def gpu_labels(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, -1).as_subclass(OnGpu)


@pytest.mark.usefixtures("_host_as_gpu")
def test_the_first_call_on_a_gpu_waits_for_its_check() -> None:
    for wrong, shown in ((3.0, "3"), (-1.0, "-1"), (1.5, r"1\.5"), (255.0, "255")):
        with pytest.raises(ValueError, match=rf"expected whole labels in 0\.\.2 .*, got {shown}: "):
            CudaLabelCheck()(gpu_labels(0, 1, wrong), 3, None)
    CudaLabelCheck()(gpu_labels(0, 1, 2), 3, None)
    CudaLabelCheck()(gpu_labels(0, 1, 255), 3, 255)


@pytest.mark.usefixtures("_host_as_gpu")
def test_a_later_call_on_a_gpu_says_what_an_earlier_one_found() -> None:
    """Without waiting: what is not ready is looked at the next time, and told once."""
    check = CudaLabelCheck()
    check(gpu_labels(0, 1, 2), 3, None)
    check(gpu_labels(0, 1, 1.5), 3, None)
    Event.ready = False
    check(gpu_labels(0, 1, 2), 3, None)
    Event.ready = True
    with pytest.raises(ValueError, match=r"an earlier call had a wrong target: expected whole labels in 0\.\.2"):
        check(gpu_labels(0, 1, 2), 3, None)
    check(gpu_labels(0, 1, 2), 3, None)
    check(gpu_labels(0, 1, 2), 3, None)
    copy.deepcopy(check)(gpu_labels(0, 1, 2), 3, None)
    with pytest.raises(ValueError, match="got 7"):  # a copy waits the first time
        copy.deepcopy(check)(gpu_labels(0, 1, 7), 3, None)
