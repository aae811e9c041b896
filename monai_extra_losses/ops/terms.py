"""What a loss can ask of one pass over the voxels: sums over the voxels of each sample and class, or a map.

Each term has a plain definition in differentiable torch operations. It is what `torch.export` traces, what computes a
term that no kernel has in its table, and what the kernels are tested against.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_extra_losses.ops.call_data import Voxels
from monai_extra_losses.ops.formulas import SoftFocalFormula, Spelled
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.pieces import Piece

Activation = Literal["softmax", "sigmoid", "none"]
# An elementwise loss: one of `formulas.py`, or any function, which is then differentiated.
VoxelFormula = Callable[[Tensor], Tensor]
MapOf = Literal["probability", "error", "surface"]


class Term(Spelled, ABC):
    """One thing to compute in the pass: a frozen dataclass. Equal terms of a compound loss are computed once.

    A term that no kernel has in its table takes its definition, and is differentiated, slab by slab. It gets the voxels
    of a part of the call, and must be a sum over voxels.

    Attributes:
        activation: how the scores become probabilities.
        reads_scores: whether the result depends on the scores.
        is_map: whether the result is a map (B, channels, *spatial); else it is sums (rows, B, C).
        holds_voxels: whether term or result has something of each voxel, or of each sample.
    """

    __slots__ = ()
    reads_scores: ClassVar[bool] = True
    is_map: ClassVar[bool] = False
    holds_voxels: ClassVar[bool] = False

    if TYPE_CHECKING:  # a field of most terms; dataclasses would take a property here for its default

        @property
        def activation(self) -> Activation: ...

    @abstractmethod
    def shape(self, scores: Tensor) -> tuple[int, ...]:
        """Shape of the result for scores of shape (B, C, *spatial)."""

    @abstractmethod
    def definition(self, v: Voxels) -> Tensor:
        """The result for all voxels of `v`, of shape (rows, B, C) for sums and (B, channels, M) for maps."""

    def in_piece(self, piece: Piece) -> Self:
        """The term with what it holds of one piece of the call: a map of numbers, or factors of each sample."""
        return self

    def view(self, result: Tensor, piece: Piece) -> Tensor:
        """The part of a contiguous result, or of its gradient, that belongs to one piece: a view."""
        return result[piece.samples].flatten(2)[..., piece.voxels] if self.is_map else result[:, piece.samples]


@dataclass(frozen=True)
class ForeignTerm(Term):
    """Somebody else's term of sums, with an `activation`, a `shape` and a `definition` and nothing else."""

    term: Any

    @property
    def activation(self) -> Activation:
        activation: Activation = self.term.activation
        return activation

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return tuple(self.term.shape(scores))

    def definition(self, v: Voxels) -> Tensor:
        result: Tensor = self.term.definition(v)
        return result


@dataclass(frozen=True)
class TargetSums(Term):
    """sum g and sum 1 over the voxels that count: result (2, B, C)."""

    activation: Activation = "none"
    reads_scores: ClassVar[bool] = False

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return 2, scores.shape[0], scores.shape[1]

    def definition(self, v: Voxels) -> Tensor:
        g = v.weighted(v.one_hot())
        ones = v.weighted(torch.ones_like(g[:, :1]))
        return torch.stack([_total(g), _total(ones).expand(-1, g.shape[1])])


@dataclass(frozen=True)
class CountSums(Term):
    """sum pg, sum p and, with `squares`, sum p^2, sum g^2: result (2 or 4, B, C).

    `soft_overlap` takes sum min(p, g) for sum pg, so that a soft target is a perfect prediction of itself.
    """

    activation: Activation
    squares: bool = False
    soft_overlap: bool = False

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return 4 if self.squares else 2, scores.shape[0], scores.shape[1]

    def definition(self, v: Voxels) -> Tensor:
        p, g = probabilities(v.scores, self.activation), v.one_hot()
        if self.soft_overlap:
            # (|p| + |g| - |p - g|) / 2 = min(p, g) for p, g >= 0, with the subgradient 1/2 where p = g.
            p_sum = p.abs()
            overlap = (p_sum + g.abs() - (p - g).abs()) / 2
        else:
            p_sum, overlap = p, p * g
        parts = [overlap, p_sum] + ([p * p, g * g] if self.squares else [])
        return torch.stack([_total(v.weighted(part)) for part in parts])


