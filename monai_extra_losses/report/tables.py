"""Tables of numbers, as text and as CSV."""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
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


def read_csv(file: Path, text: Collection[str]) -> list[dict[str, Any]]:
    """The rows of a table of `csv_text`: numbers, NaN where they are undefined, but in the columns of text."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v if k in text else float(v or "nan") for k, v in row.items()} for row in rows]


def aligned_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest cell; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def text_table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The table of a terminal, of rows of `case_tables.summarise`."""
    width = max(len(str(row["label"])) for row in summary) + 2
    heads = f"{'Dice':>16}{'median':>9}{'HD95 mm':>16}{'surface Dice':>16}{'FP ml':>9}{'cases':>7}{'undefined':>11}"
    lines = [" " * width + heads]
    for row in summary:
        dice, hd95, surface = (
            shown_mean(row[f"{metric}_mean"], row[f"{metric}_sd"]) for metric in ("dice", "hd95_mm", "surface_dice")
        )
        lines.append(
            f"{row['label']:{width}}{dice:>16}{shown_mean(row['dice_median']):>9}{hd95:>16}{surface:>16}"
            f"{shown_mean(row['false_positive_ml_mean']):>9}{row['cases']:>7}{row['dice_undefined']:>11}"
        )
    return "\n".join(lines)


def shown_mean(mean: float, deviation: float = math.nan, decimals: int = 3) -> str:
    """A mean and its deviation; - where it is undefined."""
    if math.isnan(mean):
        return "-"
    return f"{mean:.{decimals}f}" if math.isnan(deviation) else f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"
