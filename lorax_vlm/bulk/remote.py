"""Images and outputs behind fsspec addresses, such as ``s3://bucket/photos``. No torch.

A job works in a folder here, which holds what the output there holds: what is there is fetched before it, what it
writes is sent now and then, and what a killed one had not sent goes with the next one. The journal goes before the
texts that it knows of, so that no text there is taken for somebody else's. What is there and is what was last sent
or fetched was changed by nobody, and what is here counts.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from lorax_vlm.bulk.claim import Claim
from lorax_vlm.bulk.folder import natural
from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.journal import Journal, Stamp, output_in_use
from lorax_vlm.bulk.remote_image import RemoteImage
from lorax_vlm.data.readers.listing import is_image_name, is_left_behind, text_stems
from lorax_vlm.errors import PathError
from lorax_vlm.paths import OWN_FOLDER, naming, written_whole
from lorax_vlm.sharing.places import RemoteFile, RemoteFolder

_SENT_EVERY_S = 60.0
_NEVER = Stamp(-1, -1)
"""Of no file."""
_STATE, _LOCK = f"{OWN_FOLDER}/sent.json", f"{OWN_FOLDER}/mirror.lock"


@dataclass(frozen=True)
class RemoteImages:
    """The images of a folder behind an address, as they are when they are first asked for."""

    folder: RemoteFolder
    recursive: bool = False

    def __iter__(self) -> Iterator[Item]:
        """Its images, folder by folder, in the order in which people count.

        Raises:
            RemoteError: It cannot be listed.
        """
        yield from self._items

    @cached_property
    def _items(self) -> list[Item]:
        files = self.folder.files(recursive=self.recursive)
        by_folder: dict[str, list[str]] = {}
        for name in files:
            parent, _, file = name.rpartition("/")
            if is_image_name(file) and not any(map(is_left_behind, name.split("/"))):
                by_folder.setdefault(parent, []).append(file)
        items = []
        for parent in sorted(by_folder, key=natural):
            names = sorted(by_folder[parent], key=lambda name: (natural(name), name))
            within = f"{parent}/" if parent else ""
            for file, stem in zip(names, text_stems(names), strict=True):
                name = within + file
                items.append(Item(RemoteImage(self.folder, name, files[name]), name, within + stem))
        return items

    def require_images(self) -> None:
        """Find out whether there is anything to do.

        Raises:
            PathError: There is no image in it.
        """
        if not self._items:
            below = not self.recursive and next(iter(RemoteImages(self.folder, recursive=True)), None) is not None
            hint = "Its sub folders have some: --recursive." if below else ""
            raise PathError(self.folder.url, "it holds no images, or is not there", hint)


@dataclass(frozen=True)
class _Sent:
    """A file as it was sent or fetched."""

    stamp: Stamp
    """Of the file here."""
    version: str
    """Of the file there; empty where it was sent and not looked at since."""
    digests: tuple[str, ...]
    """SHA-256 of what was fetched, or sent and arrived, and of what was sent since and may have arrived."""


@dataclass
class _Waiting:
    """What was written and is to be sent."""

    names: dict[str, None] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)


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
        self._waiting = _Waiting()
        self._claim: Claim | None = None

    @contextmanager
    def claimed(self, journal: str) -> Iterator[None]:
        """Keep other machines out for a block.

        Args:
            journal: What the job's journal is called.

        Raises:
            PathError: Another process writes there.
            RemoteError: It cannot be written to.
        """
        self._claim = Claim(self.remote, journal)
        with self._claim.held():
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the folder here for a block.

        Raises:
            PathError: Another process of this machine has it, or it cannot be made.
        """
        with naming(self.folder):
            (self.folder / OWN_FOLDER).mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / _LOCK, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise output_in_use(self.remote.url) from None
        try:
            yield
        finally:
            lock.release()

    def fetch(self, wanted: Callable[[str], bool]) -> None:
        """Bring what is there and is not the same here. Nothing is changed there.

        What somebody changed or removed there counts more than what is here.

        Args:
            wanted: Which files are a job's, by their names.

        Raises:
            RemoteError: It cannot be reached.
            PathError: It cannot be kept here.
        """
        self._known = self._recall()
        there = {name: file for name, file in self.remote.files().items() if wanted(name)}
        for name, file in there.items():
            known = self._known.get(name)
            if known is None or known.version != file.version or not (self.folder / name).is_file():
                self._take(name, file)
        for name in [name for name in self._here() if wanted(name) and name not in there]:
            known = self._known.get(name)
            if known is not None and known.version:
                (self.folder / name).unlink(missing_ok=True)  # somebody removed it
                del self._known[name]
        self._remember()

    def written(self, names: Sequence[str], journal: Journal) -> None:
        """Note files that were written, and send what waits now and then, the journal first.

        Raises:
            RemoteError: It cannot be reached; they are sent the next time.
        """
        self._waiting.names |= dict.fromkeys(names)
        if time.monotonic() - self._waiting.since < _SENT_EVERY_S:
            return
        copy = journal.path.with_name(f"{journal.path.name}.copy")
        journal.copy_to(copy)
        self._send({self._name(journal.path): copy})
        copy.unlink()
        self._send({name: self.folder / name for name in self._waiting.names})
        self._waiting = _Waiting()

    def finish(self, wanted: Callable[[str], bool], journal: Path, removed: Iterable[Path]) -> None:
        """Send what has not been sent, and remember what is there now.

        Args:
            wanted: Which files are a job's, by their names.
            journal: The journal, closed; it goes first.
            removed: Files that the job removes where it has nothing to say in them.

        Raises:
            RemoteError: It cannot be reached; the next run does it.
            PathError: It cannot be remembered.
        """
        here = [name for name in self._here() if wanted(name)]
        newer = [name for name in here if self._is_newer(name)]
        self._send({name: self.folder / name for name in newer if name == self._name(journal)})
        self._send({name: self.folder / name for name in newer if name != self._name(journal)})
        there = self.remote.files()
        for name in map(self._name, removed):
            if name in there and not (self.folder / name).exists():
                self.remote.remove(name)
        self._known = {
            name: replace(self._known[name], version=there[name].version)
            for name in here
            if name in there and name in self._known
        }
        self._remember()

    def address(self, path: Path) -> str:
        """Where a file of the folder is, there."""
        return f"{self.remote.url}/{self._name(path)}"

    def _send(self, files: Mapping[str, Path]) -> None:
        """Send files, some of them copies; what is sent is noted before, so that it is known again."""
        if self._claim is not None:
            self._claim.require()
        files = {name: path for name, path in files.items() if path.is_file()}
        if not files:
            return
        with naming(self.folder):
            sent = {
                name: _Sent(Stamp.of(path.stat()), "", (hashlib.sha256(path.read_bytes()).hexdigest(),))
                for name, path in files.items()
            }
        for name, now in sent.items():
            before = self._known[name].digests if name in self._known else ()
            self._known[name] = _Sent(_NEVER, "", (*before, *now.digests))
        self._remember()
        self.remote.send(files)
        self._known |= sent

    def _take(self, name: str, file: RemoteFile) -> None:
        content, path = self.remote.read(name), self.folder / name
        digest, known = hashlib.sha256(content).hexdigest(), self._known.get(name)
        if known is not None and digest in known.digests and path.is_file():
            self._known[name] = replace(known, version=file.version)  # as it was sent; what is here may be newer
            return
        with naming(path):
            if not (path.is_file() and path.read_bytes() == content):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(f"{path.name}-journal").unlink(missing_ok=True)  # SQLite's, of another database
                with written_whole(path) as out:
                    out.write(content)
        self._known[name] = _Sent(self._stamp(name), file.version, (digest,))

    def _here(self) -> list[str]:
        return [self._name(Path(parent, file)) for parent, _, files in os.walk(self.folder) for file in files]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _is_newer(self, name: str) -> bool:
        known = self._known.get(name)
        return known is None or known.stamp != self._stamp(name)

    def _stamp(self, name: str) -> Stamp:
        return Stamp.of((self.folder / name).stat())

    def _remember(self) -> None:
        state = {
            name: [known.stamp.size, known.stamp.changed_ns, known.version, *known.digests]
            for name, known in self._known.items()
        }
        with naming(self.folder), written_whole(self.folder / _STATE) as file:
            file.write(json.dumps(state).encode())

    def _recall(self) -> dict[str, _Sent]:
        try:
            state = json.loads((self.folder / _STATE).read_bytes())
            return {
                name: _Sent(Stamp(size, changed), version, tuple(digests))
                for name, (size, changed, version, *digests) in state.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise PathError(str(self.folder / _STATE), f"it cannot be read: {error}", "Remove it.") from error
