"""Data in which each case annotates some classes, from the folder to the tables of an evaluation."""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from runs import evaluate, infer, table, train

import monai_extra_losses
from monai_extra_losses.bundle.case_report import EmptyAwareDice
from monai_extra_losses.bundle.components import loss_for_training
from monai_extra_losses.bundle.run_folder import ResultsFolder, RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.volume_cache import prepared_cases
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.engines import AnnotatedVoxelLoss
from monai_extra_losses.losses import FusedDiceCELoss, PartialLabelLoss
from monai_extra_losses.transforms import AnnotatedClassesd

REGIONS = {"whole": [1, 2], "organ": [1]}


def partly(source: Path, folder: Path, **entries: Any) -> Path:
    """The phantom, of which every second case annotates the organ alone: its lesions are background there."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "dataset.json").read_text()) | entries
    for number, entry in enumerate(content["training"]):
        if number % 2:
            entry["annotated"] = [1]
            file = folder / entry["label"]
            stored = nibabel.load(file)
            voxels = np.asarray(stored.dataobj)
            nibabel.save(nibabel.Nifti1Image(np.where(voxels == 2, 0, voxels).astype(np.uint8), stored.affine), file)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def data(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write into it."""
    return partly(phantom_folder, tmp_path_factory.mktemp("partial") / "data")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One epoch. Do not write into it."""
    return train(data, tmp_path_factory.mktemp("runs") / "trained")


def test_the_loss_is_wrapped_and_the_log_says_so(trained: RunFolder, data: Path) -> None:
    record = RunRecord.read(trained.record)
    assert record.partly_annotated
    assert record.loss == "FusedDiceCELoss"
    assert "training cases annotate a part of the classes: the loss is wrapped in PartialLabelLoss" in (
        trained.results.log.read_text()
    )
    loss = FusedDiceCELoss(to_onehot_y=True, softmax=True)
    wrapped = loss_for_training(loss, torch.device("cpu"), dataset_dir=data, regions=True)
    assert isinstance(wrapped, PartialLabelLoss)
    assert wrapped.loss is loss
    own = PartialLabelLoss(loss, exclusion=0.5)  # chosen by the user
    assert loss_for_training(own, torch.device("cpu"), dataset_dir=data, regions=True) is own


@pytest.mark.filterwarnings("error:PartialLabelLoss")
def test_the_wrapper_for_whole_data_is_told_of(phantom_folder: Path, data: Path, tmp_path: Path) -> None:
    for folder, whole in ((phantom_folder, True), (data, False)):
        run = train(folder, tmp_path / folder.parent.name, loss="@losses::partial_label")
        assert ("annotates all classes: PartialLabelLoss is the loss" in run.results.log.read_text()) is whole
        assert RunRecord.read(run.record).loss == "PartialLabelLoss"


def test_fully_annotated_data_are_trained_as_before(phantom_folder: Path) -> None:
    loss = FusedDiceCELoss(to_onehot_y=True, softmax=True)
    assert loss_for_training(loss, torch.device("cpu"), dataset_dir=phantom_folder, regions=True) is loss


def test_a_batch_of_the_training_carries_what_is_annotated(data: Path, tmp_path: Path) -> None:
    parser = ConfigParser()
    parser.read_config([str(monai_extra_losses.config_dir() / "train.yaml")])
    parser.update({"dataset_dir": str(data), "bundle_root": str(tmp_path / "run"), "batch_size": 4})
    setup = parser.get_parsed_content("setup")
    loader = parser.get_parsed_content("train::dataloader")
    known = {case["case"]: case["annotated"] for case in setup.training_cases}
    assert {tuple(v) for v in known.values()} == {(0, 1), (0, 1, 2)}
    for batch in loader:
        rows = torch.as_tensor(batch["label"].meta["annotated"]).tolist()
        expected = [[int(c in known[name]) for c in range(3)] for name in batch["case"]]
        assert rows == expected


def test_a_class_is_measured_where_it_is_annotated(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    evaluate(trained, output_dir=str(tmp_path / "eval"), split="all")
    out = ResultsFolder(tmp_path / "eval")
    annotated = {
        Path(entry["image"]).name.removesuffix(".nii.gz"): entry.get("annotated", [1, 2])
        for entry in json.loads((data / "dataset.json").read_text())["training"]
    }
    rows = table(out.cases_csv)
    measured = {(row["case"], row["label"]) for row in rows if row["case"] in annotated}
    names = {1: "organ", 2: "lesion"}
    assert measured == {(case, names[value]) for case, values in annotated.items() for value in values}
    lesions = next(row for row in table(out.summary_csv) if row["label"] == "lesion")
    assert int(lesions["cases"]) == sum(row["label"] == "lesion" for row in rows) < len(annotated)
    assert "cases: those that annotate the class" in out.log.read_text()


def test_inference_predicts_all_classes(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    infer(trained, data / "imagesTs", tmp_path / "out")
    assert sorted((tmp_path / "out").glob("*.nii.gz"))


def test_dice_of_a_class_that_is_not_annotated_is_undefined() -> None:
    label, prediction = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    label[:, :, :4], prediction[:, :, :4], prediction[:, :, 6:] = 1, 1, 2
    metric = EmptyAwareDice(num_classes=3)
    partly_known = MetaTensor(label[0], meta={"annotated": torch.tensor([1, 1, 0])})
    metric([prediction[0], prediction[1]], [partly_known, label[1]])
    assert metric.get_buffer().isnan().tolist() == [[False, True], [False, False]]
    assert metric.per_class().tolist() == [1.0, 0.0]  # invented where it is annotated


def test_regions_are_wrapped_by_channel(phantom_folder: Path, tmp_path: Path) -> None:
    folder = partly(phantom_folder, tmp_path / "data", regions=REGIONS)
    loss = FusedDiceCELoss(sigmoid=True)
    wrapped = loss_for_training(loss, torch.device("cpu"), dataset_dir=folder, regions=True)
    assert isinstance(wrapped, PartialLabelLoss)
    assert wrapped.mode == "sigmoid"
    run = train(folder, tmp_path / "run")
    assert RunRecord.read(run.record).partly_annotated
    evaluate(run, output_dir=str(tmp_path / "eval"), split="all")
    rows = table(ResultsFolder(tmp_path / "eval").cases_csv)
    assert len({r["case"] for r in rows}) > len({r["case"] for r in rows if r["label"] == "whole"})


def test_a_case_without_a_whole_region_is_named(phantom_folder: Path, tmp_path: Path) -> None:
    folder = partly(phantom_folder, tmp_path / "data", regions={"whole": [1, 2], "lesion": [2]})
    with pytest.raises(StartUpRefused, match="expected a region whose labels are all annotated in each case, got none"):
        train(folder, tmp_path / "run")


def test_a_class_that_no_training_case_annotates_is_refused(phantom_folder: Path, tmp_path: Path) -> None:
    folder = partly(phantom_folder, tmp_path / "data")
    content = json.loads((folder / "dataset.json").read_text())
    for number, entry in enumerate(content["training"]):
        entry["fold"] = number % 2  # those with lesions are in fold 0
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(
        StartUpRefused, match=r"expected each class to be annotated in some training case, got none for lesion"
    ):
        train(folder, tmp_path / "run", num_folds=None, fold=0)


def test_with_voxels_that_nobody_annotated(phantom_folder: Path, tmp_path: Path) -> None:
    folder = partly(phantom_folder, tmp_path / "data", ignore_label=255)
    wrapped = loss_for_training(
        FusedDiceCELoss(to_onehot_y=True, softmax=True), torch.device("cpu"), dataset_dir=folder, regions=True
    )
    assert isinstance(wrapped, PartialLabelLoss)
    assert wrapped.loss.ignore_index == 255
    regions = partly(phantom_folder, tmp_path / "regions", ignore_label=255, regions=REGIONS)
    outer = loss_for_training(FusedDiceCELoss(sigmoid=True), torch.device("cpu"), dataset_dir=regions, regions=True)
    assert isinstance(outer, AnnotatedVoxelLoss)
    assert isinstance(outer.loss.loss, PartialLabelLoss)


def test_a_foreign_loss_is_refused_in_a_sentence(data: Path) -> None:
    from monai.losses import DiceLoss

    with pytest.raises(StartUpRefused, match="expected a segmentation loss of this package"):
        loss_for_training(DiceLoss(to_onehot_y=True, softmax=True), torch.device("cpu"), dataset_dir=data, regions=True)


def test_another_annotation_is_another_run(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    folder, run = shutil.copytree(data, tmp_path / "data"), shutil.copytree(trained.root, tmp_path / "run")
    content = json.loads((folder / "dataset.json").read_text())
    content["training"] = [{k: v for k, v in entry.items() if k != "annotated"} for entry in content["training"]]
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(StartUpRefused, match="Expected partly_annotated True as in the run to resume, got False"):
        train(folder, run, resume=True, epochs=2)


def test_an_edited_list_does_not_come_out_of_the_disk_cache(data: Path, tmp_path: Path) -> None:
    from monai.transforms import Compose, LoadImaged

    file = str(sorted((data / "labelsTr").glob("*.nii.gz"))[0])
    transform = Compose([LoadImaged(["label", "image"]), AnnotatedClassesd("label", num_classes=3)])
    seen = []
    for annotated in ([0, 1], [0, 1, 2]):
        item = {"case": "a", "image": [file], "label": file, "annotated": annotated}
        cases = prepared_cases([item], transform, cache="disk", cache_dir=tmp_path, progress=False)
        seen.append(torch.as_tensor(cases[0]["label"].meta["annotated"]).tolist())
    assert seen == [[1, 1, 0], [1, 1, 1]]
