"""The command `pool`: from several data sets, each of some classes, to one that training takes."""

import json
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from volume_files import block_label, random_image, write_nifti

from monai_extra_losses.cli import main
from monai_extra_losses.data import (
    DatasetError,
    PooledDataset,
    PoolOptions,
    check_cases,
    pool_datasets,
    read_case_list,
    split_cases,
)
from monai_extra_losses.data import manifest as manifest_module
from monai_extra_losses.data.pool_classes import parse_rename

AFFINE = np.diag([-0.7, -1.1, 2.5, 1.0])
LIVER = {1: "liver", 2: "tumor"}
SPLEEN = {1: "spleen", 2: "liver"}


def make_source(
    folder: Path,
    names: Sequence[str],
    labels: Mapping[int, str],
    *,
    found: Sequence[int] = (),
    suffix: str = ".nii.gz",
    channels: int = 1,
    test: Sequence[str] = (),
    entries: Sequence[Mapping[str, Any]] = (),
    **declared: Any,
) -> Path:
    """A Decathlon folder.

    Args:
        folder: new.
        names: of the labelled cases.
        labels: id -> name of the classes.
        found: ids in each label; by default those that its entry annotates.
        suffix: of the images.
        channels: a file each where there are several.
        test: names of the cases to segment.
        entries: what the entries of `training` have beside files.
        declared: further content of dataset.json.
    """

    def images(name: str, part: str) -> str | list[str]:
        several = [f"./{part}/{name}{f'_{i:04d}' if channels > 1 else ''}{suffix}" for i in range(channels)]
        for file in several:
            write_nifti(folder / file, random_image(zlib.crc32(f"{folder}/{file}".encode())), AFFINE)
        return several if channels > 1 else several[0]

    training = []
    for number, name in enumerate(names):
        more = entries[number] if entries else {}
        ids = found or tuple(more.get("annotated", labels))
        write_nifti(folder / "labelsTr" / f"{name}.nii.gz", block_label(ids=ids, dtype=np.uint16), AFFINE)
        training.append({"image": images(name, "imagesTr"), "label": f"./labelsTr/{name}.nii.gz", **more})
    content = {
        "labels": {"0": "background", **{str(value): name for value, name in labels.items()}},
        "modality": {str(i): f"T{i + 1}" for i in range(channels)} if channels > 1 else {"0": "CT"},
        "training": training,
        "test": [images(name, "imagesTs") if channels == 1 else {"image": images(name, "imagesTs")} for name in test],
        "licence": "CC0",
        **declared,
    }
    text = json.dumps({key: value for key, value in content.items() if value is not None})
    (folder / "dataset.json").write_text(text, encoding="utf-8")
    return folder


def two(folder: Path) -> tuple[Path, Path]:
    """A, of liver and tumour, and B, of spleen and liver."""
    first = make_source(folder / "A", ["a1", "a2"], LIVER)
    return first, make_source(folder / "B", ["b1"], SPLEEN)


def pool(out: Path, *sources: Path, overwrite: bool = False, **options: Any) -> PooledDataset:
    options = {"num_folds": 0, **options}
    return pool_datasets(PoolOptions(sources, **options), out, overwrite=overwrite, num_workers=1, progress=False)


