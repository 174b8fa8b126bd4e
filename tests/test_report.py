"""Reports: self-contained, safe against hostile names, small enough to send."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import soundfile as sf

from auscult.audit import Audit, AuditConfig, audit
from auscult.corpus import open_corpus
from auscult.duplicates import DedupConfig, deduplicate
from auscult.errors import StoreError
from auscult.figures import excerpt_mp3, histogram_svg, spectrogram_db, spectrogram_png, time_ticks
from auscult.report import write_report
from auscult.report.page import Excerpt, _best_scores, _with_boxes
from auscult.review.fields import pair_id
from auscult.review.intervals import share
from auscult.review.queue import load_pairs
from auscult.review.sampling import draw_sample
from auscult.review.statistics import _warnings
from auscult.review.verdicts import VerdictStore
from conftest import sound

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"


@pytest.fixture
def audited(write_sounds, tmp_path: Path) -> Audit:
    references = write_sounds("training", 30)
    generated = write_sounds("generated", 3, first=100)
    for name in ("copy.wav", "</td><b>bold.wav".replace("/", "_")):
        sf.write(generated / name, 0.5 * sound(3), 16_000)
    rows = [{"path": path.name, "caption": HOSTILE} for path in sorted(generated.iterdir())]
    import json

    (generated / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return audit(
        open_corpus(generated / "m.jsonl"),
        open_corpus(references),
        output=tmp_path / "audit",
        config=AuditConfig(duration_s=1.0, tau=0.5),
        finish=write_report,
    )


def test_page_is_self_contained_and_allows_nothing_else(audited: Audit) -> None:
    page = (audited.path / "report.html").read_text("utf-8")
    assert "default-src 'none'" in page
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#][^"']*)""", page)
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert "<script" not in page.lower()


def test_hostile_captions_and_names_are_text(audited: Audit) -> None:
    page = (audited.path / "report.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<b>bold" not in page
    assert "{{ 7*7 }}" in page  # shown as it is, not evaluated
    assert "&lt;script&gt;alert(1)" in page


def test_page_says_the_verdict_with_its_denominator(audited: Audit) -> None:
    page = (audited.path / "report.html").read_text("utf-8")
    flagged = audited.card["counts"]["flagged"]
    assert f"{flagged} of 5 generated clips" in page
    assert "What this audit cannot see" in page


def test_report_survives_audio_that_is_gone(audited: Audit) -> None:
    for row in audited.matches().to_pylist():
        Path(row["reference_path"]).unlink(missing_ok=True)
    page = write_report(audited.path).read_text("utf-8")
    assert "No picture, no sound" in page


def test_fifty_pairs_stay_under_20_mb() -> None:
    """Worst case: 12 s excerpts of noise, which compresses badly."""
    noise = np.random.default_rng(0).uniform(-0.8, 0.8, 24_000 * 12).astype(np.float32)
    size = len(excerpt_mp3(noise, 24_000)) + len(spectrogram_png(noise[: 16_000 * 12]))
    assert 100 * size * 4 / 3 < 20e6


def test_dedup_report(write_sounds, tmp_path: Path) -> None:
    folder = write_sounds("corpus", 30)
    sf.write(folder / "zz.wav", np.round(sound(4) * 0.5 * 32767).astype(np.int16), 16_000)
    result = deduplicate(
        open_corpus(folder), output=tmp_path / "d", config=DedupConfig(duration_s=1.0, tau=0.52), finish=write_report
    )
    page = (result.path / "report.html").read_text("utf-8")
    assert "clusters of duplicates hold" in page
    assert "zz.wav" in page


def test_report_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no card\.json"):
        write_report(tmp_path)


def test_spectrogram_shows_a_tone_where_it_is() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    decibel = spectrogram_db(tone)
    from auscult.figures import frequency_ticks

    height = dict(frequency_ticks())["1 kHz"]
    assert abs(decibel.mean(axis=1).argmax() / len(decibel) - height) < 0.02


def test_ticks_lie_inside_the_picture() -> None:
    for duration in (0.05, 0.3, 1, 5, 10.242, 47, 300):
        ticks = time_ticks(duration, 3.3)
        assert 2 <= len(ticks) <= 8
        assert all(0 <= place < 1 for _, place in ticks)


def test_histogram_is_the_same_each_time() -> None:
    scores = np.random.default_rng(0).normal(0.5, 0.01, 100)
    one, two = (histogram_svg([("a", "#123456", scores)], tau=0.52, unit="clips") for _ in range(2))
    assert one == two
    assert one.startswith("<svg")


def test_verdicts_turn_the_report_from_suspicions_into_a_rate(write_sounds, tmp_path: Path) -> None:
    training, generated = write_sounds("training", 30, duration_s=2.0), write_sounds("generated", 12, first=100, duration_s=2.0)
    for number in range(4):
        sf.write(generated / f"copy-{number}.wav", 0.5 * sound(number, 2.0), 16_000)
    result = audit(
        open_corpus(generated), open_corpus(training), output=tmp_path / "audit", config=AuditConfig(duration_s=2.0, tau=0.505)
    )
    assert result.card["counts"]["flagged"] >= 4
    before = write_report(result.path).read_text("utf-8")
    assert "Nobody has verified this yet" in before
    assert "<h2>Verification</h2>" not in before
    flagged = result.matches().filter(pc.field("flagged") & (pc.field("rank") == 1)).to_pylist()
    with VerdictStore.open(result.path) as store:
        store.add_sample(draw_sample(load_pairs(result.path), 6))
        sampled = set(store.samples()[0].pair_ids)
        for row in result.matches().to_pylist():
            if row in flagged or pair_id(row["query_id"], row["reference_id"]) in sampled:
                verdict = "replication" if row["query_id"].startswith("copy") else "different"
                store.add(row["query_id"], row["reference_id"], reviewer="ann", verdict=verdict, note="<b>heard</b>")
    page = write_report(result.path).read_text("utf-8")
    assert "Nobody has verified this yet" not in page
    sentence = re.search(r'<p class="verdict">(.*?)</p>', page, re.DOTALL)[1]
    assert "2,500 per 10,000" in sentence  # 4 of 16 clips
    assert "4 replications" in sentence
    assert page.count('class="verdict-badge replication"') == 4
    assert "<b>heard</b>" not in page
    assert "Share of replications among the verified pairs" in page  # the reliability figure
    ids = re.findall(r' id="([^"]*)"', page)
    assert page.count("<svg") == 6 and len(ids) == len(set(ids))  # three figures, for wide and for narrow screens
    assert "Look at the review again" not in page
    with VerdictStore.open(result.path) as store:
        for row in flagged:  # a second reader who hears the opposite of it all
            verdict = "different" if row["query_id"].startswith("copy") else "replication"
            store.add(row["query_id"], row["reference_id"], reviewer="bob", verdict=verdict)
        clips = [row["query_id"] for row in flagged]
        store.add(clips[0], flagged[0]["reference_id"], reviewer="ann", verdict="unsure")
        store.add(clips[0], flagged[0]["reference_id"], reviewer="bob", verdict="unsure")
    page = write_report(result.path).read_text("utf-8")
    assert "ann and bob agree little beyond chance" in page
    assert f"Of these {len(flagged)}, reviewers call 1 unsure and disagree on {len(flagged) - 1}." in page


@pytest.mark.parametrize(
    ("right", "trials", "warned"), [(20, 20, False), (8, 10, False), (7, 10, True), (160, 200, True), (195, 200, False)]
)
def test_a_reviewer_who_misses_controls_is_named(right: int, trials: int, warned: bool) -> None:
    found = {"bob": {"sensitivity": asdict(share(right, trials)), "specificity": None, "wrong": ()}}
    warnings = _warnings([], found)
    assert bool(warnings) == warned
    assert all(f"bob recognized {right} of {trials} known copies" in warning for warning in warnings)


def test_small_counts_get_more_than_one_label() -> None:
    svg = histogram_svg([("a", "#123456", np.linspace(0, 1, 60))], tau=0.5, unit="clips")
    assert {"1", "2"} <= set(re.findall(r">([\d,]+)</text>", svg))


def test_wide_and_narrow_histogram_share_no_id(audited: Audit) -> None:
    page = (audited.path / "report.html").read_text("utf-8")
    ids = re.findall(r' id="([^"]*)"', page)
    assert page.count("<svg") == 2
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)


