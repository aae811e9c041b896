"""Slow, obvious float64 numpy functions, written from the formulas of the papers: what the losses are tested against.

Arrays are (B, C, *spatial) with one-hot, multi-label or soft targets g; `weight` (B, 1, *spatial) counts voxels. What
`loss_list.py` names is a `Reference`: the mean of a loss, given its own options by their names.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import skeletonize

Array = NDArray[np.float64]


class Reference(Protocol):
    """The value of a loss of input x under an activation; the options are those of the loss's own, by name."""

    def __call__(self, x: Array, g: Array, activation: str, w: Array, /, **options: Any) -> float: ...


def mean_of_pairs(loss: Callable[..., Array]) -> Reference:
    """That of a loss (B, C) of each sample and class, or (B,) of each sample, of p, g and the weights of the voxels."""
    return lambda x, g, activation, w, **options: float(loss(activated(x, activation), g, w, **options).mean())


def mean_of_true_class(formula: Callable[..., Array]) -> Reference:
    """That of a formula of the log-probability of the true outcome."""
    return lambda x, g, activation, w, **options: true_class_mean(
        x, g, activation, w, lambda log_pt: formula(log_pt, **options)
    )


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


def jaccard_loss(counts: tuple[Array, ...], smooth: float = 1e-5) -> Array:
    tp, fp, fn = counts
    return 1 - (tp + smooth) / (tp + fp + fn + smooth)


def tversky_loss(counts: tuple[Array, ...], alpha: float, beta: float, smooth: float = 1e-5) -> Array:
    return 1 - tversky_index(counts, alpha, beta, smooth)


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


# --- region: (B, C) of p, g and the weights of the voxels ---


def over_voxels(values: Array, weight: Array | None = None) -> Array:
    """(B, C) weighted sums over the voxels."""
    return (values if weight is None else values * weight).sum(axis=tuple(range(2, values.ndim)))


def dice(
    p: Array,
    g: Array,
    w: Array,
    *,
    squared_pred: bool = False,
    jaccard: bool = False,
    soft_label: bool = False,
    batch: bool = False,
    include_background: bool = True,
    smooth: float = 1e-5,
) -> Array:
    """V-Net's form has squares in the denominator; the overlap of soft labels is min(p, g), after Wang et al. 2023."""
    parts = (p * g, p * p + g * g) if squared_pred else (np.minimum(p, g) if soft_label else p * g, p + g)
    overlap, total = (over_voxels(part, w) for part in parts)
    if batch:
        overlap, total = overlap.sum(axis=0, keepdims=True), total.sum(axis=0, keepdims=True)
    below = 2 * (total - overlap) if jaccard else total
    return (1 - (2 * overlap + smooth) / (below + smooth))[:, 0 if include_background else 1 :]


def jaccard(p: Array, g: Array, w: Array) -> Array:
    return jaccard_loss(soft_counts(p, g, w))


def tversky(p: Array, g: Array, w: Array, alpha: float = 0.5, beta: float = 0.5) -> Array:
    return tversky_loss(soft_counts(p, g, w), alpha, beta)


def focal_tversky(p: Array, g: Array, w: Array, alpha: float = 0.3, beta: float = 0.7, gamma: float = 4 / 3) -> Array:
    return tversky(p, g, w, alpha, beta) ** (1 / gamma)


def log_cosh_dice_loss(p: Array, g: Array, w: Array) -> Array:
    return np.log(np.cosh(dice_loss(soft_counts(p, g, w))))


def generalized_dice_loss(
    p: Array,
    g: Array,
    w: Array,
    w_type: str = "square",
    absent_class: str = "smooth",
    soft_label: bool = False,
    smooth: float = 1e-5,
) -> Array:
    """(B,) losses; class weights 1/(sum g)^power, divided by the largest, which an absent class gets too (or 0)."""
    result = []
    power, skip = {"square": 2, "simple": 1, "uniform": 0}[w_type], absent_class == "skip"
    overlaps = over_voxels(np.minimum(p, g) if soft_label else p * g, w)
    for overlap, p_sum, g_sum in zip(overlaps, over_voxels(p, w), over_voxels(g, w), strict=True):
        largest = max(1 / n**power for n in g_sum if n > 0)
        weights = np.array([1 / n**power / largest if n > 0 else 0 if skip else 1 for n in g_sum])
        result.append(1 - (2 * (weights * overlap).sum() + smooth) / ((weights * (p_sum + g_sum)).sum() + smooth))
    return np.array(result)


def sensitivity_specificity_loss(p: Array, g: Array, w: Array, sensitivity_weight: float = 0.05) -> Array:
    inside = over_voxels((g - p) ** 2 * g, w) / (over_voxels(g, w) + 1e-5)
    outside = over_voxels((g - p) ** 2 * (1 - g), w) / (over_voxels(1 - g, w) + 1e-5)
    return sensitivity_weight * inside + (1 - sensitivity_weight) * outside


def two_class_dice_loss(p: Array, g: Array, w: Array) -> Array:
    return (dice_loss(soft_counts(p, g, w)) + dice_loss(soft_counts(1 - p, 1 - g, w))) / 2


def noise_robust_dice_loss(p: Array, g: Array, w: Array, gamma: float = 1.5) -> Array:
    errors = over_voxels(np.abs(p - g) ** gamma, w)
    return errors / (over_voxels(p**2, w) + over_voxels(g**2, w) + 1e-5)


