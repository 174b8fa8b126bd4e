"""Studies: stages that go on where they were stopped, plans, sets, intervals, and the memorization study end to end."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf

pytest.importorskip("diffusers")

from typer.testing import CliRunner

from auscult.cli import app
from auscult.configuration import config_values, make_config
from auscult.corpus import Clip
from auscult.errors import CorpusError, OutputFolderError, StoreError
from auscult.folders import write_card, write_text
from auscult.review.intervals import clopper_pearson
from auscult.studies.config import PRESETS, StudyAudits
from auscult.studies.figures import Series, rates_svg
from auscult.studies.flagging import is_matched, is_undecided, too_few_null_clips
from auscult.studies.hearing import pairs_to_hear
from auscult.studies.memorization.arms import arms_of, clips_made
from auscult.studies.memorization.config import MemorizationConfig, load_memorization_config, train_config
from auscult.studies.memorization.results import _by_repetition, _duplicates, _point
from auscult.studies.memorization.study import plan_memorization, stages_of, study_memorization
from auscult.studies.rates import INTERVAL, pooled, separation
from auscult.studies.running import Study
from auscult.studies.sets import chosen, divide, read_manifest, read_pool, repeated, write_manifest
from auscult.studies.stages import Stage, measured_rates, plan_stages, read_times, run_stages, study_folder
from killed_study import kill_when_there

# --- stages -----------------------------------------------------------------------------------------------------------


def _stage(place: str, made: list[str], amount: float = 10, kind: str = "writing") -> Stage:
    def make(path: Path, progress: Any) -> None:
        made.append(place)
        progress(1, 1, "written")
        write_text(path, place)

    return Stage(place, kind, amount, "letters", make)


def test_stages_are_made_once_and_in_order(tmp_path: Path) -> None:
    made: list[str] = []
    told: list[str] = []
    stages = [_stage(place, made) for place in ("b", "below/a", "c")]
    run_stages(stages, tmp_path, lambda done, total, what: told.append(what))
    assert made == ["b", "below/a", "c"] and told == ["1/3 b: written", "2/3 below/a: written", "3/3 c: written"]
    (tmp_path / "below" / "a").unlink()
    run_stages(stages, tmp_path)
    assert made == ["b", "below/a", "c", "below/a"]


def test_a_stopped_stage_is_made_again_and_what_was_done_is_not(tmp_path: Path) -> None:
    made: list[str] = []

    def fails(path: Path, progress: Any) -> None:
        path.mkdir()
        raise KeyboardInterrupt

    first, last = _stage("first", made), _stage("last", made)
    with pytest.raises(KeyboardInterrupt):
        run_stages([first, Stage("middle", "writing", 10, "letters", fails), last], tmp_path)

    def goes_on(path: Path, progress: Any) -> None:
        write_card(path, "test", {})

    run_stages([first, Stage("middle", "writing", 10, "letters", goes_on), last], tmp_path)
    assert made == ["first", "last"]
    # the time of the rest of a stage says nothing about the whole
    assert [(line["place"], line["resumed"]) for line in read_times(tmp_path)] == [
        ("first", False),
        ("middle", True),
        ("last", False),
    ]


def test_stages_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a place of its own"):
        run_stages([_stage("a", []), _stage("a", [])], tmp_path)
    with pytest.raises(OutputFolderError, match="was to be made, and is not there"):
        run_stages([Stage("a", "writing", 1, "letters", lambda path, progress: None)], tmp_path)


def test_a_plan_takes_the_measured_rate_and_else_the_stated_one(tmp_path: Path) -> None:
    write_text(tmp_path / "task.json", "{}")  # of a study
    stages = [_stage(place, []) for place in "abc"] + [_stage("d", [], 6, "reading"), _stage("e", [], 1, "asking")]
    before = plan_stages(stages, tmp_path, {"writing": 5.0, "reading": 3.0})
    assert [(row.kind, row.stages, row.done, row.seconds, row.measured) for row in before.rows] == [
        ("writing", 3, 0, 6.0, False),
        ("reading", 1, 0, 2.0, False),
        ("asking", 1, 0, None, False),
    ]
    assert before.seconds is None  # of one kind nobody knows
    lines = [
        {"place": "a", "kind": "writing", "amount": 10, "seconds": 40.0, "resumed": False},
        {"place": "b", "kind": "writing", "amount": 10, "seconds": 0.1, "resumed": True},
    ]
    write_text(tmp_path / "a", "a")
    write_text(tmp_path / "times.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + '{"place": "c", "ki')
    after = plan_stages(stages, tmp_path, {"writing": 5.0, "reading": 3.0, "asking": 1.0})
    assert measured_rates(tmp_path) == {"writing": 0.25}
    assert [(row.done, row.seconds, row.measured) for row in after.rows] == [(1, 80.0, True), (0, 2.0, False), (0, 1.0, False)]
    assert after.seconds == 83.0
    run_stages(stages[1:2], tmp_path)  # which mends the line that a kill has cut
    assert [line["place"] for line in read_times(tmp_path)] == ["a", "b", "b"]


def test_a_folder_is_of_one_study_and_held_by_one_process(tmp_path: Path) -> None:
    with study_folder(tmp_path / "out", "test", {"seeds": (0, 1), "train": {"steps": 5}}) as folder:
        assert folder == tmp_path / "out"
        with (
            pytest.raises(StoreError, match="another process"),
            study_folder(folder, "test", {"seeds": (0, 1), "train": {"steps": 5}}),
        ):
            pass
    with study_folder(tmp_path / "out", "test", {"seeds": (0, 1), "train": {"steps": 5}}):
        pass
    with (
        pytest.raises(OutputFolderError, match=r"train.steps: 5 there, 6 here"),
        study_folder(tmp_path / "out", "test", {"seeds": (0, 1), "train": {"steps": 6}}),
    ):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputFolderError, match="is not a study"), study_folder(tmp_path / "mine", "test", {}):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


# --- sets -------------------------------------------------------------------------------------------------------------


def _clips(count: int, takes: int = 1) -> list[Clip]:
    return [Clip(f"{n // takes:03d}-{n % takes}", f"/{n}.wav", caption=f"sound {n}") for n in range(count)]


@pytest.mark.parametrize("takes", [1, 3])
def test_sets_are_nested_and_leave_no_recording_on_both_sides(takes: int) -> None:
    clips = _clips(60, takes)
    for seed in range(5):
        parts = [divide(clips, size, seed, r"(\d+)-") for size in (4, 10, 30, 60)]
        for small, large in itertools.pairwise(parts):
            assert large.training[: len(small.training)] == small.training
        for part in parts:
            trained = {clip.clip_id[:3] for clip in part.training}
            assert not trained & {clip.clip_id[:3] for clip in part.rest}
            # only what is left of the one recording that was cut through is on neither side
            assert 60 - takes < len(part.training) + len(part.rest) <= 60
        assert divide(clips[::-1], 10, seed, r"(\d+)-") == parts[1]
    assert len({divide(clips, 4, seed).training for seed in range(5)}) == 5
    with pytest.raises(ValueError, match="expected at least 61 clips to train on, got 60"):
        divide(clips, 61, 0)
    with pytest.raises(ValueError, match="does not match 60 of 60 clip ids"):
        divide(clips, 4, 0, "take (.)")


def test_repeated_clips_are_there_as_often_as_asked() -> None:
    clips = _clips(40)
    again = chosen(clips, 0.1, 3)
    assert len(again) == 4 and chosen(clips, 0.1, 3) == again != chosen(clips, 0.1, 4)
    many = repeated(clips, again, 16)
    assert len({clip.clip_id for clip in many}) == len(many) == 36 + 4 * 16
    paths = [clip.path for clip in many]
    assert {paths.count(clip.path) for clip in again} == {16}
    assert {paths.count(clip.path) for clip in clips if clip not in again} == {1}


def test_manifests_are_read_as_they_were_written(tmp_path: Path) -> None:
    clips = [Clip("a", "/a.wav", caption='ä cat, "purring"', labels=("cat",)), Clip("b#copy-2", "/b.wav", 1.5, 2.0, "b")]
    write_manifest(tmp_path / "clips.jsonl", clips)
    assert read_manifest(tmp_path / "clips.jsonl") == clips


def test_sources_that_no_study_can_draw_from(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", np.zeros(800), 16_000)
    with pytest.raises(CorpusError, match="1 of 1 clips have no caption"):
        read_pool(str(tmp_path))
    write_manifest(tmp_path / "clips.jsonl", [Clip("a", str(tmp_path / "gone.wav"), caption="a")])
    with pytest.raises(CorpusError, match="are no files here"):
        read_pool(str(tmp_path / "clips.jsonl"))


# --- configuration ----------------------------------------------------------------------------------------------------


def _of_preset(preset: str, folder: Path) -> MemorizationConfig:
    """A preset with all that it wants to be told."""
    (folder / "study.toml").write_text(f'preset = "{preset}"\n[data]\nsource = "clips.csv"\nbackground = "unrelated.csv"\n')
    return load_memorization_config(folder / "study.toml")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load_and_are_echoed(tmp_path: Path, preset: str) -> None:
    config = _of_preset(preset, tmp_path)
    assert config.preset == preset
    assert make_config(MemorizationConfig, json.loads(json.dumps(config_values(config)))) == config
    model = train_config(config, "clips.csv", 7)
    assert (model.seed, model.optimizer.steps, model.mixing.share) == (7, config.train.steps, config.train.mixing)
    assert model.data.validation_share == 0 and not model.gates.conditions


def test_the_paper_preset_is_the_papers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="should name clips"):  # its background is not to be made up
        load_memorization_config(preset="paper", source="clips.csv")
    config = _of_preset("paper", tmp_path)
    assert config.sizes == (1000, 5000, 45000) and config.train.steps == 62_200 and config.train.mixing == 0.5
    assert (config.generate.steps, config.generate.guidance_scale) == (200, 3.0)
    assert config.audits.taus() == {"mel": 0.5005, "clap": "match:mel"} and config.audits.duration_s == 10.242
    assert config.duplicates.tau == 0.5025
    assert config.audits.compared_by == ("mel", "contrast", "clap")
    assert [clips_made(config, arm) for arm in arms_of(config)[:3]] == [1000, 5000, 45000]


def test_mini_cpu_is_planned_for_less_than_three_hours(tmp_path: Path) -> None:
    write_manifest(tmp_path / "clips.jsonl", [Clip(f"{n}", __file__, caption=f"{n}") for n in range(240)])
    config = load_memorization_config(preset="mini-cpu", source=str(tmp_path / "clips.jsonl"))
    plan = plan_memorization(config, tmp_path / "out")
    assert plan.seconds is not None and 3600 < plan.seconds < 3 * 3600
    assert {row.kind: row.stages for row in plan.rows} == {
        "preparing": 1 + 36 + 4 + 12,
        "training": 33,
        "generating": 36,
        "auditing": 2 * (36 + 12 + 12),
        "deduplicating": 3,
    }
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="expected at least 241 clips"):
        plan_memorization(replace(config, sizes=(24, 80, 241)), tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size = [8]", "unknown key 'size'; did you mean sizes"),
        ("[train]\nstep = 3", r"\[train\]: unknown key 'step'; did you mean steps"),
        ('[train]\nsettings = ["optimizer.step=3"]', r"\[optimizer\]: unknown key 'step'"),
        ("sizes = [24, 8]", "rising numbers"),
        ("seeds = [1, 1]", "each once"),
        ("[duplicates]\nsize = 9", "one of sizes"),
        ("[duplicates]\ncopies = [4, 1]", "rising numbers from 1"),
        ('[audits]\ntau = ["mel:0.5"]', "should be such as"),
        ('[audits]\ntau = ["mle=0.5"]', "'mle' is not compared by; that is contrast, mel"),
        ('[audits]\ntau = ["contrast=match:mel"]', "before it: there is none"),
        ("[audits]\nfdr = 1.5", "between 0 and 1"),
        ('[data]\nbackground = ""', "should name clips"),
        ('[data]\ngroup = "a.+"', "needs parentheses"),
        ('[train]\nsettings = ["seed=0", "optimizer.batch=4"]', "settings: seed is what the study itself"),
        ("[epochs]\nsize = 9", r"\[epochs\] size should be one of sizes"),
        ("[epochs]\nsize = 8\nsteps = [700]", "beside those of"),
        ('[audits]\ndescriptors = ["mel", "mfcc"]', "got mfcc"),
        ('preset = "large"', "there is no preset 'large'"),
        ("seeds = [", "not valid TOML"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_memorization_config(tmp_path / "study.toml", source="clips.csv")
    with pytest.raises(ValueError, match=r"name captioned ones: \[data\] source"):
        load_memorization_config(preset="mini-cpu")


def test_a_background_of_the_training_clips_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    smoke = load_memorization_config(preset="smoke")
    for background, message in (("pool", "would be the training clips themselves"), (str(tmp_path / "gone"), "gone")):
        with pytest.raises((ValueError, CorpusError), match=message):
            study_memorization(replace(smoke, data=replace(smoke.data, background=background)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_how_many_clips_are_planned_is_how_many_prompts_there_are(tmp_path: Path) -> None:
    smoke = load_memorization_config(preset="smoke")
    for wanted, size in itertools.product((0, 7, 40), (8, 20, 90)):
        folder = tmp_path / f"{wanted}-{size}"
        write_manifest(folder / "source" / "clips.jsonl", _clips(90))
        sampling, asked = replace(smoke.generate, clips=wanted), replace(smoke.duplicates, size=size)
        epochs = replace(smoke.epochs, size=size)
        config = replace(smoke, sizes=(size,), seeds=(0,), generate=sampling, epochs=epochs, duplicates=asked)
        run_stages([stage for stage in stages_of(config) if stage.place.startswith("sets/")], folder)
        for arm in arms_of(config):
            assert len(read_rows(folder / "sets" / arm.name / "prompts.jsonl")) == clips_made(config, arm)


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('preset = "smoke"\nseeds = [0]\n[duplicates]\nsize = 0\n[epochs]\nsize = 0\n')
    given = ["study", "memorization", str(tmp_path / "study.toml"), "-o", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert re.search(r"training\s*│\s*2 │\s*0 │\s*80 training steps", result.output), result.output
    plan = json.loads(CliRunner().invoke(app, [*given, "--json"]).output)
    assert {row["kind"]: row["amount"] for row in plan["stages"]} == {
        "preparing": 1 + 2 + 4 + 2,
        "training": 80,
        "generating": 8 + 8,
        "auditing": 2 * (8 + 8) + 2 * (4 + 8),
    }
    assert plan["seconds"] == pytest.approx(sum(row["seconds"] for row in plan["stages"]))
    assert not (tmp_path / "out").exists()


def test_the_documentation_names_every_key_and_no_other() -> None:
    page = (Path(__file__).parents[1] / "docs" / "studies.md").read_text("utf-8")
    table = page.partition("## All keys")[2].partition("## Files")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {key for row in rows for key in re.findall(r"`([a-z_.]+)`", row)}
    known = {key for key, value in config_values(MemorizationConfig()).items() if not isinstance(value, dict)}
    tables = {key: value for key, value in config_values(MemorizationConfig()).items() if isinstance(value, dict)}
    known |= {f"{name}.{key}" for name, table in tables.items() for key in table}
    assert named == known


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- intervals and figures --------------------------------------------------------------------------------------------


def test_a_single_model_has_clopper_and_pearsons_interval() -> None:
    one = pooled([(3, 40, 40)])
    assert (one.low, one.high) == pytest.approx(clopper_pearson(3, 40))
    agreeing = pooled([(40, 40, 8)] * 3)
    assert (agreeing.rate, agreeing.low, agreeing.high) == (1.0, pytest.approx(clopper_pearson(24, 24)[0]), 1.0)
    assert pooled([]).rate is None and pooled([(0, 0, 0)]).models == 0


def test_seeds_that_differ_widen_the_interval() -> None:
    alike, unlike = pooled([(20, 40, 40)] * 3), pooled([(10, 40, 40), (20, 40, 40), (30, 40, 40)])
    assert alike.rate == unlike.rate == 0.5
    assert alike.high - alike.low < 0.2 < 0.5 < unlike.high - unlike.low


@pytest.mark.parametrize(("a", "b", "least"), [(3.0, 3.0, 0.93), (9.5, 0.5, 0.9), (0.5, 9.5, 0.9)])
@pytest.mark.parametrize(("prompts", "each"), [(40, 1), (8, 5)])
def test_intervals_over_seeds_cover(a: float, b: float, least: float, prompts: int, each: int) -> None:
    """Three models whose true rates vary, and whose prompts are copied as a whole, hold the mean rate as often as they say."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        copied = [int(rng.binomial(prompts, rate)) for rate in rng.beta(a, b, 3)]
        found = pooled([(each * one, each * prompts, prompts) for one in copied])
        assert found.low is not None and found.high is not None
        held += found.low <= a / (a + b) <= found.high
    assert held >= least * 400  # 95 % less two standard errors of 400 trials; near 0 and 1 three models tell little of spread


