"""Pictures of losses of regions: value over overlap, and the push on a voxel over the volume of its object."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from loss_pictures.calls import Array, logit, value_and_push
from loss_pictures.sheet import Sheet
from monai_extra_losses import losses

SIDE = 32  # of the volume, in voxels
VOXELS = SIDE**3
INSIDE, OUTSIDE = 0.3, 0.001  # p of a network that has begun to see the object
VOLUMES = np.unique(np.geomspace(1, VOXELS - 1, 30).round().astype(int))
DICE, ENTROPY = "Dice", "cross-entropy"
DOTS = {"linestyle": (0, (1, 1.5))}


@dataclass(frozen=True)
class Region:
    """What the picture of a region loss shows.

    Args:
        title: one sentence that says what to see.
        alt: one sentence that describes the picture.
        losses: label -> loss of scores with a sigmoid; the first is the default.
        over: what the left panel runs over, a function of a loss that gives x and y.
        where: the name of x.
        panel: the title of the left panel.
    """

    title: str
    alt: str
    losses: Mapping[str, nn.Module]
    over: Callable[[nn.Module], tuple[Array, Array]]
    where: str
    panel: str


def over_size(loss: nn.Module) -> tuple[Array, Array]:
    """The loss of a prediction that is too small, or too large, over its volume relative to the object's."""
    voxels, volume = 1000, 100
    target = (torch.arange(voxels) < volume).double().view(1, 1, -1)
    ratios = np.linspace(0, 3, 61)
    predicted = ((torch.arange(voxels) < round(ratio * volume)).double().view(1, 1, -1) for ratio in ratios)
    return ratios, np.array([value_and_push(loss, 100 * p - 50, target)[0] for p in predicted])


def over_p(loss: nn.Module) -> tuple[Array, Array]:
    """The loss of an object whose voxels all have the same p, with nothing predicted around it."""
    target = (torch.arange(1000) < 100).double().view(1, 1, -1)
    p = np.linspace(0.005, 0.995, 67)
    scores = (torch.where(target > 0, logit(each), -50) for each in p)
    return p, np.array([value_and_push(loss, score, target)[0] for score in scores])


def push_over_volume(loss: nn.Module) -> Array:
    """The push on the score of one voxel of an object, for each of `VOLUMES`."""
    pushes = []
    for volume in VOLUMES:
        target = (torch.arange(VOXELS) < volume).double().view(1, 1, -1)
        scores = torch.where(target > 0, logit(INSIDE), logit(OUTSIDE))
        pushes.append(value_and_push(loss, scores, target)[1].flat[0])
    return np.array(pushes)


def region(picture: Region) -> Sheet:
    """The picture of a region loss."""
    sheet = Sheet(picture.title, picture.alt)
    for number, (label, loss) in enumerate(picture.losses.items()):
        sheet.curve(0, *picture.over(loss), label, number)
        sheet.curve(1, VOLUMES, push_over_volume(loss), label, number)
    compare(sheet, picture.over, dice="FusedDiceLoss" not in {type(loss).__name__ for loss in picture.losses.values()})
    sheet.labelled(0, picture.panel, picture.where, "loss").set_ylim(bottom=0)
    name_volumes(sheet, 1)
    return sheet


def compare(sheet: Sheet, over: Callable[[nn.Module], tuple[Array, Array]], *, dice: bool = True) -> None:
    """Add Dice in both panels, and cross-entropy in the right one, in grey."""
    if dice:
        sheet.curve(0, *over(losses.FusedDiceLoss(sigmoid=True)), DICE, None)
        sheet.curve(1, VOLUMES, _known_push(DICE), DICE, None)
    sheet.curve(1, VOLUMES, _known_push(ENTROPY), ENTROPY, None, **DOTS)


@cache
def _known_push(name: str) -> Array:
    return push_over_volume({DICE: losses.FusedDiceLoss, ENTROPY: losses.CrossEntropyLoss}[name](sigmoid=True))


