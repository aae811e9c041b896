"""A training on vessels with `vessels.yaml`, and the metrics of its evaluation."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import monai
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from runs import evaluate, table, train
from skimage.morphology import skeletonize

import monai_extra_losses
from monai_extra_losses.bundle.case_report import CaseReport
from monai_extra_losses.bundle.case_tables import summarise
from monai_extra_losses.bundle.further_metrics import metric_sets_of
from monai_extra_losses.bundle.metric_set import VoxelGrid
from monai_extra_losses.bundle.options import MetricSetName, metric_sets
from monai_extra_losses.bundle.run_folder import ResultsFolder, RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.vessel_metrics import vessel_metrics
from monai_extra_losses.bundle.workflow import SegmentationWorkflow
from monai_extra_losses.data import write_phantom
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.ops.merging import ANNOTATED
from monai_extra_losses.transforms import Skeleton

CONFIGS = monai_extra_losses.config_dir()
VESSELS = ("train", "losses", "vessels")
NAMES = ["cl_dice", "betti_0_error", "betti_1_error"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vessels") / "data"
    return write_phantom(folder, kind="vessels", num_cases=6, num_test=1, shape=(32, 32, 32))


# ---- training ----


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One epoch whose loss made no skeleton by itself. Do not write into it."""

    def made_in_a_step(*_: Any, **__: Any) -> None:
        raise AssertionError("the loss made skeletons by itself")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_extra_losses.losses.vessels.tubes_of_labels", made_in_a_step)
        untried: dict[str, Any] = {"setup::check_loss": False}  # the try of the set-up makes them
        return train(data, tmp_path_factory.mktemp("runs") / "run", VESSELS, **untried)


def test_vessels_train_with_skeletons_made_once(trained: RunFolder) -> None:
    (row,) = table(trained.training_csv)
    assert {"train_loss_dice", "train_loss_cross_entropy", "train_loss_skeleton_recall"} <= row.keys()
    assert 0 < float(row["train_loss_skeleton_recall"]) < 1
    assert RunRecord.read(trained.record).metrics == ("vessels",)


@pytest.mark.parametrize("union", [False, True])
def test_what_moves_the_label_moves_its_tubes(data: Path, tmp_path: Path, union: bool) -> None:
    """On the patches of the config."""
    files = [str(CONFIGS / f"{name}.yaml") for name in VESSELS]
    options: dict[str, Any] = {"dataset_dir": str(data), "bundle_root": str(tmp_path / "run"), "num_folds": 3}
    workflow = SegmentationWorkflow(files, **options, patch_size=[16, 16, 16], union=union)
    workflow.initialize()
    dataset = workflow.parser.get_parsed_content("train::dataset")
    monai.utils.set_determinism(seed=0)
    of_all = differ = 0
    for number in [*range(len(dataset))] * 4:
        (item,) = dataset[number]
        label, tubes = item["label"][0].as_tensor(), item["skeleton"][0].as_tensor()
        assert tubes.shape == label.shape == (16, 16, 16)
        assert set(tubes.unique().tolist()) <= {0, 1}  # nearest, as the label
        assert (label[tubes > 0] > 0).all()
        both = [Skeleton(union=of_both)(item["label"]) for of_both in (False, True)]  # a patch has ends of its own
        own, other = ((tubes != one[0].as_tensor()).sum() for one in (both if not union else both[::-1]))
        differ += int(own - other)
        of_all += int(tubes.sum())
    assert of_all > 1000
    assert differ < 0, "the tubes are like those of the other kind"


def test_another_loss_with_the_overlay_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(StartUpRefused, match="expected a loss that reads skeleton, got CompoundLoss"):
        train(tmp_path / "no data", tmp_path / "run", VESSELS, loss="centerline_dice")


