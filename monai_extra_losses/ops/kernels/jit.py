"""The kernels that numba compiles, on the CPU: one loop over the voxels in place of an operation after the other.

They compute what the kernels in plain torch compute, from float32 scores and labels, with no memory but a tile, and the
softmax anew in the backward. What they lack, and scores whose probabilities leave the range of float32, are left to the
kernels in plain torch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import numba
import numpy as np
import torch
from torch import Tensor

from monai_extra_losses.ops.call_data import CallData, Voxels
from monai_extra_losses.ops.formulas import (
    CrossEntropyFormula,
    FocalFormula,
    GeneralizedCrossEntropyFormula,
    HingeFormula,
    PolyFormula,
    PowerFormula,
    SoftFocalFormula,
    SquaredHingeFormula,
)
from monai_extra_losses.ops.kernels import jit_loops
from monai_extra_losses.ops.kernels.margin import MarginSlab
from monai_extra_losses.ops.kernels.sigmoid import SigmoidSlab
from monai_extra_losses.ops.kernels.slab import Parts, Slab, factors_of
from monai_extra_losses.ops.kernels.softmax import SoftmaxSlab
from monai_extra_losses.ops.kernels.threads import spread
from monai_extra_losses.ops.kernels.two_classes import TwoClassSlab
from monai_extra_losses.ops.pieces import Piece
from monai_extra_losses.ops.terms import (
    Activation,
    CountSums,
    ErrorSums,
    LeadSums,
    LogSums,
    MarginSums,
    OutcomeSums,
    TargetSums,
    Term,
    TrueClassSums,
    VoxelFormula,
    VoxelMap,
    VoxelSums,
)
from monai_extra_losses.ops.wrong_targets import WrongLabelsError

Array = np.ndarray[Any, Any]
# How a warning speaks of the loops.
NAME, COMPILER, SWITCH = "compiled loops", f"numba {numba.__version__}", "MONAI_EXTRA_LOSSES_NUMBA"

_CHUNK = 1 << 17  # elements (channels x voxels) of a chunk: some tenths of a millisecond
_PART = 1 << 20  # the same of a part that is left to plain torch
_TILE = 256  # voxels; fewer where classes are many, so that a tile stays in the cache
_IN_TILE = 1 << 15
_KNOWN: dict[type, tuple[int, str | None]] = {
    CrossEntropyFormula: (jit_loops.CROSS_ENTROPY, None),
    FocalFormula: (jit_loops.FOCAL, "gamma"),
    SoftFocalFormula: (jit_loops.FOCAL, "gamma"),
    PolyFormula: (jit_loops.POLY, "epsilon"),
    GeneralizedCrossEntropyFormula: (jit_loops.GENERALIZED, "q"),
    PowerFormula: (jit_loops.POWER, "gamma"),
    HingeFormula: (jit_loops.HINGE, None),
    SquaredHingeFormula: (jit_loops.SQUARED_HINGE, None),
}
# The loops are compiled for these once each; other labels are converted, slab by slab.
_LABELS = {torch.float32, torch.float64, torch.uint8, torch.int16, torch.int32, torch.int64}
_NO_WEIGHTS = np.zeros(0, np.float32)
_NO_FACTORS = np.zeros((2, 0, 0), np.float32)
_COUNTS_AND_SQUARES = [jit_loops.OVERLAP, jit_loops.OF_P, jit_loops.OF_SQUARE, jit_loops.VOLUME]


class JitSlab(Slab):
    """A slab whose sums and gradient come from one loop each.

    Attributes:
        otherwise: the kernels in plain torch.
        loops: forward and backward.
        rows: how many rows of sums a formula has.
        of_two: whether the difference of two classes is read.
        form: what the loops are told of it.
    """

    otherwise: ClassVar[type[Slab]]
    loops: ClassVar[tuple[Callable[..., None], Callable[..., None]]]
    rows: ClassVar[int]
    takes_anything = True
    of_two: ClassVar[bool] = False
    form: ClassVar[tuple[bool, ...]] = ()

    def __init__(self, v: Voxels, p: Tensor | None = None, *, by_index: bool = False) -> None:
        assert v.labels is not None
        self.v, self.x, self.w, labels = v, v.scores, v.weight, v.labels
        if labels.dtype == torch.bool:
            labels = labels.view(torch.uint8)
        elif labels.dtype not in _LABELS:
            labels = labels.float() if labels.is_floating_point() else labels.to(torch.int64)
        weights = _NO_WEIGHTS if v.weight is None else v.weight.contiguous().view(-1).numpy()
        batch, channels, m = v.scores.shape
        self._shape = batch, 1 if self.of_two else channels
        tile = min(_TILE, max(_IN_TILE // channels, 16))
        chunk = max(_CHUNK // channels // tile, 1) * tile
        self._chunks = batch * -(-m // chunk)
        sizes = self._shape[1], m, chunk, tile
        self._data = *_flat(v.scores), *_flat(labels)[:2], weights, v.weight is not None, *self.form, *sizes

    @classmethod
    def computes(cls, terms: Sequence[Term], channels: int) -> bool:
        kinds = [type(term) for term in terms]
        if kinds.count(VoxelMap) > 1 or kinds.count(ErrorSums) > 1:
            return False
        return all(
            type(term) is TargetSums or (term.activation == cls.activation and cls.knows(term)) for term in terms
        )

    @classmethod
    def knows(cls, term: Term) -> bool:
        """Whether the loops compute a term that reads scores under the activation."""
        raise NotImplementedError

    def asked(self, terms: Sequence[Term]) -> tuple[Any, ...]:
        """What the loops are asked beside formulas: counts, ..."""
        raise NotImplementedError

    def formulas(self, terms: Sequence[Term]) -> list[Term]:
        """The terms that have rows of their own."""
        return [term for term in terms if isinstance(term, (VoxelSums, VoxelMap, ErrorSums))]

    def answer(self, term: Term, sums: Array, own: Array) -> Array:
        """The result (rows, b, C) of a term, from the sums (rows, b, C) and its own rows of them."""
        if isinstance(term, CountSums):
            return sums[_COUNTS_AND_SQUARES if term.squares else slice(jit_loops.OVERLAP, jit_loops.OF_P + 1)]
        return sums[jit_loops.VOLUME : jit_loops.COUNT + 1]

    def put_gradient(self, term: Term, grad: Array, of_sums: Array, own: Array) -> None:
        """Add to the gradient of the sums what that of a term's result makes of it."""
        if isinstance(term, CountSums):
            of_sums[jit_loops.OVERLAP : jit_loops.OF_P + 1] += grad[:2]
            if term.squares:
                of_sums[jit_loops.OF_SQUARE] += grad[2]

    def forward(self, terms: Sequence[Term], outs: Sequence[Tensor]) -> None:
        for out, result in zip(outs, self.results(terms), strict=True):
            out.add_(result)

    def results(self, terms: Sequence[Term]) -> tuple[Tensor, ...]:
        formulas = self.formulas(terms)
        batch, channels = self._shape
        of_chunks = np.zeros((self._chunks, jit_loops.FORMULAS + self.rows * len(formulas), channels))
        by_class = np.array([getattr(term, "by_class", True) for term in formulas], np.bool_)
        voxels = _NO_WEIGHTS
        if any(isinstance(term, VoxelMap) for term in terms):
            voxels = np.empty(batch * self._map_channels * self.x.shape[2], np.float32)
        status = self._run(0, terms, formulas, voxels, by_class, of_chunks)
        if status.any():
            if (status == jit_loops.WRONG_LABEL).any():
                raise WrongLabelsError
            return self._results_in_torch(terms)
        sums = of_chunks
        if self._chunks != batch:
            sums = of_chunks.reshape(batch, self._chunks // batch, *of_chunks.shape[1:]).sum(1)
        sums = sums.transpose(1, 0, 2)
        answers = (
            voxels.reshape(batch, self._map_channels, -1)
            if isinstance(term, VoxelMap)
            else np.ascontiguousarray(self.answer(term, sums, self._own(term, formulas, sums)))
            for term in terms
        )
        return tuple(torch.from_numpy(answer) for answer in answers)

    def backward(self, terms: Sequence[Term], grads: Sequence[Tensor], out: Tensor) -> None:
        formulas = self.formulas(terms)
        of_sums = np.zeros((jit_loops.FORMULAS + self.rows * len(formulas), *self._shape), np.float32)
        voxels = _NO_WEIGHTS
        for term, grad in zip(terms, grads, strict=True):
            if isinstance(term, VoxelMap):
                voxels = grad.to(torch.float32).contiguous().view(-1).numpy()
            else:
                self.put_gradient(term, grad.numpy(), of_sums, self._own(term, formulas, of_sums))
        assert out.stride(-1) == 1  # else a copy would be written
        if self._run(1, terms, formulas, voxels, of_sums, *_flat(out)).any():
            for slab, part in self._in_torch():
                own = [term.in_piece(part) for term in terms]
                views = [term.view(grad, part) for term, grad in zip(terms, grads, strict=True)]
                slab.backward(own, views, out[part.samples, :, part.voxels])

    def _own(self, term: Term, formulas: Sequence[Term], sums: Array) -> Array:
        """The rows of a term's formula."""
        places = (jit_loops.FORMULAS + self.rows * k for k, formula in enumerate(formulas) if formula is term)
        first = next(places, 0)
        return sums[first : first + self.rows]

    def _run(self, way: int, terms: Sequence[Term], formulas: Sequence[Term], voxels: Array, *wanted: Any) -> Array:
        known = [pair for pair in map(_known, formulas) if pair is not None]
        codes = np.array([code for code, _ in known], np.int64)
        numbers = np.array([number for _, number in known], np.float32)
        place, factors = -1, _NO_FACTORS
        for k, term in enumerate(formulas):
            if isinstance(term, VoxelMap):
                place, factors = k, self._factors(term)
        status = np.zeros(self._chunks, np.int64)
        data = *self._data, *self.asked(terms), codes, numbers, place, factors, voxels, *wanted, status
        spread(partial(self.loops[way], *data), self._chunks)
        return status

    @property
    def _map_channels(self) -> int:
        """How many channels a map has."""
        return 1 if self.rows == 1 else self._shape[1]

    def _factors(self, term: VoxelMap) -> Array:
        """(2, b, C) what the losses of positive and negative outcomes are multiplied by."""
        of_outcomes = factors_of(term, self.x)
        if self.of_two:  # a categorical loss, of class 1 and of class 0
            of_outcomes = of_outcomes[0][:, 1:], of_outcomes[0][:, :1]
        return torch.stack(of_outcomes).numpy()

    def _results_in_torch(self, terms: Sequence[Term]) -> tuple[Tensor, ...]:
        dtypes = [self.x.dtype if term.is_map else torch.float64 for term in terms]
        outs = tuple(
            self.x.new_zeros(term.shape(self.x), dtype=dtype) for term, dtype in zip(terms, dtypes, strict=True)
        )
        for slab, part in self._in_torch():
            own = [term.in_piece(part) for term in terms]
            slab.forward(own, [term.view(out, part) for term, out in zip(terms, outs, strict=True)])
        return outs

    def _in_torch(self) -> Iterator[tuple[Slab, Piece]]:
        """The same in plain torch, piece by piece."""
        batch, channels, m = self.x.shape
        step = _PART // channels
        for sample in range(batch):
            for first in range(0, m, step):
                piece = Piece(slice(sample, sample + 1), slice(first, first + step))
                yield self.otherwise(self.v.part(piece).without_ignored(), by_index=True), piece

    def write_gradient(self, parts: Parts, out: Tensor) -> None:
        raise NotImplementedError  # `backward` writes it at once


class JitSoftmaxSlab(JitSlab):
    """Under a softmax of any number of classes."""

    activation = "softmax"
    otherwise = SoftmaxSlab
    loops = jit_loops.softmax_forward, jit_loops.softmax_backward
    rows = 1

    @classmethod
    def knows(cls, term: Term) -> bool:
        if isinstance(term, OutcomeSums):
            return type(term.formula) is CrossEntropyFormula
        if isinstance(term, VoxelMap):
            return _is_plain(term, TrueClassSums)
        return type(term) in (CountSums, LogSums) or (
            type(term) in (TrueClassSums, ErrorSums) and _known(term) is not None
        )

    def asked(self, terms: Sequence[Term]) -> tuple[Any, ...]:
        kinds = [type(term) for term in terms]
        squares = any(isinstance(term, CountSums) and term.squares for term in terms)
        powers = [term.power for term in terms if isinstance(term, ErrorSums)]
        return (
            CountSums in kinds,
            squares,
            LogSums in kinds,
            OutcomeSums in kinds,
            float(powers[0] if powers else 0),
        )

    def formulas(self, terms: Sequence[Term]) -> list[Term]:
        return [term for term in terms if isinstance(term, (TrueClassSums, VoxelMap, ErrorSums))]

    def answer(self, term: Term, sums: Array, own: Array) -> Array:
        if isinstance(term, TrueClassSums):
            return np.concatenate([own, np.zeros_like(own)])
        if isinstance(term, ErrorSums):
            return np.concatenate([own, sums[[jit_loops.OF_ERROR]]])
        if isinstance(term, OutcomeSums):
            return -sums[jit_loops.OF_LOG_TRUE : jit_loops.OF_LOG_REST + 1]
        return sums[[jit_loops.OF_LOG]] if isinstance(term, LogSums) else super().answer(term, sums, own)

    def put_gradient(self, term: Term, grad: Array, of_sums: Array, own: Array) -> None:
        if isinstance(term, TrueClassSums):
            own[0] = grad[0] if term.by_class else grad[0, :, :1]
        elif isinstance(term, ErrorSums):
            own[0] = grad[0]
            of_sums[jit_loops.OF_ERROR] += grad[1]
        elif isinstance(term, OutcomeSums):
            of_sums[jit_loops.OF_LOG_TRUE : jit_loops.OF_LOG_REST + 1] -= grad
        elif isinstance(term, LogSums):
            of_sums[jit_loops.OF_LOG] += grad[0]
        else:
            super().put_gradient(term, grad, of_sums, own)


class JitSigmoidSlab(JitSlab):
    """Under a sigmoid."""

    activation: ClassVar[Activation] = "sigmoid"
    otherwise: ClassVar[type[Slab]] = SigmoidSlab
    loops = jit_loops.sigmoid_forward, jit_loops.sigmoid_backward
    form = (False, False)
    rows = 2

    @classmethod
    def knows(cls, term: Term) -> bool:
        if isinstance(term, VoxelMap):
            return _is_plain(term, OutcomeSums)
        return type(term) is CountSums or (type(term) in (OutcomeSums, ErrorSums) and _known(term) is not None)

    def asked(self, terms: Sequence[Term]) -> tuple[Any, ...]:
        return (any(isinstance(term, CountSums) for term in terms),)

    def answer(self, term: Term, sums: Array, own: Array) -> Array:
        return own if isinstance(term, (OutcomeSums, ErrorSums)) else super().answer(term, sums, own)

    def put_gradient(self, term: Term, grad: Array, of_sums: Array, own: Array) -> None:
        if isinstance(term, (OutcomeSums, ErrorSums)):
            own[:] = grad
        else:
            super().put_gradient(term, grad, of_sums, own)


class JitTwoClassSlab(JitSigmoidSlab):
    """Under a softmax of two classes: a sigmoid of x_1 - x_0, see `two_classes`."""

    activation = "softmax"
    otherwise = TwoClassSlab
    form = (True, False)
    of_two = True

    @classmethod
    def computes(cls, terms: Sequence[Term], channels: int) -> bool:
        return channels == 2 and super().computes(terms, channels)

    @classmethod
    def knows(cls, term: Term) -> bool:
        if isinstance(term, VoxelMap):
            return _is_plain(term, TrueClassSums)
        return (type(term) is TrueClassSums and _known(term) is not None) or super().knows(term)

    def answer(self, term: Term, sums: Array, own: Array) -> Array:
        if isinstance(term, (VoxelSums, ErrorSums)):
            positive, negative = own
            first = np.concatenate([negative, positive], 1)
            if isinstance(term, (OutcomeSums, ErrorSums)):  # log(1-p_c) of the wrong class is log p_t
                return np.stack([first, first[:, ::-1]])
            if not term.by_class:  # type: ignore[attr-defined]
                of_all = first.sum(1, keepdims=True)
                first = np.concatenate([of_all, np.zeros_like(of_all)], 1)
            return np.stack([first, np.zeros_like(first)])
        n, volume = sums[jit_loops.COUNT], sums[jit_loops.VOLUME]
        rows = [(n - volume, volume), (n, n)]
        if isinstance(term, CountSums):
            overlap, of_p, square = sums[jit_loops.OVERLAP], sums[jit_loops.OF_P], sums[jit_loops.OF_SQUARE]
            rows = [(n - of_p - volume + overlap, overlap), (n - of_p, of_p)]
            if term.squares:
                rows += [(n - 2 * of_p + square, square), (n - volume, volume)]  # (1-p)^2 = 1 - 2p + p^2
        return np.stack([np.concatenate(row, 1) for row in rows])

    def put_gradient(self, term: Term, grad: Array, of_sums: Array, own: Array) -> None:
        lower, upper = grad[..., :1], grad[..., 1:]
        if isinstance(term, (OutcomeSums, ErrorSums)):
            own[:] = np.stack([upper[0] + lower[1], lower[0] + upper[1]])
        elif isinstance(term, VoxelSums):
            own[:] = np.stack([upper[0], lower[0]] if term.by_class else [lower[0], lower[0]])  # type: ignore[attr-defined]
        else:
            of_sums[jit_loops.OVERLAP] += lower[0] + upper[0]
            of_sums[jit_loops.OF_P] += upper[1] - lower[1] - lower[0]
            if grad.shape[0] > 2:
                of_sums[jit_loops.OF_P] -= 2 * lower[2]
                of_sums[jit_loops.OF_SQUARE] += lower[2] + upper[2]


class JitMarginSlab(JitSigmoidSlab):
    """Of raw scores, every channel a decision of its own."""

    activation = "none"
    otherwise = MarginSlab
    form = (False, True)

    @classmethod
    def knows(cls, term: Term) -> bool:
        return type(term) is MarginSums and _known(term) is not None

    def answer(self, term: Term, sums: Array, own: Array) -> Array:
        return own if isinstance(term, MarginSums) else super().answer(term, sums, own)

    def put_gradient(self, term: Term, grad: Array, of_sums: Array, own: Array) -> None:
        own[:] = grad


class JitLeadSlab(JitSlab):
    """Of raw scores, the lead of the own class over the next."""

    activation = "none"
    otherwise = MarginSlab
    loops = jit_loops.lead_forward, jit_loops.lead_backward
    rows = 1

    @classmethod
    def knows(cls, term: Term) -> bool:
        return type(term) is LeadSums and _known(term) is not None

    def asked(self, terms: Sequence[Term]) -> tuple[Any, ...]:
        return ()

    def answer(self, term: Term, sums: Array, own: Array) -> Array:
        return (
            np.concatenate([own, np.zeros_like(own)]) if isinstance(term, LeadSums) else super().answer(term, sums, own)
        )

    def put_gradient(self, term: Term, grad: Array, of_sums: Array, own: Array) -> None:
        own[0] = grad[0]


def _is_plain(term: VoxelMap, sums: type[VoxelSums]) -> bool:
    """Whether a map is of such sums with a formula that the loops know, and nothing more."""
    return type(term.sums) is sums and not term.spread and not term.smoothing and _known(term) is not None


def _flat(tensor: Tensor) -> tuple[Array, int, int]:
    """All of a tensor of voxels side by side as one array, and the strides of its first two axes."""
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    strides = tensor.stride()
    length = tensor.numel()
    if length and not tensor.is_contiguous():
        length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    return torch.as_strided(tensor, (length,), (1,)).numpy(), strides[0], strides[1]


def _known(term: Term) -> tuple[int, float] | None:
    """The number of a term's formula in the loops, and its parameter."""
    if isinstance(term, ErrorSums):
        return (jit_loops.ERROR, term.power) if term.power > 0 else None  # 0 says that there is none
    sums = term.sums if isinstance(term, VoxelMap) else term
    formula = sums.formula if isinstance(sums, VoxelSums) else None
    known = _KNOWN.get(type(formula))
    if known is None:
        return None
    code, name = known
    return code, 0.0 if name is None else float(getattr(formula, name))


def reads(dtype: torch.dtype) -> bool:
    """Whether the loops read labels of this type as they are."""
    return dtype == torch.bool or dtype in _LABELS


_SLABS: tuple[type[JitSlab], ...] = (
    JitTwoClassSlab,
    JitSoftmaxSlab,
    JitSigmoidSlab,
    JitMarginSlab,
    JitLeadSlab,
)


def slab_of(terms: Sequence[Term], channels: int) -> type[JitSlab] | None:
    """The loops that compute all of the terms, if any do."""
    return next((slab for slab in _SLABS if slab.computes(terms, channels)), None)


def known_to(slab: type[JitSlab]) -> list[tuple[tuple[Term, ...], int]]:
    """Terms, and numbers of channels, that run all code of the loops of a slab."""
    activation = slab.activation
    formulas: list[VoxelFormula] = [CrossEntropyFormula(), FocalFormula(2.0), FocalFormula(1.5), PolyFormula(0.5)]
    formulas += [GeneralizedCrossEntropyFormula(0.7), PowerFormula(1.5)]
    terms: list[Term] = [TargetSums(), CountSums(activation, squares=True)]
    if activation == "softmax":
        terms += [TrueClassSums(activation, formula, by_class=i > 0) for i, formula in enumerate(formulas)]
    if slab in (JitMarginSlab, JitLeadSlab):
        kind = MarginSums if slab is JitMarginSlab else LeadSums
        return [((TargetSums(), kind(HingeFormula()), kind(SquaredHingeFormula())), 3)]
    terms.append(ErrorSums(activation, 1.7))
    if slab is JitSoftmaxSlab:
        terms += [LogSums(activation), OutcomeSums(activation, CrossEntropyFormula())]
        return [(tuple(terms), channels) for channels in (3, 20)]
    terms += [OutcomeSums(activation, formula) for formula in formulas]
    return [(tuple(terms), 2)]


def forward(data: CallData, terms: Sequence[Term]) -> list[Tensor]:
    """The results of terms that have loops; see `slab_pass.forward`."""
    outs = [torch.zeros(term.shape(data.scores), dtype=torch.float64) for term in terms]
    _whole(data, terms).forward(terms, outs)
    return outs


def backward(data: CallData, terms: Sequence[Term], grads: Sequence[Tensor]) -> Tensor:
    """The gradient of the scores; see `slab_pass.backward`."""
    gradient = torch.empty_like(data.scores)
    _whole(data, terms).backward(terms, grads, gradient.flatten(2))
    return gradient


def _whole(data: CallData, terms: Sequence[Term]) -> JitSlab:
    batch, channels, *spatial = data.scores.shape
    piece = Piece(slice(0, batch), slice(0, math.prod(spatial)), is_whole=True)
    slab = slab_of(terms, channels)
    assert slab is not None
    return slab(data.slab(piece, as_it_is=True))
