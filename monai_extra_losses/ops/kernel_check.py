"""What compiled kernels have to show before a call is left to them: a tiny case, equal to the definitions."""

import functools
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.terms import Term

_VOXELS = 67  # two samples of so many: no multiple of a block
_TOLERANCE = 5e-5  # of float32 sums over them, relative to the largest


class CompiledKernels(Protocol):
    """A module whose kernels a compiler makes on the user's machine.

    Attributes:
        NAME: what a warning calls them.
        COMPILER: and what made them.
        SWITCH: the environment variable that switches them off.
    """

    NAME: str
    COMPILER: str
    SWITCH: str

    def forward(self, data: CallData, terms: Sequence[Term]) -> Sequence[Tensor]:
        """The results of the terms."""

    def backward(self, data: CallData, terms: Sequence[Term], grads: Sequence[Tensor]) -> Tensor:
        """The gradient of the scores."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What decides which code of the kernels a call runs."""

    terms: tuple[Term, ...]
    channels: int
    labels: bool
    ignore_index: int | None
    scores: torch.dtype
    target: torch.dtype
    mask: torch.dtype | None
    device: torch.device

    @classmethod
    def of(cls, data: CallData, terms: Sequence[Term]) -> "Variant":
        """That of a call."""
        return cls(
            tuple(terms),
            data.scores.shape[1],
            data.labels,
            data.ignore_index if data.ignores else None,
            data.scores.dtype,
            data.target.dtype,
            None if data.mask is None else data.mask.dtype,
            data.scores.device,
        )


@functools.lru_cache(maxsize=1024)  # a hyper-parameter may change from call to call
def agree(kernels: CompiledKernels, variant: Variant) -> bool:
    """Whether kernels compute a variant as its definitions do, forward and backward; once per process.

    Where they do not, or do not run at all, a warning says so.
    """
    try:
        # A thread of its own has the usual state, whatever the first call is: one without gradient, under hooks that
        # count what autograd saves (a checkpoint does), or in an operator of a compiled graph, below autograd.
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(_deviation, kernels, variant).result()
        fault = None if found <= _tolerance(variant) else f"deviate by {found:.1e} from the definition"
    except Exception as error:  # a compiler, or a driver, raises anything
        fault = f"fail: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
    if fault is not None:
        names = ", ".join(dict.fromkeys(type(term).__name__ for term in variant.terms))
        warnings.warn(
            f"the losses compute {names} of {variant.channels} channels in plain torch: their {kernels.NAME} {fault} "
            f"({_device_name(variant.device)}, torch {torch.__version__}, {kernels.COMPILER}, "
            f"{variant.scores} scores). Please report it; {kernels.SWITCH}=0 switches the kernels off.",
            stacklevel=2,
        )
    return fault is None


def _tolerance(variant: Variant) -> float:
    """Half-precision gradients are rounded to their dtype."""
    return max(_TOLERANCE, 2 * torch.finfo(variant.scores).eps)


def _deviation(kernels: CompiledKernels, variant: Variant) -> float:
    """The largest difference of results and gradient, each relative to its largest number; NaN where there is one."""
    with torch.cuda.device(variant.device) if variant.device.type == "cuda" else nullcontext():
        return _largest_difference(kernels, variant)


def _largest_difference(kernels: CompiledKernels, variant: Variant) -> float:
    data = _case(variant)
    exact = CallData(data.scores.double().requires_grad_(), data.target, data.mask, data.labels, data.ignore_index)
    expected = [term.definition(exact.whole()) for term in variant.terms]
    grads = [torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape) for value in expected]
    of_all_classes = [not getattr(term, "by_class", True) for term in variant.terms]  # one sum, in the first column
    grads = [grad[..., :1].expand_as(grad) if one else grad for grad, one in zip(grads, of_all_classes, strict=True)]
    on_device = _moved(data, variant.device)
    pairs = [
        (mine.sum(-1), theirs.sum(-1)) if one else (mine, theirs)
        for mine, theirs, one in zip(kernels.forward(on_device, variant.terms), expected, of_all_classes, strict=True)
    ]
    reading = [(term, grad) for term, grad in zip(variant.terms, grads, strict=True) if term.reads_scores]
    if reading:
        terms, wanted = zip(*reading, strict=True)
        total = sum((value * grad).sum() for term, value, grad in zip(variant.terms, expected, grads, strict=True))
        assert isinstance(total, Tensor)
        (gradient,) = torch.autograd.grad(total, exact.scores)
        got = kernels.backward(on_device, terms, [grad.to(variant.device) for grad in wanted])
        pairs.append((got, gradient))
    differences = [
        (mine.detach().cpu().double() - theirs.detach()).abs().max() / theirs.abs().max().clamp_min(1e-6)
        for mine, theirs in pairs
    ]
    return torch.stack(differences).max().item()


def _case(variant: Variant) -> CallData:
    """Two samples of random voxels, the same for every variant of a shape."""
    generator = torch.Generator("cpu").manual_seed(0)
    channels, shape = variant.channels, (2, variant.channels, _VOXELS)
    scores = (2 * torch.randn(shape, generator=generator, device="cpu")).to(variant.scores)
    labels = torch.randint(0, max(channels, 2), (2, 1, _VOXELS), generator=generator, device="cpu")
    target = labels if variant.labels else (labels == torch.arange(channels).view(1, -1, 1)).to(torch.float32)
    if not variant.labels and variant.target.is_floating_point:
        target = 0.8 * target + 0.2 * torch.rand(shape, generator=generator, device="cpu")  # soft, in [0, 1]
    target = target.to(variant.target)
    if variant.ignore_index is not None and variant.labels:
        target[torch.rand(target.shape, generator=generator, device="cpu") < 0.2] = variant.ignore_index
    mask = None
    if variant.mask is not None:
        share = torch.rand((2, 1, _VOXELS), generator=generator, device="cpu")
        mask = (share > 0.3) if variant.mask == torch.bool else (share * (share > 0.3)).to(variant.mask)
    return CallData(scores, target, mask, variant.labels, variant.ignore_index)


def _moved(data: CallData, device: torch.device) -> CallData:
    mask = None if data.mask is None else data.mask.to(device)
    return CallData(data.scores.to(device), data.target.to(device), mask, data.labels, data.ignore_index)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
