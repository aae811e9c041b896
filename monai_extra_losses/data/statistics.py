"""What a data set without problems looks like: sizes, intensities, classes and their connected components.

More than the check before training reads, and kept in the same cache, so that each case is measured once.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.data.checks import CaseSummaries, CaseSummary, check_cases, read_voxels
from monai_extra_losses.data.datalist import CaseList, LabelledCase
from monai_extra_losses.data.fact_cache import FactCache, state_of
from monai_extra_losses.data.geometry import body_shape, body_spacing
from monai_extra_losses.data.label_ids import label_ids_of
from monai_extra_losses.data.threads import in_threads

PERCENTILES = (0.5, 50.0, 99.5)
"""Per cent of the voxels that are at most as bright."""

SCATTERED = 3
"""Components of a class in a case, from which it may be lesions: two may be a left and a right organ."""

WHOLE = 0.9
"""Share of a class's voxels in its largest component, from which the others are crumbs of an organ."""

_DENSE = 1 << 16  # label ids up to here are their own numbers


@dataclass(frozen=True)
class CaseMeasures:
    """What the voxels of one case say beyond its `CaseSummary`.

    Args:
        percentiles: per channel the `PERCENTILES` of all voxels, in the unit of the file.
        labelled_percentiles: the same of the voxels of any class above 0; empty without one.
        components: label value above 0 -> size in voxels -> number of connected components of that size. Voxels that
            share a face, an edge or a corner are connected.
        at_border: label values above 0 with a voxel at the border of the volume.
    """

    percentiles: tuple[tuple[float, ...], ...]
    labelled_percentiles: tuple[tuple[float, ...], ...]
    components: dict[int, dict[int, int]]
    at_border: tuple[int, ...]


