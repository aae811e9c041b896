"""Cells and weights of a label's components, what MONAI's transforms do with them, and hysteresis."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from loss_list import SOFTMAX, each, one_hot
from monai.data import CacheDataset, MetaTensor, list_data_collate
from monai.transforms import (
    Compose,
    RandAffined,
    RandCropByLabelClassesd,
    RandFlipd,
    SpatialPadd,
)
from scipy import ndimage
from torch import Tensor

from monai_extra_losses import BlobDiceCELoss, ComponentDiceCELoss, CrossEntropyLoss
from monai_extra_losses.ops.components import cells_of_regions
from monai_extra_losses.transforms import (
    ComponentCells,
    ComponentCellsd,
    HysteresisKeep,
    HysteresisKeepd,
    InverseComponentWeight,
    InverseComponentWeightd,
)


def spots(*shape: int, classes: int = 2, share: float = 0.02, seed: int = 0) -> Tensor:
    """(1, *shape) labels of small components."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, classes, (1, *shape), generator=generator)
    return labels * (torch.rand(1, *shape, generator=generator) < share)


# --- cells ---


@each("shape", [(40,), (20, 21), (12, 11, 10)])
def test_the_cells_are_those_of_the_loss(shape: tuple[int, ...]) -> None:
    label = spots(*shape, classes=4, share=0.1)
    regions = one_hot(label[None], 4) > 0
    expected = cells_of_regions(regions, None, None)[0]
    cells = ComponentCells(num_classes=4)(label)
    assert cells.dtype == torch.int32
    assert torch.equal(cells, expected[1:])
    assert torch.equal(ComponentCells(num_classes=4, include_background=True)(label), expected)
    assert torch.equal(ComponentCells(num_classes=4)(regions[0].byte()), expected)
    assert torch.equal(ComponentCells(num_classes=1)(regions[0, 2:3].float()), expected[2:3])
    faces = ComponentCells(num_classes=4, connectivity=1)(label)
    assert torch.equal(faces, cells_of_regions(regions, 1, None)[0, 1:])
    assert len(shape) == 1 or not torch.equal(faces, cells)
    scores = torch.randn(1, 4, *shape)
    for loss in (ComponentDiceCELoss(**SOFTMAX), BlobDiceCELoss(**SOFTMAX)):
        torch.testing.assert_close(loss(scores, label[None], cells=cells[None]), loss(scores, label[None]))


def test_cells_are_measured_in_mm() -> None:
    label = torch.zeros(1, 9, 9)
    label[0, 0, 4], label[0, 8, 0] = 1, 1
    in_mm = MetaTensor(label, affine=torch.diag(torch.tensor([1.0, 5.0, 1.0, 1.0], dtype=torch.float64)))
    cells = ComponentCells(num_classes=2)(in_mm)
    assert isinstance(cells, MetaTensor)
    assert torch.equal(cells.affine, in_mm.affine)
    assert torch.equal(cells.as_tensor(), ComponentCells(num_classes=2, spacing=(1.0, 5.0))(label))
    assert not torch.equal(cells.as_tensor(), ComponentCells(num_classes=2)(label))
    assert torch.equal(ComponentCells(num_classes=2, spacing=None)(in_mm).as_tensor(), ComponentCells(2)(label))


@each("ignored", [255, -1])
def test_an_ignored_voxel_joins_no_components(ignored: int) -> None:
    label = torch.tensor([[0, 1, 1, ignored, 1, 0]])
    assert ComponentCells(2, ignore_index=ignored)(label).unique().tolist() == [1, 2]
    filled = label.masked_fill(label == ignored, 1)
    assert ComponentCells(2)(filled).unique().tolist() == [1]


