"""The losses in nnU-Net's training: which loss a name chooses, what it reads, and, where nnunetv2 is, its own numbers.

`make test-nnunet` runs all of it, in an environment of its own: nnU-Net needs torchvision.
"""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from click.testing import CliRunner
from torch import Tensor

from monai_extra_losses import (
    CompoundLoss,
    FusedDiceLoss,
    PartialLabelLoss,
    SurfaceLoss,
    TopKLoss,
)
from monai_extra_losses.cli.commands import commands
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.integrations.nnunet import CHOICE_VARIABLE, trainer_folder, trainer_names
from monai_extra_losses.integrations.nnunet.adapter import LossOfTraining
from monai_extra_losses.integrations.nnunet.choice import Training, built_loss, loss_config, table_names


def training(regions: bool = False, ignore: int | None = None, batch_dice: bool = False, axes: int = 3) -> Training:
    return Training(regions, ignore, batch_dice, channels=3, axes=axes)


LABELS = training()
REGIONS = training(regions=True, ignore=4, batch_dice=True)
FOR_LABELS_ONLY = {"topological_interaction", "categorical_hinge"}  # of classes that exclude each other
SPACING, PATCH = (3.0, 1.0, 1.0), (8, 12, 10)


def built(choice: str, of: Training = LABELS, *, ranks: bool = False, partly: bool = False) -> torch.nn.Module:
    return built_loss(loss_config(choice, of), of, ranks=ranks, partly=partly)


def value_and_gradient(loss: Callable[..., Tensor], scores: Tensor, *rest: Any, **given: Any) -> tuple[float, Tensor]:
    scores = scores.clone().requires_grad_()
    value = loss(scores, *rest, **given)
    value.backward()
    assert scores.grad is not None
    return value.item(), scores.grad


# ---- which loss ----


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", table_names())
def test_every_entry_trains_on_labels_as_nnunet_has_them(name: str, axes: int) -> None:
    loss = LossOfTraining(built(name, training(axes=axes)), SPACING[-axes:], PATCH[-axes:])
    scores = torch.randn(2, 3, *PATCH[-axes:], requires_grad=True)
    target = torch.randint(3, (2, 1, *PATCH[-axes:])).to(torch.int16)
    loss(scores, target).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad.any()


@pytest.mark.parametrize("name", sorted({*table_names()} - FOR_LABELS_ONLY))
def test_every_entry_trains_on_regions_as_nnunet_has_them(name: str) -> None:
    loss = LossOfTraining(built(name, REGIONS), SPACING, PATCH, ignore_channel=True)
    scores = torch.randn(2, 3, *PATCH, requires_grad=True)
    target = torch.rand(2, 4, *PATCH) > 0.7
    loss(scores, target).backward()
    assert scores.grad is not None
    ignored = target[:, -1:].expand_as(scores)
    assert not scores.grad[ignored].any()
    assert scores.grad[~ignored].any()


@pytest.mark.parametrize("name", sorted(FOR_LABELS_ONLY))
def test_a_loss_of_classes_that_exclude_each_other_refuses_regions(name: str) -> None:
    with pytest.raises((ValueError, StartUpRefused), match=r"exclude each other|softmax"):
        built(name, REGIONS)


def test_a_loss_reads_the_data_as_nnunets_own_does() -> None:
    config = loss_config("dice_ce", training(ignore=3, batch_dice=True))
    assert config == {
        "_target_": "monai_extra_losses.losses.FusedDiceCELoss",
        "include_background": False,
        "to_onehot_y": True,
        "softmax": True,
        "sigmoid": False,
        "batch": True,
        "ignore_index": 3,
    }
    config = loss_config("dice_ce", training(regions=True, ignore=3))
    assert (config["include_background"], config["sigmoid"], config["batch"]) == (True, True, False)
    assert "ignore_index" not in config  # it is a channel


