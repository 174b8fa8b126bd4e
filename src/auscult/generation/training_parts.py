"""What a run is made of beside its configuration, as digests: a run goes on with the very clips and models it was begun with.

A configuration names files and folders, and what lies there may change: rows are added to a manifest (and the split falls
otherwise), a datastore is built anew, another model takes a folder's place. To go on with that would train on what was held
out, or on latents that the denoiser has never seen, and nothing would show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputFolderError
from .cached_arrays import digest_of
from .examples import Clips, clips_key
from .mel import MelSpec

_CHANGED = {
    "clips": "[data] gives other clips, or other audio under their names",
    "captions": "captions of clips are others",
    "held-out clips": "other clips are held out",
    "log-mel": "what [start] names has another log-mel",
    "codec": "another codec is in its place, or was made anew after cache/ was deleted",
    "prompt encoder": "another model is in its place",
    "caption encoder": "another model is in its place",
    "audio encoder": "another model is in its place",
    "datastore": "it was built anew or changed",
}


def parts_of(
    clips: Clips, held_out: Any, spec: MelSpec, codec: str, encoders: Mapping[str, str], neighbors: Any
) -> dict[str, str]:
    """SHA-256 by part, hexadecimal; a part that the run has not is the empty text.

    Parameters
    ----------
    clips, held_out
        All clips, and rows (n,) of those that are held out.
    spec
        Of the log-mels.
    codec, encoders
        Digests of models, see :func:`~auscult.generation.weights.weights_digest` and
        :meth:`~auscult.generation.encoding.Encoders.digests`.
    neighbors
        :class:`~auscult.generation.neighbors.Neighbors` or None; of its datastore the digests of all files count.

    Examples
    --------
    >>> import numpy as np
    >>> clips = Clips(("a", "b"), ("rain", "dog"), ("", ""), np.zeros((2, 4)), ("0", "1"), (), 0, 0, (), (0, 0))
    >>> models = {"prompt": "12", "caption": "", "audio": ""}
    >>> one, other = (parts_of(clips, rows, MelSpec(), "34", models, None) for rows in ([0], [1]))
    >>> [name for name in one if one[name] != other[name]]
    ['held-out clips']
    """
    return {
        "clips": digest_of(clips_key(clips)),
        "captions": digest_of(clips.captions),
        "held-out clips": digest_of([clips.ids[row] for row in held_out]),
        "log-mel": digest_of(spec.to_dict()),
        "codec": codec,
        **{f"{name} encoder": digest for name, digest in encoders.items()},
        "datastore": "" if neighbors is None else digest_of(neighbors.store.card["files"]),
    }


def check_parts(out: Path, step: int, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """See that a checkpoint was trained with the parts that there are now.

    Raises
    ------
    OutputFolderError
        A part has changed since; the message names it.

    Examples
    --------
    >>> check_parts(Path("model"), 200, {"codec": "12", "clips": "5"}, {"codec": "12", "clips": "5"})
    >>> try:
    ...     check_parts(Path("model"), 200, {"codec": "12"}, {"codec": "34"})
    ... except OutputFolderError as error:
    ...     str(error).partition(":")[2].partition(":")[0]
    ' trained to step 200 with other parts than there are now (codec'
    """
    changed = [name for name, digest in here.items() if there.get(name, digest) != digest]
    if changed:
        told = "; ".join(f"{name}: {_CHANGED[name]}" for name in changed)
        raise OutputFolderError(
            f"{out}: trained to step {step:,} with other parts than there are now ({told}); put back what was there to go on, "
            "or choose another -o to train with what is there now"
        )
