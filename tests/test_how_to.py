"""The command lines of docs/, read by the parsers of the commands and of the bundle. None of them is run."""

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

import monai_extra_losses
from monai_extra_losses import losses
from monai_extra_losses.bundle.hysteresis import hysteresis_option
from monai_extra_losses.bundle.options import literal, positive_number, share, volume_bins
from monai_extra_losses.bundle.running import config_files
from monai_extra_losses.bundle.training_options import TABLE
from monai_extra_losses.bundle.workflow import checked_overrides
from monai_extra_losses.cli.commands import commands
from monai_extra_losses.cli.runs import overrides_of
from monai_extra_losses.compare.plan import OVERLAYS, read_grid, read_losses
from monai_extra_losses.data.errors import StartUpRefused

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))

CONFIGS = {
    **dict.fromkeys(("train", "doctor", "demo"), ("train", "losses")),
    **dict.fromkeys(("compare", "evaluate"), ("train", "losses", "evaluate")),  # a comparison evaluates, too
    "infer": ("inference",),
}
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **{name: entry.check for name, entry in TABLE.items() if name != "device"},  # which another machine may have
    "lesion_overlap": share,
    "lesion_bins": volume_bins,
    "hysteresis": hysteresis_option,
    "surface_tolerance_mm": positive_number,
}
OF_MONAI = {*inspect.signature(ConfigWorkflow.__init__).parameters}
# files of any bundle, and of one in MONAI's model zoo.
OF_OTHER_BUNDLES = {
    "configs/metadata.json",
    "configs/train.json",
    "configs/dice_ce_and_surface.yaml",
    "configs/hyper_parameters.yaml",
}
# of MONAI, torchrun, nnU-Net and a benchmark, in sentences
OF_OTHERS = {"--workflow_name", "--nproc_per_node", "--c", "--val", "--busy"}


# ---- what the pages say ----


def parts_of(page: Path) -> tuple[list[str], list[str]]:
    """The lines of the `sh` blocks of a page, and the code in its sentences."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return lines, [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def calls_in(line: str) -> Iterator[list[str]]:
    """The words of each call in a line: `monai-extra-losses` or `monai.bundle`, and what follows."""
    for inner in re.findall(r"\$\((.*?)\)", line):
        yield from calls_in(inner)
    words = shlex.split(re.sub(r"\$\(.*?\)", "", line), comments=True)
    for place, word in enumerate(words):
        launched = place > 0 and words[place - 1] in ("-m", "--")
        if word == "monai-extra-losses" or (launched and word in ("monai_extra_losses", "monai.bundle")):
            rest = words[place + 1 :]
            ends = [rest.index(end) for end in ("&&", "|", ">") if end in rest]
            yield [word.replace("_", "-"), *rest[: min(ends, default=None)]]


def fragment_in(code: str) -> list[str] | None:
    """The words of a part of a call: `train --epochs 3`, or `--epochs 3`, of any command; None of other code."""
    if not re.match(r"([a-z-]+ )?--\w", code):
        return None
    words = shlex.split(code)
    return words if words[0].startswith("--") or words[0] in commands.commands else None


# ---- what the parsers say ----


def check_call(words: Sequence[str], *, whole: bool = True) -> None:
    """Parse a call.

    Args:
        words: as `calls_in` gives them.
        whole: what a command requires must be there.

    Raises:
        click.UsageError: an unknown command, option, overlay or argument, or a missing one.
        StartUpRefused: an option, a loss or a value that the configs do not know.
    """
    program, *rest = words
    if program == "monai.bundle":
        check_bundle(rest)
        return
    words = [word for word in rest if word not in ("--help", "-h")]
    if words:
        check_command(words[0], words[1:], whole=whole and words == rest)


def check_command(name: str, words: Sequence[str], *, whole: bool) -> None:
    if name not in commands.commands:
        raise click.UsageError(f"No such command {name!r}.")
    try:
        context = commands.commands[name].make_context(name, list(words))
    except click.MissingParameter as missing:
        if whole or missing.param is None:
            raise
        option = [missing.param.opts[0]] if isinstance(missing.param, click.Option) else []
        check_command(name, [*words, *option, "dice_ce"], whole=False)  # the name of a loss, and of a folder
        return
    if name in CONFIGS:
        given = {key: value for key, value in context.params.items() if value is not None}
        check_options(CONFIGS[name], given, overrides_of(context.args))


def check_options(configs: tuple[str, ...], given: dict[str, Any], options: dict[str, Any]) -> None:
    """Check what a command hands to its configs: parameters of its own, and options that it does not know."""
    options = options | {name: given[name] for name in ("loss", "epochs") if name in given}
    options |= {name: values[0] for name, values in read_grid(given.get("grid", ())).items()}
    check_values(options)
    if "losses" not in given:
        check_overrides((*configs, *given.get("overlays", ())), options)
        return
    for choice in read_losses(given["losses"]):
        own = {"loss": choice.name, **{f"loss::{name}": value for name, value in choice.options.items()}}
        check_overrides((*configs, *choice.overlays), own | options)


def check_bundle(words: Sequence[str]) -> None:
    """Check a call of MONAI with configs of this bundle."""
    options = overrides_of(words[next(n for n, word in enumerate(words) if word.startswith("--")) :])
    files = literal(options["config_file"])
    names = [Path(file) for file in ([files] if isinstance(files, str) else files)]
    if any(file.suffix == ".json" for file in names):  # of another bundle
        return
    if strange := [file for file in names if not (monai_extra_losses.config_dir().parent / file).is_file()]:
        raise StartUpRefused(f"There is no config {strange[0]}.")
    if words[0] == "run":
        check_values(options)
        check_overrides(tuple(file.stem for file in names), options)


def check_values(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name in CHECKS:
            CHECKS[name](name, value)


def check_overrides(configs: tuple[str, ...], options: dict[str, Any]) -> None:
    checked_overrides(content_of(configs), {name: value for name, value in options.items() if name not in OF_MONAI})


@cache
def content_of(configs: tuple[str, ...]) -> dict[str, Any]:
    return ConfigParser.load_config_files(config_files(configs))


# ---- the tests ----


@pytest.fixture
def with_my_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the losses of the page on losses of one's own."""
    page = (ROOT / "docs" / "how_to" / "own_loss.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "my_losses.py").write_text("\n".join(blocks[:2]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_losses", None)


