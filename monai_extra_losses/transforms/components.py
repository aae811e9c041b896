"""Components of labels: cells and weights made once on the whole volume, and which predicted ones to keep."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_extra_losses.ops.components import cells_of_regions, components_of_regions
from monai_extra_losses.ops.distance import SpacingOption, checked_spacing
from monai_extra_losses.transforms.beside_label import BesideLabeld
from monai_extra_losses.transforms.label_regions import (
    checked_number_of_classes,
    refuse_other_shape,
    regions_of_label,
    spacing_of_label,
)


class ComponentCells(Transform):
    """Cells of the components of every class: what `ComponentDiceCELoss` and `BlobDiceCELoss` take as `cells`.

    For each class and voxel the number, 1, 2, ..., of the component that is nearest; 0 everywhere where the class has
    none. A voxel of a component has the number of its own, so that this one map tells both losses all. Put the
    transform behind what changes the label (resampling, padding) and before the random crop: it is deterministic, so
    that MONAI's caching data sets keep it. Transforms that move the label must move the cells alike, with mode
    "nearest": a component that a crop cuts in two has still one number.

    Args:
        num_classes: C, with background for a label map.
        connectivity: voxels hang together that are up to one step off in so many axes, 1..D; None: in all.
        spacing: what is nearest: "auto" takes the mm per voxel from the label's affine, and measures in voxels where
            there is none; None measures in voxels always; or one number in mm per spatial axis.
        ignore_index: label that belongs to no class. Of a target with several channels: a class whose voxels belong to
            no other class either, or another number that all channels hold in such a voxel.
        include_background: of a label map, number the components of class 0, too.

    Shapes:
        label: (1, *spatial) map of whole numbers in 0..C-1 or ignore_index, or (C, *spatial) regions, > 0.5 inside,
            which may overlap; with C = 1 always a region. 1 to 3 spatial axes.
        result: of a label map (C-1, *spatial), or (C, *spatial) with the background; of regions (C, *spatial). Int32; a
            MetaTensor with the label's affine and history where the label is one.

    Raises:
        ImportError: without connected-components-3d, or scipy.
        ValueError: an option out of range, a label of another shape or with other values than expected.

    Example:
        >>> import torch
        >>> label = torch.tensor([[0, 1, 0, 0, 0, 1, 1]])
        >>> ComponentCells(num_classes=2)(label).tolist()
        [[1, 1, 1, 1, 2, 2, 2]]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  MONAI's own attribute

    def __init__(
        self,
        num_classes: int,
        connectivity: int | None = None,
        spacing: SpacingOption = "auto",
        ignore_index: int | None = None,
        include_background: bool = False,
    ) -> None:
        self.num_classes = checked_number_of_classes(num_classes)
        self.connectivity = _checked_connectivity(connectivity)
        self.spacing = checked_spacing(spacing)
        self.ignore_index = ignore_index
        self.include_background = include_background

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        """The cells of one label."""
        label = convert_to_tensor(img, track_meta=get_track_meta())
        refuse_other_shape(label, self.num_classes)
        regions, classes = regions_of_label(label.as_subclass(Tensor), self.num_classes, self.ignore_index)
        if classes is not None:
            kept = classes[0 if self.include_background else 1 :]
            regions = torch.stack([regions == c for c in kept], 1) if kept else regions.new_zeros(1, 0).bool()
        cells = cells_of_regions(regions, self.connectivity, spacing_of_label(self.spacing, label))[0]
        converted: Tensor = convert_to_dst_type(cells, dst=label, dtype=torch.int32)[0]
        return converted


