"""What an evaluation measures beside Dice, surface distances and volumes: sets of metrics, chosen by `metrics`.

A new set is a `MetricSet`, an entry in the table below, and its name in `options.MetricSetName`. Tables, summary and
legend follow from these.
"""

from collections.abc import Sequence

from monai_extra_losses.bundle.calibration_metrics import CalibrationMetrics
from monai_extra_losses.bundle.lesion_matching import LesionRule
from monai_extra_losses.bundle.lesion_metrics import LesionMetrics
from monai_extra_losses.bundle.metric_set import MetricSet
from monai_extra_losses.bundle.vessel_metrics import VesselMetrics


def metric_sets_of(names: Sequence[str], lesion_rule: LesionRule | None = None) -> list[MetricSet]:
    """The sets of these names.

    Args:
        names: of `options.MetricSetName`.
        lesion_rule: when `lesions` counts one as found, and its bins; None: the default.
    """
    known = {
        "vessels": VesselMetrics(),
        "lesions": LesionMetrics(lesion_rule or LesionRule()),
        "calibration": CalibrationMetrics(),
    }
    return [known[name] for name in names]
