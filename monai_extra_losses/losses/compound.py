"""Compound losses with fixed parts: weighted sums in one pass over the data."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from monai_extra_losses.losses.base import (
    DistributionLoss,
    RegionLoss,
    SegmentationLoss,
    SoftCounts,
    Sums,
    Terms,
    answers_to,
    joined,
)
from monai_extra_losses.losses.distribution import BalancedCrossEntropyLoss, CrossEntropyLoss, FusedFocalLoss, TopKLoss
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.options import (
    DiceOptions,
    InnerShare,
    Positive,
    RegionOptions,
    SegmentationOptions,
    Share,
    ShareBelowOne,
    Weight,
    chosen,
    class_weights,
    merged,
    refuse_negative,
)
from monai_extra_losses.losses.region import FusedDiceLoss
from monai_extra_losses.ops.formulas import CrossEntropyFormula, FocalFormula, PowerFormula
from monai_extra_losses.ops.terms import Activation, OutcomeSums, TrueClassSums, VoxelFormula


class _ScoreCrossEntropy(CrossEntropyLoss):
    """The cross-entropy of a compound: always of the raw scores, whatever the region part reads.

    One-vs-rest, `weight` is the factor of the positives of each channel, as torch.nn.BCEWithLogitsLoss's pos_weight; a
    soft target of C > 1 channels is averaged over the voxels, as torch.nn.CrossEntropyLoss does.
    """

    source = "scores"

    def activation(self, inputs: LossInputs) -> Activation:
        return "sigmoid" if self.one_vs_rest(inputs) else "softmax"

    def smooths(self, inputs: LossInputs) -> bool:
        return super().smooths(inputs) and not self.one_vs_rest(inputs)

    def reduced(self, inputs: LossInputs, sums: Sums, positive: Tensor, negative: Tensor) -> Tensor:
        one_vs_rest = self.one_vs_rest(inputs)
        if inputs.labels and not one_vs_rest:
            return super().reduced(inputs, sums, positive, negative)
        if self.class_weight is not None:
            positive = positive * self.class_weight.to(positive)
        loss = self.without_background(positive + negative) if one_vs_rest else positive
        return self.mean_or_sum(loss.sum(), self.counts(inputs, sums).sum())


_OWN_WEIGHTS = "it weights the classes itself"
_SMOOTHED_BY_ONE = {"smooth_nr": 1.0, "smooth_dr": 1.0}
_NO_SOFT_LABEL = "as MONAI's; a CompoundLoss of a Dice loss that has it does"


class _WeightedParts(SegmentationLoss):
    """Base of the compounds with fixed parts: a weighted sum in one pass.

    `parts()` names the parts and their weights. Their reductions are its own.
    """

    def __init__(self, **options: Unpack[RegionOptions]) -> None:
        super().__init__(**chosen(options, SegmentationOptions, without=["weight"]))

    @abstractmethod
    def parts(self) -> Mapping[str, tuple[float, SegmentationLoss]]:
        """Name -> weight and loss of each part."""

    def terms(self, inputs: LossInputs) -> Terms:
        return joined({name: loss.terms(inputs) for name, (_, loss) in self.parts().items()})

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        parts = self.part_values(inputs, sums)
        return sum((weight * parts[name] for name, (weight, _) in self.parts().items()), torch.zeros(()))

    def part_values(self, inputs: LossInputs, sums: Sums) -> dict[str, Tensor]:
        """The value of each part, from the answers to all."""
        return {name: loss.value(inputs, answers_to(name, sums)) for name, (_, loss) in self.parts().items()}


class FusedDiceCELoss(_WeightedParts):
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

    left_out: ClassVar[dict[str, str]] = {"soft_label": _NO_SOFT_LABEL}
    in_order = (
        "include_background to_onehot_y sigmoid softmax other_act squared_pred jaccard reduction smooth_nr smooth_dr "
        "batch weight lambda_dice lambda_ce label_smoothing"
    )

    def __init__(
        self,
        *,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        **options: Unpack[DiceOptions],
    ) -> None:
        super().__init__(**options)  # type: ignore[misc]  # it hands on more than its base
        if self.reduction == "none":
            raise ValueError("expected reduction 'mean' or 'sum', got 'none': Dice has no loss per voxel.")
        refuse_negative(lambda_dice=lambda_dice, lambda_ce=lambda_ce)
        weight = class_weights(options.get("weight"))
        of_dice = weight if weight is None or not weight.ndim or self.include_background else weight[1:]
        self.dice = FusedDiceLoss(**merged(options, weight=of_dice))
        of_scores = merged(_for_cross_entropy(options), softmax=not self.sigmoid, other_act=None)
        self.cross_entropy = _ScoreCrossEntropy(label_smoothing, weight=weight, **of_scores)
        self.lambda_dice, self.lambda_ce = lambda_dice, lambda_ce

    def parts(self) -> Mapping[str, tuple[float, SegmentationLoss]]:
        return {"dice": (self.lambda_dice, self.dice), "cross_entropy": (self.lambda_ce, self.cross_entropy)}

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        weight, channels = self.cross_entropy.class_weight, inputs.channels
        if weight is not None and weight.ndim and weight.shape[0] != channels:
            background = "" if self.dice.include_background else ", with the background, which only Dice leaves out"
            raise ValueError(
                f"The length of the `weight` sequence should be the same as the number of classes{background}: "
                f"expected {channels} numbers, got {weight.shape[0]}."
            )
        return super().value(inputs, sums)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take the state of MONAI's class, too, which has the weights in one cross-entropy for each activation."""
        softmax, sigmoid = (f"{prefix}{name}" for name in ("cross_entropy.weight", "binary_cross_entropy.pos_weight"))
        if softmax in state_dict and torch.equal(state_dict[softmax], state_dict.get(sigmoid, state_dict[softmax])):
            state_dict[f"{prefix}cross_entropy.class_weight"] = state_dict.pop(softmax)
            state_dict.pop(sigmoid, None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class FusedDiceFocalLoss(_WeightedParts):
    """Dice plus focal loss in one pass; a drop-in for `monai.losses.DiceFocalLoss`.

    lambda_dice Dice + lambda_focal Focal

    The focal loss always reads the raw scores. Departs from MONAI 1.6.1: with `softmax=True` the focal loss is a
    softmax one (MONAI's stays a sigmoid one); and see `FusedDiceLoss` and `FusedFocalLoss`.

    Args:
        include_background, to_onehot_y, sigmoid, softmax, other_act, ignore_index, sync_batch: see `SegmentationLoss`.
        reduction: "mean" or "sum"; "none" adds the Dice of each sample and class to the focal map.
        squared_pred, jaccard, smooth_nr, smooth_dr, batch: of Dice, see `FusedDiceLoss`.
        gamma, alpha: of the focal loss, see `FusedFocalLoss`.
        weight: one number, or one per class kept; multiplies both parts.
        lambda_dice: factor of Dice, >= 0.
        lambda_focal: factor of the focal loss, >= 0.
        absent_class: of Dice, see `RegionLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: a negative lambda; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = FusedDiceFocalLoss(to_onehot_y=True, softmax=True)
        >>> labels = torch.zeros(1, 1, 4, 4)
        >>> labels[..., 2:] = 1
        >>> round(loss(torch.zeros(1, 2, 4, 4), labels).item(), 4)  # 1/2 + ln 2 / 8
        0.5866

    Reference: Zhu et al. 2018 (AnatomyNet), arXiv:1808.05238.
    """

    left_out: ClassVar[dict[str, str]] = {"soft_label": _NO_SOFT_LABEL}
    in_order = (
        "include_background to_onehot_y sigmoid softmax other_act squared_pred jaccard reduction smooth_nr smooth_dr "
        "batch gamma weight lambda_dice lambda_focal alpha"
    )

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: float | None = None,
        **options: Unpack[DiceOptions],
    ) -> None:
        super().__init__(**options)  # type: ignore[misc]  # it hands on more than its base
        refuse_negative(lambda_dice=lambda_dice, lambda_focal=lambda_focal)
        self.dice = FusedDiceLoss(**options)
        of_focal = chosen(options, SegmentationOptions, without=FusedFocalLoss.left_out)
        self.focal = FusedFocalLoss(gamma=gamma, alpha=alpha, use_softmax=self.softmax, **of_focal)
        self.lambda_dice, self.lambda_focal = lambda_dice, lambda_focal

    def parts(self) -> Mapping[str, tuple[float, SegmentationLoss]]:
        return {"dice": (self.lambda_dice, self.dice), "focal": (self.lambda_focal, self.focal)}

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        if self.reduction != "none":
            return super().value(inputs, sums)
        parts = self.part_values(inputs, sums)
        focal = parts["focal"]  # in place: a second map would be as large as the logits
        if self.lambda_focal != 1:
            focal.mul_(self.lambda_focal)
        return focal.add_((self.lambda_dice * parts["dice"]).to(focal.dtype))


