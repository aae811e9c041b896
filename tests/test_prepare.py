"""The command `prepare`: from images and labels of any format to a data set that training takes."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from volume_files import (
    DIRECTIONS,
    block_label,
    random_image,
    volume,
    write,
    write_dicom,
    write_dicom_object,
    write_nifti,
)

from monai_extra_losses.cli import main
from monai_extra_losses.data import (
    DatasetError,
    PreparedDataset,
    PrepareOptions,
    check_cases,
    prepare_dataset,
    read_case_list,
    split_cases,
)
from monai_extra_losses.data import manifest as manifest_module
from monai_extra_losses.data import prepare as prepare_module
from monai_extra_losses.data.label_ids import new_label_ids, original_labels, parse_names, parse_remap
from monai_extra_losses.data.pairing import pair_by_name


def make_sources(folder: Path, names: Sequence[str] = ("a", "b", "c"), ids: Sequence[int] = (1,)) -> Path:
    """images/NAME.nrrd and labels/NAME_seg.nii.gz."""
    for seed, name in enumerate(names):
        write(volume(random_image(seed)), folder / "images" / f"{name}.nrrd")
        write(volume(block_label(ids=ids)), folder / "labels" / f"{name}_seg.nii.gz")
    return folder


def options_of(folder: Path, **changes: Any) -> PrepareOptions:
    return PrepareOptions(**{"images": folder / "images", "labels": folder / "labels", "num_folds": 0, **changes})


def prepare(folder: Path, out: str = "out", overwrite: bool = False, **changes: Any) -> PreparedDataset:
    return prepare_dataset(options_of(folder, **changes), folder / out, overwrite=overwrite, num_workers=1)


def refused(folder: Path, match: str, out: str = "out", **changes: Any) -> list[str]:
    """Sentences of a call that must not write anything."""
    before = contents(folder)
    with pytest.raises(DatasetError, match=match) as caught:
        prepare(folder, out, **changes)
    assert contents(folder) == before
    return caught.value.problems


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def declared(folder: Path, out: str = "out") -> dict[str, Any]:
    return json.loads((folder / out / "dataset.json").read_text(encoding="utf-8"))


def voxels_of(file: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(file).dataobj)


def assert_same_world(file: Path, image: sitk.Image, dtype: type) -> None:
    """Every voxel of the file has the value that the image has at that place in the patient."""
    found = nibabel.load(file)
    assert found.get_data_dtype() == dtype
    assert (found.header["sform_code"], found.header["qform_code"]) == (1, 1)
    assert found.get_qform() == pytest.approx(found.get_sform(), abs=1e-4)
    values = voxels_of(file)
    assert values.size == image.GetNumberOfPixels()
    for index in np.ndindex(*values.shape):
        right, front, head = nibabel.affines.apply_affine(found.affine, index)
        place = image.TransformPhysicalPointToContinuousIndex((-right, -front, head))
        nearest = [round(i) for i in place]
        assert place == pytest.approx(nearest, abs=1e-3)
        assert values[index] == image[nearest]


# ---- what is written ---------------------------------------------------------------------------------------------


def test_every_format_and_orientation_keeps_values_type_and_place(tmp_path: Path) -> None:
    suffixes = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", "dicom")
    images = {}
    for number, suffix in enumerate(suffixes):
        for direction, matrix in DIRECTIONS.items():
            name = f"{direction}, it's {suffix.strip('.')} Ä"
            dtype = np.int16 if suffix == "dicom" or number % 2 else np.float32
            images[name] = volume(random_image(len(images), dtype=dtype), matrix)
            if suffix == "dicom":
                write_dicom(images[name], tmp_path / "images" / name / "study" / "series")
            else:
                write(images[name], tmp_path / "images" / f"{name}{suffix}")
            label = volume(block_label(ids=(1, 2)), matrix)
            write(label, tmp_path / "labels" / f"{name}.nrrd")
    # A series is stacked along its normal, so that a left-handed label has its voxels from the other end.
    prepared = prepare(tmp_path, resample_labels=True)
    assert [case.name for case in prepared.cases if case.resampled] == [
        "flipped, it's dicom Ä",
        "oblique and flipped, it's dicom Ä",
    ]
    assert len(prepared.cases) == prepared.written == len(images) == 35
    for name, image in images.items():
        dtype = np.int16 if image.GetPixelID() == sitk.sitkInt16 else np.float32
        assert_same_world(tmp_path / "out" / "imagesTr" / f"{name}.nii.gz", image, dtype)
        label = sitk.ReadImage(str(tmp_path / "labels" / f"{name}.nrrd"))
        assert_same_world(tmp_path / "out" / "labelsTr" / f"{name}.nii.gz", label, np.uint8)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.float64])
def test_the_voxel_type_of_an_image_stays(tmp_path: Path, dtype: type) -> None:
    voxels = random_image(dtype=np.int16).clip(0, 127).astype(dtype)
    write(volume(voxels), tmp_path / "images" / "a.nrrd")
    write(volume(block_label()), tmp_path / "labels" / "a.nrrd")
    prepare(tmp_path)
    written = voxels_of(tmp_path / "out" / "imagesTr" / "a.nii.gz")
    assert written.dtype == dtype
    assert np.array_equal(written, voxels)


def test_a_label_may_be_a_dicom_series(tmp_path: Path) -> None:
    label = volume(block_label(ids=(1, 2)).astype(np.int16), DIRECTIONS["oblique"])
    write_dicom(volume(random_image()), tmp_path / "images" / "P", description="T1")
    write_dicom(label, tmp_path / "labels" / "P", description="contours", series=2)
    prepare(tmp_path, series="T1")
    assert_same_world(tmp_path / "out" / "labelsTr" / "P.nii.gz", label, np.uint8)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    uid = "1.2.826.0.1.3680043.2.1125."
    assert manifest["cases"][0]["series"] == [
        {"description": "T1", "uid": f"{uid}1"},
        {"description": "contours", "uid": f"{uid}2"},
    ]


@pytest.mark.parametrize(
    ("largest", "given", "dtype"),
    [(255, np.int16, np.uint8), (256, np.float32, np.uint16), (70000, np.int32, np.uint32)],
)
def test_labels_get_the_smallest_unsigned_type(tmp_path: Path, largest: int, given: type, dtype: type) -> None:
    count = largest + 1
    shape = (41, 42, 43) if count > 300 else (8, 8, 8)
    label = (np.arange(np.prod(shape)) % count).reshape(shape).astype(given)
    write(volume(random_image(shape=shape)), tmp_path / "images" / "a.nrrd")
    write(volume(label), tmp_path / "labels" / "a.mha")
    prepare(tmp_path)
    written = voxels_of(tmp_path / "out" / "labelsTr" / "a.nii.gz")
    assert written.dtype == dtype
    assert np.array_equal(written, label)


def test_training_takes_what_prepare_makes(tmp_path: Path) -> None:
    make_sources(tmp_path, [f"p{i // 2}_{i}" for i in range(12)], ids=(1, 2))
    for name in ("t1", "t2"):
        write(volume(random_image(9)), tmp_path / "test" / f"{name}.mha")
    prepared = prepare(
        tmp_path, num_folds=3, group_by="^(p.)_", names={1: "liver"}, channels=("CT",), test_images=tmp_path / "test"
    )
    case_list = read_case_list(tmp_path / "out")
    assert (case_list.labels, case_list.channels) == ({0: "background", 1: "liver", 2: "label_2"}, ("CT",))
    assert [case.name for case in case_list.unlabelled] == ["t1", "t2"]
    summaries = check_cases(case_list, progress=False)
    counted = {value: sum(case.voxels.get(value, 0) for case in summaries.cases) for value in (0, 1, 2)}
    assert prepared.voxels == counted
    assert prepared.fold_sizes == (4, 4, 4)
    training, validation = split_cases(case_list.cases, None, fold=1, seed=5)
    assert (len(training), len(validation)) == (8, 4)
    assert {case.name[:2] for case in training} & {case.name[:2] for case in validation} == set()


def test_channels_of_a_case(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for channel in (1, 0):
            write(volume(random_image(channel)), tmp_path / "images" / f"{name}_000{channel}.mha")
            write(volume(random_image(channel)), tmp_path / "test" / f"t{name}_000{channel}.mha")
        write(volume(block_label()), tmp_path / "labels" / f"{name}-label.nrrd")
    prepare(tmp_path, channels=("T1", "T2"), test_images=tmp_path / "test")
    case_list = read_case_list(tmp_path / "out")
    names = [[file.name for file in case.image] for case in (*case_list.cases, *case_list.unlabelled)]
    assert names == [[f"{case}_0000.nii.gz", f"{case}_0001.nii.gz"] for case in ("a", "b", "ta", "tb")]
    assert [case.name for case in (*case_list.cases, *case_list.unlabelled)] == ["a", "b", "ta", "tb"]
    assert case_list.channels == ("T1", "T2")
    for channel in (0, 1):
        assert np.array_equal(voxels_of(case_list.cases[1].image[channel]), random_image(channel))
    check_cases(case_list, progress=False)
    refused(tmp_path, r"a: expected 1 image\(s\), as the names of the channels say, got 2", "other", channels=("T1",))
    write(volume(random_image()), tmp_path / "images" / "c.mha")
    write(volume(block_label()), tmp_path / "labels" / "c.mha")
    refused(tmp_path, r"c: expected 2 image\(s\), as a has, got 1; every case needs the same channels", "other")


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    make_sources(tmp_path, "ab")
    try:
        (tmp_path / "images" / "a.nrrd").rename(tmp_path / "images" / f"{name}.nrrd")
        (tmp_path / "labels" / "a_seg.nii.gz").rename(tmp_path / "labels" / f"{name}.nii.gz")
    except OSError:
        pytest.skip("this file system knows UTF-8 only")
    problems = refused(
        tmp_path, r"images/caf\udce9\.nrrd: expected a name in UTF-8, got b'.*caf\\xe9\.nrrd'; rename it"
    )
    assert len(problems) == 2


def test_the_manifest_tells_where_everything_comes_from(tmp_path: Path) -> None:
    make_sources(tmp_path, ids=(1, 4))
    write(volume(random_image(1)), tmp_path / "images" / "b.mhd")
    (tmp_path / "images" / "b.nrrd").unlink()
    prepare(tmp_path, remap={4: 2}, num_folds=2, seed=3)
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert content["options"]["images"] == str(tmp_path / "images")
    assert (content["options"]["remap"], content["options"]["seed"]) == ({"4": 2}, 3)
    assert set(content["versions"]) == {"monai-extra-losses", "SimpleITK", "nibabel", "pydicom", "numpy"}
    case = content["cases"][1]
    assert (case["name"], case["shape"], case["resampled"], case["new_ids"]) == ("b", [7, 6, 5], False, {"4": 2})
    assert case["label_voxels"] == {"0": 198, "1": 6, "2": 6}
    assert [Path(file).name for file in case["sources"]] == ["b.mhd", "b.zraw", "b_seg.nii.gz"]
    assert list(case["outputs"]) == ["imagesTr/b.nii.gz", "labelsTr/b.nii.gz"]
    for file, stamp in case["sources"].items():
        assert manifest_module.stamp_of(Path(file)) == stamp
    for file, stamp in {**case["outputs"], "dataset.json": content["dataset_json"]}.items():
        assert manifest_module.stamp_of(tmp_path / "out" / file) == stamp
    assert case["affine"] == pytest.approx(nibabel.load(tmp_path / "out/imagesTr/b.nii.gz").affine, abs=1e-4)
    assert not (tmp_path / "out" / ".unfinished").exists()


# ---- pairs by name ---------------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("images", "labels", "pairs"),
    [
        ("a.nii b.NII.GZ c.mha", "c_seg.nrrd b-label.nii a_GT.mhd", "a:a_GT.mhd b:b-label.nii c:c_seg.nrrd"),
        ("a.nii b.nii", "b_mask.nii a_label.nii", "a:a_label.nii b:b_mask.nii"),
        ("a.nii a_seg.nii", "a.nii a_seg.nii", "a:a.nii a_seg:a_seg.nii"),  # equal names before suffixes
        ("s_0001.nii s_0002.nii", "s_0001_seg.nii s_0002.nii", "s_0001:s_0001_seg.nii s_0002:s_0002.nii"),
        ("s_0000.nii s_0001.nii", "s_gt.nii", "s:s_gt.nii"),
        ("P_A/x.dcm p.2/y.dcm", "P_A.nrrd p.2.nrrd", "P_A:P_A.nrrd p.2:p.2.nrrd"),
        (".hidden.nii a.nii notes.txt", "a.nii dataset.json", "a:a.nii"),
    ],
)
def test_names_pair_images_and_labels(tmp_path: Path, images: str, labels: str, pairs: str) -> None:
    touch(tmp_path, *(f"images/{name}" for name in images.split()), *(f"labels/{name}" for name in labels.split()))
    cases = pair_by_name(tmp_path / "images", tmp_path / "labels")
    assert " ".join(f"{case.name}:{case.label.name}" for case in cases if case.label) == pairs


def test_images_and_labels_in_one_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a_seg.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "b_seg.nii.gz")
    cases = pair_by_name(tmp_path, tmp_path)
    assert [(case.name, len(case.images), case.label and case.label.name) for case in cases] == [
        ("a", 1, "a_seg.nii.gz"),
        ("b", 2, "b_seg.nii.gz"),
    ]
    for file in tmp_path.glob("*_seg*"):
        file.unlink()
    with pytest.raises(DatasetError, match=r"labels with _seg, .* got 3 images and 0 labels; rename them"):
        pair_by_name(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "matches"),
    [
        ("a.nii", "", [r"labels: expected files \.nii\.gz, .* or a folder per DICOM series, got none"]),
        ("a.nii c.nii", "b.nii", [r"equal names \(a label may end in _seg, .*\), got 'a' and 1 more in .* and 'b' in"]),
        (
            "a.nii b.nii",
            "a.nii c_seg.nii",
            [
                r"images/b\.nii: expected a label b in .*labels",
                r"c_seg\.nii: expected an image c in .*images, got none",
            ],
        ),
        ("s_0001.nii s_0002.nii", "s_0001.nii", [r"s_0002\.nii: expected a label s_0002 in"]),
        ("a.nii", "a.nii a_seg.nii", [r"a: expected one label, got .*labels/a\.nii, .*labels/a_seg\.nii; keep one"]),
        ("a.nii a.nrrd", "a.nii", [r"a: expected one image, or channels a_0000, .* got .*a\.nii, .*a\.nrrd; keep one"]),
        ("a.nii a_0000.nii", "a.nii", [r"a: expected one image, or channels a_0000"]),
        (
            "a_0000.nii a_0002.nii",
            "a.nii",
            [r"a: expected one image, or channels a_0000, a_0001, \.\.\. without a gap"],
        ),
        ("a_0001.nii", "a.nii", [r"a: expected one image, or channels a_0000, a_0001, \.\.\. without a gap"]),
        ("x.dcm", "a.nii", [r"x\.dcm: expected a folder per DICOM series, got a DICOM file; move the files of each"]),
    ],
)
def test_what_has_no_partner_is_named(tmp_path: Path, images: str, labels: str, matches: list[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    touch(tmp_path, *(f"images/{name}" for name in images.split()), *(f"labels/{name}" for name in labels.split()))
    with pytest.raises(DatasetError, match=r"(?s)" + ".*".join(matches)) as caught:
        pair_by_name(tmp_path / "images", tmp_path / "labels")
    assert len(caught.value.problems) == len(matches)


def test_names_in_two_forms_of_unicode_and_files_in_folders_of_their_own_pair(tmp_path: Path) -> None:
    touch(tmp_path, "images/Mu\u0308ller.nii", "labels/M\u00fcller_seg.nii", "images/b/t1.nii", "labels/b/seg.nrrd")
    cases = pair_by_name(tmp_path / "images", tmp_path / "labels")
    assert [(case.name, case.images[0].name, case.label and case.label.name) for case in cases] == [
        ("M\u00fcller", "Mu\u0308ller.nii", "M\u00fcller_seg.nii"),
        ("b", "t1.nii", "seg.nrrd"),
    ]


def test_files_of_other_formats_are_named(tmp_path: Path) -> None:
    make_sources(tmp_path, "a")
    touch(tmp_path, "images/notes.txt", "images/a.mat", "images/.hidden")
    (note,) = prepare(tmp_path).notes
    assert note == f"passed over: {tmp_path / 'images'}: 2 files of other formats (a.mat, notes.txt)."


def test_folders_that_are_none(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii", "file")
    with pytest.raises(DatasetError, match=r"nowhere, which does not exist"):
        pair_by_name(tmp_path / "images", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"file, which is a file"):
        pair_by_name(tmp_path / "file", tmp_path / "images")


def test_images_to_segment_have_names_of_their_own(tmp_path: Path) -> None:
    make_sources(tmp_path)
    write(volume(random_image()), tmp_path / "test" / "b.nrrd")
    refused(tmp_path, r"b\.nrrd: expected a name that no labelled case has, got b", test_images=tmp_path / "test")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, r"empty: expected images to segment, got none", test_images=tmp_path / "empty")


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_all_problems_of_all_cases_at_once(tmp_path: Path) -> None:
    make_sources(tmp_path, "abcdef")
    moved = volume(block_label(), origin=(12.3, -45.6, 78.9 + 0.05))  # 0.035 mm is 5 % of the spacing
    write(moved, tmp_path / "labels" / "a_seg.nii.gz")
    write(volume(block_label((7, 6, 4))), tmp_path / "labels" / "b_seg.nii.gz")
    (tmp_path / "images" / "c.nrrd").write_text("text")
    write(sitk.Image((4, 5, 6, 2), sitk.sitkInt16), tmp_path / "images" / "d.nrrd")
    write(volume(block_label().astype(np.float32) / 2), tmp_path / "labels" / "e_seg.nii.gz")
    problems = refused(tmp_path, r"5 problems")
    for problem, words in zip(
        problems,
        (
            "labels/a_seg.nii.gz: expected the grid of",
            "labels/b_seg.nii.gz: expected shape (7, 6, 5) of",
            "images/c.nrrd: expected a whole volume, got",
            "images/d.nrrd: expected a volume of three dimensions, got shape (4, 5, 6, 2)",
            "labels/e_seg.nii.gz: expected whole numbers as label values, got 6 voxels with others",
        ),
        strict=True,
    ):
        assert words in problem
    assert "(corners within 0.035 mm, 5% of the smallest spacing), got corners 0.05 mm away; resample" in problems[0]


def test_a_label_a_little_off_its_image_is_taken_as_it_is(tmp_path: Path) -> None:
    make_sources(tmp_path, "a")
    label = volume(block_label(), origin=(12.3, -45.6, 78.9 + 0.03))
    write(label, tmp_path / "labels" / "a_seg.nii.gz")
    assert not prepare(tmp_path).cases[0].resampled
    assert_same_world(tmp_path / "out" / "labelsTr" / "a.nii.gz", label, np.uint8)


def test_channels_must_share_a_grid(tmp_path: Path) -> None:
    write(volume(random_image()), tmp_path / "images" / "a_0000.nrrd")
    write(volume(random_image(), DIRECTIONS["straight"]), tmp_path / "images" / "a_0001.nrrd")
    write(volume(block_label()), tmp_path / "labels" / "a.nrrd")
    refused(tmp_path, r"a_0001\.nrrd: expected the grid of .*a_0000\.nrrd .* resample it onto that grid\.")


def test_dicom_segmentations_that_refer_to_no_series_here(tmp_path: Path) -> None:
    make_sources(tmp_path, "ab")
    write_dicom_object(tmp_path / "labels" / "a" / "s.dcm", "1.2.840.10008.5.1.4.1.1.66.4")
    write_dicom_object(tmp_path / "labels" / "r.dcm", "1.2.840.10008.5.1.4.1.1.481.3")
    sentences = "\n".join(refused(tmp_path, r"has 5 problems"))
    assert "got both (a_seg.nii.gz, b_seg.nii.gz); give them as two data sets" in sentences
    assert "a.nrrd: expected a DICOM series, to which DICOM SEG and RTSTRUCT refer" in sentences
    assert "s.dcm: expected the DICOM SEG to name the series that it refers to, got none" in sentences
    assert "r.dcm: expected the RTSTRUCT to name the series" in sentences


def test_several_series_of_a_case(tmp_path: Path) -> None:
    make_sources(tmp_path, "a")
    (tmp_path / "images" / "a.nrrd").unlink()
    for n, name in enumerate(("arterial", "portal"), start=1):
        write_dicom(volume(random_image(n)), tmp_path / "images" / "a", description=name, series=n)
    refused(tmp_path, r"images/a: expected one DICOM series, got 2: 'arterial' \(5 slices, .*--series\)")
    prepare(tmp_path, series="portal")
    assert np.array_equal(voxels_of(tmp_path / "out" / "imagesTr" / "a.nii.gz"), random_image(2))


def test_never_into_the_sources(tmp_path: Path) -> None:
    make_sources(tmp_path)
    for out in ("images", "images/new", "labels"):
        refused(tmp_path, r"apart from its sources, got .*, which would write into", out)
    (tmp_path / "images").rename(tmp_path / "imagesTr")
    refused(tmp_path, r"which would write into .*imagesTr", ".", images=tmp_path / "imagesTr")
    (tmp_path / "link").symlink_to(tmp_path / "labels")
    refused(tmp_path, r"which would write into .*labels", "link/x", images=tmp_path / "imagesTr")
    prepare(tmp_path, images=tmp_path / "imagesTr", labels=tmp_path / "labels")


# ---- grids -----------------------------------------------------------------------------------------------------------


def test_a_label_on_another_grid_is_resampled_when_asked(tmp_path: Path) -> None:
    fine = block_label((14, 12, 10), ids=(1, 3, 3, 2))
    coarse_image = volume(random_image(), spacing=(1.4, 2.2, 5.0))
    write(coarse_image, tmp_path / "images" / "a.nrrd")
    write(volume(fine), tmp_path / "labels" / "a.nrrd")
    flipped = volume(block_label()[:, :, ::-1], DIRECTIONS["oblique"] @ np.diag([1, 1, -1]), origin=(0, 0, 0))
    write(volume(random_image()), tmp_path / "images" / "b.nrrd")
    # the same voxels counted from the other end
    last = volume(block_label()).TransformIndexToPhysicalPoint((0, 0, 4))
    flipped.SetOrigin(last)
    write(flipped, tmp_path / "labels" / "b.nrrd")
    assert len(refused(tmp_path, r"let --resample-labels do it")) == 2
    prepared = prepare(tmp_path, resample_labels=True)
    assert [case.resampled for case in prepared.cases] == [True, True]
    assert np.array_equal(voxels_of(tmp_path / "out" / "labelsTr" / "a.nii.gz"), fine[::2, ::2, ::2])
    assert np.array_equal(voxels_of(tmp_path / "out" / "labelsTr" / "b.nii.gz"), block_label())
    image, label = (nibabel.load(tmp_path / "out" / f"{kind}Tr" / "a.nii.gz") for kind in ("images", "labels"))
    assert np.array_equal(image.affine, label.affine)
    assert "2 labels resampled onto the grid of their image: a, b" in prepared.summary()


def test_a_label_elsewhere_is_no_label_of_the_image(tmp_path: Path) -> None:
    make_sources(tmp_path, "ab")
    write(volume(block_label(), origin=(500, 0, 0)), tmp_path / "labels" / "a_seg.nii.gz")
    refused(tmp_path, r"a_seg\.nii\.gz: expected a label inside its image, got one elsewhere", resample_labels=True)


# ---- label ids -------------------------------------------------------------------------------------------------------


def test_ids_are_mapped_and_remembered(tmp_path: Path) -> None:
    make_sources(tmp_path, "ab", ids=(1, 2, 4))
    write(volume(block_label(ids=(1, 7, 9))), tmp_path / "labels" / "b_seg.nii.gz")
    (sentence,) = refused(tmp_path, r"expected label ids 0 to n without a gap, got 0, 1, 2, 4, 7, 9; ")
    assert sentence.endswith('--remap "4:3,7:4,9:5" closes the gap.')
    (sentence,) = refused(tmp_path, r"after the remap, got 0, 1, 2, 4, 9", remap={7: 0})
    assert sentence.endswith('--remap "4:3,7:0,9:4" closes the gap.')
    prepared = prepare(tmp_path, remap={4: 3, 7: 0, 9: 2}, names={3: "tumour"})
    assert declared(tmp_path)["original_labels"] == {"3": 4}  # 0 and 2 stand for two ids each
    assert declared(tmp_path)["labels"] == {"0": "background", "1": "label_1", "2": "label_2", "3": "tumour"}
    label = voxels_of(tmp_path / "out" / "labelsTr" / "b.nii.gz")
    expected = block_label(ids=(1, 0, 2))
    assert np.array_equal(label, expected)
    assert prepared.voxels[3] == np.count_nonzero(block_label(ids=(1, 2, 4)) == 4)
    assert "original_labels" not in declared(make_and_prepare(tmp_path / "plain"))


def make_and_prepare(folder: Path) -> Path:
    prepare(make_sources(folder))
    return folder


# 22 ids with gaps, as the atlases of the brain have them, are given others by one option
GAPS = ",".join(f"{old}:{new}" for new, old in enumerate([*range(0, 61, 3), 61]) if old)


@pytest.mark.parametrize(
    ("found", "remap", "match"),
    [
        ([0], {}, r"one structure at least, got 0 alone in every voxel of every label; are these the labels\?"),
        ([0, 1, 2], {1: 0, 2: 0}, r"got 0 alone in every voxel of every label after the remap; remap fewer ids to one"),
        ([1, 2], {}, r'got 1, 2; --remap "1:0,2:1" closes the gap, with 1 as background'),
        ([-1, 0, 1], {}, r'got -1, 0, 1; --remap "-1:2" closes the gap'),
        ([0, 1], {5: 2}, r"expected label ids of the sources to be given others, got 5, which no label has; .* 0, 1"),
        (range(-1000, 400), {}, r"got 1400 ids, -1000 to 399; are these label volumes\?"),
        ([*range(0, 61, 3), 61], {}, rf'got 22 ids, 0, 3, .*, 57, 60 to 61; --remap "{GAPS}" closes the gap'),
    ],
)
def test_ids_with_a_gap(found: Sequence[int], remap: dict[int, int], match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        new_label_ids(found, remap)


@pytest.mark.parametrize(
    ("ids", "dtype", "suffix"),
    [
        ((2**24 + 1, 2**24 + 2), np.int32, ".nii.gz"),
        ((2**24 + 1, 2**24 + 2), np.uint32, ".mha"),
        ((2**40 + 1, 2**62 + 1), np.int64, ".nii"),
        ((2**40 + 1, 2**62 + 1), np.int64, ".nrrd"),
        ((2**40 + 1, 2**62 + 1), np.uint64, ".nii.gz"),
        ((2**40 + 1, 2**53 - 1), np.float64, ".nii.gz"),
        ((2**40 + 1, 2**53 - 1), np.float64, ".mha"),
    ],
)
def test_large_ids_are_exact_and_remembered(tmp_path: Path, ids: tuple[int, int], dtype: type, suffix: str) -> None:
    label = np.array([0, *ids], dtype)[block_label(ids=(1, 2))]
    for voxels, file in ((random_image(), tmp_path / "images" / "a.nrrd"), (label, tmp_path / "labels" / f"a{suffix}")):
        image = volume(voxels, DIRECTIONS["straight"])
        affine = np.diag([-1, -1, 1, 1]) @ np.diag([*image.GetSpacing(), 1])
        affine[:3, 3] = np.array(image.GetOrigin()) * [-1, -1, 1]
        write_nifti(file, voxels, affine) if ".nii" in suffix and voxels is label else write(image, file)
    remap = {ids[0]: 1, ids[1]: 2}
    refused(tmp_path, rf'got 0, {ids[0]}, {ids[1]}; .*--remap "{ids[0]}:1,{ids[1]}:2"')
    prepare(tmp_path, remap=remap)
    written = voxels_of(tmp_path / "out" / "labelsTr" / "a.nii.gz")
    assert written.dtype == np.uint8
    assert np.array_equal(written, block_label(ids=(1, 2)))
    assert read_case_list(tmp_path / "out").original_labels == {1: ids[0], 2: ids[1]}


def test_label_values_a_little_off_are_written_as_whole_numbers(tmp_path: Path) -> None:
    make_sources(tmp_path, "ab", ids=(1, 2))
    label = np.array([0, 1.0000003, 1.9999999993])[block_label(ids=(1, 2))]
    write(volume(label), tmp_path / "labels" / "b_seg.nii.gz")
    prepared = prepare(tmp_path)
    assert np.array_equal(voxels_of(tmp_path / "out" / "labelsTr" / "b.nii.gz"), block_label(ids=(1, 2)))
    assert "b_seg.nii.gz (of 4 files): label values a little off whole numbers, such as" in prepared.summary()


# ---- ids that the cases annotate -------------------------------------------------------------------------------------


ORGANS = {1: "liver", 2: "kidney", 3: "spleen"}


def test_what_all_cases_annotate_is_written_and_read(tmp_path: Path) -> None:
    make_sources(tmp_path, ids=(1, 2))
    prepared = prepare(tmp_path, remap={2: 3}, names=ORGANS, annotated=(3, 1, 0))
    assert declared(tmp_path)["annotated"] == [1, 3]
    assert not any("annotated" in entry for entry in declared(tmp_path)["training"])
    assert prepared.labels == {0: "background", **ORGANS}
    assert prepared.notes == ("no case annotates 2 kidney; a training needs cases of another data set that do.",)
    assert not prepared.trains_alone
    found = read_case_list(tmp_path / "out")
    assert [case.annotated for case in found.cases] == [(1, 3)] * 3
    assert found.partly_annotated
    check_cases(found, progress=False)


def test_an_annotated_structure_may_be_in_no_case(tmp_path: Path) -> None:
    prepared = prepare(make_sources(tmp_path), names=ORGANS, annotated=(1, 2, 3))
    assert (prepared.notes, prepared.trains_alone) == ((), True)
    assert prepared.voxels[2] == prepared.voxels[3] == 0
    assert not read_case_list(tmp_path / "out").partly_annotated
    # every class needs a voxel where nothing is said of annotation
    refused(tmp_path, r"expected names for the label ids 0, 1, got one for 2, 3", out="other", names=ORGANS)


def test_a_label_of_another_id_than_the_annotated_ones_is_refused(tmp_path: Path) -> None:
    make_sources(tmp_path, names=("a", "b"), ids=(1, 2))
    write(volume(block_label(ids=(1,))), tmp_path / "labels" / "b_seg.nii.gz")
    (problem,) = refused(tmp_path, r"a_seg\.nii\.gz", names={1: "liver", 2: "kidney"}, annotated=(1,))
    assert problem == (
        f"{tmp_path / 'labels' / 'a_seg.nii.gz'}: expected voxels of the classes that the case annotates (1 liver), "
        "got 2 kidney (6 voxels); add 2 to --annotated, or remove the voxels from the label map."
    )
    # joined by the remap, their voxels are of one class; the ignore label is none
    assert prepare(tmp_path, remap={2: 1}, names={1: "organs"}, annotated=(1,)).voxels[1] == 18
    assert prepare(tmp_path, out="other", ignore_label=2, annotated=(1,)).labels == {0: "background", 1: "label_1"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"annotated": (1, 7)}, r"annotated ids of the data set \(1 label_1, 2 label_2\), got 7; correct --annotated"),
        ({"annotated": (-1, 1)}, r"annotated ids of the data set .*, got -1; correct"),
        ({"annotated": (0,)}, r"annotated ids of the data set .*, got none but the background"),
        ({"annotated": ()}, r"annotated ids of the data set .*, got none but the background"),
        ({"annotated": (1, 2), "ignore_label": 2}, r"annotated ids of the data set \(1 label_1\), got 2"),
        ({"annotated": (2, 3), "remap": {1: 3}}, r'--remap "1:2,2:1" closes the gap; or --names has the ids between'),
        (
            {"annotated": (1,), "organ_masks": True},
            r"expected --annotated, .* or --organ-masks, .* got both; leave one",
        ),
        ({"organ_masks": True}, r"expected a pattern with \{case\} and \{label\} for the masks, .*labels; correct it"),
    ],
)
def test_ids_that_cannot_be_annotated_are_one_sentence(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    refused(make_sources(tmp_path, names=("a",), ids=(1, 2)), match, **changes)


def test_another_annotation_is_another_data_set(tmp_path: Path) -> None:
    prepare(make_sources(tmp_path), names=ORGANS, annotated=(1,))
    assert prepare(tmp_path, names=ORGANS, annotated=(1,)).written == 0
    for changed in ((1, 2), None):
        names = ORGANS if changed else {1: "liver"}
        refused(
            tmp_path,
            rf"annotated {re.escape(repr(changed and [*changed]))} instead of \[1\]",
            names=names,
            annotated=changed,
        )


def test_a_manifest_of_before_there_was_annotation_goes_on(tmp_path: Path) -> None:
    prepare(make_sources(tmp_path))
    file = tmp_path / "out" / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest["options"].pop("annotated", 0) is None
    assert manifest["options"].pop("organ_masks", 0) is None
    for case in manifest["cases"]:
        assert case.pop("annotated", 0) is None
    file.write_text(json.dumps(manifest))
    assert prepare(tmp_path).written == 0
    file.write_text(json.dumps(manifest))
    refused(tmp_path, r"annotated \[1\] instead of None", annotated=(1,))


def test_the_command_takes_annotated_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_sources(tmp_path)
    call = ["--images", folder / "images", "--labels", folder / "labels", "--folds", 0]
    assert "such as \"1,3\", got '1,x'; correct it." in str(run(*call, "--out", folder / "a", "--annotated", "1,x"))
    assert run(*call, "--out", folder / "a", "--annotated", "1, 0") == 0
    assert "monai-extra-losses train" in capsys.readouterr().out
    names = ["--names", "1:liver,2:kidney"]
    assert run(*call, "--out", folder / "b", "--annotated", "1", *names) == 0
    assert "monai-extra-losses train" not in capsys.readouterr().out  # which would refuse it
    assert declared(folder, "b")["annotated"] == [1]
    for missing, given in (("labels", "--images"), ("images", "--labels")):
        assert run(given, folder, "--out", folder / "c") == 2
        assert f"Missing option '--{missing}', --organ-masks or DIR." in capsys.readouterr().err


def test_ids_may_change_places() -> None:
    new_ids = new_label_ids([0, 1, 2, 255], {1: 2, 2: 1, 255: 3})
    assert new_ids == {0: 0, 1: 2, 2: 1, 255: 3}
    assert original_labels(new_ids) == {1: 2, 2: 1, 3: 255}


def test_text_of_ids_and_names() -> None:
    assert parse_remap("4:3, 7=0,-1:2") == {4: 3, 7: 0, -1: 2}
    assert parse_names("1:liver, 2=portal vein (left)") == {1: "liver", 2: "portal vein (left)"}
    for text in ("4", "4:3,", "4:-1", "4:3,4:2", "a:b"):
        with pytest.raises(DatasetError, match=r'such as "4:3,7:0", got '):
            parse_remap(text)
    for text in ("liver", "1:", "1:liver,1:spleen", "1:liver,2:liver"):
        with pytest.raises(DatasetError, match=r'such as "1:liver,2:tumour", got '):
            parse_names(text)


def test_names_must_fit_the_ids(tmp_path: Path) -> None:
    make_sources(tmp_path, ids=(1, 2))
    refused(tmp_path, r"expected names for the label ids 0, 1, 2, got one for 3, 4", names={3: "x", 4: "y"})
    refused(
        tmp_path, r"expected another name for each label id, got background, label_2, label_2", names={1: "label_2"}
    )


# ---- folds -----------------------------------------------------------------------------------------------------------


def test_folds_without_groups_are_those_that_training_would_deal(tmp_path: Path) -> None:
    make_sources(tmp_path, [f"case_{i}" for i in range(7)])
    prepare(tmp_path, num_folds=3, seed=4)
    prepare(tmp_path, "plain")
    dealt, plain = (read_case_list(tmp_path / out).cases for out in ("out", "plain"))
    assert {case.fold for case in plain} == {None}
    for fold in range(3):
        names = [[case.name for case in part] for part in split_cases(dealt, None, fold, seed=0)]
        assert names == [[case.name for case in part] for part in split_cases(plain, 3, fold, seed=4)]


def test_folds_that_cannot_be_dealt(tmp_path: Path) -> None:
    make_sources(tmp_path, ("p1_a", "p1_b", "p2_a", "x"))
    refused(tmp_path, r"as many cases as folds, got 4 for 5; lower the number \(--folds\), or give 0", num_folds=5)
    refused(tmp_path, r"x: expected a patient by the pattern 'p\.', got none", num_folds=2, group_by="p.")
    refused(tmp_path, r"as many patients as folds, got 2 for 3", num_folds=3, group_by="^(p|x)")
    refused(tmp_path, r"expected a regular expression to group by, got '\(' \(missing", num_folds=2, group_by="(")
    refused(tmp_path, r"num_folds of at least 2, got 1", num_folds=1)


# ---- again, and after an interruption --------------------------------------------------------------------------------


def count_written(monkeypatch: pytest.MonkeyPatch, stop_after: int = 10**6) -> list[str]:
    """Names of the volumes written from now on; the process is interrupted after some."""
    written: list[str] = []
    save = nibabel.save

    def counted(image: Any, file: Path) -> None:
        if len(written) == stop_after:
            file.write_bytes(b"half a fi")
            raise KeyboardInterrupt
        save(image, file)
        written.append(f"{file.parent.name}/{file.name}")

    monkeypatch.setattr(nibabel, "save", counted)
    return written


def test_a_killed_call_leaves_whole_files_and_the_next_one_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sources(tmp_path, "abcd")
    prepare(tmp_path, "whole")
    with monkeypatch.context() as patch:
        count_written(patch, stop_after=5)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path)
    whole = contents(tmp_path / "whole")
    half = contents(tmp_path / "out")
    assert "dataset.json" not in half
    finished = {name for name in half if name.endswith(".gz") and not name.startswith(".unfinished")}
    assert finished == {"imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "imagesTr/c.nii.gz"} | {
        "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
    }
    assert all(half[name] == whole[name] for name in finished)
    with monkeypatch.context() as patch:
        written = count_written(patch)
        prepared = prepare(tmp_path)
    assert written == ["imagesTr/c.nii.gz", "labelsTr/c.nii.gz", "imagesTr/d.nii.gz", "labelsTr/d.nii.gz"]
    assert prepared.written == 2
    assert "4 labelled cases, 2 of them written by an earlier call" in prepared.summary()
    again = contents(tmp_path / "out")
    assert again.pop("dataset.json") == whole.pop("dataset.json").replace(b'"whole"', b'"out"')
    manifests = [json.loads(files.pop("manifest.json")) for files in (again, whole)]
    assert manifests[0]["cases"] == manifests[1]["cases"]
    assert again == whole


def test_a_process_killed_without_a_word_can_go_on(tmp_path: Path) -> None:
    make_sources(tmp_path, "abc")
    code = f"""
