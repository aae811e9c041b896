"""Keras' losses: channels last, the target first."""

from typing import Any

import torch

from public_code.trap import Trap, Traps, one_hot, ours, row, sure

READ = {"to_onehot_y": True, "softmax": True}


def last(tensor: torch.Tensor) -> torch.Tensor:
    """Channels behind the voxels."""
    return tensor.movedim(1, -1)


def traps(keras: Any) -> Traps:
    """All of them."""
    yield from overlap(keras.losses)
    yield from cross_entropies(keras.losses)
    yield from scores_and_vectors(keras.losses)


def overlap(keras_losses: Any) -> Traps:
    target, missed = row(1, 1, 1, 1, 0, 0, 0, 0), row(1, 0, 0, 0, 0, 0, 0, 0)
    yield Trap(
        "tversky",
        "Tversky(alpha=0.3, beta=0.7)",
        "Error: `alpha` is documented to weight false positives and weights false negatives.",
        "3 of 4 voxels of an object missed",
        keras_losses.Tversky(alpha=0.3, beta=0.7)(last(target), last(missed)),
        ours("FusedTverskyLoss", missed, target, alpha=0.3, beta=0.7),
    )
    empty = row(0, 0, 0, 0)
    for page, name, its in (("dice", "Dice", "FusedDiceLoss"), ("tversky", "Tversky", "FusedTverskyLoss")):
        yield Trap(
            page,
            f"{name}()",
            "Meaning: nothing is added above the bar: an empty mask predicted as empty costs 1, as a missed object.",
            "4 voxels, p = g = 0",
            getattr(keras_losses, name)()(last(empty), last(empty)),
            ours(its, empty, empty),
        )
    labels = row(*[0] * 15, 1).long()
    missed = one_hot(torch.zeros_like(labels), 2)
    yield Trap(
        "dice",
        "Dice()",
        "Default: `axis=None` is one Dice over samples and channels, the background with them.",
        "2 classes, an object of 1 of 16 voxels missed",
        keras_losses.Dice()(last(one_hot(labels, 2)), last(missed)),
        ours("FusedDiceLoss", missed, labels, to_onehot_y=True),
    )


def cross_entropies(keras_losses: Any) -> Traps:
    labels = row(0, 1).long()
    scores = sure(labels, 2) / 20
    yield Trap(
        "cross_entropy",
        "CategoricalCrossentropy()",
        "Default: `from_logits=False`: scores are divided by their sum and taken as probabilities, without a word.",
        "2 classes, 2 voxels, scores 1 (true) and 0",
        keras_losses.CategoricalCrossentropy()(last(one_hot(labels, 2)), last(scores)),
        ours("CrossEntropyLoss", scores, labels, **READ),
    )
    zero = torch.zeros(1, 2, 1, 2)
    yield Trap(
        "focal",
        "CategoricalFocalCrossentropy(gamma=0)",
        "Default: `alpha=0.25` multiplies all classes, and so balances none.",
        "2 classes, scores 0: the cross-entropy is ln 2",
        keras_losses.CategoricalFocalCrossentropy(gamma=0.0, from_logits=True)(last(one_hot(labels, 2)), last(zero)),
        ours("CrossEntropyLoss", zero, labels, **READ),
    )
    score, target = row(0.0, 0.0, 0.0, 0.0), row(1.0, 0.0, 0.0, 0.0)
    yield Trap(
        "focal",
        "BinaryFocalCrossentropy(alpha=0.25)",
        "Default: `alpha` has no effect without `apply_class_balancing=True`.",
        "1 channel, scores 0, 1 of 4 voxels positive",
        keras_losses.BinaryFocalCrossentropy(alpha=0.25, from_logits=True)(last(target), last(score)),
        ours("FusedFocalLoss", score, target, alpha=0.25),
    )
    p = torch.cat([row(0.5), row(0.5)], 1)
    yield Trap(
        "generalized_cross_entropy",
        "CategoricalGeneralizedCrossEntropy()",
        "Default: q = 0.5, in the paper 0.7.",
        "2 classes, p = 0.5",
        keras_losses.CategoricalGeneralizedCrossEntropy()(torch.zeros(1, dtype=torch.int64), p.view(1, 2)),
        ours("GeneralizedCrossEntropyLoss", p, row(0).long(), to_onehot_y=True),
    )


def scores_and_vectors(keras_losses: Any) -> Traps:
    scores, first = torch.tensor([[-5.0, -9.0, -9.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    yield Trap(
        "categorical_hinge",
        "CategoricalHinge()",
        "Meaning: the largest other score is max((1 - y) s), which cannot fall below 0.",
        "scores -5 (true), -9, -9",
        keras_losses.CategoricalHinge()(first, scores),
        ours("CategoricalHingeLoss", scores.unsqueeze(-1), first.unsqueeze(-1)),
    )
    yield Trap(
        "cosine_similarity",
        "CosineSimilarity()",
        "Meaning: the negative cosine: a perfect prediction gives -1.",
        "(1, 0, 0) twice",
        keras_losses.CosineSimilarity()(first, first),
        ours("CosineSimilarityLoss", first.unsqueeze(-1), first.unsqueeze(-1)),
    )
    score, smoothed = row(1.0, -1.0), row(0.1, 0.9)
    for page, name in (("hinge", "Hinge"), ("squared_hinge", "SquaredHinge")):
        yield Trap(
            page,
            f"{name}()",
            "Meaning: targets become -1 and 1 where all are 0 or 1; smoothed ones stay, and 0.1 is a positive.",
            "scores 1 and -1, targets 0.1 and 0.9; right: g of a positive, 1 - g of a negative",
            getattr(keras_losses, name)()(last(smoothed), last(score)),
            ours(f"{name}Loss", score, smoothed),
        )
