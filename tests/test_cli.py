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
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from marks import slow_but
from monai.bundle import ConfigParser, ConfigWorkflow

import monai_extra_losses
from monai_extra_losses.bundle.options import file_or_folder
from monai_extra_losses.bundle.processes import device_of_process, join_processes
from monai_extra_losses.bundle.workflow import checked_overrides
from monai_extra_losses.cli import main
from monai_extra_losses.data.errors import StartUpRefused

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


@pytest.mark.usefixtures("real_pictures")
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
    # the same call shows what is there
    model = (out / "models" / "model.pt").stat().st_mtime_ns
    succeeds("demo", "--loss", "tversky", "--data", phantom_folder, *QUICK)
    said = capsys.readouterr().out
    assert said.startswith("This demo is finished; for a new one name another --out, or delete ")
    assert "Trained to epoch 1 in" in said
    assert f"best model           {out / 'models' / 'model.pt'}" in said
    assert (out / "models" / "model.pt").stat().st_mtime_ns == model
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    # another call has a folder of its own
    succeeds("demo", "--loss", "tversky", "--data", phantom_folder, *QUICK, "--seed", "1")
    assert {path.name for path in out.parent.iterdir()} == {out.name, f"{out.name}-2"}


def test_a_demo_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from monai_extra_losses.cli import commands
    from monai_extra_losses.data import phantom

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_DEMO_CASES", 6)
    out = tmp_path / "runs" / "demo_dice_ce"
    steps: list[str] = []
    last = ""
    run_configs, save = commands.run_configs, phantom.nib.save

    def run_until(configs: tuple[str, ...], **options: Any) -> None:
        steps.append(configs[-1])
        if configs[-1] == last:
            raise KeyboardInterrupt
        run_configs(configs, **options)

    def save_until(volume: Any, file: Path) -> None:
        if last == "phantom" and file.name == "phantom_003.nii.gz":
            raise KeyboardInterrupt
        save(volume, file)

    monkeypatch.setattr(commands, "run_configs", run_until)
    monkeypatch.setattr(phantom.nib, "save", save_until)
    call = ("demo", "--epochs", "2", "--num_folds", "3", "--channels", "[4,8,16]", "--patch_size", "[32,32,16]")
    every = ["losses", "evaluate", "inference"]
    for count, stage in enumerate(["phantom", *every]):
        last = stage
        steps.clear()
        with pytest.raises(SystemExit) as ended:
            main([*call])
        assert ended.value.code == 130
        assert "go on with:\n  monai-extra-losses demo --epochs 2" in capsys.readouterr().err
        assert steps == every[:count]
    tables = (out / "eval" / "summary.csv").stat().st_mtime_ns
    last = "never"
    steps.clear()
    succeeds(*call)
    assert steps == ["losses", "inference"]
    said = capsys.readouterr().out
    assert "Nothing to do: 2 epochs are trained" in said
    assert f"Done before: {out / 'eval' / 'summary.csv'}" in said
    assert (out / "eval" / "summary.csv").stat().st_mtime_ns == tables
    assert json.loads((out / "models" / "run.json").read_text())["epochs"] == 2
    assert len(list((out / "phantom" / "imagesTr").iterdir())) == 6
    assert not (out / ".phantom").exists()
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    succeeds(*call)
    assert "This demo is finished" in capsys.readouterr().out


def test_the_demo_says_that_lesions_take_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("monai_extra_losses.cli.commands._DEMO_CASES", 3)
    monkeypatch.setattr("monai_extra_losses.cli.commands._DEMO_EPOCHS", 2)
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


