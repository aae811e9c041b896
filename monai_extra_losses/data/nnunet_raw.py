"""Write a data set as a raw folder of nnU-Net v2. Nothing of nnU-Net is imported."""

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from monai_extra_losses.data.checks import check_cases
from monai_extra_losses.data.datalist import CaseList, LabelledCase, read_case_list
from monai_extra_losses.data.declared import LABEL_NAMES, read_declared
from monai_extra_losses.data.declared_source import mapped_regions
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import first_of
from monai_extra_losses.data.made_dataset import in_parallel, storage_problems
from monai_extra_losses.data.manifest import write_json
from monai_extra_losses.data.nnunet_files import ENDING, CaseFiles, write_case
from monai_extra_losses.data.nnunet_place import RAW, new_place, plain_name, stale_notes
from monai_extra_losses.data.regions import painting_order

BACKGROUND, IGNORE = "background", "ignore"
"""Names that nnU-Net gives a meaning."""

_CARRIED = ("reference", "licence", "license", "release")  # entries of dataset.json
_SPLITS = "splits_final.json"


@dataclass(frozen=True)
class NnunetDataset:
    """What `export_nnunet` has written.

    Args:
        folder: DatasetXXX_NAME.
        number: its id.
        labels: of dataset.json.
        cases: what was written of each case with a label.
        test_cases: the same of the cases to segment.
        channels: names.
        has_splits: whether folds are kept in splits_final.json.
        notes: what a person should know of how it was made, a sentence each.
    """

    folder: Path
    number: int
    labels: dict[str, int | list[int]]
    cases: tuple[CaseFiles, ...]
    test_cases: tuple[CaseFiles, ...]
    channels: tuple[str, ...]
    has_splits: bool
    notes: tuple[str, ...]

    def summary(self) -> str:
        """What a person wants to know of it, in a few lines."""
        everything = (*self.cases, *self.test_cases)
        segment = f" and {len(self.test_cases)} to segment" if self.test_cases else ""
        return "\n".join(
            [
                f"{self.folder}: {len(self.cases)} labelled cases{segment}, channels {', '.join(self.channels)}",
                f"{sum(case.kept for case in everything)} files as they were, "
                f"{sum(case.written for case in everything)} written anew",
                "",
                *(f"{_shown(value):>12}  {name}" for name, value in self.labels.items()),
                *(["", *self.notes] if self.notes else []),
            ]
        )

    def commands(self) -> list[str]:
        """The calls of nnU-Net that go on with it."""
        splits = shlex.quote(str(self.folder / _SPLITS))
        images = shlex.quote(str(self.folder / "imagesTs")) if self.test_cases else "IMAGES"
        return [
            f"export {RAW}={shlex.quote(str(self.folder.parent.absolute()))}",
            f"nnUNetv2_plan_and_preprocess -d {self.number} --verify_dataset_integrity",
            *([f'cp {splits} "$nnUNet_preprocessed/{self.folder.name}/"'] if self.has_splits else []),
            f"nnUNetv2_train {self.number} 3d_fullres 0",
            f"nnUNetv2_predict -i {images} -o SEGMENTATIONS -d {self.number} -c 3d_fullres -f 0",
        ]


