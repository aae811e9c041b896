"""From a folder of NIfTI files to a list of cases and its folds. Opens no volume; light imports only.

Longer than most, because each way in which data sets are laid out takes a few lines, and all of them share the rest.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from monai_extra_losses.data.annotation import annotated_by_case, annotates, declared_annotated
from monai_extra_losses.data.declared import (
    NAME_OF_ENTRY,
    declared_channels,
    declared_file_ending,
    declared_labels,
    declared_regions,
    declared_regions_order,
    lists_for_nnunet,
    original_labels,
    read_declared,
)
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import (
    NIFTI_SUFFIXES,
    OTHER_SUFFIXES,
    FolderFiles,
    composed,
    file_stem,
    is_nifti_name,
    is_volume_name,
    named,
)
from monai_extra_losses.data.ignore_label import split_ignore_label
from monai_extra_losses.data.json_file import quoted, read_json
from monai_extra_losses.data.layouts import CHANNEL_FILE, layout_hint, prepare_command, prepare_folder_command
from monai_extra_losses.data.segments import Segments, declared_segments

# (images, labels) folders looked for without a list in dataset.json; the first that exists counts.
_TRAINING_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
_VALIDATION_FOLDERS = (("imagesVa", "labelsVa"), ("imagesVal", "labelsVal"))
_TEST_FOLDERS = (("imagesTs", "labelsTs"),)
# Lists of cases in dataset.json; Auto3DSeg calls that of the test cases `testing`.
_LISTS = ("training", "validation", "test", "testing")
_FOLDS = 5
_SHOWN = 20  # folds in a sentence, and characters of one


@dataclass(frozen=True)
class LabelledCase:
    """One patient or scan.

    Args:
        name: file name of the image without `.nii.gz` (and without `_0000` where channels are files of their own).
        image: one file per channel, in the order of the channels, or one file with all channels.
        label: label map, or None where the data set has none.
        fold: the fold that dataset.json deals the case to, or None.
        validation: whether it is set apart to validate, by the list `validation` of dataset.json or by its folder.
        annotated: label values, sorted and without 0, of the classes that its label map tells of; a voxel of any other
            class may be background there. None: all classes.
    """

    name: str
    image: tuple[Path, ...]
    label: Path | None
    fold: int | None = None
    validation: bool = False
    annotated: tuple[int, ...] | None = None

    def annotates(self, *values: int) -> bool:
        """Whether the label map tells of the class of a value; of a region, whether it does of all its values."""
        return annotates(self.annotated, values)


@dataclass(frozen=True)
class CaseList:
    """The cases of a data set and what is declared about them.

    Args:
        folder: the folder read.
        name: `name` of dataset.json, else the folder's name.
        cases: the labelled cases, sorted by name: `training` of dataset.json and what has a label of its `validation`,
            else the pairs of files found.
        unlabelled: `test` and `testing` of dataset.json and what has no label of its `validation` (else the files of
            imagesTs/), sorted by name; a label is optional here.
        labels: value -> name, sorted by value, from `labels` of dataset.json; empty without dataset.json, because
            only the voxels can tell then (`check_cases` finds them).
        channels: names from `modality` or `channel_names` of dataset.json; empty without dataset.json.
        original_labels: value -> the one that the source of the data set has for it, where that is another; from
            `original_labels` of dataset.json, which `prepare` writes.
        regions: name -> label values, from `regions` of dataset.json, or from the labels that nnU-Net joins; they may
            overlap. None without.
        regions_class_order: label value that each region paints where the regions of a voxel are those of no value,
            from `regions_class_order` of dataset.json, in the order of the regions. None: the network's writer decides.
        passed_over: what lies in the folder or stands in dataset.json and is not read, a sentence each.
        ignore_label: value of voxels without annotation, none of `labels`; None without (`data.ignore_label`).
        segments: how DICOM shows and codes labels and regions, from `segments` of dataset.json (`data.segments`).
    """

    folder: Path
    name: str
    cases: tuple[LabelledCase, ...]
    unlabelled: tuple[LabelledCase, ...]
    labels: dict[int, str]
    channels: tuple[str, ...]
    original_labels: dict[int, int] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] | None = None
    passed_over: tuple[str, ...] = ()
    ignore_label: int | None = None
    regions_class_order: tuple[int, ...] | None = None
    segments: Segments = field(default_factory=dict)

    @property
    def partly_annotated(self) -> bool:
        """Whether some labelled case does not annotate all classes."""
        return any(not case.annotates(*self.labels) for case in self.cases)


def read_case_list(folder: str | Path, *, other_formats: bool = False) -> CaseList:
    """Read the cases of a data set folder.

    Args:
        folder: a Medical Segmentation Decathlon folder (dataset.json with `training`, `test`, `labels`, `modality`), an
            nnU-Net v2 folder (dataset.json with `labels` and `channel_names`, one file `NAME_0000.nii.gz` per channel),
            or imagesTr/ and labelsTr/ (or images/ and labels/) without dataset.json, beside them imagesVa/ and
            labelsVa/ and imagesTs/. Files are paired by name. Entries of `training` may have a `"fold"`, all of them
            or none, as MONAI's Auto3DSeg writes it; `validation` and `testing` are read as AMOS, BTCV and Auto3DSeg
            have them. Voxels without annotation have the label named `ignore`, or that of `"ignore_label"`. A case
            annotates the classes of its entry's `"annotated"`, else of that of the whole file (a list for all cases, or
            a list by the name of the case), else all.
        other_formats: take the volumes that `prepare` makes NIfTI of, too; else they are refused.

    Raises:
        DatasetError: no such folder, no cases, an unreadable dataset.json, or files without a partner. Whether the
            listed files exist and fit together is the matter of `check_cases`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(
            f"expected a data set folder, got {folder}, which {'is a file' if folder.exists() else 'does not exist'}; "
            "give the folder that holds dataset.json, or imagesTr/ and labelsTr/."
        )
    declared_file = folder / "dataset.json"
    declared = read_declared(declared_file) if os.path.lexists(declared_file) else {}
    ignore_label, declared = split_ignore_label(declared, declared_file)
    labels = declared_labels(declared, declared_file)
    ending = declared_file_ending(declared, declared_file)
    files = FolderFiles(_looked_for(ending, other_formats))
    if "training" in declared:
        annotated_in = partial(declared_annotated, labels=labels, ignore_label=ignore_label, where=declared_file)
        listed = {key: _listed_cases(declared, key, folder, files, annotated_in) for key in _LISTS}
        if not declared.keys() & {"test", "testing"} and lists_for_nnunet(declared):
            images, labelled = (folder / name for name in _TEST_FOLDERS[0])
            listed["test"] = _further_cases(images, labelled, files, channels_apart=True, validation=False)
        passed_over = _unread_entries(declared, declared_file, files, listed)
    else:
        listed, passed_over = _cases_of_folders(folder, files, labels, ending)
        passed_over += _unread_lists(declared, declared_file)
    if ending is not None and not other_formats:
        _refuse_other_ending(ending, declared_file)
    if not listed["training"]:
        raise DatasetError(
            f"{declared_file}: expected labelled cases under `training`, got an empty list; "
            "list them, or remove the key so that imagesTr/ and labelsTr/ are paired by file name."
        )
    passed_over += _other_numbers(declared, declared_file, listed)
    listed = _named_by_folder(listed)
    if (default := declared_annotated(declared, labels, ignore_label, declared_file)) is not None:
        listed = {key: [_annotated_by_default(case, default) for case in cases] for key, cases in listed.items()}
    with_label = [case.name for cases in listed.values() for case in cases if case.label is not None]
    if by_case := annotated_by_case(declared, labels, ignore_label, declared_file, with_label):
        listed = {
            key: [_annotated_by_default(case, by_case.get(case.name)) for case in cases]
            for key, cases in listed.items()
        }
    to_validate = listed["validation"]
    cases = _by_name(listed["training"] + [case for case in to_validate if case.label is not None])
    unlabelled = _by_name([case for case in to_validate if case.label is None] + listed["test"] + listed["testing"])
    if not other_formats:
        _refuse_other_formats(declared_file, cases, unlabelled)
    _refuse_duplicates(folder, cases, unlabelled)
    channels = declared_channels(declared, declared_file)
    regions = declared_regions(declared, labels, declared_file)
    _refuse_odd_names((*labels.values(), *channels, *(regions or ())), declared_file)
    _refuse_odd_names((case.name for case in (*cases, *unlabelled)), folder, of_cases=True)
    name = declared.get("name")
    return CaseList(
        folder=folder,
        name=" ".join(name.split()) if isinstance(name, str) and name.strip() else folder.resolve().name,
        cases=cases,
        unlabelled=unlabelled,
        labels=labels,
        original_labels=original_labels(declared, declared_file),
        channels=channels,
        regions=regions,
        passed_over=tuple(passed_over),
        ignore_label=ignore_label,
        regions_class_order=declared_regions_order(declared, regions, declared_file),
        segments=declared_segments(
            declared, [*(name for value, name in labels.items() if value), *(regions or ())], declared_file
        ),
    )


