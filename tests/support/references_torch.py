"""What a loss costs when written down from its paper in eager torch: the yardstick of speed and memory.

One short function for each loss that MONAI has not, named in `loss_list.py`: softmax over (B, C, *spatial) logits,
one-hot of (B, 1, *spatial) labels, our defaults. Right, not stable: logarithms are of clamped probabilities. None of it
is our package's code.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(labels: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(1, labels.long(), 1)


def axes_of(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def soft_counts(p: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """TP, FP, FN of each sample and class."""
    axes = axes_of(p)
    tp = (p * g).sum(axes)
    return tp, p.sum(axes) - tp, g.sum(axes) - tp


def dice(p: Tensor, g: Tensor, smooth: float = 1e-5) -> Tensor:
    tp, fp, fn = soft_counts(p, g)
    return (2 * tp + smooth) / (2 * tp + fp + fn + smooth)


def tversky_index(p: Tensor, g: Tensor, alpha: float, beta: float, smooth: float = 1e-5) -> Tensor:
    tp, fp, fn = soft_counts(p, g)
    return (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)


# --- region ---


def gather_dice(logits: Tensor, labels: Tensor, smooth: float = 1e-5) -> Tensor:
    """Dice without a one-hot: gather the probability of the true class, sum by label."""
    p, index = logits.softmax(1).flatten(2), labels.flatten(1).long()
    zeros = p.new_zeros(p.shape[:2])
    tp = zeros.scatter_add(1, index, p.gather(1, index.unsqueeze(1))[:, 0])
    volume = zeros.scatter_add(1, index, torch.ones_like(index, dtype=p.dtype))
    return 1 - ((2 * tp + smooth) / (p.sum(2) + volume + smooth)).mean()


def focal_tversky(
    logits: Tensor, labels: Tensor, alpha: float = 0.3, beta: float = 0.7, gamma: float = 4 / 3
) -> Tensor:
    index = tversky_index(logits.softmax(1), one_hot(labels, logits), alpha, beta)
    return ((1 - index).clamp_min(1e-7) ** (1 / gamma)).mean()


def log_cosh_dice(logits: Tensor, labels: Tensor) -> Tensor:
    return (1 - dice(logits.softmax(1), one_hot(labels, logits))).cosh().log().mean()


def sensitivity_specificity(logits: Tensor, labels: Tensor, weight: float = 0.05, smooth: float = 1e-5) -> Tensor:
    g = one_hot(labels, logits)
    squares = (g - logits.softmax(1)) ** 2
    axes = axes_of(g)
    sensitivity = (squares * g).sum(axes) / (g.sum(axes) + smooth)
    specificity = (squares * (1 - g)).sum(axes) / ((1 - g).sum(axes) + smooth)
    return (weight * sensitivity + (1 - weight) * specificity).mean()


def two_class_dice(logits: Tensor, labels: Tensor) -> Tensor:
    p, g = logits.softmax(1), one_hot(labels, logits)
    return 1 - (dice(p, g) + dice(1 - p, 1 - g)).mean() / 2


def noise_robust_dice(logits: Tensor, labels: Tensor, gamma: float = 1.5, smooth: float = 1e-5) -> Tensor:
    p, g = logits.softmax(1), one_hot(labels, logits)
    axes = axes_of(p)
    return (((p - g).abs() ** gamma).sum(axes) / ((p**2).sum(axes) + (g**2).sum(axes) + smooth)).mean()


def contour_sizes(g: Tensor) -> Tensor:
    """Voxels of each class with a face neighbour outside it."""
    padded = F.pad(g, [1, 1] * len(axes_of(g)))
    # The authors convolve with a cross; these minima are five times faster.
    inner = padded
    for axis in axes_of(g):
        for step in (-1, 1):
            inner = torch.minimum(inner, padded.roll(step, axis))
    return (padded - inner).sum(axes_of(g))


def boundary_dou(logits: Tensor, labels: Tensor, smooth: float = 1e-5) -> Tensor:
    p, g = logits.softmax(1), one_hot(labels, logits)
    axes = axes_of(p)
    a = (1 - 2 * (contour_sizes(g) + smooth) / (g.sum(axes) + smooth)).clamp_max(0.8)
    overlap = (p * g).sum(axes)
    squares = (p**2).sum(axes) + (g**2).sum(axes)
    loss = (squares - 2 * overlap + smooth) / (squares - (1 + a) * overlap + smooth)
    return torch.where(g.sum(axes) > 0, loss, (p**2).mean(axes)).mean()


# --- distribution ---


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels[:, 0].long())


def voxel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, *spatial)."""
    return F.cross_entropy(logits, labels[:, 0].long(), reduction="none")


