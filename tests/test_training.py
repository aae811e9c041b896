"""What a training promises: resumed it gives the numbers of one that was never stopped, it stops in time."""

import dataclasses
import json
import operator
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.transforms import ScaleIntensityRanged
from runs import evaluate, infer, table, train

from monai_extra_losses.bundle.components import half_precision, intensity_scaling
from monai_extra_losses.bundle.run_folder import ResultsFolder, RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.training_record import RunCheckpoints
from monai_extra_losses.data.errors import StartUpRefused, TrainingStopped
from monai_extra_losses.data.fact_cache import FactCache

TINY: dict[str, Any] = {"channels": [4, 8], "num_res_units": 0, "batch_size": 2}


def numbers(run: RunFolder) -> list[dict[str, str]]:
    """The rows of training.csv without the times."""
    return [{name: cell for name, cell in row.items() if name != "seconds"} for row in table(run.training_csv)]


def weights(file: Path) -> dict[str, torch.Tensor]:
    state = torch.load(file, weights_only=True)
    return state.get("network", state)


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    assert numbers(one) == numbers(other)
    for file in ("model", "last"):
        ours, theirs = weights(getattr(one, file)), weights(getattr(other, file))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    ours, theirs = (torch.load(run.last, weights_only=True) for run in (one, other))
    for name in (
        "epoch",
        "best_metric",
        "best_metric_epoch",
        "validations_since_best",
        "empty_validations",
        "lr_scheduler",
    ):
        assert ours[name] == theirs[name], name


# ---- resuming ----


