"""Tiny real models of transformers' classes: built from configurations, saved, and loaded by the backends as any other."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

CLAP_TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
CLAP_AUDIO = {
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "patch_embeds_hidden_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_classes": 4,
}
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SPEECH = {**BLOCKS, "conv_dim": [4] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": 8}
PRETRAINING = {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4}
WHISPER = {
    "vocab_size": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "num_mel_bins": 20,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "d_model": 16,
    "max_source_positions": 50,
    "max_target_positions": 8,
}
ENCODEC = {
    "num_filters": 2,
    "hidden_size": 8,
    "codebook_dim": 8,
    "codebook_size": 16,
    "num_lstm_layers": 1,
    "target_bandwidths": [1.5],
    "upsampling_ratios": [20, 16],
}
AST = {**BLOCKS, "num_hidden_layers": 1, "num_labels": 5, "frequency_stride": 40, "time_stride": 40}


def build(name: str, **settings: Any) -> tuple[Any, Any]:
    """A model as the public checkpoints were saved (with heads that the backends do not need), and its feature extractor."""
    t = transformers
    if name == "clap":
        config = t.ClapConfig(text_config=CLAP_TEXT, audio_config={**CLAP_AUDIO, **settings}, projection_dim=24)
        return t.ClapModel(config), t.ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    if name == "ast":
        with warnings.catch_warnings():  # 128 bands, as public: the lowest hold no frequency
            warnings.simplefilter("ignore")
            return t.ASTForAudioClassification(t.ASTConfig(**{**AST, **settings})), t.ASTFeatureExtractor()
    if name == "encodec":
        return t.EncodecModel(t.EncodecConfig(**{**ENCODEC, **settings})), t.EncodecFeatureExtractor(sampling_rate=24_000)
    if name == "whisper":
        extractor = t.WhisperFeatureExtractor(feature_size=20, chunk_length=1)  # windows of 1 s
        return t.WhisperForConditionalGeneration(t.WhisperConfig(**{**WHISPER, **settings})), extractor
    extractor = t.Wav2Vec2FeatureExtractor(do_normalize=settings.pop("do_normalize", True))
    if name == "wav2vec2":
        return t.Wav2Vec2ForPreTraining(t.Wav2Vec2Config(**{**SPEECH, **PRETRAINING, **settings})), extractor
    if name == "hubert":
        return t.HubertModel(t.HubertConfig(**{**SPEECH, **settings})), extractor
    return t.WavLMModel(t.WavLMConfig(**{**SPEECH, **settings})), extractor


def save(folder: Path, name: str, seed: int = 0, **settings: Any) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, extractor = build(name, **settings)
        with torch.no_grad():  # as initialized, many a model gives nearly one vector for everything
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    if name == "clap":
        letters = {letter: number + 5 for number, letter in enumerate("Ġabcdefghijklmnopqrstuvwxyz")}
        special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
        transformers.RobertaTokenizer(vocab={**special, **letters}, merges=[]).save_pretrained(folder)
    return folder
