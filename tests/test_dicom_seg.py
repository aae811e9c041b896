"""DICOM SEG and measurements of segmentations: what other programs read of them, voxel by voxel."""

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import FRAME, OPTIONAL, ROOT, STUDY, dcmqi, write_seg, write_series
from marks import slow_but
from monai.data import MetaTensor
from numpy.typing import NDArray
from runs import train
from volume_files import random_image, volume, write

from monai_extra_losses.bundle.dicom_segmentation import GENERIC_CATEGORY, GENERIC_TYPE
from monai_extra_losses.bundle.inference import InferenceSetUp
from monai_extra_losses.bundle.measurements import Measurements, longest_diameter, shape_of
from monai_extra_losses.bundle.options import output_types
from monai_extra_losses.bundle.run_folder import RunFolder
from monai_extra_losses.bundle.run_record import RunRecord
from monai_extra_losses.bundle.running import run_configs
from monai_extra_losses.bundle.segmentation_files import write_nifti
from monai_extra_losses.data import DatasetError, PrepareOptions, open_volume, prepare_dataset, read_case_list
from monai_extra_losses.data.errors import CasesFailed, StartUpRefused
from monai_extra_losses.data.nnunet_raw import export_nnunet
from monai_extra_losses.data.pool import PoolOptions, pool_datasets

hd = pytest.importorskip("highdicom", reason="highdicom, of the extra [dicom], is not installed")

SHAPE = (9, 7, 6)  # of pixels that fill no bytes
LIVER = ["10200004", "SCT", "Liver"]


def random_label(values: Sequence[int], seed: int = 0) -> NDArray[np.int64]:
    """Of axes column, row and slice, without a voxel in the last slice."""
    label = np.random.default_rng(seed).choice([0, *values], SHAPE)
    label[..., -1] = 0
    return label


def nifti_of(folder: Path, label: NDArray[Any], file: Path) -> sitk.Image:
    """The label as inference writes it, read by SimpleITK."""
    volume = MetaTensor(label[None].astype(np.int64), affine=open_volume(folder).grid.affine)
    write_nifti(volume, file, np.uint8)
    return sitk.ReadImage(str(file))


def on_grid_of(reference: sitk.Image, image: sitk.Image) -> NDArray[Any]:
    """Voxels z, y, x at the places of another image's."""
    there = sitk.Resample(image, reference, sitk.Transform(), sitk.sitkNearestNeighbor)
    return sitk.GetArrayFromImage(there)


def as_highdicom_reads(seg: Any, reference: sitk.Image) -> list[NDArray[np.bool_]]:
    """Where each segment is, at the places of the reference's voxels."""
    voxels = seg.get_volume(segment_numbers=list(seg.segment_numbers), rescale_fractional=False)
    directions, (slices, rows, columns) = np.array(voxels.direction), voxels.spacing
    found = []
    for number in range(voxels.array.shape[-1]):
        image = sitk.GetImageFromArray(voxels.array[..., number].astype(np.uint8))
        image.SetSpacing((columns, rows, slices))
        image.SetDirection(directions[:, ::-1].ravel().tolist())
        image.SetOrigin(voxels.position)
        found.append(on_grid_of(reference, image) > 0)
    return found


