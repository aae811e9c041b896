"""Segmentations of DICOM series as DICOM SEG objects (DICOM PS3.3, A.51), which highdicom makes."""

import dataclasses
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM, DSfloat

from monai_extra_losses import __version__
from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.quiet import quiet_pydicom
from monai_extra_losses.data.segments import Segments
from monai_extra_losses.data.volume_source import VolumeSource
from monai_extra_losses.data.volumes import open_volume

logger = logging.getLogger(__name__)

GENERIC_CATEGORY = ("91723000", "SCT", "Anatomical Structure")
"""Of a class without a code; one of CID 7150, Segmentation Property Category."""

GENERIC_TYPE = ("85756007", "SCT", "Tissue")
"""Of a class without a code; one of CID 7151, Segmentation Property Type."""

# Of classes without a color, in turn: matplotlib's tab10, red and green first.
_COLORS = (
    *((214, 39, 40), (44, 160, 44), (31, 119, 180), (255, 127, 14), (148, 103, 189)),
    *((140, 86, 75), (227, 119, 194), (188, 189, 34), (23, 190, 207), (127, 127, 127)),
)

_FAMILY = ("123110", "DCM", "Artificial Intelligence")
_NAME = "monai_extra_losses"
_IDENTIFIERS = ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID")

# What must be there and may be empty (type 2) -> whether DICOM allows a value.
_MAY_BE_EMPTY: dict[str, Callable[[Any], object]] = {
    **dict.fromkeys(("PatientID", "PatientName", "AccessionNumber", "StudyID", "ReferringPhysicianName"), str),
    **dict.fromkeys(("PatientBirthDate", "StudyDate"), DA),
    "StudyTime": TM,
    "PatientSex": lambda value: {"M": value, "F": value, "O": value}[value],
}

_LONGEST_TEXT = 64  # characters of the value representation LO
_SERIES_NUMBERS = 1000  # above those of the images


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DicomSegmentation:
    """Writes a case of a DICOM series as a DICOM SEG object: binary, a segment per class or region.

    It lies on the grid and in the frame of reference of the series, and refers to its instances. What the images lack
    of patient and study is empty, and so is what is no date, time or sex of DICOM.

    Args:
        cases: case -> its files and DICOM folders; the segmentation is of the first of these.
        series: picks a series of each folder, as `open_volume` says.
        classes: name -> values of a label map that are in it; regions may share some.
        segments: colours and codes of some of them.
        made_of: case -> its `model`, as `SegmentationRecord` has it.
    """

    cases: Mapping[str, Sequence[Path]]
    series: str | None
    classes: Mapping[str, Sequence[int]]
    segments: Segments
    made_of: Mapping[str, Mapping[str, Any]]

    @quiet_pydicom
    def __call__(self, case: str, label: NDArray[Any], file: Path) -> None:
        """Write a label map of axes x, y, z on the grid of the series.

        Raises:
            DatasetError: images without the identifiers by which an object refers to them.
        """
        folder = next(path for path in self.cases[case] if path.is_dir())
        source = open_volume(folder, self.series)
        headers = source_headers(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of text that the images have
            try:
                made = self._made(headers, label, self.made_of[case]["model"])
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise DatasetError(
                    f"{folder}: expected a series that a DICOM SEG can refer to, got one that highdicom refuses "
                    f"({' '.join(str(error).split())}); leave dicom_seg out of --output_type."
                ) from error
            made.save_as(file)

    def _made(self, headers: Sequence[Dataset], label: NDArray[Any], model: str | Sequence[str]) -> Dataset:
        import highdicom as hd

        frames = segment_frames(label, list(self.classes.values()))
        first = headers[0]
        models = [model] if isinstance(model, str) else list(model)
        positions = None  # those of the images
        if not frames.any():
            logger.info("No class has a voxel: all segments are empty")
            frames = frames[:1]  # an object has a frame at least
            positions = [hd.PlanePositionSequence("PATIENT", first.ImagePositionPatient)]
        made = hd.seg.Segmentation(
            source_images=headers,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[self._description(n, name) for n, name in enumerate(self.classes, start=1)],
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBERS + _whole_number(first, "SeriesNumber"),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=_NAME,
            manufacturer_model_name=_NAME,
            software_versions=__version__,
            device_serial_number="_".join(checksum[:12] for checksum in models)[:_LONGEST_TEXT],
            plane_positions=positions,
            content_label="SEGMENTATION",
            content_description=_text(f"By {len(models)} model{'s' * (len(models) > 1)}, SHA-256 {models[0][:32]}"),
            series_description=_text(f"Segmentation of {first.get('SeriesDescription') or 'images'}"),
            specific_character_set="ISO_IR 192",
        )
        made.ContentCreatorName = ""  # must be there, and may be empty
        return made

    def _description(self, number: int, name: str) -> Any:
        import highdicom as hd
        from pydicom.sr.coding import Code

        def code(parts: Sequence[int | str]) -> Code:
            return Code(*map(str, parts))

        entry = self.segments.get(name, {})
        color = map(int, entry.get("color", _COLORS[(number - 1) % len(_COLORS)]))
        return hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=_text(name),
            segmented_property_category=code(entry.get("category", GENERIC_CATEGORY)),
            segmented_property_type=code(entry.get("type", GENERIC_TYPE)),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name=_NAME, family=code(_FAMILY), version=__version__
            ),
            tracking_uid=(uid := hd.UID()),
            tracking_id=f"{_text(name)} {uid[-8:]}",
            display_color=hd.color.CIELabColor.from_rgb(*color),
        )


