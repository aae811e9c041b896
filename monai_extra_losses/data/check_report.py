"""A data set, checked and measured, as text for a terminal and as JSON."""

import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monai_extra_losses.data.advice import DataAdvice, data_advice, lesion_classes
from monai_extra_losses.data.annotation import never_annotated
from monai_extra_losses.data.checks import CaseSummaries, refuse_empty_labels
from monai_extra_losses.data.datalist import CaseList, count_folds, read_case_list
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.geometry import BODY_AXES
from monai_extra_losses.data.statistics import (
    PERCENTILES,
    CaseMeasures,
    DataStatistics,
    Spread,
    data_statistics,
    measure_cases,
)

JSON_FORMAT = 1


_WIDTH = 100


_MANY = 20  # classes of which each has its row; of more those with the fewest voxels, if they have any


_SOME = 10


@dataclass(frozen=True)
class DataReport:
    """A data set without problems.

    Args:
        case_list: its files.
        summaries: what the check found.
        measures: what was measured of each labelled case.
        statistics: both in numbers, over the labelled cases.
        advice: what these speak for.
    """

    case_list: CaseList
    summaries: CaseSummaries
    measures: tuple[CaseMeasures, ...]
    statistics: DataStatistics
    advice: DataAdvice

    def document(self) -> dict[str, Any]:
        """Everything, as JSON has it.

        Returns:
            `format`: 1; `folder`, `name`; `problems`: [] (a data set with problems has `format`, `folder` and these
            alone); `passed_over`: what is not read, `remarks`: what is assumed of files, a sentence each; `labels`:
            value -> name; `regions`: name -> label values, or null; `ignore_label`: value or null; `percentiles`:
            those of the intensities; `statistics`: `DataStatistics`; `advice`: `DataAdvice`; `cases`: per labelled
            case `CaseSummary` (`annotated`: label values, or null for all) and `CaseMeasures`; `validation`: names of
            the cases among them that are set apart to validate; `unlabelled`: per other case `CaseSummary`.
        """
        measured = zip(self.summaries.cases, self.measures, strict=True)
        return {
            "format": JSON_FORMAT,
            "folder": str(self.case_list.folder),
            "name": self.case_list.name,
            "problems": [],
            "passed_over": self.case_list.passed_over,
            "remarks": self.summaries.remarks,
            "labels": self.summaries.labels,
            "regions": self.case_list.regions,
            "ignore_label": self.case_list.ignore_label,
            "percentiles": PERCENTILES,
            "statistics": asdict(self.statistics),
            "advice": asdict(self.advice),
            "cases": [asdict(summary) | asdict(measures) for summary, measures in measured],
            "validation": self._set_apart,
            "unlabelled": [asdict(summary) for summary in self.summaries.unlabelled],
        }

    def text(self) -> str:
        """Tables of the statistics, and the advice in sentences with the commands."""
        apart, others = len(self._set_apart), len(self.case_list.unlabelled)
        passed_over = ["\n".join(["Passed over", *map(_item, self.case_list.passed_over)])]
        return "\n\n".join(
            [
                f"{self.case_list.name}, {self.case_list.folder}: {self.statistics.cases} labelled cases"
                f"{f' ({apart} of them set apart to validate)' if apart else ''}"
                f"{f' and {others} others' if others else ''}, every file read, no problem.",
                *(passed_over if self.case_list.passed_over else ()),
                *_ignored(self.case_list.ignore_label, self.statistics),
                *self._annotation(),
                "Below are medians (smallest to largest) over the labelled cases, or over all components.",
                *_tables(self.statistics),
                *_lesions(self.statistics),
                *_paragraphs(self.advice, self.case_list.folder),
            ]
        )

    def _annotation(self) -> Iterable[str]:
        """Of how many cases each class is annotated; nothing where all cases annotate all."""
        if not self.case_list.partly_annotated:
            return
        yield (
            f"{self.statistics.partly_annotated_cases} of {self.statistics.cases} cases are partly annotated: they say "
            "nothing of some classes. Below, a class is counted over the cases that annotate it."
        )
        rows = [
            (f"{entry.value} {entry.name}", entry.annotated_cases, entry.annotated_cases - entry.missing_cases)
            for entry in self.statistics.classes
        ]
        kinds = [("Annotated classes", rows)]
        if regions := self.case_list.regions:
            kinds.append(("Annotated regions", [self._of_region(*region) for region in regions.items()]))
        for kind, rows in kinds:
            shown = rows if len(rows) <= _MANY else sorted(rows, key=lambda row: row[1:])[:_SOME]
            more = f"\nOf {len(rows)} these are the {_SOME} annotated in the fewest cases; --json tells of all."
            table = [(name, str(annotated), f"{found} of {annotated}") for name, annotated, found in shown]
            yield _table((kind, "cases that annotate it", "cases with it"), table) + more * (len(shown) < len(rows))

    def _of_region(self, name: str, values: Sequence[int]) -> tuple[str, int, int]:
        """A region, the cases that annotate all of its labels, and those among them that have a voxel of one."""
        annotating = [case for case in self.summaries.cases if case.annotates(*values)]
        return name, len(annotating), sum(any(map(case.voxels.get, values)) for case in annotating)

    @property
    def _set_apart(self) -> list[str]:
        return [case.name for case in self.case_list.cases if case.validation]


