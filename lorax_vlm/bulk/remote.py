"""Images and outputs behind fsspec addresses, such as ``s3://bucket/photos``. No torch.

A job works in a folder here, which holds what the output there holds: what is there is fetched before it, what it
writes is sent a batch at a time, and what a killed one had not sent goes with the next one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorax_vlm.bulk.folder import natural
from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.remote_image import RemoteImage
from lorax_vlm.data.readers.listing import is_image_name, is_left_behind, text_stems
from lorax_vlm.errors import PathError
from lorax_vlm.paths import OWN_FOLDER, naming, written_whole
from lorax_vlm.sharing.places import RemoteFile, RemoteFolder

_STATE = f"{OWN_FOLDER}/sent.json"


@dataclass(frozen=True)
class RemoteImages:
    """The images of a folder behind an address. They may be gone through more than once."""

    folder: RemoteFolder
    recursive: bool = False

    def __iter__(self) -> Iterator[Item]:
        """Its images, folder by folder, in the order in which people count.

        Raises:
            RemoteError: It cannot be listed.
        """
        files = self.folder.files(recursive=self.recursive)
        by_folder: dict[str, list[str]] = {}
        for name in files:
            parent, _, file = name.rpartition("/")
            if is_image_name(file) and not any(map(is_left_behind, name.split("/"))):
                by_folder.setdefault(parent, []).append(file)
        for parent in sorted(by_folder, key=natural):
            names = sorted(by_folder[parent], key=lambda name: (natural(name), name))
            within = f"{parent}/" if parent else ""
            for file, stem in zip(names, text_stems(names), strict=True):
                name = within + file
                yield Item(RemoteImage(self.folder, name, files[name]), name, within + stem)

    def require_images(self) -> None:
        """Find out whether there is anything to do.

        Raises:
            PathError: There is no image in it.
        """
        if next(iter(self), None) is None:
            below = not self.recursive and next(iter(RemoteImages(self.folder, recursive=True)), None) is not None
            hint = "Its sub folders have some: --recursive." if below else ""
            raise PathError(self.folder.url, "it holds no images, or is not there", hint)


class Mirror:
    """A folder here with what an output behind an address holds."""

    def __init__(self, remote: RemoteFolder, place: Path) -> None:
        """Nothing is fetched.

        Args:
            remote: The output.
            place: Below it the folder is, called after the address.
        """
        self.remote = remote
        self.folder = place / hashlib.sha256(remote.url.encode()).hexdigest()[:16]
        self._known: dict[str, _Sent] = {}

    def fetch(self, wanted: Callable[[str], bool]) -> None:
        """Bring what is there and is not the same here; what was written here and not sent is sent.

        What somebody changed or removed there counts more than what is here.

        Args:
            wanted: Which files are a job's, by their names.

        Raises:
            RemoteError: It cannot be reached.
            PathError: It cannot be kept here.
        """
        with naming(self.folder):
            (self.folder / OWN_FOLDER).mkdir(parents=True, exist_ok=True)
        self._known = self._recall()
        there = {name: file for name, file in self.remote.files().items() if wanted(name)}
        for name, file in there.items():
            known = self._known.get(name)
            if known is None or known.version != file.version:
                self._take(name, file)
        here = [name for name in self._here() if wanted(name)]
        for name in here:
            known = self._known.get(name)
            if name not in there and known is not None and known.version:
                (self.folder / name).unlink(missing_ok=True)  # somebody removed it
                del self._known[name]
        self.send([name for name in here if self._is_newer(name)])

    def send(self, names: Sequence[str]) -> None:
        """Send files that were written.

        Raises:
            RemoteError: It cannot be reached; they are sent the next time.
        """
        there = [name for name in names if (self.folder / name).is_file()]
        self.remote.send(there, self.folder)
        for name in there:
            self._known[name] = _Sent(self._stamp(name), "")

    def finish(self, wanted: Callable[[str], bool]) -> None:
        """Send what has not been sent, remove there what was removed here, and remember what is there now.

        Raises:
            RemoteError: It cannot be reached; the next run does it.
            PathError: It cannot be remembered.
        """
        here = [name for name in self._here() if wanted(name)]
        self.send([name for name in here if self._is_newer(name)])
        for name in set(self._known) - set(here):
            if not (self.folder / name).exists():
                self.remote.remove(name)
                del self._known[name]
        there = self.remote.files()
        self._known = {name: _Sent(self._stamp(name), there[name].version) for name in here if name in there}
        state = {name: [*known.stamp, known.version] for name, known in self._known.items()}
        with naming(self.folder), written_whole(self.folder / _STATE) as file:
            file.write(json.dumps(state).encode())

    def address(self, path: Path) -> str:
        """Where a file of the folder is, there."""
        return f"{self.remote.url}/{path.relative_to(self.folder).as_posix()}"

    def _take(self, name: str, file: RemoteFile) -> None:
        content, path = self.remote.read(name), self.folder / name
        with naming(path):
            if not (path.is_file() and path.read_bytes() == content):
                path.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(path) as out:
                    out.write(content)
        self._known[name] = _Sent(self._stamp(name), file.version)

    def _here(self) -> Iterator[str]:
        for parent, _, files in os.walk(self.folder):
            for file in files:
                yield Path(parent, file).relative_to(self.folder).as_posix()

    def _is_newer(self, name: str) -> bool:
        known = self._known.get(name)
        return (self.folder / name).is_file() and (known is None or known.stamp != self._stamp(name))

    def _stamp(self, name: str) -> tuple[int, int]:
        found = (self.folder / name).stat()
        return found.st_size, found.st_mtime_ns

    def _recall(self) -> "dict[str, _Sent]":
        try:
            state = json.loads((self.folder / _STATE).read_bytes())
            return {name: _Sent((size, changed), version) for name, (size, changed, version) in state.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise PathError(str(self.folder / _STATE), f"it cannot be read: {error}", "Remove it.") from error


@dataclass(frozen=True)
class _Sent:
    """A file as it was sent or fetched."""

    stamp: tuple[int, int]
    """Size and time of the file here."""
    version: str
    """Of the file there; empty where it was sent and not looked at since."""


def is_of_job(journal: Path, names: Sequence[str]) -> Callable[[str], bool]:
    """Which files of an output are a job's: its journal, texts, and the files of these names."""
    own = {*names, f"{OWN_FOLDER}/{journal.name}"}
    return lambda name: name in own or (name.endswith(".txt") and OWN_FOLDER not in name.split("/"))
