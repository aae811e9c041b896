"""The transform that measures a label's distances: its numbers, and what MONAI's transforms and caches do with them."""

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor, PersistentDataset, pickle_hashing
from monai.transforms import (
    Compose,
    Flip,
    Orientationd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandRotate90d,
    RandSpatialCropd,
    RandZoomd,
    SpatialCrop,
    SpatialPadd,
)
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from monai_extra_losses.transforms import SignedDistance, SignedDistanceD, SignedDistanced, SignedDistanceDict

SPACING = (0.7, 1.3, 3.0)
HALF = 2.0**-11  # relative rounding of float16
KEYS = ["label", "distance"]


def scipy_signed_distance(regions: np.ndarray, spacing: Sequence[float] | None) -> np.ndarray:
    """(C, *spatial) bool -> the definition in the docstring."""
    maps = np.zeros(regions.shape)
    for distance, inside in zip(maps, regions, strict=True):
        if inside.any() and not inside.all():
            outwards = distance_transform_edt(~inside, sampling=spacing)
            distance[:] = outwards - distance_transform_edt(inside, sampling=spacing)
    return maps


def labels(shape: Sequence[int] = (20, 24, 10), dtype: torch.dtype = torch.float32) -> Tensor:
    """(1, *shape): class 1 an ellipsoid off the centre, class 2 a box in it; class 3 is left to the test."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in shape), indexing="ij")
    label = torch.zeros(1, *shape)
    label[0, sum((axis - 0.1) ** 2 for axis in axes) < 0.5] = 1
    label[(0, *(slice(side // 2, side // 2 + 3) for side in shape))] = 2
    return label.to(dtype)


def in_mm(label: Tensor, spacing: Sequence[float] = SPACING, turn: np.ndarray | None = None) -> MetaTensor:
    """The label with the affine of that spacing, turned when wanted."""
    affine = np.diag([*spacing, *[1.0] * (4 - len(spacing))])
    return MetaTensor(label, affine=torch.from_numpy(affine if turn is None else turn @ affine))


def one_hot(label: Tensor, num_classes: int) -> np.ndarray:
    return np.stack([label[0].numpy() == c for c in range(num_classes)])


@pytest.fixture
def item() -> dict[str, Any]:
    label = in_mm(labels())
    transform = SignedDistanced(keys="label", distance_keys="distance", num_classes=3, dtype=torch.float32)
    return transform({"label": label})


# ---- numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "spacing"), [((31,), (0.6,)), ((18, 15), (0.7, 2.0)), ((20, 24, 10), SPACING)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_the_map_is_that_of_scipy_in_mm(shape: tuple[int, ...], spacing: tuple[float, ...], dtype: torch.dtype) -> None:
    label = labels(shape, dtype)
    expected = scipy_signed_distance(one_hot(label, 4), spacing)
    assert (expected[3] == 0).all()  # class 3 is absent
    assert all((distance > 0).any() and (distance < 0).any() for distance in expected[:3])
    for given in (in_mm(label, spacing), label):
        transform = SignedDistance(4, "auto" if isinstance(given, MetaTensor) else spacing, dtype=torch.float32)
        np.testing.assert_allclose(transform(given).numpy(), expected, rtol=1e-6)


def test_the_spacing_is_that_of_the_voxels_whatever_way_they_lie() -> None:
    angle = 0.4
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn = turn @ np.diag([-1.0, 1.0, 1.0, 1.0])
    label = labels()
    straight, oblique = (SignedDistance(3)(in_mm(label, turn=matrix)) for matrix in (None, turn))
    torch.testing.assert_close(oblique.as_tensor(), straight.as_tensor(), rtol=2 * HALF, atol=0)


def test_without_an_affine_or_with_none_it_measures_in_voxels() -> None:
    label = labels()
    expected = scipy_signed_distance(one_hot(label, 3), None)
    for transform, given in [
        (SignedDistance(3, dtype=torch.float32), label),
        (SignedDistance(3, None, dtype=torch.float32), in_mm(label)),
    ]:
        np.testing.assert_allclose(transform(given).numpy(), expected, rtol=1e-6)


def test_half_precision_errs_by_a_two_thousandth() -> None:
    label = in_mm(labels())
    exact = SignedDistance(3, dtype=torch.float32)(label).as_tensor()
    half = SignedDistance(3)(label)
    assert half.dtype == torch.float16
    error = ((half.as_tensor().float() - exact).abs() / exact.abs().clamp_min(1e-9)).max()
    assert 0 < error <= HALF


def test_distances_are_clipped_at_the_limit_and_at_what_the_dtype_holds() -> None:
    label = in_mm(labels())
    exact = SignedDistance(3, dtype=torch.float32)(label).as_tensor()
    clipped = SignedDistance(3, max_distance=2.5, dtype=torch.float32)(label).as_tensor()
    assert exact.max() > 2.5
    assert exact.min() < -2.5
    torch.testing.assert_close(clipped, exact.clip(-2.5, 2.5), rtol=0, atol=0)
    metres = SignedDistance(2, spacing=[30000.0])(torch.tensor([[0, 0, 0, 0, 1]]))
    assert metres[1].tolist() == [65504.0, 65504.0, 60000.0, 30000.0, -30000.0]


def test_regions_may_overlap() -> None:
    label = labels()
    regions = torch.cat([label > 0, label > 1, torch.zeros_like(label, dtype=torch.bool)])
    expected = scipy_signed_distance(regions.numpy(), SPACING)
    for given in (regions, regions * 0.6):
        result = SignedDistance(3, dtype=torch.float32)(in_mm(given))
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)


def test_one_channel_is_a_region() -> None:
    region = torch.tensor([[0.0, 0.4, 1.0, 1.0]])
    assert SignedDistance(1)(region).tolist() == [[2, 1, -1, -2]]


@pytest.mark.parametrize("ignored", [255, -1, 1])
def test_an_ignored_voxel_belongs_to_no_class(ignored: int) -> None:
    label = labels()
    label[:, 3:9, 8:14] = ignored
    classes = np.stack([(label[0].numpy() == c) & (c != ignored) for c in range(3)])
    expected = scipy_signed_distance(classes, SPACING)
    assert (expected[1] == 0).all() == (ignored == 1)
    result = SignedDistance(3, ignore_index=ignored, dtype=torch.float32)(in_mm(label))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)


def test_a_class_to_ignore_takes_its_voxels_from_the_other_regions() -> None:
    regions = torch.zeros(2, 12)
    regions[0, 2:9] = 1
    regions[1, 6:8] = 1
    expected = scipy_signed_distance(np.stack([(regions[0] * (1 - regions[1])).numpy() > 0, np.zeros(12) > 0]), None)
    np.testing.assert_allclose(SignedDistance(2, ignore_index=1)(regions).numpy(), expected)
    bytes_ = torch.tensor([[0, 1, 1, 0]], dtype=torch.uint8)
    plain = SignedDistance(2)(bytes_)
    for ignored in (-1, 257):  # no byte has these values
        assert torch.equal(SignedDistance(2, ignore_index=ignored)(bytes_), plain)
    sentinel = SignedDistance(2, ignore_index=255)(regions)  # has no channel
    np.testing.assert_allclose(sentinel.numpy(), scipy_signed_distance(regions.numpy() > 0, None))


def test_an_ignored_value_of_one_channel_is_no_region() -> None:
    region = torch.tensor([[0.0, 255.0, 1.0, 1.0]])
    assert SignedDistance(1, ignore_index=255)(region).tolist() == [[2, 1, -1, -2]]


# ---- in a chain of MONAI's transforms ------------------------------------------------


def test_the_map_keeps_the_grid_and_the_history_of_the_label() -> None:
    label = Flip(spatial_axis=0)(in_mm(labels()))
    distance = SignedDistance(3)(label)
    assert isinstance(distance, MetaTensor)
    torch.testing.assert_close(distance.affine, label.affine)
    assert distance.applied_operations == label.applied_operations != []
    assert distance.shape == (3, 20, 24, 10)


def test_a_crop_of_the_map_knows_the_boundaries_beyond_the_crop(item: dict[str, Any]) -> None:
    crop = SpatialCrop(roi_start=(2, 3, 1), roi_end=(9, 12, 6))
    whole = scipy_signed_distance(one_hot(labels(), 3), SPACING)
    cropped = crop(item["distance"])
    np.testing.assert_allclose(cropped.numpy(), whole[:, 2:9, 3:12, 1:6], rtol=1e-6)
    of_the_patch = SignedDistance(3, dtype=torch.float32)(crop(item["label"]))
    assert (of_the_patch.as_tensor() - cropped.as_tensor()).abs().max() > 1  # mm


@pytest.mark.parametrize(
    "transform",
    [
        RandFlipd(KEYS, prob=1, spatial_axis=0),
        RandRotate90d(KEYS, prob=1, max_k=1, spatial_axes=(0, 2)),
        Orientationd(KEYS, "LPS", labels=None),
    ],
    ids=["flip", "rotate 90", "orientation"],
)
def test_a_transform_without_interpolation_moves_the_map_with_the_label(
    item: dict[str, Any], transform: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    moved = transform(item)
    assert not torch.equal(moved["label"].as_tensor(), item["label"].as_tensor())
    again = SignedDistance(3, dtype=torch.float32)(moved["label"])
    torch.testing.assert_close(moved["distance"].as_tensor(), again.as_tensor(), rtol=1e-6, atol=0)
    torch.testing.assert_close(moved["distance"].affine, again.affine)


def test_random_crops_take_the_same_place_of_both(item: dict[str, Any]) -> None:
    item["number"] = MetaTensor(torch.arange(20.0 * 24 * 10).view(1, 20, 24, 10))
    keys = [*KEYS, "number"]
    crops = [RandSpatialCropd(keys, (8, 8, 4), random_size=False).set_random_state(0)(item)]
    crops += RandCropByPosNegLabeld(keys, "label", (8, 8, 4), num_samples=2).set_random_state(1)(item)
    for crop in crops:
        places = crop["number"].long().as_tensor()[0]
        expected = item["distance"].as_tensor().flatten(1)[:, places.flatten()].view(3, 8, 8, 4)
        torch.testing.assert_close(crop["distance"].as_tensor(), expected, rtol=0, atol=0)


def test_a_padded_label_is_measured_behind_the_padding(item: dict[str, Any]) -> None:
    pad = {"keys": "label", "spatial_size": (32, 32, 32)}
    chain = Compose([SpatialPadd(**pad), SignedDistanced("label", "distance", 3, dtype=torch.float32)])
    padded = chain({"label": item["label"]})
    expected = scipy_signed_distance(one_hot(padded["label"], 3), SPACING)
    np.testing.assert_allclose(padded["distance"].numpy(), expected, rtol=1e-6)


def test_an_interpolated_map_stays_near_that_of_the_label() -> None:
    """A rotation is off by the fraction of a voxel that the label is off by; a zoom by its factor."""
    label = in_mm(labels((32, 32, 32)), (1.0, 1.0, 1.0))
    item = SignedDistanced("label", "distance", 3)({"label": label})
    options = {"prob": 1, "mode": ["nearest", "bilinear"], "padding_mode": "border"}
    moved = RandAffined(KEYS, rotate_range=[(0.5, 0.5)] * 3, translate_range=[(3, 3)] * 3, **options)(item)
    again = SignedDistance(3, dtype=torch.float32)(moved["label"]).as_tensor()[1]
    near = again.abs() < 6

    def error(distance: Tensor) -> Tensor:
        return (distance.as_tensor()[1] - again)[near].abs()

    assert error(moved["distance"]).mean() < 0.4  # mm
    assert error(item["distance"]).mean() > 1.5  # one that stayed where it was
    zoom = RandZoomd(KEYS, prob=1, min_zoom=1.25, max_zoom=1.25, mode=["nearest", "bilinear"])
    zoomed = zoom(item)
    in_place = zoomed["distance"].as_tensor()[1]
    true = SignedDistance(3, None, dtype=torch.float32)(zoomed["label"]).as_tensor()[1]  # in the voxels of the result
    far = (true.abs() > 4) & (true < 10)
    assert float((true[far] / in_place[far]).median()) == pytest.approx(1.25, abs=0.1)


@pytest.mark.parametrize("kind", [CacheDataset, PersistentDataset])
def test_caching_data_sets_keep_the_map(kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    measure = SignedDistance.__call__
    monkeypatch.setattr(SignedDistance, "__call__", lambda self, img: measured.append(1) or measure(self, img))
    chain = Compose(
        [
            SignedDistanced("label", "distance", 3, max_distance=5),
            RandFlipd(KEYS, prob=0.5, spatial_axis=0),
            RandSpatialCropd(KEYS, (8, 8, 4), random_size=False),
        ]
    )
    options = {"progress": False} if kind is CacheDataset else {"cache_dir": tmp_path, "hash_transform": pickle_hashing}
    data = kind([{"label": in_mm(labels())}], chain, **options)
    items = [data[0] for _ in range(4)]
    assert len(measured) == 1
    assert {item["distance"].dtype for item in items} == {torch.float16}
    assert all(isinstance(item["distance"], MetaTensor) for item in items)
    assert len({item["label"].as_tensor().sum().item() for item in items}) > 1  # other crops


def test_it_can_be_pickled_and_copied() -> None:
    transform = SignedDistanced("label", "distance", 3, SPACING, 4.0, torch.float32, 255)
    item = {"label": labels()}
    for other in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        assert torch.equal(other(item)["distance"], transform(item)["distance"])


# ---- the dictionary version ----------------------------------------------------------


def test_each_label_gets_its_map_and_the_rest_stays() -> None:
    options = {"num_classes": 3, "spacing": SPACING, "max_distance": 4.0, "dtype": torch.float32, "ignore_index": 2}
    data = {"a": labels(), "b": labels().flip(1), "case": "one"}
    result = SignedDistanced(["a", "b"], ["phi_a", "phi_b"], **options)(data)
    assert list(data) == ["a", "b", "case"]
    assert list(result) == ["a", "b", "case", "phi_a", "phi_b"]
    for key in ("a", "b"):
        torch.testing.assert_close(result[f"phi_{key}"], SignedDistance(**options)(data[key]), rtol=0, atol=0)
    assert not torch.equal(result["phi_a"], result["phi_b"])


def test_a_missing_label_is_left_out_when_allowed() -> None:
    transform = SignedDistanced(["a", "b"], ["phi_a", "phi_b"], 3, allow_missing_keys=True)
    assert list(transform({"b": labels()})) == ["b", "phi_b"]
    with pytest.raises(KeyError, match="a"):
        SignedDistanced("a", "phi_a", 3)({"b": labels()})


def test_it_has_monai_s_aliases() -> None:
    assert SignedDistanceD is SignedDistanceDict is SignedDistanced


# ---- refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"num_classes": 0}, ValueError, "expected num_classes to be a whole number of at least 1, got 0"),
        ({"num_classes": 2.0}, ValueError, "expected num_classes to be a whole number of at least 1, got 2.0"),
        ({"num_classes": True}, ValueError, "expected num_classes to be a whole number of at least 1, got True"),
        ({"dtype": torch.int16}, TypeError, r"expected the dtype torch.float16 or torch.float32, got torch.int16"),
        ({"max_distance": 0}, ValueError, "expected max_distance above 0 mm, or None, got 0"),
        ({"max_distance": float("nan")}, ValueError, "expected max_distance above 0 mm, or None, got nan"),
        ({"spacing": "mm"}, ValueError, "expected spacing 'auto', None or one number .* got 'mm'"),
        ({"spacing": (1, 0, 1)}, ValueError, r"expected spacing 'auto', None or one number .* got \(1, 0, 1\)"),
        ({"spacing": (1, 1, 1, 1)}, ValueError, r"expected spacing .* got \(1, 1, 1, 1\)"),
    ],
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any], error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        SignedDistance(**{"num_classes": 3, **options})


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (torch.zeros(2, 4, 4), r"expected a label \(1, \*spatial\) or \(3, \*spatial\) .* got shape \(2, 4, 4\)"),
        (torch.zeros(1), r"with 1 to 3 spatial axes for num_classes=3, got shape \(1,\)"),
        (torch.zeros(1, 2, 2, 2, 2), r"with 1 to 3 spatial axes .* got shape \(1, 2, 2, 2, 2\)"),
        (
            torch.tensor([[0.0, 3.0, 0.5, 1.0]]),
            r"expected whole labels in 0\.\.2 or ignore_index=255, got 0\.5, 3: remap",
        ),
        (torch.tensor([[0.0, float("nan")]]), r"expected whole labels in 0\.\.2 .* got nan"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(label: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SignedDistance(3, ignore_index=255)(label)


def test_a_spacing_of_other_axes_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a spacing of 2 positive numbers"):
        SignedDistance(3, spacing=SPACING)(torch.zeros(1, 4, 4))


@pytest.mark.parametrize("distance_keys", [["a", "b"], ["label"], []])
def test_each_label_needs_one_new_key(distance_keys: list[str]) -> None:
    with pytest.raises(ValueError, match="expected 1 distance_keys, one new key per label, got"):
        SignedDistanced("label", distance_keys, 3)
