"""The header of one DICOM file, as pydicom reads it."""

import contextlib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.datadict import dictionary_has_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.encaps import generate_fragments
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from monai_extra_losses.data.errors import DatasetError
from monai_extra_losses.data.volume_source import cannot_be_read

_WANTED = {
    keyword: Tag(keyword)
    for keyword in (
        "SpecificCharacterSet",
        "SOPClassUID",
        "SeriesDescription",
        "ImagerPixelSpacing",
        "SeriesInstanceUID",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "ImageDimensions",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "Planes",
        "PixelSpacing",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "RescaleIntercept",
        "RescaleSlope",
    )
}
_PIXELS = frozenset(Tag(keyword) for keyword in ("FloatPixelData", "DoubleFloatPixelData", "PixelData"))
_GROUP_OF_PIXELS = 0x7FE0
_FUNCTIONAL_GROUPS = 0x5200  # one item per frame, which takes long, and all that is wanted comes before
_BEGINNING = 4096  # bytes
_LAST_OF_BEGINNING = Tag("Modality")
_UNDEFINED = 0xFFFFFFFF
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a terminal would obey them
_PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


@dataclass(frozen=True, eq=False)
class DicomHeader:
    """What is read of a file with pixels.

    Args:
        file: the file.
        elements: those of `_WANTED` that it has.
        pixel_bytes: so many bytes of pixels lie behind the header; infinity where they are compressed and whole, None
            where pydicom cannot tell.
    """

    file: Path
    elements: FileDataset
    pixel_bytes: float | None

    @property
    def frames(self) -> int:
        """Images in the file; the oldest files have planes in place of frames."""
        has_planes = self.whole_number("ImageDimensions", 2) == 3
        return max(self.whole_number("NumberOfFrames", 1), self.whole_number("Planes", 1) if has_planes else 1)

    def has(self, keyword: str) -> bool:
        """Whether there is an element that is not empty."""
        element = self.elements.get_item(_WANTED[keyword])
        return element is not None and element.value not in (None, b"", "")

    def text(self, keyword: str) -> str:
        """A text, empty where there is none."""
        if not self.has(keyword):
            return ""
        try:
            text = _joined(self.elements[_WANTED[keyword]].value)
            if not self.has("SpecificCharacterSet"):
                # pydicom takes Latin-1 for a set that is not named; many programs write UTF-8, which is no accident.
                with contextlib.suppress(UnicodeError):
                    text = text.encode("latin-1").decode("utf-8")
        except Exception:  # of another type: whatever pydicom makes of such bytes
            return ""
        return _CONTROL.sub("?", text.strip("\0 "))

    def numbers(self, keyword: str, count: int = 1) -> tuple[float, ...]:
        """The numbers of an element, none where it is missing or empty.

        Raises:
            DatasetError: not `count` finite numbers.
        """
        if not self.has(keyword):
            return ()
        try:
            value = self.elements[_WANTED[keyword]].value
            found = tuple(map(float, value if isinstance(value, MultiValue) else [value]))
        except Exception:  # no number: whatever pydicom makes of such bytes
            found = ()
        if len(found) != count or not all(map(math.isfinite, found)):
            raise DatasetError(
                f"{self.file}: expected {f'{count} numbers' if count > 1 else 'a number'} as {keyword}, got "
                f"{self._shown(keyword)}; export the series again."
            )
        return found

    def whole_number(self, keyword: str, default: int | None = None) -> int:
        """A number above 0.

        Raises:
            DatasetError: none, and no default.
        """
        (found,) = self.numbers(keyword) or (0.0,)
        if found >= 1:
            return int(found)
        if default is None:
            raise DatasetError(cannot_be_read(self.file, f"its header has no {keyword}"))
        return default

    def _shown(self, keyword: str) -> str:
        value = self.elements.get_item(_WANTED[keyword]).value
        text = value.decode("latin-1") if isinstance(value, bytes) else _joined(value)
        return _CONTROL.sub("?", text[:60].strip("\0 "))


