"""Distribution losses: formulas of the log-probability of each voxel's true class."""

import dataclasses
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.losses.base import TARGET_SUMS, DistributionLoss, SegmentationLoss, Sums, Terms
from monai_extra_losses.losses.checks import PlainData
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.options import Positive, SegmentationOptions, Share, ValueRange, merged, one_of
from monai_extra_losses.ops.formulas import (
    CrossEntropyFormula,
    GeneralizedCrossEntropyFormula,
    HingeFormula,
    PolyFormula,
    SoftFocalFormula,
    SquaredHingeFormula,
)
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.terms import (
    Activation,
    CountSums,
    LeadSums,
    LogSums,
    MarginSums,
    OutcomeLogSums,
    VoxelFormula,
    VoxelMap,
    VoxelSums,
)

BetaMode = Literal["fixed", "prediction", "target"]


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

    voxel_formula: VoxelFormula = CrossEntropyFormula()

    def __init__(self, label_smoothing: Share = 0.0, **options: Unpack[SegmentationOptions]) -> None:
        super().__init__(**options)
        self.label_smoothing = label_smoothing

    def terms(self, inputs: LossInputs) -> Terms:
        terms = dict(super().terms(inputs))
        if self.smooths(inputs):
            kind = OutcomeLogSums if self.one_vs_rest(inputs) else LogSums
            terms["logs"] = self.source, kind(self.activation(inputs))
        return terms

    def smooths(self, inputs: LossInputs) -> bool:
        """Whether sums are smoothed; a map is by its own definition."""
        return self.label_smoothing > 0 and not self.keeps_map

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        if self.smooths(inputs):
            share = self.label_smoothing / (2 if self.one_vs_rest(inputs) else inputs.annotated_channels())
            keep, (positive, negative) = 1 - self.label_smoothing, sums["losses"]
            losses = torch.stack([keep * positive - share * sums["logs"][0], keep * negative])
            sums = {**sums, "losses": losses}
        return super().value(inputs, sums)

    def voxel_map(self, inputs: LossInputs) -> VoxelMap:
        return dataclasses.replace(super().voxel_map(inputs), smoothing=self.label_smoothing)


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
            sequence: one factor per class kept). None: 1. The paper has 0.25.
        weight: one number, or one per class kept; multiplies, not normalised.
        reduction: "mean" over voxels and channels kept; "sum"; "none" gives (B, C', *spatial).
        use_softmax: softmax instead of sigmoid.
        ignore_index: see `SegmentationLoss`.
        sync_batch: see `SegmentationLoss`.

    Shapes: as `SegmentationLoss`, and (B, C) without spatial axes.

    Raises:
        ValueError: gamma < 0, alpha outside [0, 1] (a number of a sequence: < 0), an `alpha` or `weight` of the wrong
            length; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = FusedFocalLoss(to_onehot_y=True, use_softmax=True, gamma=0.0)
        >>> round(loss(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)).item(), 4)  # ln 2 / 2
        0.3466

    Reference: Lin et al. 2017, arXiv:1708.02002; Zhu et al. 2018, arXiv:1808.05238.
    """

    source = "scores"
    by_class = True
    _spatial = range(0, 4)
    left_out: ClassVar[dict[str, str]] = dict.fromkeys(
        ("sigmoid", "softmax", "other_act"), "it reads raw scores, by `use_softmax`"
    )
    in_order = "include_background to_onehot_y gamma alpha weight reduction use_softmax ignore_index"

    def __init__(
        self,
        *,
        gamma: Annotated[float, ValueRange(">= 0", lambda x: x >= 0)] = 2.0,
        alpha: float | Sequence[float] | None = None,
        use_softmax: bool = False,
        **options: Unpack[SegmentationOptions],
    ) -> None:
        # Of the softmax and the background DistributionLoss would warn.
        SegmentationLoss.__init__(self, **merged(options, sigmoid=not use_softmax, softmax=use_softmax))
        self.alpha = tuple(map(float, alpha)) if isinstance(alpha, Iterable) else alpha
        _refuse_sign(self.alpha)
        if use_softmax and not self.include_background and isinstance(self.alpha, int | float):
            warnings.warn("`include_background=False`, scalar `alpha` ignored when using softmax.", stacklevel=3)
        self.gamma, self.use_softmax = gamma, use_softmax

    @property
    def voxel_formula(self) -> VoxelFormula:
        return SoftFocalFormula(self.gamma)

    def activation(self, inputs: LossInputs) -> Activation:
        return "sigmoid" if self.one_vs_rest(inputs) else "softmax"

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        if self.keeps_map:
            return self.without_background(sums["losses"])
        positive_factor, negative_factor = self._factors(inputs, sums["losses"])
        positive, negative = sums["losses"]
        loss = self.without_background(positive * positive_factor + negative * negative_factor)
        voxels = self.without_background(sums["target"][1])
        if self.reduction == "sum":
            return self.summed_over_ranks((loss / voxels.clamp_min(1e-7)).sum())
        return self.mean_or_sum(loss.sum(), voxels.sum())

    def voxel_map(self, inputs: LossInputs) -> VoxelMap:
        return VoxelMap(self.voxel_sums(inputs), *self._factors(inputs, inputs.exact()), spread=True)

    def wrap(self, data: PlainData) -> LossInputs:
        if data.scores.ndim == 2:  # (B, C): one voxel per sample
            mask = None if data.mask is None else data.mask.unsqueeze(-1)
            data = data._replace(scores=data.scores.unsqueeze(-1), target=data.target.unsqueeze(-1), mask=mask)
        return super().wrap(data)

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        loss = super().forward(input, target, mask)
        return loss.squeeze(-1) if input.ndim == 2 and self.reduction == "none" else loss

    def _factors(self, inputs: LossInputs, like: Tensor) -> tuple[Tensor, Tensor]:
        """(C,) factors of the losses of positive and negative decisions: alpha times weight."""
        channels = inputs.channels
        kept = channels if self.include_background or channels == 1 else channels - 1
        positive, negative = like.new_ones(kept), like.new_ones(kept)
        if isinstance(self.alpha, tuple):
            if len(self.alpha) != kept:
                raise ValueError(f"The length of alpha ({len(self.alpha)}) must match the number of classes ({kept}).")
            positive = like.new_tensor(self.alpha)
        elif self.alpha is not None and self.one_vs_rest(inputs):
            positive, negative = positive * self.alpha, negative * (1 - self.alpha)
        elif self.alpha is not None and self.include_background:
            positive = positive * self.alpha
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


def _refuse_sign(alpha: float | tuple[float, ...] | None) -> None:
    """Refuse an alpha that would turn the sign of the loss: a number has 1 - alpha on the other side."""
    if isinstance(alpha, tuple):
        if not all(number >= 0 for number in alpha):
            raise ValueError(f"expected alpha of numbers >= 0, got {alpha}.")
    elif alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"expected alpha in [0, 1], got {alpha}.")


class PolyLoss(DistributionLoss):
    """Poly-1 loss: cross-entropy with its leading term made larger.

    -log p_t + epsilon (1 - p_t)

    epsilon=0 is cross-entropy. A perfect prediction gives 0, everything ignored gives 0.

    Args:
        epsilon: >= -1; 1 as the paper's default. Above 0 it raises the gradient of voxels that are nearly right.
        **options: see `DistributionLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: epsilon < -1 (the loss would fall as a right voxel gets worse); else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = PolyLoss(to_onehot_y=True, softmax=True)
        >>> round(loss(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)).item(), 4)  # ln 2 + 1/2
        1.1931

    Reference: Leng et al. 2022, arXiv:2204.12511.
    """

    def __init__(
        self,
        epsilon: Annotated[float, ValueRange(">= -1", lambda x: x >= -1)] = 1.0,
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        self.epsilon = epsilon

    @property
    def voxel_formula(self) -> VoxelFormula:
        return PolyFormula(self.epsilon)


class GeneralizedCrossEntropyLoss(DistributionLoss):
    """Generalized cross-entropy: between cross-entropy (q to 0) and the mean absolute error (q = 1), for noisy labels.

    (1 - p_t^q) / q

    A perfect prediction gives 0, everything ignored gives 0.

    Args:
        q: in (0, 1]; 0.7 as in the paper. Higher counts voxels that contradict their label less.
        **options: see `DistributionLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: q outside (0, 1]; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = GeneralizedCrossEntropyLoss(q=1.0, to_onehot_y=True, softmax=True)
        >>> round(loss(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)).item(), 4)
        0.5

    Reference: Zhang and Sabuncu 2018, arXiv:1805.07836.
    """

    def __init__(
        self,
        q: Annotated[float, ValueRange("in (0, 1]", lambda x: 0 < x <= 1)] = 0.7,
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        self.q = q

    @property
    def voxel_formula(self) -> VoxelFormula:
        return GeneralizedCrossEntropyFormula(self.q)


class _OneVsRestCrossEntropy(DistributionLoss):
    """Base of the cross-entropies that weight positives and negatives of each class, under softmax too."""

    every_channel = True
    voxel_formula: VoxelFormula = CrossEntropyFormula()

    @abstractmethod
    def factors(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """(B, C) factors of positives and negatives, without gradient."""

    def read_by_factors(self, inputs: LossInputs) -> Terms:
        """What the factors follow from."""
        return {"target": TARGET_SUMS}

    def terms(self, inputs: LossInputs) -> Terms:
        return {**super().terms(inputs), **self.read_by_factors(inputs)}

    def reduced(self, inputs: LossInputs, sums: Sums, positive: Tensor, negative: Tensor) -> Tensor:
        positive_factor, negative_factor = self.factors(sums)
        return super().reduced(inputs, sums, positive * positive_factor, negative * negative_factor)

    def voxel_map(self, inputs: LossInputs) -> VoxelMap:
        weight = self.weight_of_channels(inputs)
        factors = self.factors(inputs.compute(self.read_by_factors(inputs)))
        positive, negative = (factor if weight is None else factor * weight for factor in factors)
        return VoxelMap(self.voxel_sums(inputs), positive, negative)


class WeightedCrossEntropyLoss(_OneVsRestCrossEntropy):
    """Weighted cross-entropy: positives of each class count beta times. One-vs-rest, under softmax too.

    -(beta g log p + (1-g) log(1-p)), mean over voxels and classes

    Jadon's code has beta/(1-beta) for beta. A perfect prediction gives 0, everything ignored gives 0.

    Args:
        beta: > 0, for mode="fixed"; above 1 cuts false negatives, below 1 false positives.
        mode: "fixed"; "prediction": beta = (N - sum p) / sum p (Sudre's WCE); "target": beta = (N - sum g) / sum g; per
            sample and class, without gradient, kept within 1e-3 and 1e3.
        **options: see `DistributionLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: beta <= 0, an unknown mode; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = WeightedCrossEntropyLoss(beta=3.0, sigmoid=True)
        >>> round(loss(torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)).item(), 4)  # 3 ln 2
        2.0794

    Reference: Jadon 2020, arXiv:2006.14822; Sudre et al. 2017, arXiv:1707.03237.
    """

    def __init__(self, beta: Positive = 1.0, mode: BetaMode = "fixed", **options: Unpack[SegmentationOptions]) -> None:
        super().__init__(**options)
        self.beta = beta
        self.mode = one_of("mode", mode, BetaMode)

    def read_by_factors(self, inputs: LossInputs) -> Terms:
        counts = {"counts": (self.source, CountSums(self.activation(inputs)))} if self.mode == "prediction" else {}
        return {**super().read_by_factors(inputs), **counts}

    def factors(self, sums: Sums) -> tuple[Tensor, Tensor]:
        volumes, voxels = sums["target"]
        if self.mode == "prediction":
            volumes = sums["counts"][1].detach()
        if self.mode == "fixed":
            return torch.full_like(volumes, self.beta), torch.ones_like(volumes)
        beta = ((voxels - volumes) / volumes).clamp(1e-3, 1e3).nan_to_num(1.0)  # 0/0 where nothing is kept
        return beta, torch.ones_like(beta)


class BalancedCrossEntropyLoss(_OneVsRestCrossEntropy):
    """Balanced cross-entropy: positives and negatives of a class weigh the same. One-vs-rest, under softmax too.

    -(beta g log p + (1-beta) (1-g) log(1-p)), beta = 1 - sum g / N per sample and class

    A perfect prediction gives 0, everything ignored gives 0.

    Args:
        beta_range: beta is kept within it. A sample without the class would have beta = 1, and so no loss for
            whatever is predicted there; (0, 1) is the paper's form.
        **options: see `DistributionLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: a beta_range that is not increasing within [0, 1]; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = BalancedCrossEntropyLoss(sigmoid=True)
        >>> target = (torch.arange(64) < 16).float().view(1, 1, 8, 8)
        >>> round(loss(torch.zeros(1, 1, 8, 8), target).item(), 4)  # 2 * 3/4 * 1/4 * ln 2
        0.2599

    Reference: Xie and Tu 2015, arXiv:1504.06375.
    """

    def __init__(self, beta_range: tuple[float, float] = (0.05, 0.95), **options: Unpack[SegmentationOptions]) -> None:
        super().__init__(**options)
        low, high = beta_range
        if not 0 <= low <= high <= 1:
            raise ValueError(f"expected beta_range (low, high) with 0 <= low <= high <= 1, got {beta_range}.")
        self.beta_range = (float(low), float(high))

    def factors(self, sums: Sums) -> tuple[Tensor, Tensor]:
        volumes, voxels = sums["target"]
        beta = (1 - volumes / torch.where(voxels > 0, voxels, 1)).clamp(*self.beta_range)
        return beta, 1 - beta


class TopKLoss(DistributionLoss):
    """Top-k cross-entropy: the mean over the k % of voxels with the largest cross-entropy, of each sample.

    sum of the K largest -log p_t / K, K = max(1, floor(n k / 100)) of the n voxels of a sample, mean over samples

    One-vs-rest the decisions of all channels are ranked together, so that a region of few errors may have no say;
    `per_class=True` ranks those of each channel apart, and takes the mean over samples and channels.

    k=100 is the mean of the samples' cross-entropies. Where k % rounds to no voxel, one counts. nnU-Net pools the
    voxels of the batch, which is `batch=True`. Everything ignored gives 0; a sample in which everything is ignored
    leaves the mean.

    Args:
        k: per cent of the voxels kept that count, in (0, 100]; 10 as is usual: max(1, floor(n k / 100)) of n voxels.
        batch: pool the voxels of all samples.
        per_class: rank the decisions of each channel apart; without effect, with a warning, under a softmax.
        **options: see `DistributionLoss`; `weight` multiplies the voxel loss before ranking and is not normalised, and
            so does a float mask, where 0 leaves a voxel out. "sum" adds the means of the samples (and channels); "none"
            gives the cross-entropy of each voxel, unranked.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: k outside (0, 100]; sync_batch=True (ranks cannot be added up); else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = TopKLoss(k=25, to_onehot_y=True, softmax=True)
        >>> logits = torch.zeros(1, 2, 2, 2)
        >>> logits[0, 1, 0, 0] = 20.0
        >>> round(loss(logits, torch.zeros(1, 1, 2, 2)).item(), 3)  # the worst of four voxels
        20.0

    Reference: Wu et al. 2016, arXiv:1605.06885.
    """

    voxel_formula: VoxelFormula = CrossEntropyFormula()
    unsyncable = "the largest losses of ranks cannot be added up"
    keeps_map = True

    def __init__(
        self,
        k: Annotated[float, ValueRange("in (0, 100] per cent", lambda k: 0 < k <= 100)] = 10.0,
        batch: bool = False,
        per_class: bool = False,
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        self.k, self.batch, self.per_class = k, batch, per_class
        if per_class and self.softmax:
            warnings.warn(
                "`per_class=True` has no effect on TopKLoss with softmax: a voxel has one cross-entropy for all "
                "classes (set sigmoid=True for regions).",
                stacklevel=2,
            )

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        loss = super().value(inputs, sums)
        if self.reduction == "none":
            return loss
        number = self._number(inputs, loss)
        if self.per_class:
            losses, number = (loss.transpose(0, 1) if self.batch else loss.flatten(0, 1)).flatten(1), number.flatten()
        else:
            losses, number = loss.reshape(1, -1) if self.batch else loss.flatten(1), number.sum(1)
        count = (number * self.k / 100).floor().clamp_min(1)
        # Losses are >= 0 and a voxel that does not count has 0: those that count come first.
        if self.k < 100:
            most = min(max(1, math.floor(losses.shape[1] * self.k / 100)), losses.shape[1])
            largest = losses.topk(most, dim=1).values
            losses = torch.where(torch.arange(most, device=losses.device) < count.unsqueeze(1), largest, 0)
        means = losses.sum(1).to(count.dtype) / count
        present = number > 0
        total = torch.where(present, means, 0).sum()
        return total if self.reduction == "sum" else total / present.sum().clamp_min(1)

    def _number(self, inputs: LossInputs, loss: Tensor) -> Tensor:
        """(B, channels) or with `batch` (1, channels) number of voxel losses that count, in float64."""
        counts = inputs.data.voxels_that_count()
        if counts is None:
            number = torch.full((loss.shape[0], 1), math.prod(loss.shape[2:]), device=loss.device)
        else:
            number = counts.flatten(1).sum(1, keepdim=True)
        number = number.to(sum_dtype(number.device)).expand(-1, loss.shape[1])
        if inputs.annotated is not None and loss.shape[1] > 1:
            number = number * self.without_background(inputs.annotated)
        return number.sum(0, keepdim=True) if self.batch else number


class _MarginLoss(DistributionLoss):
    """Base of the losses of the margin of raw scores."""

    source = "scores"
    left_out = dict.fromkeys(("sigmoid", "softmax", "other_act"), "it reads raw scores")

    def voxel_sums(self, inputs: LossInputs) -> VoxelSums:
        return MarginSums(self.voxel_formula) if self.one_vs_rest(inputs) else LeadSums(self.voxel_formula)


class HingeLoss(_MarginLoss):
    """Hinge loss of each class against the rest, on raw scores.

    max(0, 1 - y s), y = 2g - 1, mean over voxels and classes

    Args:
        **options: see `DistributionLoss`; no activation: `input` is raw scores.

    Shapes: see `SegmentationLoss`.

    Raises:
        TypeError: an activation; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = HingeLoss(to_onehot_y=True)
        >>> round(loss(torch.full((1, 2, 4, 4), -1.0), torch.zeros(1, 1, 4, 4)).item(), 4)  # (2 + 0) / 2
        1.0

    Reference: Cortes and Vapnik 1995, doi:10.1007/BF00994018.
    """

    every_channel = True
    voxel_formula: VoxelFormula = HingeFormula()


class SquaredHingeLoss(HingeLoss):
    """Squared hinge loss of each class against the rest, on raw scores.

    max(0, 1 - y s)^2, y = 2g - 1, mean over voxels and classes

    Args:
        **options: see `DistributionLoss`; no activation: `input` is raw scores.

    Shapes: see `SegmentationLoss`.

    Raises:
        TypeError: an activation; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = SquaredHingeLoss(to_onehot_y=True)
        >>> round(loss(torch.full((1, 2, 4, 4), -1.0), torch.zeros(1, 1, 4, 4)).item(), 4)  # (4 + 0) / 2
        2.0

    Reference: Cortes and Vapnik 1995, doi:10.1007/BF00994018.
    """

    voxel_formula: VoxelFormula = SquaredHingeFormula()


class CategoricalHingeLoss(_MarginLoss):
    """Multi-class hinge loss on raw scores: the true class must win by a margin of one.

    max(0, 1 + max_{c != t} s_c - s_t), mean over voxels

    Keras 3.15.1 has another loss of this name: its max((1-y) s) is over the true class, too, as 0.

    Args:
        **options: see `DistributionLoss`; no activation: `input` is raw scores of at least two channels.

    Shapes: see `SegmentationLoss`.

    Raises:
        TypeError: an activation.
        ValueError: one channel; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = CategoricalHingeLoss(to_onehot_y=True)
        >>> loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)).item()
        1.0

    Reference: Crammer and Singer 2001, JMLR 2:265-292.
    """

    voxel_formula: VoxelFormula = HingeFormula()

    def one_vs_rest(self, inputs: LossInputs) -> bool:
        if inputs.channels == 1:
            raise ValueError("expected at least two channels, got one: HingeLoss takes one.")
        return False
