"""Lesions found, missed and invented: the rules, the tables, the pictures."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.axes import Axes
from monai.data import MetaTensor
from runs import evaluate, table, train
from scipy.stats import binomtest

from monai_extra_losses.bundle.case_report import CaseReport
from monai_extra_losses.bundle.lesion_matching import BINS_ML, LesionRule, match_lesions
from monai_extra_losses.bundle.lesion_metrics import LesionMetrics, volume_bins
from monai_extra_losses.bundle.metric_set import VoxelGrid
from monai_extra_losses.bundle.options import metric_sets, share
from monai_extra_losses.bundle.options import volume_bins as bins_option
from monai_extra_losses.bundle.run_folder import ResultsFolder, RunFolder
from monai_extra_losses.data.errors import StartUpRefused
from monai_extra_losses.ops.merging import ANNOTATED
from monai_extra_losses.report import draw_overlay
from monai_extra_losses.report.lesions import draw_sensitivity, wilson_interval

GRID = VoxelGrid((2.0, 1.0, 1.0), np.diag([2.0, 1, 1, 1]))  # a voxel is 0.002 ml
HEADLINE = [
    "lesions",
    "predicted_lesions",
    "lesion_sensitivity",
    "lesion_precision",
    "lesion_f1",
    "false_positive_lesions",
]


def _volume(*boxes: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros((12, 12, 12), dtype=bool)
    for box in boxes:
        mask[box] = True
    return mask


A = (slice(1, 3), slice(1, 3), slice(1, 6))  # 20 voxels
B = (slice(1, 3), slice(1, 3), slice(7, 9))  # 8 voxels, a voxel away from A
C = (slice(8, 10), slice(8, 10), slice(8, 10))  # 8 voxels, far away
NOTHING = _volume()


def _numbers(prediction: np.ndarray, target: np.ndarray, overlap: float = 0.0) -> list[float]:
    numbers = LesionMetrics(LesionRule(overlap)).measure(prediction, target, GRID).numbers
    assert list(numbers) == HEADLINE
    return list(numbers.values())


# ---- the rule ----


def test_any_voxel_finds_a_lesion() -> None:
    hit = NOTHING.copy()
    hit[2, 2, 5] = True  # of A
    match = match_lesions(hit, _volume(A, C), LesionRule())
    assert match.voxels.tolist() == [20, 8]
    assert match.found.tolist() == [True, False]
    assert match.overlap.tolist() == [1 / 20, 0]
    assert match.dice.tolist() == [2 / 21, 0]
    assert match.true.tolist() == [True]
    np.testing.assert_array_equal(match.missed, _volume(C))
    assert not match.invented.any()
    assert _numbers(hit, _volume(A, C)) == [2, 1, 0.5, 1, pytest.approx(2 / 3), 0]


@pytest.mark.parametrize(("overlap", "found"), [(0.69, True), (0.7, True), (0.71, False)])
def test_a_share_of_the_lesion_must_be_predicted(overlap: float, found: bool) -> None:
    line = (slice(5, 6), slice(5, 6), slice(1, 11))  # 10 voxels, of which 7
    part = (slice(5, 6), slice(5, 6), slice(1, 8))
    assert _numbers(_volume(part), _volume(line), overlap)[2:4] == [float(found), 1]
    assert _numbers(_volume(line), _volume(part), overlap)[2:4] == [1, float(found)], "the same of what is predicted"


def test_pieces_of_a_lesion_count_together_for_it_and_each_as_one_predicted() -> None:
    pieces = _volume((A[0], A[1], slice(1, 3)), (A[0], A[1], slice(4, 6)))
    assert _numbers(pieces, _volume(A)) == [1, 2, 1, 1, 1, 0]
    match = match_lesions(pieces, _volume(A), LesionRule(0.8))
    assert match.overlap.tolist() == [0.8]
    assert match.found.tolist() == [True]
    assert match.dice.tolist() == [2 * 16 / (20 + 16)]
    assert not match_lesions(pieces, _volume(A), LesionRule(0.81)).found.any()


def test_a_component_over_two_lesions_finds_both_and_is_one() -> None:
    both = _volume((A[0], A[1], slice(1, 9)))  # A, B and the 4 voxels between
    assert _numbers(both, _volume(A, B)) == [2, 1, 1, 1, 1, 0]
    match = match_lesions(both, _volume(A, B), LesionRule())
    assert match.dice.tolist() == [2 * 20 / (20 + 24), 2 * 8 / (8 + 12)], "the other lesion is not held against it"
    assert match_lesions(both, _volume(A, B), LesionRule(28 / 32)).true.tolist() == [True]
    assert match_lesions(both, _volume(A, B), LesionRule(29 / 32)).true.tolist() == [False]


def test_voxels_that_share_a_corner_are_one_lesion() -> None:
    corner = _volume((slice(1, 2),) * 3, (slice(2, 3),) * 3)  # type: ignore[arg-type]
    assert _numbers(NOTHING, corner)[0] == 1


def test_false_positives_are_counted_and_marked() -> None:
    prediction = _volume(B, C)
    assert _numbers(prediction, _volume(B)) == [1, 2, 1, 0.5, pytest.approx(2 / 3), 1]
    measured = LesionMetrics(LesionRule()).measure(prediction, _volume(A, B), GRID)
    np.testing.assert_array_equal(measured.invented, _volume(C))
    np.testing.assert_array_equal(measured.missed, _volume(A))


def test_what_is_undefined_is_no_perfect_score() -> None:
    assert _same(_numbers(NOTHING, NOTHING), [0, 0, math.nan, math.nan, math.nan, 0])
    assert _same(_numbers(_volume(A, C), NOTHING), [0, 2, math.nan, 0, 0, 2])
    assert _same(_numbers(NOTHING, _volume(A)), [1, 0, 0, math.nan, 0, 0])
    assert _same(_numbers(_volume(C), _volume(A)), [1, 1, 0, 0, 0, 1])


def _same(numbers: list[float], expected: list[float]) -> bool:
    return np.array_equal(numbers, expected, equal_nan=True)


@pytest.mark.parametrize("seed", range(3))
def test_the_counts_are_those_of_a_loop_over_lesions(seed: int) -> None:
    """Sensitivity and precision of the WMH challenge, written as a loop with scipy."""
    from scipy import ndimage

    generator = np.random.default_rng(seed)
    prediction, target = (
        ndimage.binary_dilation(generator.random((20, 20, 20)) < 0.004, iterations=1) for _ in range(2)
    )
    target |= np.roll(prediction, 2, axis=0) & (generator.random(20) < 0.5)[:, None, None]

    def hits(own: np.ndarray, other: np.ndarray) -> list[bool]:
        numbered, count = ndimage.label(own, np.ones((3, 3, 3)))
        return [bool(other[numbered == number].any()) for number in range(1, count + 1)]

    found, true = hits(target, prediction), hits(prediction, target)
    assert 0 < np.mean(found) < 1
    assert 0 < np.mean(true) < 1
    numbers = _numbers(prediction, target)
    assert numbers[:4] == [len(found), len(true), pytest.approx(np.mean(found)), pytest.approx(np.mean(true))]
    assert numbers[5] == len(true) - sum(true)


# ---- the bins ----


def test_bins_are_named_by_their_edges() -> None:
    assert volume_bins(BINS_ML, []) == {
        "0_to_0.01_ml": (0, 0.01),
        "0.01_to_0.1_ml": (0.01, 0.1),
        "0.1_to_1_ml": (0.1, 1),
        "from_1_ml": (1, math.inf),
    }


def test_bins_of_the_data_hold_as_many_lesions_each() -> None:
    volumes = np.random.default_rng(0).permutation(np.arange(1, 41) / 1000)
    bins = volume_bins(4, volumes.tolist())
    assert [int(((low <= volumes) & (volumes < high)).sum()) for low, high in bins.values()] == [10, 10, 10, 10]
    assert list(volume_bins(3, [0.5] * 9)) == ["from_0_ml"], "of equal lesions there is one bin"
    assert list(volume_bins(3, [])) == ["from_0_ml"]


@pytest.mark.parametrize("given", [[0.1, 0.01], [0.1, 0.1], [0], [-1], [], [1, 2, 3, 4, 5, 6], 1, 7, True, "x", None])
def test_other_bins_are_refused(given: Any) -> None:
    with pytest.raises(StartUpRefused, match="Expected lesion_bins to be 1 to 5 rising edges in ml such as"):
        bins_option("lesion_bins", given)


def test_bins_and_shares_are_read_as_text() -> None:
    assert bins_option("lesion_bins", "[0.1, 5]") == (0.1, 5)
    assert bins_option("lesion_bins", "4") == 4
    assert share("lesion_overlap", "0.25") == 0.25
    for wrong in (-0.1, 1.1, True, "much"):
        with pytest.raises(StartUpRefused, match="Expected lesion_overlap to be a share, 0 to 1, got"):
            share("lesion_overlap", wrong)


# ---- the report ----


def _report(folder: Path, cases: dict[str, tuple[np.ndarray, np.ndarray]], **options: Any) -> ResultsFolder:
    """Files of a report of cases: name -> label map, prediction."""
    settings: dict[str, Any] = {"labels": {1: "lesion"}, "surface_tolerance_mm": 1.0, "metrics": ["lesions"]}
    report = CaseReport(folder=ResultsFolder(folder), overlays=False, **{**settings, **options})
    for name, (label, prediction) in cases.items():
        volumes = {
            key: MetaTensor(torch.from_numpy(volume.astype(np.int64))[None], affine=GRID.affine)
            for key, volume in (("label", label), ("pred", prediction))
        }
        if "annotated" in name:
            volumes["label"].meta[ANNOTATED] = np.array([1, 1, 0])
        item = {**volumes, "picture": volumes["label"]}
        report._measure(SimpleNamespace(state=SimpleNamespace(batch=[{"case": name}], output=[item])))  # type: ignore[arg-type]
    report._write(Engine(lambda *_: None))
    return report.folder


def test_tables_of_cases_lesions_and_their_summary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cases = {
        "one": (_volume(A, C), _volume(A)),
        "two": (_volume(B), _volume(B, C)),
        "none": (NOTHING, _volume(A)),
        "empty": (NOTHING, NOTHING),
    }
    results = _report(tmp_path, cases, lesion_rule=LesionRule(bins=(0.02, 0.1)))
    one, two, none, empty = table(results.cases_csv)
    bins = ["0_to_0.02_ml", "0.02_to_0.1_ml", "from_0.1_ml"]
    by_volume = [f"{kind}_{name}" for kind in ("lesions", "lesion_sensitivity", "lesion_dice") for name in bins]
    assert list(one)[-15:] == [*HEADLINE, *by_volume]
    assert [one[name] for name in HEADLINE] == ["2", "1", "0.5", "1", "0.666667", "0"]
    assert [one[name] for name in by_volume] == ["1", "1", "0", "0", "1", "", "0", "1", ""]
    assert [two[name] for name in HEADLINE] == ["1", "2", "1", "0.5", "0.666667", "1"]
    assert [none[name] for name in HEADLINE] == ["0", "1", "", "0", "0", "1"]
    assert [empty[name] for name in HEADLINE] == ["0", "0", "", "", "", "0"]
    assert [empty[name] for name in by_volume] == ["0", "0", "0", *[""] * 6]

    row = table(results.summary_csv)[0]
    assert (row["lesion_sensitivity_mean"], row["lesion_sensitivity_undefined"]) == ("0.75", "2")
    assert (row["lesion_f1_mean"], row["lesion_f1_undefined"]) == ("0.444444", "1")
    assert (row["lesion_precision_mean"], row["lesion_precision_undefined"]) == ("0.5", "1")
    assert row["false_positive_lesions_mean"] == "0.5"
    assert (row["lesion_sensitivity_0_to_0.02_ml_mean"], row["lesion_sensitivity_from_0.1_ml_undefined"]) == (
        "0.5",
        "4",
    )

    rows = table(results.lesions_csv)
    assert [(row["case"], row["label"], row["volume_ml"], row["found"], row["overlap"]) for row in rows] == [
        ("one", "lesion", "0.04", "1", "1"),
        ("one", "lesion", "0.016", "0", "0"),
        ("two", "lesion", "0.016", "1", "1"),
    ]
    assert [float(rows[0][f"centroid_{axis}_mm"]) for axis in "xyz"] == [3, 1.5, 3]  # 2 mm, 1 mm, 1 mm
    assert results.lesions_png.read_bytes().startswith(b"\x89PNG")

    said = caplog.text
    printed = said[said.index("  Dice") : said.index("Tables: ")]
    assert max(map(len, printed.splitlines())) <= 106
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for line in (
        "lesions predicted sensitivity precision F1 FP no lesion no pred.",
        "lesion 0.8 1.0 0.750 ± 0.354 0.500 ± 0.500 0.444 ± 0.385 0.5 2 1",
        "found by volume < 0.02 ml 0.02 to 0.1 ml >= 0.1 ml",
        "lesion 1 of 2 1 of 1 0 of 0",
        "Dice 0.500 1.000 -",
    ):
        assert line in lines
    unbroken = " ".join(printed.split())
    assert "It is found if any voxel of it is predicted, by however many predicted components." in unbroken
    assert "may find both and counts as one; two that touch one lesion count as two." in unbroken


def test_the_legend_names_the_overlap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _report(tmp_path, {"one": (_volume(A), _volume(A))}, lesion_rule=LesionRule(0.25))
    said = " ".join(caplog.text.split())
    assert "It is found if at least 25% of its voxels are predicted" in said
    assert "a false positive unless at least 25% of its voxels lie in lesions" in said


def test_without_a_lesion_there_is_an_empty_table_and_no_picture(tmp_path: Path) -> None:
    results = _report(tmp_path, {"one": (NOTHING, _volume(A))}, lesion_rule=LesionRule(bins=4))
    assert table(results.lesions_csv) == []
    assert not results.lesions_png.exists()


def test_voxels_and_classes_without_annotation_are_no_lesions(tmp_path: Path) -> None:
    label = _volume(A, C).astype(np.int64)
    label[..., 8:] = 255  # C, and nothing of A
    label[..., 4:6] = 255  # the end of A
    prediction = _volume(A).astype(np.int64) + 2 * _volume(C)
    prediction[8:, 8:, :2] = 2
    results = _report(tmp_path, {"annotated": (label, prediction)}, labels={1: "a", 2: "b"}, ignore_index=255)
    (row,) = table(results.cases_csv)
    assert row["label"] == "a"
    assert [row[name] for name in HEADLINE] == ["1", "1", "1", "1", "1", "0"]
    (lesion,) = table(results.lesions_csv)
    assert lesion["volume_ml"] == "0.024"  # 12 voxels of 20


def test_several_classes_are_counted_apart(tmp_path: Path) -> None:
    label, prediction = _volume(A) + 2 * _volume(C), _volume(C) + 2 * _volume(A)
    results = _report(tmp_path, {"one": (label, prediction)}, labels={1: "a", 2: "b"})
    rows = table(results.cases_csv)
    assert [[row[name] for name in HEADLINE] for row in rows] == [["1", "1", "0", "0", "0", "1"]] * 2
    assert [row["found"] for row in table(results.lesions_csv)] == ["0", "0"]


def test_an_evaluation_counts_lesions(phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(phantom_folder, tmp_path / "run", metrics=["lesions"])
    evaluate(run, split="all", lesion_bins="2", lesion_overlap=0.5)
    said = capsys.readouterr().out
    assert "It is found if at least 50% of its voxels are predicted" in " ".join(said.split())
    assert f"Lesions: {run.results.lesions_csv}, {run.results.lesions_png}" in said
    lesions = table(run.results.lesions_csv)
    cases = table(run.results.cases_csv)
    for label in {row["label"] for row in cases}:
        counted = sum(int(row["lesions"]) for row in cases if row["label"] == label)
        assert counted == sum(row["label"] == label for row in lesions)
    evaluate(run, overlays=False, overwrite=True, metrics="[]")
    assert not run.results.lesions_csv.exists(), "a table of another evaluation would mislead"
    assert not run.results.lesions_png.exists()
    assert RunFolder(run.root).results.cases_csv.exists()


def test_without_the_extra_the_metrics_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert metric_sets("metrics", "lesions") == ("lesions",)
    monkeypatch.setattr("monai_extra_losses.bundle.options.find_spec", lambda name: None)
    with pytest.raises(
        StartUpRefused, match=r"connected-components-3d, which metrics lesions needs, got none; install"
    ):
        metric_sets("metrics", "lesions")
    assert "cc3d" in sys.modules


# ---- pictures ----


@pytest.mark.usefixtures("real_pictures")
def test_the_picture_marks_what_is_missed_and_invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, str]] = []
    contour = Axes.contour

    def keep(axes: Axes, *args: Any, **options: Any) -> Any:
        drawn.append((options["colors"][0], options["linestyles"]))
        return contour(axes, *args, **options)

    monkeypatch.setattr(Axes, "contour", keep)
    options: dict[str, Any] = {"spacing": (1, 1, 1), "labels": {1: "lesion"}, "out": tmp_path / "case.png"}
    image = np.random.default_rng(0).normal(size=NOTHING.shape)
    draw_overlay(image, _volume(A) * 1, _volume(B) * 1, missed=_volume(A), invented=_volume(B), **options)
    assert {("#FF0000", "solid"), ("#FFFF00", "dashed")} < set(drawn)
    drawn.clear()
    draw_overlay(image, _volume(A) * 1, _volume(A) * 1, missed=NOTHING, invented=NOTHING, **options)
    assert not {"#FF0000", "#FFFF00"} & {colour for colour, _ in drawn}


@pytest.mark.parametrize("classes", [1, 8])
@pytest.mark.usefixtures("real_pictures")
def test_the_picture_of_the_sensitivity(tmp_path: Path, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, list[float], list[float]]] = []
    bars = Axes.errorbar

    def keep(axes: Axes, x: Any, y: Any, **options: Any) -> Any:
        drawn.append((options["label"], list(x), list(y)))
        return bars(axes, x, y, **options)

    monkeypatch.setattr(Axes, "errorbar", keep)
    lesions = [
        {"label": f"class {number % classes}", "volume_ml": number / 100, "found": int(number > 40)}
        for number in range(1, 81)
    ]
    draw_sensitivity(lesions, tmp_path / "lesions.png", edges_ml=(0.1, 1), rule="any voxel predicted")
    (curve,) = drawn
    assert curve[0] == ("class 0 (80)" if classes == 1 else "all 8 classes (80)")
    assert curve[1] == pytest.approx([0.105, 0.305, 0.505, 0.705])
    assert curve[2] == [0, 0, 1, 1]


@pytest.mark.parametrize(("found", "of"), [(0, 10), (5, 10), (3, 3), (37, 200)])
def test_the_interval_is_that_of_scipy(found: int, of: int) -> None:
    known = binomtest(found, of).proportion_ci(method="wilson")
    assert wilson_interval(found, of) == pytest.approx((known.low, known.high), abs=1e-6)
