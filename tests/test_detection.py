"""The two-stage detector: planted copies are found and located, and what must not matter does not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf

from auscult.alignment.candidates import candidates
from auscult.alignment.correlation import build_bank, correlate, unit_rows
from auscult.alignment.parts import HYPOTHESES, diagonals, scan
from auscult.alignment.scoring import prepare_clips, score
from auscult.alignment.spans import locate
from auscult.audio import read_audio
from auscult.audit import AuditConfig, audit
from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.descriptors.contrast import (
    BANDS,
    FRAME_S,
    MONOTONOUS,
    ContrastDescriptor,
    describe,
    effective_dimension,
    fingerprint,
    warp,
)
from auscult.detection import detect
from auscult.engine import Engine
from auscult.errors import DescriptorMismatchError
from auscult.indexing import index
from auscult.levels import LevelSet, load_levels
from auscult.sounds import synthesise
from conftest import sound

RATE = 16_000


def clip(number: int, seconds: float = 5.0) -> np.ndarray:
    return sound(number, seconds).astype(np.float32)


@pytest.fixture(scope="module")
def clips():
    """30 references and 16 background clips, prepared."""
    references = [describe(clip(n)) for n in range(30)]
    background = prepare_clips([fingerprint(describe(clip(n))) for n in range(300, 316)])
    return references, prepare_clips([fingerprint(x) for x in references]), background


def shifted(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(11_000, np.float32), x])[: len(x)]


def inside(x: np.ndarray) -> np.ndarray:
    out = clip(777)
    out[20_000:52_000] = x[40_000:72_000]
    return out


def mixed(x: np.ndarray) -> np.ndarray:
    other = clip(778)
    return x / np.sqrt(np.mean(x**2)) + other / np.sqrt(np.mean(other**2))


def noisy(x: np.ndarray) -> np.ndarray:
    return x + 0.1 * np.sqrt(np.mean(x**2)) * np.random.default_rng(0).standard_normal(len(x)).astype(np.float32)


def slower(x: np.ndarray) -> np.ndarray:
    import soxr

    return soxr.resample(x, 100, 106)  # as on tape: 6 % slower and a semitone lower


@pytest.mark.parametrize("change", [lambda x: x, lambda x: -0.02 * x, shifted, inside, mixed, noisy, slower])
@pytest.mark.parametrize("number", [0, 3, 4, 7])
def test_planted_copies_rank_first_by_a_margin(clips, change, number: int) -> None:
    _, references, background = clips
    result = score(describe(change(clip(number))), references, background)
    order = np.argsort(-result.score)
    assert order[0] == number
    assert result.score[order[0]] > 1.3 * result.score[order[1]]
    assert result.score[number] > 7


@pytest.mark.parametrize(
    ("change", "query", "reference"),
    [
        (lambda x: x, (0.0, 5.0), (0.0, 5.0)),
        (shifted, (0.6875, 5.0), (0.0, 4.3125)),
        (inside, (1.25, 3.25), (2.5, 4.5)),
    ],
)
@pytest.mark.parametrize("number", [1, 4, 9])
def test_spans_are_where_they_were_planted(clips, change, query, reference, number: int) -> None:
    levels, references, background = clips
    heard = describe(change(clip(number)))
    found = score(heard, references, background)
    places = {name: int(getattr(found, name)[number]) for name in ("hypothesis", "query_start", "reference_start")}
    alignment = locate(heard, levels[number], **places)
    assert alignment.lag_s == pytest.approx(query[0] - reference[0], abs=0.08)  # two frames and a half
    # spans begin and end with sound, so they may be shorter than what was planted, never longer by more than a frame or two
    strong = max(span.evidence for span in alignment.spans)
    for span in (span for span in alignment.spans if span.evidence > 0.5 * strong):
        assert span.query_start_s >= query[0] - 0.2
        assert span.query_end_s <= query[1] + 0.2
        assert span.reference_start_s - span.query_start_s == pytest.approx(reference[0] - query[0], abs=0.08)
    covered = sum(span.query_end_s - span.query_start_s for span in alignment.spans)
    assert covered > 0.4 * (query[1] - query[0])


def test_steady_sound_is_not_rewarded() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(5 * RATE) / RATE

    def steady(kind: str) -> np.ndarray:
        if kind == "hum":
            return sum(np.sin(2 * np.pi * 50 * k * t + rng.uniform(0, 6)) / k for k in range(1, 9)).astype(np.float32)
        if kind == "noise":
            return rng.standard_normal(len(t)).astype(np.float32)
        return synthesise("rain", rng, duration_s=5.0).samples.astype(np.float32)

    kinds = ["hum", "noise", "rain"] * 4
    references = prepare_clips([fingerprint(describe(steady(kind))) for kind in kinds])
    background = prepare_clips([fingerprint(describe(clip(n))) for n in range(300, 316)])
    for kind in ("hum", "noise", "rain"):
        assert score(describe(steady(kind)), references, background).score.max() < 8


@pytest.mark.parametrize("kind", ["vibrato", "two tones", "switched", "swelling", "faded"])
def test_monotonous_sound_has_no_pattern_to_copy(kind: str) -> None:
    rng = np.random.default_rng(0)
    t = np.arange(5 * RATE) / RATE

    def take() -> np.ndarray:
        phase = rng.uniform(0, 6)
        tones = {
            "vibrato": np.sin(2 * np.pi * np.cumsum(440 * (1 + 0.03 * np.sin(2 * np.pi * 5 * t + phase))) / RATE),
            "two tones": np.sin(2 * np.pi * 440 * t + phase) + np.sin(2 * np.pi * 441 * t),
            "switched": np.sin(2 * np.pi * 1000 * t) * ((t + phase) % 1 < 0.5),
            "swelling": np.sign(np.sin(2 * np.pi * 80 * t + phase)) * (1 + 0.5 * np.sin(np.pi * t + phase)),
            "faded": np.sin(2 * np.pi * 100 * t) * np.minimum(1, np.minimum(t, 5 - t) / rng.uniform(0.2, 1)),
        }
        return tones[kind].astype(np.float32)

    references = prepare_clips([fingerprint(describe(take())) for _ in range(8)])
    background = prepare_clips([fingerprint(describe(clip(n))) for n in range(300, 316)])
    assert score(describe(take()), references, background).score.max() < 1


def test_no_field_recording_is_monotonous(esc10: Path) -> None:
    """The constant lies between tones (above) and the least varied of 240 recordings, whose figure stands beside it."""
    recordings = sorted((esc10 / "audio").iterdir())
    spread = [effective_dimension(fingerprint(describe(read_audio(str(x), sample_rate_hz=RATE).samples))) for x in recordings]
    assert len(spread) == 240
    assert 5 < min(spread) < 6
    assert MONOTONOUS < 3


@pytest.mark.parametrize(("factor", "semitones"), [(106, -1.0), (94, 1.0)])
def test_tape_speed_is_recognized_as_one_change(clips, factor: int, semitones: float) -> None:
    """What plays slower lies lower: tempo and pitch are found together, and reported the right way round."""
    import soxr

    levels, references, background = clips
    for number in (3, 7):
        heard = describe(soxr.resample(clip(number), 100, factor))
        found = score(heard, references, background)
        assert HYPOTHESES[found.hypothesis[number]] == (factor / 100, semitones)
        alignment = locate(heard, levels[number], hypothesis=int(found.hypothesis[number]))
        assert alignment.tempo == pytest.approx(100 / factor, abs=0.015)  # below 1: the query plays slower
        assert alignment.pitch == semitones


def test_first_stage_keeps_copies_at_the_outermost_tempos() -> None:
    """The detector looks for tempos from 0.8 to 1.26; what the first stage drops, it never sees."""
    references = [describe(clip(n, 4.0)) for n in range(150)]
    for tempo in (0.8, 1.25):
        copies = [warp(references[n], tempo=tempo).round().astype(np.uint8) for n in (0, 30, 62, 99)]
        found = candidates(copies, references, k=15)
        assert all(number in row for number, row in zip((0, 30, 62, 99), found.index, strict=True))


def test_a_quiet_movement_of_a_long_recording_is_heard() -> None:
    loud, quiet = clip(1, 30.0), 0.003 * clip(2, 40.0)
    both = np.concatenate([loud, quiet, loud])
    prepared = prepare_clips([fingerprint(describe(x)) for x in (both, *(clip(n, 30.0) for n in range(10, 16)))])
    background = prepare_clips([fingerprint(describe(clip(n))) for n in range(300, 316)])
    found = score(describe(quiet[15 * RATE : 25 * RATE]), prepared, background)
    assert found.score.argmax() == 0
    assert found.score[0] > 10


def test_silence_and_padding_never_agree(clips) -> None:
    _, references, background = clips
    silent = score(describe(np.zeros(RATE, np.float32)), references, background)
    assert silent.score.max() <= 1
    padded = np.concatenate([clip(5), np.zeros(10 * RATE, np.float32)])
    plain, longer = (score(describe(x), references, background).score for x in (clip(5), padded))
    assert longer[5] == pytest.approx(plain[5], rel=0.15)
    np.testing.assert_allclose(np.delete(longer, 5), np.delete(plain, 5), atol=2.0)


def test_one_shots_and_long_recordings() -> None:
    rng = np.random.default_rng(1)
    shots = [clip(n, 1.0)[:8000] for n in range(12)]
    long = [np.concatenate([clip(500 + 20 * k + n, 5.0) for n in range(12)]) for k in range(3)]
    references = [describe(x) for x in [*shots, *long]]
    prepared = prepare_clips([fingerprint(x) for x in references])
    background = prepare_clips([fingerprint(describe(clip(n))) for n in range(300, 316)])
    assert score(describe(0.3 * shots[4]), prepared, background).score.argmax() == 4
    query = np.concatenate([clip(900, 20.0), long[1][31 * RATE : 39 * RATE], clip(901, 10.0)])
    query += 1e-3 * rng.standard_normal(len(query)).astype(np.float32)
    found = score(describe(query), prepared, background)
    assert found.score.argmax() == 13
    places = {name: int(getattr(found, name)[13]) for name in ("hypothesis", "query_start", "reference_start")}
    strongest = max(locate(describe(query), references[13], **places).spans, key=lambda span: span.evidence)
    assert strongest.query_start_s == pytest.approx(20.0, abs=0.5)
    assert strongest.reference_start_s == pytest.approx(31.0, abs=0.5)
    assert strongest.query_end_s == pytest.approx(28.0, abs=0.5)


def test_correlation_equals_the_sum_that_it_stands_for() -> None:
    q, r = (unit_rows(fingerprint(describe(clip(n, 3.0)))) for n in (1, 2))
    z = correlate([q], build_bank([r]), overlaps=[0])[:, 0, 0]
    for lag in (-40, -3, 0, 17, 60):
        pairs = [(t + lag, t) for t in range(len(r)) if 0 <= t + lag < len(q)]
        total = sum(float(q[i] @ r[j]) for i, j in pairs)
        common = sum(bool(q[i].any() and r[j].any()) for i, j in pairs)
        assert z[lag] == pytest.approx(np.sqrt(BANDS) * total / np.sqrt(max(common, 16)), abs=1e-3)


def test_scan_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    q, r = (rng.standard_normal((n, BANDS)).astype(np.float32) for n in (23, 31))
    similarity = q @ r.T
    best = {}
    for n in (10, 20):
        best[n] = max(
            sum(similarity[i + k, j + k] for k in range(n) if i + k < 23 and j + k < 31 and i + k >= 0 and j + k >= 0)
            for i in range(-n, 23)
            for j in range(-n, 31)
        )
    found = scan(q, r)
    for at, n in enumerate((10, 20)):
        assert found[at] == pytest.approx(best[n] * np.sqrt(BANDS / n), rel=1e-4)
    assert diagonals(q, r).sum() == pytest.approx(similarity.sum(), rel=1e-3)


def test_candidates_do_not_depend_on_threads_or_blocks(monkeypatch) -> None:
    queries = [describe(clip(n)) for n in (0, 40, 41)]
    references = [describe(clip(n)) for n in range(20)]
    one = candidates(queries, references, k=6)
    assert one.index[0, 0] == 0
    monkeypatch.setattr("auscult.alignment.candidates.BLOCK", 3)
    again = candidates(queries, references, k=6, engine=Engine(workers=2))
    np.testing.assert_array_equal(one.index, again.index)
    np.testing.assert_allclose(one.z, again.z, atol=1e-3)  # float32 sums in another order
    assert (candidates(queries, references[:2], k=6).index[:, 2:] == -1).all()


def test_levels_of_a_store_are_those_of_the_clip(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    samples = np.concatenate([clip(n, 7.0) for n in range(4)])  # 28 s: three windows
    sf.write(tmp_path / "in" / "x.wav", samples, RATE, subtype="FLOAT")
    sf.write(tmp_path / "in" / "z.wav", np.zeros(RATE), RATE)
    store = index(open_corpus(tmp_path / "in"), tmp_path / "store", descriptor=ContrastDescriptor())
    stored, silent = load_levels(store).levels
    direct = describe(samples)
    assert stored.shape == direct.shape == (int(28 / FRAME_S) + 1, BANDS)
    inner = [t for t in range(len(direct)) if t % 324 > 1]  # a window's first frame does not see the one before
    assert np.abs(stored[inner].astype(int) - direct[inner].astype(int)).max() <= 1
    assert not silent.any()


@pytest.fixture
def sets(write_sounds) -> dict[str, Path]:
    """40 training clips, 8 generated of which two are copies, 20 background, 60 null."""
    folders = {
        "references": write_sounds("training", 40, duration_s=3.0),
        "generated": write_sounds("generated", 6, first=200, duration_s=3.0),
        "background": write_sounds("background", 20, first=400, duration_s=3.0),
        "null": write_sounds("null", 60, first=600, duration_s=3.0),
    }
    for name, number in (("copy-0.wav", 3), ("copy-1.wav", 16)):
        samples = np.concatenate([np.zeros(8000), 0.5 * sound(number, 3.0)])[:48_000]
        sf.write(folders["generated"] / name, samples, RATE)
    return folders


def run(sets: dict[str, Path], output: Path, config: AuditConfig | None = None, **options):
    corpora = {role: open_corpus(folder) for role, folder in sets.items()}
    return audit(
        corpora["generated"],
        corpora["references"],
        corpora.get("background"),
        null=corpora.get("null"),
        output=output,
        config=config or AuditConfig(),
        **options,
    )


def test_audit_finds_shifted_copies_with_spans_and_p_values(sets, tmp_path: Path) -> None:
    result = run(sets, tmp_path / "audit")
    rows = result.matches().to_pylist()
    best = {row["query_id"]: row for row in rows if row["rank"] == 1}
    for name, reference in (("copy-0.wav", "0003.wav"), ("copy-1.wav", "0016.wav")):
        assert (best[name]["reference_id"], best[name]["flagged"]) == (reference, True)
        assert best[name]["p_value"] == pytest.approx(1 / 61)
        assert best[name]["lag_s"] == pytest.approx(0.5, abs=0.05)
        assert best[name]["spans"]
        assert best[name]["score"] == pytest.approx((best[name]["score_whole"] + best[name]["score_stretch"]) / 2, abs=1e-4)
    assert result.card["calibration"] == {"null_clips": 60, "null": "given", "fdr": 0.1}
    assert sum(row["flagged"] for row in result.queries().to_pylist()) <= 3
    assert all(row["rank"] <= 5 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [100, 10])
def test_workers_and_first_stage_change_nothing(sets, tmp_path: Path, chosen: int) -> None:
    """With 10 candidates of 40 the first stage decides; the best match must be the same."""
    whole = run(sets, tmp_path / "one", AuditConfig(k=1))
    other = run(sets, tmp_path / "two", AuditConfig(k=1, candidates=chosen), engine=Engine(workers=2))
    copies = [[row for row in audit.matches().to_pylist() if row["query_id"].startswith("copy")] for audit in (whole, other)]
    for one, two in zip(*copies, strict=True):
        assert one["reference_id"] == two["reference_id"]
        assert one["score"] == pytest.approx(two["score"], rel=1e-3)


def test_without_null_and_background_it_works_and_says_that_it_is_weaker(sets, tmp_path: Path) -> None:
    del sets["background"], sets["null"]
    result = run(sets, tmp_path / "audit")
    best = {row["query_id"]: row["reference_id"] for row in result.matches().to_pylist() if row["rank"] == 1}
    assert (best["copy-0.wav"], best["copy-1.wav"]) == ("0003.wav", "0016.wav")
    assert sum("weaker" in warning for warning in result.card["warnings"]) == 2


def level_set(sounds: list[np.ndarray], names: str = "clip") -> LevelSet:
    """Clips in memory as a store gives them."""
    rows = [
        {
            "clip_id": f"{names}-{n}",
            "path": f"{names}-{n}.wav",
            "start_s": 0.0,
            "duration_s": len(x) / RATE,
            "caption": None,
            "sample_digest": hashlib.sha256(x.tobytes()).hexdigest(),
            "flags": [],
            "n_windows": 1,
        }
        for n, x in enumerate(sounds)
    ]
    return LevelSet([describe(x) for x in sounds], pa.Table.from_pylist(rows))


def level_sets(*sounds_of_sets) -> list[LevelSet | None]:
    return [None if x is None else level_set(x, name) for x, name in zip(sounds_of_sets, "grbn", strict=False)]


def compare_sets(generated, references, background=None, null=None, **config):
    sets_in_order = level_sets(generated, references, background, null)
    return detect(*sets_in_order, config=AuditConfig(**config), spec="contrast/1()")


def test_the_answer_does_not_depend_on_the_order_of_the_sets() -> None:
    generated, references = [clip(n, 2.0) for n in range(200, 206)], [clip(n, 2.0) for n in range(20)]
    background, null = [clip(n, 2.0) for n in range(300, 380)], [clip(n, 2.0) for n in range(400, 420)]
    generated[2] = shifted(references[4])
    sets_in_order = level_sets(generated, references, background, null)
    turned = [s.subset(np.arange(len(s.levels))[::-1]) for s in sets_in_order]
    one, other = (detect(*s, config=AuditConfig(null_sample=10), spec="") for s in (sets_in_order, turned))
    by_id = [{row["query_id"]: row for row in c.queries.to_pylist()} for c in (one, other)]
    for name, row in by_id[0].items():
        assert by_id[1][name]["reference_id"] == row["reference_id"]
        assert by_id[1][name]["score"] == pytest.approx(row["score"], abs=1e-4)
    assert one.threshold.tau == pytest.approx(other.threshold.tau, abs=1e-4)


def test_flat_and_silent_clips_are_no_background() -> None:
    t = np.arange(2 * RATE) / RATE
    hums = [np.sin(2 * np.pi * (50 + n) * t).astype(np.float32) for n in range(20)]
    lively, unrelated = [clip(n, 2.0) for n in range(18)], [clip(n, 2.0) for n in range(200, 204)]
    heard = [clip(n, 2.0) for n in range(300, 312)]

    def scores(*given) -> np.ndarray:
        return compare_sets(unrelated, *given).queries["score"].to_numpy()

    np.testing.assert_allclose(scores(hums + lively), scores(lively), atol=1e-3)
    np.testing.assert_allclose(scores(lively, [*hums, *(0 * x for x in hums), *heard]), scores(lively, heard), atol=1e-3)
    with pytest.raises(ValueError, match="at least 8 background clips .* got 7"):
        compare_sets(unrelated, lively, hums + lively[:7])
    with pytest.raises(ValueError, match="at least 9 training clips"):
        compare_sets(unrelated, hums + lively[:8])


def test_many_duplicates_in_a_small_training_set() -> None:
    references = [clip(n, 2.0) for n in range(6)] + [0.5 * clip(2, 2.0)] * 4
    found = compare_sets([shifted(clip(2, 2.0)), clip(200, 2.0)], references, tau=1e9)
    assert found.queries["reference_id"][0].as_py() in {"r-2", "r-6", "r-7", "r-8", "r-9"}


def test_null_clips_that_are_training_clips_are_left_out() -> None:
    references, background = [clip(n, 2.0) for n in range(20)], [clip(n, 2.0) for n in range(300, 316)]
    null = [*references[:5], *(clip(n, 2.0) for n in range(400, 430)), np.zeros(RATE, np.float32)]
    found = compare_sets([shifted(clip(3, 2.0))], references, background, null)
    assert found.calibration["null_clips"] == 30  # neither training clips nor silence
    assert any("5 null clips are also training clips" in warning for warning in found.warnings)
    assert found.queries["flagged"][0].as_py()
    with pytest.raises(ValueError, match="all null clips are also training clips"):
        compare_sets([clip(200, 2.0)], references, background, references[:5])


def test_silent_queries_do_not_weigh_against_the_others() -> None:
    references, background = [clip(n, 2.0) for n in range(20)], [clip(n, 2.0) for n in range(300, 316)]
    null = [clip(n, 2.0) for n in range(400, 420)]
    silent = [np.zeros(RATE + n, np.float32) for n in range(30)]
    found = compare_sets([shifted(clip(3, 2.0)), *silent], references, background, null)
    assert found.queries["flagged"].to_pylist() == [True] + [False] * 30
    assert found.queries["score"].null_count == 30


def test_identical_samples_come_first_even_of_a_steady_tone() -> None:
    t = np.arange(2 * RATE) / RATE
    hums = [np.sin(2 * np.pi * 100 * t + n).astype(np.float32) for n in range(8)]
    found = compare_sets([hums[5]], hums + [clip(n, 2.0) for n in range(8)], [clip(n, 2.0) for n in range(300, 316)], k=1)
    assert found.queries["reference_id"].to_pylist() == ["r-5"]


def test_every_p_value_can_be_checked_and_equal_ones_are_flagged_alike() -> None:
    references, background = [clip(n, 2.0) for n in range(20)], [clip(n, 2.0) for n in range(300, 316)]
    references += [0.5 * references[3] + 0.001 * clip(901, 2.0), 0.7 * references[3] + 0.001 * clip(902, 2.0)]
    found = compare_sets([shifted(clip(3, 2.0))], references, background, [clip(n, 2.0) for n in range(400, 430)])
    null = found.null["score"].to_numpy()
    for row in found.matches.to_pylist():
        assert row["p_value"] == pytest.approx((1 + np.count_nonzero(null >= row["score"])) / 31)
        assert row["flagged"] == (row["p_value"] < 0.04)  # the smallest is 1 / 31
    assert sum(found.matches["flagged"].to_pylist()) == 3
    assert not any("unlike length" in warning for warning in found.warnings)
    short = compare_sets([shifted(clip(3, 5.0))], references, background, [clip(n, 2.0) for n in range(400, 405)])
    assert any("unlike length" in warning for warning in short.warnings)


def test_spans_end_where_the_clips_do() -> None:
    references = [clip(n, 5.003) for n in range(12)]
    found = compare_sets([0.5 * x for x in references[:6]], references, [clip(n) for n in range(300, 316)])
    assert any(row["spans"] for row in found.matches.to_pylist())
    for row in found.matches.to_pylist():
        for span in row["spans"]:
            assert max(span["query_end_s"], span["reference_end_s"]) <= 5.003 + 1e-9


def test_too_small_a_background_is_refused(sets, write_sounds, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 8 background clips"):
        run({**sets, "background": write_sounds("few", 3, first=900)}, tmp_path / "audit")


def test_background_that_is_in_the_training_set_is_warned_of(sets, tmp_path: Path) -> None:
    result = run({**sets, "background": sets["references"]}, tmp_path / "audit")
    assert any("also training clips" in warning for warning in result.card["warnings"])


def test_silent_queries_are_counted_and_match_nothing(sets, tmp_path: Path) -> None:
    for path in sets["generated"].iterdir():
        sf.write(path, np.zeros(RATE), RATE)
    from auscult.errors import CorpusError

    with pytest.raises(CorpusError, match="all silent"):
        run(sets, tmp_path / "audit")
    sf.write(sets["generated"] / "copy-0.wav", sound(3, 3.0), RATE)
    assert run(sets, tmp_path / "audit").card["counts"]["compared"] == 1


def test_the_detectors_store_is_no_store_to_deduplicate(sets, tmp_path: Path) -> None:
    from auscult.duplicates import deduplicate

    store = index(open_corpus(sets["references"]), tmp_path / "store", descriptor=load_descriptor("contrast"))
    with pytest.raises(DescriptorMismatchError, match="--descriptor mel"):
        deduplicate(store, output=tmp_path / "dedup")
