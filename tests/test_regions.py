"""Overlapping regions: what the data set declares, the transform, the losses that can, and a training end to end."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from runs import evaluate, table, train

import monai_extra_losses
from monai_extra_losses.bundle.case_report import EmptyAwareDice, masks_of
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.training import TrainingSetUp
from monai_extra_losses.bundle.workflow import SegmentationWorkflow
from monai_extra_losses.data import DatasetError, read_case_list
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.doctor.findings import examine
from monai_extra_losses.losses import CategoricalHingeLoss, CrossEntropyLoss, FusedDiceLoss
from monai_extra_losses.transforms import LabelsToRegions, LabelsToRegionsd

CONFIGS = monai_extra_losses.config_dir()
TABLE = yaml.safe_load((CONFIGS / "losses.yaml").read_text())["losses"]
REGIONS = {"whole": [1, 2], "lesion": [2]}  # of the phantom's organ and the lesions in it
ONLY_CLASSES = {"categorical_hinge"}


def declare(folder: Path, **entries: Any) -> Path:
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | entries))
    return folder


@pytest.fixture(scope="module")
def region_folder(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom with regions. Do not write into it."""
    folder = tmp_path_factory.mktemp("regions") / "data"
    shutil.copytree(phantom_folder, folder)
    return declare(folder, regions=REGIONS)


# ---- the declaration ----


def test_regions_are_read_from_the_declaration(region_folder: Path, phantom_folder: Path) -> None:
    assert read_case_list(region_folder).regions == {"whole": (1, 2), "lesion": (2,)}
    assert read_case_list(phantom_folder).regions is None


