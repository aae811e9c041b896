"""A training whose files were damaged, or that was killed while it saved, goes on from what is whole."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import evaluate, table, train

from monai_extra_losses.bundle.processes import lost_process_sentence, lost_processes_as_sentences
from monai_extra_losses.bundle.resuming import checkpoint_of, mend
from monai_extra_losses.bundle.run_folder import ResultsFolder, RunFolder, refuse_unwritable
from monai_extra_losses.bundle.tensor_files import CHECKSUMS, write_tensors
from monai_extra_losses.bundle.weights import read_checkpoint
from monai_extra_losses.cli.endings import stops_in_a_sentence
from monai_extra_losses.data.errors import StartUpRefused, TrainingStopped

TINY: dict[str, Any] = {"channels": [4, 8], "num_res_units": 0, "batch_size": 2, "epochs": 3, "val_interval": 1}


@pytest.fixture(scope="module")
def whole(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Three epochs. Do not write into it."""
    return train(phantom_folder, tmp_path_factory.mktemp("runs") / "whole", **TINY)


@pytest.fixture
def run(whole: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(whole.root, tmp_path / "run"))


def numbers(run: RunFolder) -> list[dict[str, str]]:
    return [{**row, "seconds": ""} for row in table(run.training_csv)]


def assert_same(run: RunFolder, other: RunFolder) -> None:
    assert numbers(run) == numbers(other)
    for name in ("model", "last"):
        ours, theirs = (torch.load(getattr(one, name), weights_only=True) for one in (run, other))
        ours, theirs = ours.get("network", ours), theirs.get("network", theirs)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def with_best(run: RunFolder, epoch: int) -> None:
    """Let the checkpoints say that another epoch was the best."""
    sums = json.loads(run.checksums.read_text())
    run.checksums.write_text(json.dumps({"model.pt": sums["model.pt"]}))
    for file in (run.last, run.previous):
        torch.save({**torch.load(file, weights_only=True), "best_metric_epoch": epoch}, file)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    file.write_bytes(content)


def of_nan(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    next(iter(state["network"].values())).fill_(float("nan"))
    torch.save(state, file)
    file.with_name(CHECKSUMS).unlink()


def as_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def cut_to(share: float, less: int = 0) -> Callable[[Path], object]:
    return lambda file: file.write_bytes((content := file.read_bytes())[: int(share * len(content)) - less])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, "got none"),
    "empty": (cut_to(0), "got a damaged or another file"),
    "a byte": (lambda file: file.write_bytes(b"P"), "got a damaged or another file"),
    "half": (cut_to(0.5), "got a damaged or another file"),
    "all but a byte": (cut_to(1, 1), "got a damaged or another file"),
    "a bit": (flip_a_bit, "got a damaged or another file"),
    "text": (lambda file: file.write_text("text"), "got a damaged or another file"),
    "NaN": (of_nan, "with NaN or infinity in 1 of"),
}


# ---- a damaged checkpoint ----


def test_the_checkpoint_before_is_kept(whole: RunFolder) -> None:
    assert [read_checkpoint(file)["epoch"] for file in (whole.last, whole.previous)] == [3, 2]
    checkpoint = checkpoint_of(whole)
    assert checkpoint is not None
    assert (checkpoint.file, checkpoint.problem) == (whole.last, None)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("with_checksums", [True, False])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    run: RunFolder, caplog: pytest.LogCaptureFixture, damage: str, with_checksums: bool
) -> None:
    happens, words = DAMAGE[damage]
    happens(run.last)
    if not with_checksums:
        run.checksums.unlink(missing_ok=True)
    before = run.previous.read_bytes()
    with caplog.at_level(logging.WARNING):
        mend(run)
    (said,) = (record.getMessage() for record in caplog.records)
    assert str(run.last) in said
    assert not with_checksums or words in said
    assert said.endswith(f"; {run.previous} takes its place, and the training goes on after epoch 2.")
    assert run.last.read_bytes() == before
    assert not run.previous.exists()
    mend(run)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("damage", ["half", "gone"])
