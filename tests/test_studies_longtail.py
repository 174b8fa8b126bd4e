"""The long-tail study: draws, near-duplicates, what clips match, means over seeds, guidance by own references, end to end."""

from __future__ import annotations

import html
import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf

pytest.importorskip("diffusers")

import torch
from typer.testing import CliRunner

from auscult.audio import read_audio
from auscult.cli import app
from auscult.cli.studies import _print_longtail
from auscult.configuration import config_values, make_config
from auscult.corpus import Clip, open_corpus
from auscult.duplicates import DedupConfig, deduplicate
from auscult.errors import OutputFolderError
from auscult.folders import read_card, write_text
from auscult.generation.clips import read_rows
from auscult.generation.datastore import Datastore
from auscult.guidance.amg import AmgConfig
from auscult.guidance.index import ReferenceIndex
from auscult.identity import recordings
from auscult.studies.config import PRESETS, StudyAudits, StudyData
from auscult.studies.flagging import is_undecided
from auscult.studies.longtail.arms import BOTH, ID, PLAIN, Run, clips_made, runs_of
from auscult.studies.longtail.auditing import evaluate_stage
from auscult.studies.longtail.config import (
    LongtailConfig,
    StudyGuidance,
    StudyQuality,
    StudyRetrieval,
    StudyTail,
    load_longtail_config,
    train_config,
)
from auscult.studies.longtail.copying import KINDS, Likeness, SeedAudit, Seen, counts_of, nearer, with_pairs
from auscult.studies.longtail.drawing import draw, prompts_of, write_copies
from auscult.studies.longtail.figures import shares_svg
from auscult.studies.longtail.guiding import OwnReferences
from auscult.studies.longtail.making import store_stage, swap_partners
from auscult.studies.longtail.page import _against_k, write_longtail_page
from auscult.studies.longtail.quality import bins_of, of_bin, seed_mean
from auscult.studies.longtail.reading import rows_of
from auscult.studies.longtail.results import (
    _beyond_unguided,
    _copying,
    _mean,
    _nearer,
    _note_on_copies,
    _notes_on_null_clips,
    _pairs,
    _quality,
    changed_copies,
    rates_of_kinds,
)
from auscult.studies.longtail.study import KIND, plan_longtail, stages_of, study_longtail
from auscult.studies.longtail.takes import Takes, origin
from auscult.studies.longtail.wording import called, sentence
from auscult.studies.making import audit_group, check_group, generate_clips
from auscult.studies.rates import sign_flip
from auscult.studies.running import Study, task_of
from auscult.studies.sets import read_manifest, write_manifest, write_sounds
from auscult.studies.stages import read_times, run_stages, study_folder
from killed_study import kill_when_there

CLASSES = ("bell", "dog", "gong", "rain", "train")
GROUP = r"(\w+-\d+)-"


def _clips(recordings: int = 12, takes: int = 2) -> list[Clip]:
    """Of each class so many recordings, cut into takes."""
    return [
        Clip(f"{name}-{number}-{take}", f"/{name}{number}{take}.wav", caption=f"{name} {number} {take}", labels=(name,))
        for name in CLASSES
        for number in range(recordings)
        for take in range(takes)
    ]


# --- draws ------------------------------------------------------------------------------------------------------------


def test_no_recording_is_on_two_sides_and_classes_have_their_counts() -> None:
    tail = StudyTail(counts=(13, 6, 3, 0), held_out=3, open=4, copies=0.2)
    ranks = set()
    for seed in range(6):
        drawn = draw(_clips(), tail, seed, GROUP)
        assert list(drawn.frequency.values()) == [13, 6, 3, 0]
        assert Counter(clip.labels[0] for clip in drawn.training) == {name: n for name, n in drawn.frequency.items() if n}
        assert Counter(clip.labels[0] for clip in drawn.held_out) == dict.fromkeys(drawn.frequency, 3)
        unseen = list(drawn.frequency)[-1]
        assert [clip.labels[0] for clip in drawn.opened] == [unseen] * 4
        sides = [drawn.training, drawn.held_out, drawn.opened, drawn.rest]
        recordings = [{clip.clip_id.rsplit("-", 1)[0] for clip in side} for side in sides]
        assert not any(one & other for one, other in itertools.combinations(recordings, 2))
        assert len(drawn.again) == round(0.2 * 22) and set(drawn.again) <= set(drawn.training)
        assert draw(_clips()[::-1], tail, seed, GROUP) == drawn
        prompts = prompts_of(drawn, 9, seed)
        assert len(prompts) == 9 and set(drawn.again) <= set(prompts) <= set(drawn.training)
        ranks.add(tuple(drawn.frequency))
    assert len(ranks) > 1


def test_a_sound_of_two_names_is_one_recording_and_of_one_class() -> None:
    """Chains of equal names are one; a recording that two classes have is of one of them alone, and so on one side."""
    alike = (*(f"{name}-0 = {name}-{other}" for name in CLASSES for other in (1, 2)), "dog-3 = rain-4")
    takes = Takes(GROUP, alike)
    assert takes.of(["dog-2-1#copy-2", "dog-1-0", "dog-4-0"]) == [*takes.of(["dog-0-0"] * 2), "dog-4"]
    tail = StudyTail(counts=(6, 4, 2, 0), held_out=3, open=4, copies=0.2, alike=alike)
    for seed in range(12):
        drawn = draw(_clips(), tail, seed, GROUP)
        sides = [drawn.training, drawn.held_out, drawn.opened, drawn.rest]
        names = [set(takes.of([clip.clip_id for clip in side])) for side in sides]
        assert not any(one & other for one, other in itertools.combinations(names, 2))
        assert not any(clip.clip_id.startswith("rain-4-") for side in sides for clip in side)
    with pytest.raises(ValueError, match=r"no clip is of the recording 'cat-1'.* such as 'bell-0'"):
        draw(_clips(), replace(tail, alike=("dog-1 = cat-1",)), 0, GROUP)


def test_counts_go_to_classes_that_have_so_many_clips() -> None:
    """Of a source that is imbalanced itself, the frequent classes get the large counts, whatever the seed."""
    clips = [clip for rank, name in enumerate(CLASSES) for clip in _clips(4 * rank + 3, 1) if clip.labels == (name,)]
    orders = {
        tuple(draw(clips, StudyTail((16, 8, 6, 0), held_out=3, open=1, copies=0.0), seed).frequency) for seed in range(20)
    }
    first, second, third, last = CLASSES[4], CLASSES[3], CLASSES[2], CLASSES[1]
    assert orders == {(first, second, third, last), (first, third, second, last)}


