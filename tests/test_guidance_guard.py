"""The guard: what an audit flags is made again or withheld, and nothing that is flagged leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

pytest.importorskip("diffusers")

import torch
from typer.testing import CliRunner

import planted_memory
import tiny_pipelines
from auscult.audit import Audit, AuditConfig, audit
from auscult.cli import app
from auscult.corpus import Corpus, open_corpus
from auscult.descriptors import load_descriptor
from auscult.engine import HERE
from auscult.errors import CorpusError, OutputFolderError, StoreError
from auscult.folders import damaged_files, no_progress
from auscult.generation import making
from auscult.generation.calling import Sampling, generate_batch
from auscult.generation.clips import AUDIO, Row, read_rows, write_clip
from auscult.generation.generating import GenerateConfig, Generation, generate
from auscult.generation.order import take_order
from auscult.generation.pipelines import load_pipeline, locate_pipeline
from auscult.generation.prompts import PlannedClip, PromptRow, plan_clips
from auscult.guidance import protecting
from auscult.guidance.amg import AmgConfig
from auscult.guidance.guard_config import GuardConfig, checked_strengths
from auscult.guidance.guarding import _notes, generate_guarded
from auscult.guidance.guided import Guided, LatentChoice, facts_of_clips, merged_traces, strengthened, write_trace
from auscult.guidance.index import ReferenceIndex
from auscult.guidance.protecting import check_enough, described_for_audits, guide_of
from auscult.guidance.rounds import Auditor, Flagged, Rounds, make_and_audit
from auscult.guidance.shifting import at_every_moment
from auscult.guidance.thresholds import measured_thresholds
from auscult.guidance.trace import Trace, TraceRow
from auscult.indexing import index
from auscult.inputs import Source, StoredClips, clips_digest
from conftest import sound

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = sorted(tiny_pipelines.PIPELINES)
SCALE = 3.0

# --- rounds -----------------------------------------------------------------------------------------------------------

Flags = Callable[[Row, int], bool]
"""A clip's row and how many clips are audited with it -> whether the planted auditor flags it."""


def run_rounds(folder: Path, flags: Flags, *, attempts: int = 2, clips: int = 3, silent: Sequence[int] = ()) -> Rounds:
    """Rounds with clips that are tones, and an auditor that is known."""
    plan = plan_clips([PromptRow(number, f"tone {number}") for number in range(clips)], per_prompt=1, seed=0)

    def make(attempt: int, wanted: Sequence[PlannedClip]) -> Mapping[str, Row]:
        where = folder / "attempts" / str(attempt)
        (where / AUDIO).mkdir(parents=True, exist_ok=True)
        rows = {}
        for clip in wanted:
            tone = np.full((1, 100), 0.0 if clip.prompt.number in silent else 0.1 * (1 + attempt), np.float32)
            facts = write_clip(where, clip, tone, 16_000)
            rows[clip.clip_id] = {"clip_id": clip.clip_id, "seed": clip.seed, "attempt": attempt, "fired_steps": 0, **facts}
        return rows

    def auditor(rows: Sequence[Row], manifest: Path, output: Path, progress: Any) -> Flagged:
        assert [row["clip_id"] for row in read_rows(manifest)] == [row["clip_id"] for row in rows]
        found = {row["clip_id"]: {"reference_id": "r", "score": 9.0} for row in rows if flags(row, len(rows))}
        return Flagged(found, 99)

    return make_and_audit(folder, plan, make, auditor, attempts=attempts, progress=no_progress)


def delivered_files(folder: Path) -> set[str]:
    return {path.stem for path in (folder / AUDIO).iterdir()}


def test_what_is_clean_is_delivered_after_one_audit(tmp_path: Path) -> None:
    done = run_rounds(tmp_path, lambda row, among: False)
    assert [row["clip_id"] for row in done.delivered] == ["000000-00", "000001-00", "000002-00"]
    assert (done.withheld, done.audits, len(done.made), done.null_scores) == ([], 1, 1, 99)
    assert delivered_files(tmp_path) == {row["clip_id"] for row in done.delivered}


@pytest.mark.parametrize("attempts", [0, 1, 3])
def test_what_stays_flagged_is_withheld_and_listed(tmp_path: Path, attempts: int) -> None:
    done = run_rounds(tmp_path, lambda row, among: row["clip_id"] == "000001-00", attempts=attempts)
    assert [row["clip_id"] for row in done.delivered] == ["000000-00", "000002-00"]
    (line,) = done.withheld
    assert (line["clip_id"], line["caption"], line["prompt_row"]) == ("000001-00", "tone 1", 1)
    assert [one["attempt"] for one in line["flagged"]] == list(range(attempts + 1))
    seeds = [one["seed"] for one in line["flagged"]]
    assert len(set(seeds)) == max(1, attempts)  # the second attempt has the first one's
    assert all(one["score"] == 9.0 and one["reference_id"] == "r" for one in line["flagged"])
    assert delivered_files(tmp_path) == {"000000-00", "000002-00"}
    assert [len(rows) for rows in done.made] == [3, *[1] * attempts]


