"""`monai-extra-losses doctor`: a training that is right gets no complaint, and each wrong one its sentence."""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.losses
import nibabel
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import monai_extra_losses
from monai_extra_losses import CompoundLoss, CrossEntropyLoss, losses
from monai_extra_losses.bundle.loss_facts import has_regions_alone, loss_of_equal_scores, score_reading
from monai_extra_losses.bundle.running import config_files
from monai_extra_losses.cli import main
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.doctor.annotation import CaseAnnotation, shares_told
from monai_extra_losses.doctor.findings import Finding, _about_empty_patches, _about_tiny_classes, examine
from monai_extra_losses.doctor.steps import spread_cases

TABLE = yaml.safe_load((monai_extra_losses.config_dir() / "losses.yaml").read_text())["losses"]


class OwnLoss(nn.Module):
    """A user's loss that takes any options."""

    def __init__(self, **options: Any) -> None:
        super().__init__()


class NotANumber(OwnLoss):
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        return torch.log(scores.mean() * 0 - 1)


class WithoutSlope(OwnLoss):
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        return torch.sqrt((scores * 0).sum()) + 1


class CutOff(OwnLoss):
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        return (scores.argmax(1, keepdim=True) != target).float().mean()


class OutOfRange(OwnLoss):
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        return scores[:, 5].mean()


