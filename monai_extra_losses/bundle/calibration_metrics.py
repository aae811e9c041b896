"""How far predicted probabilities are from frequencies."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from numpy.typing import NDArray

from monai_extra_losses.bundle.metric_set import CaseMetric, Mask, Measured, MetricSet, VoxelGrid

BINS = 20
_KEY = "calibration"  # of an item: (classes, 2) numbers
_METRICS = (
    CaseMetric(
        "expected_calibration_error",
        "ECE",
        higher_is_better=False,
        meaning=f"mean of |confidence - frequency| over {BINS} bins of the probability of the class, each with the "
        "share of its voxels.",
    ),
    CaseMetric(
        "average_calibration_error",
        "ACE",
        higher_is_better=False,
        meaning="the same, where each bin with a voxel counts alike, so that the many sure voxels do not rule it.",
    ),
)


class CalibrationMetrics(MetricSet):
    """Calibration errors of the probability of each class in each case, by `CalibrationErrord`."""

    def __init__(self) -> None:
        super().__init__(_METRICS)

    def of_case(
        self, item: Mapping[str, Any], number: int, prediction: Mask, target: Mask, grid: VoxelGrid
    ) -> Measured:
        """What the transform measured before the decision."""
        del prediction, target, grid
        errors = np.asarray(item[_KEY])[number - 1].tolist()
        return Measured(dict(zip((metric.name for metric in self.metrics), errors, strict=True)))


class CalibrationErrord(MapTransform):
    """Adds the calibration errors of the classes, or regions, to an item, of scores on the grid of the label.

    Args:
        keys: of the scores (C,X,Y,Z).
        label_key: of the label map (1,X,Y,Z), or of regions (R,X,Y,Z).
        regions: the scores are those of a sigmoid per region, and not of a softmax.
        ignore_index: what the label has in voxels without annotation, which are left out.
    """

    def __init__(self, keys: str, label_key: str, regions: bool, ignore_index: int | None = None) -> None:
        super().__init__(keys)
        self.label_key, self.regions, self.ignore_index = label_key, regions, ignore_index

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Measure, class by class."""
        (key,) = self.keys
        scores, label = torch.as_tensor(data[key]), torch.as_tensor(data[self.label_key])
        scores = scores.as_subclass(torch.Tensor).float()
        counted = np.ones(label.shape[1:], dtype=bool)
        if self.ignore_index is not None:
            counted = (label[0] != self.ignore_index).cpu().numpy()
        total = None if self.regions else scores.logsumexp(0)
        errors = []
        for channel in range(0 if self.regions else 1, len(scores)):
            p = scores[channel].sigmoid() if total is None else (scores[channel] - total).exp()
            g = label[channel] > 0 if self.regions and len(label) > 1 else label[0] == max(channel, 1)
            errors.append(calibration_errors(p.cpu().numpy()[counted], g.cpu().numpy()[counted]))
        return {**data, _KEY: torch.tensor(errors, dtype=torch.float64)}


def calibration_errors(p: NDArray[np.floating[Any]], g: NDArray[np.bool_], bins: int = BINS) -> tuple[float, float]:
    """Expected and average calibration error; NaN without a voxel.

    Sums are float64. `monai.metrics.CalibrationErrorMetric` counts in float32, which stops at 16.8 million voxels.

    Args:
        p: probabilities, of any shape.
        g: what happened, of the same shape.
        bins: of [0, 1], of equal width; bin b has b/bins <= p < (b+1)/bins, the last p = 1 too.
    """
    place = np.minimum((p.ravel() * bins).astype(np.int64), bins - 1)
    voxels, confidence, frequency = (
        np.bincount(place, weights=weights, minlength=bins) for weights in (None, p.ravel(), g.ravel())
    )
    filled = voxels > 0
    if not filled.any():
        return float("nan"), float("nan")
    apart = np.abs(confidence - frequency)[filled]
    return float(apart.sum() / voxels.sum()), float((apart / voxels[filled]).mean())
