"""Voxels without annotation: their label is declared, and reaches no loss, no patch centre, no measure, no result."""

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai.losses
import nibabel
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Events
from marks import slow_but
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from runs import evaluate, infer, table, train
from torch import Tensor, nn

import monai_extra_losses
from monai_extra_losses import CompoundLoss, CrossEntropyLoss, FusedDiceLoss
from monai_extra_losses.bundle.case_report import EmptyAwareDice, case_metrics
from monai_extra_losses.bundle.components import loss_for_training
from monai_extra_losses.bundle.ignored_voxels import counts_ignored
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.training import TrainingSetUp
from monai_extra_losses.bundle.workflow import SegmentationWorkflow
from monai_extra_losses.cli import main
from monai_extra_losses.data import DatasetError, check_cases, read_case_list
from monai_extra_losses.data.check_report import data_report
from monai_extra_losses.data.declared import declared_ignore_label
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.ignore_label import value_in_memory
from monai_extra_losses.data.label_ids import new_label_ids, renumber
from monai_extra_losses.doctor.findings import examine
from monai_extra_losses.engines import LABEL, AnnotatedVoxelLoss, PrepareBatchMaps
from monai_extra_losses.transforms import LabelsToRegions, SignedDistance

CONFIGS = monai_extra_losses.config_dir()
TABLE = yaml.safe_load((CONFIGS / "losses.yaml").read_text())["losses"]
REGIONS = {"whole": [1, 2], "lesion": [2]}
LABELS = {"0": "background", "1": "organ", "2": "lesion"}
IGNORED = 8  # slices of a phantom from here on are without annotation, of 16


def declare(folder: Path, **entries: Any) -> Path:
    content = json.loads((folder / "dataset.json").read_text()) | entries
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


def rewrite(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    stored = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(change(np.asarray(stored.dataobj)), stored.affine), file)


def partly(voxels: np.ndarray, value: int = 255, dtype: type | None = None) -> np.ndarray:
    """Without annotation in the upper half."""
    voxels = voxels.astype(dtype or (np.uint8 if 0 <= value < 256 else np.int16))
    voxels[:, :, IGNORED:] = value
    return voxels


def partly_annotated(source: Path, folder: Path, value: int = 255, **entries: Any) -> Path:
    shutil.copytree(source, folder)
    for file in sorted(folder.glob("labelsTr/*"))[::2] + sorted(folder.glob("labelsTs/*")):
        rewrite(file, lambda voxels: partly(voxels, value))
    return declare(folder, **({"ignore_label": value} | entries))


