"""Every number that a comparison measured, as one table."""

import math
from typing import Any

from monai_extra_losses.compare.results import ComparisonResults
from monai_extra_losses.report.tables import csv_cell, csv_text


def results_csv(results: ComparisonResults) -> str:
    """A row per loss, fold, seed, point of the grid, case and class, in the order of the plan.

    An empty cell where a metric is undefined.
    """
    grid = list(results.plan.grid)
    measured = dict.fromkeys(metric.name for metric in results.metrics)
    for one in results.finished:
        for row in one.cases:
            measured |= dict.fromkeys(name for name in row if name not in ("case", "label"))
    costs = ("seconds_per_epoch", "peak_memory_mb")
    rows: list[dict[str, Any]] = []
    for one in results.finished:
        trial = one.trial
        of_trial = {"loss": trial.loss.text, "fold": trial.fold, "seed": trial.seed, **trial.values}
        of_trial |= {name: csv_cell(getattr(one, name)) for name in costs}
        for row in one.cases:
            numbers = {name: csv_cell(float(row.get(name, math.nan))) for name in measured}
            rows.append({**of_trial, "case": row["case"], "label": row["label"], **numbers})
    return csv_text(("loss", "fold", "seed", *grid, "case", "label", *measured, *costs), rows)