def test_a_class_without_components_has_no_cells() -> None:
    label = torch.tensor([[0, 0, 1, 0]])
    assert ComponentCells(3)(label).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_cells_move_with_the_label_and_are_cached() -> None:
    """What a training does: cells once per volume, then a crop, flips and turns; the loss finds every voxel's cell."""
    label = spots(30, 28, 26, classes=3, share=0.01).float()
    label = torch.from_numpy(ndimage.grey_dilation(label.numpy(), (1, 2, 3, 2)))
    whole = ComponentCells(3)(label)
    keys, nearest = ["label", "cells"], ["nearest", "nearest"]
    transform = Compose(
        [
            SpatialPadd(keys="label", spatial_size=(32, 32, 32)),
            ComponentCellsd(keys="label", cells_keys="cells", num_classes=3),
            RandCropByLabelClassesd(keys, "label", spatial_size=(16, 16, 16), num_classes=3, num_samples=1, warn=False),
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            RandAffined(
                keys,
                prob=1.0,
                rotate_range=[0.2] * 3,
                scale_range=[0.1] * 3,
                mode=nearest,
                padding_mode="border",
            ),
        ]
    )
    transform.set_random_state(0)
    items = CacheDataset([{"label": MetaTensor(label)}], transform, progress=False)
    batch = list_data_collate([items[0][0] for _ in range(6)])
    assert batch["cells"].shape == (6, 2, 16, 16, 16)
    assert set(batch["cells"].unique().tolist()) <= set(range(int(whole.max()) + 1))
    scores = torch.randn(6, 3, 16, 16, 16)
    for loss in (ComponentDiceCELoss(**SOFTMAX), BlobDiceCELoss(**SOFTMAX)):
        assert loss(scores, batch["label"], cells=batch["cells"]).isfinite()  # a mismatch is refused


