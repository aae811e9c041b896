"""Weights that follow the epochs: their values, what is refused, and the way through a checkpoint."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader, CheckpointSaver
from torch import nn

from monai_extra_losses import CompoundLoss, FusedDiceCELoss, FusedDiceLoss, SurfaceLoss
from monai_extra_losses.handlers import LossWeightSchedule
from monai_extra_losses.schedules import WeightRamp


def compound() -> CompoundLoss:
    return CompoundLoss({"region": FusedDiceLoss(), "boundary": SurfaceLoss(), "other": FusedDiceCELoss()}, [1, 2, 3])


def run(schedule: LossWeightSchedule, epochs: int, attached: Any = ()) -> list[list[float]]:
    """The loss's weights in each epoch of a training."""
    engine = Engine(lambda engine, batch: None)
    schedule.attach(engine)
    for handler in attached:
        handler.attach(engine)
    seen: list[list[float]] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(list(schedule.loss.weights)))
    engine.run([0], max_epochs=epochs)
    return seen


# ---- values --------------------------------------------------------------------------


def test_linear_is_the_paper_s_rebalancing() -> None:
    ramps = {"region": WeightRamp(1.0, 0.01, last_epoch=100), "boundary": WeightRamp(0.01, 1.0, last_epoch=100)}
    weights = run(LossWeightSchedule(compound(), ramps), 120)
    for epoch, (region, boundary, other) in enumerate(weights, 1):
        steps = min(epoch - 1, 99)
        assert region == pytest.approx(1 - 0.01 * steps)
        assert boundary == pytest.approx(0.01 + 0.01 * steps)
        assert other == 3
    assert weights[99][:2] == [0.01, 1.0]  # exactly


def test_cosine_is_slow_at_both_ends() -> None:
    ramp = WeightRamp(2.0, 0.5, "cosine", first_epoch=3, last_epoch=7)
    expected = [2, 2, 2, *(0.5 + 1.5 * (1 + math.cos(math.pi * t)) / 2 for t in (0.25, 0.5, 0.75)), 0.5, 0.5]
    assert [ramp.at(epoch, 8) for epoch in range(1, 9)] == pytest.approx(expected)


def test_step_jumps_at_the_last_epoch() -> None:
    ramp = WeightRamp(0.0, 0.7, "step", last_epoch=4)
    assert [ramp.at(epoch, 6) for epoch in range(1, 7)] == [0, 0, 0, 0.7, 0.7, 0.7]


@pytest.mark.parametrize("kind", ["linear", "cosine", "step"])
def test_without_a_last_epoch_it_ends_with_the_training(kind: Any) -> None:
    schedule = LossWeightSchedule(compound(), {"boundary": {"start": 0.25, "end": 1, "kind": kind}})
    assert [weights[1] for weights in run(schedule, 3)][::2] == [0.25, 1]
    assert WeightRamp(0.25, 1.0, kind).at(1, max_epochs=1) == 1  # start and end at once


def test_only_the_parts_named_change() -> None:
    loss = compound()
    run(LossWeightSchedule(loss, {"boundary": WeightRamp(0, 1)}), 2)
    assert loss.weights == [1, 1, 3]


