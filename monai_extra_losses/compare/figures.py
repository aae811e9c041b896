"""Figures of the report of a comparison."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from monai_extra_losses.compare.analysis import LearningCurve, LesionBin
from monai_extra_losses.compare.report_text import measure_of, percent, shown
from monai_extra_losses.compare.statistics import Difference, Finding
from monai_extra_losses.compare.svg import (
    LINE,
    WIDTH,
    Scale,
    band,
    dot,
    element,
    escaped,
    figure,
    horizontal_axis,
    line,
    shortened,
    text,
    vertical_axis,
)

COLOURS = 7
"""Of the page: its text, for the first loss, and six of Okabe and Ito's, which colour-blind readers tell apart."""

_MARGIN = 8.0
_ROW = 38.0
"""Height of a loss: a line of text, and below it what is drawn."""

_BEYOND = "; arrows: beyond the axis"

_BELOW = 40.0
"""Height of the axis below a figure."""

_LEFT = 48.0
"""Width of the axis to the left of a figure."""


def noise_plot(finding: Finding) -> str:
    """The mean of each training of a loss, and the band of the noise around the mean of the first."""
    losses = finding.scores.losses
    first = float(finding.means[0])
    low, high = first - finding.noise, first + finding.noise
    near = _near(finding.replicate_means.tolist(), first)
    scale = Scale.around([*near, low, high], _MARGIN, WIDTH - _MARGIN)
    strips = _strips(len(losses))
    cut = np.isfinite(finding.replicate_means).sum() > len(near)
    parts = [
        _noise_band(scale, low, high, 0, len(losses)),
        horizontal_axis(scale, strips, f"{measure_of(finding.scores)}{_BEYOND * bool(cut)}"),
    ]
    if math.isfinite(first):
        parts += [line(scale(first), top, scale(first), end, class_="zero") for top, end in strips]
    for row, (name, mean, replicates) in enumerate(zip(losses, finding.means, finding.replicate_means, strict=True)):
        middle = _ROW * row + 28
        known = [float(value) for value in replicates if math.isfinite(value)]
        within = [value for value in known if scale.holds(value)]
        spread = f" ({shown(min(known), finding)} to {shown(max(known), finding)})" if len(within) < len(known) else ""
        parts.append(_row_text(row, name, f"{shown(float(mean), finding)}{spread}"))
        parts += [dot(scale(value), middle, 4.5, class_="seed") for value in within]
        parts += _arrows(scale, known, middle, class_="arrow")
        if math.isfinite(mean) and scale.holds(float(mean)):
            parts.append(line(scale(float(mean)), middle - 8, scale(float(mean)), middle + 8, class_="mean"))
    of = measure_of(finding.scores)
    return figure(
        strips[-1][1] + _BELOW, *parts, title=f"{of} of each loss: a circle for each training, a line at their mean"
    )


def forest_plot(finding: Finding) -> str:
    """Differences to the first loss with their intervals, and the band of the noise."""
    known = [one for one in finding.differences if math.isfinite(one.mean)]
    rows = [(one.low, one.high, -one.noise, one.noise) for one in known]
    near = _near(rows, 0.0)
    scale = Scale.around([*near, 0.0], _MARGIN, WIDTH - _MARGIN)
    strips = _strips(len(finding.differences))
    side = "right" if finding.scores.metric.higher_is_better else "left"
    title = f"difference to {shortened(finding.scores.losses[0], 150)} ({side} is better)"
    title += _BEYOND * (sum(math.isfinite(value) for row in rows for value in row) > len(near))
    parts = [
        *(_noise_band(scale, -one.noise, one.noise, row, 1) for row, one in enumerate(finding.differences)),
        horizontal_axis(scale, strips, title),
        *(line(scale(0), top, scale(0), end, class_="zero") for top, end in strips),
    ]
    parts += [_forest_row(row, one, scale, finding) for row, one in enumerate(finding.differences)]
    of = f"Difference of each loss to {finding.scores.losses[0]} in {measure_of(finding.scores)}"
    return figure(strips[-1][1] + _BELOW, *parts, title=f"{of}, with 95 % interval and the band of the seeds")