def name_volumes(sheet: Sheet, panel: int) -> None:
    """The axes of a push over a volume."""
    axes = sheet.labelled(
        panel, f"gradient, p = {INSIDE} in the object", f"voxels of the object, of {VOXELS:,}", "push on one voxel"
    )
    axes.set(xscale="log", yscale="log")


SIZE = {
    "over": over_size,
    "where": "predicted volume / true volume",
    "panel": "object found in part, or too much",
}
OVER_P = {"over": over_p, "where": "p in the whole object", "panel": "object found by p, nothing around it"}
REGIONS = {
    "dice": Region(
        "Dice pulls a voxel of a small object harder than one of a large object",
        "Left, Dice falls from 1 to 0 as the object is found, and rises slower when too much is predicted; right, its "
        "push on one voxel is largest and level for small objects, and falls as 1/volume for large ones, where "
        "cross-entropy pushes all alike.",
        {
            "default": losses.FusedDiceLoss(sigmoid=True),
            "squared_pred=True": losses.FusedDiceLoss(sigmoid=True, squared_pred=True),
            "smooth_nr=smooth_dr=100": losses.FusedDiceLoss(sigmoid=True, smooth_nr=100, smooth_dr=100),
        },
        **SIZE,
    ),
    "jaccard": Region(
        "Jaccard lies above Dice: an error near a good result costs more, one near a bad result less",
        "Left, the Jaccard loss falls from 1 to 0 along a straight line as the object is found, and lies above Dice "
        "where too much is predicted; right, its push on one voxel over the volume has the form of Dice's.",
        {"Jaccard": losses.JaccardLoss(sigmoid=True)},
        **SIZE,
    ),
    "tversky": Region(
        "beta above alpha: a voxel that is missed costs more than one too many",
        "Left, with alpha 0.3 and beta 0.7 the loss of a prediction that is too small lies above Dice, of one that is "
        "too large below, and with 0.7 and 0.3 the reverse; right, the pushes on one voxel over the volume.",
        {
            "alpha=0.3, beta=0.7": losses.FusedTverskyLoss(alpha=0.3, beta=0.7, sigmoid=True),
            "alpha=0.7, beta=0.3": losses.FusedTverskyLoss(alpha=0.7, beta=0.3, sigmoid=True),
        },
        **SIZE,
    ),
    "focal_tversky": Region(
        "gamma above 1 makes the loss steep near a good result: an object that is nearly right still counts",
        "Left, with gamma 4/3 and 3 the loss falls steeply to 0 at the right volume, ever steeper with gamma, and with "
        "gamma 0.5 it is flat there; right, the pushes on one voxel over the volume of its object.",
        {
            "gamma=4/3 (default)": losses.FocalTverskyLoss(sigmoid=True),
            "gamma=3": losses.FocalTverskyLoss(gamma=3, sigmoid=True),
            "gamma=0.5": losses.FocalTverskyLoss(gamma=0.5, sigmoid=True),
        },
        **SIZE,
    ),
    "log_cosh_dice": Region(
        "Flat near a good result: an object that is nearly right hardly counts any more",
        "Left, log-cosh Dice is round at the right volume, where Dice has a corner, and lies below it everywhere; "
        "right, its push on one voxel over the volume lies somewhat below Dice's.",
        {"log-cosh Dice": losses.LogCoshDiceLoss(sigmoid=True)},
        **SIZE,
    ),
    "sensitivity_specificity": Region(
        "The default counts the mean error outside 19 times that inside; a larger weight turns that",
        "Left, over the predicted volume: with the weight 0.05 a missed object costs 0.05 and false positives soon "
        "more, with 0.5 it is the reverse; right, the push on one voxel falls as 1/volume throughout.",
        {
            "sensitivity_weight=0.05 (default)": losses.SensitivitySpecificityLoss(sigmoid=True),
            "sensitivity_weight=0.5": losses.SensitivitySpecificityLoss(0.5, sigmoid=True),
        },
        **SIZE,
    ),
    "noise_robust_dice": Region(
        "With gamma 2 large errors count most; towards 1 every error counts by its size",
        "Left, over p of an object: with gamma 1 the loss is 1 - p over 1 + p squared, with gamma 2 it is the squared "
        "Dice, flat near p = 1, and 1.5 lies between; right, the pushes on one voxel over the volume.",
        {
            "gamma=1.5 (default)": losses.NoiseRobustDiceLoss(sigmoid=True),
            "gamma=1": losses.NoiseRobustDiceLoss(gamma=1, sigmoid=True),
            "gamma=2": losses.NoiseRobustDiceLoss(gamma=2, sigmoid=True),
        },
        **OVER_P,
    ),
}


