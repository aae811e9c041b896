import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monai_extra_losses.data import (
    CaseList,
    DatasetError,
    LabelledCase,
    StartUpRefused,
    count_folds,
    deal_folds,
    nifti,
    read_case_list,
    split_cases,
    volumes,
)
from monai_extra_losses.data.declared import declares_regions
from monai_extra_losses.data.folder_files import NIFTI_SUFFIXES, OTHER_SUFFIXES


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


# ---- cases that annotate some classes only ------------------------------------------------------------------------


ORGANS = {"0": "background", "1": "liver", "2": "kidney", "3": "spleen"}


def _entries(*annotated: Any) -> list[dict[str, Any]]:
    """An entry per value of `annotated`, "" for one without."""
    return [
        {"image": f"i/{name}.nii", "label": f"l/{name}.nii"} | ({} if value == "" else {"annotated": value})
        for name, value in zip("abcdef", annotated, strict=False)
    ]


def _annotated(found: CaseList) -> list[tuple[int, ...] | None]:
    return [case.annotated for case in found.cases]


def test_an_entry_says_which_classes_are_annotated(tmp_path: Path) -> None:
    found = read_case_list(_decathlon(tmp_path, labels=ORGANS, training=_entries([3, 0, 1, 3], [2], ""), test=[]))
    assert _annotated(found) == [(1, 3), (2,), None]
    assert found.passed_over == ()
    assert found.partly_annotated
    first, _, last = found.cases
    assert (first.annotates(1), first.annotates(2), first.annotates(0), last.annotates(2)) == (True, False, True, True)
    assert (first.annotates(1, 3), first.annotates(1, 2)) == (True, False)  # of a region all of its labels
    assert pickle.loads(pickle.dumps(found)) == found


def test_the_whole_file_has_the_default_of_its_entries(tmp_path: Path) -> None:
    test = [{"image": "j/t.nii", "label": "k/t.nii"}, "j/u.nii"]
    validation = [{"image": "i/v.nii", "label": "l/v.nii", "annotated": [1]}, {"image": "i/w.nii", "label": "l/w.nii"}]
    lists = {"training": _entries("", [1, 2, 3]), "validation": validation, "test": test}
    found = read_case_list(_decathlon(tmp_path, labels=ORGANS, annotated=[2, 3], **lists))
    assert _annotated(found) == [(2, 3), (1, 2, 3), (1,), (2, 3)]
    assert [(case.name, case.annotated) for case in found.unlabelled] == [("t", (2, 3)), ("u", None)]
    assert found.passed_over == ()


