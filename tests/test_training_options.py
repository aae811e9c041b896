"""The table of a training's options: the config, the signature, the record, the help and the resume agree with it."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml
from runs import train

import monai_extra_losses
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.training import TrainingSetUp
from monai_extra_losses.bundle.training_options import FILE_OPTIONS, RECORDED, TABLE, TrainingOptions
from monai_extra_losses.bundle.workflow import checked_overrides
from monai_extra_losses.cli import main
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.file_content import typed
from monai_extra_losses.losses import CompoundLoss, FusedDiceLoss

TRAIN_YAML = (monai_extra_losses.config_dir() / "train.yaml").read_text(encoding="utf-8")
CONFIG: dict[str, Any] = yaml.safe_load(TRAIN_YAML)
DEFAULTS = {name: CONFIG.get(name, CONFIG["setup"][name]) for name in TABLE}


# ---- the config ----


def test_the_config_hands_every_option_of_the_table_to_the_set_up_and_no_other() -> None:
    handed = {name: value for name, value in CONFIG["setup"].items() if name not in ("_target_", "loss", "metadata")}
    assert handed.keys() == TABLE.keys()
    assert {name: value for name, value in handed.items() if value != f"@{name}"} == {"check_loss": True}
    assert handed.keys() - CONFIG.keys() == {"check_loss"}


@pytest.mark.parametrize("name", TABLE)
def test_the_comment_of_the_config_is_the_meaning(name: str) -> None:
    line = re.search(rf"^ *{name}: (?!'@).*? # (.*\n(?:# .*\n)*)", TRAIN_YAML, re.MULTILINE)
    assert line is not None
    assert line[1].replace("\n# ", " ").strip() == TABLE[name].meaning


@pytest.mark.parametrize("name", [name for name in TABLE if name not in ("dataset_dir", "device")])
def test_the_defaults_of_the_config_are_those_of_the_table(name: str) -> None:
    value = TABLE[name].check(name, DEFAULTS[name])
    field = TrainingOptions.__dataclass_fields__[name]
    assert field.default in (value, dataclasses.MISSING)
    if name in RECORDED:
        assert typed(get_type_hints(RunRecord)[name], value) == value
        rule = TABLE[name].rule
        assert rule is None or rule[0](value)


def test_an_option_that_a_record_may_lack_has_the_default_of_the_table() -> None:
    for name in RECORDED:
        assert RunRecord.__dataclass_fields__[name].default is TrainingOptions.__dataclass_fields__[name].default


def test_files_are_named_in_the_table() -> None:
    others = {"input", "model_file", "output_dir"}
    assert FILE_OPTIONS - others == {"bundle_root", "cache_dir", "dataset_dir", "pretrained"}


# ---- the set-up ----


def test_the_signature_has_every_option() -> None:
    parameters = inspect.signature(TrainingSetUp).parameters
    assert parameters.keys() == {"loss", "metadata", *TABLE}
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert (parameters["early_stop_patience"].default, parameters["cache"].default) == (None, "memory")
    assert parameters["epochs"].default is inspect.Parameter.empty


@pytest.mark.parametrize("name", TABLE)
def test_every_option_refuses_something_in_a_sentence_that_names_it(name: str) -> None:
    with pytest.raises(StartUpRefused) as said:
        TrainingOptions.checked({name: object()})
    assert re.fullmatch(rf"Expected {name} to be [^\n]*, got <object object at \w+>[^\n]*\.", str(said.value))


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"got an unexpected keyword .* 'epoch' \(did you mean 'epochs'\?\)"):
        TrainingSetUp(loss=torch.nn.L1Loss(), epoch=3)
    with pytest.raises(TypeError, match=r"missing .* keyword-only arguments: 'pixdim', 'fold'"):
        TrainingSetUp(loss=torch.nn.L1Loss(), epochs=3)
    with pytest.raises(StartUpRefused, match=r"no option 'chek_loss' of setup \(did you mean 'check_loss'\?\); known"):
        checked_overrides(CONFIG, {"setup::chek_loss": False})


# ---- the help ----


def test_the_help_of_train_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    required, _, listed = capsys.readouterr().out.partition("Options of configs/train.yaml with their defaults:\n")
    for name in ("dataset_dir", "bundle_root"):
        assert re.search(rf" --{name} PATH .*(\n .*)?\[required\]", required)
    listed = "".join(listed.split())  # lines end at hyphens too
    for name in TABLE.keys() - {"dataset_dir", "bundle_root"}:
        default = value if isinstance(value := DEFAULTS[name], str) else json.dumps(value)
        key = {"check_loss": "--setup::check_losstrue", "device": "--device"}
        assert key.get(name, f"--{name}{default}") + "".join(TABLE[name].meaning.split()) in listed


# ---- a resume ----

OTHERS: dict[str, Any] = {
    "pixdim": [1, 1, 2],
    "network": "segresnet",
    "channels": [4, 8, 8],
    "num_res_units": 1,
    "fold": 1,
    "seed": 1,
    "fold_seed": 1,
    "limit": 5,
    "epochs": 2,
    "val_interval": 2,
    "batch_size": 1,
    "learning_rate": 0.1,
    "loss_weights": {"dice": {"start": 1, "end": 0}},
    "early_stop_patience": 1,
    "amp": "bf16",
    "hu_window": [0, 2],
    "pretrained": "weights.pt",
    "metrics": ["vessels"],
    "cache": "none",
    "cache_dir": "elsewhere",
    "num_folds": 2,
    "patch_size": [16, 16, 8],
    "flip_axes": False,
}


OF_THE_RUN: dict[str, Any] = {"epochs": 1, "channels": [4, 8], "num_res_units": 0, "patch_size": 16, "num_folds": 3}
SOFTMAX = {"to_onehot_y": True, "softmax": True}
COMPOUND = {
    "_target_": "monai_extra_losses.losses.CompoundLoss",
    "losses": {"dice": {"_target_": "monai_extra_losses.losses.FusedDiceLoss", **SOFTMAX}},
}


@pytest.fixture(scope="module")
def trained(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """An epoch. Do not write into it."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    return train(phantom_folder, run, **OF_THE_RUN, loss=COMPOUND)


def test_every_recorded_option_is_tried_at_a_resume() -> None:
    assert OTHERS.keys() >= RECORDED.keys() - {"deep_supervision", "head_loss"}  # not of unet, see test_networks.py


@pytest.mark.parametrize("name", OTHERS)
def test_a_resume_may_change_what_the_table_says(trained: RunFolder, phantom_folder: Path, name: str) -> None:
    places = {"dataset_dir": phantom_folder, "bundle_root": trained.root, "device": "cpu"}
    options = {**DEFAULTS, **OF_THE_RUN, **places, "resume": True, name: OTHERS[name]}
    if name == "network":
        options |= {"channels": None, "num_res_units": None}  # which it has not
    loss = CompoundLoss({"dice": FusedDiceLoss(**SOFTMAX)})
    if TABLE[name].changes_on_resume:
        built = TrainingSetUp(loss=loss, **options)
        assert getattr(built.record, name) != getattr(RunRecord.read(trained.record), name)
    else:
        with pytest.raises(StartUpRefused, match=rf"Expected {name} .* as in the run to resume, got .*; "):
            TrainingSetUp(loss=loss, **options)
