"""What may be said of the differences between losses.

A loss differs from itself: trained again with another seed it has another mean. So a difference is claimed only if it
is larger than this noise of the seeds, and if its interval over cases and seeds excludes 0. A p-value claims nothing
here: a test over the cases of one training each calls the luck of two seeds a difference.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from monai_extra_losses.compare.results import PairedScores

Verdict = Literal["better", "worse", "tie", "unclear"]

COVERAGE: Mapping[int, float] = MappingProxyType({12: 0.602, 30: 0.835, 60: 0.946, 200: 0.988})
"""Number of cases -> share of intervals that hold the true difference between two losses of which one fails in one case
of 20: the lowest of `one_fails` in benchmarks/comparison_simulation.csv."""

_FEW_CASES = 50
_UNSTEADY = 0.05  # level of the F test that the noise of a loss is that of the others, over all losses
_CELLS_AT_ONCE = 4_000_000  # draws x cases: 32 MB


@dataclasses.dataclass(frozen=True)
class Difference:
    """A loss minus another, in units of the metric; NaN where they share no replicate, or fewer than two cases.

    Args:
        loss: that is judged.
        other: that it is compared to.
        mean: over the cases, of the means over the replicates.
        low: of the interval of the mean, over cases and seeds, at a level for all comparisons with one loss together.
        high: likewise.
        noise: half width of the band of the seeds around 0, at the same level; NaN with one seed.
        p_wilcoxon: of the Wilcoxon signed-rank test over the cases, two-sided; knows nothing of the noise of the seeds.
        p_holm: the same after Holm's correction for all comparisons that it stands among.
        false_claim: probability that the true difference has the other sign, 0 to 0.5 and about 0.5 for none; the share
            of draws, so that 0 is less than one draw.
        verdict: on `loss`: a tie, unless the mean is outside the band and the interval excludes 0. Of an unsteady loss
            see `compare_losses`: "unclear" is no tie.
        by_ceiling: whether the verdict rests on how good a training can be, so that the interval may hold 0.
        cases: number that both losses define in all of `replicates`.
        replicates: number that both losses have.
    """

    loss: str
    other: str
    mean: float
    low: float
    high: float
    noise: float
    p_wilcoxon: float
    p_holm: float
    false_claim: float
    verdict: Verdict
    cases: int
    replicates: int
    by_ceiling: bool = False


@dataclasses.dataclass(frozen=True)
class RankStability:
    """Ranks of the losses under resampling of cases and seeds.

    Args:
        losses: (L).
        shares: (L, L) share of the draws in which loss l has rank r + 1. Losses that tie in a draw share the best of
            their ranks. NaN for a loss without results.
        mean_rank: (L), 1 is the best.
    """

    losses: tuple[str, ...]
    shares: NDArray[np.float64]
    mean_rank: NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one metric of one class says.

    Args:
        scores: it is about.
        means: (L) over the cases that all losses define; NaN for a loss without results.
        replicate_means: (L, S) likewise; NaN for an incomplete replicate.
        noise: half width of the band of the seeds for a difference, with the fewest replicates that a loss has.
        differences: of every other loss to the first.
        pairs: (loss, other) -> difference, in both orders; `p_holm` is over all pairs.
        ranks: of all losses.
        top: the loss with the best mean, and those that are tied with it, the better first; without unsteady losses
            of which it is unclear whether they are better than the best steady one. The best is the luckiest
            too: of ten equal losses, one is missing here more often than `level` says (`all_top` of
            benchmarks/comparison_simulation.csv).
        warnings: sentences.
    """

    scores: PairedScores
    means: NDArray[np.float64]
    replicate_means: NDArray[np.float64]
    noise: float
    differences: tuple[Difference, ...]
    pairs: Mapping[tuple[str, str], Difference]
    ranks: RankStability
    top: tuple[str, ...]
    warnings: tuple[str, ...]


