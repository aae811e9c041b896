"""The volumes to segment: a file, a folder or a DICOM series, of any format, and read as training reads NIfTI."""

import hashlib
import json
import logging
import os
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel
import numpy as np
import SimpleITK as sitk
from monai.data import NibabelReader
from numpy.typing import NDArray

from monai_extra_losses.data.dicom import is_dicom
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import composed, named
from monai_extra_losses.data.intensities import blanked_channels, intensity_problem
from monai_extra_losses.data.label_ids import count_ids, label_ids_of, refusals_of
from monai_extra_losses.data.layouts import CASE, CHANNEL_FILE, channels_of_cases, patterns_of
from monai_extra_losses.data.nifti import is_nifti, is_one_grid, open_nifti, regular_size
from monai_extra_losses.data.remarks import orientation_hint
from monai_extra_losses.data.text_headers import data_files
from monai_extra_losses.data.volume_source import VOLUME_SUFFIXES
from monai_extra_losses.data.volumes import open_volume

_logger = logging.getLogger(__name__)


_FOR_TORCH = {"uint16": np.int32, "uint32": np.int64}  # which has hardly an operation for these


_Files = TypeVar("_Files")
_Entries = list[tuple[int | None, Path]]  # channel, or None for all of a case, and file


@dataclass(frozen=True)
class FoundInputs:
    """What `find_inputs` finds.

    Args:
        cases: name -> its files or DICOM folders, one per channel or one with all channels; sorted by name.
        passed_over: what else is there, a sentence each.
    """

    cases: dict[str, tuple[Path, ...]]
    passed_over: tuple[str, ...] = ()


def find_inputs(
    source: str | Path,
    in_channels: int,
    *,
    channel_files: bool | None = None,
    leave_out: Sequence[str] = (),
    results: Path | None = None,
) -> FoundInputs:
    """The cases to segment.

    Args:
        source: a file with one of `VOLUME_SUFFIXES`; the folder of a DICOM series; a folder of such files and folders,
            or, where no file is in it, of folders that hold one file or the channels of a case each; or patterns, as
            `layouts.patterns_of` says, one per channel or one for all. Hidden files are left out.
        in_channels: of the network. NAME_0000, NAME_0001, ... in a folder are the channels of NAME.
        channel_files: whether such names are channels at all, or else cases; None: with one channel, a NAME_0000
            without NAME_0001 is a case, else they are channels.
        leave_out: endings of the names that are segmentations of other volumes in the folder and none to segment, such
            as `_seg` where the results go into the folder itself; `_seg.dcm` leaves out files of that format alone.
        results: a folder that holds no case.

    Raises:
        DatasetError: no such file or folder, nothing to segment in it, or two volumes of one name.
    """
    if patterns := patterns_of(source):
        return FoundInputs(_without_results(_found_by_patterns(patterns), leave_out))
    source = Path(source)
    if not source.exists():
        raise DatasetError(f"Expected --input to be a volume or a folder of volumes, got {source}, which is not there.")
    if not source.is_dir():
        regular_size(source)  # refuses named pipes and devices
        return FoundInputs({_name(source): (source,)})
    files_left_out = tuple(ending for ending in leave_out if "." in ending)
    if _is_series(source, files_left_out):
        return FoundInputs({composed(source.resolve().name): (source,)})
    paths = [path for path in sorted(source.iterdir()) if not path.name.startswith(".")]
    paths = [path for path in paths if not path.name.endswith(files_left_out)]
    folders = [path for path in paths if path.is_dir() and (results is None or path.resolve() != results.resolve())]
    series = [path for path in folders if _holds_dicom(path)]
    volumes = [path for path in paths if not path.is_dir() and _suffix(path)]
    names = {_name(path) for path in (*volumes, *series)}
    found: dict[str, _Entries] = {}
    for path in (path for path in paths if path in volumes or path in series):
        case, channel = _case_and_channel(_name(path), names, in_channels, channel_files)
        found.setdefault(case, []).append((channel, path))
    found = _without_results(found, leave_out)
    of_folders = {path: () if volumes else _case_in(path) for path in folders if path not in series}
    for path, files in of_folders.items():
        if files:
            entries = [(i if len(files) > 1 else None, file) for i, file in enumerate(files)]
            found.setdefault(composed(path.name), []).extend(entries)
    passed_over = tuple(_left_out(source, paths, series, of_folders))
    if not found:
        hint = f"; passed over: {' '.join(passed_over)}" if passed_over else "."
        raise DatasetError(
            f"Expected --input to hold files {', '.join(VOLUME_SUFFIXES)} or a folder per DICOM series or case, "
            f"got none in {source}{hint}"
        )
    for name, entries in found.items():
        _refuse_two_of_a_name(name, entries, in_channels, source)
    return FoundInputs({name: tuple(path for _, path in found[name]) for name in sorted(found)}, passed_over)


