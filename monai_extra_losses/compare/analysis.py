"""What the report of a comparison shows, computed once from its results."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from monai_extra_losses.bundle.lesion_matching import BINS_ML
from monai_extra_losses.compare.results import MEAN, ComparedMetric, ComparisonResults, TrialResult
from monai_extra_losses.compare.statistics import Finding, compare_losses


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a training of a loss takes.

    Args:
        seconds: per epoch, the median over trainings.
        memory_mb: at its peak, the median over trainings.
        trainings: so many.
    """

    seconds: float
    memory_mb: float
    trainings: int


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """Validation Dice of a loss over the epochs.

    Args:
        epochs: (E), those that validated.
        means: (E), over folds and seeds.
        lows, highs: (E), of the seeds, each a mean over folds.
        seeds: so many.
        folds: so many.
    """

    epochs: tuple[float, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    seeds: int
    folds: int


@dataclasses.dataclass(frozen=True)
class LesionBin:
    """Lesions of like volume, as a loss finds them.

    Args:
        name: of the bin: `0.01 to 0.1 ml`.
        lesions: of all cases, each once.
        found: share, the mean over the replicates, see `PairedScores`; NaN without a lesion.
        found_low, found_high: lowest and highest of the replicates.
        dice: mean over lesions and replicates.
    """

    name: str
    lesions: int
    found: float
    found_low: float
    found_high: float
    dice: float


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What the report shows.

    Args:
        results: of the trials.
        losses: those with results, in the order given; differences are to the first.
        findings: (name of a metric, class or `MEAN`) -> what the statistics find.
        costs: loss -> its cost.
        curves: loss -> its learning curve, where it has one.
        lesions: class -> loss -> the bins.
    """

    results: ComparisonResults
    losses: tuple[str, ...]
    findings: Mapping[tuple[str, str], Finding]
    costs: Mapping[str, Cost]
    curves: Mapping[str, LearningCurve]
    lesions: Mapping[str, Mapping[str, tuple[LesionBin, ...]]]

    @property
    def metric(self) -> ComparedMetric:
        """The main one."""
        return next((metric for metric in self.results.metrics if metric.main), self.results.metrics[0])

    @property
    def main(self) -> Finding | None:
        """The finding that the sentences are about; None where no trial measured it."""
        return self.findings.get((self.metric.name, MEAN))

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that are shown beside the mean; none where there is one class, which is the mean."""
        return self.results.labels if len(self.results.labels) > 1 else ()


def analyse(results: ComparisonResults, draws: int) -> Analysis:
    """Compute what the report shows.

    Args:
        results: of the trials.
        draws: of the bootstrap.
    """
    losses = tuple(loss.text for loss in results.plan.losses if results.of_loss(loss.text))
    findings = {}
    for metric in results.metrics:
        for label in (MEAN, *(results.labels if len(results.labels) > 1 else ())):
            finding = _finding(results, metric, label, draws)
            if finding is not None:
                findings[metric.name, label] = finding
    trials = {loss: results.of_loss(loss) for loss in losses}
    curves = {loss: curve for loss, own in trials.items() if (curve := learning_curve(own)) is not None}
    named = list(dict.fromkeys(str(row["label"]) for own in trials.values() for one in own for row in one.lesions))
    pooled = results.plan.test_dir is None
    lesions = {label: {loss: lesion_bins(own, label, pooled=pooled) for loss, own in trials.items()} for label in named}
    return Analysis(results, losses, findings, {loss: cost(own) for loss, own in trials.items()}, curves, lesions)


def _finding(results: ComparisonResults, metric: ComparedMetric, label: str, draws: int) -> Finding | None:
    """Of the losses that have a value of this metric; None where none has."""
    scores = results.scores(metric, label)
    there = [place for place, values in enumerate(scores.values) if np.isfinite(values).any()]
    if not there:
        return None
    losses = tuple(scores.losses[place] for place in there)
    return compare_losses(dataclasses.replace(scores, losses=losses, values=scores.values[there]), draws=draws)


def cost(trials: Sequence[TrialResult]) -> Cost:
    """Medians over the trainings of a loss."""
    seconds, memory = ([getattr(one, name) for one in trials] for name in ("seconds_per_epoch", "peak_memory_mb"))
    return Cost(_median(seconds), _median(memory), len(trials))


def learning_curve(trials: Sequence[TrialResult]) -> LearningCurve | None:
    """The mean over the folds for each seed, and the spread of the seeds; None where no epoch validated.

    A seed that lacks a fold which another seed has is left out: its mean would be of other cases.
    """
    dice: dict[int, dict[int, dict[float, float]]] = {}  # seed -> fold -> epoch -> Dice
    for one in trials:
        validated = {
            float(row["epoch"]): row["val_mean_dice"]
            for row in one.epochs
            if not math.isnan(row.get("val_mean_dice", math.nan))
        }
        if validated:
            dice.setdefault(one.trial.seed, {})[one.trial.fold] = validated
    folds = max(map(len, dice.values()), default=0)
    whole = [own for own in dice.values() if len(own) == folds]
    by_seed = [
        {epoch: float(np.mean([fold[epoch] for fold in own.values()])) for epoch in _shared(own.values())}
        for own in whole
    ]
    epochs = _shared(by_seed)
    if not epochs:
        return None
    values = np.array([[own[epoch] for epoch in epochs] for own in by_seed])
    means, lows, highs = (
        tuple(map(float, line)) for line in (values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    )
    return LearningCurve(tuple(epochs), means, lows, highs, seeds=len(whole), folds=folds)


def lesion_bins(trials: Sequence[TrialResult], label: str, *, pooled: bool) -> tuple[LesionBin, ...]:
    """Lesions of a class by their volume.

    Args:
        trials: of one loss.
        label: the class.
        pooled: the folds of a seed measure other cases each, not the same test set.
    """
    bins = []
    for low, high in pairwise((0.0, *BINS_ML, math.inf)):
        lesions: dict[tuple[int, int], list[tuple[float, float]]] = {}  # replicate -> found and Dice of each
        for one in trials:
            replicate = (one.trial.seed, 0 if pooled else one.trial.fold)
            lesions.setdefault(replicate, []).extend(
                (float(row["found"]), float(row["dice"]))
                for row in one.lesions
                if row["label"] == label and low <= row["volume_ml"] < high
            )
        means = np.array([np.mean(own, axis=0) for own in lesions.values() if own]).reshape(-1, 2)
        found, dice = means.mean(axis=0) if len(means) else (math.nan, math.nan)
        lowest, highest = (means[:, 0].min(), means[:, 0].max()) if len(means) else (math.nan, math.nan)
        number = max(map(len, lesions.values()), default=0)
        bins.append(LesionBin(_words(low, high), number, float(found), float(lowest), float(highest), float(dice)))
    return tuple(bins)


def _words(low: float, high: float) -> str:
    if low == 0:
        return f"< {high:g} ml"
    return f"> {low:g} ml" if high == math.inf else f"{low:g} to {high:g} ml"


def _shared(rows: Iterable[Mapping[float, float]]) -> list[float]:
    """Epochs that all have."""
    sets = [set(row) for row in rows]
    return sorted(set.intersection(*sets)) if sets else []


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan
