"""One pass over slabs forward, one backward, for all terms of a call.

The backward recomputes each slab and writes the gradient of all terms together, so that the extra memory of a loss, of
a compound loss too, is the gradient of its logits and one slab.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monai_extra_losses.ops.call_data import CallData, Voxels
from monai_extra_losses.ops.head_scores import HeadScores
from monai_extra_losses.ops.kernels.labels import read_labels, refuse_outside
from monai_extra_losses.ops.kernels.slab import Slab
from monai_extra_losses.ops.merging import unmerge_
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.pieces import Piece
from monai_extra_losses.ops.plan import Plan, slab_length
from monai_extra_losses.ops.terms import Term


@dataclass(slots=True)
class Kept:
    """What a forward leaves for its backward, as the plan says.

    Attributes:
        probabilities: (B, C, *spatial) softmax, which becomes the gradient.
        slab: the only slab of a small call, with all that it has computed.
    """

    probabilities: Tensor | None = None
    slab: Slab | None = None


def forward(data: CallData, terms: Sequence[Term], plan: Plan, kept: Kept | None = None) -> tuple[Tensor, ...]:
    """Compute `terms`.

    Args:
        data: the call.
        terms: what to compute.
        plan: of the call.
        kept: filled for the backward.

    Returns:
        One tensor per term: (rows, B, C) sums, or a (B, channels, *spatial) map.

    Raises:
        WrongLabelsError: on the CPU.
    """
    # Autocast would take the matrix products of the kernels, which are sums over voxels, in half precision.
    with without_autocast(data.scores.device):
        if plan.gpu is not None:
            return tuple(plan.gpu.forward(data, terms))
        if plan.at_once and plan.slab is not None:
            results = plan.slab(data.as_it_lies()).results(terms)
            return tuple(r.view(term.shape(data.scores)) for term, r in zip(terms, results, strict=True))
        device, dtype = data.scores.device, sum_dtype(data.scores.device)
        outs = tuple(
            torch.zeros(term.shape(data.scores), dtype=data.dtype if term.is_map else dtype, device=device)
            for term in terms
        )
        if plan.slab is None:
            _add_definitions(data, terms, plan, outs)
            return outs
        kept = Kept() if kept is None else kept
        if plan.softmax != "recomputed":
            kept.probabilities = torch.empty_like(data.scores)
        if plan.softmax == "kept whole":
            torch.softmax(data.scores, 1, out=kept.probabilities)
        _fill(outs, data, terms, plan, kept)
        read = [out for term, out in zip(terms, outs, strict=True) if term.reads_scores]
        if (
            device.type == "cpu"
            and not plan.slab.takes_anything
            and not all(math.isfinite(out.sum().item()) for out in read)
        ):
            for out in outs:
                out.zero_()
            _fill(outs, data, terms, plan.for_infinite_scores(), kept)
        return outs


def _slab(data: CallData, piece: Piece, plan: Plan, p: Tensor | None = None) -> Slab:
    """The kernels of one piece."""
    assert plan.slab is not None
    return plan.slab(data.slab(piece, as_it_is=plan.slab.takes_anything), p, by_index=plan.by_index)


def _fill(outs: Sequence[Tensor], data: CallData, terms: Sequence[Term], plan: Plan, kept: Kept) -> None:
    """Add up the terms, slab by slab, by kernels."""
    assert plan.slab is not None
    for piece in data.pieces(plan.length):
        _add(outs, data, piece, terms, plan, kept)


def _add(outs: Sequence[Tensor], data: CallData, piece: Piece, terms: Sequence[Term], plan: Plan, kept: Kept) -> None:
    """One piece of it, whose tensors are gone when the next begins."""
    known = None
    if plan.softmax == "kept whole" and kept.probabilities is not None:
        known = piece.flat(kept.probabilities)
    slab = _slab(data, piece, plan, known)
    slab.forward(*_in_piece(piece, terms, outs))
    if plan.softmax == "kept by slab" and kept.probabilities is not None:
        piece.write(kept.probabilities, slab.p)  # type: ignore[attr-defined]
    if plan.keeps_slab:
        kept.slab = slab


def backward(
    data: CallData, terms: Sequence[Term], grads: Sequence[Tensor | None], plan: Plan, kept: Kept | None = None
) -> Tensor:
    """The gradient of the scores.

    Args:
        data: as of the forward.
        terms: as of the forward.
        grads: those of the results, None for 0.
        plan: as of the forward.
        kept: filled by the forward.
    """
    kept = Kept() if kept is None else kept
    wanted = _wanted(terms, grads)
    if not wanted[0]:
        return torch.zeros_like(data.scores)
    with without_autocast(data.scores.device):
        if plan.gpu is not None:
            of_gpu: Tensor = plan.gpu.backward(data, *wanted)
            return of_gpu
        if plan.at_once and plan.slab is not None:
            of_scores = torch.empty_like(data.scores)
            plan.slab(data.as_it_lies()).backward(*wanted, of_scores.flatten(2))
            return of_scores
        gradient = torch.empty_like(data.scores) if kept.probabilities is None else kept.probabilities
        for piece in data.pieces(plan.length):
            _write_gradient(data, piece, wanted, plan, kept, gradient)
    return gradient


def _write_gradient(
    data: CallData,
    piece: Piece,
    wanted: tuple[Sequence[Term], Sequence[Tensor]],
    plan: Plan,
    kept: Kept,
    gradient: Tensor,
) -> None:
    """One piece of the backward, whose tensors are gone when the next begins."""
    own, slab_grads = _in_piece(piece, *wanted)
    if plan.slab is None:
        v = data.slab(piece, merges=True)
        piece.write(gradient, _unmerged(_differentiate(v, own, slab_grads), v))
        return
    view = piece.flat(gradient) if gradient.dtype == data.dtype else None
    slab = kept.slab
    if slab is None:
        known = None
        if kept.probabilities is not None:
            known = piece.read(kept.probabilities) if view is None else view
        slab = _slab(data, piece, plan, known)
    out = torch.empty_like(slab.x) if view is None else view
    slab.backward(own, slab_grads, out)
    if view is None:
        piece.write(gradient, out)


def backward_through_head(
    data: CallData,
    terms: Sequence[Term],
    grads: Sequence[Tensor | None],
    plan: Plan,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of features, weight and bias, of data whose scores are `HeadScores`.

    Args:
        data, terms, grads, plan: as of `backward`.
        needed: which of the three are needed; the others are None.
    """
    scores = data.scores
    assert isinstance(scores, HeadScores)
    into, wanted = scores.gradients(needed), _wanted(terms, grads)
    if not wanted[0]:
        if into.features is not None:
            into.features.zero_()
        return into.result()
    with without_autocast(scores.device):
        for piece in data.pieces(plan.length):
            into.add(piece, *_gradient_of_scores(data, piece, wanted, plan))
    return into.result()


