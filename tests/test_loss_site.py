"""The pages of the losses: as their sources say, each formula that of the class, and equal what they call equal."""

import functools
import inspect
import math
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corner_cases
import make_loss_pages
import numpy as np
import pytest
import references as ref
import torch
from loss_list import ENTRIES, one_hot, value_and_gradient
from torch import Tensor, nn

from monai_extra_losses import losses
from monai_extra_losses.losses.regression import RegressionLoss

ROOT = Path(__file__).parents[1]
FACTS = make_loss_pages.facts()
NAMES = [name for name in losses.__all__ if name.endswith("Loss")]
SHAPE = (2, 3, 6, 7)


def test_every_loss_has_a_page() -> None:
    assert sorted(FACTS["losses"]) == sorted(NAMES)
    assert len({make_loss_pages.page_name(name) for name in NAMES}) == len(NAMES)


def test_the_navigation_has_every_loss_in_the_order_of_the_table() -> None:
    table = re.findall(r"^\| \[`\w+`\]\((\w+)\.md\)", (ROOT / "docs" / "losses" / "index.md").read_text(), re.M)
    pages = re.findall(r'"losses/(\w+)\.md"', (ROOT / "zensical.toml").read_text())
    assert pages == ["index", "options", *table]


def test_the_pages_are_as_their_sources_say() -> None:
    assert make_loss_pages.stale_pages(ROOT) == [], "run python scripts/make_loss_pages.py"


def test_a_page_that_is_changed_missing_or_left_over_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "docs/losses"
    folder.mkdir(parents=True)
    monkeypatch.setattr(make_loss_pages, "ROOT", tmp_path)
    written = {folder.relative_to(tmp_path) / f"{name}.md": f"about {name}" for name in ("one", "two", "three")}
    monkeypatch.setattr(make_loss_pages, "loss_pages", lambda root: written)
    make_loss_pages.main([])
    make_loss_pages.main(["--check"])
    assert "are as their sources say" in capsys.readouterr().out
    (folder / "one.md").write_text("another")
    (folder / "three.md").unlink()
    (folder / "former.md").write_text("of a loss that is no more")
    with pytest.raises(SystemExit, match=r": docs/losses/one.md, docs/losses/three.md, docs/losses/former.md; run"):
        make_loss_pages.main(["--check"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1 / 3, "0.333"),
        (2.0, "2"),
        (1000.0, "1000"),
        (0.0001234, "1.2e-04"),
        (-1e-9, "below 1e-6"),
        (math.inf, "inf"),
    ],
)
def test_a_number_has_three_digits(value: float, text: str) -> None:
    assert corner_cases.number(value) == text


def test_a_long_call_is_broken_at_its_brackets() -> None:
    code = f"loss = CompoundLoss(losses={{'a': A(x=[1, 2]), 'b': B({'y' * 80})}}, weights=[1.0])"
    lines = make_loss_pages.formatted(code).splitlines()
    assert lines[:3] == ["loss = CompoundLoss(", "    losses={", "        'a': A(x=[1, 2]),"]
    assert "".join(line.strip() for line in lines).replace(",}", "}").replace(",)", ")") == code.replace(
        ", ", ","
    ).replace("[1,2]", "[1, 2]")


def test_a_page_says_of_options_what_holds_for_its_loss() -> None:
    notes = (
        '`spacing` is in mm. "none" gives (B, 1).',
        '`weight` multiplies. "mean" is over samples. "none" gives (B, C).',
    )
    kept = make_loss_pages.notes_that_hold(notes, {"spacing"}, set())
    assert list(kept) == [notes[0], '"mean" is over samples.']
    assert make_loss_pages.refuses_none("FusedDiceCELoss")
    assert not make_loss_pages.refuses_none("FusedDiceLoss")