def test_the_weights_are_those_of_the_loss() -> None:
    loss = CompoundLoss({"one": FusedDiceLoss(sigmoid=True), "two": SurfaceLoss(sigmoid=True)})
    LossWeightSchedule(loss, {"one": WeightRamp(4, 4), "two": WeightRamp(0.5, 0.5)}).set_weights(1, 10)
    scores, target = torch.randn(1, 2, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 2, 6)
    target[..., 2:4] = 1
    expected = 4 * FusedDiceLoss(sigmoid=True)(scores, target) + 0.5 * SurfaceLoss(sigmoid=True)(scores, target)
    assert loss(scores, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_no_ramps_take_any_loss_and_change_nothing() -> None:
    engine = Engine(lambda engine, batch: None)
    schedule = LossWeightSchedule(FusedDiceLoss(), None)
    schedule.attach(engine)
    assert not engine.has_event_handler(schedule._start_epoch)
    assert schedule.state_dict() == {"ramps": {}, "weights": {}}
    schedule.load_state_dict(schedule.state_dict())
    loss = compound()
    run(LossWeightSchedule(loss, None), 2)
    assert loss.weights == [1, 2, 3]


# ---- a checkpoint --------------------------------------------------------------------


def test_a_checkpoint_brings_the_weights_back(tmp_path: Path) -> None:
    """Through MONAI's saver and loader, which reads with weights_only."""
    ramps = {"region": {"start": 1.0, "end": 0.2, "last_epoch": 5}, "boundary": WeightRamp(0.0, 1.0, "cosine", 2, 4)}
    whole = run(LossWeightSchedule(compound(), ramps), 5)

    first = LossWeightSchedule(compound(), ramps)
    saver = CheckpointSaver(str(tmp_path), {"schedule": first, "more": nn.Linear(1, 1)}, save_final=True)
    assert run(first, 3, [saver]) == whole[:3]

    again = LossWeightSchedule(compound(), ramps)
    loader = CheckpointLoader(str(next(tmp_path.glob("*.pt"))), {"schedule": again})
    engine = Engine(lambda engine, batch: None)
    loader.attach(engine)
    engine.run([0], max_epochs=1)
    assert again.loss.weights == whole[2]
    again.set_weights(4, 5)
    assert again.loss.weights == whole[3]


@pytest.mark.parametrize(
    ("loss", "ramps"),
    [
        (compound(), {"region": WeightRamp(1.0, 0.3)}),
        (compound(), {"boundary": WeightRamp(1.0, 0.2)}),
        (CompoundLoss({"boundary": SurfaceLoss(), "region": FusedDiceLoss()}), {"region": WeightRamp(1.0, 0.2)}),
    ],
)
def test_the_checkpoint_of_another_schedule_is_refused(loss: CompoundLoss, ramps: Any) -> None:
    state = LossWeightSchedule(compound(), {"region": WeightRamp(1.0, 0.2)}).state_dict()
    before = list(loss.weights)
    with pytest.raises(ValueError, match=r"expected the checkpoint of the schedule .*, got .*'end': 0\.2"):
        LossWeightSchedule(loss, ramps).load_state_dict(state)
    assert loss.weights == before


def test_a_weight_that_is_learnt_has_no_ramp_and_stays_with_the_loss() -> None:
    def learnt() -> CompoundLoss:
        weight = nn.Parameter(torch.tensor(0.5))
        return CompoundLoss({"region": FusedDiceLoss(), "boundary": SurfaceLoss()}, [1.0, weight])

    with pytest.raises(ValueError, match="expected a weight that is a number, got that of 'boundary', which is learnt"):
        LossWeightSchedule(learnt(), {"boundary": WeightRamp(1.0, 0.2)})
    ramps = {"region": WeightRamp(1.0, 0.2, last_epoch=3)}
    schedule = LossWeightSchedule(learnt(), ramps)
    schedule.set_weights(3, 3)
    state = schedule.state_dict()
    assert state["weights"] == {"region": 0.2, "boundary": 0.5}
    again = LossWeightSchedule(learnt(), ramps)
    with torch.no_grad():
        again.loss.weights[1].fill_(2.0)
    again.load_state_dict(state)
    assert again.loss.weight_values == [0.2, 2.0]
    assert len(list(again.loss.parameters())) == 1


# ---- refusals ------------------------------------------------------------------------


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="expected parts of the loss, region, boundary, other, got 'boundry'"):
        LossWeightSchedule(compound(), {"boundry": WeightRamp(0, 1)})


def test_a_loss_without_parts_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a CompoundLoss, whose parts have weights, got FusedDiceCELoss"):
        LossWeightSchedule(FusedDiceCELoss(), {"dice": WeightRamp(0, 1)})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"start": -0.1}, "expected start to be a weight >= 0, got -0.1"),
        ({"end": math.inf}, "expected end to be a weight >= 0, got inf"),
        ({"end": math.nan}, "expected end to be a weight >= 0, got nan"),
        ({"end": "1.0"}, "expected end to be a weight >= 0, got '1.0'"),
        ({"start": True}, "expected start to be a weight >= 0, got True"),
        ({"kind": "quadratic"}, "expected a kind of linear, cosine, step, got 'quadratic'"),
        ({"first_epoch": 0}, "expected whole epochs with 1 <= first_epoch <= last_epoch, got 0 and None"),
        ({"first_epoch": 5, "last_epoch": 4}, "expected whole epochs with 1 <= first_epoch <= last_epoch, got 5 and 4"),
        ({"last_epoch": 4.5}, "expected whole epochs with 1 <= first_epoch <= last_epoch, got 1 and 4.5"),
    ],
)
def test_a_ramp_that_cannot_work_is_refused(options: dict[str, Any], sentence: str) -> None:
    values = {"start": 1.0, "end": 0.5, **options}
    with pytest.raises(ValueError, match=f"^{sentence}"):
        WeightRamp(**values)
    with pytest.raises(ValueError, match=f"^boundary: {sentence}"):
        LossWeightSchedule(compound(), {"boundary": values})


@pytest.mark.parametrize("ramp", [{"start": 1.0}, {"start": 1.0, "end": 0.5, "until": 3}, 0.5, None])
def test_what_is_no_ramp_is_refused(ramp: Any) -> None:
    known = "boundary: expected a ramp of start, end, kind, first_epoch, last_epoch"
    with pytest.raises(ValueError, match=known):
        LossWeightSchedule(compound(), {"boundary": ramp})


def test_a_ramp_that_begins_after_the_training_stays_where_it_is() -> None:
    ramp = WeightRamp(1.0, 0.0, first_epoch=100)
    assert [ramp.at(epoch, max_epochs=50) for epoch in (1, 49, 50)] == [1.0, 1.0, 1.0]
