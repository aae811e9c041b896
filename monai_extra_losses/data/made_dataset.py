"""A data set in the Decathlon's layout made of other files: written case by case, recorded, and summed up."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import nibabel as nib
from numpy.typing import NDArray
from tqdm import tqdm

from monai_extra_losses.data.datalist import deal_folds
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.manifest import (
    CaseRecord,
    Manifest,
    Stamp,
    finished_cases,
    refuse_foreign_files,
    remove_unfinished,
    write_json,
    write_through,
)
from monai_extra_losses.data.storage import storage_sentence
from monai_extra_losses.versions import version_of

_PACKAGES = ("monai-extra-losses", "SimpleITK", "nibabel", "pydicom", "numpy")
_SECONDS_BETWEEN_RECORDS = 5.0


class _Named(Protocol):
    """Something about one case."""

    @property
    def name(self) -> str: ...


_Item = TypeVar("_Item", bound=_Named)
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class MadeDataset:
    """A data set that a call has made.

    Args:
        folder: of the data set.
        records: of all cases.
        written: cases written by this call; an earlier one wrote the others.
        labels: id -> name.
        notes: what a person should know of how it was made, a sentence each.
        ignore_label: id of voxels without annotation, or None.
    """

    folder: Path
    records: tuple[CaseRecord, ...]
    written: int
    labels: dict[int, str]
    notes: tuple[str, ...] = ()
    ignore_label: int | None = None

    @property
    def cases(self) -> tuple[CaseRecord, ...]:
        """Records of the labelled cases."""
        return tuple(case for case in self.records if case.labelled)

    @property
    def unlabelled(self) -> tuple[CaseRecord, ...]:
        """Records of the cases to segment."""
        return tuple(case for case in self.records if not case.labelled)

    @property
    def voxels(self) -> dict[int, int]:
        """Label id -> voxels in all cases."""
        return {value: self.voxels_of(value) for value in self.labels}

    def voxels_of(self, value: int) -> int:
        """Voxels of a label id, or of the ignore label, in all cases."""
        return sum(case.label_voxels.get(str(value), 0) for case in self.cases)

    @property
    def rows(self) -> dict[int, str]:
        """The names of a table of all ids that voxels have."""
        return self.labels | ({} if self.ignore_label is None else {self.ignore_label: "(without annotation)"})

    @property
    def fold_sizes(self) -> tuple[int, ...]:
        """Cases per fold; empty without folds."""
        sizes = Counter(case.fold for case in self.cases if case.fold is not None)
        return tuple(sizes[fold] for fold in sorted(sizes))

    @property
    def headline(self) -> str:
        """Where it is, and how many cases it has."""
        there = len(self.records) - self.written
        return (
            f"{self.folder}: {len(self.cases)} labelled cases"
            + (f" and {len(self.unlabelled)} to segment" if self.unlabelled else "")
            + (f", {there} of them written by an earlier call" if there else "")
        )


@contextlib.contextmanager
def storage_problems(out: Path) -> Iterator[None]:
    """Turn what the file system refuses into a sentence; `out` is the folder of the data set."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            storage_sentence(error, out)
            or f"{error.filename or out}: expected to read or write it, got an error ({error.strerror or error})."
        ) from error


