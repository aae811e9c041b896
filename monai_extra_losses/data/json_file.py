"""Read a JSON file that anybody may have written: what no program could use is refused in one sentence."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai_extra_losses.data.errors import DatasetError

_MOST_DIGITS = 4300  # of a whole number that Python makes of text
_MOST_SHOWN = 200  # characters of a value in a sentence
# json takes half a pair of surrogates and the character 0; no file has them in its name, and no terminal prints them.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_json(path: Path) -> Any:
    """The content of a JSON file, in UTF-8 or, with its mark at the start, UTF-16 or UTF-32.

    Raises:
        DatasetError: no readable file; text that is no JSON or in another encoding; a key that one object has twice; a
            number or a nesting beyond what can be read; text that no file can have as its name.
    """
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            kind = "a folder" if path.is_dir() else "something else" if path.exists() else "none"
            raise DatasetError(f"{path}: expected a JSON file, got {kind}; correct or remove it.")
        with path.open("rb") as file:
            content = json.load(file, object_pairs_hook=_without_doubles, parse_int=_whole_number)
        json.dumps(content)  # so that a sentence that quotes a part of it cannot fail
    except OSError as error:
        raise DatasetError(f"{path}: expected a readable file, got an error ({error.strerror}).") from error
    except RecursionError:
        raise DatasetError(f"{path}: expected JSON, got one nested too deeply to read; correct the file.") from None
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: expected text in UTF-8, got the byte 0x{error.object[error.start]:02x} at position "
            f"{error.start}; save the file in UTF-8."
        ) from None
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"{path}: expected valid JSON, got an error ({error}); correct the file.") from error
    for text in _texts(content):
        if odd := _NO_TEXT.search(text):
            around = text[max(odd.start() - 40, 0) : odd.end() + 40]
            raise DatasetError(f"{path}: expected text of whole characters, got {quoted(around)}; correct it.")
    return content


def quoted(value: Any) -> str:
    """A value of JSON for a sentence about it, of a line at most."""
    text = json.dumps(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        doubled = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {json.dumps(doubled)} twice, of which only one would count")
    return content


def _whole_number(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits, {text[:10]}...")
    return int(text)


def _texts(content: Any) -> Iterator[str]:
    """All strings in it, keys too."""
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            waiting += part