import os, nibabel
from pathlib import Path
from monai_extra_losses.data import PrepareOptions, prepare_dataset
save, files = nibabel.save, []
def killed(image, file):
    files.append(file)
    if len(files) == 4:
        os._exit(9)
    save(image, file)
nibabel.save = killed
folder = Path({str(tmp_path)!r})
options = PrepareOptions(images=folder / "images", labels=folder / "labels", num_folds=0)
prepare_dataset(options, folder / "out", num_workers=1)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 9
    assert (tmp_path / "out" / "imagesTr" / "b.nii.gz").exists()  # written, and not recorded
    prepared = prepare(tmp_path)
    assert len(read_case_list(tmp_path / "out").cases) == len(prepared.cases) == 3


def test_the_same_call_again_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sources(tmp_path)
    prepare(tmp_path)
    before = contents(tmp_path / "out")
    written = count_written(monkeypatch)
    assert prepare(tmp_path).written == 0
    assert written == []
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "labelsTr" / "b.nii.gz").unlink()
    assert prepare(tmp_path).written == 1
    assert contents(tmp_path / "out") == before


def test_a_new_case_is_added(tmp_path: Path) -> None:
    make_sources(tmp_path)
    prepare(tmp_path)
    make_sources(tmp_path, "abcd")
    assert prepare(tmp_path).written == 1
    assert [case.name for case in read_case_list(tmp_path / "out").cases] == list("abcd")


