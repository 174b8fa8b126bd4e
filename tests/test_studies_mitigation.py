"""The mitigation study: arms, sets, paired tests, figures, and the whole from a model that copies to card and report."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
from typer.testing import CliRunner

from auscult.cli import app
from auscult.configuration import config_values, make_config
from auscult.corpus import Clip
from auscult.errors import CorpusError, ModelError, OutputFolderError
from auscult.folders import read_card, write_text
from auscult.generation.clips import read_rows
from auscult.guidance.amg import AmgConfig
from auscult.guidance.index import ReferenceIndex
from auscult.studies.config import PRESETS, StudyAudits
from auscult.studies.longtail.config import load_longtail_config
from auscult.studies.longtail.study import plan_longtail
from auscult.studies.making import torch_threads
from auscult.studies.memorization.config import load_memorization_config
from auscult.studies.memorization.config import train_config as memorization_train_config
from auscult.studies.memorization.study import plan_memorization
from auscult.studies.memorization.study import stages_of as memorization_stages
from auscult.studies.mitigation.arms import arms_of, audited_by, clips_made, swept_arm, swept_arms
from auscult.studies.mitigation.config import MitigationConfig, load_mitigation_config, train_config
from auscult.studies.mitigation.figures import Point, Value, number_points, sweep_svg, tradeoff_svg
from auscult.studies.mitigation.making import thresholds_of
from auscult.studies.mitigation.page import _tradeoffs, sentence, traced_arm
from auscult.studies.mitigation.quality import mean_scores
from auscult.studies.mitigation.results import _control, _paired, _rates, _row
from auscult.studies.mitigation.study import plan_mitigation, stages_of, study_mitigation
from auscult.studies.mitigation.tables import StudyGuidance
from auscult.studies.running import Study, task_of
from auscult.studies.sets import read_manifest, write_manifest
from auscult.studies.stages import Stage, read_times, run_stages
from killed_study import kill_when_there

# --- configuration and arms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load_and_are_echoed(tmp_path: Path, preset: str) -> None:
    text = f'preset = "{preset}"\n[data]\nsource = "clips.csv"\nbackground = "unrelated.csv"\n'
    (tmp_path / "study.toml").write_text(text)
    config = load_mitigation_config(tmp_path / "study.toml")
    assert make_config(MitigationConfig, json.loads(json.dumps(config_values(config)))) == config
    for arm in (*arms_of(config), *swept_arms(config)):
        arm.amg(config.guidance.amg(0.4, 0.5))  # settings that cannot be are errors
        assert not set(audited_by(config, arm)) & {"latents": {"latents"}, "clap": {"clap"}}.get(arm.descriptor, {"mel"})


def test_models_are_those_of_the_memorization_study() -> None:
    ours, theirs = (load(preset="mini-cpu", source="clips.csv") for load in (load_mitigation_config, load_memorization_config))
    assert ours.size in theirs.sizes and ours.seeds == theirs.seeds and ours.threads == theirs.threads
    assert train_config(ours, "set.jsonl", 2) == memorization_train_config(theirs, "set.jsonl", 2)


def test_each_arm_changes_what_its_name_says() -> None:
    config = load_mitigation_config(preset="mini-cpu", source="clips.csv")
    full = AmgConfig(1.0, 4.0, 3.0, 0.1, 0.2)
    strengths = {
        arm.name: (arm.amg(full).despecification, arm.amg(full).deduplication, arm.amg(full).dissimilarity)
        for arm in arms_of(config)
    }
    expected = {
        "none": (0, 0, 0),
        "despecification": (1, 0, 0),
        "deduplication": (0, 4, 0),
        "dissimilarity": (0, 0, 3),
        "without-dissimilarity": (1, 4, 0),
        "without-deduplication": (1, 0, 3),
        "without-despecification": (0, 4, 3),
        **dict.fromkeys(
            ["full", "full-at-0.2", "full-at-0.4", "full-at-0.6", "full-denoiser", "full-unshifted", "full-mel-latents"],
            (1, 4, 3),
        ),
        **dict.fromkeys(["basin-static", "basin-dynamic", "opposite", "subspace", "noise"], (0, 0, 0)),
    }
    assert strengths == expected
    arms = {arm.name: arm for arm in arms_of(config)}
    assert [name for name, arm in arms.items() if not arm.acts] == ["none"]
    assert [name for name, arm in arms.items() if not arm.shifted] == ["full-unshifted"]
    assert (arms["full-at-0.4"].amg(full).threshold_low, arms["full-at-0.4"].amg(full).threshold_high) == (0.4, 0.5)
    assert arms["full-denoiser"].amg(full).gradient == "denoiser"
    assert {name: audited_by(config, arm) for name, arm in arms.items() if len(audited_by(config, arm)) < 2} == {
        "full-mel-latents": ("contrast",)
    }
    assert len({arm.label for arm in arms.values()}) == len(arms)


def test_sweeps_share_the_point_of_full_guidance() -> None:
    config = load_mitigation_config(preset="mini-cpu", source="clips.csv")
    names = [arm.name for arm in swept_arms(config)]
    values = sum(len(values) for values in config.sweeps.asked.values())
    # each of the eight sweeps has the value of full guidance itself once
    assert names.count("sweep-full") == 1 and len(names) == values - len(config.sweeps.asked) + 1
    amg = {arm.name: arm.amg(config.guidance.amg(0.1, 0.2)) for arm in swept_arms(config)}
    assert amg["sweep-full"] == config.guidance.amg(0.1, 0.2)
    assert amg["sweep-c2-8"].deduplication == 8 and amg["sweep-every-5"].every == 5
    assert (amg["sweep-threshold_low-0.6"].threshold_low, amg["sweep-threshold_low-0.6"].threshold_high) == (0.6, 0.7)
    # where the thresholds of full guidance lie further apart, the sweep's point is another
    for high in (0.3, None):
        wide = replace(config, guidance=replace(config.guidance, threshold_high=high))
        assert swept_arm(wide, "threshold_low", 0.1).changes == {"threshold_low": 0.1, "threshold_high": 0.2}
    assert swept_arm(config, "threshold_low", 0.1).name == "sweep-full"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('arms = ["full"]', "'none' be among them"),
        ('arms = ["none", "fulll"]', "got fulll"),
        ('arms = ["none"]\n[guidance]\ndescriptor = "mel-latents"', "hears what audits by mel do"),
        ('arms = ["none"]\n[guidance]\ndescriptor = "clap"\n[audits]\nclap = "somewhere"', "hears what audits by clap do"),
        ('arms = ["none", "full-mel-latents"]\n[audits]\ndescriptors = ["mel"]', "could not be judged"),
        ("[guidance]\nthreshold_low = 0.5\nthreshold_high = 0.4", "should not be above"),
        ("[guidance]\nc3 = -1.0", r"dissimilarity \(c3\) should be at least 0"),
        ("[sweeps]\nc4 = [1.0, 2.0]", "unknown key 'c4'"),
        ("[sweeps]\nc3 = [1.0]", "two or more values"),
        ('[model]\npipeline = "model"', "duration_s should say"),
        ('[model]\npipeline = "model"\nduration_s = 5.0', "one seed"),
        ("size = 1", "at least 2"),
        ("[generate]\nsteps = 300", r"\[generate\] steps = 300 would begin .* take 250 or 317"),
        ('arms = ["none", "noise"]\n[generate]\nguidance_scale = 1.0', "which noise would change"),
        ('arms = ["none", "full", "opposite"]\n[generate]\nguidance_scale = 0.0', "which full, opposite would change"),
        (
            'arms = ["none", "full", "deduplication"]\n[generate]\nguidance_scale = 1.0\n[guidance]\nunits = "paper"\n'
            "[sweeps]\nc3 = [0.0, 1.0]",
            r"which deduplication, \[sweeps\] c3 would change",
        ),
        ('[quality]\nmetrics = ["fdd"]', r"\[quality\] metrics: unknown metric 'fdd'; did you mean"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_mitigation_config(tmp_path / "study.toml", source="clips.csv")


def test_dissimilarity_alone_acts_without_classifier_free_guidance(tmp_path: Path) -> None:
    text = 'arms = ["none", "dissimilarity", "full", "subspace"]\n[generate]\nguidance_scale = 1.0\n[guidance]\nunits = "paper"'
    (tmp_path / "study.toml").write_text(text)
    assert load_mitigation_config(tmp_path / "study.toml", source="clips.csv").generate.guidance_scale == 1.0


@pytest.mark.parametrize("load", [load_memorization_config, load_mitigation_config, load_longtail_config])
def test_no_study_begins_with_steps_that_its_sampler_cannot_do(tmp_path: Path, load: Any) -> None:
    (tmp_path / "study.toml").write_text('preset = "smoke"\n[generate]\nsteps = 300\n')
    with pytest.raises(ValueError, match="take 250 or 317"):
        load(tmp_path / "study.toml")


def test_the_long_tail_needs_classifier_free_guidance_unless_its_own_is_off(tmp_path: Path) -> None:
    text = 'preset = "smoke"\n[generate]\nguidance_scale = 1.0\n[guidance]\ndespecification = 0.0\ndeduplication = 0.0\n'
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ValueError, match="take one above 1, or strengths of 0"):
        load_longtail_config(tmp_path / "study.toml")
    (tmp_path / "study.toml").write_text(f"{text}dissimilarity = 0.0\n")
    assert load_longtail_config(tmp_path / "study.toml").generate.guidance_scale == 1.0


def test_models_that_are_not_there_are_refused_by_the_plan(tmp_path: Path) -> None:
    ours, memorization, tail = (
        load(preset="smoke") for load in (load_mitigation_config, load_memorization_config, load_longtail_config)
    )
    gone = str(tmp_path / "gone")
    with pytest.raises(ModelError, match="no folder of a model here"):
        plan_mitigation(replace(ours, quality=replace(ours.quality, clap=gone)), tmp_path / "out")
    with pytest.raises(ModelError, match="no folder of a model here"):
        plan_longtail(replace(tail, quality=replace(tail.quality, clap=gone)), tmp_path / "out")
    with pytest.raises(ModelError, match="no folder of a model here"):
        plan_memorization(replace(memorization, audits=replace(memorization.audits, clap=gone)), tmp_path / "out")


def test_the_documentation_names_every_key_and_every_arm() -> None:
    page = (Path(__file__).parents[1] / "docs" / "studies.md").read_text("utf-8")
    own = page.partition("### Keys of the mitigation study")[2].partition("\n## ")[0]
    shared = page.partition("## All keys")[2].partition("## Files")[0]

    def keys(text: str) -> set[str]:
        rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
        return {key for row in rows for key in re.findall(r"`([a-z_.0-9]+)`", row)}

    values = config_values(MitigationConfig())
    known = {key for key, value in values.items() if not isinstance(value, dict)}
    known |= {f"{name}.{key}" for name, table in values.items() if isinstance(table, dict) for key in table}
    assert keys(own) <= known <= keys(own) | keys(shared)
    arms = page.partition("| arm | what acts |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z-]+)`", " ".join(line.split("|")[1] for line in arms.splitlines()[1:]))) == set(
        MitigationConfig().arms
    )


# --- sets and plans ---------------------------------------------------------------------------------------------------


def _pool(folder: Path, count: int) -> str:
    clips = [Clip(f"{n // 2:03d}-{n % 2}", str(folder / f"{n}.wav"), caption=f"sound {n}") for n in range(count)]
    for clip in clips:
        Path(clip.path).touch()
    write_manifest(folder / "clips.jsonl", clips)
    return str(folder / "clips.jsonl")


def _run_sets(stages: list[Stage], folder: Path) -> None:
    run_stages([stage for stage in stages if stage.place.startswith(("source", "sets"))], folder)


def test_training_sets_are_those_of_the_memorization_study_and_none_knows_the_reference(
    tmp_path: Path,
) -> None:
    source = _pool(tmp_path, 240)
    ours, theirs = (load(preset="mini-cpu", source=source) for load in (load_mitigation_config, load_memorization_config))
    ours, theirs = (replace(one, data=replace(one.data, group=r"(\d+)-")) for one in (ours, theirs))
    _run_sets(stages_of(ours, ours.size), tmp_path / "ours")
    _run_sets(memorization_stages(replace(theirs, sizes=(8, 24, 80))), tmp_path / "theirs")
    roles: dict[str, set[str]] = {"training": set()}
    for seed in ours.seeds:
        own = tmp_path / "ours" / "sets" / f"n8-s{seed}"
        trained = read_manifest(own / "training.jsonl")
        assert trained == read_manifest(tmp_path / "theirs" / "sets" / f"n8-s{seed}" / "training.jsonl")
        roles["training"] |= {clip.clip_id[:3] for clip in trained}
        rows = read_rows(own / "prompts.jsonl")
        assert len(rows) == clips_made(ours, 8) == 40 and read_rows(own / "sweep-prompts.jsonl") == rows[:16]
        assert {row["clip_id"] for row in rows[:8]} == {clip.clip_id for clip in trained}  # the first few are of all captions
    for role, count in (("others", 64), ("reference", 120)):
        clips = read_manifest(tmp_path / "ours" / "sets" / f"{role}.jsonl")
        assert len(clips) >= count
        assert not {clip.clip_id[:3] for clip in clips} & roles["training"]
        roles[role] = {clip.clip_id for clip in clips}
    assert not roles["others"] & roles["reference"]


def test_mini_cpu_is_planned_for_less_than_two_hours(tmp_path: Path) -> None:
    config = load_mitigation_config(preset="mini-cpu", source=_pool(tmp_path, 240))
    plan = plan_mitigation(config, tmp_path / "out")
    assert plan.seconds is not None and 3600 < plan.seconds < 7200
    rows = {row.kind: row for row in plan.rows}
    assert {kind: row.stages for kind, row in rows.items()} == {
        "preparing": 2 + 2 * 2 + 2 * 3 + 2 * 3,
        "training": 3,
        "generating": 3 * 5,
        "guiding": 3 * 14 + 16,
        "auditing": 3 * (2 * 18 + 1) + 3 * 2 * 2 + 2 * 16,  # of two arms there are controls
        "scoring": 1,
    }
    assert rows["generating"].amount == 3 * 5 * 40 and rows["guiding"].amount == 3 * 14 * 40 + 16 * 16
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="expected at least 241 clips"):
        plan_mitigation(replace(config, size=241), tmp_path / "out")
    with pytest.raises(CorpusError):
        plan_mitigation(replace(config, data=replace(config.data, null=str(tmp_path / "gone"))), tmp_path / "out")


def test_a_given_model_is_not_trained_and_its_clips_are_all_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(f'preset = "paper"\n[data]\nsource = "{_pool(tmp_path, 60)}"\nbackground = "sounds"\n')
    config = load_mitigation_config(tmp_path / "study.toml")
    plan = plan_mitigation(config, tmp_path / "out")  # the model need not be there yet
    assert "training" not in {row.kind for row in plan.rows} and plan.seconds is not None
    assert {row.amount for row in plan.rows if row.kind == "guiding"} == {8 * 6000}


def test_steps_that_a_given_model_cannot_do_are_refused_by_the_plan(tmp_path: Path) -> None:
    text = (
        f'preset = "paper"\n[data]\nsource = "{_pool(tmp_path, 4)}"\nbackground = "sounds"\n[model]\npipeline = "{tmp_path}"\n'
    )
    (tmp_path / "study.toml").write_text(f"{text}[generate]\nsteps = 300\n")
    config = load_mitigation_config(tmp_path / "study.toml")
    with pytest.raises(ModelError, match="expected a folder of a diffusers pipeline"):
        study_mitigation(config, tmp_path / "out")
    assert not (tmp_path / "out").exists() and plan_mitigation(config, tmp_path / "out").rows
    (tmp_path / "model_index.json").write_text('{"_class_name": "AudioLDM2Pipeline"}')
    (tmp_path / "scheduler").mkdir()
    levels = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "steps_offset": 1}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(levels))
    with pytest.raises(ValueError, match="take 250 or 317"):
        plan_mitigation(config, tmp_path / "out")


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    given = ["study", "mitigation", "--preset", "smoke", "-o", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert re.search(r"training\s*│\s*2 │\s*0 │\s*80 training steps", result.output), result.output
    plan = json.loads(CliRunner().invoke(app, [*given, "--json"]).output)
    assert {row["kind"]: row["amount"] for row in plan["stages"] if row["unit"] == "clips"} == {
        "generating": 3 * 2 * 8,
        "guiding": 2 * 2 * 8 + 2 * 4,
        "auditing": 2 * (5 * 2 * 8 + 2 * 4) + 2 * 2 * 2 * 8,
        "scoring": 5 * 2 * 8 + 2 * 4,
    }
    assert not (tmp_path / "out").exists()


# --- numbers and figures ----------------------------------------------------------------------------------------------


def _audit(flags: dict[str, bool], undecided: bool = False, listed: int = 0) -> dict[str, Any]:
    """What an audit says of clips whose ids begin with their prompt: ``3-0``."""
    prompts = {clip: clip.partition("-")[0] for clip in flags}
    counts = {"flagged": sum(flags.values()), "compared": len(flags), "prompts": len(set(prompts.values()))}
    return {
        "score": dict.fromkeys(flags, 1.0),
        "flagged": flags,
        "prompt": prompts,
        **{f"count_{key}": value for key, value in {**counts, "undecided": undecided}.items()},
        "own_clip_nearest": 1,
        "listed": listed,
        "silent": 0,
        "null_clips": 10 if undecided else 240,
    }


def _flags(rng: np.random.Generator, prompts: int, each: int, rate: float, whole: bool) -> dict[str, bool]:
    """Of each prompt some clips, which stand or fall together, or each by itself."""
    drawn = rng.random((prompts, 1 if whole else each)) < rate
    return {f"{p}-{c}": bool(drawn[p, 0 if whole else c]) for p in range(prompts) for c in range(each)}


def test_what_guidance_changes_is_tested_by_flipping_the_sign_of_each_prompt() -> None:
    rng = np.random.default_rng(0)
    before, after = ([_audit(_flags(rng, 4, 5, rate, False)) for _ in range(2)] for rate in (0.7, 0.4))
    del after[0]["flagged"]["2-3"]  # silent under guidance: not compared
    found = _paired(list(zip(after, before, strict=True)))
    assert found is not None
    both = [
        {clip: int(flag) - int(one["flagged"][clip]) for clip, flag in other["flagged"].items()}
        for other, one in zip(after, before, strict=True)
    ]
    nets = [sum(change for clip, change in model.items() if clip.startswith(f"{p}-")) for model in both for p in range(4)]
    flipped = [sum(net * sign for net, sign in zip(nets, signs, strict=True)) for signs in itertools.product((-1, 1), repeat=8)]
    assert found["p_value"] == pytest.approx(np.mean([abs(one) >= abs(sum(nets)) for one in flipped]))
    assert found["by_seed"] == [sum(both[0].values()) / 19, sum(both[1].values()) / 20]
    single = [change for model in both for change in model.values()]
    assert (found["no_longer"], found["only_now"]) == (single.count(-1), single.count(1))


@pytest.mark.parametrize("whole", [True, False])
def test_the_test_against_no_guidance_holds_its_level_where_clips_of_a_prompt_stand_together(whole: bool) -> None:
    rng, small = np.random.default_rng(1), 0
    for _ in range(400):
        pairs = [tuple(_audit(_flags(rng, 8, 5, 0.5, whole)) for _ in range(2)) for _ in range(3)]
        found = _paired(pairs)  # type: ignore[arg-type]
        assert found is not None
        small += found["p_value"] <= 0.05
    assert small <= 0.075 * 400  # 5 %, and two standard errors and a half of 400 trials


def test_what_could_not_be_decided_is_no_zero() -> None:
    flags = {"0-0": True, "0-1": True, "1-0": True, "1-1": True}
    live, dead = _audit(flags, listed=3), _audit(dict.fromkeys(flags, False), undecided=True, listed=2)
    rates = _rates([(live, None), (dead, None)])
    assert rates["by_seed"] == [1.0, None] and rates["listed"] == 3 and rates["flagged"]["clips"] == 4
    rates = _rates([(dead, None)])
    assert rates["by_seed"] == [None] and rates["listed"] is None and rates["flagged"]["rate"] is None
    assert _paired([(dead, dead)]) is None and _paired([(dead, live), (live, dead)]) is None
    assert _paired([(live, live), (dead, live)]) == {"no_longer": 0, "only_now": 0, "p_value": 1.0, "by_seed": [0.0, None]}
    assert rates["own_clip_nearest"] == 0.25  # which needs no null clips


def test_a_control_by_as_many_as_another_descriptor_is_none(tmp_path: Path) -> None:
    write_text(tmp_path / "card.json", "{}")  # which is not opened: its number is that of mel by construction
    audits = StudyAudits(descriptors=("mel", "clap"), tau=("mel=0.5", "clap=match:mel"))
    assert _control(MitigationConfig(audits=audits, arms=("none",)), "clap", tmp_path, {}) is None


def _arm(
    name: str, rate: float | None, low: float, high: float, p: float | None = None,
    control: tuple[float, float, float] | None = None, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    flags = {"rate": rate, "low": low, "high": high}
    known = None if control is None else dict(zip(("rate", "low", "high"), control, strict=True))
    audit = {"flagged": flags, "control": known, "null_clips": [240]}
    tested = {} if name == "none" else {"contrast": None if p is None else {"p_value": p}}
    return {
        "name": name, "label": name, "audits": {"contrast": audit}, "against_none": tested, "quality": {}, "never_acted": False,
        "descriptor": "latents", "similarity": {"guides": name != "none", "comparable": True}, **more,
    }  # fmt: skip


def test_the_headline_says_no_more_than_can_be_told() -> None:
    none = _arm("none", 0.9, 0.7, 1.0, control=(0.02, 0.0, 0.1))
    for full, told in (
        (_arm("full", 0.1, 0.0, 0.4, p=0.001), "10 % (0 to 40): fewer (sign-flip test, p = 0.001)."),
        (_arm("full", 0.1, 0.0, 0.4, p=0.2), "no difference can be told (sign-flip test, p = 0.2)."),
        (_arm("full", 0.8, 0.5, 0.9, p=0.001), "80 % (50 to 90): fewer"),  # prompt by prompt, whatever models differ by
        (_arm("full", 0.1, 0.0, 0.4), "no difference can be told."),
        (
            _arm("full", 0.1, 0.0, 0.4, p=0.001, control=(0.2, 0.05, 0.5)),
            "cannot be told from the control's false alarms, 20 % (5 to 50)",
        ),
        (_arm("full", None, 0.0, 0.0), "With full it could not be told: 240 null clips are too few."),
        (_arm("full", 0.9, 0.7, 1.0, p=1.0, never_acted=True), "nothing acted"),
    ):
        text = sentence({"arms": [full, none]})
        assert text.startswith(
            "By contrast, 90 % (70 to 100) of the clips made without guidance are flagged as possible replicas."
        )
        assert told in text, text
    dull = _arm("none", 0.19, 0.0, 0.6, control=(0.2, 0.05, 0.5))
    text = sentence({"arms": [dull, _arm("full", 0.0, 0.0, 0.1, p=0.01)]})
    assert "cannot be told from the control's false alarms, 20 % (5 to 50)" in text and "fewer (sign" in text
    assert sentence({"arms": [_arm("none", None, 0, 0)]}).endswith("could not be told: 240 null clips are too few.")


def test_similarity_by_another_descriptor_is_not_drawn_beside_that_of_no_guidance() -> None:
    arms = [
        _arm("full-mel-latents", 0.1, 0.0, 0.4, similarity={"guides": True, "comparable": False}),
        _arm("none", 0.9, 0.7, 1.0),
        _arm("noise", 0.9, 0.7, 1.0, similarity={"guides": False, "comparable": True}),
    ]
    arms[1]["similarity"]["guides"] = False
    assert traced_arm(arms) is None
    assert traced_arm([*arms, _arm("full", 0.1, 0.0, 0.4)]) == "full"


@pytest.mark.parametrize(("same", "acted"), [(3, False), (2, True)])
def test_an_arm_that_changed_no_clip_never_acted(same: int, acted: bool) -> None:
    def run(digests: str) -> dict[str, Any]:
        made = {f"{n}-0": {"sha256": one, "fired_steps": 0, "similarity_last": 0.5} for n, one in enumerate(digests)}
        return {"seed": 0, "made": made, "audits": {"mel": _audit(dict.fromkeys(made, True))}, "controls": {"mel": None}}

    config = MitigationConfig(audits=StudyAudits(descriptors=("mel",)), arms=("none", "opposite", "full-unshifted"))
    runs = {"none": [run("abc")], "opposite": [run("abc"[:same] + "xyz"[same:])], "full-unshifted": [run("xyz")]}
    none, opposite, unshifted = (_row(config, arm, runs, {}, {}) for arm in arms_of(config))
    assert (opposite["identical"], opposite["never_acted"]) == (same, not acted) and not none["never_acted"]
    assert unshifted["never_acted"] is False and (unshifted["never_fired"], unshifted["unchanged"]) == (3, 0)
    assert [row["similarity"]["comparable"] for row in (none, opposite, unshifted)] == [True, True, False]


def test_points_have_the_numbers_of_the_tables_rows() -> None:
    rows = [_arm("full-mel-latents", 0.1, 0.0, 0.4), _arm("none", 0.9, 0.7, 1.0), _arm("full", 0.1, 0.0, 0.4)]
    for row in rows:
        row["quality"] = {"fd_logmel": {"value": 1.0, "low": 0.5, "high": 2.0}}
    del rows[0]["audits"]["contrast"]  # not judged by what the figure is of
    ((_, picture),) = _tradeoffs({"arms": rows}, "contrast")
    assert ">2  none<" in picture and ">3  full<" in picture and "mel-latents" not in picture


def test_a_plan_says_what_cannot_be_told(tmp_path: Path) -> None:
    config = load_mitigation_config(preset="mini-cpu", source=_pool(tmp_path, 60))
    assert config.audits.level == 0.01
    plan = plan_mitigation(config, tmp_path / "out")
    told = [text for text in plan.warnings if "null clips" in text]
    assert len(told) == 2 and all(
        "60 null clips are too few to tell what 1 % of them score; it takes 99" in text for text in told
    )
    assert {row.kind: row.amount for row in plan.rows}["scoring"] > 0
    few = replace(config, quality=replace(config.quality, least=50), audits=replace(config.audits, level=0.05))
    plan = plan_mitigation(few, tmp_path / "out")
    (told,) = plan.warnings
    assert re.fullmatch(
        r"Quality will not be measured: \d+ real clips are there .* it takes 50; give \[quality\] reference.", told
    )
    assert {row.kind: row.amount for row in plan.rows}["scoring"] == 0  # so that no time is planned for it
    _run_sets(stages_of(few, few.size), tmp_path / "out")
    assert told.split()[5] == str(len(read_manifest(tmp_path / "out" / "sets" / "reference.jsonl")))
    write_text(
        tmp_path / "out" / "task.json",
        json.dumps({"kind": "mitigation study", **task_of(few, few.threads or torch.get_num_threads())}),
    )
    assert plan_mitigation(few, tmp_path / "out").warnings == plan.warnings  # of what is written down
    named = replace(few, quality=replace(few.quality, reference=few.data.source))
    assert plan_mitigation(named, tmp_path / "new").warnings == ()


@pytest.mark.parametrize("kind", ["memorization", "mitigation"])
def test_a_dry_run_refuses_the_folder_of_another_kind_of_study(tmp_path: Path, kind: str) -> None:
    (tmp_path / "task.json").write_text('{"kind": "long-tail study"}')
    result = CliRunner().invoke(app, ["study", kind, "--preset", "smoke", "-o", str(tmp_path), "--dry-run"])
    assert isinstance(result.exception, OutputFolderError)
    assert f"another kind of study was begun here (a long-tail study, not a {kind} study)" in str(result.exception)


def test_quality_is_the_mean_over_models_with_students_interval() -> None:
    of = [{"fd": {"value": value, "low": value - 1, "high": value + 1}} for value in (8.0, 10.0, 15.0)]
    assert (mean_scores(of[:1])["fd"]["low"], mean_scores(of[:1])["fd"]["high"]) == (7.0, 9.0)
    found = mean_scores(of)["fd"]
    half = 4.302653 * np.std([8, 10, 15], ddof=1) / np.sqrt(3)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((11.0, 11 - half, 11 + half), rel=1e-5)
    none: dict[str, Any] = {"value": None, "low": None, "high": None}
    assert mean_scores([{"fd": none}]) == {}
    # a model without a score has no ends to give, and a key that the first model lacks is no error
    for lacking in ({"fd": none}, {}):
        one = mean_scores([lacking, of[1]])["fd"]
        assert (one["value"], one["low"], one["high"], one["models"], one["by_seed"]) == (10.0, 9.0, 11.0, 1, [None, 10.0])
    far = [{"fd_logmel": {"value": value, "low": 0.0, "high": 99.0}} for value in (1.0, 9.0)]
    assert mean_scores(far)["fd_logmel"]["low"] == 0.0 < mean_scores(far)["fd_logmel"]["high"]
    scores = [{"clap_score": {"value": value, "low": 0.0, "high": 99.0}} for value in (0.0, 0.5)]
    assert mean_scores(scores)["clap_score"]["low"] < 0


def test_labels_of_points_overlap_neither_each_other_nor_points() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    rng = np.random.default_rng(0)
    places = [(10.0, 0.95)] * 8 + [(float(x), float(y)) for x, y in zip(rng.uniform(10, 150, 12), rng.random(12), strict=True)]
    for size in ((5.0, 4.2), (3.4, 3.4)):
        figure = Figure(figsize=size, dpi=72)
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot(*np.array(places).T, "o", markersize=5)
        axes.set_ylim(-0.06, 1.06)
        canvas.draw()
        labels = number_points(axes, places, range(1, 21))
        canvas.draw()
        boxes = [Text.get_window_extent(label, canvas.get_renderer()) for label in labels]  # without their lines
        assert [label.get_text() for label in labels] == ["1, 2, 3, 4, 5, 6, 7, 8", *(str(n) for n in range(9, 21))]
        for first, second in itertools.combinations(boxes, 2):
            assert not first.overlaps(second)
        for x, y in axes.transData.transform(places):
            assert not any(box.contains(x, y) for box in boxes)


def test_figures_show_every_arm_and_value() -> None:
    points = [Point(f"arm {n}", Value(10.0 * n, 5.0, 200.0), Value(n / 20, 0.0, 1.0), number=n + 1) for n in range(20)]
    for narrow in (False, True):
        svg = tradeoff_svg(points, cost="FD", rate="flagged", narrow=narrow)
        assert all(f">{n + 1}  arm {n}<" in svg for n in range(20)) and svg.count("stroke: #9ca3af") >= 20
        assert ">anti-memorization guidance<" in svg and ">other mitigations<" not in svg
        inside = [replace(point, cost=replace(point.cost, low=None, high=None)) for point in points]
        # a head where an interval up to 200 goes on
        heads = [
            tradeoff_svg(some, cost="FD", rate="flagged", narrow=narrow).count("<use") for some in (points[:10], inside[:10])
        ]
        assert heads[0] == heads[1] + 10
    rates: list[Any] = [("flagged", "#123456", [Value(0.5, 0.1, 0.9), None])]
    assert "#123456" in sweep_svg(["1", "3"], rates, [Value(10.0), Value(20.0)], knob="c3", cost="FD")
    assert ">FD<" not in sweep_svg(["1", "3"], rates, [None, None], knob="c3", cost="FD")
    with pytest.raises(ValueError, match="expected 3 values, got 2"):
        sweep_svg(["1", "2", "3"], rates, [None] * 3, knob="c3", cost="FD")


def test_settings_of_guidance_are_those_of_amg() -> None:
    assert StudyGuidance(c1=2.0, schedule="progress", stop=0.5).amg(0.3, 0.6) == AmgConfig(
        2.0, 4.0, 3.0, 0.3, 0.6, schedule="progress", stop=0.5
    )


def test_thresholds_that_are_given_are_of_one_descriptor() -> None:
    def index(step: float, count: int) -> ReferenceIndex:
        angles = step * torch.arange(count)
        names = tuple(map(str, range(count)))
        return ReferenceIndex("toy", names, (None,) * count, (0.0,) * count, torch.stack([angles.cos(), angles.sin()], 1))

    config = MitigationConfig(guidance=StudyGuidance(threshold_low=0.1, threshold_high=0.2))
    few, many, others = index(0.2, 8), index(0.2, 12), index(0.1, 20)
    assert thresholds_of(config, "latents", few, others, None) == (0.1, 0.2, None)
    for own, of, angle in ((few, "other clips", 0.1), (many, "training clips", 0.2)):
        low, high, measured = thresholds_of(config, "mel-latents", own, others, None)
        assert (low, high, measured) == (pytest.approx(0.9 * high), pytest.approx(math.cos(angle), abs=1e-5), of)


# --- the whole --------------------------------------------------------------------------------------------------------


def _config() -> MitigationConfig:
    smoke = load_mitigation_config(preset="smoke")
    return replace(
        smoke,
        seeds=(0,),
        arms=("none", "full", "other-thresholds", "opposite", "subspace", "noise"),
        train=replace(smoke.train, steps=3),
        generate=replace(smoke.generate, steps=3, clips=4),
        audits=replace(smoke.audits, descriptors=("mel",), background_clips=6, null_clips=10),
        guidance=replace(smoke.guidance, threshold_low=-1.0, threshold_high=-1.0, other_thresholds=(0.999,)),
        sweeps=replace(smoke.sweeps, clips=2, c3=(3.0, 9.0)),
        quality=replace(smoke.quality, clips=20),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_mitigation(_config(), tmp_path_factory.mktemp("mitigation") / "out")


@pytest.mark.slow
def test_a_study_leaves_what_it_promised(finished: Study) -> None:
    card = finished.card
    assert card["counts"] == {"models": 1, "audits": 8, "clips": 6 * 4 + 2 * 2}
    assert CliRunner().invoke(app, ["info", str(finished.path)]).exit_code == 0
    rows = {row["name"]: row for row in card["arms"]}
    assert list(rows) == ["none", "full", "full-at-0.999", "opposite", "subspace", "noise"]
    assert all(row["clips"] == row["audits"]["mel"]["flagged"]["clips"] == 4 for row in rows.values())
    # planted: a gate that is always open, and one that never is
    assert rows["full"]["fired_share"] == 1.0 and rows["full"]["never_fired"] == 0
    shut = rows["full-at-0.999"]
    assert (shut["fired_share"], shut["never_fired"], shut["unchanged"]) == (0.0, 4, 4)
    assert shut["audits"] == rows["none"]["audits"] and shut["quality"] == rows["none"]["quality"]
    assert shut["never_acted"] and not rows["full"]["never_acted"] and not rows["none"]["never_acted"]
    assert shut["against_none"] == {"mel": None}  # of 10 null clips nothing can be told
    assert rows["full"]["similarity"]["median"] < rows["none"]["similarity"]["median"]
    assert [point["value"] for point in card["sweeps"]] == [3.0, 9.0] and card["sweeps"][0]["arm"]["name"] == "sweep-full"
    assert all("kad_logmel" in row["quality"] for row in rows.values())
    with pytest.raises(OutputFolderError, match="threads: 1 there, 2 here"):  # the last bits would be others
        study_mitigation(replace(_config(), threads=2), finished.path)
    assert card["plan"]["seconds"] == 0 and make_config(MitigationConfig, card["config"]) == _config()
    page = (finished.path / "report.html").read_text("utf-8")
    assert "44.85 %" in page and "<script" not in page
    assert ">all three, thresholds 0.999 to 1.099 <strong>never acted</strong>" in page and "10 null clips are too few" in page
    (link,) = set(re.findall(r'href="(audits/full-s0-mel/[^"]+)"', page))
    assert (finished.path / link).is_file()
    assert page.count("<audio") == 2 * 2 * 2  # of no and of full guidance two pairs
    assert page.count('alt="mel spectrogram, ') == 3 * 4  # training clips, and what two arms made of four captions


@pytest.mark.slow
def test_arms_make_what_generate_makes(finished: Study, tmp_path: Path) -> None:
    from auscult.generation.generating import GenerateConfig, generate

    made = {
        name: {
            row["clip_id"]: row["sha256"] for row in read_rows(finished.path / "generated" / f"{name}-s0" / "manifest.jsonl")
        }
        for name in ("none", "full", "opposite", "subspace", "noise")
    }
    model, prompts = finished.path / "models" / "n4-s0" / "pipeline", finished.path / "sets" / "n4-s0" / "prompts.jsonl"
    with torch_threads(1):  # as the study: the last bits depend on it
        plain = generate(str(model), prompts, tmp_path / "plain", config=GenerateConfig(steps=3, seed=0), batch_size=8)
    assert {row["clip_id"]: row["sha256"] for row in plain.rows()} == made["none"]
    for name in ("full", "subspace", "noise"):
        assert not set(made[name].values()) & set(made["none"].values()), name
    card = read_card(finished.path / "generated" / "full-s0")
    assert card["guidance"]["amg"]["dissimilarity"] == 3.0 and card["task"]["guidance"] == card["guidance"]
    assert sorted(path.name for path in (finished.path / "traces").iterdir()) == sorted(
        path.name for path in (finished.path / "generated").iterdir()
    )


@pytest.mark.slow
def test_a_model_that_is_there_is_studied_without_training(finished: Study, tmp_path: Path) -> None:
    source = finished.path / "sets" / "n4-s0" / "training.jsonl"
    base = _config()
    config = replace(
        base,
        arms=("none", "full"),
        sweeps=replace(base.sweeps, c3=()),
        model=replace(base.model, pipeline=str(finished.path / "models" / "n4-s0" / "pipeline"), duration_s=1.28),
        data=replace(base.data, source=str(source)),
    )
    found = study_mitigation(config, tmp_path / "out")
    assert found.card["counts"] == {"models": 0, "audits": 2, "clips": 8}
    ours, theirs = ({row["name"]: row for row in one.card["arms"]} for one in (found, finished))
    for name in ("none", "full"):  # the same model, references and noise
        assert ours[name]["similarity"]["median"] == pytest.approx(theirs[name]["similarity"]["median"], abs=1e-4)
        assert ours[name]["audits"]["mel"]["score"]["median"] == pytest.approx(
            theirs[name]["audits"]["mel"]["score"]["median"], abs=1e-3
        )


@pytest.mark.slow
def test_all_other_arms_run_on_two_models_with_measured_thresholds(finished: Study, tmp_path: Path) -> None:
    arms = ("none", "full", "full-denoiser", "full-unshifted", "full-mel-latents", "basin-static", "basin-dynamic", "subspace")
    base = _config()
    config = replace(
        base,
        seeds=(0, 1),
        arms=arms,
        audits=replace(base.audits, descriptors=("contrast", "mel"), level=0.1, background_clips=16),
        guidance=StudyGuidance(threshold_low=-1.0, threshold_high=None, first_seed=7),
        sweeps=replace(base.sweeps, c3=()),
    )
    found = study_mitigation(config, tmp_path / "out")
    rows = {row["name"]: row for row in found.card["arms"]}
    assert list(rows) == list(arms) and all(row["models"] == 2 and row["clips"] == 8 for row in rows.values())
    assert list(rows["full-mel-latents"]["audits"]) == ["contrast"]
    thresholds = {row["descriptor"]: row for row in found.card["thresholds"]}
    assert {name: row["measured_on"] for name, row in thresholds.items()} == {
        "latents": "other clips",
        "mel-latents": "other clips",
    }
    assert thresholds["latents"]["threshold_low"] == -1.0 < thresholds["mel-latents"]["threshold_low"]
    for name, row in rows.items():  # clips of none and of full against what they cannot have been copied from
        for one in row["audits"].values():
            assert (one["control"] is not None) == (name in ("none", "full"))
            assert one["control"] is None or one["control"]["clips"] == 8
    digests = {
        name: [row["sha256"] for row in read_rows(found.path / "generated" / f"{name}-s0" / "manifest.jsonl")] for name in arms
    }
    assert digests["full"] != digests["none"] and digests["full-denoiser"] != digests["full"]
    assert digests["basin-static"] != digests["none"] and digests["subspace"] != digests["none"]
    theirs = [row["sha256"] for row in read_rows(finished.path / "generated" / "none-s0" / "manifest.jsonl")]
    assert not set(theirs) & set(digests["none"])  # the same model, other noise
    page = (found.path / "report.html").read_text("utf-8")
    assert "mel: control [interval]" in page and "none of these can have been copied" in page
    assert "control [interval]" not in (finished.path / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_a_killed_study_ends_as_one_that_was_never_stopped(finished: Study, tmp_path: Path) -> None:
    out = kill_when_there(
        "test_studies_mitigation", "mitigation", tmp_path, ("generated/none-s0.partial", "audits/full-s0-mel.partial")
    )
    again = study_mitigation(_config(), out)
    assert sum(line["resumed"] for line in read_times(out)) >= 1
    first, second = (_untimed([*one.card["arms"], *(at["arm"] for at in one.card["sweeps"])]) for one in (again, finished))
    assert first == second


def _untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in ("seconds_per_clip", "times_none")} for row in rows]
