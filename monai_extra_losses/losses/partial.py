"""Losses of partly annotated data: a class that nobody has looked for in a case is not trained as background there."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from monai_extra_losses.losses.base import SegmentationLoss
from monai_extra_losses.losses.checks import Annotated, plain
from monai_extra_losses.losses.options import one_of, refuse_negative
from monai_extra_losses.losses.regression import RegressionLoss
from monai_extra_losses.losses.weighted_sum import AroundLoss, CompoundLoss
from monai_extra_losses.ops.call_data import Voxels
from monai_extra_losses.ops.fused_sums import fused_sums
from monai_extra_losses.ops.merging import ANNOTATED
from monai_extra_losses.ops.numbers import has_numbers, numbers_of, sum_dtype
from monai_extra_losses.ops.terms import Activation, Term, probabilities

Mode = Literal["marginal", "sigmoid"]
_SMOOTH = 1e-5


class PartialLabelLoss(AroundLoss):
    """A loss of data in which each case has some of its classes annotated: pooled data sets, say.

    L(q, g), q_c = p_c of annotated classes, q_0 = p_0 + sum_{c not in A} p_c

    A is the set of annotated classes of a sample, with the background. An unannotated organ lies in what the label
    calls background, so the network may put it there: nothing tells it which of the merged classes a background voxel
    is, and dL/dx_c is the same share of p_c for all of them. Means over classes are over A. Everything annotated is the
    wrapped loss itself, in value and gradient.

    Args:
        loss: a loss of this package, or a `CompoundLoss` of such: with `softmax=True` for "marginal", with
            `sigmoid=True`, or of decisions per channel without activation, for "sigmoid".
        mode: "marginal": as above, for classes that exclude each other. "sigmoid": the channels that are not in A leave
            the loss, for regions that overlap.
        exclusion: e >= 0. Adds e times the mean over the classes c that are not in A of
            (2 sum p_c E + s) / (sum p_c + sum E + s) + sum E log(1 + p_c) / N, with E the annotated foreground, N
            voxels, s = 1e-5: what is annotated is no other organ. For "marginal".

    Shapes:
        input, target, mask: as of the loss; annotated (B, C) bool or 0/1. Memory as of the loss.

    Raises:
        TypeError: a loss that is none of this package.
        ValueError: a loss of another activation than the mode's, a negative exclusion; a call without a class in A, or
            with another shape of `annotated`; on the CPU, and in the first call on a GPU, a target with voxels of a
            class that is not in A, by name of its number.

    Example:
        >>> import torch
        >>> from monai_extra_losses import FusedDiceCELoss
        >>> loss = PartialLabelLoss(FusedDiceCELoss(to_onehot_y=True, softmax=True))
        >>> scores, labels = torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8)
        >>> annotated = torch.tensor([[True, True, False, False]])
        >>> round(loss(scores, labels, annotated=annotated).item(), 4)  # q_0 = 3/4, q_1 = 1/4
        0.8591

    Reference: Shi et al. 2021, arXiv:2007.03868 (marginal and exclusion loss); Fidon et al. 2021, arXiv:2107.03846
    (its axioms); Ulrich et al. 2023, arXiv:2303.14444 (sigmoid).
    """

    def __init__(self, loss: nn.Module, mode: Mode = "marginal", exclusion: float = 0.0) -> None:
        super().__init__()
        self.mode = one_of("mode", mode, Mode)
        refuse_negative(exclusion=exclusion)
        self._parts = tuple(_checked_parts(loss, self.mode))
        if exclusion and self.mode != "marginal":
            raise ValueError('expected exclusion=0 with mode="sigmoid", whose regions may overlap, got a number.')
        if exclusion and any(part.reduction == "none" for part in self._parts):
            raise ValueError("expected reduction 'mean' or 'sum' with an exclusion, got 'none': it has one value.")
        self.loss = loss
        self.exclusion = float(exclusion)
        self._checked_on_gpu = self._told = False

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        shown = [f"mode={self.mode!r}"] * (self.mode != "marginal")
        return ", ".join(shown + [f"exclusion={self.exclusion}"] * (self.exclusion != 0))

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        annotated: Tensor | Sequence[Any] | None = None,
        distance: Tensor | None = None,
        skeleton: Tensor | None = None,
        cells: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            input: as of the loss.
            target: as of the loss. A MetaTensor may carry `annotated` in its meta data (`AnnotatedClassesd`).
            mask: as of the loss.
            annotated: (B, C), which classes of each sample are annotated; None: as the target's meta data say, and
                where they say nothing, all.
            distance: as of the loss, where it reads one.
            skeleton: as of the loss, where it reads one.
            cells: as of the loss, where it reads them.
        """
        optional = {"mask": mask, "distance": distance, "skeleton": skeleton, "cells": cells}
        given = {name: value for name, value in optional.items() if value is not None}
        known = self._annotated(input, target, annotated)
        if known is None:
            value: Tensor = self.loss(input, target, **given)
            return value
        self._refuse_unannotated(input, target, mask, known)
        # A plain tensor that knows what its meta data said; what a loss reads of it, it reads once.
        alias = plain("target", target).view(target.shape)
        if (affine := getattr(target, "affine", None)) is not None:
            alias.affine = affine  # type: ignore[attr-defined]
        alias.annotated_classes = Annotated(known, self.mode == "marginal")  # type: ignore[attr-defined]
        value = self.loss(input, alias, **given)
        if self.exclusion:
            value = value + self.exclusion * self._excluded(input, target, mask, known).to(value.dtype)
        return value

    def _annotated(self, input: Tensor, target: Tensor, annotated: Any) -> Tensor | None:
        """(B, C) bool on the input's device; None where every class is annotated."""
        if not isinstance(input, Tensor) or input.ndim < 2:  # which the loss refuses
            return None
        batch, channels = input.shape[:2]
        if annotated is None:
            annotated = getattr(target, "meta", {}).get(ANNOTATED)
            if annotated is None:
                self._tell_of_nothing_known()
                return None
        known = _table(annotated, batch, channels)
        if self._by_label(channels) or self.mode == "marginal":  # the background is what is left
            known = torch.cat([torch.ones_like(known[:, :1]), known[:, 1:]], 1)
        if known.device.type == "cpu" and has_numbers(known):
            if bool(known.all()):
                return None
            none = ~known.any(1)
            if none.any():
                raise ValueError(
                    f"expected an annotated class in each sample, got none in sample {int(none.nonzero()[0])}: leave "
                    "it out."
                )
        return known.to(input.device, non_blocking=True)

    def _tell_of_nothing_known(self) -> None:
        if not self._told and not torch.compiler.is_compiling():
            self._told = True
            warnings.warn(
                "PartialLabelLoss takes every class as annotated: neither `annotated` was given, nor do the meta data "
                "of the target have it; AnnotatedClassesd writes it there (a PersistentDataset keeps meta data with "
                "track_meta=True, weights_only=False).",
                stacklevel=5,
            )

    def _by_label(self, channels: int) -> bool:
        return self._parts[0].to_onehot_y and channels > 1

    def _refuse_unannotated(self, input: Tensor, target: Tensor, mask: Tensor | None, known: Tensor) -> None:
        """Refuse voxels of a class that the sample does not annotate; a region known in part may have some."""
        by_label = self._by_label(input.shape[1])
        if torch.compiler.is_compiling() or not (by_label or self.mode == "marginal"):
            return
        values = numbers_of(plain("target", target))
        on_gpu = values is not None and values.device.type != "cpu"
        if values is None or (on_gpu and self._checked_on_gpu) or values.shape[:1] != known.shape[:1]:
            return
        self._checked_on_gpu = self._checked_on_gpu or on_gpu
        counted = _counted(values, None if mask is None else numbers_of(plain("mask", mask)))
        for sample in range(known.shape[0]):
            unknown = (~known[sample]).nonzero().flatten().tolist()
            if not unknown:
                continue
            if by_label:
                wrong = [c for c in unknown if bool((counted[sample] == c).any())]
            else:
                wrong = [c for c in unknown if c < values.shape[1] and bool((counted[sample, c] > 0).any())]
            wrong = [c for c in wrong if c != self._parts[0].ignore_index]
            if wrong:
                raise ValueError(
                    f"expected voxels of the classes that are annotated in sample {sample} "
                    f"({', '.join(str(int(c)) for c in known[sample].nonzero())}), got some of class "
                    f"{', '.join(map(str, wrong))}: add it to `annotated`, or remove it from the target."
                )

    def _excluded(self, input: Tensor, target: Tensor, mask: Tensor | None, known: Tensor) -> Tensor:
        """The mean over samples and classes without annotation of what they take from the annotated foreground."""
        part = self._parts[0]
        data = part.prepare(input, plain("target", target), mask).data
        (sums,) = fused_sums(data, [_ExclusionSums("softmax")])
        shared, p, foreground, logs, voxels = sums
        overlap = (2 * shared + _SMOOTH) / (p + foreground + _SMOOTH)
        values: Tensor = torch.where(known | (voxels == 0), 0, overlap + logs / voxels.clamp_min(1))
        unknown = ~known & (voxels > 0)
        return values.sum() if part.reduction == "sum" else values.sum() / unknown.sum().clamp_min(1)


