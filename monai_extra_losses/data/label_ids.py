"""Label ids: those of the sources, those of a data set, and their names."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import composed
from monai_extra_losses.data.ignore_label import usual_ignore_label
from monai_extra_losses.data.remarks import COARSE_LABELS, ROUNDED_LABELS

NEARLY_WHOLE = 1e-3
"""A label value this near to a whole number is one: a scale factor of 32 bits in a header gives 2.9999999."""

LARGEST_ID = np.iinfo(np.int64).max

MOST_IDS = 1000
"""Ids of a data set for which new ones or names are proposed; an image has more values."""

_SHOWN = 20  # ids in one sentence one by one, and runs of more
_SLAB = 1 << 22  # voxels looked at together
_EXACT_IN = {"float32": 1 << 24, "float64": 1 << 53}  # every whole number up to here


@dataclass(frozen=True)
class LabelCount:
    """What the voxels of a label hold.

    Args:
        voxels: id -> voxels, by id.
        not_whole: voxels that hold no whole number.
        too_large: voxels that hold a whole number beyond 64 bits with a sign.
        rounded: voxels that hold a number a little off a whole one, which counts.
        coarse: whether ids are larger than the type that they are stored as tells apart.
    """

    voxels: dict[int, int]
    not_whole: int = 0
    too_large: int = 0
    rounded: int = 0
    coarse: bool = False


def count_ids(voxels: NDArray[Any], scaled: Callable[[NDArray[Any]], NDArray[Any]] | None = None) -> LabelCount:
    """Count the voxels of each label id; no array is as long as the largest id.

    Args:
        voxels: of a label, of any real type and shape.
        scaled: makes values of some of the voxels; None: they are the values.
    """
    counts: Counter[int] = Counter()
    not_whole = too_large = rounded = 0
    flat = voxels.ravel(order="K")
    for start in range(0, flat.size, _SLAB):
        slab = flat[start : start + _SLAB]
        slab = slab if scaled is None else scaled(slab)
        if slab.dtype.kind == "f":
            whole = _nearest_whole(slab)
            usable = ~np.isnan(whole)
            not_whole += slab.size - int(np.count_nonzero(usable))
            slab, whole = slab[usable], whole[usable]
            rounded += int(np.count_nonzero(slab != whole))
            slab = whole
        if slab.dtype.kind == "f" or slab.dtype == np.uint64:
            fitting = slab <= LARGEST_ID if slab.dtype == np.uint64 else np.abs(slab) < 2.0**63
            too_large += slab.size - int(np.count_nonzero(fitting))
            slab = slab[fitting]
        slab = slab.astype(np.int64)
        if not slab.size:
            continue
        low, high = int(slab.min()), int(slab.max())
        if high - low < 1 << 16:  # counting takes a twentieth of the time of sorting
            tally = np.bincount(slab - low)
            counts.update({int(i) + low: int(tally[i]) for i in np.flatnonzero(tally)})
        else:
            values, tally = np.unique(slab, return_counts=True)
            counts.update(dict(zip(values.tolist(), tally.tolist(), strict=True)))
    exact = _EXACT_IN.get(voxels.dtype.name, LARGEST_ID)
    coarse = any(abs(value) > exact for value in counts)
    return LabelCount(dict(sorted(counts.items())), not_whole, too_large, rounded, coarse)


def label_ids_of(values: NDArray[Any]) -> NDArray[Any]:
    """The ids in a label of which `refusals_of` has nothing to say, as whole numbers of at most 64 bits with a sign."""
    if values.dtype.kind in "iu" and values.dtype != np.uint64:
        return values
    if values.dtype.kind == "f":
        values = np.rint(values)
    limits = np.iinfo(np.int32)
    return values.astype(np.int32 if limits.min <= values.min() and values.max() <= limits.max else np.int64)


def refusals_of(count: LabelCount) -> Iterable[str]:
    """What is wrong with the values of a label, one sentence a point, without the name of the file."""
    if count.not_whole:
        yield (
            f"expected whole numbers as label values, got {count.not_whole} voxels with others; "
            "resample labels with nearest neighbours."
        )
    if count.too_large:
        yield (
            f"expected label ids of at most {LARGEST_ID} (64 bits with a sign), got larger ones in {count.too_large} "
            "voxels; give them smaller ids."
        )


def remarks_of(count: LabelCount) -> Iterable[str]:
    """What is assumed of the values of a label, keys of `remarks.REMARKS`."""
    if count.rounded:
        yield ROUNDED_LABELS
    if count.coarse:
        yield COARSE_LABELS


def _nearest_whole(values: NDArray[Any]) -> NDArray[Any]:
    """The whole number that each value is, to `NEARLY_WHOLE`; NaN for the others."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        whole: NDArray[Any] = np.rint(values)
        whole[~(np.abs(values - whole) <= NEARLY_WHOLE)] = np.nan
    return whole


