"""The data sets that are pooled: what their folders are called, and what their lists of cases and dataset.json say."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_extra_losses.data.datalist import CaseList, LabelledCase, read_case_list
from monai_extra_losses.data.declared import read_declared
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import first_of
from monai_extra_losses.data.json_file import quoted
from monai_extra_losses.data.manifest import PARTS
from monai_extra_losses.data.volume_source import refuse_other_encoding


@dataclass(frozen=True)
class PoolSource:
    """A data set that is pooled with others.

    Args:
        name: of its folder, in the pooled data set.
        folder: absolute.
        case_list: its cases and labels.
        licence, reference, release: as its dataset.json states them, or None.
    """

    name: str
    folder: Path
    case_list: CaseList
    licence: str | None
    reference: str | None
    release: str | None

    def annotated(self, case: LabelledCase) -> tuple[int, ...]:
        """The labels, of this data set, that are annotated in a case of it; all of them where it does not say."""
        return tuple(value for value in self.case_list.labels if value) if case.annotated is None else case.annotated

    @property
    def notes(self) -> list[str]:
        """What a person should know of how it is pooled, a sentence each."""
        cases, unlabelled = self.case_list.cases, self.case_list.unlabelled
        notes = [f"passed over: {text}" for text in self.case_list.passed_over]
        if any(case.fold is not None for case in cases):
            notes.append(f"{self.name}: the folds that it declares are given up, its cases are dealt anew.")
        if apart := sum(case.validation for case in cases):
            notes.append(f"{self.name}: {apart} cases set apart to validate are pooled with the others.")
        if labelled := sum(case.label is not None for case in unlabelled):
            notes.append(f"{self.name}: labels of {labelled} cases to segment are left out.")
        if self.licence is None:
            notes.append(f"{self.name} states no licence; ask those who made it before the data are passed on.")
        return notes


def source_names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders; of folders with one name that of the parent and theirs, `PARENT_NAME`.

    Args:
        folders: absolute.

    Raises:
        DatasetError: names that are equal even so.
    """
    own = Counter(folder.name.casefold() for folder in folders)
    names = [
        folder.name if own[folder.name.casefold()] == 1 else f"{folder.parent.name}_{folder.name}" for folder in folders
    ]
    called: dict[str, list[str]] = {}
    for name, folder in zip(names, folders, strict=True):
        called.setdefault(name.casefold(), []).append(str(folder))
    problems = [
        f"expected folders with names of their own, got {' and '.join(paths)}; give a folder another name, or name it "
        "by a link."
        for paths in called.values()
        if len(paths) > 1
    ]
    if problems:
        raise DatasetError(problems)
    return names


def refuse_folders(folders: Sequence[Path], out: Path) -> None:
    """Refuse folders that cannot be pooled, whatever is in them.

    Raises:
        DatasetError: all of it at once: fewer than two, one twice, or one in which the data set would be written.
    """
    problems = []
    if len(folders) < 2:
        problems.append(f"expected two data set folders or more to pool, got {len(folders)}; name each of them.")
    seen = Counter(folder.resolve() for folder in folders)
    problems += [
        f"{folder}: expected each folder once, got it {count} times; name it once."
        for folder, count in seen.items()
        if count > 1
    ]
    places = {out.resolve(), *((out / part).resolve() for part in PARTS)}
    for folder in seen:
        if any(folder == place or folder in place.parents or place in folder.parents for place in places):
            problems.append(
                f"expected a folder for the data set apart from its sources, got {out}, which overlaps with {folder}; "
                "choose another folder."
            )
    for folder in folders:
        try:
            refuse_other_encoding(folder)
        except DatasetError as error:
            problems += error.problems
    if problems:
        raise DatasetError(problems)


def read_source(name: str, folder: Path) -> PoolSource:
    """The list of cases of a data set, and what dataset.json states of its origin.

    Args:
        name: in the pooled data set.
        folder: as of `read_case_list`.

    Raises:
        DatasetError: as there; regions; labels without names.
    """
    case_list = read_case_list(folder)
    where = folder / "dataset.json"
    if case_list.regions is not None:
        raise DatasetError(
            f"{where}: expected classes of which a voxel has one, as those of a pooled data set are, got the regions "
            f"{first_of(list(case_list.regions))}; remove `regions` (nnU-Net: the lists among `labels`) to pool its "
            "labels."
        )
    if not case_list.labels:
        raise DatasetError(
            f"{where}: expected the names of the labels, by which classes are pooled, got no such file; write "
            '{"labels": {"0": "background", "1": NAME, ...}}.'
        )
    declared = read_declared(where)
    return PoolSource(
        name,
        folder,
        case_list,
        licence=_stated(declared, "licence", "license"),
        reference=_stated(declared, "reference"),
        release=_stated(declared, "release"),
    )


def _stated(declared: Mapping[str, Any], *keys: str) -> str | None:
    """The text under the first of some keys that has any."""
    for key in keys:
        if value := declared.get(key):
            return " ".join(value.split()) or None if isinstance(value, str) else quoted(value)
    return None


def absolute(folder: Path) -> Path:
    """The path from the root, without `..`, and with the name by which the folder was given."""
    return Path(os.path.abspath(folder))
