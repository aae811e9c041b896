"""What the kernels share: a slab, and the table of what it computes.

A slab is a part of a call with a label map: x (b, C, m) scores, t (b, m) class of each voxel, w (b, m) weights or None.
No one-hot of the call is built: with g the one-hot of t, sums over g are sums by label, and a gradient has a part that
is the same for every voxel of a class and a part at the true class alone.

A subclass is an activation. Its table `kernels` has for each type of term how it is computed forward and backward, and
what that keeps in memory. What is not in the table takes the definition of the term.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from monai_extra_losses.ops.call_data import Voxels
from monai_extra_losses.ops.kernels.labels import FewLabels, IndexedLabels
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.terms import (
    Activation,
    BinSums,
    CellSums,
    CountSums,
    MapSums,
    TargetSums,
    Term,
    VoxelFormula,
    VoxelMap,
    VoxelSums,
)

Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kernel:
    """How a slab computes one type of term.

    Attributes:
        forward: adds the slab to the sums (rows, b, C), or fills the slab (b, channels, m) of a map.
        backward: the parts of the gradient that follow from the gradient of the result; equal parts of all terms are
            added, and the slab's `write_gradient` says what they are. None: the result does not depend on the scores.
        floats: how many float32 numbers per voxel the term keeps, given the number of channels (measured; tests hold
            the memory).
        takes: which terms of the type have the kernel; None: all.
    """

    forward: Callable[[Any, Any, Tensor], None]
    backward: Callable[[Any, Any, Tensor], Parts] | None
    floats: Callable[[Any, int], int] = lambda term, channels: 0
    takes: Callable[[Any], bool] | None = None


class Slab(ABC):
    """One slab of a call.

    Args:
        v: the slab.
        p: (b, C, m) probabilities of the slab, where they are known; the gradient may be written over them.
        by_index: read the labels as an index, which leaves out what is infinite, too; else as a one-hot.
    """

    activation: ClassVar[Activation]
    kernels: ClassVar[Mapping[type[Term], Kernel]]
    takes_anything: ClassVar[bool] = False  # infinite scores too, and NaN where a voxel does not count

    def __init__(self, v: Voxels, p: Tensor | None = None, *, by_index: bool = False) -> None:
        self.x, self.w, self.unknown = v.scores, v.weight, v.unknown
        self.labels = IndexedLabels(v) if by_index else FewLabels(v)
        if p is not None:
            vars(self)["p"] = p  # in place of what it would compute

    @classmethod
    def computes(cls, terms: Sequence[Term], channels: int) -> bool:
        """Whether every term has a kernel here."""
        for term in terms:
            kernel = cls.kernels.get(type(term))
            if kernel is None or (kernel.takes is not None and not kernel.takes(term)):
                return False
            if term.reads_scores and term.activation != cls.activation:
                return False
        return True

    def forward(self, terms: Sequence[Term], outs: Sequence[Tensor]) -> None:
        """Add the slab to the sums of the terms, and fill its part of their maps.

        Raises:
            WrongLabelsError: on the CPU.
        """
        self.check()
        for term, out in zip(terms, outs, strict=True):
            self.kernels[type(term)].forward(self, term, out)

    def results(self, terms: Sequence[Term]) -> tuple[Tensor, ...]:
        """The results of terms of sums, of this slab alone."""
        shapes = [term.shape(self.x) for term in terms]
        outs = tuple(torch.zeros(shape, dtype=sum_dtype(self.x.device), device=self.x.device) for shape in shapes)
        self.forward(terms, outs)
        return outs

    def backward(self, terms: Sequence[Term], grads: Sequence[Tensor], out: Tensor) -> None:
        """Write the (b, C, m) gradient with respect to the scores, from the gradients of the results."""
        parts: dict[str, Tensor] = {}
        for term, grad in zip(terms, grads, strict=True):
            backward = self.kernels[type(term)].backward
            assert backward is not None
            for name, part in backward(self, term, grad.to(self.x.dtype)).items():
                parts[name] = parts[name] + part if name in parts else part
        self.write_gradient(parts, out)

    @abstractmethod
    def write_gradient(self, parts: Parts, out: Tensor) -> None:
        """The gradient, from its parts."""

    def check(self) -> None:
        """Refuse wrong labels before they are used as an index."""
        if self.x.device.type == "cpu":
            self.labels.volumes  # noqa: B018  counting finds them

    def sum(self, values: Tensor) -> Tensor:
        """(b, C) weighted sums over the voxels. Float32 within a slab (pairwise in torch), float64 across slabs."""
        return values.sum(2) if self.w is None else torch.bmm(values, self.w.unsqueeze(2)).squeeze(2)

    def by_class(self, values: Tensor) -> Tensor:
        """(b, C) weighted sums of (b, m) values over the voxels of each class."""
        return self.labels.sums(values if self.w is None else values * self.w)

    def by_outcome(self, values: Tensor, out: Tensor) -> None:
        """Add the (b, C, m) losses of each channel's outcome: row 0 at the true class, row 1 elsewhere."""
        out[0].add_(self.labels.own_sums(values, self.w))
        out[1].add_(self.sum(self.labels.clear(values)))

    def weighted(self, values: Tensor) -> Tensor:
        """(b, m) or (b, C, m) values times the weight of each voxel, in place."""
        if self.w is None:
            return values
        return values.mul_(self.w if values.ndim == 2 else self.w.unsqueeze(1))


