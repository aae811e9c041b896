"""Analytic slab kernels for label maps: the forward reads scores and labels once, the backward once more.

Everything works on one slab of one sample: x (C, m) scores, t (m,) class of each voxel, w (m,) weights or None. No
one-hot is built: with g the one-hot of t, sums over g are sums by label, and a gradient has a part that is the same for
every voxel of a class (`base`, `square`) and a part at the true class alone (`true`).

    dL/dp = w (base_c + 2 square_c p + g true_c)        from sum p, sum p^2, sum pg
    dL/dx = p (dL/dp - sum_k p_k dL/dp_k)               softmax
    dL/dx = p (1 - p) dL/dp                             sigmoid
    dL/dx = v (g - p)                                   from v = dL/dlog p_t under softmax
    dL/dx = a - p sum_k a_k                             from log p_t and all log(1-p_c), c != t, under softmax:
                                                        a_t = dL/dlog p_t, a_c = -p_c / (1-p_c) dL/dlog(1-p_c)
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.ops.slab_labels import IndexedLabels, few_classes, read_labels, refuse_outside
from monai_extra_losses.ops.slabs import Layout, Voxels
from monai_extra_losses.ops.terms import (
    CountSums,
    ErrorSums,
    LogSums,
    MapSums,
    MarginSums,
    TargetSums,
    Term,
    VoxelFormula,
    VoxelMap,
    VoxelSums,
    sum_dtype,
)
from monai_extra_losses.ops.wrong_targets import WrongLabelsError

# Below this, log p_t is taken from the scores: a float32 softmax underflows at 1e-38 and has lost digits before.
_SMALL = 1e-30


def supports(terms: Sequence[Term]) -> bool:
    """Whether the kernels compute these terms for a label map; a term of any other type has its definition."""
    reading = [term for term in terms if type(term) is not TargetSums]
    if any(type(term) is MarginSums for term in reading):
        return all(type(term) is MarginSums for term in reading)
    if {term.activation for term in reading} not in ({"softmax"}, {"sigmoid"}, set()):
        return False
    return all(_supports(term) for term in reading)


def _supports(term: Term) -> bool:
    # Of the type itself: a subclass may have a definition of its own.
    if type(term) is LogSums:
        return not term.one_vs_rest
    if type(term) is VoxelMap:
        ordinary = type(term.sums) is VoxelSums and term.sums.one_vs_rest == (term.activation == "sigmoid")
        return ordinary and not term.smoothing
    if type(term) is VoxelSums and term.activation == "softmax":
        return not term.one_vs_rest or isinstance(term.slope, float)
    return type(term) in (CountSums, ErrorSums, MapSums, VoxelSums)


def floats_per_voxel(terms: Sequence[Term], layout: Layout, *, kernels: bool, softmax_in_place: bool = False) -> int:
    """How many float32 numbers per voxel of a slab are alive at a time, at most (measured; tests hold the memory).

    With `softmax_in_place` neither the probabilities nor the gradient has a slab of its own.
    """
    channels = layout.scores.shape[1]
    copies = 2 * (layout.scores.dtype != layout.dtype) + (not layout.counts_all)
    conversions = (copies + 1) * channels  # scores, masked scores, gradient
    if not kernels:
        return conversions + 19 * channels + 4  # what autograd keeps of the plain definitions
    conversions += 2 * channels if few_classes(layout.scores) else 4  # the labels as g, or as an index
    sums = [term.sums if isinstance(term, VoxelMap) else term for term in terms]
    differentiated = any(isinstance(term, VoxelSums) and term.slope is None for term in sums)
    if any(term.activation == "softmax" for term in sums) and _two_classes(terms, channels):
        return copies * channels + (6 if all(isinstance(term, CountSums | TargetSums) for term in terms) else 12)
    if any(isinstance(term, MarginSums) for term in sums):
        return conversions + 6 * channels
    if any(term.activation == "sigmoid" for term in sums):
        return conversions + (13 if differentiated else 5) * channels
    if any((isinstance(term, VoxelSums) and term.one_vs_rest) or isinstance(term, MapSums) for term in sums):
        return conversions + 3 * channels + 10
    if any(isinstance(term, ErrorSums) for term in sums):
        return conversions + 3 * channels + 4
    squares = any(isinstance(term, CountSums) and term.squares for term in sums)
    own = 0 if softmax_in_place else 2 * channels
    return conversions - channels + own + (2 if squares else 1) * channels + (10 if differentiated else 4)


def keeps_probabilities(terms: Sequence[Term], scores: Tensor) -> bool:
    """Whether the forward can leave its softmax where the backward writes the gradient: half the exponentials.

    Not on a GPU, where memory traffic counts; nor in half precision, which would round the probabilities; nor beside a
    map, which may be worked on before the backward.
    """
    softmax = any(term.activation == "softmax" for term in terms)
    if any(isinstance(term, VoxelMap) for term in terms):
        return False
    wide = scores.dtype in (torch.float32, torch.float64)
    return softmax and not _two_classes(terms, scores.shape[1]) and wide and scores.device.type == "cpu"


def _two_classes(terms: Sequence[Term], channels: int) -> bool:
    return channels == 2 and not any(isinstance(term, MapSums) for term in terms)


def kernel(
    v: Voxels, terms: Sequence[Term], p: Tensor | None = None, *, by_index: bool = False
) -> "SoftmaxSlab | SigmoidSlab | MarginSlab | TwoClassSlab":
    """The kernel for one slab of one sample with a label map.

    Its `forward(terms, outs)` adds the slab to the sums `outs` (rows, C), or fills the slab (channels, m) of a map; its
    `backward(terms, grads, out)` writes the (C, m) gradient with respect to the scores, from the gradients of those.
    With `keeps_probabilities`, `p` (C, m) is the softmax of the slab, and may be the `out` of the backward. `by_index`
    reads the labels as an index, which leaves out what is infinite, too.
    """
    labels = IndexedLabels(v) if by_index else read_labels(v)
    if any(isinstance(term, MarginSums) for term in terms):
        return MarginSlab(v, labels)
    if any(term.activation == "sigmoid" for term in terms):
        return SigmoidSlab(v, labels)
    if _two_classes(terms, v.scores.shape[1]) and not by_index:
        return TwoClassSlab(v)
    return SoftmaxSlab(v, labels, p)


def check_target(layout: Layout) -> None:
    """Refuse wrong labels, or values outside [0, 1] of a target of C channels, on the CPU; the kernels do so too.

    Raises:
        WrongLabelsError: see there.
    """
    if layout.scores.device.type == "cpu":
        for sample in range(layout.scores.shape[0]):
            for slab, _ in layout.slabs(sample, 2 * layout.scores.shape[1]):
                if layout.labels:
                    _LabelSlab(slab, read_labels(slab)).check()
                elif slab.target is not None:
                    refuse_outside(slab.target, 2)


class _LabelSlab:
    """What the kernels of any number of classes share."""

    def __init__(self, v: Voxels, labels: IndexedLabels) -> None:
        self.x = v.scores[0]
        self.w = None if v.weight is None else v.weight[0]
        self.labels = labels

    def check(self) -> None:
        """Refuse wrong labels before they are used as an index."""
        if self.x.device.type == "cpu":
            self.volumes  # noqa: B018  counting finds them

    @cached_property
    def volumes(self) -> Tensor:
        """(C,) number of voxels of each label."""
        return self.labels.volumes

    @cached_property
    def p(self) -> Tensor:
        raise NotImplementedError

    @cached_property
    def p_true(self) -> Tensor:
        """(m,) probability of each voxel's own class."""
        return self.labels.own(self.p)

    def count(self, term: CountSums | TargetSums, out: Tensor) -> None:
        if isinstance(term, TargetSums):
            out[0] += self.weighted_volumes()
            out[1] += self.x.shape[1] if self.w is None else self.w.sum(dtype=out.dtype)
            return
        out[0] += self.labels.own_sums(self.p, self.w)
        out[1] += self.sum(self.p)
        if term.squares:
            out[2] += self.sum(self.p * self.p)
            out[3] += self.weighted_volumes()  # g^2 = g

    def weighted_volumes(self) -> Tensor:
        """(C,) what the voxels of each label count together."""
        return self.volumes if self.w is None else self.labels.sums(self.w)

    def sum(self, values: Tensor) -> Tensor:
        """(C,) weighted sums over the voxels. Float32 within a slab (pairwise in torch), float64 across slabs."""
        return values.sum(1) if self.w is None else values @ self.w

    def by_class(self, values: Tensor) -> Tensor:
        """(C,) weighted sums of (m,) values over the voxels of each class."""
        return self.labels.sums(values if self.w is None else values * self.w)

    def map_sum(self, term: MapSums) -> Tensor:
        """(C,) sums of a map times p, (p-g)^2 or, for "surface", p (2-p) off the true class and (1-p) (1+p) on it."""
        values = self.p
        if term.of == "error":
            values = self.labels.put(self.p * self.p, (1 - self.p_true).square_())
        elif term.of == "surface":
            values = self.labels.put(self.p * (2 - self.p), (1 - self.p_true) * (1 + self.p_true))
        return self.sum(term.numbers()[0].to(self.x.dtype) * values)

    def map_gradient(self, term: MapSums, grad: Tensor) -> Tensor:
        """(C, m) dL/dp of such sums: 1, 2 (p-g), and 2 (1-p) off the true class, -2 p on it."""
        d = term.numbers()[0].to(self.x.dtype) * grad[0].unsqueeze(1)
        if term.of == "error":
            d *= self.labels.put(2 * self.p, 2 * (self.p_true - 1))
        elif term.of == "surface":
            d *= self.labels.put(2 - 2 * self.p, -2 * self.p_true)
        return d

    def by_outcome(self, values: Tensor, out: Tensor) -> None:
        """Add the (C, m) losses of each channel's outcome: row 0 at the true class, row 1 elsewhere."""
        out[0] += self.labels.own_sums(values, self.w)
        out[1] += self.sum(self.labels.clear(values))

    def weighted(self, values: Tensor) -> Tensor:
        return values if self.w is None else values.mul_(self.w)


