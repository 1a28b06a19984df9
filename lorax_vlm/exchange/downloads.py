"""One file from elsewhere, resumed where it broke off. What it holds is checked by whoever asked for it."""

import hashlib
import http.client
import json
import logging
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lorax_vlm.errors import RemoteError
from lorax_vlm.settings import downloads_dir

logger = logging.getLogger(__name__)
_BLOCK = 2**18
_TRIES = 5
_TIMEOUT_S = 30.0


@contextmanager
def downloaded(url: str, limit_bytes: int) -> Iterator[Path]:
    """The file behind an ``https://`` or fsspec address for the time of a block.

    What arrived before an interruption is kept and continued, by this process or a later one, if the file there is
    still the same.

    Raises:
        RemoteError: It cannot be fetched, or is larger than allowed.
    """
    partial = _Partial(url, limit_bytes)
    fetch = _fetch_https if urlsplit(url).scheme in ("http", "https") else _fetch_by_fsspec
    for attempt in range(1, _TRIES + 1):
        before = partial.size
        try:
            fetch(url, partial)
            break
        except RemoteError:
            raise
        except (OSError, http.client.HTTPException) as error:
            if attempt == _TRIES or isinstance(error, FileNotFoundError | PermissionError):
                raise RemoteError(url, f"{error} (after {partial.size:,} bytes, which are kept)") from error
            logger.info("%s broke off after %s bytes: %s", url, f"{partial.size - before:,}", error)
    try:
        yield partial.path
    finally:
        partial.remove()


class _Partial:
    """What has arrived of a file so far, and of which version of it."""

    def __init__(self, url: str, limit_bytes: int) -> None:
        key = hashlib.sha256(url.encode()).hexdigest()[:32]
        downloads_dir().mkdir(parents=True, exist_ok=True)
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
            version = json.loads(self._about.read_text(encoding="utf-8"))["version"]
            return version if isinstance(version, str) else ""
        return ""

    def begin(self, version: str, offset: int) -> Any:
        """Open for writing from ``offset``; anything behind it, or of another version, is dropped."""
        if not offset:
            self._about.write_text(json.dumps({"url": self.url, "version": version}), encoding="utf-8")
        file = self.path.open("r+b" if offset else "wb")
        file.seek(offset)
        file.truncate()
        return file

    def remove(self) -> None:
        """Forget all."""
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def require_size(self, size: int) -> None:
        """Raise when the whole is too large."""
        if size > self.limit_bytes:
            self.remove()
            raise RemoteError(self.url, f"it has {size:,} bytes or more, the limit is {self.limit_bytes:,}")


def _fetch_https(url: str, partial: _Partial) -> None:
    if urlsplit(url).scheme != "https":
        raise RemoteError(url, "only https:// is fetched: anyone on the way could change what comes over http://")
    headers = {"User-Agent": "lorax-vlm", "Accept-Encoding": "identity"}
    offset = partial.size if partial.version else 0
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": partial.version}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.remove()
            return _fetch_https(url, partial)
        raise RemoteError(url, f"the server says {error.code} {error.reason}") from error
    with response:
        if urlsplit(response.url).scheme != "https":
            raise RemoteError(url, f"it leads to {response.url}, which is not https")
        offset = offset if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = response.headers.get("Content-Length")
        expected = offset + int(length) if length else None
        partial.require_size(expected or 0)
        with partial.begin(_strong_version(response.headers), offset) as file:
            while block := response.read(_BLOCK):
                file.write(block)
                partial.require_size(file.tell())
            if expected is not None and file.tell() < expected:
                raise http.client.IncompleteRead(b"", expected - file.tell())
    return None


def _strong_version(headers: Any) -> str:
    """What a server promises to be different when the bytes are: a strong ETag."""
    tag = headers.get("ETag") or ""
    return "" if tag.startswith("W/") else tag


def _fetch_by_fsspec(url: str, partial: _Partial) -> None:
    filesystem, path = open_filesystem(url)
    info = filesystem.info(path)
    partial.require_size(int(info.get("size") or 0))
    version = json.dumps(
        [info.get(key) for key in ("size", "ETag", "etag", "mtime", "LastModified", "created")], default=str
    )
    offset = partial.size if partial.version == version else 0
    with filesystem.open(path, "rb") as source, partial.begin(version, offset) as file:
        source.seek(offset)
        while block := source.read(_BLOCK):
            file.write(block)
            partial.require_size(file.tell())


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        RemoteError: No file system of that kind is known, or its package is not installed.
    """
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise RemoteError(url, str(error)) from error
    return filesystem, path


def upload(source: Path, url: str) -> None:
    """Write a file to an fsspec address; it appears there as a whole.

    Raises:
        RemoteError: It cannot be written, or there is one already.
    """
    filesystem, path = open_filesystem(url)
    try:
        if filesystem.exists(path):
            raise RemoteError(url, "there is a file already; choose another address")
        parent = filesystem._parent(path)
        if parent:
            filesystem.makedirs(parent, exist_ok=True)
        with filesystem.transaction, source.open("rb") as file, filesystem.open(path, "wb") as out:
            shutil.copyfileobj(file, out, _BLOCK)
    except RemoteError:
        raise
    except OSError as error:
        raise RemoteError(url, str(error)) from error
