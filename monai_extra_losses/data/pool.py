"""Make one data set out of several, each of which annotates some of the classes.

Everything is checked before the first file is written. Images are linked and labels written with the ids of the pooled
data set; dataset.json says of each case which classes are annotated in it.
"""

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from monai_extra_losses.data.checks import CaseSummaries, CaseSummary, check_cases, read_voxels
from monai_extra_losses.data.datalist import LabelledCase
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import first_of, named
from monai_extra_losses.data.label_ids import count_ids, renumber
from monai_extra_losses.data.made_dataset import (
    MadeDataset,
    dataset_json,
    dealt_folds,
    in_parallel,
    planned_manifest,
    storage_problems,
    write_data_set,
    write_volume,
)
from monai_extra_losses.data.manifest import CaseRecord, Manifest, Stamp, refuse_other_options, stamp_of, write_through
from monai_extra_losses.data.pool_classes import ClassPlan, plan_classes
from monai_extra_losses.data.pool_sources import PoolSource, absolute, read_source, refuse_folders, source_names

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class PoolOptions:
    """What determines the data set that `pool_datasets` makes.

    Args:
        sources: folders as of `read_case_list`, two at least; their order is that of the classes.
        rename: name of a class in the sources -> its name in the pooled data set.
        channels: names of the image channels; empty: as the sources declare them, else `channel_0`, ...
        num_folds: folds that the cases of each source are dealt to; 0 deals none.
        seed: deals them.
        copy: copy the images instead of linking them.
    """

    sources: tuple[Path, ...]
    rename: dict[str, str] = dataclasses.field(default_factory=dict)
    channels: tuple[str, ...] = ()
    num_folds: int = 5
    seed: int = 0
    copy: bool = False

    def as_json(self) -> dict[str, Any]:
        """The options as JSON has them."""
        return {
            **dataclasses.asdict(self),
            "sources": [str(absolute(folder)) for folder in self.sources],
            "channels": list(self.channels),
        }


@dataclasses.dataclass(frozen=True)
class PooledDataset(MadeDataset):
    """What `pool_datasets` has made."""

    def summary(self) -> str:
        """What a person wants to know of it, in a few lines."""
        sources = {str(case.source["name"]): case.source for case in self.records}
        widths = {name: max(len(name), 6) for name in sources}
        columns = "".join(f"  {name:>{width}}" for name, width in widths.items())
        lines = [self.headline, "", f"{'label':>5}  {'annotated':>9}{columns}  {'voxels':>12}  name"]
        for value, name in self.rows.items():
            counts = Counter(case.source["name"] for case in self.cases if value in (case.annotated or ()))
            of_class = value not in (0, self.ignore_label)
            whole = counts.total() if of_class else "-"
            each = "".join(f"  {counts[source] if of_class else '-':>{width}}" for source, width in widths.items())
            lines.append(f"{value:>5}  {whole:>9}{each}  {self.voxels_of(value):>12}  {name}")
        lines.append("")
        for name, source in sources.items():
            labelled = [case for case in self.cases if case.source["name"] == name]
            folds = Counter(case.fold for case in labelled)
            dealt = ", ".join(str(folds[fold]) for fold in range(len(self.fold_sizes)))
            lines.append(
                f"{name}: {len(labelled)} cases{f' (by fold {dealt})' if dealt else ''}, licence "
                f"{source['licence'] or 'not stated'}, {source['folder']}"
            )
        lines += self.notes
        if self.fold_sizes:
            lines.append(f"folds of {', '.join(map(str, self.fold_sizes))} cases")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _PoolCase:
    """A case on its way into the pooled data set.

    Args:
        name: in the pooled data set.
        source: that it comes from.
        case: in the source.
        labelled: whether its label is pooled; else it is a case to segment.
    """

    name: str
    source: PoolSource
    case: LabelledCase
    labelled: bool

    @property
    def outputs(self) -> list[str]:
        """The files of the images, then that of the label."""
        part, several = "Tr" if self.labelled else "Ts", len(self.case.image) > 1
        images = [
            f"images{part}/{self.name}{f'_{i:04d}' if several else ''}{_suffix(image)}"
            for i, image in enumerate(self.case.image)
        ]
        return [*images, *([f"labelsTr/{self.name}.nii.gz"] if self.labelled else [])]

    def stamps(self) -> dict[str, Stamp]:
        """File -> its stamp, of the images, then of the label."""
        files = [*self.case.image, *([self.case.label] if self.labelled and self.case.label else [])]
        return {str(file): stamp_of(file) for file in files}