def contour_sizes(g: Array, w: Array) -> Array:
    """(B, C) voxels above 0.5 with a face neighbour that is not, or outside the volume; w = 0 is in no class."""
    inside = (g > 0.5) & (w > 0)
    sizes = np.zeros(g.shape[:2])
    for n, c, *voxel in np.argwhere(inside):
        for axis in range(len(voxel)):
            for step in (-1, 1):
                other = [*voxel]
                other[axis] += step
                outside = not 0 <= other[axis] < g.shape[2 + axis]
                if outside or not inside[(n, c, *other)]:
                    break
            else:
                continue
            sizes[n, c] += 1
            break
    return sizes


def boundary_dou_loss(p: Array, g: Array, w: Array, smooth: float = 1e-5) -> Array:
    a = np.minimum(1 - 2 * (contour_sizes(g, w) + smooth) / (over_voxels(g, w) + smooth), 0.8)
    squares = over_voxels(p**2, w) + over_voxels(g**2, w)
    overlap = over_voxels(p * g, w)
    values = (squares - 2 * overlap + smooth) / (squares - (1 + a) * overlap + smooth)
    return np.where(over_voxels(g, w) > 0, values, over_voxels(p**2, w) / over_voxels(w))


# --- distribution ---


def log_one_vs_rest(x: Array, activation: str) -> tuple[Array, Array]:
    """log p and log(1 - p) of every channel; under softmax log(sum of the other exponentials) - log(sum of all)."""
    if activation != "softmax":
        return log_of(x, activation), log_of_complement(x, activation)
    others = [np.delete(x, c, axis=1) for c in range(x.shape[1])]
    total = np.logaddexp.reduce(x, axis=1)
    rest = np.stack([np.logaddexp.reduce(other, axis=1) - total for other in others], axis=1)
    return log_softmax(x), rest


def true_class_mean(x: Array, g: Array, activation: str, w: Array, formula: Callable[[Array], Array]) -> float:
    """Mean of formula(log p_t): over voxels, or with sigmoid over voxels and channels."""
    if activation == "sigmoid":
        log_p, log_not_p = log_one_vs_rest(x, activation)
        values = g * formula(log_p) + (1 - g) * formula(log_not_p)
        return float((w * values).sum() / (w.sum() * x.shape[1]))
    return float((w * g * formula(log_of(x, activation))).sum() / w.sum())


def poly(log_pt: Array, epsilon: float = 1.0) -> Array:
    return -log_pt + epsilon * (1 - np.exp(log_pt))


def generalized_cross_entropy(log_pt: Array, q: float = 0.7) -> Array:
    return (1 - np.exp(log_pt) ** q) / q


def beta_cross_entropy(x: Array, g: Array, activation: str, w: Array, positive: Array, negative: Array) -> float:
    """-(positive g log p + negative (1-g) log(1-p)), mean over voxels and classes; factors (B, C) or numbers."""
    log_p, log_not_p = log_one_vs_rest(x, activation)
    positive, negative = (np.reshape(f, (*np.shape(f), *[1] * (x.ndim - 2))) for f in (positive, negative))
    values = positive * g * log_p + negative * (1 - g) * log_not_p
    return float(-(w * values).sum() / (w.sum() * x.shape[1]))


def cross_entropy(x: Array, g: Array, activation: str, w: Array, label_smoothing: float = 0.0) -> float:
    if activation == "sigmoid":
        voxels = binary_cross_entropy_map(x, g, "sigmoid", label_smoothing)
        return float((w * voxels).sum() / (w.sum() * x.shape[1]))
    return float((w * cross_entropy_map(x, g, activation, label_smoothing)).sum() / w.sum())


def focal(x: Array, g: Array, activation: str, w: Array, gamma: float = 2.0, alpha: float | None = None) -> float:
    """The mean over the channels too, as MONAI has it; g is 0 or 1."""
    if activation != "softmax":
        voxels = focal_sigmoid_map(x, g, gamma, alpha)
    else:
        voxels = focal_softmax_map(x, g, gamma)
        if alpha is not None:
            voxels = np.concatenate([(1 - alpha) * voxels[:, :1], alpha * voxels[:, 1:]], axis=1)
    return float((w * voxels).sum() / (w.sum() * x.shape[1]))


def positives_cross_entropy(
    x: Array, g: Array, activation: str, w: Array, beta: float = 1.0, mode: str = "fixed"
) -> float:
    """Positives count beta, or their odds in the target or the prediction, within 1e-3 and 1e3."""
    factor: Array | float = beta
    if mode != "fixed":
        share = over_voxels(g if mode == "target" else activated(x, activation), w) / over_voxels(w)
        factor = np.clip((1 - share) / np.maximum(share, 1e-12), 1e-3, 1e3)
    return beta_cross_entropy(x, g, activation, w, factor, 1.0)


def balanced_cross_entropy(
    x: Array, g: Array, activation: str, w: Array, beta_range: tuple[float, float] = (0.05, 0.95)
) -> float:
    beta = np.clip(1 - over_voxels(g, w) / over_voxels(w), *beta_range)
    return beta_cross_entropy(x, g, activation, w, beta, 1 - beta)


