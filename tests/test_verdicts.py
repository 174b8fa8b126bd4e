"""Verdicts: what was acknowledged is there, once, whoever writes and whatever dies."""

from __future__ import annotations

import csv
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.errors import OutputFolderError, StoreError
from auscult.folders import building, write_card
from auscult.review import schema
from auscult.review.verdicts import VERDICTS, Control, Sample, Stratum, VerdictStore, cluster_key, pair_id

PAIR = ("g/1.wav", "t/7.wav")


@pytest.fixture
def store(tmp_path: Path):
    with VerdictStore.open(tmp_path) as opened:
        yield opened


def test_latest_counts_and_undo_leaves_none(store: VerdictStore) -> None:
    assert store.add(*PAIR, reviewer="Ann", verdict="similar")
    assert store.add(*PAIR, reviewer="  Ann ", verdict="replication", note="the whole bar")
    assert store.add(*PAIR, reviewer="Bob", verdict="different")
    assert {row["reviewer"]: row["verdict"] for row in store.latest().to_pylist()} == {"Ann": "replication", "Bob": "different"}
    assert store.add(*PAIR, reviewer="Ann", verdict="withdrawn")
    assert store.decided("Ann") == {}
    assert store.decided("Bob") == {pair_id(*PAIR): "different"}
    assert store.history()["verdict"].to_pylist() == ["similar", "replication", "different", "withdrawn"]


def test_pair_id_is_that_of_the_contract_and_sides_differ() -> None:
    import hashlib

    assert pair_id("a", "b") == hashlib.sha256(b"a\0b").hexdigest()[:16]
    assert pair_id("a", "b") != pair_id("b", "a")
    assert cluster_key(["b", "a"]) == hashlib.sha256(b"a\0b").hexdigest()[:16]


def test_a_repeated_event_is_stored_once_and_a_reused_one_refused(store: VerdictStore) -> None:
    event = "5f0c7a52-1d5c-4f5e-9a53-111111111111"
    assert store.add(*PAIR, reviewer="Ann", verdict="similar", event_id=event)
    assert not store.add(*PAIR, reviewer="Ann", verdict="similar", event_id=event)
    with pytest.raises(ValueError, match="was used for another verdict"):
        store.add(*PAIR, reviewer="Ann", verdict="different", event_id=event)
    assert store.history().num_rows == 1


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        (["replication"], "replication"),
        (["replication", "similar"], "unsure"),
        (["replication", "replication", "similar"], "replication"),
        (["replication", "replication", "similar", "different"], "unsure"),
        (["replication", "similar", "different"], "similar"),  # two of three say that it is no copy
        (["similar", "different"], "similar"),
        (["different", "different", "similar"], "different"),
        (["similar", "unsure"], "unsure"),
        (["replication", "withdrawn"], "replication"),
        (["withdrawn"], None),
    ],
)
def test_consensus_is_the_majority(store: VerdictStore, votes: list[str], verdict: str | None) -> None:
    for number, vote in enumerate(votes):
        store.add(*PAIR, reviewer=f"reader {number}", verdict=vote)
    assert store.consensus().get(pair_id(*PAIR)) == verdict


def test_consensus_leaves_controls_out(store: VerdictStore) -> None:
    store.add(*PAIR, reviewer="Ann", verdict="replication")
    control = Control(pair_id(*PAIR), "replication", {"score": 0.5, "query_caption": "Vögel"})
    assert store.add_controls([control]) == 1
    assert store.add_controls([control]) == 0
    assert store.controls() == {control.pair_id: control}
    assert store.consensus() == {}
    assert store.latest().num_rows == 1


