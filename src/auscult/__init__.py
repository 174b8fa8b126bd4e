"""auscult: find out whether a text-to-audio model replicates its training audio, and what to do about it.

The names below are loaded when they are first used, so that ``import auscult`` stays light: it imports neither
torch, faiss, matplotlib nor pyarrow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .audio import read_audio
    from .audit import Audit, AuditConfig
    from .corpus import Clip, Corpus
    from .descriptors import DescriptorSpec, load_descriptor
    from .duplicates import DedupConfig, Duplicates, deduplicate
    from .errors import AuscultError
    from .indexing import index
    from .store import DescriptorStore

_ROOMS = {
    "Audit": "audit",
    "AuditConfig": "audit",
    "AuscultError": "errors",
    "Clip": "corpus",
    "Corpus": "corpus",
    "DedupConfig": "duplicates",
    "DescriptorSpec": "descriptors",
    "DescriptorStore": "store",
    "Duplicates": "duplicates",
    "deduplicate": "duplicates",
    "index": "indexing",
    "load_descriptor": "descriptors",
    "read_audio": "audio",
}

__all__ = [
    "Audit",
    "AuditConfig",
    "AuscultError",
    "Clip",
    "Corpus",
    "DedupConfig",
    "DescriptorSpec",
    "DescriptorStore",
    "Duplicates",
    "deduplicate",
    "index",
    "load_descriptor",
    "read_audio",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'auscult' has no attribute {name!r}")
    value = getattr(import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
