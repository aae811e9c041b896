"""What was read of the files of a data set, kept between runs, so that an unchanged file is read once."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from monai_extra_losses.data.storage import draft_of, remove_drafts

_FORMAT = 3


_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


_logger = logging.getLogger(__name__)


_Facts = TypeVar("_Facts")


_Kind = Literal["files", "cases"]


class FactCache:
    """Facts about the files and the cases of one data set, in one JSON file.

    A fact is taken only with the key it was kept with, such as size and time of change of the files it is about. A
    cache that cannot be read or written is a warning: everything is read again.

    Args:
        folder: of the data set.
        cache_dir: where the file is; default: `$XDG_CACHE_HOME/monai_extra_losses`, else
            `~/.cache/monai_extra_losses`.
    """

    def __init__(self, folder: Path, cache_dir: str | Path | None = None) -> None:
        if cache_dir is None:
            cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monai_extra_losses"
        name = hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:16]
        self.file = Path(cache_dir) / f"checks-{name}.json"
        self._kept: dict[str, dict[str, Any]] = {"files": {}, "cases": {}}
        try:
            stored = json.loads(self.file.read_text(encoding="utf-8"))
            if stored["format"] == _FORMAT:
                self._kept = {kind: dict(stored[kind]) for kind in self._kept}
        except FileNotFoundError:
            pass
        except (OSError, *_MALFORMED) as error:
            self._drop(error)

    def take(self, kind: _Kind, file: Path, key: Any, read: Callable[[Any], _Facts]) -> _Facts | None:
        """The facts kept for a file with this key, or None.

        Args:
            kind: of facts.
            file: the file they are about; of a case its label.
            key: what must not have changed, as JSON has it.
            read: makes the facts of what JSON holds.
        """
        entry = self._kept[kind].get(os.path.abspath(file))
        if entry is None:
            return None
        try:
            kept_key, facts = entry
            return read(facts) if kept_key == key else None
        except _MALFORMED as error:
            self._drop(error)
            return None

    def keep(self, kind: _Kind, file: Path, key: Any, facts: Any) -> None:
        """Keep facts, as JSON has them, in place of those kept before."""
        self._kept[kind][os.path.abspath(file)] = [key, facts]

    def write(self) -> None:
        """Write beside the file and rename, so that a run that starts meanwhile never reads half of it."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            remove_drafts(self.file)
            with draft_of(self.file) as draft:
                draft.write_text(json.dumps({"format": _FORMAT, **self._kept}), encoding="utf-8")
        except OSError as error:
            _logger.warning(
                "%s: results cannot be kept here (%s); the next start reads every file again.", self.file, error
            )

    def _drop(self, error: Exception) -> None:
        _logger.warning("%s: the results kept here cannot be read (%s); reading every file again.", self.file, error)
        self._kept = {kind: {} for kind in self._kept}


def state_of(file: Path) -> list[int]:
    """Size and time of change; `OSError` where there is no such file."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