def poly(logits: Tensor, labels: Tensor, epsilon: float = 1.0) -> Tensor:
    entropy = voxel_cross_entropy(logits, labels)
    return (entropy + epsilon * (1 - torch.exp(-entropy))).mean()


def generalized_cross_entropy(logits: Tensor, labels: Tensor, q: float = 0.7) -> Tensor:
    p_true = logits.softmax(1).gather(1, labels.long())
    return ((1 - p_true**q) / q).mean()


def one_vs_rest_cross_entropy(
    logits: Tensor, g: Tensor, positive: float | Tensor = 1.0, negative: float | Tensor = 1.0
) -> Tensor:
    p = logits.softmax(1).clamp(1e-7, 1 - 1e-7)
    return -(positive * g * p.log() + negative * (1 - g) * (1 - p).log()).mean()


def weighted_cross_entropy(logits: Tensor, labels: Tensor, beta: float = 1.0) -> Tensor:
    return one_vs_rest_cross_entropy(logits, one_hot(labels, logits), positive=beta)


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    g = one_hot(labels, logits)
    beta = (1 - g.mean(axes_of(g), keepdim=True)).clamp(0.05, 0.95)
    return one_vs_rest_cross_entropy(logits, g, beta, 1 - beta)


def top_k(logits: Tensor, labels: Tensor, k: float = 10.0) -> Tensor:
    entropy = voxel_cross_entropy(logits, labels).flatten(1)
    return entropy.topk(max(1, int(entropy.shape[1] * k / 100)), dim=1).values.mean()


def hinge(scores: Tensor, labels: Tensor) -> Tensor:
    return F.relu(1 - (2 * one_hot(labels, scores) - 1) * scores).mean()


def squared_hinge(scores: Tensor, labels: Tensor) -> Tensor:
    return (F.relu(1 - (2 * one_hot(labels, scores) - 1) * scores) ** 2).mean()


def categorical_hinge(scores: Tensor, labels: Tensor) -> Tensor:
    true = scores.gather(1, labels.long())
    best_other = scores.scatter(1, labels.long(), -torch.inf).amax(1, keepdim=True)
    return F.relu(1 + best_other - true).mean()


# --- compound ---


def dice_top_k(logits: Tensor, labels: Tensor) -> Tensor:
    return 1 - dice(logits.softmax(1), one_hot(labels, logits)).mean() + top_k(logits, labels)


