"""Derivatives of the voxel formulas, for the kernels: a third of the operations of differentiating them.

L is log p_t, so dp_t/dL = p_t. A test compares each with the derivative of its formula.
"""

import torch
from torch import Tensor


def focal_slope(log_pt: Tensor, gamma: float) -> Tensor:
    """d/dL (1-p)^gamma (-L) = (1-p)^(gamma-1) (gamma p L - (1-p))."""
    miss = -torch.expm1(log_pt)  # 1 - p_t without cancellation
    inner = (1 - miss).mul_(log_pt).mul_(gamma).sub_(miss)
    if gamma == 2:
        return inner.mul_(miss)
    if gamma < 1:
        miss = miss.clamp_min_(1e-30)  # the power's slope is infinite at 0
    return inner.mul_(miss ** (gamma - 1))


def poly_slope(log_pt: Tensor, epsilon: float) -> Tensor:
    """d/dL (-L + epsilon (1-p)) = -1 - epsilon p."""
    return torch.exp(log_pt).mul_(-epsilon).sub_(1)


def generalized_cross_entropy_slope(log_pt: Tensor, q: float) -> Tensor:
    """d/dL (1 - p^q) / q = -p^q."""
    return torch.exp(q * log_pt).neg_()


def power_slope(log_pt: Tensor, gamma: float, smallest: float) -> Tensor:
    """d/dL max(-L, smallest)^gamma = -gamma (-L)^(gamma-1), 0 where -L is below the smallest."""
    loss = -log_pt
    return torch.where(loss >= smallest, -gamma * loss.clamp_min(smallest) ** (gamma - 1), 0)


def hinge_slope(margin: Tensor) -> Tensor:
    """d/dm max(0, 1-m) = -1 below 1, else 0."""
    return (margin < 1).to(margin.dtype).neg_()


def squared_hinge_slope(margin: Tensor) -> Tensor:
    """d/dm max(0, 1-m)^2 = -2 max(0, 1-m)."""
    return (1 - margin).clamp_min_(0).mul_(-2)
