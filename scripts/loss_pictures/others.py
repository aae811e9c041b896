"""Pictures of losses that are like no others: of calibration, of partly annotated cases, and of a network's head."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from loss_pictures.calls import value_and_push
from loss_pictures.sheet import Sheet
from monai_extra_losses import losses

BINS = 20


def dice_ce_calibrated() -> Sheet:
    """Calibration: the gap of each bin, and the push on its voxels."""
    sheet = Sheet(
        "Where p is more extreme than the frequency it is pushed to the middle, hardest where few voxels are",
        "Left, the gap between mean p and frequency in each of 20 bins of p, for an overconfident prediction: "
        "largest near 0.1 and 0.9, least at 0.5; right, the push on one voxel is up below p = 0.5 and down above, "
        "and largest in the middle, whose bins have the fewest voxels.",
    )
    middles = (np.arange(BINS) + 0.5) / BINS
    counts = np.round(200 + 1800 * np.abs(2 * middles - 1) ** 4).astype(int)
    within = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    of_bin = torch.as_tensor(np.repeat(np.arange(BINS), counts))
    p = (of_bin + torch.as_tensor(within)).view(1, 1, -1) / BINS
    # The scores are twice too large: of voxels of p so many are of the class as half the score says.
    frequency = 1 / (1 + np.sqrt((1 - middles) / middles))
    hits = np.round(frequency * counts).astype(int)
    spread = [
        np.floor((np.arange(n) + 1) * k / n) > np.floor(np.arange(n) * k / n) for n, k in zip(counts, hits, strict=True)
    ]
    target = torch.as_tensor(np.concatenate(spread)).double().view(1, 1, -1)
    for number, soft in enumerate((False, True)):
        label = f"soft={soft}{' (default)' * (not soft)}"
        loss = losses.AverageCalibrationLoss(sigmoid=True, bins=BINS, soft=soft)
        push = value_and_push(loss, p.logit(), target)[1].ravel()
        means = [push[of_bin.numpy() == each].mean() for each in range(BINS)]
        sheet.curve(1, middles, 1000 * np.array(means), label, number, marker=".", markersize=6)
    gaps = []
    for number in range(BINS):
        mask = (of_bin == number).view(1, 1, -1)
        gaps.append(value_and_push(losses.AverageCalibrationLoss(sigmoid=True), p.logit(), target, mask=mask)[0])
    axes = sheet.labelled(0, f"value: the mean of {BINS} gaps", "p, in bins", "gap of a bin")
    axes.bar(middles, gaps, 0.8 / BINS, color="#8a8a8a")
    sheet.note("gaps", gaps)
    axes = sheet.labelled(1, "gradient", "p, in bins", "mean push, x 1000")
    axes.axhline(0, color="black", linewidth=0.8)
    return sheet


def partial_label() -> Sheet:
    """Partial labels: the push on each class, with and without."""
    sheet = Sheet(
        "A class that nobody annotated is not pushed down where the label says background",
        "Bars of the push on the scores of four classes, of which 2 and 3 are not annotated; left, at a voxel of "
        "background that the network gives to class 2, Dice + cross-entropy pushes class 2 down and background up, "
        "and with partial labels background, 2 and 3 share a small push up by their p; right, at a voxel of class 1 "
        "the two push alike.",
    )
    p = torch.tensor([[0.2, 0.15, 0.55, 0.1], [0.3, 0.5, 0.15, 0.05]]).double()
    labels = torch.tensor([0] * 12 + [1] * 6)
    scores = p[labels].log().T.unsqueeze(0)
    target = labels.view(1, 1, -1)
    plain = losses.FusedDiceCELoss(to_onehot_y=True, softmax=True)
    annotated = torch.tensor([[True, True, False, False]])
    ours = value_and_push(losses.PartialLabelLoss(plain), scores, target, annotated=annotated)[1][0]
    theirs = value_and_push(plain, scores, target)[1][0]
    names = ["back-\nground", "class 1", "class 2,\nunknown", "class 3,\nunknown"]
    for panel, (voxel, name) in enumerate(
        ((0, "voxel of background, p = 0.55 in 2"), (-1, "voxel of class 1, p = 0.5"))
    ):
        heights = {"Dice + cross-entropy": 100 * theirs[:, voxel], "the same in PartialLabelLoss": 100 * ours[:, voxel]}
        sheet.bars(panel, names, heights)
        sheet.labelled(panel, name, "", "push on the score, x 100")
    return sheet


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation and look at what it gives."""
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


def kept_and_largest(step: Callable[[], Tensor]) -> tuple[int, int]:
    """Bytes that a loss keeps for its backward, and those of the largest tensor of forward and backward."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step().backward()
    return sum(kept.values()), largest.bytes


def head() -> Sheet:
    """A head and its loss in one pass: what is held in memory."""
    sheet = Sheet(
        "With HeadLoss memory does not grow with the classes: their scores are never there as a whole",
        "Left, the bytes kept between forward and backward over the number of classes, and right, the largest "
        "tensor of either: both rise in proportion with a head and a loss apart, and stay nearly level with "
        "HeadLoss.",
    )
    classes = np.array([8, 16, 32, 64, 128, 256])
    pairs = [_sizes(int(number)) for number in classes]
    shown = dict(zip(("HeadLoss", "head, then loss"), zip(*pairs, strict=True), strict=True))
    for label, sizes in shown.items():
        for panel in range(2):
            mebibytes = [size[panel] / 2**20 for size in sizes]
            sheet.curve(panel, classes, mebibytes, label, 0 if label == "HeadLoss" else None, marker=".", markersize=7)
    for panel, name in enumerate(("kept for the backward", "the largest tensor")):
        axes = sheet.labelled(panel, name, "classes", "MiB, of 32³ voxels")
        axes.set(xscale="log", yscale="log", ylim=(1, 64))
        axes.set_xticks(classes, [str(number) for number in classes])
        axes.set_yticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    return sheet


def _sizes(classes: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bytes kept, and of the largest tensor, in one pass and with a head and a loss apart."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 16, 32, 32, 32, generator=generator).requires_grad_()
    labels = torch.randint(0, classes, (1, 1, 32, 32, 32), generator=generator)
    convolution, loss = nn.Conv3d(16, classes, 1), losses.FusedDiceCELoss(to_onehot_y=True, softmax=True)
    both = losses.HeadLoss(convolution, loss)
    return (
        kept_and_largest(lambda: both(features, labels)),
        kept_and_largest(lambda: loss(convolution(features), labels)),
    )


PICTURES: dict[str, Callable[[], Sheet]] = {
    "dice_ce_calibrated": dice_ce_calibrated,
    "partial_label": partial_label,
    "head": head,
}
