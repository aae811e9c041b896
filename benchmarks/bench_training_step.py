"""Peak memory and time of a whole training step, a 3D U-Net under our losses and under MONAI's.

    python benchmarks/bench_training_step.py [--classes 105] [--size 128] [--csv FILE]

The network is the one of configs/train.yaml, with one float32 patch of one channel. The peak is of what a step
allocates, above the parameters, their gradients and the patch; `loss_share` is the fraction of it that a step without a
loss (the mean of the logits) does not need.
"""

import argparse
import csv
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import monai
import monai.losses
import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

import monai_extra_losses.losses as ours

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import memory

SOFTMAX = {"to_onehot_y": True, "softmax": True}
SIGMOID = {"to_onehot_y": True, "sigmoid": True}
GIB = 1 << 30


class Nothing(nn.Module):
    """The mean of the logits: a loss without cost, whose gradient is one number."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.mean()


LOSSES: dict[str, nn.Module] = {
    "no loss": Nothing(),
    "MONAI DiceCELoss": monai.losses.DiceCELoss(**SOFTMAX),
    "FusedDiceCELoss": ours.FusedDiceCELoss(**SOFTMAX),
    "MONAI DiceFocalLoss, sigmoid": monai.losses.DiceFocalLoss(**SIGMOID),
    "FusedDiceFocalLoss, sigmoid": ours.FusedDiceFocalLoss(**SIGMOID),
}


def peak_extra_bytes(network: nn.Module, loss: nn.Module, image: Tensor, labels: Tensor) -> int:
    def step() -> None:
        loss(network(image), labels).backward()

    if image.device.type != "cuda":
        return memory.peak_extra_bytes(step)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def seconds(network: nn.Module, loss: nn.Module, image: Tensor, labels: Tensor) -> float:
    start = time.perf_counter()
    loss(network(image), labels).backward()
    if image.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=105)
    parser.add_argument("--size", type=int, default=128, help="voxels per axis")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps per loss")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, help="also write the rows to this file")
    args = parser.parse_args()

    torch.manual_seed(0)
    network = UNet(3, 1, args.classes, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm="instance").to(args.device)
    image = torch.randn(1, 1, *[args.size] * 3, device=args.device)
    labels = torch.randint(0, args.classes, (1, 1, *[args.size] * 3), device=args.device).float()
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU {platform.machine()}"
    where = {
        "classes": args.classes,
        "size": args.size,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "date": date.today().isoformat(),
    }
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print("| loss | peak of a step, GiB | of it the loss | seconds per step |\n|---|---|---|---|")
    network(image).mean().backward()  # the parameters have gradients from now on
    rows, least = [], 0
    for name, loss in LOSSES.items():
        peak = peak_extra_bytes(network, loss, image, labels)
        least = least or peak
        times = [seconds(network, loss, image, labels) for _ in range(args.rounds)]
        row = {"loss": name, "peak_gib": round(peak / GIB, 2), "loss_share": round(1 - least / peak, 2)}
        rows.append(row | {"seconds": round(statistics.median(times), 2)} | where)
        print(f"| {name} | {row['peak_gib']} | {row['loss_share']:.0%} | {rows[-1]['seconds']} |", flush=True)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
