from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from skimage import measure

from monai_extra_losses.data import DatasetError, check_cases, read_case_list, write_phantom
from monai_extra_losses.data.phantom_vessels import Branch, draw_vessels, grow_trees, render
from monai_extra_losses.data.topology import betti_numbers, euler_number


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


# --- vessels ---


def _pieces_and_loops(mask: np.ndarray) -> tuple[int, int]:
    pieces = measure.label(mask, connectivity=3, return_num=True)[1]
    cavities = measure.label(np.pad(~mask, 1, constant_values=True), connectivity=1, return_num=True)[1] - 1
    return pieces, pieces + cavities - measure.euler_number(mask, connectivity=3)


@pytest.fixture(scope="module")
def vessels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("vessels") / "new", kind="vessels", num_cases=4, num_test=1)


def test_an_artery_and_a_vein_are_one_piece_without_a_loop_and_touch(vessels: Path) -> None:
    case_list = read_case_list(vessels)
    assert case_list.labels == {0: "background", 1: "artery", 2: "vein"}
    summaries = check_cases(case_list, progress=False)
    assert {(case.shape, case.spacing) for case in summaries.cases} == {((64, 64, 64), (1.0, 1.0, 1.0))}
    for case in case_list.cases:
        _, label = _volumes(vessels, case.name)
        for value in (1, 2):
            assert _pieces_and_loops(label == value) == (1, 0)
            assert 0.002 < (label == value).mean() < 0.03
        assert (ndimage.binary_dilation(label == 1) & (label == 2)).any()


def test_vessels_have_slices_as_thick_as_asked_for(tmp_path: Path) -> None:
    folder = write_phantom(
        tmp_path / "data", kind="vessels", num_cases=1, num_test=0, shape=(48, 48, 16), spacing=(1, 1, 3)
    )
    _, label = _volumes(folder, "phantom_000")
    assert label.shape == (48, 48, 16)
    assert [_pieces_and_loops(label == value) for value in (1, 2)] == [(1, 0)] * 2


def test_vessels_are_those_of_the_seed(vessels: Path, tmp_path: Path) -> None:
    again = _contents(write_phantom(tmp_path / "again", kind="vessels", num_cases=1, num_test=0))
    other = _contents(write_phantom(tmp_path / "other", kind="vessels", num_cases=1, num_test=0, seed=1))
    del again["dataset.json"]
    whole = _contents(vessels)
    assert {name: whole[name] for name in again} == again
    assert not set(other.values()) & set(again.values())


def test_radii_fall_by_the_law_of_murray() -> None:
    trees = _trees(0)
    assert len(trees) == 2
    for tree in trees:
        assert tree[0].parent is None
        of_parent: dict[int, list[Branch]] = {}
        for branch in tree[1:]:
            of_parent.setdefault(branch.parent, []).append(branch)
        assert len(of_parent) >= 3
        for number, daughters in of_parent.items():
            parent = tree[number]
            assert len(daughters) == 2
            for daughter in daughters:
                np.testing.assert_array_equal(daughter.points[0], parent.points[-1])
                assert daughter.radius < parent.radius
            assert sum(daughter.radius**3 for daughter in daughters) == pytest.approx(parent.radius**3)


