"""A disk that is full, read-only or taken away ends a command with one sentence, and what was finished stays."""

import errno
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import pytest
import torch
from monai.bundle import ConfigWorkflow
from runs import infer, table, train

import monai_extra_losses
from monai_extra_losses.bundle.run_folder import RunFolder, log_to
from monai_extra_losses.cli import main
from monai_extra_losses.cli.commands import commands
from monai_extra_losses.cli.endings import stops_in_a_sentence
from monai_extra_losses.data.errors import WritingFailed
from monai_extra_losses.data.storage import storage_reason, storage_sentence, whole_file, write_whole

TINY: dict[str, Any] = {"channels": [4, 8, 16], "batch_size": 2, "val_interval": 1}
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals.")
GOES_ON = "What was finished before is whole; the same call goes on from there (a training with --resume True)."


def sentence_of(*arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, str)
    return ended.value.code


# ---- the sentence ----


def wrapped(error: Exception) -> RuntimeError:
    """As MONAI hands an error on."""
    try:
        raise RuntimeError("applying transform SaveImage") from error
    except RuntimeError as outer:
        return outer


def meanwhile(handled: Exception, error: Exception) -> Exception:
    """An error that came while another was handled."""
    try:
        try:
            raise handled
        except type(handled):
            raise error  # noqa: B904
    except type(error) as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/r/last.pt"), "no space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk quota exceeded"),
        (OSError(errno.EROFS, "Read-only file system", "a", None, "b"), "read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "/r/run.json"), "permission denied"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/r"), "no such file or folder"),
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), "no space left on device"),
        (wrapped(PermissionError(errno.EACCES, "Permission denied")), "permission denied"),
        # torch.save: the error of the file came first
        (
            meanwhile(OSError(errno.ENOSPC, "No space"), RuntimeError("unexpected pos 64 vs 0")),
            "no space left on device",
        ),
        # of a loader process
        (
            OSError("Caught OSError in DataLoader worker 0: [Errno 28] No space left on device"),
            "no space left on device",
        ),
        (RuntimeError("Too many open files. Communication with the workers is no longer"), "too many open files"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), "no space left on device"),
    ],
)
def test_an_error_of_the_storage_has_its_reason(error: Exception, reason: str) -> None:
    assert storage_reason(error) == reason
    sentence = storage_sentence(error, "/some/place")
    assert sentence is not None
    assert f", got: {reason}; " in sentence
    assert sentence.endswith(GOES_ON)
    assert "/r" in sentence or "/some/place" in sentence or "write b" in sentence