def compare_losses(scores: PairedScores, *, draws: int = 2000, level: float = 0.95, seed: int = 0) -> Finding:
    """Judge every pair of losses.

    The noise of the seeds: s² is the variance of the means of the replicates of a loss around their own mean, pooled
    over the losses, with df = sum over losses of (S - 1) degrees of freedom. A difference of two means over S
    replicates is noise up to t(1 - α / 2, df) s √(2 / S), with α = (1 - level) / (L - 1): so `level` holds for all
    comparisons with one loss together. A loss that varies more than the others, by an F test at 5 % over all losses, is
    unsteady: it leaves the pool, which it would inflate for all, and has its own s², with Welch's degrees of freedom in
    its differences. With few seeds the test misses many that are; of those more differences are claimed than `level`
    says.

    Its own band may be wider than the scale of the metric: Student's t(2) believes that trainings which gave 0.62, 0.66
    and 0.81 may as well give 1.1. So an unsteady loss that its band ties with a steady one is tested once more, without
    a normal distribution: by `p_below_ceiling`, where the ceiling is the best training of all losses and the luck of
    one. It is worse if that p is at most α / 2. So tested is a difference that is larger than the band of the steady
    losses and whose interval over the cases alone excludes 0; it is "unclear" if the test finds nothing, or both losses
    are unsteady, or the unsteady one is ahead. Any other is a tie.

    The interval of a difference is that of a two-level bootstrap. Cases are drawn jointly for all losses, over the mean
    over the replicates of each case. Added is the level of the seeds: S deviations of a replicate from the mean of its
    loss, drawn from the pool and times √(S / (S - 1)), averaged for each loss, and times √(df / χ²(df)) in each draw.
    A plain bootstrap over 3 seeds would be too narrow: it has (S - 1) / S of the variance, and not the tails of so
    small a sample, which are Student's. The percentiles α / 2 and 1 - α / 2 of the draws make the interval. It is
    somewhat wide: what a training adds to single cases is drawn at both levels.

    Where values are NaN, a pair of losses keeps the replicates and the cases in which both have all values: it does
    without a replicate or without a case, whichever leaves more values.

    Args:
        scores: values (L, S, N).
        draws: of the bootstrap.
        level: of intervals and bands, for all comparisons with one loss together.
        seed: of the draws.

    Raises:
        ValueError: no draws, a level that is not between 0 and 1, or values of another shape than the names.

    `false_claim` follows an idea of Christodoulou et al., False promises in medical imaging AI? Assessing validity of
    outperformance claims, 2025, arXiv:2505.04720, where it is a probability over cases.
    """
    _refuse_unusable(scores, draws, level)
    rng = np.random.default_rng(seed)
    blocks = [_Block.of(own[None]) for own in scores.values]
    pool, noise = _noise_of_losses(scores.values, blocks)
    shared = _shared_cases(blocks, len(scores.cases))
    of_cases = np.stack([block.means_of_cases(own) for block, own in zip(blocks, scores.values, strict=True)])
    of_cases[:, ~shared] = np.nan
    means = _mean(of_cases)
    replicates = [len(block.replicates) for block in blocks]
    complete = [count for count in replicates if count]
    alpha = (1 - level) / max(len(complete) - 1, 1)
    couples = [_Couple.of(scores.values, *rows) for rows in itertools.combinations(range(len(blocks)), 2)]

    case_draws = _means_of_drawn_cases(np.stack([*of_cases, *(one.gap for one in couples)], axis=1), draws, rng)
    seed_draws = _seed_draws(noise, draws, len(scores.replicates), rng)
    judged = []
    for couple, own_draws in zip(couples, case_draws[:, len(blocks) :].T, strict=True):
        one = _difference(scores, couple, couple.drawn(own_draws, seed_draws), noise, alpha)
        judged.append(_placed(one, couple, scores, own_draws, noise, pool, alpha))
    unsteady = {row for row, own in enumerate(noise) if own is not pool}
    for row in unsteady:  # in ranks; with Student's tails a loss that always fails would be first now and then
        seed_draws[:, [row]] = noise[row].draws((draws, 1, len(scores.replicates)), rng, tails=False)
    loss_draws = case_draws[:, : len(blocks)] + seed_draws / np.sqrt(np.maximum(replicates, 1))
    pairs = {(one.loss, one.other): one for pair in _with_holm(judged) for one in (pair, _turned(pair))}
    return Finding(
        scores=scores,
        means=means,
        replicate_means=_replicate_means(scores.values, blocks, shared),
        noise=pool.band(pool, min(complete, default=0), alpha),
        differences=tuple(_with_holm([pairs[name, scores.losses[0]] for name in scores.losses[1:]])),
        pairs=pairs,
        ranks=_rank_stability(scores, loss_draws, ~np.isnan(means)),
        top=_top(scores, means, pairs, unsteady),
        warnings=tuple(_warnings(scores, blocks, shared, pool, noise)),
    )


