"""Build what a training would, take a few steps on one batch of it, and say what is right and what is not."""

import contextlib
import logging
import math
import os
import re
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from monai_extra_losses.bundle import refuse_run_folder
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.sides import mirror_remarks
from monai_extra_losses.engines import LABEL
from monai_extra_losses.ignored_voxels import check_ignore_index, counts_ignored
from monai_extra_losses.loss_facts import (
    loss_of_equal_scores,
    measures_distances,
    parts_of,
    score_reading,
    takes_labels,
)
from monai_extra_losses.options import yes_or_no
from monai_extra_losses.run_folder import RunFolder, RunRecord
from monai_extra_losses.workflow import SegmentationWorkflow

_CASES = 4  # read at least, where there are as many
_BATCHES = 4  # drawn of them, to see classes and time; steps are taken on the first
_STEPS = 5
_NEAR = 0.01  # relative: a sum of rounded numbers against a formula
_ADAM_EPS = 1e-8  # a gradient below it moves a weight no more
_MUCH = 0.5  # of a step, for the loss

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One sentence about a training, and how bad it is."""

    level: Level
    text: str


class _Stopped(Exception):
    """A problem after which nothing more can be found out."""


@dataclass
class _Training:
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
class _Step:
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


def examine(config_files: Sequence[str], run: Path | None = None, **options: Any) -> Iterator[Finding]:
    """Find out what a training with these options would do, without writing anything but temporary files.

    Args:
        config_files: as of `SegmentationWorkflow`; they train.
        run: folder that the run would have; None: any.
        options: as of `SegmentationWorkflow`.

    Yields:
        Each finding as soon as it is known. After a problem that ends everything there are no more.

    Raises:
        StartUpRefused: what a training would be refused for before it starts.
    """
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns of a log that is switched off
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            yield from _examine(config_files, run, {**options, "bundle_root": folder})
        except _Stopped as problem:
            yield Finding("problem", str(problem))


def spread_cases(cases: Sequence[Any], number: int) -> list[Any]:
    """`number` of the cases, from the first to the last in equal strides; all of them where there are fewer."""
    chosen = np.unique(np.linspace(0, len(cases) - 1, min(number, len(cases))).round().astype(int))
    return [cases[i] for i in chosen]


def _examine(config_files: Sequence[str], run: Path | None, options: dict[str, Any]) -> Iterator[Finding]:
    if run is not None:
        resume, overwrite = (yes_or_no(name, options.get(name, False)) for name in ("resume", "overwrite"))
        try:
            refuse_run_folder(RunFolder(run), resume, overwrite)
        except StartUpRefused as refused:
            yield Finding("problem", str(refused))
    with _warnings() as warned:
        training = _build(config_files, options)
    for text in warned:
        yield Finding("warning", text)
    for text in training.setup.passed_over:
        yield Finding("warning", f"Passed over: {text}")
    record = training.record
    precision = "half precision" if getattr(training.trainer.inferer, "dtype", None) else "float32"
    yield Finding(
        "ok",
        f"{len(record.training)} cases would train and {len(record.validation)} validate, in patches of "
        f"{' x '.join(map(str, record.patch_size))} voxels, {record.batch_size} a step, on {training.device} in "
        f"{precision}. Here a few of them are read.",
    )
    for wrong, sentence in mirror_remarks(record.foreground.values(), record.flip_axes):
        yield Finding("warning" if wrong else "ok", sentence)
    batches, data_seconds = _draw(training)
    yield from _about_batches(training, batches)
    inputs, target = batches[0]
    scores = _scores(training, inputs)
    yield from _about_channels(training, scores, _label(target))
    yield from _about_activations(training.loss, scores, training.multi_label)
    yield from _about_ignored(training, scores, target)
    with _warnings() as warned, torch.no_grad():
        equal = _loss_of(training, torch.zeros_like(scores), target).item()
    yield _about_equal_scores(training, equal, _label(target), scores.shape[1])
    with _warnings() as warned_again:
        steps = _take_steps(training, inputs, target)
    for text in dict.fromkeys(warned + warned_again):
        yield Finding("warning", text)
    yield from _about_class_weights(training)
    # in half precision the gradients of the first steps may overflow
    yield from _about_gradients(training, steps[-1] if training.half else steps[0])
    yield _about_descent(steps)
    yield from _about_cost(training, steps, data_seconds)


# ---- building and drawing --------------------------------------------------------------------------------------------


def _build(config_files: Sequence[str], options: Mapping[str, Any]) -> _Training:
    """The training, with few of the cases."""
    few = {"_target_": f"{__name__}.spread_cases"}
    options = {
        **options,
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
    with _stage("Reading the configs"):
        workflow = SegmentationWorkflow(list(config_files), **options)
    with _stage("Starting up"):
        workflow.initialize()
    parser = workflow.parser
    for part, doing in (
        ("network", "Building the network"),
        ("optimizer", "Building the optimizer"),
        ("train::dataset", "Reading training volumes"),
        ("validate::dataset", "Reading a validation volume"),
        ("train::trainer", "Building the trainer"),
    ):
        with _stage(doing):
            parser.get_parsed_content(part)
    ids = ("record", "train::trainer", "validate::evaluator", "train::dataset", "training_loss", "setup")
    return _Training(*map(parser.get_parsed_content, ids))


def _draw(training: _Training) -> tuple[list[tuple[Tensor, Any]], float]:
    """Batches as the trainer hands them to network and loss, and the seconds that one takes."""
    trainer = training.trainer
    batches, seconds = [], []
    for _ in range(_BATCHES):
        with _stage("Cutting patches"):
            started = time.perf_counter()
            batch = next(iter(trainer.data_loader))
            seconds.append(time.perf_counter() - started)
        with _stage("Preparing a batch"):
            inputs, target, *_ = trainer.prepare_batch(batch, training.device, False, **trainer.to_kwargs)
        batches.append((inputs, target))
    return batches, statistics.median(seconds[1:])


def _label(target: Any) -> Tensor:
    return target[LABEL] if isinstance(target, Mapping) else target


def _scores(training: _Training, inputs: Tensor) -> Tensor:
    with _stage("The network's forward pass"), torch.no_grad(), _autocast(training):
        scores = training.trainer.inferer(inputs, training.trainer.network.train())
    if not isinstance(scores, Tensor):
        raise _Stopped(f"Expected one tensor of scores from the network, got {type(scores).__name__}.")
    return scores


# ---- what is found ---------------------------------------------------------------------------------------------------


def _about_batches(training: _Training, batches: Sequence[tuple[Tensor, Any]]) -> Iterator[Finding]:
    images = torch.cat([inputs.flatten().float() for inputs, _ in batches])
    if not images.isfinite().all():
        raise _Stopped(
            f"Expected finite intensities in the patches, got {int((~images.isfinite()).sum())} voxels of NaN or "
            "infinity; a transform makes them, for the files have none."
        )
    labels = torch.cat([_label(target).float() for _, target in batches])
    drawn = f"{sum(inputs.shape[0] for inputs, _ in batches)} patches from {_count(len(training.dataset), 'case')}"
    labels, share = _annotated(training, labels)
    if share < 1:
        yield Finding(
            "ok" if share else "warning",
            f"{1 - share:.2%} of the voxels of {drawn} are without annotation (label {training.record.ignore_label}): "
            "loss, validation and evaluation leave them out.",
        )
    if not share:
        return
    number = 2 if training.multi_label else training.record.num_classes
    foreign = sorted(set(labels.unique().tolist()) - set(range(number)))
    if foreign:
        raise _Stopped(
            f"Expected the labels 0 to {number - 1} in the patches, got {', '.join(f'{v:g}' for v in foreign[:5])}; "
            "a label must be resampled with nearest neighbours."
        )
    if training.multi_label:
        shares = labels.mean(dim=1)
    else:
        shares = torch.bincount(labels[0].long(), minlength=number) / labels.numel()
    shown = ", ".join(f"{name} {share:.2%}" for name, share in zip(training.names, shares.tolist(), strict=True))
    yield Finding("ok", f"Voxels of {drawn}: {shown}.")
    missing = [name for name, share in zip(training.names, shares.tolist(), strict=True) if share == 0]
    if missing:
        yield Finding(
            "warning",
            f"None of {drawn} has a voxel of {' or '.join(missing)}. If few cases have one, the loss "
            "seldom sees it (`monai-extra-losses check` counts them); if all have, the patch is too small.",
        )


def _annotated(training: _Training, labels: Tensor) -> tuple[Tensor, float]:
    """The labels (C, voxels) of the annotated voxels, and their share."""
    voxels = labels.transpose(0, 1).flatten(1)
    if training.record.ignore_index is None:
        return voxels, 1.0
    annotated = voxels[0] != training.record.ignore_index
    return voxels[:, annotated], annotated.float().mean().item()


def _about_ignored(training: _Training, scores: Tensor, target: Any) -> Iterator[Finding]:
    for _, part in parts_of(training.loss):
        for sentence in check_ignore_index(part, training.record):
            yield Finding("warning", sentence)
    if training.record.ignore_index is None:
        return
    ignored = _label(target)[:, :1] == training.record.ignore_index
    with _stage("The forward pass of the loss", training):
        counts = bool(ignored.any()) and counts_ignored(training.loss, scores, target, ignored)
    if counts:
        yield Finding(
            "problem",
            f"The loss changes with the scores of voxels without annotation (label {training.record.ignore_label}), "
            "which it should leave out; choose one with an ignore_index, such as those of this package.",
        )


def _about_channels(training: _Training, scores: Tensor, label: Tensor) -> Iterator[Finding]:
    if not scores.isfinite().all():
        raise _Stopped(
            "Expected finite scores of the fresh network, got NaN or infinity; look at its layers and the intensities."
        )
    if training.multi_label:
        what, values = "region", ", ".join(training.names)
    else:
        what, values = "label value", ", ".join(f"{value} {name}" for value, name in training.record.labels.items())
    if scores.ndim != label.ndim or scores.shape[1] != training.record.num_classes:
        raise _Stopped(
            f"Expected scores of {training.record.num_classes} channels, one per {what} ({values}), got "
            f"{tuple(scores.shape)}; leave network_def::out_channels to the configs."
        )
    if scores.shape[2:] != label.shape[2:]:
        raise _Stopped(
            f"Expected scores of the label's size {tuple(label.shape[2:])}, got {tuple(scores.shape[2:])}; "
            "the network must give back the size that it is given."
        )
    yield Finding("ok", f"Each {what} ({values}) has its channel of the network, in this order.")


def _about_activations(loss: nn.Module, scores: Tensor, multi_label: bool) -> Iterator[Finding]:
    channels = scores.shape[1]
    low, high = (f"{end:.3g}" for end in (scores.min().item(), scores.max().item()))
    probabilities = scores.min() >= 0 and torch.allclose(scores.sum(1), torch.ones(()).to(scores), atol=1e-3)
    for _, part in parts_of(loss):
        name = type(part).__name__
        reading = score_reading(part)
        if reading is None:
            yield Finding(
                "ok", f"{name} has no option of an activation; whether it fits the scores cannot be told here."
            )
        elif reading.raw:
            level: Level = "problem" if probabilities else "ok"
            yield Finding(level, f"{name} reads raw scores; the network's are between {low} and {high}.")
        elif reading.activation is None and not probabilities:
            yield Finding(
                "problem",
                f"{name} takes what it is given for probabilities, but the network gives raw scores (here {low} to "
                f"{high}); set {reading.softmax_option}: true (--loss::{reading.softmax_option} True).",
            )
        elif reading.activation is not None and probabilities:
            yield Finding(
                "problem",
                f"{name} applies {reading.activation} to what are probabilities already: the network's output is at "
                "least 0 and adds up to 1; take one of the two away.",
            )
        elif reading.activation == "softmax" and channels == 1:
            yield Finding("problem", f"{name} applies a softmax over one channel, which is always 1; take a sigmoid.")
        elif reading.activation == "sigmoid" and channels > 1 and not multi_label:
            yield Finding(
                "warning",
                f"{name} decides each of the {channels} channels by itself (sigmoid), but a voxel has one label here; "
                f"a softmax makes the classes compete (--loss::sigmoid False --loss::{reading.softmax_option} True).",
            )
        else:
            applied = f"applies {reading.activation}" if reading.activation else "takes probabilities"
            yield Finding("ok", f"{name} {applied}, as scores of {channels} channels need it.")


def _about_equal_scores(training: _Training, value: float, label: Tensor, channels: int) -> Finding:
    said = f"A network that knows nothing (all scores equal) has the loss {value:.4g}"
    if not math.isfinite(value):
        return Finding("warning", f"{said}{_of_part(training.loss)}; a formula divides by 0 or takes its logarithm.")
    # the formulas are those of a label map
    expected = None if training.multi_label else loss_of_equal_scores(training.loss, label, channels)
    if expected is None:
        return Finding("ok", f"{said}.")
    number, words = expected
    near = abs(value - number) <= _NEAR * abs(number) + 1e-4
    return Finding(
        "ok" if near else "warning",
        f"{said}, {words} = {number:.4g} expected"
        + ("." if near else "; look at the options of the loss: reduction, weights, labels."),
    )


def _about_class_weights(training: _Training) -> Iterator[Finding]:
    for _, part in parts_of(training.loss):
        weight = getattr(part, "class_weight", None)
        if weight is not None and weight.ndim == 1:
            names = training.names[-len(weight) :]  # without background there is one less
            shown = ", ".join(f"{name} {number:g}" for name, number in zip(names, weight.tolist(), strict=True))
            yield Finding("ok", f"{type(part).__name__} weights the classes: {shown}.")


def _about_gradients(training: _Training, step: _Step) -> Iterator[Finding]:
    sizes = step.layer_gradients
    layers = [name for name, p in training.trainer.network.named_parameters() if p.requires_grad and p.ndim > 1]
    without = [name for name in layers if name not in sizes]
    if without:
        yield Finding("warning", f"Without gradient: {_count(len(without), 'layer')}, {without[0]} the first; unused?")
    if not any(sizes.values()):
        raise _Stopped("Expected a gradient of the network, got 0 everywhere; the loss does not depend on the scores.")
    ends = (min(sizes, key=layers.index), max(sizes, key=layers.index))
    shown = " and ".join(f"{sizes[name]:.2g} ({name})" for name in ends)
    weak = any(sizes[name] < _ADAM_EPS for name in ends)
    yield Finding(
        "warning" if weak else "ok",
        f"Gradients (root mean square): {step.score_gradient:.2g} of the scores, in the first and last layer {shown}"
        + (f"; below {_ADAM_EPS:g} Adam hardly moves a weight." if weak else "."),
    )


def _about_descent(steps: Sequence[_Step]) -> Finding:
    first, last = steps[0].loss.item(), steps[-1].loss.item()
    falls = last < first
    return Finding(
        "ok" if falls else "warning",
        f"{len(steps)} steps on one batch change the loss from {first:.4g} to {last:.4g}"
        + ("." if falls else ": it should fall; try a lower --learning_rate, or look at the sign of the loss."),
    )


def _about_cost(training: _Training, steps: Sequence[_Step], data_seconds: float) -> Iterator[Finding]:
    record = training.record
    step = statistics.median(taken.seconds for taken in steps[1:])  # the first one warms up
    of_loss = statistics.median(taken.of_loss for taken in steps[1:])
    much = of_loss / step >= _MUCH
    remedy = "; distances measured once per volume cost less (--with boundary_maps)"
    yield Finding(
        "warning" if much else "ok",
        f"A step takes {step:.2g} s, {of_loss:.2g} s of it ({of_loss / step:.0%}) in the loss; cutting and augmenting "
        f"a batch takes {data_seconds:.2g} s{remedy if much and measures_distances(training.loss) else ''}.",
    )
    with _stage("Validating a case"):
        started = time.perf_counter()
        training.evaluator.run()
        validation = time.perf_counter() - started
    rounds, cases = -(-record.epochs // record.val_interval), len(record.validation)
    per_epoch = -(-len(record.training) // record.batch_size)
    total = record.epochs * per_epoch * (step + data_seconds) + rounds * cases * validation
    yield Finding(
        "ok",
        f"Validating a case takes {validation:.2g} s. {_count(record.epochs, 'epoch')} of "
        f"{_count(per_epoch, 'step')} and {_count(rounds, 'validation')} of {_count(cases, 'case')} take about "
        f"{_duration(total)}, start not counted.",
    )
    yield from _about_memory(training)


def _about_memory(training: _Training) -> Iterator[Finding]:
    cases = len(training.record.training) + len(training.record.validation)
    cached = [
        value.nbytes
        for item in getattr(training.dataset, "_cache", ())
        for value in item.values()
        if isinstance(value, Tensor)
    ]
    volumes = sum(cached) / len(training.dataset) * cases
    memory = _physical_memory()
    if cached and memory is not None:
        fits = volumes < memory
        yield Finding(
            "ok" if fits else "warning",
            f"The volumes of all {cases} cases are kept in memory and take about {_gigabytes(volumes)} of "
            f"{_gigabytes(memory)}" + ("." if fits else "; take fewer (--limit), or resample them (--pixdim)."),
        )
    if training.device.type == "cuda":
        peak, whole = torch.cuda.max_memory_allocated(training.device), torch.cuda.mem_get_info(training.device)[1]
        yield Finding("ok", f"Training and validation take up to {_gigabytes(peak)} of the GPU's {_gigabytes(whole)}.")
    elif (used := _peak_memory()) is not None:
        yield Finding("ok", f"This process took up to {_gigabytes(used)}, libraries and these few volumes counted.")


# ---- steps -----------------------------------------------------------------------------------------------------------


def _take_steps(training: _Training, inputs: Tensor, target: Any) -> list[_Step]:
    steps: list[_Step] = []
    for number in range(_STEPS):
        step = _step(training, inputs, target)
        # in half precision the first scales of the gradient may overflow, and the scaler lowers them
        if not training.half or number == _STEPS - 1:
            _refuse_not_finite(training, step)
        steps.append(step)
    return steps


def _step(training: _Training, inputs: Tensor, target: Any) -> _Step:
    """As MONAI's trainer, in two halves: the loss and its gradient of the scores apart from the network."""
    trainer = training.trainer
    trainer.network.train()
    trainer.optimizer.zero_grad()
    started = _now(training)
    with _stage("The network's forward pass", training), _autocast(training):
        scores = trainer.inferer(inputs, trainer.network)
    leaf = scores.detach().requires_grad_()
    forward = _now(training)
    value = _loss_of(training, leaf, target)
    with _stage("The backward pass of the loss", training):
        (value if trainer.scaler is None else trainer.scaler.scale(value)).backward()
        if leaf.grad is None:
            raise RuntimeError("the loss does not require grad of the scores")
    of_loss = _now(training)
    with _stage("The network's backward pass", training):
        scores.backward(leaf.grad)
    scale = 1.0 if trainer.scaler is None else trainer.scaler.get_scale()
    with _stage("The step of the optimizer", training):
        if trainer.scaler is None:
            trainer.optimizer.step()
        else:
            trainer.scaler.step(trainer.optimizer)
            trainer.scaler.update()
    rest = _now(training) - of_loss
    parameters = trainer.network.named_parameters()
    gradients = {name: p.grad for name, p in parameters if p.grad is not None and p.ndim > 1}
    return _Step(
        loss=value.detach().float(),
        scores=scores.detach(),
        forward=forward - started,
        of_loss=of_loss - forward,
        rest=rest,
        score_gradient=_root_mean_square(leaf.grad) / scale,
        layer_gradients={name: _root_mean_square(gradient) for name, gradient in gradients.items()},
    )


