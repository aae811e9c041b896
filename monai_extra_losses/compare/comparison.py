"""A comparison: its plan checked, its trials run, and what they measured."""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_extra_losses.bundle.options import literal
from monai_extra_losses.bundle.run_folder import hold_lock, open_folder, refuse_unwritable
from monai_extra_losses.bundle.run_setup import cases_of, problems_as_refusal
from monai_extra_losses.bundle.running import config_files
from monai_extra_losses.compare.local import FINISHED, WAITING, run_locally
from monai_extra_losses.compare.plan import ComparisonPlan, Trial
from monai_extra_losses.compare.progress import Progress
from monai_extra_losses.compare.trial import (
    ENDS_WITH_STDIN,
    OF_EVALUATIONS,
    ComparisonFolder,
    command_of,
    configs_of,
    measuring_options_of,
    options_of,
)
from monai_extra_losses.data.advice import lesion_classes
from monai_extra_losses.data.datalist import count_folds
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.statistics import data_statistics, measure_cases

Engine = Callable[[Sequence[str], Callable[[Mapping[str, str]], None]], Mapping[str, str]]

# What a comparison gives to each trial itself.
_OWN_OPTIONS = {
    "loss": "--losses",
    "fold": "--folds",
    "seed": "--seeds",
    "fold_seed": "the same folds for all",
    "bundle_root": "--out",
    "dataset_dir": "--data",
    "resume": "the same command again",
    "overwrite": "another --out",
}


def metrics_for(dataset_dir: Path) -> tuple[str, ...]:
    """Sets of metrics that the data speak for: calibration, and lesions where a class is scattered.

    Raises:
        StartUpRefused: a data set with problems.
    """
    case_list = cases_of(dataset_dir)
    with problems_as_refusal():
        summaries, measures = measure_cases(case_list)
    scattered = lesion_classes(data_statistics(summaries, measures).classes)
    with_lesions = bool(scattered) and importlib.util.find_spec("cc3d") is not None
    return ("calibration", *(("lesions",) if with_lesions else ()))


def check_plan(plan: ComparisonPlan) -> None:
    """Refuse a plan of which a trial could not begin: an unknown loss, option or fold.

    Raises:
        StartUpRefused: the first that is wrong.
    """
    from monai.bundle import ConfigParser

    from monai_extra_losses.bundle.evaluation import measuring_rules
    from monai_extra_losses.bundle.workflow import checked_overrides

    if of_evaluation := [name for name in plan.grid if name in OF_EVALUATIONS]:
        raise StartUpRefused(
            f"Expected --grid to try options of the training, got {of_evaluation[0]}, which only measures; give it as "
            f"--{of_evaluation[0]} VALUE."
        )
    for name in {**plan.options, **plan.grid}:
        if name in _OWN_OPTIONS or name.startswith(("loss::", "losses::")):
            raise StartUpRefused(
                f"Expected options that all trials share, got --{name}, which a comparison sets itself: "
                f"{_OWN_OPTIONS.get(name, 'options of a loss stand in --losses, as focal_tversky::gamma=2')}."
            )
    folds = plan.options.get("num_folds")
    with problems_as_refusal():
        known = max(count_folds(cases_of(plan.dataset_dir).cases, folds), 1)
    if wrong := [fold for fold in plan.folds if not 0 <= fold < known]:
        raise StartUpRefused(f"Expected --folds among 0 to {known - 1}, got {wrong[0]}.")
    for file in plan.config_files:
        if not Path(file).is_file():
            raise StartUpRefused(f"Expected --config_file to be a file, got {file}.")
    for trial in _one_of_each_loss(plan):
        files = config_files((*configs_of(plan), *trial.loss.overlays))
        checked_overrides(ConfigParser.load_config_files(files), {"bundle_root": "", **options_of(plan, trial)})
    measuring_rules(**measuring_options_of(plan))


def open_comparison(out: Path, plan: ComparisonPlan) -> ComparisonFolder:
    """Make the folder of a comparison, or find it with the same plan; no other process may work there.

    Raises:
        StartUpRefused: another plan, a folder that cannot be written, or a process that works there.
    """
    folder = ComparisonFolder(out)
    refuse_unwritable("--out", out)
    if not folder.plan.exists() and out.is_dir() and any(path.name != folder.lock.name for path in out.iterdir()):
        raise StartUpRefused(f"Expected --out to be a new folder, or that of this comparison, got {out} with others.")
    if folder.plan.exists():
        for name, before, now in ComparisonPlan.read(folder.plan).changes(plan):
            raise StartUpRefused(
                f"Expected {_shown(name, before, now)} as in the comparison in {out}; give the same, or choose another "
                "--out."
            )
    open_folder("--out", out)
    hold_lock(folder.lock, folder=out, rule="a folder that no other comparison works in", option="--out")
    if not folder.plan.exists():
        plan.write(folder.plan)
    return folder