class _RegionCompound(_WeightedParts):
    """Base of the compounds that take the options of their region part."""

    def __init__(self, **options: Unpack[RegionOptions]) -> None:
        super().__init__(**options)
        if self.reduction == "none":
            raise ValueError("expected reduction 'mean' or 'sum', got 'none': a region part has no loss per voxel.")


class DiceTopKLoss(_RegionCompound):
    """Dice plus top-k cross-entropy.

    lambda_dice Dice + lambda_topk TopK

    Args:
        k: per cent of the voxels that count, see `TopKLoss`; 10 as usual.
        lambda_dice: factor of Dice, >= 0.
        lambda_topk: factor of the top-k cross-entropy, >= 0.
        **options: see `RegionLoss`; `batch` pools both parts, `weight` has one number per class kept for Dice only.

    nnU-Net pools the voxels of the batch for top-k always, and for Dice where its plans say so: its form, up to the
    constant 1 (its Dice is negative), is the compound in the example.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: a negative lambda, reduction="none"; else see `TopKLoss` and `RegionLoss`.

    Example:
        >>> import torch
        >>> loss = DiceTopKLoss(to_onehot_y=True, softmax=True)
        >>> labels = torch.zeros(1, 1, 4, 4)
        >>> labels[..., 2:] = 1
        >>> round(loss(torch.zeros(1, 2, 4, 4), labels).item(), 4)  # 1/2 + ln 2
        1.1931
        >>> from monai_extra_losses import CompoundLoss, FusedDiceLoss, TopKLoss
        >>> read = {"to_onehot_y": True, "softmax": True}
        >>> dice = FusedDiceLoss(include_background=False, batch=False, **read)
        >>> loss = CompoundLoss([dice, TopKLoss(k=10, batch=True, **read)])

    Reference: Isensee et al. 2020, arXiv:1904.08128; Ma et al. 2021, doi:10.1016/j.media.2021.102035.
    """

    def __init__(
        self, k: float = 10.0, lambda_dice: float = 1.0, lambda_topk: float = 1.0, **options: Unpack[RegionOptions]
    ) -> None:
        super().__init__(**options)
        refuse_negative(lambda_dice=lambda_dice, lambda_topk=lambda_topk)
        self.dice = FusedDiceLoss(**options)
        self.topk = TopKLoss(k=k, batch=self.dice.batch, **_for_cross_entropy(options))
        self.lambda_dice, self.lambda_topk = lambda_dice, lambda_topk

    def parts(self) -> Mapping[str, tuple[float, SegmentationLoss]]:
        return {"dice": (self.lambda_dice, self.dice), "topk": (self.lambda_topk, self.topk)}


