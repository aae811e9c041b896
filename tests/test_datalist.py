import dataclasses
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monai_extra_losses.data import (
    DatasetError,
    LabelledCase,
    StartUpRefused,
    count_folds,
    deal_folds,
    read_case_list,
    split_cases,
)


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _declare(folder: Path, **content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def _decathlon(folder: Path, **changes: Any) -> Path:
    content = {
        "name": "Heart",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "atrium"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ba"],
        "test": ["./imagesTs/d.nii.gz", {"image": "./imagesTs/c.nii.gz", "label": "./labelsTs/c.nii.gz"}],
    }
    return _declare(folder, **{**content, **changes})


def test_decathlon_folder(tmp_path: Path) -> None:
    found = read_case_list(str(_decathlon(tmp_path)))
    assert (found.folder, found.name) == (tmp_path, "Heart")
    assert (found.labels, found.channels) == ({0: "background", 1: "atrium"}, ("MRI",))
    assert found.cases == tuple(
        LabelledCase(n, (tmp_path / f"imagesTr/{n}.nii.gz",), tmp_path / f"labelsTr/{n}.nii.gz") for n in "ab"
    )
    assert [(case.name, case.label) for case in found.unlabelled] == [
        ("c", tmp_path / "labelsTs/c.nii.gz"),
        ("d", None),
    ]


def test_phantom_folder_is_a_decathlon_folder(phantom_folder: Path) -> None:
    found = read_case_list(phantom_folder)
    assert [case.name for case in found.cases] == [f"phantom_{i:03d}" for i in range(6)]
    assert all(case.label is not None and case.label.exists() for case in (*found.cases, *found.unlabelled))
    assert found.labels == {0: "background", 1: "organ", 2: "lesion"}


def test_nnunet_folder_with_one_file_per_channel(tmp_path: Path) -> None:
    _declare(tmp_path, channel_names={"0": "T1", "1": "T2"}, labels={"background": 0, "edema": 1, "core": 2})
    _touch(tmp_path, *[f"imagesTr/{n}_000{c}.nii.gz" for n in ("p_2", "p_1") for c in (1, 0)])
    _touch(tmp_path, "labelsTr/p_1.nii.gz", "labelsTr/p_2.nii.gz", "imagesTs/q_0000.nii.gz", "imagesTs/q_0001.nii.gz")
    found = read_case_list(tmp_path)
    assert (found.labels, found.channels) == ({0: "background", 1: "edema", 2: "core"}, ("T1", "T2"))
    assert [(case.name, [file.name for file in case.image]) for case in (*found.cases, *found.unlabelled)] == [
        (name, [f"{name}_0000.nii.gz", f"{name}_0001.nii.gz"]) for name in ("p_1", "p_2", "q")
    ]


def test_listed_channel_files_make_one_case(tmp_path: Path) -> None:
    entry = {"image": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "label": "labelsTr/a.nii.gz"}
    (case,) = read_case_list(_decathlon(tmp_path, training=[entry], test=[])).cases
    assert (case.name, len(case.image)) == ("a", 2)


@pytest.mark.parametrize(("images", "labels"), [("imagesTr", "labelsTr"), ("images", "labels")])
def test_files_are_paired_by_name_without_a_list(tmp_path: Path, images: str, labels: str) -> None:
    # Sorted lists of different length or spelling would pair by position; names never do. scan_0001 is no channel,
    # because a label has that very name.
    names = ("scan_0001", "scan_0002", "x")
    _touch(tmp_path, *[f"{images}/{n}.nii.gz" for n in names], *[f"{labels}/{n}.nii" for n in names])
    _touch(tmp_path, f"{images}/._x.nii.gz", f"{images}/notes.txt")
    found = read_case_list(tmp_path)
    assert [(case.name, case.image[0].name, case.label and case.label.name) for case in found.cases] == [
        (n, f"{n}.nii.gz", f"{n}.nii") for n in names
    ]
    assert (found.labels, found.channels, found.unlabelled, found.name) == ({}, (), (), tmp_path.name)


def test_every_file_without_a_partner_is_named(tmp_path: Path) -> None:
    _touch(tmp_path, "imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/b.nii.gz", "labelsTr/c.nii.gz")
    with pytest.raises(DatasetError, match=r"2 problems") as caught:
        read_case_list(tmp_path)
    first, second = caught.value.problems
    assert first.startswith(f"{tmp_path / 'imagesTr/a.nii.gz'}: expected a label")
    assert second.startswith(f"{tmp_path / 'labelsTr/c.nii.gz'}: expected an image")


def _write(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "dataset.json").write_text(text)


def _files(*names: str) -> Callable[[Path], object]:
    return lambda folder: _touch(folder, *names)


def _listed(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: _decathlon(folder, **changes)


_A = {"image": "i/a.nii.gz", "label": "l/a.nii.gz"}
_B = {"image": "i/b.nii.gz", "label": "l/b.nii.gz"}


@pytest.mark.parametrize(
    ("prepare", "match"),
    [
        (_files(), r"expected dataset\.json .* or the folders imagesTr/ and labelsTr/, got neither"),
        (
            _files("imagesTr/readme.txt", "labelsTr/readme.txt"),
            r"expected pairs of .* in imagesTr/ and labelsTr/, got none",
        ),
        (
            _files("imagesTr/a.nii", "imagesTr/a.nii.gz", "labelsTr/a.nii"),
            r"a\.nii\.gz: expected one file per name, got a\.nii too",
        ),
        (_files("imagesTr/a_0000.nii", "imagesTr/a_0002.nii", "labelsTr/a.nii"), r"a_0002\.nii: .* without a gap"),
        (_write("{"), r"dataset\.json: expected valid JSON"),
        (_write("[]"), r"dataset\.json: expected an object .* got list"),
        (_listed(training=[]), r"expected labelled cases under `training`, got an empty list"),
        (_listed(training={}), r"expected a list under `training`, got dict"),
        (_listed(training=["i/a.nii.gz"]), r'entry 0 of `training` .* got "i/a\.nii\.gz"'),
        (_listed(training=[_A, {"image": "i/b.nii.gz"}]), r"entry 1 of `training`"),
        (_listed(test=[3]), r"entry 0 of `test` .* or FILE, got 3"),
        (_listed(training=[_A, _A]), r"i/a\.nii\.gz: expected to be listed once, got 2 times"),
        (_listed(training=[_A], test=["i/a.nii.gz"]), r"i/a\.nii\.gz: expected to be listed once, got 2 times"),
        (
            _listed(training=[_A], test=["j/a.nii.gz"]),
            r"expected one case called a in training and test together, got 2",
        ),
        (_listed(labels=None), r"expected an object under `labels`"),
        (_listed(labels={"1": "organ"}), r"expected 0 \(background\) and one more"),
        (_listed(labels={"0": "background"}), r"expected 0 \(background\) and one more"),
        (_listed(labels={"0": "background", "x": "organ"}), r"expected whole numbers in `labels`"),
        (_listed(labels={"background": 0, "tumour": [1, 2.5]}), r"expected whole numbers in `labels`"),
        (_listed(labels={"background": 0, "tumour": []}), r"expected whole numbers in `labels`"),
        (_listed(labels={"0": "organ", "1": "organ"}), r"expected every value and name once"),
        (_listed(modality={"1": "MRI"}), r"expected `modality` as"),
        (_listed(training=[{**_A, "fold": 0}, _B]), r"whole numbers from 0 .* or none with one, got 0, none; correct"),
        (_listed(training=[{**_A, "fold": 0}, {**_B, "fold": 2}]), r"without an empty fold, .* got 0, 2;"),
        (_listed(training=[{**_A, "fold": 0}, {**_B, "fold": True}]), r"whole numbers from 0 .* got 0, true;"),
        (_listed(training=[{**_A, "fold": 0}, {**_B, "fold": "1"}]), r'whole numbers from 0 .* got "1", 0;'),
        (_listed(training=[{**_A, "fold": -1}, {**_B, "fold": 0}]), r"whole numbers from 0 .* got -1, 0;"),
    ],
)
def test_unusable_folder_is_one_sentence(tmp_path: Path, prepare: Callable[[Path], object], match: str) -> None:
    prepare(tmp_path)
    with pytest.raises(DatasetError, match=match) as caught:
        read_case_list(tmp_path)
    assert all(problem.startswith(str(tmp_path)) for problem in caught.value.problems)


def test_missing_folder_and_file_instead_of_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere, which does not exist"):
        read_case_list(tmp_path / "nowhere")
    _touch(tmp_path, "file")
    with pytest.raises(DatasetError, match=r"file, which is a file"):
        read_case_list(tmp_path / "file")


_CASES = [LabelledCase(f"case_{i:02d}", (Path(f"{i}"),), Path(f"{i}")) for i in range(23)]


def test_folds_are_a_partition_of_even_sizes() -> None:
    folds = [split_cases(_CASES, 5, fold, seed=3) for fold in range(5)]
    assert sorted(case.name for _, validation in folds for case in validation) == [case.name for case in _CASES]
    assert sorted(len(validation) for _, validation in folds) == [4, 4, 5, 5, 5]
    for training, validation in folds:
        assert sorted([*training, *validation], key=lambda case: case.name) == _CASES


def test_folds_depend_on_seed_and_names_alone() -> None:
    training, validation = split_cases(_CASES, 5, 0, seed=3)
    assert split_cases(_CASES[::-1], 5, 0, seed=3) == (training, validation)
    assert split_cases(_CASES, 5, 0, seed=4)[1] != validation
    # Written down once: a change would mix training and validation cases of runs that are resumed.
    assert [case.name for case in validation] == ["case_00", "case_05", "case_09", "case_11", "case_17"]


@pytest.mark.parametrize(
    ("num_folds", "fold", "match"),
    [
        (0, 0, r"num_folds of at least 2, got 0"),
        (1, 0, r"num_folds of at least 2, got 1: .* 5 is a good choice"),
        (5, 5, r"fold 0 to 4 for num_folds 5, got 5"),
        (5, -1, r"fold 0 to 4 for num_folds 5, got -1"),
        (24, 0, r"at least as many labelled cases as folds, got 23 for num_folds 24"),
    ],
)
def test_impossible_folds(num_folds: int, fold: int, match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        split_cases(_CASES, num_folds, fold, seed=0)


def test_declared_folds_are_taken_whatever_the_seed(tmp_path: Path) -> None:
    folds = {"a": 1, "b": 0, "c": 2, "d": 1}
    entries = [{"image": f"i/{n}.nii.gz", "label": f"l/{n}.nii.gz", "fold": fold} for n, fold in folds.items()]
    cases = read_case_list(_decathlon(tmp_path, training=entries, test=[])).cases
    assert [case.fold for case in cases] == [1, 0, 2, 1]
    for seed, num_folds in ((0, None), (1, 3)):
        training, validation = split_cases(cases, num_folds, 1, seed)
        assert [case.name for case in training] == ["b", "c"]
        assert [case.name for case in validation] == ["a", "d"]
    with pytest.raises(DatasetError, match=r"num_folds 3, to which the `fold` entries .* got 5; leave num_folds out"):
        split_cases(cases, 5, 0, seed=0)
    with pytest.raises(DatasetError, match=r"fold 0 to 2 for num_folds 3, got 3"):
        split_cases(cases, None, 3, seed=0)


def test_one_declared_fold_cannot_be_split(tmp_path: Path) -> None:
    cases = read_case_list(_decathlon(tmp_path, training=[{**_A, "fold": 0}])).cases
    with pytest.raises(DatasetError, match=r"num_folds of at least 2, got 1"):
        split_cases(cases, None, 0, seed=0)


def test_the_number_of_folds_is_declared_or_asked_for_or_five() -> None:
    declared = [dataclasses.replace(case, fold=i % 4) for i, case in enumerate(_CASES)]
    assert [count_folds(_CASES, None), count_folds(_CASES, 3)] == [5, 3]
    assert [count_folds(declared, None), count_folds(declared, 4)] == [4, 4]
    assert split_cases(_CASES, None, 2, seed=3) == split_cases(_CASES, 5, 2, seed=3)


def test_dealt_groups_stay_whole_and_folds_even() -> None:
    groups = {f"p{patient}_{scan}": f"p{patient}" for patient in range(20) for scan in range(1 + patient % 4)}
    dealt = deal_folds(groups, 5, seed=1)
    assert {name: dealt[name] for name in groups} == dealt
    assert all(len({dealt[name] for name in groups if groups[name] == group}) == 1 for group in groups.values())
    sizes = [list(dealt.values()).count(fold) for fold in range(5)]
    assert sizes == [10] * 5  # 50 scans
    assert deal_folds(dict(sorted(groups.items(), reverse=True)), 5, seed=1) == dealt
    assert deal_folds(groups, 5, seed=2) != dealt
    with pytest.raises(DatasetError, match=r"as many groups of cases as folds, got 20 for num_folds 21"):
        deal_folds(groups, 21, seed=1)


def test_dataset_error_lists_its_problems() -> None:
    assert str(DatasetError("one.")) == "one."
    several = pickle.loads(pickle.dumps(DatasetError(["one.", "two."])))
    assert str(several) == "The data set has 2 problems:\n  one.\n  two."
    assert several.problems == ["one.", "two."]


def test_refusal_prints_its_sentence_and_exits_with_1() -> None:
    program = "from monai_extra_losses.data import StartUpRefused; raise StartUpRefused('expected a, got b.')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip(), done.stdout) == (1, "expected a, got b.", "")
    assert not issubclass(StartUpRefused, Exception)


def test_reading_a_list_imports_nothing_heavy() -> None:
    program = (
        "import sys, monai_extra_losses.data.datalist; print({'torch', 'monai', 'numpy', 'nibabel'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_hippocampus_list(hippocampus: Path) -> None:
    found = read_case_list(hippocampus)
    assert len(found.cases) == 200
    assert dataclasses.asdict(found)["labels"] == {0: "background", 1: "Anterior", 2: "Posterior"}
