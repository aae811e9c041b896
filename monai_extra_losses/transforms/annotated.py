"""Which classes of a case are annotated, written where they stay with the label."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_extra_losses.ops.merging import ANNOTATED


class AnnotatedClassesd(MapTransform):
    """Writes into a label's meta data which classes are annotated in its case: what `PartialLabelLoss` reads.

    `label.meta["annotated"]` becomes a vector of 0 and 1, one number per class of the network. It stays with the label
    through crops, flips, affine and spacing transforms, padding, caches and the collation of batches. The list in the
    item is taken out, because lists of different lengths make no batch.

    Args:
        keys: of the labels, MetaTensors.
        num_classes: with background; with `regions` their number.
        annotated_key: of the item's list of annotated classes, with or without the background, 0. An item without the
            key, or with None, has all of them annotated.
        regions: where the network has a channel per region: name -> classes, or the classes of each region, as in
            `LabelsToRegionsd`. A region is annotated where all its classes are.
        allow_missing_keys: leave out a label that is not there.

    Raises:
        TypeError: a label that is no MetaTensor.
        ValueError: a class outside 1..C-1 of the label map, or no class but the background.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> item = {"label": MetaTensor(torch.zeros(1, 4, 4)), "annotated": [2]}
        >>> AnnotatedClassesd(keys="label", num_classes=4)(item)["label"].meta["annotated"].tolist()
        [1, 0, 1, 0]
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        annotated_key: str = ANNOTATED,
        regions: Mapping[str, Sequence[int]] | Sequence[Sequence[int]] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        self.annotated_key = annotated_key
        self.regions = None if regions is None else [*(regions.values() if isinstance(regions, Mapping) else regions)]
        if self.regions is not None and len(self.regions) != num_classes:
            raise ValueError(
                f"expected num_classes to be the number of regions, {len(self.regions)}, got {num_classes}."
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the vector in its labels, and without the list."""
        item: dict[Hashable, Any] = dict(data)
        vector = annotated_vector(item.pop(self.annotated_key, None), self.num_classes, self.regions)
        for key in self.key_iterator(item):
            if not isinstance(item[key], MetaTensor):
                raise TypeError(
                    f"expected {key!r} to be a MetaTensor, got {type(item[key]).__name__}: load it by MONAI."
                )
            label = item[key].clone()  # another one may share the meta data
            label.meta = {**label.meta, ANNOTATED: vector.clone()}
            item[key] = label
        return item


def annotated_vector(
    annotated: Sequence[int] | None, num_classes: int, regions: Sequence[Sequence[int]] | None = None
) -> torch.Tensor:
    """(C,) uint8, 1 for the classes or regions of the network that a case annotates; arguments as of the transform."""
    if annotated is None:
        return torch.ones(num_classes, dtype=torch.uint8)
    known = {int(number) for number in annotated} - {0}
    of_map = max((n for region in regions for n in region), default=0) + 1 if regions else num_classes
    if not known or not known <= set(range(1, of_map)):
        raise ValueError(f"expected annotated classes among 1..{of_map - 1}, got {sorted(known)}.")
    if regions is not None:
        return torch.tensor([set(region) <= known for region in regions], dtype=torch.uint8)
    return torch.tensor([number in known | {0} for number in range(num_classes)], dtype=torch.uint8)


AnnotatedClassesD = AnnotatedClassesDict = AnnotatedClassesd