class SoftmaxSlab(_LabelSlab):
    """Three classes and more under a softmax."""

    def __init__(self, v: Voxels, labels: IndexedLabels, p: Tensor | None = None) -> None:
        super().__init__(v, labels)
        if p is not None:
            self.p = p

    @cached_property
    def p(self) -> Tensor:
        return torch.softmax(self.x, 0)

    @cached_property
    def log_true(self) -> Tensor:
        """(m,) log p_t."""
        if self.p_true.device.type == "cpu" and self.p_true.min() > _SMALL:
            return self.p_true.log()
        return self.labels.pick(F.log_softmax(self.x, 0))

    def forward(self, terms: Sequence[Term], outs: Sequence[Tensor]) -> None:
        self.check()
        for term, out in zip(terms, outs, strict=True):
            if isinstance(term, TargetSums | CountSums):
                self.count(term, out)
            elif isinstance(term, LogSums):
                out[0] += self.sum(F.log_softmax(self.x, 0))
            elif isinstance(term, VoxelMap):
                loss = self.weighted(term.sums.formula(self.log_true) * self.factor(term))
                if term.spread:
                    self.labels.put(out.zero_(), loss)
                else:
                    out[0] = loss
            elif isinstance(term, MapSums):
                out[0] += self.map_sum(term)
            elif isinstance(term, ErrorSums):
                out[0] += self.by_class(power(1 - self.p_true, term.power))
                out[1] += self.sum(self.labels.clear(power(self.p, term.power)))
            elif isinstance(term, VoxelSums) and term.one_vs_rest:
                out[0] += self.by_class(term.formula(self.log_true))
                out[1] += self.sum(self.labels.clear(term.formula(self.log_rest())))
            elif isinstance(term, VoxelSums) and term.by_class:
                out[0] += self.by_class(term.formula(self.log_true))
            elif isinstance(term, VoxelSums):
                out[0, 0] += self.sum(term.formula(self.log_true).unsqueeze(0))[0]

    def backward(self, terms: Sequence[Term], grads: Sequence[Tensor], out: Tensor) -> None:
        base = square = log_base = None
        apart: Tensor | None = None  # gradients of the terms that differ in every channel of every voxel
        jump: Tensor | None = None  # p_t dL/dp_t of the true class alone, plus dL/dlog p_t
        for term, grad in zip(terms, grads, strict=True):
            grad = grad.to(self.x.dtype)
            if isinstance(term, CountSums):
                jump = _plus(jump, self.p_true * self.labels.factors(grad[0]))
                base = _plus(base, grad[1])
                square = _plus(square, grad[2]) if term.squares else square
            elif isinstance(term, LogSums):
                log_base = _plus(log_base, grad[0])
            elif isinstance(term, MapSums):
                apart = _plus(apart, self.through_softmax(self.map_gradient(term, grad)))
            elif isinstance(term, ErrorSums):
                apart = _plus(apart, self.error_gradient(term, grad))
            elif isinstance(term, VoxelSums) and term.one_vs_rest:
                apart = _plus(apart, self.one_vs_rest_gradient(term, grad))
            else:
                jump = _plus(jump, self.voxel_gradient(term, grad))
        inner = self.x.new_zeros(()) if jump is None else jump
        if base is not None:
            inner = inner + base @ self.p
        if square is not None:
            inner = inner + 2 * (square @ (self.p * self.p))
        if log_base is not None:
            inner = inner + log_base.sum()
        factor = -inner if base is None else base.unsqueeze(1) - inner
        if square is not None:
            factor = torch.addcmul(factor, self.p, square.unsqueeze(1), value=2)
        torch.mul(self.p, factor, out=out)
        if log_base is not None:
            out += log_base.unsqueeze(1)
        if jump is not None:
            self.labels.add(out, jump.expand(out.shape[1]))
        if apart is not None:
            out += apart
        self.weighted(out)

    @cached_property
    def top(self) -> tuple[Tensor, Tensor]:
        """(1, m) the likeliest class and its probability."""
        p_top, position = self.p.max(0, keepdim=True)
        return position, p_top

    @cached_property
    def lesser(self) -> Tensor:
        """(C, m) probabilities, 0 for the likeliest class: all are at most 1/2."""
        return self.p.scatter(0, self.top[0], 0.0)

    @cached_property
    def rest(self) -> Tensor:
        """(1, m) 1 - p of the likeliest class, without cancellation."""
        return self.lesser.sum(0, keepdim=True)

    def others(self) -> Tensor | None:
        """(C, m) scores without the likeliest class, where `rest` could have lost digits; else None."""
        if self.x.device.type == "cpu" and self.rest.min() > _SMALL:
            return None
        return self.x.scatter(0, self.top[0], -torch.inf)

    def log_rest(self) -> Tensor:
        """(C, m) log(1 - p) of the classes that are not the true one."""
        others = self.others()
        if others is None:
            return torch.log1p(-self.lesser).scatter_(0, self.top[0], self.rest.log())
        of_top = others.logsumexp(0, keepdim=True) - self.x.logsumexp(0, keepdim=True)
        log_rest = torch.log1p(-self.lesser).scatter_(0, self.top[0], of_top)
        # Where all other scores are -inf, log(1 - p) = -inf of the true class is to be left out, not to be times 0.
        return log_rest.scatter_(0, self.labels.t.unsqueeze(0), 0.0)

    def one_vs_rest_gradient(self, term: VoxelSums, grad: Tensor) -> Tensor:
        """dL/dx of the losses of log p_t and log(1-p_c), where the formula has one slope.

        With k the likeliest class, a_k (1-p_k) is taken as one number: alone, a_k grows without bound.
        """
        assert isinstance(term.slope, float)
        (position, p_top), others = self.top, self.others()
        at_true = term.slope * self.labels.factors(grad[0])
        true_is_top = position[0] == self.labels.t
        d = self.lesser / (self.lesser - 1)
        d *= term.slope * grad[1].unsqueeze(1)
        self.labels.put(d, torch.where(true_is_top, 0.0, at_true))
        of_top = torch.where(
            true_is_top, at_true * self.rest, -term.slope * grad[1].index_select(0, position[0]) * p_top
        )
        total = d.sum(0, keepdim=True)
        d.addcmul_(self.lesser, total, value=-1)
        share = self.lesser / self.rest if others is None else _shares(others)
        d.addcmul_(share, of_top, value=-1)
        return d.scatter_(0, position, of_top - p_top * total)

    def error_gradient(self, term: ErrorSums, grad: Tensor) -> Tensor:
        """dL/dp = q p^(q-1) off the true class, -q (1-p)^(q-1) on it."""
        q = term.power
        d = power(self.p, q - 1)
        d *= q * grad[1].unsqueeze(1)
        self.labels.put(d, power(1 - self.p_true, q - 1) * self.labels.factors(-q * grad[0]))
        return self.through_softmax(d)

    def through_softmax(self, d: Tensor) -> Tensor:
        """dL/dx from dL/dp, in place."""
        d *= self.p
        return d.addcmul_(self.p, d.sum(0, keepdim=True), value=-1)

    def voxel_gradient(self, term: Term, grad: Tensor) -> Tensor:
        """dL/dlog p_t, (m,) or, where it is the same everywhere, a scalar."""
        if isinstance(term, VoxelMap):
            wanted = self.labels.own(grad) if term.spread else grad[0]
            return wanted * self.slope(term.sums) * self.factor(term)
        assert isinstance(term, VoxelSums)
        return (self.labels.factors(grad[0]) if term.by_class else grad[0, 0]) * self.slope(term)

    def factor(self, term: VoxelMap) -> Tensor | float:
        """(m,) factor of the loss of the true class."""
        return 1.0 if term.positive is None else self.labels.factors(term.positive.to(self.x))

    def slope(self, term: Term) -> Tensor | float:
        assert isinstance(term, VoxelSums)
        return slope_at(term, lambda: self.log_true)


