"""What a trap is, and the small tensors that show it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_extra_losses import losses


@dataclass(frozen=True)
class Trap:
    """A value of a library that is not what its reader expects.

    Args:
        loss: page of the loss here.
        name: the library's name of it, with the options that matter.
        sentence: "Error: ..." where code and its own words, or its formula, disagree; "Default: ..." and "Meaning: ..."
            where it does as it says, and something else than the same words mean elsewhere.
        case: the data.
        theirs: what the library gives.
        right: this package's value in float64, or the formula's.
    """

    loss: str
    name: str
    sentence: str
    case: str
    theirs: object
    right: object


Traps = Iterator[Trap]


def ours(name: str, scores: Tensor, target: Tensor, **options: Any) -> Tensor:
    """The value of a loss of this package, in float64."""
    return getattr(losses, name)(**options)(scores.double(), target)


def row(*values: float) -> Tensor:
    """One sample, one channel, one row of voxels: (1, 1, 1, N)."""
    return torch.tensor([float(value) for value in values]).view(1, 1, 1, -1)


def block(size: int, *boxes: tuple[slice, slice]) -> Tensor:
    """Labels (1, 1, size, size): box k has label k + 1."""
    labels = torch.zeros(1, 1, size, size, dtype=torch.int64)
    for number, box in enumerate(boxes, start=1):
        labels[0, 0][box] = number
    return labels


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, 1, *spatial) labels as (B, classes, *spatial) floats."""
    return torch.nn.functional.one_hot(labels[:, 0], classes).movedim(-1, 1).float()


def sure(labels: Tensor, classes: int) -> Tensor:
    """Scores whose softmax is these labels, up to 1e-8."""
    return 20.0 * one_hot(labels, classes)
