"""The classes every loss derives from: MONAI's options, the checks, the background and the reduction, written once."""

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypedDict, Unpack, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_extra_losses.losses.inputs import (
    CudaLabelCheck,
    LossInputs,
    Source,
    check_shapes,
    one_channel,
    plain_data,
)
from monai_extra_losses.losses.options import check_options
from monai_extra_losses.ops.numbers import has_numbers
from monai_extra_losses.ops.terms import (
    Activation,
    CountSums,
    ErrorSums,
    OutcomeSums,
    TargetSums,
    Term,
    TrueClassSums,
    VoxelFormula,
    VoxelMap,
    VoxelSums,
    sum_dtype,
)

Reduction = Literal["mean", "sum", "none"]
AbsentClass = Literal["smooth", "skip"]
Weight = float | Sequence[float] | Tensor | None
OtherAct = Callable[[Tensor], Tensor] | None
Terms = tuple[tuple[Source, Term], ...]

_EXACT = ("class_weight", "class_frequencies")  # buffers that keep their precision

TARGET_SUMS: tuple[Source, Term] = ("scores", TargetSums())


class SegmentationOptions(TypedDict, total=False):
    """Options of every segmentation loss; `SegmentationLoss` says what they mean."""

    include_background: bool
    to_onehot_y: bool
    sigmoid: bool
    softmax: bool
    other_act: OtherAct
    reduction: Reduction
    weight: Weight
    ignore_index: int | None
    sync_batch: bool


class RegionOptions(SegmentationOptions, total=False):
    """Options of every region loss; `RegionLoss` says what they mean."""

    batch: bool
    smooth_nr: float
    smooth_dr: float
    soft_label: bool
    absent_class: AbsentClass


@dataclass(frozen=True, slots=True)
class SoftCounts:
    """Soft counts of each sample and class, (B, C), or (1, C) with `batch=True`; float64.

    Attributes:
        tp: sum pg.
        fp: sum p(1-g).
        fn: sum (1-p)g.
        tn: sum (1-p)(1-g).
        p_squared: sum p^2, for a loss with `squares`.
        g_squared: sum g^2, likewise.
        positive_error: sum g |p - g|^q, for a loss with `error_power` q.
        negative_error: sum (1-g) |p - g|^q, likewise.
        contour: number of target voxels with a face neighbour outside the class, for a loss with `contours`.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor
    p_squared: Tensor | None = None
    g_squared: Tensor | None = None
    positive_error: Tensor | None = None
    negative_error: Tensor | None = None
    contour: Tensor | None = None


def one_of(name: str, value: object, choices: Any) -> Any:
    """`value` as the plain string of one of the literals in `choices`; MONAI's enums are strings too."""
    allowed = get_args(choices)
    text = getattr(value, "value", value)
    if text not in allowed:
        raise ValueError(f"Unsupported {name}: {value}, available options are {list(allowed)}.")
    return text


def refuse_negative(**numbers: float) -> None:
    """Refuse numbers below 0, and NaN, by name."""
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"{name} should be no less than 0.0, got {number}.")


def class_weights(weight: Weight, name: str = "weight") -> Tensor | None:
    """A number, list, tuple or tensor as a float64 buffer of zero or one axes.

    Raises:
        ValueError: negative weights, or a tensor of more than one axis.
    """
    if weight is None:
        return None
    device = weight.device if isinstance(weight, Tensor) else torch.get_default_device()
    if device.type == "meta" and not isinstance(weight, Tensor):  # a model that is built there would lose the numbers
        device = torch.device("cpu")
    tensor = torch.as_tensor(weight, dtype=sum_dtype(device), device=device).detach().clone()
    if tensor.ndim > 1:
        raise ValueError(f"expected a {name} of one number or one per class, got shape {tuple(tensor.shape)}.")
    if has_numbers(tensor) and not bool((tensor >= 0).all()):  # NaN is not either
        raise ValueError(f"the value/values of the `{name}` should be no less than 0, got {tensor.tolist()}.")
    return tensor


def _full_signature(cls: type) -> inspect.Signature:
    """Signature of a class with its bases' options spelled out in place of `**options`."""
    own = inspect.signature(vars(cls).get("__init__", cls.__init__))  # type: ignore[misc]
    parameters = [p for p in own.parameters.values() if p.name not in {"self", *cls.left_out}]  # type: ignore[attr-defined]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        return own.replace(parameters=parameters)
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in named} | cls.left_out.keys()  # type: ignore[attr-defined]
    base = cls.options_of or cls.__mro__[1]  # type: ignore[attr-defined]
    inherited = inspect.signature(base).parameters.values()  # already spelled out
    named += [p.replace(kind=p.KEYWORD_ONLY) for p in inherited if p.name not in names]
    return own.replace(parameters=named)


