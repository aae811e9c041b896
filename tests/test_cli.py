"""The command `monai-extra-losses`, through its entry point, and what it says to bad input."""

import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

import monai_extra_losses
from monai_extra_losses.cli import main
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.workflow import checked_overrides

CONFIGS = monai_extra_losses.config_dir()
QUICK = ["--epochs", "1", "--num_folds", "3", "--channels", "[4,8,16]"]


def succeeds(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def sentence_of(*arguments: object) -> str:
    """The sentence that a command ends with; a process prints it to stderr and exits with 1."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, str)
    return ended.value.code


# ---- what works --------------------------------------------------------------------------------------------------


def test_train_evaluate_infer(phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "Müller's data (1)"
    shutil.copytree(phantom_folder, data)
    run = tmp_path / "runs of today" / "it's $one"
    succeeds("train", "--data", data, "--run", run, "--loss", "focal_tversky", "--loss::gamma", "2", *QUICK)
    assert json.loads((run / "models" / "run.json").read_text())["loss"] == "FocalTverskyLoss"
    succeeds("evaluate", "--run", run, "--split", "all", "--overlays=False")
    assert "surface Dice" in capsys.readouterr().out
    succeeds("infer", "--run", run, "--input", data / "imagesTs", "--output", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 2


def test_train_with_the_overlays_of_the_boundary_losses(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    overlays = ("--with", "boundary_maps", "--with", "boundary_schedule")  # their order is ours
    succeeds("train", "--data", phantom_folder, "--run", run, *overlays, *QUICK)
    with (run / "eval" / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["weight_surface"]) == 1.0  # after the last epoch of the ramp
    assert {"train_loss_dice_ce", "train_loss_surface"} <= rows[-1].keys()
    text = sentence_of("train", "--data", phantom_folder, "--run", tmp_path / "other", "--loss", "hausdorff", *overlays)
    assert "expected parts of the loss, dice_ce, hausdorff, got 'surface'" in text


def test_demo_does_everything(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    succeeds("demo", "--loss", "tversky", "--data", phantom_folder, *QUICK)
    out = tmp_path / "runs" / "demo_tversky"
    assert (out / "eval" / "curves.png").exists()
    assert list((out / "eval" / "overlays").glob("*.png"))
    assert (out / "segmentations" / "phantom_test_000_seg.nii.gz").exists()
    said = capsys.readouterr().out
    assert "phantom_test_000.nii.gz (never seen)" in said
    assert "lesions" not in said  # the data are the user's
    assert str(out) in said
    assert "expected a new or empty folder" in sentence_of("demo", "--out", out).lower()


def test_the_demo_says_that_lesions_take_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("monai_extra_losses.commands._DEMO_CASES", 3)
    monkeypatch.setattr("monai_extra_losses.commands._DEMO_EPOCHS", 2)
    succeeds("demo", "--out", tmp_path / "out", *QUICK[2:], "--patch_size", "[32,32,16]", "--val_interval", "1")
    said = capsys.readouterr().out
    assert "with dice_ce their Dice stays at 0.000 for about 25\nepochs, and then rises" in said
    assert re.search(r"epoch 1/2 .* left\n", said)


def test_list_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    succeeds("list")
    listed = capsys.readouterr().out
    for name in yaml.safe_load((CONFIGS / "losses.yaml").read_text())["losses"]:
        assert f"{name} " in listed
    succeeds("version")
    assert f"monai-extra-losses {monai_extra_losses.__version__}" in capsys.readouterr().out


def test_the_copied_bundle_trains(phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    succeeds("config-dir")
    assert capsys.readouterr().out.strip() == str(CONFIGS)
    bundle = tmp_path / "my bundle"
    succeeds("config-dir", "--copy", bundle)
    assert {path.name for path in (bundle / "configs").iterdir()} >= {path.name for path in CONFIGS.glob("*.*")}
    assert "Apache License" in (bundle / "LICENSE").read_text()
    assert "exists and is left alone" in sentence_of("config-dir", "--copy", bundle)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train.yaml", *QUICK]
    command += ["--dataset_dir", str(phantom_folder), "--bundle_root", "run"]
    subprocess.run(command, cwd=bundle, check=True, timeout=120)
    assert (bundle / "run" / "models" / "model.pt").exists()


def test_help_needs_no_torch() -> None:
    """The command line starts in a blink; the losses come with the command that needs them."""
    code = "import sys; from monai_extra_losses.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'monai', 'numpy', 'matplotlib'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["train", "evaluate", "infer"])
def test_help_names_the_options_that_are_used_most(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    succeeds(command, "--help")
    shown = capsys.readouterr().out
    assert "monai-extra-losses config-dir" in shown
    files = {"train": ("train",), "evaluate": ("train", "evaluate"), "infer": ("inference",)}[command]
    known = {key for name in files for key in yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())}
    block = shown.partition("Often")[2].partition("monai-extra-losses config-dir")[0]
    named = re.findall(r"--(\w+)", block)
    assert len(named) >= 6
    assert set(named) <= known


def test_a_plain_installation_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "monai_extra_losses.commands", raising=False)
    assert "needs click" in (said := sentence_of("list"))
    assert "pip install '.[bundle]' in the checkout, or 'FILE.whl[bundle]'" in said


# ---- options and losses that do not exist ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--loss", "tverski"], "There is no loss 'tverski' (did you mean 'tversky'?); known are dice_ce, dice,"),
        (["--epoch", "3"], "There is no option 'epoch' (did you mean 'epochs'?)."),
        (["--optimizer::weight_decai", "0"], "'weight_decai' of optimizer (did you mean 'weight_decay'?); known are"),
        (["--loss", "tversky", "--loss::alfa", "1"], "'alfa' of losses::tversky (did you mean 'alpha'?); known are"),
        (["--losses::tversky::alfa", "1"], "'alfa' of losses::tversky (did you mean 'alpha'?); known are"),
        (["--epochs::much", "1"], "There is no option 'epochs::much': epochs is a single value."),
        (["--loss::_target_", "monai.losses.DiceLos"], "There is no class 'monai.losses.DiceLos'"),
        (["--loss", "tversky", "--loss::reduction", "most"], "monai_extra_losses.losses.FusedTverskyLoss: "),
        (["--batch_size"], "Expected a value after --batch_size, got none."),
        (["batch_size", "3"], "Expected options as --KEY VALUE, got 'batch_size' without a key before it."),
    ],
)
def test_an_unknown_option_is_one_sentence(
    phantom_folder: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    said = sentence_of("train", "--data", phantom_folder, "--run", tmp_path / "run", *arguments)
    assert sentence in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


def test_the_demo_refuses_a_mistyped_option_at_once(tmp_path: Path) -> None:
    assert "did you mean 'dice_ce'?" in sentence_of("demo", "--loss", "dicece", "--out", tmp_path / "out")
    assert "did you mean 'epochs'?" in sentence_of("demo", "--epoch", "3", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overrides_are_written_as_monai_takes_them() -> None:
    config = {
        "epochs": 1,
        "loss": "@losses::dice",
        "losses": {"dice": {"_target_": "monai.losses.DiceLoss", "softmax": True}},
        "steps": [{"_target_": "monai.transforms.Identity"}],
    }
    assert checked_overrides(config, {"loss": "dice", "loss::jaccard": True, "epochs": 2}) == {
        "loss": "@losses::dice",
        "losses::dice::jaccard": True,
        "epochs": 2,
    }
    # another class has other options
    other = {"loss::_target_": "monai.losses.TverskyLoss", "loss::alpha": 0.3}
    assert checked_overrides(config, other) == {
        "losses::dice::_target_": "monai.losses.TverskyLoss",
        "losses::dice::alpha": 0.3,
    }
    for key in ("steps::0::_disabled_", "+steps"):
        assert checked_overrides(config, {key: True}) == {key: True}
    with pytest.raises(StartUpRefused, match=r"Expected configs/losses\.yaml among the config files for the loss dice"):
        checked_overrides({"loss": {}}, {"loss": "@losses::dice"})


def test_monai_runs_the_workflow_by_name(phantom_folder: Path, tmp_path: Path) -> None:
    files = [str(CONFIGS / "train.yaml"), str(CONFIGS / "losses.yaml")]
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--workflow_name", "monai_extra_losses.workflow.SegmentationWorkflow", "--config_file", str(files)]
    command += [
        "--dataset_dir",
        str(phantom_folder),
        "--bundle_root",
        str(tmp_path / "run"),
        "--loss",
        "@losses::tverski",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("There is no loss 'tverski' (did you mean 'tversky'?)")


# ---- a loss of one's own -----------------------------------------------------------------------------------------

OWN = """
import torch

class MyLoss(torch.nn.Module):
    def __init__(self, scale=1.0, *, to_onehot_y=False, softmax=False):
        super().__init__()
        if scale < 0:
            raise KeyError("scale")
        self.scale, self.to_onehot_y, self.softmax = scale, to_onehot_y, softmax

    def forward(self, scores, label):
        return self.scale * torch.nn.functional.cross_entropy(scores, label[:, 0].long())

class Outer:
    class Inner(MyLoss):
        pass

def my_function(scores, label):
    return (scores - label).mean()

instance = MyLoss()
"""


@pytest.fixture
def own_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, which is not on Python's path."""
    name = f"losses_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / f"{name}_broken.py").write_text("import torch\n\nclass MyLoss(torch.nn.Module)\n    pass\n")
    (tmp_path / f"{name}_needs.py").write_text("import torch\nimport a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    return name


def test_a_loss_of_one_s_own_trains_resumes_and_is_recorded(
    phantom_folder: Path, tmp_path: Path, own_loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["--data", phantom_folder, "--run", run, "--loss", f"{own_loss}.MyLoss", "--loss::scale", "2", *QUICK]
    succeeds("doctor", *arguments)
    assert "MyLoss applies softmax, as scores of 3 channels need it." in capsys.readouterr().out
    succeeds("train", *arguments)
    record = json.loads((run / "models" / "run.json").read_text())
    assert record["loss"] == f"{own_loss}.MyLoss"
    assert record["loss_options"] == {"class": "MyLoss", "scale": 2, "to_onehot_y": True, "softmax": True}
    config = yaml.safe_load((run / "models" / "config.yaml").read_text())
    assert config["loss"]["_target_"] == f"{own_loss}.MyLoss"
    succeeds("evaluate", "--run", run, "--overlays", "False")
    succeeds("infer", "--run", run, "--input", phantom_folder / "imagesTs", "--output", tmp_path / "out")
    arguments[arguments.index("1")] = "2"  # epochs
    said = sentence_of("train", *arguments, "--loss::scale", "3", "--resume", "True")
    assert "Expected the option scale of the loss to be 2 as in the run to resume, got 3" in said
    said = sentence_of("train", *arguments[:5], f"{own_loss}.Outer.Inner", *arguments[6:], "--resume", "True")
    assert f"Expected loss '{own_loss}.MyLoss' as in the run to resume, got '{own_loss}.Outer.Inner'" in said
    succeeds("train", *arguments, "--resume", "True")
    assert len((run / "eval" / "training.csv").read_text().splitlines()) == 3


def test_any_class_that_can_be_imported_is_a_loss(own_loss: str) -> None:
    for path, given in {
        "monai.losses.DiceLoss": {"include_background", "to_onehot_y", "softmax", "sigmoid"},
        "monai.losses.FocalLoss": {"include_background", "to_onehot_y", "use_softmax"},
        "monai_extra_losses.FocalTverskyLoss": {"include_background", "to_onehot_y", "softmax", "sigmoid"},
        "torch.nn.CrossEntropyLoss": set(),
        f"{own_loss}.MyLoss": {"to_onehot_y", "softmax"},
        f"{own_loss}.Outer.Inner": {"to_onehot_y", "softmax"},
    }.items():
        checked = checked_overrides({"loss": "@losses::dice", "losses": {"dice": {}}}, {"loss": path})
        assert checked["loss"].pop("_target_") == path
        assert set(checked["loss"]) == given
        assert all(value == f"@{name.removeprefix('use_')}" for name, value in checked["loss"].items())


@pytest.mark.parametrize(
    ("loss", "options", "sentence"),
    [
        ("NOWHERE.MyLoss", {}, r"no module 'NOWHERE' can be imported from the current folder \(.*\) or from what is"),
        ("OWN.MyLos", {}, r"There is no 'MyLos' in OWN \(did you mean 'MyLoss'\?\)\."),
        ("OWN.Outer.Iner", {}, r"There is no 'Iner' in OWN"),
        (
            "OWN.my_function",
            {},
            r"Expected loss to be a class of torch\.nn\.Module .*, got OWN\.my_function, a function",
        ),
        ("OWN.Outer", {}, r"got OWN\.Outer, a class of another kind; write one that calls it\."),
        ("OWN.instance", {}, r"got OWN\.instance, a MyLoss; write"),
        ("OWN_broken.MyLoss", {}, r"cannot be imported: SyntaxError: .* \(OWN_broken\.py, line 3\)\."),
        ("OWN_needs.MyLoss", {}, r"ModuleNotFoundError: No module named 'a_package_.*' \(OWN_needs\.py, line 2\)\."),
        ("OWN.py", {}, r"got the file 'OWN\.py'; give OWN\.NAME of a class in it, from its folder\."),
        ("./OWN.py", {}, r"got the file '\./OWN\.py'; give OWN\.NAME"),
        (".MyLoss", {}, r"The loss \.MyLoss cannot be imported: ValueError"),
        ("OWN.MyLoss", {"loss::scael": 2}, r"There is no option 'scael' of loss \(did you mean 'scale'\?\)"),
    ],
)
def test_what_is_no_loss_of_one_s_own_is_one_sentence(
    own_loss: str, loss: str, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(StartUpRefused, match=sentence.replace("OWN", own_loss)):
        checked_overrides({"loss": {}}, {**options, "loss": loss.replace("OWN", own_loss)})


def test_an_own_loss_that_refuses_its_options_is_one_sentence(
    phantom_folder: Path, tmp_path: Path, own_loss: str
) -> None:
    arguments = ("train", "--data", phantom_folder, "--run", tmp_path / "run", "--loss", f"{own_loss}.MyLoss", *QUICK)
    assert (
        sentence_of(*arguments, "--loss::scale", "-1")
        == f"{own_loss}.MyLoss: KeyError: 'scale' ({own_loss}.py, line 8)."
    )
    assert sentence_of(*arguments, "--loss::scale", "much").startswith(f"{own_loss}.MyLoss: '<' not supported")
    assert not (tmp_path / "run").exists()


def test_any_target_is_importable_from_the_current_folder(own_loss: str) -> None:
    config = {"loss": {"_target_": "torch.nn.MSELoss"}}
    checked = checked_overrides(config, {"loss::_target_": f"{own_loss}.MyLoss", "loss::scale": 2})
    assert checked == {"loss::_target_": f"{own_loss}.MyLoss", "loss::scale": 2}


# ---- data sets and folders that cannot be used -------------------------------------------------------------------


def rewrite(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    volume = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(change(np.asarray(volume.dataobj)), volume.affine), file)


def no_list_and_no_pairs(data: Path) -> None:
    (data / "dataset.json").unlink()
    shutil.rmtree(data / "imagesTr")


def moved_image(data: Path) -> None:
    file = data / "imagesTr" / "phantom_000.nii.gz"
    volume = nibabel.load(file)
    affine = volume.affine.copy()
    affine[0, 3] += 5
    nibabel.save(nibabel.Nifti1Image(np.asarray(volume.dataobj), affine), file)


IMAGE, LABEL = Path("imagesTr/phantom_000.nii.gz"), Path("labelsTr/phantom_000.nii.gz")
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list": (no_list_and_no_pairs, "dataset.json"),
    "no json": (lambda data: (data / "dataset.json").write_text("{"), "expected valid JSON"),
    "missing": (lambda data: (data / IMAGE).unlink(), "phantom_000.nii.gz"),
    "empty": (lambda data: (data / IMAGE).write_bytes(b""), "phantom_000.nii.gz"),
    "truncated": (lambda data: (data / IMAGE).write_bytes((data / IMAGE).read_bytes()[:-400]), "phantom_000.nii.gz"),
    "no NIfTI": (lambda data: (data / IMAGE).write_bytes(gzip.compress(b"text" * 100)), "phantom_000.nii.gz"),
    "shape": (lambda data: rewrite(data / LABEL, lambda voxels: voxels[:-1]), "shape"),
    "affine": (moved_image, "phantom_000.nii.gz"),
    "label value": (lambda data: rewrite(data / LABEL, lambda voxels: voxels + 5), "label values"),
    "NaN": (lambda data: rewrite(data / IMAGE, lambda voxels: np.where(voxels > 0, np.nan, 1.0)), "NaN"),
    "constant": (lambda data: rewrite(data / IMAGE, np.zeros_like), "constant"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_data_set_is_refused_before_anything_is_written(
    phantom_folder: Path, tmp_path: Path, name: str
) -> None:
    damage, words = BROKEN[name]
    data = tmp_path / "data"
    shutil.copytree(phantom_folder, data)
    damage(data)
    said = sentence_of("train", "--data", data, "--run", tmp_path / "run", *QUICK)
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_all_problems_are_listed_at_once(phantom_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantom_folder, data)
    (data / IMAGE).unlink()
    (data / "labelsTr" / "phantom_003.nii.gz").write_bytes(b"")
    said = sentence_of("train", "--data", data, "--run", tmp_path / "run", *QUICK)
    assert "2 problems" in said
    assert "imagesTr/phantom_000.nii.gz" in said
    assert "labelsTr/phantom_003.nii.gz" in said


def test_folders_that_cannot_be_used(phantom_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert "which does not exist" in sentence_of("train", "--data", tmp_path / "nowhere", "--run", tmp_path / "run")
    said = sentence_of("train", "--data", phantom_folder, "--run", file / "run", *QUICK)
    assert "Expected bundle_root (--run) to be a folder that can be written" in said
    assert file.read_text() == "mine"
    said = sentence_of("train", "--data", phantom_folder, "--run", tmp_path / "run", "--num_folds", "7")
    assert "expected at least as many labelled cases as folds, got 6 for num_folds 7" in said
    assert "expected a new or empty folder" in sentence_of("phantom", "--out", phantom_folder)
    if os.geteuid() != 0:  # root may write everywhere
        (closed := tmp_path / "closed").mkdir(mode=0o500)
        assert "no permission" in sentence_of("train", "--data", phantom_folder, "--run", closed / "run", *QUICK)


def test_the_installed_command_prints_one_sentence_and_exits_with_1(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "monai_extra_losses.cli",
        "train",
        "--data",
        tmp_path / "nowhere",
        "--run",
        tmp_path / "run",
    ]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stdout == ""
    (sentence,) = [line for line in ended.stderr.splitlines() if "Warning" not in line and "warn" not in line]
    assert "expected a data set folder" in sentence
