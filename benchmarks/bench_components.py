"""What a loss of components costs: time and memory of a step beside Dice + cross-entropy, with cells given and without.

    python benchmarks/bench_components.py [--size 128] [--components 500] [--rounds 15]

Blobs of about 30 voxels in a cube; both losses of each row step in turn, and the median of their times is shown. Then
how long the cells of the volume take, as `ComponentCellsd` makes them once.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_losses import keep_memory, machine
from torch import Tensor

from monai_extra_losses import BlobDiceCELoss, ComponentDiceCELoss, FusedDiceCELoss
from monai_extra_losses.ops.components import cells_of_regions, number_of_ids

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import memory

SOFTMAX: dict[str, Any] = {"to_onehot_y": True, "softmax": True}


def volume_of_blobs(size: int, number: int, seed: int = 0) -> Tensor:
    """(1, 1, size, size, size) uint8 with so many blobs on a grid, apart from each other."""
    per_axis = next(n for n in range(1, size) if n**3 >= number)
    step, generator = size // per_axis, torch.Generator().manual_seed(seed)
    volume = torch.zeros(1, 1, size, size, size, dtype=torch.uint8)
    for blob in range(number):
        at = [blob // per_axis**2, blob // per_axis % per_axis, blob % per_axis]
        first = [step * n + int(torch.randint(1, max(step - 4, 2), (), generator=generator)) for n in at]
        volume[(0, 0, *(slice(n, n + 3) for n in first))] = 1
    return volume


def step(loss: Any, scores: Tensor, target: Tensor, **maps: Tensor) -> float:
    """Seconds of a forward and backward."""
    scores.grad, start = None, time.perf_counter()
    loss(scores, target, **maps).backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="voxels per axis")
    parser.add_argument("--components", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    keep_memory("keep")
    print(", ".join(f"{key} {value}" for key, value in machine("cpu").items()))
    labels = volume_of_blobs(args.size, args.components)
    start = time.perf_counter()
    cells = cells_of_regions(labels > 0, None, None)
    seconds = time.perf_counter() - start
    print(f"{number_of_ids(cells) - 1} components in {args.size}^3 voxels; cells made in {seconds:.2f} s")
    print("| loss | channels | ms | of Dice + CE | memory / logits |\n|---|---|---|---|---|")
    for channels, options in ((2, SOFTMAX), (4, SOFTMAX), (1, {"sigmoid": True})):
        scores = torch.randn(1, channels, *labels.shape[2:], requires_grad=True)
        target = labels if channels > 1 else labels.float()
        known = cells.expand(1, max(channels - 1, 1), *labels.shape[2:]).contiguous()
        for cls in (ComponentDiceCELoss, BlobDiceCELoss):
            own, other = cls(**options), FusedDiceCELoss(**options)
            times = [
                (step(own, scores, target, cells=known), step(other, scores, target)) for _ in range(args.rounds + 1)
            ][1:]
            ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
            scores.grad = None
            peak = memory.peak_extra_bytes(lambda: step(own, scores, target, cells=known))  # noqa: B023
            share = peak / (4 * scores.numel())
            print(f"| {cls.__name__} | {channels} | {1e3 * ours:.1f} | {ours / theirs:.2f} | {share:.2f} |")


if __name__ == "__main__":
    main()
