"""The progress of a comparison: a bar over its trials and a line per running one, or lines of a log."""

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from monai_extra_losses.bundle.run_record import read_training_csv
from monai_extra_losses.compare.local import FAILED, FINISHED, RUNNING, last_line
from monai_extra_losses.compare.trial import ComparisonFolder
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.report.tables import shown_duration


class Progress:
    """Shows the states of trials as they change.

    Args:
        folder: of the comparison.
        states: of all its trials at the start.
        epochs: of a trial; None: not known.
        say: prints a line.
    """

    def __init__(
        self, folder: ComparisonFolder, states: Mapping[str, str], epochs: int | None, say: Callable[[str], None]
    ) -> None:
        self.folder, self.epochs, self.say = folder, epochs, say
        self.states = dict(states)
        self.done_before = sum(state == FINISHED for state in states.values())
        self.started = time.monotonic()
        self.on_terminal = sys.stderr.isatty()
        self.bars: list[Any] = []

    def __enter__(self) -> Self:
        if self.on_terminal:
            total = len(self.states)
            self.bars = [tqdm(total=total, initial=self.done_before, unit="trial", dynamic_ncols=True, leave=True)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for bar in reversed(self.bars):
            bar.close()

    def __call__(self, states: Mapping[str, str]) -> None:
        """Take in the states of some trials."""
        for name, state in states.items():
            if self.states.get(name) != state:
                self.states[name] = state
                self._tell(name, state)
        if self.on_terminal:
            self._draw()

    def _tell(self, name: str, state: str) -> None:
        if state == FAILED:
            self._line(f"{name} failed: {last_line(self.folder.log(name)) or 'it printed nothing'}")
        elif state == FINISHED:
            ended = sum(one in (FINISHED, FAILED) for one in self.states.values())
            self._line(f"{name} finished ({ended} of {len(self.states)}{self._left()})")
        elif state == RUNNING and not self.on_terminal:
            self._line(f"{name} runs")

    def _line(self, text: str) -> None:
        if self.bars:
            self.bars[0].write(text, file=sys.stderr)
        else:
            self.say(text)

    def _left(self) -> str:
        done = sum(state == FINISHED for state in self.states.values()) - self.done_before
        open_trials = sum(state not in (FINISHED, FAILED) for state in self.states.values())
        if not done or not open_trials:
            return ""
        return f", about {shown_duration((time.monotonic() - self.started) / done * open_trials)} left"

    def _draw(self) -> None:
        main, *lines = self.bars
        main.n = sum(state in (FINISHED, FAILED) for state in self.states.values())
        main.set_postfix_str(self._left().lstrip(", "), refresh=False)
        main.refresh()
        running = [name for name, state in self.states.items() if state == RUNNING]
        while len(lines) < len(running):
            lines.append(tqdm(position=len(lines) + 1, bar_format="{desc}", leave=False))
        self.bars = [main, *lines]
        for place, line in enumerate(lines):
            line.set_description_str(self._of_trial(running[place]) if place < len(running) else "")

    def _of_trial(self, name: str) -> str:
        try:
            rows = read_training_csv(self.folder.run(name).training_csv)
        except StartUpRefused:  # not whole at this moment
            rows = []
        if not rows:
            return f"  {name}: starting"
        dice = next((row["val_mean_dice"] for row in reversed(rows) if row.get("val_mean_dice")), None)
        of_all = f" of {self.epochs}" if self.epochs else ""
        said = f", validation Dice {float(dice):.3f}" if dice else ""
        return f"  {name}: epoch {rows[-1]['epoch']}{of_all}{said}"