def refused(out: Path, match: str, *sources: Path, **options: Any) -> list[str]:
    """Sentences of a call that must not write anything."""
    before = contents(out) if out.is_dir() else None
    with pytest.raises(DatasetError, match=match) as caught:
        pool(out, *sources, **options)
    assert (contents(out) if out.is_dir() else None) == before
    return caught.value.problems


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def json_of(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def training_of(out: Path) -> dict[str, dict[str, Any]]:
    """Case -> its entry in dataset.json."""
    return {Path(entry["label"]).name.split(".")[0]: entry for entry in json_of(out / "dataset.json")["training"]}


def label_of(out: Path, name: str) -> np.ndarray:
    return np.asanyarray(nibabel.load(out / "labelsTr" / f"{name}.nii.gz").dataobj)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_labels_of_one_name_are_one_class(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    pooled = pool(tmp_path / "out", a, b)
    assert pooled.labels == {0: "background", 1: "liver", 2: "tumor", 3: "spleen"}
    assert np.array_equal(label_of(tmp_path / "out", "a1"), block_label(ids=(1, 2)))
    assert np.array_equal(label_of(tmp_path / "out", "b1"), block_label(ids=(3, 1)))
    assert label_of(tmp_path / "out", "b1").dtype == np.uint8
    entries = training_of(tmp_path / "out")
    assert {name: (entry["annotated"], entry["source"]) for name, entry in entries.items()} == {
        "a1": ([1, 2], "A"),
        "a2": ([1, 2], "A"),
        "b1": ([1, 3], "B"),
    }
    assert entries["b1"]["image"] == "./imagesTr/b1.nii.gz"
    case_list = read_case_list(tmp_path / "out")
    assert (case_list.labels, case_list.channels) == (pooled.labels, ("CT",))
    assert (case_list.ignore_label, case_list.passed_over) == (None, ())
    summaries = check_cases(case_list, progress=False)
    counted = {value: sum(case.voxels.get(value, 0) for case in summaries.cases) for value in pooled.labels}
    assert pooled.voxels == counted
    for case, folder in zip(case_list.cases, (a, a, b), strict=True):
        assert case.image[0].read_bytes() == (folder / "imagesTr" / case.image[0].name).read_bytes()


def test_the_order_of_three_sources_is_that_of_the_classes(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    c = make_source(tmp_path / "C", ["c1"], {4: "Left  Kidney", 9: "LIVER "})
    pooled = pool(tmp_path / "out", c, b, a)
    assert pooled.labels == {0: "background", 1: "Left Kidney", 2: "LIVER", 3: "spleen", 4: "tumor"}
    assert [entry["annotated"] for entry in training_of(tmp_path / "out").values()] == [[1, 2], [2, 3], [2, 4], [2, 4]]
    assert np.array_equal(label_of(tmp_path / "out", "c1"), block_label(ids=(1, 2)))
    summary = pooled.summary()
    assert [line.split() for line in summary.splitlines()[2:8]] == [
        ["label", "annotated", "C", "B", "A", "voxels", "name"],
        ["0", "-", "-", "-", "-", "792", "background"],
        ["1", "1", "1", "0", "0", "6", "Left", "Kidney"],
        ["2", "4", "1", "1", "2", "24", "LIVER"],
        ["3", "1", "0", "1", "0", "6", "spleen"],
        ["4", "2", "0", "0", "2", "12", "tumor"],
    ]
    assert f"A: 2 cases, licence CC0, {a}" in summary


def test_classes_get_other_names(tmp_path: Path) -> None:
    a = make_source(tmp_path / "A", ["a"], {1: "Leber"})
    b = make_source(tmp_path / "B", ["b"], {1: "spleen", 2: "liver"})
    assert pool(tmp_path / "out", a, b, rename={"LEBER": "liver", "spleen": "Spleen  (whole)"}).labels == {
        0: "background",
        1: "liver",
        2: "Spleen (whole)",
    }
    problems = refused(
        tmp_path / "new", "3 problems", a, b, rename={"kidney": "x", "Leber": "Background", "liver": "ignore"}
    )
    assert problems == [
        "expected names of classes to rename, got kidney, which no data set has; they have Leber, spleen, liver.",
        "expected the name of a class to rename Leber to, got Background, which is none; choose another name.",
        "expected the name of a class to rename liver to, got ignore, which is none; choose another name.",
    ]


def test_labels_of_one_data_set_with_equal_names_are_joined(tmp_path: Path) -> None:
    a = make_source(tmp_path / "A", ["a"], {1: "liver", 2: "liver_tumor", 3: "tumor"})
    b = make_source(tmp_path / "B", ["b"], {1: "tumor"})
    pooled = pool(tmp_path / "out", a, b, rename={"liver_tumor": "tumor"})
    assert pooled.labels == {0: "background", 1: "liver", 2: "tumor"}
    assert pooled.notes == ("A: the labels 2 liver_tumor and 3 tumor become one class, tumor.",)
    assert np.array_equal(label_of(tmp_path / "out", "a"), block_label(ids=(1, 2, 2)))
    record = json_of(tmp_path / "out" / "manifest.json")["cases"][0]
    assert record["names"] == {"1": "liver", "2": "liver_tumor + tumor"}
    assert (record["new_ids"], record["label_voxels"]) == ({"3": 2}, {"0": 192, "1": 6, "2": 12})


def test_what_is_annotated_in_a_case_stays(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    pool(tmp_path / "once", a, b)
    c = make_source(tmp_path / "C", ["c1", "c2"], {1: "tumor", 2: "spleen"}, entries=[{"annotated": [2]}, {}])
    pooled = pool(tmp_path / "twice", c, tmp_path / "once")
    assert pooled.labels == {0: "background", 1: "tumor", 2: "spleen", 3: "liver"}
    assert {name: entry["annotated"] for name, entry in training_of(tmp_path / "twice").items()} == {
        "c1": [2],
        "c2": [1, 2],
        "a1": [1, 3],
        "a2": [1, 3],
        "b1": [2, 3],
    }


def test_a_class_joined_of_labels_is_annotated_whole_or_not_at_all(tmp_path: Path) -> None:
    stated = [{"annotated": ids} for ids in ([1], [2, 3], [1, 3], [1, 2, 3])]
    labels = {1: "liver", 2: "liver_tumor", 3: "tumor"}
    a = make_source(tmp_path / "A", ["p", "q", "r", "s"], labels, entries=stated)
    b = make_source(tmp_path / "B", ["b"], {1: "tumor"})
    refused(
        tmp_path / "out",
        r"A: expected cases in which all or none of liver_tumor, tumor are annotated, which are joined as tumor, got 1 "
        r"with some of them \(r\); leave these out, or rename fewer\.",
        a,
        b,
        rename={"liver_tumor": "tumor"},
    )
    pool(tmp_path / "out", a, b)


@pytest.mark.parametrize(("classes", "ignored"), [(2, 255), (254, 255), (255, 256)])
def test_ignore_labels_become_one(tmp_path: Path, classes: int, ignored: int) -> None:
    more = {value: f"class {value}" for value in range(3, classes + 1)}
    a = make_source(tmp_path / "A", ["a"], {**LIVER, **more}, found=(1, 2, 500), ignore_label=500)
    b = make_source(tmp_path / "B", ["b"], {1: "liver", 2: "ignore"})
    c = make_source(tmp_path / "C", ["c"], {1: "liver"})
    pooled = pool(tmp_path / "out", a, b, c)
    assert (len(pooled.labels), pooled.ignore_label) == (classes + 1, ignored)
    assert read_case_list(tmp_path / "out").ignore_label == json_of(tmp_path / "out/dataset.json")["ignore_label"]
    assert np.array_equal(label_of(tmp_path / "out", "a"), block_label(ids=(1, 2, ignored), dtype=np.uint16))
    assert np.array_equal(label_of(tmp_path / "out", "b"), block_label(ids=(1, ignored), dtype=np.uint16))
    assert label_of(tmp_path / "out", "b").dtype == (np.uint8 if ignored == 255 else np.uint16)
    assert [entry["annotated"][:2] for entry in training_of(tmp_path / "out").values()] == [[1, 2], [1], [1]]
    check_cases(read_case_list(tmp_path / "out"), progress=False)
    assert re.search(r"\n +\d+ +-  .* 12  \(without annotation\)", pooled.summary())


def test_names_that_several_data_sets_have_get_that_of_theirs(tmp_path: Path) -> None:
    a = make_source(tmp_path / "A", ["x", "Case"], LIVER, test=["t"])
    b = make_source(tmp_path / "B", ["case", "t", "y"], SPLEEN)
    pooled = pool(tmp_path / "out", a, b)
    case_list = read_case_list(tmp_path / "out")
    assert [case.name for case in case_list.cases] == ["A_Case", "B_case", "B_t", "x", "y"]
    assert [case.name for case in case_list.unlabelled] == ["A_t"]
    assert [case.name for case in pooled.unlabelled] == ["A_t"]
    assert pooled.notes == (
        "4 cases have the name of their data set in front, because another has cases of these names (A_Case, A_t, "
        "B_case and 1 more).",
    )
    make_source(tmp_path / "B", ["case", "A_case"], SPLEEN)
    refused(
        tmp_path / "new",
        r"names differ once that of the data set is put before equal ones, got Case of A and A_case of B; rename one",
        a,
        b,
    )


def test_data_sets_in_folders_of_one_name_are_called_by_their_parents_too(tmp_path: Path) -> None:
    a = make_source(tmp_path / "one" / "data", ["x"], LIVER)
    b = make_source(tmp_path / "two" / "data", ["x"], SPLEEN)
    c = make_source(tmp_path / "C", ["x"], SPLEEN)
    pool(tmp_path / "out", a, b, c)
    assert [case.name for case in read_case_list(tmp_path / "out").cases] == ["C_x", "one_data_x", "two_data_x"]
    assert [entry["source"] for entry in json_of(tmp_path / "out/dataset.json")["training"]] == [
        "one_data",
        "two_data",
        "C",
    ]
    d = make_source(tmp_path / "more" / "one" / "data", ["x"], LIVER)
    refused(tmp_path / "new", r"names of their own, got .*one/data and .*more/one/data; give a folder another", a, d)


def test_channels_stay_files_of_their_own(tmp_path: Path) -> None:
    a = make_source(tmp_path / "A", ["a"], LIVER, channels=2, suffix=".nii", test=["t"])
    b = make_source(tmp_path / "B", ["b"], SPLEEN, channels=2)
    pool(tmp_path / "out", a, b)
    case_list = read_case_list(tmp_path / "out")
    assert [[file.name for file in case.image] for case in (*case_list.cases, *case_list.unlabelled)] == [
        ["a_0000.nii", "a_0001.nii"],
        ["b_0000.nii.gz", "b_0001.nii.gz"],
        ["t_0000.nii", "t_0001.nii"],
    ]
    assert case_list.channels == ("T1", "T2")
    check_cases(case_list, progress=False)


def test_channels_on_a_fourth_axis_are_pooled(tmp_path: Path) -> None:
    sources = two(tmp_path)
    for folder in sources:
        for file in (folder / "imagesTr").iterdir():
            voxels = random_image(zlib.crc32(file.name.encode()), shape=(7, 6, 5, 2))
            nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), file)
        declared = json_of(folder / "dataset.json")
        (folder / "dataset.json").write_text(json.dumps({**declared, "modality": {"0": "t1", "1": "FLAIR"}}))
    pool(tmp_path / "out", *sources)
    case_list = read_case_list(tmp_path / "out")
    assert case_list.channels == ("t1", "FLAIR")
    assert [len(case.intensity) for case in check_cases(case_list, progress=False).cases] == [2, 2, 2]


def test_other_channels_are_refused_or_named_anew(tmp_path: Path) -> None:
    a = make_source(tmp_path / "A", ["a"], LIVER, channels=2)
    b = make_source(tmp_path / "B", ["b"], SPLEEN)
    refused(tmp_path / "out", r"same number of channels, got others \(A has T1, T2; B has CT\); pool fewer\.", a, b)
    c = make_source(tmp_path / "C", ["c"], SPLEEN, modality=None)
    d = make_source(tmp_path / "D", ["d"], SPLEEN, modality={"0": "MRI"})
    assert pool(tmp_path / "c", b, c).written == 2  # what C says nothing of is CT
    assert read_case_list(tmp_path / "c").channels == ("CT",)
    refused(
        tmp_path / "out",
        r"same channels in each data set, got others \(B has CT; C has 1 without names; D has MRI\); where they mean "
        r'the same in this order, name them with --channel-names "CT"\.',
        b,
        c,
        d,
    )
    refused(
        tmp_path / "out",
        r"a name for each channel \(1\), got CT, MR \(B has CT; D has MRI\); correct --channel-names",
        b,
        d,
        channels=("CT", "MR"),
    )
    pool(tmp_path / "out", b, c, d, channels=("any",))
    assert read_case_list(tmp_path / "out").channels == ("any",)


def test_cases_to_segment_and_set_apart(tmp_path: Path) -> None:
    a = make_source(tmp_path / "A", ["a1", "a2"], LIVER, test=["t1", "t2"], entries=[{"fold": 0}, {"fold": 1}])
    b = make_source(tmp_path / "B", ["b1", "v"], SPLEEN, licence=None)
    declared = json_of(b / "dataset.json")
    declared |= {"validation": [declared["training"].pop()]}
    write_nifti(b / "labelsTs" / "u.nii.gz", block_label(), AFFINE)
    write_nifti(b / "imagesTs" / "u.nii.gz", random_image(77), AFFINE)
    declared["test"] = [{"image": "./imagesTs/u.nii.gz", "label": "./labelsTs/u.nii.gz"}]
    (b / "dataset.json").write_text(json.dumps(declared))
    pooled = pool(tmp_path / "out", a, b)
    case_list = read_case_list(tmp_path / "out")
    assert [(case.name, case.label, case.fold) for case in case_list.unlabelled] == [
        ("t1", None, None),
        ("t2", None, None),
        ("u", None, None),
    ]
    assert [(case.name, case.fold, case.validation) for case in case_list.cases] == [
        (name, None, False) for name in ("a1", "a2", "b1", "v")
    ]
    assert pooled.notes == (
        "A: the folds that it declares are given up, its cases are dealt anew.",
        "B: 1 cases set apart to validate are pooled with the others.",
        "B: labels of 1 cases to segment are left out.",
        "B states no licence; ask those who made it before the data are passed on.",
    )
    assert "out: 4 labelled cases and 3 to segment" in pooled.summary()


def test_the_manifest_tells_where_everything_comes_from_and_under_which_licence(tmp_path: Path) -> None:
    a = make_source(tmp_path / "A", ["a"], LIVER, licence="CC-BY 4.0", reference="Doe 2020", release="1.0")
    b = make_source(tmp_path / "B", ["b"], SPLEEN, licence=None, license={"name": "CC0"})
    c = make_source(tmp_path / "C", ["c"], SPLEEN, licence=" ")
    pooled = pool(tmp_path / "out", a, b, c)
    content = json_of(tmp_path / "out" / "manifest.json")
    assert content["options"] == {
        "sources": [str(a), str(b), str(c)],
        "rename": {},
        "channels": [],
        "num_folds": 0,
        "seed": 0,
        "copy": False,
    }
    stated = {"licence": None, "reference": None, "release": None}
    assert [case["source"] for case in content["cases"]] == [
        {"name": "A", "folder": str(a), "licence": "CC-BY 4.0", "reference": "Doe 2020", "release": "1.0"},
        {"name": "B", "folder": str(b), **stated, "licence": '{"name": "CC0"}'},
        {"name": "C", "folder": str(c), **stated},
    ]
    case = content["cases"][1]
    assert (case["new_ids"], case["names"], case["annotated"]) == (
        {"1": 3, "2": 1},
        {"3": "spleen", "1": "liver"},
        [1, 3],
    )
    assert (case["shape"], case["affine"]) == ([7, 6, 5], pytest.approx(AFFINE))
    assert list(case["sources"]) == [str(b / "imagesTr" / "b.nii.gz"), str(b / "labelsTr" / "b.nii.gz")]
    for files, folder in ((case["sources"], tmp_path), (case["outputs"], tmp_path / "out")):
        for file, stamp in files.items():
            assert manifest_module.stamp_of(folder / file) == stamp
    assert content["dataset_json"] == manifest_module.stamp_of(tmp_path / "out" / "dataset.json")
    declared = json_of(tmp_path / "out" / "dataset.json")
    assert declared["licence"] == 'A: CC-BY 4.0; B: {"name": "CC0"}; C: not stated'
    assert declared["reference"] == "A: Doe 2020; B: not stated; C: not stated"
    assert pooled.notes == ("C states no licence; ask those who made it before the data are passed on.",)


def test_a_label_keeps_its_grid(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    label = b / "labelsTr" / "b1.nii.gz"
    affine = AFFINE + np.diag([0, 0, 0.005, 0])  # within 5 % of a voxel
    write_nifti(label, np.array([0, 1.0000003, 2])[block_label(ids=(1, 2))], affine)
    pool(tmp_path / "out", a, b)
    written = nibabel.load(tmp_path / "out" / "labelsTr" / "b1.nii.gz")
    assert written.affine == pytest.approx(affine, abs=1e-6)
    assert np.array_equal(np.asanyarray(written.dataobj), block_label(ids=(3, 1)))


# ---- links and copies ------------------------------------------------------------------------------------------------


def test_links_hold_where_all_moves_together(tmp_path: Path) -> None:
    a, b = two(tmp_path / "data" / "sources")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (b / "imagesTr" / "b1.nii.gz").rename(tmp_path / "data" / "b.nii.gz")
    (b / "imagesTr" / "b1.nii.gz").symlink_to("../../../b.nii.gz")
    pool(tmp_path / "link" / "pooled" / "out", a, b)
    out = tmp_path / "data" / "pooled" / "out"
    for name in ("a1", "b1"):
        folder = name[0].upper()
        image = out / "imagesTr" / f"{name}.nii.gz"
        assert str(image.readlink()) == f"../../../sources/{folder}/imagesTr/{name}.nii.gz"
    shutil.move(tmp_path / "data", tmp_path / "moved")
    check_cases(read_case_list(tmp_path / "moved" / "pooled" / "out"), progress=False)


def test_images_are_copied_where_asked_for_or_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two(tmp_path)
    assert pool(tmp_path / "copied", a, b, copy=True).notes == ()

    def none(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", none)
    pooled = pool(tmp_path / "fallen back", a, b)
    assert pooled.notes == (f"3 of 3 images are copied, because {tmp_path / 'fallen back'} takes no links.",)
    assert pool(tmp_path / "fallen back", a, b).written == 0
    for out in ("copied", "fallen back"):
        for name, folder in (("a1", a), ("b1", b)):
            image = tmp_path / out / "imagesTr" / f"{name}.nii.gz"
            assert not image.is_symlink()
            assert image.read_bytes() == (folder / "imagesTr" / image.name).read_bytes()


# ---- folds -----------------------------------------------------------------------------------------------------------


def test_each_fold_has_its_part_of_each_source(tmp_path: Path) -> None:
    a = make_source(tmp_path / "A", [f"a{i}" for i in range(7)], LIVER)
    b = make_source(tmp_path / "B", ["b0", "b1"], SPLEEN)
    c = make_source(tmp_path / "C", [f"c{i}" for i in range(11)], SPLEEN)
    pooled = pool(tmp_path / "out", a, b, c, num_folds=5, seed=3)
    assert pooled.fold_sizes == (4, 4, 4, 4, 4)
    cases = read_case_list(tmp_path / "out").cases
    for source, (low, high) in {"a": (1, 2), "b": (0, 1), "c": (2, 3)}.items():
        sizes = Counter(dict.fromkeys(range(5), 0))
        sizes.update(case.fold for case in cases if case.name[0] == source)
        assert (min(sizes.values()), max(sizes.values())) == (low, high)
    assert "folds of 4, 4, 4, 4, 4 cases" in pooled.summary()
    assert re.search(r"B: 2 cases \(by fold [01](, [01]){4}\), licence CC0", pooled.summary())
    assert len(split_cases(cases, None, fold=2, seed=0)[1]) == 4
    other = pool(tmp_path / "other", a, b, c, num_folds=5, seed=4)
    assert {case.name: case.fold for case in other.cases} != {case.name: case.fold for case in pooled.cases}
    refused(tmp_path / "new", r"as many cases as folds, got 20 for 21; lower the number", a, b, c, num_folds=21)


def test_one_image_in_several_data_sets_is_in_one_fold(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(6)]
    a = make_source(tmp_path / "A", names, LIVER)
    b = make_source(tmp_path / "B", names, SPLEEN, test=["t"])
    for name in names[:4]:
        shutil.copy(a / "imagesTr" / f"{name}.nii.gz", b / "imagesTr")
    shutil.copy(a / "imagesTr" / "p5.nii.gz", b / "imagesTs" / "t.nii.gz")
    pooled = pool(tmp_path / "out", a, b, num_folds=4)
    fold = {case.name: case.fold for case in pooled.cases}
    assert all(fold[f"A_{name}"] == fold[f"B_{name}"] for name in names[:4])
    assert pooled.fold_sizes == (3, 3, 3, 3)
    assert pooled.notes[1:] == (
        "4 images are those of other cases (B_p0 is A_p0, B_p1 is A_p1, B_p2 is A_p2 and 1 more); such cases are in "
        "one fold.",
        "1 images to segment are those of labelled cases (t is A_p5); they do not tell how a trained network does on "
        "new ones.",
    )


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_folders_that_cannot_be_pooled(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    out = tmp_path / "out"
    refused(out, r"expected two data set folders or more to pool, got 1; name each of them\.", a)
    (tmp_path / "again").symlink_to(a)
    refused(out, r"A: expected each folder once, got it 2 times; name it once\.", a, b, tmp_path / "again")
    for place in (a, a / "out", tmp_path):
        refused(place, r"apart from its sources, got .*, which overlaps with .*A; choose another folder\.", a, b)
    (out / "labelsTr").parent.mkdir()
    (out / "labelsTr").symlink_to(b / "labelsTr")
    refused(out, r"apart from its sources, got .*out, which overlaps with .*B; choose", a, b)
    (out / "labelsTr").unlink()
    problems = refused(out, r"2 problems", a, tmp_path / "none", a / "dataset.json")
    assert "none, which does not exist; give the folder that holds dataset.json" in problems[0]
    assert "dataset.json, which is a file; give" in problems[1]


def _declares(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = {**json_of(folder / "dataset.json"), **changes}
        text = json.dumps({key: value for key, value in content.items() if value is not None})
        (folder / "dataset.json").write_text(text)

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            _declares(regions={"whole": [1, 2], "core": [2]}),
            r"B/dataset\.json: expected classes of which a voxel has one, .* got the regions whole, core; remove "
            r"`regions` \(nnU-Net: the lists among `labels`\) to pool its labels\.",
        ),
        (_declares(labels={"background": 0, "whole": [1, 2], "core": [2]}), r"got the regions whole, core; remove"),
        (
            _declares(labels={"background": 0, "a": 1, "Background ": 2}),
            r"B/dataset\.json: expected the name of a class for the label 2, got Background, which is none; correct it",
        ),
        (
            lambda folder: (folder / "dataset.json").unlink(),
            r"B/dataset\.json: expected the names of the labels, by which classes are pooled, got no such file; write "
            r'\{"labels": \{"0": "background", "1": NAME, \.\.\.\}\}\.',
        ),
        (
            lambda folder: write_nifti(folder / "labelsTr/b1.nii.gz", block_label(ids=(1, 2, 7)), AFFINE),
            r"b1\.nii\.gz: expected the declared label values \(0 background, 1 spleen, 2 liver\), got 7 \(6 voxels\)",
        ),
        (
            lambda folder: write_nifti(folder / "labelsTr/b1.nii.gz", block_label((7, 6, 4), ids=(1, 2)), AFFINE),
            r"b1\.nii\.gz: expected shape \(7, 6, 5\) of .*, got \(7, 6, 4\); resample it onto that grid\.",
        ),
        (
            lambda folder: write_nifti(folder / "imagesTr/b1.nii.gz", np.full((7, 6, 5), np.nan), AFFINE),
            r"imagesTr/b1\.nii\.gz: expected finite intensities, got 210 voxels of NaN or infinity",
        ),
        (
            lambda folder: (folder / "imagesTr/b1.nii.gz").write_bytes(
                (folder / "imagesTr/b1.nii.gz").read_bytes()[:-40]
            ),
            r"imagesTr/b1\.nii\.gz: expected a whole gzip file, got a damaged one",
        ),
        (lambda folder: (folder / "imagesTr/b1.nii.gz").unlink(), r"b1\.nii\.gz: expected a file, got an error"),
    ],
)
def test_a_source_that_cannot_be_pooled(tmp_path: Path, change: Callable[[Path], object], match: str) -> None:
    a, b = two(tmp_path)
    change(b)
    refused(tmp_path / "out", match, a, b)


def test_all_problems_of_all_sources_at_once(tmp_path: Path) -> None:
    a = make_source(tmp_path / "A", ["a"], LIVER, found=(1, 2, 3))
    b = make_source(tmp_path / "B", ["b"], SPLEEN, found=(9,), modality={"0": "MRI"})
    problems = refused(tmp_path / "out", r"4 problems", a, b, rename={"x": "y"})
    for problem, words in zip(
        problems, ("got 3 (6 voxels)", "got 9 (6 voxels)", "got x, which no data set has", "(A has CT; B has MRI)"),
        strict=True,
    ):  # fmt: skip
        assert words in problem


def test_a_class_called_as_none_may_get_another_name(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    _declares(labels={"background": 0, "a": 1, "Background ": 2})(b)
    assert pool(tmp_path / "out", a, b, rename={"background": "body"}).labels[4] == "body"


def test_a_file_that_changes_after_the_check_stops_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = two(tmp_path)
    label, image = a / "labelsTr" / "a2.nii.gz", b / "imagesTr" / "b1.nii.gz"
    whole = {file: file.read_bytes() for file in (label, image)}
    write = manifest_module.write_json

    def changed(file: Path, content: Any) -> None:
        write(file, content)
        write_nifti(label, block_label(ids=(1, 9)), AFFINE)
        write_nifti(image, random_image(99), AFFINE)

    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "write_json", changed)
        with pytest.raises(DatasetError, match=r"2 problems") as caught:
            pool(tmp_path / "out", a, b, copy=True)
    assert caught.value.problems == [
        f"{file}: expected the file as it was checked, got a changed one; call again when nothing writes it."
        for file in (label, image)
    ]
    assert not (tmp_path / "out" / "dataset.json").exists()
    for file, content in whole.items():
        file.write_bytes(content)
    assert pool(tmp_path / "out", a, b, copy=True).written == 2


def test_text_of_names() -> None:
    assert parse_rename("liver_tumor:tumor, Leber = left  liver ") == {"liver_tumor": "tumor", "Leber": "left  liver"}
    for text in ("a", "a:", ":b", "a:b:c", "a:b,", "a:b, A :c"):
        with pytest.raises(DatasetError, match=r'OLD:NEW,OLD:NEW, each old one once, such as "liver_tumor:tumor", got'):
            parse_rename(text)


# ---- again, and after an interruption --------------------------------------------------------------------------------


def stop_after(patch: pytest.MonkeyPatch, labels: int) -> None:
    """Interrupt the process in the middle of a label, after some."""
    written: list[Path] = []
    save = nibabel.save

    def counted(image: Any, file: Path) -> None:
        if len(written) >= labels:  # threads may pass the number together
            file.write_bytes(b"half a fi")
            raise KeyboardInterrupt
        save(image, file)
        written.append(file)

    patch.setattr(nibabel, "save", counted)


@pytest.mark.parametrize("copy", [False, True])
def test_a_killed_call_leaves_whole_files_and_the_next_one_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: bool
) -> None:
    a = make_source(tmp_path / "A", ["a1", "a2", "a3"], LIVER, test=["t"])
    b = make_source(tmp_path / "B", ["b1", "b2"], SPLEEN)
    pool(tmp_path / "whole", a, b, copy=copy, num_folds=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            pool(tmp_path / "out", a, b, copy=copy, num_folds=2)
    half, whole = contents(tmp_path / "out"), contents(tmp_path / "whole")
    assert "dataset.json" not in half
    finished = {name for name in half if name.endswith(".gz") and not name.startswith(".unfinished")}
    assert {f"{kind}Tr/{name}.nii.gz" for kind in ("images", "labels") for name in ("a1", "a2", "a3")} <= finished
    assert "labelsTr/b1.nii.gz" not in finished
    assert all(half[name] == whole[name] for name in finished)
    pooled = pool(tmp_path / "out", a, b, copy=copy, num_folds=2)
    assert pooled.written == 3
    assert "out: 5 labelled cases and 1 to segment, 3 of them written by an earlier call" in pooled.summary()
    again = contents(tmp_path / "out")
    assert json.loads(again.pop("manifest.json"))["cases"] == json.loads(whole.pop("manifest.json"))["cases"]
    assert again.pop("dataset.json") == whole.pop("dataset.json").replace(b'"whole"', b'"out"')
    assert again == whole


def test_the_same_call_again_writes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    out = tmp_path / "out"
    pool(out, a, b)
    before = contents(out)
    assert pool(out, a, b).written == 0
    assert contents(out) == before
    refused(out, r"expected the options of the call that made it, got sources \[.*B', .*A'\] instead of \[", b, a)
    refused(out, r"got seed 1 instead of 0, copy True instead of False; choose another", a, b, seed=1, copy=True)
    refused(out, r"got rename \{'tumor': 'cyst'\} instead of \{\}", a, b, rename={"tumor": "cyst"})
    _declares(labels={"0": "background", "1": "kidney", "2": "liver", "3": "tumor"})(a)
    refused(out, r"b1: expected the label ids of the earlier call, got others; .* --overwrite\.", a, b)
    _declares(labels={"0": "background", "1": "liver", "2": "tumor"})(a)
    write_nifti(a / "imagesTr" / "a1.nii.gz", random_image(50), AFFINE)
    refused(out, r"imagesTr/a1\.nii\.gz: expected the file as the earlier call wrote it, got a changed one", a, b)


def test_a_new_case_is_added(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    entries = json_of(a / "dataset.json")["training"]
    _declares(training=entries[:1])(a)
    assert pool(tmp_path / "out", a, b).written == 2
    _declares(training=entries)(a)
    assert pool(tmp_path / "out", a, b).written == 1
    assert [case.name for case in read_case_list(tmp_path / "out").cases] == ["a1", "a2", "b1"]


def test_overwrite_deletes_what_pool_wrote_and_nothing_else(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    out = tmp_path / "out"
    pool(out, a, b)
    sources = contents(a) | contents(b)
    (out / "labelsTr" / "notes.txt").write_text("mine")
    (out / "imagesTr" / "mine.nii.gz").symlink_to(a / "imagesTr" / "a1.nii.gz")
    c = make_source(tmp_path / "C", ["c1"], SPLEEN)
    assert pool(out, b, c, overwrite=True).written == 2
    assert contents(a) | contents(b) == sources
    assert sorted(os.listdir(out / "imagesTr")) == ["b1.nii.gz", "c1.nii.gz", "mine.nii.gz"]
    assert sorted(os.listdir(out / "labelsTr")) == ["b1.nii.gz", "c1.nii.gz", "notes.txt"]
    (out / "imagesTr" / "a1.nii.gz").symlink_to(tmp_path / "gone")
    refused(out, r"a1\.nii\.gz: expected no such file, got one that no earlier call wrote; move", a, b, overwrite=True)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    refused(tmp_path / "used", r"used: expected a new or empty folder", a, b, overwrite=True)


# ---- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> str | int | None:
    """What the command ends with: 0, or the sentence that a process prints to stderr to exit with 1."""
    with pytest.raises(SystemExit) as ended:
        main(["pool", *(str(argument) for argument in arguments)])
    return ended.value.code


def test_the_command_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "Müller's data (1)"
    a = make_source(folder / "A", ["x", "y"], {1: "Leber"})
    b = make_source(folder / "it's B", ["x", "z"], SPLEEN)
    call = [a, b, "--out", folder / "it's out", "--folds", 2]
    options = ["--rename", "leber:liver", "--channel-names", "CT", "--workers", 2]
    assert "got bad, which no data set has; they have Leber, spleen, liver." in str(run(*call, "--rename", "bad:x"))
    assert not (folder / "it's out").exists()
    assert run(*call, *options) == 0
    said = capsys.readouterr().out
    assert "4 labelled cases" in said
    assert "folds of 2, 2 cases" in said
    assert "monai-extra-losses check '" in said
    assert [case.name for case in read_case_list(folder / "it's out").cases] == ["A_x", "it's B_x", "y", "z"]
    assert "got seed 1 instead of 0" in str(run(*call, *options, "--seed", 1))
    assert run(*call, *options, "--seed", 1, "--copy", "--overwrite") == 0
    assert "expected two data set folders or more" in str(run(a, "--out", folder / "new"))


def test_ctrl_c_prints_the_line_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two(tmp_path)
    call = [a, b, "--out", tmp_path / "out", "--folds", 0, "--workers", 1]
    stop_after(monkeypatch, 1)
    assert run(*call, "--overwrite") == 130
    assert f"go on with:\n  monai-extra-losses pool {' '.join(map(str, call))}\n" in capsys.readouterr().err
