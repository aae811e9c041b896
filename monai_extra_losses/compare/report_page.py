"""The report of a comparison as one HTML file that refers to nothing outside itself."""

from collections.abc import Iterable

from monai_extra_losses.compare.analysis import Analysis
from monai_extra_losses.compare.page_style import STYLE
from monai_extra_losses.compare.report_method import EMPTY_CASES, STATISTICS, facts, trials_sentences
from monai_extra_losses.compare.report_sections import (
    cases_section,
    curves_section,
    differences_section,
    lesions_section,
    noise_section,
    paragraph,
    prose,
    ranks_section,
    section,
    table_section,
)
from monai_extra_losses.compare.report_text import listed, opening, title
from monai_extra_losses.compare.svg import element, escaped


def report_page(analysis: Analysis) -> str:
    """The whole page."""
    heading = title(analysis)
    head = element(
        "head",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        element("title", escaped(heading)),
        f"<style>{STYLE}</style>",
    )
    answer = element("div", *map(paragraph, opening(analysis)), class_="answer")
    main = element("main", element("h1", escaped(heading)), answer, *_figures(analysis), _method(analysis))
    return f"<!DOCTYPE html>\n{element('html', head, element('body', main), lang='en')}\n"


def _figures(analysis: Analysis) -> list[str]:
    finding = analysis.main
    if finding is None:
        return []
    several = len(finding.scores.losses) > 1
    return [
        noise_section(analysis, finding),
        differences_section(analysis) if several else "",
        table_section(analysis, finding),
        ranks_section(finding) if several else "",
        curves_section(analysis, finding),
        lesions_section(analysis),
        cases_section(analysis, finding) if several else "",
    ]


def _method(analysis: Analysis) -> str:
    results = analysis.results
    known = [element("dt", escaped(name)) + element("dd", escaped(words)) for name, words in facts(analysis).items()]
    parts = [
        *map(paragraph, trials_sentences(analysis)),
        element("h3", "Empty cases"),
        _said(EMPTY_CASES),
        element("h3", "Statistics"),
        _said(STATISTICS),
        element("h3", "Data, versions, hardware"),
        element("dl", *known),
    ]
    if results.failed:
        failed = (f"{name}: {last}" for name, last in results.failed.items())
        parts += [element("h3", "Trials that failed, with the last line of their log"), _said(failed)]
    if results.missing:
        parts += [element("h3", "Trials that have not run"), paragraph(f"{listed(results.missing)}.")]
    return section("How this was measured", *parts)


def _said(sentences: Iterable[str]) -> str:
    return element("ul", *(element("li", prose(sentence)) for sentence in sentences), class_="said")
