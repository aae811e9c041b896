"""What of other libraries equals what of this package: value and gradient, side by side."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_extra_losses import losses

READ = {"to_onehot_y": True, "softmax": True}
UNSMOOTHED = {"smooth_nr": 0.0, "smooth_dr": 0.0}


@dataclass(frozen=True)
class Equality:
    """Two losses that are equal.

    Args:
        theirs: the library's, as one writes it.
        ours: this package's.
        difference: the largest, of value and gradient.
    """

    theirs: str
    ours: str
    difference: float


Equalities = Iterator[Equality]


def difference(theirs: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor], scores: Tensor) -> float:
    """The largest difference of value and gradient, of scores in float64; of large numbers in parts of the largest."""
    results = []
    for loss in (theirs, ours):
        given = scores.detach().clone().requires_grad_()
        value = loss(given)
        value.backward()
        assert given.grad is not None
        results.append(torch.cat([value.detach().view(1).double(), given.grad.flatten().double()]))
    return ((results[0] - results[1]).abs().max() / results[1].abs().max().clamp(min=1)).item()


class Data:
    """Scores of three classes and their labels, and of one channel and its mask, the same in every run."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.scores = torch.randn(2, 3, 12, 12, generator=random, dtype=torch.float64)
        self.labels = torch.randint(0, 3, (2, 1, 12, 12), generator=random)
        self.score = torch.randn(2, 1, 12, 12, generator=random, dtype=torch.float64)
        self.mask = torch.randint(0, 2, (2, 1, 12, 12), generator=random).double()
        self.regions = torch.randint(0, 2, (2, 3, 12, 12), generator=random).double()

    def of_labels(self, theirs: Any, ours: Any, *, channel: bool = True) -> float:
        """Of labels (B, 1, *spatial), or without the channel for theirs."""
        target = self.labels if channel else self.labels[:, 0]
        return difference(lambda x: theirs(x, target), lambda x: ours(x, self.labels), self.scores)

    def of_mask(self, theirs: Any, ours: Any) -> float:
        """Of one channel."""
        return difference(lambda x: theirs(x, self.mask), lambda x: ours(x, self.mask), self.score)


def written(cls: str, **options: Any) -> str:
    """A constructor as one writes it."""
    return f"{cls}({', '.join(f'{name}={value!r}' for name, value in options.items())})"


def of_monai(its: Any) -> Equalities:
    """MONAI's; its other options are compared, one by one and in pairs, by tests/test_drop_in.py."""
    data = Data()
    same: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("DiceLoss", "FusedDiceLoss", {}, {}),
        ("TverskyLoss", "FusedTverskyLoss", {"alpha": 0.3, "beta": 0.7}, {"alpha": 0.3, "beta": 0.7}),
        ("GeneralizedDiceLoss", "FusedGeneralizedDiceLoss", UNSMOOTHED, UNSMOOTHED),
        ("DiceCELoss", "FusedDiceCELoss", {}, {}),
        ("BoundaryLoss", "SurfaceLoss", {}, {"spacing": None}),
        ("HausdorffDTLoss", "HausdorffLoss", {}, {"spacing": None}),
        ("LogHausdorffDTLoss", "LogHausdorffLoss", {}, {"spacing": None}),
    ]
    for name, mine, options, my_options in same:
        theirs, ours = getattr(its, name)(**READ, **options), getattr(losses, mine)(**READ, **my_options)
        yield Equality(written(name, **options), written(mine, **my_options), data.of_labels(theirs, ours))
    focal = {"to_onehot_y": True, "use_softmax": True}
    yield Equality(
        "FocalLoss(use_softmax=True)",
        "FusedFocalLoss(use_softmax=True)",
        data.of_labels(its.FocalLoss(**focal), losses.FusedFocalLoss(**focal)),
    )
    parts = [losses.FusedDiceLoss(**READ), losses.FusedFocalLoss(to_onehot_y=True)]
    yield Equality(
        "DiceFocalLoss(softmax=True)",
        "CompoundLoss([FusedDiceLoss(softmax=True), FusedFocalLoss()])",
        data.of_labels(its.DiceFocalLoss(**READ), losses.CompoundLoss(parts)),
    )
    masked = its.MaskedDiceLoss(sigmoid=True)
    yield Equality(
        "MaskedDiceLoss(sigmoid=True)(scores, target, mask)",
        "FusedDiceLoss(sigmoid=True)(scores, target, mask)",
        data.of_mask(
            lambda x, y: masked(x, y, data.regions[:, :1]),
            lambda x, y: losses.FusedDiceLoss(sigmoid=True)(x, y, data.regions[:, :1]),
        ),
    )
    two, binary = data.scores[:, :2], data.mask.long()
    halved = its.AsymmetricUnifiedFocalLoss(to_onehot_y=True, weight=0.5)
    whole = losses.UnifiedFocalLoss(1 / 3, delta=0.7, asymmetric=True, **READ)
    yield Equality(
        "AsymmetricUnifiedFocalLoss()(p, labels)",
        "0.75 * UnifiedFocalLoss(softmax=True, weight_focal=1 / 3, delta=0.7, asymmetric=True)(scores, labels)",
        difference(lambda x: halved(x.softmax(1), binary), lambda x: 0.75 * whole(x, binary), two),
    )
    thin = {"iter_": 3, "smooth": 1e-12}
    both = its.SoftDiceclDiceLoss(alpha=0.3, sigmoid=True, **thin)
    parts = [losses.FusedDiceLoss(smooth_nr=1.0, smooth_dr=1.0, sigmoid=True)]
    parts.append(losses.CenterlineDiceLoss(3, 1.0, sigmoid=True))
    yield Equality(
        "SoftDiceclDiceLoss(sigmoid=True, alpha=0.3, smooth=1e-12)",
        "CompoundLoss([FusedDiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0), "
        "CenterlineDiceLoss(sigmoid=True, iterations=3, smooth=1.0)], weights=[0.7, 0.3])",
        data.of_mask(both, losses.CompoundLoss(parts, weights=[0.7, 0.3])),
    )
    yield Equality(
        "SoftclDiceLoss(sigmoid=True, smooth=1e-12)",
        "CenterlineDiceLoss(sigmoid=True, iterations=3, smooth=1.0)",
        data.of_mask(its.SoftclDiceLoss(sigmoid=True, **thin), losses.CenterlineDiceLoss(3, 1.0, sigmoid=True)),
    )


