"""The drop-ins against installed MONAI: equal for every option and pair of options, except where MONAI is wrong."""

import inspect
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import monai.losses
import numpy as np
import pytest
import references as ref
import torch
from loss_list import each, one_hot, value_and_gradient
from marks import slow_but
from torch import Tensor

import monai_extra_losses.drop_in as drop_in
import monai_extra_losses.losses as ours

EQUALS = {
    "DiceLoss": ours.FusedDiceLoss,
    "TverskyLoss": ours.FusedTverskyLoss,
    "GeneralizedDiceLoss": ours.FusedGeneralizedDiceLoss,
    "FocalLoss": ours.FusedFocalLoss,
    "DiceCELoss": ours.FusedDiceCELoss,
    "DiceFocalLoss": ours.FusedDiceFocalLoss,
}
MEASURES = {
    "BoundaryLoss": ours.SurfaceLoss,
    "HausdorffDTLoss": ours.HausdorffLoss,
    "LogHausdorffDTLoss": ours.LogHausdorffLoss,
}
SHAPES = [(2, c, *spatial) for spatial in ((5, 6), (4, 3, 5)) for c in (1, 2, 4)]
PAIRED = ((2, 4, 5, 6),)
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "sigmoid": {"sigmoid": True},
    "softmax": {"softmax": True},
    "tanh": {"other_act": torch.tanh},
}
ACTIVATION_OPTIONS = {"sigmoid", "softmax", "other_act"}


def weights(num_classes: int, *, kept: bool, include_background: bool) -> Tensor:
    """Weights of all classes, or of those kept."""
    values = torch.tensor([0.5, 2.0, 1.25, 3.0])[:num_classes]
    return values[1:] if kept and not include_background and num_classes > 1 else values


