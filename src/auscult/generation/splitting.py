"""Which clips are trained on and which are held out: no recording, and no sound, is on both sides."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..identity import recordings
from .cached_arrays import IntArray
from .examples import Clips


def split_clips(clips: Clips, share: float, seed: int, group: str | None = None) -> tuple[IntArray, IntArray]:
    """Rows to train on and rows held out, so that no recording is on both sides.

    Parameters
    ----------
    clips
        Of the training corpus.
    share
        Share of the groups that is held out; at least one group if it is not 0.
    seed
        Of the draw.
    group
        Regular expression on the clip id whose first group names the recording. Clips of equal audio are of one group, too.

    Raises
    ------
    ValueError
        The expression has no group or does not match an id, or nothing would be left to train on.
    """
    names = _groups(clips, group)
    unique = sorted(set(names))
    held = max(1, round(share * len(unique))) if share else 0
    if held >= len(unique):
        raise ValueError(
            f"{len(unique)} recording(s) cannot be split; give [data] validation = SOURCE, or validation_share = 0 for none"
        )
    drawn = np.random.default_rng(np.random.SeedSequence([seed, len(unique)])).permutation(len(unique))[:held]
    out = {unique[number] for number in drawn}
    inside = np.array([name in out for name in names])
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def _groups(clips: Clips, group: str | None) -> list[str]:
    """Name of the group of each clip: recordings, joined where two share a clip of equal audio."""
    names = list(clips.ids) if group is None else recordings(clips.ids, group)
    unique, recording = np.unique(names, return_inverse=True)
    sounds, sound = np.unique(clips.digests, return_inverse=True)
    nodes = len(unique) + len(sounds)
    graph = coo_array((np.ones(len(names)), (recording, len(unique) + sound)), shape=(nodes, nodes))
    _, group_of = connected_components(graph, directed=False)
    first: dict[int, str] = {}  # recordings are sorted, so that a group has the first name of its own
    for name, number in zip(unique.tolist(), group_of[: len(unique)].tolist(), strict=True):
        first.setdefault(number, name)
    return [first[number] for number in group_of[recording].tolist()]


def leaks(clips: Clips, train: IntArray, held_out: IntArray) -> list[str]:
    """Ids of held-out clips whose audio is in training as well."""
    digests = {clips.digests[row] for row in train}
    return [clips.ids[row] for row in held_out if clips.digests[row] in digests]
