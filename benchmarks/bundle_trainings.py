"""Trainings of the bundle in processes of their own, two at a time with a thread each, for the benchmarks that compare
what losses train to.

A benchmark names its trainings, and what its evaluations measure; `compare_trainings` makes a row of each. The seconds
of a row are those of the whole training, validations and start too; `cpu_seconds` are what it computed, whatever else
the machine did; `memory_mb` is its peak.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench_losses import add_row, machine

from monai_extra_losses.bundle.running import run_configs


@dataclass(frozen=True)
class Training:
    """One loss: overlays of the bundle, and options beside those of all."""

    overlays: tuple[str, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Trainings:
    """What a benchmark trains and measures.

    Args:
        trainings: by the name of the row.
        of_all: options of every training.
        evaluations: by name, options of an evaluation of the best epoch.
        metrics: columns of summary.csv; the means over classes and cases are taken.
    """

    trainings: Mapping[str, Training]
    of_all: Mapping[str, Any]
    metrics: Sequence[str]
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})


def parser_of(description: str) -> argparse.ArgumentParser:
    """The options that these benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="a folder for the runs; those that are there are replaced")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--csv", type=Path, help="also add the rows to this file")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # what a process does: what, name, seed
    return parser


def run_one(of: Trainings, args: argparse.Namespace) -> None:
    """Train or evaluate in this process, which `compare_trainings` started."""
    what, name, seed = args.one
    run = _run_of(args.out, name, int(seed))
    if what == "train":
        chosen = of.trainings[name]
        given = {**of.of_all, **chosen.options, "seed": int(seed), "epochs": args.epochs}
        run_configs(("train", "losses", *chosen.overlays), bundle_root=str(run), overwrite=True, **given)
        return
    for evaluation, options in of.evaluations.items():
        run_configs(
            ("train", "losses", "evaluate"),
            bundle_root=str(run),
            **{"overlays": False, "overwrite": True, "output_dir": str(run / f"eval{evaluation}")},
            **options,
        )


def compare_trainings(of: Trainings, names: Sequence[str], args: argparse.Namespace) -> None:
    """Train and evaluate each name with each seed; print a row for each evaluation, and add it to a file."""
    where = machine("cpu") | {"threads": 1}
    print(json.dumps(where))
    calls = [partial(_measured, of, name, seed, args) for seed in args.seeds for name in names]
    with ThreadPoolExecutor(2) as pool:
        for rows in pool.map(lambda call: call(), calls):
            for row in rows:
                print(json.dumps(row), flush=True)
                if args.csv:
                    add_row(args.csv, row | where, [*row, *where])


def _run_of(out: Path, name: str, seed: int) -> Path:
    return out / "runs" / f"{name.replace(' + ', '_')}_{seed}"


def _measured(of: Trainings, name: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    def process(what: str) -> Any:
        command = [sys.executable, *sys.argv, "--one", what, name, str(seed)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        log = _run_of(args.out, name, seed).with_suffix(f".{what}.txt")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stream:
            started = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(started.pid, 0)
        if status:
            raise SystemExit(f"{name}, seed {seed}: failed, see {log}.")
        return used

    start = time.perf_counter()
    used = process("train")
    seconds = time.perf_counter() - start
    process("evaluate")
    rows = []
    for evaluation in of.evaluations:
        table = _run_of(args.out, name, seed) / f"eval{evaluation}" / "summary.csv"
        with table.open(newline="") as stream:
            mean = next(row for row in csv.DictReader(stream) if row["label"] == "mean")
        rows.append(
            {
                "loss": name + evaluation.replace("_", " + "),
                "seed": seed,
                "epochs": args.epochs,
                **{metric: round(float(mean[f"{metric}_mean"] or "nan"), 4) for metric in of.metrics},
                "seconds_per_epoch": round(seconds / args.epochs, 2),
                "cpu_seconds_per_epoch": round((used.ru_utime + used.ru_stime) / args.epochs, 2),
                "memory_mb": round(used.ru_maxrss / 1024),
            }
        )
    return rows
