"""Layouts other than imagesTr/ and labelsTr/: patterns of paths that find their files, and who proposes them.

Opens no volume.
"""

import glob
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import NIFTI_SUFFIXES, OTHER_SUFFIXES, composed, first_of

CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")  # nnU-Net's name of a channel, without its suffix

CASE = "{case}"
"""Stands for the name of the case in a pattern."""

LABEL = "{label}"
"""Stands for the name of a structure in the pattern of masks, a file each."""

_ORGAN_IMAGES = ("ct.nii.gz", "mri.nii.gz")
_TOKENS = re.compile(r"(\{case\}|\{label\}|\*|\?)")
_LABEL_WORD = re.compile(r"(^|[-_. ])(seg|segm|segmentations?|labels?|masks?|gt|groundtruth)($|[-_. ])", re.IGNORECASE)
_LOOKED_AT = 50  # folders of cases, to recognise their layout
_COMMON = 0.8  # share of them that have a file of the layout


@dataclass(frozen=True)
class FoundFile:
    """A file (or the folder of a DICOM series) that a pattern finds.

    Args:
        case: what stands at `{case}`.
        label: what stands at `{label}`; empty in a pattern without.
        path: of the file.
    """

    case: str
    label: str
    path: Path


def patterns_of(source: str | Path) -> tuple[str, ...]:
    """The patterns in a text, absolute; empty for the path of a file or folder.

    Args:
        source: a path, or paths with `{case}` in them, separated by commas, such as
            `BraTS/{case}/{case}-t1c.nii.gz,BraTS/{case}/{case}-t2w.nii.gz`. `{case}` stands for the same characters
            wherever it is in one of them; `*` and `?` for any.

    Raises:
        DatasetError: a path without `{case}` among such with it.
    """
    text = str(source)
    if CASE not in text or os.path.lexists(text):
        return ()
    parts = [part.strip() for part in text.split(",")]
    if plain := [part for part in parts if CASE not in part]:
        raise DatasetError(
            f"expected {CASE} in each pattern, for the name of the case, got {plain[0]!r} among {text!r}; add it there."
        )
    return tuple(os.path.join(os.getcwd(), part) for part in parts)