def test_a_clock_that_is_set_back_does_not_bring_an_undone_verdict_back(store: VerdictStore, monkeypatch) -> None:
    store.add(*PAIR, reviewer="Ann", verdict="replication")
    monkeypatch.setattr("auscult.review.verdicts.now", lambda: "2001-01-01T00:00:00.000000Z")
    store.add(*PAIR, reviewer="Ann", verdict="withdrawn")
    assert store.decided("Ann") == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "copy"}, "replication, similar, different, unsure, withdrawn, got 'copy'"),
        ({"reviewer": " "}, "1 to 64 visible characters"),
        ({"reviewer": "x" * 65}, "1 to 64 visible characters"),
        ({"reviewer": "a\nb"}, "1 to 64 visible characters"),
        ({"note": "x" * 2001}, "at most 2,000 characters, got 2,001"),
        ({"note": "a\0b"}, "without NUL"),
        ({"note": "\ud800"}, "UTF-8"),
        ({"event_id": "no spaces please"}, "UUID"),
        ({"event_id": ""}, "UUID"),
    ],
)
def test_what_cannot_be_meant_is_refused(store: VerdictStore, change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.add(*PAIR, **{"reviewer": "Ann", "verdict": "similar", **change})
    with pytest.raises(ValueError, match="empty"):
        store.add("", "b", reviewer="Ann", verdict="similar")
    assert store.history().num_rows == 0


def test_names_and_notes_at_their_limits(store: VerdictStore) -> None:
    store.add(*PAIR, reviewer="é" * 64, verdict="similar", note="ü" * 2000)
    store.add(*PAIR, reviewer="e\u0301" * 64, verdict="unsure")  # the same name, decomposed
    assert store.latest()["verdict"].to_pylist() == ["unsure"]


# --- the file ---


@pytest.mark.parametrize("statement", ["UPDATE verdicts SET verdict = 'unsure'", "DELETE FROM verdicts"])
def test_another_program_cannot_change_history(store: VerdictStore, statement: str) -> None:
    store.add(*PAIR, reviewer="Ann", verdict="similar", event_id="event-0001")
    foreign = sqlite3.connect(store.path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        foreign.execute(statement)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        foreign.execute("INSERT OR REPLACE INTO verdicts SELECT * FROM verdicts")
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        foreign.execute(
            "INSERT INTO verdicts (event_id, pair_id, query_id, reference_id, reviewer, verdict, decided_at) "
            "VALUES ('e', 'p', 'q', 'r', 'Ann', 'perhaps', '2026')"
        )
    foreign.close()
    assert store.decided("Ann") == {pair_id(*PAIR): "similar"}


def test_it_is_durable_as_promised(store: VerdictStore) -> None:
    with store._connection() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no folder"):
        VerdictStore.open(tmp_path / "nowhere")
    (tmp_path / "review.db").write_bytes(b"certainly no database at all" * 100)
    with pytest.raises(StoreError, match="is no database"):
        VerdictStore.open(tmp_path)
    (tmp_path / "review.db").unlink()
    foreign = sqlite3.connect(tmp_path / "review.db")
    foreign.execute("CREATE TABLE notes (a)")
    foreign.close()
    with pytest.raises(StoreError, match="another program.*notes"):
        VerdictStore.open(tmp_path)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    VerdictStore.open(tmp_path).close()
    newer = sqlite3.connect(tmp_path / "review.db")
    newer.execute("PRAGMA user_version = 2")
    newer.close()
    with pytest.raises(StoreError, match="newer auscult .schema 2.*pip install"):
        VerdictStore.open(tmp_path)


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = VerdictStore.open(tmp_path)
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.history()


def test_many_may_open_a_new_folder_at_once(tmp_path: Path) -> None:
    def decide(number: int) -> bool:
        with VerdictStore.open(tmp_path) as mine:
            return mine.add(*PAIR, reviewer=f"reader {number}", verdict="similar")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(decide, range(16)))
    with VerdictStore.open(tmp_path) as store:
        assert store.latest().num_rows == 16


@pytest.mark.parametrize("after", range(4))
def test_tables_that_appear_while_one_looks_are_ours(tmp_path: Path, after: int) -> None:
    """Whichever of the three questions about a fresh file the making of its tables falls between."""
    file = tmp_path / "review.db"
    asked = []

    class Slow(sqlite3.Connection):
        def execute(self, *arguments):
            if len(asked) == after:
                other = sqlite3.connect(file, isolation_level=None)
                schema.prepare(other, file)
                other.close()
            asked.append(arguments)
            return super().execute(*arguments)

    looking = sqlite3.connect(file, factory=Slow, isolation_level=None)
    schema._version(looking, file)
    looking.close()


_WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from auscult.review.verdicts import VERDICTS, VerdictStore

folder, acknowledged, n, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
done = set(open(acknowledged).read().split()) if n else set()
store = VerdictStore.open(folder)
with open(acknowledged, "a", buffering=1) as log:
    def write(reader):
        for number in range(n // threads):
            event = f"event-{reader}-{number}"
            if event in done:
                continue
            store.add(f"g/{number}", f"t/{number}", reviewer=f"reader {reader}", verdict=VERDICTS[number % 4], event_id=event)
            log.write(event + "\\n")
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(threads)))
"""


def test_no_acknowledged_verdict_is_lost_and_none_doubled_when_the_writer_is_killed(tmp_path: Path) -> None:
    n, threads, rng = 8000, 8, random.Random(0)
    acknowledged = tmp_path / "acknowledged.txt"
    acknowledged.touch()
    command = [sys.executable, "-c", _WRITER, str(tmp_path), str(acknowledged), str(n), str(threads)]
    kills = seen = 0
    for attempt in range(60):
        writer = subprocess.Popen(command)
        if attempt < 8:  # the first are killed once they have written something, at a random moment after it
            while acknowledged.stat().st_size == seen and writer.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.15))
            writer.send_signal(signal.SIGKILL)
        kills += writer.wait() == -signal.SIGKILL
        seen = acknowledged.stat().st_size
        # drop what the kill cut short: an unfinished line acknowledges nothing
        text = acknowledged.read_bytes()
        complete = text[: text.rfind(b"\n") + 1]
        os.truncate(acknowledged, len(complete))
        with VerdictStore.open(tmp_path) as store:
            stored = store.history()["event_id"].to_pylist()
        assert set(complete.decode().split()) <= set(stored)
        assert len(set(stored)) == len(stored)
        seen = len(complete)
        if writer.returncode == 0:
            break
    assert kills >= 5
    with VerdictStore.open(tmp_path) as store:
        assert store.history().num_rows == n
        for reader in range(threads):
            truth = {pair_id(f"g/{number}", f"t/{number}"): VERDICTS[number % 4] for number in range(n // threads)}
            assert store.decided(f"reader {reader}") == truth


# --- clusters and samples ---


def test_cluster_decisions(store: VerdictStore) -> None:
    key = cluster_key(["a", "b", "c"])
    store.add_cluster(key, reviewer="Ann", decision="all_one", groups=[["a", "b", "c"]], kept=["b"])
    store.add_cluster(key, reviewer="Ann", decision="split", groups=[["a", "c"], ["b"]], kept=["c", "b"], note="b is a cover")
    store.add_cluster(key, reviewer="Bob", decision="not_duplicates", groups=[["a"], ["b"], ["c"]], kept=["a", "b", "c"])
    rows = {row["reviewer"]: row for row in store.latest_clusters().to_pylist()}
    assert rows["Ann"]["groups"] == [["a", "c"], ["b"]]
    assert rows["Ann"]["kept"] == ["c", "b"]
    store.add_cluster(key, reviewer="Bob", decision="withdrawn")
    assert store.latest_clusters()["reviewer"].to_pylist() == ["Ann"]
    assert store.latest_clusters("Bob").num_rows == 0


@pytest.mark.parametrize(
    ("decision", "groups", "kept", "message"),
    [
        ("all_one", [["a", "b"]], ["a"], "each clip of cluster"),
        ("all_one", [["a", "b", "c"], []], ["a", "b"], "each clip of cluster"),
        ("split", [["a", "b"], ["b", "c"]], ["a", "b"], "each clip of cluster"),
        ("all_one", [["a", "b", "c"]], ["d"], "one clip of each"),
        ("split", [["a", "b"], ["c"]], ["a"], "one clip of each"),
        ("all_one", [["a", "b"], ["c"]], ["a", "c"], "does not go with 2 groups"),
        ("not_duplicates", [["a", "b"], ["c"]], ["a", "c"], "does not go with"),
        ("withdrawn", [["a", "b", "c"]], ["a"], "no groups"),
        ("merge", [["a", "b", "c"]], ["a"], "decision should be one of"),
    ],
)
def test_groups_partition_the_cluster(store: VerdictStore, decision, groups, kept, message) -> None:
    with pytest.raises(ValueError, match=message):
        store.add_cluster(cluster_key("abc"), reviewer="Ann", decision=decision, groups=groups, kept=kept)


def test_a_larger_draw_extends_the_stored_sample(store: VerdictStore) -> None:
    strata = (Stratum(0.5, 0.9, 3), Stratum(0.1, 0.5, 7))
    rows = ((0, 0, "p0"), (1, 0, "p1"), (1, 1, "p2"))
    first = store.add_sample(Sample("s", 5, strata, rows[:2]))
    assert first.pair_ids == ["p0", "p1"]
    again = store.add_sample(Sample("s", 5, strata, rows))
    assert again.rows == rows
    assert (again.created, again.strata, again.seed) == (first.created, strata, 5)
    assert store.samples() == [again]


# --- files ---

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30)
ROW = st.tuples(
    TEXT.filter(bool), TEXT.filter(bool), st.sampled_from(["Ann", "Bob, Jr.", 'Å "x"']), st.sampled_from(VERDICTS), TEXT
)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROW, max_size=6), ending=st.sampled_from([".csv", ".parquet"]))
def test_what_is_exported_comes_back(tmp_path_factory, rows, ending: str) -> None:
    folders = [tmp_path_factory.mktemp("round") for _ in range(2)]
    file = folders[0] / f"verdicts{ending}"
    with VerdictStore.open(folders[0]) as one, VerdictStore.open(folders[1]) as other:
        for query, reference, reviewer, verdict, note in rows:
            one.add(query, reference, reviewer=reviewer, verdict=verdict, note=note)
        assert one.export_verdicts(file) == len(rows)
        assert other.import_verdicts(file) == len(rows)
        assert other.import_verdicts(file) == 0
        assert one.import_verdicts(file) == 0
        assert other.history().equals(one.history())
        assert other.latest().equals(one.latest())


def test_export_says_which_rows_are_in_force(store: VerdictStore, tmp_path: Path) -> None:
    store.add(*PAIR, reviewer="Ann", verdict="similar", note='a "b",\r\nc')
    store.add(*PAIR, reviewer="Ann", verdict="different")
    store.add("c", "d", reviewer="Ann", verdict="unsure")
    store.add("c", "d", reviewer="Ann", verdict="withdrawn")
    store.add_controls([Control(pair_id(*PAIR), "different", {})])
    store.export_verdicts(tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["counts"].to_pylist() == [False, True, False, False]
    assert table["control"].to_pylist() == ["different", "different", None, None]
    store.export_verdicts(tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["counts"] for row in rows] == ["False", "True", "False", "False"]
    assert rows[0]["note"] == 'a "b",\r\nc'


def test_a_plain_list_is_imported_once(store: VerdictStore, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(
        "\ufeffquery_id,reference_id,reviewer,verdict\na,b,Ann,similar\na,b,Ann,different\na,b,Ann,similar\n", "utf-8"
    )
    assert store.import_verdicts(file) == 3  # she came back to her first verdict: the third row is no repetition
    assert store.import_verdicts(file) == 0
    assert store.decided("Ann") == {pair_id("a", "b"): "similar"}


@pytest.mark.parametrize(
    ("groups", "kept", "message"),
    [("[[1]]", "[]", "as JSON"), ("a|b", "[]", "as JSON"), ('["ab"]', '["a"]', "as JSON"), ('[["a"]]', '["a"]', "each clip")],
)
def test_a_bad_import_of_clusters_adds_nothing(store: VerdictStore, tmp_path: Path, groups, kept, message) -> None:
    with open(tmp_path / "bad.clusters.csv", "w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["cluster_key", "reviewer", "decision", "groups", "kept"])
        rows.writerow([cluster_key("ab"), "Ann", "all_one", '[["a", "b"]]', '["a"]'])
        rows.writerow([cluster_key("ab"), "Ann", "all_one", groups, kept])
    with pytest.raises(ValueError, match=f"row 2.*{message}"):
        store.import_clusters(tmp_path / "bad.clusters.csv")
    assert store.latest_clusters().num_rows == 0


def test_imported_verdicts_find_their_place_in_time(store: VerdictStore, tmp_path: Path) -> None:
    store.add(*PAIR, reviewer="Ann", verdict="replication")
    file = tmp_path / "older.parquet"
    row = {"query_id": PAIR[0], "reference_id": PAIR[1], "reviewer": "Ann", "verdict": "similar"}
    pq.write_table(pa.Table.from_pylist([{**row, "decided_at": "2020-01-01T12:00:00+02:00"}]), file)
    assert store.import_verdicts(file) == 1
    assert store.decided("Ann") == {pair_id(*PAIR): "replication"}
    assert "2020-01-01T10:00:00.000000Z" in store.history()["decided_at"].to_pylist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query_id,reference_id,reviewer,verdict\na,b,Ann,similar\na,c,Ann,Copy\n", "row 2: verdict should be one of"),
        ("query_id,reference_id,reviewer,verdict\na,b,,similar\n", "row 1: reviewer should be"),
        ("query_id,reference_id,reviewer,verdict\na,b,Ann,similar,and\n", "row 1: expected 4 cells, got 5"),
        ("query_id,reference_id,reviewer\na,b,Ann\n", "without 'verdict'"),
        ("query_id,reference_id,reviewer,verdict,mood\na,b,Ann,similar,good\n", "with 'mood'"),
        ("query_id;reference_id;reviewer;verdict\n", "separated by commas"),
        ("", "without 'query_id'"),
        ("query_id,reference_id,reviewer,verdict,pair_id\na,b,Ann,similar,0123456789abcdef\n", "row 1: pair_id"),
        ("query_id,reference_id,reviewer,verdict,decided_at\na,b,Ann,similar,yesterday\n", "row 1: decided_at"),
        ("query_id,reference_id,reviewer,verdict,decided_at\na,b,Ann,similar,9000-01-01\n", "row 1: .*future"),
    ],
)
def test_a_bad_import_names_the_row_and_adds_nothing(store: VerdictStore, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        store.import_verdicts(tmp_path / "bad.csv")
    assert store.history().num_rows == 0


def test_unreadable_exchange_files(store: VerdictStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.csv or \.parquet"):
        store.export_verdicts(tmp_path / "verdicts.xlsx")
    (tmp_path / "latin.csv").write_bytes("query_id\né".encode("latin-1"))
    for name in ("none.csv", "latin.csv"):
        with pytest.raises(StoreError, match="cannot be read"):
            store.import_verdicts(tmp_path / name)


# --- --overwrite ---


def _make(folder: Path, *, overwrite: bool = False, while_building=lambda: None) -> None:
    with building(folder, "audit", task={}, overwrite=overwrite) as partial:
        write_card(partial, "audit", {})
        while_building()


def test_overwrite_refuses_to_lose_verdicts(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    _make(folder)
    (folder / "controls").mkdir()
    with VerdictStore.open(folder) as store:  # somebody only looked: nothing to lose
        store.add_controls([Control("0" * 16, "different", {})])
        _make(folder, overwrite=True)
    assert not (folder / "review.db").exists()
    with VerdictStore.open(folder) as store:
        store.add(*PAIR, reviewer="Ann", verdict="similar")
        with pytest.raises(
            OutputFolderError, match=r"1 verdicts on pairs.*would be lost.*keep a copy of review\.db.*--export verdicts\.csv"
        ):
            _make(folder, overwrite=True)
    with pytest.raises(OutputFolderError, match="would be lost"):
        _make(folder, overwrite=True)
    with VerdictStore.open(folder) as store:
        assert store.decided("Ann") == {pair_id(*PAIR): "similar"}


def test_overwrite_notices_verdicts_of_the_meantime_and_unreadable_ones(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    _make(folder)

    def review() -> None:
        with VerdictStore.open(folder) as store:
            store.add_cluster(cluster_key("ab"), reviewer="Ann", decision="all_one", groups=["ab"], kept=["a"])

    with pytest.raises(OutputFolderError, match="1 on clusters"):
        _make(folder, overwrite=True, while_building=review)
    (folder / "review.db").write_bytes(b"damaged " * 1000)
    with pytest.raises(OutputFolderError, match="may hold verdicts"):
        _make(folder, overwrite=True)
