"""One pass over slabs forward, one backward, for all terms of a call.

The backward recomputes each slab and writes the gradient of all terms together, so that the extra memory of a loss, of
a compound loss too, is the gradient of its logits and one slab.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from monai_extra_losses.ops.call_data import CallData, Piece, Voxels
from monai_extra_losses.ops.kernels.labels import read_labels, refuse_outside
from monai_extra_losses.ops.plan import Plan, slab_length
from monai_extra_losses.ops.terms import Term, sum_dtype


def forward(
    data: CallData, terms: Sequence[Term], plan: Plan, probabilities: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Compute `terms`.

    Args:
        data: the call.
        terms: what to compute.
        plan: of the call.
        probabilities: (B, C, *spatial), filled for the backward where the plan keeps the softmax.

    Returns:
        One tensor per term: (rows, B, C) sums, or a (B, channels, *spatial) map.

    Raises:
        WrongLabelsError: on the CPU.
    """
    # Autocast would take the matrix products of the kernels, which are sums over voxels, in half precision.
    with without_autocast(data.scores.device):
        if plan.gpu is not None:
            return tuple(plan.gpu.forward(data, terms))
        sums, scores = sum_dtype(data.scores.device), data.scores
        outs = tuple(scores.new_zeros(term.shape(scores), dtype=data.dtype if term.is_map else sums) for term in terms)
        if plan.slab is None:
            _add_definitions(data, terms, plan, outs)
            return outs
        if probabilities is not None and plan.softmax == "kept whole":
            torch.softmax(data.scores, 1, out=probabilities)
        _fill(outs, data, terms, plan, probabilities)
        if data.scores.device.type == "cpu" and not all(out.sum().isfinite() for out in outs):
            for out in outs:
                out.zero_()
            _fill(outs, data, terms, plan.for_infinite_scores(), probabilities)
        return outs


def _fill(
    outs: Sequence[Tensor], data: CallData, terms: Sequence[Term], plan: Plan, probabilities: Tensor | None
) -> None:
    """Add up the terms, slab by slab, by kernels."""
    assert plan.slab is not None
    for piece in data.pieces(plan.length):
        kept = piece.flat(probabilities) if probabilities is not None and plan.softmax == "kept whole" else None
        slab = plan.slab(data.slab(piece), kept, by_index=plan.by_index)
        slab.forward(*_in_piece(piece, terms, outs))
        if probabilities is not None and plan.softmax == "kept by slab":
            piece.write(probabilities, slab.p)  # type: ignore[attr-defined]


def backward(
    data: CallData,
    terms: Sequence[Term],
    grads: Sequence[Tensor | None],
    plan: Plan,
    probabilities: Tensor | None = None,
) -> Tensor:
    """The gradient of the scores.

    Args:
        data: as of the forward.
        terms: as of the forward.
        grads: those of the results, None for 0.
        plan: as of the forward.
        probabilities: filled by the forward: it becomes the gradient.
    """
    wanted = [
        (term, grad.contiguous())  # a map's may be an expanded scalar
        for term, grad in zip(terms, grads, strict=True)
        if grad is not None and term.reads_scores
    ]
    if not wanted:
        return torch.zeros_like(data.scores)
    terms, wanted_grads = [term for term, _ in wanted], [grad for _, grad in wanted]
    with without_autocast(data.scores.device):
        if plan.gpu is not None:
            of_gpu: Tensor = plan.gpu.backward(data, terms, wanted_grads)
            return of_gpu
        gradient = torch.empty_like(data.scores) if probabilities is None else probabilities
        for piece in data.pieces(plan.length):
            own, slab_grads = _in_piece(piece, terms, wanted_grads)
            if plan.slab is None:
                piece.write(gradient, _differentiate(data.slab(piece), own, slab_grads))
                continue
            view = piece.flat(gradient) if gradient.dtype == data.dtype else None
            kept = None
            if probabilities is not None:
                kept = piece.read(probabilities) if view is None else view
            slab = plan.slab(data.slab(piece), kept, by_index=plan.by_index)
            out = torch.empty_like(slab.x) if view is None else view
            slab.backward(own, slab_grads, out)
            if view is None:
                piece.write(gradient, out)
    return gradient


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast switched off, on a device that has it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def check_target(data: CallData) -> None:
    """Refuse wrong labels, or values outside [0, 1] of a target of C channels, on the CPU; the kernels do so too.

    Raises:
        WrongLabelsError: see there.
    """
    if data.scores.device.type == "cpu":
        for piece in data.pieces(slab_length(data, 2 * data.scores.shape[1])):
            _refuse_wrong(data.slab(piece))


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
        slab = data.slab(piece)
        for term, out in zip(*_in_piece(piece, terms, outs), strict=True):
            out.add_(term.definition(slab))


def _differentiate(slab: Voxels, terms: Sequence[Term], grads: Sequence[Tensor]) -> Tensor:
    """(b, C, m) gradient of the plain definitions on one slab."""
    leaf = slab.scores.detach().requires_grad_()
    total = torch.zeros_like(leaf)
    v = Voxels(leaf, slab.labels, slab.target, slab.weight)
    for term, grad in zip(terms, grads, strict=True):  # one after the other: the graph of one is enough to keep
        with torch.enable_grad():
            value = term.definition(v)
        if value.requires_grad:
            (d,) = torch.autograd.grad(value, leaf, grad.to(value.dtype), allow_unused=True)
            if d is not None:
                total += d
    return total
