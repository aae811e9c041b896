"""Compound losses: weighted sums whose parts share one pass over the data."""

from torch import Tensor

from monai_extra_losses.losses.base import (
    TARGET_SUMS,
    AbsentClass,
    DistributionLoss,
    OtherAct,
    Reduction,
    SegmentationLoss,
    Terms,
    Weight,
    class_weights,
    refuse_negative,
)
from monai_extra_losses.losses.distribution import CrossEntropyLoss
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.region import FusedDiceLoss
from monai_extra_losses.ops.terms import Activation


class _ScoreCrossEntropy(CrossEntropyLoss):
    """The cross-entropy of a compound: always of the raw scores, whatever the region part reads.

    One-vs-rest, `weight` is the factor of the positives of each channel, as torch.nn.BCEWithLogitsLoss's pos_weight; a
    soft target of C > 1 channels is averaged over the voxels, as torch.nn.CrossEntropyLoss does.
    """

    source = "scores"

    def activation(self, inputs: LossInputs) -> Activation:
        return "sigmoid" if self.one_vs_rest(inputs) else "softmax"

    def terms(self, inputs: LossInputs) -> Terms:
        return self._voxel_term(inputs), TARGET_SUMS, *([self._log_term(inputs)] if self._smooths(inputs) else [])

    def value(self, inputs: LossInputs) -> Tensor:
        return super().value(inputs) if self._smooths(inputs) else DistributionLoss.value(self, inputs)

    def _smooths(self, inputs: LossInputs) -> bool:
        return self.label_smoothing > 0 and not self.one_vs_rest(inputs)

    def _reduced(self, inputs: LossInputs, positive: Tensor, negative: Tensor) -> Tensor:
        one_vs_rest = self.one_vs_rest(inputs)
        if inputs.labels and not one_vs_rest:
            return super()._reduced(inputs, positive, negative)
        voxels = inputs[TARGET_SUMS][1]
        if self.class_weight is not None:
            channels = positive.shape[1]
            if self.class_weight.ndim and self.class_weight.shape[0] != channels:
                raise ValueError(f"expected a weight of {channels} numbers, got {self.class_weight.shape[0]}.")
            positive = positive * self.class_weight.to(positive)
        loss, counts = (self.kept(positive + negative), self.kept(voxels)) if one_vs_rest else (positive, voxels[:, :1])
        return self._mean_or_sum(loss.sum(), counts.sum())


class FusedDiceCELoss(SegmentationLoss):
    """Dice plus cross-entropy in one pass; a drop-in for `monai.losses.DiceCELoss`. With sigmoid: Dice plus BCE.

    lambda_dice Dice + lambda_ce CE

    The cross-entropy always reads the raw scores: with a softmax, or one-vs-rest with `sigmoid` or one channel. Departs
    from MONAI 1.6.1: `sigmoid=True` with several channels uses the BCE of each channel (MONAI's uses a softmax
    cross-entropy); `weight` may be a number or a list; and see `FusedDiceLoss`.

    Args:
        include_background: False drops channel 0 of Dice, and of a BCE; a softmax cross-entropy keeps it.
        reduction: "mean" or "sum".
        weight: one number per class of the input: Dice takes those of the classes kept; the softmax cross-entropy is
            sum w l / sum w over the voxels; a BCE takes them as factors of the positives (pos_weight). For a soft
            target the cross-entropy is averaged over the voxels.
        lambda_dice: factor of Dice, >= 0.
        lambda_ce: factor of the cross-entropy, >= 0.
        label_smoothing: of the softmax cross-entropy; without effect on a BCE, as in MONAI.
        absent_class: of Dice, see `RegionLoss`.
        squared_pred, jaccard, smooth_nr, smooth_dr, batch: of Dice, see `FusedDiceLoss`.
        to_onehot_y, sigmoid, softmax, other_act, ignore_index, sync_batch: see `SegmentationLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: a negative lambda, reduction="none"; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = FusedDiceCELoss(to_onehot_y=True, softmax=True)
        >>> labels = torch.zeros(1, 1, 4, 4, 4)
        >>> labels[..., 2:] = 1
        >>> round(loss(torch.zeros(1, 2, 4, 4, 4), labels).item(), 4)  # 1/2 + ln 2
        1.1931

    Reference: Isensee et al. 2018, arXiv:1809.10486.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherAct = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: Reduction = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Weight = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        *,
        ignore_index: int | None = None,
        absent_class: AbsentClass = "smooth",
        sync_batch: bool = False,
    ) -> None:
        super().__init__(
            include_background=include_background,
            to_onehot_y=to_onehot_y,
            sigmoid=sigmoid,
            softmax=softmax,
            other_act=other_act,
            reduction=reduction,
            ignore_index=ignore_index,
            sync_batch=sync_batch,
        )
        if self.reduction == "none":
            raise ValueError("expected reduction 'mean' or 'sum', got 'none': Dice has no loss per voxel.")
        refuse_negative(lambda_dice=lambda_dice, lambda_ce=lambda_ce)
        class_weight = class_weights(weight)
        per_class = class_weight is not None and class_weight.ndim > 0
        self.dice = FusedDiceLoss(
            include_background=include_background,
            to_onehot_y=to_onehot_y,
            sigmoid=sigmoid,
            softmax=softmax,
            other_act=other_act,
            squared_pred=squared_pred,
            jaccard=jaccard,
            reduction=reduction,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            batch=batch,
            weight=class_weight[1:]
            if class_weight is not None and per_class and not include_background
            else class_weight,
            ignore_index=ignore_index,
            absent_class=absent_class,
            sync_batch=sync_batch,
        )
        self.cross_entropy = _ScoreCrossEntropy(
            include_background=include_background or not sigmoid,
            to_onehot_y=to_onehot_y,
            sigmoid=sigmoid,
            softmax=not sigmoid,
            reduction=reduction,
            weight=class_weight,
            ignore_index=ignore_index,
            sync_batch=sync_batch,
            label_smoothing=label_smoothing,
        )
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce

    def terms(self, inputs: LossInputs) -> Terms:
        return *self.dice.terms(inputs), *self.cross_entropy.terms(inputs)

    def value(self, inputs: LossInputs) -> Tensor:
        return self.lambda_dice * self.dice.value(inputs) + self.lambda_ce * self.cross_entropy.value(inputs)