@pytest.mark.parametrize(
    ("regions", "sentence"),
    [
        ({"whole": [1, 7]}, r"expected declared label values .* in the region 'whole' \(1, 2\), got 7"),
        ({"whole": [0, 1]}, r"other than the background in the region 'whole' \(1, 2\), got 0"),
        ({"whole": ["1"]}, r"in the region 'whole' \(1, 2\), got \"1\""),
        ({"whole": []}, r"expected label values in the region 'whole', got \[\]"),
        ({"whole": 1}, "expected label values in the region 'whole', got 1"),
        ({}, "expected an object under `regions`, got {}"),
        ([1, 2], r"expected an object under `regions`, got \[1, 2\]"),
    ],
)
def test_regions_that_cannot_be_are_one_sentence(
    phantom_folder: Path, tmp_path: Path, regions: Any, sentence: str
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(phantom_folder, folder)
    with pytest.raises(DatasetError, match=sentence):
        read_case_list(declare(folder, regions=regions))


# ---- the transform ----


def test_a_voxel_is_in_every_region_that_has_its_label() -> None:
    label = MetaTensor(torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    regions = LabelsToRegionsd(keys="label", regions={"whole": [1, 2, 3], "core": [3, 2], "enhancing": [3]})(
        {"label": label, "case": "a"}
    )["label"]
    assert regions.dtype == torch.uint8
    assert regions.tolist() == [[[0, 1], [1, 1]], [[0, 0], [1, 1]], [[0, 0], [0, 1]]]
    torch.testing.assert_close(regions.affine, label.affine)
    assert LabelsToRegions([[300]])(np.array([[300, 44]], dtype=np.uint16)).tolist() == [[1, 0]]


def test_the_transform_refuses_what_is_no_label_map_and_no_region() -> None:
    with pytest.raises(ValueError, match=r"expected a label map \(1, \*spatial\), got shape \(2, 4\)"):
        LabelsToRegions([[1]])(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="expected regions of one label and more each"):
        LabelsToRegions({"whole": []})


# ---- measuring ----


def test_the_validation_dice_of_regions_is_that_of_each_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(3, 2, 6, 6, 6, generator=generator) > 0.5 for _ in range(2))
    target[0, 1] = prediction[1, 1] = False  # invented in the first case, missed in the second
    ours, theirs = EmptyAwareDice(2, multi_label=True), DiceMetric(include_background=True, reduction="none")
    expected = theirs(prediction.float(), target.float())
    expected[0, 1] = 0.0  # MONAI leaves an invented region out
    torch.testing.assert_close(ours(prediction.float(), target.float()), expected)
    torch.testing.assert_close(ours.per_class(), expected.mean(dim=0))


def test_masks_of_labels_and_of_regions() -> None:
    names = {1: "whole", 2: "lesion"}
    label = np.array([[0, 1, 2]])
    assert {n: m.tolist() for n, m in masks_of(label, names).items()} == {
        1: [False, True, False],
        2: [False, False, True],
    }
    regions = np.array([[0, 1, 1], [0, 0, 1]])
    assert {n: m.tolist() for n, m in masks_of(regions, names).items()} == {
        1: [False, True, True],
        2: [False, False, True],
    }


# ---- losses ----


def set_up(folder: Path, run: Path, loss: torch.nn.Module, **options: Any) -> TrainingSetUp:
    defaults = ConfigParser.load_config_file(str(CONFIGS / "train.yaml"))
    values = {name: defaults[name] for name in defaults["setup"] if name in defaults}
    values |= {"dataset_dir": folder, "bundle_root": run, "num_folds": 3, "device": torch.device("cpu")}
    return TrainingSetUp(**{**values, "loss": loss, **options})


@pytest.mark.parametrize("name", TABLE)
def test_every_loss_of_the_table_trains_regions_or_is_refused(region_folder: Path, tmp_path: Path, name: str) -> None:
    parser = ConfigParser.load_config_files([str(CONFIGS / f"{file}.yaml") for file in ("train", "losses")])
    parser = ConfigParser(parser)
    parser.update({"loss": f"@losses::{name}", "dataset_dir": str(region_folder)})
    if name == "topological_interaction":
        with pytest.raises(RuntimeError) as refused:
            parser.get_parsed_content("loss")
        assert "expected sigmoid=False, got True: regions that overlap" in repr(refused.value.__cause__)
        return
    loss = parser.get_parsed_content("loss")
    if name in ONLY_CLASSES:
        with pytest.raises(
            StartUpRefused, match="in which the channels exclude each other; choose a loss such as dice"
        ):
            set_up(region_folder, tmp_path / "run", loss)
        return
    assert set_up(region_folder, tmp_path / "run", loss).record.num_classes == 2
    # a step against the gradient lowers the loss
    scores = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.zeros(2, 2, 8, 8, 8, dtype=torch.uint8)
    target[:, 0, 2:7, 2:7, 2:7] = target[:, 1, 3:5, 3:5, 3:5] = 1
    value = loss(scores, target)
    value.backward()
    assert scores.grad is not None
    assert loss(scores.detach() - 0.01 * scores.grad / scores.grad.norm(), target) < value


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (CategoricalHingeLoss(), "got CategoricalHingeLoss, in which the channels exclude each other"),
        (CrossEntropyLoss(softmax=True), "got CrossEntropyLoss, in which the channels exclude each other"),
        (CrossEntropyLoss(sigmoid=True, to_onehot_y=True), r"got CrossEntropyLoss \(.*; choose a loss such as dice_ce"),
        (
            FusedDiceLoss(sigmoid=True, include_background=False),
            "FusedDiceLoss, which leaves one out; .*include_backgr",
        ),
    ],
)
def test_a_loss_that_cannot_train_regions_is_one_sentence(
    region_folder: Path, tmp_path: Path, loss: torch.nn.Module, sentence: str
) -> None:
    with pytest.raises(StartUpRefused, match=sentence):
        set_up(region_folder, tmp_path / "run", loss)


def test_regions_can_be_ignored(region_folder: Path, tmp_path: Path) -> None:
    record = set_up(region_folder, tmp_path / "run", DiceLoss(to_onehot_y=True, softmax=True), regions="False").record
    assert (record.regions, record.num_classes) == (None, 3)
    with pytest.raises(StartUpRefused, match="Expected regions to be True or False, got 'some'"):
        set_up(region_folder, tmp_path / "run", DiceLoss(), regions="some")


