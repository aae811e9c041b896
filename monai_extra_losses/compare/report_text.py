"""What a comparison found, in plain sentences."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from monai_extra_losses.compare.analysis import Analysis, Cost
from monai_extra_losses.compare.results import MEAN, PairedScores
from monai_extra_losses.compare.statistics import Difference, Finding
from monai_extra_losses.compare.svg import minus

_SAME_COST = 0.1
"""Share by which two costs may differ and count as the same."""


def conclusions(finding: Finding) -> list[str]:
    """Which losses are tied at the top, which are better or worse than the first, and by how much."""
    first, number = finding.scores.losses[0], len(finding.scores.losses)
    measure, counted = measure_of(finding.scores), counts(finding.scores)
    if number == 1:
        spread = "" if math.isnan(finding.noise) else f"; the noise of its seeds is ± {shown(finding.noise, finding)}"
        return [f"{first} alone was compared: {measure} {shown(finding.means[0], finding)} ({counted}{spread})."]
    if math.isnan(finding.noise):
        best, kind = by_mean(finding)[0], "highest" if finding.scores.metric.higher_is_better else "lowest"
        return [
            f"No difference is claimed: no loss has two trainings that differ in the seed alone ({counted}).",
            f"The {kind} {measure} is that of {best}, {shown(_mean_of(finding, best), finding)}; another seed may "
            "change it.",
        ]
    said = [_of_the_top(finding, f"{measure}; {counted}")]
    better, worse, tied = (_with_verdict(finding, verdict) for verdict in ("better", "worse", "tie"))
    apart = [one.loss for one in finding.differences if math.isnan(one.mean)]
    if not better:
        said.append(_none_beats_the_first(finding))
    said += [_against(one, finding) for one in (*better, *worse)]
    said += _of_the_tied([one.loss for one in tied], finding)
    said += [
        f"Whether {one.loss} is better or worse than {first} is not clear: {_trainings_of(one, finding)} "
        f"({counts_of(one, finding.scores)})."
        for one in _with_verdict(finding, "unclear")
    ]
    if apart:
        said.append(f"Not comparable to {first}, because no two cases are defined for both: {listed(apart)}.")
    return said


def noise_sentences(finding: Finding) -> list[str]:
    """What is known of the noise of the seeds."""
    measure, counted = measure_of(finding.scores), counts(finding.scores)
    if math.isnan(finding.noise):
        return [
            "No loss has two trainings that differ in the seed alone. How much another seed would change a result is "
            f"not known, so that no difference below is a claim ({counted})."
        ]
    fewest = min(int(known) for known in np.isfinite(finding.replicate_means).sum(axis=1) if known)
    again = f"in {fewest} other trainings" if on_a_test_set(finding.scores) else f"with {many(fewest, 'other seed')}"
    together = len(finding.scores.losses) - 1
    level = f"95 % for {together} comparisons together" if together > 1 else "95 %"
    return [
        f"Trained again {again}, the same loss has a {measure} that differs by up to ± {shown(finding.noise, finding)} "
        f"({level}; {counted}).",
        "A difference within this band is a tie, whatever its p-value says.",
    ]


def ranks_sentence(finding: Finding) -> str:
    """How often which loss comes first."""
    shares = dict(zip(finding.ranks.losses, finding.ranks.shares[:, 0].tolist(), strict=True))
    order = sorted((name for name in shares if not math.isnan(shares[name])), key=lambda name: -shares[name])
    if not order:
        return f"No case is defined for all losses, so that there are no ranks by {measure_of(finding.scores)}."
    leading = [name for place, name in enumerate(order) if place == 0 or shares[name] >= 0.05]
    said = listed(f"{name} in {percent(shares[name])}" for name in leading)
    return f"First by {measure_of(finding.scores)} when cases and seeds are drawn anew: {said} of the draws."


def cost_sentences(costs: Mapping[str, Cost]) -> list[str]:
    """What the losses cost, relative to the first."""
    if not costs:
        return []
    first, *others = costs
    of_first = costs[first]
    said = [
        f"{first} takes {_seconds(of_first.seconds)} per epoch and {memory_words(of_first.memory_mb)} at its peak "
        f"({many(of_first.trainings, 'training')})."
    ]
    if others:
        seconds, memory = ({name: getattr(costs[name], of) for name in others} for of in ("seconds", "memory_mb"))
        said.append(_relative_costs("Time per epoch, relative to that", seconds, of_first.seconds))
        said.append(_relative_costs("Peak memory, relative to that", memory, of_first.memory_mb))
    return said


def title(analysis: Analysis) -> str:
    """Of the report."""
    plan = analysis.results.plan
    data = analysis.results.facts.get("name of the data") or Path(plan.dataset_dir).name
    return f"Comparison of {many(len(plan.losses), 'loss', 'losses')} on {data}"


def opening(analysis: Analysis) -> list[str]:
    """The sentences with which a report opens: what was found, what it cost, what is not there."""
    if analysis.main is None:
        return ["No trial has a result yet; nothing can be said.", *what_lacks(analysis)]
    return [
        *conclusions(analysis.main),
        *analysis.main.warnings,
        *cost_sentences(analysis.costs),
        *what_lacks(analysis),
    ]


def what_lacks(analysis: Analysis) -> list[str]:
    """Trials and losses without a result."""
    results = analysis.results
    total, said = len(results.plan.trials), []
    if results.failed:
        said.append(f"{len(results.failed)} of {many(total, 'trial')} failed; see the end.")
    if results.missing:
        said.append(f"{len(results.missing)} of {many(total, 'trial')} not run yet; what is said may change.")
    without = [loss.text for loss in results.plan.losses if loss.text not in analysis.losses]
    if without:
        said.append(f"Without any result, and left out: {listed(without)}.")
    return said


def by_mean(finding: Finding) -> list[str]:
    """The losses, the best mean first, those without one last."""
    sign = 1 if finding.scores.metric.higher_is_better else -1
    order = np.argsort(-sign * finding.means, kind="stable")  # NaN comes last
    return [finding.scores.losses[row] for row in order]


def measure_of(scores: PairedScores) -> str:
    """A metric and its class in words."""
    return f"mean {scores.metric.title}" if scores.label == MEAN else f"{scores.metric.title} of {scores.label}"


def counts(scores: PairedScores) -> str:
    """How many cases and trainings the values are of: `60 cases, 3 seeds`."""
    defined = np.isfinite(scores.values)
    return _counted(scores, int(defined.any(axis=(0, 1)).sum()), int(defined.any(axis=(0, 2)).sum()))


def counts_of(one: Difference, scores: PairedScores) -> str:
    """How many cases and trainings a difference is of."""
    return _counted(scores, one.cases, one.replicates)


def shown(value: float, finding: Finding, sign: bool = False) -> str:
    """A number with the decimals of its metric; - where it is undefined."""
    if not math.isfinite(value):
        return "-"
    return minus(f"{value:{'+' if sign else ''}.{_decimals(finding)}f}")


def shown_p(value: float) -> str:
    """A probability; - where it is undefined."""
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def many(number: int, what: str, plural: str | None = None) -> str:
    """A number of things: `1 case`, `2 cases`."""
    return f"{number} {what if number == 1 else plural or f'{what}s'}"


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.0f} %"


def listed(names: Iterable[str]) -> str:
    """Names with commas and an and."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def relative_cost(value: float, first: float) -> str:
    """A cost relative to that of the first loss, as × 1.2."""
    return f"× {value / first:.2f}" if first > 0 and not math.isnan(value) else "-"