def test_text_of_a_docstring_becomes_markdown() -> None:
    text = "See `FusedDiceLoss` and `RegionLoss`: (B, *spatial) <\n0, `a*b`, arXiv:1606.04797."
    assert make_loss_pages.prose(text, "JaccardLoss") == (
        r"See [`FusedDiceLoss`](dice.md) and [`RegionLoss`](options.md#region-losses): (B, \*spatial) &lt; 0, `a*b`, "
        "[arXiv:1606.04797](https://arxiv.org/abs/1606.04797)."
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_latex_of_a_formula_is_understood(name: str) -> None:
    convert = pytest.importorskip("latex2mathml.converter", reason="needs the extra [docs]").convert
    for line in FACTS["losses"][name]["math"]:
        text = re.sub(r"<[^>]*>", " ", convert(line, display="block"))
        assert "\\" not in text
        assert not {"left", "right", "begin", "end", "array", "frac", "mathrm"} & set(re.findall(r"[a-z]+", text))


# --- making losses ---


def reads(cls: type[nn.Module], activation: str) -> dict[str, bool]:
    """The options by which a loss takes labels and a softmax, or regions and a sigmoid, as far as it has them."""
    known = inspect.signature(cls).parameters
    wanted = ("to_onehot_y", "softmax", "use_softmax") if activation == "softmax" else ("sigmoid",)
    return {name: True for name in wanted if name in known}


def makers(activation: str) -> dict[str, Callable[..., nn.Module]]:
    """The losses by name, with those options."""
    classes = {name: getattr(losses, name) for name in NAMES}
    return {name: functools.partial(cls, **reads(cls, activation)) for name, cls in classes.items()}


# --- formulas ---

OF_NUMPY = ("abs", "array", "concatenate", "cosh", "exp", "inf", "log", "maximum", "mean", "minimum", "sqrt", "stack")
OF_NUMPY += ("where",)


def sums(maps: ref.Array) -> ref.Array:
    return maps.sum((2, 3))


def of_each_map(function: Callable[..., ref.Array], maps: ref.Array, *further: Any) -> ref.Array:
    return np.stack([[function(one, *further) for one in sample] for sample in maps])


def arrays(scores: Tensor, target: Tensor) -> dict[str, Any]:
    """What a check reads of scores and labels."""
    x, labels = scores.numpy(), target[:, 0].numpy()
    p, g = ref.softmax(x), ref.one_hot(target.numpy(), SHAPE[1])
    ones = np.ones_like(p[:, :1])
    return {
        **{name: getattr(np, name) for name in OF_NUMPY},
        **{"ref": ref, "x": x, "p": p, "g": g, "labels": labels, "p_t": (p * g).sum(1), "ones": ones},
        **{"N": math.prod(SHAPE[2:]), "C": SHAPE[1], "s": 1e-5, "S": sums, "each": of_each_map},
        "maps": lambda a: a[..., None, None],
        "sorted_down": lambda a: -np.sort(-a.reshape(len(a), -1)),
        **{"TP": sums(p * g), "FP": sums(p * (1 - g)), "FN": sums((1 - p) * g), "TN": sums((1 - p) * (1 - g))},
        "K": ref.contour_sizes(g, ones),
        "distance": ref.signed_distances(g, ones, None),
        "predicted_distance": ref.signed_distances(p, ones, None),
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name != "HeadLoss"])  # whose formula is that of another
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_formula_of_a_page_is_that_of_the_class(name: str) -> None:
    facts, options = FACTS["losses"][name], FACTS["losses"][name].get("options", {})
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    target = torch.randint(0, SHAPE[1], (SHAPE[0], 1, *SHAPE[2:]), generator=generator)
    given = {"annotated": [[1, 1, 0], [1, 1, 0]]} if name == "PartialLabelLoss" else {}
    target = target % 2 if given else target
    names = arrays(scores, target) | options
    if issubclass(getattr(losses, name), RegressionLoss):
        target = torch.rand(SHAPE, generator=generator, dtype=torch.float64)
        target = target / target.sum(1, keepdim=True)
        names |= {"yhat": names["p"], "y": target.numpy()}
    for own, expression in facts.get("names", {}).items():
        names[own] = eval(expression, names)
    loss = eval(facts["make"], dict(makers("softmax"))) if "make" in facts else makers("softmax")[name](**options)
    # Distances are float32.
    exact = name != "CenterlineBoundaryDiceLoss" and not (name in ENTRIES and ENTRIES[name].measures)
    expected = pytest.approx(eval(facts["check"], names), rel=1e-10 if exact else 1e-7, abs=1e-12)
    assert loss(scores, target, **given).item() == expected


# --- what is equal ---


