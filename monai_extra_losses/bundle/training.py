"""The set-up of a training: its options, data and folder, checked before any time is spent."""

import dataclasses
import inspect
import json
import logging
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_extra_losses.bundle.components import half_precision
from monai_extra_losses.bundle.ignored_voxels import check_ignore_index, needs_maps
from monai_extra_losses.bundle.loss_facts import loss_name, loss_options
from monai_extra_losses.bundle.loss_trial import (
    leave_out_ignored,
    refuse_broken_loss,
    refuse_loss_of_classes,
    refuse_raw_scores,
    refuse_whole_scores,
    weight_ramps,
)
from monai_extra_losses.bundle.networks import NETWORKS, plan_network, refuse_unfit_options
from monai_extra_losses.bundle.processes import is_first_process, refuse_processes, wait_for_all_processes
from monai_extra_losses.bundle.resuming import checkpoint_of, lost_model, mend
from monai_extra_losses.bundle.run_folder import (
    RunFolder,
    describe_environment,
    hold_lock,
    log_to,
    open_folder,
    refuse_unwritable,
)
from monai_extra_losses.bundle.run_metadata import differs_from_run, metadata_of_run
from monai_extra_losses.bundle.run_record import RunRecord, read_training_csv
from monai_extra_losses.bundle.run_setup import (
    RunSetUp,
    cases_of,
    problems_as_refusal,
    refuse_run_folder,
)
from monai_extra_losses.bundle.training_options import TABLE, TrainingOptions
from monai_extra_losses.bundle.weights import state_dict_of
from monai_extra_losses.data.annotation import annotates
from monai_extra_losses.data.checks import check_cases, refuse_empty_labels
from monai_extra_losses.data.datalist import CaseList, LabelledCase, count_folds, split_cases
from monai_extra_losses.data.errors import DatasetError, StartUpRefused
from monai_extra_losses.data.folder_files import first_of, named
from monai_extra_losses.data.sides import automatic_flips, mirror_remarks
from monai_extra_losses.data.storage import write_whole
from monai_extra_losses.losses import PartialLabelLoss

logger = logging.getLogger(__name__)


# Beside the options of which the table says so. Those of the loss are compared one by one.
_FACTS_THAT_CHANGE_ON_RESUME = {"version", "original_labels", "loss_options", "regions_class_order", "segments"}


_RULING = ("network", "fold_seed")  # other values follow from them


_ANOTHER_RUN = "choose another --bundle_root (--run on the short command line) for another training"


