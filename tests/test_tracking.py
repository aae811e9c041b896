"""What MLflow and TensorBoard are told of a training."""

import importlib.machinery
import math
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.handlers.mlflow_handler as monai_mlflow
import pytest
import torch
from ignite.engine import Engine, Events
from runs import evaluate, train

from monai_extra_losses.bundle.tracking import ClassDice, TrackedParameters
from monai_extra_losses.data.errors import StartUpRefused

TINY: dict[str, Any] = {"channels": [4, 8], "num_res_units": 0, "val_interval": 1}
PARAMETERS = {
    "loss": "FusedTverskyLoss",
    "loss.alpha": "0.2",
    "loss.softmax": "true",
    "loss.reduction": "mean",
    "learning_rate": "0.01",
    "batch_size": "4",
    "fold": "1",
    "seed": "3",
    "num_folds": "3",
    "patch_size": "[32, 32, 16]",
    "pixdim": "null",
}


class RecordingClient:
    """As much of `mlflow.MlflowClient` as MONAI's handler calls."""

    parameters: dict[str, str]
    metrics: dict[str, dict[int, float]]

    def __init__(self, tracking_uri: str | None) -> None:
        self.tracking_uri = tracking_uri

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1", lifecycle_stage="active", name=name)

    def search_runs(self, experiment: str) -> list[Any]:
        return []

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="r", run_name=run_name))

    def get_run(self, run: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(params=dict(self.parameters)))

    def log_batch(self, run_id: str, metrics: list[Any], params: list[Any], tags: list[Any]) -> None:
        for name, value in params:
            assert self.parameters.setdefault(name, value) == value  # MLflow refuses to change one
        for name, value, _, step in metrics:
            self.metrics.setdefault(name, {})[step] = value

    def log_artifact(self, run: str, path: str) -> None:
        pass

    def set_terminated(self, run: str, status: str) -> None:
        pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[RecordingClient]:
    """An installation with MLflow, which records into a class."""
    entities = SimpleNamespace(
        RunStatus=SimpleNamespace(FINISHED=3, to_string=str),
        LifecycleStage=SimpleNamespace(ACTIVE="active"),
        Param=lambda name, value: (name, value),
        Metric=lambda *four: four,
    )
    for name in ("mlflow", "sqlalchemy", "alembic"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(monai_mlflow, "mlflow", SimpleNamespace(MlflowClient=RecordingClient, entities=entities))
    monkeypatch.setattr(monai_mlflow, "MlflowException", RuntimeError)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    RecordingClient.parameters, RecordingClient.metrics = {}, {}
    return RecordingClient


def a_tracked_training(data: Path, run: Path) -> None:
    options: dict[str, Any] = {
        "loss::alpha": 0.2,
        "learning_rate": 0.01,
        "fold": 1,
        "seed": 3,
        "tracking": "mlflow",
        **TINY,
    }
    train(data, run, loss="tversky", epochs=2, run_name="mine", **options)


def test_a_run_of_mlflow_has_loss_options_and_the_dice_of_each_class(
    phantom_folder: Path, tmp_path: Path, client: type[RecordingClient]
) -> None:
    a_tracked_training(phantom_folder, tmp_path / "run")
    assert PARAMETERS.items() <= client.parameters.items()
    assert client.parameters["max_epochs"] == "2"
    assert set(client.metrics) == {"train_loss", "lr_group_0", "val_mean_dice", "val_dice_organ", "val_dice_lesion"}
    mean, organ, lesion = (client.metrics[f"val_{name}"] for name in ("mean_dice", "dice_organ", "dice_lesion"))
    assert list(organ) == list(mean) == [1, 2]
    assert [(organ[e] + lesion[e]) / 2 for e in (1, 2)] == pytest.approx([mean[1], mean[2]])


def test_mlflow_itself_takes_them(phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    a_tracked_training(phantom_folder, tmp_path / "run")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/run/eval/mlruns.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "monai_experiment"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert PARAMETERS.items() <= run.data.params.items()
    assert {"val_dice_organ", "val_dice_lesion", "val_mean_dice", "train_loss"} <= run.data.metrics.keys()
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")


def test_names_and_values_are_what_mlflow_takes() -> None:
    names = {1: "left (1)", 2: "left [1]", 3: "a:b", 4: "x" * 300, 5: "T2 µ/ü-1.5"}
    metrics = ClassDice(names).metrics
    assert len(set(metrics)) == len(names)
    assert metrics[0] == "val_dice_left _1_"
    assert metrics[4] == "val_dice_T2 µ/ü-1.5"
    assert all(len(name) < 250 and re.fullmatch(r"[/\w.\- :]*", name) for name in metrics)  # MLflow's own pattern

    def parameters(**options: Any) -> dict[str, str]:
        record = SimpleNamespace(
            loss="X",
            network="unet",
            learning_rate=1,
            batch_size=1,
            patch_size=1,
            pixdim=None,
            num_folds=1,
            fold=0,
            seed=0,
        )
        record.loss_options = options
        return TrackedParameters(record).parameters  # type: ignore[arg-type]

    assert len(parameters(weights=[1.0] * 5000)["loss.weights"]) <= 5000
    many = parameters(**{f"option_{i}": i for i in range(100)})
    assert len(many) < 20
    assert '"loss.option_99": 99' in many["loss.options"]


def test_a_class_without_a_dice_is_no_metric() -> None:
    engine = Engine(lambda *_: None)
    ClassDice({1: "a", 2: "b"}).attach(engine)
    for columns, expected in (
        ([0.5, 0.25], {"val_dice_a": 0.5, "val_dice_b": 0.25}),
        ([0.5, math.nan], {"val_dice_a": 0.5}),
    ):

        @engine.on(Events.STARTED)
        def _measure(engine: Engine, columns: list[float] = columns) -> None:
            engine.state.key_metric_name, engine.state.metric_details = "dice", {"dice": torch.tensor([columns])}

        engine.run([0])
        assert engine.state.metrics == expected


def test_tracking_that_cannot_work_is_one_sentence(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: type[RecordingClient]
) -> None:
    with pytest.raises(StartUpRefused, match=r"Expected tracking to be mlflow or a file of .* got 'wandb'\."):
        train(phantom_folder, tmp_path / "run", tracking="wandb")
    run = train(phantom_folder, tmp_path / "run", **TINY)
    with pytest.raises(StartUpRefused, match=r"Expected tracking with a training, got 'mlflow' with something else;"):
        evaluate(run, tracking="mlflow")
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(
        StartUpRefused, match=r"Expected mlflow and sqlalchemy and alembic .* without sqlalchemy; install"
    ):
        train(phantom_folder, tmp_path / "other", tracking="mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere")
    with pytest.raises(StartUpRefused, match=r"Expected mlflow for --tracking mlflow, .* without mlflow; install"):
        train(phantom_folder, tmp_path / "other", tracking="mlflow")
    assert not (tmp_path / "other").exists()
