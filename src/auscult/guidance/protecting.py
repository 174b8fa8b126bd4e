"""The references of a guard, as its sampler and its auditor know them; each is described once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..alignment.scoring import MIN_BACKGROUND
from ..calibration import MIN_SCORES
from ..configuration import make_config
from ..corpus import Clip
from ..detection import check_background
from ..engine import Engine
from ..folders import Progress, is_folder_of
from ..generation.clips import Row
from ..generation.making import devices_of
from ..generation.order import Order
from ..generation.pipelines import load_pipeline
from ..inputs import Source, StoredClips, choose_descriptor, describe_sources
from ..levels import load_levels
from ..store import DescriptorStore
from .amg import AmgConfig
from .guard_config import THRESHOLDS, GuardConfig
from .guided import Guided, LatentChoice
from .index import KIND as INDEX_KIND
from .index import ReferenceIndex
from .latents import LatentDescriptor
from .shifting import at_every_moment, has_time
from .terms import GuidanceTerm
from .thresholds import FEWEST, measured_thresholds

INDEX = "index"


def check_enough(sources: Mapping[str, Source], guard: GuardConfig, strengths: Mapping[str, Any]) -> None:
    """Refuse too few clips before any is described; what silence and copies among them leave is checked later.

    Raises
    ------
    ValueError
        For the audits, or for the thresholds; names both.
    """
    references = _up_to(MIN_SCORES, sources["references"])
    missing = []
    if guard.audit == "contrast":
        if "background" in sources and (found := _up_to(MIN_BACKGROUND, sources["background"])) < MIN_BACKGROUND:
            missing.append(f"audits take a background (--guard-background) of at least {MIN_BACKGROUND} clips, got {found}")
        if "background" not in sources and references <= MIN_BACKGROUND:
            missing.append(f"audits take at least {MIN_BACKGROUND + 1}, or unrelated sound as background (--guard-background)")
    elif guard.tau in (None, "gap") and guard.fdr is None and references < MIN_SCORES:
        missing.append(
            f"audits by {guard.audit} read their threshold off at least {MIN_SCORES}, without a tau; contrast needs fewer"
        )
    if references < FEWEST and any(strengths.get(name) is None for name in THRESHOLDS):
        missing.append(
            f"thresholds are measured on at least {FEWEST}, unless both are given (threshold_low and threshold_high; "
            "--amg.threshold-low and --amg.threshold-high)"
        )
    if missing:
        more = "or more " if references == MIN_SCORES else ""
        raise ValueError(f"too few clips for a guard with {references} {more}references: {'; '.join(missing)}")


def _up_to(most: int, source: Source) -> int:
    if isinstance(source, DescriptorStore):
        return min(most, int(source.card["counts"]["clips"]))
    return len(list(islice((clip for clip in source if isinstance(clip, Clip)), most)))


def described_for_audits(
    sources: dict[str, Source], folder: Path, guard: GuardConfig, engine: Engine, progress: Progress
) -> dict[str, DescriptorStore]:
    """Stores of the auditing descriptor, made once for all audits.

    Parameters
    ----------
    sources
        By the role that they have in an audit.
    folder
        Where the stores of corpora are made.

    Raises
    ------
    ValueError
        Too few references, or background clips, for an audit.
    CorpusError
        A source has no sound.
    """
    heard: dict[str, Source] = {
        role: StoredClips.of(source) if isinstance(source, DescriptorStore) and source.spec.name != guard.audit else source
        for role, source in sources.items()
    }
    descriptor = choose_descriptor(heard, guard.audit, None)
    stores = describe_sources(heard, folder, descriptor, engine=engine, progress=progress)
    if guard.audit == "contrast":
        own = "background" not in stores
        try:
            check_background(load_levels(stores["references" if own else "background"], engine), own=own)
        except ValueError as error:  # its option is called otherwise here
            raise ValueError(str(error).replace("--background", "--guard-background")) from error
    elif guard.tau in (None, "gap") and guard.fdr is None and stores["references"].card["counts"]["clips"] < MIN_SCORES:
        raise ValueError(
            f"audits by {guard.audit} read their threshold off at least {MIN_SCORES} references, got "
            f"{stores['references'].card['counts']['clips']}; give a tau, or audit by contrast"
        )
    return stores


def guide_of(
    order: Order,
    references: Source,
    guard: GuardConfig,
    strengths: Mapping[str, Any],
    terms: Sequence[GuidanceTerm],
    partial: Path,
    progress: Progress,
) -> tuple[Guided, Row]:
    """The guide, and what the card says of it; ``notes`` are warnings.

    Raises
    ------
    ValueError
        Deduplication is asked for, and no reference has a caption; or too few references to measure thresholds on.
    """
    choice = LatentChoice(guard.descriptor, order.config.duration_s, _window_of(references), guard.clap_model)
    index, descriptor = _index(order, references, choice, partial / INDEX, progress)
    moments = at_every_moment(index, descriptor)
    notes, settings = [], dict(strengths)
    if not any(index.captions) and "deduplication" not in settings:
        settings["deduplication"] = 0.0
        notes.append("no reference has a caption, so that guidance went without caption deduplication")
    if has_time(descriptor) and descriptor.window_s is None and moments is index and len(index):
        notes.append(
            "the references are too many to be compared at every shift in time: a copy that plays earlier or later is left "
            "to the audit"
        )
    measured = [name for name in THRESHOLDS if settings.get(name) is None]
    if measured:
        found = measured_thresholds(index, others=moments)
        settings |= dict(zip(THRESHOLDS, found.beside(*map(settings.get, THRESHOLDS)), strict=True))
    config = make_config(AmgConfig, settings)
    if config.deduplication and not any(index.captions):
        raise ValueError(
            "deduplication leads away from the captions of references, and no reference has one; give them as a manifest with "
            "a caption column, or set deduplication to 0"
        )
    facts = {
        "descriptor": index.spec,
        "references": {"clips": len(set(index.ids)), "vectors": len(moments), "silent": index.silent},
        "amg": json.loads(json.dumps(dataclasses.asdict(config), default=repr)),
        "terms": [repr(term) for term in terms],
        "thresholds_measured": measured,
        "notes": notes,
    }
    return Guided(partial / INDEX, choice, config, partial, terms=tuple(terms)), facts


def _window_of(references: Source) -> float | None:
    """Of a store of mel descriptors, so that its vectors can be taken as they are."""
    if not isinstance(references, DescriptorStore) or references.spec.name != "mel":
        return None
    return float(dict(references.spec.parameters)["duration_s"])


def _index(
    order: Order, references: Source, choice: LatentChoice, folder: Path, progress: Progress
) -> tuple[ReferenceIndex, LatentDescriptor]:
    """The references as guidance knows them, described once; and by what."""
    device = devices_of(order.device, 1)[0]
    descriptor = choice.of(load_pipeline(order.located, device=device, dtype=order.config.dtype), device)
    if is_folder_of(folder, INDEX_KIND):
        return ReferenceIndex.load(folder), descriptor
    if isinstance(references, DescriptorStore) and references.spec == descriptor.store_spec:
        index = ReferenceIndex.from_store(references, descriptor)
    else:
        clips = StoredClips.of(references) if isinstance(references, DescriptorStore) else references
        index = ReferenceIndex.from_audio(clips, descriptor, progress=progress)
    index.save(folder)
    return index, descriptor
