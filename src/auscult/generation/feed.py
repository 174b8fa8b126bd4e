"""What a plan of a batch becomes: latents, noise, noise levels and conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from .autoencoder import to_latents
from .batches import Plan, noise_seed, plan_batch
from .conditioning import Conditions, Tokens, choose, concatenate, references
from .denoiser import Family
from .examples import Clips, mels_of
from .guidance import behind, encoded_prompts
from .mel import MelSpec
from .mixing import mix, mixed_caption
from .neighbors import Neighbors
from .training_config import TrainConfig

IntArray = npt.NDArray[np.int64]
Variant = Literal["own", "prompt_only", "other", "swapped", "null"]


@dataclass(frozen=True)
class Batch:
    """One step: ``latents`` and ``noise`` (B, C, F, M), ``timesteps`` (B,), and the conditions, B rows."""

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    conditions: Conditions

    def part(self, start: int, stop: int) -> Batch:
        """Some of its samples."""
        cut = slice(start, stop)
        rows = list(range(start, min(stop, len(self.latents))))
        return Batch(self.latents[cut], self.noise[cut], self.timesteps[cut], self.conditions.select(rows))

    def to(self, device: Any) -> Batch:
        """On another device."""
        return Batch(*(each.to(device) for each in (self.latents, self.noise, self.timesteps, self.conditions)))

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True)
class Feed:
    """All that batches are made of.

    Attributes
    ----------
    clips
        Decoded clips.
    rows
        (N,) clips that are trained on.
    latents
        (all clips, C, F, M).
    prompts
        (all clips, D) prompt vectors, family ``"retrieval"``; (all clips, L, D) tokens otherwise.
    nothing
        What the prompt encoder (or caption encoder) makes of the empty text: one row.
    neighbors
        Pairs that clips are shown, or None.
    family, codec, encoders, spec, config, timesteps
        Of the run; the last is the number of noise levels.
    """

    clips: Clips
    rows: IntArray
    latents: torch.Tensor
    prompts: Conditions
    nothing: Conditions
    neighbors: Neighbors | None
    family: Family
    codec: Any
    encoders: Any
    spec: MelSpec
    config: TrainConfig
    timesteps: int

    @property
    def mixtures(self) -> int:
        """Mixtures added to each batch."""
        return round(self.config.mixing.share * self.config.optimizer.batch)

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of references that are drawn."""
        return self.config.retrieval.counts if self.neighbors is not None else (0,)

    @property
    def reach(self) -> int:
        """Neighbors that references are drawn among; a small datastore has fewer than are wanted."""
        if self.neighbors is None:
            return 0
        return min(self.config.retrieval.neighbors, max(map(len, self.neighbors.rows.values()), default=0))

    def batch(self, step: int) -> Batch:
        """The batch of a step; it follows from the seed and the step alone."""
        config = self.config
        plan = plan_batch(
            len(self.rows),
            config.optimizer.batch,
            config.seed,
            step,
            dropout=config.dropout,
            mixtures=self.mixtures,
            counts=self.counts,
            neighbors=self.reach,
        )
        rows = self.rows[plan.rows]
        plain = len(rows) - len(plan.partners)
        prompts, latents = self.prompts.select(rows[:plain]), self.latents[rows[:plain]]
        lists = [self._neighbors_of(row) for row in rows[:plain]]
        if len(plan.partners):
            mixed_prompts, mixed_latents, mixed_lists = self._mixtures(rows[plain:], self.rows[plan.partners])
            prompts = concatenate([prompts, mixed_prompts])
            latents, lists = torch.cat([latents, mixed_latents]), lists + mixed_lists
        conditions = self._dropped(plan, prompts, lists)
        noise, timesteps = draw_noise(latents, self.timesteps, noise_seed(config.seed, step))
        return Batch(latents, noise, timesteps, conditions)

    def _mixtures(self, first: IntArray, second: IntArray) -> tuple[Conditions, torch.Tensor, list[IntArray]]:
        """Prompts, latents and neighbors of mixtures, which are made as they are needed."""
        waves, captions, ids = self.clips.waves, self.clips.captions, self.clips.ids
        rate, ratio = self.spec.sample_rate_hz, self.config.mixing.ratio
        joint = [mixed_caption(captions[one], captions[other]) for one, other in zip(first, second, strict=True)]
        mixed = np.stack([mix(waves[one], waves[other], rate, ratio=ratio) for one, other in zip(first, second, strict=True)])
        mels = mels_of(mixed, self.spec, range(len(mixed)))
        with torch.no_grad():
            latents = to_latents(self.codec, mels.to(self.codec.device)).float().cpu()
        found = self.neighbors
        lists = [
            np.zeros(0, np.int64)
            if found is None
            else found.of_mixture(caption, (ids[one], ids[other]), (captions[one], captions[other]))
            for caption, one, other in zip(joint, first, second, strict=True)
        ]
        return encode_prompts(self.encoders, self.family, joint), latents, lists

    def _neighbors_of(self, row: int) -> IntArray:
        return np.zeros(0, np.int64) if self.neighbors is None else self.neighbors.rows[self.clips.ids[row]]

    def _dropped(self, plan: Plan, prompts: Conditions, lists: list[IntArray]) -> Conditions:
        """The prompts with the references that the plan picks of the lists, after what it drops is dropped."""
        shown = choose(torch.from_numpy(plan.drop_prompt), prompts, self.nothing.select([0] * len(prompts)))
        picked = [
            pick_neighbors(found, picks, 0 if gone else count)
            for found, picks, count, gone in zip(lists, plan.picks, plan.counts, plan.drop_references, strict=True)
        ]
        return self.with_references(shown, picked, max(self.counts))

    def with_references(self, prompts: Conditions, picked: Sequence[IntArray], room: int) -> Conditions:
        """Prompts (B rows) beside pairs: of each row some rows of the datastore, none allowed."""
        found = self.streams(picked, room)
        if found is None:
            return prompts
        if self.family == "retrieval":
            return replace(found, prompt=prompts.prompt)
        return behind(prompts, found)

    def streams(self, picked: Sequence[IntArray], room: int) -> Conditions | None:
        """Streams of pairs, without a prompt; None if this run has none."""
        if self.neighbors is None or room == 0:
            return None
        rows = np.concatenate([np.zeros(0, np.int64), *picked])
        sides = (self.neighbors.text, self.neighbors.audio)
        text, audio = (None if side is None else Tokens(side.values[rows], side.mask[rows]) for side in sides)
        return references(text, audio, [len(each) for each in picked], room)

    def nearest(self, rows: IntArray, most: int) -> list[IntArray]:
        """The nearest pairs of some clips."""
        return [self._neighbors_of(row)[:most] for row in rows]

    def fixed(self, rows: IntArray, variant: Variant) -> Conditions:
        """Conditions of some clips without chance: the nearest references, as many as the model ever sees.

        ``own``: prompt and references of the clip. ``prompt_only``: no references. ``other``: prompt and references of another
        clip of another caption. ``swapped``: its own prompt, the other's references. ``null``: nothing.
        """
        other = other_rows(rows, self.clips.captions)
        if variant == "null":
            return self.with_references(
                self.nothing.select([0] * len(rows)), [np.zeros(0, np.int64)] * len(rows), max(self.counts)
            )
        prompts = self.prompts.select(other if variant == "other" else rows)
        most = 0 if variant == "prompt_only" else max(self.counts)
        source = other if variant in ("other", "swapped") else rows
        return self.with_references(prompts, self.nearest(source, most), max(self.counts))


