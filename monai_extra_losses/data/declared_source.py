"""A folder with dataset.json as the source of `prepare`: its files, of any format, and what it declares about them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_extra_losses.data.annotation import contradiction
from monai_extra_losses.data.case_sources import CheckedCase
from monai_extra_losses.data.datalist import LabelledCase, read_case_list
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import first_of, named
from monai_extra_losses.data.ignore_label import hint_to_ignore
from monai_extra_losses.data.pairing import SourceCase
from monai_extra_losses.data.segments import Segments

_SHOWN = 5  # label values in one sentence


@dataclass(frozen=True)
class DeclaredSource:
    """The cases of a folder, and what its dataset.json declares, in the ids of the data set to be made.

    Args:
        folder: read.
        cases: with labels.
        unlabelled: cases to segment.
        new_ids: declared label value -> id, 0 to n in the order of the values, and the ignore label.
        names: id -> name.
        channels: their names; empty where none are declared.
        ignore_label: id of voxels without annotation, or None.
        regions: name -> ids, or None.
        regions_class_order: id that each region paints, or None.
        originals: id -> the value that the source of the folder has for it, where that is another.
        annotated: case -> ids, of those that do not annotate all classes.
        folds: case -> fold, where the folder declares folds.
        passed_over: what is not read, a sentence each.
        segments: how DICOM shows and codes labels and regions.
    """

    folder: Path
    cases: tuple[SourceCase, ...]
    unlabelled: tuple[SourceCase, ...]
    new_ids: dict[int, int]
    names: dict[int, str]
    channels: tuple[str, ...]
    ignore_label: int | None
    regions: dict[str, tuple[int, ...]] | None
    regions_class_order: tuple[int, ...] | None
    originals: dict[int, int]
    annotated: dict[str, tuple[int, ...]] = field(default_factory=dict)
    folds: dict[str, int] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    segments: Segments = field(default_factory=dict)

    def problems(self, read: Sequence[CheckedCase]) -> Iterable[str]:
        """What contradicts dataset.json in the voxels of labels: values not declared, classes not annotated."""
        where = self.folder / "dataset.json"
        for case in read:
            if case.label is None:
                continue
            foreign = {value: count for value, count in case.voxels.items() if value not in self.new_ids}
            if foreign:
                shown = first_of([f"{value} ({count} voxels)" for value, count in foreign.items()], _SHOWN)
                yield (
                    f"{case.label.path}: expected the label values that {where} declares "
                    f"({first_of(list(map(str, self.new_ids)), _SHOWN)}), got {shown}; correct one of them"
                    f"{hint_to_ignore(foreign, where)}."
                )
            voxels = {self.new_ids[value]: count for value, count in case.voxels.items() if value in self.new_ids}
            place = f"its `annotated` in {where}"
            yield from contradiction(case.label.path, voxels, self.annotated.get(case.name), self.names, place)


def declared_source(folder: Path) -> DeclaredSource:
    """Read the cases of a folder with dataset.json, of any format that `prepare` takes.

    Raises:
        DatasetError: as `read_case_list`, or a folder without dataset.json.
    """
    if folder.is_dir() and not (folder / "dataset.json").exists():
        raise DatasetError(
            f"{folder}: expected dataset.json, which names the labels, got none; give --images and --labels instead."
        )
    found = read_case_list(folder, other_formats=True)
    new_ids = consecutive_ids(found.labels, found.ignore_label)
    originals = {new_ids[value]: found.original_labels.get(value, value) for value in found.labels}
    passed_over = list(found.passed_over)
    if labels := [case.label.name for case in found.unlabelled if case.label is not None]:
        passed_over.append(f"{folder}: {len(labels)} labels of test cases ({named(labels)}).")
    if apart := [case.name for case in found.cases if case.validation]:
        passed_over.append(f"{folder}: that {len(apart)} cases are set apart to validate ({named(apart)}).")
    return DeclaredSource(
        folder=folder,
        cases=tuple(map(_source, found.cases)),
        unlabelled=tuple(SourceCase(case.name, case.image) for case in found.unlabelled),
        new_ids=new_ids,
        names={new_ids[value]: name for value, name in found.labels.items()},
        channels=found.channels,
        ignore_label=None if found.ignore_label is None else new_ids[found.ignore_label],
        regions=mapped_regions(found.regions, new_ids),
        regions_class_order=found.regions_class_order and tuple(new_ids[value] for value in found.regions_class_order),
        originals={new: old for new, old in originals.items() if new != old},
        annotated={
            case.name: tuple(new_ids[value] for value in case.annotated)
            for case in found.cases
            if case.annotated is not None
        },
        folds={} if apart else {case.name: case.fold for case in found.cases if case.fold is not None},
        passed_over=tuple(passed_over),
        segments=found.segments,
    )


def consecutive_ids(labels: Iterable[int], ignore_label: int | None) -> dict[int, int]:
    """Label value -> 0 to n - 1 in the order of the values; the ignore label keeps its value, or gets n."""
    new_ids = {value: number for number, value in enumerate(sorted(labels))}
    if ignore_label is not None:
        taken = ignore_label in new_ids.values()
        new_ids[ignore_label] = len(new_ids) if taken else ignore_label
    return new_ids


def mapped_regions(
    regions: Mapping[str, Sequence[int]] | None, new_ids: Mapping[int, int]
) -> dict[str, tuple[int, ...]] | None:
    """The regions in other ids."""
    if regions is None:
        return None
    return {name: tuple(sorted(new_ids[value] for value in values)) for name, values in regions.items()}


def _source(case: LabelledCase) -> SourceCase:
    return SourceCase(case.name, case.image, case.label)
