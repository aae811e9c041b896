"""Trials in processes of this machine, a few at a time."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from monai_extra_losses.compare.held_signals import held_signals

WAITING, RUNNING, FINISHED, FAILED = "waiting", "running", "finished", "failed"

_POLL_SECONDS = 0.2
_SECONDS_TO_STOP = 30


def run_locally(
    names: Sequence[str],
    *,
    command: Callable[[str], list[str]],
    log: Callable[[str], Path],
    jobs: int,
    gpus: Sequence[str],
    on_change: Callable[[Mapping[str, str]], None],
) -> dict[str, str]:
    """Run trials, `jobs` at a time, in the order given.

    Each has its share of the cores, or a GPU to itself. They are stopped when this process is stopped, and a trial that
    fails leaves the others alone.

    Args:
        names: of the trials.
        command: of a trial.
        log: file that takes what it prints, after what is there.
        jobs: at a time.
        gpus: names for CUDA_VISIBLE_DEVICES; none: the trials see what this process sees.
        on_change: gets the states when one has changed, and once a second.

    Returns:
        Name -> "finished" or "failed".
    """
    states = dict.fromkeys(names, WAITING)
    running: dict[str, subprocess.Popen[bytes]] = {}
    places = _places(jobs, gpus)
    waiting, taken = list(names), dict[str, int]()
    told = 0.0
    with held_signals() as sleep:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    name = waiting.pop(0)
                    taken[name] = min(set(range(jobs)) - set(taken.values()))
                    running[name] = _started(command(name), log(name), places[taken[name]])
                    states[name] = RUNNING
                    told = 0.0
                for name, process in list(running.items()):
                    if process.poll() is not None:
                        states[name] = FAILED if process.returncode else FINISHED
                        del running[name], taken[name]
                        told = 0.0
                if time.monotonic() - told > 1:
                    on_change(states)
                    told = time.monotonic()
                sleep(_POLL_SECONDS)
        finally:
            _stop(running.values())
    on_change(states)
    return states


def end_with_stdin() -> None:
    """In a process that `run_locally` started: end at once when that is killed, as another will go on with the work."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):  # not sys.stdin, whose lock Python wants when it ends
                pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def last_line(log: Path) -> str:
    """The last line that a trial printed; "" where it printed none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(log.stat().st_size - 10000, 0))
            lines = stream.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _places(jobs: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Environment of each of the trials that run at a time."""
    threads = max(len(os.sched_getaffinity(0)) // jobs if sys.platform == "linux" else (os.cpu_count() or 1) // jobs, 1)
    own = {name: os.environ.get(name, str(threads)) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return [own | ({"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {}) for job in range(jobs)]


def _started(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end tells them that this process was killed
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops them
        )


def _stop(processes: Iterable["subprocess.Popen[bytes]"]) -> None:
    """End processes: what they have finished is kept, and they go on from it."""
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.terminate()
    end = time.monotonic() + _SECONDS_TO_STOP
    for process in left:
        try:
            process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
