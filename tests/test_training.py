"""auscult train on a tiny real model: goes on to the same weights after a kill, gates, bad input."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

pytest.importorskip("diffusers")

import torch
from safetensors.torch import load_file, save_file

from auscult.errors import AudioDecodeError, CorpusError, GateError, OutputFolderError
from auscult.generation import examples, training
from auscult.generation.checkpoints import checkpoint_steps
from auscult.generation.mel import MelSpec
from auscult.generation.pipeline import RetrievalAugmentedAudioPipeline
from auscult.generation.preparing import _codec_gates, prepare
from auscult.generation.training import train
from auscult.generation.training_config import OptimizerConfig, load_train_config
from auscult.generation.training_folder import LOG
from auscult.generation.training_log import read_log
from auscult.generation.training_saving import finish
from auscult.generation.training_step import learning_rate
from auscult.generation.validation import Levels, condition_gates

RATE = 16_000
SETTINGS = ("gates.conditions=false", "mixing.share=0.5", "logging.validate_every=3", "logging.checkpoint_every=2")
WORDS = ("low hum", "high whistle", "noise bursts", "rising sweep")
TINY = (
    "data.duration_s=1.28",
    "denoiser.channels=[8, 16]",
    "denoiser.heads=[1, 2]",
    "denoiser.attention=[false, true]",
    "optimizer.batch=4",
    "optimizer.warmup=2",
    "optimizer.ema=0.9",
    "logging.sheet_prompts=0",
    "logging.every=1",
    "gates.overfit=0",
    "gates.reconstruction=0.5",  # 8 components of a handful of synthetic clips
    "threads=1",
)


def _sound(kind: int, seed: int, seconds: float = 1.28) -> np.ndarray:
    rng = np.random.default_rng([kind, seed])
    time_s = np.arange(round(seconds * RATE)) / RATE
    pitch = rng.uniform(0.8, 1.25)
    sounds = (
        np.sin(2 * np.pi * 110 * pitch * time_s),
        np.sin(2 * np.pi * 3000 * pitch * time_s),
        rng.standard_normal(len(time_s)) * (np.sin(2 * np.pi * 4 * pitch * time_s) > 0),
        np.sin(2 * np.pi * (200 + 1500 * pitch * time_s) * time_s),
    )
    return (0.5 * sounds[kind] + 0.01 * rng.standard_normal(len(time_s))).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 12 clips of 4 kinds, each caption with the number of its take."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = ["clip_id,path,caption"]
    for kind, words in enumerate(WORDS):
        for take in range(3):
            sf.write(folder / f"{kind}-{take}.wav", _sound(kind, take), RATE)
            lines.append(f"{kind}-{take},{kind}-{take}.wav,{words} take {take}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder / "clips.csv"


def _config(corpus: Path, *settings: str, steps: int = 6) -> Any:
    given = (f"data.train={corpus}", f"optimizer.steps={steps}", *TINY, *settings)
    return load_train_config(preset="tiny-cpu", settings=given)


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("finished") / "run"
    return train(_config(corpus, *SETTINGS), out)


def test_what_a_run_leaves(finished: Any) -> None:
    out = finished.path
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    lines = read_log(out / LOG)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "training" in line] == [3, 6]
    card = json.loads((out / "card.json").read_text())
    assert card["kind"] == "training" and card["counts"]["trained_on"] == 11 and card["counts"]["held_out"] == 1
    assert (out / "training.png").stat().st_size > 5_000
    zero = finished.validation.losses["zero"]
    assert min(zero) > 0.3 and max(zero) < 3  # v of latents of unit variance: about 1, of one clip roughly
    # what has learned nothing is about as bad as a predictor of zero, at every level
    assert finished.training.mean("own") == pytest.approx(finished.training.mean("zero"), rel=0.35)


def test_the_saved_pipeline_makes_sounds(finished: Any) -> None:
    pipe = RetrievalAugmentedAudioPipeline.from_pretrained(finished.pipeline)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.retrieval == {"counts": []}  # trained without pairs
    audio = pipe(["low hum take 0"], num_inference_steps=2, seeds=[1]).audios
    assert audio.shape == (1, round(1.28 * RATE)) and np.isfinite(audio).all()


def test_a_finished_run_is_left_as_it_is(finished: Any, corpus: Path) -> None:
    card = (finished.path / "card.json").read_bytes()
    again = train(_config(corpus, *SETTINGS, "logging.every=7"), finished.path)
    assert (again.steps, again.gates, again.pipeline) == (finished.steps, finished.gates, finished.pipeline)
    assert again.validation.losses == finished.validation.losses and again.training.losses == finished.training.losses
    assert (finished.path / "card.json").read_bytes() == card
    with pytest.raises(OutputFolderError, match=r"other settings.*optimizer\.learning_rate: 0\.001 there, 0\.5 here"):
        train(_config(corpus, *SETTINGS, "optimizer.learning_rate=0.5"), finished.path)


def test_a_finished_run_goes_on_to_more_steps(finished: Any, corpus: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished.path, tmp_path / "run"))
    result = train(_config(corpus, *SETTINGS, steps=7), out)
    assert result.steps == 7 and result.card["steps"] == 7
    steps = [line["step"] for line in read_log(out / LOG) if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("a row more", r"\(clips: \[data\] gives other clips.*; captions: .*; held-out clips: other clips"),
        ("a caption", r"\(captions: [^:;]*\)"),
        ("a sound", r"\(clips: [^;]*other audio under their names; codec: [^;]*\)"),
        ("the codec", r"\(codec: another codec [^:;]*\)"),
    ],
)
def test_a_run_does_not_go_on_with_other_clips_or_models_than_it_was_begun_with(
    finished: Any, corpus: Path, tmp_path: Path, change: str, named: str
) -> None:
    """The configuration is the same, for it has only their names."""
    out = Path(shutil.copytree(finished.path, tmp_path / "run"))
    config = _config(corpus, *SETTINGS, steps=7)
    path = {"a sound": corpus.parent / "1-1.wav", "the codec": next((out / "cache").glob("codec-*/*.safetensors"))}.get(
        change, corpus
    )
    before, rows = path.read_bytes(), corpus.read_text()
    try:
        if change == "a row more":  # the split is drawn anew
            for n in range(4):
                sf.write(tmp_path / f"{n}.wav", _sound(n, 9), RATE)
            path.write_text(rows + "".join(f"new-{n},{tmp_path / f'{n}.wav'},a sound more {n}\n" for n in range(4)))
        elif change == "a caption":
            path.write_text(rows.replace("low hum take 1", "quiet hum take 1"))
        elif change == "a sound":  # one that is trained on: the codec was fitted, and is fitted, on it
            sf.write(path, _sound(1, 1) + 1e-4 * _sound(2, 7), RATE)
        else:  # the same components with the other sign: as good a codec, of latents that the denoiser has never seen
            save_file({name: -tensor if name == "basis" else tensor for name, tensor in load_file(path).items()}, path)
        with pytest.raises(
            OutputFolderError, match=rf"trained to step 6 with other parts than there are now .*{named}.*put back"
        ):
            train(config, out)
    finally:
        path.write_bytes(before)
    assert read_log(out / LOG) == read_log(finished.path / LOG) and checkpoint_steps(out / "checkpoints") == [4, 6]
    for name in ("card.json", "task.json"):  # a finished run that may not go on stays finished
        assert (out / name).read_bytes() == (finished.path / name).read_bytes()


def test_gates_of_a_run_without_a_checkpoint_are_checked_again(corpus: Path, tmp_path: Path) -> None:
    """It begins anew, with the clips that there are now."""
    rows, manifest = corpus.read_text(), tmp_path / "clips.csv"
    manifest.write_text(rows)
    config = _config(manifest, f"data.audio_root={corpus.parent}", "gates.conditions=false", steps=1)

    def stops(done: int, total: int | None, what: str) -> None:
        if what.startswith("training"):
            raise OSError("the machine is gone")

    messages = []
    for text in (rows, rows[: rows.rindex("3-2,")]):
        manifest.write_text(text)
        with pytest.raises(OSError, match="gone"):
            train(config, tmp_path / "run", progress=stops)
        gates = json.loads((tmp_path / "run" / "gates.json").read_text())
        messages.append(next(gate["message"] for gate in gates if gate["name"] == "data"))
    assert messages[0] != messages[1]


CALL = """
import sys
from auscult.generation.training import train
from auscult.generation.training_config import load_train_config
def progress(done, total, what):
    if what.startswith("training"):
        print(done, flush=True)
