"""Skeletons of labels, made once on the whole volume and cached with it."""

import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_extra_losses.ops.skeletons import refuse_without_scikit_image, tubes_of_labels, tubes_of_regions
from monai_extra_losses.transforms.beside_label import BesideLabeld


class Skeleton(Transform):
    """Tubes around the skeleton of every class: what `SkeletonRecallLoss` takes as `skeleton`, from the whole volume.

    A voxel is in the tube of its class where it is up to two steps, from face to face, off the skeleton. Put the
    transform behind what changes the label (resampling, padding) and before the random crop: it is deterministic, so
    that MONAI's caching data sets keep it. Transforms that move the label must move the tubes alike, with mode
    "nearest". The tubes of a label that was flipped or rotated are then off by a step at most; a zoom makes them
    thinner or thicker, so behind a strong one make them anew.

    Args:
        union: take the skeleton of all classes as one, as the authors' code does, not of each.
        ignore_index: label that belongs to no class; of a target with several channels a number that all hold.
        include_background: of a label map, make tubes of class 0, too.

    Shapes:
        label: (1, *spatial) map of whole numbers, or (C, *spatial) regions, > 0.5 inside, which may overlap. 1 to 3
            spatial axes.
        result: like the label, uint8, 1 in the tubes; a MetaTensor with the label's affine and history where the label
            is one.

    Raises:
        ImportError: without scikit-image.
        ValueError: a label of another shape.

    Example:
        >>> import torch
        >>> line = torch.tensor([[[0, 0, 0], [1, 1, 1], [0, 0, 0]]])
        >>> Skeleton()(line).tolist()
        [[[0, 0, 0], [1, 1, 1], [0, 0, 0]]]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  MONAI's own attribute

    def __init__(self, union: bool = False, ignore_index: int | None = None, include_background: bool = False) -> None:
        refuse_without_scikit_image()  # not in the middle of a training
        self.union = union
        self.ignore_index = ignore_index
        self.include_background = include_background

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        """The tubes of one label."""
        label = convert_to_tensor(img, track_meta=get_track_meta())
        if not 2 <= label.ndim <= 4:
            raise ValueError(
                f"expected a label (1 or C, *spatial) with 1 to 3 spatial axes, got shape {tuple(label.shape)}; give "
                "it a channel axis."
            )
        values = label.as_subclass(Tensor)
        ignored = (
            torch.zeros_like(values[:1], dtype=torch.bool)
            if self.ignore_index is None
            else values[:1].to(torch.int64) == self.ignore_index
        )
        if label.shape[0] == 1:
            labels = values.to(torch.int64).masked_fill(ignored, -1)
            tubes = tubes_of_labels(labels, 0 if self.include_background else 1, union=self.union)
        else:
            tubes = tubes_of_regions(((values > 0.5) & ~ignored).unsqueeze(0), union=self.union)[0]
        converted: Tensor = convert_to_dst_type(tubes, dst=label, dtype=torch.uint8)[0]
        return converted


class Skeletond(BesideLabeld):
    """Dictionary version of `Skeleton`: writes the tubes of `keys` to `skeleton_keys`.

    Args:
        keys: of the labels.
        skeleton_keys: of the tubes, one per label.
        union, ignore_index, include_background: see `Skeleton`.
        allow_missing_keys: leave out a label that is not there.

    Raises:
        ValueError: another number of skeleton_keys than of keys, or the same key twice.

    Example:
        >>> import torch
        >>> item = Skeletond(keys="label", skeleton_keys="skeleton")({"label": torch.ones(1, 1, 3)})
        >>> item["skeleton"].tolist()
        [[[1, 1, 1]]]
    """

    backend = Skeleton.backend

    def __init__(
        self,
        keys: KeysCollection,
        skeleton_keys: KeysCollection,
        union: bool = False,
        ignore_index: int | None = None,
        include_background: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        transform = Skeleton(union, ignore_index, include_background)
        super().__init__(keys, "skeleton_keys", skeleton_keys, transform, allow_missing_keys)


SkeletonD = SkeletonDict = Skeletond