@pytest.mark.parametrize(
    ("clips", "counts", "message"),
    [
        ([Clip("a", "a.wav")], (2, 1), "has no label"),
        (_clips(), (6,) * 6, "names 6 classes, and the clips are of 5"),
        (_clips(), (22, 1), r"no class is left with 22 clips of other recordings than its 3 held-out clips \(at most 20\)"),
        (_clips(2), (1, 1), "no class is left with 1 clips of other recordings"),
    ],
)
def test_sources_that_no_tail_can_be_drawn_of(clips: list[Clip], counts: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(clips, StudyTail(counts=counts, held_out=3), 0, GROUP if len(clips) > 1 else None)


def test_takes_of_a_recording_are_no_pairs_unless_ids_alone_are_told_apart(tmp_path: Path) -> None:
    sounds = write_sounds(tmp_path / "sounds", 8, 0, 0.5)
    clips = [replace(clip, clip_id=f"{clip.labels[0]}-{row // 2}-{row}") for row, clip in enumerate(sounds)]
    names = [clip.clip_id.rpartition("-")[0] for clip in clips]
    config = replace(_config(), data=replace(_config().data, group=r"-(\d)-"))
    config = replace(config, tail=replace(config.tail, alike=("0 = 3",)))
    (tmp_path / "sets" / "s0").mkdir(parents=True)
    (tmp_path / "datastores").mkdir()
    for name in ("with-copies.jsonl", "references.jsonl"):
        write_manifest(tmp_path / "sets" / "s0" / name, clips)
    deduplicate(
        open_corpus(tmp_path / "sets" / "s0" / "references.jsonl"),
        background=open_corpus(tmp_path / "sets" / "s0" / "references.jsonl"),
        output=tmp_path / "duplicates" / "s0",
        config=DedupConfig(duration_s=0.5, tau=0.9999),
    )
    for kind in ("excluding-duplicates", "open", "excluding-id"):
        store_stage(config, 0, kind, tmp_path / "datastores" / f"s0-{kind}", lambda done, total, what: None)
        pairs = Datastore.load(tmp_path / "datastores" / f"s0-{kind}").pairs
        assert pairs.num_rows == len(names)
        groups = pairs["cluster_id"].to_pylist()
        if kind == "excluding-id":
            assert groups == [-1] * 8
        else:
            assert groups[0] == groups[1] == groups[6] == groups[7] and len(set(groups)) == 3 and min(groups) >= 0


@pytest.mark.parametrize(
    ("group", "fits"),
    [(None, True), (r"^(\d+)-", True), (r"^(\d+)-[A-Z]$", True), (r"^(\d+-[A-Z]|\$)$", True), (r"^(.+)$", False)],
)
def test_repeated_clips_are_of_the_recording_of_the_clip(group: str | None, fits: bool) -> None:
    ids = ["17-A", "18-B"]
    data = StudyData(group=group)
    if not fits:
        with pytest.raises(ValueError, match="finds recording '17-A' in '17-A' and '17-A#copy-2' in 17-A#copy-2"):
            check_group(data, ids)
        check_group(replace(data, null="sounds"), ids)  # which no recordings are asked of
        return
    check_group(data, ids)
    assert recordings([f"{one}#copy-12" for one in ids], str(audit_group(data))) == recordings(ids, group or "(.*)")


def test_near_duplicates_are_the_same_sound_in_another_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sf.write(tmp_path / "a.wav", np.concatenate([rng.standard_normal(3200), np.zeros(3200)]) * 0.1, 32_000)
    clip = Clip("a", str(tmp_path / "a.wav"), 0.0, 0.1, caption="hiss", labels=("noise",))
    (copy,) = write_copies(tmp_path / "copies", [clip], 3)
    assert (copy.clip_id, origin(copy.clip_id), copy.caption, copy.labels) == ("a#copy-2", "a", "hiss", ("noise",))
    one, other = (read_audio(path, sample_rate_hz=32_000, duration_s=0.1) for path in (clip.path, copy.path))
    assert len(other.samples) == 3200 and one.facts.sample_digest != other.facts.sample_digest
    assert np.corrcoef(one.samples, other.samples)[0, 1] > 0.9999
    assert np.std(other.samples) == pytest.approx(0.5 * np.std(one.samples), rel=1e-2)


def test_swapped_prompts_are_never_shown_their_own_clip() -> None:
    clips = [clip for clip in _clips(2) if clip.labels[0] in ("dog", "rain")]
    ids = [clip.clip_id for clip in clips]
    many = len(ids)
    shown = {one: (ids[(row + 1) % many], f"{ids[(row + 4) % many]}#copy-2") for row, one in enumerate(ids)}
    for seed in range(5):
        for clip, partner in zip(clips, swap_partners(clips, shown, seed), strict=True):
            assert clip.labels != partner.labels
            assert clip.clip_id not in {origin(one) for one in shown[partner.clip_id]}
    with pytest.raises(ValueError, match="no other prompt's pairs can be shown with 'dog-0-0'"):
        swap_partners(clips[:2], {clip.clip_id: ("dog-0-0",) for clip in clips}, 0)


# --- what clips match -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "shown", "kind"),
    [
        ("a", ("b", "c"), "own"),
        ("a#copy-2", ("b", "c"), "own"),
        ("a#copy-2", ("a#copy-2", "c"), "own_shown"),
        ("a", ("a#copy-2",), "own_shown"),
        ("b", ("c", "b"), "reference"),
        ("b#copy-2", ("b",), "reference"),
        ("d", ("b", "c"), "other"),
        ("e", ("b", "c"), "own_recording"),
        ("e", ("b", "e"), "own_recording_shown"),
        ("e#copy-2", ("e",), "own_recording_shown"),
        ("e#copy-2", (), "own_recording"),
        ("d", (), "other"),
        (None, ("b",), None),
    ],
)
def test_a_near_duplicate_counts_as_what_it_was_made_of(match: str | None, shown: tuple[str, ...], kind: str | None) -> None:
    one = Seen("x", "a", "dog", shown, match, None if match is None else 1.0, match is not None, Takes(alike=("a = e",)))
    assert one.kind == kind
    counts = counts_of([one, replace(one, flagged=False)])
    assert counts["compared"] == 2 * (kind is not None) and counts["flagged"] == (kind is not None)
    assert counts["nearest_its"] == 2 * (kind in ("own", "own_shown"))
    assert counts["nearest_pairs"] == 2 * counts["flagged_pairs"] == 2 * (kind in ("own_recording_shown", "reference"))
    if kind:
        assert counts[f"nearest_{kind}"] == 2 and counts[f"flagged_{kind}"] == 1
    assert sum(counts[key] for key in (f"nearest_{name}" for name in KINDS)) == counts["compared"]


def test_where_too_few_null_clips_are_there_nothing_has_a_rate() -> None:
    seen = [Seen(f"g{n}", "a", "dog", ("b",), "b", 1.0, n == 0) for n in range(4)]
    told, half, none = (rates_of_kinds([seen, seen], unknown) for unknown in ([False] * 2, [True, False], [True] * 2))
    assert told["rate"] == half["rate"] == told["flagged_kinds"]["reference"]["rate"] == 0.25
    assert (told["clips"], half["clips"], half["by_seed"], none["by_seed"]) == (8, 4, [None, 0.25], [None, None])
    assert {none[key] for key in ("rate", "low", "high")} == {None}
    assert all(one["rate"] is one["high"] is None for one in none["flagged_kinds"].values())
    assert none["nearest_kinds"]["reference"]["rate"] == 1.0  # which no null clips are needed for
    assert none["nearest_kinds"]["reference"]["clips"] == 8
    other = [replace(one, match="c", flagged=True) for one in seen]  # of the seed that cannot tell
    parts = rates_of_kinds([other, seen], [True, False])["nearest_kinds"]
    assert parts["reference"]["rate"] == 1.0 and parts["other"]["flagged"] == 0  # of the clips that flags are of
    assert is_undecided(StudyAudits(level=0.01), "mel", 98) and not is_undecided(StudyAudits(level=0.01), "mel", 99)


def test_the_seeds_that_lack_null_clips_are_named() -> None:
    some = _notes_on_null_clips(StudyAudits(level=0.01), "mel", {0: 200, 1: 50, 2: 99})
    assert some[0].startswith("mel, seed 1: 50 null clips are too few") and "rates are of the other seeds" in some[1]
    assert some[2:] == _notes_on_null_clips(StudyAudits(level=0.01), "mel", {0: 200}) and "is flagged if" in some[2]
    (none,) = _notes_on_null_clips(StudyAudits(level=0.01), "mel", {0: 60, 1: 50})
    assert none.startswith("mel: 50 null clips") and none.endswith("Nothing can be flagged.")
    assert not _notes_on_null_clips(StudyAudits(level=0.01, tau=("mel=0.5",)), "mel", {0: 1})


def test_what_guidance_changes_in_copies_is_of_what_was_shown() -> None:
    """A copy that becomes one of something else is gone; a duplicate of the prompt's clip was shown, its own clip was not."""

    def seen(way: str, *matches: str | None) -> list[Seen]:
        return [
            Seen(f"{way}/{row}", f"p{row}", "dog", ("b", f"p{row}#copy-2") if row == 3 else ("b",), one, 1.0, one is not None)
            for row, one in enumerate(matches)
        ]

    before, after = seen("usual", "b", "b", "p2", "p3", "z", None), seen("guided", "z", "b", "b", "z", "p4", "b")
    found = changed_copies([before] * 3, [after] * 3, [False, False, True])
    assert found is not None and (found["no_longer"], found["only_now"]) == (
        4,
        2,
    )  # the last clip has nothing to be compared with
    assert found["by_seed"] == [-0.2, -0.2, None] and found["p_value"] == sign_flip([-1, 1, -1, -1, 1, -1])
    gone = changed_copies([seen("usual", *"bbbbbb")] * 2, [seen("guided", *"zzzzzz")] * 2, [False] * 2)
    assert gone is not None and gone["p_value"] == 2 * 0.5**12
    assert changed_copies([before], [after], [True]) is None


