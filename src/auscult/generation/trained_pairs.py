"""What a model is known to have been trained beside, and whether pairs may be given to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .datastore import Datastore
from .pipelines import INDEX, OURS, LocatedPipeline

WITHOUT: dict[str, Any] = {"counts": []}


def beside(counts: Sequence[int], store: Datastore) -> dict[str, Any]:
    """What the configuration of a pipeline says of its training beside pairs of a datastore.

    Parameters
    ----------
    counts
        Numbers of pairs that the samples of the training drew from.
    store
        The datastore.

    Returns
    -------
    dict
        ``counts``; and of the datastore ``key`` and ``encoders``, by which pairs were found.
    """
    return {"counts": list(counts), "key": store.card["config"]["key"], "encoders": dict(store.card["encoders"])}


def trained_beside(located: LocatedPipeline) -> dict[str, Any] | None:
    """What :func:`beside` wrote; ``WITHOUT`` of a model that was trained without pairs, None where it is not known."""
    known = json.loads((located.folder / INDEX).read_text("utf-8")).get("retrieval")
    return known if isinstance(known, dict) and "counts" in known else None


def check_pairs(
    located: LocatedPipeline, datastore: str | Path | None, k: int, *, retrieval_scale: float | None = None
) -> list[str]:
    """See that a model may be given k pairs of a datastore, or none.

    Returns
    -------
    list of str
        What a reader of the clips should know.

    Raises
    ------
    ValueError
        The model was trained without pairs, or is of a class that takes none; or a scale of pairs is given and no pairs are.
    """
    if located.kind != OURS:
        if datastore is not None:
            raise ValueError(f"{located.name}: is a {located.kind}, which takes no retrieved pairs; leave out --datastore")
        if retrieval_scale is not None:
            raise ValueError(
                f"{located.name}: is a {located.kind}, which takes no retrieved pairs; leave out --retrieval-scale"
            )
        return []
    if retrieval_scale is not None and (datastore is None or k == 0):
        raise ValueError(
            "--retrieval-scale has no effect without pairs; give --datastore STORE and --k of 1 or more, or leave it out"
        )
    known = trained_beside(located)
    trained = known is not None and any(known["counts"])
    if datastore is None or (k == 0 and trained):
        without = "the clips are made without pairs (k = 0), though the model was trained beside retrieved pairs"
        return [f"{without}; give --datastore STORE and --k" if datastore is None else without] if trained else []
    if known is None:
        return [
            "the model's folder does not say whether it was trained beside retrieved pairs; if it was not, pairs change the "
            "sound and mean nothing"
        ]
    if not trained:
        raise ValueError(
            f"{located.name}: was trained without retrieved pairs, which would change the sound and mean nothing; leave out "
            "--datastore, or train with [retrieval] datastore"
        )
    return _differences(known, Datastore.load(datastore), k)


def _differences(known: dict[str, Any], store: Datastore, k: int) -> list[str]:
    notes = []
    if k > max(known["counts"]):
        notes.append(f"k = {k} is more pairs than the model was trained beside, {max(known['counts'])} at most")
    here = beside((), store)
    if any(here[name] != known.get(name) for name in ("key", "encoders")):
        notes.append(
            f"the datastore finds pairs by other keys ({_keys(here)}) than that of the training ({_keys(known)}); what the "
            "model reads of a pair is the same, but the pairs may be less or more alike to the prompt"
        )
    return notes


def _keys(known: dict[str, Any]) -> str:
    encoders = known.get("encoders") or {}
    return f"{known.get('key')} by {encoders.get('text') or encoders.get('audio')}"