@dataclass(frozen=True)
class ErrorSums(Term):
    """sum g |p - g|^q and sum (1-g) |p - g|^q: result (2, B, C)."""

    activation: Activation
    power: float

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return 2, scores.shape[0], scores.shape[1]

    def definition(self, v: Voxels) -> Tensor:
        g = v.one_hot()
        errors = v.weighted((probabilities(v.scores, self.activation) - g).abs() ** self.power)
        return torch.stack([_total(g * errors), _total((1 - g) * errors)])


class VoxelSums(Term):
    """Sums of the losses of single voxels: result (2, B, C).

    Row 0 is the sum of the losses of positive outcomes, g = 1, row 1 that of negative ones, so that a factor of each
    can be applied afterwards. A categorical loss, one per voxel, has its true class as the positive outcome, and 0 in
    row 1.

    Attributes:
        formula: the loss of an outcome, elementwise.
        one_vs_rest: whether every channel is a decision of its own.
    """

    __slots__ = ()
    formula: VoxelFormula
    one_vs_rest: ClassVar[bool]

    @property
    def slope(self) -> float | VoxelFormula | None:
        """f', a constant or a function of what f reads; None: f is differentiated."""
        return getattr(self.formula, "slope", None)

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return 2, scores.shape[0], scores.shape[1]

    def definition(self, v: Voxels) -> Tensor:
        return torch.stack([_total(v.weighted(part)) for part in self.losses(v)])

    @abstractmethod
    def losses(self, v: Voxels) -> tuple[Tensor, Tensor]:
        """(B, C, M) losses of positive and of negative outcomes."""


@dataclass(frozen=True)
class TrueClassSums(VoxelSums):
    """Sums of a loss of the true class's log-probability, for voxels of one class each: row 0 is sum g f(log p).

    Attributes:
        activation: how the scores become probabilities.
        formula: f, elementwise, of the log-probability of the true class.
        by_class: False: row 0 holds the sum over all classes in its first column (a loss without class weights needs no
            more, and it costs less).
    """

    activation: Activation
    formula: VoxelFormula
    by_class: bool = True
    one_vs_rest: ClassVar[bool] = False

    def losses(self, v: Voxels) -> tuple[Tensor, Tensor]:
        g = v.one_hot()
        loss = g * self.formula(where_counted(log_probabilities(v.scores, self.activation), g))
        return loss, torch.zeros_like(loss)


@dataclass(frozen=True)
class OutcomeSums(VoxelSums):
    """Sums of a loss of each channel's decision: row 0 is sum g f(log p), row 1 is sum (1-g) f(log(1-p)).

    Attributes:
        activation: how the scores become probabilities.
        formula: f, elementwise, of the log-probability of the true outcome.
    """

    activation: Activation
    formula: VoxelFormula
    one_vs_rest: ClassVar[bool] = True

    def losses(self, v: Voxels) -> tuple[Tensor, Tensor]:
        g = v.one_hot()
        log_p, log_not_p = outcome_log_probabilities(v.scores, self.activation, g)
        if isinstance(self.formula, SoftFocalFormula) and v.labels is None:
            loss = self.formula.of_soft_target(log_p, log_not_p, g)
            return g * -where_counted(-loss, g), (1 - g) * -where_counted(-loss, 1 - g)
        return g * self.formula(log_p), (1 - g) * self.formula(log_not_p)


@dataclass(frozen=True)
class MarginSums(VoxelSums):
    """Sums of a loss of each channel's raw score: row 0 is sum g f(s), row 1 is sum (1-g) f(-s)."""

    formula: VoxelFormula
    activation: Activation = "none"
    one_vs_rest: ClassVar[bool] = True

    def losses(self, v: Voxels) -> tuple[Tensor, Tensor]:
        g = v.one_hot()
        scores, negatives = where_counted(v.scores, g), where_counted(-v.scores, 1 - g)
        return g * self.formula(scores), (1 - g) * self.formula(negatives)


