"""The copy-detection benchmark: true spans are true, roles are disjoint, seeds reproduce, positives sound, tables add up."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import correlate

from auscult.metrics.copy_detection import Prediction, Span, Truth

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import false_discovery  # noqa: E402
import report  # noqa: E402
from copy_detection import baselines, dataset, judging, space, systems, timeline, transforms  # noqa: E402
from copy_detection.distractors import distractors  # noqa: E402
from copy_detection.page import page  # noqa: E402
from copy_detection.synthetic import STATIONARY, STEADY, synthesize  # noqa: E402

RATE = dataset.RATE
KINDS = {kind.name: kind for kind in transforms.KINDS}
SMALL = dataset.Sizes(positives_per_kind=1, chains=3, negatives_per_positive=0.5, null_queries=12, distractors=80)


@pytest.fixture(scope="module")
def benchmark() -> dataset.Benchmark:
    return dataset.build(dataset.synthetic_sounds(60, seed=3), seed=1, sizes=SMALL)


@lru_cache(maxsize=1)
def _beds() -> tuple[np.ndarray, ...]:
    return tuple(s.audio for s in dataset.synthetic_sounds(4, seed=99))


@lru_cache(maxsize=4)
def _sound(kind: str, seconds: float, seed: int) -> np.ndarray:
    return synthesize(kind, seconds, RATE, seed)


@pytest.fixture(scope="module")
def answer(benchmark: dataset.Benchmark) -> baselines.Answer:
    return systems.detect(benchmark, top=3)


def _studio(seed: int) -> transforms.Studio:
    return transforms.Studio(RATE, np.random.default_rng(seed), _beds())


def _cut(audio: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    return audio[max(0, round(start_s * RATE)) : round(end_s * RATE)].astype(np.float64)


def _agreement(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Largest absolute normalized correlation over lags within 0.2 s, and its lag in seconds."""
    correlation = np.abs(correlate(one, other, method="fft")) / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12)
    lags = np.arange(len(correlation)) - (len(other) - 1)
    correlation[np.abs(lags) > 0.2 * RATE] = 0
    best = int(np.argmax(correlation))
    return float(correlation[best]), float(lags[best] / RATE)


# what leaves the waveform recognizable; the rest are compared by envelope below
WAVEFORM = [
    *("identity", "mp3", "vorbis", "opus", "gain", "polarity", "resample", "eight_bit", "clipping", "limiter", "noise"),
    *("fade", "mono_stereo", "splice_short"),
    *(
        "time_shift",
        "pad",
        "crop_start",
        "loop",
        "excerpt",
        "splice_1",
        "splice_2",
        "splice_3",
        "mix_+12db",
        "codec_round_trip",
    ),
]


@pytest.mark.parametrize("name", WAVEFORM)
@pytest.mark.parametrize("level", [0, 2])
def test_spans_point_at_the_same_waveform(name: str, level: int) -> None:
    reference = _sound("birds", 4.0, 5)
    copy = transforms.apply(reference, [KINDS[name]], _studio(level), level)
    assert copy.spans
    for span in copy.spans:
        query, original = (
            _cut(copy.audio, span.query_start_s, span.query_end_s),
            _cut(reference, span.reference_start_s, span.reference_end_s),
        )
        agreement, lag_s = _agreement(query, original)
        # unrelated excerpts reach 0.1 to 0.3; noise at 0 dB leaves 0.7, less where the ratio counts loud frames only
        assert agreement > (0.5 if name == "noise" else 0.7), span
        assert abs(lag_s) <= 0.002, span


