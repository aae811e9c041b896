"""The page "In the training you already have": its commands and files, run on a tiny bundle and on tiny algorithms.

Its Python blocks run in test_docs.py.
"""

import ast
import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.apps.auto3dseg import BundleAlgo
from monai.bundle import ConfigParser
from zoo_bundle import write_zoo_bundle

from monai_extra_losses.data import write_phantom

PAGE = (Path(__file__).parents[1] / "docs" / "training_you_have.md").read_text(encoding="utf-8")
SPACING = (1.0, 1.0, 3.0)  # of the phantom


def block(language: str, part: str) -> str:
    """The one block of the page in a language that has a text in it."""
    found = [code for code in re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M) if part in code]
    assert len(found) == 1, f"{len(found)} {language} blocks with {part!r}"
    return found[0]


# ---- a bundle ------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that trains for a step on two volumes, as the current folder."""
    data = write_phantom(tmp_path / "data", num_cases=2, num_test=0, shape=(16, 16, 8), spacing=SPACING)
    folder = write_zoo_bundle(tmp_path / "bundle", data)
    monkeypatch.chdir(folder)
    return folder


def trained(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, float]:
    """The module of the loss that `python -m monai.bundle run ...` trained with, and the value of its step."""
    python, dash_m, module, *arguments = shlex.split(command.replace("\\\n", " "))
    assert (python, dash_m) == ("python", "-m")
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return outcome(said.getvalue())


def outcome(said: str) -> tuple[str, float]:
    line = next(line for line in said.splitlines() if line.startswith("trained with "))
    return line.split()[2], float(line.split()[3])


ONE_OVERRIDE = block("sh", "--loss::_target_ monai_extra_losses.drop_in.DiceCELoss")


def test_one_override_swaps_the_loss_of_a_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, theirs = trained("python -m monai.bundle run --config_file configs/train.json", monkeypatch)
    assert module == "monai.losses.dice"
    module, ours = trained(ONE_OVERRIDE, monkeypatch)
    assert module == "monai_extra_losses.losses.compound"
    assert ours == pytest.approx(theirs, rel=1e-6)
    same = ONE_OVERRIDE.replace("drop_in.DiceCELoss", "losses.FusedDiceCELoss")
    assert trained(same, monkeypatch) == (module, ours)


@pytest.mark.slow
def test_the_override_works_where_nothing_else_has_imported_the_package(bundle: Path) -> None:
    _, *arguments = shlex.split(ONE_OVERRIDE)
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert outcome(ended.stdout)[0] == "monai_extra_losses.losses.compound"


