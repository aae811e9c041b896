"""Compound losses: weighted sums whose parts share one pass over the data."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from monai_extra_losses.losses.base import (
    TARGET_SUMS,
    AbsentClass,
    DistributionLoss,
    OtherAct,
    Reduction,
    RegionLoss,
    RegionOptions,
    SegmentationLoss,
    SegmentationOptions,
    SoftCounts,
    Terms,
    Weight,
    class_weights,
    refuse_negative,
)
from monai_extra_losses.losses.distribution import (
    BalancedCrossEntropyLoss,
    CrossEntropyLoss,
    FusedFocalLoss,
    TopKLoss,
)
from monai_extra_losses.losses.inputs import LossInputs, Source, plain_data
from monai_extra_losses.losses.region import FusedDiceLoss
from monai_extra_losses.ops.formulas import CrossEntropyFormula, FocalFormula, PowerFormula
from monai_extra_losses.ops.numbers import has_numbers, under_transform
from monai_extra_losses.ops.terms import Activation, OutcomeSums, Term, TrueClassSums, VoxelFormula


class _Unsmoothed(SegmentationOptions, total=False):
    """Options of a region loss whose smoothing has other defaults."""

    batch: bool
    soft_label: bool
    absent_class: AbsentClass


class _Dice(RegionLoss):
    """Dice of each class."""

    def formula(self, c: SoftCounts) -> Tensor:
        return 1 - self.ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn)


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
            positive = positive * self.class_weight.to(positive)
        loss, counts = (self.kept(positive + negative), self.kept(voxels)) if one_vs_rest else (positive, voxels[:, :1])
        return self._mean_or_sum(loss.sum(), counts.sum())


class CompoundLoss(nn.Module):
    """Weighted sum of losses.

    sum_k lambda_k L_k

    Losses of this package that read the target alike share one pass over the data.

    Args:
        losses: the parts: a list, or a dict of name and loss.
        weights: lambda of each part, >= 0; 1 each by default. `weights` of the object may be set at any time, by a
            schedule say, and is checked at the next call. A torch.nn.Parameter in the list, or one of shape (parts,)
            for all of it, is a weight to be learnt: it is a parameter of this module, in its state, and keeps its
            gradient. (Alone it falls to 0, where the sum is least.) The number in a weight on a GPU is not looked at.

    Attributes:
        components: dict of name and last value of each part, detached, before its weight.

    Shapes: those of the parts, which must agree on the input.

    Raises:
        TypeError: a part that is no torch.nn.Module, a weight that is no number.
        ValueError: no parts, a number of weights other than that of the parts, a weight that is negative, infinite or
            NaN, a part with reduction="none".

    Example:
        >>> import torch
        >>> from monai_extra_losses import CrossEntropyLoss, FusedDiceLoss
        >>> options = {"to_onehot_y": True, "softmax": True}
        >>> loss = CompoundLoss([FusedDiceLoss(**options), CrossEntropyLoss(**options)], weights=[1.0, 0.5])
        >>> value = loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))
        >>> sorted(loss.components)
        ['CrossEntropyLoss', 'FusedDiceLoss']

    Reference: none; compounds are compared in Ma et al. 2021, doi:10.1016/j.media.2021.102035.
    """

    def __init__(
        self,
        losses: Sequence[nn.Module] | Mapping[str, nn.Module],
        weights: Sequence[float | Tensor] | Tensor | None = None,
    ) -> None:
        super().__init__()
        named = dict(losses) if isinstance(losses, Mapping) else _named(losses)
        if not named:
            raise ValueError("expected at least one loss, got none.")
        for name, loss in named.items():
            if not isinstance(loss, nn.Module):
                raise TypeError(f"expected losses that are torch.nn.Module, got {type(loss).__name__} as {name}.")
            if getattr(loss, "reduction", "mean") == "none":
                raise ValueError(f"expected reduction 'mean' or 'sum' of every part, got 'none' of {name}.")
        self.losses = nn.ModuleDict(named)
        self.weights = _weights([1.0] * len(named) if weights is None else weights)
        self._checked_weights()
        self.components: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        """The weights, where any is not 1."""
        return "" if all(weight == 1 for weight in self.weight_values) else f"weights={self.weight_values}"

    def _checked_weights(self) -> list[float | Tensor]:
        """The weights, which anybody may have set since the last call."""
        weights = _as_list(self.weights)
        if len(weights) != len(self.losses):
            raise ValueError(f"expected {len(self.losses)} weights, one per loss, got {len(weights)}.")
        if torch.compiler.is_compiling() or under_transform():
            return weights
        if isinstance(self.weights, list) and any(isinstance(weight, nn.Parameter) for weight in weights):
            raise ValueError(
                "expected a learnt weight to be registered, got a torch.nn.Parameter in a list: give it to the "
                "constructor, or set `weights` to a torch.nn.ParameterList."
            )
        known = [_number(weight) for weight in weights if not isinstance(weight, Tensor) or _is_read(weight)]
        if not all(0 <= weight < math.inf for weight in known):  # NaN is neither
            raise ValueError(f"expected weights >= 0 and finite, got {known}.")
        return weights

    @property
    def weight_values(self) -> list[float]:
        """The weights as numbers, those that are learnt too."""
        return [_number(weight) for weight in self.weights]

    @property
    def reads_distance(self) -> bool:
        """Whether any part takes a map of distances."""
        return any(map(_reads_distance, self.losses.values()))

    def forward(
        self, input: Tensor, target: Tensor, mask: Tensor | None = None, distance: Tensor | None = None
    ) -> Tensor:
        """The weighted sum; arguments as of the parts, `distance` for the parts that read one.

        Raises:
            ValueError: a `distance` that no part reads; else see the parts.
        """
        if distance is not None and not self.reads_distance:
            raise ValueError(f"expected a part that reads `distance`, got {', '.join(self.losses)}: leave it out.")
        weights = self._checked_weights()
        own = {name: loss for name, loss in self.losses.items() if isinstance(loss, SegmentationLoss)}
        shared: dict[object, LossInputs] = {}
        if own:
            affine = getattr(target, "affine", None)  # of a MetaTensor
            data = plain_data(input, target, mask, distance)
            for part in own.values():
                part.check(*data, stacklevel=6)
            for part in own.values():
                if (key := _reading(part)) not in shared:
                    shared[key] = part.wrap(*data, affine)
        for key, inputs in shared.items():
            inputs.compute(term for part in own.values() if _reading(part) == key for term in part.terms(inputs))
        values = {}
        for name, loss in self.losses.items():
            if isinstance(loss, SegmentationLoss):
                values[name] = loss.value(shared[_reading(loss)])
            else:
                given = {"mask": mask, "distance": distance if _reads_distance(loss) else None}
                values[name] = loss(input, target, **{key: value for key, value in given.items() if value is not None})
        self.components = {name: value.detach() for name, value in values.items()}
        total = torch.zeros((), device=input.device)
        for weight, value in zip(weights, values.values(), strict=True):
            total = total + (weight.reshape(()) if isinstance(weight, Tensor) else weight) * value
        return total.to(torch.float64 if input.dtype == torch.float64 else torch.float32)


def _weights(given: Any) -> list[Any] | nn.Parameter | nn.ParameterList:
    """The weights as a compound keeps them: numbers in a list, parameters where a module registers them."""
    if isinstance(given, nn.Parameter):
        return given
    weights = [
        weight if isinstance(weight, Tensor) and weight.requires_grad else _number(weight) for weight in _as_list(given)
    ]
    return nn.ParameterList(weights) if any(isinstance(weight, nn.Parameter) for weight in weights) else weights


def _is_read(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and has_numbers(weight)


def _as_list(weights: Any) -> list[Any]:
    if isinstance(weights, str | Mapping) or not isinstance(weights, Iterable):
        raise TypeError(f"expected a list of weights, one number per loss, got {weights!r}.")
    return list(weights)


def _number(weight: Any) -> float:
    try:
        return float(weight.detach() if isinstance(weight, Tensor) else weight)  # YAML reads 1e-3 as a string
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"expected weights that are one number each, got {weight!r}.") from None


def _reading(loss: SegmentationLoss) -> object:
    """Losses of which this is equal read the target alike: one `LossInputs` serves them."""
    return loss.to_onehot_y, loss.ignore_index, loss.other_act


def _reads_distance(loss: nn.Module) -> bool:
    if isinstance(loss, CompoundLoss):
        return loss.reads_distance
    return "distance" in inspect.signature(loss.forward).parameters


def _named(losses: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Losses by class name; a second one of a class gets a number."""
    named: dict[str, nn.Module] = {}
    for loss in losses:
        name = base = type(loss).__name__
        number = 1
        while name in named:
            number += 1
            name = f"{base}_{number}"
        named[name] = loss
    return named


