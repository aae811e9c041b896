"""The files of a run come back from elsewhere: edited, cut, saved by a spreadsheet. Each is a sentence, or is taken."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from runs import evaluate, infer, table, train

from monai_extra_losses import __version__
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord, read_training_csv
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.file_content import in_words, typed

TINY: dict[str, Any] = {"channels": [4, 8], "num_res_units": 0, "batch_size": 2, "val_interval": 1}


@pytest.fixture(scope="module")
def trained(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two epochs. Do not write into it."""
    return train(phantom_folder, tmp_path_factory.mktemp("runs") / "trained", epochs=2, **TINY)


@pytest.fixture
def copy_of(trained: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(trained.root, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")


def start_of(value: object) -> str:
    """The name of a case."""
    return ascii(value)[:40]


# ---- models/run.json ----


def of_other_types(hint: Any) -> list[Any]:
    """Values of JSON that are not of a type."""
    several = [
        True,
        7,
        7.5,
        float("nan"),
        10**30,
        "text",
        "\ud800",
        "\0",
        [],
        [1, "2"],
        [[1]],
        {},
        {"1": 2},
        {"x": [1]},
    ]

    def fits(value: Any) -> bool:
        try:
            typed(hint, value)
        except TypeError:
            return False
        return True

    return [value for value in several if not fits(value)]


FIELDS = [field.name for field in dataclasses.fields(RunRecord)]


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_of_another_type_is_one_sentence(trained: RunFolder, tmp_path: Path, name: str) -> None:
    content = json.loads(trained.record.read_text())
    wrong = of_other_types(get_type_hints(RunRecord)[name])
    assert len(wrong) >= 9
    for value in wrong:
        (file := tmp_path / "run.json").write_text(json.dumps({**content, name: value}))
        with pytest.raises(
            StartUpRefused, match=f"run.json: expected the record .*: {name} should be .*, got .*;"
        ) as said:
            RunRecord.read(file)
        assert str(said.value).isprintable()
        assert len(str(said.value)) < 400


@pytest.mark.parametrize("field", dataclasses.fields(RunRecord), ids=FIELDS)
def test_a_key_that_is_missing_is_named_where_it_is_needed(
    trained: RunFolder, tmp_path: Path, field: "dataclasses.Field[Any]"
) -> None:
    content = json.loads(trained.record.read_text())
    del content[field.name]
    (file := tmp_path / "run.json").write_text(json.dumps(content))
    if field.default is field.default_factory is dataclasses.MISSING:
        with pytest.raises(StartUpRefused, match=f"got none named {field.name}; bring back the file"):
            RunRecord.read(file)
    else:  # a later version added it
        RunRecord.read(file)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": {"0": "background"}}, "labels {0: 'background'}, which should be 0 and at least one more"),
        ({"labels": {"0": "background", "1.0": "organ"}}, "labels should be an object of text per whole number, got"),
        ({"regions": {"all": [1, 9]}}, "regions .*, which should be made of the labels"),
        (
            {"regions": {"all": [1, 2]}, "regions_class_order": [1, 2]},
            "regions_class_order .*, which should be a label for",
        ),
        (
            {"regions": {"all": [1, 2]}, "regions_class_order": [9]},
            "regions_class_order .*, which should be a label for",
        ),
        ({"regions_class_order": [1]}, "regions_class_order .*, which should be a label for each region"),
        ({"in_channels": 0}, "in_channels 0, which should be a number of channels"),
        ({"in_channels": 10**9}, "in_channels 1000000000, which should be a number of channels"),
        ({"channels": [4]}, r"channels \(4,\), which should be two numbers of channels or more"),
        ({"num_res_units": -1}, "num_res_units -1, which should be 0 or more"),
        ({"patch_size": [32, 32, 0]}, r"patch_size \(32, 32, 0\), which should be multiples of 2 of at least 4"),
        ({"patch_size": [32, 32, 15]}, "patch_size .*, which should be multiples of 2"),
        ({"patch_size": [32, 32]}, "patch_size should be a list of 3, each a whole number, got"),
        ({"patch_size": [10**9] * 3}, "patch_size .*, which should be multiples of 2"),
        ({"pixdim": [1, 1, 0]}, r"pixdim \(1, 1, 0\), which should be above 0"),
        ({"hu_window": [5, 5]}, r"hu_window \(5, 5\), which should be the lower one first"),
        ({"epochs": 0}, "epochs 0, which should be 1 or more"),
        ({"learning_rate": -1}, "learning_rate -1, which should be above 0"),
        ({"early_stop_patience": 0}, "early_stop_patience 0, which should be 1 or more"),
        ({"amp": "half"}, "amp 'half', which should be fp16, bf16, off or null"),
        ({"cache": "ram"}, "cache 'ram', which should be memory, disk or none"),
        ({"colour": 1}, r"the unknown key 'colour' \(another version of this package may know it\)"),
    ],
    ids=start_of,
)
def test_a_value_that_no_training_writes_is_one_sentence(
    trained: RunFolder, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    (file := tmp_path / "run.json").write_text(json.dumps({**json.loads(trained.record.read_text()), **change}))
    with pytest.raises(StartUpRefused, match=f"run.json: expected the record that training writes, got .*{sentence}"):
        RunRecord.read(file)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1]", r"got \[1\]"),
        (b"null", "got None"),
        (b"{}", "got none named labels"),
        (b'{"labels": ' + b"[" * 200_000, "JSON nested too deep"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        ("{}".encode("utf-16"), "codec can't decode"),
    ],
    ids=["empty", "cut", "list", "null", "object", "deep", "digits", "utf-16"],
)
def test_a_record_that_is_no_record_is_one_sentence(tmp_path: Path, text: bytes, sentence: str) -> None:
    (file := tmp_path / "run.json").write_bytes(text)
    with pytest.raises(
        StartUpRefused, match=f"run.json: expected the record that training writes, .*{sentence}"
    ) as said:
        RunRecord.read(file)
    assert len(str(said.value)) < 400


