"""References at every moment: a sampler that is led away from a reference in time alone would play it earlier or later.

Descriptors that compare the same moments only are evaded so: on a memorizing model guided by them, samples were the training
clips moved in time (``docs/guidance.md``). With the shifts among the references, this way out is closed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .index import ReferenceIndex
from .terms import norms

LEAST_SHARE = 0.3
MOST_BYTES = 4 * 2**30


def has_time(descriptor: Any) -> bool:
    """Whether the vectors of a descriptor have an axis of time, and are of the whole sound."""
    return getattr(descriptor, "layout", None) is not None


def shifted_bytes(index: ReferenceIndex, descriptor: Any) -> int:
    """What an index takes at most with all shifts."""
    if not len(index):
        return 0
    shape, axis, _ = descriptor.layout
    return 2 * index.vectors[0].reshape(shape).shape[axis] * index.vectors.numel() * 4


def at_every_moment(index: ReferenceIndex, descriptor: Any) -> ReferenceIndex:
    """:func:`shifted`, for means of latents that fit into memory so; otherwise the index as it is.

    Mel and CLAP descriptors look at a window at a time, which their references overlap: their index stays as it is, too. So
    does one of sounds that are a single block of means (:class:`~auscult.guidance.statistics.LatentStatistics` averages over
    0.16 s), since there is no shift of less than a block.
    """
    whole = has_time(descriptor) and descriptor.window_s is None
    return shifted(index, descriptor) if whole and shifted_bytes(index, descriptor) <= MOST_BYTES else index


def shifted(index: ReferenceIndex, descriptor: Any, *, least: float = LEAST_SHARE) -> ReferenceIndex:
    """The index with each reference at every shift in time, a step of the descriptor apart.

    What a shift leaves open is taken as the center: it speaks neither for nor against a likeness. Vectors are scaled to unit
    length again, so the similarity is the normalized cross-correlation where both sound, times the share of the sample's own
    length that lies there.

    Parameters
    ----------
    index
        Of whole sounds.
    descriptor
        The one that it was made with, whose vectors have an axis of time.
    least
        Shifts that keep less than this share of a reference's squared length are left out: next to nothing of it would
        sound like much.

    Returns
    -------
    ReferenceIndex
        With up to ``2 steps - 1`` rows for each of the index, the unshifted ones first; ``starts_s`` is where in the reference
        the sound begins, negative where the reference begins later.

    Raises
    ------
    ValueError
        The descriptor's vectors have no axis of time, or the index would take more than 4 GiB.
    """
    index.check(descriptor)
    if not has_time(descriptor):
        raise ValueError(f"{descriptor.spec} has no axis of time in its vectors; shifts mean nothing to it")
    if not len(index):
        return index
    shape, axis, step_s = descriptor.layout
    laid = index.vectors.reshape(len(index), *shape).movedim(axis + 1, 1)
    steps = laid.shape[1]
    if (needed := shifted_bytes(index, descriptor)) > MOST_BYTES:
        raise ValueError(
            f"{len(index):,} references at {2 * steps - 1} shifts would take {needed / 2**30:.0f} GiB; take fewer "
            "references or longer blocks"
        )
    kept = [index]
    for shift in (sign * far for far in range(1, steps) for sign in (1, -1)):
        moved = torch.zeros_like(laid)
        if shift > 0:
            moved[:, shift:] = laid[:, :-shift]
        else:
            moved[:, :shift] = laid[:, -shift:]
        vectors = moved.movedim(1, axis + 1).reshape(len(index), -1)
        length = norms(vectors)
        rows = (length.square() >= least).nonzero()[:, 0]
        kept.append(
            replace(
                index,
                ids=tuple(index.ids[row] for row in rows.tolist()),
                captions=tuple(index.captions[row] for row in rows.tolist()),
                starts_s=tuple(index.starts_s[row] - shift * step_s for row in rows.tolist()),
                vectors=vectors[rows] / length[rows, None],
            )
        )
    return replace(
        index,
        ids=tuple(one for part in kept for one in part.ids),
        captions=tuple(one for part in kept for one in part.captions),
        starts_s=tuple(one for part in kept for one in part.starts_s),
        vectors=torch.cat([part.vectors for part in kept]),
    )
