"""The bundle end to end, in this process, on a tiny phantom: training, resuming, evaluation, inference."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import monai
import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss, DiceLoss
from runs import evaluate, infer, table, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import monai_extra_losses
from monai_extra_losses import CompoundLoss, FusedDiceCELoss
from monai_extra_losses.bundle.inference import InferenceSetUp
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.running import run_configs
from monai_extra_losses.bundle.tensor_files import record_checksum, refuse_changed
from monai_extra_losses.bundle.training import TrainingSetUp
from monai_extra_losses.bundle.workflow import SegmentationWorkflow
from monai_extra_losses.data.check_report import data_report
from monai_extra_losses.data.errors import DatasetError, StartUpRefused

CONFIGS = monai_extra_losses.config_dir()
TABLE = yaml.safe_load((CONFIGS / "losses.yaml").read_text())["losses"]


@pytest.fixture(scope="module")
def trained(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One epoch on the phantom. Do not write into it; `copy_of` gives one to write into."""
    return train(phantom_folder, tmp_path_factory.mktemp("runs") / "trained")


@pytest.fixture
def copy_of(trained: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(trained.root, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")


# ---- training ------------------------------------------------------------------------


def test_training_leaves_model_record_table_and_picture(trained: RunFolder, phantom_folder: Path) -> None:
    record = RunRecord.read(trained.record)
    assert record.labels == {0: "background", 1: "organ", 2: "lesion"}
    assert record.in_channels == 1
    assert record.patch_size == (32, 32, 16)
    assert record.loss == "FusedDiceCELoss"
    assert sorted(record.training + record.validation) == [f"phantom_{i:03d}" for i in range(6)]
    assert len(record.validation) == 2
    state = torch.load(trained.model, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert trained.curves.read_bytes().startswith(b"\x89PNG")
    assert list(trained.tensorboard.iterdir())
    (row,) = table(trained.training_csv)
    assert list(row) == [
        "epoch",
        "train_loss",
        "learning_rate",
        "val_mean_dice",
        "val_dice_organ",
        "val_dice_lesion",
        "seconds",
    ]
    assert float(row["learning_rate"]) == pytest.approx(0.002)
    assert float(row["val_mean_dice"]) == pytest.approx(
        (float(row["val_dice_organ"]) + float(row["val_dice_lesion"])) / 2, abs=1e-5
    )
    datalist = json.loads(trained.datalist.read_text())
    assert [case["case"] for case in datalist["validation"]] == list(record.validation)
    assert datalist["training"][0]["label"].startswith(str(phantom_folder))


def test_the_same_seed_gives_the_same_training(trained: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    again = train(phantom_folder, tmp_path / "again")
    first, second = table(trained.training_csv)[0], table(again.training_csv)[0]
    assert first["train_loss"] == second["train_loss"]
    assert first["val_mean_dice"] == second["val_mean_dice"]


def test_validation_comes_at_intervals_and_after_the_last_epoch(phantom_folder: Path, tmp_path: Path) -> None:
    run = train(phantom_folder, tmp_path / "run", epochs=3, val_interval=2)
    assert [row["val_mean_dice"] != "" for row in table(run.training_csv)] == [False, True, True]


def test_resuming_goes_on_after_the_last_epoch(copy_of: RunFolder, phantom_folder: Path) -> None:
    before = table(copy_of.training_csv)
    train(phantom_folder, copy_of.root, resume=True, epochs=2)
    after = table(copy_of.training_csv)
    assert [row["epoch"] for row in after] == ["1", "2"]
    assert after[0] == before[0]
    # the horizon of the cosine is that of the new options: half of two epochs is done
    assert float(after[1]["learning_rate"]) == pytest.approx(0.001)


def test_resuming_a_finished_training_does_nothing(
    copy_of: RunFolder, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [path for path in copy_of.model.parent.iterdir() if path != copy_of.lock]
    files = {path: path.read_bytes() for path in (*models, copy_of.training_csv)}
    changed = {path: path.stat().st_mtime_ns for path in files}
    train(phantom_folder, copy_of.root, resume=True)
    assert "Nothing to do: 1 epochs are trained" in capsys.readouterr().out
    assert files == {path: path.read_bytes() for path in files}
    assert changed == {path: path.stat().st_mtime_ns for path in files}


def test_resuming_without_a_run_says_so_and_starts(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(phantom_folder, tmp_path / "run", resume=True)
    assert f"Nothing to resume in {run.root}, starting at epoch 1" in capsys.readouterr().out
    assert run.model.exists()


@contextlib.contextmanager
def another_process_holding(lock: Path) -> Iterator[int]:
    """Its number; it is killed at the end."""
    hold = "import sys, pathlib, time; from monai_extra_losses.bundle.run_folder import hold_lock\n"
    hold += "hold_lock(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(86400)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other.pid
    finally:
        other.kill()
        other.communicate()


def test_a_second_training_in_a_folder_is_refused(phantom_folder: Path, tmp_path: Path) -> None:
    """The lock ends with the process that holds it, even a killed one."""
    run = RunFolder(tmp_path / "run")
    run.lock.parent.mkdir(parents=True)
    with another_process_holding(run.lock) as pid:
        sentence = rf"Expected a run folder that no other training writes to, got .*run \(process {pid} on .*--run "
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(StartUpRefused, match=sentence):
                train(phantom_folder, run.root, **options)
        assert [path.name for path in run.root.rglob("*") if path.is_file()] == [".lock"]
    train(phantom_folder, run.root)


def test_a_second_evaluation_into_a_folder_is_refused(trained: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"output_dir": str(out), "overwrite": True}
    evaluate(trained, **options)
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file() and path.name != ".lock"}
    with another_process_holding(out / ".lock") as pid:
        sentence = rf"Expected a folder that no other evaluation writes to, got .*out \(process {pid} on .*--output_dir"
        with pytest.raises(StartUpRefused, match=sentence):
            evaluate(trained, **options)
        assert before == {path: path.read_bytes() for path in before}
    evaluate(trained, **options)
    with another_process_holding(out / ".lock"):  # given back at the end
        pass


def test_a_damaged_checkpoint_is_one_sentence(copy_of: RunFolder, phantom_folder: Path) -> None:
    copy_of.checksums.unlink()  # as in runs of earlier versions
    whole = copy_of.last.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text"):
        copy_of.last.write_bytes(damaged)
        with pytest.raises(
            StartUpRefused, match=r"Expected last\.pt to be a (file of tensors|whole file).* --overwrite True"
        ):
            train(phantom_folder, copy_of.root, resume=True, epochs=2)


def test_resuming_remembers_the_best_score(copy_of: RunFolder, phantom_folder: Path) -> None:
    state = torch.load(copy_of.last, weights_only=True)
    state["best_metric"] = 0.99
    torch.save(state, copy_of.last)
    copy_of.checksums.unlink()
    best = copy_of.model.read_bytes()
    train(phantom_folder, copy_of.root, resume=True, epochs=2)
    assert copy_of.model.read_bytes() == best
    assert torch.load(copy_of.last, weights_only=True)["best_metric"] == 0.99


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seed": 1}, "Expected seed 0 as in the run to resume, got 1"),
        ({"loss": "tversky"}, "Expected loss 'FusedDiceCELoss' as in the run to resume, got 'FusedTverskyLoss'"),
        ({"learning_rate": 0.1}, r"Expected learning_rate 0\.002 as in the run to resume, got 0\.1; .*--run "),
        ({"batch_size": 2}, "Expected batch_size 4 as in the run to resume, got 2"),
        ({"loss::lambda_ce": 0.5}, r"Expected the option lambda_ce of the loss to be 1\.0 as in .*, got 0\.5; choose"),
        ({"channels": [4, 8, 8]}, r"Expected channels \(4, 8, 16\) as in the run to resume, got \(4, 8, 8\)"),
    ],
)
def test_resuming_refuses_another_training(
    trained: RunFolder, phantom_folder: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(StartUpRefused, match=sentence):
        train(phantom_folder, trained.root, resume=True, epochs=2, **options)


def test_a_run_is_replaced_only_when_asked(copy_of: RunFolder, phantom_folder: Path) -> None:
    before = copy_of.model.read_bytes()
    with pytest.raises(StartUpRefused, match=r"already holds a run .*--resume True.*--overwrite True.*--bundle_root"):
        train(phantom_folder, copy_of.root)
    assert copy_of.model.read_bytes() == before
    (copy_of.root / "notes.txt").write_text("mine")
    evaluate(copy_of, overlays=False)
    train(phantom_folder, copy_of.root, overwrite="True", seed=1)
    assert RunRecord.read(copy_of.record).seed == 1
    assert len(table(copy_of.training_csv)) == 1
    assert not copy_of.results.cases_csv.exists()  # of the model that is gone
    assert (copy_of.root / "notes.txt").read_text() == "mine"


# ---- boundary losses, maps and schedules ---------------------------------------------

BOUNDARY = ("train", "losses", "boundary_schedule")
MAPS = (*BOUNDARY, "boundary_maps")


def test_a_boundary_loss_trains_with_maps_measured_once(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_fly = train(phantom_folder, tmp_path / "patches", BOUNDARY, epochs=2, seed=3)

    def measured_in_a_step(*_: Any) -> None:
        raise AssertionError("the loss measured distances by itself")

    monkeypatch.setattr("monai_extra_losses.losses.geometry.signed_distance", measured_in_a_step)
    untried: dict[str, Any] = {"setup::check_loss": False}  # the try of the set-up measures, without the maps
    with_maps = train(phantom_folder, tmp_path / "volumes", MAPS, epochs=2, seed=3, **untried)
    for run in (on_the_fly, with_maps):
        first, last = table(run.training_csv)
        assert [float(first[f"weight_{part}"]) for part in ("dice_ce", "surface")] == [1.0, 0.01]
        assert [float(last[f"weight_{part}"]) for part in ("dice_ce", "surface")] == [0.01, 1.0]
        for row in (first, last):
            parts = [float(row[f"weight_{part}"]) * float(row[f"train_loss_{part}"]) for part in ("dice_ce", "surface")]
            assert float(row["train_loss"]) == pytest.approx(sum(parts), rel=1e-4)
        (events,) = (path for path in run.tensorboard.iterdir() if b"weight_surface" in path.read_bytes())
        shown = EventAccumulator(str(events)).Reload().Scalars("weight_surface")
        assert [(event.step, event.value) for event in shown] == [(1, pytest.approx(0.01)), (2, 1.0)]
    # the same patches: the volume is 32 x 32 x 16, as the patch is, so that the augmentation alone makes a difference
    ours, theirs = (float(table(run.training_csv)[0]["train_loss_surface"]) for run in (on_the_fly, with_maps))
    assert ours == pytest.approx(theirs, rel=0.1)
    evaluate(with_maps, overlays=False)
    infer(with_maps, phantom_folder / "imagesTs", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_what_moves_the_label_moves_the_map(phantom_folder: Path, tmp_path: Path) -> None:
    """On the patches of the config: the map is below 0 where the label says, and the loss gets it as it is."""
    files = [str(CONFIGS / f"{name}.yaml") for name in MAPS]
    options = {"dataset_dir": str(phantom_folder), "bundle_root": str(tmp_path / "run"), "num_folds": 3}
    workflow = SegmentationWorkflow(files, **options, patch_size=[16, 16, 16], max_distance=20.0)
    workflow.initialize()
    dataset = workflow.parser.get_parsed_content("train::dataset")
    monai.utils.set_determinism(seed=0)
    turned = 0
    for number in [*range(len(dataset))] * 4:
        (item,) = dataset[number]
        label, distance = item["label"][0].as_tensor(), item["distance"].as_tensor()
        assert distance.shape == (3, 16, 16, 16)
        assert distance.abs().max() <= 20
        for c in range(3):
            inside, below = label == c, distance[c] < 0
            turned += int((inside != below).any())  # by interpolation
            overlap = 2 * (inside & below).sum() / (inside.sum() + below.sum()).clamp_min(1)
            assert overlap > 0.8 or inside.sum() < 50, (number, c, overlap)
    assert 0 < turned < 3 * 4 * len(dataset)


def test_a_resumed_training_goes_on_with_its_weights(phantom_folder: Path, tmp_path: Path) -> None:
    options = {"loss_weights::dice_ce::last_epoch": 3, "loss_weights::surface::kind": "step"}
    train(phantom_folder, tmp_path / "run", BOUNDARY, epochs=1, **options)
    run = train(phantom_folder, tmp_path / "run", BOUNDARY, epochs=4, resume=True, **options)
    rows = table(run.training_csv)
    assert [float(row["weight_dice_ce"]) for row in rows] == pytest.approx([1, 0.505, 0.01, 0.01])
    # the end of a ramp without a last epoch is that of the new options
    assert [float(row["weight_surface"]) for row in rows] == [1.0, 0.01, 0.01, 1.0]
    recorded = RunRecord.read(run.record).loss_weights
    assert recorded is not None
    assert recorded["dice_ce"] == {"kind": "linear", "start": 1.0, "end": 0.01, "first_epoch": 1, "last_epoch": 3}
    with pytest.raises(StartUpRefused, match=r"Expected loss_weights \{'dice_ce': .* as in the run to resume, got"):
        train(phantom_folder, run.root, BOUNDARY, epochs=5, resume=True)


def test_maps_for_a_loss_that_reads_none_are_refused_before_the_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(StartUpRefused, match="expected a loss that reads distance, got FusedTverskyLoss, which takes"):
        train(tmp_path / "no data", tmp_path / "run", ("train", "losses", "boundary_maps"), loss="tversky")


SETTINGS = {"train", "inference", "evaluate", "multi_gpu_evaluate"}  # of another workflow, or below all others
OVERLAYS = sorted({path.stem for path in CONFIGS.glob("*.yaml")} - SETTINGS)


@pytest.mark.parametrize(
    "overlays",
    [
        *((name,) for name in OVERLAYS),
        OVERLAYS,
        OVERLAYS[::-1],
        ["losses", "boundary_schedule", "boundary_maps", "multi_gpu_train"],
    ],
    ids="+".join,
)
def test_no_overlay_drops_the_start_up(overlays: Sequence[str]) -> None:
    """What builds the loss, checks the data, opens the run and seeds stays, in this order, and so does each option."""
    alone, merged = (
        ConfigParser.load_config_files([str(CONFIGS / f"{name}.yaml") for name in ("train", *names)])
        for names in ((), overlays)
    )
    parser = ConfigParser(merged)  # resolves a::b
    steps = ["@training_loss", "@setup.open_run()", "monai.utils.set_determinism(seed=@record.seed"]
    found = [step for entry in parser["initialize"] for step in steps if step in str(entry)]
    assert found == steps
    assert parser["setup"] == alone["setup"]
    assert parser["training_loss"]["_target_"] == alone["training_loss"]["_target_"]
    assert parser["run"] == alone["run"]
    assert "@network_at_start" in str(parser["built_network"])  # and with it the pretrained weights
    handlers = [handler["_target_"] for handler in alone["train"]["handlers"]]
    assert [handler["_target_"] for handler in parser["train::handlers"]] == handlers
    # whatever the augmentation moves, it moves all of it
    assert {str(transform["keys"]) for transform in parser["train::augmentation"]} == {
        "@train::moved",
        "image",
        "label_map",
    }
    assert len(parser["train::moved"]) == len(parser["train::interpolation"])


@pytest.mark.parametrize(
    "overlays", [["evaluate"], ["losses", "evaluate"], ["evaluate", "multi_gpu_evaluate"]], ids="+".join
)
def test_no_overlay_drops_the_start_up_of_an_evaluation(overlays: Sequence[str]) -> None:
    parser = ConfigParser(
        ConfigParser.load_config_files([str(CONFIGS / f"{name}.yaml") for name in ("train", *overlays)])
    )
    steps = ["@setup.open_results()", "monai.utils.set_determinism(seed=@record.seed"]
    assert [step for entry in parser["initialize"] for step in steps if step in str(entry)] == steps
    assert parser["setup"]["_target_"] == "monai_extra_losses.bundle.EvaluationSetUp"
    assert parser["validate::evaluator"]["inferer"] == "@validate::inferer"
    evaluates = "$@validate::evaluator.run() if not @setup.is_finished(@validate::inferer) else None"
    assert parser["run"] == [evaluates, "$@setup.close_results()"]


# ---- options -------------------------------------------------------------------------


def start_up(data: Path, run: Path, **options: Any) -> TrainingSetUp:
    defaults = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    values = {name: defaults[name] for name in defaults["setup"] if name in defaults}
    values |= {
        "dataset_dir": data,
        "bundle_root": run,
        "loss": DiceCELoss(to_onehot_y=True, softmax=True),
        "device": torch.device("cpu"),
    }
    return TrainingSetUp(**{**values, **options})


@pytest.fixture
def set_up(phantom_folder: Path, tmp_path: Path) -> Callable[..., TrainingSetUp]:
    def build(**options: Any) -> TrainingSetUp:
        return start_up(phantom_folder, tmp_path / "run", num_folds=3, **options)

    return build


def test_folds_of_the_data_set_are_taken_and_recorded(phantom_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(phantom_folder, tmp_path / "data")
    declared = json.loads((data / "dataset.json").read_text())
    for entry, fold in zip(declared["training"], (2, 0, 0, 1, 1, 3), strict=True):
        entry["fold"] = fold
    (data / "dataset.json").write_text(json.dumps(declared))
    built = start_up(data, tmp_path / "run", fold=1)
    assert built.record.num_folds == 4
    assert built.record.validation == ("phantom_003", "phantom_004")
    limited = start_up(data, tmp_path / "run", fold=1, limit=4).record
    assert (limited.num_folds, limited.validation) == (4, ("phantom_003",))
    with pytest.raises(StartUpRefused, match=r"first 4 \(limit\), got 4 and 0 by the folds .*; raise limit"):
        start_up(data, tmp_path / "run", fold=3, limit=4)
    with pytest.raises(StartUpRefused, match=r"expected num_folds 4, .* got 5"):
        start_up(data, tmp_path / "run", num_folds=5)
    assert start_up(phantom_folder, tmp_path / "run").record.num_folds == 5


def _redeclared(phantom_folder: Path, folder: Path, **changes: Any) -> Path:
    data = shutil.copytree(phantom_folder, folder)
    declared = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**declared, **changes}))
    return data


def test_a_validation_list_validates_unless_folds_are_asked_for(phantom_folder: Path, tmp_path: Path) -> None:
    entries = json.loads((phantom_folder / "dataset.json").read_text())["training"]
    data = _redeclared(phantom_folder, tmp_path / "data", training=entries[:4], validation=entries[4:], numTraining=4)
    built = start_up(data, tmp_path / "run")
    assert (built.record.num_folds, built.record.fold) == (0, 0)
    assert built.record.training == tuple(f"phantom_{i:03d}" for i in range(4))
    assert built.record.validation == ("phantom_004", "phantom_005")
    assert (built.passed_over, built.test_cases) == ((), 2)
    limited = start_up(data, tmp_path / "run", limit=3)
    assert (limited.record.training, limited.record.validation) == (("phantom_000", "phantom_001"), ("phantom_004",))
    with pytest.raises(StartUpRefused, match=r"first 1 \(limit\), got 0 and 1 by the folds or lists of dataset\.json"):
        start_up(data, tmp_path / "run", limit=1)
    folds = start_up(data, tmp_path / "run", num_folds=2)
    assert sorted(folds.record.training + folds.record.validation) == [f"phantom_{i:03d}" for i in range(4)]
    (apart,) = folds.passed_over
    assert apart.startswith(
        "2 cases set apart to validate, because the others are dealt to 2 folds; evaluate --split all"
    )
    with pytest.raises(
        StartUpRefused, match=r"expected fold 0, because the 2 cases set apart .* got 1; give --num_folds"
    ):
        start_up(data, tmp_path / "run", fold=1)


def test_a_data_set_of_empty_labels_is_refused(phantom_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(phantom_folder, tmp_path / "data")
    for file in (data / "labelsTr").iterdir():
        label = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), file)
    match = r"data: expected a structure in some label, got the background 0 in every voxel of all 6 labels; are these"
    with pytest.raises(StartUpRefused, match=match):
        start_up(data, tmp_path / "run")
    with pytest.raises(DatasetError, match=match):
        data_report(data)
    (data / "dataset.json").unlink()
    with pytest.raises(DatasetError, match=match):
        data_report(data)


def test_options_are_typed(set_up: Callable[..., TrainingSetUp], tmp_path: Path) -> None:
    built = set_up(epochs="3", learning_rate="1e-3", resume="false", patch_size="[16, 16, 16]", limit="None")
    assert (built.record.epochs, built.record.learning_rate, built.resume) == (3, 0.001, False)
    assert built.record.patch_size == (16, 16, 16)
    assert built.record.limit is None
    assert not (tmp_path / "run").exists()  # building a set-up writes nothing


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "Expected epochs to be a whole number of at least 1, got 0"),
        ({"epochs": True}, "Expected epochs to be a whole number of at least 1, got True"),
        ({"batch_size": 1.5}, "Expected batch_size to be a whole number of at least 1, got 1.5"),
        ({"val_interval": "often"}, "Expected val_interval to be a whole number of at least 1, got 'often'"),
        ({"learning_rate": -1}, "Expected learning_rate to be a number above 0, got -1"),
        ({"resume": "perhaps"}, "Expected resume to be True or False, got 'perhaps'"),
        ({"patch_size": [32, 32]}, "Expected patch_size to be three numbers above 0"),
        ({"patch_size": [30, 32, 32]}, "Expected patch_size to be multiples of 8 .* of at least 16"),
        ({"patch_size": [8, 32, 32]}, "Expected patch_size to be multiples of 8 .* of at least 16"),
        ({"pixdim": [1, 0, 1]}, "Expected pixdim to be three numbers above 0"),
        ({"channels": 16}, "Expected channels to be two numbers or more"),
        ({"fold": 3}, "expected fold 0 to 2"),
        (
            {"loss_weights": {"dice": {"start": 1, "end": 0}}},
            "loss_weights: expected a CompoundLoss, whose parts have weights, got DiceCELoss",
        ),
        (
            {"loss_weights": {"two": {"start": 1, "end": 0}}, "loss": CompoundLoss({"one": DiceLoss()})},
            "loss_weights: expected parts of the loss, one, got 'two'",
        ),
        (
            {"loss_weights": {"one": {"start": -1, "end": 0}}, "loss": CompoundLoss({"one": DiceLoss()})},
            "loss_weights: one: expected start to be a weight >= 0, got -1",
        ),
        ({"loss_weights": "falling"}, "Expected loss_weights to be ramps .*, got 'falling'"),
        ({"num_workers": -1}, "Expected num_workers to be a whole number of at least 0, got -1"),
        ({"device": "cuda:99"}, "Expected device to be one that this machine has, got 'cuda:99'; torch finds"),
        ({"device": "gpu"}, "Expected device to be a device such as cpu, cuda or cuda:1, got 'gpu'"),
        (
            {"loss": FusedDiceCELoss(to_onehot_y=True, softmax=True, weight=torch.ones(2))},
            r"Expected a loss of 3 classes and a label map, got FusedDiceCELoss, which fails on them \(",
        ),
        (
            {"loss": FusedDiceCELoss(to_onehot_y=True)},
            "Expected a loss that reads raw scores, got FusedDiceCELoss without an activation, .* set softmax: true",
        ),
        ({"limit": 2}, "expected at least as many labelled cases as folds, got 2"),
    ],
)
def test_an_option_that_cannot_work_is_one_sentence(
    set_up: Callable[..., TrainingSetUp], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(StartUpRefused, match=sentence):
        set_up(**options)


def test_a_run_in_the_data_set_is_refused(phantom_folder: Path) -> None:
    with pytest.raises(
        StartUpRefused, match=r"Expected bundle_root \(--run\) to be another folder than that of the data"
    ):
        start_up(phantom_folder, phantom_folder)
    start_up(phantom_folder, phantom_folder / "run")


def test_machinery_is_looked_at_before_evaluation_and_inference(trained: RunFolder, phantom_folder: Path) -> None:
    for options in ({"num_workers": -1}, {"device": "cuda:99"}):
        with pytest.raises(StartUpRefused, match=f"Expected {next(iter(options))} to be "):
            evaluate(trained, **options)
        with pytest.raises(StartUpRefused, match=f"Expected {next(iter(options))} to be "):
            run_configs(
                ("inference",), bundle_root=str(trained.root), input=str(phantom_folder / "imagesTs"), **options
            )


def test_the_automatic_patch_follows_the_turned_and_resampled_volume(
    set_up: Callable[..., TrainingSetUp], phantom_folder: Path, tmp_path: Path
) -> None:
    assert set_up().record.patch_size == (32, 32, 16)
    # 32 x 32 x 16 voxels of 1 x 1 x 3 mm
    assert set_up(pixdim=[1, 2, 1]).record.patch_size == (32, 16, 48)

    turned = tmp_path / "turned"
    shutil.copytree(phantom_folder, turned)
    for file in turned.rglob("*.nii.gz"):
        volume = nibabel.load(file)
        # the file's axes become S, R, A
        axes = np.asarray(volume.dataobj).transpose(2, 0, 1)
        nibabel.save(nibabel.Nifti1Image(axes, volume.affine[:, [2, 0, 1, 3]]), file)
    built = start_up(turned, tmp_path / "run", num_folds=3)
    assert built.record.patch_size == (32, 32, 16)


def test_the_hippocampus_gets_the_patch_of_the_prototype(hippocampus: Path, tmp_path: Path) -> None:
    built = start_up(hippocampus, tmp_path / "run")
    assert built.record.patch_size == (32, 48, 32)


@pytest.mark.usefixtures("real_pictures")
def test_the_hippocampus_trains(hippocampus: Path, tmp_path: Path) -> None:
    run = train(hippocampus, tmp_path / "run", limit=20, epochs=2, loss="focal_tversky")
    first, second = table(run.training_csv)
    assert float(second["train_loss"]) < float(first["train_loss"])
    evaluate(run, overlays=False)
    assert {row["label"] for row in table(run.results.summary_csv)} == {"Anterior", "Posterior", "mean"}


# ---- evaluation ----------------------------------------------------------------------


@pytest.mark.usefixtures("real_pictures")
def test_evaluation_writes_tables_and_pictures(copy_of: RunFolder) -> None:
    evaluate(copy_of)
    rows = table(copy_of.results.cases_csv)
    validation = RunRecord.read(copy_of.record).validation
    assert [(row["case"], row["label"]) for row in rows] == [
        (case, label) for case in validation for label in ("organ", "lesion")
    ]
    assert all(float(row["target_ml"]) > 0 for row in rows if row["label"] == "organ")
    summary = table(copy_of.results.summary_csv)
    assert [row["label"] for row in summary] == ["organ", "lesion", "mean"]
    organ = [float(row["dice"]) for row in rows if row["label"] == "organ"]
    assert float(summary[0]["dice_mean"]) == pytest.approx(np.mean(organ), abs=1e-5)
    assert {path.stem for path in copy_of.results.overlays.iterdir()} == set(validation)

    with pytest.raises(StartUpRefused, match=r"cases\.csv exists; replace it by --overwrite True"):
        evaluate(copy_of, split="training")
    evaluate(copy_of, split="training", overwrite=True, overlays=False)
    assert not list(copy_of.results.overlays.iterdir())  # pictures of other cases would mislead
    assert {row["case"] for row in table(copy_of.results.cases_csv)} == set(RunRecord.read(copy_of.record).training)


def test_every_labelled_case_of_any_folder_can_be_evaluated(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path
) -> None:
    evaluate(trained, split="all", dataset_dir=str(phantom_folder), output_dir=str(tmp_path / "all"), overlays=False)
    assert len(table(tmp_path / "all" / "cases.csv")) == (6 + 2) * 2  # the two test cases have labels


def test_evaluation_refuses_what_does_not_fit(trained: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(phantom_folder, other)
    content = json.loads((other / "dataset.json").read_text())
    content["labels"] |= {"7": "cyst"}
    (other / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(StartUpRefused, match=r"Expected label values \[0, 1, 2\] as in the run, got \[0, 1, 2, 7\]"):
        evaluate(trained, dataset_dir=str(other), output_dir=str(tmp_path / "out"))
    with pytest.raises(StartUpRefused, match='Expected split to be "validation", "training" or "all"'):
        evaluate(trained, split="test")
    with pytest.raises(StartUpRefused, match=r"without models/run\.json; train first"):
        evaluate(RunFolder(tmp_path / "nowhere"))


def test_missing_or_foreign_weights_are_one_sentence(copy_of: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    copy_of.checksums.unlink()
    torch.save({"other.weight": torch.zeros(1)}, copy_of.model)
    with pytest.raises(StartUpRefused, match="expected weights of this network, got others"):
        infer(copy_of, phantom_folder / "imagesTs", tmp_path / "out")
    copy_of.model.write_bytes(copy_of.last.read_bytes()[:1000])
    before = sorted(copy_of.root.rglob("*"))
    for start in (lambda: infer(copy_of, phantom_folder / "imagesTs", tmp_path / "out"), lambda: evaluate(copy_of)):
        with pytest.raises(
            StartUpRefused, match=r"Expected model_file to be a whole file, got .*model\.pt, which is damaged"
        ):
            start()
    assert sorted(copy_of.root.rglob("*")) == before
    copy_of.model.unlink()
    with pytest.raises(StartUpRefused, match=r"Expected trained weights in .*model\.pt, got no such file; train first"):
        evaluate(copy_of)


def flip_a_bit(file: Path) -> None:
    """In the middle of the tensors, where torch.load does not notice."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    file.write_bytes(content)
    torch.load(file, weights_only=True)


@pytest.mark.parametrize("with_checksum", [True, False])
def test_damaged_weights_are_never_taken(
    copy_of: RunFolder, phantom_folder: Path, tmp_path: Path, with_checksum: bool
) -> None:
    if not with_checksum:
        copy_of.checksums.unlink()
    elsewhere = Path(shutil.copy(copy_of.model, tmp_path / "weights.pt"))
    starts: dict[str, tuple[Path, Callable[[], object]]] = {
        "model.pt": (copy_of.model, lambda: evaluate(copy_of)),
        "model.pt ": (copy_of.model, lambda: infer(copy_of, phantom_folder / "imagesTs", tmp_path / "out")),
        "model.pt of an export": (copy_of.model, lambda: InferenceSetUp(bundle_root=copy_of.root, metadata={})),
        "last.pt": (copy_of.last, lambda: train(phantom_folder, copy_of.root, resume=True, epochs=2)),
        "weights.pt": (elsewhere, lambda: evaluate(copy_of, model_file=str(elsewhere))),
        "weights.pt ": (elsewhere, lambda: train(phantom_folder, tmp_path / "new", pretrained=str(elsewhere))),
    }
    for file, start in starts.values():
        whole = file.read_bytes()
        flip_a_bit(file)
        sentence = "as the training wrote it, got a damaged or another file .* bring back that of this run, or "
        if file == elsewhere or not with_checksum:
            sentence = (
                r"to be a whole file, got .*, which is damaged: its part '[\w.]+/data/\d+' has another checksum; "
            )
        with pytest.raises(StartUpRefused, match=sentence):
            start()
        file.write_bytes(whole)
    InferenceSetUp(bundle_root=copy_of.root, metadata={})


def test_weights_that_are_no_numbers_are_never_taken(copy_of: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    state = torch.load(copy_of.model, weights_only=True)
    *_, last = state
    for value in (float("nan"), float("-inf")):
        broken = tmp_path / "broken.pt"
        torch.save({**state, last: state[last].clone().fill_(value)}, broken)
        sentence = (
            rf"to hold finite numbers, got .*broken\.pt with NaN or infinity in 1 of {len(state)} tensors \({last} "
        )
        with pytest.raises(StartUpRefused, match=f"Expected model_file {sentence}"):
            evaluate(copy_of, model_file=str(broken))
        with pytest.raises(StartUpRefused, match=f"Expected pretrained {sentence}"):
            train(phantom_folder, tmp_path / "new", pretrained=str(broken))
    checkpoint = torch.load(copy_of.last, weights_only=True)
    checkpoint["network"][last].fill_(float("nan"))
    torch.save(checkpoint, copy_of.last)
    copy_of.checksums.unlink()
    with pytest.raises(StartUpRefused, match=r"Expected last\.pt to hold finite numbers"):
        train(phantom_folder, copy_of.root, resume=True, epochs=2)


def test_weights_of_ones_own_are_named_as_such(copy_of: RunFolder) -> None:
    torch.save(
        {name: value * 0.9 for name, value in torch.load(copy_of.model, weights_only=True).items()}, copy_of.model
    )
    with pytest.raises(StartUpRefused, match=rf"name weights of your own as such: --model_file {copy_of.model}\."):
        evaluate(copy_of, overlays=False)
    evaluate(copy_of, overlays=False, model_file=str(copy_of.model))


def test_a_training_killed_while_it_saves_leaves_files_that_are_known(tmp_path: Path) -> None:
    file, draft = tmp_path / "model.pt", tmp_path / "draft"
    for content in (b"first", b"second"):
        draft.write_bytes(content)
        record_checksum(draft, file)
        if file.exists():
            refuse_changed(file, "copy it")  # killed before it is moved
        draft.replace(file)
        refuse_changed(file, "copy it")  # killed after it
    file.write_bytes(b"third")
    with pytest.raises(StartUpRefused, match=r"model\.pt as the training wrote it, got .*; copy it\."):
        refuse_changed(file, "copy it")


# ---- inference -----------------------------------------------------------------------


def test_inference_segments_once(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / ".unfinished").mkdir(parents=True)  # as a killed run leaves it
    (out / ".unfinished" / "half.nii.gz").write_bytes(b"half")
    infer(trained, phantom_folder / "imagesTs", out)
    assert sorted(path.name for path in out.iterdir()) == [
        ".segmentations",
        "phantom_test_000_seg.nii.gz",
        "phantom_test_001_seg.nii.gz",
    ]
    first = (out / "phantom_test_000_seg.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    infer(trained, phantom_folder / "imagesTs" / "phantom_test_000.nii.gz", out)
    assert f"1 case(s) skipped, finished in {out}: phantom_test_000" in capsys.readouterr().out
    assert (out / "phantom_test_000_seg.nii.gz").stat().st_mtime_ns == first


def test_label_values_and_geometry_are_those_of_the_files(phantom_folder: Path, tmp_path: Path) -> None:
    """Values 2 and 300, an oblique grid with other axes, resampled, and a patch larger than the volume."""
    data = tmp_path / "it's data, größer"
    shutil.copytree(phantom_folder, data)
    content = json.loads((data / "dataset.json").read_text())
    content["labels"] = {"0": "background", "2": "organ", "300": "lesion"}
    (data / "dataset.json").write_text(json.dumps(content))
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    for file in data.rglob("*.nii.gz"):
        volume = nibabel.load(file)
        voxels = np.asarray(volume.dataobj)
        if "labels" in str(file):
            voxels = np.array([0, 2, 300], dtype=np.int16)[voxels]
        # the file's axes become A, L, S
        affine = tilt @ volume.affine[:, [1, 0, 2, 3]] @ np.diag([1, -1, 1, 1])
        nibabel.save(nibabel.Nifti1Image(voxels.transpose(1, 0, 2), affine), file)

    learning = {"epochs": 30, "val_interval": 30, "batch_size": 2, "learning_rate": 0.01, "channels": [8, 16, 32]}
    run = train(data, tmp_path / "run", pixdim=[1.5, 1.5, 3], patch_size=[32, 32, 20], **learning)
    evaluate(run, overlays=False)
    dice = {row["label"]: float(row["dice_mean"]) for row in table(run.results.summary_csv)}
    validated = float(table(run.training_csv)[-1]["val_dice_organ"])
    # on the files' own grids the agreement is about that on the network's grid: nothing was flipped or shifted
    assert dice["organ"] == pytest.approx(validated, abs=0.05)
    assert dice["organ"] > 0.3

    source = data / "imagesTs" / "phantom_test_000.nii.gz"
    infer(run, source, tmp_path / "out")
    segmentation, image = nibabel.load(tmp_path / "out" / "phantom_test_000_seg.nii.gz"), nibabel.load(source)
    assert segmentation.shape == image.shape
    np.testing.assert_allclose(segmentation.affine, image.affine, atol=1e-5)
    assert segmentation.get_data_dtype() == np.uint16
    assert set(np.unique(np.asarray(segmentation.dataobj))) <= {0, 2, 300}


def test_a_file_may_hold_all_channels(phantom_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "channels"
    shutil.copytree(phantom_folder, data)
    (data / "dataset.json").unlink()
    for file in (*data.glob("imagesTr/*"), *data.glob("imagesTs/*")):
        volume = nibabel.load(file)
        voxels = np.asarray(volume.dataobj)
        nibabel.save(nibabel.Nifti1Image(np.stack([voxels, -voxels, voxels], axis=-1), volume.affine), file)
    run = train(data, tmp_path / "run")
    assert RunRecord.read(run.record).in_channels == 3
    evaluate(run)
    infer(run, data / "imagesTs", tmp_path / "out")
    segmentation = nibabel.load(tmp_path / "out" / "phantom_test_001_seg.nii.gz")
    assert segmentation.shape == (32, 32, 16)


def test_channel_files_make_one_case(phantom_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "channels"
    (data / "imagesTr").mkdir(parents=True)
    shutil.copytree(phantom_folder / "labelsTr", data / "labelsTr")
    for file in (phantom_folder / "imagesTr").iterdir():
        for channel in (0, 1):
            shutil.copy(file, data / "imagesTr" / file.name.replace(".nii", f"_000{channel}.nii"))
    run = train(data, tmp_path / "run")
    assert RunRecord.read(run.record).in_channels == 2
    evaluate(run)
    infer(run, data / "imagesTr", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 6
    assert (tmp_path / "out" / "phantom_000_seg.nii.gz").exists()
    with pytest.raises(
        StartUpRefused, match=r"phantom_test_000\.nii\.gz: expected 2 channel\(s\) as in the run, got 1"
    ):
        infer(run, phantom_folder / "imagesTs", tmp_path / "out")


def test_inference_refuses_inputs_it_cannot_name_or_read(
    trained: RunFolder, phantom_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()

    def refusal(sentence: str) -> None:
        with pytest.raises(StartUpRefused, match=sentence):
            infer(trained, source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refusal(r"Expected --input to hold files \.nii\.gz, .*, got none")
    (source / "broken.nii.gz").write_bytes(b"no volume")
    refusal(r"broken\.nii\.gz: expected a whole gzip file, got a damaged one")
    (source / "broken.nii.gz").unlink()
    image = nibabel.load(phantom_folder / "imagesTs" / "phantom_test_000.nii.gz")
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(image, source / name)
    refusal(r"Expected one volume named a, got a\.nii, a\.nii\.gz")
    source = tmp_path / "nowhere"
    refusal("Expected --input to be a volume or a folder of volumes, got .*nowhere, which is not there")


def test_without_a_run_the_metadata_hold(tmp_path: Path) -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    built = InferenceSetUp(bundle_root=tmp_path, metadata=metadata)
    formats = metadata["network_data_format"]
    assert built.record.in_channels == formats["inputs"]["image"]["num_channels"]
    assert built.record.num_classes == formats["outputs"]["pred"]["num_channels"]


# ---- the table of losses -------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_every_entry_builds_a_loss_that_learns(name: str) -> None:
    parser = ConfigParser()
    parser.read_config(CONFIGS / "losses.yaml")
    parser.update({"to_onehot_y": True, "softmax": True, "sigmoid": False})  # as train.yaml says of a label map
    parser["loss"] = f"@losses::{name}"
    loss = parser.get_parsed_content("loss")
    scores = torch.randn(2, 3, 8, 8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.randint(0, 3, (2, 1, 8, 8, 4), generator=torch.Generator().manual_seed(1))
    value = loss(scores, target)
    value.backward()
    assert value.ndim == 0
    assert scores.grad is not None
    # a step against the gradient lowers the loss
    assert loss(scores.detach() - 0.01 * scores.grad / scores.grad.norm(), target) < value


def test_train_yaml_alone_has_the_default_of_the_table() -> None:
    train_yaml = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    table_yaml = yaml.safe_load((CONFIGS / "losses.yaml").read_text())
    assert table_yaml["loss"] == "@losses::dice_ce"
    assert train_yaml["loss"] == {key: value for key, value in TABLE["dice_ce"].items() if key != "_desc_"}


def test_the_configs_agree_on_network_and_preparation() -> None:
    train_yaml, evaluate_yaml, inference_yaml = (
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("train", "evaluate", "inference")
    )
    assert train_yaml["network_def"] == inference_yaml["network_def"] | {"for_training": True}
    assert evaluate_yaml["network_def::for_training"] is False

    def for_the_image(transforms: list[dict[str, Any]]) -> list[dict[str, Any]]:
        of_image = []
        for transform in transforms:
            if "image" in transform.get("keys", ()) and "names" not in transform:
                mode = transform.get("mode")
                mode = {"mode": mode[0] if isinstance(mode, list) else mode} if mode else {}
                of_image.append({**transform, "keys": "image", **mode})
                of_image[-1].pop("reader", None)  # inference reads NIfTI as training does, and other formats too
        return of_image

    prepared = for_the_image(train_yaml["preparation"])
    assert for_the_image(evaluate_yaml["validate::preprocessing"]["transforms"]) == prepared
    assert for_the_image(inference_yaml["preprocessing"]["transforms"]) == prepared


# ---- several processes ---------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(phantom_folder: Path, tmp_path: Path) -> None:
    def in_two_processes(configs: tuple[str, ...], *arguments: str) -> None:
        files = [str(CONFIGS / f"{name}.yaml") for name in configs]
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
        subprocess.run(
            [*launch, "monai.bundle", "run", "--config_file", str(files), *arguments],
            check=True,
            timeout=600,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    run = RunFolder(tmp_path / "run")
    options = ["--dataset_dir", str(phantom_folder), "--bundle_root", str(run.root), "--num_folds", "3"]
    in_two_processes(("train", "multi_gpu_train"), *options, "--epochs", "1")
    in_two_processes(("train", "multi_gpu_train"), *options, "--epochs", "2", "--resume", "True")
    assert [row["epoch"] for row in table(run.training_csv)] == ["1", "2"]
    assert not any(key.startswith("module.") for key in torch.load(run.model, weights_only=True))
    in_two_processes(("train", "evaluate", "multi_gpu_evaluate"), "--bundle_root", str(run.root))
    together = table(run.results.cases_csv)
    evaluate(run, overwrite=True, overlays=False)
    assert table(run.results.cases_csv) == together