def test_what_would_be_replaced_is_refused(tmp_path: Path) -> None:
    make_sources(tmp_path)
    prepare(tmp_path)
    refused(tmp_path, r"out: expected the options .* that made it, got seed 1 instead of 0; .* --overwrite", seed=1)
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    problems = refused(tmp_path, r"got images", images=tmp_path / "moved", remap={1: 2}, num_folds=3)
    assert "remap {'1': 2} instead of {}, num_folds 3 instead of 0; choose another folder" in problems[0]
    out = tmp_path / "out"
    label = (out / "labelsTr" / "a.nii.gz").read_bytes()
    (out / "labelsTr" / "a.nii.gz").write_bytes(b"corrected by hand")
    refused(tmp_path, r"labelsTr/a\.nii\.gz: expected the file as the earlier call wrote it, got a changed one")
    (out / "labelsTr" / "a.nii.gz").write_bytes(label)
    with (out / "dataset.json").open("a") as file:
        file.write(" ")
    refused(tmp_path, r"dataset\.json: expected the file as the earlier call wrote it")
    shutil.copy(tmp_path / "images" / "a.nrrd", tmp_path / "images" / "b.nrrd")
    (tmp_path / "images" / "c.nrrd").unlink()
    (tmp_path / "labels" / "c_seg.nii.gz").unlink()
    problems = refused(tmp_path, r"3 problems")
    assert "b: expected the sources of the earlier call, got changed ones" in problems[2]
    assert "out: expected the cases of the earlier call, got no c among the images now" in problems[0]


