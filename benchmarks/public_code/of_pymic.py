"""PyMIC's losses."""

from types import ModuleType

import torch

from monai_extra_losses import losses
from public_code.trap import Trap, Traps, one_hot, ours, row, sure


def given(prediction: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"prediction": prediction, "ground_truth": target}


def traps(module: ModuleType) -> Traps:
    """All of them."""
    p, g = row(0.8, 0.3), row(1.0, 0.0)
    loss = module.NoiseRobustDiceLoss({"noiserobustdiceloss_gamma": 1.5, "loss_acti_func": "sigmoid"})
    yield Trap(
        "noise_robust_dice",
        "NoiseRobustDiceLoss",
        "Error: no squares below the bar, against the paper.",
        "p = 0.8, 0.3 and g = 1, 0",
        loss(given(p.logit(), g)),
        ours("NoiseRobustDiceLoss", p, g),
    )
    saturated, first = torch.cat([row(200.0), row(0.0)], 1), torch.cat([row(1.0), row(0.0)], 1)
    yield Trap(
        "cross_entropy",
        "CrossEntropyLoss",
        "Error: the logarithm of a softmax that has rounded to 0 is taken, and 0 times -inf is NaN.",
        "2 classes, scores 200 (true) and 0",
        module.CrossEntropyLoss()(given(saturated, first)),
        ours("CrossEntropyLoss", saturated, first, softmax=True),
    )
    wrong = torch.cat([row(0.0), row(200.0)], 1).requires_grad_()
    module.GeneralizedCELoss({"loss_gce_q": 0.7})(given(wrong, first)).backward()
    assert wrong.grad is not None
    right = wrong.detach().double().requires_grad_()
    losses.GeneralizedCrossEntropyLoss(softmax=True)(right, first).backward()
    assert right.grad is not None
    yield Trap(
        "generalized_cross_entropy",
        "GeneralizedCELoss, gradient",
        "Error: the power of a softmax that has rounded to 0 has no finite gradient.",
        "2 classes, scores 0 (true) and 200; the gradient of the first score",
        wrong.grad[0, 0, 0, 0],
        right.grad[0, 0, 0, 0],
    )
    half = torch.zeros(1, 2, 1, 1)
    yield Trap(
        "generalized_cross_entropy",
        "GeneralizedCELoss({})",
        "Default: q = 0.5, in the paper 0.7.",
        "2 classes, scores 0",
        module.GeneralizedCELoss({})(given(half, first)),
        ours("GeneralizedCrossEntropyLoss", half, first, softmax=True),
    )
    one = row(-20.0, -20.0, -20.0, -20.0)
    target = row(1, 1, 1, 1)
    yield Trap(
        "dice",
        "DiceLoss()",
        "Default: applies a softmax, of one channel too, where it is 1 whatever is predicted.",
        "1 channel, 4 voxels of the object with score -20",
        module.DiceLoss()(given(one, target)),
        ours("FusedDiceLoss", one, target, sigmoid=True),
    )
    labels = row(*[0] * 99, 1).long()
    missed, truth = sure(torch.zeros_like(labels), 2) / 5, one_hot(labels, 2)
    loss = module.ExpLogLoss({"explogloss_w_dice": 0.0, "explogloss_gamma": 0.3})
    yield Trap(
        "exponential_logarithmic",
        "ExpLogLoss, its cross-entropy",
        "Error: a class weighs (f + 0.1)^(-1/2), in the paper f^(-1/2), so that no class weighs more than 3.2 times.",
        "an object of 1 of 100 voxels missed with scores 4 and 0",
        loss(given(missed, truth)),
        ours("ExponentialLogarithmicLoss", missed, truth, softmax=True, weight_dice=0.0, weight_cross_entropy=1.0),
    )
