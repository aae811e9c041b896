"""Region losses: formulas of the soft counts of each sample and class."""

import math
from typing import Annotated, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from monai.utils import Weight as WeightType
from torch import Tensor

from monai_extra_losses.losses.base import Reads, RegionLoss, SoftCounts
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.options import DiceOptions, RegionOptions, Share, ValueRange, one_of, refuse_negative

WeightChoice = Literal["square", "simple", "uniform"]

_NO_NUMERATOR = {
    "smooth_nr": "it has no smoothing in a numerator, only smooth_dr",
    "soft_label": "its errors |p - g| suit soft targets as they are",
}


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

    keeps = DiceOptions
    in_order = (
        "include_background to_onehot_y sigmoid softmax other_act squared_pred jaccard reduction smooth_nr smooth_dr "
        "batch weight soft_label ignore_index"
    )

    def __init__(self, **options: Unpack[DiceOptions]) -> None:
        super().__init__(**options)  # type: ignore[misc]  # it keeps more than its base
        self.reads = Reads(squares=self.squared_pred)

    def formula(self, c: SoftCounts) -> Tensor:
        overlap = 2 * c.tp
        total = c.p_squared + c.g_squared if self.squared_pred else c.p + c.g  # 2 TP + FP + FN
        return 1 - self.ratio(overlap, 2 * total - overlap if self.jaccard else total)


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
        return 1 - self.ratio(c.tp, c.p + c.g - c.tp)  # TP + FP + FN


class FusedTverskyLoss(RegionLoss):
    """Tversky loss; a drop-in for `monai.losses.TverskyLoss`, with class weights.

    1 - (TP + s) / (TP + alpha FP + beta FN + s)

    alpha = beta = 0.5 is Dice, alpha = beta = 1 Jaccard, alpha + beta = 1 the F_beta family. Departs from MONAI 1.6.1
    with scores and a (B, C, ..) target in half precision (MONAI's sums overflow to NaN), in a sample in which
    everything is ignored, in all-zero voxels of a (B, C, ..) target (see `FusedDiceLoss`) and in the shape of
    reduction="none", which is (B, C', 1, ..) here and (B, C') there.

    Args:
        alpha: weight of false positives, >= 0. Salehi's names, and MONAI's; in the code of Abraham, Jadon and Yeung the
            first is that of false negatives. The paper's best for lesions is alpha=0.3, beta=0.7.
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

    in_order = (
        "include_background to_onehot_y sigmoid softmax other_act alpha beta reduction smooth_nr smooth_dr batch "
        "soft_label ignore_index"
    )

    def __init__(self, *, alpha: float = 0.5, beta: float = 0.5, **options: Unpack[RegionOptions]) -> None:
        super().__init__(**options)
        refuse_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta

    def formula(self, c: SoftCounts) -> Tensor:
        return 1 - self.ratio(c.tp, c.tp + self.alpha * c.fp + self.beta * c.fn)


class FocalTverskyLoss(RegionLoss):
    """Focal Tversky loss: the Tversky loss of each class to a power, which stresses classes that are nearly right.

    (1 - TI)^(1/gamma), TI = (TP + s) / (TP + alpha FP + beta FN + s), per class, then the mean.

    The authors' code writes (1 - TI)^0.75, which is gamma=4/3 here, pools batch and classes, and smooths with 1:
    missing an object of 5 voxels costs 0.83 there, 1.00 here (`smooth_nr=smooth_dr=1` for theirs). The root is clamped
    at 1 - TI = 1e-7, so a perfect prediction gives 1e-7^(1/gamma) (6e-6 at the default) and no NaN gradient.

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
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: Annotated[float, ValueRange("> 0", lambda x: x > 0, "the exponent is 1/gamma")] = 4 / 3,
        **options: Unpack[RegionOptions],
    ) -> None:
        super().__init__(**options)
        refuse_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def formula(self, c: SoftCounts) -> Tensor:
        index = self.ratio(c.tp, c.tp + self.alpha * c.fp + self.beta * c.fn)
        return (1 - index).clamp_min(1e-7) ** (1 / self.gamma)


class LogCoshDiceLoss(RegionLoss):
    """Log-cosh Dice loss: Dice with a smooth, bounded gradient near 0.

    log cosh(D), D = 1 - (2 TP + s) / (2 TP + FP + FN + s), per class, then the mean.

    Computed as D + softplus(-2D) - log 2. The author's code pools batch and classes before the logarithm, and smooths
    with 1: missing an object of 5 voxels costs 0.31 there, 0.43 here (`smooth_nr=smooth_dr=1` for theirs). Near a
    perfect prediction it is D^2/2; a class that is absent and not predicted gives 0, everything ignored gives 0.

    Args:
        **options: see `RegionLoss`.

    Shapes, raises: see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = LogCoshDiceLoss(to_onehot_y=True, softmax=True)
        >>> labels = torch.zeros(1, 1, 4, 4)
        >>> labels[..., 2:] = 1
        >>> round(loss(torch.zeros(1, 2, 4, 4), labels).item(), 4)  # log cosh(1/2)
        0.1201

    Reference: Jadon 2020, arXiv:2006.14822.
    """

    def formula(self, c: SoftCounts) -> Tensor:
        dice = 1 - self.ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn)
        return dice + F.softplus(-2 * dice) - math.log(2)


