# mypy: allow-untyped-defs, allow-untyped-calls
"""The sums over voxels as GPU kernels: one pass over the data forward, one backward, for all terms of a call.

The only module that computes with triton; it is imported with the first CUDA tensor, unless the environment variable
MONAI_EXTRA_LOSSES_TRITON is 0. State: these kernels have run in triton's interpreter only, on the CPU, where the tests
compare them with the slab kernels. On a GPU each kind of call is first compared with its definition (`kernel_check`).

A program takes tiles of C classes (padded to a power of two, in registers) and a block of voxels. Forward, it writes
float32 sums of its voxels into (B, programs, rows, C), which torch adds up in float64: no atomics, so the same bits on
every run. Backward, it recomputes its tile and writes the gradient of all terms. A voxel that does not count is not
read: whatever stands there adds nothing, and its gradient is 0. The derivatives are those of `kernels`, with g
any target in place of the one-hot:

    dL/dx = a - p sum_k a_k,  a = p dL/dp + dL/dlog p       softmax
    dL/dx = p (1 - p) dL/dp + (1 - p) dL/dlog p - p dL/dlog(1-p)        sigmoid
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, is_dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.formulas import (
    CrossEntropyFormula,
    FocalFormula,
    GeneralizedCrossEntropyFormula,
    PolyFormula,
    PowerFormula,
    SoftFocalFormula,
)
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.terms import (
    CountSums,
    LogSums,
    OutcomeLogSums,
    OutcomeSums,
    TargetSums,
    Term,
    TrueClassSums,
    VoxelSums,
)

# How a warning speaks of the kernels.
NAME, COMPILER, SWITCH = "GPU kernels", f"triton {triton.__version__}", "MONAI_EXTRA_LOSSES_TRITON"

# Formulas of a log-probability, as the kernels know them.
_CROSS_ENTROPY = tl.constexpr(0)
_FOCAL = tl.constexpr(1)
_FOCAL_SQUARED = tl.constexpr(2)  # gamma = 2: no power
_FOCAL_BINARY = tl.constexpr(3)  # MONAI's form for soft targets, which is not linear in g
_POLY = tl.constexpr(4)
_GENERALIZED_CROSS_ENTROPY = tl.constexpr(5)
_POWER = tl.constexpr(6)

_KINDS: dict[type, tl.constexpr] = {
    CrossEntropyFormula: _CROSS_ENTROPY,
    FocalFormula: _FOCAL,
    SoftFocalFormula: _FOCAL,
    PolyFormula: _POLY,
    GeneralizedCrossEntropyFormula: _GENERALIZED_CROSS_ENTROPY,
    PowerFormula: _POWER,
}

# Elements of a tile, the fewest and most voxels of it, and how many voxels a program adds up: few enough for float32,
# enough for the sums to be small beside the scores.
_TILE = 4096
_FEWEST, _MOST = 32, 1024
_VOXELS = 1024

_SCORES = (torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATS = (*_SCORES, torch.float64)


def supports(data: CallData, terms: Sequence[Term]) -> bool:
    """Whether the kernels compute these terms for this call; they do either all of a call or nothing."""
    scores = data.scores
    return (
        scores.dtype in _SCORES
        and data.target.dtype in (*_INTEGERS, *_FLOATS)
        and (data.mask is None or data.mask.dtype in (torch.bool, *_FLOATS))
        and scores.numel() > 0
        and scores.shape[0] < 1 << 16
        and scores.shape[1] <= 256
        and all(_flat(tensor) is not None for tensor in (scores, data.target, data.mask) if tensor is not None)
        and _plan(tuple(terms), data.labels, scores.shape[1]) is not None
    )


def forward(data: CallData, terms: Sequence[Term]) -> tuple[Tensor, ...]:
    """One (rows, B, C) float64 result per term."""
    plan = _plan(tuple(terms), data.labels, data.scores.shape[1])
    assert plan is not None
    batch, channels, *_ = data.scores.shape
    voxels = math.prod(data.scores.shape[2:])
    block = _block(channels)
    steps = min(max(_VOXELS // block, 1), triton.next_power_of_2(triton.cdiv(voxels, block)))
    programs = triton.cdiv(voxels, block * steps)
    sums = data.scores.new_empty((batch, programs, plan.rows, channels), dtype=torch.float32)
    with torch.cuda.device_of(sums):
        _forward[(programs, batch)](sums, *_arguments(data, plan), STEPS=steps, BLOCK=block, **_options(data, plan))
    rows = sums.sum(1, dtype=sum_dtype(sums.device)).transpose(0, 1)  # (rows, B, C)
    return tuple(_result(rows, *plan.place(term), term) for term in terms)


def backward(data: CallData, terms: Sequence[Term], grads: Sequence[Tensor]) -> Tensor:
    """The gradient of the scores, from those of the results; no term is a `TargetSums`."""
    plan = _plan(tuple(terms), data.labels, data.scores.shape[1])
    assert plan is not None
    scores = data.scores
    batch, channels, *_ = scores.shape
    rows = scores.new_zeros((plan.rows, batch, channels), dtype=torch.float32)
    for term, grad in zip(terms, grads, strict=True):
        first, number = plan.place(term)
        if _in_first_column(term):
            grad = grad[..., :1].expand_as(grad)
        rows[first : first + number] += grad[:number]
    gradient = torch.empty_like(scores)
    if _flat(gradient) is None:
        gradient = torch.empty_like(scores, memory_format=torch.contiguous_format)
    block = _block(channels)
    with torch.cuda.device_of(scores):
        _backward[(triton.cdiv(math.prod(scores.shape[2:]), block), batch)](
            gradient,
            *_strides(gradient),
            rows,
            *_arguments(data, plan),
            BLOCK=block,
            **_options(data, plan),
        )
    return gradient


def probe(device: torch.device) -> None:
    """Compute one voxel's cross-entropy, ln 2, and its gradient.

    Raises:
        Exception: triton does not work here (it needs a C compiler), or gets something else.
    """
    term = TrueClassSums("softmax", CrossEntropyFormula())
    data = CallData(torch.zeros(1, 2, 1, device=device), torch.zeros(1, 1, 1, device=device), None, True, None)
    (value,) = forward(data, [term])
    gradient = backward(data, [term], [torch.ones_like(value)])
    got = [*value[0, 0].tolist(), *gradient[0, :, 0].tolist()]
    if not all(abs(a - b) < 1e-6 for a, b in zip(got, (math.log(2), 0, -0.5, 0.5), strict=True)):
        raise RuntimeError(f"expected ln 2, 0, -1/2, 1/2 from the GPU kernels, got {got}.")


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which rows of sums a call has, in order; -1 for those that it has not.

    Attributes:
        softmax: or sigmoid.
        target: sum g, sum 1.
        counts: sum pg, sum p, and with `squares` sum p^2, sum g^2.
        overlap: whether sum pg is sum min(p, g).
        logs: sum log p.
        losses: at most two voxel-wise losses, each with its kind and its row; one-vs-rest it has another for negatives.
        one_vs_rest: whether they are.
        rows: number of rows.
    """

    softmax: bool
    target: int
    counts: int
    squares: bool
    overlap: bool
    logs: int
    losses: tuple[tuple[VoxelSums, int, int], ...]
    one_vs_rest: bool
    rows: int

    def place(self, term: Term) -> tuple[int, int]:
        """First row of a term, and how many it has."""
        if isinstance(term, TargetSums):
            return self.target, 2
        if isinstance(term, CountSums):
            return self.counts, 4 if term.squares else 2
        if isinstance(term, LogSums):
            return self.logs, 1
        return next(row for loss, _, row in self.losses if loss == term), 2 if self.one_vs_rest else 1


