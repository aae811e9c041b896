"""The report of a comparison: its sentences, figures, page and tables."""

import base64
import csv
import dataclasses
import io
import json
import math
import re
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from comparison_results import DICE, HD95, comparison_results
from matplotlib.image import imread, imsave

from monai_extra_losses.compare.analysis import Cost, LearningCurve, analyse, learning_curve, lesion_bins
from monai_extra_losses.compare.example_cases import embedded, example_cases
from monai_extra_losses.compare.figures import colour_class, curves_plot, dashes, forest_plot, noise_plot, rank_plot
from monai_extra_losses.compare.plan import LossChoice
from monai_extra_losses.compare.report import write_report
from monai_extra_losses.compare.report_sections import curves_section
from monai_extra_losses.compare.report_text import (
    conclusions,
    cost_sentences,
    noise_sentences,
    opening,
    ranks_sentence,
    shown,
    shown_p,
)
from monai_extra_losses.compare.results import MEAN, ComparisonResults
from monai_extra_losses.compare.results_table import results_csv
from monai_extra_losses.compare.statistics import Finding, compare_losses
from monai_extra_losses.compare.svg import Scale, minus, shortened, tick_labels

DRAWS = 200


def finding_of(*args: Any, **options: Any) -> Finding:
    return compare_losses(comparison_results(*args, **options).scores(DICE), draws=DRAWS)


def number_in(pattern: str, sentence: str) -> list[float]:
    found = re.fullmatch(pattern.replace("#", r"([\d.]+)"), sentence)
    assert found, sentence
    return [float(group) for group in found.groups()]


class Page(HTMLParser):
    """What a page holds."""

    VOID = ("meta", "link", "img", "wbr")

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(markup)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.replace("\u00a0", " "))

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


# ---- sentences ----


def test_equal_losses_are_all_tied() -> None:
    finding = finding_of()
    said = conclusions(finding)
    assert said[0] == "All 3 losses are tied at the top (mean Dice; 60 cases, 3 seeds)."
    (noise,) = number_in(r"None beats dice_ce beyond the noise of the seeds \(± #\)\.", said[1])
    assert noise == round(finding.noise, 3) > 0
    assert len(said) == 2


def test_a_better_loss_is_alone_at_the_top() -> None:
    finding = finding_of(gains={"focal": 0.03})
    said = conclusions(finding)
    assert said[0] == "focal is alone at the top (mean Dice; 60 cases, 3 seeds)."
    pattern = r"focal is better than dice_ce by # \(95 % interval # to #; 60 cases, 3 seeds\)\."
    by, low, high = number_in(pattern, said[1])
    one = finding.differences[1]
    assert (by, low, high) == (round(one.mean, 3), round(one.low, 3), round(one.high, 3))
    assert 0 < low < by < high
    behind = finding.pairs["tversky", "focal"]
    by, low, high = number_in(
        r"Tied with dice_ce, but worse than focal: tversky by # \(# to #\); 95 % intervals, 60 cases, 3 seeds\.",
        said[2],
    )
    assert (by, low, high) == (round(-behind.mean, 3), round(-behind.high, 3), round(-behind.low, 3))
    assert len(said) == 3


def test_worse_losses_come_with_amounts_without_a_sign_the_worst_first() -> None:
    finding = finding_of(gains={"focal": -0.03, "tversky": -0.05})
    said = conclusions(finding)
    assert said[0] == "dice_ce is alone at the top (mean Dice; 60 cases, 3 seeds)."
    assert said[1].startswith("None beats dice_ce beyond the noise of the seeds (± ")
    for sentence, name, one in zip(said[2:], ("tversky", "focal"), finding.differences, strict=True):
        pattern = rf"{name} is worse than dice_ce by # \(95 % interval # to #; 60 cases, 3 seeds\)\."
        by, low, high = number_in(pattern, sentence)
        assert (by, low, high) == (round(-one.mean, 3), round(-one.high, 3), round(-one.low, 3))


def test_where_lower_is_better_the_verdicts_turn() -> None:
    results = comparison_results(gains={"focal": 0.03, "tversky": -0.05})
    said = conclusions(compare_losses(results.scores(HD95), draws=DRAWS))
    assert said[0] == "focal is alone at the top (mean HD95 (mm); 60 cases, 3 seeds)."
    assert said[1].startswith("focal is better than dice_ce by 0.")
    assert said[2].startswith("tversky is worse than dice_ce by ")


