"""Checks of one call: shapes, dtypes, devices and labels."""

from typing import NamedTuple

import torch
from torch import Tensor

from monai_extra_losses.ops.head_scores import HeadScores
from monai_extra_losses.ops.numbers import has_numbers, is_fake
from monai_extra_losses.ops.wrong_targets import expected_labels, wrong_labels


class ShapeMismatchError(ValueError, AssertionError):
    """Shapes that do not fit. MONAI raises AssertionError there, so code that catches either keeps working."""


def plain(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself of a MetaTensor or another subclass; autograd goes through."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected {name} to be a tensor, got {type(tensor).__name__}.")
    if type(tensor) in (Tensor, HeadScores) or torch.compiler.is_compiling() or is_fake(tensor):
        return tensor  # a tracer's own tensors must stay what they are
    return tensor.as_subclass(Tensor)


class Annotated(NamedTuple):
    """Which classes of each sample are annotated.

    Attributes:
        classes: (B, C) bool.
        merges: whether the others are part of the background; else they leave the loss.
    """

    classes: Tensor
    merges: bool


class PlainData(NamedTuple):
    """The data of a call as plain tensors; `affine` is that of a target that was a MetaTensor.

    `annotated` is what `PartialLabelLoss` knows; None: every class is. `skeleton`: the tubes of `SkeletonRecallLoss`.
    `cells`: of the components of each class.
    """

    scores: Tensor
    target: Tensor
    mask: Tensor | None
    distance: Tensor | None
    affine: Tensor | None
    annotated: Annotated | None = None
    skeleton: Tensor | None = None
    cells: Tensor | None = None


def plain_data(
    input: Tensor,
    target: Tensor,
    mask: Tensor | None,
    distance: Tensor | None,
    skeleton: Tensor | None = None,
    cells: Tensor | None = None,
) -> PlainData:
    """The data of a call, without what a subclass of tensors makes of it."""
    affine, annotated = getattr(target, "affine", None), getattr(target, "annotated_classes", None)
    scores = input if type(input) is Tensor else plain("input", input)
    target = target if type(target) is Tensor else plain("target", target)
    if target.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch has few operations for them
        target = target.to(torch.int64)
    mask = None if mask is None else plain("mask", mask)
    distance = None if distance is None else plain("distance", distance)
    skeleton = None if skeleton is None else plain("skeleton", skeleton)
    cells = None if cells is None else plain("cells", cells)
    return PlainData(scores, target, mask, distance, affine, annotated, skeleton, cells)


def refuse_gradient(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that requires a gradient where there is none."""
    if tensor.requires_grad:
        raise ValueError(f"expected a {name} without gradient, got one that requires it: try {name}.detach().")


def check_shapes(data: PlainData, *, labels: bool, spatial: range, target_gradient: bool) -> None:
    """Reject inputs a loss cannot use.

    Raises:
        TypeError: input, target, mask or distance of another dtype than expected.
        ValueError: a number of axes that is not supported, no channel, an axis without voxels, tensors on two devices,
            a target that requires a gradient where there is none (of labels, or without `target_gradient`).
        ShapeMismatchError: target, mask or distance of another shape than the input asks for.
    """
    scores, target, mask, distance = data[:4]
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
    _check_place("target", target, scores, may_require_gradient=target_gradient and not labels)
    if mask is not None:
        _check_mask(mask, scores)
    if distance is not None:
        _check_distance(distance, scores)
    if data.skeleton is not None:
        _check_skeleton(data.skeleton, target)
    if data.cells is not None:
        _check_cells(data.cells, scores)


def _check_cells(cells: Tensor, scores: Tensor) -> None:
    batch, channels, *spatial = scores.shape
    if cells.is_complex() or cells.dtype == torch.bool:
        raise TypeError(f"expected cells of whole numbers, got {cells.dtype}; make them by transforms.ComponentCellsd.")
    if cells.shape[1:2] not in ((channels,), (channels - 1,)) or cells.shape != (batch, cells.shape[1], *spatial):
        raise ShapeMismatchError(
            f"expected cells {tuple(scores.shape)} like the input, or without its background, got "
            f"{tuple(cells.shape)}; make them of the same label (transforms.ComponentCellsd)."
        )
    _check_place("cells", cells, scores)


def _check_skeleton(skeleton: Tensor, target: Tensor) -> None:
    if skeleton.shape != target.shape:
        raise ShapeMismatchError(
            f"expected skeleton {tuple(target.shape)} like the target, got {tuple(skeleton.shape)}; make it of the "
            "same label (transforms.Skeletond)."
        )
    _check_place("skeleton", skeleton, target)


def _check_mask(mask: Tensor, scores: Tensor) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"expected a bool or floating-point mask, got {mask.dtype}: try mask.bool().")
    expected = (scores.shape[0], 1, *scores.shape[2:])
    if mask.shape != expected:
        raise ShapeMismatchError(f"expected mask {expected} for input {tuple(scores.shape)}, got {tuple(mask.shape)}.")
    _check_place("mask", mask, scores)


def _check_distance(distance: Tensor, scores: Tensor) -> None:
    if not distance.is_floating_point():
        raise TypeError(f"expected a floating-point distance, got {distance.dtype}.")
    if distance.shape != scores.shape:
        raise ShapeMismatchError(
            f"expected distance {tuple(scores.shape)} like the input, one map per class, got {tuple(distance.shape)}."
        )
    _check_place("distance", distance, scores)


def _check_place(name: str, tensor: Tensor, scores: Tensor, *, may_require_gradient: bool = False) -> None:
    if tensor.device != scores.device:
        raise ValueError(f"expected {name} on {scores.device} like the input, got {tensor.device}.")
    if tensor.requires_grad and not may_require_gradient:
        refuse_gradient(name, tensor)


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
    """ValueRange check of labels on a GPU, without a stall.

    The first call waits for the answer. A later call enqueues its check and reports what an earlier one found; until
    then a wrong label is clamped, never an index error on the device. (On the CPU the kernels check as they count; on
    devices that are none of Nvidia's every call waits.)
    """

    def __init__(self) -> None:
        self._checked = False
        self._pending: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, target: Tensor, num_classes: int, ignore_index: int | None) -> None:
        if not has_numbers(target) or target.dtype == torch.bool:
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
