"""From a folder of NIfTI files to a list of cases and its folds. Opens no volume; light imports only."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.ignore_label import split_ignore_label, value_in_memory

# (images, labels) folders looked for without a list in dataset.json; the first that exists counts.
_TRAINING_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
_TEST_FOLDERS = ("imagesTs", "labelsTs")
_SUFFIXES = (".nii.gz", ".nii")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_FOLDS = 5


@dataclass(frozen=True)
class LabelledCase:
    """One patient or scan.

    Args:
        name: file name of the image without `.nii.gz` (and without `_0000` where channels are files of their own).
        image: one file per channel, in the order of the channels, or one file with all channels.
        label: label map, or None where the data set has none.
        fold: the fold that dataset.json deals the case to, or None.
    """

    name: str
    image: tuple[Path, ...]
    label: Path | None
    fold: int | None = None


@dataclass(frozen=True)
class CaseList:
    """The cases of a data set and what is declared about them.

    Args:
        folder: the folder read.
        name: `name` of dataset.json, else the folder's name.
        cases: the labelled cases, sorted by name: `training` of dataset.json, else the pairs of files found.
        unlabelled: `test` of dataset.json (else the files of imagesTs/), sorted by name; a label is optional here.
        labels: value -> name, sorted by value, from `labels` of dataset.json; empty without dataset.json, because
            only the voxels can tell then (`check_cases` finds them).
        channels: names from `modality` or `channel_names` of dataset.json; empty without dataset.json.
        original_labels: value -> the one that the source of the data set has for it, where that is another; from
            `original_labels` of dataset.json, which `prepare` writes.
        regions: name -> label values, from `regions` of dataset.json; they may overlap. None without.
        ignore_label: value of voxels without annotation, none of `labels`; None without (`data.ignore_label`).
    """

    folder: Path
    name: str
    cases: tuple[LabelledCase, ...]
    unlabelled: tuple[LabelledCase, ...]
    labels: dict[int, str]
    channels: tuple[str, ...]
    original_labels: dict[int, int] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] | None = None
    ignore_label: int | None = None


def read_case_list(folder: str | Path) -> CaseList:
    """Read the cases of a data set folder.

    Args:
        folder: a Medical Segmentation Decathlon folder (dataset.json with `training`, `test`, `labels`, `modality`), an
            nnU-Net v2 folder (dataset.json with `labels` and `channel_names`, one file `NAME_0000.nii.gz` per channel),
            or imagesTr/ and labelsTr/ (or images/ and labels/) without dataset.json. Files are paired by name. Entries
            of `training` may have a `"fold"`, all of them or none, as MONAI's Auto3DSeg writes it. Voxels without
            annotation have the label named `ignore`, or that of `"ignore_label"`.

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
    declared = _read_json(declared_file) if declared_file.exists() else {}
    ignore_label, declared = split_ignore_label(declared, declared_file)
    if "training" in declared:
        cases = _listed_cases(declared, "training", folder)
        unlabelled = _listed_cases(declared, "test", folder)
    else:
        cases = _paired_cases(folder)
        unlabelled = _test_cases(folder)
    if not cases:
        raise DatasetError(
            f"{declared_file}: expected labelled cases under `training`, got an empty list; "
            "list them, or remove the key so that imagesTr/ and labelsTr/ are paired by file name."
        )
    _refuse_duplicates(folder, cases, unlabelled)
    labels = _declared_labels(declared, declared_file)
    return CaseList(
        folder=folder,
        name=str(declared.get("name") or folder.resolve().name),
        cases=cases,
        unlabelled=unlabelled,
        labels=labels,
        original_labels=_original_labels(declared, declared_file),
        channels=_declared_channels(declared, declared_file),
        regions=_declared_regions(declared, labels, declared_file),
        ignore_label=ignore_label,
    )


