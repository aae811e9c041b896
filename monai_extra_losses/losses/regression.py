"""Voxel-wise regression losses, for heat maps, distance maps and intensities."""

import math
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.losses.base import SegmentationLoss, Sums, Terms
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.options import Positive, RegressionOptions
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.terms import log_probabilities, probabilities, where_counted


class RegressionLoss(SegmentationLoss):
    """Base of the losses of a prediction y' and a target y of the same shape, (B, C, *spatial).

    Args:
        include_background: False drops channel 0 of the result.
        sigmoid, softmax, other_act: activation of the input; none: it is the prediction.
        reduction: "mean" over voxels and channels that count, "sum", or "none", the (B, C', *spatial) map. There is no
            `sync_batch`: where a mask leaves ranks other numbers of voxels, the mean over them is another number.

    Shapes: input and target (B, C, *spatial) with 1, 2 or 3 spatial axes; mask (B, 1, *spatial), bool or float weights.

    Raises:
        TypeError, ValueError, ShapeMismatchError: see `SegmentationLoss`.
    """

    def __init__(self, **options: Unpack[RegressionOptions]) -> None:
        super().__init__(**options)

    def terms(self, inputs: LossInputs) -> Terms:
        return {}

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        v = inputs.whole(any_target=True)
        loss = self.loss_map(v.scores, v.one_hot(), inputs)
        if v.weight is not None:
            loss = torch.where(v.weight.unsqueeze(1) > 0, loss * v.weight.unsqueeze(1), 0)
        if self.reduction == "none":
            return loss.reshape(*loss.shape[:2], *inputs.scores.shape[2:])
        dtype = sum_dtype(loss.device)
        total = loss.sum(dtype=dtype)
        if self.reduction == "sum":
            return total
        if v.weight is None:
            return total / max(loss.numel(), 1)  # of an empty batch
        voxels = v.weight.sum(dtype=dtype)
        return total / (torch.where(voxels > 0, voxels, 1) * loss.shape[1])

    def loss_map(self, scores: Tensor, y: Tensor, inputs: LossInputs) -> Tensor:
        """(B, C', M) loss of each voxel."""
        return self.without_background(self.formula(probabilities(scores, self.activation(inputs)), y))

    def formula(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Loss of each voxel and channel; a loss over the channels of a voxel defines `loss_map` instead."""
        raise NotImplementedError


class MeanSquaredErrorLoss(RegressionLoss):
    """Mean squared error.

    (y' - y)^2

    Args:
        **options: see `RegressionLoss`.

    Shapes, raises: see `RegressionLoss`.

    Example:
        >>> import torch
        >>> loss = MeanSquaredErrorLoss()
        >>> round(loss(torch.full((1, 1, 4, 4), 3.0), torch.full((1, 1, 4, 4), 1.0)).item(), 4)
        4.0

    Reference: as torch.nn.MSELoss.
    """

    def formula(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y) ** 2


class MeanAbsoluteErrorLoss(RegressionLoss):
    """Mean absolute error.

    |y' - y|

    Args:
        **options: see `RegressionLoss`.

    Shapes, raises: see `RegressionLoss`.

    Example:
        >>> import torch
        >>> loss = MeanAbsoluteErrorLoss()
        >>> round(loss(torch.full((1, 1, 4, 4), 3.0), torch.full((1, 1, 4, 4), 1.0)).item(), 4)
        2.0

    Reference: as torch.nn.L1Loss.
    """

    def formula(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y).abs()


class MeanSquaredLogarithmicErrorLoss(RegressionLoss):
    """Mean squared logarithmic error, for positive targets of many magnitudes.

    (log(1 + y') - log(1 + y))^2, both clamped at 0

    Args:
        **options: see `RegressionLoss`.

    Shapes, raises: see `RegressionLoss`.

    Example:
        >>> import torch
        >>> loss = MeanSquaredLogarithmicErrorLoss()
        >>> round(loss(torch.full((1, 1, 4, 4), 0.0), torch.full((1, 1, 4, 4), 1.0)).item(), 4)
        0.4805

    Reference: as MeanSquaredLogarithmicError of Keras 3.15.1.
    """

    def formula(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction.clamp_min(0).log1p() - y.clamp_min(0).log1p()) ** 2


class MeanAbsolutePercentageErrorLoss(RegressionLoss):
    """Mean absolute percentage error.

    100 |y' - y| / max(|y|, epsilon)

    Args:
        epsilon: smallest |y| to divide by, > 0; 1e-7. Voxels with y = 0 dominate unless it is raised.
        **options: see `RegressionLoss`.

    Shapes: see `RegressionLoss`.

    Raises:
        ValueError: epsilon <= 0; else see `RegressionLoss`.

    Example:
        >>> import torch
        >>> loss = MeanAbsolutePercentageErrorLoss()
        >>> round(loss(torch.full((1, 1, 4, 4), 3.0), torch.full((1, 1, 4, 4), 2.0)).item(), 4)
        50.0

    Reference: as MeanAbsolutePercentageError of Keras 3.15.1.
    """

    def __init__(self, epsilon: Positive = 1e-7, **options: Unpack[RegressionOptions]) -> None:
        super().__init__(**options)
        self.epsilon = epsilon

    def formula(self, prediction: Tensor, y: Tensor) -> Tensor:
        return 100 * (prediction - y).abs() / y.abs().clamp_min(self.epsilon)


class KLDivergenceLoss(RegressionLoss):
    """Kullback-Leibler divergence of the classes' probabilities in each voxel, for soft targets.

    sum_c g log(g / p), mean over voxels

    Differs from the cross-entropy of a soft target by the entropy of the target, so that p = g gives 0.

    Args:
        **options: see `RegressionLoss`.

    Shapes, raises: see `RegressionLoss`.

    Example:
        >>> import torch
        >>> loss = KLDivergenceLoss(softmax=True)
        >>> target = torch.zeros(1, 2, 4, 4)
        >>> target[:, 0] = 1
        >>> round(loss(torch.zeros(1, 2, 4, 4), target).item(), 4)  # ln 2
        0.6931

    Reference: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694.
    """

    left_out: ClassVar[dict[str, str]] = {"sigmoid": "its channels are one distribution"}

    def loss_map(self, scores: Tensor, y: Tensor, inputs: LossInputs) -> Tensor:
        log_p = where_counted(log_probabilities(scores, self.activation(inputs)), y)
        return self.without_background(torch.xlogy(y, y) - y * log_p).sum(1, keepdim=True)


class PoissonLoss(RegressionLoss):
    """Poisson negative log-likelihood of counts, without the target's own term.

    y' - y log(y' + epsilon), y' a rate >= 0

    The least value, y - y log y at y' = y, may be negative.

    Args:
        epsilon: > 0; 1e-7.
        **options: see `RegressionLoss`.

    Shapes: see `RegressionLoss`.

    Raises:
        ValueError: epsilon <= 0; else see `RegressionLoss`.

    Example:
        >>> import torch
        >>> loss = PoissonLoss()
        >>> round(loss(torch.full((1, 1, 4, 4), 1.0), torch.full((1, 1, 4, 4), 2.0)).item(), 4)
        1.0

    Reference: as torch.nn.PoissonNLLLoss(log_input=False).
    """

    def __init__(self, epsilon: Positive = 1e-7, **options: Unpack[RegressionOptions]) -> None:
        super().__init__(**options)
        self.epsilon = epsilon

    def formula(self, prediction: Tensor, y: Tensor) -> Tensor:
        return prediction - y * (prediction + self.epsilon).log()


class LogCoshLoss(RegressionLoss):
    """Log-cosh error: quadratic near 0, linear far away.

    log cosh(y' - y)

    Computed as |x| + softplus(-2|x|) - log 2, which does not overflow.

    Args:
        **options: see `RegressionLoss`.

    Shapes, raises: see `RegressionLoss`.

    Example:
        >>> import torch
        >>> loss = LogCoshLoss()
        >>> round(loss(torch.full((1, 1, 4, 4), 2.0), torch.full((1, 1, 4, 4), 1.0)).item(), 4)
        0.4338

    Reference: as LogCosh of Keras 3.15.1.
    """

    def formula(self, prediction: Tensor, y: Tensor) -> Tensor:
        x = (prediction - y).abs()
        return x + F.softplus(-2 * x) - math.log(2)


class CosineSimilarityLoss(RegressionLoss):
    """One minus the cosine of prediction and target over the channels of each voxel.

    1 - cos(y', y)

    A perfect prediction gives 0 (Keras 3.15.1 returns -cos). A voxel where either is 0 has cosine 0.

    Args:
        **options: see `RegressionLoss`.

    Shapes, raises: see `RegressionLoss`.

    Example:
        >>> import torch
        >>> loss = CosineSimilarityLoss()
        >>> vectors = torch.rand(1, 3, 4, 4) + 0.1
        >>> bool(loss(2 * vectors, vectors) < 1e-6)
        True

    Reference: as torch.nn.CosineEmbeddingLoss for equal pairs.
    """

    def loss_map(self, scores: Tensor, y: Tensor, inputs: LossInputs) -> Tensor:
        prediction = probabilities(scores, self.activation(inputs))
        vectors = _scaled_to_one(self.without_background(prediction)), _scaled_to_one(self.without_background(y))
        return 1 - F.cosine_similarity(*vectors, dim=1).unsqueeze(1)


def _scaled_to_one(vectors: Tensor) -> Tensor:
    """Vectors over the channels, divided by their largest number: its square is neither infinite nor 0."""
    largest = vectors.detach().abs().amax(1, keepdim=True)
    return vectors / torch.where(largest == 0, 1, largest)


class HuberLoss(RegressionLoss):
    """Huber loss: squared below delta, linear above.

    x^2/2 for |x| <= delta, else delta (|x| - delta/2), x = y' - y

    Args:
        delta: > 0, in the unit of y; 1.
        **options: see `RegressionLoss`.

    Shapes: see `RegressionLoss`.

    Raises:
        ValueError: delta <= 0; else see `RegressionLoss`.

    Example:
        >>> import torch
        >>> loss = HuberLoss()
        >>> round(loss(torch.full((1, 1, 4, 4), 3.0), torch.full((1, 1, 4, 4), 1.0)).item(), 4)
        1.5

    Reference: Huber 1964, doi:10.1214/aoms/1177703732.
    """

    def __init__(self, delta: Positive = 1.0, **options: Unpack[RegressionOptions]) -> None:
        super().__init__(**options)
        self.delta = delta

    def formula(self, prediction: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(prediction, y, reduction="none", delta=self.delta)
