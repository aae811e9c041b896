"""What a test on one seed would have claimed, from the results.csv of a comparison.

    python benchmarks/seed_claims.py results.csv [--metric dice]

Two tables of p-values of Wilcoxon's signed-rank test over the cases, of the mean of a case's classes: of each loss
against itself with another seed, where each p below 0.05 is a false claim; and of each loss against the first, seed by
seed.
"""

import argparse
import csv
import itertools
import math
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

Scores = dict[str, dict[str, dict[str, float]]]
"""Loss -> seed -> case -> value."""


def scores_of(table: Path, metric: str) -> Scores:
    """The mean of a metric over the classes that are defined in a case."""
    values: dict[tuple[str, str, str], list[float]] = {}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            value = float(row[metric]) if row[metric] else math.nan
            values.setdefault((row["loss"], row["seed"], row["case"]), []).append(value)
    scores: Scores = {}
    for (loss, seed, case), of_classes in values.items():
        known = [value for value in of_classes if not math.isnan(value)]
        if known:
            scores.setdefault(loss, {}).setdefault(seed, {})[case] = sum(known) / len(known)
    return scores


def p_value(one: dict[str, float], other: dict[str, float]) -> float:
    """Of Wilcoxon's test on the cases of both; 1 where nothing differs."""
    cases = sorted(one.keys() & other.keys())
    differences = np.array([one[case] - other[case] for case in cases])
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--metric", default="dice")
    args = parser.parse_args()
    scores = scores_of(args.results, args.metric)
    first, *others = scores
    pairs = {(a, b) for seeds in scores.values() for a, b in itertools.combinations(seeds, 2)}
    columns = sorted(pairs)
    cases = len(next(iter(scores[first].values())))
    print(f"{args.metric}, {cases} cases with each seed\n")
    print(f"| the same loss, seeds | {' | '.join(f'{a} and {b}' for a, b in columns)} |")
    print(f"|---|{'---|' * len(columns)}")
    false = tests = 0
    for loss, of_seeds in scores.items():
        found = [p_value(of_seeds[a], of_seeds[b]) if {a, b} <= of_seeds.keys() else math.nan for a, b in columns]
        tests += sum(not math.isnan(p) for p in found)
        false += sum(p < 0.05 for p in found)
        print(f"| `{loss}` | {' | '.join(f'{p:.2g}' for p in found)} |")
    print(f"\n{false} of {tests} claim a difference of a loss to itself (p < 0.05).\n")
    seeds = list(scores[first])
    print(f"| against `{first}`, seed | {' | '.join(seeds)} |")
    print(f"|---|{'---|' * len(seeds)}")
    for loss in others:
        found = [
            p_value(scores[first][seed], scores[loss][seed]) if seed in scores[loss] else math.nan for seed in seeds
        ]
        print(f"| `{loss}` | {' | '.join(f'{p:.2g}' for p in found)} |")


if __name__ == "__main__":
    main()