def test_the_label_is_as_thick_as_the_branches() -> None:
    trees = _trees(0)
    label, _ = render(trees, (64, 64, 64), np.ones(3))
    for value, tree in enumerate(trees, start=1):
        depth = ndimage.distance_transform_edt(label == value)
        for branch in tree:
            middle = branch.points[len(branch.points) // 2]
            around = tuple(slice(c - 1, c + 2) for c in np.round(middle + 31.5).astype(int))
            assert abs(depth[around].max() - branch.radius) < 1


def test_gaps_are_in_the_image_and_not_in_the_label() -> None:
    trees, shape = _trees(0), (64, 64, 64)
    image, label = draw_vessels(np.random.default_rng([0]), shape, np.ones(3), 0)
    drawn, filled = render(trees, shape, np.ones(3))
    np.testing.assert_array_equal(label, drawn)
    tissue = np.median(image[ndimage.binary_dilation(label > 0, iterations=4) & (label == 0)])
    for value, tree in enumerate(trees, start=1):
        assert (tree[0].contrast == 1).all()
        lost, seen = (
            np.concatenate([branch.points[(branch.contrast < 0.2) == gap] for branch in tree]) for gap in (True, False)
        )
        at_gap, elsewhere = (tuple(np.floor(points[points[:, 2] > -31] + 32).astype(int).T) for points in (lost, seen))
        assert len(lost)
        assert (label[at_gap] == value).mean() > 0.9
        assert np.median(filled[value - 1][at_gap]) < 0.12
        assert np.median(filled[value - 1][elsewhere]) == 1
        contrast = image[elsewhere].mean() - tissue
        assert image[at_gap].mean() - tissue < 0.5 * contrast
        assert contrast > 0.15 * tissue


def _trees(seed: int) -> tuple[list[Branch], list[Branch]]:
    trees = grow_trees(np.random.default_rng([seed]), np.full(3, 64.0), np.ones(3))
    assert trees is not None
    return trees


def test_a_kind_that_is_none_and_a_volume_without_room_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a kind of 'organ' or 'vessels', got 'bones'"):
        write_phantom(tmp_path / "data", kind="bones")
    with pytest.raises(ValueError, match=r"at least 32, 32, 16, got \(16, 32, 16\)"):
        write_phantom(tmp_path / "data", kind="vessels", shape=(16, 32, 16))
    with pytest.raises(ValueError, match=r"expected a volume with room for an artery and a vein, got \(32, 32, 16\)"):
        write_phantom(tmp_path / "data", kind="vessels", shape=(32, 32, 16))
    assert not any((tmp_path / "data").rglob("*.nii.gz"))


# --- their topology ---


def _ring() -> np.ndarray:
    mask = np.zeros((7, 7, 3), dtype=bool)
    mask[1:6, 1:6, 1] = True
    mask[2:5, 2:5, 1] = False
    return mask


def _hollow_ball() -> np.ndarray:
    radius = np.sqrt(sum((axis - 5) ** 2 for axis in np.indices((11, 11, 11))))
    return (radius < 4.5) & (radius > 2)


def _two_tubes() -> np.ndarray:
    mask = np.zeros((9, 9, 12), dtype=bool)
    mask[1:3, 1:3] = mask[6:8, 6:8] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (np.zeros((4, 4, 4), dtype=bool), (0, 0)),
        (np.ones((4, 4, 4), dtype=bool), (1, 0)),
        (_ring(), (1, 1)),
        (_two_tubes(), (2, 0)),
        (_hollow_ball(), (1, 0)),
        (_ring()[..., 1], (1, 1)),
        (np.eye(4, dtype=bool), (1, 0)),
        (np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=bool), (1, 1)),
    ],
    ids=["nothing", "all", "ring", "two tubes", "hollow ball", "flat ring", "corners", "ring of corners"],
)
def test_betti_numbers_of_shapes(mask: np.ndarray, expected: tuple[int, int]) -> None:
    assert betti_numbers(mask) == expected


@pytest.mark.parametrize("shape", [(12, 13), (9, 8, 7)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_euler_number_is_that_of_scikit_image(shape: tuple[int, ...], share: float) -> None:
    for seed in range(5):
        mask = np.random.default_rng(seed).random(shape) < share
        assert euler_number(mask) == measure.euler_number(mask, connectivity=len(shape))
        loops = betti_numbers(mask)[1]
        if len(shape) == 2:  # by duality: the pieces of the background that touch no border
            assert loops == ndimage.label(~np.pad(mask, 1))[1] - 1
        else:
            assert betti_numbers(mask) == _pieces_and_loops(mask)
