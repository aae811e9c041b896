"""Reading volumes of any format: where every voxel lies, and what is refused."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from volume_files import (
    DIRECTIONS,
    ORIGIN,
    SPACING,
    block_label,
    random_image,
    rotation,
    volume,
    write,
    write_dicom,
    write_dicom_object,
    write_nifti,
)

from monai_extra_losses.data import DatasetError, PrepareOptions, open_volume, prepare_dataset, read_volume
from monai_extra_losses.data.remarks import FOREIGN_FILES, NO_FRAME, NO_SPACING

SEGMENTATION, STRUCTURES = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"
STRUCTURED_REPORT, DIRECTORY = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.1.3.10"


def refused(path: Path, match: str, series: str | None = None) -> str:
    with pytest.raises(DatasetError, match=match) as caught:
        read_volume(path, series)
    (sentence,) = caught.value.problems
    assert sentence.startswith(str(path))
    assert sentence.endswith(".")
    return sentence


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_values_type_and_grid_of_a_file(tmp_path: Path, suffix: str, direction: str) -> None:
    image = volume(random_image(), DIRECTIONS[direction])
    file = write(image, tmp_path / f"a{suffix}")
    read = read_volume(file)
    assert read.GetPixelID() == sitk.sitkInt16
    assert np.array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(image))
    source = open_volume(file)
    assert source.grid.shape == (7, 6, 5)
    assert source.grid.spacing == pytest.approx(SPACING, rel=1e-6)
    for index in ((0, 0, 0), (6, 0, 0), (0, 5, 4), (6, 5, 4)):
        left, back, head = image.TransformIndexToPhysicalPoint(index)
        assert source.grid.affine @ (*index, 1) == pytest.approx([-left, -back, head, 1], abs=1e-4)
    assert {found.suffix for found in source.files} >= {Path(file).suffix}
    assert len(source.files) == len(list(tmp_path.iterdir()))  # with .raw beside a detached header


def test_a_nifti_affine_is_that_of_nibabel(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(5, 6, 7) * [-0.7, 1.1, 2.5]
    affine[:3, 3] = (3, 4, 5)
    nibabel.save(nibabel.Nifti1Image(random_image(dtype=np.float32), affine), tmp_path / "a.nii.gz")
    assert open_volume(tmp_path / "a.nii.gz").grid.affine == pytest.approx(affine, abs=1e-5)


def test_an_nrrd_in_the_other_frame(tmp_path: Path) -> None:
    header = "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 7 6 5\nencoding: raw\n"
    header += "endian: little\nspace directions: (2,0,0) (0,-3,0) (0,0,4)\nspace origin: (1,2,3)\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + random_image().tobytes(order="F"))
    affine = open_volume(tmp_path / "a.nrrd").grid.affine
    assert affine == pytest.approx(np.array([[2, 0, 0, 1], [0, -3, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]]))
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(tmp_path / "a.nrrd")).T, random_image())


def test_a_fourth_axis_of_one_is_left_out(tmp_path: Path) -> None:
    voxels = random_image()
    nibabel.save(nibabel.Nifti1Image(voxels[..., None], np.diag([1, 2, 3, 1])), tmp_path / "a.nii.gz")
    write(sitk.JoinSeries([volume(voxels)]), tmp_path / "a.mha")
    for file in ("a.nii.gz", "a.mha"):
        read = read_volume(tmp_path / file)
        assert read.GetSize() == (7, 6, 5)
        assert np.array_equal(sitk.GetArrayFromImage(read).T, voxels)


@pytest.mark.parametrize("direction", ["straight", "oblique", "permuted"])
def test_a_dicom_series(tmp_path: Path, direction: str) -> None:
    image = volume(random_image(), DIRECTIONS[direction])
    folder = write_dicom(image, tmp_path / "P 1")
    (folder / "sub").mkdir()
    shutil.move(folder / "007_1.dcm", folder / "sub" / "IM0")  # in a sub-folder, without a suffix
    (folder / "notes.txt").write_text("not an image")
    (folder / "._396_1.dcm").write_text("not one either")
    write_dicom_object(folder / "DICOMDIR", DIRECTORY)
    write_dicom_object(folder / "report", STRUCTURED_REPORT)
    source = open_volume(folder)
    assert [file.name for file in source.files] == ["IM0", "396_1.dcm", "785_1.dcm", "177_1.dcm", "566_1.dcm"]
    assert source.series is not None
    assert (source.series.description, source.series.uid) == ("Portal venous", "1.2.826.0.1.3680043.2.1125.1")
    read = source.load()
    assert np.array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(image))
    assert read.GetDirection() == pytest.approx(image.GetDirection(), abs=1e-6)
    assert read.GetOrigin() == pytest.approx(ORIGIN, abs=1e-4)
    for entry, other in ((source.grid.spacing, read.GetSpacing()), (source.grid.direction, read.GetDirection())):
        assert entry == pytest.approx(other, abs=1e-6)
    assert not read.GetMetaDataKeys()


def test_slices_without_preamble_or_suffix_are_slices(tmp_path: Path) -> None:
    image = volume(random_image(), DIRECTIONS["straight"])
    folder = write_dicom(image, tmp_path / "P")
    for number, file in enumerate(sorted(folder.iterdir())):
        content = file.read_bytes()
        meta_end = 132 + 12 + int.from_bytes(content[140:144], "little")
        # whole; without preamble; without the elements of the file too
        (folder / f"IM{number:05d}").write_bytes(content[(0, 132, meta_end)[number % 3] :])
        file.unlink()
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(folder)), sitk.GetArrayFromImage(image))
    assert open_volume(folder).remarks == ()
    (folder / "VERSION").write_bytes(b"\x08\x00\x10\x00 is no DICOM\n" * 50)
    assert open_volume(folder).remarks == (FOREIGN_FILES,)


def test_slices_of_a_left_handed_volume_are_read_from_the_other_end(tmp_path: Path) -> None:
    image = volume(random_image(), DIRECTIONS["oblique and flipped"])
    read = read_volume(write_dicom(image, tmp_path / "P"))
    assert np.array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(image)[::-1])
    corner = image.TransformIndexToPhysicalPoint((0, 0, 4))
    assert read.GetOrigin() == pytest.approx(corner, abs=1e-4)


def test_the_scale_factor_of_each_slice_counts(tmp_path: Path) -> None:
    """PET: the first slice alone would make integers of all."""
    voxels = np.abs(random_image()).astype(np.float32)
    factors = np.array([1, 1.5, 0.25, 2, 1])
    stored = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1", "0028|1052": "0"}
    tags = {n: {**stored, "0028|1053": f"{factor:g}"} for n, factor in enumerate(factors)}
    read = read_volume(write_dicom(volume(voxels * factors), tmp_path / "P", modality="PT", tags=tags))
    assert read.GetPixelID() == sitk.sitkFloat64
    assert np.array_equal(sitk.GetArrayFromImage(read).T, voxels * factors)


def test_a_series_is_picked_by_uid_or_description(tmp_path: Path) -> None:
    folders = [
        write_dicom(volume(random_image(n)), tmp_path / "P", description=name, series=n)
        for n, name in enumerate(("T1", "T1 post Gd", "Localizer é"), start=1)
    ]
    for wanted, n in (("T1", 1), ("t1 POST gd", 2), ("post", 2), ("1.2.826.0.1.3680043.2.1125.3", 3)):
        read = read_volume(folders[0], wanted)
        assert np.array_equal(sitk.GetArrayFromImage(read).T, random_image(n))
    said = refused(folders[0], r"expected one DICOM series, got 3: ")
    assert "'T1' (5 slices, UID 1.2.826.0.1.3680043.2.1125.1), 'T1 post Gd' (5 slices, UID" in said
    assert said.endswith("pick one by its description or UID (series, on the command line --series).")
    refused(folders[0], r"expected one DICOM series 'T2' .* got 0 of 'T1'", "T2")
    refused(folders[0], r"expected one DICOM series '1' .* got 2 of 'T1'", "1")


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_file_that_is_cut_off(tmp_path: Path, suffix: str) -> None:
    file = write(volume(random_image(shape=(20, 20, 20))), tmp_path / f"a{suffix}")
    file.write_bytes(file.read_bytes()[:-300])
    refused(
        file,
        r"expected (a whole (NIfTI file of \d+ bytes.*|gzip file|volume), got|\d+ bytes of voxels, got \d+)"
        r".*(copy it|copy the file) again",
    )


def _four_axes(file: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4)), file.with_name("a.nii"))


def _sheared(file: Path, with_qform: bool = False) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    sheared = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine)
    sheared.set_sform(affine, code=1)
    sheared.set_qform(np.eye(4) if with_qform else None, code=int(with_qform))
    nibabel.save(sheared, file.with_name("a.nii"))


def _sheared_nrrd(file: Path) -> None:
    header = "type: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 5 6\nencoding: raw\nendian: little\n"
    header += "space directions: (1,0,0) (0.3,1,0) (0,0,2)\nspace origin: (1,2,3)\n\n"
    file.with_name("a.nrrd").write_bytes(f"NRRD0004\n{header}".encode() + bytes(240))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda file: file.with_name("a.png").touch(),
            r"expected \.nii\.gz, .* or the folder of a DICOM series, got an",
        ),
        (
            lambda file: file.with_name("a.nrrd").write_text("text"),
            r"got one that cannot be read \(Unable to determine",
        ),
        (lambda file: file.with_name("a.nii.gz").touch(), r"expected a NIfTI file, got an empty one"),
        (_four_axes, r"expected a volume of three dimensions, got shape \(4, 5, 6, 2\); write each channel as a file"),
        (
            lambda file: write(sitk.Image((4, 5, 6), sitk.sitkVectorUInt8, 3), file.with_name("a.nrrd")),
            r"expected one real number per voxel, got 3 of type vector of 8-bit unsigned integer",
        ),
        (lambda file: write(sitk.Image((4, 5), sitk.sitkUInt8), file.with_name("a.mha")), r"got the 2D shape \(4, 5\)"),
        (lambda file: write(sitk.Image((4, 5, 1), 1), file.with_name("a.nii")), r"got the 2D shape \(4, 5, 1\)"),
        (_sheared, r"expected axes at right angles, got the directions \[\[-1\.0, -0\.2873, 0\.0\]"),
        (lambda file: _sheared(file, with_qform=True), r"expected axes at right angles"),
        (_sheared_nrrd, r"expected axes at right angles, got the directions \[\[1\.0, 0\.2873, 0\.0\]"),
    ],
)
def test_a_file_that_is_no_volume(tmp_path: Path, make: Callable[[Path], object], match: str) -> None:
    make(tmp_path / "a")
    refused(next(tmp_path.glob("a.*")), match)
    with pytest.raises(DatasetError, match=r"b\.nii: expected a volume, got no such file"):
        read_volume(tmp_path / "b.nii")


def _uneven(position: float) -> dict[int, dict[str, str]]:
    """The third of slices 2.5 mm apart elsewhere."""
    return {2: {"0020|0032": f"12.3\\-45.6\\{position}"}}


STRAIGHT = volume(random_image(), DIRECTIONS["straight"])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda folder: folder.mkdir(), r"expected a DICOM series, got a folder without DICOM images\."),
        (
            lambda folder: write(STRAIGHT, folder / "imaging.nii.gz"),
            r"without DICOM images; move imaging\.nii\.gz out of its own folder and name it as the case\.",
        ),
        (
            lambda folder: write_dicom(STRAIGHT, folder, leave_out=(1, 2, 3, 4)),
            r"several slices, got the 2D image 007_1",
        ),
        (
            lambda folder: write_dicom(STRAIGHT, folder, leave_out=(2,)),
            r"expected slices 2\.5 mm apart, got 5 mm between 396_1\.dcm and 177_1\.dcm; slices are missing",
        ),
        (
            lambda folder: write_dicom(STRAIGHT, folder, tags=_uneven(78.9 + 4.5)),
            r"expected evenly spaced slices, got distances from 2 to 3 mm",
        ),
        (
            lambda folder: write_dicom(STRAIGHT, folder, tags=_uneven(78.9 + 2.5)),
            r"expected one slice per position, got 396_1\.dcm and 785_1\.dcm at 81\.40 mm; keep one phase",
        ),
        (
            lambda folder: write_dicom(STRAIGHT, folder, tags={3: {"0020|0037": "0\\1\\0\\-1\\0\\0"}}),
            r"expected slices of one size, spacing and direction, got 007_1\.dcm and 177_1\.dcm",
        ),
        (
            lambda folder: write_dicom(
                STRAIGHT, folder, tags={n: {"0020|0032": f"12.3\\{n - 45.6}\\{78.9 + 2.5 * n}"} for n in range(5)}
            ),
            r"straight above each other, got a stack that leans by 4 mm \(a tilted gantry\)",
        ),
        (
            lambda folder: write_dicom_object(folder / "s", SEGMENTATION),
            r"expected a series of images, got DICOM SEG; monai-extra-losses prepare takes it as a label, by --labels",
        ),
        (lambda folder: write_dicom_object(folder / "s.dcm", STRUCTURES), r"got RTSTRUCT; .* prepare takes"),
    ],
)
def test_a_folder_that_is_no_series(tmp_path: Path, make: Callable[[Path], object], match: str) -> None:
    make(tmp_path / "P")
    refused(tmp_path / "P", match)


def test_rounded_positions_are_even(tmp_path: Path) -> None:
    tags = {n: {"0020|0032": f"12.3\\-45.6\\{78.9 + 10 / 3 * n:.1f}"} for n in range(5)}
    image = volume(random_image(), DIRECTIONS["straight"], spacing=(0.7, 1.1, 10 / 3))
    assert open_volume(write_dicom(image, tmp_path / "P", tags=tags)).grid.spacing[2] == pytest.approx(13.3 / 4)


def test_a_picture_among_the_slices(tmp_path: Path) -> None:
    folder = write_dicom(STRAIGHT, tmp_path / "P")
    screenshot = sitk.Image((7, 6, 1), sitk.sitkVectorUInt8, 3)
    shutil.move(write_dicom(screenshot, tmp_path / "screenshot") / "007_1.dcm", folder / "99.dcm")
    with pytest.raises(DatasetError, match=r"99\.dcm: expected a grey slice with a position .* leave screenshots"):
        read_volume(folder)


def test_a_damaged_slice_is_named(tmp_path: Path) -> None:
    folder = write_dicom(STRAIGHT, tmp_path / "P")
    file = folder / "785_1.dcm"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"785_1\.dcm: expected a whole volume, got one that cannot be read"):
        read_volume(folder)


def test_a_name_in_another_encoding(tmp_path: Path) -> None:
    folder = write_dicom(STRAIGHT, tmp_path / "P")
    try:
        (folder / "007_1.dcm").rename(folder / os.fsdecode(b"caf\xe9.dcm"))
    except OSError:
        pytest.skip("this file system knows UTF-8 only")
    with pytest.raises(DatasetError, match=r"expected a name in UTF-8, got b'.*caf\\xe9\.dcm'; rename it"):
        read_volume(folder)


def test_a_segmentation_beside_the_series_is_no_second_series(tmp_path: Path) -> None:
    folder = write_dicom(STRAIGHT, tmp_path / "P")
    write_dicom_object(folder / "contours.dcm", STRUCTURES)
    assert open_volume(folder).segmentations == (folder / "contours.dcm",)


# ---- what headers leave open, or say wrongly -------------------------------------------------------------------------


def _metaimage(file: Path, spacing: str = "ElementSpacing = 2 3 4", more: str = "", matrix: bool = True) -> Path:
    header = f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n{more}{spacing}\n"
    header += "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\n" if matrix else ""
    sizes = "" if "DimSize" in more else "DimSize = 7 6 5\n"
    header += f"{sizes}ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    file.write_bytes(header.encode() + random_image().tobytes(order="F"))
    return file


SPACED = "space: left-posterior-superior\nspace directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (1,2,3)\n"


def _nrrd(file: Path, fields: str = SPACED, sizes: str = "7 6 5") -> Path:
    header = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nencoding: raw\nendian: little\n{fields}\n"
    file.write_bytes(header.encode() + random_image().tobytes(order="F"))
    return file


ODD_HEADERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "0 mm": (lambda folder: _metaimage(folder / "a.mha", "ElementSpacing = 0 3 4"), r"a spacing above 0, got 0 3 4 mm"),
    "-2 mm": (lambda folder: _metaimage(folder / "a.mha", "ElementSpacing = -2 3 4"), r"above 0, got -2 3 4 mm; corr"),
    "NaN mm": (lambda folder: _metaimage(folder / "a.mha", "ElementSpacing = nan 3 4"), r"got nan 3 4 mm"),
    "other unit": (
        lambda folder: _metaimage(folder / "a.mha", more="DistanceUnits = um\n"),
        r"expected millimetres, got a header in 'um', which few programs read; write it anew",
    ),
    "damaged size": (
        lambda folder: _metaimage(folder / "a.mha", more="DimSize = 4000 4000 1000\n"),
        r"expected 32000000000 bytes of voxels, got 420",
    ),
    "damaged size, compressed": (
        lambda folder: _metaimage(folder / "a.mha", more="CompressedData = True\nDimSize = 4000 4000 1000\n"),
        r"expected 32000000000 bytes of voxels, as the header declares, got 433440 at most; the file is cut off or its",
    ),
    "nrrd 0 mm": (lambda folder: _nrrd(folder / "a.nrrd", "spacings: 0 3 4\n"), r"a spacing above 0, got 0 3 4 mm"),
    "nrrd -2 mm": (lambda folder: _nrrd(folder / "a.nrrd", "spacings: -2 3 4\n"), r"spacing above 0, got -2 3 4 mm"),
    "nrrd NaN mm": (lambda folder: _nrrd(folder / "a.nrrd", "spacings: nan 3 4\n"), r"got nan 3 4 mm"),
    "nrrd no direction": (
        lambda folder: _nrrd(folder / "a.nrrd", SPACED.replace("(2,0,0)", "none")),
        r"expected a direction of each axis, got none \(0,3,0\) \(0,0,4\)",
    ),
    "nrrd direction of no length": (
        lambda folder: _nrrd(folder / "a.nrrd", SPACED.replace("(2,0,0)", "(0,0,0)")),
        r"expected a spacing above 0 and a position, got the spacing \(0\.0, 3\.0, 4\.0\) mm",
    ),
    "nrrd other unit": (
        lambda folder: _nrrd(folder / "a.nrrd", SPACED + 'space units: "m" "m" "m"\n'),
        r"expected millimetres, got a header in 'm'",
    ),
    "nrrd damaged size": (
        lambda folder: _nrrd(folder / "a.nrrd", sizes="4000 4000 1000"),
        r"expected 32000000000 bytes of voxels, as the header declares, got 420 at most",
    ),
    "DICOM without PixelSpacing": (
        lambda folder: _without_tag(write_dicom(STRAIGHT, folder / "a"), b"\x28\x00\x30\x00"),
        r"expected the distance of its pixels in the patient \(PixelSpacing\), got none, which would be taken as 1 mm;",
    ),
    "DICOM with ImagerPixelSpacing": (
        lambda folder: _without_tag(
            write_dicom(STRAIGHT, folder / "a", tags={n: {"0018|1164": "0.7\\0.7"} for n in range(5)}),
            b"\x28\x00\x30\x00",
        ),
        r"\(PixelSpacing\), got none, but that on the detector \(ImagerPixelSpacing\), which is larger; export",
    ),
    "DICOM with an intercept in some": (
        lambda folder: _without_tag(_rescaled(folder / "a"), b"\x28\x00\x52\x10", "785_1.dcm"),
        r"expected RescaleIntercept in every slice or in none, got none in 785_1\.dcm and one in 007_1\.dcm, so that",
    ),
}


def _rescaled(folder: Path) -> Path:
    stored = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}
    tags = {n: {**stored, "0028|1052": "-1024", "0028|1053": "1"} for n in range(5)}
    return write_dicom(volume(random_image().astype(np.float32), DIRECTIONS["straight"]), folder, tags=tags)


def _without_tag(folder: Path, tag: bytes, only: str = "*.dcm") -> Path:
    """Take an element out of slices in implicit little endian."""
    for file in folder.glob(only):
        content = file.read_bytes()
        at = content.rindex(tag, 0, content.rindex(b"\xe0\x7f\x10\x00"))
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        file.write_bytes(content[:at] + content[at + 8 + length :])
    return folder


@pytest.mark.parametrize("kind", ODD_HEADERS)
def test_an_odd_header_is_refused(tmp_path: Path, kind: str) -> None:
    make, match = ODD_HEADERS[kind]
    path = make(tmp_path)
    with pytest.raises(DatasetError, match=match) as caught:
        open_volume(path)
    (sentence,) = caught.value.problems
    assert sentence.startswith(str(path))
    assert sentence.endswith(".")


def test_slices_with_one_intercept_each_are_read(tmp_path: Path) -> None:
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(_rescaled(tmp_path / "a"))).T, random_image())


@pytest.mark.parametrize(
    ("make", "remarks"),
    [
        (lambda folder: _metaimage(folder / "a.mha"), ()),
        (lambda folder: _metaimage(folder / "a.mha", "ElementSpacing = 2 3 4\nDistanceUnits = mm"), ()),
        (lambda folder: _metaimage(folder / "a.mha", ""), (NO_SPACING,)),
        (lambda folder: _metaimage(folder / "a.mha", matrix=False), (NO_FRAME,)),
        (lambda folder: _nrrd(folder / "a.nrrd"), ()),
        (lambda folder: _nrrd(folder / "a.nrrd", SPACED + 'space units: "mm" "mm" "mm"\n'), ()),
        (lambda folder: _nrrd(folder / "a.nrrd", SPACED.replace("left-posterior-superior", "RAS")), ()),
        (
            lambda folder: _nrrd(folder / "a.nrrd", SPACED.replace("left-posterior-superior", "scanner-xyz")),
            (NO_FRAME,),
        ),
        (lambda folder: _nrrd(folder / "a.nrrd", "spacings: 2 3 4\n"), (NO_FRAME,)),
        (lambda folder: _nrrd(folder / "a.nrrd", ""), (NO_SPACING, NO_FRAME)),
        (lambda folder: write(STRAIGHT, folder / "a.nhdr"), ()),
        (lambda folder: write(STRAIGHT, folder / "a.mhd"), ()),
        (lambda folder: write_dicom(STRAIGHT, folder / "a"), ()),
    ],
)
def test_what_a_header_leaves_open_is_remarked(
    tmp_path: Path, make: Callable[[Path], Path], remarks: tuple[str, ...]
) -> None:
    source = open_volume(make(tmp_path))
    assert source.remarks == remarks
    assert np.array_equal(sitk.GetArrayFromImage(source.load()).T, random_image())


def test_a_grid_a_little_off_right_angles_is_written_as_it_is(tmp_path: Path) -> None:
    affine = np.diag([2.0, 3, 4, 1])
    affine[0, 1] = 3e-4  # 1e-4 off
    fields = {"qform_code": 0, "sform_code": 2}
    write_nifti(tmp_path / "images" / "a.nii.gz", random_image(), affine, fields)
    write_nifti(tmp_path / "labels" / "a.nii.gz", block_label(), affine, fields)
    options = PrepareOptions(images=tmp_path / "images", labels=tmp_path / "labels", num_folds=0)
    assert not prepare_dataset(options, tmp_path / "out", num_workers=1).notes
    assert np.allclose(nibabel.load(tmp_path / "out/imagesTr/a.nii.gz").affine, affine, rtol=0, atol=1e-6)
