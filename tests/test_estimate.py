"""Rates from verdicts: exact intervals against enumeration, and what an audit's tables and samples make of them."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from auscult.audit import AuditConfig, audit
from auscult.corpus import open_corpus
from auscult.review.estimate import Tally, needed, stratified_rate
from auscult.review.fields import majority
from auscult.review.intervals import (
    Method,
    clopper_pearson,
    hypergeometric_bounds,
    hypergeometric_cdf,
    share,
    stratified_bounds,
)
from auscult.review.queue import load_pairs
from auscult.review.sampling import draw_sample
from auscult.review.verdicts import Sample, Stratum, VerdictStore, pair_id
from auscult.review.verified import audit_rate, precision, verified_clips

METHODS: tuple[Method, ...] = ("exact", "bonferroni", "pooled", "weighted")

# --- intervals ------------------------------------------------------------------------------------------------------


def test_clopper_pearson_inverts_the_binomial_test() -> None:
    for trials, level in ((1, 0.95), (7, 0.9), (60, 0.99)):
        for found in range(trials + 1):
            low, high = clopper_pearson(found, trials, level=level)
            peer = stats.binomtest(found, trials).proportion_ci(level, method="exact")
            assert (low, high) == pytest.approx((peer.low, peer.high), abs=1e-9)


@pytest.mark.parametrize(("size", "marked", "drawn"), [(10, 3, 4), (45_000, 320, 900), (50, 40, 30), (9, 9, 2), (9, 0, 9)])
def test_hypergeometric_distribution_equals_scipy(size: int, marked: int, drawn: int) -> None:
    for at_most in range(-1, min(drawn, 40) + 1):
        expected = stats.hypergeom.cdf(at_most, size, marked, drawn)
        assert hypergeometric_cdf(size, marked, drawn, at_most) == pytest.approx(expected, abs=1e-9)  # gammaln of 45,000


@pytest.mark.parametrize(("size", "drawn", "level"), [(12, 5, 0.95), (30, 10, 0.9), (40, 39, 0.95), (25, 1, 0.8)])
def test_bounds_are_the_counts_that_no_test_excludes(size: int, drawn: int, level: float) -> None:
    """Oracle: try every count with scipy's distribution."""
    tail = (1 - level) / 2
    for found in range(drawn + 1):
        counts = np.arange(size + 1)
        few, many = (stats.hypergeom.cdf(found, size, counts, drawn), stats.hypergeom.sf(found - 1, size, counts, drawn))
        kept = counts[(few > tail + 1e-12) & (many > tail + 1e-12)]
        assert hypergeometric_bounds(size, drawn, found, level=level) == (kept.min(), kept.max())


def test_hypergeometric_coverage_by_drawing_every_subset() -> None:
    """Oracle: all samples of a tiny population, listed one by one."""
    size, drawn = 8, 3
    for marked in range(size + 1):
        samples = list(itertools.combinations(range(size), drawn))
        hit = 0
        for sample in samples:
            low, high = hypergeometric_bounds(size, drawn, sum(item < marked for item in sample), level=0.8)
            hit += low <= marked <= high
        assert hit / len(samples) >= 0.8


def exact_coverage(strata: list[tuple[int, int]], marked: tuple[int, ...], method: Method, level: float, cache: dict) -> float:
    """Probability that the interval holds the truth, over all outcomes; scipy's distribution is the oracle."""
    outcomes = itertools.product(*(range(drawn + 1) for _, drawn in strata))
    total = 0.0
    for found in outcomes:
        if found not in cache:
            rows = [(size, drawn, count, count) for (size, drawn), count in zip(strata, found, strict=True)]
            cache[found] = stratified_bounds(rows, level=level, method=method)[:2]
        low, high = cache[found]
        if low <= sum(marked) <= high:
            total += float(
                np.prod([stats.hypergeom.pmf(x, n, k, d) for x, (n, d), k in zip(found, strata, marked, strict=True)])
            )
    return total


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "strata",
    [[(6, 3), (6, 3)], [(4, 3), (12, 2)], [(10, 9), (10, 1)], [(5, 1), (6, 2), (4, 2)]],
    ids=["even", "uneven", "far", "3"],
)
def test_stratified_coverage_of_every_small_population(strata: list[tuple[int, int]], method: Method) -> None:
    """No Monte Carlo: every population, every outcome, weighted by its probability."""
    for level in (0.7, 0.95):
        cache: dict = {}
        for marked in itertools.product(*(range(size + 1) for size, _ in strata)):
            assert exact_coverage(strata, marked, method, level, cache) >= level - 1e-9, marked


