"""What is decided once for a call: the kernels, how long a slab is, and where the softmax is kept."""

import functools
import importlib.util
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal

import torch

from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.head_scores import HeadScores
from monai_extra_losses.ops.kernel_check import Variant, agree
from monai_extra_losses.ops.kernels.labels import few_classes
from monai_extra_losses.ops.kernels.margin import MarginSlab
from monai_extra_losses.ops.kernels.sigmoid import SigmoidSlab
from monai_extra_losses.ops.kernels.slab import Slab
from monai_extra_losses.ops.kernels.softmax import SoftmaxSlab
from monai_extra_losses.ops.kernels.two_classes import TwoClassSlab
from monai_extra_losses.ops.pieces import has_flat_view
from monai_extra_losses.ops.terms import Term

# The first that computes all terms of a call does; without one the definitions do.
_SLABS: tuple[type[Slab], ...] = (TwoClassSlab, SoftmaxSlab, SigmoidSlab, MarginSlab)
# Elements (channels x voxels) of one slab. On the CPU shorter ones stay nearer in the cache, but each operation starts
# its threads again: measured, 2^20 is best from 2 classes on. On a GPU a slab only has to keep the device busy.
_CPU_SLAB = 1 << 20
_GPU_SLAB = 1 << 24
# What the buffers of a slab may take beside the gradient: a share of the scores, or so many bytes where that is more.
_CPU_SHARE = 0.2
_FEW_BYTES = 15 << 18  # 3.75 MiB
# The same of the scores of a head, which are never there as a whole.
_HEAD_SHARE = 0.025
_HEAD_BYTES = 1 << 23
# Whether the GPU kernels take what they can. As it comes, CUDA tensors, where a tiny case of the same kind has shown
# that the kernels are right on the device; "1": all, in triton's interpreter those of the CPU too; "0": none.
_TRITON = os.environ.get("MONAI_EXTRA_LOSSES_TRITON", "")
# The same of the kernels that numba compiles for the CPU, where it is installed.
_NUMBA = os.environ.get("MONAI_EXTRA_LOSSES_NUMBA", "")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call is computed, forward and backward.

    Attributes:
        slab: the kernels; None: the definitions of the terms, slab by slab.
        length: voxels of a slab.
        softmax: "recomputed" by the backward; or the forward leaves it where the backward writes the gradient, "kept by
            slab" or, where a softmax of the whole call goes straight to that place, "kept whole".
        gpu: the module that computes everything on a GPU instead.
        by_index: whether the kernels read the labels as an index, else as a one-hot.
        keeps_slab: whether all of a small call is one slab, with which the backward goes on.
        at_once: whether compiled loops read the call as it lies.
    """

    slab: type[Slab] | None
    length: int
    softmax: Literal["recomputed", "kept by slab", "kept whole"] = "recomputed"
    gpu: ModuleType | None = None
    by_index: bool = False
    keeps_slab: bool = False
    at_once: bool = False

    def for_infinite_scores(self) -> "Plan":
        """The plan whose kernels leave out infinite numbers, which those of few classes multiply by 0."""
        return replace(self, slab=SoftmaxSlab if self.slab is TwoClassSlab else self.slab, by_index=True)


def plan(data: CallData, terms: Sequence[Term], *, keeps: bool) -> Plan:
    """Decide how a call is computed.

    Args:
        data: the call.
        terms: what to compute.
        keeps: whether the forward may leave a slab, or its softmax, for the backward.
    """
    gpu = _gpu_kernels(data, terms)
    if gpu is not None:
        return Plan(None, 0, gpu=gpu)
    channels = data.scores.shape[1]
    merges = data.unknown is not None
    slabs = [SoftmaxSlab] if merges else _SLABS
    slab = next((slab for slab in slabs if slab.computes(terms, channels)), None) if data.labels else None
    if slab is not None and (of_loops := _plan_of_loops(data, terms)) is not None:
        return of_loops
    by_index = not few_classes(data.scores)
    voxels = data.scores.numel() // channels
    softmax: Literal["recomputed", "kept by slab", "kept whole"] = "recomputed"
    if keeps and slab is SoftmaxSlab and not merges and _softmax_pays(data, terms):
        softmax = "kept whole" if data.counts_all and data.scores.is_contiguous() else "kept by slab"
    floats = _floats(data, terms, slab, by_index=by_index, in_place=softmax == "kept whole")
    if keeps and slab is not None and not merges and floats * data.dtype.itemsize * voxels <= _FEW_BYTES:
        softmax = "kept whole" if softmax == "kept whole" else "recomputed"  # the slab has it
        return Plan(slab, max(voxels, 1), softmax, by_index=by_index, keeps_slab=True)
    return Plan(slab, slab_length(data, floats), softmax, by_index=by_index)


def _softmax_pays(data: CallData, terms: Sequence[Term]) -> bool:
    """Whether keeping the softmax saves time: half the exponentials.

    Not on a GPU, where memory traffic counts; nor in half precision, which would round the probabilities; nor beside a
    map, which may be worked on before the backward.
    """
    wide = data.scores.dtype in (torch.float32, torch.float64)
    reads = any(term.reads_scores for term in terms)
    return wide and reads and data.scores.device.type == "cpu" and not any(term.is_map for term in terms)


def _floats(data: CallData, terms: Sequence[Term], slab: type[Slab] | None, *, by_index: bool, in_place: bool) -> int:
    """How many numbers per voxel of a slab are alive at a time, at most."""
    channels = data.scores.shape[1]
    head = 0
    if isinstance(data.scores, HeadScores):  # scores and their gradient, features and theirs
        head = 2 * channels + 2 * data.scores.features.shape[1]
    copies = 2 * (data.scores.dtype != data.dtype) + (not data.counts_all)  # scores, and those without ignored voxels
    copies += 3 * (data.unknown is not None)  # probabilities of all classes, and merged scores
    if slab is not None and slab.takes_anything:
        of_head = 3 * channels if head else 0  # shorter slabs of a head, which are as quick, and take less
        return head + of_head + 2 * channels * (data.scores.dtype != data.dtype) + 4
    if slab is None:
        return head + (copies + 1) * channels + 19 * channels + 4  # what autograd keeps of the plain definitions
    own = max(slab.kernels[type(term)].floats(term, channels) for term in terms)  # beside scores, labels and gradient
    if slab is TwoClassSlab:
        return head + copies * channels + own
    # As an index, and what counts by it, or as g; 1 - g is with the terms that read it.
    labels = 12 if by_index else channels if slab is SoftmaxSlab else 2 * channels
    probabilities = 2 * channels if slab is SoftmaxSlab and not in_place else 0
    gradient = 0 if slab is SoftmaxSlab else channels
    if slab is not SoftmaxSlab and sum(term.reads_scores for term in terms) > 1:
        gradient += 2 * channels  # those of two terms, and what one of them has kept
    return head + copies * channels + labels + probabilities + gradient + own


def slab_length(data: CallData, floats: int) -> int:
    """Voxels of a slab whose buffers hold so many numbers per voxel."""
    scores = data.scores
    of_head = isinstance(scores, HeadScores)
    if scores.device.type != "cpu" and not of_head:
        return max(_GPU_SLAB // scores.shape[1], 1)
    share = _HEAD_SHARE if of_head else _CPU_SHARE
    least = _HEAD_BYTES if of_head else _FEW_BYTES
    if scores.device.type != "cpu":
        least = 4 * _GPU_SLAB
    allowed = max(share * scores.numel() * scores.element_size(), least)
    return max(min(_CPU_SLAB // scores.shape[1], int(allowed / (data.dtype.itemsize * floats))), 128)


def _plan_of_loops(data: CallData, terms: Sequence[Term]) -> Plan | None:
    """The plan of a call that compiled loops take on the CPU; None where there are none that do, or that work."""
    scores = data.scores
    if _NUMBA == "0" or scores.device.type != "cpu" or data.dtype != torch.float32 or data.unknown is not None:
        return None
    of_head = isinstance(scores, HeadScores)
    if not of_head and (scores.stride(-1) != 1 or not has_flat_view(scores)):
        return None
    kernels = _numba()
    slab = None if kernels is None else kernels.slab_of(terms, scores.shape[1])
    if kernels is None or slab is None or not (_NUMBA == "1" or _agree(kernels, slab)):
        return None
    as_it_lies = not of_head and scores.dtype == data.dtype and data.counts_all
    if as_it_lies and has_flat_view(data.target) and kernels.reads(data.target.dtype):
        return Plan(slab, max(scores.numel() // scores.shape[1], 1), at_once=True)
    return Plan(slab, slab_length(data, _floats(data, terms, slab, by_index=False, in_place=False)))


@functools.cache
def _numba() -> ModuleType | None:
    """`kernels.jit`, where numba is installed and can be imported."""
    try:
        from monai_extra_losses.ops.kernels import jit
    except ImportError as error:
        if importlib.util.find_spec("numba") is not None:  # it wants another numpy, say
            warnings.warn(f"the losses run in plain torch: numba cannot be imported: {error}", stacklevel=2)
        return None
    return jit


@functools.cache
def _agree(kernels: ModuleType, slab: type[Slab]) -> bool:
    """Whether loops compute what they know as the definitions do, once per process."""
    plain = torch.float32, torch.float32, torch.float32, torch.device("cpu")
    kinds = [Variant(terms, channels, True, None, *plain) for terms, channels in kernels.known_to(slab)]
    return all(agree(kernels, kind) for kind in kinds)


def _gpu_kernels(data: CallData, terms: Sequence[Term]) -> ModuleType | None:
    """The kernels that compute all of a call on a GPU; None where there are none."""
    forced = _TRITON == "1"
    on_gpu = data.scores.device.type == "cuda" or (forced and os.environ.get("TRITON_INTERPRET") == "1")
    if _TRITON == "0" or not on_gpu or isinstance(data.scores, HeadScores) or data.unknown is not None:
        return None
    kernels = _working_triton(data.scores.device)
    if kernels is None or not kernels.supports(data, terms):
        return None
    return kernels if forced or agree(kernels, Variant.of(data, terms)) else None


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
