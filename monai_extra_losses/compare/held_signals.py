"""Ctrl-C and SIGTERM while a process waits for others: taken at the points that are made for it, and never lost."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_LOOK_SECONDS = 0.1


@contextlib.contextmanager
def held_signals() -> Iterator[Callable[[float], None]]:
    """Holds SIGINT and SIGTERM back until they are asked for.

    Python raises in whatever runs when a signal comes. What is raised in a `__del__`, which subprocess.Popen has, is
    printed and forgotten; between the taking of Popen's lock and the `try` behind it, it leaves the lock taken, and the
    next wait() never ends. A further signal is raised at once, for whoever would not wait for the next look.

    Gives a function that sleeps for so many seconds, and raises what has come meanwhile. What has come is also raised
    at the end, after an error too. Other threads than the main one, which no signal reaches, hold nothing.
    """
    waiting: list[int] = []
    holds = True
    before: dict[int, Callable[[int, Any], Any]] = {}

    def hold(number: int, frame: Any) -> None:
        nonlocal holds
        if holds:
            holds = False
            waiting.append(number)
        else:
            before[number](number, frame)

    def sleep(seconds: float) -> None:
        end = time.monotonic() + seconds
        while not waiting and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_SECONDS))
        if waiting:
            number = waiting.pop()
            before[number](number, None)

    try:
        if threading.current_thread() is threading.main_thread():
            for one in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(one)
                if callable(handler):  # neither left to the system nor ignored
                    before[one] = handler
                    signal.signal(one, hold)
        yield sleep
    finally:
        holds = False  # where a signal comes now, a handler that is not put back yet hands it on
        for number, handler in before.items():
            signal.signal(number, handler)
        sleep(0)
