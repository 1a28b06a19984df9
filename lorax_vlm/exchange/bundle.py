"""An adapter as one file, and back. What comes from elsewhere is checked before any of it can be seen in a store.

A bundle is a zip archive without compression, directories or anything but the adapter's own files, so that nothing can
grow, point elsewhere or hide in it. The same adapter gives the same bytes.
"""

import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorax_vlm.adapters.integrity import LIMITS, require_intact
from lorax_vlm.adapters.manifest import MANIFEST_FILE, read_manifest
from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.adapters.store import AdapterStore, StoredAdapter
from lorax_vlm.errors import AdapterExists, DamagedAdapter

SUFFIX = ".lorax"
_DATE = (1980, 1, 1, 0, 0, 0)
_ENCRYPTED = 0x1
_BLOCK = 2**20


def pack(stored: StoredAdapter, path: Path) -> Path:
    """Write one version of an adapter as a bundle; returns the path.

    Raises:
        AdapterExists: There is a file already.
        DamagedAdapter: The stored files are not what their manifest says.
    """
    if path.exists():
        raise AdapterExists(stored.name, str(path))
    require_intact(stored.folder, stored.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    with zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive:
        for name in LIMITS:
            if (stored.folder / name).is_file():
                entry = zipfile.ZipInfo(name, _DATE)
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                with (stored.folder / name).open("rb") as source, archive.open(entry, "w", force_zip64=True) as out:
                    shutil.copyfileobj(source, out, _BLOCK)
    scratch.replace(path)
    return path


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder with the files of a bundle, checked against their manifest, for the time of a block.

    Raises:
        DamagedAdapter: It is no bundle, holds anything else, or its files are not what the manifest says.
    """
    scratch = Path(tempfile.mkdtemp(prefix="lorax-bundle-"))
    try:
        _extract(path, scratch)
        require_intact(scratch, path.name, str(path))
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _extract(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            problems = _entry_problems(archive.infolist())
            if problems:
                raise DamagedAdapter(path.name, str(path), problems)
            for entry in archive.infolist():
                with archive.open(entry) as source, (folder / entry.filename).open("xb") as out:
                    shutil.copyfileobj(source, out, _BLOCK)
    except DamagedAdapter:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        # What zipfile raises for a broken, encrypted or unknown kind of archive.
        raise DamagedAdapter(path.name, str(path), [f"it is no bundle: {error}"]) from error


def _entry_problems(entries: list[zipfile.ZipInfo]) -> list[str]:
    """All that is wrong with an archive's table of contents; nothing is extracted while there is anything."""
    problems = []
    names = [entry.filename for entry in entries]
    problems += [f"{name!r} occurs {names.count(name)} times" for name in sorted(set(names)) if names.count(name) > 1]
    for entry in entries:
        name = entry.filename[:80]
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if entry.filename not in LIMITS or entry.orig_filename != entry.filename:
            problems.append(f"it holds {name!r}, which is no file of an adapter")
            continue
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            problems.append(f"{name} is compressed")
        if entry.file_size > LIMITS[entry.filename]:
            problems.append(f"{name} has {entry.file_size:,} bytes, the limit is {LIMITS[entry.filename]:,}")
        if entry.flag_bits & _ENCRYPTED:
            problems.append(f"{name} is encrypted")
        if kind not in (0, stat.S_IFREG):
            problems.append(f"{name} is no ordinary file")
    return problems


def receive(store: AdapterStore, folder: Path, name: str | None = None, *, replace: bool = False) -> StoredAdapter:
    """Take a checked folder from elsewhere into a store, as it is; whether it fits a base is asked when it is used.

    Args:
        store: Where to.
        folder: With an adapter's files and manifest.
        name: In the store. None: the manifest's own.
        replace: Make a new version when the name exists.

    Raises:
        AdapterNameError: The manifest's name cannot be one here; give another.
        AdapterExists: The name is taken and ``replace`` is false.
        DamagedAdapter: It is not sound, or not what its manifest says.
        UnsupportedAdapter: It is not plain LoRA.
    """
    require_intact(folder, name or folder.name)
    manifest = read_manifest(folder, name or folder.name)
    if (folder / MANIFEST_FILE).read_text(encoding="utf-8") != manifest.to_json():
        # It would be written anew, and a signature or a digest of it would no longer hold.
        raise DamagedAdapter(name or folder.name, str(folder), [f"{MANIFEST_FILE} is not in its canonical form"])
    return store.add(require_adapter_name(name or manifest.name), folder, manifest, replace=replace)