@pytest.mark.parametrize("method", METHODS)
def test_coverage_of_rare_events_in_large_strata(method: Method) -> None:
    """Simulated audits, rates from 0 to 5 %, strata as ``draw_sample`` makes them and others."""
    rng = np.random.default_rng(1)
    designs = ([(246, 18), (737, 32), (2210, 55), (6629, 95)], [(2500, 50)] * 4, [(500, 100), (9000, 60)])
    draws = 1500
    for sizes in designs:
        for rates in ((0.0, 0.0, 0.0, 0.0), (0.02, 0.002, 0.0002, 0.0), (0.0, 0.0, 0.0, 0.01), (0.05, 0.05, 0.01, 0.001)):
            marked = [int(np.ceil(size * rate)) for (size, _), rate in zip(sizes, rates, strict=False)]
            found = [rng.hypergeometric(k, size - k, n, draws) for (size, n), k in zip(sizes, marked, strict=True)]
            outcomes, times = np.unique(np.column_stack(found), axis=0, return_counts=True)
            hits = 0
            for outcome, count in zip(outcomes.tolist(), times.tolist(), strict=True):
                rows = [(size, n, x, x) for (size, n), x in zip(sizes, outcome, strict=True)]
                low, high, _ = stratified_bounds(rows, method=method)
                hits += count * (low <= sum(marked) <= high)
            assert hits / draws >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / draws), (sizes, marked)


def test_the_joint_bound_is_far_narrower_than_bonferroni() -> None:
    sizes = [(246, 18), (737, 32), (2210, 55), (6629, 95)]  # 200 of 9,822 clips, as draw_sample allots them
    rows = [(size, drawn, 0, 0) for size, drawn in sizes]
    _, joint, method = stratified_bounds(rows)
    _, apart, _ = stratified_bounds(rows, method="bonferroni")
    assert method == "weighted"
    assert joint < 0.4 * apart
    # nothing found: the worst case is all in the thinnest stratum, and the bound is that of its share (exactly)
    assert joint == int(np.floor(np.log(0.025) / np.log(1 - 95 / 6629)))


def test_one_stratum_is_the_hypergeometric_bound_and_a_census_has_no_width() -> None:
    for found in (0, 2, 20):
        assert stratified_bounds([(100, 20, found, found)])[:2] == hypergeometric_bounds(100, 20, found)
    assert stratified_bounds([(100, 100, 3, 5), (40, 40, 1, 1)]) == (4, 6, "census")
    assert stratified_bounds([(100, 100, 3, 3), (40, 0, 0, 0)]) == (3, 43, "census")
    low, high, _ = stratified_bounds([(100, 20, 2, 2), (50, 50, 7, 7), (9, 0, 0, 0)])
    assert (low - 7, high - 16) == hypergeometric_bounds(100, 20, 2)


def test_arguments_of_intervals() -> None:
    for call in (
        lambda: clopper_pearson(3, 2),
        lambda: hypergeometric_bounds(5, 6, 1),
        lambda: stratified_bounds([(5, 3, 2, 1)]),
        lambda: stratified_bounds([(5, 3, 1, 1)], method="wald"),  # type: ignore[arg-type]
        lambda: clopper_pearson(1, 2, level=95),
        lambda: share(1, 2, unsure=2),
    ):
        with pytest.raises(ValueError, match="expected|should be"):
            call()


# --- the rate -------------------------------------------------------------------------------------------------------


def test_stratified_estimate_by_hand() -> None:
    rate = stratified_rate([Tally("flagged", 178, 178, 31), Tally("near", 822, 100, 5), Tally("far", 9000, 100, 1)])
    assert rate.per_10_000 == pytest.approx(31 + 822 * 5 / 100 + 9000 * 1 / 100)
    assert (rate.clips, rate.verified, rate.replications, rate.at_least) == (10_000, 378, 37, False)
    assert 37 <= rate.low < rate.per_10_000 < rate.high < 10_000
    assert rate.sentence == (
        f"An estimated 162 per 10,000 generated clips replicate a training clip (95% interval {rate.low:.0f} to "
        f"{rate.high:.0f}): 37 replications among the 378 verified of 10,000 clips."
    )