def parse_remap(text: str) -> dict[int, int]:
    """`"4:3,7:0"` as {4: 3, 7: 0}."""
    pairs = [re.fullmatch(r"\s*(-?\d+)\s*[:=]\s*(\d+)\s*", entry) for entry in text.split(",")]
    remap = {int(pair[1]): int(pair[2]) for pair in pairs if pair}
    if len(remap) != len(pairs):
        raise DatasetError(
            f'expected label ids as OLD:NEW,OLD:NEW, each old one once, such as "4:3,7:0", got {text!r}.'
        )
    return remap


def parse_names(text: str) -> dict[int, str]:
    """`"1:liver,2=tumour"` as {1: "liver", 2: "tumour"}."""
    pairs = [re.fullmatch(r"\s*(\d+)\s*[:=]\s*(.*\S)\s*", entry) for entry in text.split(",")]
    names = {int(pair[1]): pair[2] for pair in pairs if pair}
    if len(names) != len(pairs) or len(set(names.values())) != len(names):
        raise DatasetError(
            f'expected label names as ID:NAME,ID:NAME, each once, such as "1:liver,2:tumour", got {text!r}.'
        )
    return names


def name_key(name: str) -> str:
    """What is equal in equal names of structures, whatever their case, spaces and form of Unicode."""
    return composed(" ".join(name.split())).casefold()


def parse_ids(text: str) -> tuple[int, ...]:
    """`"1,3"` as (1, 3)."""
    ids = [entry.strip() for entry in text.split(",")]
    if not all(re.fullmatch(r"\d{1,18}", entry) for entry in ids):
        raise DatasetError(f'expected label ids as ID,ID, such as "1,3", got {text!r}; correct it.')
    return tuple(map(int, ids))


def new_label_ids(
    found: Iterable[int], remap: Mapping[int, int], ignore_label: int | None = None, named: Iterable[int] | None = None
) -> dict[int, int]:
    """Which id each label id of the sources gets; the new ones are 0 to n without a gap, and the ignore label.

    Args:
        found: all ids in the labels of the sources.
        remap: id of the sources -> new id; the others stay.
        ignore_label: new id of the voxels without annotation, if there are any.
        named: new ids with a name, which need no voxel; None: every id needs one.

    Raises:
        DatasetError: an id to remap that no label has, an ignore label that no label gets, background alone, or a gap,
            with a remap that closes it.
    """
    new_ids = {value: remap.get(value, value) for value in sorted(found)}
    unused = sorted(remap.keys() - new_ids.keys())
    if unused:
        raise DatasetError(
            f"expected label ids of the sources to be given others, got {listed_ids(unused)}, which no label has; "
            f"the labels have {listed_ids(new_ids)}."
        )
    if ignore_label is not None and (ignore_label == 0 or ignore_label not in new_ids.values()):
        reason = "which is the background" if ignore_label == 0 else "which no label has"
        raise DatasetError(
            f"expected an ignore label among the label ids{' after the remap' if remap else ''}, got {ignore_label}, "
            f"{reason}; the labels have {listed_ids(sorted(set(new_ids.values())))}."
        )
    values = sorted(set(new_ids.values()) - {ignore_label})
    if len(values) < 2:
        hint = "are these the labels?" if len(new_ids) < 2 else "remap fewer ids to one."
        raise DatasetError(
            f"expected labels with background and one structure at least, got {listed_ids(values)} alone in every "
            f"voxel of every label{' after the remap' if remap else ''}; {hint}"
        )
    values = sorted({*values, *(named or ())} - {ignore_label})
    if values == list(range(len(values))):
        return new_ids
    order = sorted(values, key=lambda value: (value != 0, value < 0, value))  # the background stays the background
    closed = {old: new if new == ignore_label else order.index(new) for old, new in new_ids.items()}
    proposal = ",".join(f"{old}:{new}" for old, new in closed.items() if old != new)
    hint = f'--remap "{proposal}" closes the gap' if len(values) <= MOST_IDS else "are these label volumes?"
    if 0 not in values:
        hint += f", with {order[0]} as background"
    if named is not None:
        hint += "; or --names has the ids between, if they are those of other structures"
    if ignore_label is None and (likely := usual_ignore_label(values)) is not None:
        hint += f'; if {likely} marks voxels without annotation, --ignore-label "{likely}" keeps it apart'
    after = " after the remap" if remap else ""
    raise DatasetError(f"expected label ids 0 to n without a gap{after}, got {listed_ids(values)}; {hint}.")


