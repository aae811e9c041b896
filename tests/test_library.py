"""Our operators of torch: what torch asks of an operator, and the text that terms travel as."""

import dataclasses
import importlib
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from loss_list import LossCase, every_case, labels_like, one_hot
from marks import slow_but
from term_checks import definitions, formulas_of
from torch import Tensor
from torch import library as operators_of_torch

from monai_extra_losses.losses.base import SegmentationLoss
from monai_extra_losses.ops import library
from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.formulas import (
    CrossEntropyFormula,
    FocalFormula,
    PolyFormula,
)
from monai_extra_losses.ops.fused_sums import fused_sums
from monai_extra_losses.ops.terms import (
    Activation,
    CountSums,
    ErrorSums,
    LeadSums,
    LogSums,
    MapSums,
    MarginSums,
    OutcomeLogSums,
    OutcomeSums,
    TargetSums,
    Term,
    TrueClassSums,
    VoxelMap,
)

CROSS_ENTROPY = CrossEntropyFormula()
FORMULAS = formulas_of("log_pt", 0.7)
MARGINS: list[Term] = [
    *(kind(formula) for kind in (MarginSums, LeadSums) for formula in formulas_of("margin", 0.7)),
    TargetSums(),
]


def terms_of(activation: Activation) -> list[Term]:
    """Every term that has a text, and every formula."""
    one_vs_rest = activation == "sigmoid"
    return [
        TargetSums(),
        CountSums(activation, squares=True),
        CountSums(activation, soft_overlap=True),
        ErrorSums(activation, 1.3),
        OutcomeLogSums(activation) if one_vs_rest else LogSums(activation),
        TrueClassSums(activation, CROSS_ENTROPY, by_class=False)
        if not one_vs_rest
        else OutcomeSums(activation, CROSS_ENTROPY),
        OutcomeSums(activation, CROSS_ENTROPY),
        *((OutcomeSums if one_vs_rest else TrueClassSums)(activation, formula) for formula in FORMULAS),
    ]


def text_of(terms: Sequence[Term]) -> str:
    texts = [library.encode(term) for term in terms]
    for term, text in zip(terms, texts, strict=True):
        assert text is not None, f"{term} has no text: its formula is to be a frozen dataclass derived from Spelled"
    return "; ".join(map(str, texts))


def test_terms_survive_their_text() -> None:
    for activation in ("softmax", "sigmoid", "none"):
        terms = (*terms_of(activation), *MARGINS)
        assert library.decode(text_of(terms)) == terms
    assert text_of([TrueClassSums("none", FocalFormula(2))]) == "TrueClassSums(none, FocalFormula(2.0), True)"
    for number in (1 / 3, 0.1 + 0.2, 1e-30, 1e300, -0.5, 2, float("inf"), np.float64(0.7)):
        (term,) = library.decode(text_of([TrueClassSums("softmax", PolyFormula(number))]))
        assert term == TrueClassSums("softmax", PolyFormula(number))


def test_a_term_with_a_tensor_or_a_formula_of_its_own_has_no_text() -> None:
    sums = TrueClassSums("softmax", CROSS_ENTROPY)
    own = [TrueClassSums("softmax", torch.neg), TrueClassSums("softmax", PolyFormula(torch.ones(())))]
    for term in (VoxelMap(sums), MapSums("softmax", torch.ones(1, 2, 3), "error"), MarginSums(torch.relu), *own):
        assert library.encode(term) is None


@every_case(only=lambda entry: entry.lean)
def test_what_the_losses_ask_for_survives_its_text(case: LossCase) -> None:
    loss = case()
    scores = case.scores(2, 3, 4, 5)
    assert isinstance(loss, SegmentationLoss)
    for _, term in loss.terms(loss.prepare(scores, labels_like(scores))).values():
        if isinstance(term, VoxelMap):
            assert library.encode(term) is None
        else:
            assert library.decode(text_of([term])) == (term,)


