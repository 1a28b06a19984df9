"""Adapters to and from elsewhere: the Hugging Face Hub, cloud storage and folders by fsspec, plain https. No torch.

    hf://owner/name            hf://owner/name@3f2a...      a repository, perhaps at a commit
    s3://bucket/a.lorax        gs://  az://  file://        a bundle, by fsspec
    https://host/a.lorax                                    a bundle, to read only

Nothing is visible in a store before all of it is here and is what its manifest says.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorax_vlm.adapters.files import only_our_errors
from lorax_vlm.adapters.incoming import copy_version
from lorax_vlm.adapters.integrity import LIMITS, hash_file
from lorax_vlm.adapters.manifest import MANIFEST_FILE
from lorax_vlm.adapters.pair import MAX_WEIGHTS_BYTES
from lorax_vlm.adapters.regular_files import blocks_of
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.errors import DamagedAdapter, LoraxError, RemoteError
from lorax_vlm.foreign import shown_address
from lorax_vlm.paths import naming
from lorax_vlm.sharing.bundle import SUFFIX, pack, receive, unpacked, warn_of_places
from lorax_vlm.sharing.card import write_card
from lorax_vlm.sharing.downloads import downloaded, upload
from lorax_vlm.sharing.signing import verify_signature

_HUB = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_BUNDLE_LIMIT_BYTES = MAX_WEIGHTS_BYTES + 64 * 2**20
CARD_FILE = "README.md"


def push(store: AdapterStore, name: str, url: str, *, private: bool = False) -> str:
    """Send an adapter somewhere; returns the address that will always mean this very version, where there is one.

    Args:
        store: Where the adapter is.
        name: Of the adapter, perhaps with a version.
        url: ``hf://owner/name``, or where a bundle is to be written.
        private: Of a new repository on the hub.

    Raises:
        RemoteError: It could not be written.
        DamagedAdapter: Its files are not what its manifest says; nothing is sent.
    """
    stored = store.get(name)
    if url.startswith("hf://"):
        return _push_to_hub(stored, url, private)
    if url.startswith(("http://", "https://")):
        raise RemoteError(url, "https can only be read from; push to hf:// or an fsspec address such as s3://")
    if not url.endswith(SUFFIX):
        raise RemoteError(url, f"a bundle's address ends in {SUFFIX}")
    with tempfile.TemporaryDirectory() as scratch:
        upload(pack(stored, Path(scratch) / f"adapter{SUFFIX}"), url)
    return url


def pull(
    store: AdapterStore,
    url: str,
    name: str | None = None,
    *,
    replace: bool = False,
    digest: str | None = None,
    public_key: Path | None = None,
    allow_private: bool = True,
) -> StoredAdapter:
    """Bring an adapter into a store.

    Args:
        store: Where to.
        url: As in the description of this module.
        name: In the store. None: its own.
        replace: Make a new version when the name exists.
        digest: SHA-256 that its manifest must have, so that it can be no other one.
        public_key: Of whoever must have signed it.
        allow_private: ``url`` may name a server that is not public. Turn it off when strangers choose the address.

    Raises:
        RemoteError: It cannot be fetched.
        DamagedAdapter: It is not sound, or not what its manifest or ``digest`` says; the store is unchanged.
        SignatureRefused: It is not signed by that key; the store is unchanged.
        AdapterExists: The name is taken and ``replace`` is false.
    """
    shown = shown_address(url)
    with fetched(url, allow_private=allow_private) as folder:
        if not (folder / MANIFEST_FILE).is_file():
            hint = f"it has no {MANIFEST_FILE}; import it for its base: lorax-vlm adapters import {shown} --model MODEL"
            raise DamagedAdapter(name or shown, shown, [hint])
        with only_our_errors(name or shown, folder):
            found = hash_file(folder / MANIFEST_FILE).sha256
        if digest is not None and found != digest:
            raise DamagedAdapter(name or shown, shown, [f"{MANIFEST_FILE} has the digest {found}, not {digest}"])
        if public_key is not None:
            verify_signature(folder, name or shown, public_key)
        return receive(store, folder, name, replace=replace, verified=public_key is not None)


@contextmanager
def fetched(url: str, *, allow_private: bool = True) -> Iterator[Path]:
    """A folder with an adapter's files from elsewhere, for the time of a block.

    A bundle's files are checked against its manifest; a repository of the hub may hold a plain PEFT adapter.

    Args:
        url: As in the description of this module.
        allow_private: It may name a server that is not public.

    Raises:
        RemoteError: It cannot be fetched.
        DamagedAdapter: It is a bundle that is not sound.
    """
    if url.startswith("hf://"):
        with _fetched_from_hub(url) as folder:
            yield folder
        return
    found = downloaded(url, _BUNDLE_LIMIT_BYTES, allow_private=allow_private)
    with found as file, unpacked(file, shown_address(url)) as folder:
        yield folder


def is_remote(source: str) -> bool:
    """Whether a text is an address, not a path."""
    return re.match(r"[a-z][a-z0-9+.-]+://", source) is not None


def _push_to_hub(stored: StoredAdapter, url: str, private: bool) -> str:
    from huggingface_hub import HfApi

    repository, revision = _parse_hub(url)
    if revision is not None:
        raise RemoteError(url, "a revision is given by the hub; push to hf://owner/name")
    warn_of_places(stored.manifest)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / stored.digest
        folder.mkdir()
        copy_version(stored.folder, folder, stored.name)
        (folder / CARD_FILE).write_text(write_card(stored.manifest), encoding="utf-8")
        with _only_remote_errors(url):
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            made = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=f"{stored.name}, version {stored.version}",
                delete_patterns=list(LIMITS),  # a former version's signature, say, is none of this one
            )
    return f"hf://{repository}@{made.oid}"


@contextmanager
def _only_remote_errors(url: str) -> Iterator[None]:
    """Turn whatever the hub's client raises into ``RemoteError``."""
    try:
        yield
    except (LoraxError, MemoryError):
        raise
    except Exception as error:  # of several libraries
        raise RemoteError(url, str(error) or type(error).__name__) from error


@contextmanager
def _fetched_from_hub(url: str) -> Iterator[Path]:
    from huggingface_hub import HfApi, hf_hub_download

    repository, revision = _parse_hub(url)
    with naming(Path(tempfile.gettempdir())):
        scratch = Path(tempfile.mkdtemp(prefix="lorax-hub-"))
    try:
        with _only_remote_errors(url):
            info = HfApi().model_info(repository, revision=revision, files_metadata=True)
            there = {file.rfilename: file.size or 0 for file in info.siblings or []}
            for file, limit in LIMITS.items():
                if there.get(file, 0) > limit:
                    raise RemoteError(url, f"{file} has {there[file]:,} bytes, the limit is {limit:,}")
            # All of one commit, whatever is pushed meanwhile; kept by the library, which resumes.
            found = {
                file: Path(hf_hub_download(repository, file, revision=info.sha)) for file in LIMITS if file in there
            }
            for file, cached in found.items():
                with (scratch / file).open("wb") as out:
                    for block in blocks_of(cached, LIMITS[file], cache_links=True):  # whatever size was announced
                        with naming(scratch):
                            out.write(block)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _parse_hub(url: str) -> tuple[str, str | None]:
    match = _HUB.fullmatch(url)
    if match is None:
        raise RemoteError(url, "an address of the hub is hf://owner/name or hf://owner/name@revision")
    return match["repository"], match["revision"]
