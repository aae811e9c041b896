"""What a training leaves behind while it runs: its table, curves, summary and checkpoints."""

import logging
import math
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.optimizers import WarmupCosineSchedule

from monai_extra_losses.bundle.endings import end_in_a_sentence
from monai_extra_losses.bundle.handlers import loss_of_output
from monai_extra_losses.bundle.processes import is_first_process
from monai_extra_losses.bundle.resuming import checkpoint_of
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import read_training_csv
from monai_extra_losses.bundle.tensor_files import write_tensors
from monai_extra_losses.bundle.weights import without_training_heads
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.storage import whole_file, write_whole
from monai_extra_losses.losses.weighted_sum import CompoundLoss
from monai_extra_losses.report.tables import csv_cell, csv_text, shown_duration

logger = logging.getLogger(__name__)


class TrainingRecord:
    """Writes training.csv, one line per epoch to the log, and the learning curves at the end.

    Args:
        evaluator: the engine that validates; its key metric is an `EmptyAwareDice` handler.
        optimizer: whose learning rate is recorded.
        folder: of the run.
        labels: class -> name, without background.
        loss: a `CompoundLoss` among the losses has the mean of each part, before its weight, and the weight recorded.
    """

    def __init__(
        self,
        *,
        evaluator: Any,
        optimizer: torch.optim.Optimizer,
        folder: RunFolder,
        labels: Mapping[int, str],
        loss: torch.nn.Module | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.folder = folder
        self.names = list(labels.values())
        self.compound = loss if isinstance(loss, CompoundLoss) else None
        self.parts = list(self.compound.losses) if self.compound else []
        self.columns = [
            "epoch",
            "train_loss",
            "learning_rate",
            "val_mean_dice",
            *(f"val_dice_{name}" for name in self.names),
            *(f"{column}_{part}" for part in self.parts for column in ("train_loss", "weight")),
            "seconds",
        ]

    def attach(self, engine: Engine) -> None:
        """Record `engine`'s epochs; attach after the validation, whose result belongs to the same row, and before the
        checkpoints, which no row may be missing of.
        """
        for one in (engine, self.evaluator):
            end_in_a_sentence(one, self.folder.root)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write_epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self._iterations = 0
        # Read once: what somebody does to the file meanwhile must not end the training.
        self._rows = read_training_csv(self.folder.training_csv) if is_first_process() else []
        self._seconds: list[float] = []  # of the epochs of this process

    def _rows_before(self, epoch: int) -> list[dict[str, str]]:
        """A training that resumes keeps the rows of its epochs; another one finds no file."""
        # without the columns of parts that the loss no longer has
        return [
            {column: row.get(column) or "" for column in self.columns}
            for row in self._rows
            if int(row["epoch"]) < epoch
        ]

    def _start_epoch(self, engine: Engine) -> None:
        self._epoch_started = time.perf_counter()
        self._learning_rate = self.optimizer.param_groups[0]["lr"]  # a schedule may change it within the epoch
        self._loss_sum = torch.zeros(1 + len(self.parts))
        self._iterations = 0

    def _add_loss(self, engine: Engine) -> None:
        loss = loss_of_output(engine.state.output)
        parts = [] if self.compound is None else [self.compound.components[part] for part in self.parts]
        self._loss_sum = self._loss_sum.to(loss.device) + torch.stack([part.to(loss) for part in (loss, *parts)])
        self._iterations += 1

    def _write_epoch(self, engine: Engine) -> None:
        losses = self._loss_sum / max(self._iterations, 1)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(losses)
            losses /= torch.distributed.get_world_size()
        loss, *parts = losses.tolist()
        state = engine.state
        row = {
            "epoch": str(state.epoch),
            "train_loss": f"{loss:.6g}",
            "learning_rate": f"{self._learning_rate:.6g}",
            "seconds": f"{time.perf_counter() - self._epoch_started:.2f}",
        }
        line = f"epoch {state.epoch}/{state.max_epochs}  loss {loss:.4f}"
        if self.compound is not None:
            products = []
            for name, value, weight in zip(self.parts, parts, self.compound.weight_values, strict=True):
                measured = {f"train_loss_{name}": value, f"weight_{name}": weight}
                state.metrics |= measured  # where TensorBoard's handler finds them
                row |= {column: csv_cell(number) for column, number in measured.items()}
                products.append(f"{weight:.3g} x {name} {value:.4f}")
            line += f" = {' + '.join(products)}"
        # the evaluator's epoch is the training epoch that it last validated
        if self.evaluator.state.epoch == state.epoch:
            name = self.evaluator.state.key_metric_name
            row["val_mean_dice"] = csv_cell(self.evaluator.state.metrics[name])
            per_class = self.evaluator.state.metric_details[name].nanmean(dim=0).tolist()
            row |= {f"val_dice_{label}": csv_cell(dice) for label, dice in zip(self.names, per_class, strict=True)}
            line += f"  validation Dice {self.evaluator.state.metrics[name]:.4f} ({listed_dice(self.names, per_class)})"
        if is_first_process():
            self._rows = [*self._rows_before(state.epoch), row]
            write_whole(self.folder.training_csv, csv_text(self.columns, self._rows))
            self._seconds.append(float(row["seconds"]))
            epochs_left = cast(int, state.max_epochs) - state.epoch
            left = f", about {shown_duration(epochs_left * float(np.mean(self._seconds)))} left" if epochs_left else ""
            logger.info(f"{line}  {self._seconds[-1]:.1f} s{left}")

    def _finish(self, engine: Engine) -> None:
        if not is_first_process():
            return
        state, best = engine.state, self.evaluator.state
        stopped = f"{best.validations_since_best} validations without a better mean Dice"
        early = state.epoch < cast(int, state.max_epochs)
        rows = self._rows_before(state.epoch + 1)
        summary = self._summary(engine, rows, f" of {state.max_epochs} ({stopped})" if early else "")
        if not self._iterations:
            logger.info(
                f"Nothing to do: the training stopped early after epoch {state.epoch} ({stopped}); "
                "go on by a larger --early_stop_patience."
                if early
                else f"Nothing to do: {state.epoch} epochs are trained; ask for more by --epochs."
            )
            if not rows or (self.folder.curves.exists() and self._has_summary(state.epoch)):
                return
            logger.info("The training was stopped before it wrote its summary and curves, which are made now.")
        from monai_extra_losses.report.curves import draw_curves

        with whole_file(self.folder.curves) as draft:
            draw_curves(self.folder.training_csv, draft)
        write_whole(self.folder.summary, summary + "\n")
        logger.info(summary)

    def _has_summary(self, epoch: int) -> bool:
        """Whether summary.txt is there, and not that of an earlier end."""
        try:
            stated = re.search(r" epoch (\d+)", self.folder.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return stated is not None and int(stated[1]) == epoch

    def _summary(self, engine: Engine, rows: Sequence[Mapping[str, str]], stopped: str) -> str:
        """The training in a few lines.

        Args:
            engine: the trainer.
            rows: of its epochs.
            stopped: of how many epochs and why, where it ended early.
        """
        best = self.evaluator.state
        of_best = next((row for row in rows if int(row["epoch"]) == best.best_metric_epoch), {})
        classes = listed_dice(self.names, [float(of_best.get(f"val_dice_{name}") or "nan") for name in self.names])
        root = shlex.quote(str(self.folder.root))
        return (
            f"{'Stopped early at' if stopped else 'Trained to'} epoch {engine.state.epoch}{stopped} "
            f"in {sum(float(row['seconds'] or 0) for row in rows):.0f} s; "
            f"best validation Dice {best.best_metric:.4f} at epoch {best.best_metric_epoch} ({classes}).\n"
            f"  this Dice       a quick one{overlap_of(self.evaluator)}, on the grid of the training; that of evaluate "
            "(0.5, on the files' grids) differs\n"
            f"  best model      {self.folder.model}\n"
            f"  table, curves   {self.folder.training_csv}, {self.folder.curves}\n"
            f"  TensorBoard     tensorboard --logdir {shlex.quote(str(self.folder.tensorboard))}\n"
            f"  evaluate        monai-extra-losses evaluate --run {root}\n"
            f"  segment         monai-extra-losses infer --run {root} --input FILES --output FOLDER"
        )


class RunCheckpoints:
    """Saves the best model and everything that resuming needs, and restores it.

    The best score is part of the checkpoint: a resumed training that does worse leaves the best model alone. So are the
    counts of the early stop and of the classes that are not predicted, and the scaler of half precision. Random numbers
    are not: `SeededEpochs`.

    Args:
        folder: of the run.
        network, loss, optimizer, lr_scheduler: what is trained.
        evaluator: whose key metric says what is best.
        resume: restore the last checkpoint, if there is one, when the training starts.
    """

    def __init__(
        self,
        *,
        folder: RunFolder,
        network: torch.nn.Module,
        loss: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        evaluator: Any,
        resume: bool = False,
    ) -> None:
        self.folder = folder
        self.resume = resume
        # DistributedDataParallel holds the network as `module`
        self.network = network.module if isinstance(network, torch.nn.parallel.DistributedDataParallel) else network
        self.loss = loss
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Save after each of `engine`'s epochs; attach after the validation and the record."""
        if self.resume:
            # Not before the run: ignite starts an engine that has done all its epochs from the first one again.
            engine.add_event_handler(Events.STARTED, self._restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        if not is_first_process():
            return
        best = self.evaluator.state
        if best.best_metric_epoch == engine.state.epoch:
            write_tensors(without_training_heads(self.network.state_dict()), self.folder.model)
        state = {
            "epoch": engine.state.epoch,
            "best_metric": float(best.best_metric),
            "best_metric_epoch": best.best_metric_epoch,
            "validations_since_best": best.validations_since_best,
            "empty_validations": dict(getattr(best, "empty_validations", {})),
            "network": self.network.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
        }
        if (scaler := getattr(engine, "scaler", None)) is not None:
            state["scaler"] = scaler.state_dict()
        write_tensors(state, self.folder.last, kept_as=self.folder.previous)

    def _restore(self, trainer: Engine) -> None:
        checkpoint = checkpoint_of(self.folder)
        if checkpoint is None:
            return
        state = checkpoint.content
        try:
            self.network.load_state_dict(state["network"])
            self.loss.load_state_dict(state["loss"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._restore_schedule(state["lr_scheduler"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise StartUpRefused(
                f"{checkpoint.file}: expected a checkpoint of this network, loss and optimizer, got another "
                f"({first}); "
                "resume with the options of the first start."
            ) from None
        self.evaluator.state.best_metric = state["best_metric"]
        self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        self.evaluator.state.validations_since_best = state.get("validations_since_best", 0)
        self.evaluator.state.empty_validations = dict(state.get("empty_validations", {}))
        if (scaler := getattr(trainer, "scaler", None)) is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        trainer.state.epoch = state["epoch"]
        trainer.state.iteration = state["epoch"] * trainer.state.epoch_length
        logger.info(f"Going on after epoch {state['epoch']} of {checkpoint.file}")

    def _restore_schedule(self, state: dict[str, Any]) -> None:
        if not isinstance(self.lr_scheduler, WarmupCosineSchedule):
            self.lr_scheduler.load_state_dict(state)
            return
        # Its length comes from the options, not from the checkpoint, so that a resumed training may have more epochs.
        self.lr_scheduler.load_state_dict({**state, "t_total": self.lr_scheduler.t_total})
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_lr(), strict=True):
            group["lr"] = rate


def listed_dice(names: Sequence[str], dice: Sequence[float]) -> str:
    """The Dice of each class; of more than ten, the lowest three."""
    pairs = list(zip(names, dice, strict=True))
    if len(pairs) > 10:
        lowest = sorted((pair for pair in pairs if not math.isnan(pair[1])), key=lambda pair: pair[1])[:3]
        return f"{len(pairs)} classes, the lowest {', '.join(f'{name} {value:.3f}' for name, value in lowest)}"
    return ", ".join(f"{name} {'undefined' if math.isnan(value) else f'{value:.3f}'}" for name, value in pairs)


def overlap_of(evaluator: Any) -> str:
    """How far the windows of an evaluator overlap, in words; nothing where it has none."""
    inferer = getattr(evaluator, "inferer", None)
    inferer = getattr(inferer, "inferer", inferer)  # within that of half precision
    overlap = getattr(inferer, "overlap", None)
    return "" if overlap is None else f" (windows overlap by {overlap:g})"
