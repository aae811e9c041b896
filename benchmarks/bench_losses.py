"""Time and memory of our losses against MONAI's, in one process: same tensors, alternating, medians.

    python benchmarks/bench_losses.py [--rounds 9] [--csv FILE] [--markdown FILE]

Prints, per loss and shape, forward+backward time of MONAI and of ours, their ratio, and the peak extra memory of a
forward+backward as a multiple of the logits (the gradient itself counts 1.0).
"""

import argparse
import csv
import gc
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import monai
import monai.losses
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import monai_extra_losses.losses as ours

SHAPES = [(2, 2, 96, 96, 96), (2, 4, 96, 96, 96), (1, 14, 96, 96, 96), (1, 105, 64, 64, 64)]
SOFTMAX = {"to_onehot_y": True, "softmax": True}

# name: (ours, MONAI's or None)
PAIRS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], torch.nn.Module] | None]] = {
    "Dice": (lambda: ours.FusedDiceLoss(**SOFTMAX), lambda: monai.losses.DiceLoss(**SOFTMAX)),
    "Dice, squared": (
        lambda: ours.FusedDiceLoss(**SOFTMAX, squared_pred=True),
        lambda: monai.losses.DiceLoss(**SOFTMAX, squared_pred=True),
    ),
    "Jaccard": (lambda: ours.JaccardLoss(**SOFTMAX), lambda: monai.losses.DiceLoss(**SOFTMAX, jaccard=True)),
    "Tversky": (lambda: ours.FusedTverskyLoss(**SOFTMAX), lambda: monai.losses.TverskyLoss(**SOFTMAX)),
    "Focal Tversky": (lambda: ours.FocalTverskyLoss(**SOFTMAX), None),
    "Cross-entropy": (lambda: ours.CrossEntropyLoss(**SOFTMAX), lambda: TorchCrossEntropy()),
    "Focal, softmax": (
        lambda: ours.FusedFocalLoss(to_onehot_y=True, use_softmax=True),
        lambda: monai.losses.FocalLoss(to_onehot_y=True, use_softmax=True),
    ),
    "Focal, sigmoid": (
        lambda: ours.FusedFocalLoss(to_onehot_y=True),
        lambda: monai.losses.FocalLoss(to_onehot_y=True),
    ),
    "DiceCE": (lambda: ours.FusedDiceCELoss(**SOFTMAX), lambda: monai.losses.DiceCELoss(**SOFTMAX)),
}


class TorchCrossEntropy(torch.nn.Module):
    """MONAI has no plain cross-entropy; this is what DiceCELoss does inside."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(input, target[:, 0].long())


def step(loss: torch.nn.Module, logits: Tensor, labels: Tensor) -> None:
    logits.grad = None
    loss(logits, labels).backward()


def peak_extra_bytes(loss: torch.nn.Module, logits: Tensor, labels: Tensor) -> int:
    """Highest sum of live allocations during one step, above what was there before."""
    logits.grad = None
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss(logits, labels).backward()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(logits, labels).backward()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def seconds(loss: torch.nn.Module, logits: Tensor, labels: Tensor) -> float:
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(loss, logits, labels)
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(name: str, shape: tuple[int, ...], device: str, label_dtype: torch.dtype, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    logits = torch.randn(shape, device=device, requires_grad=True)
    labels = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), device=device).to(label_dtype)
    make_ours, make_monai = PAIRS[name]
    losses = {"ours": make_ours()} | ({"monai": make_monai()} if make_monai else {})
    times: dict[str, list[float]] = {key: [] for key in losses}
    for loss in losses.values():
        step(loss, logits, labels)
    for _ in range(rounds):
        for key, loss in losses.items():
            times[key].append(seconds(loss, logits, labels))
    size = logits.numel() * logits.element_size()
    row: dict[str, object] = {"loss": name, "shape": "x".join(map(str, shape))}
    row["labels"] = str(label_dtype).removeprefix("torch.")
    for key, loss in losses.items():
        row[f"{key}_ms"] = round(1e3 * statistics.median(times[key]), 1)
        row[f"{key}_memory"] = round(peak_extra_bytes(loss, logits, labels) / size, 2)
        gc.collect()
    if "monai" in losses:
        # The ratio of neighbours in time, so that a slow stretch of a shared machine hits both.
        ratios = [mine / theirs for mine, theirs in zip(times["ours"], times["monai"], strict=True)]
        row["time_ratio"] = round(statistics.median(ratios), 2)
    return row


def markdown(rows: list[dict[str, object]]) -> str:
    """One row per loss; per shape our time as a fraction of MONAI's, and the memory of ours and of MONAI's."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    lines = ["| loss | " + " | ".join(f"{shape}" for shape in shapes) + " |", "|---" * (len(shapes) + 1) + "|"]
    for loss in dict.fromkeys(row["loss"] for row in rows):
        cells = []
        for row in (row for row in rows if row["loss"] == loss):
            ratio = f"{row['time_ratio']:.2f} ×, " if "time_ratio" in row else ""
            theirs = f" / {row['monai_memory']:.1f}" if "monai_memory" in row else ""
            cells.append(f"{ratio}{row['ours_memory']:.2f}{theirs}")
        lines.append(f"| {loss} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed steps per loss and shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--label-dtype", default="float32", help="MONAI's data loaders give float32 labels")
    parser.add_argument("--only", nargs="*", choices=list(PAIRS), help="names of losses; all by default")
    parser.add_argument("--csv", type=Path, help="also write the rows to this file")
    parser.add_argument("--markdown", type=Path, help="also write the table of the README to this file")
    args = parser.parse_args()

    name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU {platform.machine()}"
    versions = f"torch {torch.__version__}, MONAI {monai.__version__}"
    title = f"{name}, {torch.get_num_threads()} threads, {versions}, {date.today()}"
    print(title)
    columns = ["loss", "shape", "labels", "monai_ms", "ours_ms", "time_ratio", "monai_memory", "ours_memory"]
    print(" ".join(f"{column:>16}" for column in columns))
    rows = []
    for shape in SHAPES:
        for loss in args.only or PAIRS:
            row = measure(loss, shape, args.device, getattr(torch, args.label_dtype), args.rounds)
            rows.append(row)
            print(" ".join(f"{row.get(column, ''):>16}" for column in columns), flush=True)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    if args.markdown:
        args.markdown.write_text(f"{title}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