def _plan(terms: tuple[Term, ...], labels: bool, channels: int) -> _Plan | None:
    """How the kernels compute these terms; None where they do not."""
    reading = [term for term in terms if term.reads_scores]
    activations = {term.activation for term in reading}
    if activations not in (set(), {"sigmoid"}, *([{"softmax"}] if channels > 1 else [])):
        return None
    counts = [term for term in reading if isinstance(term, CountSums) and type(term) is CountSums]
    logs = [term for term in reading if type(term) in (LogSums, OutcomeLogSums)]
    losses = [term for term in reading if isinstance(term, VoxelSums) and type(term) in (TrueClassSums, OutcomeSums)]
    softmax = activations == {"softmax"}
    one_vs_rest = any(term.one_vs_rest for term in losses)
    kinds = [_kind(term, labels) for term in losses]
    if (
        len(counts) + len(logs) + len(losses) < len(reading)
        or len(losses) > 2
        or len({term.soft_overlap for term in counts}) > 1
        or any(type(term) is not (LogSums if softmax else OutcomeLogSums) for term in logs)
        or any(term.one_vs_rest != one_vs_rest for term in losses)
        or (losses and not softmax and not one_vs_rest)
        or None in kinds
        or (softmax and one_vs_rest and kinds != [_CROSS_ENTROPY.value])
    ):
        return None
    squares = any(term.squares for term in counts)
    sizes = [
        2 if len(terms) > len(reading) else 0,
        (4 if squares else 2) if counts else 0,
        1 if logs else 0,
        *[2 if one_vs_rest else 1] * len(losses),
    ]
    target, of_counts, of_logs, *of_losses = itertools.accumulate(sizes, initial=0)
    return _Plan(
        softmax=softmax,
        target=target if sizes[0] else -1,
        counts=of_counts if counts else -1,
        squares=squares,
        overlap=any(term.soft_overlap for term in counts),
        logs=of_logs if logs else -1,
        losses=tuple(
            (term, kind, row)
            for term, kind, row in zip(losses, kinds, of_losses, strict=False)  # the last is their end
            if kind is not None
        ),
        one_vs_rest=one_vs_rest,
        rows=sum(sizes),
    )


