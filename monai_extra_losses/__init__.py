"""Exact, lean segmentation losses for MONAI. The names are in `monai_extra_losses.losses`."""

import functools
import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING or "monai" in sys.modules:
    # MONAI's config parser finds short names in loaded modules only, and once MONAI is loaded ours cost nothing.
    from monai_extra_losses.losses import *


@functools.cache
def _public_names() -> list[str]:
    """`losses.__all__`, from its text, because importing it imports torch; and what is defined here."""
    try:
        text = (Path(__file__).parent / "losses" / "__init__.py").read_text(encoding="utf-8")
    except OSError:  # an application that was packed without sources
        return [*importlib.import_module("monai_extra_losses.losses").__all__, "config_dir"]
    return [*re.findall(r'^    "(\w+)",$', text.partition("__all__ = ")[2], re.MULTILINE), "config_dir"]


def __getattr__(name: str) -> Any:
    """Import torch and MONAI with the first loss that is asked for, so that the command line starts fast."""
    if name == "__all__":
        return _public_names()
    if name not in _public_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("monai_extra_losses.losses"), name)


def __dir__() -> list[str]:
    """Name every loss, imported or not."""
    return sorted({*globals(), *_public_names()})


def config_dir() -> Path:
    """Folder of the bundle's configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
