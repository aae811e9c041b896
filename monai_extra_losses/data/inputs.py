"""The volumes to segment: a file, a folder or a DICOM series, of any format, and read as training reads NIfTI."""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from monai.data import NibabelReader
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.pairing import _CHANNEL
from monai_extra_losses.data.volumes import VOLUME_SUFFIXES, _data_files, is_dicom, open_volume

_NIFTI_SUFFIXES = (".nii.gz", ".nii")
_UNREADABLE = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError)


def find_inputs(source: str | Path, in_channels: int, *, leave_out: Sequence[str] = ()) -> dict[str, tuple[Path, ...]]:
    """The cases to segment.

    Args:
        source: a file with one of `VOLUME_SUFFIXES`, the folder of a DICOM series, or a folder of such files and
            folders. Hidden files, files of other formats and folders without DICOM are passed over.
        in_channels: of the network. NAME_0000, NAME_0001, ... in a folder are the channels of NAME; with one channel, a
            NAME_0000 without NAME_0001 is a case of its own.
        leave_out: endings of the names that are segmentations of other volumes in the folder and none to segment, such
            as `_seg` where the results go into the folder itself.

    Returns:
        Case name -> its files or DICOM folders, one per channel or one with all channels; sorted by name.

    Raises:
        DatasetError: no such file or folder, nothing to segment in it, or two volumes of one name.
    """
    source = Path(source)
    if not source.exists():
        raise DatasetError(f"Expected --input to be a volume or a folder of volumes, got {source}, which is not there.")
    if source.is_file():
        return {_name(source): (source,)}
    if _is_series(source):
        return {source.resolve().name: (source,)}
    paths = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    paths = [path for path in paths if (_suffix(path) if path.is_file() else _holds_dicom(path))]
    names = {_name(path) for path in paths}
    found: dict[str, list[tuple[int | None, Path]]] = {}
    for path in paths:
        name = _name(path)
        channel = _CHANNEL.fullmatch(name)
        if channel and in_channels == 1 and not {f"{channel['case']}_0000", f"{channel['case']}_0001"} <= names:
            channel = None
        entry = (int(channel["channel"]) if channel else None, path)
        found.setdefault(channel["case"] if channel else name, []).append(entry)
    for ending in leave_out:
        found = {name: of for name, of in found.items() if name.removesuffix(ending) not in found.keys() - {name}}
    if not found:
        raise DatasetError(
            f"Expected --input to hold files {', '.join(VOLUME_SUFFIXES)} or a folder per DICOM series, "
            f"got none in {source}."
        )
    for name, entries in found.items():
        found_channels = [channel for channel, _ in entries]
        if in_channels == 1 and None not in found_channels:
            continue  # `refuse_unlike` says of this case alone that it has too many
        if found_channels not in ([None], list(range(in_channels))):
            channels = f" or channels {name}_0000 to {name}_{in_channels - 1:04d}" if in_channels > 1 else ""
            raise DatasetError(
                f"Expected one volume named {name}{channels}, got {', '.join(path.name for _, path in entries)} in "
                f"{source}; their segmentations would have one name."
            )
    return {name: tuple(path for _, path in entries) for name, entries in found.items()}


def refuse_unlike(paths: Sequence[Path], in_channels: int, series: str | None = None) -> None:
    """Read the headers of a case.

    Args:
        paths: of its channels.
        in_channels: of the network.
        series: picks a series of a DICOM folder, as `open_volume` says.

    Raises:
        DatasetError: a volume that cannot be read or has not three dimensions, or another number of channels.
    """
    count = 0
    for path in paths:
        if _is_nifti(path):
            shape = _opened_nifti(path).shape
            if len(shape) not in (3, 4) or 0 in shape:
                raise DatasetError(f"{path}: expected a 3D volume, got the shape {shape}.")
            count += shape[3] if len(shape) == 4 else 1
        else:
            if path.is_file() and is_dicom(path):
                raise DatasetError(
                    f"{path}: expected the folder of a DICOM series, got one of its files; give the folder."
                )
            open_volume(path, series)
            count += 1
    if count != in_channels:
        hint = "; NAME_0000, NAME_0001, ... are channels of one case" if len(paths) > 1 else ""
        raise DatasetError(f"{paths[-1]}: expected {in_channels} channel(s) as in the run, got {count}{hint}.")