def _kind(term: VoxelSums, labels: bool) -> int | None:
    formula = term.formula
    if type(formula) not in _KINDS:
        return None
    if isinstance(formula, SoftFocalFormula) and term.one_vs_rest and not labels:
        return _FOCAL_BINARY.value if term.activation == "sigmoid" else None
    squared = isinstance(formula, FocalFormula) and formula.gamma == 2
    return int((_FOCAL_SQUARED if squared else _KINDS[type(formula)]).value)


def _result(rows: Tensor, first: int, number: int, term: Term) -> Tensor:
    """A term's (rows, B, C) result, of the rows that the kernel has for it."""
    own = rows[first : first + number]
    if not isinstance(term, VoxelSums):
        return own.clone()
    result = own.new_zeros((2, *own.shape[1:]))
    if _in_first_column(term):
        result[0, :, 0] = own[0].sum(-1)
    else:
        result[:number] = own
    return result


def _in_first_column(term: Term) -> bool:
    """Whether the first column has the sum over all classes."""
    return isinstance(term, TrueClassSums) and not term.by_class


def _block(channels: int) -> int:
    return int(min(max(_TILE // triton.next_power_of_2(channels), _FEWEST), _MOST))


def _flat(tensor: Tensor) -> Tensor | None:
    """(B, C, M) view, or None where the strides do not allow it."""
    try:
        return tensor.view(*tensor.shape[:2], -1)
    except RuntimeError:
        return None


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Of sample, class and voxel."""
    flat = _flat(tensor)
    assert flat is not None
    return flat.stride()


def _pointer(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def _arguments(data: CallData, plan: _Plan) -> list[Tensor | int | float]:
    mask = data.scores if data.mask is None else data.mask  # without a mask it is not read
    parameters = [0.0, 0.0]
    for i, (term, _, _) in enumerate(plan.losses):
        assert is_dataclass(term.formula)
        parameters[i : i + 1] = astuple(term.formula) or [0.0]  # one, or none
    return [
        data.scores,
        *_strides(data.scores),
        _pointer(data.target),
        *_strides(data.target),
        _pointer(mask),
        *_strides(mask)[::2],
        math.prod(data.scores.shape[2:]),
        *parameters,
    ]


def _options(data: CallData, plan: _Plan) -> dict[str, int | float | bool]:
    channels = data.scores.shape[1]
    kinds, places = [-1, -1], [-1, -1]
    for i, (_, kind, row) in enumerate(plan.losses):
        kinds[i], places[i] = kind, row
    padded = triton.next_power_of_2(channels)
    return {
        "CLASSES": channels,
        "PADDED": padded,
        "LABELS": data.labels,
        "FLOAT_LABELS": data.target.dtype.is_floating_point,
        "MASKED": data.mask is not None,
        "IGNORING": data.ignores,
        "IGNORED": _ignored(data),
        "SOFTMAX": plan.softmax,
        "ROWS": plan.rows,
        "TARGET": plan.target,
        "COUNTS": plan.counts,
        "SQUARES": plan.squares,
        "OVERLAP": plan.overlap and not data.labels,  # min(p, g) = pg where g is 0 or 1
        "LOGS": plan.logs,
        "ONE_VS_REST": plan.one_vs_rest,
        "FIRST": kinds[0],
        "FIRST_ROW": places[0],
        "SECOND": kinds[1],
        "SECOND_ROW": places[1],
        "enable_fp_fusion": False,  # the sums that cancel rounding errors are exact in one order only
        "num_warps": 4 if padded * _block(channels) <= 2048 else 8,
    }


def _ignored(data: CallData) -> int | float:
    """The label as the target's dtype has it, or the channel, whose voxels do not count."""
    if not data.ignores or data.ignore_index is None:
        return 0
    channel = not data.labels and data.target.shape[1] > 1
    dtype = data.target.dtype
    return data.ignore_index if channel or not dtype.is_floating_point else _rounded(data.ignore_index, dtype)


@functools.cache
def _rounded(label: int, dtype: torch.dtype) -> float:
    return torch.tensor(label, dtype=dtype).item()


@triton.jit
def _log1p(u):
    """log(1 + u) for u > -1: the rounding of 1 + u cancels (Kahan)."""
    v = 1.0 + u
    lost = v == 1.0
    return tl.where(lost, u, tl.log(v) * (u / tl.where(lost, 1.0, v - 1.0)))


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0, without cancellation."""
    u = tl.exp(x)
    inner = (u < 1.0) & (u > 1e-30)
    safe = tl.where(inner, u, 0.5)
    return tl.where(inner, (safe - 1.0) * (x / tl.log(safe)), tl.where(u < 0.5, -1.0, x))


@triton.jit
def _at_least(x, low):
    """The larger of both; NaN stays."""
    return tl.where(x < low, low, x)


@triton.jit
def _times_log(p, log_p):
    """p log p, 0 for p = 0."""
    return tl.where(p == 0.0, 0.0, p * log_p)


@triton.jit
def _power(base, exponent):
    """`base` ** `exponent` for base >= 0, kept away from 0, where a slope could be infinite."""
    return tl.exp(exponent * tl.log(_at_least(base, 1e-30)))


@triton.jit
def _loss(log_p, p, miss, parameter, KIND: tl.constexpr):
    """A formula of L = log p, given p and miss = 1 - p without cancellation; see `formulas`."""
    loss = -log_p
    if KIND == _FOCAL:
        loss = _power(miss, parameter) * loss
    if KIND == _FOCAL_SQUARED:
        loss = miss * miss * loss
    if KIND == _POLY:
        loss = loss + parameter * miss
    if KIND == _GENERALIZED_CROSS_ENTROPY:
        loss = -_expm1(parameter * log_p) / parameter
    if KIND == _POWER:
        loss = _power(_at_least(loss, 1e-7), parameter)
    return loss


@triton.jit
def _slope(log_p, p, miss, parameter, KIND: tl.constexpr):
    """Its derivative in L."""
    slope = tl.zeros_like(log_p) - 1.0
    if KIND == _FOCAL:
        slope = (parameter * _times_log(p, log_p) - miss) * _power(miss, parameter - 1.0)
    if KIND == _FOCAL_SQUARED:
        slope = (2.0 * _times_log(p, log_p) - miss) * miss
    if KIND == _POLY:
        slope = slope - parameter * p
    if KIND == _GENERALIZED_CROSS_ENTROPY:
        slope = -tl.exp(parameter * log_p)
    if KIND == _POWER:
        loss = -log_p
        slope = tl.where(loss >= 1e-7, -parameter * _power(_at_least(loss, 1e-7), parameter - 1.0), 0.0)
    return slope


@triton.jit
def _read(
    scores_ptr,
    scores_sample,
    scores_class,
    scores_voxel,
    target_ptr,
    target_sample,
    target_class,
    target_voxel,
    mask_ptr,
    mask_sample,
    mask_voxel,
    sample,
    classes,
    voxel,
    num_voxels,
    CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    FLOAT_LABELS: tl.constexpr,
    MASKED: tl.constexpr,
    IGNORING: tl.constexpr,
    IGNORED: tl.constexpr,
    SOFTMAX: tl.constexpr,
):
    """(m,) weights, (C, m) target and (C, m) scores, float32; 0 where a voxel does not count."""
    inside = voxel < num_voxels
    known = classes < CLASSES
    wide = classes.to(tl.int64)[:, None]  # B C voxels may exceed 2^31
    weight = tl.where(inside, 1.0, 0.0)
    if MASKED:
        weight = tl.load(mask_ptr + sample * mask_sample + voxel * mask_voxel, mask=inside, other=0).to(tl.float32)
    target_at = target_ptr + sample * target_sample + voxel * target_voxel
    if LABELS:
        label = tl.load(target_at, mask=inside, other=0)
        label = label.to(tl.float32) if FLOAT_LABELS else label.to(tl.int64)
        if IGNORING:
            weight = tl.where(label != IGNORED, weight, 0.0)
        # The range check of a call on a GPU may come one call late.
        label = tl.minimum(tl.maximum(label, 0), CLASSES - 1).to(tl.int32)
        g = tl.where(classes[:, None] == label[None, :], 1.0, 0.0)
        counts = weight != 0.0
    else:
        if IGNORING:
            if CLASSES == 1:
                value = tl.load(target_at, mask=inside, other=0).to(tl.float32)
                weight = tl.where(value != IGNORED, weight, 0.0)
            else:
                share = tl.load(target_at + IGNORED * target_class, mask=inside, other=0).to(tl.float32)
                weight = tl.where(weight != 0.0, weight * (1.0 - share), 0.0)
        counts = weight != 0.0
        g = tl.load(target_at[None, :] + wide * target_class, mask=known[:, None] & counts[None, :], other=0).to(
            tl.float32
        )
    x = tl.load(
        scores_ptr + sample * scores_sample + wide * scores_class + voxel[None, :] * scores_voxel,
        mask=known[:, None] & counts[None, :],
        other=0.0,
    ).to(tl.float32)
    if SOFTMAX:
        x = tl.where(known[:, None], x, float("-inf"))
    return weight, g, x


@triton.jit
def _first_largest(x, highest, classes, PADDED: tl.constexpr):
    """(C, m) whether a class is the likeliest of its voxel, the first of equals."""
    first = tl.min(tl.where(x == highest[None, :], classes[:, None], PADDED), 0)
    return classes[:, None] == first[None, :]


@triton.jit
def _apart(x, highest, top):
    """For log(1-p), without cancellation, of the likeliest class k and of the others.

    Returns (m,) log of the sum of all exp(x - x_k), (m,) log(1-p_k), and (C, m) shares of the other classes in 1-p_k.
    """
    others = tl.where(top, float("-inf"), x)
    second = tl.max(others, 0)
    second = tl.where(second == float("-inf"), highest, second)  # of no other class: all below is 0
    e = tl.exp(others - second[None, :])
    total = tl.sum(e, 0)
    log_sum = _log1p(total * tl.exp(second - highest))
    share = tl.where(e == 0.0, 0.0, e / total[None, :])
    return log_sum, second - highest + tl.log(total) - log_sum, share


@triton.jit
def _logistic(x):
    """p, 1 - p, log p and log(1-p) of a sigmoid, without cancellation."""
    e = tl.exp(-tl.abs(x))
    positive = x >= 0.0
    rest = _log1p(e)
    p = tl.where(positive, 1.0, e) / (1.0 + e)
    miss = tl.where(positive, e, 1.0) / (1.0 + e)
    return p, miss, tl.minimum(x, 0.0) - rest, tl.minimum(-x, 0.0) - rest


@triton.jit
def _soft_cross_entropy(log_p, log_miss, g):
    """-(g log p + (1-g) log(1-p)), with 0 log 0 = 0."""
    return -(tl.where(g == 0.0, 0.0, g * log_p) + tl.where(g == 1.0, 0.0, (1.0 - g) * log_miss))


@triton.jit
def _outcome_losses(x, g, p, miss, log_p, log_miss, parameter, KIND: tl.constexpr, LABELS: tl.constexpr):
    """(C, m) losses of the decisions of a sigmoid as positives and as negatives."""
    if KIND == _FOCAL_BINARY:
        _, _, log_z, _ = _logistic(x * (1.0 - 2.0 * g))
        loss = _soft_cross_entropy(log_p, log_miss, g) * tl.where(parameter == 0.0, 1.0, tl.exp(parameter * log_z))
        positive = tl.where(g == 0.0, 0.0, g * loss)
        negative = tl.where(g == 1.0, 0.0, (1.0 - g) * loss)
    elif LABELS:
        true = g > 0.0
        loss = _loss(tl.where(true, log_p, log_miss), tl.where(true, p, miss), tl.where(true, miss, p), parameter, KIND)
        positive = tl.where(true, loss, 0.0)
        negative = tl.where(true, 0.0, loss)
    else:
        positive = tl.where(g == 0.0, 0.0, g * _loss(log_p, p, miss, parameter, KIND))
        negative = tl.where(g == 1.0, 0.0, (1.0 - g) * _loss(log_miss, miss, p, parameter, KIND))
    return positive, negative


@triton.jit
def _outcome_gradient(
    x, g, p, miss, log_p, log_miss, positive, negative, parameter, KIND: tl.constexpr, LABELS: tl.constexpr
):
    """(C, m) dL/dx of those, from the (C,) gradients of the sums of positives and negatives."""
    if KIND == _FOCAL_BINARY:
        # l = CE (1-p_t)^gamma with 1-p_t = sigmoid(z), z = x (1-2g): CE' = p - g, d log sigmoid(z)/dz = sigmoid(-z).
        _, z_miss, log_z, _ = _logistic(x * (1.0 - 2.0 * g))
        entropy = _soft_cross_entropy(log_p, log_miss, g)
        slope = (1.0 - g) * p - g * miss + entropy * parameter * z_miss * (1.0 - 2.0 * g)
        d = slope * tl.where(parameter == 0.0, 1.0, tl.exp(parameter * log_z))
        d *= g * positive[:, None] + (1.0 - g) * negative[:, None]
    elif LABELS:
        true = g > 0.0
        rest = tl.where(true, miss, p)
        slope = _slope(tl.where(true, log_p, log_miss), tl.where(true, p, miss), rest, parameter, KIND)
        d = slope * rest * tl.where(true, positive[:, None], -negative[:, None])
    else:
        d = g * positive[:, None] * miss * _slope(log_p, p, miss, parameter, KIND)
        d -= (1.0 - g) * negative[:, None] * p * _slope(log_miss, miss, p, parameter, KIND)
    return d


@triton.jit
def _true_outcome(values, g):
    """(m,) value of each voxel's own class."""
    return tl.sum(tl.where(g > 0.0, values, 0.0), 0)


@triton.jit
def _true_class(x, g, e, highest, total):
    """(m,) log p, p and 1 - p of each voxel's own class under a softmax; log p to all digits near 0, too."""
    score = _true_outcome(x, g)
    rest = tl.sum(tl.where(g > 0.0, 0.0, e), 0)
    log_p = tl.where(score == highest, -_log1p(rest), score - highest - tl.log(total))  # NaN is not the highest
    return log_p, _true_outcome(e, g) / total, rest / total


@triton.jit
def _every_class(x, p, e, highest, total, top):
    """(C, m) log p and 1 - p of all classes under a softmax."""
    rest = tl.sum(tl.where(top, 0.0, e), 0)
    log_p = x - highest[None, :] - _log1p(rest)[None, :]
    return log_p, tl.where(top, (rest / total)[None, :], 1.0 - p)


@triton.jit
def _put(sums_ptr, values, row, classes, CLASSES: tl.constexpr):
    tl.store(sums_ptr + row * CLASSES + classes, values, mask=classes < CLASSES)


@triton.jit
def _forward(
    sums_ptr,
    scores_ptr,
    scores_sample,
    scores_class,
    scores_voxel,
    target_ptr,
    target_sample,
    target_class,
    target_voxel,
    mask_ptr,
    mask_sample,
    mask_voxel,
    num_voxels,
    first_parameter,
    second_parameter,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    LABELS: tl.constexpr,
    FLOAT_LABELS: tl.constexpr,
    MASKED: tl.constexpr,
    IGNORING: tl.constexpr,
    IGNORED: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ROWS: tl.constexpr,
    TARGET: tl.constexpr,
    COUNTS: tl.constexpr,
    SQUARES: tl.constexpr,
    OVERLAP: tl.constexpr,
    LOGS: tl.constexpr,
    ONE_VS_REST: tl.constexpr,
    FIRST: tl.constexpr,
    FIRST_ROW: tl.constexpr,
    SECOND: tl.constexpr,
    SECOND_ROW: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    classes = tl.arange(0, PADDED)
    volumes = tl.zeros((PADDED,), tl.float32)
    voxels = tl.zeros((PADDED,), tl.float32)
    overlaps = tl.zeros((PADDED,), tl.float32)
    totals = tl.zeros((PADDED,), tl.float32)
    squares = tl.zeros((PADDED,), tl.float32)
    target_squares = tl.zeros((PADDED,), tl.float32)
    logs = tl.zeros((PADDED,), tl.float32)
    first_positive = tl.zeros((PADDED,), tl.float32)
    first_negative = tl.zeros((PADDED,), tl.float32)
    second_positive = tl.zeros((PADDED,), tl.float32)
    second_negative = tl.zeros((PADDED,), tl.float32)
    for step in range(STEPS):
        voxel = (program * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        weight, g, x = _read(
            scores_ptr,
            scores_sample,
            scores_class,
            scores_voxel,
            target_ptr,
            target_sample,
            target_class,
            target_voxel,
            mask_ptr,
            mask_sample,
            mask_voxel,
            sample,
            classes,
            voxel,
            num_voxels,
            CLASSES,
            LABELS,
            FLOAT_LABELS,
            MASKED,
            IGNORING,
            IGNORED,
            SOFTMAX,
        )
        w = weight[None, :]
        if TARGET >= 0:
            volumes += tl.sum(g * w, 1)
            voxels += tl.sum(weight, 0)
        if SOFTMAX:
            highest = tl.max(x, 0)
            e = tl.exp(x - highest[None, :])
            total = tl.sum(e, 0)
            p = e / total[None, :]
            if ONE_VS_REST:
                top = _first_largest(x, highest, classes, PADDED)
                log_sum, log_rest, _ = _apart(x, highest, top)
                log_p = x - highest[None, :] - log_sum[None, :]
                log_miss = tl.where(top, log_rest[None, :], _log1p(-tl.where(top, 0.0, p)))
                first_positive += tl.sum(tl.where(g != 0.0, -g * log_p * w, 0.0), 1)
                first_negative += tl.sum(tl.where(g != 1.0, (g - 1.0) * log_miss * w, 0.0), 1)
            elif FIRST >= 0:
                if LABELS:
                    log_true, p_true, miss_true = _true_class(x, g, e, highest, total)
                    loss = _loss(log_true, p_true, miss_true, first_parameter, FIRST) * weight
                    first_positive += tl.sum(tl.where(g > 0.0, loss[None, :], 0.0), 1)
                    if SECOND >= 0:
                        loss = _loss(log_true, p_true, miss_true, second_parameter, SECOND) * weight
                        second_positive += tl.sum(tl.where(g > 0.0, loss[None, :], 0.0), 1)
                else:
                    top = _first_largest(x, highest, classes, PADDED)
                    log_p, miss = _every_class(x, p, e, highest, total, top)
                    loss = g * _loss(log_p, p, miss, first_parameter, FIRST) * w
                    first_positive += tl.sum(tl.where(g != 0.0, loss, 0.0), 1)
                    if SECOND >= 0:
                        loss = g * _loss(log_p, p, miss, second_parameter, SECOND) * w
                        second_positive += tl.sum(tl.where(g != 0.0, loss, 0.0), 1)
            if LOGS >= 0:
                logs += tl.sum((x - highest[None, :] - tl.log(total)[None, :]) * w, 1)
        else:
            p, miss, log_p, log_miss = _logistic(x)
            if FIRST >= 0:
                positive, negative = _outcome_losses(x, g, p, miss, log_p, log_miss, first_parameter, FIRST, LABELS)
                first_positive += tl.sum(positive * w, 1)
                first_negative += tl.sum(negative * w, 1)
            if SECOND >= 0:
                positive, negative = _outcome_losses(x, g, p, miss, log_p, log_miss, second_parameter, SECOND, LABELS)
                second_positive += tl.sum(positive * w, 1)
                second_negative += tl.sum(negative * w, 1)
            if LOGS >= 0:
                logs += tl.sum((log_p + log_miss) * w, 1)
        if COUNTS >= 0:
            if OVERLAP:
                overlaps += tl.sum(tl.where(p < g, p, g) * w, 1)  # NaN is in the sum of p
            else:
                overlaps += tl.sum(p * g * w, 1)
            totals += tl.sum(p * w, 1)
            if SQUARES:
                squares += tl.sum(p * p * w, 1)
                target_squares += tl.sum(g * g * w, 1)
    sums_at = sums_ptr + (sample * tl.num_programs(0) + program) * (ROWS * CLASSES)
    if TARGET >= 0:
        _put(sums_at, volumes, TARGET, classes, CLASSES)
        _put(sums_at, voxels, TARGET + 1, classes, CLASSES)
    if COUNTS >= 0:
        _put(sums_at, overlaps, COUNTS, classes, CLASSES)
        _put(sums_at, totals, COUNTS + 1, classes, CLASSES)
        if SQUARES:
            _put(sums_at, squares, COUNTS + 2, classes, CLASSES)
            _put(sums_at, target_squares, COUNTS + 3, classes, CLASSES)
    if LOGS >= 0:
        _put(sums_at, logs, LOGS, classes, CLASSES)
    if FIRST >= 0:
        _put(sums_at, first_positive, FIRST_ROW, classes, CLASSES)
        if ONE_VS_REST:
            _put(sums_at, first_negative, FIRST_ROW + 1, classes, CLASSES)
    if SECOND >= 0:
        _put(sums_at, second_positive, SECOND_ROW, classes, CLASSES)
        if ONE_VS_REST:
            _put(sums_at, second_negative, SECOND_ROW + 1, classes, CLASSES)


@triton.jit
def _get(rows_ptr, row, sample, classes, CLASSES: tl.constexpr):
    """(C,) gradients of one row of sums."""
    at = rows_ptr + (row * tl.num_programs(1) + sample) * CLASSES + classes
    return tl.load(at, mask=classes < CLASSES, other=0.0)


@triton.jit
def _backward(
    gradient_ptr,
    gradient_sample,
    gradient_class,
    gradient_voxel,
    rows_ptr,
    scores_ptr,
    scores_sample,
    scores_class,
    scores_voxel,
    target_ptr,
    target_sample,
    target_class,
    target_voxel,
    mask_ptr,
    mask_sample,
    mask_voxel,
    num_voxels,
    first_parameter,
    second_parameter,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    LABELS: tl.constexpr,
    FLOAT_LABELS: tl.constexpr,
    MASKED: tl.constexpr,
    IGNORING: tl.constexpr,
    IGNORED: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ROWS: tl.constexpr,
    TARGET: tl.constexpr,
    COUNTS: tl.constexpr,
    SQUARES: tl.constexpr,
    OVERLAP: tl.constexpr,
    LOGS: tl.constexpr,
    ONE_VS_REST: tl.constexpr,
    FIRST: tl.constexpr,
    FIRST_ROW: tl.constexpr,
    SECOND: tl.constexpr,
    SECOND_ROW: tl.constexpr,
):
    sample = tl.program_id(1).to(tl.int64)
    classes = tl.arange(0, PADDED)
    voxel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    weight, g, x = _read(
        scores_ptr,
        scores_sample,
        scores_class,
        scores_voxel,
        target_ptr,
        target_sample,
        target_class,
        target_voxel,
        mask_ptr,
        mask_sample,
        mask_voxel,
        sample,
        classes,
        voxel,
        num_voxels,
        CLASSES,
        LABELS,
        FLOAT_LABELS,
        MASKED,
        IGNORING,
        IGNORED,
        SOFTMAX,
    )
    if SOFTMAX:
        highest = tl.max(x, 0)
        e = tl.exp(x - highest[None, :])
        total = tl.sum(e, 0)
        p = e / total[None, :]
        miss = p
        log_p = x
        log_miss = x
    else:
        p, miss, log_p, log_miss = _logistic(x)
    slope = tl.zeros((PADDED, BLOCK), tl.float32)  # dL/dp
    if COUNTS >= 0:
        slope += _get(rows_ptr, COUNTS + 1, sample, classes, CLASSES)[:, None]
        overlap = _get(rows_ptr, COUNTS, sample, classes, CLASSES)[:, None]
        if OVERLAP:  # min(p, g), with the subgradient 1/2 where they are equal
            slope += overlap * tl.where(p < g, 1.0, tl.where(p > g, 0.0, 0.5))
        else:
            slope += overlap * g
        if SQUARES:
            slope += 2.0 * _get(rows_ptr, COUNTS + 2, sample, classes, CLASSES)[:, None] * p
    if FIRST >= 0:
        first_positive = _get(rows_ptr, FIRST_ROW, sample, classes, CLASSES)
        if ONE_VS_REST:
            first_negative = _get(rows_ptr, FIRST_ROW + 1, sample, classes, CLASSES)
    if SECOND >= 0:
        second_positive = _get(rows_ptr, SECOND_ROW, sample, classes, CLASSES)
        if ONE_VS_REST:
            second_negative = _get(rows_ptr, SECOND_ROW + 1, sample, classes, CLASSES)
    if SOFTMAX:
        a = p * slope  # plus dL/dlog p
        apart = tl.zeros((PADDED, BLOCK), tl.float32)  # gradients that need no sum over the classes any more
        if LOGS >= 0:
            a += _get(rows_ptr, LOGS, sample, classes, CLASSES)[:, None]
        if ONE_VS_REST:
            # a_c = dL/dlog p_c - p_c / (1-p_c) dL/dlog(1-p_c). With k the likeliest class, a_k (1-p_k) is taken as one
            # number: alone, a_k grows without bound.
            top = _first_largest(x, highest, classes, PADDED)
            _, log_rest, share = _apart(x, highest, top)
            lesser = tl.where(top, 0.0, p)
            positive = -g * first_positive[:, None]
            negative = (g - 1.0) * first_negative[:, None]
            a += tl.where(top, 0.0, positive - negative * lesser / (1.0 - lesser))
            of_top = tl.sum(tl.where(top, positive * tl.exp(log_rest)[None, :] - negative * p, 0.0), 0)[None, :]
            apart += tl.where(top, of_top, -share * of_top)
        elif FIRST >= 0:
            if LABELS:
                log_true, p_true, miss_true = _true_class(x, g, e, highest, total)
                d = _slope(log_true, p_true, miss_true, first_parameter, FIRST)
                d = d * _true_outcome(first_positive[:, None], g)
                if SECOND >= 0:
                    other = _slope(log_true, p_true, miss_true, second_parameter, SECOND)
                    d += other * _true_outcome(second_positive[:, None], g)
                apart += d[None, :] * tl.where(g > 0.0, miss_true[None, :], -p)
            else:
                top = _first_largest(x, highest, classes, PADDED)
                log_p, miss = _every_class(x, p, e, highest, total, top)
                d = first_positive[:, None] * _slope(log_p, p, miss, first_parameter, FIRST)
                if SECOND >= 0:
                    d += second_positive[:, None] * _slope(log_p, p, miss, second_parameter, SECOND)
                d = tl.where(g != 0.0, g * d, 0.0)
                a += tl.where(top, 0.0, d)
                apart += tl.sum(tl.where(top, d, 0.0), 0)[None, :] * tl.where(top, miss, -p)
        d = a - p * tl.sum(a, 0)[None, :] + apart
    else:
        d = slope * p * miss
        if FIRST >= 0:
            d += _outcome_gradient(
                x, g, p, miss, log_p, log_miss, first_positive, first_negative, first_parameter, FIRST, LABELS
            )
        if SECOND >= 0:
            d += _outcome_gradient(
                x, g, p, miss, log_p, log_miss, second_positive, second_negative, second_parameter, SECOND, LABELS
            )
        if LOGS >= 0:
            d += _get(rows_ptr, LOGS, sample, classes, CLASSES)[:, None] * (miss - p)
    d = tl.where((weight != 0.0)[None, :], d * weight[None, :], 0.0)
    tl.store(
        gradient_ptr
        + sample * gradient_sample
        + classes.to(tl.int64)[:, None] * gradient_class
        + voxel[None, :] * gradient_voxel,
        d.to(gradient_ptr.dtype.element_ty),
        mask=(classes < CLASSES)[:, None] & (voxel < num_voxels)[None, :],
    )
