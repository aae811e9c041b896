"""Carry precomputed maps through MONAI's engines, which hand a loss the prediction and one target."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents, PrepareBatch
from monai.inferers import Inferer
from torch import Tensor, nn

from monai_extra_losses.losses.weighted_sum import takes

LABEL = "label"


class PrepareBatchMaps(PrepareBatch):
    """Gives the trainer the image, and as target the label together with its maps.

    For MONAI's `SupervisedTrainer(prepare_batch=...)`, whose `loss_function` is then a `LossWithMaps`.

    Args:
        maps: keys of the batch, such as "distance" or "mask"; or a dict of the loss's argument and the key.

    Shapes:
        result: image (B, channels, *spatial), and {"label": (B, 1 or C, *spatial), argument: map, ...}, all moved to
            the device with the trainer's options.

    Raises:
        ValueError: no maps, a map called "label", or a batch that lacks image, label or a map.

    Example:
        >>> import torch
        >>> image, label = torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)
        >>> batch = {"image": image, "label": label, "phi": torch.zeros(1, 2, 4)}
        >>> image, target = PrepareBatchMaps({"distance": "phi"})(batch)
        >>> sorted(target)
        ['distance', 'label']
    """

    def __init__(self, maps: str | Sequence[str] | Mapping[str, str] = ("distance",)) -> None:
        if isinstance(maps, Mapping):
            self.maps = dict(maps)
        else:
            names = [maps] if isinstance(maps, str) else maps
            self.maps = {name: name for name in names}
        if not self.maps or LABEL in self.maps:
            raise ValueError(f"expected the names of maps beside the label, got {maps!r}.")

    def __call__(
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Image and target of one batch; arguments as of `Tensor.to`."""
        missing = [key for key in ("image", LABEL, *self.maps.values()) if key not in batchdata]
        if missing:
            raise ValueError(
                f"expected a batch with {', '.join(map(repr, missing))}, got {', '.join(map(repr, batchdata))}; "
                "a transform such as SignedDistanced, Skeletond or ComponentCellsd must make the maps."
            )

        def moved(key: str) -> Tensor:
            return batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs)

        return moved("image"), {LABEL: moved(LABEL), **{name: moved(key) for name, key in self.maps.items()}}


def _arguments_of(loss: nn.Module) -> str:
    return ", ".join(inspect.signature(loss.forward).parameters)


