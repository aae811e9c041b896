"""nnU-Net's losses."""

from types import ModuleType

import torch

from monai_extra_losses import losses
from public_code.trap import Trap, Traps, ours, row, sure

READ = {"to_onehot_y": True, "softmax": True}


def softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(1)


def traps(module: ModuleType) -> Traps:
    """All of them."""
    yield from dice(module)
    yield from top_k(module)
    scores, ignored = torch.zeros(1, 3, 1, 4), row(0, 0, 1, 1)
    regions = torch.cat([row(1, 0, 0, 0), row(0, 1, 0, 0), row(0, 0, 0, 0)], 1)
    loss = module.DC_and_BCE_loss({}, {"ddp": False}, weight_dice=0, use_ignore_label=True)
    yield Trap(
        "dice_ce",
        "DC_and_BCE_loss(use_ignore_label=True)",
        "Error: with an ignore label the cross-entropy is summed over the regions, without one it is their mean.",
        "3 regions, scores 0 (ln 2), 2 of 4 voxels ignored; the cross-entropy alone",
        loss(scores, torch.cat([regions, ignored], 1)),
        losses.CrossEntropyLoss(sigmoid=True)(scores.double(), regions, 1 - ignored),
    )


def dice(module: ModuleType) -> Traps:
    labels = row(0, 0, 0, 0, 0, 1, 0, 0).long()
    missed = sure(torch.zeros_like(labels), 2)
    plain = {"do_bg": False, "ddp": False}
    yield Trap(
        "dice",
        "MemoryEfficientSoftDiceLoss(do_bg=False)",
        "Default: smooths with 1 (its trainers say 1e-5), which halves the loss of a missed lesion of one voxel.",
        "a lesion of 1 of 8 voxels missed; 1 added",
        1 + module.MemoryEfficientSoftDiceLoss(softmax, **plain)(missed, labels),
        ours("FusedDiceLoss", missed, labels, include_background=False, **READ),
    )
    yield Trap(
        "dice",
        "MemoryEfficientSoftDiceLoss(do_bg=False, smooth=1e-5)",
        "Meaning: the negative of Dice: a perfect prediction gives -1.",
        "a lesion of 1 of 8 voxels found",
        module.MemoryEfficientSoftDiceLoss(softmax, smooth=1e-5, **plain)(sure(labels, 2), labels),
        ours("FusedDiceLoss", sure(labels, 2), labels, include_background=False, **READ),
    )
    both = torch.cat([labels, torch.full_like(labels, 255)])
    wrong = missed.expand(2, -1, -1, -1)
    kept = (both != 255).float()
    yield Trap(
        "dice",
        "MemoryEfficientSoftDiceLoss(do_bg=False, smooth=1e-5), with a mask",
        "Meaning: a sample in which everything is ignored enters the mean as perfect.",
        "2 samples: a lesion missed; all ignored; 1 added",
        1 + module.MemoryEfficientSoftDiceLoss(softmax, smooth=1e-5, **plain)(wrong, both * (both != 255), kept),
        ours("FusedDiceLoss", wrong, both, include_background=False, ignore_index=255, **READ),
    )


def top_k(module: ModuleType) -> Traps:
    labels = row(0, 0, 0, 0, 1).long()
    scores = torch.zeros(1, 2, 1, 5)
    yield Trap(
        "top_k",
        "TopKLoss(k=10)",
        "Error: where k % of the voxels round to none the mean is that of nothing.",
        "2 classes, scores 0 (ln 2), 5 voxels",
        module.TopKLoss(k=10)(scores, labels),
        ours("TopKLoss", scores, labels, k=10, **READ),
    )
    labels = torch.cat([torch.zeros(20), torch.full((180,), 255.0)]).long().view(1, 1, 1, -1)
    scores = sure(torch.zeros_like(labels), 2) / 20
    scores[..., :2] = -scores[..., :2]
    for page, name in (("top_k", "TopKLoss(k=10, ignore_index=255)"), ("dice_top_k", "DC_and_topk_loss, its TopKLoss")):
        yield Trap(
            page,
            name,
            "Meaning: takes k % of all voxels, the ignored among them, which cost 0: with 90 % ignored it is no top-k.",
            "200 voxels, 180 ignored; of the others 2 have the score -1, 18 the score 1 for their class",
            module.TopKLoss(k=10, ignore_index=255)(scores, labels),
            ours("TopKLoss", scores, labels, k=10, ignore_index=255, **READ),
        )