def top_k(x: Array, g: Array, activation: str, w: Array, k: float = 10.0, per_class: bool = False) -> float:
    voxels = binary_cross_entropy_map(x, g) if activation == "sigmoid" else cross_entropy_map(x, g, activation)
    if per_class:
        return float(np.mean([top_k_mean(w * voxels[:, c : c + 1], w > 0, k) for c in range(voxels.shape[1])]))
    return top_k_mean(w * voxels, w > 0, k)


def top_k_mean(values: Array, kept: NDArray[np.bool_], k: float) -> float:
    """Mean over the samples of the mean of the k % largest values of a sample."""
    means = []
    for sample, keep in zip(values, np.broadcast_to(kept, values.shape), strict=True):
        ranked = np.sort(sample[keep])[::-1]
        if len(ranked):
            means.append(ranked[: max(1, int(np.floor(len(ranked) * k / 100)))].mean())
    return float(np.mean(means))


def hinge(s: Array, g: Array, activation: str, w: Array, power: int = 1) -> float:
    values = g * np.maximum(0, 1 - s) ** power + (1 - g) * np.maximum(0, 1 + s) ** power
    return float((w * values).sum() / (w.sum() * s.shape[1]))


def squared_hinge(s: Array, g: Array, activation: str, w: Array) -> float:
    return hinge(s, g, activation, w, power=2)


def categorical_hinge(s: Array, g: Array, activation: str, w: Array) -> float:
    total = 0.0
    for c in range(s.shape[1]):
        best_other = np.delete(s, c, axis=1).max(axis=1)
        total += (w[:, 0] * g[:, c] * np.maximum(0, 1 + best_other - s[:, c])).sum()
    return float(total / w.sum())


# --- compound ---


def mean_dice(x: Array, g: Array, activation: str, w: Array, smooth: float = 1e-5) -> float:
    return float(dice(activated(x, activation), g, w, smooth=smooth).mean())


def dice_cross_entropy(
    x: Array,
    g: Array,
    activation: str,
    w: Array,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    label_smoothing: float = 0.0,
) -> float:
    """The cross-entropy reads scores, whatever Dice reads; as in MONAI the smoothing is of a softmax alone."""
    of_dice = lambda_dice * mean_dice(x, g, activation, w)
    if activation == "sigmoid":
        return of_dice + lambda_ce * cross_entropy(x, g, "sigmoid", w)
    return of_dice + lambda_ce * cross_entropy(x, g, "softmax", w, label_smoothing)


def dice_focal(
    x: Array,
    g: Array,
    activation: str,
    w: Array,
    lambda_dice: float = 1.0,
    lambda_focal: float = 1.0,
    gamma: float = 2.0,
) -> float:
    return lambda_dice * mean_dice(x, g, activation, w) + lambda_focal * focal(x, g, activation, w, gamma)


def dice_top_k(
    x: Array, g: Array, activation: str, w: Array, k: float = 10.0, lambda_dice: float = 1.0, lambda_topk: float = 1.0
) -> float:
    return lambda_dice * mean_dice(x, g, activation, w) + lambda_topk * top_k(x, g, activation, w, k)


def combo(x: Array, g: Array, activation: str, w: Array, alpha: float = 0.5, beta: float = 0.5) -> float:
    entropy = beta_cross_entropy(x, g, activation, w, beta, 1 - beta)
    return alpha * entropy + (1 - alpha) * mean_dice(x, g, activation, w, smooth=1.0)


def exponential_logarithmic(x: Array, g: Array, activation: str, w: Array, frequencies: Array | None = None) -> float:
    """0.8 mean (-ln D)^0.3 over the samples and classes present + 0.2 mean w_t (-ln p_t)^0.3, smoothing 1."""
    p = activated(x, activation)
    dice = np.minimum(1 - dice_loss(soft_counts(p, g, w), 1.0, 1.0), 1 - 1e-6)
    present = over_voxels(g, w) > 0
    log_dice = ((-np.log(dice)) ** 0.3)[present].mean()

    def power(log_pt: Array) -> Array:
        return np.maximum(-log_pt, 1e-7) ** 0.3

    volumes = over_voxels(g, w).sum(axis=0) if frequencies is None else frequencies
    total = w.sum() if frequencies is None else 1.0
    shape = (1, -1, *[1] * (x.ndim - 2))
    if activation == "sigmoid":
        log_p, log_not_p = log_one_vs_rest(x, activation)
        values = np.sqrt(total / volumes).reshape(shape) * g * power(log_p)
        values = values + np.sqrt(total / (total - volumes)).reshape(shape) * (1 - g) * power(log_not_p)
        return float(0.8 * log_dice + 0.2 * (w * values).sum() / (w.sum() * x.shape[1]))
    factor = np.array([np.sqrt(volumes.sum() / v) if v > 0 else 0 for v in volumes]).reshape(shape)
    return float(0.8 * log_dice + 0.2 * (w * factor * g * power(log_of(x, activation))).sum() / w.sum())