@pytest.mark.parametrize(
    "error",
    [
        ValueError("expected labels"),
        RuntimeError("unexpected pos 64 vs 0"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        meanwhile(FileNotFoundError(errno.ENOENT, "No such file"), ValueError("expected labels")),  # was handled
    ],
)
def test_another_error_stays_what_it_is(error: Exception) -> None:
    assert storage_sentence(error) is None


def test_shared_memory_has_a_cure_of_its_own() -> None:
    error = RuntimeError("unable to write to file </torch_77_123_0>: No space left on device (28)")
    assert "Expected shared memory (/dev/shm) for the loader processes, got: no space" in str(storage_sentence(error))
    assert "or give --num_workers 0" in str(storage_sentence(error))


def test_half_a_file_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    (file := tmp_path / "run.json").write_text("whole")

    def write(error: BaseException) -> None:
        with whole_file(file) as draft:
            draft.write_text("half")
            raise error

    with pytest.raises(WritingFailed, match=r"Expected to write .*run\.json, got: no space left on device; make room"):
        write(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    with pytest.raises(ValueError, match="another"):
        write(ValueError("another"))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert file.read_text() == "whole"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full.")
def test_a_log_that_the_disk_does_not_take_ends_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_to(tmp_path / "log.txt", append=False)
    package = logging.getLogger("monai_extra_losses")
    (file,) = (h for h in package.handlers if isinstance(h, logging.FileHandler) and "log.txt" in h.baseFilename)
    try:
        stream = file.stream
        file.setStream(open("/dev/full", "w"))  # noqa: SIM115
        for _ in range(3):
            package.warning("said")
        said = capsys.readouterr().err
        assert said.count(f"The log {tmp_path / 'log.txt'} ends here: no space left on device.") == 1
        assert "Traceback" not in said
        stream.close()
    finally:
        for logger in (package, logging.getLogger()):
            logger.removeHandler(file)


# ---- a disk that is really full ----


class SmallDisk:
    """A disk of some KiB, that can grow."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(root)], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small disk needs the rights of an administrator.")

    def has(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.root)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs Linux and the rights of an administrator.")
    small = SmallDisk(tmp_path / "disk")
    yield small
    subprocess.run(["umount", "-l", str(small.root)], check=True)


@pytest.fixture(scope="module")
def trained(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Three epochs at one go. Do not write into it."""
    return train(phantom_folder, tmp_path_factory.mktemp("runs") / "trained", epochs=3, **TINY)


@pytest.mark.parametrize(
    ("size", "file", "epochs"),
    [("8k", ".*json", 0), ("40k", ".*", 0), ("260k", r"models/last\.pt", 0), ("600k", r"models/last\.pt", 1)],
)
def test_a_training_on_a_full_disk_ends_in_a_sentence_and_goes_on(
    disk: SmallDisk, trained: RunFolder, phantom_folder: Path, size: str, file: str, epochs: int
) -> None:
    disk.has(size)
    run = RunFolder(disk.root / "run")
    options = ["--num_folds", "3", "--channels", "[4,8,16]", "--batch_size", "2", "--val_interval", "1"]
    said = sentence_of("train", "--data", phantom_folder, "--run", run.root, *options, "--epochs", "3")
    words = (
        rf"Expected to write {run.root}/{file}, got: no space left on device; make room there\. {re.escape(GOES_ON)}"
    )
    assert re.fullmatch(words, said)
    assert not list(run.root.rglob(".draft.*"))
    assert run.last.exists() == (epochs > 0)
    if epochs:
        assert torch.load(run.last, weights_only=True)["epoch"] == epochs
    disk.has("8m")
    train(phantom_folder, run.root, epochs=3, resume=True, **TINY)
    assert run.curves.exists()
    for ours, theirs in zip(table(run.training_csv), table(trained.training_csv), strict=True):
        assert {**ours, "seconds": ""} == {**theirs, "seconds": ""}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_is_taken_away_ends_a_training_in_a_sentence(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    replace = Path.replace
    calls = 0

    def second_is_refused(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += Path(target).name == "training.csv"
        if calls == 2:
            raise OSError(number, os.strerror(number), str(self), None, str(target))
        return replace(self, target)

    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", second_is_refused)
        reason = os.strerror(number).lower()
        with pytest.raises(WritingFailed, match=rf"Expected to (write|use) {run.training_csv}, got: {reason}; "):
            train(phantom_folder, run.root, epochs=3, **TINY)
    assert [row["epoch"] for row in table(run.training_csv)] == ["1"]
    train(phantom_folder, run.root, epochs=3, resume=True, **TINY)
    assert [row["epoch"] for row in table(run.training_csv)] == ["1", "2", "3"]


def test_segmenting_to_a_full_disk_ends_in_a_sentence_and_goes_on(
    disk: SmallDisk, trained: RunFolder, phantom_folder: Path
) -> None:
    out = disk.root / "out"
    disk.has("16k")
    infer(trained, phantom_folder / "imagesTs" / "phantom_test_000.nii.gz", out)
    first = (out / "phantom_test_000_seg.nii.gz").read_bytes()
    (disk.root / "rest").write_bytes(bytes(shutil.disk_usage(disk.root).free))
    with pytest.raises(
        WritingFailed, match=rf"Expected to write {out}.*, got: no space left on device; make room there"
    ):
        infer(trained, phantom_folder / "imagesTs", out)
    assert (out / "phantom_test_000_seg.nii.gz").read_bytes() == first
    assert not (out / "phantom_test_001_seg.nii.gz").exists()
    disk.has("1m")
    infer(trained, phantom_folder / "imagesTs", out)
    assert nibabel.load(out / "phantom_test_001_seg.nii.gz").shape == (32, 32, 16)
    assert not (out / ".unfinished").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("evaluate --run RUN --output_dir DISK/eval", "Expected to write DISK/eval, got: no space left on device;"),
        ("phantom --out DISK/new", "DISK/new: expected a folder that can be written, got: no space left on device;"),
        ("prepare --images DATA/imagesTr --labels DATA/labelsTr --out DISK/new", "got: no space left on device;"),
        ("config-dir --copy DISK/new", "a folder that can be written, got DISK/new (no space left on device)"),
        ("demo --out DISK/new --epochs 1", "DISK/new/.phantom: expected a folder that can be written, got: no space"),
    ],
)
def test_every_command_that_writes_says_so(
    disk: SmallDisk, trained: RunFolder, phantom_folder: Path, tmp_path: Path, words: str, sentence: str
) -> None:
    run = shutil.copytree(trained.root, tmp_path / "run")
    more = ["--num_folds", "3", "--channels", "[4,8,16]", "--batch_size", "2", "--val_interval", "1"]
    places = {"DATA": str(phantom_folder), "RUN": str(run), "DISK": str(disk.root)}

    def filled(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    before = (run / "models" / "last.pt").read_bytes()
    said = sentence_of(*map(filled, words.split()), *(more if words.startswith("train") else ()))
    assert filled(sentence) in said
    assert "\n" not in said
    assert (run / "models" / "last.pt").read_bytes() == before
    if words.startswith("phantom"):  # nothing is left that a second call would stumble over
        disk.has("8m")
        with pytest.raises(SystemExit) as ended:
            main(["phantom", "--out", str(disk.root / "new"), "--cases", "2"])
        assert ended.value.code == 0


def test_monai_s_own_workflow_ends_in_a_sentence_too(phantom_folder: Path, tmp_path: Path) -> None:
    """Without a small disk: no file may become larger than some KiB."""
    resource = pytest.importorskip("resource")
    config = str(monai_extra_losses.config_dir() / "train.yaml")
    options = {"dataset_dir": str(phantom_folder), "num_folds": 3, "channels": [4, 8, 16], "epochs": 1}
    workflow = ConfigWorkflow(config, bundle_root=str(tmp_path / "run"), logging_file=False, **options)
    workflow.initialize()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(
            WritingFailed, match=r"Expected to write .*model\.pt, got: file too large; raise the limit of"
        ):
            workflow.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "run").rglob(".draft.*"))


def test_what_a_thread_could_not_write_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """TensorBoard writes in a thread, which hands its error to the next call."""

    def write(error: Exception) -> None:
        def fail() -> None:
            raise error

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    with stops_in_a_sentence(lambda: ""):
        write(OSError(errno.ENOSPC, "No space left on device"))
        assert capsys.readouterr().err == "Writing in the background ended: no space left on device.\n"
        before = threading.excepthook
    assert threading.excepthook is not before


# ---- stopped by a person, or by the system ----


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train --data my data --run r", "monai-extra-losses train --data my data --run r --resume True"),
        ("infer --run r --input i --output o", "monai-extra-losses infer --run r --input i --output o"),
        (
            "prepare --images i --labels l --out o --overwrite",
            "monai-extra-losses prepare --images i --labels l --out o",
        ),
        ("demo", "monai-extra-losses demo"),
        ("list", None),
    ],
)
@pytest.mark.parametrize("by", ["Ctrl-C", pytest.param("SIGTERM", marks=POSIX)])
def test_a_stopped_command_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, line: str | None, by: str
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        if by == "Ctrl-C":
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGTERM)

    arguments = [word.replace("my", "my data") for word in words.split() if word != "data"]
    monkeypatch.setattr(commands.commands[arguments[0]], "callback", stopped)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == (130 if by == "Ctrl-C" else 143)
    said = capsys.readouterr().err
    expected = (
        "" if line is None else f" What was finished is kept; go on with:\n  {line.replace('my data', repr('my data'))}"
    )
    assert said == f"\nStopped by {by}.{expected}\n"
    assert "Aborted" not in said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@POSIX
