"""What trainings survive: kill -9, damaged checkpoints, full and read-only disks, files that break, lost processes.

    OMP_NUM_THREADS=1 python benchmarks/faults.py --out /tmp/faults [--only kills disks] [--kills 20] [--every 3]

Every case is a command on a phantom, in a process of its own. A case survives where the command says what is wrong in
a sentence and ends with an error (a killed one says nothing), where what was finished before is intact, and where the
same command with `--resume True` then gives, bit by bit, the checkpoint, the model and the table of a training that
nothing happened to. The script prints the cases, then a table of them, and ends with 1 where one is lost. Small
disks and read-only folders need Linux and an administrator, and are left out with a sentence elsewhere.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from fault_runs import (
    Action,
    Bench,
    Ended,
    Tally,
    at_rename,
    contents,
    difference,
    kill_this_process,
    mount,
    small_disk,
    while_writing,
)

from monai_extra_losses.bundle.resuming import checkpoint_of, lost_model
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.cli.entry import main as command
from monai_extra_losses.data.errors import StartUpRefused

GOES_ON = "What was finished before is whole; the same call goes on from there (a training with --resume True)."
LONGEST_END_S = 90.0  # from the death of one process to the end of the launcher, which gives the others 30 s


# ---- killed --------------------------------------------------------------------------


def kills(bench: Bench, tally: Tally, count: int) -> None:
    """Kill -9 at random moments, some of them twice."""
    for number in range(count):
        run = bench.fresh(f"killed {number}")
        moments, twice = [], number % 4 == 3
        for again in range(1 + twice):
            words = bench.training(run, resume=True)
            while True:
                moment = tally.random.random() * bench.seconds / (1 + again)
                if bench.start(*words).kill_after(moment):
                    break  # else it had ended, or was killed before it began
                if (run / "eval" / "summary.txt").exists():
                    shutil.rmtree(run)
            moments.append(f"{moment:.2f}")
        tally.add("kill -9 at random", f"after {' and '.join(moments)} s", bench.resumed(run))


def kills_while_saving(bench: Bench, tally: Tally) -> None:
    """Kill -9 at every step of saving: in a draft, before and after each checksum and each rename."""
    steps: dict[str, Action] = {}
    for name in ("model.pt", "last.pt"):
        for share in (0.0, 0.5, 0.99):
            steps[f"{share:.0%} of {name}"] = while_writing(name, 2, share, kill_this_process)
    # in an epoch the checksums are recorded twice, of model.pt and last.pt
    places = {"training.csv": 2, "model.pt": 2, "last.pt": 2, "previous.pt": 1, "curves.png": 1, "summary.txt": 1}
    for when in ("before", "after"):
        for name, count in {**places, "run.json": 1}.items():
            steps[f"{when} {name}"] = at_rename(when, name, count, kill_this_process)
        for count, of in ((3, "model.pt"), (4, "last.pt")):
            steps[f"{when} the checksum of {of}"] = at_rename(when, "checksums.json", count, kill_this_process)
    steps["before the first last.pt"] = at_rename("before", "last.pt", 1, kill_this_process)
    for step, install in steps.items():
        if not tally.takes():
            continue
        run = bench.fresh(f"killed {step}")
        ended = bench.done(*bench.training(run), install=install)
        problem = None if ended.code == -signal.SIGKILL else f"was not killed there, ended with {ended.code}"
        tally.add("kill -9 while a file is saved", step, problem or bench.resumed(run))


# ---- damaged -------------------------------------------------------------------------


def cut(share: float, less: int, file: Path) -> None:
    """Keep a share of a file, and less."""
    content = file.read_bytes()
    file.write_bytes(content[: max(int(share * len(content)) - less, 0)])


def flip(place: float, file: Path) -> None:
    """Flip a bit at a place of a file."""
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 16
    file.write_bytes(content)


def checkpoints(bench: Bench, tally: Tally) -> None:
    """A last.pt that is cut off, changed or gone, and checksums that are lost."""
    damages: dict[str, Callable[[Path], object]] = {
        "empty": partial(cut, 0, 0),
        "1 byte": lambda file: file.write_bytes(b"P"),
        "half": partial(cut, 0.5, 0),
        "all but 1 byte": partial(cut, 1, 1),
        "gone": Path.unlink,
        "text": lambda file: file.write_text("text"),
        **{f"a bit at {place:.0%}": partial(flip, place) for place in (0.001, tally.random.random(), 0.999)},
    }
    sums: dict[str, Callable[[Path], object]] = {
        "": lambda file: None,
        ", checksums gone": Path.unlink,
        ", checksums damaged": lambda file: file.write_text("{"),
    }
    for name, damage in damages.items():
        for of_sums, lose in sums.items():
            if not tally.takes():
                continue
            run = bench.stopped(f"damaged {name}{of_sums}", 2)
            damage(run.last)
            lose(run.checksums)
            said = bench.done(*bench.training(run.root, resume=True))
            warned = [line for line in said.said.splitlines() if "goes on after epoch 1" in line]
            problem = None if len(warned) == 1 and str(run.last) in warned[0] else f"no warning: {said.sentence}"
            tally.add("damaged last.pt", f"{name}{of_sums}", problem or difference(run, bench.whole))
    for name, damage in damages.items():
        if not tally.takes():
            continue
        run = bench.stopped(f"both {name}", 2)
        damage(run.last)
        damage(run.previous)
        before = contents(run.root)
        said = bench.done(*bench.training(run.root, resume=True))
        missing = name == "gone"
        words = ["last.pt", "--overwrite True"] + ([] if missing else ["previous.pt"])
        problem = said.problem(*words) or (None if contents(run.root) == before else "files were changed")
        tally.add("last.pt and previous.pt damaged: refused", name, problem)
    for name, damage in damages.items():
        if not tally.takes():
            continue
        run = bench.stopped(f"model {name}", 2)
        damage(run.model)
        tally.add("damaged model.pt of an epoch that a checkpoint has", name, bench.resumed(run.root))


# ---- full disks ----------------------------------------------------------------------


def disks(bench: Bench, tally: Tally) -> None:
    """A disk that is full at one moment or another, and then has room."""
    disk = bench.root / "disk"
    fault = "disk full in a training"
    for size in ("8k", "24k", "64k", "140k", "220k", "420k", "520k", "700k", "780k"):
        if not tally.takes():
            continue
        with small_disk(disk, size) as resize:
            run = RunFolder(disk / "run")
            ended = bench.done(*bench.training(run.root))
            if ended.code == 0:
                tally.add(fault, size, "there was room; choose a smaller size")
                continue
            problem = ended.problem("no space left on device", "make room") or _unsound(run)
            resize("20m")
            tally.add(fault, size, problem or bench.resumed(run.root))
    fault = "disk full in a training that goes on"
    for room_kb in (0, 8, 60, 100, 240, 300, 360):
        if not tally.takes():
            continue
        with small_disk(disk, "20m") as resize:
            run = RunFolder(Path(shutil.copytree(bench.stopped("for a disk", 1).root, disk / "run")))
            before = contents(run.root / "models")
            resize(f"{_used_kb(disk) + room_kb}k")
            ended = bench.done(*bench.training(run.root, resume=True))
            problem = ended.problem("no space left on device", "make room") or _unsound(run, before)
            resize("20m")
            tally.add(fault, f"{room_kb} KiB left", problem or bench.resumed(run.root))
    for name, words in _other_commands(bench).items():
        of_command = partial(_with_room, bench, disk, words)
        with small_disk(disk, "20m"):
            expected = of_command(None)
            used = _used_kb(disk)
        for share in (0.0, 0.3, 0.6, 0.9):
            if not tally.takes():
                continue
            with small_disk(disk, "20m") as resize:
                problem = of_command(max(int(share * used), 4), resize, expected)
            tally.add(f"disk full in {name}", f"room for {share:.0%}", problem)


def _other_commands(bench: Bench) -> dict[str, list[str]]:
    data = bench.data
    prepare = ["prepare", "--images", str(data / "imagesTr"), "--labels", str(data / "labelsTr"), "--out", "OUT"]
    return {
        "evaluate": ["evaluate", "--run", str(bench.whole.root), "--output_dir", "OUT"],
        "infer": ["infer", "--run", str(bench.whole.root), "--input", str(data / "imagesTs"), "--output", "OUT"],
        "prepare": prepare,
    }


def _with_room(
    bench: Bench,
    disk: Path,
    words: list[str],
    room_kb: int | None,
    resize: Callable[[str], None] | None = None,
    expected: Any = None,
) -> Any:
    """What a command leaves where there is room; what is wrong with what it leaves where there is none."""
    out = disk / "out"
    words = [str(out) if word == "OUT" else word for word in words]
    whole = contents(bench.whole.root, without=_GROWING)
    if room_kb is not None and resize is not None:
        resize(f"{_used_kb(disk) + room_kb}k")
        ended = bench.done(*words)
        problem = ended.problem("no space left on device")
        problem = problem or (None if contents(bench.whole.root, without=_GROWING) == whole else "the run was changed")
        finished = contents(out, without=r"/\.")
        resize("20m")
        if problem:
            return problem
    ended = bench.done(*words)
    if ended.code:
        return f"the same call ended with {ended.code}: {ended.sentence}" if room_kb else SystemExit(ended.said)
    left = contents(out, without=r"log\.txt|\.lock|\.json|/\.|\.png")
    if room_kb is None:
        return left
    if changed := [file.name for file, content in finished.items() if left.get(file, content) != content]:
        return f"{changed[0]} was not whole"
    return None if left == expected else "the result differs"


_GROWING = r"log\.txt|\.lock|tensorboard|eval/"


def _used_kb(folder: Path) -> int:
    return shutil.disk_usage(folder).used // 1024


def _unsound(run: RunFolder, before: dict[Path, bytes] | None = None) -> str | None:
    """What is broken in a run that ended on its way."""
    if drafts := [file.name for file in run.root.rglob(".draft.*")]:
        return f"left behind: {drafts[0]}"
    try:
        checkpoint = checkpoint_of(run)
        if checkpoint is not None and (checkpoint.problem or lost_model(run, checkpoint)):
            return f"damaged: {checkpoint.problem or run.model}"
        if run.record.exists():
            RunRecord.read(run.record)
    except StartUpRefused as refused:
        return f"damaged: {refused}"
    renewed = {
        "last.pt",
        "previous.pt",
        "model.pt",
        "checksums.json",
        "config.yaml",
    }  # the first four are looked at above
    gone = [file for file in before or {} if not file.exists()]
    changed = [f for f, c in (before or {}).items() if f not in gone and f.name not in renewed and f.read_bytes() != c]
    return f"changed: {(changed or gone)[0]}" if changed or gone else None


# ---- read-only -----------------------------------------------------------------------


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Action]:
    """Gives what makes a folder read-only, also while files in it are open."""

    def close() -> None:
        mount("--bind", folder, folder)
        mount("-o", "remount,bind,ro", folder)

    try:
        yield close
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True)  # fails where it was never closed


def read_only_folders(bench: Bench, tally: Tally) -> None:
    """An output that is read-only from the start, or from a moment in a training on."""
    fault = "read-only output"
    for name, count in {"training.csv": 2, "model.pt": 2, "previous.pt": 1, "last.pt": 2, "curves.png": 1}.items():
        if not tally.takes():
            continue
        run = RunFolder(bench.fresh(f"read only {name}"))
        with read_only(run.root) as close:
            ended = bench.done(*bench.training(run.root), install=at_rename("before", name, count, close))
            problem = ended.problem("read-only file system", "make it writable", GOES_ON)
            unsound = None if problem else _unsound_but_drafts(run)
        tally.add(fault, f"in mid-training, before {name}", problem or unsound or bench.resumed(run.root))
    run = bench.stopped("read only from the start", 2)
    with read_only(run.root) as close:
        close()
        before = contents(run.root)
        problem = bench.done(*bench.training(run.root, resume=True)).problem("ead-only file system")
        problem = problem or (None if contents(run.root) == before else "files were changed")
    tally.add(fault, "train, from the start", problem or bench.resumed(run.root))
    for name, words in _other_commands(bench).items():
        out = bench.fresh(f"read only {name}")
        out.mkdir(parents=True)
        words = [str(out / "new") if word == "OUT" else word for word in words]
        with read_only(out) as close:
            close()
            problem = bench.done(*words).problem("ead-only file system")
        ended = bench.done(*words)
        tally.add(fault, name, problem or (f"then: {ended.sentence}" if ended.code else None))


def _unsound_but_drafts(run: RunFolder) -> str | None:
    problem = _unsound(run)
    return None if problem and problem.startswith("left behind") else problem  # nothing can be deleted there


# ---- files of the data ---------------------------------------------------------------


def rewritten(change: Callable[[np.ndarray], np.ndarray], file: Path) -> None:
    """Change the voxels of a file."""
    volume = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(change(np.asarray(volume.dataobj).astype(np.float32)), volume.affine), file)


def _with_nan(voxels: np.ndarray) -> np.ndarray:
    voxels[3, 4, 5] = np.nan
    return voxels


ACCIDENTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "image gone": ("imagesTr", Path.unlink),
    "image cut off": ("imagesTr", partial(cut, 0.5, 0)),
    "image empty": ("imagesTr", partial(cut, 0, 0)),
    "image of another shape": ("imagesTr", partial(rewritten, lambda voxels: voxels[:-2])),
    "image with NaN": ("imagesTr", partial(rewritten, _with_nan)),
    "label gone": ("labelsTr", Path.unlink),
    "label cut off": ("labelsTr", partial(cut, 0.5, 0)),
    "label of another shape": ("labelsTr", partial(rewritten, lambda voxels: voxels[:-2])),
    "label of other values": ("labelsTr", partial(rewritten, lambda voxels: voxels * 4)),
}


def data_files(bench: Bench, tally: Tally) -> None:
    """Files of cases that vanish or break after the first epoch, and come back."""
    data = bench.root / "data_that_breaks"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(bench.data, data)
    record = RunRecord.read(bench.whole.record)
    in_two = RunFolder(bench.root / "whole_in_two")  # loader processes draw other patches
    bench.done(*bench.training(in_two.root, overwrite=True, num_workers=2))
    for accident, (folder, happens) in ACCIDENTS.items():
        for part in ("training", "validation"):
            file = data / folder / f"{getattr(record, part)[0]}.nii.gz"
            for cache, workers in (("none", 0), ("none", 2), ("disk", 0), ("disk", 2), ("memory", 0)):
                if not tally.takes():
                    continue
                whole = file.read_bytes(), file.stat()
                run = bench.fresh(f"{accident} {part} {cache} {workers}")
                install = at_rename("after", "last.pt", 1, partial(happens, file))
                options = {"cache": cache, "num_workers": workers}
                wanted = in_two if workers else bench.whole
                ended = bench.done(*bench.training(run, data, **options), install=install)
                file.write_bytes(whole[0])
                os.utime(file, ns=(whole[1].st_atime_ns, whole[1].st_mtime_ns))
                case = f"{accident}, {part}, --cache {cache}, --num_workers {workers}"
                if cache == "memory":
                    tally.add("a file breaks, held in memory", case, _said(ended) or difference(RunFolder(run), wanted))
                    continue
                problem = ended.problem(file.name, folder)
                again = bench.done(*bench.training(run, data, resume=True, **options))
                tally.add(
                    "a file breaks in mid-training",
                    case,
                    problem or _said(again) or difference(RunFolder(run), wanted),
                )


def _said(ended: Ended) -> str | None:
    return f"ended with {ended.code}: {ended.sentence}" if ended.code else None


# ---- several processes ---------------------------------------------------------------


def kill_sibling() -> None:
    """Kill -9 the other process of the launcher."""
    parent = os.getppid()
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for pid in map(int, children):
        if pid != os.getpid() and b"--worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    time.sleep(5)


def in_call(module: str, path: str, count: int, action: Action) -> Action:
    """What makes a process act in the `count`-th call of a method."""

    def install() -> None:
        import importlib

        owner = importlib.import_module(module)
        *parts, name = path.split(".")
        for part in parts:
            owner = getattr(owner, part)
        called, seen = getattr(owner, name), 0

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == count:
                action()
            return called(*args, **options)

        setattr(owner, name, counted)

    return install


def _noted(action: Action) -> Action:
    """An action whose moment is written down."""

    def act() -> None:
        Path(os.environ["FAULT_MOMENT"]).write_text(str(time.time()))
        action()

    return act


MOMENTS: dict[str, Callable[[Action], Action]] = {
    "the start": lambda action: action,
    "the set-up": lambda action: in_call("monai_extra_losses.bundle.training", "check_cases", 1, action),
    "an epoch": lambda action: in_call("monai_extra_losses.bundle.handlers", "FiniteLossGuard._look", 2, action),
    "a validation": lambda action: in_call("monai.inferers", "SlidingWindowInferer.__call__", 2, action),
    "a checkpoint": lambda action: while_writing("last.pt", 2, 0.5, action),
}


def worker(moment: str, rank: str, words: list[str]) -> None:
    """What a process does that the launcher started: the command, with a death at a moment."""
    if moment != "none":
        writes = moment == "a checkpoint"  # rank 0 does it alone
        if os.environ["RANK"] == ("0" if writes else rank):
            MOMENTS[moment](_noted(kill_sibling if writes and rank == "1" else kill_this_process))()
            if moment == "the start":
                _noted(kill_this_process)()
    command(words)


class Launched:
    """A training of two processes by torchrun."""

    def __init__(self, bench: Bench, words: list[str], moment: str = "none", rank: int = 0) -> None:
        self.moment_file = bench.root / "moment.txt"
        self.moment_file.unlink(missing_ok=True)
        self.log = bench.root / "said_torchrun.txt"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        self.run = words[words.index("--run") + 1]
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                [*launch, "--", __file__, "--worker", moment, str(rank), *words],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "FAULT_MOMENT": str(self.moment_file)},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def wait(self) -> tuple[Ended, str | None]:
        """Its end, and what is wrong with the time it took from the fault on, or with what it left running."""
        try:
            self.process.wait(1800)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return Ended(None, "a hang"), "it hung"
        took = time.time() - float(self.moment_file.read_text()) if self.moment_file.exists() else 0.0
        left = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if self._is_ours(path)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        problem = f"{len(left)} processes are left over" if left else None
        if took > LONGEST_END_S:
            problem = f"it took {took:.0f} s to end"
        print(f"  ended {took:.1f} s after the fault", flush=True)
        return Ended(self.process.returncode, self.log.read_text(errors="replace")), problem

    def _is_ours(self, path: Path) -> bool:
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            return self.run.encode() in words and b"--worker" in words
        return False


def processes(bench: Bench, tally: Tally) -> None:
    """One of two processes of torchrun dies, or the launcher is stopped."""
    whole = RunFolder(bench.root / "whole_of_two")
    ended, _ = Launched(bench, [*bench.training(whole.root), "--overwrite", "True"]).wait()
    if ended.code:
        raise SystemExit(f"The training of two processes without a fault failed: {ended.said}")

    def go_on(fault: str, case: str, run: Path, problem: str | None) -> None:
        again, left = Launched(bench, bench.training(run, resume=True)).wait()
        tally.add(fault, case, problem or left or _said(again) or difference(RunFolder(run), whole))

    for moment in MOMENTS:
        for rank in (0, 1):
            if not tally.takes():
                continue
            run = bench.fresh(f"rank {rank} {moment}")
            ended, problem = Launched(bench, bench.training(run), moment, rank).wait()
            if ended.code in (0, None):
                problem = problem or "no error"
            if ended.said.count("Traceback (most") > 1:  # torchrun's own is one
                problem = problem or "a traceback"
            shutil.copy(
                bench.root / "said_torchrun.txt", bench.root / f"said_rank{rank}_{moment.replace(' ', '_')}.txt"
            )
            go_on("one of two processes killed", f"rank {rank} in {moment}", run, problem)
    for number in (signal.SIGINT, signal.SIGTERM):
        run = RunFolder(bench.fresh(f"launcher {number.name}"))
        launched = Launched(bench, bench.training(run.root))
        while not run.last.exists() and launched.process.poll() is None:
            time.sleep(0.02)
        launched.moment_file.write_text(str(time.time()))
        launched.process.send_signal(number)
        ended, problem = launched.wait()
        shutil.copy(bench.root / "said_torchrun.txt", bench.root / f"said_{number.name}.txt")
        problem = problem or (None if ended.code else "no error")
        go_on("launcher stopped", number.name, run.root, problem)


GROUPS: dict[str, Callable[[Bench, Tally], None]] = {
    "saving": kills_while_saving,
    "checkpoints": checkpoints,
    "disks": disks,
    "read_only": read_only_folders,
    "data": data_files,
    "processes": processes,
}


def main() -> None:
    """Try the faults and print the table."""
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2], sys.argv[3], sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--only", nargs="+", choices=["kills", *GROUPS], default=["kills", *GROUPS])
    parser.add_argument("--kills", type=int, default=20, help="random moments")
    parser.add_argument("--seed", type=int, default=0, help="of these moments")
    parser.add_argument("--every", type=int, default=1, help="try one of so many cases, for a quick look")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a fork has no other threads
    bench, tally = Bench(args.out.absolute()), Tally(args.seed, args.every)
    if "kills" in args.only:
        kills(bench, tally, args.kills)
    for name, try_group in GROUPS.items():
        if name not in args.only:
            continue
        try:
            try_group(bench, tally)
        except (SystemExit, subprocess.CalledProcessError) as left_out:
            if name not in ("disks", "read_only"):
                raise
            print(f"{name}: {left_out}")
    print(tally.table())
    raise SystemExit(1 if any(tally.lost.values()) else 0)


if __name__ == "__main__":
    main()
