"""The card of an evaluation: what all of it was computed from, as JSON can hold it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..corpus import Corpus
from ..folders import package_versions
from .embeddings import Backend
from .features import FeatureSet
from .findings import backend_counts
from .pairing import Prompts, rows_with
from .request import EvaluateConfig
from .sets import SetClips, reference_warnings, set_facts

KIND = "evaluation"


def backend_facts(backend: Backend, reference: FeatureSet) -> dict[str, Any]:
    """What a card says of a backend, and of how much of the reference it used."""
    return {
        "spec": str(backend.spec),
        "sample_rate_hz": backend.sample_rate_hz,
        "frame": backend.frame,
        "dimension": backend.dimension,
        "classes": backend.classes,
        **{f"reference_{what}": count for what, count in backend_counts(reference).items()},
    }


def evaluation_card(
    config: EvaluateConfig,
    backends: Mapping[str, Mapping[str, Any]],
    source: Corpus,
    reference: SetClips,
    *,
    prompts: Prompts | None,
    warnings: Sequence[str],
    started: float,
) -> dict[str, Any]:
    """The card.

    Parameters
    ----------
    config
        Settings.
    backends
        :func:`backend_facts` by what they are called in tables.
    source, reference
        Of the reference: where it lies, and its clips that any backend could use.
    prompts
        Table that was given for all systems; the card counts its rows with captions, references and labels.
    warnings
        About all systems; those about the reference are added.
    started
        When the evaluation began, in seconds since 1970.
    """
    return {
        "kind": KIND,
        "config": dataclasses.asdict(config),
        "channels": "mean",
        "backends": dict(backends),
        "reference": {"source": list(source.sources), **set_facts(reference)},
        "prompts": None if prompts is None else {"source": prompts.source, **rows_with(prompts)},
        "warnings": [*reference_warnings(reference), *warnings],
        "versions": package_versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.time() - started, 1),
    }
