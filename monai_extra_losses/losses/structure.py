"""Losses that are no formula of counts or of single voxels: neighbourhoods and sorting."""

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from monai_extra_losses.losses.base import TARGET_SUMS, SegmentationLoss, Sums, Terms
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.options import AbsentClass, Positive, SegmentationOptions, Share, ShareBelowOne, one_of
from monai_extra_losses.ops.lovasz import jaccard_slopes
from monai_extra_losses.ops.neighbourhoods import window_moments
from monai_extra_losses.ops.numbers import has_numbers, sum_dtype
from monai_extra_losses.ops.terms import outcome_log_probabilities, probabilities


class _StructureLoss(SegmentationLoss):
    """Base of the structure losses: per sample and class values, computed from whole maps.

    The mean is over the classes that enter it of each sample, then over the samples.
    """

    target_gradient = False
    unsyncable = "it is no sum over voxels"

    def terms(self, inputs: LossInputs) -> Terms:
        return {"target": TARGET_SUMS}  # counting finds wrong labels

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        values, in_mean = self.values(inputs)
        if inputs.annotated is not None:
            in_mean = in_mean & (inputs.annotated.any(0) if in_mean.shape[0] == 1 else inputs.annotated)
        values, in_mean = self.without_background(values), self.without_background(in_mean)
        values = self.times_weight(values)
        values = torch.where(in_mean | values.isnan(), values, 0)
        if self.reduction == "none":
            return values[(..., *[None] * inputs.axes)]
        if self.reduction == "sum":
            return values.sum()
        classes = in_mean.sum(1)
        return (values.sum(1) / classes.clamp_min(1)).sum() / (classes > 0).sum().clamp_min(1)

    @abstractmethod
    def values(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """(B, C) losses, and (B, C) bool: which of them enter the mean."""


class CorrelationMaximizedStructuralSimilarityLoss(_StructureLoss):
    """Structural similarity loss: cross-entropy where the prediction correlates least with the target's structure.

    lambda BCE + (1-lambda) sum(e f BCE) / sum f,
    e = |(g - mu_g + C) / (sigma_g + C) - (p - mu_p + C) / (sigma_p + C)|, f = 1[e > beta max e]

    One-vs-rest, per sample and class. Means and deviations are taken in a Gaussian window of 3 voxels per axis
    (standard deviation 1.5 voxels) with reflected borders. The authors' code is not known; that the ratio is taken per
    sample and class, and not over the batch, is this package's reading of the paper, and not confirmed. No voxel with
    f = 1, as in a perfect prediction: the second part is 0.

    e weighs the cross-entropy, and depends on the prediction: where the gradient goes through it, a network can lower
    the loss by flattening p, for a flat window without the class has e = 0 against a flat one inside it. Whether the
    paper differentiates e is not confirmed. On hippocampus MRI a U-Net stayed at a Dice of 0.39 with that gradient, and
    came to 0.87 without it, or with lambda = 0.9 (16 epochs, one seed).

    Args:
        weight_cross_entropy: lambda in [0, 1]; 0.5.
        threshold: beta in [0, 1); 0.1 as in the paper.
        stability: C > 0; 0.01 as in the paper.
        weight_gradient: whether the gradient goes through e, as that of the formula does; False: e is a number. The
            value is the same.
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
        weight_cross_entropy: Share = 0.5,
        threshold: ShareBelowOne = 0.1,
        stability: Positive = 0.01,
        weight_gradient: bool = True,
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        self.weight_cross_entropy, self.threshold, self.stability = weight_cross_entropy, threshold, stability
        self.weight_gradient = weight_gradient

    def values(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        shape = inputs.scores.shape
        if min(shape[2:]) < 2:
            raise ValueError(
                f"expected at least 2 voxels per axis, got {tuple(shape[2:])}: its window reflects borders."
            )
        v = inputs.whole()
        g = v.one_hot()
        p = probabilities(v.scores, self.activation(inputs))
        log_p, log_not_p = outcome_log_probabilities(v.scores, self.activation(inputs), g)
        entropy = -(g * log_p + (1 - g) * log_not_p)
        weight = torch.ones_like(g[:, :1]) if v.weight is None else v.weight.unsqueeze(1)
        g = torch.where(weight > 0, g, 0)
        p = torch.where(weight > 0, p, 0)
        entropy = torch.where(weight > 0, entropy * weight, 0)
        # Class by class, and again in the backward: the windows of all classes at once would be thirty maps.
        run: Callable[..., Any] = self._structure
        if has_numbers(p) or torch.compiler.is_compiling():  # a transform of torch.func takes no checkpoint
            run = functools.partial(checkpoint, run, use_reentrant=False)
        parts = [run(*(x.narrow(1, c, 1) for x in (p, g, entropy)), weight, shape[2:]) for c in range(shape[1])]
        structure = torch.cat(parts, 1)
        voxels = weight.sum(2)
        plain = entropy.sum(2) / torch.where(voxels > 0, voxels, 1)
        values = self.weight_cross_entropy * plain + (1 - self.weight_cross_entropy) * structure
        return values, (voxels > 0).expand_as(values)

    def _structure(self, p: Tensor, g: Tensor, entropy: Tensor, weight: Tensor, spatial: torch.Size) -> Tensor:
        """(B, 1) sum(e f BCE) / sum f of one class, from maps (B, 1, M)."""
        p = p if self.weight_gradient else p.detach()
        normalised = (self._normalised(x.reshape(*x.shape[:2], *spatial)) for x in (g, p))
        difference = torch.where(weight > 0, torch.sub(*normalised).abs().flatten(2), 0)
        chosen = (difference > self.threshold * difference.amax(2, keepdim=True)) & (weight > 0)
        return (difference * chosen * entropy).sum(2) / chosen.sum(2).clamp_min(1)

    def _normalised(self, x: Tensor) -> Tensor:
        """(x - mu + C) / (sigma + C) of each voxel's window."""
        mean, variance = window_moments(x)
        flat = variance <= 0
        deviation = torch.where(flat, 0, torch.where(flat, 1, variance).sqrt())  # the root has no gradient at 0
        return (x - mean + self.stability) / (deviation + self.stability)


class LovaszLoss(_StructureLoss):
    """Lovasz loss: the convex extension of the Jaccard loss, a piecewise linear surrogate of IoU.

    errors sorted downwards, dot the discrete derivative of the Jaccard loss along that order

    softmax and sigmoid (or probabilities): errors |g - p| of each class; raw scores of one channel (no activation):
    errors max(0, 1 - (2g-1) s), the hinge form. A perfect prediction gives 0. An absent class costs its largest error:
    to IoU one false positive is as bad as many.

    The authors' lovasz_softmax pools the batch and leaves absent classes out: `batch=True, absent_class="skip"`. With
    their `per_image=True` it is `batch=False`, with their `classes="all"` it is `absent_class="smooth"`. Their
    lovasz_hinge is that of one channel of raw scores with the defaults here.

    Args:
        batch: pool the voxels of all samples.
        absent_class: "smooth": as above; or "skip": a class without a voxel in the target leaves the mean, and a false
            positive of it costs nothing.
        **options: see `SegmentationLoss`; "mean" is over the classes kept that enter it of a sample, then over the
            samples; "none" gives (B, C', 1, ..), or (1, C', 1, ..) with `batch`, with 0 for what is left out. A float
            mask counts a voxel that many times.

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

    def __init__(
        self, *, batch: bool = False, absent_class: AbsentClass = "smooth", **options: Unpack[SegmentationOptions]
    ) -> None:
        super().__init__(**options)
        self.batch = batch
        self.absent_class = one_of("absent_class", absent_class, AbsentClass)

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
        positives = weight * g
        if inputs.annotated is not None:  # of a pooled batch one sample may not know what others do
            errors, positives = (torch.where(inputs.annotated.unsqueeze(2), x, 0) for x in (errors, positives))
        if self.batch:
            errors, positives, weight = (x.transpose(0, 1).flatten(1).unsqueeze(0) for x in (errors, positives, weight))
        enters = (positives if self.absent_class == "skip" else weight).sum(2) > 0
        enters = enters.expand(errors.shape[:2])
        values = (errors * jaccard_slopes(errors, positives, weight, enters)).sum(2, dtype=sum_dtype(errors.device))
        return values, enters
