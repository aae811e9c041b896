"""What the command `compare` does."""

from pathlib import Path
from typing import Any

import click

from monai_extra_losses.bundle.options import metric_sets
from monai_extra_losses.compare.collection import collect
from monai_extra_losses.compare.comparison import (
    Engine,
    check_plan,
    estimate,
    local_engine,
    metrics_for,
    number_list,
    open_comparison,
    run_comparison,
    slurm_engine,
)
from monai_extra_losses.compare.plan import ComparisonPlan, read_grid, read_losses
from monai_extra_losses.compare.trial import ComparisonFolder
from monai_extra_losses.report.tables import aligned_table, shown_duration


def compare_losses(words: str, options: dict[str, Any], **given: Any) -> None:
    """Run a comparison, and write its report.

    Args:
        words: the command line, for the report.
        options: of every training.
        given: options of the command.

    Raises:
        StartUpRefused: the first that is wrong.
        SystemExit: a trial failed.
    """
    plan = _plan(options, **given)
    check_plan(plan)
    if given["dry_run"]:
        _echo_estimate(plan, given["jobs"] or 1)
        return
    out = given["out"].absolute()
    engine = _engine(ComparisonFolder(out), plan, **given)  # refused before anything is made
    folder = open_comparison(out, plan)
    states = run_comparison(folder, plan, engine, click.echo)
    results = collect(folder.root, plan, states, words)
    for name, line in results.failed.items():
        click.echo(f"Failed: {name}: {line or 'it printed nothing'} ({folder.log(name)})", err=True)
    if results.finished:
        from monai_extra_losses.compare.report import write_report  # draws

        click.echo(f"Report: {', '.join(map(str, write_report(results, folder.root)))}")
    if results.failed:
        raise SystemExit(1)


def _plan(
    options: dict[str, Any],
    *,
    data: Path,
    losses: str,
    folds: str,
    seeds: int,
    epochs: int | None,
    grid: tuple[str, ...],
    test: Path | None,
    config_file: tuple[Path, ...],
    **_: Any,
) -> ComparisonPlan:
    given = {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in options.items()}
    shared = ({} if epochs is None else {"epochs": epochs}) | given
    metrics = metric_sets("metrics", shared.pop("metrics")) if "metrics" in shared else metrics_for(data)
    return ComparisonPlan(
        dataset_dir=str(data.absolute()),
        losses=read_losses(losses),
        folds=number_list("--folds", folds),
        seeds=tuple(range(seeds)),
        grid=read_grid(grid),
        options=shared,
        config_files=tuple(str(file.absolute()) for file in config_file),
        test_dir=None if test is None else str(test.absolute()),
        metrics=metrics,
    )


def _engine(
    folder: ComparisonFolder, plan: ComparisonPlan, *, engine: str, jobs: int | None, slurm: Path | None, **given: Any
) -> Engine:
    if engine == "local":
        return local_engine(folder, jobs, plan.options.get("device"))
    of_slurm = {name: given[name] for name in ("partition", "account", "time", "gpus_per_trial")}
    return slurm_engine(folder, slurm, of_slurm)


def _echo_estimate(plan: ComparisonPlan, jobs: int) -> None:
    """Print the trials of a comparison, and about how long they take."""
    trials, seconds = plan.trials, estimate(plan)
    click.echo("\n".join(trial.name for trial in trials))
    each = len(trials) // len(plan.losses)
    rows = [("", "a trial", "trials"), *((text, shown_duration(s), str(each)) for text, s in seconds.items())]
    total = shown_duration(sum(seconds.values()) * each / jobs)
    click.echo(
        f"\n{aligned_table(rows)}\n\n{len(trials)} trials take about {total}, {jobs} at a time, by a few steps of each "
        "loss alone on this machine; their starts and evaluations are not counted."
    )
