import csv
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from simulate_comparison import SCENARIOS, simulate

from monai_extra_losses.compare.results import ComparedMetric, PairedScores
from monai_extra_losses.compare.statistics import COVERAGE, Difference, compare_losses, p_below_ceiling

DICE = ComparedMetric("dice", "Dice", higher_is_better=True, main=True)
HD95 = ComparedMetric("hd95_mm", "HD95 (mm)", higher_is_better=False)
TABLE = Path(__file__).parents[1] / "benchmarks" / "comparison_simulation.csv"


def scores_of(values: Any, metric: ComparedMetric = DICE) -> PairedScores:
    values = np.asarray(values, dtype=np.float64)
    losses, seeds, cases = (
        [f"{word}{number}" for number in range(count)] for word, count in zip("lsc", values.shape, strict=True)
    )
    return PairedScores(metric, "mean", tuple(losses), tuple(seeds), tuple(cases), values)


def random_scores(losses: int = 3, seeds: int = 3, cases: int = 60, seed: int = 0) -> PairedScores:
    return scores_of(SCENARIOS["steady"].scores(losses, seeds, cases, np.random.default_rng(seed)).values)


def plus(scores: PairedScores, gains: dict[int, float], **changes: Any) -> PairedScores:
    """Scores with a constant added to some losses."""
    values = scores.values.copy()
    for row, gain in gains.items():
        values[row] += gain
    return dataclasses.replace(scores, values=values, **changes)


def without(scores: PairedScores, *places: Any) -> PairedScores:
    values = scores.values.copy()
    for place in places:
        values[place] = np.nan
    return dataclasses.replace(scores, values=values)


def numbers(one: Difference) -> tuple[float, ...]:
    return one.mean, one.low, one.high, one.noise, one.p_wilcoxon, one.p_holm, one.false_claim


def test_the_band_of_the_seeds_is_that_of_the_formula() -> None:
    scores = random_scores(losses=4, seeds=3)
    finding = compare_losses(scores)
    means = scores.values.mean(axis=2)
    variance = ((means - means.mean(axis=1, keepdims=True)) ** 2).sum() / (4 * 2)
    expected = stats.t.ppf(1 - 0.05 / 3 / 2, 8) * math.sqrt(variance * 2 / 3)
    assert finding.noise == pytest.approx(expected, rel=1e-9)
    assert {one.noise for one in finding.pairs.values()} == {finding.noise}
    of_one_pair = compare_losses(scores, level=1 - 3 * 0.05)
    assert of_one_pair.noise == pytest.approx(stats.t.ppf(0.975, 8) * math.sqrt(variance * 2 / 3), rel=1e-9)


def test_means_and_differences_are_over_seeds_and_cases() -> None:
    scores = random_scores()
    finding = compare_losses(scores)
    means = scores.values.mean(axis=(1, 2))
    np.testing.assert_allclose(finding.means, means, rtol=1e-12)
    np.testing.assert_allclose(finding.replicate_means, scores.values.mean(axis=2), rtol=1e-12)
    assert [(one.loss, one.other) for one in finding.differences] == [("l1", "l0"), ("l2", "l0")]
    for one, row in zip(finding.differences, (1, 2), strict=True):
        assert one.mean == pytest.approx(means[row] - means[0], rel=1e-9)
        assert (one.cases, one.replicates) == (60, 3)
        assert one.low < one.mean < one.high
        gaps = (scores.values[row] - scores.values[0]).mean(axis=0)
        assert one.p_wilcoxon == pytest.approx(stats.wilcoxon(gaps).pvalue, rel=1e-9)


def test_the_interval_has_the_variance_of_both_levels() -> None:
    """Without noise of the seeds it is the percentile bootstrap of the cases; with noise alone, Student's."""
    rng = np.random.default_rng(0)
    of_cases = rng.normal(0, 1, (2, 1, 100)) + np.zeros((2, 3, 1))
    one = compare_losses(scores_of(of_cases), draws=20000).pairs["l1", "l0"]
    error = (of_cases[1, 0] - of_cases[0, 0]).std() / 10
    assert (one.high - one.low) / 2 == pytest.approx(1.96 * error, rel=0.04)
    assert one.noise == 0

    of_seeds = rng.normal(0, 1, (2, 40, 1)) + np.zeros((2, 1, 5))
    one = compare_losses(scores_of(of_seeds), draws=20000).pairs["l1", "l0"]
    assert (one.high - one.low) / 2 == pytest.approx(one.noise, rel=0.04)


