"""What is to be generated, and what is written of it: the parts that every way to generate is made of."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from ..devices import check_name
from ..errors import OutputFolderError
from ..folders import (
    TASK,
    Progress,
    file_digests,
    is_folder_of,
    package_versions,
    read_card,
    write_card,
)
from .calling import Sampling
from .clips import AUDIO, MANIFEST, Row, read_rows, write_manifest
from .making import Guide, Maker, devices_of, make_all
from .pipelines import LocatedPipeline, locate_pipeline, scheduler_config
from .prompts import PlannedClip, PromptRow, plan_clips, prompts_digest, read_prompt_rows
from .requirements import require_models
from .retrieving import check_datastore
from .schedules import check_steps
from .trained_pairs import check_pairs

KIND = "generation"
BATCH_SIZE = 8
NEEDED_FOR = "auscult generate"
NOT_GIVEN = "not given"
_SHOWN = 3  # settings, or clips, that a message names


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of a generation; the defaults are the audit paper's.

    Attributes
    ----------
    steps, guidance_scale, negative_prompt, duration_s, retrieval_scale
        See :class:`~auscult.generation.calling.Sampling`.
    per_prompt
        Clips of each prompt.
    seed
        From which the seed of each clip follows, see :func:`~auscult.generation.prompts.clip_seed`.
    dtype
        Of the model's numbers.
    k
        Pairs of each prompt where a datastore is given.
    """

    steps: int = 200
    guidance_scale: float = 3.0
    per_prompt: int = 1
    seed: int = 0
    negative_prompt: str | None = None
    duration_s: float | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    k: int = 3
    retrieval_scale: float | None = None

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"k should be at least 0, got {self.k}")
        if not 1 <= self.per_prompt <= 1000:
            raise ValueError(f"per_prompt should be 1 to 1000, got {self.per_prompt}")
        self.sampling()  # which checks the rest

    def sampling(self) -> Sampling:
        """The part that a pipeline is called with."""
        fields = {field.name for field in dataclasses.fields(Sampling)}
        return Sampling(**{key: value for key, value in dataclasses.asdict(self).items() if key in fields})


@dataclass(frozen=True)
class Generation:
    """Finished generated clips on disk: ``path`` of their folder and its ``card``."""

    path: Path
    card: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Generation:
        """Open a finished folder; a ``StoreError`` says if there is none."""
        return cls(Path(path), read_card(Path(path), KIND))

    @property
    def manifest(self) -> Path:
        """The manifest, which is a SOURCE for every command."""
        return self.path / MANIFEST

    def rows(self) -> list[Row]:
        """The manifest's rows."""
        return read_rows(self.manifest)


@dataclass(frozen=True)
class Order:
    """What is to be generated, read and checked.

    Attributes
    ----------
    located
        The model.
    source
        Of the prompts.
    prompts
        Their rows.
    notes
        What a reader of the clips should know already.
    config, output, device, workers, batch_size, datastore
        See :func:`generate`.
    task
        All that decides about the clips, so that a stopped run is continued only where it is the same.
    """

    located: LocatedPipeline
    source: str
    prompts: list[PromptRow]
    notes: list[str]
    config: GenerateConfig
    output: Path
    device: str
    workers: int
    batch_size: int
    datastore: str | None
    task: dict[str, Any]

    def plan(self) -> list[PlannedClip]:
        """All clips."""
        return plan_clips(self.prompts, per_prompt=self.config.per_prompt, seed=self.config.seed)

    def make(self, folder: Path, plan: Sequence[PlannedClip], progress: Progress, guide: Guide | None = None) -> dict[str, Row]:
        """Make clips into a folder, those that are not there yet; rows by clip id."""
        sampling = self.config.sampling()
        maker = Maker(self.located, self.config.dtype, sampling, folder, self.datastore, self.config.k, guide)
        return make_all(maker, plan, devices_of(self.device, self.workers), self.batch_size, progress)


def take_order(
    model: str,
    prompts: str | Path,
    output: str | Path,
    *,
    config: GenerateConfig | None,
    device: str,
    workers: int,
    batch_size: int,
    datastore: str | Path | None,
    offline: bool,
    encoding: str,
) -> Order:
    """Read and check what :func:`generate` is given; nothing is written."""
    config = config or GenerateConfig()
    check_name(device)
    for name, number in (("workers", workers), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} should be at least 1, got {number}")
    require_models(NEEDED_FOR)
    rows = read_prompt_rows(prompts, encoding=encoding)
    located = locate_pipeline(model, offline=offline)
    notes = check_pairs(located, datastore, config.k, retrieval_scale=config.retrieval_scale)
    if located.unfinished:
        notes.insert(0, "the model's training is not finished: the model is that of its last checkpoint")
    sampler = scheduler_config(located)
    check_steps(str(sampler.get("_class_name")), sampler, config.steps)
    task = {
        **dataclasses.asdict(config),
        "model": located.facts(),
        "prompts": prompts_digest(rows),
        "datastore": None if datastore is None else check_datastore(datastore, config.k),
    }
    return Order(
        located,
        str(prompts),
        rows,
        notes,
        config,
        Path(os.path.realpath(output)),
        device,
        workers,
        batch_size,
        None if datastore is None else str(datastore),
        task,
    )


def finished(order: Order) -> Generation | None:
    """What an earlier run of the same order has finished.

    Raises
    ------
    OutputFolderError
        A run with other settings has begun there.
    """
    if is_folder_of(order.output, KIND) and read_card(order.output, KIND)["task"] == order.task:
        return Generation.open(order.output)
    _refuse_other_settings(order.output, order.task)
    return None


