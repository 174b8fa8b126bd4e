"""References before they are an index: which sounds, and their vectors at unit length, less what all sounds share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812

from ..corpus import Clip, Skipped
from ..errors import AudioDecodeError, ModelError

_NEAR_ZERO = 1e-6  # of a unit vector less the center


def as_clips(clips: Iterable[Clip | Skipped | str | Path], captions: Sequence[str | None] | None) -> list[Clip]:
    """Clips of a corpus as they are, and of files with their paths as ids.

    Raises
    ------
    ValueError
        An id stands twice, or there is not one caption a clip.
    AudioDecodeError
        A corpus had to skip a sound.
    """
    listed = []
    for clip in clips:
        if isinstance(clip, Skipped) and clip.kind != "not_audio":
            raise AudioDecodeError(f"{clip.path}: {clip.reason}; a reference that cannot be read would not be protected")
        if not isinstance(clip, Skipped):
            listed.append(clip if isinstance(clip, Clip) else Clip(str(clip), str(clip)))
    if captions is not None:
        if len(captions) != len(listed):
            raise ValueError(f"expected one caption a clip, got {len(captions)} captions for {len(listed)} clips")
        listed = [replace(clip, caption=caption) for clip, caption in zip(listed, captions, strict=True)]
    seen: set[str] = set()
    for clip in listed:
        if clip.clip_id in seen:
            raise ValueError(f"the id {clip.clip_id!r} stands twice among the references; give each clip its own")
        seen.add(clip.clip_id)
    return listed


def units_of(vectors: torch.Tensor, center: torch.Tensor | None) -> torch.Tensor:
    """``u = v / |v|``; with a center m: ``(u - m) / |u - m|``. Rows (N, D), none of them zeros; differentiable.

    >>> units_of(torch.tensor([[3.0, 4.0]]), None)
    tensor([[0.6000, 0.8000]])
    >>> units_of(torch.tensor([[3.0, 4.0]]), torch.tensor([0.6, 0.0]))
    tensor([[0., 1.]])
    """
    units = F.normalize(vectors, dim=1)
    return units if center is None else F.normalize(units - center.to(units), dim=1)


def mean_of_units(vectors: torch.Tensor) -> torch.Tensor:
    """What all of some vectors (N, D) share: the mean of their unit vectors, float32."""
    return F.normalize(vectors, dim=1).double().mean(0).float()


def check_vectors(vectors: torch.Tensor, ids: Sequence[str], spec: str) -> None:
    """Refuse vectors (N, D) that have no direction.

    Raises
    ------
    ModelError
        A row is zero or not finite; names its clip.
    """
    norms = vectors.norm(dim=1)
    bad = (~(torch.isfinite(norms) & (norms > 0))).nonzero().flatten().tolist()
    if bad:
        raise ModelError(f"{ids[bad[0]]}: its vector of {spec} is zero or not finite; is the model damaged?")


def check_center(vectors: torch.Tensor, center: torch.Tensor, ids: Sequence[str]) -> None:
    """Refuse a center from which a reference cannot be told: it would be similar to anything or nothing.

    Raises
    ------
    ValueError
        So it is, or the center is of another shape.
    """
    if center.shape != vectors.shape[1:]:
        raise ValueError(f"expected a center of shape {tuple(vectors.shape[1:])}, got {tuple(center.shape)}")
    flat = ((F.normalize(vectors, dim=1) - center).norm(dim=1) < _NEAR_ZERO).nonzero().flatten().tolist()
    if flat:
        raise ValueError(
            f"{len(flat)} references cannot be told from the mean of all, the first is {ids[flat[0]]!r}: there are too few "
            "different sounds; give center= of an index of more sounds, or make the descriptor with center=False"
        )
