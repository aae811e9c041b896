"""The command `export-nnunet`: from a data set to a raw folder of nnU-Net v2, and back."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_folders import SHAPE, label_of, write_raw
from volume_files import DIRECTIONS, SPACING, random_image, rotation, write_nifti

from monai_extra_losses.cli import main
from monai_extra_losses.data import (
    CaseList,
    DatasetError,
    NnunetDataset,
    PrepareOptions,
    check_cases,
    export_nnunet,
    nnunet_raw,
    prepare_dataset,
    read_case_list,
)
from monai_extra_losses.data.nnunet_place import new_place, plain_name

CASES = ("a", "b", "c")
AFFINE = np.diag([*SPACING, 1.0])
AFFINE[:3, :3] = DIRECTIONS["oblique"] * SPACING
AFFINE[:3, 3] = (12.3, -45.6, 78.9)


@pytest.fixture(autouse=True)
def _no_other_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


def decathlon(
    folder: Path,
    *,
    values: Sequence[int] = (1, 2),
    labels: Mapping[str, str] | None = None,
    modality: Sequence[str] = ("CT",),
    entries: Mapping[str, Mapping[str, Any]] | None = None,
    ending: str = ".nii.gz",
    test: bool = False,
    **more: Any,
) -> Path:
    """A Decathlon folder, with a 4D image per case where there are several channels.

    Args:
        folder: for it.
        values: of the voxels of each label map, beside 0.
        labels, modality: of dataset.json.
        entries: case -> what its entry has beside image and label.
        ending: of all files.
        test: whether there is a case to segment.
        more: further entries of dataset.json.
    """
    for seed, case in enumerate((*CASES, *(["t"] if test else []))):
        channels = [random_image(10 * seed + number, SHAPE) for number in range(len(modality))]
        image = channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)
        part = "Ts" if case == "t" else "Tr"
        (folder / f"images{part}").mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(image, AFFINE), folder / f"images{part}/{case}{ending}")
        if case != "t":
            dtype = np.int16 if min(values) < 0 or max(values) > 255 else np.uint8
            label = np.select([label_of(range(1, len(values) + 1)) == n for n in range(1, len(values) + 1)], values)
            write_nifti(folder / f"labelsTr/{case}{ending}", label.astype(dtype), AFFINE)
    content = {
        "name": "Task09_My organ",
        "modality": {str(number): name for number, name in enumerate(modality)},
        "labels": labels or {"0": "background", **{str(value): f"organ {value}" for value in values}},
        "training": [
            {
                "image": f"./imagesTr/{case}{ending}",
                "label": f"./labelsTr/{case}{ending}",
                **(entries or {}).get(case, {}),
            }
            for case in CASES
        ],
        "test": [f"./imagesTs/t{ending}"] if test else [],
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def exported(folder: Path, **options: Any) -> NnunetDataset:
    return export_nnunet(folder, folder.parent / "raw", num_workers=1, progress=False, **options)


def declared(written: NnunetDataset) -> dict[str, Any]:
    return json.loads((written.folder / "dataset.json").read_text(encoding="utf-8"))


def again(folder: Path) -> CaseList:
    """The cases of an exported folder, which `check` must find right and `prepare` must take."""
    found = read_case_list(folder)
    check_cases(found, num_workers=1, progress=False)
    options = PrepareOptions(images=folder, labels=folder, as_declared=True, num_folds=0)
    prepare_dataset(options, folder.parent / "prepared", num_workers=1, progress=False)
    back = read_case_list(folder.parent / "prepared")
    for case, same in zip((*found.cases, *found.unlabelled), (*back.cases, *back.unlabelled), strict=True):
        assert (case.name, case.annotated) == (same.name, same.annotated)
        for file, other in zip((*case.image, case.label), (*same.image, same.label), strict=True):
            if file is not None:
                np.testing.assert_array_equal(voxels_of(file), voxels_of(other))
    assert (found.labels, found.regions, found.channels) == (back.labels, back.regions, back.channels)
    assert (found.ignore_label, found.original_labels) == (back.ignore_label, back.original_labels)
    return found


def voxels_of(file: Path | None) -> np.ndarray:
    return np.asanyarray(nibabel.load(str(file)).dataobj)


def grid_of(file: Path) -> tuple[Any, ...]:
    image = sitk.ReadImage(str(file))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def refused(folder: Path, match: str, **options: Any) -> None:
    """A call that leaves nothing behind."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(DatasetError, match=match):
        exported(folder, **options)
    assert [path for path in folder.parent.rglob("*") if path.name != "raw" and path not in before] == []


