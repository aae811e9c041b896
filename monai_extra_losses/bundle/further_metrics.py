"""What an evaluation measures beside Dice, surface distances and volumes: sets of metrics, chosen by `metrics`.

A new set is a function, the metrics that it measures, an entry in the table, and its name in `options.MetricSetName`.
Tables, summary and legend follow from these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.bundle.vessel_metrics import vessel_metrics


@dataclass(frozen=True)
class CaseMetric:
    """A number of each case and class.

    Args:
        name: of its columns, with the unit where it has one: hd95_mm.
        heading: in the printed table.
        higher_is_better: or lower.
        meaning: for the legend, from where the name ends; when it is undefined, too.
    """

    name: str
    heading: str
    higher_is_better: bool
    meaning: str

    @property
    def legend(self) -> str:
        """The sentence of the legend."""
        return f"{self.heading} ({'higher' if self.higher_is_better else 'lower'} is better): {self.meaning}"


@dataclass(frozen=True)
class MetricSet:
    """Metrics that are measured together.

    Args:
        metrics: in the order of the tables.
        measure: prediction and target, bool (X, Y, Z) without what is not annotated, and the spacing in mm -> name ->
            number; NaN where it is undefined, which is counted and left out of means.
    """

    metrics: tuple[CaseMetric, ...]
    measure: Callable[[NDArray[np.bool_], NDArray[np.bool_], Sequence[float]], Mapping[str, float]]


METRIC_SETS = {
    "vessels": MetricSet(
        (
            CaseMetric(
                "cl_dice",
                "clDice",
                higher_is_better=True,
                meaning="harmonic mean of the share of the predicted skeleton that lies in the target, and of the "
                "target's in the prediction; 0 for a class that is missed or invented.",
            ),
            CaseMetric(
                "betti_0_error",
                "Betti-0 error",
                higher_is_better=False,
                meaning="how many connected pieces the prediction has too many or too few; voxels that share a corner "
                "are connected. A class that is missed has few errors: read it beside the Dice.",
            ),
            CaseMetric(
                "betti_1_error",
                "Betti-1 error",
                higher_is_better=False,
                meaning="the same of loops.",
            ),
        ),
        vessel_metrics,
    )
}
