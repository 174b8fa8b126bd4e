"""Corridor 1: does this set of generated clips replicate its training clips?

Data flow: three corpora -> three stores of one descriptor -> similarities, less the background bias -> top matches of
each generated clip -> threshold -> a folder of tables, a card and a report.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .audit_config import AuditConfig
from .comparison import Comparison, compare, with_identical
from .detection import detect
from .engine import HERE, Engine
from .folders import Progress, building, file_digests, no_progress, read_card, write_card, write_table
from .inputs import (
    DEFAULT_DESCRIPTOR,
    Source,
    choose_descriptor,
    describe_sources,
    input_facts,
    input_warnings,
    scratch,
    skipped_table,
    task_sources,
)
from .levels import load_levels
from .storage import local_path
from .store import DescriptorStore

__all__ = ["Audit", "AuditConfig", "audit"]

KIND = "audit"
MATCHES, QUERIES, TRAINING, NULL, SKIPPED = (
    f"{name}.parquet" for name in ("matches", "queries", "training", "null", "skipped")
)


@dataclass(frozen=True)
class Audit:
    """A finished audit on disk: ``path`` of its folder and its ``card``."""

    path: Path
    card: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Audit:
        """Open a finished audit; a ``StoreError`` says if there is none."""
        return cls(Path(path), read_card(Path(path), KIND))

    def matches(self) -> pa.Table:
        """The best matches of each generated clip, best first; columns as in the design."""
        return pq.read_table(self.path / MATCHES)

    def queries(self) -> pa.Table:
        """One row for each generated clip."""
        return pq.read_table(self.path / QUERIES)

    def training(self) -> pa.Table:
        """Top-1 score of training clips against each other (``reference_id, nearest_id, score``)."""
        return pq.read_table(self.path / TRAINING)

    def null(self) -> pa.Table:
        """The scores that p-values come from (``clip_id, nearest_id, score``)."""
        return pq.read_table(self.path / NULL)


def audit(
    generated: Source,
    references: Source,
    background: Source | None = None,
    *,
    null: Source | None = None,
    output: str | Path,
    config: AuditConfig | None = None,
    engine: Engine = HERE,
    overwrite: bool = False,
    progress: Progress = no_progress,
    finish: Callable[[Path], object] | None = None,
) -> Audit:
    """Audit generated clips against training clips, and write the result as a folder.

    Parameters
    ----------
    generated, references
        Corpora, or stores of one descriptor.
    background
        Unrelated clips for the score normalization. Without it a sample of the references serves, which is weaker: a
        clip with many near-copies in the training set then looks ordinary.
    null
        Clips known not to be in the training set, for p-values. Without it the training clips' own scores serve.
    output
        Folder of the result. A run that was stopped is continued.
    config
        Settings.
    engine
        Where the work is done.
    overwrite
        Replace a finished audit in ``output``.
    progress
        Called with what is being done.
    finish
        Called with the folder before it gets its final name (the command line writes the report there).

    Raises
    ------
    CorpusError
        A corpus is empty or cannot be read.
    DescriptorMismatchError
        The stores were made with unequal descriptors.
    OutputFolderError
        The output folder holds something else.
    """
    config = config or AuditConfig()
    started = time.time()
    sources = {"generated": generated, "references": references, "background": background, "null": null}
    present = {role: source for role, source in sources.items() if source is not None}
    name = config.descriptor or ("mel" if config.duration_s is not None else None)
    descriptor = choose_descriptor(present, name, config.duration_s)
    if descriptor.spec.name == "contrast" and config.search != "exact":
        raise ValueError(f"search = {config.search!r} is for vectors (mel, clap); contrast compares every pair of clips")
    task = {"config": dataclasses.asdict(config), "spec": str(descriptor.spec), "sources": task_sources(present)}
    with building(local_path(output), KIND, task=task, overwrite=overwrite) as folder:
        stores = describe_sources(present, folder / "stores", descriptor, engine=engine, progress=progress)
        with scratch(engine, folder, stores) as with_scratch:
            comparison = _compare(stores, config, with_scratch, progress)
        comparison = with_identical(comparison, stores["generated"].clips(), stores["references"].clips())
        write_table(folder / MATCHES, comparison.matches)
        write_table(folder / QUERIES, comparison.queries)
        write_table(folder / TRAINING, comparison.training)
        write_table(folder / NULL, comparison.null)
        write_table(folder / SKIPPED, skipped_table(stores))
        flagged = int(np.count_nonzero(comparison.queries["flagged"].to_numpy(zero_copy_only=False)))
        write_card(
            folder,
            KIND,
            {
                "config": dataclasses.asdict(config),
                "descriptor": str(descriptor.spec),
                "inputs": {role: input_facts(store) for role, store in stores.items()},
                "counts": {
                    "generated": comparison.queries.num_rows,
                    "compared": comparison.queries.num_rows - comparison.queries["score"].null_count,
                    "flagged": flagged,
                    "skipped": sum(store.card["counts"]["skipped"] for store in stores.values()),
                },
                "threshold": dataclasses.asdict(comparison.threshold),
                "calibration": comparison.calibration,
                "recall": None if comparison.recall is None else comparison.recall.to_json(),
                "files": file_digests(folder, (MATCHES, QUERIES, TRAINING, NULL, SKIPPED)),
                "warnings": [*input_warnings(stores), *_chosen_by_store(present, name), *comparison.warnings],
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.time() - started, 1),
            },
        )
        if finish is not None:
            finish(folder)
    return Audit.open(output)


def _chosen_by_store(sources: dict[str, Source], name: str | None) -> list[str]:
    """A note if no descriptor was asked for, and a store among the inputs is why it is not the usual one."""
    held = {role: source.spec.name for role, source in sources.items() if isinstance(source, DescriptorStore)}
    if name is not None or not held or DEFAULT_DESCRIPTOR in held.values():
        return []
    role, descriptor = next(iter(held.items()))
    return [f"Compared by {descriptor}, which the store given as {role} holds, and not by {DEFAULT_DESCRIPTOR}, the usual one."]


def _compare(stores: dict[str, DescriptorStore], config: AuditConfig, engine: Engine, progress: Progress) -> Comparison:
    """By the two-stage detector or by vectors, as the stores' descriptor wants it."""
    roles = ("generated", "references", "background", "null")
    spec = stores["generated"].spec
    if spec.name == "contrast":
        levels = [load_levels(stores[role], engine) if role in stores else None for role in roles]
        generated, references, background, null = levels
        assert generated is not None
        assert references is not None
        return detect(generated, references, background, null, config=config, spec=str(spec), engine=engine, progress=progress)
    vectors = {role: store.load(engine) for role, store in stores.items()}
    return compare(
        vectors["generated"],
        vectors["references"],
        vectors.get("background"),
        vectors.get("null"),
        config=config,
        engine=engine,
        progress=progress,
    )