def test_pairs_without_a_list_have_the_default_alone(tmp_path: Path) -> None:
    _touch(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii", "imagesVa/v.nii", "labelsVa/v.nii", "imagesTs/t.nii")
    found = read_case_list(_declare(tmp_path, labels=ORGANS, annotated=[2]))
    assert _annotated(found) == [(2,), (2,)]
    assert [case.annotated for case in found.unlabelled] == [None]
    assert found.passed_over == ()


def test_all_classes_of_each_case_are_not_partly_annotated(tmp_path: Path) -> None:
    for entries in (_entries("", ""), _entries([1, 2, 3], ""), _entries([0, 1, 2, 3])):
        assert not read_case_list(_decathlon(tmp_path, labels=ORGANS, training=entries, test=[])).partly_annotated
    entries = _entries("", [1, 2])
    assert read_case_list(_decathlon(tmp_path, labels=ORGANS, training=entries, test=[])).partly_annotated
    # the ignore label is no class
    declared = {"labels": ORGANS, "ignore_label": 3, "training": _entries([1, 2]), "test": []}
    assert not read_case_list(_decathlon(tmp_path, **declared)).partly_annotated


def test_entries_of_nnunet_keep_what_is_annotated(tmp_path: Path) -> None:
    listed = {
        "a": {"images": ["i/a_0000.nii"], "label": "l/a.nii", "annotated": [1]},
        "b": {"images": ["i/b_0000.nii"], "label": "l/b.nii"},
    }
    _touch(tmp_path, "i/a_0000.nii", "i/b_0000.nii")
    names = {"background": 0, "liver": 1, "kidney": 2}
    assert _annotated(read_case_list(_declare(tmp_path, labels=names, dataset=listed))) == [(1,), None]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (1, r"`annotated`{} to be a list of label values such as \[1, 2\], got 1; correct"),
        (None, r"`annotated`{} to be a list of label values .*, got null"),
        ({"1": "liver"}, r"`annotated`{} to be a list of label values"),
        ([1, "2"], r'`annotated`{} to be a list of label values .*, got \[1, "2"\]'),
        ([True], r"`annotated`{} to be a list of label values .*, got \[true\]"),
        ([1.0], r"`annotated`{} to be a list of label values .*, got \[1\.0\]"),
        ([1, 9], r"declared label values in `annotated`{} \(0 background, 1 liver, 2 kidney\), got 9; correct it, or"),
        ([-1], r"declared label values in `annotated`{} .*, got -1; correct it"),
        ([1, 3], r"declared label values in `annotated`{} .*, got 3, the ignore label; leave it out"),
        ([], r"label values other than 0 in `annotated`{}, got \[\]; leave {leave} out, or list"),
        ([0], r"label values other than 0 in `annotated`{}, got \[0\]; leave {leave} out, or list"),
    ],
)
def test_what_cannot_be_annotated_is_one_sentence(tmp_path: Path, value: Any, match: str) -> None:
    declared: dict[str, Any] = {"labels": ORGANS, "ignore_label": 3, "test": []}
    for key in ("training", "validation"):
        lists = {"training": _entries("")} | {key: [*_entries("", "")[1:], *_entries("", "", value)[2:]]}
        of_entry = match.format(f" of entry 1 of `{key}`", leave="the case")
        with pytest.raises(DatasetError, match=rf"dataset\.json: expected {of_entry}"):
            read_case_list(_decathlon(tmp_path, **declared, **lists))
    with pytest.raises(DatasetError, match=rf"dataset\.json: expected {match.format('', leave='the key')}"):
        read_case_list(_decathlon(tmp_path, **declared, annotated=value))


