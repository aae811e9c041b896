"""What dataset.json declares: labels, channels, regions and an ignore label. Light imports only."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import NIFTI_SUFFIXES, OTHER_SUFFIXES
from monai_extra_losses.data.ignore_label import split_ignore_label, value_in_memory
from monai_extra_losses.data.json_file import quoted, read_json

LABEL_NAMES = "label_names"
"""Entry of dataset.json with the names of label values, {"1": NAME}, where `labels` has regions in their place."""

NAME_OF_ENTRY = "\0name"  # no key of a file is that
_MOST = 2**63 - 1  # a label value
_MOST_DIGITS = 19  # of it
_SHOWN = 20  # values in a sentence
_VOLUMES = (*NIFTI_SUFFIXES, *OTHER_SUFFIXES)


def declares_regions(folder: str | Path) -> bool:
    """Whether dataset.json has `regions`; False for a folder that `read_case_list` would refuse."""
    path = Path(folder) / "dataset.json"
    try:
        _, declared = split_ignore_label(read_declared(path), path)
        return declared_regions(declared, declared_labels(declared, path), path) is not None
    except DatasetError:
        return False


def declared_ignore_label(folder: str | Path, regions: bool = True) -> tuple[int, int] | None:
    """The ignore label that dataset.json declares, and its `value_in_memory`; None without.

    Args:
        folder: of the data set.
        regions: whether the regions that it declares are trained.
    """
    where = Path(folder) / "dataset.json"
    try:
        ignore_label, declared = split_ignore_label(read_declared(where), where)
        labels = declared_labels(declared, where)
        channels = declared_regions(declared, labels, where) if regions else None
    except DatasetError:  # `read_case_list` will say it
        return None
    value = value_in_memory(ignore_label, max(len(labels), len(channels or ())))
    return None if ignore_label is None or value is None else (ignore_label, value)


def read_declared(path: Path) -> dict[str, Any]:
    """dataset.json; the cases that nnU-Net lists under `dataset` are put under `training`."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected an object with `training` and `labels`, got {type(content).__name__}.")
    listed = content.get("dataset")
    if isinstance(listed, dict) and ("training" not in content or "file_ending" in content):
        entries = [
            {
                "image": _expanded(entry.get("images")),
                "label": _expanded(entry.get("label")),
                NAME_OF_ENTRY: name,
                **({"annotated": entry["annotated"]} if "annotated" in entry else {}),
            }
            for name, entry in listed.items()
            if isinstance(entry, dict)
        ]
        if len(entries) == len(listed):
            return {**content, "training": entries}
    return content


def lists_for_nnunet(declared: Mapping[str, Any]) -> bool:
    """Whether the cases of what `read_declared` gives are listed under `dataset`, which has no test cases."""
    return any(isinstance(entry, dict) and NAME_OF_ENTRY in entry for entry in declared.get("training", ()))


def _expanded(files: Any) -> Any:
    """Paths with the values of the environment variables in them, as nnU-Net reads them."""
    if isinstance(files, list):
        return [_expanded(file) for file in files]
    return os.path.expandvars(files) if isinstance(files, str) else files


def declared_file_ending(declared: Mapping[str, Any], where: Path) -> str | None:
    """`file_ending` of an nnU-Net folder; None without.

    Raises:
        DatasetError: no text, or the ending of no volume.
    """
    ending = declared.get("file_ending")
    if ending is not None and not (isinstance(ending, str) and ending.lower() in _VOLUMES):
        raise DatasetError(
            f"{where}: expected {', '.join(_VOLUMES)} as `file_ending`, got {quoted(ending)}; correct it. Pictures of "
            "two dimensions (.png, .tif, .bmp), grey or RGB, and stacks of TIFF are not read."
        )
    return ending


def declared_labels(declared: Mapping[str, Any], where: Path) -> dict[int, str]:
    """`labels` of dataset.json, as {"0": "background"} (Decathlon) or {"background": 0} (nnU-Net v2).

    nnU-Net's regions, {"whole": [1, 2]}, name no value; `label_names` may, and one that nothing names is `label_1`,
    `label_2`, ...
    """
    if not declared:
        return {}
    entries = declared.get("labels")
    hint = 'write {"0": "background", "1": NAME, ...} with a name per label value'
    if not isinstance(entries, dict):
        raise DatasetError(f"{where}: expected an object under `labels`, got {quoted(entries)}; {hint}.")
    pairs: list[tuple[int, str]] = []
    joined: list[int] = []
    for key, value in entries.items():
        number, name = (key, value) if isinstance(value, str) else (value, key)
        values = [_label_value(one) for one in (number if isinstance(number, list) and number else [number])]
        whole = [one for one in values if one is not None]
        if len(whole) < len(values):
            raise DatasetError(f"{where}: expected whole numbers in `labels`, got {quoted({key: value})}; {hint}.")
        if len(whole) == 1:
            pairs.append((whole[0], name))
        else:
            joined += whole
    named = {value for value, _ in pairs}
    pairs += [(value, f"label_{value}" if value else "background") for value in sorted({*joined} - named)]
    labels = dict(sorted(pairs))
    if joined:
        labels |= _label_names(declared, labels, where)
    if len(labels) != len(pairs) or len(set(labels.values())) != len(pairs):
        raise DatasetError(f"{where}: expected every value and name once in `labels`, got {quoted(entries)}.")
    if 0 not in labels or len(labels) < 2:
        raise DatasetError(
            f"{where}: expected 0 (background) and one more value at least in `labels`, got {quoted(entries)}; {hint}."
        )
    return labels