def generalized_dice() -> Sheet:
    """Generalized Dice of a large and a small class."""
    sheet = Sheet(
        "Weights of 1/volume squared: beside a small class the large one has no say",
        "Left, the loss over p of a large class beside a small one that is perfect: near 0 throughout with square "
        "weights, 0.5 at p = 0 for the mean of two Dices and for uniform weights nearly 1; right, the push on one "
        "voxel of a class over its volume, beside a class of 1,000 voxels.",
    )
    large, small, p = 1000, 10, np.linspace(0.005, 0.995, 67)
    known: dict[str, nn.Module] = {
        f'w_type="{kind}"{" (default)" * (kind == "square")}': losses.FusedGeneralizedDiceLoss(
            w_type=kind, sigmoid=True
        )
        for kind in ("square", "simple", "uniform")
    }
    for number, (label, loss) in enumerate({**known, DICE: losses.FusedDiceLoss(sigmoid=True)}.items()):
        line = None if label == DICE else number
        sheet.curve(0, p, [_of_two(loss, large, small, each, 1 - 1e-9, 1e-9)[0] for each in p], label, line)
        pushes = [_of_two(loss, volume, 1000, INSIDE, INSIDE, OUTSIDE)[1] for volume in VOLUMES]
        sheet.curve(1, VOLUMES, pushes, label, line)
    sheet.labelled(0, "a class of 10 voxels is perfect", "p in a class of 1,000 voxels", "loss").set_ylim(bottom=0)
    name_volumes(sheet, 1)
    sheet.axes[1].set_xlabel("voxels of a class, the other 1,000")
    return sheet


def _of_two(loss: nn.Module, first: int, second: int, p: float, q: float, rest: float) -> tuple[float, float]:
    """The loss of two classes of so many voxels, with p and q in them; and the push on a voxel of the first."""
    places = torch.arange(VOXELS)
    target = torch.stack([places < first, places >= VOXELS - second]).double().unsqueeze(0)
    scores = torch.where(target > 0, torch.stack([logit(p), logit(q)]).view(1, 2, 1), logit(rest))
    value, push = value_and_push(loss, scores, target)
    return value, push[0, 0, 0]


def two_class_dice() -> Sheet:
    """Two-class Dice of objects that fill nearly the whole volume."""
    sheet = Sheet(
        "Half of it is the Dice of the rest: where an object fills nearly everything, the rest still counts",
        "Left, a missed object of a tenth of the volume costs about half of what it costs with Dice, because the "
        "rest is right; right, the push on a voxel outside the object rises steeply where the object fills nearly "
        "the whole volume, while that of Dice falls.",
    )
    shares = np.array([0.001, 0.003, 0.01, 0.03, *np.arange(0.05, 0.96, 0.05), 0.97, 0.99, 0.997, 0.999])
    shown = {
        "two-class Dice": losses.TwoClassDiceLoss(sigmoid=True),
        DICE: losses.FusedDiceLoss(sigmoid=True),
        ENTROPY: losses.CrossEntropyLoss(sigmoid=True),
    }
    for label, loss in shown.items():
        line, style = (0 if label == "two-class Dice" else None), (DOTS if label == ENTROPY else {})
        if label != ENTROPY:
            sheet.curve(0, *over_size(loss), label, line)
        pushes = []
        for share in shares:
            target = (torch.arange(VOXELS) < round(share * VOXELS)).double().view(1, 1, -1)
            scores = torch.where(target > 0, logit(0.9), logit(0.1))
            pushes.append(-value_and_push(loss, scores, target)[1].flat[-1])
        sheet.curve(1, shares, pushes, label, line, **style)
    sheet.labelled(0, "object found in part, or too much", "predicted volume / true volume", "loss").set_ylim(bottom=0)
    sheet.labelled(1, "gradient outside, p = 0.1", "share of the object", "push down on one voxel").set_yscale("log")
    return sheet