@pytest.mark.parametrize("clean_from", [1, 2])
def test_the_attempt_that_is_clean_is_the_one_that_is_delivered(tmp_path: Path, clean_from: int) -> None:
    done = run_rounds(tmp_path, lambda row, among: row["attempt"] < clean_from and row["clip_id"] == "000002-00")
    row = done.delivered[2]
    assert (row["attempt"], done.withheld) == (clean_from, [])
    level = sf.read(tmp_path / row["path"])[0].max()
    assert level == pytest.approx(0.1 * (1 + clean_from), abs=1e-4)
    own = plan_clips([PromptRow(2, "tone")], per_prompt=1, seed=0)[0].seed
    assert (row["seed"] == own) == (clean_from == 1)


def test_what_is_flagged_only_among_the_others_is_withheld_until_nothing_is(tmp_path: Path) -> None:
    """A threshold may depend on the set: here each audit flags the last clip as long as there are more than two."""
    first: list[str] = []

    def flags(row: Row, among: int) -> bool:
        if not first and row["clip_id"] == "000004-00":  # so that there is an audit of the whole
            first.append(row["clip_id"])
            return True
        return row["attempt"] > 0 or (2 < among < 5 and row["clip_id"] == f"{among - 1:06d}-00")

    done = run_rounds(tmp_path, flags, clips=5, attempts=1)
    assert [row["clip_id"] for row in done.delivered] == ["000000-00", "000001-00"]
    assert [row["clip_id"] for row in done.withheld] == ["000002-00", "000003-00", "000004-00"]
    assert delivered_files(tmp_path) == {"000000-00", "000001-00"}
    assert done.audits == 2 + 3


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(None, {"own", "unread"}), (0.01, {"own", "unread", "above all"}), (0.15, {"own", "unread", "above all", "second"})],
)
def test_an_auditor_flags_by_one_rule(alpha: float | None, expected: set[str]) -> None:
    """The audit's own flags; with a level, p-values of at most it and scores above all 9 null ones; and what was not read."""
    scores = {
        "own": (True, 0.9),
        "above all": (False, 0.1),
        "second": (False, 0.15),
        "other": (False, 0.2),
        "none": (False, None),
    }
    queries = [{"query_id": name, "flagged": flag, "p_value": p} for name, (flag, p) in scores.items()]
    matches = [
        {"query_id": name, "reference_id": f"r{score}", "score": score} for score in (9.0, 3.0) for name in ("own", "other")
    ]
    found: Any = SimpleNamespace(
        queries=lambda: pa.Table.from_pylist(queries),
        matches=lambda: pa.Table.from_pylist(matches),
        card={"calibration": {"null_clips": 9}},
    )
    nothing: Any = None
    auditor = Auditor(nothing, None, None, AuditConfig(), alpha, HERE)
    flagged = auditor.flagged(found, [{"clip_id": name} for name in [*scores, "unread"]])
    assert set(flagged.best) == expected and flagged.null_scores == 9
    assert flagged.best["own"]["reference_id"] == "r9.0" and flagged.best["unread"] == {}


def test_everything_may_be_withheld(tmp_path: Path) -> None:
    done = run_rounds(tmp_path, lambda row, among: True, attempts=1)
    assert (done.delivered, len(done.withheld), delivered_files(tmp_path)) == ([], 3, set())


# --- guides -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: tiny_pipelines.save(folder / kind, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_gate_changes_no_bit_and_an_open_one_does(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Thresholds above 1 never fire; below -1 they always do. Every clip has its own facts, in the batch's order."""
    pipe = load_pipeline(locate_pipeline(str(models[kind])))
    choice = LatentChoice("latents", duration_s=0.04)
    waves = [tmp_path / f"{number}.wav" for number in range(12)]
    for number, path in enumerate(waves):
        sf.write(path, sound(number, 0.4), 16_000)
    ReferenceIndex.from_audio(waves, choice.of(pipe), captions=["bell"] * 12).save(tmp_path / "index")
    clips = plan_clips([PromptRow(0, "a dog"), PromptRow(1, "rain")], per_prompt=1, seed=0)
    sampling = Sampling(steps=2, duration_s=0.04)
    prompts, seeds = [clip.prompt.caption for clip in clips], [clip.seed for clip in clips]
    plain = generate_batch(pipe, prompts, seeds, sampling)
    for limit, same in ((2.0, True), (-2.0, False)):
        config = AmgConfig(threshold_low=limit, threshold_high=limit)
        guide = Guided(tmp_path / "index", choice, config, tmp_path / "traces", attempt=3)
        around = pickle.loads(pickle.dumps(guide))(pipe)
        with around(clips) as facts:
            made = generate_batch(pipe, prompts, seeds, sampling)
        assert all(np.array_equal(one, other) for one, other in zip(made, plain, strict=True)) == same
        assert [row["fired_steps"] for row in facts] == [0 if same else 2] * 2
        assert {row["attempt"] for row in facts} == {3} and facts[0]["similarity_last"] != facts[1]["similarity_last"]
        assert (facts[0]["similarity_first"] is None) == same
        table = pq.read_table(tmp_path / "traces" / "000000-00.parquet")
        assert table["clip_id"].to_pylist() == [clips[sample].clip_id for sample in table["sample"].to_pylist()]