def test_a_data_set_comes_back_as_it_was(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data", test=True, licence="CC-BY 4.0", labels={"0": "bg", "1": "a", "2": "b c"})
    written = exported(source)
    assert (written.folder, written.number) == (tmp_path / "raw/Dataset011_My_organ", 11)
    assert declared(written) == {
        "name": "Task09_My organ",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1, "b c": 2},
        "licence": "CC-BY 4.0",
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    files = {str(file.relative_to(written.folder)) for file in written.folder.rglob("*") if file.is_file()}
    assert files == {
        "dataset.json",
        "imagesTs/t_0000.nii.gz",
        *(f"imagesTr/{case}_0000.nii.gz" for case in CASES),
        *(f"labelsTr/{case}.nii.gz" for case in CASES),
    }
    for case in CASES:  # not one byte is another
        image, label = written.folder / f"imagesTr/{case}_0000.nii.gz", written.folder / f"labelsTr/{case}.nii.gz"
        assert image.read_bytes() == (source / f"imagesTr/{case}.nii.gz").read_bytes()
        assert label.read_bytes() == (source / f"labelsTr/{case}.nii.gz").read_bytes()
        assert not image.samefile(source / f"imagesTr/{case}.nii.gz")
    assert sum(case.written for case in (*written.cases, *written.test_cases)) == 0
    assert again(written.folder).labels == {0: "background", 1: "a", 2: "b c"}


def test_a_folder_without_dataset_json(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data")
    (source / "dataset.json").unlink()
    written = exported(source)
    assert written.folder.name == "Dataset011_data"
    assert any(note.startswith("the channels have no names") for note in written.notes)
    content = declared(written)
    assert (content["labels"], content["channel_names"]) == (
        {"background": 0, "label_1": 1, "label_2": 2},
        {"0": "channel_0"},
    )
    again(written.folder)


def test_names_that_look_like_channels_come_back(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data")
    for part in ("imagesTr", "labelsTr"):
        (source / part / "b.nii.gz").rename(source / part / "a_0000.nii.gz")
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    content["training"][1] = {"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a_0000.nii.gz"}
    (source / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    assert [case.name for case in again(exported(source).folder).cases] == ["a", "a_0000", "c"]


def test_a_4d_image_becomes_a_file_per_channel(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data", modality=("T1", "ct"), test=True)
    written = exported(source)
    assert declared(written)["channel_names"] == {"0": "T1", "1": "CT"}
    for case, part in (("b", "Tr"), ("t", "Ts")):
        image = nibabel.load(source / f"images{part}/{case}.nii.gz")
        for channel in range(2):
            file = written.folder / f"images{part}/{case}_000{channel}.nii.gz"
            found = nibabel.load(file)
            np.testing.assert_array_equal(np.asanyarray(found.dataobj), np.asanyarray(image.dataobj)[..., channel])
            assert found.get_data_dtype() == np.int16
            np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
            assert grid_of(file) == grid_of(written.folder / f"images{part}/{case}_0000.nii.gz")
    label = written.folder / "labelsTr/b.nii.gz"
    for found, expected in zip(grid_of(label), grid_of(written.folder / "imagesTr/b_0000.nii.gz"), strict=True):
        np.testing.assert_allclose(found, expected)
    assert len(again(written.folder).cases[0].image) == 2


def test_what_a_header_scales_keeps_its_values(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data", modality=("T1", "T2"))
    stored = np.stack([random_image(1, SHAPE), random_image(2, SHAPE)], axis=-1)
    fields = {"scl_slope": 0.5, "scl_inter": -3.0}
    write_nifti(source / "imagesTr/b.nii.gz", stored, AFFINE, fields)
    found = nibabel.load(exported(source).folder / "imagesTr/b_0001.nii.gz")
    assert found.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), stored[..., 1] * 0.5 - 3)


def test_files_that_are_not_compressed_are_packed(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data", ending=".nii")
    written = exported(source, link=True)
    packed = written.folder / "imagesTr/a_0000.nii.gz"
    np.testing.assert_array_equal(voxels_of(packed), voxels_of(source / "imagesTr/a.nii"))
    assert grid_of(packed) == grid_of(source / "imagesTr/a.nii")
    again(written.folder)


def test_link_links_what_stays_as_it_is(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data", values=(1, 5))
    (source / "imagesTr/a.nii.gz").rename(tmp_path / "far.nii.gz")
    (source / "imagesTr/a.nii.gz").symlink_to(tmp_path / "far.nii.gz")
    written = exported(source, link=True)
    image = written.folder / "imagesTr/a_0000.nii.gz"
    assert image.samefile(tmp_path / "far.nii.gz")
    assert not image.is_symlink()
    assert not (written.folder / "labelsTr/a.nii.gz").samefile(source / "labelsTr/a.nii.gz")
    assert (written.cases[0].kept, written.cases[0].written) == (1, 1)


def test_link_across_file_systems_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    refused(decathlon(tmp_path / "data"), r"a\.nii\.gz: .* \(Invalid cross-device link\); leave --link out", link=True)


def test_regions_are_joined_in_the_order_in_which_they_paint(tmp_path: Path) -> None:
    regions = {"enh": [3], "core": [2, 3], "whole": [1, 2, 3]}
    names = {"0": "background", "1": "edema", "2": "necrosis", "3": "enhancing"}
    written = exported(decathlon(tmp_path / "data", values=(1, 2, 3), labels=names, regions=regions))
    content = declared(written)
    assert list(content["labels"].items()) == [
        ("background", 0),
        ("whole", [1, 2, 3]),
        ("core", [2, 3]),
        ("enh", [3]),
    ]
    assert content["regions_class_order"] == [1, 2, 3]
    found = again(written.folder)
    assert found.regions == {name: tuple(values) for name, values in regions.items()}
    assert found.labels == {int(value): name for value, name in names.items()}


def test_a_declared_order_of_regions_is_kept(tmp_path: Path) -> None:
    folder = write_raw(
        tmp_path / "Dataset004_X",
        labels={"background": 0, "core": [3, 5], "whole": [1, 3, 5], "ignore": 6},
        values=(1, 3, 5, 6),
        regions_class_order=[5, 1],
    )
    content = declared(exported(folder))
    assert list(content["labels"].items()) == [("background", 0), ("core", [2, 3]), ("whole", [1, 2, 3]), ("ignore", 4)]
    assert content["regions_class_order"] == [3, 1]
    assert content["original_labels"] == {"2": 3, "3": 5}


def test_a_label_in_no_region_becomes_one(tmp_path: Path) -> None:
    written = exported(decathlon(tmp_path / "data", values=(1, 2, 3), regions={"both": [1, 2]}))
    content = declared(written)
    assert content["labels"] == {"background": 0, "both": [1, 2], "organ 3": 3}
    assert content["regions_class_order"] == [1, 3]
    assert any("organ 3 in no region: nnU-Net trains a region of its own" in note for note in written.notes)


def test_regions_of_one_label_each_are_labels(tmp_path: Path) -> None:
    written = exported(decathlon(tmp_path / "data", regions={"x": [1], "y": [2]}))
    content = declared(written)
    assert content["labels"] == {"background": 0, "organ 1": 1, "organ 2": 2}
    assert "regions_class_order" not in content
    assert any("no region joins labels" in note for note in written.notes)


@pytest.mark.parametrize("ignored", [255, -1, 2, 1000])
def test_the_ignore_label_becomes_the_highest(tmp_path: Path, ignored: int) -> None:
    labels = {"0": "background", "1": "a", "4": "b"}
    source = decathlon(tmp_path / "data", values=(1, 4, ignored), labels=labels, ignore_label=ignored)
    content = declared(written := exported(source))
    assert content["labels"] == {"background": 0, "a": 1, "b": 2, "ignore": 3}
    assert content["original_labels"] == {"2": 4}
    found = voxels_of(written.folder / "labelsTr/a.nii.gz")
    np.testing.assert_array_equal(found, label_of((1, 2, 3)))
    assert found.dtype == np.uint8
    assert again(written.folder).ignore_label == 3


def test_what_a_case_annotates_is_kept_by_its_name(tmp_path: Path) -> None:
    entries = {"b": {"annotated": [1, 7]}, "c": {"annotated": [1, 2, 7]}}
    labels = {"0": "background", "1": "a", "2": "b", "7": "c"}
    source = decathlon(tmp_path / "data", values=(1, 7), labels=labels, entries=entries)
    written = exported(source)
    assert declared(written)["annotated"] == {"b": [1, 3]}
    assert [case.annotated for case in again(written.folder).cases] == [None, (1, 3), None]
    assert any("under `annotated` which cases" in note for note in written.notes)


@pytest.mark.parametrize(
    ("annotated", "match"),
    [
        ({"q": [1]}, r"or lists by the names of cases with labels, got the names q; correct it"),
        ({"a": [5]}, r"declared label values in `annotated` of the case a .*got 5"),
        ({"a": 1}, r"`annotated` of the case a to be a list of label values such as \[1, 2\], got 1"),
    ],
)
def test_odd_entries_of_what_cases_annotate(tmp_path: Path, annotated: dict[str, Any], match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        read_case_list(decathlon(tmp_path / "data", annotated=annotated))


def test_names_of_labels_beside_regions_are_checked(tmp_path: Path) -> None:
    labels = {"background": 0, "both": [1, 2]}
    with pytest.raises(DatasetError, match=r"expected `label_names` as .*, got {\"3\": \"x\"}"):
        read_case_list(write_raw(tmp_path / "Dataset004_X", labels=labels, label_names={"3": "x"}))


def test_folds_are_kept_as_splits(tmp_path: Path) -> None:
    entries = {case: {"fold": fold} for case, fold in zip(CASES, (1, 0, 1), strict=True)}
    written = exported(decathlon(tmp_path / "data", entries=entries))
    splits = json.loads((written.folder / "splits_final.json").read_text(encoding="utf-8"))
    assert splits == [{"train": ["a", "c"], "val": ["b"]}, {"train": ["b"], "val": ["a", "c"]}]
    assert any(command.startswith("cp ") and "splits_final.json" in command for command in written.commands())


def test_cases_set_apart_validate_in_one_split(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data")
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    content["validation"] = [content["training"].pop()]
    (source / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    written = exported(source)
    splits = json.loads((written.folder / "splits_final.json").read_text(encoding="utf-8"))
    assert splits == [{"train": ["a", "b"], "val": ["c"]}]
    assert declared(written)["numTraining"] == 3


def test_labels_of_test_cases_are_kept(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "Dataset004_X", test_cases=("q",), labels={"background": 0, "a": 1, "b": 5})
    for case in CASES:
        write_nifti(folder / f"labelsTr/p_{CASES.index(case) + 1}.nii.gz", label_of((1, 5)), sitk_affine(folder))
    (folder / "labelsTs").mkdir()
    write_nifti(folder / "labelsTs/q.nii.gz", label_of((5,)), sitk_affine(folder))
    written = exported(folder)
    np.testing.assert_array_equal(voxels_of(written.folder / "labelsTs/q.nii.gz"), label_of((2,)))
    (case,) = read_case_list(written.folder).unlabelled
    assert (case.name, case.label) == ("q", written.folder / "labelsTs/q.nii.gz")


def sitk_affine(folder: Path) -> np.ndarray:
    return nibabel.load(folder / "imagesTr/p_1_0000.nii.gz").affine


def test_a_label_gets_the_grid_of_its_image(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data")
    moved = AFFINE.copy()
    moved[:3, 3] += 0.02  # mm, within the tolerance of `check`, and not of nnU-Net
    write_nifti(source / "labelsTr/b.nii.gz", label_of((1, 2)), moved)
    written = exported(source)
    assert (written.cases[1].kept, written.cases[1].written) == (1, 1)
    label = written.folder / "labelsTr/b.nii.gz"
    assert grid_of(label) == grid_of(written.folder / "imagesTr/b_0000.nii.gz")
    np.testing.assert_array_equal(voxels_of(label), label_of((1, 2)))
    moved[:3, 3] += 2
    write_nifti(source / "labelsTr/b.nii.gz", label_of((1, 2)), moved)
    refused(source, r"labelsTr/b\.nii\.gz: expected the affine of .* resample it", number=5)


def test_channels_get_exactly_one_grid(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "Dataset004_X", channels=("T1", "T2"))
    moved = sitk_affine(folder)
    moved[0, 3] += 1e-3
    write_nifti(folder / "imagesTr/p_2_0001.nii.gz", random_image(3, SHAPE), moved)
    written = exported(folder)
    first, second = (written.folder / f"imagesTr/p_2_000{channel}.nii.gz" for channel in range(2))
    assert grid_of(first) == grid_of(second)
    assert first.read_bytes() == (folder / "imagesTr/p_2_0000.nii.gz").read_bytes()
    np.testing.assert_array_equal(voxels_of(second), random_image(3, SHAPE))


def test_a_header_that_tells_two_places_is_written_anew(tmp_path: Path) -> None:
    """nibabel takes the sform; SimpleITK another form where it is oblique to it."""
    source = decathlon(tmp_path / "data")
    quaternion = {"quatern_b": 0.0, "quatern_c": 0.0, "quatern_d": 0.0, "qform_code": 1, "sform_code": 2}
    skewed = AFFINE.copy()
    skewed[:3, :3] = rotation(20, -10, 35) @ np.array([[1, 0.002, 0], [0, 1, 0], [0, 0, 1]]) * SPACING
    for file, voxels in (("imagesTr/b", random_image(4, SHAPE)), ("labelsTr/b", label_of((1, 2)))):
        write_nifti(source / f"{file}.nii.gz", voxels, skewed, quaternion)
    written = exported(source)
    image, label = written.folder / "imagesTr/b_0000.nii.gz", written.folder / "labelsTr/b.nii.gz"
    assert written.cases[1].written == 2
    assert grid_of(image) == grid_of(label)
    found = nibabel.load(image)
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), random_image(4, SHAPE))
    np.testing.assert_allclose(found.affine, skewed, atol=0.01)
    again(written.folder)


@pytest.mark.parametrize("name", ["background", "ignore"])
def test_names_with_a_meaning_to_nnunet(tmp_path: Path, name: str) -> None:
    source = decathlon(tmp_path / "data", values=(1, 2), labels={"0": "bg", "1": "a", "2": "b"}, regions={name: [1, 2]})
    refused(source, rf"classes and regions of other names than `background` and `ignore`, .* got '{name}'")


def test_channel_names_can_be_given(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data", modality=("CT portal",))
    assert any("CT portal image by image; --channel-names CT" in note for note in exported(source).notes)
    written = exported(source, channels=("CT",), number=12)
    assert declared(written)["channel_names"] == {"0": "CT"}
    assert not any("CT" in note for note in written.notes)
    refused(source, r"names for the 1 channels \(CT portal\), got 2 \(a, b\)", channels=("a", "b"), number=13)


def test_ids_are_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = decathlon(tmp_path / "data")
    (tmp_path / "raw/Dataset004_Heart").mkdir(parents=True)
    refused(source, r"expected a free id, got 4, which .*Dataset004_Heart has", number=4)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    (tmp_path / "results/Dataset011_Other").mkdir(parents=True)
    (tmp_path / "preprocessed/Dataset012_My_organ").mkdir(parents=True)
    assert exported(source, name="New").number == 13
    refused(source, r"got 11, which .*results/Dataset011_Other has", number=11)
    assert any("Dataset012_My_organ is of an earlier" in note for note in exported(source, number=12).notes)


def test_a_data_set_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data")
    exported(source, number=7)
    refused(source, r"Dataset007_My_organ: expected no data set there, got one", number=7)
    refused(source, r"Dataset007_My_organ: expected no data set there, got one")
    assert exported(source, number=8).folder.name == "Dataset008_My_organ"


@pytest.mark.parametrize(
    ("number", "name", "match"),
    [
        (0, "X", r"expected an id of 1 to 999, got 0"),
        (1000, "X", r"expected an id of 1 to 999, got 1000"),
        (4, "a/b", r"expected a name of letters, digits, .* got 'a/b'"),
        (4, "-x", r"expected a name of letters, digits, .* got '-x'"),
    ],
)
def test_odd_ids_and_names(tmp_path: Path, number: int, name: str, match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        new_place(tmp_path, number, name)
    assert new_place(tmp_path, 1, "X").folder.name == "Dataset001_X"
    assert new_place(tmp_path, 999, "X").folder.name == "Dataset999_X"


def test_ids_run_out(tmp_path: Path) -> None:
    for number in range(11, 1000):
        (tmp_path / f"Dataset{number:03d}_X").mkdir()
    with pytest.raises(DatasetError, match=r"expected a free id of 11 to 999, got none"):
        new_place(tmp_path, None, "Y")
    (tmp_path / "Dataset700_X").rmdir()
    assert new_place(tmp_path, None, "Y").number == 700


def test_names_are_made_plain() -> None:
    named = {"Task04_Hippocampus": "Hippocampus", "Dataset011_X": "X", "Meine Leber (1)": "Meine_Leber_1", "肝": "Data"}
    assert {name: plain_name(name) for name in named} == named


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device"), DatasetError("x: no.")])
def test_a_call_that_is_stopped_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Any) -> None:
    source = decathlon(tmp_path / "data")
    with monkeypatch.context() as patch:
        write = nnunet_raw.write_case

        def write_two(case: Any, **options: Any) -> Any:
            if case.name == "c":
                raise stop
            return write(case, **options)

        patch.setattr(nnunet_raw, "write_case", write_two)
        expected = DatasetError if isinstance(stop, Exception) else KeyboardInterrupt
        with pytest.raises(expected):
            exported(source, number=4)
    assert list((tmp_path / "raw").iterdir()) == []
    left = tmp_path / "raw/.Dataset004_My_organ.unfinished/imagesTr"  # by a call that was killed
    left.mkdir(parents=True)
    (left / "old_0000.nii.gz").touch()
    exported(source, number=4)
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["Dataset004_My_organ"]
    assert not list((tmp_path / "raw").rglob("old*"))


def test_the_command_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = decathlon(tmp_path / "data", test=True)
    with pytest.raises(SystemExit) as ended:
        main(["export-nnunet", str(source)])
    assert ended.value.code == 2
    assert "Missing option '--out', or the environment variable nnUNet_raw" in capsys.readouterr().err
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    with pytest.raises(SystemExit) as ended:
        main(["export-nnunet", str(source), "--id", "4", "--name", "Organ", "--channel-names", "CT"])
    assert ended.value.code in (0, None)
    text = capsys.readouterr().out
    place = tmp_path / "raw/Dataset004_Organ"
    for line in (
        f"{place}: 3 labelled cases and 1 to segment, channels CT",
        f"  export nnUNet_raw={tmp_path / 'raw'}",
        "  nnUNetv2_plan_and_preprocess -d 4 --verify_dataset_integrity",
        "  nnUNetv2_train 4 3d_fullres 0",
        f"  nnUNetv2_predict -i {place}/imagesTs -o SEGMENTATIONS -d 4 -c 3d_fullres -f 0",
    ):
        assert line in text.splitlines()
    assert "monai-extra-losses nnunet-trainers" in text
    with pytest.raises(SystemExit, match=r"Dataset004_Organ: expected no data set there, got one"):
        main(["export-nnunet", str(source), "--id", "4", "--name", "Organ"])


def test_other_formats_lead_to_prepare(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "Dataset004_X", ending=".mha")
    refused(folder, rf"monai-extra-losses prepare {folder} --out {folder}_prepared")


def test_ctrl_c_ends_in_a_sentence(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "data")
    code = (
        "import monai_extra_losses.data.nnunet_raw as raw\n"
        "def stop(*_, **__): raise KeyboardInterrupt\n"
        "raw.write_case = stop\n"
        "from monai_extra_losses.cli import main\n"
        f"main(['export-nnunet', {str(source)!r}, '--out', {str(tmp_path / 'raw')!r}])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr.strip().endswith("Stopped by Ctrl-C.")
    assert list((tmp_path / "raw").iterdir()) == []