def test_intervals_miss_half_of_the_time_where_models_copy_all_or_nothing() -> None:
    """As the words beside every interval say: three models that agree by chance have nothing to tell them so."""
    rng, held = np.random.default_rng(0), {}
    for rate in (0.2, 0.5, 0.9):
        found = [pooled([(40 * int(copied), 40, 8) for copied in rng.random(3) < rate]) for _ in range(400)]
        held[rate] = sum(one.low <= rate <= one.high for one in found if one.low is not None and one.high is not None) / 400
    agree = {rate: rate**3 + (1 - rate) ** 3 for rate in held}
    assert held[0.2] == pytest.approx(1 - agree[0.2], abs=0.06) and held[0.5] == pytest.approx(1 - agree[0.5], abs=0.06)
    assert held[0.9] > 0.95  # in reach of the interval of 24 prompts that agree
    assert "up to half of all studies" in " ".join(INTERVAL.split())


def test_what_a_level_needs_is_rounded_up() -> None:
    for level, least in ((0.01, 99), (0.03, 33), (0.05, 19), (0.005, 199)):
        audits = StudyAudits(level=level)
        assert is_undecided(audits, "mel", least - 1) and not is_undecided(audits, "mel", least)
        text = too_few_null_clips(audits, "mel", 5)
        assert f"it takes {least}," in text and " 0 %" not in text