def test_the_more_pairs_the_more_often_one_is_matched_by_itself(tmp_path: Path) -> None:
    """Clips that are no one's copies match a random clip of their class. With and without pairs alike, and more with each k."""
    config = replace(_config(), retrieval=StudyRetrieval(k=(1, 3, 5), shown=3), tail=replace(_config().tail, copies=0.0))
    prompts = [f"dog-{n}" for n in range(60)]
    rng, counts = np.random.default_rng(0), {}
    runs = [Run(0, PLAIN, "training"), *(Run(0, model, "training", k) for model in (BOTH, ID) for k in (1, 3, 5))]
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        more = (run.model == ID) * 100  # other pairs than those of the other model
        _made(tmp_path, run, dict.fromkeys(prompts, tuple(f"r{more + m}" for m in range(run.k))))
        for n in range(len(prompts)):
            near = f"r{int(rng.integers(10)) + int(rng.integers(2)) * 100}"
            found[f"{run.way}/{n}"] = {"reference_id": near, "score": 1.0, "p_value": 0.001}
    audit = _opened(by_id=found)
    for run in runs:
        row = _copying(config, tmp_path, run, "mel", {(0, "mel"): audit})
        assert row["prompts"] == "training" and row["captions"] == len(prompts)
        assert (row["by_itself"] is None) == (run.model == PLAIN)
        counts[run.model, run.k] = (row["by_itself"] or row)["flagged_kinds"]["pairs"]["flagged"]
    assert counts[PLAIN, 0] == counts[BOTH, 3]  # its own row is of the pairs at ``shown``
    for model, first in ((BOTH, 0), (ID, 100)):
        near = [int(found[f"plain-training/{n}"]["reference_id"][1:]) - first for n in range(len(prompts))]
        assert [counts[model, k] for k in (1, 3, 5)] == [sum(0 <= one < k for one in near) for k in (1, 3, 5)]


