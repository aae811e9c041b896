"""The record of a prepared data set: which file was made of what. It tells a later call what is left to do."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.storage import sha256

PARTS = ("imagesTr", "labelsTr", "imagesTs")
"""The folders of a prepared data set."""

_FORMAT = 1
_ANEW = "choose another folder, or make it anew with --overwrite"

Stamp = dict[str, Any]
"""`bytes` and `sha256` of a file."""


@dataclasses.dataclass(frozen=True)
class CaseRecord:
    """One case in the manifest.

    Args:
        name: of the case.
        group: patient; empty for a case to segment.
        fold: that the case is dealt to, or None.
        shape, spacing_mm, affine: of the image (RAS, as in NIfTI).
        series: description and UID of each DICOM series read; of a DICOM SEG or RTSTRUCT also that of the instance.
        resampled: whether the label was brought onto the image's grid.
        new_ids: label ids of the source that have another id here.
        label_voxels: new id -> voxels.
        sources: file -> its stamp.
        outputs: file, relative to the folder -> its stamp, or None until it is written.
        names: id -> name of the structure in the source, where that names it.
        outside: name of a structure -> voxels outside the image, voxels in all, of a label on another grid.
        vanished: names of the structures that have no voxel left on the image's grid.
        annotated: ids of the classes that the case annotates; None: all.
        source: of a case of a pooled data set: `name` and `folder` of its data set, and what that states as its
            `licence`, `reference` and `release`, or None; empty in others.
    """

    name: str
    group: str
    fold: int | None
    shape: list[int]
    spacing_mm: list[float]
    affine: list[list[float]]
    series: list[dict[str, str]]
    resampled: bool
    new_ids: dict[str, int]
    label_voxels: dict[str, int]
    sources: dict[str, Stamp]
    outputs: dict[str, Stamp | None]
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    outside: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    vanished: list[str] = dataclasses.field(default_factory=list)
    annotated: list[int] | None = None
    source: dict[str, str | None] = dataclasses.field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether it has a label; else it is a case to segment."""
        return any(file.startswith("labels") for file in self.outputs)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What manifest.json holds.

    Args:
        options: of the call, as text and numbers.
        versions: package -> version.
        cases: one record per case.
        dataset_json: stamp of dataset.json, or None until it is written.
    """

    options: dict[str, Any]
    versions: dict[str, str]
    cases: tuple[CaseRecord, ...]
    dataset_json: Stamp | None = None

    def write(self, folder: Path) -> None:
        """Write the manifest, whole, into the folder of the data set."""
        content = {"format": _FORMAT, **dataclasses.asdict(self)}
        write_through(folder, manifest_in(folder).name, lambda draft: write_json(draft, content))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The manifest in a folder; None in a folder that is new or empty.

        Raises:
            DatasetError: a folder that holds other things, or a damaged manifest.
        """
        if folder.exists() and not folder.is_dir():
            raise DatasetError(f"{folder}: expected a folder for the data set, got a file; choose another.")
        path = manifest_in(folder)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != _FORMAT:
                raise ValueError("another format")
            manifest = cls(**{**content, "cases": tuple(CaseRecord(**case) for case in content["cases"])})
            for case in manifest.cases:
                if not isinstance(case.name, str) or not {type(case.outputs), type(case.sources)} <= {dict}:
                    raise ValueError("cases without files")
            if not isinstance(manifest.options, dict):
                raise ValueError("options without names")
            return manifest
        except FileNotFoundError:
            if folder.exists() and {found.name for found in folder.iterdir()} - {unfinished_in(folder).name}:
                raise DatasetError(
                    f"{folder}: expected a new or empty folder, or one with the manifest.json of an earlier call, "
                    "got one in use; choose another."
                ) from None
            return None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DatasetError(
                f"{path}: expected the manifest of an earlier call, got another file ({error}); choose another folder."
            ) from None

    @property
    def outputs(self) -> dict[str, Stamp | None]:
        """All files but the manifest, relative to the folder."""
        files = {name: stamp for case in self.cases for name, stamp in case.outputs.items()}
        return {**files, "dataset.json": self.dataset_json}

    def remove_outputs(self, folder: Path) -> None:
        """Delete the files of this manifest, and nothing else."""
        for name in self.outputs:
            if name == "dataset.json" or (len(Path(name).parts) == 2 and Path(name).parts[0] in PARTS):
                (folder / name).unlink(missing_ok=True)