def test_separation_is_the_area_under_the_roc_curve() -> None:
    rng = np.random.default_rng(0)
    high, low = rng.normal(1, 1, 40), rng.normal(0, 1, 30)
    assert separation(high, low) == pytest.approx(float(np.mean(high[:, None] > low)))
    assert separation(high, np.array([])) is None


def test_the_curve_draws_every_rate_and_no_missing_one() -> None:
    first = Series("mel", "#123456", (1.0, 0.5, None), (0.9, 0.4, None), (1.0, 0.6, None))
    for narrow in (False, True):
        svg = rates_svg(["8", "24", "80"], [first], label="training clips", of="flagged", narrow=narrow)
        whole = rates_svg(
            ["8", "24", "80"], [replace(first, rates=(1.0, 0.5, 0.2), low=(0.9, 0.4, 0.1), high=(1.0, 0.6, 0.3))],
            label="training clips", of="flagged", narrow=narrow,
        )  # fmt: skip
        assert svg.count("<use") == whole.count("<use") - 3  # a point and the two ends of its interval
        assert "#123456" in svg and "training clips" in svg
    with pytest.raises(ValueError, match="expected 2 rates"):
        rates_svg(["8", "24"], [first], label="N", of="flagged")


# --- what audits say --------------------------------------------------------------------------------------------------


