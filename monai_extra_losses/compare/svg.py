"""Figures as SVG within a page: text and lines in the colours of the page, light or dark."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

WIDTH = 460
"""Of a figure, in its own units: at 400 pixels of a screen, text of 13 is still 10 pixels high."""

LINE = 18
"""Of text, with its gap."""

_LETTER = 7.8
"""Width of a letter of text of 13, on the safe side."""


@dataclass(frozen=True)
class Scale:
    """From values to places on an axis.

    Args:
        low, high: values at its ends.
        first, last: their places.
    """

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        """The place of a value; one beyond the ends is at the end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    def holds(self, value: float) -> bool:
        """Whether a value is a number between the ends."""
        return self.low <= value <= self.high

    @property
    def ticks(self) -> list[float]:
        """Round values between the ends."""
        places = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(tick) for tick in places if self.low - slack <= tick <= self.high + slack]

    @classmethod
    def around(cls, values: Sequence[float], first: float, last: float) -> "Scale":
        """A scale that holds all values that are numbers, and a margin."""
        known = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
        return cls(low - margin, high + margin, first, last)


def element(name: str, *children: str, **attributes: object) -> str:
    """An element of HTML or SVG; children are markup, values of attributes are escaped.

    The underscore at the end of `class_` and `for_` is dropped, those within are hyphens; None leaves an attribute out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def escaped(text: object) -> str:
    """Text as markup."""
    return html.escape(str(text), quote=True)


def text(x: float, y: float, content: str, **attributes: object) -> str:
    """A line of text whose baseline starts at a place."""
    return element("text", escaped(content), x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> str:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def band(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> str:
    """A rectangle between two corners in any order."""
    return element("rect", x=min(x1, x2), y=min(y1, y2), width=abs(x2 - x1), height=abs(y2 - y1), **attributes)


def dot(x: float, y: float, radius: float, *children: str, **attributes: object) -> str:
    """A circle."""
    return element("circle", *children, cx=x, cy=y, r=radius, **attributes)


def figure(height: float, *children: str, title: str) -> str:
    """A figure of `WIDTH`; the title is what a screen reader says."""
    return element(
        "svg",
        element("title", escaped(title)),
        *children,
        viewBox=f"0 0 {WIDTH} {_number(height)}",
        role="img",
        aria_label=title,
    )


def horizontal_axis(scale: Scale, strips: Sequence[tuple[float, float]], title: str) -> str:
    """Ticks of an axis below a figure and what it shows.

    Args:
        scale: of the axis.
        strips: upper and lower ends of the lines of the ticks; it stands below the last.
        title: what it shows.
    """
    parts, bottom = [], strips[-1][1]
    for tick, label in zip(scale.ticks, tick_labels(scale.ticks), strict=True):
        parts += [line(scale(tick), top, scale(tick), end, class_="grid") for top, end in strips]
        parts.append(text(scale(tick), bottom + 15, label, text_anchor="middle", class_="tick"))
    middle = (scale.first + scale.last) / 2
    return "".join(parts) + text(middle, bottom + 34, title, text_anchor="middle", class_="axis")


def vertical_axis(scale: Scale, left: float, right: float) -> str:
    """Ticks and lines of an axis to the left of a figure."""
    parts = []
    for tick, label in zip(scale.ticks, tick_labels(scale.ticks), strict=True):
        parts.append(line(left, scale(tick), right, scale(tick), class_="grid"))
        parts.append(text(left - 6, scale(tick) + 4, label, text_anchor="end", class_="tick"))
    return "".join(parts)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Numbers with as many decimals as tell them apart."""
    for decimals in range(7):
        labels = [minus(f"{tick:.{decimals}f}") for tick in ticks]
        exact = all(abs(round(tick, decimals) - tick) < 1e-9 + 1e-6 * abs(tick) for tick in ticks)
        if exact and len(set(labels)) == len(labels):
            return labels
    return [minus(f"{tick:.3g}") for tick in ticks]


def minus(number: str) -> str:
    """A number with a minus as wide as a plus, and none before zero."""
    is_zero = not number.strip("+-0.")
    return number.replace("-", "" if is_zero else "−").replace("+", "" if is_zero else "+")


def shortened(words: str, width: float) -> str:
    """Text that fits a width of a figure."""
    letters = max(4, int(width / _LETTER))
    if len(words) <= letters:
        return words
    head = (letters - 1) * 2 // 3
    return f"{words[:head]}…{words[len(words) - (letters - 1 - head) :]}"


def _attribute(value: object) -> str:
    return _number(value) if isinstance(value, float) else escaped(value)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