def test_histogram_of_nothing() -> None:
    assert histogram_svg([("a", "#123456", np.zeros(0))], tau=None, unit="clips").startswith("<svg")


def span(query_start_s: float, query_end_s: float, reference_start_s: float) -> dict[str, float]:
    reference_end_s = reference_start_s + query_end_s - query_start_s
    return {
        "query_start_s": query_start_s,
        "query_end_s": query_end_s,
        "reference_start_s": reference_start_s,
        "reference_end_s": reference_end_s,
    }


def test_spans_outside_of_the_picture_get_no_box_and_numbers_are_those_of_both_pictures() -> None:
    sides = {"query": Excerpt("q", None, "query", 0.0, 10.0), "reference": Excerpt("r", None, "reference", 20.0, 10.0)}
    spans = [span(1, 3, 2), span(4, 6, 24), span(8, 12, 21), span(11, 13, 40)]
    boxes = {role: [(b.left, b.width, b.label) for b in side.boxes] for role, side in _with_boxes(sides, spans).items()}
    assert boxes["query"] == [(0.1, 0.2, "1"), (0.4, 0.2, "2"), (0.8, pytest.approx(0.2), "3")]  # the third is cut
    assert boxes["reference"] == [(0.4, 0.2, "2"), (0.1, 0.4, "3")]
    alone = _with_boxes(sides, [span(4, 6, 24), span(11, 13, 40)])
    assert [box.label for side in alone.values() for box in side.boxes] == ["", ""]  # one to be seen needs no number
    assert _with_boxes(sides, [span(9.99, 13, 50)])["query"].boxes == ()  # a hair of it


def test_clusters_of_one_size_come_by_their_best_score() -> None:
    clusters = {number: [{"clip_id": name, "path": name} for name in names] for number, names in enumerate(("ab", "cd", "ef"))}
    pairs = [
        {"first_id": a, "first_path": a, "score": score, "duplicate": duplicate}
        for a, score, duplicate in (
            ("a", 0.51, True),
            ("b", 0.6, True),
            ("c", None, True),
            ("e", 0.7, False),
            ("x", 1.0, False),
        )
    ]
    assert _best_scores(clusters, pairs) == {0: 0.6, 1: np.inf, 2: -np.inf}


def test_the_only_training_clip() -> None:
    from auscult.report.page import audit_verdict

    card = {
        "counts": {"generated": 3, "compared": 3, "flagged": 1},
        "inputs": {"generated": {"counts": {"skipped": 0}}, "references": {"counts": {"clips": 1, "skipped": 0}}},
        "threshold": {"rule": "fixed", "separated": True},
    }
    assert audit_verdict(card).endswith("possible replicas of the only training clip.")


def test_padding_that_is_none_has_no_column(audited: Audit) -> None:
    assert "padding</th>" not in (audited.path / "report.html").read_text("utf-8")
