"""What several tests share: small sets of sounds on disk, and the real recordings where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from auscult.sounds import synthesise

LIVELY = ("birds", "speech", "glass", "melody", "dog", "footsteps")  # steady sound is no replica, by definition
ESC10 = Path(__file__).parents[2] / "shared" / "data" / "esc10"
AUDIOCAPS = ESC10.parent / "audiocaps"


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Features that tests compute, those in other processes among them, do not go into the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def esc10() -> Path:
    """Folder of the real recordings of ESC-10."""
    if not ESC10.is_dir():
        pytest.skip("the ESC-10 recordings are not beside the project (../shared/data/esc10)")
    return ESC10


@pytest.fixture
def audiocaps() -> Path:
    """Folder of AudioCaps's captions."""
    if not AUDIOCAPS.is_dir():
        pytest.skip("the AudioCaps captions are not beside the project (../shared/data/audiocaps)")
    return AUDIOCAPS


def sound(number: int, duration_s: float = 1.0, rate_hz: int = 16_000) -> np.ndarray:
    """A synthesised sound that depends on ``number`` alone, of a family with a lively pattern."""
    rng = np.random.default_rng(number)
    return synthesise(LIVELY[number % len(LIVELY)], rng, duration_s=duration_s, rate_hz=rate_hz).samples


@pytest.fixture
def write_sounds(tmp_path: Path) -> Callable[..., Path]:
    """Write ``count`` sounds as WAV into a folder below ``tmp_path``; returns the folder."""

    def write(name: str, count: int, *, first: int = 0, duration_s: float = 1.0) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            sf.write(folder / f"{number:04d}.wav", sound(number, duration_s), 16_000)
        return folder

    return write


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small lose more by waiting for a second thread than it does, most of all where tests run side by side."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
