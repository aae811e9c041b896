"""The kernels of three classes and more under a softmax.

dL/dx = p (dL/dp - sum_k p_k dL/dp_k)               from sums of p, p^2, pg
dL/dx = v (g - p)                                   from v = dL/dlog p_t
dL/dx = a - p sum_k a_k                             from log p_t and all log(1-p_c), c != t:
                                                    a_t = dL/dlog p_t, a_c = -p_c / (1-p_c) dL/dlog(1-p_c)
"""

from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.ops.kernels.labels import FewLabels
from monai_extra_losses.ops.kernels.slab import (
    Kernel,
    Parts,
    ProbabilitySlab,
    add_bin_sums,
    add_cell_sums,
    bin_gradient,
    cell_gradient,
    count_sums,
    is_differentiated,
    is_hard,
    map_gradient,
    map_sums,
    power,
    slope_at,
    target_sums,
)
from monai_extra_losses.ops.merging import fold, merge, share_out_, unmerge_
from monai_extra_losses.ops.terms import (
    Activation,
    BinSums,
    CellSums,
    CountSums,
    ErrorSums,
    LogSums,
    MapSums,
    OutcomeSums,
    TargetSums,
    TrueClassSums,
    VoxelMap,
)

# Below this, log p_t is taken from the scores: a float32 softmax underflows at 1e-38 and has lost digits before.
_SMALL = 1e-30


class SoftmaxSlab(ProbabilitySlab):
    """A slab under a softmax.

    Parts of the gradient, without the voxels' weights: `base` (b, C), dL/dp that is the same for every voxel; `square`
    (b, C), half of that of p^2; `own` (b, C), dL/dp of the true class alone, where classes are few; `log_base` (b, C),
    dL/dlog p; `jump` (b, m), dL/dlog p_t plus, where classes are many, p_t dL/dp_t of the true class alone; `apart`
    (b, C, m), dL/dx of what differs in every channel of every voxel.
    """

    activation: ClassVar[Activation] = "softmax"

    @cached_property
    def p_of_all(self) -> Tensor:
        """(b, C, m) probabilities, of classes without annotation too."""
        return torch.softmax(self.x, 1)

    @cached_property
    def p(self) -> Tensor:
        return self.p_of_all if self.unknown is None else fold(self.p_of_all, self.unknown)

    @cached_property
    def z(self) -> Tensor:
        """(b, C, m) scores of which p is the softmax."""
        return self.x if self.unknown is None else merge(self.x, self.unknown)

    @cached_property
    def log_true(self) -> Tensor:
        """(b, m) log p_t."""
        if self.p_true.device.type == "cpu" and self.p_true.min() > _SMALL:
            return self.p_true.log()
        return self.labels.pick(F.log_softmax(self.z, 1))

    @cached_property
    def top(self) -> tuple[Tensor, Tensor]:
        """(b, 1, m) the likeliest class and its probability."""
        p_top, position = self.p.max(1, keepdim=True)
        return position, p_top

    @cached_property
    def lesser(self) -> Tensor:
        """(b, C, m) probabilities, 0 for the likeliest class: all are at most 1/2."""
        return self.p.scatter(1, self.top[0], 0.0)

    @cached_property
    def rest(self) -> Tensor:
        """(b, 1, m) 1 - p of the likeliest class, without cancellation."""
        return self.lesser.sum(1, keepdim=True)

    def others(self) -> Tensor | None:
        """(b, C, m) scores without the likeliest class, where `rest` could have lost digits; else None."""
        if self.x.device.type == "cpu" and self.rest.min() > _SMALL:
            return None
        return self.z.scatter(1, self.top[0], -torch.inf)

    def log_rest(self) -> Tensor:
        """(b, C, m) log(1 - p) of the classes that are not the true one."""
        others = self.others()
        if others is None:
            return torch.log1p(-self.lesser).scatter_(1, self.top[0], self.rest.log())
        of_top = others.logsumexp(1, keepdim=True) - self.z.logsumexp(1, keepdim=True)
        log_rest = torch.log1p(-self.lesser).scatter_(1, self.top[0], of_top)
        # Where all other scores are -inf, log(1 - p) = -inf of the true class is to be left out, not to be times 0.
        return log_rest.scatter_(1, self.labels.t.unsqueeze(1), 0.0)

    def through_softmax(self, d: Tensor) -> Tensor:
        """dL/dx from dL/dp, in place."""
        d *= self.p
        return d.addcmul_(self.p, d.sum(1, keepdim=True), value=-1)

    def write_gradient(self, parts: Parts, out: Tensor) -> None:
        base, square, log_base = parts.get("base"), parts.get("square"), parts.get("log_base")
        inner = parts["jump"].unsqueeze(1) if "jump" in parts else self.x.new_zeros(())
        d = self._weighted_slope(parts)
        if d is not None:
            inner = inner + d.sum(1, keepdim=True)
        elif base is not None:
            inner = inner + torch.bmm(base.unsqueeze(1), self.p)
            if square is not None:
                inner = inner + 2 * torch.bmm(square.unsqueeze(1), self.p * self.p)
        if log_base is not None:
            inner = inner + log_base.sum(1, keepdim=True).unsqueeze(2)
        if d is not None:
            torch.addcmul(d, self.p, inner, value=-1, out=out)
        else:
            factor = -inner if base is None else base.unsqueeze(2) - inner
            if square is not None:
                factor = torch.addcmul(factor, self.p, square.unsqueeze(2), value=2)
            torch.mul(self.p, factor, out=out)
        self._add_rest(parts, out)

    def _weighted_slope(self, parts: Parts) -> Tensor | None:
        """(b, C, m) p dL/dp of sums of p, p^2 and pg, where classes are few; else None."""
        if "own" not in parts or not isinstance(self.labels, FewLabels):
            return None
        d = torch.addcmul(parts["base"].unsqueeze(2), self.labels.g, parts["own"].unsqueeze(2))
        if "square" in parts:
            d.addcmul_(self.p, parts["square"].unsqueeze(2), value=2)
        return d.mul_(self.p)

    def _add_rest(self, parts: Parts, out: Tensor) -> None:
        if "log_base" in parts:
            out += parts["log_base"].unsqueeze(2)
        if "jump" in parts:
            self.labels.add(out, parts["jump"])
        if "apart" in parts:
            out += parts["apart"]
        if self.unknown is not None and not share_out_(out, self.p_of_all, self.p, self.unknown):
            unmerge_(out, self.x, self.unknown)
        self.weighted(out)