def manifest_in(folder: Path) -> Path:
    """Where the manifest of a data set folder is."""
    return folder / "manifest.json"


def unfinished_in(folder: Path) -> Path:
    """Folder of files that are being written; each is moved, whole, to its place."""
    return folder / ".unfinished"


def refuse_other_options(folder: Path, options: Mapping[str, Any], earlier: Manifest) -> None:
    """Refuse to go on with a data set that was made with other options.

    Raises:
        DatasetError: options that differ, all at once.
    """
    others = ", ".join(
        f"{name} {value!r} instead of {earlier.options.get(name)!r}"
        for name, value in options.items()
        if earlier.options.get(name) != value
    )
    if others:
        raise DatasetError(f"{folder}: expected the options of the call that made it, got {others}; {_ANEW}.")


def finished_cases(folder: Path, planned: Manifest, earlier: Manifest | None) -> dict[str, CaseRecord]:
    """The planned cases that an earlier call has written, with the stamps of their files.

    Args:
        folder: of the data set.
        planned: what this call writes.
        earlier: what an earlier call with the same options has recorded, or None.

    Raises:
        DatasetError: all at once, what would be replaced or left over: files, sources or label ids changed since, cases
            that are gone.
    """
    if earlier is None:
        return {}
    recorded = {case.name: case for case in earlier.cases}
    problems = [
        f"{folder}: expected the cases of the earlier call, got no {name} among the images now; {_ANEW}."
        for name in sorted(recorded.keys() - {case.name for case in planned.cases})
    ]
    present = {name: stamp_of(folder / name) for name in planned.outputs if (folder / name).exists()}
    problems += [
        f"{folder / name}: expected the file as the earlier call wrote it, got a changed one; {_ANEW}."
        for name, stamp in present.items()
        if earlier.outputs.get(name) not in (None, stamp)
    ]
    finished = {}
    for case in planned.cases:
        before = recorded.get(case.name)
        if before is None or before.outputs != {name: present.get(name, {}) for name in case.outputs}:
            continue
        if before.sources != case.sources:
            problems.append(f"{case.name}: expected the sources of the earlier call, got changed ones; {_ANEW}.")
        elif before.new_ids != case.new_ids:  # ids that follow names move with a new name
            problems.append(f"{case.name}: expected the label ids of the earlier call, got others; {_ANEW}.")
        finished[case.name] = dataclasses.replace(case, outputs=before.outputs)
    if problems:
        raise DatasetError(problems)
    return finished


def refuse_foreign_files(folder: Path, planned: Manifest, earlier: Manifest | None) -> None:
    """Refuse to write over files that no earlier call wrote.

    Raises:
        DatasetError: all of them at once.
    """
    own = earlier.outputs if earlier else {}
    foreign = [folder / name for name in planned.outputs if name not in own and os.path.lexists(folder / name)]
    if foreign:
        raise DatasetError(
            f"{file}: expected no such file, got one that no earlier call wrote; move it away." for file in foreign
        )


def stamp_of(file: Path) -> Stamp:
    """Size and checksum of a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def write_through(folder: Path, name: str, write: Callable[[Path], object], stamp: Stamp | None = None) -> Stamp:
    """Let `write` make a file, then move it to its place, so that nobody ever finds half of it there.

    Args:
        folder: of the data set.
        name: of the file in it.
        write: makes it, at the path that it is given.
        stamp: of the file where that is known, as of a link.

    Returns:
        Its stamp.
    """
    draft, place = unfinished_in(folder) / name, folder / name
    for parent in (draft.parent, place.parent):
        parent.mkdir(parents=True, exist_ok=True)
    write(draft)
    stamp = stamp or stamp_of(draft)
    draft.replace(place)
    return stamp


def write_json(file: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON that people can read."""
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed call left half written."""
    shutil.rmtree(unfinished_in(folder), ignore_errors=True)