class _WeightedParts(SegmentationLoss):
    """Base of the compounds with fixed parts: a weighted sum in one pass.

    `parts()` names the parts and their weights.
    """

    def parts(self) -> Iterable[tuple[float, SegmentationLoss]]:
        """Weight and loss of each part."""
        raise NotImplementedError

    def terms(self, inputs: LossInputs) -> Terms:
        return tuple(term for _, part in self.parts() for term in part.terms(inputs))

    def value(self, inputs: LossInputs) -> Tensor:
        return sum((weight * part.value(inputs) for weight, part in self.parts()), torch.zeros(()))


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

    def parts(self) -> Iterable[tuple[float, SegmentationLoss]]:
        return (self.lambda_dice, self.dice), (self.lambda_ce, self.cross_entropy)

    def value(self, inputs: LossInputs) -> Tensor:
        weight, channels = self.cross_entropy.class_weight, inputs.scores.shape[1]
        if weight is not None and weight.ndim and weight.shape[0] != channels:
            background = "" if self.dice.include_background else ", with the background, which only Dice leaves out"
            raise ValueError(
                f"The length of the `weight` sequence should be the same as the number of classes{background}: "
                f"expected {channels} numbers, got {weight.shape[0]}."
            )
        return super().value(inputs)

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
        gamma: float = 2.0,
        weight: Weight = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: float | None = None,
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
        refuse_negative(lambda_dice=lambda_dice, lambda_focal=lambda_focal)
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
            weight=weight,
            ignore_index=ignore_index,
            absent_class=absent_class,
            sync_batch=sync_batch,
        )
        self.focal = FusedFocalLoss(
            include_background=include_background,
            to_onehot_y=to_onehot_y,
            gamma=gamma,
            alpha=alpha,
            weight=weight,
            reduction=reduction,
            use_softmax=softmax,
            ignore_index=ignore_index,
            sync_batch=sync_batch,
        )
        self.lambda_dice = lambda_dice
        self.lambda_focal = lambda_focal

    def parts(self) -> Iterable[tuple[float, SegmentationLoss]]:
        return (self.lambda_dice, self.dice), (self.lambda_focal, self.focal)

    def value(self, inputs: LossInputs) -> Tensor:
        if self.reduction != "none":
            return super().value(inputs)
        focal = self.focal.value(inputs)  # in place: a second map would be as large as the logits
        if self.lambda_focal != 1:
            focal.mul_(self.lambda_focal)
        return focal.add_((self.lambda_dice * self.dice.value(inputs)).to(focal.dtype))