def test_without_the_extra_a_training_ends_in_a_sentence_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.morphology", None)
    with pytest.raises(StartUpRefused, match=r"[Ee]xpected scikit-image, .* got none; install it: pip install"):
        train(data, tmp_path / "run", VESSELS)
    with pytest.raises(StartUpRefused, match=r"[Ee]xpected scikit-image, .* got none; install it: pip install"):
        train(data, tmp_path / "run", VESSELS, metrics="[]")
    assert not (tmp_path / "run" / "models" / "model.pt").exists()


# ---- evaluation ----


def test_an_evaluation_measures_what_the_run_says(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"overlays": False, "split": "all"}
    evaluate(trained, output_dir=str(tmp_path / "eval"), **options)
    results = ResultsFolder(tmp_path / "eval")
    said = capsys.readouterr().out
    for heading in ("clDice", "Betti-0 error", "Betti-1 error (lower is better): the same of loops."):
        assert heading in said
    cases = table(results.cases_csv)
    assert list(cases[0])[-3:] == NAMES
    assert len(cases) == 14
    values = np.array([[float(row[name] or "nan") for name in NAMES] for row in cases])
    assert (values[:, 1] == values[:, 1].round()).all()
    summary = table(results.summary_csv)
    assert [row["label"] for row in summary] == ["artery", "vein", "mean"]
    of_artery = [float(row["betti_0_error"]) for row in cases if row["label"] == "artery"]
    assert float(summary[0]["betti_0_error_mean"]) == pytest.approx(np.mean(of_artery), rel=1e-5)
    assert float(summary[0]["betti_0_error_sd"]) == pytest.approx(np.std(of_artery, ddof=1), rel=1e-5)
    evaluate(trained, output_dir=str(tmp_path / "less"), metrics="[]", **options)
    assert "cl_dice" not in table(ResultsFolder(tmp_path / "less").cases_csv)[0]
    assert "clDice" not in capsys.readouterr().out


def _line(*shape: int) -> np.ndarray:
    """A tube of 3 x 3 voxels along the last axis."""
    mask = np.zeros(shape, dtype=bool)
    mask[4:7, 4:7, 2:-2] = True
    return mask


RING = np.zeros((11, 11, 5), dtype=bool)
RING[2:9, 2:9, 1:4] = True
RING[4:7, 4:7] = False
RADIUS = np.sqrt(sum((axis - 6) ** 2 for axis in np.indices((13, 13, 13))))


def _measured(prediction: np.ndarray, target: np.ndarray) -> list[float]:
    measured = vessel_metrics(prediction, target)
    assert list(measured) == NAMES
    return list(measured.values())


def test_a_cut_tube_has_a_piece_too_many() -> None:
    tube = _line(11, 11, 30)
    cut = tube.copy()
    cut[..., 14:16] = False
    assert _measured(tube, tube) == [1, 0, 0]
    dice, pieces, loops = _measured(cut, tube)
    assert (pieces, loops) == (1, 0)
    skeleton = skeletonize(tube).astype(bool)
    sensitivity = cut[skeleton].mean()  # the skeleton of each half lies in the tube
    assert sensitivity < 1
    assert dice == pytest.approx(2 * sensitivity / (1 + sensitivity))


def test_two_tubes_a_ring_and_a_hollow_ball() -> None:
    two = _line(11, 20, 30) | np.roll(_line(11, 20, 30), 9, axis=1)
    assert _measured(_line(11, 20, 30), two)[1:] == [1, 0]
    opened = RING.copy()
    opened[4:7, 7:] = False
    assert _measured(opened, RING)[1:] == [0, 1]
    assert _measured(RING, opened)[1:] == [0, 1]
    ball, hollow = RADIUS < 5.5, (RADIUS < 5.5) & (RADIUS > 2.5)
    assert _measured(hollow, ball)[1:] == [0, 0], "an enclosed cavity is neither a piece nor a loop"


def test_thickness_costs_no_centerline_dice() -> None:
    tube = _line(13, 13, 30)
    thick = tube | np.roll(tube, 1, 0) | np.roll(tube, -1, 0)
    assert _measured(thick, tube)[0] > 0.9
    assert 2 * (thick & tube).sum() / (thick.sum() + tube.sum()) < 0.8


