"""The bundle's configs, run by name in this process."""

import logging
from collections.abc import Sequence
from typing import Any

import monai_extra_losses
from monai_extra_losses.bundle.foreign_warnings import without_pointless_warnings


def run_configs(configs: Sequence[str], /, **options: Any) -> None:
    """Run the bundle's configs in this process.

    Args:
        configs: names of files in the config folder, without `.yaml`; or files.
        options: of `SegmentationWorkflow`.
    """
    with without_pointless_warnings():
        from monai_extra_losses.bundle.workflow import SegmentationWorkflow

        logging.getLogger("monai.bundle.workflows").setLevel(logging.WARNING)  # it speaks before logging.conf is read
        workflow = SegmentationWorkflow(config_files(configs), **options)
        workflow.initialize()
        workflow.run()
        workflow.finalize()


def config_files(configs: Sequence[str]) -> list[str]:
    """The files of configs: those of the config folder by name, others as they are."""
    folder = monai_extra_losses.config_dir()
    shipped = {path.stem for path in folder.glob("*.yaml")}
    return [str(folder / f"{name}.yaml") if name in shipped else name for name in configs]
