"""The set-up of an evaluation: a trained run, and the cases to evaluate it on."""

import dataclasses
from pathlib import Path
from typing import Any

from monai_extra_losses.bundle.hysteresis import hysteresis_option
from monai_extra_losses.bundle.lesion_matching import BINS_ML, LesionRule
from monai_extra_losses.bundle.options import (
    file_or_folder,
    file_or_folder_or_none,
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
from monai_extra_losses.bundle.weights import state_dict_of, trained_weights
from monai_extra_losses.data.checks import CaseSummaries, check_cases
from monai_extra_losses.data.datalist import CaseList, LabelledCase
from monai_extra_losses.data.errors import StartUpRefused


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
        device: Any = None,
        num_workers: Any = 0,
    ) -> None:
        refuse_machinery(device, num_workers)
        folder = RunFolder(file_or_folder("bundle_root", bundle_root))
        record = RunRecord.read(folder.record)
        self.model_file = trained_weights(model_file, folder)
        self.surface_tolerance_mm = positive_number("surface_tolerance_mm", surface_tolerance_mm)
        self.metrics = metric_sets("metrics", record.metrics if metrics is None else metrics)
        self.hysteresis = hysteresis_option("hysteresis", hysteresis)
        self.lesion_rule = LesionRule(share("lesion_overlap", lesion_overlap), volume_bins("lesion_bins", lesion_bins))
        self.overlays = yes_or_no("overlays", overlays)
        self.results = ResultsFolder(file_or_folder_or_none("output_dir", output_dir) or folder.results.root)
        refuse_unwritable("output_dir", self.results.root)
        if self.results.cases_csv.exists() and not yes_or_no("overwrite", overwrite):
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

    def open_results(self) -> None:
        """Make the folder of the results, without those of an earlier evaluation."""
        if is_first_process():
            if not self.folder.metadata.exists():  # of an earlier version
                write_metadata(self.folder, self.metadata)
            open_folder("output_dir", self.results.root)
            rule = "a folder that no other evaluation writes to"
            hold_lock(self.results.lock, folder=self.results.root, rule=rule, option="--output_dir")
            self.results.remove()
            self.results.remove_drafts()
            log_to(self.results.log, append=True)

    def close_results(self) -> None:
        """Let other processes evaluate into the folder."""
        release_lock(self.results.lock)


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
