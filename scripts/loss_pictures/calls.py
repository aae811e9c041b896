"""Calls of losses that give a value and what the gradient does to the scores."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]


def value_and_push(loss: nn.Module, scores: Tensor, target: Tensor, **others: Tensor) -> tuple[float, Array]:
    """The loss, and by how much a step of gradient descent moves each score: minus the gradient.

    Args:
        loss: reads the scores.
        scores: of any shape that it takes.
        target: likewise.
        **others: further arguments.
    """
    leaf = scores.detach().clone().double().requires_grad_()
    value = loss(leaf, target, **others)
    (gradient,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), -gradient.numpy()


def logit(p: Array | float) -> Tensor:
    """The score of a probability."""
    return torch.as_tensor(np.asarray(p, float)).logit()