class InverseComponentWeight(Transform):
    """Weights of voxels by the size of their component, so that each component has as much: the `mask` of a loss.

    w = N / ((K+1) |k|), clipped to [1, 200000], for each of the |k| voxels of component k

    K components of all classes, and the background as one more, of N voxels in all. Put the transform behind what
    changes the label and before the random crop, and move the weights with the label, with mode "nearest".

    A loss of this package divides what a mask weights by its sum, sum w l / sum w. The paper's is mean(w l): take
    `reduction="none"` of a cross-entropy, whose map holds w l (MONAI's trainer takes the mean of what a loss returns).
    Over a whole volume the two agree where nothing is clipped, as the weights have the mean 1; over patches the first
    takes each alike, the second more of those with small components.

    Args:
        connectivity: voxels hang together that are up to one step off in so many axes, 1..D; None: in all.
        ignore_index: label that belongs to no component, with a weight of 0; of a target with several channels a number
            that all hold.
        limits: the least and the largest weight.

    Shapes:
        label: (1, *spatial) map of whole numbers, 0 for the background, or (C, *spatial) regions, > 0.5 inside, of
            which the components are those of their union. 1 to 3 spatial axes.
        result: (1, *spatial) float32, a MetaTensor with the label's affine and history where the label is one.

    Raises:
        ImportError: without connected-components-3d.
        ValueError: an option out of range, a label of another shape.

    Example:
        >>> import torch
        >>> label = torch.tensor([[0, 0, 0, 2, 0, 0, 1, 1, 0]])  # N = 9, K = 2
        >>> InverseComponentWeight(limits=(0.0, 10.0))(label).tolist()
        [[0.5, 0.5, 0.5, 3.0, 0.5, 0.5, 1.5, 1.5, 0.5]]

    Reference: Shirokikh et al. 2020, arXiv:2007.10033.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  MONAI's own attribute

    def __init__(
        self,
        connectivity: int | None = None,
        ignore_index: int | None = None,
        limits: tuple[float, float] = (1.0, 2e5),
    ) -> None:
        least, most = limits
        if not 0 <= least < most:
            raise ValueError(f"expected limits of two numbers >= 0, the lower one first, got {limits!r}.")
        self.connectivity = _checked_connectivity(connectivity)
        self.ignore_index = ignore_index
        self.limits = float(least), float(most)

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        """The weights of one label."""
        label = convert_to_tensor(img, track_meta=get_track_meta())
        _refuse_without_channels("label", label)
        values = label.as_subclass(Tensor)
        ignored = torch.zeros_like(values[:1], dtype=torch.bool)
        if self.ignore_index is not None:
            ignored = values[:1].to(torch.int64) == self.ignore_index
        weights = self._weights(self._components(values, ignored), ignored)
        converted: Tensor = convert_to_dst_type(weights, dst=label, dtype=torch.float32)[0]
        return converted

    def _components(self, values: Tensor, ignored: Tensor) -> Tensor:
        """(1, *spatial) the component of each voxel, numbered over all classes; 0 for the background."""
        if values.shape[0] == 1:
            labels = values.to(torch.int64).masked_fill(ignored, 0)
            regions = torch.stack([labels == c for c in labels.unique().tolist() if c != 0] or [labels != 0], 1)
        else:
            regions = ((values > 0.5).any(0, keepdim=True) & ~ignored).unsqueeze(0)
        components = components_of_regions(regions, self.connectivity).to(torch.int64)
        numbers = components.flatten(2).amax(2)[0]
        before = (numbers.cumsum(0) - numbers).view(1, -1, *[1] * (values.ndim - 1))
        return torch.where(components > 0, components + before, 0).sum(1)

    def _weights(self, components: Tensor, ignored: Tensor) -> Tensor:
        sizes = components[~ignored].bincount(minlength=int(components.max()) + 1).to(torch.float64)
        of_component = sizes.sum() / (len(sizes) * sizes)
        return of_component.clamp(*self.limits)[components].masked_fill(ignored, 0)


class HysteresisKeep(Transform):
    """Keeps what is predicted with some certainty somewhere: a component of p > low whose peak is > high, per class.

    One threshold either loses the rim of a lesion or lets in much that is none. With two, p > low says how far a lesion
    reaches, and its peak whether it is one; what never gets above `high` goes as a whole.

    Args:
        low: p of what a component is made of, in [0, 1); 0.25.
        high: what its largest p must exceed, in [low, 1); 0.70.
        connectivity: voxels hang together that are up to one step off in so many axes, 1..D; None: in all.
        include_background: treat channel 0 as the others are; else, of several channels, it is the background.

    Shapes:
        probabilities: (C, *spatial), of any float dtype. 1 to 3 spatial axes.
        result: the same, p in the components that are kept, 0 elsewhere. A background is 1 where nothing is kept, and 0
            where something is, so that the argmax over the channels is the label; of regions, those above 0 are.

    Raises:
        ImportError: without connected-components-3d.
        TypeError: no floating-point numbers.
        ValueError: an option out of range, probabilities of another shape, or outside [0, 1].

    Example:
        >>> import torch
        >>> p = torch.tensor([[0.1, 0.4, 0.8, 0.3, 0.1, 0.6, 0.6]])
        >>> [round(x, 1) for x in HysteresisKeep()(p)[0].tolist()]
        [0.0, 0.4, 0.8, 0.3, 0.0, 0.0, 0.0]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  MONAI's own attribute

    def __init__(
        self,
        low: float = 0.25,
        high: float = 0.70,
        connectivity: int | None = None,
        include_background: bool = False,
    ) -> None:
        if not 0 <= low <= high < 1:
            raise ValueError(f"expected 0 <= low <= high < 1, got low={low} and high={high}.")
        self.low, self.high = float(low), float(high)
        self.connectivity = _checked_connectivity(connectivity)
        self.include_background = include_background

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        """What is kept of the probabilities of one volume."""
        given = convert_to_tensor(img, track_meta=get_track_meta())
        _refuse_without_channels("probabilities", given)
        if not given.is_floating_point():
            raise TypeError(f"expected floating-point probabilities, got {given.dtype}: apply it before the decision.")
        p = given.as_subclass(Tensor)
        if p.numel() and not (p.min() >= -1e-5 and p.max() <= 1 + 1e-5):  # a mean of ones may be a little above 1
            raise ValueError(
                f"expected probabilities in [0, 1], got {p.min():g} to {p.max():g}: apply a softmax or sigmoid first."
            )
        first = 0 if self.include_background or p.shape[0] == 1 else 1
        kept = torch.zeros_like(p)
        kept[first:] = self._kept(p[first:])
        if first:
            kept[0] = (kept[1:] == 0).all(0).to(kept.dtype)
        converted: Tensor = convert_to_dst_type(kept, dst=given)[0]
        return converted

    def _kept(self, p: Tensor) -> Tensor:
        components = components_of_regions((p > self.low).unsqueeze(0), self.connectivity)[0].to(torch.int64)
        number = int(components.max()) + 1 if components.numel() else 1
        sure = torch.zeros(p.shape[0], number, dtype=torch.bool, device=p.device)
        channel = torch.arange(p.shape[0], device=p.device).view(-1, *[1] * (p.ndim - 1)).expand_as(components)
        peaks = p > self.high
        sure[channel[peaks], components[peaks]] = True
        return torch.where(sure[channel, components], p, 0)


