"""The structures of a RTSTRUCT object (DICOM PS3.3, A.19): closed contours, filled on the slices of their series."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from monai_extra_losses.data.dicom_header import damage_as_sentence
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.structures import Note, Structure, clean_name, good_parts
from monai_extra_losses.data.volume_source import VolumeGrid

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")  # which even-odd filling makes the same
_OFF_PLANE = 0.5  # slices that a contour may lie off one
_SAME_PLANE = 0.1  # slices that contours on one may lie apart
_GAPS = "contours are missing on slices between the first and the last of a structure, where it is taken as absent"
_NO_AREA = "points and open contours are left out"

_Contour = tuple[str, NDArray[np.float64]]  # geometric type, and (N, 3) points in mm


def read_rtstruct(file: Path, grid: VolumeGrid) -> tuple[list[Structure], tuple[Note, ...]]:
    """The structures of an object, and what to say of them.

    A voxel is inside where its centre is: where a line from it crosses the contours of its slice an odd number of
    times, so that holes may be contours of their own or cut in by a channel of no width.

    Raises:
        DatasetError: a damaged file, or contours that do not lie on the slices of the grid.
    """
    with damage_as_sentence(file):
        content = dcmread(file, force=True)
        names = {int(item.ROINumber): item.get("ROIName") for item in content.StructureSetROISequence}
        contours: dict[int, list[_Contour]] = {}
        colors: dict[int, Sequence[int]] = {}
        for item in content.get("ROIContourSequence") or ():
            number = int(item.ReferencedROINumber)
            contours.setdefault(number, []).extend(map(_contour, item.get("ContourSequence") or ()))
            colors[number] = [int(part) for part in item.get("ROIDisplayColor") or ()]
    structures: list[Structure] = []
    notes: list[Note] = []
    problems: list[str] = []
    for number, given in names.items():
        name = clean_name(given, f"structure {number}")
        of_kind = contours.get(number, [])
        if others := [kind for kind, _ in of_kind if kind not in _CLOSED]:
            notes.append((_NO_AREA, f"{len(others)} of {name} in {file.name}"))
        try:
            planes = _by_plane(
                file, name, [points for kind, points in of_kind if kind in _CLOSED and len(points)], grid
            )
        except DatasetError as error:
            problems += error.problems
            continue
        if planes and (missing := sorted(set(range(min(planes), max(planes))) - planes.keys())):
            notes.append((_GAPS, f"{name} in {file.name} on {len(missing)}"))
        structures.append(Structure(name, partial(_filled, planes, grid), good_parts(color=colors.get(number))))
    if problems:
        raise DatasetError(problems)
    return structures, tuple(notes)


def _contour(item: Any) -> _Contour:
    points = np.array(item.get("ContourData") or (), float).reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ValueError("points of a contour that are no numbers")
    return str(item.get("ContourGeometricType", "")), points


def _by_plane(
    file: Path, name: str, contours: Sequence[NDArray[np.float64]], grid: VolumeGrid
) -> dict[int, list[NDArray[np.float64]]]:
    """Slice -> its contours, (N, 2) column and row of their points."""
    to_index = np.linalg.inv(np.reshape(grid.direction, (3, 3)) * grid.spacing)
    planes: dict[int, list[NDArray[np.float64]]] = {}
    heights: dict[int, list[float]] = {}
    off = 0
    for points in contours:
        # so that a point on the centre of a voxel is on it whatever the rounding
        index = np.round((points - grid.origin) @ to_index.T, 6).astype(np.float64)
        plane = int(np.rint(index[:, 2].mean()))
        if not 0 <= plane < grid.shape[2] or np.abs(index[:, 2] - plane).max() > _OFF_PLANE:
            off += 1
            continue
        planes.setdefault(plane, []).append(index[:, :2])
        heights.setdefault(plane, []).append(float(index[:, 2].mean()))
    if off:
        raise DatasetError(
            f"{file}: expected the contours of {name!r} on the slices of its series, within half a slice, got {off} of "
            f"{len(contours)} elsewhere; is the series whole, and were they drawn on it?"
        )
    if between := sum(max(at) - min(at) > _SAME_PLANE for at in heights.values()):
        raise DatasetError(
            f"{file}: expected the contours of {name!r} on the slices of its series, got contours at several heights "
            f"for {between} of its {len(planes)} slices; were they drawn on thinner slices? Give these."
        )
    return planes


def _filled(planes: dict[int, list[NDArray[np.float64]]], grid: VolumeGrid) -> NDArray[np.bool_]:
    """The voxels whose centres are inside, of axes z, y, x."""
    columns, rows, slices = grid.shape
    inside = np.zeros((slices, rows, columns), bool)
    for plane, contours in planes.items():
        inside[plane] = inside_contours(contours, rows, columns)
    return inside


def inside_contours(contours: Sequence[NDArray[np.float64]], rows: int, columns: int) -> NDArray[np.bool_]:
    """The pixels (row, column) whose centres lie in an odd number of closed contours.

    A centre on the left or upper edge of an area is in it, and one on the right or lower edge is not, so that areas
    that share an edge share no pixel.

    Args:
        contours: (N, 2) column and row of the points of each; the last one is joined to the first.
        rows, columns: of the slice.
    """
    starts = np.concatenate(contours)
    ends = np.concatenate([np.roll(points, -1, axis=0) for points in contours])
    rising = starts[:, 1] < ends[:, 1]
    upper, lower = np.where(rising[:, None], starts, ends), np.where(rising[:, None], ends, starts)
    # each edge crosses the lines of pixels from its upper end to before its lower one
    first = np.clip(np.ceil(upper[:, 1]), 0, rows).astype(np.int64)
    count = np.clip(np.ceil(lower[:, 1]), 0, rows).astype(np.int64) - first
    edge = np.repeat(np.arange(len(count)), count)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    slope = (lower[edge, 0] - upper[edge, 0]) / (lower[edge, 1] - upper[edge, 1])
    crossing = upper[edge, 0] + (row - upper[edge, 1]) * slope
    # a crossing turns over all pixels from there on
    turns = np.zeros((rows, columns + 1), np.int64)
    np.add.at(turns, (row, np.clip(np.ceil(np.round(crossing, 6)), 0, columns).astype(np.int64)), 1)
    inside: NDArray[np.bool_] = np.cumsum(turns[:, :columns], axis=1) % 2 == 1
    return inside
