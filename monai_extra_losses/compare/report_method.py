"""How a comparison was made, in plain sentences."""

from collections.abc import Mapping
from typing import Any

from monai_extra_losses.compare.analysis import Analysis
from monai_extra_losses.compare.report_text import many

EMPTY_CASES = (
    "A class that a case has neither in target nor prediction is undefined there and leaves the means.",
    "A class that is missed or invented in a case counts with Dice 0, surface Dice 0 and, as HD95, the diagonal of the "
    "volume.",
    "The mean of a case is over its defined classes; only cases that all losses define enter means and ranks.",
)

STATISTICS = (
    "The noise of the seeds is how far the means of trainings of one loss lie apart that differ in the seed alone (on "
    "a test set: in seed and fold), pooled over the losses. A loss that varies far more than the others has a band of "
    "its own.",
    "Intervals of differences are of a two-level bootstrap over cases and seeds, paired by case. The level of bands "
    "and intervals, 95 %, is for all comparisons with one loss together.",
    "A loss is better or worse than another if the difference is larger than the band and its interval excludes 0; all "
    "else is a tie.",
    "A loss with a band of its own is also worse than a steady one if its trainings could hardly have that one's mean, "
    "had none been better than the best training of all losses by more than the luck of one (a test without a normal "
    "distribution, at the same level). If that is open, and the difference larger than the band of the others and than "
    "that of the cases, the verdict is unclear.",
    "The probability of a false claim is the share of draws in which the difference has the other sign. Wilcoxon's "
    "signed-rank test over the cases, with Holm's correction beside it, knows nothing of the noise of the seeds and "
    "decides nothing here.",
)


def trials_sentences(analysis: Analysis) -> list[str]:
    """Which trainings there are, and what they share."""
    results, plan = analysis.results, analysis.results.plan
    said = [
        f"{many(len(plan.trials), 'training')}: {many(len(plan.losses), 'loss', 'losses')}, "
        f"{many(len(plan.folds), 'fold')} ({_words(plan.folds)}), {many(len(plan.seeds), 'seed')} "
        f"({_words(plan.seeds)}){_points(len(plan.grid_points))}; "
        f"{len(results.finished)} finished, {len(results.failed)} failed, {len(results.missing)} not run.",
        "The folds are the same for every seed. Within a seed, all losses start from the same weights and see the same "
        "patches.",
    ]
    epochs = sorted({len(one.epochs) for one in results.finished})
    if epochs:
        said.append(f"Epochs of a training: {epochs[0] if len(epochs) == 1 else f'{epochs[0]} to {epochs[-1]}'}.")
    if plan.test_dir is None:
        said.append("Measured on the cases of the validation folds, pooled.")
    else:
        said.append(f"Measured on the test set {plan.test_dir}.")
    return said + _grid_sentences(analysis)


def facts(analysis: Analysis) -> dict[str, str]:
    """Name -> text of what is known of the comparison: options, versions, hardware, data, its licence, command."""
    plan = analysis.results.plan
    options = {"options of every training": _pairs(plan.options)} if plan.options else {}
    files = {"config files": ", ".join(plan.config_files)} if plan.config_files else {}
    return {**options, **files, **analysis.results.facts}


def _grid_sentences(analysis: Analysis) -> list[str]:
    plan = analysis.results.plan
    if not plan.grid:
        return []
    tried = "; ".join(f"{key}: {_words(values)}" for key, values in plan.grid.items())
    chosen = "; ".join(f"{loss}: {_pairs(analysis.results.chosen.get(loss, {}))}" for loss in analysis.losses)
    said = [
        f"Every loss was trained at the same {many(len(plan.grid_points), 'point')} of a grid ({tried}), and the point "
        "that validated best is shown.",
        f"Chosen: {chosen}.",
    ]
    if plan.test_dir is None:
        said.append(
            "The cases that chose the point also measure, so that all values are optimistic; the budget of the losses "
            "is equal."
        )
    return said


def _points(number: int) -> str:
    return "" if number == 1 else f", {number} points of a grid"


def _words(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values))


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())