def test_few_seeds_have_the_tails_of_student() -> None:
    """With 2 seeds of 2 losses, a bootstrap of two deviations each ends at √2 s; Student's t(2) goes on."""
    luck = np.array([[0.0, 1.0], [3.0, 2.0]])[:, :, None] + np.zeros((2, 2, 10))
    one = compare_losses(scores_of(luck), draws=20000).pairs["l1", "l0"]
    s = math.sqrt(0.5)
    assert one.noise == pytest.approx(stats.t.ppf(0.975, 2) * s)
    assert (one.high - one.low) / 2 > 2 * math.sqrt(2) * s


def test_a_constant_moves_a_difference_and_nothing_else() -> None:
    scores = random_scores()
    before, after = (compare_losses(own).pairs for own in (scores, plus(scores, {1: 0.01})))
    for names, one in before.items():
        gain = 0.01 * ((names[0] == "l1") - (names[1] == "l1"))
        moved = after[names]
        assert (moved.mean, moved.low, moved.high) == pytest.approx((one.mean + gain, one.low + gain, one.high + gain))
        assert moved.noise == pytest.approx(one.noise)


@pytest.mark.parametrize(("metric", "sign"), [(DICE, 1), (HD95, -1)])
def test_better_is_what_the_metric_says(metric: ComparedMetric, sign: int) -> None:
    finding = compare_losses(plus(random_scores(), {1: sign * 0.1, 2: -sign * 0.1}, metric=metric))
    assert [one.verdict for one in finding.differences] == ["better", "worse"]
    assert finding.top == ("l1",)
    np.testing.assert_array_equal(finding.ranks.mean_rank, [2, 1, 3])
    assert finding.pairs["l2", "l1"].verdict == "worse"
    assert finding.pairs["l1", "l2"].verdict == "better"


def test_a_difference_inside_the_band_is_a_tie_whatever_p_says() -> None:
    """A loss whose every case is better by less than the luck of its seeds."""
    rng = np.random.default_rng(0)
    luck = np.array([[-1, 0, 1], [-1.2, 0.2, 1]])[:, :, None]
    values = rng.normal(0, 0.01, (2, 3, 60)) + luck
    one = compare_losses(plus(scores_of(values), {1: 0.5})).pairs["l1", "l0"]
    assert one.p_wilcoxon < 1e-9
    assert one.mean < one.noise
    assert one.verdict == "tie"


def test_a_difference_of_few_cases_outside_the_band_is_a_tie_if_the_interval_holds_zero() -> None:
    values = np.zeros((2, 3, 20))
    values[1, :, 0] = 1.0  # one case makes the difference
    one = compare_losses(scores_of(values)).pairs["l1", "l0"]
    assert one.mean > one.noise == 0
    assert one.low == 0
    assert one.verdict == "tie"


def test_pairs_are_in_both_orders() -> None:
    finding = compare_losses(plus(random_scores(), {2: 0.1}))
    assert set(finding.pairs) == set(itertools.permutations(finding.scores.losses, 2))
    for (loss, other), one in finding.pairs.items():
        turned = finding.pairs[other, loss]
        assert (one.loss, one.other) == (loss, other)
        assert (one.mean, one.low, one.high) == (-turned.mean, -turned.high, -turned.low)
        assert (one.noise, one.p_wilcoxon, one.p_holm, one.false_claim) == (
            turned.noise,
            turned.p_wilcoxon,
            turned.p_holm,
            turned.false_claim,
        )
        assert {one.verdict, turned.verdict} in ({"tie"}, {"better", "worse"})