def with_an_unsteady_loss(*luck: float) -> Finding:
    """A comparison of five losses, whose last has trainings that are so far from the first."""
    scores = finding_of("dice_ce,a,b,c,d").scores
    values = scores.values.copy()
    values[4] += (np.array(luck) + values[0].mean() - values[4].mean(axis=1))[:, None]
    return compare_losses(dataclasses.replace(scores, values=values), draws=DRAWS)


def test_of_an_unsteady_loss_the_trainings_are_said() -> None:
    finding = with_an_unsteady_loss(-0.06, -0.21, -0.25)
    first, last = finding.replicate_means[0], finding.replicate_means[4]
    *ends, of_first, to = number_in(
        r"d is worse than dice_ce: its trainings gave # to #, those of dice_ce # to #, too far apart to say by how "
        r"much \(60 cases, 3 seeds\)\.",
        next(sentence for sentence in conclusions(finding) if sentence.startswith("d is")),
    )
    assert ends == [round(last.min(), 3), round(last.max(), 3)]
    assert [of_first, to] == [round(first.min(), 3), round(first.max(), 3)]
    not_clear = conclusions(with_an_unsteady_loss(-0.2, -0.2, 0.0))[-1]
    assert not_clear.startswith("Whether d is better or worse than dice_ce is not clear: its trainings gave 0.")


def test_a_loss_that_ties_with_the_first_may_still_be_behind_the_best() -> None:
    finding = finding_of()
    first, second, third = finding.scores.losses
    behind = dataclasses.replace(finding.pairs[second, third], mean=-0.01, low=-0.02, high=-0.005, verdict="worse")
    finding = dataclasses.replace(finding, top=(third, first), pairs={**finding.pairs, (second, third): behind})
    said = conclusions(finding)
    assert said[0].startswith(f"Tied at the top: {third} and {first} (")
    amount = "0.010 (0.005 to 0.020); 95 % intervals, 60 cases, 3 seeds"
    assert said[2:] == [f"Tied with dice_ce, but worse than {third}: {second} by {amount}."]


def test_a_loss_that_ties_with_the_best_and_with_a_first_that_does_not() -> None:
    finding = finding_of()
    first, second, third = finding.scores.losses
    said = conclusions(dataclasses.replace(finding, top=(third, second)))
    assert said[2:] == [f"{second} and {third} are tied with {first}."] or said[2:] == [
        f"{third} and {second} are tied with {first}."
    ]


def test_a_gain_beyond_the_noise_whose_interval_holds_0_is_said_to_be_one() -> None:
    finding = finding_of()
    one = dataclasses.replace(finding.differences[0], mean=1.0, low=-0.1, high=2.0)
    said = conclusions(dataclasses.replace(finding, differences=(one,)))
    assert re.match(r"None beats dice_ce: no gain is both beyond .* and has a 95 % interval without 0\.", said[1])


def test_one_seed_claims_nothing() -> None:
    finding = finding_of(seeds=(4,), gains={"focal": 0.1})
    said = conclusions(finding)
    assert said == [
        "No difference is claimed: no loss has two trainings that differ in the seed alone (60 cases, 1 seed).",
        f"The highest mean Dice is that of focal, {finding.means[2]:.3f}; another seed may change it.",
    ]
    assert noise_sentences(finding)[0].endswith("no difference below is a claim (60 cases, 1 seed).")
    assert {one.verdict for one in finding.differences} == {"tie"}


def test_one_loss_has_no_difference() -> None:
    finding = finding_of("dice_ce")
    (said,) = conclusions(finding)
    mean, noise = number_in(
        r"dice_ce alone was compared: mean Dice # \(60 cases, 3 seeds; the noise of its seeds is ± #\)\.", said
    )
    assert (mean, noise) == (round(finding.means[0], 3), round(finding.noise, 3))


def test_the_noise_is_that_of_as_many_seeds() -> None:
    finding = finding_of(seeds=(0, 1, 2, 3))
    pattern = (
        r"Trained again with 4 other seeds, the same loss has a mean Dice that differs by up to ± # "
        r"\(95 % for 2 comparisons together; 60 cases, 4 seeds\)\."
    )
    assert number_in(pattern, noise_sentences(finding)[0]) == [round(finding.noise, 3)]
    assert noise_sentences(finding)[1] == "A difference within this band is a tie, whatever its p-value says."


