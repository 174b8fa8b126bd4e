"""URLs that never show their credentials, and names below them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

from ..errors import StorageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters or more: C:// would be a drive of Windows
_QUERY = re.compile(r"\?[\w.-]+=.*$", re.DOTALL)  # a question mark without "name=" belongs to a file's name
TAR_MEMBER = re.compile(r"(.+?\.tar(?:\?.*?)?)(::.+)", re.DOTALL)  # an address of a tar, and what follows it
_SECRET = re.compile(r"secret|token|passw|signature|credential|access.?key|account.?key|^sig$|^key$", re.IGNORECASE)
_CONTAINER_SCHEMES = frozenset({"abfs", "abfss", "wasb", "wasbs"})  # what stands before their @ is a container's name
NATIVE_SCHEMES = frozenset({"s3", "gs", "gcs"})  # whose names may hold escapes (%3F), as pyarrow takes them


class Url(str):
    """An address whose text holds no credentials: what is shown, written or compared is safe.

    The credentials that it was given with (user information, secrets among the parameters) are in ``full`` alone, which
    goes along when it is pickled for a worker of the same run.

    Attributes
    ----------
    full
        The address with its credentials.
    span
        (offset, size) in bytes of a member of a tar, where that is known; None: the whole object.

    Examples
    --------
    >>> Url("s3://key:secret@bucket/a.wav?region=eu-west-1")
    's3://bucket/a.wav?region=eu-west-1'
    """

    full: str
    span: tuple[int, int] | None

    def __new__(cls, text: str, span: tuple[int, int] | None = None) -> Url:
        full = text.full if isinstance(text, Url) else str(text)
        url = super().__new__(cls, _public(full))
        url.full = full
        url.span = span
        return url

    def __reduce__(self) -> tuple[type[Url], tuple[str, tuple[int, int] | None]]:
        return Url, (self.full, self.span)

    @property
    def scheme(self) -> str:
        """In lower case: ``s3``, ``gs``, ``https`` ..."""
        return self.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """The last part of the path, without escapes."""
        return _unquoted(self.scheme, _split(self)[1].rstrip("/").rpartition("/")[2])

    @property
    def parent(self) -> Url:
        """The folder that it lies in."""
        head, path, query = _split(self.full)
        return Url(head + path.rstrip("/").rpartition("/")[0] + query)

    @property
    def suffix(self) -> str:
        """``.wav``; empty if there is none."""
        return os.path.splitext(self.name)[1]


Place = Path | Url
"""Where something lies; ``str`` of it may be shown."""


def is_url(text: object) -> bool:
    """Whether ``text`` is an address (``s3://...``) and no local path.

    Examples
    --------
    >>> is_url("s3://bucket/audio"), is_url("folder/a.wav"), is_url("hf:name"), is_url(Path("a"))
    (True, False, False, False)
    """
    return isinstance(text, str) and _SCHEME.match(text) is not None


def place_of(text: str | Path) -> Place:
    """A URL as a :class:`Url`, everything else (``file://`` as well) as a local path."""
    if not is_url(text):
        return Path(text)
    url = text if isinstance(text, Url) else Url(str(text))
    return Path(unquote(url.partition("://")[2])) if url.scheme == "file" else url


def join(place: Place, name: str) -> Place:
    """What is called ``name`` (slashes part folders) below ``place``.

    Examples
    --------
    >>> join(Url("s3://bucket/a?region=x"), "what?.wav")
    's3://bucket/a/what%3F.wav?region=x'
    """
    if isinstance(place, Path):
        return place / name
    head, path, query = _split(place.full)
    if place.scheme in NATIVE_SCHEMES:
        name = name.replace("%", "%25").replace("?", "%3F")
    return Url(f"{head}{path.rstrip('/')}/{name}{query}")


def key_of(url: Url) -> tuple[str, str, dict[str, str]]:
    """(host or bucket, path in it without escapes, parameters) of an address."""
    head, path, query = _split(url.full)
    host = head.partition("://")[2].rpartition("@")[2]
    return host, _unquoted(url.scheme, path).lstrip("/"), dict(parse_qsl(query[1:]))


def root_of(url: Url) -> Url:
    """The storage that an address lies in: without its path."""
    head, _, query = _split(url.full)
    return Url(head + query)


def user_info(url: Url) -> tuple[str, str]:
    """(user, password) as given in the address, without escapes; empty where there is none."""
    before, at, _ = _split(url.full)[0].partition("://")[2].rpartition("@")
    user, _, password = before.partition(":")
    return (unquote(user), unquote(password)) if at else ("", "")


def _split(text: str) -> tuple[str, str, str]:
    """(scheme and host, path, query with its question mark)."""
    found = _QUERY.search(text)
    base, query = (text[: found.start()], found[0]) if found else (text, "")
    scheme, _, rest = base.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}", slash + path, query


def _unquoted(scheme: str, path: str) -> str:
    return unquote(path) if scheme in NATIVE_SCHEMES else path


def _public(full: str) -> str:
    if not is_url(full):
        raise ValueError(f"expected a URL such as s3://bucket/folder, got {full!r}")
    member = ""
    if found := TAR_MEMBER.fullmatch(full):
        full, member = found[1], found[2]
    head, path, query = _split(full)
    scheme, _, host = head.partition("://")
    before, at, host = host.rpartition("@")
    if scheme.lower() in NATIVE_SCHEMES and ":" in host:
        raise StorageError(
            f"{scheme}://...: what stands before the first slash is no bucket; a slash in a key or secret is written %2F, "
            "and an endpoint is named by ?endpoint_override=HOST:PORT"
        )
    if scheme.lower() in _CONTAINER_SCHEMES and at:
        host = f"{before.partition(':')[0]}@{host}"
    if query and (hidden := [item for item in parse_qsl(query[1:], keep_blank_values=True) if _SECRET.search(item[0])]):
        kept = [item for item in parse_qsl(query[1:], keep_blank_values=True) if item not in hidden]
        query = "?" + urlencode(kept, safe=":/", quote_via=quote) if kept else ""
    return f"{scheme}://{host}{path}{query}{member}"
