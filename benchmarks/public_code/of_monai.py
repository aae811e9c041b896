"""MONAI's losses."""

from typing import Any

import torch

from monai_extra_losses import losses
from public_code.trap import Trap, Traps, block, one_hot, ours, row, sure

READ = {"to_onehot_y": True, "softmax": True}


def traps(monai_losses: Any) -> Traps:
    """All of them."""
    yield from region(monai_losses)
    yield from ignored(monai_losses)
    yield from focal(monai_losses)
    yield from compound(monai_losses)
    yield from unified_focal(monai_losses)
    yield from vessels(monai_losses)
    yield from boundary(monai_losses)


def region(monai_losses: Any) -> Traps:
    half = torch.zeros(1, 2, 64, 64, 64, dtype=torch.float16)
    labels = torch.zeros(1, 1, 64, 64, 64, dtype=torch.int64)
    labels[..., 32:] = 1
    for page, name in (("dice", "DiceLoss"), ("generalized_dice", "GeneralizedDiceLoss")):
        yield Trap(
            page,
            name,
            "Error: sums of half precision overflow above 65,504.",
            "float16 scores 0 (p = 0.5), 64x64x64 voxels, half of them class 1",
            getattr(monai_losses, name)(**READ)(half, labels),
            ours(f"Fused{name}", half, labels, **READ),
        )
    missed = sure(torch.zeros_like(labels), 2)
    yield Trap(
        "generalized_dice",
        "GeneralizedDiceLoss",
        "Error: the smoothing is added to sums weighted by 1/volume², and swamps them where objects are large.",
        "64x64x64 voxels, half of them class 1, all predicted as background",
        monai_losses.GeneralizedDiceLoss(**READ)(missed, labels),
        ours("FusedGeneralizedDiceLoss", missed, labels, **READ),
    )
    soft = row(0.5, 0.5, 0.5, 0.5)
    yield Trap(
        "dice",
        "DiceLoss(soft_label=False)",
        "Default: of soft labels a perfect prediction is not the least; `soft_label=True` repairs it, there and here.",
        "p = g = 0.5 in 4 voxels",
        monai_losses.DiceLoss()(soft, soft),
        ours("FusedDiceLoss", soft, soft, soft_label=True),
    )


def ignored(monai_losses: Any) -> Traps:
    target, score, mask = row(1, 0, 0, 0), row(20, -20, -20, -20), row(1, 1, 0, 0)
    yield Trap(
        "dice",
        "MaskedLoss(DiceLoss, sigmoid=True)",
        "Meaning: the mask multiplies the scores, so that with an activation a masked voxel has p = 0.5.",
        "4 voxels, all right, 2 of them masked",
        monai_losses.MaskedLoss(monai_losses.DiceLoss, sigmoid=True)(score, target, mask),
        losses.FusedDiceLoss(sigmoid=True)(score.double(), target, mask),
    )
    labels = torch.cat([block(4, (slice(0, 2), slice(0, 4))), torch.full((1, 1, 4, 4), 255)])
    wrong = sure(torch.zeros_like(labels), 2)
    options = {**READ, "ignore_index": 255, "include_background": False}
    for page, name in (("dice", "DiceLoss"), ("tversky", "TverskyLoss")):
        yield Trap(
            page,
            f"{name}(ignore_index=255)",
            "Error: a sample in which everything is ignored enters the mean as perfect.",
            "2 samples of 4x4 voxels: class 1 missed; all ignored",
            getattr(monai_losses, name)(**options)(wrong, labels),
            ours(f"Fused{name}", wrong, labels, **options),
        )
    labels = row(0, 1, 2, 255, 255, 255).long()
    scores = torch.zeros(1, 3, 1, 6)
    options = {"to_onehot_y": True, "use_softmax": True, "ignore_index": 255}
    yield Trap(
        "focal",
        "FocalLoss(ignore_index=255)",
        "Error: with an ignored label the mean is over voxels, without one over voxels and channels: C times as much.",
        "3 classes, scores 0, 3 voxels that count and 3 ignored",
        monai_losses.FocalLoss(**options)(scores, labels),
        ours("FusedFocalLoss", scores, labels, **options),
    )


def focal(monai_losses: Any) -> Traps:
    labels = row(0, 1, 2, 1).long()
    scores = torch.zeros(1, 3, 1, 4)
    scores[:, 0] = 3.0
    options = {"to_onehot_y": True, "use_softmax": True, "include_background": False}
    yield Trap(
        "focal",
        "FocalLoss(use_softmax=True, include_background=False)",
        "Error: the background leaves the softmax, too, so that foreground that is taken for background costs little.",
        "3 classes, labels 0, 1, 2, 1, the background's score 3 and the others' 0",
        monai_losses.FocalLoss(**options)(scores, labels),
        ours("FusedFocalLoss", scores, labels, **options),
    )
    one, target = row(0.0, 0.0), row(0.0, 1.0)
    yield Trap(
        "focal",
        "FocalLoss(use_softmax=True)",
        "Error: of one channel the softmax is 1, and the loss 0 whatever is predicted.",
        "1 channel, scores 0, labels 0 and 1",
        monai_losses.FocalLoss(use_softmax=True)(one, target),
        ours("FusedFocalLoss", one, target),
    )
    scores, labels = torch.zeros(1, 4, 1, 4), row(0, 1, 2, 3).long()
    yield Trap(
        "focal",
        "FocalLoss(use_softmax=True, gamma=0)",
        "Meaning: the mean is over voxels and channels, 1/C of the mean over voxels; kept here under that name.",
        "4 classes, scores 0: the cross-entropy is ln 4",
        monai_losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=0.0)(scores, labels),
        ours("CrossEntropyLoss", scores, labels, **READ),
    )


