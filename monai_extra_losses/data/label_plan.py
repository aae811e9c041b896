"""Which id each structure of each label gets in a data set: as the sources number them, or by the names they give."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from monai_extra_losses.data.case_sources import CheckedCase
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import named
from monai_extra_losses.data.label_ids import label_names, name_key, new_label_ids, original_labels
from monai_extra_losses.data.label_layers import LayeredLabel


@dataclass(frozen=True)
class LabelPlan:
    """The ids of a data set.

    Args:
        new_ids: case -> id in its source -> id in the data set.
        labels: id -> name.
        originals: id in the data set -> the one id that it has in the sources, where that is another.
        notes: how the ids came about where that is no matter of course, a sentence each.
    """

    new_ids: dict[str, dict[int, int]]
    labels: dict[int, str]
    originals: dict[int, int]
    notes: tuple[str, ...] = ()


def plan_labels(
    cases: Sequence[CheckedCase],
    remap: Mapping[int, int],
    names: Mapping[int, str],
    ignore_label: int | None = None,
) -> LabelPlan:
    """Give the structures of all labels their ids.

    Where the labels name their structures and one name has two numbers, or one number two names, the ids follow the
    names: those of `names`, else 1, 2, ... in the order of the alphabet. Else they are the numbers of the sources, by
    `remap`. Names are equal whatever their case and spaces.

    Args:
        cases: all of them; those without a label are left out.
        remap: id of the sources -> id in the data set.
        names: id in the data set -> name.
        ignore_label: id in the data set of voxels without annotation, or None.

    Raises:
        DatasetError: numbers that contradict the names in a data set of which some labels have no names, or with a
            `remap` or an `ignore_label`; names of `names` that are not those of the structures; a label without a voxel
            of annotation; else as `new_label_ids` and `label_names`.
    """
    labelled = [case for case in cases if case.label is not None]
    contradiction = _contradiction(labelled)
    if contradiction is None:
        return _by_number(labelled, remap, names, ignore_label)
    unnamed = [str(case.label.path) for case in labelled if case.label is not None and not case.names]
    if unnamed:
        raise DatasetError(
            f"expected the names of the structures in every label, because {contradiction}, got none in "
            f"{named(unnamed)}; save them with names too (3D Slicer: .seg.nrrd), or write all as label maps in which "
            "one number is one structure."
        )
    if remap:
        raise DatasetError(
            f"expected no remap of numbers, because {contradiction}, got one; choose the ids by names, "
            '--names "1:NAME,2:NAME".'
        )
    if ignore_label is not None:
        raise DatasetError(
            f"expected no number of an ignore label, because {contradiction}, got {ignore_label}; call the segment of "
            "the voxels without annotation `ignore`."
        )
    return _by_name(labelled, names, contradiction)


def _by_number(
    cases: Sequence[CheckedCase], remap: Mapping[int, int], names: Mapping[int, str], ignore_label: int | None
) -> LabelPlan:
    new_ids = new_label_ids({value for case in cases for value in case.voxels}, remap, ignore_label)
    problems = [
        f"{_file(case)}: expected voxels with annotation, got the ignore label {ignore_label} in every voxel; leave "
        "the case out."
        for case in cases
        if {new_ids[value] for value in case.voxels} == {ignore_label}
    ]
    if problems:
        raise DatasetError(problems)
    classes = {old: new for old, new in new_ids.items() if new != ignore_label}
    found: dict[int, dict[str, str]] = {}
    for case in cases:
        for value, name in _names_in(case).items():
            if value not in classes:
                continue
            found.setdefault(new_ids[value], {}).setdefault(name_key(name), name)
    # an id that joins several has the name of none
    given = {value: next(iter(of_value.values())) for value, of_value in found.items() if len(of_value) == 1}
    labels = label_names(classes, {**given, **names})
    without = [str(case.label.path) for case in cases if case.label is not None and not case.names]
    notes = []
    if found and without:
        notes.append(
            f"{len(without)} of {len(cases)} labels do not name their structures ({named(without)}); their numbers are "
            "taken to mean what they mean in the others."
        )
    return LabelPlan({case.name: new_ids for case in cases}, labels, original_labels(classes), tuple(notes))


def _by_name(cases: Sequence[CheckedCase], names: Mapping[int, str], why: str) -> LabelPlan:
    shown: dict[str, str] = {}
    for case in cases:
        for name in _names_in(case).values():
            shown.setdefault(name_key(name), name)
    if not shown:
        raise DatasetError(
            "expected a structure in some label, got the background alone in every voxel of every label."
        )
    if names:
        ids = {name_key(name): value for value, name in names.items() if value}
        for problem, keys in (("no id for", shown.keys() - ids.keys()), ("an id for", ids.keys() - shown.keys())):
            if keys:
                none = "" if problem == "no id for" else ", which no label has"
                raise DatasetError(
                    f"expected names of the structures {_listed(shown.values())}, got {problem} "
                    f"{_listed(shown.get(key, key) for key in keys)}{none}; correct --names."
                )
        if sorted(ids.values()) != list(range(1, len(ids) + 1)):
            raise DatasetError(f"expected ids 1 to {len(ids)} in the names, got {_listed(map(str, ids.values()))}.")
    else:
        ids = {key: number for number, key in enumerate(sorted(shown), start=1)}
    labels = {0: "background", **{value: shown[key] for key, value in ids.items()}, **names}
    if len(set(labels.values())) < len(labels):
        raise DatasetError(f"expected another name for each id, got {_listed(labels.values())}; rename it.")
    new_ids = {
        case.name: {0: 0, **{value: ids[name_key(name)] for value, name in _names_in(case).items()}} for case in cases
    }
    note = f"ids follow the names of the structures, because {why}"
    return LabelPlan(new_ids, dict(sorted(labels.items())), {}, (f"{note}.",))


def _contradiction(cases: Sequence[CheckedCase]) -> str | None:
    """Why the numbers of the sources do not tell which structure is which; None where they do."""
    numbers: dict[str, tuple[int, CheckedCase]] = {}
    names: dict[int, tuple[str, CheckedCase]] = {}
    for case in cases:
        if isinstance(case.label, LayeredLabel) and case.names:
            return f"{case.label.path} has a layer or a file per structure"
        for value, name in _names_in(case).items():
            number, other = numbers.setdefault(name_key(name), (value, case))
            if number != value:
                return f"{name!r} is {number} in {_file(other)} and {value} in {_file(case)}"
            known, other = names.setdefault(value, (name, case))
            if name_key(known) != name_key(name):
                return f"{value} is {known!r} in {_file(other)} and {name!r} in {_file(case)}"
    return None


def _names_in(case: CheckedCase) -> dict[int, str]:
    """The names of the ids that have a voxel."""
    return {value: " ".join(name.split()) for value, name in case.names.items() if value in case.voxels}


def _file(case: CheckedCase) -> str:
    return "" if case.label is None else str(case.label.path)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