@pytest.fixture(scope="module")
def data(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom, of which every second case is annotated in its lower half alone (255). Do not write into it."""
    return partly_annotated(phantom_folder, tmp_path_factory.mktemp("ignored") / "data")


@pytest.fixture(scope="module")
def regions(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with regions, and 3 as ignore label, which is no class and a possible number of regions."""
    return partly_annotated(phantom_folder, tmp_path_factory.mktemp("regions") / "data", value=3, regions=REGIONS)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One epoch. Do not write into it."""
    return train(data, tmp_path_factory.mktemp("runs") / "trained")


# ---- the declaration ----


@pytest.mark.parametrize(
    ("entries", "ignored"),
    [
        ({"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}}, 3),  # nnU-Net
        ({"labels": LABELS | {"255": "ignore"}}, 255),  # Decathlon
        ({"labels": LABELS | {"-1": "Ignore"}}, -1),
        ({"labels": LABELS, "ignore_label": 255}, 255),
        ({"labels": LABELS, "ignore_label": -1}, -1),
        ({"labels": LABELS | {"7": "unknown"}, "ignore_label": 7}, 7),
        ({"labels": {"background": 0, "organ": 1, "lesion": 2, "unknown": 7}, "ignore_label": 7}, 7),
        ({"labels": LABELS | {"9": "ignore"}, "ignore_label": 9}, 9),
        ({"labels": LABELS, "ignore_label": None}, None),
        ({"labels": LABELS}, None),
    ],
)
def test_the_ignore_label_is_read_and_is_no_class(
    phantom_folder: Path, tmp_path: Path, entries: dict[str, Any], ignored: int | None
) -> None:
    folder = declare(shutil.copytree(phantom_folder, tmp_path / "data"), **entries)
    case_list = read_case_list(folder)
    assert case_list.ignore_label == ignored
    assert case_list.labels == {0: "background", 1: "organ", 2: "lesion"}
    assert declared_ignore_label(folder) == (None if ignored is None else (ignored, ignored))


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"ignore_label": "all"}, r"expected `ignore_label` to be a whole number such as 255 or -1, got \"all\""),
        ({"ignore_label": 2.5}, r"expected `ignore_label` to be a whole number .*, got 2\.5"),
        ({"ignore_label": True}, "expected `ignore_label` to be a whole number .*, got true"),
        ({"ignore_label": 1 << 63}, "expected `ignore_label` to be a whole number .*, got 9223372036854775808"),
        ({"labels": LABELS | {"x": "ignore"}}, r"expected `ignore` in `labels` to be a whole number .*, got \"x\""),
        ({"ignore_label": 0}, "expected an ignore label other than 0, which is the background, got 0"),
        ({"labels": LABELS | {"255": "ignore"}, "ignore_label": 3}, "expected one ignore label, got 3 and 255"),
        ({"ignore_label": 1, "labels": {"0": "background", "1": "organ"}}, "and one more value at least in `labels`"),
        ({"ignore_label": 255, "labels": [1]}, r"expected an object under `labels`, got \[1\]"),
        ({"ignore_label": 2, "regions": REGIONS}, r"in the region 'whole' \(1\), got 2"),
    ],
)
def test_a_declaration_that_cannot_be_is_one_sentence(
    phantom_folder: Path, tmp_path: Path, entries: dict[str, Any], sentence: str
) -> None:
    folder = declare(shutil.copytree(phantom_folder, tmp_path / "data"), **entries)
    with pytest.raises(DatasetError, match=sentence):
        read_case_list(folder)
    assert declared_ignore_label(folder) is None


@pytest.mark.parametrize(
    ("ignored", "classes", "value"),
    [(255, 3, 255), (3, 3, 3), (2, 3, -1), (-1, 3, -1), (-7, 3, -7), (1 << 24, 3, 1 << 24), ((1 << 24) + 1, 3, -1)],
)
def test_in_memory_the_ignore_label_is_no_class_and_exact(ignored: int, classes: int, value: int) -> None:
    assert value_in_memory(ignored, classes) == value
    assert float(torch.tensor(float(value))) == value
    assert value_in_memory(None, classes) is None


# ---- check ----


@pytest.mark.parametrize("value", [255, -1, -1000, 65535])
def test_an_undeclared_value_names_the_way_out(phantom_folder: Path, tmp_path: Path, value: int) -> None:
    folder = shutil.copytree(phantom_folder, tmp_path / "data")
    rewrite(folder / "labelsTr/phantom_001.nii.gz", lambda voxels: partly(voxels, value, np.int32))
    way_out = rf'if {value} marks voxels without annotation, write "ignore_label": {value} into .*dataset\.json, and'
    with pytest.raises(DatasetError, match=rf"expected the declared label values \(.*\), got {value} .*; {way_out}"):
        check_cases(read_case_list(folder))
    check_cases(read_case_list(declare(folder, ignore_label=value)))
    (folder / "dataset.json").unlink()
    with pytest.raises(DatasetError, match=rf"got .*{value}.*; {way_out}"):
        check_cases(read_case_list(folder))


def test_other_undeclared_values_are_no_ignore_label(phantom_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(phantom_folder, tmp_path / "data")
    rewrite(folder / "labelsTr/phantom_001.nii.gz", lambda voxels: partly(voxels, 3))
    with pytest.raises(DatasetError, match="got 3 ") as caught:
        check_cases(read_case_list(folder))
    assert "ignore_label" not in str(caught.value)


def test_a_label_without_annotation_is_refused(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    rewrite(folder / "labelsTr/phantom_001.nii.gz", lambda voxels: np.full_like(voxels, 255))
    with pytest.raises(
        DatasetError, match=r"phantom_001.nii.gz: expected voxels with annotation, got the ignore label"
    ):
        check_cases(read_case_list(folder))


def test_the_statistics_are_those_of_the_annotated_voxels(data: Path, phantom_folder: Path) -> None:
    report, whole = data_report(data), data_report(phantom_folder)
    labels = [np.asarray(nibabel.load(file).dataobj) for file in sorted(data.glob("labelsTr/*"))]
    ignored, every = sum((label == 255).sum() for label in labels), sum(label.size for label in labels)
    assert report.statistics.ignored_cases == 3
    assert report.statistics.ignored_share == pytest.approx(ignored / every)
    for entry in report.statistics.classes:
        assert entry.share == pytest.approx(sum((label == entry.value).sum() for label in labels) / (every - ignored))
        volumes = [(label == entry.value).sum() * 3 / 1000 for label in labels if (label == entry.value).any()]
        assert entry.volume_ml is not None
        assert entry.volume_ml.median == pytest.approx(np.median(volumes))
    assert [case.ignored for case in report.summaries.cases] == [(label == 255).sum() for label in labels]
    assert report.document()["ignore_label"] == 255
    assert re.search(r"The ignore label 255 marks 25\.00% of all voxels, in 3 of 6 cases, as without", report.text())
    assert set(report.measures[0].components) == {1, 2}  # 255 is no component
    assert "ignore label" not in whole.text()
    assert report.measures[1].components == whole.measures[1].components  # a case with every annotation


def test_measures_follow_the_declaration(data: Path, tmp_path: Path) -> None:
    """The cache of what was measured knows which label was left out."""
    folder = shutil.copytree(data, tmp_path / "data")
    assert 2 in data_report(declare(folder, ignore_label=255)).measures[0].components
    declare(folder, labels={"0": "background", "1": "organ", "255": "upper"}, ignore_label=2)
    assert set(data_report(folder).measures[0].components) == {1, 255}


# ---- the label in memory ----


def test_regions_keep_the_ignore_label_in_all_channels() -> None:
    label = torch.tensor([[0, 1, 2, 255]], dtype=torch.uint8)
    assert LabelsToRegions([[1, 2], [2]], ignore_index=255)(label).tolist() == [[0, 1, 1, 255], [0, 0, 1, 255]]
    negative = LabelsToRegions([[1, 2], [2]], ignore_index=-1)
    assert negative(torch.tensor([[0.0, 1.0, 2.0, -1.0]])).tolist() == [[0, 1, 1, -1], [0, 0, 1, -1]]
    assert negative(label).tolist() == [[0, 1, 1, 0], [0, 0, 1, 0]]  # 255 is not -1
    with pytest.raises(ValueError, match="expected an ignore_index other than 0 and 1, which a region holds, got 1"):
        LabelsToRegions([[1, 2]], ignore_index=1)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("ignored", [255, -1])
def test_distances_know_ignored_voxels_of_regions(channels: int, ignored: int) -> None:
    label = torch.zeros(channels, 9, dtype=torch.int32)
    label[:, 3:5] = 1
    label[:, 6:] = ignored
    # by definition an ignored voxel is in no region
    expected = SignedDistance(channels)(label.masked_fill(label == ignored, 0))
    torch.testing.assert_close(SignedDistance(channels, ignore_index=ignored)(label), expected)
    assert (expected != SignedDistance(channels)(label != 0)).any()


def test_patches_are_centred_on_annotated_voxels_alone(data: Path, tmp_path: Path) -> None:
    parser = built(data, tmp_path / "run", patch_size=[16, 16, 16], flip_axes=False).parser
    crop = next(
        transform
        for transform in parser.get_parsed_content("train::preprocessing").transforms
        if type(transform).__name__ == "RandCropByLabelClassesd"
    )
    label = torch.full((1, 40, 40, 40), 255.0)
    label[:, 15:20, 15:20, 15:20] = 0.0
    label[:, 20:25, 15:20, 15:20] = 1.0
    item = {key: MetaTensor(label.clone()) for key in ("image", "label")}
    centres = {crop(dict(item))[0]["label"][0, 8, 8, 8].item() for _ in range(40)}
    assert centres == {0.0, 1.0}


def test_annotation_that_resampling_loses_is_one_sentence(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data, tmp_path / "data")

    def one_slice(voxels: np.ndarray) -> np.ndarray:
        return np.where(np.arange(16) == 3, voxels, 255).astype(np.uint8)

    for file in folder.glob("labelsTr/*"):
        rewrite(file, one_slice)
    with pytest.raises((StartUpRefused, RuntimeError)) as caught:
        train(folder, tmp_path / "run", pixdim=[1, 1, 12])
    error: BaseException | None = caught.value
    sentence = r"labelsTr/phantom_\d{3}\.nii\.gz: expected voxels with annotation after resampling, .* a finer --pixdim"
    while error is not None and not re.search(sentence, str(error)):
        error = error.__cause__
    assert error is not None


# ---- losses ----


def built(
    folder: Path, run: Path, configs: Sequence[str] = ("train", "losses"), **options: Any
) -> SegmentationWorkflow:
    files = [str(CONFIGS / f"{name}.yaml") for name in configs]
    quick: dict[str, Any] = {"num_folds": 3, "channels": [4, 8], "num_res_units": 0}
    workflow = SegmentationWorkflow(files, dataset_dir=str(folder), bundle_root=str(run), **quick, **options)
    workflow.initialize()
    return workflow


def loss_of(name: str, folder: Path, maps: Sequence[str] = ()) -> nn.Module:
    """As train.yaml builds it."""
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / f"{n}.yaml") for n in ("train", "losses")]))
    parser.update({"loss": f"@losses::{name}", "dataset_dir": str(folder), "training_loss::maps": list(maps)})
    return parser.get_parsed_content("training_loss")


@pytest.mark.parametrize(
    "name", slow_but(["dice", "cross_entropy", "hausdorff", "dice_ce", "lovasz", "topological_interaction"], TABLE)
)
def test_every_loss_of_the_table_leaves_ignored_voxels_out(data: Path, regions: Path, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 10, 10, 10, generator=generator)
    labels = torch.randint(0, 3, (2, 1, 10, 10, 10), generator=generator).float()
    labels[..., 6:] = 255
    loss = loss_of(name, data)
    assert all(module.ignore_index == 255 for module in loss.modules() if hasattr(module, "ignore_index"))
    assert not counts_ignored(loss, scores, labels, labels == 255)
    assert counts_ignored(loss, scores, labels, labels == 1)  # the test can fail
    if name in ("categorical_hinge", "topological_interaction"):  # their channels exclude each other
        return
    loss = loss_of(name, regions)
    overlapping = LabelsToRegions([[1, 2], [2]], ignore_index=3)
    target = torch.stack([overlapping(torch.where(label == 255, 3, label)) for label in labels])
    assert not counts_ignored(loss, scores[:, :2], target, target[:, :1] == 3)
    assert counts_ignored(loss, scores[:, :2], target, target[:, 1:] == 1)


@pytest.mark.parametrize("name", ["dice_ce", "focal_tversky", "top_k", "compound", "unified_focal"])
def test_the_loss_of_regions_is_that_of_the_annotated_voxels(regions: Path, phantom_folder: Path, name: str) -> None:
    scores = torch.randn(2, 2, 10, 10, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = torch.randint(0, 3, (2, 1, 10, 10, 10), generator=torch.Generator().manual_seed(1))
    target = torch.stack([LabelsToRegions([[1, 2], [2]])(one) for one in label]).int()
    deleted = loss_of(name, declare_regions(phantom_folder))(scores[..., :6], target[..., :6])
    (expected,) = torch.autograd.grad(deleted, scores)
    partial = target.clone()
    partial[..., 6:] = 3
    value = loss_of(name, regions)(scores, partial)
    torch.testing.assert_close(value, deleted)
    torch.testing.assert_close(torch.autograd.grad(value, scores)[0], expected)


def declare_regions(folder: Path) -> Path:
    """A folder whose dataset.json declares the regions and no ignore label; there is nothing else in it."""
    other = folder.parent / "only_declared"
    other.mkdir(exist_ok=True)
    shutil.copyfile(folder / "dataset.json", other / "dataset.json")
    return declare(other, regions=REGIONS)


def test_a_mask_and_the_ignore_label_come_together() -> None:
    loss = AnnotatedVoxelLoss(CompoundLoss([CrossEntropyLoss(sigmoid=True)]), ignore_index=255, maps=["mask"])
    scores = torch.randn(1, 2, 6, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[[0, 1, 1, 255, 255, 0], [0, 0, 1, 255, 255, 1]]])
    for mask in (torch.tensor([[[True, False, True, True, False, True]]]), torch.tensor([[[1.0, 0, 1, 1, 0, 1]]])):
        expected = CrossEntropyLoss(sigmoid=True)(scores[..., [0, 2, 5]], target[..., [0, 2, 5]])
        torch.testing.assert_close(loss(scores, {LABEL: target, "mask": mask}), expected)
    assert list(loss.components) == ["CrossEntropyLoss"]
    with pytest.raises(
        TypeError, match=r"expected a loss that takes a mask, by which .* got MSELoss, which takes input"
    ):
        AnnotatedVoxelLoss(nn.MSELoss(), ignore_index=255)


class Counting(nn.Module):
    """A user's loss that takes the ignore label for a number."""

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        return (scores.mean(1, keepdim=True) - target).square().mean()


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (
            Counting(),
            r"whose voxels without annotation are 255 and left out, got Counting, which counts them; choose a",
        ),
        (
            monai.losses.GeneralizedDiceLoss(to_onehot_y=True, softmax=True),
            "whose voxels without annotation are 255, got GeneralizedDiceLoss, which fails on them",
        ),
        (
            FusedDiceLoss(to_onehot_y=True, softmax=True, ignore_index=1),
            r"Expected the ignore_index of FusedDiceLoss to be left to the ignore label of the data set, 255, got 1 \(",
        ),
        (
            FusedDiceLoss(to_onehot_y=True, softmax=True, ignore_index=254),
            "or the ignore label of the data set, 255, got 254, which no voxel has",
        ),
    ],
)
def test_a_loss_that_does_not_leave_them_out_is_refused(
    data: Path, tmp_path: Path, loss: nn.Module, sentence: str
) -> None:
    with pytest.raises(StartUpRefused, match=sentence):
        set_up(data, tmp_path / "run", loss)