class SigmoidSlab(_LabelSlab):
    """Every channel a decision of its own."""

    @cached_property
    def p(self) -> Tensor:
        return torch.sigmoid(self.x)

    def log_true(self) -> Tensor:
        """(C, m) log-probability of each channel's outcome."""
        return F.logsigmoid(self.labels.outcome(self.x))

    def error(self) -> Tensor:
        """(C, m) |p - g|, the probability of the other outcome."""
        return torch.sigmoid(self.labels.outcome(self.x).neg_())

    def forward(self, terms: Sequence[Term], outs: Sequence[Tensor]) -> None:
        self.check()
        for term, out in zip(terms, outs, strict=True):
            if isinstance(term, TargetSums | CountSums):
                self.count(term, out)
            elif isinstance(term, VoxelMap):
                out.copy_(self.weighted(self.scaled(term.sums.formula(self.log_true()), term)))
            elif isinstance(term, VoxelSums):
                self.by_outcome(term.formula(self.log_true()), out)
            elif isinstance(term, MapSums):
                out[0] += self.map_sum(term)
            elif isinstance(term, ErrorSums):
                self.by_outcome(power(self.error(), term.power), out)

    def backward(self, terms: Sequence[Term], grads: Sequence[Tensor], out: Tensor) -> None:
        d: Tensor | None = None
        for term, grad in zip(terms, grads, strict=True):
            grad = grad.to(self.x.dtype)
            if isinstance(term, CountSums):
                part = self.count_gradient(term, grad)
            elif isinstance(term, MapSums):
                part = self.map_gradient(term, grad).mul_(torch.addcmul(self.p, self.p, self.p, value=-1))
            elif isinstance(term, ErrorSums):
                part = self.error_gradient(term, grad)
            else:
                part = self.voxel_gradient(term, grad)
            d = _plus(d, part)
        assert d is not None
        out.copy_(self.weighted(d))

    def count_gradient(self, term: CountSums, grad: Tensor) -> Tensor:
        d = torch.addcmul(self.p, self.p, self.p, value=-1)
        of_squares = (d * self.p).mul_(2 * grad[2].unsqueeze(1)) if term.squares else None
        self.labels.scale(d, grad[0] + grad[1], grad[1])
        return d if of_squares is None else d.add_(of_squares)

    def error_gradient(self, term: ErrorSums, grad: Tensor) -> Tensor:
        """dL/dx = q e^q (1-e), with e = |p - g|; negative at the true class."""
        error = self.error()
        d = power(error, term.power).mul_(1 - error).mul_(term.power)
        return self.labels.scale(d, -grad[0], grad[1])

    def voxel_gradient(self, term: Term, grad: Tensor) -> Tensor:
        """dL/dx: d logsigmoid(-x)/dx = -p = -(1 - p_t), and +(1 - p_t) at the true class."""
        sums = term.sums if isinstance(term, VoxelMap) else term
        assert isinstance(sums, VoxelSums)
        log_true = self.log_true()
        d = torch.expm1(log_true).mul_(slope_at(sums, lambda: log_true))  # f' times -(1 - p_t)
        if isinstance(term, VoxelMap):
            d *= grad
            return self.scaled(d, term, sign=-1)
        return self.labels.scale(d, -grad[0], grad[1])

    def scaled(self, values: Tensor, term: VoxelMap, sign: int = 1) -> Tensor:
        """`values` (C, m) times the factors of a map, and times `sign` at the true class."""
        if sign == 1 and term.positive is None and term.negative is None:
            return values
        ones = values.new_ones(values.shape[0])
        positive = ones if term.positive is None else term.positive.to(values)
        negative = ones if term.negative is None else term.negative.to(values)
        return self.labels.scale(values, sign * positive, negative)