def run_comparison(
    folder: ComparisonFolder, plan: ComparisonPlan, engine: Engine, say: Callable[[str], None]
) -> dict[str, str]:
    """Run what is not finished, failed trials of earlier calls too.

    Args:
        folder: opened by `open_comparison`.
        engine: runs trials.
        say: prints a line.

    Returns:
        Name of a trial -> its state.
    """
    names = [trial.name for trial in plan.trials]
    states = {name: FINISHED if folder.is_finished(name) else WAITING for name in names}
    left = [name for name in names if states[name] == WAITING]
    if not left:
        return states
    epochs = plan.options.get("epochs")
    with Progress(folder, states, epochs if isinstance(epochs, int) else None, say) as progress:
        return states | dict(engine(left, progress))


def local_engine(folder: ComparisonFolder, jobs: int | None, device: Any = None) -> Engine:
    """Trials in processes of this machine, `jobs` at a time; None: one per GPU, or one."""
    gpus = free_gpus() if device is None else []

    def run(names: Sequence[str], on_change: Callable[[Mapping[str, str]], None]) -> dict[str, str]:
        return run_locally(
            names,
            command=lambda name: [*command_of(folder.root, name), ENDS_WITH_STDIN],
            log=folder.log,
            jobs=jobs or max(len(gpus), 1),
            gpus=gpus,
            on_change=on_change,
        )

    return run


def slurm_engine(folder: ComparisonFolder, file: Path | None, given: Mapping[str, Any]) -> Engine:
    """Trials as one array job of a cluster.

    Args:
        file: YAML with options of SLURM.
        given: options that go before those of the file; None: not given.
    """
    from monai_extra_losses.compare.slurm import SlurmOptions, refuse_without_slurm, run_on_slurm

    refuse_without_slurm()
    options = SlurmOptions.read(file, **{name: value for name, value in given.items() if value is not None})

    def run(names: Sequence[str], on_change: Callable[[Mapping[str, str]], None]) -> dict[str, str]:
        def command(name: str) -> list[str]:
            return command_of(folder.root, name)

        states: dict[str, str] = run_on_slurm(folder.root, names, options, command=command, on_change=on_change)
        return states

    return run


def estimate(plan: ComparisonPlan) -> dict[str, float]:
    """Text of each loss -> seconds of one trial, by a few steps of it; its start and its evaluation not counted.

    Raises:
        StartUpRefused: what a trial would be refused for.
    """
    from monai_extra_losses.bundle.foreign_warnings import without_pointless_warnings
    from monai_extra_losses.doctor.failures import ExaminationStopped
    from monai_extra_losses.doctor.steps import estimate_cost

    seconds = {}
    with without_pointless_warnings():
        for trial in _one_of_each_loss(plan):
            files = config_files((*configs_of(plan), *trial.loss.overlays))
            try:
                seconds[trial.loss.text] = estimate_cost(files, options_of(plan, trial)).total
            except ExaminationStopped as problem:
                raise StartUpRefused(f"{trial.loss.text}: {problem}") from None
    return seconds


def number_list(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers with a comma between them.

    Raises:
        StartUpRefused: something else, or one twice.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    numbers = [literal(word) for word in words]
    if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
        raise StartUpRefused(f"Expected {option} to be whole numbers such as 0,1, got {text!r}.")
    if len(set(numbers)) < len(numbers):
        raise StartUpRefused(f"Expected {option} to name each once, got {text!r}.")
    return tuple(numbers)


def _one_of_each_loss(plan: ComparisonPlan) -> list[Trial]:
    return plan.trials[: len(plan.losses)]


def free_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process sees."""
    import torch

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return visible[:count] if visible else [str(number) for number in range(count)]


def _shown(name: str, before: Any, now: Any) -> str:
    """What differs between two plans, with the first entry of options and losses that does."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        return f"{key} {_value(before.get(key))} and not {_value(now.get(key))}"
    if name == "losses":
        before, now = ([loss["text"] for loss in losses] for losses in (before, now))
    return f"{name} {_value(before)} and not {_value(now)}"


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