def call(dtype: torch.dtype, target: Tensor, mask: Tensor | None = None, ignore_index: int | None = None) -> CallData:
    scores = torch.randn(SOFT.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return CallData(scores.to(dtype), target, mask, target.shape[1] == 1, ignore_index)


def channels_last(data: CallData) -> CallData:
    return dataclasses.replace(data, scores=data.scores.contiguous(memory_format=torch.channels_last_3d))


SOFT = torch.rand(2, 3, 4, 3, 5, generator=torch.Generator().manual_seed(1)).softmax(1)
LABELS = labels_like(SOFT)
MASK = torch.rand(2, 1, 4, 3, 5, generator=torch.Generator().manual_seed(2))
CALLS: dict[str, tuple[list[Term], CallData]] = {
    "labels": (terms_of("softmax"), call(torch.float32, LABELS)),
    "some ignored": (terms_of("softmax"), call(torch.bfloat16, LABELS.masked_fill(MASK < 0.2, 255), MASK, 255)),
    "channels last": (terms_of("softmax"), channels_last(call(torch.float32, LABELS.to(torch.uint8)))),
    "sigmoid": (terms_of("sigmoid"), call(torch.float64, LABELS.double(), MASK > 0.3, 1)),
    "one-hot": (terms_of("softmax"), channels_last(call(torch.float32, one_hot(LABELS, 3), ignore_index=0))),
    "soft": (terms_of("sigmoid"), call(torch.float32, SOFT, MASK)),
    "probabilities": (terms_of("none"), dataclasses.replace(call(torch.float16, LABELS), scores=SOFT.half())),
    "margins": (MARGINS, call(torch.float32, LABELS, MASK)),
}


@pytest.mark.parametrize("name", slow_but(["some ignored", "soft"], CALLS))
def test_torch_accepts_the_operators(name: str) -> None:
    """Schema, shapes, strides, autograd, and the same result compiled with dynamic shapes."""
    terms, data = CALLS[name]
    operators = torch.ops.monai_extra_losses
    scores = data.scores
    options = (data.target, data.mask, data.labels, data.ignore_index, text_of(terms))
    close = {"atol": 1e-5, "rtol": 1e-5} if scores.dtype.itemsize >= 4 else {"atol": 1e-2, "rtol": 1e-2}
    operators_of_torch.opcheck(operators.fused_sums.default, (scores.clone().requires_grad_(), *options), **close)
    sums = operators.fused_sums(scores, *options)
    # Where a term does not want its classes apart, only their total has a meaning.
    apart = [not isinstance(term, TrueClassSums) or term.by_class for term in terms]
    columns = [s if a else s[..., :1] for s, a in zip(sums, apart, strict=True)]
    grads = [torch.rand_like(c).expand_as(s).contiguous() for s, c in zip(sums, columns, strict=True)]
    operators_of_torch.opcheck(operators.fused_sums_backward.default, ([None, *grads[1:]], scores, *options), **close)
    gradient = operators.fused_sums_backward(grads, scores, *options)
    assert gradient.stride() == scores.stride()

    leaf = scores.to(torch.promote_types(scores.dtype, torch.float32), copy=True).requires_grad_()
    expected = definitions(dataclasses.replace(data, scores=leaf), terms)
    for got, value, a in zip(sums, expected, apart, strict=True):
        value = value.detach()
        torch.testing.assert_close(got if a else got.sum(-1), value if a else value.sum(-1), atol=1e-5, rtol=1e-5)
    total = torch.stack([(value * grad).sum() for value, grad in zip(expected, grads, strict=True)]).sum()
    torch.testing.assert_close(gradient.to(leaf), torch.autograd.grad(total, leaf)[0], **close)


def test_an_operator_gives_what_eager_gives() -> None:
    for activation, num_classes in itertools.product(("softmax", "sigmoid"), (2, 3)):
        scores = torch.randn(2, num_classes, 4, 5)
        data = CallData(scores, labels_like(scores), None, True, None)
        terms = terms_of(activation)
        results = library.sums(data, [text_of([term]) for term in terms])
        for a, b in zip(results, fused_sums(data, terms), strict=True):
            assert torch.equal(a, b)


def test_a_second_derivative_is_refused() -> None:
    scores = torch.randn(2, 3, 4, 5, requires_grad=True)
    (counts,) = library.sums(
        CallData(scores, labels_like(scores), None, True, None), ["CountSums(softmax, False, False)"]
    )
    (gradient,) = torch.autograd.grad(counts.sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="these losses have no second derivative: expected backward"):
        gradient.square().sum().backward()


def test_negative_weights_and_wrong_targets_get_a_sentence() -> None:
    scores = torch.randn(1, 3, 4, 5)
    texts = ["TargetSums(none)"]
    for data, match in (
        (CallData(scores, torch.full((1, 1, 4, 5), 7), None, True, None), r"expected whole labels in 0\.\.2 .*, got 7"),
        (CallData(scores, torch.full((1, 3, 4, 5), 7), None, False, None), r"values in \[0, 1\], got 7 to 7: remap it"),
        (CallData(scores, labels_like(scores), -torch.ones(1, 1, 4, 5), True, None), "expected mask weights >= 0"),
    ):
        with pytest.raises(ValueError, match=match):
            library.sums(data, texts)


def test_the_gradient_of_some_results() -> None:
    """A target alone has no gradient, and a gradient that is absent is 0."""
    scores = torch.randn(1, 3, 4, 5, requires_grad=True)
    data = CallData(scores, labels_like(scores), None, True, None)
    volumes, counts = library.sums(data, ["TargetSums(none)", "CountSums(softmax, False, False)"])
    assert torch.autograd.grad(volumes.sum(), scores, retain_graph=True)[0].count_nonzero() == 0
    (expected,) = torch.autograd.grad(fused_sums(data, [CountSums("softmax")])[0][0].sum(), scores)
    (gradient,) = torch.autograd.grad(counts[0].sum(), scores)
    torch.testing.assert_close(gradient, expected)


def test_reloading_registers_anew() -> None:
    scores = torch.randn(1, 3, 4, 5)
    data = CallData(scores, labels_like(scores), None, True, None)
    before = library.sums(data, ["TargetSums(none)"])
    importlib.reload(library)
    after: list[Tensor] = library.sums(data, ["TargetSums(none)"])
    torch.testing.assert_close(after, before)
