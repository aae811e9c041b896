"""How well a segmentation finds lesions: counted, and by their volume."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from monai_extra_losses.bundle.lesion_matching import LesionMatch, LesionRule, match_lesions
from monai_extra_losses.bundle.metric_set import CaseMetric, Mask, Measured, MetricSet, VoxelGrid
from monai_extra_losses.bundle.run_folder import ResultsFolder
from monai_extra_losses.data.storage import write_whole
from monai_extra_losses.report.tables import aligned_table, csv_cell, csv_text, read_csv

_METRICS = (
    CaseMetric("lesions", "lesions", None, meaning="of the target, per case.", decimals=1),
    CaseMetric(
        "predicted_lesions", "predicted", None, meaning="connected components of the prediction, per case.", decimals=1
    ),
    CaseMetric(
        "lesion_sensitivity",
        "sensitivity",
        higher_is_better=True,
        meaning="share of the lesions that are found; undefined in cases without one, which `no lesion` counts.",
        undefined="no lesion",
    ),
    CaseMetric(
        "lesion_precision",
        "precision",
        higher_is_better=True,
        meaning="share of the predicted components that are no false positives; undefined in cases without one, which "
        "`no pred.` counts.",
        undefined="no pred.",
    ),
    CaseMetric(
        "lesion_f1",
        "F1",
        higher_is_better=True,
        meaning="harmonic mean of both; 0 in a case whose lesions are all missed or all invented, undefined in one "
        "with neither.",
    ),
    CaseMetric("false_positive_lesions", "FP", higher_is_better=False, meaning="false positives per case.", decimals=1),
)

_CASE = ("run", "case", "label")  # what the lesions of a row have in common with it

_COLUMNS = (
    *("case", "label", "volume_ml", "found", "overlap", "dice"),
    *(f"centroid_{axis}_mm" for axis in "xyz"),
)


class LesionMetrics(MetricSet):
    """Lesions of each class in each case, by `match_lesions`.

    Writes lesions.csv, a row per lesion, and a picture of the sensitivity over the volume.

    Args:
        rule: when a lesion is found, and the bins.
    """

    def __init__(self, rule: LesionRule) -> None:
        super().__init__(_METRICS)
        self.rule = rule

    def measure(self, prediction: Mask, target: Mask, grid: VoxelGrid) -> Measured:
        """Count lesions and predicted components of one class in one case."""
        match = match_lesions(prediction, target, self.rule)
        return Measured(_numbers(match), _objects(match, grid), match.missed, match.invented)

    def over_all_cases(
        self, rows: Sequence[dict[str, Any]], objects: Sequence[Mapping[str, Any]]
    ) -> tuple[CaseMetric, ...]:
        """Number, sensitivity and mean Dice of the lesions of each bin; NaN for a bin without a lesion in the case."""
        bins = volume_bins(self.rule.bins, [lesion["volume_ml"] for lesion in objects])
        for row in rows:
            own = [one for one in objects if all(one.get(name) == row.get(name) for name in _CASE)]
            for name, (low, high) in bins.items():
                of_bin = [lesion for lesion in own if low <= lesion["volume_ml"] < high]
                row[f"lesions_{name}"] = len(of_bin)
                row[f"lesion_sensitivity_{name}"] = _mean([lesion["found"] for lesion in of_bin])
                row[f"lesion_dice_{name}"] = _mean([lesion["dice"] for lesion in of_bin])
        kinds = {"lesions": None, "lesion_sensitivity": True, "lesion_dice": True}
        return tuple(CaseMetric(f"{kind}_{name}", None, better) for kind, better in kinds.items() for name in bins)

    def legend(self) -> list[str]:
        """The rule, and the columns."""
        return [
            self.rule.sentence,
            *super().legend(),
            "found by volume: the lesions of all cases together. Dice: their mean, each of the lesion and the "
            "predicted components that touch it, without what of these lies in other lesions; 0 where none does.",
        ]

    def further_table(self, names: Sequence[str], objects: Sequence[Mapping[str, Any]]) -> str:
        """Lesions found and their Dice in each bin, a row per class."""
        bins = volume_bins(self.rule.bins, [lesion["volume_ml"] for lesion in objects])
        heads = ("found by volume", *(f"{_in_words(*edges)} ml" for edges in bins.values()))
        lines = [heads]
        for name in names:
            own = [lesion for lesion in objects if lesion["label"] == name]
            of_bins = [[one for one in own if low <= one["volume_ml"] < high] for low, high in bins.values()]
            lines += [(name, *map(_found, of_bins)), ("  Dice", *(_shown([o["dice"] for o in b]) for b in of_bins))]
        return aligned_table(lines)

    def write(self, folder: ResultsFolder, objects: Sequence[Mapping[str, Any]]) -> str:
        """Write lesions.csv and, where there is a lesion, lesions.png."""
        cells = [{k: csv_cell(v) if isinstance(v, float) else v for k, v in row.items()} for row in objects]
        pooled = ("run",) if any("run" in row for row in objects) else ()
        write_whole(folder.lesions_csv, csv_text((*pooled, *_COLUMNS), cells))
        if not objects:
            return f"Lesions: {folder.lesions_csv}; there is none."
        from monai_extra_losses.report.lesions import draw_sensitivity

        bins = volume_bins(self.rule.bins, [lesion["volume_ml"] for lesion in objects])
        needed = f"{self.rule.overlap:.0%} of it predicted" if self.rule.overlap else "any voxel predicted"
        edges = [low for low, _ in list(bins.values())[1:]]
        draw_sensitivity(objects, folder.lesions_png, edges_ml=edges, rule=needed)
        return f"Lesions: {folder.lesions_csv}, {folder.lesions_png}"

    def read(self, folder: ResultsFolder) -> list[dict[str, Any]]:
        """The lesions of lesions.csv."""
        return [{**row, "found": int(row["found"])} for row in read_csv(folder.lesions_csv, text=("case", "label"))]


def volume_bins(bins: tuple[float, ...] | int, volumes_ml: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Name for columns -> volumes in ml, from the first (in) to the second (out).

    Args:
        bins: edges; or a number of bins, cut at quantiles of the volumes, fewer where these are equal.
        volumes_ml: of all lesions.
    """
    if isinstance(bins, int):
        shares = np.arange(1, bins) / bins
        cut = np.quantile(volumes_ml, shares, method="higher").tolist() if len(volumes_ml) else []
        bins = tuple(sorted({float(f"{edge:.3g}") for edge in cut if edge > min(volumes_ml)}))  # as the names say
    edges = (0.0, *bins, math.inf)
    pairs = list(pairwise(edges))
    return {f"{_words_of_name(low, high)}_ml": (low, high) for low, high in pairs}


