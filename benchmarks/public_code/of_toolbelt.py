"""The losses of pytorch-toolbelt."""

from typing import Any

import torch

from public_code.trap import Trap, Traps, ours, row


def traps(toolbelt: Any) -> Traps:
    """All of them."""
    labels = row(0, 1, 2, 1).long()
    scores = torch.zeros(1, 3, 1, 4)
    yield Trap(
        "focal",
        "CrossEntropyFocalLoss(gamma=0)",
        "Error: the cross-entropy is that of a sigmoid for each class, summed, weighted by the softmax's errors.",
        "3 classes, scores 0: the cross-entropy is ln 3",
        toolbelt.CrossEntropyFocalLoss(gamma=0.0)(scores, labels[:, 0]),
        ours("CrossEntropyLoss", scores, labels, to_onehot_y=True, softmax=True),
    )
    score, target = row(0.0, 0.0, 0.0, 0.0), row(1.0, 0.0, 0.0, 0.0)
    yield Trap(
        "balanced_cross_entropy",
        "BalancedBCEWithLogitsLoss(gamma=2)",
        "Error: `gamma` is applied twice: positives weigh (N_neg/N)^4, negatives (1 - (N_neg/N)^2)^2.",
        "4 voxels, 1 positive, scores 0; weights (3/4)^2 and (1/4)^2",
        toolbelt.BalancedBCEWithLogitsLoss(gamma=2.0)(score, target),
        (0.75**2 + 3 * 0.25**2) / 4 * torch.tensor(2.0).log(),
    )
    target = row(1.0, 0.0, 255.0, 255.0)
    yield Trap(
        "balanced_cross_entropy",
        "BalancedBCEWithLogitsLoss(ignore_index=255)",
        "Meaning: ignored voxels add 0 and still count in the mean.",
        "4 voxels, 1 positive, 1 negative, 2 ignored, scores 0",
        toolbelt.BalancedBCEWithLogitsLoss(ignore_index=255)(score, target),
        ours("BalancedCrossEntropyLoss", score, target, sigmoid=True, ignore_index=255),
    )
    yield from overlap(toolbelt)


def overlap(toolbelt: Any) -> Traps:
    empty = torch.zeros(1, 1, 4, 4)
    for page, name, its in (("dice", "DiceLoss", "FusedDiceLoss"), ("jaccard", "JaccardLoss", "JaccardLoss")):
        yield Trap(
            page,
            f"{name}('binary')",
            "Meaning: a class that is absent from the batch costs nothing, however much of it is predicted.",
            "4x4 voxels, an empty mask, all predicted as foreground",
            getattr(toolbelt, name)("binary")(empty + 20, empty),
            ours(its, empty + 20, empty, sigmoid=True),
        )
