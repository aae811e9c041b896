"""The last convolution and the loss in one pass: equal to one after the other, and without the scores."""

import copy
import io
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import monai.networks.nets as nets
import pytest
import torch
from loss_list import LossCase, each, every_case, labels_like
from memory import peak_extra_bytes
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceLoss
from torch import Tensor, nn

from monai_extra_losses.engines import AnnotatedVoxelLoss, LossWithMaps
from monai_extra_losses.losses import (
    CompoundLoss,
    CrossEntropyLoss,
    FusedDiceCELoss,
    FusedDiceLoss,
    HausdorffLoss,
    HeadlessNetwork,
    HeadLoss,
    LovaszLoss,
    ShapeMismatchError,
    SurfaceLoss,
)
from monai_extra_losses.ops import head_scores
from monai_extra_losses.ops import plan as plans

OPTIONS: dict[str, Any] = {"to_onehot_y": True, "softmax": True}
# They compute with all scores at once: neighbourhoods, sorting, the distance to what is predicted.
READ_ALL = {
    "CenterlineBoundaryDiceLoss",
    "CenterlineDiceLoss",
    "CorrelationMaximizedStructuralSimilarityLoss",
    "HausdorffERLoss",
    "HausdorffLoss",
    "LogHausdorffLoss",
    "LovaszLoss",
    "ShapeAwareLoss",
    "SurfaceDiceLoss",
    "TopologicalInteractionLoss",
}


def reads_all(case: LossCase) -> bool:
    return case.entry.family == "regression" or (case.entry.name in READ_ALL and case.variant != "one_sided")


def head_of(
    channels: int, classes: int, axes: int = 3, *, bias: bool = True, dtype: torch.dtype = torch.float64
) -> Any:
    torch.manual_seed(3)
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    return convolution(channels, classes, 1, bias=bias, dtype=dtype)


def features_like(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype).requires_grad_()
    )


def results(step: Callable[[], Tensor], *of: Tensor) -> list[Tensor]:
    """The value, and the gradients of what it depends on."""
    value = step()
    factors = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    return [value.detach(), *torch.autograd.grad(value, of, factors)]


def assert_same(got: list[Tensor], expected: list[Tensor], rtol: float = 1e-12) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        scale = theirs.abs().max().clamp_min(1e-6)
        torch.testing.assert_close(mine / scale, theirs / scale, atol=rtol, rtol=0)


@every_case(activations=("softmax", "sigmoid"), long=True)
@each("weights", ["none", "mask", "ignore_index"])
def test_value_and_gradients_are_those_of_the_head_and_the_loss(
    case: LossCase, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "slab_length", lambda data, floats: 7)
    if reads_all(case):
        with pytest.raises(ValueError, match="slab by slab"):
            HeadLoss(head_of(4, 3), case())(features_like(2, 4, 5, 3, 4), target_of(case, 3))
        return
    if weights == "ignore_index" and not case.entry.accepts("ignore_index"):
        pytest.skip("it has no ignore_index")
    loss = case(**({"ignore_index": 2} if weights == "ignore_index" else {}))
    head, features = head_of(4, 3), features_like(2, 4, 5, 3, 4)
    mask = torch.rand(2, 1, 5, 3, 4) * 2 if weights == "mask" else None
    target, of = target_of(case, 3), (features, head.weight, head.bias)
    got = results(lambda: HeadLoss(head, loss)(features, target, mask), *of)
    assert_same(got, results(lambda: loss(head(features), target, mask), *of))


def target_of(case: LossCase, classes: int) -> Tensor:
    return labels_like(torch.empty(2, classes, 5, 3, 4))


@each("axes", [1, 2, 3])
@each("bias", [True, False])
@each("layout", ["contiguous", "channels last", "cut out"])
def test_any_number_of_axes_with_and_without_bias(axes: int, bias: bool, layout: str) -> None:
    head, features = head_of(4, 5, axes, bias=bias), features_like(2, 4, *(6, 5, 4)[:axes])
    if layout == "channels last":
        features = features.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    if layout == "cut out":
        features = torch.cat([features, features], -1).detach()[..., ::2].requires_grad_()
    target = labels_like(torch.empty(2, 5, *features.shape[2:]))
    loss, of = FusedDiceCELoss(**OPTIONS, batch=True), (features, *head.parameters())
    got = results(lambda: HeadLoss(head, loss)(features, target), *of)
    assert_same(got, results(lambda: loss(head(features), target), *of))


