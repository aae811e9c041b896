"""A loss as nnU-Net calls it: `loss(output, target)`, with what nnU-Net's targets leave out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class LossOfTraining(nn.Module):
    """Calls a loss as nnU-Net's training does, on one level of its deep supervision.

    Args:
        loss: takes `mask` and `annotated` where they are there.
        spacing: mm per axis of the patch.
        patch_size: voxels per axis. A level of fewer voxels has larger ones.
        ignore_channel: the last channel of a target of regions is 1 where nothing is annotated.

    Attributes:
        annotated: (B, C) bool, which classes of the samples of the next call are annotated; None: all.

    Shapes:
        output (B, C, *spatial); target (B, 1, *spatial) of labels or (B, C, *spatial) of regions, (B, C+1, ..) with an
        ignore channel, of any dtype. Returns a scalar.
    """

    def __init__(
        self, loss: nn.Module, spacing: Sequence[float], patch_size: Sequence[int], *, ignore_channel: bool = False
    ) -> None:
        super().__init__()
        self.loss = loss
        self.spacing = [float(mm) for mm in spacing]
        self.patch_size = [int(voxels) for voxels in patch_size]
        self.ignore_channel = ignore_channel
        self.annotated: Tensor | None = None
        self._measures = any(hasattr(part, "spacing") for part in loss.modules())

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of one level."""
        given: dict[str, Any] = {}
        if self.ignore_channel:
            given["mask"] = target[:, -1:] == 0
            target = target[:, :-1]
        if self.annotated is not None:
            given["annotated"] = self.annotated
        if self._measures:
            target = target.view(target.shape)  # the attribute stays off the caller's tensor
            target.affine = self._affine(target.shape[2:])  # type: ignore[attr-defined]
        value: Tensor = self.loss(output, target, **given)
        return value

    def _affine(self, size: Sequence[int]) -> Tensor:
        steps = [mm * whole / now for mm, whole, now in zip(self.spacing, self.patch_size, size, strict=True)]
        return torch.diag(torch.tensor([*steps, 1.0], dtype=torch.float64))
