"""Audits of planted truth, and the laws that hold for any audit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from auscult.audit import Audit, AuditConfig, audit
from auscult.comparison import compare
from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.errors import CorpusError, DescriptorMismatchError, OutputFolderError, StoreError
from auscult.indexing import index
from auscult.inputs import source_of
from auscult.vectors import Vectors
from conftest import sound

WINDOW_S = 3.0
CONFIG = AuditConfig(duration_s=WINDOW_S)
BY_BOTH = [{"duration_s": WINDOW_S, "tau": "fdr"}, pytest.param({"descriptor": "contrast"}, marks=pytest.mark.slow)]
PLANTED = {"copy-0.wav": 3, "copy-1.wav": 12, "copy-2.wav": 31, "copy-3.wav": 44}


@pytest.fixture
def sets(write_sounds, tmp_path: Path) -> dict[str, Path]:
    """60 training clips, 13 generated of which four are noisy copies, 30 background clips."""
    folders = {
        "references": write_sounds("training", 60, duration_s=WINDOW_S),
        "generated": write_sounds("generated", 9, first=200, duration_s=WINDOW_S),
        "background": write_sounds("background", 30, first=400, duration_s=WINDOW_S),
    }
    rng = np.random.default_rng(0)
    for name, number in PLANTED.items():
        copy = 0.5 * sound(number, WINDOW_S) + 1e-3 * rng.standard_normal(48_000)
        sf.write(folders["generated"] / name, copy, 16_000)
    return folders


def run(sets: dict[str, Path], output: Path, config: AuditConfig = CONFIG, **options) -> Audit:
    corpora = {role: open_corpus(folder) for role, folder in sets.items()}
    background = corpora.get("background")
    return audit(corpora["generated"], corpora["references"], background, output=output, config=config, **options)


def test_planted_copies_are_found_and_nothing_else(sets, tmp_path: Path) -> None:
    result = run(sets, tmp_path / "audit")
    flagged = [row for row in result.matches().to_pylist() if row["flagged"]]
    assert {row["query_id"]: row["reference_id"] for row in flagged} == {k: f"{n:04d}.wav" for k, n in PLANTED.items()}
    assert result.card["counts"] == {"generated": 13, "compared": 13, "flagged": 4, "skipped": 0}
    assert result.card["threshold"]["separated"]
    for row in result.matches().to_pylist():
        assert row["score"] == pytest.approx(row["similarity"] - row["bias"], abs=1e-12)
        assert row["query_end_s"] - row["query_start_s"] == pytest.approx(WINDOW_S, abs=1e-3)
    assert not (tmp_path / "audit.partial").exists()


def test_scores_equal_the_formula(sets, tmp_path: Path) -> None:
    result = run(sets, tmp_path / "audit")
    stores = {role: source_of(str(tmp_path / "audit" / "stores" / role)).load() for role in sets}
    unit = {
        role: v.vectors.astype(float) / np.linalg.norm(v.vectors.astype(float), axis=1, keepdims=True)
        for role, v in stores.items()
    }
    similarity = unit["generated"] @ unit["references"].T
    bias = 0.5 * np.sort(unit["generated"] @ unit["background"].T, axis=1)[:, -5:].mean(axis=1)
    ids, reference_ids = stores["generated"].clip_ids.tolist(), stores["references"].clip_ids.tolist()
    for row in result.matches().to_pylist():
        query = ids.index(row["query_id"])
        order = np.argsort(-similarity[query])
        assert reference_ids.index(row["reference_id"]) == order[row["rank"] - 1]
        assert row["score"] == pytest.approx(similarity[query][order[row["rank"] - 1]] - bias[query], abs=1e-6)


def test_order_of_clips_changes_nothing(sets, tmp_path: Path) -> None:
    result = run(sets, tmp_path / "audit")
    stores = {role: source_of(str(tmp_path / "audit" / "stores" / role)).load() for role in sets}
    rng = np.random.default_rng(5)
    shuffled = {role: v.subset(rng.permutation(v.clips.num_rows)) for role, v in stores.items()}
    again = compare(shuffled["generated"], shuffled["references"], shuffled["background"], config=CONFIG)
    key = [("query_id", "ascending"), ("rank", "ascending")]
    assert again.matches.sort_by(key).to_pylist() == result.matches().sort_by(key).to_pylist()
    assert again.threshold.tau == result.card["threshold"]["tau"]


def test_a_set_against_itself_does_not_match_clips_with_themselves(sets, tmp_path: Path) -> None:
    result = run({"generated": sets["references"], "references": sets["references"]}, tmp_path / "audit")
    assert all(row["query_id"] != row["reference_id"] for row in result.matches().to_pylist())
    top = {row["query_id"]: row["score"] for row in result.matches().to_pylist() if row["rank"] == 1}
    own = {row["reference_id"]: row["score"] for row in result.training().to_pylist()}
    assert top == pytest.approx(own)


def test_an_identical_file_under_the_same_name_is_found(sets, tmp_path: Path) -> None:
    shutil.copy(sets["references"] / "0007.wav", sets["generated"] / "0007.wav")
    best = next(row for row in run(sets, tmp_path / "audit").matches().to_pylist() if row["query_id"] == "0007.wav")
    assert (best["reference_id"], best["flagged"], round(best["similarity"], 6)) == ("0007.wav", True, 1.0)


def test_without_background_the_match_itself_is_no_background(sets, tmp_path: Path) -> None:
    del sets["background"]
    result = run(sets, tmp_path / "audit")
    flagged = {row["query_id"] for row in result.matches().to_pylist() if row["flagged"]}
    assert flagged == set(PLANTED)
    assert any("No background set" in warning for warning in result.card["warnings"])


def test_background_that_shares_clips_with_the_references_is_warned_of(sets, tmp_path: Path) -> None:
    shutil.copy(sets["references"] / "0001.wav", sets["background"] / "x.wav")
    assert any("1 background clips are also training clips" in w for w in run(sets, tmp_path / "audit").card["warnings"])


def test_copy_of_a_stretch_of_a_long_recording_is_found_where_it_is(sets, tmp_path: Path) -> None:
    long = np.concatenate([sound(n, WINDOW_S) for n in range(700, 706)])
    sf.write(sets["references"] / "long.wav", long, 16_000)
    sf.write(sets["generated"] / "stretch.wav", sound(703, WINDOW_S), 16_000)
    best = next(row for row in run(sets, tmp_path / "audit").matches().to_pylist() if row["query_id"] == "stretch.wav")
    assert (best["reference_id"], best["reference_start_s"], best["lag_s"], best["flagged"]) == ("long.wav", 9.0, -9.0, True)


def test_silent_and_unreadable_queries_are_counted(sets, tmp_path: Path) -> None:
    sf.write(sets["generated"] / "silent.wav", np.zeros(16_000), 16_000)
    (sets["generated"] / "broken.wav").write_bytes(b"")
    result = run(sets, tmp_path / "audit")
    assert result.card["counts"] == {"generated": 14, "compared": 13, "flagged": 4, "skipped": 1}
    silent = next(row for row in result.queries().to_pylist() if row["query_id"] == "silent.wav")
    assert (silent["score"], silent["flagged"], silent["flags"]) == (None, False, ["silent"])


def test_all_silent_or_empty_inputs_are_refused(sets, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(CorpusError, match="references: no clip to compare"):
        run({**sets, "references": tmp_path / "none"}, tmp_path / "a")
    sf.write(tmp_path / "none" / "silent.wav", np.zeros(100), 16_000)
    with pytest.raises(CorpusError, match="all silent"):
        run({**sets, "generated": tmp_path / "none"}, tmp_path / "b")


def test_one_reference_and_a_given_tau(sets, tmp_path: Path, write_sounds) -> None:
    single = write_sounds("single", 1, first=3, duration_s=WINDOW_S)
    result = run({**sets, "references": single}, tmp_path / "audit", AuditConfig(duration_s=WINDOW_S, tau=0.51))
    assert {row["query_id"] for row in result.matches().to_pylist() if row["flagged"]} == {"copy-0.wav"}
    with pytest.raises(ValueError, match="at least 20 training clips"):
        run({**sets, "references": single}, tmp_path / "other")


def test_background_smaller_than_k_is_refused(sets, tmp_path: Path, write_sounds) -> None:
    with pytest.raises(ValueError, match="at least 7 unrelated clips"):
        run({**sets, "background": write_sounds("few", 3, first=900)}, tmp_path / "audit")


def test_tau_matched_by_count(sets, tmp_path: Path) -> None:
    run(sets, tmp_path / "first", AuditConfig(duration_s=WINDOW_S, tau=0.0))
    matched = run(sets, tmp_path / "second", AuditConfig(duration_s=WINDOW_S, tau=f"match:{tmp_path / 'first'}"))
    assert matched.card["counts"]["flagged"] == 13


def test_unequal_stores_never_meet(sets, tmp_path: Path) -> None:
    stores = {
        role: index(open_corpus(sets[role]), tmp_path / f"store-{role}", descriptor=load_descriptor("mel", duration_s=d))
        for role, d in (("generated", 1.0), ("references", 2.0))
    }
    with pytest.raises(DescriptorMismatchError, match="described differently"):
        audit(stores["generated"], stores["references"], output=tmp_path / "a", config=CONFIG)
    with pytest.raises(DescriptorMismatchError, match=r"duration_s=3.0 was asked for"):
        audit(stores["generated"], open_corpus(sets["references"]), output=tmp_path / "a", config=AuditConfig(duration_s=3.0))


def test_output_that_is_something_else_or_finished_is_left_alone(sets, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    with pytest.raises(OutputFolderError, match="not an auscult audit"):
        run(sets, tmp_path / "mine", overwrite=True)
    run(sets, tmp_path / "audit")
    with pytest.raises(OutputFolderError, match="--overwrite"):
        run(sets, tmp_path / "audit")
    run(sets, tmp_path / "audit", overwrite=True)


def test_a_stopped_audit_is_no_audit_and_is_continued(sets, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("auscult.audit.compare", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(sets, tmp_path / "audit")
    with pytest.raises(StoreError, match="same command again"):
        Audit.open(tmp_path / "audit")
    monkeypatch.undo()
    kept = (tmp_path / "audit.partial" / "stores" / "references" / "clips.parquet").stat().st_mtime_ns
    result = run(sets, tmp_path / "audit")
    assert (result.path / "stores" / "references" / "clips.parquet").stat().st_mtime_ns == kept


def test_card_can_be_read_by_anyone(sets, tmp_path: Path) -> None:
    card = json.loads((run(sets, tmp_path / "audit").path / "card.json").read_text("utf-8"))
    assert card["config"]["beta"] == 0.5
    assert {"auscult", "python", "numpy", "soundfile"} <= set(card["versions"])
    assert all(len(facts["content_sha256"]) == 64 for facts in card["inputs"].values())


@pytest.mark.parametrize("bad", [{"k": 0}, {"beta": 2.0}, {"tau": "often"}, {"tau": float("nan")}])
def test_bad_settings(bad) -> None:
    with pytest.raises(ValueError, match=r"should be"):
        AuditConfig(**bad)


def test_every_clip_has_its_top_k_over_all_windows() -> None:
    """With several windows a clip, the k listed clips are those of the full matrix of windows."""
    import pyarrow as pa

    rng = np.random.default_rng(0)

    def make(n_clips: int, prefix: str) -> Vectors:
        owners = np.sort(rng.integers(0, n_clips, 5 * n_clips))
        clips = pa.table(
            {
                "clip_id": [f"{prefix}{n:03d}" for n in range(n_clips)],
                "path": [f"/{prefix}{n}" for n in range(n_clips)],
                "start_s": [0.0] * n_clips,
                "duration_s": [60.0] * n_clips,
                "caption": pa.nulls(n_clips, pa.string()),
                "sample_digest": [f"{prefix}{n}" for n in range(n_clips)],
                "flags": pa.array([[]] * n_clips, pa.list_(pa.string())),
                "n_windows": [5] * n_clips,
            }
        )
        spec = load_descriptor("mel").spec
        vectors = rng.standard_normal((len(owners), 12)).astype(np.float32)
        return Vectors(vectors, owners, np.arange(len(owners)) * 1.0, clips, 10.0, spec)

    generated, references, background = make(10, "q"), make(40, "r"), make(20, "b")
    result = compare(generated, references, background, config=AuditConfig(k=6, tau=0.3))
    unit = [v.vectors / np.linalg.norm(v.vectors, axis=1, keepdims=True) for v in (generated, references, background)]
    bias = 0.5 * np.sort(unit[0] @ unit[2].T, axis=1)[:, -5:].mean(axis=1)
    scores = unit[0] @ unit[1].T - bias[:, None]
    for clip in np.unique(generated.clip):
        best = {
            int(reference): scores[np.ix_(generated.clip == clip, references.clip == reference)].max()
            for reference in np.unique(references.clip)
        }
        expected = sorted(best, key=lambda reference: -best[reference])[:6]
        rows = [row for row in result.matches.to_pylist() if row["query_id"] == f"q{clip:03d}"]
        assert [row["reference_id"] for row in rows] == [f"r{reference:03d}" for reference in expected]
        np.testing.assert_allclose([row["score"] for row in rows], [best[r] for r in expected], atol=1e-6)


def test_a_failed_run_with_other_inputs_leaves_nothing_behind(sets, tmp_path: Path, write_sounds) -> None:
    wrong = {**sets, "generated": write_sounds("wrong", 6, first=500, duration_s=WINDOW_S)}
    with pytest.raises(ValueError, match="unrelated clips"):
        run({**wrong, "background": write_sounds("few", 3, first=900)}, tmp_path / "audit")
    result = run(sets, tmp_path / "audit")
    assert result.card["counts"]["generated"] == 13
    assert not (result.path / "task.json").exists()


def test_a_clip_removed_before_a_stopped_audit_is_continued_is_not_audited(sets, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("auscult.audit.compare", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(sets, tmp_path / "audit")
    monkeypatch.undo()
    (sets["generated"] / "copy-0.wav").unlink()
    assert run(sets, tmp_path / "audit").card["counts"]["generated"] == 12


def test_output_may_be_a_link_to_a_folder(sets, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run(sets, tmp_path / "link")
    assert (tmp_path / "real" / "card.json").is_file()


def test_an_unfinished_store_is_no_source(sets, tmp_path: Path) -> None:
    index(open_corpus(sets["references"]), tmp_path / "store", descriptor=load_descriptor("mel", duration_s=1.0))
    (tmp_path / "store" / "card.json").unlink()
    with pytest.raises(StoreError, match="not complete"):
        source_of(str(tmp_path / "store"))


def test_a_descriptor_that_the_stores_do_not_hold_is_refused(sets, tmp_path: Path) -> None:
    store = index(open_corpus(sets["references"]), tmp_path / "store", descriptor=load_descriptor("mel", duration_s=1.0))
    for config, error, message in (
        (AuditConfig(descriptor="clap"), DescriptorMismatchError, "descriptor=clap was asked for"),
        (AuditConfig(descriptor="nope"), ValueError, "unknown descriptor 'nope'; there are"),
        (AuditConfig(duration_s=0), ValueError, "duration must be positive"),
        (AuditConfig(descriptor="contrast", duration_s=5), ValueError, "duration is a setting of mel only"),
    ):
        with pytest.raises(error, match=message):
            audit(store, store, output=tmp_path / "a", config=config)


def test_identical_samples_are_flagged_whatever_their_score(sets, tmp_path: Path) -> None:
    noise = np.round(3000 * np.random.default_rng(0).standard_normal(48_000)).astype(np.int16)  # steady: near to everything
    sf.write(sets["references"] / "steady.wav", noise, 16_000)
    sf.write(sets["generated"] / "steady.flac", noise, 16_000)
    result = run(sets, tmp_path / "audit", AuditConfig(duration_s=WINDOW_S, tau=0.9))
    assert [row["query_id"] for row in result.queries().to_pylist() if row["flagged"]] == ["steady.flac"]
    assert any("exactly the samples" in warning for warning in result.card["warnings"])


def test_generated_clips_that_are_training_files_are_told(sets, tmp_path: Path) -> None:
    result = run({**sets, "generated": sets["references"]}, tmp_path / "audit")
    assert any("60 generated clips are the same files as training clips" in warning for warning in result.card["warnings"])


def test_overwrite_spares_what_is_not_ours(sets, tmp_path: Path) -> None:
    run(sets, tmp_path / "audit")
    (tmp_path / "audit" / "notes.txt").write_text("mine")
    with pytest.raises(OutputFolderError, match=r"notes\.txt"):
        run(sets, tmp_path / "audit", overwrite=True)
    assert (tmp_path / "audit" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("settings", BY_BOTH)
def test_takes_of_one_recording_do_not_pass_for_chance(sets, tmp_path: Path, settings: dict) -> None:
    """Training clips in two takes each, which are their own null: apart by recording, only copies stand out."""
    rng = np.random.default_rng(1)
    for number in range(30):
        take = 0.7 * sound(number, WINDOW_S) + 2e-3 * rng.standard_normal(48_000)
        sf.write(sets["references"] / f"{number:04d}-b.wav", take, 16_000)
    shutil.copy(sets["generated"] / "copy-0.wav", sets["generated"] / "0003.wav")  # looks like a take of what it copies
    null = open_corpus(sets["references"])
    apart = run(sets, tmp_path / "apart", AuditConfig(group=r"^(\d+)", **settings), null=null)
    assert apart.card["calibration"]["null_clips"] == 90
    for row in [*apart.null().to_pylist(), *apart.training().to_pylist()]:
        assert row["nearest_id"][:4] != (row.get("clip_id") or row["reference_id"])[:4]
    found = {row["query_id"]: (row["reference_id"][:4], row["p_value"]) for row in apart.queries().to_pylist()}
    for name, number in {"0003.wav": 3, **PLANTED}.items():
        assert found[name] == (f"{number:04d}", pytest.approx(1 / 91))
    together = run(sets, tmp_path / "together", AuditConfig(**settings))
    nearest = {row["reference_id"]: row["nearest_id"] for row in together.training().to_pylist()}
    assert all(nearest[f"{number:04d}.wav"] == f"{number:04d}-b.wav" for number in range(30))


@pytest.mark.parametrize("settings", BY_BOTH)
def test_a_sound_under_the_name_of_another_recording_is_no_chance(sets, tmp_path: Path, settings: dict) -> None:
    samples = 0.8 * sound(5, WINDOW_S) + 1e-4 * np.random.default_rng(0).standard_normal(48_000)
    sf.write(sets["references"] / "1005.wav", samples, 16_000)
    config = AuditConfig(group=r"^(\d+)", **settings)
    card = run(sets, tmp_path / "audit", config, null=open_corpus(sets["references"])).card
    assert card["calibration"]["null_clips"] == 61 - 2
    assert any("2 null clips score far above all others" in warning for warning in card["warnings"])


def test_null_clips_of_another_recording_with_the_samples_of_a_training_clip_are_left_out(sets, tmp_path: Path) -> None:
    shutil.copytree(sets["references"], tmp_path / "null")
    shutil.copy(tmp_path / "null" / "0007.wav", tmp_path / "null" / "1007.wav")
    config = AuditConfig(duration_s=WINDOW_S, group=r"^(\d+)")
    card = run(sets, tmp_path / "audit", config, null=open_corpus(tmp_path / "null")).card
    assert card["calibration"]["null_clips"] == 60
    assert any("1 null clips are also training clips" in warning for warning in card["warnings"])


@pytest.mark.parametrize(
    ("group", "message"),
    [("(", "no regular expression"), (r"\d+", "needs parentheses"), (r"^(x\d+)", "does not match 60 of 60")],
)
def test_a_group_that_names_no_recording_is_refused(sets, tmp_path: Path, group: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(sets, tmp_path / "audit", AuditConfig(duration_s=WINDOW_S, group=group))