def compound(monai_losses: Any) -> Traps:
    regions = torch.cat([row(1, 1, 0, 0), row(1, 0, 0, 0)], 1)
    scores = torch.zeros(1, 2, 1, 4)
    yield Trap(
        "dice_ce",
        "DiceCELoss(sigmoid=True)",
        "Meaning: with several channels the cross-entropy is that of a softmax over them, though they may overlap.",
        "2 overlapping regions of 2 and 1 of 4 voxels, scores 0; the binary cross-entropy is ln 2",
        monai_losses.DiceCELoss(sigmoid=True, lambda_dice=0.0)(scores, regions),
        ours("FusedDiceCELoss", scores, regions, sigmoid=True, lambda_dice=0.0),
    )
    labels = row(0, 1, 2, 1).long()
    scores = torch.zeros(1, 3, 1, 4)
    yield Trap(
        "dice_focal",
        "DiceFocalLoss(softmax=True)",
        "Meaning: the activation is that of the Dice part alone, the focal part is one of sigmoids.",
        "3 classes, scores 0; the focal part alone",
        monai_losses.DiceFocalLoss(**READ, lambda_dice=0.0)(scores, labels),
        ours("FusedDiceFocalLoss", scores, labels, **READ, lambda_dice=0.0),
    )


def unified_focal(monai_losses: Any) -> Traps:
    name = "AsymmetricUnifiedFocalLoss"
    labels = row(0, 1, 1, 0).long()
    scores = torch.cat([row(2, -1, 0, 1), row(-2, 1, 0, -1)], 1)
    options = {"asymmetric": True, "delta": 0.7, **READ}
    right = ours("UnifiedFocalLoss", scores, labels, **options)
    yield Trap(
        "unified_focal",
        name,
        "Error: takes probabilities, where its words say that scores go through a sigmoid.",
        "2 classes, scores of class 0 2, -1, 0, 1 and of class 1 the negative, labels 0, 1, 1, 0",
        getattr(monai_losses, name)(to_onehot_y=True)(scores, labels),
        right,
    )
    p = scores.softmax(1)
    yield Trap(
        "unified_focal",
        f"{name}(weight=1)",
        "Error: the focal part is a mean over both classes, in the authors' code a sum: it has half its weight.",
        "the same, its softmax given; the focal part alone",
        getattr(monai_losses, name)(to_onehot_y=True, weight=1.0)(p, labels),
        ours("UnifiedFocalLoss", scores, labels, weight_focal=1.0, **options),
    )
    yield Trap(
        "unified_focal",
        f"{name}(reduction='sum')",
        "Error: `reduction` has no effect, the sum is the mean.",
        "the same, its softmax given",
        getattr(monai_losses, name)(to_onehot_y=True, reduction="sum")(p, labels),
        ours("UnifiedFocalLoss", scores, labels, reduction="sum", **options),
    )
    labels = row(0, 1, 2, 2).long()
    scores = sure(row(0, 1, 0, 0).long(), 3) / 5
    yield Trap(
        "unified_focal",
        f"{name}(num_classes=3)",
        "Error: reads classes 0 and 1 alone.",
        "3 classes, labels 0, 1, 2, 2, predicted as 0, 1, 0, 0 with scores 4 and 0; their softmax given",
        getattr(monai_losses, name)(to_onehot_y=True, num_classes=3)(scores.softmax(1), labels),
        ours("UnifiedFocalLoss", scores, labels, **options),
    )


def vessels(monai_losses: Any) -> Traps:
    labels = block(32, (slice(4, 9), slice(2, 30)), (slice(20, 21), slice(10, 18)))
    missed = one_hot(labels * (labels == 1), 3)
    options = {"to_onehot_y": True, "include_background": False}
    yield Trap(
        "centerline_dice",
        "SoftclDiceLoss(include_background=False)",
        "Meaning: the sums are over all classes jointly, so that the largest decides.",
        "class 1 of 5x28 voxels found, class 2, a line of 8, missed",
        monai_losses.SoftclDiceLoss(**options, smooth_nr=1e-5, smooth_dr=1e-5)(missed, labels),
        ours("CenterlineDiceLoss", missed, labels, **options, iterations=3),
    )
    line = block(16, (slice(8, 9), slice(4, 9))).float()
    yield Trap(
        "centerline_dice",
        "SoftclDiceLoss(smooth_nr=1, smooth_dr=1)",
        "Default: both ratios are smoothed with 1, with which a missed short vessel costs little.",
        "one channel, a line of 5 voxels of which none is found",
        monai_losses.SoftclDiceLoss()(torch.zeros_like(line), line),
        ours("CenterlineDiceLoss", torch.zeros_like(line), line, iterations=3),
    )


def boundary(monai_losses: Any) -> Traps:
    target = block(16, (slice(4, 12), slice(4, 12))).float()
    far = target.clone()
    far[..., 14, 4:12] = 1
    spacing = (5.0, 1.0)
    for page, name, its in (
        ("surface", "BoundaryLoss", "SurfaceLoss"),
        ("hausdorff", "HausdorffDTLoss", "HausdorffLoss"),
        ("log_hausdorff", "LogHausdorffDTLoss", "LogHausdorffLoss"),
    ):
        yield Trap(
            page,
            name,
            "Meaning: distances are in voxels, though a MetaTensor knows its spacing: short across thick slices.",
            "8x8 of 16x16 voxels of 5 x 1 mm, predicted with 8 voxels more, 3 rows (15 mm) below",
            getattr(monai_losses, name)(include_background=True)(far, target),
            ours(its, far, target, include_background=True, spacing=spacing),
        )
