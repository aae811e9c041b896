"""The losses, one public name per line."""

from monai_extra_losses.losses.boundary import (
    DistancePenaltyCrossEntropyLoss,
    GeneralizedSurfaceLoss,
    HausdorffERLoss,
    HausdorffLoss,
    LogHausdorffLoss,
    ShapeAwareLoss,
    SurfaceLoss,
)
from monai_extra_losses.losses.calibration import AverageCalibrationLoss
from monai_extra_losses.losses.checks import ShapeMismatchError
from monai_extra_losses.losses.compound import (
    ComboLoss,
    DiceTopKLoss,
    ExponentialLogarithmicLoss,
    FusedDiceCELoss,
    FusedDiceFocalLoss,
    UnifiedFocalLoss,
)
from monai_extra_losses.losses.distribution import (
    BalancedCrossEntropyLoss,
    CategoricalHingeLoss,
    CrossEntropyLoss,
    FusedFocalLoss,
    GeneralizedCrossEntropyLoss,
    HingeLoss,
    PolyLoss,
    SquaredHingeLoss,
    TopKLoss,
    WeightedCrossEntropyLoss,
)
from monai_extra_losses.losses.head import HeadlessNetwork, HeadLoss
from monai_extra_losses.losses.lesions import BlobDiceCELoss, ComponentDiceCELoss
from monai_extra_losses.losses.partial import PartialLabelLoss
from monai_extra_losses.losses.region import (
    BoundaryDoULoss,
    FocalTverskyLoss,
    FusedDiceLoss,
    FusedGeneralizedDiceLoss,
    FusedTverskyLoss,
    JaccardLoss,
    LogCoshDiceLoss,
    NoiseRobustDiceLoss,
    SensitivitySpecificityLoss,
    TwoClassDiceLoss,
)
from monai_extra_losses.losses.regression import (
    CosineSimilarityLoss,
    HuberLoss,
    KLDivergenceLoss,
    LogCoshLoss,
    MeanAbsoluteErrorLoss,
    MeanAbsolutePercentageErrorLoss,
    MeanSquaredErrorLoss,
    MeanSquaredLogarithmicErrorLoss,
    PoissonLoss,
)
from monai_extra_losses.losses.structure import CorrelationMaximizedStructuralSimilarityLoss, LovaszLoss
from monai_extra_losses.losses.surfaces import SurfaceDiceLoss
from monai_extra_losses.losses.vessels import (
    CenterlineBoundaryDiceLoss,
    CenterlineDiceLoss,
    SkeletonRecallLoss,
    TopologicalInteractionLoss,
)
from monai_extra_losses.losses.weighted_sum import CompoundLoss

__all__ = [
    "AverageCalibrationLoss",
    "BalancedCrossEntropyLoss",
    "BlobDiceCELoss",
    "BoundaryDoULoss",
    "CategoricalHingeLoss",
    "CenterlineBoundaryDiceLoss",
    "CenterlineDiceLoss",
    "ComboLoss",
    "ComponentDiceCELoss",
    "CompoundLoss",
    "CorrelationMaximizedStructuralSimilarityLoss",
    "CosineSimilarityLoss",
    "CrossEntropyLoss",
    "DiceTopKLoss",
    "DistancePenaltyCrossEntropyLoss",
    "ExponentialLogarithmicLoss",
    "FocalTverskyLoss",
    "FusedDiceCELoss",
    "FusedDiceFocalLoss",
    "FusedDiceLoss",
    "FusedFocalLoss",
    "FusedGeneralizedDiceLoss",
    "FusedTverskyLoss",
    "GeneralizedCrossEntropyLoss",
    "GeneralizedSurfaceLoss",
    "HausdorffERLoss",
    "HausdorffLoss",
    "HeadLoss",
    "HeadlessNetwork",
    "HingeLoss",
    "HuberLoss",
    "JaccardLoss",
    "KLDivergenceLoss",
    "LogCoshDiceLoss",
    "LogCoshLoss",
    "LogHausdorffLoss",
    "LovaszLoss",
    "MeanAbsoluteErrorLoss",
    "MeanAbsolutePercentageErrorLoss",
    "MeanSquaredErrorLoss",
    "MeanSquaredLogarithmicErrorLoss",
    "NoiseRobustDiceLoss",
    "PartialLabelLoss",
    "PoissonLoss",
    "PolyLoss",
    "SensitivitySpecificityLoss",
    "ShapeAwareLoss",
    "ShapeMismatchError",
    "SkeletonRecallLoss",
    "SquaredHingeLoss",
    "SurfaceDiceLoss",
    "SurfaceLoss",
    "TopKLoss",
    "TopologicalInteractionLoss",
    "TwoClassDiceLoss",
    "UnifiedFocalLoss",
    "WeightedCrossEntropyLoss",
]
