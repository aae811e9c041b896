"""The losses of segmentation_models_pytorch."""

from typing import Any

import torch

from public_code.trap import Trap, Traps, block, ours, row, sure

READ = {"to_onehot_y": True, "softmax": True}


def traps(smp: Any) -> Traps:
    """All of them."""
    yield from overlap(smp)
    yield from tversky(smp)
    yield from voxels(smp)
    yield from lovasz(smp)


def overlap(smp: Any) -> Traps:
    empty = torch.zeros(1, 1, 4, 4)
    everywhere = torch.full((1, 1, 4, 4), 20.0)
    large_and_small = torch.cat([row(*[1] * 8, 0, 0), row(1, 1, *[0] * 8)])
    large_alone = torch.cat([row(*[20] * 8, -20, -20), row(*[-20] * 10)])
    for page, name, its in (("dice", "DiceLoss", "FusedDiceLoss"), ("jaccard", "JaccardLoss", "JaccardLoss")):
        loss = getattr(smp, name)("binary")
        yield Trap(
            page,
            f"{name}('binary')",
            "Meaning: a class that is absent from the batch costs nothing, however much of it is predicted.",
            "4x4 voxels, an empty mask, all predicted as foreground",
            loss(everywhere, empty),
            ours(its, everywhere, empty, sigmoid=True),
        )
        yield Trap(
            page,
            f"{name}('binary')",
            "Meaning: the sums are over the batch; here `batch=True`.",
            "2 samples of 10 voxels: an object of 8 found, one of 2 missed",
            loss(large_alone, large_and_small),
            ours(its, large_alone, large_and_small, sigmoid=True),
        )
    labels = row(0, 0, 0, 0, 1, 1).long()
    missed = sure(torch.zeros_like(labels), 4)
    yield Trap(
        "dice",
        "DiceLoss('multiclass')",
        'Meaning: absent classes cost 0 and still count in the mean; here `absent_class="skip"` leaves them out.',
        "4 classes, of which 0 and 1 are there; class 1 missed",
        smp.DiceLoss("multiclass")(missed, labels[:, 0]),
        ours("FusedDiceLoss", missed, labels, absent_class="skip", **READ),
    )


def tversky(smp: Any) -> Traps:
    labels = block(8, (slice(0, 4), slice(0, 4)))
    half_missed = sure(block(8, (slice(0, 2), slice(0, 4))), 2)
    yield Trap(
        "focal_tversky",
        "TverskyLoss('multiclass', alpha=0.3, beta=0.7, gamma=0.75)",
        "Meaning: the power is of the mean over classes, not of each class; its exponent is `gamma`, here 1/gamma.",
        "2 classes, half of an object of 16 of 64 voxels missed",
        smp.TverskyLoss("multiclass", alpha=0.3, beta=0.7, gamma=0.75)(half_missed, labels[:, 0]),
        ours("FocalTverskyLoss", half_missed, labels, gamma=4 / 3, **READ),
    )
    empty = torch.zeros(1, 1, 4, 4)
    yield Trap(
        "tversky",
        "TverskyLoss('binary')",
        "Meaning: a class that is absent from the batch costs nothing, however much of it is predicted.",
        "4x4 voxels, an empty mask, all predicted as foreground",
        smp.TverskyLoss("binary")(empty + 20, empty),
        ours("FusedTverskyLoss", empty + 20, empty, sigmoid=True),
    )


def voxels(smp: Any) -> Traps:
    labels = row(0, 1, 2, 1).long()
    scores = torch.zeros(1, 3, 1, 4)
    yield Trap(
        "focal",
        "FocalLoss('multiclass', gamma=0)",
        "Meaning: one-vs-rest with a sigmoid for each class, not a softmax.",
        "3 classes, scores 0: a softmax has p = 1/3, and the mean over voxels and classes is ln 3 / 3",
        smp.FocalLoss("multiclass", gamma=0.0)(scores, labels[:, 0]),
        ours("FusedFocalLoss", scores, labels, to_onehot_y=True, use_softmax=True, gamma=0.0),
    )
    labels = row(0, 1, 255, 255).long()
    yield Trap(
        "cross_entropy",
        "SoftCrossEntropyLoss(smooth_factor=0, ignore_index=255)",
        "Error: ignored voxels add 0 and still count in the mean.",
        "3 classes, scores 0 (ln 3), 2 of 4 voxels ignored",
        smp.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=255)(scores, labels[:, 0]),
        ours("CrossEntropyLoss", scores, labels, ignore_index=255, **READ),
    )
    try:
        theirs: object = smp.SoftCrossEntropyLoss()(scores, row(0, 1, 2, 1).long()[:, 0])
    except TypeError as error:
        theirs = type(error).__name__
    yield Trap(
        "cross_entropy",
        "SoftCrossEntropyLoss()",
        "Error: with its defaults it computes 1 - None.",
        "3 classes, scores 0",
        theirs,
        ours("CrossEntropyLoss", scores, row(0, 1, 2, 1).long(), **READ),
    )
    score, positive = row(2.0), row(1.0)
    yield Trap(
        "cross_entropy",
        "SoftBCEWithLogitsLoss(smooth_factor=0.1)",
        "Meaning: a 1 becomes 1 - e; here, and in Keras, 1 - e/2.",
        "score 2, target 1",
        smp.SoftBCEWithLogitsLoss(smooth_factor=0.1)(score, positive),
        ours("CrossEntropyLoss", score, positive, sigmoid=True, label_smoothing=0.1),
    )


def lovasz(smp: Any) -> Traps:
    regions = torch.cat([row(*[1] * 8, 0, 0), row(1, 0, 0, 0, 0, 0, 0, 0, 0, 0)], 1)
    scores = torch.cat([row(*[1] * 8, -1, -1), row(*[-1] * 10)], 1)
    single = [ours("LovaszLoss", scores[:, c : c + 1], regions[:, c : c + 1]) for c in (0, 1)]
    yield Trap(
        "lovasz",
        "LovaszLoss('multilabel')",
        "Meaning: the voxels of all regions are sorted together, as if they were one.",
        "2 regions of 10 voxels: one of 8 found, one of 1 missed, scores ±1",
        smp.LovaszLoss("multilabel")(scores, regions),
        sum(single) / 2,
    )
    labels = torch.cat([row(0, 0, 0, 1), row(0, 1, 1, 1)]).long()
    found = sure(torch.cat([row(0, 0, 0, 0), row(0, 1, 1, 1)]).long(), 2)
    yield Trap(
        "lovasz",
        "LovaszLoss('multiclass')",
        "Default: pools the batch, as the authors' code; here `batch=True`.",
        "2 samples of 4 voxels: class 1, of 1 voxel, missed; class 1, of 3 voxels, found",
        smp.LovaszLoss("multiclass")(found, labels[:, 0]),
        ours("LovaszLoss", found, labels, **READ),
    )
