"""Several audits of the same clips: the ensemble's scores, and how far their findings agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from auscult.audit import AuditConfig, audit
from auscult.corpus import open_corpus
from auscult.ensembles import Scores, combine, open_scores, overlap
from auscult.errors import StoreError


def scores(name: str, matrix: np.ndarray, flagged: list[int], k: int = 2, training: np.ndarray | None = None) -> Scores:
    """An audit with the given scores (queries, references), of which the best k are listed."""
    order = np.argsort(-matrix, axis=1)
    rows = [(f"q{q}", f"r{r}", matrix[q, r]) for q in range(len(matrix)) for r in order[q, :k]]
    queries = {
        "query_id": [f"q{q}" for q in range(len(matrix))],
        "reference_id": [f"r{r}" for r in order[:, 0]],
        "score": pa.array(matrix.max(axis=1), from_pandas=True),
        "flagged": [q in flagged for q in range(len(matrix))],
    }
    own = np.array([0.0, 1.0, 2.0]) if training is None else training
    matches = pa.table(dict(zip(("query_id", "reference_id", "score"), zip(*rows, strict=True), strict=True)))
    return Scores(name, matches, pa.table(queries), pa.table({"score": own}))


@pytest.fixture
def three() -> list[Scores]:
    rng = np.random.default_rng(0)
    return [
        scores(name, scale * rng.normal(size=(12, 7)), [0, 4, 5], k, scale * rng.normal(size=30) + shift)
        for name, scale, shift, k in (("mel", 1.0, 0.0, 2), ("clap", 0.1, 0.3, 3), ("other", 40.0, -5.0, 1))
    ]


def test_combined_scores_equal_the_definition(three: list[Scores]) -> None:
    expected: dict[tuple[str, str], tuple[float, str]] = {}
    for one in three:
        own = one.training["score"].to_numpy()
        for row in one.matches.to_pylist():
            z = (row["score"] - own.mean()) / own.std()
            pair = row["query_id"], row["reference_id"]
            expected[pair] = max(expected.get(pair, (-np.inf, "")), (z, one.name))
    table = combine(three)
    assert table.column_names == ["query_id", "reference_id", "score", "descriptor"]
    found = {(row["query_id"], row["reference_id"]): (row["score"], row["descriptor"]) for row in table.to_pylist()}
    assert found.keys() == expected.keys()
    for pair, (score, name) in expected.items():
        assert found[pair] == (pytest.approx(score), name)
    assert np.all(np.diff(table["score"].to_numpy()) <= 0)
    assert combine(three[::-1]) == table


def test_scale_and_offset_of_a_descriptor_change_nothing(three: list[Scores]) -> None:
    mel = three[0]

    def moved(table: pa.Table) -> pa.Table:
        place = table.column_names.index("score")
        return table.set_column(place, "score", pa.array(7.0 * table["score"].to_numpy() - 3.0))

    other = Scores("mel", moved(mel.matches), moved(mel.queries), moved(mel.training))
    np.testing.assert_allclose(combine([other, three[1]])["score"], combine([mel, three[1]])["score"], atol=1e-9)
    left, right = overlap([three[1], other]).to_pylist(), overlap([three[1], mel]).to_pylist()
    assert left[0].pop("tau_second") == pytest.approx(7.0 * right[0].pop("tau_second") - 3.0)
    assert left == right


def test_overlap_counts() -> None:
    first = np.zeros((6, 3))
    first[[0, 1, 2], [0, 1, 2]] = 5.0  # flags 0, 1, 2
    second = np.zeros((6, 3))
    second[[1, 2, 3], [1, 0, 0]] = (0.7, 0.9, 0.8)  # its best three: 1 (same training clip), 2 (another), 3
    second[4, 1] = 0.5
    (row,) = overlap([scores("mel", first, [0, 1, 2]), scores("clap", second, [])]).to_pylist()
    assert row.pop("tau_second") == pytest.approx(0.6)
    assert row == {
        "first": "mel",
        "second": "clap",
        "flagged_first": 3,
        "flagged_second": 3,
        "both": 2,
        "same_reference": 1,
    }


def test_overlap_of_clips_without_a_score_and_of_nothing() -> None:
    first = np.eye(4)
    silent = np.full((4, 4), np.nan)
    (row,) = overlap([scores("mel", first, [0, 1]), scores("clap", silent, [])]).to_pylist()
    assert (row["flagged_first"], row["flagged_second"], row["both"]) == (2, 0, 0)
    (row,) = overlap([scores("mel", first, []), scores("clap", 2 * first, [0])]).to_pylist()
    assert (row["flagged_first"], row["flagged_second"], row["both"]) == (0, 0, 0)
    assert len(combine([scores("mel", first, []), scores("clap", silent, [])])) == 8


def test_every_two_audits_in_order(three: list[Scores]) -> None:
    rows = overlap(three).to_pylist()
    assert [(row["first"], row["second"]) for row in rows] == [("mel", "clap"), ("mel", "other"), ("clap", "other")]
    assert all(row["flagged_second"] == 3 and 0 <= row["same_reference"] <= row["both"] <= 3 for row in rows)


def test_what_cannot_be_compared(three: list[Scores]) -> None:
    with pytest.raises(ValueError, match="at least two audits"):
        overlap(three[:1])
    with pytest.raises(ValueError, match=r"unequal generated clips: 9 are in one only, for example q10"):
        combine([three[0], scores("clap", np.eye(3), [])])
    with pytest.raises(ValueError, match="no spread"):
        combine([three[0], scores("clap", np.zeros((12, 3)), [], training=np.ones(30))])


def test_compare_on_the_command_line(write_sounds, tmp_path: Path) -> None:
    training, generated = write_sounds("training", 30), write_sounds("generated", 5, first=28)
    for name, duration_s in (("a", 1.0), ("b", 0.5)):
        config = AuditConfig(duration_s=duration_s, tau=0.52)
        audit(open_corpus(generated), open_corpus(training), output=tmp_path / name, config=config)
    assert [one.name for one in open_scores([tmp_path / "a", tmp_path / "b"])] == [
        "mel/1(duration_s=1.0)",
        "mel/1(duration_s=0.5)",
    ]
    (tmp_path / "again").mkdir()
    config = AuditConfig(duration_s=1.0, tau=0.52)
    audit(open_corpus(generated), open_corpus(training), output=tmp_path / "again" / "a", config=config)
    audit(open_corpus(generated), open_corpus(training), output=tmp_path / "again" / "c", config=config)
    folders = [tmp_path / "a", tmp_path / "again" / "c"]
    assert [one.name for one in open_scores(folders)] == ["a", "c"]
    assert [one.name for one in open_scores([tmp_path / "a", tmp_path / "again" / "a"])] == [f"{tmp_path.name}/a", "again/a"]
    command = [sys.executable, "-m", "auscult", "compare", "a", "b"]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, timeout=120)

    (row,) = json.loads(run("--json").stdout)["overlap"]
    assert (row["flagged_first"], row["both"], row["same_reference"]) == (2, 2, 2)  # sounds 28 and 29 are in both folders
    result = run("-o", "ensemble.parquet")
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "ensemble.parquet"), result.stderr
    assert "set to flag as many as the first" in result.stdout
    table = pq.read_table(tmp_path / "ensemble.parquet")
    assert {row["query_id"] for row in table.slice(0, 2).to_pylist()} == {"0028.wav", "0029.wav"}
    with pytest.raises(StoreError):
        open_scores([tmp_path, tmp_path / "a"])
    command.pop()
    assert (run().returncode, "at least two audits" in run().stderr) == (2, True)