def input_stamp(paths: Sequence[Path]) -> dict[str, list[int | str]]:
    """What tells a case's files from others of their names: of each channel the name, bytes and time of change.

    A DICOM folder has the checksum of such a list of its files; the voxels beside a header (.mhd, .nhdr) count too.
    """
    stamps: dict[str, list[int | str]] = {}
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            listed = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            stamps[path.name] = [len(files), hashlib.sha256(json.dumps(listed).encode()).hexdigest()]
        else:
            for file in (path, *_data_files(path)):
                stamps[file.name] = [file.stat().st_size, file.stat().st_mtime_ns]
    return stamps


class AnyVolumeReader(NibabelReader):
    """MONAI's NIfTI reader, which takes every format of `open_volume`.

    What SimpleITK reads is handed on as a NIfTI image in memory: the same axes, the same voxels, its position in RAS
    coordinates. So all formats take one way through the transforms, and a NIfTI file the way it takes in training.

    Args:
        series: picks a series of a DICOM folder, as `open_volume` says.
    """

    def __init__(self, series: str | None = None) -> None:
        super().__init__()
        self.series = series

    def verify_suffix(self, filename: Any) -> bool:
        """Any name will do."""
        return True

    def read(self, data: Any, **kwargs: Any) -> list[Path]:
        """The paths; MONAI takes an error here for that of one reader among several, and buries it."""
        return [Path(path) for path in ([data] if isinstance(data, str | os.PathLike) else data)]

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict[str, Any]]:
        """Voxels and header; several files become the channels of one volume.

        Raises:
            DatasetError: a volume that cannot be read whole, or channels on different grids.
        """
        images = [_opened_nifti(path) if _is_nifti(path) else _as_nifti(path, self.series) for path in img]
        for path, image in zip(img, images, strict=True):
            first = images[0]
            if image.shape[:3] != first.shape[:3] or not np.allclose(image.affine, first.affine, atol=1e-3):
                raise DatasetError(f"{path}: expected the grid of {img[0]}, got another; resample it onto that grid.")
        self.filenames = [str(path) for path in img]
        try:
            voxels, header = super().get_data(images)
        except (ValueError, *_UNREADABLE) as error:
            raise DatasetError(_damaged(img, error)) from error
        if not np.isfinite(voxels).all():
            raise DatasetError(f"{img[0]}: expected numbers, got voxels of NaN or infinity; replace them.")
        return voxels, header


def _as_nifti(path: Path, series: str | None) -> nibabel.Nifti1Image:
    source = open_volume(path, series)
    # SimpleITK's arrays have the axes z, y, x
    voxels = sitk.GetArrayFromImage(source.load()).T
    if voxels.dtype in (np.int64, np.uint64):  # NIfTI's readers shun them
        voxels = voxels.astype(np.float64)
    return nibabel.Nifti1Image(voxels, source.grid.affine)


def _opened_nifti(path: Path) -> SpatialImage:
    """The header of a NIfTI file; voxels are read when asked for."""
    try:
        image = nibabel.load(path)
    except _UNREADABLE as error:
        raise DatasetError(_damaged([path], error)) from error
    if not isinstance(image, SpatialImage):
        raise DatasetError(f"{path}: expected a volume, got another file.")
    return image


def _damaged(paths: Sequence[Path], error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    return f"{paths[0]}: expected a whole volume, got an unreadable or damaged file ({reason}); copy it again."


def _is_nifti(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(_NIFTI_SUFFIXES)


def _suffix(path: Path) -> str:
    return next((suffix for suffix in VOLUME_SUFFIXES if path.name.lower().endswith(suffix)), "")


def _name(path: Path) -> str:
    return path.name[: len(path.name) - len(_suffix(path))] if path.is_file() else path.name


def _is_series(folder: Path) -> bool:
    """Whether a folder is that of one DICOM series and not of many volumes."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
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
