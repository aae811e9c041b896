"""Time and memory of our losses against MONAI's or textbook code, in one process: same tensors, alternating, medians.

    python benchmarks/bench_losses.py [--rounds 9] [--csv FILE] [--markdown FILE]
    python benchmarks/bench_losses.py --only FusedDiceLoss --against MONAI compiled gather softmax
    python benchmarks/bench_losses.py --only FusedDiceLoss --shapes 1x105x64x64x64 --present 6 --against softmax

Prints, per loss and shape, forward+backward time of the baseline and of ours, their ratio, and the peak extra memory of
a forward+backward as a multiple of the logits (the gradient itself counts 1.0). On a GPU also `bandwidth`: bytes that
must move (logits and labels twice, the gradient once) per time, as a fraction of a measured copy on the device.

Losses and baselines are those of tests/support/loss_list.py, which needs the extra `test`: `MONAI` is MONAI's class,
`textbook` where MONAI has none the eager torch code of tests/support/references_torch.py; `compiled` is either under
torch.compile, `gather` a Dice by gather and scatter, `softmax` a softmax and its backward alone, without a loss, and
the baseline of a loss without other code. Losses of structure, which hold many maps of all classes at once, are left
out above 14 classes.

Our losses take the loops that numba compiles where it is installed (the extra `fast`), as the column `loops` says;
with the environment variable MONAI_EXTRA_LOSSES_NUMBA=0 they compute in plain torch.

`--against eager` measures our loss under torch.compile beside itself in eager mode. `--busy 1` starts a process that
keeps a core busy, as a data loader or another user does.

On Linux the process starts itself again with a C allocator that keeps freed memory. As it comes, glibc gives blocks
above 32 MiB back and page faults take most of the time of a step, three to ten times of it for code that allocates as
often, so that a ratio says how the heap happened to lie: our worst case is the one that repeats. `--allocator system`
measures as it comes.
"""

import argparse
import atexit
import csv
import gc
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path

import monai
import torch
from torch import Tensor, nn

# The list of losses and the measure of memory are those of the tests, which prove each baseline equal to its loss.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import memory
from loss_list import LOSSES, Baseline
from references_torch import gather_dice

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
    "dtype",
    "labels",
    "present",
    "baseline",
    "baseline_ms",
    "ours_ms",
    "time_ratio",
    "baseline_memory",
    "ours_memory",
    "bandwidth",
)
WHERE = ("device", "threads", "busy", "loops", "torch", "monai", "allocator", "date")
AGAINST = ("MONAI", "textbook", "compiled", "gather", "softmax", "eager")
# What makes glibc keep what is freed.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
STRUCTURE = tuple(entry.name for entry in LOSSES if entry.family == "structure")
MOST_CLASSES_OF_STRUCTURE = 14

Loss = Callable[[Tensor, Tensor], Tensor]


def softmax_alone(logits: Tensor, labels: Tensor) -> Tensor:
    """Its gradient comes from outside: that of a sum would be 0, and expanded."""
    return torch.softmax(logits, 1)


def rows() -> Iterator[tuple[str, tuple[nn.Module, Loss]]]:
    """Name, our loss and the baseline of each row; those that measure distances have bench_boundary.py."""
    for entry in LOSSES:
        if not entry.measures:
            for baseline in entry.baselines or (Baseline(softmax_alone),):
                name = ", ".join(filter(None, (entry.name, baseline.what)))
                yield name, (entry.make(baseline.activation, **baseline.options), baseline.loss)


ROWS: dict[str, tuple[nn.Module, Loss]] = dict(rows())


def baselines(name: str, wanted: Iterable[str]) -> dict[str, Loss]:
    """Baselines of a row, by their names; those that it does not have are left out."""
    plain = ROWS[name][1]
    eager: dict[str, Loss] = {"eager": ROWS[name][0]} if "eager" in wanted else {}
    if plain is softmax_alone:
        return eager or {"softmax": plain}
    kind = "MONAI" if isinstance(plain, nn.Module) else "textbook"
    there: dict[str, Loss] = {kind: plain, "compiled": plain, "softmax": softmax_alone}
    if name == "FusedDiceLoss":
        there["gather"] = gather_dice
    there |= eager
    return {key: torch.compile(there[key]) if key == "compiled" else there[key] for key in wanted if key in there}


def step(loss: Loss, logits: Tensor, labels: Tensor) -> None:
    logits.grad = None
    value = loss(logits, labels)
    value.backward(None if value.ndim == 0 else logits.detach())


def peak_extra_bytes(loss: Loss, logits: Tensor, labels: Tensor) -> int:
    """Highest sum of live allocations during one step, above what was there before."""
    logits.grad = None
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(loss, logits, labels)
        return torch.cuda.max_memory_allocated() - before
    return memory.peak_extra_bytes(lambda: step(loss, logits, labels))


