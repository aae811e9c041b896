"""Weights of a compound loss that change from epoch to epoch."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from ignite.engine import Engine, Events
from torch import Tensor, nn

from monai_extra_losses.losses.weighted_sum import CompoundLoss

RampKind = Literal["linear", "cosine", "step"]


@dataclasses.dataclass(frozen=True)
class WeightRamp:
    """A weight that goes from one value to another.

    With t from 0 at `first_epoch` to 1 at `last_epoch`: linear is start + (end - start) t; cosine is
    start + (end - start) (1 - cos(pi t)) / 2, slow at both ends; step is `start` before `last_epoch` and `end` from it
    on. Before and behind the two epochs the weight stays.

    Args:
        start: weight up to `first_epoch`, >= 0.
        end: weight from `last_epoch` on, >= 0.
        kind: "linear", "cosine" or "step".
        first_epoch: >= 1; the first epoch of a training is 1.
        last_epoch: >= first_epoch; None is the last epoch of the training.

    Raises:
        ValueError: a negative weight, another kind, or epochs in another order.

    Example:
        >>> ramp = WeightRamp(1.0, 0.01, last_epoch=100)  # 0.01 less in each epoch
        >>> [round(ramp.at(epoch, max_epochs=200), 2) for epoch in (1, 2, 100, 150)]
        [1.0, 0.99, 0.01, 0.01]
    """

    start: float
    end: float
    kind: RampKind = "linear"
    first_epoch: int = 1
    last_epoch: int | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"expected {name} to be a weight >= 0, got {value!r}.")
        if self.kind not in get_args(RampKind):
            raise ValueError(f"expected a kind of {', '.join(get_args(RampKind))}, got {self.kind!r}.")
        epochs = [self.first_epoch, *([] if self.last_epoch is None else [self.last_epoch])]
        whole = all(isinstance(epoch, int) and not isinstance(epoch, bool) for epoch in epochs)
        if not whole or epochs != sorted(epochs) or epochs[0] < 1:
            raise ValueError(
                f"expected whole epochs with 1 <= first_epoch <= last_epoch, got {self.first_epoch!r} "
                f"and {self.last_epoch!r}."
            )

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any] | Self) -> Self:
        """The ramp of a part, from a config; `name` is that of the part."""
        try:
            return options if isinstance(options, cls) else cls(**options)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            known = ", ".join(field.name for field in dataclasses.fields(cls))
            if isinstance(error, ValueError):
                raise ValueError(f"{name}: {error}") from None
            raise ValueError(f"{name}: expected a ramp of {known} (start and end at least), got {options!r}.") from None

    def at(self, epoch: int, max_epochs: int) -> float:
        """The weight of an epoch.

        Args:
            epoch: from 1 on.
            max_epochs: of the training, where the ramp has no last epoch of its own.
        """
        last = max_epochs if self.last_epoch is None else self.last_epoch
        last = max(last, self.first_epoch)
        if self.kind == "step" or last == self.first_epoch:
            return self.end if epoch >= last else self.start
        t = min(max((epoch - self.first_epoch) / (last - self.first_epoch), 0.0), 1.0)
        if self.kind == "cosine":
            t = (1 - math.cos(math.pi * t)) / 2
        return (1 - t) * self.start + t * self.end


class LossWeightSchedule:
    """Ignite handler that sets the weights of a `CompoundLoss` when an epoch starts.

    Args:
        loss: the compound.
        ramps: name of a part and its `WeightRamp`, or a dict of that one's arguments; a part that is not named keeps
            its weight. None changes nothing, and takes any loss.

    Raises:
        TypeError: ramps for a loss that has no parts with weights.
        ValueError: a name that is none of the parts, or a ramp that `WeightRamp` refuses.

    Example:
        >>> from monai_extra_losses import FusedDiceCELoss, SurfaceLoss
        >>> loss = CompoundLoss({"region": FusedDiceCELoss(), "boundary": SurfaceLoss()})
        >>> ramps = {"region": WeightRamp(1.0, 0.01), "boundary": {"start": 0.01, "end": 1.0}}
        >>> LossWeightSchedule(loss, ramps).set_weights(epoch=1, max_epochs=100)
        >>> loss.weights
        [1.0, 0.01]

    Reference: the ramps of Kervadec et al. 2021, doi:10.1016/j.media.2020.101851.
    """

    def __init__(self, loss: nn.Module, ramps: Mapping[str, WeightRamp | Mapping[str, Any]] | None) -> None:
        if ramps and not isinstance(loss, CompoundLoss):
            raise TypeError(
                f"expected a CompoundLoss, whose parts have weights, got {type(loss).__name__}: "
                "choose a compound, or no schedule."
            )
        self.loss = loss
        self.ramps: dict[str, WeightRamp] = {}
        for name, ramp in (ramps or {}).items():
            if name not in self._names:
                raise ValueError(f"expected parts of the loss, {', '.join(self._names)}, got {name!r}.")
            if name in self._learnt:
                raise ValueError(f"expected a weight that is a number, got that of {name!r}, which is learnt: no ramp.")
            self.ramps[name] = WeightRamp.of(name, ramp)

    def attach(self, engine: Engine) -> None:
        """Set the weights of each of `engine`'s epochs."""
        if self.ramps:
            engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)

    def set_weights(self, epoch: int, max_epochs: int) -> None:
        """Set the weights of one epoch, from 1 on."""
        for name, ramp in self.ramps.items():
            self.loss.weights[self._names.index(name)] = ramp.at(epoch, max_epochs)  # type: ignore[operator]

    def state_dict(self) -> dict[str, Any]:
        """The ramps and the weights, for a checkpoint."""
        weights = self.loss.weight_values if isinstance(self.loss, CompoundLoss) else []
        return {
            "ramps": {name: dataclasses.asdict(ramp) for name, ramp in self.ramps.items()},
            "weights": dict(zip(self._names, weights, strict=True)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the weights.

        Raises:
            ValueError: the checkpoint of another schedule, or of a loss with other parts.
        """
        mine = self.state_dict()
        if state["ramps"] != mine["ramps"] or list(state["weights"]) != list(mine["weights"]):
            raise ValueError(f"expected the checkpoint of the schedule {mine}, got {dict(state)}.")
        for number, (name, weight) in enumerate(state["weights"].items()):
            if name not in self._learnt:  # those are in the loss's own state
                self.loss.weights[number] = weight  # type: ignore[operator]

    def _start_epoch(self, engine: Engine) -> None:
        assert engine.state.max_epochs is not None
        self.set_weights(engine.state.epoch, engine.state.max_epochs)

    @property
    def _learnt(self) -> set[str]:
        weights = list(self.loss.weights) if isinstance(self.loss, CompoundLoss) else []
        return {name for name, weight in zip(self._names, weights, strict=True) if isinstance(weight, Tensor)}

    @property
    def _names(self) -> list[str]:
        return list(self.loss.losses) if isinstance(self.loss, CompoundLoss) else []