def boundary_dou() -> Sheet:
    """Boundary DoU of a small and a large disc."""
    sheet = Sheet(
        "The larger an object, the more its boundary counts: a shift that Dice hardly sees costs more",
        "Left, the loss over the shift of a disc of radius 4 and one of radius 24: boundary DoU lies above Dice for "
        "both, and far above it for the large one; right, the push on a voxel in the middle over the area of the "
        "disc.",
    )
    shifts = np.arange(0, 11)
    shown = {"boundary DoU": losses.BoundaryDoULoss(sigmoid=True), DICE: losses.FusedDiceLoss(sigmoid=True)}
    for name, loss in shown.items():
        line = None if name == DICE else 0
        for radius, style in ((24, {}), (4, {"linestyle": (0, (3, 1.5))})):
            target = _disc(radius)
            values = [value_and_push(loss, 100 * target.roll(int(shift), 3) - 50, target)[0] for shift in shifts]
            sheet.curve(0, shifts, values, name if radius == 24 else f"{name}, radius {radius}", line, **style)
        radii = np.array([*np.arange(0.5, 4, 0.5), *range(4, 31, 2)])
        discs = [_disc(radius) for radius in radii]
        pushes = [_push_inside(loss, disc) for disc in discs]
        sheet.curve(1, [float(disc.sum()) for disc in discs], pushes, name, line)
    sheet.labelled(0, "a disc of radius 24, shifted", "shift, voxels", "loss").set_ylim(bottom=0)
    name_volumes(sheet, 1)
    sheet.axes[1].set_xlabel("voxels of a disc, of 4,096")
    return sheet


def _disc(radius: float, side: int = 64) -> Tensor:
    """(1, 1, side, side) 1 within the radius of the middle."""
    along = torch.arange(side).double() - side // 2
    return ((along.view(-1, 1) ** 2 + along**2).sqrt() <= radius).double()[None, None]


def _push_inside(loss: nn.Module, target: Tensor) -> float:
    """The push on the voxel in the middle of a disc."""
    scores = torch.where(target > 0, logit(INSIDE), logit(OUTSIDE))
    middle = target.shape[-1] // 2
    return float(value_and_push(loss, scores, target)[1][0, 0, middle, middle])


@dataclass(frozen=True)
class Compound:
    """What the picture of a compound loss shows.

    Args:
        title, alt: as of a region loss.
        whole: label and loss.
        parts: label -> loss, times its weight.
    """

    title: str
    alt: str
    whole: tuple[str, nn.Module]
    parts: Mapping[str, nn.Module]


def weighted(loss: nn.Module, weight: float) -> nn.Module:
    """A loss times a number."""
    return losses.CompoundLoss([loss], [weight])


def compound(picture: Compound) -> Sheet:
    """Value and push of a compound loss and its parts, over p of all voxels of an object."""
    sheet = Sheet(picture.title, picture.alt)
    voxels, volume, p = 1000, 50, np.linspace(0.01, 0.99, 67)
    target = (torch.arange(voxels) < volume).double().view(1, 1, -1)
    for number, (label, loss) in enumerate(dict([picture.whole], **picture.parts).items()):
        scores = (torch.where(target > 0, logit(each), logit(OUTSIDE)) for each in p)
        found = [value_and_push(loss, score, target) for score in scores]
        sheet.curve(0, p, [value for value, _ in found], label, number)
        sheet.curve(1, p, [1000 * push.flat[0] for _, push in found], label, number)
    where = "p in an object of 5 % of the voxels"
    sheet.labelled(0, f"value, p = {OUTSIDE} outside", where, "loss").set_ylim(bottom=0)
    sheet.labelled(1, "gradient", where, "push on one voxel, x 1000").set_ylim(bottom=0)
    return sheet


