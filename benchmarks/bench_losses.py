"""Time and memory of our losses against MONAI's or textbook code, in one process: same tensors, alternating, medians.

    python benchmarks/bench_losses.py [--rounds 9] [--csv FILE] [--markdown FILE]

Prints, per loss and shape, forward+backward time of the baseline and of ours, their ratio, and the peak extra memory of
a forward+backward as a multiple of the logits (the gradient itself counts 1.0). The baseline is MONAI's class, or where
MONAI has none the eager torch code of tests/references_torch.py. Losses of structure, which hold many maps of all
classes at once, are left out above 14 classes.
"""

import argparse
import csv
import gc
import inspect
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

import monai
import monai.losses
import torch
from torch import Tensor, nn

import monai_extra_losses.losses as ours

# The textbook functions live with the test that proves them equal to our losses, the measure with those of memory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import memory
from references_torch import TEXTBOOK

# The rows of the README's table.
HEADLINES = (
    "FusedDiceLoss",
    "JaccardLoss",
    "FusedTverskyLoss",
    "FocalTverskyLoss",
    "CrossEntropyLoss",
    "FusedFocalLoss, softmax",
    "FusedFocalLoss, sigmoid",
    "FusedDiceCELoss",
)
SHAPES = [(2, 2, 96, 96, 96), (2, 4, 96, 96, 96), (1, 14, 96, 96, 96), (1, 105, 64, 64, 64)]
COLUMNS = (
    "loss",
    "shape",
    "labels",
    "baseline",
    "baseline_ms",
    "ours_ms",
    "time_ratio",
    "baseline_memory",
    "ours_memory",
)
STRUCTURE = ("CorrelationMaximizedStructuralSimilarityLoss", "LovaszLoss")
MOST_CLASSES_OF_STRUCTURE = 14

Loss = Callable[[Tensor, Tensor], Tensor]
LABELS = {"to_onehot_y": True}
SOFTMAX = {**LABELS, "softmax": True}
SIGMOID = {**LABELS, "sigmoid": True}
# The generalized Dice losses are equal up to their smoothing, which ours adds after scaling the weights.
UNSMOOTHED = {**SOFTMAX, "smooth_nr": 0.0, "smooth_dr": 0.0}


def softmax_form(name: str) -> nn.Module:
    """Our class with a softmax, or without where it reads raw scores."""
    loss = getattr(ours, name)
    return loss(**SOFTMAX) if "softmax" in inspect.signature(loss).parameters else loss(**LABELS)


# name: (ours, the baseline). MONAI's AsymmetricUnifiedFocalLoss is none: two classes, and no activation.
ROWS: dict[str, tuple[nn.Module, Loss]] = {
    "FusedDiceLoss": (ours.FusedDiceLoss(**SOFTMAX), monai.losses.DiceLoss(**SOFTMAX)),
    "FusedDiceLoss, squared_pred": (
        ours.FusedDiceLoss(**SOFTMAX, squared_pred=True),
        monai.losses.DiceLoss(**SOFTMAX, squared_pred=True),
    ),
    "JaccardLoss": (ours.JaccardLoss(**SOFTMAX), monai.losses.DiceLoss(**SOFTMAX, jaccard=True)),
    "FusedTverskyLoss": (ours.FusedTverskyLoss(**SOFTMAX), monai.losses.TverskyLoss(**SOFTMAX)),
    "FusedGeneralizedDiceLoss": (
        ours.FusedGeneralizedDiceLoss(**UNSMOOTHED),
        monai.losses.GeneralizedDiceLoss(**UNSMOOTHED),
    ),
    "FusedFocalLoss, softmax": (
        ours.FusedFocalLoss(**LABELS, use_softmax=True),
        monai.losses.FocalLoss(**LABELS, use_softmax=True),
    ),
    "FusedFocalLoss, sigmoid": (ours.FusedFocalLoss(**LABELS), monai.losses.FocalLoss(**LABELS)),
    "FusedDiceCELoss": (ours.FusedDiceCELoss(**SOFTMAX), monai.losses.DiceCELoss(**SOFTMAX)),
    # With softmax MONAI's focal part stays a sigmoid one.
    "FusedDiceFocalLoss, sigmoid": (ours.FusedDiceFocalLoss(**SIGMOID), monai.losses.DiceFocalLoss(**SIGMOID)),
    **{name: (softmax_form(name), textbook) for name, textbook in TEXTBOOK.items()},
}