def export_nnunet(
    data: str | Path,
    raw: str | Path,
    *,
    number: int | None = None,
    name: str | None = None,
    channels: Sequence[str] = (),
    link: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> NnunetDataset:
    """Write DatasetXXX_NAME with imagesTr, labelsTr, imagesTs, labelsTs and dataset.json.

    Images have a file per channel. Label values are 0 to n in the order of the values, and the ignore label is the
    highest; dataset.json has the former ones under `original_labels`. Regions are joined labels, in the order in which
    they paint over each other, with `regions_class_order`; `label_names` has the names of the values. Which classes a
    case annotates is under `annotated`, {CASE: [value, ...]}, of those that do not annotate all. Folds, and cases set
    apart to validate, are in splits_final.json.

    Args:
        data: folder of the data set, as `read_case_list` reads it.
        raw: the folder nnUNet_raw.
        number: id, 1 to 999; None: the first free one from 11 on.
        name: of the data set; None: its own.
        channels: their names, which say how nnU-Net normalizes; empty: those declared.
        link: link files that stay as they are (hard links) instead of copying them.
        num_workers: threads, each one case at a time; default: one per core, at most 8.
        progress: show bars (on a terminal only).

    Raises:
        DatasetError: what `read_case_list` and `check_cases` refuse; a number or a name in use; names of labels that
            mean something else to nnU-Net; files that cannot be written as it reads them. Nothing is left then.
    """
    raw = Path(raw)
    with storage_problems(raw):
        case_list = read_case_list(data)
        place = new_place(raw, number, name or plain_name(case_list.name))
        summaries = check_cases(case_list, num_workers=num_workers, progress=progress)
        names = _channel_names(channels, summaries.channels)
        plan = _plan(case_list, summaries.labels)
        with _whole_folder(place.folder) as draft:
            workers = num_workers or min(os.cpu_count() or 1, 8)
            cases = _write_cases(case_list.cases, draft, "Tr", plan.new_ids, link, workers, progress)
            tests = _write_cases(case_list.unlabelled, draft, "Ts", plan.new_ids, link, workers, progress)
            splits = _splits(case_list.cases)
            if splits:
                write_json(draft / _SPLITS, splits)
            write_json(draft / "dataset.json", _content(case_list, plan, names))
            new_place(raw, place.number, place.name)  # nobody has come first
    notes = (
        *plan.notes,
        *stale_notes(place),
        *_channel_notes(names, known=bool(channels or case_list.channels)),
        *_annotation_notes(case_list),
        *_passed_over(case_list),
    )
    return NnunetDataset(place.folder, place.number, plan.labels, cases, tests, names, bool(splits), notes)


@dataclass(frozen=True)
class _Plan:
    """The labels of the new data set.

    Args:
        labels: of dataset.json: name -> value, or values of a region.
        new_ids: value in the data set -> value there.
        names: value there -> name.
        order: `regions_class_order`; empty without regions.
        notes: sentences.
    """

    labels: dict[str, int | list[int]]
    new_ids: dict[int, int]
    names: dict[int, str]
    order: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def _plan(case_list: CaseList, labels: Mapping[int, str]) -> _Plan:
    new_ids = {value: number for number, value in enumerate(sorted(labels))}
    names = {new_ids[value]: name for value, name in labels.items()} | {0: BACKGROUND}
    ignored: dict[str, int | list[int]] = {}
    if case_list.ignore_label is not None:
        new_ids[case_list.ignore_label] = ignored[IGNORE] = len(labels)
    regions = mapped_regions(case_list.regions, new_ids) or {}
    if any(len(values) > 1 for values in regions.values()):
        joined, order, notes = _joined(case_list, regions, new_ids, names)
    else:
        joined, order = {name: value for value, name in names.items() if value}, []
        notes = ["no region joins labels, so that nnU-Net has the labels."] if regions else []
        _refuse_names(case_list, list(names.values())[1:])
    return _Plan({BACKGROUND: 0, **joined, **ignored}, new_ids, names, tuple(order), tuple(notes))


def _joined(
    case_list: CaseList, regions: Mapping[str, Sequence[int]], new_ids: Mapping[int, int], names: Mapping[int, str]
) -> tuple[dict[str, int | list[int]], list[int], list[str]]:
    """Regions as nnU-Net has them, and `regions_class_order`; a label in no region is one of its own."""
    given = case_list.regions_class_order
    painted = painting_order(list(map(frozenset, regions.values())), names, given and [new_ids[v] for v in given])
    listed = list(regions.items())
    joined: dict[str, int | list[int]] = {listed[number][0]: list(listed[number][1]) for number, _ in painted}
    order = [value for _, value in painted]
    known = {value for values in regions.values() for value in values}
    alone = [value for value in names if value and value not in known]
    _refuse_names(case_list, [*regions, *(names[value] for value in alone)])
    if not alone:
        return joined, order, []
    note = (
        f"{first_of([names[value] for value in alone])} in no region: nnU-Net trains a region of its own for each, "
        "because every label value has to be in one."
    )
    return joined | {names[value]: value for value in alone}, order + alone, [note]


def _refuse_names(case_list: CaseList, names: Sequence[str]) -> None:
    """Refuse names of classes or regions that nnU-Net takes for something else."""
    where = case_list.folder / "dataset.json"
    for name in names:
        if name in (BACKGROUND, IGNORE):
            raise DatasetError(
                f"{where}: expected classes and regions of other names than `{BACKGROUND}` and `{IGNORE}`, to which "
                f"nnU-Net gives a meaning, got {name!r}; rename it."
            )
    if len(set(names)) < len(names):
        raise DatasetError(f"{where}: expected another name for each region, got {first_of(sorted(names))}; rename it.")


def _content(case_list: CaseList, plan: _Plan, channels: Sequence[str]) -> dict[str, Any]:
    """dataset.json."""
    where = case_list.folder / "dataset.json"
    former = read_declared(where) if where.exists() else {}
    originals = {new: case_list.original_labels.get(old, old) for old, new in plan.new_ids.items() if new in plan.names}
    annotated = {
        case.name: [plan.new_ids[value] for value in case.annotated]
        for case in case_list.cases
        if case.annotated is not None and not case.annotates(*case_list.labels)
    }
    more = {
        "regions_class_order": list(plan.order),
        LABEL_NAMES: {str(value): name for value, name in plan.names.items()} if plan.order else {},
        "original_labels": {str(new): old for new, old in originals.items() if new != old},
        "annotated": annotated,
        "segments": case_list.segments,
        **{key: former[key] for key in _CARRIED if isinstance(former.get(key), str)},
    }
    return {
        "name": case_list.name,
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": plan.labels,
        **{key: value for key, value in more.items() if value},
        "numTraining": len(case_list.cases),
        "file_ending": ENDING,
    }


def _channel_names(given: Sequence[str], found: Sequence[str]) -> tuple[str, ...]:
    if given and len(given) != len(found):
        raise DatasetError(
            f"expected names for the {len(found)} channels ({', '.join(found)}), got {len(given)} "
            f"({', '.join(given)}); give one for each."
        )
    return tuple("CT" if name.strip().lower() == "ct" else name for name in given or found)


def _channel_notes(channels: Sequence[str], known: bool) -> Iterator[str]:
    if not known:
        yield (
            "the channels have no names, and nnU-Net normalizes them image by image; of computed tomography "
            "--channel-names CT says so."
        )
    likely = [name for name in channels if name != "CT" and re.search(r"(?<![a-z])ct(?![a-z])", name.lower())]
    if likely:
        yield (
            f"nnU-Net normalizes a channel as CT where its name is CT, and {first_of(likely)} image by image; "
            "--channel-names CT names it so."
        )


def _annotation_notes(case_list: CaseList) -> Iterator[str]:
    if case_list.partly_annotated:
        yield (
            "dataset.json says under `annotated` which cases do not annotate all classes; a trainer that does not read "
            "it takes the others for background there."
        )


def _passed_over(case_list: CaseList) -> Iterator[str]:
    yield from (f"passed over: {text}" for text in case_list.passed_over)


def _splits(cases: Sequence[LabelledCase]) -> list[dict[str, list[str]]]:
    """The folds as nnU-Net keeps them; empty where none are declared."""
    apart = {case.name for case in cases if case.validation}
    folds = sorted({case.fold for case in cases if case.fold is not None})
    if folds:
        to_validate = [{case.name for case in cases if case.fold == fold} for fold in folds]
    else:
        to_validate = [apart] if apart else []
    names = [case.name for case in cases]
    return [
        {
            "train": [name for name in names if name not in held_out | apart],
            "val": sorted(held_out),
        }
        for held_out in to_validate
    ]


def _write_cases(
    cases: Sequence[LabelledCase],
    draft: Path,
    part: str,
    new_ids: Mapping[int, int],
    link: bool,
    workers: int,
    progress: bool,
) -> tuple[CaseFiles, ...]:
    if cases:
        (draft / f"images{part}").mkdir()
    if any(case.label is not None for case in cases):
        (draft / f"labels{part}").mkdir()
    write = partial(write_case, folder=draft, part=part, new_ids=new_ids, link=link)
    written, problems = [], []
    for result in in_parallel(write, cases, f"writing {part}", workers, progress):
        if isinstance(result, DatasetError):
            problems += result.problems
        else:
            written.append(result)
    if problems:
        raise DatasetError(problems)
    return tuple(written)


@contextlib.contextmanager
def _whole_folder(place: Path) -> Iterator[Path]:
    """A folder beside `place` to fill, which becomes `place` when it is whole; else it is deleted."""
    draft = place.with_name(f".{place.name}.unfinished")  # nnU-Net reads folders called Dataset...
    shutil.rmtree(draft, ignore_errors=True)  # of a killed call
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(place)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _shown(value: int | list[int]) -> str:
    return str(value) if isinstance(value, int) else ", ".join(map(str, value))
