"""One file from elsewhere, resumed where it broke off. What it holds is checked by whoever asked for it. No torch."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from lorax_vlm.errors import InterruptedTransfer, LoraxError, PathError, RemoteError
from lorax_vlm.fetching.client import Answer, Private, Resolve, Rules, opened
from lorax_vlm.foreign import parse_json
from lorax_vlm.settings import downloads_dir

logger = logging.getLogger(__name__)
_BLOCK = 2**18
_TRIES = 5
_KEPT_S = 7 * 24 * 3600.0
"""What broke off longer ago is removed."""
_RULES = Rules(
    timeout_s=12 * 3600.0,
    answer_s=60.0,
    wait_s=30.0,
    least_bytes=30_000,
    least_s=30.0,
    https_only=True,
    max_redirects=10,
)
PROTOCOLS = ("file", "local", "memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")
_WITH_FOLDERS = frozenset({"file", "local", "memory"})
"""Of fsspec, that are read and written. Others fetch in the clear, run commands, or lead on to any of these."""


@contextmanager
def downloaded(
    url: str, limit_bytes: int, *, allow_private: bool = True, resolve: Resolve | None = None
) -> Iterator[Path]:
    """The file behind an ``https://`` or fsspec address for the time of a block.

    What arrived before an interruption is kept and continued, by this process or a later one, if the file there is
    still the same.

    Args:
        url: Of the file. Only its digest is kept on disk: it may hold a signature or a password.
        limit_bytes: That it may have.
        allow_private: An address that is not public may be named, and may lead to others like it. From a public
            address nothing leads to a private one, in either case.
        resolve: Host names to addresses. None: the system's.

    Raises:
        RemoteError: It cannot be fetched, or is larger than allowed.
        PathError: There is nowhere to keep it.
    """
    private = Private.TYPED if allow_private else Private.REFUSED
    over = time.monotonic() + _RULES.timeout_s
    with _partial(url, limit_bytes) as partial:
        for attempt in range(1, _TRIES + 1):
            before = partial.size
            try:
                if url.lower().startswith(("http://", "https://")):
                    rest = max(over - time.monotonic(), 0.0)
                    _fetch_https(url, partial, replace(_RULES, timeout_s=rest, private=private, resolve=resolve))
                else:
                    _fetch_by_fsspec(url, partial)
                break
            except InterruptedTransfer as error:
                if attempt == _TRIES:
                    reason = f"{error.reason} (after {partial.size:,} bytes, which are kept)"
                    raise RemoteError(url, reason) from error
                logger.info("%s broke off after %s bytes: %s", error.url, f"{partial.size - before:,}", error.reason)
        try:
            yield partial.path
        finally:
            partial.remove()


class _Partial:
    """What has arrived of a file so far, and of which version of it."""

    def __init__(self, url: str, limit_bytes: int) -> None:
        key = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self.url, self.limit_bytes = url, limit_bytes
        self.path = downloads_dir() / f"{key}.part"
        self._about = downloads_dir() / f"{key}.json"

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def version(self) -> str:
        """Of the file that they are of; empty when that is unknown, so that they are of no use."""
        with suppress(OSError, ValueError):
            record = parse_json(self._about.read_bytes())
            version = record.get("version") if isinstance(record, dict) else None
            return version if isinstance(version, str) else ""
        return ""

    def write(self, version: str, offset: int, blocks: Iterator[bytes]) -> None:
        """Add what arrives at ``offset``; anything behind it, or of another version, is dropped."""
        if not offset:
            with _writing(self._about), _private_file(self._about) as about:
                about.truncate()
                about.write(json.dumps({"version": version}).encode())
        with _private_file(self.path) as file:
            with _writing(self.path):
                file.seek(offset)
                file.truncate()
            for block in blocks:
                with _writing(self.path):
                    file.write(block)
                self.require_size(file.tell())
            with _writing(self.path):
                file.flush()

    def remove(self) -> None:
        """Forget all."""
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def require_size(self, size: int) -> None:
        """Raise when the whole is too large."""
        if size > self.limit_bytes:
            self.remove()
            raise RemoteError(self.url, f"it has {size:,} bytes or more, the limit is {self.limit_bytes:,}")


@contextmanager
def _partial(url: str, limit_bytes: int) -> Iterator[_Partial]:
    """The partial file of an address, for this process alone; those of old are removed."""
    folder = downloads_dir()
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in folder.glob("*.*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _KEPT_S:
                left.unlink()
    partial = _Partial(url, limit_bytes)
    place = partial.path.with_suffix(".lock")
    lock = FileLock(place, timeout=0)
    try:
        with _writing(place):
            lock.acquire()
    except Timeout:
        raise RemoteError(url, "it is being fetched by another process; wait until it has ended") from None
    try:
        yield partial
    finally:
        place.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _private_file(path: Path) -> Iterator[BinaryIO]:
    """Open for writing, made if it does not exist; for this user alone, because adapters may be secret."""
    flags = os.O_RDWR | os.O_CREAT | sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"))
    with _writing(path):
        descriptor = os.open(path, flags, 0o600)
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        yield file


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise PathError.of(path, error) from error


def _fetch_https(url: str, partial: _Partial, rules: Rules) -> None:
    offset = partial.size if partial.version else 0
    if not _fetch_from(url, partial, rules, offset):
        partial.remove()
        _fetch_from(url, partial, rules, 0)


def _fetch_from(url: str, partial: _Partial, rules: Rules, offset: int) -> bool:
    """Fetch the rest of a file; false when what is here is of no use for that."""
    headers = {"Range": f"bytes={offset}-", "If-Range": partial.version} if offset else {}
    with opened(url, rules, headers) as answer:
        resumed = bool(offset) and answer.status == HTTPStatus.PARTIAL_CONTENT
        if offset and answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return False
        if answer.status != HTTPStatus.OK and not resumed:
            raise RemoteError(url, f"the server says {answer.phrase}")
        if resumed and not (
            answer.header("Content-Range").startswith(f"bytes {offset}-")
            and _strong_version(answer) in ("", partial.version)
        ):
            return False
        offset = offset if resumed else 0
        partial.require_size(offset + (answer.length or 0))
        partial.write(_strong_version(answer), offset, answer.blocks())
    return True


def _strong_version(answer: Answer) -> str:
    """What a server promises to be different when the bytes are: a strong ETag."""
    tag = answer.header("ETag")
    return "" if tag.startswith("W/") else tag


def _fetch_by_fsspec(url: str, partial: _Partial) -> None:
    with guarded(url):
        filesystem, path = open_filesystem(url)
        info = filesystem.info(path)
        if info.get("type", "file") != "file":
            raise RemoteError(url, "it is no file")
        partial.require_size(int(info.get("size") or 0))
        version = version_of(info)
        offset = partial.size if partial.version == version else 0
        with filesystem.open(path, "rb") as source:
            source.seek(offset)
            partial.write(version, offset, iter(lambda: source.read(_BLOCK), b""))


def version_of(info: Mapping[str, Any]) -> str:
    """What fsspec says of a file that is different when it has other content."""
    keys = ("size", "ETag", "etag", "mtime", "LastModified", "created")
    return json.dumps([info.get(key) for key in keys], default=str)


@contextmanager
def guarded(url: str) -> Iterator[None]:
    """Whatever a file system's package raises becomes a ``RemoteError``."""
    try:
        yield
    except (LoraxError, MemoryError):
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise RemoteError(url, str(error) or type(error).__name__) from error
    except OSError as error:
        raise InterruptedTransfer(url, str(error) or type(error).__name__) from error
    except Exception as error:
        raise RemoteError(url, f"{type(error).__name__}: {error}") from error


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        RemoteError: It is of no kind that is read here, or its package is not installed.
    """
    import fsspec

    kind = url.partition("://")[0].lower() if "://" in url else ""
    if kind not in PROTOCOLS or "::" in url:
        known = ", ".join(f"{protocol}://" for protocol in PROTOCOLS)
        reason = f"what is read and written is {known}; adapters are fetched from https:// and hf://, too"
        raise RemoteError(url, reason)
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise RemoteError(url, str(error)) from error
    return filesystem, path


def make_folder(filesystem: Any, path: str) -> None:
    """Make a folder of a file system; object stores have none, and would make a bucket of a mistyped name.

    Raises:
        OSError: It cannot be made.
    """
    names = filesystem.protocol if isinstance(filesystem.protocol, tuple | list) else (filesystem.protocol,)
    if set(names) & _WITH_FOLDERS:
        filesystem.makedirs(path, exist_ok=True)


def upload(source: Path, url: str) -> None:
    """Write a file to an fsspec address; it appears there as a whole.

    Raises:
        RemoteError: It cannot be written, or there is one already.
    """
    with guarded(url):
        filesystem, path = open_filesystem(url)
        if filesystem.exists(path):
            raise RemoteError(url, "there is a file already; choose another address")
        parent = filesystem._parent(path)
        if parent:
            make_folder(filesystem, parent)
        try:
            with filesystem.transaction, source.open("rb") as file, filesystem.open(path, "wb") as out:
                shutil.copyfileobj(file, out, _BLOCK)
        except BaseException:
            with suppress(OSError):  # what was moved there in part, as on a full disk
                filesystem.rm_file(path)
            raise
