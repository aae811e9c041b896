"""Make a data set for training out of images and labels of any format.

Everything is checked before the first file is written: names, headers, grids, every voxel of images and labels.
"""

import dataclasses
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from tqdm import tqdm

from monai_extra_losses.data.annotation import annotates
from monai_extra_losses.data.case_sources import CheckedCase, check_case, label_on_grid
from monai_extra_losses.data.datalist import deal_folds
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import first_of
from monai_extra_losses.data.label_ids import renumber
from monai_extra_losses.data.label_plan import LabelPlan, plan_labels
from monai_extra_losses.data.layouts import CASE, LABEL, find_files, patterns_of
from monai_extra_losses.data.manifest import (
    PARTS,
    CaseRecord,
    Manifest,
    Stamp,
    finished_cases,
    refuse_foreign_files,
    refuse_other_options,
    remove_unfinished,
    write_json,
    write_through,
)
from monai_extra_losses.data.pairing import SourceCase, cases_to_segment, other_files, pairs_and_problems
from monai_extra_losses.data.remarks import remark_sentences
from monai_extra_losses.data.storage import storage_sentence
from monai_extra_losses.data.volume_source import VolumeGrid, VolumeSource
from monai_extra_losses.versions import version_of

_PACKAGES = ("monai-extra-losses", "SimpleITK", "nibabel", "pydicom", "numpy")
_SECONDS_BETWEEN_RECORDS = 5.0

