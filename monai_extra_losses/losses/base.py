"""The classes every loss derives from: MONAI's options, the checks, the background and the reduction, written once."""

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn

from monai_extra_losses.losses.checks import CudaLabelCheck, PlainData, check_shapes, plain_data
from monai_extra_losses.losses.inputs import Asked, LossInputs, Source
from monai_extra_losses.losses.options import (
    RegionOptions,
    SegmentationOptions,
    ValueRange,
    by_position,
    check_options,
    options_in,
    ranges_of,
    signature_of,
)
from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.ranks import sum_over_ranks
from monai_extra_losses.ops.terms import (
    Activation,
    CountSums,
    ErrorSums,
    OutcomeSums,
    TargetSums,
    TrueClassSums,
    VoxelFormula,
    VoxelMap,
    VoxelSums,
)

# What a loss asks of the pass over the voxels, by the name under which it reads the answer.
Terms = Mapping[str, Asked]
Sums = Mapping[str, Tensor]

_EXACT = ("class_weight", "class_frequencies")  # buffers that keep their precision

TARGET_SUMS: Asked = ("scores", TargetSums())


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
        ignore_index: label whose voxels are as if deleted: a sentinel (255, -1) or a class. (Where a loss reads
            neighbours or distances they belong to no class, and keep their place.) With a target of C
            channels, the voxels of that channel are ignored.
        sync_batch: add the sums over the processes of torch.distributed, so that N ranks give the value, and after
            DistributedDataParallel's averaging the gradient, of one rank with all their samples. Without an initialised
            process group it does nothing. A loss that refuses it is that of the samples of its process: the mean over
            the ranks is another number than the loss of all where ranks have other numbers of samples, or of what
            enters the mean (voxels that count, classes that are present), with `batch=True`, and of `LogHausdorffLoss`,
            the logarithm of a mean.

    Absent classes: a class without a voxel in the target costs 0 where none of it is predicted, and the more of it is
    predicted the more it costs, with a gradient. `absent_class="skip"`, of the losses that are a mean over classes,
    leaves it out. The rule has its limits where a formula does not allow it:

    - `SurfaceLoss` costs nothing for it, nor do `HausdorffLoss` and `LogHausdorffLoss` up to a probability of 0.5, or
      where it fills the volume, as in MONAI: there is no boundary to measure from. `HausdorffERLoss` costs nothing for
      what its erosions remove, and `SurfaceDiceLoss` for what has no rim.
    - `FusedGeneralizedDiceLoss` of a single channel costs nothing for it, as in MONAI; `AverageCalibrationLoss` leaves
      it out by default.
    - `TopKLoss` reads k per cent of the voxels, `LovaszLoss` the largest error, the hinge losses what is within their
      margin: what is beyond that costs no more.
    - `NoiseRobustDiceLoss` costs more for more voxels, but less for surer ones: sum p^gamma / sum p^2.
    - `CorrelationMaximizedStructuralSimilarityLoss` costs more for surer voxels, but not always for more of them: it is
      a mean over those that differ in structure.
    - `CenterlineDiceLoss` counts the voxels of a skeleton, of which a thicker block may have fewer.
    - `CenterlineBoundaryDiceLoss` costs nothing for it up to a probability of 0.5, and reads skeletons likewise.
    - `TopologicalInteractionLoss` costs nothing for what touches nothing that it must not.
    - `SkeletonRecallLoss` is a recall: a class without a skeleton leaves the mean.
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

    keeps: ClassVar[type] = SegmentationOptions  # the options that are its attributes; a compound's are in its parts
    defaults: ClassVar[Mapping[str, Any]] = {}  # of shared options that have others here
    left_out: ClassVar[Mapping[str, str]] = {}  # options that have no meaning for the class, and why
    ranges: ClassVar[Mapping[str, ValueRange]] = {}  # of the numbers that are its own options, as their types say
    in_order: ClassVar[str]  # options that a drop-in also takes by position, in MONAI's order
    class_weight: Tensor | None
    target_gradient = True  # whether a target of C channels may require a gradient
    unsyncable: ClassVar[str | None] = None  # why `sync_batch` cannot work, where it cannot
    _spatial = range(1, 4)

    if TYPE_CHECKING:  # the options, which are attributes

        def __getattr__(self, name: str) -> Any: ...

    def __new__(cls, *args: Any, **options: Any) -> Self:
        if args or options:  # a copy has none
            check_options(cls, args, options)
        return super().__new__(cls)

    def __init__(self, **options: Unpack[SegmentationOptions]) -> None:
        super().__init__()
        known = options_in(self.keeps)
        if unknown := [name for name in options if name not in known]:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {unknown[0]!r}.")
        for name, (_, option) in known.items():
            value = option.check(name, options.get(name, self.defaults.get(name, option.default)))
            if name == "weight":
                self.register_buffer("class_weight", value)
            else:
                setattr(self, name, value)
        if int(self.sigmoid) + int(self.softmax) + int(self.other_act is not None) > 1:
            raise ValueError("Incompatible values: more than 1 of [sigmoid=True, softmax=True, other_act is not None].")
        if self.sync_batch and self.unsyncable is not None:
            raise ValueError(f"expected sync_batch=False, got True: {self.unsyncable}.")
        self._check_labels = CudaLabelCheck()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = signature_of(cls)  # type: ignore[attr-defined]
        if "__init__" in vars(cls):
            cls.ranges = {**cls.ranges, **ranges_of(cls)}
        if "in_order" in vars(cls):
            cls.__init__ = by_position(cls.__init__, cls.in_order.split())  # type: ignore[method-assign]

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
        """The loss of one call's data: what it asks, one pass, then the formula."""
        value = self.value(inputs, inputs.compute(self.terms(inputs)))
        return value.to(torch.float64 if inputs.scores.dtype == torch.float64 else torch.float32)

    @abstractmethod
    def terms(self, inputs: LossInputs) -> Terms:
        """What the loss asks of the data, by name; a compound loss has all of its parts' computed in one pass."""

    @abstractmethod
    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        """The loss, from the answers to `terms`."""

    def prepare(
        self,
        input: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        distance: Tensor | None = None,
        skeleton: Tensor | None = None,
        cells: Tensor | None = None,
    ) -> LossInputs:
        """Check one call's data and wrap it."""
        data = plain_data(input, target, mask, distance, skeleton, cells)
        self.check(data, stacklevel=6)
        return self.wrap(data)

    def check(self, data: PlainData, *, stacklevel: int) -> None:
        """Refuse data that this loss cannot use, and name the options that one channel leaves without effect.

        What labels they hold is seen later. nn.Module adds two frames above `forward`.
        """
        alone = data.scores.ndim > 1 and data.scores.shape[1] == 1  # a target of its own
        for option, default in (("softmax", False), ("to_onehot_y", False), ("include_background", True)):
            if alone and getattr(self, option, default) is not default:
                warnings.warn(f"single channel prediction, `{option}={not default}` ignored.", stacklevel=stacklevel)
        if (
            not torch.compiler.is_compiling()  # which cannot warn in one graph
            and self._buffers.get("class_weight") is not None
            and data.scores.shape[1] - self.weighs_kept < 2
        ):
            warnings.warn("one class counts, `weight` ignored.", stacklevel=stacklevel)
        labels = self.to_onehot_y and not alone
        check_shapes(data, labels=labels, spatial=self._spatial, target_gradient=self.target_gradient)

    def wrap(self, data: PlainData) -> LossInputs:
        """Data that `check` has let through; all losses of the same `to_onehot_y`, `ignore_index` and `other_act`."""
        scores, target, mask, distance, affine, annotated, skeleton, cells = data
        labels = self.to_onehot_y and scores.shape[1] > 1
        if labels and target.device.type != "cpu":  # there the kernels check as they count
            self._check_labels(target, scores.shape[1], self.ignore_index)
        unknown = ~annotated.classes if annotated is not None and annotated.merges else None
        call = CallData(scores, target, mask, labels, self.ignore_index, unknown)
        known = None if annotated is None else annotated.classes
        return LossInputs(call, self.other_act, affine, distance, known, skeleton, cells)

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

    def activation(self, inputs: LossInputs) -> Activation:
        """How this loss reads probabilities of this input."""
        if self.sigmoid:
            return "sigmoid"
        return "softmax" if self.softmax and inputs.channels > 1 else "none"

    def without_background(self, values: Tensor, axis: int = 1) -> Tensor:
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

    def times_weight(self, values: Tensor) -> Tensor:
        """(B, C') values times the weights of the classes."""
        weight = self.weights_for(values.shape[1], values)
        return values if weight is None else values * weight

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
        return sum_over_ranks(sums) if self.sync_batch else sums


