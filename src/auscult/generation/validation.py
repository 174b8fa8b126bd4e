"""Losses at each noise level, with the right conditions, with others and with none, beside those of a predictor of zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..metrics.intervals import FEWEST, mean_interval
from .batches import noise_seed
from .conditioning import Conditions
from .feed import Feed, Variant, draw_noise
from .gates import GateResult
from .objective import LEVELS, Prediction, level_timesteps, noisy_latents, squared_errors, target

IntArray = npt.NDArray[np.int64]
Predict = Callable[[torch.Tensor, torch.Tensor, Conditions], torch.Tensor]
ZERO = "zero"
_BATCH = 16
_FEW = 20  # clips; of fewer, percentiles of a bootstrap are narrower than Student's interval by about a tenth and more


@dataclass(frozen=True)
class Levels:
    """Mean squared errors of clips, unweighted.

    Attributes
    ----------
    timesteps
        Of each level; the last is the noisiest.
    losses
        By variant of the conditions: one for each level. ``zero`` is what a predictor of zero has.
    clips
        How many were looked at.
    by_clip
        By variant: the mean over all levels for each clip. Noise is the same for all variants, so that they are pairs. Files
        do not have it.
    """

    timesteps: tuple[int, ...]
    losses: dict[str, tuple[float, ...]]
    clips: int
    by_clip: dict[str, tuple[float, ...]]

    def mean(self, variant: str) -> float:
        """Mean over all levels."""
        return float(np.mean(self.losses[variant]))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Levels:
        """What :meth:`to_json` gave; ``by_clip`` is empty."""
        losses = {name: tuple(values) for name, values in content["losses"].items()}
        return cls(tuple(content["timesteps"]), losses, content["clips"], {})

    def to_json(self) -> dict[str, Any]:
        """For the log."""
        return {"timesteps": list(self.timesteps), "clips": self.clips, "losses": {k: list(v) for k, v in self.losses.items()}}


@torch.no_grad()
def level_losses(
    predict: Predict,
    feed: Feed,
    rows: IntArray,
    variants: Sequence[Variant],
    alphas_cumprod: torch.Tensor,
    prediction: Prediction,
    *,
    device: Any = "cpu",
) -> Levels:
    """Errors of a denoiser on some clips, at the middle of each noise level, under noise that is the same each time.

    Parameters
    ----------
    predict
        ``predict(noisy, timesteps, conditions)``.
    feed
        Of the run.
    rows
        Clips.
    variants
        Of the conditions, see :meth:`Feed.fixed`.
    alphas_cumprod, prediction
        Of the objective.
    device
        Of the denoiser.
    """
    steps = level_timesteps(feed.timesteps, LEVELS)
    errors = {name: np.zeros((LEVELS, len(rows))) for name in (*variants, ZERO)}
    for start in range(0, len(rows), _BATCH):
        here = slice(start, start + _BATCH)
        some = rows[here]
        latents = feed.latents[some].to(device)
        conditions = {variant: feed.fixed(some, variant).to(device) for variant in variants}
        for level, step in enumerate(steps.tolist()):
            noise = draw_noise(feed.latents[some], feed.timesteps, noise_seed(level, start))[0].to(device)
            at = torch.full((len(some),), step, device=device)
            wanted = target(latents, noise, alphas_cumprod, at, prediction)
            noisy = noisy_latents(latents, noise, alphas_cumprod, at)
            errors[ZERO][level, here] = squared_errors(torch.zeros_like(wanted), wanted).cpu()
            for variant in variants:
                errors[variant][level, here] = squared_errors(predict(noisy, at, conditions[variant]), wanted).float().cpu()
    by_level = {name: tuple(found.mean(1).tolist()) for name, found in errors.items()}
    by_clip = {name: tuple(found.mean(0).tolist()) for name, found in errors.items()}
    return Levels(tuple(steps.tolist()), by_level, len(rows), by_clip)


def variants_of(feed: Feed) -> tuple[Variant, ...]:
    """What a validation compares: with retrieval also what the references and the prompt alone give.

    Where all clips have one caption, there is no clip of another to be compared with.
    """
    if len(set(feed.clips.captions)) == 1:
        return ("own", "null") if feed.neighbors is None else ("own", "prompt_only", "null")
    return ("own", "other", "null") if feed.neighbors is None else ("own", "prompt_only", "other", "swapped", "null")


def condition_gates(levels: Levels, where: str = "the model") -> tuple[GateResult, ...]:
    """Whether a clip's own conditions help where it was not trained on: less loss than with another's, and than with none.

    The mean decides; the message has the interval of the difference (a bootstrap of clips, each with its own difference).
    """
    own = levels.mean("own")
    gates = []
    for variant, words in (("other", "those of another clip"), ("null", "none")):
        if variant not in levels.losses:
            gates.append(GateResult(f"conditions against {words}", True, own, own, "not checked: all clips have one caption"))
            continue
        other = levels.mean(variant)
        passed = own < other
        advice = ""
        if not passed:
            advice = f"; {where} is there, but does not heed its captions: train longer, or on more clips whose captions differ"
        message = (
            f"error {own:.4f} with the own conditions and {other:.4f} with {words}, on {levels.clips} held-out clips"
            f"{_how_sure(levels, variant)}{advice}"
        )
        gates.append(GateResult(f"conditions against {words}", passed, own, other, message))
    return tuple(gates)


def _how_sure(levels: Levels, variant: str) -> str:
    """The interval of what the own conditions spare, over clips, and how much it can be trusted."""
    spared = mean_interval(np.subtract(levels.by_clip[variant], levels.by_clip["own"]))
    told = ""
    if levels.clips >= FEWEST:
        told = f"; the own ones spare {spared.value:.4f}, 95 % interval {spared.low:.4f} to {spared.high:.4f}"
        told += ", so it may be chance" if spared.low <= 0 <= spared.high else ""
    if levels.clips < _FEW:
        told += "; so few clips tell little: hold out more (data.validation_share), and look at more (logging.validation_clips)"
    return told
