"""Pair images and labels of any format by name, never by position. Opens no volume."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_extra_losses.data.dicom import is_dicom
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import composed, named
from monai_extra_losses.data.layouts import (
    CASE,
    CHANNEL_FILE,
    LABEL,
    channels_of_cases,
    find_files,
    layout_hint,
    patterns_of,
)
from monai_extra_losses.data.volume_source import VOLUME_SUFFIXES

LABEL_SUFFIXES = ("_seg", "_label", "_mask", "-label", "_gt", ".seg", "-seg")
"""What the name of a label may have after the name of its image."""


@dataclass(frozen=True)
class SourceCase:
    """The files or DICOM folders of one case.

    Args:
        name: of the case.
        images: one per channel.
        label: None for a case to be segmented.
        masks: name -> file of each structure, where `label` is the folder of these.
        refers_to: the image to which `label`, a DICOM SEG or RTSTRUCT, refers; None where it is no such object.
        series: of each image, which series of its folder it is, as `open_volume` says; empty: as for all cases.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    masks: tuple[tuple[str, Path], ...] = ()
    refers_to: Path | None = None
    series: tuple[str | None, ...] = ()


def pair_by_name(images: str | Path, labels: str | Path) -> tuple[SourceCase, ...]:
    """The cases of a folder of images and a folder of labels, as `pairs_and_problems` finds them.

    Raises:
        DatasetError: as there, and the problems of all names at once.
    """
    cases, problems = pairs_and_problems(images, labels)
    if problems:
        raise DatasetError(problems)
    return cases


def pairs_and_problems(images: str | Path, labels: str | Path) -> tuple[tuple[SourceCase, ...], list[str]]:
    """The cases of a folder of images and a folder of labels, sorted by name.

    A name is a file's without its format, or that of a DICOM series' folder. An image and a label of one name are a
    case. Else the label's name may end in one of `LABEL_SUFFIXES`, and the images' in `_0000`, `_0001`, ...: the
    channels of the case. A folder may hold one file of a case in place of a DICOM series. Hidden files and files of
    other formats are passed over. Where both folders are the same, names with a label suffix are labels and the others
    images.

    Args:
        images: folder, or patterns of files, as `layouts.patterns_of` says, one for each channel.
        labels: folder, or one pattern; `{label}` in it stands for the name of a structure that has a file of its own.

    Returns:
        The cases that pair up, and a sentence for each name that does not: an image without label, a label without
        image, two images or two labels of one case, a channel left out.

    Raises:
        DatasetError: a folder that is not there, or no pair.
    """
    of_images, of_labels = patterns_of(images), patterns_of(labels)
    if of_images or of_labels:
        return _pairs_of_patterns(of_images, of_labels)
    images, labels = Path(images), Path(labels)
    found_images, found_labels = _volumes_in(images), _volumes_in(labels)
    one_folder = images.resolve() == labels.resolve()
    if one_folder:
        found_labels = {name: paths for name, paths in found_images.items() if _bare(name) != name}
        found_images = {name: paths for name, paths in found_images.items() if name not in found_labels}
    if one_folder and not (found_images and found_labels):
        raise DatasetError(
            f"{images}: expected images, and labels with {', '.join(LABEL_SUFFIXES)} after their names, got "
            f"{len(found_images)} images and {len(found_labels)} labels; "
            f"{layout_hint(images) or 'rename them, or give two folders.'}"
        )
    _refuse_empty({images: found_images, labels: found_labels})
    label_names = found_labels.keys() | {_bare(name) for name in found_labels}
    cases, odd = _group_by_case(found_images, label_names)
    problems = list(odd.values())
    labels_of: dict[str, list[Path]] = {}
    for name, paths in found_labels.items():
        labels_of.setdefault(name if name in cases else _bare(name), []).extend(paths)
    if not cases.keys() & labels_of.keys():
        raise DatasetError(
            f"expected images and labels of equal names (a label may end in {', '.join(LABEL_SUFFIXES)}), got "
            f"{_some(found_images)} in {images} and {_some(found_labels)} in {labels}; rename one side, or give both "
            f'as patterns, --images "DIR/{CASE}/image.nii.gz" --labels "DIR/{CASE}/label.nii.gz".'
        )
    for name in sorted(cases.keys() | labels_of.keys()):
        problems += _unpaired(name, cases.get(name, ()), labels_of.get(name, []), images, labels)
    paired = [name for name in sorted(cases) if name not in odd and len(labels_of.get(name, ())) == 1]
    return tuple(SourceCase(name, cases[name], labels_of[name][0]) for name in paired), problems


