"""The scripts in examples/, as somebody runs them: on tiny pipelines of the real classes, with copies that are planted."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile as sf

pytest.importorskip("diffusers")

import planted_memory
import tiny_pipelines
from auscult.corpus import Clip, open_corpus
from auscult.descriptors import load_descriptor
from auscult.generation.generating import GenerateConfig, generate
from auscult.guidance.guard_config import GuardConfig
from auscult.indexing import index
from conftest import sound

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(ROOT.glob("examples/*"))
SCALE = 3.0
MELODY = 3  # of the families of sounds: melodies are so alike that the audit takes them for each other's copies


def script(name: str) -> ModuleType:
    """A script, loaded by its path."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(name: str, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a script says that cannot run."""
    with pytest.raises(SystemExit) as ended:
        script(name).main([*map(str, arguments)])
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def write(folder: Path, numbers: Sequence[int], duration_s: float) -> Path:
    """Sounds as WAV, without the family whose members are alike."""
    folder.mkdir()
    for number in (number for number in numbers if number % 6 != MELODY):
        sf.write(folder / f"{number}.wav", sound(number, duration_s), 16_000)
    return folder


def test_examples_are_short_and_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(EXAMPLES) == 3
    for path in EXAMPLES:
        text = path.read_text("utf-8")
        assert path.suffix == ".py" and len(text.splitlines()) < 40, path.name
        assert f"](examples/{path.name})" in readme and f"python examples/{path.name} " in text, path.name


# --- audit_stable_audio_open.py ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stable_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.save(tmp_path_factory.mktemp("models") / "sao", "StableAudioPipeline", frames=1024)