def test_losses_of_monai_get_it_too(data: Path, tmp_path: Path) -> None:
    loss = monai.losses.DiceCELoss(to_onehot_y=True, softmax=True)
    set_up(data, tmp_path / "run", loss)
    assert loss.cross_entropy.ignore_index == loss.dice.ignore_index == 255


def test_a_loss_of_regions_without_mask_is_refused(regions: Path, tmp_path: Path) -> None:
    loss = monai.losses.GeneralizedDiceLoss(sigmoid=True)
    with pytest.raises(StartUpRefused, match="expected a loss that takes a mask, by which voxels without annotation"):
        loss_for_training(loss, torch.device("cpu"), dataset_dir=regions, regions=True)
    with pytest.raises(StartUpRefused, match=r"takes overlapping regions, got GeneralizedDiceLoss .*takes a mask"):
        set_up(regions, tmp_path / "run", loss)


def test_a_part_of_a_compound_without_mask_is_refused(regions: Path, tmp_path: Path) -> None:
    loss = CompoundLoss({"dice": FusedDiceLoss(sigmoid=True), "counting": Counting()})
    sentence = r"takes overlapping regions, got CompoundLoss .*parts that take a `mask`, got counting"
    with pytest.raises(StartUpRefused, match=sentence):
        set_up(regions, tmp_path / "run", loss)