class TrainingSetUp(RunSetUp):
    """Options, data and folder of a training, checked.

    Args:
        loss: the loss to train with.
        metadata: the bundle's metadata.json, of which the run gets its own; None: that of this package.
        given: the options, as the command line gives them: see `training_options.TrainingOptions`, or
            `monai-extra-losses train --help`.

    Raises:
        StartUpRefused: the first option, folder or data set that cannot work; all problems of a data set at once.
    """

    def __init__(self, *, loss: torch.nn.Module, metadata: Mapping[str, Any] | None = None, **given: Any) -> None:
        options = TrainingOptions.checked(given)
        options = dataclasses.replace(options, loss_weights=weight_ramps(loss, options.loss_weights))
        refuse_unfit_options(options, given.get("patch_size"))
        half_precision(given.get("amp"), options.device or "cpu")  # refused now
        self.overwrite = options.overwrite
        folder = RunFolder(options.bundle_root)
        refuse_run_folder(folder, options.resume, options.overwrite)
        if options.cache == "disk" and options.cache_dir is not None:
            refuse_unwritable("cache_dir", Path(options.cache_dir))
        case_list = cases_of(options.dataset_dir)
        if folder.root.resolve() == case_list.folder.resolve():
            raise StartUpRefused(
                f"Expected bundle_root (--run) to be another folder than that of the data set, got {folder.root} for "
                "both; choose a folder in it or beside it."
            )
        with problems_as_refusal():
            num_folds = count_folds(case_list.cases, options.num_folds)
            training, validation = _dealt_cases(case_list, options, num_folds)
            refuse_processes(training=training, validation=validation)
            self.passed_over = _passed_over(case_list, num_folds)
            partly_annotated = case_list.partly_annotated
            if options.regions and case_list.regions is not None:
                _refuse_without_region([*training, *validation], case_list)
            self.test_cases = len(case_list.unlabelled)
            used = tuple(sorted((*training, *validation), key=lambda case: case.name))
            case_list = dataclasses.replace(case_list, cases=used, unlabelled=())
            summaries = check_cases(case_list)
            refuse_empty_labels(case_list.folder, summaries)
            _refuse_unknown_classes(training, case_list, regions=options.regions)
        names = {case.name for case in training}
        plan = plan_network(
            options,
            summaries.cases,
            [case for case in summaries.cases if case.name in names],
            _earlier_run(options, folder),
        )
        named_classes = {*summaries.labels.values(), *((case_list.regions or ()) if options.regions else ())}
        record = RunRecord(
            labels=summaries.labels,
            in_channels=len(summaries.channels),
            loss=loss_name(loss),
            regions=case_list.regions if options.regions else None,
            regions_class_order=case_list.regions_class_order if options.regions else None,
            dataset_dir=str(case_list.folder.absolute()),
            original_labels=case_list.original_labels,
            num_folds=num_folds,
            training=tuple(case.name for case in training),
            validation=tuple(case.name for case in validation),
            ignore_label=case_list.ignore_label,
            partly_annotated=partly_annotated,
            segments={name: entry for name, entry in case_list.segments.items() if name in named_classes},
            **dataclasses.asdict(plan),
            **options.recorded,
        )
        leave_out_ignored(loss, record)
        flips = automatic_flips(record.foreground.values()) if options.flip_axes is None else options.flip_axes
        record = dataclasses.replace(record, loss_options=loss_options(loss), flip_axes=flips)
        self._loss_warnings = check_ignore_index(loss, record)
        if isinstance(loss, PartialLabelLoss) and not partly_annotated:
            self._loss_warnings.append(
                f"every case of {case_list.folder} annotates all classes: PartialLabelLoss is the loss that it wraps; "
                'write "annotated": [1, 3] into the entries of dataset.json that annotate 1 and 3 alone.'
            )
        with warnings.catch_warnings():
            # the data say it above
            warnings.filterwarnings("ignore", message="PartialLabelLoss takes every class as annotated")
            _refuse_loss(loss, record, check=options.check_loss)
        self.nothing_to_do = self._to_mend = False
        checkpoint = None
        if options.resume and folder.has_checkpoint():
            recorded = RunRecord.read(folder.record)
            _refuse_other_run(recorded, record)
        if options.resume and (checkpoint := checkpoint_of(folder)) is not None:
            epoch = checkpoint.content["epoch"]
            if epoch > recorded.epochs:
                raise StartUpRefused(
                    f"{checkpoint.file}: expected a checkpoint of the {recorded.epochs} epochs of {folder.record}, got "
                    f"one of epoch {epoch}; bring back the file as it was, or train again with --overwrite True."
                )
            read_training_csv(folder.training_csv)  # refused now
            self.nothing_to_do = _is_finished(checkpoint.content, record)
            model_is_lost = lost_model(folder, checkpoint) is not None  # refused now
            self._to_mend = model_is_lost or checkpoint.problem is not None
        super().__init__(folder, record, training, validation, options.resume)
        self.metadata = metadata_of_run(metadata, record, summaries.channels)
        # a resumed training has its own weights
        self.pretrained = None if checkpoint is not None else record.pretrained
        if self.pretrained is not None:
            state_dict_of(self.pretrained)  # refused now

    # What MONAI, our check of the command line and help() read, for every option is a keyword.
    __signature__ = inspect.Signature(
        [
            *(p for p in inspect.signature(__init__).parameters.values() if p.kind is p.KEYWORD_ONLY),
            *inspect.signature(TrainingOptions).parameters.values(),
        ]
    )

    def open_run(self) -> None:
        """Make the run folder and write its record; one process of a distributed training does it."""
        wait_for_all_processes()  # what this one changes the others have looked at
        if not is_first_process():
            return
        open_folder("bundle_root (--run)", self.folder.model.parent)
        hold_lock(self.folder.lock)
        refuse_run_folder(self.folder, self.resume, self.overwrite)  # what another process left since
        self.folder.remove_drafts()
        stopped = self.resume and self.folder.stopped_in_first_epoch()
        if stopped:
            self.folder.remove_first_epoch()
        if self.overwrite and not self.resume:
            self.folder.remove_run()
        open_folder("bundle_root (--run)", self.folder.results.root)
        log_to(self.folder.results.log, append=self.resume)
        if self._to_mend:
            mend(self.folder)
        if self.nothing_to_do:
            return
        if self.resume and not self.folder.has_checkpoint():
            begun = stopped or self.folder.record.exists()
            why = "the training there ended before its first checkpoint" if begun else "no training was begun there"
            logger.info(f"Nothing to resume in {self.folder.root}, starting at epoch 1: {why}")
        self.record.write(self.folder.record)
        write_metadata(self.folder, self.metadata)
        write_whole(self.folder.environment, json.dumps(describe_environment(), indent=2) + "\n")
        datalist = {"training": self.training_cases, "validation": self.validation_cases}
        write_whole(self.folder.datalist, json.dumps(datalist, indent=2, ensure_ascii=False) + "\n")
        self._say_what_is_trained()

    def _say_what_is_trained(self) -> None:
        for text in self.passed_over:
            logger.info(f"Passed over: {text}")
        logger.info(
            f"{len(self.training_cases)} training and {len(self.validation_cases)} validation cases"
            f"{f' (and {self.test_cases} of the test, which take no part)' if self.test_cases else ''}, "
            f"{self.record.in_channels} channel(s), "
            f"{'classes' if self.record.regions is None else 'regions'} "
            f"{', '.join(self.record.labels.values() if self.record.regions is None else self.record.regions)}, "
            f"{NETWORKS[self.record.network].title}, patch {' x '.join(map(str, self.record.patch_size))}, "
            f"{self.record.loss}"
            + ("" if self.record.ignore_label is None else f", voxels of label {self.record.ignore_label} left out")
        )
        if self.record.partly_annotated:
            parts = [len(case["annotated"]) < len(self.record.labels) for case in self.training_cases]
            logger.info(
                f"{sum(parts)} of the {len(parts)} training cases annotate a part of the classes: the loss is wrapped "
                "in PartialLabelLoss, and validation measures a class where it is annotated"
            )
        for sentence in self._loss_warnings:
            logger.warning(sentence)
        for wrong, sentence in mirror_remarks(self.record.foreground.values(), self.record.flip_axes):
            logger.log(logging.WARNING if wrong else logging.INFO, sentence)


