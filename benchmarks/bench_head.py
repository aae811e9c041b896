"""Time and memory of the last convolution and the loss together, against one after the other.

    python benchmarks/bench_head.py [--shapes 1000x64x64x64 105x96x96x96] [--features 32] [--csv FILE]

A step is forward and backward of a 1x1x1 convolution of features and of Dice + cross-entropy of its scores; classes
come first in a shape. `memory` is the peak of what a step allocates, as a share of the scores; the gradient of the
features is left out of it, and is there in every row. Times are medians of alternating steps, `ratio` of neighbours.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import monai.losses
import torch
from torch import Tensor, nn

import monai_extra_losses.losses as ours

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import memory
from bench_losses import add_row, keep_memory, machine, shape_of

SOFTMAX = {"to_onehot_y": True, "softmax": True}
Step = Callable[[Tensor, Tensor], Tensor]


def steps(head: nn.Module) -> dict[str, Step]:
    """How a loss is computed from features; `ours` is what the ratios are of."""
    of_monai, of_ours = monai.losses.DiceCELoss(**SOFTMAX), ours.FusedDiceCELoss(**SOFTMAX)
    return {
        "ours": lambda features, labels: of_ours(head(features), labels),
        "HeadLoss": ours.HeadLoss(head, of_ours),
        "MONAI": lambda features, labels: of_monai(head(features), labels),
    }


def seconds(step: Step, features: Tensor, labels: Tensor) -> float:
    features.grad = None
    start = time.perf_counter()
    step(features, labels).backward()
    if features.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(step: Step, features: Tensor, labels: Tensor) -> int:
    features.grad = None
    if features.device.type != "cuda":
        return memory.peak_extra_bytes(lambda: step(features, labels).backward())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(features, labels).backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=[(1000, 64, 64, 64), (105, 96, 96, 96)])
    parser.add_argument("--features", type=int, default=32, help="channels that the convolution reads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="+", default=[], help="names of rows that are left out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, help="also add the rows to this file")
    args = parser.parse_args()
    if args.device == "cpu":
        keep_memory("keep")
    where = machine(args.device)
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print("| classes x voxels | loss | ms | of ours on scores | memory / scores |\n|---|---|---|---|---|")
    for classes, *size in args.shapes:
        torch.manual_seed(0)
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
        head = convolution(args.features, classes, 1).to(args.device)
        features = torch.randn(1, args.features, *size, device=args.device, requires_grad=True)
        labels = torch.randint(0, classes, (1, 1, *size), device=args.device).float()
        losses = {name: step for name, step in steps(head).items() if name not in args.without}
        times: dict[str, list[float]] = {name: [] for name in losses}
        for number in range(args.rounds + 1):
            for name, step in losses.items():
                taken = seconds(step, features, labels)
                if number:  # the first lays out the memory
                    times[name].append(taken)
        scores = 4 * classes * labels.numel()
        for name, step in losses.items():
            ratios = [mine / theirs for mine, theirs in zip(times[name], times["ours"], strict=True)]
            share = (peak_bytes(step, features, labels) - 4 * features.numel()) / scores
            row = {
                "shape": "x".join(map(str, (classes, *size))),
                "features": args.features,
                "loss": name,
                "ms": round(1e3 * statistics.median(times[name]), 1),
                "ratio": round(statistics.median(ratios), 2),
                "memory": round(share, 4),
            }
            print(f"| {row['shape']} | {name} | {row['ms']} | {row['ratio']} | {row['memory']} |", flush=True)
            if args.csv:
                add_row(args.csv, row | where, [*row, *where])


if __name__ == "__main__":
    main()