class FusedGeneralizedDiceLoss(RegionLoss):
    """Generalized Dice loss; a drop-in for `monai.losses.GeneralizedDiceLoss`.

    1 - (2 sum_c w_c TP_c + s) / (sum_c w_c (sum p + sum g) + s), w_c = 1/(sum g)^2 ("GDL_v")

    A class that is absent gets the largest weight of those present. Departs from MONAI 1.6.1: the weights are divided
    by their maximum before s is added, because next to weights of 1e-8 it would swamp the ratio and a missed large
    object would cost less than a missed small one (equal with `smooth_nr=smooth_dr=0`); and see `FusedDiceLoss`.

    Args:
        include_background, to_onehot_y, sigmoid, softmax, other_act, ignore_index, sync_batch: see `SegmentationLoss`.
        w_type: "square" 1/(sum g)^2, "simple" 1/sum g, "uniform" 1.
        reduction: over the samples; "none" gives (B, 1, 1, ..).
        smooth_nr, smooth_dr, batch, soft_label: see `RegionLoss`.
        absent_class: "smooth" as above, or "skip": a class that is absent from the target has the weight 0, and a
            sample without any class leaves the mean.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: an unknown `w_type`; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = FusedGeneralizedDiceLoss(to_onehot_y=True, softmax=True)
        >>> labels = torch.zeros(1, 1, 4, 4)
        >>> labels[..., 2:] = 1
        >>> round(loss(torch.zeros(1, 2, 4, 4), labels).item(), 4)
        0.5

    Reference: Sudre et al. 2017, arXiv:1707.03237; Crum et al. 2006, doi:10.1109/TMI.2006.880587.
    """

    left_out: ClassVar[dict[str, str]] = {"weight": "it weights the classes itself"}
    in_order = (
        "include_background to_onehot_y sigmoid softmax other_act w_type reduction smooth_nr smooth_dr batch soft_label"
    )

    def __init__(self, *, w_type: WeightType | str = WeightType.SQUARE, **options: Unpack[RegionOptions]) -> None:
        super().__init__(**options)
        self.w_type = one_of("w_type", w_type, WeightChoice)

    def formula(self, c: SoftCounts) -> Tensor:
        weight = self._weights((c.tp + c.fn).detach())
        overlap = (weight * c.tp).sum(1, keepdim=True)
        total = (weight * (2 * c.tp + c.fp + c.fn)).sum(1, keepdim=True)
        return 1 - self.ratio(2 * overlap, total)

    def _weights(self, volumes: Tensor) -> Tensor:
        """(B, C) weights of the classes, at most 1."""
        power = {"square": 2, "simple": 1, "uniform": 0}[self.w_type]
        present = volumes > 0
        weight = torch.where(present, volumes, 1) ** -power
        weight = torch.where(present | (power == 0), weight, 0)
        largest = weight.amax(1, keepdim=True)
        if self.absent_class == "smooth":
            weight = torch.where(weight > 0, weight, largest)
        else:
            weight = torch.where(present, weight, 0)
        return weight / torch.where(largest > 0, largest, 1)

    def pairs_in_mean(self, inputs: LossInputs, g: Tensor, n: Tensor) -> Tensor | None:
        if self.absent_class == "skip":
            return (g > 0).any(1, keepdim=True).expand_as(g)
        in_mean = super().pairs_in_mean(inputs, g, n)
        # One value of all classes: those without annotation add nothing to either sum.
        return in_mean if in_mean is None else in_mean.any(1, keepdim=True).expand_as(g)