def _refuse_loss(loss: torch.nn.Module, record: RunRecord, *, check: bool) -> None:
    """Refuse a loss that cannot train the data, by trying it; without `check` only one of regions is tried."""
    if check:
        if record.regions is None:
            refuse_broken_loss(loss, record.num_classes, record.ignore_index)
        refuse_raw_scores(loss)
    if record.head_loss and not needs_maps(loss):
        refuse_whole_scores(loss, record.num_classes)
    if record.regions is not None:
        refuse_loss_of_classes(loss, record.num_classes, record.ignore_index)


def _is_finished(checkpoint: Mapping[str, Any], record: RunRecord) -> bool:
    patience = record.early_stop_patience
    stopped = patience is not None and checkpoint.get("validations_since_best", 0) >= patience
    return stopped or bool(checkpoint["epoch"] >= record.epochs)


def _earlier_run(options: TrainingOptions, folder: RunFolder) -> RunRecord | None:
    """The record of the run whose weights are gone on with, in the folder or beside the weights to start from."""
    file = folder.record
    if not (options.resume and folder.has_checkpoint()):
        if options.pretrained is None:
            return None
        file = Path(options.pretrained).with_name(file.name)
    return RunRecord.read(file) if file.is_file() else None


def _dealt_cases(
    case_list: CaseList, options: TrainingOptions, num_folds: int
) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """Training and validation cases; a limit leaves a case in the part that dataset.json declares."""
    limit = options.limit
    seed = options.seed if options.fold_seed is None else options.fold_seed
    if num_folds == 0 and any(case.validation for case in case_list.cases):
        training, validation = split_cases(case_list.cases, 0, options.fold, seed)
        if limit is not None:
            share = max(round(limit * len(validation) / len(case_list.cases)), 1)
            training, validation = training[: max(limit - share, 0)], validation[:share]
    else:
        cases = [case for case in case_list.cases if not case.validation]
        used = cases[:limit]
        dealt = used if used[0].fold is None else cases
        parts = split_cases(dealt, num_folds, options.fold, seed)
        names = {case.name for case in used}
        training, validation = ([case for case in part if case.name in names] for part in parts)
    if not training or not validation:
        raise DatasetError(
            f"expected training and validation cases among the first {limit or 'ones'} (limit), got {len(training)} "
            f"and {len(validation)} by the folds or lists of dataset.json; raise limit, or let another fold validate."
        )
    return training, validation