def _said(flagged: int, compared: int, *, undecided: bool = False, nearest: int = 0) -> dict[str, Any]:
    counts = {"flagged": flagged, "compared": compared, "prompts": compared, "undecided": undecided}
    rest = {"listed": flagged + 1, "own_clip_nearest": nearest, "separation": None, "verified": None}
    return {**counts, **rest, "control": None, "sensitivity": None}


def test_repeated_clips_are_told_from_the_others() -> None:
    """Prompts r1, r2 (repeated) and o1, o2, o3: what is flagged, and whose sound it is, each by itself."""
    rows = [
        {"query_id": prompt, "reference_id": nearest, "score": 1.0, "p_value": p, "flagged": False}
        for prompt, nearest, p in (
            ("r1", "r1", 0.01), ("r2", "o1", 0.9), ("o1", "r2", 0.01), ("o2", "r1", 0.01), ("o3", "o3", 0.01),
        )
    ]  # fmt: skip
    config, again = replace(_config(), audits=replace(_config().audits, level=0.01)), {"r1", "r2"}
    found = _by_repetition(config, "mel", rows, {row["query_id"]: row["query_id"] for row in rows}, again, 240)
    assert (found["repeated"]["flagged"], found["repeated"]["compared"]) == (1, 2)
    assert (found["once"]["flagged"], found["once"]["compared"]) == (3, 3)
    assert found["replayed"] == {"repeated": 3, "once": 1}

    model = {"audits": {"mel": found}, "copies": 16, "epochs": 10.04, "deduplicated": False}
    (line,) = _duplicates(config, [model, {**model, "epochs": 20.0}])
    assert (line["repeated"]["flagged"], line["repeated"]["clips"], line["once"]["flagged"], line["once"]["clips"]) == (
        2,
        4,
        6,
        6,
    )
    assert line["replayed"] == {"repeated": 6, "once": 2}
    # a repeated clip is seen 16 times as often, unless it was deduplicated
    assert (line["repeated"]["exposures"], line["once"]["exposures"]) == (240.3, 15.0)
    (line,) = _duplicates(config, [{**model, "deduplicated": True, "dropped": 30}])
    assert (line["repeated"]["exposures"], line["once"]["exposures"], line["dropped"]) == (10.0, 10.0, [30])


