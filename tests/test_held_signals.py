"""Ctrl-C and SIGTERM at any moment of waiting for trials: every line that runs then, and from outside."""

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loss_list import each

from monai_extra_losses.cli.endings import stops_in_a_sentence
from monai_extra_losses.compare import local
from monai_extra_losses.compare.held_signals import held_signals
from monai_extra_losses.compare.slurm import run_on_slurm
from monai_extra_losses.compare.slurm_options import SlurmOptions

_MOMENTS = 25  # of each way to wait and each signal
_EVENTS = 600  # of the tracer: three looks or more
_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Callable[[], object]]]:
    """Ways to wait, which end where a signal is lost; SLURM's commands are stand-ins."""
    for name, line in {"squeue": "1_0|RUNNING|None", "sbatch": "Submitted batch job 1"}.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\necho '{line}'\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.001)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "jobs.json").write_text(json.dumps({"a": "1_0"}))

    def on_slurm() -> None:
        looks = iter(range(30))

        def look(states: Any) -> None:
            if next(looks, None) is None:
                raise AssertionError("the trial is waited for as if no signal had come")

        run_on_slurm(tmp_path, ["a"], SlurmOptions(), command=lambda _: ["true"], on_change=look, poll_seconds=0.001)

    def locally() -> None:
        local.run_locally(
            ["a", "b"],
            command=lambda _: ["sleep", "20"],
            log=lambda name: tmp_path / f"{name}.txt",
            jobs=1,
            gpus=(),
            on_change=lambda _: None,
        )

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this behind it
    yield {"slurm": on_slurm, "local": locally}
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def at_event(number: int | None, send: Callable[[], object]) -> Iterator[list[int]]:
    """Does something at an event of the tracer, a line or the end of a function, and counts the events."""
    count = [0]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename in (__file__, threading.__file__, contextlib.__file__):
            return None
        if event in ("line", "return"):
            count[0] += 1
            if count[0] == number:
                send()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


@each("way", ["slurm", "local"])
@each("number", [signal.SIGINT, signal.SIGTERM])
def test_no_line_swallows_a_signal(waits: dict[str, Callable[[], object]], way: str, number: signal.Signals) -> None:
    moments = random.Random(0).sample(range(1, _EVENTS), _MOMENTS)
    for moment in [_EVENTS, *moments]:  # the first one imports
        sent: list[float] = []

        def send(sent: list[float] = sent) -> None:
            sent.append(time.monotonic())
            signal.raise_signal(number)

        with pytest.raises(SystemExit) as ended, stops_in_a_sentence(str), at_event(moment, send):
            waits[way]()
        assert ended.value.code == _CODES[number]
        assert sent
        assert time.monotonic() - sent[0] < 10


@each("way", ["slurm", "local"])
def test_no_signal_from_outside_is_lost(waits: dict[str, Callable[[], object]], way: str) -> None:
    dice = random.Random(0)
    for _ in range(25):
        timer = threading.Timer(dice.uniform(0, 0.02), os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit) as ended, stops_in_a_sentence(str):
            again_and_again(waits[way], timer)
        timer.join()
        assert ended.value.code == 130


def again_and_again(wait: Callable[[], object], timer: threading.Timer) -> None:
    timer.start()
    while True:
        with contextlib.suppress(AssertionError):
            wait()


def test_a_command_that_does_not_answer_holds_no_signal_up(
    waits: dict[str, Callable[[], object]], tmp_path: Path
) -> None:
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    start = time.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        waits["slurm"]()
    assert time.monotonic() - start < 20


def test_one_signal_is_held_and_the_next_is_not() -> None:
    done: list[str] = []

    def send(*names: str) -> None:
        with held_signals():
            for name in names:
                signal.raise_signal(signal.SIGINT)
                done.append(name)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            send("first", "second")
        with pytest.raises(KeyboardInterrupt):
            send("held to the end")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        send("ignored")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["first", "held to the end", "ignored"]