def test_a_census_is_what_it_counts() -> None:
    rate = stratified_rate([Tally("flagged", 30, 30, 3, random=False), Tally("others", 90, 90, 0)])
    assert rate.per_10_000 == rate.low == rate.high == 250
    assert (rate.interval, rate.at_least) == ("census", False)
    assert (
        rate.sentence
        == "250 per 10,000 generated clips replicate a training clip: 3 replications among the 120 verified of 120 clips."
    )


def test_without_a_sample_the_rate_is_a_lower_bound() -> None:
    rate = stratified_rate([Tally("flagged", 178, 178, 31), Tally("not flagged", 9822)])
    assert rate.at_least
    assert (rate.per_10_000, rate.low, rate.high) == (31, 31, 31 + 9822)
    assert rate.sentence.startswith("At least 31 per 10,000")
    assert "none of the 9,822 clips was verified; they add 0 to 9,822" in rate.explanation
    partly = stratified_rate([Tally("flagged", 178, 50, 20, 5, random=False), Tally("not flagged", 9822, 100, 0)])
    assert partly.at_least
    assert partly.per_10_000 == 20
    assert partly.high == pytest.approx(178 - 25 + hypergeometric_bounds(9822, 100, 0)[1])
    assert "95% confidence" in partly.sentence
    assert "say nothing of the other 128" in partly.explanation
    unknown = stratified_rate([Tally("flagged", 178), Tally("not flagged", 9822)])
    assert "None of the 10,000 generated clips is verified yet" in unknown.sentence
    assert (unknown.low, unknown.high) == (0, 10_000)
    none = stratified_rate([Tally("flagged", 178, 178), Tally("not flagged", 9822)])
    assert none.sentence.startswith("No replication was found among the 178 verified of 10,000")
    assert "unknown" in none.sentence


def test_unsure_is_no_below_and_yes_above() -> None:
    rows = [Tally("flagged", 100, 100, 10, 5), Tally("others", 900, 90, 1, 2)]
    unsure = stratified_rate(rows)
    no = stratified_rate([Tally("flagged", 100, 100, 10), Tally("others", 900, 90, 1)])
    yes = stratified_rate([Tally("flagged", 100, 100, 15), Tally("others", 900, 90, 3)])
    assert (unsure.per_10_000, unsure.low, unsure.high) == (no.per_10_000, no.low, yes.high)
    assert "7 unsure verdicts count as no" in unsure.explanation


def test_replications_found_beyond_the_sample_raise_the_lower_bound_only() -> None:
    rows = [Tally("flagged", 178, 178, 31), Tally("others", 9822, 400, 1)]
    plain, more = stratified_rate(rows), stratified_rate(rows, extra=3)
    assert (plain.low, more.low) == (32, 35)
    assert (plain.per_10_000, plain.high) == (more.per_10_000, more.high)
    assert stratified_rate(rows, extra=60).per_10_000 == 31 + 61  # never less than what was found
    with pytest.raises(ValueError, match="extra"):
        stratified_rate(rows, extra=9423)


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["exact", "bonferroni", "pooled", "weighted", "bootstrap"]),
)
@settings(max_examples=80, deadline=None)
def test_laws_of_the_rate(rows, interval) -> None:
    tallies = []
    for number, (size, verified, found, unsure, random) in enumerate(rows):
        verified = min(verified, size)
        found = min(found, verified)
        tallies.append(Tally(f"{number}", size, verified, found, min(unsure, verified - found), random))
    rate = stratified_rate(tallies, interval=interval, resamples=50)
    assert rate == stratified_rate(tallies, interval=interval, resamples=50)
    scale = 10_000 / rate.clips
    refuted = sum(tally.verified - tally.replications - tally.unsure for tally in tallies)
    slack = 1e-9
    if interval == "bootstrap":
        assert 0 <= rate.low <= rate.high + slack
    else:
        assert rate.replications * scale - slack <= rate.low <= rate.per_10_000 + slack
        assert rate.high <= (rate.clips - refuted) * scale + slack or rate.high == rate.per_10_000
    assert rate.per_10_000 <= rate.high + slack <= 10_000 + 2 * slack
    if interval not in {"bootstrap", "exact"}:  # exact may choose another method for another level
        wider = stratified_rate(tallies, interval=interval, level=0.99)
        assert wider.low <= rate.low + slack
        assert wider.high >= rate.high - slack
    if interval != "bootstrap":
        turned = stratified_rate(tallies[::-1], interval=interval)
        assert (turned.low, turned.high) == pytest.approx((rate.low, rate.high))


