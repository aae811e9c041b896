"""Which trainings a comparison consists of."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from monai_extra_losses.bundle.options import literal
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.storage import write_whole

OVERLAYS = ("boundary_schedule", "boundary_maps", "vessels", "lesions")  # in the order in which they go on top
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.=-]+")


@dataclasses.dataclass(frozen=True)
class LossChoice:
    """One of the losses to compare.

    Args:
        text: as given: `focal_tversky::gamma=2`, `surface+boundary_maps`, `my_module.MyLoss`.
        name: of the entry of configs/losses.yaml, or module.Class.
        options: of the loss.
        overlays: config files on top, without .yaml.
    """

    text: str
    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    overlays: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """A loss as the command line gives it: NAME[::OPTION=VALUE]...[+OVERLAY]...

        Raises:
            StartUpRefused: no name, an option without a value, or an unknown overlay.
        """
        first, *overlays = (word.strip() for word in text.strip().split("+"))
        if unknown := [name for name in overlays if name not in OVERLAYS]:
            raise StartUpRefused(
                f"Expected overlays of --losses to be among {', '.join(OVERLAYS)}, got {unknown[0]!r} in {text!r}."
            )
        name, *given = first.split("::")
        pairs = [word.partition("=") for word in given]
        if not name or any(not key or not equals or not value for key, equals, value in pairs):
            raise StartUpRefused(
                "Expected --losses to be names such as dice_ce, focal_tversky::gamma=2 or surface+boundary_maps, "
                f"with a comma between them, got {text!r}."
            )
        options = {key: literal(value) for key, _, value in pairs}
        return cls(text.strip(), name, options, tuple(o for o in OVERLAYS if o in overlays))

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return _NOT_IN_NAMES.sub("_", self.text.replace("::", "_"))


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training: a loss, a fold, a seed, and values of the options of the grid."""

    loss: LossChoice
    fold: int
    seed: int
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its folder below trials/."""
        values = "".join(f"_{_NOT_IN_NAMES.sub('_', f'{key}={value}')}" for key, value in self.values.items())
        return f"{self.loss.folder}/fold{self.fold}_seed{self.seed}{values}"


@dataclasses.dataclass(frozen=True)
class ComparisonPlan:
    """All trainings of a comparison, and what they share; `comparison.json`.

    Args:
        dataset_dir: the folder to train on.
        losses: in the order given; differences are to the first.
        folds: that validate, each in trainings of its own.
        seeds: of weights and patches; the folds stay the same.
        grid: option of the training -> values, tried for each loss.
        options: of every training.
        config_files: in place of the bundle's train.yaml; none: the bundle's.
        test_dir: a data set that measures, in place of the cases that validate.
        metrics: sets of further metrics of the evaluation.
    """

    dataset_dir: str
    losses: tuple[LossChoice, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    grid: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config_files: tuple[str, ...] = ()
    test_dir: str | None = None
    metrics: tuple[str, ...] = ()

    @property
    def trials(self) -> list[Trial]:
        """Seed by seed, so that a comparison that is stopped has seen every loss; within one, fold by fold."""
        return [
            Trial(loss, fold, seed, values)
            for seed in self.seeds
            for fold in self.folds
            for values in self.grid_points
            for loss in self.losses
        ]

    @property
    def grid_points(self) -> list[dict[str, Any]]:
        """Every combination of the values of the grid; one empty one without a grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def trial(self, name: str) -> Trial:
        """The trial of this name."""
        return next(trial for trial in self.trials if trial.name == name)

    def write(self, path: Path) -> None:
        """Write the plan as JSON."""
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan that `write` wrote.

        Raises:
            StartUpRefused: another content.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            losses = tuple(
                LossChoice(**{**loss, "overlays": tuple(loss["overlays"])}) for loss in content.pop("losses")
            )
            grid = {key: tuple(values) for key, values in content.pop("grid").items()}
            lists: dict[str, Any] = {k: tuple(content.pop(k)) for k in ("folds", "seeds", "config_files", "metrics")}
            return cls(losses=losses, grid=grid, **lists, **content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StartUpRefused(
                f"{path}: expected the plan that compare writes, got another content ({error}); bring back the file as "
                "it was, or choose another --out."
            ) from None

    def changes(self, other: Self) -> Iterator[tuple[str, Any, Any]]:
        """Names of what differs, with the values of both."""
        mine, theirs = (json.loads(json.dumps(dataclasses.asdict(plan))) for plan in (self, other))
        for name, value in mine.items():
            if value != theirs[name]:
                yield name, value, theirs[name]


def read_losses(text: str) -> tuple[LossChoice, ...]:
    """The losses of --losses, with a comma between them.

    Raises:
        StartUpRefused: none, or one twice.
    """
    losses = tuple(LossChoice.read(word) for word in _split(text))
    if not losses:
        raise StartUpRefused("Expected --losses to be names such as dice_ce,focal_tversky, got none.")
    _refuse_twice("--losses", [loss.folder for loss in losses])
    return losses


def read_grid(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Options of --grid: OPTION=VALUE,VALUE,...

    Raises:
        StartUpRefused: no values, or an option or value twice.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not key or not equals or not values:
            raise StartUpRefused(f"Expected --grid to be such as learning_rate=0.001,0.002, got {text!r}.")
        _refuse_twice("--grid", [*grid, key])
        grid[key] = tuple(literal(value) for value in _split(values))
        _refuse_twice(f"--grid {key}", grid[key])
    return grid


def _split(text: str) -> list[str]:
    """Words between commas that stand in no brackets."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words if word.strip()]


def _refuse_twice(option: str, values: Sequence[Any]) -> None:
    if twice := next((value for place, value in enumerate(values) if value in values[:place]), None):
        raise StartUpRefused(f"Expected {option} to name each once, got {twice!r} twice.")
