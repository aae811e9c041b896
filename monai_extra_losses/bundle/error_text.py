"""What went wrong in code that a config builds, or in a name that a person wrote, in one line."""

import difflib
import os
import re
import traceback
from collections.abc import Iterable
from pathlib import Path


def said_of(error: BaseException) -> str:
    """The first line of what caused an error, and where: the component, and the line in the user's own code."""
    cause = first_cause(error)
    component = re.search(r"Failed to instantiate component '([\w.]+)'", str(error))
    text = (str(cause).strip().splitlines() or [""])[0].rstrip(".")
    name = "" if isinstance(cause, ValueError | TypeError) and text else type(cause).__name__
    own = [frame for frame in traceback.extract_tb(cause.__traceback__) if _is_own_code(frame.filename)]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{': '.join(filter(None, (component and component[1], name, text)))}{where}"


def as_sentence(error: BaseException) -> str:
    """The text of an error of ours, which begin small."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}"


def first_cause(error: BaseException) -> BaseException:
    """The error that others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def nearest_name(name: str, known: Iterable[str]) -> str:
    """What a mistyped name was meant to be, to stand behind it in a sentence; "" where nothing is near."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def _is_own_code(file: str) -> bool:
    """Whether a file is the user's, neither an installed package nor this one."""
    path = Path(file).resolve()
    library = any(part in ("site-packages", "dist-packages") for part in path.parts)
    standard = path.is_relative_to(Path(os.__file__).resolve().parent)
    return (
        not library and not standard and not path.is_relative_to(Path(__file__).resolve().parents[1]) and path.exists()
    )