@dataclasses.dataclass(frozen=True)
class _Block:
    """Replicates and cases (N) in which some losses have all values; none where they are fewer than two cases."""

    replicates: tuple[int, ...]
    cases: NDArray[np.bool_]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        """The block with the most values: of the fullest replicate, the two fullest, ...

        Args:
            values: (losses, S, N).
        """
        defined = np.asarray(~np.isnan(values).any(axis=0))
        fullest = np.argsort(-defined.sum(axis=1), kind="stable")
        cases = np.logical_and.accumulate(defined[fullest])
        sizes = [(count * int(own.sum()), count) for count, own in enumerate(cases, 1) if own.sum() > 1]
        if not sizes:
            return cls((), np.zeros(values.shape[2], bool))
        _, count = max(sizes)  # the most replicates among equals
        return cls(tuple(sorted(fullest[:count].tolist())), cases[count - 1])

    def means_of_cases(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over the replicates of values (S, N) -> (N), NaN outside the block."""
        means = np.full(len(self.cases), np.nan)
        if self.replicates:
            means[self.cases] = values[list(self.replicates)][:, self.cases].mean(axis=0)
        return means

    def deviations(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Means of the replicates of values (S, N) less their own mean."""
        if not self.replicates:
            return np.zeros(0)
        means = values[list(self.replicates)][:, self.cases].mean(axis=1)
        means -= means[0]  # equal ones deviate by 0, whatever their mean rounds to
        return np.asarray(means - means.mean())


@dataclasses.dataclass(frozen=True)
class _Couple:
    """Two losses, by row, and where both have all values.

    Args:
        loss: first row.
        other: second row.
        block: of both.
        gap: (N) first minus second, means over the replicates; NaN outside the block.
    """

    loss: int
    other: int
    block: _Block
    gap: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[np.float64], loss: int, other: int) -> Self:
        block = _Block.of(values[[loss, other]])
        return cls(loss, other, block, block.means_of_cases(values[loss]) - block.means_of_cases(values[other]))

    def drawn(self, case_draws: NDArray[np.float64], seed_draws: NDArray[np.float64]) -> NDArray[np.float64]:
        """Both levels: draws of the mean of the gap (draws), and of the seeds of all losses (draws, L)."""
        seeds = seed_draws[:, self.loss] - seed_draws[:, self.other]
        return case_draws + seeds / math.sqrt(max(len(self.block.replicates), 1))


@dataclasses.dataclass(frozen=True, eq=False)
class _SeedNoise:
    """How the means of the replicates of a loss vary around their own mean.

    Args:
        deviations: of all losses that share it, times √(S / (S - 1)).
        variance: pooled over these.
        freedom: degrees of it; 0: unknown.
    """

    deviations: NDArray[np.float64]
    variance: float
    freedom: int

    @classmethod
    def of(cls, deviations: Iterable[NDArray[np.float64]]) -> Self:
        """Pool the deviations (S) of each loss."""
        known = [own for own in deviations if len(own) > 1]
        freedom = sum(len(own) - 1 for own in known)
        inflated = [own * math.sqrt(len(own) / (len(own) - 1)) for own in known]
        squares = sum(float((own**2).sum()) for own in known)
        return cls(np.concatenate([*inflated, []]), squares / max(freedom, 1), freedom)

    def band(self, other: Self, replicates: int, alpha: float) -> float:
        """Half width for a difference to a loss of that noise, of means over so many replicates."""
        if not (self.freedom and other.freedom and replicates):
            return math.nan
        both, freedom = self.variance + other.variance, float(self.freedom)
        if other is not self and both:  # Welch's degrees of freedom
            freedom = both**2 / (self.variance**2 / self.freedom + other.variance**2 / other.freedom)
        return float(stats.t.isf(alpha / 2, freedom)) * math.sqrt(both / replicates)

    def draws(
        self, shape: tuple[int, int, int], rng: np.random.Generator, *, tails: bool = True
    ) -> NDArray[np.float64]:
        """Noise of a mean times √(its replicates), with Student's tails, for a shape (draws, L, S) -> (draws, L)."""
        draws, losses, replicates = shape
        if not self.freedom:
            return np.zeros((draws, losses))
        picked = self.deviations[rng.integers(len(self.deviations), size=shape)]
        drawn = np.asarray(picked.mean(axis=2) * math.sqrt(replicates))
        return drawn * np.sqrt(self.freedom / rng.chisquare(self.freedom, size=(draws, 1))) if tails else drawn


