"""One trial of a comparison, in this process: a training that goes on where it was stopped, and its evaluation.

    python -m monai_extra_losses.compare.trial OUT NAME

The engines (`compare.local`, `compare.slurm`) start it so. trial.json is written last, and marks the trial finished.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_extra_losses.bundle.run_folder import ResultsFolder, RunFolder
from monai_extra_losses.bundle.training_options import FILE_OPTIONS
from monai_extra_losses.compare.local import end_with_stdin
from monai_extra_losses.compare.plan import ComparisonPlan, Trial
from monai_extra_losses.data.errors import DatasetError, StartUpRefused, WritingFailed
from monai_extra_losses.data.storage import write_whole


@dataclasses.dataclass(frozen=True)
class ComparisonFolder:
    """Names of the files of a comparison, all below --out."""

    root: Path

    @property
    def plan(self) -> Path:
        """Which trials there are."""
        return self.root / "comparison.json"

    @property
    def lock(self) -> Path:
        """Held by the process that runs the comparison."""
        return self.root / ".lock"

    def run(self, name: str) -> RunFolder:
        """The run of a trial."""
        return RunFolder(self.root / "trials" / name)

    def log(self, name: str) -> Path:
        """What the process of a trial printed."""
        return self.run(name).root / "process.txt"

    def summary(self, name: str) -> Path:
        """What a trial cost; there when it is finished."""
        return self.run(name).root / "trial.json"

    def results(self, name: str) -> ResultsFolder:
        """The evaluation of a trial."""
        return self.run(name).results

    def is_finished(self, name: str) -> bool:
        """Whether nothing is left to do."""
        return self.summary(name).exists()


ENDS_WITH_STDIN = "--ends-with-stdin"


def command_of(out: Path, name: str) -> list[str]:
    """The command that runs a trial."""
    return [sys.executable, "-m", "monai_extra_losses.compare.trial", str(out), name]


def configs_of(plan: ComparisonPlan) -> tuple[str, ...]:
    """The config files of a training without overlays."""
    return (*(plan.config_files or ("train",)), "losses")


OF_EVALUATIONS = ("surface_tolerance_mm", "lesion_overlap", "lesion_bins", "hysteresis")
"""Options of a comparison that are none of a training."""


def options_of(plan: ComparisonPlan, trial: Trial) -> dict[str, Any]:
    """Options of the training of a trial.

    Folds are dealt by one seed for all trials, so that the cases that validate are the same.
    """
    of_loss = {f"loss::{name}": value for name, value in trial.loss.options.items()}
    of_all = {name: value for name, value in plan.options.items() if name not in OF_EVALUATIONS}
    shared = {"dataset_dir": plan.dataset_dir, "fold_seed": 0, "metrics": list(plan.metrics), **of_all}
    chosen = {"loss": trial.loss.name, **of_loss, "fold": trial.fold, "seed": trial.seed}
    return _with_paths({**shared, **trial.values, **chosen})


def measuring_options_of(plan: ComparisonPlan) -> dict[str, Any]:
    """Those options of a comparison that say how its evaluations measure."""
    return {name: value for name, value in plan.options.items() if name in OF_EVALUATIONS}


def evaluation_options_of(plan: ComparisonPlan) -> dict[str, Any]:
    """Options of the evaluation of every trial."""
    rules = measuring_options_of(plan)
    return rules if plan.test_dir is None else _with_paths({"dataset_dir": plan.test_dir, "split": "all", **rules})


def _with_paths(options: dict[str, Any]) -> dict[str, Any]:
    """Names of files, text in the plan, as paths: MONAI's parser would evaluate or change some text."""
    names = {key: Path(value) for key, value in options.items() if key in FILE_OPTIONS and isinstance(value, str)}
    return options | names


def run_trial(out: Path, name: str) -> None:
    """Train, evaluate, and write down what it cost.

    Raises:
        StartUpRefused: options, data or folders that cannot work.
    """
    from monai_extra_losses.bundle.running import run_configs

    folder = ComparisonFolder(out)
    plan = ComparisonPlan.read(folder.plan)
    trial = plan.trial(name)
    if folder.is_finished(name):
        return
    run = folder.run(name)
    configs = configs_of(plan)
    options = options_of(plan, trial)
    run_configs((*configs, *trial.loss.overlays), bundle_root=run.root, resume=True, **options)
    memory = _peak_memory_mb()
    machinery = {key: options[key] for key in ("device", "num_workers", "amp") if key in options}
    evaluated = evaluation_options_of(plan) | machinery
    run_configs((*configs, "evaluate"), bundle_root=run.root, overwrite=True, **evaluated)
    cost = {"peak_memory_mb": memory, "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_whole(folder.summary(name), json.dumps(cost, indent=2) + "\n")


def _peak_memory_mb() -> float | None:
    """Of this process, or of the GPU where it used one; None where the system does not tell."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    with contextlib.suppress(ImportError):  # Windows
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10))
    return None


def main(arguments: Sequence[str]) -> None:
    """Run the trial that an engine names."""
    out, name, *how = arguments
    if how == [ENDS_WITH_STDIN]:
        end_with_stdin()
    try:
        run_trial(Path(out), name)
    except (StartUpRefused, DatasetError, WritingFailed) as error:
        raise SystemExit(" ".join(str(error).split())) from None


if __name__ == "__main__":
    main(sys.argv[1:])