def _refuse_empty(folders: Mapping[Path, Mapping[str, Sequence[Path]]]) -> None:
    for folder, found in folders.items():
        if not found:
            raise DatasetError(
                f"{folder}: expected files {', '.join(VOLUME_SUFFIXES)} or a folder per DICOM series, got none; "
                "give the folder that holds them."
            )


def _unpaired(
    name: str, of_image: Sequence[Path], of_label: Sequence[Path], images: Path, labels: Path
) -> Iterable[str]:
    """Why the files of a name are no case."""
    if not of_label:
        yield from (f"{path}: expected a label {name} in {labels}, got none; add it." for path in of_image)
    elif not of_image:
        yield from (f"{path}: expected an image {name} in {images}, got none; add it." for path in of_label)
    elif len(of_label) > 1:
        yield f"{name}: expected one label, got {', '.join(map(str, of_label))}; keep one."


def cases_to_segment(images: str | Path, labelled: Sequence[SourceCase]) -> tuple[SourceCase, ...]:
    """The cases of a folder of images without labels, sorted by name.

    Args:
        images: folder of files and DICOM series, or patterns, one for each channel.
        labelled: the cases with labels; `_0000`, `_0001`, ... are channels here where they are channels there.

    Raises:
        DatasetError: a folder that is not there or empty, and all at once: two images of one case, a channel left
            out, a name that a labelled case has.
    """
    if patterns := patterns_of(images):
        cases, problems = channels_of_cases(patterns)
    else:
        found = _volumes_in(Path(images))
        channels_apart = any(path.name.startswith(f"{case.name}_0000") for case in labelled for path in case.images)
        bases = {match["case"] for name in found if channels_apart and (match := CHANNEL_FILE.fullmatch(name))}
        cases, odd = _group_by_case(found, bases)
        problems = list(odd.values())
    if not cases and not problems:
        raise DatasetError(f"{images}: expected images to segment, got none; leave the folder out.")
    problems += [
        f"{cases[case.name][0]}: expected a name that no labelled case has, got {case.name}; rename it or leave it out."
        for case in labelled
        if case.name in cases
    ]
    if problems:
        raise DatasetError(problems)
    return tuple(SourceCase(name, cases[name]) for name in sorted(cases))


def other_files(folders: Iterable[str | Path]) -> list[str]:
    """A sentence for each folder that holds files of other formats, which are passed over; hidden ones are left out."""
    sentences = []
    for folder in dict.fromkeys(map(Path, folders)):
        if not patterns_of(folder):
            others = [path.name for path in folder.iterdir() if not (path.name.startswith(".") or path.is_dir())]
            others = [name for name in others if not name.lower().endswith(VOLUME_SUFFIXES)]
            if others:
                sentences.append(
                    f"{folder}: {len(others)} file{'s' * (len(others) > 1)} of other formats ({named(others)})."
                )
    return sentences


