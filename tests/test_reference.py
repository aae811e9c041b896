"""The reference of the documentation has every public name, and every loss with all its options."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import monai_extra_losses
from monai_extra_losses import bundle, data, drop_in, engines, losses, report, schedules, transforms
from monai_extra_losses.integrations import nnunet
from monai_extra_losses.losses.boundary import DistanceLoss
from monai_extra_losses.losses.regression import RegressionLoss

griffe = pytest.importorskip("griffe", reason="needs the extra [docs]")
api_extension = importlib.import_module("api_extension")
api_text = importlib.import_module("api_text")

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "reference"
DOCUMENTED = api_extension.documented()


def public_names() -> Iterator[tuple[str, Any]]:
    """Names and what they are, of every module that people import from."""
    for module in (losses, transforms, data, report, nnunet, bundle):
        yield from ((name, getattr(module, name)) for name in module.__all__)
    for module in (engines, schedules):
        classes = inspect.getmembers(module, inspect.isclass)
        yield from ((n, c) for n, c in classes if c.__module__ == module.__name__ and not n.startswith("_"))
    yield "config_dir", monai_extra_losses.config_dir


def test_every_public_name_is_in_the_reference() -> None:
    names = dict(public_names())
    spelled = {name for name in transforms.__all__ if name.endswith(("D", "Dict"))}  # the page says so once
    assert len(names) > 150
    assert set(names) - spelled - set(DOCUMENTED) == set()
    assert {re.sub("D(ict)?$", "d", name) for name in spelled} <= set(DOCUMENTED)


def test_the_reference_shows_the_objects_that_people_import() -> None:
    names = dict(public_names())
    for name, path in DOCUMENTED.items():
        module, _, last = path.rpartition(".")
        found = getattr(importlib.import_module(module), last)
        assert found is names.get(name, found), path


def test_the_page_of_monai_s_names_says_what_each_is() -> None:
    rows = re.findall(r"^\| `(\w+)` \| \[`(\w+)`\]\((\w+)\.md\) \|", (PAGES / "drop_in.md").read_text(), re.M)
    assert [name for name, *_ in rows] == drop_in.__all__
    for name, cls, page in rows:
        assert getattr(drop_in, name).__name__ == cls
        assert f"::: monai_extra_losses.{cls}\n" in f"{(PAGES / f'{page}.md').read_text()}\n"


def test_every_page_is_in_the_table_and_in_the_navigation() -> None:
    pages = {page.name for page in PAGES.glob("*.md")} - {"index.md"}
    assert set(re.findall(r"\]\((\w+\.md)\)", (PAGES / "index.md").read_text())) == pages
    assert set(re.findall(r'"reference/(\w+\.md)"', (ROOT / "zensical.toml").read_text())) == pages | {"index.md"}


@pytest.fixture(scope="module")
def package() -> Any:
    extensions = griffe.load_extensions(api_extension.WholeLosses())
    return griffe.load("monai_extra_losses", search_paths=[ROOT], extensions=extensions)


BASES = [losses.base.SegmentationLoss, losses.base.RegionLoss, losses.base.DistributionLoss, DistanceLoss]
CLASSES = [*(getattr(losses, name) for name in losses.__all__ if name.endswith("Loss")), *BASES, RegressionLoss]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_loss_is_shown_with_its_signature_and_says_of_each_option_what_it_means(package: Any, cls: Any) -> None:
    shown = package[f"{cls.__module__.partition('.')[2]}.{cls.__name__}"]
    parameters = inspect.signature(cls).parameters
    given = {p.name: (p.kind.name.lower(), p.default) for p in shown.members["__init__"].parameters}
    assert list(given) == list(parameters)
    for name, parameter in parameters.items():
        kind, default = given[name]
        assert kind.replace(" ", "_").replace("-", "_") == parameter.kind.name.lower(), name
        if default is not None:
            value = getattr(parameter.default, "value", parameter.default)
            assert eval(default) == value, name
        assert re.search(rf"^- `{name}(: [^`]*)?( = [^`]*)?`: \S", shown.docstring.value, re.M), name


def test_a_loss_is_shown_with_formula_example_and_reference(package: Any) -> None:
    text = package["losses.region.FocalTverskyLoss"].docstring.value
    assert "```text\n(1 - TI)^(1/gamma), TI = " in text
    assert "- `gamma: float = 4 / 3`: in the paper \\[1, 3\\]" in text
    assert "```pycon\n>>> import torch\n" in text
    assert "**Reference**\n\nAbraham and Khan 2019, [arXiv:1810.07842](https://arxiv.org/abs/1810.07842)." in text
    assert "[`SegmentationLoss`][monai_extra_losses.losses.base.SegmentationLoss]" in text
    own, _, shared = text.partition("<details")
    assert "`alpha: float = 0.3`" in own
    assert "`batch: bool = False`" in shared


def test_text_stays_text_in_markdown() -> None:
    shown = api_text.markdown_of("Of (B, C, *s) and (B, 1, *s), [1.0] < `a*b*c`.", api_text.Described())
    assert shown == "Of (B, C, \\*s) and (B, 1, \\*s), \\[1.0\\] &lt; `a*b*c`."


def test_sections_of_a_function_become_lists() -> None:
    docstring = """One line.

    Args:
        a, b: both
            of them.
        c: other.

    Raises:
        ValueError: no `X`.
    """
    about = api_text.Described(codes={"a": "a: int = 1"}, links={"X": "package.X"}, returned="int")
    assert api_text.markdown_of(docstring, about).split("\n\n") == [
        "One line.",
        "**Arguments**",
        "- `a: int = 1`: both of them.\n- `b`: both of them.\n- `c`: other.",
        "**Raises**",
        "- `ValueError`: no [`X`][package.X].",
        "**Returns** `int`",
    ]
