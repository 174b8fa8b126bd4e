"""From public AudioLDM checkpoints to retrieval-augmented models that, before the first step, make what the public ones make.

AudioLDM attends to its own latents twice at each place where it attends; a retrieval-augmented denoiser does the same and then
reads two streams. So AudioLDM's blocks move into the first of three slots, and the two new ones begin with an output of
zero. AudioLDM 2 reads two streams already, and gets no new weights at all.

Sources: Liu et al., "AudioLDM", ICML 2023; Liu et al., "AudioLDM 2", IEEE/ACM TASLP 2024; Yuan et al., "Retrieval-Augmented
Text-to-Audio Generation", ICASSP 2024; beginning new layers at zero is that of Zhang et al., "ControlNet", ICCV 2023.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, UNet2DConditionModel

from ..errors import ModelError
from .audioldm2 import WrittenTokenEncoder
from .audiomae import AudioMAEEncoder
from .conditioning import Conditions
from .denoiser import family_of, predict, stream_widths
from .encoding import AST_EXAMPLE, T5_EXAMPLE, Encoders, load_encoders
from .gates import GateResult, check
from .mel import MelSpec
from .pipeline import RetrievalAugmentedAudioPipeline
from .public_parts import at_revision, in_words, load_codec, load_part, mel_of

TEXT_DIM, AUDIO_DIM = 1024, 768  # of flan-t5-large and AudioMAE, where no encoder is loaded
POOLED_2 = 8  # patches along time and frequency that are one token in AudioLDM 2
SLOTS = 3  # attention to the latents, to audio tokens, to text tokens
PRESERVED = 1e-5  # of the base model's standard deviation; 0 on most processors, products may be rounded in another order

_ATTENTION = re.compile(r"^((?:down_blocks|up_blocks)\.\d+|mid_block)\.attentions\.(\d+)\.")


def from_audioldm(
    source: str,
    *,
    caption: str | None = T5_EXAMPLE,
    audio: str | None = AST_EXAMPLE,
    heads: int | Sequence[int] | None = None,
    mel: MelSpec | None = None,
    duration_s: float = 10.24,
    seed: int = 0,
) -> Any:
    """AudioLDM as a retrieval-augmented pipeline that without references, and before training with them, is AudioLDM.

    Its codec, vocoder, text encoder and noise schedule are taken as they are.

    Parameters
    ----------
    source
        Folder or hub name (``OWNER/NAME[@REVISION]``) of an ``AudioLDMPipeline``, such as ``"cvssp/audioldm-s-full-v2"``.
    caption, audio
        Encoders of references, as :func:`~auscult.generation.encoding.load_encoders` takes them; None leaves one out, and its
        stream is as wide as flan-t5-large's (1024) or AudioMAE's (768) tokens.
    heads
        Attention heads, one number or one per level, instead of those in the checkpoint's configuration. The public ones say
        8 everywhere, while AudioLDM's own training code builds heads of 32 channels, 4, 8, 12 and 20; the weights have the
        same shapes either way. Compare both by :func:`~auscult.generation.starting_checks.compare_heads`.
    mel
        Settings of its log-mel, where they are not the published ones.
    duration_s
        How long a sound is unless a call says otherwise.
    seed
        Of the new weights.

    Returns
    -------
    RetrievalAugmentedAudioPipeline
        Of the family ``"retrieval"``, ready for ``save_pretrained`` and training.

    Raises
    ------
    ModelError
        It cannot be loaded, lacks weights, or is no AudioLDM.
    GateError
        The new denoiser does not compute what the old one does.
    """
    from transformers import ClapTextModelWithProjection

    unet = with_heads(load_part(UNet2DConditionModel, source, "unet"), heads)
    prompt = load_part(ClapTextModelWithProjection, source, "text_encoder")
    with in_words(source, "tokenizer"):
        tokenizer = _tokenizer(source, "tokenizer")
    vae, scheduler, vocoder = load_codec(source)
    spec = mel_of(vocoder, source, mel)
    others = load_encoders(None, caption, audio, mel=spec)
    encoders = Encoders(prompt, tokenizer, others.caption, others.caption_tokenizer, others.audio, others.audio_extractor)
    grown = add_streams(unet, encoders.text_dim or TEXT_DIM, encoders.audio_dim or AUDIO_DIM, seed=seed, name=source)
    check([preserved(unet, grown)])
    return RetrievalAugmentedAudioPipeline.of(vae, grown, scheduler, vocoder, encoders, mel=spec, duration_s=duration_s)


def from_audioldm2(
    source: str, *, audio: str | None = "audiomae", mel: MelSpec | None = None, duration_s: float = 10.24
) -> Any:
    """AudioLDM 2 as a pipeline that reads retrieved pairs beside the prompt, without any new weight.

    Its denoiser reads two streams already: tokens in AudioMAE's space, which a language model writes for the prompt, and T5's
    tokens of the prompt. Those of retrieved sounds and captions stand behind them. Without references it is AudioLDM 2 as it
    makes one prompt at a time; with them it should profit from training first.

    Parameters
    ----------
    source
        Folder or hub name (``OWNER/NAME[@REVISION]``) of an ``AudioLDM2Pipeline`` of sounds or music, such as
        ``"cvssp/audioldm2"``.
    audio
        Encoder of retrieved sounds: ``"audiomae"``, the space that its first stream is in (pooled by 8 x 8, as in its training,
        to 8 tokens of a sound); or another whose tokens are as wide, which it would have to be trained for; or None, captions
        alone.
    mel, duration_s
        As in :func:`from_audioldm`.

    Returns
    -------
    RetrievalAugmentedAudioPipeline
        Of the family ``"audioldm2"``.

    Raises
    ------
    ModelError
        It cannot be loaded, lacks weights, is no AudioLDM 2 (or one that speaks), or the encoder's tokens have another width.
    MissingExtraError
        timm is not installed and AudioMAE was asked for.
    """
    from transformers import ClapTextModelWithProjection, GPT2Model, T5EncoderModel

    projection = load_part(AudioLDM2ProjectionModel, source, "projection_model")
    if projection.config.use_learned_position_embedding is not None:
        raise ModelError(f"{source}: this AudioLDM 2 speaks transcriptions; take one of sounds, such as cvssp/audioldm2")
    unet = load_part(AudioLDM2UNet2DConditionModel, source, "unet")
    if stream_widths(unet) is None or family_of(unet) != "audioldm2":
        raise ModelError(
            f"{source}: its denoiser does not read two streams (cross_attention_dim of {unet.config.cross_attention_dim})"
        )
    with in_words(source, "tokenizers"):
        tokenizers = [_tokenizer(source, name) for name in ("tokenizer", "tokenizer_2")]
    clap = load_part(ClapTextModelWithProjection, source, "text_encoder")
    prompt = WrittenTokenEncoder.of(clap, projection, load_part(GPT2Model, source, "language_model"))
    caption = load_part(T5EncoderModel, source, "text_encoder_2")
    vae, scheduler, vocoder = load_codec(source)
    spec = mel_of(vocoder, source, mel)
    heard = load_encoders(None, None, audio, mel=spec)
    if isinstance(heard.audio, AudioMAEEncoder):
        heard.audio.register_to_config(pooled=POOLED_2)
    encoders = Encoders(prompt, tokenizers[0], caption, tokenizers[1], heard.audio, heard.audio_extractor)
    _check_widths(source, unet, encoders)
    return RetrievalAugmentedAudioPipeline.of(vae, unet, scheduler, vocoder, encoders, mel=spec, duration_s=duration_s)


def _tokenizer(source: str, subfolder: str) -> Any:
    from transformers import AutoTokenizer

    name, at = at_revision(source)
    return AutoTokenizer.from_pretrained(name, subfolder=subfolder, **at)


def _check_widths(source: str, unet: Any, encoders: Encoders) -> None:
    wide = stream_widths(unet)
    found = (encoders.audio_dim or wide[0], encoders.text_dim) if wide else None
    if found != wide:
        raise ModelError(
            f"{source}: its denoiser reads audio and text tokens of widths {wide}, and the encoders' have {found}; "
            "take AudioMAE (audio = 'audiomae') for sounds, or none"
        )


def add_streams(unet: Any, text_dim: int, audio_dim: int, *, seed: int = 0, name: str = "this denoiser") -> Any:
    """AudioLDM's denoiser with two more attentions at each place where it has one; whatever they read, its output stays.

    Parameters
    ----------
    unet
        AudioLDM's ``UNet2DConditionModel``: prompt vectors concatenated to the time step, attention to the latents alone.
    text_dim, audio_dim
        Widths of the tokens that the new attentions read.
    seed
        Of the new weights; the last layer of each new attention is zero.
    name
        For messages.

    Returns
    -------
    AudioLDM2UNet2DConditionModel
        Of the family ``"retrieval"``.

    Raises
    ------
    ModelError
        It is another kind of denoiser.

    Examples
    --------
    >>> levels = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "block_out_channels": (8, 16)}
    >>> levels |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": (8, 16)}
    >>> prompt = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 6}
    >>> base = UNet2DConditionModel(**levels, **prompt, class_embeddings_concat=True, norm_num_groups=8, attention_head_dim=2)
    >>> preserved(base, add_streams(base, 10, 12)).passed
    True
    """
    config = unet.config
    if config.class_embed_type != "simple_projection" or not config.class_embeddings_concat:
        raise ModelError(
            f"{name}: expected AudioLDM's denoiser, with class_embed_type 'simple_projection' and class_embeddings_concat, got "
            f"{config.class_embed_type!r} and {config.class_embeddings_concat!r}; for other models see the other starts"
        )
    taken = inspect.signature(AudioLDM2UNet2DConditionModel.__init__).parameters
    settings = {key: value for key, value in config.items() if key in taken and not key.startswith("_")}
    settings["cross_attention_dim"] = [[None, audio_dim, text_dim] for _ in config.block_out_channels]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = AudioLDM2UNet2DConditionModel(**settings).eval()
    moved = {_ATTENTION.sub(_first_slot, key): value for key, value in unet.state_dict().items()}
    found = {key: value.shape for key, value in grown.state_dict().items()}
    if strange := [key for key, value in moved.items() if found.get(key) != value.shape]:
        raise ModelError(
            f"{name}: {len(strange)} of its weights have no place in AudioLDM's denoiser, for example {strange[0]}"
        )
    grown.load_state_dict(moved, strict=False)
    for key, value in grown.named_parameters():
        if key not in moved and ".proj_out." in key:
            torch.nn.init.zeros_(value)
    return grown


def _first_slot(match: re.Match[str]) -> str:
    return f"{match[1]}.attentions.{SLOTS * int(match[2])}."


def brought_by(unet: Any) -> frozenset[str]:
    """Names of the parameters of a denoiser of :func:`add_streams` that AudioLDM brought: all but the two new slots'."""

    def new(name: str) -> bool:
        match = _ATTENTION.match(name)
        return match is not None and int(match[2]) % SLOTS > 0

    return frozenset(name for name, _ in unet.named_parameters() if not new(name))


