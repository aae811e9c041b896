"""What the bundle's configs call by `_target_`: one set-up per workflow, and small components.

A set-up object is the first thing each workflow builds. It takes the options as the command line gives them (text or
numbers), types and checks each one, and refuses with one sentence before any time is spent. Building it reads and
never writes, so that a workflow may build it twice.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import pickle
import re
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ignite.distributed as idist
import numpy as np
import torch
from monai.networks.utils import copy_model_state
from monai.transforms import AsDiscreted, MapTransform, NormalizeIntensityd, ScaleIntensityRanged

from monai_extra_losses.data.checks import CaseSummaries, check_cases, refuse_empty_labels
from monai_extra_losses.data.datalist import (
    CaseList,
    LabelledCase,
    count_folds,
    declared_ignore_label,
    declares_regions,
    read_case_list,
    split_cases,
)
from monai_extra_losses.data.errors import CasesFailed, DatasetError, StartUpRefused
from monai_extra_losses.data.geometry import LARGEST_AUTOMATIC_PATCH, automatic_patch
from monai_extra_losses.data.inputs import find_inputs, input_stamp, refuse_unlike
from monai_extra_losses.data.remarks import remark_sentences
from monai_extra_losses.data.sides import AXES_OF_MIRRORS, automatic_flips, bound_to_direction, listed, mirror_remarks
from monai_extra_losses.data.storage import remove_drafts
from monai_extra_losses.data.volume_cache import cache_kind
from monai_extra_losses.engines import AnnotatedVoxelLoss, LossWithMaps
from monai_extra_losses.file_content import short, typed
from monai_extra_losses.ignored_voxels import check_ignore_index, counts_ignored, leave_out, needs_maps
from monai_extra_losses.loss_facts import loss_name, loss_options, parts_of, score_reading
from monai_extra_losses.options import (
    as_given,
    file_or_folder,
    file_or_folder_or_none,
    literal,
    numbers_per_axis,
    positive_number,
    whole_number,
    window,
    yes_or_no,
)
from monai_extra_losses.run_folder import (
    ResultsFolder,
    RunFolder,
    RunRecord,
    describe_environment,
    hold_lock,
    log_to,
    longest_name,
    open_folder,
    read_training_csv,
    refuse_unwritable,
    release_lock,
    write_whole,
)
from monai_extra_losses.run_metadata import differs_from_run, metadata_of_run
from monai_extra_losses.schedules import LossWeightSchedule
from monai_extra_losses.segmentation_record import SegmentationRecord, open_unfinished
from monai_extra_losses.tensor_files import damage, not_finite, refuse_changed, sha256

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


# what is in last.pt
_CHECKPOINT: dict[str, Any] = {
    "epoch": int,
    "best_metric": float,
    "best_metric_epoch": int,
    "validations_since_best": int,
    "network": dict[str, Any],
    "loss": dict[str, Any],
    "optimizer": dict[str, Any],
    "lr_scheduler": dict[str, Any],
    "scaler": dict[str, Any],
}
_ADDED_LATER = ("validations_since_best", "scaler")

# what torch.load raises of bytes that are no file of its own
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
)
_ANOTHER_RUN = "choose another --bundle_root (--run on the short command line) for another training"


class RunSetUp:
    """What the training configs ask of a set-up, whether it starts a run or evaluates one.

    Args:
        folder: of the run.
        record: of the run.
        training, validation: cases.
        resume: go on from the last checkpoint.
    """

    def __init__(
        self,
        folder: RunFolder,
        record: RunRecord,
        training: Sequence[LabelledCase],
        validation: Sequence[LabelledCase],
        resume: bool = False,
    ) -> None:
        self.folder = folder
        self.record = record
        self.training_cases = [_item(case) for case in training]
        self.validation_cases = [_item(case) for case in validation]
        self.resume = resume
        self.cache_dir = Path(record.cache_dir or folder.cache)
        self.is_first_process = is_first_process()
        self.show_progress = self.is_first_process and sys.stderr.isatty()


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
            "cache_dir": _absolute("cache_dir", cache_dir),
            "hu_window": window("hu_window", hu_window, example="[-175, 250]"),
            "pretrained": _absolute("pretrained", pretrained),
            "amp": _half_precision_option(amp),
            "epochs": whole_number("epochs", epochs, least=1),
            "val_interval": whole_number("val_interval", val_interval, least=1),
            "batch_size": whole_number("batch_size", batch_size, least=1),
            "learning_rate": positive_number("learning_rate", learning_rate),
            "loss_weights": _weight_ramps(loss, loss_weights),
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
        case_list = _cases_of(dataset_dir)
        if folder.root.resolve() == case_list.folder.resolve():
            raise StartUpRefused(
                f"Expected bundle_root (--run) to be another folder than that of the data set, got {folder.root} for "
                "both; choose a folder in it or beside it."
            )
        with _problems_as_refusal():
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
        _leave_out_ignored(loss, record)
        record = dataclasses.replace(
            record,
            loss_options=loss_options(loss),
            flip_axes=automatic_flips(record.foreground.values()) if flips is None else flips,
        )
        self._loss_warnings = check_ignore_index(loss, record)
        if yes_or_no("check_loss", check_loss):
            if record.regions is None:
                _refuse_broken_loss(loss, record.num_classes, record.ignore_index)
            _refuse_raw_scores(loss)
        if record.regions is not None:
            _refuse_loss_of_classes(loss, record.num_classes, record.ignore_index)
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
                _state_dict_of(folder.model, folder.model.name)  # refused now
        super().__init__(folder, record, training, validation, going_on)
        self.metadata = metadata_of_run(metadata, record, summaries.channels)
        # a resumed training has its own weights
        self.pretrained = None if continued else record.pretrained
        if self.pretrained is not None:
            _state_dict_of(self.pretrained)  # refused now

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
        _write_metadata(self.folder, self.metadata)
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
        overlays: Any = True,
        device: Any = None,
        num_workers: Any = 0,
    ) -> None:
        refuse_machinery(device, num_workers)
        folder = RunFolder(file_or_folder("bundle_root", bundle_root))
        record = RunRecord.read(folder.record)
        self.model_file = _trained_weights(model_file, folder)
        self.surface_tolerance_mm = positive_number("surface_tolerance_mm", surface_tolerance_mm)
        self.overlays = yes_or_no("overlays", overlays)
        self.results = ResultsFolder(file_or_folder_or_none("output_dir", output_dir) or folder.results.root)
        refuse_unwritable("output_dir", self.results.root)
        if self.results.cases_csv.exists() and not yes_or_no("overwrite", overwrite):
            raise StartUpRefused(
                f"{self.results.cases_csv} exists; replace it by --overwrite True, or choose another --output_dir."
            )
        _state_dict_of(self.model_file, "model_file")  # refused now
        case_list = _cases_of(Path(record.dataset_dir) if dataset_dir is None else dataset_dir)
        chosen = _chosen_cases(case_list, split, record)
        refuse_processes(evaluated=chosen)
        with _problems_as_refusal():
            summaries = check_cases(dataclasses.replace(case_list, cases=chosen, unlabelled=()))
        _refuse_other_data(summaries, record, case_list.folder)
        # the data say which voxels are not annotated: those of another folder may have another value for it
        record = dataclasses.replace(record, ignore_label=case_list.ignore_label)
        # the training cases are for MONAI's property check alone, which builds the training part of the configs too
        training = [case for case in case_list.cases if case.name in record.training]
        super().__init__(folder, record, training, chosen)
        self.metadata = metadata_of_run(None, record, summaries.channels)

    def open_results(self) -> None:
        """Make the folder of the results, without those of an earlier evaluation."""
        if is_first_process():
            if not self.folder.metadata.exists():  # of an earlier version
                _write_metadata(self.folder, self.metadata)
            open_folder("output_dir", self.results.root)
            rule = "a folder that no other evaluation writes to"
            hold_lock(self.results.lock, folder=self.results.root, rule=rule, option="--output_dir")
            self.results.remove()
            self.results.remove_drafts()
            log_to(self.results.log, append=True)

    def close_results(self) -> None:
        """Let other processes evaluate into the folder."""
        release_lock(self.results.lock)


class InferenceSetUp:
    """A trained run and the volumes to segment, checked.

    Args:
        bundle_root: the run folder. Without a run in it the values of `metadata` hold (for export and checks).
        metadata: the bundle's metadata.json.
        input: a file, a folder of files, or DICOM series, as `data.inputs.find_inputs` says; None when nothing is to be
            segmented.
        output_dir: folder of the segmentations; None for `<bundle_root>/segmentations`.
        model_file: weights; None for `<bundle_root>/models/model.pt`.
        series: picks a series of each DICOM folder; None where each holds one.
        channel_files: whether NAME_0000, NAME_0001, ... are channels of NAME, or else cases; None: cases where the
            network has one channel and the training's cases have such names, else as `find_inputs` says.
        test_time_flips: axes (0, 1, 2) of the flips to average over; True for all three, but those that exchange what
            names of classes tell apart (`data.sides`).
        probabilities: write them too.
        restore_labels: write the label ids that the data set had before `prepare` gave it others.
        stitch_on: "cpu" or "device"; None: as `inference.CaseInferer` says.
        amp: half precision, as `half_precision` takes it.
        window: further options of the sliding window that change the result.
        overwrite: make anew what `output_dir` has of another model, other options or another image.
        device, num_workers: where the network computes, and loader processes.

    Raises:
        StartUpRefused: an option that cannot work, no trained run, no volume that could be segmented, or two volumes of
            one name; without `overwrite`, a segmentation that is there and was made of something else. A volume among
            others that cannot be segmented is in `failures`.
    """

    def __init__(
        self,
        *,
        bundle_root: Any,
        metadata: Mapping[str, Any],
        input: Any = None,
        output_dir: Any = None,
        model_file: Any = None,
        series: Any = None,
        channel_files: Any = None,
        test_time_flips: Any = False,
        probabilities: Any = False,
        restore_labels: Any = True,
        stitch_on: Any = None,
        amp: Any = None,
        window: Mapping[str, Any] | None = None,
        overwrite: Any = False,
        device: Any = None,
        num_workers: Any = 0,
    ) -> None:
        refuse_machinery(device, num_workers)
        flips = _flipped_axes(test_time_flips)
        self.probabilities = yes_or_no("probabilities", probabilities)
        self.stitch_on = literal(stitch_on)
        if self.stitch_on not in (None, "cpu", "device"):
            raise StartUpRefused(f'Expected stitch_on to be "cpu", "device" or null, got {stitch_on!r}.')
        self.series = None if series is None else as_given("series", str(series))
        self.folder = RunFolder(file_or_folder("bundle_root", bundle_root))
        trained = input is not None or self.folder.record.exists()
        self.record = RunRecord.read(self.folder.record) if trained else _record_from_metadata(metadata)
        self.flips, self._about_flips = _flips_that_names_allow(flips, literal(test_time_flips) is True, self.record)
        self.written_labels = _written_labels(self.record, yes_or_no("restore_labels", restore_labels))
        self.output_dir = file_or_folder_or_none("output_dir", output_dir) or self.folder.root / "segmentations"
        self.failures: dict[str, str] = {}
        self._to_do: list[dict[str, Any]] = []
        self._finished: list[str] = []
        self._remarks: tuple[str, ...] = ()
        self.passed_over: tuple[str, ...] = ()
        self._model_file = model_file
        self.made_of: dict[str, dict[str, Any]] = {}
        self.overwrite = yes_or_no("overwrite", overwrite)
        self.unfinished = self.output_dir / f".unfinished-{secrets.token_hex(4)}"
        if input is None:
            if trained:
                _refuse_other_metadata(metadata, self.folder, self.record)
            if trained and (model_file is not None or self.folder.model.exists()):
                _state_dict_of(self.model_file, "model_file")  # an export reads it without a look at its checksum
            return
        _state_dict_of(self.model_file, "model_file")  # refused now
        model = sha256(self.model_file)
        precision = literal(amp)
        options = {
            "test_time_flips": sorted(self.flips),
            "labels": self.written_labels,
            "series": self.series,
            "amp": self.record.amp if precision is None else precision,
            **(window or {}),
            "pixdim": self.record.pixdim,
            "hu_window": self.record.hu_window,
            "patch_size": self.record.patch_size,
        }
        options = json.loads(json.dumps(options, default=str))  # as the record has them
        refuse_unwritable("output_dir", self.output_dir)
        source = file_or_folder("input", input)
        own = ("_seg", "_prob") if self.output_dir.resolve() == source.resolve() else ()
        with _problems_as_refusal():
            found = find_inputs(
                source,
                self.record.in_channels,
                channel_files=self._channel_files(channel_files),
                leave_out=own,
                results=self.output_dir,
            )
        self.passed_over = found.passed_over
        recorded = SegmentationRecord(self.output_dir)
        others: list[str] = []
        longest = longest_name(self.output_dir)
        remarks: dict[Path, tuple[str, ...]] = {}
        for name, files in found.cases.items():
            if (size := max(len(os.fsencode(file)) for file in self.files_of(name))) > longest:
                self.failures[name] = (
                    f"{files[0]}: expected a shorter name, got {len(os.fsencode(name))} bytes, with which that of a "
                    f"result would have {size}, and {longest} are the most in {self.output_dir}; rename it."
                )
                continue
            made_of = self.made_of[name] = {"model": model, "options": options, "input": input_stamp(files)}
            there = [file for file in self.files_of(name) if (self.output_dir / file).exists()]
            other = recorded.difference(name, made_of, there) if there else None
            if other is not None and not self.overwrite:
                others.append(
                    f"{self.output_dir / there[0]} to be of this model, these options and this image, got {other}"
                )
            if there == self.files_of(name) and other is None:
                self._finished.append(name)
                continue
            try:
                remarks |= refuse_unlike(files, self.record.in_channels, self.series)
                self._to_do.append({"image": [str(file) for file in files], "case": name})
            except DatasetError as error:
                self.failures[name] = str(error)
        if others:
            more = f" (and {len(others) - 1} more such)" if len(others) > 1 else ""
            raise StartUpRefused(
                f"Expected {others[0]}{more}; make it anew with --overwrite True, or give another --output."
            )
        if not self._to_do and not self._finished:
            self.refuse_failures()
        self._remarks = remark_sentences(remarks)

    @property
    def model_file(self) -> str:
        """The weights to load; refused when there are none."""
        return _trained_weights(self._model_file, self.folder)

    @property
    def dtype(self) -> type:
        """The smallest type that holds every label value written."""
        least, most = min(self.written_labels), max(self.written_labels)
        types = (np.uint8, np.uint16, np.int16, np.int32, np.int64)
        return next(t for t in types if np.iinfo(t).min <= least and most <= np.iinfo(t).max)

    def _channel_files(self, given: Any) -> bool | None:
        if literal(given) is not None:
            return yes_or_no("channel_files", given)
        numbered = any(re.fullmatch(r".+_\d{4}", name) for name in (*self.record.training, *self.record.validation))
        return False if numbered and self.record.in_channels == 1 else None

    def files_of(self, case: str) -> list[str]:
        """Names of the files that a case gets."""
        return [f"{case}_seg.nii.gz", *([f"{case}_prob.nii.gz"] if self.probabilities else [])]

    def open_output(self) -> None:
        """Make the output folder, and in it `unfinished`; what a killed run left half written goes."""
        remove_drafts(self.output_dir / ".segmentations.json")
        open_folder("output_dir", self.output_dir)
        open_unfinished(self.unfinished)
        for sentence in self._about_flips:
            logger.warning(sentence)

    def items_to_do(self) -> list[dict[str, Any]]:
        """The cases that are not finished; how many are is said, what is passed over and what headers leave open."""
        for text in self.passed_over:
            logger.info(f"Passed over: {text}")
        for remark in self._remarks:
            logger.warning(remark)
        if self._finished:
            named = f"{', '.join(self._finished[:3])}{', ...' if len(self._finished) > 3 else ''}"
            logger.info(f"{len(self._finished)} case(s) skipped, finished in {self.output_dir}: {named}")
        return self._to_do

    def refuse_failures(self, failures: Mapping[str, str] | None = None) -> None:
        """End with the cases that could not be segmented, if there are any.

        Args:
            failures: case -> sentence, of the inference.

        Raises:
            StartUpRefused: no case could be segmented, and none was before.
            CasesFailed: some could not.
        """
        failed = {**self.failures, **(failures or {})}
        if not failed:
            return
        count = len(self._to_do) + len(self._finished) + len(self.failures)
        heading = [] if count == 1 else [f"{len(failed)} of {count} cases could not be segmented:"]
        text = "\n".join(
            [*heading, *(sentence if count == 1 else f"  {case}: {sentence}" for case, sentence in failed.items())]
        )
        raise StartUpRefused(text) if failures is None else CasesFailed(text)


def refuse_run_folder(folder: RunFolder, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or that holds a run which is neither to go on nor to be replaced."""
    refuse_unwritable("bundle_root (--run)", folder.root)
    found = folder.existing_run()
    if resume and found and not folder.last.exists() and not folder.stopped_in_first_epoch():
        raise StartUpRefused(f"Expected {folder.last} to resume from, got none; train again with --overwrite True.")
    if found and not resume and not overwrite:
        raise StartUpRefused(
            f"{folder.root} already holds a run ({found.relative_to(folder.root)}); go on with it by --resume True, "
            "replace it by --overwrite True, or choose another --bundle_root (--run on the short command line)."
        )


