"""Where a model lies, in a folder or on the hub, and which one it is: a digest of the files in a folder."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError
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
    processor
        Class that saves the tokenizer together with the extractor, where there is one.
    """

    title: str
    model: str
    extractor: str
    config: str
    example: str
    processor: str = ""

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


def split_revision(text: str) -> tuple[str, str]:
    """``NAME@REVISION`` in two; of what is there on this machine, or names no revision, the text itself and nothing.

    Examples
    --------
    >>> split_revision("cvssp/audioldm2@refs/pr/3"), split_revision("cvssp/audioldm2")
    (('cvssp/audioldm2', 'refs/pr/3'), ('cvssp/audioldm2', ''))
    """
    if Path(text).expanduser().exists():
        return text, ""
    name, _, revision = text.partition("@")
    return name, revision


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
                f"{how_to_convert(str(folder), kind) if what == '*.safetensors' and pickled else ''}"
            )
    others = [folder / name for name in also if (folder / name).is_file()]
    digest = hashlib.sha256()
    for path in [config, *extractor, *sorted(folder.glob("*.safetensors.index.json")), *weights, *others]:
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()[:32]


def how_to_convert(name: str, kind: Kind) -> str:
    """For weights that are pickles, which can run code when they are read; so it is left to the user to read one."""
    saved = kind.processor or kind.extractor
    convert = (
        "; weights in .bin files are pickles, which are not read here: if you trust them, convert them once, python -c "
        f"\"from transformers import {kind.model} as M, {saved} as E; M.from_pretrained('{name}').save_pretrained('FOLDER'); "
        f"E.from_pretrained('{name}').save_pretrained('FOLDER')\", and give FOLDER"
    )
    if Path(name).is_dir():
        return convert
    return (
        f"{convert}; or look at https://huggingface.co/{name}/discussions for a pull request that adds safetensors, and give "
        f"{name}@refs/pr/ITS_NUMBER"
    )


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'AEIOU' else 'a'} {word}"
