"""Structures that a DICOM object outlines, each by itself, as a label map on the grid of the series."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_extra_losses.data.label_layers import LayeredLabel
from monai_extra_losses.data.segments import segment_problem
from monai_extra_losses.data.volume_source import DicomSeries, VolumeGrid

Note = tuple[str, str]
"""What a person should know of a label: a sentence that holds for many, and what it is about in this one."""


@dataclass(frozen=True)
class Structure:
    """A structure of a DICOM SEG or RTSTRUCT.

    Args:
        name: as its author wrote it.
        mask: makes the voxels in it, of axes z, y, x on the grid of the series.
        shown: how DICOM shows and codes it, as `data.segments` has it.
    """

    name: str
    mask: Callable[[], NDArray[np.bool_]]
    shown: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def joined(self, other: "Structure") -> "Structure":
        """Both as one."""
        return Structure(self.name, lambda: self.mask() | other.mask(), self.shown)


@dataclass(frozen=True)
class DicomLabel(LayeredLabel):
    """The structures of a DICOM SEG or RTSTRUCT as a label.

    Args:
        structures: each with a name of its own.
        instance: SOPInstanceUID of the object.
        left_out: names of the structures that are not asked for.
        notes: on what was read.
    """

    structures: tuple[Structure, ...] = ()
    instance: str = ""
    left_out: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()

    @classmethod
    def of(
        cls,
        file: Path,
        grid: VolumeGrid,
        structures: Sequence[Structure],
        *,
        identifiers: Mapping[str, str],
        left_out: tuple[str, ...],
        notes: Sequence[Note],
        overlapping: bool,
    ) -> Self:
        """The label of a file; `identifiers` has its SOPInstanceUID, SeriesInstanceUID and SeriesDescription."""
        return cls(
            path=file,
            files=(file,),
            grid=grid,
            pixel_type=sitk.sitkUInt16,
            series=DicomSeries(identifiers["SeriesInstanceUID"], identifiers["SeriesDescription"], (file,)),
            structures=tuple(structures),
            instance=identifiers["SOPInstanceUID"],
            left_out=left_out,
            notes=tuple(notes),
            overlapping=overlapping,
        )

    @property
    def names(self) -> dict[int, str]:
        """Value in the label map -> name of the structure."""
        return {number: structure.name for number, structure in enumerate(self.structures, start=1)}

    def _parts(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        for number, structure in enumerate(self.structures, start=1):
            yield number, structure.mask()


def clean_name(text: Any, otherwise: str) -> str:
    """A name of a DICOM object on one line and without control characters; another where it has none."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text or "")).split()) or otherwise


def good_parts(**parts: Any) -> dict[str, tuple[Any, ...]]:
    """Colour and codes of a DICOM object, without those that dataset.json may not have."""
    return {name: tuple(value) for name, value in parts.items() if value and not segment_problem({name: value})}