class ComponentCellsd(BesideLabeld):
    """Dictionary version of `ComponentCells`: writes the cells of `keys` to `cells_keys`.

    Args:
        keys: of the labels.
        cells_keys: of the cells, one per label.
        num_classes, connectivity, spacing, ignore_index, include_background: see `ComponentCells`.
        allow_missing_keys: leave out a label that is not there.

    Raises:
        ValueError: another number of cells_keys than of keys, or the same key twice; else see `ComponentCells`.

    Example:
        >>> import torch
        >>> item = ComponentCellsd(keys="label", cells_keys="cells", num_classes=2)({"label": torch.tensor([[0, 1]])})
        >>> item["cells"].tolist()
        [[1, 1]]
    """

    backend = ComponentCells.backend

    def __init__(
        self,
        keys: KeysCollection,
        cells_keys: KeysCollection,
        num_classes: int,
        connectivity: int | None = None,
        spacing: SpacingOption = "auto",
        ignore_index: int | None = None,
        include_background: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        transform = ComponentCells(num_classes, connectivity, spacing, ignore_index, include_background)
        super().__init__(keys, "cells_keys", cells_keys, transform, allow_missing_keys)


class InverseComponentWeightd(BesideLabeld):
    """Dictionary version of `InverseComponentWeight`: writes the weights of `keys` to `weight_keys`.

    Args:
        keys: of the labels.
        weight_keys: of the weights, one per label.
        connectivity, ignore_index, limits: see `InverseComponentWeight`.
        allow_missing_keys: leave out a label that is not there.

    Raises:
        ValueError: another number of weight_keys than of keys, or the same key twice; else see
            `InverseComponentWeight`.

    Example:
        >>> import torch
        >>> item = InverseComponentWeightd(keys="label", weight_keys="mask")({"label": torch.tensor([[0, 0, 0, 1]])})
        >>> item["mask"].tolist()  # 4 / (2 * 3) is below 1
        [[1.0, 1.0, 1.0, 2.0]]
    """

    backend = InverseComponentWeight.backend

    def __init__(
        self,
        keys: KeysCollection,
        weight_keys: KeysCollection,
        connectivity: int | None = None,
        ignore_index: int | None = None,
        limits: tuple[float, float] = (1.0, 2e5),
        allow_missing_keys: bool = False,
    ) -> None:
        transform = InverseComponentWeight(connectivity, ignore_index, limits)
        super().__init__(keys, "weight_keys", weight_keys, transform, allow_missing_keys)


class HysteresisKeepd(MapTransform):
    """Dictionary version of `HysteresisKeep`.

    Args:
        keys: of the probabilities.
        low, high, connectivity, include_background: see `HysteresisKeep`.
        allow_missing_keys: leave out what is not there.

    Example:
        >>> import torch
        >>> HysteresisKeepd(keys="pred")({"pred": torch.tensor([[0.5, 0.0, 0.75]])})["pred"].tolist()
        [[0.0, 0.0, 0.75]]
    """

    backend = HysteresisKeep.backend

    def __init__(
        self,
        keys: KeysCollection,
        low: float = 0.25,
        high: float = 0.70,
        connectivity: int | None = None,
        include_background: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = HysteresisKeep(low, high, connectivity, include_background)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """The item with what is kept."""
        item: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.transform(item[key])
        return item


ComponentCellsD = ComponentCellsDict = ComponentCellsd
InverseComponentWeightD = InverseComponentWeightDict = InverseComponentWeightd
HysteresisKeepD = HysteresisKeepDict = HysteresisKeepd


def _checked_connectivity(connectivity: int | None) -> int | None:
    whole = isinstance(connectivity, int) and not isinstance(connectivity, bool)
    if connectivity is not None and not (whole and 1 <= connectivity <= 3):
        raise ValueError(f"expected connectivity in 1 to 3, or None, got {connectivity!r}.")
    return connectivity


def _refuse_without_channels(name: str, tensor: Tensor) -> None:
    if not 2 <= tensor.ndim <= 4 or not tensor.shape[0]:
        raise ValueError(
            f"expected {name} (C, *spatial) with 1 to 3 spatial axes, got shape {tuple(tensor.shape)}; give a channel "
            "axis."
        )
