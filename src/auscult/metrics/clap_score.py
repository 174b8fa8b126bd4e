"""CLAP score: how well each clip matches its caption, by a model that embeds both.

Cosines of different checkpoints do not compare, and neither do those of crops drawn at random with those of fixed windows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .frames import FloatArray, checked_features
from .intervals import RESAMPLES, Interval, mean_interval

__all__ = ["evaluate", "scores", "validate"]

TEXT, AUDIO = "text", "audio"


def validate(text: npt.ArrayLike, audio: npt.ArrayLike, clips: npt.ArrayLike | None = None) -> None:
    """Refuse captions and windows that do not belong together.

    Raises
    ------
    ValueError
        Values that are not finite, vectors without a direction (all zeros), different dimensions; a clip without windows or
        windows without a caption.

    Examples
    --------
    >>> validate(np.ones((3, 8)), np.ones((2, 8)))
    Traceback (most recent call last):
    ValueError: expected one caption per clip, got 3 captions and 2 clips: pair them by a manifest, or say in clips which
    caption each window belongs to
    """
    captions, windows = checked_features(text, TEXT), checked_features(audio, AUDIO)
    if captions.shape[1] != windows.shape[1]:
        raise ValueError(
            f"text embeddings have {captions.shape[1]} dimensions, audio embeddings {windows.shape[1]}: "
            "take both from the projections of the same model"
        )
    for rows, name in ((captions, TEXT), (windows, AUDIO)):
        zeros = np.flatnonzero(~rows.any(axis=1))
        if len(zeros):
            raise ValueError(
                f"row {zeros[0]} of the {name} embeddings is all zeros ({len(zeros)} of {len(rows)} are) and has no direction: "
                "a model gives no such vector, so look for an empty file or a failed call"
            )
    if clips is None:
        if len(captions) != len(windows):
            raise ValueError(
                f"expected one caption per clip, got {len(captions)} captions and {len(windows)} clips: "
                "pair them by a manifest, or say in clips which caption each window belongs to"
            )
        return
    _check_paired(np.asarray(clips), len(captions), len(windows))


def _check_paired(clip: npt.NDArray[np.int64], n_captions: int, n_windows: int) -> None:
    if clip.shape != (n_windows,) or not np.issubdtype(clip.dtype, np.integer):
        raise ValueError(
            f"expected the caption's row for each of {n_windows} windows, got {clip.dtype} numbers of shape {clip.shape}"
        )
    if len(clip) and (clip.min() < 0 or clip.max() >= n_captions):
        raise ValueError(
            f"clips should name rows of the {n_captions} captions, 0 to {n_captions - 1}, got {clip.min()} to {clip.max()}"
        )
    without = np.flatnonzero(np.bincount(clip, minlength=n_captions) == 0)
    if len(without):
        raise ValueError(
            f"{len(without)} of {n_captions} captions have no audio, the first of them row {without[0]}: "
            "generate the missing clips, or leave their prompts out for all systems"
        )


def scores(text: npt.ArrayLike, audio: npt.ArrayLike, *, clips: npt.ArrayLike | None = None) -> FloatArray:
    """Cosine between each caption and its clip, the mean over the clip's windows.

    ``s_i = mean_w <t_i, a_iw> / (|t_i| |a_iw|)``

    Parameters
    ----------
    text
        (n, d) one embedding per caption, of any length.
    audio
        (windows, d) embeddings of the clips' windows: fixed ones that cover the clip, so that a file has one score.
    clips
        (windows,) the row of ``text`` that each window belongs to; None: one window per clip, in the order of the captions.

    Returns
    -------
    array
        (n,) in [-1, 1]; some papers print it times 100.

    Raises
    ------
    ValueError
        See :func:`validate`.

    Examples
    --------
    >>> scores([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, -1.0], [0.0, 1.0]], clips=[0, 1, 1]).tolist()
    [1.0, 0.0]
    """
    validate(text, audio, clips)
    captions, windows = _unit(text), _unit(audio)
    clip = np.arange(len(captions)) if clips is None else np.asarray(clips)
    cosines = np.clip(np.einsum("ij,ij->i", captions[clip], windows), -1, 1)  # rounding may leave 1 + 1e-16
    return np.bincount(clip, weights=cosines) / np.bincount(clip)


def _unit(vectors: npt.ArrayLike) -> FloatArray:
    rows = np.asarray(vectors, np.float64)
    rows = rows / np.abs(rows).max(axis=1, keepdims=True)  # or tiny vectors would square to 0
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def evaluate(
    text: npt.ArrayLike,
    audio: npt.ArrayLike,
    *,
    clips: npt.ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of :func:`scores`, with a bootstrap interval over the clips, if there are six at least
    (:func:`~auscult.metrics.intervals.mean_interval`).

    Examples
    --------
    >>> evaluate([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 1.0]])
    Interval(value=0.8535533905932737, low=nan, high=nan)
    """
    return mean_interval(scores(text, audio, clips=clips), resamples=resamples, seed=seed)
