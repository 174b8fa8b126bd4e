"""Corridor 3: how good is generated audio, beside real audio?

Data flow: corpora -> features by each backend (cached by content) -> scores with intervals, each with its brackets; what an
audit says of the same clips beside them; scores by how often a class was in training. What can be refused is refused before
anything is embedded, or else by the first backend, before anything is scored.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..corpus import Corpus
from ..engine import HERE, MIB, Engine
from ..errors import ManifestError
from ..folders import Progress, no_progress
from ..search.exact import IntArray
from .addressing import prompts_by_system
from .brackets import Brackets, make_brackets
from .card import backend_facts, evaluation_card
from .classes import Classes
from .embeddings import Backend, load_backend
from .features import AudioPolicy, FeatureSet, default_cache, extract, probe_rates
from .findings import Findings, pairings_of
from .measuring import Task
from .pairing import REFERENCE_COLUMN, OtherReferencesError, Prompts, check_columns, pair_captions, pair_references
from .request import EvaluateConfig, System, asked_for_pairs, check_metrics, check_request, has_captions, labeled
from .scores import SystemResult
from .sets import REFERENCE, SetClips, check_rates, check_usable, native_rates
from .tails import Tail, check_tails, scores_by_class

__all__ = ["EvaluateConfig", "Evaluation", "System", "Tail", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes
    ----------
    results
        Scores, facts and warnings of each system, in the order given.
    tails
        By score: that score of each system over class frequency; empty if classes were not given.
    card
        What all of it was computed from, as JSON can hold it.
    clips
        One row a generated clip and system, of all clips that any backend could use: ``system, clip_id, path, caption,
        labels, duration_s, flags``, and a column for each score that single clips have.
    """

    results: tuple[SystemResult, ...]
    tails: Mapping[str, Tail]
    card: dict[str, Any]
    clips: pa.Table


def evaluate(
    systems: Mapping[str, System],
    reference: Corpus,
    *,
    prompts: Prompts | None = None,
    classes: Classes | None = None,
    config: EvaluateConfig | None = None,
    cache: Path | None = None,
    engine: Engine = HERE,
    progress: Progress = no_progress,
) -> Evaluation:
    """Score systems against a reference.

    Parameters
    ----------
    systems
        By name.
    reference
        Real audio, of the kind that was to be generated.
    prompts
        Captions and references of the generated clips, where their own manifests do not say them.
    classes
        For scores over how often a class was in training.
    config
        Settings.
    cache
        Folder of computed features; None: :func:`~auscult.metrics.features.default_cache`.
    engine
        Where features are computed.
    progress
        Called with what is being done.

    Raises
    ------
    ValueError
        There is no system, a metric was asked for that no backend can compute, sets have rates that cannot be compared, or
        clips have no label of the classes'.
    CorpusError
        A set is empty or holds no audio, or more of it than ``config.max_skipped`` cannot be used.
    ManifestError
        Clips and prompts do not belong together.
    ModelError, MissingExtraError
        A backend cannot be loaded.
    StoreError, OtherClipsError
        An audit is none, or not of the clips that are evaluated.
    """
    config = config or EvaluateConfig()
    started = time.time()
    check_request(systems, reference)
    backends = labeled([load_backend(text, device=engine.device) for text in config.backends])
    own = _checked_prompts(systems, reference, list(backends.values()), prompts, classes, config)
    bench = _Bench(config, cache or default_cache(), engine, progress)
    found = {name: Findings(name, system, own[name]) for name, system in systems.items()}
    real: SetClips | None = None
    about: dict[str, Any] = {}
    for label, backend in backends.items():
        features = bench.score(label, backend, reference, found, list(backends.values()))
        mine = SetClips.of(features)
        real = mine if real is None else real.joined(mine)
        about[label] = backend_facts(backend, features)
    assert real is not None
    tails, warnings = ({}, []) if classes is None else scores_by_class(found.values(), classes, config)
    told = [*(() if prompts is None else check_columns(prompts)), *(() if classes is None else classes.warnings), *warnings]
    return Evaluation(
        tuple(one.result(real, config) for one in found.values()),
        tails,
        evaluation_card(config, about, reference, real, prompts=prompts, warnings=told, started=started),
        pa.concat_tables([one.table() for one in found.values()], promote_options="default"),
    )


