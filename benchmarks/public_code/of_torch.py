"""PyTorch's own losses."""

from typing import Any

import torch

from public_code.trap import Trap, Traps, ours, row

READ = {"to_onehot_y": True, "softmax": True}


def traps(nn: Any) -> Traps:
    """All of them."""
    scores, ignored = torch.zeros(1, 2, 1, 4), row(255, 255, 255, 255).long()
    yield Trap(
        "cross_entropy",
        "CrossEntropyLoss(ignore_index=255)",
        "Default: where every voxel is ignored the mean is 0 / 0, and one such patch makes all weights NaN.",
        "2 classes, 4 voxels, all ignored",
        nn.CrossEntropyLoss(ignore_index=255)(scores, ignored[:, 0]),
        ours("CrossEntropyLoss", scores, ignored, ignore_index=255, **READ),
    )
    soft = torch.cat([row(1.0, 0.0), row(0.0, 1.0)], 1)
    scores, weight = torch.zeros(1, 2, 1, 2), torch.tensor([0.1, 10.0])
    yield Trap(
        "cross_entropy",
        "CrossEntropyLoss(weight=[0.1, 10])",
        "Meaning: class weights are normalised for labels, and not for probabilities as target.",
        "2 classes, scores 0 (ln 2 in each voxel), target (1, 0) and (0, 1) as probabilities",
        nn.CrossEntropyLoss(weight=weight)(scores, soft),
        ours("CrossEntropyLoss", scores, soft, softmax=True, weight=weight),
    )
    p, g = torch.cat([row(0.5), row(0.5)], 1), torch.cat([row(1.0), row(0.0)], 1)
    yield Trap(
        "kl_divergence",
        "KLDivLoss()",
        "Default: reads the logarithm of probabilities, and its mean is over all elements, 1/C of the divergence.",
        "2 classes, p = (0.5, 0.5), g = (1, 0), the logarithm given",
        nn.KLDivLoss()(p.log(), g),
        ours("KLDivergenceLoss", p, g),
    )
    rate, count = row(2.0), row(2.0)
    yield Trap(
        "poisson",
        "PoissonNLLLoss()",
        "Default: `log_input=True`: the input is the logarithm of the rate.",
        "rate 2, count 2",
        nn.PoissonNLLLoss()(rate, count),
        ours("PoissonLoss", rate, count),
    )
