"""The file systems behind URLs, and what they refuse in words that say what to do."""

from __future__ import annotations

import errno
import io
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import AuscultError, StorageError
from .url import NATIVE_SCHEMES, Url, key_of, root_of, secrets_of, user_info

# An address that does not answer is found out in seconds; what answers slowly is given time.
CONNECT_TIMEOUT_S = 4.0
REQUEST_TIMEOUT_S = 30.0
ATTEMPTS = 3
GCS_RETRY_S = 15
IN_MEMORY = 64 << 20  # bytes; a larger object is fetched into a temporary file
READERS = 16  # requests under way at once: a request takes tens of milliseconds, and nearly all of it is waiting
CHUNK = 8 << 20  # bytes asked for at once

_S3_OPTIONS = ("endpoint_override", "scheme", "region", "anonymous")
# What credentials and endpoints depend on: one that has changed is another file system.
_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_VARIABLES = (
    *_CREDENTIALS,
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_ROLE_ARN",
    "GOOGLE_APPLICATION_CREDENTIALS",
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNREACHABLE = re.compile(
    r"NETWORK_CONNECTION|REQUEST_TIMEOUT|UNAVAILABLE|resolve|connect|timed? ?out|unreachable", re.IGNORECASE
)
_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN|SIGNATURE|FORBIDDEN|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN"
    r"|MISSING_AUTHENTICATION|PERMISSION_DENIED|UNAUTHENTICATED|\b40[13]\b|denied",
    re.IGNORECASE,
)
_BUSY = re.compile(r"SLOW_DOWN|THROTTL|\b503\b", re.IGNORECASE)
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|bucket does not exist|Bucket .* not found", re.IGNORECASE)
_NO_TOKEN = re.compile(r"OAuth2 access token|could not be authenticated|default credentials", re.IGNORECASE)


class Status(NamedTuple):
    """What a storage says of a file: size in bytes, time of its last change in ns (0: it does not say)."""

    size: int
    mtime_ns: int


def located(url: Url) -> tuple[Any, str]:
    """The ``pyarrow.fs.FileSystem`` of an address, and the path in it.

    Raises
    ------
    StorageError
        Nothing here reads such addresses, or what the address names is wrong.
    """
    host, path, _ = key_of(url)
    if url.scheme in NATIVE_SCHEMES:
        if not host:
            raise StorageError(f"{url}: names no bucket; expected {url.scheme}://BUCKET/FOLDER")
        return _system(root_of(url).full, _environment()), f"{host}/{path}".rstrip("/")
    return _other_system(url)


def _environment() -> tuple[str | None, ...]:
    return tuple(os.environ.get(name) for name in _VARIABLES)


@lru_cache(maxsize=16)
def _system(root: str, environment: tuple[str | None, ...]) -> Any:
    url = Url(root)
    with explained(url):
        return _s3(url) if url.scheme == "s3" else _gcs(url)


def _s3(url: Url) -> Any:
    from pyarrow import fs

    host, _, options = key_of(url)
    unknown = sorted(set(options) - set(_S3_OPTIONS))
    if unknown:
        raise StorageError(f"{url}: unknown parameter {unknown[0]!r}; expected {', '.join(_S3_OPTIONS)}")
    endpoint = options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    scheme = options.get("scheme")
    if endpoint and "://" in endpoint:
        parts = urlsplit(endpoint)
        scheme, endpoint = scheme or parts.scheme, parts.netloc
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else fs.resolve_s3_region(host)
    user, password = user_info(url)
    anonymous = options.get("anonymous", "").lower() in {"1", "true", "yes"}
    return fs.S3FileSystem(
        access_key=user or None,
        secret_key=password or None,
        anonymous=anonymous,
        region=region,
        scheme=scheme or "https",
        endpoint_override=endpoint,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # a small file is then one request instead of three
    )