SIGMOID = {"sigmoid": True}
COMPOUNDS = {
    "dice_ce": Compound(
        "Cross-entropy pulls where Dice cannot yet: Dice is weak for an object that is not seen at all",
        "Left, over p of an object: the sum is mostly Dice, since cross-entropy is a mean over a volume of few object "
        "voxels; right, near p = 0 cross-entropy gives most of the push, from p = 0.1 on Dice.",
        ("Dice + cross-entropy", losses.FusedDiceCELoss(**SIGMOID)),
        {
            "Dice": losses.FusedDiceCELoss(lambda_ce=0, **SIGMOID),
            "cross-entropy": losses.FusedDiceCELoss(lambda_dice=0, **SIGMOID),
        },
    ),
    "dice_focal": Compound(
        "The focal part pulls an object that is not seen yet, and leaves the rest to Dice",
        "Left, over p of an object: the sum is mostly Dice; right, the focal part adds a push near p = 0 and next to "
        "none above p = 0.6.",
        ("Dice + focal", losses.FusedDiceFocalLoss(**SIGMOID)),
        {
            "Dice": losses.FusedDiceFocalLoss(lambda_focal=0, **SIGMOID),
            "focal": losses.FusedDiceFocalLoss(lambda_dice=0, **SIGMOID),
        },
    ),
    "dice_top_k": Compound(
        "The worst 10 % of the voxels pull ten times as hard as in a plain cross-entropy, and dominate Dice",
        "Left, over p of an object of 5 % of the voxels: the top-k part falls from above 2 to 0 and is larger than "
        "Dice below p = 0.4; right, its push is a straight line, ten times that of cross-entropy, and above Dice's "
        "up to p = 0.7.",
        ("Dice + top-k", losses.DiceTopKLoss(**SIGMOID)),
        {
            "Dice": losses.DiceTopKLoss(lambda_topk=0, **SIGMOID),
            "top-k": losses.DiceTopKLoss(lambda_dice=0, **SIGMOID),
        },
    ),
    "combo": Compound(
        "Half Dice and a quarter cross-entropy: Dice decides, cross-entropy pulls where p is near 0",
        "Left, over p of an object: both parts fall to 0 and Dice is the larger; right, the push of the cross-entropy "
        "part falls along a straight line, that of Dice is largest in the middle.",
        ("combo", losses.ComboLoss(**SIGMOID)),
        {
            "0.5 Dice": weighted(losses.ComboLoss(alpha=0, **SIGMOID), 0.5),
            "0.5 weighted cross-entropy": weighted(losses.ComboLoss(alpha=1, **SIGMOID), 0.5),
        },
    ),
    "exponential_logarithmic": Compound(
        "Logarithm and power keep the push large: at p = 0.9 it is hardly less than at p = 0.1",
        "Left, over p of an object: the loss falls steeply at both ends of p; right, the push is nearly "
        "level from p = 0.15 to 0.85, almost all of it from the part of Dice.",
        ("exponential logarithmic", losses.ExponentialLogarithmicLoss(**SIGMOID)),
        {
            "part of Dice": losses.ExponentialLogarithmicLoss(weight_cross_entropy=0, **SIGMOID),
            "part of cross-entropy": losses.ExponentialLogarithmicLoss(weight_dice=0, **SIGMOID),
        },
    ),
    "unified_focal": Compound(
        "The focal Tversky part decides, and pulls an object that is half found hardest",
        "Left, over p of an object: the focal Tversky part is much larger than the focal cross-entropy, and falls ever "
        "steeper towards p = 1; right, its push is largest near p = 0.5.",
        ("unified focal", losses.UnifiedFocalLoss(**SIGMOID)),
        {
            "0.5 focal Tversky": weighted(losses.UnifiedFocalLoss(weight_focal=0, **SIGMOID), 0.5),
            "0.5 focal cross-entropy": weighted(losses.UnifiedFocalLoss(weight_focal=1, **SIGMOID), 0.5),
        },
    ),
    "compound": Compound(
        "A compound is the weighted sum of its parts, in value and in gradient",
        "Left, over p of an object: the curve of log-cosh Dice plus poly is the sum of the curves of the two; right, "
        "its push likewise.",
        (
            "log-cosh Dice + poly",
            losses.CompoundLoss([losses.LogCoshDiceLoss(**SIGMOID), losses.PolyLoss(**SIGMOID)]),
        ),
        {"log-cosh Dice": losses.LogCoshDiceLoss(**SIGMOID), "poly": losses.PolyLoss(**SIGMOID)},
    ),
}


