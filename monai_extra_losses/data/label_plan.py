"""Which id each structure of each label gets in a data set: as the sources number them, or by the names they give."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from monai_extra_losses.data.annotation import contradiction, shown_classes
from monai_extra_losses.data.case_sources import CheckedCase
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import first_of, named
from monai_extra_losses.data.ignore_label import is_ignore_name
from monai_extra_losses.data.label_ids import label_names, listed_ids, name_key, new_label_ids, original_labels
from monai_extra_losses.data.label_layers import LayeredLabel

_SHOWN = 5  # structures in one sentence


@dataclass(frozen=True)
class LabelPlan:
    """The ids of a data set.

    Args:
        new_ids: case -> id in its source -> id in the data set.
        labels: id -> name.
        originals: id in the data set -> the one id that it has in the sources, where that is another.
        notes: how the ids came about where that is no matter of course, a sentence each.
        annotated: ids that every case annotates; None: all.
        annotated_in: case -> ids, of the cases that annotate fewer.
        regions: name -> ids, of structures that overlap; None where they do not.
    """

    new_ids: dict[str, dict[int, int]]
    labels: dict[int, str]
    originals: dict[int, int]
    notes: tuple[str, ...] = ()
    annotated: tuple[int, ...] | None = None
    annotated_in: dict[str, tuple[int, ...]] = field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] | None = None

    @property
    def classes(self) -> dict[int, str]:
        """The labels without that of voxels which nobody has annotated."""
        return {value: name for value, name in self.labels.items() if not is_ignore_name(name)}


def plan_labels(
    cases: Sequence[CheckedCase],
    remap: Mapping[int, int],
    names: Mapping[int, str],
    ignore_label: int | None = None,
    annotated: Collection[int] | None = None,
    organ_masks: bool = False,
    further_names: bool = False,
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
        annotated: ids in the data set that every case annotates, and no others; the ids of `names` need no voxel then.
            None: all.
        organ_masks: whether a case does not annotate the structures of which it has no mask file; else these are
            absent from it.
        further_names: whether ids of `names` need no voxel.

    Raises:
        DatasetError: numbers that contradict the names in a data set of which some labels have no names, or with a
            `remap` or an `ignore_label`; names of `names` that are not those of the structures; a label without a voxel
            of annotation; ids to annotate that are none of the data set; voxels of ids that are not annotated; else as
            `new_label_ids` and `label_names`.
    """
    labelled = [case for case in cases if case.label is not None]
    plan = _numbered(labelled, remap, names, ignore_label, further_names or annotated is not None)
    if annotated is not None:
        return _annotated_alike(plan, labelled, annotated)
    return _annotated_by_files(plan, labelled, organ_masks)


def _numbered(
    labelled: Sequence[CheckedCase],
    remap: Mapping[int, int],
    names: Mapping[int, str],
    ignore_label: int | None,
    further_names: bool,
) -> LabelPlan:
    contradiction = _contradiction(labelled)
    if contradiction is None:
        return _by_number(labelled, remap, names, ignore_label, further_names)
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
    return _by_name(labelled, names, contradiction, further_names)


def _by_number(
    cases: Sequence[CheckedCase],
    remap: Mapping[int, int],
    names: Mapping[int, str],
    ignore_label: int | None,
    further_names: bool,
) -> LabelPlan:
    named_ids = names.keys() - {ignore_label} if further_names else None
    new_ids = new_label_ids({value for case in cases for value in case.voxels}, remap, ignore_label, named_ids)
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
    labels = label_names(classes, {**given, **names}, named_ids or ())
    without = [str(case.label.path) for case in cases if case.label is not None and not case.names]
    notes = []
    if found and without:
        notes.append(
            f"{len(without)} of {len(cases)} labels do not name their structures ({named(without)}); their numbers are "
            "taken to mean what they mean in the others."
        )
    return LabelPlan({case.name: new_ids for case in cases}, labels, original_labels(classes), tuple(notes))