def refuse_machinery(device: Any, num_workers: Any) -> None:
    """Refuse a device that this machine does not have, and a number of loader processes that is none."""
    whole_number("num_workers", num_workers, least=0)
    if device is None:
        return
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        raise StartUpRefused(f"Expected device to be a device such as cpu, cuda or cuda:1, got {device!r}.") from None
    if wanted.type == "cuda" and (wanted.index or 0) >= (count := torch.cuda.device_count()):
        found = f"torch finds {count} GPU{'s' * (count > 1)}" if count else "torch finds no GPU"
        raise StartUpRefused(
            f"Expected device to be one that this machine has, got {str(wanted)!r}; {found}"
            f"{', from cuda:0 on' if count else ', so leave the option away or give cpu'}."
        )


def _flipped_axes(test_time_flips: Any) -> tuple[int, ...]:
    given = literal(test_time_flips)
    if given is None or isinstance(given, bool):
        return (0, 1, 2) if given else ()
    return _axes("test_time_flips", "True, False", given)


def _given_flips(flip_axes: Any) -> tuple[int, ...] | None:
    """Axes in order, or None for the automatic ones."""
    given = literal(flip_axes)
    if given is None or given is False:
        return None if given is None else ()
    return tuple(sorted(_axes("flip_axes", "null, False", given)))