def segment_frames(label: NDArray[Any], classes: Sequence[Sequence[int]]) -> NDArray[np.uint8 | np.uint16]:
    """The slices of a label map of axes x, y, z as highdicom takes them.

    Returns:
        (slice, row, column) of numbers of segments from 1 on; where segments share values, (slice, row, column,
        segment) of 0 and 1.
    """
    values = [value for of_class in classes for value in of_class]
    by_slice = label.transpose(2, 1, 0)
    if len(set(values)) < len(values):
        frames = np.empty((*by_slice.shape, len(classes)), np.uint8)
        for number, of_class in enumerate(classes):
            frames[..., number] = np.isin(by_slice, of_class)
        return frames
    numbers = np.zeros(by_slice.shape, np.uint8 if len(classes) < 256 else np.uint16)
    for number, of_class in enumerate(classes, start=1):
        for value in of_class:
            numbers[by_slice == value] = number
    return numbers


def source_headers(source: VolumeSource) -> list[Dataset]:
    """The headers of a series' slices, with empty values for what DICOM requires and anonymisation takes out.

    Spacing and directions are those of the grid, on which slices may differ in the last digits.

    Raises:
        DatasetError: a slice without the identifiers of itself, its series or its study.
    """
    headers: list[Dataset] = [dcmread(file, stop_before_pixels=True, force=True) for file in source.files]
    for file, header in zip(source.files, headers, strict=True):
        for keyword in _IDENTIFIERS:
            if not header.get(keyword):
                raise DatasetError(
                    f"{file}: expected {keyword}, by which a DICOM SEG refers to it, got none; bring it back, or leave "
                    "dicom_seg out of --output_type."
                )
        for keyword, is_valid in _MAY_BE_EMPTY.items():
            if not _holds(header, keyword, is_valid):
                setattr(header, keyword, "")
    across, down, distance = source.grid.spacing
    directions = np.reshape(source.grid.direction, (3, 3))[:, :2].T.ravel()
    given = [float(part) for part in headers[0].ImageOrientationPatient]
    of_grid = [DSfloat(part, auto_format=True) for part in directions]
    orientation = headers[0].ImageOrientationPatient if np.allclose(given, directions, rtol=0, atol=1e-4) else of_grid
    if not headers[0].get("FrameOfReferenceUID"):
        logger.warning(
            f"{source.path}: the images have no FrameOfReferenceUID, so that their DICOM SEG gets one of its own; "
            "programs find the images by their SOPInstanceUIDs."
        )
        headers[0].FrameOfReferenceUID = generate_uid(entropy_srcs=[headers[0].SeriesInstanceUID, "frame of reference"])
    for header in headers:
        header.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
        header.ImageOrientationPatient = orientation
        header.PixelSpacing = [DSfloat(part, auto_format=True) for part in (down, across)]
        header.SpacingBetweenSlices = DSfloat(distance, auto_format=True)
        header.SliceThickness = header.get("SliceThickness") or header.SpacingBetweenSlices
    return headers


def _holds(header: Dataset, keyword: str, is_valid: Callable[[Any], object]) -> bool:
    """Whether a header has a valid value, which may be empty."""
    if keyword not in header:
        return False
    try:
        value = header[keyword].value
        return value in ("", None) or is_valid(value) is not None
    except Exception:  # whatever pydicom makes of such bytes
        return False


def _whole_number(header: Dataset, keyword: str) -> int:
    """A number of a header, 0 where it has none of a usual size."""
    text = str(header.get(keyword, "") or "")
    return int(text) if re.fullmatch(r"\d{1,8}", text) else 0


def _text(text: str) -> str:
    """A text as the value representation LO takes it: 64 characters, no backslash and no control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\\]", "_", text)[:_LONGEST_TEXT].strip() or "_"
