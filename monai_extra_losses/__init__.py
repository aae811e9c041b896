"""Exact, lean segmentation losses for MONAI. The names are in `monai_extra_losses.losses`."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING or "monai" in sys.modules:
    # MONAI's config parser finds short names in loaded modules only, and once MONAI is loaded ours cost nothing.
    from monai_extra_losses.losses import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Import torch and MONAI with the first loss that is asked for, so that the command line starts fast."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    losses = importlib.import_module("monai_extra_losses.losses")
    if name not in losses.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(losses, name)


def config_dir() -> Path:
    """Folder of the bundle's configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
