"""Which classes the cases of a training annotate, and the share of each class in the patches that tell of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.data.annotation import annotates
from monai_extra_losses.data.datalist import read_case_list


class CaseAnnotation:
    """What the cases of a training annotate of its classes, or of its regions.

    Args:
        record: of the training; its data set is read again, without a volume.
    """

    def __init__(self, record: RunRecord) -> None:
        self._of_case = {case.name: case.annotated for case in read_case_list(record.dataset_dir).cases}
        # the background is told of where every class is: elsewhere it holds others
        self._classes = record.regions or {
            name: (value,) if value else tuple(record.labels) for value, name in record.labels.items()
        }
        cases = [self._of_case.get(name) for name in (*record.training, *record.validation)]
        self.cases = len(cases)
        self.partly_annotated_cases = sum(not annotates(annotated, record.labels) for annotated in cases)

    def told(self, cases: Sequence[str]) -> Tensor:
        """(classes, cases): whether a case tells of a class."""
        rows = [[annotates(self._of_case.get(case), values) for case in cases] for values in self._classes.values()]
        return torch.tensor(rows, dtype=torch.bool)


def shares_told(counts: Tensor, voxels: Tensor, told: Tensor) -> list[float | None]:
    """The share of each class among the voxels of the patches that tell of it; None where none does.

    Args:
        counts: (classes, patches), voxels of a class.
        voxels: (patches,), all that count.
        told: (classes, patches).
    """
    found = (counts * told).sum(1).tolist()
    every = (voxels * told).sum(1).tolist()
    return [count / whole if whole else None for count, whole in zip(found, every, strict=True)]