def pool_datasets(
    options: PoolOptions,
    out: str | Path,
    *,
    overwrite: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> PooledDataset:
    """Pool several data sets, each of which may annotate other classes, to one that `read_case_list` reads.

    Labels of equal names are one class, as `plan_classes` says. An entry of `training` in dataset.json has the ids that
    are annotated in its case, `"annotated"`, and the name of its data set, `"source"`; of the other classes nothing is
    known there. Images are linked, by paths relative to the link, so that the links hold where the folders move
    together; where there can be no links they are copied. Names of cases that several data sets have get that of the
    data set in front, and a data set that is called like another that of its parent folder. Folds declared by a data
    set are given up, cases set apart to validate are pooled with the others, and cases to segment are listed in `test`.
    manifest.json records where each case comes from, and under which licence. A second call with the same options goes
    on where the first was stopped.

    Args:
        options: what is read, and what is made of it.
        out: folder of the data set: new, empty, or of an earlier call.
        overwrite: delete the files that an earlier call wrote there, and begin again.
        num_workers: threads, each one file or case at a time; default: one per core, at most 8.
        progress: show bars (on a terminal only).

    Raises:
        DatasetError: all problems of all data sets at once, and nothing is written: what `read_case_list` and
            `check_cases` refuse, regions, other channels, names that cannot be told apart. A file that changes between
            this check and the writing is named at the end: the other cases are written, and dataset.json is not.
    """
    out = Path(out)
    with storage_problems(out):
        return _pool(options, out, overwrite, num_workers or min(os.cpu_count() or 1, 8), progress)


def _pool(options: PoolOptions, out: Path, overwrite: bool, workers: int, progress: bool) -> PooledDataset:
    folders = [absolute(folder) for folder in options.sources]
    refuse_folders(folders, out)
    names = source_names(folders)
    earlier = Manifest.read(out)
    if earlier is not None and not overwrite:
        refuse_other_options(out, options.as_json(), earlier)
    sources, summaries, plan, channels, cases = _checked(options, names, folders, workers, progress)

    stamps: dict[str, dict[str, Stamp]] = {}
    for case, found in zip(cases, in_parallel(_PoolCase.stamps, cases, "reading", workers, progress), strict=True):
        if isinstance(found, DatasetError):
            raise found
        stamps[case.name] = found
    groups = _groups(cases, stamps)
    labelled = [case for case in cases if case.labelled]
    folds = dealt_folds(
        {case.name: groups[case.name] for case in labelled},
        options.num_folds,
        options.seed,
        sources={case.name: case.source.name for case in labelled},
    )
    planned = planned_manifest(
        options.as_json(),
        [
            _planned(case, groups[case.name], folds.get(case.name), stamps[case.name], summaries[case.name], plan)
            for case in cases
        ],
    )
    by_name = {case.name: case for case in cases}
    records, written = write_data_set(
        out,
        planned,
        earlier,
        overwrite,
        write_case=lambda record: _write_case(out, by_name[record.name], record, plan, options.copy),
        content=lambda records: dataset_json(
            out,
            "pool",
            records,
            plan.labels,
            channels,
            plan.ignore_label,
            licence=_stated_by_all({source.name: source.licence for source in sources}),
            reference=_stated_by_all({source.name: source.reference for source in sources}),
            segments=plan.segments,
        ),
        workers=workers,
        progress=progress,
    )
    notes = [note for source in sources for note in source.notes]
    notes = [*plan.notes, *_notes_on_cases(cases, groups), *notes, *_copied(out, records, options)]
    return PooledDataset(out, records, written, plan.labels, tuple(notes), plan.ignore_label)


def _checked(
    options: PoolOptions, names: Sequence[str], folders: Sequence[Path], workers: int, progress: bool
) -> tuple[list[PoolSource], dict[str, CaseSummary], ClassPlan, tuple[str, ...], list[_PoolCase]]:
    """The sources, what is found in each case by its new name, the classes, the channels and the cases.

    Raises:
        DatasetError: all problems of all sources.
    """
    problems: list[str] = []

    def attempt(work: Callable[[], _Result]) -> _Result | None:
        try:
            return work()
        except DatasetError as error:
            problems.extend(error.problems)
            return None

    listed = [attempt(partial(read_source, name, folder)) for name, folder in zip(names, folders, strict=True)]
    sources = [source for source in listed if source is not None]
    found: list[CaseSummaries] = []
    for source in sources:
        check = partial(check_cases, source.case_list, num_workers=workers, progress=progress)
        if (summaries := attempt(check)) is not None:
            found.append(summaries)
    if len(sources) < len(folders):  # what a source would bring is not known
        raise DatasetError(problems)
    plan = attempt(partial(plan_classes, sources, options.rename))
    cases = attempt(partial(_named_cases, sources))
    numbers = [len(summaries.channels) for summaries in found] if len(found) == len(sources) else []
    channels = attempt(partial(_channels, sources, numbers, options.channels))
    if problems or plan is None or cases is None or channels is None:
        raise DatasetError(problems)
    of_cases = [summary for summaries in found for summary in summaries.cases]
    of_cases += [summary for summaries in found for summary in summaries.unlabelled]
    return sources, {case.name: of for case, of in zip(cases, of_cases, strict=True)}, plan, channels, cases


def _named_cases(sources: Sequence[PoolSource]) -> list[_PoolCase]:
    """The labelled cases of all sources, then the others, each with a name of its own."""
    everything = [(source, case, True) for source in sources for case in source.case_list.cases]
    everything += [(source, case, False) for source in sources for case in source.case_list.unlabelled]
    # some file systems take names for one that differ by the case of their letters
    owners: dict[str, set[str]] = {}
    for source, case, _ in everything:
        owners.setdefault(case.name.casefold(), set()).add(source.name)
    cases = [
        _PoolCase(
            f"{source.name}_{case.name}" if len(owners[case.name.casefold()]) > 1 else case.name, source, case, labelled
        )
        for source, case, labelled in everything
    ]
    writers: dict[str, list[_PoolCase]] = {}
    for one in cases:
        for file in {one.name.casefold(), *(output.casefold() for output in one.outputs)}:
            writers.setdefault(file, []).append(one)
    several = {tuple(f"{one.case.name} of {one.source.name}" for one in of) for of in writers.values() if len(of) > 1}
    if several:
        raise DatasetError(
            f"expected cases whose names differ once that of the data set is put before equal ones, got "
            f"{' and '.join(which)}; rename one of them."
            for which in sorted(several)
        )
    return cases


def _channels(sources: Sequence[PoolSource], numbers: Sequence[int], given: Sequence[str]) -> tuple[str, ...]:
    """The names of the channels.

    Args:
        sources: all of them.
        numbers: of channels, a source each; empty where it is not known.
        given: names that count instead of those declared.

    Raises:
        DatasetError: data sets of other channels.
    """
    declared = {source.name: source.case_list.channels for source in sources}
    counts = dict(zip(declared, numbers, strict=True)) if numbers else {s: len(c) for s, c in declared.items() if c}
    told = "; ".join(
        f"{name} has {', '.join(declared[name]) or f'{counts[name]} without names'}"
        for name in declared
        if name in counts
    )
    if len(set(counts.values())) > 1:
        raise DatasetError(f"expected data sets with the same number of channels, got others ({told}); pool fewer.")
    number = max(counts.values(), default=len(given))
    if given and len(given) != number:
        raise DatasetError(
            f"expected a name for each channel ({number}), got {', '.join(given)} ({told}); correct --channel-names."
        )
    named_by_data = [names for names in declared.values() if names]
    if len({tuple(name.casefold() for name in names) for names in named_by_data}) > 1 and not given:
        raise DatasetError(
            f"expected the same channels in each data set, got others ({told}); where they mean the same in this "
            f'order, name them with --channel-names "{",".join(named_by_data[0])}".'
        )
    return tuple(given) or next(iter(named_by_data), tuple(f"channel_{i}" for i in range(number)))


def _groups(cases: Sequence[_PoolCase], stamps: Mapping[str, Mapping[str, Stamp]]) -> dict[str, str]:
    """Case -> the first case, a labelled one if there is any, with the same images, which may be itself."""
    first: dict[tuple[str, ...], str] = {}
    groups = {}
    for case in cases:
        content = tuple(str(stamps[case.name][str(file)]["sha256"]) for file in case.case.image)
        groups[case.name] = first.setdefault(content, case.name)
    return groups


def _planned(
    case: _PoolCase,
    group: str,
    fold: int | None,
    stamps: Mapping[str, Stamp],
    summary: CaseSummary,
    plan: ClassPlan,
) -> CaseRecord:
    source = case.source
    new_ids = plan.new_ids[source.name] if case.labelled else {}
    names: dict[str, list[str]] = {}
    label_voxels: Counter[int] = Counter()
    for value, new in new_ids.items():
        if value in source.case_list.labels and value:
            names.setdefault(str(new), []).append(source.case_list.labels[value])
        ignored = summary.ignored if value == source.case_list.ignore_label else 0
        label_voxels[new] += summary.voxels.get(value, ignored)
    return CaseRecord(
        name=case.name,
        group=group if case.labelled else "",
        fold=fold,
        shape=list(summary.shape),
        spacing_mm=list(summary.spacing),
        affine=[list(row) for row in summary.affine],
        series=[],
        resampled=False,
        new_ids={str(old): new for old, new in new_ids.items() if new != old},
        label_voxels={str(value): count for value, count in sorted(label_voxels.items()) if count},
        sources=dict(stamps),
        outputs=dict.fromkeys(case.outputs),
        names={value: " + ".join(joined) for value, joined in names.items()},
        annotated=sorted({new_ids[value] for value in source.annotated(case.case)}) if case.labelled else None,
        source={
            "name": source.name,
            "folder": str(source.folder),
            "licence": source.licence,
            "reference": source.reference,
            "release": source.release,
        },
    )


def _write_case(out: Path, case: _PoolCase, record: CaseRecord, plan: ClassPlan, copy: bool) -> CaseRecord:
    outputs: dict[str, Stamp | None] = {}
    files = list(record.outputs)
    for file, image in zip(files, case.case.image, strict=False):
        outputs[file] = _place_image(out, file, image, record.sources[str(image)], copy)
    if case.labelled and case.case.label is not None:
        outputs[files[-1]] = _write_label(out, files[-1], case.case.label, plan.new_ids[case.source.name])
    return dataclasses.replace(record, outputs=outputs)


def _place_image(out: Path, name: str, image: Path, stamp: Stamp, copy: bool) -> Stamp:
    """Link an image, or copy it where asked for or where there can be no links."""
    place, target = (out / name).parent, image.parent.resolve() / image.name

    def link(draft: Path) -> None:
        draft.symlink_to(_from(place.resolve(), target))

    def copied(draft: Path) -> None:
        draft.unlink(missing_ok=True)  # a link that could not be moved: to copy into it would be to write elsewhere
        shutil.copyfile(image, draft)

    if not copy:
        try:
            return write_through(out, name, link, stamp)
        except OSError:
            pass
    if (written := write_through(out, name, copied)) != stamp:
        raise DatasetError(_changed(image))
    return written


def _from(folder: Path, target: Path) -> Path:
    """The path of a file relative to a folder."""
    try:
        return Path(os.path.relpath(target, folder))
    except ValueError:  # another drive of Windows
        return target


def _write_label(out: Path, name: str, label: Path, new_ids: Mapping[int, int]) -> Stamp:
    file, stored = read_voxels(label, "label")
    voxels = file.scaled(stored[..., 0])
    if count_ids(voxels).voxels.keys() - new_ids.keys():
        raise DatasetError(_changed(label))
    return write_volume(out, name, renumber(voxels.T, new_ids).T, file.affine)


def _changed(file: Path) -> str:
    return f"{file}: expected the file as it was checked, got a changed one; call again when nothing writes it."


def _suffix(image: Path) -> str:
    return ".nii.gz" if image.name.lower().endswith(".gz") else ".nii"


def _stated_by_all(stated: Mapping[str, str | None]) -> str | None:
    """What all sources state, or what each does; None where none states anything."""
    if len({*stated.values()}) == 1:
        return next(iter(stated.values()))
    return "; ".join(f"{name}: {text or 'not stated'}" for name, text in stated.items())


def _notes_on_cases(cases: Sequence[_PoolCase], groups: Mapping[str, str]) -> Iterable[str]:
    if clashing := [case.name for case in cases if case.name != case.case.name]:
        yield (
            f"{len(clashing)} cases have the name of their data set in front, because another has cases of these names "
            f"({named(clashing)})."
        )
    labelled = {case.name for case in cases if case.labelled}
    again = [f"{name} is {first}" for name, first in groups.items() if name != first and name in labelled]
    if again:
        yield f"{len(again)} images are those of other cases ({first_of(again)}); such cases are in one fold."
    known = [f"{name} is {groups[name]}" for name in groups.keys() - labelled if groups[name] in labelled]
    if known:
        yield (
            f"{len(known)} images to segment are those of labelled cases ({first_of(sorted(known))}); they do not tell "
            "how a trained network does on new ones."
        )


def _copied(out: Path, records: Sequence[CaseRecord], options: PoolOptions) -> Iterable[str]:
    images = [file for case in records for file in case.outputs if file.startswith("images")]
    copies = [file for file in images if not (out / file).is_symlink()]
    if copies and not options.copy:
        yield f"{len(copies)} of {len(images)} images are copied, because {out} takes no links."
