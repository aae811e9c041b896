"""A training with `lesions.yaml`, and the decision by hysteresis of its evaluation and inference."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai
import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from runs import evaluate, table, train

import monai_extra_losses
from monai_extra_losses.bundle.components import decision
from monai_extra_losses.bundle.hysteresis import hysteresis_option
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.running import run_configs
from monai_extra_losses.bundle.segmenting import SegmentationOfScoresd
from monai_extra_losses.bundle.workflow import SegmentationWorkflow
from monai_extra_losses.data import write_phantom
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.transforms import HysteresisKeep

CONFIGS = monai_extra_losses.config_dir()
LESIONS = ("train", "losses", "lesions")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("lesions") / "data", num_cases=6, num_test=1, shape=(32, 32, 32))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One epoch whose loss made no cells by itself. Do not write into it."""

    def made_in_a_step(*_: Any, **__: Any) -> None:
        raise AssertionError("the loss made cells by itself")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_extra_losses.losses.lesions.cells_of_regions", made_in_a_step)
        untried: dict[str, Any] = {"setup::check_loss": False}  # the try of the set-up makes them
        return train(data, tmp_path_factory.mktemp("runs") / "run", LESIONS, **untried)


def test_lesions_train_with_cells_made_once(trained: RunFolder) -> None:
    (row,) = table(trained.training_csv)
    assert {"train_loss_dice_ce", "train_loss_component_dice_ce"} <= row.keys()
    assert 0 < float(row["train_loss_component_dice_ce"]) < 10


@pytest.mark.parametrize("regions", [False, True])
def test_what_moves_the_label_moves_its_cells(data: Path, tmp_path: Path, regions: bool) -> None:
    """On the patches of the config: the step's own loss finds a component for every voxel of a class."""
    if regions:
        tree = tmp_path / "regions"
        tree.mkdir()
        content = json.loads((data / "dataset.json").read_text())
        values = sorted(int(value) for value in content["labels"] if int(value))
        content["regions"] = {"all": values, "last": values[-1:]}
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            (tree / folder).symlink_to(data / folder)
        (tree / "dataset.json").write_text(json.dumps(content))
        data = tree
    files = [str(CONFIGS / f"{name}.yaml") for name in LESIONS]
    options: dict[str, Any] = {"dataset_dir": str(data), "bundle_root": str(tmp_path / "run"), "num_folds": 3}
    workflow = SegmentationWorkflow(files, **options, patch_size=[16, 16, 16])
    workflow.initialize()
    dataset = workflow.parser.get_parsed_content("train::dataset")
    loss = workflow.parser.get_parsed_content("training_loss")
    monai.utils.set_determinism(seed=0)
    for number in [*range(len(dataset))] * 3:
        (item,) = dataset[number]
        label, cells = item["label"], item["cells"]
        assert cells.shape == (2, 16, 16, 16)
        assert torch.equal(cells.as_tensor(), cells.as_tensor().round())
        inside = label > 0 if regions else torch.cat([label == 1, label == 2])
        assert (cells[inside] > 0).all()
        target = {"label": label[None], "cells": cells[None]}
        assert loss(torch.zeros(1, 2 if regions else 3, 16, 16, 16), target).isfinite()


# ---- hysteresis ----


def test_the_decision_is_that_of_the_transform() -> None:
    scores = MetaTensor(3 * torch.randn(3, 9, 8, 7), affine=2 * torch.eye(4, dtype=torch.float64))
    thresholds = (0.25, 0.7)
    kept = HysteresisKeep(*thresholds)(scores.as_tensor().softmax(0))
    of_classes = decision("pred", None, thresholds)({"pred": scores})["pred"]
    assert torch.equal(of_classes.as_tensor()[0].long(), kept.argmax(0))
    assert torch.equal(of_classes.affine, scores.affine)
    assert not torch.equal(of_classes.as_tensor(), decision("pred", None)({"pred": scores})["pred"].as_tensor())
    regions = {"whole": (1, 2), "core": (2,), "rest": (3,)}
    own = HysteresisKeep(*thresholds, include_background=True)(scores.as_tensor().sigmoid()) > 0
    of_regions = decision("pred", regions, thresholds)({"pred": scores})["pred"]
    assert torch.equal(of_regions.as_tensor() > 0, own)
    written: dict[str, Any] = {"labels": [0, 1, 2], "written": [0, 10, 20]}
    maps = SegmentationOfScoresd("pred", **written, probabilities="p", hysteresis=thresholds)({"pred": scores})
    assert torch.equal(maps["pred"].as_tensor()[0], 10 * kept.argmax(0))
    torch.testing.assert_close(maps["p"].as_tensor(), scores.as_tensor().softmax(0))  # are what they were