def test_components_that_a_crop_cuts_stay_what_they_are() -> None:
    label = torch.zeros(1, 12, 30)
    label[0, 2:10, 3], label[0, 2:10, 9], label[0, 9, 3:10], label[0, 4, 25] = 1, 1, 1, 1
    cells = ComponentCells(2)(label)[:, :8]
    pieces = ComponentCells(2)(label[:, :8])
    assert (cells.max(), pieces.max()) == (2, 3)
    scores = torch.randn(1, 2, 8, 30, dtype=torch.float64)
    loss = ComponentDiceCELoss(**SOFTMAX, reduction="none")
    own = [loss(scores, label[None, :, :8], cells[None] == k, cells=cells[None]).item() for k in (1, 2)]
    got = loss(scores, label[None, :, :8], cells=cells[None]).item()
    assert got == pytest.approx(np.mean(own))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_classes": 0}, "expected num_classes to be a whole number of at least 1, got 0"),
        ({"num_classes": 2, "connectivity": 4}, "expected connectivity in 1 to 3, or None, got 4"),
        ({"num_classes": 2, "connectivity": True}, "expected connectivity in 1 to 3, or None, got True"),
        ({"num_classes": 2, "spacing": [0.0]}, "expected spacing 'auto', None or one number > 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ComponentCells(**options)


def test_labels_that_do_not_fit_are_refused() -> None:
    for label, sentence in (
        (torch.zeros(3, 4, 4), r"expected a label \(1, \*spatial\) or \(2, \*spatial\) .* got shape \(3, 4, 4\)"),
        (torch.full((1, 4, 4), 2), r"expected whole labels in 0\.\.1 or ignore_index=None, got 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            ComponentCells(2)(label)
    with pytest.raises(ValueError, match="expected connectivity in 1 to 2 for 2 spatial axes, got 3"):
        ComponentCells(2, connectivity=3)(torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match="expected 1 cells_keys, one new key per label, got"):
        ComponentCellsd(keys="label", cells_keys="label", num_classes=2)
    assert "cells" not in ComponentCellsd("label", "cells", 2, allow_missing_keys=True)({"image": 1})


def test_they_can_be_pickled_and_copied() -> None:
    for transform, data in (
        (ComponentCells(2), spots(9, 9, share=0.2)),
        (InverseComponentWeight(), spots(9, 9, share=0.2)),
        (HysteresisKeep(), torch.rand(2, 9, 9)),
    ):
        for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
            assert torch.equal(other(data), transform(data))


# --- weights ---


@each("classes", [2, 4])
@each("shape", [(60,), (20, 21), (12, 11, 10)])
def test_weights_are_their_formula(shape: tuple[int, ...], classes: int) -> None:
    label = spots(*shape, classes=classes, share=0.1)
    label[0].view(-1)[5:8] = 255
    counted = (label != 255).numpy()[0]
    structure = np.ones((3,) * len(shape))
    numbered = [ndimage.label((label == c).numpy()[0], structure) for c in range(1, classes)]
    number = sum(n for _, n in numbered)
    expected = np.zeros(shape)
    background = counted & (label[0].numpy() == 0)
    expected[background] = counted.sum() / ((number + 1) * background.sum())
    for components, n in numbered:
        for k in range(1, n + 1):
            expected[components == k] = counted.sum() / ((number + 1) * (components == k).sum())
    plain = InverseComponentWeight(ignore_index=255, limits=(0.0, 1e9))(label)
    assert plain.dtype == torch.float32
    np.testing.assert_allclose(plain[0], expected, rtol=1e-6)
    assert plain.sum().item() == pytest.approx(counted.sum(), rel=1e-5)  # so their mean over the volume is 1
    clipped = InverseComponentWeight(ignore_index=255, limits=(1.0, 3.0))(label)
    np.testing.assert_allclose(clipped[0], np.where(counted, expected.clip(1.0, 3.0), 0), rtol=1e-6)
    assert InverseComponentWeight().limits == (1.0, 2e5)


def test_weights_of_regions_are_those_of_their_union() -> None:
    label = spots(20, 21, classes=2, share=0.1)
    regions = torch.cat([label, label * (torch.rand(label.shape) > 0.5)])
    assert torch.equal(InverseComponentWeight()(regions), InverseComponentWeight()(label))


def test_weights_without_background_or_without_anything() -> None:
    assert InverseComponentWeight()(torch.ones(1, 4)).tolist() == [[1, 1, 1, 1]]  # 4 / (2 * 4) is below 1
    assert InverseComponentWeight(limits=(0.0, 9.0))(torch.ones(1, 4)).tolist() == [[0.5] * 4]
    assert InverseComponentWeight(limits=(0.0, 9.0))(torch.zeros(1, 4)).tolist() == [[1.0] * 4]
    assert InverseComponentWeight(ignore_index=255)(torch.full((1, 4), 255)).tolist() == [[0.0] * 4]


def test_both_means_of_a_weighted_cross_entropy() -> None:
    """sum w l / sum w, and the paper's mean of w l; over a whole volume they agree where nothing is clipped."""
    label = spots(16, 17, share=0.1)[None]
    scores = torch.randn(1, 2, 16, 17, dtype=torch.float64)
    losses = CrossEntropyLoss(reduction="none", **SOFTMAX)(scores, label)
    w = InverseComponentWeight(limits=(0.0, 1e9))(label[0])[None].double()
    ours = CrossEntropyLoss(**SOFTMAX)(scores, label, w)
    papers = CrossEntropyLoss(reduction="none", **SOFTMAX)(scores, label, w).mean()
    torch.testing.assert_close(ours, (w * losses).sum() / w.sum())
    torch.testing.assert_close(papers, (w * losses).mean())
    torch.testing.assert_close(ours, papers, rtol=1e-6, atol=0)
    item = InverseComponentWeightd(keys="label", weight_keys="mask", limits=(0.0, 1e9))({"label": label[0]})
    assert torch.equal(item["mask"][None].double(), w)


@each("limits", [(2.0, 1.0), (-1.0, 2.0), (1.0, float("nan"))])
def test_limits_out_of_order_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected limits of two numbers >= 0, the lower one first, got"):
        InverseComponentWeight(limits=limits)


# --- hysteresis ---


def kept_by_a_loop(p: np.ndarray, low: float, high: float, connectivity: int | None) -> np.ndarray:
    kept = np.zeros_like(p)
    structure = ndimage.generate_binary_structure(p.ndim - 1, connectivity or p.ndim - 1)
    for c, values in enumerate(p):
        components, number = ndimage.label(values > low, structure)
        for k in range(1, number + 1):
            if values[components == k].max() > high:
                kept[c][components == k] = values[components == k]
    return kept


@each("connectivity", [None, 1])
@each("low, high", [(0.25, 0.70), (0.4, 0.95), (0.5, 0.5)])
@each("shape", [(3, 40), (2, 14, 15), (3, 9, 8, 7)])
def test_hysteresis_keeps_components_with_a_high_peak(
    shape: tuple[int, ...], low: float, high: float, connectivity: int | None
) -> None:
    p = torch.rand(shape, generator=torch.Generator().manual_seed(0)) ** (len(shape) + 2)
    keep = HysteresisKeep(low, high, connectivity, include_background=True)
    expected = kept_by_a_loop(p.numpy(), low, high, connectivity)
    assert np.array_equal(keep(p), expected)
    assert 0 < (expected > 0).sum() < (p > low).sum() or low == high
    background = HysteresisKeep(low, high, connectivity)(p)
    assert np.array_equal(background[1:], expected[1:])
    assert np.array_equal(background[0], (expected[1:] == 0).all(0))


def test_the_argmax_of_what_is_kept_is_the_label() -> None:
    p = torch.tensor([[0.9, 0.6, 0.2, 0.7, 0.65, 0.5], [0.1, 0.4, 0.8, 0.3, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0, 0.35, 0.0]])
    assert HysteresisKeep()(p).argmax(0).tolist() == [0, 1, 1, 1, 0, 0]
    assert HysteresisKeep(high=0.9)(p).argmax(0).tolist() == [0] * 6


def test_thresholds_are_exceeded_not_reached() -> None:
    p = torch.tensor([[0.25, 0.5, 0.75, 0.0, 0.75, 0.25]], dtype=torch.float64)
    assert HysteresisKeep(0.25, 0.5)(p).tolist() == [[0.0, 0.5, 0.75, 0.0, 0.75, 0.0]]
    assert not HysteresisKeep(0.25, 0.75)(p).any()


def test_hysteresis_keeps_the_meta_data_and_the_dtype() -> None:
    p = MetaTensor(torch.rand(2, 5, 6).half(), affine=torch.eye(4, dtype=torch.float64) * 2)
    kept = HysteresisKeepd(keys="pred", low=0.1)({"pred": p})["pred"]
    assert isinstance(kept, MetaTensor)
    assert kept.dtype == torch.float16
    assert torch.equal(kept.affine, p.affine)
    assert not HysteresisKeep()(torch.zeros(1, 4, 4)).any()


def test_wrong_probabilities_are_refused() -> None:
    for low, high in ((0.7, 0.25), (-0.1, 0.5), (0.5, 1.0)):
        with pytest.raises(ValueError, match=rf"expected 0 <= low <= high < 1, got low={low} and high={high}"):
            HysteresisKeep(low, high)
    with pytest.raises(TypeError, match=r"expected floating-point probabilities, got torch\.int64: apply it before"):
        HysteresisKeep()(torch.ones(1, 4, dtype=torch.int64))
    for wrong in (torch.tensor([[-3.0, 2.0]]), torch.tensor([[0.5, float("nan")]])):
        with pytest.raises(ValueError, match=r"expected probabilities in \[0, 1\], got .*: apply a softmax or sigmoid"):
            HysteresisKeep()(wrong)
    with pytest.raises(
        ValueError, match=r"expected probabilities \(C, \*spatial\) with 1 to 3 spatial axes, got shape"
    ):
        HysteresisKeep()(torch.ones(4))