class _RegionCompound(_WeightedParts):
    """Base of the compounds that take the options of their region part."""

    options_of = RegionLoss

    def __init__(self, **options: Unpack[RegionOptions]) -> None:
        super().__init__(**_segmentation_options(options))
        if self.reduction == "none":
            raise ValueError("expected reduction 'mean' or 'sum', got 'none': a region part has no loss per voxel.")


_OWN_WEIGHTS = "it weights the classes itself"


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
        self,
        k: float = 10.0,
        lambda_dice: float = 1.0,
        lambda_topk: float = 1.0,
        **options: Unpack[RegionOptions],
    ) -> None:
        super().__init__(**options)
        refuse_negative(lambda_dice=lambda_dice, lambda_topk=lambda_topk)
        self.dice = _Dice(**options)
        self.topk = TopKLoss(k=k, batch=options.get("batch", False), **_for_cross_entropy(options))
        self.lambda_dice = lambda_dice
        self.lambda_topk = lambda_topk

    def parts(self) -> Iterable[tuple[float, SegmentationLoss]]:
        return (self.lambda_dice, self.dice), (self.lambda_topk, self.topk)


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
        smooth_dr: s of its denominator; likewise.
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

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        *,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        **options: Unpack[_Unsmoothed],
    ) -> None:
        super().__init__(**options)
        if not 0 <= alpha <= 1:
            raise ValueError(f"expected alpha in [0, 1], got {alpha}.")
        if not 0 < beta < 1:
            raise ValueError(f"expected beta in (0, 1), got {beta}.")
        self.dice = _Dice(smooth_nr=smooth_nr, smooth_dr=smooth_dr, **options)
        self.cross_entropy = BalancedCrossEntropyLoss((beta, beta), **_segmentation_options(options))
        self.alpha = alpha
        self.beta = beta

    def parts(self) -> Iterable[tuple[float, SegmentationLoss]]:
        return (self.alpha, self.cross_entropy), (1 - self.alpha, self.dice)