def _case_and_channel(
    name: str, names: Collection[str], in_channels: int, channel_files: bool | None
) -> tuple[str, int | None]:
    """The case that a file is of, and which channel; None for a file with all channels."""
    channel = CHANNEL_FILE.fullmatch(name) if channel_files is not False else None
    if channel is None:
        return name, None
    case = channel["case"]
    if in_channels == 1 and not {f"{case}_0000", f"{case}_0001"} <= set(names):
        return name, None
    return case, int(channel["channel"])


def _refuse_two_of_a_name(name: str, entries: _Entries, in_channels: int, source: Path) -> None:
    found_channels = [channel for channel, _ in entries]
    if in_channels == 1 and None not in found_channels:
        return  # `refuse_unlike` says of this case alone that it has too many
    if found_channels not in ([None], list(range(in_channels))):
        channels = f" or channels {name}_0000 to {name}_{in_channels - 1:04d}" if in_channels > 1 else ""
        raise DatasetError(
            f"Expected one volume named {name}{channels}, got {', '.join(path.name for _, path in entries)} in "
            f"{source}; their segmentations would have one name."
        )


def _without_results(found: dict[str, _Files], endings: Sequence[str]) -> dict[str, _Files]:
    for ending in endings:
        found = {name: of for name, of in found.items() if name.removesuffix(ending) not in found.keys() - {name}}
    return found


def _found_by_patterns(patterns: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    cases, problems = channels_of_cases(patterns)
    if problems:
        raise DatasetError(problems)
    if not cases:
        raise DatasetError(f"Expected --input to find volumes by {' and '.join(patterns)}, got none; correct it.")
    return cases


def _case_in(folder: Path) -> tuple[Path, ...]:
    """The one volume of a folder, or the channels NAME_0000, NAME_0001, ... of one; empty where there are others."""
    files = _volumes_in(folder)
    bases = {(match["case"], int(match["channel"])) for file in files if (match := CHANNEL_FILE.fullmatch(_name(file)))}
    are_channels = len({base for base, _ in bases}) == 1 and sorted(n for _, n in bases) == list(range(len(files)))
    return tuple(files) if len(files) == 1 or are_channels else ()


def _left_out(
    source: Path, paths: Sequence[Path], series: Sequence[Path], of_folders: Mapping[Path, Sequence[Path]]
) -> Iterable[str]:
    """What a folder holds and no case has."""
    if others := [path.name for path in paths if not path.is_dir() and not _suffix(path)]:
        yield f"{source}: {_count(others, 'file')} of other formats ({named(others)})."
    held = {path: _volumes_in(path) for path in of_folders if not of_folders[path]}
    if with_volumes := [path.name for path, files in held.items() if files]:
        yield (
            f"{source}: {_count(with_volumes, 'folder')} of volumes that are no case each ({named(with_volumes)}); "
            f"give the folder as --input, or a pattern such as {shlex.quote(f'{source}/{CASE}/image.nii.gz')}."
        )
    if without := [path.name for path, files in held.items() if not files]:
        yield f"{source}: {_count(without, 'folder')} without a volume ({named(without)})."
    if beside := [file.name for path in series for file in _volumes_in(path)]:
        yield f"{source}: {_count(beside, 'volume')} beside the DICOM series of a case ({named(beside)})."


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) > 1)}"


