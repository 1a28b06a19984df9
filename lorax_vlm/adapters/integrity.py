"""Whether a stored or received adapter is, byte for byte, what its manifest says. No torch."""

import hashlib
from pathlib import Path

from lorax_vlm.adapters.manifest import MANIFEST_FILE, FileRecord, read_manifest
from lorax_vlm.errors import DamagedAdapter

SIGNATURE_FILE = "exchange.sig"
"""Beside the manifest that it signs, so the manifest cannot name it."""
_BLOCK = 2**20


def hash_file(path: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return FileRecord(size, digest.hexdigest())


def require_intact(folder: Path, name: str, place: str | None = None) -> None:
    """Raise ``DamagedAdapter`` with all that ``check_object`` finds wrong with a folder.

    Args:
        folder: Of the adapter.
        name: Of the adapter, for the error.
        place: Where it is, for the error. None: the folder.
    """
    problems, _ = check_object(folder)
    if problems:
        raise DamagedAdapter(name, place or str(folder), problems)


def check_object(folder: Path, digest: str | None = None) -> tuple[list[str], int]:
    """What is wrong with a stored or exchanged folder, byte for byte, and its size in bytes.

    Args:
        folder: With ``exchange.json`` and every file that it names, and nothing else.
        digest: What ``exchange.json`` must hash to. None: anything.
    """
    if not folder.is_dir():
        return ["its folder does not exist"], 0
    problems, size = [], 0
    entries = {path.name: path for path in folder.iterdir()}
    problems += [
        f"{name} is no ordinary file" for name, path in entries.items() if path.is_symlink() or not path.is_file()
    ]
    if problems or MANIFEST_FILE not in entries:
        return problems or [f"{MANIFEST_FILE} does not exist"], 0
    entries.pop(SIGNATURE_FILE, None)
    own = hash_file(entries.pop(MANIFEST_FILE))
    if digest is not None and own.sha256 != digest:
        return [f"{MANIFEST_FILE} was changed"], own.size_bytes
    try:
        manifest = read_manifest(folder, folder.name)
    except DamagedAdapter as error:
        return list(error.problems), own.size_bytes
    problems += [f"{name} does not exist" for name in manifest.files if name not in entries]
    problems += [f"{name} is not named by {MANIFEST_FILE}" for name in entries if name not in manifest.files]
    for name, expected in manifest.files.items():
        if name in entries:
            found = hash_file(entries[name])
            size += found.size_bytes
            if found != expected:
                problems.append(f"{name} was changed: {found.size_bytes:,} bytes, {expected.size_bytes:,} expected")
    return problems, size + own.size_bytes