class MarginSlab(_LabelSlab):
    """Losses of the margins of raw scores."""

    def forward(self, terms: Sequence[Term], outs: Sequence[Tensor]) -> None:
        """See `kernel`."""
        self.check()
        for term, out in zip(terms, outs, strict=True):
            if isinstance(term, TargetSums):
                self.count(term, out)
                continue
            assert isinstance(term, MarginSums)
            if term.one_vs_rest:
                self.by_outcome(term.formula(self.labels.outcome(self.x)), out)
            else:
                out[0] += self.by_class(term.formula(self.lead()[0]))

    def backward(self, terms: Sequence[Term], grads: Sequence[Tensor], out: Tensor) -> None:
        """See `kernel`."""
        out.zero_()
        for term, grad in zip(terms, grads, strict=True):
            assert isinstance(term, MarginSums)
            grad = grad.to(self.x.dtype)
            if term.one_vs_rest:
                out += self.labels.scale(self.slope(term, self.labels.outcome(self.x)), grad[0], -grad[1])
            else:
                margin, rival = self.lead()
                d = self.slope(term, margin) * self.labels.factors(grad[0])
                self.labels.add(out, d).scatter_add_(0, rival, -d.unsqueeze(0))
        self.weighted(out)

    def slope(self, term: MarginSums, margin: Tensor) -> Tensor:
        return derivative(term.formula, margin) if term.slope is None else term.slope(margin)

    def lead(self) -> tuple[Tensor, Tensor]:
        """(m,) score of the true class minus the largest other, and (1, m) the class of that."""
        others = self.x.scatter(0, self.labels.t.unsqueeze(0), -torch.inf)
        top, rival = others.max(0, keepdim=True)
        return self.labels.pick(self.x) - top[0], rival