class ComboLoss(_RegionCompound):
    """Combo loss: weighted cross-entropy and Dice.

    alpha mCE + (1-alpha) (1 - Dice), mCE = -mean(beta g log p + (1-beta) (1-g) log(1-p)) one-vs-rest, per class kept

    The paper subtracts Dice; this is that plus (1-alpha), so >= 0. The brackets of mCE are as Jadon (2020,
    arXiv:2006.14822) restates them, so that beta weights positives against negatives; that the authors mean the same is
    not confirmed.

    Args:
        alpha: in [0, 1], share of the cross-entropy; 0.5 as in the paper.
        beta: in (0, 1); above 0.5 missed voxels cost more than false positives; 0.5 as in the paper.
        smooth_nr: s of Dice's numerator; 1 as in the paper.
        smooth_dr: s of its denominator; 1 as in the paper.
        **options: see `RegionLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: alpha or beta out of range, reduction="none"; else see `RegionLoss`.

    Example:
        >>> import torch
        >>> loss = ComboLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0)
        >>> round(loss(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)).item(), 4)  # (ln 2 / 2 + 1/3) / 2
        0.34

    Reference: Taghanaki et al. 2019, arXiv:1805.02798.
    """

    left_out: ClassVar[dict[str, str]] = {"weight": _OWN_WEIGHTS}
    defaults = _SMOOTHED_BY_ONE

    def __init__(self, alpha: Share = 0.5, beta: InnerShare = 0.5, **options: Unpack[RegionOptions]) -> None:
        super().__init__(**options)
        self.dice = FusedDiceLoss(**merged(self.defaults, **options))
        self.cross_entropy = BalancedCrossEntropyLoss((beta, beta), **chosen(options, SegmentationOptions))
        self.alpha, self.beta = alpha, beta

    def parts(self) -> Mapping[str, tuple[float, SegmentationLoss]]:
        return {"cross_entropy": (self.alpha, self.cross_entropy), "dice": (1 - self.alpha, self.dice)}