def test_a_target_of_channels_and_probabilities_take_the_definitions() -> None:
    head, features = head_of(4, 3), features_like(2, 4, 5, 3, 4)
    target = torch.rand(2, 3, 5, 3, 4, dtype=torch.float64)
    of = features, head.weight, head.bias
    for loss in (FusedDiceLoss(sigmoid=True), CompoundLoss([FusedDiceLoss(softmax=True, soft_label=True)])):
        got = results(partial(HeadLoss(head, loss), features, target), *of)
        assert_same(got, results(lambda: loss(head(features), target), *of))  # noqa: B023


def test_a_distance_map_goes_to_the_loss_that_reads_one() -> None:
    head, features = head_of(4, 3), features_like(2, 4, 5, 3, 4)
    target, distance = labels_like(torch.empty(2, 3, 5, 3, 4)), torch.randn(2, 3, 5, 3, 4)
    loss, of = SurfaceLoss(**OPTIONS), (features, head.weight)
    got = results(lambda: HeadLoss(head, loss)(features, target, None, distance), *of)
    assert_same(got, results(lambda: loss(head(features), target, None, distance), *of))
    with pytest.raises(ValueError, match="reads `distance`, got FusedDiceLoss"):
        HeadLoss(head, FusedDiceLoss(**OPTIONS))(features, target, None, distance)


def test_the_wrappers_of_an_engine_hand_the_scores_on() -> None:
    head, features = head_of(4, 3), features_like(2, 4, 5, 3, 4)
    target, distance = labels_like(torch.empty(2, 3, 5, 3, 4)), torch.randn(2, 3, 5, 3, 4)
    regions = (torch.rand(2, 3, 5, 3, 4) > 0.5).int()
    regions[..., 2:] = 255  # not annotated
    given: list[tuple[nn.Module, Any]] = [
        (LossWithMaps(SurfaceLoss(**OPTIONS)), {"label": target, "distance": distance}),
        (AnnotatedVoxelLoss(FusedDiceLoss(sigmoid=True), 255), regions),
    ]
    for loss, label in given:
        of = features, head.weight, head.bias
        got = results(partial(HeadLoss(head, loss), features, label), *of)
        assert_same(got, results(lambda: loss(head(features), label), *of))  # noqa: B023


def test_a_frozen_head_gets_no_gradient_and_frozen_features_none() -> None:
    head, features = head_of(4, 3), features_like(2, 4, 5, 3, 4)
    target, loss = labels_like(torch.empty(2, 3, 5, 3, 4)), FusedDiceCELoss(**OPTIONS)
    head.requires_grad_(False)
    assert_same(
        results(lambda: HeadLoss(head, loss)(features, target), features),
        results(lambda: loss(head(features), target), features),
    )
    assert head.weight.grad is None
    head.weight.requires_grad_(True)
    known = features.detach()
    assert_same(
        results(lambda: HeadLoss(head, loss)(known, target), head.weight),
        results(lambda: loss(head(known), target), head.weight),
    )


@each("dtype", [torch.float16, torch.bfloat16])
def test_features_in_half_precision_give_the_value_of_float32(dtype: torch.dtype) -> None:
    head, features = head_of(4, 5, dtype=torch.float32), features_like(1, 4, 16, 16, 16, dtype=dtype)
    target, loss = labels_like(torch.empty(1, 5, 16, 16, 16)), FusedDiceCELoss(**OPTIONS)
    wide = features.detach().float().requires_grad_()
    expected = results(lambda: loss(head(wide), target), wide, head.weight)
    with torch.autocast("cpu", torch.bfloat16):
        got = results(lambda: HeadLoss(head, loss)(features, target), features, head.weight)
    assert got[0].dtype == torch.float32
    assert got[1].dtype == dtype
    assert_same([got[0], got[2]], [expected[0], expected[2]], 2e-6)
    torch.testing.assert_close(got[1], expected[1].to(dtype), atol=torch.finfo(dtype).smallest_normal, rtol=1e-2)


