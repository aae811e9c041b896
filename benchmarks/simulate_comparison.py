"""Whether a comparison of losses says what is true: on scores whose true differences are known.

    python benchmarks/simulate_comparison.py [--comparisons 300] [--csv FILE]

A score is 1 - Gamma, the same for all losses of a case, and so skewed as Dice is; plus what is peculiar to a loss in a
case, and noise of a training in a case, both larger in harder cases; plus the luck of a training, the same in all
cases, of standard deviation 0.004. No score is clipped, so that true differences are exact.

Scenarios:
    steady: equal losses, small differences between cases.
    failures: equal losses, large differences between cases; in 1 % a loss fails, in 1 % a training, which costs 0.3.
    one_fails: steady, but the first loss fails in 5 % of the cases; rows are about its pairs alone.
    one_unsteady: steady, but the luck of the first loss is three times that of the others; about its pairs alone.
    beside_unsteady: the same; about the pairs of the others.

Columns, shares over comparisons and pairs of losses:
    tie: pairs of equal losses of which neither is called better: ties, and what is unclear of an unsteady loss.
    all_tie: comparisons in which no loss is told from the first.
    all_top: comparisons in which all losses are tied with the best.
    coverage: intervals that hold the true difference; 97.5 % of those of 3 losses should, 99.4 % of those of 10, so
        that 95 % of the comparisons with one loss are right together.
    wilcoxon: p < 0.05 of a Wilcoxon test over the cases of one training each, of equal losses: false claims without
        our rule.
    power_band: equal losses of which one is made better by twice the band of the seeds, and called so; ...
    power_seed: ... better by twice the standard deviation of the luck.
    band: half width of the band of the seeds, in standard deviations of the luck.
"""

import argparse
import csv
import dataclasses
import datetime
import itertools
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy
from scipy import stats

from monai_extra_losses.compare.results import ComparedMetric, PairedScores
from monai_extra_losses.compare.statistics import Difference, Finding, compare_losses

LOSSES = (3, 10)
LUCK, COST = 0.004, 0.3
METRIC = ComparedMetric("dice", "Dice", higher_is_better=True, main=True)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """How scores differ.

    Args:
        spread: of a loss, and of a training, in a case; times how hard the case is.
        failures: share of cases in which a loss fails; in as many a training does.
        own_failures: share of cases in which the first loss fails.
        own_luck: of the first loss, times that of the others.
        about: pairs that are counted: all, or with or without the first loss.
        seeds: numbers of a row.
        cases: likewise.
    """

    spread: float = 0.05
    failures: float = 0.0
    own_failures: float = 0.0
    own_luck: float = 1.0
    about: Literal["all", "first", "others"] = "all"
    seeds: tuple[int, ...] = (2, 3, 5)
    cases: tuple[int, ...] = (12, 30, 60, 200)

    def scores(self, losses: int, seeds: int, cases: int, rng: np.random.Generator) -> PairedScores:
        hardness = rng.gamma(2.0, 0.06, cases)  # mean 0.12, standard deviation 0.085
        luck = rng.normal(0, LUCK, (losses, seeds, 1))
        luck[0] *= self.own_luck
        values = 1 - hardness + luck
        for trainings in (1, seeds):
            shape = losses, trainings, cases
            values = values + self.spread * hardness * rng.normal(0, 1, shape)
            values = values - COST * (rng.random(shape) < self.failures)
        values[0] -= COST * (rng.random(cases) < self.own_failures)
        names = [
            tuple(f"{word} {number}" for number in range(count))
            for word, count in zip(("loss", "seed", "case"), values.shape, strict=True)
        ]
        return PairedScores(METRIC, "mean", names[0], names[1], names[2], values)


SCENARIOS = {
    "steady": Scenario(),
    "failures": Scenario(spread=0.12, failures=0.01),
    "one_fails": Scenario(own_failures=0.05, about="first", seeds=(3,)),
    "one_unsteady": Scenario(own_luck=3.0, about="first", cases=(60,)),
    "beside_unsteady": Scenario(own_luck=3.0, about="others", cases=(60,)),
}


def simulate(name: str, losses: int, seeds: int, cases: int, comparisons: int, draws: int = 2000) -> dict[str, float]:
    """A row of the table."""
    scenario = SCENARIOS[name]
    band = float(stats.t.isf(0.025 / (losses - 1), losses * (seeds - 1))) * math.sqrt(2 / seeds)
    truth = -COST * scenario.own_failures
    seen: dict[str, list[bool]] = defaultdict(list)
    for number in range(comparisons):
        rng = np.random.default_rng([list(SCENARIOS).index(name), losses, seeds, cases, number])
        scores = scenario.scores(losses, seeds, cases, rng)
        finding = compare_losses(scores, draws=draws, seed=number)
        pairs = pairs_of(finding, scenario.about)
        seen["coverage"] += [one.low <= truth <= one.high for one in pairs]
        if not scenario.own_failures:
            seen["tie"] += [not is_told(one) for one in pairs]
            rows = np.array([[scores.losses.index(name) for name in (one.loss, one.other)] for one in pairs]).T
            of_one_seed = stats.wilcoxon(*scores.values[rows, 0], axis=-1).pvalue
            seen["wilcoxon"] += (of_one_seed < 0.05).tolist()
            seen["power_band"] += [is_found(one, 2 * band * LUCK) for one in pairs]
            seen["power_seed"] += [is_found(one, 2 * LUCK) for one in pairs]
        if scenario.about == "all":
            seen["all_tie"].append(not any(is_told(one) for one in finding.differences))
            seen["all_top"].append(len(finding.top) == losses)
    return {column: float(np.mean(values)) for column, values in seen.items()} | {"band": band}


def pairs_of(finding: Finding, about: str) -> list[Difference]:
    """Each pair once."""
    losses = finding.scores.losses
    names = itertools.combinations(losses[1:] if about == "others" else losses, 2)
    return [finding.pairs[pair] for pair in names if about != "first" or pair[0] == losses[0]]


def is_told(one: Difference) -> bool:
    """Whether a loss is called better or worse."""
    return one.verdict in ("better", "worse")


def is_found(one: Difference, gain: float) -> bool:
    """Whether the loss is called better once `gain` is added to its scores.

    This adds `gain` to the mean and to the bounds of its differences, and changes neither draws nor noise.
    """
    return one.mean + gain > one.noise and one.low + gain > 0


COLUMNS = ("tie", "all_tie", "all_top", "coverage", "wilcoxon", "power_band", "power_seed", "band")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=300, help="of a row")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()

    made = {"numpy": np.__version__, "scipy": scipy.__version__, "date": datetime.date.today().isoformat()}
    rows: list[dict[str, Any]] = []
    print(f"{'scenario':15} {'losses':>6} {'seeds':>6} {'cases':>6}", *(f"{column:>10}" for column in COLUMNS))
    table = [
        (name, *sizes) for name, own in SCENARIOS.items() for sizes in itertools.product(LOSSES, own.seeds, own.cases)
    ]
    for name, losses, seeds, cases in table:
        row = simulate(name, losses, seeds, cases, options.comparisons)
        shown = {column: f"{row[column]:.3f}" if column in row else "" for column in COLUMNS}
        print(f"{name:15} {losses:6} {seeds:6} {cases:6}", *(f"{shown[column]:>10}" for column in COLUMNS), flush=True)
        place = {"scenario": name, "losses": losses, "seeds": seeds, "cases": cases}
        rows.append({**place, **shown, "comparisons": options.comparisons, **made})
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
