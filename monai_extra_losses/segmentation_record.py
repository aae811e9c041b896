"""The record beside segmentations: which model, options and files each was made of. It tells a restart what is done."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.run_folder import write_whole

_FORMAT = 1


class SegmentationRecord:
    """`.segmentations.json` in a folder of segmentations.

    Args:
        folder: of the segmentations; need not be there yet.

    Raises:
        StartUpRefused: a damaged record.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / ".segmentations.json"
        self._cases: dict[str, dict[str, Any]] = {}
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            self._cases = {str(case): dict(entry) for case, entry in content["cases"].items()}
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise StartUpRefused(
                f"Expected the record of earlier segmentations in {self.file}, got another file ({error}); delete it, "
                "or give another --output."
            ) from None

    def difference(self, case: str, made_of: Mapping[str, Any], files: Sequence[str]) -> str | None:
        """What files that are there were made of, in words, where that is not `made_of`; None where it is.

        Args:
            case: its name.
            made_of: `model`, `options` and `input` of this call.
            files: names of those of the case's files that are there.
        """
        entry = self._cases.get(case)
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
        """Record a finished case, with what it was made of; the file is replaced as a whole."""
        kept = [
            name
            for name in self._cases.get(case, {}).get("files", ())
            if name not in files and self.difference(case, made_of, [name]) is None
        ]
        self._cases[case] = {**made_of, "files": sorted([*files, *kept])}
        write_whole(self.file, json.dumps({"format": _FORMAT, "cases": self._cases}, indent=1) + "\n")