class _LogDice(RegionLoss):
    """(-ln D)^gamma of each class present in the sample."""

    def __init__(self, gamma: float, **options: Unpack[RegionOptions]) -> None:
        super().__init__(**merged(options, absent_class="skip"))
        self.gamma = gamma

    def formula(self, c: SoftCounts) -> Tensor:
        dice = self.ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn)
        return (-dice.clamp(1e-7, 1 - 1e-6).log()) ** self.gamma  # the power's gradient is infinite at D = 1


class _FrequencyCrossEntropy(DistributionLoss):
    """mean w_t (-ln p_t)^gamma with w_c = (sum_k f_k / f_c)^(1/2)."""

    by_class = True
    class_frequencies: Tensor | None

    def __init__(self, gamma: float, class_frequencies: Weight, **options: Unpack[SegmentationOptions]) -> None:
        super().__init__(**options)
        self.gamma = gamma
        self.register_buffer("class_frequencies", class_weights(class_frequencies, "class_frequencies"))
        self._shares = self.class_frequencies is None or bool(self.class_frequencies.max() <= 1)

    @property
    def voxel_formula(self) -> VoxelFormula:
        return PowerFormula(self.gamma)

    def reduced(self, inputs: LossInputs, sums: Sums, positive: Tensor, negative: Tensor) -> Tensor:
        volumes, voxels = sums["target"]
        one_vs_rest = self.one_vs_rest(inputs)
        frequencies, every = self._frequencies(volumes, voxels)
        if one_vs_rest:
            if not self._shares:
                raise ValueError("expected class_frequencies in [0, 1], the share of each channel, got larger numbers.")
            positive = positive * _root_ratio(every, frequencies)
            loss = self.without_background(positive + negative * _root_ratio(every, every - frequencies))
        else:
            loss = positive * _root_ratio(frequencies.sum(), frequencies)
        return self.mean_or_sum(loss.sum(), self.counts(inputs, sums).sum())

    def _frequencies(self, volumes: Tensor, voxels: Tensor) -> tuple[Tensor, Tensor]:
        """(C,) how often each class is there, of how many voxels."""
        if self.class_frequencies is None:
            sums = self.summed_over_ranks(torch.stack([volumes.sum(0), voxels.sum(0)]))
            return sums[0], sums[1]
        given = self.class_frequencies.to(volumes)
        if given.ndim != 1 or given.shape[0] != volumes.shape[1]:
            raise ValueError(
                f"expected class_frequencies of {volumes.shape[1]} numbers, one per channel, got {given.tolist()}."
            )
        return given, torch.ones_like(given)


def _root_ratio(total: Tensor, part: Tensor) -> Tensor:
    """(total / part)^(1/2), 0 where part is 0."""
    return torch.where(part > 0, total / torch.where(part > 0, part, 1), 0).sqrt()


