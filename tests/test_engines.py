"""Maps on their way from the batch through MONAI's trainer into a loss."""

from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from monai.handlers import MeanDice, from_engine
from monai.losses import DiceLoss
from monai.transforms import AsDiscreted, Compose
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from monai_extra_losses import CompoundLoss, FusedDiceCELoss, FusedDiceLoss, SurfaceLoss
from monai_extra_losses.bundle.handlers import loss_of_output
from monai_extra_losses.engines import LabelWithoutMaps, LossWithMaps, PrepareBatchMaps
from monai_extra_losses.transforms import SignedDistanced

OPTIONS: dict[str, Any] = {"to_onehot_y": True, "softmax": True}


class MeanOfMap(nn.Module):
    """A stand-in with a value that a test knows: mean of p times a map, and of the mask."""

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None, distance: Any = 1.0) -> Tensor:
        value = (input.softmax(1) * distance).mean() + 0 * target.sum()
        return value if mask is None else value + 10 * mask.float().mean()


def items(count: int = 4) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        label = torch.zeros(1, 8, 8, 8)
        label[:, 2:6, 1 + number % 3 : 6, 2:5] = 1
        image = label + 0.1 * torch.randn(label.shape, generator=generator)
        affine = torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.0]))
        made.append({"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)})
    return [SignedDistanced("label", "distance", 2)(item) for item in made]


def batch() -> dict[str, Any]:
    return next(iter(DataLoader(Dataset(items()), batch_size=2)))


# ---- the batch -----------------------------------------------------------------------


def test_the_target_is_the_label_with_its_maps() -> None:
    data = batch() | {"weight": torch.ones(2, 1, 8, 8, 8)}
    image, target = PrepareBatchMaps({"distance": "distance", "mask": "weight"})(data, "cpu", non_blocking=True)
    assert list(target) == ["label", "distance", "mask"]
    assert image is data["image"]  # already there
    assert target["mask"] is data["weight"]
    assert target["distance"].shape == (2, 2, 8, 8, 8)
    assert target["distance"].dtype == torch.float16
    assert torch.equal(target["label"].affine, data["label"].affine)


def test_every_tensor_goes_where_the_trainer_says() -> None:
    image, target = PrepareBatchMaps()(batch(), "meta", dtype=torch.float64)
    assert {tensor.device.type for tensor in (image, *target.values())} == {"meta"}
    assert {tensor.dtype for tensor in (image, *target.values())} == {torch.float64}


@pytest.mark.parametrize("maps", [[], {}, "label", {"label": "distance"}])
def test_maps_beside_the_label_are_needed(maps: Any) -> None:
    with pytest.raises(ValueError, match="expected the names of maps beside the label, got"):
        PrepareBatchMaps(maps)


def test_a_batch_without_the_map_is_one_sentence() -> None:
    data = batch()
    del data["distance"]
    with pytest.raises(ValueError, match="expected a batch with 'distance', got 'image', 'label'; a transform such as"):
        PrepareBatchMaps()(data)
    with pytest.raises(ValueError, match="expected a batch with 'image', 'label', got 'distance'"):
        PrepareBatchMaps()({"distance": data["label"]})


# ---- the loss ------------------------------------------------------------------------


def test_a_loss_gets_the_label_and_the_maps_by_name() -> None:
    loss = LossWithMaps(MeanOfMap(), maps=["distance", "mask"])
    input, label = torch.zeros(1, 2, 4), torch.zeros(1, 1, 4)
    assert loss(input, {"label": label, "distance": torch.full((1, 2, 4), 3.0)}) == pytest.approx(1.5)
    target = {"label": label, "distance": torch.full((1, 2, 4), 3.0), "mask": torch.tensor([[[1.0, 0, 0, 0]]])}
    assert loss(input, target) == pytest.approx(1.5 + 2.5)
    assert loss(input, label) == pytest.approx(0.5)  # a plain target goes through


def test_the_surface_loss_of_the_map_of_a_crop() -> None:
    """By hand: mean p phi, phi from the whole volume by scipy, one voxel added inside."""
    label = torch.zeros(1, 1, 12)
    label[..., 3:9] = 1
    item = SignedDistanced("label", "distance", 2, dtype=torch.float32)({"label": label[0]})
    patch = slice(4, 11)  # without the left end
    inside = label[0, 0].numpy() > 0
    phi = np.where(inside, 1 - distance_transform_edt(inside), distance_transform_edt(~inside))[patch]
    background = np.where(inside, distance_transform_edt(inside), 1 - distance_transform_edt(~inside))[patch]
    scores = torch.randn(1, 2, 7, generator=torch.Generator().manual_seed(0))
    p = scores.softmax(1)[0].double().numpy()
    expected = (p[0] * background + p[1] * phi).mean() / 2
    loss = SurfaceLoss(**OPTIONS)
    target = {"label": label[..., patch], "distance": item["distance"][None, :, patch]}
    assert LossWithMaps(loss)(scores, target).item() == pytest.approx(expected, rel=1e-5)
    assert loss(scores, target["label"]).item() != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("loss", [FusedDiceLoss(**OPTIONS), DiceLoss(**OPTIONS)])
def test_a_loss_without_maps_is_refused(loss: nn.Module) -> None:
    with pytest.raises(
        TypeError, match=rf"expected a loss that reads distance, got {type(loss).__name__}, which takes"
    ):
        LossWithMaps(loss)


def test_what_is_no_loss_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a loss that is a torch\.nn\.Module, got str"):
        LossWithMaps("@losses::surface")  # type: ignore[arg-type]


def test_a_target_without_label_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a target with 'label', got 'distance'"):
        LossWithMaps(MeanOfMap())(torch.zeros(1, 2, 4), {"distance": torch.zeros(1, 2, 4)})


def test_the_components_of_a_compound_are_seen() -> None:
    compound = CompoundLoss({"region": FusedDiceCELoss(**OPTIONS), "boundary": SurfaceLoss(**OPTIONS)}, [1.0, 0.5])
    loss = LossWithMaps(compound)
    assert loss.components == {}
    _, target = PrepareBatchMaps()(batch())
    scores = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    value = loss(scores, target)
    parts = loss.components
    assert list(parts) == ["region", "boundary"]
    assert value.item() == pytest.approx((parts["region"] + 0.5 * parts["boundary"]).item(), rel=1e-6)
    region = FusedDiceCELoss(**OPTIONS)(scores, target["label"])
    boundary = SurfaceLoss(**OPTIONS)(scores, target["label"], distance=target["distance"])
    assert [parts["region"].item(), parts["boundary"].item()] == pytest.approx([region.item(), boundary.item()])
    assert LossWithMaps(SurfaceLoss(**OPTIONS)).components == {}


# ---- MONAI's trainer -----------------------------------------------------------------


def trainer(loss: nn.Module, **options: Any) -> SupervisedTrainer:
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 3, padding=1)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=5,
        train_data_loader=DataLoader(Dataset(items()), batch_size=2),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 0.05),
        loss_function=loss,
        **options,
    )


