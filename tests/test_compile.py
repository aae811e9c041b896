"""torch.compile traces every loss in one graph and gives what eager gives."""

import shutil
import warnings
from collections.abc import Iterator

import pytest
import torch
from loss_list import LossCase, every_case, labels_like, one_hot, value_and_gradient

from monai_extra_losses.losses import ComboLoss, CompoundLoss, FusedDiceCELoss, FusedGeneralizedDiceLoss, PolyLoss

CLOSE = {"atol": 1e-6, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own
        yield


@every_case(only=lambda entry: entry.lean)
def test_one_graph_equal_to_eager(case: LossCase) -> None:
    scores = case.scores(2, 3, 4, 5)
    labels = labels_like(scores)
    loss = case()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        value_and_gradient(compiled, scores, labels), value_and_gradient(loss, scores, labels), **CLOSE
    )


@every_case(variants=False, only=lambda entry: entry.lean)
def test_with_mask_ignore_index_and_weight(case: LossCase) -> None:
    scores = case.scores(2, 3, 4, 5)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5)
    labels[:, :, 1] = 255
    loss = case(ignore_index=255, **case.weighted([1.0, 2.0, 0.5]))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        value_and_gradient(compiled, scores, labels, mask), value_and_gradient(loss, scores, labels, mask), **CLOSE
    )


@every_case(variants=False, only=lambda entry: entry.lean)
def test_two_classes_one_hot_and_none(case: LossCase) -> None:
    scores = case.scores(2, 2, 4, 5)
    target = one_hot(labels_like(scores), 2)
    loss = case(to_onehot_y=False, reduction=case.entry.reductions[-1])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        value_and_gradient(compiled, scores, target), value_and_gradient(loss, scores, target), **CLOSE
    )


def test_a_compound_of_any_parts() -> None:
    scores = torch.randn(2, 3, 4, 5)
    labels, mask = labels_like(scores), torch.rand(2, 1, 4, 5)
    options = {"to_onehot_y": True, "softmax": True}
    parts = [FusedGeneralizedDiceLoss(**options), PolyLoss(**options), ComboLoss(**options)]
    loss = CompoundLoss(parts, [1.0, 0.5, 0.25])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for data in ((scores, labels), (scores, labels, mask)):
        torch.testing.assert_close(value_and_gradient(compiled, *data), value_and_gradient(loss, *data), **CLOSE)


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="inductor needs a C compiler")
def test_inductor() -> None:
    scores = torch.randn(2, 3, 4, 5)
    labels = labels_like(scores)
    loss = FusedDiceCELoss(to_onehot_y=True, softmax=True)
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(
        value_and_gradient(compiled, scores, labels), value_and_gradient(loss, scores, labels), **CLOSE
    )


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    """torch.export, without Dynamo too, where tensors are stand-ins of another class."""
    scores = torch.randn(2, 3, 4, 5)
    labels = labels_like(scores)
    for loss in (FusedDiceCELoss(to_onehot_y=True, softmax=True), ComboLoss(to_onehot_y=True, softmax=True)):
        exported = torch.export.export(loss, (scores, labels), strict=strict).module()
        torch.testing.assert_close(exported(scores, labels), loss(scores, labels), **CLOSE)
