"""What experiment trackers record of a run: MONAI's `--tracking mlflow`, and TensorBoard."""

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from ignite.engine import Engine, Events

from monai_extra_losses.bundle.run_record import RunRecord

_MOST_OPTIONS = 80  # MLflow takes 100 parameters at a time


_LONGEST_VALUE = 5000  # and values of 6000 letters


class ClassDice:
    """Puts the Dice of each class among the metrics of an evaluator, where the handlers that log metrics find them.

    Attach after the key metric, an `EmptyAwareDice` handler, and before what logs.

    Args:
        labels: class -> name, without background.
    """

    def __init__(self, labels: Mapping[int, str]) -> None:
        self.metrics = _distinct([f"val_dice_{name}" for name in labels.values()])

    def attach(self, engine: Engine) -> None:
        """Follow `engine`'s validations."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._tell)

    def _tell(self, engine: Engine) -> None:
        state = cast(Any, engine.state)
        per_class = state.metric_details[state.key_metric_name].nanmean(dim=0).tolist()
        for metric, dice in zip(self.metrics, per_class, strict=True):
            state.metrics.pop(metric, None)  # of the validation before
            if dice == dice:  # defined in some case
                state.metrics[metric] = dice


class TrackedParameters:
    """Tells MONAI's `MLFlowHandler` what the run is: its loss with options, learning rate, fold and seed.

    `--tracking mlflow` adds that handler to the trainer without a way to give it parameters.

    Args:
        record: of the run.
    """

    def __init__(self, record: RunRecord) -> None:
        options = {f"loss.{name}": value for name, value in (record.loss_options or {}).items() if name != "class"}
        if len(options) > _MOST_OPTIONS:
            options = {"loss.options": options}
        chosen = {"loss": record.loss} | options
        for name in ("network", "learning_rate", "batch_size", "patch_size", "pixdim", "num_folds", "fold", "seed"):
            chosen[name] = getattr(record, name)
        values = [
            v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)[:_LONGEST_VALUE] for v in chosen.values()
        ]
        self.parameters = dict(zip(_distinct(list(chosen)), values, strict=True))

    def attach(self, engine: Engine) -> None:
        """Tell the trackers of `engine` before they start; attach before them."""
        engine.add_event_handler(Events.STARTED, self._tell)

    def _tell(self, engine: Engine) -> None:
        # ignite has no public list of the handlers of an event
        for handler, *_ in getattr(engine, "_event_handlers", {}).get(Events.STARTED, ()):
            tracker: Any = getattr(handler, "__self__", None)
            if hasattr(tracker, "experiment_param"):
                tracker.experiment_param = self.parameters | (tracker.experiment_param or {})


def _distinct(names: list[str]) -> list[str]:
    """Names that MLflow takes, each another one."""
    taken: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w./ -]", "_", name)[:200]
        number = sum(other == plain or other.startswith(f"{plain}__") for other in taken)
        taken.append(f"{plain}__{number + 1}" if number else plain)
    return taken