@dataclass(frozen=True)
class LeadSums(VoxelSums):
    """Sums of a loss of the true class's lead over the next: row 0 is sum g_c f(s_c - max_{k!=c} s_k)."""

    formula: VoxelFormula
    activation: Activation = "none"
    one_vs_rest: ClassVar[bool] = False

    def losses(self, v: Voxels) -> tuple[Tensor, Tensor]:
        g = v.one_hot()
        loss = g * self.formula(where_counted(v.scores - _largest_other(v.scores), g))
        return loss, torch.zeros_like(loss)


@dataclass(frozen=True)
class LogSums(Term):
    """sum log p, for label smoothing: result (1, B, C)."""

    activation: Activation

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return 1, scores.shape[0], scores.shape[1]

    def definition(self, v: Voxels) -> Tensor:
        return _total(v.weighted(log_probabilities(v.scores, self.activation))).unsqueeze(0)


@dataclass(frozen=True)
class OutcomeLogSums(LogSums):
    """sum log p + log(1-p), for label smoothing one-vs-rest: result (1, B, C)."""

    def definition(self, v: Voxels) -> Tensor:
        return _total(v.weighted(torch.add(*binary_log_probabilities(v.scores, self.activation)))).unsqueeze(0)


@dataclass(frozen=True, eq=False)
class VoxelMap(Term):
    """The voxel-wise loss itself, 0 where a voxel does not count: result (B, channels, *spatial).

    Attributes:
        sums: the loss.
        positive: (C,) or (B, C) factors of the losses of positive outcomes, or None for 1.
        negative: the same of negative ones (one-vs-rest), or None for 1.
        spread: whether a categorical loss, too, has C channels: that of its true class, 0 elsewhere. Else it has one.
        smoothing: e, the target is (1-e) g + e/C, or (1-e) g + e/2 one-vs-rest; for losses linear in g.
    """

    sums: VoxelSums
    positive: Tensor | None = None
    negative: Tensor | None = None
    spread: bool = False
    smoothing: float = 0.0
    is_map: ClassVar[bool] = True
    holds_voxels: ClassVar[bool] = True

    @property
    def activation(self) -> Activation:
        return self.sums.activation

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        channels = scores.shape[1] if self.spread or self.sums.one_vs_rest else 1
        return scores.shape[0], channels, *scores.shape[2:]

    def definition(self, v: Voxels) -> Tensor:
        if self.smoothing:
            v = v.smoothed(self.smoothing, one_vs_rest=self.sums.one_vs_rest)
        positive, negative = self.sums.losses(v)
        if self.sums.one_vs_rest:
            return v.weighted(_scaled(positive, self.positive) + _scaled(negative, self.negative))
        loss = _scaled(positive, self.positive)
        return v.weighted(loss if self.spread else loss.sum(1, keepdim=True))

    def in_piece(self, piece: Piece) -> Self:
        if self.positive is None or self.positive.ndim == 1:
            return self
        negative = None if self.negative is None else self.negative[piece.samples]
        return dataclasses.replace(self, positive=self.positive[piece.samples], negative=negative)


@dataclass(frozen=True, eq=False)
class MapSums(Term):
    """sum m f with a map m of numbers that have no gradient: result (1, B, C).

    Attributes:
        activation: how the scores become probabilities.
        map: m, (B, C, *spatial) float32.
        of: "probability": f = p; "error": f = (p-g)^2; "surface": f = (1-2g)^2 - (1-(g+p))^2, of the generalized
            surface loss, taken as (p-g) (2-3g-p): 0 and without cancellation for a perfect prediction.
        inward: (B,) numbers >= 0, added to what is below 0 in the map of each sample, up to 0.
    """

    activation: Activation
    map: Tensor
    of: MapOf
    inward: Tensor | None = None
    holds_voxels: ClassVar[bool] = True

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return 1, scores.shape[0], scores.shape[1]

    def definition(self, v: Voxels) -> Tensor:
        f = p = probabilities(v.scores, self.activation)
        if self.of != "probability":
            g = v.one_hot()
            f = (p - g) ** 2 if self.of == "error" else (p - g) * (2 - 3 * g - p)
        return _total(v.weighted(self.numbers().to(f) * f)).unsqueeze(0)

    def numbers(self) -> Tensor:
        """(B, C, M) the map as it counts."""
        numbers = self.map.flatten(2)
        if self.inward is None:
            return numbers
        # Of what is above 0 nothing is below: min(0 + inward, 0) = 0. (A `where` takes five times as long.)
        inside = numbers.clamp_max(0).add_(self.inward.view(-1, 1, 1)).clamp_max_(0)
        return inside.add_(numbers.clamp_min(0))

    def in_piece(self, piece: Piece) -> Self:
        inward = None if self.inward is None else self.inward[piece.samples]
        return dataclasses.replace(self, map=piece.read(self.map), inward=inward)