def unified_focal(
    x: Array,
    g: Array,
    activation: str,
    w: Array,
    *,
    asymmetric: bool = False,
    weight_focal: float = 0.5,
    delta: float = 0.6,
    gamma: float = 0.5,
) -> float:
    tversky = 1 - tversky_index(soft_counts(activated(x, activation), g, w), 1 - delta, delta)
    focal_tversky = tversky ** (1 - gamma)

    def focal(log_pt: Array) -> Array:
        return -((1 - np.exp(log_pt)) ** gamma) * log_pt

    if activation == "sigmoid":
        log_p, log_not_p = log_one_vs_rest(x, activation)
        foreground = -log_p if asymmetric else focal(log_p)
        values = delta * g * foreground + (1 - delta) * (1 - g) * focal(log_not_p)
        cross_entropy = (w * values).sum() / (w.sum() * x.shape[1])
        return float(weight_focal * cross_entropy + (1 - weight_focal) * focal_tversky.mean())
    log_p = log_of(x, activation)
    background = (1 - delta) * g[:, :1] * focal(log_p[:, :1])
    foreground = delta * g[:, 1:] * (-log_p[:, 1:] if asymmetric else focal(log_p[:, 1:]))
    cross_entropy = (w * background).sum() / w.sum() + (w * foreground).sum() / w.sum()
    if asymmetric:
        focal_tversky[:, 0] = tversky[:, 0]
    return float(weight_focal * cross_entropy + (1 - weight_focal) * focal_tversky.mean())


# --- structure ---


@functools.cache
def _window(shape: tuple[int, ...], voxel: tuple[int, ...]) -> tuple[tuple[NDArray[np.int64], ...], Array]:
    """Where the window of a voxel reads, 3 voxels per axis with reflected borders, and its Gaussian weights."""
    places, weights = [], []
    for step in np.ndindex(*[3] * len(shape)):
        index = []
        for position, offset, length in zip(voxel, step, shape, strict=True):
            i = abs(position + offset - 1)
            index.append(2 * (length - 1) - i if i >= length else i)
        places.append(index)
        weights.append(np.exp(-sum((offset - 1) ** 2 for offset in step) / (2 * 1.5**2)))
    return tuple(np.array(places).T), np.array(weights) / np.sum(weights)


def normalised_in_window(x: Array, stability: float = 0.01) -> Array:
    """(x - mu + C) / (sigma + C) of (*spatial)."""
    result = np.empty_like(x)
    for voxel in np.ndindex(*x.shape):
        places, weights = _window(x.shape, voxel)
        values = x[places]
        mean = (weights * values).sum()
        deviation = np.sqrt((weights * (values - mean) ** 2).sum())
        result[voxel] = (x[voxel] - mean + stability) / (deviation + stability)
    return result


def structural_similarity(
    x: Array,
    g: Array,
    activation: str,
    w: Array,
    weight_cross_entropy: float = 0.5,
    threshold: float = 0.1,
    *,
    weighed_at: Array | None = None,
) -> float:
    """With `weighed_at` e is that of other scores."""
    p = activated(x if weighed_at is None else weighed_at, activation)
    log_p, log_not_p = log_one_vs_rest(x, activation)
    entropy = -(g * log_p + (1 - g) * log_not_p)
    values = []
    for n, c in np.ndindex(*x.shape[:2]):
        keep = w[n, 0] > 0
        e = np.abs(normalised_in_window(np.where(keep, g[n, c], 0)) - normalised_in_window(np.where(keep, p[n, c], 0)))
        e = np.where(keep, e, 0)  # an ignored voxel has neighbours that differ, and is not the largest
        f = (e > threshold * e.max()) & keep
        plain = (w[n, 0] * entropy[n, c]).sum() / w[n, 0].sum()
        structure = (e * f * w[n, 0] * entropy[n, c]).sum() / f.sum() if f.any() else 0.0
        values.append(weight_cross_entropy * plain + (1 - weight_cross_entropy) * structure)
    return float(np.mean(values))


def lovasz_of_set(errors: Array, g: Array) -> float:
    """The Lovasz extension of the Jaccard loss (Berman et al., equations 8 and 9), of the errors of one class."""
    order = np.argsort(-errors)
    total, loss, before = g.sum(), 0.0, 0.0
    missed = wrong = 0.0
    for i in order:
        missed, wrong = missed + g[i], wrong + 1 - g[i]
        jaccard = 1 - (total - missed) / (total + wrong)
        loss += errors[i] * (jaccard - before)
        before = jaccard
    return float(loss)


def lovasz(
    x: Array, g: Array, activation: str, w: Array, *, batch: bool = False, absent_class: str = "smooth"
) -> float:
    """Mean over the classes of each sample (with "skip" those present), then over the samples; w selects voxels."""
    skip = absent_class == "skip"
    p = activated(x, activation)
    if batch:
        g, p, w = (np.concatenate([sample.reshape(len(sample), -1) for sample in maps], 1)[None] for maps in (g, p, w))
    samples = []
    for n in range(len(p)):
        keep = w[n, 0] > 0
        chosen = [c for c in range(p.shape[1]) if not skip or g[n, c][keep].sum() > 0]
        losses = [lovasz_of_set(np.abs(g[n, c] - p[n, c])[keep], g[n, c][keep]) for c in chosen]
        if losses:
            samples.append(np.mean(losses))
    return float(np.mean(samples))


# --- vessels ---


def soft_skeleton(a: Array, iterations: int) -> Array:
    """(*spatial) soft skeleton (Shit et al., algorithm 1); what is beyond the border has no say."""

    def erode(a: Array) -> Array:
        lines = [[3 if i == axis else 1 for i in range(a.ndim)] for axis in range(a.ndim)]
        return np.min([ndimage.minimum_filter(a, size, mode="nearest") for size in lines], axis=0)

    def opened(a: Array) -> Array:
        return ndimage.maximum_filter(erode(a), 3, mode="nearest")

    skeleton = np.maximum(a - opened(a), 0)
    for _ in range(iterations):
        a = erode(a)
        delta = np.maximum(a - opened(a), 0)
        skeleton = skeleton + np.maximum(delta - skeleton * delta, 0)
    return skeleton


