"""Corridor 3: how good is generated audio, beside real audio?

Data flow: corpora -> features by each backend (cached by content) -> scores with intervals, each with its brackets; what an
audit says of the same clips beside them; scores by how often a class was in training.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..corpus import Corpus
from ..corpus.manifest import MANIFEST_SUFFIXES
from ..engine import HERE, Engine
from ..errors import ManifestError
from ..folders import Progress, no_progress, package_versions
from .brackets import Brackets, make_brackets
from .classes import Classes
from .embeddings import Backend, load_backend
from .features import AudioPolicy, FeatureSet, default_cache, extract
from .longtail import LongTail, long_tail
from .measuring import FAMILIES, Family, Task, measure, names, per_clip
from .memorization import replication_columns
from .pairing import REFERENCE_COLUMN, Prompts, pair_captions, pair_references, read_prompts
from .request import EvaluateConfig, System, asked, check_metrics, check_request, has_captions, labeled
from .scores import Score, SystemResult
from .sets import REFERENCE, check_rates, check_usable, reference_warnings, set_facts, set_warnings

DoubleArray = npt.NDArray[np.float64]

__all__ = ["EvaluateConfig", "Evaluation", "System", "evaluate", "own_prompts"]

KIND = "evaluation"
TAIL_METRICS = ("clap_score", "kl", "fad_per_clip", "fd_per_clip")  # the first there is, is shown over class frequency


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes
    ----------
    results
        Scores, facts and warnings of each system, in the order given.
    tails
        By metric: of each system by name, its scores over class frequency; empty if classes were not given.
    card
        What all of it was computed from, as JSON can hold it.
    clips
        One row a generated clip and system: ``system, clip_id, path, caption, labels, duration_s, flags``, and a column for
        each score that single clips have.
    """

    results: tuple[SystemResult, ...]
    tails: Mapping[str, Mapping[str, LongTail]]
    card: dict[str, Any]
    clips: pa.Table


@dataclass(frozen=True)
class _Bench:
    """Where and how features are computed."""

    config: EvaluateConfig
    cache: Path
    engine: Engine
    progress: Progress

    def features(self, name: str, corpus: Corpus, backend: Backend) -> FeatureSet:
        def told(done: int, total: int | None, what: str) -> None:
            self.progress(done, total, f"{name}: {what}")

        policy = AudioPolicy(self.config.rate_hz, self.config.loudness)
        features = extract(corpus, backend, cache=self.cache, policy=policy, engine=self.engine, progress=told)
        check_usable(name, features, self.config.max_skipped)
        return features

    def brackets(self, reference: FeatureSet, backend: Backend) -> Brackets | None:
        if not self.config.brackets:
            return None
        return make_brackets(
            reference, backend, cache=self.cache, seed=self.config.seed, engine=self.engine, progress=self.progress
        )


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
        There is no system, a metric was asked for that no backend can compute, or sets have rates that cannot be compared.
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
    own = {name: prompts or own_prompts(system.corpus) for name, system in systems.items()}
    check_metrics(config, list(backends.values()), systems, own)
    if config.rate_hz is None and not config.mixed_rates:
        check_rates(
            {**{name: system.corpus for name, system in systems.items()}, REFERENCE: reference}, list(backends.values())
        )
    bench = _Bench(config, cache or default_cache(), engine, progress)
    found = {name: _Found() for name in systems}
    about: dict[str, Any] = {}
    for label, backend in backends.items():
        real = bench.features(REFERENCE, reference, backend)
        brackets = bench.brackets(real, backend)
        about[label] = _backend_facts(backend, real)
        for name, system in systems.items():
            generated = bench.features(name, system.corpus, backend)
            try:
                task = _task(generated, real, backend, own[name], config)
            except ManifestError as error:
                raise ManifestError(f"{name}: {error}") from error
            progress(0, None, f"{name}: scores by {label}")
            found[name].add(label, task, brackets, config)
    results = tuple(_result(name, found[name], systems[name], config) for name in systems)
    return Evaluation(
        results,
        {} if classes is None else _tails(found, classes, config),
        _card(config, about, found, prompts, classes, reference, started),
        pa.concat_tables([found[name].table(name) for name in systems], promote_options="default"),
    )


# --- one system -------------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """What is known of a system so far."""

    scores: dict[str, Score] = field(default_factory=dict)
    columns: dict[str, dict[str, float]] = field(default_factory=dict)  # by score, of each clip by its id
    frames: dict[str, int] = field(default_factory=dict)  # by backend
    task: Task | None = None  # by the first backend: clips and reference are the same for all

    def add(self, label: str, task: Task, brackets: Brackets | None, config: EvaluateConfig) -> None:
        """Score by another backend."""
        captions = _captions_of(task.reference)
        for family in FAMILIES:
            wanted = [name for name in names(family, task.backend) if asked(name, config, optional=family.optional)]
            if wanted and family.lacking(task.backend) is None and _paired(family, task):
                scores = measure(task, family, brackets, captions, label)
                self.scores.update({f"{name}_{label}": scores[name] for name in wanted if name in scores})
        for metric, values in per_clip(task, distances=asked("fad_per_clip", config, optional=True)).items():
            self.columns[f"{metric}_{label}"] = values
        self.frames[label] = int(task.generated.frame_counts.sum())
        self.task = self.task or task

    @property
    def clips(self) -> pa.Table:
        """The clips of the system."""
        assert self.task is not None
        return self.task.generated.clips

    def table(self, name: str) -> pa.Table:
        """The system's rows of ``Evaluation.clips``."""
        clips = self.clips.select(["clip_id", "path", "caption", "labels", "duration_s", "flags"])
        ids = clips["clip_id"].to_pylist()
        for column, values in self.columns.items():
            clips = clips.append_column(column, pa.array([values.get(clip_id) for clip_id in ids], pa.float64()))
        return clips.add_column(0, "system", pa.array([name] * len(ids), pa.string()))


