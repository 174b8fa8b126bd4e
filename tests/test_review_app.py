"""The review server's answers: what a page gets to see, hear and store."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from starlette.testclient import TestClient
from typer.testing import CliRunner

from auscult.audit import AuditConfig
from auscult.audit import audit as run_audit
from auscult.cli import app
from auscult.corpus import open_corpus
from auscult.errors import AuscultError, StoreError
from auscult.folders import file_digest
from auscult.review import originals
from auscult.review.app import create_app, serve
from auscult.review.listening import listen
from auscult.review.replies import parse_range
from auscult.review.statistics import review_statistics
from auscult.review.verdicts import Control, VerdictStore, cluster_key, pair_id
from conftest import sound
from review_folders import RATE_HZ, TAU, write_audit, write_dedup, write_sounds

ORIGIN = {"Origin": "http://127.0.0.1:8765"}
FLAGGED = [pair_id(f"query-clip-{number}", f"reference-clip-{number}-1") for number in range(2)]


def client(folder: Path, **options: object) -> TestClient:
    app = create_app(folder, **{"reviewer": "ann", **options})  # type: ignore[arg-type]
    return TestClient(app, base_url="http://127.0.0.1:8765", headers=ORIGIN)


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return write_audit(tmp_path / "audit")


@pytest.fixture
def web(audit: Path) -> Iterator[TestClient]:
    with client(audit) as opened:
        yield opened


def verdict(number: int, pair: str, what: str = "replication", reviewer: str = "ann", note: str = "") -> dict[str, str]:
    return {"event_id": f"event-{number:08d}", "pair_id": pair, "reviewer": reviewer, "verdict": what, "note": note}


# --- session, queue, pair -------------------------------------------------------------------------------------------


def test_session_names_what_is_reviewed(web: TestClient) -> None:
    session = web.get("/api/session").json()
    assert session["kind"] == "audit"
    assert session["title"] == "audit"
    assert session["tau"] == TAU
    assert session["reviewer"] == "ann"
    assert (session["blind"], session["order"], session["sample"]) == (False, "score", None)
    assert session["counts"] == {"pairs": 6, "generated": 6, "compared": 6, "flagged": 2, "skipped": 0}
    assert set(session["frequency_ticks"]) == {"mel", "linear"}


def test_queue_is_in_the_order_asked_for(web: TestClient, audit: Path) -> None:
    by_score = [pair_id(f"query-clip-{number}", f"reference-clip-{number}-1") for number in range(6)]
    assert web.get("/api/queue").json() == {"pairs": by_score, "decided": {}, "position": 0}
    scores = dict(zip(by_score, 9.0 - 8.0 * np.arange(6) / 6, strict=True))
    uncertain = web.get("/api/queue?order=uncertain").json()["pairs"]
    assert uncertain == sorted(by_score, key=lambda pair: abs(scores[pair] - TAU))
    shuffled = web.get("/api/queue?order=random").json()["pairs"]
    assert sorted(shuffled) == sorted(by_score)
    assert shuffled == web.get("/api/queue?order=random").json()["pairs"]
    with client(audit, seed=1) as other:
        assert other.get("/api/queue?order=random").json()["pairs"] != shuffled


def test_decided_pairs_leave_the_queue_and_undo_brings_them_back(web: TestClient) -> None:
    answer = web.post("/api/verdicts", json=verdict(0, FLAGGED[0], note="the same bark"))
    assert (answer.status_code, answer.json()) == (201, {"stored": True, "repeated": False, "decided": 1})
    assert web.post("/api/verdicts", json=verdict(1, FLAGGED[1], "similar")).json()["decided"] == 2
    left = web.get("/api/queue?unreviewed=1").json()
    assert len(left["pairs"]) == 4
    assert left["decided"] == {FLAGGED[0]: "replication", FLAGGED[1]: "similar"}
    everything = web.get("/api/queue?unreviewed=0").json()
    assert (len(everything["pairs"]), everything["position"]) == (6, 2)
    pair = web.get(f"/api/pairs/{FLAGGED[0]}").json()
    assert (pair["verdict"], pair["note"]) == ("replication", "the same bark")
    assert web.get(f"/api/pairs/{FLAGGED[0]}?reviewer=bob").json()["verdict"] is None
    assert web.get("/api/queue?reviewer=bob").json()["decided"] == {}
    assert web.post("/api/verdicts", json=verdict(2, FLAGGED[0], "withdrawn")).json()["decided"] == 1
    assert web.get(f"/api/pairs/{FLAGGED[0]}").json()["verdict"] is None
    assert FLAGGED[0] in web.get("/api/queue").json()["pairs"]


def test_pair_holds_what_the_tables_hold(web: TestClient, audit: Path) -> None:
    answer = web.get(f"/api/pairs/{FLAGGED[1]}").json()
    row = next(row for row in pq.read_table(audit / "matches.parquet").to_pylist() if row["query_id"] == "query-clip-1")
    for name in (
        "score",
        "similarity",
        "bias",
        "p_value",
        "flagged",
        "rank",
        "lag_s",
        "tempo",
        "pitch_semitones",
        "descriptor",
    ):
        assert answer[name] == row[name], name
    span = {"query_start_s": 0.1, "query_end_s": 0.6, "reference_start_s": 0.1, "reference_end_s": 0.6}
    assert (answer["spans"], answer["strongest"], answer["tau"]) == ([span], 0, TAU)
    for role in ("query", "reference"):
        side = answer[role]
        assert (side["id"], side["path"]) == (row[f"{role}_id"], row[f"{role}_path"])
        assert (side["caption"], side["missing"]) == ("a dog barks", None)
        assert (side["duration_s"], side["sample_rate_hz"]) == (1.0, RATE_HZ)
        samples, _ = sf.read(row[f"{role}_path"], start=1600, stop=9600)
        assert answer["level_db"][role] == pytest.approx(10 * np.log10(np.mean(samples**2)), abs=0.02)
    lower = pair_id("query-clip-1", "reference-clip-1-2")
    assert answer["others"] == [lower]
    assert web.get(f"/api/pairs/{lower}").json()["lag_s"] is None  # NaN is no JSON


def test_difference_of_a_copy_is_silence(web: TestClient, tmp_path: Path, audit: Path) -> None:
    # clip 0 is compared with itself, so that nothing is left; clip 0 with sound 1 leaves much
    copy, other = FLAGGED[0], pair_id("query-clip-0", "reference-clip-0-2")
    assert "difference_db" not in web.get(f"/api/pairs/{copy}").json()
    found = web.get(f"/api/pairs/{copy}/difference").json()
    assert found["difference_db"] < -60
    assert found["difference"]["start_s"] == pytest.approx(0.1)
    assert web.get(f"/api/pairs/{copy}").json()["difference_db"] == found["difference_db"]
    assert web.get(f"/api/pairs/{other}/difference").json()["difference_db"] > -10
    wav = web.get(f"/media/{copy}/difference.wav")
    samples, rate = sf.read(io.BytesIO(wav.content))
    assert (rate, len(samples)) == (RATE_HZ, pytest.approx(0.5 * RATE_HZ, abs=2))
    assert np.abs(samples).max() < 1e-3


def test_unknown_names_are_not_here(web: TestClient) -> None:
    foreign = pair_id("some", "other")
    for address in (f"/api/pairs/{foreign}", f"/media/{foreign}/query/audio.wav", f"/media/{foreign}/query/spectrogram.png",
                    f"/media/{foreign}/difference.wav", f"/api/pairs/{foreign}/difference", f"/api/clusters/{foreign}",
                    f"/media/clip/{foreign}/audio.wav", f"/media/{FLAGGED[0]}/neither/audio.wav", "/nothing"):  # fmt: skip
        answer = web.get(address)
        assert (answer.status_code, set(answer.json())) == (404, {"error"}), address
    assert web.post("/api/verdicts", json=verdict(0, foreign)).status_code == 404


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"verdict": "copy"}, "replication, similar"),
        ({"verdict": None}, "verdict should be text"),
        ({"reviewer": "  "}, "1 to 64"),
        ({"reviewer": ["ann"]}, "reviewer should be text"),
        ({"event_id": None}, "event_id should be text"),
        ({"event_id": "x"}, "event_id"),
        ({"note": "n" * 2001}, "2000"),
        ({"note": "\ud800"}, "note should be text"),
        ({"pair_id": 7}, "pair_id should be text"),
    ],
)
def test_a_verdict_that_cannot_be_meant_is_refused(web: TestClient, change: dict[str, object], says: str) -> None:
    event = {**verdict(0, FLAGGED[0]), **change}
    answer = web.post("/api/verdicts", content=json.dumps(event), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert says in answer.json()["error"].replace(",", "") or says in answer.json()["error"]
    assert web.app.state.desk.store.history().num_rows == 0  # type: ignore[attr-defined]


def test_bodies_that_are_no_event_are_refused(web: TestClient) -> None:
    for body in (b"", b"{", b"[1]", b"\xff", b"[" * 60_000):
        answer = web.post("/api/verdicts", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, set(answer.json())) == (400, {"error"}), body[:10]


def test_an_event_that_comes_again_is_stored_once(web: TestClient, audit: Path) -> None:
    first, second = verdict(0, FLAGGED[0]), verdict(1, FLAGGED[0], "different")
    assert web.post("/api/verdicts", json=first).json()["repeated"] is False
    assert web.post("/api/verdicts", json=second).json()["repeated"] is False
    # the first comes again, late: what was decided since stays
    assert web.post("/api/verdicts", json=first).json() == {"stored": True, "repeated": True, "decided": 1}
    assert web.get(f"/api/pairs/{FLAGGED[0]}").json()["verdict"] == "different"
    assert web.post("/api/verdicts", json={**first, "verdict": "unsure"}).status_code == 400  # another event under its name
    with VerdictStore.open(audit) as store:
        assert store.history()["event_id"].to_pylist() == ["event-00000000", "event-00000001"]


def test_two_tabs_and_an_import_see_each_other(audit: Path, web: TestClient) -> None:
    web.get("/api/queue")
    with VerdictStore.open(audit) as store:  # another process
        store.add("query-clip-0", "reference-clip-0-1", reviewer="ann", verdict="unsure")
    assert web.get("/api/queue").json()["decided"] == {FLAGGED[0]: "unsure"}


def test_captions_and_notes_come_as_json_only(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    with client(write_audit(tmp_path / "audit", caption=evil)) as web:
        web.post("/api/verdicts", json=verdict(0, FLAGGED[0], note=evil))
        answer = web.get(f"/api/pairs/{FLAGGED[0]}")
        assert (answer.json()["query"]["caption"], answer.json()["note"]) == (evil, evil)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        for address in ("/", "/api/session", "/api/queue", "/api/stats", "/api/pairs/%3Cscript%3E", "/static/%3Cscript%3E"):
            assert "<script>" not in web.get(address).text.replace('<script src="', ""), address


def test_a_file_that_is_gone_is_said_to_be_missing(web: TestClient, audit: Path) -> None:
    row = next(row for row in pq.read_table(audit / "matches.parquet").to_pylist() if row["query_id"] == "query-clip-1")
    Path(row["query_path"]).unlink()
    answer = web.get(f"/api/pairs/{FLAGGED[1]}")
    assert answer.status_code == 200
    assert answer.json()["query"]["missing"]
    assert answer.json()["level_db"] == {"query": None, "reference": None}
    assert web.get(f"/media/{FLAGGED[1]}/query/audio.wav").status_code == 404
    assert web.get(f"/media/{FLAGGED[1]}/query/spectrogram.png").status_code == 404
    assert web.get(f"/api/pairs/{FLAGGED[1]}/difference").json()["difference_db"] is None


# --- sound and pictures ---------------------------------------------------------------------------------------------


def test_sound_is_the_clip(web: TestClient, audit: Path) -> None:
    row = pq.read_table(audit / "matches.parquet").slice(0, 1).to_pylist()[0]
    wanted, _ = sf.read(row["query_path"], dtype="int16")
    answer = web.get(f"/media/{FLAGGED[0]}/query/audio.wav")
    samples, rate = sf.read(io.BytesIO(answer.content), dtype="int16")
    assert (answer.status_code, answer.headers["content-type"], rate) == (200, "audio/wav", RATE_HZ)
    assert answer.headers["accept-ranges"] == "bytes"
    assert int(answer.headers["content-length"]) == len(answer.content) == 44 + 2 * RATE_HZ
    np.testing.assert_array_equal(samples, wanted)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("0-0", 0, 0), ("0-99", 0, 99), ("100-20000", 100, 20_000), ("32000-", 32_000, 32_043), ("-44", 32_000, 32_043),
     ("-99999", 0, 32_043), ("40-999999", 40, 32_043)],
)  # fmt: skip
def test_ranges_are_parts_of_the_whole(web: TestClient, asked: str, first: int, last: int) -> None:
    address = f"/media/{FLAGGED[0]}/query/audio.wav"
    whole = web.get(address).content
    answer = web.get(address, headers={"Range": f"bytes={asked}"})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(whole)}"
    assert answer.content == whole[first : last + 1]
    head = web.head(address, headers={"Range": f"bytes={asked}"})
    assert (head.status_code, head.content) == (206, b"")
    assert head.headers["content-length"] == str(last - first + 1)


def test_ranges_outside_and_no_ranges(web: TestClient) -> None:
    for address, size in ((f"/media/{FLAGGED[0]}/query/audio.wav", 32_044), (f"/media/{FLAGGED[0]}/difference.wav", None)):
        size = size or len(web.get(address).content)
        for asked in (f"bytes={size}-", "bytes=-0", "bytes=99999999-100000000"):
            answer = web.get(address, headers={"Range": asked})
            assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}"), asked
        for asked in ("items=0-4", "bytes=5-2", "bytes=-", "bytes=0-1,4-5", "bytes=a-b", "bytes=٣-٤"):
            assert web.get(address, headers={"Range": asked.encode()}).status_code == 200, asked


def test_parse_range_is_slicing() -> None:
    content = bytes(range(20))
    for first in range(25):
        for last in range(first, 25):
            if first >= 20:
                with pytest.raises(ValueError, match="of 20"):
                    parse_range(f"bytes={first}-{last}", 20)
                continue
            found = parse_range(f"bytes={first}-{last}", 20)
            assert found is not None
            assert content[found[0] : found[1] + 1] == content[first : last + 1]
    for count in range(1, 25):
        found = parse_range(f"bytes=-{count}", 20)
        assert found is not None
        assert content[found[0] : found[1] + 1] == content[-count:]


def test_a_long_sound_is_not_read_as_a_whole(tmp_path: Path) -> None:
    """The last second of an hour: 115 MB are there, and what is decoded and sent is 32 kB."""
    sounds = write_sounds(tmp_path / "sounds")
    long = tmp_path / "hour.flac"
    with sf.SoundFile(long, "w", RATE_HZ, 1, format="FLAC") as handle:
        minute = np.tile(sf.read(sounds[0], dtype="int16")[0], 60)
        for _ in range(60):
            handle.write(minute)
    audit = write_audit(tmp_path / "audit", 3, sounds=[long])
    table = pq.read_table(audit / "queries.parquet").to_pydict() | {"duration_s": [3600.0] * 3}
    pq.write_table(pa.table(table), audit / "queries.parquet")
    with client(audit) as web:
        address = f"/media/{FLAGGED[0]}/query/audio.wav"
        web.head(address)  # opened
        began = time.perf_counter()
        answer = web.get(address, headers={"Range": "bytes=-32000"})
        seconds = time.perf_counter() - began
        assert answer.headers["content-range"].endswith("/115200044")
        np.testing.assert_array_equal(np.frombuffer(answer.content, "<i2"), minute[-16_000:])
        assert seconds < 0.5  # reading it all takes several


def test_pictures(web: TestClient) -> None:
    address = f"/media/{FLAGGED[0]}/reference/spectrogram.png"
    answer = web.get(f"{address}?scale=mel&start=0.2&end=0.7&width=300")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content.startswith(b"\x89PNG")
    assert int.from_bytes(answer.content[16:20], "big") == 300
    assert "private" in answer.headers["cache-control"]
    again = web.get(f"{address}?scale=mel&start=0.2&end=0.7&width=300", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    linear = web.get(f"{address}?scale=linear&start=0.2&end=0.7&width=300")
    assert linear.headers["etag"] != answer.headers["etag"]
    for query in ("scale=bark", "start=x", "start=nan&end=1", "start=0&end=inf", "width=0", "width=1e9", "width=99999",
                  "start=1&end=0", "end=1e300"):  # fmt: skip
        assert web.get(f"{address}?{query}").status_code == 400, query


# --- blind ----------------------------------------------------------------------------------------------------------


def test_blind_answers_do_not_tell(tmp_path: Path) -> None:
    """Every endpoint, against everything that tells: values, names, and the order."""
    audit = write_audit(tmp_path / "audit", 30)
    with client(audit, blind=True, sample=12) as web:
        rows = pq.read_table(audit / "matches.parquet").to_pylist()
        listed = web.get("/api/queue?order=score").json()["pairs"]
        pairs = [pair_id(row["query_id"], row["reference_id"]) for row in rows]
        web.post("/api/verdicts", json=verdict(0, pairs[0]))
        Path(rows[4]["query_path"]).rename(tmp_path / "moved.wav")  # an error must not tell either
        addresses = ["/", "/api/session", "/api/stats", "/api/clusters"]
        addresses += [
            f"/api/queue?order={order}&set={which}" for order in ("score", "uncertain") for which in ("listed", "sample")
        ]
        addresses += [f"/api/pairs/{pair}{rest}" for pair in pairs for rest in ("", "/difference")]
        addresses += [
            f"/media/{pair}/query/{file}" for pair in pairs[:10] for file in ("audio.wav", "spectrogram.png?width=50")
        ]
        seen = []
        for address in addresses:
            answer = web.get(address)
            body = answer.content.decode("latin-1") if "json" in answer.headers["content-type"] else ""
            seen.append(f"{address} {body} {dict(answer.headers)}")
        text = "\n".join(seen)
    for row in rows:
        telling = [row["query_id"], row["reference_id"], row["query_path"], row["reference_path"], "secret-", "query-clip"]
        telling += [repr(row[name]) for name in ("score", "similarity", "p_value")]
        assert not [one for one in telling if one in text]
    for name in ("score", "similarity", "bias", "p_value", "flagged", "rank", "tau", "path", "id", "precision", "rate"):
        assert f'"{name}":' not in text, name
    by_score = [pair_id(row["query_id"], row["reference_id"]) for row in rows if row["rank"] == 1]
    assert sorted(listed) == sorted(by_score)
    # chance gives |rho| > 0.6 among 30 once in 2,000 seeds; the seed is fixed
    assert abs(np.corrcoef([by_score.index(pair) for pair in listed], np.arange(30))[0, 1]) < 0.6


def test_blind_orders_are_random_whatever_is_asked(audit: Path) -> None:
    with client(audit, blind=True, order="score") as web:
        assert web.get("/api/session").json()["order"] == "random"
        orders = {tuple(web.get(f"/api/queue?order={order}").json()["pairs"]) for order in ("score", "uncertain", "random")}
        assert len(orders) == 1


def test_a_blind_sample_hides_its_strata_and_stays_a_sample(tmp_path: Path) -> None:
    audit = write_audit(tmp_path / "audit", 200)
    with client(audit, sample=40) as web:
        drawn = web.get("/api/queue?set=sample").json()["pairs"]
        rows = web.app.state.desk.sample.rows  # type: ignore[attr-defined]
    with client(audit, blind=True) as web:
        shown = web.get("/api/queue?set=sample").json()["pairs"]
    assert sorted(shown) == sorted(drawn)
    stratum = {pair: number for number, _, pair in rows}
    for number in set(stratum.values()):  # within a stratum in the order of drawing: a prefix stays a random sample
        assert [pair for pair in shown if stratum[pair] == number] == [row[2] for row in sorted(rows) if row[0] == number]
    assert [stratum[pair] for pair in shown] != [stratum[pair] for pair in drawn]


def test_blind_clusters_do_not_tell(tmp_path: Path) -> None:
    dedup = write_dedup(tmp_path / "dedup", 3, 4)
    with client(dedup, blind=True) as web:
        keys = [one["cluster_key"] for one in web.get("/api/clusters").json()["clusters"]]
        text = web.get("/api/clusters").text + "".join(web.get(f"/api/clusters/{key}").text for key in keys)
        pair = web.get("/api/queue").json()["pairs"][0]
        text += web.get(f"/api/pairs/{pair}").text + web.get("/api/session").text
        members = web.get(f"/api/clusters/{keys[0]}").json()["members"]
        ids = [member["clip_id"] for member in members]
        event = {"event_id": "event-00000001", "cluster_key": keys[0], "reviewer": "ann", "decision": "split", "note": ""}
        answer = web.post("/api/clusters", json={**event, "groups": [ids[:1], ids[1:]], "kept": [ids[0], ids[2]]})
        assert answer.status_code == 201, answer.text
        assert web.get(f"/api/clusters/{keys[0]}").json()["groups"] == [ids[:1], ids[1:]]
    for telling in ("cluster-clip", "pair-clip", "secret-", "similarity", "0.98", "0.97", "0.96", "0.456", "reason", '"path"'):
        assert telling not in text, telling
    with VerdictStore.open(dedup) as store:
        (row,) = store.latest_clusters().to_pylist()
    assert all(clip.startswith("cluster-clip-") for group in row["groups"] for clip in group)


# --- clusters -------------------------------------------------------------------------------------------------------


def test_clusters_are_a_gallery(tmp_path: Path) -> None:
    with client(write_dedup(tmp_path / "dedup")) as web:
        assert web.get("/api/session").json()["clusters"] == 2
        listed = web.get("/api/clusters").json()["clusters"]
        assert [one["similarity"] for one in listed] == sorted(one["similarity"] for one in listed)
        key = listed[0]["cluster_key"]
        cluster = web.get(f"/api/clusters/{key}").json()
        assert [member["clip_id"] for member in cluster["members"]] == [f"cluster-clip-1-{number}" for number in range(3)]
        assert [member["kept"] for member in cluster["members"]] == [True, False, False]
        for member in cluster["members"]:
            assert web.get(member["audio"]).content[:4] == b"RIFF"
            assert web.get(f"{member['spectrogram']}?width=80").content.startswith(b"\x89PNG")
        ids = [member["clip_id"] for member in cluster["members"]]
        event = {"event_id": "event-00000001", "cluster_key": key, "reviewer": "ann", "note": "two dogs"}
        answer = web.post("/api/clusters", json={**event, "decision": "all_one", "groups": [ids], "kept": [ids[2]]})
        assert (answer.status_code, answer.json()["decided"]) == (201, 1)
        decided = web.get(f"/api/clusters/{key}").json()
        assert (decided["decision"], decided["kept"], decided["note"]) == ("all_one", [ids[2]], "two dogs")
        for groups, kept in (([ids[:2]], ids[:1]), ([["nobody"]], []), ("all", []), ([[[]]], [{}])):
            wrong = {**event, "event_id": "event-00000002", "decision": "all_one", "groups": groups, "kept": kept}
            assert web.post("/api/clusters", json=wrong).status_code == 400, wrong
        undo = {**event, "event_id": "event-00000003", "decision": "withdrawn", "groups": [], "kept": []}
        assert web.post("/api/clusters", json=undo).json()["decided"] == 0
        assert web.get("/api/clusters").json()["clusters"][0]["decision"] is None


# --- controls, statistics -------------------------------------------------------------------------------------------


def test_statistics(audit: Path, web: TestClient) -> None:
    assert web.get("/api/stats").json() == {
        "verdicts": 0, "pairs": 0, "reviewers": {}, "rate": None, "precision": None, "agreement": [], "controls": {},
        "warnings": [],
    }  # fmt: skip
    for number, (reviewer, what) in enumerate([("ann", "replication"), ("bob", "replication")]):
        web.post("/api/verdicts", json=verdict(number, FLAGGED[0], what, reviewer))
    web.post("/api/verdicts", json=verdict(5, FLAGGED[1], "different"))
    stats = web.get("/api/stats").json()
    assert (stats["verdicts"], stats["pairs"]) == (3, 2)
    assert stats["reviewers"]["ann"] == {"replication": 1, "similar": 0, "different": 1, "unsure": 0, "clusters": 0}
    assert stats["precision"]["value"] == 0.5
    assert stats["rate"]["replications"] == 1
    assert (stats["agreement"][0]["pairs"], stats["agreement"][0]["agreed"]) == (1, 1)


def test_controls_look_like_pairs(tmp_path: Path) -> None:
    """A real audit, since controls are made of its training clips."""
    generated, training = write_sounds(tmp_path / "generated", 6), write_sounds(tmp_path / "training", 14)
    for number, path in enumerate(generated):
        sf.write(path, sound(100 + number), RATE_HZ)
    folder = run_audit(
        open_corpus([str(tmp_path / "generated")]),
        open_corpus([str(training[0].parent)]),
        output=tmp_path / "audit",
        config=AuditConfig(descriptor="mel", duration_s=1.0, tau=0.5),
    ).path
    for blind in (True, False):
        with client(folder, controls=4, blind=blind) as web:
            assert "controls" not in web.get("/api/session").text.replace(str(tmp_path), "")
            pairs = web.get("/api/queue?unreviewed=0").json()["pairs"]
            controls = set(web.app.state.desk.store.controls())  # type: ignore[attr-defined]
            assert len(pairs) == 10
            assert len(controls) == 4
            assert controls < set(pairs)
            answers = {pair: web.get(f"/api/pairs/{pair}").json() for pair in pairs}
            parts = [[answer, answer["query"], answer["reference"]] for answer in answers.values()]
            shapes = {json.dumps([sorted(part) for part in three]) for three in parts}
            assert len(shapes) == 1
            assert all(answer["others"] == [] for answer in answers.values())
            text = json.dumps(answers).replace(str(tmp_path), "")
            assert "controls" not in text
            assert ".flac" not in text
            assert "truth" not in text
            for pair in controls:
                assert web.get(f"/media/{pair}/query/audio.wav").content[:4] == b"RIFF"
            web.post("/api/verdicts", json=verdict(blind, sorted(controls)[0]))
            assert set(web.get("/api/stats").json()) == {"verdicts", "pairs", "reviewers"}
    with VerdictStore.open(folder) as store:
        assert review_statistics(folder, store)["controls"]["ann"]


def test_controls_stay_in_the_queue_at_a_restart(audit: Path) -> None:
    (audit / "controls").mkdir()
    with VerdictStore.open(audit) as store:
        row = {"query_id": "c", "query_path": "controls/c.flac", "reference_id": "r", "reference_path": "r.wav", "score": 5.0}
        store.add_controls([Control(pair_id("c", "r"), "different", row)])
    for options, there in (({}, True), ({"controls": 1}, True), ({"controls": 0}, False)):
        with client(audit, **options) as web:
            assert (pair_id("c", "r") in web.get("/api/queue").json()["pairs"]) == there, options
            assert ("agreement" in web.get("/api/stats").json()) != there


@pytest.mark.parametrize("options", [{"blind": True}, {"reviewer_fixed": True}])
def test_a_fixed_reviewer_sees_and_writes_only_their_own(audit: Path, options: dict[str, bool]) -> None:
    with client(audit) as web:
        assert web.get("/api/session").json()["reviewer_fixed"] is False
        web.post("/api/verdicts", json=verdict(0, FLAGGED[0], reviewer="bob"))
    with client(audit, **options) as web:
        assert web.get("/api/session").json()["reviewer_fixed"] is True
        for address in ("queue", f"pairs/{FLAGGED[0]}", "clusters"):
            assert web.get(f"/api/{address}?reviewer=ann").status_code == 200
            refused = web.get(f"/api/{address}?reviewer=bob")
            assert (refused.status_code, "this review is ann's" in refused.json()["error"]) == (403, True)
        assert web.post("/api/verdicts", json=verdict(1, FLAGGED[1], reviewer="bob")).status_code == 403
        assert web.post("/api/verdicts", json=verdict(2, FLAGGED[1])).status_code == 201
        stats = web.get("/api/stats").json()
        assert set(stats) == {"verdicts", "pairs", "reviewers"}
        assert (stats["verdicts"], list(stats["reviewers"])) == (1, ["ann"])


def test_a_blind_gallery_is_one_reviewers(tmp_path: Path) -> None:
    with client(write_dedup(tmp_path / "dedup"), blind=True) as web:
        key = web.get("/api/clusters").json()["clusters"][0]["cluster_key"]
        members = [member["clip_id"] for member in web.get(f"/api/clusters/{key}").json()["members"]]
        event = {"event_id": "event-00000001", "cluster_key": key, "decision": "all_one", "groups": [members]}
        event |= {"kept": members[:1], "note": ""}
        assert web.get(f"/api/clusters/{key}?reviewer=bob").status_code == 403
        assert web.post("/api/clusters", json={**event, "reviewer": "bob"}).status_code == 403
        assert web.post("/api/clusters", json=event).status_code == 201


def test_what_is_wrong_with_the_folder_is_told_before_the_port(audit: Path, tmp_path: Path) -> None:
    with listen(port=0).socket as taken:
        port = taken.getsockname()[1]
        (tmp_path / "empty").mkdir()
        with pytest.raises(AuscultError, match="empty"):
            serve(tmp_path / "empty", port=port)
        with pytest.raises(ValueError, match="reviewer should be a name"):
            serve(audit, port=port, reviewer=" ")
        with pytest.raises(AuscultError, match="is taken"):
            serve(audit, port=port)


def test_with_a_host_the_reviewer_is_fixed(audit: Path) -> None:
    process, address = start(audit, "--port", "0", "--host", "127.0.0.1", "--reviewer", "eve")
    try:
        base, token = address.split("?token=")
        with httpx.Client(base_url=base, follow_redirects=True) as web:
            web.get(f"/?token={token}")
            assert web.get("/api/session").json()["reviewer_fixed"] is True
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_nothing_to_review_is_said(tmp_path: Path) -> None:
    audit = write_audit(tmp_path / "audit", 1)
    pq.write_table(pq.read_table(audit / "matches.parquet").slice(0, 0), audit / "matches.parquet")
    with pytest.raises(StoreError, match="nothing to review"):
        create_app(audit)
    with pytest.raises(ValueError, match="score, uncertain, random"):
        create_app(audit, order="best")


def test_a_file_that_has_changed_since_the_audit_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = write_sounds(tmp_path / "sounds")
    audit = write_audit(tmp_path / "audit", sounds=sounds)
    clips = [{"clip_id": f"reference-clip-{n}-1", "path": str(path)} for n, path in enumerate(sounds)]
    for clip in clips:
        clip |= {"start_s": None, "duration_s": None, "caption": None, "sha256": file_digest(Path(clip["path"]))}  # type: ignore[dict-item]
    (audit / "stores" / "references").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(clips), audit / "stores" / "references" / "clips.parquet")
    digested: list[Path] = []
    monkeypatch.setattr(originals, "file_digest", lambda path: digested.append(path) or file_digest(path))
    with client(audit) as web:
        for _ in range(2):
            side = web.get(f"/api/pairs/{FLAGGED[1]}").json()["query"]
            assert (side["changed"], side["changed_text"]) == (False, None)
        assert digested == [sounds[1]]
        sf.write(sounds[1], sound(50), RATE_HZ)
        pair = web.get(f"/api/pairs/{FLAGGED[1]}").json()
        words = "this file has changed since the audit"
        assert [(pair[role]["changed"], pair[role]["changed_text"]) for role in ("query", "reference")] == [(True, words)] * 2
        refused = web.post("/api/verdicts", json=verdict(0, FLAGGED[1]))
        assert (refused.status_code, words in refused.json()["error"]) == (409, True)
        for number, what in enumerate(("unsure", "withdrawn"), 1):
            assert web.post("/api/verdicts", json=verdict(number, FLAGGED[1], what)).status_code == 201
        assert web.post("/api/verdicts", json=verdict(3, FLAGGED[0])).status_code == 201
        monkeypatch.setattr(originals, "LARGEST", 1000)
        assert web.get(f"/api/pairs/{FLAGGED[1]}").json()["query"]["changed"] is False  # too large to digest


# --- size -----------------------------------------------------------------------------------------------------------


def test_ten_thousand_pairs_open_at_once(tmp_path: Path) -> None:
    audit = write_audit(tmp_path / "audit", 10_000)
    with VerdictStore.open(audit) as store:
        for number in range(50):
            store.add(f"query-clip-{number}", f"reference-clip-{number}-1", reviewer="ann", verdict="similar")
    create_app(write_audit(tmp_path / "small"))  # imports are not what is measured
    began = time.perf_counter()
    with client(audit) as web:
        web.get("/")
        web.get("/api/session")
        queue = web.get("/api/queue").json()
        opening = time.perf_counter() - began
        assert len(queue["pairs"]) == 9950
        assert opening < 1.0
        web.get(f"/api/pairs/{queue['pairs'][0]}")  # the tables are read once
        times = []
        for pair in queue["pairs"][1:40]:
            began = time.perf_counter()
            assert web.get(f"/api/pairs/{pair}").status_code == 200
            times.append(time.perf_counter() - began)
        assert np.median(times) < 0.05


# --- the command ----------------------------------------------------------------------------------------------------


def start(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "auscult", "review", str(folder), "--no-browser", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, process.communicate()[1]
    return process, address


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_the_command_serves_and_ends_with_one_line(audit: Path) -> None:
    process, address = start(audit, "--port", "0", "--reviewer", "eve")
    try:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        assert httpx.get(f"{address}api/session").json()["reviewer"] == "eve"
        port = int(address.split(":")[2].strip("/"))
        with pytest.raises(AuscultError, match="--port 0"):
            listen(port=port)
        origin = {"Origin": address.strip("/")}
        assert httpx.post(f"{address}api/verdicts", json=verdict(0, FLAGGED[0]), headers=origin).status_code == 201
    finally:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 0
    assert error.splitlines()[0].startswith("1 verdict in ")
    assert "auscult report" in error
    assert "Traceback" not in error


def test_export_import_and_statistics_without_serving(audit: Path, tmp_path: Path) -> None:
    with VerdictStore.open(audit) as store:
        store.add("query-clip-0", "reference-clip-0-1", reviewer="ann", verdict="replication")
    other = write_audit(tmp_path / "other")

    def auscult(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "auscult", "review", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert auscult(audit, "--export", tmp_path / "v.csv").returncode == 0
    assert json.loads(auscult(other, "--import", tmp_path / "v.csv", "--stats", "--json").stdout)["verdicts"] == 1
    assert json.loads(auscult(other, "--import", tmp_path / "v.csv", "--json").stdout) == {
        "imported": 0, "verdicts_in_file": 1, "on_pairs_here": 1, "controls_left_out": 0,
    }  # fmt: skip
    with VerdictStore.open(audit) as store:
        store.add("elsewhere", "reference-clip-0-1", reviewer="ann", verdict="similar")
        store.add("query-clip-1", "reference-clip-1-1", reviewer="ann", verdict="similar")
        store.add_controls([Control(FLAGGED[1], "different", {})])
    assert auscult(audit, "--export", tmp_path / "v.csv").returncode == 0
    said = auscult(other, "--import", tmp_path / "v.csv").stdout
    assert "1 of 3 are on pairs of this folder" in said
    assert "1 are on controls of another review" in said
    counted = json.loads(auscult(other, "--stats", "--json").stdout)
    assert (counted["verdicts"], counted["pairs"]) == (1, 1)  # neither the pair from elsewhere nor the control
    nowhere = auscult(audit, "--export", tmp_path / "nope" / "v.csv")
    assert (nowhere.returncode, (tmp_path / "nope").exists()) == (2, False)
    assert "no folder; make it first" in " ".join(nowhere.stderr.split())
    shown = auscult(other, "--stats").stdout
    assert "ann" in shown
    assert "At least" in shown
    missing = auscult(tmp_path / "nowhere", "--stats")
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr


def test_decisions_on_clusters_are_exchanged(tmp_path: Path) -> None:
    folder, other = write_dedup(tmp_path / "dedup"), write_dedup(tmp_path / "other")
    clips = [f"cluster-clip-0-{member}" for member in range(3)]
    with VerdictStore.open(folder) as store:
        store.add_cluster(cluster_key(clips), reviewer="ann", decision="all_one", groups=[clips], kept=clips[:1], note='é, "x"')
        store.add_cluster(cluster_key(["a"]), reviewer="ann", decision="all_one", groups=[["a"]], kept=["a"])
        store.add("pair-clip-a", "pair-clip-b", reviewer="ann", verdict="similar")
    for ending in ("csv", "parquet"):
        files = tmp_path / f"v.{ending}", tmp_path / f"v.clusters.{ending}"
        result = CliRunner().invoke(app, ["review", str(folder), "--export", str(files[0])])
        assert result.exit_code == 0, result.output
        for file, new in ((files[0], 0 if ending == "parquet" else 2), (files[1], 0)):
            result = CliRunner().invoke(app, ["review", str(other), "--import", str(file), "--json"])
            assert result.exit_code == 0, result.output
            facts = json.loads(result.stdout)
            assert (facts["imported_clusters"], facts["decisions_in_file"], facts["on_clusters_here"]) == (new, 2, 1)
    with VerdictStore.open(folder) as one, VerdictStore.open(other) as two:
        assert two.latest_clusters().equals(one.latest_clusters())
        assert two.latest().equals(one.latest())
        assert review_statistics(other, two)["reviewers"]["ann"]["clusters"] == 1


def test_a_verdict_does_not_wait_for_pictures(web: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """While more pictures are being drawn than the server has threads, a verdict is stored."""
    desk = web.app.state.desk  # type: ignore[attr-defined]
    begun, stored = threading.Event(), threading.Event()
    drawn = desk.picture

    def slow(*arguments: object, **view: object) -> bytes:
        begun.set()
        assert stored.wait(20)
        return drawn(*arguments, **view)

    monkeypatch.setattr(desk, "picture", slow)
    answers = []
    address = f"/media/{FLAGGED[0]}/query/spectrogram.png"
    threads = [threading.Thread(target=lambda: answers.append(web.get(address).status_code)) for _ in range(45)]
    for thread in threads:
        thread.start()
    assert begun.wait(20)
    time.sleep(0.5)  # all have been sent
    began = time.perf_counter()
    assert web.post("/api/verdicts", json=verdict(0, FLAGGED[0])).status_code == 201
    assert time.perf_counter() - began < 5
    stored.set()
    for thread in threads:
        thread.join(20)
    assert answers == [200] * 45


@pytest.mark.parametrize("what", ["pair", "sound"])
def test_a_verdict_does_not_wait_for_sounds(what: str, web: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for levels of pairs, nor for the later parts of sounds."""
    desk = web.app.state.desk  # type: ignore[attr-defined]
    begun, stored = threading.Event(), threading.Event()

    def wait() -> bytes:
        begun.set()
        assert stored.wait(20)
        return b"2"

    class Slow:
        size_bytes = 2

        def chunks(self, first: int, last: int, size: int) -> Iterator[bytes]:
            yield b"1"
            yield wait()

    monkeypatch.setattr(desk, "pair", lambda *_, **__: {"waited": wait().decode()})
    monkeypatch.setattr(desk, "audio", lambda *_: Slow())
    address = f"/api/pairs/{FLAGGED[0]}" if what == "pair" else f"/media/{FLAGGED[0]}/query/audio.wav"
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(web.get(address).status_code)) for _ in range(45)]
    for thread in threads:
        thread.start()
    assert begun.wait(20)
    time.sleep(0.5)  # all have been sent
    began = time.perf_counter()
    assert web.post("/api/verdicts", json=verdict(0, FLAGGED[0])).status_code == 201
    took = time.perf_counter() - began
    stored.set()
    for thread in threads:
        thread.join(20)
    assert took < 5
    assert answers == [200] * 45


def test_the_page_loads_only_what_the_policy_allows(web: TestClient) -> None:
    page = web.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert [name for name in named if name.endswith(".js")]
    kinds = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml; charset=utf-8"}
    waiting, seen = list(named), set[str]()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        answer = web.get(name)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kinds[name.rpartition(".")[2]]), name
        modules = re.findall(r'(?:from|import) "\./([^"]+)"', answer.text) if name.endswith(".js") else []
        waiting += [f"/static/{module}" for module in modules if f"/static/{module}" not in seen]
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=", page.text)
