"""AudioLDM 2's prompts: eight tokens in AudioMAE's space that a language model writes, beside T5's tokens of the text.

Both streams of its denoiser begin with the prompt's tokens, and those of retrieved pairs stand behind them: what the language
model writes is of the kind that AudioMAE makes of sounds, so retrieved sounds need no new weights.

Source: Liu et al., "AudioLDM 2: Learning Holistic Audio Generation With Self-Supervised Pretraining", IEEE/ACM TASLP 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AudioLDM2ProjectionModel, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from transformers import ClapTextConfig, ClapTextModelWithProjection, GPT2Config, GPT2Model

from .conditioning import Tokens, stacked

WRITTEN = 8  # tokens that the public models were trained with


class WrittenTokenEncoder(ModelMixin, ConfigMixin):
    """The text side of CLAP, the projection and the language model of AudioLDM 2 in one.

    Each prompt is written for by itself, without padding: the language model counts positions, so padding would change what it
    writes, and a prompt's tokens would depend on the others in the batch.

    Parameters
    ----------
    clap, projection, language
        Configurations of ``ClapTextModelWithProjection``, ``AudioLDM2ProjectionModel`` and ``GPT2Model``.
    tokens
        Written for each prompt.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self, clap: dict[str, Any], projection: dict[str, Any], language: dict[str, Any], tokens: int = WRITTEN
    ) -> None:
        super().__init__()
        self.text_side = ClapTextModelWithProjection(ClapTextConfig(**clap))
        self.projector = AudioLDM2ProjectionModel(**projection)
        self.writer = GPT2Model(GPT2Config(**language))

    @classmethod
    def of(cls, clap: Any, projection: Any, language: Any) -> WrittenTokenEncoder:
        """Of loaded models, whose weights it shares."""
        settings = {name: value for name, value in projection.config.items() if not name.startswith("_")}
        with torch.random.fork_rng(devices=[]):
            encoder = cls(clap.config.to_dict(), settings, language.config.to_dict())
        encoder.text_side, encoder.projector, encoder.writer = clap, projection, language
        return encoder.eval()

    @torch.no_grad()
    def forward(self, prompts: Sequence[str], tokenizer: Any, text: Tokens) -> Tokens:
        """Tokens (B, 8, D) of prompts.

        Parameters
        ----------
        prompts
            B texts.
        tokenizer
            CLAP's.
        text
            T5's tokens (B, L, D) of the same prompts.
        """
        rows = []
        for prompt, values, mask in zip(prompts, *text, strict=True):
            ids = tokenizer([prompt], truncation=True, max_length=self._longest(tokenizer), return_tensors="pt").to(self.device)
            vector = torch.nn.functional.normalize(self.text_side(**ids).text_embeds, dim=1)
            rows.append(self._written(vector[:, None], values[mask][None].to(self.device)))
        return stacked([Tokens(row, torch.ones(row.shape[:2], dtype=torch.bool, device=row.device)) for row in rows])

    def _written(self, vector: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(1, 8, D): the language model reads both and then, token by token, what it wrote."""
        ones = [torch.ones(part.shape[:2], dtype=torch.long, device=part.device) for part in (vector, text)]
        read = self.projector(vector, text, *ones).hidden_states
        for _ in range(self.config.tokens):
            read = torch.cat([read, self.writer(inputs_embeds=read).last_hidden_state[:, -1:]], dim=1)
        return read[:, -self.config.tokens :]

    def _longest(self, tokenizer: Any) -> int:
        config = self.text_side.config
        return int(min(tokenizer.model_max_length, config.max_position_embeddings - config.pad_token_id - 1))