def test_overwrite_replaces_what_prepare_wrote_and_nothing_else(tmp_path: Path) -> None:
    make_sources(tmp_path)
    prepare(tmp_path)
    out = tmp_path / "out"
    (out / "labelsTr" / "notes.txt").write_text("mine")
    (out / "labelsTr" / "a.nii.gz").write_bytes(b"corrected by hand")
    (tmp_path / "images" / "c.nrrd").unlink()
    (tmp_path / "labels" / "c_seg.nii.gz").unlink()
    prepared = prepare(tmp_path, overwrite=True, names={1: "liver"})
    assert prepared.written == 2
    assert sorted(path.name for path in (out / "labelsTr").iterdir()) == ["a.nii.gz", "b.nii.gz", "notes.txt"]
    assert not (out / "imagesTr" / "c.nii.gz").exists()
    assert np.array_equal(voxels_of(out / "labelsTr" / "a.nii.gz"), block_label())
    make_sources(tmp_path, "abd")
    (out / "imagesTr" / "d.nii.gz").write_bytes(b"mine")
    refused(tmp_path, r"d\.nii\.gz: expected no such file, got one that no earlier call wrote", overwrite=True, seed=2)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    make_sources(tmp_path)
    touch(tmp_path, "used/file")
    for overwrite in (False, True):
        refused(
            tmp_path,
            r"used: expected a new or empty folder, or one with the manifest\.json",
            "used",
            overwrite=overwrite,
        )
    refused(tmp_path, r"file: expected a folder for the data set, got a file", "used/file")
    prepare(tmp_path, "prepared")
    whole = json.loads((tmp_path / "prepared" / "manifest.json").read_text())
    for content in (
        '{"manifest_version": 3}',
        "[" * 200_000,
        json.dumps({**whole, "options": []}),
        json.dumps({**whole, "cases": [{**whole["cases"][0], "outputs": ["a"]}]}),
        json.dumps({**whole, "cases": [3]}),
    ):
        (tmp_path / "used" / "manifest.json").write_text(content)
        refused(tmp_path, r"manifest\.json: expected the manifest of an earlier call, got another file", "used")


