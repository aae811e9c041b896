"""Losses of how structures hang together: that thin ones are connected, and which may touch which."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Unpack

import torch
from torch import Tensor

from monai_extra_losses.losses.base import TARGET_SUMS, SegmentationLoss, Sums, Terms
from monai_extra_losses.losses.distribution import CrossEntropyLoss
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.options import AbsentClass, Positive, SegmentationOptions, ValueRange, one_of
from monai_extra_losses.ops.centerline_boundary import CenterlineBoundary, RadiusWeight, centerline_boundary_values
from monai_extra_losses.ops.fused_sums import fused_sums
from monai_extra_losses.ops.neighbourhoods import dilated
from monai_extra_losses.ops.numbers import has_numbers, sum_dtype
from monai_extra_losses.ops.skeletons import centerline_sums, half_widths, tubes_of_labels, tubes_of_regions
from monai_extra_losses.ops.terms import CountSums, TargetSums


class CenterlineDiceLoss(SegmentationLoss):
    """Centerline Dice loss (clDice): how much of the skeleton of each lies in the other.

    1 - 2 T_p T_s / (T_p + T_s), T_p = (sum S_p g + s) / (sum S_p + s), T_s = (sum S_g p + s) / (sum S_g + s)

    S_p and S_g are the soft skeletons of prediction and target, per sample and class: S = relu(a - open(a)), and then
    K times a = erode(a), d = relu(a - open(a)), S = S + relu(d - S d). erode(a) is the least of a voxel and its face
    neighbours, open(a) the largest of 3 voxels per axis of that. A cut through a thin tube costs more than as many
    voxels off its side. It knows little of how thick a tube is, so give it a region loss as partner, usually half and
    half.

    The authors' code and MONAI's SoftclDiceLoss (1.6.1) sum over all channels before the ratios, so that the largest
    class decides, and smooth with 1, with which what is missed of a short vessel costs little; they take 3 iterations.
    MONAI adds 1e-4 to T_p + T_s, too. For one channel `smooth=1.0, iterations=3` is theirs, up to the 1e-4.

    Args:
        iterations: K >= 1; 10. Vessels thicker than about 2K+1 voxels have no skeleton. None: of each sample the
            largest half width of its classes kept, in voxels, which has to be read in every call.
        smooth: s > 0; 1e-5.
        absent_class: of a class without a voxel in the target. "smooth": 0 where none of it is predicted, and soon 1 by
            the voxels of its skeleton; "skip": it leaves the mean.
        **options: see `SegmentationLoss`. The background, which is no tube, is left out by default. `weight` multiplies
            the loss of each class kept and is not normalised. "mean" is over samples and classes kept; "none" gives
            (B, C', 1, ..). An ignored voxel belongs to no class and its prediction is replaced by its target; a float
            mask multiplies what a voxel adds.

    Shapes: see `SegmentationLoss`. Extra memory: up to 8 times the scores from 2 classes on, 13 times with one; for
        labels in float a byte per voxel more.

    Raises:
        ValueError: an option out of range, sync_batch=True, iterations=None where the target cannot be read
            (torch.compile, vmap, the meta device); else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = CenterlineDiceLoss()
        >>> target = torch.zeros(1, 1, 9, 9)
        >>> target[..., 4, 1:8] = 1
        >>> cut = target.clone()
        >>> cut[..., 4, 4] = 0  # T_p = 1, T_s = 6/7
        >>> round(loss(target, target).item(), 4), round(loss(cut, target).item(), 4)
        (0.0, 0.0769)

    Reference: Shit et al. 2021, arXiv:2003.07311.
    """

    defaults: ClassVar[dict[str, bool]] = {"include_background": False}
    target_gradient = False
    unsyncable = "it averages samples of its own"

    def __init__(
        self,
        iterations: Annotated[int | None, ValueRange(">= 1, or None", lambda k: k is None or k >= 1)] = 10,
        smooth: Positive = 1e-5,
        *,
        absent_class: AbsentClass = "smooth",
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        self.iterations, self.smooth = iterations, smooth
        self.absent_class = one_of("absent_class", absent_class, AbsentClass)

    def terms(self, inputs: LossInputs) -> Terms:
        return {"target": TARGET_SUMS}

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        first = 0 if self.include_background or inputs.channels == 1 else 1
        table = centerline_sums(
            inputs.whole(), inputs.scores.shape[2:], self.activation(inputs), self._iterations(inputs, first), first
        )
        volumes, voxels = sums["target"]
        keep = volumes > 0 if self.absent_class == "skip" else voxels > 0
        predicted_inside, predicted, target_inside, target = self.without_background(table, axis=2)
        precision = (predicted_inside + self.smooth) / (predicted + self.smooth)
        sensitivity = (target_inside + self.smooth) / (target + self.smooth)
        values = 1 - 2 * precision * sensitivity / (precision + sensitivity)
        return self.reduced_pairs(self.times_weight(values), self.without_background(keep), inputs.axes)

    def _iterations(self, inputs: LossInputs, first: int) -> list[int]:
        """K of each sample."""
        if self.iterations is not None:
            return [self.iterations] * inputs.scores.shape[0]
        if not has_numbers(inputs.data.target):
            raise ValueError(
                "expected a number of iterations where the target cannot be read (torch.compile, vmap, the meta "
                "device), got None: set iterations to the largest half width of the vessels in voxels."
            )
        with torch.no_grad():
            return half_widths(inputs.geometry.target_regions()[:, first:])


class CenterlineBoundaryDiceLoss(SegmentationLoss):
    """Centerline boundary Dice loss (cbDice): clDice that knows how thick a vessel is, and counts thin ones as much.

    1 - 2 T_p T_g / (T_p + T_g), T_p = (sum S_p i_p p d_g + s) / (sum S_p i_p p m_p + s), m_p = r_g on S_g, else r_p p;
    T_g = (sum S_g i_g p d_p + s) / (sum S_g i_g m_g + s), m_g = r_p p on S_p, else r_g

    S_p and S_g are the skeletons of the prediction, p > 0.5, and of the target, per sample and class, as
    `CenterlineDiceLoss` makes them. Of each, D is the distance to its outside in voxels, R the largest on the skeleton
    and at least 1, d = min(D, R) / R, 0 outside, and r = d on the skeleton; i = r^-2 in 3D and 1/r in 2D, so that a
    thin branch weighs as much as a thick one. Skeletons and distances have no gradient, and voxels with p below 0.5 get
    none, so that it closes no gap alone: give it Dice and cross-entropy as partners; in the authors' trainer they have
    the weights 1 and 2 beside its 1.

    T_p and T_g may exceed 1, and the loss fall below that of a perfect prediction, which is 0, where one skeleton runs
    beside the other inside a thicker vessel. Formula and both forms of i are those of the authors' code of 2024, which
    smooths with 0.001, takes all foreground classes as one, and since prefers the linear form; that the paper prints
    the same is not confirmed.

    Args:
        iterations: of the skeletons, >= 1; 10. Vessels thicker than about 2K+1 voxels have no skeleton.
        smooth: s > 0; 1e-5.
        radius_weight: "inverse": i as above; "linear": i = (1 - r + 1/R)^2 in 3D, 1 - r + 1/R in 2D.
        absent_class: of a class without a voxel in the target. "smooth": 0 where none of it has p > 0.5, and soon 1 by
            the voxels of its skeleton; "skip": it leaves the mean.
        **options: see `SegmentationLoss`. The background, which is no tube, is left out by default. `weight` multiplies
            the loss of each class kept and is not normalised. "mean" is over samples and classes kept; "none" gives
            (B, C', 1, ..). An ignored voxel belongs to no class and has p = 0; a float mask multiplies what a voxel
            adds. Of a target of C channels a class is what is above 0.5.

    Shapes: see `SegmentationLoss`. Extra memory: twice the scores, and about 20 maps of one class of one sample.

    Raises:
        ValueError: an option out of range, sync_batch=True; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = CenterlineBoundaryDiceLoss()
        >>> target = torch.zeros(1, 1, 9, 9)
        >>> target[..., 4, 1:8] = 1
        >>> cut = target.clone()
        >>> cut[..., 4, 4] = 0  # T_p = 1, T_g = 6/7
        >>> round(loss(target, target).item(), 4), round(loss(cut, target).item(), 4)
        (0.0, 0.0769)

    Reference: Shi et al. 2024, arXiv:2407.01517.
    """

    defaults: ClassVar[dict[str, bool]] = {"include_background": False}
    target_gradient = False
    unsyncable = "it averages samples of its own"

    def __init__(
        self,
        iterations: Annotated[int, ValueRange(">= 1", lambda k: k >= 1)] = 10,
        smooth: Positive = 1e-5,
        *,
        radius_weight: RadiusWeight = "inverse",
        absent_class: AbsentClass = "smooth",
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        self.iterations, self.smooth = iterations, smooth
        self.radius_weight = one_of("radius_weight", radius_weight, RadiusWeight)
        self.absent_class = one_of("absent_class", absent_class, AbsentClass)

    def terms(self, inputs: LossInputs) -> Terms:
        return {"target": TARGET_SUMS}

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        first = 0 if self.include_background or inputs.channels == 1 else 1
        formula = CenterlineBoundary(self.iterations, self.smooth, self.radius_weight)
        spatial = inputs.scores.shape[2:]
        values = centerline_boundary_values(inputs.whole(), spatial, self.activation(inputs), formula, first)
        volumes, voxels = sums["target"]
        keep = volumes > 0 if self.absent_class == "skip" else voxels > 0
        values, keep = self.without_background(values), self.without_background(keep)
        return self.reduced_pairs(self.times_weight(values), keep, inputs.axes)


Pairs = Sequence[Sequence[int]] | None


class TopologicalInteractionLoss(CrossEntropyLoss):
    """Topological interaction loss: cross-entropy where predicted classes touch that must not.

    sum_V CE / N, V = (dil(B) and A) or (dil(A) and B)

    A and B are the voxels that the prediction gives to the classes of a pair (argmax, without gradient); dil adds the
    neighbours. With `exclusion` a and b must not touch. With `inclusion` a lies inside b: it must not touch what is
    neither, which stands in B's place. V joins those of all pairs, and N counts all voxels. Errors that break no rule
    cost nothing, so it needs a partner such as Dice + cross-entropy.

    The authors' code sums, where this is a mean: their weight lambda is lambda N here. With their 1e-6 in 3D, and 2
    patches of 128^3, that is 4.2; with 1 of 64^3, 0.26.

    Args:
        exclusion: pairs [a, b] of classes that must not touch.
        inclusion: pairs [a, b]: a must be enclosed by b.
        connectivity: neighbours are up to one step off in so many axes: 1 are those with a common face. None: in all,
            8 neighbours in 2D and 26 in 3D, as in the paper.
        **options: see `DistributionLoss`. An ignored voxel belongs to no class, nor to what is neither of two. Class
            `weight`: sum_V w l / sum w. `sigmoid` is refused.

    Shapes: see `SegmentationLoss`, of at least 2 classes.

    Raises:
        ValueError: no pairs, a class with itself, sigmoid=True; in a call a class that the input has no channel for, a
            connectivity above the number of axes; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = TopologicalInteractionLoss(exclusion=[[1, 2]], to_onehot_y=True, softmax=True, reduction="none")
        >>> predicted = torch.tensor([[0, 0, 1, 1, 2, 0]])  # 1 touches 2
        >>> scores = torch.nn.functional.one_hot(predicted).movedim(-1, 1).float()
        >>> (loss(scores, torch.zeros(1, 1, 6)) > 0).int().tolist()
        [[[0, 0, 0, 1, 1, 0]]]

    Reference: Gupta et al. 2022, arXiv:2207.09654.
    """

    left_out: ClassVar[dict[str, str]] = {"label_smoothing": "its voxels have one true class"}
    target_gradient = False
    keeps_map = True

    def __init__(
        self,
        exclusion: Pairs = None,
        inclusion: Pairs = None,
        connectivity: Annotated[
            int | None, ValueRange("in 1 to 3, or None", lambda k: k is None or 1 <= k <= 3)
        ] = None,
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        if self.sigmoid:
            raise ValueError(
                "expected sigmoid=False, got True: regions that overlap are no classes that touch; set softmax=True."
            )
        self.exclusion, self.inclusion = _checked_pairs("exclusion", exclusion), _checked_pairs("inclusion", inclusion)
        if not self.exclusion and not self.inclusion:
            raise ValueError("expected pairs of classes, got none; give exclusion, inclusion or both, as [[1, 2]].")
        self.connectivity = connectivity

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        losses = sums["losses"]
        # What is not a number stays, where it is no critical voxel too.
        losses = torch.where(self._critical(inputs).unsqueeze(1) | losses.isnan(), losses, 0)
        if self.reduction == "none":
            return losses
        return self.mean_or_sum(losses.sum(dtype=sum_dtype(losses.device)), self.divisor(inputs, sums))

    @torch.no_grad()
    def _critical(self, inputs: LossInputs) -> Tensor:
        """(B, *spatial) V."""
        if self.connectivity is not None and self.connectivity > inputs.axes:
            raise ValueError(
                f"expected connectivity in 1 to {inputs.axes} for an input of {inputs.axes} spatial axes, got "
                f"{self.connectivity}; None takes all axes."
            )
        reach = inputs.axes if self.connectivity is None else self.connectivity
        critical = torch.zeros_like(inputs.data.target[:, 0], dtype=torch.bool)
        for a, b in self._touching(inputs):
            critical |= (dilated(b, reach) & a) | (dilated(a, reach) & b)
        return critical

    def _touching(self, inputs: LossInputs) -> Iterator[tuple[Tensor, Tensor]]:
        """The two sets of voxels of each pair that must not touch."""
        channels, predicted = inputs.channels, inputs.geometry.chosen_labels()
        for pairs in (self.exclusion, self.inclusion):
            for a, b in pairs or ():
                if max(a, b) >= channels:
                    raise ValueError(
                        f"expected pairs of classes in 0..{channels - 1} (input has {channels} channels), got "
                        f"[{a}, {b}]; correct the pair, or give the network more channels."
                    )
                own, other = predicted == a, predicted == b
                if inputs.annotated is not None:  # a rule about a class that nobody looked for is none
                    known = inputs.annotated[:, a] & inputs.annotated[:, b]
                    own = own & known.view(-1, *[1] * inputs.axes)
                # The number of channels is that of a voxel that does not count.
                yield own, other if pairs is self.exclusion else ~own & ~other & (predicted < channels)


def _checked_pairs(name: str, pairs: Pairs) -> list[list[int]] | None:
    if pairs is None:
        return None
    if isinstance(pairs, str) or not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"expected {name} to be a list of pairs of classes, got {pairs!r}; write [[1, 2]].")
    for pair in pairs:
        if not all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in pair) or pair[0] == pair[1]:
            raise ValueError(
                f"expected {name} to be pairs of two classes, whole numbers >= 0, got {list(pair)}; correct the pair."
            )
    return [list(pair) for pair in pairs] or None


class SkeletonRecallLoss(SegmentationLoss):
    """Skeleton recall loss: the share of the target's skeleton, somewhat thickened, that the prediction finds.

    1 - (sum p S + s) / (sum S + s), S = dil(dil(skeleton(y))) and y

    y is the target's class, without the voxels that do not count, dil adds the neighbours with a common face. A recall
    alone is perfect where everything is predicted, so give it partners, in the paper Dice + cross-entropy, 1 : 1 : 1. A
    class that has no skeleton leaves the mean, whatever is predicted of it.

    The authors' code takes the skeleton of all foreground classes as one (`union=True`), by which two vessels that
    touch lose half of theirs, and smooths with 1 (`smooth=1.0`).

    Args:
        union: take the skeleton of the union of the classes kept, not of each.
        smooth: s > 0; 1e-5.
        **options: see `SegmentationLoss`. The background, which is no tube, is left out by default. `weight` multiplies
            the loss of each class kept and is not normalised. "mean" is over samples and classes kept that have a
            skeleton; "none" gives (B, C', 1, ..), with 0 for the others. A float mask counts a voxel that many times.

    Shapes: see `SegmentationLoss`; forward(input, target, mask=None, skeleton=None).

    Raises:
        ImportError: a call without `skeleton` where scikit-image is missing.
        ValueError: an option out of range, sync_batch=True; a call without `skeleton` under vmap; else see
            `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = SkeletonRecallLoss(include_background=True)
        >>> target = torch.ones(1, 1, 1, 4)
        >>> found, tube = torch.tensor([[[[1.0, 1.0, 1.0, 0.0]]]]), torch.tensor([[[[0, 1, 1, 1]]]])
        >>> round(loss(found, target, skeleton=tube).item(), 4)  # 2 of 3
        0.3333

    Reference: Kirchhoff et al. 2024, arXiv:2404.03010.
    """

    defaults: ClassVar[dict[str, bool]] = {"include_background": False}
    target_gradient = False
    unsyncable = "it averages samples of its own"

    def __init__(self, *, union: bool = False, smooth: Positive = 1e-5, **options: Unpack[SegmentationOptions]) -> None:
        super().__init__(**options)
        self.union, self.smooth = union, smooth

    def forward(
        self, input: Tensor, target: Tensor, mask: Tensor | None = None, skeleton: Tensor | None = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            input: (B, C, *spatial) scores or probabilities, of any float dtype.
            target: (B, 1, *spatial) labels with `to_onehot_y`, else (B, C, *spatial), where a class is what is above
                0.5.
            mask: (B, 1, *spatial) bool, or float weights per voxel; a voxel of weight 0 belongs to no class.
            skeleton: like the target, not 0 where a voxel is in the tube of its label, or of the class of its channel,
                as `monai_extra_losses.transforms.Skeletond` makes them from the whole volume. None: they are made here,
                on the CPU, with scikit-image.

        Returns:
            A scalar, or with reduction="none" what the class says; float32, or float64 for a float64 input.
        """
        return self.computed(self.prepare(input, target, mask, skeleton=skeleton))

    def terms(self, inputs: LossInputs) -> Terms:
        return {"target": TARGET_SUMS}  # counting finds wrong labels

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        data = inputs.read("activated")
        tubes, counts = self._tubes(inputs), data.voxels_that_count()
        mask = data.mask
        if data.labels:  # a voxel is in no tube but that of its own class
            counts = tubes if counts is None else counts & tubes
            in_tubes = dataclasses.replace(data, mask=counts if mask is None else mask * counts, ignore_index=None)
            in_tubes = dataclasses.replace(in_tubes, target=data.target.masked_fill(~counts, 0))
        else:
            if counts is not None:
                mask = counts if mask is None else mask * counts
            in_tubes = dataclasses.replace(data, target=tubes.to(data.dtype), mask=mask, ignore_index=None)
        (found, predicted), (all_of_it, _) = fused_sums(in_tubes, [CountSums(self.activation(inputs)), TargetSums()])
        keep = all_of_it > 0
        if inputs.annotated is not None:
            keep = keep & inputs.annotated
        values = 1 - (found + self.smooth) / (all_of_it + self.smooth)
        values = torch.where(predicted.isnan(), predicted, values)
        values, keep = self.without_background(values), self.without_background(keep)
        return self.reduced_pairs(self.times_weight(values), keep, inputs.axes)

    @torch.no_grad()
    def _tubes(self, inputs: LossInputs) -> Tensor:
        """Bool like the target, see `forward`."""
        if inputs.skeleton is not None:
            return inputs.skeleton != 0
        first = 0 if self.include_background or inputs.channels == 1 else 1
        if inputs.data.labels:
            labels = inputs.geometry.labels().int()
            labels = labels.masked_fill(labels == inputs.channels, -1)
            of_labels: Tensor = tubes_of_labels(labels, first, union=self.union)
            return of_labels.unsqueeze(1)
        regions = inputs.geometry.target_regions()
        if inputs.annotated is not None:  # a union is of what is annotated
            regions = regions & inputs.annotated.view(*inputs.annotated.shape, *[1] * inputs.axes)
        tubes = torch.zeros_like(regions)
        tubes[:, first:] = tubes_of_regions(regions[:, first:], union=self.union)
        return tubes
