"""Folders wherever they lie: on a disk of this machine, or at a URL that pyarrow or fsspec reaches."""

from .folder import Entry, Folder, LocalFolder, RemoteFolder, digest_of, in_order, open_folder, read_folder_card
from .lease import writing
from .remote import fetch, stat
from .url import Place, Url, is_url, join, local_path, place_of

__all__ = [
    "Entry",
    "Folder",
    "LocalFolder",
    "Place",
    "RemoteFolder",
    "Url",
    "digest_of",
    "fetch",
    "in_order",
    "is_url",
    "join",
    "local_path",
    "open_folder",
    "place_of",
    "read_folder_card",
    "stat",
    "writing",
]