def test_bootstrap_spread_is_that_of_the_design_and_nothing_where_nothing_is_found() -> None:
    rows = [Tally("near", 1000, 200, 80), Tally("far", 4000, 300, 60)]
    rate = stratified_rate(rows, interval="bootstrap", resamples=20_000)
    # Cochran's variance of a stratified share, with the finite-population correction
    variance = sum(
        t.size**2 * (1 - t.verified / t.size) * p * (1 - p) / t.verified for t in rows for p in [t.replications / t.verified]
    )
    reach = 1.96 * np.sqrt(variance) * 2
    assert (rate.high - rate.per_10_000, rate.per_10_000 - rate.low) == pytest.approx((reach, reach), rel=0.06)  # discrete
    nothing = stratified_rate([Tally("others", 9822, 400)], interval="bootstrap")
    assert nothing.low == nothing.high == 0
    assert "no width" in nothing.explanation
    assert stratified_rate([Tally("others", 9822, 400)]).high > 80


def test_arguments_of_the_rate() -> None:
    with pytest.raises(ValueError, match="at least one generated clip"):
        stratified_rate([])
    with pytest.raises(ValueError, match="interval should be"):
        stratified_rate([Tally("a", 3, 2)], interval="wald")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="flagged: expected replications"):
        Tally("flagged", 10, 5, 4, 2)


def test_precision_and_its_interval() -> None:
    whole = precision(Tally("flagged", 178, 178, 31))
    peer = stats.binomtest(31, 178).proportion_ci(method="exact")
    assert (whole.value, whole.low, whole.high) == pytest.approx((31 / 178, peer.low, peer.high))
    part = precision(Tally("flagged", 100, 10, 5, 1, random=False))
    assert (part.value, part.low, part.high) == (0.5, 0.05, 0.96)  # the other 90 all different, or all replications
    assert precision(Tally("flagged", 100, 10, 5, random=True)).high < 0.85
    with pytest.raises(ValueError, match="verify some"):
        precision(Tally("flagged", 3))


