"""Read every file of a data set before training time is spent on it, and say everything that is wrong at once."""

import gzip
import logging
import os
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from monai_extra_losses.data.cache import FactCache, state_of
from monai_extra_losses.data.datalist import CaseList, LabelledCase
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.ignore_label import hint_to_ignore

TOLERANCE = 0.05
"""Two grids are one when no corner of the volume moves by more than this fraction of the smallest voxel spacing."""

_logger = logging.getLogger(__name__)
_SLAB = 1 << 22  # label voxels counted at a time
_SHOWN = 5  # label values named in one sentence

_Kind = Literal["image", "label"]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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
    """

    name: str
    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    intensity: tuple[ChannelIntensity, ...]
    voxels: dict[int, int]
    ignored: int = 0

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres along the three axes."""
        return _spacing(self.affine)


@dataclass(frozen=True)
class CaseSummaries:
    """What the files of a data set without problems hold.

    Args:
        cases: one summary per labelled case, in the order of the case list.
        unlabelled: the same for its unlabelled cases.
        labels: value -> name; as declared, else the values found, named `background`, `label_1`, `label_2`, ...
        channels: names; as declared, else `channel_0`, `channel_1`, ...
    """

    cases: tuple[CaseSummary, ...]
    unlabelled: tuple[CaseSummary, ...]
    labels: dict[int, str]
    channels: tuple[str, ...]


@dataclass(frozen=True)
class _FileScan:
    """What one file holds: facts alone, so that a cached scan stays true when the declaration changes."""

    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    intensity: tuple[ChannelIntensity, ...] = ()
    not_finite: int = 0  # voxels of an image
    voxels: tuple[tuple[int, int], ...] = ()  # label value, voxels
    not_whole: int = 0  # voxels of a label that hold no whole number

    @property
    def spacing(self) -> tuple[float, ...]:
        return _spacing(self.affine)


@dataclass(frozen=True)
class StoredVoxels:
    """The voxels of one file.

    Args:
        data: (X, Y, Z, channels) as stored.
        slope, intercept: intensities are `data * slope + intercept`.
        affine: from voxels to millimetres.
    """

    data: NDArray[Any]
    slope: float
    intercept: float
    affine: NDArray[np.float64]


