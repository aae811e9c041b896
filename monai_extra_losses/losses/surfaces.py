"""A loss of surfaces: how much of them agrees within a tolerance in mm."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from monai_extra_losses.losses.base import TARGET_SUMS, SegmentationLoss, Sums, Terms
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.options import AbsentClass, Positive, SegmentationOptions, one_of
from monai_extra_losses.ops.balls import argmax_of_ball, argmin_of_box
from monai_extra_losses.ops.distance import SpacingOption, checked_spacing, spacing_rows
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.terms import probabilities


class SurfaceDiceLoss(SegmentationLoss):
    """Surface Dice loss: the Dice of soft surfaces, each thickened by a tolerance.

    1 - (2 sum B_p B_g + s) / (sum B_p + sum B_g + s), B = max of b over a ball of radius tau, b(p) = p - minpool_3(p)

    b is the rim of a region: the voxels with one in the 3 per axis around them that is less. A ball in mm is wider in
    voxels along a fine axis. Where tau is below the spacing, the rims have to agree in their voxels. It knows little of
    the inside, so give it a region loss as partner. A surrogate of the metric of that name, which it does not equal: it
    compares bands, not areas.

    Args:
        tolerance_mm: tau > 0, in mm, or in voxels without spacing; 1.
        smooth: s > 0; 1e-5.
        spacing: the voxel size: "auto", None or mm per axis; see `DistanceLoss`.
        absent_class: of a class without a voxel in the target. "smooth": it costs what the formula says, where any of
            it is predicted, and leaves the mean where none is; "skip": it leaves the mean.
        **options: see `SegmentationLoss`. `weight` multiplies the loss of each class kept and is not normalised. "mean"
            is over samples and classes kept; "none" gives (B, C', 1, ..), with 0 for what is left out. An ignored voxel
            belongs to no class and its prediction is replaced by its target; a float mask multiplies what a voxel adds.

    Shapes: see `SegmentationLoss`. Extra memory: up to 10 times the scores.

    Raises:
        ValueError: an option out of range, sync_batch=True, a spacing of another number of axes; else see
            `SegmentationLoss`.

    Example:
        >>> import torch
        >>> target = torch.zeros(1, 1, 9, 9)
        >>> target[..., 3:6, 3:6] = 1
        >>> moved = target.roll(1, -1)
        >>> [round(SurfaceDiceLoss(tolerance_mm=t)(moved, target).item(), 4) for t in (0.5, 1.0)]
        [0.5, 0.2381]

    Reference: after the loss of the MIST toolbox (github.com/mist-medical/MIST), which takes a box in place of the
    ball, and counts a class that is absent as 1.
    """

    target_gradient = False
    unsyncable = "it averages samples of its own"

    def __init__(
        self,
        tolerance_mm: Positive = 1.0,
        smooth: Positive = 1e-5,
        *,
        spacing: SpacingOption = "auto",
        absent_class: AbsentClass = "smooth",
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        self.tolerance_mm, self.smooth = tolerance_mm, smooth
        self.spacing = checked_spacing(spacing)
        self.absent_class = one_of("absent_class", absent_class, AbsentClass)

    def terms(self, inputs: LossInputs) -> Terms:
        return {"target": TARGET_SUMS}

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        v, spatial = inputs.whole(), inputs.scores.shape[2:]
        p, g = probabilities(v.scores, self.activation(inputs)), v.one_hot()
        if v.weight is not None:
            counts = (v.weight > 0).unsqueeze(1)
            p, g = torch.where(counts, p, 0), torch.where(counts, g, 0)
        p, g = self.without_background(p), self.without_background(g)
        both, of_p, of_g = self._overlaps(inputs, p, g, v.weight, spatial).unbind(-1)
        values = 1 - (2 * both + self.smooth) / (of_p + of_g + self.smooth)
        values = torch.where(p.isnan().any(2), torch.nan, values)
        volumes, voxels = (self.without_background(row) for row in sums["target"])
        there = volumes > 0 if self.absent_class == "skip" else (volumes > 0) | (p > 0).any(2)
        keep = there & (voxels > 0)
        if inputs.annotated is not None:
            keep = keep & self.without_background(inputs.annotated)
        return self.reduced_pairs(self.times_weight(values), keep, inputs.axes)

    def _overlaps(self, inputs: LossInputs, p: Tensor, g: Tensor, weight: Tensor | None, spatial: torch.Size) -> Tensor:
        """(B, C', 3) sum B_p B_g, sum B_p and sum B_g, from p and g (B, C', M)."""
        if not len(p):
            return p.new_zeros(*p.shape[:2], 3) + p.sum()  # with a gradient, of no voxels
        samples = []
        for n, mm in enumerate(spacing_rows(inputs.geometry.spacing(self.spacing), len(p), len(spatial))):
            w = None if weight is None else weight[n]
            pairs = zip(p[n], g[n], strict=True)
            rims = ([_surface(x.view(spatial), self.tolerance_mm, mm) for x in pair] for pair in pairs)
            samples.append(torch.stack([_overlap(of_p, of_g, w) for of_p, of_g in rims]))
        return torch.stack(samples)


def _overlap(of_p: Tensor, of_g: Tensor, weight: Tensor | None) -> Tensor:
    """(3,) sum B_p B_g, sum B_p and sum B_g of maps (M,)."""
    parts = torch.stack([of_p * of_g, of_p, of_g])
    return (parts if weight is None else parts * weight).sum(1, dtype=sum_dtype(of_p.device))


def _surface(x: Tensor, tolerance_mm: float, spacing: Sequence[float]) -> Tensor:
    """(M,) B of one map (*spatial)."""
    flat = x.flatten()
    rim = flat - flat.index_select(0, argmin_of_box(x.detach()).flatten())
    places = argmax_of_ball(rim.detach().view(x.shape), tolerance_mm, spacing)
    return rim.index_select(0, places.flatten())
