"""What goes into a store and out of it: written once, from the very bytes that were checked. No torch."""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path

from lorax_vlm.adapters.durable import write_durably
from lorax_vlm.adapters.files import AdapterBytes, only_our_errors, read_adapter
from lorax_vlm.adapters.integrity import LIMITS, MAX_SIGNATURE_BYTES, SIGNATURE_FILE, check_object
from lorax_vlm.adapters.manifest import MANIFEST_FILE, Manifest, parse_manifest
from lorax_vlm.adapters.regular_files import blocks_of, read_regular
from lorax_vlm.errors import DamagedAdapter, PathError
from lorax_vlm.paths import naming, sync_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Addition:
    """An adapter that is to be stored."""

    name: str
    source: Path | AdapterBytes
    """Folder with ``adapter_config.json`` and ``adapter_model.safetensors``, perhaps ``exchange.seen``; or what was
    read from one."""
    manifest: Manifest
    """Written beside them, with their digests. When it names files, they must be those."""


def write_version(addition: Addition, scratch: Path) -> str:
    """Write all files of a version into a folder; returns the digest of its manifest.

    The very bytes that were checked are written, and the source's own ``exchange.json`` where it says the same, so that
    a signature of it holds.
    """
    source = addition.source
    if isinstance(source, AdapterBytes):
        adapter, folder = source, source.files.folder
    else:
        adapter, folder = read_adapter(source, addition.name, addition.manifest.files or None), source
    manifest = replaced(addition.manifest, files=dict(adapter.files.records))
    original = _read_original(folder, manifest)
    text = original or manifest.to_json().encode()
    parse_manifest(text)
    for file, data in {**adapter.content, MANIFEST_FILE: text}.items():
        write_durably(scratch / file, data)
    try:
        signature = read_regular(folder / SIGNATURE_FILE, MAX_SIGNATURE_BYTES)
        if original is None:
            raise ValueError(f"it is that of another {MANIFEST_FILE}")
        write_durably(scratch / SIGNATURE_FILE, signature)
    except FileNotFoundError:
        pass
    except PathError:
        raise
    except (OSError, ValueError) as error:
        logger.warning("Adapter %r: %s is left out: %s.", addition.name, SIGNATURE_FILE, error)
    sync_folder(scratch)
    return hashlib.sha256(text).hexdigest()


def _read_original(source: Path, manifest: Manifest) -> bytes | None:
    """The manifest in the source, if it says what is to be said."""
    with suppress(OSError, ValueError):
        text = read_regular(source / MANIFEST_FILE, LIMITS[MANIFEST_FILE])
        return text if parse_manifest(text) == manifest else None
    return None


def copy_version(folder: Path, target: Path, name: str) -> None:
    """Copy a stored version's files, and check the copy.

    Args:
        folder: Of the version; its name is the digest of its manifest.
        target: An empty folder.
        name: Of the adapter, for errors.

    Raises:
        DamagedAdapter: The version is not what it should be.
        PathError: The copy cannot be written.
    """
    for file in LIMITS:
        if os.path.lexists(folder / file):
            with naming(target / file), (target / file).open("wb") as out:
                for block in _blocks(folder, file, name):
                    out.write(block)
    problems, _ = check_object(target, folder.name)
    if problems:
        raise DamagedAdapter(name, str(folder), problems)


def _blocks(folder: Path, file: str, name: str) -> Iterator[bytes]:
    with only_our_errors(name, folder):
        yield from blocks_of(folder / file, LIMITS[file])