def half_width(masks: Array) -> int:
    """The largest distance in steps between face neighbours from inside one of the masks (N, *spatial) to outside."""
    steps = [max(m.shape) if m.all() else int(ndimage.distance_transform_cdt(m, "taxicab").max()) for m in masks]
    return max([1, *steps])


def centerline_dice(
    x: Array,
    g: Array,
    activation: str,
    w: Array,
    *,
    iterations: int | None = 10,
    smooth: float = 1e-5,
    absent_class: str = "smooth",
    include_background: bool = True,
) -> float:
    p = activated(x, activation)
    values = []
    for n in range(len(p)):
        keep = w[n, 0] > 0
        kept = range(0 if include_background else 1, p.shape[1])
        number = half_width(np.stack([(g[n, c] > 0.5) & keep for c in kept])) if iterations is None else iterations
        for c in kept:
            own, true = np.where(keep, p[n, c], 0), np.where(keep, g[n, c], 0)
            if absent_class == "skip" and true.sum() == 0:
                continue
            of_p, of_g = soft_skeleton(own, number), soft_skeleton(true, number)
            precision = ((w[n, 0] * of_p * true).sum() + smooth) / ((w[n, 0] * of_p).sum() + smooth)
            sensitivity = ((w[n, 0] * of_g * own).sum() + smooth) / ((w[n, 0] * of_g).sum() + smooth)
            values.append(1 - 2 * precision * sensitivity / (precision + sensitivity))
    return float(np.mean(values)) if values else 0.0


def thickness(mask: Array, iterations: int, radius_weight: str) -> tuple[Array, Array, Array, Array]:
    """d, r, i and S of a mask: depth and radius as shares of the largest, weight of skeleton voxels, skeleton."""
    axes, skeleton = mask.ndim, soft_skeleton(mask.astype(float), iterations) > 0.5
    depth = np.ones(mask.shape) if mask.all() else ndimage.distance_transform_edt(mask)
    largest = max(depth[skeleton].max(initial=1), 1)
    depth = np.minimum(depth * mask, largest) / largest
    radius, weight = depth * skeleton, np.zeros(mask.shape)
    for at in zip(*np.nonzero(skeleton), strict=True):
        r = radius[at]
        weight[at] = (1 / r if radius_weight == "inverse" else 1 - r + 1 / largest) ** (axes - 1)
    return depth, radius, weight, skeleton


def centerline_boundary_dice(
    x: Array,
    g: Array,
    activation: str,
    w: Array,
    *,
    iterations: int = 10,
    smooth: float = 1e-5,
    radius_weight: str = "inverse",
    absent_class: str = "smooth",
    include_background: bool = True,
) -> float:
    p, values = activated(x, activation), []
    for n in range(len(p)):
        keep = w[n, 0] > 0
        for c in range(0 if include_background else 1, p.shape[1]):
            own, true = np.where(keep, p[n, c], 0), (g[n, c] > 0.5) & keep
            if absent_class == "skip" and np.where(keep, g[n, c], 0).sum() == 0:
                continue
            depth_p, radius_p, weight_p, on_p = thickness(own > 0.5, iterations, radius_weight)
            depth_g, radius_g, weight_g, on_g = thickness(true, iterations, radius_weight)
            q_p, q_g = w[n, 0] * weight_p * own, w[n, 0] * weight_g
            of_p, of_g = np.where(on_g, radius_g, radius_p * own), np.where(on_p, radius_p * own, radius_g)
            precision = ((q_p * depth_g).sum() + smooth) / ((q_p * of_p).sum() + smooth)
            sensitivity = ((q_g * depth_p * own).sum() + smooth) / ((q_g * of_g).sum() + smooth)
            values.append(1 - 2 * precision * sensitivity / (precision + sensitivity))
    return float(np.mean(values)) if values else 0.0


def tube(mask: Array) -> Array:
    """The skeleton of scikit-image, dilated twice by the cross."""
    lines = mask[None] if mask.ndim == 1 else mask
    found = skeletonize(lines).astype(bool).reshape(mask.shape) if mask.any() else mask
    return ndimage.binary_dilation(found, ndimage.generate_binary_structure(mask.ndim, 1), iterations=2)


def skeleton_recall(
    x: Array,
    g: Array,
    activation: str,
    w: Array,
    *,
    union: bool = False,
    smooth: float = 1e-5,
    include_background: bool = True,
) -> float:
    p, values = activated(x, activation), []
    first = 0 if include_background else 1
    for n in range(len(p)):
        of = (g[n] > 0.5) & (w[n] > 0)
        for c in range(first, p.shape[1]):
            s = tube(of[first:].any(axis=0) if union else of[c]) & of[c]
            if s.any():
                values.append(1 - ((w[n, 0] * s * p[n, c]).sum() + smooth) / ((w[n, 0] * s).sum() + smooth))
    return float(np.mean(values)) if values else 0.0