def check_cases(
    case_list: CaseList,
    *,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> CaseSummaries:
    """Read every file of a data set to its end and check that the files fit together.

    A file must be there, whole, and a NIfTI volume of three dimensions (an image may have channels as a fourth). The
    images and the label of a case must have one shape and one grid, to `TOLERANCE`. Label values must be declared whole
    numbers; where none are declared, 0 to n without a gap. No label may be ignored in every voxel. No intensity may be
    NaN or infinite and no channel constant, and every case needs the same number of channels, the declared one.

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
    summaries = tuple(_summary(case, scans, case_list.ignore_label) for case in everything)
    labelled, unlabelled = summaries[: len(case_list.cases)], summaries[len(case_list.cases) :]
    return CaseSummaries(labelled, unlabelled, _found_labels(case_list, labelled), channels)


def _image_problems(
    case: LabelledCase, scans: Mapping[Path, _FileScan], unusable: Mapping[Path, str], num_channels: int
) -> Iterable[str]:
    for file in case.image:
        if file in unusable:
            yield f"{file}: {unusable[file]}"
            continue
        scan = scans[file]
        if scan.not_finite:
            yield (
                f"{file}: expected finite intensities, got {scan.not_finite} voxels of NaN or infinity; "
                "replace them or leave the case out."
            )
        for channel, intensity in enumerate(scan.intensity):
            if intensity.min == intensity.max:
                where = f" of channel {channel}" if len(scan.intensity) > 1 else ""
                yield f"{file}: expected an image, got the constant {intensity.min:g} in every voxel{where}."
        if case.image[0] in scans:
            yield from _grid_problems(file, case.image[0], scans)
    if all(file in scans for file in case.image):
        found = sum(len(scans[file].intensity) for file in case.image)
        if found != num_channels:
            yield (
                f"{case.image[0]}: expected {num_channels} channels, as dataset.json or else the first case says, "
                f"got {found}; every case needs the same channels."
            )


def _label_problems(
    case: LabelledCase, scans: Mapping[Path, _FileScan], unusable: Mapping[Path, str], case_list: CaseList
) -> Iterable[str]:
    if case.label is None:
        return
    if case.label in unusable:
        yield f"{case.label}: {unusable[case.label]}"
        return
    scan = scans[case.label]
    if scan.not_whole:
        yield (
            f"{case.label}: expected whole numbers as label values, got {scan.not_whole} voxels with others; "
            "resample labels with nearest neighbours."
        )
    declared = case_list.labels
    annotated = [(value, count) for value, count in scan.voxels if value != case_list.ignore_label]
    if scan.voxels and not annotated:
        yield (
            f"{case.label}: expected voxels with annotation, got the ignore label {case_list.ignore_label} in every "
            "voxel; leave the case out."
        )
    foreign = {value: count for value, count in annotated if (value not in declared if declared else value < 0)}
    if foreign:
        shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(foreign.items())[:_SHOWN])
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        names = ", ".join(f"{value} {name}" for value, name in declared.items())
        hint = hint_to_ignore(foreign, case_list.folder / "dataset.json")
        yield (
            f"{case.label}: expected the declared label values ({names}), got {shown}{more}; "
            f"correct the file, or `labels` in {case_list.folder / 'dataset.json'}{hint}."
            if declared
            else f"{case.label}: expected label values of 0 and above, got {shown}{more}; correct the file{hint}."
        )
    if case.image[0] in scans:
        yield from _grid_problems(case.label, case.image[0], scans)


def _grid_problems(file: Path, reference: Path, scans: Mapping[Path, _FileScan]) -> Iterable[str]:
    scan, expected = scans[file], scans[reference]
    if scan.shape != expected.shape:
        yield f"{file}: expected shape {expected.shape} of {reference}, got {scan.shape}; resample it onto that grid."
        return
    distance = corner_distance_mm(scan.shape, scan.affine, expected.affine)
    allowed = TOLERANCE * min(expected.spacing)
    if distance > allowed:
        yield (
            f"{file}: expected the affine of {reference} (corners within {allowed:.3g} mm, {TOLERANCE:.0%} of the "
            f"smallest spacing), got corners {distance:.3g} mm away; resample it onto that grid."
        )


def corner_distance_mm(shape: Sequence[int], affine: ArrayLike, other: ArrayLike) -> float:
    """How far the corner voxels of a volume lie apart, at most, by two affines."""
    corners = np.array([(*corner, 1.0) for corner in product(*[(0, n - 1) for n in shape])])
    difference = corners @ (np.asarray(affine) - np.asarray(other)).T
    return float(np.linalg.norm(difference[:, :3], axis=1).max())


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
        for value, name in case_list.labels.items():
            if value not in found:
                _logger.warning("%s: no case has a voxel of the declared label %d (%s).", case_list.folder, value, name)
        return dict(case_list.labels)
    if len(found) < 2 or found != list(range(len(found))):
        raise DatasetError(
            f"{case_list.folder}: expected label values 0 to n without a gap, got {', '.join(map(str, found))}; "
            'write a dataset.json that names them: {"labels": {"0": "background", "1": NAME, ...}}'
            f"{hint_to_ignore(found, case_list.folder / 'dataset.json')}."
        )
    return {value: f"label_{value}" if value else "background" for value in found}


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
            unusable[file] = f"expected a file, got an error ({error.strerror}); is the list of cases up to date?"
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

    for file, result in in_threads(attempt, changed, num_workers, "checking files" if progress else None):
        if isinstance(result, str):
            unusable[file] = result
        else:
            scans[file] = result
            cache.keep("files", file, changed[file], asdict(result))
    if changed:
        cache.write()
    return scans, unusable


def in_threads(
    work: Callable[[_Item], _Result], items: Collection[_Item], num_workers: int | None, doing: str | None
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with what `work` makes of it, in order.

    Args:
        work: one item's.
        items: all of them.
        num_workers: threads; default: one per core, at most 8.
        doing: what a progress bar says (on a terminal only); None: no bar.
    """
    if not items:
        return
    pool = ThreadPoolExecutor(num_workers or min(os.cpu_count() or 1, 8))
    try:
        results = pool.map(work, items)
        bar = tqdm(results, total=len(items), desc=doing, disable=True if doing is None else None)
        yield from zip(items, bar, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted check must not read the rest first


def _scan_file(file: Path, kind: _Kind) -> _FileScan:
    volume = read_voxels(file, kind)
    data, slope, intercept = volume.data, volume.slope, volume.intercept
    shape = tuple(int(n) for n in data.shape[:3])
    rows = tuple(tuple(float(entry) for entry in row) for row in volume.affine)
    if kind == "image":
        return _FileScan(shape, rows, *_count_intensity(data, slope, intercept))
    voxels, not_whole = _count_labels(data, slope, intercept)
    return _FileScan(shape, rows, voxels=voxels, not_whole=not_whole)


def read_voxels(file: Path, kind: _Kind) -> StoredVoxels:
    """The voxels of a NIfTI file, read to its end.

    Raises:
        DatasetError: what is wrong with the file, without its name.
    """
    try:
        content = file.read_bytes()
        # The whole stream, and not the voxels alone, so that its checksum is verified.
        content = gzip.decompress(content) if file.name.endswith(".gz") else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"expected a whole gzip file, got a damaged one ({error}); copy it again.") from error
    except OSError as error:
        raise DatasetError(f"expected a readable file, got an error ({error.strerror}).") from error
    if not content:
        raise DatasetError("expected a NIfTI file, got an empty one; copy it again.")
    if content[344:347] == b"n+1":
        file_class = nib.Nifti1Image
    elif content[4:7] == b"n+2":
        file_class = nib.Nifti2Image
    else:
        raise DatasetError("expected a NIfTI file (.nii or .nii.gz), got something else; convert it.")
    try:
        loaded = file_class.from_bytes(content)
        proxy: Any = loaded.dataobj
        data = np.asarray(proxy.get_unscaled())
    except (OSError, ValueError, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        reason = str(error).partition("\n")[0]
        raise DatasetError(f"expected a whole NIfTI file, got a damaged one ({reason}); copy it again.") from error
    if data.dtype.kind not in "iufb":
        raise DatasetError(f"expected real numbers, got voxels of type {data.dtype}; convert them.")
    if data.ndim == 3 or (data.ndim == 4 and (kind == "image" or data.shape[3] == 1)):
        data = data.reshape(*data.shape[:3], -1, order="F")
    else:
        raise DatasetError(f"expected a volume of three dimensions, got shape {data.shape}; split or convert it.")
    affine = loaded.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DatasetError(f"expected an affine that can be inverted, got {affine.tolist()}; correct the header.")
    return StoredVoxels(data, float(proxy.slope), float(proxy.inter), affine)


def _count_intensity(data: NDArray[Any], slope: float, intercept: float) -> tuple[tuple[ChannelIntensity, ...], int]:
    """Intensities per channel, and the number of voxels of NaN or infinity."""
    channels = []
    with np.errstate(invalid="ignore"):
        for channel in np.moveaxis(data, -1, 0):
            low, high = sorted(float(end) * slope + intercept for end in (channel.min(), channel.max()))
            mean = float(channel.mean(dtype=np.float64)) * slope + intercept
            channels.append(ChannelIntensity(low, high, mean))
    return tuple(channels), int(np.count_nonzero(~np.isfinite(data))) if data.dtype.kind == "f" else 0


def _count_labels(data: NDArray[Any], slope: float, intercept: float) -> tuple[tuple[tuple[int, int], ...], int]:
    """Voxels per whole value, and the number of the other voxels."""
    counts: Counter[int] = Counter()
    not_whole = 0
    flat = data.ravel(order="K")
    for start in range(0, flat.size, _SLAB):
        slab = flat[start : start + _SLAB]
        if (slope, intercept) != (1, 0):
            slab = slab * slope + intercept
        if slab.dtype.kind == "f":
            whole = slab[(np.abs(slab) < 1 << 31) & (slab == np.rint(slab))]  # neither NaN nor infinity is below
            not_whole += slab.size - whole.size
            slab = whole
        slab = slab.astype(np.int64)
        if not slab.size:
            continue
        low, high = int(slab.min()), int(slab.max())
        if high - low < 1 << 16:  # counting takes a twentieth of the time of sorting
            tally = np.bincount(slab - low)
            counts.update({int(i) + low: int(tally[i]) for i in np.flatnonzero(tally)})
        else:
            values, tally = np.unique(slab, return_counts=True)
            counts.update(dict(zip(values.tolist(), tally.tolist(), strict=True)))
    return tuple(sorted(counts.items())), not_whole


def _scan_from_json(stored: Mapping[str, Any]) -> _FileScan:
    return _FileScan(
        shape=tuple(stored["shape"]),
        affine=tuple(map(tuple, stored["affine"])),
        intensity=tuple(ChannelIntensity(**entry) for entry in stored["intensity"]),
        not_finite=stored["not_finite"],
        voxels=tuple((value, count) for value, count in stored["voxels"]),
        not_whole=stored["not_whole"],
    )
