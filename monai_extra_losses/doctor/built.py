"""What the configs build for the doctor, and what a step of it gave."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_extra_losses.bundle.run_record import RunRecord


@dataclass
class BuiltTraining:
    """What the configs build for a training."""

    record: RunRecord
    trainer: Any
    evaluator: Any
    dataset: Any
    loss: nn.Module
    setup: Any

    @property
    def device(self) -> torch.device:
        return torch.device(self.trainer.state.device)

    @property
    def half(self) -> bool:
        return self.trainer.amp and self.device.type == "cuda"

    @property
    def names(self) -> list[str]:
        return list(self.record.labels.values() if self.record.regions is None else self.record.regions)

    @property
    def multi_label(self) -> bool:
        return self.record.regions is not None


@dataclass
class TakenStep:
    """One step of a training: times in seconds, and root mean squares of gradients."""

    loss: Tensor
    scores: Tensor
    forward: float
    of_loss: float
    rest: float
    score_gradient: float
    layer_gradients: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.forward + self.of_loss + self.rest
