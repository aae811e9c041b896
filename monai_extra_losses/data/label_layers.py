"""Labels that name their structures, or keep each in a layer or file of its own, as label maps.

The .seg.nrrd of 3D Slicer and the .nrrd of MITK say in their header which value of which layer is which segment. Other
volumes of several values per voxel have a layer per structure, and some data sets a file per structure. Layers and
files that do not overlap make one label map; those that do are refused.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.folder_files import named
from monai_extra_losses.data.label_ids import count_ids
from monai_extra_losses.data.volume_source import VolumeSource
from monai_extra_losses.data.volumes import open_volume

_FIELD = re.compile(rb"Segment(\d{1,6})_(Name|LabelValue|Layer):=(.*)")
_MITK = b"org.mitk.multilabel.segmentation.labelgroups:="
_LONGEST_HEADER = 1 << 24
_MOST_LAYERS = 255
_MOST_OVERLAPPING = 62  # bits of a whole number


@dataclass(frozen=True)
class Segment:
    """A structure in the header of a .seg.nrrd file.

    Args:
        name: as its author wrote it.
        layer: of the file.
        value: of its voxels in that layer.
    """

    name: str
    layer: int
    value: int


@dataclass(frozen=True)
class LayeredLabel(VolumeSource):
    """A label whose structures lie in layers or files of their own.

    Args:
        segments: of the header, in its order; empty where it has none.
        masks: name -> file of each structure, which `files` has too.
        overlapping: structures may share voxels: a voxel has the sum of 1, 2, 4, ... of the structures that it is in.
    """

    segments: tuple[Segment, ...] = ()
    masks: tuple[tuple[str, VolumeSource], ...] = ()
    overlapping: bool = False

    def load(self) -> sitk.Image:
        """The label map: 1, 2, ... in the order of `names`; without names each layer has the number of its place.

        Raises:
            DatasetError: voxels that cannot be read, or that belong to two structures or to none of the header; a
                layer without names that holds more than one value.
        """
        if self.overlapping:
            return self._placed(self._sums())
        names = [*self.names.values()] or [f"layer {number}" for number in range(self.layers)]
        label = np.zeros(self.grid.shape[::-1], np.min_scalar_type(len(names)))
        doubled = 0
        pairs: dict[tuple[str, str], int] = {}
        for number, inside in self._parts():
            if (before := label[inside]).any():
                twice = np.bincount(before[before > 0])
                for other in np.flatnonzero(twice):
                    pairs[names[other - 1], names[number - 1]] = int(twice[other])
                doubled += int(np.count_nonzero(before))
            label[inside] = number
        if not self.names and not doubled and label.all():  # one-hot, with the background as the first layer
            label -= 1
        elif doubled:
            (first, second), count = max(pairs.items(), key=lambda pair: pair[1])
            more = f" and {len(pairs) - 1} more pairs" if len(pairs) > 1 else ""
            raise DatasetError(
                f"{self.path}: expected structures that do not overlap, got {count} voxels in {first!r} and {second!r}"
                f"{more}; give each voxel to one of them, the overlap a structure of its own where it is meant, and "
                "declare `regions` for those that hold others, or let --regions do both."
            )
        return self._placed(label)

    def combination(self, value: int) -> tuple[str, ...]:
        """The structures in which a voxel of a value is, where they are `overlapping`."""
        return tuple(name for number, name in self.names.items() if value >> (number - 1) & 1)

    def _sums(self) -> NDArray[np.int64]:
        if not 0 < len(self.names) <= _MOST_OVERLAPPING:
            raise DatasetError(
                f"{self.path}: expected 1 to {_MOST_OVERLAPPING} structures with names for --regions, got "
                f"{len(self.names)}; choose fewer."
            )
        label = np.zeros(self.grid.shape[::-1], np.int64)
        for number, inside in self._parts():
            label[inside] |= 1 << (number - 1)
        return label

    def _placed(self, label: NDArray[Any]) -> sitk.Image:
        image = sitk.GetImageFromArray(label)
        image.SetSpacing(self.grid.spacing)
        image.SetOrigin(self.grid.origin)
        image.SetDirection(self.grid.direction)
        return image

    @property
    def names(self) -> dict[int, str]:
        """Value in the label map -> name of the structure."""
        found = [segment.name for segment in self.segments] or [name for name, _ in self.masks]
        return dict(enumerate(found, start=1))

    def _parts(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """The number of each structure, and where it is."""
        if self.masks:
            for number, (_, mask) in enumerate(self.masks, start=1):
                loaded = mask.load()  # a view does not keep its image alive
                yield number, _inside(mask.path, sitk.GetArrayViewFromImage(loaded))
            return
        layers = self.load_layers()
        if not self.segments:
            for number, layer in enumerate(layers, start=1):
                yield number, _inside(f"{self.path}, layer {number - 1}", layer)
            return
        for number, segment in enumerate(self.segments, start=1):
            yield number, layers[segment.layer] == segment.value
        for place, layer in enumerate(layers):
            known = {0, *(segment.value for segment in self.segments if segment.layer == place)}
            if foreign := sorted(count_ids(layer).voxels.keys() - known):
                raise DatasetError(_without_segment(self.path, foreign))


def open_label(
    path: Path, masks: Sequence[tuple[str, Path]] = (), *, overlapping: bool = False
) -> tuple[VolumeSource, dict[int, str]]:
    """Read the header of a label.

    Args:
        path: a file or DICOM folder as of `open_volume`, which may have layers; with `masks` the folder of these.
        masks: name -> file of each structure.
        overlapping: structures may share voxels; then each has a layer or file of its own.

    Returns:
        The label, and value -> name of what it names; `LayeredLabel` where its values are those of this file alone.

    Raises:
        DatasetError: as `open_volume`; masks on different grids; an `overlapping` label of one layer, or without names.
    """
    if masks:
        sources = [(name, open_volume(file)) for name, file in sorted(masks)]
        first = sources[0][1]
        for _, source in sources:
            if not source.grid.matches(first.grid):
                raise DatasetError(
                    f"{source.path}: expected the grid of {first.path}, got another; resample it onto that grid."
                )
        files = tuple(file for _, source in sources for file in source.files)
        remarks = tuple(dict.fromkeys(remark for _, source in sources for remark in source.remarks))
        label = LayeredLabel(
            path, files, first.grid, sitk.sitkUInt16, remarks=remarks, masks=tuple(sources), overlapping=overlapping
        )
        return label, label.names
    source = open_volume(path, layered=True)
    segments = _segments_of(path) if path.name.lower().endswith((".nrrd", ".nhdr")) else ()
    if overlapping and (source.layers == 1 or not segments):
        raise DatasetError(
            f"{path}: expected structures that may overlap, in named layers or a file each, for --regions, got a label "
            "map; leave --regions out."
        )
    if source.layers == 1:
        return source, {segment.value: segment.name for segment in segments}
    if source.layers > _MOST_LAYERS:
        raise DatasetError(
            f"{path}: expected a label map, or a layer per structure, got {source.layers} layers; is this the label?"
        )
    if outside := [segment.name for segment in segments if segment.layer >= source.layers]:
        raise DatasetError(
            f"{path}: expected the layers of its segments, got {source.layers}, fewer than {outside[0]!r} needs; the "
            "header is damaged, save the segmentation again."
        )
    fields: dict[str, Any] = {name: getattr(source, name) for name in VolumeSource.__dataclass_fields__}
    label = LayeredLabel(**fields, segments=segments, overlapping=overlapping)
    return label, label.names


def refuse_values_without_segment(path: Path, values: Sequence[int], names: Mapping[int, str]) -> None:
    """Refuse a label that names its segments and has voxels of others.

    Raises:
        DatasetError: values above 0 without a name, in a label with names.
    """
    if names and (foreign := [value for value in values if value and value not in names]):
        raise DatasetError(_without_segment(path, foreign))


def _without_segment(path: Path, values: Sequence[int]) -> str:
    return (
        f"{path}: expected voxels of the segments in its header, got the value{'s' * (len(values) > 1)} "
        f"{named(list(map(str, values)))} of none; save the segmentation again."
    )


def _segments_of(path: Path) -> tuple[Segment, ...]:
    """The segments in the header of a NRRD file, in their order."""
    with path.open("rb") as stream:
        header = stream.read(_LONGEST_HEADER)
    end = re.search(rb"\r?\n\r?\n", header)
    lines = header[: end.start() if end else len(header)].splitlines()
    segments = [*_segments_of_slicer(path, lines), *_segments_of_mitk(path, lines)]
    places = [(segment.layer, segment.value) for segment in segments]
    if doubled := [segment.name for segment in segments if places.count((segment.layer, segment.value)) > 1]:
        raise DatasetError(
            f"{path}: expected a value of its own for each segment, got one for {named(doubled)}; save it again."
        )
    return tuple(segments)


def _segments_of_slicer(path: Path, lines: Sequence[bytes]) -> Iterator[Segment]:
    """Segments as 3D Slicer writes them: Segment0_Name:=liver, and so on."""
    fields: dict[int, dict[bytes, str]] = {}
    for line in lines:
        if match := _FIELD.fullmatch(line):
            fields.setdefault(int(match[1]), {})[match[2]] = _text(match[3])
    # before version 5, 3D Slicer wrote a layer of 0 and 1 per segment
    old = [number for number in fields if b"LabelValue" not in fields[number]]
    for place, number in enumerate(sorted(fields)):
        found = fields[number]
        layer, value = found.get(b"Layer", str(place) if number in old else "0"), found.get(b"LabelValue", "1")
        yield _segment(path, found.get(b"Name"), layer, value, f"segment {number}")


def _segments_of_mitk(path: Path, lines: Sequence[bytes]) -> Iterator[Segment]:
    """Labels as MITK writes them: groups in JSON, a layer each."""
    line = next((line for line in lines if line.startswith(_MITK)), None)
    if line is None:
        return
    try:
        groups = json.loads(_text(line.removeprefix(_MITK)))
        found = [(layer, label) for layer, group in enumerate(groups) for label in group.get("labels") or ()]
        entries = [(label.get("name"), layer, label.get("value")) for layer, label in found]
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise DatasetError(
            f"{path}: expected the labels of MITK in its header, got text that is none; save the segmentation again."
        ) from None
    for name, layer, value in entries:
        yield _segment(path, name, str(layer), str(value), f"a label of group {layer}")


def _segment(path: Path, name: Any, layer: str, value: str, which: str) -> Segment:
    text = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", name).split()) if isinstance(name, str) else ""
    if not text or not re.fullmatch(r"\d{1,9} 0*[1-9]\d{0,8}", f"{layer} {value}"):
        raise DatasetError(
            f"{path}: expected a name, a layer and a value above 0 of each segment in the header, got {text!r:.80}, "
            f"{layer!r:.20} and {value!r:.20} of {which}; save it again."
        )
    return Segment(text, int(layer), int(value))


def _text(value: bytes) -> str:
    """A value of a NRRD header, in which a backslash and n stand for a new line, and two for one backslash."""
    text = value.decode("utf-8", errors="replace")
    return re.sub(r"\\(.)", lambda escape: "\n" if escape[1] == "n" else escape[1], text)


def _inside(where: Path | str, mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a mask of 0 and one other value is not 0."""
    inside: NDArray[np.bool_] = mask != 0
    values = mask[inside]
    if values.size and not (values == values[0]).all():
        raise DatasetError(
            f"{where}: expected a mask of 0 and one value, got {values.min():g} to {values.max():g} beside 0; "
            "is it a label map, or are these probabilities? Threshold it, or give the label maps alone."
        )
    return inside
