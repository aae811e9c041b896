"""Training curves as a picture."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monai_extra_losses.report.names import shown_name

_CLASS_PREFIX = "val_dice_"
_PART_PREFIX = "train_loss_"

_MOST_LINES = 10
"""Classes up to which each has a line: matplotlib's cycle has so many colours."""

_MOST_ROWS = 600
"""Classes up to which each has a row of the table: an image has at most 2^16 pixels a side."""

_TABLE_COLUMNS = 3


def draw_curves(history_csv: str | Path, out: str | Path) -> Path:
    """Draw the training loss, its parts and the validation Dice of each class over the epochs.

    Up to 10 classes have a line each. More have a row each in a table of colours, below the mean and the spread of all.

    Args:
        history_csv: one row per epoch, with columns `epoch`, `train_loss`, `val_mean_dice` and one `val_dice_NAME` per
            foreground class; an empty cell where an epoch has no validation. The parts of a compound loss, before their
            weights, are columns `train_loss_NAME`.
        out: PNG file to write; its folder is created.

    Returns:
        The file written.

    Raises:
        ValueError: the file has no epochs, lacks a column, or holds a cell that is no number.
    """
    columns = _read_columns(Path(history_csv))
    epochs = columns["epoch"]
    validated = [row for row, dice in enumerate(columns["val_mean_dice"]) if not math.isnan(dice)]
    validation = {name: [column[row] for row in validated] for name, column in columns.items()}
    classes = {
        name.removeprefix(_CLASS_PREFIX): dice for name, dice in validation.items() if name.startswith(_CLASS_PREFIX)
    }

    with_table = len(classes) > _MOST_LINES and bool(validated)
    if with_table:
        figure, (loss_axes, dice_axes, scale_axes, *table_axes) = _lay_out(min(len(classes), _MOST_ROWS))
        _draw_table(table_axes, scale_axes, classes, validation)
    else:
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        loss_axes, dice_axes = figure.subplots(1, 2)
    _draw_losses(loss_axes, columns)
    if with_table:
        _draw_spread(dice_axes, classes, validation["epoch"])
    else:
        for name, dice in classes.items():
            dice_axes.plot(validation["epoch"], dice, marker=_marker(validated), label=shown_name(name))
    _draw_mean(dice_axes, validation, beside=not with_table)
    for axes in (loss_axes, dice_axes):
        axes.set_xlabel("epoch")
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return out


def _lay_out(rows: int) -> tuple[Figure, list[Axes]]:
    """A figure for the loss, the Dice, a scale of colours, and below them the columns of a table of so many rows.

    Lengths in inches. Placed by hand, because a layout engine shrinks the curves for the sake of a long table.
    """
    table = 0.165 * math.ceil(rows / _TABLE_COLUMNS)
    height = table + 6.6
    figure = Figure(figsize=(13, height))
    boxes = [(0.8, height - 3.9, 5.0, 3.5), (7.2, height - 3.9, 5.0, 3.5), (5.0, table + 1.05, 3.0, 0.12)]
    for column in range(_TABLE_COLUMNS):
        first, last = (math.ceil(rows * c / _TABLE_COLUMNS) for c in (column, column + 1))
        length = 0.165 * (last - first)
        boxes.append((2.0 + 4.3 * column, 0.6 + table - length, 1.7, length))
    whole = np.tile((13, height), 2)
    return figure, [figure.add_axes((np.array(box) / whole).tolist()) for box in boxes]


def _draw_losses(axes: Axes, columns: Mapping[str, list[float]]) -> None:
    epochs = columns["epoch"]
    axes.plot(epochs, columns["train_loss"], color="black", marker=_marker(epochs), label="loss")
    parts = [name for name in columns if name.startswith(_PART_PREFIX)]
    for part in parts:
        label = shown_name(part.removeprefix(_PART_PREFIX))
        axes.plot(epochs, columns[part], marker=_marker(epochs), label=label)
    if parts:  # alone, a loss whose weights change would tell little
        axes.legend(frameon=False)
    axes.set(title="Training", ylabel="loss (mean of the epoch)")


