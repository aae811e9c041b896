"""DICOM SEG as labels: paired with the series that they refer to, and put on its voxels."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_series import OPTIONAL, PLANES, ROOT, dcmqi, write_seg, write_series
from marks import slow
from numpy.typing import NDArray
from rtstruct_files import write_rtstruct
from volume_files import random_image, volume, write

from monai_extra_losses.cli import main
from monai_extra_losses.data import (
    DatasetError,
    PreparedDataset,
    PrepareOptions,
    open_volume,
    prepare_dataset,
    read_case_list,
)
from monai_extra_losses.data.dicom_labels import label_objects, open_dicom_label, pair_by_reference

hd = pytest.importorskip("highdicom", reason="highdicom, of the extra [dicom], is not installed")

SHAPE = (9, 7, 6)  # of pixels that fill no bytes
CLASSES = {"Liver": (1,), "Tumor": (2,)}
UID = f"{ROOT}.4"


def random_label(seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 3, SHAPE)


def make_case(folder: Path, name: str, number: int, plane: str = "axial", **options: Any) -> NDArray[np.int64]:
    """images/NAME and its labels/segNUMBER.dcm."""
    series = write_series(
        folder / "images" / name, random_image(number, shape=SHAPE), series=number, plane=plane, **options
    )
    label = random_label(number)
    (folder / "labels").mkdir(exist_ok=True)
    write_seg(series, label, CLASSES, folder / "labels" / f"seg{number}.dcm")
    return label


def options_of(folder: Path, **changes: Any) -> PrepareOptions:
    return PrepareOptions(**{"images": folder / "images", "labels": folder / "labels", "num_folds": 0, **changes})


def prepare(folder: Path, **changes: Any) -> PreparedDataset:
    return prepare_dataset(options_of(folder, **changes), folder / "out", num_workers=1)


def refused(folder: Path, match: str, **changes: Any) -> list[str]:
    with pytest.raises(DatasetError, match=match) as caught:
        prepare(folder, **changes)
    assert not (folder / "out").exists()
    return caught.value.problems


def label_of(folder: Path, case: str) -> NDArray[Any]:
    return np.asarray(nibabel.load(folder / "out" / "labelsTr" / f"{case}.nii.gz").dataobj)


# ---- voxels and names ------------------------------------------------------------------------------------------------


def test_labels_come_back_whatever_the_files_are_called(tmp_path: Path) -> None:
    labels = {}
    for number, plane in enumerate(PLANES):
        labels[plane] = make_case(tmp_path, plane, number, plane, descending=number % 2 == 0)
    nested = tmp_path / "labels" / "b" / "deep"
    nested.mkdir(parents=True)
    shutil.move(tmp_path / "labels" / "seg0.dcm", nested / "IM0001")
    shutil.move(tmp_path / "labels" / "seg1.dcm", tmp_path / "labels" / "axial.dcm")  # which is another's name
    prepared = prepare(tmp_path)
    assert prepared.labels == {0: "background", 1: "Liver", 2: "Tumor"}
    for plane, label in labels.items():
        np.testing.assert_array_equal(label_of(tmp_path, plane), label)
    assert not [note for note in prepared.notes if "passed over" in note]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    image, seg = next(case for case in manifest["cases"] if case["name"] == "axial")["series"]
    assert image["uid"] == f"{UID}.0"
    written = pydicom.dcmread(nested / "IM0001")
    assert (seg["uid"], seg["instance"]) == (written.SeriesInstanceUID, written.SOPInstanceUID)
    assert read_case_list(tmp_path / "out").segments["Liver"]["type"] == ("85756007", "SCT", "Tissue")


def test_names_choose_segments_and_their_ids(tmp_path: Path) -> None:
    label = make_case(tmp_path, "a", 1)
    prepared = prepare(tmp_path, names={1: "tumor"})
    np.testing.assert_array_equal(label_of(tmp_path, "a"), label == 2)
    assert prepared.labels == {0: "background", 1: "tumor"}
    assert any(
        "1 structures are left out, because --names does not have them (Liver in 1 of 1)" in n for n in prepared.notes
    )
    with pytest.raises(DatasetError, match=r"got an id for spleen, which no label has; correct --names"):
        prepare_dataset(options_of(tmp_path, names={1: "tumor", 2: "spleen"}), tmp_path / "other", num_workers=1)


def test_images_and_objects_in_one_folder(tmp_path: Path) -> None:
    label = make_case(tmp_path, "a", 1)
    shutil.move(tmp_path / "labels" / "seg1.dcm", tmp_path / "images" / "a" / "seg.dcm")
    other = make_case(tmp_path, "b", 2)
    shutil.move(tmp_path / "labels" / "seg2.dcm", tmp_path / "images" / "seg2.dcm")
    prepare(tmp_path, labels=tmp_path / "images")
    np.testing.assert_array_equal(label_of(tmp_path, "a"), label)
    np.testing.assert_array_equal(label_of(tmp_path, "b"), other)


def test_the_series_that_is_referred_to_is_taken_of_several(tmp_path: Path) -> None:
    label = make_case(tmp_path, "a", 1)
    write_series(tmp_path / "images" / "a" / "scout", random_image(9, shape=SHAPE), series=5)
    prepare(tmp_path)
    np.testing.assert_array_equal(label_of(tmp_path, "a"), label)
    image = np.asarray(nibabel.load(tmp_path / "out" / "imagesTr" / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(image, random_image(1, shape=SHAPE))


def test_channels_are_folders(tmp_path: Path) -> None:
    label = make_case(tmp_path, "a_0001", 1)
    write_series(tmp_path / "images" / "a_0000", random_image(9, shape=SHAPE), series=5)
    prepare(tmp_path)
    np.testing.assert_array_equal(label_of(tmp_path, "a"), label)
    assert len(list((tmp_path / "out" / "imagesTr").iterdir())) == 2


def test_overlapping_segments_are_refused_or_kept_as_regions(tmp_path: Path) -> None:
    series = write_series(tmp_path / "images" / "a", random_image(shape=SHAPE))
    label = random_label()
    (tmp_path / "labels").mkdir()
    write_seg(series, label, {"whole": (1, 2), "core": (2,)}, tmp_path / "labels" / "a.dcm")
    count = np.count_nonzero(label == 2)
    refused(
        tmp_path,
        rf"a\.dcm: expected structures that do not overlap, got {count} voxels in 'whole' and 'core'; .*--regions",
    )
    prepared = prepare(tmp_path, regions=True, names={1: "Whole", 2: "Core"})
    np.testing.assert_array_equal(label_of(tmp_path, "a"), label)
    found = read_case_list(tmp_path / "out")
    assert found.labels == {0: "background", 1: "Whole", 2: "Whole + Core"}
    assert found.regions == {"Whole": (1, 2), "Core": (2,)}
    assert found.segments.keys() == {"Whole", "Core"}
    assert prepared.notes[0].startswith("2 regions (Whole, Core) of 2 labels, one for each combination of structures")


def test_an_anonymised_series_without_optional_tags(tmp_path: Path) -> None:
    label = make_case(tmp_path, "a", 1, leave_out=(*OPTIONAL, "FrameOfReferenceUID"))
    prepare(tmp_path)
    np.testing.assert_array_equal(label_of(tmp_path, "a"), label)


def test_an_empty_segment_called_background_is_no_class(tmp_path: Path) -> None:
    series = write_series(tmp_path / "images" / "a", random_image(shape=SHAPE))
    (tmp_path / "labels").mkdir()
    write_seg(series, random_label() > 0, {"Background": (9,), "Liver": (1,)}, tmp_path / "labels" / "a.dcm")
    assert prepare(tmp_path).labels == {0: "background", 1: "Liver"}
    assert read_case_list(tmp_path / "out").segments.keys() == {"Liver"}


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
def test_other_kinds_of_segmentations(tmp_path: Path, kind: str) -> None:
    series = write_series(tmp_path / "images" / "a", random_image(shape=SHAPE), descending=True)
    headers = sorted((pydicom.dcmread(file) for file in series.iterdir()), key=lambda h: h.ImagePositionPatient[2])
    label = random_label()
    by_slice = label.transpose(2, 1, 0)
    if kind == "FRACTIONAL":
        rng = np.random.default_rng(1)
        pixels = np.where(by_slice[..., None] == [1, 2], rng.uniform(0.51, 1, (*by_slice.shape, 2)), 0.48)
    else:
        pixels = by_slice.astype(np.uint8)
    algorithm = hd.AlgorithmIdentificationSequence("x", pydicom.sr.codedict.codes.cid7162.ArtificialIntelligence, "1")
    tissue = pydicom.sr.codedict.codes.SCT.Tissue
    described = [
        hd.seg.SegmentDescription(number, name, tissue, tissue, "AUTOMATIC", algorithm)
        for number, name in enumerate(CLASSES, start=1)
    ]
    seg = hd.seg.Segmentation(
        headers, pixels, kind, described, hd.UID(), 1, hd.UID(), 1, "m", "m", "1", "1", content_label="X"
    )
    (tmp_path / "labels").mkdir()
    seg.save_as(tmp_path / "labels" / "a.dcm")
    prepared = prepare(tmp_path)
    np.testing.assert_array_equal(label_of(tmp_path, "a"), label)
    assert any("fractions are taken from one half on (a.dcm)" in note for note in prepared.notes) == (
        kind == "FRACTIONAL"
    )


@pytest.mark.parametrize("plane", ["axial", *slow("sagittal", "coronal", "oblique")])
def test_an_object_of_another_program(tmp_path: Path, plane: str) -> None:
    program = dcmqi("itkimage2segimage")
    series = write_series(tmp_path / "images" / "a", random_image(shape=SHAPE), plane=plane, descending=True)
    label = random_label()
    grid = open_volume(series).grid
    write(
        volume(label.astype(np.int16), np.reshape(grid.direction, (3, 3)), grid.spacing, grid.origin),
        tmp_path / "label.nrrd",
    )
    tissue = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    attributes = [
        {
            "labelID": number,
            "SegmentLabel": name,
            "SegmentDescription": name,
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": tissue,
            "SegmentedPropertyTypeCodeSequence": tissue,
            "recommendedDisplayRGBValue": [10 * number, 20, 30],
        }
        for number, name in enumerate(CLASSES, start=1)
    ]
    (tmp_path / "meta.json").write_text(
        json.dumps(
            {"SeriesDescription": "S", "SeriesNumber": "3", "InstanceNumber": "1", "segmentAttributes": [attributes]}
        )
    )
    (tmp_path / "labels").mkdir()
    words = ["--inputImageList", tmp_path / "label.nrrd", "--inputDICOMDirectory", series]
    words += ["--inputMetadata", tmp_path / "meta.json", "--outputDICOM", tmp_path / "labels" / "a.dcm"]
    subprocess.run([program, *map(str, words)], check=True, capture_output=True, timeout=60)
    prepare(tmp_path)
    np.testing.assert_array_equal(label_of(tmp_path, "a"), label)
    assert read_case_list(tmp_path / "out").segments["Tumor"]["color"] == (20, 20, 30)


# ---- what does not pair, or does not fit -----------------------------------------------------------------------------


def test_all_that_does_not_pair_is_listed_at_once(tmp_path: Path) -> None:
    for number, name in enumerate("abcd", start=1):
        make_case(tmp_path, name, number)
    shutil.rmtree(tmp_path / "images" / "a")
    (tmp_path / "labels" / "seg2.dcm").unlink()
    shutil.copy(tmp_path / "labels" / "seg3.dcm", tmp_path / "labels" / "copy.dcm")
    write(volume(random_image()), tmp_path / "images" / "other.nii.gz")
    write(volume(random_image()), tmp_path / "labels" / "other.nii.gz")
    without = pydicom.dcmread(tmp_path / "labels" / "seg4.dcm")
    del without.ReferencedSeriesSequence
    without.save_as(tmp_path / "labels" / "without.dcm")
    sentences = "\n".join(refused(tmp_path, "has 6 problems"))
    for words in (
        f"{tmp_path / 'images'}, to which it refers by UID, got one of {UID}.1; add the series",
        f"in {tmp_path / 'labels'} that refers to its series ({UID}.2), got none; add it, or leave the case",
        "c: expected one object for its series, got ",
        "other.nii.gz: expected a DICOM series, to which DICOM SEG and RTSTRUCT refer, got a volume of another format",
        "labels: expected label volumes, or DICOM SEG and RTSTRUCT objects, got both (other.nii.gz)",
        "without.dcm: expected the DICOM SEG to name the series that it refers to, got none; export it again",
    ):
        assert words in sentences


def _of_another_grid(folder: Path) -> None:
    make_case(folder, "a", 1)
    shutil.rmtree(folder / "images" / "a")
    write_series(folder / "images" / "a", random_image(shape=SHAPE), series=1, spacing=(0.8, 1.1, 2.5))


def _oblique(folder: Path) -> None:
    make_case(folder, "a", 1)
    shutil.rmtree(folder / "images" / "a")
    write_series(folder / "images" / "a", random_image(shape=SHAPE), series=1, plane="oblique")


def _fewer_slices(folder: Path) -> None:
    make_case(folder, "a", 1)
    shutil.rmtree(folder / "images" / "a")
    write_series(folder / "images" / "a", random_image(shape=(*SHAPE[:2], 4)), series=1)


def _between_slices(folder: Path) -> None:
    make_case(folder, "a", 1)
    shutil.rmtree(folder / "images" / "a")
    write_series(folder / "images" / "a", random_image(shape=SHAPE), series=1, origin=(12.3, -45.6, 79.9))


def _cut(folder: Path) -> None:
    make_case(folder, "a", 1)
    file = folder / "labels" / "seg1.dcm"
    file.write_bytes(file.read_bytes()[:-60])


def _with_a_gap(folder: Path) -> None:
    make_case(folder, "a", 1)
    file = folder / "labels" / "seg1.dcm"
    seg = pydicom.dcmread(file)
    seg.DimensionOrganizationType = "3D"
    frames = list(seg.PerFrameFunctionalGroupsSequence)
    at = [float(frame.PlanePositionSequence[0].ImagePositionPatient[2]) for frame in frames]
    kept = [number for number, height in enumerate(at) if height != sorted(set(at))[2]]
    seg.PerFrameFunctionalGroupsSequence = [frames[number] for number in kept]
    pixels = seg.pixel_array[kept]
    seg.NumberOfFrames = len(kept)
    seg.PixelData = pydicom.pixels.utils.pack_bits(pixels.ravel(), pad=True)
    seg.save_as(file)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another spacing": (
        _of_another_grid,
        r"expected frames on the voxels of its series, 9 x 7 x 6 of 0\.8 x 1\.1 x 2\.5 mm, got 12 of 12 elsewhere "
        r"\(oblique, or of another spacing\)",
    ),
    "oblique": (_oblique, r"got 12 of 12 elsewhere \(oblique, or of another spacing\); is the series whole\?"),
    "a series without its last slices": (_fewer_slices, r"got 4 of 12 elsewhere \(outside\); is the series whole\?"),
    "between the slices": (_between_slices, r"got 12 of 12 elsewhere \(between the slices\)"),
    "cut off": (_cut, r"seg1\.dcm: expected a whole volume, got one that cannot be read"),
    "missing frames": (_with_a_gap, r"expected a stack of frames without a gap, .* got 1 missing between the first"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_object_that_does_not_fit_is_refused(tmp_path: Path, kind: str) -> None:
    make, match = REFUSED[kind]
    make(tmp_path)
    refused(tmp_path, match)


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_damaged_bytes_are_read_or_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    make_case(tmp_path, "a", 1)
    file = tmp_path / "labels" / "seg1.dcm"
    if kind == "rtstruct":
        square = np.add([[0.5, 0.5, 5.0], [4, 0.5, 5], [4, 4, 5], [0.5, 4, 5]], [12.3, -45.6, 78.9])
        write_rtstruct(file, {"Liver": [("CLOSED_PLANAR", square)]})
    image, whole, rng = open_volume(tmp_path / "images" / "a"), file.read_bytes(), np.random.default_rng(0)
    refusals = []
    for number in range(24):
        content = bytearray(whole[: int(rng.integers(200, len(whole)))] if number % 3 == 0 else whole)
        for at in rng.integers(140, len(content), 4):
            content[at] = rng.integers(0, 256)
        file.write_bytes(content)
        try:
            cases, _ = pair_by_reference(tmp_path / "images", tmp_path / "labels", label_objects(tmp_path / "labels"))
            for _ in cases:
                open_dicom_label(file, image).load()
        except DatasetError as error:
            refusals.append(str(error))
    assert len(refusals) > 4
    assert all(sentence.startswith(str(file)) and sentence.endswith(".") for sentence in refusals)


def test_a_series_with_a_missing_slice_is_refused(tmp_path: Path) -> None:
    make_case(tmp_path, "a", 1)
    files = sorted((tmp_path / "images" / "a").iterdir(), key=lambda file: pydicom.dcmread(file).InstanceNumber)
    files[2].unlink()
    refused(tmp_path, r"slices are missing, export the series again")


def test_seg_and_rtstruct_of_two_cases(tmp_path: Path) -> None:
    label = make_case(tmp_path, "a", 1)
    write_series(tmp_path / "images" / "b", random_image(2, shape=SHAPE), series=2)
    square = np.add([[0.5, 0.5, 5.0], [4, 0.5, 5], [4, 4, 5], [0.5, 4, 5]], [12.3, -45.6, 78.9])
    write_rtstruct(tmp_path / "labels" / "rt.dcm", {"LIVER": [("CLOSED_PLANAR", square)]}, series=2)
    prepared = prepare(tmp_path)
    assert prepared.labels == {0: "background", 1: "Liver", 2: "Tumor"}
    assert "some objects lack a structure (Tumor in 1 of 2), which counts as absent there." in prepared.notes
    np.testing.assert_array_equal(label_of(tmp_path, "a"), label)
    expected = np.zeros(SHAPE, int)
    expected[1:6, 1:4, 2] = 1
    np.testing.assert_array_equal(label_of(tmp_path, "b"), expected)


@pytest.mark.parametrize("changes", [{"remap": {1: 2}}, {"annotated": (1,)}, {"ignore_label": 1}])
def test_regions_make_the_ids_themselves(tmp_path: Path, changes: Any) -> None:
    make_case(tmp_path, "a", 1)
    refused(tmp_path, r"expected --regions, which makes the label ids itself, without --", regions=True, **changes)


def test_regions_of_a_label_map_are_refused(tmp_path: Path) -> None:
    write(volume(random_image()), tmp_path / "images" / "a.nii.gz")
    write(volume((random_image() > 0).astype(np.uint8)), tmp_path / "labels" / "a.nii.gz")
    refused(
        tmp_path, r"expected structures that may overlap, in named layers or a file each, for --regions", regions=True
    )


def test_the_command_takes_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_case(tmp_path, "a", 1)
    words = ["prepare", "--images", tmp_path / "images", "--labels", tmp_path / "labels", "--out", tmp_path / "out"]
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), "--folds", "0", "--regions", "--names", "1:tumor,2:liver"])
    assert ended.value.code == 0
    assert "2 regions (tumor, liver)" in capsys.readouterr().out
    for _ in range(2):  # goes on
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words), "--folds", "0", "--regions", "--names", "1:tumor,2:liver"])
        assert ended.value.code == 0
