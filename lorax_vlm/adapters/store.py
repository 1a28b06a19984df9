"""Where adapters live: every version kept, known by its content, replaced only as a whole. No torch.

    STORE/objects/<digest>/   adapter_config.json  adapter_model.safetensors  exchange.json
    STORE/names/<name>.json   its versions, which one is in use, aliases, tags

The digest is that of ``exchange.json``, which names the other files by theirs. A version is written beside its place
and renamed into it, then the name's record is replaced in one step, both under the store's lock. A crash at any moment
leaves the former version in use, and at most something nobody refers to, which ``clean`` removes. Readers need no lock.
"""

import datetime
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from lorax_vlm.adapters.files import CONFIG_FILE, WEIGHTS_FILE, AdapterFiles, read_adapter_files
from lorax_vlm.adapters.integrity import SIGNATURE_FILE, check_object, hash_file
from lorax_vlm.adapters.manifest import MANIFEST_FILE, Manifest, read_manifest
from lorax_vlm.adapters.names import NAME, NameRecord, Version, parse_record, require_adapter_name
from lorax_vlm.errors import AdapterExists, AdapterNameError, AdapterNotFound, DamagedAdapter, LoraxError
from lorax_vlm.settings import store_dir

_SCRATCH_PREFIX = ".writing-"
_ABANDONED_S = 3600
_TRIES = 3
"""An equal version that was removed and added again while it was read looks damaged once."""
T = TypeVar("T")


@dataclass(frozen=True)
class StoredAdapter:
    """One readable adapter of a store."""

    name: str
    version: int
    folder: Path
    """A plain PEFT directory."""
    manifest: Manifest
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    """Those of this version."""


@dataclass(frozen=True)
class BrokenAdapter:
    """An entry that cannot be read, with the reason; it never hides the others."""

    name: str
    error: LoraxError


@dataclass(frozen=True)
class VerifyReport:
    """What reading and hashing everything in a store found."""

    versions: int
    size_bytes: int
    problems: tuple[str, ...]
    leftovers: tuple[Path, ...]
    """Of writers that were killed; nobody refers to them, and ``clean`` removes them."""


