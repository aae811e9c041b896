"""Ignite handlers of the bundle: progress, training record, checkpoints, evaluation report, finished segmentations.

The rule for empty classes, in training and evaluation alike: a class that is neither in the target nor in the
prediction of a case is undefined there and leaves the means, which say how many cases that were. A class that is in one
of the two only, missed or invented, counts with the worst value: Dice and surface Dice 0, and as Hausdorff distance the
diagonal of the volume. So neither a missed nor an invented lesion ever improves a mean.
"""

import csv
import io
import logging
import math
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.data import MetaTensor
from monai.data.utils import set_rnd
from monai.engines.utils import IterationEvents
from monai.handlers import ValidationHandler
from monai.metrics import DiceMetric, compute_hausdorff_distance, compute_surface_dice
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Orientation
from monai.utils import set_determinism

from monai_extra_losses.bundle import is_first_process, read_checkpoint
from monai_extra_losses.data.errors import DatasetError, StartUpRefused, TrainingStopped, WritingFailed
from monai_extra_losses.data.storage import storage_sentence, whole_file
from monai_extra_losses.losses.compound import CompoundLoss
from monai_extra_losses.run_folder import ResultsFolder, RunFolder, read_training_csv, write_whole
from monai_extra_losses.schedules import LossWeightSchedule as LossWeightSchedule
from monai_extra_losses.segmentation_record import SegmentationRecord, close_unfinished
from monai_extra_losses.tensor_files import record_checksum

logger = logging.getLogger(__name__)

CASE_METRICS = ("dice", "hd95_mm", "surface_dice", "false_positive_ml")
_CASE_COLUMNS = ("case", "label", "dice", "hd95_mm", "surface_dice", "target_ml", "prediction_ml", "false_positive_ml")


def loss_of_output(output: Any) -> torch.Tensor:
    """The loss in a trainer's output: one dictionary, or a list of them where the trainer takes the batch apart."""
    return torch.as_tensor(_of_first(output)["loss"]).detach()  # taken apart, it is a number


def _of_first(output: Any) -> Mapping[str, Any]:
    return output[0] if isinstance(output, list) else output


