"""Runs of the bundle in this process, small and quick."""

import csv
from pathlib import Path
from typing import Any

from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.running import run_configs


def train(data: Path, run: Path, configs: tuple[str, ...] = ("train", "losses"), **options: Any) -> RunFolder:
    quick: dict[str, Any] = {"epochs": 1, "num_folds": 3, "channels": [4, 8, 16]}
    run_configs(configs, dataset_dir=str(data), bundle_root=str(run), **{**quick, **options})
    return RunFolder(run)


def evaluate(run: RunFolder, **options: Any) -> None:
    run_configs(("train", "losses", "evaluate"), bundle_root=str(run.root), **options)


def infer(run: RunFolder, source: Path, output: Path) -> None:
    run_configs(
        ("inference",), workflow_type="infer", bundle_root=str(run.root), input=str(source), output_dir=str(output)
    )


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
