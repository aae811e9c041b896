"""A picture of a few panels that knows the numbers it shows, so that a stale one can be told from a current one."""

import html
import io
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import ArrayLike, NDArray

STYLE = {
    "svg.hashsalt": "monai_extra_losses",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 10,
    "figure.titlesize": 11,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2.0,
    "image.composite_image": False,
}
WIDTH = 6.4  # inches
UP, DOWN = "#b35806", "#542788"  # of PuOr, which the colour-blind can tell apart
PUSH = LinearSegmentedColormap.from_list("push", [DOWN, "#998ec3", "#ffffff", "#f1a340", UP])
# Okabe and Ito's colours, each with a dash of its own; grey is what a loss is compared with.
LINES: list[dict[str, Any]] = [
    {"color": "#0072B2", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": (0, (5, 1.5))},
    {"color": "#009E73", "linestyle": (0, (4, 1.2, 1, 1.2))},
    {"color": "#CC79A7", "linestyle": (0, (1.5, 1))},
]
GREY = {"color": "#8a8a8a", "linestyle": "-", "linewidth": 1.6, "zorder": 1.5}
STEPS = 1000  # a number is kept as so many parts of the largest beside it
Numbers = Mapping[str, tuple[float, list[int]]]


class Sheet:
    """A picture.

    Args:
        title: one sentence that says what to see.
        alt: one sentence that describes the picture.
        panels: their number.
        height: of a panel, in inches.
        shares: relative widths of the panels.
    """

    def __init__(
        self, title: str, alt: str, panels: int = 2, height: float = 2.7, shares: Sequence[float] | None = None
    ) -> None:
        self.title, self.alt = title, alt
        self.numbers: dict[str, tuple[float, list[int]]] = {}
        self.handles: dict[str, Any] = {}
        with rc_context(STYLE):
            self.figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
            FigureCanvasSVG(self.figure)
            lines = _balanced(title)
            self.figure.suptitle("\n".join(lines))
            self.figure.get_layout_engine().set(w_pad=0.08, h_pad=0.05)  # type: ignore[union-attr]
            axes = self.figure.subplots(1, panels, squeeze=False, width_ratios=shares)
        self.axes: list[Axes] = list(axes[0])
        self._height = height + 0.2 * len(lines)

    def curve(self, panel: int, x: ArrayLike, y: ArrayLike, label: str, line: int | None = 0, **style: Any) -> None:
        """Draw a curve and keep its numbers.

        Args:
            panel: where.
            x, y: arrays of one length.
            label: in the legend, once for all panels.
            line: which of `LINES`; None: grey.
            **style: of the line.
        """
        x, y = np.asarray(x, float), np.asarray(y, float)
        chosen = {**(GREY if line is None else LINES[line]), **style}
        with rc_context(STYLE):
            (drawn,) = self.axes[panel].plot(x, y, **chosen)
        self.handles.setdefault(label, drawn)
        self.note(f"{panel} {label}", y[:: max(1, len(y) // 16)])

    def bars(self, panel: int, names: Sequence[str], series: Mapping[str, ArrayLike]) -> None:
        """Draw bars side by side and keep their heights.

        Args:
            panel: where.
            names: of the groups.
            series: label -> height in each group.
        """
        axes, width = self.axes[panel], 0.8 / len(series)
        with rc_context(STYLE):
            for number, (label, heights) in enumerate(series.items()):
                places = np.arange(len(names)) + (number - (len(series) - 1) / 2) * width
                color = GREY["color"] if number == 0 and len(series) > 1 else LINES[max(0, number - 1)]["color"]
                drawn = axes.bar(places, np.asarray(heights, float), width, color=color)
                self.handles.setdefault(label, drawn)
                self.note(f"{panel} {label}", heights)
            axes.set_xticks(range(len(names)), names)
            axes.axhline(0, color="black", linewidth=0.8)

    def image(
        self,
        panel: int,
        values: ArrayLike,
        spacing: Sequence[float] = (1.0, 1.0),
        up: str | None = "p is pushed up",
        down: str | None = "p is pushed down",
    ) -> None:
        """Draw a map, orange above 0 and purple below, and keep its numbers.

        Args:
            panel: where.
            values: (rows, columns).
            spacing: size of a voxel.
            up, down: what orange and purple are; None: there is none.
        """
        values = np.asarray(values, float)
        rows, columns = values.shape
        extent = (-0.5 * spacing[1], (columns - 0.5) * spacing[1], (rows - 0.5) * spacing[0], -0.5 * spacing[0])
        largest = float(np.abs(values).max()) or 1.0
        axes = self.axes[panel]
        with rc_context(STYLE):
            axes.imshow(
                values, cmap=PUSH, vmin=-largest, vmax=largest, extent=extent, interpolation="none", aspect="equal"
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            for side in ("top", "right"):
                axes.spines[side].set_visible(True)
        for label, color in ((up, "#f1a340"), (down, "#998ec3")):
            if label is not None:
                self.handles.setdefault(label, Patch(facecolor=color))
        self.note(f"{panel} map", values)

    def outline(self, panel: int, label: str, **style: Any) -> dict[str, Any]:
        """The style of a contour that the caller draws, with an entry in the legend."""
        self.handles.setdefault(label, Line2D([], [], **style))
        return style

    def note(self, name: str, values: ArrayLike) -> None:
        """Keep numbers that the picture shows."""
        flat: NDArray[np.float64] = np.asarray(values, float).ravel()
        if not np.isfinite(flat).all():
            raise ValueError(f"expected numbers in {self.title!r}, got {flat[~np.isfinite(flat)][0]} in {name!r}.")
        scale = float(f"{np.abs(flat).max():.3g}")
        parts = np.round(flat / (scale or 1) * STEPS).astype(int)
        self.numbers[name] = scale, parts.tolist()

    def labelled(self, panel: int, title: str, x: str, y: str) -> Axes:
        """Name a panel and its axes."""
        axes = self.axes[panel]
        with rc_context(STYLE):
            axes.set_title(title)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
        return axes

    def svg(self) -> str:
        """The picture; twice the same on one machine."""
        with rc_context(STYLE):
            for axes in self.axes:
                _name_decades(axes)
            entries = len(self.handles)
            columns = _columns([len(label) for label in self.handles])
            self.figure.set_size_inches(WIDTH, self._height + 0.22 * -(-entries // columns))
            for legend in self.figure.legends:
                legend.remove()
            self.figure.legend(
                self.handles.values(), self.handles.keys(), loc="outside lower center", ncols=columns, frameon=False
            )
            about = {"title": self.title, "numbers": self.numbers}
            metadata = {"Date": None, "Creator": None, "Description": json.dumps(about, separators=(",", ":"))}
            file = io.StringIO()
            self.figure.savefig(file, format="svg", metadata=metadata)
        about, end, drawing = file.getvalue().partition("</metadata>")
        text = about + end + re.sub(r"(\.\d{3})\d+", r"\1", drawing)  # a thousandth of a point is not seen
        return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _name_decades(axes: Axes) -> None:
    """Write the powers of ten of logarithmic axes as text, large enough to be read."""
    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log":
            axis.set_major_formatter(FuncFormatter(_decade))
            axis.set_minor_formatter(NullFormatter())


def _decade(value: float, place: int | None = None) -> str:
    """0.01 -> 10⁻²; 1, 10 and what is no power of ten as they are."""
    power = round(np.log10(value))
    plain = power in (0, 1) or not np.isclose(value, 10.0**power)
    return f"{value:g}" if plain else "10" + str(power).translate(_RAISED)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _balanced(title: str, width: int = 66) -> list[str]:
    """A title in as few lines as it needs, of about one length."""
    lines = textwrap.wrap(title, width)
    for narrower in range(width - 1, 20, -1):
        candidate = textwrap.wrap(title, narrower)
        if len(candidate) > len(lines):
            break
        lines = candidate
    return lines


def _columns(lengths: Sequence[int]) -> int:
    """How many entries of a legend stand side by side; it fills its columns one after the other."""
    for columns in range(len(lengths), 1, -1):
        widest = [max(column) for column in np.array_split(lengths, columns)]
        if sum(widest) + 7 * columns <= 72:
            return columns
    return 1


def shown_by(file: Path) -> tuple[str, Numbers]:
    """The title of a picture, and the numbers that it shows.

    Args:
        file: the SVG.
    """
    found = re.search(r"<dc:description>(.*?)</dc:description>", file.read_text(encoding="utf-8"), re.S)
    if found is None:
        return "", {}
    about = json.loads(html.unescape(found[1]))
    return about["title"], about["numbers"]


def differing(shown: Numbers, current: Numbers, tolerance: float = 0.005) -> list[str]:
    """Names of the series that differ by more than a share of their largest number.

    Args:
        shown: by a picture.
        current: of the loss.
        tolerance: that share.
    """
    names = [name for name in {**shown, **current} if name not in shown or name not in current]
    for name in set(shown) & set(current):
        (before, parts), (after, other) = shown[name], current[name]
        same = len(parts) == len(other) and abs(before - after) <= tolerance * abs(after)
        # Rounding to parts adds one of them.
        if not same or max((abs(a - b) for a, b in zip(parts, other, strict=True)), default=0) > tolerance * STEPS + 1:
            names.append(name)
    return sorted(names)
