"""The record beside the tables of an evaluation: what was measured, and how."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Self, get_type_hints

from monai_extra_losses.data.storage import write_whole
from monai_extra_losses.file_content import typed

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class EvaluationRecord:
    """What tables are of; `evaluation.json`, written when all the others are.

    Args:
        runs: folders; several where their cases are pooled.
        models: checksum of the weights of each.
        labels: names of the classes, or regions, in their order.
        cases: checksum, of each, of what tells the files of its cases from others.
        options: name -> value, as JSON has it.
    """

    runs: tuple[str, ...]
    models: tuple[str, ...]
    labels: tuple[str, ...]
    cases: tuple[str, ...]
    options: dict[str, Any]

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        content = {"format": _FORMAT, **dataclasses.asdict(self)}
        write_whole(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """A record that `write` wrote; None where there is no such file."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content.pop("format") != _FORMAT:
                return None
            hints = get_type_hints(cls)
            return cls(**{name: typed(hints[name], value) for name, value in content.items()})
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None

    def with_windows(self, inferer: Any) -> Self:
        """The same with the options of an inferer's windows, null where it has none, beside the others."""
        windows = getattr(inferer, "inferer", inferer)  # within that of half precision
        found = {name: getattr(windows, name, None) for name in ("overlap", "mode")}
        return dataclasses.replace(self, options=self.options | json.loads(json.dumps(found, default=str)))

    def difference(self, wanted: Self) -> str | None:
        """What was measured other than is wanted, in words; None where it is the same. More pictures are no less."""
        if self.models != wanted.models:
            return "one of another model"
        for name, value in wanted.options.items():
            before = self.options.get(name)
            if before != value and not (name == "overlays" and before):
                return f"one of {name} {json.dumps(before)} instead of {json.dumps(value)}"
        return None if self.cases == wanted.cases else "one of other cases or files"
