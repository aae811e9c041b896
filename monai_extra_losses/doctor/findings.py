"""Build what a training would, take a few steps on one batch of it, and say what is right and what is not."""

import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_extra_losses.bundle.class_handlers import is_seldom
from monai_extra_losses.bundle.ignored_voxels import check_ignore_index, counts_ignored
from monai_extra_losses.bundle.loss_facts import (
    has_regions_alone,
    loss_of_equal_scores,
    measures_distances,
    parts_of,
    score_reading,
)
from monai_extra_losses.bundle.networks import NETWORKS
from monai_extra_losses.bundle.options import yes_or_no
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_setup import refuse_run_folder
from monai_extra_losses.bundle.thread_stalls import Interruptions
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.sides import mirror_remarks
from monai_extra_losses.doctor.annotation import CaseAnnotation, shares_told
from monai_extra_losses.doctor.built import BuiltTraining, TakenStep
from monai_extra_losses.doctor.failures import ExaminationStopped, caught_warnings, stage
from monai_extra_losses.doctor.steps import (
    build_training,
    draw_batches,
    label_of,
    loss_of_scores,
    measure_cost,
    of_part,
    scores_of,
    take_steps,
)
from monai_extra_losses.report.tables import shown_duration

_NEAR = 0.01  # relative: a sum of rounded numbers against a formula


_ADAM_EPS = 1e-8  # a gradient below it moves a weight no more


_MUCH = 0.5  # of a step, for the loss