def test_holm_is_over_the_comparisons_with_the_first_and_over_all_pairs() -> None:
    finding = compare_losses(plus(random_scores(losses=4), {1: 0.002, 2: 0.004}))
    unordered = [finding.pairs[names] for names in itertools.combinations(finding.scores.losses, 2)]
    for family in (list(finding.differences), unordered):
        p = [one.p_wilcoxon for one in family]
        for one in family:  # the largest of p times the number that are no smaller, over those up to it
            expected = max(own * sum(other >= own for other in p) for own in p if own <= one.p_wilcoxon)
            assert one.p_holm == pytest.approx(min(1, expected))
    assert finding.differences[0].p_holm != finding.pairs["l1", "l0"].p_holm


def test_equal_losses_are_tied_and_tell_nothing() -> None:
    one_loss = random_scores(losses=1).values
    finding = compare_losses(scores_of(np.concatenate([one_loss, one_loss])))
    one = finding.pairs["l1", "l0"]
    assert (one.mean, one.p_wilcoxon, one.p_holm, one.false_claim, one.verdict) == (0, 1, 1, 0.5, "tie")
    assert finding.top == ("l0", "l1")


def test_false_claim_is_the_share_of_draws_with_the_other_sign() -> None:
    """About that of a normal distribution, where seeds and cases are many."""
    rng = np.random.default_rng(1)
    values = rng.normal(0, 0.5, (2, 1, 100)) + rng.normal(0, 0.05, (2, 30, 1))
    shares = []
    for gain in (0.0, 0.05, 0.1, 1.0):
        one = compare_losses(plus(scores_of(values - values.mean(axis=(1, 2), keepdims=True)), {1: gain}), draws=20000)
        difference = one.pairs["l1", "l0"]
        error = (difference.high - difference.low) / 2 / 1.96
        assert difference.false_claim == pytest.approx(stats.norm.sf(gain / error), abs=0.01)
        shares.append(difference.false_claim)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0


def test_ranks_are_shares_of_draws() -> None:
    finding = compare_losses(random_scores(losses=4))
    shares, ranks = finding.ranks.shares, np.arange(1, 5)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    np.testing.assert_allclose(shares @ ranks, finding.ranks.mean_rank)
    assert np.argmax(finding.means) == np.argmin(finding.ranks.mean_rank)
    assert (shares.max(axis=1) < 1).all()


def test_losses_that_tie_in_a_draw_share_the_best_rank() -> None:
    values = np.repeat(random_scores(losses=1, seeds=1).values, 3, axis=0)
    values[2] -= 1
    ranks = compare_losses(scores_of(values)).ranks
    np.testing.assert_array_equal(ranks.mean_rank, [1, 1, 3])
    np.testing.assert_array_equal(ranks.shares, [[1, 0, 0], [1, 0, 0], [0, 0, 1]])


def test_one_seed_claims_nothing_and_says_so() -> None:
    finding = compare_losses(plus(random_scores(seeds=1), {1: 0.3}))
    assert math.isnan(finding.noise)
    assert {one.verdict for one in finding.pairs.values()} == {"tie"}
    assert set(finding.top) == {"l0", "l1", "l2"}
    assert finding.top[0] == "l1"
    one = finding.pairs["l1", "l0"]
    assert 0 < one.low < one.mean < one.high
    assert finding.warnings == (
        "One seed cannot tell a difference from the noise of the seeds: every verdict is a tie, and intervals are over "
        "the cases alone.",
    )


def test_nothing_is_said_of_scores_that_need_no_warning() -> None:
    assert compare_losses(random_scores(cases=50)).warnings == ()


@pytest.mark.parametrize(("cases", "nearest"), [(49, 30), (30, 30), (12, 12), (5, 12)])
def test_few_cases_are_said_with_the_coverage_of_the_simulation(cases: int, nearest: int) -> None:
    (warning,) = compare_losses(random_scores(cases=cases)).warnings
    assert warning.startswith(f"{cases} cases are few")
    assert f"with {nearest} cases" in warning
    assert f" {100 * COVERAGE[nearest]:.0f} % of them" in warning