def _envelope(audio: np.ndarray) -> np.ndarray:
    """RMS every 10 ms in dB above -40 dB of its peak."""
    frames = audio[: len(audio) // 240 * 240].reshape(-1, 240)
    level = np.sqrt(np.mean(frames**2, axis=1))
    return np.maximum(20 * np.log10(np.maximum(level, 1e-9) / level.max()), -40) + 40


@pytest.mark.parametrize("name", [name for name in KINDS if name not in WAVEFORM and "mix" not in name and "over" not in name])
@pytest.mark.parametrize("level", [0, 2])
def test_spans_point_at_the_same_envelope(name: str, level: int) -> None:
    """Stretched, shifted in pitch, equalized or resynthesized: the spans, brought to one length, rise and fall together."""
    reference = _sound("glass", 4.0, 8)
    copy = transforms.apply(reference, [KINDS[name]], _studio(level), level)
    (span,) = copy.spans
    original = _envelope(_cut(reference, span.reference_start_s, span.reference_end_s))
    heard = _envelope(_cut(copy.audio, span.query_start_s, span.query_end_s))
    heard = np.interp(np.linspace(0, len(heard) - 1, len(original)), np.arange(len(heard)), heard)
    at_place = np.corrcoef(heard, original)[0, 1]
    elsewhere = [np.corrcoef(np.roll(heard, shift), original)[0, 1] for shift in (-20, -10, 10, 20)]
    assert at_place > 0.6
    assert at_place > max(elsewhere)


@pytest.mark.parametrize("name", ["mix_+6db", "mix_+0db", "mix_-6db", "speech_over", "music_over"])
def test_mixes_hold_the_reference_in_place(name: str) -> None:
    reference = _sound("birds", 4.0, 5)
    copy = transforms.apply(reference, [KINDS[name]], _studio(0), 0)
    (span,) = copy.spans
    agreement, lag_s = _agreement(
        _cut(copy.audio, span.query_start_s, span.query_end_s), _cut(reference, span.reference_start_s, span.reference_end_s)
    )
    assert agreement > 0.3  # at -6 dB; the ratio counts loud frames only, and the birds pause: less than sqrt(1 / 5) is left
    assert abs(lag_s) <= 0.002


def test_compose_follows_cut_shift_and_stretch() -> None:
    after_cut = timeline.compose((Span(0.0, 4.0, 0.0, 4.0),), (Span(0.0, 2.0, 1.0, 3.0),))
    assert after_cut == (Span(0.0, 2.0, 1.0, 3.0),)
    stretched = timeline.compose(after_cut, (Span(0.0, 4.0, 0.0, 2.0),))
    assert stretched == (Span(0.0, 4.0, 1.0, 3.0),)
    assert timeline.compose(stretched, (Span(1.0, 3.0, 2.0, 4.0),)) == (Span(1.0, 3.0, 2.0, 3.0),)
    assert timeline.compose(stretched, (Span(0.0, 1.0, 6.0, 7.0),)) == ()  # what was cut away leaves no span


def test_chains_keep_true_spans() -> None:
    """Excerpts and shifts in a row, checked on the waveform."""
    reference = _sound("speech", 5.0, 2)
    for seed in range(4):
        chain = [KINDS[name] for name in ("crop_start", "excerpt", "pad", "mp3")]
        copy = transforms.apply(reference, chain, _studio(seed), seed % 3)
        for span in copy.spans:
            agreement, lag_s = _agreement(
                _cut(copy.audio, span.query_start_s, span.query_end_s),
                _cut(reference, span.reference_start_s, span.reference_end_s),
            )
            assert agreement > 0.8
            assert abs(lag_s) <= 0.002


def test_reversed_copies_are_backwards_and_have_no_spans() -> None:
    reference = _sound("birds", 2.0, 5)
    copy = transforms.apply(reference, [transforms.REVERSE], _studio(0), 1)
    assert copy.spans == () and np.allclose(copy.audio[::-1], reference)
    assert transforms.REVERSE not in transforms.KINDS


@pytest.mark.parametrize("rt60_s", [0.2, 0.5, 1.0])
def test_rooms_decay_as_asked(rt60_s: float) -> None:
    """Schroeder's integral between -5 and -25 dB, extrapolated; a draw of a room varies by some ten percent around Sabine."""
    slopes = []
    for seed in range(5):
        response = space.room_response(RATE, rt60_s, np.random.default_rng(seed))
        assert response[0] == pytest.approx(1.0)
        level = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2) + 1e-12)
        slopes.append((np.argmax(level < -25) - np.argmax(level < -5)) / RATE * 3)
    assert 0.5 * rt60_s < np.median(slopes) < 1.5 * rt60_s


def test_drawn_chains_are_plausible() -> None:
    rng = np.random.default_rng(0)
    for length in (2, 3, 4) * 20:
        chain = transforms.draw_chain(rng, length)
        assert len({kind.name for kind in chain}) == length
        assert sum(kind.group in {"partial", "shift"} for kind in chain) <= 1
        assert all(kind.name != "identity" for kind in chain)