def _count_gradient(slab: SoftmaxSlab, term: CountSums, grad: Tensor) -> Parts:
    if isinstance(slab.labels, FewLabels):
        parts = {"base": grad[1], "own": grad[0]}
    else:
        parts = {"base": grad[1], "jump": slab.p_true * slab.labels.factors(grad[0])}
    return parts | {"square": grad[2]} if term.squares else parts


def _log_sums(slab: SoftmaxSlab, term: LogSums, out: Tensor) -> None:
    out[0].add_(slab.sum(F.log_softmax(slab.z, 1)))


def _log_gradient(slab: SoftmaxSlab, term: LogSums, grad: Tensor) -> Parts:
    return {"log_base": grad[0]}


def _true_class_sums(slab: SoftmaxSlab, term: TrueClassSums, out: Tensor) -> None:
    loss = term.formula(slab.log_true)
    if term.by_class:
        out[0].add_(slab.by_class(loss))
    else:
        out[0, :, 0].add_(slab.sum(loss.unsqueeze(1)).squeeze(1))


def _true_class_gradient(slab: SoftmaxSlab, term: TrueClassSums, grad: Tensor) -> Parts:
    wanted = slab.labels.factors(grad[0]) if term.by_class else grad[0, :, :1].expand_as(slab.p_true)
    return {"jump": wanted * slope_at(term, lambda: slab.log_true)}


def _true_class_map(slab: SoftmaxSlab, term: VoxelMap, out: Tensor) -> None:
    loss = term.sums.formula(slab.log_true)
    loss = slab.weighted(loss if term.positive is None else loss * _own_factor(slab, term.positive))
    if term.spread:
        slab.labels.put(out.zero_(), loss)
    else:
        out[:, 0] = loss


def _true_class_map_gradient(slab: SoftmaxSlab, term: VoxelMap, grad: Tensor) -> Parts:
    wanted = slab.labels.own(grad) if term.spread else grad[:, 0]
    wanted = wanted if term.positive is None else wanted * _own_factor(slab, term.positive)
    return {"jump": wanted * slope_at(term.sums, lambda: slab.log_true)}


def _own_factor(slab: SoftmaxSlab, positive: Tensor) -> Tensor:
    """(b, m) factor of the loss of the true class."""
    return slab.labels.factors(positive.to(slab.x).expand(slab.x.shape[0], -1))


def _map_gradient(slab: SoftmaxSlab, term: MapSums, grad: Tensor) -> Parts:
    return {"apart": slab.through_softmax(map_gradient(slab, term, grad))}


def _error_sums(slab: SoftmaxSlab, term: ErrorSums, out: Tensor) -> None:
    out[0].add_(slab.by_class(power(1 - slab.p_true, term.power)))
    out[1].add_(slab.sum(slab.labels.clear(power(slab.p, term.power))))


def _error_gradient(slab: SoftmaxSlab, term: ErrorSums, grad: Tensor) -> Parts:
    """dL/dp = q p^(q-1) off the true class, -q (1-p)^(q-1) on it."""
    q = term.power
    d = power(slab.p, q - 1)
    d *= q * grad[1].unsqueeze(2)
    slab.labels.put(d, power(1 - slab.p_true, q - 1) * slab.labels.factors(-q * grad[0]))
    return {"apart": slab.through_softmax(d)}