class EmptyAwareDice(DiceMetric):
    """Dice per case and foreground class of label maps (B,1,*), or of regions (B,R,*), with the rule for empty classes
    above.

    `aggregate` is the mean over classes of the mean over the cases in which a class is defined.

    Args:
        num_classes: with background; of regions their number.
        multi_label: the inputs are regions, 0 or 1, that may overlap.
        ignore_index: what the target has in voxels without annotation, which count in no prediction and no target.
    """

    def __init__(self, num_classes: int, multi_label: bool = False, ignore_index: int | None = None) -> None:
        super().__init__(
            include_background=multi_label,
            reduction="none",
            ignore_empty=True,
            num_classes=None if multi_label else num_classes,
        )
        self.multi_label = multi_label
        self.ignore_index = ignore_index

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if self.ignore_index is not None:  # background in both adds to no Dice of a class
            ignored = y[:, :1] == self.ignore_index
            y_pred, y = y_pred.masked_fill(ignored, 0), y.masked_fill(ignored, 0)
        dice = super()._compute_tensor(y_pred, y)
        for case, column in dice.isnan().nonzero().tolist():
            invented = y_pred[case, column] > 0 if self.multi_label else y_pred[case] == column + 1
            if invented.any():
                dice[case, column] = 0.0
        return dice

    def aggregate(self, reduction: Any = None) -> torch.Tensor:
        """Mean over classes of `per_class`."""
        return self.per_class().nanmean()

    def per_class(self) -> torch.Tensor:
        """Mean over cases for each foreground class; NaN for a class that no case has."""
        buffer = self.get_buffer()
        assert isinstance(buffer, torch.Tensor)  # for the type checker
        return buffer.nanmean(dim=0)


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
        end_in_a_sentence(engine, self.folder.root)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write_epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self._iterations = 0
        # Read once: what somebody does to the file meanwhile must not end the training.
        self._rows = read_training_csv(self.folder.training_csv) if is_first_process() else []

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
            for name, value, weight in zip(self.parts, parts, self.compound.weights, strict=True):
                measured = {f"train_loss_{name}": value, f"weight_{name}": weight}
                state.metrics |= measured  # where TensorBoard's handler finds them
                row |= {column: _cell(number) for column, number in measured.items()}
                products.append(f"{weight:.3g} x {name} {value:.4f}")
            line += f" = {' + '.join(products)}"
        # the evaluator's epoch is the training epoch that it last validated
        if self.evaluator.state.epoch == state.epoch:
            name = self.evaluator.state.key_metric_name
            row["val_mean_dice"] = _cell(self.evaluator.state.metrics[name])
            per_class = self.evaluator.state.metric_details[name].nanmean(dim=0).tolist()
            row |= {f"val_dice_{label}": _cell(dice) for label, dice in zip(self.names, per_class, strict=True)}
            classes = ", ".join(f"{label} {dice:.3f}" for label, dice in zip(self.names, per_class, strict=True))
            line += f"  validation Dice {self.evaluator.state.metrics[name]:.4f} ({classes})"
        if is_first_process():
            self._rows = [*self._rows_before(state.epoch), row]
            write_whole(self.folder.training_csv, _csv_text(self.columns, self._rows))
            logger.info(f"{line}  {float(row['seconds']):.1f} s")

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
            told = re.search(r" epoch (\d+)", self.folder.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return told is not None and int(told[1]) == epoch

    def _summary(self, engine: Engine, rows: Sequence[Mapping[str, str]], stopped: str) -> str:
        """The training in a few lines.

        Args:
            engine: the trainer.
            rows: of its epochs.
            stopped: of how many epochs and why, where it ended early.
        """
        best = self.evaluator.state
        of_best = next((row for row in rows if int(row["epoch"]) == best.best_metric_epoch), {})
        classes = ", ".join(f"{name} {of_best.get(f'val_dice_{name}') or 'undefined'}" for name in self.names)
        root = shlex.quote(str(self.folder.root))
        return (
            f"{'Stopped early at' if stopped else 'Trained to'} epoch {engine.state.epoch}{stopped} "
            f"in {sum(float(row['seconds'] or 0) for row in rows):.0f} s; "
            f"best validation Dice {best.best_metric:.4f} at epoch {best.best_metric_epoch} ({classes}).\n"
            f"  best model      {self.folder.model}\n"
            f"  table, curves   {self.folder.training_csv}, {self.folder.curves}\n"
            f"  TensorBoard     tensorboard --logdir {shlex.quote(str(self.folder.tensorboard))}\n"
            f"  evaluate        monai-extra-losses evaluate --run {root}\n"
            f"  segment         monai-extra-losses infer --run {root} --input FILES --output FOLDER"
        )


class RunCheckpoints:
    """Saves the best model and everything that resuming needs, and restores it.

    The best score is part of the checkpoint: a resumed training that does worse leaves the best model alone. So are the
    count of the early stop and the scaler of half precision. Random numbers are not: `SeededEpochs`.

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
            _save_whole(self.network.state_dict(), self.folder.model)
        state = {
            "epoch": engine.state.epoch,
            "best_metric": float(best.best_metric),
            "best_metric_epoch": best.best_metric_epoch,
            "validations_since_best": best.validations_since_best,
            "network": self.network.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
        }
        if (scaler := getattr(engine, "scaler", None)) is not None:
            state["scaler"] = scaler.state_dict()
        _save_whole(state, self.folder.last)

    def _restore(self, trainer: Engine) -> None:
        if not self.folder.last.exists():
            return
        state = read_checkpoint(self.folder.last)
        try:
            self.network.load_state_dict(state["network"])
            self.loss.load_state_dict(state["loss"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._restore_schedule(state["lr_scheduler"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise StartUpRefused(
                f"{self.folder.last}: expected a checkpoint of this network, loss and optimizer, got another "
                f"({first}); "
                "resume with the options of the first start."
            ) from None
        self.evaluator.state.best_metric = state["best_metric"]
        self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        self.evaluator.state.validations_since_best = state.get("validations_since_best", 0)
        if (scaler := getattr(trainer, "scaler", None)) is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        trainer.state.epoch = state["epoch"]
        trainer.state.iteration = state["epoch"] * trainer.state.epoch_length
        logger.info(f"Going on after epoch {state['epoch']} of {self.folder.last}")

    def _restore_schedule(self, state: dict[str, Any]) -> None:
        if not isinstance(self.lr_scheduler, WarmupCosineSchedule):
            self.lr_scheduler.load_state_dict(state)
            return
        # Its length comes from the options, not from the checkpoint, so that a resumed training may have more epochs.
        self.lr_scheduler.load_state_dict({**state, "t_total": self.lr_scheduler.t_total})
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_lr(), strict=True):
            group["lr"] = rate


class CaseReport:
    """Measures every case of an evaluation; writes cases.csv, summary.csv and one picture per case, and copies those of
    the best, the median and the worst case to overlay_best.png, overlay_median.png and overlay_worst.png.

    Takes from the evaluator `pred` and `label`, label maps of classes (1,X,Y,Z) or regions (R,X,Y,Z) on the case's own
    grid, `picture` (C,X,Y,Z), the intensities on that grid, and `case`, the name.

    Args:
        folder: of tables and pictures.
        labels: class -> name, without background; of regions 1, 2, ... -> name.
        surface_tolerance_mm: distance at which two surfaces count as one, in mm.
        overlays: draw the pictures.
        ignore_index: what the label has in voxels without annotation. They are taken out of prediction and target
            before anything is measured: volumes are those of the annotated part, and what is cut at its border has a
            surface there.
    """

    def __init__(
        self,
        *,
        folder: ResultsFolder,
        labels: Mapping[int, str],
        surface_tolerance_mm: float,
        overlays: bool = True,
        ignore_index: int | None = None,
    ) -> None:
        self.folder = folder
        self.labels = dict(labels)
        self.surface_tolerance_mm = surface_tolerance_mm
        self.overlays = overlays
        self.ignore_index = ignore_index
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Measure the output of each of `engine`'s iterations."""
        end_in_a_sentence(engine, self.folder.root)
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _measure(self, engine: Engine) -> None:
        for item in items_of(engine):
            turn = Orientation("RAS", labels=None)
            prediction, target, picture = (
                cast(MetaTensor, turn(item[key]).cpu()) for key in ("pred", "label", "picture")
            )
            spacing = [float(mm) for mm in target.pixdim]
            predicted, true = (masks_of(volume.numpy(), self.labels) for volume in (prediction, target))
            ignored = None if self.ignore_index is None else target[0].numpy() == self.ignore_index
            if ignored is not None:
                predicted, true = ({n: mask & ~ignored for n, mask in masks.items()} for masks in (predicted, true))
            for number, name in self.labels.items():
                measured = case_metrics(
                    predicted[number],
                    true[number],
                    spacing=spacing,
                    surface_tolerance_mm=self.surface_tolerance_mm,
                )
                self.rows.append({"case": item["case"], "label": name, **measured})
            if self.overlays:
                from monai_extra_losses.report.overlays import draw_overlay

                mean = np.nanmean([row["dice"] for row in self.rows[-len(self.labels) :]])
                draw_overlay(
                    picture[0].numpy(),
                    true,
                    predicted,
                    spacing=spacing,
                    labels=self.labels,
                    out=self.folder.overlays / f"{item['case']}.png",
                    title=f"{item['case']}, mean Dice {mean:.3f}",
                    ignored=ignored,
                )

    def _write(self, engine: Engine) -> None:
        rows = self._rows_of_all_processes()
        if not is_first_process():
            return
        summary = summarise(rows, list(self.labels.values()))
        cells = [{k: v if isinstance(v, str) else _cell(v) for k, v in row.items()} for row in rows]
        write_whole(self.folder.cases_csv, _csv_text(_CASE_COLUMNS, cells))
        write_whole(
            self.folder.summary_csv,
            _csv_text(
                list(summary[0]),
                [{k: _cell(v) if isinstance(v, float) else v for k, v in row.items()} for row in summary],
            ),
        )
        logger.info(_table(summary))
        logger.info(f"Tables: {self.folder.cases_csv}, {self.folder.summary_csv}")
        if self.overlays:
            copies = ", ".join(str(path) for path in self._copy_overlays(rows))
            logger.info(f"Pictures: {self.folder.overlays}; {copies}")

    def _copy_overlays(self, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
        """The pictures of the best, the median and the worst case by mean Dice, where one sees them first."""
        dice: dict[str, list[float]] = {}
        for row in rows:
            dice.setdefault(row["case"], []).extend([] if math.isnan(row["dice"]) else [row["dice"]])
        ranked = sorted((case for case in dice if dice[case]), key=lambda case: (np.mean(dice[case]), case))
        last = len(ranked) - 1
        copies: dict[int, Path] = {}  # of two cases none is in the middle
        for rank, place in {"best": last, "worst": 0, "median": last // 2}.items():
            if 0 <= place <= last and place not in copies:
                picture = self.folder.overlays / f"{ranked[place]}.png"
                copies[place] = Path(shutil.copyfile(picture, self.folder.overlay_of(rank)))
        return list(copies.values())

    def _rows_of_all_processes(self) -> list[dict[str, Any]]:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.rows
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, self.rows)
        return sorted((row for rows in gathered for row in rows), key=lambda row: row["case"])


def masks_of(volume: np.ndarray, labels: Mapping[int, str]) -> dict[int, np.ndarray]:
    """Number -> mask (X,Y,Z), of a label map (1,X,Y,Z) or of regions (R,X,Y,Z), which are numbered from 1."""
    if len(volume) == 1:  # one region is the label map of one class
        return {number: volume[0] == number for number in labels}
    return {number: volume[number - 1] > 0 for number in labels}


def case_metrics(
    prediction: np.ndarray, target: np.ndarray, *, spacing: Sequence[float], surface_tolerance_mm: float
) -> dict[str, float]:
    """Metrics of one class in one case, with the rule for empty classes above.

    Args:
        prediction, target: bool arrays (X,Y,Z).
        spacing: of a voxel, in mm.
        surface_tolerance_mm: distance at which two surfaces count as one, in mm.

    Returns:
        `dice`, `hd95_mm` and `surface_dice` (NaN when undefined), `target_ml`, `prediction_ml`, `false_positive_ml`.
    """
    millilitre = float(np.prod(spacing)) / 1000
    target_voxels, prediction_voxels = int(target.sum()), int(prediction.sum())
    both = int((prediction & target).sum())
    volumes = {
        "target_ml": target_voxels * millilitre,
        "prediction_ml": prediction_voxels * millilitre,
        "false_positive_ml": (prediction_voxels - both) * millilitre,
    }
    if not target_voxels and not prediction_voxels:
        return {"dice": math.nan, "hd95_mm": math.nan, "surface_dice": math.nan, **volumes}
    dice = 2 * both / (target_voxels + prediction_voxels)
    if not target_voxels or not prediction_voxels:
        diagonal = float(np.linalg.norm(np.array(target.shape) * np.array(spacing)))
        return {"dice": dice, "hd95_mm": diagonal, "surface_dice": 0.0, **volumes}
    p, g = (torch.from_numpy(mask)[None, None] for mask in (prediction, target))
    options: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument that it passes to itself
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning)
        hd95 = compute_hausdorff_distance(p, g, percentile=95, **options)
        surface = compute_surface_dice(p, g, class_thresholds=[surface_tolerance_mm], **options)
    return {"dice": dice, "hd95_mm": hd95.item(), "surface_dice": surface.item(), **volumes}


def summarise(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class, and a row `mean` over the classes.

    Args:
        rows: `case`, `label` and the metrics of `case_metrics`.
        names: of the classes.

    Returns:
        Columns `label`, `cases`, and per metric `_mean`, `_sd`, `_median` over the cases where it is defined and
        `_undefined`, the number of the others. In the row `mean`: the classes' means, and no `_sd`.
    """
    summary: list[dict[str, Any]] = []
    for name in names:
        of_class = [row for row in rows if row["label"] == name]
        line: dict[str, Any] = {"label": name, "cases": len(of_class)}
        for metric in CASE_METRICS:
            values = np.array([row[metric] for row in of_class], dtype=float)
            defined = values[~np.isnan(values)]
            line[f"{metric}_mean"] = float(defined.mean()) if defined.size else math.nan
            line[f"{metric}_sd"] = float(defined.std(ddof=1)) if defined.size > 1 else math.nan
            line[f"{metric}_median"] = float(np.median(defined)) if defined.size else math.nan
            line[f"{metric}_undefined"] = int(values.size - defined.size)
        summary.append(line)
    mean: dict[str, Any] = {"label": "mean", "cases": max(line["cases"] for line in summary)}
    for column in list(summary[0])[2:]:
        values = np.array([line[column] for line in summary], dtype=float)
        defined = values[~np.isnan(values)]
        if column.endswith("_undefined"):
            mean[column] = int(values.sum())
        elif column.endswith("_sd") or not defined.size:
            mean[column] = math.nan  # the deviations of the classes have no mean worth a name
        else:
            mean[column] = float(defined.mean())
    return [*summary, mean]


class FinishedSegmentations:
    """Writes the files of each case, moves them to their place when they are whole, and records what they were made of.

    A killed run leaves no half file behind, and none without a record. A file is a NIfTI volume on the grid of the
    evaluator's output: (1,X,Y,Z) becomes (X,Y,Z), several channels (X,Y,Z,C). What fails, fails within the iteration.

    Args:
        unfinished: folder that the files are written to; `segmentation_record.open_unfinished` made it.
        output_dir: folder that they belong in.
        endings: key of the evaluator's output -> ending of the file's name after that of the case.
        made_of: case -> its `model`, `options` and `input`, as `SegmentationRecord` has them.
        dtype: of label maps; probabilities are float32.
        overwrite: replace what was made of something else.
    """

    def __init__(
        self,
        *,
        unfinished: Path,
        output_dir: Path,
        endings: Mapping[str, str],
        made_of: Mapping[str, Mapping[str, Any]],
        dtype: type,
        overwrite: bool = False,
    ) -> None:
        self.unfinished = unfinished
        self.made_of = made_of
        self.output_dir = output_dir
        self.endings = dict(endings)
        self.dtype = dtype
        self.overwrite = overwrite

    def attach(self, engine: Engine) -> None:
        """Write what each of `engine`'s iterations makes; attach after the postprocessing."""
        end_in_a_sentence(engine, self.output_dir)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda _: close_unfinished(self.unfinished))

    def _write(self, engine: Engine) -> None:
        for item in items_of(engine):
            names = {key: f"{item['case']}_{ending}.nii.gz" for key, ending in self.endings.items() if key in item}
            for key, name in names.items():
                write_nifti(item[key], self.unfinished / name, self.dtype if key == "pred" else np.float32)
            self._move(item["case"], list(names.values()))
            written = " and ".join(self.endings[key] for key in names)
            logger.info(f"{item['case']}: {written} in {self.output_dir}")

    def _move(self, case: str, names: Sequence[str]) -> None:
        record, made_of = SegmentationRecord(self.output_dir), self.made_of[case]
        with record.alone():
            there = [name for name in names if (self.output_dir / name).exists()]
            other = record.difference(case, made_of, there) if there else None
            if other is not None and not self.overwrite:
                raise DatasetError(
                    f"Expected no other process to write {self.output_dir / there[0]} meanwhile, got {other}; give "
                    "another --output."
                )
            for name in there if other is not None else ():
                (self.output_dir / name).unlink()  # else the record would soon speak of a file that it does not mean
            record.add(case, made_of, names)
            for name in names:
                (self.unfinished / name).replace(self.output_dir / name)


def write_nifti(volume: MetaTensor, file: Path, dtype: type) -> None:
    """Write (C,X,Y,Z) as NIfTI in its own place: (X,Y,Z) of one channel, else (X,Y,Z,C).

    MONAI's `SaveImage` (1.6.1) drops axes of one voxel, and passes label ids through a resampler that rounds to float32
    even where there is nothing to resample.
    """
    channels: np.ndarray = volume.as_tensor().cpu().numpy().astype(dtype)
    voxels = channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1)
    affine = volume.affine.cpu().double().numpy()
    image = nibabel.Nifti1Image(voxels, affine, dtype=dtype)
    image.set_sform(affine, code=1)  # both, for there are readers of either
    image.set_qform(affine, code=1)
    image.to_filename(file)


