"""What a file of ours holds, against the types that were written: files come back edited, cut or from elsewhere."""

import math
import re
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Any: "anything",
}
_LARGEST = 2**63 - 1


def typed(hint: Any, value: Any) -> Any:
    """A value of a JSON file as its type: lists become tuples, and the keys of an object may be whole numbers.

    Args:
        hint: of `int`, `float`, `str`, `bool`, `None`, `Any`, `tuple`, `dict`, and unions of them.
        value: as JSON gives it.

    Raises:
        TypeError: a value of another type, with the type in words; numbers must be finite and within 64 bits, text must
            be such as can be printed.
    """
    found, result = _typed(hint, value)
    if not found:
        raise TypeError(f"{in_words(hint)}, got {short(value)}")
    return result


def in_words(hint: Any) -> str:
    """A type in the words of a sentence."""
    if hint in _WORDS:
        return _WORDS[hint]
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(in_words, arguments))
    if get_origin(hint) is dict:
        return f"an object of {in_words(arguments[1])} per {in_words(arguments[0]).removeprefix('a ')}"
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"a list of which each is {in_words(arguments[0])}"
    return f"a list of {len(arguments)}, each {in_words(arguments[0])}"


def short(value: Any) -> str:
    """A value as a sentence may show it."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _typed(hint: Any, value: Any) -> tuple[bool, Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return next((fit for part in get_args(hint) if (fit := _typed(part, value))[0]), (False, None))
    if hint is Any:
        return True, value
    if hint is type(None) or hint is None:
        return value is None, None
    if hint is bool:
        return isinstance(value, bool), value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST, value
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= _LARGEST and math.isfinite(value), value
    if hint is str:
        return isinstance(value, str) and _is_printable(value), value
    if get_origin(hint) is dict:
        key, content = get_args(hint)
        return _typed_object(key, content, value)
    return _typed_list(get_args(hint), value)


def _typed_object(key_hint: Any, value_hint: Any, value: Any) -> tuple[bool, Any]:
    if not isinstance(value, Mapping):
        return False, None
    result = {}
    for key, content in value.items():
        if key_hint is int and isinstance(key, str):
            if not re.fullmatch(r"-?[0-9]{1,19}", key):
                return False, None
            key = int(key)
        fits, typed_key = _typed(key_hint, key)
        fits_too, typed_content = _typed(value_hint, content)
        if not (fits and fits_too):
            return False, None
        result[typed_key] = typed_content
    return True, result


def _typed_list(hints: tuple[Any, ...], value: Any) -> tuple[bool, Any]:
    if not isinstance(value, list | tuple):
        return False, None
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        return False, None
    fits = [_typed(hint, content) for hint, content in zip(hints, value, strict=True)]
    return all(fit for fit, _ in fits), tuple(content for _, content in fits)


def _is_printable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, as JSON can have it
        return False
    return "\0" not in text