class AdapterStore:
    """The adapters below one folder. Cheap to create; nothing is read until asked for.

    Where a method takes a ``name`` it also takes ``name@3`` (a version) and ``name@stable`` (an alias), if it reads.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        """Use ``root``, by default the store of ``LORAX_VLM_HOME``."""
        self.root = Path(root).expanduser() if root is not None else store_dir()

    # --- reading ----------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of all entries, sorted, broken ones included."""
        try:
            found = [
                entry.name.removesuffix(".json") for entry in os.scandir(self._names) if entry.name.endswith(".json")
            ]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if NAME.fullmatch(name))

    def __contains__(self, name: str) -> bool:
        return self._record_path(name).is_file()

    def record(self, name: str) -> NameRecord:
        """Versions, aliases and tags of a name.

        Raises:
            AdapterNameError: ``name`` cannot be a name.
            AdapterNotFound: There is none.
            DamagedAdapter: Its record cannot be read.
        """
        path = self._record_path(name)
        try:
            return parse_record(path.read_bytes(), name)
        except FileNotFoundError:
            raise AdapterNotFound(name, str(self.root), self.names()) from None
        except ValueError as error:
            raise DamagedAdapter(name, str(path), [str(error)]) from error

    def get(self, name: str) -> StoredAdapter:
        """An adapter: the version in use, or the one that ``name@version`` or ``name@alias`` asks for.

        Raises:
            AdapterNameError: ``name`` cannot be a name.
            AdapterNotFound: There is no such adapter or version.
            DamagedAdapter: Its entry cannot be read.
        """
        return self._read(name, lambda stored: stored)

    def _read(self, name: str, read: Callable[[StoredAdapter], T]) -> T:
        """Read a version without a lock; once more when it was removed or replaced meanwhile."""
        failed: dict[Version, int] = {}
        while True:
            record, version = self._choose(name)
            folder = self._objects / version.object
            try:
                manifest = read_manifest(folder, record.name, required=True)
                aliases = tuple(alias for alias, number in record.aliases.items() if number == version.number)
                return read(StoredAdapter(record.name, version.number, folder, manifest, tuple(record.tags), aliases))
            except DamagedAdapter:
                failed[version] = failed.get(version, 0) + 1
                if failed[version] == _TRIES:
                    raise

    def _choose(self, name: str) -> tuple[NameRecord, Version]:
        """A name's record, and the version that is asked for."""
        plain, _, wanted = name.partition("@")
        record = self.record(plain)
        version = record.choose(wanted)
        if version is None:
            raise AdapterNotFound(name, str(self.root), _references(record))
        return record, version

    def list(self) -> tuple[list[StoredAdapter], list[BrokenAdapter]]:
        """All adapters, and all entries that cannot be read."""
        good, broken = [], []
        for name in self.names():
            try:
                good.append(self.get(name))
            except AdapterNotFound:
                continue  # removed meanwhile
            except LoraxError as error:
                broken.append(BrokenAdapter(name, error))
        return good, broken

    def search(
        self, text: str = "", *, base: str | None = None, task: str | None = None, tags: Sequence[str] = ()
    ) -> Sequence[StoredAdapter]:
        """Adapters whose name, style, task, base, data or tags contain every word of ``text``, ignoring case.

        Args:
            text: Words.
            base: Only those made for this base.
            task: Only those of this task.
            tags: Only those with all of these tags.
        """
        words = text.casefold().split()
        return [
            adapter
            for adapter in self.list()[0]
            if all(word in _described(adapter) for word in words)
            and (base is None or (adapter.manifest.base is not None and adapter.manifest.base.name == base))
            and (task is None or adapter.manifest.task == task)
            and set(tags) <= set(adapter.tags)
        ]

    def read(self, name: str) -> tuple[StoredAdapter, AdapterFiles]:
        """An adapter and its checked PEFT files, both of one version; see ``get`` and ``read_adapter_files``."""
        return self._read(name, lambda stored: (stored, read_adapter_files(stored.folder, name, stored.manifest.files)))

    def files(self, name: str) -> AdapterFiles:
        """The checked PEFT files of an adapter; see ``read_adapter_files``."""
        return self.read(name)[1]

    # --- writing ----------------------------------------------------------------------------------------------------

    def add(self, name: str, source: Path, manifest: Manifest, *, replace: bool = False) -> StoredAdapter:
        """Check a PEFT directory and copy it in as the version in use. The source is left as it is.

        Args:
            name: Name in the store.
            source: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
            manifest: Written beside them, with their digests.
            replace: Make a new version when the name exists, instead of raising.

        Raises:
            AdapterExists: The name is taken and ``replace`` is false.
            DamagedAdapter: The source is not sound; the store is unchanged.
            UnsupportedAdapter: The source is not plain LoRA; the store is unchanged.
        """
        if not replace and require_adapter_name(name) in self:
            raise AdapterExists(name, str(self.root))
        self._record_path(name)
        with self._scratch() as scratch:
            for file in (CONFIG_FILE, WEIGHTS_FILE, SIGNATURE_FILE):
                _copy_durably(source / file, scratch / file, name)
            read_adapter_files(scratch, name)  # the copy, so that what was checked is what is stored
            records = {file: hash_file(scratch / file) for file in (CONFIG_FILE, WEIGHTS_FILE)}
            text = replaced(manifest, files=records).to_json()
            _write_durably(scratch / MANIFEST_FILE, text)
            digest = hashlib.sha256(text.encode()).hexdigest()
            with self._locked():
                if name in self and not replace:
                    raise AdapterExists(name, str(self.root))
                self._objects.mkdir(exist_ok=True)
                if not (self._objects / digest).is_dir():
                    scratch.chmod(0o755)
                    os.rename(scratch, self._objects / digest)
                self._write_record(self._next_version(name, digest))
        return self.get(name)

    def _next_version(self, name: str, digest: str) -> NameRecord:
        stored = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if name not in self:
            return NameRecord(name, 1, [Version(1, digest, stored)])
        record = self.record(name)
        number = max(record.numbers) + 1
        return replaced(record, current=number, versions=[*record.versions, Version(number, digest, stored)])

    def rollback(self, name: str, version: int | None = None) -> StoredAdapter:
        """Use a former version again: the one given, or the one before that in use. Later ones stay.

        Raises:
            AdapterNotFound: There is no such version.
        """
        with self._locked():
            record = self.record(name)
            earlier = [number for number in record.numbers if number < record.current]
            number = version if version is not None else max(earlier, default=0)
            self._require_version(record, number)
            self._write_record(replaced(record, current=number))
        return self.get(name)

    def set_alias(self, name: str, alias: str, version: int | None = None) -> StoredAdapter:
        """Let ``name@alias`` stand for a version, by default the one in use.

        Raises:
            AdapterNameError: ``alias`` cannot be one; a number cannot.
            AdapterNotFound: There is no such version.
        """
        if require_adapter_name(alias).isdigit():
            raise AdapterNameError(alias)
        with self._locked():
            record = self.record(name)
            number = record.current if version is None else version
            self._require_version(record, number)
            self._write_record(replaced(record, aliases={**record.aliases, alias: number}))
        return self.get(f"{name}@{alias}")

    def drop_alias(self, name: str, alias: str) -> None:
        """Forget an alias.

        Raises:
            AdapterNotFound: There is no such alias.
        """
        with self._locked():
            record = self.record(name)
            if alias not in record.aliases:
                raise AdapterNotFound(f"{name}@{alias}", str(self.root), _references(record))
            self._write_record(replaced(record, aliases={k: v for k, v in record.aliases.items() if k != alias}))

    def tag(self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> StoredAdapter:
        """Add and remove tags of a name.

        Raises:
            AdapterNameError: A tag cannot be one.
            AdapterNotFound: There is no such adapter.
        """
        new = {require_adapter_name(tag) for tag in add}
        with self._locked():
            record = self.record(name)
            self._write_record(replaced(record, tags=sorted((set(record.tags) | new) - set(remove))))
        return self.get(name)

    def attach_signature(self, name: str, signature: Path) -> None:
        """Put a signature beside the files that it signs; a former one is replaced.

        Raises:
            AdapterNotFound: There is no such adapter or version.
        """
        stored = self.get(name)
        with self._locked(), self._scratch() as scratch:
            _copy_durably(signature, scratch / SIGNATURE_FILE, name)
            os.replace(scratch / SIGNATURE_FILE, stored.folder / SIGNATURE_FILE)

    def remove(self, name: str) -> None:
        """Remove an adapter with all its versions.

        Raises:
            AdapterNotFound: There is none.
        """
        path = self._record_path(name)
        if not path.is_file():
            raise AdapterNotFound(name, str(self.root), self.names())
        with self._locked():
            path.unlink(missing_ok=True)
            self._remove_leftovers()

    def drop_version(self, name: str, version: int) -> None:
        """Remove one version; the one before it comes into use if it was. A name without versions is gone.

        Raises:
            AdapterNotFound: There is no such version.
        """
        with self._locked():
            record = self.record(name)
            self._require_version(record, version)
            kept = [other for other in record.versions if other.number != version]
            if kept:
                earlier = [other.number for other in kept if other.number < version]
                fallback = max(earlier, default=kept[0].number)
                current = fallback if record.current == version else record.current
                aliases = {alias: number for alias, number in record.aliases.items() if number != version}
                self._write_record(replaced(record, current=current, versions=kept, aliases=aliases))
            else:
                self._record_path(name).unlink()
            self._remove_leftovers()

    def export(self, name: str, target: Path) -> Path:
        """Copy an adapter's PEFT directory and manifest to ``target``, which must not exist or be empty.

        Raises:
            AdapterNotFound: There is none.
            AdapterExists: ``target`` is not empty.
        """
        stored = self.get(name)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise AdapterExists(name, str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=target.parent))
        try:
            shutil.copytree(stored.folder, scratch, dirs_exist_ok=True)
            scratch.chmod(0o755)
            os.replace(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target

    def _require_version(self, record: NameRecord, number: int) -> None:
        if number not in record.numbers:
            raise AdapterNotFound(f"{record.name}@{number}", str(self.root), _references(record))

    # --- whole store ------------------------------------------------------------------------------------------------

    def verify(self) -> VerifyReport:
        """Read and hash every version of every name."""
        problems: list[str] = []
        checked: dict[str, int] = {}
        with self._locked():  # so that nothing is removed while it is read
            names = self.names()
            for name in names:
                try:
                    versions = self.record(name).versions
                except AdapterNotFound:
                    continue
                except LoraxError as error:
                    problems.append(str(error))
                    continue
                for version in versions:
                    if version.object not in checked:
                        found, size = check_object(self._objects / version.object, version.object)
                        checked[version.object] = size
                        problems += [f"{name}@{version.number}: {problem}" for problem in found]
            leftovers = tuple(self._leftovers())
        return VerifyReport(len(checked), sum(checked.values()), tuple(problems), leftovers)

    def clean(self) -> int:
        """Remove what nobody refers to; returns how many folders that were."""
        with self._locked():
            return self._remove_leftovers()

    def _remove_leftovers(self) -> int:
        """Only under the lock."""
        leftovers = list(self._leftovers())
        for path in leftovers:
            shutil.rmtree(path, ignore_errors=True)
        return len(leftovers)

    def _leftovers(self) -> Iterator[Path]:
        """Only under the lock: a version that is being added is one."""
        if not self.root.is_dir():
            return
        broken, used = False, set()
        for name in self.names():
            try:
                used |= {version.object for version in self.record(name).versions}
            except LoraxError:
                broken = True  # its versions may be among those nobody else refers to
        for path in self.root.glob(f"{_SCRATCH_PREFIX}*"):
            with suppress(FileNotFoundError):  # its writer has just finished
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    yield path
        if self._objects.is_dir() and not broken:
            yield from (path for path in self._objects.iterdir() if path.name not in used)

    # --- places -----------------------------------------------------------------------------------------------------

    @property
    def _names(self) -> Path:
        return self.root / "names"

    @property
    def _objects(self) -> Path:
        return self.root / "objects"

    def _record_path(self, name: str) -> Path:
        return self._names / f"{require_adapter_name(name)}.json"

    def _write_record(self, record: NameRecord) -> None:
        """Only under the lock."""
        self._names.mkdir(exist_ok=True)
        path = self._record_path(record.name)
        scratch = path.with_name(f".{path.name}")
        _write_durably(scratch, json.dumps(asdict(record), indent=1))
        os.replace(scratch, path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone in changing the store; released by the system when the process dies."""
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".lock"):
            yield

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder in the store's own file system, always removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=self.root))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _references(record: NameRecord) -> list[str]:
    return [f"{record.name}@{wanted}" for wanted in (*record.numbers, *record.aliases)]


def _described(adapter: StoredAdapter) -> str:
    manifest = adapter.manifest
    base = manifest.base.name if manifest.base else ""
    parts = [adapter.name, manifest.task, manifest.style, base, str(manifest.training.get("data", "")), *adapter.tags]
    return " ".join(parts).casefold()


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _copy_durably(source: Path, target: Path, name: str) -> None:
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        return  # said by the check of the copy
    except OSError as error:
        raise DamagedAdapter(name, str(source.parent), [f"{source.name} cannot be read: {error}"]) from error
    with target.open("rb") as file:
        os.fsync(file.fileno())