class ExponentialLogarithmicLoss(_RegionCompound):
    """Exponential logarithmic loss: powers of the logarithms of Dice and of the cross-entropy, for tiny classes.

    w_dice mean_c (-ln D_c)^gamma_dice + w_ce mean_n w_t (-ln p_t)^gamma_ce, w_c = (sum_k f_k / f_c)^(1/2)

    D is clamped at 1 - 1e-6 and -ln p at 1e-7, where the powers have no finite gradient, so a perfect prediction gives
    about 0.015. A class that is absent from the batch has w = 0; one that is absent from a sample leaves the mean of D
    for that sample. Everything ignored gives 0. One-vs-rest, a class and its rest are the two classes of w.

    Args:
        weight_dice: 0.8 as in the paper.
        weight_cross_entropy: 0.2 as in the paper.
        gamma_dice: exponent, > 0; 0.3 as in the paper. Below 1 gradients grow for nearly right classes.
        gamma_cross_entropy: exponent, > 0; 0.3 as in the paper.
        class_frequencies: f, one number >= 0 per channel, one-vs-rest its share of the voxels; None: those of the batch
            (of all ranks with `sync_batch`).
        smooth_nr: s of Dice's numerator; 1 as in the paper.
        smooth_dr: s of its denominator; 1 as in the paper.
        **options: see `RegionLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: a negative weight, a gamma <= 0, frequencies of the wrong length, reduction="none"; else see
            `RegionLoss`.

    Example:
        >>> import torch
        >>> loss = ExponentialLogarithmicLoss(to_onehot_y=True, softmax=True)
        >>> labels = (torch.arange(16) % 2).view(1, 1, 4, 4)
        >>> right = 9.0 * torch.stack([1 - labels[:, 0], labels[:, 0]], 1)
        >>> bool(loss(right, labels) < loss(torch.zeros(1, 2, 4, 4), labels) < loss(-right, labels))
        True

    Reference: Wong et al. 2018, arXiv:1809.00076.
    """

    left_out: ClassVar[dict[str, str]] = {
        "weight": _OWN_WEIGHTS,
        "absent_class": "a class that is absent leaves its mean of Dice always",
    }
    defaults = _SMOOTHED_BY_ONE

    def __init__(
        self,
        weight_dice: float = 0.8,
        weight_cross_entropy: float = 0.2,
        gamma_dice: Positive = 0.3,
        gamma_cross_entropy: Positive = 0.3,
        class_frequencies: Weight = None,
        **options: Unpack[RegionOptions],
    ) -> None:
        super().__init__(**options)
        refuse_negative(weight_dice=weight_dice, weight_cross_entropy=weight_cross_entropy)
        self.dice = _LogDice(gamma_dice, **merged(self.defaults, **options))
        self.cross_entropy = _FrequencyCrossEntropy(
            gamma_cross_entropy, class_frequencies, **_for_cross_entropy(options)
        )
        self.weight_dice, self.weight_cross_entropy = weight_dice, weight_cross_entropy

    def parts(self) -> Mapping[str, tuple[float, SegmentationLoss]]:
        return {"dice": (self.weight_dice, self.dice), "cross_entropy": (self.weight_cross_entropy, self.cross_entropy)}


class _UnifiedTversky(RegionLoss):
    def __init__(self, delta: float, gamma: float, asymmetric: bool, **options: Unpack[RegionOptions]) -> None:
        super().__init__(**options)
        self.delta, self.gamma, self.asymmetric = delta, gamma, asymmetric

    def formula(self, c: SoftCounts) -> Tensor:
        index = self.ratio(c.tp, c.tp + self.delta * c.fn + (1 - self.delta) * c.fp)
        focal = (1 - index).clamp_min(1e-7) ** (1 - self.gamma)
        background_first = self.asymmetric and self.include_background and index.shape[1] > 1 and not self.sigmoid
        return torch.cat([(1 - index)[:, :1], focal[:, 1:]], 1) if background_first else focal