def test_a_case_that_is_undefined_leaves_its_pairs_alone() -> None:
    scores = random_scores()
    finding = compare_losses(without(scores, (1, 0, slice(0, 4))))
    assert finding.pairs["l1", "l0"].cases == finding.pairs["l1", "l2"].cases == 56
    assert finding.pairs["l2", "l0"].cases == 60
    assert {one.replicates for one in finding.pairs.values()} == {3}
    assert finding.pairs["l1", "l0"].mean == pytest.approx((scores.values[1] - scores.values[0])[:, 4:].mean())
    assert finding.pairs["l2", "l0"].mean == pytest.approx((scores.values[2] - scores.values[0]).mean())
    np.testing.assert_allclose(finding.means, scores.values[:, :, 4:].mean(axis=(1, 2)))
    assert finding.warnings == ("4 of 60 cases lack a value of some loss: means and ranks are over the others.",)


def test_a_case_that_is_undefined_for_all_is_none() -> None:
    scores = random_scores()
    finding = compare_losses(without(scores, (slice(None), slice(None), slice(0, 5))))
    kept = dataclasses.replace(scores, cases=scores.cases[5:], values=scores.values[:, :, 5:])
    assert finding.differences == compare_losses(kept).differences
    assert finding.warnings == ()


@pytest.mark.parametrize("lacks", [slice(None), slice(0, 30)], ids=["training", "fold"])
def test_a_replicate_that_is_incomplete_leaves_its_pairs(lacks: slice) -> None:
    scores = random_scores()
    finding = compare_losses(without(scores, (1, 2, lacks)))
    gaps = scores.values[1] - scores.values[0]
    one = finding.pairs["l1", "l0"]
    assert (one.cases, one.replicates) == (60, 2)
    assert one.mean == pytest.approx(gaps[:2].mean())
    assert finding.pairs["l2", "l0"].replicates == 3
    assert math.isnan(finding.replicate_means[1, 2])
    assert np.isnan(finding.replicate_means).sum() == 1
    assert finding.warnings == ("Fewer than 3 complete replicates: l1 2; incomplete ones are left out.",)

    means = scores.values.mean(axis=2)
    deviations = [means[0] - means[0].mean(), means[1, :2] - means[1, :2].mean(), means[2] - means[2].mean()]
    s = math.sqrt(sum((own**2).sum() for own in deviations) / 5)
    assert finding.noise == pytest.approx(stats.t.ppf(1 - 0.0125, 5) * s)  # two replicates: √(2 / 2)
    assert finding.pairs["l2", "l0"].noise == pytest.approx(finding.noise * math.sqrt(2 / 3))


def test_pairs_without_a_replicate_in_common_are_undefined() -> None:
    finding = compare_losses(without(random_scores(seeds=2), (0, 0), (1, 1)))
    one = finding.pairs["l1", "l0"]
    assert all(math.isnan(number) for number in numbers(one))
    assert (one.cases, one.replicates, one.verdict) == (0, 0, "tie")
    assert finding.pairs["l2", "l0"].replicates == 1
    assert finding.pairs["l2", "l0"].mean != 0


def test_a_loss_without_results_is_neither_top_nor_ranked() -> None:
    scores = random_scores()
    finding = compare_losses(without(scores, 1))
    assert all(math.isnan(number) for number in numbers(finding.differences[0]))
    assert finding.differences[0].verdict == "tie"
    assert "l1" not in finding.top
    assert np.isnan(finding.ranks.shares[1]).all()
    assert np.isnan(finding.means).tolist() == [False, True, False]
    kept = compare_losses(dataclasses.replace(scores, losses=("l0", "l2"), values=scores.values[[0, 2]]))
    assert finding.noise == pytest.approx(kept.noise)
    assert finding.differences[1].p_holm == pytest.approx(kept.differences[0].p_holm)


@pytest.mark.parametrize("shape", [(2, 0, 0), (2, 2, 0), (2, 2, 1), (1, 2, 20)])
def test_too_little_says_nothing(shape: tuple[int, int, int]) -> None:
    finding = compare_losses(scores_of(np.ones(shape)))
    assert all(one.verdict == "tie" and math.isnan(one.mean) for one in finding.pairs.values())
    assert len(finding.differences) == shape[0] - 1
    assert len(finding.top) <= 1


