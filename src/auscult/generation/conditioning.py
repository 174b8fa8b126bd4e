"""What steers a denoiser, as tensors: the prompt's vector, and tokens of retrieved captions and sounds with their masks.

Diffusers adds -10,000 to the scores of masked keys. A key that is masked beside others that are not has exactly no influence;
but where all are masked the softmax forgets it, and the result is that of masking none. So each stream of retrieved tokens
begins with one null token of zeros that is never masked: attention to it alone is what "nothing was retrieved" means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Tokens(NamedTuple):
    """Tokens of several items, padded to one length.

    Attributes
    ----------
    values
        (B, L, D).
    mask
        (B, L) bool: True where a token counts.
    """

    values: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Conditions:
    """What steers the denoiser, one row per sound.

    Attributes
    ----------
    prompt
        (B, D) unit vectors, or None in the families ``"tango"`` and ``"audioldm2"``.
    text_tokens, text_mask
        (B, L, D) and (B, L) bool, or both None: tokens of retrieved captions (family ``"retrieval"``), or of the prompt and
        then of retrieved captions (the other families).
    audio_tokens, audio_mask
        The same of retrieved sounds; in the family ``"audioldm2"`` tokens that were written for the prompt come first.

    Raises
    ------
    ValueError
        Shapes disagree, a stream lacks its mask, or a row of a mask is False throughout, which diffusers reads as all True.
    """

    prompt: torch.Tensor | None = None
    text_tokens: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None
    audio_tokens: torch.Tensor | None = None
    audio_mask: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name, values, mask in (("text", self.text_tokens, self.text_mask), ("audio", self.audio_tokens, self.audio_mask)):
            _check_stream(name, values, mask)
        lengths = {len(values) for values in (self.prompt, self.text_tokens, self.audio_tokens) if values is not None}
        if len(lengths) != 1:
            raise ValueError(f"conditions need a prompt or a stream, all with equally many rows, got {sorted(lengths)}")

    def __len__(self) -> int:
        first = next(values for values in (self.prompt, self.text_tokens, self.audio_tokens) if values is not None)
        return len(first)

    @property
    def text(self) -> Tokens | None:
        """The text stream."""
        return None if self.text_tokens is None or self.text_mask is None else Tokens(self.text_tokens, self.text_mask)

    @property
    def audio(self) -> Tokens | None:
        """The audio stream."""
        return None if self.audio_tokens is None or self.audio_mask is None else Tokens(self.audio_tokens, self.audio_mask)

    def select(self, rows: torch.Tensor | Sequence[int]) -> Conditions:
        """Some rows, in the given order."""
        index = torch.as_tensor(rows)
        return self._map(lambda values: values[index.to(values.device)])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditions:
        """On another device, and of another type of floats; masks stay bool."""
        return self._map(lambda values: values.to(device=device, dtype=dtype if values.is_floating_point() else None))

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditions:
        fields = (self.prompt, self.text_tokens, self.text_mask, self.audio_tokens, self.audio_mask)
        return Conditions(*(None if values is None else change(values) for values in fields))


def null_tokens(
    rows: int, width: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tokens:
    """One token of zeros per row: a stream without references.

    Examples
    --------
    >>> values, mask = null_tokens(2, 3)
    >>> values.shape, mask.tolist()
    (torch.Size([2, 1, 3]), [[True], [True]])
    """
    return Tokens(torch.zeros(rows, 1, width, device=device, dtype=dtype), torch.ones(rows, 1, dtype=torch.bool, device=device))


def references(text: Tokens | None, audio: Tokens | None, counts: Sequence[int], k_max: int | None = None) -> Conditions:
    """Streams of retrieved pairs, without a prompt yet.

    Each stream is the null token, then the tokens of the row's first pair, of its second, and so on; what is missing to
    ``k_max`` pairs is masked zeros. Source: Yuan et al., ICASSP 2024, section 3.2, where the tokens of all pairs are
    concatenated; the null token is this package's.

    Parameters
    ----------
    text, audio
        Tokens (P, L, D) of all pairs, those of the first row first; None leaves the stream out.
    counts
        How many pairs each row has, 0 allowed; they sum to P.
    k_max
        Pairs to leave room for; by default the largest count.

    Returns
    -------
    Conditions
        ``len(counts)`` rows with streams of length 1 + k_max * L.

    Raises
    ------
    ValueError
        Both streams are None, or counts do not fit.

    Examples
    --------
    >>> pairs = Tokens(torch.ones(3, 2, 4), torch.ones(3, 2, dtype=torch.bool))
    >>> references(pairs, None, [1, 0, 2]).text_mask.int().tolist()
    [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    """
    streams = [stream for stream in (text, audio) if stream is not None]
    if not streams:
        raise ValueError("expected text tokens, audio tokens or both, got neither")
    if min(counts, default=-1) < 0 or {len(stream.values) for stream in streams} != {sum(counts)}:
        pairs = " and ".join(str(len(stream.values)) for stream in streams)
        raise ValueError(f"expected numbers of pairs that sum to the pairs given ({pairs}), got {list(counts)}")
    room = max(counts) if k_max is None else k_max
    if max(counts) > room:
        raise ValueError(f"expected at most k_max={room} pairs per row, got {max(counts)}")
    built = [(None, None) if stream is None else _laid_out(stream, counts, room) for stream in (text, audio)]
    return Conditions(None, *built[0], *built[1])


def _laid_out(pairs: Tokens, counts: Sequence[int], room: int) -> Tokens:
    """The pairs of each row behind one another: (B, 1 + room * L, D) and its mask."""
    _, length, width = pairs.values.shape
    values = pairs.values.new_zeros(len(counts), 1 + room * length, width)
    mask = pairs.mask.new_zeros(len(counts), 1 + room * length)
    mask[:, 0] = True
    start = 0
    for row, count in enumerate(counts):
        of_row = slice(start, start + count)
        flat = pairs.mask[of_row].reshape(-1)
        mask[row, 1 : 1 + len(flat)] = flat
        values[row, 1 : 1 + len(flat)] = pairs.values[of_row].reshape(-1, width)
        start += count
    return Tokens(values, mask)


def joined(first: Tokens, second: Tokens) -> Tokens:
    """Two streams behind one another, row by row: (B, L1 + L2, D)."""
    return Tokens(torch.cat((first.values, second.values), 1), torch.cat((first.mask, second.mask), 1))


def padded(tokens: Tokens, length: int) -> Tokens:
    """Masked zeros at the end, up to a length."""
    more = length - tokens.values.shape[1]
    return Tokens(
        torch.nn.functional.pad(tokens.values, (0, 0, 0, more)), torch.nn.functional.pad(tokens.mask, (0, more), value=False)
    )


def stacked(parts: Sequence[Tokens]) -> Tokens:
    """The rows of all parts, padded to the longest."""
    length = max(part.values.shape[1] for part in parts)
    filled = [padded(part, length) for part in parts]
    return Tokens(torch.cat([part.values for part in filled]), torch.cat([part.mask for part in filled]))


def concatenate(parts: Sequence[Conditions]) -> Conditions:
    """The rows of all parts; a stream that some of them lack is the null token there.

    Raises
    ------
    ValueError
        Some have a prompt and some have none.
    """
    prompts = [part.prompt for part in parts if part.prompt is not None]
    if len(prompts) not in (0, len(parts)):
        raise ValueError(f"expected conditions that all have a prompt or all have none, got {len(prompts)} of {len(parts)}")
    text = _stacked_streams([part.text for part in parts], [len(part) for part in parts])
    audio = _stacked_streams([part.audio for part in parts], [len(part) for part in parts])
    return Conditions(torch.cat(prompts) if prompts else None, *(text or (None, None)), *(audio or (None, None)))


def _stacked_streams(streams: Sequence[Tokens | None], rows: Sequence[int]) -> Tokens | None:
    there = next((stream.values for stream in streams if stream is not None), None)
    if there is None:
        return None
    width, like = there.shape[2], {"device": there.device, "dtype": there.dtype}
    return stacked([stream or null_tokens(count, width, **like) for stream, count in zip(streams, rows, strict=True)])


def choose(take_second: torch.Tensor, first: Conditions, second: Conditions) -> Conditions:
    """Row by row the one or the other, as the dropout of conditions in training needs it.

    Parameters
    ----------
    take_second
        (B,) bool.

    Raises
    ------
    ValueError
        Numbers of rows differ.
    """
    if not len(take_second) == len(first) == len(second):
        raise ValueError(f"expected equally many rows, got {len(take_second)}, {len(first)} and {len(second)}")
    rows = torch.arange(len(first)) + len(first) * take_second.cpu().long()
    return concatenate((first, second)).select(rows)


def _check_stream(name: str, values: torch.Tensor | None, mask: torch.Tensor | None) -> None:
    if values is None and mask is None:
        return
    if values is None or mask is None:
        raise ValueError(f"{name}_tokens and {name}_mask should both be there, or neither")
    if values.dim() != 3 or values.shape[:2] != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"expected {name}_tokens (B, L, D) and {name}_mask (B, L) of type bool, got {tuple(values.shape)} and "
            f"{tuple(mask.shape)} of type {mask.dtype}"
        )
    if mask.device.type == "cpu" and not bool(mask.any(1).all()):  # elsewhere the look would make the device wait
        raise ValueError(
            f"a row of {name}_mask is False throughout, which diffusers reads as True throughout; begin a stream with "
            "null_tokens, as references does"
        )
