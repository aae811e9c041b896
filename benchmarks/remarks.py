"""Print what we say of other libraries' losses and components, from those libraries as they are installed.

Alone it prints the remarks of docstrings; a library that is missing is named and left out:

    pip install kornia keras PYMIC nnunetv2 segmentation-models-pytorch pytorch-toolbelt

    python benchmarks/remarks.py --csv docs/losses/public_code.csv       # traps: their value, the right one
    python benchmarks/remarks.py --equalities benchmarks/equalities.csv  # what equals what, and by how much

The two tables are written where every library is installed.
"""

import argparse
import csv
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from public_code import (
    equalities,
    of_keras,
    of_kornia,
    of_monai,
    of_nnunet,
    of_pymic,
    of_smp,
    of_toolbelt,
    of_torch,
    of_torchmetrics,
)
from public_code.trap import Trap
from torch import Tensor

from monai_extra_losses import losses

os.environ.setdefault("KERAS_BACKEND", "torch")
Remarks = Iterator[tuple[str, object]]


def monai_unified_focal(monai_losses: Any) -> Remarks:
    torch.manual_seed(0)
    p, labels = torch.rand(2, 3, 4, 4), torch.randint(0, 3, (2, 1, 4, 4))
    p = p / p.sum(1, keepdim=True)

    def loss(x: Tensor, **options: Any) -> Tensor:
        return monai_losses.AsymmetricUnifiedFocalLoss(num_classes=3, to_onehot_y=True, **options)(x, labels)

    yield "AsymmetricUnifiedFocalLoss of scores -5 to 5, which it takes as probabilities", loss(10 * p - 5)
    yield "shapes of reduction='none' and 'sum'", [tuple(loss(p, reduction=r).shape) for r in ("none", "sum")]
    third = p.clone()
    third[:, 2] = 0.123
    yield "change with another third class", (loss(third) - loss(p)).abs()