def _gcs(url: Url) -> Any:
    from pyarrow import fs

    _, _, options = key_of(url)
    anonymous = options.get("anonymous", "").lower() in {"1", "true", "yes"} or user_info(url)[0] == "anonymous"
    return fs.GcsFileSystem(
        anonymous=anonymous,
        scheme=options.get("scheme", "https"),
        endpoint_override=options.get("endpoint_override"),
        project_id=options.get("project_id"),
        retry_time_limit=timedelta(seconds=GCS_RETRY_S),
    )


def _other_system(url: Url) -> tuple[Any, str]:
    """What pyarrow knows besides (HDFS, Azure), else what fsspec does, where it is installed."""
    from pyarrow import fs

    if url.scheme in {"hdfs", "viewfs", "abfs", "abfss"}:
        try:
            return fs.FileSystem.from_uri(url.full)
        except (OSError, ValueError, NotImplementedError) as error:
            if url.scheme in {"hdfs", "viewfs"}:
                raise StorageError(f"{url}: cannot be opened ({redacted(url, error)})") from None
    try:
        import fsspec
    except ImportError:
        raise StorageError(
            f"{url}: pyarrow does not read {url.scheme}:// addresses; install fsspec, and what it needs for them"
        ) from None
    try:
        system, path = fsspec.core.url_to_fs(url.full)
    except (ImportError, ValueError, OSError) as error:
        raise StorageError(f"{url}: {url.scheme}:// addresses cannot be opened ({redacted(url, error)})") from None
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path


# --- errors -----------------------------------------------------------------------------------------------------------


@contextmanager
def explained(url: Url) -> Iterator[None]:
    """Turn what a storage client raises into a :class:`StorageError` that says what to do; what is not there stays
    a ``FileNotFoundError``."""
    try:
        yield
    except (AuscultError, MemoryError):
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{url}: there is no such object") from None  # its own text may name the whole address
    except Exception as error:  # noqa: BLE001 - every client that fsspec uses has errors of its own
        raise explanation(url, error) from None  # not from the cause, whose text may hold credentials


def explanation(url: Url, error: Exception) -> StorageError:
    """What an error of a storage client means, and what to do."""
    text = redacted(url, error)
    if _NO_BUCKET.search(text):
        return _no_bucket(url)
    if _NO_TOKEN.search(text):
        message = (
            f"{url}: credentials are missing; name them by GOOGLE_APPLICATION_CREDENTIALS, or add ?anonymous=true ({text})"
        )
    elif _UNREACHABLE.search(text):
        message = f"{url}: cannot be reached; check the endpoint and the network ({text})"
    elif url.scheme == "s3" and not _BUSY.search(text) and not has_credentials(url):
        message = (
            f"{url}: credentials are missing: neither AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY nor a profile in ~/.aws; "
            f"for a public bucket add ?anonymous=true ({text})"
        )
    elif _DENIED.search(text):
        message = f"{url}: access is denied; check the credentials and what the bucket allows them ({text})"
    else:
        message = f"{url}: failed ({text})"
    return StorageError(message)


def _no_bucket(url: Url) -> StorageError:
    bucket = f"{url.scheme}://{key_of(url)[0]}"
    return StorageError(f"{url}: there is no bucket {bucket}; check its name, or make it first")


def check_bucket(url: Url) -> None:
    """Where nothing was found: say so if there is not even a bucket.

    Raises
    ------
    StorageError
        There is none.
    """
    if url.scheme not in NATIVE_SCHEMES:
        return
    from pyarrow import fs

    system, path = located(url)
    with explained(url):
        if system.get_file_info(path.partition("/")[0]).type == fs.FileType.NotFound:
            raise _no_bucket(url)


@contextmanager
def full_disk_explained(place: object) -> Iterator[None]:
    """Turn the ``OSError`` of a disk that is full into a :class:`StorageError` that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageError(
            f"{place}: no space left to write ({error.strerror}); free some and give the same command again"
        ) from error


def redacted(url: Url, error: Exception) -> str:
    """The text of an error in one line, without the credentials of ``url``."""
    text = " ".join(str(error).replace(url.full, str(url)).split())
    for secret in secrets_of(url):
        text = text.replace(secret, "***")
    return text if len(text) <= 300 else text[:300] + "..."


def has_credentials(url: Url) -> bool:
    """Whether credentials for S3 are anywhere that its client looks, an instance's own role aside."""
    _, _, options = key_of(url)
    if user_info(url)[0] or options.get("anonymous"):
        return True
    if any(os.environ.get(name) for name in _CREDENTIALS):
        return True
    places = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
    return any(os.path.exists(os.environ.get(name) or os.path.expanduser(place)) for name, place in places.items())


