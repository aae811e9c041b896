"""The decision by two thresholds: what is likely nowhere goes as a whole."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_extra_losses.bundle.error_text import as_sentence
from monai_extra_losses.bundle.options import window
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.ops.components import refuse_missing_packages
from monai_extra_losses.transforms import HysteresisKeep


def hysteresis_option(name: str, value: Any) -> tuple[float, float] | None:
    """`value` as the two thresholds of `HysteresisKeep`, or None.

    Raises:
        StartUpRefused: other numbers than two probabilities, the lower one first; a package that is missing.
    """
    thresholds = window(name, value, example="[0.25, 0.7]")
    if thresholds is None:
        return None
    if not 0 <= thresholds[0] < thresholds[1] < 1:
        raise StartUpRefused(f"Expected {name} to be two probabilities below 1, got {value!r}; [0.25, 0.7] is usual.")
    try:
        refuse_missing_packages()
    except ImportError as error:
        raise StartUpRefused(as_sentence(error)) from None
    return thresholds


def scores_of_what_is_kept(scores: torch.Tensor, thresholds: Sequence[float], *, regions: bool) -> torch.Tensor:
    """(C, *spatial) scores whose decision, the largest or for regions from 0 on, is what `HysteresisKeep` keeps."""
    low, high = thresholds
    p = scores.float().sigmoid() if regions else scores.float().softmax(dim=0)
    kept = HysteresisKeep(low, high, include_background=regions)(p)
    return torch.where(kept > 0, 1.0, -1.0) if regions else kept


class HysteresisOfScoresd(MapTransform):
    """Puts scores in place of others by which the usual decision keeps what `HysteresisKeep` keeps.

    Args:
        keys: of the scores (C, *spatial).
        thresholds: low and high.
        regions: the channels are regions, and not classes that exclude each other.
    """

    def __init__(self, keys: str | Sequence[str], thresholds: Sequence[float], regions: bool) -> None:
        super().__init__(keys)
        self.thresholds, self.regions = tuple(thresholds), regions

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of `data` with these scores."""
        changed = dict(data)
        for key in self.key_iterator(changed):
            scores: MetaTensor = changed[key]
            kept = scores_of_what_is_kept(scores.as_tensor(), self.thresholds, regions=self.regions)
            changed[key] = MetaTensor(kept, meta=scores.meta)
        return changed
