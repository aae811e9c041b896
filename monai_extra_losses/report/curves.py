"""Training curves as a picture."""

import csv
import math
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_CLASS_PREFIX = "val_dice_"
_PART_PREFIX = "train_loss_"


def draw_curves(history_csv: str | Path, out: str | Path) -> Path:
    """Draw the training loss, its parts and the validation Dice of each class over the epochs.

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
    classes = [name for name in columns if name.startswith(_CLASS_PREFIX)]

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss_axes, dice_axes = figure.subplots(1, 2)
    parts = [name for name in columns if name.startswith(_PART_PREFIX)]
    marker = "." if len(epochs) < 50 else None
    loss_axes.plot(epochs, columns["train_loss"], color="black", marker=marker, label="loss")
    for part in parts:
        loss_axes.plot(epochs, columns[part], marker=marker, label=part.removeprefix(_PART_PREFIX))
    if parts:  # alone, a loss whose weights change would tell little
        loss_axes.legend(frameon=False)
    loss_axes.set(title="Training", ylabel="loss (mean of the epoch)")

    validated = [row for row, dice in enumerate(columns["val_mean_dice"]) if not math.isnan(dice)]
    marker = "." if len(validated) < 50 else None
    for name in classes:
        values = [columns[name][row] for row in validated]
        dice_axes.plot(
            [epochs[row] for row in validated], values, marker=marker, label=name.removeprefix(_CLASS_PREFIX)
        )
    means = [columns["val_mean_dice"][row] for row in validated]
    at = [epochs[row] for row in validated]
    dice_axes.plot(at, means, color="black", linewidth=2, marker=marker, label="mean")
    dice_axes.set(title="Validation", ylabel="Dice", ylim=(-0.02, 1.02))
    if validated:
        best = max(range(len(means)), key=means.__getitem__)
        label = f"best mean: {means[best]:.3f}\n(epoch {at[best]:.0f})"
        dice_axes.plot(at[best], means[best], "o", color="black", markerfacecolor="white", label=label)
    dice_axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    for axes in (loss_axes, dice_axes):
        axes.set_xlabel("epoch")
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return out


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
