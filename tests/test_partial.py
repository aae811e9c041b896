"""Partly annotated data: the loss, and the meta data that tell it what is annotated."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import monai.data
import monai.transforms as mt
import pytest
import torch
from loss_list import LossCase, each, every_case, one_hot, value_and_gradient
from memory import peak_extra_bytes
from monai.data import CacheDataset, DataLoader, MetaTensor, PersistentDataset, decollate_batch, list_data_collate
from monai.losses import DeepSupervisionLoss, DiceLoss
from torch import Tensor, nn

from monai_extra_losses.engines import AnnotatedVoxelLoss, StackedScoresLoss
from monai_extra_losses.losses import (
    CompoundLoss,
    CrossEntropyLoss,
    FusedDiceCELoss,
    FusedDiceLoss,
    HeadLoss,
    HingeLoss,
    LovaszLoss,
    MeanSquaredErrorLoss,
    PartialLabelLoss,
    SurfaceLoss,
    TopKLoss,
)
from monai_extra_losses.ops import plan as plans
from monai_extra_losses.transforms import AnnotatedClassesd

READ: dict[str, Any] = {"to_onehot_y": True, "softmax": True}
KNOWN = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 0, 0]], dtype=torch.bool)


def partly_annotated(known: Tensor, *size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Scores that want a gradient, and labels of the annotated classes alone."""
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(len(known), known.shape[1], *size, generator=generator, dtype=dtype).mul_(2)
    labels = torch.zeros(len(known), 1, *size)
    for sample, row in enumerate(known):
        classes = row.nonzero().flatten()
        labels[sample] = classes[torch.randint(0, len(classes), (1, *size), generator=generator)]
    return scores.requires_grad_(), labels