def test_options_follow_the_name() -> None:
    config = loss_config("surface weights=[1,0.5] losses::surface::spacing=null", LABELS)
    assert config["weights"] == [1, 0.5]
    assert config["losses"]["surface"]["spacing"] is None
    assert config["losses"]["dice_ce"]["batch"] is False
    assert built("focal_tversky gamma=2.0 include_background=true").gamma == 2


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("focal_tverski", "did you mean focal_tversky"),
        ("", "expected nnUNet_extra_loss to be a name"),
        ("focal_tversky gamma", "name=value"),
        ("missing.yaml", "existing file"),
    ],
)
def test_a_wrong_choice_is_refused(choice: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        loss_config(choice, LABELS)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1, 2]", "to hold `loss`"),
        ("lambda: 3", "to hold `loss`"),
        ("loss: 3", "a component with _target_"),
        ("loss: '@losses::no'", "references that exist"),
    ],
)
def test_a_file_without_a_loss_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "loss.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        loss_config(str(file), LABELS)


def test_an_option_that_the_loss_has_not_is_named() -> None:
    with pytest.raises(ValueError, match="gama"):
        built("focal_tversky gama=2")
    with pytest.raises(ValueError, match="one value"):
        built("dice reduction=none")


def test_what_cannot_be_recorded_or_learnt_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "loss.yaml"
    file.write_text("loss: '@losses::compound'\nlosses::compound::weights: $__import__('torch').ones(2)\n")
    with pytest.raises(ValueError, match="options that can be recorded"):
        loss_config(str(file), LABELS)
    (tmp_path / "learning.py").write_text(
        "import torch\nfrom monai_extra_losses import CompoundLoss\n\n\n"
        "def learning(losses):\n    return CompoundLoss(losses, torch.nn.Parameter(torch.ones(len(losses))))\n"
    )
    dice = {"_target_": "monai_extra_losses.losses.FusedDiceLoss", "to_onehot_y": True, "softmax": True}
    file.write_text(json.dumps({"_target_": "learning.learning", "losses": [dice]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(ValueError, match="a loss that learns nothing"):
            built(str(file))


def test_a_file_goes_on_top_of_the_table(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("loss: '@losses::compound'\nlosses::compound::weights: [1.0, 0.25]\ninclude_background: true\n")
    loss = built(str(file))
    assert isinstance(loss, CompoundLoss)
    assert loss.weight_values == [1, 0.25]
    assert next(iter(loss.losses.values())).include_background is True
    file.write_text("_target_: monai.losses.DiceLoss\nsoftmax: true\nto_onehot_y: true\n")
    assert type(built(str(file))).__module__.startswith("monai.losses")


def test_sums_of_a_batch_are_added_over_ranks_where_the_loss_can() -> None:
    batch = training(batch_dice=True)
    assert built("dice_ce", batch, ranks=True).sync_batch is True
    assert built("dice_ce", LABELS, ranks=True).sync_batch is False
    assert built("top_k", batch, ranks=True).sync_batch is False


# ---- what it reads ----


def test_each_level_of_deep_supervision_has_its_own_millimetres() -> None:
    options = {"to_onehot_y": True, "softmax": True}
    loss = LossOfTraining(SurfaceLoss(**options), SPACING, PATCH)
    target = torch.zeros(1, 1, 4, 6, 5)
    target[..., 1:3, 2:4, 1:4] = 1
    scores = torch.randn(1, 2, 4, 6, 5)
    assert torch.equal(loss(scores, target), SurfaceLoss(spacing=(6.0, 2.0, 2.0), **options)(scores, target))
    assert not hasattr(target, "affine")


def test_partly_annotated_samples_are_merged() -> None:
    loss = LossOfTraining(built("dice_ce", partly=True), SPACING, PATCH)
    scores, target = torch.randn(2, 3, *PATCH), torch.randint(2, (2, 1, *PATCH))
    loss.annotated = torch.tensor([[True, True, False], [True, True, True]])
    expected = PartialLabelLoss(built("dice_ce"))(scores, target, annotated=loss.annotated)
    assert torch.equal(loss(scores, target), expected)
    loss.annotated = None
    assert torch.equal(loss(scores, target), built("dice_ce")(scores, target))
    assert built("dice_ce", REGIONS, partly=True).mode == "sigmoid"


# ---- the command ----


def lines_of(*arguments: str) -> list[str]:
    result = CliRunner().invoke(commands, ["nnunet-trainers", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_the_command_prints_a_line_for_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    lines = lines_of()
    assert all(line.startswith("# ") for line in lines[:-1])
    assert shlex.split(lines[-1]) == ["export", f"nnUNet_extTrainer={trainer_folder()}"]
    assert [file.suffix for file in trainer_folder().iterdir() if file.is_file()] == [".py"]
    monkeypatch.setenv("nnUNet_extTrainer", f"/mine{os.pathsep}{trainer_folder()}")
    assert shlex.split(lines_of()[-1])[1] == f"nnUNet_extTrainer=/mine{os.pathsep}{trainer_folder()}"
    monkeypatch.setenv("nnUNet_extTrainer", "/mine")
    assert shlex.split(lines_of()[-1])[1] == f"nnUNet_extTrainer=/mine{os.pathsep}{trainer_folder()}"


def test_what_is_missing_is_said_beside_the_lines_for_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(commands, ["nnunet-trainers"])
    assert result.stderr == "nnU-Net is not installed here; it comes with the extra [nnunet] of this package.\n"
    assert "not installed" not in result.stdout


def test_the_command_lists_the_trainers() -> None:
    assert lines_of("--list") == trainer_names()
    assert {"nnUNetTrainer_focal_tversky", "nnUNetTrainer_extra_loss"} <= {*trainer_names()}


# ---- nnU-Net itself ----

with_nnunet = pytest.mark.skipif(
    "nnunetv2" not in sys.modules and __import__("importlib.util").util.find_spec("nnunetv2") is None,
    reason="install nnunetv2, as `make test-nnunet` does, to run this test.",
)


def nnunets(name: str, batch_dice: bool, ignore: bool, *, ddp: bool = False) -> Callable[..., Tensor]:
    from nnunetv2.training.loss import compound_losses
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "ddp": ddp, "do_bg": name == "DC_and_BCE_loss"}
    if name == "DC_and_BCE_loss":
        ignoring = {"use_ignore_label": ignore}
        return compound_losses.DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss, **ignoring)
    if name == "DC_and_topk_loss":
        return compound_losses.DC_and_topk_loss(dice, {"k": 10}, ignore_label=4 if ignore else None)
    ignored = 4 if ignore else None
    return compound_losses.DC_and_CE_loss(dice, {}, ignore_label=ignored, dice_class=MemoryEfficientSoftDiceLoss)


def labels_of(size: tuple[int, ...], *, ignore: bool = False) -> Tensor:
    target = torch.randint(4, (3, 1, *size))
    return target.masked_fill(torch.rand(target.shape) < 0.3, 4) if ignore else target


@with_nnunet
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("size", [(9, 8), (8, 9, 7)])
def test_dice_and_cross_entropy_is_nnunets_plus_one(size: tuple[int, ...], ignore: bool, batch_dice: bool) -> None:
    scores, target = torch.randn(3, 4, *size), labels_of(size, ignore=ignore)
    ours = built("dice_ce", training(ignore=4 if ignore else None, batch_dice=batch_dice, axes=len(size)))
    value, gradient = value_and_gradient(ours, scores, target.to(torch.int16))
    expected, its = value_and_gradient(nnunets("DC_and_CE_loss", batch_dice, ignore), scores, target)
    assert value - 1 == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(gradient, its, rtol=1e-5, atol=1e-8)


@with_nnunet
@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_and_top_k_is_nnunets_plus_one(batch_dice: bool) -> None:
    scores, target = torch.randn(3, 4, 8, 9, 7), labels_of((8, 9, 7))
    reading = {"to_onehot_y": True, "softmax": True}
    dice = FusedDiceLoss(include_background=False, batch=batch_dice, **reading)
    ours = CompoundLoss([dice, TopKLoss(k=10, batch=True, **reading)])
    value, gradient = value_and_gradient(ours, scores, target)
    expected, its = value_and_gradient(nnunets("DC_and_topk_loss", batch_dice, False), scores, target)
    assert value - 1 == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(gradient, its, rtol=1e-5, atol=1e-8)
    if batch_dice:
        pooled = built("dice_top_k", training(batch_dice=True))
        assert pooled(scores, target).item() - 1 == pytest.approx(expected, abs=1e-6)


@with_nnunet
def test_top_k_of_nnunet_counts_ignored_voxels_where_ours_does_not() -> None:
    scores, target = torch.randn(3, 4, 8, 9, 7), labels_of((8, 9, 7), ignore=True)
    share = (target != 4).float().mean().item()
    # k per cent of all voxels are k / share per cent of those that count
    ours = TopKLoss(k=10 / share, batch=True, to_onehot_y=True, softmax=True, ignore_index=4)
    its = nnunets("DC_and_topk_loss", True, True).ce  # type: ignore[attr-defined]
    assert ours(scores, target).item() == pytest.approx(its(scores, target).item(), rel=2e-3)
    assert built("top_k batch=true", training(ignore=4))(scores, target) > its(scores, target) + 0.2


@with_nnunet
@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_and_binary_cross_entropy_is_nnunets_plus_one(batch_dice: bool) -> None:
    scores, target = torch.randn(3, 4, 8, 9, 7), torch.rand(3, 4, 8, 9, 7) > 0.6
    ours = built("dice_ce", training(regions=True, batch_dice=batch_dice))
    value, gradient = value_and_gradient(ours, scores, target)
    expected, its = value_and_gradient(nnunets("DC_and_BCE_loss", batch_dice, False), scores, target)
    assert value - 1 == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(gradient, its, rtol=1e-5, atol=1e-8)


@with_nnunet
def test_with_an_ignore_label_nnunet_sums_the_binary_cross_entropy_over_regions() -> None:
    scores, target = torch.randn(3, 4, 8, 9, 7), torch.rand(3, 5, 8, 9, 7) > 0.6
    of = training(regions=True, ignore=9, batch_dice=True)
    its = nnunets("DC_and_BCE_loss", True, True)
    expected, gradient = value_and_gradient(its, scores, target)
    mean = LossOfTraining(built("dice_ce", of), SPACING, PATCH, ignore_channel=True)
    summed = LossOfTraining(built("dice_ce lambda_ce=4", of), SPACING, PATCH, ignore_channel=True)
    assert mean(scores, target).item() - 1 < expected / 2
    value, ours = value_and_gradient(summed, scores, target)
    assert value - 1 == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(ours, gradient, rtol=1e-5, atol=1e-8)


def _of_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/store")
    torch.manual_seed(rank)
    scores, target = torch.randn(3, 4, 6, 7, 5), torch.randint(4, (3, 1, 6, 7, 5))
    ours = value_and_gradient(built("dice_ce", training(batch_dice=True), ranks=True), scores, target)
    its = value_and_gradient(nnunets("DC_and_CE_loss", True, False, ddp=True), scores, target)
    torch.save({"ours": ours, "its": its}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@with_nnunet
@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_batch_dice_over_ranks_has_nnunets_gradient(tmp_path: Path) -> None:
    mp.spawn(_of_a_rank, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for rank in results:
        torch.testing.assert_close(rank["ours"][1], rank["its"][1], rtol=1e-5, atol=1e-8)
    # nnU-Net's cross-entropy is that of the rank's own samples, ours of all
    values = [np.mean([rank[whose][0] for rank in results]) for whose in ("ours", "its")]
    assert values[0] - 1 == pytest.approx(values[1], abs=1e-6)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of nnU-Net with a small data set of labels, prepared: two boxes in noise, 6 mm slices."""
    root = tmp_path_factory.mktemp("nnunet")
    write_raw(root / "raw" / "Dataset901_Boxes", {"background": 0, "left": 1, "right": 2}, annotated=True)
    regions = {"background": 0, "both": [1, 2], "right": 2, "ignore": 3}
    write_raw(root / "raw" / "Dataset902_Regions", regions, regions_class_order=[1, 2])
    (root / "ext").mkdir()
    (root / "ext" / "two_epochs.py").write_text(TWO_EPOCHS, encoding="utf-8")
    nnunet(root, "plan_and_preprocess", "-d", "901", "902", "-c", "2d", "3d_fullres", "-np", "1", "-npfp", "1")
    return root


TWO_EPOCHS = """
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerTwoEpochs(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 2
        self.num_iterations_per_epoch = 2
        self.num_val_iterations_per_epoch = 1
"""


def write_raw(folder: Path, labels: Mapping[str, Any], *, annotated: bool = False, **more: Any) -> None:
    """Six cases, in three of which only the first box is annotated, with `annotated`."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    generator = np.random.default_rng(0)
    affine = np.diag([1.0, 1.0, 6.0, 1.0])
    table = {}
    for number in range(6):
        case = f"case_{number}"
        label = np.zeros((24, 24, 8), np.uint8)
        label[3:9, 4:12, 2:6], label[14:20, 8:18, 1:6] = 1, 2
        if "ignore" in labels:
            label[:, :2] = 3
        image = label + generator.normal(0, 0.3, label.shape)
        if annotated and number % 2:
            label[label == 2] = 0
            table[case] = [1]
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), folder / "imagesTr" / f"{case}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / "labelsTr" / f"{case}.nii.gz")
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps({**content, **({"annotated": table} if annotated else {})}))


def nnunet(root: Path, command: str, *arguments: str, refused: bool = False, **variables: str) -> str:
    """Run a command of nnU-Net on the CPU, and give what it printed."""
    folders = {f"nnUNet_{kind}": str(root / kind) for kind in ("raw", "preprocessed", "results")}
    trainers = os.pathsep.join([str(root / "ext"), str(trainer_folder())])
    loaders = "1" if command == "plan_and_preprocess" else "0"  # planning wants one
    given = {**folders, "nnUNet_extTrainer": trainers, "nnUNet_n_proc_DA": loaders, "OMP_NUM_THREADS": "1", **variables}
    program = sys.executable if command == "python" else Path(sys.executable).with_name(f"nnUNetv2_{command}")
    run = subprocess.run(
        [program, *arguments], env={**os.environ, **given}, capture_output=True, text=True, timeout=900, check=False
    )
    assert (run.returncode != 0) == refused, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout + run.stderr


@with_nnunet
@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "configuration", "loss"),
    [
        ("901", "3d_fullres", "generalized_dice"),  # annotated in part, thick slices
        ("902", "3d_fullres", "surface"),  # regions, an ignore label
    ],
)
def test_trains_validates_and_predicts(data: str, configuration: str, loss: str, prepared: Path) -> None:
    printed = trains_and_predicts(prepared, data, configuration, f"nnUNetTrainer_{loss}__TwoEpochs")
    if data == "901":
        assert "annotate" in printed
        assert "PartialLabelLoss" in printed


@with_nnunet
@pytest.mark.slow
@pytest.mark.parametrize(
    ("configuration", "trainer", "variables"),
    [
        ("3d_fullres", "nnUNetTrainer_dice_ce", {}),
        ("2d", "nnUNetTrainer_focal_tversky", {}),
        ("3d_fullres", "nnUNetTrainer_extra_loss_mine", {CHOICE_VARIABLE: "compound weights=[1,0.5]"}),
    ],
)
def test_trains_on_the_hippocampus(
    configuration: str, trainer: str, variables: dict[str, str], of_the_hippocampus: Path
) -> None:
    """Exported by the command, prepared, trained for two epochs, validated and segmented; minutes each."""
    trains_and_predicts(of_the_hippocampus, "4", configuration, f"{trainer}__TwoEpochs", **variables)


def trains_and_predicts(root: Path, data: str, configuration: str, trainer: str, **variables: str) -> str:
    printed = nnunet(root, "train", data, configuration, "0", "-tr", trainer, "-device", "cpu", **variables)
    assert "Mean Validation Dice" in printed
    model = next(root.glob(f"results/Dataset{int(data):03d}_*/{trainer}__nnUNetPlans__{configuration}"))
    record = json.loads((model / "loss.json").read_text())
    assert record["trainer"] == trainer
    assert record["loss"]["_target_"].startswith("monai_extra_losses.losses.")
    images = root / "raw" / model.parent.name / "imagesTr"
    out = root / "predicted" / trainer
    options = ["-d", data, "-c", configuration, "-f", "0", "-tr", trainer, "-device", "cpu", "--disable_tta"]
    nnunet(root, "predict", "-i", str(images), "-o", str(out), *options)
    assert len(list(out.glob("*.nii.gz"))) == len(list(images.iterdir()))
    return printed


@pytest.fixture(scope="module")
def of_the_hippocampus(hippocampus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of six of the cases, by `export-nnunet`."""
    root = tmp_path_factory.mktemp("hippocampus")
    declared = json.loads((hippocampus / "dataset.json").read_text())
    declared["training"] = [
        {key: str((hippocampus / file).resolve()) for key, file in entry.items()} for entry in declared["training"][:6]
    ]
    (root / "six").mkdir()
    (root / "six" / "dataset.json").write_text(json.dumps(declared))
    arguments = ["export-nnunet", str(root / "six"), "--out", str(root / "raw"), "--id", "4"]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    (root / "ext").mkdir()
    (root / "ext" / "two_epochs.py").write_text(TWO_EPOCHS, encoding="utf-8")
    integrity = ("-np", "1", "-npfp", "1", "--verify_dataset_integrity")
    nnunet(root, "plan_and_preprocess", "-d", "4", "-c", "2d", "3d_fullres", *integrity)
    return root


# Of a batch of nnU-Net's own loader, through its network and its deep supervision.
OF_A_BATCH = """
import sys, torch
from nnunetv2.run.run_training import get_trainer_from_args
values = []
for trainer in ("nnUNetTrainer", "nnUNetTrainer_dice_ce"):
    trainer = get_trainer_from_args("4", sys.argv[1], 0, trainer, device=torch.device("cpu"))
    trainer.initialize()
    if not values:
        batch = next(trainer.get_dataloaders()[0])
        with torch.no_grad():
            scores = trainer.network(batch["data"])
    values.append(trainer.loss(scores, batch["target"]).item())
print("values", *values)
"""


@with_nnunet
@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_default_loss_and_ours_agree_on_a_batch_of_nnunets(configuration: str, of_the_hippocampus: Path) -> None:
    printed = nnunet(of_the_hippocampus, "python", "-c", OF_A_BATCH, configuration)
    its, ours = map(float, printed.partition("values")[2].split()[:2])
    assert ours - 1 == pytest.approx(its, abs=1e-5)


@with_nnunet
@pytest.mark.slow
def test_the_trainer_that_is_told_its_loss_goes_on_with_it_and_refuses_another(prepared: Path) -> None:
    arguments = ("901", "2d", "1", "-tr", "nnUNetTrainer_extra_loss_mine__TwoEpochs", "-device", "cpu")
    printed = nnunet(prepared, "train", *arguments, refused=True)
    assert f"expected the environment variable {CHOICE_VARIABLE}" in printed
    printed = nnunet(prepared, "train", *arguments, **{CHOICE_VARIABLE: "tversky alpha=0.4 beta=0.6"})
    assert "alpha=0.4" in printed
    printed = nnunet(prepared, "train", *arguments, refused=True, **{CHOICE_VARIABLE: "tversky"})
    assert "under a name of its own" in printed
    assert "alpha=0.4" in nnunet(prepared, "train", *arguments, "--val")
    arguments = ("901", "2d", "1", "-tr", "nnUNetTrainer_dice__TwoEpochs", "-device", "cpu")
    printed = nnunet(prepared, "train", *arguments, **{CHOICE_VARIABLE: "tversky"})
    assert f"{CHOICE_VARIABLE} is set and not read" in printed


@with_nnunet
@pytest.mark.slow
@pytest.mark.parametrize(
    ("annotated", "sentence"),
    [({"case_9": [1]}, "got case_9"), ({"case_1": [3]}, "case_1: expected annotated classes")],
)
def test_a_wrong_annotation_is_refused_before_the_first_step(
    annotated: dict[str, list[int]], sentence: str, prepared: Path
) -> None:
    file = prepared / "preprocessed" / "Dataset901_Boxes" / "dataset.json"
    declared = file.read_text()
    file.write_text(json.dumps({**json.loads(declared), "annotated": annotated}))
    arguments = ("901", "2d", "2", "-tr", "nnUNetTrainer_dice__TwoEpochs", "-device", "cpu")
    try:
        printed = nnunet(prepared, "train", *arguments, refused=True)
    finally:
        file.write_text(declared)
    assert sentence in printed
    assert "Epoch 0" not in printed


@with_nnunet
def test_names_are_found_by_nnunets_own_search(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", str(trainer_folder()))
    for name in trainer_names():
        found = recursive_find_trainer_class_by_name(name)
        assert found.__name__ == name
        assert issubclass(found, nnUNetTrainer)
    assert (
        recursive_find_trainer_class_by_name("nnUNetTrainer_tversky__250epochs")
        .__mro__[2]
        .__name__.endswith("250epochs")
    )
    with pytest.raises(ValueError, match="trainer of nnU-Net's"):
        recursive_find_trainer_class_by_name("nnUNetTrainer_tversky__no")
    with pytest.raises(RuntimeError, match="Could not find"):
        recursive_find_trainer_class_by_name("nnUNetTrainer_no")
