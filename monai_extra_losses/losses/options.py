"""The options that losses share, each once: name, type, default and check. The bases say what they mean.

A loss names those it takes by the annotation of its `**options`, and its signature has them all.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypedDict, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from monai_extra_losses.losses.checks import refuse_gradient
from monai_extra_losses.ops.distance import SpacingOption, checked_spacing
from monai_extra_losses.ops.numbers import has_numbers, sum_dtype

Reduction = Literal["mean", "sum", "none"]
AbsentClass = Literal["smooth", "skip"]
Weight = float | Sequence[float] | Tensor | None
OtherAct = Callable[[Tensor], Tensor] | None


def one_of(name: str, value: object, choices: Any) -> Any:
    """`value` as the plain string of one of the literals in `choices`; MONAI's enums are strings too."""
    allowed = get_args(choices)
    text = getattr(value, "value", value)
    if text not in allowed:
        raise ValueError(f"Unsupported {name}: {value}, available options are {list(allowed)}.")
    return text


def refuse_negative(**numbers: float) -> None:
    """Refuse numbers below 0, and NaN, by name."""
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"{name} should be no less than 0.0, got {number}.")


def class_weights(weight: Weight, name: str = "weight") -> Tensor | None:
    """A number, list, tuple or tensor as a float64 buffer of zero or one axes.

    Raises:
        ValueError: negative weights, or a tensor of more than one axis.
    """
    if weight is None:
        return None
    device = weight.device if isinstance(weight, Tensor) else torch.get_default_device()
    if device.type == "meta" and not isinstance(weight, Tensor):  # a model that is built there would lose the numbers
        device = torch.device("cpu")
    tensor = torch.as_tensor(weight, dtype=sum_dtype(device), device=device).detach().clone()
    if tensor.ndim > 1:
        raise ValueError(f"expected a {name} of one number or one per class, got shape {tuple(tensor.shape)}.")
    if has_numbers(tensor) and not bool((tensor >= 0).all()):  # NaN is not either
        raise ValueError(f"the value/values of the `{name}` should be no less than 0, got {tensor.tolist()}.")
    return tensor


def _not_negative(name: str, value: float) -> float:
    refuse_negative(**{name: value})
    return float(value)


def _activation(name: str, value: OtherAct) -> OtherAct:
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be None or callable but is {type(value).__name__}.")
    return value


def _label(name: str, value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"expected {name} to be an int or None, got {value!r}.")
    return value


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Where a number of a loss lies, in words and as a test, and why where it needs saying."""

    words: str
    holds: Callable[[float], bool]
    why: str = ""


Positive = Annotated[float, ValueRange("> 0", lambda x: x > 0)]
Share = Annotated[float, ValueRange("in [0, 1]", lambda x: 0 <= x <= 1)]
ShareBelowOne = Annotated[float, ValueRange("in [0, 1)", lambda x: 0 <= x < 1)]
InnerShare = Annotated[float, ValueRange("in (0, 1)", lambda x: 0 < x < 1)]


@dataclass(frozen=True, slots=True)
class Option:
    """The default of an option, and its check: (name, value) -> the value as the loss keeps it."""

    default: Any
    check: Callable[[str, Any], Any] = lambda name, value: value


class RegressionOptions(TypedDict, total=False):
    """Options of every loss; `RegressionLoss` and `SegmentationLoss` say what they mean."""

    include_background: Annotated[bool, Option(True)]
    sigmoid: Annotated[bool, Option(False)]
    softmax: Annotated[bool, Option(False)]
    other_act: Annotated[OtherAct, Option(None, _activation)]
    reduction: Annotated[Reduction, Option("mean", lambda name, value: one_of(name, value, Reduction))]


class SegmentationOptions(RegressionOptions, total=False):
    """Options of every segmentation loss; `SegmentationLoss` says what they mean."""

    to_onehot_y: Annotated[bool, Option(False)]
    weight: Annotated[Weight, Option(None, lambda name, value: class_weights(value, name))]
    ignore_index: Annotated[int | None, Option(None, _label)]
    sync_batch: Annotated[bool, Option(False)]


class RegionOptions(SegmentationOptions, total=False):
    """Options of every region loss; `RegionLoss` says what they mean."""

    batch: Annotated[bool, Option(False)]
    smooth_nr: Annotated[float, Option(1e-5, _not_negative)]
    smooth_dr: Annotated[float, Option(1e-5, _not_negative)]
    soft_label: Annotated[bool, Option(False)]
    absent_class: Annotated[AbsentClass, Option("smooth", lambda name, value: one_of(name, value, AbsentClass))]


class DiceOptions(RegionOptions, total=False):
    """Options of Dice, alone and in compounds; `FusedDiceLoss` says what they mean."""

    squared_pred: Annotated[bool, Option(False)]
    jaccard: Annotated[bool, Option(False)]


class DistanceOptions(SegmentationOptions, total=False):
    """Options of every boundary loss; `DistanceLoss` says what they mean."""

    batch: Annotated[bool, Option(False)]
    spacing: Annotated[SpacingOption, Option("auto", lambda name, value: checked_spacing(value))]


@functools.cache
def options_in(kind: type) -> Mapping[str, tuple[Any, Option]]:
    """Name -> type and option, of one of the dictionaries above or of one that derives from it."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: (get_args(hint)[0], hint.__metadata__[0]) for name, hint in hints.items()}


