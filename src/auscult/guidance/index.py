"""The references that guidance keeps a sampler away from: vectors of one latent descriptor, and whose they are.

    INDEX/card.json             descriptor, counts, digests of the files; written last, so it marks a whole index
          vectors.safetensors   vectors (N, D) float32 of unit length, and the center (D,) if they are centered
          index.jsonl           one line a vector: clip_id, start_s, caption

A clip has one vector for each window of it; windows of references overlap by half.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..audio import read_audio
from ..corpus import Clip, Skipped
from ..devices import float32_products
from ..errors import DescriptorMismatchError, ModelError, StoreError
from ..folders import (
    Progress,
    atomic_file,
    building,
    damaged_files,
    file_digests,
    no_progress,
    read_card,
    write_card,
    write_text,
)
from ..store import DescriptorStore
from .references import as_clips, check_center, check_vectors, mean_of_units, units_of

if TYPE_CHECKING:
    from .latents import LatentDescriptor

KIND = "reference-index"
VECTORS, ROWS = "vectors.safetensors", "index.jsonl"
TIE = 1e-6  # cosines closer than this are equal: copies of one reference differ by rounding
NOT_SHOWN = -1.0  # the least cosine: no threshold is below it
_COSINES = 2**26  # computed at once: 256 MB
_CLIPS = 8  # decoded at once


@dataclass(frozen=True)
class Nearest:
    """The nearest references of some vectors, the best first.

    Attributes
    ----------
    similarity
        (B, k) float32, cosines.
    rows
        (B, k) int64, of the index.
    """

    similarity: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True, eq=False)
class ReferenceIndex:
    """References as unit vectors, one a window.

    Where the descriptor says that it is to be centered, similarities are ``cos(e - m, r - m)`` with unit vectors e and r and
    the mean m of all references: what is common to all sounds counts for nothing. Otherwise they are plain cosines.

    Attributes
    ----------
    spec
        Of the latent descriptor.
    ids, captions, starts_s
        (N,) the clip of each vector, its caption or None, and where its window starts in it.
    vectors
        (N, D) float32, of unit length, less the center.
    center
        (D,) float32, m; or None.
    silent
        How many clips were left out, since nothing in them sounds.
    """

    spec: str
    ids: tuple[str, ...]
    captions: tuple[str | None, ...]
    starts_s: tuple[float, ...]
    vectors: torch.Tensor
    center: torch.Tensor | None = None
    silent: int = 0

    @classmethod
    def from_audio(
        cls,
        clips: Iterable[Clip | Skipped | str | Path],
        descriptor: LatentDescriptor,
        *,
        captions: Sequence[str | None] | None = None,
        center: torch.Tensor | None = None,
        progress: Progress = no_progress,
    ) -> ReferenceIndex:
        """Describe sounds.

        Parameters
        ----------
        clips
            A corpus or some clips of one, or files, whose ids are their paths. What is no audio is passed over.
        descriptor
            A latent descriptor, see :mod:`~auscult.guidance.latents`.
        captions
            One a clip; by default those that the clips have.
        center
            (D,) the center of an index of more sounds, for few references do not tell what is common to all sounds; by
            default the mean of these.

        Raises
        ------
        ValueError
            There is no clip, or none in which anything sounds; an id stands twice, the captions are not as many as the clips,
            or a reference cannot be told from the center.
        AudioDecodeError
            A sound cannot be read or decoded: one that is left out would not be protected.
        """
        listed = as_clips(clips, captions)
        ids, starts, parts, silent = [], [], [], 0
        for first in range(0, len(listed), _CLIPS):
            some = listed[first : first + _CLIPS]
            waves = [
                read_audio(
                    clip.path, sample_rate_hz=descriptor.rate_hz, start_s=clip.start_s, duration_s=clip.duration_s
                ).samples
                for clip in some
            ]
            described = descriptor.of_audio(waves, descriptor.rate_hz)
            for clip, vectors, at in zip(some, described.vectors, described.starts_s, strict=True):
                silent += not at
                ids += [clip.clip_id] * len(at)
                starts += at
                parts += [vectors] if at else []
            progress(min(first + _CLIPS, len(listed)), len(listed), "references")
        matrix = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
        known = {clip.clip_id: clip.caption for clip in listed}
        return _assembled(descriptor, ids, [known[one] for one in ids], starts, matrix, center, silent, len(listed))

    @classmethod
    def from_store(
        cls, store: DescriptorStore | str | Path, descriptor: LatentDescriptor, *, center: torch.Tensor | None = None
    ) -> ReferenceIndex:
        """Take the vectors of a descriptor store, without decoding a sound.

        Windows of a store follow each other and do not overlap; where a copy may play at another moment of a long sound,
        :meth:`from_audio` finds more.

        Raises
        ------
        DescriptorMismatchError
            The store was made with another descriptor, or other settings, than the latent descriptor compares with.
        StoreError
            It cannot be read.
        ValueError
            It holds no vector.
        """
        store = store if isinstance(store, DescriptorStore) else DescriptorStore.open(store)
        wanted = descriptor.store_spec
        if wanted is None:
            raise DescriptorMismatchError(
                f"{descriptor.spec} compares with the vectors of no store; use ReferenceIndex.from_audio"
            )
        if store.spec != wanted:
            raise DescriptorMismatchError(
                f"{store.path} holds vectors of {store.spec}, {descriptor.spec} compares with {wanted}; index the sounds "
                "with that descriptor, or make the latent descriptor with the window of the store"
            )
        found = store.load()
        assert isinstance(found.vectors, np.ndarray)  # without an engine it is in memory
        ids, captions = found.clip_ids[found.clip].tolist(), found.clips["caption"].to_pylist()
        silent = found.clips.num_rows - len(np.unique(found.clip))
        rows = [captions[number] for number in found.clip.tolist()]
        return _assembled(descriptor, ids, rows, found.start_s.tolist(), found.vectors, center, silent, found.clips.num_rows)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        counts = f"{len(self):,} vectors of {len(set(self.ids)):,} clips"
        whose = hashlib.sha256(repr((self.ids, self.captions, self.starts_s)).encode()).hexdigest()[:8]
        return f"{type(self).__name__}({self.spec}: {counts}, {self.silent:,} silent clips left out, {whose})"

    def to(self, device: torch.device | str) -> ReferenceIndex:
        """The same index on a device."""
        center = None if self.center is None else self.center.to(device)
        return replace(self, vectors=self.vectors.to(device), center=center)

    def check(self, descriptor: LatentDescriptor) -> None:
        """Refuse a descriptor whose vectors are not comparable with these.

        Raises
        ------
        DescriptorMismatchError
            It is another, or has other settings.
        """
        if descriptor.spec != self.spec:
            raise DescriptorMismatchError(
                f"the references were described by {self.spec}, the sampler would be by {descriptor.spec}; build the index "
                "with the descriptor that guides"
            )

    def without(self, ids: Iterable[str]) -> ReferenceIndex:
        """The index without some clips: those that the user owns, or starts from.

        Warns
        -----
        UserWarning
            Nothing is left, so that guidance never acts.

        Raises
        ------
        ValueError
            A clip is not in the index.
        """
        dropped = set(ids)
        if unknown := sorted(dropped - set(self.ids)):
            raise ValueError(f"not in the index: {', '.join(unknown[:5])} ({len(unknown)} of {len(dropped)} clips)")
        kept = [row for row, one in enumerate(self.ids) if one not in dropped]
        if len(self) and not kept:
            warnings.warn("no reference is left in the index, so that guidance by it never acts", stacklevel=2)
        return replace(
            self,
            ids=tuple(self.ids[row] for row in kept),
            captions=tuple(self.captions[row] for row in kept),
            starts_s=tuple(self.starts_s[row] for row in kept),
            vectors=self.vectors[torch.tensor(kept, dtype=torch.long, device=self.vectors.device)],
        )

    def nearest(self, vectors: torch.Tensor, k: int = 1, *, allowed: torch.Tensor | None = None) -> Nearest:
        """The references that are most similar, by comparing with all of them.

        Of references that are equally similar (within 1e-6) the lower row comes first, so that copies among the references
        do not take turns.

        Parameters
        ----------
        vectors
            (B, D) as the descriptor's ``describe`` returns them. A row of zeros, which stands for silence, has similarity 0
            with all.
        k
            How many; an index of fewer gives all that it has.
        allowed
            (B, N) bool, the references that each vector is compared with; the others are at ``NOT_SHOWN``. None: all.

        Returns
        -------
        Nearest
            Of shape (B, min(k, N)).

        Raises
        ------
        ValueError
            Not such vectors, or k below 1.
        ModelError
            A vector is not finite.
        """
        if k < 1 and len(self):
            raise ValueError(f"k should be 1 or more, got {k}")
        k = min(k, len(self))
        found = torch.zeros(len(vectors), k, device=vectors.device)
        rows = torch.zeros(len(vectors), k, dtype=torch.long, device=vectors.device)
        if not k:
            return Nearest(found, rows)
        queries, references = self._units(vectors.detach()).float(), self.vectors.to(vectors.device)
        at_once = max(1, _COSINES // len(self))
        for first in range(0, len(queries), at_once):
            some = slice(first, first + at_once)
            with float32_products(tf32=False), torch.autocast(vectors.device.type, enabled=False):
                cosines = queries[some] @ references.T
            if allowed is not None:
                cosines = cosines.masked_fill(~allowed[some], NOT_SHOWN)
            for rank in range(k):
                best = cosines.amax(1, keepdim=True)
                row = (cosines >= best - TIE).to(torch.uint8).argmax(1, keepdim=True)  # the first of them
                found[some, rank], rows[some, rank] = cosines.gather(1, row)[:, 0], row[:, 0]
                cosines.scatter_(1, row, -torch.inf)
        return Nearest(found, rows)

    def similarity(self, vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Cosines of described vectors with given references; differentiable in the vectors, the references are constants.

        Parameters
        ----------
        vectors
            (B, D) as ``describe`` returns them.
        rows
            (B, k) of the index.

        Returns
        -------
        Tensor (B, k)
            Of the vectors' type; 0, and without a gradient, for a row of zeros, which stands for silence.
        """
        if rows.ndim != 2 or len(rows) != len(vectors):
            raise ValueError(f"rows should be of shape ({len(vectors)}, k), got {tuple(rows.shape)}")
        units = self._units(vectors)
        references = self.vectors.to(units)[rows.to(units.device)]
        return (units[:, None] * references).sum(-1)

    def _units(self, vectors: torch.Tensor) -> torch.Tensor:
        """Described vectors (B, D) as the references are: of unit length, less the center; silence stays zeros."""
        if vectors.ndim != 2 or vectors.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"expected vectors of shape (B, {self.vectors.shape[1]}), got {tuple(vectors.shape)}")
        if not torch.isfinite(vectors).all():
            raise ModelError(f"{self.spec}: gives values that are not finite; is the model's output?")
        exact = vectors if vectors.dtype == torch.float64 else vectors.float()
        heard = exact.ne(0).any(dim=1, keepdim=True)
        units = units_of(torch.where(heard, exact, torch.ones_like(exact)), self.center)
        return torch.where(heard, units, torch.zeros_like(units))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the index as a folder, which appears when it is complete.

        Raises
        ------
        OutputFolderError
            Something else is there, or an index without ``overwrite``.
        """
        folder = Path(folder)
        tensors = {"vectors": self.vectors} | ({} if self.center is None else {"center": self.center})
        task = {"spec": self.spec, "vectors": len(self)}
        with building(folder, KIND, task=task, overwrite=overwrite) as partial:
            with atomic_file(partial / VECTORS) as handle:
                handle.write(save_tensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))
            rows = zip(self.ids, self.starts_s, self.captions, strict=True)
            lines = [{"clip_id": clip, "start_s": start, "caption": caption} for clip, start, caption in rows]
            write_text(partial / ROWS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            counts = {"vectors": len(self), "clips": len(set(self.ids)), "silent": self.silent}
            digests = file_digests(partial, (VECTORS, ROWS))
            write_card(partial, KIND, {"spec": self.spec, "counts": counts, "files": digests})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> ReferenceIndex:
        """Read what :meth:`save` wrote.

        Raises
        ------
        StoreError
            No index is here, or it is damaged.
        """
        folder = Path(folder)
        card = read_card(folder, KIND)
        if problems := damaged_files(folder, card["files"]):
            raise StoreError(f"{folder}: {'; '.join(problems)}; build the index again")
        lines = (folder / ROWS).read_text("utf-8").split("\n")[:-1]
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        try:
            tensors = load_tensors((folder / VECTORS).read_bytes())
        except SafetensorError as error:
            raise StoreError(f"{folder / VECTORS}: cannot be read ({error})") from error
        ids, captions, starts = (tuple(row[key] for row in rows) for key in ("clip_id", "caption", "start_s"))
        return cls(card["spec"], ids, captions, starts, tensors["vectors"], tensors.get("center"), card["counts"]["silent"])


def _assembled(
    descriptor: LatentDescriptor,
    ids: list[str],
    captions: list[str | None],
    starts: list[float],
    matrix: Any,
    center: torch.Tensor | None,
    silent: int,
    clips: int,
) -> ReferenceIndex:
    """The index of vectors (N, D) as a descriptor made them of so many clips."""
    if not ids:
        raise ValueError(
            f"expected references in which something sounds, got {clips:,} clips, {silent:,} of them silent: guidance by them "
            "would never act; give the clips that must not come out"
        )
    if center is not None and not descriptor.center:
        raise ValueError(f"{descriptor.spec} compares vectors as they are; leave the center out")
    vectors = torch.from_numpy(np.array(matrix, np.float32))
    check_vectors(vectors, ids, descriptor.spec)
    if descriptor.center:
        center = mean_of_units(vectors) if center is None else center.detach().float().cpu()
        check_center(vectors, center, ids)
    return ReferenceIndex(
        descriptor.spec, tuple(ids), tuple(captions), tuple(starts), units_of(vectors, center), center, silent
    )