def of_nnunet(its: Any) -> Equalities:
    """nnU-Net's, whose Dice is less by 1."""
    data = Data()

    def softmax(x: Tensor) -> Tensor:
        return x.softmax(1)

    dice = {"batch_dice": False, "do_bg": False, "smooth": 1e-5, "ddp": False}
    with_ce = its.DC_and_CE_loss(dice, {}, dice_class=its.MemoryEfficientSoftDiceLoss)
    ours: Any = losses.FusedDiceCELoss(include_background=False, **READ)
    yield Equality(
        "1 + DC_and_CE_loss(dice, {})",
        "FusedDiceCELoss(include_background=False)",
        data.of_labels(lambda x, y: with_ce(x, y) + 1, ours),
    )
    with_top_k = its.DC_and_topk_loss(dice, {"k": 10})
    ours = losses.CompoundLoss(
        [losses.FusedDiceLoss(include_background=False, **READ), losses.TopKLoss(k=10, batch=True, **READ)]
    )
    yield Equality(
        "1 + DC_and_topk_loss(dice, {})",
        "CompoundLoss([FusedDiceLoss(include_background=False), TopKLoss(k=10, batch=True)])",
        data.of_labels(lambda x, y: with_top_k(x, y) + 1, ours),
    )
    with_bce = its.DC_and_BCE_loss({}, {"batch_dice": True, "smooth": 1e-5, "ddp": False})
    ours = losses.FusedDiceCELoss(sigmoid=True, batch=True)
    yield Equality(
        "1 + DC_and_BCE_loss({}, dice)",
        "FusedDiceCELoss(sigmoid=True, batch=True)",
        difference(lambda x: with_bce(x, data.regions) + 1, lambda x: ours(x, data.regions), data.scores),
    )


