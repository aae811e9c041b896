"""The set-up of an inference: a trained run, and the volumes to segment."""

import functools
import json
import logging
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monai_extra_losses.bundle.dicom_segmentation import DicomSegmentation
from monai_extra_losses.bundle.ensemble import further_members
from monai_extra_losses.bundle.hysteresis import hysteresis_option
from monai_extra_losses.bundle.measurements import Measurements
from monai_extra_losses.bundle.options import (
    as_given,
    file_or_folder,
    file_or_folder_or_none,
    flipped_axes,
    literal,
    output_types,
    yes_or_no,
)
from monai_extra_losses.bundle.processes import refuse_machinery
from monai_extra_losses.bundle.run_folder import RunFolder, longest_name, open_folder, refuse_unwritable
from monai_extra_losses.bundle.run_metadata import channel_names
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.run_setup import problems_as_refusal
from monai_extra_losses.bundle.segmentation_files import WritesCase
from monai_extra_losses.bundle.segmentation_record import SegmentationRecord, open_unfinished
from monai_extra_losses.bundle.training import refuse_other_metadata
from monai_extra_losses.bundle.volumes_to_segment import find_inputs, input_stamp, refuse_unlike
from monai_extra_losses.bundle.weights import state_dict_of, trained_weights
from monai_extra_losses.data.errors import CasesFailed, DatasetError, StartUpRefused
from monai_extra_losses.data.geometry import LARGEST_AUTOMATIC_PATCH
from monai_extra_losses.data.remarks import remark_sentences
from monai_extra_losses.data.sides import AXES_OF_MIRRORS, bound_to_direction, listed
from monai_extra_losses.data.storage import remove_drafts, sha256

logger = logging.getLogger(__name__)

# Endings of the names of results.
_RESULTS = ("_seg", "_prob", "_uncertainty", "_seg.dcm", "_measurements.json")


