"""Pictures of losses on a small image: where each pushes the prediction."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from contourpy import contour_generator
from matplotlib.lines import Line2D
from torch import Tensor, nn

from loss_pictures.calls import Array, value_and_push
from loss_pictures.sheet import Sheet
from monai_extra_losses import losses

Spacing = tuple[float, float]  # mm of a row and of a column
FINE, THICK = (1.0, 1.0), (3.0, 1.0)
TARGET = {"color": "black", "linewidth": 1.6}
PREDICTION = {"color": "#0072B2", "linewidth": 1.4, "linestyle": (0, (4, 1.5))}
OTHER = {"color": "#777777", "linewidth": 1.6, "linestyle": (0, (1, 1))}
SIGMOID = {"sigmoid": True}


@dataclass(frozen=True)
class Scene:
    """A target and a prediction on a grid of voxels.

    Args:
        target: (1, C, rows, columns) 0 or 1.
        scores: (1, C, rows, columns).
        spacing: mm of a row and of a column.
        other: (rows, columns) another class, to be shown.
    """

    target: Tensor
    scores: Tensor
    spacing: Spacing = FINE
    other: Tensor | None = None


def grid(height: float, width: float, spacing: Spacing = FINE) -> tuple[Tensor, Tensor]:
    """Rows and columns of the middles of the voxels, in mm."""
    rows = torch.arange(round(height / spacing[0])).double() * spacing[0] + spacing[0] / 2
    columns = torch.arange(round(width / spacing[1])).double() * spacing[1] + spacing[1] / 2
    return rows.view(-1, 1), columns.view(1, -1)


def inside_disc(place: tuple[Tensor, Tensor], row: float, column: float, radius: float) -> Tensor:
    """How deep each place is in a disc, in mm; negative outside."""
    return radius - ((place[0] - row) ** 2 + (place[1] - column) ** 2).sqrt()


def inside_line(place: tuple[Tensor, Tensor], start: Sequence[float], end: Sequence[float], radius: float) -> Tensor:
    """How deep each place is in a line with round ends, in mm."""
    along = torch.tensor(end).double() - torch.tensor(start).double()
    share = ((place[0] - start[0]) * along[0] + (place[1] - start[1]) * along[1]) / (along @ along)
    share = share.clamp(0, 1)
    return (
        radius - ((place[0] - start[0] - share * along[0]) ** 2 + (place[1] - start[1] - share * along[1]) ** 2).sqrt()
    )


def shifted_disc(spacing: Spacing = FINE, shift: float = 5.0, slope: float = 0.9) -> Scene:
    """A disc, predicted too far to the right, and a false positive off it.

    Args:
        spacing: mm of a row and of a column.
        shift: in mm.
        slope: of the score at a predicted contour, per mm.
    """
    place = grid(30, 40, spacing)
    target = inside_disc(place, 17.5, 13, 8.2) > 0
    depth = torch.maximum(inside_disc(place, 17.5, 13 + shift, 8.2), inside_disc(place, 7, 31.5, 3.6))
    return Scene(target.double()[None, None], slope * depth[None, None], spacing)


def draw(
    sheet: Sheet, panel: int, scene: Scene, push: Array, name: str, channel: int = 0, **colors: str | None
) -> None:
    """A map of the push with the contours of target and prediction.

    Args:
        sheet: the picture.
        panel: where.
        scene: what is drawn.
        push: (1, C, rows, columns).
        name: of the panel.
        channel: which is shown.
        **colors: what they are.
    """
    axes = sheet.labelled(panel, name, "", "")
    sheet.image(panel, push[0, channel], scene.spacing, **colors)
    outlines = [
        (scene.target[0, channel], 0.5, "target", TARGET),
        (scene.scores[0, channel], 0.0, "prediction", PREDICTION),
    ]
    if scene.other is not None:
        outlines.append((scene.other, 0.5, "class 2", OTHER))
    for values, level, label, look in outlines:
        style = sheet.outline(panel, label, **look)
        for line in lines_of(values, level):
            axes.plot(line[:, 0] * scene.spacing[1], line[:, 1] * scene.spacing[0], **style)
    rows, columns = push.shape[2:]
    axes.set_xlim(-0.5 * scene.spacing[1], (columns - 0.5) * scene.spacing[1])
    axes.set_ylim((rows - 0.5) * scene.spacing[0], -0.5 * scene.spacing[0])


def lines_of(values: Tensor, level: float) -> list[Array]:
    """Contours of a map, as arrays (M, 2) of column and row."""
    return [np.asarray(line) for line in contour_generator(z=values.numpy()).lines(level)]


def add_arrows(
    sheet: Sheet, panel: int, scene: Scene, push: Array, every_mm: float = 3.2, longest: float = 4.0
) -> None:
    """Arrows along the contour of the prediction: where a step of gradient descent moves it.

    A point of the contour, where the score is 0, moves by push / |slope of the score| along its normal. An arrow is as
    long as the square root of that, so that small ones are seen.

    Args:
        sheet: the picture.
        panel: where.
        scene: what is drawn.
        push: (1, 1, rows, columns).
        every_mm: distance of the arrows.
        longest: of them, in mm.
    """
    starts = np.concatenate([_spread(line, scene.spacing, every_mm) for line in lines_of(scene.scores[0, 0], 0.0)])
    slopes = np.stack(np.gradient(scene.scores[0, 0].numpy(), *scene.spacing))
    down, right, pushed = (_at(values, starts) for values in (*slopes, push[0, 0]))
    size = np.hypot(down, right)
    moved = -pushed / size  # along the slope, which points inwards
    vectors = np.stack([right / size * moved, down / size * moved], 1)
    lengths = np.hypot(*vectors.T)
    vectors *= longest / np.sqrt(np.where(lengths > 0, lengths, 1) * (lengths.max() or 1))[:, None]
    seen = lengths > 0.01 * lengths.max()
    where = starts[seen] * np.array([scene.spacing[1], scene.spacing[0]])
    sheet.axes[panel].quiver(
        *where.T, *vectors[seen].T, angles="xy", scale_units="xy", scale=1, width=0.01, headwidth=3.4, headlength=3.4,
        headaxislength=3.2, minlength=0.1, color="black", zorder=3,
    )  # fmt: skip
    sheet.handles.setdefault("moves the contour", Line2D([], [], color="black", marker=">", markersize=5))
    sheet.note(f"{panel} arrows", vectors)


def _spread(line: Array, spacing: Spacing, every_mm: float) -> Array:
    """Points at one distance along a closed line of column and row."""
    steps = np.hypot(*(np.diff(line, axis=0) * np.array([spacing[1], spacing[0]])).T)
    along = np.concatenate([[0], np.cumsum(steps)])
    places = np.linspace(0, along[-1], max(4, round(along[-1] / every_mm)), endpoint=False)
    return np.stack([np.interp(places, along, line[:, axis]) for axis in (0, 1)], 1)


def _at(values: Array, points: Array) -> Array:
    """Values of a map between its voxels, at points (M, 2) of column and row."""
    size = np.array(values.shape[::-1]) - 1
    places = torch.as_tensor(2 * points / size - 1).view(1, 1, -1, 2)
    sampled = F.grid_sample(torch.as_tensor(values).view(1, 1, *values.shape), places, align_corners=True)
    return sampled.numpy().ravel()


@dataclass(frozen=True)
class Boundary:
    """What the picture of a boundary loss shows.

    Args:
        title: one sentence that says what to see.
        alt: one sentence that describes the picture.
        loss: makes the loss of a spacing.
        second: name of the second panel and what makes its loss; None: the same loss with voxels of 3 mm x 1 mm.
        shift, slope: of the predicted disc, see `shifted_disc`.
        factor: show by how much more than cross-entropy it pushes each voxel, beside the arrows.
    """

    title: str
    alt: str
    loss: Callable[[Spacing], nn.Module]
    second: tuple[str, Callable[[Spacing], nn.Module]] | None = None
    shift: float = 5.0
    slope: float = 0.9
    factor: bool = False


def boundary(picture: Boundary) -> Sheet:
    """The picture of a boundary loss: two maps with arrows."""
    sheet = Sheet(picture.title, picture.alt, height=2.5)
    second, spacing = picture.second, FINE
    if second is None:
        second, spacing = ("voxels of 3 mm x 1 mm", picture.loss), THICK
    for panel, (name, make, grid_of) in enumerate((("voxels of 1 mm", picture.loss, FINE), (*second, spacing))):
        scene = shifted_disc(grid_of, picture.shift, picture.slope)
        push = value_and_push(make(grid_of), scene.scores, scene.target)[1]
        if picture.factor:
            factor = push / value_and_push(_entropy(grid_of), scene.scores, scene.target)[1]
            name = f"{name}, factor up to {factor.max():.2g}"
            draw(sheet, panel, scene, factor - 1, name, up="pushed harder than by cross-entropy", down=None)
        else:
            draw(sheet, panel, scene, push, name)
        add_arrows(sheet, panel, scene, push)
    return sheet


def _dice(spacing: Spacing) -> nn.Module:
    return losses.FusedDiceLoss(**SIGMOID)


def _entropy(spacing: Spacing) -> nn.Module:
    return losses.CrossEntropyLoss(**SIGMOID)


def _with_spacing(loss: type, **options: object) -> Callable[[Spacing], nn.Module]:
    return lambda spacing: loss(spacing=spacing, **SIGMOID, **options)


_ARROWS = "arrows along the predicted contour, as long as the root of the push, show where it moves"
BOUNDARIES = {
    "surface": Boundary(
        "The further out of the target a contour lies, the harder it is pushed in: a far false positive hardest",
        "A disc predicted too far to the right, with a small false positive far off: the boundary loss alone "
        f"shrinks the false positive most and moves the right side in, the left side a little out; {_ARROWS}.",
        _with_spacing(losses.SurfaceLoss),
    ),
    "generalized_surface": Boundary(
        "Errors count by the square of their distance to the boundary: a far false positive outweighs the rest",
        "A disc predicted too far to the right, with a small false positive far off: the generalized surface loss "
        f"pushes the false positive in, and next to it the sides of the disc hardly at all; {_ARROWS}.",
        _with_spacing(losses.GeneralizedSurfaceLoss),
    ),
    "hausdorff": Boundary(
        "Squared errors times squared distances: what is furthest off is pushed back hardest",
        "A disc predicted too far to the right, with a small false positive far off: the Hausdorff loss shrinks the "
        f"false positive most, and both sides of the disc move left; {_ARROWS}.",
        _with_spacing(losses.HausdorffLoss, include_background=True),
    ),
    "log_hausdorff": Boundary(
        "The same directions as the Hausdorff loss: the logarithm divides them all by 1 + its value",
        "The map and arrows of the Hausdorff loss, in the same proportions: a far false positive is pushed in most; "
        f"{_ARROWS}.",
        _with_spacing(losses.LogHausdorffLoss, include_background=True),
    ),
    "hausdorff_er": Boundary(
        "Only thick errors are pushed, and not all of them back: the step with min and max turns some pushes round",
        "A disc predicted too far to the right: the erosion form pushes where the error is thickest, in the missed "
        "crescent up and in the false one partly down and partly further up; beside it cross-entropy pushes every "
        f"error back; {_ARROWS}.",
        lambda spacing: losses.HausdorffERLoss(**SIGMOID),
        ("cross-entropy, for comparison", _entropy),
        slope=2.5,
    ),
    "distance_penalty_cross_entropy": Boundary(
        "Cross-entropy, times 2 at the target's boundary, and falling to 1 where it is furthest, on either side",
        "A disc predicted too far to the right: a map of the factor by which each voxel is pushed harder than by "
        f"cross-entropy is brightest along the target's contour; {_ARROWS}.",
        _with_spacing(losses.DistancePenaltyCrossEntropyLoss),
        factor=True,
    ),
    "shape_aware": Boundary(
        "Cross-entropy, times 1 + the mean distance of the contours where the voxel is wrong, times 1 elsewhere",
        "A disc predicted too far to the right: in a map of the factor by which each voxel is pushed harder than by "
        f"cross-entropy the wrong voxels stand out, all alike; {_ARROWS}.",
        _with_spacing(losses.ShapeAwareLoss),
        factor=True,
    ),
    "surface_dice": Boundary(
        "Only the rims count: the predicted rim is pulled to the target's, within the tolerance of 2 mm",
        "A disc predicted too far to the right: all pushes lie near the rims of prediction and target, and nothing is "
        f"pushed inside or outside; {_ARROWS}.",
        _with_spacing(losses.SurfaceDiceLoss, tolerance_mm=2.0),
        shift=3.0,
    ),
}


@dataclass(frozen=True)
class Compared:
    """What the picture of a loss beside another shows: maps of the push.

    Args:
        title, alt: as of a boundary loss.
        scene: what is predicted.
        losses: name of the panel -> loss.
        channel: which is shown.
    """

    title: str
    alt: str
    scene: Callable[[], Scene]
    losses: Mapping[str, nn.Module]
    channel: int = 0


def compared(picture: Compared) -> Sheet:
    """The picture of a loss beside another."""
    sheet = Sheet(picture.title, picture.alt, len(picture.losses), height=2.4)
    scene = picture.scene()
    for panel, (name, loss) in enumerate(picture.losses.items()):
        push = value_and_push(loss, scene.scores, scene.target)[1]
        draw(sheet, panel, scene, push, name, picture.channel)
    return sheet


_TRUNK = (((16.0, 1.0), (16.0, 20.0), 3.2),)
_UPPER = (((16.0, 20.0), (6.0, 42.0), 1.3),)
_LOWER = (((16.0, 20.0), (26.0, 42.0), 1.3),)


@functools.cache
def vessels() -> Scene:
    """A trunk and two thin branches; predicted with a gap in one, and a bulge on the trunk."""
    place = grid(32, 44)

    def union(lines: Sequence[tuple[Sequence[float], Sequence[float], float]]) -> Tensor:
        return functools.reduce(torch.maximum, (inside_line(place, *line) for line in lines))

    whole = union([*_TRUNK, *_UPPER, *_LOWER]) > 0
    gap = whole & (inside_disc(place, 9.6, 34, 2.6) > 0)
    bulge = ~whole & (inside_disc(place, 20.2, 10, 3.0) > 0)
    scores = torch.where(whole, 3.5, -3.5).double()
    scores = torch.where(gap, -0.85, torch.where(bulge, 0.85, scores))
    return Scene(whole.double()[None, None], scores[None, None])


@functools.cache
def lesions() -> Scene:
    """Three lesions, of which the smallest is missed."""
    place = grid(30, 44)
    discs = ((15, 11, 8.2), (8, 29, 3.7), (22, 35, 2.2))
    target = functools.reduce(torch.maximum, (inside_disc(place, *disc) for disc in discs))
    seen = torch.maximum(inside_disc(place, 15, 11.6, 8.4), inside_disc(place, 8, 29, 3.2))
    return Scene((target > 0).double()[None, None], 1.2 * seen.clamp(-2.5, 2.5)[None, None])


@functools.cache
def touching() -> Scene:
    """Classes 1 (left) and 2 (right) that must not touch; predicted so that they do, and an error that is none."""
    place = grid(28, 44)
    left, right = inside_disc(place, 14, 12, 8.2), inside_disc(place, 14, 31, 8.2)
    seen = torch.maximum(inside_line(place, (14, 12), (14, 23), 4.2), left)
    seen = torch.maximum(seen, inside_disc(place, 4, 24, 2.5))
    labels = torch.where(left > 0, 1, torch.where(right > 0, 2, 0))
    scores = torch.stack([torch.zeros_like(seen), 1.5 * seen.clamp(-2, 2), 1.5 * right.clamp(-2, 2)])
    target = torch.stack([labels == c for c in range(3)]).double()
    return Scene(target[None], scores[None], other=target[2])


@functools.cache
def textured() -> Scene:
    """A comb of thin teeth on a block, predicted blurred."""
    place = grid(30, 44)
    block = torch.minimum(10.5 - (place[0] - 16.5).abs(), 6 - (place[1] - 10).abs())
    teeth = ((place[0] // 3) % 2 == 0) & (place[1] > 16) & (place[1] < 34) & ((place[0] - 16.5).abs() < 10.5)
    target = ((block > 0) | teeth).double()[None, None]
    along = torch.exp(-(torch.arange(-3, 4).double() ** 2) / 4)
    kernel = along.view(-1, 1) * along / along.sum() ** 2
    blurred = F.conv2d(F.pad(target, (3, 3, 3, 3)), kernel[None, None])
    return Scene(target, blurred.clamp(0.02, 0.98).logit())


DICE = losses.FusedDiceLoss(**SIGMOID)
DICE_BESIDE = {"Dice": DICE}
_TREE = "A vessel that forks, predicted with a gap in a thin branch and a bulge on the trunk: "
_THREE = "Three lesions, the smallest of them missed: "


def _topological() -> Mapping[str, nn.Module]:
    softmax = {"softmax": True}
    return {
        "topological interaction": losses.TopologicalInteractionLoss(exclusion=[[1, 2]], **softmax),
        "cross-entropy": losses.CrossEntropyLoss(**softmax),
    }


COMPARED = {
    "centerline_dice": Compared(
        "Only skeletons count: that of the gap is pushed up, that of the bulge down; thickness is left to Dice",
        _TREE
        + "clDice pushes voxels on the skeletons alone, up in the gap and down in the bulge; Dice pushes all voxels "
        "of both.",
        vessels,
        {"centerline Dice": losses.CenterlineDiceLoss(include_background=True, **SIGMOID), **DICE_BESIDE},
    ),
    "centerline_boundary_dice": Compared(
        "Only where p is above 0.5 is there a push: the bulge is pulled in, the gap itself is left to the partners",
        _TREE
        + "cbDice pushes voxels near the trunk's skeleton up and one in the bulge down, and nothing in the gap, where "
        "p is 0.3; Dice pushes all voxels of both.",
        vessels,
        {
            "centerline boundary Dice": losses.CenterlineBoundaryDiceLoss(include_background=True, **SIGMOID),
            **DICE_BESIDE,
        },
    ),
    "skeleton_recall": Compared(
        "Only the tube around the target's skeleton counts: the gap is filled, the bulge is left to the partners",
        _TREE + "skeleton recall pushes up the gap, and nothing down; Dice pushes the bulge down, too.",
        vessels,
        {"skeleton recall": losses.SkeletonRecallLoss(include_background=True, **SIGMOID), **DICE_BESIDE},
    ),
    "component_dice_ce": Compared(
        "Each lesion counts alike: the small one that is missed gets most of the push",
        _THREE + "component-wise Dice and cross-entropy pushes the missed lesion up hardest, Dice pushes it no harder "
        "than the inside of a lesion that is found.",
        lesions,
        {"component Dice + CE": losses.ComponentDiceCELoss(include_background=True, **SIGMOID), **DICE_BESIDE},
    ),
    "blob_dice_ce": Compared(
        "Each lesion counts alike, and what is falsely predicted counts against every one of them",
        _THREE
        + "blob Dice and cross-entropy pushes the missed lesion up about as hard as the rim of the small one that "
        "is found, and all background down; Dice pushes it no harder than the inside of a lesion that is found.",
        lesions,
        {"blob Dice + CE": losses.BlobDiceCELoss(include_background=True, **SIGMOID), **DICE_BESIDE},
    ),
    "topological_interaction": Compared(
        "Only where the two classes touch is there a push; the false spot above breaks no rule and is left alone",
        "Class 1, on the left, is predicted up to class 2, on the right: topological interaction pushes class 1 down "
        "where they touch and nowhere else, cross-entropy pushes every error, a false spot above them too.",
        touching,
        _topological(),
        1,
    ),
    "correlation_maximized_structural_similarity": Compared(
        "The push gathers at edges and ends, where prediction and target correlate least",
        "A comb of thin teeth on a block, predicted blurred: the structural similarity loss pushes along the edges "
        "and at the ends of the teeth, cross-entropy throughout the teeth and the gaps between them.",
        textured,
        {
            "structural similarity": losses.CorrelationMaximizedStructuralSimilarityLoss(**SIGMOID),
            "cross-entropy": losses.CrossEntropyLoss(**SIGMOID),
        },
    ),
}


def _of_boundary(picture: Boundary) -> Callable[[], Sheet]:
    return lambda: boundary(picture)


def _of_compared(picture: Compared) -> Callable[[], Sheet]:
    return lambda: compared(picture)


PICTURES: dict[str, Callable[[], Sheet]] = {
    **{name: _of_boundary(picture) for name, picture in BOUNDARIES.items()},
    **{name: _of_compared(picture) for name, picture in COMPARED.items()},
}