def _refuse_unknown_classes(training: Sequence[LabelledCase], case_list: CaseList, *, regions: bool) -> None:
    """Refuse classes that no training case annotates: nothing would tell them from the background."""
    of_regions = case_list.regions if regions else None
    classes = of_regions or {name: (value,) for value, name in case_list.labels.items() if value}
    kinds = {case.annotated for case in training}  # few, also of thousands of cases
    never = [name for name, values in classes.items() if not any(annotates(kind, values) for kind in kinds)]
    if never:
        raise DatasetError(
            f"{case_list.folder}: expected each {'region' if of_regions else 'class'} to be annotated in some training "
            f"case, got none for {first_of(never)}; let another fold validate (--fold), raise --limit, or add cases."
        )


def _refuse_without_region(cases: Sequence[LabelledCase], case_list: CaseList) -> None:
    """Refuse cases of which no region is annotated: it takes all labels of one."""
    regions = (case_list.regions or {}).values()
    without = [case.name for case in cases if not any(case.annotates(*labels) for labels in regions)]
    if without:
        raise DatasetError(
            f"{case_list.folder}: expected a region whose labels are all annotated in each case, got none in "
            f"{named(without)}; leave these cases out, or train on the labels by --regions False."
        )


def _passed_over(case_list: CaseList, num_folds: int) -> tuple[str, ...]:
    """What a training does not read of a data set although it might, a sentence each."""
    apart = sum(case.validation for case in case_list.cases) if num_folds else 0
    return case_list.passed_over + (
        (
            f"{apart} cases set apart to validate, because the others are dealt to {num_folds} folds; "
            "evaluate --split all measures them too.",
        )
        if apart
        else ()
    )


def _refuse_other_run(recorded: RunRecord, now: RunRecord) -> None:
    changes = {name for name, entry in TABLE.items() if entry.changes_on_resume}
    for name in sorted(RunRecord.names(), key=lambda name: name not in _RULING):
        before, after = getattr(recorded, name), getattr(now, name)
        if before != after and name not in changes | _FACTS_THAT_CHANGE_ON_RESUME:
            # automatic for a run that was started before names were looked at
            again = f"give --flip_axes {json.dumps(str(list(before)))}, or " if name == "flip_axes" else ""
            raise StartUpRefused(
                f"Expected {name} {before!r} as in the run to resume, got {after!r}; {again}{_ANOTHER_RUN}."
            )
    options, others = recorded.loss_options or {}, now.loss_options or {}
    if recorded.loss_options is None:
        return
    # another version may have other options
    names = options.keys() | others.keys() if recorded.version == now.version else options.keys() & others.keys()
    for name in sorted(names):
        if options.get(name) != others.get(name):
            raise StartUpRefused(
                f"Expected the option {name} of the loss to be {options.get(name)!r} as in the run to resume, "
                f"got {others.get(name)!r}; {_ANOTHER_RUN}."
            )


def write_metadata(folder: RunFolder, content: Mapping[str, Any]) -> None:
    open_folder("bundle_root (--run)", folder.metadata.parent)
    write_whole(folder.metadata, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def refuse_other_metadata(metadata: Mapping[str, Any], folder: RunFolder, record: RunRecord) -> None:
    """Refuse to export or check a network under the names of other classes."""
    if differs_from_run(metadata, record):
        there = folder.metadata.exists()
        raise StartUpRefused(
            f"Expected the metadata.json of the run in {folder.root}, got one of other channels or classes; give "
            f"--meta_file {shlex.quote(str(folder.metadata))}"
            f"{'' if there else f', which monai-extra-losses evaluate --run {shlex.quote(str(folder.root))} writes'}."
        )
