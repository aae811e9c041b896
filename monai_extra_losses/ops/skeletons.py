"""Soft skeletons by erosion and opening, the sums over them that `CenterlineDiceLoss` reads, and hard skeletons.

erode(a) is the minimum of a voxel and its face neighbours, dilate(a) the maximum of 3 voxels per axis; what is beyond
the border has no say. The skeleton of a map a_0 = a, a_k = erode(a_(k-1)) after K iterations is

    S_k = S_(k-1) + relu(d_k - S_(k-1) d_k), d_k = relu(a_k - dilate(erode(a_k))), S_(-1) = 0, k = 0..K

`soft_skeleton` is that in plain torch. What `centerline_sums` keeps of it for the backward is the scores alone: one
class of one sample at a time, and of its states (a_k, S_(k-1)) as many as there is room for.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.ops.call_data import Voxels
from monai_extra_losses.ops.neighbourhoods import dilated
from monai_extra_losses.ops.numbers import array_of, has_numbers, numbers_of, sum_dtype
from monai_extra_losses.ops.terms import Activation, probabilities
from monai_extra_losses.versions import PackageMissing

# Maps of one class that are alive at once, in units of the scores: see `_states_to_keep`.
_ROOM, _OF_A_STEP = 8, 15


# --- the definition ---


def soft_skeleton(a: Tensor, iterations: int) -> Tensor:
    """(B, C, *spatial) skeleton of each map, differentiable by autograd."""
    spatial = a.shape[2:]
    a = a.reshape(*a.shape[:2], *spatial, *[1] * (3 - len(spatial)))  # one pooling for 1, 2 and 3 axes
    skeleton = torch.zeros_like(a)
    for _ in range(iterations + 1):
        eroded = _min_of_cross(a, len(spatial))
        ridge = F.relu(a - F.max_pool3d(eroded, 3, 1, 1))
        skeleton = skeleton + F.relu(ridge - skeleton * ridge)
        a = eroded
    return skeleton.reshape(*a.shape[:2], *spatial)


def _min_of_cross(a: Tensor, axes: int) -> Tensor:
    least = a
    for axis in range(axes):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 3, 1
        least = torch.minimum(least, -F.max_pool3d(-a, kernel, 1, padding))
    return least


def centerline_sums(
    v: Voxels, spatial: torch.Size, activation: Activation, iterations: Sequence[int], first: int
) -> Tensor:
    """(4, B, C) sum S_p g, sum S_p, sum S_g p and sum S_g; 0 for the classes before `first`.

    A voxel of weight 0 belongs to no class and has p = 0; else the weight multiplies what a voxel adds.

    Args:
        v: all voxels of a call.
        spatial: its spatial shape.
        activation: how scores become probabilities.
        iterations: K of each sample.
        first: class.
    """
    if has_numbers(v.scores):
        sums: Tensor = _CenterlineSums.apply(
            v.scores, compact_target(v), v.weight, spatial, activation, tuple(iterations), first
        )
        return sums
    p, g = (x.reshape(*x.shape[:2], *spatial) for x in (probabilities(v.scores, activation), v.one_hot()))
    if v.weight is not None:
        counts = (v.weight > 0).reshape(len(p), 1, *spatial)
        p, g = torch.where(counts, p, 0), torch.where(counts, g, 0)
    most = max(iterations, default=0)
    assert all(number == most for number in iterations), "only what can be read has iterations of its own"
    of_p, of_g = soft_skeleton(p, most), soft_skeleton(g, most)
    sums = torch.stack([v.weighted(x.flatten(2)).sum(2, dtype=sum_dtype(p.device)) for x in _parts(of_p, of_g, p, g)])
    return torch.where(torch.arange(p.shape[1], device=p.device) < first, 0, sums)


def compact_target(v: Voxels) -> Tensor:
    """(B, M) labels in few bytes, or the target's numbers (B, C, M)."""
    if v.target is not None:
        return v.target
    # Floats of 16 bits have no number for each class.
    return v.index().to(torch.uint8 if v.scores.shape[1] <= 256 else torch.int32)