def find_files(pattern: str) -> list[FoundFile]:
    """The files and folders that a pattern of `patterns_of` finds, by case and path; hidden ones are left out."""
    expression, wildcards, groups = "", "", set()
    for token in _TOKENS.split(Path(pattern).as_posix()):
        if token in (CASE, LABEL):
            name = token[1:-1]
            expression += f"(?P={name})" if name in groups else f"(?P<{name}>[^/]+)"
            groups.add(name)
        else:
            expression += {"*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token))
        wildcards += "*" if token in (CASE, LABEL) else token if token in "*?" else glob.escape(token)
    found = []
    for path in map(Path, glob.iglob(wildcards)):
        if match := re.fullmatch(expression, path.as_posix()):
            parts = {name: composed(text) for name, text in match.groupdict().items()}
            found.append(FoundFile(parts["case"], parts.get("label", ""), path))
    return sorted(found, key=lambda file: (file.case, file.label, file.path))


def channels_of_cases(
    patterns: Sequence[str], leave_out: Collection[Path] = ()
) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    """The files of each case, one per pattern, sorted by name; and a sentence for each file too many or too few.

    Args:
        patterns: of `patterns_of`, one per channel.
        leave_out: files that are none of these, such as labels that an image's pattern finds too.
    """
    found: dict[str, list[list[Path]]] = {}
    for number, pattern in enumerate(patterns):
        for file in find_files(pattern):
            if file.path not in leave_out:
                found.setdefault(file.case, [[] for _ in patterns])[number].append(file.path)
    problems = []
    for case, of_patterns in sorted(found.items()):
        for pattern, files in zip(patterns, of_patterns, strict=True):
            if len(files) > 1:
                problems.append(f"{case}: expected one file for {pattern}, got {', '.join(map(str, files))}; keep one.")
            elif not files:
                problems.append(f"{case}: expected a file for {pattern}, got none; add it, or move the others away.")
    whole = {case: tuple(files[0] for files in parts if files) for case, parts in sorted(found.items())}
    return {case: files for case, files in whole.items() if len(files) == len(patterns)}, problems


def organ_mask_patterns(folder: Path, images: Path | None = None, labels: Path | None = None) -> tuple[Path, Path]:
    """The patterns of images and masks in the layout of TotalSegmentator.

    That is a folder per case with ct.nii.gz (or mri.nii.gz) and segmentations/NAME.nii.gz, a mask per structure.

    Args:
        folder: of the cases.
        images, labels: patterns of others in place of these.

    Raises:
        DatasetError: no folder, or without `images` a folder without such images, or with both.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"expected a folder with a folder per case, got {folder}, which "
            f"{'is a file' if folder.exists() else 'does not exist'}; correct --organ-masks."
        )
    masks = labels or folder / CASE / "segmentations" / f"{LABEL}.nii.gz"
    if images is not None:
        return images, masks
    cases = _folders_in(folder)
    found = {name: [case.name for case in cases if (case / name).is_file()] for name in _ORGAN_IMAGES}
    kinds = [name for name, of_name in found.items() if of_name]
    if len(kinds) != 1:
        got = " and ".join(f"{name} in {len(found[name])} ({first_of(found[name])})" for name in kinds) or "none"
        raise DatasetError(
            f"{folder}: expected {' or '.join(_ORGAN_IMAGES)} in the folder of each case, the same in all, got {got}; "
            f'name the images by a pattern, --images "{folder}/{CASE}/image.nii.gz", or keep two kinds in two folders.'
        )
    return folder / CASE / kinds[0], masks


def prepare_command(images: str | Path, labels: str | Path, folder: Path, extra: Sequence[str] = ()) -> str:
    """The call that makes a data set of other files, in a folder beside theirs."""
    words = ["monai-extra-losses", "prepare", "--images", str(images), "--labels", str(labels)]
    return shlex.join([*words, "--out", str(_prepared_beside(folder)), *extra])


def prepare_folder_command(folder: Path) -> str:
    """The call that makes a data set of the files of a folder with dataset.json, in a folder beside it."""
    return shlex.join(["monai-extra-losses", "prepare", str(folder), "--out", str(_prepared_beside(folder))])


def _prepared_beside(folder: Path) -> Path:
    return folder.parent / f"{folder.resolve().name}_prepared"


def layout_hint(folder: Path) -> str | None:
    """What to do with a folder that holds a folder per case, or one level below; None where it holds none.

    Returns:
        A sentence without its end: what was recognised, and the call of `prepare` that reads it.
    """
    for place in (folder, *_folders_in(folder)[:10]):
        if (found := _recognised(place)) is not None:
            return found
    return None


def _recognised(folder: Path) -> str | None:
    cases = _folders_in(folder)[:_LOOKED_AT]
    patterns = Counter(pattern for case in cases for pattern in _patterns_in(case))
    common = [pattern for pattern, count in patterns.items() if count >= _COMMON * len(cases)]
    plain = sorted(pattern for pattern in common if "/" not in pattern)
    labels = [pattern for pattern in plain if _LABEL_WORD.search(_core(pattern))]
    images = [pattern for pattern in plain if pattern not in labels]
    masks = sorted({pattern.partition("/")[0] for pattern in patterns if "/" in pattern})
    masks = [name for name in masks if _LABEL_WORD.search(name)]
    if not images or len(cases) < 2:
        return None
    example = ", ".join(pattern.replace(CASE, cases[0].name) for pattern in (images + labels)[:3])
    seen = f"{folder} holds a folder per case ({cases[0].name}/ with {example})"
    extra: list[str] = []
    if len(labels) == 1:
        label = f"{folder}/{CASE}/{labels[0]}"
    elif masks and not labels:
        extra += ["--organ-masks", str(folder)]  # a structure without a file is not annotated
        suffix = Counter(_suffix(pattern) for pattern in patterns if pattern.startswith(f"{masks[0]}/")).most_common(1)
        label = f"{folder}/{CASE}/{masks[0]}/{LABEL}{suffix[0][0]}"
    else:
        image = f"{folder}/{CASE}/{images[0]}"
        return f"{seen}; name image and label by patterns: {prepare_command(image, f'{folder}/{CASE}/LABEL', folder)}"
    channels = [_core(image).strip("-_. ") for image in images]
    extra += ["--channel-names", ",".join(channels)] if len(images) > 1 else []
    image = ",".join(f"{folder}/{CASE}/{pattern}" for pattern in images)
    return f"{seen}, of which this makes a data set: {prepare_command(image, label, folder, extra)}"


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _patterns_in(case: Path) -> Iterable[str]:
    """Its volumes, and those in its folders, relative to it and with its name as `{case}`."""
    # a short name is part of many a word
    name = re.compile(rf"(?<![^\W_]){re.escape(case.name)}(?![^\W_])")
    for path in (*case.glob("*"), *case.glob("*/*")):
        parts = path.relative_to(case).parts
        if _suffix(path.name) and not any(part.startswith(".") for part in parts):
            yield name.sub(CASE, "/".join(parts))


def _core(pattern: str) -> str:
    """A file's name without the case and the format."""
    return pattern.removesuffix(_suffix(pattern)).replace(CASE, "")


def _suffix(name: str) -> str:
    suffixes = (*NIFTI_SUFFIXES, *OTHER_SUFFIXES)
    return next((name[-len(suffix) :] for suffix in suffixes if name.lower().endswith(suffix)), "")
