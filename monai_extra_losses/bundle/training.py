"""The set-up of a training: its options, data and folder, checked before any time is spent."""

import dataclasses
import json
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from monai_extra_losses.bundle.components import half_precision, half_precision_option
from monai_extra_losses.bundle.ignored_voxels import check_ignore_index
from monai_extra_losses.bundle.loss_facts import loss_name, loss_options
from monai_extra_losses.bundle.loss_trial import (
    leave_out_ignored,
    refuse_broken_loss,
    refuse_loss_of_classes,
    refuse_raw_scores,
    weight_ramps,
)
from monai_extra_losses.bundle.options import (
    file_or_folder,
    literal,
    numbers_per_axis,
    positive_number,
    whole_number,
    window,
    yes_or_no,
)
from monai_extra_losses.bundle.processes import is_first_process, refuse_machinery, refuse_processes
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
    absolute_path,
    axes_of,
    cases_of,
    problems_as_refusal,
    refuse_run_folder,
)
from monai_extra_losses.bundle.tensor_files import refuse_changed
from monai_extra_losses.bundle.volume_cache import cache_kind
from monai_extra_losses.bundle.weights import read_checkpoint, state_dict_of
from monai_extra_losses.data.checks import check_cases, refuse_empty_labels
from monai_extra_losses.data.datalist import CaseList, LabelledCase, count_folds, split_cases
from monai_extra_losses.data.errors import DatasetError, StartUpRefused
from monai_extra_losses.data.geometry import automatic_patch
from monai_extra_losses.data.sides import automatic_flips, mirror_remarks
from monai_extra_losses.data.storage import write_whole

logger = logging.getLogger(__name__)


_CHANGE_ON_RESUME = {
    "version",
    "dataset_dir",
    "original_labels",
    "epochs",
    "val_interval",
    "early_stop_patience",
    "amp",
    "cache",
    "cache_dir",
    "loss_options",  # compared one by one
}


_ANOTHER_RUN = "choose another --bundle_root (--run on the short command line) for another training"