train(load_train_config(preset="tiny-cpu", settings=tuple(sys.argv[2:])), sys.argv[1], progress=progress)
"""


def test_a_killed_run_goes_on_to_the_same_weights(finished: Any, corpus: Path, tmp_path: Path) -> None:
    """kill -9 after step 3 of 6 (the checkpoint is of step 2); the second process ends with the same bits."""
    given = [f"data.train={corpus}", "optimizer.steps=6", *TINY, *SETTINGS]
    out = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", CALL, str(out), *given], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "3":
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not (out / "card.json").exists()
    result = train(load_train_config(preset="tiny-cpu", settings=tuple(given)), out)
    assert result.steps == 6
    one, other = _weights(finished.path), _weights(out)
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    # raw weights, moments of the optimizer and the log, too
    for name in ("model.safetensors", "optimizer.bin"):
        paths = [each / "checkpoints" / "step-000006" / name for each in (finished.path, out)]
        states = [_tensors(path) for path in paths]
        assert states[0] and all(a.equal(b) for a, b in zip(*states, strict=True))
    assert read_log(finished.path / LOG) == read_log(out / LOG)


class _PressedWhereItIsSwallowed:
    """Ctrl-C in a ``__del__``: an exception that is raised there is printed and forgotten."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize(
    ("stage", "at", "note"),
    [
        ("training", 3, "the checkpoint of step 3 of 6 is saved"),
        ("decoding", 2, "no step is saved yet; finished parts of what comes before the first are kept"),
    ],
)
def test_ctrl_c_stops_at_the_next_step_wherever_it_is_pressed(
    finished: Any, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: str, at: int, note: str
) -> None:
    """The run that goes on counts from where it goes on, says so, and ends with the bits of one that was never stopped."""
    out, seen = tmp_path / "run", []

    def progress(done: int, total: int | None, what: str) -> None:
        seen.append((what.partition(" | ")[0], done))
        if seen[-1] == (stage, at) and not out.with_name("pressed").exists():
            out.with_name("pressed").touch()
            _PressedWhereItIsSwallowed()

    with pytest.raises(KeyboardInterrupt) as stop:
        train(_config(corpus, *SETTINGS), out, progress=progress)
    assert stop.value.__notes__ == [f"{out}: {note}"] and seen[-1] == (stage, at)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    seen.clear()
    with caplog.at_level("INFO", "auscult.generation"):
        train(_config(corpus, *SETTINGS), out, progress=progress)
    told = [f"{out / 'checkpoints' / 'step-000003'}: going on from step 3 of 6"] if stage == "training" else []
    assert caplog.messages == told
    assert [done for what, done in seen if what == "training"] == list(range(3 if told else 0, 7))
    one, other = _weights(finished.path), _weights(out)
    assert all(one[name].equal(other[name]) for name in one)
    assert read_log(finished.path / LOG) == read_log(out / LOG)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_when_all_is_written_costs_nothing(
    finished: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*given: Any, **settings: Any) -> Any:
        made = finish(*given, **settings)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(training, "finish", pressed)
    out = Path(shutil.copytree(finished.path, tmp_path / "run"))
    result = train(_config(corpus, *SETTINGS, steps=7), out)
    assert result.steps == 7 and (out / "card.json").is_file()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow  # a process that imports torch
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_ctrl_c_ends_the_command_with_a_line_that_says_what_is_saved(corpus: Path, tmp_path: Path) -> None:
    settings = [*TINY, *SETTINGS, f"data.train={corpus}", "optimizer.steps=100000", "logging.checkpoint_every=5"]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "auscult", "train", "--preset", "tiny-cpu", "-o", str(tmp_path / "run"), *options]

    def heed_ctrl_c() -> None:  # a shell's background job inherits that it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c) as process:
        try:
            until = time.monotonic() + 120
            while not list((tmp_path / "run").glob("checkpoints/step-000005")) and time.monotonic() < until:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    last = max((tmp_path / "run" / "checkpoints").iterdir()).name
    assert process.returncode == 130, errors
    assert f"the checkpoint of step {int(last[5:])} of 100,000 is saved" in errors and "Traceback" not in errors
    assert "same command again" in errors