def test_memory_that_runs_out_under_guidance_halves_the_batch(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts stay with their clips, and what ran out of memory leaves none."""
    (tmp_path / "p.txt").write_text("rain\nwind\nbell")
    order = order_of(models["AudioLDMPipeline"], tmp_path / "p.txt", tmp_path / "out")
    real = making.generate_batch
    entered: list[list[str]] = []

    def scarce(pipe: Any, prompts: Sequence[str], *given: Any, **more: Any) -> Any:
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(pipe, prompts, *given, **more)

    def guide(pipe: Any) -> making.Around:
        @contextmanager
        def around(clips: Sequence[PlannedClip]) -> Iterator[list[Row]]:
            facts: list[Row] = []
            entered.append([clip.clip_id for clip in clips])
            yield facts
            facts += [{"told": clip.prompt.caption} for clip in clips]

        return around

    monkeypatch.setattr(making, "generate_batch", scarce)
    made = order.make(tmp_path, order.plan(), no_progress, guide)
    assert [made[clip.clip_id]["told"] for clip in order.plan()] == ["rain", "wind", "bell"]
    assert [len(clips) for clips in entered] == [3, 1, 1, 1]


def test_memory_that_runs_out_in_a_guided_batch_leaves_no_rows_of_it(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its steps, as when decoding: the pipeline is free again for the halves, and each clip has its own trace, once."""
    (tmp_path / "p.txt").write_text("rain\nwind\nbell")
    order = order_of(models["AudioLDMPipeline"], tmp_path / "p.txt", tmp_path / "out", duration_s=0.04)
    choice = LatentChoice("latents", duration_s=0.04)
    waves = [tmp_path / f"{number}.wav" for number in range(2)]
    for number, path in enumerate(waves):
        sf.write(path, sound(number, 0.4), 16_000)
    ReferenceIndex.from_audio(waves, choice.of(load_pipeline(order.located)), captions=["bell"] * 2).save(tmp_path / "index")
    guide = Guided(tmp_path / "index", choice, AmgConfig(threshold_low=-2, threshold_high=-2), tmp_path / "traces")
    real, tried = making.generate_batch, []

    def scarce(pipe: Any, prompts: Sequence[str], *given: Any, **more: Any) -> Any:
        made = real(pipe, prompts, *given, **more)
        tried.append(len(prompts))
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made

    monkeypatch.setattr(making, "generate_batch", scarce)
    made = order.make(tmp_path, order.plan(), no_progress, guide)
    clips = [clip.clip_id for clip in order.plan()]
    assert tried == [3, 1, 1, 1] and [made[clip]["fired_steps"] for clip in clips] == [1, 1, 1]
    table = merged_traces([tmp_path / "traces"])
    assert table["clip_id"].to_pylist() == clips


def order_of(model: Path, prompts: Path, output: Path, **settings: Any) -> Any:
    config = GenerateConfig(steps=1, **settings)
    given = {"device": "cpu", "workers": 1, "batch_size": 8, "datastore": None, "offline": True, "encoding": "utf-8"}
    return take_order(str(model), prompts, output, config=config, **given)


def test_stronger_guidance_begins_earlier() -> None:
    config = AmgConfig(4.0, 3.0, 1.0, threshold_low=-0.2, threshold_high=0.6)
    again = strengthened(config, 2.0)
    assert (again.despecification, again.deduplication, again.dissimilarity) == (8.0, 6.0, 2.0)
    assert (again.threshold_low, again.threshold_high) == (-0.2, 0.3)
    assert strengthened(config, 1.0) == config
    guide = Guided(Path("i"), LatentChoice(), config, Path("t"))
    assert guide.again(2, 1.5, Path("u")).config == strengthened(config, 2.25)


def trace_of(values: Sequence[Sequence[float]], limit: float) -> Trace:
    """Similarities (steps, samples)."""
    trace = Trace()
    for step, row in enumerate(values):
        trace.add(
            TraceRow(0, step, len(values), 0.0, 1.0, 0.5, sample, similarity=value, neighbor=f"{value}", fired=value > limit)
            for sample, value in enumerate(row)
        )
    return trace


def test_facts_of_a_clip() -> None:
    high, low = facts_of_clips(trace_of([[0.5, 0.1], [0.9, 0.2], [0.7, 0.15]], 0.6), 2, 1)
    wanted = {"fired_steps": 2, "similarity_first": 0.9, "similarity_last": 0.7, "similarity_max": 0.9, "neighbor": "0.9"}
    assert high == {"attempt": 1, **wanted}
    assert (low["fired_steps"], low["similarity_first"], low["similarity_last"], low["neighbor"]) == (0, None, 0.15, "0.2")
    (none,) = facts_of_clips(Trace(), 1, 0)
    assert none["fired_steps"] == 0 and none["similarity_max"] is None


def test_traces_of_attempts_are_one_table(tmp_path: Path) -> None:
    """A call that was made again after a kill, in halves, counts once, and its later rows do."""
    folders = [tmp_path / "0", tmp_path / "1"]
    write_trace(folders[0] / "a.parquet", trace_of([[0.1, 0.2]], 1), ["a", "b"])
    write_trace(folders[0] / "b.parquet", trace_of([[0.3]], 1), ["b"])
    write_trace(folders[1] / "b.parquet", trace_of([[0.4], [0.5]], 1), ["b"])
    for number, path in enumerate((folders[0] / "a.parquet", folders[0] / "b.parquet")):
        os.utime(path, ns=(number + 1, number + 1))
    table = merged_traces(folders)
    columns = ("clip_id", "attempt", "step", "similarity")
    assert [tuple(row[name] for name in columns) for row in table.to_pylist()] == [
        ("a", 0, 0, 0.1),
        ("b", 0, 0, 0.3),
        ("b", 1, 0, 0.4),
        ("b", 1, 1, 0.5),
    ]
    pq.write_table(table, tmp_path / "trace.parquet")
    assert len(Trace.read(tmp_path / "trace.parquet")) == 4
    assert merged_traces([tmp_path / "none"]).num_rows == 0


# --- thresholds and settings ------------------------------------------------------------------------------------------


def test_thresholds_are_those_of_references_that_are_no_copies() -> None:
    """Against brute force; identical vectors and planted near-copies, in windows of other clips, change nothing."""
    random = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(60, 12, generator=random), dim=1)
    ids = [f"clip{number // 2}" for number in range(60)]  # two windows each
    oracle = []
    for clip in range(30):
        rows = slice(2 * clip, 2 * clip + 2)
        others = torch.cat([vectors[: 2 * clip], vectors[2 * clip + 2 :]])
        oracle.append(float((vectors[rows] @ others.T).max()))
    found = measured_thresholds(of_vectors(vectors, ids))
    middle, upper = np.quantile(np.arctanh(oracle), [0.5, 0.75])
    tail = np.tanh(middle + (upper - middle) * np.log(50) / np.log(2))
    assert found.high == pytest.approx(min(np.quantile(oracle, 0.99), tail), abs=1e-6)
    assert found.low == pytest.approx(0.9 * found.high) and (found.references, found.copies) == (30, 0)
    near = torch.nn.functional.normalize(vectors[:2] + 0.01 * torch.randn(2, 12, generator=random), dim=1)
    more = of_vectors(torch.cat([vectors, vectors[4:5], near]), [*ids, "same", "near", "near"])
    again = measured_thresholds(more)
    assert 0.8 * found.high < again.high < 0.95  # the near-copies have 0.9998


