"""Make a data set for training out of images and labels of any format.

Everything is checked before the first file is written: names, headers, grids, every voxel of images and labels.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_extra_losses.data.annotation import annotates
from monai_extra_losses.data.case_sources import CheckedCase, check_case, label_on_grid
from monai_extra_losses.data.declared_source import DeclaredSource, declared_source
from monai_extra_losses.data.dicom_labels import label_objects, pair_by_reference
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import first_of
from monai_extra_losses.data.label_ids import name_key, renumber
from monai_extra_losses.data.label_plan import LabelPlan, plan_labels
from monai_extra_losses.data.layouts import CASE, LABEL, find_files, patterns_of
from monai_extra_losses.data.made_dataset import (
    MadeDataset,
    dataset_json,
    dealt_folds,
    in_parallel,
    planned_manifest,
    storage_problems,
    write_data_set,
    write_volume,
)
from monai_extra_losses.data.manifest import PARTS, CaseRecord, Manifest, Stamp, refuse_other_options
from monai_extra_losses.data.pairing import SourceCase, cases_to_segment, other_files, pairs_and_problems
from monai_extra_losses.data.region_plan import plan_regions
from monai_extra_losses.data.remarks import remark_sentences
from monai_extra_losses.data.structures import DicomLabel
from monai_extra_losses.data.volume_source import VolumeSource


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
        as_declared: `images` and `labels` are one folder, whose dataset.json lists or pairs the files and declares
            labels, channels, regions and what is annotated.
        regions: structures in layers, files or DICOM objects may overlap: each is a region, and each combination of
            them that a voxel has is a label. `names` gives the order of the regions.
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
    as_declared: bool = False
    regions: bool = False

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
            "as_declared": self.as_declared or None,
            "regions": self.regions or None,
        }


@dataclasses.dataclass(frozen=True)
class PreparedDataset(MadeDataset):
    """What `prepare_dataset` has made.

    Args:
        annotated: ids of the classes that every case annotates; None: all, or as the record of the case says.
    """

    annotated: tuple[int, ...] | None = None

    @property
    def trains_alone(self) -> bool:
        """Whether some case annotates each class, so that no other data set is needed."""
        return annotates(self.annotated, self.labels)

    def summary(self) -> str:
        """What a person wants to know of it, in a few lines."""
        lines = [self.headline, "", f"{'label':>5}  {'voxels':>12}  {'cases':>5}  name"]
        for value, name in self.rows.items():
            cases = sum(str(value) in case.label_voxels for case in self.cases)
            lines.append(f"{value:>5}  {self.voxels_of(value):>12}  {cases:>5}  {name}")
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
    with storage_problems(out):
        return _prepare(options, out, overwrite, num_workers or min(os.cpu_count() or 1, 8), progress)


def _prepare(options: PrepareOptions, out: Path, overwrite: bool, workers: int, progress: bool) -> PreparedDataset:
    _refuse_annotation(options)
    _refuse_regions(options)
    _refuse_overlap(options, out)
    pattern = _compiled(options.group_by)
    earlier = Manifest.read(out)
    if earlier is not None and not overwrite:
        refuse_other_options(out, options.as_json(), earlier)
    declared = declared_source(options.images) if options.as_declared else None
    objects = () if declared is not None or patterns_of(options.labels) else label_objects(options.labels)
    cases, unlabelled, problems = _found_cases(options, declared, objects)
    groups: dict[str, str] = {}
    folds: dict[str, int] = {}
    try:
        groups = _groups(cases, pattern)
        kind = "cases" if options.group_by is None else "patients"
        if declared is not None and declared.folds:
            folds = declared.folds
        elif not problems:
            folds = dealt_folds(groups, options.num_folds, options.seed, kind=kind)
    except DatasetError as error:
        problems += error.problems
    read: list[CheckedCase] = []
    everything = (*cases, *unlabelled)
    check = partial(
        check_case,
        series=options.series,
        resample_labels=options.resample_labels,
        structures=tuple(name for value, name in options.names.items() if value),
        overlapping=options.regions,
    )
    for result in in_parallel(check, everything, "reading", workers, progress):
        if isinstance(result, DatasetError):
            problems += result.problems
        else:
            read.append(result)
    channels = options.channels or (declared.channels if declared is not None else ())
    problems += _channel_problems(read, channels)
    problems += [] if declared is None else declared.problems(read)
    if problems:
        raise DatasetError(problems)

    ignore_label = options.ignore_label if declared is None else declared.ignore_label
    plan = _planned_labels(options, read) if declared is None else _as_declared(declared, read)
    planned = planned_manifest(
        options.as_json(),
        [_planned(case, groups.get(case.name, ""), folds.get(case.name), plan) for case in read],
    )
    checked = {case.name: case for case in read}
    channels = channels or tuple(f"channel_{i}" for i in range(len(read[0].images)))
    original = {str(new): old for new, old in plan.originals.items()}  # where that is known
    records, written = write_data_set(
        out,
        planned,
        earlier,
        overwrite,
        write_case=lambda record: _write_case(out, checked[record.name], record, plan.new_ids.get(record.name, {})),
        content=lambda records: dataset_json(
            out,
            "prepare",
            records,
            plan.labels,
            channels,
            ignore_label,
            original_labels=original,
            annotated=list(plan.annotated or ()),
            **(_of_plan(plan, read) if declared is None else _regions_of(declared)),
        ),
        workers=workers,
        progress=progress,
    )
    folders = [options.images, options.test_images, *([] if objects else [options.labels])]
    others = other_files(filter(None, folders)) if declared is None else declared.passed_over
    passed_over = [f"passed over: {text}" for text in others]
    remarks = remark_sentences({path: found for case in read for path, found in case.remarks.items()})
    notes = (
        *plan.notes,
        *_left_out([case for case in records if case.labelled]),
        *_of_objects(read, plan),
        *remarks,
        *passed_over,
    )
    return PreparedDataset(out, records, written, plan.labels, notes, ignore_label, plan.annotated)


def _found_cases(
    options: PrepareOptions, declared: DeclaredSource | None, objects: Sequence[Path]
) -> tuple[tuple[SourceCase, ...], tuple[SourceCase, ...], list[str]]:
    """The cases with labels, those to segment, and what is wrong with the others."""
    if declared is not None:
        return declared.cases, declared.unlabelled, []
    if objects:
        cases, problems = pair_by_reference(options.images, options.labels, objects, options.series)
    else:
        cases, problems = pairs_and_problems(options.images, options.labels)
    try:
        unlabelled = () if options.test_images is None else cases_to_segment(options.test_images, cases)
    except DatasetError as error:
        return cases, (), [*problems, *error.problems]
    return cases, unlabelled, problems


def _planned_labels(options: PrepareOptions, read: Sequence[CheckedCase]) -> LabelPlan:
    if options.regions:
        return plan_regions(read, options.names)
    return plan_labels(read, options.remap, options.names, options.ignore_label, options.annotated, options.organ_masks)


def _as_declared(declared: DeclaredSource, read: Sequence[CheckedCase]) -> LabelPlan:
    """The ids that dataset.json gives, whether a label has them or not."""
    found = {value for case in read for value in case.voxels}
    remap = {old: new for old, new in declared.new_ids.items() if old in found and old != new}
    ids = {declared.new_ids[value] for value in found}
    ignore_label = declared.ignore_label if declared.ignore_label in ids else None
    plan = plan_labels(read, remap, declared.names, ignore_label, further_names=True)
    return dataclasses.replace(plan, originals=declared.originals, annotated_in=declared.annotated)


def _regions_of(declared: DeclaredSource) -> dict[str, Any]:
    return {
        "regions": {name: list(values) for name, values in (declared.regions or {}).items()},
        "regions_class_order": list(declared.regions_class_order or ()),
        "segments": declared.segments,
    }


def _of_plan(plan: LabelPlan, read: Sequence[CheckedCase]) -> dict[str, Any]:
    """The regions of a plan, and how the first DICOM object that has it shows and codes each structure."""
    called = _structure_names(plan)
    segments: dict[str, Mapping[str, Any]] = {}
    for case in read:
        for structure, shown in case.label.shown.items() if isinstance(case.label, DicomLabel) else ():
            if shown and (name := called.get(name_key(structure))) is not None:
                segments.setdefault(name, shown)
    regions = {name: list(values) for name, values in (plan.regions or {}).items()}
    return {"regions": regions, "segments": segments}


def _structure_names(plan: LabelPlan) -> dict[str, str]:
    """What is equal in equal names -> the name, of each structure of a plan."""
    return {name_key(name): name for name in plan.regions or [name for value, name in plan.classes.items() if value]}


def _of_objects(read: Sequence[CheckedCase], plan: LabelPlan) -> Iterable[str]:
    """What a person should know of the DICOM objects that labels were made of."""
    labels = [case.label for case in read if isinstance(case.label, DicomLabel)]
    left_out = Counter(" ".join(name.split()) for label in labels for name in label.left_out)
    if left_out:
        shown = first_of([f"{name} in {count}" for name, count in left_out.most_common()])
        yield f"{len(left_out)} structures are left out, because --names does not have them ({shown} of {len(labels)})."
    names = _structure_names(plan)
    lacking = Counter(names[key] for label in labels for key in sorted(names.keys() - {*map(name_key, label.shown)}))
    if lacking:
        shown = first_of([f"{name} in {count}" for name, count in lacking.most_common()])
        yield f"some objects lack a structure ({shown} of {len(labels)}), which counts as absent there."
    notes: dict[str, list[str]] = {}
    for label in labels:
        for sentence, about in label.notes:
            notes.setdefault(sentence, []).append(about)
    yield from (f"{sentence} ({first_of(about)})." for sentence, about in notes.items())


def _refuse_regions(options: PrepareOptions) -> None:
    others = {
        "--remap": options.remap,
        "--ignore-label": options.ignore_label is not None,
        "--annotated": options.annotated is not None,
        "--organ-masks": options.organ_masks,
        "a folder with dataset.json": options.as_declared,
    }
    if options.regions and (given := [name for name, is_given in others.items() if is_given]):
        raise DatasetError(
            f"expected --regions, which makes the label ids itself, without {' and '.join(given)}, got both; leave one "
            "out."
        )


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
    listed = [{"description": one.description, "uid": one.uid} for one in series]
    if isinstance(case.label, DicomLabel):
        listed[-1]["instance"] = case.label.instance
    return CaseRecord(
        name=case.name,
        group=group,
        fold=fold,
        shape=list(case.grid.shape),
        spacing_mm=list(case.grid.spacing),
        affine=case.grid.affine.tolist(),
        series=listed,
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


def _write_case(out: Path, case: CheckedCase, record: CaseRecord, new_ids: Mapping[int, int]) -> CaseRecord:
    outputs: dict[str, Stamp | None] = {}
    files = list(record.outputs)
    for file, source in zip(files, case.images, strict=False):
        image = source.load()
        outputs[file] = write_volume(out, file, _as_trained(source, image).T, source.grid.affine)
    if case.label is not None:
        label = label_on_grid(case.label, case.grid)
        voxels = renumber(sitk.GetArrayViewFromImage(label), new_ids)
        grid = case.grid if case.resampled else case.label.grid
        outputs[files[-1]] = write_volume(out, files[-1], voxels.T, grid.affine)
    return dataclasses.replace(record, outputs=outputs)


def _as_trained(source: VolumeSource, image: sitk.Image) -> NDArray[Any]:
    """The voxels of an image; what a header scales from 16 bits in float32, in which training computes."""
    voxels = sitk.GetArrayViewFromImage(image)
    scaled = source.nifti is not None and source.nifti.is_scaled and source.nifti.stored.itemsize <= 2
    return voxels.astype(np.float32) if scaled else voxels
