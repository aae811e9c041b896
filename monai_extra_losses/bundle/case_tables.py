"""The tables of an evaluation: cases.csv, summary.csv, and what is printed, of the cases of one run or of several."""

import logging
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_extra_losses.bundle.metric_set import MetricSet
from monai_extra_losses.bundle.run_folder import ResultsFolder
from monai_extra_losses.data.storage import write_whole
from monai_extra_losses.report.tables import aligned_table, csv_cell, csv_text, shown_mean, text_table

logger = logging.getLogger(__name__)

CASE_METRICS = ("dice", "hd95_mm", "surface_dice", "false_positive_ml")
CASE_COLUMNS = ("case", "label", "dice", "hd95_mm", "surface_dice", "target_ml", "prediction_ml", "false_positive_ml")


@dataclass(frozen=True)
class Legend:
    """What the printed tables are about.

    Args:
        surface_tolerance_mm: distance at which two surfaces count as one, in mm.
        hysteresis: thresholds by which the predictions were decided; None: the usual decision.
        windows: how far those of the prediction overlap, in words, with a blank before; "" where it is not known.
        runs: a sentence about several runs; "": there is one.
    """

    surface_tolerance_mm: float
    hysteresis: Sequence[float] | None = None
    windows: str = ""
    runs: str = ""

    def text(self, metric_sets: Sequence[MetricSet], *, partly: bool) -> str:
        """What the columns of the tables mean.

        Args:
            metric_sets: that were measured.
            partly: some case does not annotate all classes.
        """
        cases = "  cases: those that annotate the class; in the others it is not measured.\n" if partly else ""
        return (
            (f"{_wrapped(self.runs)}\n" if self.runs else "") + f"{cases}"
            "  ± standard deviation over the cases; the row mean is the mean of the classes.\n"
            "  undefined: cases with the class neither in the target nor in the prediction; they leave its means.\n"
            "  A class that is missed or invented in a case counts with Dice 0, surface Dice 0 and, as HD95, the\n"
            "  diagonal of the volume. HD95 is the 95th percentile of the distances between the surfaces; surface\n"
            f"  Dice counts surfaces within {self.surface_tolerance_mm:g} mm as one.\n"
            f"  Measured on the grid of each file{self.windows}. The validation of the training prints another\n"
            "  Dice, a quick one on its own grid."
            + self._decision()
            + "".join(f"\n{_wrapped(sentence)}" for chosen in metric_sets for sentence in chosen.legend())
        )

    def _decision(self) -> str:
        if self.hysteresis is None:
            return ""
        low, high = self.hysteresis
        return f"\n  Predictions by hysteresis: what is above {low:g} where it is above {high:g} somewhere."


def write_tables(
    folder: ResultsFolder,
    rows: Sequence[dict[str, Any]],
    objects: Sequence[Sequence[Mapping[str, Any]]],
    labels: Sequence[str],
    metric_sets: Sequence[MetricSet],
    legend: Legend,
) -> None:
    """Write the tables of all cases, and print them. cases.csv is the last file of an evaluation: where it is, all are.

    Args:
        folder: of the tables.
        rows: `case`, `label` and the numbers of each case and class; `run` too, where several runs are pooled.
        objects: those of each set.
        labels: names of the classes, or regions, in their order.
        metric_sets: that were measured.
        legend: for what is printed.
    """
    pooled = ("run",) if any("run" in row for row in rows) else ()
    cases = {(row.get("run"), row["case"]) for row in rows}
    names = [
        metric.name
        for chosen, own in zip(metric_sets, objects, strict=True)
        for metric in (*chosen.metrics, *chosen.over_all_cases(rows, own))
    ]
    summary = summarise(rows, labels, (*CASE_METRICS, *names))
    cells = [{k: v if isinstance(v, str) else csv_cell(v) for k, v in row.items()} for row in rows]
    write_whole(
        folder.summary_csv,
        csv_text(
            list(summary[0]),
            [{k: csv_cell(v) if isinstance(v, float) else v for k, v in row.items()} for row in summary],
        ),
    )
    further = [chosen.write(folder, own) for chosen, own in zip(metric_sets, objects, strict=True)]
    write_whole(folder.cases_csv, csv_text((*pooled, *CASE_COLUMNS, *names), cells))
    tables = [text_table(summary)]
    for chosen, own in zip(metric_sets, objects, strict=True):
        tables += [_table_of(summary, chosen), chosen.further_table(labels, own)]
    shown = "\n\n".join(table for table in tables if table)
    logger.info(f"{shown}\n{legend.text(metric_sets, partly=len(rows) < len(labels) * len(cases))}")
    logger.info(f"Tables: {folder.cases_csv}, {folder.summary_csv}")
    for said in filter(None, further):
        logger.info(said)


def summarise(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], metrics: Sequence[str] = CASE_METRICS
) -> list[dict[str, Any]]:
    """One row per class, and a row `mean` over the classes.

    Args:
        rows: `case`, `label` and the metrics.
        names: of the classes.
        metrics: names of the metrics.

    Returns:
        Columns `label`, `cases`, and per metric `_mean`, `_sd`, `_median` over the cases where it is defined and
        `_undefined`, the number of the others. In the row `mean`: the classes' means, and no `_sd`.
    """
    summary: list[dict[str, Any]] = []
    for name in names:
        of_class = [row for row in rows if row["label"] == name]
        line: dict[str, Any] = {"label": name, "cases": len(of_class)}
        for metric in metrics:
            values = np.array([row[metric] for row in of_class], dtype=float)
            defined = values[~np.isnan(values)]
            line[f"{metric}_mean"] = float(defined.mean()) if defined.size else math.nan
            line[f"{metric}_sd"] = float(defined.std(ddof=1)) if defined.size > 1 else math.nan
            line[f"{metric}_median"] = float(np.median(defined)) if defined.size else math.nan
            line[f"{metric}_undefined"] = int(values.size - defined.size)
        summary.append(line)
    mean: dict[str, Any] = {"label": "mean", "cases": max(line["cases"] for line in summary)}
    for column in list(summary[0])[2:]:
        values = np.array([line[column] for line in summary], dtype=float)
        defined = values[~np.isnan(values)]
        if column.endswith("_undefined"):
            mean[column] = int(values.sum())
        elif column.endswith("_sd") or not defined.size:
            mean[column] = math.nan  # the deviations of the classes have no mean worth a name
        else:
            mean[column] = float(defined.mean())
    return [*summary, mean]


def _table_of(summary: Sequence[Mapping[str, Any]], chosen: MetricSet) -> str:
    """The printed table of a set of metrics, with their deviations where they have decimals enough to show them."""
    shown = [metric for metric in chosen.metrics if metric.heading is not None]
    counted = [metric for metric in shown if metric.undefined is not None]
    lines = [["", *(str(metric.heading) for metric in shown), *(str(metric.undefined) for metric in counted)]]
    for row in summary:
        means = [
            shown_mean(
                row[f"{metric.name}_mean"],
                row[f"{metric.name}_sd"] if metric.decimals > 1 else math.nan,
                metric.decimals,
            )
            for metric in shown
        ]
        lines.append([str(row["label"]), *means, *(str(row[f"{metric.name}_undefined"]) for metric in counted)])
    return aligned_table(lines)


def _wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, 106, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
