"""The phantom of vessels: an artery and a vein that touch at their trunks, and branch into ever thinner tubes."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.data.phantom_fields import (
    AIR,
    TISSUE,
    Volume,
    blob_mask,
    centred_grid,
    gaussian,
    radius_in_body,
    scanned,
    smooth_field,
)
from monai_extra_losses.data.topology import betti_numbers

_FORKS = 4  # generations of forks
_LEAST_BRANCHES = 7  # of a tree, its trunk included
_DRAWS = 200  # of a case, until its trees have no loop
_TRIES = 30  # for a place of two daughters

_Points = NDArray[np.float64]


@dataclasses.dataclass
class Branch:
    """A tube of one radius.

    Args:
        points: (N, 3) mm of its middle line, from the middle of the volume.
        radius: mm.
        parent: number of the branch that it comes from, None for the trunk.
        contrast: (N,) share of the vessel's contrast that the image shows there; far below 1 in a gap.
    """

    points: _Points
    radius: float
    parent: int | None
    contrast: NDArray[np.float64]

    @property
    def direction(self) -> _Points:
        """(3,) of its end."""
        return _unit(self.points[-1] - self.points[-3])


def draw_vessels(
    random: np.random.Generator, shape: tuple[int, ...], spacing: NDArray[np.float64], number: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Image and label of a case: 1 artery, 2 vein, each one piece without a loop.

    Raises:
        ValueError: a volume without room for two trees.
    """
    del number  # all cases are alike
    size = np.asarray(shape) * spacing
    for _ in range(_DRAWS):
        trees = grow_trees(random, size, spacing)
        if trees is None:
            continue
        label, coverage = render(trees, shape, spacing)
        if all(betti_numbers(label == value) == (1, 0) for value in (1, 2)):
            return _image(random, label, coverage, size, spacing), label
    raise ValueError(
        f"expected a volume with room for an artery and a vein, got {shape} voxels of {tuple(spacing.tolist())} mm; "
        "give it more voxels, or thinner slices."
    )


def _image(
    random: np.random.Generator,
    label: NDArray[np.uint8],
    coverage: Volume,
    size: NDArray[np.float64],
    spacing: NDArray[np.float64],
) -> NDArray[np.int16]:
    shape, unit = label.shape, size.min() / 2
    grid = centred_grid(shape, spacing)
    body_radius = radius_in_body(grid, size)
    body = body_radius + 0.04 * smooth_field(random, shape, spacing, 0.4 * unit) < 1
    clean = np.where(body, TISSUE, AIR) + body * 0.04 * smooth_field(random, shape, spacing, 0.15 * unit)
    artery = random.uniform(0.45, 0.6)
    contrasts = (artery, random.uniform(0.5, 0.65) * artery)  # the vein is seen, but less
    around = body & (body_radius < 0.9) & (label == 0)
    bright = blob_mask(random, grid, spacing, unit, around, int(random.integers(2, 5)), random.uniform(0.002, 0.006))
    clean[bright] += artery  # as bright as a vessel, and none
    clean += sum(contrast * covered for contrast, covered in zip(contrasts, coverage, strict=True))
    return scanned(random, gaussian(clean, np.full(3, 0.4)), spacing, unit, noise=(0.06, 0.1))


# --- trees ---


def grow_trees(
    random: np.random.Generator, size: NDArray[np.float64], spacing: NDArray[np.float64]
) -> tuple[list[Branch], list[Branch]] | None:
    """An artery and a vein in a volume of `size` mm, whose trunks run side by side; None where they found no room.

    The radii of the daughters a, b of a branch r follow Murray's law, r^3 = a^3 + b^3, and so do the angles. Branches
    keep apart by two voxels; those of different trees may touch.
    """
    forest = _Forest(random, size, spacing)
    unit = size.min() / 2
    artery_radius, vein_radius = random.uniform(0.085, 0.105) * unit, random.uniform(0.1, 0.12) * unit
    direction = _unit(np.array([*random.uniform(-0.25, 0.25, size=2), 1.0]))
    aside = _perpendicular(random, direction)
    aside = _unit(np.array([*aside[:2], 0.0]))  # within a slice, however thick it is
    aside = _unit(aside - (aside @ direction) * direction)
    start = np.array([*random.uniform(-0.25, 0.25, size=2) * size[:2] / 2, -size[2] / 2]) - direction * spacing[2]
    length = random.uniform(0.55, 0.75) * unit
    trunks = []
    for radius, offset, share in (
        (artery_radius, 0.0, 1.0),
        (vein_radius, artery_radius + vein_radius, random.uniform(0.5, 0.7)),  # its fork is before the artery's
    ):
        line = forest.line(start + offset * aside, direction, share * length, bend=np.zeros(3))
        if not forest.has_room(line, radius, below=True):
            return None
        trunks.append(Branch(line, radius, None, np.ones(len(line))))
    trees = ([trunks[0]], [trunks[1]])
    for own, other in ((0, 1), (1, 0)):
        forest.branch_out(trees[own], trees[other], np.cross(aside, direction))
    if min(map(len, trees)) < _LEAST_BRANCHES:
        return None
    for tree in trees:
        _lose_contrast(random, tree, spacing)
    return trees