def _volumes_in(folder: Path) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        return [path for path in paths if path.is_file() and _suffix(path)]
    except PermissionError:
        return []


def refuse_unlike(paths: Sequence[Path], in_channels: int, series: str | None = None) -> dict[Path, tuple[str, ...]]:
    """Read the headers of a case.

    Args:
        paths: of its channels.
        in_channels: of the network.
        series: picks a series of a DICOM folder, as `open_volume` says.

    Returns:
        Path -> what is assumed where its header says nothing or two things, keys of `remarks.REMARKS`.

    Raises:
        DatasetError: a volume that cannot be read or has not three dimensions, or another number of channels.
    """
    count = 0
    remarks: dict[Path, tuple[str, ...]] = {}
    for path in paths:
        if is_nifti(path) and not path.is_dir():
            file = open_nifti(path)
            remarks[path] = file.remarks
            count += file.shape[3] if len(file.shape) == 4 else 1
        else:
            if path.is_file() and is_dicom(path):
                raise DatasetError(
                    f"{path}: expected the folder of a DICOM series, got one of its files; give the folder."
                )
            remarks[path] = open_volume(path, series).remarks
            count += 1
    if count != in_channels:
        hint = (
            "; NAME_0000, NAME_0001, ... are channels of one case, or with --channel_files False cases of their own"
            if len(paths) > 1
            else ""
        )
        raise DatasetError(f"{paths[-1]}: expected {in_channels} channel(s) as in the run, got {count}{hint}.")
    return remarks


def input_stamp(paths: Sequence[Path]) -> dict[str, list[int | str]]:
    """What tells a case's files from others of their names: of each channel the name, bytes and time of change.

    A DICOM folder has the checksum of such a list of its files; the voxels beside a header (.mhd, .nhdr) count too.
    """
    stamps: dict[str, list[int | str]] = {}
    names = [path.name for path in paths]
    for number, path in enumerate(paths):
        place = f"{number}/" if names.count(path.name) > 1 else ""  # channels of one name in folders of their own
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            listed = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            stamps[place + path.name] = [len(files), hashlib.sha256(json.dumps(listed).encode()).hexdigest()]
        else:
            for file in (path, *data_files(path)):
                status = file.stat() if file.exists() else file.lstat()  # a link to nothing is refused later
                stamps[place + file.name] = [status.st_size, status.st_mtime_ns]
    return stamps


def read_any(path: Path, series: str | None) -> tuple[NDArray[Any], NDArray[np.float64], tuple[str, ...]]:
    """Voxels of axes x, y, z (and channel), affine and remarks of a file or DICOM folder, as `open_volume` takes it."""
    if is_nifti(path) and not path.is_dir():
        file = open_nifti(path)
        return file.read(), file.affine, file.remarks
    source = open_volume(path, series)
    # SimpleITK's arrays have the axes z, y, x
    return sitk.GetArrayFromImage(source.load()).T, source.grid.affine, source.remarks


