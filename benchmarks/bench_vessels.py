"""What the losses of vessels train to, and what they cost.

    python benchmarks/bench_vessels.py --out DIR [--epochs 60] [--csv FILE]
    python benchmarks/bench_vessels.py --steps [--csv FILE]

Trains the bundle on phantoms of vessels (`monai-extra-losses phantom --kind vessels`: 20 cases, of which 4 validate)
with Dice + cross-entropy, and with a third part of the same weight; each with several seeds, which deal the cases, draw
the weights and cut the patches, for as many epochs. Then evaluates the epoch that validated best on 14 phantoms of
another seed: Dice, clDice and errors of the Betti numbers, means over artery and vein. Seconds per epoch are those of
the whole training, validations and start too; `cpu_seconds` are what it computed, whatever else the machine did;
`memory_mb` is its peak. Two trainings at a time, a thread each.

A difference is one where the values of all seeds of one loss are on one side of those of the other, and no more than
that: a few seeds, made data.

`--steps` takes no data: time and memory of a step of our centerline Dice losses beside MONAI's, alternating.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import monai.losses
import torch
from bench_losses import add_row, keep_memory, machine
from torch import Tensor

from monai_extra_losses import CenterlineDiceLoss, CompoundLoss, FusedDiceLoss
from monai_extra_losses.bundle.running import run_configs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import memory

METRICS = ("dice", "cl_dice", "betti_0_error", "betti_1_error")
COUNTS = {"training": 20, "held_out": 12}  # and 2 test cases each, which are evaluated too
SEEDS = {"training": 0, "held_out": 1}  # of the phantoms


def third_part(name: str, **options: Any) -> dict[str, Any]:
    """Dice + cross-entropy + a loss of vessels, 1 : 1 : 1."""
    losses, reads = "monai_extra_losses.losses", {"to_onehot_y": True, "softmax": True}
    parts = {part: {"_target_": f"{losses}.{part}", **reads} for part in ("FusedDiceLoss", "CrossEntropyLoss", name)}
    parts[name] |= options
    return {"_target_": f"{losses}.CompoundLoss", "losses": parts}


# Name -> overlays, and options beside those of all.
TRAININGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "dice_ce": ((), {"loss": "dice_ce"}),
    "dice_ce + skeleton_recall": (("vessels",), {"loss": "skeleton_recall"}),
    "dice_ce + centerline_dice": ((), {"loss": third_part("CenterlineDiceLoss", iterations=5)}),
    "dice_ce + centerline_boundary_dice": ((), {"loss": third_part("CenterlineBoundaryDiceLoss", iterations=5)}),
}
OF_ALL = {
    "patch_size": [48, 48, 48],
    "batch_size": 2,
    "val_interval": 10,
    "metrics": ["vessels"],
    "num_folds": 5,
    "device": "cpu",
}


def train(name: str, seed: int, epochs: int, out: Path) -> None:
    """One training, and its evaluation, in this process."""
    overlays, options = TRAININGS[name]
    run = run_of(out, name, seed)
    given = {**OF_ALL, **options, "seed": seed, "epochs": epochs, "dataset_dir": str(out / "training")}
    run_configs(("train", "losses", *overlays), bundle_root=str(run), **given)


def evaluate(name: str, seed: int, out: Path) -> None:
    run_configs(
        ("train", "losses", "evaluate"),
        bundle_root=str(run_of(out, name, seed)),
        dataset_dir=str(out / "held_out"),
        split="all",
        overlays=False,
        overwrite=True,
    )


def run_of(out: Path, name: str, seed: int) -> Path:
    return out / "runs" / f"{name.replace(' + ', '_')}_{seed}"


def measured(name: str, seed: int, epochs: int, out: Path) -> dict[str, Any]:
    """The row of a training, in a process of its own."""
    command = [sys.executable, __file__, "--out", str(out), "--epochs", str(epochs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = run_of(out, name, seed).with_suffix(".txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "--one", name, str(seed)], env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{name}, seed {seed}: failed, see {log}.")
    subprocess.run([*command, "--evaluate", name, str(seed)], env=environment, check=True, stdout=subprocess.DEVNULL)
    with (run_of(out, name, seed) / "eval" / "summary.csv").open(newline="") as stream:
        mean = next(row for row in csv.DictReader(stream) if row["label"] == "mean")
    return {
        "loss": name,
        "seed": seed,
        "epochs": epochs,
        **{metric: round(float(mean[f"{metric}_mean"]), 4) for metric in METRICS},
        "seconds_per_epoch": round(seconds / epochs, 2),
        "cpu_seconds_per_epoch": round((used.ru_utime + used.ru_stime) / epochs, 2),
        "memory_mb": round(used.ru_maxrss / 1024),
    }


def compare_trainings(names: list[str], seeds: list[int], epochs: int, out: Path, file: Path | None) -> None:
    for folder, count in COUNTS.items():
        if not (out / folder).exists():
            words = ["phantom", "--kind", "vessels", "--out", out / folder, "--cases", count, "--seed", SEEDS[folder]]
            subprocess.run([sys.executable, "-m", "monai_extra_losses", *map(str, words)], check=True)
    where = machine("cpu") | {"threads": 1}
    print(json.dumps(where))
    calls = [partial(measured, name, seed, epochs, out) for seed in seeds for name in names]
    with ThreadPoolExecutor(2) as pool:
        for row in pool.map(lambda call: call(), calls):
            print(json.dumps(row), flush=True)
            if file:
                add_row(file, row | where, [*row, *where])


# --- steps ---


def pairs(
    iterations: int,
) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]]:
    reads: dict[str, Any] = {"to_onehot_y": True, "softmax": True}
    theirs = {"iter_": iterations, "include_background": False, **reads}
    ours = CenterlineDiceLoss(iterations=iterations, **reads)
    dice = FusedDiceLoss(include_background=False, **reads)
    yield "clDice", ours, monai.losses.SoftclDiceLoss(**theirs)
    yield "Dice + clDice", CompoundLoss([dice, ours], weights=[0.5, 0.5]), monai.losses.SoftDiceclDiceLoss(**theirs)


def compare_steps(rounds: int, file: Path | None) -> None:
    keep_memory("keep")
    where = machine("cpu")
    for shape in ((2, 2, 64, 64, 64), (1, 4, 48, 48, 48)):
        torch.manual_seed(0)
        scores = torch.randn(shape, requires_grad=True)
        labels = torch.randint(0, shape[1], (shape[0], 1, *shape[2:])).float()
        for iterations in (3, 10):
            for name, ours, theirs in pairs(iterations):
                row = {"loss": name, "shape": "x".join(map(str, shape)), "iterations": iterations}
                row |= of_steps({"ours": ours, "monai": theirs}, scores, labels, rounds)
                print(json.dumps(row), flush=True)
                if file:
                    add_row(file, row | where, [*row, *where])


def of_steps(losses: dict[str, Any], scores: Tensor, labels: Tensor, rounds: int) -> dict[str, float]:
    def step(loss: Any) -> float:
        scores.grad, start = None, time.perf_counter()
        loss(scores, labels).backward()
        return time.perf_counter() - start

    times = [{key: step(loss) for key, loss in losses.items()} for _ in range(rounds + 1)][1:]
    row = {f"{key}_ms": round(1e3 * statistics.median(each[key] for each in times), 1) for key in losses}
    row["time_ratio"] = round(statistics.median(each["ours"] / each["monai"] for each in times), 2)
    for key, loss in losses.items():
        scores.grad = None
        row[f"{key}_memory"] = round(memory.peak_extra_bytes(lambda loss=loss: step(loss)) / (4 * scores.numel()), 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", action="store_true", help="time steps, and train nothing")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps")
    parser.add_argument("--out", type=Path, help="a folder; phantoms that are there are taken")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(TRAININGS), default=list(TRAININGS))
    parser.add_argument("--csv", type=Path, help="also add the rows to this file")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--evaluate", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps:
        compare_steps(args.rounds, args.csv)
    elif args.out is None:
        parser.error("expected --out, or --steps.")
    elif args.one:
        train(args.one[0], int(args.one[1]), args.epochs, args.out.resolve())
    elif args.evaluate:
        evaluate(args.evaluate[0], int(args.evaluate[1]), args.out.resolve())
    else:
        compare_trainings(args.only, args.seeds, args.epochs, args.out.resolve(), args.csv)


if __name__ == "__main__":
    main()
