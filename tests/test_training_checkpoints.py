"""Checkpoints: whole or not there, damage is found, a full disk leaves the previous one as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from auscult.errors import ModelError, StorageError
from auscult.generation.checkpoints import checkpoint_steps, latest_checkpoint, partial_path, read_checkpoint, save_checkpoint


def _write(text: str):  # type: ignore[no-untyped-def]
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "weights.bin").write_bytes(text.encode() * 100)
        (folder / "optimizer.bin").write_bytes(text.encode())

    return write


def test_the_last_two_are_kept_and_facts_come_back(tmp_path: Path) -> None:
    for step in (5, 10, 1_000_000):
        save_checkpoint(tmp_path, step, _write(str(step)), facts={"loss": step / 2})
    assert checkpoint_steps(tmp_path) == [10, 1_000_000]
    last = latest_checkpoint(tmp_path)
    assert last is not None and last.step == 1_000_000 and last.facts == {"loss": 500_000.0}
    assert (last.path / "model" / "weights.bin").read_bytes() == b"1000000" * 100


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no facts"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, 1, _write("a"))
    newest = save_checkpoint(tmp_path, 2, _write("b"))
    weights = newest / "model" / "weights.bin"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "changed":
        weights.write_bytes(b"c" + weights.read_bytes()[1:])
    elif damage == "missing":
        weights.unlink()
    else:
        (newest / "checkpoint.json").write_text("{")
    with pytest.raises(ModelError, match="step-000002"):
        read_checkpoint(newest)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save_checkpoint(tmp_path, 3, _write("a"))
    (path / "optimizer.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no whole checkpoint is left.*optimizer\.bin.*delete"):
        latest_checkpoint(tmp_path)
    assert not caplog.messages  # the error has the reasons


def test_a_failure_while_writing_leaves_the_previous_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, _write("a"), keep=1)

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"0" * 1000)
        raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0\nframe #0: ...")

    with pytest.raises(
        StorageError, match=r"step 2 could not be written .*unexpected pos.*step 1 is as it was.*Make room"
    ) as failed:
        save_checkpoint(tmp_path, 2, fail, keep=1)
    assert "frame" not in str(failed.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert latest_checkpoint(tmp_path).step == 1  # type: ignore[union-attr]


def test_what_a_kill_left_is_no_checkpoint_and_goes_with_the_next(tmp_path: Path) -> None:
    partial = partial_path(tmp_path, 7)
    partial.mkdir(parents=True)
    (partial / "weights").write_bytes(b"0")
    assert latest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 8, _write("a"))
    assert not partial.exists() and latest_checkpoint(tmp_path).step == 8  # type: ignore[union-attr]


@contextmanager
def _no_file_beyond(size: int) -> Iterator[None]:
    """A write beyond the limit fails as on a full disk: Python ignores the signal."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX's")
@pytest.mark.parametrize("what", ["model", "codec"])
def test_no_room_for_a_model_is_told_in_words(tmp_path: Path, what: str) -> None:
    """safetensors' own error is no OSError; the model that was there stays, and a codec that is half there is made again."""
    pytest.importorskip("diffusers")
    import torch

    from auscult.generation.autoencoder import PatchPCACodec
    from auscult.generation.examples import Clips
    from auscult.generation.mel import MelSpec
    from auscult.generation.preparing import _make_codec
    from auscult.generation.training_config import load_train_config
    from auscult.generation.training_saving import save_pipeline

    waves = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 5120)).astype(np.float32)
    names = tuple("abcd")
    clips = Clips(names, names, names, waves, names, (), 0, 0, (), (0,) * 4)
    config = load_train_config(preset="tiny-cpu", settings=("data.train=x",))
    small = PatchPCACodec.fit(torch.randn(8, 1, 16, 64, generator=torch.Generator().manual_seed(0)))
    small.save_pretrained(tmp_path / "pipeline" / "unet")
    files = {path: path.read_bytes() for path in (tmp_path / "pipeline").rglob("*") if path.is_file()}

    def write() -> None:
        if what == "model":
            save_pipeline(SimpleNamespace(is_main_process=True), tmp_path, small, None, config)  # type: ignore[arg-type]
        else:
            cache = tmp_path / "cache"
            _make_codec(config, clips, np.arange(4), MelSpec(), cache, "cpu", lambda done, total, text: None)

    with _no_file_beyond(1000), pytest.raises(StorageError, match=rf"the {what} could not be written .*Make room and give"):
        write()
    assert {path: path.read_bytes() for path in files} == files and not list(tmp_path.glob(".*"))
    write()


LIMITED = """
import json, resource, signal, sys
from pathlib import Path
from auscult.errors import StorageError
from auscult.generation.checkpoints import latest_checkpoint, save_checkpoint
folder = Path(sys.argv[1])
save_checkpoint(folder, 1, lambda new: (new / "state").write_bytes(b"1" * 50_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit fails, as on a full disk, and does not kill
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(folder, 2, lambda new: (new / "state").write_bytes(b"2" * 200_000))
except StorageError as error:
    left = sorted(path.name for path in folder.iterdir())
    print(json.dumps({"error": str(error), "step": latest_checkpoint(folder).step, "left": left}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX's")
def test_the_system_refusing_to_write_more(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    told = json.loads(result.stdout)
    assert told["step"] == 1 and told["left"] == ["step-000001"]
    assert "too large" in told["error"] and "step 1 is as it was" in told["error"]