def test_every_query_sounds_and_spans_fit(benchmark: dataset.Benchmark) -> None:
    references = {s.clip_id: s for s in benchmark.references}
    assert len({q.truth.query_id for q in benchmark.asked}) == len(benchmark.asked)
    for query in benchmark.queries:
        assert query.audio.dtype == np.float32 and query.audio.ndim == 1
        assert np.isfinite(query.audio).all() and 0.001 < np.abs(query.audio).max() <= 1.0
        truth = query.truth
        assert bool(truth.spans) == (truth.reference_id is not None), truth
        for span in truth.spans:
            reference = references[truth.reference_id].audio
            assert -1e-6 <= span.query_start_s < span.query_end_s <= len(query.audio) / RATE + 0.02
            assert -1e-6 <= span.reference_start_s < span.reference_end_s <= len(reference) / RATE + 0.02
            assert np.abs(_cut(query.audio, span.query_start_s, span.query_end_s)).max() > 1e-4, truth


def test_lengths(benchmark: dataset.Benchmark) -> None:
    references = {s.clip_id: len(s.audio) for s in benchmark.references}
    lengths = {q.truth.kind: (len(q.audio), references.get(q.truth.reference_id or "", 0)) for q in benchmark.queries}
    for kind in ("identity", "mp3", "opus", "noise", "time_shift", "mix_+0db", "pitch", "griffin_lim", "reverb"):
        assert lengths[kind][0] == lengths[kind][1], kind
    assert lengths["pad"][0] > lengths["pad"][1]
    assert lengths["excerpt"][0] < lengths["excerpt"][1]


def test_roles_are_disjoint_by_source(benchmark: dataset.Benchmark) -> None:
    copied = {q.truth.source for q in benchmark.asked if q.truth.reference_id is not None}
    negatives = {q.truth.source for q in benchmark.queries if q.truth.reference_id is None}
    references, background, null = (
        {s.source for s in sounds} for sounds in (benchmark.references, benchmark.background, benchmark.null)
    )
    assert copied <= references
    roles = [negatives, references, background, null]
    assert len(set().union(*roles)) == sum(map(len, roles))
    names = {s.clip_id: s for s in benchmark.references}
    assert len(names) == len(benchmark.references)
    assert all(names[t.reference_id].source == t.source for t in benchmark.truths if t.reference_id)
    assert not any(names[t.reference_id].steady for t in benchmark.truths if t.reference_id)


def test_four_negatives_for_each_positive() -> None:
    sizes = dataset.Sizes(positives_per_kind=0, chains=4, null_queries=0, distractors=0)
    small = dataset.build(dataset.synthetic_sounds(40, seed=3), seed=1, sizes=sizes)
    assert sum(t.reference_id is None for t in small.truths) == 4 * 4


def test_distractors_hold_no_sound_of_another_role() -> None:
    sounds = dataset.synthetic_sounds(60, seed=3)
    stock = dataset.assign_roles(sounds, dataset.Sizes(), 1)["stock"]
    few, more = (distractors(count, stock, RATE, 1) for count in (6, 10))
    assert all(np.array_equal(a.audio, b.audio) for a, b in zip(few, more[:6], strict=True))
    assert len({s.source for s in more}) == 10
    names = {s.clip_id for s in stock}
    for collage in more[1::2]:
        assert set(collage.clip_id.split("-", 2)[2].split("+")) <= names
    fresh = [s.audio for s in more[::2]]
    assert not any(np.array_equal(a, s.audio) for a in fresh for s in sounds)


def test_sources_of_one_uploader_play_one_role() -> None:
    sounds = [
        dataset.Sound(f"{i}-{take}", f"uploader{i}", synthesize("dog", 1.0, RATE, 10 * i + take))
        for i in range(20)
        for take in range(3)
    ]
    roles = dataset.assign_roles(sounds, dataset.Sizes(), 0)
    role_of = [{s.source for s in members} for members in roles.values()]
    assert sum(len(sources) for sources in role_of) == len(set().union(*role_of)) == 20
    assert all(role_of)


@pytest.mark.slow
def test_seeds_reproduce(benchmark: dataset.Benchmark) -> None:
    sounds = dataset.synthetic_sounds(60, seed=3)
    again = dataset.build(sounds, seed=1, sizes=SMALL)
    assert again.truths == benchmark.truths
    assert all(np.array_equal(a.audio, b.audio) for a, b in zip(again.queries, benchmark.queries, strict=True))
    sizes = dataset.Sizes(positives_per_kind=0, chains=3, negatives_per_positive=2, null_queries=0, distractors=0)
    other = dataset.build(sounds, seed=2, sizes=sizes)
    assert other.truths != benchmark.truths[-len(other.truths) :]


