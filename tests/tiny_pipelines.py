"""Tiny real pipelines of diffusers' classes: built from configurations, saved to folders, and found and called as any other."""

from __future__ import annotations

import string
import warnings
from pathlib import Path
from typing import Any

import diffusers as d
import torch
import transformers as t

from auscult.generation.audioldm2 import WrittenTokenEncoder
from auscult.generation.autoencoder import PatchPCACodec
from auscult.generation.denoiser import DenoiserConfig, Family, build
from auscult.generation.encoders import HashedCaptionEncoder, HashedPromptEncoder, MelTokenEncoder
from auscult.generation.encoding import Encoders
from auscult.generation.mel import MelSpec
from auscult.generation.pipeline import RetrievalAugmentedAudioPipeline
from auscult.generation.pipelines import quiet
from auscult.generation.vocoder import GriffinLimVocoder
from tiny_models import CLAP_AUDIO, CLAP_TEXT

RATE_HZ = 16_000
WIDTH = 16  # of every vector and token
TEXT = {**CLAP_TEXT, "max_position_embeddings": 40, "projection_dim": WIDTH}
BLOCKS = {
    "sample_size": 16,  # latent frames, x 2 (the codec) x 20 (the vocoder) = 640 samples
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
EDM = {
    "sigma_min": 0.3,
    "sigma_max": 500,
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
    "prediction_type": "v_prediction",
    "solver_order": 2,
}


def scheduler() -> Any:
    return d.DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _codec_and_vocoder() -> dict[str, Any]:
    vae = d.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    vocoder = t.SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=RATE_HZ,
        upsample_initial_channel=16,
        upsample_rates=[5, 4],
        upsample_kernel_sizes=[9, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        normalize_before=False,
    )
    return {"vae": vae, "vocoder": t.SpeechT5HifiGan(vocoder), "scheduler": scheduler()}


def _clap() -> Any:
    return t.ClapModel(t.ClapConfig(text_config=TEXT, audio_config=CLAP_AUDIO, projection_dim=WIDTH))


def _roberta() -> Any:
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    letters = {letter: number + 5 for number, letter in enumerate("Ġ" + string.ascii_lowercase)}
    return t.RobertaTokenizer(vocab={**special, **letters}, merges=[], model_max_length=32)


def _t5() -> Any:
    return t.T5EncoderModel(t.T5Config(vocab_size=40, d_model=WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=4))


def _t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0), ("▁", -2.0)]
    return t.T5TokenizerFast(
        vocab=[*pieces, *((letter, -3.0) for letter in string.ascii_lowercase)], extra_ids=0, model_max_length=24
    )


def _film_unet() -> Any:
    return d.UNet2DConditionModel(
        **BLOCKS,
        cross_attention_dim=(8, 16),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=WIDTH,
        class_embeddings_concat=True,
    )


def audioldm() -> Any:
    return d.AudioLDMPipeline(
        text_encoder=t.ClapTextModelWithProjection(t.ClapTextConfig(**TEXT)),
        tokenizer=_roberta(),
        unet=_film_unet(),
        **_codec_and_vocoder(),
    )


def musicldm() -> Any:
    return d.MusicLDMPipeline(
        text_encoder=_clap(),
        tokenizer=_roberta(),
        feature_extractor=t.ClapFeatureExtractor(),
        unet=_film_unet(),
        **_codec_and_vocoder(),
    )


def _writer() -> Any:
    language = t.GPT2Config(n_embd=WIDTH, n_layer=1, n_head=2, vocab_size=10, n_positions=64)
    projection = d.AudioLDM2ProjectionModel(text_encoder_dim=WIDTH, text_encoder_1_dim=WIDTH, langauge_model_dim=WIDTH)
    clap = t.ClapTextModelWithProjection(t.ClapTextConfig(**TEXT))
    return WrittenTokenEncoder.of(clap, projection, t.GPT2Model(language))


