"""Cross-correlate fingerprints over all lags, many references and hypotheses at once.

For unit rows ``q_t`` and ``r_t`` the statistic of a lag is

    z(lag) = sqrt(BANDS) sum_t <q_t, r_(t + lag)> / sqrt(max(n(lag), SHORTEST))

with ``n`` the number of frames where both sounds are active. Two unrelated sounds give
nearly independent products of variance ``1 / BANDS``, so `z` is nominally standard normal
whatever the overlap: short and long overlaps compete fairly. Sums over lags are products
in the frequency domain, and for each frequency the products of all hypotheses with all
references are one matrix product: that is what makes an exhaustive search affordable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, rfft

from ..descriptors.contrast import BANDS, Frames

CHUNK = 324  # frames, 10.4 s: longer clips are cut into chunks that overlap by half
SHORTEST = 16  # frames, 0.5 s: shorter overlaps are counted as this long. Two onsets alone agree by
# chance over a few frames; at 8, noise cut off sharply reached scores of copies


@dataclass(frozen=True)
class Bank:
    """Spectra of reference chunks, ready to be correlated with.

    Attributes
    ----------
    spectra
        Conjugate spectra along time, ``(frequencies, BANDS, chunks)`` complex64.
    masks
        The same of the activity masks, ``(frequencies, chunks)``.
    owner, start
        Index of each chunk's clip and its first frame in it, ``(chunks,)``.
    size
        Transform length: lags ``-size / 2 .. size / 2`` do not wrap.
    """

    spectra: NDArray[np.complex64]
    masks: NDArray[np.complex64]
    owner: NDArray[np.intp]
    start: NDArray[np.intp]
    size: int


def unit_rows(frames: Frames) -> Frames:
    """Rows scaled to norm 1; zero rows stay zero."""
    norm = np.linalg.norm(frames, axis=1, keepdims=True)
    return (frames / np.maximum(norm, 1e-6) * (norm > 1e-6)).astype(np.float32)


def decimate(frames: Frames, step: int) -> Frames:
    """Mean of every `step` rows, made unit again: a coarser clock for the first stage."""
    if step == 1:
        return unit_rows(frames)
    padded = np.pad(frames, ((0, -len(frames) % step), (0, 0)))
    return unit_rows(padded.reshape(-1, step, frames.shape[1]).mean(axis=1))


def chunk_starts(n: int, chunk: int = CHUNK) -> list[int]:
    """First frames of the chunks that cover `n` frames, the last one flush with the end."""
    if n <= chunk:
        return [0]
    return sorted({*range(0, n - chunk, chunk // 2), n - chunk})


def build_bank(prints: Sequence[Frames], *, step: int = 1) -> Bank:
    """Transform the fingerprints of clips of any length, at a clock of `step` frames."""
    size = 2 * CHUNK // step
    pieces, owner, start = [], [], []
    for i, frames in enumerate(prints):
        for at in chunk_starts(len(frames)):
            pieces.append(decimate(frames[at : at + CHUNK], step))
            owner.append(i)
            start.append(at)
    spectra, masks = _transform(pieces, size)
    return Bank(
        np.ascontiguousarray(spectra.transpose(1, 2, 0).conj()),
        np.ascontiguousarray(masks.T.conj()),
        np.array(owner, np.intp),
        np.array(start, np.intp),
        size,
    )


def join(first: Bank, second: Bank) -> Bank:
    """Both banks side by side; owners of the second follow those of the first."""
    shift = 1 + int(first.owner.max(initial=-1))
    return Bank(
        np.concatenate([first.spectra, second.spectra], axis=2),
        np.concatenate([first.masks, second.masks], axis=1),
        np.concatenate([first.owner, second.owner + shift]),
        np.concatenate([first.start, second.start]),
        first.size,
    )


def _transform(pieces: Sequence[Frames], size: int) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    stacked = np.zeros((len(pieces), size, BANDS), np.float32)
    mask = np.zeros((len(pieces), size), np.float32)
    for i, piece in enumerate(pieces):
        stacked[i, : len(piece)] = piece
        mask[i, : len(piece)] = np.abs(piece).sum(axis=1) > 0
    return rfft(stacked, axis=1), rfft(mask, axis=1)


def correlate(variants: Sequence[Frames], bank: Bank, *, overlaps: Sequence[int]) -> NDArray[np.float32]:
    """`z` of every lag, variant and chunk.

    Parameters
    ----------
    variants
        Unit-row fingerprints of query hypotheses, each at most ``bank.size / 2`` frames.
    overlaps
        One number a variant; those with the same number take their overlaps ``n`` from the first of them. Tempo changes
        them by a few percent, and computing them costs half as much as the correlation itself.

    Returns
    -------
    ndarray
        ``(bank.size, variants, chunks)``; row ``l`` is lag ``l`` for ``l < size / 2`` and
        ``l - size`` above, where query frame ``t + lag`` meets reference frame ``t``.
    """
    spectra, masks = _transform(variants, bank.size)
    products = np.matmul(spectra.transpose(1, 0, 2), bank.spectra)
    shortest = SHORTEST * bank.size // (2 * CHUNK)  # in ticks of the bank's clock
    z = irfft(products, bank.size, axis=0, overwrite_x=True)
    for k in np.unique(overlaps):
        rows = np.flatnonzero(np.asarray(overlaps) == k)
        common = irfft(masks[rows[0]][:, None] * bank.masks, bank.size, axis=0)
        scale = np.float32(np.sqrt(BANDS)) / np.sqrt(np.maximum(common, shortest))
        z[:, rows] *= scale[:, None]
    return z
