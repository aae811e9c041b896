"""Training every fold, each in a process and a run folder of its own."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from monai_extra_losses.bundle.options import whole_number_or_none
from monai_extra_losses.bundle.run_folder import hold_lock, open_folder, refuse_unwritable
from monai_extra_losses.bundle.run_setup import cases_of, problems_as_refusal
from monai_extra_losses.cli.runs import check_overrides
from monai_extra_losses.compare.comparison import free_gpus
from monai_extra_losses.compare.local import FAILED, FINISHED, end_with_stdin, last_line, run_locally
from monai_extra_losses.data.datalist import count_folds
from monai_extra_losses.data.errors import StartUpRefused

_LOG = "process.txt"


def train_every_fold(
    words: Sequence[str], run: Path, configs: Sequence[str], options: dict[str, Any], jobs: int | None
) -> None:
    """Train the folds of a data set in RUN/fold_0, RUN/fold_1, ...

    A fold whose training fails leaves the others alone. With `--resume True` those that are finished are not trained
    again.

    Args:
        words: of the command line, which is that of each fold but for two options.
        run: folder of them all.
        configs, options: of the training.
        jobs: trainings at a time; None: one per GPU, or one.

    Raises:
        StartUpRefused: an unknown option, or no folds.
        SystemExit: a training failed.
    """
    check_overrides(configs, {**options, "bundle_root": run})
    refuse_unwritable("--run", run)
    names = [f"fold_{number}" for number in range(_folds(options))]
    open_folder("--run", run)
    hold_lock(run / ".lock", folder=run)
    gpus = free_gpus() if "device" not in options else []
    told: dict[str, str] = {}

    def tell(states: Any) -> None:
        for name, state in states.items():
            if told.get(name, "waiting") != state:
                told[name] = state
                click.echo(f"{name} {state if state in (FINISHED, FAILED) else 'runs'}: {run / name / _LOG}")

    states = run_locally(
        names,
        command=lambda name: [sys.executable, "-m", "monai_extra_losses.cli.folds", *_of_fold(words, run, name)],
        log=lambda name: run / name / _LOG,
        jobs=jobs or max(len(gpus), 1),
        gpus=gpus,
        on_change=tell,
    )
    for name in names:
        if states[name] == FAILED:
            click.echo(f"{name} failed: {last_line(run / name / _LOG)}", err=True)
    if FAILED in states.values():
        raise SystemExit(1)
    runs = f"{shlex.quote(str(run))}/fold_*"
    click.echo(
        f"Next:\n  monai-extra-losses evaluate --run {runs}\n  monai-extra-losses infer --run {runs} --input ..."
    )


def _folds(options: dict[str, Any]) -> int:
    given = whole_number_or_none("num_folds", options.get("num_folds"), least=0)
    with problems_as_refusal():
        folds = count_folds(cases_of(options["dataset_dir"]).cases, given)
    if not folds:
        raise StartUpRefused(
            "Expected folds for --fold all, got a data set whose `validation` is set apart; give --num_folds 5 to deal "
            "the others."
        )
    return folds


def _of_fold(words: Sequence[str], run: Path, name: str) -> list[str]:
    """The words of the command line with one fold and its folder."""
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, _ = word.partition("=")
        if option not in ("--fold", "--run", "--bundle_root", "--jobs"):
            kept.append(word)
        elif not equals:
            rest.pop(0)
    return [*kept, "--fold", name.removeprefix("fold_"), "--run", str(run / name)]


if __name__ == "__main__":  # in the process of a fold
    from monai_extra_losses.cli.entry import main

    end_with_stdin()
    main(sys.argv[1:])