def count_folds(cases: Sequence[LabelledCase], num_folds: int | None) -> int:
    """Number of folds: as the cases declare it, else as asked, else 0 where cases are set apart to validate, else 5.

    Args:
        cases: all labelled cases; their declared folds, if any, are 0 to k - 1 without a gap.
        num_folds: the number asked for, or None.

    Raises:
        DatasetError: `num_folds` contradicts the declared folds.
    """
    declared = 1 + max((case.fold for case in cases if case.fold is not None), default=-1)
    if declared and num_folds not in (None, declared):
        raise DatasetError(
            f"expected num_folds {declared}, to which the `fold` entries of dataset.json deal the cases, "
            f"got {num_folds}; leave num_folds out, or remove the entries."
        )
    if declared or num_folds is not None:
        return declared or num_folds or 0
    return 0 if any(case.validation for case in cases) else _FOLDS


def split_cases(
    cases: Sequence[LabelledCase], num_folds: int | None, fold: int, seed: int
) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """Training and validation cases of one fold.

    The folds are those that the cases declare, whatever the seed; else `deal_folds` deals each case by itself. Cases
    set apart to validate are in no fold: without folds (`count_folds` gives 0) they validate and all others train; with
    folds, declared or asked for, they are in neither part.

    Args:
        cases: all labelled cases; their names differ.
        num_folds: number of folds, at least 2; None: as `count_folds` says.
        fold: the fold that validates, 0 to `num_folds` - 1; 0 without folds.
        seed: another seed deals the cases to other folds.

    Returns:
        `(training, validation)`, each sorted by name.

    Raises:
        DatasetError: `num_folds` below 2 or not the declared number, `fold` out of range, or fewer cases than folds.
    """
    num_folds = count_folds(cases, num_folds)
    in_order = sorted(cases, key=lambda case: case.name)
    if num_folds == 0 and (apart := [case for case in in_order if case.validation]):
        if fold != 0:
            raise DatasetError(
                f"expected fold 0, because the {len(apart)} cases set apart to validate do so, got {fold}; "
                "give --num_folds 5 to deal folds of the training cases instead."
            )
        return [case for case in in_order if not case.validation], apart
    in_order = [case for case in in_order if not case.validation]
    _refuse_too_few_folds(num_folds)
    if not 0 <= fold < num_folds:
        raise DatasetError(f"expected fold 0 to {num_folds - 1} for num_folds {num_folds}, got {fold}.")
    declared = {case.name: case.fold for case in in_order if case.fold is not None}
    dealt = declared or deal_folds({case.name: case.name for case in in_order}, num_folds, seed)
    return (
        [case for case in in_order if dealt[case.name] != fold],
        [case for case in in_order if dealt[case.name] == fold],
    )


