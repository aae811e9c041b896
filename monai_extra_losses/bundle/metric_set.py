"""What a set of metrics of an evaluation is, beside Dice, surface distances and volumes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.bundle.run_folder import ResultsFolder

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class CaseMetric:
    """A number of each case and class.

    Args:
        name: of its columns, with the unit where it has one: hd95_mm.
        heading: in the printed table; None: in the files alone.
        higher_is_better: or lower; None: neither, as of a count.
        meaning: for the legend, from where the name ends; when it is undefined, too.
        decimals: in the printed table.
        undefined: heading of the printed number of cases in which it is undefined; None: not printed.
    """

    name: str
    heading: str | None
    higher_is_better: bool | None
    meaning: str = ""
    decimals: int = 3
    undefined: str | None = None

    @property
    def legend(self) -> str:
        """The sentence of the legend."""
        better = {True: " (higher is better)", False: " (lower is better)", None: ""}[self.higher_is_better]
        return f"{self.heading}{better}: {self.meaning}"


@dataclass(frozen=True)
class VoxelGrid:
    """Where voxels lie.

    Args:
        spacing: in mm.
        affine: (4, 4), voxel indices to mm.
    """

    spacing: Sequence[float]
    affine: NDArray[np.float64]

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return float(np.prod(self.spacing)) / 1000


@dataclass(frozen=True)
class Measured:
    """What a set measured of one class in one case.

    Args:
        numbers: name of a metric -> number; NaN where it is undefined, which is counted and left out of means.
        objects: rows of a further table of the set, such as one per lesion.
        missed, invented: what the picture of the case marks, bool (X, Y, Z): objects of the target that were not found,
            and predicted ones that are none; None for a set that knows no objects.
    """

    numbers: Mapping[str, float]
    objects: Sequence[Mapping[str, Any]] = ()
    missed: Mask | None = None
    invented: Mask | None = None


class MetricSet:
    """Metrics that are measured together.

    Args:
        metrics: those of a case alone, in the order of the tables.
    """

    def __init__(self, metrics: tuple[CaseMetric, ...]) -> None:
        self.metrics = metrics

    def measure(self, prediction: Mask, target: Mask, grid: VoxelGrid) -> Measured:
        """Measure one class in one case.

        Args:
            prediction, target: bool (X, Y, Z), without what is not annotated.
            grid: of both.
        """
        raise NotImplementedError

    def of_case(
        self, item: Mapping[str, Any], number: int, prediction: Mask, target: Mask, grid: VoxelGrid
    ) -> Measured:
        """Measure one class in one case; of what else the case has, where a set needs it.

        Args:
            item: the case, as the evaluation left it.
            number: of the class, from 1.
            prediction, target, grid: as of `measure`.
        """
        del item, number
        return self.measure(prediction, target, grid)

    def over_all_cases(
        self, rows: Sequence[dict[str, Any]], objects: Sequence[Mapping[str, Any]]
    ) -> tuple[CaseMetric, ...]:
        """Add to the rows what needs all cases, and say which metrics these are.

        Args:
            rows: `case`, `label` and what was measured; `run` too, where several runs are pooled.
            objects: these and the objects measured.
        """
        del rows, objects
        return ()

    def legend(self) -> list[str]:
        """Sentences about the printed tables."""
        return [metric.legend for metric in self.metrics if metric.meaning]

    def further_table(self, names: Sequence[str], objects: Sequence[Mapping[str, Any]]) -> str:
        """What is printed below the table of the metrics: of the objects of all cases, a row per class."""
        del names, objects
        return ""

    def write(self, folder: ResultsFolder, objects: Sequence[Mapping[str, Any]]) -> str:
        """Write files beside the tables of all sets; says which."""
        del folder, objects
        return ""

    def read(self, folder: ResultsFolder) -> list[dict[str, Any]]:
        """The objects in the files that `write` wrote."""
        del folder
        return []