def of_smp(its: Any) -> Equalities:
    """segmentation_models_pytorch's, where every class is in the batch."""
    data = Data()
    pooled = {"batch": True, **UNSMOOTHED}
    same: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
        ("DiceLoss", {}, "FusedDiceLoss", pooled),
        ("JaccardLoss", {}, "JaccardLoss", pooled),
        ("TverskyLoss", {"alpha": 0.3, "beta": 0.7}, "FusedTverskyLoss", {"alpha": 0.3, "beta": 0.7, **pooled}),
        ("DiceLoss", {"class_weights": [1, 2, 3]}, "FusedDiceLoss", {"weight": [0.5, 1, 1.5], **pooled}),
        ("LovaszLoss", {}, "LovaszLoss", {"batch": True, "absent_class": "skip"}),
    ]
    for name, options, mine, my_options in same:
        theirs, ours = getattr(its, name)("multiclass", **options), getattr(losses, mine)(**READ, **my_options)
        yield Equality(
            written(name, mode="multiclass", **options),
            written(mine, softmax=True, **my_options),
            data.of_labels(lambda x, y, loss=theirs: loss(x.float(), y), ours, channel=False),
        )
    focal = its.FocalLoss("multiclass", gamma=2.0)
    yield Equality(
        "FocalLoss(mode='multiclass')",
        "FusedFocalLoss()",
        data.of_labels(focal, losses.FusedFocalLoss(to_onehot_y=True), channel=False),
    )
    smoothed = its.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=None)
    yield Equality(
        "SoftCrossEntropyLoss(smooth_factor=0.1)",
        "CrossEntropyLoss(softmax=True, label_smoothing=0.1)",
        data.of_labels(smoothed, losses.CrossEntropyLoss(label_smoothing=0.1, **READ), channel=False),
    )
    of_mask: list[tuple[str, Any, str, Any]] = [
        (
            "TverskyLoss(mode='binary', alpha=0.3, beta=0.7, gamma=0.75)",
            its.TverskyLoss("binary", alpha=0.3, beta=0.7, gamma=0.75),
            "FocalTverskyLoss(sigmoid=True, gamma=4 / 3, batch=True, smooth_nr=0.0, smooth_dr=0.0)",
            losses.FocalTverskyLoss(sigmoid=True, gamma=4 / 3, **pooled),
        ),
        (
            "FocalLoss(mode='binary', alpha=0.25)",
            its.FocalLoss("binary", alpha=0.25),
            "FusedFocalLoss(alpha=0.25)",
            losses.FusedFocalLoss(alpha=0.25),
        ),
        (
            "LovaszLoss(mode='binary')",
            lambda x, y: its.LovaszLoss("binary")(x.float(), y.float()),
            "LovaszLoss(batch=True)",
            losses.LovaszLoss(batch=True),
        ),
        (
            "SoftBCEWithLogitsLoss(smooth_factor=0.1)",
            its.SoftBCEWithLogitsLoss(smooth_factor=0.1),
            "CrossEntropyLoss(sigmoid=True, label_smoothing=0.2)",
            losses.CrossEntropyLoss(sigmoid=True, label_smoothing=0.2),
        ),
    ]
    for theirs_text, theirs, ours_text, ours in of_mask:
        yield Equality(theirs_text, ours_text, data.of_mask(theirs, ours))


