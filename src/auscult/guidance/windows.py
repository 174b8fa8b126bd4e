"""Which stretch of a sound is described: of references all windows, overlapping by half; while sampling one a step, in turn.

Windows are counted in units: samples of a sound, frames of a log-mel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr
import torch
import torch.nn.functional as F  # noqa: N812

from ..audio import SILENT_PEAK, TAIL_SHARE

FloatArray = npt.NDArray[np.float32]
BATCH = 8  # windows described at once


@dataclass(frozen=True)
class DescribedAudio:
    """Vectors of reference sounds.

    Attributes
    ----------
    vectors
        For each sound (n, D) float32, a row for each window with sound in it; (0, 0) where there is none.
    starts_s
        For each sound (n,), where its windows start, in seconds.
    """

    vectors: list[FloatArray]
    starts_s: list[list[float]]


@dataclass(frozen=True)
class Crop:
    """Latent frames ``first`` to ``last`` (excluded) to decode for a window, which starts ``offset`` units into the result."""

    first: int
    last: int
    offset: int


def window_starts(total: int, window: int, hop: int) -> list[int]:
    """Where windows of a sound start: every ``hop``, and a last one that ends where the sound ends.

    A remainder below 5 % of a window is left out, as audits do; a sound shorter than a window has one.

    Examples
    --------
    >>> window_starts(10, 4, 4), window_starts(10, 4, 2), window_starts(3, 4, 2)
    ([0, 4, 6], [0, 2, 4, 6], [0])
    """
    if total <= window:
        return [0]
    starts = list(range(0, total - window + 1, hop))
    if total - window - starts[-1] >= TAIL_SHARE * window:
        starts.append(total - window)
    return starts


def start_of_step(total: int, window: int, step: int) -> int:
    """Where the window of a step starts: windows follow each other without overlap, over and over.

    >>> [start_of_step(10, 4, step) for step in range(5)]
    [0, 4, 6, 0, 4]
    """
    starts = window_starts(total, window, window)
    return starts[step % len(starts)]


def crop(start: int, length: int, *, per_frame: int, frames: int, halo: int) -> Crop:
    """The latent frames that a window needs, with ``halo`` more on each side as far as there are.

    Parameters
    ----------
    start, length
        Of the window, in units.
    per_frame
        Units that a latent frame stands for.
    frames
        Latent frames that there are.
    halo
        Latent frames beyond the window that its decoding depends on.

    Examples
    --------
    >>> crop(100, 50, per_frame=8, frames=64, halo=3)
    Crop(first=9, last=22, offset=28)
    """
    first = max(0, start // per_frame - halo)
    last = min(frames, -(-(start + length) // per_frame) + halo)
    return Crop(first, last, start - first * per_frame)


def fitted(values: torch.Tensor, length: int, dim: int, fill: float = 0.0) -> torch.Tensor:
    """``values`` cut or filled up at the end to ``length`` along an axis.

    >>> fitted(torch.ones(1, 3), 5, 1), fitted(torch.ones(1, 3), 2, 1)
    (tensor([[1., 1., 1., 0., 0.]]), tensor([[1., 1.]]))
    """
    there = values.shape[dim]
    if there >= length:
        return values.narrow(dim, 0, length)
    behind = [0, 0] * (values.ndim - 1 - dim % values.ndim)
    return F.pad(values, (*behind, 0, length - there), value=fill)


def describe_waves(
    waves: Sequence[FloatArray], given_hz: int, wanted_hz: int, window: int, describe: Callable[[FloatArray], FloatArray]
) -> DescribedAudio:
    """Describe all windows of sounds.

    Parameters
    ----------
    waves
        Sounds (time,), mono.
    given_hz, wanted_hz
        Their rate, and the one at which they are described.
    window
        Samples of a window at ``wanted_hz``; a shorter sound is filled up with zeros.
    describe
        Makes vectors (n, D) of windows (n, window), none of them silent.

    Raises
    ------
    ValueError
        A sound is of another shape, or empty, or not finite.
    """
    vectors, starts_s = [], []
    for number, wave in enumerate(waves):
        if wave.ndim != 1 or not len(wave) or not np.isfinite(wave).all():
            raise ValueError(f"sound {number}: expected finite samples of shape (time,), got shape {wave.shape}")
        sound = wave if given_hz == wanted_hz else soxr.resample(wave, given_hz, wanted_hz, "HQ")
        starts = window_starts(len(sound), window, max(1, window // 2))
        pieces = [(start, sound[start : start + window]) for start in starts]
        heard = [(start, piece) for start, piece in pieces if np.abs(piece).max() >= SILENT_PEAK]
        padded = np.zeros((len(heard), window), np.float32)
        for row, (_, piece) in zip(padded, heard, strict=True):
            row[: len(piece)] = piece
        parts = [describe(padded[first : first + BATCH]) for first in range(0, len(heard), BATCH)]
        vectors.append(np.concatenate(parts) if parts else np.zeros((0, 0), np.float32))
        starts_s.append([start / wanted_hz for start, _ in heard])
    return DescribedAudio(vectors, starts_s)