def _noise_of_losses(values: NDArray[np.float64], blocks: Sequence[_Block]) -> tuple[_SeedNoise, list[_SeedNoise]]:
    """The noise that losses share, and the noise of each loss: the shared one, or its own if it is unsteady."""
    deviations = [block.deviations(one) for one, block in zip(values, blocks, strict=True)]
    steady = list(range(len(deviations)))
    while True:
        own = {row: _SeedNoise.of([deviations[row]]) for row in steady}
        worst = max(own, key=lambda row: own[row].variance)
        rest = _SeedNoise.of(deviations[row] for row in steady if row != worst)
        if not (own[worst].freedom and rest.freedom):
            break
        limit = float(stats.f.isf(_UNSTEADY / len(steady), own[worst].freedom, rest.freedom))
        if own[worst].variance <= limit * rest.variance:
            break
        steady.remove(worst)
    shared = _SeedNoise.of(deviations[row] for row in steady)
    return shared, [shared if row in steady else _SeedNoise.of([own]) for row, own in enumerate(deviations)]


def _seed_draws(
    noise: Sequence[_SeedNoise], draws: int, replicates: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draws of each loss (draws, L); losses that share their noise share the draw of its size."""
    drawn = np.zeros((draws, len(noise)))
    for one in dict.fromkeys(noise):
        rows = [row for row, own in enumerate(noise) if own is one]
        drawn[:, rows] = one.draws((draws, len(rows), replicates), rng)
    return drawn


def _means_of_drawn_cases(columns: NDArray[np.float64], draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of columns (N, C) over cases drawn with replacement, the same for all columns -> (draws, C).

    NaN in a draw that has none of the cases that a column defines.
    """
    columns = columns[~np.isnan(columns).all(axis=1)]
    cases = len(columns)
    if not cases:
        return np.full((draws, columns.shape[1]), np.nan)
    defined = ~np.isnan(columns)
    values = np.where(defined, columns, 0)
    at_once = max(1, _CELLS_AT_ONCE // cases)
    means = []
    for start in range(0, draws, at_once):
        rows = min(at_once, draws - start)
        drawn = rng.integers(cases, size=(rows, cases)) + cases * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * cases).reshape(rows, cases).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means.append((times @ values) / (times @ defined))
    return np.concatenate(means)


def _difference(
    scores: PairedScores, couple: _Couple, drawn: NDArray[np.float64], noise: Sequence[_SeedNoise], alpha: float
) -> Difference:
    """The difference of a couple, of which `drawn` are draws."""
    names = scores.losses[couple.loss], scores.losses[couple.other]
    gap, replicates = couple.gap[couple.block.cases], len(couple.block.replicates)
    if not replicates:
        nan = math.nan
        return Difference(*names, nan, nan, nan, nan, nan, nan, nan, "tie", 0, 0)
    mean = float(gap.mean())
    low, high = (float(bound) for bound in np.nanquantile(drawn, [alpha / 2, 1 - alpha / 2]))
    band = noise[couple.loss].band(noise[couple.other], replicates, alpha)
    p = _wilcoxon(gap)
    verdict = _verdict(mean, low, high, band, scores.metric.higher_is_better)
    return Difference(*names, mean, low, high, band, p, p, _false_claim(mean, drawn), verdict, len(gap), replicates)


def p_below_ceiling(trainings: NDArray[np.float64], mean: float, ceiling: float) -> float:
    """P-value of the hypothesis that trainings have this mean, or a higher one, if none can be above the ceiling.

    The shortfalls U - x of trainings from the ceiling U are then positive, with a mean of U - m at most. So the
    expectation of the product of all (U - x) / (U - m) is 1 at most, and by Markov's inequality the product exceeds
    1 / p with a probability of p at most, whatever the distribution and however few the trainings. Betting on a bounded
    mean: Waudby-Smith and Ramdas 2024, Journal of the Royal Statistical Society B 86, 1-27.

    Args:
        trainings: (S) means of a loss; higher is better.
        mean: m, below the ceiling.
        ceiling: U, at least the best training.
    """
    shortfalls = ceiling - trainings
    if not (shortfalls > 0).all():
        return 1.0
    return min(1.0, float(np.prod((ceiling - mean) / shortfalls)))


def _placed(
    one: Difference,
    couple: _Couple,
    scores: PairedScores,
    case_draws: NDArray[np.float64],
    noise: Sequence[_SeedNoise],
    pool: _SeedNoise,
    alpha: float,
) -> Difference:
    """A difference that the noise of an unsteady loss ties: worse by the ceiling, unclear, or a tie after all.

    Args:
        one: as its band and interval judge it.
        couple: of it.
        scores: of all losses.
        case_draws: of its mean over the cases alone.
        noise: of each loss.
        pool: that of the steady ones.
        alpha: as in `compare_losses`.
    """
    unsteady = [row for row in (couple.loss, couple.other) if noise[row] is not pool]
    if not unsteady or one.verdict != "tie" or math.isnan(one.mean):
        return one
    low, high = np.nanquantile(case_draws, [alpha / 2, 1 - alpha / 2])
    if abs(one.mean) <= pool.band(pool, one.replicates, alpha) or low <= 0 <= high:
        return one
    sign = 1 if scores.metric.higher_is_better else -1
    behind = couple.loss if sign * one.mean < 0 else couple.other
    if unsteady == [behind] and _p_of_couple(couple, sign * scores.values, behind, pool, alpha) <= alpha / 2:
        return dataclasses.replace(one, verdict="worse" if behind == couple.loss else "better", by_ceiling=True)
    return dataclasses.replace(one, verdict="unclear")


def _p_of_couple(couple: _Couple, values: NDArray[np.float64], unsteady: int, pool: _SeedNoise, alpha: float) -> float:
    """`p_below_ceiling` of an unsteady loss, of values (L, S, N) that are higher the better.

    The ceiling is above the best training of all by the luck of one, and the mean of the steady loss is taken as low as
    its luck allows, both at the level of the bands.
    """
    steady = couple.other if unsteady == couple.loss else couple.loss
    means = values[:, :, couple.block.cases].mean(axis=2)
    replicates = list(couple.block.replicates)
    ceiling = np.nanmax(means) + pool.band(pool, 2, alpha)
    mean = means[steady, replicates].mean() - pool.band(pool, 2 * len(replicates), alpha)
    return p_below_ceiling(means[unsteady, replicates], float(mean), float(ceiling))


def _wilcoxon(gap: NDArray[np.float64]) -> float:
    """Two-sided p; the normal approximation where sizes are equal, for which SciPy permutes the signs of few cases."""
    if not gap.any():
        return 1.0
    sizes = np.abs(gap)
    distinct = len(np.unique(sizes)) == len(sizes) and bool(sizes.all())
    return float(stats.wilcoxon(gap, method="auto" if distinct else "asymptotic").pvalue)


def _verdict(mean: float, low: float, high: float, noise: float, higher_is_better: bool) -> Verdict:
    if not (abs(mean) > noise and (low > 0 or high < 0)):  # with a noise of NaN too
        return "tie"
    return "better" if (mean > 0) == higher_is_better else "worse"


def _false_claim(mean: float, drawn: NDArray[np.float64]) -> float:
    """Share of the draws on the other side of 0; those at 0 count half."""
    signs = np.sign(drawn[~np.isnan(drawn)]) * np.sign(mean)
    return float((1 - signs.mean()) / 2)


def _turned(one: Difference) -> Difference:
    """The same, of the other loss."""
    verdicts: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
    return dataclasses.replace(
        one,
        loss=one.other,
        other=one.loss,
        mean=-one.mean,
        low=-one.high,
        high=-one.low,
        verdict=verdicts.get(one.verdict, one.verdict),
    )


def _with_holm(differences: Sequence[Difference]) -> list[Difference]:
    """The same with `p_holm` over these. Holm 1979, Scandinavian Journal of Statistics 6, 65-70."""
    p = np.array([one.p_wilcoxon for one in differences])
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]  # NaN comes last
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return [dataclasses.replace(one, p_holm=float(own)) for one, own in zip(differences, adjusted, strict=True)]