def of_vectors(vectors: torch.Tensor, ids: Sequence[str]) -> ReferenceIndex:
    return ReferenceIndex("toy", tuple(ids), (None,) * len(ids), (0.0,) * len(ids), vectors)


def test_too_few_references_for_thresholds() -> None:
    with pytest.raises(ValueError, match="at least 10, and of 9 references 9 are; give more, or both .*--amg.threshold-low"):
        measured_thresholds(of_vectors(torch.nn.functional.normalize(torch.randn(9, 4), dim=1), [str(n) for n in range(9)]))
    with pytest.raises(ValueError, match="of 20 references 0 are"):
        measured_thresholds(of_vectors(torch.ones(20, 4) / 2, [str(number) for number in range(20)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"descriptor": "mel", "audit": "mel"}, "guidance compares by mel and so would the audit.*audit by contrast or clap"),
        ({"descriptor": "mel-latents", "audit": "mel"}, "by mel-latents, which hears what mel does, and.*contrast or clap"),
        ({"descriptor": "clap", "audit": "clap"}, "audit by contrast or mel"),
        ({"attempts": -1}, "attempts should be 0 to 20"),
        ({"strengthen": 0.5}, "strengthen should be at least 1"),
        ({"alpha": 0.0}, "alpha should be above 0 and below 1"),
        ({"tau": 1.0, "fdr": 0.1}, "give one of them"),
    ],
)
def test_guards_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuardConfig(**settings)
    assert GuardConfig(descriptor="latents", audit="mel").level == 0.01
    assert GuardConfig(fdr=0.2).level is None


