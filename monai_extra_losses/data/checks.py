"""Read every file of a data set before training time is spent on it, and say everything that is wrong at once."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.data.annotation import annotates, contradiction
from monai_extra_losses.data.datalist import CaseList, LabelledCase
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.fact_cache import FactCache, state_of
from monai_extra_losses.data.folder_files import first_of
from monai_extra_losses.data.ignore_label import hint_to_ignore
from monai_extra_losses.data.intensities import BlankedIntensities, blanked_intensities, deviation, too_large
from monai_extra_losses.data.label_ids import MOST_IDS, LabelCount, count_ids, listed_ids, refusals_of, remarks_of
from monai_extra_losses.data.nifti import TOLERANCE, NiftiFile, corner_distance_mm, open_nifti
from monai_extra_losses.data.remarks import orientation_hint, remark_sentences
from monai_extra_losses.data.threads import in_threads

_logger = logging.getLogger(__name__)


_SHOWN = 5  # label values or files named in one sentence


_Kind = Literal["image", "label"]


@dataclass(frozen=True)
class ChannelIntensity:
    """Intensities of one channel of one image, in the unit of the file (its scale factor applied)."""

    min: float
    max: float
    mean: float


@dataclass(frozen=True)
class CaseSummary:
    """What the files of one case hold.

    Args:
        name: the case's name.
        shape: voxels along the three axes.
        affine: from voxels to millimetres, 4 rows.
        intensity: one entry per channel.
        voxels: label value -> number of voxels; empty for a case without label.
        ignored: voxels of the data set's ignore label, which `voxels` leaves out.
        annotated: as of `LabelledCase`.
    """

    name: str
    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    intensity: tuple[ChannelIntensity, ...]
    voxels: dict[int, int]
    ignored: int = 0
    annotated: tuple[int, ...] | None = None

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres along the three axes."""
        return _spacing(self.affine)

    def annotates(self, *values: int) -> bool:
        """As of `LabelledCase`."""
        return annotates(self.annotated, values)