def with_heads(unet: Any, heads: int | Sequence[int] | None) -> Any:
    """The same weights read with other numbers of attention heads; the denoiser itself where ``heads`` is None.

    Raises
    ------
    ModelError
        A number of channels is no multiple of its number of heads.
    """
    if heads is None:
        return unet
    channels = unet.config.block_out_channels
    wanted = [heads] * len(channels) if isinstance(heads, int) else list(heads)
    if len(wanted) != len(channels) or any(count < 1 or width % count for width, count in zip(channels, wanted, strict=True)):
        raise ModelError(
            f"expected one number of heads for each of the levels' channels {tuple(channels)} that divides it, got {heads}"
        )
    settings = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    other = type(unet)(**{**settings, "attention_head_dim": wanted})
    other.load_state_dict(unet.state_dict())
    return other.eval()


@torch.no_grad()
def preserved(base: Any, grown: Any) -> GateResult:
    """The gate of a start: with any references and with none, the new denoiser computes what the base one computes.

    The value is the largest difference over noise at three levels, in standard deviations of the base model's output.
    """
    config = grown.config
    side = 2 ** len(config.block_out_channels)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(base.dtype)

    noisy, prompt = random(3, config.in_channels, side, side), random(3, config.projection_class_embeddings_input_dim)
    prompt = torch.nn.functional.normalize(prompt, dim=1)
    _, audio_dim, text_dim = config.cross_attention_dim[0]
    mask = torch.ones(3, 2, dtype=torch.bool)
    shown = Conditions(prompt, random(3, 2, text_dim), mask, random(3, 2, audio_dim), mask)
    steps = torch.tensor([1, 500, 990])
    expected = base(noisy, steps, encoder_hidden_states=None, class_labels=prompt).sample
    found = torch.stack([predict(grown, noisy, steps, each) for each in (Conditions(prompt), shown)])
    value = float((found - expected).abs().max() / expected.std())
    message = f"before training, the retrieval-augmented denoiser differs from its base by {value:.1e} of its output"
    return GateResult("start", value <= PRESERVED, value, PRESERVED, message)