def _axes(name: str, others: str, given: Any) -> tuple[int, ...]:
    axes = list(given) if isinstance(given, list | tuple) else [given]
    known = all(isinstance(axis, int) and not isinstance(axis, bool) and axis in (0, 1, 2) for axis in axes)
    if not known or len(set(axes)) != len(axes):
        raise StartUpRefused(
            f'Expected {name} to be {others} or axes among 0, 1 and 2 such as "[0, 1]", got {given!r}.'
        )
    return tuple(axes)


def _flips_that_names_allow(
    flips: tuple[int, ...], automatic: bool, record: RunRecord
) -> tuple[tuple[int, ...], list[str]]:
    """The flips at test time, without those that names speak against where they were not asked for; and what to say."""
    said, left = [], []
    for axis in flips:
        bound = bound_to_direction(record.foreground.values(), axis)
        if bound and automatic:
            said.append(
                f"test_time_flips leaves axis {axis} out: a mirror image exchanges {AXES_OF_MIRRORS[axis]}, and so the "
                f"look of {listed(bound)}."
            )
            left.append(axis)
        elif bound:
            said.append(
                f"test_time_flips averages over mirror images that exchange {AXES_OF_MIRRORS[axis]}, and so over the "
                f"looks of {listed(bound)}: leave axis {axis} out."
            )
    return tuple(axis for axis in flips if axis not in left), said