def test_regions_have_no_value_to_ignore_but_the_mask(regions: Path, tmp_path: Path) -> None:
    loss = FusedDiceLoss(sigmoid=True, ignore_index=3)
    assert set_up(regions, tmp_path / "run", loss).record.ignore_index == 3
    assert loss.ignore_index is None
    with pytest.raises(StartUpRefused, match="to be a class, 0 to 1, or the ignore label of the data set, 3, got 255"):
        set_up(regions, tmp_path / "run", FusedDiceLoss(sigmoid=True, ignore_index=255))


def set_up(folder: Path, run: Path, loss: nn.Module, **options: Any) -> TrainingSetUp:
    defaults = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    values = {name: defaults[name] for name in defaults["setup"] if name in defaults}
    values |= {"dataset_dir": folder, "bundle_root": run, "num_folds": 3, "device": torch.device("cpu")}
    return TrainingSetUp(**{**values, "loss": loss, **options})


# ---- the option ignore_index ----


def test_an_ignore_index_that_no_label_has_is_refused(phantom_folder: Path, tmp_path: Path) -> None:
    sentence = (
        r"Expected the ignore_index of FusedDiceCELoss to be a class, 0 to 2, or the ignore label of the data set, "
        r'which has none, got 255, which no voxel has; declare .* in dataset\.json: "ignore_label": 255\.'
    )
    with pytest.raises(StartUpRefused, match=sentence):
        train(phantom_folder, tmp_path / "run", **{"loss::ignore_index": 255})
    parts = {"losses::surface::losses::dice_ce::ignore_index": 3}
    with pytest.raises(StartUpRefused, match="Expected the ignore_index of FusedDiceCELoss to be a class, 0 to 2"):
        train(phantom_folder, tmp_path / "run", loss="surface", **parts)
    assert not (tmp_path / "run").exists()


