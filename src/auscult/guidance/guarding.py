"""Corridor: prompts in, a folder of clips out of which the auditor flags none.

Data flow: references -> index for the sampler, stores for the auditor -> clips under guidance -> audit by another descriptor ->
what is flagged is made again, guided more strongly or from another seed -> what stays flagged is withheld -> the folder that
``generate`` writes, with a trace of the guidance and the audit of exactly these clips beside it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from ..engine import HERE, Engine
from ..errors import StoreError
from ..folders import Progress, building, no_progress, write_table, write_text
from ..generation.clips import AUDIO, MANIFEST, Row
from ..generation.generating import GenerateConfig, Generation
from ..generation.order import BATCH_SIZE, KIND, Order, finished, take_order, write_generation
from ..generation.prompts import PlannedClip
from ..inputs import Source, clips_digest, shortened, task_sources
from ..report import write_report
from ..store import DescriptorStore
from .amg import AmgConfig
from .guard_config import GuardConfig, checked_strengths
from .guided import TRACES, Guided, merged_traces
from .protecting import INDEX, check_enough, described_for_audits, guide_of
from .rounds import ATTEMPTS, CHECKS, Auditor, Rounds, make_and_audit
from .terms import GuidanceTerm

DESCRIBED = "described"
BLOWN_UP_DB = 20.0  # turned down by more: ten times full scale is no sound that the model makes by itself
WITHHELD, TRACE, FINAL = "withheld.jsonl", "trace.parquet", "audit"


def generate_guarded(
    model: str,
    prompts: str | Path,
    output: str | Path,
    references: Source,
    *,
    guard: GuardConfig | None = None,
    amg: AmgConfig | Mapping[str, Any] | None = None,
    terms: Sequence[GuidanceTerm] = (),
    background: Source | None = None,
    null: Source | None = None,
    config: GenerateConfig | None = None,
    device: str = "cpu",
    workers: int = 1,
    batch_size: int = BATCH_SIZE,
    datastore: str | Path | None = None,
    offline: bool = False,
    encoding: str = "utf-8",
    engine: Engine = HERE,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Generation:
    """Generate audio of which the audit flags nothing; given again after a stop, continue.

    All clips are made under anti-memorization guidance and audited against the references by a descriptor that guidance did not
    use. Flagged ones are made again with stronger guidance, from the second time on from another seed; what stays flagged is
    withheld and listed. What is delivered is audited as a whole, until nothing in it is flagged.

    Parameters
    ----------
    model, prompts, output, config, device, workers, batch_size, datastore, offline, encoding, overwrite, progress
        As of :func:`~auscult.generation.generating.generate`.
    references
        What must not be replicated: clips, with captions for the caption deduplication; or a store, of the auditing or the
        guiding descriptor, whose clips are still where they were.
    guard
        Settings.
    amg
        Settings of guidance. As a mapping, thresholds that are left out are measured on the references, see
        :func:`~auscult.guidance.thresholds.measured_thresholds`, and deduplication is 0 where no reference has a caption.
    terms
        Further terms of guidance, picklable.
    background, null
        Of the audits, see :func:`~auscult.audit.audit`.
    engine
        Where the audits' work is done.

    Returns
    -------
    Generation
        Its card's ``guard`` says how many clips were withheld and made again, and how often guidance fired. Beside the clips
        lie ``withheld.jsonl``, ``trace.parquet`` and ``audit``.

    Raises
    ------
    ValueError
        Settings that contradict each other, too few references for the audit or the thresholds, or no captions.
    CorpusError
        There is no sound among the references.
    StoreError
        The delivered files were changed before they were audited.
    """
    guard = guard or GuardConfig()
    order = take_order(
        model,
        prompts,
        output,
        config=config,
        device=device,
        workers=workers,
        batch_size=batch_size,
        datastore=datastore,
        offline=offline,
        encoding=encoding,
    )
    sources = {role: source for role, source in _roles(references, background, null) if source is not None}
    strengths = checked_strengths(amg, order.config)
    heard = {f"clips of the {role}": clips_digest(source) for role, source in sources.items()}
    order = dataclasses.replace(order, task={**order.task, "guard": _task(guard, strengths, terms, sources), **heard})
    done = None if overwrite else finished(order)
    if done is None:
        started = time.time()
        check_enough(sources, guard, strengths)
        with building(order.output, KIND, task=order.task, overwrite=overwrite) as partial, _nothing_without_clips(partial):
            described = described_for_audits(sources, partial / DESCRIBED, guard, engine, progress)
            guide, facts = guide_of(order, references, guard, strengths, terms, partial, progress)
            auditor = _auditor(described, guard, engine)
            rounds = make_and_audit(
                partial,
                order.plan(),
                lambda attempt, clips: _made(order, guide, guard, partial, attempt, clips, progress),
                auditor,
                attempts=guard.attempts,
                progress=progress,
            )
            _write(partial, order, rounds, guard, facts, started)
        done = Generation.open(order.output)
    _audit_finally(done, sources, guard, engine, progress)
    return Generation.open(order.output)


# --- what it is given -------------------------------------------------------------------------------------


def _roles(references: Source, background: Source | None, null: Source | None) -> list[tuple[str, Source | None]]:
    return [("references", references), ("background", background), ("null", null)]


def _task(
    guard: GuardConfig, strengths: Mapping[str, Any], terms: Sequence[GuidanceTerm], sources: dict[str, Source]
) -> dict[str, Any]:
    task = {
        **dataclasses.asdict(guard),
        "amg": dict(strengths),
        "terms": [repr(term) for term in terms],
        "sources": task_sources(sources),
    }
    return dict(json.loads(json.dumps(task, default=repr)))


def _auditor(stores: Mapping[str, Source], guard: GuardConfig, engine: Engine) -> Auditor:
    return Auditor(stores["references"], stores.get("background"), stores.get("null"), guard.of_audit(), guard.level, engine)


@contextmanager
def _nothing_without_clips(partial: Path) -> Iterator[None]:
    """An error before the first clip leaves no descriptions either: with other references they would be of no use."""
    try:
        yield
    except Exception:
        if not any(partial.glob(f"{ATTEMPTS}/*/{AUDIO}/*.flac")):
            for name in (DESCRIBED, INDEX):
                shutil.rmtree(partial / name, ignore_errors=True)
        raise


# --- what is made and written -----------------------------------------------------------------------------------------


def _made(
    order: Order,
    guide: Guided,
    guard: GuardConfig,
    partial: Path,
    attempt: int,
    clips: Sequence[PlannedClip],
    progress: Progress,
) -> Mapping[str, Row]:
    folder = partial / ATTEMPTS / str(attempt)
    folder.mkdir(parents=True, exist_ok=True)

    def shown(done: int, total: int | None, what: str) -> None:
        progress(done, total, f"attempt {attempt + 1}: {what}")

    return order.make(folder, clips, shown, guide.again(attempt, guard.strengthen, folder / TRACES))


def _write(partial: Path, order: Order, rounds: Rounds, guard: GuardConfig, facts: Row, started: float) -> None:
    """Everything but the last audit; what only the run needed goes."""
    attempts = [partial / ATTEMPTS / str(number) for number in range(len(rounds.made))]
    write_table(partial / TRACE, merged_traces([folder / TRACES for folder in attempts]))
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rounds.withheld]
    write_text(partial / WITHHELD, "".join(lines))
    notes = [*facts.pop("notes"), *_notes(rounds, guard)]
    guarded = {**_counts(rounds), **facts, "config": dataclasses.asdict(guard)}
    write_generation(partial, order, rounds.delivered, started, files=(WITHHELD, TRACE), warnings=notes, guard=guarded)
    for name in (ATTEMPTS, CHECKS, INDEX):
        shutil.rmtree(partial / name, ignore_errors=True)


def _notes(rounds: Rounds, guard: GuardConfig) -> list[str]:
    """What a reader of the delivered clips should know."""
    notes = []
    if rounds.withheld:
        clips = "1 clip is" if len(rounds.withheld) == 1 else f"{len(rounds.withheld):,} clips are"
        notes.append(f"{clips} withheld, since the audit flagged all that was made in their place; {WITHHELD} lists them")
    if guard.level is not None and rounds.null_scores is not None and rounds.null_scores < 1 / guard.level - 1:
        notes.append(
            f"the audits had {rounds.null_scores:,} null scores, too few for p-values of {guard.level:g}: only clips that "
            f"score above all of them were made again; give {math.ceil(1 / guard.level) - 1:,} or more clips that are no "
            "training clips as --guard-null"
        )
    blown_up = [row["clip_id"] for row in rounds.delivered if row["fired_steps"] and row["gain_db"] < -BLOWN_UP_DB]
    if blown_up:
        notes.append(
            f"guidance blew up {shortened(blown_up)}, turned down by more than {BLOWN_UP_DB:g} dB: hardly a sound that the "
            "model makes by itself; generate again with a lower --amg.c3 (dissimilarity)"
        )
    return notes


def _counts(rounds: Rounds) -> Row:
    """How many clips were made, made again and withheld, and what guidance did at first."""
    first = rounds.made[0]
    fired = [row for row in first if row["fired_steps"]]
    delivered = [row for row in rounds.delivered if row.get("similarity_last") is not None]

    def middle(rows: Sequence[Row], name: str) -> float | None:
        values = [row[name] for row in rows if row.get(name) is not None]
        return round(median(values), 6) if values else None

    return {
        "counts": {
            "asked_for": len(first),
            "delivered": len(rounds.delivered),
            "withheld": len(rounds.withheld),
            "made_again": len(rounds.made[1]) if len(rounds.made) > 1 else 0,
            "made": sum(map(len, rounds.made)),
            "fired": len(fired),
            "audits": rounds.audits,
        },
        "similarity": {
            "when_it_fired": middle(fired, "similarity_first"),
            "at_the_end_where_it_fired": middle(fired, "similarity_last"),
            "at_the_end_of_delivered": middle(delivered, "similarity_last"),
        },
    }


def _audit_finally(
    done: Generation, sources: dict[str, Source], guard: GuardConfig, engine: Engine, progress: Progress
) -> None:
    """The audit of exactly the delivered clips, where they lie now: it names their files.

    Raises
    ------
    StoreError
        It flags some, although the same audit flagged none of them before.
    """
    where, described, rows = done.path / FINAL, done.path / DESCRIBED, done.rows()
    stores = {
        role: DescriptorStore.open(described / role) if (described / role).is_dir() else source
        for role, source in sources.items()
    }
    auditor = _auditor(stores, guard, engine)
    found = auditor(rows, done.path / MANIFEST, where, progress, lambda folder: write_report(folder, progress))
    if found.best:  # of an audit that was there already, too: what was refused once is refused again
        raise StoreError(
            f"{where}: flags clips that were not flagged before they were delivered ({shortened(list(found.best))}), so files "
            "were changed; generate again with --overwrite"
        )
    if described.is_dir():  # the audit's own now, for reports and reviews
        for store in described.iterdir():
            shutil.move(store, where / "stores" / store.name) if where.is_dir() else None
        shutil.rmtree(described)
