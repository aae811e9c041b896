"""Losses that are no formula of counts or of single voxels: neighbourhoods and sorting."""

import itertools
import math
from abc import abstractmethod
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.losses.base import TARGET_SUMS, SegmentationLoss, SegmentationOptions, Terms
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.ops.terms import binary_log_probabilities, probabilities


class _StructureLoss(SegmentationLoss):
    """Base of the structure losses: per sample and class values, computed from whole maps."""

    def __init__(self, **options: Unpack[SegmentationOptions]) -> None:
        super().__init__(**options)
        if self.sync_batch:
            raise ValueError(f"expected sync_batch=False, got True: {type(self).__name__} is no sum over voxels.")

    def terms(self, inputs: LossInputs) -> Terms:
        return (TARGET_SUMS,)  # counting finds wrong labels

    def value(self, inputs: LossInputs) -> Tensor:
        values, counted = self.values(inputs)
        values, counted = self.kept(values), self.kept(counted)
        weight = self.weights_for(values.shape[1], values)
        if weight is not None:
            values = values * weight
        values = torch.where(counted, values, 0)
        if self.reduction == "none":
            return values[(..., *[None] * (inputs.scores.ndim - 2))]
        return values.sum() if self.reduction == "sum" else values.sum() / counted.sum().clamp_min(1)

    @abstractmethod
    def values(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """(B, C) losses, and (B, C) bool: which of them enter the mean."""


class CorrelationMaximizedStructuralSimilarityLoss(_StructureLoss):
    """Structural similarity loss: cross-entropy where the prediction correlates least with the target's structure.

    lambda BCE + (1-lambda) sum(e f BCE) / sum f,
    e = |(g - mu_g + C) / (sigma_g + C) - (p - mu_p + C) / (sigma_p + C)|, f = 1[e > beta max e]

    One-vs-rest, per sample and class. Means and deviations are taken in a Gaussian window of 3 voxels per axis
    (standard deviation 1.5 voxels) with reflected borders. Public versions disagree (statistics swapped, an absolute
    threshold, one mean over everything). No voxel with f = 1, as in a perfect prediction: the second part is 0.

    Args:
        weight_cross_entropy: lambda in [0, 1]; 0.5.
        threshold: beta in [0, 1); 0.1 as in the paper.
        stability: C > 0; 0.01 as in the paper.
        **options: see `SegmentationLoss`; "mean" is over samples and classes kept, "none" gives (B, C', 1, ..). An
            ignored voxel belongs to no class and its prediction is replaced by its target; a float mask multiplies
            its cross-entropy.

    Shapes: see `SegmentationLoss`; at least 2 voxels per axis.

    Raises:
        ValueError: an option out of range, sync_batch=True, an axis of one voxel; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = CorrelationMaximizedStructuralSimilarityLoss(sigmoid=True)
        >>> target = (torch.arange(64) % 8 > 3).float().view(1, 1, 8, 8)
        >>> round(loss(200 * target - 100, target).item(), 4)
        0.0

    Reference: Zhao et al. 2019, arXiv:1910.08711.
    """

    def __init__(
        self,
        weight_cross_entropy: float = 0.5,
        threshold: float = 0.1,
        stability: float = 0.01,
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        if not 0 <= weight_cross_entropy <= 1:
            raise ValueError(f"expected weight_cross_entropy in [0, 1], got {weight_cross_entropy}.")
        if not 0 <= threshold < 1:
            raise ValueError(f"expected threshold in [0, 1), got {threshold}.")
        if not stability > 0:
            raise ValueError(f"expected stability > 0, got {stability}.")
        self.weight_cross_entropy = weight_cross_entropy
        self.threshold = threshold
        self.stability = stability

    def values(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        shape = inputs.scores.shape
        if min(shape[2:]) < 2:
            raise ValueError(
                f"expected at least 2 voxels per axis, got {tuple(shape[2:])}: its window reflects borders."
            )
        v = inputs.whole()
        g = v.one_hot()
        p = probabilities(v.scores, self.activation(inputs))
        log_p, log_not_p = binary_log_probabilities(v.scores, self.activation(inputs))
        entropy = -(g * log_p + (1 - g) * log_not_p)
        weight = torch.ones_like(g[:, :1]) if v.weight is None else v.weight.unsqueeze(1)
        g = torch.where(weight > 0, g, 0)
        p = torch.where(weight > 0, p, 0)
        entropy = torch.where(weight > 0, entropy * weight, 0)
        difference = (self._normalised(g.reshape(shape)) - self._normalised(p.reshape(shape))).abs().flatten(2)
        chosen = (difference > self.threshold * difference.amax(2, keepdim=True)) & (weight > 0)
        number = chosen.sum(2)
        structure = (difference * chosen * entropy).sum(2) / number.clamp_min(1)
        voxels = weight.sum(2)
        plain = entropy.sum(2) / torch.where(voxels > 0, voxels, 1)
        values = self.weight_cross_entropy * plain + (1 - self.weight_cross_entropy) * structure
        return values, (voxels > 0).expand_as(values)

    def _normalised(self, x: Tensor) -> Tensor:
        """(x - mu + C) / (sigma + C) of each voxel's window."""
        mean = _window_mean(x, x, centred=False)
        variance = _window_mean(x, mean, centred=True)
        flat = variance <= 0
        deviation = torch.where(flat, 0, torch.where(flat, 1, variance).sqrt())  # the root has no gradient at 0
        return (x - mean + self.stability) / (deviation + self.stability)


def _window_mean(x: Tensor, mean: Tensor, *, centred: bool) -> Tensor:
    """Gaussian mean of x, or of (x - mean of the window)^2, in 3 voxels per axis of (B, C, *spatial)."""
    axes = x.ndim - 2
    side = math.exp(-0.5 / 1.5**2)
    kernel = [side / (1 + 2 * side), 1 / (1 + 2 * side), side / (1 + 2 * side)]
    padded = F.pad(x, [1, 1] * axes, mode="reflect")
    total = torch.zeros_like(x)
    for offset in itertools.product(range(3), repeat=axes):
        shifted = padded
        factor = 1.0
        for axis, start in enumerate(offset):
            shifted = shifted.narrow(axis + 2, start, x.shape[axis + 2])
            factor *= kernel[start]
        total = total + factor * ((shifted - mean) ** 2 if centred else shifted)
    return total


class LovaszLoss(_StructureLoss):
    """Lovasz loss: the convex extension of the Jaccard loss, a piecewise linear surrogate of IoU.

    errors sorted downwards, dot the discrete derivative of the Jaccard loss along that order

    softmax and sigmoid (or probabilities): errors |g - p| of each class; raw scores of one channel (no activation):
    errors max(0, 1 - (2g-1) s), the hinge form. Per sample; a class that is absent from the target leaves the mean (so
    a false positive costs nothing there; not so in the hinge form, whose loss is then the largest error). A widely used
    library sorts class indices instead of one-hot targets: not this. A perfect prediction gives 0.

    Args:
        **options: see `SegmentationLoss`; "mean" is over the samples and classes kept that are present, "none" gives
            (B, C', 1, ..) with 0 for those absent. A float mask counts a voxel that many times.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: sync_batch=True; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = LovaszLoss(to_onehot_y=True, softmax=True)
        >>> labels = (torch.arange(16) % 2).view(1, 1, 4, 4)
        >>> round(loss(torch.zeros(1, 2, 4, 4), labels).item(), 4)
        0.5

    Reference: Berman et al. 2018, arXiv:1705.08790.
    """

    def values(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        v = inputs.whole()
        g = v.one_hot()
        hinge = v.scores.shape[1] == 1 and not self.sigmoid and self.other_act is None
        errors = (
            F.relu(1 - (2 * g - 1) * v.scores)
            if hinge
            else (g - probabilities(v.scores, self.activation(inputs))).abs()
        )
        weight = torch.ones_like(g[:, :1]) if v.weight is None else v.weight.unsqueeze(1)
        sorted_errors, order = errors.to(torch.float64).sort(2, descending=True)
        derivative = _jaccard_derivative(*((w.gather(2, order)) for w in (weight * g, weight * (1 - g))))
        values = (sorted_errors * derivative).sum(2)
        return values, ((weight if hinge else weight * g).sum(2) > 0).expand_as(values)


def _jaccard_derivative(positives: Tensor, negatives: Tensor) -> Tensor:
    """(B, C, M) change of the Jaccard loss with each further voxel in error, both sorted by the errors."""
    # In float32 the differences of a large volume, 1e-7 each, would be rounding errors.
    missed, wrong = positives.cumsum(2, dtype=torch.float64), negatives.cumsum(2, dtype=torch.float64)
    total = missed[..., -1:]
    union = total + wrong
    jaccard = torch.where(union > 0, 1 - (total - missed) / torch.where(union > 0, union, 1), 0)
    return torch.diff(jaccard, dim=2, prepend=torch.zeros_like(total))
