from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from monai_extra_losses.data import DatasetError, check_cases, read_case_list, write_phantom


def _volumes(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    image, label = (nib.load(folder / part / f"{name}.nii.gz") for part in ("imagesTr", "labelsTr"))
    return np.asarray(image.dataobj), np.asarray(label.dataobj)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("full") / "new", num_cases=10, num_test=1)


def test_folder_passes_its_own_check(full_size: Path) -> None:
    case_list = read_case_list(full_size)
    summaries = check_cases(case_list, progress=False)
    assert (len(summaries.cases), len(summaries.unlabelled)) == (10, 1)
    assert case_list.unlabelled[0].label is not None
    assert {(case.shape, case.spacing) for case in summaries.cases} == {((64, 64, 24), (1.0, 1.0, 3.0))}


def test_organ_is_large_and_lesions_are_small_or_absent(full_size: Path) -> None:
    without = []
    for case in check_cases(read_case_list(full_size), progress=False).cases:
        total = sum(case.voxels.values())
        assert 0.04 < case.voxels[1] / total < 0.2
        if 2 in case.voxels:
            assert 0.001 <= case.voxels[2] / total <= 0.02
        else:
            without.append(case.name)
    assert without == ["phantom_004", "phantom_009"]


def test_lesions_lie_inside_the_organ(full_size: Path) -> None:
    for number in (0, 1, 2, 3):
        label = _volumes(full_size, f"phantom_{number:03d}")[1]
        lesion = label == 2
        for axis in range(3):
            for shift in (-1, 1):
                assert (np.roll(label, shift, axis)[lesion] > 0).all()


def test_brightness_alone_does_not_find_lesions(full_size: Path) -> None:
    dices = []
    for number in (0, 1, 2, 3, 5, 6, 7, 8):
        image, label = _volumes(full_size, f"phantom_{number:03d}")
        lesion = label == 2
        assert image[lesion].mean() > image[label == 1].mean() > image[label == 0].mean()
        bright = image > np.quantile(image, 1 - lesion.mean())  # the best guess: as many voxels as the lesions have
        dices.append(2 * (lesion & bright).sum() / (lesion.sum() + bright.sum()))
    assert np.mean(dices) < 0.6


def test_cases_differ_in_scale_and_origin(full_size: Path) -> None:
    affines = [nib.load(path).affine for path in sorted((full_size / "imagesTr").iterdir())]
    assert len({tuple(affine[:3, 3]) for affine in affines}) == len(affines)
    brightest = [case.intensity[0].max for case in check_cases(read_case_list(full_size), progress=False).cases]
    assert max(brightest) > 1.5 * min(brightest)


def test_same_seed_writes_the_same_bytes_and_more_cases_begin_with_the_same(tmp_path: Path) -> None:
    size: dict[str, Any] = {"shape": (24, 24, 12), "num_test": 1}
    three = _contents(write_phantom(tmp_path / "a", num_cases=3, **size))
    assert _contents(write_phantom(tmp_path / "b", num_cases=3, **size)) == three
    four = _contents(write_phantom(tmp_path / "c", num_cases=4, **size))
    assert {name: four[name] for name in three if name != "dataset.json"}.items() <= three.items()
    other = _contents(write_phantom(tmp_path / "d", num_cases=3, seed=1, **size))
    assert all(other[name] != three[name] for name in three if name != "dataset.json")


def _occupy(folder: Path) -> None:
    folder.mkdir()
    (folder / "precious").touch()


@pytest.mark.parametrize(
    ("prepare", "match"),
    [
        (_occupy, r"data: expected a new or empty folder for the phantom"),
        (lambda folder: folder.touch(), r"data: expected a new or empty folder for the phantom"),
        (lambda folder: folder.parent.joinpath("x").touch(), None),
    ],
)
def test_nothing_is_overwritten(tmp_path: Path, prepare: Callable[[Path], object], match: str | None) -> None:
    folder = tmp_path / "data"
    prepare(folder)
    before = _contents(tmp_path)
    if match is None:
        with pytest.raises(DatasetError, match="expected a folder that can be written"):
            write_phantom(tmp_path / "x" / "data")
    else:
        with pytest.raises(DatasetError, match=match):
            write_phantom(folder)
    assert _contents(tmp_path) == before


@pytest.mark.parametrize(
    ("shape", "spacing"), [((16, 16, 8), (1, 1, 3)), ((64, 64, 8), (1, 1, 1)), ((24, 40, 32), (2, 1, 0.5))]
)
def test_other_shapes_hold_an_organ_with_lesions_too(
    tmp_path: Path, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    folder = write_phantom(tmp_path / "data", num_cases=4, num_test=0, shape=shape, spacing=spacing)
    for case in check_cases(read_case_list(folder), progress=False).cases:
        assert (case.shape, case.spacing) == (shape, spacing)
        assert 0.04 < case.voxels[1] / np.prod(shape) < 0.25
        assert 0.001 <= case.voxels[2] / np.prod(shape) <= 0.02


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_cases": 0}, r"num_cases of at least 1 .* got 0 and 2"),
        ({"shape": (64, 64)}, r"expected a shape of three sizes .* got \(64, 64\)"),
        ({"shape": (64, 64, 4)}, r"at least 16, 16, 8, got \(64, 64, 4\)"),
        ({"spacing": (1, 0, 1)}, r"three positive millimetres, got \(1, 0, 1\)"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        write_phantom(tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()


def test_a_stopped_call_leaves_nothing_that_the_next_one_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = nib.save, 0

    def stopped(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(nib, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_phantom(tmp_path / "new", num_cases=2)
    write_phantom(tmp_path / "new", num_cases=2)
