"""MONAI's names for the classes here that equal MONAI's: changing the import is the migration.

Two usual calls give other numbers, because MONAI 1.6.1 is wrong there: `DiceFocalLoss(softmax=True)` and
`GeneralizedDiceLoss` with smoothing. Each class lists its departures.

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