def of_keras(keras: Any) -> Equalities:
    """Keras', which computes in float32, channels last."""
    its, data = keras.losses, Data()

    def last(loss: Any) -> Any:
        return lambda x, y: loss(y.movedim(1, -1), x.movedim(1, -1))

    hot = torch.nn.functional.one_hot(data.labels[:, 0], 3).movedim(-1, 1).double()
    of_classes: list[tuple[str, Any, str, Any]] = [
        (
            "CategoricalCrossentropy(from_logits=True)",
            its.CategoricalCrossentropy(from_logits=True),
            "CrossEntropyLoss(softmax=True)",
            losses.CrossEntropyLoss(softmax=True),
        ),
        (
            "BinaryCrossentropy(from_logits=True, label_smoothing=0.1)",
            its.BinaryCrossentropy(from_logits=True, label_smoothing=0.1),
            "CrossEntropyLoss(sigmoid=True, label_smoothing=0.1)",
            losses.CrossEntropyLoss(sigmoid=True, label_smoothing=0.1),
        ),
        (
            "CategoricalFocalCrossentropy(alpha=0.25, from_logits=True)",
            its.CategoricalFocalCrossentropy(alpha=0.25, from_logits=True),
            "FusedFocalLoss(use_softmax=True, weight=0.25 * C)",
            losses.FusedFocalLoss(use_softmax=True, weight=0.75),
        ),
        (
            "BinaryFocalCrossentropy(apply_class_balancing=True, from_logits=True)",
            its.BinaryFocalCrossentropy(apply_class_balancing=True, from_logits=True),
            "FusedFocalLoss(alpha=0.25)",
            losses.FusedFocalLoss(alpha=0.25),
        ),
        ("Hinge()", its.Hinge(), "HingeLoss()", losses.HingeLoss()),
        ("SquaredHinge()", its.SquaredHinge(), "SquaredHingeLoss()", losses.SquaredHingeLoss()),
    ]
    for theirs_text, theirs, ours_text, ours in of_classes:
        found = difference(lambda x, loss=theirs: last(loss)(x, hot), lambda x, loss=ours: loss(x, hot), data.scores)
        yield Equality(theirs_text, ours_text, found)
    ignoring = its.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)
    ours = losses.CrossEntropyLoss(ignore_index=2, **READ)
    yield Equality(
        "SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)",
        "CrossEntropyLoss(to_onehot_y=True, softmax=True, ignore_index=2)",
        difference(
            lambda x: ignoring(data.labels[:, 0], x.movedim(1, -1)), lambda x: ours(x, data.labels), data.scores
        ),
    )
    generalized = its.CategoricalGeneralizedCrossEntropy(q=0.7)
    yield Equality(
        "CategoricalGeneralizedCrossEntropy(q=0.7)(labels, p)",
        "GeneralizedCrossEntropyLoss(to_onehot_y=True)(p, labels)",
        difference(
            lambda x: generalized(data.labels.flatten(), x.movedim(1, -1).reshape(-1, 3)),
            lambda x: losses.GeneralizedCrossEntropyLoss(to_onehot_y=True)(x, data.labels),
            data.scores.softmax(1),
        ),
    )
    pooled = {"sigmoid": True, "batch": True, "smooth_nr": 0.0, "smooth_dr": 1e-7}
    for name, options, mine, my_options in (
        ("Dice", {}, "FusedDiceLoss", {}),
        ("Tversky", {"alpha": 0.3, "beta": 0.7}, "FusedTverskyLoss", {"alpha": 0.7, "beta": 0.3}),
    ):
        theirs = last(getattr(its, name)(**options))
        ours = getattr(losses, mine)(**my_options, **pooled)
        yield Equality(
            written(name, **options) + "(mask, p)",
            written(mine, **my_options, **pooled),
            data.of_mask(lambda x, y, loss=theirs: loss(x.sigmoid(), y), ours),
        )
    positive, target = data.scores.exp(), data.regions + 0.5
    for name in ("MeanSquaredLogarithmicError", "MeanAbsolutePercentageError", "LogCosh", "Huber", "Poisson"):
        theirs, ours = last(getattr(its, name)()), getattr(losses, f"{name}Loss")()
        found = difference(lambda x, f=theirs: f(x, target), lambda x, f=ours: f(x, target), positive)
        yield Equality(f"{name}()", f"{name}Loss()", found)
    p, g = data.scores.softmax(1), data.regions.softmax(1)
    for name, less in (("KLDivergence", 0), ("CosineSimilarity", 1)):
        theirs, ours = last(getattr(its, name)()), getattr(losses, f"{name}Loss")()
        found = difference(lambda x, f=theirs: f(x, g), lambda x, f=ours, n=less: f(x, g) - n, p)
        yield Equality(f"{name}()", f"{name}Loss() - 1" if less else f"{name}Loss()", found)


def of_torchmetrics(its: Any) -> Equalities:
    """The scores of torchmetrics of labels, where every class is in every sample; values alone."""
    data = Data()
    predicted = data.scores.argmax(1, keepdim=True)
    hot = torch.nn.functional.one_hot(predicted[:, 0], 3).movedim(-1, 1).double()
    for name, mine in (
        ("DiceScore", "FusedDiceLoss"),
        ("GeneralizedDiceScore", "FusedGeneralizedDiceLoss"),
        ("MeanIoU", "JaccardLoss"),
    ):
        score = getattr(its, name)(3, input_format="index")(predicted[:, 0], data.labels[:, 0])
        ours = getattr(losses, mine)(to_onehot_y=True, **UNSMOOTHED)(hot, data.labels)
        yield Equality(
            f"{name}(C)", f"1 - {written(mine, **UNSMOOTHED)}(one_hot, labels)", abs((1 - ours - score).item())
        )


EQUALITIES: list[tuple[str, str, Callable[[Any], Equalities]]] = [
    ("monai.losses", "monai", of_monai),
    ("torchmetrics.segmentation", "torchmetrics", of_torchmetrics),
    ("nnunetv2.training.loss.compound_losses", "nnunetv2", of_nnunet),
    ("segmentation_models_pytorch.losses", "segmentation-models-pytorch", of_smp),
    ("keras", "keras", of_keras),
]