def test_missed_invented_and_undefined() -> None:
    tube, nothing = _line(20, 11, 30), np.zeros((20, 11, 30), dtype=bool)
    assert all(math.isnan(value) for value in _measured(nothing, nothing))
    assert _measured(nothing, tube) == [0, 1, 0]
    assert _measured(tube, nothing) == [0, 1, 0]
    aside = np.roll(tube, 9, axis=0)
    assert _measured(aside, tube) == [0, 0, 0]
    undefined = {"case": "a", "label": "vessel", **dict.fromkeys(NAMES, math.nan)}
    measured = {"case": "b", "label": "vessel", **dict(zip(NAMES, (0.5, 3, 1), strict=True))}
    (vessel, _) = summarise([undefined, measured], ["vessel"], NAMES)
    assert [vessel[f"{name}_mean"] for name in NAMES] == [0.5, 3, 1], "what is undefined is in no mean"
    assert [vessel[f"{name}_undefined"] for name in NAMES] == [1, 1, 1]


def test_what_has_no_skeleton_is_its_own() -> None:
    cube = np.zeros((8, 8, 8), dtype=bool)
    cube[2:4, 2:4, 2:4] = True
    assert not skeletonize(cube).any()
    assert _measured(cube, cube) == [1, 0, 0]


def test_voxels_and_classes_without_annotation_are_measured_nowhere(tmp_path: Path) -> None:
    tube = _line(11, 11, 30)
    label, predicted = tube.astype(np.int64), tube.astype(np.int64)
    label[..., 20:] = 255
    predicted[..., 24:26] = 0  # a cut that nobody looked at
    predicted[:3, :3] = 2
    volumes = {key: MetaTensor(torch.from_numpy(v)[None]) for key, v in (("label", label), ("pred", predicted))}
    volumes["label"].meta[ANNOTATED] = np.array([1, 1, 0])
    report = CaseReport(
        folder=ResultsFolder(tmp_path),
        labels={1: "artery", 2: "vein"},
        surface_tolerance_mm=1.0,
        overlays=False,
        ignore_index=255,
        metrics=["vessels"],
    )
    state = SimpleNamespace(batch=[{"case": "one"}], output=[{**volumes, "picture": volumes["label"]}])
    report._measure(SimpleNamespace(state=state))  # type: ignore[arg-type]
    (row,) = report.rows
    assert row["label"] == "artery"
    assert [row[name] for name in NAMES] == [1, 0, 0]


def test_every_metric_of_a_set_is_measured() -> None:
    tube = _line(11, 11, 30)
    grid = VoxelGrid((1.0, 1.0, 1.0), np.eye(4))
    for chosen in metric_sets_of(get_args(MetricSetName)):
        measured = chosen.of_case({"calibration": [(0.1, 0.2)]}, 1, tube, tube, grid)
        assert list(measured.numbers) == [metric.name for metric in chosen.metrics]
        for metric in chosen.metrics:
            better = {True: " (higher is better)", False: " (lower is better)", None: ""}[metric.higher_is_better]
            assert f"{metric.heading}{better}: {metric.meaning}" in chosen.legend()


@pytest.mark.parametrize("given", ["vessels", "[vessels]", ["vessels"], ("vessels", "vessels"), '["vessels"]'])
def test_sets_of_metrics_are_named_as_one_likes(given: Any) -> None:
    assert metric_sets("metrics", given) == ("vessels",)


def test_sets_go_together_each_once() -> None:
    assert metric_sets("metrics", "[lesions, vessels, lesions]") == ("lesions", "vessels")


@pytest.mark.parametrize("given", ["lesion", "[vessels, lesion]", 3, [None]])
def test_another_set_of_metrics_is_refused(given: Any) -> None:
    with pytest.raises(
        StartUpRefused, match="Expected metrics to be a list of vessels, lesions, calibration, or null, got"
    ):
        metric_sets("metrics", given)