def _written_labels(record: RunRecord, restore: bool) -> list[int]:
    """The value to write for each label value of the run."""
    written = [record.original_labels.get(value, value) if restore else value for value in record.labels]
    doubled = sorted({value for value in written if written.count(value) > 1})
    if doubled:
        names = [name for value, name in zip(written, record.labels.values(), strict=True) if value == doubled[0]]
        raise StartUpRefused(
            f"Expected original label ids that differ, got {doubled[0]} for {' and '.join(names)}; "
            "write those of the training by --restore_labels False."
        )
    return written


def _whole_number_or_none(name: str, value: Any) -> int | None:
    return None if literal(value) is None else whole_number(name, value, least=1)


def _absolute(name: str, value: Any) -> str | None:
    path = file_or_folder_or_none(name, value)
    return None if path is None else os.path.abspath(path)


def _levels(channels: Any) -> tuple[int, ...]:
    given = literal(channels)
    if not isinstance(given, list | tuple) or len(given) < 2:
        raise StartUpRefused(
            f'Expected channels to be two numbers or more such as "[16, 32, 64, 128]", got {channels!r}.'
        )
    return tuple(whole_number("channels", number, least=1) for number in given)


def _weight_ramps(loss: torch.nn.Module, loss_weights: Any) -> dict[str, Any] | None:
    given = literal(loss_weights)
    if not given:
        return None
    if not isinstance(given, Mapping):
        raise StartUpRefused(
            "Expected loss_weights to be ramps of the parts of a compound loss such as "
            f'{{"boundary": {{"start": 0.01, "end": 1.0}}}}, got {loss_weights!r}.'
        )
    try:
        return LossWeightSchedule(loss, given).state_dict()["ramps"]
    except (TypeError, ValueError) as error:
        raise StartUpRefused(f"loss_weights: {error}") from None


