"""Where adapters live: every version kept, known by its content, replaced only as a whole. No torch.

    STORE/objects/<digest>/   adapter_config.json  adapter_model.safetensors  exchange.json ...
    STORE/names/<name>.json   its versions, which one is in use, aliases, tags

The digest is that of ``exchange.json``, which names the other files by theirs. A version is written beside its place
and renamed into it, then the name's record is replaced in one step, both under the store's lock. A crash at any moment
leaves the former version in use, and at most something nobody refers to, which ``clean`` removes. Readers need no lock.
"""

import datetime
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace as replaced
from pathlib import Path
from typing import TypeVar

from lorax_vlm.adapters.durable import locked_folder, own_folder, require_room, write_durably
from lorax_vlm.adapters.files import AdapterBytes, AdapterFiles, read_adapter, read_adapter_files
from lorax_vlm.adapters.incoming import Addition, copy_version, write_version
from lorax_vlm.adapters.integrity import MAX_SIGNATURE_BYTES, SIGNATURE_FILE
from lorax_vlm.adapters.lookup import matching, resolve_name
from lorax_vlm.adapters.manifest import MANIFEST_FILE, Manifest, read_manifest
from lorax_vlm.adapters.names import DEMO_TAG, NameRecord, Version, require_adapter_name, require_new_name, split_name
from lorax_vlm.adapters.objects import ObjectFolders
from lorax_vlm.adapters.records import NameRecords
from lorax_vlm.adapters.regular_files import read_regular
from lorax_vlm.adapters.stored import BrokenAdapter, StoredAdapter
from lorax_vlm.adapters.upkeep import Upkeep, VerifyReport, check_versions
from lorax_vlm.errors import AdapterExists, AdapterNameError, AdapterNotFound, DamagedAdapter, LoraxError
from lorax_vlm.paths import naming, sync_folder
from lorax_vlm.settings import store_dir
from lorax_vlm.types import require_flag, require_texts

logger = logging.getLogger(__name__)
_TRIES = 3
"""An equal version that was removed and added again while it was read looks damaged once."""
T = TypeVar("T")


