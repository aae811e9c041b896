"""Two processes with unequal samples give what one process with all of them gives."""

import inspect
import warnings
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from loss_list import ENTRIES, LOSSES, LossEntry, told
from rank_cases import (
    RANK_CASES,
    SITUATIONS,
    UNEVEN,
    Data,
    RankCase,
    entries_of_the_bundle,
    network,
    public_losses,
    whole,
)
from torch import Tensor, nn

import monai_extra_losses.losses as losses

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
Result = tuple[Tensor, list[Tensor]]
DICE: dict[str, Any] = {"to_onehot_y": True, "softmax": True, "batch": True, "ignore_index": 255, "sync_batch": True}


def network_with_head() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1)).double()


def step(case: RankCase, model: nn.Module, data: Data) -> Result:
    """Value and gradients of a step; the value of one that has no gradient is that of a validation."""
    model.zero_grad()
    if not case.gradient:
        with torch.no_grad():
            return case(model, data), []
    value = case(model, data)
    value.backward()  # a rank in which nothing counts too: the others wait for it
    return value.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def steps_of_rank(rank: int) -> dict[str, dict[str, Result]]:
    model = nn.parallel.DistributedDataParallel(network())
    results: dict[str, dict[str, Result]] = {}
    for name, cases in RANK_CASES.items():
        results[name] = {}
        for kind, case in cases.items():
            with told(name, kind), warnings.catch_warnings():
                warnings.simplefilter("error")  # of a deprecated collective, say, in every rank
                results[name][kind] = step(case, model, case.data.of(case.samples[rank]))
    return results


def further_steps_of_rank(rank: int) -> dict[str, Result]:
    data = SITUATIONS["classes"]().of(UNEVEN[rank])
    compiled = torch.compile(losses.FusedDiceLoss(**DICE), backend="aot_eager", fullgraph=True)
    headless = losses.HeadlessNetwork(network_with_head(), head="1")
    with_head = losses.HeadLoss(headless.head, losses.FusedDiceLoss(**DICE))
    results = {}
    for name, loss, net in (("compiled", compiled, network()), ("head", with_head, headless)):
        model = nn.parallel.DistributedDataParallel(net)
        results[name] = step(RankCase(lambda loss=loss: loss), model, data)
    return results


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    init = {"init_method": f"file://{folder}/rendezvous", "timeout": timedelta(seconds=600)}
    dist.init_process_group("gloo", rank=rank, world_size=2, **init)
    try:
        torch.save((steps_of_rank(rank), further_steps_of_rank(rank)), f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_second_rank(_: int, folder: str) -> None:
    run_rank(1, folder)


@pytest.fixture(scope="module")
def of_each_rank(
    tmp_path_factory: pytest.TempPathFactory,
) -> list[tuple[dict[str, dict[str, Result]], dict[str, Result]]]:
    folder = tmp_path_factory.mktemp("ranks")
    other = mp.spawn(run_second_rank, (str(folder),), nprocs=1, join=False)
    assert other is not None
    try:
        run_rank(0, str(folder))  # in this process, which has imported all that it needs
    finally:
        while not other.join(timeout=60):
            pass
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def assert_same(got: Result, expected: Result, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(got[0], expected[0], atol=1e-12, rtol=1e-10)
    for gradient, other in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-12, rtol=rtol)


@pytest.mark.parametrize("name", RANK_CASES)
def test_two_ranks_are_one_rank_with_all_samples(name: str, of_each_rank: list[Any]) -> None:
    for kind, case in RANK_CASES[name].items():
        with told(kind):
            expected = step(case, network(), case.data)
            assert expected[0].isfinite()
            for results, _ in of_each_rank:
                assert_same(results[name][kind], expected)


def test_a_head_on_two_ranks_is_one_on_one(of_each_rank: list[Any]) -> None:
    case = RankCase(lambda: losses.FusedDiceLoss(**DICE))
    expected = step(case, network_with_head(), case.data)
    for _, further in of_each_rank:
        assert_same(further["head"], expected)


def test_a_compiled_loss_adds_up_over_the_ranks_in_one_graph(of_each_rank: list[Any]) -> None:
    for results, further in of_each_rank:
        assert_same(further["compiled"], results["FusedDiceLoss"]["softmax, classes, mean"])


@pytest.mark.parametrize("entry", [entry for entry in LOSSES if entry.syncs], ids=lambda entry: entry.name)
def test_the_data_needs_sync_batch(entry: LossEntry) -> None:
    """The mean over the ranks of their own values is another number, and so is the gradient."""
    case = RANK_CASES[entry.name][f"{entry.activations[0]}, classes, mean"]
    alone = entry.make(ignore_index=255, **({"batch": True} if entry.accepts("batch") else {}))
    model, data = network(), case.data
    of_ranks = [alone(model(part.images), part.labels) for part in map(data.of, UNEVEN)]
    assert abs(torch.stack(of_ranks).mean() - case(model, data)) > 1e-3


# Why the mean over ranks is not the loss of all, of losses that refuse `sync_batch`; docs/how_to/many_gpus.md says so.
NO_MEAN_OF_RANKS = {
    "AverageCalibrationLoss": "an absent class leaves the mean",
    "LogHausdorffLoss": "the logarithm of the mean",
    "SkeletonRecallLoss": "a class without a skeleton leaves the mean",
}


@pytest.mark.parametrize("entry", [entry for entry in LOSSES if not entry.syncs], ids=lambda entry: entry.name)
def test_a_loss_that_refuses_is_the_mean_of_equal_ranks(entry: LossEntry) -> None:
    data = SITUATIONS["classes"]()
    scores, labels = network()(data.images), data.labels.masked_fill(data.labels == 255, 0)
    loss = entry.make()
    of_ranks = [loss(scores[samples], labels[samples]) for samples in (slice(0, 2), slice(2, 4))]
    off = (torch.stack(of_ranks).mean() - loss(scores, labels)).abs()
    assert off > 1e-4 if entry.name in NO_MEAN_OF_RANKS else off < 1e-12


def test_every_loss_that_can_add_up_is_among_the_cases() -> None:
    """Whatever public name it has, alone or in the bundle; every other one refuses the option."""
    found = public_losses()
    assert len(found) > 40
    for name, cls in found.items():
        batch = {"batch": True} if "batch" in inspect.signature(cls).parameters else {}
        if cls.__name__ in RANK_CASES:
            continue
        with told(name), pytest.raises(ValueError, match="expected sync_batch=False, got True: "):
            cls(sync_batch=True, **batch, **ENTRIES[cls.__name__].required)
    entries = entries_of_the_bundle()
    assert {name for name, content in entries.items() if whole(content)} == RANK_CASES["configs/losses.yaml"].keys()
    assert len(RANK_CASES["configs/losses.yaml"]) > 20
