"""Draw a table of bench_losses.py: time and peak memory of our losses beside their baselines, over the class counts.

python benchmarks/draw_figure.py benchmarks/cpu.csv docs/performance_cpu.png
"""

import argparse
import csv
from pathlib import Path

from bench_losses import HEADLINES
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, str]
BASELINES = ("MONAI", "textbook")


def draw(rows: list[Row], out: Path) -> None:
    """One row of panels for time, one for memory; a panel per shape. Of several kinds of rows the first."""
    rows = [row for row in rows if row["loss"] in HEADLINES and row["baseline"] in BASELINES]
    rows = [row for row in rows if all(row[key] == rows[0][key] for key in ("allocator", "dtype", "labels", "loops"))]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure = Figure(figsize=(3.4 * len(shapes) + 1.6, 6.4), layout="constrained")
    panels = figure.subplots(2, len(shapes), sharey="row", squeeze=False)
    for column, shape in enumerate(shapes):
        of_shape = {row["loss"]: row for row in rows if row["shape"] == shape}
        names = [name for name in HEADLINES if name in of_shape]
        chosen = [of_shape[name] for name in names]
        batch, classes, *size = shape.split("x")
        panels[0][column].set_title(f"{classes} classes, {batch} x {' x '.join(size)}", fontsize=10)
        bars(panels[0][column], chosen, "ms")
        bars(panels[1][column], chosen, "memory")
        panels[0][column].set_xticks([])
        labels = [f"{name} ({row['baseline']})" for name, row in zip(names, chosen, strict=True)]
        panels[1][column].set_xticks(range(len(names)), labels, rotation=90, fontsize=8)
    panels[0][0].set_ylabel("time of a step\n/ the baseline's")
    panels[1][0].set_ylabel("peak extra memory\n/ the logits")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    where = rows[0]
    title = "{device}, {threads} threads, torch {torch}, MONAI {monai}, loops: {loops}, {date}".format(**where)
    figure.suptitle(title, fontsize=10)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def bars(axes: Axes, rows: list[Row], unit: str) -> None:
    """Baseline and ours side by side: times as fractions of the baseline's, memory as it is."""
    baseline = [1.0 if unit == "ms" else float(row["baseline_memory"]) for row in rows]
    ours = [float(row["time_ratio"] if unit == "ms" else row["ours_memory"]) for row in rows]
    axes.bar([x - 0.2 for x in range(len(rows))], baseline, 0.4, color="0.75", label="baseline")
    axes.bar([x + 0.2 for x in range(len(rows))], ours, 0.4, color="tab:blue", label="ours")
    axes.axhline(1, color="black", linewidth=0.6)
    axes.margins(x=0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="what bench_losses.py --csv wrote")
    parser.add_argument("out", type=Path, help="PNG file")
    args = parser.parse_args()
    with args.table.open(newline="") as file:
        draw(list(csv.DictReader(file)), args.out)


if __name__ == "__main__":
    main()
