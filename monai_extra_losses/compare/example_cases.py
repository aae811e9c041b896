"""Cases in which two losses differ most, with the pictures of their results."""

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imread, imsave
from torch.nn.functional import interpolate

from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.compare.results import ComparisonResults
from monai_extra_losses.compare.statistics import Finding

_PIXELS = 760
"""Width of an embedded picture."""


@dataclasses.dataclass(frozen=True)
class ExampleCase:
    """A case, as two losses segment it.

    Args:
        rank: "best", "median" or "worst" for the second loss.
        case: its name.
        values: of the metric, mean over the replicates, of the first loss and the second.
        pictures: of both; none where they are not there.
        training: seed and fold of the pictures, in words.
    """

    rank: str
    case: str
    values: tuple[float, float]
    pictures: tuple[Path, ...]
    training: str


def example_cases(results: ComparisonResults, finding: Finding, first: str, second: str) -> list[ExampleCase]:
    """The cases in which the second loss gains most over the first, gains as in the median, and loses most."""
    scores = finding.scores
    own = np.full((2, len(scores.cases)), np.nan)
    for row, name in enumerate((first, second)):
        values = scores.values[scores.losses.index(name)]
        defined = np.isfinite(values).any(axis=0)
        own[row, defined] = np.nanmean(values[:, defined], axis=0)
    gain = (own[1] - own[0]) * (1 if scores.metric.higher_is_better else -1)
    ranked = [int(place) for place in np.argsort(gain, kind="stable") if np.isfinite(gain[place])]
    if not ranked:
        return []
    chosen = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
    places = {place: rank for rank, place in reversed(chosen.items())}  # of one case, the best
    return [
        ExampleCase(
            rank,
            scores.cases[place],
            (float(own[0, place]), float(own[1, place])),
            *_pictures(results, (first, second), scores.cases[place]),
        )
        for rank, place in chosen.items()
        if places[place] == rank
    ]


def embedded(picture: Path) -> str:
    """A PNG as a data URI, scaled down."""
    pixels = np.asarray(imread(picture))[..., :3]
    height, width = pixels.shape[:2]
    if width > _PIXELS:
        size = (max(1, round(height * _PIXELS / width)), _PIXELS)
        planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        pixels = interpolate(planes, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).clamp(0, 1).numpy()
    stream = io.BytesIO()
    imsave(stream, pixels, format="png", pil_kwargs={"optimize": True})
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _pictures(results: ComparisonResults, losses: tuple[str, str], case: str) -> tuple[tuple[Path, ...], str]:
    """Those of the first seed and fold in which both losses have one, and which these are."""
    found = [
        {
            (one.trial.seed, one.trial.fold): path
            for one in results.of_loss(loss)
            if (path := RunFolder(one.folder).results.overlays / f"{case}.png").is_file()
        }
        for loss in losses
    ]
    shared = sorted(set(found[0]) & set(found[1]))
    if not shared:
        return (), ""
    seed, fold = shared[0]
    return tuple(own[seed, fold] for own in found), f"seed {seed}, fold {fold}"
