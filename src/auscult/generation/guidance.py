"""Conditions of a batch of prompts with, without references and without both, and how guidance weighs what they predict."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .conditioning import Conditions, Tokens, joined, references
from .denoiser import Family
from .encoding import Encoders

Pair = tuple[str, Any]  # a caption and a waveform (time,)


class Branch(NamedTuple):
    """One of the predictions that guidance adds up."""

    weight: float
    conditions: Conditions


@dataclass(frozen=True)
class PromptConditions:
    """Three sets of conditions, of one row per prompt.

    Attributes
    ----------
    null
        Neither prompt (or the negative one) nor references.
    prompt
        The prompt alone.
    full
        Prompt and references; the same object as ``prompt`` where there are none.
    """

    null: Conditions
    prompt: Conditions
    full: Conditions


def branches(conditions: PromptConditions, guidance_scale: float, retrieval_scale: float | None = None) -> list[Branch]:
    """The predictions that are needed, and their weights, which sum to 1.

    One scale: ``(1 - s) u + s c``. Two: ``(1 - s_t) u + (s_t - s_r) c_t + s_r c_tr``, which is
    ``u + s_t (c_t - u) + s_r (c_tr - c_t)``. What has weight 0 is not computed.
    """
    if retrieval_scale is None or conditions.full is conditions.prompt:
        weighted = [(1 - guidance_scale, conditions.null), (guidance_scale, conditions.full)]
    else:
        weighted = [
            (1 - guidance_scale, conditions.null),
            (guidance_scale - retrieval_scale, conditions.prompt),
            (retrieval_scale, conditions.full),
        ]
    return [Branch(weight, each) for weight, each in weighted if weight]


def prompt_conditions(
    encoders: Encoders,
    family: Family,
    prompts: Sequence[str],
    given: Conditions | Sequence[Sequence[Pair]] | None,
    k: int | None,
    negative_prompt: str,
    rate_hz: int,
) -> PromptConditions:
    """Encode prompts and their references.

    Parameters
    ----------
    encoders, family
        Of the pipeline.
    prompts
        P texts.
    given, k
        As the pipeline takes them.
    negative_prompt
        The text of the null condition.
    rate_hz
        Of the references' waveforms.

    Warns
    -----
    UserWarning
        A prompt is longer than what its encoder reads.

    Raises
    ------
    ValueError
        A prompt is empty, there are none, or numbers of references do not fit.
    """
    _check_prompts(encoders, prompts)
    retrieved = _retrieved(encoders, family, len(prompts), given, k, rate_hz)
    if family == "retrieval":
        # the null token alone is what a missing stream means, so conditions without references need no stream
        plain = Conditions(encoders.prompts(prompts))
        null = Conditions(encoders.prompts([negative_prompt]).expand(len(prompts), -1))
        full = plain if retrieved is None else replace(retrieved.to(_device(plain)), prompt=plain.prompt)
        return PromptConditions(null, plain, full)
    plain = encoded_prompts(encoders, family, prompts)
    null = encoded_prompts(encoders, family, [negative_prompt]).select([0] * len(prompts))
    full = plain if retrieved is None else behind(plain, retrieved.to(_device(plain)))
    return PromptConditions(null, plain, full)


def encoded_prompts(encoders: Encoders, family: Family, prompts: Sequence[str]) -> Conditions:
    """Prompts as the family reads them: vectors (``"retrieval"``), T5's tokens (``"tango"``), or also written ones."""
    if family == "retrieval":
        return Conditions(encoders.prompts(prompts))
    text = encoders.captions(prompts)
    return Conditions(None, *text, *(encoders.written(prompts, text) if family == "audioldm2" else (None, None)))


def behind(prompts: Conditions, retrieved: Conditions) -> Conditions:
    """Streams that begin with the prompt's tokens, with those of retrieved pairs behind them, where there are both.

    The null token that the retrieved streams begin with is left out: the prompt's tokens are always there.
    """

    def longer(prompt: Tokens | None, pairs: Tokens | None) -> Tokens | tuple[None, None]:
        if prompt is None or pairs is None:
            return prompt or (None, None)
        return joined(prompt, Tokens(pairs.values[:, 1:], pairs.mask[:, 1:]))

    return Conditions(None, *longer(prompts.text, retrieved.text), *longer(prompts.audio, retrieved.audio))


def _device(conditions: Conditions) -> Any:
    first = conditions.prompt if conditions.prompt is not None else conditions.text_tokens
    return None if first is None else first.device


def _retrieved(
    encoders: Encoders,
    family: Family,
    rows: int,
    given: Conditions | Sequence[Sequence[Pair]] | None,
    k: int | None,
    rate_hz: int,
) -> Conditions | None:
    """Streams of the references, or None where there are none."""
    if given is None:
        if k:
            raise ValueError(f"k={k} references are wanted, and none are given; pass references, or leave k out")
        return None
    if len(given) != rows:
        raise ValueError(f"expected references for {rows} prompts, got them for {len(given)}")
    if k == 0:
        return None
    if isinstance(given, Conditions):
        if k is not None:
            raise ValueError("k chooses among pairs; references that are encoded already have their number")
        return replace(given, prompt=None)
    chosen = [_first(pairs, k, row) for row, pairs in enumerate(given)]
    pairs = [pair for of_row in chosen for pair in of_row]
    if not pairs:
        return None
    text = encoders.captions([caption for caption, _ in pairs]) if encoders.caption is not None else None
    hears = family != "tango" and encoders.audio is not None
    if text is None and not hears:
        raise ValueError(
            "references are given, and this pipeline has no encoder for captions or sounds; leave them out, or take k=0"
        )
    audio = encoders.audio_tokens([wave for _, wave in pairs], rate_hz) if hears else None
    return references(text, audio, [len(of_row) for of_row in chosen])


def _first(pairs: Sequence[Pair], k: int | None, row: int) -> Sequence[Pair]:
    if k is None:
        return pairs
    if k < 0 or len(pairs) < k:
        raise ValueError(f"expected at least k={k} references for prompt {row}, got {len(pairs)}; retrieve more, or lower k")
    return pairs[:k]


def _check_prompts(encoders: Encoders, prompts: Sequence[str]) -> None:
    if not prompts:
        raise ValueError("expected at least one prompt, got none")
    for number, text in enumerate(prompts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"prompt {number} is empty; describe a sound (guidance_scale=0 makes sounds without a prompt, whatever it is)"
            )
    for number, cut in enumerate(encoders.prompt_tokens_cut(prompts)):
        if cut:
            start = " ".join(prompts[number].split()[:6])
            warnings.warn(
                f"prompt {number} ({start!r} ...) is longer than its encoder reads: the last {cut} tokens have no influence",
                UserWarning,
                stacklevel=4,
            )