def test_a_loss_that_is_unsteady_is_judged_by_its_own_noise() -> None:
    scores = random_scores(losses=6)
    luck = np.array([-0.3, 0.0, 0.3])[:, None]
    values = scores.values.copy()
    values[5] += luck
    finding, steady = compare_losses(scores_of(values)), compare_losses(scores)
    means = values.mean(axis=2)
    own = means[5].var(ddof=1)
    pooled = means[:5].var(axis=1, ddof=1).mean()
    assert finding.noise == pytest.approx(stats.t.ppf(0.995, 10) * math.sqrt(pooled * 2 / 3))
    freedom = (own + pooled) ** 2 / (own**2 / 2 + pooled**2 / 10)
    expected = stats.t.ppf(0.995, freedom) * math.sqrt((own + pooled) / 3)
    assert finding.pairs["l5", "l0"].noise == pytest.approx(expected)
    assert finding.pairs["l1", "l0"].noise == pytest.approx(finding.noise)
    assert finding.warnings == (
        "l5 varies more from seed to seed than the others do: its own noise judges its differences.",
    )
    assert steady.warnings == ()


def with_luck(*luck: float, losses: int = 6, metric: ComparedMetric = DICE) -> PairedScores:
    """Steady scores whose last loss has these trainings, less than the others' mean by so much."""
    values = random_scores(losses=losses).values
    values[-1] += (np.array(luck) - values[-1].mean(axis=1) + values[:-1].mean())[:, None]
    return scores_of(values if metric.higher_is_better else 1 - values, metric)


@pytest.mark.parametrize("metric", [DICE, HD95])
def test_a_loss_that_is_unsteady_and_always_far_behind_is_worse(metric: ComparedMetric) -> None:
    finding = compare_losses(with_luck(-0.06, -0.21, -0.25, metric=metric))
    one = finding.pairs["l5", "l0"]
    assert one.low < 0 < one.high  # Student's t(2) would believe anything
    assert abs(one.mean) < one.noise
    assert (one.verdict, one.by_ceiling) == ("worse", True)
    turned = finding.pairs["l0", "l5"]
    assert (turned.verdict, turned.by_ceiling) == ("better", True)
    assert "l5" not in finding.top
    assert finding.ranks.shares[5, 5] == 1  # in every draw the last


@pytest.mark.parametrize(
    ("luck", "verdict"),
    [
        ((-0.1, -0.1, 0.001), "unclear"),  # one training as good as the others: the next may be so, too
        ((-0.1, 0.0, 0.1), "tie"),  # the mean of the others
        ((0.1, 0.2, 0.3), "unclear"),  # there is no floor to bet on
    ],
)
def test_a_loss_that_is_unsteady_and_not_always_behind_is_not_told(
    luck: tuple[float, float, float], verdict: str
) -> None:
    finding = compare_losses(with_luck(*luck))
    for pair in (("l5", "l0"), ("l0", "l5")):
        assert (finding.pairs[pair].verdict, finding.pairs[pair].by_ceiling) == (verdict, False)
    assert finding.top[0] != "l5"
    assert ("l5" in finding.top) == (verdict == "tie")


def test_two_unsteady_losses_are_not_told_from_each_other() -> None:
    values = with_luck(-0.06, -0.21, -0.25, losses=7).values
    values[5] += np.array([-0.4, -0.2, -0.5])[:, None]
    finding = compare_losses(scores_of(values))
    assert finding.pairs["l6", "l5"].verdict == "unclear"
    assert {finding.pairs[name, "l0"].verdict for name in ("l5", "l6")} == {"worse"}


def test_the_cases_must_agree_that_an_unsteady_loss_is_worse() -> None:
    """Behind in every training, but in one case of five alone."""
    values = random_scores(losses=6, cases=5).values
    values[5] += np.array([-0.3, -1.0, -1.3])[:, None] * np.array([1, 0, 0, 0, 0])
    one = compare_losses(scores_of(values)).pairs["l5", "l0"]
    assert one.verdict in ("tie", "unclear")