def _loss_of(training: _Training, scores: Tensor, target: Any) -> Tensor:
    """As MONAI's trainer reads it."""
    with _stage("The forward pass of the loss", training), _autocast(training):
        value = training.loss(scores, target)
        if not isinstance(value, Tensor):
            raise TypeError(f"expected a tensor from the loss, got {type(value).__name__}")
        return value.mean()


def _root_mean_square(values: Tensor) -> float:
    return values.float().square().mean().sqrt().item()


def _refuse_not_finite(training: _Training, step: _Step) -> None:
    if not step.scores.isfinite().all():
        raise _Stopped("Expected finite scores after a few steps, got NaN or infinity; try a lower --learning_rate.")
    if not step.loss.isfinite():
        raise _Stopped(
            f"Expected a number as loss of finite scores, got {step.loss.item()}{_of_part(training.loss)}; a formula "
            "divides by 0, or takes the logarithm or the root of what is too small for it."
        )
    if not math.isfinite(step.score_gradient):
        raise _Stopped(
            f"Expected finite gradients of the scores, got NaN or infinity though the loss is {step.loss.item():.4g}; "
            "a formula has no slope there, such as a root at 0: clamp before it."
        )
    broken = [name for name, size in step.layer_gradients.items() if not math.isfinite(size)]
    if broken:
        raise _Stopped(
            f"Expected finite gradients, got NaN or infinity in {len(broken)} of {len(step.layer_gradients)} layers, "
            f"{broken[0]} the first, although those of the scores are finite; look at the network, or try --amp False."
        )