def test_an_ignore_index_that_is_the_ignore_label_is_fine(data: Path, tmp_path: Path, trained: RunFolder) -> None:
    run = train(data, tmp_path / "run", **{"loss::ignore_index": 255})
    assert table(run.training_csv)[0]["train_loss"] == table(trained.training_csv)[0]["train_loss"]


def test_an_ignore_index_means_the_label_of_the_files(data: Path, tmp_path: Path) -> None:
    """As class 2 of three it would be that of the label 9."""
    folder = shutil.copytree(data, tmp_path / "data")
    for file in folder.glob("labelsT?/*"):
        rewrite(file, lambda voxels: np.where(voxels == 255, 2, np.where(voxels == 2, 9, voxels)))
    declare(folder, labels={"0": "background", "1": "organ", "9": "lesion", "2": "ignore"}, ignore_label=None)
    loss = FusedDiceLoss(to_onehot_y=True, softmax=True, ignore_index=2)
    record = set_up(folder, tmp_path / "run", loss).record
    assert (record.ignore_label, record.ignore_index, loss.ignore_index) == (2, -1, -1)
    assert record.values_in_memory == {0: 0, 1: 1, 9: 2, 2: -1}
    run = train(folder, tmp_path / "run", **{"loss::ignore_index": 2})
    same = train(data, tmp_path / "same")
    for column in ("train_loss", "val_mean_dice"):
        assert table(run.training_csv)[0][column] == table(same.training_csv)[0][column]


def test_an_ignore_label_that_float32_does_not_hold(data: Path, trained: RunFolder, tmp_path: Path) -> None:
    """Nor tells apart from a class."""
    folder, large = shutil.copytree(data, tmp_path / "data"), 1 << 24
    for file in folder.glob("labelsT?/*"):
        rewrite(file, lambda voxels: np.array([0, 1, large, large + 1], np.int32)[np.where(voxels == 255, 3, voxels)])
    labels = {"0": "background", "1": "organ", str(large): "lesion"}
    run = train(declare(folder, labels=labels, ignore_label=large + 1), tmp_path / "run")
    assert RunRecord.read(run.record).values_in_memory == {0: 0, 1: 1, large: 2, large + 1: -1}
    for column in ("train_loss", "val_mean_dice"):
        assert table(run.training_csv)[0][column] == table(trained.training_csv)[0][column]


def test_a_class_that_the_loss_ignores_is_warned_of(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(phantom_folder, tmp_path / "run", **{"loss::ignore_index": 2})
    sentence = "ignore_index 2 leaves the voxels of lesion out of the loss, so that nothing teaches the network what"
    assert capsys.readouterr().out.count(sentence) == 1
    found = findings(phantom_folder, **{"loss::ignore_index": 2})
    assert [text for level, text in found if level == "warning" and text.startswith(sentence)]


# ---- training, validation, evaluation, inference ----


def dice_ce_of_annotated(scores: Tensor, labels: Tensor, ignored: float) -> float:
    """Dice plus cross-entropy in float64, of the voxels that are left."""
    classes = scores.shape[1]
    dice, entropy, voxels = [], 0.0, 0
    for one, label in zip(scores.double(), labels.double(), strict=True):
        kept = label.flatten() != ignored
        p, g = one.flatten(1)[:, kept].softmax(0), nn.functional.one_hot(label.flatten()[kept].long(), classes).T
        if kept.any():
            dice.append(1 - (2 * (p * g).sum(1) + 1e-5) / (p.sum(1) + g.sum(1) + 1e-5))
        entropy -= (p.log() * g).sum().item()
        voxels += int(kept.sum())
    return torch.stack(dice).mean().item() + entropy / voxels


def dice_of_annotated(prediction: np.ndarray, label: np.ndarray, ignored: int, value: int) -> float:
    p, g = (volume[label != ignored] == value for volume in (prediction, label))
    return 2 * (p & g).sum() / (p.sum() + g.sum()) if p.any() or g.any() else math.nan


def followed(workflow: SegmentationWorkflow) -> tuple[list[tuple[Tensor, Tensor, float]], list[tuple[Tensor, Tensor]]]:
    """Scores, label and loss of each training step, and prediction and label of each case validated."""
    trainer, evaluator = (workflow.parser.get_parsed_content(i) for i in ("train::trainer", "validate::evaluator"))
    steps, cases = [], []

    def step(engine: Any) -> None:
        (output,) = engine.state.output
        steps.append((output["pred"].detach().clone(), output["label"].as_tensor().clone(), float(output["loss"])))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, step)
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: cases.extend((o["pred"].as_tensor(), o["label"].as_tensor()) for o in engine.state.output),
    )
    workflow.run()
    return steps, cases