def _shared_cases(losses: Iterable[_Block], cases: int) -> NDArray[np.bool_]:
    """Cases (N) that all losses with results define."""
    own = [block.cases for block in losses if block.replicates]
    return np.logical_and.reduce(own) if own else np.zeros(cases, bool)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is not NaN, NaN where there is nothing."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1))


def _replicate_means(
    values: NDArray[np.float64], losses: Sequence[_Block], shared: NDArray[np.bool_]
) -> NDArray[np.float64]:
    kept = np.full(values.shape, np.nan)
    for own, one, block in zip(kept, values, losses, strict=True):
        complete = list(block.replicates)
        own[complete] = np.where(shared, one[complete], np.nan)
    return _mean(kept)


def _rank_stability(scores: PairedScores, loss_draws: NDArray[np.float64], known: NDArray[np.bool_]) -> RankStability:
    """Of draws (draws, L) of the means of the losses, of which some are known."""
    count = len(scores.losses)
    shares, mean_rank = np.full((count, count), np.nan), np.full(count, np.nan)
    if known.any():
        drawn = loss_draws[:, known]
        drawn = drawn[~np.isnan(drawn).any(axis=1)]
        ranks = stats.rankdata(-drawn if scores.metric.higher_is_better else drawn, method="min", axis=1)
        shares[known] = (ranks[:, :, None] == np.arange(1, count + 1)).mean(axis=0)
        mean_rank[known] = ranks.mean(axis=0)
    return RankStability(scores.losses, shares, mean_rank)


