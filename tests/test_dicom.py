"""Headers of DICOM files as they should not be, and as they are seldom: read right, or refused in one sentence."""

import logging
import re
import struct
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from monai.transforms import LoadImage
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
)
from volume_files import DIRECTIONS, SPACING, random_image, volume, write_dicom

from monai_extra_losses.bundle.foreign_warnings import without_pointless_warnings
from monai_extra_losses.data import DatasetError, open_volume, read_volume
from monai_extra_losses.data.dicom import is_dicom
from monai_extra_losses.data.quiet import quiet_pydicom
from monai_extra_losses.data.remarks import FOREIGN_FILES

VOXELS = random_image(shape=(16, 6, 5))  # GDCM cannot decode smaller ones from RLE
IMAGE = volume(VOXELS, DIRECTIONS["straight"])
ONE = "785_1.dcm"  # the third slice

Change = Callable[[Dataset], object]


def rewritten(folder: Path, change: Change = lambda slice_: None, only: str = "*.dcm", **encoding: bool) -> Path:
    """A series of which some slices are changed."""
    write_dicom(IMAGE, folder)
    for file in folder.glob(only):
        slice_ = pydicom.dcmread(file)
        for _ in slice_.iterall():  # turns bytes into values, of which another encoding can be made
            pass
        change(slice_)
        pydicom.dcmwrite(file, slice_, force_encoding=bool(encoding), **encoding)
    return folder


