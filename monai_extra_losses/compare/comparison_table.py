"""The cells of the tables of a report, for its page and its text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monai_extra_losses.compare.analysis import Analysis, Cost, LesionBin
from monai_extra_losses.compare.report_text import memory_words, on_a_test_set, percent, relative_cost, shown, shown_p
from monai_extra_losses.compare.statistics import Finding


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        caption: what it shows, and of how many cases and trainings.
        heads: of the columns.
        rows: the first cell of each is its head.
    """

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def differences_table(finding: Finding, caption: str) -> Table:
    """Mean, spread of the seeds and difference to the first of each loss."""
    unit = "trainings" if on_a_test_set(finding.scores) else "seeds"
    heads = (
        *("loss", "mean", "seeds, lowest to highest", "difference", "95 % interval", "Wilcoxon p", "Holm p"),
        *("probability of a false claim", "verdict", f"cases, {unit}"),
    )
    to_first = {one.loss: one for one in finding.differences}
    rows: list[tuple[str, ...]] = [(*_own_cells(finding, 0), "", "", "", "", "", "the first", "")]
    for place, name in enumerate(finding.scores.losses[1:], 1):
        one = to_first[name]
        interval = f"{shown(one.low, finding, sign=True)} to {shown(one.high, finding, sign=True)}"
        probabilities = (shown_p(p) for p in (one.p_wilcoxon, one.p_holm, one.false_claim))
        claim = (
            shown(one.mean, finding, sign=True),
            interval,
            *probabilities,
            "-" if math.isnan(one.mean) else one.verdict,
        )
        rows.append((*_own_cells(finding, place), *claim, f"{one.cases}, {one.replicates}"))
    return Table(caption, heads, tuple(rows))


def false_claims_table(finding: Finding, caption: str) -> Table:
    """The probability of a false claim for each pair of losses."""
    losses = finding.scores.losses
    rows = [
        (name, *("" if name == other else shown_p(finding.pairs[name, other].false_claim) for other in losses))
        for name in losses
    ]
    return Table(caption, ("loss", *losses), tuple(rows))


def costs_table(analysis: Analysis, caption: str) -> Table:
    """What each loss costs, also relative to the first."""
    heads = ("loss", "seconds per epoch", "relative", "peak memory", "relative", "trainings")
    first = next(iter(analysis.costs.values()))
    return Table(caption, heads, tuple(_cost_row(name, own, first) for name, own in analysis.costs.items()))


def lesions_table(analysis: Analysis, label: str, caption: str) -> Table:
    """Share found and Dice of the lesions of a class, by volume."""
    of_losses = analysis.lesions[label]
    bins: Sequence[LesionBin] = next(iter(of_losses.values()))
    numbers = [max(own[place].lesions for own in of_losses.values()) for place in range(len(bins))]
    heads = [f"{of_bin.name} (n\u00a0=\u00a0{number})" for of_bin, number in zip(bins, numbers, strict=True)]
    rows = [
        (name, *(f"{percent(one.found)}, Dice {one.dice:.3f}" if one.lesions else "-" for one in own))
        for name, own in of_losses.items()
    ]
    return Table(caption, ("loss", *heads), tuple(rows))


def _own_cells(finding: Finding, place: int) -> tuple[str, str, str]:
    replicates = finding.replicate_means[place]
    known = replicates[np.isfinite(replicates)].tolist()
    spread = f"{shown(min(known), finding)} to {shown(max(known), finding)}" if len(known) > 1 else "-"
    return finding.scores.losses[place], shown(float(finding.means[place]), finding), spread


def _cost_row(name: str, own: Cost, first: Cost) -> tuple[str, ...]:
    seconds = "-" if math.isnan(own.seconds) else f"{own.seconds:.3g}"
    return (
        name,
        seconds,
        relative_cost(own.seconds, first.seconds),
        memory_words(own.memory_mb),
        relative_cost(own.memory_mb, first.memory_mb),
        str(own.trainings),
    )