def test_packages_under_other_names_have_versions_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import monai

    from monai_extra_losses.bundle.run_folder import describe_environment

    def not_installed(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    # as under monai-weekly, or in a checkout that nobody installed
    monkeypatch.setattr(metadata, "version", not_installed)
    monkeypatch.setattr(metadata, "files", not_installed)
    succeeds("version")
    assert f"monai {monai.__version__}\n" in capsys.readouterr().out
    packages = describe_environment()["packages"]
    assert (packages["monai"], packages["edt"]) == (monai.__version__, "unknown")
    succeeds("config-dir", "--copy", tmp_path / "copy")
    assert "Apache License" in (tmp_path / "copy" / "LICENSE").read_text()


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
    subprocess.run(command, cwd=bundle, check=True, timeout=600)
    assert (bundle / "run" / "models" / "model.pt").exists()


@pytest.mark.parametrize("command", ["", "train"])
def test_help_needs_no_torch(command: str) -> None:
    """The command line starts in a blink; the losses come with the command that needs them."""
    words = [*command.split(), "--help"]
    code = f"import sys; from monai_extra_losses.cli import main\ntry: main({words})\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'monai', 'numpy', 'matplotlib'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
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
    monkeypatch.delitem(sys.modules, "monai_extra_losses.cli.commands", raising=False)
    assert "needs click" in (said := sentence_of("list"))
    assert "pip install '.[bundle]' in the checkout, or 'FILE.whl[bundle]'" in said


# ---- several processes ------------------------------------------------------------------------------------------


@pytest.fixture
def by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts each of three processes."""
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "0")


@pytest.mark.usefixtures("by_torchrun")
@pytest.mark.parametrize("command", ["infer", "prepare", "pool", "demo", "doctor", "check", "phantom"])
def test_a_command_for_one_process_refuses_several(command: str) -> None:
    said = sentence_of(command)
    assert said == f"Expected one process for {command}, got 3 by torchrun; only train and evaluate take several."


@pytest.mark.usefixtures("by_torchrun")
def test_processes_without_the_config_for_them_are_refused(phantom_folder: Path, tmp_path: Path) -> None:
    options = {"dataset_dir": str(phantom_folder), "bundle_root": str(tmp_path / "run"), "num_folds": 3}
    workflow = ConfigWorkflow(str(CONFIGS / "train.yaml"), **options)
    with pytest.raises(
        StartUpRefused, match=r"Expected one process, got 3 by torchrun; add configs/multi_gpu_train\.yaml"
    ):
        workflow.initialize()
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("by_torchrun")
@pytest.mark.parametrize("device", [(), ("--device", "cpu")])
def test_more_processes_than_cases_are_refused(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: tuple[str, ...]
) -> None:
    backends = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: backends.append(backend))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: bool(backends))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("monai_extra_losses.bundle.processes.idist.sync", lambda: None)
    run = ("--bundle_root", tmp_path / "run")  # torchrun takes --run for its own
    said = sentence_of("train", "--dataset_dir", phantom_folder, *run, *QUICK, *device)
    assert said == (
        "Expected at least a validation case for each of the 3 processes, got 2; start fewer (--nproc_per_node)."
    )
    assert backends == ["gloo"]


def test_a_process_that_torchrun_did_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(StartUpRefused, match="Expected a process that torchrun started, got one without RANK in its"):
        join_processes("cpu")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert device_of_process() == torch.device("cuda", 2)
    for device in ("cuda", "cuda:0"):
        with pytest.raises(
            StartUpRefused, match=f"a GPU for each process, got '{device}' for all; leave --device away"
        ):
            join_processes(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(StartUpRefused, match=r"Expected a GPU for each process, got 2 for 3 processes or more on this"):
        device_of_process()


@pytest.mark.usefixtures("by_torchrun")
def test_the_first_of_several_processes_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from monai_extra_losses.cli.commands import commands

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.commands["train"], "callback", stopped)
    for rank, said in {
        "0": "\nStopped by Ctrl-C. What was finished is kept; go on with the same call and --resume True.\n",
        "1": "",
    }.items():
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit) as ended:
            main(["train", "--data", "d", "--run", "r"])
        assert ended.value.code == 130
        assert capsys.readouterr().err == said


@pytest.mark.slow
def test_torchrun_starts_the_short_commands(phantom_folder: Path, tmp_path: Path) -> None:
    """Torchrun takes `--run` for `--run-path`, unless `--` is before it; so the configs' names are taken too."""

    def in_two_processes(*words: str) -> subprocess.CompletedProcess[str]:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(launch, capture_output=True, text=True, timeout=600, env=environment)

    run, data = tmp_path / "R#1", str(phantom_folder)
    train = ("monai_extra_losses", "train", "--data", data)
    assert "ambiguous option: --run" in in_two_processes(*train, "--run", str(run), *QUICK).stderr
    ended = in_two_processes(*train, "--bundle_root", str(run), "--device", "cpu", *QUICK)
    assert ended.returncode == 0, ended.stderr
    ended = in_two_processes("--", "monai_extra_losses", "evaluate", "--run", str(run), "--overlays", "False")
    assert ended.returncode == 0, ended.stderr
    with (run / "eval" / "cases.csv").open() as file:
        assert len({row["case"] for row in csv.DictReader(file)}) == 2


# ---- names of files ---------------------------------------------------------------------------------------------

NAMES = {
    "the parser's signs": "R#1 a@#b %#c",
    "an id of the parser": "x::y",
    "a macro": "%losses",
    "a reference": "@loss",
    "an expression": "$1+1",
    "quotes and a break": "q'u\"o\ntick`",
    "not Latin": " é ñ 脳 ",
    "a number": "1e5",
    "a list": "[a,b]",
}


@pytest.mark.parametrize("kind", slow_but(["the parser's signs", "quotes and a break", "a list"], NAMES))
def test_any_name_of_a_folder_is_taken_as_it_is(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Relative names too; and nothing is written but into the folders asked for."""
    monkeypatch.chdir(tmp_path)
    name = NAMES[kind]
    data, run, cache, results, found = (f"{name} {part}" for part in ("data", "run", "cache", "eval", "out"))
    run = name  # alone, as the parser would read it
    shutil.copytree(phantom_folder, data)
    succeeds("train", "--data", data, "--run", run, "--cache", "disk", "--cache_dir", cache, *QUICK)
    succeeds("evaluate", "--run", run, "--output_dir", results, "--overlays", "False")
    model = Path(run) / "models" / "model.pt"
    shutil.copy(model, f"{name}.pt")
    source = f"{data}/imagesTs/phantom_test_000.nii.gz"
    succeeds("infer", "--run", run, "--input", source, "--output", found, "--model_file", f"{name}.pt")
    assert {path.name for path in tmp_path.iterdir()} == {data, run, cache, results, found, f"{name}.pt"}
    assert list(Path(cache).iterdir())
    assert (Path(results) / "cases.csv").exists()
    assert (Path(found) / "phantom_test_000_seg.nii.gz").exists()
    record = json.loads((Path(run) / "models" / "run.json").read_text())
    assert record["dataset_dir"] == str(tmp_path / data)
    # the config, as it was run, names the same folders
    parser = ConfigParser()
    parser.read_config(Path(run) / "models" / "config.yaml")
    assert [os.fspath(parser.get_parsed_content(key)) for key in ("bundle_root", "dataset_dir", "cache_dir")] == [
        str(tmp_path / run),
        str(tmp_path / data),
        cache,
    ]


def test_a_name_that_no_file_can_have_is_one_sentence(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, sentence in {
        "": "Expected --run to be the name of a file or folder, got ''",  # of a variable that is not set
        "~no one/run": "Expected --run to begin with the home of a user, got '~no one/run'; write ./~no one/run for it",
        "\udcff": "Expected --run to be a name in UTF-8",
        "n" * 300: "got: name too long; choose a shorter one",
    }.items():
        assert sentence in sentence_of("train", "--data", phantom_folder, "--run", name, *QUICK)
    run = ("--data", phantom_folder, "--run", "run", *QUICK)
    assert "Expected pretrained to be the name of a file or folder, got ''" in sentence_of(
        "train", *run, "--pretrained="
    )
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    succeeds("phantom", "--out", "~/phantom", "--cases", "1")
    assert (tmp_path / "home" / "phantom" / "dataset.json").exists()
    succeeds("phantom", "--kind", "vessels", "--out", "~/vessels", "--cases", "1")
    assert '"artery"' in (tmp_path / "home" / "vessels" / "dataset.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--seed", "$1/0"],
            "Expected seed to be an expression that Python can evaluate, got '$1/0' (ZeroDi",
        ),
        (["--seed", "$("], "Expected seed to be an expression that Python can evaluate, got '$('"),
        (
            ["--seed", "@epoch"],
            "Expected seed to refer to a value of the config, got '@epoch' (did you mean 'epochs'?)",
        ),
        (["--seed", "%epoch"], "Expected seed to be a macro (%) that names a value of the config or of another file"),
        (["--seed", "%gone.yaml::x"], "Expected seed to be a macro (%) that names a value of the config or of another"),
        (["--loss", "tversky", "--loss::reduction", "me#an"], "Unsupported reduction: me#an, available options are"),
    ],
)
def test_what_the_parser_cannot_follow_is_one_sentence(
    phantom_folder: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    said = sentence_of("train", "--data", phantom_folder, "--run", tmp_path / "run", *arguments)
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_the_macros_and_references_of_monai_still_work(phantom_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("rate: 0.5\n")
    options = ("--learning_rate", f"%{tmp_path}/other.yaml#rate", "--batch_size", "$1 + 1", "--val_interval", "@epochs")
    succeeds("train", "--data", phantom_folder, "--run", tmp_path / "run", *QUICK, *options)
    record = json.loads((tmp_path / "run" / "models" / "run.json").read_text())
    assert (record["learning_rate"], record["batch_size"], record["val_interval"]) == (0.5, 2, 1)


def test_monai_s_own_workflow_refuses_a_name_that_its_parser_changes(phantom_folder: Path, tmp_path: Path) -> None:
    for key, name in (("bundle_root", "R#1"), ("dataset_dir", "da#ta"), ("cache_dir", "c#d"), ("pretrained", "m#.pt")):
        options = {"dataset_dir": str(phantom_folder), "bundle_root": str(tmp_path / "run"), key: str(tmp_path / name)}
        workflow = ConfigWorkflow(str(CONFIGS / "train.yaml"), **options)
        with pytest.raises(
            StartUpRefused, match=f"Expected {key} to be a name without ::, got .*; MONAI's parser makes"
        ):
            workflow.initialize()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "arrived"), [("R#1", "R"), ("1e5", 100000.0), ("0x10", 16), ("'q'", "q"), ("/r/a@#b", "/r/a@b")]
)
@pytest.mark.parametrize("form", [["--bundle_root", "{}"], ["--bundle_root={}"], ["--bundle-root", "{}"]])
def test_a_name_that_monai_s_command_line_changes_is_refused(
    monkeypatch: pytest.MonkeyPatch, form: list[str], given: str, arrived: Any
) -> None:
    words = [word.format(given) for word in form]
    monkeypatch.setattr(sys, "argv", ["/lib/monai/bundle/__main__.py", "run", *words, "--epochs", "3"])
    with pytest.raises(StartUpRefused, match=r"Expected bundle_root to be .* as it was given, got .*monai-extra-l"):
        file_or_folder("bundle_root", arrived)
    assert file_or_folder("dataset_dir", "123") == Path("123")
    monkeypatch.setattr(sys, "argv", ["/home/me/program.py", *words])  # which may do with it what it likes
    assert file_or_folder("bundle_root", arrived) == Path(str(arrived))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["R#1", "1e5", "a,b"])
def test_monai_s_command_writes_to_no_other_folder(phantom_folder: Path, tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIGS / "train.yaml"), *QUICK]
    command += ["--dataset_dir", str(phantom_folder), "--bundle_root", name]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("Expected bundle_root to be ")
    assert list(tmp_path.iterdir()) == []


def test_a_name_given_as_a_list_is_refused() -> None:
    for value in (["a", "b"], ("a", "b"), {"a"}, True):
        with pytest.raises(StartUpRefused, match=r"Expected input to be the name of a file or folder, got .*in quotes"):
            file_or_folder("input", value)


# ---- options and losses that do not exist ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--loss", "tverski"], "There is no loss 'tverski' (did you mean 'tversky'?); `monai-extra-losses list`"),
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


@pytest.mark.slow
def test_monai_runs_the_workflow_by_name(phantom_folder: Path, tmp_path: Path) -> None:
    files = [str(CONFIGS / "train.yaml"), str(CONFIGS / "losses.yaml")]
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--workflow_name", "monai_extra_losses.bundle.SegmentationWorkflow", "--config_file", str(files)]
    command += [
        "--dataset_dir",
        str(phantom_folder),
        "--bundle_root",
        str(tmp_path / "run"),
        "--loss",
        "@losses::tverski",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
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
        "monai_extra_losses",
        "train",
        "--data",
        tmp_path / "nowhere",
        "--run",
        tmp_path / "run",
    ]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 1
    assert ended.stdout == ""
    (sentence,) = [line for line in ended.stderr.splitlines() if "Warning" not in line and "warn" not in line]
    assert "expected a data set folder" in sentence
