"""Text-to-audio pipelines: which one a folder or a name on the hub holds, and how it comes into memory.

The class that ``model_index.json`` names decides how it is called; classes that are not known here are refused. Weights are
read from safetensors only, and no code of a model's folder is run.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..devices import torch_device
from ..errors import MissingExtraError, ModelError
from ..folders import CARD, TASK, file_digest
from ..pretrained.loading import first_line, model_errors
from ..pretrained.loading import quiet as quiet_transformers
from ..pretrained.locating import split_revision

INDEX = "model_index.json"
PIPELINE = "pipeline"  # where auscult train puts it
OURS = "RetrievalAugmentedAudioPipeline"
CLASSES = (OURS, "StableAudioPipeline", "AudioLDMPipeline", "AudioLDM2Pipeline", "MusicLDMPipeline")
DTYPES = ("float32", "bfloat16", "float16")
NEEDED_FOR = "auscult generate"
# Of a pipeline's folder, what decides what it does; not its README and pictures.
_DIGESTED = frozenset({".json", ".safetensors", ".txt", ".model"})
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class LocatedPipeline:
    """Where a pipeline lies, and what of it can be known before it is loaded.

    Attributes
    ----------
    name
        As the user gave it.
    kind
        Its class, one of :data:`CLASSES`.
    folder
        Where its files are: the user's folder, or the hub's cache.
    revision
        The commit on the hub; empty for a folder.
    digest
        First 128 bits of a SHA-256 over configurations and weights, hexadecimal; empty on the hub, where the commit says it.
    """

    name: str
    kind: str
    folder: Path
    revision: str = ""
    digest: str = ""

    @property
    def unfinished(self) -> bool:
        """Whether it is the model of a training that was stopped or still runs."""
        run = self.folder.parent
        return self.folder.name == PIPELINE and (run / TASK).is_file() and not (run / CARD).is_file()

    def facts(self) -> dict[str, str]:
        """What identifies the model, for cards and for the question whether a run continues another."""
        return {"name": self.name, "class": self.kind, "revision": self.revision, "digest": self.digest}


def locate_pipeline(name: str, *, offline: bool = False) -> LocatedPipeline:
    """Find a pipeline: in a folder, or on the hub, whose files are then fetched.

    Parameters
    ----------
    name
        A folder that ``save_pretrained`` or ``auscult train`` wrote, or ``OWNER/NAME[@REVISION]`` on the hub.
    offline
        Take what an earlier download left in the cache, and ask nobody.

    Raises
    ------
    ModelError
        There is none, it is not complete, or it is of a class that is not known here.
    MissingExtraError
        diffusers is not installed.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = folder if (folder / INDEX).is_file() else folder / PIPELINE
        if not (folder / INDEX).is_file():
            if (folder.parent / TASK).is_file() and not (folder.parent / CARD).is_file():
                raise ModelError(
                    f"{name}: the work that was begun here is not finished, and there is no model yet; if it is a training, "
                    "give its command again"
                )
            raise ModelError(f"{name}: expected a folder of a diffusers pipeline, but there is no {INDEX} in it")
        kind = _class_of(name, folder / INDEX)
        return LocatedPipeline(name, kind, folder.resolve(), digest=_digest(folder))
    if folder.exists() or not HUB_NAME.fullmatch(name):
        raise ModelError(f"{name}: no folder of a model here, and no name on the hub such as 'cvssp/audioldm2'")
    return _from_hub(name, offline)


