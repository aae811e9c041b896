"""The tensors of one call, and how they are read slab by slab."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from monai_extra_losses.ops.head_scores import HeadScores
from monai_extra_losses.ops.merging import merge
from monai_extra_losses.ops.numbers import numbers_of, sum_dtype
from monai_extra_losses.ops.pieces import Piece, has_flat_view


@dataclass(frozen=True, slots=True)
class Voxels:
    """The data of a call, or one slab of it, voxels last.

    Attributes:
        scores: (B, C, M) what the network gave, float32 or float64.
        labels: (B, M) class of each voxel in the target's dtype, for a target of labels; 0 where it is ignored.
        target: (B, C, M) one-hot, multi-label or soft target, where `labels` is None.
        weight: (B, M) what each voxel counts; None where each counts 1.
        unknown: (B, C) bool: classes without annotation, whose probability is that of the background; None: none.
        unmerged: (B, C, M) the scores before they were merged, where they are.
    """

    scores: Tensor
    labels: Tensor | None
    target: Tensor | None
    weight: Tensor | None
    unknown: Tensor | None = None
    unmerged: Tensor | None = None

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

    def part(self, piece: Piece) -> "Voxels":
        """A piece of the voxels of a target of labels."""
        assert self.labels is not None
        samples, voxels = piece.samples, piece.voxels
        weight = None if self.weight is None else self.weight[samples, voxels]
        return Voxels(self.scores[samples, :, voxels], self.labels[samples, voxels], None, weight)

    def without_ignored(self) -> "Voxels":
        """The same with zeros for the scores and the labels of voxels that do not count."""
        if self.weight is None or self.labels is None:
            return self
        deleted = self.weight == 0
        scores = self.scores.masked_fill(deleted.unsqueeze(1), 0)
        return dataclasses.replace(self, scores=scores, labels=self.labels.masked_fill(deleted, 0))

    def smoothed(self, smoothing: float, *, one_vs_rest: bool) -> "Voxels":
        """The same with the target (1-e) g + e/C, or (1-e) g + e/2; an unknown class keeps 0, and is none of the C."""
        g = (1 - smoothing) * self.one_hot()
        if one_vs_rest:
            target = g + smoothing / 2
        elif self.unknown is None:
            target = g + smoothing / g.shape[1]
        else:
            known = (~self.unknown).to(g.dtype)
            target = g + (smoothing * known / known.sum(1, keepdim=True)).unsqueeze(2)
        return dataclasses.replace(self, labels=None, target=target)

    def weighted(self, values: Tensor) -> Tensor:
        """`values` (B, C, M) or (B, 1, M), times the weight of each voxel."""
        return values if self.weight is None else values * self.weight.unsqueeze(1)


@dataclass(slots=True, eq=False)
class CallData:
    """The tensors of one call; it does not change.

    Attributes:
        scores: (B, C, *spatial) of any float dtype; `HeadScores` where there are features and a head.
        target: (B, 1, *spatial) labels of any dtype when `labels`, else (B, C, *spatial).
        mask: (B, 1, *spatial) bool or float, or None.
        labels: whether `target` holds labels.
        ignore_index: label, or with a target of C channels the channel, whose voxels do not count.
        unknown: (B, C) bool: classes without annotation in a sample, to be merged with its background; None: none.
        dtype: precision of the maps: float32, or float64 when the scores are.
        ignores: whether `ignore_index` can leave out a voxel.
        counts_all: whether every voxel counts 1, and there is any.
    """

    scores: Tensor
    target: Tensor
    mask: Tensor | None
    labels: bool
    ignore_index: int | None
    unknown: Tensor | None = None
    dtype: torch.dtype = field(init=False)
    ignores: bool = field(init=False)
    counts_all: bool = field(init=False)

    def __post_init__(self) -> None:
        self.dtype = torch.float64 if self.scores.dtype == torch.float64 else torch.float32
        self.ignores = self.ignore_index is not None and self._holds(self.ignore_index)
        self.counts_all = self.mask is None and not self.ignores and self.scores.shape[0] > 0

    def _holds(self, ignore_index: int) -> bool:
        if self.labels or self.target.shape[1] == 1:
            # Comparing uint8 labels with -1 would find 255.
            return self.target.dtype.is_floating_point or holds_value(self.target.dtype, ignore_index)
        # A sentinel (255, -1) has no channel: in a target of C channels it ignores nothing.
        return 0 <= ignore_index < self.target.shape[1]

    def with_scores(self, scores: Tensor) -> "CallData":
        """The same call with other scores."""
        return dataclasses.replace(self, scores=scores)

    def merged(self) -> "CallData":
        """The same call with the scores of `merging.merge`, as a whole, and no unknown classes."""
        if self.unknown is None:
            return self
        scores = self.scores.to(self.dtype)
        counts = self.voxels_that_count()
        if counts is not None:  # NaN there would come back in the gradient
            scores = scores.masked_fill(~counts, 0)
        merged = merge(scores.flatten(2), self.unknown).reshape(scores.shape)
        return dataclasses.replace(self, scores=merged, unknown=None)

    def voxels_that_count(self) -> Tensor | None:
        """(B, 1, *spatial) bool; None where all do."""
        counts = None if self.mask is None else self.mask > 0
        if not self.ignores:
            return counts
        assert self.ignore_index is not None
        if self.labels or self.target.shape[1] == 1:
            left = torch.ne(self.target, self.ignore_index)
        else:
            left = self.target.narrow(1, self.ignore_index, 1) < 1
        return left if counts is None else left & counts

    def whole(self) -> Voxels:
        """Everything at once, as the plain definitions want it."""
        mask = None if self.mask is None else self.mask.flatten(2)
        target = self.target.flatten(2)
        return self._voxels(self.scores.flatten(2), target, self._weight(target, mask), self.unknown, merges=True)

    def as_it_lies(self) -> Voxels:
        """A call with a target of labels of which every voxel counts, whose spatial axes can be seen as one."""
        return Voxels(self.scores.flatten(2), self.target[:, 0].flatten(1), None, None)

    def slab(self, piece: Piece, *, merges: bool = False, as_it_is: bool = False) -> Voxels:
        """One piece of the call.

        Args:
            piece: which.
            merges: with merged scores, which the kernels of a softmax do without.
            as_it_is: with whatever stands in voxels that do not count, else with zeros there.
        """
        mask = None if self.mask is None else piece.read(self.mask)
        scores, target = self.scores, piece.read(self.target)
        weight = None if self.counts_all else self._weight(target, mask)
        scores = scores.read(piece, weight) if isinstance(scores, HeadScores) else piece.read(scores)
        unknown = None if self.unknown is None else self.unknown[piece.samples]
        if as_it_is and self.labels and unknown is None:
            return Voxels(scores.to(self.dtype), target[:, 0], None, weight)
        return self._voxels(scores, target, weight, unknown, merges=merges)

    def pieces(self, length: int) -> list[Piece]:
        """The pieces of slabs of about `length` voxels: whole samples where these are short, else parts of one."""
        batch, voxels = self.scores.shape[0], math.prod(self.scores.shape[2:])
        if length >= voxels:
            step = max(length // max(voxels, 1), 1)
            return [
                Piece(slice(first, min(first + step, batch)), slice(0, voxels), is_whole=step >= batch)
                for first in range(0, batch, step)
            ]
        source = self.scores.features if isinstance(self.scores, HeadScores) else self.scores
        tensors = (source, self.target) if self.mask is None else (source, self.target, self.mask)
        if not all(has_flat_view(tensor) for tensor in tensors):  # cut between rows of the first spatial axis only
            row = math.prod(self.scores.shape[3:])
            length = max(length // row, 1) * row
        return [
            Piece(slice(sample, sample + 1), slice(start, min(start + length, voxels)))
            for sample in range(batch)
            for start in range(0, voxels, length)
        ]

    def target_sum(self, values: Tensor, of_target: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, C) sums of `values` (B, C, *spatial), times a function of a target of C channels, 1 for labels."""
        target = self.target.flatten(2)
        weight = self._weight(target, None if self.mask is None else self.mask.flatten(2))
        values = values.flatten(2)
        if not self.labels:
            values = values * of_target(target.to(self.dtype))
        if weight is not None:
            values = torch.where(weight.unsqueeze(1) > 0, values * weight.unsqueeze(1), 0)
        return values.sum(2, dtype=sum_dtype(values.device))

    def _weight(self, target: Tensor, mask: Tensor | None) -> Tensor | None:
        """(B, M) what each voxel counts; None where each counts 1."""
        weight = None if mask is None else mask[:, 0].to(self.dtype)
        if weight is not None:
            refuse_negative_weights(weight)
        if self.ignores:
            counts = self._counts(target)
            weight = counts.to(self.dtype) if weight is None else weight * counts
        return weight

    def _voxels(
        self, scores: Tensor, target: Tensor, weight: Tensor | None, unknown: Tensor | None, *, merges: bool
    ) -> Voxels:
        scores = scores.to(self.dtype)
        if weight is not None:  # whatever stands in a voxel that does not count, NaN too, has no part in the sums
            deleted = weight.unsqueeze(1) == 0
            target, scores = target.masked_fill(deleted, 0), scores.masked_fill(deleted, 0)
        unmerged = None
        if unknown is not None and merges:
            scores, unmerged = merge(scores, unknown), scores
        if self.labels:
            return Voxels(scores, target[:, 0], None, weight, unknown, unmerged)
        return Voxels(scores, None, target.to(self.dtype), weight, unknown, unmerged)

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
