"""A weighted sum of any losses, whose parts share one pass over the data."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_extra_losses.losses.base import SegmentationLoss, answers_to, joined
from monai_extra_losses.losses.checks import plain_data
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.ops.numbers import has_numbers, under_transform


class CompoundLoss(nn.Module):
    """Weighted sum of losses.

    sum_k lambda_k L_k

    Losses of this package that read the target alike share one pass over the data. Any other torch.nn.Module that is
    called with input and target may stand beside them.

    Args:
        losses: the parts: a list, or a dict of name and loss.
        weights: lambda of each part, >= 0; 1 each by default. `weights` of the object may be set at any time, by a
            schedule say, and is checked at the next call. A torch.nn.Parameter in the list, or one of shape (parts,)
            for all of it, is a weight to be learnt: it is a parameter of this module, in its state, and keeps its
            gradient. (Alone it falls to 0, where the sum is least.) The number in a weight on a GPU is not looked at.

    Attributes:
        components: dict of name and last value of each part, detached, before its weight.

    Shapes: those of the parts, which must agree on the input.

    Raises:
        TypeError: a part that is no torch.nn.Module, a weight that is no number.
        ValueError: no parts, a number of weights other than that of the parts, a weight that is negative, infinite or
            NaN, a part with reduction="none".

    Example:
        >>> import torch
        >>> from monai_extra_losses import CrossEntropyLoss, FusedDiceLoss
        >>> options = {"to_onehot_y": True, "softmax": True}
        >>> loss = CompoundLoss([FusedDiceLoss(**options), CrossEntropyLoss(**options)], weights=[1.0, 0.5])
        >>> value = loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))
        >>> sorted(loss.components)
        ['CrossEntropyLoss', 'FusedDiceLoss']

    Reference: none; compounds are compared in Ma et al. 2021, doi:10.1016/j.media.2021.102035.
    """

    def __init__(
        self,
        losses: Sequence[nn.Module] | Mapping[str, nn.Module],
        weights: Sequence[float | Tensor] | Tensor | None = None,
    ) -> None:
        super().__init__()
        named = dict(losses) if isinstance(losses, Mapping) else _named(losses)
        if not named:
            raise ValueError("expected at least one loss, got none.")
        for name, loss in named.items():
            if not isinstance(loss, nn.Module):
                raise TypeError(f"expected losses that are torch.nn.Module, got {type(loss).__name__} as {name}.")
            if getattr(loss, "reduction", "mean") == "none":
                raise ValueError(f"expected reduction 'mean' or 'sum' of every part, got 'none' of {name}.")
        self.losses = nn.ModuleDict(named)
        self.weights = _weights([1.0] * len(named) if weights is None else weights)
        self._checked_weights()
        self.components: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        """The weights, where any is not 1."""
        return "" if all(weight == 1 for weight in self.weight_values) else f"weights={self.weight_values}"

    def _checked_weights(self) -> list[float | Tensor]:
        """The weights, which anybody may have set since the last call."""
        weights = _as_list(self.weights)
        if len(weights) != len(self.losses):
            raise ValueError(f"expected {len(self.losses)} weights, one per loss, got {len(weights)}.")
        if torch.compiler.is_compiling() or under_transform():
            return weights
        if isinstance(self.weights, list) and any(isinstance(weight, nn.Parameter) for weight in weights):
            raise ValueError(
                "expected a learnt weight to be registered, got a torch.nn.Parameter in a list: give it to the "
                "constructor, or set `weights` to a torch.nn.ParameterList."
            )
        known = [_number(weight) for weight in weights if not isinstance(weight, Tensor) or _is_read(weight)]
        if not all(0 <= weight < math.inf for weight in known):  # NaN is neither
            raise ValueError(f"expected weights >= 0 and finite, got {known}.")
        return weights

    @property
    def weight_values(self) -> list[float]:
        """The weights as numbers, those that are learnt too."""
        return [_number(weight) for weight in self.weights]

    @property
    def reads_distance(self) -> bool:
        """Whether any part takes a map of distances."""
        return any(reads(loss, "distance") for loss in self.losses.values())

    @property
    def reads_skeleton(self) -> bool:
        """Whether any part takes the tubes of skeletons."""
        return any(reads(loss, "skeleton") for loss in self.losses.values())

    @property
    def reads_cells(self) -> bool:
        """Whether any part takes the cells of components."""
        return any(reads(loss, "cells") for loss in self.losses.values())

    def _refuse_unread(self, mask: Tensor | None, maps: Mapping[str, Tensor | None]) -> None:
        """Refuse a mask that some part cannot take, and maps that no part does."""
        whole = [name for name, loss in self.losses.items() if mask is not None and not _takes_mask(loss)]
        if whole:
            raise ValueError(
                f"expected parts that take a `mask`, got {', '.join(whole)}, which would count masked voxels: leave "
                "the mask out, or wrap that loss in a torch.nn.Module whose forward takes it."
            )
        for name, given in maps.items():
            if given is not None and not reads(self, name):
                raise ValueError(f"expected a part that reads `{name}`, got {', '.join(self.losses)}: leave it out.")

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        distance: Tensor | None = None,
        skeleton: Tensor | None = None,
        cells: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum; arguments as of the parts, `distance`, `skeleton` and `cells` for those that read one.

        Raises:
            ValueError: a `mask` that a part cannot take, a `distance`, `skeleton` or `cells` that no part reads; else
                see the parts.
        """
        maps = {"distance": distance, "skeleton": skeleton, "cells": cells}
        self._refuse_unread(mask, maps)
        weights = self._checked_weights()
        own = {name: loss for name, loss in self.losses.items() if isinstance(loss, SegmentationLoss)}
        shared: dict[object, LossInputs] = {}
        sums: dict[str, Tensor] = {}
        if own:
            data = plain_data(input, target, mask, distance, skeleton, cells)
            for part in own.values():
                part.check(data, stacklevel=5)
            for part in own.values():
                if (key := _reading(part)) not in shared:
                    shared[key] = part.wrap(data)
        for key, inputs in shared.items():
            parts = {name: part.terms(inputs) for name, part in own.items() if _reading(part) == key}
            sums |= inputs.compute(joined(parts))
        values = {}
        for name, loss in self.losses.items():
            if isinstance(loss, SegmentationLoss):
                values[name] = loss.value(shared[_reading(loss)], answers_to(name, sums))
            else:
                values[name] = loss(input, target, **_given(loss, mask, maps))
        self.components = {name: value.detach() for name, value in values.items()}
        total = torch.zeros((), device=input.device)
        for weight, value in zip(weights, values.values(), strict=True):
            total = total + (weight.reshape(()) if isinstance(weight, Tensor) else weight) * value
        return total.to(torch.float64 if input.dtype == torch.float64 else torch.float32)