def lovasz() -> Sheet:
    """Lovasz: straight where Jaccard bends, and the weight of errors by their rank."""
    sheet = Sheet(
        "An error weighs what it changes of IoU in the order of errors: missed voxels alike, false ones ever less",
        "Left, over p in a false object of the size of the true one, which is found: Lovasz is a straight line where "
        "Jaccard and Dice bend, and equals Jaccard at both ends; right, the weight of errors over their rank: 1/20 for "
        "each missed voxel of an object of 20, falling from there for false positives, and 1/100 with absolute errors.",
    )
    for label, loss in {"Lovasz": losses.LovaszLoss, "Jaccard": losses.JaccardLoss, DICE: losses.FusedDiceLoss}.items():
        style = {"linestyle": (0, (4, 1.5))} if label == DICE else {}
        sheet.curve(0, *_over_false(loss(sigmoid=True)), label, 0 if label == "Lovasz" else None, **style)
    voxels, volume = 100, 20
    ranks, places = np.arange(1, 61), torch.arange(voxels)
    errors = torch.linspace(0.99, 0.01, voxels).double()
    target = torch.zeros(1, 1, voxels).double()
    for number, kind in enumerate(("missed voxels", "false positives")):
        # Missed voxels come first, or all errors are false and the object, last, is found.
        inside = places < volume if kind == "missed voxels" else places >= voxels - volume
        target = inside.double().view(1, 1, -1)
        p = torch.where(inside, 1 - errors, errors).view(1, 1, -1)
        weights = np.abs(value_and_push(losses.LovaszLoss(other_act=_as_it_is), p, target)[1]).ravel()
        sheet.curve(1, ranks, weights[: len(ranks)], f"Lovasz, {kind}", number + 1)
    plain = np.abs(value_and_push(losses.MeanAbsoluteErrorLoss(), p, target)[1]).ravel()
    sheet.curve(1, ranks, plain[: len(ranks)], "absolute error", None, **DOTS)
    sheet.labelled(0, "object found, a false one beside it", "p in the false object", "loss").set_ylim(bottom=0)
    sheet.labelled(1, "gradient, object of 20 of 100 voxels", "rank of the error", "weight of the error")
    sheet.axes[1].set_ylim(bottom=0)
    return sheet


def _over_false(loss: nn.Module) -> tuple[Array, Array]:
    """The loss of an object that is found, over p in as many voxels beside it."""
    places, p = torch.arange(1000), np.linspace(0.005, 0.995, 67)
    target = (places < 100).double().view(1, 1, -1)
    scores = (torch.where(places < 100, 50, torch.where(places < 200, logit(each), -50)).view(1, 1, -1) for each in p)
    return p, np.array([value_and_push(loss, score, target)[0] for score in scores])


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _of_region(picture: Region) -> Callable[[], Sheet]:
    return lambda: region(picture)


def _of_compound(picture: Compound) -> Callable[[], Sheet]:
    return lambda: compound(picture)


PICTURES: dict[str, Callable[[], Sheet]] = {
    **{name: _of_region(picture) for name, picture in REGIONS.items()},
    "two_class_dice": two_class_dice,
    "generalized_dice": generalized_dice,
    "boundary_dou": boundary_dou,
    **{name: _of_compound(picture) for name, picture in COMPOUNDS.items()},
    "lovasz": lovasz,
}