@dataclass(frozen=True)
class Spread:
    """The smallest, the median and the largest of some numbers."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class ChannelStatistics:
    """Intensities of one channel: a spread over the cases per percentile.

    Args:
        name: of the channel.
        image: `PERCENTILES` of all voxels.
        labelled: those of the voxels of any class above 0, over the cases that have one; empty without one.
    """

    name: str
    image: tuple[Spread, ...]
    labelled: tuple[Spread, ...]


@dataclass(frozen=True)
class ClassStatistics:
    """One class above 0.

    Args:
        value, name: of the label.
        missing_cases: cases that annotate it and have no voxel of it. The numbers below are over those that have one,
            and None without such.
        share: of all voxels that are not ignored, in the cases that annotate it, 0 to 1.
        others_per_voxel: N of an imbalance of 1 : N, the voxels that are not of the class for each one that is.
        volume_ml: per case.
        components: connected components per case.
        component_voxels, component_mm3: size of a component, over all components of the data set.
        single_voxels: components of one voxel in the data set.
        border_cases: cases in which it reaches the border of the volume.
        annotated_cases: cases that annotate it; the others say nothing of it.
        scattered_cases: cases in which it has `SCATTERED` components or more, and less than `WHOLE` of it is in one.
    """

    value: int
    name: str
    missing_cases: int
    share: float
    others_per_voxel: float | None
    volume_ml: Spread | None
    components: Spread | None
    component_voxels: Spread | None
    component_mm3: Spread | None
    single_voxels: int
    border_cases: int
    annotated_cases: int
    scattered_cases: int = 0


@dataclass(frozen=True)
class DataStatistics:
    """A data set in numbers, over its labelled cases.

    Args:
        cases: labelled cases.
        shape: voxels along R, A, S (from right to left, from back to front, from foot to head).
        spacing_mm: millimetres along them.
        anisotropy: largest over smallest of the median spacings.
        channels: of the images.
        classes: those above 0, by label value.
        ignored_cases: cases with a voxel of the ignore label.
        ignored_share: those voxels among all of the data set, 0 to 1.
        partly_annotated_cases: cases that do not annotate all classes.
    """

    cases: int
    shape: tuple[Spread, ...]
    spacing_mm: tuple[Spread, ...]
    anisotropy: float
    channels: tuple[ChannelStatistics, ...]
    classes: tuple[ClassStatistics, ...]
    ignored_cases: int = 0
    ignored_share: float = 0.0
    partly_annotated_cases: int = 0


def measure_cases(
    case_list: CaseList,
    *,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> tuple[CaseSummaries, tuple[CaseMeasures, ...]]:
    """Check every file of a data set, then measure its labelled cases.

    Args:
        case_list, num_workers, cache_dir, progress: see `check_cases`.

    Returns:
        What the check found, and what was measured of each labelled case, in the order of the case list.

    Raises:
        DatasetError: all problems of all files, each with the file's name.
    """
    options: dict[str, Any] = {"num_workers": num_workers, "cache_dir": cache_dir, "progress": progress}
    summaries = check_cases(case_list, **options)
    cache = FactCache(case_list.folder, cache_dir)
    measured: dict[LabelledCase, CaseMeasures] = {}
    changed: dict[LabelledCase, list[list[int]]] = {}
    for case in case_list.cases:
        key = [state_of(file) for file in (*case.image, _label_of(case))]
        if case_list.ignore_label is not None:
            key.append([case_list.ignore_label])  # what is measured depends on it
        kept = cache.take("cases", _label_of(case), key, _measures_from_json)
        if kept is None:
            changed[case] = key
        else:
            measured[case] = kept
    measure = partial(_measure, ignore_label=case_list.ignore_label)
    for case, measures in in_threads(measure, changed, num_workers, "measuring cases" if progress else None):
        measured[case] = measures
        cache.keep("cases", _label_of(case), changed[case], asdict(measures))
    if changed:
        cache.write()
    return summaries, tuple(measured[case] for case in case_list.cases)


def data_statistics(summaries: CaseSummaries, measures: Sequence[CaseMeasures]) -> DataStatistics:
    """A data set in numbers.

    Args:
        summaries: what the check found.
        measures: of each labelled case, in the same order.
    """
    cases = summaries.cases
    spacings = _spreads(map(body_spacing, cases))
    medians = [spread.median for spread in spacings]
    labelled = [m.labelled_percentiles for m in measures if m.labelled_percentiles]
    return DataStatistics(
        cases=len(cases),
        shape=_spreads(map(body_shape, cases)),
        spacing_mm=spacings,
        anisotropy=max(medians) / min(medians),
        channels=tuple(
            ChannelStatistics(
                name=name,
                image=_spreads(m.percentiles[channel] for m in measures),
                labelled=_spreads(of_case[channel] for of_case in labelled),
            )
            for channel, name in enumerate(summaries.channels)
        ),
        classes=tuple(
            _class_statistics(value, name, cases, measures) for value, name in summaries.labels.items() if value
        ),
        ignored_cases=sum(case.ignored > 0 for case in cases),
        ignored_share=sum(case.ignored for case in cases) / sum(int(np.prod(case.shape)) for case in cases),
        partly_annotated_cases=sum(not case.annotates(*summaries.labels) for case in cases),
    )


def _class_statistics(
    value: int, name: str, cases: Sequence[CaseSummary], measures: Sequence[CaseMeasures]
) -> ClassStatistics:
    volumes, numbers = [], []
    voxels: Counter[int] = Counter()
    cubic_mm: Counter[float] = Counter()
    for case, measured in zip(cases, measures, strict=True):
        if value in measured.components:
            sizes = measured.components[value]
            of_voxel = float(np.prod(case.spacing))
            volumes.append(case.voxels[value] * of_voxel / 1000)
            numbers.append(sum(sizes.values()))
            voxels.update(sizes)
            cubic_mm.update({size * of_voxel: number for size, number in sizes.items()})
    annotating = [case for case in cases if case.annotates(value)]
    annotated = sum(int(np.prod(c.shape)) - c.ignored for c in annotating)
    share = sum(c.voxels.get(value, 0) for c in annotating) / annotated if annotated else 0.0
    return ClassStatistics(
        value=value,
        name=name,
        missing_cases=len(annotating) - len(volumes),
        share=share,
        others_per_voxel=(1 - share) / share if share else None,
        volume_ml=_spread(volumes),
        components=_spread(numbers),
        component_voxels=_spread(_repeated(voxels)),
        component_mm3=_spread(_repeated(cubic_mm)),
        single_voxels=voxels[1],
        border_cases=sum(value in measured.at_border for measured in measures),
        annotated_cases=len(annotating),
        scattered_cases=sum(_is_scattered(measured.components.get(value, {})) for measured in measures),
    )


def _is_scattered(sizes: Mapping[int, int]) -> bool:
    """Whether a class is scattered in a case: size in voxels -> number of components."""
    if sum(sizes.values()) < SCATTERED:
        return False
    return max(sizes) < WHOLE * sum(size * number for size, number in sizes.items())


def _measure(case: LabelledCase, ignore_label: int | None = None) -> CaseMeasures:
    volumes = [read_voxels(file, "image") for file in case.image]
    file, stored = read_voxels(_label_of(case), "label")
    # NIfTI's order in memory: the first axis last, which is two to eight times faster
    labels = label_ids_of(file.scaled(stored[..., 0].T))
    if ignore_label is not None:
        labels = np.where(labels == ignore_label, 0, labels)
    labelled = labels > 0
    percentiles, labelled_percentiles = [], []
    for image, data in volumes:
        for channel in data.T:
            percentiles.append(_percentiles(channel, image.slope, image.intercept))
            if labelled.any():
                labelled_percentiles.append(_percentiles(channel[labelled], image.slope, image.intercept))
    components, at_border = _components(labels)
    return CaseMeasures(tuple(percentiles), tuple(labelled_percentiles), components, at_border)


def _percentiles(voxels: NDArray[Any], slope: float, intercept: float) -> tuple[float, ...]:
    if slope < 0:  # the darkest number stored is the brightest voxel
        voxels, slope = -voxels.astype(np.float64), -slope
    found = np.percentile(voxels, PERCENTILES, method="inverted_cdf")  # values of voxels, none between two of them
    return tuple(float(value) * slope + intercept for value in found)


def _components(labels: NDArray[Any]) -> tuple[dict[int, dict[int, int]], tuple[int, ...]]:
    """Sizes of the connected components of each value above 0, and the values at the border of the volume."""
    from scipy import ndimage  # 0.2 s, needed for a case that is new alone

    components: dict[int, dict[int, int]] = {}
    at_border = []
    values: Sequence[int] = range(1, int(labels.max()) + 1)
    if len(values) > _DENSE:  # `find_objects` makes a list as long as the largest number
        found, numbers = np.unique(labels, return_inverse=True)
        labels = numbers.reshape(labels.shape) + 1 - np.searchsorted(found, 1)
        values = found[found > 0].tolist()
    for index, box in enumerate(ndimage.find_objects(labels)):
        if box is None:
            continue
        value = values[index]
        mask = labels[box] == index + 1
        numbered, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
        sizes, counts = np.unique(np.bincount(numbered[mask])[1:], return_counts=True)
        components[value] = dict(zip(sizes.tolist(), counts.tolist(), strict=True))
        if any(part.start == 0 or part.stop == n for part, n in zip(box, labels.shape, strict=True)):
            at_border.append(value)
    return components, tuple(at_border)


def _measures_from_json(stored: Any) -> CaseMeasures:
    return CaseMeasures(
        percentiles=tuple(map(tuple, stored["percentiles"])),
        labelled_percentiles=tuple(map(tuple, stored["labelled_percentiles"])),
        components={
            int(value): {int(size): number for size, number in sizes.items()}
            for value, sizes in stored["components"].items()
        },
        at_border=tuple(stored["at_border"]),
    )


def _label_of(case: LabelledCase) -> Path:
    assert case.label is not None  # of a labelled case
    return case.label


def _spreads(rows: Iterable[Sequence[float]]) -> tuple[Spread, ...]:
    """The spread of each column."""
    return tuple(Spread(min(column), float(np.median(column)), max(column)) for column in zip(*rows, strict=True))


def _spread(numbers: Sequence[float]) -> Spread | None:
    return Spread(min(numbers), float(np.median(numbers)), max(numbers)) if len(numbers) else None


def _repeated(counts: Counter[Any]) -> list[Any]:
    return [size for size, number in counts.items() for _ in range(number)]