_Item = TypeVar("_Item", bound=SourceCase | CheckedCase)
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What determines the data set that `prepare_dataset` makes.

    Args:
        images, labels: folders, paired as `pair_by_name` says, or patterns of files, as `layouts.patterns_of` says.
        test_images: folder or patterns of images without labels, or None.
        series: picks the DICOM series of each image, as `open_volume` says; None where each folder holds one.
        resample_labels: bring a label on another grid onto that of its image, with nearest neighbours; else refuse it.
        remap: label id of the sources -> id in the data set; other ids stay.
        ignore_label: id in the data set of voxels without annotation, which dataset.json declares; None: no id is.
        names: id in the data set -> name; the others are `background` and `label_1`, `label_2`, ...
        channels: names of the image channels such as CT; empty: `channel_0`, ...
        num_folds: folds that the cases are dealt to; 0 deals none.
        seed: deals them.
        group_by: pattern that finds the patient in the name of a case (its first group, else all it matches); a
            patient's cases are in one fold. None: each case is a patient.
        annotated: ids in the data set of the classes that every case annotates; those that `names` has need no voxel.
            None: all.
        organ_masks: take a structure without a mask file for not annotated in that case, and one whose mask is empty
            for absent. `labels` is a pattern with `{label}` then.
    """

    images: Path
    labels: Path
    test_images: Path | None = None
    series: str | None = None
    resample_labels: bool = False
    remap: dict[int, int] = dataclasses.field(default_factory=dict)
    names: dict[int, str] = dataclasses.field(default_factory=dict)
    channels: tuple[str, ...] = ()
    num_folds: int = 5
    seed: int = 0
    group_by: str | None = None
    ignore_label: int | None = None
    annotated: tuple[int, ...] | None = None
    organ_masks: bool = False

    def as_json(self) -> dict[str, Any]:
        """The options as JSON has them."""
        folders = ("images", "labels", "test_images")
        return {
            **dataclasses.asdict(self),
            **{name: ",".join(_places(path)) if (path := getattr(self, name)) else None for name in folders},
            "remap": {str(old): new for old, new in sorted(self.remap.items())},
            "names": {str(value): name for value, name in sorted(self.names.items())},
            "channels": list(self.channels),
            # null is what a manifest means that was written before there were these options
            "annotated": None if self.annotated is None else list(self.annotated),
            "organ_masks": self.organ_masks or None,
        }


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """What `prepare_dataset` has made.

    Args:
        folder: of the data set.
        cases: records of the labelled cases.
        unlabelled: records of the cases to segment.
        written: cases written by this call; an earlier one wrote the others.
        labels: id -> name.
        notes: what a person should know of how it was made, a sentence each.
        ignore_label: id of voxels without annotation, or None.
        annotated: ids of the classes that every case annotates; None: all, or as the record of the case says.
    """

    folder: Path
    cases: tuple[CaseRecord, ...]
    unlabelled: tuple[CaseRecord, ...]
    written: int
    labels: dict[int, str]
    notes: tuple[str, ...] = ()
    ignore_label: int | None = None
    annotated: tuple[int, ...] | None = None

    @property
    def trains_alone(self) -> bool:
        """Whether some case annotates each class, so that no other data set is needed."""
        return annotates(self.annotated, self.labels)

    @property
    def voxels(self) -> dict[int, int]:
        """Label id -> voxels in all cases."""
        return {value: self._count(value) for value in self.labels}

    def _count(self, value: int) -> int:
        return sum(case.label_voxels.get(str(value), 0) for case in self.cases)

    @property
    def fold_sizes(self) -> tuple[int, ...]:
        """Cases per fold; empty without folds."""
        sizes = Counter(case.fold for case in self.cases if case.fold is not None)
        return tuple(sizes[fold] for fold in sorted(sizes))

    def summary(self) -> str:
        """What a person wants to know of it, in a few lines."""
        there = len(self.cases) + len(self.unlabelled) - self.written
        lines = [
            f"{self.folder}: {len(self.cases)} labelled cases"
            + (f" and {len(self.unlabelled)} to segment" if self.unlabelled else "")
            + (f", {there} of them written by an earlier call" if there else ""),
            "",
            f"{'label':>5}  {'voxels':>12}  {'cases':>5}  name",
        ]
        ignored = {} if self.ignore_label is None else {self.ignore_label: "(without annotation)"}
        for value, name in (self.labels | ignored).items():
            cases = sum(str(value) in case.label_voxels for case in self.cases)
            lines.append(f"{value:>5}  {self._count(value):>12}  {cases:>5}  {name}")
        lines.append("")
        if resampled := [case.name for case in self.cases if case.resampled]:
            lines.append(f"{len(resampled)} labels resampled onto the grid of their image: {', '.join(resampled)}")
        lines += self.notes
        patients = len({case.group for case in self.cases})
        if self.fold_sizes:
            whole = f"; {patients} patients, each in one fold" if patients < len(self.cases) else ""
            lines.append(f"folds of {', '.join(map(str, self.fold_sizes))} cases{whole}")
        return "\n".join(lines)


def prepare_dataset(
    options: PrepareOptions,
    out: str | Path,
    *,
    overwrite: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> PreparedDataset:
    """Write a data set in the layout of the Medical Segmentation Decathlon, as `read_case_list` reads it.

    Volumes become .nii.gz files on their own grids, with their values and voxel type; labels get the smallest unsigned
    type. dataset.json lists them, with a fold per case, and manifest.json records what each was made of. A second
    call with the same options goes on where the first was stopped.

    Args:
        options: what is read, and what is made of it.
        out: folder of the data set: new, empty, or of an earlier call.
        overwrite: delete the files that an earlier call wrote there, and begin again.
        num_workers: threads, each one case at a time; default: one per core, at most 8.
        progress: show a bar (on a terminal only).

    Raises:
        DatasetError: all problems of all files at once, each with the file's name, and nothing is written: names
            without partner, and of the files that pair up those that are cut off, are no volume, lie on another grid,
            or hold NaN or infinity. An image that changes between this check and the writing is named at the end: the
            other cases are written, and dataset.json is not.
    """
    out = Path(out)
    try:
        return _prepare(options, out, overwrite, num_workers or min(os.cpu_count() or 1, 8), progress)
    except OSError as error:
        raise DatasetError(
            storage_sentence(error, out)
            or f"{error.filename or out}: expected to read or write it, got an error ({error.strerror or error})."
        ) from error


def _prepare(options: PrepareOptions, out: Path, overwrite: bool, workers: int, progress: bool) -> PreparedDataset:
    _refuse_annotation(options)
    _refuse_overlap(options, out)
    pattern = _compiled(options.group_by)
    earlier = Manifest.read(out)
    if earlier is not None and not overwrite:
        refuse_other_options(out, options.as_json(), earlier)
    cases, problems = pairs_and_problems(options.images, options.labels)
    unlabelled: tuple[SourceCase, ...] = ()
    groups: dict[str, str] = {}
    folds: dict[str, int] = {}
    try:
        groups = _groups(cases, pattern)
        folds = {} if problems else _folds(groups, options)
    except DatasetError as error:
        problems += error.problems
    try:
        if options.test_images is not None:
            unlabelled = cases_to_segment(options.test_images, cases)
    except DatasetError as error:
        problems += error.problems
    read: list[CheckedCase] = []
    everything = (*cases, *unlabelled)
    check = partial(check_case, series=options.series, resample_labels=options.resample_labels)
    for result in _in_parallel(check, everything, "reading", workers, progress):
        if isinstance(result, DatasetError):
            problems += result.problems
        else:
            read.append(result)
    problems += _channel_problems(read, options.channels)
    if problems:
        raise DatasetError(problems)

    plan = plan_labels(read, options.remap, options.names, options.ignore_label, options.annotated, options.organ_masks)
    planned = Manifest(
        options=options.as_json(),
        versions={package: version_of(package) for package in _PACKAGES},
        cases=tuple(_planned(case, groups.get(case.name, ""), folds.get(case.name), plan) for case in read),
    )
    refuse_foreign_files(out, planned, earlier)
    if overwrite and earlier is not None:
        earlier.remove_outputs(out)
        earlier = None
    finished = finished_cases(out, planned, earlier)
    records = _write_cases(out, planned, read, finished, plan.new_ids, workers, progress)

    channels = options.channels or tuple(f"channel_{i}" for i in range(len(read[0].images)))
    labelled, to_segment = records[: len(cases)], records[len(cases) :]
    content = _dataset_json(out, labelled, to_segment, plan, channels)
    if options.ignore_label is not None:
        content["ignore_label"] = options.ignore_label
    stamp = write_through(out, "dataset.json", lambda draft: write_json(draft, content))
    dataclasses.replace(planned, cases=records, dataset_json=stamp).write(out)
    remove_unfinished(out)
    folders = [folder for folder in (options.images, options.labels, options.test_images) if folder is not None]
    passed_over = [f"passed over: {text}" for text in other_files(folders)]
    remarks = remark_sentences({path: found for case in read for path, found in case.remarks.items()})
    notes = (*plan.notes, *_left_out(labelled), *remarks, *passed_over)
    written = len(records) - len(finished)
    return PreparedDataset(out, labelled, to_segment, written, plan.labels, notes, options.ignore_label, plan.annotated)


def _refuse_annotation(options: PrepareOptions) -> None:
    if not options.organ_masks:
        return
    if options.annotated is not None:
        raise DatasetError(
            "expected --annotated, for all cases, or --organ-masks, for each by its files, got both; leave one out."
        )
    if LABEL not in ",".join(patterns_of(options.labels)):
        raise DatasetError(
            f"expected a pattern with {CASE} and {LABEL} for the masks, a file each, got {options.labels}; correct it."
        )


def _refuse_overlap(options: PrepareOptions, out: Path) -> None:
    written = out.resolve()
    for source in (options.images, options.labels, options.test_images):
        if source is None:
            continue
        parts = [written / part for part in PARTS]
        if patterns := patterns_of(source):
            found = [file.path.resolve() for pattern in patterns for file in find_files(pattern)]
            overlaps = any(written in (file, *file.parents) or file in written.parents for file in found)
        else:
            folder = source.resolve()
            overlaps = folder == written or folder in written.parents
            overlaps = overlaps or any(part in (folder, *folder.parents) for part in parts)
        if overlaps:
            raise DatasetError(
                f"expected a folder for the data set apart from its sources, got {out}, which would write into "
                f"{source}; choose another folder."
            )


def _places(source: Path) -> tuple[str, ...]:
    """The absolute path of a folder, or the patterns."""
    return patterns_of(source) or (str(source.absolute()),)


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"expected a regular expression to group by, got {pattern!r} ({error}).") from None


def _groups(cases: Sequence[SourceCase], pattern: re.Pattern[str] | None) -> dict[str, str]:
    """Case -> its patient."""
    if pattern is None:
        return {case.name: case.name for case in cases}
    found = {case.name: pattern.search(case.name) for case in cases}
    groups = {name: match[1 if pattern.groups else 0] for name, match in found.items() if match}
    problems = [
        f"{case.name}: expected a patient by the pattern {pattern.pattern!r}, got none in this name; "
        "correct the pattern."
        for case in cases
        if not groups.get(case.name)
    ]
    if problems:
        raise DatasetError(problems)
    return groups


def _folds(groups: Mapping[str, str], options: PrepareOptions) -> dict[str, int]:
    if options.num_folds == 0:
        return {}
    patients = len(set(groups.values()))
    if patients < max(options.num_folds, 2):
        kind = "cases" if options.group_by is None else "patients"
        raise DatasetError(
            f"expected at least as many {kind} as folds, got {patients} for {options.num_folds}; lower the number "
            "(--folds), or give 0 to deal none."
        )
    return deal_folds(groups, options.num_folds, options.seed)


def _channel_problems(read: Sequence[CheckedCase], channels: Sequence[str]) -> Iterable[str]:
    if not read:
        return
    expected = len(channels) or len(read[0].images)
    for case in read:
        if len(case.images) != expected:
            yield (
                f"{case.name}: expected {expected} image(s), as "
                f"{'the names of the channels say' if channels else f'{read[0].name} has'}, got {len(case.images)}; "
                "every case needs the same channels."
            )


def _left_out(cases: Sequence[CaseRecord]) -> Iterable[str]:
    """What labels had on their own grid and have no more on their image's."""
    shares = {
        f"{case.name}: {outside / whole:.0%} of {name}": outside / whole
        for case in cases
        for name, (outside, whole) in case.outside.items()
    }
    if shares:
        worst = sorted(shares, key=lambda text: -shares[text])
        count = sum(bool(case.outside) for case in cases)
        yield (
            f"label voxels outside their image are passed over in {count} of {len(cases)} cases ({first_of(worst)}); "
            "does the image show the whole structure?"
        )
    if vanished := [f"{case.name}: {name}" for case in cases for name in case.vanished]:
        yield f"{len(vanished)} structures have no voxel left on the grid of their image ({first_of(vanished)})"