def _top(
    scores: PairedScores,
    means: NDArray[np.float64],
    pairs: Mapping[tuple[str, str], Difference],
    unsteady: Collection[int],
) -> tuple[str, ...]:
    order = np.argsort(-means if scores.metric.higher_is_better else means, kind="stable")
    rows = [row for row in order if not math.isnan(means[row])]
    names = [scores.losses[row] for row in rows]
    best = next((scores.losses[row] for row in rows if row not in unsteady), None)
    if best is not None:
        names = [name for name in names if name == best or pairs[name, best].verdict != "unclear"]
    tied = [
        name
        for name in names[1:]
        if pairs[name, names[0]].verdict == "tie" and not math.isnan(pairs[name, names[0]].mean)
    ]
    return (*names[:1], *tied)


def _warnings(
    scores: PairedScores,
    blocks: Sequence[_Block],
    shared: NDArray[np.bool_],
    pool: _SeedNoise,
    noise: Sequence[_SeedNoise],
) -> Iterable[str]:
    """What a reader must know before the numbers."""
    if not pool.freedom:
        yield (
            "One seed cannot tell a difference from the noise of the seeds: every verdict is a tie, and intervals are "
            "over the cases alone."
        )
    for name, own in zip(scores.losses, noise, strict=True):
        if own is not pool:
            yield f"{name} varies more from seed to seed than the others do: its own noise judges its differences."
    wanted, counts = len(scores.replicates), [len(block.replicates) for block in blocks]
    if short := [f"{name} {count}" for name, count in zip(scores.losses, counts, strict=True) if count < wanted]:
        yield f"Fewer than {wanted} complete replicates: {', '.join(short)}; incomplete ones are left out."
    measured, count = int((~np.isnan(scores.values)).any(axis=(0, 1)).sum()), int(shared.sum())
    if count < measured:
        yield f"{measured - count} of {measured} cases lack a value of some loss: means and ranks are over the others."
    if 0 < count < _FEW_CASES:
        nearest = max((cases for cases in COVERAGE if cases <= count), default=min(COVERAGE))
        yield (
            f"{count} cases are few, and intervals are too narrow where a loss fails in some: with {nearest} cases and "
            f"a loss that fails in one of 20, {100 * COVERAGE[nearest]:.0f} % of them held the true difference in a "
            "simulation."
        )


def _refuse_unusable(scores: PairedScores, draws: int, level: float) -> None:
    if draws < 1:
        raise ValueError(f"Expected draws to be at least 1, got {draws}.")
    if not 0 < level < 1:
        raise ValueError(f"Expected level to be between 0 and 1, got {level}; 0.95 say.")
    shape = (len(scores.losses), len(scores.replicates), len(scores.cases))
    if scores.values.shape != shape or not scores.losses:
        raise ValueError(
            f"Expected values of shape (losses, replicates, cases) = {shape} with a loss at least, "
            f"got {scores.values.shape}."
        )