class Expression:
    """A loss, or what is computed of losses, as a function of scores and target.

    Args:
        value: the function.
        module: the loss, where it is one.
    """

    def __init__(self, value: Callable[..., Any], module: nn.Module | None = None) -> None:
        self.value, self.module = value, module

    def __call__(self, **numbers: float) -> "Expression":
        """With maps of one number beside the target."""

        def value(scores: Tensor, target: Tensor) -> Any:
            return self.value(scores, target, **{name: torch.full_like(scores, n) for name, n in numbers.items()})

        return Expression(value)

    def __add__(self, other: Any) -> "Expression":
        return combined(operator.add, self, other)

    def __mul__(self, other: Any) -> "Expression":
        return combined(operator.mul, self, other)

    def __truediv__(self, other: Any) -> "Expression":
        return combined(operator.truediv, self, other)

    def __pow__(self, other: Any) -> "Expression":
        return combined(operator.pow, self, other)

    def __neg__(self) -> "Expression":
        return self * -1

    def __rsub__(self, other: Any) -> "Expression":
        return -self + other

    __radd__, __rmul__ = __add__, __mul__


def combined(operation: Callable[..., Any], *parts: Any) -> Expression:
    def value(scores: Tensor, target: Tensor) -> Any:
        return operation(*(part.value(scores, target) if isinstance(part, Expression) else part for part in parts))

    return Expression(value)


def made(make: Callable[..., nn.Module], *args: Any, **options: Any) -> Expression:
    """A loss as an expression; a regression loss compares with the labels as one-hot."""
    loss = make(*map(modules_of, args), **options)

    def value(scores: Tensor, target: Tensor, **maps: Tensor) -> Any:
        numbers = isinstance(loss, RegressionLoss)
        return loss(scores, one_hot(target, scores.shape[1], scores.dtype) if numbers else target, **maps)

    return Expression(value, loss)


def modules_of(argument: Any) -> Any:
    return [part.module for part in argument] if isinstance(argument, list) else argument.module


def values_of(expression: str, data: str) -> tuple[Tensor, Tensor]:
    """Value and gradient of an expression."""
    scores, target = DATA[data]()
    functions = {f.__name__: functools.partial(combined, f) for f in (torch.cosh, torch.exp, torch.log, torch.mean)}
    known = makers("sigmoid" if data == "regions" else "softmax")
    names = {**functions, **{name: functools.partial(made, make) for name, make in known.items()}}
    parsed = eval(expression, names | {"C": scores.shape[1], "sqrt": math.sqrt})
    return value_and_gradient(parsed.value, scores, target)


def stripes(width: int = 1) -> Tensor:
    return (torch.arange(SHAPE[3]) // width % 3).expand(2, 1, *SHAPE[2:]).clone()


def random_labels(classes: int) -> Tensor:
    return torch.randint(0, classes, (2, 1, *SHAPE[2:]), generator=torch.Generator().manual_seed(1))


def lines() -> Tensor:
    labels = torch.zeros(2, 1, 12, 12, dtype=torch.int64)
    labels[..., 2, 2:10], labels[..., 6, 2:10] = 1, 2
    return labels


def scores_of(labels: Tensor, classes: int = 3, lead: float = 0.0) -> Tensor:
    """Random scores, with a lead for a class."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(labels.shape[0], classes, *labels.shape[2:], generator=generator, dtype=torch.float64)
    return noise.clamp(-1, 1) + lead * one_hot(labels, classes, torch.float64)


# What `data` of scripts/loss_facts.yaml means: scores and target.
DATA: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "any": lambda: (scores_of(random_labels(3)), random_labels(3)),
    "regions": lambda: (scores_of(random_labels(3)), one_hot(random_labels(3), 3, torch.float64)),
    "two classes": lambda: (scores_of(random_labels(2), 2), random_labels(2)),
    "two halves": lambda: (scores_of(random_labels(2), 2), (torch.arange(84) % 2).view(2, 1, 6, 7)),
    "thin": lambda: (scores_of(stripes()), stripes()),
    "right": lambda: (scores_of(stripes(), lead=3.0), stripes()),
    "one label": lambda: (scores_of(random_labels(3)), torch.ones(2, 1, 6, 7, dtype=torch.int64)),
    "one component": lambda: (scores_of(stripes(3)), stripes(3)),
    "certain": lambda: (scores_of(random_labels(3).flip(2), lead=1000.0), random_labels(3)),
    "lines": lambda: (scores_of(lines().roll(2, 3), lead=1000.0), lines()),
}


@pytest.mark.parametrize("row", FACTS["equal"], ids=lambda row: row[0])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_a_page_calls_equal_is_equal(row: list[Any]) -> None:
    left, right, *about = row
    data = about[0].get("data", "any") if about else "any"
    (one, of_one), (other, of_other) = (values_of(expression, data) for expression in (left, right))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(of_one, of_other, rtol=1e-6, atol=1e-6)