def _pairs_of_patterns(images: Sequence[str], labels: Sequence[str]) -> tuple[tuple[SourceCase, ...], list[str]]:
    """The cases that patterns of images and a pattern of labels find."""
    if not images or len(labels) != 1:
        raise DatasetError(
            f"expected patterns with {CASE} for the images, one per channel, and one for the labels, got {len(images)} "
            f"and {len(labels)}; give both as patterns, or both as folders."
        )
    masks: dict[str, dict[str, list[Path]]] = {}
    for file in find_files(labels[0]):
        masks.setdefault(file.case, {}).setdefault(file.label, []).append(file.path)
    of_labels = {path for of_case in masks.values() for paths in of_case.values() for path in paths}
    cases, problems = channels_of_cases(images, of_labels)
    for pattern, found in ((images[0], cases), (labels[0], masks)):
        if not found and not problems:
            raise DatasetError(f"{pattern}: expected files by this pattern, got none; correct it.")
    paired = []
    for name in sorted(cases.keys() | masks.keys()):
        parts = masks.get(name, {})
        doubled = next((paths for paths in parts.values() if len(paths) > 1), None)
        if not parts:
            problems.append(f"{cases[name][0]}: expected a label by {labels[0]}, got none; add it.")
        elif doubled is not None:
            problems.append(f"{name}: expected one label, got {', '.join(map(str, doubled))}; keep one.")
        elif name in cases:
            paired.append(_case_of_masks(name, cases[name], parts, by_structure=LABEL in labels[0]))
        elif not any(problem.startswith(f"{name}: ") for problem in problems):
            first = next(iter(parts.values()))[0]
            problems.append(f"{first}: expected an image by {images[0]}, got none; add it.")
    return tuple(paired), problems


def _case_of_masks(
    name: str, images: tuple[Path, ...], parts: Mapping[str, Sequence[Path]], *, by_structure: bool
) -> SourceCase:
    if not by_structure:
        return SourceCase(name, images, parts[""][0])
    files = tuple(sorted((label, paths[0]) for label, paths in parts.items()))
    return SourceCase(name, images, _common_folder([file for _, file in files]), files)


def _common_folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.parent for file in files]))


def _volumes_in(folder: Path) -> dict[str, list[Path]]:
    """Name -> its files and folders (more than one is for the caller to refuse)."""
    if not folder.is_dir():
        raise DatasetError(
            f"expected a folder of images or labels, got {folder}, which "
            f"{'is a file' if folder.exists() else 'does not exist'}."
        )
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        suffix = next((suffix for suffix in VOLUME_SUFFIXES if path.name.lower().endswith(suffix)), "")
        if path.is_dir() or suffix:
            name = path.name if path.is_dir() else path.name[: -len(suffix)]
            found.setdefault(composed(name), []).append(_only_volume(path) if path.is_dir() else path)
        elif is_dicom(path):
            raise DatasetError(
                f"{path}: expected a folder per DICOM series, got a DICOM file; "
                f"move the files of each case to a folder of its own in {folder}."
            )
    return found


def _only_volume(folder: Path) -> Path:
    """The one volume of a folder that holds nothing else; the folder itself otherwise."""
    held = [path for path in folder.iterdir() if not path.name.startswith(".")]
    only = held[0] if len(held) == 1 else folder
    return only if only.is_file() and only.name.lower().endswith(VOLUME_SUFFIXES) else folder


def _bare(label_name: str) -> str:
    suffix = next((suffix for suffix in LABEL_SUFFIXES if label_name.lower().endswith(suffix)), "")
    return label_name[: len(label_name) - len(suffix)]


def _group_by_case(
    images: Mapping[str, Sequence[Path]], names: Iterable[str]
) -> tuple[dict[str, tuple[Path, ...]], dict[str, str]]:
    """Case -> its images, and case -> what is wrong with them.

    NAME_0000 is a channel where `names` has NAME, unless it has NAME_0000 too.
    """
    names = set(names)
    cases: dict[str, list[tuple[int | None, Path]]] = {}
    for name in sorted(images):
        match = None if name in names else CHANNEL_FILE.fullmatch(name)
        channel = match if match and match["case"] in names else None
        entries = cases.setdefault(channel["case"] if channel else name, [])
        entries += [(int(channel["channel"]) if channel else None, path) for path in images[name]]
    problems = {
        case: f"{case}: expected one image, or channels {case}_0000, {case}_0001, ... without a gap, "
        f"got {', '.join(str(path) for _, path in entries)}; keep one, or rename them."
        for case, entries in sorted(cases.items())
        if [channel for channel, _ in entries] not in ([None], list(range(len(entries))))
    }
    return {case: tuple(path for _, path in entries) for case, entries in cases.items()}, problems


def _some(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"{first!r}{f' and {len(rest)} more' if rest else ''}"