def _checked_prompts(
    systems: Mapping[str, System],
    reference: Corpus,
    backends: list[Backend],
    prompts: Prompts | None,
    classes: Classes | None,
    config: EvaluateConfig,
) -> dict[str, Prompts | None]:
    """The prompts of each system, after all checks that need no features."""
    corpora = {name: system.corpus for name, system in systems.items()}
    if prompts is not None:
        check_columns(prompts)
    own = prompts_by_system(prompts, corpora)
    check_metrics(config, backends, systems, own)
    if classes is not None:
        check_tails(classes, config, backends, corpora, own)
    if config.rate_hz is None and not config.mixed_rates:
        check_rates({name: probe_rates(corpus) for name, corpus in {**corpora, REFERENCE: reference}.items()}, backends)
    return own


# --- by one backend ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bench:
    """Where and how features are computed."""

    config: EvaluateConfig
    cache: Path
    engine: Engine
    progress: Progress

    def score(
        self, label: str, backend: Backend, reference: Corpus, found: Mapping[str, Findings], backends: list[Backend]
    ) -> FeatureSet:
        """Score all systems by a backend; returns the reference's features.

        First the features of all sets, then what only these tell to be wrong (pairs, audits, rates that no header told), and
        only then the scores.
        """
        shared = replace(self, engine=self._shared(1 + len(found)))
        real = shared.features(REFERENCE, reference, backend)
        sets = {name: shared.features(name, one.system.corpus, backend) for name, one in found.items()}
        if self.config.rate_hz is None and not self.config.mixed_rates:
            check_rates({name: native_rates(features) for name, features in {**sets, REFERENCE: real}.items()}, backends)
        tasks = {}
        for name, one in found.items():
            try:
                pairs = self._pairs(sets[name], real, one)
                tasks[name] = _task(sets[name], real, backend, one.prompts, pairs, self.config)
            except ManifestError as error:
                raise ManifestError(f"{name}: {error}") from error
            one.take(label, sets[name], self.config)
        brackets = self.brackets(real, backend)
        pairings = frozenset[str | None]().union(*map(pairings_of, tasks.values()))
        for name, one in found.items():
            self.progress(0, None, f"{name}: scores by {label}")
            one.score(label, tasks[name], brackets, self.config, pairings=pairings)
        return real

    def _pairs(self, generated: FeatureSet, reference: FeatureSet, found: Findings) -> IntArray | None:
        """Rows of the reference that the clips belong to, where that is known; if they belong to another set, it is noted,
        as only metrics of pairs mind."""
        if found.prompts is None or REFERENCE_COLUMN not in found.prompts.columns:
            return None
        skipped = {"skipped": generated.skipped, "skipped_references": reference.skipped}
        try:
            return pair_references(generated.clips, reference.clips, found.prompts, **skipped)
        except OtherReferencesError as error:
            if asked_for_pairs(self.config):
                raise
            found.unpaired = str(error)
            return None

    def features(self, name: str, corpus: Corpus, backend: Backend) -> FeatureSet:
        """Features of a set that is called ``name`` in messages; a ``CorpusError`` if too much of it cannot be used."""

        def told(done: int, total: int | None, what: str) -> None:
            self.progress(done, total, f"{name}: {what}")

        policy = AudioPolicy(self.config.rate_hz, self.config.loudness)
        features = extract(corpus, backend, cache=self.cache, policy=policy, engine=self.engine, progress=told)
        check_usable(name, features, self.config.max_skipped)
        return features

    def brackets(self, reference: FeatureSet, backend: Backend) -> Brackets | None:
        """What scores by a backend are read against; None if that is not wanted."""
        if not self.config.brackets:
            return None
        return make_brackets(
            reference, backend, cache=self.cache, seed=self.config.seed, engine=self.engine, progress=self.progress
        )

    def _shared(self, sets: int) -> Engine:
        """With memory for so many sets at once: half of it for all, as a set may take a quarter of what an engine has."""
        return replace(self.engine, memory_bytes=max(MIB, 2 * self.engine.memory_bytes // sets))


def _task(
    generated: FeatureSet,
    reference: FeatureSet,
    backend: Backend,
    prompts: Prompts | None,
    pairs: IntArray | None,
    config: EvaluateConfig,
) -> Task:
    """Pairs where they are known, and captions where they are read, too: all of them, or none."""
    captions = None
    rows = prompts if has_captions(prompts) else None  # a table of references leaves the corpus's own captions alone
    if backend.embed_texts is not None and (rows is not None or any(generated.clips["caption"].to_pylist())):
        captions = pair_captions(generated.clips, rows, skipped=generated.skipped)
    return Task(
        backend,
        generated,
        reference,
        pairs,
        captions,
        resamples=config.resamples,
        seed=config.seed,
        neighbors=config.neighbors,
        splits=config.splits,
    )
