"""The scores of torchmetrics; the right value is one minus that of a loss, or the formula's."""

from typing import Any

import torch

from public_code.trap import Trap, Traps, one_hot, ours, row


def traps(segmentation: Any) -> Traps:
    """All of them."""
    labels = torch.cat([row(*[0] * 10), row(*[0] * 9, 1)]).long()
    predicted = torch.cat([row(*[0] * 5, *[1] * 5), row(*[0] * 9, 1)]).long()
    score = segmentation.GeneralizedDiceScore(2, input_format="index")
    alone = score(predicted[:1, 0], labels[:1, 0])
    score.reset()
    both = score(predicted[:, 0], labels[:, 0])
    yield Trap(
        "generalized_dice",
        "GeneralizedDiceScore(2)",
        "Error: a class that is absent from a sample gets the weight of another class, as the weights are transposed.",
        "2 samples of 10 voxels: 0 voxels of class 1 and 5 predicted; 1, found. Class 1 weighs 1, class 0 up to 1/81",
        both,
        (2 * 5 / 100 / ((10 + 5) / 100 + 5) + 1) / 2,
    )
    options = {"to_onehot_y": True, "smooth_nr": 0.0, "smooth_dr": 0.0}
    yield Trap(
        "generalized_dice",
        "GeneralizedDiceScore(2)",
        "Meaning: a class that is absent from the batch weighs nothing; here as much as the rarest that is present.",
        "1 sample of 10 voxels of background, 5 predicted as class 1",
        alone,
        1 - ours("FusedGeneralizedDiceLoss", one_hot(predicted[:1], 2), labels[:1], **options),
    )
    regions = torch.cat([row(1, 1, 0, 0), row(1, 0, 0, 0)], 1)
    found = torch.cat([row(1, 1, 0, 0), row(0, 0, 0, 0)], 1)
    yield Trap(
        "dice",
        "DiceScore(2)",
        "Meaning: floats go through an argmax: overlapping regions lose all but one, and empty voxels are the first.",
        "2 overlapping regions as float, one found, one missed",
        segmentation.DiceScore(2)(found, regions),
        1 - ours("FusedDiceLoss", found, regions),
    )
    labels = row(0, 0, 1, 1).long()
    per_class = segmentation.MeanIoU(3, per_class=True, input_format="index")(labels[:, 0], labels[:, 0])
    yield Trap(
        "jaccard",
        "MeanIoU(3, per_class=True), its mean",
        "Meaning: a class that is absent and not predicted has the value -1, which a mean over classes takes in.",
        "3 classes, of which 0 and 1 are there, all right",
        per_class.mean(),
        1 - ours("JaccardLoss", one_hot(labels, 3), labels, to_onehot_y=True),
    )
