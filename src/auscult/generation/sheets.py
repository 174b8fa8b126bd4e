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
    ("training", "own"): ("trained, own", "C0"),
    ("validation", "own"): ("held out, own", "C1"),
    ("validation", "other"): ("held out, other", "C3"),
    ("validation", "null"): ("held out, null", "C7"),
}
DIFFERENCES = {  # what is held against a clip's own conditions
    "other": ("other", "C3"),
    "null": ("null", "C7"),
    "swapped": ("swapped", "C4"),
    "prompt_only": ("prompt only", "C2"),
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
    """Write :func:`training_figure` of the lines of ``log.jsonl`` as a PNG."""
    _save(training_figure(lines), path)


def training_figure(lines: Sequence[dict[str, Any]]) -> Any:
    """Losses over steps; over noise levels at the last validation beside the zero predictor's; and what conditions change.

    The differences, which are much smaller than the losses, are a panel of their own: above 0 the clip's own conditions helped.

    Parameters
    ----------
    lines
        Of ``log.jsonl``.

    Returns
    -------
    Figure
        Of matplotlib.
    """
    figure = _figure(12.0, 4.4)
    left, middle, right = figure.subplots(1, 3)
    _draw_steps(left, lines)
    checked = [line for line in lines if line.get("training")]
    if checked:
        _draw_levels(middle, checked[-1])
        _draw_differences(right, checked[-1])
    else:
        right.set_axis_off()
        middle.set_axis_off()
    for area in (left, middle, right):
        if area.get_legend_handles_labels()[0]:
            area.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    return figure


def _draw_steps(area: Any, lines: Sequence[dict[str, Any]]) -> None:
    steps = [line for line in lines if "error" in line]
    area.plot(
        [line["step"] for line in steps], [line["error"] for line in steps], color="0.75", lw=0.8, label="training batches"
    )
    for (side, variant), (name, color) in CURVES.items():
        there = [line for line in lines if _losses(line, side, variant)]
        means = [float(np.mean(_losses(line, side, variant))) for line in there]
        if there:
            area.plot([line["step"] for line in there], means, color=color, marker=".", label=name)
    area.set_title("over the run (batches: as trained; dots: averaged weights)", fontsize=8)
    area.set_xlabel("step")
    area.set_ylabel("squared error")


def _draw_levels(area: Any, line: dict[str, Any]) -> None:
    places = np.arange(LEVELS)
    for (side, variant), (name, color) in CURVES.items():
        if losses := _losses(line, side, variant):
            area.plot(places, losses, label=name, color=color, marker=".")
    zero = _losses(line, "validation", "zero") or _losses(line, "training", "zero")
    area.plot(places, zero, label="zero", color="k", ls=":")
    area.set_title(f"over noise levels, at step {line['step']:,}", fontsize=8)
    area.set_ylabel("squared error")
    _name_levels(area, line)


def _draw_differences(area: Any, line: dict[str, Any]) -> None:
    """Losses of held-out clips with other conditions, less those with their own."""
    own = _losses(line, "validation", "own")
    if not own:
        area.set_axis_off()
        return
    places = np.arange(LEVELS)
    area.axhline(0.0, color="k", lw=0.8)
    for variant, (name, color) in DIFFERENCES.items():
        if losses := _losses(line, "validation", variant):
            mean = float(np.mean(losses) - np.mean(own))
            area.plot(places, np.subtract(losses, own), label=f"{name} ({mean:+.4f})", color=color, marker=".")
    area.set_title("held out: errors with others less own (above 0: own help)", fontsize=8)
    area.set_ylabel("difference of squared errors")
    _name_levels(area, line)


def _losses(line: dict[str, Any], side: str, variant: str) -> list[float]:
    return ((line.get(side) or {}).get("losses") or {}).get(variant) or []


def _name_levels(area: Any, line: dict[str, Any]) -> None:
    timesteps = line["training"]["timesteps"]
    area.set_xticks(np.arange(LEVELS), [str(step) for step in timesteps], fontsize=7)
    area.set_xlabel("noise level (timestep)")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png")
