"""Gates of a codec: whether a copy would still be found behind it, and whether its latents are what diffusion expects.

A denoiser trained behind a codec can only make what the codec can decode. If the reconstruction of a clip did not find that
clip, neither would a perfect copy of it, and an audit of the model would find nothing whatever it memorized.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..descriptors import mel as audit
from .autoencoder import check_mels, fold, from_latents, to_latents
from .gates import GateResult
from .mel import MelSpec
from .vocoder import vocode

LEAST_FOUND = 0.99
STD_FACTOR, FAR_FACTOR = 1.05, 2.0  # of a codec made of these very clips, and of one made of others
LEAST_KL = 0.01
_SAME = 1e-6  # cosines closer than this are equal: clips that are copies of each other find each other
_ROWS = 1024


def reconstruction_gate(
    codec: Any,
    mels: torch.Tensor,
    spec: MelSpec,
    *,
    waves: torch.Tensor | None = None,
    vocoder: Any = None,
    limit: float = LEAST_FOUND,
    batch_size: int = 16,
) -> GateResult:
    """Share of clips whose reconstruction is closer to that very clip than to any other, by the mel descriptor of the audit.

    The descriptor is read off the log-mels (:func:`descriptors`), or, with ``waves`` and ``vocoder``, taken of the sound of the
    reconstruction and of the clip itself. A clip counts as found if no other is closer by more than 1e-6 in cosine, so
    duplicates in the corpus do no harm. Silent clips, which have no descriptor, are left out and counted.

    Parameters
    ----------
    codec
        Anything with the interface of :mod:`~auscult.generation.autoencoder`.
    mels
        (N, 1, frames, n_mels), raw. The more clips, the harder the task: take all, or some hundreds.
    spec
        Of the log-mels.
    waves, vocoder
        The clips' waveforms (N, time), and what turns log-mels into sound; both or none.
    limit
        Least share, 0 to 1.

    Returns
    -------
    GateResult
        Named ``reconstruction``. The message has the mean absolute error in nats too, beside that of the mean log-mel of
        the set, which a codec that has learned nothing about single clips would give.

    Raises
    ------
    ValueError
        No clip with sound, or only one of ``waves`` and ``vocoder``.
    """
    if (waves is None) != (vocoder is None):
        raise ValueError("to compare the sound of reconstructions, give both waves and vocoder; to compare log-mels, neither")
    check_mels(mels, fold(codec))
    heard = mels.amax((1, 2, 3)) > np.log(spec.floor) + 1e-3
    if not heard.any():
        raise ValueError(f"all {len(mels)} clips are silent; a codec cannot be judged on them")
    silent, mels = int((~heard).sum()), mels[heard]
    copies = reconstruct(codec, mels, batch_size=batch_size)
    if waves is None:
        queries, keys = descriptors(copies, spec), descriptors(mels, spec)
    else:
        length = spec.samples(mels.shape[2])
        sounds = torch.cat([vocode(vocoder, some, length).cpu() for some in copies.split(batch_size)])
        queries, keys = (_described(some, spec) for some in (sounds, waves[heard.to(waves.device), :length]))
    share = found_share(queries, keys)
    error, naive = (float((mels - other).abs().mean()) for other in (copies, mels.mean(0, keepdim=True)))
    what = f"{share:.1%} of {len(mels)} reconstructions find their own clip (chance {1 / len(mels):.1%})"
    beside = f"L1 {error:.2f} nat, that of the mean log-mel {naive:.2f}"
    left_out = f"; {silent} silent clips left out" if silent else ""
    advice = (
        "" if share >= limit else "; train the codec longer or give it more channels, or copies could not be detected later"
    )
    return GateResult("reconstruction", share >= limit, share, limit, f"{what}; {beside}{left_out}{advice}")


def latent_gate(codec: Any, mels: torch.Tensor, *, factor: float = STD_FACTOR, batch_size: int = 16) -> GateResult:
    """Whether scaled latents have a standard deviation of 1 / ``factor`` to ``factor``; noise schedules are made for 1.

    Of a codec that was scaled by these very clips it says little: whether the scale is written down and used. One that was
    trained on other clips has the scale of those, and may be off by a little (``FAR_FACTOR``); far off, the noise drowns the
    latents or does not reach them, and a denoiser that predicts noise begins with a loss of 1 all the same.
    """
    with torch.no_grad():
        latents = torch.cat([to_latents(codec, some.to(codec.device)).cpu() for some in mels.split(batch_size)])
    std = float(latents.double().std(correction=0))
    passed = 1 / factor <= std <= factor
    advice = (
        ""
        if passed
        else f"; they should have {1 / factor:.2g} to {factor:.3g}: multiply the codec's scaling_factor "
        f"{codec.config.scaling_factor:.4g} by {1 / max(std, 1e-12):.4g} in its config.json"
    )
    return GateResult("latents", passed, std, factor, f"the scaled latents have a standard deviation of {std:.3f}{advice}")


def divergence_gate(codec: Any, mels: torch.Tensor, *, limit: float = LEAST_KL, batch_size: int = 16) -> GateResult:
    """Whether an autoencoder's latents say anything: their divergence from N(0, 1), in nats per number, is not below a limit.

    Below 0.01 the posterior has collapsed to the prior, and the decoder works without the latents. Deterministic codecs
    (the patch PCA) have no divergence and pass with infinity.
    """
    total, count = 0.0, 0
    with torch.no_grad():
        for some in mels.split(batch_size):
            posterior = codec.encode(some.to(codec.device, codec.dtype)).latent_dist
            if posterior.deterministic:
                return GateResult("divergence", True, float("inf"), limit, "the codec is deterministic; nothing can collapse")
            total += float(posterior.kl().sum())
            count += posterior.mean.numel()
    value = total / count
    message = f"latents diverge from N(0, 1) by {value:.3g} nat each"
    advice = "" if value >= limit else "; the posterior has collapsed: lower kl_weight"
    return GateResult("divergence", value >= limit, value, limit, message + advice)


@torch.no_grad()
def reconstruct(codec: Any, mels: torch.Tensor, *, batch_size: int = 16) -> torch.Tensor:
    """What is left of raw log-mels (N, 1, frames, n_mels) behind a codec; float32 on the device of ``mels``."""
    parts = [from_latents(codec, to_latents(codec, some.to(codec.device))) for some in mels.split(batch_size)]
    return torch.cat([part.to(mels) for part in parts])


def descriptors(mels: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """The audit's mel descriptor, read off log-mels: 16 bands in dB below the clip's maximum, floor -40 dB.

    ``D = max(10 log10(T exp(mel)^2 W / max), -40)``: W weighs the power of a log-mel's band by the descriptor's triangular
    filter at the band's center and the band's width; T averages frames under the descriptor's windows of 2048 samples every
    1536, weighted by their squared Hann window. Close to
    :class:`~auscult.descriptors.mel.MelDescriptor` of the sound, not equal:
    a log-mel has forgotten where in a band the power was.

    Parameters
    ----------
    mels
        (N, 1, frames, n_mels), raw, none of them silent.

    Returns
    -------
    Tensor (N, 16 * windows)
        float32, or float64 of log-mels in float64; differentiable.

    Examples
    --------
    >>> tone = torch.sin(2 * torch.pi * 500 * torch.arange(16_000) / 16_000)[None]
    >>> from auscult.generation.mel import log_mel
    >>> vector = descriptors(log_mel(tone, MelSpec()), MelSpec())
    >>> vector.shape, vector.max().item(), vector.min().item()
    (torch.Size([1, 176]), 0.0, -40.0)
    """
    in_time, in_bands = (part.to(mels.device) for part in _resampling(spec, mels.shape[2]))
    power = (2 * mels[:, 0].double()).exp()
    bands = (in_time @ power @ in_bands).mT  # (N, 16, windows), band by band as the descriptor has it
    decibel = 10 * (bands / bands.amax((1, 2), keepdim=True)).clamp(min=10 ** (audit.FLOOR_DB / 10)).log10()
    return decibel.flatten(1).to(torch.float64 if mels.dtype == torch.float64 else torch.float32)


def found_share(queries: torch.Tensor, keys: torch.Tensor) -> float:
    """Share of rows of ``queries`` (N, d) whose nearest row of ``keys`` (N, d) by cosine is that of the same number.

    >>> found_share(torch.eye(3), torch.eye(3)[[0, 2, 1]])
    0.3333333333333333
    """
    unit = torch.nn.functional.normalize(keys.double(), dim=1)
    found = 0
    for first in range(0, len(queries), _ROWS):
        similarity = torch.nn.functional.normalize(queries[first : first + _ROWS].double(), dim=1) @ unit.T
        own = similarity.diagonal(first)
        found += int((own >= similarity.amax(1) - _SAME).sum())
    return found / len(queries)


@lru_cache(maxsize=8)
def _resampling(spec: MelSpec, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """T (windows, frames) and W (n_mels, 16) of :func:`descriptors`, float64."""
    scale = spec.sample_rate_hz / audit.SAMPLE_RATE_HZ
    first = spec.hop_length / 2 if spec.padding == "reflect" else 0.0
    at = (first + spec.hop_length * np.arange(frames)) / scale  # centers, in samples of the descriptor
    windows = 1 + int(spec.samples(frames) / scale) // audit.HOP
    distance = np.abs(at - audit.HOP * np.arange(windows)[:, None]) / audit.WINDOW
    in_time = np.where(distance < 0.5, np.cos(np.pi * distance) ** 4, 0.0)  # zeros outside, as the descriptor has them
    edges = audit.mel_to_hz(np.linspace(audit.hz_to_mel(spec.f_min), audit.hz_to_mel(spec.f_max), spec.n_mels + 2))
    grid = np.linspace(0.0, audit.SAMPLE_RATE_HZ / 2, audit.WINDOW // 2 + 1)
    bank = audit.mel_filterbank(audit.SAMPLE_RATE_HZ, audit.WINDOW, audit.N_MELS, audit.F_MAX_HZ)
    width = (edges[2:] - edges[:-2]) / 2
    in_bands = np.stack([np.interp(edges[1:-1], grid, one, right=0.0) for one in bank], axis=1) * width[:, None]
    return torch.from_numpy(in_time), torch.from_numpy(in_bands)


def _described(waves: torch.Tensor, spec: MelSpec) -> torch.Tensor:
    """The audit's own descriptor of waveforms (N, time)."""
    if spec.sample_rate_hz != audit.SAMPLE_RATE_HZ:
        raise ValueError(f"the audit's descriptor hears {audit.SAMPLE_RATE_HZ} Hz, got waveforms at {spec.sample_rate_hz} Hz")
    descriptor = audit.MelDescriptor(duration_s=waves.shape[1] / spec.sample_rate_hz)
    return torch.from_numpy(descriptor.describe(waves.float().cpu().numpy()))
