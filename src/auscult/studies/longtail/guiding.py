"""Guidance away from what each prompt was shown: one index of all references, of which every sample sees its own alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ...generation.clips import Row
from ...generation.making import Around
from ...generation.prompts import PlannedClip
from ...guidance.amg import AmgConfig, AntiMemorization
from ...guidance.attach import attach
from ...guidance.guided import facts_of_clips
from ...guidance.index import Nearest, ReferenceIndex
from ...guidance.shifting import at_every_moment
from ...guidance.statistics import LatentStatistics


@dataclass(frozen=True, eq=False)
class OwnReferences(ReferenceIndex):
    """An index of which each sample of a call sees its own references alone.

    Attributes
    ----------
    allowed
        (B, N) bool, for each sample of the call the vectors that it is compared with.
    """

    allowed: torch.Tensor | None = None

    @classmethod
    def of(cls, index: ReferenceIndex, own: Sequence[Sequence[str]]) -> OwnReferences:
        """An index for samples whose references are ``own`` clips of it.

        Examples
        --------
        >>> index = ReferenceIndex("toy", ("a", "b"), (None, None), (0.0, 0.0), torch.eye(2))
        >>> OwnReferences.of(index, [["b"], []]).nearest(torch.tensor([[1.0, 0.1], [1.0, 0.1]])).similarity.round(decimals=2)
        tensor([[ 0.1000],
                [-1.0000]])
        """
        wanted = [set(ids) for ids in own]
        allowed = torch.tensor([[one in ids for one in index.ids] for ids in wanted], dtype=torch.bool)
        there = {field.name: getattr(index, field.name) for field in fields(index)}
        return cls(**there, allowed=allowed.to(index.vectors.device))

    def nearest(self, vectors: torch.Tensor, k: int = 1, *, allowed: torch.Tensor | None = None) -> Nearest:
        """The most similar of each sample's own references; ``NOT_SHOWN`` where it has fewer than k.

        Raises
        ------
        ValueError
            There are other numbers of samples than this index is for.
        """
        allowed = self.allowed if allowed is None else allowed
        if allowed is not None and len(vectors) != len(allowed):
            raise ValueError(f"expected {len(allowed)} samples, whose references are known, got {len(vectors)}")
        return super().nearest(vectors, k, allowed=allowed)


@dataclass(frozen=True)
class AwayFromOwn:
    """A :data:`~auscult.generation.making.Guide`: anti-memorization guidance by the pairs that each clip is made beside.

    Attributes
    ----------
    index
        Folder of an index of all clips of the datastore.
    config
        Of the guidance.
    shown
        By the id of the clip that is to be made: ids of its pairs.
    """

    index: Path
    config: AmgConfig
    shown: Mapping[str, tuple[str, ...]]

    def __call__(self, pipe: Any) -> Around:
        """Load the index, and give what surrounds each call."""
        descriptor = LatentStatistics.of(pipe)
        index = at_every_moment(ReferenceIndex.load(self.index), descriptor).to(str(pipe.device))

        @contextmanager
        def around(clips: Sequence[PlannedClip]) -> Iterator[list[Row]]:
            own = OwnReferences.of(index, [self.shown[clip.clip_id] for clip in clips])
            facts: list[Row] = []
            with attach(pipe, AntiMemorization(own, descriptor, self.config)) as run:
                yield facts
            facts += facts_of_clips(run.trace, len(clips), 0)

        return around
