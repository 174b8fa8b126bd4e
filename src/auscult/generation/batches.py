"""What is trained on at each step, as a function of the seed and the step alone.

Nothing is drawn from a generator that lives from step to step: the order of the clips, the mixtures, which conditions are
dropped, which references are shown, the noise and its level all follow from ``(seed, step)``. So a run that was killed goes
on as if it had not been, and every process of a distributed run can work out its own share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# The second entropy of each kind of draw, so that no two are ever drawn from one stream.
_ORDER, _PLAN, _NOISE = range(3)


@dataclass(frozen=True)
class Dropout:
    """``[dropout]``: shares of samples whose conditions are dropped; what is left over keeps all of them.

    Attributes
    ----------
    everything
        Prompt and references: what classifier-free guidance subtracts.
    retrieval
        The references only: the model with no retrieved pair.
    prompt
        The prompt only.
    """

    everything: float = 0.1
    retrieval: float = 0.1
    prompt: float = 0.05

    def __post_init__(self) -> None:
        shares = (self.everything, self.retrieval, self.prompt)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"[dropout] shares should not be negative and sum to at most 1, got {shares}")


@dataclass(frozen=True)
class Plan:
    """One batch: B samples, of which the last ``len(partners)`` are mixtures.

    Attributes
    ----------
    rows
        (B,) clip of each sample; of a mixture the first clip.
    partners
        (M,) second clip of each mixture, never the first.
    drop_prompt, drop_references
        (B,) whether the sample goes without.
    counts
        (B,) how many references the sample is shown (before dropping).
    picks
        (B, neighbors) all places of a list of neighbors, in the order in which they are drawn: of a shorter list, the places
        beyond its end are passed over, so that it still gives as many as were drawn if it has them.
    """

    rows: IntArray
    partners: IntArray
    drop_prompt: BoolArray
    drop_references: BoolArray
    counts: IntArray
    picks: IntArray


@lru_cache(maxsize=4)
def epoch_order(clips: int, seed: int, epoch: int) -> IntArray:
    """The order (clips,) in which an epoch goes through the clips.

    Examples
    --------
    >>> sorted(epoch_order(5, 0, 3).tolist())
    [0, 1, 2, 3, 4]
    """
    return _generator(seed, _ORDER, epoch).permutation(clips).astype(np.int64)


def batch_rows(clips: int, size: int, seed: int, step: int) -> IntArray:
    """Clips (size,) of a step: epochs follow one another without a gap, so every clip is seen equally often.

    Examples
    --------
    >>> rows = np.concatenate([batch_rows(5, 4, 0, step) for step in range(5)])  # 20 samples: four epochs
    >>> np.bincount(rows).tolist()
    [4, 4, 4, 4, 4]
    """
    places = np.arange(step * size, (step + 1) * size)
    return np.array([epoch_order(clips, seed, int(place // clips))[place % clips] for place in places], dtype=np.int64)


def plan_batch(
    clips: int,
    size: int,
    seed: int,
    step: int,
    *,
    dropout: Dropout | None = None,
    mixtures: int = 0,
    counts: Sequence[int] = (0,),
    neighbors: int = 0,
) -> Plan:
    """Everything that is drawn for one step, except for the noise.

    Parameters
    ----------
    clips
        Number of training clips.
    size
        Clips of a batch; ``mixtures`` are added to them.
    seed, step
        What the draws follow from.
    dropout
        How often conditions are dropped, each sample by its own coin.
    mixtures
        Mixtures added to the batch; each mixes a clip of the batch with any other clip.
    counts
        Numbers of references of which each sample draws one.
    neighbors
        Length of the lists of neighbors that references are picked from.

    Raises
    ------
    ValueError
        No clip, or mixtures of fewer than two clips.

    Examples
    --------
    >>> plan = plan_batch(10, 4, 0, 7, mixtures=2, counts=(0, 3), neighbors=50)
    >>> len(plan.rows), len(plan.partners), plan.picks.shape
    (6, 2, (6, 50))
    >>> bool((plan_batch(10, 4, 0, 7, mixtures=2, counts=(0, 3), neighbors=50).picks == plan.picks).all())
    True
    """
    if clips < 1 or size < 1:
        raise ValueError(f"expected at least one clip and a batch of at least one, got {clips} and {size}")
    if mixtures and clips < 2:
        raise ValueError("a mixture needs two different clips; there is one; set mixing.share = 0")
    draw = _generator(seed, _PLAN, step)
    rows = batch_rows(clips, size, seed, step)
    firsts = rows[draw.integers(0, size, mixtures)]
    partners = (firsts + draw.integers(1, max(clips, 2), mixtures)) % clips  # any clip but the first
    rows = np.concatenate([rows, firsts])
    plan = dropout or Dropout(0, 0, 0)
    coin = draw.random(len(rows))
    everything = coin < plan.everything
    no_retrieval = (coin >= plan.everything) & (coin < plan.everything + plan.retrieval)
    no_prompt = (coin >= plan.everything + plan.retrieval) & (coin < plan.everything + plan.retrieval + plan.prompt)
    shown = np.minimum(draw.choice(np.asarray(counts, np.int64), len(rows)), neighbors)
    picks = np.array([draw.permutation(neighbors) for _ in rows], np.int64)  # as many draws whatever the counts
    return Plan(rows, partners, everything | no_prompt, everything | no_retrieval, shown, picks)


def noise_seed(seed: int, step: int) -> int:
    """Seed of the noise and the noise levels of a step, below 2^63.

    Examples
    --------
    >>> noise_seed(0, 1) == noise_seed(0, 1), noise_seed(0, 1) == noise_seed(0, 2)
    (True, False)
    """
    return int(_generator(seed, _NOISE, step).integers(0, 2**63))


def _generator(*entropy: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(entropy))