_TINY = 0.01  # share of the voxels of the patches, in which each class is looked for as often


Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One sentence about a training, and how bad it is."""

    level: Level
    text: str


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
        except ExaminationStopped as problem:
            yield Finding("problem", str(problem))


def _examine(config_files: Sequence[str], run: Path | None, options: dict[str, Any]) -> Iterator[Finding]:
    if run is not None:
        resume, overwrite = (yes_or_no(name, options.get(name, False)) for name in ("resume", "overwrite"))
        try:
            refuse_run_folder(RunFolder(run), resume, overwrite)
        except StartUpRefused as refused:
            yield Finding("problem", str(refused))
    with caught_warnings() as warned:
        training = build_training(config_files, options)
    for text in warned:
        yield Finding("warning", text)
    for text in training.setup.passed_over:
        yield Finding("warning", f"Passed over: {text}")
    record = training.record
    precision = "half precision" if getattr(training.trainer.inferer, "dtype", None) else "float32"
    yield Finding(
        "ok",
        f"{len(record.training)} cases would train a {NETWORKS[record.network].title} and {len(record.validation)} "
        "validate it, in patches of "
        f"{' x '.join(map(str, record.patch_size))} voxels, {record.batch_size} a step, on {training.device} in "
        f"{precision}. Here a few of them are read.",
    )
    for wrong, sentence in mirror_remarks(record.foreground.values(), record.flip_axes):
        yield Finding("warning" if wrong else "ok", sentence)
    annotation = CaseAnnotation(record)
    yield from _about_annotation(training, annotation)
    batches, cases, data_seconds = draw_batches(training)
    yield from _about_batches(training, batches, annotation.told(cases))
    inputs, target = batches[0]
    scores = scores_of(training, inputs)
    yield from _about_channels(training, scores, label_of(target))
    yield from _about_activations(training.loss, scores, training.multi_label)
    yield from _about_ignored(training, scores, target)
    with caught_warnings() as warned, torch.no_grad():
        equal = loss_of_scores(training, torch.zeros_like(scores), target).item()
    whole = not annotation.partly_annotated_cases
    yield _about_equal_scores(training, equal, label_of(target), scores.shape[1], every_class=whole)
    interruptions = Interruptions()
    with caught_warnings() as warned_again:
        steps = take_steps(training, inputs, target)
    stall = interruptions.warning()
    for text in dict.fromkeys(warned + warned_again):
        yield Finding("warning", text)
    yield from _about_class_weights(training)
    # in half precision the gradients of the first steps may overflow
    yield from _about_gradients(training, steps[-1] if training.half else steps[0])
    yield _about_descent(steps)
    yield from _about_cost(training, steps, data_seconds)
    if stall is not None and training.device.type == "cpu":
        yield Finding("warning", stall)


def _about_annotation(training: BuiltTraining, annotation: CaseAnnotation) -> Iterator[Finding]:
    if annotation.partly_annotated_cases:
        activation = "sigmoid, as regions need it" if training.multi_label else "softmax"
        yield Finding(
            "ok",
            f"{annotation.partly_annotated_cases} of {_count(annotation.cases, 'case')} are partly annotated. Training "
            "wraps the loss in PartialLabelLoss by itself, so that a case teaches nothing of the classes that it does "
            f"not annotate; that takes a loss with {activation}.",
        )


def _about_batches(training: BuiltTraining, batches: Sequence[tuple[Tensor, Any]], told: Tensor) -> Iterator[Finding]:
    images = torch.cat([inputs.flatten().float() for inputs, _ in batches])
    if not images.isfinite().all():
        raise ExaminationStopped(
            f"Expected finite intensities in the patches, got {int((~images.isfinite()).sum())} voxels of NaN or "
            "infinity; a transform makes them, for the files have none."
        )
    patches = torch.cat([label_of(target).float() for _, target in batches])
    drawn = f"{sum(inputs.shape[0] for inputs, _ in batches)} patches from {_count(len(training.dataset), 'case')}"
    labels, share = _annotated(training, patches)
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
        raise ExaminationStopped(
            f"Expected the labels 0 to {number - 1} in the patches, got {', '.join(f'{v:g}' for v in foreign[:5])}; "
            "a label must be resampled with nearest neighbours."
        )
    of_patches = [_annotated(training, patch)[0] for patch in patches.split(1)]
    counts = torch.stack([_class_counts(training, voxels) for voxels in of_patches], dim=1).cpu()
    every = shares_told(counts, torch.tensor([voxels.shape[1] for voxels in of_patches]), told)
    shares = {name: share for name, share in zip(training.names, every, strict=True) if share is not None}
    shown = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
    where = "" if told.all() else ", each in the cases that annotate it"
    yield Finding("ok", f"Voxels of {drawn}: {shown}{where}.")
    if unseen := [name for name in training.record.foreground.values() if name not in shares]:
        yield Finding("ok", f"None of {drawn} is of a case that annotates {' or '.join(unseen)}.")
    missing = [name for name, share in shares.items() if share == 0]
    if missing:
        yield Finding(
            "warning",
            f"None of {drawn} has a voxel of {' or '.join(missing)}. If few cases have one, the loss "
            "seldom sees it (`monai-extra-losses check` counts them); if all have, the patch is too small.",
        )
    yield from _about_empty_patches(training, counts > 0, told.cpu())
    yield from _about_tiny_classes(training.loss, shares)


def _about_empty_patches(training: BuiltTraining, held: Tensor, told: Tensor) -> Iterator[Finding]:
    """Warn of classes that fewer patches have than the centres alone would make likely: each class is as often one.

    Args:
        training: what would be trained.
        held, told: (classes, patches), whether a patch has a voxel of the class, and whether its case annotates it.
    """
    for name, of_class, known in zip(training.names, held, told, strict=True):
        patches, number = int(known.sum()), int((of_class & known).sum())
        seldom = is_seldom(number, patches, len(training.record.labels))
        if name in training.record.foreground.values() and number and seldom:
            yield Finding(
                "warning",
                f"Only {number} of {patches} patches have a voxel of {name}; the others teach where it is not. Are "
                "there many cases without it? A larger --patch_size, or more cases with it, helps.",
            )


def _about_tiny_classes(loss: nn.Module, shares: Mapping[str, float]) -> Iterator[Finding]:
    tiny = [f"{name} ({share:.2%})" for name, share in shares.items() if 0 < share < _TINY]
    if tiny and has_regions_alone(loss):
        name = " and ".join(dict.fromkeys(type(part).__name__ for _, part in parts_of(loss)))
        yield Finding(
            "warning",
            f"{' and '.join(tiny)}: less than {_TINY:.0%} of the voxels, and {name} without a cross-entropy has almost "
            "no gradient for a class that the network does not predict yet. Should its Dice stay at 0, take a compound "
            "with one: --loss dice_ce, or in a config `compound` of this loss and cross_entropy.",
        )


def _annotated(training: BuiltTraining, labels: Tensor) -> tuple[Tensor, float]:
    """The labels (C, voxels) of the annotated voxels, and their share."""
    voxels = labels.transpose(0, 1).flatten(1)
    if training.record.ignore_index is None:
        return voxels, 1.0
    annotated = voxels[0] != training.record.ignore_index
    return voxels[:, annotated], annotated.float().mean().item()


def _class_counts(training: BuiltTraining, voxels: Tensor) -> Tensor:
    """Voxels of each class, or of each region, among (C, voxels)."""
    if training.multi_label:
        return voxels.sum(dim=1)
    return torch.bincount(voxels[0].long(), minlength=training.record.num_classes)


def _about_ignored(training: BuiltTraining, scores: Tensor, target: Any) -> Iterator[Finding]:
    for _, part in parts_of(training.loss):
        for sentence in check_ignore_index(part, training.record):
            yield Finding("warning", sentence)
    if training.record.ignore_index is None:
        return
    ignored = label_of(target)[:, :1] == training.record.ignore_index
    with stage("The forward pass of the loss", training):
        counts = bool(ignored.any()) and counts_ignored(training.loss, scores, target, ignored)
    if counts:
        yield Finding(
            "problem",
            f"The loss changes with the scores of voxels without annotation (label {training.record.ignore_label}), "
            "which it should leave out; choose one with an ignore_index, such as those of this package.",
        )


def _about_channels(training: BuiltTraining, scores: Tensor, label: Tensor) -> Iterator[Finding]:
    if not scores.isfinite().all():
        raise ExaminationStopped(
            "Expected finite scores of the fresh network, got NaN or infinity; look at its layers and the intensities."
        )
    if training.multi_label:
        what, values = "region", ", ".join(training.names)
    else:
        what, values = "label value", ", ".join(f"{value} {name}" for value, name in training.record.labels.items())
    if scores.ndim != label.ndim or scores.shape[1] != training.record.num_classes:
        raise ExaminationStopped(
            f"Expected scores of {training.record.num_classes} channels, one per {what} ({values}), got "
            f"{tuple(scores.shape)}; leave network_def::out_channels to the configs."
        )
    if scores.shape[2:] != label.shape[2:]:
        raise ExaminationStopped(
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


def _about_equal_scores(
    training: BuiltTraining, value: float, label: Tensor, channels: int, *, every_class: bool
) -> Finding:
    said = f"A network that knows nothing (all scores equal) has the loss {value:.4g}"
    if not math.isfinite(value):
        return Finding("warning", f"{said}{of_part(training.loss)}; a formula divides by 0 or takes its logarithm.")
    # the formulas are those of a label map that tells of every class
    expected = None if training.multi_label or not every_class else loss_of_equal_scores(training.loss, label, channels)
    if expected is None:
        return Finding("ok", f"{said}.")
    number, words = expected
    near = abs(value - number) <= _NEAR * abs(number) + 1e-4
    return Finding(
        "ok" if near else "warning",
        f"{said}, {words} = {number:.4g} expected"
        + ("." if near else "; look at the options of the loss: reduction, weights, labels."),
    )


def _about_class_weights(training: BuiltTraining) -> Iterator[Finding]:
    for _, part in parts_of(training.loss):
        weight = getattr(part, "class_weight", None)
        if weight is not None and weight.ndim == 1:
            names = training.names[-len(weight) :]  # without background there is one less
            shown = ", ".join(f"{name} {number:g}" for name, number in zip(names, weight.tolist(), strict=True))
            yield Finding("ok", f"{type(part).__name__} weights the classes: {shown}.")


def _about_gradients(training: BuiltTraining, step: TakenStep) -> Iterator[Finding]:
    sizes = step.layer_gradients
    layers = [name for name, p in training.trainer.network.named_parameters() if p.requires_grad and p.ndim > 1]
    without = [name for name in layers if name not in sizes]
    if without:
        yield Finding("warning", f"Without gradient: {_count(len(without), 'layer')}, {without[0]} the first; unused?")
    if not any(sizes.values()):
        raise ExaminationStopped(
            "Expected a gradient of the network, got 0 everywhere; the loss does not depend on the scores."
        )
    ends = (min(sizes, key=layers.index), max(sizes, key=layers.index))
    shown = " and ".join(f"{sizes[name]:.2g} ({name})" for name in ends)
    weak = any(sizes[name] < _ADAM_EPS for name in ends)
    yield Finding(
        "warning" if weak else "ok",
        f"Gradients (root mean square): {step.score_gradient:.2g} of the scores, in the first and last layer {shown}"
        + (f"; below {_ADAM_EPS:g} Adam hardly moves a weight." if weak else "."),
    )


def _about_descent(steps: Sequence[TakenStep]) -> Finding:
    first, last = steps[0].loss.item(), steps[-1].loss.item()
    falls = last < first
    return Finding(
        "ok" if falls else "warning",
        f"{len(steps)} steps on one batch change the loss from {first:.4g} to {last:.4g}"
        + ("." if falls else ": it should fall; try a lower --learning_rate, or look at the sign of the loss."),
    )


def _about_cost(training: BuiltTraining, steps: Sequence[TakenStep], data_seconds: float) -> Iterator[Finding]:
    with stage("Validating a case"):
        cost = measure_cost(training, steps, data_seconds)
    record, step, of_loss = training.record, cost.step, cost.of_loss
    much = of_loss / step >= _MUCH
    remedy = "; distances measured once per volume cost less (--with boundary_maps)"
    yield Finding(
        "warning" if much else "ok",
        f"A step takes {step:.2g} s, {of_loss:.2g} s of it ({of_loss / step:.0%}) in the loss; cutting and augmenting "
        f"a batch takes {data_seconds:.2g} s{remedy if much and measures_distances(training.loss) else ''}.",
    )
    yield Finding(
        "ok",
        f"Validating a case takes {cost.validation:.2g} s. {_count(record.epochs, 'epoch')} of "
        f"{_count(cost.steps_per_epoch, 'step')} and {_count(cost.validations, 'validation')} of "
        f"{_count(len(record.validation), 'case')} take about {shown_duration(cost.total)}, start not counted.",
    )
    yield from _about_memory(training)


def _about_memory(training: BuiltTraining) -> Iterator[Finding]:
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