def pick_neighbors(found: IntArray, picks: IntArray, count: int) -> IntArray:
    """Neighbors at the first ``count`` drawn places that the list has; fewer only of a list that holds fewer.

    Examples
    --------
    >>> pick_neighbors(np.array([10, 11, 12]), np.array([2, 40, 0, 1]), 2).tolist()
    [12, 10]
    """
    return found[picks[picks < len(found)][:count]]


def other_rows(rows: IntArray, captions: Sequence[str]) -> IntArray:
    """For each row the next one of another caption, of all clips where these rows have none; itself where there is none.

    Examples
    --------
    >>> other_rows(np.array([0, 1, 2]), ["rain", "rain", "dog"]).tolist()
    [2, 2, 0]
    >>> other_rows(np.array([0, 1]), ["rain", "rain", "dog"]).tolist()
    [2, 2]
    """
    found = []
    for place, row in enumerate(rows):
        following = chain(rows[place + 1 :], rows[:place], range(len(captions)))
        found.append(next((each for each in following if captions[each] != captions[row]), row))
    return np.array(found, np.int64)


def encode_prompts(encoders: Any, family: Family, texts: Sequence[str]) -> Conditions:
    """Prompts as the family reads them, on the CPU: vectors, or tokens."""
    return encoded_prompts(encoders, family, list(texts)).to("cpu", torch.float32)


def draw_noise(latents: torch.Tensor, total: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise like the latents and a noise level for each, drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator)
    return noise, torch.randint(0, total, (len(latents),), generator=generator)