def _made(folder: Path, run: Run, prompts: dict[str, tuple[str, ...]]) -> None:
    """A run's manifest, with the pairs of each prompt's clip; its class is what its id begins with."""
    rows = [
        {"clip_id": f"{n}", "reference": one, "labels": [one.partition("-")[0]]} | ({"retrieved": pairs} if run.k else {})
        for n, (one, pairs) in enumerate(prompts.items())
    ]
    write_text(folder / "generated" / run.name / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _opened(**known: Any) -> SeedAudit:
    """An audit by mel of which so much is known."""
    audit = SeedAudit(SimpleNamespace(card={"calibration": {"null_clips": 999}}), "mel", _config().audits, Takes())  # type: ignore[arg-type]
    audit.__dict__.update(known)
    return audit


def _sounds(*ids: str) -> list[Clip]:
    return [Clip(one, "x.wav", labels=(one.partition("-")[0],)) for one in ids]


def test_a_copy_of_a_shown_duplicate_is_counted_beside_what_memory_makes_by_itself(tmp_path: Path) -> None:
    """Of 8 prompts 4 have a near-duplicate, which is shown; all 4 are copied, 3 of the others; memory alone copies 2 and 1."""
    prompts = [f"dog-{n}" for n in range(8)]
    write_manifest(tmp_path / "sets" / "s0" / "copies.jsonl", _sounds(*(f"{one}#copy-2" for one in prompts[:4])))
    runs = {Run(0, ID, "training", 1): (0, 1, 2, 3, 4, 5, 6), Run(0, PLAIN, "training"): (0, 1, 4)}
    near = {}
    for run, copied in runs.items():
        _made(tmp_path, run, {one: (f"{one}#copy-2" if n < 4 else "dog-9",) for n, one in enumerate(prompts)})
        for n, one in enumerate(prompts):
            match, p_value = (f"{one}#copy-2" if n < 4 else one, 0.001) if n in copied else ("dog-9", 0.9)
            near[f"{run.way}/{n}"] = {"reference_id": match, "score": 1.0, "p_value": p_value}
    row = _copying(_config(), tmp_path, next(iter(runs)), "mel", {(0, "mel"): _opened(by_id=near)})
    found = {key: row[key]["flagged_kinds"] for key in ("by_itself", "copied", "single")} | {"all": row["flagged_kinds"]}
    counts = {key: tuple(kinds[kind]["flagged"] for kind in ("own_shown", "its", "pairs")) for key, kinds in found.items()}
    assert counts == {"all": (4, 7, 0), "by_itself": (2, 3, 0), "copied": (4, 4, 0), "single": (0, 3, 0)}
    assert (row["rate"], row["copied"]["rate"], row["single"]["rate"]) == (0.875, 1.0, 0.75)


def test_pairs_are_fewer_sounds_than_they_seem(tmp_path: Path) -> None:
    """Of two prompts: three pairs are two clips, takes of one recording; and three clips of two recordings and two classes."""
    config = replace(_config(), data=replace(_config().data, group=r"(\w+-\d+)-"))
    shown = {"dog-0-A": ("dog-1-A", "dog-1-A#copy-2", "dog-1-B"), "dog-2-A": ("dog-1-A", "dog-1-B", "rain-1-A")}
    write_manifest(tmp_path / "sets" / "s0" / "references.jsonl", _sounds(*dict.fromkeys(itertools.chain(*shown.values()))))
    _made(tmp_path, run := Run(0, BOTH, "training", 3), shown)
    row = _pairs(config, tmp_path, run)
    assert (row["clips"], row["recordings"], row["own_class"]) == (2.5, 1.5, 5 / 6)


# --- words and page ---------------------------------------------------------------------------------------------------


def _rate(flagged: int, clips: int = 20, decided: bool = True) -> dict[str, Any]:
    ends = (flagged / clips, max(0.0, flagged / clips - 0.1), flagged / clips + 0.1) if decided else (None,) * 3
    return {"flagged": flagged, "clips": clips, "prompts": clips, "models": 2} | dict(
        zip(("rate", "low", "high"), ends, strict=True)
    )


def _set_of(seed: int, copied: int) -> dict[str, Any]:
    counts = {"held-out": 6, "open": 6, "prompts": 20}
    return {"seed": seed, "frequency": {}, "counts": counts, "copies": 3, "copies_found": 3, "prompts_copied": copied}


def _content(
    copied: int = 10,
    by_itself: int = 2,
    gain: float = 0.3,
    fired: int = 20,
    decided: bool = True,
    prevented: int = 8,
    cost: float = -0.3,
    bins: float | None = None,
    own_shown: tuple[int, int, int] = (0, 0, 0),
) -> dict[str, Any]:
    """A card by hand: of all ways, 20 clips each; ``copied`` of those beside pairs match another one that was shown, and
    ``own_shown`` the prompt's clip where a duplicate of it was: without guidance, with it, and by itself.

    The model with captions gains ``gain`` over all classes, and ``bins`` in each bin; guidance prevents so many of its copies,
    and those of the model that may see duplicates not at all; its cost in quality is a gain below 0.
    """
    config = _config()

    def kinds(pairs: int, its: int, sure: bool = decided) -> dict[str, Any]:
        counts = dict.fromkeys(KINDS, 0) | {"reference": pairs, "pairs": pairs, "own_shown": its, "its": its}
        return {kind: _rate(count, decided=sure) for kind, count in counts.items()}

    def copying(pairs: int, its: int) -> dict[str, Any]:
        others = {"other": _rate(20 - pairs - its)}
        seen = {"flagged_kinds": kinds(pairs, its), "nearest_kinds": kinds(pairs, its, True) | others}
        one = {**_rate(pairs + its, decided=decided), "by_seed": [(pairs + its) / 20] * 2, **seen}
        del one["prompts"]
        return one

    def copying_of(way: Run) -> dict[str, Any]:
        pairs = copied if way.k and not way.guided else by_itself
        duplicate = way.model == ID and way.prompts == "training" and not way.swapped
        row = copying(pairs, own_shown[way.guided] * duplicate)
        row["by_itself"] = copying(by_itself, own_shown[2] * duplicate) if way.k else None
        if way.prompts == "training":
            row |= {"copied": copying(pairs, own_shown[way.guided] * duplicate), "single": copying(1, 0)}
        return row

    def mean(value: float, least: float, *, share: bool = True) -> dict[str, Any]:
        high = value + 0.1 if share else value
        return {"value": value, "low": value - 0.1, "high": high, "clips": 20, "by_seed": [value - least, value + least]}

    def change(gone: int) -> dict[str, Any]:
        return {"no_longer": gone, "only_now": 1, "p_value": sign_flip([-1] * gone + [1]), "by_seed": [-gone / 20, 0.0]}

    ways = runs_of(config, 0)
    facts = {way.way: {key: value for key, value in vars(way).items() if key != "seed"} | {"way": way.way} for way in ways}
    guided = [way for way in ways if way.guided]
    same = {way.way: way.way.removesuffix("-guided") if way.guided and not fired else None for way in ways}
    quality = [
        facts[way.way]
        | mean(0.3 + gain * (way.model != PLAIN), 0.0)
        | {"metric": "own_class", "bin": name, "classes": 2}
        | {"beyond_plain": None if way.model == PLAIN else mean(gain if bins is None or name == "all" else bins, 0.01)}
        for way in ways
        if way.prompts == "held-out"
        for name in ("all", "0", "1-3", "4+")
    ]
    quality += [one | {"metric": "fd_per_clip", "value": None, "low": None, "high": None} for one in quality]
    return {
        "config": config_values(config),
        "sets": [_set_of(0, 3), _set_of(1, 2)],
        "models": [],
        "audits": [{"seed": 0, "descriptor": "mel", "level": 0.005, "null_clips": 10, "compared": 20}],
        "copying": [{"descriptor": "mel", **facts[way.way], **copying_of(way)} for way in ways],
        "pairs": [facts[way.way] | {"clips": 1.625, "recordings": 1.25, "own_class": 0.875} for way in ways if way.k],
        "nearer": [
            facts[way.way]
            | {"descriptor": "mel", "pairs": 40, "dropped": 7}
            | dict.fromkeys(("shown", "own", "by_itself"), mean(0.0, 0.0))
            | {"beyond": mean(0.375, 0.0) | {"clips": 19}}
            for way in ways
        ],
        "same_clips": same,
        "sensitivity": [{"descriptor": "mel", **_rate(19)}],
        "guided": [
            facts[way.way]
            | {"fired": _rate(fired), "changed": {"mel": change(prevented if way.model == BOTH else 0) if decided else None}}
            | {"beyond_unguided": mean(cost, 0.01) if way.prompts == "held-out" else None}
            for way in guided
        ],
        "quality": quality,
        "real": [{"bin": name, "chance": 0.25} | mean(0.5, 0.1) for name in ("all", "0", "1-3", "4+")],
        "chance": 0.25,
        "interval": "",
        "published": [],
        "said": [],
        "warnings": [],
    }


def _text(page: str) -> str:
    """What a page says, tags left out."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", re.sub(r"(?s)<svg.*?</svg>|<style.*?</style>", "", page))))


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        (
            {},
            [
                "Beside 2 pairs, more clips sound like their class (+30 points); bin by bin, which explores and tests nothing, "
                "more of unseen classes (+30 points)",
                "The audit by mel flags 50 % of clips as copies of a pair that was shown, beyond the 10 % that match these",
                "Beside 2 pairs, guidance acted on 20 of 20 clips from training captions and 20 of 20 clips from held-out "
                "captions: there are fewer copies of what was shown (8 no longer flagged, 1 only now, by mel, p = 0.039), and "
                "fewer clips sound like their class (-30 points).",
            ],
        ),
        ({"gain": -0.3}, ["fewer clips sound like their class (-30 points); bin", "fewer of unseen classes (-30 points)"]),
        (
            {"gain": 0.05, "copied": 3, "fired": 0},
            [
                "Whether pairs help clips to sound like their class cannot be told: 35 % do beside 2 pairs, 30 % without any, "
                "and 25 % would by chance; no bin of frequency tells a difference by itself.",
                "15 % of clips as copies of a pair that was shown, which cannot be told from the 10 % that match",
                "Beside 2 pairs, guidance never acted.",
            ],
        ),
        # a bin that stands out by itself is no headline
        (
            {"gain": 0.0, "bins": 0.3},
            ["cannot be told: 30 % do", "chance; bin by bin, which explores and tests nothing, more of"],
        ),
        (
            {"prevented": 1, "cost": -0.02},
            [
                "whether there are fewer copies of what was shown cannot be told (1 no longer flagged, 1 only now, by mel, "
                "p = 1), and whether more or fewer sound like their class cannot be told (95 %: -12 to +8 points)."
            ],
        ),
        ({"prevented": 0, "cost": 0.3}, ["fewer copies of what was shown cannot be told (0 no", ", and more clips sound like"]),
        (
            {"copied": 0},
            [
                "flags no clip of 20 as a copy of a pair that was shown (95 %: at",
                "behind the models' codec it flags 95 %.",
            ],
        ),
        (
            {"decided": False},
            ["Of copies nothing can be said: there are too few null clips.", "of copies nothing can be said, and fewer clips"],
        ),
    ],
)
def test_the_sentence_says_what_can_be_told(asked: dict[str, Any], parts: list[str]) -> None:
    said = sentence(_content(**asked))
    for part in parts:
        assert part in said
    assert said.count(". ") <= 2 and "costs" not in said


def test_guidance_that_acts_and_changes_nothing_is_told() -> None:
    content = _content()
    content["same_clips"] = {
        way: way.removesuffix("-guided") if way.endswith("guided") else None for way in content["same_clips"]
    }
    assert sentence(content).endswith("20 of 20 clips from held-out captions, and changed none.")


def test_one_seed_tells_nothing_of_others() -> None:
    content = _content()
    for row in content["guided"]:
        row["changed"]["mel"]["by_seed"] = [-0.4, None]
    assert "fewer copies of what was shown cannot be told (8 no longer" in sentence(content)
    for row in content["quality"]:
        if row["beyond_plain"]:
            row["beyond_plain"]["by_seed"] = row["beyond_plain"]["by_seed"][:1]
    assert "cannot be told" in sentence(content)


def test_the_page_and_the_terminal_have_a_row_for_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("auscult.studies.longtail.page._heard", lambda *given: [])
    content = _content(fired=0)
    page = write_longtail_page(tmp_path, content).read_text("utf-8")
    assert page.count("<svg") == 2 * (1 + 3 + 1)  # by frequency, three against k, what the nearest is; wide and narrow
    rows = [_text(row) for row in re.findall(r"(?s)<tr>.*?</tr>", page)]
    training = [way for way in runs_of(_config(), 0) if way.prompts == "training"]
    assert len(training) == 10
    for way in training:
        name = called(vars(way)) + " (changed nothing: the same clips, bit for bit)" * way.guided
        flagged = "2 of 20" if way.guided or not way.k else "10 of 20"
        assert any(row.strip().startswith(f"{name}trainingmel{flagged}") for row in rows), name
    assert sum("7 of 40" in row and "19+0.375" in row for row in rows) == len(content["nearer"])
    assert sum(row.strip().endswith("1.621.2588 %") for row in rows) == len(content["pairs"])
    assert "by seed, 3 of 20, 2 of 20 prompts" in _text(page)
    assert [sum(f"mel{what} of 20" in row for row in rows) for what in ("with10", "with2", "without1")] == [5, 1, 6]
    assert any(row.strip().startswith("all classessounds and captions, k = 222025 %60 %") for row in rows)  # chance, then share
    assert page.count("by chance") == 2 + 1 + 1  # in the figure, wide and narrow; in the table; in words
    assert 'href="audits/s0-mel/report.html"' in page and "Fréchet" not in _text(page).partition("Configuration")[0]
    _print_longtail(Study(tmp_path, content))
    printed = capsys.readouterr().out
    assert sum(" of 20" in line for line in printed.splitlines()) == len(training)
    assert all(word in printed for word in ("duplicates", "swapped", "guided")) and "…" not in printed


def test_a_copy_of_a_shown_duplicate_is_seen_wherever_pairs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 clips beside their own duplicate 8 copy it, 5 under guidance, and of those without pairs 3 by themselves."""
    monkeypatch.setattr("auscult.studies.longtail.page._heard", lambda *given: [])
    content = _content(copied=0, by_itself=0, own_shown=(8, 5, 3))
    page = write_longtail_page(tmp_path, content).read_text("utf-8")
    tables = [re.findall(r"(?s)<tr>.*?</tr>", one) for one in re.findall(r"(?s)<table>.*?</table>", page)]

    def cells(heading: str, name: str, prompts: str = "training") -> dict[str, str]:
        rows = next(table for table in tables if heading in table[0])
        named = [_text(cell).strip() for cell in re.findall(r"(?s)<th.*?</th>", rows[0])]
        there = ([_text(cell).strip() for cell in re.findall(r"(?s)<td.*?</td>", row)] for row in rows[1:])
        return dict(zip(named, next(one for one in there if one[:2] == [name, prompts]), strict=True))

    what, allowed = "as the prompt's clip, whose duplicate was shown", "sounds and captions, duplicates allowed, k = 2"
    for name, flagged in ((allowed, "40 %"), (f"{allowed}, guided away from its pairs", "25 %")):
        assert cells("acted on", name)[what].startswith(flagged)
        assert cells("by itself</th><th>", name)[f"flagged {what}"].startswith(flagged)
        assert cells("acted on", name)["as another pair that was shown"].startswith("0 %")
    for name in ("no pairs", "sounds and captions, k = 2", f"{allowed}, another prompt's pairs"):  # whose 0 would be no finding
        assert cells("by itself</th><th>", name)[f"flagged {what}"] == "none is shown"
    drawn: list[Any] = []
    monkeypatch.setattr("auscult.studies.longtail.page.rates_picture", lambda places, series, **words: drawn.extend(series))
    _against_k(content, "mel", "own_shown")
    assert {one.label: one.rates for one in drawn} == {"duplicates in": (0.4, 0.4), "by itself, duplicates in": (0.15, 0.15)}
    content["config"]["tail"]["copies"] = 0.0
    content["copying"] = [{key: row[key] for key in row if key not in ("copied", "single")} for row in content["copying"]]
    said = _text(write_longtail_page(tmp_path, content).read_text("utf-8"))
    assert what not in said and "duplicate of the prompt's clip" not in said and "twice as often" not in said


def test_nothing_is_drawn_where_no_clip_can_be_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auscult.studies.longtail.page._heard", lambda *given: [])
    page = write_longtail_page(tmp_path, _content(decided=False)).read_text("utf-8")
    assert page.count("<svg") == 2 and "No audit has null clips enough" in page


def test_what_does_not_vary_is_not_said_to_be_precise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auscult.studies.longtail.page._heard", lambda *given: [])
    content = _content()
    for row in content["quality"]:
        row["beyond_plain"] = row["beyond_plain"] and {**row["beyond_plain"], "value": 0.0, "low": 0.0, "high": 0.0}
    said = _text(write_longtail_page(tmp_path, content).read_text("utf-8"))
    assert "+0 (no spread to see)" in said and "[+0, +0]" not in said
    assert "cannot be told" in sentence(content) and "+0" not in sentence(content)


def test_near_duplicates_that_were_not_found_are_told_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {0: (0, 2), 1: (2, 2), 2: (1, 2)}
    monkeypatch.setattr("auscult.studies.longtail.results.copies_found", lambda folder, seed: counts[seed])
    for seed in counts:
        write_text(tmp_path / "duplicates" / f"s{seed}" / "card.json", json.dumps({"warnings": ["Too few clips."]}))
    said = _note_on_copies(tmp_path, [0, 1, 2])
    assert "found 0 of 2 for seed 0, 1 of 2 for seed 2." in said and said.endswith("It says: Too few clips.")
    assert _note_on_copies(tmp_path, [1]) == ""


# --- without a threshold ----------------------------------------------------------------------------------------------


def _planted(copied: bool, draw: int = 1) -> tuple[Likeness, list[Seen], list[Clip]]:
    """24 references of 3 classes; 12 generated clips, each shown two of a class, and like the first of them, or like none."""
    rng = np.random.default_rng(draw)
    references = [Clip(f"r{n}", "", labels=(CLASSES[n % 3],)) for n in range(24)]
    seen = [
        Seen(f"g{n}", f"r{n}", CLASSES[n % 3], (f"r{(n + 3) % 24}", f"r{(n + 6) % 24}"), "r0", 1.0, False) for n in range(12)
    ]
    cosines = rng.uniform(0, 0.5, (12, 24))
    for row, one in enumerate(seen):
        if copied:
            cosines[row, int(one.shown[0][1:])] = 0.9
    ids = {one.clip_id: row for row, one in enumerate(seen)}
    return Likeness(ids, {clip.clip_id: row for row, clip in enumerate(references)}, cosines), seen, references


def test_copies_of_what_was_shown_are_nearer_and_clips_of_chance_are_not() -> None:
    likeness, seen, references = _planted(copied=True)
    found = nearer(likeness, seen, references, 0)
    assert len(found.shown) == 12 and min(found.shown.values()) > 0.4 and (found.pairs, found.dropped) == (24, 0)
    for n, one in enumerate(seen):  # the clip's own class is every third reference
        others = [likeness.cosines[n, row] for row in range(n % 3, 24, 3) if row != n]
        assert found.own[one.own] == pytest.approx(likeness.cosines[n, n] - np.mean(others))
    instead = {one.own: one.shown for one in seen}
    alone = [replace(one, shown=()) for one in seen]
    assert nearer(likeness, with_pairs(alone, instead), references, 0) == found
    nothing = nearer(likeness, alone, references, 0)
    assert nothing == replace(found, shown={}, pairs=0)  # nearness to the prompt's clip depends on no pairs


def test_chance_is_nearer_to_nothing() -> None:
    """With near-duplicates among the pairs and the references, takes of one recording, and a pair of the prompt's own."""
    found: dict[str, list[float]] = {"shown": [], "own": []}
    for trial in range(150):
        likeness, seen, references = _planted(copied=False, draw=trial)
        again = [replace(clip, clip_id=f"{clip.clip_id}#copy-2") for clip in references[:9]]
        both = {**likeness.references, **{clip.clip_id: 24 + row for row, clip in enumerate(again)}}
        likeness = Likeness(likeness.generated, both, np.concatenate([likeness.cosines, likeness.cosines[:, :9]], 1))
        takes = Takes(alike=("r0 = r3", "r1 = r13"))
        seen = [replace(one, shown=(*one.shown, f"r{(row + 6) % 9}#copy-2"), takes=takes) for row, one in enumerate(seen)]
        gains = nearer(likeness, seen, [*references, *again], trial)
        found["shown"].append(float(np.mean(list(gains.shown.values()))))
        found["own"].append(float(np.mean(list(gains.own.values()))))
    for values in found.values():
        assert abs(np.mean(values)) < 3 * np.std(values, ddof=1) / np.sqrt(len(values)) < 0.02


def test_the_class_alone_is_nearer_to_nothing_at_any_k() -> None:
    """Pairs of the prompt's class come first; small classes are used up before k = 10; clips are like all of their class."""
    sizes = {"bell": 14, "dog": 8, "gong": 4, "rain": 2, "train": 1}
    references = [Clip(f"{name}-{n}", "", labels=(name,)) for name, size in sizes.items() for n in range(size)]
    label = {clip.clip_id: clip.labels[0] for clip in references}
    rng = np.random.default_rng(0)
    cosines = [[(0.5 if one == other else 0.2) for other in label.values()] for one in label.values()]
    drawn = np.array(cosines) + 0.1 * rng.standard_normal((50, len(label), len(label)))
    rows = {clip_id: row for row, clip_id in enumerate(label)}
    own, dropped = set(), []
    for k in range(1, 11):
        seen = []
        for one in label:
            others = sorted((other for other in label if other != one), key=lambda other: label[other] != label[one])
            seen.append(Seen(one, one, label[one], tuple(others[:k]), None, None, False))
        found = [nearer(Likeness(rows, rows, one), seen, references, trial) for trial, one in enumerate(drawn)]
        means = [np.mean(list(one.shown.values())) for one in found]
        assert abs(np.mean(means)) < 4 * np.std(means, ddof=1) / np.sqrt(len(means)) < 0.05, k
        own.add(tuple(found[0].own.values()))
        dropped.append(found[0].dropped)
        assert len(found[0].own) == sum(sizes.values()) - 1  # the class of one clip has no other
    assert len(own) == 1 and dropped[0] < dropped[-1]


def test_nearer_than_by_itself_is_told_prompt_by_prompt(tmp_path: Path) -> None:
    """Each clip is nearer to its pairs than that of the model without pairs by the same, which prompts differ by far more."""
    likeness, seen, references = _planted(copied=False)
    run, plain = Run(0, BOTH, "training", 2), Run(0, PLAIN, "training")
    near = likeness.cosines.copy()
    for row, one in enumerate(seen):
        near[row, [likeness.references[pair] for pair in one.shown]] += 0.05
    without = likeness.cosines.copy()
    without[0] = np.nan  # a clip that nothing could be compared with
    ids = {f"{way.way}/{n}": n + 12 * row for row, way in enumerate((run, plain)) for n in range(12)}
    both = Likeness(ids, likeness.references, np.concatenate([near, without]))
    for way in (run, plain):
        _made(tmp_path, way, {one.own: one.shown for one in seen})
    write_manifest(tmp_path / "sets" / "s0" / "references.jsonl", [replace(one, path="x.wav") for one in references])
    by_id = {key: {"score": None} for key in ids}
    (row,) = _nearer(_config(), tmp_path, run, {(0, "mel"): _opened(likeness=both, by_id=by_id)})
    assert row["shown"]["low"] < row["by_itself"]["value"] < row["shown"]["high"]  # these two could not tell
    assert (row["shown"]["clips"], row["by_itself"]["clips"], row["beyond"]["clips"]) == (12, 11, 11)
    assert [row["beyond"][key] for key in ("low", "value", "high")] == pytest.approx([0.05] * 3)


def test_likeness_is_the_best_of_all_windows() -> None:
    import pyarrow as pa

    from auscult.descriptors import DescriptorSpec
    from auscult.vectors import Vectors

    rng = np.random.default_rng(0)

    def some(name: str, windows: list[int]) -> Vectors:
        clip = np.repeat(np.arange(len(windows)), windows)
        clips = pa.table({"clip_id": [f"{name}{row}" for row in range(len(windows))]})
        vectors = rng.standard_normal((len(clip), 5)).astype(np.float32)
        return Vectors(vectors, clip, np.zeros(len(clip)), clips, 1.0, DescriptorSpec("mel", 1))

    generated, references = some("g", [2, 0, 3]), some("r", [1, 2])
    found = Likeness.of(generated, references)
    for g, r in itertools.product(range(3), range(2)):
        sides = [np.asarray(one.vectors)[one.clip == row] for one, row in ((generated, g), (references, r))]
        cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a in sides[0] for b in sides[1]]
        best = found.best(f"g{g}", [f"r{r}"])
        assert np.isnan(best) if not cosines else best == pytest.approx(max(cosines), abs=1e-6)


