"""The pass over slabs as operators of torch, which a compiled graph calls as they are.

An operator takes tensors, numbers and text, so the terms travel as text: `CountSums(softmax, False, False);
TargetSums(none)`. A term that holds a tensor, or a formula that does not derive from `Spelled`, has no text.
"""

import ast
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, library
from torch.fx.experimental.symbolic_shapes import guard_scalar

from monai_extra_losses.ops import slab_pass
from monai_extra_losses.ops.call_data import CallData, refuse_negative_weights
from monai_extra_losses.ops.formulas import Spelled
from monai_extra_losses.ops.numbers import sum_dtype
from monai_extra_losses.ops.plan import plan
from monai_extra_losses.ops.terms import Term
from monai_extra_losses.ops.wrong_targets import WrongLabelsError, wrong_target

NO_SECOND_DERIVATIVE = (
    "these losses have no second derivative: expected backward() without create_graph=True "
    "(torch.func.hessian gives one, at the memory of plain torch)."
)


def encode(value: object) -> str | None:
    """A term, or what it is made of, as text; None where it has none. Dynamo traces this."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        # Dynamo makes a symbol of a number that has changed, and of what a size decides: here it becomes a constant.
        number = guard_scalar(value)
        return str(number) if isinstance(number, bool) else repr(float(number))
    name = type(value).__name__
    if Spelled.by_name.get(name) is not type(value):
        return None
    # What a dataclass takes by position; Dynamo cannot trace `dataclasses.fields`.
    parts = [encode(getattr(value, field)) for field in type(value).__match_args__]  # type: ignore[attr-defined]
    known = [part for part in parts if part is not None]
    return f"{name}({', '.join(known)})" if len(known) == len(parts) else None


@functools.cache
def decode(text: str) -> tuple[Term, ...]:
    """The terms of texts with `; ` between them."""
    return tuple(_made(statement.value) for statement in ast.parse(text).body if isinstance(statement, ast.Expr))


def _made(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return Spelled.by_name[node.func.id](*map(_made, node.args))
    if isinstance(node, ast.Name):
        return float(node.id) if node.id == "inf" else node.id
    return ast.literal_eval(node)


def sums(data: CallData, texts: Sequence[str]) -> list[Tensor]:
    """The sums of the terms with these texts, by one operator."""
    tensors = data.scores, data.target, data.mask
    with torch._C.DisableTorchFunctionSubclass():  # else the sums of a MetaTensor would be MetaTensors
        return list(torch.ops.monai_extra_losses.fused_sums(*tensors, data.labels, data.ignore_index, "; ".join(texts)))


def checked(data: CallData, *, any_target: bool = False) -> CallData:
    """The same data, from operators that refuse a wrong target and negative weights on the CPU.

    Their results are copies: a check whose result nobody reads would be no part of a compiled graph.

    Args:
        data: scores, target and mask.
        any_target: whether the target may have any values.

    Raises:
        ValueError: where the graph runs.
    """
    scores, target, mask = data.scores, data.target, data.mask
    if scores.device.type != "cpu":
        return data
    with torch._C.DisableTorchFunctionSubclass():
        if not any_target:
            call = scores.detach(), target, mask, data.labels, data.ignore_index
            target = torch.ops.monai_extra_losses.checked_target(*call)
        elif mask is not None:
            mask = torch.ops.monai_extra_losses.checked_weights(mask)
    return CallData(scores, target, mask, data.labels, data.ignore_index)


def _data(scores: Tensor, target: Tensor, mask: Tensor | None, labels: bool, ignore_index: int | None) -> CallData:
    return CallData(_plain(scores), _plain(target), None if mask is None else _plain(mask), labels, ignore_index)


def _plain(tensor: Tensor) -> Tensor:
    # Dynamo leaves a MetaTensor what it is, and its indexing has an own idea of a batch.
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


_CALL = "Tensor scores, Tensor target, Tensor? mask, bool labels, int? ignore_index"
_DATA = f"{_CALL}, str terms"
# Nobody has proved that a GPU can record the pass and repeat it.
_TAGS = (torch.Tag.cudagraph_unsafe,)


@library.custom_op("monai_extra_losses::fused_sums", mutates_args=(), schema=f"({_DATA}) -> Tensor[]", tags=_TAGS)
def _sums(
    scores: Tensor, target: Tensor, mask: Tensor | None, labels: bool, ignore_index: int | None, terms: str
) -> list[Tensor]:
    data = _data(scores, target, mask, labels, ignore_index)
    wanted = decode(terms)
    try:
        return list(slab_pass.forward(data, wanted, plan(data, wanted, keeps=False)))
    except WrongLabelsError:
        raise ValueError(wrong_target(data)) from None


@_sums.register_fake
def _shapes_of_sums(
    scores: Tensor, target: Tensor, mask: Tensor | None, labels: bool, ignore_index: int | None, terms: str
) -> list[Tensor]:
    dtype = sum_dtype(scores.device)
    return [scores.new_empty(term.shape(scores), dtype=dtype) for term in decode(terms)]


@library.custom_op(
    "monai_extra_losses::fused_sums_backward",
    mutates_args=(),
    schema=f"(Tensor?[] grads, {_DATA}) -> Tensor",
    tags=_TAGS,
)
def _gradient(
    grads: Sequence[Tensor | None],
    scores: Tensor,
    target: Tensor,
    mask: Tensor | None,
    labels: bool,
    ignore_index: int | None,
    terms: str,
) -> Tensor:
    data = _data(scores, target, mask, labels, ignore_index)
    # torch calls an operator below autograd. What has no kernel, or no slope, is differentiated all the same, slab by
    # slab: `inference_mode(False)` is the public way back.
    with torch.inference_mode(False), torch.no_grad():
        wanted = decode(terms)
        return slab_pass.backward(data, wanted, grads, plan(data, wanted, keeps=False))


@_gradient.register_fake
def _shape_of_gradient(
    grads: Sequence[Tensor | None],
    scores: Tensor,
    target: Tensor,
    mask: Tensor | None,
    labels: bool,
    ignore_index: int | None,
    terms: str,
) -> Tensor:
    return torch.empty_like(scores)


@library.custom_op("monai_extra_losses::checked_target", mutates_args=(), schema=f"({_CALL}) -> Tensor")
def _checked_target(
    scores: Tensor, target: Tensor, mask: Tensor | None, labels: bool, ignore_index: int | None
) -> Tensor:
    data = _data(scores, target, mask, labels, ignore_index)
    try:
        slab_pass.check_target(data)
    except WrongLabelsError:
        raise ValueError(wrong_target(data)) from None
    return data.target.clone()


@_checked_target.register_fake
def _shape_of_target(
    scores: Tensor, target: Tensor, mask: Tensor | None, labels: bool, ignore_index: int | None
) -> Tensor:
    return torch.empty_like(target)


@library.custom_op("monai_extra_losses::checked_weights", mutates_args=(), schema="(Tensor mask) -> Tensor")
def _checked_weights(mask: Tensor) -> Tensor:
    refuse_negative_weights(mask)
    return _plain(mask).clone()


@_checked_weights.register_fake
def _shape_of_weights(mask: Tensor) -> Tensor:
    return torch.empty_like(mask)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    scores, target, mask, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(scores, target, mask)


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    gradient = torch.ops.monai_extra_losses.fused_sums_backward(grads, *ctx.saved_tensors, *ctx.options)
    return gradient, None, None, None, None, None


def _refuse(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError(NO_SECOND_DERIVATIVE)


_sums.register_autograd(_differentiate, setup_context=_keep)
_gradient.register_autograd(_refuse)
_checked_target.register_autograd(lambda ctx, grad: (None, grad, None, None, None))