def test_a_record_that_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    if hasattr(os, "mkfifo"):  # reading it would wait for ever
        os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe") if hasattr(os, "mkfifo") else ("folder",):
        with pytest.raises(StartUpRefused, match="got no file of its own kind; bring back the file as it was"):
            RunRecord.read(tmp_path / name)
        with pytest.raises(StartUpRefused, match="got no file of its own kind; bring back the file as it was"):
            read_training_csv(tmp_path / name)


def test_a_byte_order_mark_is_no_harm(trained: RunFolder, tmp_path: Path) -> None:
    (file := tmp_path / "run.json").write_bytes(b"\xef\xbb\xbf" + trained.record.read_bytes())
    assert RunRecord.read(file) == RunRecord.read(trained.record)
    (file := tmp_path / "training.csv").write_bytes(b"\xef\xbb\xbf" + trained.training_csv.read_bytes())
    assert read_training_csv(file) == table(trained.training_csv)


# As written before the options had a table, without its line breaks, and with two of the options of the loss. What
# later options add comes behind.
AS_WRITTEN = """
{"labels": {"0": "background", "1": "organ", "2": "lesion"}, "in_channels": 1, "patch_size": [16, 16, 16],
"pixdim": [1.0, 1.0, 1.5], "channels": [4, 8], "num_res_units": 0, "loss": "FusedTverskyLoss",
"dataset_dir": "DATA", "num_folds": 3, "fold": 0, "seed": 0, "limit": 5,
"training": ["phantom_000", "phantom_002", "phantom_004"], "validation": ["phantom_001", "phantom_003"],
"epochs": 1, "val_interval": 1, "batch_size": 2, "learning_rate": 0.002, "loss_weights": null, "regions": null,
"original_labels": {}, "early_stop_patience": 3, "amp": "off", "hu_window": [0.0, 1.0], "pretrained": null,
"cache": "none", "cache_dir": null, "version": "VERSION",
"loss_options": {"class": "FusedTverskyLoss", "alpha": 0.3, "beta": 0.7}, "flip_axes": [0],
"ignore_label": null}
"""