def _words_of_name(low: float, high: float) -> str:
    return f"from_{low:.3g}" if high == math.inf else f"{low:.3g}_to_{high:.3g}"


def _in_words(low: float, high: float) -> str:
    if low == 0:
        return "all" if high == math.inf else f"< {high:.3g}"
    return f">= {low:.3g}" if high == math.inf else f"{low:.3g} to {high:.3g}"


def _numbers(match: LesionMatch) -> dict[str, float]:
    sensitivity, precision = _mean(match.found), _mean(match.true)
    if math.isnan(sensitivity) and math.isnan(precision):
        f1 = math.nan
    else:
        total = np.nansum([sensitivity, precision])
        f1 = 0.0 if math.isnan(sensitivity * precision) or not total else 2 * sensitivity * precision / float(total)
    return {
        "lesions": len(match.found),
        "predicted_lesions": len(match.true),
        "lesion_sensitivity": sensitivity,
        "lesion_precision": precision,
        "lesion_f1": f1,
        "false_positive_lesions": int((~match.true).sum()),
    }


def _objects(match: LesionMatch, grid: VoxelGrid) -> list[dict[str, Any]]:
    centroids = match.centres @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    measured = zip(match.voxels, match.found, match.overlap, match.dice, centroids, strict=True)
    return [
        {
            "volume_ml": float(csv_cell(float(voxels) * grid.voxel_ml)),  # as the file says, for the bins to agree
            "found": int(found),
            "overlap": float(overlap),
            "dice": float(dice),
            **{f"centroid_{axis}_mm": float(mm) for axis, mm in zip("xyz", centroid, strict=True)},
        }
        for voxels, found, overlap, dice, centroid in measured
    ]


def _mean(numbers: Any) -> float:
    return float(np.mean(numbers)) if len(numbers) else math.nan


def _found(lesions: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(lesion['found'] for lesion in lesions)} of {len(lesions)}"


def _shown(dice: Sequence[float]) -> str:
    return f"{np.mean(dice):.3f}" if dice else "-"