def label_names(new_ids: Mapping[int, int], names: Mapping[int, str], named: Iterable[int] = ()) -> dict[int, str]:
    """Name of each id in the data set: the one given, else `background` or `label_1`, `label_2`, ...

    Args:
        new_ids: id of the sources -> id in the data set.
        names: id in the data set -> name.
        named: ids in the data set that need no voxel.

    Raises:
        DatasetError: a name for an id that no label has, or one name for two.
    """
    values = sorted({*new_ids.values(), *named})
    if unknown := sorted(names.keys() - set(values)):
        raise DatasetError(f"expected names for the label ids {listed_ids(values)}, got one for {listed_ids(unknown)}.")
    labels = {value: f"label_{value}" if value else "background" for value in values} | dict(names)
    if len(set(labels.values())) != len(labels):
        raise DatasetError(f"expected another name for each label id, got {', '.join(labels.values())}.")
    return dict(sorted(labels.items()))


def original_labels(new_ids: Mapping[int, int]) -> dict[int, int]:
    """Id in the data set -> the one id of the sources that it stands for, where that is another."""
    originals: dict[int, list[int]] = {}
    for old, new in new_ids.items():
        originals.setdefault(new, []).append(old)
    return {new: old[0] for new, old in sorted(originals.items()) if len(old) == 1 and old != [new]}


def renumber(label: NDArray[Any], new_ids: Mapping[int, int]) -> NDArray[Any]:
    """A label volume with its new ids, in the smallest type that holds all of them, unsigned where none is below 0."""
    label = label_ids_of(label)
    old = np.array(sorted(new_ids), dtype=np.int64)
    ends = (min(new_ids.values()), max(new_ids.values()))
    dtype = np.result_type(*map(np.min_scalar_type, ends))
    new = np.array([new_ids[value] for value in old.tolist()], dtype=dtype)
    renumbered = np.empty(label.shape, dtype=new.dtype)
    for before, after in zip(label, renumbered, strict=True):  # plane by plane: the indices take 8 bytes per voxel
        after[...] = new[np.searchsorted(old, before)]
    return renumbered


def listed_ids(values: Iterable[int]) -> str:
    """All of some ids for a sentence; of many those in a row as `4 to 9`."""
    values = sorted(values)
    if len(values) <= _SHOWN:
        return ", ".join(map(str, values))
    starts = [i for i, value in enumerate(values) if i == 0 or value != values[i - 1] + 1]
    ends = [*(start - 1 for start in starts[1:]), len(values) - 1]
    runs = [
        str(values[start]) if start == end else f"{values[start]} to {values[end]}"
        for start, end in zip(starts, ends, strict=True)
    ]
    more = f" and {len(runs) - MOST_IDS} more" if len(runs) > MOST_IDS else ""
    return f"{len(values)} ids, {', '.join(runs[:MOST_IDS])}{more}"
