"""Signed distance maps of labels, measured once on the whole volume and cached with it."""

import math

import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_extra_losses.ops.distance import SpacingOption, checked_spacing, signed_distance
from monai_extra_losses.transforms.beside_label import BesideLabeld
from monai_extra_losses.transforms.label_regions import (
    checked_number_of_classes,
    refuse_other_shape,
    regions_of_label,
    spacing_of_label,
)


class SignedDistance(Transform):
    """Signed distance of every class: what the boundary losses take as `distance`, from the whole volume.

    phi_c(x) = distance from x to the nearest voxel of c outside of c, and minus the distance to the nearest voxel that
    is not of c inside; 0 everywhere where c has no voxel or all of them. Put it behind what changes the label
    (resampling, padding) and before the random crop: the map of a crop then knows the boundaries beyond the crop. It
    is deterministic, so that MONAI's caching data sets keep it.

    Transforms that move the label must move the map alike. Flips, crops and rotations by 90 degrees are exact. Where a
    transform interpolates, take a linear mode and padding_mode="border": the map is then an approximation, and a zoom
    changes the true distances but not the map's numbers. Zeros padded to a map would be a boundary: pad first.

    Args:
        num_classes: channels C of the map; with background for a label map.
        spacing: "auto" takes the mm per voxel from the label's affine, and measures in voxels where there is none;
            None measures in voxels always; or one number in mm per spatial axis.
        max_distance: distances are clipped to this size, in mm, > 0; None keeps them as they are, which is what the
            losses measure by themselves.
        dtype: torch.float16 rounds to 0.05 % of the distance (2^-11; at most 65504 mm) in half the memory of
            torch.float32.
        ignore_index: label that belongs to no class. Of a target with several channels: a class whose voxels belong to
            no other class either, or another number that all channels hold in such a voxel.

    Shapes:
        label: (1, *spatial) map of whole numbers in 0..C-1 or ignore_index, or (C, *spatial) regions, > 0.5 inside,
            which may overlap; with C = 1 always a region. 1 to 3 spatial axes.
        result: (C, *spatial), a MetaTensor with the label's affine and history where the label is one.

    Raises:
        TypeError: another dtype than the two above.
        ValueError: an option out of range, a label of another shape or with other values than expected.

    Example:
        >>> import torch
        >>> label = torch.tensor([[0, 0, 0, 1, 1]])
        >>> SignedDistance(num_classes=2, spacing=[2.0])(label)[1].tolist()
        [6.0, 4.0, 2.0, -2.0, -4.0]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  MONAI's own attribute

    def __init__(
        self,
        num_classes: int,
        spacing: SpacingOption = "auto",
        max_distance: float | None = None,
        dtype: torch.dtype = torch.float16,
        ignore_index: int | None = None,
    ) -> None:
        if dtype not in (torch.float16, torch.float32):
            raise TypeError(f"expected the dtype torch.float16 or torch.float32, got {dtype}.")
        if max_distance is not None and not max_distance > 0:
            raise ValueError(f"expected max_distance above 0 mm, or None, got {max_distance}.")
        self.num_classes = checked_number_of_classes(num_classes)
        self.spacing = checked_spacing(spacing)
        self.max_distance = max_distance
        self.dtype = dtype
        self.ignore_index = ignore_index

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        """The map of one label."""
        label = convert_to_tensor(img, track_meta=get_track_meta())
        refuse_other_shape(label, self.num_classes)
        regions, classes = regions_of_label(label.as_subclass(Tensor), self.num_classes, self.ignore_index)
        distance = signed_distance(regions, classes, spacing_of_label(self.spacing, label))[0]
        limit = min(self.max_distance or math.inf, torch.finfo(self.dtype).max)
        converted: Tensor = convert_to_dst_type(distance.clamp_(-limit, limit), dst=label, dtype=self.dtype)[0]
        return converted


class SignedDistanced(BesideLabeld):
    """Dictionary version of `SignedDistance`: writes the map of `keys` to `distance_keys`.

    Args:
        keys: of the labels.
        distance_keys: of the maps, one per label.
        num_classes, spacing, max_distance, dtype, ignore_index: see `SignedDistance`.
        allow_missing_keys: leave out a label that is not there.

    Raises:
        ValueError: another number of distance_keys than of keys, or the same key twice; else see `SignedDistance`.

    Example:
        >>> import torch
        >>> transform = SignedDistanced(keys="label", distance_keys="distance", num_classes=2)
        >>> item = transform({"label": torch.tensor([[0, 0, 1]])})
        >>> item["distance"].shape, item["distance"].dtype
        (torch.Size([2, 3]), torch.float16)
    """

    backend = SignedDistance.backend

    def __init__(
        self,
        keys: KeysCollection,
        distance_keys: KeysCollection,
        num_classes: int,
        spacing: SpacingOption = "auto",
        max_distance: float | None = None,
        dtype: torch.dtype = torch.float16,
        ignore_index: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        transform = SignedDistance(num_classes, spacing, max_distance, dtype, ignore_index)
        super().__init__(keys, "distance_keys", distance_keys, transform, allow_missing_keys)


SignedDistanceD = SignedDistanceDict = SignedDistanced
