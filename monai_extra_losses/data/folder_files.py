"""The files of folders by name, as a list of cases needs them. Opens none, and lists each folder once."""

import os
import unicodedata
from collections.abc import Collection, KeysView, Sequence
from pathlib import Path

from monai_extra_losses.data.errors import DatasetError

NIFTI_SUFFIXES = (".nii.gz", ".nii")
"""Of the files that training reads, in lower or upper case."""

OTHER_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
"""Of the volumes that `prepare` makes NIfTI of, in lower or upper case."""

_SHOWN = 3  # names in one sentence


class FolderFiles:
    """Files by folder; hidden ones are left out: archives made on macOS hold a ._NAME.nii.gz beside every file.

    Args:
        suffixes: of the volumes that are looked for, in lower case.
    """

    def __init__(self, suffixes: tuple[str, ...] = NIFTI_SUFFIXES) -> None:
        self.suffixes = suffixes
        self._listed: dict[Path, dict[str, bool]] = {}  # name -> whether it is a folder
        self._stems: dict[Path, dict[str, str]] = {}

    def names_in(self, folder: Path) -> KeysView[str]:
        """Names of the files and folders in a folder, sorted; none in a folder that is not there.

        Raises:
            DatasetError: a folder that may not be read.
        """
        return self._entries(folder).keys()

    def _entries(self, folder: Path) -> dict[str, bool]:
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    found = {entry.name: entry.is_dir() for entry in entries if not entry.name.startswith(".")}
            except PermissionError as error:
                raise DatasetError(
                    f"{folder}: expected a folder that can be read, got an error ({error.strerror}); change its "
                    "permissions."
                ) from error
            except OSError:
                found = {}
            self._listed[folder] = dict(sorted(found.items()))
        return self._listed[folder]

    def find(self, path: Path) -> Path:
        """The file of that name in whatever form of Unicode, for macOS and others write `é` differently.

        Returns:
            `path` itself where it is there, or where none is.
        """
        if not path.parent.name.isascii() and not path.parent.is_dir():
            path = self.find(path.parent) / path.name
        if path.name.isascii() or path.name in (names := self.names_in(path.parent)):
            return path
        alike = (name for name in names if composed(name) == composed(path.name))
        return path.with_name(next(alike, path.name))

    def channels_of(self, image: Path) -> tuple[Path, ...]:
        """The files NAME_0000, NAME_0001, ... beside NAME, as nnU-Net lists NAME for them."""
        if image.parent not in self._stems:
            names = self.names_in(image.parent)
            self._stems[image.parent] = {file_stem(name): name for name in names if self._is_volume(name)}
        beside = self._stems[image.parent]
        channels: list[Path] = []
        while (name := f"{file_stem(image.name)}_{len(channels):04d}") in beside:
            channels.append(image.with_name(beside[name]))
        return tuple(channels)

    def volume_files(self, folder: Path) -> dict[str, Path]:
        """Stem -> file with one of the suffixes, sorted.

        Raises:
            DatasetError: two files of one stem, or a name in another encoding.
        """
        found: dict[str, Path] = {}
        for name, is_folder in self._entries(folder).items():
            if self._is_volume(name) and not is_folder:
                path = folder / name
                if printable(name) != name:
                    raise DatasetError(
                        f"{printable(str(path))}: expected a name in UTF-8, got {os.fsencode(name)!r}; rename it."
                    )
                if (stem := file_stem(name)) in found:
                    raise DatasetError(f"{path}: expected one file per name, got {found[stem].name} too; remove one.")
                found[stem] = path
        return found

    def others(self, folder: Path) -> list[str]:
        """Names of all else in a folder of images or labels."""
        return [name for name, is_folder in self._entries(folder).items() if is_folder or not self._is_volume(name)]

    def unlisted(self, listed: Collection[Path]) -> dict[Path, list[str]]:
        """Folder of listed files -> the other volumes in it."""
        taken: dict[Path, set[str]] = {}
        for path in listed:
            taken.setdefault(path.parent, set()).add(path.name)
        others = {
            folder: [name for name in self.names_in(folder) if name not in names and is_volume_name(name)]
            for folder, names in taken.items()
        }
        return {folder: names for folder, names in others.items() if names}

    def _is_volume(self, name: str) -> bool:
        return name.lower().endswith(self.suffixes)


def file_stem(name: str) -> str:
    """A file's name without .nii.gz or another suffix of a volume, in one form of Unicode."""
    name = composed(Path(name).name)
    suffix = next((suffix for suffix in (*NIFTI_SUFFIXES, *OTHER_SUFFIXES) if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def is_nifti_name(name: str) -> bool:
    """Whether a file of that name is one that training reads."""
    return name.lower().endswith(NIFTI_SUFFIXES)


def named(names: Collection[str]) -> str:
    """The first of some names in the order of the alphabet, and how many more there are."""
    return first_of([printable(name) for name in sorted(names)])


def first_of(texts: Sequence[str], shown: int = _SHOWN) -> str:
    """The first of some texts, and how many more there are."""
    return ", ".join(texts[:shown]) + (f" and {len(texts) - shown} more" if len(texts) > shown else "")


def is_volume_name(name: str) -> bool:
    """Whether a file of that name is one that training or `prepare` reads."""
    return name.lower().endswith((*NIFTI_SUFFIXES, *OTHER_SUFFIXES))


def composed(name: str) -> str:
    """A name in the form of Unicode in which equal names are equal."""
    return unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    """A name whose bytes of another encoding are question marks."""
    return name.encode("utf-8", errors="replace").decode("utf-8")