def scheduler_config(located: LocatedPipeline) -> dict[str, Any]:
    """Configuration of a pipeline's sampler, read from its folder; empty where there is none to read."""
    try:
        found = json.loads((located.folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # loading the pipeline says it better
    return found if isinstance(found, dict) else {}


def load_pipeline(located: LocatedPipeline, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """A pipeline in memory, on its device, silent and ready for :func:`~auscult.generation.calling.generate_batch`.

    Parameters
    ----------
    located
        Of :func:`locate_pipeline`.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.
    dtype
        One of :data:`DTYPES`. T5, which several text encoders are, is known to overflow in float16.

    Raises
    ------
    ModelError
        It cannot be loaded.
    ValueError
        No such device or dtype.
    MissingExtraError
        diffusers is not installed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype should be one of {', '.join(DTYPES)}, got {dtype!r}")
    where = torch_device(device, NEEDED_FOR)
    import torch

    with in_words(located.name), quiet(), torch.random.fork_rng(devices=[]):
        pipe = _class(located.kind).from_pretrained(
            str(located.folder), torch_dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
        )
        if located.kind == "AudioLDM2Pipeline":
            _give_language_model_its_head(pipe)
        pipe.to(where)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample_rate_hz(pipe: Any) -> int:
    """Rate of the audio that a pipeline makes."""
    if type(pipe).__name__ == OURS:
        return int(pipe.sample_rate_hz)
    return int(pipe.vae.config.sampling_rate if getattr(pipe, "vocoder", None) is None else pipe.vocoder.config.sampling_rate)


def truncated(pipe: Any, prompt: str) -> bool:
    """Whether a prompt has more tokens than one of the pipeline's text encoders takes, so that its end is not heard."""
    if type(pipe).__name__ == OURS:
        return bool(pipe.encoders.prompt_tokens_cut([prompt])[0])
    with quiet():
        for name in ("tokenizer", "tokenizer_2"):
            tokenizer = getattr(pipe, name, None)
            if tokenizer is not None and len(tokenizer(prompt)["input_ids"]) > tokenizer.model_max_length:
                return True
    return False


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, no remarks and no warnings of the libraries' about their own workings; as they were afterwards."""
    from diffusers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # of diffusers about torch, and of both about themselves
            warnings.filterwarnings("ignore", message="Should have t[ab]")  # torchsde, of the last bits of its times
            warnings.filterwarnings("ignore", message="prompt .* longer than its encoder reads")  # said in the manifest
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def in_words(name: str) -> AbstractContextManager[None]:
    """Errors of the libraries within become a :class:`ModelError` that says what to do."""

    def advice(error: Exception) -> str:
        if "torchsde" in str(error):
            return "its scheduler needs a further package: pip install torchsde"
        if type(error).__name__ == "SafetensorError" or any(
            word in str(error) for word in ("deserializ", "corrupt", "JSON", "load weights")
        ):
            return "a file of it may be cut short or damaged; copy or download it again"
        return (
            "give a folder that save_pretrained wrote with safetensors weights, or the name on the hub of a pipeline that "
            "has them"
        )

    return model_errors(name, "cannot be loaded", advice)


def _from_hub(name: str, offline: bool) -> LocatedPipeline:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingExtraError("models", NEEDED_FOR) from error
    repository, revision = split_revision(name)
    with in_words(name), quiet():
        index = Path(hf_hub_download(repository, INDEX, revision=revision or None, local_files_only=offline))
        commit = index.parent.name  # the cache keeps each commit's files in snapshots/COMMIT
        kind = _class_of(name, index)
        folder = _class(kind).download(repository, revision=commit, use_safetensors=True, local_files_only=offline)
    return LocatedPipeline(name, kind, Path(folder), revision=commit)


def _class_of(name: str, index: Path) -> str:
    try:
        kind = json.loads(index.read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name}: its {INDEX} cannot be read ({first_line(error)})") from error
    if kind not in CLASSES:
        raise ModelError(f"{name}: is a {kind}, which auscult cannot call; it knows {', '.join(CLASSES)}")
    return str(kind)


def _class(kind: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("models", NEEDED_FOR) from error
    if kind == OURS:
        from .pipeline import RetrievalAugmentedAudioPipeline

        return RetrievalAugmentedAudioPipeline
    return getattr(diffusers, kind)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _DIGESTED and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n".encode())
    return digest.hexdigest()[:32]


def _give_language_model_its_head(pipe: Any) -> None:
    """AudioLDM2's checkpoints name a bare GPT2Model, which transformers 5 cannot make to continue a sequence; diffusers
    wants one with a head, whose weights it never asks."""
    from transformers import GPT2LMHeadModel, GPT2Model

    if not isinstance(pipe.language_model, GPT2Model):
        return
    headed = GPT2LMHeadModel(pipe.language_model.config).to(pipe.language_model.dtype).eval()
    headed.transformer = pipe.language_model
    headed.tie_weights()
    pipe.register_modules(language_model=headed)
