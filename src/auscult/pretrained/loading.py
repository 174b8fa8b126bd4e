"""Load a model of transformers' from a folder or the hub: safetensors only, no code of others, nothing filled in at random."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from logging import ERROR
from pathlib import Path
from typing import Any

from ..devices import CPU, torch_device
from ..errors import AuscultError, MissingExtraError, ModelError
from .locating import Kind, how_to_convert


@dataclass(frozen=True)
class Pretrained:
    """A model in memory, ready to be asked.

    Attributes
    ----------
    model, extractor, config
        Objects of transformers'; the model in float32, on ``device``, in evaluation mode.
    device
        A ``torch.device``.
    """

    model: Any
    extractor: Any
    config: Any
    device: Any

    @property
    def on_cpu(self) -> bool:
        """Whether the model is on the processor."""
        return bool(self.device.type == CPU)


def load(
    name: str,
    kind: Kind,
    device: str,
    *,
    needed_for: str,
    needed: Callable[[str], bool],
    part: str,
    revision: str = "",
    check: Callable[[Any], None] = lambda config: None,
) -> Pretrained:
    """Load a model and its feature extractor.

    Parameters
    ----------
    name
        A folder, or a name on the hub.
    kind
        What it has to be.
    device
        As :func:`choose_device` takes it.
    needed_for
        What wants the model, for messages: ``"the clap descriptor"``.
    needed, part
        Which weights (by name) must be there, and what they are called together: ``"the audio encoder's"``. Others may be
        missing, which transformers then fills with random numbers.
    revision
        On the hub; empty for the default one.
    check
        Called with the configuration before weights are loaded; raises :class:`ModelError` for a model that will not do.

    Raises
    ------
    ModelError
        It is not there, damaged, of another kind, or lacks weights.
    ValueError
        There is no such device.
    MissingExtraError
        torch or transformers is not installed.
    """
    try:
        import torch
        import transformers

        extractor_class, model_class = getattr(transformers, kind.extractor), getattr(transformers, kind.model)
    except ImportError as error:
        raise MissingExtraError("models", needed_for) from error
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # one of several workers: a second thread in each would only get in the way
    chosen = choose_device(device, needed_for)
    at = {"revision": revision} if revision else {}
    with _in_words(name, kind), quiet(), torch.random.fork_rng(devices=[]):
        config = _config(name, kind, at)
        check(config)
        extractor = extractor_class.from_pretrained(name, **at)
        model, report = model_class.from_pretrained(
            name, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **at
        )
    if missing := sorted(key for key in report["missing_keys"] if needed(key)):
        raise ModelError(f"{name}: its weights lack {len(missing)} of {part}, for example {missing[0]}")
    return Pretrained(model.eval().to(chosen), extractor, config, chosen)


def _config(name: str, kind: Kind, at: dict[str, str]) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **at)
    if not isinstance(config, getattr(transformers, kind.config)):
        raise ModelError(f"{name}: expected {kind.title}, this is one of type {config.model_type!r}")
    return config


def hub_commit(name: str, kind: Kind, *, revision: str = "", needed_for: str) -> str:
    """The commit that a name and a revision on the hub mean now; as asked for where that cannot be known.

    Only the configuration is fetched, or found in the cache that an earlier download left.

    Parameters
    ----------
    name, kind, needed_for
        As :func:`load` takes them.
    revision
        A branch, a tag or a commit; empty for the default branch.

    Raises
    ------
    ModelError
        The hub has no such model, or cannot be reached and the cache does not hold it.
    MissingExtraError
        transformers is not installed.
    """
    try:
        from transformers.utils.hub import cached_file, extract_commit_hash
    except ImportError as error:
        raise MissingExtraError("models", needed_for) from error
    with _in_words(name, kind), quiet():
        path = cached_file(name, "config.json", revision=revision or None)
    return extract_commit_hash(path, None) or revision


def choose_device(name: str, needed_for: str) -> Any:
    """The ``torch.device`` of ``"auto"`` (CUDA if there, else the CPU), of a name of auscult's, or of one of torch's.

    Raises
    ------
    ValueError
        No such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else CPU)
    if name.partition(":")[0] in {CPU, "cuda"}:
        return torch_device(name, needed_for)
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device should be 'auto' or a device of torch's, got {name!r} ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """An error's message as far as it fits into a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no reports of transformers' and the hub's client's own while they load; as they were afterwards."""
    from huggingface_hub import logging as hub_logging
    from transformers.utils import logging

    hub_level = hub_logging.get_verbosity()
    hub_logging.set_verbosity(ERROR)  # of each time that it tries again: the error says what came of it
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # AST's own setting: the lowest of its 128 bands hold no frequency of the transform, as when it was trained
            warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
            # diffusers' own way of asking the hub's client
            warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument is deprecated")
            yield
    finally:
        hub_logging.set_verbosity(hub_level)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def model_errors(name: str, failed: str, advice: str | Callable[[Exception], str]) -> Iterator[None]:
    """Whatever goes wrong within becomes a :class:`ModelError`: ``NAME: FAILED (why); ADVICE``.

    transformers, diffusers, tokenizers, safetensors and the hub's client raise whatever their own libraries do.
    """
    try:
        yield
    except AuscultError:
        raise
    except Exception as error:
        said = advice if isinstance(advice, str) else advice(error)
        raise ModelError(f"{name}: {failed} ({first_line(error)}); {said}") from error


def place_of(name: str) -> str:
    """What a name means: a folder, or a model on the hub."""
    return "folder" if Path(name).is_dir() else "name on the Hugging Face hub"


def _in_words(name: str, kind: Kind) -> AbstractContextManager[None]:
    def advice(error: Exception) -> str:
        lacking = "safetensors" in str(error) and not Path(name).is_dir()
        return (
            f"give the name of {kind.title} on the Hugging Face hub that has safetensors weights, or a folder that "
            f"{kind.written_by} wrote{how_to_convert(name, kind) if lacking else ''}"
        )

    return model_errors(name, "cannot be loaded", advice)
