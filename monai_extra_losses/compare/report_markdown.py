"""The report of a comparison as Markdown: its sentences and its main table."""

import re
from collections.abc import Iterable

from monai_extra_losses.compare.analysis import Analysis
from monai_extra_losses.compare.comparison_table import Table, costs_table, differences_table
from monai_extra_losses.compare.report_method import EMPTY_CASES, STATISTICS, facts, trials_sentences
from monai_extra_losses.compare.report_text import counts, measure_of, noise_sentences, opening, ranks_sentence, title

_MARKUP = re.compile(r"[\\`*\[\]<>|#~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def report_markdown(analysis: Analysis) -> str:
    """The whole text."""
    results, finding = analysis.results, analysis.main
    parts = [f"# {_plain(title(analysis))}", *map(_plain, opening(analysis))]
    if finding is not None:
        caption = f"{measure_of(finding.scores)}, {counts(finding.scores)}:"
        parts += ["## The noise of the seeds", *map(_plain, noise_sentences(finding))]
        parts += ["## Numbers", _plain(caption), _table(differences_table(finding, ""))]
        parts += ["Cost, medians over the trainings:", _table(costs_table(analysis, ""))]
        if len(finding.scores.losses) > 1:
            parts.append(_plain(ranks_sentence(finding)))
    parts += ["## How this was measured", *map(_plain, trials_sentences(analysis)), _list((*EMPTY_CASES, *STATISTICS))]
    parts.append(_list(f"{name}: {words}" for name, words in facts(analysis).items()))
    if results.failed:
        failed = (f"{name}: {last}" for name, last in results.failed.items())
        parts += ["Trials that failed, with the last line of their log:", _list(failed)]
    if results.missing:
        parts += ["Trials that have not run:", _list(results.missing)]
    return "\n\n".join(parts) + "\n"


def _plain(words: str) -> str:
    """Text that Markdown shows as it is."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", " ".join(words.split()))


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {_plain(sentence)}" for sentence in sentences)


def _table(table: Table) -> str:
    lines = [table.heads, ("---", *("---:" for _ in table.heads[1:])), *table.rows]
    return "\n".join(f"| {' | '.join(cell if cell[:3] == '---' else _plain(cell) for cell in row)} |" for row in lines)
