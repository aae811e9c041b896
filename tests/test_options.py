"""The options that losses share: written once, shown by every signature, and what a call of a loss runs through."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any, Unpack

import count_calls
import pytest
import torch
from loss_list import LOSSES

from monai_extra_losses import drop_in, losses
from monai_extra_losses.losses import base, boundary, inputs, options
from monai_extra_losses.losses.options import DiceOptions, RegionOptions, options_in

# Who says what the options of a kind mean, and the kind that it takes over from its base.
KINDS: dict[type, tuple[type, type | None]] = {
    base.SegmentationLoss: (options.SegmentationOptions, None),
    base.RegionLoss: (options.RegionOptions, options.SegmentationOptions),
    boundary.DistanceLoss: (options.DistanceOptions, options.SegmentationOptions),
    losses.FusedDiceLoss: (options.DiceOptions, options.RegionOptions),
}


def described(cls: type) -> set[str]:
    """The options that a docstring gives a meaning."""
    section = re.search(r"Args:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(cls) or "", re.S)
    assert section is not None
    return {
        name
        for names in re.findall(r"^    (\w[\w, ]*):", section[1], re.M)
        for name in re.split(r",\s*", names.strip())
    }


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_the_base_of_a_kind_of_options_says_what_each_means(cls: type) -> None:
    kind, before = KINDS[cls]
    own = options_in(kind).keys() - (set() if before is None else options_in(before).keys())
    assert own <= described(cls)
    if cls is not losses.FusedDiceLoss:  # a loss names the shared ones, too
        assert described(cls) == own


def test_no_loss_of_the_package_writes_a_shared_option_again() -> None:
    shared = {name for kind, _ in KINDS.values() for name in options_in(kind)}
    for file in set(Path(losses.__file__).parent.glob("*.py")) - {Path(inputs.__file__)}:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                own = {arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)}
                # top-k and Lovasz pool the batch, and two losses measure, without being region or distance losses
                assert own & shared <= {"batch", "absent_class", "spacing"}, (file.name, node.lineno)


def test_what_is_given_by_position_is_bound_by_the_order_of_monai() -> None:
    for name in drop_in.__all__:
        cls = getattr(drop_in, name)
        first = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert first == cls.in_order.split()
    loss = drop_in.TverskyLoss(False, True, False, True, None, 0.3, 0.7)
    assert (loss.include_background, loss.to_onehot_y, loss.softmax, loss.alpha, loss.beta) == (
        False,
        True,
        True,
        0.3,
        0.7,
    )
    with pytest.raises(TypeError, match=r"FusedTverskyLoss: multiple values for argument 'alpha'"):
        drop_in.TverskyLoss(False, True, False, True, None, 0.3, alpha=0.7)
    with pytest.raises(
        TypeError, match="FusedTverskyLoss: too many positional arguments; its options are include_back"
    ):
        drop_in.TverskyLoss(*range(14))


def test_a_subclass_of_somebody_else_has_the_options_of_its_base() -> None:
    class Scaled(losses.FusedDiceLoss):
        def __init__(self, scale: float = 2.0, **others: Any) -> None:
            super().__init__(**others)
            self.scale = scale

        def formula(self, c: base.SoftCounts) -> torch.Tensor:
            return self.scale * super().formula(c)

    class Own(base.RegionLoss):
        defaults = {"smooth_nr": 0.5}  # noqa: RUF012
        left_out = {"weight": "it has none"}  # noqa: RUF012

        def __init__(self, **others: Unpack[RegionOptions]) -> None:
            super().__init__(**others)

        def formula(self, c: base.SoftCounts) -> torch.Tensor:
            return c.fp

    assert list(inspect.signature(Scaled).parameters) == ["scale", *inspect.signature(losses.FusedDiceLoss).parameters]
    x, y = torch.randn(1, 3, 5, 5), torch.randint(0, 3, (1, 1, 5, 5))
    given = {"to_onehot_y": True, "softmax": True, "batch": True}
    torch.testing.assert_close(Scaled(scale=3.0, **given)(x, y), 3 * losses.FusedDiceLoss(**given)(x, y))
    with pytest.raises(TypeError, match="expected batch to be True or False, got 'no'"):
        Scaled(batch="no")
    assert Own().smooth_nr == 0.5
    assert inspect.signature(Own).parameters["smooth_nr"].default == 0.5
    with pytest.raises(TypeError, match="Own has no option 'weight': it has none"):
        Own(weight=1.0)
    assert list(inspect.signature(losses.FusedDiceLoss).parameters).count("jaccard") == 1
    assert options_in(DiceOptions).keys() > options_in(RegionOptions).keys()


@pytest.mark.parametrize("entry", LOSSES, ids=lambda entry: entry.name)
def test_every_option_is_an_attribute_of_the_loss_or_of_a_part(entry: Any) -> None:
    loss = entry.loss(**entry.required)
    for name in inspect.signature(entry.loss).parameters:
        kept = {"weight": "class_weight", "gamma_dice": "gamma", "gamma_cross_entropy": "gamma"}.get(name, name)
        assert any(hasattr(module, kept) for module in loss.modules()), name


def test_one_call_runs_through_few_functions() -> None:
    forward, backward = count_calls.count_calls(count_calls.make("FusedDiceLoss"))
    assert 0 < forward.total() <= 60
    assert 0 < backward.total() <= 30