def test_a_training_goes_on_from_the_checkpoint_before(
    whole: RunFolder, run: RunFolder, phantom_folder: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    DAMAGE[damage][0](run.last)
    train(phantom_folder, run.root, resume=True, **TINY)
    said = capsys.readouterr().out
    assert said.count("takes its place, and the training goes on after epoch 2.") == 1
    assert f"Going on after epoch 2 of {run.last}" in said
    assert "takes its place" in run.results.log.read_text()
    assert_same(run, whole)
    assert [read_checkpoint(file)["epoch"] for file in (run.last, run.previous)] == [3, 2]


@pytest.mark.parametrize("damage", ["gone", "half"])
def test_two_damaged_checkpoints_are_refused_by_name(run: RunFolder, phantom_folder: Path, damage: str) -> None:
    DAMAGE[damage][0](run.last)
    flip_a_bit(run.previous)
    files = {file: file.read_bytes() for file in run.root.rglob("*") if file.is_file()}
    words = r"models/last\.pt.*models/previous\.pt.*; bring back one of the two as it was, or train again with --overwr"
    with pytest.raises(StartUpRefused, match=words) as ended:
        train(phantom_folder, run.root, resume=True, **TINY)
    assert "\n" not in str(ended.value)
    assert files == {file: file.read_bytes() for file in run.root.rglob("*") if file.is_file()}
    with pytest.raises(StartUpRefused, match="already holds a run"):
        train(phantom_folder, run.root, **TINY)


def test_a_folder_in_the_place_of_a_checkpoint_is_named(run: RunFolder) -> None:
    as_a_folder(run.last)
    checkpoint = checkpoint_of(run)
    assert checkpoint is not None
    assert checkpoint.content["epoch"] == 2
    assert str(run.last) in str(checkpoint.problem)


def test_a_checkpoint_of_other_options_is_no_damage(run: RunFolder, phantom_folder: Path) -> None:
    """The one before is of the same options."""
    torch.save({**torch.load(run.last, weights_only=True), "network": {}}, run.last)
    run.checksums.unlink()
    with pytest.raises(StartUpRefused, match=r"last\.pt: expected a checkpoint of this network, loss and optimizer"):
        train(phantom_folder, run.root, resume=True, **{**TINY, "epochs": 4})
    assert run.previous.exists()


def test_a_new_training_leaves_no_checkpoint_of_the_old_one(run: RunFolder, phantom_folder: Path) -> None:
    train(phantom_folder, run.root, overwrite=True, **{**TINY, "epochs": 1})
    assert not run.previous.exists()


# ---- killed while it saves ----


class Killed(BaseException):
    """Nothing that follows is done, as with kill -9, but for the draft."""


@pytest.mark.parametrize(("moved", "epoch"), [("checksums.json", 3), ("previous.pt", 3), ("last.pt", 3), ("after", 4)])
def test_a_kill_between_the_steps_of_saving_leaves_a_whole_checkpoint(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, moved: str, epoch: int
) -> None:
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.name == moved:
            raise Killed
        return replace(self, target)

    state = {**read_checkpoint(run.last), "epoch": 4}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        if moved == "after":
            write_tensors(state, run.last, kept_as=run.previous)
        else:
            with pytest.raises(Killed):
                write_tensors(state, run.last, kept_as=run.previous)
    checkpoint = checkpoint_of(run)
    assert checkpoint is not None
    assert checkpoint.content["epoch"] == epoch
    assert (checkpoint.problem is not None) == (moved == "last.pt")
    mend(run)
    assert read_checkpoint(run.last)["epoch"] == epoch
    write_tensors({**state, "epoch": epoch + 1}, run.last, kept_as=run.previous)
    assert [read_checkpoint(file)["epoch"] for file in (run.last, run.previous)] == [epoch + 1, epoch]


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text("[")], ids=["gone", "damaged"])
def test_lost_checksums_lose_no_checkpoint(run: RunFolder, damage: Callable[[Path], object]) -> None:
    damage(run.checksums)
    write_tensors({**read_checkpoint(run.last), "epoch": 4}, run.last, kept_as=run.previous)
    assert [read_checkpoint(file)["epoch"] for file in (run.last, run.previous)] == [4, 3]
    assert len(json.loads(run.checksums.read_text())["last.pt"]) == 2
    flip_a_bit(run.previous)
    with pytest.raises(StartUpRefused, match="its checksum is not that in"):
        read_checkpoint(run.previous)


