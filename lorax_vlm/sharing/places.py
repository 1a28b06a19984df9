"""Folders behind fsspec addresses, such as ``s3://bucket/photos``: what is in them, read and written. No torch."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lorax_vlm.errors import InterruptedTransfer, RemoteError
from lorax_vlm.paths import written_whole
from lorax_vlm.sharing.downloads import PROTOCOLS, guarded, make_folder, open_filesystem, version_of

T = TypeVar("T")
_TRIES, _WAIT_S = 3, 1.0


def is_place(text: str) -> bool:
    """Whether a text is an address of such a folder or of a file in one."""
    return "://" in text and text.partition("://")[0].lower() in PROTOCOLS


@dataclass(frozen=True)
class RemoteFile:
    """A file as the listing of its folder shows it."""

    size: int
    version: str
    """What is different when it has other content."""


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind an address; nothing is asked before something is wanted of it."""

    url: str

    def __post_init__(self) -> None:
        """Without a slash at its end."""
        kind, parting, path = self.url.partition("://")
        object.__setattr__(self, "url", kind + parting + path.rstrip("/"))

    def files(self, *, recursive: bool = True) -> dict[str, RemoteFile]:
        """All files by their names below the folder; of a folder that is not there none.

        Keys of object stores may be anything: those that name no file below a folder (``a/../b``) are left out.

        Raises:
            RemoteError: It cannot be listed.
        """
        with guarded(self.url):
            system, root = self._open()
            system.invalidate_cache()
            try:
                found: Mapping[str, Any] = system.find(root, detail=True, maxdepth=None if recursive else 1)
            except FileNotFoundError:
                return {}
            return {
                name: RemoteFile(int(info.get("size") or 0), version_of(info))
                for name, info in ((path[len(root) :].lstrip("/"), info) for path, info in sorted(found.items()))
                if info.get("type", "file") == "file" and _is_below(name)
            }

    def read(self, name: str) -> bytes:
        """A file.

        Raises:
            RemoteError: It cannot be read.
        """

        def read() -> bytes:
            with guarded(f"{self.url}/{name}"):
                system, root = self._open()
                data: bytes = system.cat_file(f"{root}/{name}")
                return data

        return _tried(read)

    def fetch(self, name: str, path: Path) -> None:
        """Bring a file here, perhaps a large one, in the place of what is there.

        Raises:
            RemoteError: It cannot be read.
            OSError: It cannot be kept here.
        """

        def fetch() -> None:
            with guarded(f"{self.url}/{name}"):
                system, root = self._open()
                with system.open(f"{root}/{name}", "rb") as source, written_whole(path) as file:
                    shutil.copyfileobj(source, file)

        path.parent.mkdir(parents=True, exist_ok=True)
        _tried(fetch)

    def read_if_there(self, name: str) -> bytes | None:
        """A file; None where there is none.

        Raises:
            RemoteError: It cannot be read.
        """
        try:
            return self.read(name)
        except RemoteError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole.

        Raises:
            RemoteError: It cannot be written.
        """

        def write() -> None:
            with guarded(f"{self.url}/{name}"):
                system, root = self._open()
                make_folder(system, f"{root}/{name}".rpartition("/")[0])
                system.pipe_file(f"{root}/{name}", content)

        _tried(write)

    def send(self, files: Mapping[str, Path]) -> None:
        """Write files to names there; in object stores each appears as a whole.

        Raises:
            RemoteError: One cannot be written.
        """
        if not files:
            return

        def send() -> None:
            with guarded(self.url):
                system, root = self._open()
                for parent in {f"{root}/{name}".rpartition("/")[0] for name in files}:
                    make_folder(system, parent)
                system.put([str(path) for path in files.values()], [f"{root}/{name}" for name in files])

        _tried(send)

    def remove(self, name: str) -> None:
        """Remove a file.

        Raises:
            RemoteError: It cannot be removed.
        """
        with guarded(f"{self.url}/{name}"):
            system, root = self._open()
            system.rm_file(f"{root}/{name}")

    def _open(self) -> tuple[Any, str]:
        system, root = open_filesystem(self.url)
        if not root.strip("/"):
            raise RemoteError(self.url, "it names no folder")
        return system, root.rstrip("/")


def _is_below(name: str) -> bool:
    return bool(name) and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _tried(do: Callable[[], T]) -> T:
    """What is done; once more where a connection breaks."""
    for left in reversed(range(_TRIES)):
        try:
            return do()
        except InterruptedTransfer:
            if not left:
                raise
            time.sleep(_WAIT_S)
    raise AssertionError("the last try returns or raises")