def _gradient_of_scores(
    data: CallData, piece: Piece, wanted: tuple[Sequence[Term], Sequence[Tensor]], plan: Plan
) -> tuple[Tensor | None, Tensor]:
    """The weights of a piece of a head, and the gradient of its scores."""
    own, slab_grads = _in_piece(piece, *wanted)
    if plan.slab is None:
        v = data.slab(piece, merges=True)
        return v.weight, _unmerged(_differentiate(v, own, slab_grads), v)
    slab = _slab(data, piece, plan)
    d = torch.empty_like(slab.x)
    slab.backward(own, slab_grads, d)
    return slab.w, d


def _unmerged(d: Tensor, v: Voxels) -> Tensor:
    """The gradient of a slab's scores as the network gave them, in place of that of the merged ones."""
    return d if v.unknown is None or v.unmerged is None else unmerge_(d, v.unmerged, v.unknown)


def _wanted(terms: Sequence[Term], grads: Sequence[Tensor | None]) -> tuple[list[Term], list[Tensor]]:
    """The terms through which the scores get a gradient, and that of their results."""
    pairs = [
        (term, grad.contiguous())  # a map's may be an expanded scalar
        for term, grad in zip(terms, grads, strict=True)
        if grad is not None and term.reads_scores
    ]
    return [term for term, _ in pairs], [grad for _, grad in pairs]


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast switched off, where it is on."""
    # Neither question nor answer is free: a context of its own takes as long as five operations on a small patch.
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def check_target(data: CallData) -> None:
    """Refuse wrong labels, or values outside [0, 1] of a target of C channels, on the CPU; the kernels do so too.

    Raises:
        WrongLabelsError: see there.
    """
    if data.scores.device.type == "cpu":
        length = slab_length(data, 2 * data.scores.shape[1])
        # The scores are not looked at, and those of a head would be computed.
        zeros = torch.zeros((), dtype=data.dtype).expand(data.scores.shape)
        without_scores = replace(data, scores=zeros, unknown=None)
        for piece in without_scores.pieces(length):
            _refuse_wrong(without_scores.slab(piece))


def _refuse_wrong(slab: Voxels) -> None:
    if slab.labels is not None:
        read_labels(slab).volumes  # noqa: B018  counting finds them
    elif slab.target is not None:
        refuse_outside(slab.target, 2)


def _in_piece(
    piece: Piece, terms: Sequence[Term], results: Sequence[Tensor]
) -> tuple[Sequence[Term], Sequence[Tensor]]:
    """The terms, and the views of their results or of the gradients of these, of one piece."""
    if piece.is_whole and not any(term.holds_voxels for term in terms):
        return terms, results
    own = [term.in_piece(piece) for term in terms]
    return own, [term.view(result, piece) for term, result in zip(terms, results, strict=True)]


def _add_definitions(data: CallData, terms: Sequence[Term], plan: Plan, outs: Sequence[Tensor]) -> None:
    """The plain definitions, slab by slab."""
    check_target(data)
    for piece in data.pieces(plan.length):
        slab = data.slab(piece, merges=True)
        for term, out in zip(*_in_piece(piece, terms, outs), strict=True):
            out.add_(term.definition(slab))


def _differentiate(slab: Voxels, terms: Sequence[Term], grads: Sequence[Tensor]) -> Tensor:
    """(b, C, m) gradient of the plain definitions on one slab."""
    leaf = slab.scores.detach().requires_grad_()
    total = torch.zeros_like(leaf)
    v = replace(slab, scores=leaf)
    for term, grad in zip(terms, grads, strict=True):  # one after the other: the graph of one is enough to keep
        with torch.enable_grad():
            value = term.definition(v)
        if value.requires_grad:
            (d,) = torch.autograd.grad(value, leaf, grad.to(value.dtype), allow_unused=True)
            if d is not None:
                total += d
    return total