def joined(parts: Mapping[str, Terms]) -> Terms:
    """What several losses ask, as one loss asks it."""
    return {f"{part}.{name}": term for part, terms in parts.items() for name, term in terms.items()}


def answers_to(part: str, sums: Sums) -> Sums:
    """The answers to what one of them asks."""
    return {name.removeprefix(f"{part}."): answer for name, answer in sums.items() if name.startswith(f"{part}.")}


SegmentationLoss.__signature__ = signature_of(SegmentationLoss)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Reads:
    """What the formula of a region loss reads beside tp, fp, fn and tn.

    Attributes:
        squares: sum p^2 and sum g^2.
        error_power: q, where it reads sum g |p - g|^q and sum (1-g) |p - g|^q.
        contours: the size of the target's contour.
    """

    squares: bool = False
    error_power: float | None = None
    contours: bool = False


def _asked_for(name: str, option: str) -> Any:
    """A sum of `SoftCounts` that is there where the loss asks for it by an option of its `Reads`."""

    def read(counts: "SoftCounts") -> Tensor:
        if name not in counts.sums:
            raise AttributeError(f"expected a loss whose formula reads {name} to have reads = Reads({option}).")
        return counts.sums[name]

    return property(read)


class SoftCounts:
    """Soft counts of each sample and class, (B, C), or (1, C) with `batch=True`; float64.

    Args:
        sums: tp = sum pg, p = sum p, g = sum g, n = sum 1, and what else the loss names in its `reads`.

    Attributes:
        tp: sum pg.
        p: sum p, TP + FP.
        g: sum g, TP + FN.
        fp: sum p(1-g).
        fn: sum (1-p)g.
        tn: sum (1-p)(1-g).
        p_squared: sum p^2.
        g_squared: sum g^2.
        positive_error: sum g |p - g|^q.
        negative_error: sum (1-g) |p - g|^q.
        contour: number of target voxels with a face neighbour outside the class.
    """

    p_squared: Tensor = _asked_for("p_squared", "squares=True")
    g_squared: Tensor = _asked_for("g_squared", "squares=True")
    positive_error: Tensor = _asked_for("positive_error", "error_power=q")
    negative_error: Tensor = _asked_for("negative_error", "error_power=q")
    contour: Tensor = _asked_for("contour", "contours=True")

    def __init__(self, sums: Mapping[str, Tensor]) -> None:
        self.tp, self.p, self.g, self.sums = sums["tp"], sums["p"], sums["g"], sums

    @property  # a cached one has a lock, which torch.compile cannot trace
    def fp(self) -> Tensor:
        return self.p - self.tp

    @property
    def fn(self) -> Tensor:
        return self.g - self.tp

    @property
    def tn(self) -> Tensor:
        return self.sums["n"] - self.p - self.fn


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

    keeps = RegionOptions
    reads = Reads()

    def __init__(self, **options: Unpack[RegionOptions]) -> None:
        super().__init__(**options)  # type: ignore[misc]  # it keeps more than its base
        if self.sync_batch and not self.batch:
            raise ValueError(
                "expected batch=True with sync_batch=True, got batch=False: counts of samples are not summed."
            )

    @abstractmethod
    def formula(self, c: SoftCounts) -> Tensor:
        """(B, C) loss of each sample and class."""

    def ratio(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """The smoothed quotient."""
        quotient: Tensor = (numerator + self.smooth_nr) / (denominator + self.smooth_dr)
        return quotient

    def terms(self, inputs: LossInputs) -> Terms:
        activation, reads = self.activation(inputs), self.reads
        # Sums of squares suit soft targets as they are, and with labels min(p, g) = pg for any p in [0, 1].
        soft = self.soft_label and not reads.squares and not (inputs.labels and activation != "none")
        counts = CountSums(activation, squares=reads.squares, soft_overlap=soft)
        terms: dict[str, Asked] = {"counts": ("activated", counts), "target": TARGET_SUMS}
        if reads.error_power is not None:
            terms["errors"] = "activated", ErrorSums(activation, reads.error_power)
        if reads.contours:
            inputs.contour_sizes()  # before the pass, which leaves a tensor as large as the scores
        return terms

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        tables, names = [sums["counts"], sums["target"]], ["tp", "p", "g", "n"]
        if self.reads.squares:
            names[2:2] = "p_squared", "g_squared"
        if self.reads.error_power is not None:
            tables.append(sums["errors"])
            names += "positive_error", "negative_error"
        if self.reads.contours:
            tables.append(inputs.contour_sizes().unsqueeze(0))
            names.append("contour")
        if self.batch:
            tables = [self.summed_over_ranks(torch.cat(tables).sum(1, keepdim=True))]
        if not self.include_background:
            tables = [self.without_background(table, axis=2) for table in tables]
        rows = dict(zip(names, (row for table in tables for row in table.unbind()), strict=True))
        in_mean = self.pairs_in_mean(inputs, rows["g"], rows["n"])
        if in_mean is not None:
            # A perfect voxel in place of what leaves the mean: 0/0 there would be NaN in the gradient of the rest. NaN
            # stays: what is not a number must not pass for an absent class.
            in_mean = in_mean | torch.stack(list(rows.values())).isnan().any(0)
            rows = {name: torch.where(in_mean, row, 1) for name, row in rows.items()}
        values = self.formula(SoftCounts(rows))
        if self.class_weight is not None:
            values = self.times_weight(values)
        if in_mean is not None:  # 0/0 of a perfect voxel without smoothing
            values = torch.where(in_mean[:, : values.shape[1]], values, 0)
        return self.reduced_pairs(values, in_mean, inputs.axes)

    def pairs_in_mean(self, inputs: LossInputs, g: Tensor, n: Tensor) -> Tensor | None:
        """Which samples and classes enter the mean, from (B, C') sum g and sum 1; None for all."""
        if self.absent_class == "skip":
            return g > 0
        # Of a class without annotation no voxel counts.
        return None if inputs.data.counts_all and inputs.annotated is None else n > 0


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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "formula" in vars(cls):  # its name in earlier versions; it would silently be that of the base
            raise TypeError(f"expected {cls.__name__} to name its formula voxel_formula, got formula: rename it.")

    source: Source = "activated"
    every_channel = False  # whether every channel is a decision of its own under softmax too

    @property
    @abstractmethod
    def voxel_formula(self) -> VoxelFormula:
        """Loss of a voxel whose true outcome has log-probability `log_pt`; elementwise.

        One of `ops.formulas`, a frozen dataclass like them, or a method `voxel_formula(self, log_pt)`. What states no
        slope is differentiated. (A method has no text, so a compiled loss takes the memory of plain torch.)
        """

    @property
    def by_class(self) -> bool:
        """Whether the sums of the classes are needed apart."""
        return self.class_weight is not None

    @property
    def weighs_kept(self) -> bool:
        return super().weighs_kept and (self.every_channel or self.sigmoid)  # else the background counts

    @property
    def keeps_map(self) -> bool:
        """Whether the loss of every voxel is needed."""
        return bool(self.reduction == "none")

    def one_vs_rest(self, inputs: LossInputs) -> bool:
        """Whether every channel is a decision of its own."""
        return self.every_channel or self.sigmoid or inputs.channels == 1

    def terms(self, inputs: LossInputs) -> Terms:
        losses = self.voxel_map(inputs) if self.keeps_map else self.voxel_sums(inputs)
        return {"losses": (self.source, losses), "target": TARGET_SUMS}

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        if self.keeps_map:
            return self.without_background(sums["losses"]) if self.one_vs_rest(inputs) else sums["losses"]
        return self.reduced(inputs, sums, *sums["losses"])

    def voxel_sums(self, inputs: LossInputs) -> VoxelSums:
        """What is summed over the voxels."""
        activation = self.activation(inputs)
        if self.one_vs_rest(inputs):
            return OutcomeSums(activation, self.voxel_formula)
        return TrueClassSums(activation, self.voxel_formula, by_class=self.by_class)

    def voxel_map(self, inputs: LossInputs) -> VoxelMap:
        """The map of voxel losses, times the class weights."""
        weight = self.weight_of_channels(inputs)
        return VoxelMap(self.voxel_sums(inputs), weight, weight)

    def weight_of_channels(self, inputs: LossInputs) -> Tensor | None:
        """(C,) weights of all channels; 1 for a background that is left out."""
        dropped = self.one_vs_rest(inputs) and not self.include_background and inputs.channels > 1
        weight = self.weights_for(inputs.channels - dropped, inputs.exact())
        if weight is not None and dropped:
            weight = torch.cat([weight.new_ones(1), weight])
        return weight

    def reduced(self, inputs: LossInputs, sums: Sums, positive: Tensor, negative: Tensor) -> Tensor:
        """Reduce (B, C) sums of the losses of positive and negative decisions."""
        if self.one_vs_rest(inputs):
            loss = self.without_background(positive + negative)
        else:
            loss = positive.sum(1, keepdim=True) if self.class_weight is None else positive
        return self.mean_or_sum(self.times_weight(loss).sum(), self.divisor(inputs, sums))

    def divisor(self, inputs: LossInputs, sums: Sums) -> Tensor:
        """What the mean divides by: the voxels that count, times their class weights."""
        weighs_voxels = self.class_weight is not None and not self.one_vs_rest(inputs)
        return self.times_weight(sums["target"][0] if weighs_voxels else self.counts(inputs, sums)).sum()

    def counts(self, inputs: LossInputs, sums: Sums) -> Tensor:
        """How many voxels count: (B, C') of each channel kept one-vs-rest, else (B, 1)."""
        voxels = sums["target"][1]
        return self.without_background(voxels) if self.one_vs_rest(inputs) else voxels[:, :1]

    def mean_or_sum(self, total: Tensor, divisor: Tensor) -> Tensor:
        """The reduced loss; 0, with zero gradient, where nothing counts."""
        if self.sync_batch:
            total, divisor = sum_over_ranks(torch.stack([total, divisor]))
        if self.reduction == "sum":
            return total
        return torch.where((divisor > 0) | total.isnan(), total / torch.where(divisor > 0, divisor, 1), 0)