class TwoResults(OwnLoss):
    def forward(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return scores.mean(), scores.std()


class InPlace(OwnLoss):
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        grown = scores.exp()
        total = (grown * grown).sum()
        grown += 1
        return total


class Flat(OwnLoss):
    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        return (scores * 0).mean()


class Rising(OwnLoss):
    """A loss that gets worse, whatever the network does."""

    calls = 0

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        Rising.calls += 1
        return scores.mean() * 1e-3 + Rising.calls


class Unbuildable(OwnLoss):
    def __init__(self, **options: Any) -> None:
        raise RuntimeError("no kernel for this machine")


def findings(
    data: Path, configs: Sequence[str] = ("train", "losses"), run: Path | None = None, **options: Any
) -> list[Finding]:
    quick: dict[str, Any] = {"epochs": 1, "num_folds": 3, "channels": [4, 8]}
    return list(examine(config_files(configs), run, dataset_dir=str(data), **{**quick, **options}))


def of_level(found: Sequence[Finding], level: str) -> list[str]:
    return [finding.text for finding in found if finding.level == level]


def test_what_is_passed_over_is_a_warning(phantom_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(phantom_folder, tmp_path / "data")
    (data / "imagesTr" / "more.mha").touch()
    (text,) = of_level(findings(data), "warning")
    assert text == f"Passed over: {data / 'imagesTr'}: 1 file that dataset.json does not list (more.mha)."


def the_problem(data: Path, **options: Any) -> str:
    (text,) = of_level(findings(data, **options), "problem")
    return text


# ---- right trainings -------------------------------------------------------------------------------------------------


def test_the_default_training_is_ok(phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = findings(phantom_folder, epochs=7, val_interval=3, batch_size=3, tracking="mlflow", run_name="mine")
    assert {finding.level for finding in found} == {"ok"}
    text = "\n".join(finding.text for finding in found)
    assert (
        "4 cases would train a U-Net and 2 validate it, in patches of 32 x 32 x 16 voxels, 3 a step, on cpu in float32"
        in text
    )
    assert "Voxels of 12 patches from 4 cases: background " in text
    assert "Each label value (0 background, 1 organ, 2 lesion) has its channel" in text
    assert "FusedDiceCELoss applies softmax" in text
    assert "+ ln 3 = " in text
    assert "7 epochs of 2 steps and 3 validations of 2 cases take about" in text
    assert "The volumes of all 6 cases are kept in memory" in text
    assert list(tmp_path.iterdir()) == []  # nothing is written


@pytest.mark.parametrize("name", ["tversky", "hinge", "unified_focal", "lovasz", "hausdorff", "compound"])
def test_losses_of_the_table_are_no_problem(phantom_folder: Path, name: str) -> None:
    found = findings(phantom_folder, loss=name)
    assert of_level(found, "problem") == []
    assert any("steps on one batch change the loss" in text for text in of_level(found, "ok"))


def test_maps_and_schedules(phantom_folder: Path) -> None:
    found = findings(phantom_folder, ("train", "losses", "boundary_schedule", "boundary_maps"))
    assert of_level(found, "problem") == []
    assert any(text.startswith("SurfaceLoss applies softmax") for text in of_level(found, "ok"))


# ---- wrong trainings -------------------------------------------------------------------------------------------------


def test_raw_scores_for_probabilities(phantom_folder: Path) -> None:
    text = the_problem(phantom_folder, **{"loss": "dice", "loss::softmax": False})
    assert text.startswith("FusedDiceLoss takes what it is given for probabilities, but the network gives raw scores")
    assert "(--loss::softmax True)" in text


def test_probabilities_where_raw_scores_belong(phantom_folder: Path) -> None:
    network = "$torch.nn.Sequential(@network_def, torch.nn.Softmax(1))"
    text = the_problem(phantom_folder, built_network=network)
    assert text.startswith("FusedDiceCELoss applies softmax to what are probabilities already")
    text = the_problem(phantom_folder, built_network=network, loss="hinge")
    assert text.startswith("HingeLoss reads raw scores; the network's are between 0")


def test_sigmoid_with_labels_is_a_warning(phantom_folder: Path) -> None:
    found = findings(phantom_folder, **{"loss::softmax": False, "loss::sigmoid": True})
    assert of_level(found, "problem") == []
    (text,) = of_level(found, "warning")
    assert text.startswith("FusedDiceCELoss decides each of the 3 channels by itself (sigmoid)")
    assert any("+ ln 2 = " in text for text in of_level(found, "ok"))


def test_wrong_number_of_weights(phantom_folder: Path) -> None:
    text = the_problem(phantom_folder, **{"loss": "tversky", "loss::weight": [1, 2]})
    assert text.startswith("The forward pass of the loss failed: The length of the `weight` sequence should be")
    assert "expected 3 numbers, got 2" in text
    assert "for each of the 3 classes (background, organ, lesion)" in text
    right = findings(phantom_folder, **{"loss": "tversky", "loss::weight": [1, 2], "include_background": False})
    assert "FusedTverskyLoss weights the classes: organ 1, lesion 2." in of_level(right, "ok")


def test_labels_without_to_onehot(phantom_folder: Path) -> None:
    text = the_problem(phantom_folder, **{"loss": "dice", "loss::to_onehot_y": False})
    assert "ground truth has different shape" in text
    assert text.endswith("the target is a map of labels: --loss::to_onehot_y True.")


def test_a_network_of_too_few_channels(phantom_folder: Path) -> None:
    text = the_problem(phantom_folder, **{"network_def::out_channels": 2})
    assert "Expected scores of 3 channels, one per label value (0 background, 1 organ, 2 lesion), got (4, 2," in text


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (NotANumber, "Expected a number as loss of finite scores, got nan; a formula divides by 0"),
        (WithoutSlope, "Expected finite gradients of the scores, got NaN or infinity though the loss is 1;"),
        (CutOff, "The backward pass of the loss failed: RuntimeError: element 0 of tensors does not require grad"),
        (OutOfRange, "The forward pass of the loss failed: IndexError: index 5 is out of bounds for dimension 1"),
        (TwoResults, "The forward pass of the loss failed: expected a tensor from the loss, got tuple"),
        (InPlace, "something changes a tensor in place that the gradient needs: clone it first."),
        (Flat, "Expected a gradient of the network, got 0 everywhere; the loss does not depend on the scores."),
    ],
)
def test_a_loss_that_fails_is_one_sentence(phantom_folder: Path, own: type, sentence: str) -> None:
    text = the_problem(phantom_folder, **{"loss::_target_": f"{__name__}.{own.__name__}"})
    assert sentence in text
    assert "\n" not in text


def test_a_loss_that_cannot_be_built_is_refused_as_by_a_training(phantom_folder: Path) -> None:
    sentence = r"test_doctor\.Unbuildable: RuntimeError: no kernel for this machine \(test_doctor\.py, line \d+\)\."
    with pytest.raises(StartUpRefused, match=sentence):
        findings(phantom_folder, **{"loss::_target_": f"{__name__}.Unbuildable"})


def test_the_line_of_the_own_loss_is_named(phantom_folder: Path) -> None:
    text = the_problem(phantom_folder, **{"loss::_target_": f"{__name__}.OutOfRange"})
    line = next(
        number
        for number, code in enumerate(Path(__file__).read_text().splitlines(), start=1)
        if "return scores[:, 5]" in code
    )
    assert f"(test_doctor.py, line {line})" in text


def test_the_part_of_a_compound_that_is_no_number_is_named(phantom_folder: Path) -> None:
    parts = {"one": {**TABLE["dice"], "include_background": True}, "two": {"_target_": f"{__name__}.NotANumber"}}
    loss = {"_target_": "monai_extra_losses.losses.CompoundLoss", "losses": parts}
    found = findings(phantom_folder, loss=loss)
    assert "got nan (of the part two);" in of_level(found, "problem")[0]


def test_a_loss_that_does_not_fall_is_a_warning(phantom_folder: Path) -> None:
    found = findings(phantom_folder, **{"loss::_target_": f"{__name__}.Rising"})
    assert any(": it should fall; try a lower --learning_rate" in text for text in of_level(found, "warning"))


def test_a_class_that_the_patches_miss_is_a_warning(phantom_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(phantom_folder, tmp_path / "data")
    for file in (data / "labelsTr").iterdir():
        label = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.minimum(np.asarray(label.dataobj), 1), label.affine), file)
    (text,) = of_level(findings(data), "warning")
    assert text.startswith("None of 16 patches from 4 cases has a voxel of lesion. If few cases have one, the loss")


