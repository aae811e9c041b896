"""Two processes with unequal samples give what one process with all of them gives."""

import warnings
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import monai_extra_losses.losses as losses

OPTIONS: dict[str, Any] = {"to_onehot_y": True, "sync_batch": True, "ignore_index": 255}
REGION = {**OPTIONS, "batch": True, "softmax": True}
WEIGHT = [0.5, 2.0, 3.0]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Dice": ("FusedDiceLoss", REGION),
    "Dice, squared, sum": ("FusedDiceLoss", {**REGION, "squared_pred": True, "reduction": "sum", "weight": WEIGHT}),
    "Dice, skip": ("FusedDiceLoss", {**REGION, "absent_class": "skip", "include_background": False}),
    "Jaccard": ("JaccardLoss", {**REGION, "softmax": False, "sigmoid": True}),
    "Tversky": ("FusedTverskyLoss", {**REGION, "alpha": 0.3, "beta": 0.7}),
    "focal Tversky": ("FocalTverskyLoss", REGION),
    "cross-entropy": ("CrossEntropyLoss", {**OPTIONS, "softmax": True}),
    "cross-entropy, weighted": ("CrossEntropyLoss", {**OPTIONS, "softmax": True, "weight": WEIGHT}),
    "cross-entropy, smoothed": ("CrossEntropyLoss", {**OPTIONS, "softmax": True, "label_smoothing": 0.1}),
    "binary cross-entropy, weighted": ("CrossEntropyLoss", {**OPTIONS, "sigmoid": True, "weight": WEIGHT}),
    "focal": ("FusedFocalLoss", {**OPTIONS, "use_softmax": True, "alpha": 0.25}),
    "cross-entropy, sum": ("CrossEntropyLoss", {**OPTIONS, "softmax": True, "reduction": "sum"}),
    "focal, sum": ("FusedFocalLoss", {**OPTIONS, "reduction": "sum"}),
    "Dice and cross-entropy, sum": ("FusedDiceCELoss", {**REGION, "reduction": "sum"}),
    "cross-entropy, one rank ignored": ("CrossEntropyLoss", {**OPTIONS, "softmax": True, "ignore_index": 3}),
    "Dice, one rank ignored": ("FusedDiceLoss", {**REGION, "ignore_index": 3}),
    "Dice and cross-entropy": ("FusedDiceCELoss", REGION),
    "log-cosh Dice": ("LogCoshDiceLoss", REGION),
    "generalized Dice": ("FusedGeneralizedDiceLoss", REGION),
    "generalized Dice, skip": ("FusedGeneralizedDiceLoss", {**REGION, "absent_class": "skip"}),
    "sensitivity-specificity": ("SensitivitySpecificityLoss", {**REGION, "sensitivity_weight": 0.4}),
    "two-class Dice": ("TwoClassDiceLoss", REGION),
    "noise-robust Dice": ("NoiseRobustDiceLoss", {**REGION, "weight": WEIGHT}),
    "boundary DoU": ("BoundaryDoULoss", REGION),
    "poly": ("PolyLoss", {**OPTIONS, "softmax": True, "weight": WEIGHT}),
    "generalized cross-entropy": ("GeneralizedCrossEntropyLoss", {**OPTIONS, "sigmoid": True}),
    "weighted cross-entropy": ("WeightedCrossEntropyLoss", {**OPTIONS, "softmax": True, "mode": "prediction"}),
    "balanced cross-entropy": ("BalancedCrossEntropyLoss", {**OPTIONS, "softmax": True, "weight": WEIGHT}),
    "hinge": ("HingeLoss", OPTIONS),
    "categorical hinge": ("CategoricalHingeLoss", {**OPTIONS, "weight": WEIGHT}),
    "Dice and focal": ("FusedDiceFocalLoss", REGION),
    "Combo": ("ComboLoss", REGION),
    "exponential logarithmic": ("ExponentialLogarithmicLoss", REGION),
    "exponential logarithmic, sigmoid": ("ExponentialLogarithmicLoss", {**REGION, "softmax": False, "sigmoid": True}),
    "unified focal": ("UnifiedFocalLoss", {**REGION, "asymmetric": True}),
    "Dice and cross-entropy, weighted": ("FusedDiceCELoss", {**REGION, "weight": WEIGHT, "lambda_ce": 0.3}),
}
PARTLY = [
    "Dice",
    "cross-entropy",
    "Dice and cross-entropy",
    "generalized Dice",
    "exponential logarithmic",
    "unified focal",
]
SAMPLES_OF_RANK = [slice(0, 1), slice(1, 4)]  # unequal


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(2, 3, 3, padding=1).double()


def network_with_head() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1)).double()


def data(case: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 2, 8, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (4, 1, 8, 9), generator=generator)
    if "one rank ignored" in case:
        labels[0] = 3
        return images, labels
    labels[0, :, :5] = 255
    labels[0][labels[0] == 2] = 1  # a class that only the second process sees
    return images, labels


