"""The kernels under a sigmoid: every channel is a decision of its own.

dL/dx = p (1-p) dL/dp. With L = log-probability of a channel's outcome: d logsigmoid(-x)/dx = -p = -(1 - p_t), and
+(1 - p_t) at the true class.
"""

from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.ops.kernels.slab import (
    Kernel,
    Parts,
    ProbabilitySlab,
    add_bin_sums,
    add_cell_sums,
    bin_gradient,
    cell_gradient,
    count_sums,
    factors_of,
    is_differentiated,
    is_hard,
    map_gradient,
    map_sums,
    power,
    slope_at,
    target_sums,
)
from monai_extra_losses.ops.terms import (
    Activation,
    BinSums,
    CellSums,
    CountSums,
    ErrorSums,
    MapSums,
    OutcomeSums,
    TargetSums,
    VoxelMap,
    VoxelSums,
)


class SigmoidSlab(ProbabilitySlab):
    """A slab under a sigmoid. Part of the gradient: `d` (b, C, m), dL/dx without the voxels' weights."""

    activation: ClassVar[Activation] = "sigmoid"

    @cached_property
    def p(self) -> Tensor:
        return torch.sigmoid(self.x)

    def log_true(self) -> Tensor:
        """(b, C, m) log-probability of each channel's outcome."""
        return F.logsigmoid(self.labels.outcome(self.x))

    def error(self) -> Tensor:
        """(b, C, m) |p - g|, the probability of the other outcome."""
        return torch.sigmoid(self.labels.outcome(self.x).neg_())

    def curve(self) -> Tensor:
        """(b, C, m) p (1-p) = dp/dx."""
        return torch.addcmul(self.p, self.p, self.p, value=-1)

    def log_slope(self, sums: VoxelSums) -> Tensor:
        """(b, C, m) -(1 - p_t) f'(log p_t)."""
        log_true = self.log_true()
        return torch.expm1(log_true).mul_(slope_at(sums, lambda: log_true))

    def write_gradient(self, parts: Parts, out: Tensor) -> None:
        out.copy_(self.weighted(parts["d"]))


def _count_gradient(slab: SigmoidSlab, term: CountSums, grad: Tensor) -> Parts:
    d = slab.curve()
    of_squares = (d * slab.p).mul_(2 * grad[2].unsqueeze(2)) if term.squares else None
    slab.labels.scale(d, grad[0] + grad[1], grad[1])
    return {"d": d if of_squares is None else d.add_(of_squares)}


def _error_sums(slab: SigmoidSlab, term: ErrorSums, out: Tensor) -> None:
    slab.by_outcome(power(slab.error(), term.power), out)


def _error_gradient(slab: SigmoidSlab, term: ErrorSums, grad: Tensor) -> Parts:
    """dL/dx = q e^q (1-e), with e = |p - g|; negative at the true class."""
    error = slab.error()
    d = power(error, term.power).mul_(1 - error).mul_(term.power)
    return {"d": slab.labels.scale(d, -grad[0], grad[1])}


def _outcome_sums(slab: SigmoidSlab, term: OutcomeSums, out: Tensor) -> None:
    slab.by_outcome(term.formula(slab.log_true()), out)


def _outcome_gradient(slab: SigmoidSlab, term: OutcomeSums, grad: Tensor) -> Parts:
    return {"d": slab.labels.scale(slab.log_slope(term), -grad[0], grad[1])}


def _map_of_outcomes(slab: SigmoidSlab, term: VoxelMap, out: Tensor) -> None:
    loss = term.sums.formula(slab.log_true())
    if term.positive is not None or term.negative is not None:
        loss = slab.labels.scale(loss, *factors_of(term, loss))
    out.copy_(slab.weighted(loss))


def _gradient_of_map(slab: SigmoidSlab, term: VoxelMap, grad: Tensor) -> Parts:
    d = slab.log_slope(term.sums).mul_(grad)
    positive, negative = factors_of(term, d)
    return {"d": slab.labels.scale(d, -positive, negative)}


def _map_gradient(slab: SigmoidSlab, term: MapSums, grad: Tensor) -> Parts:
    return {"d": map_gradient(slab, term, grad).mul_(slab.curve())}


def _cell_sums(slab: SigmoidSlab, term: CellSums, out: Tensor) -> None:
    inside = slab.labels.of_classes_from(term.first)
    add_cell_sums(term, out, slab.p[:, term.first :], slab.log_true()[:, term.first :], inside, slab.w)


def _cell_gradient(slab: SigmoidSlab, term: CellSums, grad: Tensor) -> Parts:
    inside = slab.labels.of_classes_from(term.first)
    by_p, by_log = cell_gradient(term, grad, inside)
    d, kept = torch.zeros_like(slab.x), slice(term.first, None)
    torch.mul(slab.curve()[:, kept], by_p, out=d[:, kept])
    error = slab.error()[:, kept]
    d[:, kept].addcmul_(torch.where(inside, error, -error), by_log)
    return {"d": d}


def _bin_sums(slab: SigmoidSlab, term: BinSums, out: Tensor) -> None:
    add_bin_sums(term, out, slab.p, slab.labels.of_classes_from(0), slab.w)


def _bin_gradient(slab: SigmoidSlab, term: BinSums, grad: Tensor) -> Parts:
    return {"d": bin_gradient(term, grad, slab.p).mul_(slab.curve())}


def _floats_of_formula(term: OutcomeSums | VoxelMap, channels: int) -> int:
    return (13 if is_differentiated(term) else 5) * channels


SigmoidSlab.kernels = {
    TargetSums: Kernel(target_sums, None),
    CountSums: Kernel(count_sums, _count_gradient, floats=lambda term, channels: 5 * channels),
    ErrorSums: Kernel(_error_sums, _error_gradient, floats=lambda term, channels: 5 * channels),
    MapSums: Kernel(map_sums, _map_gradient, floats=lambda term, channels: 5 * channels),
    OutcomeSums: Kernel(_outcome_sums, _outcome_gradient, floats=_floats_of_formula),
    BinSums: Kernel(_bin_sums, _bin_gradient, floats=lambda term, channels: 12 * channels, takes=is_hard),
    CellSums: Kernel(_cell_sums, _cell_gradient, floats=lambda term, channels: 16 * channels),
    VoxelMap: Kernel(
        _map_of_outcomes,
        _gradient_of_map,
        floats=_floats_of_formula,
        takes=lambda term: type(term.sums) is OutcomeSums and not term.smoothing,
    ),
}