class AroundLoss(nn.Module):
    """What hands the arguments of a loss, `loss`, on to it."""

    loss: nn.Module

    @property
    def components(self) -> dict[str, Tensor]:
        """Those of a `CompoundLoss`; empty for another loss."""
        return getattr(self.loss, "components", {})

    @property
    def reads_distance(self) -> bool:
        """Whether the loss takes a map of distances."""
        return reads(self.loss, "distance")

    @property
    def reads_skeleton(self) -> bool:
        """Whether the loss takes the tubes of skeletons."""
        return reads(self.loss, "skeleton")

    @property
    def reads_cells(self) -> bool:
        """Whether the loss takes the cells of components."""
        return reads(self.loss, "cells")


def _given(loss: nn.Module, mask: Tensor | None, maps: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """What there is of the optional arguments that a loss reads."""
    given = {"mask": mask, **{name: value for name, value in maps.items() if reads(loss, name)}}
    return {name: value for name, value in given.items() if value is not None}


def _weights(given: Any) -> list[Any] | nn.Parameter | nn.ParameterList:
    """The weights as a compound keeps them: numbers in a list, parameters where a module registers them."""
    if isinstance(given, nn.Parameter):
        return given
    weights = [
        weight if isinstance(weight, Tensor) and weight.requires_grad else _number(weight) for weight in _as_list(given)
    ]
    return nn.ParameterList(weights) if any(isinstance(weight, nn.Parameter) for weight in weights) else weights


def _is_read(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and has_numbers(weight)


def _as_list(weights: Any) -> list[Any]:
    if isinstance(weights, str | Mapping) or not isinstance(weights, Iterable):
        raise TypeError(f"expected a list of weights, one number per loss, got {weights!r}.")
    return list(weights)


def _number(weight: Any) -> float:
    try:
        return float(weight.detach() if isinstance(weight, Tensor) else weight)  # YAML reads 1e-3 as a string
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"expected weights that are one number each, got {weight!r}.") from None


def _reading(loss: SegmentationLoss) -> object:
    """Losses of which this is equal read the target alike: one `LossInputs` serves them."""
    return loss.to_onehot_y, loss.ignore_index, loss.other_act


def takes(loss: nn.Module, name: str) -> bool:
    """Whether a loss can be called with an argument of a name."""
    known = inspect.signature(loss.forward).parameters
    return name in known or any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())


def _takes_mask(loss: nn.Module) -> bool:
    return isinstance(loss, SegmentationLoss) or takes(loss, "mask")


def reads(loss: nn.Module, name: str) -> bool:
    """Whether a loss takes a map beside the target, by the name of the argument."""
    known: bool | None = getattr(loss, f"reads_{name}", None)  # of one with parts
    return name in inspect.signature(loss.forward).parameters if known is None else known


def _named(losses: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Losses by class name; a second one of a class gets a number."""
    named: dict[str, nn.Module] = {}
    for loss in losses:
        name = base = type(loss).__name__
        number = 1
        while name in named:
            number += 1
            name = f"{base}_{number}"
        named[name] = loss
    return named
