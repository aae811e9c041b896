"""Exact, lean segmentation losses for MONAI. The names are in `monai_extra_losses.losses`."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Written out, so that names are listed before torch is imported. A test compares it with `losses.__all__`.
__all__ = [
    "BalancedCrossEntropyLoss",
    "BoundaryDoULoss",
    "CategoricalHingeLoss",
    "ComboLoss",
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
    "PoissonLoss",
    "PolyLoss",
    "SensitivitySpecificityLoss",
    "ShapeAwareLoss",
    "ShapeMismatchError",
    "SquaredHingeLoss",
    "SurfaceLoss",
    "TopKLoss",
    "TwoClassDiceLoss",
    "UnifiedFocalLoss",
    "WeightedCrossEntropyLoss",
    "config_dir",
]

if TYPE_CHECKING or "monai" in sys.modules:
    # MONAI's config parser finds short names in loaded modules only, and once MONAI is loaded ours cost nothing.
    from monai_extra_losses.losses import *


def __getattr__(name: str) -> Any:
    """Import torch and MONAI with the first loss that is asked for, so that the command line starts fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("monai_extra_losses.losses"), name)


def __dir__() -> list[str]:
    """Name every loss, imported or not."""
    return sorted({*globals(), *__all__})


def config_dir() -> Path:
    """Folder of the bundle's configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
