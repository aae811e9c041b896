"""The kernels of a softmax of two classes, where everything is a function of z = x_1 - x_0.

p_1 = sigmoid(z), log p_t = logsigmoid(+-z), and the gradients of the two channels are d and -d.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.ops.call_data import Voxels
from monai_extra_losses.ops.kernels.slab import (
    Kernel,
    Parts,
    Slab,
    add_bin_sums,
    add_cell_sums,
    bin_gradient,
    cell_gradient,
    is_hard,
    power,
    slope_at,
    total,
)
from monai_extra_losses.ops.terms import (
    Activation,
    BinSums,
    CellSums,
    CountSums,
    ErrorSums,
    LogSums,
    OutcomeSums,
    TargetSums,
    Term,
    TrueClassSums,
    VoxelMap,
    VoxelSums,
)
from monai_extra_losses.ops.wrong_targets import WrongLabelsError


class TwoClassSlab(Slab):
    """A slab of two classes under a softmax. Part of the gradient: `d` (b, m), dL/dx_1 without the voxels' weights."""

    activation: ClassVar[Activation] = "softmax"

    def __init__(self, v: Voxels, p: Tensor | None = None, *, by_index: bool = False) -> None:
        assert v.labels is not None
        self.x, self.w = v.scores, v.weight
        self.z = v.scores[:, 1] - v.scores[:, 0]
        self.g = v.labels.to(self.z.dtype)

    @classmethod
    def computes(cls, terms: Sequence[Term], channels: int) -> bool:
        return channels == 2 and super().computes(terms, channels)

    @cached_property
    def p(self) -> Tensor:
        """(b, m) probability of class 1."""
        return torch.sigmoid(self.z)

    @cached_property
    def volume(self) -> Tensor:
        """(b,) sum g of class 1."""
        return self.total(self.g)

    @cached_property
    def count(self) -> Tensor:
        """(b,) sum 1."""
        return torch.full_like(self.volume, self.z.shape[1]) if self.w is None else total(self.w)

    @cached_property
    def log_true(self) -> Tensor:
        """(b, m) log p_t."""
        return F.logsigmoid((2 * self.g - 1) * self.z)

    @cached_property
    def error(self) -> Tensor:
        """(b, m) |p - g|, the same for both channels."""
        return torch.sigmoid((1 - 2 * self.g) * self.z)

    def check(self) -> None:
        if self.g.device.type == "cpu":
            compared = torch.empty_like(self.g)  # in floats: see `FewLabels`
            of_classes = sum(torch.eq(self.g, label, out=compared).sum().item() for label in (0, 1))
            if of_classes != self.g.numel():
                raise WrongLabelsError

    def write_gradient(self, parts: Parts, out: Tensor) -> None:
        d = self.weighted(parts["d"])
        torch.neg(d, out=out[:, 0])
        out[:, 1] = d

    def total(self, values: Tensor) -> Tensor:
        """(b,) weighted sums over the voxels."""
        return total(values if self.w is None else values * self.w)

    def both(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(b,) weighted sums of (b, m) over the voxels of class 0 and of class 1."""
        positive = self.total(values * self.g)
        return self.total(values) - positive, positive

    def at(self, factors: Tensor) -> Tensor:
        """(b, m) factor of each voxel's class, of (b, 2)."""
        lower, upper = factors.to(self.z).unsqueeze(2).unbind(1)
        return self.g * (upper - lower) + lower

    def of_loss(self, sums: VoxelSums) -> Tensor:
        """(b, m) f'(log p_t) (g - p)."""
        return (self.g - self.p).mul_(slope_at(sums, lambda: self.log_true))


def _rows(*rows: Tensor) -> Tensor:
    """(rows, b, 2) of the (b,) sums of class 0 and class 1, row after row."""
    stacked: Tensor = torch.stack(rows, -1).unflatten(-1, (-1, 2))
    return stacked.movedim(1, 0)


def _target_sums(slab: TwoClassSlab, term: TargetSums, out: Tensor) -> None:
    n, volume = slab.count, slab.volume
    out += _rows(n - volume, volume, n, n)


def _count_sums(slab: TwoClassSlab, term: CountSums, out: Tensor) -> None:
    n, volume = slab.count, slab.volume
    overlap, of_p = slab.total(slab.p * slab.g), slab.total(slab.p)
    rows = [n - of_p - volume + overlap, overlap, n - of_p, of_p]
    if term.squares:
        square = slab.total(slab.p * slab.p)
        rows += [n - 2 * of_p + square, square, n - volume, volume]  # (1-p)^2 = 1 - 2p + p^2
    out += _rows(*rows)


def _count_gradient(slab: TwoClassSlab, term: CountSums, grad: Tensor) -> Parts:
    true, base = (row.unsqueeze(2).unbind(1) for row in grad[:2])
    # dL/dp_1 - dL/dp_0 = constant + slope g (+ curve p)
    d = slab.g * (true[0] + true[1])
    d += base[1] - base[0] - true[0]
    if term.squares:
        square = grad[2].unsqueeze(2).unbind(1)
        d += slab.p * (2 * (square[0] + square[1]))
        d -= 2 * square[0]
    return {"d": d.mul_(torch.addcmul(slab.p, slab.p, slab.p, value=-1))}


def _log_sums(slab: TwoClassSlab, term: LogSums, out: Tensor) -> None:
    out += _rows(slab.total(F.logsigmoid(-slab.z)), slab.total(F.logsigmoid(slab.z)))


def _log_gradient(slab: TwoClassSlab, term: LogSums, grad: Tensor) -> Parts:
    lower, upper = grad[0].unsqueeze(2).unbind(1)
    return {"d": upper - (lower + upper) * slab.p}


def _of_both_channels(slab: TwoClassSlab, loss: Tensor, out: Tensor) -> None:
    """Both channels have the same error, and log(1-p_c) of the wrong class is log p_t."""
    negative, positive = slab.both(loss)
    out += _rows(negative, positive, positive, negative)


def _error_sums(slab: TwoClassSlab, term: ErrorSums, out: Tensor) -> None:
    _of_both_channels(slab, power(slab.error, term.power), out)


def _error_gradient(slab: TwoClassSlab, term: ErrorSums, grad: Tensor) -> Parts:
    d = power(slab.error, term.power).mul_(1 - slab.error).mul_(1 - 2 * slab.g)
    return {"d": d.mul_(slab.at(term.power * (grad[0] + grad[1].flip(1))))}


def _outcome_sums(slab: TwoClassSlab, term: OutcomeSums, out: Tensor) -> None:
    _of_both_channels(slab, term.formula(slab.log_true), out)


def _outcome_gradient(slab: TwoClassSlab, term: OutcomeSums, grad: Tensor) -> Parts:
    return {"d": slab.of_loss(term).mul_(slab.at(grad[0] + grad[1].flip(1)))}


def _true_class_sums(slab: TwoClassSlab, term: TrueClassSums, out: Tensor) -> None:
    loss = term.formula(slab.log_true)
    if term.by_class:
        out[0].add_(torch.stack(slab.both(loss), 1))
    else:
        out[0, :, 0].add_(slab.total(loss))


def _true_class_gradient(slab: TwoClassSlab, term: TrueClassSums, grad: Tensor) -> Parts:
    return {"d": slab.of_loss(term).mul_(slab.at(grad[0]) if term.by_class else grad[0, :, :1])}


def _map(slab: TwoClassSlab, term: VoxelMap, out: Tensor) -> None:
    loss = term.sums.formula(slab.log_true)
    if term.positive is not None:
        loss = loss * slab.at(term.positive.expand(len(loss), 2))
    if slab.w is not None:
        loss = loss * slab.w
    if term.spread:
        torch.mul(loss, slab.g, out=out[:, 1])
        torch.sub(loss, out[:, 1], out=out[:, 0])
    else:
        out[:, 0] = loss


def _map_gradient(slab: TwoClassSlab, term: VoxelMap, grad: Tensor) -> Parts:
    d = slab.of_loss(term.sums)
    d *= torch.lerp(grad[:, 0], grad[:, 1], slab.g) if term.spread else grad[:, 0]
    return {"d": d if term.positive is None else d.mul_(slab.at(term.positive.expand(len(d), 2)))}


def _of_kept(first: int, upper: Tensor) -> Tensor:
    """(b, C', m) p or g of both classes, or of class 1 alone, from that of class 1."""
    return upper.unsqueeze(1) if first else torch.stack([1 - upper, upper], 1)


def _cell_sums(slab: TwoClassSlab, term: CellSums, out: Tensor) -> None:
    p, inside = _of_kept(term.first, slab.p), _of_kept(term.first, slab.g)
    add_cell_sums(term, out, p, slab.log_true.unsqueeze(1).expand_as(p), inside, slab.w)


def _cell_gradient(slab: TwoClassSlab, term: CellSums, grad: Tensor) -> Parts:
    by_p, by_log = cell_gradient(term, grad, _of_kept(term.first, slab.g))
    d = by_p[:, -1] if term.first else by_p[:, 1] - by_p[:, 0]
    d = d * torch.addcmul(slab.p, slab.p, slab.p, value=-1)
    return {"d": d.addcmul_(slab.g - slab.p, by_log.sum(1))}


def _bin_sums(slab: TwoClassSlab, term: BinSums, out: Tensor) -> None:
    add_bin_sums(term, out, _of_kept(0, slab.p), _of_kept(0, slab.g), slab.w)


def _bin_gradient(slab: TwoClassSlab, term: BinSums, grad: Tensor) -> Parts:
    lower, upper = bin_gradient(term, grad, _of_kept(0, slab.p)).unbind(1)
    return {"d": (upper - lower).mul_(torch.addcmul(slab.p, slab.p, slab.p, value=-1))}


def _most(term: Term, channels: int) -> int:
    return 14


TwoClassSlab.kernels = {
    TargetSums: Kernel(_target_sums, None, floats=lambda term, channels: 6),
    CountSums: Kernel(_count_sums, _count_gradient, floats=lambda term, channels: 6),
    LogSums: Kernel(_log_sums, _log_gradient, floats=_most),
    ErrorSums: Kernel(_error_sums, _error_gradient, floats=_most),
    OutcomeSums: Kernel(_outcome_sums, _outcome_gradient, floats=_most),
    TrueClassSums: Kernel(_true_class_sums, _true_class_gradient, floats=_most),
    BinSums: Kernel(_bin_sums, _bin_gradient, floats=lambda term, channels: 24, takes=is_hard),
    CellSums: Kernel(_cell_sums, _cell_gradient, floats=lambda term, channels: 10 * (2 - term.first)),
    VoxelMap: Kernel(
        _map,
        _map_gradient,
        floats=_most,
        takes=lambda term: type(term.sums) is TrueClassSums and not term.smoothing,
    ),
}