class AnyVolumeReader(NibabelReader):
    """MONAI's reader of NIfTI, for every format of `open_volume`.

    Every volume is handed on as a NIfTI image in memory: its axes, its voxels, its position in RAS coordinates. So all
    formats take one way through the transforms. A NIfTI file is read as `open_nifti` says: its affine is nibabel's,
    which MONAI's own reader replaces by the qform where pixdim has another spacing (1.6.1).

    Args:
        series: picks a series of a DICOM folder, as `open_volume` says.
        normalised: the images will be, by mean and deviation: warn of those that outliers blank.
    """

    def __init__(self, series: str | None = None, normalised: bool = False) -> None:
        super().__init__()
        self.series = series
        self.normalised = normalised

    def verify_suffix(self, filename: Any) -> bool:
        """Any name will do."""
        return True

    def read(self, data: Any, **kwargs: Any) -> list[Path]:
        """The paths; MONAI takes an error here for that of one reader among several, and buries it."""
        return [Path(path) for path in ([data] if isinstance(data, str | os.PathLike) else data)]

    def get_data(self, img: Sequence[Path]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Voxels and header; several files become the channels of one volume.

        Raises:
            DatasetError: a volume that cannot be read whole, values that `values_of` refuses, or channels on different
                grids.
        """
        images: list[nibabel.Nifti1Image] = []
        remarks: dict[Path, tuple[str, ...]] = {}
        for path in img:
            voxels, affine, remarks[path] = read_any(path, self.series)
            voxels = self.values_of(path, voxels)
            grid = images[0].affine if images else affine
            if (images and voxels.shape[:3] != images[0].shape[:3]) or not is_one_grid(voxels.shape[:3], affine, grid):
                raise DatasetError(
                    f"{path}: expected the grid of {img[0]}, got another; resample it onto that grid."
                    f"{orientation_hint(path, img[0], remarks)}"
                )
            # that of the first, to the last digit, which MONAI asks for
            images.append(nibabel.Nifti1Image(voxels, grid, dtype=voxels.dtype))
        reader = NibabelReader()  # of its own for each call, because it keeps the names and threads may share this one
        reader.filenames = [str(path) for path in img]
        voxels, header = reader.get_data(images)
        return voxels, header

    def values_of(self, path: Path, voxels: NDArray[Any]) -> NDArray[Any]:
        """The voxels of one file as they are handed on.

        Raises:
            DatasetError: NaN, infinity, or numbers that float32 does not hold.
        """
        if problem := intensity_problem(voxels):
            raise DatasetError(f"{path}: {problem}")
        if self.normalised:
            for where, blanked in blanked_channels(voxels):
                _logger.warning("%s%s: %s; replace these.", path, where, blanked)
        return voxels


class LabelIdReader(AnyVolumeReader):
    """The same for labels: ids as whole numbers, exact up to 64 bits, where float32 holds them up to 24."""

    def values_of(self, path: Path, voxels: NDArray[Any]) -> NDArray[Any]:
        """Label ids.

        Raises:
            DatasetError: voxels that hold no whole numbers of at most 64 bits.
        """
        if problems := [f"{path}: {sentence}" for sentence in refusals_of(count_ids(voxels))]:
            raise DatasetError(problems)
        ids = label_ids_of(voxels)
        return ids.astype(_FOR_TORCH.get(ids.dtype.name, ids.dtype), copy=False)


def _suffix(path: Path) -> str:
    return next((suffix for suffix in VOLUME_SUFFIXES if path.name.lower().endswith(suffix)), "")


def _name(path: Path) -> str:
    return composed(path.name if path.is_dir() else path.name[: len(path.name) - len(_suffix(path))])


def _is_series(folder: Path, leave_out: tuple[str, ...]) -> bool:
    """Whether a folder is that of one DICOM series and not of many volumes."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.endswith(leave_out)]
    volumes = [path for path in files if _suffix(path) and not path.name.startswith(".")]
    dicom = next((path for path in files if is_dicom(path)), None)
    if dicom and volumes:
        raise DatasetError(
            f"Expected --input to hold volumes or one DICOM series, got {volumes[0].name} and {dicom.name} in "
            f"{folder}; move the DICOM files to a folder of their own."
        )
    return dicom is not None


def _holds_dicom(folder: Path) -> bool:
    return any(is_dicom(Path(parent) / name) for parent, _, names in os.walk(folder) for name in sorted(names))
