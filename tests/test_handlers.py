"""The metrics of an evaluation and their rule for empty classes."""

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import from_engine
from monai.transforms import Decollated

from monai_extra_losses.bundle.case_report import EmptyAwareDice, case_metrics
from monai_extra_losses.bundle.case_tables import CASE_METRICS, summarise
from monai_extra_losses.bundle.handlers import ListedOutput, loss_of_output
from monai_extra_losses.bundle.training_record import listed_dice
from monai_extra_losses.report.tables import shown_duration

SPACING = (1.0, 1.0, 3.0)


def box(*starts: int, shape: tuple[int, int, int] = (12, 12, 12), size: int = 4) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(start, start + size) for start in starts)] = True
    return mask


NOTHING = np.zeros((12, 12, 12), dtype=bool)
DIAGONAL = math.sqrt(12**2 + 12**2 + 36**2)


def measure(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    return case_metrics(prediction, target, spacing=SPACING, surface_tolerance_mm=1.0)


def test_a_perfect_prediction() -> None:
    measured = measure(box(2, 2, 2), box(2, 2, 2))
    assert measured == pytest.approx(
        {
            "dice": 1.0,
            "hd95_mm": 0.0,
            "surface_dice": 1.0,
            "target_ml": 64 * 3 / 1000,
            "prediction_ml": 64 * 3 / 1000,
            "false_positive_ml": 0.0,
        }
    )


def test_distances_are_millimetres() -> None:
    along_x, along_z = measure(box(3, 2, 2), box(2, 2, 2)), measure(box(2, 2, 3), box(2, 2, 2))
    assert along_x["dice"] == along_z["dice"] == pytest.approx(0.75)
    assert along_x["hd95_mm"] == pytest.approx(1.0)
    assert along_z["hd95_mm"] == pytest.approx(3.0)
    # a shift by one voxel is within 1 mm along x, and outside along z
    assert along_x["surface_dice"] == pytest.approx(1.0)
    assert along_z["surface_dice"] < 1
    assert along_z["false_positive_ml"] == pytest.approx(16 * 3 / 1000)


@pytest.mark.parametrize(("prediction", "target"), [(NOTHING, box(2, 2, 2)), (box(2, 2, 2), NOTHING)])
def test_a_missed_or_invented_class_counts_with_the_worst_value(prediction: np.ndarray, target: np.ndarray) -> None:
    measured = measure(prediction, target)
    assert (measured["dice"], measured["surface_dice"]) == (0, 0)
    assert measured["hd95_mm"] == pytest.approx(DIAGONAL)


def test_a_class_in_neither_is_undefined() -> None:
    measured = measure(NOTHING, NOTHING)
    assert all(math.isnan(measured[metric]) for metric in ("dice", "hd95_mm", "surface_dice"))
    assert measured["false_positive_ml"] == 0


def test_no_missed_or_invented_lesion_improves_a_mean() -> None:
    """Against the same case segmented somehow (a lesion) or left empty (no lesion)."""

    def means(predictions: list[np.ndarray], targets: list[np.ndarray]) -> dict[str, float]:
        rows = [
            {"case": str(i), "label": "lesion", **measure(p, g)}
            for i, (p, g) in enumerate(zip(predictions, targets, strict=True))
        ]
        return summarise(rows, ["lesion"])[0]

    targets = [box(2, 2, 2), box(6, 6, 6), NOTHING]
    sensible = means([box(2, 2, 3), box(5, 6, 6), NOTHING], targets)
    missed = means([box(2, 2, 3), NOTHING, NOTHING], targets)
    invented = means([box(2, 2, 3), box(5, 6, 6), box(0, 0, 0)], targets)
    far_off = means([box(2, 2, 3), box(0, 0, 0), NOTHING], targets)
    assert sensible["dice_undefined"] == 1
    assert invented["dice_undefined"] == 0
    for worse in (missed, invented):
        assert worse["dice_mean"] < sensible["dice_mean"]
        assert worse["surface_dice_mean"] < sensible["surface_dice_mean"]
        assert worse["hd95_mm_mean"] > sensible["hd95_mm_mean"]
    # even a lesion segmented in a wrong place is no worse than one missed
    assert far_off["hd95_mm_mean"] < missed["hd95_mm_mean"]


def test_the_summary_says_how_many_cases_were_undefined() -> None:
    rows = [
        {"case": case, "label": label, **measure(prediction, target)}
        for case, label, prediction, target in [
            ("a", "organ", box(2, 2, 2), box(2, 2, 2)),
            ("a", "lesion", NOTHING, NOTHING),
            ("b", "organ", box(3, 2, 2), box(2, 2, 2)),
            ("b", "lesion", NOTHING, box(2, 2, 2)),
        ]
    ]
    organ, lesion, mean = summarise(rows, ["organ", "lesion"])
    assert organ["dice_mean"] == pytest.approx(0.875)
    assert organ["dice_sd"] == pytest.approx(np.std([1, 0.75], ddof=1))
    assert (lesion["cases"], lesion["dice_undefined"], lesion["dice_mean"]) == (2, 1, 0)
    assert math.isnan(lesion["dice_sd"])
    assert mean["label"] == "mean"
    assert mean["dice_mean"] == pytest.approx((0.875 + 0) / 2)
    assert mean["dice_undefined"] == 1
    assert set(mean) == {"label", "cases"} | {
        f"{metric}_{kind}" for metric in CASE_METRICS for kind in ("mean", "sd", "median", "undefined")
    }


def test_the_validation_metric_has_the_same_rule() -> None:
    def volume(**classes: np.ndarray) -> torch.Tensor:
        labels = np.zeros((1, 1, 12, 12, 12))
        for number, mask in classes.items():
            labels[0, 0, mask] = int(number[1:])
        return torch.from_numpy(labels)

    metric = EmptyAwareDice(num_classes=4)
    organ, lesion = box(0, 0, 0), box(6, 6, 6)
    metric(volume(c1=box(1, 0, 0)), volume(c1=organ))  # 2 undefined
    metric(volume(c1=organ, c2=lesion), volume(c1=organ))  # 2 invented
    metric(volume(c1=organ, c2=box(5, 6, 6)), volume(c1=organ, c2=lesion))
    per_class = metric.per_class()
    torch.testing.assert_close(per_class[:2].double(), torch.tensor([(0.75 + 1 + 1) / 3, (0 + 0.75) / 2]).double())
    assert per_class[2].isnan()  # no case has the third class
    assert metric.aggregate().item() == pytest.approx(((0.75 + 1 + 1) / 3 + 0.75 / 2) / 2)


def test_the_loss_is_found_in_both_kinds_of_output() -> None:
    assert loss_of_output({"loss": torch.tensor(0.5, requires_grad=True)}) == torch.tensor(0.5)
    # MONAI makes a number of it where it takes the batch apart
    batch = {"image": torch.zeros(2, 1), "loss": torch.tensor(0.5, requires_grad=True)}
    assert loss_of_output(Decollated(keys=None, detach=True)(batch)) == torch.tensor(0.5)


def test_loggers_of_monai_find_the_loss() -> None:
    """As the handler of `--tracking mlflow` reads it."""
    found = []
    engine = Engine(lambda _, batch: {"loss": batch})
    ListedOutput().attach(engine)
    loss_for_logger = from_engine(["loss"], first=True)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: found.append(loss_for_logger(e.state.output)))
    engine.run([0.5, 0.25])
    assert found == [0.5, 0.25]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h")]
)
def test_a_duration_is_one_to_read(seconds: float, text: str) -> None:
    assert shown_duration(seconds) == text


def test_of_many_classes_the_log_names_the_lowest() -> None:
    names = [f"class {i}" for i in range(12)]
    assert listed_dice(names[:3], [0.5, math.nan, 0.1234]) == "class 0 0.500, class 1 undefined, class 2 0.123"
    assert listed_dice(names[:10], [0.5] * 10).count("class") == 10
    dice = [0.9, 0.1, math.nan, 0.2, *[0.8] * 8]
    assert listed_dice(names, dice) == "12 classes, the lowest class 1 0.100, class 3 0.200, class 4 0.800"