def option_sets(values: dict[str, list[dict[str, Any]]], shape: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The defaults, every other value of every option, and for a shape of `PAIRED` every pair of them."""
    yield {}
    for sets in values.values():
        yield from sets
    for first, second in itertools.combinations(values.values(), 2) if shape in PAIRED else ():
        for a, b in itertools.product(first, second):
            yield {**a, **b}


REGION_VALUES: dict[str, list[dict[str, Any]]] = {
    "include_background": [{"include_background": False}],
    "reduction": [{"reduction": "sum"}, {"reduction": "none"}],
    "smooth": [{"smooth_nr": 1.0, "smooth_dr": 0.5}],
    "batch": [{"batch": True}],
    "soft_label": [{"soft_label": True}],
    "ignore_index": [{"ignore_index": 1}, {"ignore_index": 0}, {"ignore_index": 255}],
}
DICE_VALUES = {"squared_pred": [{"squared_pred": True}], "jaccard": [{"jaccard": True}]}
# Without smoothing: its place is a departure.
UNSMOOTHED = {"smooth_nr": 0.0, "smooth_dr": 0.0}
GENERALIZED_VALUES: dict[str, list[dict[str, Any]]] = {
    "include_background": [{"include_background": False}],
    "w_type": [{"w_type": "simple"}, {"w_type": "uniform"}],
    "reduction": [{"reduction": "sum"}, {"reduction": "none"}],
    "batch": [{"batch": True}],
    "soft_label": [{"soft_label": True}],
}
TVERSKY_VALUES = {"alpha_beta": [{"alpha": 0.3}, {"beta": 0.7}, {"alpha": 0.2, "beta": 1.5}]}
FOCAL_VALUES: dict[str, list[dict[str, Any]]] = {
    "include_background": [{"include_background": False}],
    "gamma": [{"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 1.0}, {"gamma": 3.0}],
    "alpha": [{"alpha": 0.25}, {"alpha": "list"}],
    "weight": [{"weight": 2.0}, {"weight": "list"}],
    "reduction": [{"reduction": "sum"}, {"reduction": "none"}],
    "use_softmax": [{"use_softmax": True}],
    "ignore_index": [{"ignore_index": 1}, {"ignore_index": 255}],
}
DICE_CE_VALUES = {
    **DICE_VALUES,
    "include_background": [{"include_background": False}],
    "reduction": [{"reduction": "sum"}],
    "smooth": [{"smooth_nr": 1.0, "smooth_dr": 0.5}],
    "batch": [{"batch": True}],
    "weight": [{"weight": "list"}],
    "lambda": [{"lambda_dice": 0.3}, {"lambda_ce": 0.0}],
    "label_smoothing": [{"label_smoothing": 0.1}],
}


DICE_FOCAL_VALUES: dict[str, list[dict[str, Any]]] = {
    **{name: values for name, values in DICE_CE_VALUES.items() if name not in ("lambda", "label_smoothing")},
    "reduction": [{"reduction": "sum"}, {"reduction": "none"}],
    "weight": [{"weight": 2.0}, {"weight": "list"}],
    "gamma": [{"gamma": 0.5}, {"gamma": 3.0}],
    "alpha": [{"alpha": 0.25}],
    "lambda": [{"lambda_dice": 0.3}, {"lambda_focal": 0.0}],
}


def data(shape: tuple[int, ...], kind: str, ignore_index: int | None = None) -> tuple[Tensor, Tensor, bool]:
    """Scores, a target, and whether it wants `to_onehot_y`."""
    generator = torch.Generator().manual_seed(shape[1] + len(shape))
    scores = torch.randn(shape, generator=generator) + 1  # so that sums of tanh are not near 0
    if kind == "soft":
        soft = torch.rand(shape, generator=generator)
        return scores, soft / soft.sum(1, keepdim=True) if shape[1] > 1 else soft, False
    labels = torch.randint(0, max(shape[1], 2), (shape[0], 1, *shape[2:]), generator=generator)
    if kind == "labels":
        if ignore_index == 255:
            labels[:, :, 1:3] = 255
        return scores, labels.float(), True
    return scores, one_hot(labels, shape[1]) if shape[1] > 1 else labels.float(), False


def difference(options: dict[str, Any], theirs: tuple[Tensor, Tensor], mine: tuple[Tensor, Tensor]) -> str:
    """A line for options whose value or gradient differs; else nothing."""
    value, expected = mine[0].flatten(), theirs[0].flatten()  # the shapes for "none" are a departure
    if value.shape != expected.shape:
        return f"{options}: shape {tuple(mine[0].shape)}, MONAI's {tuple(theirs[0].shape)}"
    off = (value - expected).abs().max() / expected.abs().max().clamp_min(1)
    # Gradients of a mean are small: they are compared relative to the largest, down to 5e-8 where that is 0.01 or less
    # (MONAI's float32 differences of sums carry an error of that size).
    gradient_off = (mine[1] - theirs[1]).abs().max() / theirs[1].abs().max().clamp_min(1e-2)
    ok = (
        off <= 1e-6
        and gradient_off <= 5e-6
        and (mine[1] - theirs[1]).abs().max() <= 1e-6 * theirs[1].abs().max().clamp_min(1)
    )
    return "" if ok else f"{options}: value off by {off:.1e}, gradient by {gradient_off:.1e} of its largest"


def compare(name: str, shape: tuple[int, ...], kind: str, sets: Iterator[dict[str, Any]], weight_of_kept: bool) -> int:
    """Compare every set of options that has a meaning; return how many."""
    wrong, compared = [], 0
    for options in sets:
        if departs(name, shape, kind, options):
            continue
        scores, target, to_onehot_y = data(shape, kind, options.get("ignore_index"))
        arguments = {**options, "to_onehot_y": to_onehot_y}
        background = options.get("include_background", True)
        for option in ("weight", "alpha"):
            if options.get(option) == "list":
                kept = option == "alpha" or weight_of_kept
                arguments[option] = weights(shape[1], kept=kept, include_background=background) / (
                    4 if option == "alpha" else 1
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warnings have a test of their own
            if not ACTIVATION_OPTIONS & arguments.keys() and name not in ("FocalLoss", "DiceFocalLoss"):
                scores = scores.sigmoid()  # without an activation the input is probabilities
            theirs = value_and_gradient(getattr(monai.losses, name)(**arguments), scores, target)
            mine = value_and_gradient(EQUALS[name](**arguments), scores, target)
        wrong.append(difference(options, theirs, mine))
        compared += 1
    wrong = [line for line in wrong if line]
    assert not wrong, f"{len(wrong)} of {compared} differ from MONAI:\n" + "\n".join(wrong)
    return compared


def fewest(shape: tuple[int, ...], of_pairs: int) -> int:
    """How many sets of options are compared at least."""
    return of_pairs if shape in PAIRED else 5


def departs(name: str, shape: tuple[int, ...], kind: str, options: dict[str, Any]) -> bool:
    """Options whose departures have tests of their own below, and such as mean nothing."""
    channels, ignore_index = shape[1], options.get("ignore_index")
    softmax, background = options.get("use_softmax", False), options.get("include_background", True)
    if ignore_index is not None and kind == "soft":
        return True  # which share of a voxel would be deleted?
    if name == "DiceCELoss":
        return "sigmoid" in options and channels > 1
    if name == "DiceFocalLoss":
        if options.get("weight") == "list" and channels - (not background) <= 1:
            return True  # an error in MONAI
        return "softmax" in options and channels > 1
    if name != "FocalLoss":
        return False
    if channels == 1 and (softmax or options.get("alpha") == "list"):
        return True
    if kind == "soft" and options.get("alpha") == "list" and not softmax:
        return True
    if options.get("weight") == "list" and channels - (not background) <= 1:
        return True  # an error in MONAI
    if softmax and not background:
        return True
    return ignore_index is not None and options.get("reduction", "mean") == "mean" and channels > 1


@pytest.mark.parametrize(
    ("activation", "kind"),
    slow_but(
        [("none", "onehot"), ("sigmoid", "soft"), ("softmax", "labels"), ("tanh", "labels")],
        itertools.product(ACTIVATIONS, ("labels", "onehot", "soft")),
    ),
)
class TestRegionLossesEqualMonai:
    @each("shape", SHAPES)
    def test_dice(self, shape: tuple[int, ...], activation: str, kind: str) -> None:
        values = {**REGION_VALUES, **DICE_VALUES, "weight": [{"weight": "list"}]}
        sets = ({**ACTIVATIONS[activation], **options} for options in option_sets(values, shape))
        assert compare("DiceLoss", shape, kind, sets, weight_of_kept=True) > fewest(shape, 30)

    @each("shape", SHAPES)
    def test_tversky(self, shape: tuple[int, ...], activation: str, kind: str) -> None:
        values = {**REGION_VALUES, **TVERSKY_VALUES}
        sets = ({**ACTIVATIONS[activation], **options} for options in option_sets(values, shape))
        assert compare("TverskyLoss", shape, kind, sets, weight_of_kept=True) > fewest(shape, 30)

    @each("shape", SHAPES)
    def test_dice_ce(self, shape: tuple[int, ...], activation: str, kind: str) -> None:
        if activation == "sigmoid" and shape[1] > 1:
            pytest.skip("a departure, with a test of its own")
        sets = ({**ACTIVATIONS[activation], **options} for options in option_sets(DICE_CE_VALUES, shape))
        assert compare("DiceCELoss", shape, kind, sets, weight_of_kept=False) > fewest(shape, 30)

    @each("shape", SHAPES)
    def test_generalized_dice(self, shape: tuple[int, ...], activation: str, kind: str) -> None:
        sets = (
            {**UNSMOOTHED, **ACTIVATIONS[activation], **options} for options in option_sets(GENERALIZED_VALUES, shape)
        )
        assert compare("GeneralizedDiceLoss", shape, kind, sets, weight_of_kept=True) > fewest(shape, 20)

    @each("shape", SHAPES)
    def test_dice_focal(self, shape: tuple[int, ...], activation: str, kind: str) -> None:
        if activation == "softmax" and shape[1] > 1:
            pytest.skip("a departure, with a test of its own")
        sets = ({**ACTIVATIONS[activation], **options} for options in option_sets(DICE_FOCAL_VALUES, shape))
        assert compare("DiceFocalLoss", shape, kind, sets, weight_of_kept=True) > fewest(shape, 30)


@pytest.mark.parametrize("kind", ["labels", "onehot", "soft"])
@each("shape", SHAPES)
def test_focal_equals_monai(shape: tuple[int, ...], kind: str) -> None:
    assert compare("FocalLoss", shape, kind, option_sets(FOCAL_VALUES, shape), weight_of_kept=True) > fewest(shape, 20)


def test_label_smoothing_of_one_equals_monai() -> None:
    """The end of the range that MONAI and torch document."""
    scores, target, _ = data((2, 3, 5, 6), "labels")
    options = {"to_onehot_y": True, "softmax": True, "label_smoothing": 1.0}
    theirs = value_and_gradient(monai.losses.DiceCELoss(**options), scores, target)
    assert difference(options, theirs, value_and_gradient(ours.FusedDiceCELoss(**options), scores, target)) == ""


@each("shape", [(3, 1), (3, 4)])
@each("use_softmax", [False, True])
@each("reduction", ["mean", "none"])
def test_focal_without_spatial_axes_equals_monai(shape: tuple[int, ...], use_softmax: bool, reduction: str) -> None:
    if use_softmax and shape[1] == 1:
        pytest.skip("a departure, with a test of its own")
    options = {"use_softmax": use_softmax, "reduction": reduction, "to_onehot_y": shape[1] > 1}
    scores, target = torch.randn(shape), torch.randint(0, max(shape[1], 2), (3, 1))
    theirs = value_and_gradient(monai.losses.FocalLoss(**options), scores, target)
    mine = value_and_gradient(ours.FusedFocalLoss(**options), scores, target)
    assert mine[0].shape == theirs[0].shape
    assert difference(options, theirs, mine) == ""


@pytest.mark.parametrize("name", EQUALS)
@each("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_one_hot_targets_equal_monai(name: str, dtype: torch.dtype) -> None:
    options = UNSMOOTHED if name == "GeneralizedDiceLoss" else {}
    scores, target, _ = data((2, 4, 5, 6), "onehot")
    if dtype == torch.bool:
        target = target.bool()
        expected = value_and_gradient(getattr(monai.losses, name)(**options), scores, target.float())
    else:
        expected = value_and_gradient(getattr(monai.losses, name)(**options), scores, target.to(dtype))
    assert difference({}, expected, value_and_gradient(EQUALS[name](**options), scores, target.to(dtype))) == ""


@pytest.mark.parametrize("name", EQUALS | MEASURES)
def test_monai_parameters_come_first_with_their_defaults_then_ours_keyword_only(name: str) -> None:
    theirs = list(inspect.signature(getattr(monai.losses, name)).parameters.values())
    mine = list(inspect.signature((EQUALS | MEASURES)[name]).parameters.values())
    assert [p.name for p in mine[: len(theirs)]] == [p.name for p in theirs]
    assert [p.default for p in mine[: len(theirs)]] == [getattr(p.default, "value", p.default) for p in theirs]
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in mine[: len(theirs)])
    assert len(mine) > len(theirs)
    assert all(p.kind is p.KEYWORD_ONLY for p in mine[len(theirs) :])


def test_drop_in_names_are_aliases() -> None:
    assert set(drop_in.__all__) == set(EQUALS | MEASURES)
    for name, equal in (EQUALS | MEASURES).items():
        assert getattr(drop_in, name) is equal
        assert equal.__name__ != name


def test_monai_enums_are_accepted() -> None:
    assert ours.FusedDiceLoss(reduction=monai.utils.LossReduction.SUM).reduction == "sum"
    assert ours.FusedDiceCELoss(reduction=monai.utils.DiceCEReduction.SUM).reduction == "sum"


# --- states ---

WEIGHTED: dict[str, list[tuple[dict[str, Any], Any, Any]]] = {
    "DiceLoss": [
        ({}, [0.5, 2.0, 3.0], [1.0, 1.0, 1.0]),
        ({"include_background": False}, [2.0, 3.0], [1.0, 1.0]),
        ({}, 2.0, 1.0),
        ({}, [0.5, 2.0, 3.0], 1.0),
    ],
    "FocalLoss": [
        ({}, [0.5, 2.0, 3.0], [1.0, 1.0, 1.0]),
        ({"use_softmax": True}, [0.5, 2.0, 3.0], [1.0, 1.0, 1.0]),
        ({}, 2.0, 1.0),
    ],
    "DiceCELoss": [
        ({"softmax": True}, torch.tensor([0.5, 2.0, 3.0]), [1.0, 1.0, 1.0]),
        ({"softmax": True, "include_background": False}, torch.tensor([0.5, 2.0, 3.0]), [1.0, 1.0, 1.0]),
        ({}, torch.tensor([0.5, 2.0, 3.0]), torch.ones(3)),
    ],
    "DiceFocalLoss": [
        ({"sigmoid": True}, [0.5, 2.0, 3.0], [1.0, 1.0, 1.0]),
        ({"sigmoid": True, "include_background": False}, [2.0, 3.0], [1.0, 1.0]),
        ({"sigmoid": True}, 2.0, 1.0),
    ],
    **{name: [({}, None, None)] for name in ("TverskyLoss", "GeneralizedDiceLoss", *MEASURES)},
}
STATES = [(name, *case) for name, cases in WEIGHTED.items() for case in cases]


@each("called", [False, True])
@each("name, options, weight, other", STATES)
def test_the_state_of_monai_s_class_loads(
    name: str, options: dict[str, Any], weight: Any, other: Any, called: bool
) -> None:
    """A module that holds its loss has the weights in its checkpoints."""
    scores, target, _ = data((2, 3, 5, 6), "labels")
    probabilities = not ACTIVATION_OPTIONS & options.keys() and name != "FocalLoss"
    scores = scores.softmax(1) if probabilities else scores
    options = {"to_onehot_y": True, **({} if name != "GeneralizedDiceLoss" else UNSMOOTHED), **options}
    given, fresh = ({} if w is None else {"weight": w} for w in (weight, other))
    theirs = getattr(monai.losses, name)(**options, **given)
    expected = theirs(scores, target)
    if not called:
        theirs = getattr(monai.losses, name)(**options, **given)
    mine = getattr(drop_in, name)(**options, **fresh)
    if weight is not None:
        assert not torch.isclose(mine(scores, target), expected)
    assert mine.load_state_dict(theirs.state_dict(), strict=True).missing_keys == []
    torch.testing.assert_close(mine(scores, target), expected, atol=1e-6, rtol=1e-6)
    again = getattr(drop_in, name)(**options, **fresh)
    again.load_state_dict(mine.state_dict(), strict=True)
    assert torch.equal(again(scores, target), mine(scores, target))
    nested = torch.nn.ModuleList([getattr(drop_in, name)(**options, **fresh)])
    nested.load_state_dict(torch.nn.ModuleList([theirs]).state_dict(), strict=True)
    torch.testing.assert_close(nested[0](scores, target), expected, atol=1e-6, rtol=1e-6)


def test_a_state_that_does_not_fit_is_refused() -> None:
    weight = torch.tensor([0.5, 2.0, 3.0])
    theirs = monai.losses.DiceCELoss(weight=weight)
    with pytest.raises(RuntimeError, match=r"size mismatch for dice\.class_weight"):
        drop_in.DiceCELoss(weight=[1.0, 2.0]).load_state_dict(theirs.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        drop_in.DiceCELoss().load_state_dict(theirs.state_dict())
    theirs.binary_cross_entropy.pos_weight = 2 * weight  # two weights where ours has one
    with pytest.raises(RuntimeError, match=r"binary_cross_entropy\.pos_weight"):
        drop_in.DiceCELoss(weight=weight).load_state_dict(theirs.state_dict())


# --- warnings and errors ---


def warnings_of(loss: torch.nn.Module, scores: Tensor, target: Tensor) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss(scores, target)
    return sorted({str(warning.message) for warning in caught})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DiceLoss", {"softmax": True}),
        ("DiceLoss", {"to_onehot_y": True, "sigmoid": True}),
        ("DiceLoss", {"include_background": False, "sigmoid": True}),
        ("DiceLoss", {"softmax": True, "to_onehot_y": True, "include_background": False}),
        ("TverskyLoss", {"softmax": True, "to_onehot_y": True, "include_background": False}),
        ("FocalLoss", {"to_onehot_y": True, "include_background": False}),
        ("DiceCELoss", {"softmax": True, "to_onehot_y": True, "include_background": False}),
        ("GeneralizedDiceLoss", {"softmax": True, "to_onehot_y": True, "include_background": False}),
        ("DiceFocalLoss", {"softmax": True, "to_onehot_y": True, "include_background": False}),
    ],
)
def test_one_channel_warns_as_monai(name: str, options: dict[str, Any]) -> None:
    scores, target = torch.rand(2, 1, 5, 6), torch.randint(0, 2, (2, 1, 5, 6)).float()
    expected = warnings_of(getattr(monai.losses, name)(**options), scores, target)
    assert len(expected) == len(options) - options.get("sigmoid", False)
    assert warnings_of(EQUALS[name](**options), scores, target) == expected


def test_one_channel_warning_points_at_the_caller() -> None:
    loss = ours.FusedDiceLoss(softmax=True)
    with pytest.warns(UserWarning, match="single channel prediction, `softmax=True` ignored.") as caught:
        loss(torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    assert caught[0].filename == __file__


def test_scalar_alpha_without_background_warns_as_monai() -> None:
    match = "`include_background=False`, scalar `alpha` ignored when using softmax."
    options = {"include_background": False, "use_softmax": True, "alpha": 0.25, "to_onehot_y": True}
    scores, target = torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 1, 5, 6))
    with pytest.warns(UserWarning, match=match):
        monai.losses.FocalLoss(**options)(scores, target)
    with pytest.warns(UserWarning, match=match):
        ours.FusedFocalLoss(**options)(scores, target)


ERRORS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("DiceLoss", {"sigmoid": True, "softmax": True}, ValueError, "Incompatible values: more than 1 of"),
    ("DiceLoss", {"sigmoid": True, "other_act": torch.tanh}, ValueError, "Incompatible values: more than 1 of"),
    ("DiceLoss", {"other_act": "tanh"}, TypeError, "other_act must be None or callable but is str"),
    ("DiceLoss", {"weight": [1.0, 2.0]}, ValueError, "length of the `weight` sequence should be the same"),
    ("DiceLoss", {"weight": [-1.0, 2.0, 1.0]}, ValueError, "the value/values of the `weight` should be no less than 0"),
    ("DiceLoss", {"reduction": "average"}, ValueError, "average"),
    ("TverskyLoss", {"sigmoid": True, "softmax": True}, ValueError, "Incompatible values: more than 1 of"),
    ("TverskyLoss", {"other_act": 3}, TypeError, "other_act must be None or callable but is int"),
    ("FocalLoss", {"alpha": [0.1, 0.2]}, ValueError, r"length of alpha \(2\) must match the number of classes \(3\)"),
    ("FocalLoss", {"weight": [0.1, 0.2]}, ValueError, r"number of class_weight \(2\) must match"),
    ("FocalLoss", {"weight": -2.0}, ValueError, "weight"),
    ("GeneralizedDiceLoss", {"sigmoid": True, "softmax": True}, ValueError, "Incompatible values: more than 1 of"),
    ("GeneralizedDiceLoss", {"other_act": 3}, TypeError, "other_act must be None or callable but is int"),
    ("GeneralizedDiceLoss", {"w_type": "cubic"}, ValueError, "cubic"),
    ("DiceFocalLoss", {"lambda_dice": -1.0}, ValueError, "lambda_dice should be no less than 0.0"),
    ("DiceFocalLoss", {"lambda_focal": -1.0}, ValueError, "lambda_focal should be no less than 0.0"),
    ("DiceFocalLoss", {"weight": [1.0, 2.0]}, ValueError, "length of the `weight` sequence should be the same"),
    ("DiceCELoss", {"lambda_dice": -1.0}, ValueError, "lambda_dice should be no less than 0.0"),
    ("DiceCELoss", {"lambda_ce": -1.0}, ValueError, "lambda_ce should be no less than 0.0"),
    ("DiceCELoss", {"reduction": "none"}, ValueError, "none"),
    ("DiceCELoss", {"softmax": True, "sigmoid": True}, ValueError, "Incompatible values: more than 1 of"),
]


@pytest.mark.parametrize(("name", "options", "error", "match"), ERRORS)
def test_errors_are_those_of_monai(name: str, options: dict[str, Any], error: type[Exception], match: str) -> None:
    scores, target = torch.rand(2, 3, 5, 6), torch.randint(0, 3, (2, 1, 5, 6))
    for loss in (getattr(monai.losses, name), EQUALS[name]):
        with pytest.raises(error, match=match):
            loss(**{"to_onehot_y": True, **options})(scores, target)


@pytest.mark.parametrize("name", ["DiceLoss", "TverskyLoss"])
def test_shape_mismatch_can_be_caught_as_in_monai(name: str) -> None:
    scores, target = torch.rand(2, 3, 5, 6), torch.rand(2, 3, 5, 5)
    for loss in (getattr(monai.losses, name)(), EQUALS[name]()):
        with pytest.raises(AssertionError, match="ground truth has differ"):
            loss(scores, target)


# --- departures: MONAI's number, ours, and which is right ---


@pytest.mark.parametrize("name", ["DiceLoss", "TverskyLoss", "DiceCELoss"])
def test_departure_half_precision_sums(name: str) -> None:
    options = {"softmax": True, **({"lambda_ce": 0.0} if name == "DiceCELoss" else {})}
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 64, 64, 64).half()
    labels = torch.zeros(1, 1, 64, 64, 64)
    labels[..., 20:] = 1
    target = one_hot(labels, 2, torch.float16)
    counts = ref.soft_counts(ref.softmax(logits.double().numpy()), target.double().numpy())
    right = ref.dice_loss(counts).mean()
    theirs = getattr(monai.losses, name)(**options)(logits, target).item()
    mine = EQUALS[name](**options)(logits, target).item()
    assert right == pytest.approx(0.518, abs=1e-3)
    assert theirs == 1.0 or np.isnan(theirs)  # sums above 65504 are infinite
    assert mine == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize("use_softmax", [False, True])
def test_departure_focal_mean_with_ignore_index(use_softmax: bool) -> None:
    options = {"to_onehot_y": True, "use_softmax": use_softmax, "ignore_index": 255}
    scores, labels, _ = data((2, 4, 5, 6), "labels", ignore_index=255)
    keep = (labels != 255).numpy()
    x, g = scores.double().numpy(), ref.one_hot(labels.numpy(), 4)
    voxels = ref.focal_softmax_map(x, g, 2.0) if use_softmax else ref.focal_sigmoid_map(x, g, 2.0)
    right = (voxels * keep).sum() / (4 * keep.sum())  # over voxels and channels, as without ignore_index
    assert monai.losses.FocalLoss(**options)(scores, labels).item() == pytest.approx(4 * right, abs=1e-5)
    assert ours.FusedFocalLoss(**options)(scores, labels).item() == pytest.approx(right, abs=1e-6)


def test_departure_focal_softmax_runs_over_the_background_too() -> None:
    options = {"to_onehot_y": True, "use_softmax": True, "include_background": False}
    scores, labels, _ = data((2, 3, 5, 6), "labels")
    x, g = scores.double().numpy(), ref.one_hot(labels.numpy(), 3)
    right = ref.focal_softmax_map(x, g, 2.0)[:, 1:].mean()
    foreground_alone = ref.focal_softmax_map(x[:, 1:], g[:, 1:], 2.0).mean()
    assert abs(right - foreground_alone) > 1e-2
    assert monai.losses.FocalLoss(**options)(scores, labels).item() == pytest.approx(foreground_alone, abs=1e-6)
    assert ours.FusedFocalLoss(**options)(scores, labels).item() == pytest.approx(right, abs=1e-6)


def test_departure_focal_softmax_of_one_channel() -> None:
    scores, target = torch.randn(2, 1, 5, 6), torch.randint(0, 2, (2, 1, 5, 6)).float()
    right = ref.focal_sigmoid_map(scores.double().numpy(), target.numpy(), 2.0).mean()
    assert monai.losses.FocalLoss(use_softmax=True)(scores, target).item() == 0.0  # for anything
    with pytest.warns(UserWarning, match="single channel prediction, `softmax=True` ignored"):
        assert ours.FusedFocalLoss(use_softmax=True)(scores, target).item() == pytest.approx(right, abs=1e-6)


def test_departure_focal_sum_without_spatial_axes() -> None:
    scores, target = torch.randn(3, 4), torch.randint(0, 2, (3, 4)).float()
    voxels = ref.focal_sigmoid_map(scores.double().numpy(), target.numpy(), 2.0)
    options = {"reduction": "sum"}
    assert monai.losses.FocalLoss(**options)(scores, target).item() == pytest.approx(voxels.mean(), abs=1e-6)
    assert ours.FusedFocalLoss(**options)(scores, target).item() == pytest.approx(voxels.sum(), rel=1e-6)


def test_departure_focal_list_of_alphas_with_soft_targets() -> None:
    scores, target, _ = data((2, 3, 5, 6), "soft")
    alpha = torch.tensor([0.5, 2.0, 0.25])
    x, g = scores.double().numpy(), target.double().numpy()
    # gamma=0 is the binary cross-entropy, whose positive share g has the factor alpha.
    factor = 1 + g * (alpha.double().numpy().reshape(1, 3, 1, 1) - 1)
    plain = ref.binary_cross_entropy_map(x, g)
    options = {"alpha": alpha, "gamma": 0.0}
    assert abs((factor * plain).mean() - plain.mean()) > 1e-2
    assert monai.losses.FocalLoss(**options)(scores, target).item() == pytest.approx(
        plain.mean(), abs=1e-6
    )  # none is 1
    assert ours.FusedFocalLoss(**options)(scores, target).item() == pytest.approx((factor * plain).mean(), abs=1e-6)


@pytest.mark.parametrize("use_softmax", [False, True])
def test_departure_focal_gradient_with_gamma_below_one(use_softmax: bool) -> None:
    scores = torch.tensor([[200.0, -200.0, -200.0]]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    target = torch.zeros(1, 1, 4, 4)
    options = {"gamma": 0.5, "use_softmax": use_softmax, "to_onehot_y": True}
    theirs = value_and_gradient(monai.losses.FocalLoss(**options), scores, target)
    mine = value_and_gradient(ours.FusedFocalLoss(**options), scores, target)
    assert theirs[1].isnan().any() == use_softmax
    assert mine[0] == 0
    assert mine[1].isfinite().all()
    assert mine[1].abs().max() <= 1e-6


@pytest.mark.parametrize("include_background", [True, False])
def test_departure_dice_focal_softmax_has_a_softmax_focal_loss(include_background: bool) -> None:
    scores, labels, _ = data((2, 3, 5, 6), "labels")
    options = {"to_onehot_y": True, "softmax": True, "include_background": include_background}
    x, g = scores.double().numpy(), ref.one_hot(labels.numpy(), 3)
    kept = slice(0 if include_background else 1, None)
    dice = ref.dice_loss(ref.soft_counts(ref.softmax(x), g))[:, kept].mean()
    right = dice + ref.focal_softmax_map(x, g, 2.0)[:, kept].mean()
    of_sigmoid = dice + ref.focal_sigmoid_map(x, g, 2.0)[:, kept].mean()
    assert abs(right - of_sigmoid) > 0.05
    assert monai.losses.DiceFocalLoss(**options)(scores, labels).item() == pytest.approx(of_sigmoid, abs=1e-6)
    assert ours.FusedDiceFocalLoss(**options)(scores, labels).item() == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize("include_background", [True, False])
def test_monai_s_sum_of_dice_and_sigmoid_focal_is_a_compound(include_background: bool) -> None:
    scores, labels, _ = data((2, 3, 5, 6), "labels")
    options = {"to_onehot_y": True, "include_background": include_background}
    theirs = value_and_gradient(monai.losses.DiceFocalLoss(softmax=True, **options), scores, labels)
    compound = ours.CompoundLoss([drop_in.DiceLoss(softmax=True, **options), drop_in.FocalLoss(**options)])
    assert difference(options, theirs, value_and_gradient(compound, scores, labels)) == ""
    assert not torch.isclose(drop_in.DiceFocalLoss(softmax=True, **options)(scores, labels), theirs[0], rtol=1e-2)


def test_departure_generalized_dice_smooths_before_weighting() -> None:
    """A missed large object costs as much as a missed small one."""
    scores = torch.full((1, 1, 64, 64, 64), -20.0)
    numbers = {}
    for side in (2, 60):
        target = torch.zeros(1, 1, 64, 64, 64)
        target[..., :side, :side, :side] = 1
        theirs = monai.losses.GeneralizedDiceLoss(sigmoid=True)(scores, target).item()
        numbers[side] = theirs, ours.FusedGeneralizedDiceLoss(sigmoid=True)(scores, target).item()
    # MONAI's s = 1e-5 stands beside V / V^2: 1 / 8 and 1 / 216000.
    assert numbers[2] == pytest.approx((1 - 1e-5 / (1 / 8 + 1e-5), 1), abs=1e-5)
    assert numbers[60] == pytest.approx((1 - 1e-5 / (1 / 216000 + 1e-5), 1), abs=1e-4)
    assert numbers[60][0] < 0.35


@pytest.mark.parametrize("include_background", [True, False])
def test_departure_dice_ce_sigmoid_of_several_channels_is_a_bce(include_background: bool) -> None:
    scores, target, _ = data((2, 3, 5, 6), "onehot")
    target = torch.maximum(target, target.roll(1, 1))  # two labels per voxel: no softmax can fit
    options = {"sigmoid": True, "include_background": include_background}
    x, g = scores.double().numpy(), target.double().numpy()
    kept = slice(0 if include_background else 1, None)
    dice = ref.dice_loss(ref.soft_counts(ref.sigmoid(x), g))[:, kept].mean()
    right = dice + ref.binary_cross_entropy_map(x, g)[:, kept].mean()
    softmax = dice + ref.cross_entropy_map(x, g, "softmax").mean()
    assert abs(right - softmax) > 0.1
    assert monai.losses.DiceCELoss(**options)(scores, target).item() == pytest.approx(softmax, abs=1e-6)
    assert ours.FusedDiceCELoss(**options)(scores, target).item() == pytest.approx(right, abs=1e-6)


def test_departure_scalar_weight_keeps_its_buffer() -> None:
    scores, target, _ = data((2, 3, 5, 6), "labels")
    theirs = monai.losses.DiceLoss(to_onehot_y=True, softmax=True, weight=2.0)
    mine = ours.FusedDiceLoss(to_onehot_y=True, softmax=True, weight=2.0)
    assert theirs(scores, target).item() == pytest.approx(mine(scores, target).item(), abs=1e-6)
    assert theirs.class_weight.shape == (3,)  # after the call: another state_dict, and a next call with 2 classes fails
    assert mine.class_weight.shape == ()
    with pytest.raises(ValueError, match="length of the `weight` sequence"):
        theirs(scores[:, :2], (target > 0).float())
    mine(scores[:, :2], (target > 0).float())


def test_departure_dice_ce_weight_as_a_list() -> None:
    scores, target, _ = data((2, 3, 5, 6), "labels")
    options = {"to_onehot_y": True, "softmax": True}
    with pytest.raises(TypeError, match="Tensor"):
        monai.losses.DiceCELoss(weight=[1.0, 2.0, 3.0], **options)
    as_tensor = monai.losses.DiceCELoss(weight=torch.tensor([1.0, 2.0, 3.0]), **options)(scores, target)
    mine = ours.FusedDiceCELoss(weight=[1.0, 2.0, 3.0], **options)(scores, target)
    assert mine.item() == pytest.approx(as_tensor.item(), abs=1e-6)


@pytest.mark.parametrize("name", ["DiceLoss", "TverskyLoss"])
def test_departure_all_zero_voxel_is_background(name: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 5, 6)
    target = torch.randint(0, 2, (2, 3, 5, 6)).float()  # multi-label: an eighth of the voxels has no label at all
    counts = ref.soft_counts(ref.sigmoid(scores.double().numpy()), target.numpy())
    empty = (target.sum(1, keepdim=True) > 0).double().numpy()
    masked = ref.soft_counts(ref.sigmoid(scores.double().numpy()), target.numpy(), weight=empty)
    right, ignored = ref.dice_loss(counts).mean(), ref.dice_loss(masked).mean()
    assert abs(right - ignored) > 1e-2
    options = {"sigmoid": True, "ignore_index": -1}
    assert getattr(monai.losses, name)(**options)(scores, target).item() == pytest.approx(ignored, abs=1e-5)
    assert EQUALS[name](**options)(scores, target).item() == pytest.approx(
        right, abs=2e-6
    )  # Tversky's smoothing is 2 s


@pytest.mark.parametrize("name", ["DiceLoss", "TverskyLoss"])
def test_departure_a_fully_ignored_sample_leaves_the_mean(name: str) -> None:
    scores, labels, _ = data((2, 3, 5, 6), "labels")
    labels[0] = 255
    options = {"to_onehot_y": True, "softmax": True, "ignore_index": 255}
    alone = getattr(monai.losses, name)(**options)(scores[1:], labels[1:]).item()
    assert getattr(monai.losses, name)(**options)(scores, labels).item() == pytest.approx(alone / 2, abs=1e-6)
    assert EQUALS[name](**options)(scores, labels).item() == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", ["DiceLoss", "TverskyLoss"])
def test_departure_none_has_one_shape(name: str, batch: bool) -> None:
    scores, target, _ = data((2, 3, 4, 3, 5), "labels")
    options = {"to_onehot_y": True, "softmax": True, "reduction": "none", "batch": batch, "include_background": False}
    theirs = getattr(monai.losses, name)(**options)(scores, target)
    monai_shape = {
        ("DiceLoss", False): (2, 2, 1, 1, 1),
        ("DiceLoss", True): (2, 1, 1, 1),
        ("TverskyLoss", False): (2, 2),
    }
    assert theirs.shape == monai_shape.get((name, batch), (2,))
    mine = EQUALS[name](**options)(scores, target)
    assert mine.shape == (1 if batch else 2, 2, 1, 1, 1)
    torch.testing.assert_close(mine.flatten(), theirs.flatten(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", EQUALS)
def test_labels_without_a_channel_axis_are_refused(name: str) -> None:
    scores, labels = torch.rand(2, 3, 5, 6), torch.randint(0, 3, (2, 5, 6))
    with pytest.raises(ValueError, match=r"add the channel axis with target.unsqueeze\(1\)"):
        EQUALS[name](to_onehot_y=True)(scores, labels)


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("name", EQUALS)
def test_the_gradient_of_a_target_of_channels(name: str, num_classes: int) -> None:
    """Consistency training has a network's prediction as target, and MONAI's gradient goes through it."""
    options: dict[str, Any] = {} if name == "FocalLoss" else {"sigmoid": True}
    torch.manual_seed(0)
    scores, soft = torch.randn(2, num_classes, 4, 5), torch.rand(2, num_classes, 4, 5)
    if name == "DiceCELoss" and num_classes > 1:  # BCE of several channels is a departure
        options, soft = {"softmax": True}, soft / soft.sum(1, keepdim=True)
    if name == "GeneralizedDiceLoss":
        options["w_type"] = "uniform"  # the others are weights without gradient
    mine = getattr(drop_in, name)(**options)
    doubles = scores.double().requires_grad_(), soft.double().requires_grad_()
    assert torch.autograd.gradcheck(mine, doubles)
    if name == "GeneralizedDiceLoss":
        return  # MONAI's backward fails there: it changes a tensor in place
    gradients = []
    for loss in (getattr(monai.losses, name)(**options), mine):
        leaves = scores.clone().requires_grad_(), soft.clone().requires_grad_()
        gradients.append(torch.autograd.grad(loss(*leaves), leaves))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", EQUALS)
def test_a_label_map_has_no_gradient(name: str) -> None:
    loss = getattr(drop_in, name)(to_onehot_y=True)
    labels = torch.zeros(1, 1, 4, 5).requires_grad_()
    with pytest.raises(ValueError, match=r"expected a target without gradient.*target.detach\(\)"):
        loss(torch.randn(1, 3, 4, 5), labels)


MEASURING = {"BoundaryLoss": {}, "HausdorffDTLoss": {"alpha": 1.5}, "LogHausdorffDTLoss": {}}


@pytest.mark.parametrize(
    ("activation", "include_background", "reduction"),
    slow_but(
        [("none", True, "sum"), ("sigmoid", False, "none"), ("softmax", True, "mean"), ("tanh", False, "mean")],
        itertools.product(ACTIVATIONS, (True, False), ("mean", "sum", "none")),
    ),
)
@pytest.mark.parametrize("name", MEASURING)
def test_boundary_losses_equal_monai_in_voxels(
    name: str, activation: str, include_background: bool, reduction: str
) -> None:
    torch.manual_seed(0)
    targets = itertools.cycle(itertools.product((False, True), (False, True)))
    for _ in range(len(reduction) + 2 * include_background):  # others for each of these: 4, 3, 4 and 2 more
        next(targets)
    for channels, spatial in itertools.product((1, 2, 4), ((9, 8), (7, 6, 5))):
        batch, labels_map = next(targets)
        scores = 2 * torch.randn(2, channels, *spatial)
        if activation == "none":
            scores = scores.sigmoid()
        labels = torch.randint(0, max(channels, 2), (2, 1, *spatial))
        labels[0] = labels[0].clamp_max(max(channels - 2, 0))  # a class is absent in one sample
        target = labels.float() if labels_map or channels == 1 else one_hot(labels, channels)
        options = {
            "include_background": include_background,
            "to_onehot_y": labels_map,
            "reduction": reduction,
            "batch": batch,
            **ACTIVATIONS[activation],
            **MEASURING[name],
        }
        results = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one channel
            for loss in (getattr(monai.losses, name)(**options), getattr(drop_in, name)(**options)):
                value, gradient = value_and_gradient(loss, scores, target)
                results.append((value.flatten(), gradient))
        torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=2e-6)


def test_the_boundary_losses_depart_in_the_shape_of_none_and_a_target_without_channel_axis() -> None:
    scores, labels = torch.randn(2, 3, 6, 7), torch.randint(0, 3, (2, 1, 6, 7))
    options = {"to_onehot_y": True, "softmax": True}
    for batch, theirs, mine in ((False, (2, 3), (2, 3, 1, 1)), (True, (3,), (1, 3, 1, 1))):
        none = {"reduction": "none", "batch": batch, **options}
        assert monai.losses.BoundaryLoss(**none)(scores, labels).shape == theirs
        assert drop_in.BoundaryLoss(**none)(scores, labels).shape == mine
    assert monai.losses.BoundaryLoss(**options)(scores, labels[:, 0]).isfinite()
    with pytest.raises(ours.ShapeMismatchError, match=r"add the channel axis with target.unsqueeze\(1\)"):
        drop_in.BoundaryLoss(**options)(scores, labels[:, 0])
