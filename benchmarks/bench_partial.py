"""What partly annotated data cost, and what it costs to train them as if they were whole.

    python benchmarks/bench_partial.py --data HIPPOCAMPUS --out DIR [--epochs 60]
    python benchmarks/bench_partial.py --steps

Of the Decathlon's hippocampus, a fifth of the cases validates, fully annotated. The others are two data sets: one half
has the anterior part annotated alone, the other the posterior; what is not annotated is background in their labels.
`monai-extra-losses pool` makes one data set of all three. Then three trainings of the bundle with its defaults, on the
same cases and folds: the pooled data, which wraps the loss; the same without `annotated` in dataset.json, as if they
were whole; and the labels as they were. Mean and per-class Dice are those of `monai-extra-losses evaluate`, of the
epoch that validated best; that of the last epoch is the validation's.

`--steps` takes no data: time and memory of a step of PartialLabelLoss, half of the classes annotated in each sample,
beside the loss that it wraps, alternating.
"""

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from bench_losses import add_row, keep_memory, machine

from monai_extra_losses import FusedDiceCELoss, PartialLabelLoss

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import memory

HALVES = {"anterior_only": 1, "posterior_only": 2}


def part(source: Path, out: Path, entries: list[dict[str, str]], keep: int | None) -> Path:
    """A data set of some cases, in which one class alone is annotated; None: both are."""
    content = json.loads((source / "dataset.json").read_text())
    names = {int(value): name for value, name in content["labels"].items()}
    out.mkdir(parents=True)
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir()
    for entry in entries:
        image, label = (source / entry[key] for key in ("image", "label"))
        (out / "imagesTr" / image.name).symlink_to(image.resolve())
        stored = nibabel.load(label)
        voxels = np.asarray(stored.dataobj)
        voxels = voxels if keep is None else (voxels == keep).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.uint8), stored.affine), out / "labelsTr" / label.name)
    labels = names if keep is None else {0: "background", 1: names[keep]}
    listed = [
        {"image": f"imagesTr/{Path(e['image']).name}", "label": f"labelsTr/{Path(e['label']).name}"} for e in entries
    ]
    described = {"name": out.name, "modality": content["modality"], "licence": content.get("licence", "CC-BY-SA 4.0")}
    text = json.dumps({**described, "labels": {str(k): v for k, v in labels.items()}, "training": listed})
    (out / "dataset.json").write_text(text)
    return out


def command(*words: Any) -> None:
    subprocess.run([sys.executable, "-m", "monai_extra_losses", *map(str, words)], check=True)


def validated_by(folder: Path, names: set[str]) -> None:
    """Set the cases of these names apart to validate."""
    file = folder / "dataset.json"
    content = json.loads(file.read_text())
    entries = [{key: value for key, value in entry.items() if key != "fold"} for entry in content["training"]]
    apart = [entry for entry in entries if Path(entry["image"]).name in names]
    content["training"], content["validation"] = [e for e in entries if e not in apart], apart
    file.write_text(json.dumps(content, indent=1))


def compare_steps(rounds: int = 15) -> None:
    keep_memory("keep")
    print(", ".join(f"{key} {value}" for key, value in machine("cpu").items()))
    print("| shape | ms | of the loss itself | memory / logits | of the loss |\n|---|---|---|---|---|")
    loss = FusedDiceCELoss(to_onehot_y=True, softmax=True)
    partial = PartialLabelLoss(loss)
    for shape in ((2, 4, 64, 64, 64), (2, 14, 64, 64, 64), (2, 105, 48, 48, 48)):
        torch.manual_seed(0)
        scores, known = torch.randn(shape, requires_grad=True), torch.zeros(shape[:2], dtype=torch.bool)
        known[:, : shape[1] // 2] = True
        labels = torch.randint(0, shape[1] // 2, (shape[0], 1, *shape[2:])).float()

        def step(wrapped: bool, scores: Any = scores, labels: Any = labels, known: Any = known) -> float:
            scores.grad, start = None, time.perf_counter()
            (partial(scores, labels, annotated=known) if wrapped else loss(scores, labels)).backward()
            return time.perf_counter() - start

        times = [(step(True), step(False)) for _ in range(rounds + 1)][1:]
        ratio, own = statistics.median(a / b for a, b in times), statistics.median(a for a, _ in times)
        shares = []
        for wrapped in (True, False):
            scores.grad = None
            shares.append(memory.peak_extra_bytes(lambda w=wrapped: step(w)) / (4 * scores.numel()))
        print(f"| {'x'.join(map(str, shape))} | {1e3 * own:.1f} | {ratio:.2f} | {shares[0]:.2f} | {shares[1]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", action="store_true", help="time steps, and train nothing")
    parser.add_argument("--data", type=Path, help="the hippocampus data set")
    parser.add_argument("--out", type=Path, help="a new folder")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--loss", default="dice_ce")
    parser.add_argument("--csv", type=Path, help="also add the rows to this file")
    args = parser.parse_args()
    if args.steps:
        compare_steps()
        return
    if args.data is None or args.out is None:
        parser.error("expected --data and --out, or --steps.")
    entries = sorted(json.loads((args.data / "dataset.json").read_text())["training"], key=lambda entry: entry["image"])
    apart, rest = entries[::5], [entry for number, entry in enumerate(entries) if number % 5]
    sources = [part(args.data, args.out / "whole", apart, None)]
    sources += [part(args.data, args.out / name, rest[n::2], value) for n, (name, value) in enumerate(HALVES.items())]
    command("pool", *sources, "--out", args.out / "pooled", "--copy", "--folds", 0)
    shutil.copytree(args.out / "pooled", args.out / "as_if_whole")
    file = args.out / "as_if_whole" / "dataset.json"
    content = json.loads(file.read_text())
    for entry in content["training"]:
        del entry["annotated"]
    file.write_text(json.dumps(content, indent=1))
    part(args.data, args.out / "fully_annotated", entries, None)
    names = {Path(entry["image"]).name for entry in apart}
    where = machine("cpu")
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(
        "| training data | mean Dice | anterior | posterior | of the last epoch | minutes |\n|---|---|---|---|---|---|"
    )
    for kind in ("fully_annotated", "pooled", "as_if_whole"):
        validated_by(args.out / kind, names)
        run, start = args.out / "runs" / kind, time.perf_counter()
        command("train", "--data", args.out / kind, "--run", run, "--loss", args.loss, "--epochs", args.epochs)
        minutes = (time.perf_counter() - start) / 60
        command("evaluate", "--run", run, "--overlays", False)
        with (run / "eval" / "summary.csv").open(newline="") as stream:
            dice = {row["label"]: round(float(row["dice_mean"]), 4) for row in csv.DictReader(stream)}
        with (run / "eval" / "training.csv").open(newline="") as stream:
            dice["last"] = round(float([*csv.DictReader(stream)][-1]["val_mean_dice"]), 4)
        row = {"data": kind, "loss": args.loss, "epochs": args.epochs, **dice, "minutes": round(minutes, 1)}
        shown = " | ".join(str(dice[name]) for name in ("mean", "Anterior", "Posterior", "last"))
        print(f"| {kind} | {shown} | {minutes:.1f} |", flush=True)
        if args.csv:
            add_row(args.csv, row | where, [*row, *where])


if __name__ == "__main__":
    main()