def test_the_file_is_the_one_that_earlier_versions_wrote_and_resume(phantom_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"pixdim": [1, 1, 1.5], "hu_window": [0, 1], "early_stop_patience": 3, "patch_size": 16}
    options |= {"cache": "none", "limit": 5, "amp": False, "loss": "tversky", "device": "cpu", **TINY}
    run = train(phantom_folder, tmp_path / "run", **options)
    written = json.loads(AS_WRITTEN.replace("DATA", str(phantom_folder)).replace("VERSION", __version__))
    now = json.loads(run.record.read_text())
    assert written["loss_options"].items() <= now["loss_options"].items()
    written["loss_options"] = now["loss_options"]
    later = {name: value for name, value in now.items() if name not in written}
    assert run.record.read_text() == json.dumps(written | later, indent=2) + "\n"
    run.record.write_text(json.dumps(written))
    train(phantom_folder, run.root, resume=True, epochs=2, **options)
    assert len(table(run.training_csv)) == 2


def test_every_command_reads_the_record_first(copy_of: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    content = json.loads(copy_of.record.read_text())
    copy_of.record.write_text(json.dumps({**content, "patch_size": "large"}))
    starts: list[Callable[[], object]] = [
        lambda: evaluate(copy_of),
        lambda: infer(copy_of, phantom_folder / "imagesTs", tmp_path / "out"),
        lambda: train(phantom_folder, copy_of.root, epochs=3, resume=True, **TINY),
    ]
    for start in starts:
        with pytest.raises(StartUpRefused, match="patch_size should be a list of 3, each a whole number, got 'large'"):
            start()


def test_types_in_words() -> None:
    assert in_words(dict[str, tuple[int, ...]] | None) == (
        "an object of a list of which each is a whole number per text or null"
    )


# ---- eval/training.csv ----

HEAD = "epoch,train_loss,learning_rate,val_mean_dice,val_dice_organ,val_dice_lesion,seconds\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            HEAD.replace(",", ";") + "1;2,1;0,002;0,1;0,1;0,1;3,2\n",
            "one with semicolons instead, as spreadsheets save it",
        ),
        (HEAD.replace(",", "\t") + "1\t2\n", "one with tabs instead, as spreadsheets save it"),
        ("", "no column epoch"),
        ("loss,dice\n1,2\n", "no column epoch"),
        (HEAD + "1,2.1,0.002\n", "fewer cells than names of columns in line 2"),
        (HEAD + "1,2.1,0.002,,,,3,4\n", "more cells than names of columns in line 2"),
        (HEAD + "1,2.1,0.002,,,,3\nx,2.1,0.002,,,,3\n", "'x' under epoch in line 3"),
        (HEAD + "1.0,2.1,0.002,,,,3\n", "'1.0' under epoch in line 2"),
        (HEAD + "-1,2.1,0.002,,,,3\n", "'-1' under epoch in line 2"),
        (HEAD + f"{'9' * 5000},2.1,0.002,,,,3\n", "under epoch in line 2"),
        (HEAD + "1,#DIV/0!,0.002,,,,3\n", "'#DIV/0!' under train_loss in line 2"),
        (HEAD + "2,2.1,0.002,,,,3\n1,2.1,0.002,,,,3\n", "epoch 1 after epoch 2 in line 3"),
        (HEAD + '1,"2.1,0.002,,,,3\n', "unexpected end of data"),
    ],
    ids=start_of,
)
def test_a_table_that_training_did_not_write_is_refused_before_it_goes_on(
    copy_of: RunFolder, phantom_folder: Path, text: str, sentence: str
) -> None:
    copy_of.training_csv.write_text(text)
    with pytest.raises(StartUpRefused, match=f"training.csv: expected the table .*{sentence}.*; bring back the file"):
        train(phantom_folder, copy_of.root, epochs=3, resume=True, **TINY)
    assert copy_of.training_csv.read_text() == text


