"""Checks of the options that a loss is made with, by their annotations: one place for every class."""

import inspect
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, get_args

import numpy as np
from torch import Tensor

from monai_extra_losses.losses.inputs import refuse_gradient


def check_options(cls: type, args: Sequence[Any], options: dict[str, Any]) -> None:
    """Refuse a flag that is no bool, and a number that is none or not finite, by name.

    Raises:
        TypeError: a flag other than True and False; a number that is text, a bool or anything else.
        ValueError: a number that is NaN or infinite, or a tensor that requires a gradient.
    """
    signature = inspect.signature(cls)
    try:
        given = signature.bind_partial(*args, **options).arguments
    except TypeError:  # unknown or given twice: the constructor says so
        return
    for name, value in given.items():
        annotation = signature.parameters[name].annotation
        if annotation is bool:
            _check_flag(name, value)
        elif annotation is int:
            _check_whole(name, value)
        elif annotation is float or float in get_args(annotation):
            _check_numbers(name, value, optional=type(None) in get_args(annotation))


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"expected {name} to be True or False, got {value!r}.")


def _check_whole(name: str, value: object) -> None:
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
        return np.ravel(value.tolist()).tolist()
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