@dataclass(frozen=True)
class CaseSummaries:
    """What the files of a data set without problems hold.

    Args:
        cases: one summary per labelled case, in the order of the case list.
        unlabelled: the same for its unlabelled cases.
        labels: value -> name; as declared, else the values found, named `background`, `label_1`, `label_2`, ...
        channels: names; as declared, else `channel_0`, `channel_1`, ...
        remarks: sentences on what is assumed of files, and on images that outliers blank; logged as warnings.
    """

    cases: tuple[CaseSummary, ...]
    unlabelled: tuple[CaseSummary, ...]
    labels: dict[int, str]
    channels: tuple[str, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _FileScan:
    """What one file holds: facts alone, so that a cached scan stays true when the declaration changes."""

    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    remarks: tuple[str, ...] = ()
    intensity: tuple[ChannelIntensity, ...] = ()
    not_finite: int = 0  # voxels of an image
    blanked: tuple[BlankedIntensities | None, ...] = ()  # per channel
    label: LabelCount | None = None

    @property
    def spacing(self) -> tuple[float, ...]:
        return _spacing(self.affine)

    @property
    def voxels(self) -> tuple[tuple[int, int], ...]:
        """Label value, voxels."""
        return () if self.label is None else tuple(self.label.voxels.items())


def check_cases(
    case_list: CaseList,
    *,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> CaseSummaries:
    """Read every file of a data set to its end and check that the files fit together.

    A file must be there, whole, and a NIfTI volume of three dimensions (an image may have channels as a fourth), as
    `open_nifti` says. The images and the label of a case must have one shape and one grid, to `TOLERANCE`. Label values
    must be declared whole numbers, of classes that the case annotates; where none are declared, 0 to n without a gap.
    No label may be ignored in every voxel. No intensity may be NaN, infinite or beyond float32 and no channel constant,
    and every case needs the same number of channels, the declared one.

    Args:
        case_list: the cases, as `read_case_list` gives them.
        num_workers: threads that read, each one volume at a time; default: one per core, at most 8.
        cache_dir: where results are kept, by path, size and time of change of a file, so that a file is read once;
            default: `$XDG_CACHE_HOME/monai_extra_losses`, else `~/.cache/monai_extra_losses`.
        progress: show a bar while files are read (on a terminal only).

    Raises:
        DatasetError: all problems of all files, each with the file's name.
    """
    everything = (*case_list.cases, *case_list.unlabelled)
    kinds: dict[Path, _Kind] = {}
    for case in everything:
        kinds |= dict.fromkeys(case.image, "image")
        if case.label is not None:
            kinds[case.label] = "label"
    scans, unusable = _scan_files(case_list.folder, kinds, num_workers, cache_dir, progress)

    channels = case_list.channels or _found_channels(everything, scans)
    problems = [
        sentence
        for case in everything
        for sentence in (
            *_image_problems(case, scans, unusable, len(channels)),
            *_label_problems(case, scans, unusable, case_list),
        )
    ]
    if problems:
        raise DatasetError(problems)
    remarks = (*remark_sentences({file: scan.remarks for file, scan in scans.items()}), *_blanked_images(scans))
    for remark in remarks:
        _logger.warning("%s", remark)
    summaries = tuple(_summary(case, scans, case_list.ignore_label) for case in everything)
    labelled, unlabelled = summaries[: len(case_list.cases)], summaries[len(case_list.cases) :]
    return CaseSummaries(labelled, unlabelled, _found_labels(case_list, labelled), channels, remarks)


def _blanked_images(scans: Mapping[Path, _FileScan]) -> Iterable[str]:
    found = [
        f"{file}{f' of channel {channel}' if len(scan.blanked) > 1 else ''}: {blanked}; replace these, or let "
        "--hu_window clip them in training."
        for file, scan in scans.items()
        for channel, blanked in enumerate(scan.blanked)
        if blanked is not None
    ]
    yield from found[:_SHOWN]
    if len(found) > _SHOWN:
        yield f"{len(found) - _SHOWN} more images become one grey when they are normalised."


def _image_problems(
    case: LabelledCase, scans: Mapping[Path, _FileScan], unusable: Mapping[Path, str], num_channels: int
) -> Iterable[str]:
    for file in case.image:
        if file in unusable:
            yield unusable[file]
            continue
        scan = scans[file]
        if scan.not_finite:
            yield (
                f"{file}: expected finite intensities, got {scan.not_finite} voxels of NaN or infinity; "
                "replace them or leave the case out."
            )
        yield from _intensity_problems(file, scan)
        if case.image[0] in scans:
            yield from _grid_problems(file, case.image[0], scans)
    if all(file in scans for file in case.image):
        found = sum(len(scans[file].intensity) for file in case.image)
        if found != num_channels:
            yield (
                f"{case.image[0]}: expected {num_channels} channels, as dataset.json or else the first case says, "
                f"got {found}; every case needs the same channels."
            )


def _intensity_problems(file: Path, scan: _FileScan) -> Iterable[str]:
    for channel, intensity in enumerate(scan.intensity):
        where = f" of channel {channel}" if len(scan.intensity) > 1 else ""
        if intensity.min == intensity.max:
            yield f"{file}: expected an image, got the constant {intensity.min:g} in every voxel{where}."
        elif not scan.not_finite and (sentence := too_large(intensity.min, intensity.max)):
            yield f"{file}: {sentence}"
        elif np.float32(intensity.min) == np.float32(intensity.max):
            yield (
                f"{file}: expected an image, got intensities from {intensity.min:.15g} to {intensity.max:.15g}"
                f"{where}, which are one number in float32; subtract an offset."
            )


def _label_problems(
    case: LabelledCase, scans: Mapping[Path, _FileScan], unusable: Mapping[Path, str], case_list: CaseList
) -> Iterable[str]:
    if case.label is None:
        return
    if case.label in unusable:
        yield unusable[case.label]
        return
    scan = scans[case.label]
    if scan.label is not None:
        yield from (f"{case.label}: {sentence}" for sentence in refusals_of(scan.label))
    declared = case_list.labels
    counted = [(value, count) for value, count in scan.voxels if value != case_list.ignore_label]
    if scan.voxels and not counted:
        yield (
            f"{case.label}: expected voxels with annotation, got the ignore label {case_list.ignore_label} in every "
            "voxel; leave the case out."
        )
    foreign = {value: count for value, count in counted if (value not in declared if declared else value < 0)}
    if foreign:
        shown = first_of([f"{value} ({count} voxels)" for value, count in foreign.items()], _SHOWN)
        names = first_of([f"{value} {name}" for value, name in declared.items()], _SHOWN)
        hint = hint_to_ignore(foreign, case_list.folder / "dataset.json")
        yield (
            f"{case.label}: expected the declared label values ({names}), got {shown}; "
            f"correct the file, or `labels` in {case_list.folder / 'dataset.json'}{hint}."
            if declared
            else f"{case.label}: expected label values of 0 and above, got {shown}; correct the file{hint}."
        )
    place = f"its `annotated` in {case_list.folder / 'dataset.json'}"
    yield from contradiction(case.label, dict(counted), case.annotated, declared, place)
    if case.image[0] in scans:
        yield from _grid_problems(case.label, case.image[0], scans)


def _grid_problems(file: Path, reference: Path, scans: Mapping[Path, _FileScan]) -> Iterable[str]:
    scan, expected = scans[file], scans[reference]
    hint = orientation_hint(file, reference, {file: scan.remarks, reference: expected.remarks})
    if scan.shape != expected.shape:
        yield f"{file}: expected shape {expected.shape} of {reference}, got {scan.shape}; resample it onto that grid."
        return
    distance = corner_distance_mm(scan.shape, scan.affine, expected.affine)
    allowed = TOLERANCE * min(expected.spacing)
    if distance > allowed:
        yield (
            f"{file}: expected the affine of {reference} (corners within {allowed:.3g} mm, {TOLERANCE:.0%} of the "
            f"smallest spacing), got corners {distance:.3g} mm away; resample it onto that grid.{hint}"
        )


def _spacing(affine: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    return tuple(float(length) for length in np.linalg.norm(np.array(affine)[:3, :3], axis=0))


def _summary(case: LabelledCase, scans: Mapping[Path, _FileScan], ignore_label: int | None) -> CaseSummary:
    first = scans[case.image[0]]
    voxels = dict(scans[case.label].voxels) if case.label is not None else {}
    ignored = 0 if ignore_label is None else voxels.pop(ignore_label, 0)
    return CaseSummary(
        name=case.name,
        shape=first.shape,
        affine=first.affine,
        intensity=tuple(entry for file in case.image for entry in scans[file].intensity),
        voxels=voxels,
        ignored=ignored,
        annotated=case.annotated,
    )


def _found_channels(cases: Iterable[LabelledCase], scans: Mapping[Path, _FileScan]) -> tuple[str, ...]:
    """Names for the channels of the first case that could be read."""
    readable = next((case.image for case in cases if all(file in scans for file in case.image)), ())
    return tuple(f"channel_{i}" for i in range(sum(len(scans[file].intensity) for file in readable)))


def _found_labels(case_list: CaseList, labelled: Iterable[CaseSummary]) -> dict[int, str]:
    voxels: Counter[int] = Counter()
    for summary in labelled:
        voxels.update(summary.voxels)
    found = sorted(value for value in voxels if voxels[value])
    if case_list.labels:
        missing = [f"{value} ({name})" for value, name in case_list.labels.items() if value not in found]
        if missing:
            _logger.warning(
                "%s: no case has a voxel of the declared label%s %s.",
                case_list.folder,
                "s" if len(missing) > 1 else "",
                first_of(missing, _SHOWN),
            )
        return dict(case_list.labels)
    names = {value: f"label_{value}" if value else "background" for value in sorted({0, *found})}
    if found == [0]:
        raise DatasetError(_all_empty(case_list.folder, len(case_list.cases)))
    if found != list(range(len(found))):
        declaration = json.dumps({"labels": {str(value): name for value, name in names.items()}})
        raise DatasetError(
            f"{case_list.folder}: expected label values 0 to n without a gap, got {listed_ids(found)}; "
            + (
                f"write a dataset.json that names them: {declaration}"
                f"{hint_to_ignore(found, case_list.folder / 'dataset.json')}"
                if len(found) <= MOST_IDS
                else "are these label volumes?"
            )
        )
    return names


def refuse_empty_labels(folder: Path, summaries: CaseSummaries) -> None:
    """Refuse a data set of which nothing can be learned, because no label has a voxel of any class.

    Raises:
        DatasetError: all labels are empty.
    """
    if not any(value and count for case in summaries.cases for value, count in case.voxels.items()):
        raise DatasetError(_all_empty(folder, len(summaries.cases)))


def _all_empty(folder: Path, number: int) -> str:
    return (
        f"{folder}: expected a structure in some label, got the background 0 in every voxel of all {number} labels; "
        "are these the labels, and do they hold label values and not grey values below 1?"
    )


def _scan_files(
    folder: Path,
    kinds: Mapping[Path, _Kind],
    num_workers: int | None,
    cache_dir: str | Path | None,
    progress: bool,
) -> tuple[dict[Path, _FileScan], dict[Path, str]]:
    """Scan each file, from the cache where it has not changed; or say why it cannot be used."""
    cache = FactCache(folder, cache_dir)
    scans: dict[Path, _FileScan] = {}
    unusable: dict[Path, str] = {}
    changed: dict[Path, list[Any]] = {}
    for file, kind in kinds.items():
        try:
            key = [*state_of(file), kind]
        except OSError as error:
            unusable[file] = (
                f"{file}: expected a file, got an error ({error.strerror}); is the list of cases up to date?"
            )
            continue
        kept = cache.take("files", file, key, _scan_from_json)
        if kept is None:
            changed[file] = key
        else:
            scans[file] = kept

    def attempt(file: Path) -> _FileScan | str:
        try:
            return _scan_file(file, kinds[file])
        except DatasetError as error:
            return str(error)
        except MemoryError:
            return f"{file}: expected a volume that fits into memory, got a larger one."

    for file, result in in_threads(attempt, changed, num_workers, "checking files" if progress else None):
        if isinstance(result, str):
            unusable[file] = result
        else:
            scans[file] = result
            cache.keep("files", file, changed[file], asdict(result))
    if changed:
        cache.write()
    return scans, unusable


def _scan_file(path: Path, kind: _Kind) -> _FileScan:
    file, data = read_voxels(path, kind)
    shape = file.shape[:3]
    rows = tuple(tuple(float(entry) for entry in row) for row in file.affine)
    if kind == "image":
        return _FileScan(shape, rows, file.remarks, *_measured(file, data))
    count = count_ids(data, file.scaled if file.is_scaled else None)
    return _FileScan(shape, rows, (*file.remarks, *remarks_of(count)), label=count)


def read_voxels(path: Path, kind: _Kind) -> tuple[NiftiFile, NDArray[Any]]:
    """A NIfTI file, and its voxels (X, Y, Z, channels) as stored, once it is read to its end.

    Raises:
        DatasetError: as `open_nifti`; a label of four dimensions; a file that is cut off or damaged.
    """
    file = open_nifti(path)
    if kind == "label" and len(file.shape) > 3:
        raise DatasetError(
            f"{path}: expected a label value per voxel in a volume of three dimensions, got shape {file.shape}; where "
            "it has a layer per structure (one-hot), `monai-extra-losses prepare` makes one label of layers that do "
            "not overlap."
        )
    return file, file.read_stored().reshape(*file.shape[:3], -1, order="F")


def _measured(
    file: NiftiFile, data: NDArray[Any]
) -> tuple[tuple[ChannelIntensity, ...], int, tuple[BlankedIntensities | None, ...]]:
    """Intensities per channel, the number of voxels of NaN or infinity, and what outliers blank in each channel."""
    slope, intercept = file.slope, file.intercept
    not_finite = int(np.count_nonzero(~np.isfinite(data))) if data.dtype.kind == "f" else 0
    channels, blanked = [], []
    with np.errstate(invalid="ignore", over="ignore"):
        for channel in np.moveaxis(data, -1, 0):
            low, high = sorted(float(end) * slope + intercept for end in (channel.min(), channel.max()))
            mean = float(channel.mean(dtype=np.float64))
            channels.append(ChannelIntensity(low, high, mean * slope + intercept))
            found = None if not_finite else blanked_intensities(channel, deviation(channel, mean))
            if found is not None:
                first, last = sorted(end * slope + intercept for end in (found.low, found.high))
                found = BlankedIntensities(first, last, found.share, found.outlier * slope + intercept)
            blanked.append(found)
    return tuple(channels), not_finite, tuple(blanked)


def _scan_from_json(stored: Mapping[str, Any]) -> _FileScan:
    label = stored["label"]
    voxels = {} if label is None else {int(value): count for value, count in label["voxels"].items()}
    return _FileScan(
        shape=tuple(stored["shape"]),
        affine=tuple(map(tuple, stored["affine"])),
        remarks=tuple(stored["remarks"]),
        intensity=tuple(ChannelIntensity(**entry) for entry in stored["intensity"]),
        not_finite=stored["not_finite"],
        blanked=tuple(entry and BlankedIntensities(**entry) for entry in stored["blanked"]),
        label=label and LabelCount(**{**label, "voxels": voxels}),
    )