def _joined(value: Any) -> str:
    """A value of an element as files have it."""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)


def storage_class(file: Path) -> str | None:
    """What a DICOM file holds (its SOP class), empty where it does not say so at once; None for other files."""
    if not file.is_file():  # a named pipe would never end
        return None
    try:
        return str(read_file_meta_info(file).get("MediaStorageSOPClassUID", ""))
    except InvalidDicomError:
        return _class_without_preamble(file)
    except Exception as error:  # whatever pydicom makes of damaged bytes; a file that cannot be read has a number
        return None if isinstance(error, OSError) and error.errno else ""


def _class_without_preamble(file: Path) -> str | None:
    """The class among elements that begin at once, as older programs write them.

    pydicom reads elements out of any bytes, so that two known ones at the beginning must be whole and not empty, and
    no more than the beginning is read.
    """
    try:
        with file.open("rb") as stream:
            beginning = io.BytesIO(stream.read(_BEGINNING))
        header = read_partial(beginning, lambda tag, *_: not 0x00020000 <= tag <= _LAST_OF_BEGINNING, force=True)
        elements = [*header.file_meta.elements(), *header.elements()]
        known = [
            element
            for element in elements
            if isinstance(element, RawDataElement)
            and element.tag.group in (0x0002, 0x0008)
            and element.value
            and element.length == len(element.value)
            and dictionary_has_tag(element.tag)
        ]
        if len(known) < 2:
            return None
        return str(header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID") or "")
    except Exception:  # whatever pydicom makes of bytes that are no DICOM
        return None


class _AtPixels:
    """Stops pydicom at the pixels, or at what describes frames, and keeps where they begin and how long they are."""

    tag: BaseTag | None = None
    length = 0
    start = 0

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        group = tag >> 16
        if group == 0:  # zeros, where a copy was not finished
            return True
        if group != _FUNCTIONAL_GROUPS and (group != _GROUP_OF_PIXELS or tag not in _PIXELS):
            return False
        self.tag, self.length, self.start = tag, length, self._stream.tell()
        return True


@contextlib.contextmanager
def damage_as_sentence(file: Path) -> Iterator[None]:
    """Whatever a library makes of damaged bytes becomes one sentence, with the name of the file.

    Raises:
        DatasetError: as it came, or of any other error.
    """
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:
        reason = _CONTROL.sub("?", " ".join(str(error).split())) or type(error).__name__
        raise DatasetError(cannot_be_read(file, reason)) from error


def read_header(file: Path, size: int) -> DicomHeader:
    """Read the header of a DICOM file with pixels, and see where these end.

    Args:
        file: a regular file.
        size: its bytes.

    Raises:
        DatasetError: a file that is damaged, or cut off before its pixels.
    """
    try:
        with file.open("rb") as stream:
            stop = _AtPixels(stream)
            elements = read_partial(stream, stop, force=True, specific_tags=[*_WANTED.values()])
            pixel_bytes = _pixel_bytes(stream, stop, size, elements)
    except Exception as error:  # whatever pydicom makes of damaged bytes
        raise DatasetError(cannot_be_read(file, " ".join(str(error).split()) or type(error).__name__)) from error
    if stop.tag is None:
        raise DatasetError(cannot_be_read(file, "it ends before its pixels"))
    elements.buffer = None  # of a file that was inflated
    return DicomHeader(file, elements, pixel_bytes)


def _pixel_bytes(stream: BinaryIO, stop: _AtPixels, size: int, elements: FileDataset) -> float | None:
    """As `DicomHeader` has it."""
    if stop.tag not in _PIXELS:
        return None
    if stop.length == _UNDEFINED:
        stream.seek(stop.start)
        with contextlib.suppress(ValueError):  # an odd fragment, of which GDCM knows some
            for _ in generate_fragments(stream):
                pass
            return math.inf if stream.tell() < size else None  # behind the last one is the mark of the end
        return None
    syntax: Any = elements.file_meta.get("TransferSyntaxUID")
    return min(stop.length, size - stop.start) if syntax is None or syntax in _PLAIN else None
