"""Target and prediction drawn over the image, in three planes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

# Okabe and Ito's palette without black: told apart by colour-blind readers, and bright enough on grey.
_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
_WITHOUT_ANNOTATION = "#999999"
_PLANES = (("axial", 2, 0, 1), ("coronal", 1, 0, 2), ("sagittal", 0, 1, 2))  # name, axis cut, horizontal, vertical
_AXES = "xyz"

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
    ignored: _Volume | None = None,
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
        ignored: mask (X, Y, Z) of voxels without annotation, whose border is drawn dotted.

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

    handles = [Line2D([], [], color=colour, linewidth=3, label=labels[value]) for value, colour in colours.items()]
    handles += [
        Line2D([], [], color="black", linestyle="solid", label="target"),
        Line2D([], [], color="black", linestyle="dashed", label="prediction"),
    ]
    if ignored is not None and ignored.any():
        handles.append(Line2D([], [], color=_WITHOUT_ANNOTATION, linestyle="dotted", label="not annotated"))
    figure, panels = _lay_out(size, num_entries=len(handles))
    for axes, (name, cut, horizontal, vertical) in zip(panels, _PLANES, strict=True):
        index = _informative_slice(target, predicted, cut, list(colours), image.shape)
        extent = (0, size[horizontal], 0, size[vertical])
        axes.imshow(image.take(index, axis=cut).T, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)
        for value, colour in colours.items():
            for volume, style in ((target, "solid"), (predicted, "dashed")):
                plane = volume[value].take(index, axis=cut).T
                _draw_contour(axes, plane, (spacing[horizontal], spacing[vertical]), colour, style)
        if ignored is not None:
            plane = ignored.take(index, axis=cut).T
            _draw_contour(axes, plane, (spacing[horizontal], spacing[vertical]), _WITHOUT_ANNOTATION, "dotted")
        axes.set(
            xlim=(0, size[horizontal]),
            ylim=(0, size[vertical]),
            title=f"{name}, {_AXES[cut]} index {index}",
            xlabel=f"{_AXES[horizontal]} (mm)",
            ylabel=f"{_AXES[vertical]} (mm)",
        )
    figure.legend(handles=handles, loc="lower center", ncols=_entries_per_row(figure), frameon=False)
    if title:
        figure.suptitle(title, y=1 - 0.1 / figure.get_figheight(), va="top")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return out


def _lay_out(size: Sequence[float], num_entries: int) -> tuple[Figure, list[Axes]]:
    """A figure with the three planes side by side, all at one scale, above room for the legend. Lengths in inches.

    Placed by hand, because matplotlib's layout engines give planes of different shape different scales.
    """
    widths = [size[horizontal] for _, _, horizontal, _ in _PLANES]
    heights = [size[vertical] for _, _, _, vertical in _PLANES]
    scale = min(9.3 / sum(widths), 6.5 / max(heights))
    gap = 0.9  # left of each plane: its ticks and label
    figure = Figure(figsize=(max(scale * sum(widths) + 3 * gap, 7), 1))
    bottom = 0.25 * math.ceil(num_entries / _entries_per_row(figure)) + 0.75
    figure.set_figheight(bottom + scale * max(heights) + 0.8)
    whole = figure.get_size_inches()
    left = (whole[0] - scale * sum(widths) - 3 * gap) / 2 + 0.8 * gap
    panels = []
    for width, height in zip(widths, heights, strict=True):
        inches = np.array([left, bottom, scale * width, scale * height])
        panels.append(figure.add_axes((inches / np.tile(whole, 2)).tolist()))
        left += scale * width + gap
    return figure, panels


def _entries_per_row(figure: Figure) -> int:
    return int(figure.get_figwidth() / 1.5)


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