def test_on_a_test_set_the_trainings_of_all_folds_count() -> None:
    finding = finding_of(test_dir="/data/test")
    assert conclusions(finding)[0].endswith("(mean Dice; 60 cases, 6 trainings).")
    assert noise_sentences(finding)[0].startswith("Trained again in 6 other trainings, the same loss")


def test_cases_in_which_a_class_is_undefined_do_not_count() -> None:
    def undefined(case: str, label: str) -> bool:
        return int(case[-3:]) < 20 and label == "Anterior"

    results = comparison_results(undefined=undefined)
    said = [conclusions(compare_losses(results.scores(DICE, label), draws=DRAWS))[0] for label in ("Anterior", MEAN)]
    assert said[0] == "All 3 losses are tied at the top (Dice of Anterior; 40 cases, 3 seeds)."
    assert said[1] == "All 3 losses are tied at the top (mean Dice; 60 cases, 3 seeds)."


def test_without_a_shared_case_nothing_is_called_the_best() -> None:
    scores = comparison_results("dice_ce,focal").scores(DICE)
    scores.values[0, :, :30], scores.values[1, :, 30:] = np.nan, np.nan
    finding = compare_losses(scores, draws=DRAWS)
    said = conclusions(finding)
    assert said[0].startswith("No case is defined for all losses, so that none is called the best (mean Dice; ")
    assert said[-1] == "Not comparable to dice_ce, because no two cases are defined for both: focal."
    assert ranks_sentence(finding) == ("No case is defined for all losses, so that there are no ranks by mean Dice.")


def test_costs_are_relative_to_the_first() -> None:
    costs = {
        "dice_ce": Cost(10.0, 900.0, 6),
        "slow": Cost(25.0, 905.0, 6),
        "quick": Cost(5.0, 1800.0, 6),
        "same": Cost(10.9, 900.0, 6),
        "unmeasured": Cost(10.0, math.nan, 6),
    }
    assert cost_sentences(costs) == [
        "dice_ce takes 10 s per epoch and 900 MB at its peak (6 trainings).",
        "Time per epoch, relative to that: quick × 0.50, slow × 2.50, the others the same, within 10 %.",
        "Peak memory, relative to that: quick × 2.00, unmeasured unknown, the others the same, within 10 %.",
    ]
    assert cost_sentences({"a": Cost(1.0, 1000.0, 1), "b": Cost(1.0, 2000.0, 1)})[1:] == [
        "Time per epoch, relative to that: the same for all, within 10 %.",
        "Peak memory, relative to that: b × 2.00.",
    ]


def test_the_ranks_are_said_in_shares_of_the_draws() -> None:
    said = ranks_sentence(finding_of(gains={"focal": 0.03}))
    assert said == "First by mean Dice when cases and seeds are drawn anew: focal in 100 % of the draws."


def test_failed_and_missing_trials_are_counted_and_a_loss_without_any_is_left_out() -> None:
    failed = {f"focal/fold{fold}_seed{seed}": "RuntimeError: no memory" for fold in (0, 1) for seed in (0, 1, 2)}
    results = comparison_results(failed=failed, missing=["tversky/fold0_seed2"])
    analysis = analyse(results, DRAWS)
    said = opening(analysis)
    assert analysis.losses == ("dice_ce", "tversky")
    assert said[-3:] == [
        "6 of 18 trials failed; see the end.",
        "1 of 18 trials not run yet; what is said may change.",
        "Without any result, and left out: focal.",
    ]
    assert analysis.main is not None
    assert set(analysis.main.warnings) <= set(said)


def test_numbers_are_shown_with_the_decimals_of_their_metric() -> None:
    dice, hd95 = (compare_losses(comparison_results().scores(metric), draws=DRAWS) for metric in (DICE, HD95))
    assert [shown(value, dice) for value in (0.81234, -0.0004, math.nan)] == ["0.812", "0.000", "-"]
    assert shown(-0.0126, dice, sign=True) == "−0.013"
    assert shown(0.00012, dataclasses.replace(dice, noise=0.0003)) == "0.0001"
    assert shown(1.2345, hd95, sign=True) == "+1.23"
    assert [shown_p(p) for p in (0.0004, 0.0126, 0.416, math.nan)] == ["< 0.001", "0.013", "0.42", "-"]


