"""An adapter as one file, and back. What comes from elsewhere is checked before any of it can be seen in a store.

A bundle is a zip archive without compression, directories or anything but the adapter's own files, so that nothing can
grow, point elsewhere or hide in it. The same adapter gives the same bytes.

No torch.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from lorax_vlm.adapters.files import only_our_errors
from lorax_vlm.adapters.incoming import Addition
from lorax_vlm.adapters.integrity import LIMITS, require_intact
from lorax_vlm.adapters.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileRecord, Manifest, parse_manifest
from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.adapters.portable import portable
from lorax_vlm.adapters.regular_files import blocks_of, open_regular, read_regular
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.errors import AdapterExists, DamagedAdapter, PathError
from lorax_vlm.paths import naming, written_whole
from lorax_vlm.sharing.archive import read_archive, write_archive

logger = logging.getLogger(__name__)
SUFFIX = ".lorax"


def pack(stored: StoredAdapter, path: Path) -> Path:
    """Write one version of an adapter as a bundle; returns the path.

    Raises:
        AdapterExists: There is a file already.
        DamagedAdapter: The stored files are not what their manifest says; nothing is written.
        PathError: The bundle cannot be written.
    """
    if os.path.isdir(path):
        raise PathError(str(path), "it is a folder", f"Name a file in it, such as {path / f'{stored.name}{SUFFIX}'}.")
    if os.path.lexists(path):
        raise AdapterExists(stored.name, str(path), taken=True)
    require_intact(stored.folder, stored.name)
    warn_of_places(stored.manifest)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as out:
            write_archive(out, _files_of(stored))
    return path


def warn_of_places(manifest: Manifest) -> None:
    """Say when the record of an adapter that is to be given away names folders of the machine where it was made."""
    if portable(manifest.training) != manifest.training:
        logger.warning(
            "The record of adapter %r, which goes with it, names folders of the machine where it was made: "
            "an older version wrote it. Train it again to be rid of them.",
            manifest.name,
        )


def _files_of(stored: StoredAdapter) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The files of a version with their content, which is compared with its manifest on the way."""
    for name in LIMITS:
        if (stored.folder / name).is_file():
            expected = stored.manifest.files.get(name)
            yield name, _blocks(stored, name, expected)


def _blocks(stored: StoredAdapter, name: str, expected: FileRecord | None) -> Iterator[bytes]:
    digest, size = hashlib.sha256(), 0
    with only_our_errors(stored.name, stored.folder):
        for block in blocks_of(stored.folder / name, LIMITS[name]):
            digest.update(block)
            size += len(block)
            yield block
        found = FileRecord(size, digest.hexdigest())
        if (expected is not None and found != expected) or (name == MANIFEST_FILE and found.sha256 != stored.digest):
            raise DamagedAdapter(stored.name, str(stored.folder), [f"{name} was changed"])


@contextmanager
def unpacked(path: Path, place: str | None = None) -> Iterator[Path]:
    """A folder with the files of a bundle, checked against their manifest, for the time of a block.

    Args:
        path: Of the bundle.
        place: Where it is from, for errors. None: its path.

    Raises:
        DamagedAdapter: It is no bundle, holds anything else, or its files are not what the manifest says.
        PathError: There is no such file, or what is in it cannot be written.
    """
    with naming(Path(tempfile.gettempdir())):
        scratch = Path(tempfile.mkdtemp(prefix="lorax-bundle-"))
    try:
        with _opened(path) as source:
            _extract(source, path, scratch, place)
        require_intact(scratch, place or path.name, place or str(path))
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise PathError.of(path, error) from error
    except ValueError as error:
        raise PathError(str(path), str(error)) from error


def _extract(source: BinaryIO, path: Path, folder: Path, place: str | None) -> None:
    try:
        for name, blocks in read_archive(source, LIMITS):
            with naming(folder):
                out = (folder / name).open("xb", buffering=0)
            with out:
                for block in blocks:
                    with naming(folder):
                        _write_all(out, block)
    except ValueError as error:
        raise DamagedAdapter(place or path.name, place or str(path), [f"it is no bundle: {error}"]) from error
    except PathError:
        raise
    except OSError as error:
        raise PathError.of(path, error) from error


def _write_all(out: FileIO, block: bytes) -> None:
    """Write a block unbuffered, so that a full disk shows here and not when the file is closed."""
    rest = memoryview(block)
    while rest:
        rest = rest[out.write(rest) :]


def receive(
    store: AdapterStore, folder: Path, name: str | None = None, *, replace: bool = False, verified: bool = False
) -> StoredAdapter:
    """Take a checked folder from elsewhere into a store, as it is; whether it fits a base is asked when it is used.

    Args:
        store: Where to.
        folder: With an adapter's files and manifest.
        name: In the store. None: the manifest's own.
        replace: Make a new version when the name exists.
        verified: Its signature was verified, and takes the place of one that the same files may have in the store.

    Raises:
        AdapterNameError: The manifest's name cannot be one here; give another.
        AdapterExists: The name is taken and ``replace`` is false.
        DamagedAdapter: It is not sound, or not what its manifest says.
        UnsupportedAdapter: It is not plain LoRA.
        PathError: The store cannot be written.
    """
    shown = folder.name if name is None else require_adapter_name(name)
    manifest = require_intact(folder, shown)
    with only_our_errors(shown, folder):
        text = read_regular(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
        if parse_manifest(text) != manifest or text != manifest.to_json().encode():
            # It would be written anew, and a signature or a digest of it would no longer hold.
            raise DamagedAdapter(shown, str(folder), [f"{MANIFEST_FILE} is not in its canonical form"])
    addition = Addition(require_adapter_name(manifest.name if name is None else name), folder, manifest)
    return store.add_all([addition], replace=replace, trust_signatures=verified)[0]