class _UnifiedFocal(DistributionLoss):
    by_class = True

    def __init__(self, delta: float, gamma: float, asymmetric: bool, **options: Unpack[SegmentationOptions]) -> None:
        super().__init__(**options)
        self.delta, self.gamma, self.asymmetric = delta, gamma, asymmetric

    @property
    def voxel_formula(self) -> VoxelFormula:
        return FocalFormula(self.gamma)

    def terms(self, inputs: LossInputs) -> Terms:
        terms = super().terms(inputs)
        if not self.asymmetric:
            return terms
        kind = OutcomeSums if self.one_vs_rest(inputs) else TrueClassSums
        return {**terms, "plain": (self.source, kind(self.activation(inputs), CrossEntropyFormula()))}

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        focal = sums["losses"]
        plain = sums["plain"] if self.asymmetric else focal
        if self.one_vs_rest(inputs):
            loss = self.without_background(self.delta * plain[0] + (1 - self.delta) * focal[1])
        else:
            foreground, background = self.delta * plain[0][:, 1:], (1 - self.delta) * focal[0][:, :1]
            loss = torch.cat([background, foreground], 1)
        return self.mean_or_sum(loss.sum(), self.counts(inputs, sums).sum())


class UnifiedFocalLoss(_RegionCompound):
    """Unified focal loss: focal cross-entropy and focal Tversky with shared parameters, for any number of classes.

    lambda F + (1-lambda) FT, TI = (TP + s) / (TP + delta FN + (1-delta) FP + s)

    symmetric: F = mean w_t (1-p_t)^gamma (-log p_t), FT = mean_c (1-TI_c)^(1-gamma); asymmetric: (1-p_t)^gamma on
    background only; (1-TI)^(1-gamma) on foreground only, 1-TI on background. w = 1-delta for background, delta for
    foreground. Channel 0 is the background of a softmax; one-vs-rest every channel is foreground against its rest.

    At the defaults this equals the authors' code and the paper. Off them, lambda is the paper's, the weight of F: the
    code's `weight` is that of FT, so weight_focal = 1 - weight. gamma is the code's: the paper's symmetric form has
    1 - gamma and gamma for the exponents of F and FT, so gamma = 1 - the paper's; the asymmetric forms agree.

    `AsymmetricUnifiedFocalLoss` of MONAI 1.6.1 reads two classes alone, takes probabilities, and gives one number
    whatever `reduction` says. Everything ignored gives 0; 1 - TI is clamped at 1e-7.

    Args:
        weight_focal: lambda in [0, 1]; 0.5 as in the paper.
        delta: in (0, 1); above 0.5 missed foreground costs more; 0.6 as in the paper.
        gamma: in [0, 1); 0.5 as in the paper. Raises the stress on hard voxels in F, on nearly right classes in FT.
        asymmetric: see above.
        **options: see `RegionLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: weight_focal, delta or gamma out of range, reduction="none"; else see `RegionLoss`.

    Example:
        >>> import torch
        >>> loss = UnifiedFocalLoss(to_onehot_y=True, softmax=True, asymmetric=True)
        >>> labels = (torch.arange(16) % 2).view(1, 1, 4, 4)
        >>> bool(loss(torch.zeros(1, 2, 4, 4), labels) > 0)
        True

    Reference: Yeung et al. 2022, arXiv:2102.04525, and the authors' code.
    """

    left_out: ClassVar[dict[str, str]] = {"weight": _OWN_WEIGHTS}

    def __init__(
        self,
        weight_focal: Share = 0.5,
        delta: InnerShare = 0.6,
        gamma: ShareBelowOne = 0.5,
        asymmetric: bool = False,
        **options: Unpack[RegionOptions],
    ) -> None:
        super().__init__(**options)
        self.focal = _UnifiedFocal(delta, gamma, asymmetric, **_for_cross_entropy(options))
        self.tversky = _UnifiedTversky(delta, gamma, asymmetric, **options)
        self.weight_focal = weight_focal

    def parts(self) -> Mapping[str, tuple[float, SegmentationLoss]]:
        return {"focal": (self.weight_focal, self.focal), "tversky": (1 - self.weight_focal, self.tversky)}


def _for_cross_entropy(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a cross-entropy part but its weight: a softmax one keeps the background."""
    shared = chosen(options, SegmentationOptions, without=["weight"])
    return shared if shared.get("sigmoid", False) else {**shared, "include_background": True}
