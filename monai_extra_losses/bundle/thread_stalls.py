"""Notice that threads wait for each other because other programs keep the processor busy.

A network's threads meet at the end of every operation. Where one is interrupted, all wait: on a busy machine two
threads are several times slower than one. The system counts how often it interrupts a process.
"""

import logging
import time

import torch
from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)


MOST_INTERRUPTIONS = 10.0
"""Per second and thread, in a process that has the processor to itself: daemons make a few, another program over 50."""


_WINDOW_SECONDS = 10.0


_BUSY_WINDOWS = 2  # in a row: a program that runs for a moment is nobody's business


class Interruptions:
    """Counts how often this process is interrupted, from now on."""

    def __init__(self) -> None:
        self._started, self._before = time.perf_counter(), _interruptions_so_far()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    def warning(self) -> str | None:
        """The sentence that says that threads wait for each other; None where they do not, or nothing is counted."""
        now, threads = _interruptions_so_far(), torch.get_num_threads()
        if now is None or self._before is None or threads == 1:
            return None
        per_second = (now - self._before) / max(self.seconds, 1e-9)
        if per_second <= MOST_INTERRUPTIONS * threads:
            return None
        return (
            f"Other programs keep the processor busy: this one is interrupted {per_second:.0f} times a second, and its "
            f"{threads} threads wait for each other each time. One thread is faster then: set OMP_NUM_THREADS=1."
        )


class ThreadStallNotice:
    """Says once in a training that threads wait for each other, within half a minute."""

    def attach(self, engine: Engine) -> None:
        """Look after `engine`'s iterations."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)

    def _start(self, engine: Engine) -> None:
        self._window, self._busy, self._said = Interruptions(), 0, False

    def _look(self, engine: Engine) -> None:
        if self._said or self._window.seconds < _WINDOW_SECONDS:
            return
        warning = self._window.warning()
        self._window, self._busy = Interruptions(), 0 if warning is None else self._busy + 1
        if warning is not None and self._busy == _BUSY_WINDOWS:
            self._said = True
            logger.warning(f"{warning} --resume True goes on after the last epoch.")


def _interruptions_so_far() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
