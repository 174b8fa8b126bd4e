"""Scores by class: which score of single clips is shown over how often classes were in training, and of which systems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..corpus import Clip, Corpus
from .addressing import labels_named
from .classes import Classes
from .embeddings import Backend
from .findings import Findings
from .longtail import LongTail, long_tail, validate
from .measuring import FEW_DIMENSIONS
from .pairing import REFERENCE_COLUMN, Prompts
from .request import EvaluateConfig, asked, has_captions, is_captioned

METRICS = ("clap_score", "kl", "fad_per_clip", "fd_per_clip")  # the first that single clips of all systems have is shown


@dataclass(frozen=True)
class Tail:
    """A score over class frequency.

    Attributes
    ----------
    metric, backend
        Of the score: the metric's name, and what the backend is called in tables.
    systems
        By the names of the systems.
    """

    metric: str
    backend: str
    systems: Mapping[str, LongTail]

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        systems = {name: tail.to_json() for name, tail in self.systems.items()}
        return {"metric": self.metric, "backend": self.backend, "systems": systems}


def check_tails(
    classes: Classes,
    config: EvaluateConfig,
    backends: Sequence[Backend],
    corpora: Mapping[str, Corpus],
    prompts: Mapping[str, Prompts | None],
) -> None:
    """Refuse scores by class that cannot be had, before anything is embedded.

    Raises
    ------
    ValueError
        No backend gives a score of single clips, or the clips of a system have no label of the training set's.
    """
    referenced = all(rows is not None and REFERENCE_COLUMN in rows.columns for rows in prompts.values())
    captioned = all(has_captions(prompts[name]) or is_captioned(corpus) for name, corpus in corpora.items())
    if not any(
        (backend.embed_texts is not None and captioned)
        or (backend.classes and referenced)
        or backend.dimension <= FEW_DIMENSIONS
        or asked("fad_per_clip", config, optional=True)
        for backend in backends
    ):
        raise ValueError(
            f"scores by class need one of {', '.join(METRICS)} of each clip, and no backend here gives one: clap needs "
            "captions of all systems, ast and panns need references, and fad_per_clip has to be named in --metrics"
        )
    for name, corpus in corpora.items():
        known = _known_labels(classes, prompts[name])
        clips = (clip for clip in corpus if isinstance(clip, Clip))
        if labels := [_labels(clip.labels, clip.clip_id, clip.path, known) for clip in clips]:
            try:
                validate(np.zeros(len(labels)), labels, classes.frequency, config.edges)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error


def scores_by_class(
    findings: Iterable[Findings], classes: Classes, config: EvaluateConfig
) -> tuple[dict[str, Tail], list[str]]:
    """The long tail of the first score that single clips of all systems have, by each backend that gives it.

    Returns
    -------
    tuple
        Tails by the name of the score, and sentences about those that cannot be given.
    """
    found = list(findings)
    shared = sorted(set.intersection(*(set(one.columns) for one in found)))
    metric = next((metric for metric in METRICS if any(column[0] == metric for column in shared)), None)
    if metric is None:
        reason = "the clips of all systems share none of " + ", ".join(METRICS)
        return {}, [f"There are no scores by class: {reason} (a Frechet distance of one clip needs two frames of it)"]
    tails, warnings = {}, []
    for column in (column for column in shared if column[0] == metric):
        systems = {}
        for one in found:
            try:
                systems[one.name] = _tail(one, column, classes, config)
            except ValueError as error:
                warnings.append(f"{one.name} has no scores by class ({column[1]}): {error}")
        if systems:
            tails["_".join(column)] = Tail(*column, systems)
    return tails, warnings


def _tail(found: Findings, column: tuple[str, str], classes: Classes, config: EvaluateConfig) -> LongTail:
    assert found.clips is not None
    values, known = found.columns[column], _known_labels(classes, found.prompts)
    rows = [row for row in found.clips.clips.select(["clip_id", "path", "labels"]).to_pylist() if row["clip_id"] in values]
    return long_tail(
        [values[row["clip_id"]] for row in rows],
        [_labels(row["labels"], row["clip_id"], row["path"], known) for row in rows],
        classes.frequency,
        edges=config.edges,
        resamples=config.resamples,
        seed=config.seed,
    )


def _known_labels(classes: Classes, prompts: Prompts | None) -> dict[str, tuple[str, ...]]:
    """Labels that are not in the corpus itself, by ids and paths of clips."""
    return {**classes.labels, **labels_named(prompts)}


def _labels(own: Sequence[str], clip_id: str, path: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Of a clip: its corpus's own, or else those of the prompts."""
    return tuple(own or known.get(clip_id) or known.get(path, ()))
