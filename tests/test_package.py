"""The package as it is installed: names, signatures, wheel, README."""

import importlib
import importlib.util
import inspect
import itertools
import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import fire
import monai.bundle
import monai.losses
import pytest
import torch
import yaml
from loss_list import each
from monai.bundle.config_item import ComponentLocator

import monai_extra_losses
from monai_extra_losses import bundle, data, drop_in, losses
from monai_extra_losses.losses.base import SegmentationLoss
from monai_extra_losses.losses.regression import RegressionLoss

ROOT = Path(__file__).parents[1]
MIGRATING = ROOT / "docs" / "migrating.md"
# HeadLoss is the way of others to their scores.
LOSSES = [name for name in losses.__all__ if name.endswith("Loss") and name != "HeadLoss"]


def _definitions() -> Iterator[str]:
    """Names of all classes and functions that our modules define, public or private."""
    for info in pkgutil.walk_packages(monai_extra_losses.__path__, "monai_extra_losses."):
        needs = {"_triton": "triton", "nnunet.trainer": "nnunetv2", "kernels.jit": "numba", "jit_loops": "numba"}
        if any(info.name.endswith(end) and importlib.util.find_spec(package) is None for end, package in needs.items()):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__:
                yield name


def test_no_definition_shares_a_name_with_monai() -> None:
    locator = ComponentLocator()
    locator.get_component_module_name("UNet")  # fills the table
    assert locator._components_table
    theirs = {
        name
        for name, modules in locator._components_table.items()
        if not all(module.startswith("monai_extra_losses") for module in modules)
    }
    assert {"DiceLoss", "UNet", "one_hot"} <= theirs
    assert set(_definitions()) & theirs == set()


def test_the_collision_test_would_see_a_collision() -> None:
    assert {"FusedDiceLoss", "SegmentationLoss", "_FusedSums", "write_phantom"} <= set(_definitions())


def test_public_names_are_sorted_and_there() -> None:
    assert losses.__all__ == sorted(losses.__all__)
    assert all(getattr(monai_extra_losses, name) is getattr(losses, name) for name in losses.__all__)


@pytest.mark.parametrize("module", [bundle, data], ids=lambda module: module.__name__)
def test_a_name_that_is_imported_when_it_is_asked_for_is_there(module: ModuleType) -> None:
    assert [name for name in module.__all__ if getattr(module, name).__name__ != name] == []


