"""``auscult evaluate``, from sounds on disk to its files: laws, silence and noise, bad input, the cache, brackets, columns."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from auscult.audit import Audit, AuditConfig, audit
from auscult.cli import app
from auscult.corpus import open_corpus
from auscult.descriptors import load_descriptor
from auscult.errors import AuscultError, CorpusError, ManifestError, ModelError, OutputFolderError, TableError
from auscult.folders import file_digest
from auscult.indexing import index
from auscult.metrics import evaluation as corridor
from auscult.metrics import inference, results, tails
from auscult.metrics.classes import Classes, read_classes
from auscult.metrics.evaluation import EvaluateConfig, Evaluation, System, evaluate
from auscult.metrics.longtail import LongTail, long_tail
from auscult.metrics.memorization import OtherClipsError
from auscult.metrics.pairing import read_prompts
from auscult.metrics.results import check_output, write_evaluation
from auscult.metrics.scoreboard import board
from auscult.metrics.scores import SystemResult
from conftest import sound
from tiny_models import save

RATE_HZ = 16_000
CLIPS = 48  # of 2 s and 3 frames each: half of them have more frames than logmel has dimensions
FAST = EvaluateConfig(resamples=20)
BARE = EvaluateConfig(resamples=20, brackets=False)
HOSTILE = '<script>alert("1")</script>|*name*, a'


pytestmark = pytest.mark.usefixtures("one_thread")


def written(folder: Path, sounds: Iterable[np.ndarray], *, rate_hz: int = RATE_HZ, names: Sequence[str] = ()) -> Path:
    folder.mkdir(parents=True)
    for number, samples in enumerate(sounds):
        name = names[number] if names else f"{number:03d}.wav"
        assert np.abs(samples).max() <= 1
        sf.write(folder / name, samples, rate_hz, subtype="PCM_24")  # as floats, libsndfile would add the time of day
    return folder


def sounds(count: int, first: int = 0, duration_s: float = 2.0, rate_hz: int = RATE_HZ) -> list[np.ndarray]:
    return [sound(number, duration_s, rate_hz) for number in range(first, first + count)]


def table(path: Path, columns: str, rows: Iterable[Sequence[object]]) -> Path:
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n", "utf-8")
    return path


def system(source: Path, audited: Path | None = None) -> System:
    return System(open_corpus(source), audited)


def run(
    place: Path,
    config: EvaluateConfig = BARE,
    /,
    *,
    reference: Path,
    prompts: Path | None = None,
    named: dict[str, Path] | None = None,
    classes: Classes | None = None,
    **systems: Path,
) -> Evaluation:
    return evaluate(
        {name: system(source) for name, source in (named or systems).items()},
        open_corpus(reference),
        prompts=None if prompts is None else read_prompts(prompts),
        classes=classes,
        config=config,
        cache=place / "cache",
    )


def value(evaluation: Evaluation, name: str, key: str) -> float:
    found = next(result for result in evaluation.results if result.name == name).scores[key]
    assert found.value is not None, found.reason
    return found.value


def auscult(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``real`` and ``good``, other sounds of the same kinds; ``mute``, as many and silent; and ``cache``, which is theirs."""
    root = tmp_path_factory.mktemp("evaluation")
    written(root / "real", sounds(CLIPS))
    written(root / "good", sounds(CLIPS, first=100))
    written(root / "mute", [np.zeros(2 * RATE_HZ)] * CLIPS)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name in ("ast", "clap"):
        save(root / name, name)
    save(root / "other-ast", "ast", seed=1)
    return root


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 clips of a second in ``real`` and as many in ``made``: too few for a Frechet distance, plenty for all else."""
    root = tmp_path_factory.mktemp("few")
    written(root / "real", sounds(8, duration_s=1.0))
    written(root / "made", sounds(8, first=60, duration_s=1.0))
    table(root / "pairs.csv", "clip_id,reference", ((f"{n:03d}.wav", f"{n:03d}.wav") for n in range(8)))
    return root


# --- laws -------------------------------------------------------------------------------------------------------------


def test_the_reference_itself_scores_as_nothing_else_can(place: Path, tmp_path: Path) -> None:
    names = [f"{(7 * n) % CLIPS:03d}-renamed.wav" for n in range(CLIPS)]
    renamed = written(tmp_path / "same", sounds(CLIPS), names=names)
    found = run(place, reference=place / "real", same=renamed, good=place / "good")
    same = found.results[0].scores
    assert value(found, "same", "fd_logmel") == pytest.approx(0, abs=1e-6) and value(found, "good", "fd_logmel") > 1
    kad = same["kad_logmel"]  # a clip and itself are no pair of unrelated ones: nothing is left to differ, in any draw
    assert (kad.value, kad.low, kad.high) == pytest.approx((0, 0, 0), abs=1e-9)
    assert {same[f"{name}_logmel"].value for name in ("precision", "recall", "coverage")} == {1.0}
    assert any("48 of 48 clips are in the reference sample by sample" in text for text in found.results[0].warnings)
    assert not any("sample by sample" in text for text in found.results[1].warnings)


def test_names_and_their_order_change_no_bit(place: Path, tmp_path: Path) -> None:
    names = [f"{(11 * n) % CLIPS:03d}-renamed.wav" for n in range(CLIPS)]
    moved = written(tmp_path / "moved", sounds(CLIPS, first=100), names=names)
    reference = written(tmp_path / "real", sounds(CLIPS), names=names[::-1])
    before = run(place, FAST, reference=place / "real", a=place / "good")
    after = run(tmp_path, FAST, reference=reference, a=moved)
    assert after.results[0].scores == before.results[0].scores
    assert len(before.results[0].scores) == 7


def test_the_seed_decides_the_intervals_and_no_value(place: Path) -> None:
    first, again, other = (
        run(place, EvaluateConfig(resamples=20, brackets=False, seed=seed), reference=place / "real", a=place / "good")
        for seed in (0, 0, 1)
    )
    assert again.results == first.results
    for key in ("fd_logmel", "kad_logmel", "density_logmel"):
        one, two = first.results[0].scores[key], other.results[0].scores[key]
        assert two.value == pytest.approx(one.value, rel=1e-9) and (one.low, one.high) != (two.low, two.high)


def test_more_noise_scores_worse_on_real_recordings(esc10: Path, models: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = []
    paths = sorted(path for path in esc10.rglob("*") if path.suffix in (".wav", ".flac", ".ogg", ".mp3"))
    for path in paths[:: len(paths) // 16][:16]:
        samples, rate_hz = sf.read(path, dtype="float32")
        clips.append(samples / np.abs(samples).max() / 8)  # room for noise
    noise = [rng.standard_normal(len(samples)) for samples in clips]
    folders = {"real": written(tmp_path / "real", clips, rate_hz=rate_hz)}
    for level in (0.01, 0.1, 1.0):  # of the peak
        folders[f"at_{level}"] = written(
            tmp_path / f"at_{level}", [a + level / 8 * b for a, b in zip(clips, noise, strict=True)], rate_hz=rate_hz
        )
    prompts = table(tmp_path / "pairs.csv", "clip_id,reference", ((f"{n:03d}.wav", f"{n:03d}.wav") for n in range(16)))
    config = EvaluateConfig(("logmel", f"ast:{models / 'ast'}"), ("fd", "kad", "kl"), resamples=0, brackets=False)
    found = run(tmp_path, config, reference=folders["real"], prompts=prompts, **folders)
    for key in ("fd_logmel", "kad_logmel", "kl_ast"):
        levels = [value(found, name, key) for name in folders]
        assert all(later > earlier for earlier, later in itertools.pairwise(levels)), (key, levels)
    assert value(found, "real", "kl_ast") == pytest.approx(0, abs=1e-9)


# --- silence ----------------------------------------------------------------------------------------------------------


def test_silence_looks_good_by_nothing(place: Path) -> None:
    found = run(place, FAST, reference=place / "real", good=place / "good", mute=place / "mute")
    good, mute = (result.scores for result in found.results)
    for key in ("fd_logmel", "kad_logmel"):
        assert good[key].value < mute[key].low
        assert good[key].floor < good[key].silence / 3
        assert good[key].silence == pytest.approx(mute[key].value, rel=1e-9)
    for name in ("precision", "recall", "density", "coverage"):
        score = mute[f"{name}_logmel"]
        assert score.value is None and "one and the same sound" in score.reason
        assert good[f"{name}_logmel"].value > 0.5
    assert any("48 of 48 clips are silent" in text for text in found.results[1].warnings)
    assert found.results[1].facts["flags"]["silent"] == CLIPS


def test_a_metric_that_silence_and_speech_both_have_prefers_real_sound(few: Path, models: Path, tmp_path: Path) -> None:
    mute = written(tmp_path / "mute", [np.zeros(RATE_HZ)] * 8)
    config = EvaluateConfig((f"ast:{models / 'ast'}",), resamples=0)
    found = run(few, config, reference=few / "real", prompts=few / "pairs.csv", mute=mute, same=few / "real")
    scores = found.results[0].scores
    compared = 0
    for score in scores.values():
        if score.value is not None and score.floor is not None:
            worse = score.value < score.floor if score.higher_is_better else score.value > score.floor
            assert worse, score
            compared += 1
    assert compared >= 4  # kad, and three kl
    assert value(found, "same", "kl_ast") == pytest.approx(0, abs=1e-9)


def test_a_poor_reference_is_named(few: Path, tmp_path: Path) -> None:
    poor = written(tmp_path / "poor", [*sounds(3), sound(0, 2.0), np.zeros(2 * RATE_HZ)])
    assert run(few, reference=few / "real", a=few / "made").card["warnings"] == []
    silent, repeated = run(few, reference=poor, a=few / "made").card["warnings"]
    assert "1 of the reference's 5 clips are silent" in silent
    assert "1 of the reference's 5 clips repeat another" in repeated


# --- bad input --------------------------------------------------------------------------------------------------------


def test_few_clips_refuse_the_distance_that_needs_many_and_nothing_else(few: Path) -> None:
    scores = run(few, reference=few / "real", a=few / "made").results[0].scores
    assert scores["fd_logmel"].value is None
    assert "needs at least 65 generated frames, got 8" in scores["fd_logmel"].reason
    assert "kad" in scores["fd_logmel"].reason
    assert scores["kad_logmel"].value is not None and scores["coverage_logmel"].value is not None


@pytest.mark.parametrize("lonely", ["real", "made"])
def test_one_clip_is_refused_score_by_score(few: Path, tmp_path: Path, lonely: str) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(few / lonely / "000.wav", tmp_path / "one")
    folders = {"real": few / "real", "made": few / "made", lonely: tmp_path / "one"}
    found = run(few, FAST, reference=folders["real"], a=folders["made"]).results[0]
    assert all(score.value is None and score.reason for score in found.scores.values())
    assert "at least 2" in found.scores["kad_logmel"].reason
    assert any("are few" in text for text in found.warnings)


def test_a_bracket_is_of_the_halvings_that_have_one(tmp_path: Path) -> None:
    """Two long clips have most of the frames: a half without them has too few, for a Frechet distance."""
    lengths = [18.0, 18.0, *[1.5] * 30]
    real = written(tmp_path / "real", [sound(n, seconds) for n, seconds in enumerate(lengths)])
    floors = []
    for seed in range(2):
        config = EvaluateConfig(resamples=0, seed=seed, metrics=("fd", "kad"))
        score = run(tmp_path, config, reference=real, a=real).results[0].scores
        floors.append(score["fd_logmel"].floor)
        assert score["kad_logmel"].floor is not None
    assert any(floor is not None and floor > 0 for floor in floors)  # one seed may have no such halving among its five


def test_clips_that_cannot_be_used_are_refused_or_counted(few: Path, tmp_path: Path) -> None:
    made = written(tmp_path / "made", sounds(6, first=60))
    (made / "broken.wav").write_bytes(b"RIFF")
    sf.write(made / "short.wav", sound(3, 0.5), RATE_HZ)
    with pytest.raises(CorpusError, match=r"^a: 2 of 8 clips cannot be used: .*broken\.wav.*--max-skipped 2"):
        run(few, reference=few / "real", a=made)
    found = run(few, EvaluateConfig(max_skipped=2, resamples=0, brackets=False), reference=few / "real", a=made)
    assert (found.results[0].facts["skipped"], found.results[0].facts["clips"]) == (2, 6)
    (made / "broken.wav").unlink()
    with pytest.raises(CorpusError, match=r"short\.wav: lasts 0\.500 s .* logmel needs 1\.000 s"):
        run(few, reference=few / "real", a=made)


def test_an_empty_folder_has_nothing_to_score(few: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("-")
    with pytest.raises(CorpusError, match=r"a: holds no audio \(1 other"):
        run(few, reference=few / "real", a=tmp_path / "empty")
    with pytest.raises(CorpusError, match=r"reference: holds no audio"):
        run(few, reference=tmp_path / "empty", a=few / "made")
    with pytest.raises(ValueError, match="at least one system"):
        evaluate({}, open_corpus(few / "real"), cache=few / "cache")


def test_a_model_that_gives_nan_is_named_with_the_clip(few: Path, models: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(models / "ast", tmp_path / "damaged"))
    tensors = load_file(damaged / "model.safetensors")
    name = next(name for name in tensors if name.endswith("classifier.dense.weight"))
    save_file({**tensors, name: tensors[name] * 3e38}, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"real/\d{3}\.wav: .*(NaN|infinite|not finite)"):
        run(tmp_path, EvaluateConfig((f"ast:{damaged}",)), reference=few / "real", a=few / "made")


@pytest.mark.parametrize("name", ["a", "reference"])
def test_unequal_rates_are_refused_unless_something_is_done_about_them(few: Path, tmp_path: Path, name: str) -> None:
    low = written(tmp_path / "low", sounds(8, first=60, rate_hz=8000, duration_s=1.0), rate_hz=8000)
    with pytest.raises(ValueError, match=rf"{name}: 8 clips at 8,000 Hz.*8 clips at 16,000 Hz.*--rate 8000.*--mixed-rates"):
        run(few, reference=few / "real", named={name: low})
    mixed, equal = (
        run(few, EvaluateConfig(resamples=0, brackets=False, **each), reference=few / "real", a=low)
        for each in ({"mixed_rates": True}, {"rate_hz": 8000})
    )
    assert value(equal, "a", "kad_logmel") < value(mixed, "a", "kad_logmel")  # the empty half of the band was the difference
    assert mixed.results[0].facts["sample_rates_hz"] == {"8000": 8}
    close = written(tmp_path / "close", sounds(8, first=60, rate_hz=15_000, duration_s=1.1), rate_hz=15_000)
    assert run(few, reference=few / "real", a=close).results[0].scores["kad_logmel"].value is not None


def test_rates_that_no_header_tells_are_found_when_clips_are_decoded(few: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    (tmp_path / "low").mkdir()
    for number, samples in enumerate(sounds(8, first=60, rate_hz=8000, duration_s=1.2)):
        with av.open(str(tmp_path / "low" / f"{number:03d}.m4a"), "w") as container:
            stream = container.add_stream("aac", rate=8000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    with pytest.raises(ValueError, match=r"a: 8 clips at 8,000 Hz.*8 clips at 16,000 Hz.*--rate 8000.*--mixed-rates"):
        run(few, reference=few / "real", a=tmp_path / "low")
    for settings in ({"mixed_rates": True}, {"rate_hz": 8000}):
        config = EvaluateConfig(metrics=("kad",), resamples=0, brackets=False, **settings)
        assert run(few, config, reference=few / "real", a=tmp_path / "low").results[0].scores["kad_logmel"].value is not None


def test_pairs_that_do_not_fit_are_refused(few: Path, models: Path, tmp_path: Path) -> None:
    config = EvaluateConfig((f"ast:{models / 'ast'}",), ("kl",), resamples=0, brackets=False)
    lines = [(f"{n:03d}.wav", f"{n:03d}.wav") for n in range(8)]
    for rows, message in (
        ([*lines, ("099.wav", "001.wav")], "^a: prompts.csv, line 10: the generated set holds no clip '099.wav'"),
        (lines[:-1], r"1 of 8 generated clips have no reference: '007\.wav'"),
        ([*lines[:-1], ("007.wav", "099.wav")], "reference set holds no clip '099.wav'"),
    ):
        prompts = table(tmp_path / "prompts.csv", "clip_id,reference", rows)
        with pytest.raises(ManifestError, match=message):
            run(few, config, reference=few / "real", prompts=prompts, a=few / "made")


def test_clips_of_other_references_are_scored_by_all_that_needs_no_pairs(few: Path, models: Path, tmp_path: Path) -> None:
    """As the manifest of clips that were generated from training captions, held against another set."""
    rows = ((few / "made" / f"{n:03d}.wav", f"train-{n}") for n in range(8))
    manifest = table(tmp_path / "manifest.csv", "path,reference", rows)
    config = EvaluateConfig(("logmel", f"ast:{models / 'ast'}"), resamples=0, brackets=False, splits=2)
    found = run(few, config, reference=few / "real", a=manifest)
    plain = run(few, config, reference=few / "real", a=few / "made")
    (note,) = set(found.results[0].warnings) - set(plain.results[0].warnings)
    assert "pairs are left out: manifest.csv, line 2: the reference set holds no clip 'train-0'" in note
    scores, others = found.results[0].scores, plain.results[0].scores
    assert scores.keys() == others.keys() and scores["kad_ast"].value is not None
    assert {key: score.value for key, score in scores.items()} == {key: score.value for key, score in others.items()}
    assert scores["kl_ast"].reason.startswith("the clips' own references are not in the reference set")
    with pytest.raises(ManifestError, match=r"^a: manifest\.csv, line 2: the reference set holds no clip 'train-0'"):
        run(few, replace(config, metrics=("kad", "kl_sigmoid")), reference=few / "real", a=manifest)


def test_a_metric_that_cannot_be_had_is_refused_before_anything_is_embedded(few: Path, models: Path, tmp_path: Path) -> None:
    ast, clap = (f"{name}:{models / name}" for name in ("ast", "clap"))
    for backend, metric, message in (
        (ast, "kl", "kl compares pairs, .* of a: give --prompts a table"),
        (clap, "clap_score", "clap_score compares clips with their captions, .* of a: give --prompts a table"),
        ("logmel", "is", "is cannot be computed: logmel has no classes; panns and ast have"),
        (ast, "clap_score", "ast does not read captions; clap does"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, EvaluateConfig((backend,), (metric,)), reference=few / "real", a=few / "made")
    assert not (tmp_path / "cache").exists()


def test_settings_that_cannot_be(few: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"metrics": ("kda",)}, "unknown metric 'kda'; did you mean kad"),
        ({"metrics": ("fid",)}, "unknown metric 'fid'"),
        ({"backends": ("logmel", "logmel")}, "backend 'logmel' was given twice"),
        ({"backends": ()}, "at least one"),
        ({"rate_hz": 10}, "from 1,000 to 768,000"),
        ({"resamples": -1}, "resamples should be at least 0"),
        ({"edges": (10, 1)}, "edges should be rising"),
    ):
        with pytest.raises(ValueError, match=message):
            EvaluateConfig(**settings)
    with pytest.raises(ValueError, match="unknown backend 'logmle'; there are: logmel"):
        run(few, EvaluateConfig(("logmle",)), reference=few / "real", a=few / "made")
    with pytest.raises(ModelError, match=r"nowhere\.pth"):
        run(few, EvaluateConfig((f"vggish:{tmp_path / 'nowhere.pth'}",)), reference=few / "real", a=few / "made")


def test_a_store_is_no_audio(few: Path, tmp_path: Path) -> None:
    index(open_corpus(few / "made"), tmp_path / "store", descriptor=load_descriptor("mel", duration_s=1.0))
    with pytest.raises(CorpusError, match="holds descriptors, not audio"):
        run(few, reference=few / "real", a=tmp_path / "store")
    with pytest.raises(CorpusError, match="holds descriptors, not audio"):
        run(few, reference=tmp_path / "store", a=few / "made")


# --- captions ---------------------------------------------------------------------------------------------------------


def test_captions_of_the_systems_own_manifest_and_references_of_a_table_go_together(
    few: Path, models: Path, tmp_path: Path
) -> None:
    manifest = table(
        tmp_path / "made.csv",
        "path,clip_id,caption",
        ((few / "made" / f"{n:03d}.wav", f"{n:03d}.wav", "a dog" if n % 2 else "rain") for n in range(8)),
    )
    real = table(
        tmp_path / "real.csv", "path,clip_id,caption", ((few / "real" / f"{n:03d}.wav", f"{n:03d}.wav", "x") for n in range(8))
    )
    config = EvaluateConfig(
        (f"clap:{models / 'clap'}", f"ast:{models / 'ast'}"), ("clap_score", "kl"), resamples=20, brackets=True
    )
    found = run(few, config, reference=real, prompts=few / "pairs.csv", a=manifest)
    assert set(found.results[0].scores) == {"clap_score_clap", "kl_ast"}
    score = found.results[0].scores["clap_score_clap"]
    assert score.low <= score.value <= score.high
    assert None not in (score.floor, score.noise, score.silence, score.shuffled)
    column = found.clips["clap_score_clap"].to_pylist()
    assert np.mean(column) == pytest.approx(score.value)
    kl = found.results[0].scores["kl_ast"]
    assert kl.floor == pytest.approx(0, abs=1e-9) and kl.value > 0.001
    assert kl.shuffled is not None
    assert np.mean(found.clips["kl_ast"].to_pylist()) == pytest.approx(kl.value)


def test_missing_captions_matter_only_to_what_reads_them(few: Path, models: Path, tmp_path: Path) -> None:
    rows = [(few / "made" / f"{n:03d}.wav", "rain" if n else "") for n in range(8)]
    manifest = table(tmp_path / "made.csv", "path,caption", rows)
    assert value(run(few, reference=few / "real", a=manifest), "a", "kad_logmel") is not None
    config = EvaluateConfig((f"clap:{models / 'clap'}",), resamples=0, brackets=False)
    with pytest.raises(ManifestError, match="1 of 8 generated clips have no caption"):
        run(few, config, reference=few / "real", a=manifest)


def test_one_table_by_path_serves_systems_whose_files_are_called_alike(few: Path, models: Path, tmp_path: Path) -> None:
    """Clip n belongs to reference 7 - n, in whatever way the table says so."""
    folders = {"a": few / "made", "b": Path(shutil.copytree(few / "made", tmp_path / "other"))}
    sf.write(folders["b"] / "extra.wav", sound(77, 1.0), RATE_HZ)
    pairs = [(f"{n:03d}.wav", f"{7 - n:03d}.wav") for n in range(8)] + [("extra.wav", "000.wav")]
    config = EvaluateConfig((f"ast:{models / 'ast'}",), ("kl",), resamples=0, brackets=False)
    found = []
    for columns, rows in (
        ("clip_id,reference", pairs),
        ("path,reference", pairs),
        (
            "path,reference",
            [(folder / name, real) for folder in folders.values() for name, real in pairs if (folder / name).exists()],
        ),
    ):
        prompts = table(tmp_path / f"{len(found)}.csv", columns, rows)
        one = run(few, config, reference=few / "real", prompts=prompts, named=folders)
        found.append([value(one, name, "kl_ast") for name in folders])
        assert one.clips.num_rows == 8 + 9
    assert found[0] == found[1] == found[2]
    manifests = {
        name: table(tmp_path / f"{name}.csv", "path,clip_id", ((path, path.stem) for path in sorted(folder.iterdir())))
        for name, folder in folders.items()
    }
    manifests["b"] = Path(shutil.copy(manifests["b"], folders["b"] / "b.csv"))
    one = run(few, config, reference=few / "real", prompts=tmp_path / "1.csv", b=manifests["b"])  # from its manifest's folder
    assert value(one, "b", "kl_ast") == found[0][1]
    table(tmp_path / "lost.csv", "path,reference", [*pairs, ("nobodys.wav", "000.wav")])
    with pytest.raises(ManifestError, match=r"lost\.csv, line 11: the generated set holds no clip 'nobodys\.wav'"):
        run(few, config, reference=few / "real", prompts=tmp_path / "lost.csv", named=folders)


def test_a_table_beside_the_clips_means_these_and_not_those_of_its_parents(few: Path, models: Path, tmp_path: Path) -> None:
    made = Path(shutil.copytree(few / "made", tmp_path / "made"))
    shutil.copytree(few / "real", made / "inner")
    table(made / "inner" / "p.csv", "path,reference", ((f"{n:03d}.wav", f"{n:03d}.wav") for n in range(8)))
    config = EvaluateConfig((f"ast:{models / 'ast'}",), ("kl",), resamples=0, brackets=False)
    with pytest.raises(ManifestError, match=r"8 of 16 generated clips have no reference: '00\d\.wav', '00"):
        run(few, config, reference=few / "real", prompts=made / "inner" / "p.csv", a=made)


def test_metrics_of_pairs_that_nobody_knows_say_so_once(few: Path, models: Path, tmp_path: Path) -> None:
    backends = tuple(f"{name}:{models / name}" for name in ("ast", "clap"))
    bare = EvaluateConfig(("logmel", *backends), resamples=0, brackets=False, splits=2)
    found = run(few, bare, reference=few / "real", a=few / "made")
    missing = {key: score.reason for key, score in found.results[0].scores.items() if "give --prompts" in (score.reason or "")}
    assert list(missing) == ["kl_ast", "clap_score_clap"]
    assert missing["kl_ast"].startswith("no clip is paired with a reference: give --prompts a table")
    assert missing["clap_score_clap"].startswith("no clip has a caption: give --prompts a table")
    assert sum("give --prompts" in text for text in board(found.results).footnotes) == 2
    named = replace(bare, metrics=("kad", "is"))
    scores = run(few, named, reference=few / "real", a=few / "made").results[0].scores
    assert not any(key.startswith(("kl", "clap_score")) for key in scores)
    rows = ((few / "made" / f"{n:03d}.wav", few / "real" / f"{n:03d}.wav") for n in range(8))
    manifest = table(tmp_path / "made.csv", "path,reference", rows)
    ast = replace(bare, backends=backends[:1])
    paired, unpaired = run(few, ast, reference=few / "real", a=manifest, b=few / "made").results
    kinds = ("kl_ast", "kl_reversed_ast", "kl_sigmoid_ast")  # the other system has them all
    assert all(paired.scores[key].value is not None and "no clip is paired" in unpaired.scores[key].reason for key in kinds)


# --- cache ------------------------------------------------------------------------------------------------------------


def test_nothing_is_embedded_twice_and_nothing_stale_is_used(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path(shutil.copytree(few / "made", tmp_path / "made"))
    embedded: list[str] = []
    embed = inference._embed_input

    def counted(one: Any, *rest: Any) -> Any:
        embedded.append(os.path.basename(one.name))
        return embed(one, *rest)

    monkeypatch.setattr(inference, "_embed_input", counted)
    config = EvaluateConfig(resamples=0)
    first = run(tmp_path, config, reference=few / "real", a=made)
    assert len(embedded) == 8 + 8 + 8 + 1  # both sets, noise, and silence of one length
    embedded.clear()
    again = run(tmp_path, config, reference=few / "real", a=made)
    assert (embedded, again.results) == ([], first.results)
    sf.write(made / "003.wav", sound(500), RATE_HZ)
    changed = run(tmp_path, config, reference=few / "real", a=made)
    assert embedded == ["003.wav"]
    assert value(changed, "a", "kad_logmel") != value(first, "a", "kad_logmel")
    embedded.clear()
    quiet = written(tmp_path / "quiet", [0.1 * samples for samples in sounds(8, first=60, duration_s=1.0)])
    settings = EvaluateConfig(resamples=0, brackets=False, loudness="peak")
    leveled = run(tmp_path, settings, reference=few / "real", a=made, b=quiet)
    assert len(embedded) == 24
    assert value(leveled, "a", "kad_logmel") != value(changed, "a", "kad_logmel")


# --- brackets ---------------------------------------------------------------------------------------------------------


def test_brackets_lie_where_they_should_and_reach_the_json(place: Path, tmp_path: Path) -> None:
    found = run(place, FAST, reference=place / "real", good=place / "good")
    write_evaluation(found, tmp_path / "metrics.json")
    written_scores = json.loads((tmp_path / "metrics.json").read_text())["systems"][0]["scores"]
    for key in ("fd_logmel", "kad_logmel"):
        score = written_scores[key]
        assert score["floor"] < score["noise"] and score["floor"] < score["silence"]
        assert score["value"] < score["noise"] and score["value"] < score["silence"]
        assert score["shuffled"] is None  # sets have no pairs
    assert written_scores["coverage_logmel"]["noise"] == 0 < written_scores["coverage_logmel"]["floor"]
    assert "halves of 24 clips" in written_scores["fd_logmel"]["note"]
    bare = run(place, BARE, reference=place / "real", good=place / "good").results[0].scores
    assert bare["fd_logmel"].floor is None and bare["fd_logmel"].value == written_scores["fd_logmel"]["value"]


def test_shuffled_pairs_score_worse_than_right_ones(few: Path, models: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    near = [samples + 1e-3 * rng.standard_normal(len(samples)) for samples in sounds(8, duration_s=1.0)]
    config = EvaluateConfig((f"ast:{models / 'ast'}",), ("kl",), resamples=0)
    score = (
        run(few, config, reference=few / "real", prompts=few / "pairs.csv", a=written(tmp_path / "near", near))
        .results[0]
        .scores["kl_ast"]
    )
    assert 0 <= score.floor <= score.value < score.shuffled
    assert score.noise > score.value


def test_shuffled_pairs_are_all_wrong_where_references_repeat(few: Path, models: Path, tmp_path: Path) -> None:
    """Of two references in turn there is one other for each clip, so that what the bracket has to be can be asked for."""
    config = EvaluateConfig((f"ast:{models / 'ast'}",), ("kl",), resamples=0)
    scores = []
    for turn in (0, 1):
        rows = [(f"{n:03d}.wav", f"{(n + turn) % 2:03d}.wav") for n in range(8)]
        prompts = table(tmp_path / f"{turn}.csv", "clip_id,reference", rows)
        scores.append(run(few, config, reference=few / "real", prompts=prompts, a=few / "made").results[0].scores["kl_ast"])
    right, wrong = scores
    assert right.shuffled == pytest.approx(wrong.value, rel=1e-9) and wrong.shuffled == pytest.approx(right.value, rel=1e-9)
    assert right.value != pytest.approx(wrong.value, rel=1e-3)
    same = table(tmp_path / "same.csv", "clip_id,reference", ((f"{n:03d}.wav", "000.wav") for n in range(8)))
    score = run(few, config, reference=few / "real", prompts=same, a=few / "made").results[0].scores["kl_ast"]
    assert score.shuffled is None and score.noise is not None  # all pairs are alike: there is no wrong one


# --- several backends -------------------------------------------------------------------------------------------------


def test_backends_and_checkpoints_stand_side_by_side(few: Path, models: Path) -> None:
    both = ("logmel", f"ast:{models / 'ast'}", f"ast:{models / 'other-ast'}")
    found = run(
        few, EvaluateConfig(both, ("kad", "is"), resamples=0, splits=2, brackets=False), reference=few / "real", a=few / "made"
    )
    scores = found.results[0].scores
    labels = ("logmel", "ast:ast", "ast:other-ast")
    assert set(scores) == {*(f"kad_{label}" for label in labels), *(f"is_{label}" for label in labels[1:])}
    assert len({scores[f"kad_{label}"].value for label in labels}) == 3
    assert {key: score.key for key, score in scores.items()} == {key: key for key in scores}
    assert list(found.card["backends"]) == list(found.results[0].facts["by_backend"]) == list(labels)
    alone = run(few, EvaluateConfig(both[1:2], ("kad",), resamples=0, brackets=False), reference=few / "real", a=few / "made")
    assert value(alone, "a", "kad_ast") == scores["kad_ast:ast"].value


def test_what_any_backend_can_use_is_in_facts_and_table(few: Path, models: Path, tmp_path: Path) -> None:
    made = Path(shutil.copytree(few / "made", tmp_path / "made"))
    sf.write(made / "short.wav", sound(99, 0.5), RATE_HZ)  # logmel needs a second
    (made / "broken.wav").write_bytes(b"RIFF")
    backends = ("logmel", f"ast:{models / 'ast'}")
    counts = {
        "logmel": {"clips": 8, "skipped": 2, "frames": 8},
        "ast": {"clips": 9, "skipped": 1, "frames": 9},
    }
    contents = []
    for order in (backends, backends[::-1]):
        config = EvaluateConfig(order, ("kad", "fad_per_clip"), resamples=0, brackets=False, max_skipped=2)
        found = run(tmp_path, config, reference=few / "real", a=made)
        facts = found.results[0].facts
        assert (facts["clips"], facts["skipped"], facts["seconds"]) == (9, 1, 8.5)
        assert facts["by_backend"] == counts
        assert [found.results[0].scores[f"kad_{label}"].n_generated for label in counts] == [8, 9]
        assert found.card["backends"]["ast"]["reference_clips"] == found.card["reference"]["clips"] == 8
        contents.append((facts["content_sha256"], found.clips["clip_id"].to_pylist()))
    assert contents[0] == contents[1] and len(set(contents[0][1])) == 9


def test_the_card_names_the_versions_that_models_depend_on(few: Path) -> None:
    versions = run(few, reference=few / "real", a=few / "made").card["versions"]
    assert (versions["torch"], versions["transformers"]) == (metadata.version("torch"), transformers.__version__)


# --- memorization -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real audit of 8 clips, of which 3 are copies of training clips."""
    root = tmp_path_factory.mktemp("audited")
    rng = np.random.default_rng(0)
    copies = [0.5 * samples + 1e-3 * rng.standard_normal(len(samples)) for samples in sounds(3, first=3, duration_s=3.0)]
    written(root / "training", sounds(24, duration_s=3.0))
    written(root / "made", [*sounds(5, first=200, duration_s=3.0), *copies])
    written(root / "background", sounds(24, first=400, duration_s=3.0))
    corpora = [open_corpus(root / name) for name in ("made", "training", "background")]
    audit(*corpora, output=root / "audit", config=AuditConfig(duration_s=3.0, tau=0.51))
    return root


