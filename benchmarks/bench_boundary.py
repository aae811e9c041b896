"""Time of the boundary losses against MONAI's, and with precomputed maps against Dice: same tensors, alternating.

    python benchmarks/bench_boundary.py [--rounds 5] [--size 128] [--csv FILE]

Prints what bench_losses.py prints. The labels are two ellipsoids in background, in voxels of 1 x 1 x 3 mm; a distance
map of random labels would be 1 voxel everywhere. Losses that MONAI has not stand beside Dice + cross-entropy.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import monai
import monai.losses
import torch
from bench_losses import COLUMNS, WHERE, Loss, add_row, keep_memory, machine, measure, printed
from torch import Tensor

import monai_extra_losses.losses as ours
from monai_extra_losses.ops.distance import signed_distance

SPACING = (1.0, 1.0, 3.0)
SOFTMAX = {"to_onehot_y": True, "softmax": True}


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


def pairs(labels: Tensor) -> Iterator[tuple[str, Loss, str, Loss]]:
    """Ours and the baseline, each after its name."""
    known = signed_distance(labels[:, 0], range(3), SPACING)
    in_mm = {"spacing": SPACING, **SOFTMAX}
    surface = ours.SurfaceLoss(**in_mm)
    one_sided = ours.HausdorffLoss(one_sided=True, **in_mm)
    dice, dice_ce = ours.FusedDiceLoss(**SOFTMAX), ours.FusedDiceCELoss(**SOFTMAX)
    compound = ours.CompoundLoss([dice_ce, surface], weights=[1.0, 0.01])
    yield "SurfaceLoss", surface, "MONAI", monai.losses.BoundaryLoss(**SOFTMAX)
    yield "HausdorffLoss", ours.HausdorffLoss(**in_mm), "MONAI", monai.losses.HausdorffDTLoss(**SOFTMAX)
    yield "LogHausdorffLoss", ours.LogHausdorffLoss(**in_mm), "MONAI", monai.losses.LogHausdorffDTLoss(**SOFTMAX)
    yield "SurfaceLoss, map given", lambda x, y: surface(x, y, distance=known), "FusedDiceLoss", dice
    yield "HausdorffLoss, one-sided, map given", lambda x, y: one_sided(x, y, distance=known), "FusedDiceLoss", dice
    yield (
        "CompoundLoss, DiceCE + Surface, map given",
        lambda x, y: compound(x, y, distance=known),
        "FusedDiceCELoss",
        (dice_ce),
    )
    for name in ("GeneralizedSurfaceLoss", "DistancePenaltyCrossEntropyLoss", "ShapeAwareLoss"):
        yield name, getattr(ours, name)(**in_mm), "FusedDiceCELoss", dice_ce
    yield "HausdorffERLoss", ours.HausdorffERLoss(**SOFTMAX), "FusedDiceCELoss", dice_ce


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed steps per loss")
    parser.add_argument("--size", type=int, default=128, help="voxels per axis")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, help="also add the rows to this file")
    args = parser.parse_args()
    if args.device == "cpu":
        keep_memory("keep")

    where = machine(args.device) | {"busy": 0, "allocator": "keep", "present": 3}
    print("{device}, {threads} threads, torch {torch}, MONAI {monai}, {date}".format(**where))
    torch.manual_seed(0)
    labels = ellipsoids(2, args.size).to(args.device)
    # a network half trained: right in most places
    logits = torch.randn(2, 3, *labels.shape[2:], device=args.device)
    logits.scatter_add_(1, labels.long(), torch.full_like(logits[:, :1], 3.0))
    logits.requires_grad_()
    print(printed(*COLUMNS))
    for name, mine, against, theirs in pairs(labels):
        row = measure(name, mine, against, theirs, logits, labels.float(), args.rounds) | where
        print(printed(*(row[column] for column in COLUMNS)), flush=True)
        if args.csv:
            add_row(args.csv, row, (*COLUMNS, *WHERE))


if __name__ == "__main__":
    main()
