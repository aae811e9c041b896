"""A busy machine, on which two threads are slower than one, is noticed; an idle one is not called busy."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from runs import train

from monai_extra_losses.bundle import thread_stalls
from monai_extra_losses.bundle.thread_stalls import Interruptions, ThreadStallNotice

SENTENCE = (
    "Other programs keep the processor busy: this one is interrupted {} times a second, and its 2 threads wait for "
    "each other each time. One thread is faster then: set OMP_NUM_THREADS=1."
)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, int], None]:
    """Lets seconds pass in which the process is interrupted so many times a second."""
    now, count = 0.0, 0

    def pass_time(seconds: float, per_second: int) -> None:
        nonlocal now, count
        now += seconds
        count += round(seconds * per_second)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(thread_stalls, "_interruptions_so_far", lambda: count)
    return pass_time


@pytest.mark.parametrize(("per_second", "busy"), [(0, False), (5, False), (20, False), (21, True), (112, True)])
@pytest.mark.usefixtures("two_threads")
def test_the_limit_is_ten_a_second_and_thread(clock: Callable[[float, int], None], per_second: int, busy: bool) -> None:
    interruptions = Interruptions()
    clock(10, per_second)
    assert interruptions.warning() == (SENTENCE.format(per_second) if busy else None)
    torch.set_num_threads(1)
    assert interruptions.warning() is None


@pytest.mark.usefixtures("two_threads")
def test_it_is_said_once_when_it_lasts(clock: Callable[[float, int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(thread_stalls.logger, "warning", said.append)
    engine = Engine(lambda _, seconds_and_rate: clock(*seconds_and_rate))
    ThreadStallNotice().attach(engine)
    said_after: list[int] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: said_after.append(len(said)))
    idle, busy = (11, 3), (11, 100)
    engine.run([(1, 100), (1, 3), idle, busy, idle, busy, (4, 100), (7, 100), busy, busy])
    assert said_after == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert said == [f"{SENTENCE.format(100)} --resume True goes on after the last epoch."]


def test_a_system_that_does_not_count_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows
    assert Interruptions().warning() is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs two processes on one core")
@pytest.mark.usefixtures("two_threads")
def test_a_program_on_the_same_core_interrupts() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        interruptions = Interruptions()
        while interruptions.seconds < 1.5:
            sum(range(10_000))
        assert "set OMP_NUM_THREADS=1" in (interruptions.warning() or "")
    finally:
        busy.kill()
        busy.wait()
        os.sched_setaffinity(0, cores)


def test_a_training_says_it(phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_stalls, "_WINDOW_SECONDS", -1.0)
    monkeypatch.setattr(Interruptions, "warning", lambda self: SENTENCE.format(50))
    run = train(phantom_folder, tmp_path / "run", channels=[4, 8], num_res_units=0, batch_size=1)
    assert run.results.log.read_text().count(SENTENCE.format(50)) == 1
