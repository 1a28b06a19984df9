"""Signatures by real keys: the expected signer is confirmed, everybody and everything else refused."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lorax_vlm.adapters.integrity import SIGNATURE_FILE
from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.errors import SignatureRefused
from lorax_vlm.sharing.bundle import pack
from lorax_vlm.sharing.remotes import pull
from lorax_vlm.sharing.signing import sign_adapter, verify_signature


def make_keys(folder: Path, name: str, curve: ec.EllipticCurve) -> tuple[Path, Path]:
    private = ec.generate_private_key(curve)
    paths = folder / f"{name}.key", folder / f"{name}.pub"
    paths[0].write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public = private.public_key()
    paths[1].write_bytes(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return paths


@pytest.fixture
def ours(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path, "ours", ec.SECP256R1())


@pytest.fixture
def signed(store: AdapterStore, adapter_folder: Path, ours: tuple[Path, Path]) -> StoredAdapter:
    store.add("one", adapter_folder, Manifest("one", None, None, trained=True))
    return sign_adapter(store, "one", ours[0])


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_every_curve(store: AdapterStore, adapter_folder: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    private, public = make_keys(tmp_path, "key", curve)
    store.add("one", adapter_folder, Manifest("one", None, None, trained=True))
    verify_signature(sign_adapter(store, "one", private).folder, "one", public)
    assert store.verify().problems == ()


def test_an_unsigned_one_and_another_signer_are_refused(
    store: AdapterStore, signed: StoredAdapter, tmp_path: Path, ours: tuple[Path, Path]
) -> None:
    _, theirs = make_keys(tmp_path, "theirs", ec.SECP256R1())
    with pytest.raises(SignatureRefused, match="does not confirm"):
        verify_signature(signed.folder, "one", theirs)
    (signed.folder / SIGNATURE_FILE).unlink()
    with pytest.raises(SignatureRefused, match="has no"):
        verify_signature(signed.folder, "one", ours[1])


@pytest.mark.parametrize("file", [WEIGHTS_FILE, "adapter_config.json", "exchange.json"])
def test_a_changed_file_is_refused(signed: StoredAdapter, ours: tuple[Path, Path], file: str) -> None:
    content = bytearray((signed.folder / file).read_bytes())
    content[-5] ^= 1
    (signed.folder / file).write_bytes(content)
    with pytest.raises(SignatureRefused):
        verify_signature(signed.folder, "one", ours[1])


def test_a_file_that_was_added_is_refused(signed: StoredAdapter, ours: tuple[Path, Path]) -> None:
    (signed.folder / "evil.py").write_text("x")
    with pytest.raises(SignatureRefused):
        verify_signature(signed.folder, "one", ours[1])


def test_it_travels_in_the_bundle(signed: StoredAdapter, tmp_path: Path, ours: tuple[Path, Path]) -> None:
    bundle = pack(signed, tmp_path / "one.lorax")
    receiver = AdapterStore(tmp_path / "receiver")
    _, theirs = make_keys(tmp_path, "theirs", ec.SECP256R1())
    with pytest.raises(SignatureRefused):
        pull(receiver, f"file://{bundle}", public_key=theirs)
    assert receiver.names() == []
    received = pull(receiver, f"file://{bundle}", public_key=ours[1])
    verify_signature(received.folder, "one", ours[1])


@pytest.mark.parametrize("content", ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_keys_that_are_none(store: AdapterStore, signed: StoredAdapter, tmp_path: Path, content: str) -> None:
    (tmp_path / "bad").write_text(content)
    with pytest.raises(SignatureRefused):
        sign_adapter(store, "one", tmp_path / "bad")
    with pytest.raises(SignatureRefused):
        verify_signature(signed.folder, "one", tmp_path / "bad")
    with pytest.raises(SignatureRefused):
        sign_adapter(store, "one", tmp_path / "missing")
