"""The data of one call, shared by the parts of a compound loss: checked once, each sum computed at most once."""

import inspect
import sys
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from monai_extra_losses.ops.call_data import CallData, Voxels
from monai_extra_losses.ops.contours import contour_sizes
from monai_extra_losses.ops.distance import SpacingOption, signed_distance, spacing_of_affine
from monai_extra_losses.ops.fused_sums import fused_sums, whole
from monai_extra_losses.ops.numbers import has_numbers, is_fake
from monai_extra_losses.ops.terms import Activation, Term, probabilities, sum_dtype
from monai_extra_losses.ops.wrong_targets import expected_labels, wrong_labels

Source = Literal["scores", "activated"]


class ShapeMismatchError(ValueError, AssertionError):
    """Shapes that do not fit. MONAI raises AssertionError there, so code that catches either keeps working."""


class LossInputs:
    """Lazy results for one call.

    Args:
        scores: (B, C, *spatial) what the network gave.
        target: (B, 1, *spatial) labels when `labels`, else (B, C, *spatial).
        mask: (B, 1, *spatial) bool or float, or None.
        labels: whether `target` holds labels.
        ignore_index: label or channel whose voxels do not count.
        other_act: activation of the user; applied to the whole input, once, when a term reads its result.
        affine: (4, 4), or one per sample (B, 4, 4), of a target that knows where its voxels are.
        distance: (B, C, *spatial) signed distances of the target's classes, where the caller has them.
    """

    def __init__(
        self,
        scores: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        *,
        labels: bool,
        ignore_index: int | None = None,
        other_act: Callable[[Tensor], Tensor] | None = None,
        affine: Tensor | None = None,
        distance: Tensor | None = None,
    ) -> None:
        self.scores, self.target, self.mask = scores, target, mask
        self.labels, self.ignore_index, self.other_act = labels, ignore_index, other_act
        self._results: dict[tuple[Source, Term], Tensor] = {}
        self._terms: dict[object, tuple[Source, Term]] = {}
        self._contour_sizes: Tensor | None = None
        self.affine, self.distance = affine, distance
        self._distances: dict[object, Tensor] = {}
        self._activated_scores: Tensor | None = None

    @property
    def counts_all(self) -> bool:
        """Whether every voxel counts 1: no mask, nothing ignored, and there is any."""
        return self.scores.shape[0] > 0 and self._data(self.scores).counts_all

    def exact(self) -> Tensor:
        """An empty tensor on the device, in the dtype of sums: what factors of voxels are made like."""
        return self.scores.new_empty(0, dtype=sum_dtype(self.scores.device))

    def compute(self, terms: Iterable[tuple[Source, Term]]) -> None:
        """Compute what is not there yet, in one pass for each source."""
        missing = [key for key in dict.fromkeys(map(self._key, terms)) if key not in self._results]
        for source in dict.fromkeys(source for source, _ in missing):
            wanted = [term for key, term in missing if key == source]
            results = fused_sums(self._data(self._read(source)), wanted)
            self._results.update({(source, term): result for term, result in zip(wanted, results, strict=True)})

    def __getitem__(self, key: tuple[Source, Term]) -> Tensor:
        self.compute([key])
        return self._results[self._key(key)]

    def remember(self, owner: object, make: Callable[[], tuple[Source, Term]]) -> tuple[Source, Term]:
        """The term that `owner` made for this call, so that a term with tensors in it is made once."""
        if owner not in self._terms:
            self._terms[owner] = make()
        return self._terms[owner]

    def contour_sizes(self) -> Tensor:
        """(B, C) number of target voxels with a face neighbour outside their class, the border counting as outside."""
        if self._contour_sizes is None:
            self._contour_sizes = contour_sizes(self._data(self.scores))
        return self._contour_sizes

    def spacing(self, option: SpacingOption) -> Tensor | Sequence[float] | None:
        """Mm per spatial axis, of each sample (B, D) or of all (D,); None where voxels are the unit.

        Inside MONAI's `DeepSupervisionLoss`, which interpolates the target and leaves its affine, they are those of the
        interpolated grid.

        Raises:
            ValueError: a spacing or an affine of another number of axes, an affine of another number of samples, or one
                that was another grid's before.
        """
        size = self.scores.shape[2:]
        whole = _size_before_levels()
        spacing = self._spacing_of_whole(option, whole or size)
        if spacing is None or whole is None or whole == size:
            return spacing
        steps = [before / now for before, now in zip(whole, size, strict=True)]
        return torch.as_tensor(spacing, dtype=torch.float64) * torch.tensor(steps, dtype=torch.float64)

    def _spacing_of_whole(self, option: SpacingOption, size: torch.Size) -> Tensor | Sequence[float] | None:
        batch, axes = self.scores.shape[0], self.scores.ndim - 2
        if option is not None and option != "auto" and len(option) != axes:
            raise ValueError(f"expected a spacing of {axes} positive numbers, one per spatial axis, got {option}.")
        if option != "auto":
            return option
        if self.affine is None:
            return None
        affine = torch.as_tensor(self.affine)
        square = affine.ndim in (2, 3) and affine.shape[-1] == affine.shape[-2] > axes
        if not square or (affine.ndim == 3 and affine.shape[0] != batch):
            raise ValueError(
                f"expected the target's affine to be (4, 4) or ({batch}, 4, 4), got {tuple(affine.shape)}: "
                "set spacing, in mm per axis, or None to measure in voxels."
            )
        if has_numbers(self.target):
            self._refuse_another_grid(affine, size)
        return spacing_of_affine(affine, axes, to_measure=self.distance is None)

    def _refuse_another_grid(self, affine: Tensor, size: torch.Size) -> None:
        cut_out = self.target.untyped_storage().nbytes() > self.target.nbytes  # of a larger target, by indexing
        first = size if cut_out else _SIZES.setdefault(affine, size)
        if first != size:
            raise ValueError(
                f"expected an affine of the target's own grid, got that of a target of {tuple(first)} voxels with one "
                f"of {tuple(size)}, as F.interpolate leaves it: set the affine of the smaller target, call the loss in "
                "monai.losses.DeepSupervisionLoss, or set spacing, in mm per axis."
            )

    def smallest_spacing(self, option: SpacingOption) -> Tensor:
        """(B,) mm of the finest axis of each sample; 1 where voxels are the unit."""
        spacing = self.spacing(option)
        rows = torch.ones(1) if spacing is None else torch.as_tensor(spacing)
        smallest = rows.amin(-1).to(torch.float32)  # before it goes to a device without float64
        return smallest.expand(self.scores.shape[0]).to(self.scores.device)

    def signed_distance(self, option: SpacingOption, first: int) -> Tensor:
        """(B, C, *spatial) float32 signed distance of each class of the target; 0 for the classes before `first`."""
        key = (option, first)
        if key not in self._distances:
            if self.distance is not None:
                known = self.distance[:, first:].to(torch.float32)
                counted = self.counted()
                if counted is not None:  # whatever stands there, NaN too
                    known = known.masked_fill(~counted, 0)
            elif self.labels:
                classes = range(first, self.scores.shape[1])
                known = signed_distance(self.labels_of_voxels(), classes, self.spacing(option))
            else:
                known = signed_distance(self.target_regions()[:, first:], None, self.spacing(option))
            left_out = torch.zeros_like(known[:, :1]).expand(-1, first, *known.shape[2:])
            self._distances[key] = torch.cat([left_out, known], 1) if first else known
        return self._distances[key]

    def labels_of_voxels(self) -> Tensor:
        """(B, *spatial) class of each voxel, uint8 or int32; C where it does not count.

        A target of C channels has the class of its largest, and the background where all are 0.
        """
        channels = self.scores.shape[1]
        if self.labels:
            index = self.target[:, 0]
            # The range check of a call on a GPU may come one call late.
            index = index.clamp(0, channels - 1) if index.device.type == "cuda" else index
        else:
            index = (self.target.byte() if self.target.dtype == torch.bool else self.target).argmax(1)
        return self._where_counted(self._compact(index))

    def chosen_labels(self) -> Tensor:
        """(B, *spatial) class of the highest score, uint8 or int32; C where the voxel does not count."""
        return self._where_counted(self._compact(self._read("activated").detach().argmax(1)))

    def target_regions(self) -> Tensor:
        """(B, C, *spatial) bool: the voxels of each class, in a target of C channels those above 0.5."""
        if self.labels:
            return self.regions(self.labels_of_voxels())
        counted = self.counted()
        return self.target > 0.5 if counted is None else (self.target > 0.5) & counted

    def regions(self, index: Tensor) -> Tensor:
        """(B, C, *spatial) bool: the voxels of each class in a map (B, *spatial) of classes."""
        classes = torch.arange(self.scores.shape[1], device=index.device)
        return index.unsqueeze(1) == classes.view(1, -1, *[1] * (index.ndim - 1))

    def predicted_masks(self, activation: Activation) -> Tensor:
        """(B, C, *spatial) bool: where the probability of each class is above 0.5."""
        predicted = probabilities(self._activated(), activation) > 0.5
        counted = self.counted()
        return predicted if counted is None else predicted & counted

    def predicted_regions(self, activation: Activation) -> Tensor:
        """The same, or under a softmax, where at most one class is above 0.5, (B, *spatial) labels; C for none."""
        if activation != "softmax":
            return self.predicted_masks(activation)
        top, index = probabilities(self._activated(), activation).max(1)
        return self._where_counted(self._compact(index).masked_fill_(top <= 0.5, self.scores.shape[1]))

    def sum_of_certain(self, values: Tensor) -> Tensor:
        """(B, C) sums of a map times (1-2g)^2 over the voxels that count: 1 for labels."""
        v = self._data(self.scores).whole()
        values = v.weighted(values.flatten(2))
        if v.target is not None:
            values = values * (1 - 2 * v.target) ** 2
        return values.sum(2, dtype=sum_dtype(values.device))

    def _activated(self) -> Tensor:
        return self._read("activated").detach().to(self._data(self.scores).dtype)

    def _compact(self, index: Tensor) -> Tensor:
        """Classes in the smallest dtype that has C, too."""
        return index.to(torch.uint8 if self.scores.shape[1] < 256 else torch.int32)

    def _where_counted(self, index: Tensor) -> Tensor:
        counted = self.counted()
        return index if counted is None else index.masked_fill(~counted[:, 0], self.scores.shape[1])

    def counted(self) -> Tensor | None:
        """(B, 1, *spatial) bool: which voxels count; None where all do."""
        return self._data(self.scores).voxels_that_count()

    def whole(self, *, any_target: bool = False) -> Voxels:
        """All voxels at once, for what cannot be computed slab by slab; `any_target`: its values are not checked."""
        return whole(self._data(self._read("activated")), any_target=any_target)

    def _key(self, key: tuple[Source, Term]) -> tuple[Source, Term]:
        return ("scores", key[1]) if self.other_act is None else key

    def _read(self, source: Source) -> Tensor:
        if source == "scores" or self.other_act is None:
            return self.scores
        if self._activated_scores is not None:
            return self._activated_scores
        # In half precision a small p has few digits, and its slope 1/p may be infinite.
        scores = self.scores.to(self._data(self.scores).dtype)
        counted = self.counted()
        if counted is not None:  # NaN there would come back in the gradient of the activation
            scores = scores.masked_fill(~counted, 0)
        activated = plain("the result of other_act", self.other_act(scores))
        if activated.shape != self.scores.shape:
            raise ShapeMismatchError(
                f"expected other_act to keep the shape {tuple(self.scores.shape)}, got {tuple(activated.shape)}."
            )
        self._activated_scores = activated
        return activated

    def _data(self, scores: Tensor) -> CallData:
        return CallData(scores, self.target, self.mask, self.labels, self.ignore_index)