def _planned(case: CheckedCase, group: str, fold: int | None, plan: LabelPlan) -> CaseRecord:
    new_ids = plan.new_ids.get(case.name, {})

    def called(value: int) -> str:
        if value not in new_ids:
            return case.names.get(value, f"id {value}")
        return plan.labels.get(new_ids[value], "ignore")  # the ignore label has no name

    outside: dict[str, list[int]] = {}
    for value, counts in case.outside.items():
        if value and new_ids.get(value) != 0:
            before = outside.get(called(value), [0, 0])
            outside[called(value)] = [before[0] + counts[0], before[1] + counts[1]]
    label_voxels: Counter[int] = Counter()
    for value, count in case.voxels.items():
        label_voxels[new_ids[value]] += count
    part = "Tr" if case.label else "Ts"
    several = len(case.images) > 1
    images = [f"images{part}/{case.name}{f'_{i:04d}' if several else ''}.nii.gz" for i in range(len(case.images))]
    series = [volume.series for volume in (*case.images, case.label) if volume is not None and volume.series]
    return CaseRecord(
        name=case.name,
        group=group,
        fold=fold,
        shape=list(case.grid.shape),
        spacing_mm=list(case.grid.spacing),
        affine=case.grid.affine.tolist(),
        series=[{"description": one.description, "uid": one.uid} for one in series],
        resampled=case.resampled,
        new_ids={str(old): new_ids[old] for old in case.voxels if new_ids[old] != old},
        names={str(new_ids[old]): name for old, name in case.names.items() if old in case.voxels},
        outside=outside,
        vanished=[called(value) for value in case.vanished if new_ids.get(value) != 0],
        annotated=list(plan.annotated_in[case.name]) if case.name in plan.annotated_in else None,
        label_voxels={str(value): count for value, count in sorted(label_voxels.items())},
        sources=case.sources,
        outputs=dict.fromkeys([*images, *([f"labelsTr/{case.name}.nii.gz"] if case.label else [])]),
    )


