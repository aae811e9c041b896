"""What the trials of a comparison ask of a SLURM cluster."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from monai_extra_losses.bundle.error_text import nearest_name
from monai_extra_losses.bundle.options import positive_number, whole_number
from monai_extra_losses.data.errors import StartUpRefused

# sbatch options that the other fields say, or that the jobs need as they are.
_TAKEN = {
    "partition": "partition",
    "account": "account",
    "time": "time",
    "gpus": "gpus_per_trial",
    "gpus-per-node": "gpus_per_trial",
    "gpus-per-task": "gpus_per_trial",
    "cpus-per-task": "cpus_per_trial",
    "mem": "memory_gb",
}
_NOT_FREE = {
    "array",
    "error",
    "job-name",
    "no-requeue",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "open-mode",
    "output",
} | {
    "parsable",
    "requeue",
    "signal",
    "wait",
    "wrap",
}
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """Of each trial, where it does not say otherwise.

    Args:
        partition: none: the cluster's default; so with those below.
        account: that is charged.
        time: minutes; a trial that takes longer is requeued and goes on.
        gpus_per_trial: 0: none.
        cpus_per_trial: also the number of threads.
        memory_gb: of the node's memory.
        array_parallelism: trials at a time; none: as many as the cluster runs.
        further: options of sbatch by their long names, without `--`; "true" or "" for one without a value.
    """

    partition: str | None = None
    account: str | None = None
    time: int = 240
    gpus_per_trial: int = 0
    cpus_per_trial: int | None = None
    memory_gb: float | None = None
    array_parallelism: int | None = None
    further: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, file: str | Path | None = None, **given: Any) -> Self:
        """Options of a YAML file, and those given, which win.

        Args:
            file: with the names of the fields.
            given: values of the fields, None where not given. `time` may be text as SLURM has it: "12:00:00".

        Raises:
            StartUpRefused: no such file, another content, an unknown name or a value that cannot be.
        """
        values = {} if file is None else _content(Path(file))
        place = "the SLURM options" if file is None else str(file)
        for name in (*values, *given):
            if name not in _READERS:
                raise StartUpRefused(
                    f"Expected {place} to be among {', '.join(_READERS)}, got {name!r}{nearest_name(name, _READERS)}; "
                    "an option of sbatch goes below further."
                )
        values |= {name: value for name, value in given.items() if value is not None}
        return cls(**{name: _READERS[name](name, value) for name, value in values.items()})


def _content(file: Path) -> dict[str, Any]:
    """Names and values of the file, all of them text: YAML takes 12:00:00 for a number."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise StartUpRefused(f"Expected {file} to be a YAML file of SLURM options, got: {reason}.") from None
    if content is None:  # nothing but comments
        return {}
    if not isinstance(content, dict):
        raise StartUpRefused(f"Expected {file} to hold lines such as `partition: gpu`, got {content!r}.")
    return {name: value for name, value in content.items() if value not in ("", "null", "~")}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip() or "\n" in str(value):
        raise StartUpRefused(f"Expected {name} to be a name, got {value!r}.")
    return str(value).strip()


def _minutes(name: str, value: Any) -> int:
    """Minutes of minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, rounded up."""
    match = _TIME.fullmatch(str(value).strip())
    if isinstance(value, bool) or match is None:
        raise StartUpRefused(f'Expected {name} to be minutes or text such as "12:00:00" or "2-00", got {value!r}.')
    days, *parts = (None if part is None else int(part) for part in match.groups())
    numbers = [part for part in parts if part is not None]
    before = [] if days is not None or len(numbers) == 3 else [0]  # two numbers alone are minutes and seconds
    hours, minutes, seconds = [*before, *numbers, 0, 0][:3]
    total = (days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)
    if total == 0 or seconds > 59:
        raise StartUpRefused(f"Expected {name} to be a time of at least a minute, got {value!r}.")
    return total


def _further(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise StartUpRefused(f"Expected {name} to be options of sbatch, such as {{qos: long}}, got {value!r}.")
    for key, text in value.items():
        if (field := _TAKEN.get(key.replace("_", "-"))) is not None:
            raise StartUpRefused(f"Expected {key} as {field}, got it below {name}; move it.")
        if key.replace("_", "-") in _NOT_FREE:
            raise StartUpRefused(f"Expected {name} to leave {key} to the comparison, got {text!r}; remove it.")
        if not re.fullmatch(r"[a-z][a-z_-]+", key):
            raise StartUpRefused(f"Expected {name} to have long names of options without --, got {key!r}.")
        if not isinstance(text, str | int | float) or "\n" in str(text):
            raise StartUpRefused(f"Expected {name} to have one value for {key}, got {text!r}.")
    return {key: "true" if text is True else str(text) for key, text in value.items()}


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "partition": _text,
    "account": _text,
    "time": _minutes,
    "gpus_per_trial": lambda name, value: whole_number(name, value, least=0),
    "cpus_per_trial": lambda name, value: whole_number(name, value, least=1),
    "memory_gb": positive_number,
    "array_parallelism": lambda name, value: whole_number(name, value, least=1),
    "further": _further,
}
