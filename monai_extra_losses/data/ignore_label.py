"""The ignore label, that of voxels which nobody has annotated: how it is declared, and what is said where it is not.

dataset.json declares it as nnU-Net does, by the name `ignore` among its `labels`, or by `"ignore_label": 255`.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.json_file import quoted

_NAME = "ignore"
_USUAL = (255, -1, 65535)  # what programs write for "no annotation"; below 0 every value is
_LARGEST_EXACT = 1 << 24  # float32 holds every whole number up to it
_DIGITS = re.compile("-?[0-9]{1,19}")
_INT64 = range(-(1 << 63), 1 << 63)


def split_ignore_label(declared: Mapping[str, Any], where: Path) -> tuple[int | None, dict[str, Any]]:
    """The ignore label that a dataset.json declares, and its content without that label among the `labels`.

    Args:
        declared: content of dataset.json.
        where: the file, for the sentences.

    Raises:
        DatasetError: an ignore label that is no whole number, is the background, or is declared twice.
    """
    entries = declared.get("labels")
    found = set()
    if (given := declared.get("ignore_label")) is not None:
        found.add(_whole(given, "`ignore_label`", where))
    numbers = {}  # key -> label value, of the labels of another name
    for key, value in entries.items() if isinstance(entries, Mapping) else ():
        number, name = (key, value) if isinstance(value, str) else (value, key)
        if is_ignore_name(str(name)):
            found.add(_whole(number, "`ignore` in `labels`", where))
        else:
            numbers[key] = number
    if len(found) > 1:
        raise DatasetError(
            f"{where}: expected one ignore label, got {' and '.join(map(str, sorted(found)))}; give each voxel without "
            "annotation the same value."
        )
    if not found:
        return None, dict(declared)
    (ignored,) = found
    if ignored == 0:
        raise DatasetError(
            f"{where}: expected an ignore label other than 0, which is the background, got 0; give the voxels without "
            "annotation another value."
        )
    if not isinstance(entries, Mapping):  # which the reader of the labels refuses
        return ignored, dict(declared)
    # `ignore_label` may mean a value that has another name among the labels
    rest = {key: entries[key] for key, number in numbers.items() if str(number) != str(ignored)}
    return ignored, {**declared, "labels": rest}


def is_ignore_name(name: str) -> bool:
    """Whether a label of that name is the ignore label."""
    return name.strip().lower() == _NAME


def value_in_memory(ignore_label: int | None, num_classes: int) -> int | None:
    """What a label in memory, of float32 numbers, holds where the files have the ignore label.

    The same value, or -1 where that is the number of a class, 0 to `num_classes` - 1, or not exact.
    """
    if ignore_label is None:
        return None
    free = ignore_label not in range(num_classes) and abs(ignore_label) <= _LARGEST_EXACT
    return ignore_label if free else -1


def hint_to_ignore(foreign: Collection[int], dataset_json: Path) -> str:
    """The way out for values that mark voxels without annotation in many data sets: a clause that ends a sentence.

    Args:
        foreign: label values that are not declared.
        dataset_json: where to declare them.
    """
    likely = usual_ignore_label(foreign)
    if likely is None:
        return ""
    return (
        f'; if {likely} marks voxels without annotation, write "ignore_label": {likely} into {dataset_json}, '
        "and they are left out"
    )


def usual_ignore_label(values: Collection[int]) -> int | None:
    """The value that marks voxels without annotation in many data sets, where there is one."""
    return next((value for value in values if value < 0 or value in _USUAL), None)


def _whole(value: Any, what: str, where: Path) -> int:
    number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value
    if type(number) is not int or number not in _INT64:
        raise DatasetError(
            f"{where}: expected {what} to be a whole number such as 255 or -1, got {quoted(value)}; correct it."
        )
    return number