def test_a_manifest_cannot_have_files_elsewhere_deleted(tmp_path: Path) -> None:
    make_sources(tmp_path)
    prepare(tmp_path)
    path = tmp_path / "out" / "manifest.json"
    content = json.loads(path.read_text())
    content["cases"][0]["outputs"]["../images/a.nrrd"] = None
    path.write_text(json.dumps(content))
    prepare(tmp_path, overwrite=True)
    assert (tmp_path / "images" / "a.nrrd").exists()


def test_nan_and_cut_files_are_listed_with_what_has_no_partner(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_sources(tmp_path, ("a", "b", "c", "d"))
    images = tmp_path / "images"
    write(volume(random_image()), images / "alone.nrrd")
    holed = random_image(dtype=np.float32)
    holed[2, 3, 1], holed[0, 0, 0] = np.nan, np.inf
    write(volume(holed), images / "a.nrrd")
    (images / "b.nrrd").write_bytes((images / "b.nrrd").read_bytes()[:-40])
    for name in ("c", "d"):
        (images / f"{name}.nrrd").unlink()
        sitk.WriteImage(volume(random_image()), str(images / f"{name}.mha"), useCompression=name == "d")
        file = images / f"{name}.mha"
        file.write_bytes(file.read_bytes()[:-40])
    sentences = "\n".join(refused(tmp_path, "has 5 problems"))
    for words in (
        r"alone\.nrrd: expected a label alone in .*, got none",
        r"a\.nrrd: expected numbers, got 2 voxels of NaN or infinity",
        r"b\.nrrd: expected a whole volume, got one that cannot be read",
        r"c\.mha: expected 420 bytes of voxels, got 380; the data end early, copy the file again",
        r"d\.mha: expected \d+ bytes of voxels, got \d+; the data end early",
    ):
        assert re.search(words, sentences), words
    assert "MetaImage" not in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinity_are_refused_whatever_the_format(tmp_path: Path, suffix: str, dtype: type) -> None:
    """SimpleITK makes 0 of them in NIfTI files."""
    for case in range(2):
        for kind, voxels in (("images", random_image(case)), ("labels", block_label())):
            voxels = voxels.astype(dtype)
            if case == (kind == "labels"):
                voxels[2, 3, 1], voxels[0, 0, 0], voxels[1, 0, 0] = np.nan, np.inf, -np.inf
            file = tmp_path / kind / f"{case}{suffix}"
            write_nifti(file, voxels, np.eye(4)) if ".nii" in suffix else write(volume(voxels, np.eye(3)), file)
    problems = refused(tmp_path, "has 2 problems")
    images, labels = tmp_path / "images", tmp_path / "labels"
    assert problems == [
        f"{images / f'0{suffix}'}: expected numbers, got 3 voxels of NaN or infinity; replace them.",
        f"{labels / f'1{suffix}'}: expected whole numbers as label values, got 3 voxels with others; resample labels "
        "with nearest neighbours.",
    ]


def test_intensities_beyond_float32_are_refused(tmp_path: Path) -> None:
    make_sources(tmp_path, "ab")
    for name, value, write_it in (
        ("a.nrrd", 1e300, lambda voxels, file: write(volume(voxels), file)),
        ("b.nii.gz", -4e38, lambda voxels, file: write_nifti(file, voxels, np.eye(4))),
    ):
        voxels = random_image(dtype=np.float64)
        voxels[0, 0, 0] = value
        (tmp_path / "images" / f"{name[0]}.nrrd").unlink()
        write_it(voxels, tmp_path / "images" / name)
    problems = refused(tmp_path, r"a\.nrrd: expected intensities that float32 holds \(up to 3\.4e\+38\), got 1e\+300")
    assert "b.nii.gz: expected intensities that float32 holds (up to 3.4e+38), got -4e+38; replace" in problems[1]


def test_a_broken_pattern_is_said_before_options_that_changed(tmp_path: Path) -> None:
    make_sources(tmp_path)
    prepare(tmp_path)
    refused(tmp_path, r"expected a regular expression to group by, got '\(P'", group_by="(P")


def test_voxels_that_turn_out_unreadable_stop_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sources(tmp_path)
    file = tmp_path / "images" / "b.nrrd"
    whole = file.read_bytes()
    check = prepare_module.check_case

    def damaged_after_the_check(case: Any, **options: Any) -> Any:
        checked = check(case, **options)
        if case.name == "b":
            file.write_bytes(whole[:-40])
        return checked

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "check_case", damaged_after_the_check)
        with pytest.raises(DatasetError, match=r"b\.nrrd: expected a whole volume, got one that cannot be read"):
            prepare(tmp_path)
    assert not (tmp_path / "out" / "dataset.json").exists()
    file.write_bytes(whole)
    assert prepare(tmp_path).written == 1


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sources(tmp_path)

    def full(image: Any, file: Path) -> None:
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(nibabel, "save", full)
    with pytest.raises(DatasetError, match=r"Expected to write .*a\.nii\.gz, got: no space left on device; make room"):
        prepare(tmp_path)