def merged(options: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """The options, with others in place of those of their names."""
    return {**options, **others}


def chosen(options: Mapping[str, Any], kind: type, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Those of the options that are of a kind."""
    return {name: value for name, value in options.items() if name in options_in(kind) and name not in without}


def signature_of(cls: Any) -> inspect.Signature:
    """The signature of a loss: its own options, then the shared ones in place of `**options`.

    The names in `in_order` come first, and may be given by position; beside them every option is given by its name.
    """
    own = inspect.signature(cls.__init__ if "__init__" in vars(cls) else cls.__mro__[1])
    named = {p.name: _without_range(p) for p in own.parameters.values() if p.name != "self"}
    others = next((p for p in named.values() if p.kind is p.VAR_KEYWORD), None)
    found = {name: parameter for name, parameter in named.items() if parameter is not others}
    for shared in _shared(cls, others):
        found.setdefault(shared.name, shared)
    found = {name: parameter for name, parameter in found.items() if name not in cls.left_out}
    if (order := vars(cls).get("in_order")) is not None:
        first = [found.pop(name).replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in order.split()]
        found = {p.name: p for p in (*first, *found.values())}
    return own.replace(parameters=list(found.values()))


def _shared(cls: Any, others: inspect.Parameter | None) -> Iterable[inspect.Parameter]:
    if others is None:
        return
    kind = next(iter(get_args(others.annotation)), None)
    if not isinstance(kind, type) or not issubclass(kind, dict):  # a class of somebody else: those of its base
        for parameter in inspect.signature(cls.__mro__[1]).parameters.values():
            yield parameter.replace(kind=parameter.KEYWORD_ONLY)
        return
    for name, (annotation, option) in options_in(kind).items():
        default = cls.defaults.get(name, option.default)
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _without_range(parameter: inspect.Parameter) -> inspect.Parameter:
    of_range = hasattr(parameter.annotation, "__metadata__")
    return parameter.replace(annotation=parameter.annotation.__origin__) if of_range else parameter


def ranges_of(cls: Any) -> dict[str, ValueRange]:
    """The ranges of the options that the constructor of a class names itself."""
    annotations = {name: p.annotation for name, p in inspect.signature(cls.__init__).parameters.items()}
    return {name: a.__metadata__[0] for name, a in annotations.items() if hasattr(a, "__metadata__")}


def by_position(init: Callable[..., None], names: Sequence[str]) -> Callable[..., None]:
    """A constructor whose first arguments may be given by their position."""

    @functools.wraps(init)
    def bound(self: object, *args: Any, **options: Any) -> None:
        init(self, **dict(zip(names, args, strict=False)), **options)

    return bound


def check_options(cls: Any, args: Sequence[Any], options: dict[str, Any]) -> None:
    """Refuse an unknown option, a flag that is no bool, and a number that is none or not finite, by name.

    Raises:
        TypeError: an option that the class has not; a flag other than True and False; a number that is text, a bool or
            anything else.
        ValueError: a number that is NaN, infinite or out of its range, or a tensor that requires a gradient.
    """
    for name, reason in cls.left_out.items():
        if name in options:
            raise TypeError(f"{cls.__name__} has no option {name!r}: {reason}.")
    signature = inspect.signature(cls)
    try:
        given = signature.bind(*args, **options).arguments
    except TypeError as error:
        if not cls.__init__.__module__.startswith(__package__):  # its constructor takes what it likes
            return
        known = ", ".join(signature.parameters)  # the constructor would name a base, or a part
        raise TypeError(f"{cls.__name__}: {error}; its options are {known}.") from None
    for name, value in given.items():
        annotation = signature.parameters[name].annotation
        if annotation is bool:
            _check_flag(name, value)
        elif annotation is int or (int in get_args(annotation) and name in cls.ranges):
            _check_whole(name, value, optional=type(None) in get_args(annotation))
        elif annotation is float or float in get_args(annotation):
            _check_numbers(name, value, optional=type(None) in get_args(annotation))
        if (limit := cls.ranges.get(name)) is not None and not limit.holds(value):
            raise ValueError(f"expected {name} {limit.words}, got {value}{limit.why and f': {limit.why}'}.")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"expected {name} to be True or False, got {value!r}.")


def _check_whole(name: str, value: object, *, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"expected {name} to be a whole number, got {value!r}.")


def _check_numbers(name: str, value: object, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, Tensor):
        refuse_gradient(name, value)
    for number in _numbers(value):
        if not isinstance(number, Real) or isinstance(number, bool | np.bool_):
            hint = ": YAML reads 1e-5 as text, and 1.0e-5 as a number" if isinstance(number, str) else ""
            raise TypeError(f"expected {name} to be a number, got {number!r}{hint}.")
        if not math.isfinite(number):
            hint = ": give a class that never occurs the weight 0" if name == "weight" else ""
            raise ValueError(f"expected {name} to be finite, got {value}{hint}.")


def _numbers(value: object) -> Iterable[object]:
    """The numbers of a tensor, an array or a sequence; else the value itself."""
    if isinstance(value, Tensor | np.ndarray):
        return list(np.ravel(value.tolist()).tolist())
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
