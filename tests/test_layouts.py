"""Data sets laid out otherwise than imagesTr/ and labelsTr/: the refusal leads out, and patterns find the files."""

import shlex
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from volume_files import block_label, random_image, volume, write

from monai_extra_losses.cli import main
from monai_extra_losses.data import DatasetError, PrepareOptions, check_cases, prepare_dataset, read_case_list
from monai_extra_losses.data.layouts import find_files, patterns_of


def brats(folder: Path) -> None:
    for number in range(3):
        name = f"BraTS-GLI-{number:05d}-000"
        for seed, kind in enumerate(("t1c", "t1n", "t2f", "t2w")):
            write(volume(random_image(10 * number + seed)), folder / name / f"{name}-{kind}.nii.gz")
        write(volume(block_label(ids=(1, 2, 3))), folder / name / f"{name}-seg.nii.gz")


def kits(folder: Path) -> None:
    for number in range(3):
        name = f"case_{number:05d}"
        write(volume(random_image(number)), folder / "data" / name / "imaging.nii.gz")
        write(volume(block_label(ids=(1, 2))), folder / "data" / name / "segmentation.nii.gz")
        write(volume(block_label()), folder / "data" / name / "instances" / "kidney_1.nii.gz")
    (folder / "README.md").touch()


def totalsegmentator(folder: Path) -> None:
    for number in range(3):
        case = folder / f"s{number:04d}"
        write(volume(random_image(number)), case / "ct.nii.gz")
        for name, value in (("spleen", 2), ("liver", 1)):
            mask = (block_label(ids=(1, 2)) == value).astype(np.uint8)
            write(volume(mask), case / "segmentations" / f"{name}.nii.gz")


@pytest.mark.parametrize(
    ("make", "channels", "labels", "highest"),
    [
        (brats, ["t1c", "t1n", "t2f", "t2w"], ["background", "label_1", "label_2", "label_3"], 3),
        (kits, ["channel_0"], ["background", "label_1", "label_2"], 2),
        (totalsegmentator, ["channel_0"], ["background", "liver", "spleen"], 2),
    ],
)
def test_the_call_that_the_refusal_names_makes_a_data_set(
    tmp_path: Path, make: Callable[[Path], None], channels: list[str], labels: list[str], highest: int
) -> None:
    make(tmp_path / "in")
    with pytest.raises(
        DatasetError, match=r"got neither; .* holds a folder per case \(.*, of which this makes"
    ) as caught:
        read_case_list(tmp_path / "in")
    command = str(caught.value).partition("makes a data set: ")[2]
    with pytest.raises(DatasetError, match=r"got \d images and 0 labels; .* holds a folder per case") as again:
        prepare_dataset(PrepareOptions(tmp_path / "in", tmp_path / "in"), tmp_path / "x")
    assert str(again.value).endswith(command)
    program, *words = shlex.split(command)
    assert program == "monai-extra-losses"
    with pytest.raises(SystemExit) as ended:
        main([*words, "--folds", "3"])
    assert ended.value.code == 0
    prepared = read_case_list(words[words.index("--out") + 1])
    summaries = check_cases(prepared, progress=False)
    assert (list(prepared.channels), list(prepared.labels.values())) == (channels, labels)
    assert len(prepared.cases) == 3
    case = prepared.cases[0]
    assert case.label is not None
    assert np.asanyarray(nibabel.load(case.label).dataobj).max() == highest
    for seed, file in enumerate(case.image):
        assert np.array_equal(nibabel.load(file).dataobj, random_image(seed))
    assert summaries.cases[0].voxels[1] == 6


def test_a_folder_per_case_without_a_label_s_name_is_recognised(tmp_path: Path) -> None:
    for case in "abc":
        (tmp_path / case).mkdir()
        for name in ("t1.nii.gz", "t2.mha", "._t1.nii.gz"):
            (tmp_path / case / name).touch()
    with pytest.raises(
        DatasetError, match=r"a/ with t1\.nii\.gz, t2\.mha\); name image and label by patterns: "
    ) as caught:
        read_case_list(tmp_path)
    assert f"--images '{tmp_path}/{{case}}/t1.nii.gz' --labels '{tmp_path}/{{case}}/LABEL'" in str(caught.value)