def test_the_command_says_what_it_goes_on_from(finished: Any, tmp_path: Path, corpus: Path) -> None:
    """The last checkpoint of two is cut short; one that is whole is before it."""
    from typer.testing import CliRunner

    from auscult.cli import app

    out = Path(shutil.copytree(finished.path, tmp_path / "run"))
    (out / "checkpoints" / "step-000006" / "model.safetensors").write_bytes(b"cut short")
    settings = [*TINY, *SETTINGS, f"data.train={corpus}", "optimizer.steps=7"]
    options = [part for setting in settings for part in ("--set", setting)]
    done = CliRunner().invoke(app, ["train", "--preset", "tiny-cpu", "-o", str(out), *options])
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    damaged = next(number for number, line in enumerate(lines) if f"{out / 'checkpoints' / 'step-000006'}: damaged: " in line)
    assert lines[damaged].endswith("; skipped for the one before it")
    assert lines[damaged + 1] == f"{out / 'checkpoints' / 'step-000004'}: going on from step 4 of 7"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_gate_that_fails_at_the_end_costs_nothing_that_was_written(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    """Planted: losses with a clip's own conditions that are worse than with any other."""
    from typer.testing import CliRunner

    from auscult.cli import app
    from auscult.generation import training_saving

    def worse(levels: Levels, where: str) -> Any:
        losses = {**levels.losses, "own": tuple(2 + loss for loss in levels.losses["null"])}
        by_clip = {**levels.by_clip, "own": tuple(2 + loss for loss in levels.by_clip["null"])}
        return condition_gates(replace(levels, losses=losses, by_clip=by_clip), where)

    monkeypatch.setattr(training_saving, "condition_gates", worse)
    settings = [*TINY, f"data.train={corpus}", "optimizer.steps=1"]
    options = [part for setting in settings for part in ("--set", setting)] + ["--json"] * as_json
    done = CliRunner().invoke(app, ["train", "--preset", "tiny-cpu", "-o", str(tmp_path / "run"), *options])
    names = ["conditions against those of another clip", "conditions against none"]
    assert done.exit_code == 1, done.output
    again = CliRunner().invoke(app, ["train", "--preset", "tiny-cpu", "-o", str(tmp_path / "run"), *options])
    assert again.exit_code == 1
    if as_json:
        assert json.loads(again.stdout)["failed"] == names
    else:
        assert again.stdout == done.stdout
    assert again.stderr.startswith(f"{tmp_path / 'run'}: finished, left as it is")
    assert f"gates failed: {', '.join(names)}" in done.stderr
    if as_json:
        told = json.loads(done.stdout)
        assert told["failed"] == names and Path(told["pipeline"]).is_dir()
        return
    assert "noise level" in done.stdout and "gate conditions against none FAILED: error" in done.stdout
    assert "does not heed its captions: train longer" in done.stdout
    paths = done.stdout.splitlines()[-2:]
    assert paths == [str(tmp_path / "run" / name) for name in ("training.png", "pipeline")]
    assert all(Path(path).exists() for path in paths)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_a_gpu_goes_on_there(corpus: Path, tmp_path: Path) -> None:
    """Averaged weights come back to the device that they are averaged on."""
    for steps in (2, 3):
        result = train(_config(corpus, "gates.conditions=false", "device=cuda", steps=steps), tmp_path / "run")
        assert result.steps == steps


@pytest.mark.slow  # two processes that import torch
def test_two_processes_train_as_one(corpus: Path, tmp_path: Path) -> None:
    """Five samples to a step, so that one process has two and the other three."""
    settings = ("gates.conditions=false", "mixing.share=0.25", "logging.validate_every=3", "logging.checkpoint_every=2")
    alone = train(_config(corpus, *settings), tmp_path / "alone")
    given = [f"data.train={corpus}", "optimizer.steps=6", *TINY, *settings]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "auscult", "train"]
    options = [part for setting in given for part in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [*command, "--preset", "tiny-cpu", "-o", str(tmp_path / "run"), *options]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("gate data") == 1  # one of the two speaks
    for ours, theirs in zip(read_log(alone.path / LOG), read_log(tmp_path / "run" / LOG), strict=True):
        if "loss" in ours:  # every sample of both counts, once
            assert [theirs[name] for name in ("step", "loss", "error")] == pytest.approx(
                [ours[name] for name in ("step", "loss", "error")], rel=1e-3
            )
            assert [level is None for level in ours["levels"]] == [level is None for level in theirs["levels"]]
    one, other = _weights(alone.path), _weights(tmp_path / "run")
    # the same batches, noise and mean gradients; sums in another order, which Adam makes a step of where a gradient is 0
    distance = max(float((one[name] - other[name]).abs().max()) for name in one)
    moved = float(torch.cat([tensor.flatten() for tensor in one.values()]).abs().max())
    assert 0 < distance < 6e-3 < moved
    similar = torch.cat([(one[name] - other[name]).abs().lt(1e-5).flatten() for name in one])
    assert float(similar.float().mean()) > 0.99


@pytest.mark.parametrize("older", [True, False], ids=["an older model there", "no model there"])
def test_a_run_killed_behind_its_last_checkpoint_still_gives_that_model(
    finished: Any, corpus: Path, tmp_path: Path, older: bool
) -> None:
    """What a kill between the checkpoint of the last step and the model leaves: no card, and the model of before or none."""
    out = Path(shutil.copytree(finished.path, tmp_path / "run"))
    (out / "card.json").unlink()
    if older:
        weights = {name: torch.zeros_like(tensor) for name, tensor in _weights(out).items()}
        save_file(weights, out / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    else:
        shutil.rmtree(out / "pipeline")
    result = train(_config(corpus, *SETTINGS), out)
    assert result.steps == 6 and (out / "card.json").is_file()
    one, other = _weights(finished.path), _weights(out)
    assert all(one[name].equal(other[name]) for name in one)


def _tensors(path: Path) -> list[torch.Tensor]:
    if path.suffix == ".safetensors":
        return list(load_file(path).values())
    state = torch.load(path, weights_only=True)["state"]
    return [value for entry in state.values() for value in entry.values()]


def test_no_room_for_a_checkpoint_leaves_the_previous_one(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system refuses to write the second checkpoint as a full disk would; afterwards the same command goes on."""
    import errno

    from auscult.errors import StorageError
    from auscult.generation import checkpoints

    config, out = _config(corpus, "gates.conditions=false", "logging.checkpoint_every=2", steps=4), tmp_path / "run"
    flush = checkpoints._flush

    def full(path: Path) -> None:
        if "step-000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_flush", full)
        with pytest.raises(StorageError, match=r"step 4 could not be written \(No space left.*step 2 is as it was"):
            train(config, out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002"]
    assert train(config, out).steps == 4


def test_an_unreadable_clip_is_named_counted_and_never_replaced(corpus: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF....WAVEfmt nonsense")
    rows = corpus.read_text().replace(",", f",{corpus.parent}/", 0).splitlines()
    fixed = [rows[0]] + [",".join([r.split(",")[0], f"{corpus.parent}/{r.split(',')[1]}", r.split(",")[2]]) for r in rows[1:]]
    manifest = tmp_path / "clips.csv"
    manifest.write_text("\n".join([*fixed, f"bad,{broken},a broken sound"]) + "\n")
    with pytest.raises(CorpusError, match=r"1 of 13 clips cannot be read \(.*broken\.wav.*max_unreadable = 1"):
        train(_config(manifest), tmp_path / "refused")
    config = _config(manifest, "data.max_unreadable=1", "gates.conditions=false", steps=1)
    result = train(config, tmp_path / "allowed")
    assert result.card["counts"]["skipped"] == 1 and "broken.wav" in result.card["skipped"][0][0]
    assert result.card["counts"]["trained_on"] + result.card["counts"]["held_out"] == 12


def test_a_read_that_failed_once_is_tried_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a disk that was away: the file is the same. What could be read is not decoded again while it still fails."""
    data, calls = _config(corpus).data, []

    def read(gone: str) -> int:
        def reading(path: str, **settings: Any) -> Any:
            calls.append(Path(path).name)
            if Path(path).name == gone:
                raise AudioDecodeError("Input/output error")
            return real(path, **settings)

        calls.clear()
        monkeypatch.setattr(examples, "read_audio", reading)
        return len(examples.read_clips(examples.list_clips(data), data, MelSpec(), 1600, tmp_path))

    real = examples.read_audio
    for tried in (12, 1):
        with pytest.raises(CorpusError, match=r"1 of 12 clips cannot be read \(.*0-1\.wav: Input/output error"):
            read("0-1.wav")
        assert len(calls) == tried
    assert read("none") == 12
    assert read("none") == 12 and not calls


def test_clips_without_captions_are_refused(tmp_path: Path) -> None:
    for take in range(2):
        sf.write(tmp_path / f"{take}.wav", _sound(0, take), RATE)
    out = tmp_path / "out"
    with pytest.raises(CorpusError, match=r"2 of 2 clips have no caption \(0\.wav, 1\.wav\).*column 'caption'"):
        train(_config(tmp_path), out)
    with pytest.raises(CorpusError, match=r"nope\.csv"):
        train(_config(tmp_path / "nope.csv"), out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no clip to train on"):
        train(_config(tmp_path / "empty"), out)
    assert not out.exists()  # refused before a folder was made, which would refuse another configuration


def test_a_gate_that_fails_stops_with_its_reason(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"first loss .*: the error before the first step is"):
        train(_config(corpus, "gates.first_loss=0.0001"), tmp_path / "run")
    with pytest.raises(GateError, match=r"one batch by heart .* in 2 steps; .*gates\.overfit_steps = 6;"):
        train(_config(corpus, "gates.overfit=0.05", "gates.overfit_steps=2"), tmp_path / "other")


@pytest.fixture(scope="module")
def codec(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What was prepared with the codec of the clips."""
    return prepare(_config(corpus), tmp_path_factory.mktemp("codec"))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("scale", "passes"), [(8.0, False), (1.6, True), (0.125, False)])
def test_a_codec_of_others_may_not_be_far_from_the_scale_of_noise(
    codec: Any, corpus: Path, tmp_path: Path, prediction: str, scale: float, passes: bool
) -> None:
    theirs = copy.deepcopy(codec.feed.codec)
    theirs.register_to_config(scaling_factor=float(theirs.config.scaling_factor) * scale)
    theirs.save_pretrained(tmp_path / "vae")
    of_theirs = (f"codec.source={tmp_path / 'vae'}", "codec.kind=pretrained", f"objective.prediction={prediction}")
    config = _config(corpus, *of_theirs)
    if passes:
        gates = {gate.name: gate for gate in prepare(config, tmp_path / "out").gates}
        assert gates["latents"].value == pytest.approx(scale, rel=0.05) and "divergence" not in gates
        return
    with pytest.raises(GateError, match=rf"latents .*multiply the codec's scaling_factor .* by {1 / scale:g} in its config"):
        prepare(config, tmp_path / "out")


def test_latents_are_judged_on_the_clips_that_are_trained_on(codec: Any, corpus: Path) -> None:
    feed = codec.feed
    spread = [float(feed.latents[row].std()) for row in range(len(feed.clips))]
    one = np.array([int(np.argmin(spread))])  # as for a codec that was made of many clips and is judged on this alone
    made = _codec_gates(_config(corpus), feed.codec, feed.clips, feed.spec, feed.rows, made_here=True)
    assert [gate.name for gate in made] == ["reconstruction", "latents", "divergence"]
    assert made[1].value == pytest.approx(float(feed.latents[feed.rows].std(correction=0)), rel=1e-4)
    with pytest.raises(GateError, match="latents"):
        _codec_gates(_config(corpus), feed.codec, feed.clips, feed.spec, one, made_here=True)


def test_what_was_refused_before_its_first_step_may_be_another_run(corpus: Path, tmp_path: Path) -> None:
    """Of a run that has begun, the folder is its own, though no checkpoint is there yet."""
    out = tmp_path / "run"
    with pytest.raises(GateError, match="first loss"):
        train(_config(corpus, "gates.first_loss=0.0001"), out)
    found = {gate["name"]: gate["passed"] for gate in json.loads((out / "gates.json").read_text())}
    assert not found["first loss"] and found["data"] and found["reconstruction"]
    other = ("optimizer.learning_rate=0.002", "gates.conditions=false")

    def fails(done: int, total: int | None, what: str) -> None:
        if (what.partition(" | ")[0], done) == ("training", 1):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        train(_config(corpus, *other, steps=2), out, progress=fails)
    with pytest.raises(OutputFolderError, match=r"other settings.*0\.002 there, 0\.001 here"):
        train(_config(corpus, "gates.conditions=false", steps=2), out)
    assert train(_config(corpus, *other, steps=2), out).steps == 2


def test_learning_rates_of_all_decays_end_at_their_ends() -> None:
    for decay, middle, end in (("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)):
        config = OptimizerConfig(steps=1010, warmup=10, learning_rate=1.0, decay=decay)  # type: ignore[arg-type]
        assert learning_rate(0, config) == pytest.approx(0.1)
        assert learning_rate(10, config) == 1.0
        assert learning_rate(510, config) == pytest.approx(middle, abs=1e-9)
        assert learning_rate(1010, config) == pytest.approx(end, abs=1e-9)


def test_the_command_names_a_misspelt_key_and_what_it_wrote(corpus: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from auscult.cli import app

    path = tmp_path / "run.toml"
    path.write_text(f"preset = 'tiny-cpu'\n[data]\ntrain = '{corpus}'\n[optimizer]\nsteps = 1\nlearning_rat = 1\n")
    refused = CliRunner().invoke(app, ["train", str(path), "-o", str(tmp_path / "run")])
    assert "unknown key 'learning_rat'; did you mean learning_rate?" in str(refused.exception)
    path.write_text(path.read_text().replace("learning_rat = 1\n", ""))
    settings = [part for setting in (*TINY, "gates.conditions=false") for part in ("--set", setting)]
    done = CliRunner().invoke(app, ["train", str(path), "-o", str(tmp_path / "run"), *settings])
    assert done.exit_code == 0, done.output
    assert "preview quality" in done.stdout and done.stdout.strip().endswith(str(tmp_path / "run" / "pipeline"))
    assert "gate reconstruction" in done.stdout


def test_a_foreign_folder_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputFolderError, match="not a training"):
        train(_config(corpus), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    for text in ('{"model": {}, "steps": 200}', "[]", '{"optimizer": 1}'):  # of another command, which was stopped
        (tmp_path / "task.json").write_text(text)
        with pytest.raises(OutputFolderError, match=r"task\.json is that of something else than a training"):
            train(_config(corpus), tmp_path)
        assert (tmp_path / "task.json").read_text() == text