@pytest.mark.parametrize(("patches", "warned"), [(0, False), (3, True), (4, False)])
def test_a_class_that_few_patches_have_is_a_warning(patches: int, warned: bool) -> None:
    """Of 16 patches half are centred on the lesion, give or take 2."""
    record = SimpleNamespace(labels={0: "background", 1: "lesion"}, foreground={1: "lesion"})
    training: Any = SimpleNamespace(names=["background", "lesion"], record=record)
    held = torch.stack([torch.arange(18) < 3, torch.arange(18) < patches])
    told = torch.arange(18).expand(2, 18) < 16
    sentences = [finding.text for finding in _about_empty_patches(training, held, told)]
    assert [text[:50] for text in sentences] == ["Only 3 of 16 patches have a voxel of lesion; the o"] * warned


def test_a_label_that_was_interpolated(phantom_folder: Path) -> None:
    text = the_problem(phantom_folder, **{"train::interpolation": ["bilinear", "bilinear"], "batch_size": 4, "seed": 2})
    assert text.startswith("Expected the labels 0 to 2 in the patches, got ")
    assert text.endswith("a label must be resampled with nearest neighbours.")


def test_no_gradient_for_a_layer_is_a_warning(phantom_folder: Path) -> None:
    network = "$torch.nn.ModuleList([@network_def, torch.nn.Linear(3, 3)])"
    found = findings(phantom_folder, built_network=network, **{"train::inferer": "$lambda x, network: network[0](x)"})
    assert "Without gradient: 1 layer, 1.weight the first; unused?" in of_level(found, "warning")