class SensitivitySpecificityLoss(RegionLoss):
    """Sensitivity-specificity loss: the mean squared error inside the class and outside it, weighted apart.

    lambda sum g(g-p)^2 / (sum g + s) + (1-lambda) sum (1-g)(g-p)^2 / (sum (1-g) + s)

    A class that is absent leaves the second term alone.

    Args:
        sensitivity_weight: lambda in [0, 1], of the first (sensitivity) term; 0.05 as in Sudre et al. Raising it makes
            missed voxels dearer and false positives cheaper.
        **options: see `RegionLoss`; s is `smooth_dr`, and soft targets need no option.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: sensitivity_weight outside [0, 1]; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = SensitivitySpecificityLoss(to_onehot_y=True, softmax=True)
        >>> round(loss(torch.zeros(1, 2, 4, 4), torch.arange(16).view(1, 1, 4, 4) % 2).item(), 4)
        0.25

    Reference: Brosch et al. 2015, doi:10.1007/978-3-319-24574-4_1; Sudre et al. 2017, arXiv:1707.03237.
    """

    reads = Reads(error_power=2.0)
    left_out = _NO_NUMERATOR

    def __init__(self, sensitivity_weight: Share = 0.05, **options: Unpack[RegionOptions]) -> None:
        super().__init__(**options)
        self.sensitivity_weight = sensitivity_weight

    def formula(self, c: SoftCounts) -> Tensor:
        sensitivity = _quotient(c.positive_error, c.tp + c.fn + self.smooth_dr)
        specificity = _quotient(c.negative_error, c.tn + c.fp + self.smooth_dr)
        return self.sensitivity_weight * sensitivity + (1 - self.sensitivity_weight) * specificity


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 over an empty set; NaN is none."""
    some = ~(denominator <= 0)
    return torch.where(some, numerator / torch.where(some, denominator, 1), 0)


class TwoClassDiceLoss(RegionLoss):
    """Two-class Dice loss (DL2): the mean of the Dice losses of the class and of everything else.

    1 - ((2 TP + s) / (2 TP + FP + FN + s) + (2 TN + s) / (2 TN + FP + FN + s)) / 2

    For one sigmoid channel, where Dice alone has no gradient from true negatives. The smoothing printed in the paper
    gives -0.5 for an empty target and an empty prediction; here it stands in numerator and denominator and gives 0.

    Args:
        **options: see `RegionLoss`.

    Shapes, raises: see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = TwoClassDiceLoss(sigmoid=True)
        >>> round(loss(torch.full((1, 1, 4, 4), -40.0), torch.zeros(1, 1, 4, 4)).item(), 4)
        0.0

    Reference: Sudre et al. 2017, arXiv:1707.03237.
    """

    def formula(self, c: SoftCounts) -> Tensor:
        errors = c.fp + c.fn
        return 1 - (self.ratio(2 * c.tp, 2 * c.tp + errors) + self.ratio(2 * c.tn, 2 * c.tn + errors)) / 2


class NoiseRobustDiceLoss(RegionLoss):
    """Noise-robust Dice loss: between Dice (gamma 2) and the mean absolute error (gamma 1), for noisy labels.

    sum |p - g|^gamma / (sum p^2 + sum g^2 + s)

    gamma=2 is the V-Net Dice loss. PyMIC 0.6.2, the first author's library, has no squares below the bar. Empty target
    and prediction give 0; for an empty target the loss falls as a false positive grows surer, see `SegmentationLoss`.

    Args:
        gamma: in [1, 2]; 1.5 as in the paper. Lower counts large errors, where labels may be wrong, less.
        **options: see `RegionLoss`; s is `smooth_dr`.

    Shapes: see `SegmentationLoss`.

    Raises:
        ValueError: gamma outside [1, 2]; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = NoiseRobustDiceLoss(sigmoid=True)
        >>> round(loss(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)).item(), 4)  # 0.5^1.5 / 1.25
        0.2828

    Reference: Wang et al. 2020 (COPLE-Net), doi:10.1109/TMI.2020.3000314.
    """

    left_out = _NO_NUMERATOR

    def __init__(
        self,
        gamma: Annotated[float, ValueRange("in [1, 2]", lambda x: 1 <= x <= 2)] = 1.5,
        **options: Unpack[RegionOptions],
    ) -> None:
        super().__init__(**options)
        self.gamma = gamma
        self.reads = Reads(squares=True, error_power=gamma)

    def formula(self, c: SoftCounts) -> Tensor:
        squares: Tensor = c.p_squared + c.g_squared + self.smooth_dr
        return (c.positive_error + c.negative_error) / squares


class BoundaryDoULoss(RegionLoss):
    """Boundary difference-over-union loss: Dice-like, the more sensitive the larger an object is for its contour.

    (sum p^2 + sum g^2 - 2 sum pg + s) / (sum p^2 + sum g^2 - (1+a) sum pg + s), a = min(1 - 2 (K+s)/(sum g + s), 0.8)

    K is the number of target voxels with a face neighbour outside the class; the border of the volume counts as
    outside, and so does an ignored voxel. Per sample and class, in 2D and 3D; the authors' code pools the batch, which
    is `batch=True`. An absent class costs the mean of p^2: the formula, and their code, give 1 for it, whatever is
    predicted.

    Args:
        **options: see `RegionLoss`; s is `smooth_nr` above the bar and `smooth_dr` below it.

    Shapes, raises: see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = BoundaryDoULoss(sigmoid=True)
        >>> round(loss(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)).item(), 4)  # K = 12 of 16
        0.25

    Reference: Sun et al. 2023, arXiv:2308.00220.
    """

    reads = Reads(squares=True, contours=True)
    left_out: ClassVar[dict[str, str]] = {"soft_label": "its squares suit soft targets as they are"}

    def formula(self, c: SoftCounts) -> Tensor:
        volume = c.tp + c.fn
        squares = c.p_squared + c.g_squared
        a = (1 - 2 * self.ratio(c.contour, volume)).clamp_max(0.8).detach()
        present = volume > 0
        # Without smoothing 0/0 of an absent class would be NaN in the gradient.
        union = torch.where(present, squares - (1 + a) * c.tp, 1)
        return torch.where(present, self.ratio(squares - 2 * c.tp, union), c.p_squared / (volume + c.fp + c.tn))