def _write_cases(
    out: Path,
    planned: Manifest,
    read: Sequence[CheckedCase],
    finished: Mapping[str, CaseRecord],
    new_ids: Mapping[str, Mapping[int, int]],
    workers: int,
    progress: bool,
) -> tuple[CaseRecord, ...]:
    """Write the cases that are not finished, recording each; the records of all."""
    remove_unfinished(out)
    records = {case.name: finished.get(case.name, case) for case in planned.cases}

    def record() -> None:
        dataclasses.replace(planned, cases=tuple(records.values())).write(out)

    def write(case: CheckedCase) -> CaseRecord:
        return _write_case(out, case, records[case.name], new_ids.get(case.name, {}))

    record()  # what is about to be written is ours, even if it is written half
    problems: list[str] = []
    to_do = [case for case in read if case.name not in finished]
    recorded = time.monotonic()
    try:
        for result in _in_parallel(write, to_do, "writing", workers, progress):
            if isinstance(result, DatasetError):
                problems += result.problems
            else:
                records[result.name] = result
            if time.monotonic() - recorded > _SECONDS_BETWEEN_RECORDS:
                record()
                recorded = time.monotonic()
    finally:
        record()
    if problems:
        raise DatasetError(problems)
    return tuple(records.values())


def _write_case(out: Path, case: CheckedCase, record: CaseRecord, new_ids: Mapping[int, int]) -> CaseRecord:
    outputs: dict[str, Stamp | None] = {}
    files = list(record.outputs)
    for file, source in zip(files, case.images, strict=False):
        image = source.load()
        outputs[file] = _write_volume(out, file, _as_trained(source, image), source.grid)
    if case.label is not None:
        label = label_on_grid(case.label, case.grid)
        voxels = renumber(sitk.GetArrayViewFromImage(label), new_ids)
        outputs[files[-1]] = _write_volume(out, files[-1], voxels, case.grid if case.resampled else case.label.grid)
    return dataclasses.replace(record, outputs=outputs)