def test_a_region_loss_alone_on_a_tiny_class_is_a_warning(phantom_folder: Path) -> None:
    quick: dict[str, Any] = {"patch_size": [32, 32, 16], "batch_size": 2}
    (text,) = of_level(findings(phantom_folder, loss="tversky", **quick), "warning")
    assert re.match(
        r"lesion \(0\.\d\d%\): less than 1% of the voxels, and FusedTverskyLoss without a cross-entropy", text
    )
    assert "--loss dice_ce, or in a config `compound` of this loss and cross_entropy." in text
    for loss in ("dice_ce", "surface", "combo", "exponential_logarithmic"):
        warned = of_level(findings(phantom_folder, loss=loss, **quick), "warning")
        assert not any("without a cross-entropy" in text for text in warned), loss


@pytest.mark.parametrize(("share", "warned"), [(0.0, False), (0.0001, True), (0.0099, True), (0.01, False)])
def test_tiny_is_below_a_hundredth(share: float, warned: bool) -> None:
    found = list(_about_tiny_classes(losses.FusedDiceLoss(softmax=True), {"background": 1 - share, "lesion": share}))
    assert [finding.level for finding in found] == ["warning"] * warned


def test_which_losses_are_regions_alone() -> None:
    region, cross_entropy = losses.FusedDiceLoss(softmax=True), losses.CrossEntropyLoss(softmax=True)
    for loss in (
        region,
        losses.SurfaceLoss(softmax=True),
        losses.LovaszLoss(softmax=True),
        monai.losses.DiceLoss(softmax=True),
        monai.losses.TverskyLoss(softmax=True),
        CompoundLoss([region, losses.SurfaceLoss(softmax=True)]),
        CompoundLoss([region, cross_entropy], weights=[1.0, 0.0]),
    ):
        assert has_regions_alone(loss), loss
    for loss in (
        cross_entropy,
        losses.FusedDiceCELoss(softmax=True),
        losses.UnifiedFocalLoss(softmax=True),
        monai.losses.DiceCELoss(softmax=True),
        CompoundLoss([region, cross_entropy]),
        nn.MSELoss(),  # unknown
    ):
        assert not has_regions_alone(loss), loss


def test_threads_that_wait_for_each_other_are_a_warning(phantom_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "monai_extra_losses.bundle.thread_stalls.Interruptions.warning", lambda _: "set OMP_NUM_THREADS=1."
    )
    assert of_level(findings(phantom_folder, device="cpu"), "warning") == ["set OMP_NUM_THREADS=1."]


