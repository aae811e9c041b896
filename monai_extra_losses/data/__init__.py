"""Data sets: the list of cases and its folds, the check before training, and phantom volumes to train on."""

import importlib
from typing import TYPE_CHECKING, Any

from monai_extra_losses.data.datalist import (
    CaseList,
    LabelledCase,
    count_folds,
    deal_folds,
    read_case_list,
    split_cases,
)
from monai_extra_losses.data.errors import DatasetError, StartUpRefused

if TYPE_CHECKING:
    from monai_extra_losses.data.checks import CaseSummaries, CaseSummary, ChannelIntensity, check_cases
    from monai_extra_losses.data.phantom import write_phantom

__all__ = [
    "CaseList",
    "CaseSummaries",
    "CaseSummary",
    "ChannelIntensity",
    "DatasetError",
    "LabelledCase",
    "StartUpRefused",
    "check_cases",
    "count_folds",
    "deal_folds",
    "read_case_list",
    "split_cases",
    "write_phantom",
]


def __getattr__(name: str) -> Any:
    """Import numpy and nibabel with the first name that needs them, so that the command line starts fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{'phantom' if name == 'write_phantom' else 'checks'}")
    return getattr(module, name)
