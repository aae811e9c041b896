"""Options of the command line as configs take them."""

from collections.abc import Mapping, Sequence
from typing import Any

from monai_extra_losses.bundle.options import literal, path_of
from monai_extra_losses.bundle.running import config_files
from monai_extra_losses.bundle.training_options import FILE_OPTIONS
from monai_extra_losses.data.errors import StartUpRefused


def check_overrides(configs: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse an option or a loss that the configs do not know."""
    from monai.bundle import ConfigParser

    from monai_extra_losses.bundle.workflow import checked_overrides

    checked_overrides(ConfigParser.load_config_files(config_files(configs)), options)


def overrides_of(arguments: Sequence[str]) -> dict[str, Any]:
    """`--key value` and `--key=value` as a dictionary; values as Python reads them, else text."""
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise StartUpRefused(f"Expected options as --KEY VALUE, got {word!r} without a key before it.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise StartUpRefused(f"Expected a value after {word}, got none.")
            value = rest.pop(0)
        if key not in (*FILE_OPTIONS, "series"):
            overrides[key] = literal(value)
        elif value.strip().lower() in ("none", "null"):
            overrides[key] = None
        else:  # a name such as 1e5 is no number
            overrides[key] = value if key == "series" else path_of(key, value)
    return overrides
