"""Whether a stored or received adapter is, byte for byte, what its manifest says. No torch."""

import hashlib
import os
from itertools import islice
from pathlib import Path

from lorax_vlm.adapters.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileRecord, Manifest, parse_manifest
from lorax_vlm.adapters.pair import MAX_WEIGHTS_BYTES, WEIGHTS_FILE
from lorax_vlm.adapters.peft_config import CONFIG_FILE, MAX_CONFIG_BYTES
from lorax_vlm.adapters.regular_files import blocks_of, read_regular
from lorax_vlm.adapters.seen import MAX_SEEN_BYTES, SEEN_FILE
from lorax_vlm.errors import DamagedAdapter
from lorax_vlm.foreign import quoted

SIGNATURE_FILE = "exchange.sig"
"""Beside the manifest that it signs, so the manifest cannot name it."""
MAX_SIGNATURE_BYTES = 1024**2
LIMITS = {
    MANIFEST_FILE: MAX_MANIFEST_BYTES,
    CONFIG_FILE: MAX_CONFIG_BYTES,
    WEIGHTS_FILE: MAX_WEIGHTS_BYTES,
    SEEN_FILE: MAX_SEEN_BYTES,
    SIGNATURE_FILE: MAX_SIGNATURE_BYTES,
}
"""Every file that an adapter may have, with the most bytes it may have."""
_MOST_ENTRIES = 50


def hash_file(path: Path, limit_bytes: int = MAX_WEIGHTS_BYTES) -> FileRecord:
    """Size and SHA-256 of an ordinary file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is something else, or too large.
    """
    digest, size = hashlib.sha256(), 0
    for block in blocks_of(path, limit_bytes):
        digest.update(block)
        size += len(block)
    return FileRecord(size, digest.hexdigest())


def require_intact(folder: Path, name: str, place: str | None = None) -> Manifest:
    """The manifest of a folder in which nothing is wrong.

    Args:
        folder: Of the adapter.
        name: Of the adapter, for the error.
        place: Where it is, for the error. None: the folder.

    Raises:
        DamagedAdapter: With all that ``check_object`` finds.
    """
    problems, _, manifest = _check(folder, None)
    if problems or manifest is None:
        raise DamagedAdapter(name, place or str(folder), problems)
    return manifest


def check_object(folder: Path, digest: str | None = None) -> tuple[list[str], int]:
    """What is wrong with a stored or exchanged folder, byte for byte, and its size in bytes.

    Args:
        folder: With ``exchange.json`` and every file that it names, and nothing else.
        digest: What ``exchange.json`` must hash to. None: anything.
    """
    problems, size, _ = _check(folder, digest)
    return problems, size


def _check(folder: Path, digest: str | None) -> tuple[list[str], int, Manifest | None]:
    names, problems = _entries(folder)
    if problems:
        return problems, 0, None
    try:
        text = read_regular(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    except (OSError, ValueError) as error:
        return [f"{MANIFEST_FILE} {_reason(error)}"], 0, None
    if digest is not None and hashlib.sha256(text).hexdigest() != digest:
        return [f"{MANIFEST_FILE} was changed"], len(text), None
    try:
        manifest = parse_manifest(text)
    except ValueError as error:
        return [f"{MANIFEST_FILE} is not a manifest: {error}"], len(text), None
    own = set(names) - {MANIFEST_FILE, SIGNATURE_FILE}
    problems = [f"{quoted(name)[1:-1]} does not exist" for name in manifest.files if name not in own]
    problems += [f"{quoted(name)[1:-1]} is not named by {MANIFEST_FILE}" for name in own if name not in manifest.files]
    size = len(text)
    for name in sorted(own & set(manifest.files) & set(LIMITS)):
        expected = manifest.files[name]
        try:
            found = hash_file(folder / name, LIMITS[name])
        except (OSError, ValueError) as error:
            problems.append(f"{name} {_reason(error)}")
            continue
        size += found.size_bytes
        if found != expected:
            problems.append(f"{name} was changed: {found.size_bytes:,} bytes, {expected.size_bytes:,} expected")
    problems += [f"{quoted(name)[1:-1]} is no file of an adapter" for name in (own & set(manifest.files)) - set(LIMITS)]
    if SIGNATURE_FILE in names and (folder / SIGNATURE_FILE).stat().st_size > MAX_SIGNATURE_BYTES:
        problems.append(f"{SIGNATURE_FILE} has more than {MAX_SIGNATURE_BYTES:,} bytes, which is the limit")
    return problems, size, manifest


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names in a folder, and those that are no ordinary files."""
    try:
        with os.scandir(folder) as found:
            entries = list(islice(found, _MOST_ENTRIES + 1))
    except (FileNotFoundError, NotADirectoryError):
        return [], ["its folder does not exist"]
    except OSError as error:
        return [], [f"its folder cannot be read: {error.strerror or error}"]
    if len(entries) > _MOST_ENTRIES:
        return [], [f"it holds more than {_MOST_ENTRIES} entries"]
    names = [entry.name for entry in entries]
    odd = [entry.name for entry in entries if not entry.is_file(follow_symlinks=False)]
    return names, [f"{quoted(name)[1:-1]} is no ordinary file" for name in odd]


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"