def count_folds(cases: Sequence[LabelledCase], num_folds: int | None) -> int:
    """Number of folds: as the cases declare it, else as asked, else 5.

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
    return declared or (_FOLDS if num_folds is None else num_folds)


def declares_regions(folder: str | Path) -> bool:
    """Whether dataset.json has `regions`; False for a folder that `read_case_list` would refuse."""
    try:
        return _read_json(Path(folder) / "dataset.json").get("regions") is not None
    except DatasetError:
        return False


def declared_ignore_label(folder: str | Path, regions: bool = True) -> tuple[int, int] | None:
    """The ignore label that dataset.json declares, and its `value_in_memory`; None without.

    Args:
        folder: of the data set.
        regions: whether the regions that it declares are trained.
    """
    where = Path(folder) / "dataset.json"
    try:
        ignore_label, declared = split_ignore_label(_read_json(where), where)
        labels = _declared_labels(declared, where)
        channels = _declared_regions(declared, labels, where) if regions else None
    except DatasetError:  # `read_case_list` will say it
        return None
    value = value_in_memory(ignore_label, max(len(labels), len(channels or ())))
    return None if ignore_label is None or value is None else (ignore_label, value)


def split_cases(
    cases: Sequence[LabelledCase], num_folds: int | None, fold: int, seed: int
) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """Training and validation cases of one fold.

    The folds are those that the cases declare, whatever the seed; else `deal_folds` deals each case by itself.

    Args:
        cases: all labelled cases; their names differ.
        num_folds: number of folds, at least 2; None: as `count_folds` says.
        fold: the fold that validates, 0 to `num_folds` - 1.
        seed: another seed deals the cases to other folds.

    Returns:
        `(training, validation)`, each sorted by name.

    Raises:
        DatasetError: `num_folds` below 2 or not the declared number, `fold` out of range, or fewer cases than folds.
    """
    num_folds = count_folds(cases, num_folds)
    _refuse_too_few_folds(num_folds)
    if not 0 <= fold < num_folds:
        raise DatasetError(f"expected fold 0 to {num_folds - 1} for num_folds {num_folds}, got {fold}.")
    declared = {case.name: case.fold for case in cases if case.fold is not None}
    dealt = declared or deal_folds({case.name: case.name for case in cases}, num_folds, seed)
    in_order = sorted(cases, key=lambda case: case.name)
    return (
        [case for case in in_order if dealt[case.name] != fold],
        [case for case in in_order if dealt[case.name] == fold],
    )


def deal_folds(groups: Mapping[str, str], num_folds: int, seed: int) -> dict[str, int]:
    """Deal cases to folds of even sizes that keep the groups whole.

    Large groups are dealt first, each to the smallest fold; among groups of one size the order is that of a hash of
    seed and group: the same on every machine and version, whatever random generators have done before, and whatever
    order the cases come in. Groups of one case each give fold sizes that differ by one at most.

    Args:
        groups: case name -> its group, such as the patient.
        num_folds: at least 2.
        seed: another seed deals the groups to other folds.

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
    filled = [0] * num_folds
    fold_of: dict[str, int] = {}
    for group in sorted(sizes, key=lambda group: (-sizes[group], hashes[group])):
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += sizes[group]
    return {name: fold_of[group] for name, group in groups.items()}


