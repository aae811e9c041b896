"""Try a loss on a few voxels before a training, and refuse one that cannot train the data."""

import itertools
from collections.abc import Mapping
from typing import Any, cast

import torch

from monai_extra_losses.bundle.error_text import as_sentence
from monai_extra_losses.bundle.ignored_voxels import counts_ignored, leave_out, needs_maps
from monai_extra_losses.bundle.loss_facts import parts_of, score_reading
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.weights import first_line
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.engines import AnnotatedVoxelLoss
from monai_extra_losses.losses import HeadLoss
from monai_extra_losses.schedules import LossWeightSchedule


def weight_ramps(loss: torch.nn.Module, loss_weights: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The ramps with all that they leave to defaults; refused for a loss that has no such parts."""
    if loss_weights is None:
        return None
    try:
        ramps: dict[str, Any] = LossWeightSchedule(loss, loss_weights).state_dict()["ramps"]
        return ramps
    except (TypeError, ValueError) as error:
        raise StartUpRefused(f"loss_weights: {error}") from None


def leave_out_ignored(loss: torch.nn.Module, record: RunRecord) -> None:
    declared = None if record.ignore_label is None else (record.ignore_label, cast(int, record.ignore_index))
    leave_out(loss, declared, multi_label=record.regions is not None)


def refuse_broken_loss(loss: torch.nn.Module, num_classes: int, ignore_index: int | None, axes: int = 3) -> None:
    """Refuse a loss that fails on the scores and the label map of a few voxels, or does not leave ignored ones out."""
    if needs_maps(loss):
        return
    device = _device_of(loss)
    size = [16] * axes
    scores = torch.randn(1, num_classes, *size, generator=torch.Generator().manual_seed(0)).to(device)
    label = (torch.arange(16**axes, device=device) * num_classes // 16**axes).reshape(1, 1, *size).float()
    expected = f"a loss of {num_classes} classes and a label map"
    if ignore_index is not None:
        label[..., :4] = ignore_index
        expected += f" whose voxels without annotation are {ignore_index}"
    try:
        with torch.no_grad():
            loss(scores, label)
        counts = ignore_index is not None and counts_ignored(loss, scores, label, label == ignore_index)
    except ImportError as error:  # of an extra
        raise StartUpRefused(as_sentence(error)) from None
    except (ValueError, TypeError, RuntimeError, IndexError, AssertionError) as error:
        raise StartUpRefused(
            f"Expected {expected}, got {type(loss).__name__}, which fails on "
            f"them ({first_line(error)}); look at its options."
        ) from None
    if counts:
        raise StartUpRefused(
            f"Expected {expected} and left out, got {type(loss).__name__}, which counts them; "
            "choose a loss with an ignore_index, such as those of this package."
        )


def refuse_whole_scores(loss: torch.nn.Module, num_classes: int) -> None:
    """Refuse a loss that cannot be computed with the last convolution, by trying it on the features of a few voxels."""
    device = _device_of(loss)
    head = torch.nn.utils.skip_init(torch.nn.Conv3d, 2, num_classes, 1)  # random numbers are for the network's weights
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    head, features = head.to(device), torch.zeros(1, 2, 16, 16, 16, device=device)
    by_label = next((part.to_onehot_y for _, part in parts_of(loss) if hasattr(part, "to_onehot_y")), True)
    target = torch.zeros(1, 1 if by_label else num_classes, 16, 16, 16, device=device)
    try:
        with torch.no_grad():
            HeadLoss(head, loss)(features, target)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise StartUpRefused(
            f"Expected a loss that can be computed with the last convolution (head_loss), got {type(loss).__name__} "
            f"({first_line(error)}); choose a loss of the families region, distribution or compound, or leave "
            "head_loss out."
        ) from None


def refuse_raw_scores(loss: torch.nn.Module) -> None:
    """Refuse a loss of probabilities without an activation, for the network gives raw scores."""
    for _, part in parts_of(loss):
        reading = score_reading(part)
        if reading is not None and reading.activation is None and not reading.raw:
            raise StartUpRefused(
                f"Expected a loss that reads raw scores, got {type(part).__name__} without an activation, which takes "
                f"them for probabilities; set {reading.softmax_option}: true, or sigmoid: true for regions (a network "
                "that gives probabilities itself needs --setup::check_loss False)."
            )


def _device_of(loss: torch.nn.Module) -> torch.device:
    """Where the class weights of a loss are, say."""
    tensor = next(itertools.chain(loss.parameters(), loss.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def refuse_loss_of_classes(
    loss: torch.nn.Module,
    num_regions: int,
    ignore_index: int | None,
    axes: int = 3,
    instead: str = "train on the labels by --regions False",
) -> None:
    """Refuse a loss that cannot train regions, by trying it on nested balls; `instead` names another way."""
    generator = torch.Generator().manual_seed(0)
    device = _device_of(loss)
    scores = torch.randn(1, num_regions, *[16] * axes, generator=generator).to(device)
    from_centre = torch.stack(torch.meshgrid([torch.arange(-7.5, 8)] * axes, indexing="ij")).norm(dim=0)
    radii = torch.linspace(7, 3, num_regions).view(-1, *[1] * axes)
    regions = (from_centre < radii)[None].byte().to(device)
    name = type(loss).__name__
    advice = f"choose a loss such as dice_ce, dice, tversky or focal, or {instead}"
    counts = False
    try:
        if ignore_index is not None:
            loss = AnnotatedVoxelLoss(loss, ignore_index)
            target = regions.int()
            target[..., :6] = ignore_index
            counts = counts_ignored(loss, scores, target, target[:, :1] == ignore_index)
        before, raised = loss(scores, regions), loss(scores + 1, regions)
        each = [loss(scores.index_fill(1, torch.tensor([c], device=device), 0.0), regions) for c in range(num_regions)]
    except ImportError as error:
        raise StartUpRefused(as_sentence(error)) from None
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise StartUpRefused(
            f"Expected a loss that takes overlapping regions, got {name} ({first_line(error)}); {advice}."
        ) from None
    # Where only differences between channels count, a voxel of all regions is like one of none.
    if torch.isclose(before, raised, rtol=1e-6):
        raise StartUpRefused(
            f"Expected a loss that takes overlapping regions, got {name}, in which the channels exclude each other; "
            f"{advice}."
        )
    if counts:
        raise StartUpRefused(
            f"Expected a loss that leaves masked voxels out, got {name}, which counts them; "
            f"{advice.partition(', or')[0]}."
        )
    if any(torch.equal(before, value) for value in each):
        raise StartUpRefused(
            f"Expected a loss of every region, got {name}, which leaves one out; "
            "regions have no background, so set include_background to True."
        )
