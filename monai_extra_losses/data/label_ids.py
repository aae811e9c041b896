"""Label ids: those of the sources, those of a data set, and their names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.ignore_label import usual_ignore_label

_SHOWN = 20  # ids in one sentence


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


def new_label_ids(found: Iterable[int], remap: Mapping[int, int], ignore_label: int | None = None) -> dict[int, int]:
    """Which id each label id of the sources gets; the new ones are 0 to n without a gap, and the ignore label.

    Args:
        found: all ids in the labels of the sources.
        remap: id of the sources -> new id; the others stay.
        ignore_label: new id of the voxels without annotation, if there are any.

    Raises:
        DatasetError: an id to remap that no label has, an ignore label that no label gets, background alone, or a gap,
            with a remap that closes it.
    """
    new_ids = {value: remap.get(value, value) for value in sorted(found)}
    unused = sorted(remap.keys() - new_ids.keys())
    if unused:
        raise DatasetError(
            f"expected label ids of the sources to be given others, got {_listed(unused)}, which no label has; "
            f"the labels have {_listed(new_ids)}."
        )
    if ignore_label is not None and (ignore_label == 0 or ignore_label not in new_ids.values()):
        reason = "which is the background" if ignore_label == 0 else "which no label has"
        raise DatasetError(
            f"expected an ignore label among the label ids{' after the remap' if remap else ''}, got {ignore_label}, "
            f"{reason}; the labels have {_listed(sorted(set(new_ids.values())))}."
        )
    values = sorted(set(new_ids.values()) - {ignore_label})
    if len(values) < 2:
        raise DatasetError(f"expected labels with background and one structure at least, got {_listed(new_ids)} alone.")
    if values == list(range(len(values))):
        return new_ids
    order = sorted(values, key=lambda value: (value != 0, value < 0, value))  # the background stays the background
    closed = {old: new if new == ignore_label else order.index(new) for old, new in new_ids.items()}
    proposal = ",".join(f"{old}:{new}" for old, new in closed.items() if old != new)
    hint = f'--remap "{proposal}" closes the gap' if len(values) <= _SHOWN else "are these label volumes?"
    if 0 not in values:
        hint += f", with {order[0]} as background"
    if ignore_label is None and (likely := usual_ignore_label(values)) is not None:
        hint += f'; if {likely} marks voxels without annotation, --ignore-label "{likely}" keeps it apart'
    raise DatasetError(
        f"expected label ids 0 to n without a gap{' after the remap' if remap else ''}, got {_listed(values)}; {hint}."
    )


def label_names(new_ids: Mapping[int, int], names: Mapping[int, str]) -> dict[int, str]:
    """Name of each id in the data set: the one given, else `background` or `label_1`, `label_2`, ...

    Raises:
        DatasetError: a name for an id that no label has, or one name for two.
    """
    values = sorted(set(new_ids.values()))
    if unknown := sorted(names.keys() - set(values)):
        raise DatasetError(f"expected names for the label ids {_listed(values)}, got one for {_listed(unknown)}.")
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
    old = np.array(sorted(new_ids))
    ends = (min(new_ids.values()), max(new_ids.values()))
    dtype = np.result_type(*map(np.min_scalar_type, ends))
    new = np.array([new_ids[value] for value in old.tolist()], dtype=dtype)
    renumbered = np.empty(label.shape, dtype=new.dtype)
    for before, after in zip(label, renumbered, strict=True):  # plane by plane: the indices take 8 bytes per voxel
        after[...] = new[np.searchsorted(old, before)]
    return renumbered


def _listed(values: Iterable[int]) -> str:
    values = list(values)
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(str, values[:_SHOWN])) + more
