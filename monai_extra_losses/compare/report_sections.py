"""The sections of the report of a comparison, as HTML."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from monai_extra_losses.compare import figures
from monai_extra_losses.compare.analysis import Analysis, LearningCurve
from monai_extra_losses.compare.comparison_table import (
    Table,
    costs_table,
    differences_table,
    false_claims_table,
    lesions_table,
)
from monai_extra_losses.compare.example_cases import ExampleCase, embedded, example_cases
from monai_extra_losses.compare.report_text import (
    by_mean,
    counts,
    listed,
    many,
    measure_of,
    noise_sentences,
    ranks_sentence,
    shown,
)
from monai_extra_losses.compare.results import MEAN, ComparedMetric
from monai_extra_losses.compare.statistics import Finding
from monai_extra_losses.compare.svg import element, escaped

_AFTER_A_NUMBER = re.compile(r"(\d) (?=%|cases?\b|seeds?\b|folds?\b|trainings?\b|s\b|MB\b|GB\b)")
_BEFORE_A_NUMBER = re.compile(r"([±×]) (?=\d)")
_BREAKS = re.compile(r"([_.:+=]+)(?=[A-Za-z])")

_MOST_CURVES = 10
_MOST_SPREADS = 4
"""Curves up to which the spread of each is drawn in the figure of all: more areas hide one another."""

_OPEN_CLASSES = 3
"""Classes up to which their figures are unfolded."""


def noise_section(analysis: Analysis, finding: Finding) -> str:
    """How much the same loss differs from itself."""
    others = [
        f"{measure_of(own.scores)} ± {shown(own.noise, own)}"
        for metric in analysis.results.metrics
        if (own := analysis.findings.get((metric.name, MEAN))) and own is not finding and math.isfinite(own.noise)
    ]
    band = "" if math.isnan(finding.noise) else f" Band: ± {shown(finding.noise, finding)} around the first loss."
    caption = f"A circle for each training, a line at their mean; {counts(finding.scores)}.{band}"
    return section(
        "The noise of the seeds",
        *map(paragraph, noise_sentences(finding)),
        paragraph(f"Of the other metrics: {'; '.join(others)}.") if others else "",
        drawing(figures.noise_plot(finding), measure_of(finding.scores), caption),
    )


def differences_section(analysis: Analysis) -> str:
    """Forest plots: the means of all metrics, and the classes of each, folded."""
    means = [own for metric in analysis.results.metrics if (own := analysis.findings.get((metric.name, MEAN)))]
    folded = [_forests_of_classes(analysis, metric) for metric in analysis.results.metrics]
    return section(
        f"Differences to {analysis.losses[0]}",
        paragraph(
            "A line is a 95 % interval over cases and seeds, for all comparisons together, the grey band the noise of "
            "the seeds. Filled: better or worse, beyond the band and with an interval without 0, or by the ceiling for "
            "unsteady losses (below). Hollow: a tie, or not clear."
        ),
        _grid(_forest(own) for own in means if own.differences),
        *folded,
    )


def table_section(analysis: Analysis, finding: Finding) -> str:
    """All numbers of the main metric; those of the others, of the classes and of all pairs folded."""
    folded = []
    for metric in analysis.results.metrics:
        labels = [label for label in (MEAN, *analysis.classes) if (metric.name, label) in analysis.findings]
        tables = [
            html_table(_differences(own))
            for label in labels
            if (own := analysis.findings[metric.name, label]) is not finding
        ]
        if tables:
            folded.append(details(f"{metric.title}: {many(len(tables), 'more table')}", *tables))
    pairs = ""
    if len(finding.scores.losses) > 1:
        caption = f"Probability that the true difference has the other sign, {_about(finding)}."
        pairs = details("Probability of a false claim, all pairs", html_table(false_claims_table(finding, caption)))
    costs = html_table(costs_table(analysis, "Cost: medians over the trainings; relative to the first loss."))
    return section("Numbers", html_table(_differences(finding)), costs, pairs, *folded)


def ranks_section(finding: Finding) -> str:
    """How stable the order of the losses is."""
    caption = f"The area of a circle is the share of the draws; {counts(finding.scores)}."
    plot = drawing(figures.rank_plot(finding), f"Ranks by {measure_of(finding.scores)}", caption)
    return section("Stability of the ranks", paragraph(ranks_sentence(finding)), plot)


def curves_section(analysis: Analysis, finding: Finding) -> str:
    """Learning curves of all losses in one figure, and of each against the first."""
    curves = analysis.curves
    if not curves:
        return ""
    places = {name: place for place, name in enumerate(analysis.losses)}
    first, *others = curves
    whole, shown_names = main_curves(analysis, finding)
    left_out = len(curves) - len(shown_names)
    more = f" {left_out} more losses have a figure of their own below." if left_out else ""
    area = " Areas: lowest to highest seed." if len(shown_names) <= _MOST_SPREADS else ""
    each = [
        drawing(
            figures.curves_plot(
                {first: curves[first], name: curves[name]}, places, spread=[first, name], title=f"{name} and {first}"
            ),
            name,
            f"with {first}; {many(curves[name].folds, 'fold')}, {many(curves[name].seeds, 'seed')}.",
        )
        for name in others
    ]
    return section(
        "Learning curves",
        drawing(
            whole,
            "All losses" if not left_out else f"{len(shown_names)} losses",
            f"{_curves_of(curves[first])}.{area}{more}",
        ),
        legend({name: places[name] for name in shown_names}, figures.line_sample),
        details("Each loss beside the first, with the spread of the seeds", _grid(each, small=True)) if each else "",
    )


def main_curves(analysis: Analysis, finding: Finding) -> tuple[str, list[str]]:
    """The figure of the learning curves of the best losses, beside the first, and their names."""
    curves = analysis.curves
    first, *others = curves
    leading = [first, *(name for name in by_mean(finding) if name in others)][:_MOST_CURVES]
    names = [name for name in analysis.losses if name in leading and name in curves]
    plot = figures.curves_plot(
        {name: curves[name] for name in names},
        {name: place for place, name in enumerate(analysis.losses)},
        spread=names if len(names) <= _MOST_SPREADS else [],
        title=f"{_curves_of(curves[first])}, of each loss over epochs",
    )
    return plot, names


def _curves_of(curve: LearningCurve) -> str:
    return f"Validation Dice, mean over {many(curve.folds, 'fold')} and {many(curve.seeds, 'seed')}"


def lesions_section(analysis: Analysis) -> str:
    """Results by lesion size, where lesions were measured."""
    if not analysis.lesions:
        return ""
    places = {name: place for place, name in enumerate(analysis.losses)}
    parts = []
    for label, of_losses in analysis.lesions.items():
        caption = f"{label}: share of the lesions that are found, and their mean Dice; n lesions, mean over the seeds."
        plot = figures.lesions_plot(of_losses, places, label)
        parts.append(drawing(plot, label, "Share of lesions found, with the lowest and the highest seed."))
        parts.append(html_table(lesions_table(analysis, label, caption)))
    return section("By lesion size", legend(places, figures.dot_sample), *parts)


def cases_section(analysis: Analysis, finding: Finding) -> str:
    """Best, median and worst cases of the best other loss against the first."""
    first = finding.scores.losses[0]
    second = next(name for name in by_mean(finding) if name != first)
    examples = example_cases(analysis.results, finding, first, second)
    if not examples:
        return ""
    without = [example.case for example in examples if not example.pictures]
    said = (
        f"Of {many(len(finding.scores.cases), 'case')}: where {second} gains most over {first}, gains as in the "
        f"median case, and loses most, by {measure_of(finding.scores)}, mean over the seeds."
    )
    return section(
        f"Cases: {first} and {second}",
        paragraph(said),
        *(_example(example, (first, second), finding) for example in examples),
        paragraph(f"No picture of both losses is there for {listed(without)}.") if without else "",
    )


def section(title: str, *parts: str) -> str:
    """A section with its heading."""
    return element("section", element("h2", escaped(title)), *parts)


def paragraph(words: str, **attributes: object) -> str:
    """A paragraph of text."""
    return element("p", prose(words), **attributes)


def prose(words: str) -> str:
    """Text as markup, with its numbers beside what they count."""
    return escaped(_BEFORE_A_NUMBER.sub("\\1\u00a0", _AFTER_A_NUMBER.sub("\\1\u00a0", words)))


def details(title: str, *parts: str, unfolded: bool = False) -> str:
    """What is folded until asked for."""
    return element("details", element("summary", escaped(title)), *parts, open="" if unfolded else None)


def drawing(svg: str, title: str, caption: str) -> str:
    """A figure with its caption."""
    words = element("figcaption", element("strong", escaped(title)), f" {prose(caption)}")
    return element("figure", words, svg)


def html_table(table: Table) -> str:
    """A table that scrolls in a box of its own."""
    heads = element("tr", *(element("th", _breakable(head), scope="col") for head in table.heads))
    rows = [
        element(
            "tr",
            element("th", _breakable(row[0]), scope="row"),
            *(element("td", escaped(cell), class_=cell if cell in ("better", "worse") else None) for cell in row[1:]),
        )
        for row in table.rows
    ]
    content = element("table", element("thead", heads), element("tbody", *rows), aria_label=table.caption)
    box = element("div", content, class_="box", tabindex=0, role="region", aria_label=table.caption)
    return paragraph(table.caption, class_="caption") + box


def legend(places: Mapping[str, int], sample_of: Callable[[int], str]) -> str:
    """Sample and name of each loss."""
    entries = []
    for name, place in places.items():
        sample = element("svg", sample_of(place), viewBox="0 0 30 10", aria_hidden="true")
        entries.append(element("li", sample, element("span", escaped(name)), class_=figures.colour_class(place)))
    return element("ul", *entries, class_="legend")


def _breakable(name: str) -> str:
    """A name as markup that may go on in the next line after its signs."""
    return _BREAKS.sub("\\1<wbr>", escaped(name))


def _forests_of_classes(analysis: Analysis, metric: ComparedMetric) -> str:
    found = [own for name in analysis.classes if (own := analysis.findings.get((metric.name, name)))]
    forests = [_forest(own) for own in found if own.differences]
    if not forests:
        return ""
    unfolded = metric is analysis.metric and len(forests) <= _OPEN_CLASSES
    return details(f"{metric.title} by class ({len(forests)})", _grid(forests), unfolded=unfolded)


def _forest(finding: Finding) -> str:
    return drawing(figures.forest_plot(finding), measure_of(finding.scores), f"{counts(finding.scores)}.")


def _differences(finding: Finding) -> Table:
    return differences_table(finding, f"{_about(finding)[0].upper()}{_about(finding)[1:]}.")


def _about(finding: Finding) -> str:
    better = "higher" if finding.scores.metric.higher_is_better else "lower"
    noise = "unknown" if math.isnan(finding.noise) else f"± {shown(finding.noise, finding)}"
    return f"{measure_of(finding.scores)} ({better} is better; noise of the seeds {noise}; {counts(finding.scores)})"


def _example(example: ExampleCase, losses: Sequence[str], finding: Finding) -> str:
    values = [f"{name} {shown(value, finding)}" for name, value in zip(losses, example.values, strict=True)]
    heading = element("h3", escaped(f"{example.rank.capitalize()} for {losses[1]}: {example.case}"))
    numbers = paragraph(", ".join(values), class_="soft")
    if not example.pictures:
        return element("div", heading, numbers, class_="case")
    shown_pictures = []
    for name, picture in zip(losses, example.pictures, strict=True):
        alt = escaped(f"Target and prediction of {name} in {example.case}, in three planes")
        image = f'<img src="{embedded(picture)}" alt="{alt}">'
        shown_pictures.append(element("figure", element("figcaption", escaped(f"{name}, {example.training}")), image))
    return element("div", heading, numbers, element("div", *shown_pictures, class_="pictures"), class_="case")


def _grid(drawings: Iterable[str], *, small: bool = False) -> str:
    return element("div", *drawings, class_="figures small" if small else "figures")