def test_a_training_sees_the_annotated_voxels_alone(hippocampus: Path, tmp_path: Path) -> None:
    """On the hippocampus: half of the voxels of every second case are 255."""
    names = sorted(file.name for file in (hippocampus / "labelsTr").glob("[!.]*.nii.gz"))[:8]
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / kind).mkdir()
        for name in names:
            shutil.copyfile(hippocampus / kind / name, tmp_path / kind / name)
    random = np.random.default_rng(0)
    for name in names[::2]:
        rewrite(
            tmp_path / "labelsTr" / name,
            lambda voxels: np.where(random.random(voxels.shape) < 0.5, 255, voxels).astype(np.uint8),
        )
    labels = {"background": 0, "Anterior": 1, "Posterior": 2, "ignore": 255}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    workflow = built(tmp_path, tmp_path / "run", epochs=2, val_interval=2, learning_rate=0.01)
    steps, cases = followed(workflow)
    assert len(steps) == 4
    shares = [(label == 255).float().mean().item() for _, label, _ in steps]
    assert min(shares) >= 0
    assert 0.1 < np.mean(shares) < 0.5
    for scores, label, loss in steps:
        assert loss == pytest.approx(dice_ce_of_annotated(scores, label, 255), rel=1e-5)
    assert any((label == 255).any() for _, label in cases)
    per_class = [
        np.nanmean([dice_of_annotated(prediction.numpy(), label.numpy(), 255, value) for prediction, label in cases])
        for value in (1, 2)
    ]
    last = table(RunFolder(tmp_path / "run").training_csv)[-1]
    assert float(last["val_mean_dice"]) == pytest.approx(np.mean(per_class), abs=1e-5)
    assert float(last["val_dice_Posterior"]) == pytest.approx(per_class[1], abs=1e-5)


