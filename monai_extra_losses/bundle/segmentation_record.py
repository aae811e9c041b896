"""The record beside segmentations: which model, options and files each was made of. It tells a restart what is done.

Several processes may segment into one folder at once: each case has a record of its own, and each process a folder for
what it has not finished.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.storage import write_whole

if sys.platform != "win32":
    import fcntl


_FORMAT = 1


_LOCK = ".lock"


_ABANDONED_SECONDS = 86400.0  # where there are no locks, an older folder is one that a killed process left


_held: dict[Path, IO[bytes]] = {}  # folder of unfinished files -> its lock, open as long as this process works there


class SegmentationRecord:
    """`.segmentations/` in a folder of segmentations: a file per case.

    Args:
        folder: of the segmentations; need not be there yet.

    Raises:
        StartUpRefused: a damaged record, here and by `difference`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".segmentations"
        # of versions that had one record for all cases
        former = _read(folder / ".segmentations.json")
        self._former: Mapping[str, Any] = former.get("cases", {}) if former is not None else {}

    def difference(self, case: str, made_of: Mapping[str, Any], files: Sequence[str]) -> str | None:
        """What files that are there were made of, in words, where that is not `made_of`; None where it is.

        Args:
            case: its name.
            made_of: `model`, `options` and `input` of this call.
            files: names of those of the case's files that are there.
        """
        entry = self._entry(case)
        if entry is None or not set(files) <= set(entry.get("files", ())):
            return "one without a record of what it was made of"
        if entry.get("model") != made_of["model"]:
            return "one of another model"
        before = entry.get("options", {})
        for name, value in made_of["options"].items():
            if before.get(name) != value:
                return f"one of {name} {json.dumps(before.get(name))} instead of {json.dumps(value)}"
        return None if entry.get("input") == made_of["input"] else "one of another image of that name"

    def add(self, case: str, made_of: Mapping[str, Any], files: Sequence[str]) -> None:
        """Record a finished case, with what it was made of; its file is replaced as a whole."""
        kept = [
            name
            for name in (self._entry(case) or {}).get("files", ())
            if name not in files and self.difference(case, made_of, [name]) is None
        ]
        entry = {"format": _FORMAT, "case": case, **made_of, "files": sorted([*files, *kept])}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._file(case), json.dumps(entry, indent=1) + "\n")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process is in here, where the file system has locks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("ab") as lock:
            _lock(lock, wait=True)
            yield

    def _entry(self, case: str) -> Mapping[str, Any] | None:
        entry = _read(self._file(case))
        return self._former.get(case) if entry is None else entry

    def _file(self, case: str) -> Path:
        # a name of its own may be longer than a file's with another ending
        return self.folder / f"{hashlib.sha256(case.encode(errors='surrogateescape')).hexdigest()[:32]}.json"


def open_unfinished(folder: Path) -> None:
    """Make the folder of what this process has not finished, and delete those that killed processes left beside it."""
    for other in folder.parent.glob(".unfinished*"):
        if not _is_in_use(other):
            shutil.rmtree(other, ignore_errors=True)
    for draft in (folder.parent / ".segmentations").glob(".draft.*"):  # of a record
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > _ABANDONED_SECONDS:
                draft.unlink()
    # locked before it has its name, by which others find it
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".opening-"))
    lock = (draft / _LOCK).open("ab")
    _lock(lock, wait=False)
    draft.replace(folder)
    _held[folder] = lock


def close_unfinished(folder: Path) -> None:
    """Delete what `open_unfinished` made."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder in _held:
        _held.pop(folder).close()


def _is_in_use(folder: Path) -> bool:
    """Whether a process that lives works in this folder of unfinished files."""
    try:
        with (folder / _LOCK).open("r+b") as lock:
            taken = _lock(lock, wait=False)
        return not taken if taken is not None else time.time() - folder.stat().st_mtime < _ABANDONED_SECONDS
    except OSError:  # no lock: of an earlier version
        return False


def _lock(file: IO[bytes], wait: bool) -> bool | None:
    """Lock an open file until it is closed; None where there are no locks, as on some network file systems."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _read(file: Path) -> Mapping[str, Any] | None:
    """A record; None where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}")
        for entry in content["cases"].values() if "cases" in content else [content]:
            if not {"model", "options", "input", "files"} <= entry.keys() or not isinstance(entry["options"], dict):
                raise ValueError("another record")
        return dict(content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StartUpRefused(
            f"Expected the record of earlier segmentations in {file}, got another file ({error}); delete it, or give "
            "another --output."
        ) from None