def test_steady_takes_differ() -> None:
    for kind in STEADY:
        one, other = (synthesize(kind, 2.0, RATE, seed) for seed in (1, 2))
        assert not np.array_equal(one, other)
        if kind not in STATIONARY:
            continue
        halves = [float(np.std(half)) for half in np.array_split(one, 2)]
        assert 0.7 < halves[0] / halves[1] < 1.4, kind


def test_esc10_is_read_by_uploader(esc10: Path) -> None:
    sounds = dataset.read_esc10(esc10)
    assert len(sounds) < 240 and not any("30322" in s.clip_id for s in sounds)  # that recording is there twice
    assert all(4 * RATE < len(s.audio) < 8 * RATE for s in sounds)  # nominally 5 s, a few are longer


def _plain(benchmark: dataset.Benchmark) -> set[str]:
    return {t.query_id for t in benchmark.truths if t.kind in {"identity", "gain", "polarity", "vorbis", "resample"}}


def test_paper_mel_finds_plain_copies(benchmark: dataset.Benchmark) -> None:
    found, notes = baselines.baselines(clap=None, top=1)
    assert any("CLAP" in note for note in notes)
    truths = {q.truth.query_id: q.truth for q in benchmark.asked}
    for name in ("mel (paper), raw", "mel (paper), normalized"):
        predictions = found[name](benchmark).predictions
        assert _plain(benchmark) <= {p.query_id for p in predictions if p.reference_id == truths[p.query_id].reference_id}


def test_the_product_finds_plain_copies_with_spans(benchmark: dataset.Benchmark, answer: baselines.Answer) -> None:
    truths = {q.truth.query_id: q.truth for q in benchmark.asked}
    first = judging.first(answer.predictions, 1)
    assert {p.query_id for p in first} <= set(truths)
    right = {p.query_id: p for p in first if p.reference_id == truths[p.query_id].reference_id}
    assert _plain(benchmark) <= set(right)
    assert all(right[name].spans for name in _plain(benchmark))
    assert any("threshold" in note for note in answer.notes)


def test_first_stage_is_searched(benchmark: dataset.Benchmark) -> None:
    """More references than candidates, so that being listed means something; plain copies are."""
    assert len(benchmark.references) > systems.AuditConfig().candidates
    assert _plain(benchmark) <= systems.listed(benchmark)


def _agreement_of_bits(query: np.ndarray, reference: np.ndarray) -> float:
    """Bit by bit, offset by offset."""
    least = baselines.MIN_OVERLAP
    best = -np.inf
    for offset in range(least - len(query), len(reference) - least + 1):
        pairs = [(query[i], reference[i + offset]) for i in range(len(query)) if 0 <= i + offset < len(reference)]
        if len(pairs) >= least:
            best = max(best, float(np.mean([32 - int(a ^ b).bit_count() for a, b in pairs]) / 32))
    return best


def test_bit_agreements_are_those_of_all_offsets() -> None:
    rng = np.random.default_rng(0)
    references = [rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32) for n in (60, 7, 0, 23, 8)]
    queries = [references[0][20:40], ~references[4], references[3][2:9], np.zeros(0, np.uint32), references[3]]
    found = baselines.bit_agreements(queries, references)
    expected = [[_agreement_of_bits(q, r) for r in references] for q in queries]
    assert np.allclose(found, expected, atol=1e-6)
    assert found[0, 0] == found[4, 3] == 1.0


def test_fingerprints_are_fpcalcs() -> None:
    if "Chromaprint" not in baselines.baselines(clap=None, top=1)[0]:
        pytest.skip("the program fpcalc is not there")
    long, short = synthesize("drums", 6.0, RATE, 1), synthesize("drums", 1.0, RATE, 1)
    prints = baselines.fingerprints([long, short, long], RATE, "fpcalc")
    assert len(prints[0]) > 20 and len(prints[1]) == 0
    assert baselines.bit_agreements(prints[:1], prints[2:])[0, 0] == 1.0


