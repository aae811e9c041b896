"""Options of the bundle, typed. The command line gives text or numbers, and "false" is true for Python."""

import ast
import glob
import math
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from monai_extra_losses.bundle.error_text import nearest_name
from monai_extra_losses.data.errors import StartUpRefused

Cache = Literal["memory", "disk", "none"]
MetricSetName = Literal["vessels", "lesions", "calibration"]
OutputType = Literal["dicom_seg", "measurements"]
Network = Literal["unet", "dynunet", "segresnet"]

_CC3D = "connected-components-3d"


def whole_number(name: str, value: Any, *, least: int) -> int:
    """`value` as an int of at least `least`; text such as "40" is understood, 2.5 and true are not."""
    number = literal(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise StartUpRefused(f"Expected {name} to be a whole number of at least {least}, got {value!r}.")
    return number


def whole_number_or_none(name: str, value: Any, *, least: int) -> int | None:
    """`value` as an int of at least `least`, or None."""
    return None if literal(value) is None else whole_number(name, value, least=least)


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


def channels_per_level(name: str, value: Any) -> tuple[int, ...] | None:
    """`value` as two whole numbers of at least 1, or more of them; or None."""
    given = literal(value)
    if given is None:
        return None
    if not isinstance(given, list | tuple) or len(given) < 2:
        raise StartUpRefused(f'Expected {name} to be two numbers or more such as "[16, 32, 64, 128]", got {value!r}.')
    return tuple(whole_number(name, number, least=1) for number in given)


def axes_of(name: str, others: str, given: Any) -> tuple[int, ...]:
    """`given` as axes, each once.

    Args:
        name: of the option.
        others: what it may be besides, in words.
        given: an axis, or several.
    """
    axes = list(given) if isinstance(given, list | tuple) else [given]
    known = all(isinstance(axis, int) and not isinstance(axis, bool) and axis in (0, 1, 2) for axis in axes)
    if not known or len(set(axes)) != len(axes):
        raise StartUpRefused(
            f'Expected {name} to be {others} or axes among 0, 1 and 2 such as "[0, 1]", got {given!r}.'
        )
    return tuple(axes)


def axes_of_patches(name: str, value: Any) -> tuple[int, ...] | None:
    """`value` as axes in order, none for False, or None."""
    given = literal(value)
    if given is None or given is False:
        return None if given is None else ()
    return tuple(sorted(axes_of(name, "null, False", given)))


def flipped_axes(test_time_flips: Any) -> tuple[int, ...]:
    """The axes of the flips at test time: all for True, none for False or None."""
    given = literal(test_time_flips)
    if given is None or isinstance(given, bool):
        return (0, 1, 2) if given else ()
    return axes_of("test_time_flips", "True, False", given)


def half_precision_option(name: str, value: Any) -> str | None:
    """`value` as recorded: "fp16", "bf16", "off", or None for automatic."""
    known = {"none": None, "null": None, "fp16": "fp16", "true": "fp16", "bf16": "bf16", "false": "off"}
    chosen = str(value).strip().lower()
    if chosen not in known:
        raise StartUpRefused(f"Expected {name} to be fp16, bf16, True, False or null, got {value!r}.")
    return known[chosen]


def cache_kind(name: str, value: Any) -> str:
    """`value` as the name of a cache."""
    kind = str(value).strip().lower()
    if kind not in get_args(Cache):
        raise StartUpRefused(f"Expected {name} to be {', '.join(get_args(Cache)[:-1])} or none, got {value!r}.")
    return kind


def metric_sets(name: str, value: Any) -> tuple[str, ...]:
    """`value` as names of sets of metrics, each once.

    Raises:
        StartUpRefused: no such set, or a package that it needs is missing.
    """
    names = _names_of(name, value, get_args(MetricSetName))
    if "vessels" in names and find_spec("skimage") is None:
        raise StartUpRefused(
            f"Expected scikit-image, which {name} vessels needs, got none; install it: pip install scikit-image, or "
            "this package with its extra [vessels]."
        )
    if "lesions" in names and find_spec("cc3d") is None:
        raise StartUpRefused(
            f"Expected connected-components-3d, which {name} lesions needs, got none; install it: pip install "
            "connected-components-3d, or this package with its extra [lesions]."
        )
    return names


def output_types(name: str, value: Any) -> tuple[str, ...]:
    """`value` as names of kinds of files, each once.

    Raises:
        StartUpRefused: no such kind, or a package that it needs is missing.
    """
    names = _names_of(name, value, get_args(OutputType))
    for module, package, kind in (("highdicom", "highdicom", "dicom_seg"), ("cc3d", _CC3D, "measurements")):
        if kind in names and find_spec(module) is None:
            raise StartUpRefused(
                f"Expected {package}, which {name} {kind} needs, got none; install it: pip install {package}, or this "
                "package with its extra [dicom]."
            )
    return names


def _names_of(name: str, value: Any, known: Sequence[str]) -> tuple[str, ...]:
    """`value`, a name or several, as some of the known ones, each once."""
    given = literal(value)
    if isinstance(given, str):  # what a command line has for a list of names
        given = [word.strip() for word in given.strip("[]").split(",")]
    names = [] if given is None else given
    if not isinstance(names, list | tuple) or not all(one in known for one in names):
        raise StartUpRefused(f"Expected {name} to be a list of {', '.join(known)}, or null, got {value!r}.")
    return tuple(dict.fromkeys(names))


def share(name: str, value: Any) -> float:
    """`value` as a number from 0 to 1."""
    number = literal(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise StartUpRefused(f"Expected {name} to be a share, 0 to 1, got {value!r}.")
    return float(number)


_MOST_BINS = 6  # whose columns fit into a line


def volume_bins(name: str, value: Any) -> tuple[float, ...] | int:
    """`value` as edges of bins in ml, or as a number of bins."""
    given = literal(value)
    if isinstance(given, int) and not isinstance(given, bool) and 2 <= given <= _MOST_BINS:
        return given
    edges = list(given) if isinstance(given, list | tuple) else [None]
    numbers = [n for n in edges if isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < math.inf]
    rising = all(low < high for low, high in pairwise(numbers))
    if len(numbers) < len(edges) or not rising or not 1 <= len(numbers) < _MOST_BINS:
        raise StartUpRefused(
            f'Expected {name} to be 1 to {_MOST_BINS - 1} rising edges in ml such as "[0.01, 0.1, 1]", or a number of '
            f"bins, 2 to {_MOST_BINS}, got {value!r}."
        )
    return tuple(map(float, numbers))


def network_name(name: str, value: Any) -> str:
    """`value` as the name of a network, in lower case."""
    known = get_args(Network)
    if not isinstance(value, str):
        raise StartUpRefused(
            f"Expected {name} to be {', '.join(known[:-1])} or {known[-1]}, got {value!r}; a network of your own is "
            "built_network in a config."
        )
    if (chosen := value.strip().lower()) not in known:
        raise StartUpRefused(
            f"Expected {name} to be {', '.join(known[:-1])} or {known[-1]}, got {value!r}{nearest_name(chosen, known)}."
        )
    return chosen


def path_of(name: str, text: str) -> Path:
    """The path that a person means; `~` at its beginning is the home of a user.

    Raises:
        StartUpRefused: no name that a file could have.
    """
    if not text.strip() or "\0" in text:
        raise StartUpRefused(f"Expected {name} to be the name of a file or folder, got {text!r}.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StartUpRefused(f"Expected {name} to be a name in UTF-8, got {os.fsencode(text)!r}; rename it.") from None
    if (expanded := os.path.expanduser(text)) == text and text.startswith("~"):
        raise StartUpRefused(f"Expected {name} to begin with the home of a user, got {text!r}; write ./{text} for it.")
    return Path(expanded)


def file_or_folder(name: str, value: Any) -> Path:
    """`value` of a config as a path.

    Raises:
        StartUpRefused: no name of a file, or text that MONAI's parser, which makes `::` of `#`, may have changed.
    """
    if isinstance(value, os.PathLike):
        return Path(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise StartUpRefused(f"Expected {name} to be the name of a file or folder, got {value!r}; give it in quotes.")
    text = as_given(name, str(value))
    if "::" in text:
        raise StartUpRefused(
            f"Expected {name} to be a name without ::, got {text!r}; MONAI's parser makes :: of #, so take the command "
            "monai-extra-losses, which keeps names as they are, or another name."
        )
    return path_of(name, text)


def file_or_folder_or_none(name: str, value: Any) -> Path | None:
    """`value` of a config as a path, or None."""
    none = value is None or str(value).strip().lower() in ("none", "null")
    return None if none else file_or_folder(name, value)


def run_folders(name: str, given: Sequence[Path]) -> tuple[Path, ...]:
    """Folders of runs; one that is not there and has `*`, `?` or `[` in its name is a pattern of several.

    Raises:
        StartUpRefused: a pattern that no folder fits, or one folder twice.
    """
    folders: list[Path] = []
    for path in given:
        if path.exists() or not set("*?[") & set(str(path)):
            folders.append(path)
            continue
        found = sorted(found for text in glob.glob(str(path)) if (found := Path(text)).is_dir())
        if not found:
            raise StartUpRefused(f"Expected {name} to name folders of runs, got the pattern {path}, which none fits.")
        folders += found
    places = [folder.resolve() for folder in folders]
    if twice := [folder for number, folder in enumerate(folders) if places[number] in places[:number]]:
        raise StartUpRefused(f"Expected {name} to name each run once, got {twice[0]} twice.")
    return tuple(folders)


def run_folders_of_config(name: str, value: Any) -> tuple[Path, ...]:
    """`value` of a config, a folder, a pattern of folders or a list of these, as folders of runs; none for None."""
    given = literal(value) if isinstance(value, str) and value.strip().startswith("[") else value
    if given is None or str(given).strip().lower() in ("none", "null"):
        return ()
    if isinstance(given, list | tuple):
        return run_folders(name, [file_or_folder(f"{name}::{number}", one) for number, one in enumerate(given)])
    return run_folders(name, [file_or_folder(name, given)])


def absolute_path(name: str, value: Any) -> str | None:
    """`value` of a config as the text of a path that does not depend on the current folder, or None."""
    path = file_or_folder_or_none(name, value)
    return None if path is None else os.path.abspath(path)


def as_given(name: str, value: str) -> str:
    """`value`, if it is what stands on the command line.

    `python -m monai.bundle` takes what it is given for Python where it can: `1e5` becomes 100000.0, and `R#1` becomes
    `R`.

    Raises:
        StartUpRefused: it has become another text.
    """
    if Path(sys.argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return value
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        key, equals, after = word.partition("=")
        given = after if equals else following
        if (
            key.startswith("-")
            and key.lstrip("-").replace("-", "_") == name
            and given != value
            and not given.startswith(("$", "@", "%"))
        ):
            raise StartUpRefused(
                f"Expected {name} to be {given!r} as it was given, got {value!r}, which is how python -m monai.bundle "
                "reads it; take the command monai-extra-losses, which keeps names as they are, or another name."
            )
    return value


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