def topological_interaction(
    x: Array,
    g: Array,
    activation: str,
    w: Array,
    *,
    exclusion: list[list[int]] | None = None,
    inclusion: list[list[int]] | None = None,
    connectivity: int | None = None,
) -> float:
    axes = x.ndim - 2
    structure = ndimage.generate_binary_structure(axes, connectivity or axes)
    critical = np.zeros(w.shape, dtype=bool)
    for n in range(len(x)):
        counts, predicted = w[n, 0] > 0, x[n].argmax(axis=0)
        of = [(predicted == c) & counts for c in range(x.shape[1])]
        pairs = [(of[a], of[b]) for a, b in exclusion or []]
        pairs += [(of[a], counts & ~of[a] & ~of[b]) for a, b in inclusion or []]
        for a, b in pairs:
            critical[n, 0] |= (ndimage.binary_dilation(b, structure) & a) | (ndimage.binary_dilation(a, structure) & b)
    return float((critical * w * cross_entropy_map(x, g, activation)).sum() / w.sum())


# --- calibration ---


def average_calibration(
    x: Array, g: Array, activation: str, w: Array, *, bins: int = 20, soft: bool = False, absent_class: str = "skip"
) -> float:
    p, values = activated(x, activation), []
    for n, c in np.ndindex(*p.shape[:2]):
        own, true, weight = p[n, c].ravel(), g[n, c].ravel(), w[n, 0].ravel()
        if weight.sum() == 0 or (absent_class == "skip" and (weight * true).sum() == 0):
            continue
        terms = []
        for b in range(bins):
            inside = (own > b / bins) & (own <= (b + 1) / bins) | ((b == 0) & (own == 0))
            if soft and bins > 1:
                place = (own * bins - 0.5).clip(0, bins - 1)  # in bins: beyond the outer centres no other has a share
                inside = np.maximum(0, 1 - np.abs(place - b))
            share = weight * inside
            if share.sum() > 0:
                terms.append(abs((share * own).sum() - (share * true).sum()) / share.sum())
        values.append(np.mean(terms))
    return float(np.mean(values)) if values else 0.0


# --- components ---


def components_of(mask: Array, connectivity: int | None) -> tuple[NDArray[np.int64], int]:
    structure = ndimage.generate_binary_structure(mask.ndim, connectivity or mask.ndim)
    return ndimage.label(mask, structure)


def cells_of(components: NDArray[np.int64], spacing: tuple[float, ...] | None) -> NDArray[np.int64]:
    """The component that is nearest to each voxel."""
    nearest = ndimage.distance_transform_edt(
        components == 0, sampling=spacing, return_distances=False, return_indices=True
    )
    return components[tuple(nearest)]


def component_dice_cross_entropy(
    x: Array,
    g: Array,
    activation: str,
    w: Array,
    *,
    blobs: bool = False,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    connectivity: int | None = None,
    smooth: float = 1e-5,
    spacing: tuple[float, ...] | None = None,
    absent_class: str = "smooth",
    include_background: bool = True,
) -> float:
    p, (log_p, log_not_p), values = activated(x, activation), log_one_vs_rest(x, activation), []
    losses = -(g * log_p + (1 - g) * log_not_p)

    def of_domain(n: int, c: int, domain: Array) -> float:
        weight = w[n, 0] * domain
        own, true = p[n, c], g[n, c]
        dice = 1 - (2 * (weight * own * true).sum() + smooth) / ((weight * (own + true)).sum() + smooth)
        return lambda_dice * dice + lambda_ce * (weight * losses[n, c]).sum() / weight.sum()

    for n in range(len(p)):
        for c in range(0 if include_background else 1, p.shape[1]):
            components, number = components_of((g[n, c] > 0.5) & (w[n, 0] > 0), connectivity)
            if number == 0:
                if absent_class == "smooth":
                    values.append(of_domain(n, c, np.ones(w[n, 0].shape)))
                continue
            cells = components if blobs else cells_of(components, spacing)
            domains = [(cells == k) | (blobs & (cells == 0)) for k in range(1, number + 1)]
            values.append(np.mean([of_domain(n, c, domain) for domain in domains]))
    return float(np.mean(values)) if values else 0.0


def blob_dice_cross_entropy(x: Array, g: Array, activation: str, w: Array, **options: Any) -> float:
    return component_dice_cross_entropy(x, g, activation, w, blobs=True, **options)


# --- surfaces ---


def thick_rim(x: Array, tolerance_mm: float, spacing: tuple[float, ...] | None) -> Array:
    """The largest of x less the least of 3 voxels per axis, over a ball, voxel by voxel."""
    rim = x - ndimage.minimum_filter(x, size=3, mode="nearest")
    mm = np.ones(x.ndim) if spacing is None else np.array(spacing)
    at = np.stack(np.meshgrid(*map(np.arange, x.shape), indexing="ij"), axis=-1).reshape(-1, x.ndim) * mm
    near = ((at[:, None] - at[None]) ** 2).sum(-1) <= tolerance_mm**2 + 1e-9
    return np.where(near, rim.ravel(), -np.inf).max(axis=1).reshape(x.shape)


