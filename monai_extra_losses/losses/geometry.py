"""The target and the prediction of one call as regions in space: voxel sizes, classes, distances."""

import inspect
import sys
from collections.abc import Callable, MutableMapping, Sequence
from types import FrameType

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from monai_extra_losses.ops.call_data import CallData
from monai_extra_losses.ops.distance import SpacingOption, signed_distance, spacing_of_affine
from monai_extra_losses.ops.numbers import has_numbers
from monai_extra_losses.ops.terms import Activation, probabilities


class Geometry:
    """What the losses that measure read of a call.

    Args:
        data: scores, target and mask.
        activated: the scores, after the user's activation.
        affine: (4, 4), or one per sample (B, 4, 4), of a target that knows where its voxels are.
        distance: (B, C, *spatial) signed distances of the target's classes, where the caller has them.
    """

    def __init__(
        self, data: CallData, activated: Callable[[], Tensor], affine: Tensor | None, distance: Tensor | None
    ) -> None:
        self._data, self._activated, self._affine, self.distance = data, activated, affine, distance
        self._channels = data.scores.shape[1]
        self._distances: dict[object, Tensor] = {}

    def spacing(self, option: SpacingOption) -> Tensor | Sequence[float] | None:
        """Mm per spatial axis, of each sample (B, D) or of all (D,); None where voxels are the unit.

        Inside MONAI's `DeepSupervisionLoss`, which interpolates the target and leaves its affine, they are those of the
        interpolated grid.

        Raises:
            ValueError: a spacing or an affine of another number of axes, an affine of another number of samples, or one
                that was another grid's before.
        """
        size = self._data.scores.shape[2:]
        whole = _size_before_levels()
        spacing = self._spacing_of_whole(option, whole or size)
        if spacing is None or whole is None or whole == size:
            return spacing
        steps = [before / now for before, now in zip(whole, size, strict=True)]
        return torch.as_tensor(spacing, dtype=torch.float64) * torch.tensor(steps, dtype=torch.float64)

    def _spacing_of_whole(self, option: SpacingOption, size: torch.Size) -> Tensor | Sequence[float] | None:
        batch, axes = self._data.scores.shape[0], self._data.scores.ndim - 2
        if option is not None and option != "auto" and len(option) != axes:
            raise ValueError(f"expected a spacing of {axes} positive numbers, one per spatial axis, got {option}.")
        if option != "auto":
            return option
        if self._affine is None:
            return None
        affine = torch.as_tensor(self._affine)
        square = affine.ndim in (2, 3) and affine.shape[-1] == affine.shape[-2] > axes
        if not square or (affine.ndim == 3 and affine.shape[0] != batch):
            raise ValueError(
                f"expected the target's affine to be (4, 4) or ({batch}, 4, 4), got {tuple(affine.shape)}: "
                "set spacing, in mm per axis, or None to measure in voxels."
            )
        if has_numbers(self._data.target):
            self._refuse_another_grid(affine, size)
        return spacing_of_affine(affine, axes, to_measure=self.distance is None)

    def _refuse_another_grid(self, affine: Tensor, size: torch.Size) -> None:
        target = self._data.target
        cut_out = target.untyped_storage().nbytes() > target.nbytes  # of a larger target, by indexing
        first = size if cut_out else _SIZES.setdefault(affine, size)
        if first != size:
            raise ValueError(
                f"expected an affine of the target's own grid, got that of a target of {tuple(first)} voxels with one "
                f"of {tuple(size)}, as F.interpolate leaves it: set the affine of the smaller target, call the loss in "
                "monai.losses.DeepSupervisionLoss, or set spacing, in mm per axis."
            )

    def smallest_spacing(self, option: SpacingOption) -> Tensor:
        """(B,) mm of the finest axis of each sample; 1 where voxels are the unit."""
        spacing = self.spacing(option)
        rows = torch.ones(1) if spacing is None else torch.as_tensor(spacing)
        smallest = rows.amin(-1).to(torch.float32)  # before it goes to a device without float64
        return smallest.expand(self._data.scores.shape[0]).to(self._data.scores.device)

    def signed_distance(self, option: SpacingOption, first: int) -> Tensor:
        """(B, C, *spatial) float32 signed distance of each class of the target; 0 for the classes before `first`."""
        key = (option, first)
        if key not in self._distances:
            if self.distance is not None:
                known = self.distance[:, first:].to(torch.float32)
                counts = self._data.voxels_that_count()
                if counts is not None:  # whatever stands there, NaN too
                    known = known.masked_fill(~counts, 0)
            elif self._data.labels:
                known = signed_distance(self.labels(), range(first, self._channels), self.spacing(option))
            else:
                known = signed_distance(self.target_regions()[:, first:], None, self.spacing(option))
            left_out = torch.zeros_like(known[:, :1]).expand(-1, first, *known.shape[2:])
            self._distances[key] = torch.cat([left_out, known], 1) if first else known
        return self._distances[key]

    def squared_distance(self, option: SpacingOption, first: int) -> Tensor:
        """The squares of `signed_distance`."""
        key = ("squared", option, first)
        if key not in self._distances:
            self._distances[key] = self.signed_distance(option, first).square()
        return self._distances[key]

    def labels(self) -> Tensor:
        """(B, *spatial) class of each voxel, uint8 or int32; C where it does not count.

        A target of C channels has the class of its largest, and the background where all are 0.
        """
        target = self._data.target
        if self._data.labels:
            index = target[:, 0]
            # The range check of a call on a GPU may come one call late.
            index = index.clamp(0, self._channels - 1) if index.device.type == "cuda" else index
        else:
            index = (target.byte() if target.dtype == torch.bool else target).argmax(1)
        return self._where_counted(self._compact(index))

    def chosen_labels(self) -> Tensor:
        """(B, *spatial) class of the highest score, uint8 or int32; C where the voxel does not count."""
        return self._where_counted(self._compact(self._activated().detach().argmax(1)))

    def target_regions(self) -> Tensor:
        """(B, C, *spatial) bool: the voxels of each class, in a target of C channels those above 0.5."""
        if self._data.labels:
            return self.regions(self.labels())
        counts = self._data.voxels_that_count()
        regions = self._data.target > 0.5
        return regions if counts is None else regions & counts

    def regions(self, index: Tensor) -> Tensor:
        """(B, C, *spatial) bool: the voxels of each class in a map (B, *spatial) of classes."""
        classes = torch.arange(self._channels, device=index.device)
        return index.unsqueeze(1) == classes.view(1, -1, *[1] * (index.ndim - 1))

    def predicted_masks(self, activation: Activation) -> Tensor:
        """(B, C, *spatial) bool: where the probability of each class is above 0.5."""
        predicted = self._probabilities(activation) > 0.5
        counts = self._data.voxels_that_count()
        return predicted if counts is None else predicted & counts

    def predicted_regions(self, activation: Activation) -> Tensor:
        """The same, or under a softmax, where at most one class is above 0.5, (B, *spatial) labels; C for none."""
        if activation != "softmax":
            return self.predicted_masks(activation)
        top, index = self._probabilities(activation).max(1)
        return self._where_counted(self._compact(index).masked_fill_(top <= 0.5, self._channels))

    def sum_of_certain(self, values: Tensor) -> Tensor:
        """(B, C) sums of a map times (1-2g)^2 over the voxels that count: 1 for labels."""
        return self._data.target_sum(values, lambda g: (1 - 2 * g) ** 2)

    def _probabilities(self, activation: Activation) -> Tensor:
        return probabilities(self._activated().detach().to(self._data.dtype), activation)

    def _compact(self, index: Tensor) -> Tensor:
        """Classes in the smallest dtype that has C, too."""
        return index.to(torch.uint8 if self._channels < 256 else torch.int32)

    def _where_counted(self, index: Tensor) -> Tensor:
        counts = self._data.voxels_that_count()
        return index if counts is None else index.masked_fill(~counts[:, 0], self._channels)


