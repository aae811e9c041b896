"""Build a training by its configs and take a few steps of it."""

import contextlib
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monai_extra_losses.bundle.workflow import TRACKING_OPTIONS, SegmentationWorkflow
from monai_extra_losses.doctor.built import BuiltTraining, TakenStep
from monai_extra_losses.doctor.failures import ExaminationStopped, stage
from monai_extra_losses.engines import LABEL
from monai_extra_losses.losses import HeadlessNetwork

_CASES = 4  # read at least, where there are as many


_BATCHES = 4  # drawn of them, to see classes and time; steps are taken on the first


_STEPS = 5


def spread_cases(cases: Sequence[Any], number: int) -> list[Any]:
    """`number` of the cases, from the first to the last in equal strides; all of them where there are fewer."""
    chosen = np.unique(np.linspace(0, len(cases) - 1, min(number, len(cases))).round().astype(int))
    return [cases[i] for i in chosen]


def build_training(config_files: Sequence[str], options: Mapping[str, Any]) -> BuiltTraining:
    """The training, with few of the cases."""
    few = {"_target_": f"{__name__}.spread_cases"}
    options = {
        **{name: value for name, value in options.items() if name not in ("tracking", *TRACKING_OPTIONS)},
        "train::dataset::data": {
            **few,
            "cases": "$@setup.training_cases",
            "number": f"$max({_CASES}, @record.batch_size)",
        },
        "validate::dataset::data": {**few, "cases": "$@setup.validation_cases", "number": 1},
        "train::dataset::progress": False,
        "validate::dataset::progress": False,
        "num_workers": 0,
        "resume": False,
        "logging_file": False,
        "setup::check_loss": False,  # the network's own scores tell more
    }
    with stage("Reading the configs"):
        workflow = SegmentationWorkflow(list(config_files), **options)
    with stage("Starting up"):
        workflow.initialize()
    parser = workflow.parser
    for part, doing in (
        ("built_network", "Building the network"),
        ("optimizer", "Building the optimizer"),
        ("train::dataset", "Reading training volumes"),
        ("validate::dataset", "Reading a validation volume"),
        ("train::trainer", "Building the trainer"),
    ):
        with stage(doing):
            parser.get_parsed_content(part)
    ids = ("record", "train::trainer", "validate::evaluator", "train::dataset", "step_loss", "setup")
    return BuiltTraining(*map(parser.get_parsed_content, ids))


def draw_batches(training: BuiltTraining) -> tuple[list[tuple[Tensor, Any]], list[str], float]:
    """Batches as the trainer hands them to network and loss, the case of each patch, and the seconds that one takes."""
    trainer = training.trainer
    cases: list[str] = []
    batches, seconds = [], []
    for _ in range(_BATCHES):
        with stage("Cutting patches"):
            started = time.perf_counter()
            batch = next(iter(trainer.data_loader))
            seconds.append(time.perf_counter() - started)
        with stage("Preparing a batch"):
            inputs, target, *_ = trainer.prepare_batch(batch, training.device, False, **trainer.to_kwargs)
        batches.append((inputs, target))
        cases += batch["case"] if isinstance(batch, Mapping) and "case" in batch else [""] * len(inputs)
    return batches, cases, statistics.median(seconds[1:])


@dataclass(frozen=True)
class TrainingCost:
    """Seconds of a training, by a few steps of it.

    Args:
        step: of one.
        of_loss: the part of it that the loss takes.
        data: to cut and augment a batch.
        validation: of one case.
        steps_per_epoch, validations: how many.
        total: of the whole, its start not counted.
    """

    step: float
    of_loss: float
    data: float
    validation: float
    steps_per_epoch: int
    validations: int
    total: float