def test_a_point_counts_models_that_could_be_decided() -> None:
    audits = [_said(3, 4, nearest=2), _said(0, 4, undecided=True, nearest=3)]
    rows = [{"name": f"s{n}", "steps": 5, "epochs": 1.0, "audits": {"mel": audit}} for n, audit in enumerate(audits)]
    point = _point(rows, "mel")
    assert (point["by_seed"], point["listed"], point["rate"], point["undecided"]) == ([0.75, None], 4, 0.75, 1)
    assert point["own_clip_nearest"] == pytest.approx(5 / 8)  # which needs no null clips
    assert _point(rows[1:], "mel")["listed"] is None


def test_a_number_that_is_another_descriptors_by_construction_is_none() -> None:
    audits = StudyAudits(descriptors=("mel", "clap"), tau=("mel=0.5", "clap=match:mel"))
    assert [is_matched(audits, name) for name in ("mel", "clap")] == [False, True]
    assert not is_matched(StudyAudits(), "mel")


def test_pairs_to_hear_are_flagged_as_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the level, not by the audit's own list, over all models, and undecided where null clips are too few."""

    def opened(place: Path) -> Any:
        p_value, listed, null = {"a": (0.2, True, 240), "b": (0.01, False, 240), "c": (0.01, True, 10)}[place.name]
        score = {"a": 9.0, "b": 5.0, "c": 7.0}[place.name]
        row = {"query_id": "0", "rank": 1, "score": score, "p_value": p_value, "flagged": listed}
        table = pa.Table.from_pylist([row, {**row, "rank": 2, "score": 99.0}])
        return SimpleNamespace(card={"calibration": {"null_clips": null}}, matches=lambda: table)

    monkeypatch.setattr("auscult.studies.hearing.Audit", SimpleNamespace(open=opened))
    monkeypatch.setattr("auscult.studies.hearing.pair_sides", lambda row: {})
    found = pairs_to_hear(StudyAudits(level=0.05), "mel", [Path(name) for name in "abc"])
    assert [(one["what"], one["audit"], one["said"]) for one in found] == [
        ("the highest score", "a", "not flagged"),
        ("the highest score that is flagged", "b", "flagged"),
        ("the middle score", "c", "too few null clips to tell"),
    ]