@dataclass(frozen=True, eq=False)
class CellSums(Term):
    """sum pg, sum p, sum g, sum of the losses -log p_t and sum 1 over cells, of some of the classes.

    Result (B, C', 5, K): of each sample and class, over the voxels of each number 0..K-1 that the map has for it.

    Attributes:
        activation: how the scores become probabilities.
        cells: (B, C', *spatial) whole numbers, of any dtype, for the classes from `first` on.
        number: K, above all of them.
        first: class.
        within: whether a voxel outside its class, or with a soft target up to 0.5, has the number 0 whatever the map.
    """

    activation: Activation
    cells: Tensor
    number: int
    first: int
    within: bool
    holds_voxels: ClassVar[bool] = True

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return *self.cells.shape[:2], 5, self.number

    def definition(self, v: Voxels) -> Tensor:
        g = v.one_hot()
        log_p, log_not_p = (x[:, self.first :] for x in outcome_log_probabilities(v.scores, self.activation, g))
        p, g = probabilities(v.scores, self.activation)[:, self.first :], g[:, self.first :]
        place = self.places(g > 0.5)
        rows = (p * g, p, g, -(g * log_p + (1 - g) * log_not_p), torch.ones_like(p))
        return torch.stack([self._sums(v.weighted(row), place) for row in rows], 2)

    def _sums(self, values: Tensor, place: Tensor) -> Tensor:
        """(B, C', K) sums of (B, C', M) values by their places."""
        pairs = place.shape[0] * place.shape[1]
        zeros = torch.zeros(pairs * self.number, dtype=sum_dtype(values.device), device=values.device)
        sums = zeros.index_add(0, place.flatten(), values.to(zeros.dtype).flatten())
        return sums.view(*place.shape[:2], self.number)

    def places(self, inside: Tensor) -> Tensor:
        """(B, C', M) where in a flat (B, C', K) the cell of each voxel is; `inside` (B, C', M): its own class."""
        cells = self.cells.flatten(2).to(torch.int64)
        if self.within:
            cells = torch.where(inside, cells, 0)
        pairs = cells.shape[0] * cells.shape[1]
        return cells + self.number * torch.arange(pairs, device=cells.device).view(*cells.shape[:2], 1)

    def in_piece(self, piece: Piece) -> Self:
        return dataclasses.replace(self, cells=piece.read(self.cells))

    def view(self, result: Tensor, piece: Piece) -> Tensor:
        return result[piece.samples]


@dataclass(frozen=True)
class BinSums(Term):
    """sum p, sum g and sum 1 over the voxels whose p is in a bin of [0, 1]: result (B, C, 3, bins).

    Attributes:
        activation: how the scores become probabilities.
        bins: how many, of equal width; bin b has b/bins < p <= (b+1)/bins, the first p = 0 too.
        soft: a voxel belongs to the two bins whose centres are nearest to p, by how near they are; beyond the outer
            centres to one.
    """

    activation: Activation
    bins: int
    soft: bool = False

    def shape(self, scores: Tensor) -> tuple[int, ...]:
        return scores.shape[0], scores.shape[1], 3, int(self.bins)

    def definition(self, v: Voxels) -> Tensor:
        p = probabilities(v.scores, self.activation)
        rows = p, v.one_hot(), torch.ones_like(p)
        tables = [
            torch.stack([self._sums(v.weighted(row * share), place) for row in rows], 2)
            for place, share in self._shares(p)
        ]
        return torch.stack(tables).sum(0)

    def _shares(self, p: Tensor) -> list[tuple[Tensor, Tensor | float]]:
        """The bins (B, C, M) of each voxel, and its share in them."""
        if not self.soft or self.bins < 2:
            return [(self.bin_of(p.detach()), 1.0)]
        place = (p * self.bins - 0.5).clamp(0, self.bins - 1)
        lower = place.detach().nan_to_num().floor().clamp_max(self.bins - 2)
        share, first = place - lower, lower.to(torch.int64)
        return [(first, 1 - share), (first + 1, share)]

    def bin_of(self, p: Tensor) -> Tensor:
        """(B, C, M) the bin of each probability, whole numbers."""
        upper = (p * self.bins).ceil_().nan_to_num_(1.0).clamp_(1, self.bins)
        # A product may be rounded across an edge; the quotient is the edge itself. (torch.bucketize is several times
        # slower.)
        upper -= (p <= (upper - 1) / self.bins).to(p.dtype)
        upper += (p > upper / self.bins).to(p.dtype)
        return upper.clamp_(1, self.bins).sub_(1).to(torch.int64)

    def _sums(self, values: Tensor, place: Tensor) -> Tensor:
        """(B, C, bins) sums of (B, C, M) values."""
        zeros = torch.zeros(*place.shape[:2], int(self.bins), dtype=sum_dtype(values.device), device=values.device)
        return zeros.scatter_add(2, place, values.to(zeros.dtype))

    def view(self, result: Tensor, piece: Piece) -> Tensor:
        return result[piece.samples]