def test_page_holds_every_system_and_kind(benchmark: dataset.Benchmark, answer: baselines.Answer) -> None:
    fitted = {t.source for t in benchmark.truths[:5]}
    judged = {"auscult": judging.judge(benchmark, answer, top=3, resamples=5, fitted=fitted, seconds=1.0, peak_gb=0.5)}
    stage = {"kind": judging.shares(benchmark.truths, set(), by=lambda t: t.kind, resamples=5)}
    options = {"top": 3, "seed": 1, "candidates": 100, "commit": "abc, clean tree"}
    text = page(benchmark, judged, stage, command="x", sounds="y", options=options, fitted=["a fit"], notes=[])
    assert all(f"| {kind} |" in text for kind in KINDS)
    assert all(f"| {strength} |" in text for strength in ("fixed", "light"))  # one positive a kind is a light one
    assert "| auscult | " in text and "nan" not in text and "abc, clean tree" in text and "- a fit" in text
    assert text.count("| negative-") == judging.SUSPECTS
    assert "| reverse |" not in text.split("## By kind")[1]


def test_reversed_copies_stay_out_of_the_overall_numbers(benchmark: dataset.Benchmark, answer: baselines.Answer) -> None:
    options = {"top": 3, "resamples": 0, "fitted": (), "seconds": 1.0, "peak_gb": 1.0}
    everything = judging.judge(benchmark, answer, **options)
    apart = {q.truth.query_id for q in benchmark.apart}
    without = baselines.Answer([p for p in answer.predictions if p.query_id not in apart])
    assert repr(judging.judge(benchmark, without, **options).parts["all"]) == repr(everything.parts["all"])
    assert everything.parts["apart"]["reverse"]["recall_at_10"].value in (0.0, 1.0)  # there is one of them


def test_suspects_are_the_negatives_of_highest_score() -> None:
    truths = [Truth(f"n{i}", None, f"s{i}", kind="untouched") for i in range(20)]
    best = {f"n{i}": Prediction(f"n{i}", "r", float(i)) for i in range(20)}
    assert [row["query_id"] for row in judging.suspects(truths, best)] == [f"n{i}" for i in range(19, 9, -1)]


def test_shares_resample_sources() -> None:
    """All queries of one source hit, none of the other: the interval covers everything, however many queries there are."""
    truths = [Truth(f"{s}{i}", "r", s) for s in "ab" for i in range(50)]
    share = judging.shares(truths, {f"a{i}" for i in range(50)}, by=lambda _: "all", resamples=200)["all"]
    assert (share.value, share.low, share.high) == (0.5, 0.0, 1.0)


def test_a_threshold_moves_to_the_other_half() -> None:
    """Copies score 2 in one half and 1 in the other: what is chosen on the first finds nothing in the second."""
    sources = [f"source{i}" for i in range(60)]
    truths = [Truth(f"p{s}", "r", s) for s in sources] + [Truth(f"n{s}", None, s) for s in sources]
    score = {"p": {"A": 2.0, "B": 1.0}, "n": {"A": 0.0, "B": 0.5}}
    predictions = [Prediction(t.query_id, "r", score[t.query_id[0]][judging.half(t.source)]) for t in truths]
    to_b, to_a = judging.transfer(truths, predictions)
    assert (to_b.threshold, to_b.recall) == (2.0, 0.0) and np.isnan(to_b.precision.value)
    assert (to_a.threshold, to_a.recall, to_a.precision.value) == (1.0, 1.0, 1.0)
    assert to_a.precision.low < 1.0


def test_commit_says_whether_the_tree_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_git", lambda *a: "abc" if a[0] == "rev-parse" else "")
    assert report.commit() == "abc, clean tree"
    monkeypatch.setattr(report, "_git", lambda *a: "abc" if a[0] == "rev-parse" else " M src/x.py\n?? src/y.py")
    assert report.commit() == "abc, NOT a clean tree: 2 files of the code differ (src/x.py, src/y.py)"


def test_command_explains_itself() -> None:
    script = ROOT / "benchmarks" / "copy_detection" / "run.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "--esc10" in done.stdout and "--markdown" in done.stdout and "--distractors" in done.stdout


@pytest.mark.slow  # two minutes: scores some 400 clips
def test_false_discoveries_of_the_detector_stay_within_the_level() -> None:
    unrelated, planted, _ = false_discovery.pools(Path("/nowhere"), 600, 0, 1)
    rng = np.random.default_rng(0)
    drawn = {"null_clips": 200, "queries": 100, "copies": 20}
    runs = np.array([false_discovery.resample(unrelated, planted, rng, **drawn) for _ in range(200)])
    assert 0 <= runs[:, 0].mean() <= 0.12
    assert runs[:, 1].mean() >= 0.8
    alone = [false_discovery.resample(unrelated, planted, rng, null_clips=200, queries=100, copies=0) for _ in range(200)]
    assert np.mean(alone, axis=0)[0] <= 0.12  # nothing to find: any list at all is false
