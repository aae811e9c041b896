"""Commands that faults happen to, for `faults.py`: each in a process of its own, which can be killed at a given step.

The processes are forks of the script, which has imported everything: a start costs no time, and a kill falls on the
work. Steps are those by which a file takes its place: the package writes a draft and renames it.
"""

import contextlib
import csv
import importlib
import io
import multiprocessing
import os
import pkgutil
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import monai_extra_losses.bundle
import monai_extra_losses.report
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.cli.entry import main as command

OPTIONS = ["--channels", "[4,8,16]", "--batch_size", "2", "--val_interval", "1", "--num_folds", "3", "--device", "cpu"]
OPTIONS += ["--patch_size", "[16,16,16]"]
LONGEST_S = 1800.0  # of a command that takes seconds on an idle machine

Action = Callable[[], None]


def kill_this_process() -> None:
    """End by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_rename(when: str, name: str, count: int, action: Action) -> Action:
    """What makes a process act "before" or "after" the `count`-th time that a file takes the place `name`."""

    def install() -> None:
        replace, seen = Path.replace, 0

        def counted(self: Path, target: Path) -> Path:
            nonlocal seen
            mine = Path(target).name == name
            seen += mine
            due = mine and seen == count
            if due and when == "before":
                action()
            moved = replace(self, target)
            if due and when == "after":
                action()
            return moved

        Path.replace = counted  # type: ignore[method-assign]

    return install


def while_writing(name: str, count: int, share: float, action: Action) -> Action:
    """What makes a process act when so much of the `count`-th draft of a file is written."""

    class Cut(io.FileIO):
        room = 0

        def write(self, data: Any) -> int:
            size = memoryview(data).nbytes
            if size > self.room:
                super().write(memoryview(data).cast("B")[: self.room])
                action()
            self.room -= size
            return super().write(data)

    def install() -> None:
        opened, seen = Path.open, 0

        def counted(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            nonlocal seen
            if mode == "wb" and self.name.startswith(".draft.") and self.name.endswith(f".{name}"):
                seen += 1
                if seen == count:
                    stream = Cut(self, "w")
                    stream.room = int(share * (self.with_name(name).stat().st_size))
                    return stream
            return opened(self, mode, *rest, **more)

        Path.open = counted  # type: ignore[method-assign,assignment]

    return install


@dataclass
class Ended:
    """How a command ended: its exit code, negative for a signal, and what it said."""

    code: int | None
    said: str

    @property
    def sentence(self) -> str:
        """The last line."""
        return (self.said.strip().splitlines() or [""])[-1]

    def problem(self, *words: str) -> str | None:
        """What is wrong with an end that should be a sentence of these words."""
        if self.code in (0, None) or (self.code or 0) < 0:
            return f"exit code {self.code} instead of an error"
        if "Traceback" in self.said:
            return f"a traceback: {self.sentence}"
        missing = [word for word in words if word not in self.sentence]
        return f"{missing[0]!r} is not in the sentence: {self.sentence}" if missing else None


class Started:
    """A command in a process of its own."""

    def __init__(self, words: list[str], log: Path, install: Action | None = None) -> None:
        self.log = log
        sys.stdout.flush()
        self.process = multiprocessing.get_context("fork").Process(target=_run, args=(words, log, install))
        self.process.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid or 0

    def cpu_seconds(self) -> float:
        """What it has computed; of an ended one infinite."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("inf")
        return float("inf") if fields[0] == "Z" else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill_after(self, cpu_seconds: float) -> bool:
        """Kill -9 once so much is computed; whether it still ran."""
        while (done := self.cpu_seconds()) < cpu_seconds:
            time.sleep(0.002)
        if done == float("inf"):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return self.wait().code == -signal.SIGKILL

    def wait(self) -> Ended:
        """The end of it."""
        self.process.join(LONGEST_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            return Ended(None, "it did not end")
        return Ended(self.process.exitcode, self.log.read_text(errors="replace"))


def _run(words: list[str], log: Path, install: Action | None) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["monai-extra-losses", *words]
    if install is not None:
        install()
    command(words)


@dataclass
class Bench:
    """A folder to try faults in, with a data set, and a training that nothing happened to.

    Args:
        root: the folder.
        epochs: of every training.
    """

    root: Path
    epochs: int = 3
    seconds: float = 0.0  # CPU seconds of the training
    number: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for package in (monai_extra_losses.bundle, monai_extra_losses.report):
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{package.__name__}.{module.name}")
        self.root.mkdir(parents=True, exist_ok=True)
        self.data = self.root / "data"
        if not self.data.exists():
            self.done("phantom", "--out", str(self.data), "--cases", "6")
        self.whole = RunFolder(self.root / "whole")
        started = self.start(*self.training(self.whole.root), "--overwrite", "True")
        while (spent := started.cpu_seconds()) < float("inf"):
            self.seconds = spent
            time.sleep(0.02)
        if (ended := started.wait()).code:
            raise SystemExit(f"The training without a fault failed: {ended.said}")

    def start(self, *words: str, install: Action | None = None) -> Started:
        """Start a command."""
        self.number += 1
        return Started(list(words), self.root / f"said_{self.number}.txt", install)

    def done(self, *words: str, install: Action | None = None) -> Ended:
        """The end of a command."""
        return self.start(*words, install=install).wait()

    def training(self, run: Path, data: Path | None = None, **options: Any) -> list[str]:
        """The words of a training of three epochs."""
        more = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        words = ["train", "--data", str(data or self.data), "--run", str(run), *OPTIONS]
        return [*words, "--epochs", str(self.epochs), *more]

    def resumed(self, run: Path, whole: RunFolder | None = None, **options: Any) -> str | None:
        """Go on with a run to its end; what differs from the training that nothing happened to."""
        ended = self.done(*self.training(run, resume=True, **options))
        if ended.code:
            return f"--resume True ended with {ended.code}: {ended.sentence}"
        return difference(RunFolder(run), whole or self.whole)

    def stopped(self, name: str, epoch: int) -> RunFolder:
        """A copy of a run that was killed after an epoch."""
        kept = RunFolder(self.root / f"stopped_{epoch}")
        if not kept.root.exists():
            install = at_rename("before", "training.csv", epoch + 1, kill_this_process)
            self.done(*self.training(kept.root), install=install)
        return RunFolder(Path(shutil.copytree(kept.root, self.fresh(name))))

    def fresh(self, name: str) -> Path:
        """A folder that is not there."""
        folder = self.root / "runs" / re.sub(r"\W+", "_", name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        return folder


def difference(run: RunFolder, whole: RunFolder) -> str | None:
    """What differs between two runs, bit by bit, but for times."""
    for name in ("last", "model"):
        try:
            ours, theirs = (_flat(torch.load(getattr(of, name), weights_only=True)) for of in (run, whole))
        except Exception as error:
            return f"{name}.pt cannot be read: {error!r}"
        differing = [key for key in ours | theirs if not _equal(ours.get(key), theirs.get(key))]
        if differing:
            return f"{differing[0]} of {name}.pt differs"
    if _rows(run) != _rows(whole):
        return "training.csv differs"
    if missing := [file.name for file in (run.curves, run.summary) if not file.exists()]:
        return f"no {missing[0]}"
    drafts = [file.name for file in run.root.rglob(".draft.*")]
    return f"left behind: {drafts[0]}" if drafts else None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for part, inner in parts for key, leaf in _flat(inner, f"{name}.{part}").items()}
    return {name: value}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _rows(run: RunFolder) -> list[dict[str, str]]:
    with run.training_csv.open(newline="") as stream:
        return [{**row, "seconds": ""} for row in csv.DictReader(stream)]


def contents(folder: Path, *, without: str = r"tensorboard|log\.txt|\.lock") -> dict[Path, bytes]:
    """The files in a folder, but for those that grow."""
    files = [file for file in folder.rglob("*") if file.is_file() and not re.search(without, str(file))]
    return {file: file.read_bytes() for file in files}


@dataclass
class Tally:
    """Cases tried and survived, by the fault.

    Args:
        seed: of what is drawn.
        every: try one of so many cases.
    """

    seed: int = 0
    every: int = 1
    tried: dict[str, int] = field(default_factory=dict)
    lost: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.seen = self.seed

    def takes(self) -> bool:
        """Whether the next case is one to try."""
        self.seen += 1
        return self.seen % self.every == 0

    def add(self, fault: str, case: str, problem: str | None) -> None:
        """Count a case; `problem` says why it is lost."""
        self.tried[fault] = self.tried.get(fault, 0) + 1
        self.lost.setdefault(fault, [])
        print(f"{'lost' if problem else 'ok'}: {fault}, {case}{f': {problem}' if problem else ''}", flush=True)
        if problem:
            self.lost[fault].append(case)

    def table(self) -> str:
        """A row for each fault."""
        rows = ["| fault | cases tried | survived | lost |", "|---|---|---|---|"]
        numbers = [(fault, tried, len(self.lost[fault])) for fault, tried in self.tried.items()]
        numbers.append(("all", sum(self.tried.values()), sum(map(len, self.lost.values()))))
        return "\n".join([*rows, *(f"| {fault} | {n} | {n - lost} | {lost} |" for fault, n, lost in numbers)])


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A disk of a size that can change; gives what changes it.

    Raises:
        SystemExit: it cannot be mounted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        raise SystemExit(f"Skipped: a small disk cannot be mounted here ({mounted.stderr.decode().strip()}).")
    try:
        yield lambda wanted: mount("-o", f"remount,size={wanted}", folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def mount(*words: object) -> None:
    """Mount or unmount, as an administrator."""
    subprocess.run(["mount", *map(str, words)], check=True)
