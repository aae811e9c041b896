"""Tables of numbers, as text and as CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any


def shown_duration(seconds: float) -> str:
    """Seconds, minutes or hours, as one reads them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def csv_cell(value: float) -> str:
    """A number for a table; empty where it is undefined."""
    return "" if math.isnan(value) else f"{value:.6g}"


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def text_table(summary: Sequence[Mapping[str, Any]], further: Mapping[str, str] | None = None) -> str:
    """The table of a terminal.

    Args:
        summary: rows of `case_report.summarise`.
        further: name -> heading of metrics beside the usual ones.
    """
    further = further or {}
    width = max(len(str(row["label"])) for row in summary) + 2
    heads = f"{'Dice':>16}{'median':>9}{'HD95 mm':>16}{'surface Dice':>16}{'FP ml':>9}{'cases':>7}{'undefined':>11}"
    heads += "".join(f"{heading:>16}" for heading in further.values())
    lines = [" " * width + heads]
    for row in summary:
        dice, hd95, surface = (
            _shown(row[f"{metric}_mean"], row[f"{metric}_sd"]) for metric in ("dice", "hd95_mm", "surface_dice")
        )
        lines.append(
            f"{row['label']:{width}}{dice:>16}{_shown(row['dice_median']):>9}{hd95:>16}{surface:>16}"
            f"{_shown(row['false_positive_ml_mean']):>9}{row['cases']:>7}{row['dice_undefined']:>11}"
            + "".join(f"{_shown(row[f'{name}_mean'], row[f'{name}_sd']):>16}" for name in further)
        )
    return "\n".join(lines)


def _shown(mean: float, deviation: float = math.nan) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"