def partly_annotated() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and what is annotated: each process knows a class of which the other one has not heard."""
    images, labels = data("Dice")
    known = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 0, 1], [1, 0, 1]], dtype=torch.bool)
    for sample, row in enumerate(known):
        for c in (~row).nonzero().flatten():
            labels[sample][labels[sample] == c] = 0
    return images, labels, known


def make(case: str) -> nn.Module:
    name, options = CASES[case]
    return getattr(losses, name)(**options)


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    init = {"init_method": f"file://{folder}/rendezvous", "timeout": timedelta(seconds=600)}
    dist.init_process_group("gloo", rank=rank, world_size=2, **init)
    try:
        results = {}
        for case in CASES:
            images, labels = (tensor[SAMPLES_OF_RANK[rank]] for tensor in data(case))
            model = nn.parallel.DistributedDataParallel(network())
            scores = model(images)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of a deprecated collective, say, in every rank
                value = make(case)(scores, labels)
            value.backward()
            results[case] = value.detach(), [p.grad for p in model.parameters()]
        images, labels = (tensor[SAMPLES_OF_RANK[rank]] for tensor in data("Dice"))
        model = nn.parallel.DistributedDataParallel(network())
        compiled = torch.compile(make("Dice"), backend="aot_eager", fullgraph=True)
        value = compiled(model(images), labels)
        value.backward()
        results["compiled"] = value.detach(), [p.grad for p in model.parameters()]
        headless = losses.HeadlessNetwork(network_with_head(), head="1")
        model = nn.parallel.DistributedDataParallel(headless)
        value = losses.HeadLoss(headless.head, make("Dice"))(model(images), labels)
        value.backward()
        results["head"] = value.detach(), [p.grad for p in model.parameters()]
        for case in PARTLY:
            images, labels, known = (tensor[SAMPLES_OF_RANK[rank]] for tensor in partly_annotated())
            model = nn.parallel.DistributedDataParallel(network())
            value = losses.PartialLabelLoss(make(case))(model(images), labels, annotated=known)
            value.backward()
            results[f"partial {case}"] = value.detach(), [p.grad for p in model.parameters()]
        torch.save(results, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_second_rank(_: int, folder: str) -> None:
    run_rank(1, folder)


@pytest.fixture(scope="module")
def of_each_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Tensor, list[Tensor]]]]:
    folder = tmp_path_factory.mktemp("ranks")
    other = mp.spawn(run_second_rank, (str(folder),), nprocs=1, join=False)
    assert other is not None
    try:
        run_rank(0, str(folder))  # in this process, which has imported all that it needs
    finally:
        while not other.join(timeout=60):
            pass
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_rank_with_all_samples(case: str, of_each_rank: list[dict[str, Any]]) -> None:
    model, (images, labels) = network(), data(case)
    value = make(case)(model(images), labels)
    value.backward()
    for results in of_each_rank:
        got, gradients = results[case]
        torch.testing.assert_close(got, value.detach(), atol=1e-12, rtol=1e-10)
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-12, rtol=1e-10)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("case", PARTLY)
def test_ranks_that_annotate_other_classes_are_one_rank(case: str, of_each_rank: list[dict[str, Any]]) -> None:
    model, (images, labels, known) = network(), partly_annotated()
    value = losses.PartialLabelLoss(make(case))(model(images), labels, annotated=known)
    value.backward()
    for results in of_each_rank:
        got, gradients = results[f"partial {case}"]
        torch.testing.assert_close(got, value.detach(), atol=1e-12, rtol=1e-10)
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-12, rtol=1e-10)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_a_head_on_two_ranks_is_one_on_one(of_each_rank: list[dict[str, Any]]) -> None:
    model, (images, labels) = network_with_head(), data("Dice")
    value = make("Dice")(model(images), labels)
    value.backward()
    for results in of_each_rank:
        got, gradients = results["head"]
        torch.testing.assert_close(got, value.detach(), atol=1e-12, rtol=1e-10)
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-12, rtol=1e-10)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_a_compiled_loss_adds_up_over_the_ranks_in_one_graph(of_each_rank: list[dict[str, Any]]) -> None:
    for results in of_each_rank:
        torch.testing.assert_close(results["compiled"], results["Dice"], atol=1e-12, rtol=1e-10)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_the_data_needs_sync_batch(of_each_rank: list[dict[str, Any]]) -> None:
    """The mean over the ranks of their own values is another number."""
    model, (images, labels) = network(), data("Dice")
    options = {**CASES["Dice"][1], "sync_batch": False}
    alone = [losses.FusedDiceLoss(**options)(model(images[s]), labels[s]) for s in SAMPLES_OF_RANK]
    assert abs(torch.stack(alone).mean() - of_each_rank[0]["Dice"][0]) > 1e-3