def test_evaluation_and_inference_take_thresholds(
    trained: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an untrained network: thresholds that nothing passes leave nothing, those that all pass leave everything."""
    volumes = {}
    for name, thresholds in (("nothing", "[0.99, 0.999]"), ("usual", None), ("much", [0.0, 0.01])):
        evaluate(trained, output_dir=str(tmp_path / name), overlays=False, hysteresis=thresholds)
        rows = table(tmp_path / name / "cases.csv")
        volumes[name] = sum(float(row["prediction_ml"]) for row in rows)
        assert ("Predictions by hysteresis: what is above 0" in capsys.readouterr().out) == (thresholds is not None)
    assert volumes["nothing"] == 0
    assert volumes["much"] > volumes["usual"]
    options = {"workflow_type": "infer", "bundle_root": str(trained.root), "input": str(data / "imagesTs")}
    run_configs(("inference",), **options, output_dir=str(tmp_path / "out"), hysteresis=[0.99, 0.999])
    (file,) = (tmp_path / "out").glob("*_seg.nii.gz")
    assert not np.asarray(nibabel.load(file).dataobj).any()
    with pytest.raises(StartUpRefused, match=r"got one of hysteresis \[0\.99, 0\.999\] instead of null"):
        run_configs(("inference",), **options, output_dir=str(tmp_path / "out"))


def test_wrong_thresholds_are_refused() -> None:
    assert hysteresis_option("hysteresis", None) is None
    assert hysteresis_option("hysteresis", "[0.25, 0.7]") == (0.25, 0.7)
    for wrong in ("[0.7, 0.25]", 0.5, [0.1], "much"):
        with pytest.raises(StartUpRefused, match="Expected hysteresis to be two numbers, the lower one first"):
            hysteresis_option("hysteresis", wrong)
    for wrong in ([-0.1, 0.5], [0.5, 1.0]):
        with pytest.raises(StartUpRefused, match="Expected hysteresis to be two probabilities below 1, got"):
            hysteresis_option("hysteresis", wrong)


def test_a_missing_package_is_one_sentence(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cc3d", None)
    sentence = r"^Expected connected-components-3d, .* got none; install it: pip install connected-components-3d, or"
    with pytest.raises(StartUpRefused, match=sentence):
        hysteresis_option("hysteresis", [0.25, 0.7])
    with pytest.raises(StartUpRefused, match=sentence):
        train(data, tmp_path / "run", LESIONS)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun")
def test_two_processes_train_with_cells_and_gather_the_lesions(data: Path, trained: RunFolder, tmp_path: Path) -> None:
    def by_two(*words: object) -> None:
        start = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "--", "monai_extra_losses")
        subprocess.run(
            [sys.executable, "-m", *start, *map(str, words)],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        )

    quick = ("--epochs", 1, "--num_folds", 3, "--channels", "[4, 8, 16]", "--batch_size", 1)
    by_two("train", "--data", data, "--bundle_root", tmp_path / "run", "--with", "lesions", *quick)
    assert len(table(RunFolder(tmp_path / "run").training_csv)) == 1
    options = {"overlays": False, "metrics": "[lesions]"}
    evaluate(trained, output_dir=str(tmp_path / "one"), **options)
    by_two(
        *("evaluate", "--bundle_root", trained.root, "--output_dir", tmp_path / "two"),
        *(word for name, value in options.items() for word in (f"--{name}", value)),
    )
    for name in ("cases.csv", "lesions.csv"):
        assert table(tmp_path / "two" / name) == table(tmp_path / "one" / name)