def write_generation(
    folder: Path, order: Order, rows: Sequence[Row], started: float, *, files: Sequence[str] = (), **more: Any
) -> None:
    """Write manifest and card of clips that lie in a folder.

    Parameters
    ----------
    rows
        Of the clips, in the order of the manifest.
    started
        When, as ``time.time()``.
    files
        Further files of the folder, whose digests the card is to hold.
    more
        Further content of the card; its ``warnings`` are added to the card's.
    """
    write_manifest(folder, rows)
    findings = _findings(order.prompts, rows, order.notes, order.config.k)
    findings["warnings"] += more.pop("warnings", [])
    write_card(
        folder,
        KIND,
        {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "elapsed_s": round(time.time() - started, 1),
            "model": order.located.facts(),
            "source": [order.source],
            "datastore": order.datastore,
            "device": order.device,
            "batch_size": order.batch_size,
            **findings,
            **more,
            "config": dataclasses.asdict(order.config),
            "versions": {**package_versions(), **_model_versions()},
            "task": order.task,
            "files": {
                **file_digests(folder, (MANIFEST, *files)),
                **{row["path"]: row["sha256"] for row in rows},
            },
        },
    )


# --- what is said of it -----------------------------------------------------------------------------------------------


def _refuse_other_settings(output: Path, task: dict[str, Any]) -> None:
    """Refuse to continue what was begun with other settings, or to throw it away unasked."""
    partial = output.with_name(f"{output.name}.partial")
    clips = len({path.name for path in partial.rglob(f"{AUDIO}/*.flac")})  # attempts at one clip have its name
    if not clips or not (partial / TASK).is_file():
        return
    begun = {"kind": KIND, **json.loads((partial / TASK).read_text("utf-8"))}
    if begun["kind"] != KIND:
        return  # the folder is asked for in a moment, and says so
    other = _differences(begun, {"kind": KIND, **json.loads(json.dumps(task))})
    if other:
        named = "; ".join(f"{key} was {_short(before)}, now {_short(now)}" for key, before, now in other[:_SHOWN])
        raise OutputFolderError(
            f"{partial}: holds {clips:,} clips of a run with other settings ({named}); give those settings to continue it, "
            "another -o, or --overwrite to throw them away"
        )


def _differences(begun: dict[str, Any], wanted: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that are not equal, and both values; of tables in both, each by the table's name and its own.

    >>> _differences({"a": 1, "guard": {"alpha": 0.1, "amg": {"every": 1}}}, {"a": 1, "guard": {"alpha": 0.2, "amg": {}}})
    [('guard.alpha', 0.1, 0.2), ('amg.every', 1, 'not given')]
    """
    found = []
    for key in {**wanted, **begun}:
        before, now = begun.get(key, NOT_GIVEN), wanted.get(key, NOT_GIVEN)
        if isinstance(before, dict) and isinstance(now, dict):
            nested = _differences(before, now)
            found += [(name if "." in name else f"{key}.{name}", *values) for name, *values in nested]
        elif before != now:
            found.append((key, before, now))
    return found


def _short(value: Any) -> str:
    if value == NOT_GIVEN:
        return NOT_GIVEN
    text = ", ".join(map(str, filter(None, value.values()))) if isinstance(value, dict) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _findings(prompts: Sequence[PromptRow], rows: Sequence[Row], notes: Sequence[str], k: int) -> dict[str, Any]:
    """Counts, and what a reader of the clips should know, beginning with ``notes``."""
    silent = [row for row in rows if row["silent"]]
    loud = [row for row in rows if row["gain_db"] < 0]
    cut = [row for row in rows if row["truncated"]]
    warnings = [*notes]
    if any(row.get("preview_quality") for row in rows):
        warnings.append("the sound is of preview quality: the model has no trained vocoder")
    seen = [row for row in rows if row.get("target_passed_over") is False]
    if seen:
        warnings.append(
            f"{_clips(seen)} made with a datastore that does not hold the prompt's reference, by its id, path or audio: pairs "
            "of an equal caption were passed over, duplicates of the reference were not"
        )
    fewer = [row for row in rows if row.get("retrieved") is not None and len(row["retrieved"]) < k]
    if fewer:
        warnings.append(
            f"{_clips(fewer)} made with fewer pairs than k = {k}: the datastore has no more that are neither the prompt's own "
            "clip, nor its duplicates, nor of an equal caption"
        )
    if silent:
        warnings.append(f"{_clips(silent)} silent: the model gave no sound")
    if loud:
        most = -min(row["gain_db"] for row in loud)
        warnings.append(f"{_clips(loud)} beyond full scale and turned down, by up to {most:.1f} dB (gain_db in the manifest)")
    if cut:
        warnings.append(f"{_clips(cut)} made from a prompt that is longer than the model reads; its end was not heard")
    return {
        "counts": {
            "prompts": len(prompts),
            "clips": len(rows),
            "silent": len(silent),
            "turned_down": len(loud),
            "truncated": len(cut),
        },
        "warnings": warnings,
    }


def _clips(rows: Sequence[Row]) -> str:
    named = ", ".join(row["clip_id"] for row in rows[:_SHOWN]) + (", ..." if len(rows) > _SHOWN else "")
    return f"1 clip ({named}) is" if len(rows) == 1 else f"{len(rows):,} clips ({named}) are"


def _model_versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}
