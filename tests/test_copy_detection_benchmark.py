"""The copy-detection benchmark: true spans are true, roles are disjoint, seeds reproduce, positives sound."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import correlate

from auscult.metrics.copy_detection import Span, evaluate

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import false_discovery  # noqa: E402
from copy_detection import baselines, dataset, timeline, transforms  # noqa: E402
from copy_detection.synthetic import STATIONARY, synthesize  # noqa: E402
from copy_detection.tables import page  # noqa: E402

RATE = dataset.RATE
KINDS = {kind.name: kind for kind in transforms.KINDS}
SMALL = dataset.Sizes(positives_per_kind=1, chains=6, negative_queries=24)


@pytest.fixture(scope="module")
def benchmark() -> dataset.Benchmark:
    return dataset.build(dataset.synthetic_sounds(60, seed=3), seed=1, sizes=SMALL)


@lru_cache(maxsize=1)
def _beds() -> tuple[np.ndarray, ...]:
    return tuple(s.audio for s in dataset.synthetic_sounds(4, seed=99))


@lru_cache(maxsize=4)
def _sound(kind: str, seconds: float, seed: int) -> np.ndarray:
    return synthesize(kind, seconds, RATE, seed)


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
        assert agreement > 0.7, span  # unrelated excerpts reach 0.1 to 0.3; noise at 3 dB leaves 0.8
        assert abs(lag_s) <= 0.002, span


def _envelope(audio: np.ndarray) -> np.ndarray:
    """RMS every 10 ms in dB above -40 dB of its peak."""
    frames = audio[: len(audio) // 240 * 240].reshape(-1, 240)
    level = np.sqrt(np.mean(frames**2, axis=1))
    return np.maximum(20 * np.log10(np.maximum(level, 1e-9) / level.max()), -40) + 40


@pytest.mark.parametrize("name", [name for name in KINDS if name not in WAVEFORM and "mix" not in name])
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


@pytest.mark.parametrize("name", ["mix_+6db", "mix_+0db", "mix_-6db"])
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


def test_drawn_chains_are_plausible() -> None:
    rng = np.random.default_rng(0)
    for length in (2, 3, 4) * 20:
        chain = transforms.draw_chain(rng, length)
        assert len({kind.name for kind in chain}) == length
        assert sum(kind.group in {"partial", "shift"} for kind in chain) <= 1
        assert all(kind.name != "identity" for kind in chain)


def test_every_query_sounds_and_spans_fit(benchmark: dataset.Benchmark) -> None:
    references = {s.clip_id: s for s in benchmark.references}
    assert len({q.truth.query_id for q in benchmark.queries}) == len(benchmark.queries)
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
    copied = {q.truth.source for q in benchmark.queries if q.truth.reference_id is not None}
    negatives = {q.truth.source for q in benchmark.queries if q.truth.reference_id is None}
    references = {s.source for s in benchmark.references}
    background = {s.source for s in benchmark.background}
    assert copied <= references
    assert not negatives & references and not negatives & background and not background & references
    names = {s.clip_id: s.source for s in benchmark.references}
    assert all(names[t.reference_id] == t.source for t in benchmark.truths if t.reference_id)
    assert all(not s.stationary or s.clip_id not in {t.reference_id for t in benchmark.truths} for s in benchmark.references)


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


def test_seeds_reproduce(benchmark: dataset.Benchmark) -> None:
    sounds = dataset.synthetic_sounds(60, seed=3)
    again = dataset.build(sounds, seed=1, sizes=SMALL)
    assert again.truths == benchmark.truths
    assert all(np.array_equal(a.audio, b.audio) for a, b in zip(again.queries, benchmark.queries, strict=True))
    other = dataset.build(sounds, seed=2, sizes=dataset.Sizes(positives_per_kind=0, chains=3, negative_queries=6))
    assert other.truths != benchmark.truths[-len(other.truths) :]


def test_stationary_takes_differ() -> None:
    for kind in STATIONARY:
        one, other = (synthesize(kind, 2.0, RATE, seed) for seed in (1, 2))
        assert not np.array_equal(one, other)
        halves = [float(np.std(half)) for half in np.array_split(one, 2)]
        assert 0.7 < halves[0] / halves[1] < 1.4, kind


def test_esc10_is_read_by_uploader(esc10: Path) -> None:
    sounds = dataset.read_esc10(esc10)
    assert len(sounds) < 240 and not any("30322" in s.clip_id for s in sounds)  # that recording is there twice
    assert all(4 * RATE < len(s.audio) < 8 * RATE for s in sounds)  # nominally 5 s, a few are longer


def test_paper_mel_finds_plain_copies(benchmark: dataset.Benchmark) -> None:
    systems, notes = baselines.baselines(clap=None, top=1)
    assert any("CLAP" in note for note in notes)
    truths = {t.query_id: t for t in benchmark.truths}
    plain = {name for name, t in truths.items() if t.kind in {"identity", "gain", "polarity", "vorbis", "resample"}}
    for name in ("mel (paper), raw", "mel (paper), normalized"):
        right = {p.query_id for p in systems[name](benchmark) if p.reference_id == truths[p.query_id].reference_id}
        assert plain <= right


def test_bit_agreement_finds_the_offset() -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 2**32, 60, dtype=np.uint64).astype(np.uint32)
    assert baselines.bit_agreement(reference[20:40], reference) == 1.0
    assert baselines.bit_agreement(~reference[:8], reference[:8]) == 0.0
    assert baselines.bit_agreement(reference[:7], reference) == -np.inf
    assert 0.5 < baselines.bit_agreement(rng.integers(0, 2**32, 20, dtype=np.uint64).astype(np.uint32), reference) < 0.65


def test_fingerprints_are_fpcalcs() -> None:
    if "Chromaprint" not in baselines.baselines(clap=None, top=1)[0]:
        pytest.skip("the program fpcalc is not there")
    long, short = synthesize("drums", 6.0, RATE, 1), synthesize("drums", 1.0, RATE, 1)
    prints = baselines.fingerprints([long, short, long], RATE, "fpcalc")
    assert len(prints[0]) > 20 and len(prints[1]) == 0
    assert baselines.bit_agreement(prints[0], prints[2]) == 1.0


def test_page_holds_every_system_and_kind(benchmark: dataset.Benchmark) -> None:
    from auscult.metrics.copy_detection import breakdown

    predictions = baselines.baselines(clap=None, top=1)[0]["mel (paper), raw"](benchmark)
    parts = {by: breakdown(benchmark.truths, predictions, by=lambda t, by=by: getattr(t, by)) for by in ("group", "kind")}
    results = {"mel": {"all": {"all": evaluate(benchmark.truths, predictions, resamples=5)}, **parts}}
    text = page(benchmark, results, command="x", sounds="y", options={"top": 1, "seed": 1}, notes=[])
    assert all(f"| {kind} |" in text for kind in KINDS)
    assert "| mel | " in text and "nan" not in text


def test_command_explains_itself() -> None:
    script = ROOT / "benchmarks" / "copy_detection" / "run.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "--esc10" in done.stdout and "--markdown" in done.stdout


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
