"""The figures of a comparison as files, for a manuscript or slides."""

import re
from collections.abc import Callable, Iterator, Mapping

from monai_extra_losses.compare import figures
from monai_extra_losses.compare.analysis import Analysis
from monai_extra_losses.compare.page_style import FIGURES, LIGHT
from monai_extra_losses.compare.report_sections import main_curves
from monai_extra_losses.compare.results import MEAN
from monai_extra_losses.compare.svg import LINE, WIDTH, band, element, shortened, text

_FONT = 'svg { font-family: "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }'
_EDGE = 10
"""White around a figure."""


def figure_files(analysis: Analysis) -> dict[str, str]:
    """The figures of the means: name of the file -> SVG, which refers to nothing and is drawn on white."""
    finding = analysis.main
    if finding is None:
        return {}
    places = {name: place for place, name in enumerate(analysis.losses)}
    drawn = {"noise": _alone(figures.noise_plot(finding))}
    if len(finding.scores.losses) > 1:
        drawn["ranks"] = _alone(figures.rank_plot(finding))
        for metric in analysis.results.metrics:
            own = analysis.findings.get((metric.name, MEAN))
            if own is not None and own.differences:
                drawn[f"difference_{metric.name}"] = _alone(figures.forest_plot(own))
    if analysis.curves:
        curves, shown = main_curves(analysis, finding)
        drawn["curves"] = _alone(curves, {name: places[name] for name in shown}, figures.line_sample)
    for number, (label, of_losses) in enumerate(analysis.lesions.items(), 1):
        plot = figures.lesions_plot(of_losses, places, label)
        drawn[f"lesions_{number}"] = _alone(plot, {name: places[name] for name in of_losses}, figures.dot_sample)
    return {f"{name}.svg": svg for name, svg in drawn.items()}


def _alone(svg: str, places: Mapping[str, int] = {}, sample_of: Callable[[int], str] | None = None) -> str:
    """A figure of the page as a file of its own, with a legend below it where samples of the losses are given."""
    found = re.match(r'<svg viewBox="0 0 \d+ ([\d.]+)"', svg)
    assert found, svg[:80]
    height = float(found[1])
    inner = svg.replace("<svg ", f'<svg width="{WIDTH}" height="{found[1]}" ', 1)
    legend = list(_legend(places, sample_of, height)) if sample_of is not None else []
    whole = height + LINE * ((len(legend) + 1) // 2)
    width = WIDTH + 2 * _EDGE
    page = band(-_EDGE, -_EDGE, WIDTH + _EDGE, whole + _EDGE, fill=LIGHT["page"])
    return (
        element(
            "svg",
            element("style", _in_colours(f"{_FONT}\n{FIGURES}")),
            page,
            inner,
            *legend,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"{-_EDGE} {-_EDGE} {width} {whole + 2 * _EDGE:g}",
            width=width,
            height=float(whole + 2 * _EDGE),
        )
        + "\n"
    )


def _legend(places: Mapping[str, int], sample_of: Callable[[int], str], top: float) -> Iterator[str]:
    """Sample and name of each loss, two in a line."""
    for number, (name, place) in enumerate(places.items()):
        x, y = WIDTH / 2 * (number % 2), top + LINE * (number // 2)
        sample = element("g", sample_of(place), class_=figures.colour_class(place), transform=f"translate({x:g} {y:g})")
        yield sample + text(x + 38, y + 9, shortened(name, WIDTH / 2 - 46), class_="label")


def _in_colours(style: str) -> str:
    """Rules with the values of their colours, which not every program that draws SVG looks up."""
    return re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], style)
