"""Slow, obvious float64 numpy functions, written from the formulas of the papers: what the losses are tested against.

Arrays are (B, C, *spatial) with one-hot, multi-label or soft targets g; `weight` (B, 1, *spatial) counts voxels.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def one_hot(labels: NDArray, num_classes: int) -> Array:
    """(B, 1, *spatial) labels as (B, C, *spatial); a label that is no class gives zeros."""
    return np.concatenate([labels == c for c in range(num_classes)], axis=1).astype(np.float64)


def sigmoid(x: Array) -> Array:
    return np.exp(log_sigmoid(x))


def log_sigmoid(x: Array) -> Array:
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


def softmax(x: Array) -> Array:
    return np.exp(log_softmax(x))


def log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def activated(x: Array, activation: str) -> Array:
    return {"softmax": softmax, "sigmoid": sigmoid, "none": lambda a: a}[activation](x)


def log_of(x: Array, activation: str) -> Array:
    return {"softmax": log_softmax, "sigmoid": log_sigmoid, "none": np.log}[activation](x)


def log_of_complement(x: Array, activation: str) -> Array:
    """log(1 - p) of one-vs-rest decisions."""
    return {"sigmoid": lambda a: log_sigmoid(-a), "none": lambda a: np.log(1 - a)}[activation](x)


def soft_counts(p: Array, g: Array, weight: Array | None = None, *, batch: bool = False) -> tuple[Array, ...]:
    """TP, FP, FN of each sample and class."""
    w = np.ones_like(p[:, :1]) if weight is None else weight
    axes = tuple(range(2, p.ndim))
    tp, fp, fn = ((w * part).sum(axis=axes) for part in (p * g, p * (1 - g), (1 - p) * g))
    return tuple(part.sum(axis=0, keepdims=True) if batch else part for part in (tp, fp, fn))


def tversky_index(counts: tuple[Array, ...], alpha: float, beta: float, smooth: float = 1e-5) -> Array:
    tp, fp, fn = counts
    return (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)


def dice_loss(counts: tuple[Array, ...], smooth_nr: float = 1e-5, smooth_dr: float = 1e-5) -> Array:
    tp, fp, fn = counts
    return 1 - (2 * tp + smooth_nr) / (2 * tp + fp + fn + smooth_dr)


def squared_dice_loss(p: Array, g: Array, weight: Array | None = None, smooth: float = 1e-5) -> Array:
    """V-Net's form: squares in the denominator."""
    w = np.ones_like(p[:, :1]) if weight is None else weight
    axes = tuple(range(2, p.ndim))
    overlap, p_squared, g_squared = ((w * part).sum(axis=axes) for part in (p * g, p * p, g * g))
    return 1 - (2 * overlap + smooth) / (p_squared + g_squared + smooth)


def soft_label_dice_loss(p: Array, g: Array, smooth: float = 1e-5) -> Array:
    """Overlaps are min(p, g), after Wang et al. 2023."""
    axes = tuple(range(2, p.ndim))
    overlap = np.minimum(p, g).sum(axis=axes)
    return 1 - (2 * overlap + smooth) / (p.sum(axis=axes) + g.sum(axis=axes) + smooth)


def jaccard_loss(counts: tuple[Array, ...], smooth: float = 1e-5) -> Array:
    tp, fp, fn = counts
    return 1 - (tp + smooth) / (tp + fp + fn + smooth)


def tversky_loss(counts: tuple[Array, ...], alpha: float, beta: float, smooth: float = 1e-5) -> Array:
    return 1 - tversky_index(counts, alpha, beta, smooth)


def focal_tversky_loss(counts: tuple[Array, ...], alpha: float, beta: float, gamma: float) -> Array:
    return (1 - tversky_index(counts, alpha, beta)) ** (1 / gamma)


def cross_entropy_map(x: Array, g: Array, activation: str, label_smoothing: float = 0.0) -> Array:
    """-sum_c g log p of each voxel, (B, 1, *spatial)."""
    smoothed = (1 - label_smoothing) * g + label_smoothing / g.shape[1]
    return -(smoothed * log_of(x, activation)).sum(axis=1, keepdims=True)


def binary_cross_entropy_map(x: Array, g: Array, activation: str = "sigmoid", label_smoothing: float = 0.0) -> Array:
    """-(g log p + (1-g) log(1-p)) of each decision, (B, C, *spatial)."""
    smoothed = (1 - label_smoothing) * g + label_smoothing / 2
    return -(smoothed * log_of(x, activation) + (1 - smoothed) * log_of_complement(x, activation))


def weighted_cross_entropy(x: Array, g: Array, class_weight: Array, mask: Array | None = None) -> float:
    """sum w l / sum w over the voxels, w the weight of the voxel's class."""
    w = (g * class_weight.reshape(1, -1, *[1] * (g.ndim - 2))).sum(axis=1, keepdims=True)
    if mask is not None:
        w = w * mask
    return float((w * cross_entropy_map(x, g, "softmax")).sum() / w.sum())


def focal_softmax_map(x: Array, g: Array, gamma: float) -> Array:
    """-g (1 - p)^gamma log p of each voxel and channel."""
    log_p = log_softmax(x)
    return -g * (1 - np.exp(log_p)) ** gamma * log_p


def focal_sigmoid_map(x: Array, g: Array, gamma: float, alpha: float | None = None) -> Array:
    """-alpha_t (1 - p_t)^gamma log p_t of each decision; g is 0 or 1."""
    log_pt = np.where(g == 1, log_sigmoid(x), log_sigmoid(-x))
    alpha_t = 1.0 if alpha is None else np.where(g == 1, alpha, 1 - alpha)
    return -alpha_t * (1 - np.exp(log_pt)) ** gamma * log_pt


def gradient(function: Callable[[Array], float], x: Array, step: float = 1e-5) -> Array:
    """Central differences of the fourth order of a scalar function at x: exact to about 1e-10 here."""
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        shifted = {}
        for k in (-2, -1, 1, 2):
            moved = x.copy()
            moved[index] += k * step
            shifted[k] = function(moved)
        result[index] = (8 * (shifted[1] - shifted[-1]) - (shifted[2] - shifted[-2])) / (12 * step)
    return result
