"""Target and prediction drawn over the image, in three planes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from monai_extra_losses.report.names import shown_name

# Okabe and Ito's palette without black: told apart by colour-blind readers, and bright enough on grey.
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
_WITHOUT_ANNOTATION = "#999999"
_MISSED, _INVENTED = "#FF0000", "#FFFF00"  # of lesions
_PLANES = (("axial", 2, 0, 1), ("coronal", 1, 0, 2), ("sagittal", 0, 1, 2))  # name, axis cut, horizontal, vertical
_AXES = "xyz"
_SIDES = ("LR", "PA", "FH")  # where each axis of a NIfTI affine comes from and goes to: left, posterior, feet
_OBLIQUE = 0.3  # share of a direction along another axis of the body from which it is marked too, about 17 degrees

_LineStyle = Literal["solid", "dashed", "dotted"]

_Volume = NDArray[Any]


def draw_overlay(
    image: _Volume,
    label: _Volume | Mapping[int, _Volume],
    prediction: _Volume | Mapping[int, _Volume],
    *,
    spacing: Sequence[float],
    labels: Mapping[int, str],
    out: str | Path,
    title: str = "",
    affine: _Volume | None = None,
    ignored: _Volume | None = None,
    missed: _Volume | None = None,
    invented: _Volume | None = None,
) -> Path:
    """Draw the contours of target (solid) and prediction (dashed) over three planes of the image.

    Each plane is the slice that shows most of the target, all classes counting alike however small they are; where the
    target is empty, most of the prediction; where both are, the middle.

    Args:
        image: (X, Y, Z), any intensities; shown from the 0.5th to the 99.5th percentile.
        label: (X, Y, Z), label values of the target; or label value -> mask (X, Y, Z), where regions overlap.
        prediction: the same of the prediction.
        spacing: millimetres per voxel along X, Y, Z.
        labels: label value -> name; 0 is the background and not drawn. The legend names the classes present.
        out: PNG file to write; its folder is created.
        title: line above the planes, such as the case's name and Dice.
        affine: (4, 4), voxel indices to mm of right, anterior, superior, as NIfTI has it; the sides of the patient are
            marked by it: R and L, A and P, H (head) and F (feet). None: no marks, for a volume whose orientation is not
            known.
        ignored: mask (X, Y, Z) of voxels without annotation, whose border is drawn dotted.
        missed, invented: masks (X, Y, Z) of lesions that were not found and of false positives, whose contours have
            colours of their own; None: none are marked.

    Returns:
        The file written.

    Raises:
        ValueError: the three volumes differ in shape or are no volumes.
    """
    values = [value for value in labels if value != 0]
    target, predicted = (
        volume if isinstance(volume, Mapping) else {value: volume == value for value in values}
        for volume in (label, prediction)
    )
    shapes = [mask.shape for volume in (target, predicted) for mask in volume.values()]
    if image.ndim != 3 or any(shape != image.shape for shape in shapes):
        raise ValueError(
            f"expected image, label and prediction of one shape (X, Y, Z), got {image.shape}, "
            f"{', '.join(map(str, dict.fromkeys(shapes)))}; "
            "give one channel of the image and label maps without channel axis."
        )
    every_colour = dict(zip(values, _class_colours(len(values)), strict=True))  # the same in the pictures of all cases
    colours = {value: c for value, c in every_colour.items() if target[value].any() or predicted[value].any()}
    size = [n * step for n, step in zip(image.shape, spacing, strict=True)]
    low, high = np.percentile(image[np.isfinite(image)], (0.5, 99.5))

    handles = [
        Line2D([], [], color=colour, linewidth=3, label=shown_name(labels[value])) for value, colour in colours.items()
    ]
    handles += [
        Line2D([], [], color="black", linestyle="solid", label="target"),
        Line2D([], [], color="black", linestyle="dashed", label="prediction"),
    ]
    marks = _marks(missed, invented, ignored)
    handles += [Line2D([], [], color=colour, linestyle=style, label=name) for _, colour, style, name in marks]
    entries = [str(handle.get_label()) for handle in handles]
    figure, panels = _lay_out(size, entries)
    for axes, (name, cut, horizontal, vertical) in zip(panels, _PLANES, strict=True):
        index = _informative_slice(target, predicted, cut, list(colours), image.shape)
        extent = (0, size[horizontal], 0, size[vertical])
        axes.imshow(image.take(index, axis=cut).T, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)
        for value, colour in colours.items():
            for volume, style in ((target, "solid"), (predicted, "dashed")):
                plane = volume[value].take(index, axis=cut).T
                _draw_contour(axes, plane, (spacing[horizontal], spacing[vertical]), colour, style)
        for mask, colour, style, _ in marks:
            plane = mask.take(index, axis=cut).T
            _draw_contour(axes, plane, (spacing[horizontal], spacing[vertical]), colour, style)
        if affine is not None:
            _mark_sides(axes, affine[:3, horizontal], affine[:3, vertical])
        axes.set(
            xlim=(0, size[horizontal]),
            ylim=(0, size[vertical]),
            title=f"{name}, {_AXES[cut]} index {index}",
            xlabel=f"{_AXES[horizontal]} (mm)",
            ylabel=f"{_AXES[vertical]} (mm)",
        )
    figure.legend(handles=handles, loc="lower center", ncols=_entries_per_row(figure, entries), frameon=False)
    if title:
        longest = int(figure.get_figwidth() / 0.105)  # letters
        short = title if len(title) <= longest else f"{title[: longest // 2]}…{title[-(longest // 2 - 1) :]}"
        figure.suptitle(short.replace("$", r"\$"), y=1 - 0.1 / figure.get_figheight(), va="top")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return out


def _marks(
    missed: _Volume | None, invented: _Volume | None, ignored: _Volume | None
) -> list[tuple[_Volume, str, _LineStyle, str]]:
    """What is drawn beside the classes: mask, colour, style and name of those that have a voxel."""
    known: list[tuple[_Volume | None, str, _LineStyle, str]] = [
        (missed, _MISSED, "solid", "missed lesion"),
        (invented, _INVENTED, "dashed", "false positive"),
        (ignored, _WITHOUT_ANNOTATION, "dotted", "not annotated"),
    ]
    return [(mask, colour, style, name) for mask, colour, style, name in known if mask is not None and mask.any()]


def sides_of(direction: Sequence[float] | _Volume) -> tuple[str, str]:
    """The letters where an axis begins and where it ends, of an oblique one several, the nearest first.

    Args:
        direction: (3,) a column of a NIfTI affine: towards right, anterior, superior.
    """
    towards = np.asarray(direction, dtype=float)
    towards = towards / np.linalg.norm(towards)
    nearest = np.argsort(-np.abs(towards), kind="stable")
    marked = [axis for rank, axis in enumerate(nearest) if rank == 0 or abs(towards[axis]) >= _OBLIQUE]
    end = "".join(_SIDES[axis][int(towards[axis] > 0)] for axis in marked)
    begin = "".join(_SIDES[axis][int(towards[axis] < 0)] for axis in marked)
    return begin, end


def _mark_sides(axes: Axes, horizontal: _Volume, vertical: _Volume) -> None:
    (left, right), (bottom, top) = sides_of(horizontal), sides_of(vertical)
    outline = [withStroke(linewidth=3, foreground="black")]
    for text, x, y, across, along in (
        (left, 0.02, 0.5, "left", "center"),
        (right, 0.98, 0.5, "right", "center"),
        (bottom, 0.5, 0.02, "center", "bottom"),
        (top, 0.5, 0.98, "center", "top"),
    ):
        axes.text(
            x,
            y,
            text,
            ha=across,
            va=along,
            transform=axes.transAxes,
            color="white",
            weight="bold",
            path_effects=outline,
        )


def _lay_out(size: Sequence[float], entries: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with the three planes side by side, all at one scale, above room for the legend. Lengths in inches.

    Placed by hand, because matplotlib's layout engines give planes of different shape different scales.
    """
    widths = [size[horizontal] for _, _, horizontal, _ in _PLANES]
    heights = [size[vertical] for _, _, _, vertical in _PLANES]
    scale = min(9.3 / sum(widths), 6.5 / max(heights))
    gap = 0.9  # left of each plane: its ticks and label
    figure = Figure(figsize=(max(scale * sum(widths) + 3 * gap, 7), 1))
    bottom = 0.235 * math.ceil(len(entries) / _entries_per_row(figure, entries)) + 0.75
    figure.set_figheight(bottom + scale * max(heights) + 0.8)
    whole = figure.get_size_inches()
    left = (whole[0] - scale * sum(widths) - 3 * gap) / 2 + 0.8 * gap
    panels = []
    for width, height in zip(widths, heights, strict=True):
        inches = np.array([left, bottom, scale * width, scale * height])
        panels.append(figure.add_axes((inches / np.tile(whole, 2)).tolist()))
        left += scale * width + gap
    return figure, panels


