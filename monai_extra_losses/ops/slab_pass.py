"""One pass over slabs forward, one backward, for all terms of a call.

The backward recomputes each slab and writes the gradient of all terms together, so that the extra memory of a loss, of
a compound loss too, is the gradient of its logits and one slab.
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch
from torch import Tensor

from monai_extra_losses.ops import label_kernels
from monai_extra_losses.ops.slabs import Layout, Voxels, read, writable, write
from monai_extra_losses.ops.terms import MapSums, TargetSums, Term, VoxelMap, sum_dtype

# Whether the GPU kernels take what they can: CUDA tensors, and in triton's interpreter those of the CPU. They have run
# in the interpreter only, so a user has to ask for them until a GPU has proved them.
_TRITON = os.environ.get("MONAI_EXTRA_LOSSES_TRITON", "0") == "1"


def forward(layout: Layout, terms: Sequence[Term], probabilities: Tensor | None = None) -> tuple[Tensor, ...]:
    """Compute `terms`.

    Args:
        layout: scores, target and mask.
        terms: what to compute.
        probabilities: of `room_for_probabilities`, filled for the backward.

    Returns:
        One tensor per term: (rows, B, C) sums, or a (B, channels, *spatial) map.

    Raises:
        WrongLabelsError: on the CPU.
    """
    scores = layout.scores
    # Autocast would take the matrix products of the kernels, which are sums over voxels, in half precision.
    with without_autocast(scores.device):
        gpu_kernels = _gpu_kernels(layout, terms)
        if gpu_kernels is not None:
            return gpu_kernels.forward(layout, terms)
        outs = tuple(_empty(layout, term) for term in terms)
        kernels = layout.labels and label_kernels.supports(terms)
        if not kernels:
            label_kernels.check_target(layout)
        _fill(outs, layout, terms, probabilities, kernels=kernels)
        if kernels and scores.device.type == "cpu" and not all(out.sum().isfinite() for out in outs):
            # The kernels of few classes multiply by 0 what they leave out: NaN, if it is infinite.
            for out in outs:
                out.zero_()
            _fill(outs, layout, terms, probabilities, kernels=kernels, by_index=True)
        return outs


def _fill(
    outs: Sequence[Tensor],
    layout: Layout,
    terms: Sequence[Term],
    probabilities: Tensor | None,
    *,
    kernels: bool,
    by_index: bool = False,
) -> None:
    """Add up `terms`, slab by slab, in `outs`."""
    scores = layout.scores
    in_place = probabilities is not None and _takes_softmax_whole(layout)
    floats = label_kernels.floats_per_voxel(terms, layout, kernels=kernels, softmax_in_place=in_place)
    for sample in range(scores.shape[0]):
        own = [_of_sample(term, sample) for term in terms]
        if probabilities is not None and in_place:
            torch.softmax(scores[sample], 0, out=probabilities[sample])
        for slab, voxels in layout.slabs(sample, floats):
            slab_outs = [_slab_of(term, out, sample, voxels) for term, out in zip(terms, outs, strict=True)]
            slab_terms = [_of_slab(term, voxels) for term in own]
            if not kernels:
                for term, out in zip(slab_terms, slab_outs, strict=True):
                    out += term.definition(slab).squeeze(0 if isinstance(term, VoxelMap) else 1)
                continue
            p = None
            if probabilities is not None and in_place:
                p = writable(probabilities[sample], voxels, layout.dtype)
            kernel = label_kernels.kernel(slab, slab_terms, p, by_index=by_index)
            kernel.forward(slab_terms, slab_outs)
            if probabilities is not None and p is None and isinstance(kernel, label_kernels.SoftmaxSlab):
                write(probabilities[sample], voxels, kernel.p)


def room_for_probabilities(layout: Layout, terms: Sequence[Term]) -> Tensor | None:
    """A tensor like the scores where the forward can leave its softmax and the backward write the gradient.

    None where that does not pay.
    """
    kept = label_kernels.keeps_probabilities(terms, layout.scores)
    if kept and layout.labels and label_kernels.supports(terms) and _gpu_kernels(layout, terms) is None:
        return torch.empty_like(layout.scores)
    return None


def _takes_softmax_whole(layout: Layout) -> bool:
    """Whether a softmax is taken of a sample in one piece, straight to its place, and read there."""
    return layout.counts_all and layout.scores.is_contiguous()


def backward(
    layout: Layout, terms: Sequence[Term], grads: Sequence[Tensor | None], probabilities: Tensor | None = None
) -> Tensor:
    """The gradient of the scores.

    Args:
        layout: as of the forward.
        terms: likewise.
        grads: those of the results, None for 0.
        probabilities: of `room_for_probabilities`, filled by the forward: it becomes the gradient.
    """
    wanted = [
        (term, grad.contiguous())  # a map's may be an expanded scalar
        for term, grad in zip(terms, grads, strict=True)
        if grad is not None and type(term) is not TargetSums
    ]
    if not wanted:
        return torch.zeros_like(layout.scores)
    terms, wanted_grads = [term for term, _ in wanted], [grad for _, grad in wanted]
    with without_autocast(layout.scores.device):
        gpu_kernels = _gpu_kernels(layout, terms)
        if gpu_kernels is not None:
            return gpu_kernels.backward(layout, terms, wanted_grads)
        gradient = torch.empty_like(layout.scores) if probabilities is None else probabilities
        _write_gradient(gradient, layout, terms, wanted_grads, softmax_is_there=probabilities is not None)
    return gradient


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast switched off, on a device that has it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _gpu_kernels(layout: Layout, terms: Sequence[Term]) -> ModuleType | None:
    """The kernels that compute all of a call on a GPU; None where there are none."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if _TRITON and (layout.scores.device.type == "cuda" or interpreted):
        kernels = _working_triton(layout.scores.device)
        if kernels is not None and kernels.supports(layout, terms):
            return kernels
    return None