@dataclasses.dataclass
class _Forest:
    """Where trees grow."""

    random: np.random.Generator
    size: NDArray[np.float64]
    spacing: NDArray[np.float64]

    @property
    def apart(self) -> float:
        """mm between two branches of a tree."""
        return 2.0 * float(np.linalg.norm(self.spacing)) / math.sqrt(3)

    def line(self, start: _Points, direction: _Points, length: float, bend: _Points) -> _Points:
        """(N, 3) points half a voxel apart, along a line that turns by `bend` per mm."""
        step = self.spacing.min() / 2
        points, heading = [start], direction
        for _ in range(max(4, round(length / step))):
            points.append(points[-1] + step * heading)
            heading = _unit(heading + step * bend)
        return np.array(points)

    def has_room(self, line: _Points, radius: float, below: bool = False) -> bool:
        """Whether a tube lies in body and volume; with `below` it may come in through the lowest slice."""
        inside = radius_in_body(line.T, self.size) < 0.9 - 2 * radius / self.size[:2].min()
        margin = self.size[2] / 2 - radius - self.spacing[2]
        return bool(inside.all() and (line[:, 2] < margin).all() and (below or (line[:, 2] > -margin).all()))

    def branch_out(self, tree: list[Branch], other: Sequence[Branch], across: _Points) -> None:
        """Add daughters to the branches of a tree, two each, as long as there is room beside another tree.

        Args:
            tree: its trunk; the others are added.
            other: the tree beside it.
            across: (3,) direction in which the trunk forks.
        """
        generation = [0]
        for fork in range(_FORKS):
            following: list[int] = []
            for parent in generation:
                daughters = self._daughters(tree, other, parent, across if fork == 0 else None)
                following += range(len(tree), len(tree) + len(daughters))
                tree += daughters
            generation = following

    def _daughters(
        self, tree: Sequence[Branch], other: Sequence[Branch], parent: int, across: _Points | None
    ) -> list[Branch]:
        """Two branches at the end of one, or none where there is no room."""
        random, stem = self.random, tree[parent]
        for _ in range(_TRIES):
            share = random.uniform(0.35, 0.65)
            radii = stem.radius * np.cbrt([share, 1 - share])
            if radii.min() < 0.8 * self.spacing.min():
                continue
            aside = _perpendicular(random, stem.direction) if across is None else across
            pair = [
                self._daughter(stem, parent, own, sister, sign * aside)
                for own, sister, sign in ((radii[0], radii[1], 1), (radii[1], radii[0], -1))
            ]
            if all(self._keeps_apart(branch, tree, other, stem) for branch in pair):
                return pair
        return []

    def _daughter(self, stem: Branch, parent: int, own: float, sister: float, aside: _Points) -> Branch:
        # The angle at which blood flows with the least work, by Murray.
        cosine = (stem.radius**4 + own**4 - sister**4) / (2 * stem.radius**2 * own**2)
        heading = cosine * stem.direction + math.sqrt(max(0.0, 1 - cosine**2)) * aside
        bend = _perpendicular(self.random, heading) * self.random.uniform(0, 0.08) / own
        line = self.line(stem.points[-1], heading, self.random.uniform(5.5, 8.5) * own, bend)
        return Branch(line, float(own), parent, np.ones(len(line)))

    def _keeps_apart(self, new: Branch, tree: Sequence[Branch], other: Sequence[Branch], stem: Branch) -> bool:
        if not self.has_room(new.points, new.radius):
            return False
        reach = 2.5 * stem.radius + 2 * self.apart  # around the fork the branches are one
        fork = stem.points[-1]
        outside = new.points[np.linalg.norm(new.points - fork, axis=1) > reach]
        return all(
            _distance(points, branch.points) >= new.radius + branch.radius + apart
            for branches, points, apart in ((tree, outside, self.apart), (other, new.points, -0.05 * new.radius))
            for branch in branches
        )


