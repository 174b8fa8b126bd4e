"""All transformations of the protocol by group, and random chains of them.

Each kind has a light, a medium and a heavy setting, and every draw comes from one generator.
"""

from __future__ import annotations

import numpy as np

from .space import CHANNEL
from .surface import MIX, RESYNTHESIS, VERBATIM, WARP, reverse
from .timeline import Copy, Kind, Studio, apply
from .timing import PARTIAL, SHIFT

__all__ = ["FIXED", "KINDS", "LEVELS", "REVERSE", "Copy", "Kind", "Studio", "apply", "draw_chain"]

LEVELS = ("light", "medium", "heavy")

KINDS: tuple[Kind, ...] = tuple(
    Kind(group, name, step)
    for group, steps in (
        ("verbatim", VERBATIM),
        ("shift", SHIFT),
        ("partial", PARTIAL),
        ("mix", MIX),
        ("warp", WARP),
        ("resynthesis", RESYNTHESIS),
        ("channel", CHANNEL),
    )
    for name, step in steps
)

REVERSE = Kind("reversed", "reverse", reverse)  # outside KINDS: reported apart

FIXED = ("identity", "polarity", "mix_+12db", "mix_+6db", "mix_+0db", "mix_-6db", "reverse")  # one setting only

# A chain ends with what happens last to a real copy: timing first, then sound, then the file.
_CHAIN_ORDER = {"warp": 0, "resynthesis": 1, "partial": 2, "shift": 2, "mix": 3, "verbatim": 4, "channel": 5}


def draw_chain(rng: np.random.Generator, length: int) -> list[Kind]:
    """`length` (2-4) kinds of different groups or names, in a plausible order.

    At most one timing step and one mix, so that a chain stays a copy that a listener
    can still recognize; identity never counts as a step.
    """
    pool = [k for k in KINDS if k.name not in ("identity", "mix_-6db", "loop", "splice_3", "splice_short")]
    chosen: list[Kind] = []
    while len(chosen) < length:
        kind = pool[int(rng.integers(len(pool)))]
        stages = [_CHAIN_ORDER[k.group] for k in chosen]
        if kind in chosen or (_CHAIN_ORDER[kind.group] in stages and kind.group != "verbatim"):
            continue
        chosen.append(kind)
    return sorted(chosen, key=lambda k: _CHAIN_ORDER[k.group])
