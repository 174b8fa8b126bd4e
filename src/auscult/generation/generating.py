"""Corridor: prompts in, a folder of clips out that ``auscult audit`` and ``auscult evaluate`` take as it is.

Data flow: rows of prompts -> clips, each with its seed -> batches -> processes that hold the pipeline -> FLAC files and a line
for each -> manifest and card. What is done is on the disk when the next batch begins, so a stopped run continues.
"""

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
    building,
    file_digest,
    is_folder_of,
    no_progress,
    package_versions,
    read_card,
    write_card,
)
from .calling import Sampling, generate_batch
from .clips import AUDIO, MADE, MANIFEST, Row, read_rows, write_manifest
from .making import Maker, devices_of, make_all
from .pipelines import locate_pipeline, scheduler_config
from .prompts import PromptRow, plan_clips, prompts_digest, read_prompt_rows
from .requirements import require_models
from .retrieving import check_datastore
from .schedules import check_steps
from .trained_pairs import check_pairs

__all__ = ["GenerateConfig", "Generation", "generate", "generate_batch"]

KIND = "generation"
BATCH_SIZE = 8
NEEDED_FOR = "auscult generate"
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


def generate(
    model: str,
    prompts: str | Path,
    output: str | Path,
    *,
    config: GenerateConfig | None = None,
    device: str = "cpu",
    workers: int = 1,
    batch_size: int = BATCH_SIZE,
    datastore: str | Path | None = None,
    offline: bool = False,
    encoding: str = "utf-8",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Generation:
    """Generate audio from prompts; given again after a stop, continue.

    Parameters
    ----------
    model
        A pipeline's folder or its name on the hub, see :func:`~auscult.generation.pipelines.locate_pipeline`.
    prompts
        See :func:`~auscult.generation.prompts.read_prompt_rows`.
    output
        Folder for ``audio/*.flac``, ``manifest.jsonl`` and ``card.json``; it has its name once all clips are made, and
        until then ``.partial`` behind it.
    config
        Settings.
    device, workers
        ``cpu``, ``cuda`` or ``cuda:N``, and how many processes; those of ``cuda`` take the GPUs that there are in turn.
    batch_size
        Clips made at once. It changes the last bits of a clip at most; where memory runs out, batches are halved.
    datastore
        A folder of ``auscult datastore``, from which a retrieval-augmented model is given pairs; without it, none.
    offline
        Ask nobody outside this machine.
    encoding
        Of text files of prompts.
    overwrite
        Replace a finished folder, or an unfinished one of other settings.
    progress
        Told the steps of denoising.

    Raises
    ------
    ManifestError
        The prompts cannot be used.
    ModelError
        The model cannot be used, or memory does not suffice for one clip.
    OutputFolderError
        The folder holds something else, or clips of other settings.
    """
    config = config or GenerateConfig()
    check_name(device)
    for name, number in (("workers", workers), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} should be at least 1, got {number}")
    require_models(NEEDED_FOR)
    output = Path(os.path.realpath(output))
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
    if not overwrite:
        if is_folder_of(output, KIND) and read_card(output, KIND)["task"] == task:
            return Generation.open(output)
        _refuse_other_settings(output, task)
    plan = plan_clips(rows, per_prompt=config.per_prompt, seed=config.seed)
    started = time.time()
    with building(output, KIND, task=task, overwrite=overwrite) as partial:
        maker = Maker(
            located, config.dtype, config.sampling(), partial, None if datastore is None else str(datastore), config.k
        )
        made = make_all(maker, plan, devices_of(device, workers), batch_size, progress)
        write_manifest(partial, (made[clip.clip_id] for clip in plan))
        write_card(
            partial,
            KIND,
            {
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "elapsed_s": round(time.time() - started, 1),
                "model": located.facts(),
                "source": [str(prompts)],
                "datastore": None if datastore is None else str(datastore),
                "device": device,
                "batch_size": batch_size,
                **_findings(rows, list(made.values()), notes, config.k),
                "config": dataclasses.asdict(config),
                "versions": {**package_versions(), **_model_versions()},
                "task": task,
                "files": {
                    MANIFEST: file_digest(partial / MANIFEST),
                    **{row["path"]: row["sha256"] for row in made.values()},
                },
            },
        )
        (partial / MADE).unlink()
    return Generation.open(output)


# --- what is said of it -----------------------------------------------------------------------------------------------


def _refuse_other_settings(output: Path, task: dict[str, Any]) -> None:
    """Refuse to continue what was begun with other settings, or to throw it away unasked."""
    partial = output.with_name(f"{output.name}.partial")
    clips = len(list((partial / AUDIO).glob("*.flac")))
    if not clips or not (partial / TASK).is_file():
        return
    begun = json.loads((partial / TASK).read_text("utf-8"))
    wanted = json.loads(json.dumps(task))
    other = [key for key in wanted if begun.get(key) != wanted[key]]
    if other:
        named = "; ".join(f"{key} was {_short(begun.get(key))}, now {_short(wanted[key])}" for key in other[:_SHOWN])
        raise OutputFolderError(
            f"{partial}: holds {clips:,} clips of a run with other settings ({named}); give those settings to continue it, "
            "another -o, or --overwrite to throw them away"
        )


def _short(value: Any) -> str:
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