def _scaled(values: Tensor, factors: Tensor | None) -> Tensor:
    """(B, C, M) values times (C,) or (B, C) factors."""
    return values if factors is None else values * factors.to(values).unsqueeze(-1)


def _total(values: Tensor) -> Tensor:
    """Sum over the voxels, in float64 where the device has it."""
    return values.sum(-1, dtype=sum_dtype(values.device))


def probabilities(scores: Tensor, activation: Activation) -> Tensor:
    """(B, C, M) probabilities."""
    if activation == "softmax":
        return torch.softmax(scores, 1)
    return torch.sigmoid(scores) if activation == "sigmoid" else scores


def log_probabilities(scores: Tensor, activation: Activation) -> Tensor:
    """(B, C, M) log p, finite for a probability of 0."""
    if activation == "softmax":
        return F.log_softmax(scores, 1)
    return F.logsigmoid(scores) if activation == "sigmoid" else _safe_log(scores)


def outcome_log_probabilities(scores: Tensor, activation: Activation, g: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, M) log p and log(1-p) of each channel as a decision of its own, to be multiplied by g and by 1-g."""
    log_p, log_not_p = binary_log_probabilities(scores, activation)
    return where_counted(log_p, g), where_counted(log_not_p, 1 - g)


def where_counted(values: Tensor, share: Tensor) -> Tensor:
    """`values`, 0 where they are -inf and have no share of the loss: 0 log 0 = 0, and so is its gradient."""
    return values.masked_fill((share == 0) & (values == -torch.inf), 0)


def binary_log_probabilities(scores: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """(B, C, M) log p and log(1-p) of each channel as a decision of its own."""
    if activation == "sigmoid":
        return F.logsigmoid(scores), F.logsigmoid(-scores)  # log(1 - sigmoid(x)) = logsigmoid(-x)
    if activation == "softmax":
        log_p = F.log_softmax(scores, 1)
        # log(1 - p_c) = logsumexp of the other scores - logsumexp of all. For the largest score the others are summed
        # without it; for every other p_c <= 1/2, and log1p(-p_c) loses nothing.
        top = scores == scores.amax(1, keepdim=True)
        first = top & (top.cumsum(1) == 1)
        others = scores.masked_fill(first, -torch.inf)
        alone = others.amax(1, keepdim=True) == -torch.inf  # whose logsumexp has no gradient
        rest = others.masked_fill(alone, 0).logsumexp(1, keepdim=True).masked_fill(alone, -torch.inf)
        log_rest = rest - scores.logsumexp(1, keepdim=True)
        small = torch.where(first, 0.0, log_p.exp())
        return log_p, torch.where(first, log_rest, torch.log1p(-small))
    return _safe_log(scores), _safe_log(1 - scores)


def _largest_other(scores: Tensor) -> Tensor:
    """(B, C, M) the largest score of the other channels."""
    top, position = scores.topk(2, dim=1)
    channel = torch.arange(scores.shape[1], device=scores.device).view(1, -1, 1)
    return torch.where(channel == position[:, :1], top[:, 1:], top[:, :1])


def _safe_log(p: Tensor) -> Tensor:
    return p.clamp_min(torch.finfo(torch.float32).tiny).log()  # in float64 too: one p, one value
