"""The options of a training, one entry each.

The set-up, `models/run.json`, the rules of a resume and `train --help` come from these entries. A new option is an
entry here, its value and its hand-over to the set-up in configs/train.yaml, and the code that uses it. It needs a
default, for the records and the calls that do not know it.

`--help` reads this file, so torch is imported by the check that needs it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, cast, dataclass_transform, get_args

from monai_extra_losses.bundle.error_text import nearest_name
from monai_extra_losses.bundle.options import (
    MetricSetName,
    Network,
    absolute_path,
    axes_of_patches,
    cache_kind,
    channels_per_level,
    file_or_folder,
    half_precision_option,
    literal,
    metric_sets,
    network_name,
    numbers_per_axis,
    positive_number,
    whole_number,
    whole_number_or_none,
    window,
    yes_or_no,
)
from monai_extra_losses.data.errors import StartUpRefused

T = TypeVar("T")


MOST_CHANNELS = 2**16  # a damaged record must not ask for more memory than there is


@dataclasses.dataclass(frozen=True)
class Option(Generic[T]):
    """What is known of an option.

    Args:
        check: its name and a value as the command line gives it -> the typed value; refuses with `StartUpRefused`.
        meaning: the comment of configs/train.yaml.
        changes_on_resume: a training that goes on may have another value.
        names_a_file: text is taken as it is, whatever it means to Python or MONAI.
        rule: of a value in a record, beside its type, and the rule in words.
    """

    check: Callable[[str, Any], T]
    meaning: str
    changes_on_resume: bool = False
    names_a_file: bool = False
    rule: tuple[Callable[[T], bool], str] | None = None


def option(
    check: Callable[[str, Any], T],
    meaning: str,
    *,
    default: T = cast(Any, dataclasses.MISSING),  # noqa: B008
    changes_on_resume: bool = False,
    names_a_file: bool = False,
    rule: tuple[Callable[[T], bool], str] | None = None,
) -> T:
    """An entry of the table. It is a field, so that mypy knows the type of the checked value.

    Args:
        check, meaning, changes_on_resume, names_a_file, rule: see `Option`.
        default: of calls and records that leave the option out.
    """
    entry = Option(check, meaning, changes_on_resume, names_a_file, rule)
    return dataclasses.field(default=default, metadata={"option": entry})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
def _table(cls: type[T]) -> type[T]:
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def _ramps(name: str, value: Any) -> dict[str, Any] | None:
    given = literal(value)
    if not given:
        return None
    if not isinstance(given, Mapping):
        raise StartUpRefused(
            f"Expected {name} to be ramps of the parts of a compound loss such as "
            f'{{"boundary": {{"start": 0.01, "end": 1.0}}}}, got {value!r}.'
        )
    return dict(given)


def _dataset_folder(name: str, value: Any) -> Path:
    if value is None:
        raise StartUpRefused(
            f"Expected --{name} (--data on the short command line), got none; "
            "give the folder with dataset.json, or with imagesTr/ and labelsTr/."
        )
    return file_or_folder(name, value)


def _device(name: str, value: Any) -> str | None:
    import torch

    from monai_extra_losses.bundle.processes import refuse_machinery

    refuse_machinery(value, 0)
    return None if value is None else str(torch.device(value))


_whole = partial(whole_number, least=0)
_counted = partial(whole_number, least=1)
_counted_or_none = partial(whole_number_or_none, least=1)
_ONE_OR_MORE: tuple[Callable[[int], bool], str] = (lambda number: number >= 1, "1 or more")


@_table
class RecordedOptions:
    """Options that the record of a run has as they were checked."""

    pixdim: tuple[float, float, float] | None = option(
        partial(numbers_per_axis, example="[1, 1, 2.5]"),
        "voxel spacing in mm to resample to, e.g. [1, 1, 2.5]; null: as each volume is",
        rule=(lambda spacing: spacing is None or min(spacing) > 0, "above 0"),
    )
    network: str = option(
        network_name,
        "unet, small and quick; dynunet, the larger one of nnU-Net, whose levels follow from patch and spacing, for "
        "long trainings and thick slices; or segresnet, a residual one between them in time",
        default="unet",
        rule=(lambda name: name in get_args(Network), "a network that this version knows"),
    )
    deep_supervision: bool = option(
        yes_or_no,
        "true: train the lower levels of dynunet on the labels too, at 1/2, 1/4, ... of the weight",
        default=False,
    )
    head_loss: bool = option(
        yes_or_no,
        "true: compute the last convolution of dynunet or segresnet with the loss, so that the scores of all classes "
        "are never there at once: for a hundred classes and more",
        default=False,
    )
    fold: int = option(_whole, "the fold that validates")
    seed: int = option(_whole, "of the folds, the weights and the patches", rule=(lambda seed: seed >= 0, "0 or more"))
    fold_seed: int | None = option(
        partial(whole_number_or_none, least=0),
        "of the folds alone, so that trainings of several seeds validate on the same cases; null: seed",
        default=None,
        rule=(lambda seed: seed is None or seed >= 0, "0 or more"),
    )
    limit: int | None = option(
        _counted_or_none,
        "use the first so many cases only, for a quick look, and a share of those set apart; null: all",
    )
    epochs: int = option(_counted, "rounds through the training cases", changes_on_resume=True, rule=_ONE_OR_MORE)
    val_interval: int = option(
        _counted,
        "epochs between validations; the last epoch is always validated",
        changes_on_resume=True,
        rule=_ONE_OR_MORE,
    )
    batch_size: int = option(_counted, "patches per step, one per volume", rule=_ONE_OR_MORE)
    learning_rate: float = option(
        positive_number,
        "of the first step; falls to 0 along a cosine",
        rule=(lambda rate: rate > 0, "above 0"),
    )
    loss_weights: dict[str, Any] | None = option(
        _ramps,
        "ramps of the weights of a compound loss over the epochs, as in boundary_schedule.yaml; null: as they are",
        default=None,
    )
    early_stop_patience: int | None = option(
        _counted_or_none,
        "stop after so many validations in a row without a better mean Dice; null: never",
        default=None,
        changes_on_resume=True,
        rule=(lambda patience: patience is None or patience >= 1, "1 or more"),
    )
    amp: str | None = option(
        half_precision_option,
        "half precision: fp16 (or true), bf16 or false; null: fp16 on a GPU. A CPU computes in bf16 only",
        default=None,
        changes_on_resume=True,
        rule=(lambda amp: amp in (None, "fp16", "bf16", "off"), "fp16, bf16, off or null"),
    )
    hu_window: tuple[float, float] | None = option(
        partial(window, example="[-175, 250]"),
        "CT: intensities to clip to and scale to 0..1, e.g. [-175, 250]; null: each image's own mean and deviation",
        default=None,
        rule=(lambda window: window is None or window[0] < window[1], "the lower one first"),
    )
    pretrained: str | None = option(
        absolute_path,
        "file of weights to start from, e.g. models/model.pt of another run; null: random weights",
        default=None,
        names_a_file=True,
    )
    metrics: tuple[str, ...] = option(
        metric_sets,
        "sets of metrics that an evaluation of the run measures beside the usual ones: vessels, clDice and errors of "
        "the Betti numbers; lesions, how many are found; calibration, of the probabilities; e.g. [lesions]; null: none",
        default=(),
        changes_on_resume=True,
        rule=(lambda names: set(names) <= set(get_args(MetricSetName)), "sets that this version knows"),
    )
    cache: str = option(
        cache_kind,
        "where prepared volumes are kept: memory, disk (for more volumes than memory holds), or none",
        default="memory",
        changes_on_resume=True,
        rule=(lambda kind: kind in ("memory", "disk", "none"), "memory, disk or none"),
    )
    cache_dir: str | None = option(
        absolute_path,
        "folder of the disk cache, which several runs may share; null: <bundle_root>/cache",
        default=None,
        changes_on_resume=True,
        names_a_file=True,
    )


@_table
class TrainingOptions(RecordedOptions):
    """All options of a training, checked. Of these below the record has nothing, or what they came to with the data."""

    num_folds: int | None = option(
        partial(whole_number_or_none, least=0),
        "folds that the cases are dealt to; null: as dataset.json deals them or its `validation` says, else 5. A "
        "number leaves those of `validation` out",
    )
    patch_size: tuple[float, float, float] | None = option(
        partial(numbers_per_axis, example="[96, 96, 32]"),
        "voxels per axis, e.g. [96, 96, 32], multiples of what the network halves; null: the median volume, at most 96 "
        "per axis, rounded down to multiples of 16, or for dynunet up to multiples of what it halves",
    )
    channels: tuple[int, ...] | None = option(
        channels_per_level,
        "per level of unet or dynunet; null: [16, 32, 64, 128] for unet, and for dynunet 32, 64, 128, 256, 320, ... "
        "for as many levels as it has",
    )
    num_res_units: int | None = option(
        partial(whole_number_or_none, least=0),
        "residual units per level of unet; null: 2",
    )
    regions: bool = option(
        yes_or_no,
        "segment the overlapping `regions` of dataset.json, where it has some; false: its labels all the same",
        default=True,
    )
    flip_axes: tuple[int, ...] | None = option(
        axes_of_patches,
        "mirror patches at random: axes such as [0] or [0, 1] (left-right, front-back, foot-head), or false; null: "
        "left-right, unless names of classes are in left/right pairs (kidney_left) or of one side",
        default=None,
    )
    device: str | None = option(
        _device,
        "where the network computes, such as cpu or cuda:1; by itself on the first GPU, or else on the CPU",
        default=None,
    )
    num_workers: int = option(
        _whole,
        "loader processes; with cached volumes more help with heavy augmentation only",
        default=0,
    )
    resume: bool = option(yes_or_no, "true: go on after the last epoch saved in bundle_root")
    overwrite: bool = option(yes_or_no, "true: delete the run that is in bundle_root")
    check_loss: bool = option(
        yes_or_no,
        "try the loss on a few voxels; false: for a network that gives probabilities itself",
        default=True,
    )
    bundle_root: Path = option(file_or_folder, "run folder: models/ and eval/ are made in it", names_a_file=True)
    dataset_dir: Path = option(
        _dataset_folder,
        "folder with dataset.json, or with imagesTr/ and labelsTr/",
        changes_on_resume=True,
        names_a_file=True,
    )

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Self:
        """Options as the command line gives them, typed.

        Raises:
            StartUpRefused: the first value that its entry refuses, in the order of the table.
            TypeError: an option that the table does not have; or none where there is no default.
        """
        for name in given:
            if name not in TABLE:
                raise TypeError(f"got an unexpected keyword argument {name!r}{nearest_name(name, TABLE)}")
        return cls(**{name: entry.check(name, given[name]) for name, entry in TABLE.items() if name in given})

    @property
    def recorded(self) -> dict[str, Any]:
        """The values that the record has as they are."""
        return {name: getattr(self, name) for name in RECORDED}


def _entries(cls: type[RecordedOptions]) -> dict[str, Option[Any]]:
    return {field.name: field.metadata["option"] for field in dataclasses.fields(cls)}


RECORDED = _entries(RecordedOptions)
TABLE = _entries(TrainingOptions)

# Options of the configs that name a file or a folder: three of evaluation and inference, and those of the table.
FILE_OPTIONS = frozenset(
    {"input", "model_file", "output_dir", *(name for name, entry in TABLE.items() if entry.names_a_file)}
)
