"""The record of a run: what evaluation and inference must share with its training."""

import csv
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast, get_type_hints

from monai_extra_losses import __version__
from monai_extra_losses.bundle.pooling import Axes, product_of
from monai_extra_losses.bundle.training_options import MOST_CHANNELS, RECORDED, RecordedOptions
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.data.ignore_label import value_in_memory
from monai_extra_losses.data.segments import Segments, segment_problem
from monai_extra_losses.data.storage import write_whole
from monai_extra_losses.file_content import short, typed

DEFAULT_CHANNELS = (16, 32, 64, 128)
"""Per level of a network whose levels do not follow from the patch."""

FEWEST_DYNUNET_LEVELS = 3  # of MONAI's class

_LONGEST_AXIS = 2**16  # a damaged record must not ask for more memory than there is


# The order of the file, and of the comparison at a resume. What is not among them comes behind.
_ORDER = (
    *("labels", "in_channels", "patch_size", "pixdim", "channels", "num_res_units", "loss", "dataset_dir"),
    *("num_folds", "fold", "seed", "limit", "training", "validation"),
    *("epochs", "val_interval", "batch_size", "learning_rate", "loss_weights", "regions", "original_labels"),
    *("early_stop_patience", "amp", "hu_window", "pretrained", "cache", "cache_dir"),
    *("version", "loss_options", "flip_axes", "ignore_label"),
    *("network", "kernel_sizes", "strides", "deep_supervision"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord(RecordedOptions):
    """What a training fixes for everything that comes after it; `models/run.json`.

    Args:
        labels: label value -> name, sorted by value, background first; class i is the i-th value.
        in_channels: image channels.
        patch_size: voxels per axis of a training patch and of a sliding window (R, A, S axes).
        channels: per level of the network.
        loss: class of the loss; with its module where it is not of this package.
        dataset_dir: the folder trained on.
        num_folds: how many folds the cases were dealt to; 0 where those set apart to validate do so.
        training, validation: names of the cases.
        regions: name -> label values that it joins, for a network with a sigmoid channel per region; None for one with
            a softmax over the classes.
        regions_class_order: label value that each region paints, as of `CaseList`; None in records of earlier versions.
        num_res_units: residual units per level of a U-Net; None for another network.
        kernel_sizes, strides: per level and axis of a DynUNet; None for another network, which halves all axes from
            level to level.
        original_labels: label value -> the id that the source of the data set had for it, where that is another.
        version: of this package.
        loss_options: of the loss and its parts, dotted name -> value; None in records of earlier versions.
        flip_axes: body axes (0, 1, 2) along which patches are mirrored; records of earlier versions mean [0].
        ignore_label: label value of voxels without annotation, none of `labels`; None: every voxel is annotated.
        partly_annotated: whether some case of the data set annotates some of the classes only.
        segments: how DICOM shows and codes classes and regions (`data.segments`).

    The others are options, see `training_options.RecordedOptions`.
    """

    labels: dict[int, str]
    in_channels: int
    patch_size: Axes
    channels: tuple[int, ...]
    num_res_units: int | None
    loss: str
    dataset_dir: str
    num_folds: int
    training: tuple[str, ...]
    validation: tuple[str, ...]
    kernel_sizes: tuple[Axes, ...] | None = None
    strides: tuple[Axes, ...] | None = None
    regions: dict[str, tuple[int, ...]] | None = None
    original_labels: dict[int, int] = dataclasses.field(default_factory=dict)
    version: str = __version__
    loss_options: dict[str, Any] | None = None
    flip_axes: tuple[int, ...] = (0,)
    ignore_label: int | None = None
    partly_annotated: bool = False
    regions_class_order: tuple[int, ...] | None = None
    segments: Segments = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Channels of the network: classes with background, or regions."""
        return len(self.labels if self.regions is None else self.regions)

    @property
    def classes(self) -> list[int]:
        """Number of each label value, from 0: what a label map holds in memory."""
        return list(range(len(self.labels)))

    @property
    def label_values(self) -> list[int]:
        """The data set's label values, in the order of `classes`."""
        return list(self.labels)

    @property
    def ignore_index(self) -> int | None:
        """What a label in memory holds in a voxel without annotation; no number of a class or of a region."""
        return value_in_memory(self.ignore_label, max(len(self.labels), len(self.regions or ())))

    @property
    def values_in_memory(self) -> dict[int, int]:
        """Label value in the files -> the class that a label map holds in memory, or `ignore_index`."""
        values = dict(zip(self.label_values, self.classes, strict=True))
        return values if self.ignore_label is None else values | {self.ignore_label: cast(int, self.ignore_index)}

    @property
    def foreground(self) -> dict[int, str]:
        """Number from 1 -> name, of the classes without background, or of the regions."""
        names = list(self.labels.values())[1:] if self.regions is None else self.regions
        return dict(enumerate(names, start=1))

    @property
    def region_classes(self) -> dict[str, tuple[int, ...]] | None:
        """The regions, in classes instead of label values."""
        if self.regions is None:
            return None
        number = dict(zip(self.label_values, self.classes, strict=True))
        return {name: tuple(number[value] for value in values) for name, values in self.regions.items()}

    @property
    def patch_multiples(self) -> Axes:
        """What the sides of a patch must be multiples of, for the network to halve them."""
        return product_of(self.strides or ((2, 2, 2),) * (len(self.channels) - 1))

    @classmethod
    def names(cls) -> list[str]:
        """Names of the values, in the order of the file."""
        names = [field.name for field in dataclasses.fields(cls)]
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        values = dataclasses.asdict(self)
        content = {name: values[name] for name in self.names()}
        write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record; one that training did not write so is refused with a sentence."""

        def refused(problem: str) -> StartUpRefused:
            return StartUpRefused(
                f"{path}: expected the record that training writes, got {problem}; bring back the file as it was, or "
                "train again."
            )

        content = _content_of_record(path, refused)
        hints = get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(content.keys() - fields):
            raise refused(f"the unknown key {short(unknown[0])} (another version of this package may know it)")
        needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
        if missing := [name for name in cls.names() if name in needed and name not in content]:
            raise refused(f"none named {missing[0]}")
        for name, value in content.items():
            try:
                content[name] = typed(hints[name], value)
            except TypeError as error:
                raise refused(f"a value of another type: {name} should be {error}") from None
        record = cls(**content)
        if problem := record._problem():
            raise refused(problem)
        return record

    def _problem(self) -> str | None:
        """The first value that no training writes, in words."""
        known, multiples = set(self.labels), self.patch_multiples
        # where all axes are halved to the lowest level, it needs two voxels for its norm
        least = multiples if self.strides else _per_axis(2 * multiple for multiple in multiples)
        rules: dict[str, tuple[bool, str]] = {
            "labels": (0 in known and len(known) > 1, "0 and at least one more"),
            "regions": (
                self.regions is None
                or (bool(self.regions) and all(values and known >= set(values) for values in self.regions.values())),
                "made of the labels",
            ),
            "regions_class_order": (
                self.regions_class_order is None
                or (
                    known >= set(self.regions_class_order) and len(self.regions_class_order) == len(self.regions or ())
                ),
                "a label for each region",
            ),
            "segments": (
                self.segments.keys() <= {*self.labels.values(), *(self.regions or ())}
                and not any(map(segment_problem, self.segments.values())),
                "colours and codes of the labels",
            ),
            "in_channels": (1 <= self.in_channels <= MOST_CHANNELS, "a number of channels"),
            **{name: (e.rule[0](getattr(self, name)), e.rule[1]) for name, e in RECORDED.items() if e.rule is not None},
            **_rules_of_network(self),
            "patch_size": (
                all(
                    n % multiple == 0 and fewest <= n <= _LONGEST_AXIS
                    for n, multiple, fewest in zip(self.patch_size, multiples, least, strict=True)
                ),
                f"multiples of {_multiples(multiples)} of at least {_multiples(least)}",
            ),
        }
        for name, (fits, expected) in rules.items():
            if not fits:
                return f"{name} {short(getattr(self, name))}, which should be {expected}"
        return None


def _rules_of_network(record: RunRecord) -> dict[str, tuple[bool, str]]:
    """Name of a value -> whether it is one of the record's network, and what it should be in words."""
    levels, units = len(record.channels), record.num_res_units
    with_units, by_patch = record.network == "unet", record.network == "dynunet"

    def fits(axes: tuple[Axes, ...] | None, allowed: set[int]) -> bool:
        if axes is None or not by_patch:
            return axes is None and not by_patch
        return len(axes) == levels >= FEWEST_DYNUNET_LEVELS and {n for level in axes for n in level} <= allowed

    per_level = f"3 numbers for each of {FEWEST_DYNUNET_LEVELS} levels or more, as many as channels"
    one_or_more = all(1 <= n <= MOST_CHANNELS for n in record.channels)
    return {
        "channels": (
            record.channels == DEFAULT_CHANNELS if record.network == "segresnet" else levels > 1 and one_or_more,
            f"{list(DEFAULT_CHANNELS)}" if record.network == "segresnet" else "two numbers of channels or more",
        ),
        "num_res_units": (
            units is not None and 0 <= units <= MOST_CHANNELS if with_units else units is None,
            "0 or more" if with_units else "null",
        ),
        "kernel_sizes": (fits(record.kernel_sizes, {1, 3}), per_level if by_patch else "null"),
        "strides": (fits(record.strides, {1, 2}), per_level if by_patch else "null"),
        "deep_supervision": (by_patch or not record.deep_supervision, "false"),
    }


def _multiples(axes: Axes) -> str:
    """Numbers per axis in words, once where they are the same."""
    first, second, third = axes
    return str(first) if first == second == third else f"{first}, {second} and {third}"


def _per_axis(numbers: Iterable[int]) -> Axes:
    first, second, third = numbers
    return first, second, third


def _content_of_record(path: Path, refused: Callable[[str], StartUpRefused]) -> dict[str, Any]:
    """The object in a record's file; `refused` makes the refusal of a file that is there."""
    if path.exists() and not path.is_file():
        raise refused("no file of its own kind")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise StartUpRefused(
            f"Expected a trained run in {path.parent.parent}, got a folder without models/run.json; "
            "train first, or give the folder of a run as --bundle_root (--run on the short command line)."
        ) from None
    except OSError as error:
        raise StartUpRefused(f"Expected to read {path}, got: {(error.strerror or str(error)).lower()}.") from None
    except RecursionError:
        raise refused("JSON nested too deep") from None
    except ValueError as error:  # no JSON, no UTF-8
        raise refused(str(error)) from None
    if not isinstance(content, dict):
        raise refused(short(content))
    return content


def read_training_csv(path: Path) -> list[dict[str, str]]:
    """The rows of training.csv; none where there is no file. One that training did not write so is refused.

    Raises:
        StartUpRefused: no table of one row per epoch, with the place and the reason.
    """

    def refused(problem: str) -> StartUpRefused:
        return StartUpRefused(
            f"{path}: expected the table that training writes, a row per epoch with commas between the cells, got "
            f"{problem}; bring back the file as it was, or move it away, and the training begins a new one."
        )

    if path.exists() and not path.is_file():
        raise refused("no file of its own kind")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            names = list(reader.fieldnames or [])
            rows = list(reader)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StartUpRefused(f"Expected to read {path}, got: {(error.strerror or str(error)).lower()}.") from None
    except (ValueError, csv.Error) as error:  # no UTF-8, no CSV
        raise refused(str(error)) from None
    if problem := _table_problem(names, rows):
        raise refused(problem)
    return rows


def _table_problem(names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str | None:
    """What is no table of a training, in words."""
    if "epoch" not in names:
        foreign = next((mark for mark in (";", "\t") if any(mark in name for name in names)), None)
        if foreign is None:
            return "no column epoch"
        return f"one with {'semicolons' if foreign == ';' else 'tabs'} instead, as spreadsheets save it"
    last = 0
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            return f"{'more' if None in row else 'fewer'} cells than names of columns in line {line}"
        wrong = next((name for name, cell in row.items() if not _is_cell(cell, whole=name == "epoch")), None)
        if wrong is not None:
            return f"{short(row[wrong])} under {wrong} in line {line}"
        if int(row["epoch"]) <= last:
            return f"epoch {int(row['epoch'])} after epoch {last} in line {line}"
        last = int(row["epoch"])
    return None


def _is_cell(text: str, whole: bool) -> bool:
    if whole:
        return re.fullmatch(r"[1-9][0-9]{0,17}", text) is not None
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True