def surface_dice(
    x: Array,
    g: Array,
    activation: str,
    w: Array,
    *,
    tolerance_mm: float = 1.0,
    smooth: float = 1e-5,
    spacing: tuple[float, ...] | None = None,
    absent_class: str = "smooth",
) -> float:
    p, values = activated(x, activation), []
    for n, c in np.ndindex(*p.shape[:2]):
        weight = w[n, 0]
        own, true = np.where(weight > 0, p[n, c], 0), np.where(weight > 0, g[n, c], 0)
        if weight.sum() == 0 or (true.sum() == 0 and (absent_class == "skip" or own.max() == 0)):
            continue
        of_p, of_g = thick_rim(own, tolerance_mm, spacing), thick_rim(true, tolerance_mm, spacing)
        overlap, both = (weight * of_p * of_g).sum(), (weight * (of_p + of_g)).sum()
        values.append(1 - (2 * overlap + smooth) / (both + smooth))
    return float(np.mean(values)) if values else 0.0


# --- boundary: distances by scipy, between voxel centres ---


def distance_to(mask: Array, spacing: tuple[float, ...] | None) -> Array:
    """Distance of each voxel to the nearest voxel of the mask."""
    return ndimage.distance_transform_edt(~mask, sampling=spacing)


def signed_distance(mask: Array, spacing: tuple[float, ...] | None) -> Array:
    """> 0 outside, < 0 inside; 0 where the mask is empty or full."""
    if not mask.any() or mask.all():
        return np.zeros(mask.shape)
    return np.where(mask, -distance_to(~mask, spacing), distance_to(mask, spacing))


def signed_distances(g: Array, w: Array, spacing: tuple[float, ...] | None) -> Array:
    """(B, C, *spatial); a voxel that does not count belongs to no class."""
    maps = np.empty(g.shape)
    for n, c in np.ndindex(*g.shape[:2]):
        maps[n, c] = signed_distance((g[n, c] > 0.5) & (w[n, 0] > 0), spacing)
    return maps


def surface(p: Array, g: Array, w: Array, spacing: tuple[float, ...] | None = None) -> Array:
    """(B, C)"""
    s = signed_distances(g, w, spacing)
    phi = np.where(s < 0, s + (1.0 if spacing is None else min(spacing)), s)
    return over_voxels(p * phi, w) / over_voxels(w)


def generalized_surface(
    p: Array,
    g: Array,
    w: Array,
    spacing: tuple[float, ...] | None = None,
    *,
    class_weight: Array | None = None,
    absent_class: str = "smooth",
    smooth: float = 1e-5,
) -> Array:
    """(B,); an absent class has the mean D^2 and the mean weight of the classes with a boundary, with "skip" none."""
    d_squared = signed_distances(g, w, spacing) ** 2
    volumes = over_voxels(g, w)
    values = np.empty(len(g))
    for n in range(len(g)):
        absent = volumes[n] == 0
        means = [(w[n, 0] * d).sum() / w[n, 0].sum() for d in d_squared[n]]
        bounded = np.array(means) > 0
        weight = 1 / (volumes[n] ** 2 + 1) if class_weight is None else np.array(class_weight, dtype=float)
        if class_weight is None:
            weight[absent] = weight[bounded].mean() if bounded.any() else 1.0
        if absent_class == "skip":
            weight[absent] = 0
        numerator = denominator = smooth
        for c in range(g.shape[1]):
            d = d_squared[n, c]
            if absent[c]:
                d = np.full_like(d, np.mean(np.array(means)[bounded]) if bounded.any() else 1.0)
            numerator += weight[c] * (w[n, 0] * d * (1 - (g[n, c] + p[n, c])) ** 2).sum()
            denominator += weight[c] * (w[n, 0] * d * (1 - 2 * g[n, c]) ** 2).sum()
        values[n] = 1 - numerator / denominator
    return values


def hausdorff(
    p: Array,
    g: Array,
    w: Array,
    spacing: tuple[float, ...] | None = None,
    *,
    alpha: float = 2.0,
    one_sided: bool = False,
) -> Array:
    """(B, C)"""
    d = np.abs(signed_distances(g, w, spacing)) ** alpha
    if not one_sided:
        d = d + np.abs(signed_distances(p, w, spacing)) ** alpha
    return over_voxels((p - g) ** 2 * d, w) / over_voxels(w)


def hausdorff_by_erosion(p: Array, g: Array, w: Array, *, alpha: float = 2.0, erosions: int = 10) -> Array:
    """(B, C)"""
    values = np.zeros(g.shape[:2])
    axes = g.ndim - 2
    cross = ndimage.generate_binary_structure(axes, 1) / (2 * axes + 1)
    for n, c in np.ndindex(*g.shape[:2]):
        b = np.where(w[n, 0] > 0, (p[n, c] - g[n, c]) ** 2, 0)
        for k in range(1, erosions + 1):
            e = np.maximum(ndimage.convolve(b, cross, mode="constant") - 0.5, 0)
            if e.max() > e.min():
                e = (e - e.min()) / (e.max() - e.min())
            values[n, c] += (e * w[n, 0]).sum() / w[n, 0].sum() * k**alpha
            b = e
    return values


def distance_penalty(label: Array, spacing: tuple[float, ...] | None) -> Array:
    """Phi (*spatial) of a label map of one sample."""
    phi = np.zeros(label.shape)
    labels = np.unique(label)
    for own in labels if len(labels) > 1 else []:
        inside = label == own
        d = distance_to(~inside, spacing)
        largest, least = d[inside].max(), d[inside].min()
        phi[inside] = 1 if largest == least else (largest - d[inside]) / (largest - least)
    return phi