def _size_before_levels() -> torch.Size | None:
    """Spatial size of the target that MONAI's DeepSupervisionLoss was given, where it calls; else None.

    Nothing in an interpolated MetaTensor says that its affine is no longer that of its grid, so the callers are asked;
    a compiled graph has none.
    """
    frame = _frame_of_levels()
    # Asking a frame for its locals keeps them alive with it: of this one alone.
    target = None if frame is None else frame.f_locals.get("target")
    return target.shape[2:] if isinstance(target, Tensor) else None


def in_deep_supervision() -> bool:
    """Whether MONAI's DeepSupervisionLoss calls."""
    return _frame_of_levels() is not None


def _frame_of_levels() -> FrameType | None:
    module = sys.modules.get("monai.losses.ds_loss")
    if module is None or torch.compiler.is_compiling():
        return None
    code = module.DeepSupervisionLoss.forward.__code__
    frame = inspect.currentframe()
    while frame is not None:
        if (frame.f_code.co_name, frame.f_code.co_filename) == (code.co_name, code.co_filename):
            return frame
        frame = frame.f_back
    return None


# Spatial size of the first target that a loss saw with an affine: a collated one shares it with what torch makes of it.
_SIZES: MutableMapping[Tensor, torch.Size] = WeakIdKeyDictionary()