def test_another_loss_comes_with_its_options(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = block("sh", "FocalTverskyLoss")
    assert trained(command, monkeypatch)[0] == "monai_extra_losses.losses.region"


def test_an_overlay_brings_a_compound_that_measures_mm(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "configs" / "dice_ce_and_surface.yaml").write_text(block("yaml", "surface: {_target_"))
    command = block("sh", "configs/dice_ce_and_surface.yaml").strip()
    module, value = trained(command, monkeypatch)
    assert module == "monai_extra_losses.losses.weighted_sum"
    spacing = f"{command} --loss::losses::surface::spacing"
    assert trained(f"{spacing} '{list(SPACING)}'", monkeypatch)[1] == pytest.approx(value, rel=1e-6)
    in_voxels = trained(f"{spacing} '$None'", monkeypatch)[1]
    assert abs(in_voxels - value) > 1e-3
    assert f'--loss::weights "{[1.0, 0.05]}"' in PAGE
    heavier = trained(f'{command} --loss::weights "[1.0, 0.05]"', monkeypatch)[1]
    assert abs(heavier - value) > 1e-3


def test_a_file_moves_the_loss_to_the_device(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "train::trainer::loss_function: $@loss.to(@device)"
    assert f"`{line}`" in PAGE
    (bundle / "configs" / "device.yaml").write_text(line)
    command = ONE_OVERRIDE.replace("configs/train.json", "\"['configs/train.json','configs/device.yaml']\"")
    assert trained(command, monkeypatch)[0] == "monai_extra_losses.losses.compound"


# ---- Auto3DSeg -----------------------------------------------------------------------

SECTIONS = [block("yaml", part) for part in ("drop_in.DiceCELoss", "gamma: 1.333", "my_losses.dice_ce_and_surface")]


@pytest.fixture
def my_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_losses.py").write_text(block("python", "# my_losses.py"))
    monkeypatch.syspath_prepend(tmp_path)


def of_segresnet(section: str, sigmoid: bool) -> torch.nn.Module:
    """The loss as SegResNet's script builds it: the references first, the section then by itself."""
    config = {"sigmoid": sigmoid, **yaml.safe_load(section)}
    resolved = ConfigParser(config).get_parsed_content("loss", instantiate=False).config
    return ConfigParser(resolved).get_parsed_content(instantiate=True)


def of_dints(section: str) -> torch.nn.Module:
    """The loss as the scripts of DiNTS and SwinUNETR build it."""
    return ConfigParser({"training": yaml.safe_load(section)}).get_parsed_content("training#loss")


@pytest.mark.parametrize("section", SECTIONS, ids=["drop_in", "focal_tversky", "compound"])
@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.usefixtures("my_losses")
def test_a_section_of_auto3dseg_builds_a_loss_that_learns(section: str, sigmoid: bool) -> None:
    loss = of_segresnet(section, sigmoid)
    assert type(loss).__module__.startswith("monai_extra_losses.")
    scores = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
    labels = torch.randint(0, 3, (2, 1, 8, 8, 8))
    target = torch.cat([labels == c for c in range(3)], 1).float() if sigmoid else labels.float()
    loss(scores, target).backward()
    assert scores.grad is not None
    assert scores.grad.any()


def test_a_loss_in_a_loss_is_for_dints_and_not_for_segresnet() -> None:
    section = block("yaml", "surface: {_target_")
    assert type(of_dints(section)).__name__ == "CompoundLoss"
    with pytest.raises(RuntimeError, match="Failed to instantiate component"):
        of_segresnet(section, sigmoid=False)


def test_training_parameters_of_auto3dseg_are_no_dictionaries(tmp_path: Path) -> None:
    algorithm = BundleAlgo(tmp_path)
    algorithm.output_path = str(tmp_path)
    with pytest.raises(ValueError, match="Nested dict is not supported"):
        algorithm.train({"loss": {"_target_": "monai_extra_losses.drop_in.DiceCELoss"}})


# An algorithm that does with its loss what MONAI's do, and nothing else.
_ALGO = """
from pathlib import Path
import yaml
from monai.apps.auto3dseg import BundleAlgo

class SegresnetAlgo(BundleAlgo):
    def fill_template_config(self, data_stats_filename, algo_path, **kwargs):
        file = Path(algo_path) / "configs" / "hyper_parameters.yaml"
        file.write_text(f"bundle_root: {algo_path}\\n" + file.read_text())
        return {}
"""
_TRAIN = """
from pathlib import Path
import fire
from monai.bundle import ConfigParser

def run(config_file, **override):
    parser = ConfigParser()
    parser.read_config(config_file.strip("'").split(","))
    parser.update(pairs=override)
    loss = ConfigParser(parser.get_parsed_content("loss", instantiate=False).config).get_parsed_content()
    with open(Path(parser["bundle_root"]) / "progress.yaml", "a") as progress:
        progress.write(f"- {{best_avg_dice_score: 0.5, loss: {type(loss).__module__}}}\\n")

fire.Fire({"run": run})
"""
_PARAMETERS = """
ckpt_path: $@bundle_root
sigmoid: false
loss:
  _target_: DiceCELoss
  squared_pred: true
  softmax: $not @sigmoid
  to_onehot_y: $not @sigmoid
"""


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """Templates of algorithms with one, and the data that the page names, beside them."""
    algorithm = tmp_path / "templates" / "segresnet"
    for name, text in (
        ("scripts/__init__.py", ""),
        ("__init__.py", ""),
        ("scripts/algo.py", _ALGO),
        ("scripts/train.py", _TRAIN),
        ("configs/hyper_parameters.yaml", _PARAMETERS),
    ):
        (algorithm / name).parent.mkdir(parents=True, exist_ok=True)
        (algorithm / name).write_text(text)
    data = write_phantom(tmp_path / "data", num_cases=2, num_test=0, shape=(16, 16, 8))
    listed = json.loads((data / "dataset.json").read_text())["training"]
    cases = [{"image": case["image"], "label": case["label"], "fold": 0} for case in listed]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": cases, "testing": []}))
    return tmp_path / "templates"


def autorunner(code: str, templates: Path) -> str:
    """Code of the page with AutoRunner, but with templates that are there, and without an ensemble of the models."""
    tree = ast.parse(code)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "AutoRunner":
            given = {"templates_path_or_url": str(templates), "ensemble": False}
            others = [keyword for keyword in call.keywords if keyword.arg not in given]
            call.keywords = [*others, *(ast.keyword(name, ast.Constant(value)) for name, value in given.items())]
    return ast.unparse(tree)


def losses_trained_with(work: Path) -> list[str]:
    files = sorted(work.glob("segresnet_*/progress.yaml"))
    return [yaml.safe_load(file.read_text())[-1]["loss"] for file in files]


@pytest.mark.slow
def test_autorunner_trains_with_an_edited_section_and_with_a_parameter(
    templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # it starts `python`
    names: dict[str, Any] = {}
    edit, parameter = block("text", "algo_gen=False"), block("text", "set_training_params")
    before, after = edit.split("# now work/segresnet_0")
    exec(compile(autorunner(before, templates), "page", "exec"), names)
    section = block("yaml", "drop_in.DiceCELoss")
    for file in Path("work").glob("segresnet_*/configs/hyper_parameters.yaml"):
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **yaml.safe_load(section)}))
    exec(compile(autorunner("# " + after, templates), "page", "exec"), names)
    assert losses_trained_with(Path("work")) == ["monai_extra_losses.losses.compound"]

    elsewhere = parameter.replace('"work"', '"again"')  # for AutoRunner goes on with files that are there
    exec(compile(autorunner(elsewhere, templates), "page", "exec"), names)
    assert "drop_in" not in Path("again/segresnet_0/configs/hyper_parameters.yaml").read_text()
    assert losses_trained_with(Path("again")) == ["monai_extra_losses.losses.compound"]


# ---- several processes ---------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    script = tmp_path / "several.py"
    script.write_text(block("python", "# several.py"))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    said = []
    for launch in ([], torchrun):
        ended = subprocess.run([sys.executable, *launch, str(script)], capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        said.append(ended.stdout.splitlines())
    alone, together = said
    assert len(alone) == 1
    assert together == alone * 2