def plain(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself of a MetaTensor or another subclass; autograd goes through."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected {name} to be a tensor, got {type(tensor).__name__}.")
    if type(tensor) is Tensor or torch.compiler.is_compiling() or is_fake(tensor):
        return tensor  # a tracer's own tensors must stay what they are
    return tensor.as_subclass(Tensor)


def _size_before_levels() -> torch.Size | None:
    """Spatial size of the target that MONAI's DeepSupervisionLoss was given, where it calls; else None.

    Nothing in an interpolated MetaTensor says that its affine is no longer that of its grid, so the callers are asked;
    a compiled graph has none.
    """
    module = sys.modules.get("monai.losses.ds_loss")
    if module is None or torch.compiler.is_compiling():
        return None
    code = module.DeepSupervisionLoss.forward.__code__
    frame = inspect.currentframe()
    while frame is not None:
        # Asking a frame for its locals keeps them alive with it: of this one alone.
        if (frame.f_code.co_name, frame.f_code.co_filename) == (code.co_name, code.co_filename):
            target = frame.f_locals.get("target")
            return target.shape[2:] if isinstance(target, Tensor) else None
        frame = frame.f_back
    return None


# Spatial size of the first target that a loss saw with an affine: a collated one shares it with what torch makes of it.
_SIZES: MutableMapping[Tensor, torch.Size] = WeakIdKeyDictionary()


