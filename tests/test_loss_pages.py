"""`monai-extra-losses show`: what it reads from the sources is what the classes have."""

import inspect
import re
import shlex
import subprocess
import sys

import pytest
import torch
import yaml
from loss_list import each
from marks import slow_but
from monai.bundle import ConfigParser

import monai_extra_losses
from monai_extra_losses import losses
from monai_extra_losses.bundle.loss_facts import loss_options
from monai_extra_losses.bundle.running import config_files
from monai_extra_losses.bundle.workflow import checked_overrides
from monai_extra_losses.cli import main
from monai_extra_losses.cli.loss_pages import loss_config, loss_options_of, loss_page, loss_table, train_command
from monai_extra_losses.cli.runs import overrides_of
from monai_extra_losses.data.errors import StartUpRefused

NAMES = [name for name in losses.__all__ if name.endswith("Loss")]
TABLE = loss_table()
QUICK = ["dice", "cross_entropy", "dice_ce", "lovasz", "hausdorff", "compound", "partial_label"]
CONFIG = ConfigParser.load_config_files(config_files(("train", "losses")))


@each("name", NAMES)
def test_options_and_defaults_are_those_of_the_class(name: str) -> None:
    parameters = inspect.signature(getattr(losses, name)).parameters
    options = loss_options_of(name)
    assert [option.name for option in options] == list(parameters)
    for option in options:
        default = parameters[option.name].default
        assert option.default is None if default is inspect.Parameter.empty else eval(str(option.default)) == default
        assert len(option.meaning) > 3, option.name
        assert not option.meaning.startswith("see `"), option.name


@pytest.mark.parametrize(
    "name",
    slow_but(
        [*QUICK, "HuberLoss"],
        [*TABLE, *(name for name in NAMES if f"{name}:" not in str(TABLE))],
    ),
)
def test_a_page_has_all_its_parts_and_its_examples_work(name: str) -> None:
    page = loss_page(name)
    for part in ("Formula\n-------\n  ", "Options", "Configuration\n", "  In Python:\n", "Reference\n---------\n  "):
        assert part in page, part
    assert all(len(line) <= 120 for line in page.splitlines() if " --" not in line)
    code = inspect.cleandoc(page.partition("In Python:")[2].partition("\nReference")[0])
    names: dict[str, object] = {}
    exec(code, names)
    loss = names["loss"]
    assert isinstance(loss, torch.nn.Module)
    config = inspect.cleandoc(page.partition("In a MONAI config:")[2].partition("  In Python")[0])
    parser = ConfigParser(yaml.safe_load(config))
    assert loss_options(parser.get_parsed_content("loss")) == loss_options(loss)
    if name in TABLE:
        scores, labels = torch.randn(1, 3, 8, 8, 8), torch.randint(0, 3, (1, 1, 8, 8, 8))
        assert torch.isfinite(loss(scores, labels))


@pytest.mark.parametrize("key", slow_but(QUICK, TABLE))
def test_the_command_of_a_page_gives_the_loss_of_the_table(key: str) -> None:
    command = shlex.split(train_command(key))
    assert " ".join(command[:7]) == "monai-extra-losses train --data DIR --run RUN --loss"
    overrides = checked_overrides(CONFIG, overrides_of(command[6:]))
    built = []
    for changes in (overrides, checked_overrides(CONFIG, {"loss": key})):
        parser = ConfigParser(CONFIG | {"multi_label": False})
        for name, value in changes.items():
            parser[name] = value
        built.append(loss_options(parser.get_parsed_content("loss")))
    assert built[0] == built[1]


def test_every_own_number_of_a_loss_is_in_its_configuration() -> None:
    assert loss_config("focal_tversky", "FocalTverskyLoss") == {
        "_target_": "monai_extra_losses.losses.FocalTverskyLoss",
        "to_onehot_y": True,
        "softmax": True,
        "alpha": 0.3,
        "beta": 0.7,
    }


@pytest.mark.parametrize(
    "name",
    ["tversky", "FusedTverskyLoss", "fusedtverskyloss", "monai_extra_losses.FusedTverskyLoss", "@losses::tversky"],
)
def test_a_loss_is_found_by_key_and_class(name: str) -> None:
    assert loss_page(name).startswith("FusedTverskyLoss   --loss tversky\n")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("tverski", r" \(did you mean tversky or "),
        ("FocalTverskiLoss", r" \(did you mean FocalTverskyLoss or "),
        ("DiceLoss", r" \(did you mean FusedDiceLoss or "),
        ("qqqqqqqqqq", ""),
        ("", ""),
    ],
)
def test_another_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(StartUpRefused, match=rf"^There is no loss {name!r}{nearest}.*`monai-extra-losses list` prints"):
        loss_page(name)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["show", "huberloss"])
    assert ended.value.code == 0
    assert "  delta = 1.0\n" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["show", "hubert"])
    assert re.match("There is no loss 'hubert'", str(ended.value.code))


def test_showing_imports_neither_torch_nor_monai() -> None:
    code = (
        "import sys; from monai_extra_losses.cli import main\ntry: main(['show', 'dice_ce'])\nexcept SystemExit: pass\n"
    )
    code += "print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert answer.stdout.splitlines()[-1] == "[]"
    assert monai_extra_losses.__name__ in answer.stdout


def test_a_page_says_nothing_of_options_that_the_loss_has_not_and_nothing_twice() -> None:
    assert "`weight` multiplies" not in " ".join(loss_page("unified_focal").split())
    assert "`weight` multiplies" in " ".join(loss_page("focal_tversky").split())
    surface = loss_page("generalized_surface")
    assert surface.count('"none" gives') == 1
    assert "(B, 1, 1, ..)" in surface
