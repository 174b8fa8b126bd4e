"""Sheets: what a model makes of some prompts while it is trained, as spectrograms and audio; and curves of the losses."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..folders import Progress, atomic_file, no_progress
from .feed import Feed
from .mel import log_mel
from .objective import LEVELS
from .training_config import LoggingConfig

IntArray = npt.NDArray[np.int64]
RANGE_NATS = 8.0  # 70 dB below the loudest point is black
CURVES = {  # (which clips, with which conditions): what they are called and drawn in
    ("training", "own"): ("trained clips, own conditions", "C0"),
    ("validation", "own"): ("held out, own conditions", "C1"),
    ("validation", "other"): ("held out, another clip's", "C3"),
    ("validation", "null"): ("held out, no conditions", "C7"),
}


def make_sheet(
    pipe: Any,
    feed: Feed,
    held_out: IntArray,
    folder: Path,
    step: int,
    config: LoggingConfig,
    *,
    progress: Progress = no_progress,
) -> Path:
    """Draw samples beside the clips whose captions they were made of, and write them as FLAC.

    Parameters
    ----------
    pipe
        The pipeline; seeds are the same on every sheet, so sheets show how the same noise becomes sound.
    feed
        Of the run.
    held_out
        Clips whose captions come second.
    folder
        Where ``step-N.png`` and ``step-N/NAME.flac`` go.
    step
        Steps done.
    config
        Number of prompts, sampling steps, guidance.
    """
    trained, unseen = (_some(rows, config.sheet_prompts) for rows in (feed.rows, held_out))
    rows = np.concatenate([trained, unseen])
    prompts = [feed.clips.captions[row] for row in rows]
    streams = feed.streams(feed.nearest(rows, max(feed.counts)), max(feed.counts))
    sounds = []
    for number, prompt in enumerate(prompts):
        progress(number + 1, len(prompts), "sampling a sheet")
        given = None if streams is None else streams.select([number])
        made = pipe(
            [prompt],
            references=given,
            seeds=[number],
            num_inference_steps=config.sheet_steps,
            guidance_scale=config.guidance_scale,
        )
        sounds.append(np.asarray(made.audios[0], np.float32))
    rate = feed.spec.sample_rate_hz
    for number, (row, sound) in enumerate(zip(rows, sounds, strict=True)):
        kind = "trained" if number < len(trained) else "held-out"
        _write_flac(folder / f"step-{step:06d}" / f"{number:02d}-{kind}-clip{row}.flac", sound, rate)
    real = [np.array(feed.clips.waves[row]) for row in rows]
    titles = [("" if number < len(trained) else "held out: ") + prompt for number, prompt in enumerate(prompts)]
    path = folder / f"step-{step:06d}.png"
    _draw_pairs(titles, _pictures(real, feed), _pictures(sounds, feed), path, f"step {step:,}")
    return path


def _some(rows: IntArray, most: int) -> IntArray:
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)] if len(rows) else rows


def _pictures(sounds: Sequence[npt.NDArray[np.float32]], feed: Feed) -> list[npt.NDArray[np.float32]]:
    """Log-mels (n_mels, frames) of sounds."""
    return [log_mel(torch.from_numpy(sound)[None], feed.spec)[0, 0].T.numpy() for sound in sounds]


def _write_flac(path: Path, samples: npt.NDArray[np.float32], rate_hz: int) -> None:
    import soundfile as sf

    buffer = io.BytesIO()
    sf.write(buffer, np.clip(samples, -1.0, 1.0), rate_hz, format="FLAC", subtype="PCM_16")
    with atomic_file(path) as handle:
        handle.write(buffer.getvalue())


def _draw_pairs(
    titles: Sequence[str],
    real: Sequence[npt.NDArray[np.float32]],
    made: Sequence[npt.NDArray[np.float32]],
    path: Path,
    title: str,
) -> None:
    figure = _figure(7.0, 0.5 + 1.25 * len(titles))
    axes = figure.subplots(len(titles), 2, squeeze=False)
    for row, (caption, left, right) in enumerate(zip(titles, real, made, strict=True)):
        for column, (picture, kind) in enumerate(((left, "clip"), (right, "sample"))):
            top = float(picture.max())
            area = axes[row, column]
            area.imshow(picture, origin="lower", aspect="auto", cmap="magma", vmin=top - RANGE_NATS, vmax=top)
            area.set_xticks([])
            area.set_yticks([])
            text = caption if len(caption) < 60 else caption[:57] + "..."
            area.set_title(text if column == 0 else kind, fontsize=7, loc="left", parse_math=False)
    figure.suptitle(
        f"{title}: real clips (left), what their captions make (right); mel bands upwards, {RANGE_NATS * 8.69:.0f} dB",
        fontsize=9,
    )
    _save(figure, path)


def draw_training(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Losses over steps, and over noise levels at the last validation beside the zero predictor's.

    Parameters
    ----------
    lines
        Of ``log.jsonl``.
    path
        Of the PNG.
    """
    figure = _figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    steps = [line for line in lines if "error" in line]
    left.plot(
        [line["step"] for line in steps], [line["error"] for line in steps], color="0.75", lw=0.8, label="training batches"
    )
    checked = [line for line in lines if line.get("training")]
    for (side, variant), (name, color) in CURVES.items():
        there = [line for line in checked if line.get(side)]
        means = [float(np.mean(line[side]["losses"][variant])) for line in there]
        left.plot([line["step"] for line in there], means, color=color, marker=".", label=name)
    left.set_xlabel("step")
    left.set_ylabel("squared error (averaged weights)")
    left.legend(fontsize=7)
    if checked:
        _draw_levels(right, checked[-1])
        right.set_ylabel("squared error")
    _save(figure, path)


def _draw_levels(area: Any, line: dict[str, Any]) -> None:
    places = np.arange(LEVELS)
    for (side, variant), (name, color) in CURVES.items():
        if losses := ((line.get(side) or {}).get("losses") or {}).get(variant):
            area.plot(places, losses, label=name, color=color, marker=".")
    zero = (line.get("validation") or line["training"])["losses"]["zero"]
    area.plot(places, zero, label="predictor of zero", color="k", ls=":")
    timesteps = line["training"]["timesteps"]
    area.set_xticks(places, [str(step) for step in timesteps], fontsize=7)
    area.set_xlabel(f"noise level (timestep), at step {line['step']:,}")
    area.legend(fontsize=7)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png")
