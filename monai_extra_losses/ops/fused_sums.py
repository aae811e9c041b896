"""The op behind the losses: every term of a call in one pass over slabs, in eager mode, compiled and exported."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_extra_losses.ops import library, slab_pass
from monai_extra_losses.ops.call_data import CallData, Voxels
from monai_extra_losses.ops.head_scores import HeadScores
from monai_extra_losses.ops.kernels.labels import refuse_outside
from monai_extra_losses.ops.numbers import has_numbers, numbers_of, under_transform
from monai_extra_losses.ops.plan import Plan, plan
from monai_extra_losses.ops.slab_pass import without_autocast
from monai_extra_losses.ops.terms import ForeignTerm, Term
from monai_extra_losses.ops.wrong_targets import WrongLabelsError, wrong_target

NO_FORWARD_MODE = (
    "these losses have no forward-mode derivative for dual tensors: expected backward(), or torch.func.jvp or jacfwd."
)


def fused_sums(data: CallData, terms: Sequence[Term]) -> list[Tensor]:
    """Compute `terms` for one call.

    Args:
        data: scores, target and mask.
        terms: what to compute; equal ones are computed once.

    Returns:
        One tensor per term: (rows, B, C) sums in float64, or a (B, channels, *spatial) map. Differentiable once, with
        respect to the scores. A target that requires a gradient gets one, too, from the plain definitions and at their
        memory. So does whatever a transform of torch.func asks for, and tensors without numbers get their shapes.

    Raises:
        ValueError: wrong targets and negative weights, on the CPU; an exported program and a function transform do not
            look at them.
    """
    if not terms:
        return []
    terms = [term if isinstance(term, Term) else ForeignTerm(term) for term in terms]
    differentiates_target = data.target.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        data = data.merged()
        if _stays_torch():
            return _definitions(data, terms)
        return _definitions(library.checked(data), terms) if differentiates_target else _in_a_graph(data, terms)
    try:
        if not has_numbers(data.scores):
            _check_known(data)
        elif not differentiates_target:
            scores, different = data.scores, tuple(dict.fromkeys(terms))
            inputs: tuple[Tensor | None, ...] = (scores,)
            keeps = scores.requires_grad and torch.is_grad_enabled()
            if isinstance(scores, HeadScores):
                inputs, keeps = (scores.features, scores.weight, scores.bias), False
            results = _FusedSums.apply(data, different, plan(data, different, keeps=keeps), *inputs)
            by_term = dict(zip(different, results, strict=True))
            return [by_term[term] for term in terms]
        else:
            slab_pass.check_target(data)
    except WrongLabelsError:
        raise ValueError(wrong_target(data)) from None
    return _definitions(data, terms)


def whole(data: CallData, *, any_target: bool = False) -> Voxels:
    """All voxels at once, for what cannot be computed slab by slab.

    Compiled, an operator checks them on the way; in eager mode `fused_sums` checks the target.

    Args:
        data: scores, target and mask.
        any_target: whether the target may have any values.

    Raises:
        ValueError: see `fused_sums`.
    """
    if torch.compiler.is_compiling() and not _stays_torch():
        data = library.checked(data.merged(), any_target=any_target)
    return data.whole()


def _stays_torch() -> bool:
    """Whether the graph is to have operations of torch alone.

    An exported program runs without this package, and a function transform (vmap, say) needs a rule for each operation.
    """
    return torch.compiler.is_exporting() or under_transform()


def _check_known(data: CallData) -> None:
    """Refuse wrong targets where a transform of torch.func hides the numbers, but for those of fake tensors."""
    v = data.whole()
    of_labels = v.labels is not None
    values = numbers_of(v.labels if v.labels is not None else v.one_hot())
    if values is not None:
        refuse_outside(values, data.scores.shape[1] if of_labels else 2)
        if of_labels and values.is_floating_point() and bool((values != values.trunc()).any()):
            raise WrongLabelsError


def _in_a_graph(data: CallData, terms: Sequence[Term]) -> list[Tensor]:
    """One operator for the terms that have a text, the plain definitions of the others."""
    texts = [library.encode(term) for term in terms]
    known = list(dict.fromkeys([text for text in texts if text is not None]))
    others = [term for term, text in zip(terms, texts, strict=True) if text is None]
    sums = dict(zip(known, library.sums(data, known) if known else [], strict=True))
    rest = iter(_definitions(library.checked(data), others) if others else [])
    return [next(rest) if text is None else sums[text] for text in texts]


def _definitions(data: CallData, terms: Sequence[Term]) -> list[Tensor]:
    with without_autocast(data.scores.device):
        return [_definition(data, term) for term in terms]


def _definition(data: CallData, term: Term) -> Tensor:
    result = term.definition(data.whole())
    return result.reshape(*result.shape[:2], *data.scores.shape[2:]) if term.is_map else result


class _FusedSums(torch.autograd.Function):
    """The pass in eager mode, of scores or of the features, weight and bias of `HeadScores`.

    Of scores the backward may go on with what the forward has computed; of a head it computes the slabs again.
    """

    @staticmethod
    def forward(
        ctx: Any, data: CallData, terms: tuple[Term, ...], chosen: Plan, *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, data.target, data.mask)
        ctx.labels, ctx.ignore_index, ctx.unknown, ctx.terms, ctx.plan = (
            data.labels,
            data.ignore_index,
            data.unknown,
            terms,
            chosen,
        )
        ctx.kept = slab_pass.Kept()
        results = slab_pass.forward(data, terms, chosen, ctx.kept)
        ctx.mark_non_differentiable(*[r for term, r in zip(terms, results, strict=True) if not term.reads_scores])
        return results

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        raise RuntimeError(NO_FORWARD_MODE)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(library.NO_SECOND_DERIVATIVE)
        *inputs, target, mask = ctx.saved_tensors
        of_head = len(inputs) > 1
        scores = HeadScores.of(*inputs) if of_head else inputs[0]
        call = CallData(scores, target, mask, ctx.labels, ctx.ignore_index, ctx.unknown), ctx.terms, grads, ctx.plan
        if of_head:
            return None, None, None, *slab_pass.backward_through_head(*call, ctx.needs_input_grad[3:])
        # A second backward of the same graph starts from the scores: the first has overwritten the probabilities.
        kept, ctx.kept = ctx.kept, slab_pass.Kept()
        return None, None, None, slab_pass.backward(*call, kept)