def test_a_save_that_is_tried_again_forgets_no_checksum(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a job that is requeued and killed in the same place, over and over."""
    state = {**read_checkpoint(run.last), "epoch": 4}
    for _ in range(7):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "exists", lambda self: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                write_tensors(state, run.last, kept_as=run.previous)
    assert read_checkpoint(run.last)["epoch"] == 3


@pytest.mark.parametrize("file", ["summary.csv", "evaluation.json", "cases.csv"])
def test_an_evaluation_killed_while_it_writes_is_made_by_the_same_call(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.name == file:
            raise Killed
        return replace(self, target)

    out = ResultsFolder(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            evaluate(whole, output_dir=str(out.root), overlays=False)
    assert not out.cases_csv.exists()
    evaluate(whole, output_dir=str(out.root), overlays=False)
    assert all(path.exists() for path in (out.cases_csv, out.summary_csv, out.record))
    with pytest.raises(StartUpRefused, match=r"cases\.csv exists; replace it by --overwrite True"):
        evaluate(whole, output_dir=str(out.root), overlays=False)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no statvfs.")
@pytest.mark.parametrize(("flag", "reason"), [(os.ST_RDONLY, "read-only file system"), (0, "no permission")])
def test_a_folder_that_cannot_be_written_has_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: int, reason: str
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(f_flag=flag))
    with pytest.raises(StartUpRefused, match=rf"--out to be a folder that can be written, got .*: {reason}\); choose"):
        refuse_unwritable("--out", tmp_path / "new")


# ---- the model ----


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "NaN"])
@pytest.mark.parametrize("best", [3, 2])
def test_a_lost_model_is_made_anew_of_a_checkpoint_of_its_epoch(
    run: RunFolder, caplog: pytest.LogCaptureFixture, damage: str, best: int
) -> None:
    with_best(run, best)
    DAMAGE[damage][0](run.model)
    of = {3: run.last, 2: run.previous}[best]
    with caplog.at_level(logging.WARNING):
        mend(run)
    (said,) = (record.getMessage() for record in caplog.records)
    assert str(run.model) in said
    assert said.endswith(f"; it is made anew of {of.name}, a checkpoint of the same epoch.")
    ours, theirs = (torch.load(file, weights_only=True) for file in (run.model, of))
    assert all(torch.equal(ours[name], value) for name, value in theirs["network"].items())


@pytest.mark.parametrize(
    ("damage", "words"), [("gone", "weights of epoch 1, got none"), ("half", "damaged or another file")]
)
def test_a_lost_model_of_another_epoch_is_refused(
    run: RunFolder, phantom_folder: Path, damage: str, words: str
) -> None:
    with_best(run, 1)
    DAMAGE[damage][0](run.model)
    with pytest.raises(StartUpRefused, match=rf"Expected .*model\.pt.*{words}.*; bring back .*--overwrite True\."):
        train(phantom_folder, run.root, resume=True, **{**TINY, "epochs": 4})


def test_a_training_without_a_validation_has_no_model_to_lose(run: RunFolder) -> None:
    with_best(run, -1)
    run.model.unlink()
    mend(run)
    assert not run.model.exists()


def test_model_and_checkpoint_may_be_damaged_together(
    whole: RunFolder, run: RunFolder, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_checkpoint(run.previous)["best_metric_epoch"] == 2
    flip_a_bit(run.last)
    flip_a_bit(run.model)
    capsys.readouterr()
    train(phantom_folder, run.root, resume=True, **TINY)
    said = capsys.readouterr().out
    assert "it is made anew of previous.pt" in said
    assert "goes on after epoch 2." in said
    assert_same(run, whole)


# ---- a lost process ----


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)


@pytest.mark.usefixtures("one_of_two")
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:551] Connection closed by peer [::1]:52"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Read error: Connection reset by peer"),
        RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
        torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0"),
        torch.distributed.DistNetworkError("failed to recv, got 0 bytes"),
    ],
)
def test_a_process_that_others_wait_for_in_vain_is_one_sentence(error: Exception) -> None:
    words = r"Expected all 2 processes to go on, got one that ended or stands still \(.*\); .* --resume True\."
    with pytest.raises(TrainingStopped, match=words), lost_processes_as_sentences():
        raise RuntimeError("Failed to evaluate") from error


@pytest.mark.usefixtures("one_of_two")
@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("connection closed")])
def test_another_error_of_several_processes_stays_what_it_is(error: Exception) -> None:
    assert lost_process_sentence(error) is None


def test_a_process_alone_has_lost_no_other() -> None:
    assert lost_process_sentence(RuntimeError("Connection closed by peer")) is None


# ---- the real thing ----


def test_a_stop_while_a_checkpoint_is_written_is_a_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torch.save ends its archive on the way out, which fails, and its error would hide the signal."""

    class Stopped(io.RawIOBase):
        def write(self, data: Any) -> int:
            raise KeyboardInterrupt

    def save() -> None:
        try:
            torch.save({"weight": torch.zeros(1000)}, Stopped())
        except RuntimeError as error:  # as MONAI hands it on
            raise RuntimeError("Failed to evaluate the expression") from error

    with pytest.raises(SystemExit) as ended, stops_in_a_sentence(lambda: "Go on."):
        save()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nStopped by Ctrl-C. Go on.\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc.")
@pytest.mark.parametrize(
    ("group", "every"),
    [("kills", 1), ("saving", 3), ("checkpoints", 5), ("disks", 4), ("read_only", 3), ("data", 11), ("processes", 5)],
)
def test_commands_survive_what_is_done_to_them(tmp_path: Path, group: str, every: int) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "faults.py"
    words = ["--out", str(tmp_path), "--only", group, "--every", str(every), "--kills", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
