"""The op behind the losses: every term of a call in one pass over slabs, in eager mode, compiled and exported."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_extra_losses.ops import label_kernels, library, slab_pass
from monai_extra_losses.ops.slabs import Layout, Voxels
from monai_extra_losses.ops.terms import Term, VoxelMap
from monai_extra_losses.ops.wrong_targets import told_in_full


def fused_sums(layout: Layout, terms: Sequence[Term]) -> list[Tensor]:
    """Compute `terms` for one call.

    Args:
        layout: scores, target and mask.
        terms: what to compute.

    Returns:
        One tensor per term: (rows, B, C) sums in float64, or a (B, channels, *spatial) map. Differentiable once, with
        respect to the scores. A target that requires a gradient gets one, too, from the plain definitions and at their
        memory.

    Raises:
        ValueError: wrong targets and negative weights, on the CPU; an exported program and a function transform do not
            look at them.
    """
    if not terms:
        return []
    differentiates_target = layout.target.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        if _stays_torch():
            return _definitions(layout, terms)
        return _definitions(library.checked(layout), terms) if differentiates_target else _in_a_graph(layout, terms)
    with told_in_full(layout):
        if not differentiates_target:
            return list(_FusedSums.apply(layout.scores, layout, tuple(terms)))
        label_kernels.check_target(layout)
    return _definitions(layout, terms)


def whole(layout: Layout, *, any_target: bool = False) -> Voxels:
    """All voxels at once, for what cannot be computed slab by slab.

    Compiled, an operator checks them on the way; in eager mode `fused_sums` checks the target.

    Args:
        layout: scores, target and mask.
        any_target: whether the target may have any values.

    Raises:
        ValueError: see `fused_sums`.
    """
    if torch.compiler.is_compiling() and not _stays_torch():
        layout = library.checked(layout, any_target=any_target)
    return layout.whole()


def _stays_torch() -> bool:
    """Whether the graph is to have operations of torch alone.

    An exported program runs without this package, and a function transform (vmap, say) needs a rule for each operation.
    Torch 2.8 says of every graph that it is exported: there the losses compile to their definitions.
    """
    return torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active()


def _in_a_graph(layout: Layout, terms: Sequence[Term]) -> list[Tensor]:
    """One operator for the terms that have a text, the plain definitions of the others."""
    texts = [library.encode(term) for term in terms]
    known = [text for text in texts if text is not None]
    others = [term for term, text in zip(terms, texts, strict=True) if text is None]
    sums = iter(library.sums(layout, known) if known else [])
    rest = iter(_definitions(library.checked(layout), others) if others else [])
    return [next(rest if text is None else sums) for text in texts]


def _definitions(layout: Layout, terms: Sequence[Term]) -> list[Tensor]:
    with torch.autocast(layout.scores.device.type, enabled=False):
        return [_definition(layout, term) for term in terms]


def _definition(layout: Layout, term: Term) -> Tensor:
    result = term.definition(layout.whole())
    if isinstance(term, VoxelMap):
        return result.reshape(*result.shape[:2], *layout.scores.shape[2:])
    return result


class _FusedSums(torch.autograd.Function):
    """The pass in eager mode, where the backward may write its gradient over the softmax of the forward."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, layout: Layout, terms: tuple[Term, ...]) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(scores, layout.target, layout.mask)
        ctx.labels, ctx.ignore_index, ctx.terms = layout.labels, layout.ignore_index, terms
        ctx.probabilities = slab_pass.room_for_probabilities(layout, terms) if ctx.needs_input_grad[0] else None
        return slab_pass.forward(layout, terms, ctx.probabilities)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(library.NO_SECOND_DERIVATIVE)
        scores, target, mask = ctx.saved_tensors
        layout = Layout(scores, target, mask, ctx.labels, ctx.ignore_index)
        # A second backward of the same graph starts from the scores: the first has overwritten the probabilities.
        probabilities, ctx.probabilities = ctx.probabilities, None
        return slab_pass.backward(layout, ctx.terms, grads, probabilities), None, None