class InferenceSetUp:
    """A trained run and the volumes to segment, checked.

    Args:
        bundle_root: the run folder. Without a run in it the values of `metadata` hold (for export and checks).
        metadata: the bundle's metadata.json.
        input: a file, a folder of files, or DICOM series, as `data.inputs.find_inputs` says; None when nothing is to be
            segmented.
        output_dir: folder of the segmentations; None for `<bundle_root>/segmentations`.
        ensemble: further run folders, a list, or a pattern of them, whose probabilities are averaged with those of the
            first; None: there are none.
        uncertainty: write the disagreement of an ensemble too, see `MeanOverRunsd`.
        model_file: weights; None for `<bundle_root>/models/model.pt`.
        series: picks a series of each DICOM folder; None where each holds one.
        channel_files: whether NAME_0000, NAME_0001, ... are channels of NAME, or else cases; None: cases where the
            network has one channel and the training's cases have such names, else as `find_inputs` says.
        test_time_flips: axes (0, 1, 2) of the flips to average over; True for all three, but those that exchange what
            names of classes tell apart (`data.sides`).
        hysteresis: low and high threshold of the decision, see `HysteresisKeep`; None for one of 0.5.
        probabilities: write them too.
        output_type: what to write beside: `dicom_seg`, an object of each DICOM series (`DicomSegmentation`),
            `measurements` (`Measurements`), or both.
        restore_labels: write the label ids that the data set had before `prepare` gave it others.
        stitch_on: "cpu" or "device"; None: as `inference.CaseInferer` says.
        amp: half precision, as `half_precision` takes it.
        window: further options of the sliding window that change the result.
        overwrite: replace what `output_dir` has of another model, other options or another image.
        device, num_workers: where the network computes, and loader processes.

    Raises:
        StartUpRefused: an option that cannot work, no trained run, runs that do not fit each other, no volume that
            could be segmented, or two volumes of one name; without `overwrite`, a segmentation that is there and was
            made of something else. A volume among others that cannot be segmented is in `failures`.
    """

    def __init__(
        self,
        *,
        bundle_root: Any,
        metadata: Mapping[str, Any],
        input: Any = None,
        output_dir: Any = None,
        ensemble: Any = None,
        uncertainty: Any = False,
        model_file: Any = None,
        series: Any = None,
        channel_files: Any = None,
        test_time_flips: Any = False,
        hysteresis: Any = None,
        probabilities: Any = False,
        output_type: Any = None,
        restore_labels: Any = True,
        stitch_on: Any = None,
        amp: Any = None,
        window: Mapping[str, Any] | None = None,
        overwrite: Any = False,
        device: Any = None,
        num_workers: Any = 0,
    ) -> None:
        refuse_machinery(device, num_workers)
        flips = flipped_axes(test_time_flips)
        self.hysteresis = hysteresis_option("hysteresis", hysteresis)
        self.probabilities = yes_or_no("probabilities", probabilities)
        self.output_types = output_types("output_type", output_type)
        self.stitch_on = literal(stitch_on)
        if self.stitch_on not in (None, "cpu", "device"):
            raise StartUpRefused(f'Expected stitch_on to be "cpu", "device" or null, got {stitch_on!r}.')
        self.series = None if series is None else as_given("series", str(series))
        self.folder = RunFolder(file_or_folder("bundle_root", bundle_root))
        trained = input is not None or ensemble is not None or self.folder.record.exists()
        self.record = RunRecord.read(self.folder.record) if trained else _record_from_metadata(metadata)
        self.flips, self._about_flips = _flips_that_names_allow(flips, literal(test_time_flips) is True, self.record)
        restored = yes_or_no("restore_labels", restore_labels)
        self.written_labels = _written_labels(self.record, restored)
        self.further_members = further_members(ensemble, self.folder, self.record, restored)
        self.uncertainty = yes_or_no("uncertainty", uncertainty)
        self._refuse_without_ensemble(model_file)
        self.output_dir = file_or_folder_or_none("output_dir", output_dir) or self.folder.root / "segmentations"
        self.failures: dict[str, str] = {}
        self._files: dict[str, tuple[Path, ...]] = {}
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
                refuse_other_metadata(metadata, self.folder, self.record)
            if trained and (model_file is not None or self.folder.model.exists()):
                state_dict_of(self.model_file, "model_file")  # an export reads it without a look at its checksum
            return
        state_dict_of(self.model_file, "model_file")  # refused now
        precision = literal(amp)
        options: dict[str, Any] = {
            "test_time_flips": sorted(self.flips),
            "hysteresis": self.hysteresis,
            "labels": self.written_labels,
            "series": self.series,
            "amp": self.record.amp if precision is None else precision,
            **(window or {}),
            "pixdim": self.record.pixdim,
            "hu_window": self.record.hu_window,
            "patch_size": self.record.patch_size,
        }
        model: Any = sha256(self.model_file)
        if self.further_members:
            # in an order of their own, for the mean does not depend on that of the runs
            each = [(model, self.record), *((sha256(one.model_file), one.record) for one in self.further_members)]
            each.sort(key=lambda pair: pair[0])
            model = [of_one for of_one, _ in each]
            options["patch_size"] = [record.patch_size for _, record in each]
            if precision is None:
                options["amp"] = [record.amp for _, record in each]
        options = json.loads(json.dumps(options, default=str))  # as the record has them
        refuse_unwritable("output_dir", self.output_dir)
        source = file_or_folder("input", input)
        own = _RESULTS if self.output_dir.resolve() == source.resolve() else ()
        with problems_as_refusal():
            found = find_inputs(
                source,
                self.record.in_channels,
                channel_files=self._channel_files(channel_files),
                leave_out=own,
                results=self.output_dir,
            )
        self.passed_over = found.passed_over
        self._sort_cases(found.cases, {"model": model, "options": options})

    def _sort_cases(self, cases: Mapping[str, tuple[Path, ...]], made_with: Mapping[str, Any]) -> None:
        """Cases to do, finished ones and failures."""
        recorded = SegmentationRecord(self.output_dir)
        others: list[str] = []
        longest = longest_name(self.output_dir)
        remarks: dict[Path, tuple[str, ...]] = {}
        self._files |= cases
        for name, files in cases.items():
            if (size := max(len(os.fsencode(file)) for file in self.files_of(name))) > longest:
                self.failures[name] = (
                    f"{files[0]}: expected a shorter name, got {len(os.fsencode(name))} bytes, with which that of a "
                    f"result would have {size}, and {longest} are the most in {self.output_dir}; rename it."
                )
                continue
            made_of = self.made_of[name] = {**made_with, "input": input_stamp(files)}
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
                if "dicom_seg" in self.output_types and not any(path.is_dir() for path in files):
                    raise DatasetError(
                        f"{files[0]}: expected a DICOM series for the DICOM SEG of --output_type, got another file; "
                        "give the folder of the series, or leave dicom_seg out."
                    )
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
        return trained_weights(self._model_file, self.folder)

    @property
    def dtype(self) -> type:
        """The smallest type that holds every label value written."""
        least, most = min(self.written_labels), max(self.written_labels)
        types = (np.uint8, np.uint16, np.int16, np.int32, np.int64)
        return next(t for t in types if np.iinfo(t).min <= least and most <= np.iinfo(t).max)

    def _refuse_without_ensemble(self, model_file: Any) -> None:
        if self.uncertainty and not self.further_members:
            raise StartUpRefused(
                "Expected several runs with uncertainty, which is how far they disagree, got one; name more by --run "
                "(ensemble in a config)."
            )
        if self.further_members and model_file is not None:
            raise StartUpRefused(
                f"Expected no model_file with several runs, each of which has its own, got {model_file}; leave it out."
            )

    def _channel_files(self, given: Any) -> bool | None:
        if literal(given) is not None:
            return yes_or_no("channel_files", given)
        numbered = any(re.fullmatch(r".+_\d{4}", name) for name in (*self.record.training, *self.record.validation))
        return False if numbered and self.record.in_channels == 1 else None

    def files_of(self, case: str) -> list[str]:
        """Names of the files that a case gets."""
        asked_for = {"seg": True, "prob": self.probabilities, "uncertainty": self.uncertainty}
        volumes = [f"{ending}.nii.gz" for ending, is_asked in asked_for.items() if is_asked]
        return [f"{case}_{ending}" for ending in (*volumes, *self.further_files)]

    @functools.cached_property
    def further_files(self) -> dict[str, WritesCase]:
        """Ending of the name of a further file that each case gets -> what makes it."""
        shared: dict[str, Any] = {"cases": self._files, "series": self.series, "classes": self.written_classes}
        segments, made_of = self.record.segments, self.made_of
        channels = channel_names(self.folder.metadata) or ()
        if len(channels) != self.record.in_channels:
            channels = [f"channel_{number}" for number in range(self.record.in_channels)]
        known: dict[str, dict[str, WritesCase]] = {
            "dicom_seg": {"seg.dcm": DicomSegmentation(**shared, segments=segments, made_of=made_of)},
            "measurements": {"measurements.json": Measurements(**shared, channels=channels, made_of=made_of)},
        }
        return {ending: writes for kind in self.output_types for ending, writes in known[kind].items()}

    @property
    def written_classes(self) -> dict[str, tuple[int, ...]]:
        """Name of each class but the background, or of each region -> its values in the label map."""
        written = dict(zip(self.record.labels, self.written_labels, strict=True))
        regions = self.record.regions or {name: (value,) for value, name in self.record.labels.items() if value}
        return {name: tuple(written[value] for value in values) for name, values in regions.items()}

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