@pytest.mark.usefixtures("with_my_losses")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_call_of_a_page_is_one(page: Path) -> None:
    lines, _ = parts_of(page)
    wrong = []
    for words in (words for line in lines for words in calls_in(line)):
        try:
            check_call(words)
        except (click.UsageError, StartUpRefused) as error:
            wrong.append(f"{shlex.join(words)}: {error}")
    assert not wrong


@pytest.mark.usefixtures("with_my_losses")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_in_the_sentences_of_a_page_is_one(page: Path) -> None:
    _, codes = parts_of(page)
    wrong = [code for code in codes if is_refused(code)]
    assert not wrong


def is_refused(code: str) -> bool:
    """Whether code in a sentence is a call, or a part of one, that no command takes."""
    if code.startswith("monai-extra-losses "):
        return any(refuses(words) for words in calls_in(code))
    words = fragment_in(code)
    if words is None or words[0] in OF_OTHERS:
        return False
    if words[-1].startswith("--"):  # a name alone
        name = words.pop()
        if name not in option_names() and not is_placeholder(name):
            return True
    named = [word for word in words if word.startswith("--")]
    return bool(named) and not any(map(is_placeholder, named)) and all(map(refuses, possible_calls(words)))


def is_placeholder(name: str) -> bool:
    """Whether an option is `--KEY` or `--loss::NAME`."""
    return name.lstrip("-").rpartition("::")[2].isupper()


def possible_calls(words: Sequence[str]) -> Iterator[list[str]]:
    """The calls that a part may be of."""
    program = "monai-extra-losses"
    if not words[0].startswith("--"):
        yield [program, *words]
        return
    yield from ([program, command, *words] for command in commands.commands)
    yield from ([program, "train", "--with", overlay, *words] for overlay in OVERLAYS)
    if words[0].startswith("--loss::"):
        yield from ([program, "train", "--loss", loss, *words] for loss in content_of(("losses",))["losses"])


def refuses(words: Sequence[str]) -> bool:
    try:
        check_call(words, whole=False)
    except (click.UsageError, StartUpRefused):
        return True
    return False


