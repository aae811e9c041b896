"""Options of the bundle, typed. The command line gives text or numbers, and "false" is true for Python."""

import ast
import math
from typing import Any

from monai_extra_losses.data.errors import StartUpRefused


def whole_number(name: str, value: Any, *, least: int) -> int:
    """`value` as an int of at least `least`; text such as "40" is understood, 2.5 and true are not."""
    number = literal(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise StartUpRefused(f"Expected {name} to be a whole number of at least {least}, got {value!r}.")
    return number


def positive_number(name: str, value: Any) -> float:
    """`value` as a float above 0; text such as "1e-3", which YAML does not read as a number, is understood."""
    number = literal(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < float("inf"):
        raise StartUpRefused(f"Expected {name} to be a number above 0, got {value!r}.")
    return float(number)


def yes_or_no(name: str, value: Any) -> bool:
    """`value` as a bool; "False" and "no" are false, although Python holds any text for true."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    answer = known.get(str(value).strip().lower())
    if answer is None:
        raise StartUpRefused(f"Expected {name} to be True or False, got {value!r}.")
    return answer


def numbers_per_axis(name: str, value: Any, *, example: str) -> tuple[float, float, float] | None:
    """`value` as three positive numbers, one number for all three axes, or None."""
    given = literal(value)
    if given is None:
        return None
    numbers = list(given) if isinstance(given, list | tuple) else [given] * 3
    if len(numbers) != 3 or not all(
        isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < float("inf") for n in numbers
    ):
        raise StartUpRefused(f'Expected {name} to be three numbers above 0 such as "{example}", got {value!r}.')
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def window(name: str, value: Any, *, example: str) -> tuple[float, float] | None:
    """`value` as two finite numbers, the lower one first, or None."""
    given = literal(value)
    if given is None:
        return None
    numbers = list(given) if isinstance(given, list | tuple) else []
    if (
        len(numbers) != 2
        or not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
        or numbers[0] >= numbers[1]
    ):
        raise StartUpRefused(
            f'Expected {name} to be two numbers, the lower one first, such as "{example}", got {value!r}.'
        )
    return float(numbers[0]), float(numbers[1])


def literal(value: Any) -> Any:
    """The number, list, bool or None that a text stands for; anything else as it came."""
    if not isinstance(value, str):
        return value
    known = {"": None, "none": None, "null": None, "true": True, "false": False}
    if value.strip().lower() in known:
        return known[value.strip().lower()]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
