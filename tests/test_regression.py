"""The regression losses: each against its formula, and their rows of the contract."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import references as ref
import torch
import torch.nn.functional as F
from loss_list import value_and_gradient
from monai.data import MetaTensor
from torch import Tensor, nn

from monai_extra_losses import losses

NAMES = list(ref.REGRESSION)
OVER_CHANNELS = ("KLDivergenceLoss", "CosineSimilarityLoss")  # one number per voxel
every_regression_loss = pytest.mark.parametrize("name", NAMES)


def make(name: str, **options: Any) -> nn.Module:
    return getattr(losses, name)(**options)


def data(name: str, *shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A prediction and a target in the range of the loss."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if name == "KLDivergenceLoss":
        x, y = x.softmax(1), y.softmax(1)
    elif name in ("PoissonLoss", "MeanSquaredLogarithmicErrorLoss"):
        x, y = x.abs() + 0.1, 3 * y.abs()
    else:
        x, y = 2 * x, 2 * y
    return x.to(dtype), y.to(dtype)


def reference(name: str, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    values = ref.REGRESSION[name](x, y)
    return float((w * values).sum() / (w.sum() * values.shape[1]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(3, 3, 5), (2, 2, 3, 5), (2, 3, 2, 3, 2)], ids=["1D", "2D", "3D"])
@every_regression_loss
def test_value_and_gradient_are_those_of_the_formula(name: str, shape: tuple[int, ...], masked: bool) -> None:
    x, y = data(name, *shape)
    mask = torch.rand(shape[0], 1, *shape[2:], dtype=torch.float64) if masked else None
    w = np.ones((shape[0], 1, *shape[2:])) if mask is None else mask.numpy()
    value, gradient = value_and_gradient(make(name), x, y, mask)
    assert value.item() == pytest.approx(reference(name, x.numpy(), y.numpy(), w), rel=1e-12)
    expected = ref.gradient(lambda moved: reference(name, moved, y.numpy(), w), x.numpy())
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("MeanSquaredErrorLoss", F.mse_loss),
        ("MeanAbsoluteErrorLoss", F.l1_loss),
        ("HuberLoss", F.huber_loss),
        ("PoissonLoss", lambda x, y: F.poisson_nll_loss(x, y, log_input=False, eps=1e-7)),
        ("KLDivergenceLoss", lambda x, y: F.kl_div(x.log(), y, reduction="none").sum(1).mean()),
    ],
)
def test_equals_torch(name: str, theirs: Any) -> None:
    x, y = data(name, 2, 3, 4, 5)
    torch.testing.assert_close(make(name)(x, y), theirs(x, y), atol=1e-12, rtol=1e-10)


@every_regression_loss
def test_reductions_and_background(name: str) -> None:
    x, y = data(name, 2, 3, 4, 5)
    channels = 1 if name in OVER_CHANNELS else 3
    voxels = make(name, reduction="none")(x, y)
    assert voxels.shape == (2, channels, 4, 5)
    torch.testing.assert_close(make(name, reduction="sum")(x, y), voxels.sum())
    torch.testing.assert_close(make(name)(x, y), voxels.mean())
    kept = make(name, include_background=False, reduction="none")(x, y)
    torch.testing.assert_close(kept, make(name, reduction="none")(x[:, 1:], y[:, 1:]))


@every_regression_loss
def test_masked_is_deleted(name: str) -> None:
    x, y = data(name, 2, 3, 4, 5)
    keep = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    keep[0, :, 1:3] = False
    keep[1, :, :, 0] = False
    leaf = x.clone().requires_grad_()
    cut = [tensor.transpose(0, 1)[:, keep[:, 0]].unsqueeze(0) for tensor in (leaf, y)]
    for reduction in ("mean", "sum"):
        loss = make(name, reduction=reduction)
        expected = loss(*cut)
        (gradient,) = torch.autograd.grad(expected, leaf, retain_graph=True)
        spoilt = torch.where(keep, x, torch.nan), torch.where(keep, y, torch.nan)
        for data_ in ((x, y), spoilt):  # whatever stands there
            got = value_and_gradient(loss, *data_, keep)
            torch.testing.assert_close(got, (expected.detach(), gradient), atol=1e-12, rtol=1e-10)
    assert (make(name, reduction="none")(x, y, keep).masked_fill(keep, 0) == 0).all()


@every_regression_loss
def test_all_masked_is_zero(name: str) -> None:
    x, y = data(name, 2, 3, 4, 5)
    for reduction in ("mean", "sum", "none"):
        value, gradient = value_and_gradient(make(name, reduction=reduction), x, y, torch.zeros(2, 1, 4, 5))
        assert (value == 0).all()
        assert (gradient == 0).all()


@every_regression_loss
def test_mask_of_any_scale(name: str) -> None:
    x, y = data(name, 2, 3, 4, 5)
    mask = torch.rand(2, 1, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(make(name)(x, y, 1e-15 * mask), make(name)(x, y, mask), atol=1e-12, rtol=1e-10)


@every_regression_loss
def test_wrong_partial_and_perfect(name: str) -> None:
    y = data(name, 2, 3, 4, 6)[1]
    wrong = y.roll(1, 1)
    half = torch.where(torch.arange(6) < 3, y, wrong)
    values = [make(name)(x, y).item() for x in (y, half, wrong)]
    assert values[0] < values[1] < values[2]
    if name != "PoissonLoss":  # its least value is that of y' = y
        assert values[0] == pytest.approx(0, abs=1e-12)


@every_regression_loss
def test_gradcheck(name: str) -> None:
    x, y = data(name, 2, 3, 3, 4)
    mask = torch.rand(2, 1, 3, 4, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(make(name, reduction=reduction), (x.requires_grad_(), y, mask), fast_mode=True)


@every_regression_loss
def test_precision_and_types(name: str) -> None:
    x, y = data(name, 2, 3, 4, 5)
    assert make(name)(x, y).dtype == torch.float64
    expected = make(name)(x.half().float(), y.half().float())
    assert expected.dtype == torch.float32
    got = make(name)(x.half(), y.half())
    torch.testing.assert_close(got, expected, atol=0, rtol=1e-6)
    value = make(name)(MetaTensor(x), MetaTensor(y))
    assert type(value) is Tensor
    assert value == make(name)(x, y)
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(make(name, reduction="none")(strided, y), make(name, reduction="none")(x, y))


@every_regression_loss
def test_copies(name: str) -> None:
    x, y = data(name, 2, 3, 4, 5)
    loss = make(name)
    expected = loss(x, y)
    assert copy.deepcopy(loss)(x, y) == expected
    assert pickle.loads(pickle.dumps(loss))(x, y) == expected


@every_regression_loss
def test_activations(name: str) -> None:
    x, y = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5).softmax(1)
    torch.testing.assert_close(make(name, softmax=True)(x, y), make(name)(x.softmax(1), y))
    torch.testing.assert_close(make(name, other_act=torch.sigmoid)(x, y), make(name)(x.sigmoid(), y))
    if name == "KLDivergenceLoss":
        with pytest.raises(TypeError, match="KLDivergenceLoss has no option 'sigmoid': its channels are one distribut"):
            make(name, sigmoid=True)
    else:
        torch.testing.assert_close(make(name, sigmoid=True)(x, y), make(name)(x.sigmoid(), y))


@every_regression_loss
def test_wrong_data_are_refused(name: str) -> None:
    x = torch.rand(2, 3, 4, 5)
    with pytest.raises(losses.ShapeMismatchError, match=r"expected target \(2, 3, 4, 5\), got \(2, 3, 4, 4\)"):
        make(name)(x, x[..., :4])
    with pytest.raises(losses.ShapeMismatchError, match=r"expected mask \(2, 1, 4, 5\)"):
        make(name)(x, x, x > 0.5)
    with pytest.raises(ValueError, match="Unsupported reduction"):
        make(name, reduction="average")
    for option in ("to_onehot_y", "weight", "ignore_index", "sync_batch"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
            make(name, **{option: None})


@every_regression_loss
def test_nan_is_nan_and_an_empty_batch_is_zero(name: str) -> None:
    x, y = data(name, 2, 3, 4, 5)
    one = x.clone()
    one[1, :, 2, 3] = np.nan
    empty = torch.zeros(0, 3, 4, 5)
    for reduction in ("mean", "sum", "none"):
        loss = make(name, reduction=reduction)
        for prediction, target in ((one, y), (torch.full_like(x, np.nan), y), (x, one)):
            for mask in (None, torch.rand(2, 1, 4, 5)):
                value = loss(prediction, target, mask)
                assert value.isnan().any()
                if reduction == "none":
                    assert torch.equal(value.isnan().any(1), (prediction + target).isnan().any(1))
        for mask in (None, empty[:, :1]):
            value = loss(empty, empty, mask)
            assert value.shape[:1] == ((0,) if reduction == "none" else ())
            assert (value == 0).all()
        for shape in ((2, 0, 4, 5), (2, 3, 0, 5)):
            with pytest.raises(ValueError, match=r"expected an input with channels and voxels, got shape \(2, "):
                loss(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(TypeError, match=r"expected a real target, got torch.complex128: try target.real"):
        make(name)(x, y + 0j)


@pytest.mark.parametrize("size", [1e4, 1e30, 1e-30])
def test_the_cosine_does_not_depend_on_the_size(size: float) -> None:
    x, y = data("CosineSimilarityLoss", 2, 3, 4, 5, dtype=torch.float32)
    value, gradient = value_and_gradient(make("CosineSimilarityLoss"), size * x, y)
    expected, expected_gradient = value_and_gradient(make("CosineSimilarityLoss"), x, y)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(size * gradient, expected_gradient)
    torch.testing.assert_close(make("CosineSimilarityLoss")(x, size * y), expected)


def test_a_class_that_is_masked_is_left_out_of_the_divergence() -> None:
    """0 log 0 = 0, where the scores are -inf."""
    x = torch.randn(2, 3, 4, 5)
    y = torch.rand(2, 3, 4, 5)
    y[:, 1] = 0
    masked = x.clone()
    masked[:, 1] = -torch.inf
    loss = losses.KLDivergenceLoss(softmax=True)
    value, gradient = value_and_gradient(loss, masked, y)
    expected, expected_gradient = value_and_gradient(loss, x[:, ::2], y[:, ::2])
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:, ::2], expected_gradient)
    assert (gradient[:, 1] == 0).all()


def test_values_far_away_are_finite() -> None:
    x = torch.tensor([[[1e4, -1e4, 0.0]]])
    assert losses.LogCoshLoss(reduction="none")(x, torch.zeros(1, 1, 3)).flatten().tolist() == pytest.approx(
        [1e4 - np.log(2), 1e4 - np.log(2), 0]
    )
    value, gradient = value_and_gradient(losses.CosineSimilarityLoss(), torch.zeros(1, 3, 4), torch.rand(1, 3, 4))
    assert value == 1  # a vector of zeros has no direction
    assert gradient.isfinite().all()
    value, gradient = value_and_gradient(
        losses.KLDivergenceLoss(softmax=True), 200 * x.expand(1, 2, 3), torch.full((1, 2, 3), 0.5)
    )
    assert value.isfinite()
    assert gradient.isfinite().all()
    one_hot = torch.tensor([[[1.0], [0.0]]])
    assert losses.KLDivergenceLoss()(one_hot, one_hot) == 0  # 0 log 0


def test_delta_of_huber_is_where_it_becomes_linear() -> None:
    x, y = torch.tensor([[[0.5, 1.5, 3.0]]]), torch.zeros(1, 1, 3)
    for delta in (1.0, 2.0):
        got = losses.HuberLoss(delta=delta, reduction="none")(x, y).numpy()
        np.testing.assert_allclose(got, ref.huber_map(x.numpy(), y.numpy(), delta))


@pytest.mark.parametrize(
    ("name", "option"),
    [("HuberLoss", "delta"), ("PoissonLoss", "epsilon"), ("MeanAbsolutePercentageErrorLoss", "epsilon")],
)
def test_options_out_of_range_are_refused(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"expected {option} > 0, got 0"):
        make(name, **{option: 0.0})


def test_epsilon_of_poisson_is_in_its_logarithm() -> None:
    x, y = torch.tensor([[[0.0, 2.0]]], dtype=torch.float64), torch.tensor([[[3.0, 1.0]]], dtype=torch.float64)
    expected = (-3 * np.log(0.5) + 2 - np.log(2.5)) / 2
    assert losses.PoissonLoss(epsilon=0.5)(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_epsilon_bounds_the_divisor_of_percentages() -> None:
    x, y = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    assert losses.MeanAbsolutePercentageErrorLoss(epsilon=0.5)(x, y) == 200
