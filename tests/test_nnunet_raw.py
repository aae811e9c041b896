"""Raw folders of nnU-Net v2: read by `check` and `prepare`, and written by `export-nnunet`."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunet_folders import SHAPE, label_of, write_picture, write_raw

from monai_extra_losses.cli import main
from monai_extra_losses.data import DatasetError, PrepareOptions, check_cases, prepare_dataset, read_case_list

BRATS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
CASES = ("p_1", "p_2", "p_3")


def raw(folder: Path, **changes: Any) -> Path:
    return write_raw(folder / "Dataset004_X", **changes)


def change(folder: Path, **changes: Any) -> Path:
    """Change entries of dataset.json; None removes one."""
    file = folder / "dataset.json"
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")
    return folder


def prepared(folder: Path, **changes: Any) -> dict[str, Any]:
    """dataset.json of what `prepare` makes of a folder, which `check` must find right."""
    out = folder.parent / "prepared"
    options = PrepareOptions(**{"images": folder, "labels": folder, "as_declared": True, "num_folds": 0, **changes})
    prepare_dataset(options, out, num_workers=1)
    check_cases(read_case_list(out), num_workers=1, progress=False)
    return json.loads((out / "dataset.json").read_text(encoding="utf-8"))


def voxels_of(file: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(file).dataobj)


def refused(folder: Path, match: str) -> None:
    """Both `check` and `prepare` refuse a folder with a sentence."""
    for attempt in (lambda: check_cases(read_case_list(folder), num_workers=1), lambda: prepared(folder)):
        with pytest.raises(DatasetError, match=match):
            attempt()
    assert not (folder.parent / "prepared").exists()


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_file_ending_says_which_files_are_read(tmp_path: Path, ending: str) -> None:
    folder = raw(tmp_path, ending=ending, channels=("T1", "T2"), test_cases=("q_1",))
    for name in ("imagesTr/p_1_0000", "labelsTr/p_1"):  # as left by a conversion
        (folder / f"{name}.mhd").touch()
    content = prepared(folder)
    assert content["labels"] == {"0": "background", "1": "a", "2": "b"}
    assert content["modality"] == {"0": "T1", "1": "T2"}
    assert [entry["label"] for entry in content["training"]] == [f"./labelsTr/{case}.nii.gz" for case in CASES]
    assert content["test"] == [{"image": ["./imagesTs/q_1_0000.nii.gz", "./imagesTs/q_1_0001.nii.gz"]}]
    np.testing.assert_array_equal(voxels_of(tmp_path / "prepared/labelsTr/p_2.nii.gz"), label_of((1, 2)))
    if ending.startswith(".nii"):
        summaries = check_cases(read_case_list(folder), num_workers=1)
        assert (len(summaries.cases), len(summaries.unlabelled), summaries.channels) == (3, 1, ("T1", "T2"))
    else:
        with pytest.raises(DatasetError, match=rf"got {ending}; .* prepare {folder} --out {folder}_prepared$"):
            read_case_list(folder)


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp", ".nii.gzip", 7])
def test_pictures_are_refused(tmp_path: Path, ending: Any) -> None:
    folder = tmp_path / "Dataset005_P"
    for name in ("imagesTr/a_0000.png", "labelsTr/a.png"):
        write_picture(folder / name)
    (folder / "dataset.json").write_text("{}", encoding="utf-8")
    labels = {"background": 0, "a": 1}
    change(folder, file_ending=ending, labels=labels, channel_names={"0": "R"}, numTraining=1)
    refused(folder, r"as `file_ending`, got .*\. Pictures of two dimensions \(\.png, \.tif, \.bmp\), grey or RGB,")


def test_an_ending_that_no_file_has(tmp_path: Path) -> None:
    refused(raw(tmp_path, file_ending=".mha"), r"imagesTr: expected files \.mha, as `file_ending` .* got 3 of other")


def test_regions_and_their_order_are_kept(tmp_path: Path) -> None:
    folder = raw(tmp_path, labels=BRATS, values=(1, 2, 3), regions_class_order=[1, 2, 3])
    assert read_case_list(folder).regions_class_order == (1, 2, 3)
    content = prepared(folder)
    assert content["regions"] == {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    assert content["regions_class_order"] == [1, 2, 3]
    assert read_case_list(tmp_path / "prepared").regions_class_order == (1, 2, 3)


@pytest.mark.parametrize("order", [[1, 2], [1, 2, 4], 3, [1, 2, "3"]])
def test_an_order_that_is_none_of_the_regions(tmp_path: Path, order: Any) -> None:
    folder = raw(tmp_path, labels=BRATS, values=(1, 2, 3), regions_class_order=order)
    refused(folder, r"expected `regions_class_order` to have a label value for each of the 3 regions \(1, 2, 3\)")


def test_the_order_means_nothing_without_regions(tmp_path: Path) -> None:
    assert read_case_list(raw(tmp_path, regions_class_order=[1, 2])).regions_class_order is None


@pytest.mark.parametrize(
    ("labels", "ignored", "original"),
    [
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, 3, None),
        ({"background": 0, "a": 1, "ignore": 2, "b": 3}, 3, {"2": 3}),  # nnU-Net wants it to be the highest
        ({"background": 0, "a": 1, "ignore": 2, "b": 3, "c": 4}, 4, {"2": 3, "3": 4}),
    ],
)
def test_label_values_become_consecutive(
    tmp_path: Path, labels: dict[str, int], ignored: int, original: dict[str, int] | None
) -> None:
    folder = raw(tmp_path, labels=labels, values=(1, 2, 3))
    check_cases(read_case_list(folder), num_workers=1)
    content = prepared(folder)
    assert (content["ignore_label"], content.get("original_labels")) == (ignored, original)
    assert list(content["labels"]) == [str(number) for number in range(len(labels) - 1)]
    new = {0: 0, 1: 1, 2: ignored if labels["ignore"] == 2 else 2, 3: 2 if labels["ignore"] == 2 else ignored}
    expected = np.vectorize(new.get)(label_of((1, 2, 3)))
    np.testing.assert_array_equal(voxels_of(tmp_path / "prepared/labelsTr/p_1.nii.gz"), expected)


def test_a_gap_among_the_label_values(tmp_path: Path) -> None:
    folder = raw(tmp_path, labels={"background": 0, "a": 1, "b": 5}, values=(1, 5))
    assert read_case_list(folder).labels == {0: "background", 1: "a", 5: "b"}
    content = prepared(folder)
    assert (content["labels"]["2"], content["original_labels"]) == ("b", {"2": 5})


def test_labels_without_a_voxel_are_kept(tmp_path: Path) -> None:
    content = prepared(raw(tmp_path, labels={"background": 0, "a": 1, "b": 2, "ignore": 3}, values=(1,)))
    assert (content["labels"]["2"], content["ignore_label"]) == ("b", 3)


@pytest.mark.parametrize("absolute", [False, True])
def test_the_files_that_dataset_lists_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool) -> None:
    folder = raw(tmp_path, test_cases=("q_1",))
    monkeypatch.setenv("PLACE_OF_IMAGES", str(folder / "elsewhere") if absolute else "elsewhere")
    (folder / "imagesTr").rename(folder / "elsewhere")
    (folder / "labelsTr").rename(folder / "there")
    entries: dict[str, Any] = {
        f"case {case}": {"images": [f"$PLACE_OF_IMAGES/{case}_0000.nii.gz"], "label": f"there/{case}.nii.gz"}
        for case in CASES
    }
    entries["case p_2"]["annotated"] = [1, 2]
    # a list that version 1 has left behind counts less
    change(folder, dataset=entries, training=[{"image": "imagesTr/gone.nii.gz", "label": "labelsTr/gone.nii.gz"}])
    found = read_case_list(folder)
    assert [case.name for case in (*found.cases, *found.unlabelled)] == [*entries, "q_1"]
    content = prepared(folder)
    assert [entry.get("annotated") for entry in content["training"]] == [None, [1, 2], None]


def test_what_version_1_has_left_does_no_harm(tmp_path: Path) -> None:
    listed = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in CASES]
    more = {"modality": {"0": "MR"}, "tensorImageSize": "4D", "reference": "", "training": listed, "test": []}
    folder = raw(tmp_path, overwrite_image_reader_writer="SimpleITKIO", **more)
    found = read_case_list(folder)
    assert ([case.name for case in found.cases], found.channels) == ([*CASES], ("CT",))
    assert prepared(folder)["modality"] == {"0": "CT"}


def test_a_wrong_number_of_cases_is_told(tmp_path: Path) -> None:
    found = read_case_list(raw(tmp_path, numTraining=17))
    assert any("`numTraining` says 17 cases, 3 are there" in text for text in found.passed_over)


def test_a_channel_of_a_case_is_missing(tmp_path: Path) -> None:
    folder = raw(tmp_path, channels=("T1", "T2"), test_cases=("q_1",))
    (folder / "imagesTr/p_2_0001.nii.gz").rename(tmp_path / "away.nii.gz")
    refused(folder, r"p_2.*: expected 2 (channels|image\(s\)), as .*, got 1; every case needs the same channels")
    (tmp_path / "away.nii.gz").rename(folder / "imagesTr/p_2_0001.nii.gz")
    (folder / "imagesTr/p_2_0000.nii.gz").unlink()
    refused(folder, r"p_2_0001\.nii\.gz: expected the channel files of p_2 to be numbered _0000, _0001")


def test_files_without_a_partner(tmp_path: Path) -> None:
    folder = raw(tmp_path)
    (folder / "imagesTr/p_2_0000.nii.gz").rename(folder / "imagesTr/p_4_0000.nii.gz")
    refused(folder, r"(?s)p_4_0000\.nii\.gz: expected a label .*p_2\.nii\.gz: expected an image")


def test_values_that_are_not_declared(tmp_path: Path) -> None:
    folder = raw(tmp_path, values=(1, 2, 255))
    refused(folder, r"p_1\.nii\.gz: expected the .*label values.*, got 255 \(80 voxels\).* write \"ignore_label\": 255")


def test_voxels_of_a_class_that_the_case_does_not_annotate(tmp_path: Path) -> None:
    refused(raw(tmp_path, annotated=[1]), r"p_1\.nii\.gz: expected voxels of the classes that the case annotates \(1 a")


def test_channel_names_are_named_in_the_refusal(tmp_path: Path) -> None:
    refused(raw(tmp_path, channel_names=["CT"]), r"expected `channel_names` as .*, got \[\"CT\"\]")


def test_a_folder_without_dataset_json_is_no_source(tmp_path: Path) -> None:
    folder = raw(tmp_path)
    (folder / "dataset.json").unlink()
    with pytest.raises(DatasetError, match=r"expected dataset\.json, which names the labels, got none"):
        prepared(folder)


def test_folds_that_the_folder_deals_are_kept(tmp_path: Path) -> None:
    listed = [
        {"image": f"imagesTr/{case}_0000.nii.gz", "label": f"labelsTr/{case}.nii.gz", "fold": fold}
        for case, fold in zip(CASES, (1, 0, 1), strict=True)
    ]
    content = prepared(raw(tmp_path, training=listed), num_folds=3)
    assert [entry["fold"] for entry in content["training"]] == [1, 0, 1]


def test_prepare_of_a_folder_takes_no_other_declaration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = raw(tmp_path)
    with pytest.raises(SystemExit, match=r"Expected .* alone, whose dataset\.json .* got --remap, --names"):
        main(["prepare", str(folder), "--out", str(tmp_path / "out"), "--remap", "1:2", "--names", "1:a"])
    with pytest.raises(SystemExit) as ended:
        main(["prepare", str(folder), "--out", str(tmp_path / "out"), "--folds", "3"])
    assert ended.value.code in (0, None)
    assert "3 labelled cases" in capsys.readouterr().out
    assert nibabel.load(tmp_path / "out/imagesTr/p_1.nii.gz").shape == SHAPE
