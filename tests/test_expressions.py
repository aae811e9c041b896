"""What the configs evaluate is reviewed, and nothing of a user or a data set becomes a part of it."""

import json
from pathlib import Path
from typing import Any

import expressions
import pytest

from monai_extra_losses.cli import main
from monai_extra_losses.data.phantom import write_phantom

EVIL = ("$__import__('os').mkdir('evaluated')", "$import os", "@run", "%train.yaml::epochs", "/data/$HOME/x", "${HOME}")


def test_every_expression_of_a_shipped_config_is_reviewed() -> None:
    found, reviewed = expressions.found(), expressions.reviewed()
    assert [line for line in found if line not in reviewed] == [], "read them, then run tests/support/expressions.py"
    assert [line for line in reviewed if line not in found] == [], "run tests/support/expressions.py"
    assert reviewed == sorted(set(reviewed))
    assert len(found) > 100


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ({"a": [{"b": " $@c + 1"}]}, [("a::0::b", "$@c + 1")]),
        ({"$a": 1, "imports": ["$import os"]}, [("", "key $a"), ("imports::0", "$import os")]),
        ({"a": "%other.json::b", "b": "x %../o.yaml::c"}, [("a", "%other.json::b"), ("b", "x %../o.yaml::c")]),
        ({"a": "@b", "c": "5 % of $ 3", "d": 1}, []),
    ],
)
def test_what_counts_as_an_expression(content: Any, lines: list[tuple[str, str]]) -> None:
    assert list(expressions.in_content(content)) == lines


def test_no_reviewed_expression_reaches_out() -> None:
    """What a reviewer would not let pass must not stand in the list either."""
    for line in expressions.reviewed():
        assert not any(
            word in line for word in ("__", "open(", "subprocess", "os.", "urllib", "eval(", "exec(", "input(")
        )


@pytest.fixture(scope="module")
def evil_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose folder, cases, classes, channel and name are text that MONAI would evaluate in a config."""
    folder = tmp_path_factory.mktemp("names") / EVIL[0]
    write_phantom(folder, num_cases=3, seed=0)
    content = json.loads((folder / "dataset.json").read_text())
    for number, entry in enumerate(content["training"]):
        name = ("$import os", "@run", "%train.yaml")[number]
        for kind in ("image", "label"):
            file = folder / entry[kind]
            entry[kind] = f"{file.parent.name}/{name}.nii.gz"
            file.rename(folder / entry[kind])
    content["name"] = EVIL[4]
    content["labels"] = {key: name if key == "0" else EVIL[int(key) % 2] for key, name in content["labels"].items()}
    for key in ("modality", "channel_names"):
        if key in content:
            content[key] = {"0": EVIL[3]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_names_of_a_data_set_and_of_folders_are_never_evaluated(
    evil_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the commands, with folders named relative to the current one, so that text begins with `$`."""
    monkeypatch.chdir(evil_set.parent)
    run, out = "$import os", "%train.yaml::epochs"

    def call(*words: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code in (0, None), ended.value.code

    small = ("--epochs", "1", "--num_folds", "3", "--channels", "[4, 8]", "--patch_size", "[16, 16, 16]")
    call("check", EVIL[0])
    call("train", "--data", EVIL[0], "--run", run, *small)
    call("evaluate", "--run", run, "--output_dir", "@run")
    call("infer", "--run", run, "--input", f"{EVIL[0]}/imagesTr", "--output", out)
    assert {file.name for file in (evil_set.parent / out).iterdir() if file.suffix == ".gz"} == {
        f"{name}_seg.nii.gz" for name in ("$import os", "@run", "%train.yaml")
    }
    assert not list(evil_set.parent.rglob("evaluated"))
    written = (evil_set.parent / run / "models" / "config.yaml").read_text()
    assert "__import__" in written  # as what it is: the folder of the data
