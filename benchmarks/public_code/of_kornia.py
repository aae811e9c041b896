"""The losses of kornia."""

from typing import Any

import torch

from public_code.trap import Trap, Traps, block, ours, row, sure

READ = {"to_onehot_y": True, "softmax": True}


def traps(kornia_losses: Any) -> Traps:
    """All of them."""
    labels = block(16, (slice(4, 6), slice(4, 6)))
    missed = sure(torch.zeros_like(labels), 2)
    yield Trap(
        "dice",
        "DiceLoss()",
        'Default: `average="micro"` is one Dice over all classes and the background: 1 - mean p of the true class.',
        "2 classes, an object of 2x2 of 16x16 voxels missed",
        kornia_losses.DiceLoss()(missed, labels[:, 0]),
        ours("FusedDiceLoss", missed, labels, **READ),
    )
    empty = torch.zeros(1, 1, 16, 16, dtype=torch.int64)
    found = sure(labels, 2)
    for page, name, options, its in (
        ("dice", "DiceLoss(average='macro')", {"average": "macro"}, "FusedDiceLoss"),
        ("tversky", "TverskyLoss(alpha=0.5, beta=0.5)", {"alpha": 0.5, "beta": 0.5}, "FusedTverskyLoss"),
    ):
        yield Trap(
            page,
            name,
            "Meaning: a class that is absent from a sample leaves its mean, and what is predicted of it costs nothing.",
            "2 classes, 16x16 voxels of background, of which 2x2 are predicted as class 1",
            getattr(kornia_losses, name.partition("(")[0])(**options)(found, empty[:, 0]),
            ours(its, found, empty, **READ),
        )
    yield from voxels(kornia_losses)
    yield from lovasz(kornia_losses)


def voxels(kornia_losses: Any) -> Traps:
    labels, scores = row(0, 1, 255, 255).long(), torch.zeros(1, 3, 1, 4)
    options = {"alpha": None, "gamma": 0.0, "reduction": "mean", "ignore_index": 255}
    yield Trap(
        "focal",
        "FocalLoss(alpha=None, gamma=0, reduction='mean', ignore_index=255)",
        "Meaning: ignored voxels add 0 and still count in the mean.",
        "3 classes, scores 0, 2 of 4 voxels ignored; ln 3 / 3",
        kornia_losses.FocalLoss(**options)(scores, labels[:, 0]),
        ours("FusedFocalLoss", scores, labels, to_onehot_y=True, use_softmax=True, gamma=0.0, ignore_index=255),
    )
    labels = torch.cat([row(0, 0, 0, 1), row(255, 255, 255, 255)]).long()
    right = sure(row(0, 0, 0, 1).long(), 2).expand(2, -1, -1, -1)
    for page, name, options, its in (
        ("dice", "DiceLoss(average='macro', ignore_index=255)", {"average": "macro"}, "FusedDiceLoss"),
        ("tversky", "TverskyLoss(0.5, 0.5, ignore_index=255)", {"alpha": 0.5, "beta": 0.5}, "FusedTverskyLoss"),
    ):
        yield Trap(
            page,
            name,
            "Meaning: a sample in which everything is ignored enters the mean with 1.",
            "2 samples of 4 voxels: all right; all ignored",
            getattr(kornia_losses, name.partition("(")[0])(**options, ignore_index=255)(right, labels[:, 0]),
            ours(its, right, labels, ignore_index=255, **READ),
        )


def lovasz(kornia_losses: Any) -> Traps:
    labels, score = row(1, 1, -100, -100).long(), row(1.0, 1.0, 1.0, 1.0)
    yield Trap(
        "lovasz",
        "LovaszHingeLoss()",
        "Meaning: -100, which the library's other losses ignore, is read as a label.",
        "4 voxels of score 1, 2 of label 1 and 2 of label -100",
        kornia_losses.LovaszHingeLoss()(score, labels[:, 0]),
        ours("LovaszLoss", score, labels, ignore_index=-100),
    )
    labels, scores = row(0, 0, 0, 1).long(), sure(row(0, 0, 0, 1).long(), 4)
    scores[:, 2, :, 0] = 20.0
    yield Trap(
        "lovasz",
        "LovaszSoftmaxLoss()",
        'Meaning: absent classes count, as with the authors\' `classes="all"`; their default is the classes present.',
        "4 classes, of which 0 and 1 are there; one voxel has p = 0.5 for class 2; right: the classes present",
        kornia_losses.LovaszSoftmaxLoss()(scores, labels[:, 0]),
        ours("LovaszLoss", scores, labels, absent_class="skip", **READ),
    )