@pytest.mark.parametrize(
    ("half_width", "expected", "population"), [(300, 200, 400), (500, 0, 1000), (20, 1, 300), (40, 10, 9822)]
)
def test_needed_is_enough_and_little_more(half_width: float, expected: float, population: int) -> None:
    def width(n: int) -> float:
        low, high = hypergeometric_bounds(population, n, min(n, int(np.ceil(n * expected / 1e4 - 1e-9))))
        return (high - low) * 1e4 / population / 2

    n = needed(half_width, expected, population)
    assert n == population or width(n) <= half_width
    step = int(np.ceil(1e4 / expected)) if expected else 1
    assert (
        all(width(fewer) > half_width for fewer in range(max(1, n - step), max(1, min(n, n - step + 20))) if fewer < n)
        or n <= step
    )
    assert width(max(1, n // 2)) > half_width
    assert needed(half_width / 2, expected, population) >= n
    with pytest.raises(ValueError, match="half_width > 0"):
        needed(0, expected, population)


# --- an audit's tables ----------------------------------------------------------------------------------------------


def tables(n: int, flagged: int) -> pa.Table:
    """Generated clips of falling score, the first ``flagged`` flagged."""
    return pa.table(
        {
            "query_id": [f"g{i}" for i in range(n)],
            "reference_id": [f"t{i}" for i in range(n)],
            "score": pa.array(np.linspace(1, 0, n)),
            "flagged": [i < flagged for i in range(n)],
        }
    )


def pair(number: int) -> str:
    return pair_id(f"g{number}", f"t{number}")


def sample_of(parts: list[tuple[int, list[int]]], name: str = "s") -> Sample:
    """Strata of the given sizes with the given clips drawn, in this order."""
    rows = tuple((h, place, pair(clip)) for h, (_, drawn) in enumerate(parts) for place, clip in enumerate(drawn))
    return Sample(name, 0, tuple(Stratum(0.0, 1.0, size) for size, _ in parts), rows)


def test_strata_of_an_audit() -> None:
    queries = tables(20, 4)
    sample = sample_of([(6, [7, 5, 9]), (10, [15, 19, 12])])
    verdicts = {pair(i): "different" for i in (1, 2, 3, 5, 7, 9, 15, 19)} | {pair(0): "replication", pair(12): "unsure"}
    found = verified_clips(queries, verdicts, samples=[sample])
    assert [(t.size, t.verified, t.replications, t.unsure) for t in found.tallies] == [
        (4, 4, 1, 0),
        (6, 3, 0, 0),
        (10, 3, 0, 1),
    ]
    assert found.weights == {f"g{i}": w for w, ids in ((1.0, range(4)), (2.0, (5, 7, 9)), (10 / 3, (12, 15, 19))) for i in ids}
    rate = audit_rate(queries, verdicts, samples=[sample])
    assert rate.per_10_000 == 500
    assert not rate.at_least


def test_only_the_reviewed_start_of_a_random_order_is_a_sample() -> None:
    queries = tables(20, 2)
    sample = sample_of([(18, [10, 11, 12, 13, 14])])
    verdicts = {pair(i): "different" for i in (0, 1, 10, 11)} | {pair(13): "replication", pair(14): "different"}  # 12 skipped
    found = verified_clips(queries, verdicts, samples=[sample])
    assert (found.tallies[1].verified, found.tallies[1].replications, found.extra) == (2, 0, 1)
    assert any("2 verdicts on the sample lie after a pair without one" in note for note in found.notes)
    rate = audit_rate(queries, verdicts, samples=[sample])
    assert (rate.low, rate.per_10_000) == (500, 500)  # the one beyond the gap is a fact
    whole = verified_clips(queries, verdicts | {pair(12): "similar"}, samples=[sample])
    assert (whole.tallies[1].verified, whole.tallies[1].replications, whole.extra, whole.notes) == (5, 1, 0, ())


def test_of_several_samples_the_most_reviewed_counts() -> None:
    queries = tables(20, 0)
    one, two = sample_of([(20, [1, 2, 3])], "one"), sample_of([(20, [5, 6, 7])], "two")
    verdicts = {pair(i): "different" for i in (1, 5, 6)}
    for samples in ([one, two], [two, one]):
        assert verified_clips(queries, verdicts, samples=samples).weights.keys() == {"g5", "g6"}


def test_clips_without_a_match_or_with_a_lower_one() -> None:
    queries = tables(6, 3)
    silent = queries.set_column(2, "score", pa.array([1.0, 0.9, 0.8, 0.7, 0.6, None]))
    matches = pa.table({"query_id": ["g1", "g1"], "reference_id": ["t1", "t9"]})
    verdicts = {pair(0): "different", pair(1): "similar", pair(2): "unsure", pair_id("g1", "t9"): "replication"}
    assert verified_clips(silent, verdicts).flagged.replications == 0
    found = verified_clips(silent, verdicts, matches=matches)
    assert (found.flagged.replications, found.clips["g1"]) == (1, "replication")
    assert sum(tally.size for tally in found.tallies) == 5
    assert found.notes == ("1 generated clips had nothing to be compared with; they are not counted.",)


def test_unflagged_clips_looked_at_without_a_sample_are_facts_only() -> None:
    queries = tables(100, 5)
    verdicts = {pair(i): "replication" for i in range(7)}  # the reviewer went on below the threshold
    rate = audit_rate(queries, verdicts)
    assert rate.at_least
    assert (rate.per_10_000, rate.low) == (700, 700)
    assert rate.high == 10_000


def test_a_sample_of_another_audit_is_refused() -> None:
    queries = tables(20, 4)
    with pytest.raises(ValueError, match="sample s: 1 of its pairs"):
        verified_clips(queries, {}, samples=[sample_of([(16, [3, 7])])])  # clip 3 is flagged now
    with pytest.raises(ValueError, match="drawn from 17 clips, but 16"):
        verified_clips(queries, {}, samples=[sample_of([(17, [7])])])


def test_planted_replications_are_estimated_without_bias() -> None:
    """Samples drawn again and again: the mean of the estimates is the truth, and the intervals hold it."""
    rng = np.random.default_rng(5)
    n, flagged = 600, 20
    queries = tables(n, flagged)
    truth = {pair(i): "replication" if i < 15 or i in (22, 30, 41, 200, 333, 480) else "different" for i in range(n)}
    estimates, hits = [], 0
    for _ in range(200):
        drawn = [(80, (flagged + rng.permutation(80)[:30]).tolist()), (500, (100 + rng.permutation(500)[:60]).tolist())]
        sample = sample_of(drawn)
        seen = {key: truth[key] for key in [*map(pair, range(flagged)), *sample.pair_ids]}
        rate = audit_rate(queries, seen, samples=[sample])
        estimates.append(rate.per_10_000)
        hits += rate.low <= 21 * 1e4 / n <= rate.high
    assert hits >= 184  # 95 % of 200, less two standard errors
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - 21 * 1e4 / n) < 3 * error


def test_from_a_real_audit_and_its_database(write_sounds, tmp_path: Path) -> None:
    training, generated = write_sounds("training", 30), write_sounds("generated", 12, first=27)
    config = AuditConfig(duration_s=1.0, tau=0.52)
    result = audit(open_corpus(generated), open_corpus(training), output=tmp_path / "audit", config=config)
    sample = draw_sample(load_pairs(tmp_path / "audit"), 6, strata=2)
    with VerdictStore.open(tmp_path / "audit") as store:
        sample = store.add_sample(sample)
        for row in result.queries().to_pylist():
            key = pair_id(row["query_id"], row["reference_id"])
            if row["flagged"] or key in sample.pair_ids:
                copied = row["query_id"] == row["reference_id"]  # sounds 27 to 29 are in both folders
                verdict = "replication" if copied else "different"
                store.add(row["query_id"], row["reference_id"], reviewer="ann", verdict=verdict)
        rate = audit_rate(result.queries(), store.consensus(), matches=result.matches(), samples=store.samples())
    assert (rate.clips, rate.replications, rate.at_least) == (12, 3, False)
    assert rate.per_10_000 == rate.low == 2500
    assert rate.verified == 6 + rate.tallies[0].size


def test_the_page_on_verification_prints_what_needed_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "verification.md").read_text("utf-8")
    for population in (1_000, 10_000, 45_000):
        counts = [needed(width, rate, population) for rate, width in ((10, 10), (100, 50), (100, 25), (1000, 200), (1000, 100))]
        assert f"| {population:,} | " + " | ".join(f"{count:,}" for count in counts) + " |" in page