@pytest.mark.slow
def test_a_copy_that_the_pipeline_makes_is_flagged(
    stable_audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes of the second prompt lies, quieter, among the clips; without it nothing is flagged."""
    prompts, clips = tmp_path / "prompts.txt", write(tmp_path / "clips", range(14), 0.5)
    prompts.write_text("a dog\nrain\n")
    unseen = tmp_path / "unseen.store"
    index(open_corpus(write(tmp_path / "unseen", range(200, 224), 0.5)), unseen, descriptor=load_descriptor("contrast"))
    settings = {"steps": 2, "guidance_scale": 7.0, "duration_s": 0.5}
    made = generate(str(stable_audio), prompts, tmp_path / "before", config=GenerateConfig(**settings))
    given = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]

    def run(output: str, *more: object) -> tuple[int, list[str]]:
        arguments = (prompts, clips, tmp_path / output, "--model", stable_audio, *given, *more)
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        return script("audit_stable_audio_open").main(), capsys.readouterr().out.splitlines()

    code, said = run("clean", "--unseen", unseen)
    assert (code, said[0]) == (0, "0 of 2 generated clips (0.0%) are flagged as possible replicas of one of 12 training clips.")
    copied, rate_hz = sf.read(made.path / made.rows()[1]["path"])
    sf.write(clips / "copied.wav", copied / 2, rate_hz)
    code, said = run("copied", "--unseen", unseen)
    assert (code, said[0]) == (
        1,
        "1 of 2 generated clips (50.0%) are flagged as possible replicas of one of 13 training clips.",
    )
    assert said[-1] == str(tmp_path / "copied" / "audit" / "report.html") and Path(said[-1]).stat().st_size > 10_000
    assert said[1].startswith("No background set was given")  # what is weak about it
    code, said = run("copied")  # again, and 13 clips are too few to tell one of two from chance
    assert code == 2 and said[0].startswith("Not decided: ")


def test_an_audit_that_cannot_run_says_why(stable_audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, (prompts, clips) = "audit_stable_audio_open", (tmp_path / "prompts.txt", tmp_path / "clips")
    prompts.write_text("rain\n")
    assert f"{clips}: does not exist" in refused(name, capsys, prompts, clips, tmp_path / "out")
    clips.mkdir()
    for more, message in (
        (("--model", tmp_path), "there is no model_index.json in it"),
        (("--model", stable_audio, "--steps", 0), "steps should be at least 1"),
        (("--model", stable_audio, "--device", "gpu"), "device should be"),
    ):
        assert message in refused(name, capsys, prompts, clips, tmp_path / "out", *more)
    assert not list(tmp_path.glob("out/*"))


# --- deduplicate_corpus.py --------------------------------------------------------------------------------------------


def test_planted_duplicates_are_not_in_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One clip with a copy of its file, one with its samples as FLAC; what cannot be read is not kept either."""
    folder = write(tmp_path / "corpus", range(8), 0.5)
    shutil.copy(folder / "1.wav", folder / "copied.wav")
    samples, rate_hz = sf.read(folder / "2.wav", dtype="int16")
    sf.write(folder / "encoded.flac", samples, rate_hz)
    (folder / "broken.wav").write_bytes(b"no sound")
    lines = [{"path": f"corpus/{path.name}", "caption": f"sound {path.stem}"} for path in sorted(folder.iterdir())]
    lines += [{"path": "corpus/4.wav", "clip_id": "part", "start_s": 0.25, "duration_s": 0.2}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
    script("deduplicate_corpus").main([str(tmp_path / "corpus.jsonl"), str(tmp_path / "out")])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "2 clusters of duplicates hold 4 of 10 clips; 2 can be dropped. 1 files could not be read."
    assert said[-2:] == [str(tmp_path / "out" / "duplicates" / "report.html"), str(tmp_path / "out" / "kept.jsonl")]
    kept = [clip for clip in open_corpus(said[-1]) if isinstance(clip, Clip)]
    given = [clip for clip in open_corpus(tmp_path / "corpus.jsonl") if isinstance(clip, Clip)]
    by_name = {Path(clip.path).name for clip in kept if clip.clip_id != "part"}
    assert len(kept) == 8 and {"1.wav", "copied.wav"} & by_name and {"2.wav", "encoded.flac"} & by_name
    assert "broken.wav" not in by_name and by_name >= {"0.wav", "4.wav", "5.wav"}
    assert kept == [clip for clip in given if clip in kept]  # with captions, stretches and ids as they were


def test_a_corpus_that_cannot_be_deduplicated_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.csv").write_text("file\na.wav\n")
    (tmp_path / "empty").mkdir()
    for source, message in (("none", "does not exist"), ("table.csv", "column"), ("empty", "it is empty")):
        assert message in refused("deduplicate_corpus", capsys, tmp_path / source, tmp_path / f"out-{source}")
        assert not (tmp_path / f"out-{source}" / "kept.jsonl").exists()


# --- guard_in_production.py -------------------------------------------------------------------------------------------

NAMES = [f"sound {letter}" for letter in "abcdefghijkl"]
PROTECTED = [number for number in range(14) if number % 6 != MELODY]


def wave(number: int) -> Any:
    return sound(number, planted_memory.DURATION_S)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A folder with a pipeline, clips that it is to know by heart, with captions, and others."""
    write(tmp_path / "protected", PROTECTED, planted_memory.DURATION_S)
    write(tmp_path / "unseen", range(200, 224), planted_memory.DURATION_S)
    lines = [{"path": f"protected/{number}.wav", "caption": name} for number, name in zip(PROTECTED, NAMES, strict=True)]
    (tmp_path / "protected.jsonl").write_text("\n".join(map(json.dumps, lines)))
    planted_memory.save(tmp_path / "model", [wave(number) for number in [*PROTECTED, 100, 102]])
    return tmp_path


@pytest.mark.slow
def test_a_replica_is_withheld_and_everything_else_is_answered(
    scene: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first prompt replays a protected clip and heeds guidance, the second one does so whatever guidance says, and the
    third one gives a clip that nobody protects."""
    becomes = {"sound a": wave(PROTECTED[0]), "sound c": wave(PROTECTED[2]), "sound x": wave(100)}
    module = script("guard_in_production")
    real: Callable[..., Any] = module.load_pipeline
    loaded: list[object] = []

    def load(*given: Any, **more: Any) -> Any:
        loaded.append(given)
        return planted_memory.plant(real(*given, **more), becomes, SCALE, stubborn={"sound c": None})

    monkeypatch.setattr(module, "load_pipeline", load)
    monkeypatch.setattr(sys, "stdin", io.StringIO("sound a\n\nsound c\nsound x\n"))
    places = [str(scene / name) for name in ("model", "protected.jsonl", "unseen", "served")]
    module.main([*places, "--steps=8", "--guidance-scale=3", f"--duration-s={planted_memory.DURATION_S}"])
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(loaded) == 1
    assert [line["prompt"] for line in (first, second, third)] == ["sound a", "sound c", "sound x"]
    assert first["path"] is not None  # guided away from it, at the first attempt or a stronger one
    assert second["path"] is None and len(second["flagged"]) == 1 + GuardConfig().attempts
    for found in second["flagged"]:
        assert Path(found["reference_path"]) == scene / "protected" / f"{PROTECTED[2]}.wav" and found["p_value"] < 0.05
    assert third["path"] is not None and third["flagged"] == []
    assert sf.info(third["path"]).duration == pytest.approx(planted_memory.DURATION_S, abs=0.1)
    delivered = {first["path"], third["path"]}
    requests = scene / "served" / "requests"
    assert {str(path) for path in requests.glob("*/audio/*")} == delivered
    kept_aside = [line for path in sorted(requests.glob("*/withheld.jsonl")) for line in path.read_text().splitlines()]
    assert json.loads(kept_aside[-1])["flagged"] == second["flagged"]