def _lose_contrast(random: np.random.Generator, tree: Sequence[Branch], spacing: NDArray[np.float64]) -> None:
    """Up to three gaps, in which a branch nearly vanishes, but goes on."""
    for number in random.permutation(np.arange(1, len(tree)))[: int(random.integers(1, 4))]:
        branch = tree[number]
        along = np.linalg.norm(np.diff(branch.points, axis=0), axis=1).sum() * np.linspace(0, 1, len(branch.points))
        length = min(random.uniform(2, 3.5) * branch.radius + 2 * spacing.max(), 0.6 * along[-1])
        middle = random.uniform(0.4, 0.65) * along[-1]
        branch.contrast[np.abs(along - middle) < length / 2] = random.uniform(0, 0.12)


def _distance(points: _Points, others: _Points) -> float:
    if not len(points):
        return math.inf
    return float(np.linalg.norm(points[:, None] - others[None], axis=2).min())


def _perpendicular(random: np.random.Generator, direction: _Points) -> _Points:
    """(3,) of length 1, at random."""
    other = random.standard_normal(3)
    return _unit(other - (other @ direction) * direction)


def _unit(vector: _Points) -> _Points:
    normalised: _Points = vector / np.linalg.norm(vector)
    return normalised


# --- voxels ---


def render(
    trees: Sequence[Sequence[Branch]], shape: tuple[int, ...], spacing: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], Volume]:
    """Label (X, Y, Z), and (trees, X, Y, Z) how much of a voxel each tree fills, times the contrast there.

    A thick voxel is the mean of thin ones. The label has what a tree fills by half, and its middle line.
    """
    factors = np.maximum(1, np.round(spacing / spacing.min())).astype(int)
    thin = tuple(int(n * f) for n, f in zip(shape, factors, strict=True))
    filled, seen = [], []
    for tree in trees:
        share, contrast = _coverage(tree, thin, spacing / factors)
        whole = _mean_of_blocks(share, factors)
        index = np.concatenate([np.floor(b.points / spacing + np.asarray(shape) / 2).astype(int) for b in tree])
        line = tuple(index[(index >= 0).all(1) & (index < shape).all(1)].T)
        whole[line] = np.maximum(whole[line], 0.5)
        filled.append(whole)
        seen.append(_mean_of_blocks(share * contrast, factors))
    label = np.where(np.max(filled, axis=0) >= 0.5, np.argmax(filled, axis=0) + 1, 0).astype(np.uint8)
    return label, np.stack(seen)


def _coverage(tree: Sequence[Branch], shape: tuple[int, ...], spacing: NDArray[np.float64]) -> tuple[Volume, Volume]:
    """(X, Y, Z) how much of each voxel a tree fills, and the contrast of the branch that it is deepest in."""
    depth, contrast = np.full(shape, -np.inf), np.ones(shape)
    blur = spacing.min()
    middle = (np.asarray(shape) - 1) / 2
    for branch in tree:
        reach = branch.radius + blur
        for point, seen in zip(branch.points, branch.contrast, strict=True):
            low = np.clip(np.ceil((point - reach) / spacing + middle), 0, shape).astype(int)
            high = np.clip(np.floor((point + reach) / spacing + middle) + 1, low, shape).astype(int)
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            squares = [
                ((np.arange(a, b) - m) * s - p) ** 2
                for a, b, m, s, p in zip(low, high, middle, spacing, point, strict=True)
            ]
            own = branch.radius - np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2])
            deeper = own > depth[box]
            depth[box][deeper], contrast[box][deeper] = own[deeper], seen
    return np.clip(depth / blur + 0.5, 0, 1), contrast


def _mean_of_blocks(volume: Volume, factors: NDArray[np.int64]) -> Volume:
    split = [part for n, f in zip(volume.shape, factors, strict=True) for part in (n // f, f)]
    means: Volume = volume.reshape(split).mean(axis=(1, 3, 5))
    return means
