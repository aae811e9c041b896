"""The classes of one label: as a map of labels, or as overlapping regions; and the size of its voxels."""

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_extra_losses.ops.call_data import holds_value
from monai_extra_losses.ops.distance import SpacingOption, spacing_of_affine


def checked_number_of_classes(num_classes: int) -> int:
    """A whole number >= 1.

    Raises:
        ValueError: anything else.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"expected num_classes to be a whole number of at least 1, got {num_classes!r}.")
    return num_classes


def refuse_other_shape(label: Tensor, num_classes: int) -> None:
    """Refuse a label that is neither (1, *spatial) nor (num_classes, *spatial), of 1 to 3 spatial axes."""
    if not 1 <= label.ndim - 1 <= 3 or label.shape[0] not in (1, num_classes):
        expected = f"(1, *spatial){f' or ({num_classes}, *spatial)' * (num_classes > 1)}"
        raise ValueError(
            f"expected a label {expected} with 1 to 3 spatial axes for num_classes={num_classes}, "
            f"got shape {tuple(label.shape)}."
        )


def regions_of_label(label: Tensor, num_classes: int, ignore_index: int | None) -> tuple[Tensor, range | None]:
    """What `ops.distance.signed_distance` takes.

    Args:
        label: (1, *spatial) whole numbers, or (num_classes, *spatial) regions, > 0.5 inside.
        num_classes: with 1, always a region.
        ignore_index: label that belongs to no class.

    Returns:
        Labels (1, *spatial), -1 where ignored, and the classes; or a mask (1, C, *spatial) and None.

    Raises:
        ValueError: labels outside 0..num_classes-1.
    """
    label = label.byte() if label.dtype == torch.bool else label
    ignored = torch.zeros_like(label[:1], dtype=torch.bool)
    if label.shape[0] == num_classes > 1 and ignore_index in range(num_classes):
        ignored = label[ignore_index].unsqueeze(0) >= 1
    elif ignore_index is not None and (
        label.is_floating_point() or holds_value(label.dtype, ignore_index)  # 255 is not -1
    ):
        ignored = label[:1] == ignore_index
    if label.shape[0] == num_classes:
        return ((label > 0.5) & ~ignored).unsqueeze(0), None
    wrong = ~ignored & ~((label >= 0) & (label < num_classes) & (label % 1 == 0))
    if wrong.any():
        shown = ", ".join(f"{value:g}" for value in label[wrong].unique()[:8].tolist())
        raise ValueError(
            f"expected whole labels in 0..{num_classes - 1} or ignore_index={ignore_index}, got {shown}: "
            "remap them, raise num_classes, or set ignore_index."
        )
    return label.int().masked_fill(ignored, -1), range(num_classes)


def spacing_of_label(option: SpacingOption, label: Tensor) -> Sequence[float] | None:
    """Mm per spatial axis of a label (C, *spatial), None where voxels are the unit."""
    if option != "auto":
        return option
    if not isinstance(label, MetaTensor):
        return None
    spacing: list[float] = spacing_of_affine(label.affine, label.ndim - 1).tolist()
    return spacing
