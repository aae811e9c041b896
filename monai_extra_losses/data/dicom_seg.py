"""The segments of a DICOM SEG object (DICOM PS3.3, A.51), which highdicom reads, on the grid of their series."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_extra_losses.data.dicom_header import damage_as_sentence
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.nifti import TOLERANCE
from monai_extra_losses.data.structures import Note, Structure, clean_name, good_parts
from monai_extra_losses.data.volume_source import VolumeGrid

_FRACTIONS = "segments of fractions are taken from one half on"


@dataclass(frozen=True)
class _Frames:
    """The frames of an object on a grid.

    Args:
        file: of the object.
        seg: as highdicom reads it.
        first: (N, 3) column, row and slice of the first pixel of each.
        segments: (N,) segment of each; of a label map 0.
        shape: of the grid, z, y, x.
    """

    file: Path
    seg: Any
    first: NDArray[np.int64]
    segments: NDArray[np.int64]
    shape: tuple[int, ...]

    def mask(self, number: int) -> NDArray[np.bool_]:
        """The voxels of a segment.

        Raises:
            DatasetError: pixels that cannot be read.
        """
        with damage_as_sentence(self.file):
            return self._mask(number)

    def _mask(self, number: int) -> NDArray[np.bool_]:
        inside = np.zeros(self.shape, bool)
        kind, rows, columns = self.seg.SegmentationType, self.seg.Rows, self.seg.Columns
        for frame in np.flatnonzero((self.segments == number) | (self.segments == 0)):
            pixels = self._pixels(int(frame))
            if kind == "FRACTIONAL":
                there = 2 * pixels.astype(np.int64) >= self.seg.MaximumFractionalValue
            else:
                there = pixels == (number if kind == "LABELMAP" else 1)
            x, y, z = self.first[frame]
            inside[z, y : y + rows, x : x + columns] |= there
        return inside

    def _pixels(self, frame: int) -> NDArray[Any]:
        size = self.seg.Rows * self.seg.Columns
        if self.seg.BitsAllocated > 1 or self.seg.file_meta.TransferSyntaxUID.is_encapsulated:
            pixels: NDArray[Any] = self.seg.get_stored_frame(frame + 1)
            return pixels
        # highdicom 0.28.2 fails on frames that do not end with a byte
        first = frame * size
        packed = np.frombuffer(self.seg.PixelData, np.uint8)[first // 8 : -(-(first + size) // 8)]
        bits = np.unpackbits(packed, bitorder="little")[first % 8 :]
        return bits[:size].reshape(self.seg.Rows, self.seg.Columns)


def read_seg(file: Path, grid: VolumeGrid) -> tuple[list[Structure], tuple[Note, ...]]:
    """The segments of an object, and what to say of them.

    Raises:
        DatasetError: a damaged file, or frames that do not lie on the voxels of the grid.
    """
    try:
        import highdicom as hd
    except ImportError:
        raise DatasetError(
            f"{file}: expected highdicom, which reads DICOM SEG, got none; install it: pip install highdicom, or this "
            "package with its extra [dicom]."
        ) from None
    with damage_as_sentence(file):
        seg = hd.seg.segread(file)
        frames = _frames(file, seg, grid)
        structures = [_structure(hd, frames, item) for item in seg.SegmentSequence if item.SegmentNumber > 0]
    return structures, ((_FRACTIONS, file.name),) if seg.SegmentationType == "FRACTIONAL" else ()


def _structure(hd: Any, frames: _Frames, item: Any) -> Structure:
    number = int(item.SegmentNumber)
    lab = item.get("RecommendedDisplayCIELabValue")
    return Structure(
        clean_name(item.get("SegmentLabel") or item.get("SegmentDescription"), f"segment {number}"),
        lambda: frames.mask(number),
        good_parts(
            color=hd.color.CIELabColor.from_dicom_value(lab).to_rgb(clip=True) if lab else None,
            category=_code(item.get("SegmentedPropertyCategoryCodeSequence")),
            type=_code(item.get("SegmentedPropertyTypeCodeSequence")),
        ),
    )


def _code(items: Sequence[Any] | None) -> tuple[str, ...]:
    """Value, scheme and meaning of the first code."""
    if not items:
        return ()
    value = items[0].get("CodeValue") or items[0].get("LongCodeValue")
    return tuple(str(part or "") for part in (value, items[0].get("CodingSchemeDesignator"), items[0].CodeMeaning))


def _frames(file: Path, seg: Any, grid: VolumeGrid) -> _Frames:
    shared, each = seg.SharedFunctionalGroupsSequence[0], seg.PerFrameFunctionalGroupsSequence
    if len(each) != seg.NumberOfFrames:
        raise DatasetError(
            f"{file}: expected a description of each of its {seg.NumberOfFrames} frames, got {len(each)}; export it "
            "again."
        )

    def of_frames(sequence: str, keyword: str) -> NDArray[np.float64]:
        return np.array([(one if sequence in one else shared)[sequence].value[0][keyword].value for one in each], float)

    places = of_frames("PlanePositionSequence", "ImagePositionPatient")
    directions = of_frames("PlaneOrientationSequence", "ImageOrientationPatient").reshape(-1, 2, 3)
    spacing = of_frames("PixelMeasuresSequence", "PixelSpacing")
    numbers = (
        np.zeros(len(each), np.int64)
        if seg.SegmentationType == "LABELMAP"
        else of_frames("SegmentIdentificationSequence", "ReferencedSegmentNumber").astype(np.int64)
    )
    to_index = np.linalg.inv(np.reshape(grid.direction, (3, 3)) * grid.spacing)
    found = (places - grid.origin) @ to_index.T
    first = np.rint(found)
    last_column = directions[:, 0] * (spacing[:, 1:] * (seg.Columns - 1)) @ to_index.T
    last_row = directions[:, 1] * (spacing[:, :1] * (seg.Rows - 1)) @ to_index.T
    off = np.abs([found - first, last_column - [seg.Columns - 1, 0, 0], last_row - [0, seg.Rows - 1, 0]]).max(axis=0)
    outside = (first < 0) | (first > np.subtract(grid.shape, (seg.Columns, seg.Rows, 1)))
    if wrong := int(np.count_nonzero((off > TOLERANCE).any(axis=1) | outside.any(axis=1))):
        raise DatasetError(
            f"{file}: expected frames on the voxels of its series, {' x '.join(map(str, grid.shape))} of "
            f"{' x '.join(f'{mm:.3g}' for mm in grid.spacing)} mm, got {wrong} of {len(each)} elsewhere"
            f"{_where(off, outside)}; is the series whole? Else resample the segmentation onto the images, and give it "
            "as a label volume."
        )
    _refuse_missing(file, seg, first[:, 2])
    return _Frames(file, seg, first.astype(np.int64), numbers, grid.shape[::-1])


def _where(off: NDArray[np.float64], outside: NDArray[np.bool_]) -> str:
    if not (off[:, :2] > TOLERANCE).any() and (off[:, 2] > TOLERANCE).any():
        return " (between the slices)"
    return " (outside)" if not (off > TOLERANCE).any() and outside.any() else " (oblique, or of another spacing)"


def _refuse_missing(file: Path, seg: Any, planes: NDArray[np.float64]) -> None:
    """Refuse an object that says that its frames are a whole stack, and lacks some."""
    if seg.get("DimensionOrganizationType") == "3D":
        there = np.unique(planes)
        if missing := int(there[-1] - there[0]) + 1 - len(there):
            raise DatasetError(
                f"{file}: expected a stack of frames without a gap, as its DimensionOrganizationType 3D says, got "
                f"{missing} missing between the first and the last; export it again."
            )