def test_a_folder_in_use_and_refusals(phantom_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").touch()
    (text,) = of_level(findings(phantom_folder, run=tmp_path), "problem")
    assert "already holds a run (models/model.pt)" in text
    assert of_level(findings(phantom_folder, run=tmp_path, overwrite=True), "problem") == []
    assert [path.name for path in tmp_path.rglob("*")] == ["models", "model.pt"]
    with pytest.raises(StartUpRefused, match="There is no option 'epoch'"):
        findings(phantom_folder, epoch=3)
    with pytest.raises(StartUpRefused, match="expected a data set folder"):
        findings(tmp_path / "nowhere")


# ---- what can be said of a loss before it runs -----------------------------------------------------------------------

LABEL = (torch.arange(2 * 6 * 6 * 6).view(2, 1, 6, 6, 6) ** 2 % 7).clamp(max=2)  # three classes, more of the last


@pytest.mark.parametrize(
    "loss",
    [
        *(
            getattr(losses, name)(to_onehot_y=True, softmax=True, **options)
            for name, options in (
                ("FusedDiceLoss", {}),
                ("FusedDiceLoss", {"squared_pred": True, "include_background": False}),
                ("FusedDiceLoss", {"batch": True, "absent_class": "skip"}),
                ("CrossEntropyLoss", {"weight": [1, 2, 5]}),
                ("FusedDiceCELoss", {"lambda_ce": 0.3}),
                ("FusedDiceFocalLoss", {"gamma": 1.5}),
                ("DiceTopKLoss", {}),
                ("PolyLoss", {"epsilon": 2.0}),
                ("GeneralizedCrossEntropyLoss", {"q": 0.3}),
                ("TopKLoss", {}),
            )
        ),
        *(
            getattr(losses, name)(to_onehot_y=True)
            for name in ("HingeLoss", "SquaredHingeLoss", "CategoricalHingeLoss")
        ),
        losses.FusedFocalLoss(to_onehot_y=True, use_softmax=True, gamma=3.0),
        losses.FusedFocalLoss(to_onehot_y=True, gamma=3.0),
        losses.FusedDiceCELoss(to_onehot_y=True, sigmoid=True),
        losses.CrossEntropyLoss(to_onehot_y=True, sigmoid=True),
        monai.losses.DiceCELoss(to_onehot_y=True, softmax=True),
        monai.losses.DiceLoss(to_onehot_y=True, sigmoid=True),
        monai.losses.FocalLoss(to_onehot_y=True, use_softmax=True),
        monai.losses.DiceFocalLoss(to_onehot_y=True, softmax=True),
        CompoundLoss(
            [losses.FusedDiceLoss(to_onehot_y=True, softmax=True), CrossEntropyLoss(to_onehot_y=True, softmax=True)],
            weights=[0.4, 2.0],
        ),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_the_loss_of_equal_scores_is_its_formula(loss: nn.Module) -> None:
    known = loss_of_equal_scores(loss, LABEL, 3)
    assert known is not None
    value = loss(torch.zeros(2, 3, 6, 6, 6), LABEL.float()).mean()
    assert known[0] == pytest.approx(value.item(), rel=1e-4)


def test_the_words_say_how_the_number_comes_about() -> None:
    loss = CrossEntropyLoss(to_onehot_y=True, softmax=True)
    assert loss_of_equal_scores(loss, LABEL, 3) == (math.log(3), "ln 3")
    focal = losses.FusedFocalLoss(to_onehot_y=True, use_softmax=True)
    known = loss_of_equal_scores(CompoundLoss([loss, focal], weights=[1.0, 0.5]), LABEL, 3)
    assert known is not None
    assert known[1] == "ln 3 + 0.5 ((1 - 1/3)^2 ln 3/3)"


def test_what_is_not_known_is_none() -> None:
    options: dict[str, Any] = {"to_onehot_y": True, "softmax": True}
    for loss in (
        losses.JaccardLoss(**options),
        losses.CrossEntropyLoss(**options, reduction="sum"),
        losses.CrossEntropyLoss(**options, ignore_index=2),
        losses.FusedDiceLoss(**options, weight=[1.0, 2.0, 3.0]),
        losses.FusedDiceLoss(to_onehot_y=True),
        CompoundLoss([losses.FusedDiceLoss(**options), losses.JaccardLoss(**options)]),
        nn.MSELoss(),
    ):
        assert loss_of_equal_scores(loss, LABEL, 3) is None


def test_how_a_loss_reads_scores() -> None:
    def reading(loss: nn.Module) -> tuple[Any, ...] | None:
        known = score_reading(loss)
        return None if known is None else dataclasses.astuple(known)

    assert reading(losses.FusedDiceLoss(softmax=True)) == ("softmax", False, "softmax")
    assert reading(losses.FusedDiceLoss(other_act=torch.sigmoid)) == ("other_act", False, "softmax")
    assert reading(losses.FusedDiceLoss()) == (None, False, "softmax")
    assert reading(losses.FusedFocalLoss()) == ("sigmoid", False, "use_softmax")
    assert reading(losses.HingeLoss()) == (None, True, "softmax")
    assert reading(monai.losses.DiceCELoss(sigmoid=True)) == ("sigmoid", False, "softmax")
    assert reading(nn.MSELoss()) is None


@pytest.mark.parametrize(
    ("cases", "number", "chosen"), [(10, 4, [0, 3, 6, 9]), (3, 5, [0, 1, 2]), (7, 1, [0]), (2, 2, [0, 1])]
)
def test_cases_are_spread(cases: int, number: int, chosen: list[int]) -> None:
    assert spread_cases(range(cases), number) == chosen


# ---- cases that annotate some classes only ---------------------------------------------------------------------------


def partly(source: Path, folder: Path, cases: Sequence[int], **declared: Any) -> Path:
    """The phantom, in some cases of which nobody has looked for lesions."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "dataset.json").read_text())
    for number in cases:
        entry = content["training"][number]
        entry["annotated"] = [1]
        label = nibabel.load(folder / entry["label"])
        voxels = np.asarray(label.dataobj).copy()
        voxels[voxels == 2] = 1
        nibabel.save(nibabel.Nifti1Image(voxels, label.affine), folder / entry["label"])
    (folder / "dataset.json").write_text(json.dumps(content | declared))
    return folder


def test_a_share_is_of_the_patches_that_tell_of_the_class() -> None:
    counts = torch.tensor([[80, 95, 60], [20, 5, 40], [0, 0, 0], [7, 7, 7]])
    told = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [False, False, False]])
    assert shares_told(counts, torch.tensor([100, 100, 300]), told) == [235 / 500, 60 / 400, 0.0, None]


def test_partly_annotated_cases_are_told_and_counted(phantom_folder: Path, tmp_path: Path) -> None:
    found = findings(partly(phantom_folder, tmp_path / "data", [0, 2, 3]))
    assert of_level(found, "problem") == []
    said = "\n".join(of_level(found, "ok"))
    assert "3 of 6 cases are partly annotated. Training wraps the loss in PartialLabelLoss by itself" in said
    assert "that takes a loss with softmax." in said
    assert re.search(
        r"Voxels of 16 patches from 4 cases: background [\d.]+%, organ [\d.]+%, lesion [\d.]+%, each in the", said
    )
    assert "expected" not in next(line for line in said.splitlines() if line.startswith("A network that knows nothing"))


def test_regions_are_annotated_with_all_of_their_labels(phantom_folder: Path, tmp_path: Path) -> None:
    regions = {"whole": [1, 2], "organ": [1]}
    found = findings(partly(phantom_folder, tmp_path / "data", range(5), regions=regions), fold=0)
    said = "\n".join(finding.text for finding in found)
    assert "5 of 6 cases are partly annotated." in said
    assert "that takes a loss with sigmoid, as regions need it." in said
    record: Any = SimpleNamespace(
        dataset_dir=str(tmp_path / "data"),
        training=("phantom_000", "phantom_001"),
        validation=("phantom_005",),
        labels={0: "background", 1: "organ", 2: "lesion"},
        regions={"whole": (1, 2), "organ": (1,)},
    )
    annotation = CaseAnnotation(record)
    assert annotation.told(["phantom_000", "phantom_005"]).tolist() == [[False, True], [True, True]]
    assert (annotation.partly_annotated_cases, annotation.cases) == (2, 3)


# ---- the command -----------------------------------------------------------------------------------------------------


def ended(*arguments: object) -> Any:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def test_the_command(phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--num_folds", "3", "--channels", "[4,8]", "--epochs", "1"]
    run = tmp_path / "run"
    assert ended("doctor", "--data", phantom_folder, "--run", run, "--loss", "poly", *quick) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "No problem, no warning."
    assert {line[:9] for line in lines[:-1]} == {"ok       ", " " * 9}
    assert max(map(len, lines)) <= 100
    assert not run.exists()
    assert ended("doctor", "--data", phantom_folder, "--loss", "dice", "--loss::to_onehot_y", "False", *quick) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 problem, 1 warning."  # and a lesion is tiny
    assert any(line.startswith("problem  The forward pass of the loss failed:") for line in lines)
    assert "did you mean 'tversky'?" in ended("doctor", "--data", phantom_folder, "--loss", "tverski")
    assert ended("doctor", "--loss", "dice") == 2
