"""How well a segmentation keeps thin structures in one piece."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from monai_extra_losses.bundle.metric_set import CaseMetric, Measured, MetricSet, VoxelGrid
from monai_extra_losses.data.topology import betti_numbers
from monai_extra_losses.ops.skeletons import hard_skeletons

_Mask = NDArray[np.bool_]


_METRICS = (
    CaseMetric(
        "cl_dice",
        "clDice",
        higher_is_better=True,
        meaning="harmonic mean of the share of the predicted skeleton that lies in the target, and of the target's in "
        "the prediction; 0 for a class that is missed or invented.",
    ),
    CaseMetric(
        "betti_0_error",
        "Betti-0 error",
        higher_is_better=False,
        meaning="how many connected pieces the prediction has too many or too few; voxels that share a corner are "
        "connected. A class that is missed has few errors: read it beside the Dice.",
    ),
    CaseMetric("betti_1_error", "Betti-1 error", higher_is_better=False, meaning="the same of loops."),
)


class VesselMetrics(MetricSet):
    """`vessel_metrics`."""

    def __init__(self) -> None:
        super().__init__(_METRICS)

    def measure(self, prediction: _Mask, target: _Mask, grid: VoxelGrid) -> Measured:
        """Measure one class in one case; the grid is not read."""
        del grid
        return Measured(vessel_metrics(prediction, target))


def vessel_metrics(prediction: _Mask, target: _Mask) -> dict[str, float]:
    """clDice of hard skeletons, and errors of the Betti numbers, of one class in one case.

    cl_dice = 2 T_p T_s / (T_p + T_s), T_p = |S_p and G| / |S_p|, T_s = |S_g and P| / |S_g|

    betti_k_error = |b_k(P) - b_k(G)|, see `data.topology.betti_numbers`

    S are the skeletons of prediction P and target G. They count voxels, however thick these are. Of what scikit-image
    finds no skeleton, a cube of 2 voxels say, the whole is its skeleton.

    Args:
        prediction, target: bool (X, Y, Z).

    Returns:
        `cl_dice`, `betti_0_error`, `betti_1_error`; all NaN where neither has a voxel.

    Raises:
        ImportError: without scikit-image.

    References: Shit et al. 2021, arXiv:2003.07311; Hu et al. 2019, arXiv:1906.05404, who count in random patches.
    """
    if not (prediction.any() or target.any()):
        return dict.fromkeys(("cl_dice", "betti_0_error", "betti_1_error"), math.nan)
    (own_0, own_1), (true_0, true_1) = betti_numbers(prediction), betti_numbers(target)
    return {
        "cl_dice": _centerline_dice(prediction, target),
        "betti_0_error": abs(own_0 - true_0),
        "betti_1_error": abs(own_1 - true_1),
    }


def _centerline_dice(prediction: _Mask, target: _Mask) -> float:
    if not (prediction & target).any():
        return 0.0
    box = tuple(slice(at.min(), at.max() + 1) for at in np.nonzero(prediction | target))
    prediction, target = prediction[box], target[box]
    precision = target[_skeleton(prediction)].mean()
    sensitivity = prediction[_skeleton(target)].mean()
    return 0.0 if precision + sensitivity == 0 else float(2 * precision * sensitivity / (precision + sensitivity))


def _skeleton(mask: _Mask) -> _Mask:
    skeleton = hard_skeletons(torch.from_numpy(mask)[None])[0].numpy()
    return skeleton if skeleton.any() else mask