def test_a_table_of_another_encoding_or_none(copy_of: RunFolder, phantom_folder: Path) -> None:
    text = copy_of.training_csv.read_text()
    copy_of.training_csv.write_bytes(text.encode("utf-16"))
    with pytest.raises(StartUpRefused, match=r"training\.csv: expected the table .* codec can't decode"):
        train(phantom_folder, copy_of.root, epochs=3, resume=True, **TINY)
    copy_of.training_csv.unlink()  # as the sentence says
    train(phantom_folder, copy_of.root, epochs=3, resume=True, **TINY)
    assert [row["epoch"] for row in table(copy_of.training_csv)] == ["3"]


# ---- models/last.pt ----


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        *(
            ({name: None}, f"none of its {name}")
            for name in ("epoch", "best_metric", "best_metric_epoch", "network", "loss", "optimizer", "lr_scheduler")
        ),
        ({"epoch": -1}, "epoch -1"),
        ({"epoch": 0}, "epoch 0"),
        ({"epoch": 1.0}, "a value of another type: epoch should be a whole number, got 1.0"),
        ({"epoch": True}, "epoch should be a whole number, got True"),
        ({"epoch": "2"}, "epoch should be a whole number, got '2'"),
        ({"epoch": torch.tensor(2)}, "epoch should be a whole number, got tensor"),
        ({"best_metric": "best"}, "best_metric should be a number, got 'best'"),
        ({"best_metric": float("nan")}, "best_metric should be a number, got nan"),
        ({"validations_since_best": "two"}, "validations_since_best should be a whole number, got 'two'"),
        (
            {"empty_validations": {"lesion": "2"}},
            "empty_validations should be an object of a whole number per text, got",
        ),
        ({"network": [1]}, r"network should be an object of anything per text, got \[1\]"),
        ({"optimizer": torch.zeros(2)}, "optimizer should be an object of anything per text, got tensor"),
    ],
    ids=start_of,
)
def test_a_checkpoint_without_what_it_needs_is_one_sentence(
    copy_of: RunFolder, phantom_folder: Path, change: dict[str, Any], sentence: str
) -> None:
    state = torch.load(copy_of.last, weights_only=True)
    state = {name: value for name, value in {**state, **change}.items() if value is not None}
    torch.save(state, copy_of.last)
    copy_of.checksums.unlink(missing_ok=True)
    copy_of.previous.unlink()
    words = rf"last\.pt: expected a checkpoint of a training, got .*{sentence}.*; bring back .* --overwrite True\."
    with pytest.raises(StartUpRefused, match=words):
        train(phantom_folder, copy_of.root, epochs=3, resume=True, **TINY)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("network", {}),
        ("network", {"model.0.conv.weight": 3}),
        ("loss", {"weight": torch.ones(3)}),
        ("optimizer", {}),
        ("optimizer", {"state": {}, "param_groups": 3}),
        ("optimizer", {"state": {}, "param_groups": [{"params": [0], "lr": 1.0}]}),
        ("lr_scheduler", {"last_epoch": "soon"}),
    ],
)
def test_a_checkpoint_of_something_else_is_one_sentence(
    copy_of: RunFolder, phantom_folder: Path, name: str, value: Any
) -> None:
    torch.save({**torch.load(copy_of.last, weights_only=True), name: value}, copy_of.last)
    copy_of.checksums.unlink(missing_ok=True)
    with pytest.raises(
        StartUpRefused, match=r"last\.pt: expected a checkpoint of this network, loss and optimizer, got"
    ):
        train(phantom_folder, copy_of.root, epochs=3, resume=True, **TINY)


def test_a_checkpoint_of_an_epoch_that_was_never_trained_is_one_sentence(
    copy_of: RunFolder, phantom_folder: Path
) -> None:
    torch.save({**torch.load(copy_of.last, weights_only=True), "epoch": 10**9}, copy_of.last)
    copy_of.checksums.unlink(missing_ok=True)
    with pytest.raises(
        StartUpRefused, match=r"expected a checkpoint of the 2 epochs of .*run\.json, got one of epoch 100"
    ):
        train(phantom_folder, copy_of.root, epochs=3, resume=True, **TINY)
