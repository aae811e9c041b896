"""Label maps as overlapping regions, one channel each."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_extra_losses.ops.call_data import holds_value


class LabelsToRegions(Transform):
    """Turns a label map into the regions that join its labels: what a network with a sigmoid per region learns.

    Channel i is 1 where the label is one of those of region i, and 0 elsewhere. Regions may overlap, as those of brain
    tumours do: the whole tumour holds its core, and the core what enhances.

    Args:
        regions: name -> labels, in the order of the channels; or the labels of each region.
        ignore_index: label of voxels without annotation, which all channels keep; neither 0 nor 1. None: a label that
            is in no region is background.

    Shapes:
        label: (1, *spatial), of any dtype.
        result: (R, *spatial) in uint8, or int32 where that does not hold `ignore_index`; a MetaTensor with the label's
            affine and history where the label is one.

    Raises:
        ValueError: no regions, a region without labels, an `ignore_index` of 0 or 1, or a label of another shape.

    Example:
        >>> import torch
        >>> LabelsToRegions({"whole": [1, 2], "core": [2]})(torch.tensor([[0, 1, 2]])).tolist()
        [[0, 1, 1], [0, 0, 1]]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  MONAI's own attribute

    def __init__(
        self, regions: Mapping[str, Sequence[int]] | Sequence[Sequence[int]], ignore_index: int | None = None
    ) -> None:
        self.regions = [list(labels) for labels in (regions.values() if isinstance(regions, Mapping) else regions)]
        if not self.regions or not all(self.regions):
            raise ValueError(f"expected regions of one label and more each, got {regions!r}.")
        if ignore_index in (0, 1):
            raise ValueError(f"expected an ignore_index other than 0 and 1, which a region holds, got {ignore_index}.")
        self.ignore_index = ignore_index

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        """The regions of one label map."""
        label = convert_to_tensor(img, track_meta=get_track_meta())
        if label.ndim < 2 or label.shape[0] != 1:
            raise ValueError(f"expected a label map (1, *spatial), got shape {tuple(label.shape)}.")
        values = label.as_subclass(Tensor)
        regions = torch.cat([torch.isin(values, torch.tensor(of, device=values.device)) for of in self.regions])
        dtype = torch.uint8
        if self.ignore_index is not None:
            dtype = torch.uint8 if holds_value(torch.uint8, self.ignore_index) else torch.int32
            regions = regions.to(dtype)
            if values.is_floating_point() or holds_value(values.dtype, self.ignore_index):  # 255 is not -1
                regions = regions.masked_fill(values == self.ignore_index, self.ignore_index)
        converted: Tensor = convert_to_dst_type(regions, dst=label, dtype=dtype)[0]
        return converted


class LabelsToRegionsd(MapTransform):
    """Dictionary version of `LabelsToRegions`.

    Args:
        keys: of the label maps.
        regions, ignore_index: see `LabelsToRegions`.
        allow_missing_keys: leave out a label map that is not there.

    Example:
        >>> import torch
        >>> LabelsToRegionsd(keys="label", regions=[[1, 2], [2]])({"label": torch.tensor([[0, 1, 2]])})["label"].shape
        torch.Size([2, 3])
    """

    backend = LabelsToRegions.backend

    def __init__(
        self,
        keys: KeysCollection,
        regions: Mapping[str, Sequence[int]] | Sequence[Sequence[int]],
        allow_missing_keys: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = LabelsToRegions(regions, ignore_index)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """The item with its regions."""
        item: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.transform(item[key])
        return item


LabelsToRegionsD = LabelsToRegionsDict = LabelsToRegionsd
