"""Ignite handlers of the bundle: progress, training record, checkpoints, evaluation report, finished segmentations.

The rule for empty classes, in training and evaluation alike: a class that is neither in the target nor in the
prediction of a case is undefined there and leaves the means, which say how many cases that were. A class that is in one
of the two only, missed or invented, counts with the worst value: Dice and surface Dice 0, and as Hausdorff distance the
diagonal of the volume. So neither a missed nor an invented lesion ever improves a mean.
"""

import logging
import sys
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.data.utils import set_rnd
from monai.handlers import ValidationHandler
from monai.utils import set_determinism

from monai_extra_losses.bundle.processes import is_first_process
from monai_extra_losses.data.errors import TrainingStopped

logger = logging.getLogger(__name__)


def loss_of_output(output: Any) -> torch.Tensor:
    """The loss in a trainer's output: one dictionary, or a list of them where the trainer takes the batch apart."""
    return torch.as_tensor(_of_first(output)["loss"]).detach()  # taken apart, it is a number


def _of_first(output: Any) -> Mapping[str, Any]:
    first: Mapping[str, Any] = output[0] if isinstance(output, list) else output
    return first


class EpochProgress:
    """A progress bar per epoch with the running loss; on a terminal only."""

    def attach(self, engine: Engine) -> None:
        """Follow `engine`'s iterations."""
        if is_first_process() and sys.stderr.isatty():
            bar = ProgressBar(bar_format="{desc} {bar} {n_fmt}/{total_fmt}{postfix}, {remaining} left ")
            bar.attach(engine, output_transform=lambda output: {"loss": loss_of_output(output).item()})


class SeededEpochs:
    """Gives every epoch random numbers of its own: order of the cases, patches, augmentation, dropout.

    They come from the seed, the epoch and the process alone. So a training that was killed and resumed goes on with the
    numbers that it would have had, whatever the checkpoint holds and however many processes load the data.

    Args:
        seed: of the training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Seed `engine`'s epochs; attach before whatever else draws at their start."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed)

    def _seed(self, engine: Engine) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        (seed,) = np.random.SeedSequence([self.seed, engine.state.epoch, rank]).generate_state(1).tolist()
        set_determinism(seed=seed)
        # the transforms draw from generators of their own; with loader processes torch's seed decides them
        set_rnd(getattr(getattr(engine.state.dataloader, "dataset", None), "transform", None), seed)


class ListedOutput:
    """Puts the output of an iteration in a list of one dictionary.

    MONAI's loggers, that of `--tracking mlflow` too, read the output of an engine that takes batches apart. That
    would cost a third of a step here. Attach before them.
    """

    def attach(self, engine: Engine) -> None:
        """List the outputs of `engine`."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._list)

    def _list(self, engine: Engine) -> None:
        if isinstance(engine.state.output, Mapping):
            engine.state.output = [engine.state.output]


class FiniteLossGuard:
    """Ends a training whose loss or image is no number any more, before the network it leaves is validated or saved.

    Attach before the validation.

    Args:
        learning_rate: that the sentence about the loss names.

    Raises:
        TrainingStopped: by `engine.run()`, with the epoch, the iteration and what to try; of an image with its case.
    """

    _INTERVAL = 20  # iterations between two looks at a GPU's losses: each look waits for it

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def attach(self, engine: Engine) -> None:
        """Follow `engine`'s losses."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._stop)

    def _start(self, engine: Engine) -> None:
        self._done = 0
        self._first = torch.zeros(())  # iteration of the first loss that is no number; 0: none
        self._images: list[tuple[int, torch.Tensor, list[str]]] = []  # iteration, whether each is finite, its case

    def _look(self, engine: Engine) -> None:
        loss = loss_of_output(engine.state.output)
        self._done += 1
        first = self._first.to(loss.device)
        self._first = torch.where((first == 0) & ~loss.isfinite(), float(self._done), first)
        images, batch = _of_first(engine.state.output).get("image"), engine.state.batch
        if isinstance(images, torch.Tensor) and isinstance(batch, Mapping):  # else the trainer took the batch apart
            finite = images.detach().flatten(1).isfinite().all(dim=1)
            cases = batch.get("case") or [f"item {number} of the batch" for number in range(len(finite))]
            self._images.append((self._done, finite, cases))
        if loss.device.type == "cpu" or self._done % self._INTERVAL == 0:
            self._stop(engine)

    def _stop(self, engine: Engine) -> None:
        for iteration, finite, cases in self._images:
            if not finite.all():
                raise TrainingStopped(
                    f"Expected finite intensities in the patches, got NaN or infinity in that of "
                    f"{cases[finite.tolist().index(False)]} (epoch {engine.state.epoch}, iteration {iteration}); a "
                    "transform makes them, for the files were looked at when they were loaded. The checkpoints of the "
                    "epochs before are as they were."
                )
        self._images.clear()
        iteration = int(self._first)
        if iteration:
            raise TrainingStopped(
                f"The training loss of epoch {engine.state.epoch}, iteration {iteration}, is no finite number; the "
                "checkpoints of the epochs before are as they were. If it was half precision, --resume True --amp "
                "False goes on after the last epoch saved; else train anew with a --learning_rate below "
                f"{self.learning_rate:g}."
            )


class IntervalValidation(ValidationHandler):
    """Validates every `interval` epochs, and after the last one whatever the interval.

    `validator.state.validations_since_best` counts the validations without a better key metric.

    Args:
        validator: the engine that validates.
        interval: epochs.
    """

    def __init__(self, validator: Any, interval: int) -> None:
        super().__init__(interval, validator)
        validator.state.validations_since_best = 0

    def attach(self, engine: Engine) -> None:
        """Validate after `engine`'s epochs."""
        due = Events.EPOCH_COMPLETED(
            event_filter=lambda engine, epoch: epoch % self.interval == 0 or epoch == engine.state.max_epochs
        )
        engine.add_event_handler(due, self)

    def __call__(self, engine: Engine) -> None:
        """Validate."""
        super().__call__(engine)
        state = cast(Any, self.validator).state
        better = state.best_metric_epoch == engine.state.epoch
        state.validations_since_best = 0 if better else state.validations_since_best + 1


class EarlyStop:
    """Ends a training after validations in a row without a better mean Dice.

    Attach after the checkpoints: a training that is resumed when it had stopped does nothing.

    Args:
        evaluator: that `IntervalValidation` runs.
        patience: number of such validations; None: never.
    """

    def __init__(self, evaluator: Any, patience: int | None) -> None:
        self.evaluator = evaluator
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Stop `engine`."""
        if self.patience is not None:
            engine.add_event_handler(Events.STARTED, self._stop)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._stop)

    def _stop(self, engine: Engine) -> None:
        if self.evaluator.state.validations_since_best >= cast(int, self.patience):
            engine.terminate()