class TwoClassSlab:
    """The same for a softmax of two classes, where everything is a function of z = x_1 - x_0.

    p_1 = sigmoid(z), log p_t = logsigmoid(+-z), and the gradients of the two channels are d and -d.
    """

    def __init__(self, v: Voxels) -> None:
        assert v.labels is not None
        self.z = v.scores[0, 1] - v.scores[0, 0]
        self.g = v.labels[0].to(self.z.dtype)
        self.w = None if v.weight is None else v.weight[0]

    def forward(self, terms: Sequence[Term], outs: Sequence[Tensor]) -> None:
        """See `kernel`."""
        if self.g.device.type == "cpu":
            compared = torch.empty_like(self.g)  # in floats: see `FewLabels`
            of_classes = sum(torch.eq(self.g, label, out=compared).sum().item() for label in (0, 1))
            if of_classes != self.g.numel():
                raise WrongLabelsError
        volume = self._sum(self.g)
        n = volume.new_full((), self.z.numel()) if self.w is None else self.w.sum(dtype=volume.dtype)
        p = torch.sigmoid(self.z) if any(isinstance(term, CountSums) for term in terms) else self.z
        for term, out in zip(terms, outs, strict=True):
            if isinstance(term, TargetSums):
                out += torch.stack([n - volume, volume, n, n]).view(2, 2)
            elif isinstance(term, CountSums):
                overlap, total = self._sum(p * self.g), self._sum(p)
                rows = [n - total - volume + overlap, overlap, n - total, total]
                if term.squares:
                    square = self._sum(p * p)
                    rows += [n - 2 * total + square, square, n - volume, volume]  # (1-p)^2 = 1 - 2p + p^2
                out += torch.stack(rows).view(-1, 2)
            elif isinstance(term, LogSums):
                out += torch.stack([self._sum(F.logsigmoid(-self.z)), self._sum(F.logsigmoid(self.z))])
            elif isinstance(term, ErrorSums) or (isinstance(term, VoxelSums) and term.one_vs_rest):
                # Both channels have the same error, and log(1-p_c) of the wrong class is log p_t.
                loss = (
                    power(self._error(), term.power) if isinstance(term, ErrorSums) else term.formula(self._log_true())
                )
                positive = self._sum(loss * self.g)
                losses = torch.stack([self._sum(loss) - positive, positive])
                out += torch.stack([losses, losses.flip(0)])
            elif isinstance(term, VoxelSums):
                loss = term.formula(self._log_true())
                out[0, 0] += self._sum(loss)
                if term.by_class:
                    positive = self._sum(loss * self.g)
                    out[0, 0] -= positive
                    out[0, 1] += positive
            elif isinstance(term, VoxelMap):
                loss = term.sums.formula(self._log_true()) * self._factor(term)
                if self.w is not None:
                    loss *= self.w
                if term.spread:
                    torch.mul(loss, self.g, out=out[1])
                    torch.sub(loss, out[1], out=out[0])
                else:
                    out[0] = loss

    def backward(self, terms: Sequence[Term], grads: Sequence[Tensor], out: Tensor) -> None:
        """See `kernel`."""
        p, g = torch.sigmoid(self.z), self.g
        d: Tensor | None = None
        for term, grad in zip(terms, grads, strict=True):
            if isinstance(term, CountSums):
                true, base = _numbers(grad[0]), _numbers(grad[1])
                # dL/dp_1 - dL/dp_0 = constant + slope g (+ curve p)
                part = g * (true[0] + true[1])
                part += base[1] - base[0] - true[0]
                if term.squares:
                    square = _numbers(grad[2])
                    part += p * (2 * (square[0] + square[1]))
                    part -= 2 * square[0]
                part *= torch.addcmul(p, p, p, value=-1)
            elif isinstance(term, LogSums):
                lower, upper = _numbers(grad[0])
                part = upper - (lower + upper) * p
            elif isinstance(term, ErrorSums):
                error = self._error()
                part = power(error, term.power).mul_(1 - error).mul_(1 - 2 * g)
                part *= self._at(term.power * (grad[0] + grad[1].flip(0)))
            else:
                sums = term.sums if isinstance(term, VoxelMap) else term
                assert isinstance(sums, VoxelSums)
                part = g - p
                part *= slope_at(sums, self._log_true)
                if isinstance(term, VoxelMap):
                    part *= torch.lerp(grad[0], grad[1], g) if term.spread else grad[0]
                    part *= self._factor(term)
                elif sums.one_vs_rest:
                    part *= self._at(grad[0] + grad[1].flip(0))
                elif sums.by_class:
                    part *= self._at(grad[0])
                else:
                    part *= _numbers(grad[0])[0]
            d = part if d is None else d.add_(part)
        assert d is not None
        if self.w is not None:
            d *= self.w
        torch.neg(d, out=out[0])
        out[1] = d

    def _factor(self, term: VoxelMap) -> Tensor | float:
        """(m,) factor of the loss of the true class."""
        return 1.0 if term.positive is None else self._at(term.positive)

    def _at(self, factors: Tensor) -> Tensor:
        """(m,) factor of each voxel's class, of (2,) factors."""
        lower, upper = factors.to(self.z)
        return self.g * (upper - lower) + lower

    def _error(self) -> Tensor:
        """(m,) |p - g|, the same for both channels."""
        return torch.sigmoid((1 - 2 * self.g) * self.z)

    def _log_true(self) -> Tensor:
        return F.logsigmoid((2 * self.g - 1) * self.z)

    def _sum(self, values: Tensor) -> Tensor:
        # Pairwise in float32 within a slab, as the sums of more classes; the slabs are added in float64.
        return (values if self.w is None else values * self.w).sum().to(sum_dtype(values.device))


