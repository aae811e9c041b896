"""DICOM SEG and RTSTRUCT objects as labels: which series each refers to, and the label map that it makes there."""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk
from pydicom import Dataset, dcmread

from monai_extra_losses.data.dicom import LABEL_OBJECTS, images_below
from monai_extra_losses.data.dicom_header import damage_as_sentence, storage_class
from monai_extra_losses.data.dicom_seg import read_seg
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import composed, named
from monai_extra_losses.data.label_ids import name_key
from monai_extra_losses.data.layouts import CHANNEL_FILE
from monai_extra_losses.data.pairing import SourceCase
from monai_extra_losses.data.quiet import quiet_pydicom
from monai_extra_losses.data.rtstruct import read_rtstruct
from monai_extra_losses.data.structures import DicomLabel, Note, Structure, clean_name
from monai_extra_losses.data.volume_source import VOLUME_SUFFIXES, DicomSeries, VolumeGrid, VolumeSource


@dataclass(frozen=True)
class _Object:
    """A DICOM SEG or RTSTRUCT file, and the series that it refers to."""

    file: Path
    kind: str
    series: tuple[str, ...]


@quiet_pydicom
def label_objects(folder: Path) -> tuple[Path, ...]:
    """The DICOM SEG and RTSTRUCT files below a folder, by path; hidden files and volumes are passed over."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = [Path(parent) / name for name in sorted(names) if not name.startswith(".")]
        found += [file for file in files if not _is_volume(file) and storage_class(file) in LABEL_OBJECTS]
    return tuple(found)


@quiet_pydicom
def pair_by_reference(
    images: Path, labels: Path, objects: Sequence[Path], series: str | None = None
) -> tuple[tuple[SourceCase, ...], list[str]]:
    """The cases of DICOM series and the objects that refer to them, whatever their files are called.

    A case is called like the folder of its series; NAME_0000, NAME_0001, ... are channels of NAME, and the object
    refers to one of them. A folder may hold several series, of which that is taken that the object refers to.

    Args:
        images: folder of a folder per case.
        labels: folder of the objects.
        objects: of `label_objects`.
        series: picks the series of each folder, as `open_volume` says; None: as the object refers to it.

    Returns:
        The cases that pair up, sorted by name, and a sentence for what does not: an object of a series that is not
        here, two objects of one series, a series without an object, images that are no DICOM series.

    Raises:
        DatasetError: no folder of images.
    """
    problems: list[str] = []
    if beside := sorted(path.name for path in labels.iterdir() if _is_volume(path)):
        problems.append(
            f"{labels}: expected label volumes, or DICOM SEG and RTSTRUCT objects, got both ({named(beside)}); give "
            "them as two data sets, and pool these."
        )
    folders, odd = _series_folders(images)
    problems += odd
    owners = {uid: path for path, uids in folders.items() for uid in uids}
    found: dict[Path, dict[str, list[_Object]]] = {}
    for file in objects:
        try:
            one = _object(file)
        except DatasetError as error:
            problems += error.problems
            continue
        here = [uid for uid in one.series if uid in owners]
        if len(here) == 1:
            found.setdefault(owners[here[0]], {}).setdefault(here[0], []).append(one)
        else:
            told = f"one of {len(here)} series there" if here else f"one of {named(one.series)}"
            hint = "write one per series" if here else "add the series, or leave the object out"
            problems.append(
                f"{file}: expected the {one.kind} of a series below {images}, to which it refers by UID, got {told}; "
                f"{hint}."
            )
    cases = []
    for name, paths in _by_case(folders).items():
        of_case = {uid: (path, held) for path in paths for uid, held in found.get(path, {}).items()}
        several = [str(one.file) for _, held in of_case.values() for one in held]
        if not of_case:
            shown = f" ({named(folders[paths[0]])})" if len(folders[paths[0]]) < 4 else ""
            problems.append(
                f"{paths[0]}: expected a DICOM SEG or RTSTRUCT in {labels} that refers to its series{shown}, got none; "
                "add it, or leave the case out."
            )
        elif len(several) > 1:
            problems.append(f"{name}: expected one object for its series, got {', '.join(several)}; keep one.")
        else:
            ((uid, (path, held)),) = of_case.items()
            chosen = tuple(uid if one == path and series is None else series for one in paths)
            cases.append(SourceCase(name, paths, held[0].file, series=chosen, refers_to=path))
    return tuple(cases), problems


def _series_folders(images: Path) -> tuple[dict[Path, tuple[str, ...]], list[str]]:
    """Each folder of a series -> the UIDs of its series; and a sentence for what else is there."""
    if not images.is_dir():
        raise DatasetError(
            f"expected a folder of DICOM series, to which DICOM SEG and RTSTRUCT refer, got {images}, which "
            f"{'is a file' if images.exists() else 'does not exist'}; correct --images."
        )
    folders: dict[Path, tuple[str, ...]] = {}
    problems: list[str] = []
    for path in sorted(path for path in images.iterdir() if not path.name.startswith(".")):
        if path.is_dir():
            try:
                uids = {_text(file, "SeriesInstanceUID") for file in images_below(path)}
            except DatasetError as error:
                problems += error.problems
                continue
            folders |= {path: tuple(sorted(uids))} if uids else {}
        elif _is_volume(path):
            problems.append(
                f"{path}: expected a DICOM series, to which DICOM SEG and RTSTRUCT refer, got a volume of another "
                "format; give the series that it was made of."
            )
        elif storage_class(path) not in (None, *LABEL_OBJECTS):
            problems.append(
                f"{path}: expected a folder per DICOM series, got a DICOM file; move the files of each case to a "
                f"folder of its own in {images}."
            )
    doubled: dict[str, list[str]] = {}
    for path, listed in folders.items():
        for uid in listed:
            doubled.setdefault(uid, []).append(str(path))
    problems += [
        f"{paths[0]}: expected each series in one folder, got {uid} in {' and '.join(paths[1:])} too; keep one."
        for uid, paths in doubled.items()
        if len(paths) > 1
    ]
    return folders, problems


def _is_volume(file: Path) -> bool:
    return file.name.lower().endswith(VOLUME_SUFFIXES)


def _by_case(folders: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Case -> its folders, one per channel."""
    by_name = {composed(path.name): path for path in folders}
    cases: dict[str, list[Path]] = {}
    for name, path in sorted(by_name.items()):
        channel = CHANNEL_FILE.fullmatch(name)
        several = channel is not None and {f"{channel['case']}_0000", f"{channel['case']}_0001"} <= by_name.keys()
        cases.setdefault(channel["case"] if channel is not None and several else name, []).append(path)
    return {name: tuple(paths) for name, paths in cases.items()}


