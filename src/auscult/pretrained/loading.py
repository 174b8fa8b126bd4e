"""Load a model of transformers' from a folder or the hub: safetensors only, no code of others, nothing filled in at random."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..devices import CPU, torch_device
from ..errors import MissingExtraError, ModelError
from ..folders import file_digest

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")  # transformers writes the one or the other
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Kind:
    """A kind of model: its classes in transformers, and how messages speak of it.

    Attributes
    ----------
    title
        With its article: ``"a CLAP model"``.
    model, extractor, config
        Names of classes of transformers'.
    example
        Name of a model of this kind on the hub.
    """

    title: str
    model: str
    extractor: str
    config: str
    example: str

    @property
    def written_by(self) -> str:
        """What writes a folder of this kind, for messages."""
        return f"save_pretrained of {_with_article(self.model)} and of its {self.extractor}"


@dataclass(frozen=True)
class Located:
    """Where a model lies, and what of it can be known before it is loaded.

    Attributes
    ----------
    name
        A folder, absolute, or a name on the hub.
    digest
        Of a folder (:func:`folder_digest`); empty for a name on the hub.
    """

    name: str
    digest: str = ""


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


def locate(text: str, kind: Kind, *, also: tuple[str, ...] = ()) -> Located:
    """Find out what a text means: a folder, or a name on the hub.

    Nothing is loaded, and the hub is not asked.

    Parameters
    ----------
    text
        What a user gave.
    kind
        What is expected there.
    also
        Further files of a folder that go into its digest, where they are there.

    Raises
    ------
    ModelError
        There is no such folder and this is no name, or the folder lacks a file.

    Examples
    --------
    >>> kind = Kind("a CLAP model", "ClapModel", "ClapFeatureExtractor", "ClapConfig", "laion/clap-htsat-unfused")
    >>> locate("laion/larger_clap_general", kind)
    Located(name='laion/larger_clap_general', digest='')
    >>> locate("./missing", kind)
    Traceback (most recent call last):
    auscult.errors.ModelError: ./missing: no folder of a model here, and no name of a model on the hub such as
    'laion/clap-htsat-unfused'
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        return Located(str(folder.resolve()), folder_digest(folder, kind, also=also))
    if folder.exists() or not _HUB_NAME.fullmatch(text):
        raise ModelError(f"{text}: no folder of a model here, and no name of a model on the hub such as {kind.example!r}")
    return Located(text)


def folder_digest(folder: Path, kind: Kind, *, also: tuple[str, ...] = ()) -> str:
    """First 128 bits of a SHA-256 over the configurations and weights in a model's folder, hexadecimal.

    Parameters
    ----------
    folder
        As ``save_pretrained`` writes it.
    kind
        What the folder should hold, for messages.
    also
        Names of further files that count where they are there.

    Raises
    ------
    ModelError
        The folder is missing, or lacks one of them.
    """
    weights = sorted(folder.glob("*.safetensors"))
    extractor = [folder / name for name in _EXTRACTOR_FILES if (folder / name).is_file()]
    config = folder / "config.json"
    for found, what in ((config.is_file(), "config.json"), (extractor, _EXTRACTOR_FILES[0]), (weights, "*.safetensors")):
        if not found:
            pickled = not weights and any((folder / name).is_file() for name in _PICKLES)
            raise ModelError(
                f"{folder}: expected a folder that {kind.written_by} wrote, but there is no {what} in it"
                f"{_how_to_convert(str(folder), kind) if what == '*.safetensors' and pickled else ''}"
            )
    others = [folder / name for name in also if (folder / name).is_file()]
    digest = hashlib.sha256()
    for path in [config, *extractor, *sorted(folder.glob("*.safetensors.index.json")), *weights, *others]:
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()[:32]


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
        from transformers import AutoConfig

        config_class, extractor_class, model_class = (
            getattr(transformers, each) for each in (kind.config, kind.extractor, kind.model)
        )
    except ImportError as error:
        raise MissingExtraError("models", needed_for) from error
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # one of several workers: a second thread in each would only get in the way
    chosen = choose_device(device, needed_for)
    at = {"revision": revision} if revision else {}
    with _in_words(name, kind), quiet(), torch.random.fork_rng(devices=[]):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **at)
        if not isinstance(config, config_class):
            raise ModelError(f"{name}: expected {kind.title}, this is one of type {config.model_type!r}")
        check(config)
        extractor = extractor_class.from_pretrained(name, **at)
        model, report = model_class.from_pretrained(
            name, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **at
        )
    if missing := sorted(key for key in report["missing_keys"] if needed(key)):
        raise ModelError(f"{name}: its weights lack {len(missing)} of {part}, for example {missing[0]}")
    return Pretrained(model.eval().to(chosen), extractor, config, chosen)


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
    """No bars and no reports of transformers' own while it loads; as they were afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _in_words(name: str, kind: Kind) -> Iterator[None]:
    """Errors within become a :class:`ModelError` that says what to do."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        # transformers, safetensors and the hub's client raise whatever their own libraries do
        lacking = "safetensors" in str(error) and not Path(name).is_dir()
        raise ModelError(
            f"{name}: cannot be loaded ({first_line(error)}); give the name of {kind.title} on the Hugging Face hub that has "
            f"safetensors weights, or a folder that {kind.written_by} wrote{_how_to_convert(name, kind) if lacking else ''}"
        ) from error


def _how_to_convert(name: str, kind: Kind) -> str:
    """For weights that are pickles: a pickle can run code when it is read, so it is left to the user to read one."""
    return (
        "; weights in .bin files are pickles, which are not read here: if you trust them, convert them once, python -c "
        f"\"from transformers import {kind.model} as M, {kind.extractor} as E; M.from_pretrained('{name}').save_pretrained("
        f"'FOLDER'); E.from_pretrained('{name}').save_pretrained('FOLDER')\", and give FOLDER; or give NAME@REVISION with a "
        "revision on the hub that holds safetensors"
    )


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'AEIOU' else 'a'} {word}"