def test_whatever_stands_in_an_ignored_voxel_has_no_part() -> None:
    head, target = head_of(4, 3), labels_like(torch.empty(1, 3, 6, 6, 6))
    target[..., 3:] = 255
    loss = HeadLoss(head, FusedDiceCELoss(**OPTIONS, ignore_index=255))
    features = features_like(1, 4, 6, 6, 6)
    clean = results(lambda: loss(features, target), features, head.weight, head.bias)
    spoilt = features.detach().clone()
    spoilt[..., 3:] = torch.nan
    spoilt.requires_grad_()
    assert_same(results(lambda: loss(spoilt, target), spoilt, head.weight, head.bias), clean)
    assert clean[1][..., 3:].abs().max() == 0


def test_the_scores_are_never_there() -> None:
    """At 44^3 voxels of 1000 classes: 3 % of the logits beside the gradient of the features."""
    head, features = head_of(8, 1000, dtype=torch.float32), features_like(1, 8, 44, 44, 44, dtype=torch.float32)
    target = labels_like(torch.empty(1, 1000, 44, 44, 44, device="meta"))
    logits = 4 * 1000 * 44**3
    for loss in (FusedDiceCELoss(**OPTIONS), CompoundLoss([FusedDiceLoss(**OPTIONS), CrossEntropyLoss(**OPTIONS)])):
        peak = peak_extra_bytes(lambda: HeadLoss(head, loss)(features, target).backward())  # noqa: B023
        assert peak <= 0.03 * logits + 4 * features.numel() + 2 * 4 * head.weight.numel(), peak / logits


ALL_AT_ONCE = [
    LovaszLoss(**OPTIONS),
    HausdorffLoss(**OPTIONS),
    FusedDiceLoss(to_onehot_y=True, other_act=torch.tanh),
    DiceLoss(**OPTIONS),
]


@each("loss", ALL_AT_ONCE)
def test_a_loss_that_reads_all_scores_is_refused(loss: nn.Module) -> None:
    target = labels_like(torch.empty(1, 3, 4, 4, 4))
    for one in (loss, CompoundLoss([FusedDiceLoss(**OPTIONS), loss])):
        with pytest.raises(ValueError, match="reads its scores slab by slab, got one that reads all of them at once"):
            HeadLoss(head_of(4, 3), one)(features_like(1, 4, 4, 4, 4), target)


@pytest.mark.parametrize(
    ("head", "error", "match"),
    [
        (nn.Linear(4, 3), TypeError, "1x1x1 convolution .* as head, got a Linear"),
        (nn.Conv3d(4, 3, 3), ValueError, "kernel .3, 3, 3."),
        (nn.Conv3d(4, 3, 1, stride=2), ValueError, "stride .2, 2, 2."),
        (nn.Conv3d(4, 3, 1, padding=1), ValueError, "padding .1, 1, 1."),
        (nn.Conv3d(4, 4, 1, groups=2), ValueError, "2 groups"),
        (nn.ConvTranspose3d(4, 3, 1), TypeError, "a ConvTranspose3d"),
    ],
)
def test_what_is_no_head_is_refused(head: nn.Module, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        HeadLoss(head, FusedDiceLoss(**OPTIONS))


def test_a_head_with_hooks_is_refused() -> None:
    head = head_of(4, 3)
    head.register_forward_hook(lambda *given: None)
    with pytest.raises(ValueError, match="forward hooks"):
        HeadLoss(head, FusedDiceLoss(**OPTIONS))


def test_wrong_features_are_refused() -> None:
    loss, target = HeadLoss(head_of(4, 3), FusedDiceLoss(**OPTIONS)), labels_like(torch.empty(1, 3, 4, 4, 4))
    with pytest.raises(ShapeMismatchError, match="features of the 4 channels that the head reads"):
        loss(torch.randn(1, 3, 4, 4, 4), target)
    with pytest.raises(ShapeMismatchError, match="3 spatial axes as the head"):
        loss(torch.randn(1, 4, 4, 4), target[..., 0])
    with pytest.raises(TypeError, match=r"floating-point features, got torch\.int64"):
        loss(torch.ones(1, 4, 4, 4, 4, dtype=torch.int64), target)
    with pytest.raises(TypeError, match="expected features to be a tensor, got list"):
        loss([1.0], target)
    with pytest.raises(ValueError, match="labels"):
        loss(torch.randn(1, 4, 4, 4, 4, dtype=torch.float64), target + 1)
    with pytest.raises(TypeError, match=r"a loss that is a torch\.nn\.Module, got str"):
        HeadLoss(head_of(4, 3), "dice")  # type: ignore[arg-type]


def test_deep_supervision_is_refused() -> None:
    loss = DeepSupervisionLoss(HeadLoss(head_of(4, 3), FusedDiceLoss(**OPTIONS)))
    levels = [features_like(1, 4, 8, 8, 8), features_like(1, 4, 4, 4, 4)]
    with pytest.raises(ValueError, match="each level has a head of its own"):
        loss(levels, torch.zeros(1, 1, 8, 8, 8, dtype=torch.float64))


def test_a_second_derivative_is_refused_and_forward_mode_too() -> None:
    loss, features = HeadLoss(head_of(4, 3), FusedDiceLoss(**OPTIONS)), features_like(1, 4, 4, 4, 4)
    target = labels_like(torch.empty(1, 3, 4, 4, 4))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss(features, target), features, create_graph=True)