# ---- what is computed ----


def test_a_learning_curve_leaves_out_seeds_that_lack_a_fold() -> None:
    results = comparison_results(missing=["dice_ce/fold1_seed2"], gains={"dice_ce": 0.02})
    curve = learning_curve(results.of_loss("dice_ce"))
    assert curve is not None
    assert (curve.seeds, curve.folds, curve.epochs) == (2, 2, (5.0, 10.0, 15.0, 20.0))
    last = [
        [one.epochs[-1]["val_mean_dice"] for one in results.of_loss("dice_ce") if one.trial.seed == seed]
        for seed in (0, 1)
    ]
    means = [np.mean(own) for own in last]
    assert (curve.means[-1], curve.lows[-1], curve.highs[-1]) == pytest.approx((np.mean(means), min(means), max(means)))


def test_lesions_are_counted_once_and_shared_out_by_volume() -> None:
    results = comparison_results("dice_ce", folds=(0,), seeds=(0, 1))
    rows = [
        [{"label": "L", "volume_ml": v, "found": f, "dice": d} for v, f, d in own]
        for own in (
            [(0.01, True, 0.5), (0.05, False, 0.0), (2.0, True, 0.9)],
            [(0.01, True, 0.7), (0.05, True, 0.4), (2.0, True, 0.9)],
        )
    ]
    trials = [
        dataclasses.replace(one, lesions=tuple(own)) for one, own in zip(results.of_loss("dice_ce"), rows, strict=True)
    ]
    small, second, third, large = lesion_bins(trials, "L", pooled=True)
    assert [one.name for one in (small, second, third, large)] == [
        "< 0.01 ml",
        "0.01 to 0.1 ml",
        "0.1 to 1 ml",
        "> 1 ml",
    ]
    assert [one.lesions for one in (small, second, third, large)] == [0, 2, 0, 1]
    assert (second.found, second.found_low, second.found_high, second.dice) == pytest.approx((0.75, 0.5, 1.0, 0.4))
    assert math.isnan(small.found)


def test_the_folds_of_a_test_set_measure_each_lesion_again() -> None:
    trials = comparison_results("dice_ce", lesions=True, seeds=(0,)).of_loss("dice_ce")
    pooled, apart = (sum(one.lesions for one in lesion_bins(trials, "Posterior", pooled=p)) for p in (True, False))
    assert (pooled, apart) == (160, 80)


def test_example_cases_are_those_of_the_largest_the_median_and_the_smallest_gain() -> None:
    results = comparison_results("dice_ce,focal", cases=9)
    scores = results.scores(DICE)
    gains = np.array([0.0, 0.3, -0.2, 0.1, 0.01, 0.02, -0.1, 0.05, np.nan])
    scores.values[0], scores.values[1] = 0.5, 0.5 + gains
    finding = compare_losses(scores, draws=DRAWS)
    found = example_cases(results, finding, "dice_ce", "focal")
    assert [(one.rank, one.case) for one in found] == [
        ("best", "case_001"),
        ("median", "case_005"),
        ("worst", "case_002"),
    ]
    assert found[0].values == pytest.approx((0.5, 0.8))
    lower = dataclasses.replace(scores, metric=HD95)
    turned = example_cases(results, compare_losses(lower, draws=DRAWS), "dice_ce", "focal")
    assert [one.case for one in turned] == ["case_002", "case_004", "case_001"]


def test_pictures_are_of_one_training_each_with_the_same_seed_and_fold(tmp_path: Path) -> None:
    results = comparison_results("dice_ce,focal", cases=4, folder=tmp_path)
    finding = compare_losses(results.scores(DICE), draws=DRAWS)
    for loss, seeds in {"dice_ce": (0, 1), "focal": (1, 2)}.items():
        for seed in seeds:
            for fold in (0, 1):
                _picture(tmp_path / loss / f"fold{fold}_seed{seed}" / "eval" / "overlays" / "case_001.png")
    examples = {one.case: one for one in example_cases(results, finding, "dice_ce", "focal")}
    with_pictures = examples.pop("case_001")
    assert [path.relative_to(tmp_path).parts[:2] for path in with_pictures.pictures] == [
        ("dice_ce", "fold0_seed1"),
        ("focal", "fold0_seed1"),
    ]
    assert with_pictures.training == "seed 1, fold 0"
    assert [(one.pictures, one.training) for one in examples.values()] == [((), "")] * 2