def keras_losses(keras: Any) -> Remarks:
    scores, true_first = torch.tensor([[-5.0, -9.0, -9.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    ours = losses.CategoricalHingeLoss()(scores.unsqueeze(-1), true_first.unsqueeze(-1))
    yield "CategoricalHinge of scores -5 (true), -9, -9", keras.losses.CategoricalHinge()(true_first, scores)
    yield "ours", ours
    yield "CosineSimilarity of a perfect prediction", keras.losses.CosineSimilarity()(true_first, true_first)
    x, y = torch.rand(2, 3, 4, 5) + 0.5, torch.rand(2, 3, 4, 5) + 0.5
    for name in ("MeanSquaredLogarithmicError", "MeanAbsolutePercentageError", "LogCosh"):
        ours = getattr(losses, f"{name}Loss")()(x, y)
        yield f"{name}, less ours", (getattr(keras.losses, name)()(y, x) - ours).abs()


def kornia_erosion(kornia_losses: Any) -> Remarks:
    labels = torch.zeros(1, 1, 16, 16, dtype=torch.int64)
    labels[..., 3:10, 4:12] = 1
    p = torch.cat([1.0 - labels, 1.0 * labels], 1).roll(4, 3) * 0.9 + 0.05
    theirs = kornia_losses.HausdorffERLoss()(p, labels)
    yield "HausdorffERLoss, less ours", (theirs - losses.HausdorffERLoss(to_onehot_y=True)(p, labels)).abs()


def pymic_noise_robust(dice: Any) -> Remarks:
    p, g = torch.tensor([0.8, 0.3]).view(1, 1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    theirs = dice.NoiseRobustDiceLoss({"noiserobustdiceloss_gamma": 1.5, "loss_acti_func": "sigmoid"})
    theirs = theirs({"prediction": p.logit(), "ground_truth": g})
    errors = ((p - g).abs() ** 1.5).sum()
    yield "NoiseRobustDiceLoss of p = 0.8, 0.3 and g = 1, 0", theirs
    yield "errors / (sum p + sum g)", errors / (p.sum() + g.sum())
    yield "errors / (sum p^2 + sum g^2), ours", losses.NoiseRobustDiceLoss()(p, g)


def cc3d_of_bool(cc3d: Any) -> Remarks:
    random = np.random.default_rng(0)
    masks = [random.random((20, 21)) < random.random() / 2 for _ in range(300)]
    for kind in (np.bool_, np.uint8):
        wrong = sum(bool(((cc3d.connected_components(m.astype(kind), connectivity=8) > 0) != m).any()) for m in masks)
        yield f"of 300 random 2D masks as {kind.__name__}, those with a component in the background", wrong


# Module, the distribution that has it, and what is said of it.
REMARKS: list[tuple[str, str, Callable[[Any], Remarks]]] = [
    ("monai.losses", "monai", monai_unified_focal),
    ("keras", "keras", keras_losses),
    ("kornia.losses", "kornia", kornia_erosion),
    ("pymic.loss.seg.dice", "PYMIC", pymic_noise_robust),
    ("cc3d", "connected-components-3d", cc3d_of_bool),
]


def pymic_losses() -> SimpleNamespace:
    """PyMIC's modules as one."""
    modules = [importlib.import_module(f"pymic.loss.seg.{name}") for name in ("dice", "ce", "exp_log")]
    return SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})


# Library, its distribution, the module of its losses, and the traps in them.
TRAPS: list[tuple[str, str, str, Callable[[Any], Iterator[Trap]]]] = [
    ("MONAI", "monai", "monai.losses", of_monai.traps),
    ("PyTorch", "torch", "torch.nn", of_torch.traps),
    ("torchmetrics", "torchmetrics", "torchmetrics.segmentation", of_torchmetrics.traps),
    ("nnU-Net", "nnunetv2", "nnunetv2.training.loss.compound_losses", of_nnunet.traps),
    (
        "segmentation_models_pytorch",
        "segmentation-models-pytorch",
        "segmentation_models_pytorch.losses",
        of_smp.traps,
    ),
    ("Keras", "keras", "keras", of_keras.traps),
    ("kornia", "kornia", "kornia.losses", of_kornia.traps),
    ("PyMIC", "PYMIC", "pymic.loss.seg", of_pymic.traps),
    ("pytorch-toolbelt", "pytorch-toolbelt", "pytorch_toolbelt.losses", of_toolbelt.traps),
]
NAMES = {distribution: library for library, distribution, *_ in TRAPS}
COLUMNS = ("loss", "library", "version", "name", "trap", "case", "theirs", "right")
EQUAL_COLUMNS = ("library", "version", "theirs", "ours", "difference")


def is_installed(module: str) -> bool:
    """Whether the package of a module is there."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def version_of(distribution: str) -> str:
    """Without what a build adds to it, such as +cpu."""
    return version(distribution).partition("+")[0]


def loaded(module: str) -> Any:
    """A library's losses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pymic_losses() if module == "pymic.loss.seg" else importlib.import_module(module)


def trap_rows(library: str) -> list[dict[str, str]]:
    """The traps of a library, as rows of the table."""
    _, distribution, module, traps = next(entry for entry in TRAPS if entry[0] == library)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trap in traps(loaded(module)):
            numbers = (rounded(trap.theirs), rounded(trap.right))
            values = (trap.loss, library, version_of(distribution), trap.name, trap.sentence, trap.case, *numbers)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def equality_rows(distribution: str) -> list[dict[str, str]]:
    """What of a library equals what of this package, as rows of a table."""
    module, _, equal = next(entry for entry in equalities.EQUALITIES if entry[1] == distribution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            dict(
                zip(
                    EQUAL_COLUMNS,
                    (distribution, version_of(distribution), pair.theirs, pair.ours, f"{pair.difference:.0e}"),
                    strict=True,
                )
            )
            for pair in equal(loaded(module))
        ]


def rounded(value: object) -> str:
    """A number with four digits, what is below a rounding error as 0, a word as it is."""
    if isinstance(value, str):
        return value
    number = float(value.item() if isinstance(value, Tensor) else value)  # type: ignore[arg-type]
    return f"{0.0 if abs(number) < 1e-6 else number:.4g}"


def write(path: Path, columns: Sequence[str], rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def shown(value: object) -> str:
    return f"{value.item():.6g}" if isinstance(value, Tensor) else str(value)


def print_remarks() -> None:
    for module, distribution, remarks in REMARKS:
        try:
            library = importlib.import_module(module)
        except ImportError as error:
            print(f"{distribution}: left out: {error}")
            continue
        print(f"{distribution} {version(distribution)}")
        for what, value in remarks(library):
            print(f"  {what}: {shown(value)}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What we say of other libraries, from those libraries.")
    parser.add_argument("--csv", type=Path, help="write the traps of public code to this file")
    parser.add_argument("--equalities", type=Path, help="write what equals what to this file")
    options = parser.parse_args(arguments)
    if options.csv is None and options.equalities is None:
        print_remarks()
        return
    if missing := [distribution for _, distribution, module, _ in TRAPS if not is_installed(module)]:
        parser.error(f"expected every library, missing {', '.join(missing)}: install them, or the table loses rows.")
    if options.csv is not None:
        rows = [row for library, *_ in TRAPS for row in trap_rows(library)]
        write(options.csv, COLUMNS, sorted(rows, key=lambda row: row["loss"]))
    if options.equalities is not None:
        pairs = [row for _, distribution, _ in equalities.EQUALITIES for row in equality_rows(distribution)]
        write(options.equalities, EQUAL_COLUMNS, pairs)


if __name__ == "__main__":
    main()