def as_dcmqi_reads(file: Path, reference: sitk.Image, count: int) -> list[NDArray[np.bool_]]:
    program = dcmqi("segimage2itkimage")
    out = file.with_suffix(".dcmqi")
    out.mkdir()
    words = [program, "--inputDICOM", str(file), "--outputDirectory", str(out), "-p", "s", "-t", "nrrd"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    images = {number: out / f"s-{number}.nrrd" for number in range(1, count + 1)}
    blank = sitk.GetArrayFromImage(reference) < 0
    return [
        on_grid_of(reference, sitk.ReadImage(str(one))) > 0 if one.exists() else blank.copy() for one in images.values()
    ]


# ---- voxels ----------------------------------------------------------------------------------------------------------


CLASSES: dict[str, dict[str, Sequence[int]]] = {
    "one": {"liver": (1,)},
    "several": {"liver": (1,), "tumor": (2,), "vessel": (7,)},
    "empty": {"nothing": (5,), "liver": (1,), "nowhere": (9,)},
    "regions": {"whole": (1, 2, 7), "core": (2, 7), "rim": (1, 7)},
}
SERIES: dict[str, dict[str, Any]] = {
    "axial": {},
    "axial from the head": {"descending": True},
    "sagittal": {"plane": "sagittal"},
    "coronal": {"plane": "coronal", "descending": True},
    "oblique": {"plane": "oblique"},
    "thick": {"spacing": (1, 1, 6), "plane": "oblique", "descending": True},
}


ALL = [(kind, classes) for kind in SERIES for classes in CLASSES]
QUICK = [("axial from the head", "several"), ("sagittal", "one"), ("thick", "empty"), ("oblique", "regions")]


@pytest.mark.parametrize(
    ("kind", "classes", "reader"),
    slow_but(
        [(*one, reader) for one in QUICK for reader in ("highdicom", "dcmqi")],
        [(*one, reader) for one in ALL for reader in ("highdicom", "dcmqi")],
    ),
)
def test_other_programs_read_the_voxels_of_the_nifti_file(tmp_path: Path, kind: str, classes: str, reader: str) -> None:
    folder = write_series(tmp_path / "P", random_image(shape=SHAPE), **SERIES[kind])
    label = random_label((1, 2, 7))
    seg = write_seg(folder, label, CLASSES[classes], tmp_path / "seg.dcm")
    reference = nifti_of(folder, label, tmp_path / "seg.nii.gz")
    expected = [np.isin(sitk.GetArrayFromImage(reference), values) for values in CLASSES[classes].values()]
    assert any(one.any() for one in expected)
    if reader == "highdicom":
        found = as_highdicom_reads(seg, reference)
    else:
        found = as_dcmqi_reads(tmp_path / "seg.dcm", reference, len(expected))
    for one, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, right)


def test_a_segmentation_without_a_voxel_is_an_object_of_empty_segments(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "P", random_image(shape=SHAPE))
    seg = write_seg(folder, np.zeros(SHAPE, int), CLASSES["several"], tmp_path / "seg.dcm")
    assert [description.SegmentLabel for description in seg.SegmentSequence] == ["liver", "tumor", "vessel"]
    assert seg.NumberOfFrames == 3
    assert not seg.pixel_array.any()


# ---- what the object says --------------------------------------------------------------------------------------------


def test_the_object_says_of_what_it_is(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "P", random_image(shape=SHAPE))
    segments = {"läsion": {"color": (221, 130, 101), "category": ("49755003", "SCT", "Abnormal"), "type": (*LIVER,)}}
    label = random_label((1, 2))
    seg = write_seg(folder, label, {"organ": (1,), "läsion": (2,)}, tmp_path / "seg.dcm", segments)
    assert seg.SOPClassUID == pydicom.uid.SegmentationStorage
    assert (seg.SegmentationType, seg.ContentLabel, seg.Modality) == ("BINARY", "SEGMENTATION", "SEG")
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (STUDY, FRAME)
    assert (str(seg.PatientName), seg.PatientID, seg.StudyDate) == ("Müller^Jörg", "P-17", "20250102")
    assert seg.SeriesInstanceUID != f"{ROOT}.4.1"
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == f"{ROOT}.4.1"
    instances = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert instances == {f"{ROOT}.3.1.{number}" for number in range(1, SHAPE[2] + 1)}
    organ, lesion = seg.SegmentSequence
    assert [organ.SegmentLabel, lesion.SegmentLabel] == ["organ", "läsion"]
    assert {(one.SegmentAlgorithmType, one.SegmentAlgorithmName) for one in (organ, lesion)} == {
        ("AUTOMATIC", "monai_extra_losses")
    }
    assert organ.TrackingUID != lesion.TrackingUID
    for item, category, type_ in (
        (organ, GENERIC_CATEGORY, GENERIC_TYPE),
        (lesion, segments["läsion"]["category"], LIVER),
    ):
        for code, right in (
            (item.SegmentedPropertyCategoryCodeSequence[0], category),
            (item.SegmentedPropertyTypeCodeSequence[0], type_),
        ):
            assert [code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning] == list(right)[:3]
    color = hd.color.CIELabColor.from_dicom_value(lesion.RecommendedDisplayCIELabValue)
    assert color.to_rgb(clip=True) == pytest.approx((221, 130, 101), abs=1)


