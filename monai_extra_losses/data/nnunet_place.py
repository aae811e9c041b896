"""Id, name and folder of a data set of nnU-Net: DatasetXXX_NAME. Light imports only."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from monai_extra_losses.data.errors import DatasetError

RAW = "nnUNet_raw"
"""Environment variable with the folder of all raw data sets."""

_PREPROCESSED = "nnUNet_preprocessed"
_WITH_DATA_SETS = (RAW, _PREPROCESSED, "nnUNet_results")
_FIRST_FREE = 11  # 1 to 10 are those of the Decathlon
_LARGEST = 999
_FOLDER = re.compile(r"Dataset(\d{3})_(.+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Place:
    """Where a data set is to be.

    Args:
        raw: folder of all.
        number: its id.
        name: of the data set.
    """

    raw: Path
    number: int
    name: str

    @property
    def folder(self) -> Path:
        """The data set's own folder."""
        return self.raw / f"Dataset{self.number:03d}_{self.name}"


def new_place(raw: Path, number: int | None, name: str) -> Place:
    """A place where nothing is, and whose id nothing of another name has.

    Args:
        raw: folder of all data sets; the others of nnU-Net are looked for where its environment variables say.
        number: id; None: the first free one from 11 on.
        name: of the data set.

    Raises:
        DatasetError: no id or name of nnU-Net, or one in use.
    """
    if raw.exists() and not raw.is_dir():
        raise DatasetError(f"expected the folder {RAW}, got {raw}, which is a file; correct it.")
    if not _NAME.fullmatch(name):
        raise DatasetError(
            f"expected a name of letters, digits, `_`, `-` and `.`, got {name!r}; choose such a one, as --name Liver."
        )
    if number is not None and not 1 <= number <= _LARGEST:
        raise DatasetError(f"expected an id of 1 to {_LARGEST}, got {number}; correct --id.")
    there = _data_sets(raw)
    same = [place.folder for place in there if place.name == name and number in (None, place.number)]
    if same:
        raise DatasetError(
            f"{same[0]}: expected no data set there, got one; delete it, or give another --id or --name."
        )
    others = (Path(folder) for variable in _WITH_DATA_SETS if (folder := os.environ.get(variable)))
    taken = [*there, *(place for folder in others for place in _data_sets(folder))]
    if number is None:
        return Place(raw, _first_free({place.number for place in taken}), name)
    for place in taken:
        if place.number == number and place.name != name:
            raise DatasetError(
                f"expected a free id, got {number}, which {place.folder} has; give another --id, or none."
            )
    return Place(raw, number, name)


def plain_name(name: str) -> str:
    """A name without the id that a folder of the Decathlon or of nnU-Net has, in characters that shells leave alone."""
    without = re.sub(r"^(Task|Dataset)\d+_", "", name)
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", without).strip("_.-") or "Data"


def stale_notes(place: Place) -> Iterator[str]:
    """A sentence on what nnU-Net has made of an earlier data set of this id and name."""
    preprocessed = os.environ.get(_PREPROCESSED)
    if preprocessed and (stale := Path(preprocessed) / place.folder.name).exists():
        yield f"{stale} is of an earlier data set of this id and name; delete it first."


def _first_free(taken: set[int]) -> int:
    free = next((number for number in range(_FIRST_FREE, _LARGEST + 1) if number not in taken), None)
    if free is None:
        raise DatasetError(f"expected a free id of {_FIRST_FREE} to {_LARGEST}, got none; give --id.")
    return free


def _data_sets(raw: Path) -> list[Place]:
    """The data sets in a folder, by id."""
    try:
        found = [match for path in raw.iterdir() if path.is_dir() and (match := _FOLDER.fullmatch(path.name))]
    except OSError:
        return []
    return sorted((Place(raw, int(match[1]), match[2]) for match in found), key=lambda place: place.number)
