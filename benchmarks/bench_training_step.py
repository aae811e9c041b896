"""Peak memory and time of a whole training step, a 3D network under our losses and under MONAI's.

    python benchmarks/bench_training_step.py [--network UNet] [--classes 105] [--size 128] [--csv FILE]
    python benchmarks/bench_training_step.py --network SegResNet --classes 117 --size 96

The U-Net is the one of configs/train.yaml, the SegResNet MONAI's with 16 filters; the patch is float32, of one channel.
A network with a last convolution of 1x1x1 has a row with `HeadLoss`. The peak is of what a step allocates, above the
parameters, their gradients and the patch; `loss_share` is the fraction of it that a step without a loss (the mean of
the logits) does not need, below 0 where it needs more.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import monai.losses
import torch
from monai.networks.nets import SegResNet, UNet
from torch import Tensor, nn

import monai_extra_losses.losses as ours

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import memory
from bench_losses import add_row, machine

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


# How a network of so many classes is made, and its last convolution where `HeadLoss` can take it.
NETWORKS: dict[str, tuple[Callable[[int], nn.Module], str | None]] = {
    "UNet": (lambda classes: UNet(3, 1, classes, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm="instance"), None),
    "SegResNet": (lambda classes: SegResNet(3, 16, 1, classes), "conv_final.2.conv"),
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
    parser.add_argument("--network", choices=list(NETWORKS), default="UNet")
    parser.add_argument("--only", nargs="+", help="names of losses; all by default")
    parser.add_argument("--classes", type=int, default=105)
    parser.add_argument("--size", type=int, default=128, help="voxels per axis")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps per loss")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, help="also add the rows to this file")
    args = parser.parse_args()

    torch.manual_seed(0)
    make, head = NETWORKS[args.network]
    network = make(args.classes).to(args.device)
    losses = dict(LOSSES)
    if head is not None:
        losses["HeadLoss of FusedDiceCELoss"] = LOSSES["FusedDiceCELoss"]  # computed with the head, last of all
    losses = {name: loss for name, loss in losses.items() if args.only is None or name in (*args.only, "no loss")}
    image = torch.randn(1, 1, *[args.size] * 3, device=args.device)
    labels = torch.randint(0, args.classes, (1, 1, *[args.size] * 3), device=args.device).float()
    where = {"network": args.network, "classes": args.classes, "size": args.size, **machine(args.device)}
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print("| loss | peak of a step, GiB | of it the loss | seconds per step |\n|---|---|---|---|")
    network(image).mean().backward()  # the parameters have gradients from now on
    rows, least = [], 0
    for name, loss in losses.items():
        if name.startswith("HeadLoss") and head is not None:
            headless = ours.HeadlessNetwork(network, head)
            network, loss = headless, ours.HeadLoss(headless.head, loss)
        peak = peak_extra_bytes(network, loss, image, labels)
        least = least or peak
        times = [seconds(network, loss, image, labels) for _ in range(args.rounds)]
        row = {"loss": name, "peak_gib": round(peak / GIB, 2), "loss_share": round(1 - least / peak, 2)}
        rows.append(row | {"seconds": round(statistics.median(times), 2)} | where)
        print(f"| {name} | {row['peak_gib']} | {row['loss_share']:.0%} | {rows[-1]['seconds']} |", flush=True)
    if args.csv:
        for row in rows:
            add_row(args.csv, row, row)


if __name__ == "__main__":
    main()