def _forest_row(row: int, one: Difference, scale: Scale, finding: Finding) -> str:
    if not math.isfinite(one.mean):
        return _row_text(row, one.loss, "no shared cases")
    middle = _ROW * row + 28
    interval = f"{shown(one.low, finding, sign=True)} to {shown(one.high, finding, sign=True)}"
    return element(
        "g",
        _row_text(row, one.loss, f"{shown(one.mean, finding, sign=True)} ({interval})"),
        line(scale(one.low), middle, scale(one.high), middle, class_="interval"),
        dot(scale(one.mean), middle, 5.0) if scale.holds(one.mean) else "",
        *_arrows(scale, (one.low, one.mean, one.high), middle, class_="filled"),
        class_=one.verdict,
    )


def rank_plot(finding: Finding) -> str:
    """The share of draws in which each loss has each rank, as the area of a circle."""
    ranks = finding.ranks
    count = len(ranks.losses)
    order = sorted(range(count), key=lambda row: (math.isnan(ranks.mean_rank[row]), ranks.mean_rank[row]))
    left = 160.0
    step = (WIDTH - left - _MARGIN) / count
    largest = min(0.47 * step, 15.0)
    row_height = 2 * largest + 4 if largest > 9 else 22.0
    parts = []
    for place, row in enumerate(order):
        middle = row_height * (place + 0.5)
        name = ranks.losses[row]
        parts.append(text(0.0, middle + 4, shortened(name, left - 8), class_="label"))
        parts.append(line(left, middle, WIDTH - _MARGIN, middle, class_="grid"))
        for rank, share in enumerate(ranks.shares[row]):
            if share > 0:
                said = element("title", percent(float(share)))
                parts.append(dot(left + step * (rank + 0.5), middle, largest * math.sqrt(share), said, class_="share"))
    bottom = row_height * count
    for rank in range(count):
        centre = left + step * (rank + 0.5)
        parts.append(text(centre, bottom + 15, str(rank + 1), text_anchor="middle", class_="tick"))
    middle = (left + WIDTH - _MARGIN) / 2
    parts.append(text(middle, bottom + 34, "rank (1 is the best)", text_anchor="middle", class_="axis"))
    return figure(bottom + _BELOW, *parts, title=f"Rank of each loss by {measure_of(finding.scores)} under resampling")


def curves_plot(
    curves: Mapping[str, LearningCurve], places: Mapping[str, int], *, spread: Sequence[str], title: str
) -> str:
    """Validation Dice over the epochs.

    Args:
        curves: loss -> curve.
        places: loss -> its place among all losses, which gives the colour.
        spread: losses whose spread of the seeds is drawn.
        title: for screen readers.
    """
    height = 230.0
    every = list(curves.values())
    across = Scale.around([epoch for curve in every for epoch in curve.epochs], _LEFT, WIDTH - 2 * _MARGIN)
    upward = Scale.around([value for c in every for value in (*c.lows, *c.highs)], height, 6.0)
    parts = [vertical_axis(upward, _LEFT, WIDTH - _MARGIN), horizontal_axis(across, [(6.0, height)], "epoch")]
    for name in spread:
        curve = curves[name]
        there = [(across(e), upward(v)) for e, v in zip(curve.epochs, curve.highs, strict=True)]
        back = [(across(e), upward(v)) for e, v in zip(curve.epochs, curve.lows, strict=True)]
        area = element("polygon", points=_points([*there, *back[::-1]]), class_="spread")
        parts.append(element("g", area, class_=colour_class(places[name])))
    for name, curve in reversed(list(curves.items())):  # the first on top
        places_of = [(across(e), upward(v)) for e, v in zip(curve.epochs, curve.means, strict=True)]
        if len(places_of) == 1:  # a line of one point would not be seen
            drawn = dot(*places_of[0], 4.5, class_=_dot_class(places[name]))
        else:
            drawn = element(
                "polyline", points=_points(places_of), class_="curve", stroke_dasharray=dashes(places[name])
            )
        parts.append(element("g", drawn, element("title", escaped(name)), class_=colour_class(places[name])))
    return figure(height + _BELOW, *parts, title=title)


