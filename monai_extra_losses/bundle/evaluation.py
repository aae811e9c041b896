"""The set-up of an evaluation: a trained run, and the cases to evaluate it on."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_extra_losses.bundle.evaluation_record import EvaluationRecord
from monai_extra_losses.bundle.hysteresis import hysteresis_option
from monai_extra_losses.bundle.lesion_matching import BINS_ML, LesionRule
from monai_extra_losses.bundle.options import (
    file_or_folder,
    file_or_folder_or_none,
    literal,
    metric_sets,
    positive_number,
    share,
    volume_bins,
    yes_or_no,
)
from monai_extra_losses.bundle.processes import is_first_process, refuse_machinery, refuse_processes
from monai_extra_losses.bundle.run_folder import (
    ResultsFolder,
    RunFolder,
    hold_lock,
    log_to,
    open_folder,
    refuse_unwritable,
    release_lock,
)
from monai_extra_losses.bundle.run_metadata import metadata_of_run
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.run_setup import RunSetUp, cases_of, problems_as_refusal
from monai_extra_losses.bundle.training import write_metadata
from monai_extra_losses.bundle.volumes_to_segment import input_stamp
from monai_extra_losses.bundle.weights import state_dict_of, trained_weights
from monai_extra_losses.data.checks import CaseSummaries, check_cases
from monai_extra_losses.data.datalist import CaseList, LabelledCase
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.storage import sha256

logger = logging.getLogger(__name__)


class EvaluationSetUp(RunSetUp):
    """A trained run and the cases to evaluate it on, checked.

    Args:
        bundle_root: the run folder.
        dataset_dir: data set folder; None for the one trained on.
        split: "validation" or "training" (as recorded), or "all": every case of `dataset_dir` that has a label.
        output_dir: folder of tables and pictures; None for `<bundle_root>/eval`.
        overwrite: replace tables of an earlier evaluation.
        surface_tolerance_mm: distance at which two surfaces count as one, in mm.
        model_file: weights; None for `<bundle_root>/models/model.pt`.
        metrics: names of sets of further metrics; None for those of the run.
        hysteresis: low and high threshold of the decision, see `HysteresisKeep`; None for one of 0.5.
        lesion_overlap, lesion_bins: of the set `lesions`, as of `LesionRule`.
        overlays: draw a picture per case.
        skip_finished: leave tables that are of this evaluation as they are, instead of refusing.
        amp: half precision, as `half_precision` takes it.
        device, num_workers: where the network computes, and loader processes.

    Raises:
        StartUpRefused: no trained run, cases that do not fit it, or results that would be overwritten.
    """

    def __init__(
        self,
        *,
        bundle_root: Any,
        dataset_dir: Any = None,
        split: Any = "validation",
        output_dir: Any = None,
        overwrite: Any = False,
        surface_tolerance_mm: Any = 1.0,
        model_file: Any = None,
        metrics: Any = None,
        hysteresis: Any = None,
        lesion_overlap: Any = 0,
        lesion_bins: Any = BINS_ML,
        overlays: Any = True,
        skip_finished: Any = False,
        amp: Any = None,
        device: Any = None,
        num_workers: Any = 0,
    ) -> None:
        refuse_machinery(device, num_workers)
        folder = RunFolder(file_or_folder("bundle_root", bundle_root))
        record = RunRecord.read(folder.record)
        self.model_file = trained_weights(model_file, folder)
        self.surface_tolerance_mm, self.hysteresis, self.lesion_rule = measuring_rules(
            surface_tolerance_mm=surface_tolerance_mm,
            hysteresis=hysteresis,
            lesion_overlap=lesion_overlap,
            lesion_bins=lesion_bins,
        )
        self.metrics = metric_sets("metrics", record.metrics if metrics is None else metrics)
        self.overlays = yes_or_no("overlays", overlays)
        self.results = ResultsFolder(file_or_folder_or_none("output_dir", output_dir) or folder.results.root)
        refuse_unwritable("output_dir", self.results.root)
        skips = yes_or_no("skip_finished", skip_finished)
        there = self.results.cases_csv.exists() and not yes_or_no("overwrite", overwrite)
        if there and not skips:
            raise StartUpRefused(
                f"{self.results.cases_csv} exists; replace it by --overwrite True, or choose another --output_dir."
            )
        state_dict_of(self.model_file, "model_file")  # refused now
        case_list = cases_of(Path(record.dataset_dir) if dataset_dir is None else dataset_dir)
        chosen = _chosen_cases(case_list, split, record)
        refuse_processes(evaluated=chosen)
        with problems_as_refusal():
            summaries = check_cases(dataclasses.replace(case_list, cases=chosen, unlabelled=()))
        _refuse_other_data(summaries, record, case_list.folder)
        # the data say which voxels and classes are not annotated: those of another folder may have others
        record = dataclasses.replace(
            record, ignore_label=case_list.ignore_label, partly_annotated=case_list.partly_annotated
        )
        # the training cases are for MONAI's property check alone, which builds the training part of the configs too
        training = [case for case in case_list.cases if case.name in record.training]
        super().__init__(folder, record, training, chosen)
        self.metadata = metadata_of_run(None, record, summaries.channels)
        precision = literal(amp)
        options = {
            "split": split,
            "dataset_dir": str(case_list.folder.resolve()),
            "surface_tolerance_mm": self.surface_tolerance_mm,
            "metrics": self.metrics,
            "hysteresis": self.hysteresis,
            "lesion_overlap": self.lesion_rule.overlap,
            "lesion_bins": self.lesion_rule.bins,
            "overlays": self.overlays,
            "amp": record.amp if precision is None else precision,
        }
        self.made_of = EvaluationRecord(
            runs=(str(folder.root.resolve()),),
            models=(sha256(self.model_file),),
            labels=tuple(record.foreground.values()),
            cases=(_checksum(chosen),),
            options=json.loads(json.dumps(options, default=str)),  # as the record has them
        )
        self._left_alone = there
        if there:
            self._refuse_other_tables(self.made_of)

    def is_finished(self, inferer: Any) -> bool:
        """Whether the tables of this evaluation are there, and may stay.

        Args:
            inferer: that would predict, whose windows count too.

        Raises:
            StartUpRefused: those of other windows are there.
        """
        if self._left_alone:
            self._refuse_other_tables(self.made_of.with_windows(inferer))
        return self._left_alone

    def _refuse_other_tables(self, wanted: EvaluationRecord) -> None:
        before = EvaluationRecord.read(self.results.record)
        other = "one without a record of what it is of" if before is None else before.difference(wanted)
        if "lesions" in self.metrics and not self.results.lesions_csv.exists():
            other = other or "one without lesions.csv"
        if other is not None:
            raise StartUpRefused(
                f"Expected {self.results.cases_csv} to be of this evaluation, got {other}; replace it by --overwrite "
                "True."
            )

    def open_results(self) -> None:
        """Make the folder of the results, without those of an earlier evaluation; nothing where it is finished."""
        if not is_first_process():
            return
        if self._left_alone:
            log_to(self.results.log, append=True)
            logger.info(f"Evaluated before: {self.results.cases_csv}")
            return
        if not self.folder.metadata.exists():  # of an earlier version
            write_metadata(self.folder, self.metadata)
        open_results(self.results)

    def close_results(self) -> None:
        """Let other processes evaluate into the folder."""
        release_lock(self.results.lock)


def measuring_rules(
    *,
    surface_tolerance_mm: Any = 1.0,
    hysteresis: Any = None,
    lesion_overlap: Any = 0,
    lesion_bins: Any = BINS_ML,
) -> tuple[float, tuple[float, float] | None, LesionRule]:
    """Tolerance in mm, thresholds and the rule of lesions, as `EvaluationSetUp` takes them.

    Raises:
        StartUpRefused: the first that cannot be.
    """
    return (
        positive_number("surface_tolerance_mm", surface_tolerance_mm),
        hysteresis_option("hysteresis", hysteresis),
        LesionRule(share("lesion_overlap", lesion_overlap), volume_bins("lesion_bins", lesion_bins)),
    )


def open_results(results: ResultsFolder) -> None:
    """Make a folder of results, locked, without those of an earlier evaluation."""
    open_folder("output_dir", results.root)
    rule = "a folder that no other evaluation writes to"
    hold_lock(results.lock, folder=results.root, rule=rule, option="--output_dir")
    results.remove()
    results.remove_drafts()
    log_to(results.log, append=True)


def _checksum(cases: Sequence[LabelledCase]) -> str:
    """What tells the files of cases from others."""
    stamps = {case.name: input_stamp((*case.image, *([case.label] if case.label else []))) for case in cases}
    return hashlib.sha256(json.dumps(stamps, sort_keys=True).encode()).hexdigest()


def _chosen_cases(case_list: CaseList, split: Any, record: RunRecord) -> tuple[LabelledCase, ...]:
    if split == "all":
        return case_list.cases + tuple(case for case in case_list.unlabelled if case.label is not None)
    recorded = {"validation": record.validation, "training": record.training}
    if split not in recorded:
        raise StartUpRefused(f'Expected split to be "validation", "training" or "all", got {split!r}.')
    there = {case.name: case for case in case_list.cases}
    missing = [name for name in recorded[split] if name not in there]
    if missing:
        raise StartUpRefused(
            f"Expected the {split} cases of the run in {case_list.folder}, got none named {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}; "
            "for cases that the run never saw use --split all."
        )
    return tuple(there[name] for name in recorded[split])


def _refuse_other_data(summaries: CaseSummaries, record: RunRecord, folder: Path) -> None:
    if len(summaries.channels) != record.in_channels:
        raise StartUpRefused(
            f"Expected images of {record.in_channels} channel(s) as in the run, "
            f"got {len(summaries.channels)} in {folder}."
        )
    if not set(summaries.labels) <= set(record.labels):
        raise StartUpRefused(
            f"Expected label values {sorted(record.labels)} as in the run, got {sorted(summaries.labels)} in {folder}."
        )