def _object(file: Path) -> _Object:
    kind = LABEL_OBJECTS[storage_class(file) or ""]
    with damage_as_sentence(file):
        elements = _elements(file, "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence")
        of_frames = [
            series
            for frame in elements.get("ReferencedFrameOfReferenceSequence") or ()
            for study in frame.get("RTReferencedStudySequence") or ()
            for series in study.get("RTReferencedSeriesSequence") or ()
        ]
        listed = [*(elements.get("ReferencedSeriesSequence") or ()), *of_frames]
        uids = tuple(dict.fromkeys(str(uid) for item in listed if (uid := item.get("SeriesInstanceUID"))))
    if not uids:
        raise DatasetError(
            f"{file}: expected the {kind} to name the series that it refers to, got none; export it again, or convert "
            "it to a label volume."
        )
    return _Object(file, kind, uids)


def _elements(file: Path, *keywords: str) -> Dataset:
    return dcmread(file, specific_tags=[*keywords], stop_before_pixels=True, force=True)


def _text(file: Path, keyword: str) -> str:
    """An element of a file, empty where it has none."""
    with damage_as_sentence(file):
        return str(_elements(file, keyword).get(keyword) or "")


@quiet_pydicom
def open_dicom_label(
    file: Path, image: VolumeSource, names: Collection[str] = (), *, overlapping: bool = False
) -> DicomLabel:
    """Read the structures of an object.

    Args:
        file: DICOM SEG or RTSTRUCT.
        image: the series that it refers to.
        names: of the structures to read, whatever their case and spaces; empty: all.
        overlapping: structures may share voxels.

    Raises:
        DatasetError: a damaged file, or an object that does not lie on the slices of the series.
    """
    found, notes = _read(file, image.grid)
    wanted = {name_key(name) for name in names}
    left_out = [one.name for one in found if wanted and name_key(one.name) not in wanted]
    series = DicomSeries(_text(file, "SeriesInstanceUID"), clean_name(_text(file, "SeriesDescription"), ""), (file,))
    return DicomLabel(
        path=file,
        files=(file,),
        grid=image.grid,
        pixel_type=sitk.sitkUInt16,
        series=series,
        overlapping=overlapping,
        shown={structure.name: structure.shown for structure in _chosen(found, wanted)},
        read=quiet_pydicom(lambda: _chosen(_read(file, image.grid)[0], wanted)),
        instance=_text(file, "SOPInstanceUID"),
        left_out=tuple(dict.fromkeys(left_out)),
        notes=notes,
    )


def _read(file: Path, grid: VolumeGrid) -> tuple[list[Structure], tuple[Note, ...]]:
    if LABEL_OBJECTS[storage_class(file) or ""] == "RTSTRUCT":
        return read_rtstruct(file, grid)
    return read_seg(file, grid)


def _chosen(found: Iterable[Structure], wanted: Collection[str]) -> list[Structure]:
    """Those of some names, or all; of equal names one with the voxels of all."""
    structures: dict[str, Structure] = {}
    for structure in found:
        key = name_key(structure.name)
        if not wanted or key in wanted:
            structures[key] = structures[key].joined(structure) if key in structures else structure
    return list(structures.values())