class LossWithMaps(nn.Module):
    """Hands a loss the label and the maps of `PrepareBatchMaps`: loss(input, label, distance=..., ...).

    Args:
        loss: any loss that takes the maps by name, such as `SurfaceLoss` or a `CompoundLoss` of it.
        maps: names of the maps that it must take.

    Raises:
        TypeError: no torch.nn.Module, or one whose forward does not take the maps.

    Example:
        >>> import torch
        >>> from monai_extra_losses import SurfaceLoss
        >>> target = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
        >>> maps = {"distance": torch.tensor([[[6.0, 2.0, -2.0, -4.0]]])}
        >>> LossWithMaps(SurfaceLoss())(target, {"label": target, **maps}).item()  # (-2 + 1 - 4 + 1) / 4
        -1.0
    """

    def __init__(self, loss: nn.Module, maps: Sequence[str] = ("distance",)) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module):
            raise TypeError(f"expected a loss that is a torch.nn.Module, got {type(loss).__name__}.")
        left = [name for name in maps if not takes(loss, name)]
        # a compound, none of whose parts does
        left += [name for name in maps if not getattr(loss, f"reads_{name}", True)]
        if left:
            raise TypeError(
                f"expected a loss that reads {', '.join(left)}, got {type(loss).__name__}, which takes "
                f"{_arguments_of(loss)}: choose a boundary loss or a compound, or leave the maps out."
            )
        self.loss = loss
        self.maps = tuple(maps)

    @property
    def components(self) -> dict[str, Tensor]:
        """Those of a `CompoundLoss`; empty for another loss."""
        return getattr(self.loss, "components", {})

    def forward(self, input: Tensor, target: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The loss of a plain target, or of a label with its maps."""
        if not isinstance(target, Mapping):
            target = {LABEL: target}
        if LABEL not in target:
            raise ValueError(f"expected a target with {LABEL!r}, got {', '.join(map(repr, target))}.")
        value: Tensor = self.loss(input, target[LABEL], **{k: given for k, given in target.items() if k != LABEL})
        return value


class AnnotatedVoxelLoss(nn.Module):
    """Leaves the voxels without annotation of a target of regions to no loss: it gives the others as the `mask`.

    A region, 0 or 1, cannot say that a voxel is neither; `ignore_index` in all its channels does
    (`transforms.LabelsToRegions`).

    Args:
        loss: takes the mask; it may take maps as well.
        ignore_index: value of the target in voxels without annotation.
        maps: names of the maps that come with the label, see `LossWithMaps`.

    Raises:
        TypeError: a loss that takes no mask; else as of `LossWithMaps`.

    Example:
        >>> import torch
        >>> from monai_extra_losses import FusedDiceLoss
        >>> loss = AnnotatedVoxelLoss(FusedDiceLoss(), ignore_index=255)
        >>> round(loss(torch.tensor([[[1.0, 1.0, 1.0]]]), torch.tensor([[[1, 0, 255]]])).item(), 4)  # 1 - 2/3
        0.3333
    """

    def __init__(self, loss: nn.Module, ignore_index: int, maps: Sequence[str] = ()) -> None:
        super().__init__()
        if not takes(loss, "mask"):
            raise TypeError(
                "expected a loss that takes a mask, by which voxels without annotation are left out of regions, got "
                f"{type(loss).__name__}, which takes {_arguments_of(loss)}: choose one of this package."
            )
        self.loss = LossWithMaps(loss, [*maps, *(["mask"] if "mask" not in maps else [])])
        self.ignore_index = ignore_index

    @property
    def components(self) -> dict[str, Tensor]:
        """Those of a `CompoundLoss`; empty for another loss."""
        return self.loss.components

    def forward(self, input: Tensor, target: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The loss of the annotated voxels of a plain target, or of a label with its maps."""
        given = dict(target) if isinstance(target, Mapping) else {LABEL: target}
        ignored = given[LABEL][:, :1] == self.ignore_index
        given[LABEL] = given[LABEL].masked_fill(ignored, 0)
        given["mask"] = ~ignored if "mask" not in given else given["mask"].masked_fill(ignored, 0)
        value: Tensor = self.loss(input, given)
        return value


class StackedScoresLoss(nn.Module):
    """The weighted mean of a loss over the scores that a network with deep supervision gives of several levels.

    The weights are nnU-Net's, 1, 1/2, 1/4, ... from the finest to the coarsest, divided by their sum.

    Args:
        loss: of the scores of one level.

    Shapes:
        input: (B, levels, C, *spatial), as MONAI's `DynUNet` gives them in training, all as fine as the label; or
            (B, C, *spatial), scores alone, of which the loss is as it is.
        target: (B, 1 or C, *spatial), or such a label with its maps.

    Example:
        >>> import torch
        >>> fine, coarse = torch.ones(1, 1, 4), torch.zeros(1, 1, 4)
        >>> loss = StackedScoresLoss(torch.nn.L1Loss())
        >>> round(loss(torch.stack([fine, coarse], 1), torch.ones(1, 1, 4)).item(), 4)  # (0 + 1/2) / (1 + 1/2)
        0.3333
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    @property
    def components(self) -> dict[str, Tensor]:
        """Those of the finest scores by a `CompoundLoss`; empty for another loss."""
        return getattr(self.loss, "components", {})

    def forward(self, input: Tensor, target: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The mean over the levels, or the loss of plain scores."""
        label = target[LABEL] if isinstance(target, Mapping) else target
        if input.ndim != label.ndim + 1:
            plain: Tensor = self.loss(input, target)
            return plain
        levels = input.shape[1]
        whole = sum(0.5**level for level in range(levels))
        # the finest comes last, whose components stay
        values = [0.5**level / whole * self.loss(input[:, level], target) for level in reversed(range(levels))]
        return torch.stack(values).sum(0)


class HalfPrecisionInferer(Inferer):
    """Runs the network of another inferer in half precision, on a GPU or a CPU.

    MONAI's engines do so on a GPU alone, and always scale the loss, which bfloat16 does not need.

    Args:
        inferer: how the network is applied.
        dtype: torch.bfloat16 or torch.float16; None leaves everything in float32.

    Example:
        >>> import torch
        >>> from monai.inferers import SimpleInferer
        >>> HalfPrecisionInferer(SimpleInferer(), torch.bfloat16)(torch.ones(1, 2), torch.nn.Linear(2, 1)).dtype
        torch.bfloat16
    """

    def __init__(self, inferer: Inferer, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.inferer = inferer
        self.dtype = dtype

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """What the other inferer returns."""
        with torch.autocast(inputs.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.inferer(inputs, network, *args, **kwargs)


class LabelWithoutMaps:
    """Puts the label itself in the trainer's output, in place of the label with its maps, once the loss is computed.

    For a trainer with `PrepareBatchMaps` and a metric of the training or postprocessing, which read `label`.
    """

    def attach(self, engine: Engine) -> None:
        """Follow `engine`'s iterations; before whatever else reads its output."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._take_the_label)

    def _take_the_label(self, engine: Engine) -> None:
        output = engine.state.output
        if isinstance(output, dict) and isinstance(target := output[LABEL], Mapping):
            output[LABEL] = target[LABEL]