def test_a_plan_says_that_null_clips_are_too_few() -> None:
    config = load_memorization_config(preset="smoke")
    few = replace(config, audits=replace(config.audits, null_clips=18, level=0.05))
    plan = plan_memorization(few, Path("nowhere"))
    assert len(plan.warnings) == 2 and all("18 null clips are too few" in text for text in plan.to_json()["warnings"])
    assert plan_memorization(replace(few, audits=replace(few.audits, null_clips=19)), Path("nowhere")).warnings == ()


# --- the whole --------------------------------------------------------------------------------------------------------


def _config() -> MemorizationConfig:
    smoke = load_memorization_config(preset="smoke")
    return replace(
        smoke,
        sizes=(4, 6),
        seeds=(0,),
        train=replace(smoke.train, steps=3),
        generate=replace(smoke.generate, steps=2, clips=4),
        audits=replace(smoke.audits, descriptors=("mel",), background_clips=6, null_clips=10),
        epochs=replace(smoke.epochs, size=4, steps=(2,)),
        duplicates=replace(smoke.duplicates, size=6, copies=(1, 2)),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_memorization(_config(), tmp_path_factory.mktemp("study") / "out")


@pytest.mark.slow
def test_a_study_leaves_what_it_promised(finished: Study) -> None:
    card = finished.card
    assert card["counts"] == {"models": 5, "audits": 6 + 2, "clips": 4 + 4 + 4 + 3 * (2 + 2)}
    assert CliRunner().invoke(app, ["info", str(finished.path)]).exit_code == 0
    names = ["n4-s0", "n6-s0", "n4-s0-steps2", "n6-s0-copies1", "n6-s0-copies2", "n6-s0-copies2-deduplicated"]
    assert [row["name"] for row in card["models"]] == names
    assert [row["trained_on"] for row in card["models"]] == [4, 6, 4, 6, 7, 6]
    assert [row["steps"] for row in card["models"]] == [3, 3, 2, 3, 3, 3]
    assert card["models"][-1]["dropped"] == 1  # the copy, found by its digest
    assert [(row["size"], row["descriptor"], row["clips"]) for row in card["curve"]] == [(4, "mel", 4), (6, "mel", 4)]
    models = sorted(path.name for path in (finished.path / "models").iterdir())
    assert models == sorted(name for name in names if name != "n6-s0-copies1")  # which is the plain one's
    # 10 null clips are too few for a level of 5 %: no rate, and no 0 that would look like one
    assert [(row["rate"], row["undecided"]) for row in card["curve"]] == [(None, 1)] * 2
    assert any("10 null clips are too few to tell what 5 %" in warning for warning in card["warnings"])
    assert card["plan"]["seconds"] == 0 and all(row["measured"] for row in card["plan"]["stages"])
    assert make_config(MemorizationConfig, card["config"]) == _config()
    page = (finished.path / "report.html").read_text("utf-8")
    assert "more than 90 % of the generated clips are replicas" in page and "<script" not in page
    assert page.count("<audio") == 2 * 2 * 2  # of two sizes two pairs
    # other settings are refused, and a change of rates and threads is none
    with pytest.raises(OutputFolderError, match="generate.steps: 2 there, 3 here"):
        study_memorization(replace(_config(), generate=replace(_config().generate, steps=3)), finished.path)


@pytest.mark.slow
def test_a_finished_study_takes_up_verdicts(finished: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from auscult.audit import Audit
    from auscult.review.verdicts import VerdictStore

    monkeypatch.setattr("auscult.generation.training.train", None)  # nothing is made again
    monkeypatch.setattr("auscult.generation.generating.generate", None)
    audit = Audit.open(finished.path / "audits" / "n4-s0-mel")
    row = audit.queries().to_pylist()[0]
    with VerdictStore.open(audit.path) as store:
        store.add(row["query_id"], row["reference_id"], verdict="replication", reviewer="ann")
    again = study_memorization(replace(_config(), threads=None), finished.path)
    (told,) = again.card["curve"][0]["verified"]
    assert told.startswith("n4-s0: ") and "1" in told and again.card["curve"][1]["verified"] == []
    assert "Verified, mel: n4-s0: " in (finished.path / "report.html").read_text("utf-8")


# --- planted truth ----------------------------------------------------------------------------------------------------

RATE_HZ = 16_000


def _parrot(clips: dict[str, Path]) -> Any:
    """Instead of a model: of each prompt with an even number its training clip, at another level; of the others a sound that
    is nobody's, or where clips are repeated four times, one of these."""
    from auscult.sounds import FAMILIES, synthesise

    def generate(config: Any, model: Any, prompts: Path, seed: int, place: Path, progress: Any, **settings: Any) -> None:
        (place / "audio").mkdir(parents=True)
        rows, often = [], prompts.parent / "repeated.jsonl"
        for number, row in enumerate(read_rows(prompts)):
            path = place / "audio" / f"{number:03d}.flac"
            if "copies4" in place.name and int(row["clip_id"].partition("-")[0]) % 2:
                samples = 0.6 * sf.read(clips[read_rows(often)[0]["clip_id"]])[0]
            elif int(row["clip_id"].partition("-")[0]) % 2 == 0:
                samples = 0.6 * sf.read(clips[row["clip_id"]])[0]
            else:
                samples = synthesise(list(FAMILIES)[number % 4], np.random.default_rng([77, seed, number]), duration_s=2.56,
                                     rate_hz=RATE_HZ).samples  # fmt: skip
            sf.write(path, samples, RATE_HZ)
            rows.append({"clip_id": f"{number:03d}", "path": str(path), "caption": "x", "reference": row["clip_id"]})
        write_text(place / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        write_card(place, "generation", {})

    return generate


@pytest.mark.slow
def test_copies_are_counted_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that copies half of its prompts, 50 % are flagged at every size, all clips of the source included, and of
    clips of other recordings none; takes of one recording are not mistaken for chance."""
    from auscult.sounds import FAMILIES, synthesise

    rng, clips, pool = np.random.default_rng(3), {}, []
    for number in range(30):
        whole = synthesise(list(FAMILIES)[number % len(FAMILIES)], np.random.default_rng([9, number]), duration_s=2.56,
                           rate_hz=RATE_HZ).samples  # fmt: skip
        for take in "ab":
            path = tmp_path / "clips" / f"{number}-{take}.flac"
            path.parent.mkdir(exist_ok=True)
            sf.write(path, 0.9 * whole + 1e-4 * rng.standard_normal(len(whole)), RATE_HZ)
            clips[path.stem] = path
            pool.append(Clip(path.stem, str(path), caption=f"sound {path.stem}"))
    write_manifest(tmp_path / "clips.jsonl", pool)
    monkeypatch.setattr("auscult.studies.memorization.making.generate_clips", _parrot(clips))
    monkeypatch.setattr("auscult.studies.memorization.making.through_codec", _softer)
    monkeypatch.setattr("auscult.studies.memorization.making.train_model", _no_training)
    smoke = load_memorization_config(preset="smoke")
    config = replace(
        smoke,
        sizes=(10, 60),
        seeds=(0, 1),
        data=replace(smoke.data, source=str(tmp_path / "clips.jsonl"), null="pool", group=r"^(\d+)-"),
        train=replace(smoke.train, settings=(*smoke.train.settings, "data.duration_s=2.56")),
        generate=replace(smoke.generate, clips=20),  # of 10 clips two each, and of 60 some
        audits=replace(smoke.audits, descriptors=("contrast", "mel"), level=0.02),
        epochs=replace(smoke.epochs, size=0),
        duplicates=replace(smoke.duplicates, size=60, copies=(1, 4), deduplicate=False),
    )
    card = study_memorization(config, tmp_path / "out").card
    for row in card["curve"]:
        asked = [read_rows(tmp_path / "out" / "sets" / f"n{row['size']}-s{seed}" / "prompts.jsonl") for seed in (0, 1)]
        copied = sum(int(one["clip_id"].partition("-")[0]) % 2 == 0 for rows in asked for one in rows)
        assert row["clips"] == 2 * 20 and row["separation"][0] > 0.5
        assert copied <= row["flagged"] <= copied + 0.1 * row["clips"], row
    assert all(row["sensitivity"]["rate"] >= 0.95 for row in card["curve"]), [row["sensitivity"] for row in card["curve"]]
    small, large = ([row["control"] for row in card["curve"] if row["size"] == size] for size in (10, 60))
    assert all(row["rate"] <= 0.15 for row in small) and all(row["rate"] is None for row in large)  # nothing is left of 60
    assert all(50 <= audit["null_clips"] <= 60 for row in card["models"] for audit in row["audits"].values())
    for row in card["duplicates"]:
        replayed, made = row["replayed"], row["repeated"]["clips"] + row["once"]["clips"]
        assert sum(replayed.values()) == row["repeated"]["flagged"] + row["once"]["flagged"]
        if row["copies"] == 4:  # odd prompts call up a repeated clip, whether their own clip is repeated or not
            assert row["once"]["flagged"] >= 0.9 * row["once"]["clips"] and replayed["repeated"] >= 0.45 * made, row
            assert replayed["once"] > 0, row


def _softer(config: Any, model: Any, clips: list[Clip], place: Path, progress: Any) -> None:
    (place / "audio").mkdir(parents=True)
    rows = []
    for clip in clips:
        path = place / "audio" / f"{clip.clip_id}.flac"
        sf.write(path, 0.5 * sf.read(clip.path)[0], RATE_HZ)
        rows.append({"clip_id": clip.clip_id, "path": str(path), "reference": clip.clip_id})
    write_text(place / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_card(place, "clips of a codec", {})


def _no_training(config: Any, place: Path, progress: Any) -> None:
    place.mkdir(parents=True)
    write_card(place, "training", {"counts": {"trained_on": 1}})


@pytest.mark.slow
def test_a_killed_study_ends_as_one_that_was_never_stopped(finished: Study, tmp_path: Path) -> None:
    places = ("models/n4-s0/checkpoints", "generated/n6-s0.partial")
    out = kill_when_there("test_studies", "memorization", tmp_path, places)
    again = study_memorization(_config(), out)
    assert sum(line["resumed"] for line in read_times(out)) >= 1
    for name in ("models", "curve", "epochs", "duplicates"):
        assert again.card[name] == finished.card[name]


def test_a_folder_of_something_else_is_refused_before_the_plan(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    result = CliRunner().invoke(app, ["study", "memorization", "--preset", "smoke", "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, OutputFolderError) and "time left" not in result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
