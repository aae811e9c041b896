"""What a loss gives in corner cases, found by running it: rows of a table, the same on any machine."""

import inspect
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from monai_extra_losses import losses

SIDE = 16
LARGE = 512  # more voxels than the largest number of float16, 65504
CERTAIN = 20.0  # of a sigmoid 1 - 2e-9

Case = tuple[str, Tensor, Tensor, Tensor | None]
Rows = list[list[str]]

ELSEWHERE = {
    "CompoundLoss": "Those of its parts.",
    "HeadLoss": "Those of the loss that it is given.",
    "PartialLabelLoss": "Those of the loss that it is given, with q in place of p. A class that is not annotated costs "
    "nothing where the label says background.",
}
# How a loss is made where its defaults do not do: the classes, and its options.
OF_CLASSES: dict[str, tuple[int, dict[str, Any]]] = {
    "CategoricalHingeLoss": (2, {"to_onehot_y": True}),
    "TopologicalInteractionLoss": (3, {"to_onehot_y": True, "softmax": True, "exclusion": [[1, 2]]}),
}


def corner_cases(name: str, family: str) -> tuple[str, Rows]:
    """What was run, and the rows: case, value, largest slope."""
    if name in ELSEWHERE:
        return ELSEWHERE[name], []
    if family == "regression":
        loss, cases = getattr(losses, name)(), regression_cases(name)
        about = (
            f"`{name}()`, run in float32 on {SIDE} x {SIDE} voxels of 2 channels, whose targets are 0.2 and 0.8, if "
            "not said otherwise."
        )
    else:
        classes, options = OF_CLASSES.get(name, (1, _of_a_region(name)))
        loss, cases = getattr(losses, name)(**options), segmentation_cases(classes)
        shown = ", ".join(f"{option}={value!r}" for option, value in options.items())
        of = "one channel" if classes == 1 else f"{classes} classes"
        about = (
            f"`{name}({shown})`, run in float32 on {SIDE} x {SIDE} voxels of {of} with an object of 6 x 6 voxels, if "
            f"not said otherwise. A certain score is {CERTAIN:g}, or -{CERTAIN:g}."
        )
    about += " The slope is the largest |∂L/∂x| of any input x."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return about, [[what, *_run(loss, *given)] for what, *given in cases]


def _of_a_region(name: str) -> dict[str, Any]:
    known = inspect.signature(getattr(losses, name)).parameters
    return {"sigmoid": True} if "sigmoid" in known else {}


def _object(*shape: int) -> Tensor:
    labels = torch.zeros(1, 1, *shape)
    labels[..., 5:11, 5:11] = 1
    return labels


def _scores(labels: Tensor, classes: int, size: float) -> Tensor:
    """Scores of this size for the labels, and of the other sign against them."""
    if classes == 1:
        return size * (2 * labels - 1)
    return torch.cat([size * (2.0 * (labels == c) - 1) for c in range(classes)], 1)


def segmentation_cases(classes: int) -> Iterator[Case]:
    """Name, scores, target and mask."""
    here = _object(SIDE, SIDE)
    if classes > 2:
        here[..., 5:11, 11:13] = 2  # it touches the object
    nothing = torch.zeros_like(here)
    wrong = 1 - here if classes < 3 else (here + 1) % classes
    one = nothing.clone()
    one[..., 8, 8] = 1
    undecided = torch.zeros(1, classes, SIDE, SIDE)
    yield "perfect prediction, certain", _scores(here, classes, CERTAIN), here, None
    yield "every voxel wrong, certain", _scores(wrong, classes, CERTAIN), here, None
    yield "scores 0 everywhere", undecided, here, None
    yield "class absent, not predicted", _scores(nothing, classes, CERTAIN), nothing, None
    yield "class absent, scores 0 everywhere", undecided, nothing, None
    yield "object of one voxel, missed", _scores(nothing, classes, CERTAIN), one, None
    yield "everything masked", undecided, here, nothing
    yield "perfect prediction, scores of ±1000", _scores(here, classes, 1000.0), here, None
    yield "every voxel wrong, scores of ±1000", _scores(wrong, classes, 1000.0), here, None
    large = torch.zeros(1, 1, LARGE, LARGE)
    large[..., : LARGE // 2] = 1
    blank = torch.zeros(1, classes, LARGE, LARGE)
    yield f"{LARGE} x {LARGE} voxels, half of them object, scores 0", blank, large, None
    yield "the same, scores in float16", blank.half(), large, None


def regression_cases(name: str) -> Iterator[Case]:
    """Name, prediction, target and mask."""
    y = torch.tensor([0.2, 0.8]).view(1, 2, 1, 1).expand(1, 2, SIDE, SIDE).contiguous()
    zero, half = torch.zeros_like(y), torch.full_like(y, 0.5)
    mask = torch.zeros(1, 1, SIDE, SIDE)
    yield "perfect prediction", y, y, None
    yield "prediction 0.5 everywhere", half, y, None
    yield "channels swapped", y.flip(1), y, None
    yield "target 0, prediction 0.5", half, zero, None
    yield "everything masked", half, y, mask
    yield "prediction 1000 everywhere", torch.full_like(y, 1000.0), y, None
    if name not in ("KLDivergenceLoss", "PoissonLoss"):  # of a probability or a rate
        yield "prediction -1000 everywhere", torch.full_like(y, -1000.0), y, None
    yield "prediction 0.5 in float16", half.half(), y.half(), None


def _run(loss: nn.Module, scores: Tensor, target: Tensor, mask: Tensor | None) -> tuple[str, str]:
    leaf = scores.detach().clone().requires_grad_()
    value = loss(leaf, target, mask)
    (slope,) = torch.autograd.grad(value, leaf)
    return number(value.item()), number(slope.abs().max().item()) if slope.isfinite().all() else "not finite"


def number(value: float) -> str:
    """Three digits or more, of five, so that rounding errors decide nothing; 0 is 0 alone."""
    short = float(f"{value:.5g}")
    if short == 0 or not math.isfinite(short):
        return f"{short:g}"
    if abs(short) < 1e-6:
        return "below 1e-6"
    if abs(short) >= 1000:
        return f"{short:.0f}"
    return f"{short:.3g}" if abs(short) >= 1e-3 else f"{short:.1e}"
