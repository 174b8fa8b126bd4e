"""URLs that never show their credentials, and names below them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, unquote_plus, urlencode

from ..errors import OutputFolderError, StorageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters or more: C:// would be a drive of Windows
_QUERY = re.compile(r"\?[\w.&%-]+=.*$", re.DOTALL)  # a question mark without "name=" belongs to a file's name
_WEB_QUERY = re.compile(r"[?#].*$", re.DOTALL)  # ... but not to that of a web server
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")  # a host and its port
_WEB = frozenset({"http", "https"})
TAR_MEMBER = re.compile(r"(.+?\.tar(?:\?.*?)?)(::.+)", re.DOTALL)  # an address of a tar, and what follows it
# The only parameters that are shown: what a secret may be called cannot be listed (code, sig, apikey, auth ...).
_HARMLESS = frozenset({"region", "endpoint_override", "scheme", "anonymous", "project_id", "versionId"})
_CONTAINER_SCHEMES = frozenset({"abfs", "abfss", "wasb", "wasbs"})  # what stands before their @ is a container's name
NATIVE_SCHEMES = frozenset({"s3", "gs", "gcs"})  # whose names may hold escapes (%3F), as pyarrow takes them


class Url(str):
    """An address whose text holds no credentials: what is shown, written or compared is safe.

    The credentials that it was given with (user information, parameters) are in ``full`` alone, which goes along when it is
    pickled for a worker of the same run. Of the parameters the text keeps those that are known to be harmless; addresses that
    differ in others only are equal as texts.

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
    elif place.scheme in _WEB:
        name = name.replace("@", "%40").replace("#", "%23")
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


def secrets_of(url: Url) -> list[str]:
    """What of an address is not shown, with escapes and without, longest first; for taking it out of other texts."""
    member = TAR_MEMBER.fullmatch(url.full)
    head, _, query = _split(member[1] if member else url.full)
    found = set(user_info(url))
    before, at, _ = head.partition("://")[2].rpartition("@")
    if at:
        found |= {before, *before.split(":", 1)}
    for piece in re.split("[?&]", query):
        name, equals, value = piece.partition("=")
        form = value if equals else name
        if not _is_harmless(name, unquote_plus(value)):
            forms = (form, unquote(form), unquote_plus(form), *re.split("[;#:@=]", form))  # clients quote parts, too
            found |= {text for text in forms if len(text) > 2}  # a letter or two: it would take other words apart
    return sorted(filter(None, found), key=len, reverse=True)


def _is_harmless(name: str, value: str) -> bool:
    """Whether a parameter may be shown: nothing else hides in its value, as in ``region=x;token=...``."""
    return name in _HARMLESS and not set(value) & set(";?#@")


def _split(text: str) -> tuple[str, str, str]:
    """(scheme and host, path, query with its question mark)."""
    scheme = text.partition("://")[0]
    found = (_WEB_QUERY if scheme.lower() in _WEB else _QUERY).search(text)
    base, query = (text[: found.start()], found[0]) if found else (text, "")
    host, slash, path = base.partition("://")[2].partition("/")
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
    _check_authority(scheme, host, path)
    if scheme.lower() in _CONTAINER_SCHEMES and at:
        host = f"{before.partition(':')[0]}@{host}"
    given = parse_qsl(query[1:], keep_blank_values=True)
    kept = [item for item in given if _is_harmless(*item)]
    if query and kept != given:
        query = "?" + urlencode(kept, safe=":/", quote_via=quote) if kept else ""
    return f"{scheme}://{host}{path}{query}{member}"


def _check_authority(scheme: str, host: str, path: str) -> None:
    """Refuse an address whose credentials hold a slash, so that what follows it would be shown as a path."""
    if scheme.lower() in NATIVE_SCHEMES and ":" in host:
        raise StorageError(
            f"{scheme}://...: what stands before the first slash is no bucket; a slash in a key or secret is written %2F, "
            "and an endpoint is named by ?endpoint_override=HOST:PORT"
        )
    web = scheme.lower() in _WEB
    broken = _AUTHORITY.fullmatch(host) is None and (web or "@" in path)
    if broken or (web and "@" in path and (":" in host or "." not in host)):  # else it may be a name: pkg@1.0/a.wav
        raise StorageError(
            f"{scheme}://...: what stands before the first slash is no host, or an @ follows; a slash or question mark in a "
            "user name or password is written %2F or %3F, and an @ in a path %40"
        )


def local_path(text: str | Path) -> Path:
    """A path on this machine (``file://`` as well).

    Raises
    ------
    OutputFolderError
        A URL, of which a path would make folders ``s3:/BUCKET`` here.
    """
    place = place_of(text)
    if isinstance(place, Url):
        raise OutputFolderError(
            f"{place}: expected a path on this machine: results are written to and read from local folders; "
            "sources and the stores of `auscult index` may lie at URLs"
        )
    return place