@dataclass(frozen=True)
class _ExclusionSums(Term):
    """sum pE, sum p, sum E, sum E log(1+p), sum 1, with E = 1 - g_0: result (5, B, C)."""

    activation: Activation

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return 5, scores.shape[0], scores.shape[1]

    def definition(self, v: Voxels) -> Tensor:
        p = probabilities(v.scores, self.activation)
        foreground = 1 - v.one_hot()[:, :1] if v.target is not None else (v.index() > 0).unsqueeze(1).to(p)
        ones = torch.ones_like(p)
        parts = (p * foreground, p, foreground * ones, foreground * torch.log1p(p), ones)
        return torch.stack([v.weighted(part).sum(-1, dtype=sum_dtype(p.device)) for part in parts])


def _checked_parts(loss: nn.Module, mode: str) -> Iterable[SegmentationLoss]:
    """The losses that a loss consists of, all of them of this package and of the activation of the mode."""
    parts = list(loss.losses.values()) if isinstance(loss, CompoundLoss) else [loss]
    for part in parts:
        if isinstance(part, CompoundLoss):
            yield from _checked_parts(part, mode)
            continue
        name = type(part).__name__
        if not isinstance(part, SegmentationLoss) or isinstance(part, RegressionLoss):
            raise TypeError(
                f"expected a segmentation loss of this package, or a CompoundLoss of such, got {name}: another loss "
                "does not know of classes without annotation."
            )
        per_channel = part.sigmoid or getattr(part, "every_channel", False) or not part.softmax
        if mode == "marginal" and not part.softmax:
            raise ValueError(
                f'expected {name} with softmax=True for mode="marginal", got it without: classes that exclude each '
                'other are what it merges. For regions that overlap, set sigmoid=True and mode="sigmoid".'
            )
        if mode == "sigmoid" and (part.softmax or not per_channel):
            raise ValueError(f'expected {name} with sigmoid=True for mode="sigmoid", got it with a softmax.')
        if part.other_act is not None and mode == "marginal":
            raise ValueError(f"expected {name} without other_act, got one.")
        yield part


def _table(annotated: Any, batch: int, channels: int) -> Tensor:
    """(B, C) bool of what a caller gives, or of what MONAI makes of a vector when it collates."""
    if isinstance(annotated, list | tuple) and annotated and isinstance(annotated[0], Tensor):
        # torch's collate transposes a list of numbers: a tensor of all samples per class.
        stacked = torch.stack([row.reshape(-1) for row in annotated])
        annotated = stacked.t() if stacked.shape == (channels, batch) != (batch, channels) else stacked
    table = annotated if isinstance(annotated, Tensor) else torch.as_tensor(np.asarray(annotated))
    table = plain("annotated", table)
    if table.ndim == 1 and batch == 1:
        table = table.unsqueeze(0)
    if table.shape != (batch, channels):
        raise ValueError(
            f"expected annotated ({batch}, {channels}), one number per sample and class, got {tuple(table.shape)}."
        )
    return table != 0


def _counted(target: Tensor, mask: Tensor | None) -> Tensor:
    """The target, 0 where a voxel does not count."""
    return target if mask is None else target.masked_fill(~(mask > 0), 0)