def _refuse_too_few_folds(num_folds: int) -> None:
    if num_folds < 2:
        raise DatasetError(
            f"expected num_folds of at least 2, got {num_folds}: one fold validates and the others train; "
            "5 is a good choice."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: expected valid JSON, got an error ({error}); correct the file.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected an object with `training` and `labels`, got {type(content).__name__}.")
    return content


def _listed_cases(declared: Mapping[str, Any], key: str, folder: Path) -> tuple[LabelledCase, ...]:
    """The entries of `training` (image and label) or `test` (image, or image and label) of dataset.json."""
    where = folder / "dataset.json"
    entries = declared.get(key, [])
    if not isinstance(entries, list):
        raise DatasetError(f"{where}: expected a list under `{key}`, got {type(entries).__name__}.")
    cases = []
    for position, entry in enumerate(entries):
        fields = {"image": entry} if isinstance(entry, str) and key == "test" else entry
        image = fields.get("image") if isinstance(fields, dict) else None
        label = fields.get("label") if isinstance(fields, dict) else None
        files = [image] if isinstance(image, str) else image
        if (
            not isinstance(files, list)
            or not files
            or not all(isinstance(file, str) for file in files)
            or not isinstance(label, str | None)
            or (label is None and key == "training")
        ):
            raise DatasetError(
                f"{where}: expected entry {position} of `{key}` to give "
                f'{{"image": FILE, "label": FILE}}{" or FILE" if key == "test" else ""}, got {json.dumps(entry)}.'
            )
        stem = _stem(files[0])
        channel = _CHANNEL.fullmatch(stem) if len(files) > 1 else None
        cases.append(
            LabelledCase(
                name=channel["case"] if channel else stem,
                image=tuple(folder / file for file in files),
                label=None if label is None else folder / label,
                fold=fields.get("fold") if key == "training" and isinstance(fields, dict) else None,
            )
        )
    _refuse_odd_folds(where, cases)
    return tuple(sorted(cases, key=lambda case: case.name))


def _refuse_odd_folds(where: Path, cases: Sequence[LabelledCase]) -> None:
    folds = {json.dumps(case.fold) for case in cases}  # as text, because true, 1.0 and 1 are equal
    if folds <= {"null"} or folds == {str(fold) for fold in range(len(folds))}:
        return
    got = ", ".join("none" if text == "null" else text for text in sorted(folds))
    raise DatasetError(
        f"{where}: expected every entry of `training` with a `fold`, whole numbers from 0 without an empty fold, or "
        f"none with one, got {got}; correct the entries or remove `fold` from all."
    )


def _paired_cases(folder: Path) -> tuple[LabelledCase, ...]:
    """Images and labels of the same name."""
    for images_name, labels_name in _TRAINING_FOLDERS:
        if (folder / images_name).is_dir() and (folder / labels_name).is_dir():
            images, labels = _nifti_files(folder / images_name), _nifti_files(folder / labels_name)
            break
    else:
        raise DatasetError(
            f"{folder}: expected dataset.json with a list of cases, or the folders imagesTr/ and labelsTr/, "
            f"got neither; is this the data set's own folder?"
        )
    grouped = _group_channels(images, labels)
    problems = [
        f"{file}: expected a label of the same name in {folder / labels_name}, got none; "
        "add the label or move the image away."
        for name in sorted(grouped.keys() - labels.keys())
        for file in grouped[name]
    ]
    problems += [
        f"{labels[name]}: expected an image of the same name (or NAME_0000) in {folder / images_name}, got none; "
        "add the image or move the label away."
        for name in sorted(labels.keys() - grouped.keys())
    ]
    if problems:
        raise DatasetError(problems)
    if not grouped:
        raise DatasetError(
            f"{folder}: expected pairs of .nii or .nii.gz files in {images_name}/ and {labels_name}/, got none."
        )
    return tuple(LabelledCase(name, grouped[name], labels[name]) for name in sorted(grouped))


def _test_cases(folder: Path) -> tuple[LabelledCase, ...]:
    images_folder, labels_folder = (folder / name for name in _TEST_FOLDERS)
    images = _nifti_files(images_folder) if images_folder.is_dir() else {}
    labels = _nifti_files(labels_folder) if labels_folder.is_dir() else {}
    grouped = _group_channels(images, labels)
    return tuple(LabelledCase(name, grouped[name], labels.get(name)) for name in sorted(grouped))


def _group_channels(images: Mapping[str, Path], labels: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """Case name -> its files: `NAME`, or `NAME_0000`, `NAME_0001`, ... unless a label has that very name."""
    grouped: dict[str, tuple[Path, ...]] = {}
    for stem in sorted(images):
        channel = None if stem in labels else _CHANNEL.fullmatch(stem)
        name = channel["case"] if channel else stem
        grouped[name] = (*grouped.get(name, ()), images[stem])
        if channel and int(channel["channel"]) != len(grouped[name]) - 1:
            raise DatasetError(
                f"{images[stem]}: expected the channel files of {name} to be numbered _0000, _0001, ... without a gap; "
                f"add the channel before it or rename the file."
            )
    return grouped


def _nifti_files(folder: Path) -> dict[str, Path]:
    """Stem -> file. Hidden files are left out: archives made on macOS hold a ._NAME.nii.gz beside every file."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith(_SUFFIXES):
            continue
        if _stem(path.name) in found:
            raise DatasetError(
                f"{path}: expected one file per name, got {found[_stem(path.name)].name} too; remove one."
            )
        found[_stem(path.name)] = path
    return found


def _stem(file: str) -> str:
    name = Path(file).name
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)


def _refuse_duplicates(folder: Path, cases: Iterable[LabelledCase], unlabelled: Iterable[LabelledCase]) -> None:
    everything = [*cases, *unlabelled]
    names = Counter(case.name for case in everything)
    files = Counter(file for case in everything for file in (*case.image, *([case.label] if case.label else [])))
    problems = [f"{file}: expected to be listed once, got {n} times." for file, n in files.items() if n > 1]
    if not problems:
        problems = [
            f"{folder}: expected one case called {name} in training and test together, got {n}; rename the files."
            for name, n in names.items()
            if n > 1
        ]
    if problems:
        raise DatasetError(problems)


def _declared_labels(declared: Mapping[str, Any], where: Path) -> dict[int, str]:
    """`labels` of dataset.json, as {"0": "background"} (Decathlon) or {"background": 0} (nnU-Net v2)."""
    if not declared:
        return {}
    entries = declared.get("labels")
    hint = 'write {"0": "background", "1": NAME, ...} with a name per label value'
    if not isinstance(entries, dict):
        raise DatasetError(f"{where}: expected an object under `labels`, got {json.dumps(entries)}; {hint}.")
    pairs = []
    for key, value in entries.items():
        number, name = (key, value) if isinstance(value, str) else (value, key)
        if isinstance(number, bool) or not str(number).isdecimal():
            raise DatasetError(f"{where}: expected whole numbers in `labels`, got {json.dumps({key: value})}; {hint}.")
        pairs.append((int(number), name))
    labels = dict(sorted(pairs))
    if len(labels) != len(pairs) or len(set(labels.values())) != len(pairs):
        raise DatasetError(f"{where}: expected every value and name once in `labels`, got {json.dumps(entries)}.")
    if 0 not in labels or len(labels) < 2:
        raise DatasetError(
            f"{where}: expected 0 (background) and one more value at least in `labels`, "
            f"got {json.dumps(entries)}; {hint}."
        )
    return labels


def _original_labels(declared: Mapping[str, Any], where: Path) -> dict[int, int]:
    """`original_labels` of dataset.json, {"3": 4}: value 4 of the source has become 3."""
    entries = declared.get("original_labels", {})
    if not isinstance(entries, dict) or not all(
        value.isdecimal() and isinstance(original, int) and not isinstance(original, bool)
        for value, original in entries.items()
    ):
        raise DatasetError(
            f'{where}: expected `original_labels` as {{"3": 4, ...}}, value here and value in the source, '
            f"got {json.dumps(entries)}; correct or remove it."
        )
    return {int(value): original for value, original in entries.items()}


def _declared_channels(declared: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """`modality` (Decathlon) or `channel_names` (nnU-Net v2), both {"0": NAME, ...}."""
    entries = declared.get("channel_names", declared.get("modality", {}))
    if not isinstance(entries, dict) or {str(key) for key in entries} != {str(i) for i in range(len(entries))}:
        raise DatasetError(
            f'{where}: expected `modality` as {{"0": NAME, "1": NAME, ...}} without gaps, got {json.dumps(entries)}.'
        )
    return tuple(str(entries[str(i)]) for i in range(len(entries)))


def _declared_regions(
    declared: Mapping[str, Any], labels: Mapping[int, str], where: Path
) -> dict[str, tuple[int, ...]] | None:
    """`regions` of dataset.json, as {NAME: [label value, ...]}."""
    entries = declared.get("regions")
    if entries is None:
        return None
    hint = 'write {"whole": [1, 2], "core": [2]}, each region with the label values that it joins'
    if not isinstance(entries, dict) or not entries:
        raise DatasetError(f"{where}: expected an object under `regions`, got {json.dumps(entries)}; {hint}.")
    regions = {}
    for name, values in entries.items():
        if not isinstance(values, list) or not values:
            raise DatasetError(
                f"{where}: expected label values in the region {name!r}, got {json.dumps(values)}; {hint}."
            )
        foreign = [value for value in values if isinstance(value, bool) or value not in labels or value == 0]
        if foreign:
            raise DatasetError(
                f"{where}: expected declared label values other than the background in the region {name!r} "
                f"({', '.join(str(value) for value in labels if value)}), got {', '.join(map(json.dumps, foreign))}."
            )
        regions[name] = tuple(sorted({int(value) for value in values}))
    return regions
