"""A loss of calibration: that what is predicted with p happens in a share of p of the voxels."""

from typing import Annotated, Unpack

import torch
from torch import Tensor

from monai_extra_losses.losses.base import TARGET_SUMS, SegmentationLoss, Sums, Terms
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.options import AbsentClass, SegmentationOptions, ValueRange, one_of
from monai_extra_losses.ops.terms import BinSums


class AverageCalibrationLoss(SegmentationLoss):
    """Average calibration loss (L1-ACE): how far confidence and frequency are apart, over bins of confidence.

    mean over the bins with voxels of |mean_bin p - mean_bin g|, per sample and class

    Bins of equal width count alike, however many voxels they have, so that the few uncertain ones have a say. It does
    not ask for a good prediction, which any constant at the right frequency is, so give it partners: the paper adds 0.3
    of it to Dice + cross-entropy.

    With `soft` a voxel is shared between the two bins whose centres are nearest to p, linearly, and the loss has no
    jumps. Of hard bins the slope is that of p within its bin.

    Args:
        bins: of [0, 1], >= 1; bin b has b/bins < p <= (b+1)/bins, the first p = 0 too. 20 as in the paper.
        soft: see above.
        absent_class: of a class without a voxel in the target. "skip": it leaves the mean; "smooth": it has the loss
            that the formula gives.
        **options: see `SegmentationLoss`. `weight` multiplies the loss of each class kept and is not normalised. "mean"
            is over samples and classes kept; "none" gives (B, C', 1, ..), with 0 for what is left out. A float mask
            counts a voxel that many times.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: bins < 1, sync_batch=True; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = AverageCalibrationLoss(bins=4)
        >>> p, g = torch.tensor([[[0.9, 0.9, 0.1, 0.1]]]), torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
        >>> round(loss(p, g).item(), 4)  # (|0.9 - 0.5| + |0.1 - 0|) / 2
        0.25

    Reference: Barfoot et al. 2025, arXiv:2506.03942.
    """

    target_gradient = False
    unsyncable = "it averages samples of its own"

    def __init__(
        self,
        bins: Annotated[int, ValueRange(">= 1", lambda bins: bins >= 1)] = 20,
        soft: bool = False,
        *,
        absent_class: AbsentClass = "skip",
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        self.bins, self.soft = bins, soft
        self.absent_class = one_of("absent_class", absent_class, AbsentClass)

    def terms(self, inputs: LossInputs) -> Terms:
        return {"bins": ("activated", BinSums(self.activation(inputs), self.bins, self.soft)), "target": TARGET_SUMS}

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        p, g, voxels = self.without_background(sums["bins"]).unbind(2)
        filled = voxels > 0
        apart = (p - g).abs() / torch.where(filled, voxels, 1)
        values = torch.where(filled | p.isnan(), apart, 0).sum(-1) / filled.sum(-1).clamp_min(1)
        volumes, number = sums["target"]
        keep = self.without_background(volumes if self.absent_class == "skip" else number) > 0
        if inputs.annotated is not None:
            keep = keep & self.without_background(inputs.annotated)
        return self.reduced_pairs(self.times_weight(values), keep, inputs.axes)
