"""How DICOM shows and codes the classes: `segments` of dataset.json, a colour and coded concepts for a name.

`"segments": {"liver": {"color": [221, 130, 101], "category": ["91723000", "SCT", "Anatomical Structure"],
"type": ["10200004", "SCT", "Liver"]}}`; each part may be left out. Light imports only.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import first_of
from monai_extra_losses.data.json_file import quoted

_KEY = "segments"
_CODES = ("category", "type")
_SHOWN = 5  # names in one sentence
# code value, coding scheme designator and code meaning (DICOM PS3.5, 6.2: UC in part, SH and LO)
_LONGEST = (128, 16, 64)

Segments = dict[str, dict[str, tuple[int | str, ...]]]
"""Name of a class or region -> `color` (red, green and blue, 0 to 255), `category` and `type` (value, scheme, meaning
of a code)."""


def declared_segments(declared: Mapping[str, Any], names: Collection[str], where: Path) -> Segments:
    """`segments` of dataset.json.

    Args:
        declared: content of dataset.json.
        names: of its labels and regions.
        where: dataset.json.

    Raises:
        DatasetError: another shape, or a name of no label and no region.
    """
    entries = declared.get(_KEY)
    if entries is None:
        return {}
    hint = 'write {"liver": {"color": [221, 130, 101], "type": ["10200004", "SCT", "Liver"]}}'
    if not isinstance(entries, dict):
        raise DatasetError(f"{where}: expected an object under `{_KEY}`, got {quoted(entries)}; {hint}.")
    if strange := [name for name in entries if name not in names]:
        raise DatasetError(
            f"{where}: expected names of labels or regions in `{_KEY}` ({first_of(list(names), _SHOWN)}), got "
            f"{first_of(strange, _SHOWN)}; correct it."
        )
    for name, entry in entries.items():
        if problem := segment_problem(entry):
            raise DatasetError(f"{where}: expected {problem} of {name!r:.80} in `{_KEY}`, got {quoted(entry)}; {hint}.")
    return {name: {part: tuple(value) for part, value in entry.items()} for name, entry in entries.items() if entry}


def segment_problem(entry: Any) -> str | None:
    """What an entry of `segments` should have and has not, in words; None of a good one."""
    if not isinstance(entry, Mapping) or entry.keys() - {"color", *_CODES}:
        return f"an object of color, {_CODES[0]} and {_CODES[1]}"
    if "color" in entry and not _is_color(entry["color"]):
        return "a color of red, green and blue, whole numbers from 0 to 255,"
    for part in _CODES:
        if part in entry and not _is_code(entry[part]):
            lengths = f"{', '.join(map(str, _LONGEST[:2]))} and {_LONGEST[2]}"
            return f"a {part} of the value, scheme and meaning of a code, texts of at most {lengths} characters,"
    return None


def _is_color(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else ()
    return len(parts) == 3 and all(type(part) is int and 0 <= part <= 255 for part in parts)


def _is_code(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else ()
    return len(parts) == 3 and all(
        isinstance(part, str) and part.strip() and part.isprintable() and "\\" not in part and len(part) <= longest
        for part, longest in zip(parts, _LONGEST, strict=True)
    )