def given(**values: Any) -> Change:
    """Sets elements; bytes are written as they are, None takes the element out."""

    def change(slice_: Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                del slice_[keyword]
            elif isinstance(value, bytes):
                tag = Tag(keyword)
                slice_[tag] = RawDataElement(tag, None, len(value), value, 0, True, True)
            else:
                setattr(slice_, keyword, value)

    return change


def patched(folder: Path, change: Callable[[bytes], bytes], only: str = ONE) -> Path:
    """A series of which the bytes of some slices are changed."""
    write_dicom(IMAGE, folder)
    for file in folder.glob(only):
        file.write_bytes(change(file.read_bytes()))
    return folder


def with_length(keyword: str, length: int) -> Callable[[bytes], bytes]:
    """Changes how long an element says that it is."""
    group, element = divmod(Tag(keyword), 1 << 16)
    tag = struct.pack("<HH", group, element)

    def change(content: bytes) -> bytes:
        at = content.index(tag) + 4
        return content[:at] + struct.pack("<L", length) + content[at + 4 :]

    return change


def bare(content: bytes) -> bytes:
    """A file without preamble and without the elements of the file."""
    return content[132 + 12 + int.from_bytes(content[140:144], "little") :]


def assert_read(folder: Path) -> None:
    read = read_volume(folder)
    assert np.array_equal(sitk.GetArrayFromImage(read).T, VOXELS)
    assert read.GetSpacing() == pytest.approx(SPACING)


def refused(folder: Path, match: str) -> None:
    with pytest.raises(DatasetError, match=match) as caught:
        open_volume(folder)
    (sentence,) = caught.value.problems
    assert sentence.startswith(str(folder))
    assert sentence.endswith(".")
    assert "\n" not in sentence


# ---- what is read right ----------------------------------------------------------------------------------------------


def _with_private_elements(slice_: Dataset) -> None:
    item = Dataset()
    item.Rows, item.Columns, item.PixelSpacing, item.PixelData = 99, 98, [5, 5], b"icon"
    item["PixelData"].VR = "OW"
    slice_.IconImageSequence = Sequence([item])
    for tag in (0x00091001, 0x00291020):
        nested = Dataset()
        nested.add_new(0x00280010, "US", 77)
        nested.add_new(tag + 1, "SQ", Sequence([item]))
        slice_.add_new(tag, "SQ", Sequence([nested, Dataset()]))
        slice_[tag].is_undefined_length = True
    slice_.add_new(0x00190010, "LO", "SOMEBODY")
    slice_.add_new(0x00191001, "UN", b"\xff\xfe\x00")
    slice_.add_new(0x00291010, "OB", bytes(range(256)) * 200)


def _big_endian(slice_: Dataset) -> None:
    slice_.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    slice_.PixelData = np.frombuffer(slice_.PixelData, "<i2").astype(">i2").tobytes()
    slice_["PixelData"].VR = "OW"


def _in_syntax(syntax: str) -> Change:
    def change(slice_: Dataset) -> None:
        slice_.file_meta.TransferSyntaxUID = syntax
        slice_["PixelData"].VR = "OW"

    return change


READ: dict[str, Callable[[Path], Path]] = {
    "private elements": lambda folder: rewritten(folder, _with_private_elements),
    "explicit little endian": lambda folder: rewritten(
        folder, _in_syntax(ExplicitVRLittleEndian), implicit_vr=False, little_endian=True
    ),
    "explicit big endian": lambda folder: rewritten(folder, _big_endian, implicit_vr=False, little_endian=False),
    "deflated": lambda folder: rewritten(
        folder, _in_syntax(DeflatedExplicitVRLittleEndian), implicit_vr=False, little_endian=True
    ),
    "compressed": lambda folder: rewritten(folder, lambda slice_: slice_.compress(RLELossless)),
    "compressed without the mark of the end": lambda folder: _compressed_and_cut(folder, 8),
    "implicit although it says explicit": lambda folder: rewritten(
        folder,
        lambda slice_: setattr(slice_.file_meta, "TransferSyntaxUID", ExplicitVRLittleEndian),
        only=ONE,
        implicit_vr=True,
        little_endian=True,
    ),
    "numbers with spaces, signs and exponents": lambda folder: rewritten(
        folder, given(PixelSpacing=b" +1.1\\ 7e-1 ", ImageOrientationPatient=b"+1\\0\\-0\\ 0.0\\1e0\\0 ")
    ),
    "numbers longer than they may be": lambda folder: rewritten(
        folder, given(PixelSpacing=b"1.1000000000000000001\\0.7000000000000000001 ")
    ),
    "directions longer than 1": lambda folder: rewritten(folder, given(ImageOrientationPatient=b"2\\0\\0\\0\\3\\0 ")),
    "one frame": lambda folder: rewritten(folder, given(NumberOfFrames=1)),
    "an odd byte behind the pixels": lambda folder: rewritten(
        folder, lambda slice_: setattr(slice_, "PixelData", slice_.PixelData + bytes(2))
    ),
    "no class and no number of samples": lambda folder: rewritten(
        folder, given(SOPClassUID=None, SamplesPerPixel=None)
    ),
    "an unknown class": lambda folder: rewritten(folder, given(SOPClassUID="1.2.3.4")),
    "X-ray with the distance on the detector too": lambda folder: rewritten(
        folder, given(SOPClassUID=DigitalXRayImageStorageForPresentation, ImagerPixelSpacing=[9, 9])
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_a_series_is_read(tmp_path: Path, kind: str) -> None:
    assert_read(READ[kind](tmp_path / "P"))


@pytest.mark.parametrize("kind", ["explicit little endian", "explicit big endian", "private elements"])
@pytest.mark.parametrize("suffix", ["", ".dcm"])
def test_a_series_without_preamble_is_read(tmp_path: Path, kind: str, suffix: str) -> None:
    for file in sorted(READ[kind](tmp_path / "P").iterdir()):
        content = bare(file.read_bytes())
        file.unlink()
        file.with_suffix(suffix).write_bytes(content)
    assert_read(tmp_path / "P")
    assert is_dicom(next((tmp_path / "P").iterdir()))


def test_directions_a_little_off_right_angles_are_put_right(tmp_path: Path) -> None:
    folder = rewritten(tmp_path / "P", given(ImageOrientationPatient=b"1\\0\\0\\.005\\1\\0 "))
    direction = np.reshape(open_volume(folder).grid.direction, (3, 3))
    assert np.allclose(direction.T @ direction, np.eye(3), rtol=0, atol=1e-12)
    assert direction[:, 1] == pytest.approx([0.005, 1, 0], abs=1e-4)


@pytest.mark.parametrize(
    ("character_set", "stored", "text"),
    [
        (b"ISO_IR 100", "Thorax für é".encode("latin-1"), "Thorax für é"),
        (b"ISO_IR 192", "Brust für 胸".encode(), "Brust für 胸"),
        (b"\\ISO 2022 IR 87 ", b"CT \x1b$B6;It\x1b(B", "CT 胸部"),
        (b"\\ISO 2022 IR 149", b"\x1b$)C\xb1\xe8\xc8\xf1", "김희"),
        (b"GB18030 ", "胸部".encode("gb18030"), "胸部"),
        (b"ISO_IR 144", "грудь ".encode("iso8859_5"), "грудь"),
        (None, "für é".encode() + b"\0", "für é"),
        (None, "für é ".encode("latin-1"), "für é"),
        (b"ISO_IR 999", "für é ".encode("latin-1"), "für é"),  # there is no such set
        (b"ISO_IR 192", b"Br\xfcst ", "Br\ufffdst"),  # not in the set that is named
        (None, b"red \x1b[31m\x07", "red ?[31m?"),
        (None, b"a\\b\0", "a\\b"),
        (None, b"", ""),
    ],
)
def test_a_description_is_readable(tmp_path: Path, character_set: bytes | None, stored: bytes, text: str) -> None:
    placeholder = "D" * len(stored)
    folder = write_dicom(IMAGE, tmp_path / "P", description=placeholder)
    for file in folder.iterdir():
        content = file.read_bytes()
        elements = bare(content).replace(placeholder.encode(), stored) if stored else bare(content)
        if character_set is not None:  # the first of all elements
            elements = struct.pack("<HHL", 0x0008, 0x0005, len(character_set)) + character_set + elements
        file.write_bytes(content[: -len(bare(content))] + elements)
    source = open_volume(folder, series=text or None)
    assert source.series is not None
    assert source.series.description == text


def test_a_description_of_a_broken_type_is_none(tmp_path: Path) -> None:
    def change(slice_: Dataset) -> None:
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_["PixelData"].VR = "OW"
        slice_["SeriesDescription"] = DataElement(Tag("SeriesDescription"), "OB", b"abc")

    folder = rewritten(tmp_path / "P", change, implicit_vr=False, little_endian=True)
    for file in folder.iterdir():
        content = file.read_bytes()
        at = content.index(b"\x08\x00\x3e\x10OB")
        file.write_bytes(content[: at + 4] + b"FD\x03\0abc" + content[at + 12 + 4 :])  # no number of eight bytes
    source = open_volume(folder)
    assert source.series is not None
    assert source.series.description == ""


@pytest.mark.parametrize(
    ("slopes", "read_as"),
    [
        ((1, 1, 1, 1, 1), sitk.sitkInt16),
        ((2, 2, 2, 2, 2), sitk.sitkInt32),
        ((1, 2, 1, 2, 1), sitk.sitkFloat64),
        ((2, 3, 4, 5, 6), sitk.sitkInt32),
        ((0.5, 0.25, 1.5, 1, 1), sitk.sitkFloat64),
    ],
)
def test_the_type_holds_the_values_of_all_slices(tmp_path: Path, slopes: tuple[float, ...], read_as: int) -> None:
    def change(slice_: Dataset) -> None:
        slice_.RescaleSlope, slice_.RescaleIntercept = slopes[int(slice_.InstanceNumber) - 1], 0

    source = open_volume(rewritten(tmp_path / "P", change))
    assert source.pixel_type == read_as
    assert np.array_equal(sitk.GetArrayFromImage(source.load()).T, VOXELS * np.array(slopes))


def test_neither_warnings_nor_lines_of_pydicom_reach_anybody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = rewritten(
        tmp_path / "P",
        given(
            SpecificCharacterSet=b"ISO_IR 999",
            SeriesInstanceUID=b"not a UID ",
            SeriesDescription=b"\xff" * 200,
            PixelSpacing=b"1.1000000000000000001\\0.7000000000000000001 ",
            RescaleSlope=b"1.00000000000000000000001 ",
            RescaleIntercept=b"0 ",
        ),
    )
    (folder / "x.dcm").write_bytes(bytes(128) + b"DICM\x02\0\x10\0ZZ\xff\xff")
    (folder / "notes").write_text("no DICOM\n" * 100)
    capfd.readouterr()
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DatasetError, match=r"x\.dcm: expected a whole volume"):
            open_volume(folder)
        (folder / "x.dcm").unlink()
        assert_read(folder)
        assert not is_dicom(folder / "notes")
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("pydicom").disabled


def test_a_warning_that_monai_has_wherever_pydicom_is_is_not_heard(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with without_pointless_warnings():
            LoadImage(image_only=True)
        assert not [warning for warning in caught if "nvImageCodec" in str(warning.message)]
        assert not [record for record in caplog.records if "nvImageCodec" in record.getMessage()]
        LoadImage(image_only=True)
    assert any("nvImageCodec" in str(warning.message) for warning in caught)  # else the silence can go


def test_threads_share_the_silence(tmp_path: Path) -> None:
    first, second = threading.Event(), threading.Event()

    @quiet_pydicom
    def read() -> None:
        first.set()
        second.wait(20)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        reader = threading.Thread(target=read)
        reader.start()
        first.wait(20)
        with quiet_pydicom:
            assert logging.getLogger("pydicom").disabled
        assert logging.getLogger("pydicom").disabled  # the other one is still at it
        second.set()
        reader.join()
        assert not logging.getLogger("pydicom").disabled
        assert warnings.filters == before
        warnings.warn("heard again", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["heard again"]


# ---- what is no image, or no DICOM -----------------------------------------------------------------------------------


def _directory(folder: Path, records: int) -> Path:
    """A DICOMDIR whose list of files has no length."""
    content = Dataset()
    content.file_meta = FileMetaDataset()
    content.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    content.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    record = Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", ["IM", "1"]
    content.DirectoryRecordSequence = Sequence([record] * records)
    content["DirectoryRecordSequence"].is_undefined_length = True
    content.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder


def test_a_directory_of_files_is_passed_over_at_once(tmp_path: Path) -> None:
    folder = _directory(write_dicom(IMAGE, tmp_path / "P"), records=20000)
    start = time.perf_counter()
    assert open_volume(folder).remarks == ()
    assert time.perf_counter() - start < 1  # its records take several seconds
    assert_read(folder)


@pytest.mark.parametrize("frames", [1, 5])
def test_frames_of_an_enhanced_image_are_refused(tmp_path: Path, frames: int) -> None:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = EnhancedCTImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = "1.2.3"
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SeriesInstanceUID, image.Rows, image.Columns, image.NumberOfFrames = "1.2.4", 6, 7, frames
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 1
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    groups = []
    for number in range(frames):
        place, directions, measures, group = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient, directions.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
        measures.PixelSpacing = [1, 1]
        group.PlanePositionSequence, group.PlaneOrientationSequence = Sequence([place]), Sequence([directions])
        group.PixelMeasuresSequence = Sequence([measures])
        groups.append(group)
    image.PerFrameFunctionalGroupsSequence = Sequence(groups)
    image["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    image.PixelData = bytes(6 * 7 * 2 * frames)
    image["PixelData"].VR = "OW"
    (tmp_path / "P").mkdir()
    image.save_as(tmp_path / "P" / "a.dcm", enforce_file_format=True)
    match = r"expected one slice per file, got 5; convert it with dcm2niix" if frames > 1 else r"expected a grey slice"
    refused(tmp_path / "P", rf"a\.dcm: {match}")


FOREIGN = {
    "empty": b"",
    "text": b"Patient: A^B\nSeries: 1\n" * 500,
    "zeros": bytes(100_000),
    "ones": b"\xff" * 100_000,
    "random bytes": np.random.default_rng(0).bytes(100_000),
    "a picture": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(1000),
    "an archive": b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + bytes(1000),
    "one element": b"\x08\0\x60\0CS\x02\0CT" + b" and then text\n" * 100,
    "empty elements": b"\x08\0\x16\0\0\0\0\0\x08\0\x18\0\0\0\0\0",
    "an element without an end": b"\x08\0\x05\0\xff\xff\xff\xff" + bytes(5000),
    "a long element": b"\x08\0\x05\0\xf0\xff\xff\x7f" + bytes(5000),
    "elements of no meaning": (b"\x09\0\x10\0LO\x04\0abcd" + b"\x09\0\x11\0LO\x04\0abcd") * 20,
    "a preamble alone": bytes(128) + b"DIC",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_dicom_is_passed_over(tmp_path: Path, kind: str) -> None:
    folder = write_dicom(IMAGE, tmp_path / "P")
    (folder / "x").write_bytes(FOREIGN[kind])
    assert not is_dicom(folder / "x")
    assert open_volume(folder).remarks == (FOREIGN_FILES,)
    assert_read(folder)
    (folder / "x").rename(folder / "x.dcm")
    assert is_dicom(folder / "x.dcm")  # by its name
    refused(folder, r"x\.dcm: expected a whole volume, got one that cannot be read \(its content is no DICOM\); copy")


# ---- what is refused -------------------------------------------------------------------------------------------------


def _compressed_and_cut(folder: Path, cut: int) -> Path:
    READ["compressed"](folder)
    (folder / ONE).write_bytes((folder / ONE).read_bytes()[:-cut])
    return folder


def _twice(content: bytes) -> bytes:
    """Two elements of one tag."""
    at = content.index(b"\x28\x00\x10\x00\x02\x00\x00\x00")
    return content[:at] + content[at : at + 8] + b"\x05\x00" + content[at:]


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "cut in the preamble": (lambda folder: patched(folder, lambda content: content[:100]), r"its content is no DICOM"),
    "cut behind the preamble": (lambda folder: patched(folder, lambda content: content[:132]), r"it ends before its p"),
    "cut in the elements of the file": (lambda folder: patched(folder, lambda content: content[:180]), r"ends before"),
    "cut in a tag": (
        lambda folder: patched(folder, lambda content: content[: content.index(b"\x28\x00\x10\x00") + 3]),
        r"it ends before its pixels",
    ),
    "cut in an element": (
        lambda folder: patched(folder, lambda content: content[: content.index(b"Portal") + 4]),
        r"it ends before its pixels",
    ),
    "cut in the pixels": (lambda folder: patched(folder, lambda content: content[:-2]), r"190 bytes of pixels in"),
    "cut before the pixels": (lambda folder: patched(folder, lambda content: content[:-192]), r"\(0 bytes of pixels"),
    "cut in compressed pixels": (lambda folder: _compressed_and_cut(folder, 30), r"cannot be read \(GDCMImageIO: "),
    "zeros behind the preamble": (
        lambda folder: patched(folder, lambda content: content[:132] + bytes(10_000)),
        r"it ends before its pixels",
    ),
    "random bytes behind the preamble": (
        lambda folder: patched(folder, lambda content: content[:132] + np.random.default_rng(0).bytes(10_000)),
        r"expected a whole volume, got one that cannot be read \(",
    ),
    "an element longer than the file": (
        lambda folder: patched(folder, with_length("SeriesDescription", 1 << 30)),
        r"it ends before its pixels",
    ),
    "an element of 4 GB": (lambda folder: patched(folder, with_length("PixelSpacing", 0xFFFFFFF0)), r"it ends before"),
    "an element without an end": (
        lambda folder: patched(folder, with_length("SeriesDescription", 0xFFFFFFFF)),
        r"expected a whole volume, got one that cannot be read \(",
    ),
    "no pixels": (lambda folder: rewritten(folder, given(PixelData=None)), r"it ends before its pixels"),
    "no rows": (lambda folder: rewritten(folder, given(Rows=None), ONE), r"785_1\.dcm: .* \(its header has no Rows\)"),
    "0 columns": (lambda folder: rewritten(folder, given(Columns=0), ONE), r"\(its header has no Columns\)"),
    "no bits": (lambda folder: rewritten(folder, given(BitsAllocated=None)), r"\(its header has no BitsAllocated\)"),
    "more rows than pixels": (
        lambda folder: rewritten(folder, given(Rows=7)),
        r"\(192 bytes of pixels in place of 224\); copy it again",
    ),
    "far more rows than pixels": (
        lambda folder: rewritten(folder, given(Rows=60_000, Columns=60_000), ONE),
        r"expected 3600000000 bytes of voxels, as the header declares, got \d+ at most",
    ),
    "text for a number of frames": (
        lambda folder: rewritten(folder, given(NumberOfFrames=b"many")),
        r"expected a number as NumberOfFrames, got many; export the series again",
    ),
    "planes of the oldest files": (
        lambda folder: rewritten(
            folder,
            lambda slice_: given(ImageDimensions=3, Planes=2, PixelData=slice_.PixelData * 2)(slice_),
        ),
        r"expected one slice per file, got 2",
    ),
    "colours from a table": (
        lambda folder: rewritten(folder, given(PhotometricInterpretation="PALETTE COLOR")),
        r"expected a grey slice with a position",
    ),
    "empty spacing": (lambda folder: rewritten(folder, given(PixelSpacing=b"")), r"\(PixelSpacing\), got none, which"),
    "one spacing": (
        lambda folder: rewritten(folder, given(PixelSpacing=b"0.7 ")),
        r"007_1\.dcm: expected 2 numbers as PixelSpacing, got 0\.7; export the series again",
    ),
    "three spacings": (
        lambda folder: rewritten(folder, given(PixelSpacing=b"0.7\\0\\0.7 ")),
        r"expected 2 numbers as PixelSpacing, got 0\.7\\0\\0\.7;",
    ),
    "spacing with commas": (
        lambda folder: rewritten(folder, given(PixelSpacing=b"0,7\\0,7 ")),
        r"expected 2 numbers as PixelSpacing, got 0,7\\0,7;",
    ),
    "spacing NaN": (lambda folder: rewritten(folder, given(PixelSpacing=b"nan\\nan ")), r"2 numbers .* got nan\\nan;"),
    "spacing 0": (
        lambda folder: rewritten(folder, given(PixelSpacing=b"0\\0 ")),
        r"expected a spacing above 0, got 0 and 0 mm; correct the header",
    ),
    "spacing -1": (lambda folder: rewritten(folder, given(PixelSpacing=b"1\\-1")), r"above 0, got 1 and -1 mm; corr"),
    "no directions": (
        lambda folder: rewritten(folder, given(ImageOrientationPatient=None)),
        r"\(ImageOrientationPatient\), got none, which would be taken as those of an axial slice; export the series",
    ),
    "empty directions": (
        lambda folder: rewritten(folder, given(ImageOrientationPatient=b"")),
        r"expected the directions of its rows and columns \(ImageOrientationPatient\), got none",
    ),
    "directions of five numbers": (
        lambda folder: rewritten(folder, given(ImageOrientationPatient=b"1\\0\\0\\0\\1 ")),
        r"expected 6 numbers as ImageOrientationPatient, got 1\\0\\0\\0\\1; export",
    ),
    "directions of zeros": (
        lambda folder: rewritten(folder, given(ImageOrientationPatient=b"0\\0\\0\\0\\0\\0 ")),
        r"rows and columns at right angles \(ImageOrientationPatient\), got the directions \[0\.0, 0\.0, 0\.0\] and",
    ),
    "directions of one line": (
        lambda folder: rewritten(folder, given(ImageOrientationPatient=b"1\\0\\0\\-1\\0\\0")),
        r"expected rows and columns at right angles",
    ),
    "directions far off right angles": (
        lambda folder: rewritten(folder, given(ImageOrientationPatient=b"1\\0\\0\\.1\\.99\\0 ")),
        r"expected rows and columns at right angles",
    ),
    "position as text": (
        lambda folder: rewritten(folder, given(ImagePositionPatient=b"left"), ONE),
        r"785_1\.dcm: expected 3 numbers as ImagePositionPatient, got left; export the series again",
    ),
    "position of control characters": (
        lambda folder: rewritten(folder, given(ImagePositionPatient=b"\x1b[31m\n")),
        r"expected 3 numbers as ImagePositionPatient, got \?\[31m\?; export",
    ),
    "position infinite": (
        lambda folder: rewritten(folder, given(ImagePositionPatient=b"1\\2\\inf "), ONE),
        r"expected 3 numbers as ImagePositionPatient, got 1\\2\\inf;",
    ),
    "empty position": (
        lambda folder: rewritten(folder, given(ImagePositionPatient=b"")),
        r"expected a grey slice with a position \(ImagePositionPatient\), got a picture without",
    ),
    "scale factor as text": (
        lambda folder: rewritten(folder, given(RescaleSlope=b"one ", RescaleIntercept=b"0 ")),
        r"expected a number as RescaleSlope, got one;",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_series_is_refused(tmp_path: Path, kind: str) -> None:
    make, match = REFUSED[kind]
    refused(make(tmp_path / "P"), match)


def test_a_copy_that_was_not_finished_is_refused_at_once(tmp_path: Path) -> None:
    folder = patched(tmp_path / "P", lambda content: content[:600] + bytes(50_000_000))
    start = time.perf_counter()
    refused(folder, rf"{re.escape(ONE)}: .* \(it ends before its pixels\)")
    assert time.perf_counter() - start < 1  # six million empty elements take many seconds


def test_a_slice_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    folder = READ["compressed"](tmp_path / "P")
    content = bytearray((folder / ONE).read_bytes())
    at = content.index(b"\xfe\xff\x00\xe0", content.index(b"\xe0\x7f\x10\x00") + 20)
    content[at + 8 : at + 12] = b"\x09\0\0\0"  # segments of RLE
    (folder / ONE).write_bytes(bytes(content))
    with pytest.raises(DatasetError, match=rf"{re.escape(ONE)}: expected a whole volume, got one that cannot be read"):
        read_volume(folder)


def test_an_element_that_is_there_twice(tmp_path: Path) -> None:
    """pydicom takes the last of two, GDCM the first."""
    folder = patched(tmp_path / "P", _twice, "*.dcm")
    with pytest.raises(DatasetError, match=r"voxels of shape \(16, 5, 5\) under headers of \(16, 6, 5\)"):
        read_volume(folder)
