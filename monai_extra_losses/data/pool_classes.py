"""The classes of a pooled data set: labels of equal names are one class, whatever ids they have in their data sets."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import first_of, named
from monai_extra_losses.data.label_ids import name_key
from monai_extra_losses.data.pool_sources import PoolSource
from monai_extra_losses.data.segments import Segments

_NO_CLASS = ("background", "ignore")
_IGNORE_LABEL = 255


@dataclass(frozen=True)
class ClassPlan:
    """The ids of a pooled data set.

    Args:
        labels: id -> name; 0 is the background.
        ignore_label: id of voxels without annotation, or None where no data set has such.
        new_ids: data set -> id in it -> id in the pooled one.
        notes: which labels of one data set become one class, a sentence each.
        segments: how DICOM shows and codes the classes, as the first data set says that says so.
    """

    labels: dict[int, str]
    ignore_label: int | None
    new_ids: dict[str, dict[int, int]]
    notes: tuple[str, ...]
    segments: Segments


def parse_rename(text: str) -> dict[str, str]:
    """`"liver_tumor:tumor,Leber=liver"` as {"liver_tumor": "tumor", "Leber": "liver"}."""
    pairs = [re.fullmatch(r"\s*([^:=]*[^:=\s])\s*[:=]\s*([^:=]*[^:=\s])\s*", entry) for entry in text.split(",")]
    rename = {pair[1]: pair[2] for pair in pairs if pair}
    if len(rename) != len(pairs) or len({name_key(name) for name in rename}) != len(pairs):
        raise DatasetError(
            f'expected names of classes as OLD:NEW,OLD:NEW, each old one once, such as "liver_tumor:tumor", got '
            f"{text!r}."
        )
    return rename


def plan_classes(sources: Sequence[PoolSource], rename: Mapping[str, str]) -> ClassPlan:
    """Give the labels of all data sets their ids: 1, 2, ... as their names first appear, in the order of the sources.

    Names are equal whatever their case and spaces; a class is called as where it appears first. Labels of one data set
    whose names are equal, by `rename` say, are one class. The ignore label is 255, or where that is the id of a class
    the first above all classes.

    Args:
        sources: the data sets.
        rename: name in the data sets -> name in the pooled one; the other names stay.

    Raises:
        DatasetError: all at once: names to rename that no data set has, classes with the name of what is none, cases in
            which only some of the labels of a class are annotated.
    """
    renamed = {name_key(old): " ".join(new.split()) for old, new in rename.items()}
    called = {
        source.name: {
            value: renamed.get(name_key(name), " ".join(name.split()))
            for value, name in source.case_list.labels.items()
            if value
        }
        for source in sources
    }
    problems = [*_rename_problems(sources, rename), *_name_problems(sources, called)]
    labels = {0: "background"}
    ids: dict[str, int] = {}
    for names in called.values():
        for name in names.values():
            if name_key(name) not in ids:
                ids[name_key(name)] = len(labels)
                labels[len(labels)] = name
    has_ignored = any(source.case_list.ignore_label is not None for source in sources)
    ignore_label = max(_IGNORE_LABEL, len(labels)) if has_ignored else None
    new_ids: dict[str, dict[int, int]] = {}
    notes = []
    for source in sources:
        own = {0: 0, **{value: ids[name_key(name)] for value, name in called[source.name].items()}}
        for joined in _joined(own):
            before = [f"{value} {source.case_list.labels[value]}" for value in joined]
            into = labels[own[joined[0]]]
            notes.append(f"{source.name}: the labels {' and '.join(before)} become one class, {into}.")
            problems += _partly_annotated(source, joined, into)
        if ignore_label is not None and source.case_list.ignore_label is not None:
            own[source.case_list.ignore_label] = ignore_label
        new_ids[source.name] = own
    if problems:
        raise DatasetError(problems)
    segments, of_segments = _segments(sources, labels, new_ids)
    return ClassPlan(labels, ignore_label, new_ids, (*notes, *of_segments), segments)


def _segments(
    sources: Sequence[PoolSource], labels: Mapping[int, str], new_ids: Mapping[str, Mapping[int, int]]
) -> tuple[Segments, list[str]]:
    """Colours and codes of the classes, and a sentence on each that data sets give others."""
    segments: Segments = {}
    owners: dict[str, str] = {}
    notes = []
    for source in sources:
        for value, name in source.case_list.labels.items():
            if (entry := source.case_list.segments.get(name)) is None:
                continue
            into = labels[new_ids[source.name][value]]
            if segments.setdefault(into, entry) == entry:
                owners.setdefault(into, source.name)
            else:
                notes.append(
                    f"{source.name}: {name} has another colour or code than {into} of {owners[into]}, which stays."
                )
    return segments, notes


def _rename_problems(sources: Sequence[PoolSource], rename: Mapping[str, str]) -> Iterable[str]:
    names = [name for source in sources for value, name in source.case_list.labels.items() if value]
    there = {name_key(name): name for name in reversed(names)}  # as where it appears first
    if unknown := [old for old in rename if name_key(old) not in there]:
        yield (
            f"expected names of classes to rename, got {', '.join(unknown)}, which no data set has; they have "
            f"{', '.join(dict.fromkeys(there[name_key(name)] for name in names))}."
        )
    for old, new in rename.items():
        if name_key(new) in _NO_CLASS:
            yield f"expected the name of a class to rename {old} to, got {new}, which is none; choose another name."


def _name_problems(sources: Sequence[PoolSource], called: Mapping[str, Mapping[int, str]]) -> Iterable[str]:
    for source in sources:
        for value, name in called[source.name].items():
            if name_key(name) in _NO_CLASS and name_key(source.case_list.labels[value]) in _NO_CLASS:
                yield (
                    f"{source.folder / 'dataset.json'}: expected the name of a class for the label {value}, got "
                    f"{name}, which is none; correct it, or give it another with --rename."
                )


def _joined(own: Mapping[int, int]) -> list[list[int]]:
    """Labels of one data set that become one class."""
    by_class: dict[int, list[int]] = {}
    for value, new in own.items():
        by_class.setdefault(new, []).append(value)
    return [values for values in by_class.values() if len(values) > 1]


def _partly_annotated(source: PoolSource, joined: Sequence[int], name: str) -> Iterable[str]:
    wrong = [
        case.name for case in source.case_list.cases if 0 < len({*joined} & {*source.annotated(case)}) < len(joined)
    ]
    if wrong:
        labels = first_of([source.case_list.labels[value] for value in joined], shown=len(joined))
        yield (
            f"{source.folder}: expected cases in which all or none of {labels} are annotated, which are joined as "
            f"{name}, got {len(wrong)} with some of them ({named(wrong)}); leave these out, or rename fewer."
        )
