"""What the set-ups share: the run, its cases, and refusals of folders and machines."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai_extra_losses.bundle.options import file_or_folder
from monai_extra_losses.bundle.processes import is_first_process
from monai_extra_losses.bundle.run_folder import RunFolder, refuse_unwritable
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.data.datalist import CaseList, LabelledCase, read_case_list
from monai_extra_losses.data.errors import DatasetError, StartUpRefused


class RunSetUp:
    """What the training configs ask of a set-up, whether it starts a run or evaluates one.

    Args:
        folder: of the run.
        record: of the run.
        training, validation: cases.
        resume: go on from the last checkpoint.
    """

    def __init__(
        self,
        folder: RunFolder,
        record: RunRecord,
        training: Sequence[LabelledCase],
        validation: Sequence[LabelledCase],
        resume: bool = False,
    ) -> None:
        self.folder = folder
        self.record = record
        self.training_cases = [_item(case, record) for case in training]
        self.validation_cases = [_item(case, record) for case in validation]
        self.resume = resume
        self.cache_dir = Path(record.cache_dir or folder.cache)
        self.is_first_process = is_first_process()
        self.show_progress = self.is_first_process and sys.stderr.isatty()


def refuse_run_folder(folder: RunFolder, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or that holds a run which is neither to go on nor to be replaced."""
    refuse_unwritable("bundle_root (--run)", folder.root)
    found = folder.existing_run()
    if resume and found and not folder.has_checkpoint() and not folder.stopped_in_first_epoch():
        raise StartUpRefused(f"Expected {folder.last} to resume from, got none; train again with --overwrite True.")
    if found and not resume and not overwrite:
        raise StartUpRefused(
            f"{folder.root} already holds a run ({found.relative_to(folder.root)}); go on with it by --resume True, "
            "replace it by --overwrite True, or choose another --bundle_root (--run on the short command line)."
        )


def cases_of(dataset_dir: Any) -> CaseList:
    with problems_as_refusal():
        return read_case_list(str(file_or_folder("dataset_dir", dataset_dir)))


@contextlib.contextmanager
def problems_as_refusal() -> Iterator[None]:
    """Turns the problems of a data set into the text that ends the program."""
    try:
        yield
    except DatasetError as error:
        raise StartUpRefused(str(error)) from None


def _item(case: LabelledCase, record: RunRecord) -> dict[str, Any]:
    item = {"case": case.name, "image": [str(file) for file in case.image], "label": str(case.label)}
    if not record.partly_annotated:
        return item
    classes = zip(record.label_values, record.classes, strict=True)
    return {**item, "annotated": [number for value, number in classes if case.annotates(value)]}