def test_the_record_keeps_the_ignore_label(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    record = RunRecord.read(trained.record)
    assert (record.ignore_label, record.ignore_index, record.num_classes) == (255, 255, 3)
    assert record.labels == {0: "background", 1: "organ", 2: "lesion"}
    copy = RunFolder(shutil.copytree(trained.root, tmp_path / "copy"))
    train(data, copy.root, resume=True, epochs=2)
    other = partly_annotated(data, tmp_path / "other", value=254)
    for file in other.glob("labelsT?/*"):
        rewrite(file, lambda voxels: np.where(voxels == 255, 254, voxels).astype(np.uint8))
    with pytest.raises(StartUpRefused, match="Expected ignore_label 255 as in the run to resume, got 254"):
        train(other, copy.root, resume=True, epochs=3)
    # that of an earlier version has none
    content = json.loads(copy.record.read_text())
    del content["ignore_label"]
    copy.record.write_text(json.dumps(content))
    assert RunRecord.read(copy.record).ignore_label is None


def test_evaluation_measures_the_annotated_voxels(trained: RunFolder, data: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(trained.root, tmp_path / "run"))
    evaluate(run, split="all", overlays=False)
    rows = {(row["case"], row["label"]): row for row in table(run.results.cases_csv)}
    infer(run, data / "imagesTr", tmp_path / "out")
    assert len(rows) == 16  # six cases, and two of the test set with labels
    for number in range(6):
        case = f"phantom_{number:03d}"
        prediction, label = (
            np.asarray(nibabel.load(file).dataobj)
            for file in (tmp_path / "out" / f"{case}_seg.nii.gz", data / "labelsTr" / f"{case}.nii.gz")
        )
        assert set(np.unique(prediction)) <= {0, 1, 2}  # the ignore label is never written
        for value, name in ((1, "organ"), (2, "lesion")):
            p, g = ((volume == value) & (label != 255) for volume in (prediction, label))
            row = rows[case, name]
            dice = dice_of_annotated(prediction, label, 255, value)
            assert row["dice"] == ("" if math.isnan(dice) else pytest.approx(f"{dice:.6g}"))
            assert float(row["target_ml"]) == pytest.approx(g.sum() * 3 / 1000, rel=1e-5)
            assert float(row["prediction_ml"]) == pytest.approx(p.sum() * 3 / 1000, rel=1e-5)
            assert float(row["false_positive_ml"]) == pytest.approx((p & ~g).sum() * 3 / 1000, rel=1e-5)
            if p.any() and g.any():
                masks = [torch.from_numpy(mask)[None, None] for mask in (p, g)]
                options: dict[str, Any] = {"include_background": True, "spacing": [1.0, 1.0, 3.0]}
                distance = compute_hausdorff_distance(*masks, percentile=95, **options).item()
                surface = compute_surface_dice(*masks, class_thresholds=[1.0], **options).item()
                assert float(row["hd95_mm"]) == pytest.approx(distance, rel=1e-5)
                assert float(row["surface_dice"]) == pytest.approx(surface, rel=1e-5)


def test_the_evaluated_data_say_what_is_ignored(trained: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    """Another value than in the training, and then none."""
    run = RunFolder(shutil.copytree(trained.root, tmp_path / "run"))
    found = {}
    for value in (255, 7, -3):
        folder = partly_annotated(phantom_folder, tmp_path / str(value), value)
        out = tmp_path / f"out{value}"
        evaluate(run, dataset_dir=str(folder), split="all", output_dir=str(out), overlays=False)
        found[value] = (out / "cases.csv").read_text()
    assert found[255] == found[7] == found[-3]
    evaluate(run, dataset_dir=str(phantom_folder), split="all", output_dir=str(tmp_path / "whole"), overlays=False)
    assert (tmp_path / "whole" / "cases.csv").read_text() != found[255]


def test_the_validation_dice_of_regions_leaves_ignored_voxels_out() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(3, 2, 6, 6, 6, generator=generator) > 0.5 for _ in range(2))
    metric, deleted = EmptyAwareDice(2, multi_label=True, ignore_index=-1), EmptyAwareDice(2, multi_label=True)
    partial = target.int()
    partial[..., 4:] = -1
    found = metric(prediction.float(), partial)
    torch.testing.assert_close(found, deleted(prediction[..., :4].float(), target[..., :4].float()))
    assert (partial == -1).any()  # the caller's tensor is as it was


def test_metrics_of_a_case_are_those_of_its_masks() -> None:
    """What is cut at the border of the annotation has a surface there."""
    g = np.zeros((8, 8, 8), bool)
    g[2:6, 2:6, :6] = True
    annotated = np.zeros_like(g)
    annotated[:, :, :4] = True
    whole = case_metrics(g & annotated, g & annotated, spacing=[1, 1, 1], surface_tolerance_mm=1)
    assert (whole["dice"], whole["hd95_mm"], whole["surface_dice"]) == (1.0, 0.0, 1.0)


def test_regions_train_and_are_evaluated_without_ignored_voxels(regions: Path, tmp_path: Path) -> None:
    options = {"epochs": 2, "val_interval": 2, "learning_rate": 0.01}
    workflow = built(regions, tmp_path / "run", ("train", "losses", "boundary_schedule", "boundary_maps"), **options)
    record = workflow.parser.get_parsed_content("record")
    assert (record.ignore_label, record.ignore_index, record.num_classes) == (3, 3, 2)
    loss = workflow.parser.get_parsed_content("training_loss")
    assert isinstance(loss, AnnotatedVoxelLoss)
    assert all(m.ignore_index is None for m in loss.loss.modules() if hasattr(m, "ignore_index"))
    trainer = workflow.parser.get_parsed_content("train::trainer")
    trainer.prepare_batch = spying = Spy(trainer.prepare_batch)
    workflow.run()
    assert any((target[LABEL] == 3).any() for target in spying.targets)
    assert all(set(target[LABEL].unique().tolist()) <= {0, 1, 3} for target in spying.targets)
    run = RunFolder(tmp_path / "run")
    evaluate(run)
    assert len(list(run.results.overlays.glob("*.png"))) == 2
    by_case = {(row["case"], row["label"]): float(row["target_ml"]) for row in table(run.results.cases_csv)}
    for case in record.validation:
        label = np.asarray(nibabel.load(regions / "labelsTr" / f"{case}.nii.gz").dataobj)
        assert by_case[case, "whole"] == pytest.approx(((label == 1) | (label == 2)).sum() * 3 / 1000, rel=1e-5)
        assert by_case[case, "lesion"] == pytest.approx((label == 2).sum() * 3 / 1000, rel=1e-5)


class Spy:
    """Keeps the targets that a loss gets."""

    def __init__(self, prepare: PrepareBatchMaps) -> None:
        self.prepare = prepare
        self.targets: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        image, target = self.prepare(*args, **kwargs)
        self.targets.append(target)
        return image, target


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_boundary_maps_leave_ignored_voxels_out(data: Path, tmp_path: Path, cache: str) -> None:
    run = train(data, tmp_path / "run", ("train", "losses", "boundary_schedule", "boundary_maps"), cache=cache)
    (row,) = table(run.training_csv)
    assert math.isfinite(float(row["train_loss_surface"]))


# ---- the doctor ----


def findings(folder: Path, **options: Any) -> list[tuple[str, str]]:
    files = [str(CONFIGS / f"{name}.yaml") for name in ("train", "losses")]
    quick: dict[str, Any] = {"num_folds": 3, "channels": [4, 8], "num_res_units": 0, "epochs": 1}
    return [(found.level, found.text) for found in examine(files, dataset_dir=str(folder), **quick, **options)]


@pytest.mark.parametrize("kind", ["data", "regions"])
def test_the_doctor_knows_the_ignore_label(kind: str, request: pytest.FixtureRequest) -> None:
    found = findings(request.getfixturevalue(kind))
    # of so small a network the loss takes a large share
    assert [text for level, text in found if level != "ok" and not text.startswith("A step takes")] == []
    value = 255 if kind == "data" else 3
    (ignored,) = [text for _, text in found if f"are without annotation (label {value})" in text]
    assert 5 < float(ignored.partition("%")[0]) < 60
    (voxels,) = [text for _, text in found if text.startswith("Voxels of 16 patches from 4 cases")]
    if kind == "data":
        assert sum(map(float, re.findall(r"([\d.]+)%", voxels))) == pytest.approx(100, abs=0.02)


def test_the_doctor_finds_a_loss_that_counts_them(data: Path) -> None:
    found = findings(data, **{"loss": {"_target_": f"{__name__}.Counting"}})
    assert [text for level, text in found if level == "problem"] == [
        "The loss changes with the scores of voxels without annotation (label 255), which it should leave out; choose "
        "one with an ignore_index, such as those of this package."
    ]


# ---- prepare ----


def sources(folder: Path, values: Sequence[int]) -> Path:
    """Two cases whose labels have these values."""
    for name in "ab":
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        voxels = np.arange(6 * 5 * 4).reshape(6, 5, 4)
        for kind, content in (
            ("images", voxels.astype(np.float32)),
            ("labels", np.array(values)[voxels % len(values)]),
        ):
            nibabel.save(nibabel.Nifti1Image(content.astype(np.float32), np.eye(4)), folder / kind / f"{name}.nii.gz")
    return folder


def prepare(folder: Path, *options: str) -> int:
    command = ["prepare", "--images", folder / "images", "--labels", folder / "labels", "--out", folder / "out"]
    with pytest.raises(SystemExit) as ended:
        main([*map(str, command), "--folds", "0", *options])
    return ended.value.code if isinstance(ended.value.code, int) else 1


@pytest.mark.parametrize(
    ("values", "options", "ignored"),
    [
        ((0, 1, 255), ("--ignore-label", "255"), 255),
        ((0, 1, -1), ("--ignore-label", "-1"), -1),
        ((0, 4, 2), ("--remap", "4:1", "--ignore-label", "2"), 2),
        ((0, 1, 254), ("--remap", "254:255", "--ignore-label", "255"), 255),
    ],
)
def test_prepare_keeps_the_ignore_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: tuple[int, ...], options: tuple[str, ...], ignored: int
) -> None:
    folder = sources(tmp_path, values)
    assert prepare(folder, *options) == 0
    assert re.search(rf"{ignored} +80 +2  \(without annotation\)", capsys.readouterr().out)
    case_list = read_case_list(folder / "out")
    assert (case_list.ignore_label, case_list.labels) == (ignored, {0: "background", 1: "label_1"})
    assert [case.ignored for case in check_cases(case_list).cases] == [40, 40]
    label = np.asarray(nibabel.load(folder / "out/labelsTr/a.nii.gz").dataobj)
    np.testing.assert_array_equal(label, np.array([0, 1, ignored])[np.arange(120).reshape(6, 5, 4) % 3])
    assert label.dtype == (np.int16 if ignored < 0 else np.uint8)
    assert prepare(folder, *options) == 0  # goes on with the same options, and not with others
    assert prepare(folder) == 1


