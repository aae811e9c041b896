"""Distribution losses: formulas of the log-probability of each voxel's true class."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.losses.base import (
    TARGET_SUMS,
    DistributionLoss,
    Reduction,
    SegmentationLoss,
    SegmentationOptions,
    Terms,
    Weight,
)
from monai_extra_losses.losses.inputs import LossInputs, Source
from monai_extra_losses.ops.terms import Activation, LogSums, Term, VoxelMap, VoxelSums


class CrossEntropyLoss(DistributionLoss):
    """Cross-entropy, plain or with class weights.

    -log p_t, mean over the voxels that count; with `sigmoid`, -(g log p + (1-g) log(1-p)) of every channel.

    Soft targets: -sum_c g_c log p_c. Without an activation the input is probabilities; their logarithm is clamped at
    float32's smallest number. A perfect prediction gives 0, everything ignored gives 0; a class that is absent changes
    nothing.

    Args:
        label_smoothing: e in [0, 1]: the target becomes (1-e) g + e/C, or (1-e) g + e/2 one-vs-rest.
        **options: see `DistributionLoss`. `weight`: sum w l / sum w over the voxels, as torch.nn.CrossEntropyLoss for
            labels; for a soft target each share g_c of a voxel counts w_c (torch divides by the number of voxels).

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: label_smoothing outside [0, 1]; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = CrossEntropyLoss(to_onehot_y=True, softmax=True, ignore_index=255)
        >>> labels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> labels[..., :3] = 255
        >>> round(loss(torch.zeros(1, 2, 8, 8), labels).item(), 4)  # ln 2
        0.6931

    Reference: as torch.nn.CrossEntropyLoss and torch.nn.BCEWithLogitsLoss.
    """

    slope = -1.0

    def __init__(self, label_smoothing: float = 0.0, **options: Unpack[SegmentationOptions]) -> None:
        super().__init__(**options)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"expected label_smoothing in [0, 1], got {label_smoothing}.")
        self.label_smoothing = label_smoothing

    def formula(self, log_pt: Tensor) -> Tensor:
        return -log_pt

    def terms(self, inputs: LossInputs) -> Terms:
        if not self.label_smoothing or self.keeps_map:
            return super().terms(inputs)
        return *super().terms(inputs), self._log_term(inputs)

    def value(self, inputs: LossInputs) -> Tensor:
        if not self.label_smoothing or self.keeps_map:
            return super().value(inputs)
        share = self.label_smoothing / (2 if self.one_vs_rest(inputs) else inputs.scores.shape[1])
        keep = 1 - self.label_smoothing
        positive, negative = inputs[self._voxel_term(inputs)]
        log_p = inputs[self._log_term(inputs)][0]
        return self._reduced(inputs, keep * positive - share * log_p, keep * negative)

    def voxel_map(self, sums: VoxelSums, inputs: LossInputs) -> VoxelMap:
        return dataclasses.replace(super().voxel_map(sums, inputs), smoothing=self.label_smoothing)

    def _log_term(self, inputs: LossInputs) -> tuple[Source, Term]:
        return self.source, LogSums(self.activation(inputs), self.one_vs_rest(inputs))


class FusedFocalLoss(DistributionLoss):
    """Focal loss; a drop-in for `monai.losses.FocalLoss`. Always reads raw scores.

    -alpha_t (1 - p_t)^gamma log p_t

    Kept as MONAI has it: with `use_softmax` the mean is over voxels and channels, so 1/C of the mean over voxels, and
    "sum" averages over space first. Departs from MONAI 1.6.1: with `ignore_index` the mean is over the voxels and
    channels that count (MONAI's is C times too large); `include_background=False` with `use_softmax` drops the
    background of the result (MONAI drops it before the softmax); one channel with `use_softmax` warns and is a sigmoid
    (MONAI returns 0 for anything); inputs (B, C) without spatial axes are summed by "sum" (MONAI averages them);
    gamma < 1 has a finite gradient at p_t = 1; with sigmoid, a sequence `alpha` and soft targets the factor is
    g alpha_c + (1 - g) (MONAI's jumps from 1 to alpha_c at g = 1).

    Args:
        include_background: see `SegmentationLoss`.
        to_onehot_y: see `SegmentationLoss`.
        gamma: >= 0; 2 is the paper's. 0 is cross-entropy.
        alpha: with sigmoid, the factor of positives, 1 - alpha for negatives (a sequence: the factor of each channel's
            positives, 1 for its negatives); with softmax, 1 - alpha for background and alpha for every other class (a
            sequence: one factor per class kept). None: 1. The paper has 0.25. Snippets that multiply both sides by
            alpha only rescale the loss.
        weight: one number, or one per class kept; multiplies, not normalised.
        reduction: "mean" over voxels and channels kept; "sum"; "none" gives (B, C', *spatial).
        use_softmax: softmax instead of sigmoid.
        ignore_index: see `SegmentationLoss`.
        sync_batch: see `SegmentationLoss`.

    Shapes: as `SegmentationLoss`, and (B, C) without spatial axes.

    Raises:
        ValueError: gamma < 0, an `alpha` or `weight` of the wrong length; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = FusedFocalLoss(to_onehot_y=True, use_softmax=True, gamma=0.0)
        >>> round(loss(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)).item(), 4)  # ln 2 / 2
        0.3466

    Reference: Lin et al. 2017, arXiv:1708.02002; Zhu et al. 2018, arXiv:1808.05238.
    """

    source = "scores"
    _spatial = range(0, 4)

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        weight: Weight = None,
        reduction: Reduction = "mean",
        use_softmax: bool = False,
        ignore_index: int | None = None,
        *,
        sync_batch: bool = False,
    ) -> None:
        SegmentationLoss.__init__(
            self,
            include_background=include_background,
            to_onehot_y=to_onehot_y,
            sigmoid=not use_softmax,
            softmax=use_softmax,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            sync_batch=sync_batch,
        )
        if gamma < 0:
            raise ValueError(f"expected gamma >= 0, got {gamma}.")
        if use_softmax and not include_background and isinstance(alpha, int | float):
            warnings.warn("`include_background=False`, scalar `alpha` ignored when using softmax.", stacklevel=2)
            alpha = None
        self.gamma = gamma
        self.alpha = alpha if alpha is None or isinstance(alpha, int | float) else tuple(float(a) for a in alpha)
        self.use_softmax = use_softmax

    def formula(self, log_pt: Tensor) -> Tensor:
        miss = -torch.expm1(log_pt)  # 1 - p_t without cancellation
        if self.gamma < 1:
            miss = miss.clamp_min(1e-30)  # the power's gradient is infinite at 0
        return miss**self.gamma * -log_pt

    def binary_formula(self, log_p: Tensor, log_not_p: Tensor, g: Tensor) -> Tensor:
        # MONAI's form for soft targets; log p - log(1-p) is the score x.
        cross_entropy = -(g * log_p + (1 - g) * log_not_p)
        return cross_entropy * torch.exp(self.gamma * F.logsigmoid((log_not_p - log_p) * (2 * g - 1)))

    def one_vs_rest(self, inputs: LossInputs) -> bool:
        return self.activation(inputs) == "sigmoid"

    def activation(self, inputs: LossInputs) -> Activation:
        return "softmax" if self.use_softmax and inputs.scores.shape[1] > 1 else "sigmoid"

    @property
    def by_class(self) -> bool:
        return True

    def value(self, inputs: LossInputs) -> Tensor:
        result = inputs[self._voxel_term(inputs)]
        if self.keeps_map:
            return self.kept(result)
        positive, negative = result
        positive_factor, negative_factor = self._factors(inputs, result)
        loss = self.kept(positive * positive_factor + negative * negative_factor)
        voxels = self.kept(inputs[TARGET_SUMS][1])
        if self.reduction == "sum":
            return self.summed_over_ranks((loss / voxels.clamp_min(1e-7)).sum())
        return self._mean_or_sum(loss.sum(), voxels.sum())

    def voxel_map(self, sums: VoxelSums, inputs: LossInputs) -> VoxelMap:
        like = inputs.scores.new_zeros((), dtype=torch.float32)
        return VoxelMap(sums, *self._factors(inputs, like), spread=True)

    def prepare(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> LossInputs:
        inputs = super().prepare(input, target, mask)
        if inputs.scores.ndim == 2:  # (B, C): one voxel per sample
            inputs.scores, inputs.target = inputs.scores.unsqueeze(-1), inputs.target.unsqueeze(-1)
            inputs.mask = None if inputs.mask is None else inputs.mask.unsqueeze(-1)
        return inputs

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        loss = super().forward(input, target, mask)
        return loss.squeeze(-1) if input.ndim == 2 and self.reduction == "none" else loss

    def _factors(self, inputs: LossInputs, like: Tensor) -> tuple[Tensor, Tensor]:
        """(C,) factors of the losses of positive and negative decisions: alpha times weight."""
        channels = inputs.scores.shape[1]
        kept = channels if self.include_background or channels == 1 else channels - 1
        positive, negative = like.new_ones(kept), like.new_ones(kept)
        if isinstance(self.alpha, tuple):
            if len(self.alpha) != kept:
                raise ValueError(f"The length of alpha ({len(self.alpha)}) must match the number of classes ({kept}).")
            positive = like.new_tensor(self.alpha)
        elif self.alpha is not None:
            positive, negative = positive * self.alpha, negative * (1 - self.alpha)
            if not self.one_vs_rest(inputs):
                positive[0] = 1 - self.alpha
        if self.class_weight is not None:
            weight = self.class_weight.to(like)
            if weight.ndim > 0 and channels == 1:
                raise ValueError("Per-class class_weight is not supported for single-channel outputs.")
            if weight.ndim > 0 and weight.numel() != kept:
                raise ValueError(
                    f"The number of class_weight ({weight.numel()}) must match the number of output channels ({kept})."
                )
            positive, negative = positive * weight, negative * weight
        dropped = (channels - kept, 0)  # the background's factor does not matter
        return F.pad(positive, dropped), F.pad(negative, dropped)