def audioldm2(*, headed: bool = False) -> Any:
    """Without a head on its language model, as the public checkpoints are."""
    config = t.GPT2Config(
        n_embd=WIDTH, n_layer=1, n_head=2, vocab_size=10, n_positions=64, bos_token_id=0, eos_token_id=0, max_new_tokens=8
    )
    return d.AudioLDM2Pipeline(
        text_encoder=_clap(),
        text_encoder_2=_t5(),
        projection_model=d.AudioLDM2ProjectionModel(text_encoder_dim=WIDTH, text_encoder_1_dim=WIDTH, langauge_model_dim=WIDTH),
        language_model=t.GPT2LMHeadModel(config) if headed else t.GPT2Model(config),
        tokenizer=_roberta(),
        tokenizer_2=_t5_tokenizer(),
        feature_extractor=t.ClapFeatureExtractor(),
        unet=d.AudioLDM2UNet2DConditionModel(**BLOCKS, cross_attention_dim=[[None, WIDTH, WIDTH]] * 2),
        **_codec_and_vocoder(),
    )


def stable_audio(scheduler: Any = None, frames: int = 100) -> Any:
    """Sounds of at most 8 samples a latent frame."""
    return d.StableAudioPipeline(
        vae=d.AutoencoderOobleck(
            encoder_hidden_size=8,  # of which half are means
            downsampling_ratios=[1, 2, 4],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
            channel_multiples=[1, 2, 4],
            sampling_rate=RATE_HZ,
        ),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
        projection_model=d.pipelines.stable_audio.StableAudioProjectionModel(
            text_encoder_dim=WIDTH, conditioning_dim=WIDTH, min_value=0, max_value=32
        ),
        transformer=d.StableAudioDiTModel(
            sample_size=frames,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            out_channels=4,
            cross_attention_dim=WIDTH,
            time_proj_dim=8,
            global_states_input_dim=2 * WIDTH,
            cross_attention_input_dim=WIDTH,
        ),
        scheduler=scheduler or d.EDMDPMSolverMultistepScheduler(**EDM),
    )


def retrieval_augmented(retrieval: Any = None, family: Family = "retrieval") -> Any:
    """With hashed encoders and a codec of random components; sounds of 0.32 s."""
    mel = MelSpec()
    log_mels = -6.9 + 2.3 * torch.randn(8, 1, 32, mel.n_mels)
    if family == "audioldm2":
        unet = d.AudioLDM2UNet2DConditionModel(
            **{**BLOCKS, "in_channels": 8, "out_channels": 8}, cross_attention_dim=[[None, WIDTH, WIDTH]] * 2
        )
        encoders = Encoders(_writer(), _roberta(), _t5(), _t5_tokenizer(), None, None)
    else:
        widths = {"prompt_dim": 0, "audio_dim": 0} if family == "tango" else {}
        unet = build(DenoiserConfig(family, (8, 16), heads=(2, 2), attention=(False, True), norm_groups=4, **widths))
        prompt = None if family == "tango" else HashedPromptEncoder()
        encoders = Encoders(prompt, None, HashedCaptionEncoder(), None, MelTokenEncoder(), None)
    return RetrievalAugmentedAudioPipeline.of(
        PatchPCACodec.fit(log_mels),
        unet,
        scheduler(),
        GriffinLimVocoder(iterations=2),
        encoders,
        mel=mel,
        duration_s=0.32,
        retrieval=retrieval,
    )


PIPELINES = {
    "RetrievalAugmentedAudioPipeline": retrieval_augmented,
    "AudioLDMPipeline": audioldm,
    "AudioLDM2Pipeline": audioldm2,
    "MusicLDMPipeline": musicldm,
    "StableAudioPipeline": stable_audio,
}
FURTHER: dict[str, Any] = {}  # that auscult generate does not call, and guidance can steer


def make(kind: str, seed: int = 0, **settings: Any) -> Any:
    """A pipeline of random weights, large enough that every prompt sounds differently."""
    with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        pipe = (PIPELINES | FURTHER)[kind](**settings)
        with torch.no_grad():
            for part in pipe.components.values():
                for parameter in part.parameters() if isinstance(part, torch.nn.Module) else ():
                    if parameter.dim() > 1:
                        parameter.normal_(std=1.0 / parameter[0].numel() ** 0.5)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        return pipe


def save(folder: Path, kind: str, seed: int = 0, **settings: Any) -> Path:
    """:func:`make`, saved."""
    pipe = make(kind, seed, **settings)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.save_pretrained(folder)
    return folder