def lesions_plot(bins: Mapping[str, Sequence[LesionBin]], places: Mapping[str, int], label: str) -> str:
    """The share of lesions that each loss finds, by volume."""
    height = 200.0
    upward = Scale(0.0, 1.0, height, 10.0)
    names = next(iter(bins.values()))
    step = (WIDTH - _MARGIN - _LEFT) / len(names)
    parts = [vertical_axis(upward, _LEFT, WIDTH - _MARGIN)]
    for column, of_bin in enumerate(names):
        centre = _LEFT + step * (column + 0.5)
        parts.append(text(centre, height + 16, of_bin.name, text_anchor="middle", class_="tick"))
        number = max(own[column].lesions for own in bins.values())
        parts.append(text(centre, height + 32, f"n = {number}", text_anchor="middle", class_="tick"))
        offsets = np.linspace(-0.36, 0.36, len(bins)) if len(bins) > 1 else [0.0]
        for (name, own), offset in zip(bins.items(), offsets, strict=True):
            one, x = own[column], centre + step * float(offset)
            if one.lesions and math.isfinite(one.found):
                bar = line(x, upward(one.found_low), x, upward(one.found_high), class_="interval")
                mark = dot(x, upward(one.found), 4.5, element("title", escaped(name)), class_=_dot_class(places[name]))
                parts.append(element("g", bar, mark, class_=colour_class(places[name])))
    return figure(height + _BELOW, *parts, title=f"Share of the lesions of {label} that each loss finds, by volume")


def line_sample(place: int) -> str:
    """For a legend of 30 x 10: the line of a loss."""
    return line(0, 5, 30, 5, class_="curve", stroke_dasharray=dashes(place))


def dot_sample(place: int) -> str:
    """For a legend of 30 x 10: the dot of a loss."""
    return dot(15, 5, 4.0, class_=_dot_class(place))


def colour_class(place: int) -> str:
    """CSS class of the loss at a place."""
    return f"c{place % COLOURS}"


def dashes(place: int) -> str | None:
    """Dashes of its line: those that have a colour of another loss are told apart by them."""
    return (None, "7 4", "2 4")[place // COLOURS % 3]


def _dot_class(place: int) -> str:
    """Filled, and hollow for those that have a colour of another loss."""
    return "hollow" if place // COLOURS % 2 else "filled"


def _near(rows: Sequence[Sequence[float]], middle: float) -> list[float]:
    """The values that an axis is made for: all, but those of rows that reach four times as far as the half and more.

    Args:
        rows: values of each loss.
        middle: from where they reach.
    """
    known = [[value for value in row if math.isfinite(value)] for row in rows]
    reaches = [max((abs(value - middle) for value in row), default=0.0) for row in known]
    ordered = sorted(reaches)
    upper = ordered[(len(ordered) - 1) // 2 :]
    limit = next((near for near, far in pairwise(upper) if 0 < 4 * near < far), math.inf)
    return [value for row, reach in zip(known, reaches, strict=True) if reach <= limit for value in row]


def _arrows(scale: Scale, values: Sequence[float], y: float, **attributes: object) -> list[str]:
    """At each end of a scale an arrow, where a value lies beyond it."""
    outward = {
        end: way
        for value in values
        if not scale.holds(value)
        for end, way in [(scale.first, -1) if value < scale.low else (scale.last, 1)]
    }
    return [
        element("polygon", points=_points([(x + 6 * way, y), (x, y - 6), (x, y + 6)]), **attributes)
        for x, way in outward.items()
    ]


def _strips(rows: int) -> list[tuple[float, float]]:
    """Upper and lower end of what is drawn in each row, below its text."""
    return [(_ROW * row + LINE + 1, _ROW * (row + 1)) for row in range(rows)]


def _noise_band(scale: Scale, low: float, high: float, row: int, rows: int) -> str:
    """The band of so many rows from one on; nothing where the noise is not known."""
    if not math.isfinite(high - low):
        return ""
    return band(scale(low), _ROW * row, scale(high), _ROW * (row + rows), class_="noise")


def _row_text(row: int, name: str, value: str) -> str:
    """Name and value of a loss in a line above what is drawn of it."""
    y = _ROW * row + LINE - 3
    room = WIDTH - 2 * _MARGIN - 7.2 * len(value) - 12
    return text(0.0, y, shortened(name, room), class_="label") + text(
        float(WIDTH), y, value, text_anchor="end", class_="value"
    )


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