def _of_part(loss: nn.Module) -> str:
    """The parts of a compound loss that are no number."""
    parts = getattr(loss, "components", {})
    broken = [name for name, value in parts.items() if not torch.as_tensor(value).isfinite().all()]
    return f" (of the part {' and '.join(broken)})" if broken else ""


def _autocast(training: _Training) -> Any:
    trainer = training.trainer
    return torch.autocast("cuda", **trainer.amp_kwargs) if training.half else contextlib.nullcontext()


def _now(training: _Training) -> float:
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    return time.perf_counter()


# ---- what went wrong -------------------------------------------------------------------------------------------------

_REMEDIES = (
    (r"out of memory|can't allocate memory|MemoryError", "lower --batch_size or --patch_size"),
    (
        r"more than 1 spatial element",
        "the patch is too small for so many levels: a larger --patch_size, or fewer --channels",
    ),
    (r"Sizes of tensors must match", "the network cannot halve this patch as often: multiples of 16 as --patch_size"),
    (
        r"does not require grad",
        "something in the loss cuts the gradient off, such as argmax, a comparison, detach, item or numpy",
    ),
    (
        r"modified by an inplace operation",
        "something changes a tensor in place that the gradient needs: clone it first",
    ),
    (r"not implemented for '?(Half|BFloat16)", "it does not compute in half precision: --amp False"),
)