# ---- JSON that anybody may have written ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"[" * 200_000, r"expected JSON, got one nested too deeply to read; correct the file"),
        (b'{"labels": ' + b'{"a": ' * 200_000, r"expected JSON, got one nested too deeply to read"),
        (b'{"name": "\\ud83d"}', r'expected text of whole characters, got "\\ud83d"; correct it'),
        (b'{"training": [{"image": "a\\u0000.nii"}]}', r'expected text of whole characters, got "a\\u0000\.nii"'),
        (b'{"\\u0000": 1}', r"expected text of whole characters"),
        (
            b'{"labels": ' + b"9" * 5000 + b"}",
            r"valid JSON, got an error \(a number of 5000 digits, 9999999999\.\.\.\)",
        ),
        (b'{"labels": {"0": "a", "1": "b", "1": "c"}}', r'the key "1" twice, of which only one would count'),
        (b'{"training": [], "training": []}', r'the key "training" twice'),
        ('{"name": "Größe"}'.encode("latin-1"), r"expected text in UTF-8, got the byte 0xf6 at position 12; save the"),
        (b"", r"expected valid JSON, got an error \(Expecting value"),
        (b'{"labels": NaN}', r"expected an object under `labels`, got NaN"),
        (b'{"labels": {"background": 0, "a": Infinity}}', r'whole numbers in `labels`, got {"a": Infinity}'),
        (b'{"labels": {"0": "background", "' + b"1" * 50 + b'": "a"}}', r"expected whole numbers in `labels`"),
        (b'{"labels": {"0": "background", "9223372036854775808": "a"}}', r"expected whole numbers in `labels`"),
        (b'{"labels": {"0": "background", "1": "a\\nb"}}', r'expected names of printable characters, got "a\\nb"'),
    ],
)
def test_json_that_no_program_can_use_is_one_sentence(tmp_path: Path, content: bytes, match: str) -> None:
    _touch(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii")
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DatasetError, match=match) as caught:
        read_case_list(tmp_path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'dataset.json'}: expected ")
    assert "\n" not in problem
    assert len(problem) < 600


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_in_any_unicode_and_with_numbers_beyond_json_is_read(tmp_path: Path, encoding: str) -> None:
    _touch(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii")
    content = {"name": "Größe", "labels": {"0": "background", "1": "Leber"}, "spacing": [float("nan"), float("inf")]}
    (tmp_path / "dataset.json").write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    found = read_case_list(tmp_path)
    assert (found.name, found.labels) == ("Größe", {0: "background", 1: "Leber"})


def test_a_folder_that_may_not_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii")

    def forbidden(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(DatasetError, match=r"imagesTr: expected a folder that can be read, got an error \(Permission"):
        read_case_list(tmp_path)


def test_a_dataset_json_that_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    _touch(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii")
    where = tmp_path / "dataset.json"
    for make, match in (
        (where.mkdir, r"dataset\.json: expected a JSON file, got a folder; correct or remove it"),
        (lambda: os.mkfifo(where), r"got something else"),
        (lambda: where.symlink_to(tmp_path / "gone"), r"got none; correct"),
    ):
        make()
        with pytest.raises(DatasetError, match=match):
            read_case_list(tmp_path)
        where.rmdir() if where.is_dir() else where.unlink()
    assert len(read_case_list(tmp_path).cases) == 1


_ODD = [
    *(
        None,
        True,
        -1,
        1.5,
        float("nan"),
        2**64,
        10**400,
        "",
        ".",
        "..",
        "a/../b",
        "/dev/null",
        "a" * 5000,
        "a\nb",
        "²",
        "١",
    ),
    *(
        "C:\\x\\y.nii",
        "e\u0301",
        [],
        [[]],
        [[[1]]],
        {},
        {"": ""},
        {"image": []},
        {"image": {"a": 1}, "label": []},
        [1, "a"],
    ),
]
_WHOLE = {
    "name": "x",
    "modality": {"0": "CT"},
    "channel_names": {"0": "CT"},
    "labels": {"0": "background", "1": "a", "2": "b"},
    "regions": {"whole": [1, 2]},
    "original_labels": {"2": 5},
    "numTraining": 2,
    "training": [{**_A, "fold": 0}, {**_B, "fold": 1}],
    "validation": [{"image": "i/c.nii.gz", "label": "l/c.nii.gz"}],
    "test": ["i/d.nii.gz"],
    "testing": [{"image": "i/e.nii.gz"}],
    "dataset": {"a": {"images": ["i/a.nii.gz"], "label": "l/a.nii.gz"}},
}


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, child in children for place in ((*path, key), *_places(child, (*path, key)))]


@pytest.mark.parametrize("place", _places(_WHOLE), ids=lambda place: ".".join(map(str, place)))
def test_odd_values_in_every_place_are_taken_or_one_sentence(tmp_path: Path, place: tuple[Any, ...]) -> None:
    (tmp_path / "imagesTr").mkdir()
    for odd in _ODD:
        content = json.loads(json.dumps(_WHOLE))
        if place[0] == "dataset":
            del content["training"]
        node = content
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = odd
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        problems, found = _problems_and_cases(tmp_path)
        assert all("\n" not in problem and len(problem) < 12_000 for problem in problems)
        if found is not None:
            cases = [case.name for case in (*found.cases, *found.unlabelled)]
            assert all(Path(name).name == name for name in cases)
            assert all(name.isprintable() for name in (*found.labels.values(), *found.channels, *cases))
            assert all(isinstance(value, int) for value in found.labels)


def _problems_and_cases(folder: Path) -> tuple[list[str], CaseList | None]:
    try:
        return [], read_case_list(folder)
    except DatasetError as error:
        return error.problems, None


# ---- lists and files beside those of the training --------------------------------------------------------------------


def _entry(name: str, folder: str = "Tr") -> dict[str, str]:
    return {"image": f"./images{folder}/{name}.nii.gz", "label": f"./labels{folder}/{name}.nii.gz"}


def _parts(folder: Path, num_folds: int | None = None, fold: int = 0) -> tuple[str, str]:
    cases = read_case_list(folder).cases
    training, validation = split_cases(cases, num_folds, fold, seed=0)
    return " ".join(case.name for case in training), " ".join(case.name for case in validation)


def test_the_validation_list_of_amos_validates(tmp_path: Path) -> None:
    lists = {
        "training": [_entry(name) for name in "abcd"],
        "validation": [_entry("v", "Va"), {"image": "./imagesVa/w.nii.gz"}, _entry("u", "Va")],
        "test": [{"image": "./imagesTs/t.nii.gz"}],
    }
    found = read_case_list(_decathlon(tmp_path, **lists, numTraining=4, numValidation=3, numTest=1))
    assert [(case.name, case.validation) for case in found.cases] == [
        *[(name, False) for name in "abcd"],
        ("u", True),
        ("v", True),
    ]
    assert [case.name for case in found.unlabelled] == ["t", "w"]
    assert found.passed_over == ()
    assert count_folds(found.cases, None) == 0
    assert _parts(tmp_path) == ("a b c d", "u v")
    training, validation = _parts(tmp_path, num_folds=2)  # asked for: those set apart are in no fold
    assert sorted(f"{training} {validation}".split()) == ["a", "b", "c", "d"]
    with pytest.raises(DatasetError, match=r"expected fold 0, because the 2 cases set apart to validate do so, got 1"):
        _parts(tmp_path, fold=1)


def test_declared_folds_go_before_a_validation_list(tmp_path: Path) -> None:
    folds = [{**_entry(name), "fold": number % 2} for number, name in enumerate("abcd")]
    _decathlon(tmp_path, training=folds, validation=[_entry("v")], testing=["./imagesTs/t.nii.gz"], test=[])
    assert _parts(tmp_path) == ("b d", "a c")
    assert [case.name for case in read_case_list(tmp_path).unlabelled] == ["t"]  # Auto3DSeg's name of the list


def test_folders_of_validation_cases_are_taken_as_the_list_is(tmp_path: Path) -> None:
    for folder, names in (("Tr", "ab"), ("Va", "v"), ("Ts", "t")):
        _touch(tmp_path, *(f"{kind}{folder}/{name}.nii.gz" for name in names for kind in ("images", "labels")))
    _touch(tmp_path, "imagesVa/w.nii.gz", "labelsTs/x.nii.gz")
    found = read_case_list(tmp_path)
    assert _parts(tmp_path) == ("a b", "v")
    assert [(case.name, case.label is None) for case in found.unlabelled] == [("t", False), ("w", True)]
    assert found.passed_over == (f"{tmp_path / 'labelsTs'}: 1 without an image of the same name (x).",)


def test_what_is_passed_over_is_named_and_counted(tmp_path: Path) -> None:
    _touch(
        tmp_path, "imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "imagesTr/c.mha", "imagesTr/notes.txt", "labelsTr/a.nii.gz"
    )
    entry = {**_entry("a"), "image2": "./imagesTr/a_pet.nii.gz", "comment": "none"}
    _decathlon(tmp_path, training=[entry], test=[], unlabeled=["./imagesU/u.nii.gz"] * 12, numTraining=3, notes=["x"])
    where = tmp_path / "dataset.json"
    assert read_case_list(tmp_path).passed_over == (
        f"{where}: files under `image2` in 1 entries of `training`; channels are read from one list, "
        '{"image": [FILE, FILE]}.',
        f"{tmp_path / 'imagesTr'}: 2 files that dataset.json does not list (b.nii.gz, c.mha).",
        f"{where}: 12 entries of `unlabeled`; list them under `training`, `validation` or `test`.",
        f"{where}: `numTraining` says 3 cases, 1 is there.",
    )


def test_a_list_of_another_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_0.json").write_text(json.dumps({"training": [_A], "validation": [_B]}))
    (tmp_path / "plans.json").write_text("{")
    with pytest.raises(
        DatasetError, match=r"got neither; dataset_0\.json lists cases; rename the one to use to dataset"
    ):
        read_case_list(tmp_path)
    _touch(tmp_path, "imagesTr/a.nii", "labelsTr/a.nii")
    assert read_case_list(tmp_path).passed_over == (
        f"{tmp_path / 'dataset_0.json'}: its list of cases, because its name is not dataset.json.",
    )


def test_files_of_other_formats_beside_the_pairs_are_named(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        *(f"{folder}/{name}" for folder in ("imagesTr", "labelsTr") for name in ("a.nii", "B.NII.GZ", "c.nrrd")),
    )
    (tmp_path / "imagesTr" / "series").mkdir()
    found = read_case_list(tmp_path)
    assert [case.name for case in found.cases] == ["B", "a"]  # upper case is one format
    images, labels = found.passed_over
    assert images == (
        f"{tmp_path / 'imagesTr'}: 2 that are no files .nii.gz or .nii (c.nrrd, series); "
        "`monai-extra-losses prepare` makes NIfTI of volumes."
    )
    assert "labelsTr: 1 that are no files .nii.gz or .nii (c.nrrd)" in labels


def test_numbered_names_of_the_test_are_cases_where_those_of_the_training_are(tmp_path: Path) -> None:
    for folder, numbers in (("Tr", (1, 4)), ("Ts", (90, 91))):
        _touch(tmp_path, *(f"images{folder}/amos_{number:04d}.nii.gz" for number in numbers))
    _touch(tmp_path, "labelsTr/amos_0001.nii.gz", "labelsTr/amos_0004.nii.gz", "labelsTs/q.nii.gz")
    _touch(tmp_path, "imagesTs/q_0000.nii.gz")  # a channel, as its label says
    found = read_case_list(tmp_path)
    assert [case.name for case in found.cases] == ["amos_0001", "amos_0004"]
    assert [(case.name, len(case.image)) for case in found.unlabelled] == [("amos_0090", 1), ("amos_0091", 1), ("q", 1)]


def test_names_that_differ_by_the_form_of_unicode_are_one_name(tmp_path: Path) -> None:
    composed, decomposed = "M\u00fcller", "Mu\u0308ller"
    _touch(tmp_path, f"imagesTr/{composed}.nii.gz", f"labelsTr/{decomposed}.nii.gz")
    (case,) = read_case_list(tmp_path).cases
    assert case.name == composed
    assert case.label is not None
    assert case.label.exists()
    _decathlon(tmp_path, training=[_entry(decomposed)], test=[])
    assert read_case_list(tmp_path).cases == (case,)


def test_files_listed_of_other_formats_lead_to_prepare(tmp_path: Path) -> None:
    entry = {"image": "i/a.nrrd", "label": "l/a.seg.nrrd"}
    with pytest.raises(
        DatasetError, match=r"got 2 of other formats \(a\.nrrd, a\.seg\.nrrd\); make a data set of them by: "
    ):
        read_case_list(_decathlon(tmp_path, training=[entry], test=[]))
    _touch(tmp_path, "n/imagesTr/a_0000.nrrd", "n/labelsTr/a.nrrd")
    _declare(tmp_path / "n", labels={"background": 0, "liver": 1}, channel_names={"0": "CT"}, file_ending=".nrrd")
    with pytest.raises(DatasetError, match=r"expected \.nii\.gz or \.nii as `file_ending`, got \.nrrd;") as caught:
        read_case_list(tmp_path / "n")
    data = tmp_path / "n"
    assert str(caught.value).endswith(f"monai-extra-losses prepare {data} --out {data}_prepared")


def test_no_pair_among_many_files_is_one_sentence(tmp_path: Path) -> None:
    _touch(tmp_path, *(f"imagesTr/{n}.nii.gz" for n in "abcde"), *(f"labelsTr/{n}_seg.nii.gz" for n in "abcde"))
    with pytest.raises(
        DatasetError, match=r"got a, b, c and 2 more in imagesTr/ and a_seg, .* make a data set"
    ) as caught:
        read_case_list(tmp_path)
    assert len(caught.value.problems) == 1


def test_cases_in_folders_of_their_own_have_the_folders_names(tmp_path: Path) -> None:
    entries = [{"image": f"case_{n}/imaging.nii.gz", "label": f"case_{n}/segmentation.nii.gz"} for n in range(3)]
    found = read_case_list(_decathlon(tmp_path, training=entries[:2], test=entries[2:]))
    assert [case.name for case in (*found.cases, *found.unlabelled)] == ["case_0", "case_1", "case_2"]


def test_cases_that_nnunet_lists_elsewhere(tmp_path: Path) -> None:
    listed = {
        name: {"images": [f"{name}/t1.nii.gz", f"{name}/t2.nii.gz"], "label": f"{name}/seg.nii.gz"} for name in "pq"
    }
    content = {"labels": {"background": 0, "a": 1}, "channel_names": {"0": "T1", "1": "T2"}, "dataset": listed}
    found = read_case_list(_declare(tmp_path, **content))
    assert [(case.name, len(case.image), case.label) for case in found.cases] == [
        (name, 2, tmp_path / name / "seg.nii.gz") for name in "pq"
    ]
    listed["../evil"] = listed["p"]
    with pytest.raises(DatasetError, match=r"a name of a case that a file can have, got \"\.\./evil\""):
        read_case_list(_declare(tmp_path, **{**content, "dataset": {"../evil": listed["p"]}}))


def test_the_list_of_nnunet_1_names_channel_files_without_their_number(tmp_path: Path) -> None:
    _touch(tmp_path, *(f"imagesTr/a_000{channel}.nii.gz" for channel in range(2)), "labelsTr/a.nii.gz")
    (case,) = read_case_list(_decathlon(tmp_path, training=[_entry("a")], test=[])).cases
    assert (case.name, [file.name for file in case.image]) == ("a", ["a_0000.nii.gz", "a_0001.nii.gz"])


def test_regions_of_nnunet_are_read(tmp_path: Path) -> None:
    _touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    found = read_case_list(_declare(tmp_path, labels=labels, channel_names={"0": "T1"}, regions_class_order=[1, 2, 3]))
    assert found.labels == {0: "background", 1: "label_1", 2: "label_2", 3: "enhancing"}
    assert found.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert declares_regions(tmp_path)
    plain = {"background": 0, "a": [1], "b": 2}
    assert read_case_list(_declare(tmp_path, labels=plain, channel_names={"0": "T1"})).regions is None


def test_suffixes_are_those_of_the_readers() -> None:
    assert (NIFTI_SUFFIXES, NIFTI_SUFFIXES + OTHER_SUFFIXES) == (nifti.NIFTI_SUFFIXES, volumes.VOLUME_SUFFIXES)


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


def test_the_cases_of_each_source_are_dealt_to_folds_of_even_sizes() -> None:
    sources = {f"{source}{i}": source for source, count in {"a": 7, "b": 2, "c": 11}.items() for i in range(count)}
    alone = {name: name for name in sources}
    dealt = deal_folds(alone, 5, seed=1, sources=sources)
    sizes = {of: [sum(dealt[n] == fold for n, s in sources.items() if s == of) for fold in range(5)] for of in "abc"}
    assert sorted(map(sum, zip(*sizes.values(), strict=True))) == [4, 4, 4, 4, 4]
    for source, (low, high) in {"a": (1, 2), "b": (0, 1), "c": (2, 3)}.items():
        assert (min(sizes[source]), max(sizes[source])) == (low, high)
    assert deal_folds(dict(reversed(alone.items())), 5, seed=1, sources=sources) == dealt
    one = dict.fromkeys(alone, "one")
    assert deal_folds(alone, 5, seed=1, sources=one) == deal_folds(alone, 5, seed=1)
    together = deal_folds({**alone, "a0": "x", "c5": "x"}, 5, seed=1, sources=sources)
    assert together["a0"] == together["c5"]


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
