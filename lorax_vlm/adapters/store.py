"""Where adapters live: one folder per name, every version kept, replaced only as a whole. No torch.

    STORE/<name>/versions/0001/   adapter_config.json  adapter_model.safetensors  exchange.json
    STORE/<name>/current          the number of the version in use

A version is written beside its place and renamed into it, then ``current`` is replaced in one step. A crash at any
moment leaves the former version in use and at most a hidden scratch folder behind.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lorax_vlm.adapters.files import CONFIG_FILE, WEIGHTS_FILE, AdapterFiles, read_adapter_files
from lorax_vlm.adapters.manifest import MANIFEST_FILE, Manifest, read_manifest
from lorax_vlm.errors import AdapterExists, AdapterNameError, AdapterNotFound, DamagedAdapter, LoraxError
from lorax_vlm.settings import store_dir

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_VERSION = re.compile(r"\d{4,}")
_SCRATCH_PREFIX = ".writing-"
# What results and reports call the base without an adapter.
_RESERVED = ("base",)


@dataclass(frozen=True)
class StoredAdapter:
    """One readable adapter of a store."""

    name: str
    version: int
    folder: Path
    """A plain PEFT directory."""
    manifest: Manifest


@dataclass(frozen=True)
class BrokenAdapter:
    """An entry that cannot be read, with the reason; it never hides the others."""

    name: str
    error: LoraxError


def require_adapter_name(name: str) -> str:
    """Return ``name`` when it can be a folder in the store.

    Raises:
        AdapterNameError: It is empty, too long, or contains separators, ``..`` or other characters.
    """
    sound = isinstance(name, str) and _NAME.fullmatch(name) and ".." not in name and not name.endswith(".")
    if not sound or name in _RESERVED:
        raise AdapterNameError(str(name))
    return name


class AdapterStore:
    """The adapters below one folder. Cheap to create; nothing is read until asked for."""

    def __init__(self, root: str | Path | None = None) -> None:
        """Use ``root``, by default the store of ``LORAX_VLM_HOME``."""
        self.root = Path(root).expanduser() if root is not None else store_dir()

    def names(self) -> list[str]:
        """Names of all entries, sorted, broken ones included."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())

    def __contains__(self, name: str) -> bool:
        return (self.root / require_adapter_name(name) / "current").is_file()

    def get(self, name: str) -> StoredAdapter:
        """The version in use of an adapter.

        Raises:
            AdapterNameError: ``name`` cannot be a name.
            AdapterNotFound: There is none.
            DamagedAdapter: Its entry cannot be read.
        """
        entry = self.root / require_adapter_name(name)
        try:
            text = (entry / "current").read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            if entry.is_dir() and (entry / "versions").is_dir():
                raise DamagedAdapter(name, str(entry), ["'current' does not exist"]) from None
            raise AdapterNotFound(name, str(self.root), self.names()) from None
        folder = entry / "versions" / text
        if _VERSION.fullmatch(text) is None or not folder.is_dir():
            raise DamagedAdapter(name, str(entry), [f"'current' says {text[:20]!r}, which is no version of it"])
        return StoredAdapter(name, int(text), folder, read_manifest(folder, name))

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

    def add(self, name: str, source: Path, manifest: Manifest, *, replace: bool = False) -> StoredAdapter:
        """Check a PEFT directory and copy it in as the version in use. The source is left as it is.

        Args:
            name: Name in the store.
            source: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
            manifest: Written beside them.
            replace: Make a new version when the name exists, instead of raising.

        Raises:
            AdapterExists: The name is taken and ``replace`` is false.
            DamagedAdapter: The source is not sound; the store is unchanged.
            UnsupportedAdapter: The source is not plain LoRA; the store is unchanged.
        """
        entry = self.root / require_adapter_name(name)
        if not replace and name in self:
            raise AdapterExists(name, str(self.root))
        read_adapter_files(source, name)
        with self._scratch() as scratch:
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                _copy_durably(source / file, scratch / file)
            _write_durably(scratch / MANIFEST_FILE, manifest.to_json())
            version = self._claim_version(entry / "versions", scratch)
            pointer = scratch.with_name(scratch.name + "-current")
            _write_durably(pointer, f"{version:04d}")
            os.replace(pointer, entry / "current")
        return self.get(name)

    def remove(self, name: str) -> None:
        """Remove an adapter with all its versions.

        Raises:
            AdapterNotFound: There is none.
        """
        entry = self.root / require_adapter_name(name)
        if not entry.is_dir():
            raise AdapterNotFound(name, str(self.root), self.names())
        with self._scratch() as scratch:
            os.replace(entry, scratch / "removed")  # gone in one step, then deleted at leisure

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

    def files(self, name: str) -> AdapterFiles:
        """The checked PEFT files of an adapter; see ``read_adapter_files``."""
        return read_adapter_files(self.get(name).folder, name)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder in the store's own file system, always removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=self.root))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @staticmethod
    def _claim_version(versions: Path, scratch: Path) -> int:
        """Rename ``scratch`` to the next free version; of two writers the rename fails for one, who takes the next."""
        versions.mkdir(parents=True, exist_ok=True)
        version = max((int(p.name) for p in versions.iterdir() if _VERSION.fullmatch(p.name)), default=0) + 1
        scratch.chmod(0o755)
        while True:
            try:
                os.rename(scratch, versions / f"{version:04d}")
                return version
            except OSError:
                if not (versions / f"{version:04d}").is_dir():
                    raise
                version += 1


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _copy_durably(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