def data_report(folder: str | Path) -> DataReport:
    """Check and measure a data set.

    Args:
        folder: as of `read_case_list`.

    Raises:
        DatasetError: all problems of all files, each with the file's name.
    """
    case_list = read_case_list(folder)
    cases = [case.annotated for case in case_list.cases]
    unknown = never_annotated(cases, case_list.labels, case_list.regions, case_list.folder / "dataset.json")
    try:
        summaries, measures = measure_cases(case_list)
    except DatasetError as error:
        raise DatasetError([*unknown, *error.problems]) from None
    if unknown:
        raise DatasetError(unknown)
    refuse_empty_labels(case_list.folder, summaries)
    statistics = data_statistics(summaries, measures)
    folds = count_folds(case_list.cases, None)
    advice = data_advice(summaries, statistics, folds, case_list.regions or ())
    return DataReport(case_list, summaries, measures, statistics, advice)


def _ignored(ignore_label: int | None, statistics: DataStatistics) -> Iterable[str]:
    if ignore_label is None:
        return
    if not statistics.ignored_cases:
        yield f"The ignore label {ignore_label} is declared, and no case has a voxel of it."
        return
    yield (
        f"The ignore label {ignore_label} marks {statistics.ignored_share:.2%} of all voxels, in "
        f"{statistics.ignored_cases} of {statistics.cases} cases, as without annotation; they are left out below."
    )


def _tables(statistics: DataStatistics) -> Iterable[str]:
    sizes = zip(BODY_AXES, map(_shown, statistics.shape), map(_shown, statistics.spacing_mm), strict=True)
    yield (
        _table(("Volumes", "voxels", "spacing in mm"), sizes)
        + f"\nThe largest of the median spacings is {statistics.anisotropy:.3g} times the smallest."
    )
    intensities = [
        (f"{channel.name}, {where}", *map(_shown, spreads))
        for channel in statistics.channels
        for where, spreads in (("whole image", channel.image), ("labelled voxels", channel.labelled))
        if spreads
    ]
    yield _table(("Percentiles of intensity", *(f"{share:g} %" for share in PERCENTILES)), intensities)
    shown = statistics.classes
    if len(shown) > _MANY:
        rarest = sorted(shown, key=lambda entry: (entry.share == 0, entry.share, entry.value))[:_SOME]
        shown = tuple(entry for entry in shown if entry in rarest)
    names = [f"{entry.value} {entry.name}" for entry in shown]
    more = f"\nOf {len(statistics.classes)} classes these are the {_SOME} rarest; --json tells of all."
    more = more if len(shown) < len(statistics.classes) else ""
    classes = [
        (
            name,
            _shown(entry.volume_ml),
            f"{entry.share:.2%}",
            "-" if entry.others_per_voxel is None else f"1:{entry.others_per_voxel:.0f}",
            f"{entry.missing_cases} of {entry.annotated_cases}",
            f"{entry.border_cases} of {entry.annotated_cases}",
        )
        for name, entry in zip(names, shown, strict=True)
    ]
    heads = ("Classes", "volume in ml", "of all voxels", "imbalance", "cases without it", "cases at the border")
    yield (
        _table(heads, classes)
        + more
        + "\nIn training patches, which are centred on each class as often, classes are less rare."
    )
    components = [
        (
            name,
            _shown(entry.components),
            _shown(entry.component_voxels),
            _shown(entry.component_mm3),
            str(entry.single_voxels),
        )
        for name, entry in zip(names, shown, strict=True)
    ]
    yield (
        _table(("Connected components", "per case", "voxels of one", "mm³ of one", "single voxels"), components) + more
    )