def test_pictures_are_scaled_down(tmp_path: Path) -> None:
    wide, small = _picture(tmp_path / "wide.png", (300, 1520)), _picture(tmp_path / "small.png", (40, 60))
    shapes = [imread(io.BytesIO(base64.b64decode(embedded(path).split(",")[1]))).shape[:2] for path in (wide, small)]
    assert shapes == [(150, 760), (40, 60)]


def _picture(path: Path, size: tuple[int, int] = (40, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, np.linspace(0, 1, size[0] * size[1] * 3).reshape(*size, 3))
    return path


# ---- drawing ----


def test_ticks_have_as_many_decimals_as_tell_them_apart() -> None:
    assert tick_labels(Scale(-0.011, 0.012, 0, 100).ticks) == ["−0.010", "−0.005", "0.000", "0.005", "0.010"]
    assert tick_labels([0.0, 50.0, 100.0]) == ["0", "50", "100"]
    assert [minus(number) for number in ("-0.00", "+0.0", "-1.5", "+2")] == ["0.00", "0.0", "−1.5", "+2"]


def test_a_scale_maps_its_ends_and_holds_all_values() -> None:
    scale = Scale.around([1.0, 3.0, math.nan], 0.0, 100.0)
    assert scale(1.0) > 0
    assert scale(3.0) < 100
    assert (scale(-50.0), scale(50.0)) == (0.0, 100.0)
    assert Scale.around([math.nan], 0.0, 1.0).low < 0.0


def test_long_names_are_shortened_in_the_middle() -> None:
    assert shortened("dice_ce", 100) == "dice_ce"
    short = shortened("focal_tversky::alpha=0.3::gamma=2", 120)
    assert len(short) == 15
    assert re.fullmatch(r"focal_t.*….*=2", short)


def test_the_band_of_each_row_is_that_of_its_difference() -> None:
    finding = finding_of()
    wide = dataclasses.replace(finding.differences[1], noise=2 * finding.differences[0].noise)
    plot = Page(forest_plot(dataclasses.replace(finding, differences=(finding.differences[0], wide))))
    narrow, double = (float(one["width"] or "") for one in plot.of("rect"))
    assert double == pytest.approx(2 * narrow, rel=1e-3)
    one_seed = finding_of(seeds=(0,))
    assert not Page(forest_plot(one_seed)).of("rect")
    assert not Page(noise_plot(one_seed)).of("rect")


def test_what_is_claimed_is_told_from_ties() -> None:
    plot = Page(forest_plot(finding_of("dice_ce,a,b,c", gains={"a": 0.03, "b": -0.03})))
    assert [one["class"] for one in plot.of("g")] == ["better", "worse", "tie"]
    (a, b, c), zero = (
        [float(one[key] or "") for one in rows]
        for rows, key in ((plot.of("circle"), "cx"), ([o for o in plot.of("line") if o["class"] == "zero"][:1], "x1"))
    )
    assert b < c < a
    assert b < zero[0] < a


def test_a_loss_far_from_the_others_does_not_squeeze_them_together() -> None:
    near, far = finding_of("dice_ce,a,b,c"), with_an_unsteady_loss(-0.3, -0.5, -0.7)
    for draw in (forest_plot, noise_plot):
        usual, cut = (Page(draw(finding)) for finding in (near, far))
        widths = [max(float(one["width"] or "") for one in page.of("rect")[:3]) for page in (usual, cut)]
        assert widths[1] > 0.5 * widths[0]
        assert not usual.of("polygon")
        assert cut.of("polygon")
        assert all(0 <= float(one["cx"] or "") <= 460 for one in cut.of("circle"))
    assert len(Page(noise_plot(far)).of("circle")) == 4 * 3


def test_the_noise_plot_has_a_circle_per_training() -> None:
    scores = comparison_results(missing=["focal/fold0_seed2"]).scores(DICE)
    assert len(Page(noise_plot(compare_losses(scores, draws=DRAWS))).of("circle")) == 8


def test_areas_of_the_rank_plot_are_shares() -> None:
    finding = finding_of()
    shares = np.array([[0.75, 0.25, 0.0], [0.25, 0.5, 0.25], [0.0, 0.25, 0.75]])
    ranks = dataclasses.replace(finding.ranks, shares=shares, mean_rank=np.array([1.25, 2.0, 2.75]))
    radii = [float(one["r"] or "") for one in Page(rank_plot(dataclasses.replace(finding, ranks=ranks))).of("circle")]
    assert (np.array(radii) / radii[0]) ** 2 == pytest.approx(shares[shares > 0] / 0.75, rel=0.01)


def test_of_many_losses_ten_have_a_line_the_first_and_the_best() -> None:
    names = [f"module.Loss{number}" for number in range(11)]
    gains = {"dice_ce": -0.1, **{name: 0.02 * place for place, name in enumerate(names)}}
    analysis = analyse(comparison_results("dice_ce," + ",".join(names), gains=gains, cases=14, labels=("a",)), DRAWS)
    assert analysis.main is not None
    page = Page(curves_section(analysis, analysis.main))
    drawn = [word for word in page.words if word in ("dice_ce", *names)][:10]
    assert drawn == [*names[:1:-1], "dice_ce"]  # what comes last is on top
    curves = page.of("polyline")
    assert len(curves) == 10 + 2 * len(names)  # and two in the figure of each other loss


def test_losses_of_one_colour_are_told_apart() -> None:
    styles = {(colour_class(place), dashes(place)) for place in range(21)}
    assert len(styles) == 21
    assert [dashes(place) for place in (0, 6)] == [None, None]


# ---- files ----


def written(results: ComparisonResults, folder: Path) -> tuple[Page, str, list[dict[str, str]]]:
    page, text, table, *figures = write_report(results, folder, draws=DRAWS)
    assert [path.name for path in figures] in ([], ["figures"])
    assert [path.name for path in (page, text, table)] == ["report.html", "report.md", "results.csv"]
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    return Page(page.read_text(encoding="utf-8")), text.read_text(encoding="utf-8"), rows


KINDS: Mapping[str, Mapping[str, Any]] = {
    "all": {"lesions": True, "gains": {"focal": -0.03}},
    "one seed": {"seeds": (0,)},
    "one loss": {"losses": "dice_ce"},
    "one class": {"labels": ("organ",)},
    "undefined class": {"undefined": lambda case, label: label == "Anterior"},
    "nothing defined": {"undefined": lambda case, label: True},
    "nothing finished": {
        "losses": "dice_ce",
        "missing": [f"dice_ce/fold{f}_seed{s}" for f in (0, 1) for s in (0, 1, 2)],
    },
    "eleven losses": {"losses": "dice_ce," + ",".join(f"module.Loss{number}" for number in range(10)), "cases": 12},
    "grid": {"grid": {"learning_rate": (0.001, 0.002)}, "failed": {"focal/fold0_seed0_learning_rate=0.002": "killed"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_and_refers_to_nothing_outside(kind: str, tmp_path: Path) -> None:
    results = comparison_results(**{"cases": 20, **KINDS[kind]})
    page, text, _ = written(results, tmp_path)
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "base", "form")
        for name in ("src", "href", "srcset", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    style = (tmp_path / "report.html").read_text(encoding="utf-8").split("</style>")[0]
    assert not re.search(r"url\(|@import|http", style)
    assert page.of("html")[0]["lang"] == "en"
    number = len(results.plan.losses)
    assert f"Comparison of {number} loss{'es' if number > 1 else ''} on Task04_Hippocampus" in page.words
    assert all(head["scope"] in ("col", "row") for head in page.of("th"))
    pictures = [one for one in page.of("svg") if "aria-hidden" not in one]
    assert all(one["role"] == "img" and one["aria-label"] for one in pictures)
    assert all(one["alt"] for one in page.of("img"))
    assert "nan" not in re.sub(r"[^a-z]+", " ", " ".join(page.words).lower()).split()
    assert not re.search(r"\bnan\b", text)
    numbers = [
        value for _, own in page.elements for key, value in own.items() if key in ("x", "y", "cx", "cy", "x1", "r")
    ]
    assert not {"nan", "inf", "-inf"} & set(numbers)


def test_a_page_has_the_sentences_and_one_figure_per_metric_and_class(tmp_path: Path) -> None:
    results = comparison_results(lesions=True, gains={"focal": -0.03})
    page, text, _ = written(results, tmp_path)
    said = opening(analyse(results, DRAWS))
    words = "".join(page.words)
    for sentence in said:
        assert sentence in words
        assert sentence in text.replace("\\", "")
    titles = [str(one.get("aria-label")) for one in page.of("svg")]
    forests = [title for title in titles if title.startswith("Difference of each loss to dice_ce")]
    measures = ["mean Dice", "mean HD95 (mm)", "Dice of Anterior", "Dice of Posterior"]
    measures += ["HD95 (mm) of Anterior", "HD95 (mm) of Posterior"]
    assert [re.sub(".* in (.*), with .*", r"\1", title) for title in forests] == measures
    assert sum(title.startswith("Rank of each loss") for title in titles) == 1
    assert "licence of the data" in words
    assert "No picture of both losses is there" in words


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    choices = (LossChoice("dice_ce", "dice_ce"), LossChoice('a::name="<i>|x*"', "a"))
    results = comparison_results(choices, labels=("<b>", "_x_"), failed={"dice_ce/fold0_seed0": "<img src=x> & 'y'"})
    page, text, rows = written(results, tmp_path)
    assert not {"b", "i", "img"} & {tag for tag, _ in page.elements}
    words = "".join(page.words)
    for name in ('a::name="<i>|x*"', "Dice of <b>", "dice_ce/fold0_seed0: <img src=x> & 'y'"):
        assert name in words
    assert '| a::name="\\<i\\>\\|x\\*" |' in text
    assert {row["loss"] for row in rows} == {"dice_ce", 'a::name="<i>|x*"'}


def test_failed_trials_are_named_with_their_last_line(tmp_path: Path) -> None:
    results = comparison_results(failed={"focal/fold1_seed1": "OSError: disk full"}, missing=["tversky/fold0_seed2"])
    page, text, _ = written(results, tmp_path)
    for words in ("".join(page.words), text):
        assert "focal/fold1_seed1: OSError: disk full" in words
        assert "tversky/fold0_seed2" in words


def test_a_grid_is_said_to_be_chosen_on_the_cases_that_measure(tmp_path: Path) -> None:
    grid = {"learning_rate": (0.001, 0.002)}
    words = "".join(written(comparison_results(grid=grid, cases=6), tmp_path)[0].words)
    assert "Every loss was trained at the same 2 points of a grid (learning_rate: 0.001, 0.002)" in words
    assert "Chosen: dice_ce: learning_rate=0.002; tversky: learning_rate=0.002" in words
    assert "The cases that chose the point also measure, so that all values are optimistic" in words
    on_a_test_set = comparison_results(grid=grid, cases=6, test_dir="/data/test")
    assert "optimistic" not in "".join(written(on_a_test_set, tmp_path)[0].words)


def test_results_csv_has_a_row_per_training_case_and_class() -> None:
    def undefined(case: str, label: str) -> bool:
        return (case, label) == ("case_001", "Anterior")

    results = comparison_results("dice_ce,focal", cases=5, grid={"learning_rate": (0.1, 0.2)}, undefined=undefined)
    rows = list(csv.DictReader(results_csv(results).splitlines()))
    assert list(rows[0]) == [
        *("loss", "fold", "seed", "learning_rate", "case", "label", "dice", "hd95_mm", "target_ml"),
        *("seconds_per_epoch", "peak_memory_mb"),
    ]
    assert len(rows) == 2 * 3 * 2 * 5 * 2  # losses, seeds, points of the grid, cases, classes
    one = next(one for one in results.finished if one.trial.name == "focal/fold1_seed2_learning_rate=0.2")
    own = [
        row
        for row in rows
        if [row[key] for key in ("loss", "fold", "seed", "learning_rate")] == ["focal", "1", "2", "0.2"]
    ]
    assert [(row["case"], row["label"]) for row in own] == [(row["case"], row["label"]) for row in one.cases]
    assert [row["dice"] for row in own] == [
        "" if math.isnan(row["dice"]) else f"{row['dice']:.6g}" for row in one.cases
    ]
    assert own[0]["dice"] == ""
    assert {row["seconds_per_epoch"] for row in own} == {"13"}
    assert results_csv(results) == results_csv(results)


def test_the_files_do_not_vary_from_call_to_call(tmp_path: Path) -> None:
    results = comparison_results(cases=12, lesions=True)

    def content() -> dict[Path, bytes]:
        write_report(results, tmp_path, draws=DRAWS)
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert content() == content()


def test_a_figure_is_a_file_that_needs_no_other(tmp_path: Path) -> None:
    results = comparison_results(cases=12, lesions=True)
    write_report(results, tmp_path, draws=DRAWS)
    files = sorted((tmp_path / "figures").iterdir())
    names = ["curves", "difference_dice", "difference_hd95_mm", "lesions_1", "noise", "ranks"]
    assert [file.stem for file in files] == names
    for file in files:
        words = file.read_text(encoding="utf-8")
        root = ElementTree.fromstring(words)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert float(root.get("width", "")) > 0
        assert "var(" not in words
        assert "href" not in words
        shown = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"tversky", "focal"} <= shown
        assert ("dice_ce" in shown) is not file.stem.startswith("difference")


# ---- in a browser ----

_FRAME = """<!DOCTYPE html><body style="margin:0">
<iframe id="frame" src="report.html" style="border:0;width:{width}px;height:600px"></iframe>
<script>
onload = () => {{
  const page = document.getElementById("frame").contentDocument;
  page.querySelectorAll("details").forEach(one => one.open = true);
  const root = page.documentElement, end = root.clientWidth;
  const beyond = [...page.querySelectorAll("h1, h2, p, figure, svg, img, li, dd, details, .box")]
    .filter(one => one.getBoundingClientRect().right > end + 1).map(one => one.tagName);
  document.title = JSON.stringify({{
    width: root.scrollWidth, beyond: beyond,
    images: [...page.images].map(one => one.naturalWidth),
    letters: Math.min(...[...page.querySelectorAll("figure svg text")].map(one => one.getBoundingClientRect().height)),
  }});
}};
</script>"""


@pytest.mark.slow
def test_a_browser_shows_the_page_without_error_or_overflow(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("install chromium to open the page in a browser.")
    losses = "dice_ce,tversky,unified_focal::delta=0.6::gamma=0.5,my_module.ALossWithAVeryLongName::option=3"
    results = comparison_results(losses, lesions=True, cases=14, folder=tmp_path / "trials")
    for one in results.finished:
        for row in one.cases:
            _picture(one.folder / "eval" / "overlays" / f"{row['case']}.png", (30, 100))
    write_report(results, tmp_path, draws=DRAWS)
    for width in (1280, 400):
        frame = tmp_path / f"frame{width}.html"
        frame.write_text(_FRAME.format(width=width), encoding="utf-8")
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
        options += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
        shot = tmp_path / f"{width}.png"
        shown_page = subprocess.run([browser, *options, "--dump-dom", frame.as_uri()], capture_output=True, text=True)
        subprocess.run(
            [browser, *options, f"--window-size={max(width, 500)},2000", f"--screenshot={shot}", frame.as_uri()],
            capture_output=True,
            check=True,
        )
        assert "CONSOLE" not in shown_page.stderr
        found = re.search(r"<title>(\{.*?\})</title>", shown_page.stdout)
        assert found, shown_page.stderr
        measured = json.loads(found[1])
        assert measured["width"] <= width
        assert measured["beyond"] == []
        assert len(measured["images"]) == 6
        assert min(measured["images"]) > 0
        assert measured["letters"] >= 9
        assert imread(shot)[..., :3].std() > 0.05  # not a blank page


def test_a_curve_of_one_validation_is_seen() -> None:
    def drawn(*epochs: float) -> str:
        curve = LearningCurve(epochs, *((0.5,) * len(epochs),) * 3, seeds=1, folds=1)
        return curves_plot({"dice_ce": curve}, {"dice_ce": 0}, spread=(), title="curves")

    assert "<circle" in drawn(2)
    assert "<polyline" in drawn(2, 4)
    assert "<circle" not in drawn(2, 4)
