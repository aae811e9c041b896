"""Files of tensors, which are refused where anything in them has changed since they were written."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from monai_extra_losses.data.errors import FileRefused
from monai_extra_losses.data.storage import sha256, whole_file, write_whole, writing

CHECKSUMS = "checksums.json"
"""Beside files of tensors: file name -> the SHA-256 that it may have."""


_KEPT = 5  # checksums of one name


_ZIP = b"PK\x03\x04"  # what a file of torch.save starts with since torch 1.6; older ones have no checksum inside


def record_checksum(draft: Path, path: Path) -> None:
    """Record the checksum of a file that is about to take the place of `path`.

    Those of the last few files of that name stay known, so that a process that is killed before or after the file is
    moved leaves one whose checksum is recorded. So does that of a file which had none.
    """
    known = _checksums(path.parent)
    earlier = known.get(path.name) or ([sha256(path)] if path.is_file() else [])
    known[path.name] = list(dict.fromkeys([sha256(draft), *earlier]))[:_KEPT]
    write_whole(path.parent / CHECKSUMS, json.dumps(known, indent=1) + "\n")


def write_tensors(content: Mapping[str, Any], path: Path, *, kept_as: Path | None = None) -> None:
    """Save tensors so that neither a reader nor a killed process ever leaves half of them, and record their checksum.

    Args:
        content: what `torch.save` takes.
        path: of the file.
        kept_as: what becomes of the file that was in `path`; None: it goes.

    Raises:
        WritingFailed: the storage does not take it; what was in `path` is there, or in `kept_as`.
    """
    with whole_file(path) as draft:
        with draft.open("wb") as stream:  # through Python's file, for torch's own does not say that the disk is full
            torch.save(content, stream)
        record_checksum(draft, path)
        if kept_as is not None and path.exists():
            with writing(kept_as):
                path.replace(kept_as)


def refuse_changed(file: Path, hint: str, *, written_as: str | None = None) -> None:
    """Refuse a file that is not one that the training wrote; one without a checksum beside it passes.

    Args:
        file: of tensors, of a run.
        hint: what to do; ends the sentence.
        written_as: the name that the file had when its checksum was recorded; None: the one that it has.

    Raises:
        FileRefused: another file, or a damaged one.
    """
    known = _checksums(file.parent).get(written_as or file.name)
    if known is not None and file.is_file() and sha256(file) not in known:
        raise FileRefused(
            f"Expected {file} as the training wrote it, got a damaged or another file (its checksum is not that in "
            f"{CHECKSUMS} beside it)",
            hint,
        )


def damage(file: str | Path) -> str | None:
    """What is wrong with the bytes of a file of `torch.save`, by the checksums inside it, which torch does not verify;
    None where nothing is, or where the file has none.
    """
    with Path(file).open("rb") as stream:
        if stream.read(len(_ZIP)) != _ZIP:
            return None
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except Exception as error:  # a flipped bit in its directory may ask for anything, a password for one
        return f"its directory cannot be read ({type(error).__name__})"
    return None if broken is None else f"its part {broken!r} has another checksum"


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [
        name
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor)
        and (value.is_floating_point() or value.is_complex())
        and not value.isfinite().all()
    ]


def _checksums(folder: Path) -> dict[str, list[str]]:
    """Those kept in a folder; none where the file is damaged, as its loss must not end a training."""
    try:
        content = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        return {str(name): [str(one) for one in of] for name, of in content.items() if isinstance(of, list)}
    except (OSError, ValueError, AttributeError):
        return {}
