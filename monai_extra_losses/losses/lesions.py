"""Losses of components: twenty small lesions count as much as one large one each."""

from typing import Annotated, ClassVar, Unpack

import torch
from torch import Tensor

from monai_extra_losses.losses.base import SegmentationLoss, Sums, Terms
from monai_extra_losses.losses.inputs import LossInputs
from monai_extra_losses.losses.options import (
    AbsentClass,
    Positive,
    SegmentationOptions,
    ValueRange,
    one_of,
    refuse_negative,
)
from monai_extra_losses.ops.components import cells_of_regions, components_of_regions, number_of_ids
from monai_extra_losses.ops.distance import SpacingOption, checked_spacing
from monai_extra_losses.ops.numbers import has_numbers
from monai_extra_losses.ops.terms import CellSums

Connectivity = Annotated[int | None, ValueRange("in 1 to 3, or None", lambda k: k is None or 1 <= k <= 3)]


class _ComponentLoss(SegmentationLoss):
    """Base of the losses that are a mean over the components of each class, of Dice and cross-entropy."""

    defaults: ClassVar[dict[str, bool]] = {"include_background": False}
    target_gradient = False
    unsyncable = "it averages samples of its own"
    within: ClassVar[bool]  # whether a voxel outside the class has no component

    def __init__(
        self,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        connectivity: Connectivity = None,
        smooth: Positive = 1e-5,
        *,
        absent_class: AbsentClass = "smooth",
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        refuse_negative(lambda_dice=lambda_dice, lambda_ce=lambda_ce)
        self.lambda_dice, self.lambda_ce = lambda_dice, lambda_ce
        self.connectivity, self.smooth = connectivity, smooth
        self.absent_class = one_of("absent_class", absent_class, AbsentClass)

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None, cells: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            input: (B, C, *spatial) scores or probabilities, of any float dtype.
            target: (B, 1, *spatial) labels with `to_onehot_y`, else (B, C, *spatial), where a class is what is above
                0.5.
            mask: (B, 1, *spatial) bool, or float weights per voxel; a voxel of weight 0 belongs to no class.
            cells: (B, C, *spatial), or without the background (B, C-1, *spatial), whole numbers of any dtype: for each
                class the component, 1, 2, ..., that is nearest to each voxel, 0 where there is none, as
                `monai_extra_losses.transforms.ComponentCellsd` makes them from the whole volume. None: they are made
                here, on the CPU, with connected-components-3d.

        Returns:
            A scalar, or with reduction="none" what the class says; float32, or float64 for a float64 input.
        """
        return self.computed(self.prepare(input, target, mask, cells=cells))

    def terms(self, inputs: LossInputs) -> Terms:
        first = 0 if self.include_background or inputs.channels == 1 else 1
        cells = self._given_cells(inputs, first) if inputs.cells is not None else self._made(inputs, first)
        sums = CellSums(self.activation(inputs), cells, number_of_ids(cells), first, self.within)
        return {"cells": ("activated", sums)}

    def _given_cells(self, inputs: LossInputs, first: int) -> Tensor:
        cells, wanted = inputs.cells, inputs.channels - first
        assert cells is not None
        if cells.shape[1] < wanted:
            raise ValueError(
                f"expected cells of {wanted} classes with include_background=True, got {cells.shape[1]}: set "
                "include_background=False, or make those of the background, too."
            )
        return cells[:, cells.shape[1] - wanted :]

    def _made(self, inputs: LossInputs, first: int) -> Tensor:
        with torch.no_grad():
            return self.made_cells(inputs, inputs.geometry.target_regions()[:, first:])

    def made_cells(self, inputs: LossInputs, regions: Tensor) -> Tensor:
        """(B, C', *spatial) the cells of the regions (B, C', *spatial) bool of the classes kept."""
        raise NotImplementedError

    def domains(self, table: Tensor) -> Tensor:
        """(B, C', 5, K-1) the sums over what each component is compared with, from those by number."""
        raise NotImplementedError

    def value(self, inputs: LossInputs, sums: Sums) -> Tensor:
        table = sums["cells"]
        if inputs.cells is not None and inputs.data.labels and table.device.type == "cpu" and has_numbers(table):
            self._refuse_others(table[:, :, 2, 0])
        everything = table.sum(-1, keepdim=True)  # the sums of an absent class
        of_components = table[:, :, 2, 1:] > 0  # a component that a crop has left out is none
        number = of_components.sum(-1)
        values = torch.where(of_components, self._dice_ce(self.domains(table)), 0).sum(-1) / number.clamp_min(1)
        values = torch.where(number > 0, values, self._dice_ce(everything).squeeze(-1))
        values = torch.where(everything.isnan().flatten(2).any(-1), torch.nan, values)
        keep = number > 0 if self.absent_class == "skip" else everything[:, :, 4, 0] > 0
        if inputs.annotated is not None:
            keep = keep & self.without_background(inputs.annotated)
        return self.reduced_pairs(self.times_weight(values), keep, inputs.axes)

    def _refuse_others(self, without: Tensor) -> None:
        """Refuse cells of another label, by (B, C') how many voxels of each class they have no component for."""
        if bool((without > 0).any()):
            sample, c = (without > 0).nonzero()[0].tolist()
            raise ValueError(
                f"expected cells with a component for every voxel of the classes kept, got {without[sample, c]:g} "
                f"voxels without one in sample {sample}: make the cells of the same label, and move both alike."
            )

    def _dice_ce(self, domains: Tensor) -> Tensor:
        """(B, C', k) of sums (B, C', 5, k) of pg, p, g, the losses of voxels, and 1."""
        overlap, p, g, losses, voxels = domains.unbind(2)
        dice = 1 - (2 * overlap + self.smooth) / (p + g + self.smooth)
        cross_entropy = losses / torch.where(voxels > 0, voxels, 1)
        return self.lambda_dice * dice + self.lambda_ce * cross_entropy


class ComponentDiceCELoss(_ComponentLoss):
    """Component-wise Dice and cross-entropy: each lesion is judged in the region that is nearest to it.

    lambda_dice mean_k Dice(V_k) + lambda_ce mean_k mean_{V_k} BCE, V_k = voxels nearest to component k of the class

    A component is what hangs together of a class in the target, V_k its cell. Dice(V) is
    1 - (2 sum_V pg + s) / (sum_V (p+g) + s), and BCE the cross-entropy of the class against the rest. A missed lesion
    of 15 voxels costs as much as one of 10,000, and so does what is predicted in vain beside it. It does not know how
    large the lesions are in all: the paper adds Dice + cross-entropy, .5 : .5.

    In a patch a component that the crop has cut in two is still one where its `cells` are known from the whole volume;
    a cell whose component lies beyond the patch leaves the mean, and so do its voxels. Cells made in the call are those
    of the patch.

    Args:
        lambda_dice: factor of Dice, >= 0.
        lambda_ce: factor of the cross-entropy, >= 0.
        connectivity: voxels hang together that are up to one step off in so many axes: 1 are those with a common face.
            None: in all, 8 neighbours in 2D and 26 in 3D, as in the paper.
        smooth: s > 0; 1e-5.
        spacing: what is nearest, when cells are made in the call: "auto", None or mm per axis; see `DistanceLoss`.
        absent_class: of a class without a component. "smooth": the whole sample is its cell; "skip": it leaves the
            mean.
        **options: see `SegmentationLoss`. The background is left out by default. `weight` multiplies the loss of each
            class kept and is not normalised. "mean" is over samples and classes kept; "none" gives (B, C', 1, ..). An
            ignored voxel belongs to no component and no cell; a float mask counts a voxel that many times.

    Shapes: see `SegmentationLoss`; forward(input, target, mask=None, cells=None).

    Raises:
        ImportError: a call without `cells` where connected-components-3d or scipy is missing.
        ValueError: an option out of range, sync_batch=True; in a call a connectivity above the number of axes, cells
            that are no whole numbers; a call without `cells` under vmap; else see `SegmentationLoss`.

    Example:
        >>> import torch
        >>> loss = ComponentDiceCELoss(lambda_ce=0.0)
        >>> target = torch.zeros(1, 1, 20)
        >>> target[..., :10], target[..., 15] = 1, 1
        >>> missed = target.clone()
        >>> missed[..., 15] = 0
        >>> round(loss(missed, target).item(), 4)  # Dice would be 1 - 20 / 21
        0.5

    Reference: arXiv:2511.17146 (CC-DiceCE); of several classes arXiv:2604.24276.
    """

    within = False

    def __init__(
        self,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        connectivity: Connectivity = None,
        smooth: Positive = 1e-5,
        *,
        spacing: SpacingOption = "auto",
        absent_class: AbsentClass = "smooth",
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(lambda_dice, lambda_ce, connectivity, smooth, absent_class=absent_class, **options)
        self.spacing = checked_spacing(spacing)

    def made_cells(self, inputs: LossInputs, regions: Tensor) -> Tensor:
        return cells_of_regions(regions, self.connectivity, inputs.geometry.spacing(self.spacing))

    def domains(self, table: Tensor) -> Tensor:
        return table[..., 1:]


class BlobDiceCELoss(_ComponentLoss):
    """Blob loss of Dice and cross-entropy: each lesion is judged as if the others were not there.

    mean_k (lambda_dice Dice(D_k) + lambda_ce mean_{D_k} BCE), D_k = all voxels but those of the other components

    Dice(D) is 1 - (2 sum_D pg + s) / (sum_D (p+g) + s), and BCE the cross-entropy of the class against the rest. A
    false positive counts once for each component, so that where there are many, or small ones, it weighs heavily. It
    knows little of how large the lesions are in all, so give it Dice + cross-entropy as partner.

    The authors' code multiplies what the criterion is given by the domain: raw scores too, of which 0 is a probability
    of one half. Its cross-entropy is a mean over all voxels. Here what is outside the domain leaves the sums.

    Args:
        lambda_dice: factor of Dice, >= 0.
        lambda_ce: factor of the cross-entropy, >= 0.
        connectivity: voxels hang together that are up to one step off in so many axes: 1 are those with a common face.
            None: in all, 8 neighbours in 2D and 26 in 3D.
        smooth: s > 0; 1e-5.
        absent_class: of a class without a component. "smooth": the loss of the whole sample; "skip": it leaves the
            mean.
        **options: see `SegmentationLoss`. The background is left out by default. `weight` multiplies the loss of each
            class kept and is not normalised. "mean" is over samples and classes kept; "none" gives (B, C', 1, ..). An
            ignored voxel belongs to no component and leaves the sums; a float mask counts a voxel that many times.

    Shapes: see `SegmentationLoss`; forward(input, target, mask=None, cells=None). It reads the cells within the
        class alone, which are its components.

    Raises:
        ImportError: a call without `cells` where connected-components-3d is missing.
        ValueError: see `ComponentDiceCELoss`.

    Example:
        >>> import torch
        >>> loss = BlobDiceCELoss(lambda_ce=0.0)
        >>> target = torch.zeros(1, 1, 20)
        >>> target[..., :10], target[..., 15] = 1, 1
        >>> missed = target.clone()
        >>> missed[..., 15] = 0
        >>> round(loss(missed, target).item(), 4)
        0.5

    Reference: Kofler et al. 2023, arXiv:2205.08209.
    """

    within = True

    def made_cells(self, inputs: LossInputs, regions: Tensor) -> Tensor:
        return components_of_regions(regions, self.connectivity)

    def domains(self, table: Tensor) -> Tensor:
        return table[..., :1] + table[..., 1:]
