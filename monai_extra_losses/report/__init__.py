"""Pictures of a training run and of its results."""

from monai_extra_losses.report.curves import draw_curves
from monai_extra_losses.report.overlays import draw_overlay

__all__ = [
    "draw_curves",
    "draw_overlay",
]