@pytest.fixture(scope="module")
def told_by_a_new_process() -> list[str]:
    """Lines: names of the package, what they imported, what a completer, `help` or an import lacks, two classes."""
    code = (
        "import sys, rlcompleter, monai_extra_losses as package\n"
        "print(set(package.__all__) <= set(dir(package)), *sorted(package.__all__))\n"
        "print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))\n"
        "completer = rlcompleter.Completer({'package': package})\n"
        "first = {n: completer.complete(f'package.{n}', 0) or '' for n in package.__all__}\n"
        "print([n for n, completed in first.items() if not completed.startswith(f'package.{n}')])\n"
        "import pydoc\n"
        "page = pydoc.plain(pydoc.render_doc(package))\n"
        "from monai_extra_losses import *\n"
        "print(sorted(n for n in package.__all__ if f'class {n}(' not in page or n not in globals()))\n"
        "import monai_extra_losses.drop_in\n"
        "from monai.bundle import ConfigParser\n"
        "named = {'ours': {'_target_': 'JaccardLoss', 'softmax': True}, 'monai': {'_target_': 'DiceLoss'}}\n"
        "parser = ConfigParser(named)\n"
        "print(*(type(parser.get_parsed_content(name)).__module__ for name in ('ours', 'monai')))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    return result.stdout.splitlines()


def test_the_package_names_every_loss_without_importing_torch_and_gives_it(told_by_a_new_process: list[str]) -> None:
    """To a completer, to `help` and to a star import."""
    listed, imported, completed, not_given, *_ = told_by_a_new_process
    assert listed.split() == ["True", *sorted([*losses.__all__, "config_dir"])]
    assert imported == "[]"
    assert completed == "[]"
    assert not_given == "['config_dir']"  # a function


def test_an_editor_completes_every_loss() -> None:
    """From the sources, as jedi reads them for editors and notebooks."""
    jedi = pytest.importorskip("jedi")
    for code in ("import monai_extra_losses as package\npackage.", "from monai_extra_losses import "):
        project = jedi.Project(ROOT, sys_path=[str(Path(monai_extra_losses.__file__).parents[1]), *sys.path])
        completed = {completion.name for completion in jedi.Script(code, project=project).complete()}
        assert set(losses.__all__) - completed == set()


def test_an_unknown_name_of_the_package_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'FancyLoss'"):
        monai_extra_losses.FancyLoss  # noqa: B018


def test_importing_the_command_line_loads_neither_torch_nor_monai() -> None:
    code = "import sys, monai_extra_losses.cli; print([m for m in ('torch', 'monai', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_short_names_work_in_a_config_and_monai_s_stay_monai_s(told_by_a_new_process: list[str]) -> None:
    """Also when ours is imported first."""
    assert told_by_a_new_process[-1].split() == ["monai_extra_losses.losses.region", "monai.losses.dice"]


@each("name", drop_in.__all__)
def test_a_drop_in_is_a_plain_alias(name: str) -> None:
    measuring = {"BoundaryLoss": "SurfaceLoss", "HausdorffDTLoss": "HausdorffLoss"}
    measuring["LogHausdorffDTLoss"] = "LogHausdorffLoss"
    assert getattr(drop_in, name).__name__ == measuring.get(name, f"Fused{name}")


@each("name", drop_in.__all__)
def test_a_drop_in_has_monai_s_parameters_then_ours_by_keyword_only(name: str) -> None:
    ours = list(inspect.signature(getattr(drop_in, name)).parameters.values())
    theirs = list(inspect.signature(getattr(monai.losses, name)).parameters.values())
    assert [(p.name, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.kind) for p in theirs]
    for mine, monais in zip(ours, theirs, strict=False):
        assert mine.default == getattr(monais.default, "value", monais.default)
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


@each("name", LOSSES)
def test_a_signature_lists_every_option(name: str) -> None:
    parameters = inspect.signature(getattr(losses, name)).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if name == "CompoundLoss":
        assert set(parameters) == {"losses", "weights"}  # the options are those of its parts
        return
    if name == "PartialLabelLoss":
        assert set(parameters) == {"loss", "mode", "exclusion"}
        return
    regression = issubclass(getattr(losses, name), RegressionLoss)  # its target is no map of labels
    shared = {"include_background", "reduction"} | (set() if regression else {"to_onehot_y", "ignore_index"})
    assert shared <= set(parameters)


@pytest.mark.parametrize("name", LOSSES)
def test_a_docstring_has_all_its_parts(name: str) -> None:
    loss = getattr(losses, name)
    text = inspect.getdoc(loss) or ""
    for part in ("Args:", "Shapes", "Example:", ">>> ", "Reference:"):
        assert part in text, part
    assert re.search(r"[Rr]aises", text)
    described = set(re.findall(r"^ {4}([\w, *]+):", text.split("Args:")[1], re.M))
    words = set(re.findall(r"\w+", " ".join(described)))
    own = vars(loss).get("__init__", lambda self: None)
    own = {p for p, v in inspect.signature(own).parameters.items() if v.kind is not v.VAR_KEYWORD} - {"self"}
    assert own <= words, own - words


def test_every_loss_is_in_the_table_of_configs() -> None:
    table = yaml.safe_load((monai_extra_losses.config_dir() / "losses.yaml").read_text())["losses"]
    # regression losses have no map of labels as target, which is what the training configs give
    labels = {name for name in LOSSES if not issubclass(getattr(losses, name), RegressionLoss)}
    classes = {}
    for key, entry in table.items():
        assert entry["_desc_"]
        # a boundary loss comes with a region loss as partner, and has the name of the entry
        key = {"dice_ce_calibrated": "average_calibration"}.get(key, key)  # named for the sum
        chosen = entry["losses"][key] if key in entry.get("losses", []) else entry
        classes[key] = chosen["_target_"].rpartition(".")[2]
        name = classes[key].removeprefix("Fused").removesuffix("Loss").replace("DoU", "Dou")
        assert key == re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    assert set(classes.values()) == labels


def test_every_loss_is_in_the_table_of_losses() -> None:
    text = (ROOT / "docs" / "losses" / "index.md").read_text()
    assert [name for name in LOSSES if f"| [`{name}`](" not in text] == []


def test_a_number_of_the_table_is_the_default_of_its_class_or_a_comment_says_why_not() -> None:
    text = (monai_extra_losses.config_dir() / "losses.yaml").read_text()
    compared, other = 0, []
    for node in entries_of_losses(yaml.compose(text)):
        values = {key.value: value for key, value in node.value}
        cls = getattr(losses, values["_target_"].value.rpartition(".")[2])
        parameters = inspect.signature(cls).parameters
        for option, value in values.items():
            given = yaml.safe_load(yaml.serialize(value))
            if option.startswith("_") or str(given).startswith("@") or option in ("loss", "losses", "weights"):
                continue
            default = getattr(parameters[option].default, "value", parameters[option].default)
            compared += 1
            if given != (list(default) if isinstance(default, tuple) else default):
                line = text.splitlines()[value.start_mark.line]
                other += [] if " # " in line else [f"{cls.__name__}({option}={given!r}), the default is {default!r}"]
    assert compared >= 25
    assert not other, "equal, or a comment on the line: " + "; ".join(other)


def entries_of_losses(node: yaml.Node) -> Iterator[yaml.MappingNode]:
    """The mappings with a loss as `_target_`, at any depth."""
    if isinstance(node, yaml.MappingNode):
        keys = {key.value: value.value for key, value in node.value}
        if str(keys.get("_target_", "")).startswith("monai_extra_losses.losses."):
            yield node
        for _, value in node.value:
            yield from entries_of_losses(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from entries_of_losses(value)


def test_every_loss_derives_from_the_one_base() -> None:
    others = {name for name in LOSSES if not issubclass(getattr(losses, name), SegmentationLoss)}
    assert others == {"CompoundLoss", "PartialLabelLoss"}  # they have parts, and no data of their own


def test_the_first_lines_of_the_readme_run() -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code
    names: dict[str, torch.Tensor] = {}
    exec(code.group(1), names)
    assert names["value"].ndim == 0
    assert names["logits"].grad is not None


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("target", "extra", "other"), [("demo", "bundle", "dev"), ("test", "dev", "bundle")])
def test_make_installs_what_its_target_needs_and_shows_it(tmp_path: Path, target: str, extra: str, other: str) -> None:
    def planned(venv: Path) -> str:
        command = ["make", "-n", target, f"VENV={venv}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    first = planned(tmp_path / "new")
    assert f"-m pip install -c constraints.txt -e '.[{extra}]'" in first
    assert f".[{other}]" not in first
    assert " -q " not in first.partition("pytest")[0]
    (tmp_path / "done").mkdir()
    for stamp in re.findall(rf"touch {tmp_path}/new/(\S+)", first):
        (tmp_path / "done" / stamp).touch()
    assert "pip install" not in planned(tmp_path / "done")


def test_the_documentation_names_the_drop_ins_that_give_another_number() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 3, 8, 8, 8), torch.randint(0, 3, (2, 1, 8, 8, 8))
    labels[:, :, :7] = 0
    others = set()
    for name, activation in itertools.product(drop_in.__all__, ("softmax", "sigmoid")):
        activated = {} if name == "FocalLoss" and activation == "sigmoid" else {activation: True}
        options = {"to_onehot_y": True} | ({"use_softmax": True} if name == "FocalLoss" and activated else activated)
        theirs, ours = (getattr(module, name)(**options)(scores, labels).item() for module in (monai.losses, drop_in))
        if ours != pytest.approx(theirs, rel=1e-6):
            others.add(name)
    text = MIGRATING.read_text().partition("Three usual calls give other numbers")[2].partition("\n\n")[0]
    assert (
        others
        == set(re.findall(r"`(\w+Loss)\b", text))
        == {
            "DiceCELoss",
            "DiceFocalLoss",
            "GeneralizedDiceLoss",
        }
    )


def test_the_lines_of_the_documentation_swap_the_loss_of_another_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").mkdir()
    trainer = {"_target_": "SupervisedTrainer", "max_epochs": 1, "device": "cpu", "optimizer": "@optimizer"}
    trainer |= {"train_data_loader": "@loader", "network": "@network", "loss_function": "@loss"}
    item = "{'image': torch.randn(1, 8, 8, 8), 'label': torch.randint(0, 3, (1, 8, 8, 8))}"
    options = {"to_onehot_y": True, "softmax": True, "squared_pred": True, "batch": True}
    config = {
        "network": {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3}
        | {"channels": [4, 8], "strides": [2]},
        "loss": {"_target_": "DiceCELoss", **options},
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()"},
        "loader": {"_target_": "DataLoader", "dataset": f"$[{item}]", "batch_size": 1},
        "trainer": trainer,
        "imports": ["$import torch"],
        "run": ["$@trainer.run()", "$print('trained with', type(@loss).__name__, @loss.to_onehot_y, @loss.softmax)"],
    }
    (tmp_path / "configs" / "train.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^python -m (monai\.bundle run (?:.*\\\n)*.*)$", MIGRATING.read_text(), re.M)
    swaps = [command for command in commands if "train.json" in command]
    assert len(swaps) == 2
    for command, name in zip(swaps, ("FusedDiceCELoss", "FocalTverskyLoss"), strict=True):
        fire.Fire(monai.bundle.run, command=shlex.split(command.replace("\\\n", " "))[2:])
        assert f"trained with {name} True True" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files that git tracks."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if files.returncode:
        pytest.skip("the test of wheel and sdist needs a git checkout: it builds from what git tracks.")
    return [name for name in files.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a clean export, and the wheel of that sdist."""
    folder = tmp_path_factory.mktemp("built")
    for name in tracked:
        target = folder / "export" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    (folder / "export" / "notes.txt").write_text("of the maintainer")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-o", folder, folder / "export"],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


def test_the_sdist_holds_what_git_tracks_but_for_what_belongs_to_the_code_host(built: Path, tracked: list[str]) -> None:
    """So that it builds the documentation and runs the tests."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    of_the_host = {name for name in tracked if name.startswith((".ci/", ".github/"))}
    assert names - {"PKG-INFO"} == set(tracked) - of_the_host


def test_the_wheel_holds_the_configs_the_code_and_the_licence(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    configs = {path.name for path in (ROOT / "configs").iterdir()}
    assert {"train.yaml", "losses.yaml", "evaluate.yaml", "inference.yaml", "metadata.json"} <= configs
    assert {f"monai_extra_losses/configs/{name}" for name in configs} <= names
    assert {"monai_extra_losses/py.typed", "monai_extra_losses/losses/region.py"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names} == {
        "monai_extra_losses",
        f"monai_extra_losses-{monai_extra_losses.__version__}.dist-info",
    }


def test_the_wheel_has_the_version_of_the_package(wheel: zipfile.ZipFile) -> None:
    version = monai_extra_losses.__version__
    assert f"monai_extra_losses-{version}.dist-info/METADATA" in wheel.namelist()