def test_guidance_sees_each_clips_own_references_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(8, 5, generator=generator), dim=1)
    index = ReferenceIndex("toy", tuple("abcdabcd"), (None,) * 8, (0.0,) * 8, vectors)
    own = [["a", "c"], ["d"], ["a", "b", "c", "d"]]
    queries = torch.randn(3, 5, generator=generator)
    found = OwnReferences.of(index, own).nearest(queries, 2)
    for row, ids in enumerate(own):
        alone = index.without(set("abcd") - set(ids)).nearest(queries[row : row + 1], 2)
        torch.testing.assert_close(found.similarity[row : row + 1], alone.similarity)
        assert {index.ids[place] for place in found.rows[row].tolist()} <= set(ids)
    with pytest.raises(ValueError, match="expected 3 samples, whose references are known, got 2"):
        OwnReferences.of(index, own).nearest(queries[:2])


def test_clips_that_sound_like_their_class_are_told_from_those_that_do_not(tmp_path: Path) -> None:
    """Ways with pairs give the real clips back, that without and guidance make rain of everything."""
    config = replace(_config(), quality=StudyQuality(frechet=True))
    clips = write_sounds(tmp_path / "real", 28, 0, 2.0)  # two of each of 14 families
    real = [clip for clip in clips if clip.labels[0] in ("bell", "dog", "rain", "engine")]
    config = replace(
        config, tail=replace(config.tail, alike=(" = ".join(clip.clip_id for clip in real if clip.labels[0] == "bell"),))
    )
    (rain,) = [clip for clip in write_sounds(tmp_path / "made", 5, 1, 2.0) if clip.labels == ("rain",)]
    write_manifest(tmp_path / "sets" / "s0" / "held-out.jsonl", real)
    for run in (run for run in runs_of(config, 0) if run.prompts == "held-out"):
        rows = [
            {
                "clip_id": f"{number:06d}-00",
                "path": rain.path if run.model == PLAIN or run.guided else clip.path,
                "caption": clip.caption,
                "labels": list(clip.labels),
                "reference": clip.clip_id,
            }
            for number, clip in enumerate(real)
        ]
        write_text(tmp_path / "generated" / run.name / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "evaluated").mkdir()
    evaluate_stage(config, 0, tmp_path / "evaluated" / "s0", lambda done, total, what: None)
    card = read_card(tmp_path / "evaluated" / "s0", "scores of a study")
    ways = [run.way for run in runs_of(config, 0) if run.prompts == "held-out"]
    # the real clips themselves are no nearer to their class than the yardstick has it: their own recordings are passed over
    shares = {way: np.mean(list(card["nearest"][way].values())) for way in (*ways, "real")}
    rainy = ("plain-held-out", "both-held-out-k2-guided")
    assert shares == {way: 0.25 if way in rainy else shares["real"] for way in (*ways, "real")}
    guided = next(run for run in runs_of(config, 0) if run.way == rainy[1])
    assert _beyond_unguided(config, tmp_path, guided)["value"] == pytest.approx(0.25 - shares["real"])
    assert 0.25 < shares["real"] < 1
    chance = {clip.clip_id: 0.0 if clip.labels[0] == "bell" else 1 / 7 for clip in real}  # both bells are one sound
    assert card["nearest"]["chance"] == chance
    assert all(
        not card["nearest"][way][one] for way, one in [("real", clip.clip_id) for clip in real if not chance[clip.clip_id]]
    )
    assert set(card["nearest"]["real"].values()) <= {0.0, 1.0} and len(card["nearest"]["real"]) == len(real)
    distances = {way: list(card["metrics"]["fd_per_clip"][way].values()) for way in ways}
    assert all(len(values) == len(real) and np.isfinite(values).all() for values in distances.values())
    write_text(tmp_path / "sets" / "s0" / "card.json", '{"frequency": {"dog": 9, "bell": 2, "rain": 0, "engine": 0}}')
    found = _quality(config, tmp_path, runs_of(config, 0))
    by_chance = {row["bin"]: row["chance"] for row in found["real"]}
    assert (
        by_chance == pytest.approx({"all": 3 / 28, "0": 1 / 7, "1-3": 0.0, "4+": 1 / 7}) and found["chance"] == by_chance["all"]
    )


