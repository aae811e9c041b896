"""Print what we say of other libraries' losses and components, from those libraries as they are installed.

A library that is missing is named and left out: pip install kornia keras PYMIC.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_extra_losses import losses

os.environ.setdefault("KERAS_BACKEND", "torch")
Remarks = Iterator[tuple[str, object]]


def monai_unified_focal(monai_losses: Any) -> Remarks:
    torch.manual_seed(0)
    p, labels = torch.rand(2, 3, 4, 4), torch.randint(0, 3, (2, 1, 4, 4))
    p = p / p.sum(1, keepdim=True)

    def loss(x: Tensor, **options: Any) -> Tensor:
        return monai_losses.AsymmetricUnifiedFocalLoss(num_classes=3, to_onehot_y=True, **options)(x, labels)

    yield "AsymmetricUnifiedFocalLoss of scores -5 to 5, which it takes as probabilities", loss(10 * p - 5)
    yield "shapes of reduction='none' and 'sum'", [tuple(loss(p, reduction=r).shape) for r in ("none", "sum")]
    third = p.clone()
    third[:, 2] = 0.123
    yield "change with another third class", (loss(third) - loss(p)).abs()


def keras_losses(keras: Any) -> Remarks:
    scores, true_first = torch.tensor([[-5.0, -9.0, -9.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    ours = losses.CategoricalHingeLoss()(scores.unsqueeze(-1), true_first.unsqueeze(-1))
    yield "CategoricalHinge of scores -5 (true), -9, -9", keras.losses.CategoricalHinge()(true_first, scores)
    yield "ours", ours
    yield "CosineSimilarity of a perfect prediction", keras.losses.CosineSimilarity()(true_first, true_first)
    x, y = torch.rand(2, 3, 4, 5) + 0.5, torch.rand(2, 3, 4, 5) + 0.5
    for name in ("MeanSquaredLogarithmicError", "MeanAbsolutePercentageError", "LogCosh"):
        ours = getattr(losses, f"{name}Loss")()(x, y)
        yield f"{name}, less ours", (getattr(keras.losses, name)()(y, x) - ours).abs()


def kornia_erosion(kornia_losses: Any) -> Remarks:
    labels = torch.zeros(1, 1, 16, 16, dtype=torch.int64)
    labels[..., 3:10, 4:12] = 1
    p = torch.cat([1.0 - labels, 1.0 * labels], 1).roll(4, 3) * 0.9 + 0.05
    theirs = kornia_losses.HausdorffERLoss()(p, labels)
    yield "HausdorffERLoss, less ours", (theirs - losses.HausdorffERLoss(to_onehot_y=True)(p, labels)).abs()


def pymic_noise_robust(dice: Any) -> Remarks:
    p, g = torch.tensor([0.8, 0.3]).view(1, 1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    theirs = dice.NoiseRobustDiceLoss({"noiserobustdiceloss_gamma": 1.5, "loss_acti_func": "sigmoid"})
    theirs = theirs({"prediction": p.logit(), "ground_truth": g})
    errors = ((p - g).abs() ** 1.5).sum()
    yield "NoiseRobustDiceLoss of p = 0.8, 0.3 and g = 1, 0", theirs
    yield "errors / (sum p + sum g)", errors / (p.sum() + g.sum())
    yield "errors / (sum p^2 + sum g^2), ours", losses.NoiseRobustDiceLoss()(p, g)


# Module, the distribution that has it, and what is said of it.
def cc3d_of_bool(cc3d: Any) -> Remarks:
    random = np.random.default_rng(0)
    masks = [random.random((20, 21)) < random.random() / 2 for _ in range(300)]
    for kind in (np.bool_, np.uint8):
        wrong = sum(bool(((cc3d.connected_components(m.astype(kind), connectivity=8) > 0) != m).any()) for m in masks)
        yield f"of 300 random 2D masks as {kind.__name__}, those with a component in the background", wrong


REMARKS: list[tuple[str, str, Callable[[Any], Remarks]]] = [
    ("monai.losses", "monai", monai_unified_focal),
    ("keras", "keras", keras_losses),
    ("kornia.losses", "kornia", kornia_erosion),
    ("pymic.loss.seg.dice", "PYMIC", pymic_noise_robust),
    ("cc3d", "connected-components-3d", cc3d_of_bool),
]


def shown(value: object) -> str:
    return f"{value.item():.6g}" if isinstance(value, Tensor) else str(value)


def main() -> None:
    for module, distribution, remarks in REMARKS:
        try:
            library = importlib.import_module(module)
        except ImportError as error:
            print(f"{distribution}: left out: {error}")
            continue
        print(f"{distribution} {version(distribution)}")
        for what, value in remarks(library):
            print(f"  {what}: {shown(value)}")


if __name__ == "__main__":
    main()