def _as_trained(source: VolumeSource, image: sitk.Image) -> NDArray[Any]:
    """The voxels of an image; what a header scales from 16 bits in float32, in which training computes."""
    voxels = sitk.GetArrayViewFromImage(image)
    scaled = source.nifti is not None and source.nifti.is_scaled and source.nifti.stored.itemsize <= 2
    return voxels.astype(np.float32) if scaled else voxels


def _write_volume(out: Path, name: str, voxels: NDArray[Any], grid: VolumeGrid) -> Stamp:
    """Write an array of axes z, y, x. By nibabel, because ITK does not notice a full disk."""
    volume = nib.Nifti1Image(voxels.T, grid.affine, dtype=voxels.dtype)
    volume.set_qform(grid.affine, code="scanner")
    volume.set_sform(grid.affine, code="scanner")
    volume.header.set_xyzt_units("mm")
    return write_through(out, name, lambda draft: nib.save(volume, draft))


def _dataset_json(
    out: Path,
    labelled: Sequence[CaseRecord],
    unlabelled: Sequence[CaseRecord],
    plan: LabelPlan,
    channels: Sequence[str],
) -> dict[str, Any]:
    """dataset.json of the Decathlon, with a fold per case, and with the ids that labels had where that is known."""
    changed = {str(new): old for new, old in plan.originals.items()}
    return {
        "name": out.resolve().name,
        "description": "Made by monai-extra-losses prepare; manifest.json tells of what",
        "tensorImageSize": "3D",
        "modality": {str(i): name for i, name in enumerate(channels)},
        "labels": {str(value): name for value, name in plan.labels.items()},
        **({"original_labels": changed} if changed else {}),
        **({} if plan.annotated is None else {"annotated": list(plan.annotated)}),
        "numTraining": len(labelled),
        "numTest": len(unlabelled),
        "training": [_entry(case) for case in labelled],
        "test": [entry["image"] if isinstance(entry["image"], str) else entry for entry in map(_entry, unlabelled)],
    }


def _entry(case: CaseRecord) -> dict[str, Any]:
    images = [f"./{file}" for file in case.outputs if file.startswith("images")]
    labels = [f"./{file}" for file in case.outputs if file.startswith("labels")]
    return {
        "image": images if len(images) > 1 else images[0],
        **({"label": labels[0]} if labels else {}),
        **({} if case.fold is None else {"fold": case.fold}),
        **({} if case.annotated is None else {"annotated": case.annotated}),
    }


def _in_parallel(
    work: Callable[[_Item], _Result], items: Sequence[_Item], text: str, workers: int, progress: bool
) -> Iterator[_Result | DatasetError]:
    """What `work` gives for each item, in their order, or the error that it raises."""

    def attempt(item: _Item) -> _Result | DatasetError:
        try:
            return work(item)
        except DatasetError as error:
            return error
        except MemoryError:
            return DatasetError(
                f"{item.name}: expected volumes that fit into memory, got larger ones; free some memory."
            )

    pool = ThreadPoolExecutor(workers)
    try:
        results = pool.map(attempt, items)
        yield from tqdm(results, total=len(items), desc=text, unit="case", disable=None if progress and items else True)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted call must not go through the rest first
