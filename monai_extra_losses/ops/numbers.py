"""What can be looked at in a tensor, not all of them have numbers, and in what precision a device adds up."""

import functools
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Private, and without a public twin; a torch that lacks them has no transforms that would need them.
_transforms_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_functorch = getattr(torch._C, "_functorch", None)


def under_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jacrev, ...) traces this call."""
    return bool(_transforms_active())


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor is one of a FakeTensorMode, which has a shape and no numbers."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor can be read on the host and decide what is computed."""
    if torch.compiler.is_compiling() or _transforms_active() or tensor.is_meta:
        return False
    return type(tensor) is Tensor or not is_fake(tensor)


def numbers_of(tensor: Tensor) -> Tensor | None:
    """The numbers of a tensor, to check their range; under a vmap those of all its calls. None where there are none."""
    if torch.compiler.is_compiling():
        return None
    while _functorch is not None and _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return None if tensor.is_meta or is_fake(tensor) else tensor.detach()


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor with numbers and without gradient as an array; a transform wraps whatever an operation gives."""
    on_host = tensor.cpu()
    while _functorch is not None and _functorch.is_functorch_wrapped_tensor(on_host):
        on_host = _functorch.get_unwrapped(on_host)
    return np.array(on_host.tolist()) if under_transform() else on_host.numpy()  # there a tensor hides its storage


def sum_dtype(device: torch.device) -> torch.dtype:
    """Precision of sums over voxels: float64, or float32 on devices without it (Apple's GPUs, some of Intel's)."""
    known = _WITH_FLOAT64.get(device.type)
    return torch.float64 if (_has_float64(device) if known is None else known) else torch.float32


_WITH_FLOAT64 = {"cpu": True, "cuda": True, "meta": True, "mps": False}


@functools.cache
def _has_float64(device: torch.device) -> bool:
    """Whether another device adds up in float64."""
    try:
        return torch.ones(2, dtype=torch.float64, device=device).sum().item() == 2
    except (RuntimeError, TypeError, AssertionError):  # no float64, or no such device in this torch
        return False
