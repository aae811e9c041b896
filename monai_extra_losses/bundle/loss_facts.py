"""What can be said of a loss before it runs: how it reads scores, and what it is where all scores are equal."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import monai.losses
import torch
from torch import Tensor, nn

from monai_extra_losses.engines import AnnotatedVoxelLoss, LossWithMaps, StackedScoresLoss
from monai_extra_losses.losses import (
    CenterlineBoundaryDiceLoss,
    CenterlineDiceLoss,
    HeadLoss,
    LovaszLoss,
    PartialLabelLoss,
)
from monai_extra_losses.losses.base import RegionLoss, SegmentationLoss
from monai_extra_losses.losses.boundary import DistanceLoss
from monai_extra_losses.losses.weighted_sum import CompoundLoss


@dataclass(frozen=True)
class ScoreReading:
    """What a loss does to its input first.

    Args:
        activation: "softmax", "sigmoid" or "other_act"; None: nothing, it is given probabilities or raw scores.
        raw: it reads raw scores.
        softmax_option: its option for a softmax.
    """

    activation: str | None
    raw: bool
    softmax_option: str


def parts_of(loss: nn.Module, weight: float = 1.0) -> Iterator[tuple[float, nn.Module]]:
    """The losses that are added up, with their weights.

    Args:
        loss: as the trainer has it.
        weight: of all of it.
    """
    if isinstance(loss, LossWithMaps | AnnotatedVoxelLoss | StackedScoresLoss | HeadLoss | PartialLabelLoss):
        yield from parts_of(loss.loss, weight)
    elif isinstance(loss, CompoundLoss):
        for factor, part in zip(loss.weight_values, loss.losses.values(), strict=True):
            yield from parts_of(part, weight * factor)
    else:
        yield weight, loss


def score_reading(part: nn.Module) -> ScoreReading | None:
    """How a loss of this package or of MONAI reads its input; None for others.

    Args:
        part: no compound of any losses.
    """
    if isinstance(part, SegmentationLoss) and "softmax" in part.left_out and not hasattr(part, "use_softmax"):
        return ScoreReading(None, raw=True, softmax_option="softmax")
    owner = next((m for m in part.modules() if hasattr(m, "softmax") or hasattr(m, "use_softmax")), None)
    if owner is None:
        return None
    if hasattr(owner, "use_softmax"):  # the focal losses, which read raw scores always
        return ScoreReading("softmax" if owner.use_softmax else "sigmoid", raw=False, softmax_option="use_softmax")
    chosen = [name for name in ("softmax", "sigmoid") if getattr(owner, name, False)]
    if getattr(owner, "other_act", None) is not None:
        chosen.append("other_act")
    return ScoreReading(chosen[0] if chosen else None, raw=False, softmax_option="softmax")


def takes_labels(part: nn.Module) -> bool:
    """Whether a loss takes a map of labels as target; of other losses than this package's and MONAI's it is assumed.

    Args:
        part: no compound of any losses.
    """
    owner = next((module for module in part.modules() if hasattr(module, "to_onehot_y")), None)
    return owner is None or bool(owner.to_onehot_y)


def loss_name(loss: nn.Module) -> str:
    """The class of a loss; of one that is not of this package with its module."""
    cls = type(loss)
    return cls.__name__ if cls.__module__.startswith("monai_extra_losses.") else f"{cls.__module__}.{cls.__qualname__}"


def loss_options(loss: nn.Module) -> dict[str, Any]:
    """Class and options of a loss and of its parts, dotted name -> value as JSON gives it back.

    Args:
        loss: fresh; what it learns is no option.
    """
    options: dict[str, Any] = {}
    for path, module in loss.named_modules():
        prefix = f"{path}." if path else ""
        options[f"{prefix}class"] = type(module).__name__
        given = {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"}
        buffers = {name: buffer.tolist() for name, buffer in module.named_buffers(recurse=False)}
        for name, value in (given | buffers).items():
            if isinstance(value, dict):  # results, not options
                continue
            with contextlib.suppress(TypeError, ValueError):  # a function, say
                options[prefix + name] = json.loads(json.dumps(value))
    return options


def has_regions_alone(loss: nn.Module) -> bool:
    """Whether all of a loss are overlaps or distances, of this package or MONAI, without a cross-entropy beside them.

    The gradient of such a loss has the probability of a class as factor, that of a cross-entropy has not.

    Args:
        loss: as the trainer has it.
    """
    return all(isinstance(part, _REGIONS) for weight, part in parts_of(loss) if weight > 0)


_REGIONS = (
    RegionLoss,
    DistanceLoss,
    LovaszLoss,
    CenterlineBoundaryDiceLoss,
    CenterlineDiceLoss,
    monai.losses.DiceLoss,
    monai.losses.GeneralizedDiceLoss,
    monai.losses.TverskyLoss,
    monai.losses.HausdorffDTLoss,
)


def measures_distances(loss: nn.Module) -> bool:
    """Whether a loss measures distances in every step that it could be given.

    Args:
        loss: as the trainer has it.
    """
    parts = [part for _, part in parts_of(loss)]
    holder = loss
    while isinstance(holder, AnnotatedVoxelLoss | StackedScoresLoss):
        holder = holder.loss
    given = isinstance(holder, LossWithMaps) and "distance" in holder.maps
    return not given and any("distance" in signature(part.forward).parameters for part in parts)


def loss_of_equal_scores(loss: nn.Module, label: Tensor, channels: int) -> tuple[float, str] | None:
    """What a loss must be where all scores are equal, from its formula: the number, and how it comes about in words.

    Args:
        loss: as the trainer has it.
        label: (B, 1, *spatial) classes.
        channels: of the scores.

    Returns:
        None where no formula is known here.
    """
    parts = [(weight, _part_of_equal_scores(part, label, channels)) for weight, part in parts_of(loss)]
    return _sum_of(*parts)


# Compounds of two: factor and loss of each part.
_SUMS = {
    "DiceCELoss": (("lambda_dice", "dice"), ("lambda_ce", "cross_entropy")),
    "DiceFocalLoss": (("lambda_dice", "dice"), ("lambda_focal", "focal")),
    "DiceTopKLoss": (("lambda_dice", "dice"), ("lambda_topk", "topk")),
}


def _part_of_equal_scores(part: Any, label: Tensor, channels: int) -> tuple[float, str] | None:
    name = type(part).__name__.removeprefix("Fused").removeprefix("_")
    if getattr(part, "reduction", "mean") != "mean" or getattr(part, "ignore_index", None) not in (None, -100):
        return None  # -100 is torch's for none
    if name in _SUMS:
        terms = ((getattr(part, factor), getattr(part, term)) for factor, term in _SUMS[name])
        return _sum_of(*((factor, _part_of_equal_scores(term, label, channels)) for factor, term in terms))
    if isinstance(part, nn.CrossEntropyLoss):
        return math.log(channels), f"ln {channels}"
    reading = score_reading(part)
    if reading is None:
        return None
    if reading.raw:
        return (1.0, "1 - a margin of 0") if name in ("HingeLoss", "SquaredHingeLoss", "CategoricalHingeLoss") else None
    outcomes = {"softmax": channels, "sigmoid": 2}.get(reading.activation or "")
    if outcomes is None:
        return None
    if name in ("DiceLoss", "Dice"):
        return _dice_of_equal_scores(part, label, channels, 1 / outcomes)
    # The class weights of a plain cross-entropy are normalised.
    weighted = getattr(part, "class_weight", None) is not None and name != "CrossEntropyLoss"
    formula = _OF_VOXELS.get(name) or (_OF_VOXELS_UNDER_SOFTMAX.get(name) if reading.activation == "softmax" else None)
    return None if weighted or formula is None else formula(part, outcomes)


def _entropy(part: Any, outcomes: int) -> tuple[float, str]:
    return math.log(outcomes), f"ln {outcomes}"


def _focal(part: Any, outcomes: int) -> tuple[float, str] | None:
    if part.alpha is not None:
        return None
    over = outcomes if part.use_softmax else 1  # its mean is over the channels too
    value = (1 - 1 / outcomes) ** part.gamma * math.log(outcomes) / over
    return value, f"(1 - 1/{outcomes})^{part.gamma:g} ln {outcomes}" + (f"/{over}" if over > 1 else "")


def _poly(part: Any, outcomes: int) -> tuple[float, str]:
    value = math.log(outcomes) + part.epsilon * (1 - 1 / outcomes)
    return value, f"ln {outcomes} + {part.epsilon:g} (1 - 1/{outcomes})"


def _generalized_cross_entropy(part: Any, outcomes: int) -> tuple[float, str]:
    return (1 - outcomes**-part.q) / part.q, f"(1 - {outcomes}^-{part.q:g})/{part.q:g}"


# Loss -> what it is where each of so many outcomes has the same probability.
_OF_VOXELS: Mapping[str, Callable[[Any, int], tuple[float, str] | None]] = {
    "CrossEntropyLoss": _entropy,
    "ScoreCrossEntropy": _entropy,
    "FocalLoss": _focal,
}
_OF_VOXELS_UNDER_SOFTMAX: Mapping[str, Callable[[Any, int], tuple[float, str] | None]] = {
    "TopKLoss": _entropy,
    "PolyLoss": _poly,
    "GeneralizedCrossEntropyLoss": _generalized_cross_entropy,
}


def _sum_of(*parts: tuple[float, tuple[float, str] | None]) -> tuple[float, str] | None:
    total, words = 0.0, []
    for weight, known in parts:
        if known is None:
            return None
        total += weight * known[0]
        words.append(known[1] if weight == 1 else f"{weight:g} ({known[1]})")
    return total, " + ".join(words)


def _dice_of_equal_scores(part: Any, label: Tensor, channels: int, p: float) -> tuple[float, str] | None:
    if getattr(part, "jaccard", False) or part.class_weight is not None:
        return None
    counts = torch.stack([(label.long() == c).flatten(1).sum(1) for c in range(channels)], 1).double()
    voxels = counts.sum(1, keepdim=True).expand_as(counts)
    if part.batch:
        counts, voxels = counts.sum(0, keepdim=True), voxels.sum(0, keepdim=True)
    if not part.include_background:
        counts, voxels = counts[:, 1:], voxels[:, 1:]
    predicted = voxels * (p * p if getattr(part, "squared_pred", False) else p)
    dice = 1 - (2 * p * counts + part.smooth_nr) / (predicted + counts + part.smooth_dr)
    if getattr(part, "absent_class", "smooth") == "skip":
        dice = dice[counts > 0]
    mean = dice.mean().item() if dice.numel() else 0.0
    return mean, f"Dice {mean:.4g}"
