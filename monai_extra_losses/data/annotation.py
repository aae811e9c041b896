"""Which classes the annotation of a case covers: how dataset.json declares it, and what contradicts it.

`"annotated": [1, 3]` in an entry says that voxels of 1 and 3 are labelled wherever they are, and that the case says
nothing of the other classes: a voxel of the background may be one of them. `"annotated": {"case_1": [1, 3]}` says so
once for all entries. Light imports only.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import first_of
from monai_extra_losses.data.json_file import quoted

_KEY = "annotated"
_SHOWN = 5  # classes in one sentence


def annotates(annotated: Collection[int] | None, values: Iterable[int]) -> bool:
    """Whether all of some label values are annotated, as `LabelledCase.annotated` has them."""
    return annotated is None or {0, *annotated}.issuperset(values)


def declared_annotated(
    entry: Mapping[str, Any], labels: Mapping[int, str], ignore_label: int | None, where: Path, what: str = ""
) -> tuple[int, ...] | None:
    """`annotated` of an entry of dataset.json, or of the whole file as the default of the entries.

    Args:
        entry: what may have the key.
        labels: value -> name, as declared, without the ignore label.
        ignore_label: value of voxels without annotation, or None.
        where: dataset.json.
        what: the entry in words, for the sentences; empty: the whole file.

    Returns:
        The label values, sorted and without 0; None without the key, which means all, or where it has a list per case.

    Raises:
        DatasetError: what is no list of declared label values, or has none but the background.
    """
    values = entry.get(_KEY)
    if _KEY not in entry or (isinstance(values, dict) and not what):
        return None
    key = f"`{_KEY}`{f' of {what}' if what else ''}"
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise DatasetError(
            f"{where}: expected {key} to be a list of label values such as [1, 2], got {quoted(values)}; correct it."
        )
    foreign = [value for value in values if value not in labels]
    if foreign:
        hint = (
            "leave it out, voxels without annotation are so in every case"
            if ignore_label in foreign
            else "correct it, or declare it in `labels`"
        )
        raise DatasetError(
            f"{where}: expected declared label values in {key} ({shown_classes(labels)}), got "
            f"{first_of(list(map(str, foreign)), _SHOWN)}{', the ignore label' if ignore_label in foreign else ''}; "
            f"{hint}."
        )
    annotated = tuple(sorted({*values} - {0}))
    if not annotated:
        leave = "leave the case out" if what else "leave the key out"
        raise DatasetError(
            f"{where}: expected label values other than 0 in {key}, got {quoted(values)}; {leave}, or list the classes "
            "that are annotated."
        )
    return annotated


def annotated_by_case(
    declared: Mapping[str, Any], labels: Mapping[int, str], ignore_label: int | None, where: Path, cases: Iterable[str]
) -> dict[str, tuple[int, ...]]:
    """`annotated` of a whole dataset.json that gives it as {CASE: [value, ...]}, of those that do not annotate all.

    Args:
        declared: content of dataset.json.
        labels, ignore_label, where: as of `declared_annotated`.
        cases: names of all cases with labels.

    Raises:
        DatasetError: as there, or a name of no case.
    """
    entries = declared.get(_KEY)
    if not isinstance(entries, dict):
        return {}
    if strange := sorted(entries.keys() - set(cases)):
        raise DatasetError(
            f"{where}: expected `{_KEY}` to be a list of label values such as [1, 2], or lists by the names of cases "
            f"with labels, got the names {first_of(strange, _SHOWN)}; correct it."
        )
    found = {
        name: declared_annotated({_KEY: values}, labels, ignore_label, where, f"the case {name}")
        for name, values in entries.items()
    }
    return {name: values for name, values in found.items() if values is not None}


def contradiction(
    label: Path, voxels: Mapping[int, int], annotated: Collection[int] | None, labels: Mapping[int, str], place: str
) -> Iterable[str]:
    """What is wrong with a label map that has voxels of classes which its case does not annotate.

    Args:
        label: the file.
        voxels: label value -> voxels.
        annotated: label values; None: all.
        labels: value -> name, as declared; other values are another matter.
        place: where to declare what is found, in words.
    """
    if annotated is None:
        return
    found = [value for value, count in voxels.items() if count and value in labels and value not in (0, *annotated)]
    if found:
        shown = first_of([f"{value} {labels[value]} ({voxels[value]} voxels)" for value in found], _SHOWN)
        yield (
            f"{label}: expected voxels of the classes that the case annotates "
            f"({shown_classes({value: labels[value] for value in annotated if value in labels})}), got {shown}; "
            f"add {first_of(list(map(str, found)), _SHOWN)} to {place}, or remove the voxels from the label map."
        )


def never_annotated(
    cases: Collection[tuple[int, ...] | None],
    labels: Mapping[int, str],
    regions: Mapping[str, tuple[int, ...]] | None,
    where: Path,
) -> list[str]:
    """A sentence on the classes, and one on the regions, that none of the cases annotates.

    Args:
        cases: `LabelledCase.annotated` of each.
        labels: value -> name, as declared.
        regions: name -> label values, or None. A region is annotated where all of its labels are.
        where: dataset.json.
    """
    kinds = set(cases)  # few, also of thousands of cases
    if None in kinds or not kinds:
        return []
    known = {value for annotated in kinds for value in annotated or ()}
    missing = {value: name for value, name in labels.items() if value and value not in known}
    problems = []
    if missing:
        problems.append(
            f"{where}: expected every class to be annotated in some case, got none for {shown_classes(missing)}; "
            "correct `annotated`, add cases that annotate it, or remove it from `labels`."
        )
    apart = [
        f"{name} ({', '.join(map(str, values))})"
        for name, values in (regions or {}).items()
        if known.issuperset(values) and not any(annotates(annotated, values) for annotated in kinds)
    ]
    if apart:
        problems.append(
            f"{where}: expected every region to be annotated in some case, which takes all of its labels, got none for "
            f"{first_of(apart, _SHOWN)}; correct `annotated`, add cases that annotate it, or remove it from `regions`."
        )
    return problems


def shown_classes(labels: Mapping[int, str]) -> str:
    """The first classes by value and name, and how many more there are."""
    return first_of([f"{value} {name}" for value, name in labels.items()], _SHOWN)