def _by_name(cases: Sequence[CheckedCase], names: Mapping[int, str], why: str, further_names: bool) -> LabelPlan:
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
        refuse_other_names(shown, ids, further_names)
        if sorted(ids.values()) != list(range(1, len(ids) + 1)):
            raise DatasetError(f"expected ids 1 to {len(ids)} in the names, got {_listed(map(str, ids.values()))}.")
    else:
        ids = {key: number for number, key in enumerate(sorted(shown), start=1)}
    labels = {0: "background", **{value: shown.get(key, key) for key, value in ids.items()}, **names}
    if len(set(labels.values())) < len(labels):
        raise DatasetError(f"expected another name for each id, got {_listed(labels.values())}; rename it.")
    new_ids = {
        case.name: {0: 0, **{value: ids[name_key(name)] for value, name in _names_in(case).items()}} for case in cases
    }
    notes = [f"ids follow the names of the structures, because {why}."]
    unseen = {name_key(name): " ".join(name.split()) for case in cases for name in case.names.values()}
    if empty := [name for key, name in unseen.items() if key not in ids]:
        notes.append(f"{len(empty)} structures are no labels, because no case has a voxel of them ({named(empty)}).")
    return LabelPlan(new_ids, dict(sorted(labels.items())), {}, tuple(notes))


def refuse_other_names(shown: Mapping[str, str], given: Collection[str], further_names: bool = False) -> None:
    """Refuse names that are not those of the structures.

    Args:
        shown: key of a name -> the name, of each structure that has a voxel.
        given: keys of the names that have an id.
        further_names: whether some of these need no voxel.

    Raises:
        DatasetError: a structure without an id, or an id without a structure.
    """
    further = set() if further_names else {*given} - shown.keys()
    for problem, keys in (("no id for", shown.keys() - {*given}), ("an id for", further)):
        if keys:
            none = "" if problem == "no id for" else ", which no label has"
            raise DatasetError(
                f"expected names of the structures {_listed(shown.values())}, got {problem} "
                f"{_listed(shown.get(key, key) for key in keys)}{none}; correct --names."
            )


def _annotated_alike(plan: LabelPlan, cases: Sequence[CheckedCase], annotated: Collection[int]) -> LabelPlan:
    """The plan where every case annotates the same ids."""
    ids = tuple(sorted({*annotated} - {0}))
    structures = {value: name for value, name in plan.classes.items() if value}
    if not ids or not structures.keys() >= {*ids}:
        got = listed_ids({*ids} - structures.keys()) if ids else "none but the background"
        raise DatasetError(
            f"expected annotated ids of the data set ({shown_classes(structures)}), got {got}; correct --annotated, or "
            "give --names to the ids that no label has."
        )
    problems: list[str] = []
    for case in cases:
        voxels: Counter[int] = Counter()
        for value, count in case.voxels.items():
            voxels[plan.new_ids[case.name][value]] += count
        if case.label is not None:
            problems += contradiction(case.label.path, voxels, ids, plan.classes, "--annotated")
    if problems:
        raise DatasetError(problems)
    notes = plan.notes
    if others := {value: name for value, name in structures.items() if value not in ids}:
        notes += (f"no case annotates {shown_classes(others)}; a training needs cases of another data set that do.",)
    return replace(plan, annotated=ids, notes=notes)


def _annotated_by_files(plan: LabelPlan, cases: Sequence[CheckedCase], organ_masks: bool) -> LabelPlan:
    """The plan where mask files say what a case annotates, or without `organ_masks` a note on those that lack."""
    ids = {name_key(name): value for value, name in plan.classes.items() if value}
    lacking: dict[str, list[int]] = {}
    problems = []
    for case in cases:
        if isinstance(case.label, LayeredLabel) and case.label.masks:
            there = {name_key(name) for name in case.names.values()}
            if missing := [value for key, value in ids.items() if key not in there]:
                lacking[case.name] = missing
            if organ_masks and len(missing) == len(ids):
                problems.append(
                    f"{case.label.path}: expected a mask of a structure that some case has ({named(ids)}), got none; "
                    "leave the case out."
                )
    if problems:
        raise DatasetError(problems)
    if not lacking:
        return plan
    counts = Counter(value for missing in lacking.values() for value in missing)
    shown = first_of([f"{plan.labels[value]} in {count}" for value, count in counts.most_common()], _SHOWN)
    said = f"{len(lacking)} of {len(cases)} cases have no file of some structure ({shown}), which counts as"
    if not organ_masks:
        note = f"{said} absent there; if nobody has looked for it, --organ-masks DIR takes it for not annotated."
        return replace(plan, notes=(*plan.notes, note))
    annotated_in = {case: tuple(sorted({*ids.values()} - {*missing})) for case, missing in lacking.items()}
    return replace(plan, annotated_in=annotated_in, notes=(*plan.notes, f"{said} not annotated there."))


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
