"""From prompts, with or without retrieved pairs, to sound; saved and loaded as a standard folder of diffusers.

Sources: Yuan et al., "Retrieval-Augmented Text-to-Audio Generation", ICASSP 2024; Ho and Salimans, "Classifier-Free Diffusion
Guidance", 2021; the two scales of guidance are those of Brooks et al., "InstructPix2Pix", CVPR 2023, equation 3, with the
retrieved pairs in the place of the image.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from diffusers import AudioPipelineOutput, DDIMScheduler, DiffusionPipeline

from .autoencoder import fold, from_latents
from .conditioning import Conditions, concatenate
from .denoiser import family_of, predict
from .encoding import Encoders
from .guidance import Branch, Pair, branches, prompt_conditions
from .mel import MelSpec
from .schedules import check_steps
from .vocoder import vocode
from .weights import aligned

AUDIOLDM_BETAS = (0.0015, 0.0195)
TANGO_BETAS = (0.00085, 0.012)
TRAIN_STEPS = 1000

OutputType = Literal["np", "pt", "latent"]


def scheduler(prediction_type: str = "v_prediction", betas: tuple[float, float] = AUDIOLDM_BETAS) -> Any:
    """The default sampler: DDIM over 1,000 levels whose square roots of beta are evenly spaced.

    Parameters
    ----------
    prediction_type
        ``"v_prediction"`` or ``"epsilon"``, what the denoiser was trained for.
    betas
        First and last: AudioLDM's by default, or ``TANGO_BETAS``.

    Returns
    -------
    DDIMScheduler
        Without clipping: latents are not images in [-1, 1], and diffusers' default would cut them.

    Examples
    --------
    >>> scheduler().config.clip_sample
    False
    """
    return DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_start=betas[0],
        beta_end=betas[1],
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class RetrievalAugmentedAudioPipeline(DiffusionPipeline):
    """Text to audio, steered by retrieved pairs of caption and sound where there are any.

    Parameters
    ----------
    vae
        The codec of log-mels.
    unet
        The denoiser, of any family of :mod:`auscult.generation.denoiser`.
    scheduler
        Of diffusers; :func:`scheduler` makes the default one.
    vocoder
        ``SpeechT5HifiGan`` or ``GriffinLimVocoder``.
    prompt_encoder, prompt_tokenizer, caption_encoder, caption_tokenizer, audio_encoder, audio_extractor
        As :class:`~auscult.generation.encoding.Encoders` takes them. The family ``"retrieval"`` needs a prompt encoder, and
        ``"tango"`` a caption encoder, ``"audioldm2"`` both; the others are needed where references are given as captions and
        sounds.
    mel
        Settings of the log-mel, a :class:`~auscult.generation.mel.MelSpec` or its dictionary.
    duration_s
        How long a sound is unless a call says otherwise.
    retrieval
        What it was trained beside, see :mod:`~auscult.generation.trained_pairs`; None: not known.
    """

    model_cpu_offload_seq = "prompt_encoder->caption_encoder->audio_encoder->unet->vae->vocoder"
    _optional_components: ClassVar[list[str]] = [
        "prompt_encoder",
        "prompt_tokenizer",
        "caption_encoder",
        "caption_tokenizer",
        "audio_encoder",
        "audio_extractor",
    ]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self,
        vae: Any,
        unet: Any,
        scheduler: Any,
        vocoder: Any,
        prompt_encoder: Any = None,
        prompt_tokenizer: Any = None,
        caption_encoder: Any = None,
        caption_tokenizer: Any = None,
        audio_encoder: Any = None,
        audio_extractor: Any = None,
        mel: Any = None,
        duration_s: float = 10.24,
        retrieval: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            vocoder=vocoder,
            prompt_encoder=prompt_encoder,
            prompt_tokenizer=prompt_tokenizer,
            caption_encoder=caption_encoder,
            caption_tokenizer=caption_tokenizer,
            audio_encoder=audio_encoder,
            audio_extractor=audio_extractor,
        )
        spec = mel if isinstance(mel, MelSpec) else MelSpec.from_dict(mel or {})
        self.register_to_config(mel=spec.to_dict(), duration_s=float(duration_s), retrieval=retrieval)
        self._interrupt = False

    @classmethod
    def of(cls, vae: Any, unet: Any, scheduler: Any, vocoder: Any, encoders: Encoders, **settings: Any) -> Any:
        """A pipeline of parts and encoders; ``settings`` are ``mel``, ``duration_s`` and ``retrieval``."""
        return cls(
            vae,
            unet,
            scheduler,
            vocoder,
            encoders.prompt,
            encoders.prompt_tokenizer,
            encoders.caption,
            encoders.caption_tokenizer,
            encoders.audio,
            encoders.audio_extractor,
            **settings,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **settings: Any) -> Any:
        """Load a folder or a name on the hub, as diffusers does; on the CPU it sounds bitwise as before it was saved."""
        pipe = super().from_pretrained(pretrained_model_name_or_path, **settings)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                aligned(part)
        return pipe

    @property
    def encoders(self) -> Encoders:
        """The encoders behind one interface."""
        return Encoders(
            self.prompt_encoder,
            self.prompt_tokenizer,
            self.caption_encoder,
            self.caption_tokenizer,
            self.audio_encoder,
            self.audio_extractor,
        )

    @property
    def mel(self) -> MelSpec:
        """Settings of the log-mel."""
        return MelSpec.from_dict(self.config.mel)

    @property
    def sample_rate_hz(self) -> int:
        """Of the sounds that come out, and of those that go in as references."""
        return self.mel.sample_rate_hz

    @property
    def preview_quality(self) -> bool:
        """Whether the vocoder is one without training, whose sound is recognizable and no more."""
        return bool(getattr(self.vocoder, "preview_quality", False))

    @property
    def interrupt(self) -> bool:
        """Set ``_interrupt`` in a callback to stop after the step."""
        return self._interrupt

    def latent_shape(self, duration_s: float | None = None) -> tuple[int, int, int]:
        """Shape (C, F, M) of the latents of one sound, which last at least as long as it.

        Raises
        ------
        ValueError
            The duration is not above 0.
        """
        spec, by = self.mel, fold(self.vae)
        frames = math.ceil(self._samples(duration_s) / spec.hop_length)
        return int(self.unet.config["in_channels"]), math.ceil(frames / by), spec.n_mels // by

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        references: Conditions | Sequence[Sequence[Pair]] | None = None,
        k: int | None = None,
        negative_prompt: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        retrieval_scale: float | None = None,
        num_waveforms_per_prompt: int = 1,
        seeds: int | Sequence[int] = 0,
        eta: float = 0.0,
        duration_s: float | None = None,
        latents: torch.Tensor | None = None,
        callback_on_step_end: Callable[..., Mapping[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        output_type: OutputType = "np",
        return_dict: bool = True,
    ) -> Any:
        """Make sounds.

        Parameters
        ----------
        prompt
            One, or P of them.
        references
            Per prompt a list of pairs (caption, waveform at ``sample_rate_hz``), of any number, none included; or streams that
            :func:`~auscult.generation.conditioning.references` made, of P rows.
        k
            Of each list the first ``k``; all without it.
        negative_prompt
            What guidance leads away from; by default the empty text, as in training.
        num_inference_steps
            Of the scheduler.
        guidance_scale
            ``u + s (c - u)``; 1 is without guidance, 0 without a prompt.
        retrieval_scale
            With it, ``guidance_scale`` acts on the prompt and this one on the references:
            ``u + s_t (c_t - u) + s_r (c_tr - c_t)``, with u without both, c_t without references.
        num_waveforms_per_prompt
            N sounds per prompt; those of the first prompt come first.
        seeds
            One per sound, P * N; or the first of so many in a row. Each sound has a generator of its own on the CPU, so
            that what a seed gives does not depend on the others in the batch or the device's own generator.
        eta
            Share of fresh noise in DDIM's steps; 0 is none.
        duration_s
            By default the pipeline's.
        latents
            (P * N, C, F, M) to start from instead of what the seeds give.
        callback_on_step_end
            Called with the pipeline, the step's number, its time step and ``{"latents": ...}``; latents in the mapping that it
            returns go on.
        output_type
            ``"np"`` or ``"pt"``: audio, or ``"latent"``.
        return_dict
            Return a tuple otherwise.

        Returns
        -------
        AudioPipelineOutput
            ``audios`` (P * N, samples) float32, not clipped; or latents (P * N, C, F, M).

        Warns
        -----
        UserWarning
            A prompt is longer than what its encoder reads.

        Raises
        ------
        ValueError
            A prompt is empty, numbers of references or seeds do not fit, or a scheduler cannot take the steps.
        """
        _check_call(num_inference_steps, num_waveforms_per_prompt, output_type, callback_on_step_end_tensor_inputs)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        total = len(prompts) * num_waveforms_per_prompt
        generators = [torch.Generator().manual_seed(seed) for seed in _seeds(seeds, total)]
        conditions = prompt_conditions(
            self.encoders, family_of(self.unet), prompts, references, k, negative_prompt, self.sample_rate_hz
        )
        rows = torch.arange(len(prompts)).repeat_interleave(num_waveforms_per_prompt)
        parts = [
            Branch(branch.weight, branch.conditions.select(rows))
            for branch in branches(conditions, guidance_scale, retrieval_scale)
        ]
        shape = self.latent_shape(duration_s)
        latents = self._start(latents, (total, *shape), generators, num_inference_steps)
        self._interrupt = False
        denoised = self._denoise(latents, parts, generators, eta, callback_on_step_end)
        result = self._output(denoised, duration_s, output_type)
        self.maybe_free_model_hooks()
        return AudioPipelineOutput(audios=result) if return_dict else (result,)

    def _samples(self, duration_s: float | None) -> int:
        duration = self.config.duration_s if duration_s is None else duration_s
        samples = round(duration * self.sample_rate_hz)
        if samples < 1:
            raise ValueError(f"duration_s should be above 0, got {duration}")
        return samples

    def _start(
        self, latents: torch.Tensor | None, shape: tuple[int, ...], generators: list[torch.Generator], steps: int
    ) -> torch.Tensor:
        """Noise, or the latents given, at the level at which the scheduler begins."""
        device = self._execution_device
        check_steps(type(self.scheduler).__name__, self.scheduler.config, steps, "num_inference_steps")
        self.scheduler.set_timesteps(steps, device=device)
        if latents is None:
            # one by one, always float32 and on the CPU: a seed means the same everywhere
            latents = torch.stack([torch.randn(shape[1:], generator=generator) for generator in generators])
        elif tuple(latents.shape) != shape:
            raise ValueError(
                f"expected latents of shape {shape} for these prompts and this duration, got {tuple(latents.shape)}"
            )
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def _denoise(
        self,
        latents: torch.Tensor,
        parts: list[Branch],
        generators: list[torch.Generator],
        eta: float,
        callback: Callable[..., Mapping[str, Any] | None] | None,
    ) -> torch.Tensor:
        steered = concatenate([part.conditions for part in parts]).to(latents.device)
        extra = self._step_arguments(generators, eta)
        timesteps = self.scheduler.timesteps
        with self.progress_bar(total=len(timesteps)) as bar:
            for number, step in enumerate(timesteps):
                if self._interrupt:
                    break
                noisy = self.scheduler.scale_model_input(torch.cat([latents] * len(parts)), step).to(self.unet.dtype)
                predicted = predict(self.unet, noisy, step, steered).float().chunk(len(parts))
                guided = sum(part.weight * each for part, each in zip(parts, predicted, strict=True))
                latents = self.scheduler.step(guided, step, latents, **extra, return_dict=False)[0]
                if callback is not None:
                    latents = (callback(self, number, step, {"latents": latents}) or {}).get("latents", latents)
                bar.update()
        return latents

    def _step_arguments(self, generators: list[torch.Generator], eta: float) -> dict[str, Any]:
        """Those of ``eta`` and ``generator`` that the scheduler's step takes."""
        taken = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in (("eta", eta), ("generator", generators)) if name in taken}

    def _output(self, latents: torch.Tensor, duration_s: float | None, output_type: OutputType) -> Any:
        if output_type == "latent":
            return latents
        mel = from_latents(self.vae, latents).float()
        audio = vocode(self.vocoder, mel, self._samples(duration_s)).float().cpu()
        return audio.numpy() if output_type == "np" else audio


def _seeds(seeds: int | Sequence[int], total: int) -> list[int]:
    if not isinstance(seeds, Iterable):
        return [int(seeds) + number for number in range(total)]
    if len(seeds) != total:
        raise ValueError(f"expected one seed per sound, {total}, got {len(seeds)}")
    return [int(seed) for seed in seeds]


def _check_call(steps: int, per_prompt: int, output_type: str, tensor_inputs: Sequence[str]) -> None:
    if steps < 1 or per_prompt < 1:
        raise ValueError(f"num_inference_steps and num_waveforms_per_prompt should be at least 1, got {steps} and {per_prompt}")
    if output_type not in ("np", "pt", "latent"):
        raise ValueError(f"output_type should be 'np', 'pt' or 'latent', got {output_type!r}")
    if tuple(tensor_inputs) != ("latents",):
        raise ValueError(f"callback_on_step_end_tensor_inputs can only be ['latents'], got {list(tensor_inputs)}")
