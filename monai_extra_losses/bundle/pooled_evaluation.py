"""Evaluations of several runs, such as the folds of a cross-validation, in one table."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_extra_losses.bundle.case_tables import CASE_COLUMNS, Legend, write_tables
from monai_extra_losses.bundle.ensemble import SAME_CLASSES, refuse_unlike_runs
from monai_extra_losses.bundle.evaluation import open_results
from monai_extra_losses.bundle.evaluation_record import EvaluationRecord
from monai_extra_losses.bundle.further_metrics import metric_sets_of
from monai_extra_losses.bundle.lesion_matching import LesionRule
from monai_extra_losses.bundle.run_folder import ResultsFolder, RunFolder, refuse_unwritable, release_lock
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.weights import trained_weights
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.report.tables import read_csv

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunToPool:
    """A run whose evaluation is pooled with others.

    Args:
        name: in the tables.
        folder: of the run.
        results: of its evaluation.
    """

    name: str
    folder: RunFolder
    results: ResultsFolder


class PooledEvaluation:
    """The evaluations of several runs, to be pooled.

    The cases that the runs validate on are measured in the runs' own `eval/`; others, of another split or data set, in
    a folder for each run below `output_dir`.

    Args:
        runs: folders.
        split: as of `EvaluationSetUp`.
        other_data: another data set than that trained on.
        output_dir: folder of the pooled tables; None: `eval` in the folder that all runs are in.
        overwrite: replace tables that are not pooled.
        same_metrics: the sets of metrics are those of the runs, which must have the same then.

    Raises:
        StartUpRefused: before anything is measured: a folder without a trained run, runs of other classes or channels,
            runs that measure one case twice, or a folder that cannot be written or holds other tables.
    """

    def __init__(
        self,
        runs: Sequence[Path],
        *,
        split: str,
        other_data: bool = False,
        output_dir: Path | None = None,
        overwrite: bool = False,
        same_metrics: bool = True,
    ) -> None:
        self.split = split
        common = Path(os.path.commonpath([run.absolute() for run in runs]))
        of_validation = split == "validation" and not other_data
        if output_dir is None:
            output_dir = _folder_beside(common, runs, of_validation)
        self.output = ResultsFolder(output_dir)
        self.runs = []
        for run in runs:
            name, folder = run.absolute().relative_to(common).as_posix(), RunFolder(run)
            own = folder.results if of_validation else ResultsFolder(output_dir / name)
            self.runs.append(RunToPool(name, folder, own))
        records = [RunRecord.read(run.folder.record) for run in self.runs]
        shared = SAME_CLASSES | ({"metrics": "metrics"} if same_metrics else {})
        for one, record in zip(self.runs, records, strict=True):
            refuse_unlike_runs((self.runs[0].folder, records[0]), (one.folder, record), shared)
            trained_weights(None, one.folder)
        if split != "all":
            self._refuse_same_case(
                [record.validation if split == "validation" else record.training for record in records]
            )
        refuse_unwritable("output_dir", self.output.root)
        before = EvaluationRecord.read(self.output.record)
        is_pooled = before is not None and len(before.runs) > 1
        if self.output.cases_csv.exists() and not is_pooled and not overwrite:
            raise StartUpRefused(
                f"{self.output.cases_csv} exists, and not of several runs; replace it by --overwrite True, or choose "
                "another --output_dir."
            )

    def _refuse_same_case(self, cases: Sequence[Sequence[str]]) -> None:
        seen: dict[str, str] = {}
        for run, names in zip(self.runs, cases, strict=True):
            if twice := next((name for name in names if name in seen), None):
                kind = "validation" if self.split == "validation" else "training"
                raise StartUpRefused(
                    f"Expected runs of other {kind} cases, such as the folds of one data set, got {twice} in "
                    f"{seen[twice]} and in {run.name}; leave one out, or measure all runs on one data set by --data "
                    "and --split all."
                )
            seen |= dict.fromkeys(names, run.name)

    def write(self) -> None:
        """Pool the tables of the runs, all of which are evaluated."""
        records = [self._record_of(run) for run in self.runs]
        first = records[0]
        options = first.options
        bins = options["lesion_bins"]
        rule = LesionRule(options["lesion_overlap"], bins if isinstance(bins, int) else tuple(bins))
        sets = metric_sets_of(options["metrics"], rule)
        kept = (*CASE_COLUMNS, *(metric.name for chosen in sets for metric in chosen.metrics))
        rows: list[dict[str, Any]] = []
        objects: list[list[dict[str, Any]]] = [[] for _ in sets]
        for run in self.runs:
            # what depends on all cases, such as bins of volume, is measured anew
            cases = read_csv(run.results.cases_csv, text=("case", "label"))
            rows += [{"run": run.name, **{name: row[name] for name in kept}} for row in cases]
            for chosen, own in zip(sets, objects, strict=True):
                own += [{"run": run.name, **row} for row in chosen.read(run.results)]
        open_results(self.output)
        overlap = options.get("overlap")
        windows = "" if overlap is None else f" (windows overlap by {overlap:g})"
        legend = Legend(options["surface_tolerance_mm"], options["hysteresis"], windows, self._about_runs())
        EvaluationRecord(
            runs=sum((record.runs for record in records), ()),
            models=sum((record.models for record in records), ()),
            labels=first.labels,
            cases=sum((record.cases for record in records), ()),
            options=options,
        ).write(self.output.record)
        write_tables(self.output, rows, objects, first.labels, sets, legend)
        release_lock(self.output.lock)

    def _record_of(self, run: RunToPool) -> EvaluationRecord:
        record = EvaluationRecord.read(run.results.record)
        if record is None:
            raise StartUpRefused(
                f"Expected an evaluation in {run.results.root}, got none that is finished; evaluate it."
            )
        return record

    def _about_runs(self) -> str:
        if self.split == "all":
            return f"{len(self.runs)} runs, each of which measured all cases: a case counts once for each run."
        trained = "did not train on it" if self.split == "validation" else "trained on it"
        return f"{len(self.runs)} runs, each case measured by the one that {trained}."


def _folder_beside(common: Path, runs: Sequence[Path], of_validation: bool) -> Path:
    """`eval` in the folder that all runs are in, where nothing else has it."""
    beside = all(run.absolute().parent == common for run in runs)
    if of_validation and beside and not RunFolder(common).record.exists():
        return common / "eval"
    reason = "runs of several folders" if of_validation else "other cases than those that the runs validate on"
    raise StartUpRefused(f"Expected --output_dir with {reason}, got none; name a folder for the tables of all runs.")
