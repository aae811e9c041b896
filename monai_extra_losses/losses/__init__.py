"""The losses, one public name per line."""

from monai_extra_losses.losses.compound import FusedDiceCELoss
from monai_extra_losses.losses.distribution import CrossEntropyLoss, FusedFocalLoss
from monai_extra_losses.losses.inputs import ShapeMismatchError
from monai_extra_losses.losses.region import FocalTverskyLoss, FusedDiceLoss, FusedTverskyLoss, JaccardLoss

__all__ = [
    "CrossEntropyLoss",
    "FocalTverskyLoss",
    "FusedDiceCELoss",
    "FusedDiceLoss",
    "FusedFocalLoss",
    "FusedTverskyLoss",
    "JaccardLoss",
    "ShapeMismatchError",
]