def merged(scores: Tensor, labels: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """One sample's scores and labels of its annotated classes, by the definition: q_0 = p_0 + sum of the others."""
    classes = known.nonzero().flatten().tolist()
    others = [c for c in range(len(known)) if c not in classes]
    log_p = torch.log_softmax(scores.double(), 1)
    q = torch.cat([torch.logsumexp(log_p[:, [0, *others]], 1, keepdim=True), log_p[:, classes[1:]]], 1)
    numbers = torch.zeros_like(labels)
    for number, c in enumerate(classes):
        numbers[labels == c] = number
    return q, numbers


def softmax_losses() -> Callable[..., Any]:
    return every_case(only=lambda entry: "softmax" in entry.activations)


@softmax_losses()
def test_each_sample_is_the_loss_of_its_own_classes(case: LossCase) -> None:
    if case.activation != "softmax" or case.entry.name == "TopologicalInteractionLoss":
        pytest.skip("classes that exclude each other; the numbers of its pairs stay, see test_vessels.py")
    scores, labels = partly_annotated(KNOWN, 5, 6, 7)
    loss = case()
    for sample in range(2):
        one = slice(sample, sample + 1)
        leaf = scores[one].detach().requires_grad_()
        value = PartialLabelLoss(loss)(leaf, labels[one], annotated=KNOWN[one])
        expected = loss(*merged(again := scores[one].detach().requires_grad_(), labels[one], KNOWN[sample]))
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        (by_definition,) = torch.autograd.grad(expected.sum(), again)
        torch.testing.assert_close(value.sum(), expected.sum(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradient, by_definition, rtol=1e-8, atol=1e-12)


@softmax_losses()
def test_everything_annotated_is_the_loss(case: LossCase) -> None:
    if case.activation != "softmax":
        pytest.skip("classes that exclude each other")
    scores, labels = partly_annotated(torch.ones(2, 4, dtype=torch.bool), 6, 6, 6)
    loss = case()
    plain = value_and_gradient(loss, scores.detach(), labels)
    table = torch.ones(2, 4, dtype=torch.bool)
    wrapped = value_and_gradient(lambda x, y: PartialLabelLoss(loss)(x, y, annotated=table), scores.detach(), labels)
    assert all(torch.equal(a, b) for a, b in zip(plain, wrapped, strict=True))
    # and by the way of what is annotated in part, which no short cut takes
    alias = labels.view(labels.shape)
    from monai_extra_losses.losses.checks import Annotated

    alias.annotated_classes = Annotated(table, True)  # type: ignore[attr-defined]
    for mine, theirs in zip(value_and_gradient(loss, scores.detach(), alias), plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


@each(
    "name, loss",
    [("dice_ce", FusedDiceCELoss(**READ)), ("ce", CrossEntropyLoss(**READ)), ("lovasz", LovaszLoss(**READ))],
)
def test_a_batch_is_the_mean_over_what_is_annotated(name: str, loss: nn.Module) -> None:
    scores, labels = partly_annotated(KNOWN, 5, 6, 7)
    value = PartialLabelLoss(loss)(scores, labels, annotated=KNOWN)
    parts = [merged(scores[n : n + 1], labels[n : n + 1], KNOWN[n]) for n in range(2)]
    if name == "dice_ce":  # over samples and classes; over voxels
        dice = torch.cat([FusedDiceLoss(reduction="none", **READ)(*part).flatten() for part in parts]).mean()
        expected = dice + torch.stack([CrossEntropyLoss(**READ)(*part) for part in parts]).mean()
    else:
        expected = torch.stack([loss(*part) for part in parts]).mean()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)


def test_background_voxels_tell_nothing_about_the_merged_classes() -> None:
    """dL/dx_c / p_c is the same for all of them: nobody said which one it is."""
    scores, labels = partly_annotated(KNOWN, 5, 6, 7)
    for loss in (FusedDiceCELoss(**READ), TopKLoss(k=30, **READ), FusedDiceLoss(batch=True, **READ)):
        (gradient,) = torch.autograd.grad(PartialLabelLoss(loss)(scores, labels, annotated=KNOWN), scores)
        share = gradient / torch.softmax(scores.detach(), 1)
        for sample, row in enumerate(KNOWN):
            of_merged = share[sample, [0, *(~row).nonzero().flatten().tolist()]]
            torch.testing.assert_close(of_merged, of_merged[:1].expand_as(of_merged), rtol=1e-7, atol=1e-12)
            assert gradient[sample].abs().sum() > 0


def test_batch_adds_the_counts_of_the_samples_that_know_a_class() -> None:
    known = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    scores, labels = partly_annotated(known, 6, 6)
    value = PartialLabelLoss(FusedDiceLoss(batch=True, reduction="none", **READ))(scores, labels, annotated=known)
    q, g = torch.softmax(scores, 1), one_hot(labels, 3).double()
    q0 = torch.cat([q[:1, :1] + q[:1, 2:], q[1:, :1]])
    for c, (p, t) in enumerate([(q0, g[:, :1]), (q[:, 1:2], g[:, 1:2]), (q[1:, 2:], g[1:, 2:])]):
        dice = 1 - (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5)
        torch.testing.assert_close(value.flatten()[c], dice.float().double(), rtol=1e-6, atol=0)


@each("kind", ["mask", "ignore_index", "one-hot", "2d", "float mask", "slabs", "channels_last"])
def test_the_options_of_the_loss_hold(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (12, 9) if kind == "2d" else (6, 7, 8)
    scores, labels = partly_annotated(KNOWN, *size)
    options, mask = dict(READ), None
    if "mask" in kind:
        mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1))
        mask = mask if kind == "float mask" else mask > 0.4
    if kind == "ignore_index":
        labels[:, :, 2:4], options["ignore_index"] = 255, 255
    if kind == "slabs":
        monkeypatch.setattr(plans, "_CPU_SLAB", 5 * 16)
        monkeypatch.setattr(plans, "_FEW_BYTES", 1)
    loss, target = FusedDiceCELoss(**options), labels
    for sample in range(2):
        one = slice(sample, sample + 1)
        x = scores[one].detach()
        if kind == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last_3d)
        x.requires_grad_()
        if kind == "one-hot":
            target, loss = one_hot(labels, 5), FusedDiceCELoss(softmax=True)
        given = {} if mask is None else {"mask": mask[one]}
        value = PartialLabelLoss(loss)(x, target[one], annotated=KNOWN[one], **given)
        again = scores[one].detach().requires_grad_()
        q, numbers = merged(again, labels[one].masked_fill(labels[one] == 255, 0), KNOWN[sample])
        numbers = torch.where(labels[one] == 255, 255, numbers)
        expected = FusedDiceCELoss(**options)(q, numbers, **given)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
        gradients = torch.autograd.grad(value, x)[0], torch.autograd.grad(expected, again)[0]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_smoothed_labels_are_shared_among_the_annotated_classes() -> None:
    scores, labels = partly_annotated(KNOWN, 6, 7)
    for reduction in ("mean", "none"):
        loss = CrossEntropyLoss(0.2, reduction=reduction, **READ)
        value = PartialLabelLoss(loss)(scores, labels, annotated=KNOWN)
        parts = [loss(*merged(scores[n : n + 1], labels[n : n + 1], KNOWN[n])) for n in range(2)]
        expected = torch.stack(parts).mean() if reduction == "mean" else torch.cat(parts)
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-9)