# --- means over seeds -------------------------------------------------------------------------------------------------


def test_means_weigh_classes_alike_and_intervals_hold_what_varies() -> None:
    found = seed_mean([{"dog": [1.0] * 9, "rain": [0.0]}, {"dog": [0.0], "rain": [0.0]}])
    assert (found.value, found.by_seed, found.clips) == (0.25, (0.5, 0.0), 12)
    alike, unlike = seed_mean([{"": [0.0, 1.0] * 20}] * 3), seed_mean([{"": [one] * 40} for one in (0.0, 0.5, 1.0)])
    assert alike.value == unlike.value == 0.5
    assert alike.high - alike.low < 0.3 < unlike.high - unlike.low  # type: ignore[operator]


def test_clips_of_one_recording_stand_or_fall_together() -> None:
    """Six clips of two recordings tell no more than two clips, and the interval of six such classes says so."""
    clips = {name: {f"{number}-{take}": float(number) for number in (0, 1) for take in "ABC"} for name in "uvwxyz"}
    alone, grouped = (_mean({0: clips}, takes) for takes in (Takes(), Takes(r"^(\d)-")))
    two = seed_mean([{name: [0.0, 1.0] for name in clips}])
    assert grouped.value == alone.value == 0.5 and grouped.clips == 36
    assert (grouped.low, grouped.high) == (two.low, two.high)
    assert grouped.high - grouped.low > 1.4 * (alone.high - alone.low)  # type: ignore[operator]


