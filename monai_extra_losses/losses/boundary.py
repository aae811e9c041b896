"""Boundary losses: formulas of p, g and a map of distances to the target's boundary, in mm where spacing is known."""

from abc import abstractmethod
from typing import Annotated, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.losses.base import TARGET_SUMS, SegmentationLoss, Sums, Terms
from monai_extra_losses.losses.distribution import CrossEntropyLoss
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.options import (
    AbsentClass,
    DistanceOptions,
    Positive,
    SegmentationOptions,
    ValueRange,
    one_of,
    refuse_negative,
)
from monai_extra_losses.ops.contours import contours_of
from monai_extra_losses.ops.distance import (
    SpacingOption,
    boundary_distance,
    checked_spacing,
    distance_to_mask,
    distance_to_other_label,
)
from monai_extra_losses.ops.neighbourhoods import cross_mean
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.terms import CountSums, MapSums, probabilities


class DistanceLoss(SegmentationLoss):
    """Base of the losses that are a sum over the voxels of each sample and class, with a map of distances.

    Args:
        batch: pool the voxels of the samples of a batch.
        spacing: "auto": the voxel size in mm, from the affine of a MetaTensor target, per sample; voxels where the
            target has none. None: voxels always. A sequence: mm per spatial axis (for slices cut by indexing, whose
            affine is still that of the volume). An affine with skewed axes, as RandAffined makes of anisotropic voxels,
            warns: distances are then approximate. In MONAI's DeepSupervisionLoss "auto" and a sequence are the voxel
            size of the target that it was given, and each level measures with that of its own grid. Elsewhere an
            interpolated target wants an affine of its own: F.interpolate leaves that of the whole, which is refused
            where the loss has seen the whole, and cannot be noticed otherwise.
        **options: see `SegmentationLoss`. `weight` multiplies the loss of each class kept and is not normalised. "mean"
            is over samples and classes kept; a sample in which everything is ignored leaves it. "none" gives
            (B, C', 1, ..), or (1, C', 1, ..) with `batch`. An ignored voxel belongs to no class, and adds nothing; a
            float mask multiplies what a voxel adds. `sync_batch` is refused.
    """

    target_gradient = False
    unsyncable = "it averages samples of its own"

    keeps = DistanceOptions

    def __init__(self, **options: Unpack[DistanceOptions]) -> None:
        super().__init__(**options)  # type: ignore[misc]  # it keeps more than its base

    def forward(
        self, input: Tensor, target: Tensor, mask: Tensor | None = None, distance: Tensor | None = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            input: (B, C, *spatial) scores or probabilities, of any float dtype.
            target: (B, 1, *spatial) labels with `to_onehot_y`, else (B, C, *spatial), where a class is what is above
                0.5.
            mask: (B, 1, *spatial) bool, or float weights per voxel; a voxel of weight 0 belongs to no class.
            distance: (B, C, *spatial) signed distance to the boundary of each class of the target, if it is known
                already: > 0 outside, < 0 inside, 0 everywhere where the class has no voxel or all of them, as
                `monai_extra_losses.transforms.SignedDistanced` computes it from the whole volume; in the unit of
                `spacing`.

        Returns:
            A scalar, or with reduction="none" what the class says; float32, or float64 for a float64 input.
        """
        return self.computed(self.prepare(input, target, mask, distance))

    def terms(self, inputs: LossInputs) -> Terms:
        return {"map": ("activated", self.map_sums(inputs)), "target": TARGET_SUMS}

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        values, voxels = self.totals(inputs, sums), sums["target"][1]
        if inputs.annotated is not None:
            values = torch.where(inputs.annotated, values, 0)
        if self.batch:
            values, voxels = values.sum(0, keepdim=True), voxels.sum(0, keepdim=True)
        values = self.without_background(values / torch.where(voxels > 0, voxels, 1))
        return self.reduced_pairs(self.times_weight(values), self.without_background(voxels) > 0, inputs.axes)

    def totals(self, inputs: LossInputs, sums: Sums) -> Tensor:
        """(B, C) sums over the voxels."""
        return sums["map"][0]

    def map_sums(self, inputs: LossInputs) -> MapSums:
        """What is summed with a map."""
        raise NotImplementedError

    def signed_distance(self, inputs: LossInputs) -> Tensor:
        """(B, C, *spatial) signed distance of the classes kept; 0 for a background that is left out."""
        return inputs.geometry.signed_distance(self.spacing, self.first_kept(inputs))

    def first_kept(self, inputs: LossInputs) -> int:
        """The first class that counts."""
        return 0 if self.include_background or inputs.channels == 1 else 1


class SurfaceLoss(DistanceLoss):
    """Boundary loss: the prediction, weighted by how far out of the target it is; a drop-in for MONAI's BoundaryLoss.

    mean p phi, phi = distance to the class outside of it, -(distance to its outside - 1 voxel) inside

    In mm, "1 voxel" is the smallest spacing of the sample. Negative for a good prediction, largest where a far false
    positive is. It knows where the boundary is, not how much there is to find, so give it a region loss as partner, and
    begin with a small weight (`CompoundLoss`, `monai_extra_losses.bundle.LossWeightSchedule`). A class that has no
    voxel in the target, or all, adds 0, whatever is predicted; everything ignored gives 0.

    Departs from MONAI 1.6.1: distances in mm where the target carries its spacing (`spacing=None` for MONAI's); a label
    target needs its channel axis; "none" gives (B, C', 1, ..).

    Args:
        include_background, to_onehot_y, sigmoid, softmax, other_act: see `SegmentationLoss`.
        reduction: "mean" over samples and classes kept; "sum"; "none" gives (B, C', 1, ..).
        batch, spacing: see `DistanceLoss`.
        weight: one number, or one per class kept; multiplies, not normalised.
        ignore_index: see `SegmentationLoss`.
        sync_batch: refused: it averages samples of its own.

    Shapes: see `SegmentationLoss`; forward(input, target, mask=None, distance=None), see `DistanceLoss.forward`.

    Raises:
        ValueError: a spacing that is no positive numbers; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = SurfaceLoss(spacing=(2.0,))
        >>> target = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])  # phi = 4, 2, 0, -2 mm
        >>> [loss(p, target).item() for p in (target, 1 - target)]
        [-0.5, 1.5]

    Reference: Kervadec et al. 2019, arXiv:1812.07032; 2021, doi:10.1016/j.media.2020.101851.
    """

    in_order = "include_background to_onehot_y sigmoid softmax other_act reduction batch"

    def __init__(self, **options: Unpack[DistanceOptions]) -> None:
        super().__init__(**options)

    def map_sums(self, inputs: LossInputs) -> MapSums:
        # An interpolated map has values between 0 and -1 voxel inside: they are 0, not outside.
        inward = inputs.geometry.smallest_spacing(self.spacing).to(torch.float32)
        return MapSums(self.activation(inputs), self.signed_distance(inputs), "probability", inward)


class GeneralizedSurfaceLoss(DistanceLoss):
    """Generalized surface loss: a bounded boundary loss, with classes weighted by their volume.

    1 - (sum_c w_c sum (D (1-(g+p)))^2 + s) / (sum_c w_c sum (D (1-2g))^2 + s), w_c = 1 / (V_c^2 + 1), V_c = sum g

    D is the distance to the other side of the class's boundary. Between 0, perfect, and 1, all wrong. The paper has s
    in the denominator alone: a sample in which no class has a boundary would cost 1, here it costs 0. One value per
    sample. Everything ignored gives 0.

    An absent class has no boundary. It enters with the mean D^2 and the mean w of the classes that have one, 1 where
    none has (and with its own D where a `distance` is given). A class that fills the volume has D = 0.

    Args:
        smooth: s >= 0, in mm^2 (voxels^2 without spacing).
        absent_class: "smooth": as above; or "skip": a class that is absent from the target has the weight 0, and a
            sample without any class leaves the mean.
        **options: see `DistanceLoss`; "none" gives (B, 1, 1, ..). `weight` is w, one number per class kept. Without, w
            is as above, of the patch itself, so that beside a small object a large one has no say: the fallback of the
            authors' code, too. Paper and authors' runs weight by the training set, w_k = (1/N_k) / sum_j (1/N_j) with
            N_k voxels of class k.

    Shapes: see `SegmentationLoss`; forward(input, target, mask=None, distance=None), see `DistanceLoss.forward`.

    Raises:
        ValueError: smooth < 0; else see `SurfaceLoss`.

    Example:
        >>> import torch
        >>> loss = GeneralizedSurfaceLoss()
        >>> target = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
        >>> [round(loss(p, target).item(), 4) for p in (target, target * 0 + 0.5, 1 - target)]
        [0.0, 0.75, 1.0]

    Reference: Celaya et al. 2023, arXiv:2302.03868.
    """

    def __init__(
        self, smooth: float = 1e-5, *, absent_class: AbsentClass = "smooth", **options: Unpack[DistanceOptions]
    ) -> None:
        super().__init__(**options)
        refuse_negative(smooth=smooth)
        self.smooth = float(smooth)
        self.absent_class = one_of("absent_class", absent_class, AbsentClass)

    def map_sums(self, inputs: LossInputs) -> MapSums:
        return MapSums(self.activation(inputs), self._squared_distance(inputs), "surface")

    def _squared_distance(self, inputs: LossInputs) -> Tensor:
        return inputs.geometry.squared_distance(self.spacing, self.first_kept(inputs))

    def terms(self, inputs: LossInputs) -> Terms:
        counts = CountSums(self.activation(inputs), squares=True)
        return {**super().terms(inputs), "counts": ("activated", counts)}

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        denominator = inputs.geometry.sum_of_certain(self._squared_distance(inputs))
        if inputs.annotated is not None:
            denominator = torch.where(inputs.annotated, denominator, 0)
        _, p, p_squared, _ = sums["counts"]
        table = torch.stack([self.totals(inputs, sums), denominator, p, p_squared, *sums["target"]])
        if self.batch:
            table = table.sum(1, keepdim=True)
        # The difference of denominator and numerator is one sum: nothing cancels.
        difference, denominator, p, p_squared, volumes, voxels = self.without_background(table, axis=2)
        present, bounded = volumes > 0, denominator > 0
        known = voxels > 0
        keep = (known if self.absent_class == "smooth" else present).any(1, keepdim=True)
        voxels = torch.where(voxels > 0, voxels, 1)
        square = torch.where(bounded, denominator / voxels, 0)  # mean of D^2
        apart = ~present & ~bounded  # D is one number
        common = _mean_of(square, bounded)
        difference = torch.where(apart, common * (2 * p - p_squared), difference)  # (1-2g)^2 - (1-(g+p))^2, g = 0
        denominator = torch.where(apart, common * voxels, denominator)
        w = self.weights_for(volumes.shape[1], volumes)
        if w is None:
            w = 1 / (volumes**2 + 1)
            w = torch.where(present, w, _mean_of(w, present & bounded))
        w = torch.where(known if self.absent_class == "smooth" else present, w, 0)
        values = (w * difference).sum(1) / ((w * denominator).sum(1) + self.smooth).clamp_min(1e-30)
        return self.reduced_pairs(values.unsqueeze(1), keep, inputs.axes)


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """(B, 1) mean of the values (B, C) of the chosen classes; 1 where there is none."""
    number = chosen.sum(1, keepdim=True)
    return torch.where(number > 0, torch.where(chosen, values, 0).sum(1, keepdim=True) / number.clamp_min(1), 1)


class HausdorffLoss(DistanceLoss):
    """Hausdorff distance loss: squared errors weighted by how far they are off; a drop-in for MONAI's HausdorffDTLoss.

    mean (p-g)^2 (d_p^alpha + d_g^alpha)

    d_g is the distance to the other side of the boundary of the target's class, d_p that of the predicted class
    (p > 0.5), both 0 where the class has no voxel or all. d_p changes with every step and cannot be precomputed: with
    `one_sided=True` it is left out, and with a precomputed `distance` nothing is left to measure. A perfect prediction
    gives 0, everything ignored gives 0.

    Departs from MONAI 1.6.1: distances in mm where the target carries its spacing (`spacing=None` for MONAI's); "none"
    gives (B, C', 1, ..). Kept as MONAI has it: the background is left out by default.

    Args:
        alpha: exponent of the distances, > 0; 2 as in the paper.
        include_background, to_onehot_y, sigmoid, softmax, other_act: see `SegmentationLoss`.
        reduction: "mean" over samples and classes kept; "sum"; "none" gives (B, C', 1, ..).
        batch, spacing: see `DistanceLoss`.
        one_sided: leave d_p out.
        weight: one number, or one per class kept; multiplies, not normalised.
        ignore_index: see `SegmentationLoss`.
        sync_batch: refused: it averages samples of its own.

    Shapes: see `SegmentationLoss`; forward(input, target, mask=None, distance=None), see `DistanceLoss.forward`.

    Raises:
        ValueError: alpha <= 0; else see `SurfaceLoss`.

    Example:
        >>> import torch
        >>> loss = HausdorffLoss(one_sided=True, spacing=(2.0,))
        >>> target = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])  # d_g = 4, 2, 2, 4 mm
        >>> loss(torch.tensor([[[1.0, 0.0, 1.0, 1.0]]]), target).item()  # 4^2 / 4
        4.0

    Reference: Karimi and Salcudean 2020, arXiv:1904.10030.
    """

    defaults: ClassVar[dict[str, bool]] = {"include_background": False}
    in_order = "alpha include_background to_onehot_y sigmoid softmax other_act reduction batch"

    def __init__(self, *, alpha: Positive = 2.0, one_sided: bool = False, **options: Unpack[DistanceOptions]) -> None:
        super().__init__(**options)
        self.alpha, self.one_sided = alpha, one_sided

    def map_sums(self, inputs: LossInputs) -> MapSums:
        distances = self.signed_distance(inputs).abs() ** self.alpha
        if not self.one_sided:
            first = self.first_kept(inputs)
            regions = inputs.geometry.predicted_regions(self.activation(inputs))
            classes = None if regions.dtype == torch.bool else range(first, inputs.channels)
            regions = regions[:, first:] if classes is None else regions
            predicted = boundary_distance(regions, classes, inputs.geometry.spacing(self.spacing))
            distances[:, first:] += predicted**self.alpha
        return MapSums(self.activation(inputs), distances, "error")


class LogHausdorffLoss(HausdorffLoss):
    """Logarithm of the Hausdorff distance loss, for values of one order; a drop-in for MONAI's LogHausdorffDTLoss.

    log(1 + HausdorffLoss), of the reduced loss, as MONAI

    Args:
        **options: see `HausdorffLoss`.

    Shapes: see `HausdorffLoss`.

    Raises:
        ValueError: see `HausdorffLoss`.

    Example:
        >>> import torch
        >>> loss = LogHausdorffLoss(one_sided=True)
        >>> target = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
        >>> round(loss(torch.tensor([[[1.0, 0.0, 1.0, 1.0]]]), target).item(), 4)  # log(1 + 2^2 / 4)
        0.6931

    Reference: Karimi and Salcudean 2020, arXiv:1904.10030.
    """

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        return torch.log1p(super().value(inputs, sums))


class HausdorffERLoss(DistanceLoss):
    """Hausdorff distance loss by erosion: errors count for as long as repeated erosions leave something of them.

    b = (p-g)^2; for k = 1..K: e = relu(b * cross - 1/2), e = (e - min e) / (max e - min e), L += mean(e) k^alpha, b = e

    The cross is the voxel and its face neighbours, with equal weights that sum to 1; beyond the border is 0; min and
    max are those of the sample and class (left out where they are equal up to rounding, 4 eps of float32 or float64).
    The step with min and max is that of PatRyg99's public code, from which kornia 0.9.0 has it, with the values of this
    class; that it is the authors', too, is not confirmed. It counts voxels, not mm: it has no option `spacing`. Where
    every |p-g| is small an erosion leaves nothing, so loss and gradient are 0: give it a region loss as partner. That
    holds beside large errors too, for through the maximum a voxel that is less wrong than another can be pushed further
    away. Everything ignored gives 0.

    Args:
        alpha: exponent of the number of erosions, >= 0; 2 as in the paper.
        erosions: K >= 1; 10 as in the paper.
        **options: see `DistanceLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        TypeError: `spacing`.
        ValueError: alpha < 0 or erosions < 1; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = HausdorffERLoss(erosions=3)
        >>> target = torch.zeros(1, 1, 9, 9)
        >>> small, large = target.clone(), target.clone()
        >>> small[..., 4, 4], large[..., 2:7, 2:7] = 1, 1
        >>> bool(loss(small, target) == 0), bool(loss(large, target) > 0)  # the single voxel is eroded at once
        (True, True)

    Reference: Karimi and Salcudean 2020, arXiv:1904.10030.
    """

    left_out: ClassVar[dict[str, str]] = {"spacing": "it counts erosions of voxels"}

    def __init__(
        self,
        alpha: float = 2.0,
        erosions: Annotated[int, ValueRange(">= 1", lambda k: k >= 1)] = 10,
        **options: Unpack[DistanceOptions],
    ) -> None:
        super().__init__(**options)
        refuse_negative(alpha=alpha)
        self.alpha, self.erosions = alpha, erosions

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Compute the loss; arguments as of `DistanceLoss.forward`, without a distance."""
        return super().forward(input, target, mask)

    def terms(self, inputs: LossInputs) -> Terms:
        return {"target": TARGET_SUMS}

    def totals(self, inputs: LossInputs, sums: Sums) -> Tensor:
        v = inputs.whole()
        error = (probabilities(v.scores, self.activation(inputs)) - v.one_hot()) ** 2
        weight = torch.ones_like(error[:, :1]) if v.weight is None else v.weight.unsqueeze(1)
        remaining = torch.where(weight > 0, error, 0).reshape(inputs.scores.shape)
        spatial = tuple(range(2, remaining.ndim))
        weight = weight.reshape(weight.shape[:2] + remaining.shape[2:])
        dtype = sum_dtype(remaining.device)
        total = remaining.new_zeros(remaining.shape[:2], dtype=dtype)
        for k in range(1, self.erosions + 1):
            eroded = F.relu(cross_mean(remaining) - 0.5)
            low, high = eroded.amin(spatial, keepdim=True), eroded.amax(spatial, keepdim=True)
            # Of a mean that is 0.5 only its rounding is left, which the division would stretch to one.
            spread = high - low > 4 * torch.finfo(eroded.dtype).eps
            remaining = torch.where(spread, (eroded - low) / torch.where(spread, high - low, 1), eroded)
            total = total + (remaining * weight).sum(spatial, dtype=dtype) * k**self.alpha
        return total


class _DistanceCrossEntropy(CrossEntropyLoss):
    """Base of the cross-entropies whose voxels have a factor that follows from distances."""

    left_out: ClassVar[dict[str, str]] = {"label_smoothing": "its voxels have one true class"}
    target_gradient = False
    unsyncable = "it compares voxels of a sample"
    keeps_map = True

    def __init__(self, spacing: SpacingOption = "auto", **options: Unpack[SegmentationOptions]) -> None:
        super().__init__(**options)
        self.spacing = checked_spacing(spacing)

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        losses = sums["losses"] * self.factors(inputs).to(sums["losses"])
        losses = self.without_background(losses) if self.one_vs_rest(inputs) else losses
        if self.reduction == "none":
            return losses
        return self.mean_or_sum(losses.sum(dtype=sum_dtype(losses.device)), self.divisor(inputs, sums))

    @abstractmethod
    def factors(self, inputs: LossInputs) -> Tensor:
        """Factor of the cross-entropy of each voxel, (B, 1, *spatial), or one-vs-rest (B, C, *spatial)."""


class DistancePenaltyCrossEntropyLoss(_DistanceCrossEntropy):
    """Distance map penalised cross-entropy: voxels near the boundary of their label count up to twice.

    mean (1 + Phi) CE, Phi = (M - d) / (M - d_min)

    d is the distance of a voxel to the nearest of another label, M and d_min the largest and smallest d of the voxel's
    own label in the sample: Phi falls from 1 at the boundary to 0 in the middle, in thick and thin structures alike;
    Phi = 1 where M = d_min, as in lesions up to 2 voxels wide, and 0 in a sample of one label (plain cross-entropy).
    One-vs-rest, a channel and its rest are the two labels. A target of C channels has the label of its largest (none:
    the background). A perfect prediction gives 0, everything ignored gives 0.

    Args:
        spacing: see `DistanceLoss`.
        **options: see `DistributionLoss`. An ignored voxel belongs to no class. Class `weight`: sum w l / sum w.

    Shapes: see `SegmentationLoss`; forward(input, target, mask=None, distance=None), see `DistanceLoss.forward`.

    Raises:
        ValueError: see `SurfaceLoss`.

    Example:
        >>> import torch
        >>> loss = DistancePenaltyCrossEntropyLoss(to_onehot_y=True, softmax=True, reduction="none")
        >>> labels = torch.tensor([[[0, 0, 0, 1, 1]]])
        >>> (loss(torch.zeros(1, 2, 5), labels) / torch.log(torch.tensor(2.0))).flatten().tolist()
        [1.0, 1.5, 2.0, 2.0, 1.0]

    Reference: Caliva et al. 2019, arXiv:1908.03679.
    """

    def forward(
        self, input: Tensor, target: Tensor, mask: Tensor | None = None, distance: Tensor | None = None
    ) -> Tensor:
        """Compute the loss; arguments as of `DistanceLoss.forward`."""
        return self.computed(self.prepare(input, target, mask, distance))

    @torch.no_grad()
    def factors(self, inputs: LossInputs) -> Tensor:
        geometry = inputs.geometry
        if self.one_vs_rest(inputs):
            signed = geometry.signed_distance(self.spacing, 0)
            group = (signed < 0).to(torch.int64)
            return 1 + _penalty(signed.abs().flatten(0, 1), group.flatten(0, 1), 2).view_as(signed)
        label = geometry.labels()
        if geometry.distance is None:
            d = distance_to_other_label(label, geometry.spacing(self.spacing))
        else:
            own = label.clamp_max(inputs.channels - 1).to(torch.int64).unsqueeze(1)
            signed = geometry.signed_distance(self.spacing, 0).gather(1, own)[:, 0]
            # An interpolated map may change its sign half a voxel off the label; 0 is a class without a boundary.
            d = torch.where(signed == 0, 0, (-signed).clamp_min(1e-6))
        return 1 + _penalty(d, label.to(torch.int64), inputs.channels + 1).unsqueeze(1)


def _penalty(d: Tensor, group: Tensor, groups: int) -> Tensor:
    """(N, *spatial) Phi, from distances (N, *spatial) and groups 0..groups-1; 0 where there is no distance."""
    known = (d > 0) & d.isfinite()  # 0 or infinite everywhere in a sample of one label
    flat, index = torch.where(known, d, 0).flatten(1), group.flatten(1)
    start = flat.new_zeros(len(flat), groups)
    largest = start.scatter_reduce(1, index, flat, "amax", include_self=False).gather(1, index)
    least = start.scatter_reduce(1, index, flat, "amin", include_self=False).gather(1, index)
    spread = largest - least
    phi = torch.where(spread > 0, (largest - flat) / torch.where(spread > 0, spread, 1), 1)
    return torch.where(known, phi.view_as(d), 0)


class ShapeAwareLoss(_DistanceCrossEntropy):
    """Shape-aware loss, after Al Arif et al.: cross-entropy, more where a class's predicted contour is far off.

    mean CE + mean E 1[argmax != g] CE

    E of the voxel's true class, per sample: the mean distance from the predicted contour (argmax; p > 0.5 one-vs-rest)
    to the target's, without gradient; 0 where either has no contour. The contour is the voxels of the class with a face
    neighbour outside of it, the border of the volume counting as outside. There is no reference code: the paper
    measures curves of one shape, this is its form for label maps. A perfect prediction gives 0, everything ignored
    gives 0.

    Args:
        spacing: see `DistanceLoss`.
        **options: see `DistributionLoss`. An ignored voxel belongs to no class. Class `weight`: sum w l / sum w.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: see `SurfaceLoss`.

    Example:
        >>> import torch
        >>> loss = ShapeAwareLoss(to_onehot_y=True, softmax=True)
        >>> labels = torch.tensor([[[0, 0, 0, 1, 1]]])
        >>> right = torch.stack([1.0 - labels[:, 0], 1.0 * labels[:, 0]], 1)
        >>> bool(loss(right, labels) < loss(right.roll(1, 2), labels))
        True

    Reference: after Al Arif et al. 2017, doi:10.1007/978-3-319-74113-0_2.
    """

    @torch.no_grad()
    def factors(self, inputs: LossInputs) -> Tensor:
        one_vs_rest, geometry = self.one_vs_rest(inputs), inputs.geometry
        if one_vs_rest:
            target = geometry.target_regions()
            predicted = geometry.predicted_masks(self.activation(inputs))
            wrong = target != predicted
        else:
            label, chosen = geometry.labels(), geometry.chosen_labels()
            target, predicted = geometry.regions(label), geometry.regions(chosen)
            wrong = (label != chosen).unsqueeze(1)
        target, predicted = (contours_of(region) for region in (target, predicted))
        distance = distance_to_mask(target, geometry.spacing(self.spacing)).flatten(2)
        number = predicted.flatten(2).sum(2)
        total = torch.where(predicted.flatten(2), distance, 0).sum(2, dtype=sum_dtype(distance.device))
        mean = torch.where((number > 0) & total.isfinite(), total / number.clamp_min(1), 0).to(torch.float32)
        shape = (*mean.shape, *[1] * inputs.axes)
        if one_vs_rest:
            return 1 + mean.view(shape) * wrong
        mean = F.pad(mean, (0, 1))  # no class: 0
        return 1 + mean.gather(1, label.flatten(1).to(torch.int64)).view_as(wrong) * wrong
