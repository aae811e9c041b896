"""MONAI's names for the classes here that equal MONAI's: changing the import is the migration, but for three calls.

`DiceFocalLoss(softmax=True)` has a focal loss of the softmax here, where that of MONAI 1.6.1 is one of sigmoids;
MONAI's sum is `CompoundLoss([DiceLoss(softmax=True), FocalLoss()])`. `GeneralizedDiceLoss` smooths after its weights
are scaled, where MONAI's smoothing swamps small weights; without smoothing (`smooth_nr=smooth_dr=0`) both are equal.
`DiceCELoss(sigmoid=True)` of several channels has a
cross-entropy of each channel, where MONAI's is that of a softmax. These three have other values for most data; the
departures in rarer cases, where MONAI is wrong, stand in each class's
docstring.

Plain aliases: MONAI's config parser looks short names up among definitions, and finds MONAI's own.
"""

from monai_extra_losses.losses import FusedDiceCELoss as DiceCELoss
from monai_extra_losses.losses import FusedDiceFocalLoss as DiceFocalLoss
from monai_extra_losses.losses import FusedDiceLoss as DiceLoss
from monai_extra_losses.losses import FusedFocalLoss as FocalLoss
from monai_extra_losses.losses import FusedGeneralizedDiceLoss as GeneralizedDiceLoss
from monai_extra_losses.losses import FusedTverskyLoss as TverskyLoss
from monai_extra_losses.losses import HausdorffLoss as HausdorffDTLoss
from monai_extra_losses.losses import LogHausdorffLoss as LogHausdorffDTLoss
from monai_extra_losses.losses import SurfaceLoss as BoundaryLoss

__all__ = [
    "BoundaryLoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GeneralizedDiceLoss",
    "HausdorffDTLoss",
    "LogHausdorffDTLoss",
    "TverskyLoss",
]