def memory_words(megabytes: float) -> str:
    """Memory in MB or GB."""
    if math.isnan(megabytes):
        return "unknown memory"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1000:.2f} GB"


def on_a_test_set(scores: PairedScores) -> bool:
    """Whether the trainings of all folds measure the same cases, so that each is a replicate."""
    return any("fold" in name for name in scores.replicates)


def _decimals(finding: Finding) -> int:
    """Three for shares, fewer for large numbers, and as many as the noise has before its first digit."""
    largest = max((abs(mean) for mean in finding.means if math.isfinite(mean)), default=0.0)
    usual = 3 if largest <= 2 else 2 if largest < 100 else 1
    if not finding.noise > 0:
        return usual
    return max(usual, min(6, math.ceil(-math.log10(finding.noise))))


def _counted(scores: PairedScores, cases: int, replicates: int) -> str:
    return f"{many(cases, 'case')}, {many(replicates, 'training' if on_a_test_set(scores) else 'seed')}"


def _of_the_top(finding: Finding, about: str) -> str:
    top = finding.top
    if not top:
        return f"No case is defined for all losses, so that none is called the best ({about})."
    if len(top) == len(finding.scores.losses):
        return f"{'Both' if len(top) == 2 else f'All {len(top)}'} losses are tied at the top ({about})."
    if len(top) == 1:
        return f"{top[0]} is alone at the top ({about})."
    return f"Tied at the top: {listed(top)} ({about})."


