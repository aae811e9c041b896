"""The voxel-wise losses: each a function f, with its slope f' for the kernels, a third of the work of differentiating.

L is log p_t, the log-probability of the true outcome, so dp_t/dL = p_t; m is a margin of scores. A test compares each
slope with the derivative of its formula. Equal formulas are equal objects, which a compound loss computes once. A
formula without a slope may stand beside its loss: the pass differentiates it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


class Spelled:
    """Base of the terms and formulas, which have a text for compiled graphs: `FocalFormula(2.0)`.

    A subclass is a frozen dataclass. It is found by its name; of two classes of one name the second has no text.
    """

    __slots__ = ()
    by_name: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls) -> None:
        known = Spelled.by_name.setdefault(cls.__name__, cls)
        if (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__):
            Spelled.by_name[cls.__name__] = cls  # a dataclass with slots is made twice


@dataclass(frozen=True, slots=True)
class CrossEntropyFormula(Spelled):
    """-L."""

    slope: ClassVar[float] = -1.0

    def __call__(self, log_pt: Tensor) -> Tensor:
        return -log_pt


@dataclass(frozen=True, slots=True)
class FocalFormula(Spelled):
    """(1-p)^gamma (-L)."""

    gamma: float

    def __call__(self, log_pt: Tensor) -> Tensor:
        miss = -torch.expm1(log_pt)  # 1 - p_t without cancellation
        if self.gamma < 1:
            miss = miss.clamp_min(1e-30)  # the power's gradient is infinite at 0
        return miss**self.gamma * -log_pt

    def slope(self, log_pt: Tensor) -> Tensor:
        """(1-p)^(gamma-1) (gamma p L - (1-p))."""
        miss = -torch.expm1(log_pt)
        # The clamp changes nothing but p L = 0 at p = 0, L = -inf.
        inner = (1 - miss).mul_(log_pt.clamp_min(-1e30)).mul_(self.gamma).sub_(miss)
        if self.gamma == 2:
            return inner.mul_(miss)
        if self.gamma < 1:
            miss = miss.clamp_min_(1e-30)
        return inner.mul_(miss ** (self.gamma - 1))


@dataclass(frozen=True, slots=True)
class SoftFocalFormula(FocalFormula):
    """The same, which for a soft target g of a one-vs-rest decision is not linear in g."""

    def of_soft_target(self, log_p: Tensor, log_not_p: Tensor, g: Tensor) -> Tensor:
        """MONAI's form: log p - log(1-p) is the score x."""
        cross_entropy = -(g * log_p + (1 - g) * log_not_p)
        return cross_entropy * torch.exp(self.gamma * F.logsigmoid((log_not_p - log_p) * (2 * g - 1)))


@dataclass(frozen=True, slots=True)
class PolyFormula(Spelled):
    """-L + epsilon (1-p)."""

    epsilon: float

    def __call__(self, log_pt: Tensor) -> Tensor:
        return -log_pt - self.epsilon * torch.expm1(log_pt)  # 1 - p_t = -expm1(log p_t)

    def slope(self, log_pt: Tensor) -> Tensor:
        """-1 - epsilon p."""
        return torch.exp(log_pt).mul_(-self.epsilon).sub_(1)


@dataclass(frozen=True, slots=True)
class GeneralizedCrossEntropyFormula(Spelled):
    """(1 - p^q) / q."""

    q: float

    def __call__(self, log_pt: Tensor) -> Tensor:
        return -torch.expm1(self.q * log_pt) / self.q

    def slope(self, log_pt: Tensor) -> Tensor:
        """-p^q."""
        return torch.exp(self.q * log_pt).neg_()


@dataclass(frozen=True, slots=True)
class PowerFormula(Spelled):
    """max(-L, 1e-7)^gamma: the power's gradient is infinite at p = 1."""

    gamma: float
    smallest: ClassVar[float] = 1e-7

    def __call__(self, log_pt: Tensor) -> Tensor:
        return (-log_pt).clamp_min(self.smallest) ** self.gamma

    def slope(self, log_pt: Tensor) -> Tensor:
        """-gamma (-L)^(gamma-1), 0 where -L is below the smallest."""
        loss = -log_pt
        return torch.where(loss >= self.smallest, -self.gamma * loss.clamp_min(self.smallest) ** (self.gamma - 1), 0)


@dataclass(frozen=True, slots=True)
class HingeFormula(Spelled):
    """max(0, 1-m)."""

    def __call__(self, margin: Tensor) -> Tensor:
        return F.relu(1 - margin)

    def slope(self, margin: Tensor) -> Tensor:
        """-1 below 1, else 0."""
        return (margin < 1).to(margin.dtype).neg_()


@dataclass(frozen=True, slots=True)
class SquaredHingeFormula(Spelled):
    """max(0, 1-m)^2."""

    def __call__(self, margin: Tensor) -> Tensor:
        return F.relu(1 - margin) ** 2

    def slope(self, margin: Tensor) -> Tensor:
        """-2 max(0, 1-m)."""
        return (1 - margin).clamp_min_(0).mul_(-2)