@pytest.mark.parametrize(
    ("values", "options", "sentence"),
    [
        (
            (0, 1, 255),
            (),
            r'--remap "255:2" closes the gap; if 255 marks voxels without annotation, --ignore-label "255',
        ),
        ((0, 1, -1), (), 'if -1 marks voxels without annotation, --ignore-label "-1" keeps it apart'),
        ((0, 1, 5, 255), ("--ignore-label", "255"), r'got 0, 1, 5; --remap "5:2" closes the gap\.'),
        (
            (0, 1),
            ("--ignore-label", "255"),
            "expected an ignore label among the label ids, got 255, which no label has",
        ),
        ((0, 1), ("--ignore-label", "0"), "expected an ignore label among the .*, got 0, which is the background"),
        ((0, 255), ("--ignore-label", "255"), "expected labels with background and one structure at least"),
        (
            (0, 1, 255),
            ("--ignore-label", "255", "--names", "255:x"),
            "expected names for the label ids 0, 1, got one for",
        ),
    ],
)
def test_prepare_says_what_is_wrong_with_the_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: tuple[int, ...], options: tuple[str, ...], sentence: str
) -> None:
    folder = sources(tmp_path, values)
    command = ["prepare", "--images", folder / "images", "--labels", folder / "labels", "--out", folder / "out"]
    with pytest.raises(SystemExit, match=sentence):
        main([*map(str, command), "--folds", "0", *options])
    assert not (folder / "out").exists()


def test_prepare_refuses_a_label_without_annotation(tmp_path: Path) -> None:
    folder = sources(tmp_path, (0, 1, 255))
    rewrite(folder / "labels/b.nii.gz", lambda voxels: np.full_like(voxels, 255))
    command = ["prepare", "--images", folder / "images", "--labels", folder / "labels", "--out", folder / "out"]
    with pytest.raises(
        SystemExit, match=r"b.nii.gz: expected voxels with annotation, got the ignore label 255 in every"
    ):
        main([*map(str, command), "--folds", "0", "--ignore-label", "255"])


def test_prepare_resamples_an_ignore_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sources(tmp_path, (0, 1, 255))
    for name in "ab":
        rewrite(folder / f"labels/{name}.nii.gz", lambda voxels: np.pad(voxels, ((0, 3), (0, 0), (0, 0)), mode="wrap"))
    assert prepare(folder, "--ignore-label", "255", "--resample-labels") == 0
    assert [case.ignored for case in check_cases(read_case_list(folder / "out")).cases] == [40, 40]


def test_a_segment_called_ignore_is_the_ignore_label(tmp_path: Path) -> None:
    folder = sources(tmp_path, (0, 1, 2))
    assert prepare(folder, "--names", "1:organ,2:ignore") == 0
    case_list = read_case_list(folder / "out")
    assert (case_list.ignore_label, case_list.labels) == (2, {0: "background", 1: "organ"})


def test_regions_of_nnunet_beside_an_ignore_label(phantom_folder: Path, tmp_path: Path) -> None:
    folder = partly_annotated(phantom_folder, tmp_path / "data", value=3)
    labels = {"background": 0, "whole": [1, 2], "lesion": [2], "ignore": 3}
    case_list = read_case_list(declare(folder, labels=labels, ignore_label=None))
    assert (case_list.ignore_label, case_list.regions) == (3, {"whole": (1, 2), "lesion": (2,)})
    assert list(case_list.labels) == [0, 1, 2]
    assert declared_ignore_label(folder) == (3, 3)


def test_ids_below_0_get_a_type_that_holds_them() -> None:
    new_ids = new_label_ids([0, 300, -1], {300: 1}, -1)
    label = renumber(np.array([[[0, 300, -1]]]), new_ids)
    assert (label.tolist(), label.dtype) == ([[[0, 1, -1]]], np.int16)