# --- files ------------------------------------------------------------------------------------------------------------


def stat(url: Url) -> Status | None:
    """Size and time of an object; None if there is no such object (or it is a folder)."""
    system, path = located(url)
    with explained(url):
        info = system.get_file_info(path)
    return status_of(info) if info.is_file else None


def stat_all(urls: Sequence[Url]) -> list[Status | None]:
    """The same for several objects, several requests at once."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(stat, urls))


def status_of(info: Any) -> Status:
    """Of a ``pyarrow.fs.FileInfo``."""
    return Status(info.size or 0, info.mtime_ns or 0)


def is_folder(url: Url) -> bool:
    """Whether anything lies below an address."""
    from pyarrow import fs

    system, path = located(url)
    with explained(url):
        if system.get_file_info(path).type == fs.FileType.File:
            return False
        return bool(system.get_file_info(fs.FileSelector(path, allow_not_found=True)))


def open_range(url: Url) -> io.BufferedReader:
    """Open an object for reading and seeking; a read asks for at least a quarter of a megabyte at once."""
    system, path = located(url)
    with explained(url):
        return io.BufferedReader(_Explained(url, system.open_input_file(path)), 1 << 18)


class _Explained(io.RawIOBase):
    """A file of pyarrow's whose errors are explained."""

    def __init__(self, url: Url, handle: Any) -> None:
        self._url, self._handle = url, handle

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with explained(self._url):
            return int(self._handle.readinto(buffer))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._handle.seek(offset, whence)
        return int(self._handle.tell())

    def tell(self) -> int:
        return int(self._handle.tell())

    def close(self) -> None:
        if not self.closed:
            self._handle.close()
        super().close()


def read_bytes(url: Url) -> bytes:
    """All bytes of an object, or those of its span.

    Raises
    ------
    FileNotFoundError
        There is none.
    StorageError
        The storage denies or cannot be reached.
    """
    system, path = located(url)
    with explained(url), system.open_input_file(path) as handle:
        if url.span is not None:
            offset, size = url.span
            return bytes(handle.read_at(size, offset))
        return bytes(handle.read())


class HeldFile(str):
    """The name of a temporary file that lasts as long as this name does."""

    file: IO[bytes]

    def __new__(cls, file: IO[bytes]) -> HeldFile:
        held = super().__new__(cls, file.name)
        held.file = file
        return held


def fetch(url: Url) -> bytes | HeldFile:
    """All bytes of an object, or, of a large one, a temporary file with them.

    The last object is kept, because the segments of one long recording are asked for one after the other.

    Raises
    ------
    FileNotFoundError, StorageError
        See :func:`read_bytes`.
    """
    if url.span is not None and url.span[1] <= IN_MEMORY:
        return read_bytes(url)
    status = stat(url)
    if status is None:
        raise FileNotFoundError(f"{url}: there is no such object")
    return _fetched(url, url.full, url.span, status)


@lru_cache(maxsize=1)
def _fetched(url: Url, full: str, span: tuple[int, int] | None, status: Status) -> bytes | HeldFile:
    offset, size = span or (0, status.size)
    if size <= IN_MEMORY:
        return read_bytes(url)
    system, path = located(url)
    with full_disk_explained(tempfile.gettempdir()):
        held = tempfile.NamedTemporaryFile(prefix="auscult-", suffix=url.suffix)  # noqa: SIM115 - HeldFile keeps it
        with explained(url):
            handle = system.open_input_file(path)
        with handle:
            for start in range(offset, offset + size, CHUNK):
                with explained(url):
                    piece = handle.read_at(min(CHUNK, offset + size - start), start)
                held.write(piece)
        held.flush()
    return HeldFile(held)
