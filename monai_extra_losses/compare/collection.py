"""Reading what the trials of a comparison left."""

import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monai_extra_losses import __version__
from monai_extra_losses.bundle.further_metrics import metric_sets_of
from monai_extra_losses.bundle.run_record import RunRecord, read_training_csv
from monai_extra_losses.compare.local import last_line
from monai_extra_losses.compare.plan import ComparisonPlan
from monai_extra_losses.compare.results import ComparedMetric, ComparisonResults, TrialResult
from monai_extra_losses.compare.trial import ComparisonFolder
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.report.tables import read_csv

_TEXT = ("case", "label")  # columns
_USUAL = (
    ComparedMetric("dice", "Dice", higher_is_better=True, main=True),
    ComparedMetric("hd95_mm", "HD95 (mm)", higher_is_better=False),
    ComparedMetric("surface_dice", "surface Dice", higher_is_better=True),
    ComparedMetric("false_positive_ml", "false positives (ml)", higher_is_better=False),
)


def collect(out: Path, plan: ComparisonPlan, states: Mapping[str, str], command: str) -> ComparisonResults:
    """The results of the finished trials, and what became of the others.

    Args:
        out: folder of the comparison.
        states: name of a trial -> "failed", of this call; what is finished, the folder tells.
        command: that makes the comparison.
    """
    folder = ComparisonFolder(out)
    finished = [trial for trial in plan.trials if folder.is_finished(trial.name)]
    results = tuple(_result_of(folder, plan, trial.name) for trial in finished)
    names = {trial.name for trial in finished}
    failed = {
        name: last_line(folder.log(name)) for name, state in states.items() if state == "failed" and name not in names
    }
    missing = tuple(t.name for t in plan.trials if t.name not in names and t.name not in failed)
    records = [RunRecord.read(folder.run(name).record) for name in sorted(names)]
    labels = tuple(records[0].foreground.values()) if records else ()
    _refuse_other_cases(plan, results)
    return ComparisonResults(
        plan=plan,
        finished=results,
        failed=failed,
        missing=missing,
        labels=labels,
        metrics=metrics_of(plan),
        chosen=_chosen(plan, results),
        facts=_facts(folder, plan, records[0] if records else None, results, command),
    )


def metrics_of(plan: ComparisonPlan) -> tuple[ComparedMetric, ...]:
    """What the evaluations of a comparison measure, that is better one way."""
    further = [metric for chosen in metric_sets_of(plan.metrics) for metric in chosen.metrics]
    return _USUAL + tuple(
        ComparedMetric(metric.name, _title(metric.name), metric.higher_is_better)
        for metric in further
        if metric.higher_is_better is not None
    )


def _title(name: str) -> str:
    """Of the column `false_positive_lesions`: false positive lesions."""
    return name.replace("lesion_f1", "lesion F1").replace("cl_dice", "clDice").replace("_", " ")


def _result_of(folder: ComparisonFolder, plan: ComparisonPlan, name: str) -> TrialResult:
    run, results = folder.run(name), folder.results(name)
    epochs = tuple(
        {key: float(cell or "nan") for key, cell in row.items()} for row in read_training_csv(run.training_csv)
    )
    seconds = [row["seconds"] for row in epochs if not math.isnan(row.get("seconds", math.nan))]
    try:
        cost = json.loads(folder.summary(name).read_text(encoding="utf-8"))
        memory = cost["peak_memory_mb"]
        memory = math.nan if memory is None else float(memory)
        cases = tuple(read_csv(results.cases_csv, _TEXT))
        lesions = tuple(read_csv(results.lesions_csv, _TEXT)) if results.lesions_csv.exists() else ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartUpRefused(
            f"{run.root}: expected the results of a finished trial, got {error}; delete that folder, and compare makes "
            "it anew."
        ) from None
    return TrialResult(
        trial=plan.trial(name),
        cases=cases,
        epochs=epochs,
        lesions=lesions,
        seconds_per_epoch=float(np.mean(seconds)) if seconds else math.nan,
        peak_memory_mb=memory,
        folder=run.root,
    )


def _refuse_other_cases(plan: ComparisonPlan, results: tuple[TrialResult, ...]) -> None:
    """All trials of a fold measured the same cases, or their differences mean nothing."""
    first: dict[int, TrialResult] = {}
    for one in results:
        known = first.setdefault(one.trial.fold if plan.test_dir is None else 0, one)
        names = [{row["case"] for row in result.cases} for result in (known, one)]
        if names[0] != names[1]:
            other = sorted(names[0] ^ names[1])[0]
            raise StartUpRefused(
                f"Expected the trials {known.trial.name} and {one.trial.name} to have measured the same cases, got "
                f"{other} in one of them alone; the data set was changed in between: choose another --out."
            )


def _chosen(plan: ComparisonPlan, results: tuple[TrialResult, ...]) -> dict[str, dict[str, Any]]:
    """The point of the grid of each loss whose trainings validated best, by the mean of their best epochs."""
    chosen = {}
    for loss in plan.losses:
        means = []
        for place, values in enumerate(plan.grid_points):
            best = [
                max((row["val_mean_dice"] for row in one.epochs if not math.isnan(row["val_mean_dice"])), default=0.0)
                for one in results
                if one.trial.loss == loss and one.trial.values == values
            ]
            if best:
                means.append((float(np.mean(best)), -place, values))
        if means:
            chosen[loss.text] = max(means, key=lambda entry: entry[:2])[2]
    return chosen


def _facts(
    folder: ComparisonFolder,
    plan: ComparisonPlan,
    record: RunRecord | None,
    results: tuple[TrialResult, ...],
    command: str,
) -> dict[str, str]:
    facts = {"command": command, "data": plan.dataset_dir, "monai-extra-losses": __version__}
    if plan.test_dir is not None:
        facts["test data"] = plan.test_dir
    try:
        stated = json.loads((Path(plan.dataset_dir) / "dataset.json").read_text(encoding="utf-8"))
        facts |= {
            name: str(stated[key])
            for name, key in (("name of the data", "name"), ("licence of the data", "licence"))
            if stated.get(key)
        }
        facts |= {"reference of the data": str(stated["reference"])} if stated.get("reference") else {}
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # a data set without dataset.json states nothing
    facts.setdefault("licence of the data", "not stated")
    if results and record is not None:
        environment = json.loads(folder.run(results[0].trial.name).environment.read_text(encoding="utf-8"))
        facts |= {name: str(version) for name, version in environment.get("packages", {}).items()}
        facts |= {
            "network": record.network,
            "patch": " x ".join(map(str, record.patch_size)),
            "batch size": str(record.batch_size),
            "epochs": str(record.epochs),
            "learning rate": f"{record.learning_rate:g}",
            "training cases per fold": str(len(record.training)),
            "GPU": ", ".join(environment.get("gpus") or []) or "none",
        }
    return facts | {"machine": f"{platform.platform()}, {os.cpu_count()} cores", "python": platform.python_version()}
