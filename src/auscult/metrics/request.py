"""What is asked of an evaluation: settings and systems, and whether the backends can answer."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..audit import Audit
from ..corpus import Clip, Corpus
from ..errors import CorpusError
from ..inputs import is_store
from .embeddings import Backend
from .longtail import EDGES, check_edges
from .measuring import FAMILIES
from .pairing import REFERENCE_COLUMN, Prompts


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation.

    Attributes
    ----------
    backends
        What features are computed from: ``NAME`` or ``NAME:WEIGHTS``, see :func:`~auscult.metrics.embeddings.load_backend`.
    metrics
        Names as in the glossary (``fad`` and ``fd`` are one); none: all that the backends can compute from what is given.
    rate_hz
        All audio is brought to this rate first, so that no set wins by its band. None: as it is, which is refused where
        sets have unequal rates that matter to a backend.
    mixed_rates
        Take sets of unequal rates as they are.
    loudness
        ``as_is``, or ``peak``: each clip's largest sample is brought to -1 dBFS.
    neighbors, splits
        Of precision, recall, density and coverage; of the inception score.
    resamples, seed
        Of the intervals, and of every draw.
    brackets
        Whether each score is given beside those of real audio, noise, silence and shuffled pairs.
    edges
        Of the bins of training frequency, for scores by class.
    max_skipped
        How many clips of a set may be unusable; more refuse the evaluation.
    """

    backends: tuple[str, ...] = ("logmel",)
    metrics: tuple[str, ...] = ()
    rate_hz: int | None = None
    mixed_rates: bool = False
    loudness: Literal["as_is", "peak"] = "as_is"
    neighbors: int = 5
    splits: int = 10
    resamples: int = 200
    seed: int = 0
    brackets: bool = True
    edges: tuple[int, ...] = EDGES
    max_skipped: int = 0

    def __post_init__(self) -> None:
        if not self.backends:
            raise ValueError("backends should name at least one, such as logmel")
        if repeated := [name for name, times in Counter(self.backends).items() if times > 1]:
            raise ValueError(f"backend {repeated[0]!r} was given twice")
        known = [metric for family in FAMILIES for metric in family.metrics]
        if unknown := [metric for metric in self.metrics if metric not in known]:
            close = difflib.get_close_matches(unknown[0], known)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(known)}"
            raise ValueError(f"unknown metric {unknown[0]!r}; {hint}")
        for name, least in (("neighbors", 1), ("splits", 1), ("resamples", 0), ("seed", 0), ("max_skipped", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} should be at least {least}, got {getattr(self, name)}")
        check_edges(self.edges)
        if self.rate_hz is not None and not 1000 <= self.rate_hz <= 768_000:
            raise ValueError(f"rate_hz should be a sample rate from 1,000 to 768,000 Hz, got {self.rate_hz}")


@dataclass(frozen=True)
class System:
    """What is evaluated under a name: generated clips, and the audit of these very clips if there is one."""

    corpus: Corpus
    audit: Path | None = None


def asked(metric: str, config: EvaluateConfig, *, optional: bool = False) -> bool:
    """Whether a metric is among those asked for: all but the optional ones, or the named; ``fad`` and ``fd`` are one name."""
    same = metric.replace("fad", "fd", 1)
    return not (config.metrics or optional) or same in {wanted.replace("fad", "fd", 1) for wanted in config.metrics}


def asked_for_pairs(config: EvaluateConfig) -> bool:
    """Whether a metric that compares a clip with its own reference was asked for by name."""
    return any(metric in family.metrics for family in FAMILIES if family.pairing == "reference" for metric in config.metrics)


def check_request(systems: Mapping[str, System], reference: Corpus) -> None:
    """Refuse what no hour of embedding would make right.

    Raises
    ------
    ValueError
        There is no system.
    CorpusError
        A source holds descriptors instead of audio.
    StoreError
        What should be an audit is none.
    """
    if not systems:
        raise ValueError("expected at least one system to evaluate, got none")
    for corpus in (reference, *(system.corpus for system in systems.values())):
        for source in corpus.sources:
            if is_store(source):
                raise CorpusError(
                    f"{source}: holds descriptors, not audio, and scores are computed from audio; give the folder or manifest "
                    "that it was made of"
                )
    for system in systems.values():
        if system.audit is not None:
            Audit.open(system.audit)


def check_metrics(
    config: EvaluateConfig,
    backends: Sequence[Backend],
    systems: Mapping[str, System],
    prompts: Mapping[str, Prompts | None],
) -> None:
    """Refuse metrics that were asked for and cannot be computed, before anything is embedded.

    Raises
    ------
    ValueError
        Names the metric, and what it needs.
    """
    for wanted in config.metrics:
        family = next(family for family in FAMILIES if wanted in family.metrics)
        lacking = [family.lacking(backend) for backend in backends]
        if all(lacking):
            raise ValueError(f"{wanted} cannot be computed: {'; '.join(filter(None, lacking))}")
        for name, rows in prompts.items():
            if family.pairing == "captions" and not has_captions(rows) and not is_captioned(systems[name].corpus):
                raise ValueError(
                    f"{wanted} compares clips with their captions, and nothing says those of {name}: give --prompts a table "
                    "with the columns clip_id and caption"
                )
            if family.pairing == "reference" and (rows is None or REFERENCE_COLUMN not in rows.columns):
                raise ValueError(
                    f"{wanted} compares pairs, and nothing says which clip of the reference belongs to which clip of "
                    f"{name}: give --prompts a table with the columns clip_id and {REFERENCE_COLUMN}"
                )


def has_captions(prompts: Prompts | None) -> bool:
    """Whether a table of prompts has any caption."""
    return prompts is not None and any(row.caption for row in prompts.rows)


def is_captioned(corpus: Corpus) -> bool:
    """Whether any clip of a corpus has a caption."""
    return any(isinstance(item, Clip) and item.caption for item in corpus)


def labeled(backends: Sequence[Backend]) -> dict[str, Backend]:
    """Backends by a name of their own: that of the spec, and where several share it, their weights."""
    shared = Counter(backend.spec.name for backend in backends)
    labeled: dict[str, Backend] = {}
    for backend in backends:
        label = name = backend.spec.name
        if shared[name] > 1:
            weights = str(dict(backend.spec.parameters).get("weights", "")).rstrip("/").rpartition("/")[2]
            label = f"{name}:{weights}"
        while label in labeled:
            label += "'"
        labeled[label] = backend
    return labeled