@pytest.mark.parametrize("effect", [0.0, 1.0])
@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_intervals_of_means_cover_what_they_say(seeds: int, effect: float) -> None:
    """Clips of one distribution, or of seeds that differ by an effect of their own."""
    rng = np.random.default_rng(seeds)
    held = 0
    for trial in range(200):
        shifts = effect * rng.normal(size=seeds)
        mean = seed_mean([{"": (one + rng.normal(size=15)).tolist()} for one in shifts], resamples=60, seed=trial)
        held += mean.low <= 0 <= mean.high  # type: ignore[operator]
    assert held >= 184  # 92 %: three standard deviations below 95 %, about


def test_bins_hold_every_class_once() -> None:
    frequency = {"a": 0, "b": 1, "c": 3, "d": 4, "e": 10, "f": 99}
    bins = {name: sorted(of_bin(frequency, frequency, least, below)) for name, least, below in bins_of((1, 4, 10))}
    assert bins == {"0": ["a"], "1-3": ["b", "c"], "4-9": ["d"], "10+": ["e", "f"]}


def test_shares_are_drawn_and_checked() -> None:
    parts = [("own", "#123456", [0.5, 0.25]), ("other", "#abcdef", [0.25, 0.5])]
    svg = shares_svg(["plain", "pairs"], parts, label="clips", sure=[[0.1, 0.0], [0.0, 0.0]])
    assert "#123456" in svg and "plain" in svg
    with pytest.raises(ValueError, match="expected shares for 1 rows"):
        shares_svg(["plain"], parts, label="clips")


# --- configuration ----------------------------------------------------------------------------------------------------


def _of_preset(preset: str, folder: Path, source: str = "clips.csv") -> LongtailConfig:
    """A preset with all that it wants to be told."""
    text = f'preset = "{preset}"\n[data]\nsource = "{source}"\nbackground = "sounds"\n'
    (folder / "study.toml").write_text(text)
    return load_longtail_config(folder / "study.toml")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load_and_are_echoed(tmp_path: Path, preset: str) -> None:
    config = _of_preset(preset, tmp_path)
    assert make_config(LongtailConfig, json.loads(json.dumps(config_values(config)))) == config
    plain = train_config(config, PLAIN, "clips.csv", None, 7)
    both, audio = (train_config(config, model, "clips.csv", "store", 7) for model in (BOTH, "audio"))
    assert plain.retrieval.datastore is None and both.retrieval.counts == config.retrieval.counts
    assert audio == replace(both, encoders=replace(both.encoders, caption="none"))  # and nothing else is different
    assert replace(both, retrieval=plain.retrieval) == plain


def test_the_paper_preset_is_the_papers(tmp_path: Path) -> None:
    config = _of_preset("paper", tmp_path)
    assert config.train.preset == "paper-s" and config.train.steps == 920_000
    assert config.retrieval.k == (1, 3, 5, 10) and config.retrieval.neighbors == 50 and config.retrieval.key == "audio"
    assert config.tail.edges == (1, 10, 30, 50, 100, 500) and config.tail.unseen
    assert config.quality.clap not in (None, config.retrieval.model)  # scored by another CLAP than pairs are found by


