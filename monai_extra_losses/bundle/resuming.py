"""What a training goes on from, and what takes the place of a damaged file.

last.pt becomes previous.pt when the next checkpoint is whole, so that from the second epoch on two are there. model.pt
is there once: beside it the weights of the best epoch are known only while that epoch is one of these two.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.tensor_files import refuse_changed, write_tensors
from monai_extra_losses.bundle.weights import read_checkpoint, state_dict_of, without_training_heads
from monai_extra_losses.data.errors import FileRefused, StartUpRefused
from monai_extra_losses.data.storage import writing

logger = logging.getLogger(__name__)

_BRING_BACK = "bring back that of this run, or train again with --overwrite True"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a training goes on from.

    Args:
        file: last.pt or previous.pt.
        content: of the file.
        problem: of last.pt, a sentence without its full stop, where previous.pt is taken instead.
    """

    file: Path
    content: Mapping[str, Any]
    problem: str | None = None


def checkpoint_of(folder: RunFolder) -> Checkpoint | None:
    """The checkpoint to go on from: last.pt, or previous.pt where that is missing or damaged; None where none is there.

    Raises:
        StartUpRefused: none of those that are there can be used.
    """
    if not folder.has_checkpoint():
        return None
    if folder.last.exists() and not folder.previous.exists():
        return Checkpoint(folder.last, read_checkpoint(folder.last))
    problems: list[str] = []
    for file in (folder.last, folder.previous):
        try:
            return Checkpoint(file, _read(file), *problems)
        except FileRefused as refused:
            problems.append(refused.problem)
    raise StartUpRefused(
        f"{'. '.join(problems)}; bring back one of the two as it was, or train again with --overwrite True."
    )


def mend(folder: RunFolder) -> None:
    """Put whole files in the place of damaged ones before a training goes on, with a warning for each.

    previous.pt becomes last.pt, for a damaged last.pt must never become previous.pt; model.pt is written from a
    checkpoint of its epoch.

    Raises:
        StartUpRefused: they cannot be mended.
    """
    checkpoint = checkpoint_of(folder)
    if checkpoint is None:
        return
    weights = lost_model(folder, checkpoint)
    if weights is not None:
        logger.warning(f"{weights.problem}; it is made anew of {weights.file.name}, a checkpoint of the same epoch.")
        write_tensors(without_training_heads(weights.content["network"]), folder.model)
    if checkpoint.problem is not None:
        logger.warning(
            f"{checkpoint.problem}; {folder.previous} takes its place, and the training goes on after epoch "
            f"{checkpoint.content['epoch']}."
        )
        with writing(folder.last):
            folder.previous.replace(folder.last)


def lost_model(folder: RunFolder, checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint that holds the weights of a model.pt that is missing or damaged; None where nothing is lost.

    Raises:
        StartUpRefused: model.pt is lost, and no checkpoint is of its epoch.
    """
    best = checkpoint.content["best_metric_epoch"]
    if best < 1:  # not validated yet: a model.pt there is of an epoch that will be trained again
        return None
    try:
        if not folder.model.exists():
            raise FileRefused(f"Expected {folder.model}, the weights of epoch {best}, got none", _BRING_BACK)
        refuse_changed(folder.model, _BRING_BACK)
        state_dict_of(folder.model, folder.model.name)
    except FileRefused as refused:
        for file, content in _readable(folder):
            if content["epoch"] == best:
                return Checkpoint(file, content, refused.problem)
        raise
    return None


def _readable(folder: RunFolder) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for file in (folder.last, folder.previous):
        try:
            yield file, _read(file)
        except FileRefused:
            continue


def _read(file: Path) -> dict[str, Any]:
    """The content of a checkpoint, of which another one may take the place."""
    if not file.exists():
        raise FileRefused(f"Expected {file}, got none", _BRING_BACK)
    try:
        return read_checkpoint(file)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileRefused(f"Expected to read {file}, got: {reason}", _BRING_BACK) from None