def dealt_folds(
    groups: Mapping[str, str],
    num_folds: int,
    seed: int,
    *,
    kind: str = "cases",
    sources: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Case -> fold, as `deal_folds` deals them; of 0 folds none.

    Args:
        groups, num_folds, seed, sources: as there.
        kind: what the groups are, in the plural.

    Raises:
        DatasetError: as there.
    """
    if num_folds == 0:
        return {}
    if (number := len(set(groups.values()))) < max(num_folds, 2):
        raise DatasetError(
            f"expected at least as many {kind} as folds, got {number} for {num_folds}; lower the number (--folds), or "
            "give 0 to deal none."
        )
    return deal_folds(groups, num_folds, seed, sources)


def planned_manifest(options: Mapping[str, Any], cases: Sequence[CaseRecord]) -> Manifest:
    """The manifest of a data set that is about to be made by these versions."""
    return Manifest(dict(options), {package: version_of(package) for package in _PACKAGES}, tuple(cases))


def write_data_set(
    out: Path,
    planned: Manifest,
    earlier: Manifest | None,
    overwrite: bool,
    *,
    write_case: Callable[[CaseRecord], CaseRecord],
    content: Callable[[Sequence[CaseRecord]], Mapping[str, Any]],
    workers: int,
    progress: bool,
) -> tuple[tuple[CaseRecord, ...], int]:
    """Write the cases that are not finished, then dataset.json; the manifest records each.

    Args:
        out: folder of the data set.
        planned: what is to be there.
        earlier: what an earlier call recorded there, or None.
        overwrite: delete the files of the earlier call, and begin again.
        write_case: writes the files of a case; gives its record with their stamps.
        content: makes dataset.json of the records of all cases.
        workers: threads, each one case at a time.
        progress: show a bar.

    Returns:
        The records of all cases, and the number of those written by this call.

    Raises:
        DatasetError: files that are not ours, what has changed since the earlier call, or cases that cannot be written.
    """
    refuse_foreign_files(out, planned, earlier)
    if overwrite and earlier is not None:
        earlier.remove_outputs(out)
        earlier = None
    finished = finished_cases(out, planned, earlier)
    records = _write_cases(out, planned, finished, write_case, workers, progress)
    stamp = write_through(out, "dataset.json", lambda draft: write_json(draft, content(records)))
    dataclasses.replace(planned, cases=records, dataset_json=stamp).write(out)
    remove_unfinished(out)
    return records, len(records) - len(finished)


def _write_cases(
    out: Path,
    planned: Manifest,
    finished: Mapping[str, CaseRecord],
    write_case: Callable[[CaseRecord], CaseRecord],
    workers: int,
    progress: bool,
) -> tuple[CaseRecord, ...]:
    """Write the cases that are not finished, recording each; the records of all."""
    remove_unfinished(out)
    records = {case.name: finished.get(case.name, case) for case in planned.cases}

    def record() -> None:
        dataclasses.replace(planned, cases=tuple(records.values())).write(out)

    record()  # what is about to be written is ours, even if it is written half
    problems: list[str] = []
    to_do = [case for case in planned.cases if case.name not in finished]
    recorded = time.monotonic()
    try:
        for result in in_parallel(write_case, to_do, "writing", workers, progress):
            if isinstance(result, DatasetError):
                problems += result.problems
            else:
                records[result.name] = result
            if time.monotonic() - recorded > _SECONDS_BETWEEN_RECORDS:
                record()
                recorded = time.monotonic()
    finally:
        record()
    if problems:
        raise DatasetError(problems)
    return tuple(records.values())


def write_volume(out: Path, name: str, voxels: NDArray[Any], affine: NDArray[Any]) -> Stamp:
    """Write an array of axes x, y, z. By nibabel, because ITK does not notice a full disk."""
    volume = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    volume.set_qform(affine, code="scanner")
    volume.set_sform(affine, code="scanner")
    volume.header.set_xyzt_units("mm")
    return write_through(out, name, lambda draft: nib.save(volume, draft))


def dataset_json(
    out: Path,
    command: str,
    records: Sequence[CaseRecord],
    labels: Mapping[int, str],
    channels: Sequence[str],
    ignore_label: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """dataset.json of the Decathlon, with a fold per case, and the classes annotated in it where it says so.

    Args:
        out: folder of the data set.
        command: that makes it.
        records: of all cases.
        labels: id -> name.
        channels: their names.
        ignore_label: id of voxels without annotation, or None.
        more: further entries; those that are empty are left out.
    """
    labelled = [case for case in records if case.labelled]
    unlabelled = [_entry(case) for case in records if not case.labelled]
    return {
        "name": out.resolve().name,
        "description": f"Made by monai-extra-losses {command}; manifest.json tells of what",
        **{key: value for key, value in more.items() if value},
        "tensorImageSize": "3D",
        "modality": {str(i): name for i, name in enumerate(channels)},
        "labels": {str(value): name for value, name in labels.items()},
        **({} if ignore_label is None else {"ignore_label": ignore_label}),
        "numTraining": len(labelled),
        "numTest": len(unlabelled),
        "training": [_entry(case) for case in labelled],
        "test": [entry["image"] if isinstance(entry["image"], str) else entry for entry in unlabelled],
    }


def _entry(case: CaseRecord) -> dict[str, Any]:
    images = [f"./{file}" for file in case.outputs if file.startswith("images")]
    labels = [f"./{file}" for file in case.outputs if file.startswith("labels")]
    return {
        "image": images if len(images) > 1 else images[0],
        **({"label": labels[0]} if labels else {}),
        **({} if case.fold is None else {"fold": case.fold}),
        **({"annotated": case.annotated} if labels and case.annotated is not None else {}),
        **({"source": case.source["name"]} if labels and case.source else {}),
    }


def in_parallel(
    work: Callable[[_Item], _Result], items: Sequence[_Item], text: str, workers: int, progress: bool
) -> Iterator[_Result | DatasetError]:
    """What `work` gives for each item, in their order, or the error that it raises."""

    def attempt(item: _Item) -> _Result | DatasetError:
        try:
            return work(item)
        except DatasetError as error:
            return error
        except MemoryError:
            return DatasetError(
                f"{item.name}: expected volumes that fit into memory, got larger ones; free some memory."
            )

    pool = ThreadPoolExecutor(workers)
    try:
        results = pool.map(attempt, items)
        yield from tqdm(results, total=len(items), desc=text, unit="case", disable=None if progress and items else True)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted call must not go through the rest first