def contour(mask: Array) -> Array:
    """Voxels of the mask with a face neighbour outside of it, or outside of the volume."""
    return mask & ~ndimage.binary_erosion(mask)


def contour_distance(predicted: Array, target: Array, spacing: tuple[float, ...] | None) -> float:
    """Mean distance from the predicted contour to the target's; 0 where one has none."""
    from_contour, to_contour = contour(predicted), contour(target)
    if not from_contour.any() or not to_contour.any():
        return 0.0
    return float(distance_to(to_contour, spacing)[from_contour].mean())


# --- boundary losses as `Reference`: with `spacing` beside their options ---


def log_hausdorff(x: Array, g: Array, activation: str, w: Array, **options: Any) -> float:
    return float(np.log(1 + hausdorff(activated(x, activation), g, w, **options).mean()))


def penalised_cross_entropy(
    x: Array, g: Array, activation: str, w: Array, spacing: tuple[float, ...] | None = None
) -> float:
    if activation == "sigmoid":
        region = (g > 0.5) & (w > 0)
        phi = np.stack([[distance_penalty(channel, spacing) for channel in sample] for sample in region])
    else:
        label = np.where(w[:, 0] > 0, g.argmax(axis=1), -1)
        phi = np.stack([distance_penalty(sample, spacing) for sample in label])[:, None]
    return _mean_cross_entropy(x, g, activation, w, 1 + phi)


def shape_aware(x: Array, g: Array, activation: str, w: Array, spacing: tuple[float, ...] | None = None) -> float:
    target = (g > 0.5) & (w > 0)
    predicted = (x > 0 if activation == "sigmoid" else x == x.max(axis=1, keepdims=True)) & (w > 0)
    factors = np.zeros(g.shape)
    for n, c in np.ndindex(*g.shape[:2]):
        factors[n, c] = contour_distance(predicted[n, c], target[n, c], spacing) * (target[n, c] != predicted[n, c])
    if activation != "sigmoid":
        factors = (factors * g).sum(axis=1, keepdims=True)
    return _mean_cross_entropy(x, g, activation, w, 1 + factors)


def _mean_cross_entropy(x: Array, g: Array, activation: str, w: Array, factors: Array) -> float:
    entropy = binary_cross_entropy_map(x, g) if activation == "sigmoid" else cross_entropy_map(x, g, activation)
    values = factors * entropy
    return float((values * w).sum() / (w.sum() * values.shape[1]))


# --- regression: maps of (B, C, *spatial), or (B, 1, *spatial) over the channels ---


def kl_divergence_map(p: Array, g: Array) -> Array:
    ratio = np.where(g > 0, g / p, 1.0)
    return (g * np.log(ratio)).sum(axis=1, keepdims=True)


def cosine_map(x: Array, y: Array) -> Array:
    cosine = (x * y).sum(axis=1) / (np.sqrt((x**2).sum(axis=1)) * np.sqrt((y**2).sum(axis=1)))
    return 1 - cosine[:, None]


def huber_map(x: Array, y: Array, delta: float = 1.0) -> Array:
    error = np.abs(x - y)
    return np.where(error <= delta, error**2 / 2, delta * (error - delta / 2))


REGRESSION: dict[str, Callable[[Array, Array], Array]] = {
    "MeanSquaredErrorLoss": lambda x, y: (x - y) ** 2,
    "MeanAbsoluteErrorLoss": lambda x, y: np.abs(x - y),
    "MeanSquaredLogarithmicErrorLoss": lambda x, y: (np.log(1 + np.maximum(x, 0)) - np.log(1 + np.maximum(y, 0))) ** 2,
    "MeanAbsolutePercentageErrorLoss": lambda x, y: 100 * np.abs(x - y) / np.maximum(np.abs(y), 1e-7),
    "KLDivergenceLoss": kl_divergence_map,
    "PoissonLoss": lambda x, y: x - y * np.log(x + 1e-7),
    "LogCoshLoss": lambda x, y: np.log(np.cosh(x - y)),
    "CosineSimilarityLoss": cosine_map,
    "HuberLoss": huber_map,
}


# --- derivatives ---


def gradient(function: Callable[[Array], float], x: Array, step: float = 1e-5) -> Array:
    """Central differences of the fourth order of a scalar function at x: exact to about 1e-10 here."""
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        direction = np.zeros_like(x)
        direction[index] = 1
        result[index] = slope(function, x, direction, step)
    return result


def slope(function: Callable[[Array], float], x: Array, direction: Array, step: float = 1e-5) -> float:
    """Central difference of the fourth order in a direction."""
    a, b, c, d = (function(x + k * step * direction) for k in (-2, -1, 1, 2))
    return (8 * (c - b) - (d - a)) / (12 * step)


def assert_gradient(
    gradient: Array, function: Callable[[Array], float], x: Array, atol: float, rtol: float = 0, step: float = 1e-5
) -> None:
    """The gradient of a function, by its slopes in a few directions in which every element moves.

    Each moves by 0.5 to 1.5, so an element that is wrong by more than twice the tolerance shows in every direction.
    """
    generator = np.random.default_rng(x.size)
    for _ in range(4):
        direction = generator.uniform(0.5, 1.5, x.shape) * generator.choice([-1, 1], x.shape)
        np.testing.assert_allclose(
            (gradient * direction).sum(), slope(function, x, direction, step), atol=atol, rtol=rtol
        )