def step(loss: Loss, logits: Tensor, labels: Tensor) -> None:
    logits.grad = None
    loss(logits, labels).backward()


def peak_extra_bytes(loss: Loss, logits: Tensor, labels: Tensor) -> int:
    """Highest sum of live allocations during one step, above what was there before."""
    logits.grad = None
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss(logits, labels).backward()
        return torch.cuda.max_memory_allocated() - before
    return memory.peak_extra_bytes(lambda: loss(logits, labels).backward())


def seconds(loss: Loss, logits: Tensor, labels: Tensor) -> float:
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
    losses = dict(zip(("ours", "baseline"), ROWS[name], strict=True))
    times: dict[str, list[float]] = {key: [] for key in losses}
    for loss in losses.values():
        step(loss, logits, labels)
    for _ in range(rounds):
        for key, loss in losses.items():
            times[key].append(seconds(loss, logits, labels))
    size = logits.numel() * logits.element_size()
    row: dict[str, object] = {"loss": name, "shape": shape_name(shape), "labels": dtype_name(label_dtype)}
    row["baseline"] = "MONAI" if isinstance(losses["baseline"], nn.Module) else "textbook"
    for key, loss in losses.items():
        row[f"{key}_ms"] = round(1e3 * statistics.median(times[key]), 1)
        row[f"{key}_memory"] = round(peak_extra_bytes(loss, logits, labels) / size, 2)
        gc.collect()
    # The ratio of neighbours in time, so that a slow stretch of a shared machine hits both.
    ratios = [mine / theirs for mine, theirs in zip(times["ours"], times["baseline"], strict=True)]
    row["time_ratio"] = round(statistics.median(ratios), 2)
    return row


def left_out(name: str, shape: tuple[int, ...]) -> bool:
    return name in STRUCTURE and shape[1] > MOST_CLASSES_OF_STRUCTURE


def shape_name(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def markdown(rows: list[dict[str, object]]) -> str:
    """The headlines: per shape our time as a fraction of the baseline's, and the memory of ours and of the baseline.

    Of several label types the first.
    """
    rows = [row for row in rows if row["loss"] in HEADLINES and row["labels"] == rows[0]["labels"]]
    rows.sort(key=lambda row: HEADLINES.index(str(row["loss"])))  # stable: the shapes stay in order
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    lines = ["| loss | baseline | " + " | ".join(map(str, shapes)) + " |", "|---" * (len(shapes) + 2) + "|"]
    for loss, baseline in dict.fromkeys((row["loss"], row["baseline"]) for row in rows):
        cells = [
            f"{row['time_ratio']:.2f} ×, {row['ours_memory']:.2f} / {row['baseline_memory']:.1f}"
            for row in rows
            if row["loss"] == loss
        ]
        lines.append(f"| {loss} | {baseline} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def printed(loss: object, *numbers: object) -> str:
    return f"{loss:>45}" + "".join(f"{number:>16}" for number in numbers)


def shape_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed steps per loss and shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--label-dtype", nargs="+", default=["float32"], help="one or more; MONAI's data loaders give float32 labels"
    )
    parser.add_argument("--only", nargs="+", choices=list(ROWS), help="names of losses; all by default")
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=SHAPES, help="such as 2x4x32x32x32")
    parser.add_argument("--csv", type=Path, help="also write the rows to this file")
    parser.add_argument("--markdown", type=Path, help="also write the table of the README to this file")
    args = parser.parse_args()

    name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU {platform.machine()}"
    versions = f"torch {torch.__version__}, MONAI {monai.__version__}"
    title = f"{name}, {torch.get_num_threads()} threads, {versions}, {date.today()}"
    print(title)
    print(printed(*COLUMNS))
    rows = []
    for shape in args.shapes:
        for label_dtype in args.label_dtype:
            for loss in args.only or ROWS:
                if left_out(loss, shape):
                    continue
                row = measure(loss, shape, args.device, getattr(torch, label_dtype), args.rounds)
                rows.append(row)
                print(printed(*(row[column] for column in COLUMNS)), flush=True)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    if args.markdown:
        args.markdown.write_text(f"{title}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