def end_in_a_sentence(engine: Engine, place: Path) -> None:
    """Let `engine` say what the storage refused, and not with a traceback; nor what it raises anyhow, a second time.

    Args:
        engine: any.
        place: what is written, where the error does not name a file.
    """

    def raise_as_sentence(_: Engine, error: BaseException) -> None:
        sentence = storage_sentence(error, place) if isinstance(error, Exception) else None
        if sentence is not None:
            raise WritingFailed(sentence) from None
        raise error

    engine.add_event_handler(Events.EXCEPTION_RAISED, raise_as_sentence)
    engine.logger.addFilter(lambda record: "is terminating due to exception" not in record.msg)


def items_of(engine: Engine) -> list[dict[str, Any]]:
    """The cases of an evaluator's last batch, each with what was loaded and what was predicted."""
    batch, output = cast(list[dict[str, Any]], engine.state.batch), cast(list[dict[str, Any]], engine.state.output)
    return [{**loaded, **result} for loaded, result in zip(batch, output, strict=True)]


def _save_whole(state: Mapping[str, Any], path: Path) -> None:
    with whole_file(path) as draft:
        with draft.open("wb") as stream:  # torch's own file does not say that the disk is full
            torch.save(state, stream)
        record_checksum(draft, path)


def _cell(value: float) -> str:
    """A number for a table; empty where it is undefined."""
    return "" if math.isnan(value) else f"{value:.6g}"


def _csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _table(summary: Sequence[Mapping[str, Any]]) -> str:
    width = max(len(str(row["label"])) for row in summary) + 2
    heads = f"{'Dice':>16}{'median':>9}{'HD95 mm':>16}{'surface Dice':>16}{'FP ml':>9}{'cases':>7}{'undefined':>11}"
    lines = [" " * width + heads]
    for row in summary:
        dice, hd95, surface = (
            _shown(row[f"{metric}_mean"], row[f"{metric}_sd"]) for metric in ("dice", "hd95_mm", "surface_dice")
        )
        lines.append(
            f"{row['label']:{width}}{dice:>16}{_shown(row['dice_median']):>9}{hd95:>16}{surface:>16}"
            f"{_shown(row['false_positive_ml_mean']):>9}{row['cases']:>7}{row['dice_undefined']:>11}"
        )
    return "\n".join(lines)


def _shown(mean: float, deviation: float = math.nan) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"