def measure_cost(training: BuiltTraining, steps: Sequence[TakenStep], data_seconds: float) -> TrainingCost:
    """What the training will cost, by the steps taken and the validation of a case.

    Args:
        steps: taken on the first batch.
        data_seconds: of a batch.
    """
    record = training.record
    step = statistics.median(taken.seconds for taken in steps[1:])  # the first one warms up
    of_loss = statistics.median(taken.of_loss for taken in steps[1:])
    started = time.perf_counter()
    training.evaluator.run()
    validation = time.perf_counter() - started
    per_epoch = -(-len(record.training) // record.batch_size)
    rounds = -(-record.epochs // record.val_interval)
    total = record.epochs * per_epoch * (step + data_seconds) + rounds * len(record.validation) * validation
    return TrainingCost(step, of_loss, data_seconds, validation, per_epoch, rounds, total)


def estimate_cost(config_files: Sequence[str], options: Mapping[str, Any]) -> TrainingCost:
    """Take a few steps of a training, in a temporary folder, and say what the whole will cost.

    Raises:
        StartUpRefused: what the training would be refused for.
        ExaminationStopped: what it would stop at.
    """
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns of a log that is switched off
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        training = build_training(config_files, {**options, "bundle_root": folder})
        batches, _, data_seconds = draw_batches(training)
        return measure_cost(training, take_steps(training, *batches[0]), data_seconds)


def label_of(target: Any) -> Tensor:
    label: Tensor = target[LABEL] if isinstance(target, Mapping) else target
    return label


def scores_of(training: BuiltTraining, inputs: Tensor) -> Tensor:
    with stage("The network's forward pass"), torch.no_grad(), _autocast(training):
        scores = training.trainer.inferer(inputs, training.trainer.network.train())
    if not isinstance(scores, Tensor):
        raise ExaminationStopped(f"Expected one tensor of scores from the network, got {type(scores).__name__}.")
    if isinstance(training.trainer.network, HeadlessNetwork):
        return training.trainer.network.scores(scores.float())
    return scores[:, 0] if training.record.deep_supervision else scores  # the finest


def take_steps(training: BuiltTraining, inputs: Tensor, target: Any) -> list[TakenStep]:
    steps: list[TakenStep] = []
    for number in range(_STEPS):
        step = _step(training, inputs, target)
        # in half precision the first scales of the gradient may overflow, and the scaler lowers them
        if not training.half or number == _STEPS - 1:
            _refuse_not_finite(training, step)
        steps.append(step)
    return steps


def _step(training: BuiltTraining, inputs: Tensor, target: Any) -> TakenStep:
    """As MONAI's trainer, in two halves: the loss and its gradient of the scores apart from the network."""
    trainer = training.trainer
    trainer.network.train()
    trainer.optimizer.zero_grad()
    started = _now(training)
    with stage("The network's forward pass", training), _autocast(training):
        scores = trainer.inferer(inputs, trainer.network)
    leaf = scores.detach().requires_grad_()
    forward = _now(training)
    value = loss_of(training, leaf, target)
    with stage("The backward pass of the loss", training):
        (value if trainer.scaler is None else trainer.scaler.scale(value)).backward()
        if leaf.grad is None:
            raise RuntimeError("the loss does not require grad of the scores")
    of_loss = _now(training)
    with stage("The network's backward pass", training):
        scores.backward(leaf.grad)
    scale = 1.0 if trainer.scaler is None else trainer.scaler.get_scale()
    with stage("The step of the optimizer", training):
        if trainer.scaler is None:
            trainer.optimizer.step()
        else:
            trainer.scaler.step(trainer.optimizer)
            trainer.scaler.update()
    rest = _now(training) - of_loss
    parameters = trainer.network.named_parameters()
    gradients = {name: p.grad for name, p in parameters if p.grad is not None and p.ndim > 1}
    return TakenStep(
        loss=value.detach().float(),
        scores=scores.detach(),
        forward=forward - started,
        of_loss=of_loss - forward,
        rest=rest,
        score_gradient=_root_mean_square(leaf.grad) / scale,
        layer_gradients={name: _root_mean_square(gradient) for name, gradient in gradients.items()},
    )


def loss_of_scores(training: BuiltTraining, scores: Tensor, target: Any) -> Tensor:
    """The loss of scores, whatever it reads in training."""
    training.trainer.network.eval()  # of which HeadLoss takes scores
    return loss_of(training, scores, target)


def loss_of(training: BuiltTraining, scores: Tensor, target: Any) -> Tensor:
    """As MONAI's trainer reads it."""
    with stage("The forward pass of the loss", training), _autocast(training):
        value = training.loss(scores, target)
        if not isinstance(value, Tensor):
            raise TypeError(f"expected a tensor from the loss, got {type(value).__name__}")
        return value.mean()


def _root_mean_square(values: Tensor) -> float:
    return values.float().square().mean().sqrt().item()


def _refuse_not_finite(training: BuiltTraining, step: TakenStep) -> None:
    if not step.scores.isfinite().all():
        raise ExaminationStopped(
            "Expected finite scores after a few steps, got NaN or infinity; try a lower --learning_rate."
        )
    if not step.loss.isfinite():
        raise ExaminationStopped(
            f"Expected a number as loss of finite scores, got {step.loss.item()}{of_part(training.loss)}; a formula "
            "divides by 0, or takes the logarithm or the root of what is too small for it."
        )
    if not math.isfinite(step.score_gradient):
        raise ExaminationStopped(
            f"Expected finite gradients of the scores, got NaN or infinity though the loss is {step.loss.item():.4g}; "
            "a formula has no slope there, such as a root at 0: clamp before it."
        )
    broken = [name for name, size in step.layer_gradients.items() if not math.isfinite(size)]
    if broken:
        raise ExaminationStopped(
            f"Expected finite gradients, got NaN or infinity in {len(broken)} of {len(step.layer_gradients)} layers, "
            f"{broken[0]} the first, although those of the scores are finite; look at the network, or try --amp False."
        )


def of_part(loss: nn.Module) -> str:
    """The parts of a compound loss that are no number."""
    parts = getattr(loss, "components", {})
    broken = [name for name, value in parts.items() if not torch.as_tensor(value).isfinite().all()]
    return f" (of the part {' and '.join(broken)})" if broken else ""


def _autocast(training: BuiltTraining) -> Any:
    trainer = training.trainer
    return torch.autocast("cuda", **trainer.amp_kwargs) if training.half else contextlib.nullcontext()


def _now(training: BuiltTraining) -> float:
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    return time.perf_counter()
