"""The gradient of the Lovasz extension of the Jaccard loss."""

import itertools

import torch
from torch import Tensor

from monai_extra_losses.ops.numbers import has_numbers, sum_dtype


@torch.no_grad()
def jaccard_slopes(errors: Tensor, positives: Tensor, weight: Tensor, enters: Tensor) -> Tensor:
    """(B, C, M) change of the Jaccard loss as each voxel joins those in error, from the largest error down.

    The loss is linear in the errors as long as their order stays, so this is its derivative, too. On the CPU, where
    that costs no wait, classes that do not enter the mean, by `enters` (B, C), are left at 0 and not sorted.
    """
    slopes = torch.zeros_like(errors)
    of_classes = itertools.product(range(errors.shape[0]), range(errors.shape[1]))
    known = enters.device.type == "cpu" and has_numbers(enters)
    for sample, channel in enters.nonzero().tolist() if known else of_classes:
        order = errors[sample, channel].argsort(descending=True)
        # In float32 the differences of a large volume, 1e-7 each, would be rounding errors.
        missed = positives[sample, channel][order].cumsum(0, dtype=sum_dtype(errors.device))
        counted = weight[sample, 0][order].cumsum(0, dtype=missed.dtype)
        union = missed[-1] + counted - missed
        jaccard = torch.where(union > 0, 1 - (missed[-1] - missed) / torch.where(union > 0, union, 1), 0)
        change = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
        slopes[sample, channel].scatter_(0, order, change.to(errors.dtype))
    return slopes
