"""Exact distance maps: both implementations against scipy and SimpleITK, and against geometry."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from monai_extra_losses.ops import distance
from monai_extra_losses.ops.distance import (
    boundary_distance,
    distance_to_label,
    distance_to_mask,
    distance_to_other_label,
    signed_distance,
)

CLASSES = range(5)
# (samples, sides), mm per axis: one row, or one per sample.
CASES = [
    ((2, 41), (1.7,)),
    ((2, 1), (0.3,)),
    ((3, 17, 30), (0.7, 3.3)),
    ((2, 23, 9), [(1.0, 1.0), (5.0, 0.31)]),
    ((2, 13, 24, 7), (0.7, 0.7, 6.0)),
    ((2, 5, 16, 21), (2.9, 1.0, 1.3)),
    ((2, 12, 1, 15), [(0.8, 0.8, 0.8), (4.0, 0.5, 0.5)]),
    ((1, 9, 10, 11), None),
]


@pytest.fixture(params=["edt", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run each test on the CPU's implementation, and on the one that GPUs use."""
    if request.param == "torch":
        monkeypatch.setattr(distance, "_with_edt", distance._with_torch)
        monkeypatch.setattr(distance, "_CHUNK", 3000)  # several chunks in volumes of some thousand voxels
    return request.param