class ProbabilitySlab(Slab):
    """A slab whose terms read probabilities p (b, C, m)."""

    @cached_property
    def p(self) -> Tensor:
        """(b, C, m) probabilities."""
        raise NotImplementedError

    @cached_property
    def p_true(self) -> Tensor:
        """(b, m) probability of each voxel's own class."""
        return self.labels.own(self.p)


def target_sums(slab: Slab, term: TargetSums, out: Tensor) -> None:
    """sum g, sum 1."""
    out[0].add_(slab.labels.volumes if slab.w is None else slab.labels.sums(slab.w))
    out[1].add_(slab.x.shape[2] if slab.w is None else slab.w.sum(1, keepdim=True, dtype=out.dtype))


def count_sums(slab: ProbabilitySlab, term: CountSums, out: Tensor) -> None:
    """sum pg, sum p, sum p^2, sum g^2. With labels min(p, g) = pg."""
    out[0].add_(slab.labels.own_sums(slab.p, slab.w))
    out[1].add_(slab.sum(slab.p))
    if term.squares:
        out[2].add_(slab.sum(slab.p * slab.p))
        out[3].add_(slab.labels.volumes if slab.w is None else slab.labels.sums(slab.w))  # g^2 = g


def map_sums(slab: ProbabilitySlab, term: MapSums, out: Tensor) -> None:
    """Sums of a map times p, (p-g)^2 or, for "surface", p (2-p) off the true class and (1-p) (1+p) on it."""
    values = slab.p
    if term.of == "error":
        values = slab.labels.put(slab.p * slab.p, (1 - slab.p_true).square_())
    elif term.of == "surface":
        values = slab.labels.put(slab.p * (2 - slab.p), (1 - slab.p_true) * (1 + slab.p_true))
    out[0].add_(slab.sum(term.numbers().to(slab.x.dtype) * values))


def map_gradient(slab: ProbabilitySlab, term: MapSums, grad: Tensor) -> Tensor:
    """(b, C, m) dL/dp of such sums: 1, 2 (p-g), and 2 (1-p) off the true class, -2 p on it."""
    d = term.numbers().to(slab.x.dtype) * grad[0].unsqueeze(2)
    if term.of == "error":
        d *= slab.labels.put(2 * slab.p, 2 * (slab.p_true - 1))
    elif term.of == "surface":
        d *= slab.labels.put(2 - 2 * slab.p, -2 * slab.p_true)
    return d


def add_cell_sums(term: CellSums, out: Tensor, p: Tensor, log_pt: Tensor, inside: Tensor, w: Tensor | None) -> None:
    """Add the sums of `CellSums`.

    Args:
        term: with the cells of the slab.
        out: (b, C', 5, K) sums.
        p: (b, C', m) probabilities.
        log_pt: (b, C', m) log-probabilities of the true outcomes.
        inside: (b, C', m) whole numbers, 1 where a voxel is of the class, else 0.
        w: (b, m) weights, or None.
    """
    places = _cells_and_sides(term, inside)
    shape = (*out.shape[:2], out.shape[3], 2)
    weights = None if w is None else w.unsqueeze(1).expand_as(p)
    of_p, of_log, voxels = (
        _sums_by_place(places, values, math.prod(shape)).view(shape)
        for values in (*((x if weights is None else x * weights) for x in (p, log_pt)), weights)
    )
    of_all = [_of_numbers(term, sums) for sums in (of_p, of_log, voxels)]
    rows = of_p[..., 1], of_all[0], voxels[..., 1], -of_all[1], of_all[2]
    out.add_(torch.stack(rows, 2))


def _of_numbers(term: CellSums, sums: Tensor) -> Tensor:
    """(b, C', K) sums by number, of those by cell and side (b, C', K, 2)."""
    if not term.within:
        return sums.sum(-1)
    outside = sums[..., 0].sum(-1, keepdim=True)
    return torch.cat([sums[..., :1, 1] + outside, sums[..., 1:, 1]], -1)