def plain_data(
    input: Tensor, target: Tensor, mask: Tensor | None, distance: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The data of a call as plain tensors."""
    scores, target = plain("input", input), plain("target", target)
    if target.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch has few operations for them
        target = target.to(torch.int64)
    mask = None if mask is None else plain("mask", mask)
    return scores, target, mask, None if distance is None else plain("distance", distance)


def one_channel(scores: Tensor) -> bool:
    """Whether scores (B, C, *spatial) are of one channel, which is a target of its own."""
    return scores.ndim > 1 and scores.shape[1] == 1


def refuse_gradient(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that requires a gradient where there is none."""
    if tensor.requires_grad:
        raise ValueError(f"expected a {name} without gradient, got one that requires it: try {name}.detach().")


def check_shapes(
    scores: Tensor,
    target: Tensor,
    mask: Tensor | None,
    distance: Tensor | None,
    *,
    labels: bool,
    spatial: range,
    target_gradient: bool,
) -> None:
    """Refuse data that a loss cannot mean anything with.

    Raises:
        TypeError: input, target, mask or distance of another dtype than expected.
        ValueError: a number of axes that is not supported, no channel, an axis without voxels, tensors on two devices,
            a target that requires a gradient where there is none (of labels, or without `target_gradient`).
        ShapeMismatchError: target, mask or distance of another shape than the input asks for.
    """
    if not scores.is_floating_point():
        raise TypeError(f"expected a floating-point input, got {scores.dtype}.")
    if scores.ndim - 2 not in spatial:
        axes = f"{spatial.start} to {spatial.stop - 1}"
        raise ValueError(f"expected input (B, C, *spatial) with {axes} spatial axes, got shape {tuple(scores.shape)}.")
    if 0 in scores.shape[1:]:
        raise ValueError(f"expected an input with channels and voxels, got shape {tuple(scores.shape)}.")
    if target.is_complex():
        raise TypeError(f"expected a real target, got {target.dtype}: try target.real.")
    expected = (scores.shape[0], 1 if labels else scores.shape[1], *scores.shape[2:])
    if target.shape != expected:
        raise ShapeMismatchError(_target_message(scores, target, expected, labels=labels))
    if mask is not None:
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(f"expected a bool or floating-point mask, got {mask.dtype}: try mask.bool().")
        expected = (scores.shape[0], 1, *scores.shape[2:])
        if mask.shape != expected:
            raise ShapeMismatchError(
                f"expected mask {expected} for input {tuple(scores.shape)}, got {tuple(mask.shape)}."
            )
    if distance is not None:
        if not distance.is_floating_point():
            raise TypeError(f"expected a floating-point distance, got {distance.dtype}.")
        if distance.shape != scores.shape:
            raise ShapeMismatchError(
                f"expected distance {tuple(scores.shape)} like the input, one map per class, "
                f"got {tuple(distance.shape)}."
            )
    for name, other in (("target", target), ("mask", mask), ("distance", distance)):
        if other is not None and other.device != scores.device:
            raise ValueError(f"expected {name} on {scores.device} like the input, got {other.device}.")
        if other is not None and not (name == "target" and target_gradient and not labels):
            refuse_gradient(name, other)


def _target_message(scores: Tensor, target: Tensor, expected: tuple[int, ...], *, labels: bool) -> str:
    got = f"got {tuple(target.shape)}"
    message = (
        f"ground truth has different shape ({tuple(target.shape)}) from input ({tuple(scores.shape)}): "
        f"expected target {expected}, {got}"
    )
    if target.ndim == scores.ndim - 1 and target.shape[0] == scores.shape[0]:
        return message + ": add the channel axis with target.unsqueeze(1)."
    if not labels and target.ndim == scores.ndim and target.shape[1] == 1:
        return message + ": for a target of labels set to_onehot_y=True."
    if labels and target.shape == scores.shape:
        return (
            message
            + ": a one-hot target wants to_onehot_y=False; labels should have a channel with length equal to one."
        )
    return message + "."


class CudaLabelCheck:
    """Range check of labels on a GPU, without a stall.

    The first call waits for the answer. A later call enqueues its check and reports what an earlier one found; until
    then a wrong label is clamped, never an index error on the device. (On the CPU the kernels check as they count; on
    devices that are none of Nvidia's every call waits.)
    """

    def __init__(self) -> None:
        self._checked = False
        self._pending: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, target: Tensor, num_classes: int, ignore_index: int | None) -> None:
        if target.device.type == "cpu" or not has_numbers(target) or target.dtype == torch.bool:
            return
        if not self._checked or target.device.type != "cuda":
            self._checked = True
            if _wrong(target, num_classes, ignore_index).item():
                raise ValueError(wrong_labels(target, num_classes, ignore_index))
            return
        if self._pending is not None and self._pending[1].query():
            found = bool(self._pending[0])
            self._pending = None
            if found:
                raise ValueError(f"an earlier call had a wrong target: {expected_labels(num_classes, ignore_index)}.")
        if self._pending is None:
            flag = torch.empty((), dtype=torch.bool, pin_memory=True)
            flag.copy_(_wrong(target, num_classes, ignore_index), non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = flag, event

    def __getstate__(self) -> dict[str, object]:
        return {"_checked": False, "_pending": None}  # an event can be neither copied nor pickled


def _wrong(labels: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """Whether any label is wrong, as a tensor."""
    index = labels.to(torch.int64)
    wrong = (index < 0) | (index >= num_classes) | (index != labels)
    return (wrong if ignore_index is None else wrong & (index != ignore_index)).any()