def _numbers(values: Tensor) -> Sequence[Any]:
    """The numbers of a small tensor; on a GPU as tensors, so that nothing waits for it."""
    return values.tolist() if values.device.type == "cpu" else values.unbind()


def _shares(scores: Tensor) -> Tensor:
    """Softmax of (C, m) scores; 0 where all of a voxel are -inf."""
    return torch.softmax(scores, 0).masked_fill_(scores.amax(0) == -torch.inf, 0)


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total + part


def slope_at(sums: VoxelSums, log_pt: Callable[[], Tensor]) -> Tensor | float:
    """f' of a term's formula, by differentiation where none is stated; `log_pt` is asked only where f' varies."""
    if isinstance(sums.slope, float):
        return sums.slope
    return derivative(sums.formula, log_pt()) if sums.slope is None else sums.slope(log_pt())


def derivative(formula: VoxelFormula, log_pt: Tensor) -> Tensor:
    """f'(log p_t) of an elementwise formula."""
    with torch.enable_grad():
        leaf = log_pt.detach().requires_grad_()
        value = formula(leaf)
        (slope,) = torch.autograd.grad(value, leaf, torch.ones_like(value))
    return slope


def power(base: Tensor, exponent: float) -> Tensor:
    """`base` ** `exponent` in a new tensor, without a logarithm for the usual exponents."""
    if exponent == 2:
        return base * base
    if exponent == 1.5:
        return base.sqrt().mul_(base)
    if exponent == 0.5:
        return base.sqrt()
    return base.clone() if exponent == 1 else base**exponent