def test_replication_stands_beside_quality(audited: Path) -> None:
    systems = {"a": system(audited / "made", audited / "audit"), "b": system(audited / "background")}
    found = evaluate(systems, open_corpus(audited / "training"), config=BARE, cache=audited / "cache")
    scores = found.results[0].scores
    flagged = Audit.open(audited / "audit").queries()["flagged"].to_pylist()
    assert scores["share_over_tau"].value == pytest.approx(sum(flagged) / 8) == pytest.approx(3 / 8)
    assert scores["kad_logmel"].value is not None
    assert found.results[0].facts["audit"] == str(audited / "audit")
    assert "share_over_tau" not in found.results[1].scores and "audit" not in found.results[1].facts


def test_an_audit_of_other_clips_or_none_is_refused(audited: Path, tmp_path: Path) -> None:
    reference = open_corpus(audited / "training")
    with pytest.raises(OtherClipsError):
        evaluate({"b": system(audited / "background", audited / "audit")}, reference, config=BARE, cache=audited / "cache")
    with pytest.raises(AuscultError, match=r"no card\.json"):
        evaluate({"a": system(audited / "made", tmp_path)}, reference, config=BARE, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # seen before hours of embedding


def test_an_audit_of_other_clips_is_refused_before_anything_is_scored(audited: Path) -> None:
    told: list[str] = []
    systems = {"a": system(audited / "made", audited / "audit"), "b": system(audited / "background", audited / "audit")}
    with pytest.raises(OtherClipsError):
        evaluate(
            systems,
            open_corpus(audited / "training"),
            config=BARE,
            cache=audited / "cache",
            progress=lambda done, total, what: told.append(what),
        )
    assert any("reading clips" in what for what in told) and not any("scores" in what for what in told)


def test_an_audit_is_of_the_clips_that_any_backend_can_use(audited: Path, models: Path, tmp_path: Path) -> None:
    made = Path(shutil.copytree(audited / "made", tmp_path / "made"))
    sf.write(made / "short.wav", sound(99, 0.5), RATE_HZ)
    reference = open_corpus(audited / "training")
    for backends, refused in (("logmel",), False), (("logmel", f"ast:{models / 'ast'}"), True):
        config = EvaluateConfig(backends, ("kad",), resamples=0, brackets=False, max_skipped=1)
        found = evaluate({"a": system(made, audited / "audit")}, reference, config=config, cache=audited / "cache")
        scores = found.results[0].scores
        assert scores["kad_logmel"].value is not None
        share = scores["share_over_tau"]
        assert share.value is None and "short.wav" in share.reason if refused else share.value == pytest.approx(3 / 8)


def test_whose_audit_it_is_has_to_be_clear(audited: Path, tmp_path: Path) -> None:
    given = (audited / "made", "--reference", audited / "training", "-o", tmp_path / "m.json", "--cache", audited / "cache")
    result = auscult(*given, "--audit", f"nobody={audited / 'audit'}")
    assert isinstance(result.exception, ValueError) and "whose is it? Give NAME=FOLDER for one of the systems made" in str(
        result.exception
    )
    odd = Path(shutil.copytree(audited / "audit", tmp_path / "tau=0.51" / "audit"))
    result = auscult(*given, "--audit", odd, "--resamples", 0)
    assert result.exit_code == 0, result.exception
    assert "share_over_tau" in json.loads((tmp_path / "m.json").read_text())["systems"][0]["scores"]


# --- classes ----------------------------------------------------------------------------------------------------------


def test_scores_by_class_with_labels_of_the_manifest_and_of_the_prompts(place: Path, tmp_path: Path) -> None:
    training = table(tmp_path / "training.csv", "path,labels", ((f"{n}.wav", "dog" if n else "owl") for n in range(12)))
    label = ["dog", "owl", "gong"]
    own = table(
        tmp_path / "own.csv", "path,clip_id,labels", ((place / "good" / f"{n:03d}.wav", n, label[n % 3]) for n in range(CLIPS))
    )
    prompts = table(tmp_path / "prompts.csv", "clip_id,labels", ((f"{n:03d}.wav", label[n % 3]) for n in range(CLIPS)))
    by_path = table(
        tmp_path / "by-path.csv", "path,labels", ((place / "good" / f"{n:03d}.wav", label[n % 3]) for n in range(CLIPS))
    )
    found = []
    for source, given in ((own, None), (place / "good", prompts), (place / "good", by_path)):
        asked = None if given is None else read_prompts(given)
        classes = read_classes(str(training), prompts=asked)
        assert classes.frequency == {"dog": 11, "owl": 1}
        one = evaluate(
            {"a": system(source)},
            open_corpus(place / "real"),
            prompts=asked,
            classes=classes,
            config=BARE,
            cache=place / "cache",
        )
        found.append(one.tails["fd_per_clip_logmel"].systems["a"])
    first, second, third = found
    assert [(bin.name, bin.classes, bin.clips) for bin in first.bins if bin.classes] == [
        ("0", 1, 16),
        ("1-9", 1, 16),
        ("10-29", 1, 16),
    ]
    values = one.clips["fd_per_clip_logmel"].to_pylist()
    ids = one.clips["clip_id"].to_pylist()
    owls = [v for v, clip in zip(values, ids, strict=True) if int(clip[:3]) % 3 == 1]
    assert first.bins[1].value == pytest.approx(np.mean(owls))
    assert first.classes == second.classes == third.classes
    paths = write_evaluation(one, tmp_path / "m.json")
    assert tmp_path / "m.longtail.csv" in paths and all(path.is_file() for path in paths)
    assert "10-29" in (tmp_path / "m.longtail.csv").read_text()
    content = json.loads((tmp_path / "m.json").read_text())["long_tail"]
    assert LongTail.from_json(content["fd_per_clip_logmel"]["systems"]["a"]) == third
    with pytest.raises(ValueError, match="^b: none of the 48 clips has a label"):
        evaluate(
            {"a": system(own), "b": system(place / "good")},
            open_corpus(place / "real"),
            classes=read_classes(str(training)),
            config=BARE,
            cache=place / "cache",
        )
    unlabeled = table(tmp_path / "unlabeled.csv", "path", [["0.wav"]])
    with pytest.raises(CorpusError, match="none of its 1 clips has labels"):
        read_classes(str(unlabeled))


def test_scores_by_class_that_cannot_be_had_are_refused_before_anything_is_embedded(
    few: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"reference": few / "real", "a": few / "made"}
    labels = {f"{n:03d}.wav": ("dog",) for n in range(8)}
    for classes, message in (
        (Classes({"dog": 3}), "^a: none of the 8 clips has a label"),
        (Classes({"Dog": 3}, labels), "^a: no label of these clips .'dog'. is one of the training set"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, classes=classes, **folders)
    monkeypatch.setattr(tails, "FEW_DIMENSIONS", 1)  # as with any model that is not tiny
    config = EvaluateConfig(("logmel", f"ast:{models / 'ast'}"))
    with pytest.raises(ValueError, match="scores by class need one of clap_score, kl, fad_per_clip, fd_per_clip of each clip"):
        run(tmp_path, config, classes=Classes({"dog": 3}, labels), **folders)
    assert not (tmp_path / "cache").exists()
    config = replace(config, resamples=0, brackets=False)
    prompts = few / "pairs.csv"
    assert list(run(few, config, classes=Classes({"dog": 3}, labels), prompts=prompts, **folders).tails) == ["kl_ast"]


def test_scores_by_class_that_turn_out_to_be_missing_leave_the_rest(few: Path, tmp_path: Path) -> None:
    classes = Classes({"dog": 3}, {f"{n:03d}.wav": ("dog",) for n in range(8)})
    found = run(few, reference=few / "real", a=few / "made", classes=classes)  # clips of one frame, which has no covariance
    assert found.tails == {} and found.results[0].scores["kad_logmel"].value is not None
    (warning,) = found.card["warnings"]
    assert "no scores by class" in warning and "two frames" in warning
    write_evaluation(found, tmp_path / "m.json")
    assert "no scores by class" in (tmp_path / "m.html").read_text()


def test_a_system_whose_labeled_clips_are_skipped_has_no_tail_and_the_others_do(place: Path, tmp_path: Path) -> None:
    short = written(tmp_path / "short", [*sounds(2, first=300), sound(302, 0.5)])
    labels = {**{f"{n:03d}.wav": ("dog",) for n in range(2, CLIPS)}, "000.wav": (), "001.wav": ()}
    config = replace(BARE, max_skipped=1, metrics=("kad",))
    classes = Classes({"dog": 3}, labels)
    found = run(place, config, reference=place / "real", a=place / "good", b=short, classes=classes)
    assert list(found.tails["fd_per_clip_logmel"].systems) == ["a"]
    assert "b has no scores by class (logmel): none of the 2 clips has a label" in found.card["warnings"][0]


def test_labels_by_path_serve_systems_whose_files_are_called_alike(place: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(place / "good", tmp_path / "other"))
    rows = [(f"{n:03d}.wav", "dog" if n % 2 else "owl") for n in range(CLIPS)]
    training = table(tmp_path / "training.csv", "path,labels", rows)
    prompts = table(tmp_path / "prompts.csv", "path,labels", rows)
    classes = read_classes(str(training), prompts=read_prompts(prompts))
    config = replace(BARE, metrics=("kad",))
    found = run(place, config, reference=place / "real", prompts=prompts, classes=classes, a=place / "good", b=other)
    tail = found.tails["fd_per_clip_logmel"].systems
    assert tail["a"] == tail["b"] and [one.clips for one in tail["a"].classes] == [24, 24] and not tail["a"].unlabeled


def test_a_figure_is_of_a_metric_and_a_backend_whatever_these_are_called() -> None:
    tail = tails.Tail("clap_score", "clap:larger_clap", {"a": long_tail([0.5, 0.3], [("Dog",), ("Cat",)], {"Dog": 3})})
    assert results._panel(tail).title == "CLAP score (clap:larger_clap) from rare to frequent sounds"
    assert tail.to_json()["metric"] == "clap_score" and tail.to_json()["backend"] == "clap:larger_clap"


def test_audiocaps_takes_its_classes_from_audioset(place: Path, tmp_path: Path) -> None:
    training = table(
        tmp_path / "train.csv",
        "audiocap_id,youtube_id,start_time,caption",
        ((n, f"video{n}", 30, "a sound") for n in range(12)),
    )
    prompts = table(
        tmp_path / "test.csv", "audiocap_id,youtube_id,start_time,caption", ((n, f"clip{n:02d}", 5, "x") for n in range(CLIPS))
    )
    segments = table(
        tmp_path / "segments.csv",
        "# YTID, start_seconds, end_seconds, positive_labels",
        [
            *((f"video{n}", " 30.000", " 40.000", ' "/m/dog"' if n < 10 else ' "/m/owl"') for n in range(12)),
            *((f"clip{n:02d}", " 5.000", " 15.000", ' "/m/owl"' if n % 2 else ' "/m/dog,/m/owl"') for n in range(CLIPS - 1)),
        ],
    )
    names = table(tmp_path / "names.csv", "index,mid,display_name", [(0, "/m/dog", "Dog"), (1, "/m/owl", "Owl")])
    made = written(tmp_path / "made", [sf.read(place / "good" / f"{n:03d}.wav")[0] for n in range(CLIPS)])
    manifest = table(tmp_path / "made.csv", "path,clip_id", ((made / f"{n:03d}.wav", n) for n in range(CLIPS)))
    asked = read_prompts(prompts)
    with pytest.raises(ValueError, match=r"--audioset.*--class-names"):
        read_classes(str(training), prompts=asked)
    with pytest.raises(TableError):
        read_classes(str(training), prompts=asked, segments=[names], class_names=names)
    classes = read_classes(str(training), prompts=asked, segments=[segments], class_names=names)
    assert classes.frequency == {"Dog": 10, "Owl": 2}
    one = evaluate(
        {"a": system(manifest)}, open_corpus(place / "real"), prompts=asked, classes=classes, config=BARE, cache=place / "cache"
    )
    tail = one.tails["fd_per_clip_logmel"].systems["a"]
    assert (tail.clips, tail.unlabeled) == (CLIPS, 1)
    assert [(row.label, row.frequency, row.clips) for row in tail.classes] == [("Owl", 2, 47), ("Dog", 10, 24)]
    assert "1 of 48 AudioCaps rows have no AudioSet segment" in one.card["warnings"][0]


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_hold_every_system(place: Path, tmp_path: Path) -> None:
    systems = {"good": system(place / "good"), HOSTILE: system(place / "mute")}
    found = evaluate(systems, open_corpus(place / "real"), config=BARE, cache=place / "cache")
    paths = write_evaluation(found, tmp_path / "out.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    content = json.loads((tmp_path / "out.json").read_text())
    assert tuple(map(SystemResult.from_json, content["systems"])) == found.results
    assert content["card"] == json.loads(json.dumps(found.card))
    assert content["files"] == {path.name[3:]: file_digest(path) for path in paths[1:]}
    page = (tmp_path / "out.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "good" in page
    markdown = (tmp_path / "out.md").read_text()
    assert "<script" not in markdown and r"&lt;script&gt;" in markdown and "good" in markdown
    with open(tmp_path / "out.csv", newline="") as text:
        assert [row["system"] for row in csv.DictReader(text)] == ["good"] * 7 + [HOSTILE] * 7
    clips = pq.read_table(tmp_path / "out.clips.parquet")
    assert clips.equals(found.clips)
    assert clips.column_names == [
        "system", "clip_id", "path", "caption", "labels", "duration_s", "flags", "fd_per_clip_logmel",
    ]  # fmt: skip
    assert clips["system"].to_pylist() == ["good"] * CLIPS + [HOSTILE] * CLIPS
    assert all(math.isfinite(number) for number in clips["fd_per_clip_logmel"].to_pylist())


class Killed(BaseException):
    """The process is gone: from here on, it changes nothing on the disk."""


@contextmanager
def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The first ``steps`` changes of the disk happen; yields what was done."""
    done: list[str] = []

    def limited(kind: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **settings: Any) -> Any:
            if len(done) >= steps:
                raise Killed
            done.append(kind)
            return change(*given, **settings)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", limited("written", os.fsync))
        patch.setattr(Path, "replace", limited("renamed", Path.replace))
        patch.setattr(Path, "unlink", limited("removed", Path.unlink))
        yield done


def classified(place: Path, config: EvaluateConfig = BARE) -> Evaluation:
    """An evaluation of ``good`` with scores by class, so with all kinds of files."""
    classes = Classes({"dog": 20}, {f"{n:03d}.wav": ("dog",) for n in range(CLIPS)})
    systems = {"a": system(place / "good")}
    return evaluate(systems, open_corpus(place / "real"), classes=classes, config=config, cache=place / "cache")


def refuse_a_table_that_somebody_else_puts_there(path: Path) -> None:
    if path.exists():
        return
    place = path.with_name("m.csv")
    before = place.read_bytes() if place.exists() else None
    place.write_bytes(b"somebody else's")
    with pytest.raises(OutputFolderError, match=r"m\.csv: is there already, and not of an evaluation"):
        check_output(path, overwrite=True)
    place.unlink() if before is None else place.write_bytes(before)


@pytest.mark.parametrize("before", ["nothing", "an evaluation with classes"])
def test_a_kill_at_any_moment_of_writing_leaves_a_place_that_can_be_written_to(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    old = classified(place)
    new = run(place, EvaluateConfig(metrics=("kad",), resamples=0, brackets=False), reference=place / "real", a=place / "good")
    tables = {id(one): results._tables(one) for one in (old, new)}  # drawn once, not at each of the moments
    monkeypatch.setattr(results, "_tables", lambda asked: tables[id(asked)])
    for steps in range(100):
        path = tmp_path / f"{steps}" / "m.json"
        if before == "nothing":
            check_output(path, overwrite=False)
        else:
            write_evaluation(old, path)
        try:
            with killed_after(steps, monkeypatch) as done:
                write_evaluation(new, path)
        except Killed:
            pass
        else:
            break
        if path.exists():  # then everything is, be it of the old or of the new one
            files = json.loads(path.read_text())["files"]
            assert all(file_digest(path.with_name("m" + suffix)) == digest for suffix, digest in files.items())
        else:
            check_output(path, overwrite=False)  # nothing is finished there that could be lost
        refuse_a_table_that_somebody_else_puts_there(path)
        check_output(path, overwrite=True)
        write_evaluation(new, path)
        assert sorted(one.name for one in path.parent.iterdir()) == ["m.clips.parquet", "m.csv", "m.html", "m.json", "m.md"]
    else:
        raise AssertionError("the writing never ended")
    assert done.count("written") == 6 and done.count("renamed") == 6
    assert steps >= 14


def test_what_fails_before_all_is_written_leaves_the_earlier_result(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(few, reference=few / "real", a=few / "made")
    path = tmp_path / "m.json"
    write_evaluation(found, path)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_evaluation(found, path)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_tables_of_an_earlier_evaluation_are_replaced_and_others_are_not(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    bare = run(place, reference=place / "real", a=place / "good")
    write_evaluation(classified(place), path)
    assert (tmp_path / "m.longtail.csv").exists()
    check_output(path, overwrite=True)
    write_evaluation(bare, path)
    assert not (tmp_path / "m.longtail.csv").exists()
    (tmp_path / "m.longtail.csv").write_text("somebody else's")
    for write in (lambda: check_output(path, overwrite=True), lambda: write_evaluation(bare, path)):
        with pytest.raises(OutputFolderError, match=r"m\.longtail\.csv: is there already"):
            write()
    assert (tmp_path / "m.longtail.csv").read_text() == "somebody else's"


def test_outputs_that_would_be_lost_or_lead_nowhere_are_refused(few: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    for wrong, message in ((tmp_path / "m.csv", "such as metrics.json"), (tmp_path / "f.json", "is a folder")):
        (tmp_path / "f.json").mkdir(exist_ok=True)
        with pytest.raises(OutputFolderError, match=message):
            check_output(wrong, overwrite=True)
    (tmp_path / "m.csv").write_text("mine")
    with pytest.raises(OutputFolderError, match=r"m\.csv: is there already, and not of an evaluation"):
        check_output(path, overwrite=True)
    (tmp_path / "m.csv").unlink()
    write_evaluation(run(few, reference=few / "real", a=few / "made"), path)
    with pytest.raises(OutputFolderError, match="finished evaluation; .*--overwrite"):
        check_output(path, overwrite=False)
    check_output(path, overwrite=True)
    content = json.loads(path.read_text())
    for files in (None, [".csv", ["a"]]):
        path.write_text(json.dumps({**content, "files": files}))
        with pytest.raises(OutputFolderError, match=r"m\.json: is of an evaluation that does not say .* move it .* away"):
            check_output(path, overwrite=True)
    path.write_text("{}")
    with pytest.raises(OutputFolderError, match=r"m\.json: is there already, and not of an evaluation"):
        check_output(path, overwrite=True)


def test_a_table_that_somebody_changed_is_not_overwritten(few: Path, tmp_path: Path) -> None:
    path, found = tmp_path / "m.json", run(few, reference=few / "real", a=few / "made")
    write_evaluation(found, path)
    table, whole = tmp_path / "m.csv", (tmp_path / "m.csv").read_bytes()
    table.write_bytes(whole + b"my corrections")
    for write in (lambda: check_output(path, overwrite=True), lambda: write_evaluation(found, path)):
        with pytest.raises(OutputFolderError, match=r"m\.csv: was changed since its evaluation was written; move it away"):
            write()
    assert table.read_bytes() == whole + b"my corrections"
    table.unlink()  # moved away
    check_output(path, overwrite=True)
    table.mkdir()
    with pytest.raises(OutputFolderError, match=r"m\.csv: was changed"):
        check_output(path, overwrite=True)


@pytest.mark.parametrize("name", ["x" * 235, "x" * 300])
def test_a_name_too_long_for_the_files_beside_it_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputFolderError, match=r"cannot be written \(File name too long\)"):
        check_output(tmp_path / f"{name}.json", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to, root neither")
def test_a_folder_that_cannot_be_written_is_refused_at_once() -> None:
    with pytest.raises(OutputFolderError, match=r"/proc/m\.json: cannot be written"):
        check_output(Path("/proc/m.json"), overwrite=False)


def test_what_a_killed_writer_with_classes_left_goes_with_the_next_result(few: Path, tmp_path: Path) -> None:
    for left in (".m.evaluation.longtail.csv.new", ".m.evaluation.clips.parquet.new"):
        (tmp_path / left).write_text("half of a ta")
    check_output(tmp_path / "m.json", overwrite=False)
    write_evaluation(run(few, reference=few / "real", a=few / "made"), tmp_path / "m.json")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.clips.parquet", "m.csv", "m.html", "m.json", "m.md"]


# --- command line -----------------------------------------------------------------------------------------------------


def test_the_command_reads_lists_from_toml_and_writes_its_files(few: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'backends = ["logmel"]\nmetrics = ["kad", "coverage"]\nedges = [2, 4]\nneighbors = 2\nresamples = 7\nbrackets = false\n'
    )
    result = auscult(
        f"one={few / 'made'}", f"two={few / 'real'}", "--reference", few / "real", "-o", tmp_path / "m.json",
        "--config", tmp_path / "c.toml", "--resamples", 9, "--cache", few / "cache",
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    found = json.loads((tmp_path / "m.json").read_text())
    assert [one["name"] for one in found["systems"]] == ["one", "two"]
    assert set(found["systems"][0]["scores"]) == {"kad_logmel", "coverage_logmel"}
    config = found["card"]["config"]
    assert (config["metrics"], config["edges"], config["resamples"]) == (["kad", "coverage"], [2, 4], 9)
    (tmp_path / "c.toml").write_text('backends = "logmel"\n')
    result = auscult(few / "made", "--reference", few / "real", "-o", tmp_path / "n.json", "--config", tmp_path / "c.toml")
    assert "backends should be a list" in str(result.exception)


def test_the_terminal_shows_what_the_files_do(place: Path, tmp_path: Path) -> None:
    """Footnotes and their numbers, what was taken from the table, and the scores by class."""
    rows = [(f"{n:03d}.wav", "a dog" if n % 2 else "an owl", "dog" if n % 2 else "owl", "x") for n in range(CLIPS)]
    prompts = table(place / "good" / "prompts.csv", "path,caption,labels,refrence", rows)
    try:
        result = auscult(
            place / "good", "--reference", place / "real", "-o", tmp_path / "m.json", "--cache", place / "cache",
            "--metrics", "FD, kad", "--resamples", 0,
            "--prompts", prompts, "--training", prompts,
        )  # fmt: skip
    finally:
        prompts.unlink()
    assert result.exit_code == 0, result.exception
    shown = " ".join(result.stdout.split())
    assert "Scores [interval, or spread of fad and fd]" in shown
    assert "prompts.csv: rows 48 with captions, 0 with references, 48 with labels" in shown
    assert "the column 'refrence' is not read; is 'reference' meant?" in shown
    assert "from rare to frequent classes" in shown and "10-29" in shown
    assert "good: 2 scores." in shown
    card = json.loads((tmp_path / "m.json").read_text())["card"]
    assert {**card["prompts"], "source": ""} == {"source": "", "captions": 48, "references": 0, "labels": 48}
    clips = pq.read_table(tmp_path / "m.clips.parquet").sort_by("path")
    assert clips["caption"].to_pylist() == ["an owl", "a dog"] * 24
    assert clips["labels"].to_pylist() == [["owl"], ["dog"]] * 24


def test_a_table_that_says_nothing_is_refused(few: Path, tmp_path: Path) -> None:
    prompts = table(tmp_path / "prompts.csv", "path,Caption,lables", [(few / "made" / "000.wav", "an owl", "owl")])
    with pytest.raises(ManifestError, match=r"says nothing of its clips.*'caption' meant by 'Caption'.*'labels' meant by"):
        run(few, reference=few / "real", prompts=prompts, a=few / "made")
    empty = table(tmp_path / "empty.csv", "path,caption", [(few / "made" / "000.wav", "")])
    with pytest.raises(ManifestError, match="says nothing of its clips"):
        run(few, reference=few / "real", prompts=empty, a=few / "made")


def test_a_run_without_any_score_ends_with_1_and_says_why(few: Path, tmp_path: Path) -> None:
    result = auscult(
        few / "made", "--reference", few / "real", "-o", tmp_path / "m.json", "--cache", few / "cache", "--metrics", "fd",
        "--resamples", 0,
    )  # fmt: skip
    assert result.exit_code == 1
    shown = " ".join(result.stdout.split())
    assert "made: no score could be given" in shown and "(1) The covariance of 64 dimensions needs" in shown
    assert "- (1)" in shown
    assert "no score could be given" in (tmp_path / "m.html").read_text("utf-8")


def test_two_systems_of_one_name_are_told_apart_by_the_user(few: Path, tmp_path: Path) -> None:
    result = auscult(few / "made", f"made={few / 'real'}", "--reference", few / "real", "-o", tmp_path / "m.json")
    assert str(result.exception) == "two systems are called 'made'; tell them apart: NAME=SRC"
    assert isinstance(result.exception, ValueError)


def test_a_manifest_is_called_after_its_folder(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "more/b"):
        (tmp_path / name).mkdir(parents=True)
        table(tmp_path / name / "manifest.csv", "path", ((few / "made" / f"{n:03d}.wav",) for n in range(4)))
    shutil.copy(tmp_path / "a" / "manifest.csv", tmp_path / "c.csv")
    monkeypatch.chdir(tmp_path / "b")
    sources = (tmp_path / "a" / "manifest.csv", "manifest.csv", "../c.csv", f"manifest.csv={tmp_path / 'a' / 'manifest.csv'}")
    options = ("--reference", few / "real", "--metrics", "kad", "--resamples", "0", "--cache", few / "cache")
    result = auscult(*sources, *options, "-o", tmp_path / "m.json", "--json")
    assert [one["name"] for one in json.loads(result.stdout)["systems"]] == ["a", "b", "c.csv", "manifest.csv"]
    result = auscult("manifest.csv", "../more/b/manifest.csv", *options, "-o", tmp_path / "n.json")
    assert str(result.exception) == "two systems are called 'b'; tell them apart: NAME=SRC"


def test_reference_and_systems_share_what_was_embedded(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal contents one is embedded, in whatever sets they lie."""
    calls: list[int] = []
    extract = corridor.extract

    def told(*given: Any, progress: Any, **rest: Any) -> Any:
        return extract(*given, progress=lambda done, total, what: calls.append(total or 0), **rest)

    monkeypatch.setattr(corridor, "extract", told)
    run(tmp_path, reference=few / "real", a=few / "real", b=few / "made")
    assert max(calls) == 8 and calls.count(8) == 2 * 9  # two sets of 8, each told at 0 to 8