class _LogDice(RegionLoss):
    """(-ln D)^gamma of each class present in the sample."""

    def __init__(self, gamma: float, **options: Unpack[RegionOptions]) -> None:
        super().__init__(**(options | {"absent_class": "skip"}))
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
    def formula(self) -> VoxelFormula:
        return PowerFormula(self.gamma)

    def _reduced(self, inputs: LossInputs, positive: Tensor, negative: Tensor) -> Tensor:
        volumes, voxels = inputs[TARGET_SUMS]
        one_vs_rest = self.one_vs_rest(inputs)
        frequencies, every = self._frequencies(volumes, voxels)
        if one_vs_rest:
            if not self._shares:
                raise ValueError("expected class_frequencies in [0, 1], the share of each channel, got larger numbers.")
            positive = positive * _root_ratio(every, frequencies)
            loss = self.kept(positive + negative * _root_ratio(every, every - frequencies))
        else:
            loss = positive * _root_ratio(frequencies.sum(), frequencies)
        counts = self.kept(voxels) if one_vs_rest else voxels[:, :1]
        return self._mean_or_sum(loss.sum(), counts.sum())

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
        gamma_cross_entropy: likewise; 0.3.
        class_frequencies: f, one number >= 0 per channel, one-vs-rest its share of the voxels; None: those of the batch
            (of all ranks with `sync_batch`).
        smooth_nr: s of Dice's numerator; 1 as in the paper.
        smooth_dr: s of its denominator; likewise.
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

    def __init__(
        self,
        weight_dice: float = 0.8,
        weight_cross_entropy: float = 0.2,
        gamma_dice: float = 0.3,
        gamma_cross_entropy: float = 0.3,
        class_frequencies: Weight = None,
        *,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        **options: Unpack[_Unsmoothed],
    ) -> None:
        super().__init__(**options)
        refuse_negative(weight_dice=weight_dice, weight_cross_entropy=weight_cross_entropy)
        for name, gamma in (("gamma_dice", gamma_dice), ("gamma_cross_entropy", gamma_cross_entropy)):
            if not gamma > 0:
                raise ValueError(f"expected {name} > 0, got {gamma}.")
        self.dice = _LogDice(gamma_dice, smooth_nr=smooth_nr, smooth_dr=smooth_dr, **options)
        self.cross_entropy = _FrequencyCrossEntropy(
            gamma_cross_entropy, class_frequencies, **_for_cross_entropy(options)
        )
        self.weight_dice = weight_dice
        self.weight_cross_entropy = weight_cross_entropy

    def parts(self) -> Iterable[tuple[float, SegmentationLoss]]:
        return (self.weight_dice, self.dice), (self.weight_cross_entropy, self.cross_entropy)


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
    def formula(self) -> VoxelFormula:
        return FocalFormula(self.gamma)

    def terms(self, inputs: LossInputs) -> Terms:
        return *super().terms(inputs), *([self._plain_term(inputs)] if self.asymmetric else [])

    def value(self, inputs: LossInputs) -> Tensor:
        focal = inputs[self._voxel_term(inputs)]
        plain = inputs[self._plain_term(inputs)] if self.asymmetric else focal
        voxels = inputs[TARGET_SUMS][1]
        if self.one_vs_rest(inputs):
            loss, counts = self.kept(self.delta * plain[0] + (1 - self.delta) * focal[1]), self.kept(voxels)
        else:
            foreground, background = self.delta * plain[0][:, 1:], (1 - self.delta) * focal[0][:, :1]
            loss, counts = torch.cat([background, foreground], 1), voxels[:, :1]
        return self._mean_or_sum(loss.sum(), counts.sum())

    def _plain_term(self, inputs: LossInputs) -> tuple[Source, Term]:
        kind = OutcomeSums if self.one_vs_rest(inputs) else TrueClassSums
        return self.source, kind(self.activation(inputs), CrossEntropyFormula())


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
        weight_focal: float = 0.5,
        delta: float = 0.6,
        gamma: float = 0.5,
        asymmetric: bool = False,
        **options: Unpack[RegionOptions],
    ) -> None:
        super().__init__(**options)
        if not 0 <= weight_focal <= 1:
            raise ValueError(f"expected weight_focal in [0, 1], got {weight_focal}.")
        if not 0 < delta < 1:
            raise ValueError(f"expected delta in (0, 1), got {delta}.")
        if not 0 <= gamma < 1:
            raise ValueError(f"expected gamma in [0, 1), got {gamma}.")
        self.focal = _UnifiedFocal(delta, gamma, asymmetric, **_for_cross_entropy(options))
        self.tversky = _UnifiedTversky(delta, gamma, asymmetric, **options)
        self.weight_focal = weight_focal

    def parts(self) -> Iterable[tuple[float, SegmentationLoss]]:
        return (self.weight_focal, self.focal), (1 - self.weight_focal, self.tversky)


def _segmentation_options(options: RegionOptions | _Unsmoothed) -> SegmentationOptions:
    """The options that are not those of region losses alone, nor `weight`, which is for the region part."""
    names = SegmentationOptions.__optional_keys__ - {"weight"}
    return {name: value for name, value in options.items() if name in names}  # type: ignore[return-value]


def _for_cross_entropy(options: RegionOptions | _Unsmoothed) -> SegmentationOptions:
    """Options of a cross-entropy part: a softmax one keeps the background."""
    shared = _segmentation_options(options)
    if not shared.get("sigmoid", False):
        shared["include_background"] = True
    return shared
