"""Tiny real encoders of texts and sounds, saved in folders as the hub's are: what steers a text-to-audio model in tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from tiny_models import AST

T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_t5(folder: Path) -> Path:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -1.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.T5EncoderModel(transformers.T5Config(**T5)).save_pretrained(folder)
    return folder


def save_ast(folder: Path, **settings: Any) -> Path:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its lowest bands hold no frequency, as public
        torch.manual_seed(0)
        transformers.ASTModel(transformers.ASTConfig(**{**AST, **settings})).save_pretrained(folder)
        transformers.ASTFeatureExtractor().save_pretrained(folder)
    return folder
