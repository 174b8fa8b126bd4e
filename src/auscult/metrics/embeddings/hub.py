"""What the backends of transformers' models share: which weights are meant, how they stand in the spec, what input is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import pretrained
from ...descriptors import DescriptorSpec
from ...errors import ModelError
from ...pretrained import Kind

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Weights:
    """The weights of a backend, pinned: a folder by the digest of its files, a name on the hub by its commit.

    Attributes
    ----------
    name
        A folder, absolute, or a name on the hub.
    digest
        Of a folder; empty for the hub.
    revision
        Commit on the hub, or what was asked for where the commit cannot be known; empty for folders.
    """

    name: str
    digest: str = ""
    revision: str = ""

    def spec(self, backend: str, **settings: float | int | str) -> DescriptorSpec:
        """Version 1 of a backend with these weights.

        Examples
        --------
        >>> str(Weights("facebook/encodec_24khz", revision="c1dbe2a").spec("encodec"))
        "encodec/1(weights='facebook/encodec_24khz',revision='c1dbe2a')"
        """
        pinned = [(key, value) for key, value in (("digest", self.digest), ("revision", self.revision)) if value]
        return DescriptorSpec(backend, 1, (("weights", self.name), *pinned, *settings.items()))


def pin(weights: str | None, kind: Kind, *, revision: str, needed_for: str, also: tuple[str, ...] = ()) -> Weights:
    """The weights that a text means: a folder, ``NAME`` or ``NAME@REVISION`` on the hub, or those of ``kind.example``.

    Parameters
    ----------
    weights
        What was given; None for the default.
    kind
        What they should be.
    revision
        On the hub, as a spec has it; instead of the one in the text.
    needed_for
        What wants them, for messages.
    also
        Further files of a folder that go into its digest.

    Raises
    ------
    ValueError
        A revision is given for a folder, or twice.
    ModelError
        Neither a folder nor a name, a folder that lacks a file, or a hub that cannot be reached.
    """
    text = kind.example if weights is None else weights
    try:
        located, written = pretrained.locate(text, kind, also=also), ""
    except ModelError:
        name, at, written = text.rpartition("@")
        if not (at and written):
            raise
        located = pretrained.locate(name, kind, also=also)
    if located.digest:
        if revision or written:
            raise ValueError(f"{text}: a revision is for names on the hub, this is a folder; leave it out")
        return Weights(located.name, located.digest)
    if revision and written and revision != written:
        raise ValueError(f"{text}: the revision was given twice, here and as {revision!r}")
    commit = pretrained.hub_commit(located.name, kind, revision=revision or written, needed_for=needed_for)
    return Weights(located.name, revision=commit)


def take(samples: FloatArray, shortest: int) -> FloatArray:
    """Samples as a backend wants them, contiguous float32.

    Raises
    ------
    ValueError
        They are not mono, not floating, fewer than ``shortest``, or not all finite.

    Examples
    --------
    >>> take(np.zeros((2, 9), np.float32), 1)
    Traceback (most recent call last):
    ValueError: expected mono samples of shape (time,), got (2, 9); average the channels first
    """
    if samples.ndim != 1:
        raise ValueError(f"expected mono samples of shape (time,), got {samples.shape}; average the channels first")
    if samples.dtype.kind != "f":
        raise ValueError(f"expected floating samples from -1 to 1, got {samples.dtype}; divide integers by their largest value")
    if len(samples) < shortest:
        raise ValueError(f"expected at least {shortest} samples, which make one frame, got {len(samples)}; leave the clip out")
    wrong = np.flatnonzero(~np.isfinite(samples))
    if len(wrong):
        raise ValueError(f"expected finite samples, got {samples[wrong[0]]} at sample {wrong[0]}; is the file damaged?")
    return np.ascontiguousarray(samples, dtype=np.float32)


def covering(length: int, window: int, hop: int) -> list[int]:
    """Starts of windows that cover a clip: every hop, and one more that ends where the clip ends, if something is left.

    Examples
    --------
    >>> covering(25, 10, 10), covering(20, 10, 10), covering(4, 10, 10)
    ([0, 10, 15], [0, 10], [0])
    """
    starts = list(range(0, max(length - window, 0) + 1, hop))
    return [*starts, length - window] if starts[-1] + window < length else starts


def even_spans(frames: int, most: int) -> list[tuple[int, int]]:
    """Cut frames into as few spans (first, end) of at most ``most`` as there can be, of lengths that differ by at most one.

    So no frame is left with nothing but a short rest around it.

    Examples
    --------
    >>> even_spans(11, 4)
    [(0, 4), (4, 8), (8, 11)]
    >>> even_spans(4, 4)
    [(0, 4)]
    """
    count = -(-frames // most)
    ends = [(number + 1) * (frames // count) + min(number + 1, frames % count) for number in range(count)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def batched(pieces: Iterable[FloatArray], most: int, run: Callable[[FloatArray], Any]) -> list[FloatArray]:
    """``run`` on stacks (n, samples) of at most ``most`` consecutive pieces of equal length; its rows, in order.

    Pieces are stacked only if they are equally long, since padding would be heard by models that know of no mask.
    """
    rows: list[FloatArray] = []
    waiting: list[FloatArray] = []
    for piece in pieces:
        if waiting and (len(waiting) == most or len(piece) != len(waiting[0])):
            rows.extend(run(np.stack(waiting)))
            waiting = []
        waiting.append(piece)
    rows.extend(run(np.stack(waiting)))
    return rows


def finite(values: FloatArray, name: str) -> FloatArray:
    """The values, if all of them are finite.

    Raises
    ------
    ModelError
        One is not.
    """
    if not np.isfinite(values).all():
        raise ModelError(f"{name}: gives values that are not finite; are its weights damaged?")
    return np.ascontiguousarray(values, dtype=np.float32)