@pytest.mark.parametrize("by", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_training_that_is_stopped_goes_on_by_the_line_it_prints(
    phantom_folder: Path, tmp_path: Path, by: signal.Signals
) -> None:
    """As a person stops it, or a batch system that needs the machine."""
    words = ["train", "--data", str(phantom_folder), "--run", str(tmp_path / "run"), "--num_folds", "3"]
    words += ["--channels", "[4,8,16]", "--val_interval", "1"]
    command = [sys.executable, "-m", "monai_extra_losses", *words, "--epochs", "100000"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell takes it from what it puts aside
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            process.send_signal(by)
            break
    out, said = process.communicate(timeout=600)
    assert process.returncode == 128 + by
    assert "Traceback" not in out + said
    *_, line = said.strip().splitlines()
    assert line.strip().startswith("monai-extra-losses train --data ")
    assert line.endswith("--epochs 100000 --resume True")
    run = RunFolder(tmp_path / "run")
    before = torch.load(run.last, weights_only=True)["epoch"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--epochs", str(before + 1), "--resume", "True"])
    assert ended.value.code == 0
    assert len(table(run.training_csv)) == before + 1


def test_write_whole_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(
        WritingFailed, match=r"Expected to use .*gone/run\.json, got: no such file or folder; bring it back"
    ):
        write_whole(tmp_path / "gone" / "run.json", "text")
