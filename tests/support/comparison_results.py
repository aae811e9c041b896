"""Results of a comparison that were never trained."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_extra_losses.compare.plan import ComparisonPlan, LossChoice, Trial, read_losses
from monai_extra_losses.compare.results import ComparedMetric, ComparisonResults, TrialResult

DICE = ComparedMetric("dice", "Dice", higher_is_better=True, main=True)
HD95 = ComparedMetric("hd95_mm", "HD95 (mm)", higher_is_better=False)
FACTS = {
    "command": "monai-extra-losses compare --data demo --losses dice_ce",
    "versions": "monai_extra_losses 0.1, torch 2.13.0, MONAI 1.6.1",
    "hardware": "2 CPU cores",
    "licence of the data": "CC-BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/",
}


def comparison_results(
    losses: str | tuple[LossChoice, ...] = "dice_ce,tversky,focal",
    *,
    gains: Mapping[str, float] = {},
    noises: float = 0.002,
    cases: int = 60,
    folds: Sequence[int] = (0, 1),
    seeds: Sequence[int] = (0, 1, 2),
    grid: Mapping[str, tuple[Any, ...]] = {},
    labels: Sequence[str] = ("Anterior", "Posterior"),
    undefined: Callable[[str, str], bool] = lambda case, label: False,
    lesions: bool = False,
    failed: Mapping[str, str] = {},
    missing: Sequence[str] = (),
    test_dir: str | None = None,
    dataset_dir: str = "/data/Task04_Hippocampus",
    folder: Path = Path("nowhere"),
) -> ComparisonResults:
    """Results whose losses differ by `gains`, and whose seeds differ by noise.

    Args:
        losses: as of --losses.
        gains: text of a loss -> what it adds to each Dice.
        noises: standard deviation of the mean of a seed.
        cases: of all folds.
        folds, seeds, grid, labels, test_dir, dataset_dir: of the comparison.
        undefined: of case and label: whether the metrics are NaN.
        lesions: measure some.
        failed: name of a trial -> last line of its log; it has no result.
        missing: names of trials without a result.
        folder: of the trials' runs.
    """
    choices = read_losses(losses) if isinstance(losses, str) else losses
    plan = ComparisonPlan(dataset_dir, choices, tuple(folds), tuple(seeds), grid, {"epochs": 20}, test_dir=test_dir)
    rng = np.random.default_rng(3)
    difficulty = rng.beta(2, 10, cases)
    of_seed = {
        (loss.text, seed): rng.normal(0, noises) for loss in choices for seed in seeds
    }  # drawn for all, so that a failed trial changes no other

    def result(trial: Trial) -> TrialResult:
        own = np.random.default_rng([trial.seed, trial.fold, choices.index(trial.loss)])
        gain = gains.get(trial.loss.text, 0.0) + of_seed[trial.loss.text, trial.seed]
        rows: list[dict[str, Any]] = []
        of_fold = range(cases) if test_dir else range(list(folds).index(trial.fold), cases, len(folds))
        for case in of_fold:
            for label in labels:
                dice = float(np.clip(0.95 - difficulty[case] + gain + own.normal(0, 0.01), 0, 1))
                numbers = {"dice": dice, "hd95_mm": 1 + 20 * (1 - dice), "target_ml": 1.5}
                if undefined(f"case_{case:03d}", label):
                    numbers |= {"dice": math.nan, "hd95_mm": math.nan}
                rows.append({"case": f"case_{case:03d}", "label": label, **numbers})
        return TrialResult(
            trial=trial,
            cases=tuple(rows),
            epochs=tuple(_epoch(epoch, gain) for epoch in range(1, 21)),
            lesions=tuple(_lesions(own, labels[-1], gain)) if lesions else (),
            seconds_per_epoch=10.0 + 3.0 * choices.index(trial.loss),
            peak_memory_mb=1200.0,
            folder=folder / trial.name,
        )

    left_out = {*failed, *missing}
    finished = tuple(result(trial) for trial in plan.trials if trial.name not in left_out)
    chosen = {loss.text: plan.grid_points[-1] for loss in choices}
    return ComparisonResults(plan, finished, failed, tuple(missing), tuple(labels), (DICE, HD95), chosen, FACTS)


def _epoch(epoch: int, gain: float) -> dict[str, float]:
    dice = 0.85 * (1 - math.exp(-epoch / 5)) + gain if epoch % 5 == 0 else math.nan
    return {"epoch": float(epoch), "train_loss": 1 / epoch, "val_mean_dice": dice}


def _lesions(rng: np.random.Generator, label: str, gain: float) -> list[dict[str, Any]]:
    volumes = 10 ** np.random.default_rng(5).uniform(-3, 0.7, 80)
    found = rng.uniform(size=80) < 1 / (1 + (0.03 / volumes)) + 3 * gain
    return [
        {"case": "case_000", "label": label, "volume_ml": float(v), "found": bool(f), "dice": 0.7 * float(f)}
        for v, f in zip(volumes, found, strict=True)
    ]
