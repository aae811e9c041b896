"""What the losses of vessels train to, and what they cost.

    python benchmarks/bench_vessels.py --out DIR [--epochs 60] [--csv FILE]
    python benchmarks/bench_vessels.py --steps [--csv FILE]

Trains the bundle on phantoms of vessels (`monai-extra-losses phantom --kind vessels`: 20 cases, of which 4 validate)
with Dice + cross-entropy, and with a third part of the same weight; each with several seeds, which deal the cases, draw
the weights and cut the patches, for as many epochs. Then evaluates the epoch that validated best on 14 phantoms of
another seed: Dice, clDice and errors of the Betti numbers, means over artery and vein. Two trainings at a time, a
thread each.

A difference is one where the values of all seeds of one loss are on one side of those of the other, and no more than
that: a few seeds, made data.

`--steps` takes no data: time and memory of a step of our centerline Dice losses beside MONAI's, alternating.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai.losses
import torch
from bench_losses import add_row, keep_memory, machine
from bundle_trainings import Training, Trainings, compare_trainings, parser_of, run_one
from torch import Tensor

from monai_extra_losses import CenterlineDiceLoss, CompoundLoss, FusedDiceLoss

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


TRAININGS = {
    "dice_ce": Training((), {"loss": "dice_ce"}),
    "dice_ce + skeleton_recall": Training(("vessels",), {"loss": "skeleton_recall"}),
    "dice_ce + centerline_dice": Training((), {"loss": third_part("CenterlineDiceLoss", iterations=5)}),
    "dice_ce + centerline_boundary_dice": Training(
        (), {"loss": third_part("CenterlineBoundaryDiceLoss", iterations=5)}
    ),
}
OF_ALL = {
    "patch_size": [48, 48, 48],
    "batch_size": 2,
    "val_interval": 10,
    "metrics": ["vessels"],
    "num_folds": 5,
    "device": "cpu",
}


def make_phantoms(out: Path) -> None:
    """Write those that are not there."""
    for folder, count in COUNTS.items():
        if not (out / folder).exists():
            words = ["phantom", "--kind", "vessels", "--out", out / folder, "--cases", count, "--seed", SEEDS[folder]]
            subprocess.run([sys.executable, "-m", "monai_extra_losses", *map(str, words)], check=True)


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
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--steps", action="store_true", help="time steps, and train nothing")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps")
    parser.add_argument("--only", nargs="+", choices=list(TRAININGS), default=list(TRAININGS))
    args = parser.parse_args()
    if args.steps:
        compare_steps(args.rounds, args.csv)
        return
    if args.out is None:
        parser.error("expected --out, or --steps.")
    args.out = args.out.resolve()
    of = Trainings(
        trainings=TRAININGS,
        of_all=OF_ALL | {"dataset_dir": str(args.out / "training")},
        evaluations={"": {"dataset_dir": str(args.out / "held_out"), "split": "all"}},
        metrics=METRICS,
    )
    if args.one:
        run_one(of, args)
    else:
        make_phantoms(args.out)
        compare_trainings(of, args.only, args)


if __name__ == "__main__":
    main()