def test_guidance_is_by_default_as_everywhere() -> None:
    names = ("despecification", "deduplication", "dissimilarity")
    assert [getattr(AmgConfig(), name) for name in names] == [getattr(StudyGuidance(), name) for name in names]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tail]\ncount = [8]", r"\[tail\]: unknown key 'count'; did you mean counts"),
        ("[tail]\ncounts = [2, 4]", "falling numbers"),
        ("[tail]\ncopies = 1.0", r"should be in \[0, 1\)"),
        ("[tail]\nedges = [4, 1]", "edges should be rising"),
        ('[tail]\nalike = ["2-28314"]', "names of recordings such as '2-28314 = 2-30322', got '2-28314'"),
        ("[retrieval]\nk = [3, 1]\nshown = 3", "rising numbers from 1"),
        ("[retrieval]\nshown = 7", "should be one of k"),
        ("[retrieval]\nk = [1, 12]\nshown = 1", "asks for 12 pairs, and a datastore of the 13 training clips .* 11 at most"),
        ('[train]\nsettings = ["optimizer.step=3"]', r"\[optimizer\]: unknown key 'step'"),
        ("[guidance]\nthreshold_low = 0.5\nthreshold_high = 0.4", "low 0.5 should not be above threshold_high 0.4"),
        ('[retrieval]\nkey = "audio"', "makes vectors of captions only, so it makes no key 'audio'"),
        ('[tail]\ntau = "gaps"', "a number such as 0.5025, or 'gap', got 'gaps'"),
        ("seeds = [1, 1]", "each once"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.toml").write_text(f'preset = "smoke"\n{text}')
    with pytest.raises(ValueError, match=message):
        load_longtail_config(tmp_path / "study.toml")


def test_mini_cpu_is_planned_for_less_than_three_hours(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(10)]
    clips = [Clip(f"{name}-{n}", __file__, caption=f"{name} {n}", labels=(name,)) for name in names for n in range(24)]
    write_manifest(tmp_path / "clips.jsonl", clips)
    config = load_longtail_config(preset="mini-cpu", source=str(tmp_path / "clips.jsonl"))
    plan = plan_longtail(config, tmp_path / "out")
    assert plan.seconds is not None and 3600 < plan.seconds < 3 * 3600
    stages = {row.kind: row.stages for row in plan.rows}
    assert (stages["training"], stages["training with pairs"], stages["auditing"]) == (3, 9, 12)
    assert not (tmp_path / "out").exists()
    write_manifest(tmp_path / "clips.jsonl", clips[:-30])
    with pytest.raises(ValueError, match="names 10 classes, and the clips are of 9"):
        plan_longtail(config, tmp_path / "out")


@pytest.mark.parametrize("preset", ["small-gpu", "paper"])
def test_published_sizes_can_be_planned_of_a_source_that_just_suffices(tmp_path: Path, preset: str) -> None:
    config = _of_preset(preset, tmp_path, str(tmp_path / "clips.jsonl"))
    sizes = [(count or config.tail.open) + config.tail.held_out for count in config.tail.counts]
    names = [f"class {number:03d}" for number in range(len(sizes))]
    clips = [
        Clip(f"{name}-{n}", __file__, caption=f"{name} {n}", labels=(name,))
        for name, size in zip(names, sizes, strict=True)
        for n in range(size)
    ]
    write_manifest(tmp_path / "clips.jsonl", clips)
    plan = plan_longtail(config, tmp_path / "out")
    assert plan.seconds is not None and not any(row.measured for row in plan.rows)  # estimated, of every kind
    stages = {row.kind: (row.stages, row.amount) for row in plan.rows}
    seeds, steps = len(config.seeds), config.train.steps
    assert stages["training"] == (seeds, seeds * steps) and stages["training with pairs"] == (3 * seeds, 3 * seeds * steps)
    write_manifest(tmp_path / "clips.jsonl", clips[1:])  # of the most frequent class
    with pytest.raises(ValueError, match=f"no class is left with {config.tail.counts[0]} clips"):
        plan_longtail(config, tmp_path / "out")


@pytest.mark.parametrize("wanted", [0, 5, 400])
def test_how_many_clips_are_planned_is_how_many_prompts_there_are(tmp_path: Path, wanted: int) -> None:
    smoke = load_longtail_config(preset="smoke")
    config = replace(
        smoke,
        seeds=(0,),
        tail=StudyTail(counts=(13, 6, 3, 0), held_out=3, open=4, copies=0.0),
        generate=replace(smoke.generate, clips=wanted),
    )
    write_manifest(tmp_path / "source" / "clips.jsonl", _clips())
    run_stages([stage for stage in stages_of(config) if stage.place == "sets/s0"], tmp_path)
    lists = {"training": "prompts", "held-out": "held-out"}
    for run in runs_of(config, 0):
        path = tmp_path / "sets" / "s0" / f"{lists[run.prompts]}.jsonl"
        assert len(read_manifest(path)) == clips_made(config, run), run.way


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    given = ["study", "longtail", "--preset", "smoke", "-o", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert re.search(r"generating guided\s*│\s*6 │\s*0 │\s*40 clips", result.output), result.output
    plan = json.loads(CliRunner().invoke(app, [*given, "--json"]).output)
    assert plan["seconds"] == pytest.approx(sum(row["seconds"] for row in plan["stages"]))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_a_folder_of_other_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with study_folder(out, KIND, task_of(_config())):
        pass
    plan_longtail(replace(_config(), threads=1), out)  # which decides nothing
    with pytest.raises(OutputFolderError, match="generate.steps: 2 there, 3 here"):
        plan_longtail(replace(_config(), generate=replace(_config().generate, steps=3)), out)


def test_a_plan_says_that_takes_are_not_told_apart(tmp_path: Path) -> None:
    clips = [replace(clip, path=str(tmp_path / Path(clip.path).name)) for clip in _clips()]
    for clip in clips:
        Path(clip.path).touch()
    write_manifest(tmp_path / "clips.jsonl", clips)
    config = replace(_config(), tail=StudyTail(counts=(13, 6, 3, 0), held_out=3, open=4))
    config = replace(config, data=StudyData(source=str(tmp_path / "clips.jsonl")))
    warned = [
        plan_longtail(replace(config, data=replace(config.data, group=group)), tmp_path / "out").warnings
        for group in (None, r"^(\w+-\d+)")
    ]
    assert "[data] group" in warned[0][0] and warned[1] == ()


def test_the_documentation_names_every_key_and_no_other() -> None:
    page = (Path(__file__).parents[1] / "docs" / "studies.md").read_text("utf-8")
    own = page.partition("### Keys of the long tail")[2].partition("\n## ")[0]
    named = {
        key for line in own.splitlines() if line.startswith("| `") for key in re.findall(r"`([a-z_.]+)`", line.split("|")[1])
    }
    values = config_values(LongtailConfig())
    known = {f"{name}.{key}" for name, table in values.items() if isinstance(table, dict) for key in table}
    shared = {key for key in known if key.split(".")[0] in ("data", "train", "generate", "audits")}
    shared |= {f"rates.{key}" for key in ("training", "generating", "auditing", "deduplicating", "preparing")}
    assert named == known - shared


# --- the whole --------------------------------------------------------------------------------------------------------


def _config() -> LongtailConfig:
    smoke = load_longtail_config(preset="smoke")
    return replace(
        smoke,
        seeds=(0,),
        train=replace(smoke.train, steps=2),
        tail=replace(smoke.tail, counts=(5, 3, 2, 0)),
        generate=replace(smoke.generate, steps=2, clips=4),
        audits=replace(smoke.audits, descriptors=("mel",), background_clips=6, null_clips=10),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_longtail(_config(), tmp_path_factory.mktemp("study") / "out")


@pytest.mark.slow
def test_a_study_leaves_what_it_promised(finished: Study) -> None:
    card, config, folder = finished.card, _config(), finished.path
    runs = runs_of(config, 0)
    assert card["counts"] == {"models": 4, "audits": 2, "clips": sum(clips_made(config, run) for run in runs)}
    assert [row["way"] for row in card["copying"]] == [run.way for run in runs]
    assert all(row["clips"] == clips_made(config, run) for row, run in zip(card["copying"], runs, strict=True))
    for row in card["copying"]:
        assert sum(row["nearest_kinds"][kind]["flagged"] for kind in KINDS) == row["clips"]
    assert CliRunner().invoke(app, ["info", str(folder)]).exit_code == 0
    copies = {origin(clip.clip_id) for clip in read_manifest(folder / "sets" / "s0" / "copies.jsonl")}
    assert copies and card["sets"][0]["copies"] == len(copies)
    known = read_manifest(folder / "sets" / "s0" / "references.jsonl")
    measured = read_card(folder / "indexes" / "s0-both-thresholds", "thresholds of guidance")["measured"]
    assert measured["references"] == len(known) - len(copies)  # how similar copies are is no threshold
    assert [one["clips"] for one in card["sensitivity"]] == [config.prompts]
    held_out = [[row["seed"] for row in rows_of(folder, run)] for run in runs if run.prompts == "held-out"]
    assert all(one == held_out[0] for one in held_out)  # the same noise, so that ways can be compared prompt by prompt
    for run in runs:
        for row in rows_of(folder, run):
            shown = {origin(one) for one in row.get("retrieved", [])}
            assert len(row.get("retrieved", [])) == run.k
            # a clip is never shown itself; where duplicates are allowed, it is shown its own
            assert row["reference"] not in row.get("retrieved", [])
            assert (row["reference"] in shown) == (run.model == ID and row["reference"] in copies and not run.swapped)
    unguided = Run(0, BOTH, "training", 2, "excluding-duplicates")
    for way in (replace(unguided, guided=True), replace(unguided, swapped=True)):
        pairs = [
            (one["retrieved"], other["retrieved"])
            for one, other in zip(rows_of(folder, unguided), rows_of(folder, way), strict=True)
        ]
        assert all((one == other) is way.guided for one, other in pairs)
    held_out = [run.way for run in runs if run.prompts == "held-out"]
    assert list(dict.fromkeys(row["way"] for row in card["quality"] if row["metric"] == "own_class")) == held_out
    unseen = list(card["sets"][0]["frequency"])[-1]
    opened = Datastore.load(folder / "datastores" / "s0-open").pairs["labels"].to_pylist()
    closed = Datastore.load(folder / "datastores" / "s0-excluding-duplicates").pairs["labels"].to_pylist()
    assert [unseen] in opened and [unseen] not in closed
    assert make_config(LongtailConfig, card["config"]) == config
    page = (folder / "report.html").read_text("utf-8")
    assert sentence(card) in page.replace("&#39;", "'") and "<script" not in page and page.count("<audio") >= 7
    with pytest.raises(OutputFolderError, match="generate.steps: 2 there, 3 here"):
        study_longtail(replace(config, generate=replace(config.generate, steps=3)), folder)


@pytest.mark.slow
def test_what_a_parrot_says_again_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each three clips a model's is put aside for a copy of its prompt's clip, of a pair that was shown, and for a new
    sound; each is counted as what it is, and nothing else is flagged."""
    config = replace(_config(), generate=replace(_config().generate, clips=9))
    config = replace(config, audits=replace(config.audits, background_clips=12, null_clips=40, level=0.05))
    planted: dict[str, Counter[str]] = {}

    def parrot(config: LongtailConfig, model: Path, prompts: Path, seed: int, place: Path, *more: Any, **settings: Any) -> None:
        generate_clips(config, model, prompts, seed, place, *more, **settings)
        known = {clip.clip_id: clip.path for clip in read_manifest(place.parents[1] / "sets" / "s0" / "references.jsonl")}
        kinds = planted[place.name.removeprefix("s0-")] = Counter()
        for number, row in enumerate(read_rows(place / "manifest.jsonl")):
            path, own, pairs = place / row["path"], row["reference"], row.get("retrieved") or []
            rate_hz = sf.info(path).samplerate
            said = [own, next(iter(pairs), None), None][number % 3] if own in known else None
            if said is None:
                # what no audit could take for a clip: how often real sounds that are no copies are flagged, is not asked here
                swell = np.geomspace(1e-4, 0.3, sf.info(path).frames)
                sf.write(path, swell * np.random.default_rng(number).standard_normal(len(swell)), rate_hz)
                continue
            sf.write(path, read_audio(known[said], sample_rate_hz=rate_hz).samples, rate_hz)
            shown = own in {origin(pair) for pair in pairs}
            kinds[("own_shown" if shown else "own") if origin(said) == own else "reference"] += 1

    monkeypatch.setattr("auscult.studies.longtail.making.generate_clips", parrot)
    card = study_longtail(config, tmp_path / "out").card
    rows = [row for row in card["copying"] if row["prompts"] == "training"]
    assert [row["way"] for row in rows] == [run.way for run in runs_of(config, 0) if run.prompts == "training"]
    assert planted["both-training-k2"] == {"own": 3, "reference": 3} and planted["plain-training"] == {"own": 3}
    assert planted["id-training-k2"]["own_shown"]
    for row in rows:
        found = {kind: one["flagged"] for kind, one in row["flagged_kinds"].items() if kind in KINDS and one["flagged"]}
        assert found == dict(planted[row["way"]]), row["way"]


@pytest.mark.slow
def test_a_killed_study_ends_as_one_that_was_never_stopped(finished: Study, tmp_path: Path) -> None:
    out = kill_when_there(
        "test_studies_longtail",
        "longtail",
        tmp_path,
        ("models/s0-both/checkpoints", "generated/s0-id-training-k2-guided.partial"),
    )
    again = study_longtail(_config(), out)
    assert sum(line["resumed"] for line in read_times(out)) >= 1
    for name in ("copying", "nearer", "guided", "quality", "real"):
        assert again.card[name] == finished.card[name]