def test_two_readers_who_both_say_no_do_not_widen_the_interval() -> None:
    assert majority(Counter(["similar", "different"])) == "similar"
    queries, samples = drawn_audit(200, sample=40)
    one = dict.fromkeys(samples[0].pair_ids, "different")
    both = {pair: majority(Counter([verdict, "similar"])) for pair, verdict in one.items()}
    assert audit_rate(queries, both, samples=samples).high == audit_rate(queries, one, samples=samples).high


def test_a_sample_without_verdicts_takes_nothing_away() -> None:
    queries, samples = drawn_audit(100, sample=12)
    outside = [pair for pair in pairs_of(queries) if pair not in samples[0].pair_ids][:5]
    verdicts = dict.fromkeys(outside, "replication")
    assert audit_rate(queries, verdicts).sentence == audit_rate(queries, verdicts, samples=samples).sentence
    assert audit_rate(queries, verdicts, samples=samples).per_10_000 == 500


def test_deciding_everything_is_a_census_whatever_was_drawn() -> None:
    queries, samples = drawn_audit(100, sample=30)
    verdicts = dict.fromkeys(pairs_of(queries), "different")
    rate = audit_rate(queries, verdicts, samples=samples)
    assert (rate.low, rate.high, rate.verified, rate.interval) == (0, 0, 100, "census")


def test_an_old_sample_makes_way_for_a_new_one() -> None:
    queries, samples = drawn_audit(100, sample=30)
    strange, _ = drawn_audit(100, sample=30, prefix="other")
    _, old = drawn_audit(100, sample=30, prefix="other")
    verdicts = dict.fromkeys(samples[0].pair_ids, "different")
    rate = audit_rate(queries, verdicts, samples=[*old, *samples])
    assert rate.verified == 30
    assert "1 older samples no longer fit" in rate.explanation
    with pytest.raises(ValueError, match="draw a new sample"):
        audit_rate(queries, verdicts, samples=old)
    assert strange.num_rows == 100


def drawn_audit(clips: int, *, sample: int, prefix: str = "q") -> tuple[pa.Table, list[Sample]]:
    """Queries of an audit in which nothing is flagged, and a sample of them."""
    rows = [{"query_id": f"{prefix}{n}", "reference_id": f"r{n}", "score": n / clips, "flagged": False} for n in range(clips)]
    pairs = [pair_id(row["query_id"], row["reference_id"]) for row in rows]
    order = np.random.default_rng(0).permutation(clips)[:sample]
    strata = (Stratum(0.0, 1.0, clips),)
    drawn = Sample(f"{prefix}-sample", 0, strata, tuple((0, place, pairs[n]) for place, n in enumerate(order)), "2026-01-01")
    return pa.Table.from_pylist(rows), [drawn]


def pairs_of(queries: pa.Table) -> list[str]:
    return [pair_id(row["query_id"], row["reference_id"]) for row in queries.to_pylist()]
