"""Skeletons weighted by the radius of the vessel, and the loss that `CenterlineBoundaryDiceLoss` makes of them.

Of a mask with skeleton S and distance D to its outside: R = max(1, largest D on S), d = min(D, R) / R, r = d on S, and
the weight i of a skeleton voxel, r^-(axes-1) or (1 - r + 1/R)^(axes-1). Skeletons and distances have no gradient.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from monai_extra_losses.ops.call_data import Voxels
from monai_extra_losses.ops.distance import signed_distance
from monai_extra_losses.ops.numbers import has_numbers, sum_dtype
from monai_extra_losses.ops.skeletons import ClassMaps, compact_target, skeleton_of_map, soft_skeleton
from monai_extra_losses.ops.terms import Activation, probabilities

RadiusWeight = Literal["inverse", "linear"]


@dataclass(frozen=True)
class CenterlineBoundary:
    """The formula of the loss, for any number of maps at once.

    Args:
        iterations: of the skeletons.
        smooth: s.
        radius_weight: how the weight of a skeleton voxel falls with the radius.
    """

    iterations: int
    smooth: float
    radius_weight: RadiusWeight

    def values(self, p: Tensor, g: Tensor, weight: Tensor | None) -> Tensor:
        """(B, C) values of probabilities p and a target g above 0.5, (B, C, *spatial).

        Args:
            p: with a gradient by autograd.
            g: bool, or numbers.
            weight: (B, 1, *spatial) or None.
        """
        of_p, of_g = self._thickness((p.detach() > 0.5), p.dtype), self._thickness(g > 0.5, p.dtype)
        own, true = of_p.weight * p, of_g.weight
        radius = of_p.radius * p
        parts = (
            own * of_g.depth,
            own * torch.where(of_g.skeleton, of_g.radius, radius),
            true * (of_p.depth * p),
            true * torch.where(of_p.skeleton, radius, of_g.radius),
        )
        found, predicted, reached, target = (self._total(part, weight) for part in parts)
        precision, sensitivity = (
            (share + self.smooth) / (whole + self.smooth) for share, whole in ((found, predicted), (reached, target))
        )
        return 1 - 2 * precision * sensitivity / (precision + sensitivity)

    def _thickness(self, mask: Tensor, dtype: torch.dtype) -> "_Thickness":
        axes = mask.ndim - 2
        skeleton = self._skeletons(mask)
        # Not below 1: a mask that fills the volume has no outside.
        depth = torch.where(mask, (-signed_distance(mask, None, None)).clamp_min(1), 0).to(dtype)
        largest = torch.where(skeleton, depth, 1).flatten(2).amax(2).view(*mask.shape[:2], *[1] * axes)
        depth = torch.minimum(depth, largest) / largest
        radius = torch.where(skeleton, depth, 0)
        if self.radius_weight == "inverse":
            weight = torch.where(skeleton, radius, 1) ** (1 - axes)
        else:
            weight = (1 - radius + 1 / largest) ** (axes - 1)
        return _Thickness(depth, radius, torch.where(skeleton, weight, 0), skeleton)

    def _skeletons(self, mask: Tensor) -> Tensor:
        if not has_numbers(mask):
            return soft_skeleton(mask.float(), self.iterations) > 0.5
        return torch.stack([skeleton_of_map(m, self.iterations) for m in mask.flatten(0, 1)]).view_as(mask)

    def _total(self, part: Tensor, weight: Tensor | None) -> Tensor:
        part = part if weight is None else part * weight
        return part.flatten(2).sum(2, dtype=sum_dtype(part.device))


@dataclass(frozen=True)
class _Thickness:
    """d, r, i and S of masks (B, C, *spatial); 0 outside of the mask, or of its skeleton."""

    depth: Tensor
    radius: Tensor
    weight: Tensor
    skeleton: Tensor


def centerline_boundary_values(
    v: Voxels, spatial: torch.Size, activation: Activation, formula: CenterlineBoundary, first: int
) -> Tensor:
    """(B, C) values; 0 for the classes before `first`.

    A voxel of weight 0 belongs to no class and has p = 0; else the weight multiplies what a voxel adds.

    Args:
        v: all voxels of a call.
        spatial: its spatial shape.
        activation: how scores become probabilities.
        formula: of the loss.
        first: class.
    """
    if has_numbers(v.scores):
        slopes = v.scores.requires_grad and torch.is_grad_enabled()
        values: Tensor = _Values.apply(
            v.scores, compact_target(v), v.weight, spatial, activation, formula, first, slopes
        )
        return values
    p, g = (x.reshape(*x.shape[:2], *spatial) for x in (probabilities(v.scores, activation), v.one_hot()))
    weight = None if v.weight is None else v.weight.reshape(len(p), 1, *spatial)
    if weight is not None:
        p, g = torch.where(weight > 0, p, 0), torch.where(weight > 0, g, 0)
    return torch.where(torch.arange(p.shape[1], device=p.device) < first, 0, formula.values(p, g, weight))


class _Values(torch.autograd.Function):
    """`centerline_boundary_values`, one class of one sample at a time.

    A value depends on one map of p alone, so that its slopes by p are known with it: dL/dp = h dvalue/dp, h the slope
    by the value.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        target: Tensor,
        weight: Tensor | None,
        spatial: torch.Size,
        activation: Activation,
        formula: CenterlineBoundary,
        first: int,
        slopes_wanted: bool,
    ) -> Tensor:
        call = ClassMaps(scores, target, weight, spatial, activation)
        values = torch.zeros(scores.shape[:2], dtype=sum_dtype(scores.device), device=scores.device)
        slopes = torch.zeros_like(scores, memory_format=torch.contiguous_format) if slopes_wanted else None
        for sample in range(scores.shape[0]):
            counted = None if weight is None else weight[sample].view(1, 1, *spatial)
            for c in range(first, scores.shape[1]):
                p, g = (x[None, None].detach() for x in (call.probability(sample, c), call.target(sample, c)))
                with torch.set_grad_enabled(slopes_wanted):
                    value = formula.values(p.requires_grad_(slopes_wanted), g, counted)[0, 0]
                values[sample, c] = value.detach()
                if slopes is not None:
                    slopes[sample, c] = torch.autograd.grad(value, p)[0].flatten()
        ctx.call = (spatial, activation)
        ctx.save_for_backward(scores, target, weight, slopes)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_values: Tensor) -> Any:
        scores, target, weight, slopes = ctx.saved_tensors
        call = ClassMaps(scores, target, weight, *ctx.call)
        gradient = slopes * of_values.to(slopes.dtype).unsqueeze(2)
        return call.of_scores(gradient), None, None, None, None, None, None, None