def _outcome_sums(slab: SoftmaxSlab, term: OutcomeSums, out: Tensor) -> None:
    out[0].add_(slab.by_class(term.formula(slab.log_true)))
    out[1].add_(slab.sum(slab.labels.clear(term.formula(slab.log_rest()))))


def _outcome_gradient(slab: SoftmaxSlab, term: OutcomeSums, grad: Tensor) -> Parts:
    """dL/dx of the losses of log p_t and log(1-p_c), where the formula has one slope."""
    assert isinstance(term.slope, float)
    return {"apart": _slope_of_outcomes(slab, term.slope * slab.labels.factors(grad[0]), term.slope * grad[1])}


def _slope_of_outcomes(slab: SoftmaxSlab, at_true: Tensor, others: Tensor) -> Tensor:
    """(b, C, m) dL/dx from dL/dlog p_t (b, m), and from dL/dlog(1-p_c) (b, C), or (b, C, m), of the other classes.

    With k the likeliest class, a_k (1-p_k) is taken as one number: alone, a_k grows without bound.
    """
    (position, p_top), scores = slab.top, slab.others()
    true_is_top = position.squeeze(1) == slab.labels.t
    d = slab.lesser / (slab.lesser - 1)
    d *= others if others.ndim == 3 else others.unsqueeze(2)
    slab.labels.put(d, torch.where(true_is_top, 0.0, at_true))
    at_top = others.gather(1, position if others.ndim == 3 else position.squeeze(1))
    of_top = torch.where(true_is_top.unsqueeze(1), at_true.unsqueeze(1) * slab.rest, -at_top.view_as(position) * p_top)
    total = d.sum(1, keepdim=True)
    d.addcmul_(slab.lesser, total, value=-1)
    share = slab.lesser / slab.rest if scores is None else _shares(scores)
    d.addcmul_(share, of_top, value=-1)
    return d.scatter_(1, position, of_top - p_top * total)


def _cell_sums(slab: SoftmaxSlab, term: CellSums, out: Tensor) -> None:
    log_pt = slab.labels.put(slab.log_rest(), slab.log_true)[:, term.first :]
    add_cell_sums(term, out, slab.p[:, term.first :], log_pt, slab.labels.of_classes_from(term.first), slab.w)


def _cell_gradient(slab: SoftmaxSlab, term: CellSums, grad: Tensor) -> Parts:
    by_p, by_log = cell_gradient(term, grad, slab.labels.of_classes_from(term.first))
    d, of_logs = torch.zeros_like(slab.p), torch.zeros_like(slab.p)
    d[:, term.first :], of_logs[:, term.first :] = by_p, by_log
    return {"apart": slab.through_softmax(d).add_(_slope_of_outcomes(slab, slab.labels.own(of_logs), of_logs))}


def _bin_sums(slab: SoftmaxSlab, term: BinSums, out: Tensor) -> None:
    add_bin_sums(term, out, slab.p, slab.labels.of_classes_from(0), slab.w)


def _bin_gradient(slab: SoftmaxSlab, term: BinSums, grad: Tensor) -> Parts:
    return {"apart": slab.through_softmax(bin_gradient(term, grad, slab.p))}


def _shares(scores: Tensor) -> Tensor:
    """Softmax of (b, C, m) scores; 0 where all of a voxel are -inf."""
    return torch.softmax(scores, 1).masked_fill_(scores.amax(1, keepdim=True) == -torch.inf, 0)


def _floats_of_formula(term: TrueClassSums | VoxelMap, channels: int) -> int:
    return channels + (11 if is_differentiated(term) else 5)


SoftmaxSlab.kernels = {
    TargetSums: Kernel(target_sums, None, floats=lambda term, channels: channels + 4),
    CountSums: Kernel(
        count_sums, _count_gradient, floats=lambda term, channels: (2 if term.squares else 1) * channels + 4
    ),
    LogSums: Kernel(_log_sums, _log_gradient, floats=lambda term, channels: channels + 4),
    TrueClassSums: Kernel(_true_class_sums, _true_class_gradient, floats=_floats_of_formula),
    VoxelMap: Kernel(
        _true_class_map,
        _true_class_map_gradient,
        floats=_floats_of_formula,
        takes=lambda term: type(term.sums) is TrueClassSums and not term.smoothing,
    ),
    MapSums: Kernel(map_sums, _map_gradient, floats=lambda term, channels: 5 * channels + 10),
    ErrorSums: Kernel(_error_sums, _error_gradient, floats=lambda term, channels: 5 * channels + 4),
    BinSums: Kernel(_bin_sums, _bin_gradient, floats=lambda term, channels: 12 * channels + 10, takes=is_hard),
    CellSums: Kernel(_cell_sums, _cell_gradient, floats=lambda term, channels: 18 * channels + 10),
    OutcomeSums: Kernel(
        _outcome_sums,
        _outcome_gradient,
        floats=lambda term, channels: 5 * channels + 10,
        takes=lambda term: isinstance(term.slope, float),
    ),
}