@pytest.fixture(scope="module")
def uninterrupted(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Four epochs at one go. Do not write into it."""
    return train(phantom_folder, tmp_path_factory.mktemp("runs") / "whole", epochs=4, val_interval=1, **TINY)


@pytest.mark.parametrize("killed", ["in an epoch", "before the checkpoint"])
def test_a_killed_training_resumes_to_the_same_numbers(
    uninterrupted: RunFolder, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    save = RunCheckpoints._save

    def save_two_epochs(self: RunCheckpoints, engine: Engine) -> None:
        if killed == "before the checkpoint" and engine.state.epoch == 3:
            die()
        save(self, engine)
        if killed == "in an epoch" and engine.state.epoch == 2:
            engine.add_event_handler(Events.ITERATION_COMPLETED, die)

    options = {"epochs": 4, "val_interval": 1, **TINY}
    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "_save", save_two_epochs)
        with pytest.raises(KeyboardInterrupt):
            train(phantom_folder, tmp_path / "run", **options)
    # whatever else drew random numbers in between
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    resumed = train(phantom_folder, tmp_path / "run", resume=True, **options)
    assert [row["epoch"] for row in numbers(resumed)] == ["1", "2", "3", "4"]
    assert_same_run(resumed, uninterrupted)


@pytest.mark.parametrize(
    "killed", ["in the first step", "before the table", "before the model", "before the checkpoint"]
)
def test_a_training_killed_in_its_first_epoch_begins_anew(
    uninterrupted: RunFolder,
    phantom_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    killed: str,
) -> None:
    from monai_extra_losses.bundle import handlers, training_record

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    def die_at_last(state: Any, path: Path, **more: Any) -> None:
        if path.name == "last.pt":
            die()
        save(state, path, **more)

    save = training_record.write_tensors
    options = {"epochs": 4, "val_interval": 1, "resume": True, **TINY}
    with monkeypatch.context() as patch:
        where: dict[str, tuple[Any, str, Any]] = {
            "in the first step": (handlers.FiniteLossGuard, "_look", die),
            "before the table": (training_record.TrainingRecord, "_write_epoch", die),
            "before the model": (training_record.RunCheckpoints, "_save", die),
            "before the checkpoint": (training_record, "write_tensors", die_at_last),
        }
        patch.setattr(*where[killed])
        with pytest.raises(KeyboardInterrupt):
            train(phantom_folder, tmp_path / "run", **options)
    assert (tmp_path / "run" / "models" / "model.pt").exists() == (killed == "before the checkpoint")
    capsys.readouterr()
    run = train(phantom_folder, tmp_path / "run", **options)
    said = f"Nothing to resume in {run.root}, starting at epoch 1: the training there ended before its first checkpoint"
    assert said in capsys.readouterr().out
    assert_same_run(run, uninterrupted)


def test_a_model_without_its_checkpoint_is_never_trained_over(
    uninterrupted: RunFolder, phantom_folder: Path, tmp_path: Path
) -> None:
    run = RunFolder(shutil.copytree(uninterrupted.root, tmp_path / "run"))
    run.last.unlink()
    run.previous.unlink()
    options = {"epochs": 4, "val_interval": 1, "resume": True, **TINY}

    def refused() -> None:
        with pytest.raises(StartUpRefused, match=r"Expected .*last\.pt to resume from, got none; train again with"):
            train(phantom_folder, run.root, **options)

    model = run.model.read_bytes()
    refused()
    run.summary.unlink()
    refused()  # four epochs
    head, first, *_ = run.training_csv.read_text().splitlines(keepends=True)
    run.training_csv.write_text(head + first)
    run.summary.write_text("Trained to epoch 1")
    refused()  # a finished training of one
    run.summary.unlink()
    run.training_csv.unlink()
    refused()  # of nobody knows how many
    assert run.model.read_bytes() == model


def test_a_training_killed_before_its_summary_gets_it(
    uninterrupted: RunFolder, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(shutil.copytree(uninterrupted.root, tmp_path / "run"))
    options = {"epochs": 4, "val_interval": 1, "resume": True, **TINY}
    whole, model = run.summary.read_text().replace(str(uninterrupted.root), str(run.root)), run.model.read_bytes()
    for damage in (
        lambda: (run.summary.unlink(), run.curves.unlink()),
        lambda: run.summary.write_text("Trained to epoch 2 in 3 s; of an earlier start"),
        lambda: run.curves.unlink(),
    ):
        damage()
        train(phantom_folder, run.root, **options)
        said = capsys.readouterr().out
        assert "Nothing to do: 4 epochs are trained" in said
        assert "stopped before it wrote its summary and curves, which are made now" in said
        assert run.summary.read_text() == whole
        assert run.curves.read_bytes().startswith(b"\x89PNG")
    train(phantom_folder, run.root, **options)
    assert "made now" not in capsys.readouterr().out
    assert run.model.read_bytes() == model


def test_what_killed_trainings_left_half_written_goes(
    uninterrupted: RunFolder, phantom_folder: Path, tmp_path: Path
) -> None:
    run = RunFolder(shutil.copytree(uninterrupted.root, tmp_path / "run"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ours = [
        run.last.with_name(f".draft.{ended.pid}.last.pt"),
        run.record.with_name(f".draft.{ended.pid}.run.json"),
        run.training_csv.with_name(f".draft.{ended.pid}.training.csv"),
        run.curves.with_name(f".draft.{ended.pid}.curves.png"),
        run.last.with_name(".last.pt.draft"),  # of an earlier version
        run.record.with_name(f".run.json.{ended.pid}"),
    ]
    others = [
        run.last.with_name(f".draft.{os.getppid()}.last.pt"),  # its process lives
        run.last.with_name(f".draft.{ended.pid}.mine.pt"),
        run.last.with_name(".last.pt.draft.old"),
        run.last.with_name("last.pt.draft"),
    ]
    for file in (*ours, *others):
        file.write_text("half")
    options = {"epochs": 4, "val_interval": 1, "resume": True, **TINY}
    train(phantom_folder, run.root, **options)
    assert not [file for file in ours if file.exists()]
    assert all(file.read_text() == "half" for file in others)
    table_of_cases = run.results.cases_csv.with_name(f".draft.{ended.pid}.cases.csv")
    (tmp_path / "out").mkdir()
    record = tmp_path / "out" / f".draft.{ended.pid}..segmentations.json"
    facts = FactCache(phantom_folder).file
    facts_draft = facts.with_name(f".draft.{ended.pid}.{facts.name}")
    for file in (table_of_cases, record, facts_draft):
        file.write_text("half")
    evaluate(run, overlays=False)
    infer(run, phantom_folder / "imagesTs", tmp_path / "out")
    FactCache(phantom_folder).write()
    assert not [file for file in (table_of_cases, record, facts_draft) if file.exists()]


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    uninterrupted: RunFolder, phantom_folder: Path, tmp_path: Path
) -> None:
    again = train(phantom_folder, tmp_path / "again", epochs=4, val_interval=1, **TINY)
    assert_same_run(again, uninterrupted)
    losses = [row["train_loss"] for row in numbers(again)]
    assert len(set(losses)) == 4  # each epoch has patches of its own
    other = train(phantom_folder, tmp_path / "other", val_interval=1, seed=1, **TINY)
    assert numbers(other)[0]["train_loss"] != losses[0]


def test_a_finished_training_trains_on_when_more_epochs_are_asked_for(
    uninterrupted: RunFolder, phantom_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted.root, tmp_path / "run")
    before = numbers(uninterrupted)
    run = train(phantom_folder, tmp_path / "run", epochs=5, val_interval=1, resume=True, **TINY)
    assert numbers(run)[:4] == before
    assert [row["epoch"] for row in numbers(run)] == ["1", "2", "3", "4", "5"]


# ---- stopping ----


def test_a_training_that_gets_no_better_stops_and_stays_stopped(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # the Dice of each validation: better, worse, better, equal, worse, ...
    dice = {1: 0.2, 2: 0.1, 3: 0.3, 4: 0.3, 5: 0.2}
    epoch = 0

    def scripted(self: Any, reduction: Any = None) -> torch.Tensor:
        return torch.tensor(dice.get(epoch, 0.1))

    def count(self: Any, engine: Engine) -> None:
        nonlocal epoch
        epoch = engine.state.epoch
        original(self, engine)

    from monai_extra_losses.bundle.case_report import EmptyAwareDice
    from monai_extra_losses.bundle.handlers import IntervalValidation

    original = IntervalValidation.__call__
    monkeypatch.setattr(EmptyAwareDice, "aggregate", scripted)
    monkeypatch.setattr(IntervalValidation, "__call__", count)
    options = {"val_interval": 1, **TINY}
    # resumed in the middle of its patience: one validation without a better Dice is done
    train(phantom_folder, tmp_path / "run", epochs=4, early_stop_patience=2, **options)
    run = train(phantom_folder, tmp_path / "run", epochs=9, early_stop_patience="2", resume=True, **options)
    assert [row["epoch"] for row in numbers(run)] == ["1", "2", "3", "4", "5"]
    assert RunRecord.read(run.record).early_stop_patience == 2
    said = capsys.readouterr().out
    assert "Stopped early at epoch 5 of 9 (2 validations without a better mean Dice) in" in said
    assert "best validation Dice 0.3000 at epoch 3" in said
    model = run.model.read_bytes()

    train(phantom_folder, run.root, epochs=9, early_stop_patience=2, resume=True, **options)
    assert "Nothing to do: the training stopped early after epoch 5" in capsys.readouterr().out
    assert len(numbers(run)) == 5
    train(phantom_folder, run.root, epochs=9, early_stop_patience=3, resume=True, **options)
    assert len(numbers(run)) == 6
    assert run.model.read_bytes() == model  # of epoch 3


def test_a_loss_that_is_no_number_ends_the_training_and_leaves_the_checkpoints(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monai_extra_losses.losses import FusedDiceCELoss

    run = train(phantom_folder, tmp_path / "run", val_interval=1, **TINY)
    files = {file: file.read_bytes() for file in (run.model, run.last, run.training_csv)}
    calls = 0
    forward = FusedDiceCELoss.forward

    def broken(self: FusedDiceCELoss, *args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return forward(self, *args) * (float("nan") if calls == 3 else 1)  # the set-up tries it once

    monkeypatch.setattr(FusedDiceCELoss, "forward", broken)
    options = {"val_interval": 1, "resume": True, **TINY}
    with pytest.raises(TrainingStopped, match=r"epoch 2, iteration 2, is .* --learning_rate below 0\.002\."):
        train(phantom_folder, run.root, epochs=2, **options)
    assert files == {file: file.read_bytes() for file in files}
    resumed = train(phantom_folder, run.root, epochs=2, **options)
    assert [row["epoch"] for row in numbers(resumed)] == ["1", "2"]


@pytest.mark.parametrize("patience", [0, 1.5, "soon"])
def test_a_patience_that_is_none(phantom_folder: Path, tmp_path: Path, patience: Any) -> None:
    with pytest.raises(StartUpRefused, match="Expected early_stop_patience to be a whole number of at least 1, got"):
        train(phantom_folder, tmp_path / "run", early_stop_patience=patience)


# ---- half precision ----

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("amp", "recorded", "on_cpu", "on_gpu"),
    [
        (None, None, None, torch.float16),
        ("null", "fp16", None, torch.float16),  # trained on a GPU, evaluated on a CPU
        (None, "bf16", torch.bfloat16, torch.bfloat16),
        (None, "off", None, None),
        ("bf16", "fp16", torch.bfloat16, torch.bfloat16),
        (False, "bf16", None, None),
        ("False", None, None, None),
    ],
)
def test_half_precision_is_that_of_the_option_or_the_run(
    monkeypatch: pytest.MonkeyPatch, amp: Any, recorded: str | None, on_cpu: Any, on_gpu: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert half_precision(amp, CPU, recorded) == on_cpu
    assert half_precision(amp, GPU, recorded) == on_gpu


@pytest.mark.parametrize("amp", [True, "true", "fp16"])
def test_true_is_fp16_and_needs_a_gpu(phantom_folder: Path, tmp_path: Path, amp: Any) -> None:
    assert half_precision(amp, GPU) == torch.float16
    with pytest.raises(StartUpRefused, match=r"amp to be bf16, False or null on a CPU, got .*; fp16 needs a GPU"):
        train(phantom_folder, tmp_path / "run", amp=amp, device="$torch.device('cpu')")
    assert not (tmp_path / "run").exists()


def test_other_half_precisions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartUpRefused, match="Expected amp to be fp16, bf16, True, False or null, got 'half'"):
        half_precision("half", CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(StartUpRefused, match="Expected amp to be fp16 or False, got 'bf16'; this GPU has no bf16"):
        half_precision("bf16", GPU)


def test_a_training_in_bf16_is_evaluated_and_applied_in_bf16(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monai_extra_losses.engines import HalfPrecisionInferer

    used: list[torch.dtype | None] = []
    call = HalfPrecisionInferer.__call__

    def watched(self: HalfPrecisionInferer, inputs: torch.Tensor, network: Any, *args: Any, **options: Any) -> Any:
        def spied(patch: torch.Tensor) -> torch.Tensor:
            used.append((scores := network(patch)).dtype)
            return scores

        return call(self, inputs, spied, *args, **options)

    monkeypatch.setattr(HalfPrecisionInferer, "__call__", watched)
    options: dict[str, Any] = {**TINY, "device": "$torch.device('cpu')"}
    run = train(phantom_folder, tmp_path / "run", amp="bf16", epochs=2, val_interval=1, **options)
    rows = numbers(run)
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    assert all(value.dtype == torch.float32 for value in weights(run.model).values())
    assert RunRecord.read(run.record).amp == "bf16"
    evaluate(run, overlays=False, device="$torch.device('cpu')")
    infer(run, phantom_folder / "imagesTs", tmp_path / "out")
    assert set(used) == {torch.bfloat16}
    used.clear()
    evaluate(run, overlays=False, overwrite=True, amp=False, device="$torch.device('cpu')")
    assert set(used) == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU.")
def test_a_training_in_fp16_resumes_with_its_scaler(phantom_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"val_interval": 1, "amp": "fp16", **TINY}
    train(phantom_folder, tmp_path / "run", **options)
    before = torch.load(tmp_path / "run" / "models" / "last.pt", weights_only=True)["scaler"]
    assert before["scale"] > 1
    run = train(phantom_folder, tmp_path / "run", epochs=2, resume=True, **options)
    after = torch.load(run.last, weights_only=True)["scaler"]
    assert after["_growth_tracker"] > before["_growth_tracker"]
    assert float(numbers(run)[1]["train_loss"]) < float(numbers(run)[0]["train_loss"])


# ---- weights to start from ----


def test_training_starts_from_the_tensors_that_fit(
    uninterrupted: RunFolder, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_step = {**TINY, "learning_rate": 1e-12, "val_interval": 1}
    run = train(phantom_folder, tmp_path / "same", pretrained=str(uninterrupted.model), **tiny_step)
    assert "Starting from 8 of 8 tensors of" in capsys.readouterr().out
    ours, theirs = weights(run.last), weights(uninterrupted.model)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert RunRecord.read(run.record).pretrained == str(uninterrupted.model)

    # a checkpoint of a parallel network, and another number of classes
    state = {f"module.{name}": value for name, value in theirs.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "theirs.pt")
    data = tmp_path / "data"
    shutil.copytree(phantom_folder, data)
    content = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(content | {"regions": {"organ": [1, 2]}}))
    other = train(data, tmp_path / "other", pretrained=str(tmp_path / "theirs.pt"), **tiny_step)
    said = capsys.readouterr().out
    assert "Starting from 6 of 8 tensors of" in said
    assert "; random are model.2." in said
    # a resumed training has weights of its own, even where the file is gone
    (tmp_path / "theirs.pt").unlink()
    train(data, other.root, pretrained=str(tmp_path / "theirs.pt"), resume=True, **{**tiny_step, "epochs": 2})
    assert "Starting from" not in capsys.readouterr().out
    with pytest.raises(StartUpRefused, match=r"Expected pretrained '.*' as in the run to resume, got None"):
        train(data, other.root, resume=True, **{**tiny_step, "epochs": 3})


def test_weights_that_cannot_start_a_training_are_one_sentence(phantom_folder: Path, tmp_path: Path) -> None:
    def refusal(sentence: str) -> None:
        with pytest.raises(StartUpRefused, match=sentence):
            train(phantom_folder, tmp_path / "run", pretrained=str(file), **TINY)

    file = tmp_path / "weights.pt"
    refusal(r"Expected pretrained to be a file of weights, got .*weights\.pt, which does not exist")
    file.write_bytes(b"no weights")
    refusal("Expected pretrained to be a file of tensors alone")
    torch.save(torch.nn.Conv3d(1, 1, 1), file)  # a pickled object could run any code
    refusal(r"weights_only=True \(.*\); save a state dict")
    assert not (tmp_path / "run").exists()
    torch.save({"model.0.conv.weight": torch.zeros(1)}, file)
    refusal("none of whose tensors fits the 8 of the network")


# ---- intensities ----


def test_a_window_scales_intensities_alike_in_training_evaluation_and_inference(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []
    scale = ScaleIntensityRanged.__call__

    def watched(self: ScaleIntensityRanged, data: Any) -> Any:
        before = data["image"].clone()
        item = scale(self, data)
        expected = ((before - 0.2) / 0.6).clamp(0, 1)
        torch.testing.assert_close(torch.as_tensor(item["image"]), torch.as_tensor(expected))
        seen.append((float(item["image"].min()), float(item["image"].max())))
        return item

    monkeypatch.setattr(ScaleIntensityRanged, "__call__", watched)
    run = train(phantom_folder, tmp_path / "run", hu_window="[0.2, 0.8]", **TINY)
    assert len(seen) == 6
    assert RunRecord.read(run.record).hu_window == (0.2, 0.8)
    evaluate(run, overlays=False)
    infer(run, phantom_folder / "imagesTs", tmp_path / "out")
    assert len(seen) == 6 + 2 + 2
    assert set(seen) == {(0.0, 1.0)}


@pytest.mark.parametrize("hu_window", [[250, -175], [0, 0], 5, [1, 2, 3], ["low", "high"], [0, float("inf")]])
def test_a_window_that_is_none(phantom_folder: Path, tmp_path: Path, hu_window: Any) -> None:
    with pytest.raises(StartUpRefused, match=r"Expected hu_window to be two numbers, the lower one first, such as"):
        train(phantom_folder, tmp_path / "run", hu_window=hu_window)


def test_channels_in_one_file_or_in_several_are_one_training(phantom_folder: Path, tmp_path: Path) -> None:
    together, apart = tmp_path / "4D", tmp_path / "files"
    for folder in (together, apart):
        shutil.copytree(phantom_folder / "labelsTr", folder / "labelsTr")
        (folder / "imagesTr").mkdir()
    for file in (phantom_folder / "imagesTr").iterdir():
        volume = nibabel.load(file)
        voxels = np.asarray(volume.dataobj, dtype=np.float32)
        channels = [voxels, 4000 - 4000 * voxels**2]  # of other units
        image = nibabel.Nifti1Image(np.stack(channels, axis=-1), volume.affine)
        nibabel.save(image, together / "imagesTr" / file.name)
        for number, channel in enumerate(channels):
            name = file.name.replace(".nii", f"_{number:04d}.nii")
            nibabel.save(nibabel.Nifti1Image(channel, volume.affine), apart / "imagesTr" / name)
    runs = [train(data, data / "run", val_interval=1, **TINY) for data in (together, apart)]
    assert [RunRecord.read(run.record).in_channels for run in runs] == [2, 2]
    for run in runs:
        evaluate(run, overlays=False)
    for file in ("training_csv", "results.cases_csv"):
        ours, theirs = (table(operator.attrgetter(file)(run)) for run in runs)
        for row, other in zip(ours, theirs, strict=True):
            for name in row.keys() - {"seconds", "case", "label"}:  # another order in memory rounds otherwise
                assert float(row[name] or "nan") == pytest.approx(float(other[name] or "nan"), rel=1e-3, nan_ok=True)


def test_channels_are_normalised_one_by_one() -> None:
    """A channel of thousands and one of hundredths, in one file or in two, look alike to the network."""
    image = torch.rand(2, 6, 6, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([4000.0, 0.02]).view(
        2, 1, 1, 1
    )
    scaled = intensity_scaling("image", None)({"image": image})["image"]
    torch.testing.assert_close(scaled.mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(dim=(1, 2, 3), correction=0), torch.ones(2))


# ---- caches ----


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_every_cache_gives_the_same_numbers(
    uninterrupted: RunFolder, phantom_folder: Path, tmp_path: Path, cache: str
) -> None:
    run = train(phantom_folder, tmp_path / "run", epochs=4, val_interval=1, cache=cache, **TINY)
    assert_same_run(run, uninterrupted)
    assert RunRecord.read(run.record).cache == cache
    assert len(list(run.cache.glob("*.pt"))) == (6 if cache == "disk" else 0)
    evaluate(run, overlays=False)


def test_a_disk_cache_is_used_again_and_never_stale(phantom_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantom_folder, data)
    cache = tmp_path / "cache"
    runs = iter(range(100))

    def first_epoch(**options: Any) -> tuple[str, int]:
        run = train(data, tmp_path / str(next(runs)), val_interval=1, **{**TINY, **options})
        return numbers(run)[0]["train_loss"], len(list(cache.glob("*.pt"))) if cache.exists() else 0

    on_disk: dict[str, Any] = {"cache": "disk", "cache_dir": str(cache)}
    plain, count = first_epoch(**on_disk)
    assert count == 6
    times = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert first_epoch(**on_disk) == (plain, 6)
    assert times == {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    # another preparation
    scaled, count = first_epoch(hu_window=[0.2, 0.8], **on_disk)
    assert count == 12
    assert scaled == first_epoch(hu_window=[0.2, 0.8])[0] != plain
    # another volume under the same name
    for name in RunRecord.read(tmp_path / "0" / "models" / "run.json").training[:1]:
        file = data / "imagesTr" / f"{name}.nii.gz"
        volume = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.asarray(volume.dataobj)[::-1] ** 2, volume.affine), file)
    changed, count = first_epoch(**on_disk)
    assert count == 13
    assert changed == first_epoch()[0] != plain


def test_a_cache_that_is_none(phantom_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StartUpRefused, match="Expected cache to be memory, disk or none, got 'ram'"):
        train(phantom_folder, tmp_path / "run", cache="ram")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StartUpRefused, match="Expected cache_dir to be a folder that can be written, got"):
        train(phantom_folder, tmp_path / "run", cache="disk", cache_dir=str(tmp_path / "file"))


# ---- the run folder ----


def test_the_run_folder_tells_what_was_run(phantom_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "val_interval": 1,
        "loss": "tversky",
        "loss::alpha": 0.2,
        "hu_window": (0.0, 1.0),
        **TINY,
    }
    data = shutil.copytree(phantom_folder, tmp_path / "data")
    (data / "imagesTr" / "more.nrrd").touch()
    for kind in ("images", "labels"):  # the suffix may be in upper case
        file = data / f"{kind}Tr" / "phantom_001.nii.gz"
        file.rename(file.with_name("phantom_001.NII.GZ"))
    declared = (data / "dataset.json").read_text().replace("phantom_001.nii.gz", "phantom_001.NII.GZ")
    (data / "dataset.json").write_text(declared)
    run = train(data, tmp_path / "it's a run", **options)
    environment = json.loads(run.environment.read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["gpus"] == [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    log = run.results.log.read_text()
    assert "4 training and 2 validation cases (and 2 of the test, which take no part)" in log
    assert f"Passed over: {data / 'imagesTr'}: 1 file that dataset.json does not list (more.nrrd)." in log
    assert "epoch 1/1  loss" in log

    train(data, run.root, resume=True, epochs=2, **options)
    grown = run.results.log.read_text()
    assert grown.startswith(log)
    assert "epoch 2/2  loss" in grown
    summary = run.summary.read_text()
    best = max(table(run.training_csv), key=lambda row: float(row["val_mean_dice"]))
    organ, lesion = (float(best[f"val_dice_{name}"]) for name in ("organ", "lesion"))
    assert f"at epoch {best['epoch']} (organ {organ:.3f}, lesion {lesion:.3f})." in summary
    assert (
        "this Dice       a quick one (windows overlap by 0.25), on the grid of the training; that of evaluate"
        in summary
    )
    assert f"tensorboard --logdir {shlex.quote(str(run.tensorboard))}\n" in summary
    assert f"monai-extra-losses evaluate --run {shlex.quote(str(run.root))}\n" in summary
    assert summary.strip() in grown

    # the config alone is the same training again
    config = yaml.safe_load(run.config.read_text())
    assert (config["epochs"], config["losses"]["tversky"]["alpha"], config["hu_window"]) == (2, 0.2, [0.0, 1.0])
    again = RunFolder(tmp_path / "again")
    workflow = ConfigWorkflow(str(run.config), bundle_root=str(again.root), resume=False, logging_file=False)
    workflow.initialize()
    workflow.run()
    ours, theirs = RunRecord.read(again.record), RunRecord.read(run.record)
    assert ours == theirs
    assert numbers(again)[0]["val_mean_dice"] != ""

    train(phantom_folder, run.root, overwrite=True, **options)
    assert "epoch 2/2" not in run.results.log.read_text()


def test_the_log_says_the_time_left(uninterrupted: RunFolder) -> None:
    lines = [line for line in uninterrupted.results.log.read_text().splitlines() if "  epoch " in line]
    assert [bool(re.search(r"  \d+\.\d s, about \d+ s left$", line)) for line in lines] == [True, True, True, False]


def test_an_evaluation_says_what_its_numbers_mean(
    uninterrupted: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"surface_tolerance_mm": 2.5, "validate::inferer::inferer::overlap": 0.4, "overlays": False}
    evaluate(uninterrupted, output_dir=str(tmp_path / "out"), **options)
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "± standard deviation over the cases; the row mean is the mean of the classes.",
        "undefined: cases with the class neither in the target nor in the prediction; they leave its means.",
        "missed or invented in a case counts with Dice 0, surface Dice 0 and, as HD95, the diagonal of the volume.",
        "surface Dice counts surfaces within 2.5 mm as one.",
        "on the grid of each file (windows overlap by 0.4). The validation of the training prints another Dice",
    ):
        assert words in said
    results = ResultsFolder(tmp_path / "out")
    assert results.cases_csv.read_text().startswith("case,label,dice,")  # tables stay tables
    assert results.summary_csv.read_text().startswith("label,cases,dice_mean,")


@pytest.mark.usefixtures("real_pictures")
def test_pictures_of_the_best_median_and_worst_case(uninterrupted: RunFolder, tmp_path: Path) -> None:
    evaluate(uninterrupted, output_dir=str(tmp_path / "all"), split="all")
    results = ResultsFolder(tmp_path / "all")
    dice: dict[str, list[float]] = {}
    for row in table(results.cases_csv):
        dice.setdefault(row["case"], []).extend([float(row["dice"])] if row["dice"] else [])
    ranked = sorted(dice, key=lambda case: np.mean(dice[case]))
    for rank, place in {"best": 7, "median": 3, "worst": 0}.items():
        picture = results.overlays / f"{ranked[place]}.png"
        assert results.overlay_of(rank).read_bytes() == picture.read_bytes()
    evaluate(uninterrupted, output_dir=str(tmp_path / "all"), overwrite=True)  # two cases
    assert {path.name for path in results.root.glob("overlay_*")} == {"overlay_best.png", "overlay_worst.png"}


def test_a_run_of_an_earlier_version_is_evaluated_and_resumed(
    uninterrupted: RunFolder, phantom_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted.root, tmp_path / "old")
    old = RunFolder(tmp_path / "old")
    new = {"regions", "early_stop_patience", "amp", "hu_window", "pretrained", "cache", "cache_dir", "loss_options"}
    record = json.loads(old.record.read_text())
    assert new < record.keys()
    old.record.write_text(json.dumps({name: value for name, value in record.items() if name not in new}))
    state = torch.load(old.last, weights_only=True)
    del state["validations_since_best"], state["empty_validations"]
    torch.save(state, old.last)
    old.checksums.unlink()
    now = RunRecord.read(uninterrupted.record)
    assert RunRecord.read(old.record) == dataclasses.replace(now, loss_options=None)
    evaluate(old, overlays=False)
    train(phantom_folder, old.root, epochs=5, val_interval=1, resume=True, **TINY)
    assert len(numbers(old)) == 5


def test_a_loss_of_another_package_trains_beside_ours(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_losses.py").write_text(
        "import torch\n\n\n"
        "class Smoothness(torch.nn.Module):\n"
        "    def forward(self, input, target):\n"
        "        return input.softmax(1).diff(dim=2).abs().mean()\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"to_onehot_y": True, "softmax": True}
    loss = {
        "_target_": "monai_extra_losses.losses.CompoundLoss",
        "losses": {
            "dice_ce": {"_target_": "monai_extra_losses.losses.FusedDiceCELoss", **options},
            "smooth": {"_target_": "their_losses.Smoothness"},
        },
        "weights": [1.0, 0.1],
    }
    run = train(phantom_folder, tmp_path / "run", loss=loss, limit=6, **TINY)
    (row,) = table(run.training_csv)
    parts = {name: float(row[f"train_loss_{name}"]) for name in ("dice_ce", "smooth")}
    assert parts["smooth"] > 0
    assert float(row["train_loss"]) == pytest.approx(parts["dice_ce"] + 0.1 * parts["smooth"], rel=1e-3)