def _label_names(declared: Mapping[str, Any], labels: Mapping[int, str], where: Path) -> dict[int, str]:
    entries = declared.get(LABEL_NAMES, {})
    if not isinstance(entries, dict) or not all(
        _label_value(value) in labels and isinstance(name, str) for value, name in entries.items()
    ):
        raise DatasetError(
            f'{where}: expected `{LABEL_NAMES}` as {{"1": NAME, ...}} of values in `labels`, got {quoted(entries)}; '
            "correct or remove it."
        )
    return {int(value): name for value, name in entries.items()}


def _label_value(number: Any) -> int | None:
    """A label value, of a number or its digits; None of what is none."""
    if isinstance(number, bool) or not isinstance(number, int | str):
        return None
    if isinstance(number, str) and not (number.isdecimal() and len(number) <= _MOST_DIGITS):
        return None
    return int(number) if 0 <= int(number) <= _MOST else None


def original_labels(declared: Mapping[str, Any], where: Path) -> dict[int, int]:
    """`original_labels` of dataset.json, {"3": 4}: value 4 of the source has become 3."""
    entries = declared.get("original_labels", {})
    if not isinstance(entries, dict) or not all(
        _label_value(value) is not None
        and isinstance(original, int)
        and not isinstance(original, bool)
        and abs(original) <= _MOST
        for value, original in entries.items()
    ):
        raise DatasetError(
            f'{where}: expected `original_labels` as {{"3": 4, ...}}, value here and value in the source, '
            f"got {quoted(entries)}; correct or remove it."
        )
    return {int(value): original for value, original in entries.items()}


def declared_channels(declared: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """`modality` (Decathlon) or `channel_names` (nnU-Net v2), both {"0": NAME, ...}."""
    key = "channel_names" if "channel_names" in declared else "modality"
    entries = declared.get(key, {})
    if not isinstance(entries, dict) or entries.keys() != {str(i) for i in range(len(entries))}:
        raise DatasetError(
            f'{where}: expected `{key}` as {{"0": NAME, "1": NAME, ...}} without gaps, got {quoted(entries)}.'
        )
    return tuple(str(entries[str(i)]) for i in range(len(entries)))


def declared_regions(
    declared: Mapping[str, Any], labels: Mapping[int, str], where: Path
) -> dict[str, tuple[int, ...]] | None:
    """`regions` of dataset.json, as {NAME: [label value, ...]}; else what nnU-Net v2 joins in `labels`."""
    entries = declared.get("regions", _joined_labels(declared))
    if entries is None:
        return None
    hint = 'write {"whole": [1, 2], "core": [2]}, each region with the label values that it joins'
    if not isinstance(entries, dict) or not entries:
        raise DatasetError(f"{where}: expected an object under `regions`, got {quoted(entries)}; {hint}.")
    regions = {}
    for name, values in entries.items():
        if not isinstance(values, list) or not values:
            raise DatasetError(
                f"{where}: expected label values in the region {name!r:.80}, got {quoted(values)}; {hint}."
            )
        foreign = [value for value in values if type(value) is not int or value not in labels or value == 0]
        if foreign:
            raise DatasetError(
                f"{where}: expected declared label values other than the background in the region {name!r:.80} "
                f"({', '.join(str(value) for value in [*labels][:_SHOWN] if value)}), got "
                f"{', '.join(map(quoted, foreign[:_SHOWN]))}; correct it."
            )
        regions[name] = tuple(sorted(set(values)))
    return regions


def declared_regions_order(
    declared: Mapping[str, Any], regions: Mapping[str, tuple[int, ...]] | None, where: Path
) -> tuple[int, ...] | None:
    """`regions_class_order` of nnU-Net v2, the label value that each region paints, in the order of the regions.

    Raises:
        DatasetError: no label value for each region.
    """
    values = declared.get("regions_class_order")
    if values is None or regions is None:
        return None
    known = {value for joined in regions.values() for value in joined}
    if (
        not isinstance(values, list)
        or len(values) != len(regions)
        or any(type(value) is not int or value not in known for value in values)
    ):
        raise DatasetError(
            f"{where}: expected `regions_class_order` to have a label value for each of the {len(regions)} regions "
            f"({', '.join(map(str, sorted(known)[:_SHOWN]))}), in their order, got {quoted(values)}; correct it."
        )
    return tuple(values)


def _joined_labels(declared: Mapping[str, Any]) -> dict[str, list[int]] | None:
    """The regions among nnU-Net's `labels`: where one joins several values, all but the background are regions."""
    entries = declared.get("labels")
    if not isinstance(entries, dict) or not any(
        isinstance(value, list) and len(value) > 1 for value in entries.values()
    ):
        return None
    regions = {name: value if isinstance(value, list) else [value] for name, value in entries.items()}
    return {name: values for name, values in regions.items() if values != [0] and name != "ignore"}