def seconds(loss: Loss, logits: Tensor, labels: Tensor) -> float:
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(loss, logits, labels)
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds_of_copy(tensor: Tensor, rounds: int) -> float:
    """Median time of a copy of a tensor on its GPU."""
    target, times = torch.empty_like(tensor), []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(tensor)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(
    name: str, ours: Loss, against: str, baseline: Loss, logits: Tensor, labels: Tensor, rounds: int
) -> dict[str, int | float | str]:
    """A row: a loss beside its baseline, whose names are `name` and `against`."""
    losses: dict[str, Loss] = {"ours": ours, "baseline": baseline}
    times: dict[str, list[float]] = {key: [] for key in losses}
    for _ in range(2):  # the second lays out the memory as it stays
        for loss in losses.values():
            step(loss, logits, labels)
    for _ in range(rounds):
        for key, loss in losses.items():
            times[key].append(seconds(loss, logits, labels))
    size = logits.numel() * logits.element_size()
    row: dict[str, int | float | str] = {"loss": name, "shape": shape_name(logits.shape), "baseline": against}
    row |= {"dtype": dtype_name(logits.dtype), "labels": dtype_name(labels.dtype)}
    for key, loss in losses.items():
        row[f"{key}_ms"] = round(1e3 * statistics.median(times[key]), 3)
        row[f"{key}_memory"] = round(peak_extra_bytes(loss, logits, labels) / size, 2)
        gc.collect()
    # The ratio of neighbours in time, so that a slow stretch of a shared machine hits both.
    ratios = [mine / theirs for mine, theirs in zip(times["ours"], times["baseline"], strict=True)]
    row["time_ratio"] = round(statistics.median(ratios), 2)
    row["bandwidth"] = ""
    if logits.device.type == "cuda":
        bytes_per_second = 2 * size / seconds_of_copy(logits.detach(), rounds)
        must_move = 3 * size + 2 * labels.numel() * labels.element_size()
        row["bandwidth"] = round(must_move / statistics.median(times["ours"]) / bytes_per_second, 2)
    return row


def left_out(name: str, shape: tuple[int, ...]) -> bool:
    return name in STRUCTURE and shape[1] > MOST_CLASSES_OF_STRUCTURE


def shape_name(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def markdown(rows: list[dict[str, int | float | str]]) -> str:
    """The headlines: per shape our time as a fraction of the baseline's, and the memory of ours and of the baseline.

    Of several types of logits, labels or baselines the first.
    """
    rows = [
        row
        for row in rows
        if row["loss"] in HEADLINES and row["baseline"] in ("MONAI", "textbook")
        if (row["dtype"], row["labels"]) == (rows[0]["dtype"], rows[0]["labels"])
    ]
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
    return f"{loss:>45}" + "".join(f"{number:>15}" for number in numbers)


def shape_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def keep_memory(allocator: str) -> None:
    """Start this process again with an allocator that keeps what is freed, where there is one to set."""
    wanted = allocator == "keep" and platform.libc_ver()[0] == "glibc"
    if wanted and any(os.environ.get(key) != value for key, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed steps per loss and shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="one or more, of the logits")
    parser.add_argument(
        "--label-dtype", nargs="+", default=["float32"], help="one or more; MONAI's data loaders give float32 labels"
    )
    parser.add_argument("--present", type=int, help="how many of the classes the labels hold; default: all")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), help="names of losses; all by default")
    parser.add_argument("--against", nargs="+", choices=AGAINST, default=["MONAI", "textbook"], help="baselines")
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=SHAPES, help="such as 2x4x32x32x32")
    parser.add_argument(
        "--allocator", choices=["keep", "system"], default="keep", help="of memory on the CPU; see above"
    )
    parser.add_argument("--busy", type=int, default=0, help="processes that keep a core busy each, beside this one")
    parser.add_argument("--csv", type=Path, help="also add the rows to this file")
    parser.add_argument("--markdown", type=Path, help="also write the table of the README to this file")
    args = parser.parse_args()
    if args.device == "cpu" and __name__ == "__main__":
        keep_memory(args.allocator)

    where = machine(args.device) | {"busy": args.busy, "allocator": args.allocator}
    title = (
        "{device}, {threads} threads, {busy} busy neighbours, torch {torch}, MONAI {monai}, "
        "loops: {loops}, allocator: {allocator}, {date}"
    ).format(**where)
    print(title)
    print(printed(*COLUMNS))
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    atexit.register(lambda: [neighbour.kill() for neighbour in neighbours])
    rows = []
    for shape, dtype, label_dtype in itertools.product(args.shapes, args.dtype, args.label_dtype):
        torch.manual_seed(0)
        logits = torch.randn(shape, device=args.device, dtype=getattr(torch, dtype), requires_grad=True)
        present = args.present or shape[1]
        labels = torch.randint(0, present, (shape[0], 1, *shape[2:]), device=args.device)
        labels = labels.to(getattr(torch, label_dtype))
        for name in args.only or ROWS:
            if left_out(name, shape):
                continue
            for against, baseline in baselines(name, args.against).items():
                ours = torch.compile(ROWS[name][0]) if against == "eager" else ROWS[name][0]
                row = measure(name, ours, against, baseline, logits, labels, args.rounds)
                row |= {"present": present} | where
                rows.append(row)
                print(printed(*(row[column] for column in COLUMNS)), flush=True)
                if args.csv:
                    add_row(args.csv, row, (*COLUMNS, *WHERE))
    if args.markdown:
        args.markdown.write_text(f"{title}\n\n{markdown(rows)}")


def machine(device: str) -> dict[str, int | float | str]:
    """Where and when something was measured."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU {platform.machine()}",
        "threads": torch.get_num_threads(),
        "loops": loops(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "date": date.today().isoformat(),
    }


def loops() -> str:
    """What compiles the loops of our losses on the CPU, or nothing."""
    found = importlib.util.find_spec("numba") is not None and os.environ.get("MONAI_EXTRA_LOSSES_NUMBA") != "0"
    return f"numba {importlib.metadata.version('numba')}" if found else "none"


def add_row(path: Path, row: Mapping[str, object], columns: Iterable[str]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