def random_labels(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Labels 0 to 4 in blocks with single voxels of others between them; the last sample has no label 3."""
    r = np.random.default_rng(seed)
    labels = r.integers(0, 5, [shape[0], *(math.ceil(side / 4) for side in shape[1:])])
    for axis, side in enumerate(shape[1:], 1):
        labels = labels.repeat(4, axis).take(range(side), axis)
    noise = r.random(shape) < 0.02
    labels[noise] = r.integers(0, 5, noise.sum())
    labels[-1][labels[-1] == 3] = 1
    return torch.from_numpy(labels)


def scipy_distance(outside: np.ndarray, spacing: Sequence[float] | None) -> np.ndarray:
    """Distance to the nearest False voxel; infinite where there is none, where scipy has no answer."""
    if outside.all():
        return np.full(outside.shape, np.inf)
    return distance_transform_edt(outside, sampling=spacing)


def spacing_of(spacing: Sequence | None, sample: int) -> Sequence[float] | None:
    return spacing[sample] if spacing is not None and isinstance(spacing[0], tuple) else spacing


def scipy_channels(inside: Tensor, spacing: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
    """Distances of a mask (B, C, *spatial) to its True voxels, and to its False ones."""
    samples = [(mask, spacing_of(spacing, n)) for n, mask in enumerate(inside.numpy())]
    to_true = [[scipy_distance(~channel, row) for channel in mask] for mask, row in samples]
    to_false = [[scipy_distance(channel, row) for channel in mask] for mask, row in samples]
    return np.array(to_true), np.array(to_false)


def assert_mm(got: Tensor, expected: np.ndarray | Tensor) -> None:
    """Within 1e-4 mm, and infinite in the same places."""
    assert got.dtype == torch.float32
    assert type(got) is Tensor
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=torch.float32), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_maps_of_labels_are_scipy_s(shape: tuple[int, ...], spacing: Sequence | None) -> None:
    labels = random_labels(shape)
    inside = torch.stack([labels == c for c in CLASSES], 1)
    outer, inner = scipy_channels(inside, spacing)
    assert_mm(distance_to_label(labels, CLASSES, spacing), outer)
    assert_mm(distance_to_other_label(labels, spacing), np.where(inside, inner, 0).sum(1))

    constant = inside.flatten(2).all(2) | ~inside.flatten(2).any(2)
    assert constant[-1, 3]
    both = np.where(constant.view(*constant.shape, *[1] * (labels.ndim - 1)), 0, np.where(inside, inner, outer))
    assert_mm(boundary_distance(labels, CLASSES, spacing), both)
    assert_mm(signed_distance(labels, CLASSES, spacing), np.where(inside, -both, both))


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_maps_of_overlapping_masks_are_scipy_s(shape: tuple[int, ...], spacing: Sequence | None) -> None:
    labels = random_labels(shape, seed=1)
    mask = torch.stack([labels > 0, labels > 2, labels == 0, labels > 9], 1)
    outer, inner = scipy_channels(mask, spacing)
    assert_mm(distance_to_mask(mask, spacing), outer)

    constant = mask.flatten(2).all(2) | ~mask.flatten(2).any(2)
    both = np.where(constant.view(*constant.shape, *[1] * (labels.ndim - 1)), 0, np.where(mask, inner, outer))
    assert_mm(boundary_distance(mask, None, spacing), both)
    assert_mm(signed_distance(mask, None, spacing), np.where(mask, -both, both))


def test_both_sides_of_a_mask_are_maurer_s() -> None:
    # SimpleITK 2.5.7. Maurer measures to the object's own boundary voxels. Outside the object that is the distance to
    # its nearest voxel, as here; inside it is not the distance to the nearest voxel outside, so the complement's map
    # is compared there. (Danielsson's map is only near the exact one: not compared.)
    spacing = (3.0, 0.7, 1.1)
    mask = random_labels((1, 11, 21, 19), seed=2)[0] % 2 == 0

    def maurer(region: Tensor) -> Tensor:
        image = sitk.GetImageFromArray(region.numpy().astype(np.uint8))
        image.SetSpacing(spacing[::-1])
        result = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
        return torch.from_numpy(sitk.GetArrayFromImage(result))

    got = signed_distance(mask[None, None], None, spacing)[0, 0]
    assert_mm(got, torch.where(mask, -maurer(~mask), maurer(mask)))
    assert not torch.allclose(got[mask], maurer(mask)[mask], atol=0.1)  # or the complement were not needed


def test_float32_holds_a_ten_thousandth_of_a_millimetre_far_away() -> None:
    # One voxel in the corner: the longest distances that a volume of this size has. edt alone, given the spacing as
    # it is, errs by 4.7e-4 mm in the second volume, as it adds up rounded millimetres along the last axis.
    for sides, spacing in (((40, 128, 128), (6.0, 0.7, 0.7)), ((40, 40, 128), (1.0, 1.3, 2.9))):
        mask = torch.zeros(1, 1, *sides, dtype=torch.bool)
        mask[..., 0, 0, 0] = True
        axes = [torch.arange(side, dtype=torch.float64) * mm for side, mm in zip(sides, spacing, strict=True)]
        expected = sum(axis**2 for axis in torch.meshgrid(*axes, indexing="ij")).sqrt()
        turned = mask.transpose(2, 4).contiguous().transpose(2, 4)
        for got in (distance_to_mask(mask, spacing)[0, 0], distance_to_mask(turned, spacing)[0, 0]):
            torch.testing.assert_close(got.double(), expected, atol=0, rtol=2.5e-7)
            assert_mm(got, expected)


def test_isotropic_voxels_are_exact() -> None:
    labels = random_labels((1, 20, 20, 20), seed=3)
    got = distance_to_other_label(labels, None)
    squares = got.double().square().round()
    assert torch.equal(got, squares.sqrt().float())
    assert torch.equal(squares, distance_to_other_label(labels, (0.5, 0.5, 0.5)).double().mul(2).square().round())


def test_the_signed_distance_of_a_sphere_is_analytic_within_a_voxel_s_diagonal() -> None:
    # A voxel of the other side is never nearer than the sphere's surface. Behind the point of the surface that is
    # nearest lies, half a diagonal deep, the middle of a ball that holds a voxel centre of that side: so at most one
    # diagonal further.
    spacing = torch.tensor([2.0, 0.9, 0.9], dtype=torch.float64)
    sides, radius = (25, 45, 47), 11.0
    axes = [(torch.arange(side) - side // 2) * mm for side, mm in zip(sides, spacing, strict=True)]
    analytic = sum(axis**2 for axis in torch.meshgrid(*axes, indexing="ij")).sqrt() - radius
    got = signed_distance((analytic <= 0).long()[None], [1], spacing)[0, 0].double()
    beyond = (got - analytic) * got.sign()
    assert beyond.min() >= -1e-4
    assert beyond.max() <= spacing.norm() + 1e-4
    assert beyond.max() > spacing.norm() / 4  # the bound is of the size of what it bounds


def test_a_move_along_the_thick_axis_moves_the_map() -> None:
    labels = torch.zeros(2, 14, 10, 12, dtype=torch.int64)
    labels[:, 3:6, 4:6, 4:8] = 2
    labels[1] = labels[1].roll(4, 0)
    spacing = (6.0, 0.7, 0.8)
    for got in (signed_distance(labels, [2], spacing)[:, 0], distance_to_label(labels, [2], spacing)[:, 0]):
        assert torch.equal(got[0, :10], got[1, 4:])
        assert got[1, 0, 4, 4] == pytest.approx(7 * 6.0)
    assert distance_to_other_label(labels, spacing)[1, 8, 4, 5] == pytest.approx(0.7)


def test_each_sample_has_its_own_spacing() -> None:
    labels = random_labels((1, 8, 9, 10)).repeat(2, 1, 1, 1)
    rows = torch.tensor([[1.0, 2.0, 3.0], [6.0, 0.7, 0.7]])
    for given in (rows, rows.tolist(), rows.numpy()):
        got = signed_distance(labels, CLASSES, given)
        for n in range(2):
            assert torch.equal(got[n : n + 1], signed_distance(labels[:1], CLASSES, rows[n]))
    assert not torch.equal(got[0], got[1])


def test_voxels_are_the_unit_without_spacing() -> None:
    labels = random_labels((2, 8, 9))
    assert torch.equal(distance_to_other_label(labels, None), distance_to_other_label(labels, (1, 1)))
    assert not torch.equal(distance_to_other_label(labels, None), distance_to_other_label(labels, (1, 2)))


@pytest.mark.parametrize("sides", [(7,), (6, 5), (4, 1, 5)])
def test_absent_and_full_classes(sides: tuple[int, ...]) -> None:
    labels = torch.full((2, *sides), 3)
    labels[1, ..., -1] = 0
    mask = (labels == 3).unsqueeze(1)
    spacing = [1.5] * len(sides)
    other = distance_to_other_label(labels, spacing)
    assert other[0].isinf().all()
    assert other[1].isfinite().all()

    absent, full = distance_to_label(labels, [1, 3], spacing)[0]
    assert (absent == math.inf).all()
    assert (full == 0).all()
    assert (distance_to_mask(torch.cat([mask, ~mask], 1), spacing)[0, 0] == 0).all()
    assert (distance_to_mask(torch.cat([mask, ~mask], 1), spacing)[0, 1] == math.inf).all()
    for measure in (signed_distance, boundary_distance):
        assert (measure(labels, [1, 3], spacing)[0] == 0).all()
        assert (measure(mask, None, spacing)[0] == 0).all()
        assert (measure(~mask, None, spacing)[0] == 0).all()
        assert (measure(labels, [3, 0], spacing)[1] != 0).all()


def test_one_voxel() -> None:
    mask = torch.zeros(1, 1, 5, 7, dtype=torch.bool)
    mask[..., 1, 2] = True
    rows, columns = torch.meshgrid(torch.arange(5.0) - 1, torch.arange(7.0) - 2, indexing="ij")
    expected = ((2 * rows) ** 2 + (3 * columns) ** 2).sqrt()
    assert_mm(distance_to_mask(mask, (2, 3))[0, 0], expected)
    expected[1, 2] = -2.0
    assert_mm(signed_distance(mask, None, (2, 3))[0, 0], expected)
    alone = torch.ones(1, 1, 1, dtype=torch.long)
    assert distance_to_other_label(alone, (1, 1)).item() == math.inf
    assert signed_distance(alone, [1], (1, 1)).item() == 0


def test_no_class_and_no_sample() -> None:
    labels = torch.zeros(2, 4, 5, dtype=torch.long)
    assert distance_to_label(labels, [], None).shape == (2, 0, 4, 5)
    assert signed_distance(labels[:0], [0, 1], None).shape == (0, 2, 4, 5)
    assert distance_to_other_label(labels[:, :0], None).shape == (2, 0, 5)


def test_every_dtype_gives_the_same_map() -> None:
    labels = random_labels((2, 9, 8, 7))
    whole = signed_distance(labels, CLASSES, (3, 1, 2)), distance_to_other_label(labels, (3, 1, 2))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16):
        assert torch.equal(signed_distance(labels.to(dtype), CLASSES, (3, 1, 2)), whole[0])
        assert torch.equal(distance_to_other_label(labels.to(dtype), (3, 1, 2)), whole[1])
    inside = labels == 1
    expected = signed_distance(inside.long(), [0, 1], (3, 1, 2))
    assert torch.equal(signed_distance(inside, [0, 1], (3, 1, 2)), expected)
    assert torch.equal(distance_to_other_label(inside, (3, 1, 2)), expected[:, 0].abs())


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ((0, 1, 2, 254, 255), torch.uint8),
        ((-128, -1, 0, 1, 127), torch.int8),
        ((-1, 0, 1, 2, 255), torch.int64),
        ((-(2**15), -1, 0, 1, 2**15 - 1), torch.int16),
        ((-(2**31), 0, 256, 65536, 2**31 - 1), torch.int64),
        ((-(2**63), -1, 0, 2**32, 2**63 - 2), torch.int64),
    ],
)
def test_the_values_of_the_labels_do_not_matter(values: tuple[int, ...], dtype: torch.dtype) -> None:
    labels = random_labels((2, 9, 12))
    renamed = torch.tensor(values)[labels].to(dtype)
    assert torch.equal(distance_to_other_label(renamed, (1, 3)), distance_to_other_label(labels, (1, 3)))
    assert torch.equal(signed_distance(renamed, values, (1, 3)), signed_distance(labels, CLASSES, (1, 3)))


def test_a_class_that_the_dtype_cannot_hold_is_absent() -> None:
    labels = torch.tensor([[0, 44, 255, 255]], dtype=torch.uint8)  # 300 - 256, -1 + 256
    assert (distance_to_label(labels, [300, -1], None) == math.inf).all()
    assert (signed_distance(labels, [300, -1], None) == 0).all()
    assert (distance_to_label(labels > 0, [2], None) == math.inf).all()


def test_memory_order_and_metatensors_do_not_matter() -> None:
    labels = random_labels((2, 16, 12, 10), seed=4)
    strided = labels[:, ::2, :, ::3]
    turned = labels.transpose(1, 3).contiguous().transpose(1, 3)
    assert not strided.is_contiguous()
    assert not turned.is_contiguous()
    for given, same in ((strided, strided.contiguous()), (turned, labels), (MetaTensor(labels), labels)):
        before = given.clone()
        for spacing in (None, (6.0, 0.7, 0.8)):
            assert_mm(signed_distance(given, CLASSES, spacing), signed_distance(same, CLASSES, spacing))
            assert_mm(distance_to_label(given, CLASSES, spacing), distance_to_label(same, CLASSES, spacing))
            assert_mm(distance_to_other_label(given, spacing), distance_to_other_label(same, spacing))
            mask, its_copy = (given > 1).unsqueeze(1), (same > 1).unsqueeze(1)
            assert_mm(distance_to_mask(mask, spacing), distance_to_mask(its_copy, spacing))
        assert torch.equal(given, before)


def test_a_gpu_is_never_asked_for_its_data() -> None:
    # The meta device has no data: whatever would copy it to the host, or decide by it, raises there.
    labels = torch.zeros(2, 6, 7, 8, dtype=torch.uint8, device="meta")
    spacing = [(1.0, 2.0, 3.0), (6.0, 0.7, 0.7)]
    for got in (
        distance_to_label(labels, CLASSES, spacing),
        distance_to_mask((labels > 0).unsqueeze(1).expand(-1, 5, -1, -1, -1), spacing),
        signed_distance(labels, CLASSES, spacing),
        boundary_distance(labels, CLASSES, spacing),
        distance_to_other_label(labels, spacing).unsqueeze(1).expand(-1, 5, -1, -1, -1),
    ):
        assert got.device.type == "meta"
        assert got.shape == (2, 5, 6, 7, 8)


def test_threads_do_not_matter() -> None:
    labels = random_labels((1, 15, 17, 16))
    one = distance_to_other_label(labels, (3, 1, 1))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 2)
        assert torch.equal(distance_to_other_label(labels, (3, 1, 1)), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("spacing", "got"),
    [
        ((1.0, 1.0), r"\(1.0, 1.0\)"),
        (1.0, "1.0"),
        ([[1.0, 1.0, 1.0]] * 3, r"\[\[1.0, 1.0, 1.0\], "),
        ([[1.0, 1.0, 1.0], [1.0, 1.0]], r"\[\[1.0, 1.0, 1.0\], \[1.0, 1.0\]\]"),
        ((1.0, 0.0, 1.0), r"\(1.0, 0.0, 1.0\)"),
        ((1.0, 1.0, -2.0), r"\(1.0, 1.0, -2.0\)"),
        ((1.0, math.nan, 1.0), r"\(1.0, nan, 1.0\)"),
        ((1.0, math.inf, 1.0), r"\(1.0, inf, 1.0\)"),
        (("a", "b", "c"), r"\('a', 'b', 'c'\)"),
        (torch.zeros(3), r"tensor\(\[0., 0., 0.\]\)"),
    ],
)
def test_a_wrong_spacing_is_refused(spacing: object, got: str) -> None:
    labels = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    match = f"expected a spacing of 3 positive numbers, or 2 rows of them, got {got}.*: give one number in mm per"
    for measure in (
        lambda: distance_to_other_label(labels, spacing),
        lambda: distance_to_label(labels, [1], spacing),
        lambda: distance_to_mask((labels > 0).unsqueeze(1), spacing),
        lambda: signed_distance(labels, [1], spacing),
        lambda: boundary_distance((labels > 0).unsqueeze(1), None, spacing),
    ):
        with pytest.raises(ValueError, match=match):
            measure()


def test_wrong_regions_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected labels of an integer or bool dtype, got torch.float32: try labels"):
        distance_to_other_label(torch.zeros(1, 4, 4), None)
    with pytest.raises(TypeError, match=r"expected a mask of dtype bool, got torch.int64: name the classes"):
        signed_distance(torch.zeros(1, 1, 4, dtype=torch.long), None, None)
    with pytest.raises(ValueError, match=r"expected labels \(B, \*spatial\) with 1 to 3 .*, got shape \(4,\)\."):
        distance_to_label(torch.zeros(4, dtype=torch.long), [1], None)
    with pytest.raises(ValueError, match=r"expected labels .*, got shape \(1, 1, 2, 2, 2\)\."):
        boundary_distance(torch.zeros(1, 1, 2, 2, 2, dtype=torch.long), [1], None)
    with pytest.raises(ValueError, match=r"expected a mask \(B, C, \*spatial\) with 1 to 3 .*, got shape \(4, 4\)\."):
        distance_to_mask(torch.zeros(4, 4, dtype=torch.bool), None)