# ---- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> str | int | None:
    """What the command ends with: 0, or the sentence that a process prints to stderr to exit with 1."""
    with pytest.raises(SystemExit) as ended:
        main(["prepare", *(str(argument) for argument in arguments)])
    return ended.value.code


def test_the_command_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_sources(tmp_path / "Müller's data (1)", [f"p{i % 3} {i}" for i in range(6)], ids=(2,))
    call = ["--images", folder / "images", "--labels", folder / "labels", "--out", folder / "it's out"]
    ended = run(*call)
    assert isinstance(ended, str)
    assert 'got 0, 2; --remap "2:1" closes the gap.' in ended
    assert not (folder / "it's out").exists()
    options = ["--remap", "2:1", "--names", "1:Leber", "--modality", "CT", "--folds", 3, "--group-by", "^(..)"]
    assert run(*call, *options, "--workers", 2) == 0
    said = capsys.readouterr().out
    assert "6 labelled cases" in said
    assert "folds of 2, 2, 2 cases; 3 patients, each in one fold" in said
    assert [line.split() for line in said.splitlines()[3:5]] == [
        ["0", "1224", "6", "background"],
        ["1", "36", "6", "Leber"],
    ]
    assert "monai-extra-losses check '" in said
    assert declared(folder, "it's out")["original_labels"] == {"1": 2}
    assert declared(folder, "it's out")["modality"] == {"0": "CT"}
    assert run(*call, *options) == 0
    assert "6 of them written by an earlier call" in capsys.readouterr().out
    assert "got seed 1 instead of 0" in str(run(*call, *options, "--seed", 1))
    assert "got both" in str(run(*call, "--modality", "CT", "--channel-names", "T1,T2"))
    assert run(*call, *options, "--seed", 1, "--overwrite") == 0


def test_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    for name in ("volumes", "pairing", "case_sources", "prepare"):
        monkeypatch.delitem(sys.modules, f"monai_extra_losses.data.{name}", raising=False)
    said = run("--images", tmp_path, "--labels", tmp_path, "--out", tmp_path / "out")
    assert "needs SimpleITK" in str(said)
    assert "pip install '.[bundle]'" in str(said)