@each("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    scores, labels = partly_annotated(KNOWN, 24, 24, 24, dtype=torch.float32)
    half = scores.detach().to(dtype)
    loss = PartialLabelLoss(FusedDiceCELoss(**READ))
    value, gradient = value_and_gradient(lambda x, y: loss(x, y, annotated=KNOWN), half, labels)
    expected, whole = value_and_gradient(lambda x, y: loss(x, y, annotated=KNOWN), half.float(), labels)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.float(), whole, rtol=tolerance * 8, atol=whole.abs().max().item() * tolerance)


@each("classes", [4, 14, 105])
def test_memory_is_that_of_the_loss(classes: int) -> None:
    known = torch.zeros(2, classes, dtype=torch.bool)
    known[0, ::2], known[1, : classes // 2] = True, True
    known[:, 0] = True
    side = 64 if classes < 100 else 40
    scores, labels = partly_annotated(known, side, side, side, dtype=torch.float32)
    loss = PartialLabelLoss(FusedDiceCELoss(**READ))
    loss(scores, labels, annotated=known).backward()
    scores.grad = None
    peak = peak_extra_bytes(lambda: loss(scores, labels, annotated=known).backward())
    size = scores.numel() * 4
    assert peak <= max(1.25 * size, size + 4 * 2**20), f"{peak / size:.2f}"


def test_scores_that_are_infinite() -> None:
    known = torch.tensor([[1, 1, 0, 0]], dtype=torch.bool)
    scores = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]]).view(1, 4, 1, 1).repeat(1, 1, 2, 2)
    value, gradient = value_and_gradient(
        lambda x, y: PartialLabelLoss(FusedDiceCELoss(**READ))(x, y, annotated=known), scores, torch.zeros(1, 1, 2, 2)
    )
    expected = FusedDiceCELoss(**READ)(scores[:, :2], torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(value, expected)
    assert gradient.isfinite().all()
    scores[0, 2, 0, 0] = torch.nan
    assert PartialLabelLoss(FusedDiceCELoss(**READ))(scores, torch.zeros(1, 1, 2, 2), annotated=known).isnan()


# ---- regions


@every_case(only=lambda entry: "sigmoid" in entry.activations)
def test_a_sample_is_the_loss_of_its_own_regions(case: LossCase) -> None:
    if case.activation != "sigmoid":
        pytest.skip("regions that overlap")
    known = torch.tensor([[1, 0, 1, 1, 0]], dtype=torch.bool)
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(1, 5, 5, 6, 7, generator=generator, dtype=torch.float64).requires_grad_()
    target = (torch.rand(1, 5, 5, 6, 7, generator=generator) > 0.6).double()
    loss = case(to_onehot_y=False)
    value = PartialLabelLoss(loss, mode="sigmoid")(scores, target, annotated=known)
    expected = loss(scores[:, known[0]], target[:, known[0]])
    torch.testing.assert_close(value.sum(), expected.sum(), rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(v.sum(), scores)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_regions_without_annotation_leave_the_loss() -> None:
    known = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.bool)
    scores = torch.randn(2, 3, 6, 6, 6, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(2, 3, 6, 6, 6) > 0.6).double()
    for plain in (FusedDiceCELoss(sigmoid=True), LovaszLoss(sigmoid=True), CrossEntropyLoss(sigmoid=True)):
        value = PartialLabelLoss(plain, mode="sigmoid")(scores, target, annotated=known)
        (gradient,) = torch.autograd.grad(value, scores)
        assert (gradient[~known] == 0).all()
        assert (gradient[known] != 0).any()
        others = (
            torch.where(known.view(2, 3, 1, 1, 1), scores, 7.0),
            torch.where(known.view(2, 3, 1, 1, 1), target, 1.0),
        )
        torch.testing.assert_close(PartialLabelLoss(plain, mode="sigmoid")(*others, annotated=known), value)
    dice, ce = FusedDiceLoss(sigmoid=True, reduction="none"), CrossEntropyLoss(sigmoid=True)
    expected = (
        dice(scores, target).flatten(1)[known].mean()
        + torch.stack(
            [ce(scores[b : b + 1, c : c + 1], target[b : b + 1, c : c + 1]) for b, c in known.nonzero().tolist()]
        ).mean()
    )
    mine = PartialLabelLoss(FusedDiceCELoss(sigmoid=True), mode="sigmoid")(scores, target, annotated=known)
    torch.testing.assert_close(mine, expected, rtol=1e-10, atol=0)


def test_top_k_ranks_the_decisions_that_are_annotated() -> None:
    known = torch.tensor([[1, 0, 1]], dtype=torch.bool)
    scores, target = torch.randn(1, 3, 8, 8), (torch.rand(1, 3, 8, 8) > 0.5).float()
    loss = TopKLoss(k=25, sigmoid=True)
    value = PartialLabelLoss(loss, mode="sigmoid")(scores, target, annotated=known)
    torch.testing.assert_close(value, loss(scores[:, [0, 2]], target[:, [0, 2]]))


# ---- exclusion


def test_exclusion() -> None:
    scores, labels = partly_annotated(KNOWN, 6, 7, 8)
    loss = PartialLabelLoss(FusedDiceCELoss(**READ), exclusion=0.3)
    value = loss(scores, labels, annotated=KNOWN)
    p = torch.softmax(scores, 1)
    terms = []
    for sample, row in enumerate(KNOWN):
        e = (labels[sample, 0] > 0).double()
        for c in (~row).nonzero().flatten().tolist():
            of_class = p[sample, c]
            dice = (2 * (of_class * e).sum() + 1e-5) / (of_class.sum() + e.sum() + 1e-5)
            terms.append(dice + (e * torch.log1p(of_class)).sum() / e.numel())
    expected = (
        PartialLabelLoss(FusedDiceCELoss(**READ))(scores, labels, annotated=KNOWN) + 0.3 * torch.stack(terms).mean()
    )
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(v, scores, retain_graph=True)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


# ---- what is refused


@each(
    "make, sentence",
    [
        (lambda: PartialLabelLoss(DiceLoss(softmax=True)), "of this package"),
        (lambda: PartialLabelLoss(CompoundLoss([FusedDiceLoss(**READ), DiceLoss()])), "of this package"),
        (lambda: PartialLabelLoss(MeanSquaredErrorLoss()), "of this package"),
        (lambda: PartialLabelLoss(FusedDiceLoss(sigmoid=True)), "softmax=True"),
        (lambda: PartialLabelLoss(HingeLoss(to_onehot_y=True)), "softmax=True"),
        (lambda: PartialLabelLoss(FusedDiceLoss(**READ), mode="sigmoid"), "sigmoid=True"),
        (lambda: PartialLabelLoss(FusedDiceLoss(**READ), mode="marginals"), "marginal"),
        (lambda: PartialLabelLoss(FusedDiceLoss(**READ), exclusion=-1), "exclusion"),
        (lambda: PartialLabelLoss(FusedDiceLoss(sigmoid=True), mode="sigmoid", exclusion=1.0), "exclusion=0"),
        (lambda: PartialLabelLoss(FusedDiceLoss(reduction="none", **READ), exclusion=1.0), "'none'"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        make()


@each("by_label", [True, False])
def test_a_class_that_is_not_annotated_is_named(by_label: bool) -> None:
    loss = PartialLabelLoss(FusedDiceLoss(to_onehot_y=by_label, softmax=True))
    labels = torch.zeros(2, 1, 4, 4)
    labels[1, 0, 0, 0], labels[0, 0, 0, 0] = 3, 3
    target = labels if by_label else one_hot(labels, 5)
    with pytest.raises(ValueError, match=r"annotated in sample 1 \(0, 2\), got some of class 3"):
        loss(torch.zeros(2, 5, 4, 4), target, annotated=KNOWN)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[:, :, 0, 0] = False  # what is as if deleted is not looked at
    assert loss(torch.zeros(2, 5, 4, 4), target, mask, annotated=KNOWN).isfinite()


def test_a_target_that_says_nothing_is_told_of_once() -> None:
    """MONAI's PersistentDataset drops meta data unless it is told not to."""
    loss = PartialLabelLoss(FusedDiceLoss(**READ))
    scores, labels = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    with pytest.warns(UserWarning, match="takes every class as annotated"):
        assert torch.equal(loss(scores, labels), FusedDiceLoss(**READ)(scores, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(scores, labels)


@each("annotated", [torch.ones(2, 4), torch.ones(3, 5), [1, 1, 0, 1, 0]])
def test_another_number_of_classes_is_refused(annotated: Any) -> None:
    with pytest.raises(ValueError, match=r"expected annotated \(2, 5\)"):
        PartialLabelLoss(FusedDiceLoss(**READ))(torch.zeros(2, 5, 4, 4), torch.zeros(2, 1, 4, 4), annotated=annotated)


def test_regions_need_one_that_is_annotated() -> None:
    with pytest.raises(ValueError, match="none in sample 1"):
        PartialLabelLoss(FusedDiceLoss(sigmoid=True), mode="sigmoid")(
            torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4), annotated=[[1, 0], [0, 0]]
        )


def test_wrong_labels_are_still_named() -> None:
    labels = torch.zeros(2, 1, 4, 4)
    labels[0, 0, 0, 0] = 9
    with pytest.raises(ValueError, match=r"expected whole labels in 0..4 .* got 9"):
        PartialLabelLoss(FusedDiceLoss(**READ))(torch.zeros(2, 5, 4, 4), labels, annotated=KNOWN)


# ---- with others


def test_with_the_last_convolution() -> None:
    head = nn.Conv3d(6, 5, 1).double()
    features = torch.randn(2, 6, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    _, labels = partly_annotated(KNOWN, 5, 6, 7)
    target = MetaTensor(labels, meta={"annotated": KNOWN.to(torch.uint8)})
    partial = PartialLabelLoss(FusedDiceCELoss(**READ))
    inputs = features, head.weight, head.bias
    together = torch.autograd.grad(HeadLoss(head, partial)(features, target), inputs)
    apart = torch.autograd.grad(partial(head(features), target), inputs)
    for mine, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_in_a_compound_and_the_wrappers_of_engines() -> None:
    scores, labels = partly_annotated(KNOWN, 6, 6, 6)
    parts = {"dice": FusedDiceLoss(**READ), "surface": SurfaceLoss(**READ)}
    compound = PartialLabelLoss(CompoundLoss(parts, weights=[1.0, 0.5]))
    value = compound(scores, labels, annotated=KNOWN)
    expected = sum(
        w * PartialLabelLoss(part)(scores, labels, annotated=KNOWN)
        for part, w in zip(parts.values(), (1, 0.5), strict=True)
    )
    torch.testing.assert_close(value, expected)
    assert set(compound.components) == set(parts)
    assert compound.reads_distance
    target = MetaTensor(labels, meta={"annotated": KNOWN})
    torch.testing.assert_close(AnnotatedVoxelLoss(compound, 255)(scores, target), compound(scores, target))
    levels = StackedScoresLoss(compound)(scores.unsqueeze(1), target)
    torch.testing.assert_close(levels, compound(scores, target))
    deep = DeepSupervisionLoss(PartialLabelLoss(FusedDiceCELoss(**READ)))
    small = torch.nn.functional.interpolate(scores, size=3)
    assert deep([scores, small], target) > compound.loss.losses["dice"](scores, labels) * 0


def test_copies_and_pickles() -> None:
    scores, labels = partly_annotated(KNOWN, 4, 4, 4)
    loss = PartialLabelLoss(FusedDiceCELoss(**READ), exclusion=0.5)
    value = loss(scores, labels, annotated=KNOWN)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(scores, labels, annotated=KNOWN), value)
    assert "exclusion=0.5" in repr(loss)


@each("loss", [FusedDiceCELoss(**READ)])
def test_compiled(loss: nn.Module) -> None:
    scores, labels = partly_annotated(KNOWN, 6, 6, 6, dtype=torch.float32)
    partial = PartialLabelLoss(loss)
    compiled = torch.compile(partial, fullgraph=True, backend="aot_eager")
    results = []
    for call in (partial, compiled):
        value = call(scores, labels, annotated=KNOWN)
        results.append((value, *torch.autograd.grad(value, scores)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_under_a_transform_of_torch_func() -> None:
    scores, labels = partly_annotated(KNOWN, 4, 4, 4)
    loss = PartialLabelLoss(FusedDiceCELoss(**READ))
    mine = torch.func.grad(lambda x: loss(x, labels, annotated=KNOWN))(scores.detach())
    (theirs,) = torch.autograd.grad(loss(scores, labels, annotated=KNOWN), scores)
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)


# ---- the meta data


def item() -> dict[str, Any]:
    label = torch.zeros(1, 12, 12, 12)
    label[:, 3:9, 3:9, 3:9] = 2
    affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64))
    return {"image": MetaTensor(torch.rand(1, 12, 12, 12), affine=affine), "label": MetaTensor(label, affine=affine)}


EVERY_WAY = {
    "crop": mt.RandCropByLabelClassesd("label", "label", spatial_size=(8, 8, 8), num_classes=4, num_samples=2),
    "flip": mt.RandFlipd(["image", "label"], prob=1.0, spatial_axis=0),
    "affine": mt.RandAffined(["image", "label"], prob=1.0, rotate_range=(0.2,) * 3, mode=("bilinear", "nearest")),
    "pad": mt.SpatialPadd(["image", "label"], spatial_size=(16, 16, 16)),
    "spacing": mt.Spacingd(["image", "label"], pixdim=(2, 2, 2), mode=("bilinear", "nearest")),
    "orientation": mt.Orientationd(["image", "label"], axcodes="LPS", labels=None),
    "zoom": mt.RandZoomd("label", prob=1.0, min_zoom=0.8, max_zoom=0.9, mode="nearest"),
    "lazy": mt.Compose(
        [mt.Flipd("label", 0), mt.Rotate90d("label"), mt.RandAffined("label", prob=1.0, rotate_range=(0.1,) * 3)],
        lazy=True,
    ),
    "maps": mt.CopyItemsd("label", names="other"),
}


@each("way", EVERY_WAY)
def test_the_vector_survives_a_transform(way: str) -> None:
    given = AnnotatedClassesd(keys="label", num_classes=4)({**item(), "annotated": [2]})
    assert "annotated" not in given
    results = EVERY_WAY[way](given)
    for result in results if isinstance(results, list) else [results]:
        assert torch.as_tensor(result["label"].meta["annotated"]).tolist() == [1, 0, 1, 0]


@each("kind", ["memory", "disk", "workers"])
def test_the_vector_survives_caches_collation_and_decollation(kind: str, tmp_path: Any) -> None:
    items = [{**item(), "annotated": [2]}, {**item(), "annotated": [1, 2]}, item()]
    write = AnnotatedClassesd(keys="label", num_classes=4)
    crop = mt.RandSpatialCropd(["image", "label"], roi_size=(8, 8, 8), random_size=False)
    transform = mt.Compose([write, crop])
    dataset: Any
    if kind == "memory":
        dataset = CacheDataset(items, transform, progress=False)
    elif kind == "disk":
        dataset = PersistentDataset(items, transform, cache_dir=tmp_path, track_meta=True, weights_only=False)
        [dataset[n] for n in range(3)]
    else:
        dataset = monai.data.Dataset(items, transform)
    loader = DataLoader(dataset, batch_size=3, num_workers=2 if kind == "workers" else 0)
    (batch,) = list(loader)
    expected = [[1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert torch.as_tensor(batch["label"].meta["annotated"]).tolist() == expected
    scores = torch.randn(3, 4, 8, 8, 8)
    loss = PartialLabelLoss(FusedDiceLoss(**READ))
    torch.testing.assert_close(
        loss(scores, batch["label"]), loss(scores, batch["label"].as_tensor(), annotated=torch.tensor(expected))
    )
    moved = batch["label"].to("cpu", torch.float64)
    assert torch.equal(loss(scores, moved), loss(scores, batch["label"]))
    single = [torch.as_tensor(one["label"].meta["annotated"]).tolist() for one in decollate_batch(batch)]
    assert single == expected


def test_lists_that_torch_has_transposed() -> None:
    labels = [MetaTensor(torch.zeros(1, 4, 4), meta={"annotated": row}) for row in ([1, 0, 1], [1, 1, 0])]
    batch = list_data_collate(labels)
    loss, scores = PartialLabelLoss(FusedDiceLoss(**READ)), torch.randn(2, 3, 4, 4)
    expected = loss(scores, batch.as_tensor(), annotated=torch.tensor([[1, 0, 1], [1, 1, 0]]))
    torch.testing.assert_close(loss(scores, batch), expected)


def test_regions_are_annotated_where_all_their_classes_are() -> None:
    write = AnnotatedClassesd(keys="label", num_classes=2, regions={"whole": [1, 2], "core": [2]})
    assert write({**item(), "annotated": [2]})["label"].meta["annotated"].tolist() == [0, 1]
    assert write(item())["label"].meta["annotated"].tolist() == [1, 1]


@each("annotated", [[], [0], [4], [-1]])
def test_classes_that_are_none_are_refused(annotated: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected annotated classes among 1\.\.3"):
        AnnotatedClassesd(keys="label", num_classes=4)({**item(), "annotated": annotated})


def test_a_label_without_meta_data_is_refused() -> None:
    with pytest.raises(TypeError, match="MetaTensor"):
        AnnotatedClassesd(keys="label", num_classes=4)({"label": torch.zeros(1, 4)})


def test_scribbles_are_an_ignore_label() -> None:
    """Trains from 5 % of the voxels: the others are of no class, and the loss leaves them out."""
    torch.manual_seed(0)
    image = torch.zeros(2, 1, 24, 24)
    image[:, :, 6:18, 6:18] = 1
    truth = image.long()
    image = image + 0.3 * torch.randn_like(image)
    scribbles = torch.where(torch.rand(truth.shape) < 0.05, truth, 255)
    assert 0 < (scribbles != 255).float().mean() < 0.1
    network = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    loss = FusedDiceCELoss(ignore_index=255, **READ)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss(network(image), scribbles).backward()
        optimizer.step()
    predicted = network(image).argmax(1, keepdim=True)
    assert 2 * (predicted * truth).sum() / (predicted + truth).sum() > 0.95