def _entries_per_row(figure: Figure, entries: Sequence[str]) -> int:
    """How many entries of a legend fit side by side: of text of 10 points, with 48 points for line and gaps."""
    widest = max(TextPath((0, 0), entry, size=10).get_extents().width for entry in entries)
    return max(1, int(figure.get_figwidth() * 72 / (widest + 48)))


def _class_colours(count: int) -> list[Any]:
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    return [colormaps["turbo"](fraction) for fraction in np.linspace(0.05, 0.95, count)]


def _informative_slice(
    target: Mapping[int, _Volume],
    predicted: Mapping[int, _Volume],
    cut: int,
    values: Sequence[int],
    shape: tuple[int, ...],
) -> int:
    """The slice with the largest sum over classes of the class's share that lies in it."""
    others = tuple(axis for axis in range(3) if axis != cut)
    for volume in (target, predicted):
        share = np.zeros(shape[cut])
        for value in values:
            area = volume[value].sum(axis=others)
            share += area / max(area.sum(), 1)
        if share.any():
            return int(share.argmax())
    return shape[cut] // 2


def _draw_contour(axes: Axes, mask: NDArray[np.bool_], spacing: tuple[float, float], colour: Any, style: str) -> None:
    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(float)  # closes the contour of what touches the border
    x, y = ((np.arange(n) - 0.5) * step for n, step in zip(padded.shape[::-1], spacing, strict=True))
    axes.contour(x, y, padded, levels=[0.5], colors=[colour], linestyles=style, linewidths=1.8)