def _lesions(statistics: DataStatistics) -> Iterable[str]:
    """Of each class that is scattered, how many components and how small; nothing of organs."""
    found = lesion_classes(statistics.classes)
    if not found:
        return
    lines = []
    for entry in found[:_SOME]:
        assert entry.component_mm3 is not None  # of a class with voxels
        median, smallest = (_number(mm3 / 1000) for mm3 in (entry.component_mm3.median, entry.component_mm3.min))
        lines.append(
            f"{entry.name}: {_shown(entry.components)} components per case, in {entry.scattered_cases} of "
            f"{entry.annotated_cases} cases none holds nine tenths; the median one has {median} ml, the smallest "
            f"{smallest} ml."
        )
    if len(found) > _SOME:
        lines.append(f"{len(found) - _SOME} more classes; --json tells of all.")
    head = "Scattered as lesions are (an evaluation with --metrics lesions tells how many are found)"
    yield "\n".join([head, *map(_item, lines)])


def _paragraphs(advice: DataAdvice, folder: Path) -> Iterable[str]:
    if advice.remarks:
        yield "\n".join(["Worth a look", *map(_item, advice.remarks)])
    numbers = "" if advice.pixdim is None else ", ".join(f"{mm:g}" for mm in advice.pixdim)
    shared = f' --pixdim "[{numbers}]"' if numbers else ""
    spacing = f"spacing: resample to [{numbers}] mm;" if numbers else "spacing: as it is;"
    size = " x ".join(map(str, advice.patch_size))
    patch = f"patch: {size} voxels, which training takes by itself; for dynunet it rounds up, not down."
    yield "\n".join(["To start from", _item(f"{spacing} {advice.pixdim_why}"), _item(patch)])
    head = (
        "Losses to try, in this order. They are starting points read off the numbers above and promise nothing: "
        "compare on the same fold and seed, and leave dice_ce only for a loss that beats it there."
    )
    lines = [textwrap.fill(head, _WIDTH)]
    for entry in advice.losses:
        options = "".join(f" {option}" for option in entry.options) + shared
        command = f"monai-extra-losses train --data {shlex.quote(str(folder))} --run runs/{entry.loss}"
        lines += [_item(f"{entry.loss}: {entry.why}"), f"      {command} --loss {entry.loss}{options}"]
    yield "\n".join(lines)
    if advice.against:
        yield "\n".join(["The numbers speak against", *map(_item, advice.against)])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their longest cell; the first to the left, numbers to the right."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _item(sentence: str) -> str:
    return textwrap.fill(
        sentence,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _shown(spread: Spread | None) -> str:
    """`35 (31 to 43)`, or `35` where all are equal."""
    if spread is None:
        return "-"
    low, middle, high = map(_number, (spread.min, spread.median, spread.max))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(value: float) -> str:
    """Three digits, and no power of ten."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