def _leave_out_ignored(loss: torch.nn.Module, record: RunRecord) -> None:
    declared = None if record.ignore_label is None else (record.ignore_label, cast(int, record.ignore_index))
    leave_out(loss, declared, multi_label=record.regions is not None)


def _refuse_broken_loss(loss: torch.nn.Module, num_classes: int, ignore_index: int | None) -> None:
    """Refuse a loss that fails on the scores and the label map of a few voxels, or does not leave ignored ones out."""
    if needs_maps(loss):
        return
    device = _device_of(loss)
    scores = torch.randn(1, num_classes, 16, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    label = (torch.arange(16**3, device=device) * num_classes // 16**3).reshape(1, 1, 16, 16, 16).float()
    expected = f"a loss of {num_classes} classes and a label map"
    if ignore_index is not None:
        label[..., :4] = ignore_index
        expected += f" whose voxels without annotation are {ignore_index}"
    try:
        with torch.no_grad():
            loss(scores, label)
        counts = ignore_index is not None and counts_ignored(loss, scores, label, label == ignore_index)
    except (ValueError, TypeError, RuntimeError, IndexError, AssertionError) as error:
        raise StartUpRefused(
            f"Expected {expected}, got {type(loss).__name__}, which fails on "
            f"them ({_first_line(error)}); look at its options."
        ) from None
    if counts:
        raise StartUpRefused(
            f"Expected {expected} and left out, got {type(loss).__name__}, which counts them; "
            "choose a loss with an ignore_index, such as those of this package."
        )


def _refuse_raw_scores(loss: torch.nn.Module) -> None:
    """Refuse a loss of probabilities without an activation, for the network gives raw scores."""
    for _, part in parts_of(loss):
        reading = score_reading(part)
        if reading is not None and reading.activation is None and not reading.raw:
            raise StartUpRefused(
                f"Expected a loss that reads raw scores, got {type(part).__name__} without an activation, which takes "
                f"them for probabilities; set {reading.softmax_option}: true, or sigmoid: true for regions (a network "
                "that gives probabilities itself needs --setup::check_loss False)."
            )


def _device_of(loss: torch.nn.Module) -> torch.device:
    """Where the class weights of a loss are, say."""
    tensor = next(itertools.chain(loss.parameters(), loss.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _is_finished(checkpoint: Mapping[str, Any], record: RunRecord) -> bool:
    patience = record.early_stop_patience
    stopped = patience is not None and checkpoint.get("validations_since_best", 0) >= patience
    return stopped or checkpoint["epoch"] >= record.epochs


def _refuse_loss_of_classes(loss: torch.nn.Module, num_regions: int, ignore_index: int | None) -> None:
    """Refuse a loss that cannot train regions, by trying it on nested balls."""
    generator = torch.Generator().manual_seed(0)
    device = _device_of(loss)
    scores = torch.randn(1, num_regions, 16, 16, 16, generator=generator).to(device)
    from_centre = torch.stack(torch.meshgrid([torch.arange(-7.5, 8)] * 3, indexing="ij")).norm(dim=0)
    radii = torch.linspace(7, 3, num_regions)
    regions = (from_centre < radii[:, None, None, None])[None].byte().to(device)
    name = type(loss).__name__
    advice = "choose a loss such as dice_ce, dice, tversky or focal, or train on the labels by --regions False"
    counts = False
    try:
        if ignore_index is not None:
            loss = AnnotatedVoxelLoss(loss, ignore_index)
            target = regions.int()
            target[..., :6] = ignore_index
            counts = counts_ignored(loss, scores, target, target[:, :1] == ignore_index)
        before, raised = loss(scores, regions), loss(scores + 1, regions)
        each = [loss(scores.index_fill(1, torch.tensor([c], device=device), 0.0), regions) for c in range(num_regions)]
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise StartUpRefused(
            f"Expected a loss that takes overlapping regions, got {name} ({_first_line(error)}); {advice}."
        ) from None
    # Where only differences between channels count, a voxel of all regions is like one of none.
    if torch.isclose(before, raised, rtol=1e-6):
        raise StartUpRefused(
            f"Expected a loss that takes overlapping regions, got {name}, in which the channels exclude each other; "
            f"{advice}."
        )
    if counts:
        raise StartUpRefused(
            f"Expected a loss that leaves masked voxels out, got {name}, which counts them; "
            f"{advice.partition(', or')[0]}."
        )
    if any(torch.equal(before, value) for value in each):
        raise StartUpRefused(
            f"Expected a loss of every region, got {name}, which leaves one out; "
            "regions have no background, so set include_background to True."
        )


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


def _cases_of(dataset_dir: Any) -> CaseList:
    if dataset_dir is None:
        raise StartUpRefused(
            "Expected --dataset_dir (--data on the short command line), got none; "
            "give the folder with dataset.json, or with imagesTr/ and labelsTr/."
        )
    with _problems_as_refusal():
        return read_case_list(str(file_or_folder("dataset_dir", dataset_dir)))


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


@contextlib.contextmanager
def _problems_as_refusal() -> Iterator[None]:
    """Turns the problems of a data set into the text that ends the program."""
    try:
        yield
    except DatasetError as error:
        raise StartUpRefused(str(error)) from None


def _item(case: LabelledCase) -> dict[str, Any]:
    return {"case": case.name, "image": [str(file) for file in case.image], "label": str(case.label)}


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


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The content of last.pt; another or a damaged one is refused with a sentence."""
    train_again = "train again with --overwrite True"
    refuse_changed(file, f"bring back that of this run, or {train_again}")
    content = _content_of(file, file.name, train_again)
    problem = None if isinstance(content, dict) else f"{type(content).__name__} content"
    for name, hint in _CHECKPOINT.items():
        if problem is None:
            problem = _problem_of(name, hint, content)
    if problem is None and content["epoch"] < 1:
        problem = f"epoch {short(content['epoch'])}"
    if problem is not None:
        raise StartUpRefused(
            f"{file}: expected a checkpoint of a training, got {problem}; bring back the file as it was, or "
            f"{train_again}."
        )
    _refuse_not_finite(content["network"], file, file.name, train_again)
    return content


def _problem_of(name: str, hint: Any, content: Mapping[str, Any]) -> str | None:
    if name not in content:
        return None if name in _ADDED_LATER else f"none of its {name}"
    try:
        typed(hint, content[name])
    except TypeError as error:
        return f"a value of another type: {name} should be {error}"
    return None


def _content_of(file: str | Path, name: str, hint: str) -> Any:
    try:
        if (problem := damage(file)) is not None:
            raise StartUpRefused(
                f"Expected {name} to be a whole file, got {file}, which is damaged: {problem}; {hint}."
            )
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise StartUpRefused(f"Expected {name} to be a file of weights, got {file}, which does not exist.") from None
    except _UNREADABLE as error:
        raise StartUpRefused(
            f"Expected {name} to be a file of tensors alone, got {file}, which torch does not load with "
            f"weights_only=True ({_first_line(error)}); {hint}."
        ) from None


def _state_dict_of(file: str | Path, name: str = "pretrained") -> dict[str, torch.Tensor]:
    """The tensors of a file of weights: a state dict, or a checkpoint that holds one; also of a parallel network."""
    hint = "save a state dict" if name == "pretrained" else "give another file or train again"
    content = _content_of(file, name, hint)
    for key in ("network", "state_dict", "model", "model_state_dict"):  # last.pt, and what others call it
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = content.items() if isinstance(content, Mapping) else ()
    state = {str(name).removeprefix("module."): value for name, value in tensors if isinstance(value, torch.Tensor)}
    _refuse_not_finite(state, file, name, "give another file")
    return state


def _refuse_not_finite(tensors: Mapping[str, Any], file: str | Path, name: str, hint: str) -> None:
    broken = not_finite(tensors)
    if broken:
        raise StartUpRefused(
            f"Expected {name} to hold finite numbers, got {file} with NaN or infinity in {len(broken)} of "
            f"{len(tensors)} tensors ({broken[0]} the first); {hint}."
        )


def _trained_weights(model_file: Any, folder: RunFolder) -> str:
    path = file_or_folder_or_none("model_file", model_file) or folder.model
    if not path.is_file():
        raise StartUpRefused(f"Expected trained weights in {path}, got no such file; train first.")
    if model_file is None:
        refuse_changed(path, f"bring back that of this run, or name weights of your own as such: --model_file {path}")
    return str(path)


def _write_metadata(folder: RunFolder, content: Mapping[str, Any]) -> None:
    open_folder("bundle_root (--run)", folder.metadata.parent)
    write_whole(folder.metadata, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _refuse_other_metadata(metadata: Mapping[str, Any], folder: RunFolder, record: RunRecord) -> None:
    """Refuse to export or check a network under the names of other classes."""
    if differs_from_run(metadata, record):
        there = folder.metadata.exists()
        raise StartUpRefused(
            f"Expected the metadata.json of the run in {folder.root}, got one of other channels or classes; give "
            f"--meta_file {shlex.quote(str(folder.metadata))}"
            f"{'' if there else f', which monai-extra-losses evaluate --run {shlex.quote(str(folder.root))} writes'}."
        )


def _record_from_metadata(metadata: Mapping[str, Any]) -> RunRecord:
    """The values of metadata.json, for exports and checks without a run."""
    formats = metadata["network_data_format"]
    names = formats["outputs"]["pred"]["channel_def"]
    return RunRecord(
        labels={int(value): name for value, name in names.items()},
        in_channels=formats["inputs"]["image"]["num_channels"],
        patch_size=(LARGEST_AUTOMATIC_PATCH,) * 3,
        pixdim=None,
        channels=(16, 32, 64, 128),
        num_res_units=2,
        loss="",
        dataset_dir="",
        num_folds=0,
        fold=0,
        seed=0,
        limit=None,
        training=(),
        validation=(),
        epochs=0,
        val_interval=1,
        batch_size=1,
        learning_rate=0.0,
    )


def is_first_process() -> bool:
    """Whether this process writes files: rank 0 of a distributed training, or the only process."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def device_of_process() -> torch.device:
    """The GPU of this process in a distributed run, or the CPU.

    Raises:
        StartUpRefused: more processes on this machine than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= count:
        raise StartUpRefused(
            f"Expected a GPU for each process, got {count} for {index + 1} processes or more on this machine; start "
            "fewer (--nproc_per_node), or give --device cpu."
        )
    return torch.device("cuda", index)


def join_processes(device: Any) -> None:
    """Join the processes that torchrun started; NCCL between GPUs, gloo between CPU processes.

    Args:
        device: of this process, or "cpu".

    Raises:
        StartUpRefused: torchrun did not start this process, or one GPU is given for several.
    """
    refuse_machinery(device, 0)
    device = torch.device(device)
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing and not torch.distributed.is_initialized():
        raise StartUpRefused(
            f"Expected a process that torchrun started, got one without {missing[0]} in its environment; start it by "
            "torchrun, or leave multi_gpu_*.yaml away."
        )
    if device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1 and device != device_of_process():
        raise StartUpRefused(
            f"Expected a GPU for each process, got {str(device)!r} for all; leave --device away, and each process "
            "takes one, or give cpu."
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend="nccl" if device.type == "cuda" else "gloo")
    # ignite makes a process group when first asked for a rank. All processes must do that together: a handler that is
    # built on rank 0 alone would wait for the others for ever.
    idist.sync()


def refuse_processes(**cases: Sequence[Any]) -> None:
    """Refuse processes that would have no case, and several that nobody joined.

    Args:
        cases: what they are for -> the cases.
    """
    distributed = torch.distributed
    joined = distributed.is_available() and distributed.is_initialized()
    started = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if started > 1 and not joined:
        raise StartUpRefused(
            f"Expected one process, got {started} by torchrun; add configs/multi_gpu_train.yaml (for an evaluation "
            "multi_gpu_evaluate.yaml) to the config files, or start without torchrun."
        )
    count = distributed.get_world_size() if joined else 1
    for purpose, chosen in cases.items():
        if len(chosen) < count:
            raise StartUpRefused(
                f"Expected at least a {purpose} case for each of the {count} processes, got {len(chosen)}; start fewer "
                "(--nproc_per_node)."
            )


def has_regions(dataset_dir: Any, regions: Any) -> bool:
    """Whether the data set's regions are to be segmented; the loss asks, which is built before the data are read."""
    if not yes_or_no("regions", regions) or dataset_dir is None:
        return False
    return declares_regions(str(file_or_folder("dataset_dir", dataset_dir)))


def decision(keys: str, regions: Mapping[str, Any] | None) -> AsDiscreted:
    """The transform from scores to the best class per voxel, or with regions to those of probability 0.5 and more."""
    if regions is None:
        return AsDiscreted(keys=keys, argmax=True)
    return AsDiscreted(keys=keys, threshold=0.0)  # sigmoid(0) = 0.5


def half_precision(amp: Any, device: Any, recorded: str | None = None) -> torch.dtype | None:
    """The 16-bit type that the network computes in, or None.

    Args:
        amp: "fp16" (or True), "bf16" or False; None: as the run was trained where the device can, else fp16 on a GPU.
        device: of the network. A CPU computes in bf16 only.
        recorded: `RunRecord.amp` of the run.

    Raises:
        StartUpRefused: another value, or a type that the device cannot compute in.
    """
    chosen = _half_precision_option(amp)
    on_gpu = torch.device(device).type == "cuda"
    if chosen == "fp16" and not on_gpu:
        raise StartUpRefused(f"Expected amp to be bf16, False or null on a CPU, got {amp!r}; fp16 needs a GPU.")
    if chosen == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise StartUpRefused(f"Expected amp to be fp16 or False, got {amp!r}; this GPU has no bf16.")
    chosen = chosen or recorded or "fp16"
    if chosen == "fp16":
        return torch.float16 if on_gpu else None
    return torch.bfloat16 if chosen == "bf16" else None


def _half_precision_option(amp: Any) -> str | None:
    """The option amp as recorded: "fp16", "bf16", "off", or None for automatic."""
    known = {"none": None, "null": None, "fp16": "fp16", "true": "fp16", "bf16": "bf16", "false": "off"}
    name = str(amp).strip().lower()
    if name not in known:
        raise StartUpRefused(f"Expected amp to be fp16, bf16, True, False or null, got {amp!r}.")
    return known[name]


def loss_for_training(
    loss: Any, device: torch.device, maps: Sequence[str] = (), dataset_dir: Any = None, regions: Any = False
) -> torch.nn.Module:
    """The chosen loss with its buffers (class weights, say) on the device, which no engine does by itself.

    Args:
        loss: as the config gives it.
        device: of the training.
        maps: names of maps that come with the label (`engines.PrepareBatchMaps`), for a loss that takes them.
        dataset_dir, regions: whose ignore label the loss leaves out, as `TrainingSetUp` takes them; the loss is built
            before the data are read.

    Raises:
        StartUpRefused: what is no loss, or does not take the maps.
    """
    if not isinstance(loss, torch.nn.Module):
        raise StartUpRefused(
            f"Expected loss to be a component or a reference such as @losses::tversky, got {loss!r}; "
            "configs/losses.yaml must be among the config files for a reference."
        )
    multi_label = has_regions(dataset_dir, regions)
    declared = None if dataset_dir is None else declared_ignore_label(str(dataset_dir), multi_label)
    leave_out(loss, declared, multi_label=multi_label)
    try:
        if declared is not None and multi_label:
            loss = AnnotatedVoxelLoss(loss, declared[1], maps)
        elif maps:
            loss = LossWithMaps(loss, maps)
    except TypeError as error:
        raise StartUpRefused(str(error)) from None
    return loss.to(device)


def trainable_parameters(modules: Sequence[torch.nn.Module]) -> list[torch.nn.Parameter]:
    """Parameters for the optimizer, of the network and of a loss that learns some."""
    return [parameter for module in modules for parameter in module.parameters()]


def intensity_scaling(keys: str, hu_window: Sequence[float] | None) -> MapTransform:
    """The transform of intensities: to 0..1 from a window, as for CT; or each channel of each image by itself."""
    if hu_window is None:
        return NormalizeIntensityd(keys=keys, channel_wise=True)
    low, high = hu_window
    return ScaleIntensityRanged(keys=keys, a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)


def network_at_start(network: torch.nn.Module, pretrained: str | None, device: torch.device) -> torch.nn.Module:
    """The network on the device, with the tensors of a file of weights that fit: other classes or channels do not."""
    if pretrained is not None:
        names = network.state_dict().keys()
        _, loaded, left = copy_model_state(network, _state_dict_of(pretrained))
        if not loaded:
            raise StartUpRefused(
                f"Expected pretrained to be weights of this network, got {pretrained}, none of whose tensors fits the "
                f"{len(names)} of the network; give the channels and num_res_units of the training that made them."
            )
        if is_first_process():
            logger.info(
                f"Starting from {len(loaded)} of {len(names)} tensors of {pretrained}"
                + (f"; random are {', '.join(left)}" if left else "")
            )
    return network.to(device)


def with_weights(network: torch.nn.Module, model_file: str, device: torch.device) -> torch.nn.Module:
    """The network with trained weights, on the device."""
    state = _state_dict_of(model_file, "model_file")
    try:
        network.load_state_dict(state)
    except RuntimeError:
        _, loaded, unchanged = copy_model_state(network, state, inplace=False)
        raise StartUpRefused(
            f"{model_file}: expected weights of this network, got others ({len(loaded)} of "
            f"{len(loaded) + len(unchanged)} tensors fit); pass the network options of the training."
        ) from None
    return network.to(device)
