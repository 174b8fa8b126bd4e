"""A guard that stays: model and references come into memory once, then prompts are answered as they come.

Data flow: references -> index for the sampler, stores for the auditor; then, call by call: prompts -> clips under guidance ->
audit by another descriptor -> what is flagged is made again -> files that may leave, and reasons for those that may not.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..engine import HERE, Engine
from ..folders import Progress, no_progress, write_text
from ..generation.calling import Sampling, generate_batch
from ..generation.clips import AUDIO, Row, manifest_row, write_clip, write_manifest
from ..generation.pipelines import sample_rate_hz
from ..generation.prompts import PlannedClip, PromptRow, plan_clips
from ..inputs import Source, StoredClips
from ..store import DescriptorStore
from .amg import AmgConfig, AntiMemorization
from .guard_config import GuardConfig
from .guarding import DESCRIBED, WITHHELD
from .guided import LatentChoice, facts_of_clips, strengthened
from .index import ReferenceIndex
from .protecting import check_enough, described_for_audits
from .rounds import ATTEMPTS, Auditor, make_and_audit
from .shifting import at_every_moment
from .thresholds import measured_thresholds

REQUESTS = "requests"


@dataclass(frozen=True)
class Answer:
    """What came of a prompt.

    Attributes
    ----------
    prompt
        As it was given.
    path
        Of the clip, which no audit flags; None: it is withheld.
    flagged
        Of a prompt whose clip is withheld, each time that it was flagged; else empty, also where an earlier attempt was
        flagged: ``attempt``, ``seed``, and the best match (``reference_path``, ``score``,
        ``p_value``, and where in both sounds).
    """

    prompt: str
    path: Path | None
    flagged: tuple[Row, ...] = ()


@dataclass(frozen=True, eq=False)
class Guard:
    """A pipeline in memory of which no clip leaves that the audit flags; called with prompts. Made by :meth:`of`.

    It answers one call at a time, with a folder for each: a manifest of what may leave, ``withheld.jsonl``, and what every
    attempt gave, audits included. An audit compares its null clips anew, so several prompts at once cost little more than one.

    Attributes
    ----------
    pipe, guidance, auditor
        What makes the clips, what steers it, and what judges them.
    folder
        Of the folders of calls.
    sampling, config
        Settings.
    """

    pipe: Any
    guidance: AntiMemorization
    auditor: Auditor
    folder: Path
    sampling: Sampling
    config: GuardConfig

    @classmethod
    def of(
        cls,
        pipe: Any,
        references: Source,
        folder: str | Path,
        *,
        sampling: Sampling | None = None,
        config: GuardConfig | None = None,
        amg: AmgConfig | None = None,
        background: Source | None = None,
        null: Source | None = None,
        engine: Engine = HERE,
        progress: Progress = no_progress,
    ) -> Guard:
        """Describe the references for the sampler and for the auditor.

        Parameters
        ----------
        pipe
            Of :func:`~auscult.generation.pipelines.load_pipeline`.
        references, background, null, engine
            As of :func:`~auscult.guidance.guarding.generate_guarded`.
        folder
            Where calls leave their folders, and the auditor its descriptions, which the next start takes up again.
        sampling
            How clips are made.
        config
            Settings of the guard.
        amg
            Settings of guidance. By default thresholds are measured on the references, and caption deduplication is left out
            where no reference has a caption.

        Raises
        ------
        ValueError, CorpusError
            As there.
        """
        config, sampling, folder = config or GuardConfig(), sampling or Sampling(), Path(folder)
        given = {"references": references, "background": background, "null": null}
        sources = {role: source for role, source in given.items() if source is not None}
        check_enough(sources, config, {} if amg is None else dataclasses.asdict(amg))
        stores = described_for_audits(sources, folder / DESCRIBED, config, engine, progress)
        auditor = Auditor(
            stores["references"], stores.get("background"), stores.get("null"), config.of_audit(), config.level, engine
        )
        choice = LatentChoice(config.descriptor, sampling.duration_s, clap_model=config.clap_model)
        return cls(pipe, _guidance(pipe, references, choice, amg, progress), auditor, folder, sampling, config)

    def __call__(self, prompts: Sequence[str]) -> list[Answer]:
        """Make a clip of each prompt; those that stay flagged are withheld.

        Returns
        -------
        list
            An :class:`Answer` for each prompt, in their order.
        """
        seed = time.time_ns()
        folder = self.folder / REQUESTS / str(seed)
        folder.mkdir(parents=True)
        plan = plan_clips([PromptRow(*each) for each in enumerate(prompts)], per_prompt=1, seed=seed)
        make, attempts = partial(self._made, folder), self.config.attempts
        rounds = make_and_audit(folder, plan, make, self.auditor, attempts=attempts, progress=no_progress)
        write_manifest(folder, rounds.delivered)
        write_text(folder / WITHHELD, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rounds.withheld))
        paths = {row["clip_id"]: folder / row["path"] for row in rounds.delivered}
        found = {row["clip_id"]: tuple(row["flagged"]) for row in rounds.withheld}
        return [Answer(one.prompt.caption, paths.get(one.clip_id), found.get(one.clip_id, ())) for one in plan]

    def _made(self, folder: Path, attempt: int, clips: Sequence[PlannedClip]) -> Mapping[str, Row]:
        """Rows of clips, made by guidance of this attempt's strength."""
        where = folder / ATTEMPTS / str(attempt)
        (where / AUDIO).mkdir(parents=True)
        if not clips:
            return {}
        config = strengthened(self.guidance.config, self.config.strengthen**attempt)
        with dataclasses.replace(self.guidance, config=config).attach(self.pipe) as run:
            sounds = generate_batch(
                self.pipe, [clip.prompt.caption for clip in clips], [clip.seed for clip in clips], self.sampling
            )
        facts, rate_hz = facts_of_clips(run.trace, len(clips), attempt), sample_rate_hz(self.pipe)
        return {
            clip.clip_id: manifest_row(clip, write_clip(where, clip, sound, rate_hz), fact)
            for clip, sound, fact in zip(clips, sounds, facts, strict=True)
        }


def _guidance(
    pipe: Any, references: Source, choice: LatentChoice, amg: AmgConfig | None, progress: Progress
) -> AntiMemorization:
    """Guidance away from the references, at every moment where the descriptor has moments."""
    device = str(pipe.device)
    descriptor = choice.of(pipe, device)
    clips = StoredClips.of(references) if isinstance(references, DescriptorStore) else references
    index = ReferenceIndex.from_audio(clips, descriptor, progress=progress)
    moments = at_every_moment(index, descriptor)
    if amg is None:
        found = measured_thresholds(index, others=moments)
        strength = AmgConfig.deduplication if any(index.captions) else 0.0
        amg = AmgConfig(deduplication=strength, threshold_low=found.low, threshold_high=found.high)
    return AntiMemorization(moments.to(device), descriptor, amg)