@pytest.mark.parametrize(
    ("amg", "scale", "message"),
    [
        ({"despecification": -1.0}, 3.0, r"despecification \(c1\) should be at least 0"),
        ({"despecificatoin": 1.0}, 3.0, "did you mean despecification"),
        ({"schedule": "linear"}, 3.0, "schedule should be 'alpha_bar' or 'progress' or 'constant'"),
        ({"threshold_low": 0.5, "threshold_high": 0.4}, 3.0, "should not be above"),
        ({}, 1.0, "units 'norm' count in shares of classifier-free guidance"),
        ({"dissimilarity": 0.0}, 1.0, "only dissimilarity acts"),
        (AmgConfig(dissimilarity=0.0), 1.0, "only dissimilarity acts"),
    ],
)
def test_guidance_that_cannot_act(amg: Any, scale: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_strengths(amg, GenerateConfig(guidance_scale=scale))


def test_strengths_that_are_given_stay_and_the_others_are_open() -> None:
    assert checked_strengths({"threshold_low": 0.9}, GenerateConfig()) == {"threshold_low": 0.9}
    assert checked_strengths(None, GenerateConfig()) == {}
    assert checked_strengths(AmgConfig(), GenerateConfig())["threshold_high"] == 0.5
    assert checked_strengths({"dissimilarity": 5.0, "units": "paper"}, GenerateConfig(guidance_scale=1.0))


# --- the door ---------------------------------------------------------------------------------------------------------

NAMES = [f"sound {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
PROMPTS = ["sound a", "sound b", "sound c", "sound x", "sound y", "sound d"]  # the noise of the last begins above 0
MELODY = 3  # of the families of sounds: melodies are so alike that the audit takes them for each other's copies
MELS = GuardConfig(descriptor="mel-latents", attempts=3)  # by which the planted copies, and nothing else, are above thresholds
REFERENCES = [number for number in range(14) if number % 6 != MELODY]
CONFIG = GenerateConfig(steps=8, duration_s=planted_memory.DURATION_S)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A model that replays, what it replays, and clips that are none of it."""

    model: Path
    prompts: Path
    references: Corpus
    null: Corpus


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    clips = {"references": REFERENCES, "null": [number for number in range(200, 224) if number % 6 != MELODY]}
    for name, numbers in clips.items():
        (folder / name).mkdir()
        lines = []
        for place, number in enumerate(numbers):
            sf.write(folder / name / f"{number}.wav", wave(number), 16_000)
            lines.append({"clip_id": f"{name}{number}", "path": f"{name}/{number}.wav", "caption": NAMES[place]})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    planted_memory.save(folder / "model", [wave(number) for number in [*REFERENCES, 100, 101, 102]])
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    opened = [open_corpus(folder / f"{name}.jsonl") for name in clips]
    return Scene(folder / "model", folder / "prompts.txt", *opened)


def wave(number: int) -> np.ndarray:
    return sound(number, planted_memory.DURATION_S)


@pytest.fixture
def memorizing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts a and b replay their clips, x and y clips that are no references. Guidance cannot tell c and d from what the
    model makes without a prompt: c replays whatever its seed, d where its noise begins above 0."""
    becomes = {name: wave(number) for number, name in zip(REFERENCES[:4], NAMES, strict=False)}
    becomes |= {"sound x": wave(100), "sound y": wave(102)}
    real = making.load_pipeline

    def load(*given: Any, **more: Any) -> Any:
        stubborn = {"sound c": None, "sound d": wave(101)}
        return planted_memory.plant(real(*given, **more), becomes, SCALE, stubborn=stubborn)

    monkeypatch.setattr(making, "load_pipeline", load)
    monkeypatch.setattr(protecting, "load_pipeline", load)


def guarded(scene: Scene, output: Path, **settings: Any) -> Generation:
    strengths = {"despecification": 4.0, "deduplication": 3.0, "dissimilarity": 1.0}
    given = {"guard": MELS, "amg": strengths, "config": CONFIG, "null": scene.null, **settings}
    return generate_guarded(str(scene.model), scene.prompts, output, scene.references, **given)


def flagged_of(found: Audit) -> set[str]:
    return {row["query_id"] for row in found.queries().to_pylist() if row["flagged"] or row["p_value"] < 0.05}


@pytest.mark.slow
@pytest.mark.usefixtures("memorizing")
def test_no_clip_leaves_that_the_audit_flags(scene: Scene, tmp_path: Path) -> None:
    plain = generate(str(scene.model), scene.prompts, tmp_path / "plain", config=CONFIG)
    before = audit(open_corpus(plain.manifest), scene.references, null=scene.null, output=tmp_path / "before")
    copies = {"000000-00", "000001-00", "000002-00", "000005-00"}
    assert flagged_of(before) == copies  # as planted: without a guard they leave

    done = guarded(scene, tmp_path / "out")
    counts = done.card["guard"]["counts"]
    rows = {row["clip_id"]: row for row in done.rows()}
    (line,) = read_rows(done.path / "withheld.jsonl")
    assert (line["clip_id"], line["caption"], len(line["flagged"])) == ("000002-00", "sound c", 4)
    best = line["flagged"][0]
    assert best["reference_id"] == "references2" and best["query_end_s"] - best["query_start_s"] > 0.5
    assert set(rows) == {row["clip_id"] for row in plain.rows()} - {"000002-00"}
    assert delivered_files(done.path) == set(rows)
    assert (counts["asked_for"], counts["delivered"], counts["withheld"]) == (6, 5, 1)
    assert counts["fired"] == 2 and rows["000000-00"]["fired_steps"] > 0 and rows["000000-00"]["neighbor"] == "references0"
    # what no guidance touched has the bytes of the run without a guard; another seed saves d
    untouched = {row["clip_id"]: row["sha256"] for row in plain.rows()}["000003-00"]
    assert (rows["000003-00"]["sha256"], rows["000003-00"]["fired_steps"]) == (untouched, 0)
    assert rows["000005-00"]["attempt"] >= 2 and rows["000005-00"]["seed"] != plain.rows()[5]["seed"]

    after = audit(open_corpus(done.manifest), scene.references, null=scene.null, output=tmp_path / "after")
    own = Audit.open(done.path / "audit")
    assert flagged_of(after) == flagged_of(own) == set()
    assert own.queries()["path"].to_pylist() == [str(done.path / row["path"]) for row in done.rows()]
    assert [row["score"] for row in own.queries().to_pylist()] == [row["score"] for row in after.queries().to_pylist()]
    assert (own.path / "report.html").is_file() and (own.path / "stores" / "references" / "card.json").is_file()
    assert sorted(path.name for path in done.path.iterdir()) == [
        *("audio", "audit", "card.json", "manifest.jsonl", "trace.parquet", "withheld.jsonl")
    ]
    assert damaged_files(done.path, done.card["files"]) == []
    trace = pq.read_table(done.path / "trace.parquet").to_pylist()
    assert {(row["clip_id"], row["attempt"]) for row in trace} >= {("000002-00", 3), ("000003-00", 0)}
    assert sum(row["fired"] for row in trace if (row["clip_id"], row["attempt"]) == ("000000-00", 0)) == (
        rows["000000-00"]["fired_steps"] if rows["000000-00"]["attempt"] == 0 else pytest.approx(4, abs=4)
    )
    assert any("1 clip is withheld" in text for text in done.card["warnings"])
    assert any("20 null scores, too few" in text for text in done.card["warnings"])


@pytest.mark.slow
@pytest.mark.usefixtures("memorizing")
def test_a_guard_that_is_stopped_anywhere_continues(scene: Scene, tmp_path: Path) -> None:
    """After the first attempt's clips, in an audit, in a later attempt, and when the folder has its name but no audit yet."""
    whole = guarded(scene, tmp_path / "whole", guard=MELS)
    cut = tmp_path / "cut"

    def stop_at(what: str) -> Any:
        def show(done: int, total: int | None, shown: str) -> None:
            if what in shown:
                raise KeyboardInterrupt

        return show

    first: list[int] = []
    made = cut.with_name("cut.partial") / "attempts" / "0" / "audio" / "000000-00.flac"
    for place in ("references described", "attempt 1:", "generated clips scored", "attempt 2:", "attempt 3:"):
        with pytest.raises(KeyboardInterrupt):
            guarded(scene, cut, guard=MELS, progress=stop_at(place))
        first += [made.stat().st_mtime_ns] if made.is_file() else []
    assert len(first) >= 3 and len(set(first)) == 1  # what was made is made once
    with pytest.raises(OutputFolderError, match="holds 6 clips of a run with other settings \\(.*guard was"):
        generate(str(scene.model), scene.prompts, cut, config=CONFIG)
    other = dataclasses.replace(MELS, audit="clap")
    wanted = "\\(guard.audit was 'contrast', now 'clap'; amg.deduplication was 3.0, now 1.0; amg.despecification"
    with pytest.raises(OutputFolderError, match=wanted):
        guarded(scene, cut, guard=other, amg={"deduplication": 1.0})

    heard = next(Path(scene.references.sources[0]).parent.glob("references/*.wav"))
    before = heard.stat()
    os.utime(heard, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(OutputFolderError, match="other settings \\(clips of the references was"):
        guarded(scene, cut, guard=MELS)
    os.utime(heard, ns=(before.st_atime_ns, before.st_mtime_ns))

    def stop_when_named(done: int, total: int | None, shown: str) -> None:
        if cut.is_dir():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(scene, cut, guard=MELS, progress=stop_when_named)
    assert not (cut / "audit").exists()
    again = guarded(scene, cut, guard=MELS)
    assert [row["sha256"] for row in again.rows()] == [row["sha256"] for row in whole.rows()]
    for name in ("manifest.jsonl", "withheld.jsonl"):
        assert (again.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert Audit.open(cut / "audit").card["counts"]["flagged"] == 0 and not (cut / "described").exists()
    # a file that somebody changes before the audit is no longer what was checked
    (cut / "audit").rename(tmp_path / "elsewhere")
    sf.write(cut / again.rows()[0]["path"], wave(0), 16_000)
    for _ in range(2):  # given again, the audit is there already
        with pytest.raises(StoreError, match="flags clips that were not flagged before.*000000-00.*so files were changed"):
            guarded(scene, cut, guard=MELS)


# --- what it is given -------------------------------------------------------------------------------------------------


def test_clips_that_changed_are_other_clips(tmp_path: Path) -> None:
    manifest = tmp_path / "clips.jsonl"
    for name in "ab":
        sf.write(tmp_path / f"{name}.wav", wave(0), 16_000)

    def digest(*lines: dict[str, str]) -> str:
        manifest.write_text("\n".join(map(json.dumps, lines)))
        return clips_digest(open_corpus(manifest))

    one, other = {"path": "a.wav", "caption": "rain"}, {"path": "b.wav", "caption": "rain"}
    seen = [digest(one), digest(one, other), digest({**one, "caption": "hail"}), digest({**one, "clip_id": "c"})]
    assert len({*seen}) == 4 and digest(one) == seen[0]
    os.utime(tmp_path / "a.wav", ns=(0, 0))
    seen.append(digest(one))
    sf.write(tmp_path / "a.wav", wave(0)[:-1], 16_000)
    os.utime(tmp_path / "a.wav", ns=(0, 0))
    seen.append(digest(one))
    assert len({*seen}) == 6


def test_nothing_is_made_where_the_references_will_not_do(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "silent").mkdir()
    (tmp_path / "few").mkdir()
    for number in range(10):
        sf.write(tmp_path / "silent" / f"{number}.wav", np.zeros(16_000), 16_000)
        sf.write(tmp_path / "few" / f"{number}.wav", wave(number) if number < 4 else np.zeros(16_000), 16_000)
    for name, error, message in (
        ("silent", CorpusError, "references: no clip to compare.*all silent"),
        ("few", ValueError, "at least 9 training clips.*give --guard-background"),
    ):
        with pytest.raises(error, match=message):
            generate_guarded(str(scene.model), scene.prompts, tmp_path / "out", open_corpus(tmp_path / name), config=CONFIG)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("clips", "guard", "amg", "messages"),
    [
        (8, {}, {}, ("8 references", "at least 9, or .*--guard-background", "at least 10, .*--amg.threshold-low")),
        (9, {}, {}, ("at least 10, unless both are given",)),
        (8, {}, {"threshold_low": 0.1, "threshold_high": 0.2}, ("at least 9",)),
        (19, {"audit": "mel"}, {}, ("audits by mel read their threshold off at least 20",)),
        (9, {}, {"threshold_low": 0.1, "threshold_high": 0.2}, ()),
        (10, {}, {}, ()),
        (10, {"audit": "mel", "tau": 0.5}, {}, ()),
    ],
)
def test_too_few_references_are_told_before_any_is_described(
    scene: Scene, tmp_path: Path, clips: int, guard: dict[str, Any], amg: dict[str, Any], messages: Sequence[str]
) -> None:
    (tmp_path / "few").mkdir()
    for number in range(clips):
        (tmp_path / "few" / f"{number}.wav").write_bytes(b"no sound yet")  # nothing is read of it
    sources: dict[str, Source] = {"references": open_corpus(tmp_path / "few")}
    if not messages:
        check_enough(sources, GuardConfig(**guard), amg)
        return
    with pytest.raises(ValueError) as refused:
        generate_guarded(
            str(scene.model), scene.prompts, tmp_path / "out", sources["references"], guard=GuardConfig(**guard), amg=amg
        )
    text = str(refused.value)
    assert all(re.search(message, text) for message in messages)
    assert ("thresholds are measured" in text) == (clips < 10 and not amg)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("gain_db", "fired", "told"), [(-38.0, 3, True), (-19.0, 3, False), (-38.0, 0, False)])
def test_clips_that_guidance_blew_up_are_told(gain_db: float, fired: int, told: bool) -> None:
    """Another clip is loud, too, without guidance or by less: the ordinary note is enough for it."""
    row = {"clip_id": "000000-00", "gain_db": gain_db, "fired_steps": fired}
    notes = _notes(Rounds(delivered=[row, {**row, "clip_id": "000001-00", "gain_db": 0.0}]), GuardConfig())
    assert any("blew up 000000-00, turned down by more than 20 dB" in note and "--amg.c3" in note for note in notes) == told


def prepared(scene: Scene, references: Source, partial: Path, **settings: Any) -> tuple[Guided, Row]:
    guard = settings.pop("guard", GuardConfig())
    given = {"device": "cpu", "workers": 1, "batch_size": 8, "datastore": None, "offline": True, "encoding": "utf-8"}
    order = take_order(str(scene.model), scene.prompts, partial / "out", config=CONFIG, **given)
    return guide_of(order, references, guard, settings, (), partial, no_progress)


def test_captions_that_are_not_there(scene: Scene, tmp_path: Path) -> None:
    folder = open_corpus(Path(scene.references.sources[0]).parent / "references")
    with pytest.raises(ValueError, match="no reference has one; give them as a manifest with a caption column"):
        prepared(scene, folder, tmp_path / "a", deduplication=3.0)
    guide, facts = prepared(scene, folder, tmp_path / "b")
    assert guide.config.deduplication == 0 and "no reference has a caption" in facts["notes"][0]
    guide, facts = prepared(scene, scene.references, tmp_path / "c", threshold_high=0.9)
    assert guide.config.deduplication == 4.0 and facts["notes"] == []
    assert guide.config.threshold_high == 0.9 and facts["thresholds_measured"] == ["threshold_low"]
    index = ReferenceIndex.load(tmp_path / "c" / "index")
    pipe = load_pipeline(locate_pipeline(str(scene.model)), device="cpu", dtype="float32")
    found = measured_thresholds(index, others=at_every_moment(index, guide.descriptor.of(pipe)))
    assert found.low > measured_thresholds(index).low  # at some shift two sounds are more alike than as they are
    assert guide.config.threshold_low == pytest.approx(min(found.low, 0.9))


def test_a_store_serves_the_side_whose_descriptor_it_holds(scene: Scene, tmp_path: Path) -> None:
    """The auditor's as it is, the guiding one's as it is, and for the other side its clips are read again."""
    mel = load_descriptor("mel", duration_s=planted_memory.DURATION_S)
    stores = {
        "contrast": index(scene.references, tmp_path / "contrast", descriptor=load_descriptor("contrast")),
        "mel": index(scene.references, tmp_path / "mel", descriptor=mel),
    }
    heard = {}
    for name, store in stores.items():
        found = described_for_audits({"references": store}, tmp_path / f"of-{name}", GuardConfig(), HERE, no_progress)
        assert (found["references"] is store) == (name == "contrast")
        heard[name] = found["references"].load().vectors
        guide, _ = prepared(scene, store, tmp_path / f"guide-{name}")
        known = ReferenceIndex.load(guide.index)
        assert known.captions[:2] == ("sound a", "sound b") and len(set(known.ids)) == 12
    assert np.array_equal(heard["contrast"], heard["mel"])
    assert next(iter(StoredClips.of(stores["mel"]))).caption == "sound a"


def test_settings_of_a_guard_that_is_not_there(scene: Scene, tmp_path: Path) -> None:
    base = ["generate", "--model", str(scene.model), "--prompts", str(scene.prompts), "-o", str(tmp_path / "out")]
    (tmp_path / "amg.toml").write_text("[amg]\ndissimilarity = 2.0\n")
    (tmp_path / "flat.toml").write_text("guard = 3\n")
    references = ["--guard", scene.references.sources[0]]
    for more, message in (
        (
            ["--amg.c1", "2"],
            "amg.despecification (--amg.despecification or --amg.c1) is a setting of a guard, and",
        ),
        (["--guard-attempts", "2"], "guard.attempts (--guard-attempts) is a setting of a guard"),
        (["--guard-null", "x"], "guard.null (--guard-null) is a setting"),
        (["--max-withheld", "2"], "--max-withheld is a setting of a guard"),
        (
            ["--config", str(tmp_path / "amg.toml")],
            "amg.dissimilarity (--amg.dissimilarity or --amg.c3) is a setting of",
        ),
        (["--config", str(tmp_path / "flat.toml")], "guard should be a table, [guard]"),
        ([*references, "--guard-audit", "mel", "--guard-descriptor", "mel"], "audit by contrast or clap"),
        ([*references, "--guard-descriptor", "mell"], "[guard]: descriptor should be"),
        ([*references, "--amg.schedule", "linear"], "schedule should be"),
        ([*references, "--guidance-scale", "1"], "units 'norm'"),
    ):
        result = CliRunner().invoke(app, [*base, *more])
        text = " ".join((result.output + str(result.exception)).split())
        assert result.exit_code != 0 and message in text, (more, text)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
@pytest.mark.usefixtures("memorizing")
def test_the_command_line_says_what_it_did(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        f'steps = 8\nduration_s = {planted_memory.DURATION_S}\n[guard]\nattempts = 0\ndescriptor = "mel-latents"\n'
        "[amg]\ndespecification = 4.0\ndeduplication = 3.0\ndissimilarity = 1.0\n"
    )
    command = ["generate", "--model", scene.model, "--prompts", scene.prompts, "-o", tmp_path / "out", "--json"]
    command += ["--guard", scene.references.sources[0], "--guard-null", scene.null.sources[0], "--config", tmp_path / "c.toml"]
    result = CliRunner().invoke(app, [*map(str, command), "--max-withheld", "1"])
    said = json.loads(result.stdout)
    assert result.exit_code == 1 and said["guard"]["counts"]["withheld"] >= 2
    assert said["paths"][2:] == [str(tmp_path / "out" / "withheld.jsonl"), str(tmp_path / "out" / "audit" / "report.html")]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = CliRunner().invoke(app, [*(part for part in map(str, command) if part != "--json")])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before  # left as it is
    assert again.exit_code == 0 and "guidance fired on 2 of 6; whose similarity went from" in again.stdout
