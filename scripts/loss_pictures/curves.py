"""Pictures of losses of single voxels: value and push over the probability, the score or the residual."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from loss_pictures.calls import Array, logit, value_and_push
from loss_pictures.sheet import Sheet
from monai_extra_losses import losses

P = np.linspace(0.01, 0.99, 99)
TRUE_P = "p of the true class"
LOSS, PUSH = "loss", "push on the score"
ENTROPY = "cross-entropy"


@dataclass(frozen=True)
class Voxel:
    """What the picture of a loss of single voxels shows.

    Args:
        title: one sentence that says what to see.
        alt: one sentence that describes the picture.
        losses: label -> loss; the first is the default.
        highest: of the left axis.
    """

    title: str
    alt: str
    losses: Mapping[str, nn.Module]
    highest: float | None = None


def over_p(loss: nn.Module) -> tuple[Array, Array]:
    """Value and push of a voxel of the class, for each p of `P`."""
    return over_scores(loss, logit(P))


def over_scores(loss: nn.Module, scores: Tensor) -> tuple[Array, Array]:
    """Value and push of a voxel of the class, for each of scores (M,)."""
    one = torch.ones(1, 1, 1)
    found = [value_and_push(loss, score.view(1, 1, 1), one) for score in scores]
    return np.array([value for value, _ in found]), np.array([push.item() for _, push in found])


def voxel(picture: Voxel) -> Sheet:
    """The picture of a loss that reads p."""
    sheet = Sheet(picture.title, picture.alt)
    for number, (label, loss) in enumerate(picture.losses.items()):
        for panel, y in enumerate(over_p(loss)):
            sheet.curve(panel, P, y, label, number)
    for panel, y in enumerate(over_p(losses.CrossEntropyLoss(sigmoid=True))):
        sheet.curve(panel, P, y, ENTROPY, None)
    sheet.labelled(0, "value", TRUE_P, LOSS).set_ylim(bottom=0, top=picture.highest)
    sheet.labelled(1, "gradient", TRUE_P, PUSH)
    return sheet


def cross_entropy() -> Sheet:
    """Cross-entropy, plain and with smoothed labels."""
    sheet = Sheet(
        "Cross-entropy pulls a voxel the harder the further its p is from 1; smoothed labels stop short of p = 1",
        "Two plots over the probability of the true class: cross-entropy falls to 0 at p = 1 and its pull on the score "
        "falls along a straight line; with label smoothing 0.2 the loss is least, and the pull 0, at p = 0.9.",
    )
    for number, smoothing in enumerate((0.0, 0.1, 0.2)):
        loss = losses.CrossEntropyLoss(sigmoid=True, label_smoothing=smoothing)
        label = f"label_smoothing={smoothing:g}{' (default)' * (number == 0)}"
        for panel, y in enumerate(over_p(loss)):
            sheet.curve(panel, P, y, label, number)
    sheet.labelled(0, "value", TRUE_P, LOSS).set_ylim(bottom=0, top=4)
    sheet.labelled(1, "gradient", TRUE_P, PUSH).axhline(0, color="black", linewidth=0.8)
    return sheet


def _by_share(sheet: Sheet, make: Callable[..., nn.Module], share_shown: float) -> None:
    """A loss whose factors follow from the share of the class: over p at one share, and over the share at p = 0.5."""
    voxels = 1000
    shares = np.unique(np.geomspace(1, 999, 40).round()) / voxels
    entropy = losses.CrossEntropyLoss(sigmoid=True)

    def of_voxels(share: float, p: float) -> tuple[Tensor, Tensor]:
        target = (torch.arange(voxels) < round(share * voxels)).double().view(1, 1, -1)
        return logit(np.full(voxels, p)).view(1, 1, -1) * (2 * target - 1), target

    each, loss = make(sigmoid=True, reduction="none"), make(sigmoid=True)
    curves: list[tuple[list[float], list[float]]] = [([], []), ([], [])]
    for p in P:
        value = each(*of_voxels(share_shown, p)).flatten()
        curves[0][0].append(float(value[0]))
        curves[1][0].append(float(value[-1]))
    for share in shares:
        push, plain = (value_and_push(function, *of_voxels(share, 0.5))[1].ravel() for function in (loss, entropy))
        curves[0][1].append(push[0] / plain[0])
        curves[1][1].append(push[-1] / plain[-1])
    for number, (label, (values, factors)) in enumerate(
        zip(("voxel of the class", "voxel outside"), curves, strict=True)
    ):
        sheet.curve(0, P, values, label, number)
        sheet.curve(1, shares, factors, label, number)
    sheet.curve(0, P, over_p(entropy)[0], ENTROPY, None)
    sheet.curve(1, shares, np.ones_like(shares), ENTROPY, None)
    sheet.labelled(0, f"value, class of {100 * share_shown:.0f} % of the voxels", TRUE_P + " / of the rest", LOSS)
    axes = sheet.labelled(1, "push, relative to cross-entropy", "share of the class", "factor")
    axes.set(xscale="log", yscale="log")


def weighted_cross_entropy() -> Sheet:
    """Weighted cross-entropy with beta of the target."""
    sheet = Sheet(
        'mode="target": a voxel of a rare class counts so much more that class and rest weigh the same',
        "Left, over p: a voxel of a class that fills 10 % of the volume costs nine times its cross-entropy, a voxel "
        "outside once; right, the factor of voxels of the class falls with its share, that of others stays 1.",
    )
    _by_share(sheet, partial(losses.WeightedCrossEntropyLoss, mode="target"), 0.1)
    sheet.axes[0].set_ylim(0, 15)
    return sheet


def balanced_cross_entropy() -> Sheet:
    """Balanced cross-entropy with the limits of beta."""
    sheet = Sheet(
        "The factors of a class and of its rest sum to 1, and mirror their shares, between 0.05 and 0.95",
        "Left, over p: with a class of 10 % of the volume a voxel of it costs 0.9 times its cross-entropy, one outside "
        "0.1 times; right, both factors over the share of the class, flat below 5 % and above 95 %.",
    )
    _by_share(sheet, losses.BalancedCrossEntropyLoss, 0.1)
    sheet.axes[0].set_ylim(0, 4)
    return sheet


def top_k() -> Sheet:
    """Top-k: which voxels are pulled, and when the loss has seen enough."""
    sheet = Sheet(
        "Only the worst k % of the voxels are pulled, each the harder for it; the others have no say",
        "Left, the loss over the share of wrong voxels: with k = 10 it is full at 10 %; right, the push on each of 100 "
        "voxels whose p run from 0 to 1: with k = 10 the ten worst are pushed ten times as hard, the rest not at all.",
    )
    shares, ranked = np.arange(101) / 100, (np.arange(100) + 0.5) / 100
    ones = torch.ones(1, 1, 100)
    known: dict[str, nn.Module] = {
        "k=10 (default)": losses.TopKLoss(k=10, sigmoid=True),
        "k=50": losses.TopKLoss(k=50, sigmoid=True),
    }
    for number, (label, loss) in enumerate({**known, ENTROPY: losses.CrossEntropyLoss(sigmoid=True)}.items()):
        line = number if label != ENTROPY else None
        wrong = [logit(np.where(np.arange(100) < round(100 * share), 0.1, 0.95)).view(1, 1, -1) for share in shares]
        sheet.curve(0, 100 * shares, [value_and_push(loss, scores, ones)[0] for scores in wrong], label, line)
        push = value_and_push(loss, logit(ranked).view(1, 1, -1), ones)[1].ravel()
        sheet.curve(1, ranked, 100 * push, label, line)
    sheet.labelled(0, "wrong: p = 0.1, right: p = 0.95", "wrong voxels, %", LOSS)
    sheet.labelled(1, "100 voxels of p from 0 to 1", TRUE_P, "push on the score, x 100")
    return sheet


def _hinge(title: str, alt: str, shown: Mapping[str, nn.Module], highest: float, most: float) -> Sheet:
    sheet = Sheet(title, alt)
    scores = torch.linspace(-2.5, 2.5, 101).double()
    for number, (label, loss) in enumerate({**shown, ENTROPY: losses.CrossEntropyLoss(sigmoid=True)}.items()):
        line = None if label == ENTROPY else number
        for panel, y in enumerate(over_scores(loss, scores)):
            sheet.curve(panel, scores, y, label, line)
    where = "score of a voxel of the class"
    sheet.labelled(0, "value", where, LOSS).set_ylim(0, highest)
    sheet.labelled(1, "gradient", where, PUSH).set_ylim(-0.05 * most, most)
    return sheet


def hinge() -> Sheet:
    """Hinge."""
    return _hinge(
        "Every score below the margin of 1 is pushed alike, and above it not at all",
        "Two plots over the score: the hinge loss falls along a straight line to 0 at the score 1; its push is 1 below "
        "and 0 above, where cross-entropy still pushes.",
        {"hinge": losses.HingeLoss()},
        4,
        1.1,
    )


def squared_hinge() -> Sheet:
    """Squared hinge."""
    return _hinge(
        "Below the margin of 1 the push grows with the distance to it; above there is none",
        "Two plots over the score: the squared hinge loss falls as a parabola to 0 at the score 1, its push along a "
        "straight line; the hinge loss pushes by 1 throughout.",
        {"squared hinge": losses.SquaredHingeLoss(), "hinge": losses.HingeLoss()},
        8,
        5,
    )


def categorical_hinge() -> Sheet:
    """Categorical hinge: the true class against the best of the others."""
    sheet = Sheet(
        "The true class is pushed up and its best rival down, until it leads by 1; the third class is left alone",
        "Left, the loss over the lead of the true class over its best rival falls along a straight line to 0 at a "
        "lead of 1; right, the true class is pushed by +1, its rival by -1, a third class by 0, and nothing beyond "
        "the lead.",
    )
    leads = torch.linspace(-2.5, 2.5, 101).double()
    target = torch.zeros(1, 1, 1)
    found = {}
    for label, loss in {
        "hinge": losses.CategoricalHingeLoss(to_onehot_y=True),
        ENTROPY: losses.CrossEntropyLoss(to_onehot_y=True, softmax=True),
    }.items():
        found[label] = [value_and_push(loss, torch.tensor([lead, 0.0, -1.0]).view(1, 3, 1), target) for lead in leads]
    pushes = np.array([push.ravel() for _, push in found["hinge"]])
    for number, name in enumerate(("true class", "best rival (score 0)", "third class (score -1)")):
        sheet.curve(1, leads, pushes[:, number], name, number)
    sheet.curve(0, leads, [value for value, _ in found["hinge"]], "true class", 0)
    sheet.curve(0, leads, [value for value, _ in found[ENTROPY]], ENTROPY, None)
    where = "lead over the best rival"
    sheet.labelled(0, "value", where, LOSS).set_ylim(0, 4)
    sheet.labelled(1, "gradient", where, PUSH).set_ylim(-1.15, 1.15)
    return sheet


FOCAL = Voxel(
    "The larger gamma, the sooner a voxel that is nearly right is left alone",
    "Two plots over the probability of the true class: focal loss lies below cross-entropy; its pull on the score is "
    "larger near p = 0, and near 0 from p = 0.8 on with gamma 2, from p = 0.6 on with gamma 5.",
    {f"gamma={gamma}{' (default)' * (gamma == 2)}": losses.FusedFocalLoss(gamma=gamma) for gamma in (2, 0.5, 5)},
    4,
)
POLY = Voxel(
    "epsilon above 0 pulls harder in the middle; below 0 less",
    "Two plots over the probability of the true class: poly loss lies above cross-entropy with epsilon 1 and 3, below "
    "with -1; far from 0 and 1 its pull on the score differs most.",
    {
        f"epsilon={epsilon}{' (default)' * (epsilon == 1)}": losses.PolyLoss(epsilon=epsilon, sigmoid=True)
        for epsilon in (1, 3, -1)
    },
    6,
)
GENERALIZED = Voxel(
    "A voxel that contradicts its label (p near 0) is hardly pulled: its label may be wrong",
    "Two plots over the probability of the true class: generalized cross-entropy stays finite at p = 0, and its pull "
    "falls to 0 there, while that of cross-entropy is largest.",
    {
        f"q={q}{' (default)' * (q == 0.7)}": losses.GeneralizedCrossEntropyLoss(q=q, sigmoid=True)
        for q in (0.7, 0.3, 1.0)
    },
    4,
)


@dataclass(frozen=True)
class Regression:
    """What the picture of a regression loss shows.

    Args:
        title, alt: as of a voxel loss.
        losses: label -> loss and target.
        x: predictions.
        axis: what they are.
        shift: of the axis: the first target, where it is a residual.
        compared: label -> loss and target, in grey.
        highest: of the left axis.
    """

    title: str
    alt: str
    losses: Mapping[str, tuple[nn.Module, float]]
    x: Array
    axis: str
    shift: float = 0.0
    compared: Mapping[str, tuple[nn.Module, float]] | None = None
    highest: float | None = None


def regression(picture: Regression) -> Sheet:
    """Value and push over the prediction."""
    sheet = Sheet(picture.title, picture.alt)

    def curves(label: str, loss: nn.Module, y: float, line: int | None) -> None:
        x = torch.as_tensor(picture.x)
        found = [value_and_push(loss, value.view(1, 1, 1), torch.full((1, 1, 1), y)) for value in x]
        sheet.curve(0, picture.x - picture.shift, [value for value, _ in found], label, line)
        sheet.curve(1, picture.x - picture.shift, [push.item() for _, push in found], label, line)

    for number, (label, (loss, y)) in enumerate(picture.losses.items()):
        curves(label, loss, y, number)
    for label, (loss, y) in (picture.compared or {}).items():
        curves(label, loss, y, None)
    lowest = min(0.0, sheet.axes[0].get_ylim()[0]) if picture.highest is None else 0.0
    sheet.labelled(0, "value", picture.axis, LOSS).set_ylim(bottom=lowest, top=picture.highest)
    sheet.labelled(1, "gradient", picture.axis, "push on the prediction")
    sheet.axes[1].axhline(0, color="black", linewidth=0.8)
    return sheet


RESIDUALS, RESIDUAL = np.linspace(-3, 3, 121), "residual y' - y"
SQUARED = {"squared error / 2": (losses.CompoundLoss([losses.MeanSquaredErrorLoss()], [0.5]), 0.0)}
REGRESSIONS = {
    "mean_squared_error": Regression(
        "Twice the residual pulls twice as hard: outliers decide",
        "Two plots over the residual: the squared error is a parabola and its push a straight line through 0, the "
        "absolute error a wedge with a push of one size.",
        {"squared error": (losses.MeanSquaredErrorLoss(), 0.0)},
        RESIDUALS,
        RESIDUAL,
        compared={"absolute error": (losses.MeanAbsoluteErrorLoss(), 0.0)},
    ),
    "mean_absolute_error": Regression(
        "Every residual pulls alike, however large: outliers count no more than others",
        "Two plots over the residual: the absolute error is a wedge, and its push jumps from 1 to -1 at 0; the squared "
        "error is a parabola.",
        {"absolute error": (losses.MeanAbsoluteErrorLoss(), 0.0)},
        RESIDUALS,
        RESIDUAL,
        compared={"squared error": (losses.MeanSquaredErrorLoss(), 0.0)},
    ),
    "huber": Regression(
        "Below delta it pulls as the squared error does, above it no residual pulls harder than delta",
        "Two plots over the residual: Huber loss is a parabola within delta and straight outside; its push grows to "
        "delta and stays there, for delta 1, 0.5 and 2.",
        {
            f"delta={delta}{' (default)' * (delta == 1)}": (losses.HuberLoss(delta=delta), 0.0)
            for delta in (1.0, 0.5, 2.0)
        },
        RESIDUALS,
        RESIDUAL,
        compared=SQUARED,
    ),
    "log_cosh": Regression(
        "As the squared error near 0 and as the absolute error far away, without a corner between",
        "Two plots over the residual: log-cosh is near the parabola at 0 and straight far away; its push bends "
        "smoothly from a slope of 1 to a size of 1.",
        {
            "log-cosh": (losses.LogCoshLoss(), 0.0),
            "Huber, delta=1": (losses.HuberLoss(), 0.0),
        },
        RESIDUALS,
        RESIDUAL,
        compared=SQUARED,
    ),
    "mean_squared_logarithmic_error": Regression(
        "Ratios count: too little costs more than too much, and below 0 nothing pulls back",
        "Two plots over the prediction, for targets 1, 3 and 6: the loss rises steeply below the target and slowly "
        "above; below 0 it is flat and its push 0.",
        {f"y = {y:g}": (losses.MeanSquaredLogarithmicErrorLoss(), y) for y in (1.0, 3.0, 6.0)},
        np.linspace(-1, 10, 133),
        "prediction y'",
    ),
    "mean_absolute_percentage_error": Regression(
        "The smaller the target, the harder it pulls",
        "Two plots over the prediction, for targets 1, 2 and 4: wedges whose slopes, and so the pushes, are 100, 50 "
        "and 25.",
        {f"y = {y:g}": (losses.MeanAbsolutePercentageErrorLoss(), y) for y in (1.0, 2.0, 4.0)},
        np.linspace(0, 6, 121),
        "prediction y'",
    ),
    "poisson": Regression(
        "A rate of 0 where something was counted costs most; too high a rate costs at most its excess",
        "Two plots over the predicted rate, for counts 0, 1 and 3: the loss falls steeply from 0 to its least at the "
        "count, and rises slowly above; its push is +count/rate - 1.",
        {f"y = {y:g}": (losses.PoissonLoss(), y) for y in (1.0, 3.0, 0.0)},
        np.linspace(0.2, 6, 117),
        "predicted rate y'",
    ),
}


def kl_divergence() -> Sheet:
    """KL divergence of two classes, over p."""
    sheet = Sheet(
        "The loss is 0 where p is the target itself, soft or hard, and pulls by how far p is from it",
        "Two plots over p of a class, for targets of 1, 0.8 and 0.5: each loss is least, 0, at its target, and its "
        "push on the score falls along a straight line through 0 there; soft cross-entropy of 0.8 is least at 0.5, "
        "not 0.",
    )

    def found(loss: nn.Module, g: float) -> tuple[list[float], list[float]]:
        target = torch.tensor([g, 1 - g]).double().view(1, 2, 1)
        pairs = [
            value_and_push(loss, torch.stack([logit(p), torch.zeros(()).double()]).view(1, 2, 1), target) for p in P
        ]
        return [value for value, _ in pairs], [push[0, 0, 0] for _, push in pairs]

    for number, g in enumerate((1.0, 0.8, 0.5)):
        for panel, y in enumerate(found(losses.KLDivergenceLoss(softmax=True), g)):
            sheet.curve(panel, P, y, f"target {g:g}", number)
    sheet.curve(0, P, found(losses.CrossEntropyLoss(softmax=True), 0.8)[0], "cross-entropy of target 0.8", None)
    where = "p of the class"
    sheet.labelled(0, "value", where, LOSS).set_ylim(0, 3)
    sheet.labelled(1, "gradient", where, PUSH).axhline(0, color="black", linewidth=0.8)
    return sheet


def cosine_similarity() -> Sheet:
    """Cosine similarity, over the angle."""
    sheet = Sheet(
        "Only the direction counts: the loss turns a vector, a short one faster, and never changes its length",
        "Left, the loss over the angle between prediction and target is the same for vectors of length 1 and 2: 0 at 0 "
        "degrees and 2 at 180; right, the push that turns them is a sine, half as large for the longer vector.",
    )
    angles = np.linspace(-180, 180, 121)
    target = torch.tensor([1.0, 0.0]).double().view(1, 2, 1)
    for number, length in enumerate((1.0, 2.0)):
        value, turning = [], []
        for angle in np.deg2rad(angles):
            vector = length * torch.tensor([np.cos(angle), np.sin(angle)]).double().view(1, 2, 1)
            loss, push = value_and_push(losses.CosineSimilarityLoss(), vector, target)
            value.append(loss)
            turning.append(float(push.ravel() @ np.array([-np.sin(angle), np.cos(angle)])))
        sheet.curve(0, angles, value, f"prediction of length {length:g}", number)
        sheet.curve(1, angles, turning, f"prediction of length {length:g}", number)
    for panel, (name, y) in enumerate((("value", LOSS), ("gradient across the vector", "push that turns"))):
        sheet.labelled(panel, name, "angle to the target, degrees", y).set_xticks([-180, -90, 0, 90, 180])
    sheet.axes[1].axhline(0, color="black", linewidth=0.8)
    return sheet


def _of_voxel(picture: Voxel) -> Callable[[], Sheet]:
    return lambda: voxel(picture)


def _of_regression(picture: Regression) -> Callable[[], Sheet]:
    return lambda: regression(picture)


PICTURES: dict[str, Callable[[], Sheet]] = {
    "cross_entropy": cross_entropy,
    "focal": _of_voxel(FOCAL),
    "poly": _of_voxel(POLY),
    "generalized_cross_entropy": _of_voxel(GENERALIZED),
    "weighted_cross_entropy": weighted_cross_entropy,
    "balanced_cross_entropy": balanced_cross_entropy,
    "top_k": top_k,
    "hinge": hinge,
    "squared_hinge": squared_hinge,
    "categorical_hinge": categorical_hinge,
    "kl_divergence": kl_divergence,
    "cosine_similarity": cosine_similarity,
    **{name: _of_regression(picture) for name, picture in REGRESSIONS.items()},
}