def test_a_meta_tensor_target_keeps_its_spacing() -> None:
    head, features = head_of(4, 3), features_like(1, 4, 6, 5, 4)
    target = MetaTensor(labels_like(torch.empty(1, 3, 6, 5, 4)), affine=torch.diag(torch.tensor([1.0, 1, 6, 1])))
    loss = SurfaceLoss(**OPTIONS)
    got = HeadLoss(head, loss)(MetaTensor(features), target)
    assert type(got) is Tensor
    torch.testing.assert_close(got, loss(head(features), target), atol=1e-12, rtol=1e-12)
    assert not torch.isclose(got, SurfaceLoss(**OPTIONS, spacing=None)(head(features), target))


def test_compiled_it_is_the_loss_of_the_head() -> None:
    head, features = head_of(4, 3), features_like(1, 4, 6, 5, 4)
    target, loss = labels_like(torch.empty(1, 3, 6, 5, 4)), FusedDiceCELoss(**OPTIONS)
    compiled = torch.compile(HeadLoss(head, loss), backend="aot_eager", fullgraph=True)
    of = features, head.weight
    assert_same(results(lambda: compiled(features, target), *of), results(lambda: loss(head(features), target), *of))


def test_scores_without_numbers_say_what_they_are() -> None:
    scores = head_scores.HeadScores.of(torch.zeros(1, 4, 2, 2), torch.zeros(3, 4), None)
    assert repr(scores) == "HeadScores(shape=(1, 3, 2, 2), dtype=torch.float32)"
    with pytest.raises(ValueError, match="slab by slab"):
        scores + 1


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "DynUNet": (
        lambda: nets.DynUNet(3, 1, 5, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8]),
        "output_block.conv.conv",
    ),
    "SegResNet": (
        lambda: nets.SegResNet(3, init_filters=8, in_channels=1, out_channels=5, blocks_down=(1, 1), blocks_up=(1,)),
        "conv_final.2.conv",
    ),
    "BasicUNet": (lambda: nets.BasicUNet(3, 1, 5, features=(4, 4, 4, 4, 4, 6)), "final_conv"),
    "UNETR": (
        lambda: nets.UNETR(1, 5, (16, 16, 16), feature_size=4, hidden_size=12, mlp_dim=12, num_heads=2),
        "out.conv.conv",
    ),
    "SwinUNETR": (
        lambda: nets.SwinUNETR(1, 5, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), spatial_dims=2),
        "out.conv.conv",
    ),
    "Sequential": (lambda: nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 5, 1)), "2"),
}
SHAPES = {"SwinUNETR": (64, 64), "BasicUNet": (32, 32, 32)}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_is_that_of_the_network_and_the_loss(name: str) -> None:
    torch.manual_seed(0)
    make, head = NETWORKS[name]
    plain = make()
    headless = HeadlessNetwork(copy.deepcopy(plain), head)
    assert {name for name, _ in headless.head.named_parameters()} >= {"weight"}
    shape = SHAPES.get(name, (16, 16, 16))
    image, target = torch.randn(1, 1, *shape), torch.randint(0, 5, (1, 1, *shape))
    loss = FusedDiceCELoss(**OPTIONS)
    torch.manual_seed(1)  # of dropout
    expected = loss(plain.train()(image), target)
    expected.backward()
    torch.manual_seed(1)
    got = HeadLoss(headless.head, loss)(headless.train()(image), target)
    got.backward()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(headless.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=2e-5, rtol=2e-4)
    assert list(headless.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(headless.state_dict())
    headless.load_state_dict(plain.state_dict())
    with torch.no_grad():
        scores = headless.eval()(image)
        torch.testing.assert_close(scores, plain.eval()(image))
        in_evaluation = HeadLoss(headless.head, loss)(scores, target)
        torch.testing.assert_close(in_evaluation, loss(scores, target))


def test_a_headless_network_can_be_copied_saved_and_be_a_part() -> None:
    make, head = NETWORKS["Sequential"]
    headless = HeadlessNetwork(make(), head)
    image = torch.randn(1, 1, 4, 4, 4)
    whole = nn.ModuleDict({"network": headless})
    assert list(whole.state_dict()) == [f"network.{name}" for name in make().state_dict()]
    other = nn.ModuleDict({"network": HeadlessNetwork(make(), head)})
    other.load_state_dict(whole.state_dict())
    torch.testing.assert_close(other["network"].eval()(image), headless.eval()(image))
    buffer = io.BytesIO()
    torch.save(headless, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(headless), torch.load(buffer, weights_only=False)):
        torch.testing.assert_close(twin.eval()(image), headless.eval()(image))
        assert twin.train()(image).shape[1] == 4
        assert twin.head is not headless.head
    again = HeadlessNetwork(headless.network, head)  # a second time
    assert again.train()(image).shape[1] == 4


def test_a_last_layer_that_is_no_such_convolution_is_refused_by_its_name() -> None:
    unet = nets.UNet(3, 1, 5, (4, 8), (2,), num_res_units=1)
    with pytest.raises(ValueError, match=r"as model\.2\.1\.conv\.unit0\.conv, got one with kernel \(3, 3, 3\)"):
        HeadlessNetwork(unet, "model.2.1.conv.unit0.conv")
    with pytest.raises(ValueError, match="expected the name of a module of UNet, got 'out'; its 1x1x1"):
        HeadlessNetwork(unet, "out")
    with pytest.raises(ValueError, match="as head, got a Linear"):  # whatever the module is called
        HeadlessNetwork(nn.Sequential(OrderedDict(head=nn.Linear(4, 3))), "head")
    with pytest.raises(ValueError, match="DynUNet without deep supervision, got one with it"):
        HeadlessNetwork(
            nets.DynUNet(3, 1, 5, [3] * 3, [1, 2, 2], [2, 2], deep_supervision=True), "output_block.conv.conv"
        )
    with pytest.raises(ValueError, match="as 1, got a ReLU"):
        HeadlessNetwork(nn.Sequential(nn.Conv3d(1, 4, 1), nn.ReLU()), "1")


@each(
    "network, head",
    [
        (nn.Sequential(nn.Conv3d(1, 4, 1), nn.Softmax(1)), "0"),
        (nn.ModuleDict({"a": nn.Conv3d(1, 4, 1)}), "a"),
    ],
)
def test_a_network_that_goes_on_after_its_head_is_refused_in_the_first_step(network: nn.Module, head: str) -> None:
    headless = HeadlessNetwork(network, head).train()
    if isinstance(network, nn.ModuleDict):
        network.forward = lambda x: x + 1  # never asks its head
    with pytest.raises(ValueError, match="to return the result of its head"):
        headless(torch.randn(1, 1, 8, 8, 8))
