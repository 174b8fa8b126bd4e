"""Gates of the data: what is on both sides of the split, what no encoder reads, and what the datastore cannot withhold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..inputs import shortened
from .examples import Clips
from .gates import GateResult
from .mixing import mixed_caption
from .neighbors import Neighbors
from .splitting import leaks

IntArray = npt.NDArray[np.int64]
MIXTURES_READ = 1000  # drawn to tell how many are too long: there are as many as pairs of clips


def split_gate(clips: Clips, rows: IntArray, held_out: IntArray) -> GateResult:
    """That no audio is trained on and held out; names silent clips."""
    shared = leaks(clips, rows, held_out)
    silent = f"; {len(clips.silent)} silent clips ({shortened(list(clips.silent))})" if clips.silent else ""
    advice = f"; the audio of {shortened(shared)} is in training as well: take it out of one" if shared else ""
    message = f"{len(rows):,} clips to train on, {len(held_out):,} held out, {len(shared)} of these in both{silent}{advice}"
    return GateResult("data", not shared, float(len(shared)), 0.0, message)


def captions_gate(
    encoders: Any, clips: Clips, rows: IntArray, pairs: Sequence[str] | None, *, mixes: bool, seed: int
) -> GateResult:
    """How many captions are longer than what is read of them; counted and named, never refused.

    Parameters
    ----------
    encoders
        An :class:`~auscult.generation.encoding.Encoders`.
    clips, rows
        All clips, and those that are trained on.
    pairs
        Captions of the datastore's pairs; None without one.
    mixes, seed
        Whether clips are mixed, and the draw of the mixtures that are looked at.
    """
    cut = [name for name, over in zip(clips.ids, encoders.prompt_tokens_cut(clips.captions), strict=True) if over]
    message = f"{len(cut):,} of {len(clips):,} captions are longer than the model reads of a prompt"
    message += f" ({shortened(cut)})" if cut else ""
    total = len(cut)
    if mixes:
        drawn = np.random.default_rng(seed).choice(rows, (MIXTURES_READ, 2))
        joint = [mixed_caption(clips.captions[one], clips.captions[other]) for one, other in drawn]
        longer = sum(over > 0 for over in encoders.prompt_tokens_cut(joint))
        message += f", and so are those of {longer / MIXTURES_READ:.1%} of mixtures"
        total += longer
    if pairs is not None:
        longer = sum(over > 0 for over in encoders.caption_tokens_cut(pairs))
        message += f"; {longer:,} of {len(pairs):,} captions of retrieved pairs are longer than it reads of those"
        total += longer
    advice = "; what is cut has no influence: shorten captions, or take an encoder that reads more" if total else ""
    return GateResult("captions", True, float(len(cut)), float(len(clips)), message + advice)


def pairs_gate(neighbors: Neighbors, clips: Clips, rows: IntArray, held_out: IntArray) -> GateResult:
    """How many clips the datastore does not know, so that it cannot withhold their duplicates; never refused."""
    sides = {"trained on": rows, "held out": held_out}
    unknown = {side: [clips.ids[row] for row in each if not neighbors.own[clips.ids[row]]] for side, each in sides.items()}
    parts = [
        f"{len(unknown[side]):,} of {len(each):,} clips {side}" + (f" ({shortened(unknown[side])})" if unknown[side] else "")
        for side, each in sides.items()
    ]
    total = sum(map(len, unknown.values()))
    message = " and ".join(parts) + f" are not in the datastore, by id or by audio; {len(neighbors.hidden):,} of its pairs are "
    message += "never shown, being held out or duplicates of what is"
    if total:
        message += (
            ". For clips it does not hold, pairs of an equal caption are passed over, duplicates are not: build it of the same "
            "clips where it may hold copies of them"
        )
    return GateResult("pairs", True, float(total), float(len(clips)), message)
