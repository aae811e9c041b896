"""One pass over the voxels in slabs that fit the cache: the memory rule of every loss is kept here."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_extra_losses.ops.numbers import numbers_of

# Elements (channels x voxels) of one slab. On the CPU shorter ones stay nearer in the cache, but each operation starts
# its threads anew: measured, 2^20 is best from 2 classes on. On a GPU a slab only has to keep the device busy.
_CPU_SLAB = 1 << 20
_GPU_SLAB = 1 << 24
# So that the buffers of a slab stay small beside the scores of a small patch, too.
_CPU_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Voxels:
    """The data of a call, or one slab of it, voxels last.

    Attributes:
        scores: (B, C, M) what the network gave, float32 or float64.
        labels: (B, M) class of each voxel in the target's dtype, for a target of labels; 0 where it is ignored.
        target: (B, C, M) one-hot, multi-label or soft target, where `labels` is None.
        weight: (B, M) what each voxel counts; None where each counts 1.
    """

    scores: Tensor
    labels: Tensor | None
    target: Tensor | None
    weight: Tensor | None

    def index(self) -> Tensor:
        """(B, M) int64 class of each voxel of a target of labels."""
        assert self.labels is not None
        index = self.labels.to(torch.int64)
        # The range check of a call on a GPU may come one call late.
        return index.clamp(0, self.scores.shape[1] - 1) if index.device.type == "cuda" else index

    def one_hot(self) -> Tensor:
        """(B, C, M) target in the dtype of the scores."""
        if self.target is not None:
            return self.target
        classes = torch.arange(self.scores.shape[1], device=self.scores.device)
        return (self.index().unsqueeze(1) == classes.view(1, -1, 1)).to(self.scores.dtype)

    def weighted(self, values: Tensor) -> Tensor:
        """`values` (B, C, M) or (B, 1, M), times the weight of each voxel."""
        return values if self.weight is None else values * self.weight.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of one call and how to read them slab by slab.

    Attributes:
        scores: (B, C, *spatial) of any float dtype.
        target: (B, 1, *spatial) labels of any dtype when `labels`, else (B, C, *spatial).
        mask: (B, 1, *spatial) bool or float, or None.
        labels: whether `target` holds labels.
        ignore_index: label, or with a target of C channels the channel, whose voxels do not count.
    """

    scores: Tensor
    target: Tensor
    mask: Tensor | None
    labels: bool
    ignore_index: int | None

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the maps: float32, or float64 when the scores are."""
        return torch.float64 if self.scores.dtype == torch.float64 else torch.float32

    @property
    def counts_all(self) -> bool:
        """Whether every voxel counts 1."""
        return self.mask is None and not self.ignores

    @property
    def ignores(self) -> bool:
        """Whether `ignore_index` can leave out a voxel."""
        if self.ignore_index is None:
            return False
        if self.labels or self.target.shape[1] == 1:
            # Comparing uint8 labels with -1 would find 255.
            return self.target.dtype.is_floating_point or holds_value(self.target.dtype, self.ignore_index)
        # A sentinel (255, -1) has no channel: in a target of C channels it ignores nothing.
        return 0 <= self.ignore_index < self.target.shape[1]

    def counted(self) -> Tensor | None:
        """(B, 1, *spatial) bool: which voxels count; None where all do."""
        counted = None if self.mask is None else self.mask > 0
        if not self.ignores:
            return counted
        assert self.ignore_index is not None
        if self.labels or self.target.shape[1] == 1:
            left = torch.ne(self.target, self.ignore_index)
        else:
            left = self.target.narrow(1, self.ignore_index, 1) < 1
        return left if counted is None else left & counted

    def whole(self) -> Voxels:
        """Everything at once, as the plain definitions want it."""
        mask = None if self.mask is None else self.mask.flatten(2)
        return self._voxels(self.scores.flatten(2), self.target.flatten(2), mask)

    def slabs(self, sample: int, floats: int) -> Iterator[tuple[Voxels, slice]]:
        """The slabs of one sample (with a batch axis of one), and the range of flat voxel positions of each.

        Args:
            sample: position in the batch.
            floats: how many float32 numbers per voxel the buffers of a slab hold at a time.
        """
        tensors = [self.scores[sample], self.target[sample]]
        if self.mask is not None:
            tensors.append(self.mask[sample])
        flat = [_flat_view(tensor) for tensor in tensors]
        for voxels in slab_ranges(self.scores, floats, whole_rows=any(view is None for view in flat)):
            parts = [read(view, tensor, voxels).unsqueeze(0) for view, tensor in zip(flat, tensors, strict=True)]
            yield self._voxels(parts[0], parts[1], parts[2] if self.mask is not None else None), voxels

    def _voxels(self, scores: Tensor, target: Tensor, mask: Tensor | None) -> Voxels:
        scores = scores.to(self.dtype)
        weight = None if mask is None else mask[:, 0].to(self.dtype)
        if weight is not None:
            refuse_negative_weights(weight)
        if self.ignores:
            counts = self._counts(target)
            weight = counts.to(self.dtype) if weight is None else weight * counts
        if weight is not None:  # whatever stands in a voxel that does not count, NaN too, has no part in the sums
            deleted = weight.unsqueeze(1) == 0
            target, scores = target.masked_fill(deleted, 0), scores.masked_fill(deleted, 0)
        if self.labels:
            return Voxels(scores, target[:, 0], None, weight)
        return Voxels(scores, None, target.to(self.dtype), weight)

    def _counts(self, target: Tensor) -> Tensor:
        """(B, M) what `ignore_index` leaves of each voxel."""
        assert self.ignore_index is not None
        if self.labels or target.shape[1] == 1:
            return torch.ne(target[:, 0], self.ignore_index)
        return 1 - target[:, self.ignore_index].to(self.dtype)


def refuse_negative_weights(weight: Tensor) -> None:
    """Refuse a mask with weights below 0, or NaN, on the CPU."""
    if weight.device.type != "cpu":
        return
    known = numbers_of(weight)
    if known is not None and known.numel() and not known.min() >= 0:
        raise ValueError("expected mask weights >= 0, got a negative number or NaN.")


def holds_value(dtype: torch.dtype, value: int) -> bool:
    """Whether an integer or bool dtype has this value."""
    if dtype == torch.bool:
        return value in (0, 1)
    return torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max


def _flat_view(tensor: Tensor) -> Tensor | None:
    """(C, *spatial) as (C, M) without a copy, or None where the strides do not allow it."""
    try:
        return tensor.view(tensor.shape[0], -1)
    except RuntimeError:
        return None


def slab_ranges(scores: Tensor, floats: int, *, whole_rows: bool) -> Iterator[slice]:
    """Ranges of flat voxel positions; `whole_rows`: cut between indices of the first spatial axis only."""
    channels, spatial = scores.shape[1], scores.shape[2:]
    voxels = math.prod(spatial)
    length = _GPU_SLAB // channels
    if scores.device.type == "cpu":
        # The buffers are float32 at least, whatever the scores are.
        share = int(_CPU_SHARE * scores.numel() * scores.element_size() / (4 * floats))
        length = max(min(_CPU_SLAB // channels, share), 128)
    if whole_rows:
        row = voxels // max(spatial[0], 1)
        length = max(length // max(row, 1), 1) * row
    for start in range(0, voxels, max(length, 1)):
        yield slice(start, min(start + length, voxels))


def read(view: Tensor | None, tensor: Tensor, voxels: slice) -> Tensor:
    """(C, m) slab of a (C, *spatial) tensor; only a tensor without a flat view is copied, one slab at a time."""
    return view[:, voxels] if view is not None else _rows(tensor, voxels).reshape(tensor.shape[0], -1)


def writable(tensor: Tensor, voxels: slice, dtype: torch.dtype) -> Tensor | None:
    """(C, m) view of a slab of a (C, *spatial) tensor, where its strides allow one and its dtype is `dtype`."""
    view = _flat_view(tensor) if tensor.dtype == dtype else None
    return None if view is None else view[:, voxels]


def write(tensor: Tensor, voxels: slice, values: Tensor) -> None:
    """Store the (C, m) slab `values` in a (C, *spatial) tensor of any strides and dtype."""
    view = _flat_view(tensor)
    if view is not None:
        view[:, voxels] = values
    else:
        rows = _rows(tensor, voxels)
        rows.copy_(values.reshape(rows.shape))


def _rows(tensor: Tensor, voxels: slice) -> Tensor:
    row = math.prod(tensor.shape[2:])
    return tensor[:, voxels.start // row : voxels.stop // row]