def combo(logits: Tensor, labels: Tensor, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    g = one_hot(labels, logits)
    entropy = one_vs_rest_cross_entropy(logits, g, beta, 1 - beta)
    return alpha * entropy + (1 - alpha) * (1 - dice(logits.softmax(1), g, smooth=1.0).mean())


def exponential_logarithmic(logits: Tensor, labels: Tensor, gamma: float = 0.3) -> Tensor:
    g = one_hot(labels, logits)
    volumes = g.sum(axes_of(g))
    log_dice = -dice(logits.softmax(1), g, smooth=1.0).clamp_max(1 - 1e-6).log()
    frequencies = volumes.sum(0)
    weight = (frequencies.sum() / frequencies).sqrt()  # infinite for an absent class, which no voxel reads
    entropy = voxel_cross_entropy(logits, labels).clamp_min(1e-7)
    return 0.8 * (log_dice[volumes > 0] ** gamma).mean() + 0.2 * (weight[labels[:, 0].long()] * entropy**gamma).mean()


def unified_focal(logits: Tensor, labels: Tensor, share: float = 0.5, delta: float = 0.6, gamma: float = 0.5) -> Tensor:
    index = tversky_index(logits.softmax(1), one_hot(labels, logits), 1 - delta, delta)
    focal_tversky = ((1 - index).clamp_min(1e-7) ** (1 - gamma)).mean()
    entropy = voxel_cross_entropy(logits, labels)
    weight = torch.where(labels[:, 0] == 0, 1 - delta, delta)
    focal = (weight * (1 - torch.exp(-entropy)).clamp_min(1e-7) ** gamma * entropy).mean()
    return share * focal + (1 - share) * focal_tversky


# --- structure ---


def gaussian_mean(x: Tensor, size: int = 3, sigma: float = 1.5) -> Tensor:
    axes, channels = x.ndim - 2, x.shape[1]
    side = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    window = x.new_ones([1] * axes)
    for axis in range(axes):
        window = window * x.new_tensor(side).view([-1 if i == axis else 1 for i in range(axes)])
    window = (window / window.sum()).expand(channels, 1, *[size] * axes)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return convolve(F.pad(x, [size // 2] * 2 * axes, mode="reflect"), window, groups=channels)


def normalised_in_window(x: Tensor, stability: float = 0.01) -> Tensor:
    mean = gaussian_mean(x)
    deviation = (gaussian_mean(x**2) - mean**2).clamp_min(1e-16).sqrt()
    return (x - mean + stability) / (deviation + stability)


def structural_similarity(logits: Tensor, labels: Tensor, share: float = 0.5, threshold: float = 0.1) -> Tensor:
    p, g = logits.softmax(1), one_hot(labels, logits)
    axes = axes_of(p)
    clamped = p.clamp(1e-7, 1 - 1e-7)
    entropy = -(g * clamped.log() + (1 - g) * (1 - clamped).log())
    e = (normalised_in_window(g) - normalised_in_window(p)).abs()
    f = (e > threshold * e.amax(axes, keepdim=True)).to(e.dtype)
    return (share * entropy.mean(axes) + (1 - share) * (e * f * entropy).sum(axes) / f.sum(axes)).mean()


def lovasz(logits: Tensor, labels: Tensor) -> Tensor:
    """As the authors' code with `per_image=True, classes="all"`: the mean over the classes, then over the images."""
    images = []
    for p, label in zip(logits.softmax(1), labels[:, 0], strict=True):
        losses = []
        for c, p_class in enumerate(p):
            g = (label == c).to(p.dtype).flatten()
            errors, order = (g - p_class.flatten()).abs().sort(descending=True)
            losses.append(torch.dot(errors, lovasz_gradient(g[order])))
        images.append(torch.stack(losses).mean())
    return torch.stack(images).mean()


def lovasz_gradient(g: Tensor) -> Tensor:
    """Change of the Jaccard loss with each further voxel in error."""
    jaccard = 1 - (g.sum() - g.cumsum(0)) / (g.sum() + (1 - g).cumsum(0))
    jaccard[1:] = jaccard[1:] - jaccard[:-1]
    return jaccard


def centerline_dice(logits: Tensor, labels: Tensor, iterations: int = 10, smooth: float = 1e-5) -> Tensor:
    """As the authors' code, but per class and with our iterations and smoothing."""
    p, g = logits.softmax(1), one_hot(labels, logits)
    of_p, of_g = soft_skeleton(p, iterations), soft_skeleton(g, iterations)
    axes = axes_of(p)
    precision = ((of_p * g).sum(axes) + smooth) / (of_p.sum(axes) + smooth)
    sensitivity = ((of_g * p).sum(axes) + smooth) / (of_g.sum(axes) + smooth)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean()


def soft_skeleton(a: Tensor, iterations: int) -> Tensor:
    pool, axes = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[a.ndim - 3], range(a.ndim - 2)

    def erode(a: Tensor) -> Tensor:
        sizes = [[3 if i == axis else 1 for i in axes] for axis in axes]
        lines = [-pool(-a, size, 1, [n // 2 for n in size]) for size in sizes]
        return torch.stack(lines).amin(0)

    skeleton = F.relu(a - pool(erode(a), 3, 1, 1))
    for _ in range(iterations):
        a = erode(a)
        delta = F.relu(a - pool(erode(a), 3, 1, 1))
        skeleton = skeleton + F.relu(delta - skeleton * delta)
    return skeleton
