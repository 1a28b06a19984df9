"""Signatures by OpenSSF's ``model-signing``: a checksum finds damage, a signature by a key you trust finds an attacker.

A valid signature by an unknown key proves nothing, so verifying always takes the public key that is expected.

No torch.
"""

import stat
import tempfile
from pathlib import Path
from typing import Any

from lorax_vlm.adapters.integrity import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, require_intact
from lorax_vlm.adapters.regular_files import read_regular
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.errors import LoraxError, MissingExtra, SignatureRefused

_PACKAGES = ("model_signing", "OpenSSL")
_MAX_KEY_BYTES = 64 * 1024


def sign_adapter(store: AdapterStore, name: str, private_key: Path, *, password: str | None = None) -> StoredAdapter:
    """Sign one version of an adapter with an EC key (P-256, P-384 or P-521); the signature is stored beside it.

    Args:
        store: Where the adapter is.
        name: Of the adapter, perhaps with a version.
        private_key: PEM file.
        password: Of the key.

    Raises:
        DamagedAdapter: Its files are not what its manifest says; nothing is signed.
        SignatureRefused: The key cannot be used.
        MissingExtra: ``model-signing`` is not installed.
    """
    signing, hashing = _require_library()
    stored = store.get(name)
    _require_key(private_key, name)
    require_intact(stored.folder, name)
    with tempfile.TemporaryDirectory() as scratch:
        signature = Path(scratch) / SIGNATURE_FILE
        try:
            config = signing.Config().use_elliptic_key_signer(private_key=private_key, password=password)
            config.set_hashing_config(_without_signature(hashing)).sign(stored.folder, signature)
        except Exception as error:  # as in ``verify_signature``
            raise SignatureRefused(name, f"the key {private_key} cannot sign: {error}") from error
        store.attach_signature(name, signature)
    return store.get(name)


def verify_signature(folder: Path, name: str, public_key: Path) -> None:
    """Check that a folder's files are those that the owner of a key signed.

    Args:
        folder: With the adapter's files and its signature.
        name: For errors.
        public_key: PEM file of the key that is expected.

    Raises:
        SignatureRefused: There is no signature, it is by another key, or a file is not the one that was signed.
        MissingExtra: ``model-signing`` is not installed.
    """
    _, hashing = _require_library()
    _require_key(public_key, name)
    from model_signing import verifying

    try:
        read_regular(folder / SIGNATURE_FILE, MAX_SIGNATURE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise SignatureRefused(name, f"it has no {SIGNATURE_FILE}") from None
    except (OSError, ValueError) as error:
        raise SignatureRefused(name, f"{SIGNATURE_FILE} cannot be read: {error}") from error
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(_without_signature(hashing)).verify(folder, folder / SIGNATURE_FILE)
    except Exception as error:  # the library raises its dependencies' errors, some of them of no common class
        raise SignatureRefused(name, f"{public_key} does not confirm its signature: {error or type(error)}") from error


def _require_key(path: Path, name: str) -> None:
    """Refuse what the library would read without an end: a device, a pipe, a huge file."""
    try:
        status = path.stat()
    except OSError as error:
        raise SignatureRefused(name, f"the key {path} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_KEY_BYTES:
        raise SignatureRefused(name, f"{path} is no key: an ordinary file of at most {_MAX_KEY_BYTES:,} bytes")


def _without_signature(hashing: Any) -> Any:
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


def _require_library() -> tuple[Any, Any]:
    try:
        from model_signing import hashing, signing
    except ModuleNotFoundError as error:
        if (error.name or "").split(".", maxsplit=1)[0] in _PACKAGES:
            raise MissingExtra("model-signing", "sign", "Signing adapters") from error
        raise LoraxError(f"model-signing is installed and cannot be loaded: {error}. Install it anew.") from error
    except ImportError as error:
        raise LoraxError(f"model-signing is installed and cannot be loaded: {error}. Install it anew.") from error
    return signing, hashing