@pytest.mark.parametrize("decollate", [True, False])
def test_the_trainer_learns_with_the_maps(decollate: bool) -> None:
    compound = CompoundLoss({"region": FusedDiceCELoss(**OPTIONS), "boundary": SurfaceLoss(**OPTIONS)}, [1.0, 0.1])
    engine = trainer(LossWithMaps(compound), prepare_batch=PrepareBatchMaps(), decollate=decollate)
    values: list[float] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: values.append(loss_of_output(e.state.output).item()))
    engine.run()
    assert len(values) == 10
    assert values[-1] < values[0] - 0.3


def test_metrics_and_postprocessing_of_the_training_read_the_label() -> None:
    """Against the same training without maps: with a weight of 0 for the part that reads them."""

    def dice(loss: nn.Module, **options: Any) -> Any:
        engine = trainer(
            loss,
            postprocessing=Compose([AsDiscreted("pred", argmax=True, to_onehot=2), AsDiscreted("label", to_onehot=2)]),
            key_train_metric={"dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
            **options,
        )
        engine.run()
        return engine.state.metrics["dice"]

    compound = CompoundLoss({"region": FusedDiceCELoss(**OPTIONS), "boundary": SurfaceLoss(**OPTIONS)}, [1.0, 0.0])
    with_maps = dice(LossWithMaps(compound), prepare_batch=PrepareBatchMaps(), train_handlers=[LabelWithoutMaps()])
    assert with_maps == pytest.approx(dice(FusedDiceCELoss(**OPTIONS)), abs=1e-6)
    assert with_maps > 0.4


def test_the_handler_leaves_a_plain_label_alone() -> None:
    engine = trainer(FusedDiceCELoss(**OPTIONS), train_handlers=[LabelWithoutMaps()], decollate=False)
    engine.run()
    assert engine.state.output["label"].shape == (2, 1, 8, 8, 8)