def test_the_generic_codes_are_those_of_dicom_s_context_groups() -> None:
    from pydicom.sr.codedict import codes

    for code, known in ((GENERIC_CATEGORY, codes.cid7150.AnatomicalStructure), (GENERIC_TYPE, codes.cid7151.Tissue)):
        assert code == (known.value, known.scheme_designator, known.meaning)


def test_an_anonymised_series_without_optional_tags(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_series(
        tmp_path / "P", random_image(shape=SHAPE), leave_out=(*OPTIONAL, "FrameOfReferenceUID", "SpecificCharacterSet")
    )
    label = random_label((1,))
    seg = write_seg(folder, label, {"liver": (1,)}, tmp_path / "seg.dcm")
    for keyword in ("PatientID", "StudyID", "AccessionNumber", "StudyDate", "StudyTime", "PatientSex"):
        assert keyword in seg
        assert not seg[keyword].value
    assert seg.FrameOfReferenceUID
    assert "the images have no FrameOfReferenceUID" in caplog.text
    reference = nifti_of(folder, label, tmp_path / "seg.nii.gz")
    (found,) = as_highdicom_reads(seg, reference)
    np.testing.assert_array_equal(found, sitk.GetArrayFromImage(reference) == 1)


def test_values_that_anonymisation_made_up_are_emptied(tmp_path: Path) -> None:
    tags = {"StudyDate": "REMOVED", "PatientSex": "X", "StudyTime": "none", "PatientBirthDate": "1970"}
    with pydicom.config.disable_value_validation():
        folder = write_series(tmp_path / "P", random_image(shape=SHAPE), tags=tags)
    seg = write_seg(folder, random_label((1,)), {"liver": (1,)}, tmp_path / "seg.dcm")
    assert {keyword: seg[keyword].value for keyword in tags} == dict.fromkeys(tags, "")


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_images_that_nothing_can_refer_to_are_refused(tmp_path: Path, keyword: str) -> None:
    folder = write_series(tmp_path / "P", random_image(shape=SHAPE), leave_out=(keyword,))
    with pytest.raises(DatasetError, match=rf"expected {keyword}, by which a DICOM SEG refers to it, got none; bring"):
        write_seg(folder, random_label((1,)), {"liver": (1,)}, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_an_unknown_kind_of_image_is_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "P", random_image(shape=SHAPE))
    for file in folder.iterdir():
        slice_ = pydicom.dcmread(file)
        slice_.SOPClassUID = "1.2.3.4"
        pydicom.dcmwrite(file, slice_)
    with pytest.raises(DatasetError, match=r"expected a series that a DICOM SEG can refer to, got one that highdicom"):
        write_seg(folder, random_label((1,)), {"liver": (1,)}, tmp_path / "seg.dcm")


def test_a_long_name_is_cut_and_a_backslash_replaced(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "P", random_image(shape=SHAPE))
    seg = write_seg(folder, random_label((1, 2)), {"a\\b": (1,), "n" * 70: (2,)}, tmp_path / "seg.dcm")
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["a_b", "n" * 64]


# ---- measurements ----------------------------------------------------------------------------------------------------


def brute_force(inside: NDArray[np.bool_], axes: NDArray[np.float64]) -> float:
    points = np.argwhere(inside) @ axes.T
    return max((float(np.linalg.norm(a - b)) for a, b in combinations(points, 2)), default=0.0)


@pytest.mark.parametrize("seed", range(6))
def test_the_longest_diameter_is_that_of_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inside = rng.random((9, 7, 5)) < (0.02, 0.1, 0.3, 0.6, 0.9, 1.1)[seed]
    inside[4, 3, 2] = True
    axes = rng.normal(size=(3, 3))
    assert longest_diameter(inside, axes) == pytest.approx(brute_force(inside, axes), rel=1e-12)


@pytest.mark.parametrize(
    ("voxels", "millimetres"),
    [
        ([(2, 3, 1)], 0.0),
        ([(2, 3, 1), (2, 3, 4)], 3 * 2.5),
        ([(i, i, i) for i in range(5)], 4 * np.sqrt(0.49 + 1 + 6.25)),
        ([(i, j, 2) for i in range(4) for j in range(6)], np.hypot(3 * 0.7, 5)),
        ([(i, 2, 2) for i in range(7)], 6 * 0.7),
    ],
)
def test_points_lines_and_planes_have_a_diameter_too(voxels: list[tuple[int, ...]], millimetres: float) -> None:
    inside = np.zeros((8, 8, 6), bool)
    inside[tuple(np.transpose(voxels))] = True
    assert longest_diameter(inside, np.diag([0.7, 1, 2.5])) == pytest.approx(millimetres, abs=1e-12)


def test_the_diameter_is_that_of_the_largest_component() -> None:
    inside = np.zeros((20, 9, 9), bool)
    inside[0, 0, 0] = inside[19, 8, 8] = True
    inside[3:9, 4:6, 4] = inside[9, 6, 5] = True  # by a corner
    shape = shape_of(inside, np.diag([0.7, -1, 2.5]))
    assert shape == {
        "volume_ml": pytest.approx(15 * 0.7 * 2.5 / 1000),
        "components": 3,
        "longest_diameter_mm": pytest.approx(np.sqrt((6 * 0.7) ** 2 + 4 + 2.5**2)),
    }


def test_what_is_measured_of_a_series(tmp_path: Path) -> None:
    voxels = random_image(shape=SHAPE)
    folder = write_series(tmp_path / "P", voxels, descending=True)
    label = random_label((1, 3))
    writes = Measurements(
        cases={"case": (folder,)},
        series=None,
        classes={"liver": (3,), "all": (1, 3), "none": (4,)},
        channels=["CT"],
        made_of={"case": {"model": "abc"}},
    )
    writes("case", label, tmp_path / "m.json")
    found = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    liver, both, none = (found["classes"][name] for name in ("liver", "all", "none"))
    assert (liver["label"], both["label"]) == (3, [1, 3])
    assert liver["volume_ml"] == pytest.approx(np.count_nonzero(label == 3) * 0.7 * 1.1 * 2.5 / 1000)
    assert liver["mean_intensity"] == {"CT": pytest.approx(voxels[label == 3].mean())}
    assert both["mean_intensity"] == {"CT": pytest.approx(voxels[label > 0].mean())}
    assert none == {
        "label": 4,
        "volume_ml": 0,
        "components": 0,
        "longest_diameter_mm": None,
        "mean_intensity": {"CT": None},
    }
    assert (found["case"], found["model"]) == ("case", "abc")
    assert found["frame_of_reference_uid"] == FRAME
    assert found["study_instance_uid"] == STUDY
    assert found["series_instance_uid"] == f"{ROOT}.4.1" == found["image"][0]["series_instance_uid"]
    assert found["image"][0]["sop_instance_uids"] == [f"{ROOT}.3.1.{n}" for n in range(SHAPE[2], 0, -1)]


# ---- the option ------------------------------------------------------------------------------------------------------


def test_kinds_of_output_are_named_one_by_one_or_in_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("dicom_seg,measurements", ["dicom_seg", "measurements"], "[dicom_seg, measurements]"):
        assert output_types("output_type", given) == ("dicom_seg", "measurements")
    assert output_types("output_type", None) == ()
    with pytest.raises(StartUpRefused, match=r"Expected output_type to be a list of dicom_seg, measurements, or null"):
        output_types("output_type", "dicom")
    monkeypatch.setattr("monai_extra_losses.bundle.options.find_spec", lambda name: None)
    with pytest.raises(StartUpRefused, match=r"Expected highdicom, which output_type dicom_seg needs, .* \[dicom\]\."):
        output_types("output_type", "dicom_seg")
    with pytest.raises(StartUpRefused, match=r"Expected connected-components-3d, which output_type measurements needs"):
        output_types("output_type", "measurements")


@pytest.fixture(scope="module")
def trained(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A short training on data that say how DICOM shows a class; do not write into it."""
    data = Path(shutil.copytree(phantom_folder, tmp_path_factory.mktemp("data") / "phantom"))
    declared = json.loads((data / "dataset.json").read_text())
    declared["segments"] = {"organ": {"color": [10, 20, 30], "type": LIVER}}
    (data / "dataset.json").write_text(json.dumps(declared))
    return train(data, tmp_path_factory.mktemp("runs") / "trained", channels=[4, 8], num_res_units=0)


def infer(run: RunFolder, source: Path, output: Path, **options: Any) -> None:
    folders = {"bundle_root": str(run.root), "input": str(source), "output_dir": str(output)}
    run_configs(("inference",), workflow_type="infer", **folders, **options)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_inference_writes_all_of_a_series(trained: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    image = next((phantom_folder / "imagesTs").glob("*.nii.gz"))
    voxels = np.asarray(nibabel.load(image).dataobj)[:28, :24].round().astype(np.int16)
    folder = write_series(tmp_path / "in" / "P", voxels, plane="oblique", spacing=(1, 1.1, 3))
    write(volume(voxels), tmp_path / "in" / "other.mha")
    out = tmp_path / "out"
    with pytest.raises(CasesFailed, match=r"other\.mha: expected a DICOM series for the DICOM SEG of --output_type,"):
        infer(trained, tmp_path / "in", out, output_type="dicom_seg,measurements")
    assert names_in(out) == {"P_seg.nii.gz", "P_seg.dcm", "P_measurements.json"}
    reference = sitk.ReadImage(str(out / "P_seg.nii.gz"))
    label = sitk.GetArrayFromImage(reference)
    record = RunRecord.read(trained.record)
    assert record.segments == {"organ": {"color": (10, 20, 30), "type": tuple(LIVER)}}
    seg = hd.seg.segread(out / "P_seg.dcm")
    assert [one.SegmentLabel for one in seg.SegmentSequence] == list(record.foreground.values())
    assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    for value, found in enumerate(as_highdicom_reads(seg, reference), start=1):
        np.testing.assert_array_equal(found, label == value)
    measured = json.loads((out / "P_measurements.json").read_text())
    assert measured["classes"]["organ"]["volume_ml"] == pytest.approx((label == 1).sum() * 3.3 / 1000)
    assert list(measured["classes"]["organ"]["mean_intensity"]) == ["simulated"]
    before = {name: (out / name).stat().st_mtime_ns for name in names_in(out)}
    with pytest.raises(CasesFailed):
        infer(trained, tmp_path / "in", out, output_type="dicom_seg,measurements")
    assert {name: (out / name).stat().st_mtime_ns for name in names_in(out)} == before
    infer(trained, tmp_path / "in", out)  # and of the other file, without
    assert names_in(out) == {*before, "other_seg.nii.gz"}
    (folder / "IM999").write_bytes((folder / sorted(names_in(folder))[0]).read_bytes())
    with pytest.raises(StartUpRefused, match=r"got one of another image of that name"):
        infer(trained, tmp_path / "in", out, output_type="measurements")


def test_regions_are_segments_of_the_label_ids_that_are_written(trained: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(trained.root, tmp_path / "run")))
    record = dataclasses.replace(
        RunRecord.read(run.record), regions={"whole": (1, 2), "core": (2,)}, original_labels={2: 7}
    )
    record.write(run.record)
    for restored, whole in ((True, (1, 7)), (False, (1, 2))):
        built = InferenceSetUp(bundle_root=run.root, metadata={}, restore_labels=restored)
        assert built.written_classes == {"whole": whole, "core": whole[1:]}


def test_a_segmentation_becomes_the_same_label(trained: RunFolder, tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "P", random_image(shape=(24, 20, 16)), plane="sagittal", descending=True)
    infer(trained, tmp_path / "in", tmp_path / "out", output_type="dicom_seg")
    (tmp_path / "labels").mkdir()
    shutil.copy(tmp_path / "out" / "P_seg.dcm", tmp_path / "labels" / "renamed.dcm")
    options = PrepareOptions(
        images=tmp_path / "in", labels=tmp_path / "labels", num_folds=0, names={1: "organ", 2: "lesion"}
    )
    written = np.asarray(nibabel.load(tmp_path / "out" / "P_seg.nii.gz").dataobj)
    assert set(np.unique(written)) == {0, 1, 2}
    prepare_dataset(options, tmp_path / "data", num_workers=1)
    label = nibabel.load(tmp_path / "data" / "labelsTr" / "P.nii.gz")
    np.testing.assert_array_equal(np.asarray(label.dataobj), written)
    np.testing.assert_allclose(label.affine, nibabel.load(tmp_path / "out" / "P_seg.nii.gz").affine, atol=1e-4)
    assert read_case_list(tmp_path / "data").segments["organ"]["type"] == tuple(LIVER)


def test_results_among_the_series_are_no_series(trained: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number in (1, 2):
        write_series(folder / f"P{number}", random_image(number, shape=(20, 20, 16)), series=number)
    for _ in range(2):
        infer(trained, folder, folder, output_type="dicom_seg,measurements")
    cases = {
        f"P{number}{ending}" for number in (1, 2) for ending in ("", "_seg.nii.gz", "_seg.dcm", "_measurements.json")
    }
    assert names_in(folder) == cases


def test_measurements_of_files_need_no_dicom(trained: RunFolder, phantom_folder: Path, tmp_path: Path) -> None:
    image = next((phantom_folder / "imagesTs").glob("*.nii.gz"))
    infer(trained, image, tmp_path / "out", output_type="measurements")
    found = json.loads((tmp_path / "out" / f"{image.name.partition('.')[0]}_measurements.json").read_text())
    assert found["image"] == [str(image)]
    assert found["series_instance_uid"] is None
    with pytest.raises(StartUpRefused, match=r"expected a DICOM series for the DICOM SEG of --output_type"):
        infer(trained, image, tmp_path / "other", output_type="dicom_seg")
    assert not (tmp_path / "other").exists()


# ---- dataset.json ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segments", "sentence"),
    [
        ([], r"expected an object under `segments`, got \[\]"),
        ({"liver": {}}, r"expected names of labels or regions in `segments` \(organ, lesion\), got liver; correct it"),
        ({"background": {}}, r"expected names of labels or regions in `segments`"),
        ({"organ": {"colour": [1, 2, 3]}}, r"expected an object of color, category and type of 'organ' in `segments`"),
        ({"organ": 3}, r"expected an object of color, category and type"),
        ({"organ": {"color": [1, 2]}}, r"expected a color of red, green and blue, whole numbers from 0 to 255, of"),
        ({"organ": {"color": [1, 2, 256]}}, r"expected a color of red"),
        ({"organ": {"color": [1, 2, True]}}, r"expected a color of red"),
        ({"organ": {"type": ["1", "SCT"]}}, r"expected a type of the value, scheme and meaning of a code"),
        (
            {"organ": {"type": ["1", "SCT", "m" * 65]}},
            r"expected a type .*, texts of at most 128, 16 and 64",
        ),
        ({"organ": {"category": ["1", "", "m"]}}, r"expected a category of the value"),
        ({"organ": {"category": [1, "SCT", "m"]}}, r"expected a category of the value"),
    ],
)
def test_segments_of_another_shape_are_refused(
    phantom_folder: Path, tmp_path: Path, segments: Any, sentence: str
) -> None:
    declared = json.loads((phantom_folder / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(declared | {"segments": segments}))
    with pytest.raises(DatasetError, match=rf"dataset\.json: {sentence}"):
        read_case_list(tmp_path)


SEGMENTS = {"organ": {"color": (10, 20, 30), "type": (*LIVER,)}, "lesion": {"color": (1, 2, 3)}}


@pytest.fixture
def with_segments(phantom_folder: Path, tmp_path: Path) -> Path:
    data = Path(shutil.copytree(phantom_folder, tmp_path / "phantom"))
    declared = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(declared | {"segments": SEGMENTS}))
    return data


def test_data_sets_made_of_others_keep_the_segments(with_segments: Path, tmp_path: Path) -> None:
    options = PrepareOptions(images=with_segments, labels=with_segments, as_declared=True)
    prepare_dataset(options, tmp_path / "prepared", num_workers=1)
    assert read_case_list(tmp_path / "prepared").segments == SEGMENTS
    raw = export_nnunet(with_segments, tmp_path / "raw", number=7, num_workers=1)
    assert read_case_list(raw.folder).segments == SEGMENTS


def test_a_pool_keeps_the_first_segments_and_says_so(with_segments: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(with_segments, tmp_path / "other"))
    declared = json.loads((other / "dataset.json").read_text())
    declared["segments"]["lesion"] = {"color": [9, 9, 9]}
    (other / "dataset.json").write_text(json.dumps(declared))
    pooled = pool_datasets(PoolOptions(sources=(with_segments, other)), tmp_path / "pooled", num_workers=1)
    assert read_case_list(tmp_path / "pooled").segments == SEGMENTS
    assert "other: lesion has another colour or code than lesion of phantom, which stays." in pooled.notes