def test_a_folder_that_is_no_data_set_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(DatasetError, match=r"got neither; is this the data set's own folder\?"):
        read_case_list(tmp_path)


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "x1/x1[a]-t1.nii",
        "x2/x2[a]-t1.nii",
        "x2/x3[a]-t1.nii",
        "x4/x4-t1.nii",
        ".h/.h[a]-t1.nii",
        "x5/y/x5[a]-t1.nii",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        return [f"{file.case}:{file.path.name}" for file in find_files(pattern)]

    assert found(f"{tmp_path}/{{case}}/{{case}}[a]-t1.nii") == ["x1:x1[a]-t1.nii", "x2:x2[a]-t1.nii"]
    assert found(f"{tmp_path}/*/{{case}}[a]-t?.nii") == ["x1:x1[a]-t1.nii", "x2:x2[a]-t1.nii", "x3:x3[a]-t1.nii"]
    assert found(f"{tmp_path}/x{{case}}/*-t1.nii")[-1] == "4:x4-t1.nii"
    monkeypatch.chdir(tmp_path)
    assert patterns_of("{case}/a.nii, {case}/b.nii") == (f"{tmp_path}/{{case}}/a.nii", f"{tmp_path}/{{case}}/b.nii")
    assert patterns_of("folder, and another") == ()
    (tmp_path / "{case}").mkdir()
    assert patterns_of("{case}") == ()  # a folder of that name


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (
            "{case}/i.nii",
            "",
            r"expected patterns with {case} for the images, .* and one for the labels, got 1 and 0; give",
        ),
        ("", "{case}/l.nii", r"got 0 and 1; give both as patterns, or both as folders"),
        ("{case}/i.nii", "{case}/l.nii,{case}/i.nii", r"got 1 and 2"),
        ("{case}/i.nii", "{case}/x.nii", r"x\.nii: expected files by this pattern, got none"),
        ("{case}/x.nii", "{case}/l.nii", r"x\.nii: expected files by this pattern, got none"),
        ("{case}/i.nii,b/j.nii", "{case}/l.nii", r"expected {case} in each pattern, .*, got '.*b/j\.nii' among"),
        ("{case}/i.nii,{case}/j.nii", "{case}/l.nii", r"b: expected a file for .*/j\.nii, got none; add it"),
        ("{case}/i.nii", "{case}/[lk].nii", r"expected files by this pattern, got none"),
        (
            "{case}/?.nii",
            "{case}/l.nii",
            r"a: expected one file for .*/\?\.nii, got .*i\.nii, .*j\.nii, .*m\.nii; keep one",
        ),
        ("{case}/j.nii", "{case}/l.nii", r"c/l\.nii: expected an image by .*/j\.nii, got none"),
        ("{case}/i.nii", "{case}/m.nii", r"b/i\.nii: expected a label by .*/m\.nii, got none"),
        ("{case}/i.nii", "{case}/*/l.nii", r"a: expected one label, got .*/s/l\.nii, .*/t/l\.nii; keep one"),
    ],
)
def test_patterns_that_do_not_pair_are_one_sentence(tmp_path: Path, images: str, labels: str, match: str) -> None:
    names = ("a/i", "a/j", "a/l", "a/m", "a/s/l", "a/t/l", "b/i", "b/l", "c/i", "c/l")
    touch(tmp_path / "in", *(f"{name}.nii" for name in names))

    def patterns(text: str) -> Path:
        return Path(",".join(f"{tmp_path}/in/{part}" for part in text.split(",")))

    with pytest.raises(DatasetError, match=match):
        prepare_dataset(PrepareOptions(patterns(images), patterns(labels)), tmp_path / "out", num_workers=1)


def test_never_into_files_that_patterns_find(tmp_path: Path) -> None:
    kits(tmp_path)
    images, labels = (tmp_path / "data" / "{case}" / name for name in ("imaging.nii.gz", "segmentation.nii.gz"))
    for out in (tmp_path, tmp_path / "data", tmp_path / "data" / "case_00000"):
        with pytest.raises(DatasetError, match=r"apart from its sources, got .*, which would write into"):
            prepare_dataset(PrepareOptions(images, labels), out)
    prepared = prepare_dataset(PrepareOptions(images, labels, num_folds=0), tmp_path / "out", num_workers=1)
    assert [case.name for case in prepared.cases] == ["case_00000", "case_00001", "case_00002"]