def test_the_p_value_of_the_ceiling_is_the_product_of_the_shortfalls() -> None:
    trainings = np.array([0.8, 0.65, 0.6])
    assert p_below_ceiling(trainings, 0.86, 0.88) == pytest.approx(0.02**3 / (0.08 * 0.23 * 0.28))
    assert p_below_ceiling(trainings + 0.3, 0.86, 0.88) == 1
    assert p_below_ceiling(np.array([0.87, 0.87]), 0.86, 0.88) == 1


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("trainings", [2, 3, 5])
def test_the_p_value_of_the_ceiling_keeps_its_level(share: float, trainings: int) -> None:
    """Trainings that fail with this probability, and else reach the ceiling nearly; their true mean is tested."""
    rng = np.random.default_rng(0)
    failed = rng.random((4000, trainings)) < share
    drawn = np.where(failed, 0.5, 0.879)
    mean = share * 0.5 + (1 - share) * 0.879
    p = np.array([p_below_ceiling(row, mean, 0.88) for row in drawn])
    for level in (0.2, 0.05, 0.01):
        assert (p <= level).mean() <= level + 3 * math.sqrt(level * (1 - level) / len(p))


def test_draws_are_those_of_their_seed() -> None:
    scores = random_scores()
    first, again, other = (compare_losses(scores, draws=200, seed=seed) for seed in (0, 0, 1))
    assert first.pairs == again.pairs
    np.testing.assert_array_equal(first.ranks.shares, again.ranks.shares)
    assert first.pairs["l1", "l0"].low != other.pairs["l1", "l0"].low
    assert first.pairs["l1", "l0"].mean == other.pairs["l1", "l0"].mean


def test_many_cases_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = random_scores()
    whole = compare_losses(scores, draws=3000).pairs["l1", "l0"]
    monkeypatch.setattr("monai_extra_losses.compare.statistics._CELLS_AT_ONCE", 60 * 70)
    parts = compare_losses(scores, draws=3000).pairs["l1", "l0"]
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.1 * (whole.high - whole.low))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"draws": 0}, "draws to be at least 1, got 0"), ({"level": 95.0}, "level to be between 0 and 1, got 95.0")],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_losses(random_scores(), **options)


def test_values_of_another_shape_are_refused() -> None:
    scores = dataclasses.replace(random_scores(), losses=("l0", "l1"))
    with pytest.raises(ValueError, match=r"= \(2, 3, 60\) with a loss at least, got \(3, 3, 60\)"):
        compare_losses(scores)


def test_the_rule_holds_in_a_short_simulation() -> None:
    """Equal losses are tied, what is larger than the noise is found, and p of one seed is false more often than 5 %."""
    row = simulate("steady", losses=3, seeds=3, cases=60, comparisons=60, draws=500)
    assert row["tie"] >= 0.93
    assert row["coverage"] >= 0.93
    assert row["power_band"] >= 0.85
    assert row["wilcoxon"] >= 0.4
    assert 0 < row["power_seed"] < row["power_band"]


def table() -> list[dict[str, str]]:
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_coverage_of_the_warning_is_that_of_the_table() -> None:
    lowest: dict[int, float] = {}
    for row in table():
        if row["scenario"] == "one_fails":
            lowest[int(row["cases"])] = min(float(row["coverage"]), lowest.get(int(row["cases"]), 1.0))
    assert dict(COVERAGE) == pytest.approx(lowest)


def test_equal_losses_are_tied_in_the_whole_table() -> None:
    rows = [row for row in table() if row["scenario"] in ("steady", "failures")]
    assert len(rows) == 48
    for row in rows:
        assert min(float(row[column]) for column in ("tie", "all_tie", "coverage")) >= 0.9, row


@pytest.mark.slow
@pytest.mark.parametrize("cases", [12, 30, 60, 200])
@pytest.mark.parametrize("losses", [3, 10])
@pytest.mark.parametrize("scenario", ["steady", "failures"])
def test_the_table_is_what_the_simulation_gives(scenario: str, losses: int, cases: int) -> None:
    """The first 200 of its 300 comparisons, within four standard errors of what the others add."""
    row = simulate(scenario, losses=losses, seeds=3, cases=cases, comparisons=200, draws=1000)
    assert min(row["tie"], row["all_tie"], row["coverage"]) >= 0.9
    (shown,) = (
        own
        for own in table()
        if (own["scenario"], int(own["losses"]), int(own["seeds"]), int(own["cases"])) == (scenario, losses, 3, cases)
    )
    for column in ("tie", "coverage", "wilcoxon", "power_band"):
        assert row[column] == pytest.approx(float(shown[column]), abs=0.06), column