@functools.cache
def _working_triton(device: torch.device) -> ModuleType | None:
    """`fused_sums_triton`, where triton is installed and works."""
    try:
        from monai_extra_losses.ops import fused_sums_triton

        fused_sums_triton.probe(device)
    except ImportError:
        return None
    except Exception as error:  # triton needs a C compiler, and a GPU it knows; it raises anything
        warnings.warn(f"the losses run without their GPU kernels, in plain torch: triton failed: {error}", stacklevel=2)
        return None
    return fused_sums_triton


def _write_gradient(
    gradient: Tensor, layout: Layout, terms: Sequence[Term], grads: Sequence[Tensor], *, softmax_is_there: bool
) -> None:
    """Fill `gradient` (B, C, *spatial), slab by slab, from the gradients of the results.

    With `softmax_is_there` it holds the probabilities until then.
    """
    kernels = layout.labels and label_kernels.supports(terms)
    in_place = softmax_is_there and _takes_softmax_whole(layout)
    floats = label_kernels.floats_per_voxel(terms, layout, kernels=kernels, softmax_in_place=in_place)
    for sample in range(layout.scores.shape[0]):
        own = [_of_sample(term, sample) for term in terms]
        for slab, voxels in layout.slabs(sample, floats):
            slab_grads = [_slab_of(term, grad, sample, voxels) for term, grad in zip(terms, grads, strict=True)]
            slab_terms = [_of_slab(term, voxels) for term in own]
            if not kernels:
                write(gradient[sample], voxels, _differentiate(slab, slab_terms, slab_grads))
                continue
            view = writable(gradient[sample], voxels, layout.dtype)
            p = out = torch.empty_like(slab.scores[0]) if view is None else view
            if softmax_is_there and view is None:
                p = read(None, gradient[sample], voxels)
            kernel = label_kernels.kernel(slab, slab_terms, p if softmax_is_there else None)
            kernel.backward(slab_terms, slab_grads, out)
            if view is None:
                write(gradient[sample], voxels, out)


def _empty(layout: Layout, term: Term) -> Tensor:
    dtype = layout.dtype if isinstance(term, VoxelMap) else sum_dtype(layout.scores.device)
    return layout.scores.new_zeros(term.shape(layout.scores), dtype=dtype)


def _of_sample(term: Term, sample: int) -> Term:
    """The term with what it has of one sample: a map of numbers, or a loss's factors of each sample and class."""
    if isinstance(term, MapSums):
        own = slice(sample, sample + 1)
        inward = None if term.inward is None else term.inward[own]
        return dataclasses.replace(term, map=term.map[own].flatten(2), inward=inward)
    if isinstance(term, VoxelMap) and term.positive is not None and term.positive.ndim == 2:
        assert term.negative is not None
        return dataclasses.replace(term, positive=term.positive[sample], negative=term.negative[sample])
    return term


def _of_slab(term: Term, voxels: slice) -> Term:
    return dataclasses.replace(term, map=term.map[..., voxels]) if isinstance(term, MapSums) else term


def _slab_of(term: Term, result: Tensor, sample: int, voxels: slice) -> Tensor:
    """The part of a result, or of its gradient, that belongs to one slab: a view where `result` is contiguous."""
    if isinstance(term, VoxelMap):
        return result[sample].flatten(1)[:, voxels]
    return result[:, sample]


def _differentiate(slab: Voxels, terms: Sequence[Term], grads: Sequence[Tensor]) -> Tensor:
    """(C, m) gradient of the plain definitions on one slab."""
    total: Tensor | None = None
    leaf = slab.scores.detach().requires_grad_()
    v = Voxels(leaf, slab.labels, slab.target, slab.weight)
    for term, grad in zip(terms, grads, strict=True):  # one after the other: the graph of one is enough to keep
        with torch.enable_grad():
            value = term.definition(v)
        if not value.requires_grad:  # it reads the target alone
            continue
        shaped = grad.unsqueeze(0 if isinstance(term, VoxelMap) else 1)
        (d,) = torch.autograd.grad(value, leaf, shaped, allow_unused=True)
        if d is not None:
            total = d if total is None else total.add_(d)
    return torch.zeros_like(leaf[0]) if total is None else total[0]
