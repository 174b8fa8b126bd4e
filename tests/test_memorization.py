"""The replication columns against an audit's own tables and counts planted in it; audits of other clips are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from scipy import stats

from auscult.audit import Audit, AuditConfig, audit
from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.errors import StoreError
from auscult.indexing import index
from auscult.metrics.memorization import COLUMNS, OtherClipsError, replication_columns
from auscult.metrics.scoreboard import board
from auscult.metrics.scores import SystemResult
from auscult.review.verdicts import VerdictStore
from auscult.store import DescriptorStore
from conftest import sound

RATE_HZ, WINDOW_S = 16_000, 3.0
PLANTED = {"copy-0.wav": 3, "copy-1.wav": 12, "copy-2.wav": 17}
TAU = 0.51


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A real audit of 12 generated clips: eight new sounds, three noisy copies, one silent."""
    place = tmp_path_factory.mktemp("memorization")
    for name, numbers in (("training", range(24)), ("generated", range(200, 208)), ("background", range(400, 424))):
        (place / name).mkdir()
        for number in numbers:
            sf.write(place / name / f"{number:04d}.wav", sound(number, WINDOW_S), RATE_HZ)
    rng = np.random.default_rng(0)
    for name, number in PLANTED.items():
        copy = 0.5 * sound(number, WINDOW_S) + 1e-3 * rng.standard_normal(round(WINDOW_S * RATE_HZ))
        sf.write(place / "generated" / name, copy, RATE_HZ)
    sf.write(place / "generated" / "silent.wav", np.zeros(round(WINDOW_S * RATE_HZ)), RATE_HZ)
    corpora = [open_corpus(place / name) for name in ("generated", "training", "background")]
    audit(*corpora, output=place / "audit", config=AuditConfig(duration_s=WINDOW_S, tau=TAU))
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The audit, to change."""
    return Path(shutil.copytree(made / "audit", tmp_path / "audit"))


def clips_of(folder: Path) -> pa.Table:
    return DescriptorStore.open(folder / "stores" / "generated").clips()


def test_columns_are_those_of_the_audit(made: Path) -> None:
    found = replication_columns(made / "audit", clips_of(made / "audit"))
    opened = Audit.open(made / "audit")
    scores = opened.queries()["score"].drop_null().to_numpy()
    assert tuple(found) == COLUMNS == tuple(score.key for score in found.values())
    assert len(scores) == 11
    assert found["mean_similarity"].value == pytest.approx(scores.mean())
    assert found["similarity_95"].value == pytest.approx(np.quantile(scores, 0.95))
    assert found["share_over_tau"].value == pytest.approx(len(PLANTED) / 11)  # the planted copies and nothing else
    peer = stats.binomtest(len(PLANTED), 11).proportion_ci(0.95, method="exact")
    assert (found["share_over_tau"].low, found["share_over_tau"].high) == pytest.approx((peer.low, peer.high))
    for score in found.values():
        assert score.backend == opened.card["descriptor"]
        assert score.higher_is_better is False
        assert (score.n_generated, score.n_reference) == (11, 24)
    assert "1 of 12 clips are silent" in found["mean_similarity"].note
    assert "over tau = 0.51 by the rule 'fixed'" in found["share_over_tau"].note
    assert found["verified_rate"].value is None
    assert "nobody has given a verdict" in (found["verified_rate"].reason or "")


def test_shares_over_unlike_taus_are_not_compared(made: Path, folder: Path) -> None:
    """A share of 0 over a high tau would be "better" than one of 3 in 11 over a low one, whatever the systems copy."""
    from auscult.folders import read_card, write_card

    def compared(other: Path) -> dict[str, list[str]]:
        systems = {"low": made / "audit", "other": other}
        table = board([SystemResult(name, replication_columns(one, clips_of(one))) for name, one in systems.items()])
        return {row.key: [table.footnotes[number - 1] for number in row.notes] for row in table.rows}

    def unlike(notes: list[str]) -> list[str]:
        return [note for note in notes if note.startswith("Not comparable")]

    assert not any(unlike(notes) for notes in compared(folder).values())
    card = read_card(folder)
    card["threshold"]["tau"] = 0.9
    write_card(folder, card.pop("kind"), card)
    found = compared(folder)
    assert unlike(found["share_over_tau"]) == ["Not comparable: measured with unlike tau (low: 0.51, other: 0.9)."]
    assert not unlike(found["mean_similarity"])
    card["config"]["beta"] = 0.7
    card["inputs"]["references"]["content_sha256"] = "e" * 64
    write_card(folder, "audit", card)
    for name, notes in compared(folder).items():
        if name == "verified_rate":  # nobody has given a verdict
            continue
        assert any("unlike beta (low: 0.5, other: 0.7)" in note for note in notes)
        assert any("unlike training clips" in note and "other: eeeeeeeeeeee" in note for note in notes)


def test_intervals_hold_their_values_and_the_seed_decides(made: Path) -> None:
    clips = clips_of(made / "audit")
    first, again, other = (replication_columns(made / "audit", clips, seed=seed) for seed in (0, 0, 1))
    for name in COLUMNS[:2]:
        assert first[name].low < first[name].value <= first[name].high
    scores = Audit.open(made / "audit").queries()["score"].drop_null().to_numpy()
    # 1.96 standard errors either side; 200 draws of 11 clips wobble by a fifth
    assert first["mean_similarity"].high - first["mean_similarity"].low == pytest.approx(
        2 * 1.96 * scores.std() / np.sqrt(11), rel=0.25
    )
    assert first == again
    assert other["mean_similarity"].value == first["mean_similarity"].value
    assert other["mean_similarity"].low != first["mean_similarity"].low


def test_a_census_of_verdicts_gives_the_rate_with_an_interval_for_the_system(folder: Path) -> None:
    queries = Audit.open(folder).queries().to_pylist()
    with VerdictStore.open(folder) as store:
        for row in queries:
            if row["reference_id"] is not None:
                real = row["query_id"] in ("copy-0.wav", "copy-1.wav")
                verdict = "replication" if real else "different"
                store.add(row["query_id"], row["reference_id"], reviewer="ann", verdict=verdict)
    found = replication_columns(folder, clips_of(folder))["verified_rate"]
    peer = stats.binomtest(2, 11).proportion_ci(0.95, method="exact")
    assert found.value == pytest.approx(2 / 11)
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high))


def test_part_of_the_verdicts_gives_a_lower_bound_that_says_so(folder: Path) -> None:
    best = {row["query_id"]: row["reference_id"] for row in Audit.open(folder).queries().to_pylist()}
    with VerdictStore.open(folder) as store:
        store.add("copy-1.wav", best["copy-1.wav"], reviewer="ann", verdict="replication")
        store.add("copy-2.wav", best["copy-2.wav"], reviewer="ann", verdict="different")
    found = replication_columns(folder, clips_of(folder))["verified_rate"]
    assert found.value == found.low == pytest.approx(1 / 11)
    assert found.high == pytest.approx(10 / 11)  # all but the one that was refuted
    assert found.note.startswith("At least")
    with VerdictStore.open(folder) as store:
        for name in ("copy-1.wav", "copy-2.wav"):
            store.add(name, best[name], reviewer="ann", verdict="withdrawn")
    found = replication_columns(folder, clips_of(folder))["verified_rate"]
    assert found.value is None
    assert "nobody has given a verdict on a pair that this audit lists" in (found.reason or "")


def test_names_and_order_do_not_matter(made: Path) -> None:
    clips = clips_of(made / "audit")
    renamed = clips.take(np.arange(clips.num_rows)[::-1]).set_column(
        0, "clip_id", pa.array([f"moved/{number}.wav" for number in range(clips.num_rows)])
    )
    assert replication_columns(made / "audit", renamed) == replication_columns(made / "audit", clips)


def test_clips_generated_again_in_place_are_refused(made: Path) -> None:
    clips = clips_of(made / "audit")
    digests = clips["sample_digest"].to_pylist()
    changed = clips.set_column(clips.column_names.index("sample_digest"), "sample_digest", pa.array(["0" * 32, *digests[1:]]))
    with pytest.raises(OtherClipsError) as error:
        replication_columns(made / "audit", changed)
    first = clips["clip_id"][0].as_py()
    assert f"1 evaluated clips are not in it ({first}), 1 of its clips are not evaluated ({first})" in str(error.value)
    assert "1 of these have the same id and other samples, so they were generated again" in str(error.value)


def test_audits_of_more_less_or_other_clips_are_refused(made: Path) -> None:
    clips = clips_of(made / "audit")
    with pytest.raises(OtherClipsError, match=r"12 generated clips are not the 9 that.* 3 of its clips are not.*Evaluate all"):
        replication_columns(made / "audit", clips.slice(0, 9))
    with pytest.raises(
        OtherClipsError, match=r"not the 24 that are evaluated: 12 evaluated clips .* \.\.\.\)\. Audit the clips"
    ):
        # the same clips twice are not the same set
        replication_columns(made / "audit", pa.concat_tables([clips, clips]))
    training = DescriptorStore.open(made / "audit" / "stores" / "references").clips()
    with pytest.raises(OtherClipsError, match="24 evaluated clips are not in it .* They share no clip.* another system"):
        replication_columns(made / "audit", training)


def test_an_audit_of_a_store_that_lies_elsewhere_is_known_by_its_digest(made: Path, tmp_path: Path) -> None:
    descriptor = load_descriptor("mel", duration_s=WINDOW_S)
    store = index(open_corpus(made / "generated"), tmp_path / "store", descriptor=descriptor)
    corpora = [open_corpus(made / name) for name in ("training", "background")]
    audit(store, *corpora, output=tmp_path / "audit", config=AuditConfig(tau=TAU))
    clips = store.clips().drop_columns(["start_s"])
    assert replication_columns(tmp_path / "audit", clips)["share_over_tau"].value == pytest.approx(len(PLANTED) / 11)
    with pytest.raises(OtherClipsError, match="came from a store and are not the 11 that are evaluated"):
        replication_columns(tmp_path / "audit", clips.slice(0, 11))


def test_all_silent_is_no_good_score(folder: Path) -> None:
    """A system that falls silent copies nothing; its columns stay empty, and say why."""
    queries = pq.read_table(folder / "queries.parquet")
    empty = queries.set_column(queries.column_names.index("score"), "score", pa.nulls(queries.num_rows, pa.float64()))
    rewrite(folder, empty)
    found = replication_columns(folder, clips_of(folder))
    assert all(score.value is None and "all are silent" in (score.reason or "") for score in found.values())


def rewrite(folder: Path, queries: pa.Table) -> None:
    """Put another table of queries into an audit, its card saying so."""
    from auscult.folders import file_digest, read_card, write_card

    pq.write_table(queries, folder / "queries.parquet")
    card = read_card(folder)
    card["files"]["queries.parquet"] = file_digest(folder / "queries.parquet")
    write_card(folder, card.pop("kind"), card)


def test_an_audit_that_could_not_decide_has_no_share(folder: Path) -> None:
    from auscult.folders import read_card, write_card

    card = read_card(folder)
    card["threshold"] |= {"rule": "fdr", "separated": False}
    card["counts"]["flagged"] = 0
    card["calibration"]["null_clips"] = 7
    write_card(folder, card.pop("kind"), card)
    found = replication_columns(folder, clips_of(folder))
    assert found["share_over_tau"].value is None
    assert "7 null scores are too few" in (found["share_over_tau"].reason or "")
    assert found["mean_similarity"].value is not None


def test_what_is_no_whole_audit_is_refused(folder: Path, tmp_path: Path) -> None:
    clips = clips_of(folder)
    (folder / "queries.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="queries.parquet: its bytes are not those that were written; make the audit again"):
        replication_columns(folder, clips)
    with pytest.raises(StoreError, match="does not exist"):
        replication_columns(tmp_path / "nowhere", clips)
