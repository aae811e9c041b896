"""What the trials of a comparison measured."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.compare.plan import ComparisonPlan, Trial

MEAN = "mean"  # label of the mean over the classes of a case


@dataclasses.dataclass(frozen=True)
class ComparedMetric:
    """A column of the evaluation's cases.csv.

    Args:
        name: of the column: dice, hd95_mm, lesion_f1.
        title: in figures and tables, with the unit: `HD95 (mm)`.
        higher_is_better: or lower.
        main: the one that the report's sentences are about.
    """

    name: str
    title: str
    higher_is_better: bool
    main: bool = False


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """A finished trial.

    Args:
        trial: which.
        cases: rows of cases.csv: `case`, `label`, and numbers, NaN where undefined.
        epochs: rows of training.csv: `epoch`, `train_loss`, `val_mean_dice` (NaN where it did not validate), ...
        lesions: rows of lesions.csv, where lesions were measured: `case`, `label`, `volume_ml`, `found`, `dice`, ...
        seconds_per_epoch: mean, validations included.
        peak_memory_mb: of its process; on a GPU of the GPU.
        folder: of its run.
    """

    trial: Trial
    cases: tuple[Mapping[str, Any], ...]
    epochs: tuple[Mapping[str, float], ...]
    lesions: tuple[Mapping[str, Any], ...]
    seconds_per_epoch: float
    peak_memory_mb: float
    folder: Path


@dataclasses.dataclass(frozen=True)
class PairedScores:
    """One metric of one class, of all losses on the same cases with the same seeds.

    Args:
        metric: which.
        label: the class, or `MEAN`.
        losses: (L) as given to --losses.
        replicates: (S) independent trainings of a loss that measure all cases: one per seed where folds are pooled, one
            per seed and fold on a test set.
        cases: (N).
        values: (L, S, N), NaN where the metric is undefined, or the trial is not there.
    """

    metric: ComparedMetric
    label: str
    losses: tuple[str, ...]
    replicates: tuple[str, ...]
    cases: tuple[str, ...]
    values: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class ComparisonResults:
    """What a comparison measured, so far as it got.

    Args:
        plan: of the trials.
        finished: trials with results, in the order of the plan, at every point of the grid.
        failed: name of a trial -> the last line of its log.
        missing: names of trials that are neither.
        labels: names of the classes.
        metrics: measured ones, the main one first.
        chosen: text of a loss -> the point of the grid that validated best.
        facts: name -> text: versions, hardware, data set, its licence, command.
    """

    plan: ComparisonPlan
    finished: tuple[TrialResult, ...]
    failed: Mapping[str, str]
    missing: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[ComparedMetric, ...]
    chosen: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, str]

    def of_loss(self, text: str) -> list[TrialResult]:
        """Finished trials of a loss at its chosen point of the grid."""
        return [
            one
            for one in self.finished
            if one.trial.loss.text == text and one.trial.values == self.chosen.get(text, {})
        ]

    def scores(self, metric: ComparedMetric, label: str = MEAN) -> PairedScores:
        """The values of a metric, for the statistics.

        A replicate that lacks a fold has NaN in the cases of this fold.
        """
        pooled = self.plan.test_dir is None
        found: dict[tuple[str, str, str], list[float]] = {}
        for loss in self.plan.losses:
            for one in self.of_loss(loss.text):
                trial = one.trial
                replicate = f"seed {trial.seed}" if pooled else f"seed {trial.seed}, fold {trial.fold}"
                for row in one.cases:
                    if label in (MEAN, row["label"]):
                        found.setdefault((loss.text, replicate, row["case"]), []).append(row[metric.name])
        losses = tuple(loss.text for loss in self.plan.losses)
        replicates, cases = (tuple(sorted({key[axis] for key in found})) for axis in (1, 2))
        values = np.full((len(losses), len(replicates), len(cases)), np.nan)
        for (loss_text, replicate, case), numbers in found.items():
            defined = [number for number in numbers if not np.isnan(number)]
            if defined:
                place = losses.index(loss_text), replicates.index(replicate), cases.index(case)
                values[place] = np.mean(defined)
        return PairedScores(metric, label, losses, replicates, cases, values)
