"""Losses of thin structures such as vessels: what counts is that they are connected, not how many voxels they have."""

from typing import Annotated, ClassVar, Unpack

import torch
from torch import Tensor

from monai_extra_losses.losses.base import TARGET_SUMS, SegmentationLoss, Sums, Terms
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.options import AbsentClass, Positive, SegmentationOptions, ValueRange, one_of
from monai_extra_losses.ops.numbers import has_numbers
from monai_extra_losses.ops.skeletons import centerline_sums, half_widths


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

    Shapes: see `SegmentationLoss`. Extra memory: up to 8 times the scores from 2 classes on, 13 times with one.

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
