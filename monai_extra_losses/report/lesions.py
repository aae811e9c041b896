"""How the share of lesions that are found depends on their volume, as a picture."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from monai_extra_losses.report.names import shown_name

_MOST_CURVES = 7
"""Classes up to which each has a curve; of more all lesions are one."""

_IN_A_GROUP = 20
"""Lesions of a point of a curve, at least, where there are so many."""

_MOST_POINTS = 12


def draw_sensitivity(
    lesions: Sequence[Mapping[str, Any]], out: str | Path, *, edges_ml: Sequence[float] = (), rule: str = ""
) -> Path:
    """Draw the share of lesions found over their volume, and below it how many there are of each volume.

    A point is a group of lesions of like volume, as many in each, at their median; the bar is Wilson's 95 % interval,
    which takes lesions of one case for independent.

    Args:
        lesions: at least one, each with `label`, `volume_ml` and `found`.
        out: PNG file to write; its folder is created.
        edges_ml: of the bins of the tables, drawn dotted.
        rule: when a lesion is found, for the axis.

    Returns:
        The file written.
    """
    names = list(dict.fromkeys(str(lesion["label"]) for lesion in lesions))
    groups = {name: [one for one in lesions if one["label"] == name] for name in names}
    if len(names) > _MOST_CURVES:
        groups = {f"all {len(names)} classes": list(lesions)}
    figure = Figure(figsize=(7.5, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for number, (name, own) in enumerate(groups.items()):
        _draw_curve(above, own, f"{shown_name(name)} ({len(own)})", f"C{number}")
    _draw_counts(below, lesions)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        for edge in edges_ml:
            axes.axvline(edge, color="0.4", linestyle=":", linewidth=1)
    above.set(ylabel=f"share found\n({rule})" if rule else "share found", ylim=(-0.03, 1.03))
    above.set_title(f"{len(lesions)} lesions, {sum(lesion['found'] for lesion in lesions)} of them found")
    above.legend(frameon=False)
    below.set(xscale="log", xlabel="volume of the lesion (ml)", ylabel="lesions")
    below.legend(frameon=False)
    below.xaxis.set_major_formatter("{x:g}")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return out


def wilson_interval(found: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson 1927, doi:10.1080/01621459.1927.10502953."""
    z = 1.959964
    share, scale = found / of, 1 + z**2 / of
    middle = (share + z**2 / (2 * of)) / scale
    half = z * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def _draw_curve(axes: Axes, lesions: Sequence[Mapping[str, Any]], label: str, colour: str) -> None:
    ordered = sorted(lesions, key=lambda lesion: float(lesion["volume_ml"]))
    count = min(_MOST_POINTS, max(1, len(ordered) // _IN_A_GROUP))
    ends = [len(ordered) * part // count for part in range(count + 1)]
    groups = [ordered[low:high] for low, high in pairwise(ends)]
    volumes = [float(np.median([lesion["volume_ml"] for lesion in group])) for group in groups]
    found = [sum(lesion["found"] for lesion in group) for group in groups]
    shares = np.array([number / len(group) for number, group in zip(found, groups, strict=True)])
    limits = np.array([wilson_interval(number, len(group)) for number, group in zip(found, groups, strict=True)]).T
    bars = np.abs(limits - shares)
    axes.errorbar(volumes, shares, yerr=bars, color=colour, marker="o", capsize=3, label=label)


def _draw_counts(axes: Axes, lesions: Sequence[Mapping[str, Any]]) -> None:
    volumes = np.array([lesion["volume_ml"] for lesion in lesions], dtype=float)
    is_found = np.array([lesion["found"] for lesion in lesions], dtype=bool)
    low, high = volumes.min() / 1.1, volumes.max() * 1.1
    edges: NDArray[np.float64] = np.geomspace(low, high, 25)
    axes.hist(
        [volumes[is_found], volumes[~is_found]],
        bins=edges.tolist(),
        stacked=True,
        color=["0.35", "0.8"],
        label=["found", "missed"],
    )