@contextlib.contextmanager
def _stage(doing: str, training: _Training | None = None) -> Iterator[None]:
    """Ends the examination with one sentence where something fails: at which stage, what, and the likely remedy."""
    try:
        yield
    except _Stopped:
        raise
    except Exception as error:
        raise _Stopped(f"{doing} failed: {_said(error)}; {_remedy(error, training)}.") from error


def _said(error: BaseException) -> str:
    """The first line of what caused an error, and where: the component, and the line in the user's own code."""
    cause = _cause(error)
    component = re.search(r"Failed to instantiate component '([\w.]+)'", str(error))
    text = (str(cause).strip().splitlines() or [""])[0].rstrip(".")
    name = "" if isinstance(cause, ValueError | TypeError) and text else type(cause).__name__
    own = [frame for frame in traceback.extract_tb(cause.__traceback__) if _is_own_code(frame.filename)]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{': '.join(filter(None, (component and component[1], name, text)))}{where}"


def _remedy(error: BaseException, training: _Training | None) -> str:
    cause = _cause(error)
    text = f"{type(cause).__name__}: {cause}"
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, text):
            return remedy
    if training is not None:
        number = training.record.num_classes
        if not all(map(takes_labels, (part for _, part in parts_of(training.loss)))):
            return "the target is a map of labels: --loss::to_onehot_y True"
        if "weight" in text:
            return (
                f"give --loss::weight one number for each of the {number} classes ({', '.join(training.names)}), and "
                "without a background in the result one less"
            )
    return "look at the options of that part"


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_own_code(file: str) -> bool:
    """Whether a file is the user's, neither an installed package nor this one."""
    path = Path(file).resolve()
    library = any(part in ("site-packages", "dist-packages") for part in path.parts)
    standard = path.is_relative_to(Path(os.__file__).resolve().parent)
    return not library and not standard and not path.is_relative_to(Path(__file__).resolve().parent) and path.exists()


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """The texts of the warnings that are raised meanwhile."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield texts
    said = [str(warning.message).strip() for warning in caught if warning.category is UserWarning]
    texts += [text for text in dict.fromkeys(said) if "GHSA-873f-pvrv-4x83" not in text]  # of foreign configs


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2g} GB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
