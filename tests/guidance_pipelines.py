"""What guidance is tested on: tiny pipelines, loops of one's own, and references that are planted in latents.

A subject is called with prompts and seeds and gives the last latents; :func:`guided` attaches guidance to it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers as d
import torch
from torch import nn

import tiny_pipelines
from auscult.generation.calling import clap_vectors
from auscult.generation.pipelines import quiet
from auscult.guidance.adapters import Adapter
from auscult.guidance.attach import attach
from auscult.guidance.index import ReferenceIndex

WIDTH = tiny_pipelines.WIDTH
OURS = "RetrievalAugmentedAudioPipeline"
PROMPTS = ["a dog barks", "a car horns", "rains falls", "birds sings"]  # as long as each other: diffusers pads to the longest


# --- subjects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """Something that samples."""

    denoiser: Any
    scheduler: Any
    run: Callable[..., torch.Tensor]
    pipe: Any = None
    adapter: Adapter | None = None

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int = 4, scale: float = 3.5, **more: Any) -> Any:
        """The last latents (B, ...)."""
        with quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*deprecated|__array_")
            return self.run(self, list(prompts), list(seeds), steps, scale, **more)

    def guided(self, *terms: Any) -> Any:
        """Guidance attached to it."""
        if self.pipe is not None:
            return attach(self.pipe, *terms)
        return attach(None, *terms, denoiser=self.denoiser, scheduler=self.scheduler, adapter=self.adapter)


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise(shape: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators(seeds)])


def _run_ours(subject: Subject, prompts: list[str], seeds: list[int], steps: int, scale: float, **more: Any) -> torch.Tensor:
    call = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "latent"}
    return subject.pipe(prompts, seeds=seeds, **call, **more).audios


def _run_public(subject: Subject, prompts: list[str], seeds: list[int], steps: int, scale: float, **more: Any) -> torch.Tensor:
    pipe, found = subject.pipe, []
    call = {"num_inference_steps": steps, "guidance_scale": scale, "generator": generators(seeds)}
    if isinstance(pipe, d.MusicLDMPipeline):
        call |= {"prompt_embeds": clap_vectors(pipe, prompts)}
        if scale > 1:
            call |= {"negative_prompt_embeds": clap_vectors(pipe, more.pop("negative_prompt", [""] * len(prompts)))}
    else:
        call |= {"prompt": prompts}
    call |= {"StableAudio3Pipeline": {"duration": 1.0}, "LongCatAudioDiTPipeline": {"audio_duration_s": 1.0}}.get(
        type(pipe).__name__, {}
    )
    if not isinstance(pipe, (d.AudioLDMPipeline, d.MusicLDMPipeline)):
        call |= {"output_type": "latent"}
    if "callback" in inspect.signature(pipe.__call__).parameters:
        call |= {"callback": lambda step, timestep, latents: found.append(latents)}
    return [pipe(**call, **more).audios, *found][-1]


def _denoiser_of(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def of_pipe(pipe: Any) -> Subject:
    """A pipeline as a subject."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    run = _run_ours if type(pipe).__name__ == OURS else _run_public
    return Subject(_denoiser_of(pipe), pipe.scheduler, run, pipe)


# --- pipelines beyond those of auscult generate -----------------------------------------------------------------------


