"""Region losses: formulas of the soft counts of each sample and class."""

from typing import Unpack

from torch import Tensor

from monai_extra_losses.losses.base import (
    AbsentClass,
    OtherAct,
    Reduction,
    RegionLoss,
    RegionOptions,
    SoftCounts,
    Weight,
    refuse_negative,
)


class FusedDiceLoss(RegionLoss):
    """Dice loss; a drop-in for `monai.losses.DiceLoss` that never expands labels to one-hot.

    1 - (2 TP + s) / (2 TP + FP + FN + s)

    Its gradient is dL/dp_i = -(2 g_i (sum p + sum g) - 2 sum pg) / (sum p + sum g)^2.

    Departs from MONAI 1.6.1: sums of half-precision inputs are taken in float64 (MONAI's overflow, and return 1.0); a
    scalar `weight` does not change its buffer; with `ignore_index` a sample in which everything is ignored leaves the
    mean; an all-zero voxel of a (B, C, ..) target is background, never "ignored".

    Args:
        include_background, to_onehot_y, sigmoid, softmax, other_act, ignore_index, sync_batch: see `SegmentationLoss`.
        reduction, batch, weight, soft_label, absent_class: see `RegionLoss`.
        squared_pred: sum p^2 + sum g^2 in the denominator (V-Net's form).
        jaccard: 1 - (2 TP + s) / (2 (TP + FP + FN) + s).
        smooth_nr: s of the numerator. `smooth_nr=smooth_dr=1` is the "+1" form of teaching material: it halves the loss
            of a missed lesion of one voxel, 0.5 instead of 1.0.
        smooth_dr: s of the denominator.

    Shapes, raises: see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = FusedDiceLoss(to_onehot_y=True, softmax=True)
        >>> logits = torch.zeros(1, 2, 4, 4, 4)
        >>> labels = torch.zeros(1, 1, 4, 4, 4)
        >>> labels[..., 2:] = 1
        >>> round(loss(logits, labels).item(), 4)
        0.5

    Reference: Milletari et al. 2016, V-Net, arXiv:1606.04797 (squared form); Drozdzal et al. 2016, arXiv:1608.04117;
    soft labels: Wang et al. 2023, arXiv:2303.16296.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherAct = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: Reduction = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Weight = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
        *,
        absent_class: AbsentClass = "smooth",
        sync_batch: bool = False,
    ) -> None:
        super().__init__(
            include_background=include_background,
            to_onehot_y=to_onehot_y,
            sigmoid=sigmoid,
            softmax=softmax,
            other_act=other_act,
            reduction=reduction,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            batch=batch,
            weight=weight,
            soft_label=soft_label,
            ignore_index=ignore_index,
            absent_class=absent_class,
            sync_batch=sync_batch,
        )
        self.squared_pred = squared_pred
        self.jaccard = jaccard

    @property
    def squares(self) -> bool:
        return self.squared_pred

    def formula(self, c: SoftCounts) -> Tensor:
        if c.p_squared is not None and c.g_squared is not None:
            errors = c.p_squared + c.g_squared - 2 * c.tp  # FP + FN of the squared counts
        else:
            errors = c.fp + c.fn
        return 1 - self.ratio(2 * c.tp, 2 * c.tp + (2 * errors if self.jaccard else errors))


class JaccardLoss(RegionLoss):
    """Jaccard loss, 1 - IoU.

    1 - (TP + s) / (TP + FP + FN + s)

    Equals `FusedDiceLoss(jaccard=True)` up to the smoothing, which stands against twice the counts there. A class that
    is absent and not predicted gives 0; a perfect prediction gives 0; everything ignored gives 0.

    Args:
        **options: see `RegionLoss`.

    Shapes, raises: see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = JaccardLoss(sigmoid=True)
        >>> round(loss(torch.full((1, 1, 4, 4), 20.0), torch.ones(1, 1, 4, 4)).item(), 4)
        0.0

    Reference: Rahman and Wang 2016, doi:10.1007/978-3-319-50835-1_22.
    """

    def formula(self, c: SoftCounts) -> Tensor:
        return 1 - self.ratio(c.tp, c.tp + c.fp + c.fn)


class FusedTverskyLoss(RegionLoss):
    """Tversky loss; a drop-in for `monai.losses.TverskyLoss`, with class weights.

    1 - (TP + s) / (TP + alpha FP + beta FN + s)

    alpha = beta = 0.5 is Dice, alpha = beta = 1 Jaccard, alpha + beta = 1 the F_beta family. Departs from MONAI 1.6.1
    in half precision, in a sample in which everything is ignored, in all-zero voxels of a (B, C, ..) target (see
    `FusedDiceLoss`) and in the shape of reduction="none", which is (B, C', 1, ..) here and (B, C') there.

    Args:
        alpha: weight of false positives, >= 0. Salehi's names, and MONAI's; Abraham, Jadon and Yeung swap the two. The
            paper's best for lesions is alpha=0.3, beta=0.7.
        beta: weight of false negatives, >= 0.
        include_background, to_onehot_y, sigmoid, softmax, other_act, ignore_index, sync_batch: see `SegmentationLoss`.
        reduction, smooth_nr, smooth_dr, batch, soft_label, weight, absent_class: see `RegionLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: a negative alpha or beta; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = FusedTverskyLoss(to_onehot_y=True, softmax=True, alpha=0.3, beta=0.7)
        >>> round(loss(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)).item(), 4)
        0.7059

    Reference: Salehi et al. 2017, arXiv:1706.05721.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: OtherAct = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: Reduction = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
        ignore_index: int | None = None,
        *,
        weight: Weight = None,
        absent_class: AbsentClass = "smooth",
        sync_batch: bool = False,
    ) -> None:
        super().__init__(
            include_background=include_background,
            to_onehot_y=to_onehot_y,
            sigmoid=sigmoid,
            softmax=softmax,
            other_act=other_act,
            reduction=reduction,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            batch=batch,
            weight=weight,
            soft_label=soft_label,
            ignore_index=ignore_index,
            absent_class=absent_class,
            sync_batch=sync_batch,
        )
        refuse_negative(alpha=alpha, beta=beta)
        self.alpha = alpha
        self.beta = beta

    def formula(self, c: SoftCounts) -> Tensor:
        return 1 - self.ratio(c.tp, c.tp + self.alpha * c.fp + self.beta * c.fn)


class FocalTverskyLoss(RegionLoss):
    """Focal Tversky loss: the Tversky loss of each class, raised to a power that stresses hard classes.

    (1 - TI)^(1/gamma), TI = (TP + s) / (TP + alpha FP + beta FN + s), per class, then the mean.

    Public snippets write (1 - TI)^gamma with gamma=0.75 or 1: the same family, their exponent is 1/gamma here. The root
    is clamped at 1 - TI = 1e-7, so a perfect prediction gives 1e-7^(1/gamma) (6e-6 at the default) and no NaN gradient.

    Args:
        alpha: weight of false positives, >= 0; 0.3 as in the paper (whose own alpha weights false negatives).
        beta: weight of false negatives, >= 0; 0.7 as in the paper.
        gamma: in the paper [1, 3], 4/3 by default; above 1 the gradient grows for classes that are nearly right.
        **options: see `RegionLoss`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: gamma <= 0, a negative alpha or beta; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = FocalTverskyLoss(to_onehot_y=True, softmax=True)
        >>> round(loss(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)).item(), 4)
        0.757

    Reference: Abraham and Khan 2019, arXiv:1810.07842.
    """

    def __init__(
        self, alpha: float = 0.3, beta: float = 0.7, gamma: float = 4 / 3, **options: Unpack[RegionOptions]
    ) -> None:
        super().__init__(**options)
        if gamma <= 0:
            raise ValueError(f"expected gamma > 0, got {gamma}: the exponent is 1/gamma.")
        refuse_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def formula(self, c: SoftCounts) -> Tensor:
        index = self.ratio(c.tp, c.tp + self.alpha * c.fp + self.beta * c.fn)
        return (1 - index).clamp_min(1e-7) ** (1 / self.gamma)
