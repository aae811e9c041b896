"""Time of the boundary losses against MONAI's, and with precomputed maps against Dice: same tensors, alternating.

    python benchmarks/bench_boundary.py [--rounds 5] [--size 128] [--csv FILE]

Prints forward+backward times in ms, medians, and the median of the ratios of neighbours in time. The labels are two
ellipsoids in background, in voxels of 1 x 1 x 3 mm; a distance map of random labels would be 1 voxel everywhere.
"""

import argparse
import csv
import platform
import statistics
from datetime import date
from pathlib import Path

import monai
import monai.losses
import torch
from bench_losses import Loss, seconds
from torch import Tensor

import monai_extra_losses.losses as ours
from monai_extra_losses.ops.distance import signed_distance

SPACING = (1.0, 1.0, 3.0)
SOFTMAX = {"to_onehot_y": True, "softmax": True}
COLUMNS = ("ours", "baseline", "ours_ms", "baseline_ms", "time_ratio")


def ellipsoids(batch: int, size: int) -> Tensor:
    """(B, 1, size, size, size) uint8 labels 0, 1 and 2."""
    axis = torch.linspace(-1, 1, size)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    labels = torch.zeros(batch, 1, size, size, size, dtype=torch.uint8)
    for n in range(batch):
        shift = 0.1 * n
        labels[n, 0][(x - shift) ** 2 / 0.3 + (y + 0.2) ** 2 / 0.2 + z**2 / 0.4 < 1] = 1
        labels[n, 0][(x - shift - 0.3) ** 2 + (y + 0.2) ** 2 + (z - 0.1) ** 2 < 0.02] = 2
    return labels


def pairs(labels: Tensor) -> dict[tuple[str, str], tuple[Loss, Loss]]:
    """Ours and the baseline, by their names."""
    known = signed_distance(labels[:, 0], range(3), SPACING)
    surface = ours.SurfaceLoss(spacing=SPACING, **SOFTMAX)
    one_sided = ours.HausdorffLoss(spacing=SPACING, one_sided=True, **SOFTMAX)
    dice, dice_ce = ours.FusedDiceLoss(**SOFTMAX), ours.FusedDiceCELoss(**SOFTMAX)
    compound = ours.CompoundLoss([dice_ce, surface], weights=[1.0, 0.01])
    return {
        ("SurfaceLoss", "MONAI BoundaryLoss"): (surface, monai.losses.BoundaryLoss(**SOFTMAX)),
        ("HausdorffLoss", "MONAI HausdorffDTLoss"): (
            ours.HausdorffLoss(spacing=SPACING, **SOFTMAX),
            monai.losses.HausdorffDTLoss(**SOFTMAX),
        ),
        ("LogHausdorffLoss", "MONAI LogHausdorffDTLoss"): (
            ours.LogHausdorffLoss(spacing=SPACING, **SOFTMAX),
            monai.losses.LogHausdorffDTLoss(**SOFTMAX),
        ),
        ("SurfaceLoss, precomputed", "FusedDiceLoss"): (lambda x, y: surface(x, y, distance=known), dice),
        ("HausdorffLoss, one-sided, precomputed", "FusedDiceLoss"): (
            lambda x, y: one_sided(x, y, distance=known),
            dice,
        ),
        ("DiceCE + SurfaceLoss, precomputed", "FusedDiceCELoss"): (
            lambda x, y: compound(x, y, distance=known),
            dice_ce,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed steps per loss")
    parser.add_argument("--size", type=int, default=128, help="voxels per axis")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, help="also write the rows to this file")
    args = parser.parse_args()

    name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU {platform.machine()}"
    versions = f"torch {torch.__version__}, MONAI {monai.__version__}"
    print(f"2x3x{args.size}^3, {name}, {torch.get_num_threads()} threads, {versions}, {date.today()}")
    torch.manual_seed(0)
    labels = ellipsoids(2, args.size).to(args.device)
    # a network half trained: right in most places
    logits = torch.randn(2, 3, *labels.shape[2:], device=args.device)
    logits.scatter_add_(1, labels.long(), torch.full_like(logits[:, :1], 3.0))
    logits.requires_grad_()
    rows = []
    for (mine, theirs), losses in pairs(labels).items():
        times: tuple[list[float], list[float]] = ([], [])
        for loss in losses:
            seconds(loss, logits, labels.float())
        for _ in range(args.rounds):
            for loss, its in zip(losses, times, strict=True):
                its.append(seconds(loss, logits, labels.float()))
        medians = [round(1e3 * statistics.median(its), 1) for its in times]
        ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
        rows.append(dict(zip(COLUMNS, (mine, theirs, *medians, round(ratio, 3)), strict=True)))
        print("{ours:>38} {ours_ms:>9} ms {baseline:>26} {baseline_ms:>9} ms {time_ratio:>7} x".format(**rows[-1]))
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