@cache
def option_names() -> set[str]:
    """Names of options, of the commands, of their configs, and of the losses."""
    of_commands = {name for command in commands.commands.values() for param in command.params for name in param.opts}
    configs = set(CONFIGS.values()) | {("train", "losses", overlay) for overlay in OVERLAYS}
    of_configs = {f"--{name}" for files in configs for name in content_of(files)}
    of_losses = {f"--loss::{name}" for cls in losses.__all__ for name in options_of(getattr(losses, cls))}
    return {"--help"} | of_commands | of_configs | of_losses


def options_of(loss: type) -> set[str]:
    return set(inspect.signature(loss).parameters) if issubclass(loss, torch.nn.Module) else set()  # else an error


def test_the_pages_have_the_calls_and_parts_that_are_looked_for() -> None:
    parts = [parts_of(page) for page in PAGES]
    calls = [words for lines, _ in parts for line in lines for words in calls_in(line)]
    assert len(calls) > 50
    assert {words[1] for words in calls if words[0] == "monai-extra-losses"} >= {"train", "compare", "nnunet-trainers"}
    assert any(words[:2] == ["monai.bundle", "run"] for words in calls)
    assert sum(fragment_in(code) is not None for _, codes in parts for code in codes) > 50


@pytest.mark.usefixtures("with_my_losses")
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("monai-extra-losses tain --data D", "No such command 'tain'"),
        ("monai-extra-losses train --data D", "Missing"),
        ("monai-extra-losses train --data D --run R --epoch 3", "There is no option 'epoch'"),
        ("monai-extra-losses train --data D --run R --loss focal_tversk", "There is no loss 'focal_tversk'"),
        ("monai-extra-losses train --data D --run R --loss tversky --loss::alhpa 1", "There is no option 'alhpa'"),
        ("monai-extra-losses train --data D --run R --loss my_losses.Mine", "There is no 'Mine' in my_losses"),
        ("monai-extra-losses train --data D --run R --with vesels", "'vesels' is not one of"),
        ("monai-extra-losses train --data D --run R --metrics vesels", "Expected metrics to be a list of"),
        (
            "monai-extra-losses train --data D --run R --patch_size '[96, 96]'",
            "Expected patch_size to be three numbers",
        ),
        ("torchrun -m -- monai_extra_losses train --data D --run R --epoch 3", "There is no option 'epoch'"),
        ("A=1 monai-extra-losses evaluate --run R --lesion_overlap 2", "Expected lesion_overlap to be a share"),
        ('eval "$(monai-extra-losses nnunet-trainers --lst)"', "No such option"),
        ("monai-extra-losses infer --run A B --input I --output O --flips True", "There is no option 'flips'"),
        ("monai-extra-losses prepare --imags I --labels L --out O", "No such option"),
        ("monai-extra-losses compare --data D --out O --losses dice_ce,tversk", "There is no loss 'tversk'"),
        ("monai-extra-losses compare --data D --out O --losses surface+maps", "Expected overlays"),
        ("monai-extra-losses compare --data D --out O --losses dice --grid rate=1,2", "There is no option 'rate'"),
        ("python -m monai.bundle run --config_file configs/trian.yaml", "There is no config configs/trian.yaml"),
        ("python -m monai.bundle run --config_file configs/train.yaml --epoch 3", "There is no option 'epoch'"),
    ],
)
def test_a_wrong_line_is_found(line: str, sentence: str) -> None:
    (words,) = calls_in(line)
    with pytest.raises((click.UsageError, StartUpRefused), match=re.escape(sentence)):
        check_call(words)


@pytest.mark.parametrize(
    "code", ["--epoch 3", "--epoch", "train --epoch 3", "train --epoch", "monai-extra-losses chek DIR", "--loss::gama"]
)
def test_a_wrong_part_is_found(code: str) -> None:
    assert is_refused(code)
    assert not is_refused(code.replace("epoch", "epochs").replace("chek", "check").replace("gama", "gamma"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_of_the_repository_that_a_page_names_is_there(page: Path) -> None:
    _, codes = parts_of(page)
    named = [code for code in codes if re.fullmatch(r"(benchmarks|configs|scripts|tests|tutorials)/[\w./]+\.\w+", code)]
    assert [name for name in named if not (ROOT / name).exists() and name not in OF_OTHER_BUNDLES] == []