def _draw_mean(axes: Axes, validation: Mapping[str, list[float]], *, beside: bool) -> None:
    """The mean of the classes and its best; the legend beside the curves, or below them."""
    at, means = validation["epoch"], validation["val_mean_dice"]
    axes.plot(at, means, color="black", linewidth=2, marker=_marker(at), label="mean")
    axes.set(title="Validation", ylabel="Dice", ylim=(-0.02, 1.02))
    if means:
        best = max(range(len(means)), key=means.__getitem__)
        label = f"best mean: {means[best]:.3f}\n(epoch {at[best]:.0f})"
        axes.plot(at[best], means[best], "o", color="black", markerfacecolor="white", label=label)
    if beside:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    else:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def _draw_spread(axes: Axes, classes: Mapping[str, Sequence[float]], at: Sequence[float]) -> None:
    """Between which values all classes are, and the middle half of them."""
    # an epoch in which no class is defined has no mean either, and is no column here
    low, first, third, high = np.nanpercentile(np.array(list(classes.values())), (0, 25, 75, 100), axis=0)
    axes.fill_between(at, low, high, color="tab:blue", alpha=0.2, linewidth=0, label="all classes")
    axes.fill_between(at, first, third, color="tab:blue", alpha=0.4, linewidth=0, label="the middle half of them")


def _draw_table(
    columns: Sequence[Axes],
    scale_axes: Axes,
    classes: Mapping[str, Sequence[float]],
    validation: Mapping[str, list[float]],
) -> None:
    """A row of colours per class, a cell per validation, and the numbers of the best epoch."""
    at, means = validation["epoch"], validation["val_mean_dice"]
    best = max(range(len(means)), key=means.__getitem__)
    names, which = list(classes), "each class"
    if len(names) > _MOST_ROWS:
        lowest = sorted(names, key=lambda name: np.nan_to_num(classes[name][best], nan=2.0))[:_MOST_ROWS]
        names, which = lowest, f"the {_MOST_ROWS} lowest of {len(classes)} classes"
    colours = colormaps["viridis"].with_extremes(bad="0.8")
    epochs = range(0, len(at), max(1, len(at) // 5))
    for column, axes in enumerate(columns):
        first, last = (math.ceil(len(names) * c / len(columns)) for c in (column, column + 1))
        shown = names[first:last]
        values = np.ma.masked_invalid([classes[name] for name in shown])
        image = axes.imshow(values, aspect="auto", interpolation="nearest", vmin=0, vmax=1, cmap=colours)
        axes.set_yticks(range(len(shown)), [shown_name(name) for name in shown], fontsize=8)
        axes.set_xticks(epochs, [f"{at[cell]:.0f}" for cell in epochs], fontsize=8)
        axes.set_xlabel("epoch", fontsize=8)
        dice = [classes[name][best] for name in shown]
        numbers = axes.secondary_yaxis("right")
        numbers.set_yticks(range(len(shown)), ["-" if math.isnan(d) else f"{d:.3f}" for d in dice], fontsize=8)
        numbers.tick_params(length=0)
    scale_axes.figure.colorbar(image, cax=scale_axes, orientation="horizontal")
    scale_axes.set_title(f"Validation Dice of {which} (numbers: epoch {at[best]:.0f}; grey, -: undefined)")


def _marker(points: Sequence[float]) -> str | None:
    return "." if len(points) < 50 else None


def _read_columns(file: Path) -> dict[str, list[float]]:
    """Column name -> its cells, NaN for an empty one."""
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        names = reader.fieldnames or []
    missing = [name for name in ("epoch", "train_loss", "val_mean_dice") if name not in names]
    if missing or not rows:
        what = f"no column {', '.join(missing)}" if missing else "no row"
        raise ValueError(f"{file}: expected one row per epoch with epoch, train_loss and val_mean_dice, got {what}.")
    wanted = [
        name
        for name in names
        if name in ("epoch", "train_loss", "val_mean_dice") or name.startswith((_CLASS_PREFIX, _PART_PREFIX))
    ]
    try:
        return {name: [float(row[name] or "nan") for row in rows] for name in wanted}
    except ValueError as error:
        raise ValueError(f"{file}: expected numbers or empty cells, got an error ({error}).") from error