# ---- a training ----


def test_regions_train_and_are_evaluated_by_name(region_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(region_folder, folder)
    # label values that are no channels, an overlay with maps, and patches smaller than the volume
    import nibabel

    declare(folder, labels={"0": "background", "4": "organ", "9": "lesion"}, regions={"whole": [4, 9], "lesion": [9]})
    for file in folder.glob("labels*/*"):
        volume = nibabel.load(file)
        voxels = np.array([0, 4, 9], dtype=np.uint8)[np.asarray(volume.dataobj)]
        nibabel.save(nibabel.Nifti1Image(voxels, volume.affine), file)
    learning = {"epochs": 20, "val_interval": 10, "learning_rate": 0.01, "batch_size": 2, "channels": [8, 16, 32]}
    run = train(folder, tmp_path / "run", patch_size=[32, 32, 16], **learning)
    record = RunRecord.read(run.record)
    assert record.regions == {"whole": (4, 9), "lesion": (9,)}
    assert record.region_classes == {"whole": (1, 2), "lesion": (2,)}
    assert (record.num_classes, record.foreground) == (2, {1: "whole", 2: "lesion"})
    last = table(run.training_csv)[-1]
    assert float(last["val_dice_whole"]) > 0.5
    evaluate(run)
    summary = {row["label"]: row for row in table(run.results.summary_csv)}
    assert list(summary) == ["whole", "lesion", "mean"]
    assert float(summary["whole"]["dice_mean"]) == pytest.approx(float(last["val_dice_whole"]), abs=0.05)
    # the whole holds the lesion
    by_case = {(row["case"], row["label"]): float(row["target_ml"]) for row in table(run.results.cases_csv)}
    assert all(by_case[case, "whole"] > by_case[case, "lesion"] for case in record.validation)
    assert len(list(run.results.overlays.glob("*.png"))) >= 2
    assert run.curves.exists()


def test_patches_are_centred_on_labels_and_targets_are_regions(region_folder: Path, tmp_path: Path) -> None:
    files = [str(CONFIGS / f"{name}.yaml") for name in ("train", "losses", "boundary_schedule", "boundary_maps")]
    options = {"dataset_dir": str(region_folder), "bundle_root": str(tmp_path / "run"), "num_folds": 3}
    workflow = SegmentationWorkflow(files, **options, patch_size=[16, 16, 16])
    workflow.initialize()
    dataset = workflow.parser.get_parsed_content("train::dataset")
    with_organ = with_background = 0
    for number in [*range(len(dataset))] * 6:
        (item,) = dataset[number]
        assert set(item) == {"case", "image", "label", "distance"}
        assert item["label"].shape == item["distance"].shape == (2, 16, 16, 16)
        assert (item["label"][1] <= item["label"][0]).all()
        centre = item["label"][0, 8, 8, 8]
        with_organ, with_background = with_organ + int(centre == 1), with_background + int(centre == 0)
    assert with_organ > 4
    assert with_background > 4
    assert workflow.check_properties() == []


@pytest.mark.parametrize("regions", [REGIONS, {"whole": [1, 2]}])
def test_the_doctor_knows_regions(region_folder: Path, tmp_path: Path, regions: dict[str, list[int]]) -> None:
    folder = tmp_path / "data"
    shutil.copytree(region_folder, folder)
    declare(folder, regions=regions)
    files = [str(CONFIGS / f"{name}.yaml") for name in ("train", "losses")]
    findings = list(examine(files, dataset_dir=str(folder), num_folds=3, channels=[4, 8], num_res_units=0))
    assert not [finding.text for finding in findings if finding.level == "problem"]
    said = "\n".join(finding.text for finding in findings)
    assert f"Each region ({', '.join(regions)}) has its channel of the network" in said
    assert "whole " in said
    assert "a softmax makes the classes compete" not in said