class TrainingSetUp(RunSetUp):
    """Options, data and folder of a training, checked.

    Args:
        dataset_dir: folder with dataset.json, or imagesTr/ and labelsTr/.
        bundle_root: the run folder.
        loss: the loss to train with.
        num_folds: folds that the cases are dealt to, of which one validates; None: as dataset.json deals them; else
            none where its `validation` sets cases apart, which then validate; else 5. A number given deals the others,
            and those set apart take no part.
        fold: the fold that validates.
        seed: deals the folds and seeds the training.
        limit: use the first `limit` cases only (for a quick look), of those set apart a share; None for all.
        patch_size: voxels per axis, each a multiple of what the U-Net halves; None: the median volume, rounded down
            to a multiple of 16 and kept within 16 and 96.
        pixdim: voxel spacing in mm to resample to; None keeps each volume's own.
        regions: segment the data set's overlapping regions, where it declares some, instead of its labels.
        channels: the U-Net's channels per level.
        num_res_units: residual units per level.
        epochs, val_interval, batch_size, learning_rate: of the training.
        early_stop_patience: validations in a row without a better mean Dice after which to stop; None: never.
        loss_weights: part of a compound loss -> ramp of its weight over the epochs (`schedules.WeightRamp`); None keeps
            the weights.
        flip_axes: body axes (0, 1, 2) along which patches are mirrored at random; None: left and right, unless a name
            of a class is of one side (`data.sides`).
        hu_window: intensities to clip to and scale to 0..1, for CT; None: each channel's own mean and deviation.
        pretrained: file of weights to start from; None: random ones.
        cache: where prepared volumes are kept, "memory", "disk" or "none".
        cache_dir: folder for "disk"; None: `<bundle_root>/cache`.
        amp, device: half precision and where, see `half_precision`.
        num_workers: loader processes.
        resume: go on from the last checkpoint.
        overwrite: delete the run that is in the folder.
        check_loss: try the loss on a few voxels; False for a network that gives probabilities itself.
        metadata: the bundle's metadata.json, of which the run gets its own; None: that of this package.

    Raises:
        StartUpRefused: the first option, folder or data set that cannot work; all problems of a data set at once.
    """

    def __init__(
        self,
        *,
        dataset_dir: Any,
        bundle_root: Any,
        loss: torch.nn.Module,
        num_folds: Any,
        fold: Any,
        seed: Any,
        limit: Any,
        patch_size: Any,
        pixdim: Any,
        channels: Any,
        num_res_units: Any,
        epochs: Any,
        val_interval: Any,
        batch_size: Any,
        learning_rate: Any,
        resume: Any,
        overwrite: Any,
        loss_weights: Any = None,
        regions: Any = True,
        early_stop_patience: Any = None,
        flip_axes: Any = None,
        amp: Any = None,
        device: Any = None,
        hu_window: Any = None,
        pretrained: Any = None,
        cache: Any = "memory",
        cache_dir: Any = None,
        num_workers: Any = 0,
        check_loss: Any = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        refuse_machinery(device, num_workers)
        step = 2 ** (len(levels := _levels(channels)) - 1)
        chosen: dict[str, Any] = {
            "pixdim": numbers_per_axis("pixdim", pixdim, example="[1, 1, 2.5]"),
            "channels": levels,
            "num_res_units": whole_number("num_res_units", num_res_units, least=0),
            "num_folds": None if literal(num_folds) is None else whole_number("num_folds", num_folds, least=0),
            "fold": whole_number("fold", fold, least=0),
            "seed": whole_number("seed", seed, least=0),
            "limit": _whole_number_or_none("limit", limit),
            "early_stop_patience": _whole_number_or_none("early_stop_patience", early_stop_patience),
            "cache": cache_kind(cache),
            "cache_dir": absolute_path("cache_dir", cache_dir),
            "hu_window": window("hu_window", hu_window, example="[-175, 250]"),
            "pretrained": absolute_path("pretrained", pretrained),
            "amp": half_precision_option(amp),
            "epochs": whole_number("epochs", epochs, least=1),
            "val_interval": whole_number("val_interval", val_interval, least=1),
            "batch_size": whole_number("batch_size", batch_size, least=1),
            "learning_rate": positive_number("learning_rate", learning_rate),
            "loss_weights": weight_ramps(loss, loss_weights),
        }
        patch = _given_patch(patch_size, step)
        flips = _given_flips(flip_axes)
        half_precision(amp, "cpu" if device is None else device)  # refused now
        with_regions = yes_or_no("regions", regions)
        going_on = yes_or_no("resume", resume)
        self.overwrite = yes_or_no("overwrite", overwrite)
        folder = RunFolder(file_or_folder("bundle_root", bundle_root))
        refuse_run_folder(folder, going_on, self.overwrite)
        if chosen["cache"] == "disk" and chosen["cache_dir"] is not None:
            refuse_unwritable("cache_dir", Path(chosen["cache_dir"]))
        case_list = cases_of(dataset_dir)
        if folder.root.resolve() == case_list.folder.resolve():
            raise StartUpRefused(
                f"Expected bundle_root (--run) to be another folder than that of the data set, got {folder.root} for "
                "both; choose a folder in it or beside it."
            )
        with problems_as_refusal():
            chosen["num_folds"] = count_folds(case_list.cases, chosen["num_folds"])
            training, validation = _dealt_cases(case_list, chosen)
            refuse_processes(training=training, validation=validation)
            self.passed_over = _passed_over(case_list, chosen["num_folds"])
            self.test_cases = len(case_list.unlabelled)
            used = tuple(sorted((*training, *validation), key=lambda case: case.name))
            case_list = dataclasses.replace(case_list, cases=used, unlabelled=())
            summaries = check_cases(case_list)
            refuse_empty_labels(case_list.folder, summaries)
        record = RunRecord(
            labels=summaries.labels,
            in_channels=len(summaries.channels),
            patch_size=patch or automatic_patch(summaries.cases, chosen["pixdim"], step),
            loss=loss_name(loss),
            regions=case_list.regions if with_regions else None,
            dataset_dir=str(case_list.folder.absolute()),
            original_labels=case_list.original_labels,
            training=tuple(case.name for case in training),
            validation=tuple(case.name for case in validation),
            ignore_label=case_list.ignore_label,
            **chosen,
        )
        leave_out_ignored(loss, record)
        record = dataclasses.replace(
            record,
            loss_options=loss_options(loss),
            flip_axes=automatic_flips(record.foreground.values()) if flips is None else flips,
        )
        self._loss_warnings = check_ignore_index(loss, record)
        if yes_or_no("check_loss", check_loss):
            if record.regions is None:
                refuse_broken_loss(loss, record.num_classes, record.ignore_index)
            refuse_raw_scores(loss)
        if record.regions is not None:
            refuse_loss_of_classes(loss, record.num_classes, record.ignore_index)
        self.nothing_to_do = False
        if continued := going_on and folder.last.exists():
            recorded, checkpoint = RunRecord.read(folder.record), read_checkpoint(folder.last)
            _refuse_other_run(recorded, record)
            if checkpoint["epoch"] > recorded.epochs:
                raise StartUpRefused(
                    f"{folder.last}: expected a checkpoint of the {recorded.epochs} epochs of {folder.record}, got one "
                    f"of epoch {checkpoint['epoch']}; bring back the file as it was, or train again with --overwrite "
                    "True."
                )
            read_training_csv(folder.training_csv)  # refused now
            self.nothing_to_do = _is_finished(checkpoint, record)
            if folder.model.exists():
                refuse_changed(folder.model, "bring back that of this run, or train again with --overwrite True")
                state_dict_of(folder.model, folder.model.name)  # refused now
        super().__init__(folder, record, training, validation, going_on)
        self.metadata = metadata_of_run(metadata, record, summaries.channels)
        # a resumed training has its own weights
        self.pretrained = None if continued else record.pretrained
        if self.pretrained is not None:
            state_dict_of(self.pretrained)  # refused now

    def open_run(self) -> None:
        """Make the run folder and write its record; one process of a distributed training does it."""
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
        if self.nothing_to_do:
            return
        if self.resume and not self.folder.last.exists():
            begun = stopped or self.folder.record.exists()
            why = "the training there ended before its first checkpoint" if begun else "no training was begun there"
            logger.info(f"Nothing to resume in {self.folder.root}, starting at epoch 1: {why}")
        self.record.write(self.folder.record)
        write_metadata(self.folder, self.metadata)
        write_whole(self.folder.environment, json.dumps(describe_environment(), indent=2) + "\n")
        datalist = {"training": self.training_cases, "validation": self.validation_cases}
        write_whole(self.folder.datalist, json.dumps(datalist, indent=2, ensure_ascii=False) + "\n")
        for text in self.passed_over:
            logger.info(f"Passed over: {text}")
        logger.info(
            f"{len(self.training_cases)} training and {len(self.validation_cases)} validation cases"
            f"{f' (and {self.test_cases} of the test, which take no part)' if self.test_cases else ''}, "
            f"{self.record.in_channels} channel(s), "
            f"{'classes' if self.record.regions is None else 'regions'} "
            f"{', '.join(self.record.labels.values() if self.record.regions is None else self.record.regions)}, "
            f"patch {' x '.join(map(str, self.record.patch_size))}, {self.record.loss}"
            + ("" if self.record.ignore_label is None else f", voxels of label {self.record.ignore_label} left out")
        )
        for sentence in self._loss_warnings:
            logger.warning(sentence)
        for wrong, sentence in mirror_remarks(self.record.foreground.values(), self.record.flip_axes):
            logger.log(logging.WARNING if wrong else logging.INFO, sentence)


def _given_flips(flip_axes: Any) -> tuple[int, ...] | None:
    """Axes in order, or None for the automatic ones."""
    given = literal(flip_axes)
    if given is None or given is False:
        return None if given is None else ()
    return tuple(sorted(axes_of("flip_axes", "null, False", given)))


def _whole_number_or_none(name: str, value: Any) -> int | None:
    return None if literal(value) is None else whole_number(name, value, least=1)


def _levels(channels: Any) -> tuple[int, ...]:
    given = literal(channels)
    if not isinstance(given, list | tuple) or len(given) < 2:
        raise StartUpRefused(
            f'Expected channels to be two numbers or more such as "[16, 32, 64, 128]", got {channels!r}.'
        )
    return tuple(whole_number("channels", number, least=1) for number in given)


def _is_finished(checkpoint: Mapping[str, Any], record: RunRecord) -> bool:
    patience = record.early_stop_patience
    stopped = patience is not None and checkpoint.get("validations_since_best", 0) >= patience
    return stopped or checkpoint["epoch"] >= record.epochs


def _given_patch(patch_size: Any, step: int) -> tuple[int, int, int] | None:
    numbers = numbers_per_axis("patch_size", patch_size, example="[96, 96, 32]")
    if numbers is None:
        return None
    # instance norm needs two voxels at the lowest level
    if any(n % step or n < 2 * step for n in numbers):
        raise StartUpRefused(
            f"Expected patch_size to be multiples of {step} (the U-Net halves volumes that often) of at least "
            f"{2 * step}, got {patch_size!r}."
        )
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def _dealt_cases(case_list: CaseList, chosen: Mapping[str, Any]) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """Training and validation cases; a limit leaves a case in the part that dataset.json declares."""
    limit = chosen["limit"]
    if chosen["num_folds"] == 0 and any(case.validation for case in case_list.cases):
        training, validation = split_cases(case_list.cases, 0, chosen["fold"], chosen["seed"])
        if limit is not None:
            share = max(round(limit * len(validation) / len(case_list.cases)), 1)
            training, validation = training[: max(limit - share, 0)], validation[:share]
    else:
        cases = [case for case in case_list.cases if not case.validation]
        used = cases[:limit]
        dealt = used if used[0].fold is None else cases
        parts = split_cases(dealt, chosen["num_folds"], chosen["fold"], chosen["seed"])
        names = {case.name for case in used}
        training, validation = ([case for case in part if case.name in names] for part in parts)
    if not training or not validation:
        raise DatasetError(
            f"expected training and validation cases among the first {limit or 'ones'} (limit), got {len(training)} "
            f"and {len(validation)} by the folds or lists of dataset.json; raise limit, or let another fold validate."
        )
    return training, validation


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
    for field in dataclasses.fields(RunRecord):
        before, after = getattr(recorded, field.name), getattr(now, field.name)
        if before != after and field.name not in _CHANGE_ON_RESUME:
            # automatic for a run that was started before names were looked at
            again = f"give --flip_axes {json.dumps(str(list(before)))}, or " if field.name == "flip_axes" else ""
            raise StartUpRefused(
                f"Expected {field.name} {before!r} as in the run to resume, got {after!r}; {again}{_ANOTHER_RUN}."
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