def _cells_and_sides(term: CellSums, inside: Tensor) -> Tensor:
    """(b C' m,) the place of each voxel in a flat (b, C', K, 2), of its cell and whether it is inside its class."""
    pairs = inside.shape[0] * inside.shape[1]
    dtype = torch.int32 if 2 * pairs * term.number < 2**31 else torch.int64
    inside, cells = inside.to(dtype), term.cells.flatten(2).to(dtype)
    # Outside its class a voxel has its own place `within`, too: numbers added to one place wait for each other.
    places = torch.add(inside, cells, alpha=2)
    if pairs > 1:
        places += (2 * term.number * torch.arange(pairs, dtype=dtype, device=cells.device)).view(*cells.shape[:2], 1)
    return places.flatten()


def _sums_by_place(places: Tensor, values: Tensor | None, number: int) -> Tensor:
    """(number,) float64 sums of values, or counts, by their places."""
    if places.device.type == "cpu":
        weights = None if values is None else values.double().flatten()  # with float32 ones it would add in float32
        return torch.bincount(places, weights, minlength=number)
    dtype = sum_dtype(places.device)
    values = torch.ones_like(places, dtype=dtype) if values is None else values.to(dtype).flatten()
    return torch.zeros(number, dtype=dtype, device=places.device).index_add_(0, places, values)


def cell_gradient(term: CellSums, grad: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """(b, C', m) dL/dp, and dL/dlog p_t, from the gradient (b, C', 5, K) of the sums of `CellSums`; see there."""
    places = _cells_and_sides(term, inside)
    overlap, of_p, of_log = grad[:, :, 0], grad[:, :, 1], -grad[:, :, 3]
    outside = [x[..., :1].expand_as(x) if term.within else x for x in (of_p, of_log)]
    of_p, of_log = torch.stack([outside[0], overlap + of_p], -1), torch.stack([outside[1], of_log], -1)
    by_p, by_log = (table.flatten().index_select(0, places).view_as(inside) for table in (of_p, of_log))
    return by_p, by_log


def add_bin_sums(term: BinSums, out: Tensor, p: Tensor, inside: Tensor, w: Tensor | None) -> None:
    """Add the sums of `BinSums`, (b, C, 3, bins); p and inside (b, C, m) as of `add_cell_sums`."""
    shape = (*p.shape[:2], int(term.bins), 2)
    pairs = torch.arange(p.shape[0] * p.shape[1], device=p.device).view(*p.shape[:2], 1)
    places = ((term.bin_of(p) + shape[2] * pairs) * 2).add_(inside.to(torch.int64)).flatten()
    weights = None if w is None else w.unsqueeze(1).expand_as(p)
    of_p = _sums_by_place(places, p if weights is None else p * weights, math.prod(shape)).view(shape)
    voxels = _sums_by_place(places, weights, math.prod(shape)).view(shape)
    out.add_(torch.stack([of_p.sum(-1), voxels[..., 1].to(of_p), voxels.sum(-1).to(of_p)], 2))


def bin_gradient(term: BinSums, grad: Tensor, p: Tensor) -> Tensor:
    """(b, C, m) dL/dp of such sums: that of the sum of p in the voxel's bin."""
    return grad[:, :, 0].gather(2, term.bin_of(p))


def is_hard(term: BinSums) -> bool:
    """Whether a voxel is in one bin, which alone has a kernel."""
    return not term.soft


def factors_of(term: VoxelMap, like: Tensor) -> tuple[Tensor, Tensor]:
    """(b, C) factors of the losses of positive and negative outcomes of a map, for values (b, C, m)."""
    ones = like.new_ones(like.shape[:2])
    positive = ones if term.positive is None else term.positive.to(like).expand_as(ones)
    return positive, ones if term.negative is None else term.negative.to(like).expand_as(ones)


def is_differentiated(term: VoxelSums | VoxelMap) -> bool:
    """Whether the formula of a term states no slope."""
    return (term.sums if isinstance(term, VoxelMap) else term).slope is None


def slope_at(sums: VoxelSums, read: Callable[[], Tensor]) -> Tensor | float:
    """f' of a term's formula, by differentiation where none is stated; `read` is asked only where f' varies."""
    if isinstance(sums.slope, float):
        return sums.slope
    return derivative(sums.formula, read()) if sums.slope is None else sums.slope(read())


def derivative(formula: VoxelFormula, values: Tensor) -> Tensor:
    """f' of an elementwise formula."""
    with torch.enable_grad():
        leaf = values.detach().requires_grad_()
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


def total(values: Tensor) -> Tensor:
    """(b,) sums over the voxels of (b, m). Float32 within a slab, as `Slab.sum`; slabs are added in float64."""
    return values.sum(1).to(sum_dtype(values.device))