def _parts(of_p: Tensor, of_g: Tensor, p: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    return of_p * g, of_p, of_g * p, of_g


# --- the same with a gradient of its own ---


class _CenterlineSums(torch.autograd.Function):
    """`centerline_sums`.

    With h_0, h_1, h_2 the slopes of the first three sums of a class: dL/dS_p = w (h_0 g + h_1), and
    dL/dp = w h_2 S_g + the slope of S_p, taken backwards through the states.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        target: Tensor,
        weight: Tensor | None,
        spatial: torch.Size,
        activation: Activation,
        iterations: tuple[int, ...],
        first: int,
    ) -> Tensor:
        call = ClassMaps(scores, target, weight, spatial, activation)
        batch, channels = scores.shape[:2]
        sums = torch.zeros(4, batch, channels, dtype=sum_dtype(scores.device), device=scores.device)
        kind = torch.bool if target.ndim == 2 else scores.dtype
        skeletons = torch.zeros(batch, channels, *spatial, dtype=kind, device=scores.device)
        for sample in range(batch):
            for c in range(first, channels):
                g, p = call.target(sample, c), call.probability(sample, c)
                of_g = skeletons[sample, c]
                of_g.copy_(skeleton_of_map(g, iterations[sample]))
                of_p = skeleton_of_map(p, iterations[sample])
                for row, part in enumerate(_parts(of_p, of_g, p, g)):
                    weighted = part if weight is None else part * weight[sample].view(spatial)
                    sums[row, sample, c] = weighted.sum(dtype=sums.dtype)
        ctx.call, ctx.iterations, ctx.first = (spatial, activation), iterations, first
        ctx.save_for_backward(scores, target, weight, skeletons)
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> Any:
        scores, target, weight, skeletons = ctx.saved_tensors
        call = ClassMaps(scores, target, weight, *ctx.call)
        batch, channels = scores.shape[:2]
        slopes = slopes.to(scores.dtype)
        gradient = torch.zeros_like(scores, memory_format=torch.contiguous_format)
        keep = _states_to_keep(batch * channels)
        for sample in range(batch):
            for c in range(ctx.first, channels):
                of_p = (call.target(sample, c) * slopes[0, sample, c]).add_(slopes[1, sample, c])
                whole = gradient[sample, c].view(call.spatial)
                if weight is not None:
                    of_p.mul_(weight[sample].view(call.spatial))
                whole.copy_(skeletons[sample, c]).mul_(slopes[2, sample, c])
                if weight is not None:
                    whole.mul_(weight[sample].view(call.spatial))
                whole.add_(_slope_of_skeleton(call.probability(sample, c), of_p, ctx.iterations[sample], keep))
        return call.of_scores(gradient), None, None, None, None, None, None


class ClassMaps:
    """What is read of one class of one sample of a call at a time, (*spatial).

    Args:
        scores: (B, C, M).
        target: (B, M) labels, or numbers like the scores.
        weight: (B, M), or None for 1.
        spatial: the shape of M.
        activation: how scores become probabilities.
    """

    def __init__(
        self, scores: Tensor, target: Tensor, weight: Tensor | None, spatial: torch.Size, activation: Activation
    ) -> None:
        self._scores, self._target, self._weight = scores, target, weight
        self.spatial, self._activation = spatial, activation
        if activation == "softmax":
            self._largest = scores.amax(1)
            self._total = torch.zeros_like(self._largest)
            for c in range(scores.shape[1]):
                self._total += (scores[:, c] - self._largest).exp_()

    def probability(self, sample: int, c: int) -> Tensor:
        score = self._scores[sample, c]
        if self._activation == "softmax":
            p = (score - self._largest[sample]).exp_().div_(self._total[sample])
        else:
            p = score.sigmoid() if self._activation == "sigmoid" else score
        if self._weight is not None:
            p = p.masked_fill(self._weight[sample] == 0, 0)
        return p.view(self.spatial)

    def target(self, sample: int, c: int) -> Tensor:
        """Bool of a target of labels, else its numbers."""
        if self._target.ndim == 2:
            g = self._target[sample] == c
            return (g if self._weight is None else g & (self._weight[sample] > 0)).view(self.spatial)
        g = self._target[sample, c]
        return (g if self._weight is None else g.masked_fill(self._weight[sample] == 0, 0)).view(self.spatial)

    def of_scores(self, gradient: Tensor) -> Tensor:
        """The slope by the scores of one by the probabilities, in its place."""
        samples, channels = gradient.shape[:2]
        for sample in range(samples):
            total: Tensor | None = None
            for c in range(channels):
                p, slope = self.probability(sample, c).flatten(), gradient[sample, c]
                if self._weight is not None:
                    slope.masked_fill_(self._weight[sample] == 0, 0)
                if self._activation == "sigmoid":
                    slope.mul_(p).mul_(1 - p)
                elif self._activation == "softmax":  # dL/dx_c = p_c (dL/dp_c - sum_k p_k dL/dp_k)
                    slope.mul_(p)
                    total = slope.clone() if total is None else total.add_(slope)
            if total is None:
                continue
            for c in range(channels):
                gradient[sample, c].sub_(self.probability(sample, c).flatten().mul_(total))
        return gradient


def _states_to_keep(maps: int) -> int:
    """How many states, of two maps each, there is room for beside the gradient and one step."""
    return max(((_ROOM - 1) * maps - _OF_A_STEP) // 2, 0)


def skeleton_of_map(a: Tensor, iterations: int) -> Tensor:
    """(*spatial) skeleton of one map; of a bool map exactly what its numbers give."""
    skeleton = a.new_zeros(()).expand_as(a)
    for _ in range(iterations + 1):
        a, skeleton = _next_state(a, skeleton)
    return skeleton


def _next_state(a: Tensor, skeleton: Tensor) -> tuple[Tensor, Tensor]:
    eroded = _extreme(a, range(a.ndim), torch.minimum)
    opened = eroded
    for axis in range(a.ndim):
        opened = _extreme(opened, [axis], torch.maximum)
    if a.dtype == torch.bool:
        return eroded, skeleton | (a & ~opened)
    ridge = torch.sub(a, opened, out=opened).clamp_min_(0)
    return eroded, ridge.addcmul_(skeleton, ridge, value=-1).clamp_min_(0).add_(skeleton)


def _extreme(a: Tensor, axes: Sequence[int], of_two: Any) -> Tensor:
    """The least or largest of each voxel and its neighbours along the axes."""
    result = a.clone(memory_format=torch.contiguous_format)
    for axis in axes:
        n = a.shape[axis] - 1
        for start, other in ((0, 1), (1, 0)):
            part = result.narrow(axis, start, n)
            of_two(part, a.narrow(axis, other, n), out=part)
    return result


def _slope_of_skeleton(a: Tensor, slope: Tensor, iterations: int, keep: int) -> Tensor:
    """dL/da of dL/dS; `slope` is written to. States that are not kept are computed again."""
    states = [(0, a, a.new_zeros(()).expand_as(a))]
    of_eroded = torch.zeros_like(a)
    for step in range(iterations, -1, -1):
        while states[-1][0] > step:
            states.pop()
        at, a, skeleton = states[-1]
        while at < step:
            free = keep - len(states) + 1
            until = at + -(-(step - at) // (free + 1)) if free > 0 else step
            for _ in range(until - at):
                a, skeleton = _next_state(a, skeleton)
            at = until
            if free > 0 and at < step:
                states.append((at, a, skeleton))
        of_eroded, slope = _slope_of_step(a, skeleton, of_eroded, slope)
    return of_eroded


def _slope_of_step(a: Tensor, skeleton: Tensor, of_eroded: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes by a state (a_k, S_(k-1)), of those by the next, (a_(k+1), S_k), which are written to."""
    opened, by_axis = _extreme(a, range(a.ndim), torch.minimum), []
    for axis in range(a.ndim):
        opened, sources = _sources(opened, [axis], torch.gt, torch.maximum)
        by_axis.append(sources)
    ridge = torch.sub(a, opened, out=opened)
    is_ridge = ridge > 0
    ridge.clamp_min_(0)
    # S' = S + relu(d (1-S)): dS'/dd = 1-S and dS'/dS = 1-d where the relu is open.
    of_ridge = slope.masked_fill(torch.addcmul(ridge, skeleton, ridge, value=-1) <= 0, 0)
    slope.addcmul_(of_ridge, ridge, value=-1)
    del ridge, opened
    of_ridge.addcmul_(of_ridge, skeleton, value=-1).masked_fill_(~is_ridge, 0)
    of_opened = of_ridge.neg()
    while by_axis:
        of_opened = _handed_back(of_opened, by_axis.pop())
    of_eroded.add_(of_opened)
    del of_opened
    by_erosion = _sources(a, range(a.ndim), torch.lt, torch.minimum)[1]  # not before: they are 6 maps of bool
    return _handed_back(of_eroded, by_erosion).add_(of_ridge), slope


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a voxel takes the number of its neighbour along an axis, so far."""

    axis: int
    start: int
    other: int
    taken: Tensor


def _sources(a: Tensor, axes: Sequence[int], better: Any, of_two: Any) -> tuple[Tensor, list[_Source]]:
    """`_extreme`, and where its numbers come from. A later source takes a voxel from an earlier one."""
    result, sources = a.clone(memory_format=torch.contiguous_format), []
    for axis in axes:
        n = a.shape[axis] - 1
        for start, other in ((0, 1), (1, 0)):
            part, neighbour = result.narrow(axis, start, n), a.narrow(axis, other, n)
            sources.append(_Source(axis, start, other, better(neighbour, part)))
            of_two(part, neighbour, out=part)
    return result, sources


def _handed_back(slope: Tensor, sources: Sequence[_Source]) -> Tensor:
    """The slope by a map, of that by the extremes of it, which is written to."""
    result = torch.zeros_like(slope)
    for source in reversed(sources):
        n = slope.shape[source.axis] - 1
        part = slope.narrow(source.axis, source.start, n)
        result.narrow(source.axis, source.other, n).addcmul_(part, source.taken)
        part.masked_fill_(source.taken, 0)
    return result.add_(slope)


# --- the thickness of a label ---


def half_widths(regions: Tensor) -> list[int]:
    """Of each sample the number of erosions that the thickest of its regions (B, C, *spatial) bool outlives, and one.

    So the half width of a tube, rounded up. A region that fills the volume has no end; it counts as thick as that.
    """
    numbers = []
    for sample in regions:
        number = 1
        for region in sample:
            erosions, left = 0, region
            while erosions < max(region.shape) and bool(left.any()):
                left = _extreme(left, range(left.ndim), torch.minimum)
                erosions += 1
            number = max(number, erosions)
        numbers.append(number)
    return numbers


# --- hard skeletons ---


@torch.compiler.disable  # type: ignore[untyped-decorator]
def tubes_of_labels(labels: Tensor, first: int, *, union: bool) -> Tensor:
    """(B, *spatial) bool: the voxels in the tube of their own class, of those from `first` on.

    Args:
        labels: (B, *spatial) whole numbers; those below `first` belong to none.
        first: class.
        union: take the skeleton of all classes as one, not of each.
    """
    tubes = torch.zeros_like(labels, dtype=torch.bool)
    if not _can_be_read(labels):
        return tubes
    classes = [] if union else [c for c in np.unique(array_of(labels)).tolist() if c >= first]
    for c in classes:
        tubes |= tubes_of_mask(labels == c)
    return tubes_of_mask(labels >= first) if union else tubes


@torch.compiler.disable  # type: ignore[untyped-decorator]
def tubes_of_regions(regions: Tensor, *, union: bool) -> Tensor:
    """(B, C, *spatial) bool: the tube of each region (B, C, *spatial) bool."""
    if not _can_be_read(regions):
        return torch.zeros_like(regions)
    if union:
        return _thickened(hard_skeletons(regions.any(1))).unsqueeze(1) & regions
    return tubes_of_mask(regions.flatten(0, 1)).view_as(regions)


def tubes_of_mask(mask: Tensor) -> Tensor:
    """(B, *spatial) bool: the skeleton and what is up to two steps off it, within the mask (B, *spatial)."""
    return _thickened(hard_skeletons(mask)) & mask


def _can_be_read(target: Tensor) -> bool:
    """Whether a tensor has numbers.

    Raises:
        ValueError: one that stands for those of several calls, under vmap.
    """
    known = numbers_of(target)
    if known is not None and known.shape != target.shape:
        raise ValueError(
            "expected a skeleton where the target cannot be read (vmap), got none; give the tubes of "
            "transforms.Skeleton."
        )
    return known is not None


def _thickened(skeletons: Tensor) -> Tensor:
    return dilated(dilated(skeletons, 1), 1)


def hard_skeletons(mask: Tensor) -> Tensor:
    """(B, *spatial) bool: scikit-image's skeletons, on the CPU.

    Raises:
        ImportError: without scikit-image.
    """
    refuse_without_scikit_image()
    skeletonize = importlib.import_module("skimage.morphology").skeletonize
    found = torch.zeros_like(mask)
    for sample, of in zip(found, mask, strict=True):
        region = array_of(of)
        if region.any():
            lines = region[None] if region.ndim == 1 else region
            sample.copy_(torch.from_numpy(skeletonize(lines).astype(bool).reshape(region.shape)))
    return found


def refuse_without_scikit_image() -> None:
    """Say what to install, before anything is computed.

    Raises:
        PackageMissing: an ImportError.
    """
    try:
        importlib.import_module("skimage.morphology")
    except ImportError:
        raise PackageMissing(
            "expected scikit-image, which makes the skeletons, got none; install it: pip install scikit-image, or this "
            "package with its extra [vessels]."
        ) from None