def _none_beats_the_first(finding: Finding) -> str:
    first, band = finding.scores.losses[0], f"the noise of the seeds (± {shown(finding.noise, finding)})"
    sign = 1 if finding.scores.metric.higher_is_better else -1
    if any(sign * one.mean > one.noise for one in finding.differences):
        return f"None beats {first}: no gain is both beyond {band} and has a 95 % interval without 0."
    return f"None beats {first} beyond {band}."


def _against(one: Difference, finding: Finding) -> str:
    if one.by_ceiling:
        return (
            f"{one.loss} is {one.verdict} than {one.other}: {_trainings_of(one, finding)}, too far apart to say by how "
            f"much ({counts_of(one, finding.scores)})."
        )
    by = _amount(one, finding, before="95 % interval ", after=f"; {counts_of(one, finding.scores)}")
    return f"{one.loss} is {one.verdict} than {one.other} by {by}."


def _trainings_of(one: Difference, finding: Finding) -> str:
    """The lowest and the highest training of both losses, in words."""
    ends = []
    for name in (one.loss, one.other):
        means = finding.replicate_means[finding.scores.losses.index(name)]
        ends.append(" to ".join(shown(float(end), finding) for end in (np.nanmin(means), np.nanmax(means))))
    return f"its trainings gave {ends[0]}, those of {one.other} {ends[1]}"


def _of_the_tied(tied: Sequence[str], finding: Finding) -> list[str]:
    """Losses tied with the first: beside it at the top nothing is left to say, and some may be behind the best."""
    first, top, said = finding.scores.losses[0], finding.top, []
    beside = [name for name in tied if name in top or not top]
    if beside and first not in top:
        verb = "is" if len(beside) == 1 else "are"
        said.append(f"{listed(beside)} {verb} tied with {first}.")
    behind = [finding.pairs[name, top[0]] for name in tied if name not in beside]
    if behind:
        amounts = listed(f"{one.loss} by {_amount(one, finding)}" for one in behind)
        counted = counts_of(min(behind, key=lambda one: one.cases), finding.scores)
        said.append(f"Tied with {first}, but worse than {top[0]}: {amounts}; 95 % intervals, {counted}.")
    return said


def _amount(one: Difference, finding: Finding, before: str = "", after: str = "") -> str:
    """A difference and its interval without a sign."""
    low, high = sorted(abs(end) for end in (one.low, one.high))
    return f"{shown(abs(one.mean), finding)} ({before}{shown(low, finding)} to {shown(high, finding)}{after})"


def _with_verdict(finding: Finding, verdict: str) -> list[Difference]:
    """Differences to the first of this verdict, the largest first."""
    found = [one for one in finding.differences if one.verdict == verdict and not math.isnan(one.mean)]
    return sorted(found, key=lambda one: -abs(one.mean))


def _mean_of(finding: Finding, name: str) -> float:
    return float(finding.means[finding.scores.losses.index(name)])


def _relative_costs(what: str, costs: Mapping[str, float], first: float) -> str:
    """The costs that differ from that of the first, the lowest first, and whether others do not."""
    known = {name: cost / first for name, cost in costs.items() if math.isfinite(cost) and first > 0}
    apart = {name: ratio for name, ratio in known.items() if abs(ratio - 1) > _SAME_COST}
    if not apart and len(known) == len(costs):
        return f"{what}: the same for all, within {percent(_SAME_COST)}."
    said = [f"{name} × {ratio:.2f}" for name, ratio in sorted(apart.items(), key=lambda item: item[1])]
    said += [f"{name} unknown" for name in costs if name not in known]
    if len(apart) < len(known):
        said.append(f"the others the same, within {percent(_SAME_COST)}")
    return f"{what}: {', '.join(said)}."


def _seconds(seconds: float) -> str:
    return "an unknown time" if math.isnan(seconds) else f"{seconds:.3g} s"