class SegmentationLoss(nn.Module):
    """Base of the losses that compare (B, C, *spatial) predictions with a target.

    Args:
        include_background: False drops channel 0 of the result. The softmax always runs over all channels.
        to_onehot_y: the target is a map of labels (B, 1, *spatial), of any integer, float or bool dtype.
        sigmoid: apply a sigmoid to the input: every channel is a decision of its own.
        softmax: apply a softmax over the channels. Ignored, with a warning, for one channel.
        other_act: another activation, given the whole input. With none of the three the input is probabilities.
        reduction: "mean", "sum" or "none"; the class says over what.
        weight: one number >= 0, or one per class; the class says how it enters.
        ignore_index: label whose voxels are as if deleted: a sentinel (255, -1) or a class. With a target of C
            channels, the voxels of that channel are ignored.
        sync_batch: add the sums over the processes of torch.distributed, so that N ranks give the value, and after
            DistributedDataParallel's averaging the gradient, of one rank with all their samples. Without an initialised
            process group it does nothing.

    Absent classes: a class without a voxel in the target costs 0 where none of it is predicted, and the more of it is
    predicted the more it costs, with a gradient. `absent_class="skip"`, of the losses that are a mean over classes,
    leaves it out. The rule has its limits where a formula does not allow it:

    - `SurfaceLoss` costs nothing for it, nor do `HausdorffLoss` and `LogHausdorffLoss` up to a probability of 0.5, as
      in MONAI: there is no boundary to measure from. `HausdorffERLoss` costs nothing for what its erosions remove.
    - `TopKLoss` reads k per cent of the voxels, `LovaszLoss` the largest error, the hinge losses what is within their
      margin: what is beyond that costs no more.
    - `NoiseRobustDiceLoss` costs more for more voxels, but less for surer ones: sum p^gamma / sum p^2.
    - `CorrelationMaximizedStructuralSimilarityLoss` costs more for surer voxels, but not always for more of them: it is
      a mean over those that differ in structure.
    - A cross-entropy of probabilities (no activation) reads what is missing from the true class instead.

    Shapes:
        input (B, C, *spatial) with 1, 2 or 3 spatial axes, target (B, 1, *spatial) with `to_onehot_y`, else
        (B, C, *spatial); mask (B, 1, *spatial), bool or float weights per voxel. All memory formats, MetaTensor too.
        The transforms of torch.func take a loss, hessian too, at the memory of plain torch; tensors without numbers
        (the meta device, FakeTensorMode) get shapes; a device without float64 (Apple's) adds up in float32.

    Raises:
        TypeError: an option, input or mask of the wrong type.
        ValueError: an option out of range, more than one activation, labels outside 0..C-1.
        ShapeMismatchError: shapes that do not fit (a ValueError and, as in MONAI, an AssertionError).
    """

    left_out: ClassVar[Mapping[str, str]] = {}  # options that have no meaning for the class, and why
    options_of: ClassVar[type | None] = None  # whose options `**options` are, where not those of the next base
    class_weight: Tensor | None
    target_gradient = True  # whether a target of C channels may require a gradient
    unsyncable: ClassVar[str | None] = None  # why `sync_batch` cannot work, where it cannot
    _spatial = range(1, 4)

    def __new__(cls, *args: Any, **options: Any) -> Self:
        for name, reason in cls.left_out.items():
            if name in options:
                raise TypeError(f"{cls.__name__} has no option {name!r}: {reason}.")
        if (args or options) and cls.__init__.__module__.startswith(
            __package__
        ):  # else its options are its own business
            signature = inspect.signature(cls)
            try:
                signature.bind(*args, **options)
            except TypeError as error:  # the constructor would name a base, or a part
                known = ", ".join(signature.parameters)
                raise TypeError(f"{cls.__name__}: {error}; its options are {known}.") from None
        check_options(cls, args, options)
        return super().__new__(cls)

    def __init__(
        self,
        *,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherAct = None,
        reduction: Reduction = "mean",
        weight: Weight = None,
        ignore_index: int | None = None,
        sync_batch: bool = False,
    ) -> None:
        super().__init__()
        if other_act is not None and not callable(other_act):
            raise TypeError(f"other_act must be None or callable but is {type(other_act).__name__}.")
        if int(sigmoid) + int(softmax) + int(other_act is not None) > 1:
            raise ValueError("Incompatible values: more than 1 of [sigmoid=True, softmax=True, other_act is not None].")
        if sync_batch and self.unsyncable is not None:
            raise ValueError(f"expected sync_batch=False, got True: {self.unsyncable}.")
        if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
            raise TypeError(f"expected ignore_index to be an int or None, got {ignore_index!r}.")
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.reduction: str = one_of("reduction", reduction, Reduction)
        self.ignore_index = ignore_index
        self.sync_batch = sync_batch
        self.register_buffer("class_weight", class_weights(weight))
        self._check_labels = CudaLabelCheck()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _full_signature(cls)  # type: ignore[attr-defined]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take one weight for all classes from a state that has it once for each, as MONAI's has it after a call."""
        name = f"{prefix}class_weight"
        given = state_dict.get(name)
        if self.class_weight is not None and self.class_weight.ndim == 0 and given is not None and given.ndim == 1:
            if given.numel() and bool((given == given[0]).all()):
                state_dict[name] = given[0]
            else:
                self.class_weight = self.class_weight.new_empty(given.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the class weights with the module, and keep their precision: a half has no 1e-8, and no 1e5."""
        exact = {name: buffer for name in _EXACT if (buffer := self._buffers.get(name)) is not None}
        self._buffers.update({name: buffer.to(torch.float32) for name, buffer in exact.items()})  # for Apple's GPUs
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            assert moved is not None
            dtype = sum_dtype(moved.device)
            self._buffers[name] = moved.to(dtype) if buffer.is_meta else buffer.to(moved.device, dtype)
        return self

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            input: (B, C, *spatial) scores or probabilities, of any float dtype.
            target: (B, 1, *spatial) labels with `to_onehot_y`, else (B, C, *spatial).
            mask: (B, 1, *spatial) bool, or float weights per voxel; a voxel of weight 0 is as if deleted.

        Returns:
            A scalar, or with reduction="none" what the class says; float32, or float64 for a float64 input.
        """
        return self.computed(self.prepare(input, target, mask))

    def computed(self, inputs: LossInputs) -> Tensor:
        """The loss of one call's data: one pass, then the formula."""
        inputs.compute(self.terms(inputs))
        return self.value(inputs).to(torch.float64 if inputs.scores.dtype == torch.float64 else torch.float32)

    @abstractmethod
    def terms(self, inputs: LossInputs) -> Terms:
        """What the loss reads of the data, so that a compound loss can compute all of it in one pass."""

    @abstractmethod
    def value(self, inputs: LossInputs) -> Tensor:
        """The loss, from the results in `inputs`."""

    def prepare(
        self, input: Tensor, target: Tensor, mask: Tensor | None = None, distance: Tensor | None = None
    ) -> LossInputs:
        """Check one call's data and wrap it."""
        affine = getattr(target, "affine", None)  # of a MetaTensor
        scores, target, mask, distance = plain_data(input, target, mask, distance)
        self.check(scores, target, mask, distance, stacklevel=7)
        return self.wrap(scores, target, mask, distance, affine)

    def check(
        self, scores: Tensor, target: Tensor, mask: Tensor | None, distance: Tensor | None, *, stacklevel: int
    ) -> None:
        """Refuse plain tensors that this loss cannot use; what labels they hold is seen later."""
        if one_channel(scores):
            self.warn_of_one_channel(stacklevel)
        check_shapes(
            scores,
            target,
            mask,
            distance,
            labels=self.to_onehot_y and not one_channel(scores),
            spatial=self._spatial,
            target_gradient=self.target_gradient,
        )

    def wrap(
        self,
        scores: Tensor,
        target: Tensor,
        mask: Tensor | None,
        distance: Tensor | None,
        affine: Tensor | None,
    ) -> LossInputs:
        """Data that `check` has let through; all losses of the same `to_onehot_y`, `ignore_index` and `other_act`."""
        labels = self.to_onehot_y and not one_channel(scores)
        if labels:
            self._check_labels(target, scores.shape[1], self.ignore_index)
        return LossInputs(
            scores,
            target,
            mask,
            labels=labels,
            ignore_index=self.ignore_index,
            other_act=self.other_act,
            affine=affine,
            distance=distance,
        )

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            default = getattr(parameter.default, "value", parameter.default)  # of an enum
            value = getattr(self, "class_weight" if name == "weight" else name, default)  # else a part has it
            if isinstance(value, Tensor):
                value = value.tolist()
            if isinstance(value, nn.Module) or value == default:  # a module is shown as a child
                continue
            shown.append(f"{name}={getattr(value, '__name__', repr(value))}")
        return ", ".join(shown)

    def warn_of_one_channel(self, stacklevel: int) -> None:
        """Name the options that one channel leaves without effect; nn.Module adds two frames above `forward`."""
        for option, default in (("softmax", False), ("to_onehot_y", False), ("include_background", True)):
            if getattr(self, option, default) is not default:
                warnings.warn(f"single channel prediction, `{option}={not default}` ignored.", stacklevel=stacklevel)

    def activation(self, inputs: LossInputs) -> Activation:
        """How this loss reads probabilities of this input."""
        if self.sigmoid:
            return "sigmoid"
        return "softmax" if self.softmax and inputs.scores.shape[1] > 1 else "none"

    def kept(self, values: Tensor, axis: int = 1) -> Tensor:
        """The channels of a result that count."""
        if self.include_background or values.shape[axis] == 1:
            return values
        return values.narrow(axis, 1, values.shape[axis] - 1)

    def weights_for(self, num_classes: int, like: Tensor) -> Tensor | None:
        """(num_classes,) weights in the dtype of `like`; None without, and for one class, as MONAI."""
        if self.class_weight is None or num_classes == 1:
            return None
        weight = self.class_weight.to(like)
        if weight.ndim == 0:
            return weight.expand(num_classes)
        if weight.shape[0] != num_classes:
            dropped = ". If `include_background=False`, the weight should not include the background category class 0"
            raise ValueError(
                "The length of the `weight` sequence should be the same as the number of classes"
                f"{dropped * self.weighs_kept}: expected {num_classes} numbers, got {weight.shape[0]}."
            )
        return weight

    @property
    def weighs_kept(self) -> bool:
        """Whether `weight` has numbers for the classes kept alone, where the background is left out."""
        return not self.include_background

    def reduced_pairs(self, values: Tensor, keep: Tensor | None, spatial_axes: int) -> Tensor:
        """Reduce (B, C') values of samples and classes, of which those in `keep` (B, C') or (B, 1) enter the mean."""
        if keep is not None:
            keep = keep[:, : values.shape[1]]  # a loss over all classes has one value per sample
            values = torch.where(keep | values.isnan(), values, 0)
        if self.reduction == "none":
            return values[(...,) + (None,) * spatial_axes]
        if self.reduction == "sum":
            return values.sum()
        return values.mean() if keep is None else values.sum() / keep.expand_as(values).sum().clamp_min(1)

    def summed_over_ranks(self, sums: Tensor) -> Tensor:
        """`sums` added over the processes, with gradient, when `sync_batch`."""
        if not (self.sync_batch and dist.is_available() and dist.is_initialized()):
            return sums
        return _SumOverRanks.apply(sums)


class _SumOverRanks(torch.autograd.Function):
    """The sum over all processes. The loss of each depends on it: their gradients are added, too."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        return _all_reduced(sums)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _all_reduced(grad)


def _all_reduced(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


SegmentationLoss.__signature__ = _full_signature(SegmentationLoss)  # type: ignore[attr-defined]


class RegionLoss(SegmentationLoss):
    """Base of the losses that are a formula of the soft counts of each sample and class.

    Args:
        batch: add the counts over the batch before the formula.
        smooth_nr: added to the numerator of a ratio.
        smooth_dr: added to its denominator.
        soft_label: the target is soft: overlaps are sum min(p, g), so that a soft target is a perfect prediction of
            itself.
        absent_class: of a class without a voxel in the target. "smooth": it costs what the formula says, 0 where none
            of it is predicted (MONAI's behaviour: a ratio of the smoothing terms, soon close to 1). "skip": it leaves
            the mean.
        **options: see `SegmentationLoss`. `weight` multiplies the loss of each class kept and is not normalised.
            `sync_batch` needs `batch=True`. "mean" is over samples and classes kept; a sample in which everything is
            ignored leaves it. "none" gives (B, C', 1, ..), or (1, C', 1, ..) with `batch`.
    """

    def __init__(
        self,
        *,
        batch: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        soft_label: bool = False,
        absent_class: AbsentClass = "smooth",
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        if self.sync_batch and not batch:
            raise ValueError(
                "expected batch=True with sync_batch=True, got batch=False: counts of samples are not summed."
            )
        refuse_negative(smooth_nr=smooth_nr, smooth_dr=smooth_dr)
        self.batch = batch
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.soft_label = soft_label
        self.absent_class = one_of("absent_class", absent_class, AbsentClass)

    error_power: float | None = None  # q, where the formula reads sum |p - g|^q
    contours = False  # whether it reads the size of the target's contour

    @property
    def squares(self) -> bool:
        """Whether the formula reads sum p^2 and sum g^2."""
        return False

    @abstractmethod
    def formula(self, c: SoftCounts) -> Tensor:
        """(B, C) loss of each sample and class."""

    def ratio(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """The smoothed quotient."""
        return (numerator + self.smooth_nr) / (denominator + self.smooth_dr)

    def terms(self, inputs: LossInputs) -> Terms:
        if self.contours:
            inputs.contour_sizes()  # before the pass, which leaves a tensor as large as the scores
        errors = [] if self.error_power is None else [self._error_term(inputs)]
        return self._count_term(inputs), TARGET_SUMS, *errors

    def value(self, inputs: LossInputs) -> Tensor:
        rows = [inputs[self._count_term(inputs)], inputs[TARGET_SUMS]]
        if self.error_power is not None:
            rows.append(inputs[self._error_term(inputs)])
        if self.contours:
            rows.append(inputs.contour_sizes().unsqueeze(0))
        first = len(rows[0])  # the row of sum g, before that of sum 1
        parts = torch.cat(rows)
        if self.batch:
            parts = self.summed_over_ranks(parts.sum(1, keepdim=True))
        parts = self.kept(parts, axis=2)
        keep = self.counted(inputs, *parts[first : first + 2])
        if keep is not None:
            # A perfect voxel in place of what leaves the mean: 0/0 there would be NaN in the gradient of the rest. NaN
            # stays: what is not a number must not pass for an absent class.
            keep = keep | parts.isnan().any(0)
            parts = torch.where(keep, parts, 1)
        kept = iter(parts)
        tp, p = next(kept), next(kept)
        extras: dict[str, Tensor] = {}
        if self.squares:
            extras |= {"p_squared": next(kept), "g_squared": next(kept)}
        g, n = next(kept), next(kept)
        if self.error_power is not None:
            extras |= {"positive_error": next(kept), "negative_error": next(kept)}
        if self.contours:
            extras["contour"] = next(kept)
        values = self.formula(SoftCounts(tp, p - tp, g - tp, n - p - g + tp, **extras))
        weight = self.weights_for(values.shape[1], values)
        if weight is not None:
            values = values * weight
        if keep is not None:  # 0/0 of a perfect voxel without smoothing
            values = torch.where(keep[:, : values.shape[1]], values, 0)
        return self.reduced_pairs(values, keep, inputs.scores.ndim - 2)

    def counted(self, inputs: LossInputs, g: Tensor, n: Tensor) -> Tensor | None:
        """Which samples and classes enter the mean, from (B, C') sum g and sum 1; None for all."""
        if self.absent_class == "skip":
            return g > 0
        return None if inputs.counts_all else n > 0

    def _error_term(self, inputs: LossInputs) -> tuple[Source, Term]:
        assert self.error_power is not None
        return "activated", ErrorSums(self.activation(inputs), self.error_power)

    def _count_term(self, inputs: LossInputs) -> tuple[Source, Term]:
        activation = self.activation(inputs)
        # Sums of squares suit soft targets as they are, and with labels min(p, g) = pg for any p in [0, 1].
        soft = self.soft_label and not self.squares and not (inputs.labels and activation != "none")
        return "activated", CountSums(activation, squares=self.squares, soft_overlap=soft)


class DistributionLoss(SegmentationLoss):
    """Base of the losses that are a formula of the log-probability of each voxel's true class.

    Args:
        **options: see `SegmentationLoss`. With `softmax`, or probabilities of several channels, a voxel has one true
            class; with `sigmoid`, or one channel, every channel is a decision of its own. `weight` has one number per
            class of the input and is normalised: sum w l / sum w, torch's rule. "mean" is over all voxels of the batch
            that count (and over the channels kept, one-vs-rest). "none" gives the loss of each voxel, (B, 1, *spatial),
            or (B, C', *spatial) one-vs-rest; 0 where a voxel does not count.
    """

    def __init__(self, **options: Unpack[SegmentationOptions]) -> None:
        super().__init__(**options)
        if self.softmax and not self.include_background and not self.every_channel:
            warnings.warn(
                f"`include_background=False` has no effect on {type(self).__name__} with softmax: a voxel of "
                "background has a true class too (mask it, or give it the weight 0).",
                stacklevel=3,
            )

    source: Source = "activated"
    every_channel = False  # whether every channel is a decision of its own under softmax too

    @property
    @abstractmethod
    def formula(self) -> VoxelFormula:
        """Loss of a voxel whose true outcome has log-probability `log_pt`; elementwise.

        One of `ops.formulas`, or a method `formula(self, log_pt)`, which is differentiated.
        """

    @property
    def by_class(self) -> bool:
        """Whether the sums of the classes are needed apart."""
        return self.class_weight is not None

    @property
    def weighs_kept(self) -> bool:
        return super().weighs_kept and (self.every_channel or self.sigmoid)  # else the background counts

    def one_vs_rest(self, inputs: LossInputs) -> bool:
        """Whether every channel is a decision of its own."""
        return self.every_channel or self.sigmoid or inputs.scores.shape[1] == 1

    def terms(self, inputs: LossInputs) -> Terms:
        return self._voxel_term(inputs), TARGET_SUMS

    def value(self, inputs: LossInputs) -> Tensor:
        result = inputs[self._voxel_term(inputs)]
        if self.keeps_map:
            return self.kept(result) if self.one_vs_rest(inputs) else result
        return self._reduced(inputs, *result)

    @property
    def keeps_map(self) -> bool:
        """Whether the loss of every voxel is needed."""
        return self.reduction == "none"

    def sums(self, inputs: LossInputs) -> VoxelSums:
        """What is summed over the voxels."""
        activation = self.activation(inputs)
        if self.one_vs_rest(inputs):
            return OutcomeSums(activation, self.formula)
        return TrueClassSums(activation, self.formula, by_class=self.by_class)

    def voxel_map(self, inputs: LossInputs) -> VoxelMap:
        """The map of voxel losses, times the class weights."""
        weight = self._weight_of_channels(inputs)
        return VoxelMap(self.sums(inputs), weight, weight)

    def _weight_of_channels(self, inputs: LossInputs) -> Tensor | None:
        """(C,) weights of all channels; 1 for a background that is left out."""
        channels = inputs.scores.shape[1]
        dropped = self.one_vs_rest(inputs) and not self.include_background and channels > 1
        weight = self.weights_for(channels - dropped, inputs.exact())
        if weight is not None and dropped:
            weight = torch.cat([weight.new_ones(1), weight])
        return weight

    def _voxel_term(self, inputs: LossInputs) -> tuple[Source, Term]:
        if self.keeps_map:
            return inputs.remember(self, lambda: (self.source, self.voxel_map(inputs)))
        return self.source, self.sums(inputs)

    def _reduced(self, inputs: LossInputs, positive: Tensor, negative: Tensor) -> Tensor:
        """Reduce (B, C) sums of the losses of positive and negative decisions."""
        if self.one_vs_rest(inputs):
            loss = self.kept(positive + negative)
        else:
            loss = positive.sum(1, keepdim=True) if self.class_weight is None else positive
        weight = self.weights_for(loss.shape[1], loss)
        return self._mean_or_sum((loss if weight is None else loss * weight).sum(), self._count(inputs))

    def _count(self, inputs: LossInputs) -> Tensor:
        """What the mean divides by: the voxels that count, times their class weights."""
        volumes, voxels = inputs[TARGET_SUMS]
        if self.one_vs_rest(inputs):
            counts = self.kept(voxels)
        else:
            counts = voxels[:, :1] if self.class_weight is None else volumes
        weight = self.weights_for(counts.shape[1], counts)
        return (counts if weight is None else counts * weight).sum()

    def _mean_or_sum(self, total: Tensor, count: Tensor) -> Tensor:
        total, count = self.summed_over_ranks(torch.stack([total, count]))
        if self.reduction == "sum":
            return total
        # Nothing kept: 0, with zero gradient.
        return torch.where((count > 0) | total.isnan(), total / torch.where(count > 0, count, 1), 0)
