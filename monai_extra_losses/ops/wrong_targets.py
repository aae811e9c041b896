"""Error messages for invalid targets."""

from torch import Tensor

from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.numbers import numbers_of


class WrongLabelsError(ValueError):
    """A label outside 0..C-1, or no whole number; in a target of C channels a value outside [0, 1]."""


def wrong_target(data: CallData) -> str:
    """The sentence about a target for which `WrongLabelsError` was raised."""
    channels = data.scores.shape[1]
    if data.labels:
        return wrong_labels(data.target, channels, data.ignore_index)
    values = numbers_of(data.target)
    assert values is not None  # they were found to be wrong
    lowest, highest = values.min().item(), values.max().item()
    one_channel = ", for labels of several classes give the network as many channels" * (channels == 1)
    return (
        f"expected a target of {channels} channel(s) with values in [0, 1], "
        f"got {lowest:g} to {highest:g}: remap it, or set ignore_index{one_channel}."
    )


def expected_labels(num_classes: int, ignore_index: int | None) -> str:
    """The first part of the sentence about labels."""
    ignored = "" if ignore_index is None else f" or ignore_index={ignore_index}"
    return f"expected whole labels in 0..{num_classes - 1} (input has {num_classes} channels){ignored}"


def wrong_labels(target: Tensor, num_classes: int, ignore_index: int | None) -> str:
    """The sentence about the labels of `target` that are wrong."""
    known = numbers_of(target)
    values = [] if known is None else sorted(set(known.unique().tolist()))
    wrong = [v for v in values if not (v in range(num_classes) or v == ignore_index)]
    shown = ", ".join(f"{v:g}" for v in wrong[:8]) + (", ..." if len(wrong) > 8 else "")
    hint = "remap them, give the network more channels, or set ignore_index"
    if any(v != v or v % 1 for v in wrong):
        hint = "resample labels with mode='nearest'"
    return f"{expected_labels(num_classes, ignore_index)}, got {shown}: {hint}."