def stable_audio_3() -> Any:
    return d.StableAudio3Pipeline(
        vae=d.AutoencoderSAME(
            audio_channels=2,
            patch_size=4,
            encoder_channels=4,
            encoder_c_mults=[2],
            encoder_strides=[2],
            encoder_transformer_depths=[1],
            latent_dim=4,
            dim_heads=4,
            sampling_rate=160,
        ),
        text_encoder=tiny_pipelines._t5(),
        tokenizer=tiny_pipelines._t5_tokenizer(),
        duration_embedder=d.StableAudio3DurationEmbedder(output_dim=WIDTH, fourier_dim=8),
        transformer=d.StableAudio3DiTModel(
            io_channels=4,
            embed_dim=16,
            depth=1,
            num_heads=2,
            cond_token_dim=WIDTH,
            global_cond_dim=WIDTH,
            timestep_features_dim=8,
            num_memory_tokens=2,
        ),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


def longcat() -> Any:
    return d.LongCatAudioDiTPipeline(
        vae=d.LongCatAudioDiTVae(
            channels=4, c_mults=[1], strides=[2], latent_dim=4, encoder_latent_dim=8, downsampling_ratio=8, sample_rate=160
        ),
        text_encoder=tiny_pipelines._t5(),
        tokenizer=tiny_pipelines._t5_tokenizer(),
        transformer=d.LongCatAudioDiTTransformer(dit_dim=16, dit_depth=1, dit_heads=2, dit_text_dim=WIDTH, latent_dim=4),
        scheduler=None,
    )


tiny_pipelines.FURTHER |= {"StableAudio3Pipeline": stable_audio_3, "LongCatAudioDiTPipeline": longcat}


# --- loops of one's own -----------------------------------------------------------------------------------------------


def _tokens(prompts: Sequence[str]) -> torch.Tensor:
    """(B, 3, WIDTH), by the prompt."""
    return noise((3, WIDTH), [sum(map(ord, prompt)) for prompt in prompts])


@torch.no_grad()
def _run_tango(subject: Subject, prompts: list[str], seeds: list[int], steps: int, scale: float) -> torch.Tensor:
    """As TANGO's own code goes, with a mask of booleans; its noise has a generator a row."""
    subject.scheduler.set_timesteps(steps)
    latents, random = noise((4, 8, 4), seeds), generators(seeds)
    tokens, first = _tokens(prompts), subject.adapter.conditional_first
    if scale != 1:
        tokens = torch.cat([tokens, torch.zeros_like(tokens)] if first else [torch.zeros_like(tokens), tokens])
    mask = torch.ones(len(tokens), 3, dtype=torch.bool)
    for timestep in subject.scheduler.timesteps:
        read = subject.scheduler.scale_model_input(latents.repeat(len(tokens) // len(latents), 1, 1, 1), timestep)
        output = subject.denoiser(read, timestep, encoder_hidden_states=tokens, encoder_attention_mask=mask).sample
        if scale != 1:
            without, with_prompt = reversed(output.chunk(2)) if first else output.chunk(2)
            output = without + scale * (with_prompt - without)
        latents = subject.scheduler.step(output, timestep, latents, generator=random).prev_sample
    return latents


def tango(conditional_first: bool = False) -> Subject:
    unet = d.UNet2DConditionModel(**tiny_pipelines.BLOCKS, cross_attention_dim=WIDTH)
    scheduler = d.DDPMScheduler(clip_sample=False, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    encode = lambda caption: {"encoder_hidden_states": _tokens([caption]), "encoder_attention_mask": torch.ones(1, 3).bool()}  # noqa: E731
    return Subject(unet.eval(), scheduler, _run_tango, adapter=Adapter(encode, conditional_first=conditional_first))


class FlowNetwork(nn.Module):
    """A velocity of latents (B, T, D) that depends on a prompt's tokens; None: without a prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.read = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, hidden_states: torch.Tensor, time: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        read = self.read(tokens.flatten(1)) + time[:, None]
        return self.out(torch.tanh(self.into(hidden_states) + read[:, None]))


@torch.no_grad()
def _run_flow(subject: Subject, prompts: list[str], seeds: list[int], steps: int, scale: float) -> torch.Tensor:
    """Two calls a step by keyword, the one without a prompt first."""
    subject.scheduler.set_timesteps(steps)
    latents, tokens = noise((6, 4), seeds), _tokens(prompts)
    for timestep in subject.scheduler.timesteps:
        time = (timestep / 1000).expand(len(latents))
        guided = subject.denoiser(hidden_states=latents, time=time, tokens=tokens)
        if scale > 1:
            without = subject.denoiser(hidden_states=latents, time=time, tokens=torch.zeros_like(tokens))
            guided = without + scale * (guided - without)
        latents = subject.scheduler.step(guided, timestep, latents).prev_sample
    return latents


def flow(scheduler: Any = None) -> Subject:
    torch.manual_seed(0)
    adapter = Adapter(lambda caption: {"tokens": _tokens([caption])}, conditional_first=True)
    return Subject(FlowNetwork(), scheduler or d.FlowMatchEulerDiscreteScheduler(), _run_flow, adapter=adapter)


def made(name: str, scheduler: Any = None) -> Subject:
    """A subject of :data:`SUBJECTS`, of random weights; with another scheduler than its own."""
    kind, _, family = name.partition("/")
    if kind in ("tango", "flow"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return tango(conditional_first=bool(family)) if kind == "tango" else flow(scheduler)
    settings = {"family": family} if family else {"headed": True} if kind == "AudioLDM2Pipeline" else {}
    pipe = tiny_pipelines.make(kind, **settings)
    if scheduler is not None:
        pipe.scheduler = scheduler
    return of_pipe(pipe)


SUBJECTS = (
    *(f"{OURS}/{family}" for family in ("retrieval", "tango", "audioldm2")),
    *("AudioLDMPipeline", "AudioLDM2Pipeline", "MusicLDMPipeline", "StableAudioPipeline", "StableAudio3Pipeline"),
    *("LongCatAudioDiTPipeline", "tango", "tango/conditional-first", "flow"),
)


# --- planted references -----------------------------------------------------------------------------------------------


@dataclass
class Flat:
    """A latent descriptor: the latents themselves. Counts its calls."""

    spec: str = "flat"
    center: bool = False
    calls: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        self.calls.append(step)
        self.rows.append(len(x0))
        return x0.flatten(1)


@dataclass
class Fixed(Flat):
    """A latent descriptor that hears the same whatever is there: row i is ``similarity`` to reference i, and less to others."""

    similarity: float = 0.5

    def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        super().describe(x0, step)
        rows = self.similarity * torch.eye(len(x0), 5, dtype=x0.dtype)
        rows[:, 4] = (1 - self.similarity**2) ** 0.5
        return rows


def index_of(
    vectors: torch.Tensor, captions: Sequence[str | None] = (), *, spec: str = "flat", ids: Sequence[str] = ()
) -> ReferenceIndex:
    """References (N, ...) that are planted, by the descriptor :class:`Flat`."""
    count = len(vectors)
    return ReferenceIndex(
        spec,
        tuple(ids) or tuple(f"clip-{number}" for number in range(count)),
        tuple(captions) or (None,) * count,
        (0.0,) * count,
        nn.functional.normalize(vectors.detach().flatten(1).float(), dim=1),
    )


def one_each(captions: Sequence[str | None]) -> ReferenceIndex:
    """Reference i is what :class:`Fixed` hears in row i, and has caption i."""
    return index_of(torch.eye(4, 5)[: len(captions)], captions)