def _task(
    generated: FeatureSet, reference: FeatureSet, backend: Backend, prompts: Prompts | None, config: EvaluateConfig
) -> Task:
    """Pairs where they are known, and captions where they are read, too: all of them, or none."""
    pairs = captions = None
    if prompts is not None and REFERENCE_COLUMN in prompts.columns:
        pairs = pair_references(
            generated.clips,
            reference.clips,
            prompts,
            skipped=generated.skipped,
            skipped_references=reference.skipped,
        )
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


def own_prompts(corpus: Corpus) -> Prompts | None:
    """What a corpus that is a single manifest says of its own clips; None if it is none."""
    if len(corpus.sources) != 1 or Path(corpus.sources[0]).suffix.lower() not in MANIFEST_SUFFIXES:
        return None
    return read_prompts(corpus.sources[0], audio_root=corpus.audio_root, encoding=corpus.encoding)


def _captions_of(features: FeatureSet) -> list[str] | None:
    """Captions of all clips, if all have one."""
    captions = features.clips["caption"].to_pylist()
    return captions if captions and all(captions) else None


def _paired(family: Family, task: Task) -> bool:
    return {None: True, "reference": task.pairs is not None, "captions": task.captions is not None}[family.pairing]


def _result(name: str, found: _Found, system: System, config: EvaluateConfig) -> SystemResult:
    assert found.task is not None
    scores = dict(found.scores)
    if system.audit is not None:
        scores.update(replication_columns(system.audit, found.clips, resamples=config.resamples, seed=config.seed))
    facts = {
        "source": list(system.corpus.sources),
        **set_facts(found.task.generated),
        "frames": found.frames,
        **({} if system.audit is None else {"audit": str(system.audit)}),
    }
    return SystemResult(name, scores, facts, tuple(set_warnings(found.task.generated, found.task.reference)))


# --- the card --------------------------------------------------------------------------------------------------------


def _backend_facts(backend: Backend, reference: FeatureSet) -> dict[str, Any]:
    return {
        "spec": str(backend.spec),
        "sample_rate_hz": backend.sample_rate_hz,
        "frame": backend.frame,
        "dimension": backend.dimension,
        "classes": backend.classes,
        "reference_frames": int(reference.frame_counts.sum()),
    }


def _card(
    config: EvaluateConfig,
    backends: Mapping[str, Any],
    found: Mapping[str, _Found],
    prompts: Prompts | None,
    classes: Classes | None,
    reference: Corpus,
    started: float,
) -> dict[str, Any]:
    task = next(iter(found.values())).task
    assert task is not None
    return {
        "kind": KIND,
        "config": dataclasses.asdict(config),
        "channels": "mean",
        "backends": dict(backends),
        "reference": {"source": list(reference.sources), **set_facts(task.reference)},
        "prompts": None if prompts is None else prompts.source,
        "warnings": [*reference_warnings(task.reference), *(() if classes is None else classes.warnings)],
        "versions": package_versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.time() - started, 1),
    }


# --- scores by class --------------------------------------------------------------------------------------------------


def _tails(found: Mapping[str, _Found], classes: Classes, config: EvaluateConfig) -> dict[str, dict[str, LongTail]]:
    """Of the first score that single clips of all systems have, by each backend that gives it: its long tail."""
    shared = set.intersection(*(set(one.columns) for one in found.values()))
    kind = next((kind for kind in TAIL_METRICS if any(column.startswith(f"{kind}_") for column in shared)), None)
    if kind is None:
        raise ValueError(f"scores by class need one of {', '.join(TAIL_METRICS)} of each clip, and no backend here gives one")
    tails: dict[str, dict[str, LongTail]] = {}
    for column in sorted(name for name in shared if name.startswith(f"{kind}_")):
        tails[column] = {}
        for name, one in found.items():
            rows = one.clips.select(["clip_id", "path", "labels"]).to_pylist()
            rows = [row for row in rows if row["clip_id"] in one.columns[column]]
            try:
                tails[column][name] = long_tail(
                    [one.columns[column][row["clip_id"]] for row in rows],
                    [_labels(row, classes) for row in rows],
                    classes.frequency,
                    edges=config.edges,
                    resamples=config.resamples,
                    seed=config.seed,
                )
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return tails


def _labels(row: Mapping[str, Any], classes: Classes) -> tuple[str, ...]:
    """Of a clip: its corpus's own, or else those of the prompts."""
    return tuple(row["labels"] or classes.labels.get(row["clip_id"]) or classes.labels.get(row["path"], ()))