class AdapterStore:
    """The adapters below one folder. Cheap to create; nothing is read until asked for.

    Where a method takes a ``name`` it also takes ``name@3`` (a version) and ``name@stable`` (an alias), if it reads.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        """Use ``root``, by default the store of ``LORAX_VLM_HOME``."""
        self.root = store_dir(root)
        self._records, self._objects = NameRecords(self.root), ObjectFolders(self.root)
        self._upkeep = Upkeep(self.root, self._records, self._objects)
        self._claimed: set[str] = set()

    def names(self) -> list[str]:
        """Names of all entries, sorted, broken ones included."""
        return self._records.names()

    def __contains__(self, name: str) -> bool:
        return self._records.has(name)

    def record(self, name: str) -> NameRecord:
        """Versions, aliases and tags of a name.

        Raises:
            AdapterNameError: ``name`` cannot be a name.
            AdapterNotFound: There is none.
            DamagedAdapter: Its record cannot be read.
        """
        return self._records.read(name)

    def get(self, name: str) -> StoredAdapter:
        """An adapter: the version in use, or the one that ``name@version`` or ``name@alias`` asks for.

        Raises:
            AdapterNameError: ``name`` cannot be a name.
            AdapterNotFound: There is no such adapter or version.
            DamagedAdapter: Its entry cannot be read, or its manifest is not the one that was stored.
        """
        return self._read(name, lambda stored: stored)

    def resolve(self, name: str, model: str | None = None) -> str:
        """The stored name that is meant by ``counting`` or ``blip2-opt-mini.counting``; a version stays behind it.

        Args:
            name: What somebody typed.
            model: Only adapters of this base are meant, if there are any: its name, key, hub id or folder.

        Raises:
            AdapterNameError: ``name`` cannot be a name.
            AdapterNotFound: None is meant; it names the nearest three.
            AmbiguousAdapter: Several are meant.
        """
        return resolve_name(name, self.names(), self.get, model, str(self.root))[0]

    def find(self, name: str, model: str | None = None) -> StoredAdapter:
        """The adapter that ``resolve`` names, read once.

        Raises:
            AdapterError: As ``resolve`` and ``get``.
        """
        full, found = resolve_name(name, self.names(), self.get, model, str(self.root))
        return found.get(full) or self.get(full)

    def _read(self, name: str, read: Callable[[StoredAdapter], T]) -> T:
        """Read a version without a lock; once more when it was removed or replaced meanwhile."""
        failed: dict[Version, int] = {}
        while True:
            record, version = self._choose(name)
            folder = self._objects.path(version.object)
            try:
                manifest = read_manifest(folder, record.name, required=True, digest=version.object)
                aliases = tuple(alias for alias, number in record.aliases.items() if number == version.number)
                return read(StoredAdapter(record.name, version.number, folder, manifest, tuple(record.tags), aliases))
            except DamagedAdapter:
                failed[version] = failed.get(version, 0) + 1
                if failed[version] == _TRIES:
                    raise
                time.sleep(0.005 * failed[version])

    def _choose(self, name: str) -> tuple[NameRecord, Version]:
        """A name's record, and the version that is asked for."""
        plain, _, wanted = split_name(name)
        record = self.record(plain)
        version = record.choose(wanted)
        if version is None:
            raise AdapterNotFound(name, str(self.root), record.references)
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
        self,
        text: str = "",
        *,
        base: str | None = None,
        task: str | None = None,
        tags: Sequence[str] = (),
        components: Mapping[str, str] | None = None,
    ) -> Sequence[StoredAdapter]:
        """Adapters whose name, skill, base, data or tags contain every word of ``text``, ignoring case.

        Args:
            base: Only those made for this base: its catalogue name, key, hub id, or what manifests call it.
            task: Only those that this word means; see ``skills.is_meant``.
            tags: Only those with all of these tags.
            components: Digests of the base's weights, where they are known: another base of that name is none.
        """
        return matching(self.list()[0], text, base=base, task=task, tags=tags, components=components)

    def read(self, name: str) -> tuple[StoredAdapter, AdapterFiles]:
        """An adapter and its checked PEFT files, both of one version; see ``get`` and ``read_adapter_files``."""
        return self._read(name, lambda stored: (stored, read_adapter_files(stored.folder, name, stored.manifest.files)))

    def read_bytes(self, name: str) -> tuple[StoredAdapter, AdapterBytes]:
        """An adapter and its checked PEFT files with their weights; see ``get`` and ``read_adapter``."""
        return self._read(name, lambda stored: (stored, read_adapter(stored.folder, name, stored.manifest.files)))

    def add(self, name: str, source: Path, manifest: Manifest, *, replace: bool = False) -> StoredAdapter:
        """Check a PEFT directory and take it in as the version in use. The source is left as it is.

        Args:
            name: Name in the store.
            source: As in ``Addition``.
            manifest: As in ``Addition``.
            replace: Make a new version when the name exists, instead of raising.

        Raises:
            AdapterError, PathError: As ``add_all``; the store is unchanged.
        """
        return self.add_all([Addition(name, source, manifest)], replace=replace)[0]

    def add_all(
        self, additions: Sequence[Addition], *, replace: bool = False, trust_signatures: bool = False
    ) -> Sequence[StoredAdapter]:
        """Check PEFT directories and take them in, all or none: not even a crash leaves some of them.

        Args:
            additions: Of different names.
            replace: Make new versions of names that exist, instead of raising.
            trust_signatures: Signatures of the sources were verified: they take the place of those that are there.

        Raises:
            AdapterNameError: A name cannot be one.
            AdapterExists: A name is taken and ``replace`` is false, or differs from another by capitals only.
            DamagedAdapter: A source is not sound, or not what its manifest says.
            UnsupportedAdapter: A source is not plain LoRA.
            PathError: The store cannot be written.
        """
        require_flag("replace", replace)
        signed = {addition.name: self._is_signed(addition.name) for addition in additions if replace}
        with ExitStack() as stack:
            written = []
            for addition in additions:
                self._require_free(addition.name, replace)
                scratch = stack.enter_context(self._scratch())
                written.append((addition.name, scratch, write_version(addition, scratch)))
            with self._locked():
                for name, scratch, digest in written:
                    self._require_free(name, replace)
                    self._objects.put(scratch, digest, trust_signature=trust_signatures)
                self._records.write(*(self._next_version(name, digest) for name, _, digest in written))
        stored = [self.get(addition.name) for addition in additions]
        for adapter in stored:
            if signed.get(adapter.name) and not adapter.signed:
                logger.warning("Adapter %r was signed; version %d, in use now, is not.", adapter.name, adapter.version)
        return stored

    def _is_signed(self, name: str) -> bool:
        try:
            return name in self and self.get(name).signed
        except LoraxError:  # damaged: said where it is read
            return False

    def claim(self, names: Sequence[str]) -> None:
        """Let this object store adapters of a demonstration: under names that are free, or its own from before.

        What it stores under them is tagged as such. Anybody else's new version of the name takes the tag away again.

        Raises:
            AdapterNameError: A name cannot be one.
            AdapterExists: A name is that of an adapter that somebody made.
        """
        require_texts("names", names)
        for name in names:
            self._require_own(name)
        self._claimed |= set(names)

    def _require_own(self, name: str) -> None:
        if name in self and DEMO_TAG not in self.record(name).tags:
            raise AdapterExists(name, str(self.root), own=True)

    def _require_free(self, name: str, replace: bool) -> None:
        if name in self._claimed:
            self._require_own(name)
        if not replace and name in self:
            raise AdapterExists(name, str(self.root))
        require_new_name(name, self.names())

    def require_writable(self) -> None:
        """Find out, by trying, whether adapters can be stored: before hours are spent on making one.

        Raises:
            PathError: They cannot.
        """
        with self._scratch() as scratch, self._locked():
            write_durably(scratch / MANIFEST_FILE, b"{}")
            for folder in ("names", "objects"):
                require_room(self.root / folder)

    def _next_version(self, name: str, digest: str) -> NameRecord:
        stored = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        own = [DEMO_TAG] if name in self._claimed else []
        if name not in self:
            return NameRecord(name, 1, [Version(1, digest, stored)], tags=own)
        record = self.record(name)
        number, tags = max(record.numbers) + 1, [*own, *(tag for tag in record.tags if tag != DEMO_TAG)]
        versions = [*record.versions, Version(number, digest, stored)]
        return replaced(record, current=number, versions=versions, tags=sorted(tags))

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
            self._records.write(replaced(record, current=number))
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
            self._records.write(replaced(record, aliases={**record.aliases, alias: number}))
        return self.get(f"{name}@{alias}")

    def drop_alias(self, name: str, alias: str) -> None:
        """Forget an alias.

        Raises:
            AdapterNotFound: There is no such alias.
        """
        with self._locked():
            record = self.record(name)
            if require_adapter_name(alias) not in record.aliases:
                raise AdapterNotFound(f"{name}@{alias}", str(self.root), record.references)
            self._records.write(replaced(record, aliases={k: v for k, v in record.aliases.items() if k != alias}))

    def tag(self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> StoredAdapter:
        """Add and remove tags of a name.

        Raises:
            AdapterNameError: A tag cannot be one.
            AdapterNotFound: There is no such adapter.
        """
        require_texts("add", add)
        require_texts("remove", remove)
        new = {require_adapter_name(tag) for tag in add}
        with self._locked():
            record = self.record(name)
            self._records.write(replaced(record, tags=sorted((set(record.tags) | new) - set(remove))))
        return self.get(name)

    def attach_signature(self, name: str, signature: Path) -> None:
        """Put a signature beside the files that it signs; a former one is replaced.

        Raises:
            AdapterNotFound: There is no such adapter or version.
        """
        stored = self.get(name)
        content = read_regular(signature, MAX_SIGNATURE_BYTES)
        with self._locked(), self._scratch() as scratch:
            write_durably(scratch / SIGNATURE_FILE, content)
            with naming(stored.folder):
                (scratch / SIGNATURE_FILE).replace(stored.folder / SIGNATURE_FILE)
                sync_folder(stored.folder)

    def remove(self, name: str) -> None:
        """Remove an adapter with all its versions.

        Raises:
            AdapterNotFound: There is none.
        """
        if name not in self:
            raise AdapterNotFound(name, str(self.root), self.names())
        with self._locked():
            self._records.remove(name)
            self._upkeep.remove_leftovers()

    def export(self, name: str, target: Path) -> Path:
        """Copy an adapter's PEFT directory and manifest to ``target``, which must not exist or be empty.

        Raises:
            AdapterNotFound: There is none.
            AdapterExists: ``target`` is not empty.
        """
        with naming(target):
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise AdapterExists(name, str(target), taken=True)
        with naming(target), own_folder(target.parent) as scratch:
            self._read(name, lambda stored: copy_version(stored.folder, scratch, name))
            scratch.chmod(0o755)
            scratch.replace(target)
        return target

    def _require_version(self, record: NameRecord, number: int) -> None:
        if type(number) is not int or number not in record.numbers:
            raise AdapterNotFound(f"{record.name}@{number}", str(self.root), record.references)

    def verify(self) -> VerifyReport:
        """Read and hash every version of every name. Nobody has to wait for it."""
        versions, size_bytes, problems = check_versions(self._records, self._objects)
        leftovers: tuple[Path, ...] = ()
        if os.access(self.root, os.W_OK):  # one that is only read has no writers that could leave anything
            with self._locked():
                leftovers = tuple(self._upkeep.leftovers())
        return VerifyReport(versions, size_bytes, tuple(problems), leftovers)

    def clean(self) -> int:
        """Remove what nobody refers to; returns how many files and folders that were."""
        with self._locked():
            return self._upkeep.remove_leftovers()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone in changing the store."""
        with locked_folder(self.root):
            self._records.finish()
            yield

    def _scratch(self) -> AbstractContextManager[Path]:
        """A folder in the store's own file system, always removed."""
        return own_folder(self.root)
