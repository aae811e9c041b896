"""Data sets: made from images of any format, the list of cases and its folds, the check before training, phantoms."""

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
    from monai_extra_losses.data.nnunet_raw import NnunetDataset, export_nnunet
    from monai_extra_losses.data.phantom import write_phantom
    from monai_extra_losses.data.pool import PooledDataset, PoolOptions, pool_datasets
    from monai_extra_losses.data.prepare import PreparedDataset, PrepareOptions, prepare_dataset
    from monai_extra_losses.data.volume_source import DicomSeries, VolumeGrid, VolumeSource
    from monai_extra_losses.data.volumes import open_volume, read_volume

__all__ = [
    "CaseList",
    "CaseSummaries",
    "CaseSummary",
    "ChannelIntensity",
    "DatasetError",
    "DicomSeries",
    "LabelledCase",
    "NnunetDataset",
    "PoolOptions",
    "PooledDataset",
    "PrepareOptions",
    "PreparedDataset",
    "StartUpRefused",
    "VolumeGrid",
    "VolumeSource",
    "check_cases",
    "count_folds",
    "deal_folds",
    "export_nnunet",
    "open_volume",
    "pool_datasets",
    "prepare_dataset",
    "read_case_list",
    "read_volume",
    "split_cases",
    "write_phantom",
]

_MODULES = {
    "nnunet_raw": ("NnunetDataset", "export_nnunet"),
    "phantom": ("write_phantom",),
    "pool": ("PoolOptions", "PooledDataset", "pool_datasets"),
    "prepare": ("PrepareOptions", "PreparedDataset", "prepare_dataset"),
    "volume_source": ("DicomSeries", "VolumeGrid", "VolumeSource"),
    "volumes": ("open_volume", "read_volume"),
}


def __getattr__(name: str) -> Any:
    """Import numpy, nibabel and SimpleITK with the first name that needs them, so that the command line starts fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "checks")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