def deal_folds(
    groups: Mapping[str, str], num_folds: int, seed: int, sources: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Deal cases to folds of even sizes that keep the groups whole.

    Large groups are dealt first, each to the smallest fold; among groups of one size the order is that of a hash of
    seed and group: the same on every machine and version, whatever random generators have done before, and whatever
    order the cases come in. Groups of one case each give fold sizes that differ by one at most.

    Args:
        groups: case name -> its group, such as the patient.
        num_folds: at least 2.
        seed: another seed deals the groups to other folds.
        sources: case name -> its source; the cases of each are dealt to folds of even sizes. None: one for all.

    Returns:
        Case name -> fold, 0 to `num_folds` - 1; no fold is empty.

    Raises:
        DatasetError: `num_folds` below 2, or fewer groups than folds.
    """
    _refuse_too_few_folds(num_folds)
    sizes = Counter(groups.values())
    if len(sizes) < num_folds:
        things = "labelled cases" if len(sizes) == len(groups) else "groups of cases"
        raise DatasetError(
            f"expected at least as many {things} as folds, got {len(sizes)} for num_folds {num_folds}; "
            "lower num_folds or add cases."
        )
    hashes = {group: hashlib.sha256(f"{seed}:{group}".encode()).digest() for group in sizes}
    of_group: dict[str, list[str]] = {}  # the sources of its cases
    for name in sorted(groups):
        of_group.setdefault(groups[name], []).append(sources[name] if sources else "")
    filled = [Counter[str]() for _ in range(num_folds)]  # source -> cases
    fold_of: dict[str, int] = {}
    for group in sorted(sizes, key=lambda group: (of_group[group][0], -sizes[group], hashes[group])):
        first = of_group[group][0]
        fold_of[group] = min(range(num_folds), key=lambda fold: (filled[fold][first], filled[fold].total()))
        filled[fold_of[group]].update(of_group[group])
    return {name: fold_of[group] for name, group in groups.items()}


def _refuse_too_few_folds(num_folds: int) -> None:
    if num_folds < 2:
        raise DatasetError(
            f"expected num_folds of at least 2, got {num_folds}: one fold validates and the others train; "
            "5 is a good choice."
        )


def _annotated_by_default(case: LabelledCase, default: tuple[int, ...] | None) -> LabelledCase:
    return replace(case, annotated=default) if case.label is not None and case.annotated is None else case


def _listed_cases(
    declared: Mapping[str, Any],
    key: str,
    folder: Path,
    files: FolderFiles,
    annotated_in: Callable[..., tuple[int, ...] | None],
) -> list[LabelledCase]:
    """The entries of a list of dataset.json: image and label, or in other lists than `training` an image alone."""
    where = folder / "dataset.json"
    entries = declared.get(key, [])
    if not isinstance(entries, list):
        raise DatasetError(f"{where}: expected a list under `{key}`, got {type(entries).__name__}.")
    cases = []
    folds = [entry.get("fold") if key == "training" and isinstance(entry, dict) else None for entry in entries]
    for position, entry in enumerate(entries):
        fields = {"image": entry} if isinstance(entry, str) and key != "training" else entry
        image = fields.get("image") if isinstance(fields, dict) else None
        label = fields.get("label") if isinstance(fields, dict) else None
        names = [image] if isinstance(image, str) else image
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) and Path(name).name for name in names)
            or not (label is None or (isinstance(label, str) and Path(label).name))
            or (label is None and key == "training")
        ):
            raise DatasetError(
                f"{where}: expected entry {position} of `{key}` to give "
                f'{{"image": FILE, "label": FILE}}{"" if key == "training" else " or FILE"}, got {quoted(entry)}.'
            )
        found = tuple(files.find(folder / name) for name in names)
        stem = file_stem(names[0])
        channel = CHANNEL_FILE.fullmatch(stem) if len(names) > 1 else None
        if len(found) == 1 and found[0].name not in files.names_in(found[0].parent):
            found = files.channels_of(found[0]) or found  # nnU-Net 1 lists NAME for NAME_0000, NAME_0001, ...
        cases.append(
            LabelledCase(
                name=str(fields.get(NAME_OF_ENTRY) or (channel["case"] if channel else stem)),
                image=found,
                label=None if label is None else files.find(folder / label),
                fold=folds[position],
                validation=key == "validation" and label is not None,
                annotated=None if label is None else annotated_in(fields, what=f"entry {position} of `{key}`"),
            )
        )
    if key == "training":
        _refuse_odd_folds(where, cases)
    return cases


def _unread_entries(
    declared: Mapping[str, Any], where: Path, files: FolderFiles, listed: Mapping[str, Sequence[LabelledCase]]
) -> list[str]:
    """What dataset.json lists, or what lies beside the listed files, and is not read."""
    passed_over = []
    for key in _LISTS:
        extra = Counter(
            field
            for entry in declared.get(key, ())
            if isinstance(entry, dict)
            for field, value in entry.items()
            if field not in ("image", "label") and isinstance(value, str) and is_volume_name(value)
        )
        passed_over += [
            f"{where}: files under `{field}` in {count} entries of `{key}`; channels are read from one list, "
            '{"image": [FILE, FILE]}.'
            for field, count in extra.items()
        ]
    paths = [file for cases in listed.values() for case in cases for file in (*case.image, case.label)]
    passed_over += [
        f"{folder}: {len(names)} file{'s' * (len(names) > 1)} that dataset.json does not list ({named(names)})."
        for folder, names in files.unlisted([path for path in paths if path is not None]).items()
    ]
    return passed_over + _unread_lists(declared, where)


def _unread_lists(declared: Mapping[str, Any], where: Path) -> list[str]:
    """Lists of volumes in dataset.json under other names than those read."""
    read = _LISTS if "training" in declared else ()
    found = {
        key: len(entries)
        for key, entries in declared.items()
        if key not in read and isinstance(entries, list) and any(map(_names_volumes, entries))
    }
    return [
        f"{where}: {count} entries of `{key}`; list them under `training`, `validation` or `test`"
        f"{'' if read else ', `training` at least'}."
        for key, count in found.items()
    ]


def _names_volumes(entry: Any) -> bool:
    values = entry.values() if isinstance(entry, dict) else (entry,)
    return any(isinstance(value, str) and is_volume_name(value) for value in values)


def _other_numbers(declared: Mapping[str, Any], where: Path, listed: Mapping[str, Sequence[LabelledCase]]) -> list[str]:
    """The numbers of cases that dataset.json tells, where other ones were found."""
    found = {
        "numTraining": len(listed["training"]),
        "numValidation": len(listed["validation"]),
        "numTest": len(listed["test"]) + len(listed["testing"]),
    }
    return [
        f"{where}: `{key}` says {quoted(declared[key])} cases, {count} {'is' if count == 1 else 'are'} there."
        for key, count in found.items()
        if isinstance(declared.get(key), int) and declared[key] != count
    ]


def _named_by_folder(listed: Mapping[str, Sequence[LabelledCase]]) -> dict[str, list[LabelledCase]]:
    """Cases whose images have one name and a folder each, such as KiTS's imaging.nii.gz, are named by the folders."""
    training = listed["training"]
    folders = {case.image[0].parent for case in training}
    apart = len(folders) == len(training) > 1 == len({case.name for case in training})
    return {
        key: [replace(case, name=composed(case.image[0].parent.name)) if apart else case for case in cases]
        for key, cases in listed.items()
    }


def _refuse_odd_names(names: Iterable[str], where: Path, *, of_cases: bool = False) -> None:
    """Refuse names that no terminal prints and no table holds; those of cases become names of files."""
    for name in names:
        if any(ord(character) < 32 or ord(character) == 127 for character in name):
            raise DatasetError(f"{where}: expected names of printable characters, got {quoted(name)}; correct it.")
        if of_cases and Path(name).name != name:
            raise DatasetError(
                f"{where}: expected a name of a case that a file can have, got {quoted(name)}; correct it."
            )


def _refuse_odd_folds(where: Path, cases: Sequence[LabelledCase]) -> None:
    folds = {json.dumps(case.fold) for case in cases}  # as text, because true, 1.0 and 1 are equal
    if folds <= {"null"} or folds == {str(fold) for fold in range(len(folds))}:
        return
    got = ", ".join("none" if text == "null" else text[:_SHOWN] for text in sorted(folds)[:_SHOWN])
    raise DatasetError(
        f"{where}: expected every entry of `training` with a `fold`, whole numbers from 0 without an empty fold, or "
        f"none with one, got {got}; correct the entries or remove `fold` from all."
    )


def _cases_of_folders(
    folder: Path, files: FolderFiles, labels: Mapping[int, str], ending: str | None
) -> tuple[dict[str, list[LabelledCase]], list[str]]:
    """The cases that no list names, by the lists that they would be in, and what is passed over beside them."""
    for images_name, labels_name in _TRAINING_FOLDERS:
        if (folder / images_name).is_dir() and (folder / labels_name).is_dir():
            training = _paired_cases(folder / images_name, folder / labels_name, files, labels, ending)
            break
    else:
        hint = layout_hint(folder) or "is this the data set's own folder?"
        if lists := _lists_of_other_names(folder, files):
            hint = f"{named(lists)} lists cases; rename the one to use to dataset.json."
        raise DatasetError(
            f"{folder}: expected dataset.json with a list of cases, or the folders imagesTr/ and labelsTr/, "
            f"got neither; {hint}"
        )
    several = any(len(case.image) > 1 or file_stem(case.image[0].name) != case.name for case in training)
    used = [folder / images_name, folder / labels_name]
    others: dict[str, list[LabelledCase]] = {"validation": [], "test": []}
    for key, folders in (("validation", _VALIDATION_FOLDERS), ("test", _TEST_FOLDERS)):
        for images, labelled in ((folder / images, folder / labelled) for images, labelled in folders):
            others[key] += _further_cases(
                images, labelled, files, channels_apart=several, validation=key == "validation"
            )
            used += [images, labelled]
    taken = {file for cases in (training, *others.values()) for case in cases for file in (*case.image, case.label)}
    passed_over = []
    for place in used:
        rest = [name for name, path in files.volume_files(place).items() if path not in taken]
        if rest:
            passed_over.append(f"{place}: {len(rest)} without an image of the same name ({named(rest)}).")
        if other := files.others(place):
            more = ending is None and any(map(is_volume_name, other))
            hint = "; `monai-extra-losses prepare` makes NIfTI of volumes" if more else ""
            kinds = " or ".join(files.suffixes)
            passed_over.append(f"{place}: {len(other)} that are no files {kinds} ({named(other)}){hint}.")
    passed_over += [
        f"{folder / name}: its list of cases, because its name is not dataset.json."
        for name in _lists_of_other_names(folder, files)
    ]
    return {"training": training, "testing": [], **others}, passed_over


def _lists_of_other_names(folder: Path, files: FolderFiles) -> list[str]:
    """JSON files beside dataset.json that list cases as it does, such as the dataset_0.json of MONAI's tutorials."""
    found = []
    for name in files.names_in(folder):
        if name.lower().endswith(".json") and name != "dataset.json":
            with contextlib.suppress(DatasetError):
                content = read_json(folder / name)
                if isinstance(content, dict) and isinstance(content.get("training"), list):
                    found.append(name)
    return found


def _paired_cases(
    images_folder: Path, labels_folder: Path, files: FolderFiles, names: Mapping[int, str], ending: str | None
) -> list[LabelledCase]:
    """Images and labels of the same name."""
    images, labels = files.volume_files(images_folder), files.volume_files(labels_folder)
    # every image of nnU-Net has its number, also that of a case whose name is another one's with a number
    numbered = ending is not None and all(_base(stem) in labels for stem in images)
    grouped = _group_channels(images, {} if numbered else labels)
    extra = ["--names", ",".join(f"{value}:{name}" for value, name in names.items() if value)] if names else []
    command = prepare_command(images_folder, labels_folder, images_folder.parent, extra)
    if not grouped.keys() & labels.keys():
        _refuse_missing_ending(images_folder, images, labels_folder, labels, files, ending)
        other = [name for name in files.others(images_folder) if is_volume_name(name)]
        if not grouped and not labels and not other:
            hint = layout_hint(images_folder)
            raise DatasetError(
                f"{images_folder.parent}: expected pairs of .nii or .nii.gz files in {images_folder.name}/ and "
                f"{labels_folder.name}/, got none{'' if hint is None else f'; {hint}'}."
            )
        if other and not (grouped and labels):
            raise DatasetError(
                f"{images_folder}: expected .nii or .nii.gz files, got {len(other)} of other formats "
                f"({named(other)}); make a data set of them by: {command}"
            )
        if len(grouped) > 1 and len(labels) > 1:
            raise DatasetError(
                f"{images_folder.parent}: expected images and labels of equal names, got {named(grouped)} in "
                f"{images_folder.name}/ and {named(labels)} in {labels_folder.name}/; rename one side, or, where "
                f"labels end in _seg, .seg, -seg, _label, -label, _mask or _gt, make a data set of them by: {command}"
            )
    problems = [
        f"{file}: expected a label of the same name in {labels_folder}, got none; add the label or move the image away."
        for name in sorted(grouped.keys() - labels.keys())
        for file in grouped[name]
    ]
    problems += [
        f"{labels[name]}: expected an image of the same name (or NAME_0000) in {images_folder}, got none; "
        "add the image or move the label away."
        for name in sorted(labels.keys() - grouped.keys())
    ]
    if problems:
        raise DatasetError(problems)
    return [LabelledCase(name, grouped[name], labels[name]) for name in sorted(grouped)]


def _further_cases(
    images_folder: Path, labels_folder: Path, files: FolderFiles, *, channels_apart: bool, validation: bool
) -> list[LabelledCase]:
    """Images with or without a label; NAME_0000 is a channel where it is one in training, or where NAME has a label."""
    images, labels = files.volume_files(images_folder), files.volume_files(labels_folder)
    apart = images if channels_apart else [stem for stem in images if _base(stem) in labels]
    grouped = _group_channels({stem: images[stem] for stem in apart}, labels)
    grouped |= {stem: (file,) for stem, file in images.items() if stem not in apart}
    return [
        LabelledCase(name, grouped[name], labels.get(name), validation=validation and name in labels)
        for name in sorted(grouped)
    ]


def _looked_for(ending: str | None, other_formats: bool) -> tuple[str, ...]:
    """Suffixes of the files to find; nnU-Net takes those of `file_ending` alone."""
    if ending is not None:
        return (ending.lower(),)
    return (*NIFTI_SUFFIXES, *OTHER_SUFFIXES) if other_formats else NIFTI_SUFFIXES


def _refuse_other_ending(ending: str, where: Path) -> None:
    if ending.lower() not in NIFTI_SUFFIXES:
        raise DatasetError(
            f"{where}: expected .nii.gz or .nii as `file_ending`, got {ending}; make a data set of these files by: "
            f"{prepare_folder_command(where.parent)}"
        )


def _refuse_missing_ending(
    images_folder: Path,
    images: Mapping[str, Path],
    labels_folder: Path,
    labels: Mapping[str, Path],
    files: FolderFiles,
    ending: str | None,
) -> None:
    """Refuse a `file_ending` that no image, or no label, has."""
    for folder, found in ((images_folder, images), (labels_folder, labels)):
        if ending is not None and not found and (others := files.others(folder)):
            raise DatasetError(
                f"{folder}: expected files {ending}, as `file_ending` of dataset.json says, got {len(others)} of other "
                f"names ({named(others)}); correct it."
            )


def _base(stem: str) -> str:
    """NAME of NAME_0000."""
    channel = CHANNEL_FILE.fullmatch(stem)
    return channel["case"] if channel else stem


def _group_channels(images: Mapping[str, Path], labels: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """Case name -> its files: `NAME`, or `NAME_0000`, `NAME_0001`, ... unless a label has that very name."""
    grouped: dict[str, tuple[Path, ...]] = {}
    for stem in sorted(images):
        channel = None if stem in labels else CHANNEL_FILE.fullmatch(stem)
        name = channel["case"] if channel else stem
        grouped[name] = (*grouped.get(name, ()), images[stem])
        if channel and int(channel["channel"]) != len(grouped[name]) - 1:
            raise DatasetError(
                f"{images[stem]}: expected the channel files of {name} to be numbered _0000, _0001, ... without a gap; "
                f"add the channel before it or rename the file."
            )
    return grouped


def _by_name(cases: Iterable[LabelledCase]) -> tuple[LabelledCase, ...]:
    return tuple(sorted(cases, key=lambda case: case.name))


def _refuse_other_formats(where: Path, cases: Sequence[LabelledCase], unlabelled: Sequence[LabelledCase]) -> None:
    files = [file for case in (*cases, *unlabelled) for file in (*case.image, case.label) if file is not None]
    others = [file.name for file in files if is_volume_name(file.name) and not is_nifti_name(file.name)]
    if others:
        raise DatasetError(
            f"{where}: expected .nii or .nii.gz files, got {len(others)} of other formats ({named(others)}); make a "
            f"data set of them by: {prepare_folder_command(where.parent)}"
        )


def _refuse_duplicates(folder: Path, cases: Iterable[LabelledCase], unlabelled: Iterable[LabelledCase]) -> None:
    everything = [*cases, *unlabelled]
    names = Counter(case.name for case in everything)
    files = Counter(file for case in everything for file in (*case.image, *([case.label] if case.label else [])))
    problems = [
        f"{file}: expected to be listed once, got {n} times; remove the other entries."
        for file, n in files.items()
        if n > 1
    ]
    if not problems:
        problems = [
            f"{folder}: expected one case called {name} in training and test together, got {n}; rename the files."
            for name, n in names.items()
            if n > 1
        ]
    if problems:
        raise DatasetError(problems)
