"""Structures that a DICOM object outlines, each by itself, as a label map on the grid of the series."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.data.label_layers import LayeredLabel
from monai_extra_losses.data.segments import segment_problem

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
    """The structures of a DICOM SEG or RTSTRUCT as a label; each load reads the file anew.

    Args:
        shown: name -> how DICOM shows and codes it, of each structure in the order of `read`.
        read: gives the structures.
        instance: SOPInstanceUID of the object.
        left_out: names of the structures that are not asked for.
        notes: on what was read.
    """

    shown: dict[str, Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    read: Callable[[], Sequence[Structure]] = tuple
    instance: str = ""
    left_out: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def names(self) -> dict[int, str]:
        """Value in the label map -> name of the structure."""
        return dict(enumerate(self.shown, start=1))

    def _parts(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        for number, structure in enumerate(self.read(), start=1):
            yield number, structure.mask()


def clean_name(text: Any, otherwise: str) -> str:
    """A name of a DICOM object on one line and without control characters; another where it has none."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text or "")).split()) or otherwise


def good_parts(**parts: Any) -> dict[str, tuple[Any, ...]]:
    """Colour and codes of a DICOM object, without those that dataset.json may not have."""
    return {name: tuple(value) for name, value in parts.items() if value and not segment_problem({name: value})}
