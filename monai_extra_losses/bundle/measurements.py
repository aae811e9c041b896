"""What a segmentation measures: volume, components, longest diameter and mean intensity of each class."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from monai_extra_losses.bundle.volumes_to_segment import read_any
from monai_extra_losses.data.quiet import quiet_pydicom
from monai_extra_losses.data.volume_source import VolumeSource
from monai_extra_losses.data.volumes import open_volume
from monai_extra_losses.ops.components import connected_components
from monai_extra_losses.versions import version_of

_FORMAT = 1
_PACKAGES = ("monai-extra-losses", "monai", "torch", "numpy")
_PAIRS_AT_ONCE = 1 << 22
_UIDS = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measurements:
    """Writes what is measured of a case's label map as JSON.

    Args:
        cases: case -> its files and DICOM folders, one per channel or one with all channels.
        series: picks a series of each folder, as `open_volume` says.
        classes: name -> values of a label map that are in it; regions may share some.
        channels: their names.
        made_of: case -> its `model`, as `SegmentationRecord` has it.
    """

    cases: Mapping[str, Sequence[Path]]
    series: str | None
    classes: Mapping[str, Sequence[int]]
    channels: Sequence[str]
    made_of: Mapping[str, Mapping[str, Any]]

    def __call__(self, case: str, label: NDArray[Any], file: Path) -> None:
        """Write what a label map of axes x, y, z on the grid of the case measures."""
        files = self.cases[case]
        channels, axes = _channels(files, self.series)
        measured: dict[str, dict[str, Any]] = {}
        for name, values in self.classes.items():
            inside = np.isin(label, values)
            means = {
                channel: float(voxels[inside].mean(dtype=np.float64)) if inside.any() else None
                for channel, voxels in zip(self.channels, channels, strict=True)
            }
            ids = values[0] if len(values) == 1 else list(values)
            measured[name] = {"label": ids, **shape_of(inside, axes), "mean_intensity": means}
        sources = _sources(files, self.series)
        content = {
            "format": _FORMAT,
            "case": case,
            "classes": measured,
            "image": [_shown(path, sources.get(path)) for path in files],
            "model": self.made_of[case]["model"],
            "versions": {package: version_of(package) for package in _PACKAGES},
            **_identifiers(next(iter(sources.values()), None)),
        }
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def shape_of(inside: NDArray[np.bool_], axes: NDArray[np.float64]) -> dict[str, float | int | None]:
    """Volume, number of components and longest diameter of a region.

    Voxels are neighbours by faces, edges and corners. The diameter is the largest distance between the centres of two
    voxels of the component with most voxels, so that of a single voxel it is 0.

    Args:
        inside: (X, Y, Z).
        axes: mm along each axis, the columns of a 3 x 3 matrix.

    Raises:
        ImportError: without cc3d.
    """
    if not inside.any():
        return {"volume_ml": 0.0, "components": 0, "longest_diameter_mm": None}
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in (np.flatnonzero(inside.any(axis=o)) for o in _OTHERS))
    components, number = connected_components(np.ascontiguousarray(inside[box]), None)
    largest = int(np.argmax(np.bincount(components.ravel())[1:])) + 1
    return {
        "volume_ml": int(np.count_nonzero(inside)) * abs(float(np.linalg.det(axes))) / 1000,
        "components": number,
        "longest_diameter_mm": longest_diameter(components == largest, axes),
    }


_OTHERS = ((1, 2), (0, 2), (0, 1))  # of each axis


def longest_diameter(inside: NDArray[np.bool_], axes: NDArray[np.float64]) -> float:
    """The largest distance in mm between the centres of two voxels; exact, for these are corners of the convex hull."""
    corners = _hull_corners(_outermost(inside)) @ axes.T
    rows = max(_PAIRS_AT_ONCE // len(corners), 1)
    return max(
        float(np.linalg.norm(corners[at : at + rows, None] - corners[None], axis=-1).max())
        for at in range(0, len(corners), rows)
    )


def _outermost(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N, 3) indices of the voxels that are first or last along every axis; a corner of the hull is one of them."""
    kept = inside
    for axis in range(3):
        is_end = np.zeros_like(inside)
        there = inside.any(axis=axis, keepdims=True)
        for at in (inside.argmax(axis=axis, keepdims=True), _last(inside, axis)):
            np.put_along_axis(is_end, at, there, axis=axis)
        kept = kept & is_end
    found: NDArray[np.int64] = np.argwhere(kept)
    return found


def _last(inside: NDArray[np.bool_], axis: int) -> NDArray[np.intp]:
    last: NDArray[np.intp] = inside.shape[axis] - 1 - np.flip(inside, axis).argmax(axis=axis, keepdims=True)
    return last


def _hull_corners(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those points of (N, 3) that are corners of their convex hull, and perhaps some more."""
    from scipy.spatial import ConvexHull

    steps = points - points[0]
    _, sizes, directions = np.linalg.svd(steps, full_matrices=False)
    flat = steps @ directions[sizes > 1e-9 * max(float(sizes[0]), 1.0)].T  # on a line or plane there are no volumes
    if flat.shape[1] == 0:
        return points[:1]
    if flat.shape[1] == 1:
        return points[[int(flat.argmin()), int(flat.argmax())]]
    corners: NDArray[np.int64] = points[ConvexHull(flat).vertices]
    return corners


def _channels(files: Sequence[Path], series: str | None) -> tuple[list[NDArray[Any]], NDArray[np.float64]]:
    """The voxels of each channel as they lie in the files, and mm along each axis."""
    channels: list[NDArray[Any]] = []
    for path in files:
        voxels, affine, _ = read_any(path, series)
        channels += [*np.moveaxis(voxels, -1, 0)] if voxels.ndim > 3 else [voxels]
    return channels, affine[:3, :3]


@quiet_pydicom
def _sources(files: Sequence[Path], series: str | None) -> dict[Path, VolumeSource]:
    """The DICOM series among the files, each by its folder."""
    return {path: open_volume(path, series) for path in files if path.is_dir()}


@quiet_pydicom
def _shown(path: Path, source: VolumeSource | None) -> Any:
    """A file, or a series with its identifiers."""
    if source is None:
        return str(path)
    uids = [_uid(file, "SOPInstanceUID") for file in source.files]
    return {
        "folder": str(path),
        "series_instance_uid": None if source.series is None else source.series.uid,
        "sop_instance_uids": uids,
    }


@quiet_pydicom
def _identifiers(source: VolumeSource | None) -> dict[str, str | None]:
    """The identifiers of a DICOM series, None where there is none."""
    first = None if source is None else source.files[0]
    names = ("series_instance_uid", "study_instance_uid", "frame_of_reference_uid")
    return {name: _uid(first, keyword) if first else None for name, keyword in zip(names, _UIDS, strict=True)}


def _uid(file: Path, keyword: str) -> str | None:
    found = dcmread(file, specific_tags=[keyword], stop_before_pixels=True, force=True).get(keyword)
    return str(found) if found else None
