"""``lorax-vlm adapters``: one file, and to and from elsewhere. No torch."""

import os
from pathlib import Path
from typing import Annotated

import typer

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.cli.checks import find_adapter
from lorax_vlm.cli.options import Store
from lorax_vlm.cli.output import say
from lorax_vlm.errors import UsageError

Name = Annotated[str, typer.Argument(help="Name of the adapter, perhaps NAME@3.")]
NewName = Annotated[
    str | None, typer.Option("--name", help="Name in the store; by default its own.", show_default=False)
]
Replace = Annotated[bool, typer.Option("--replace", help="Make a new version when the name exists.")]


def pack(name: Name, file: Annotated[Path, typer.Argument(help="New file, NAME.lorax.")], store: Store = None) -> None:
    """Write an adapter as one file."""
    from lorax_vlm.sharing.bundle import pack as write_bundle

    adapters, name = find_adapter(store, name)
    path = write_bundle(adapters.get(name), file)
    say(f"Wrote {path}, {path.stat().st_size:,} bytes")


def unpack(
    file: Annotated[Path, typer.Argument(help="A .lorax bundle.")],
    name: NewName = None,
    replace: Replace = False,
    store: Store = None,
) -> None:
    """Check a bundle and take it into the store."""
    from lorax_vlm.sharing.bundle import receive, unpacked

    with unpacked(file) as folder:
        stored = receive(AdapterStore(store), folder, name, replace=replace)
    say(f"Stored {stored.name}, version {stored.version}")


def push(
    name: Name,
    url: Annotated[str, typer.Argument(help="hf://owner/name, or a bundle's address such as s3://bucket/a.lorax")],
    private: Annotated[bool, typer.Option("--private", help="Create the hub repository as private.")] = False,
    store: Store = None,
) -> None:
    """Send an adapter to the hub or to any address that fsspec reaches."""
    from lorax_vlm.sharing.remotes import push as send

    if private and not url.startswith("hf://"):
        raise UsageError(f"--private is of a new repository on the hub (hf://owner/name); {url} is none.")
    adapters, name = find_adapter(store, name)
    say(f"Pushed to {send(adapters, name, url, private=private)}")


def pull(
    url: Annotated[str, typer.Argument(help="hf://owner/name@commit, s3://..., file://..., https://...")],
    name: NewName = None,
    replace: Replace = False,
    digest: Annotated[
        str | None, typer.Option(help="SHA-256 its manifest must have; see adapters versions.", show_default=False)
    ] = None,
    signed_by: Annotated[
        Path | None, typer.Option(help="Public key (PEM) of whoever must have signed it.", show_default=False)
    ] = None,
    store: Store = None,
) -> None:
    """Fetch an adapter, check all of it, and only then show it in the store."""
    from lorax_vlm.sharing.remotes import pull as fetch

    stored = fetch(AdapterStore(store), url, name, replace=replace, digest=digest, public_key=signed_by)
    say(f"Stored {stored.name}, version {stored.version}")


def sign(
    name: Name,
    key: Annotated[Path, typer.Option("--key", help="Private EC key, PEM (P-256, P-384, P-521).")],
    store: Store = None,
) -> None:
    """Sign an adapter with OpenSSF model-signing; the key must not be encrypted."""
    from lorax_vlm.sharing.signing import sign_adapter

    adapters, name = find_adapter(store, name)
    stored = sign_adapter(adapters, name, key)
    say(f"Signed {stored.name}, version {stored.version}")


def verify_signature(
    name: Name,
    key: Annotated[Path, typer.Option("--key", help="Public key, PEM, of the signer you expect.")],
    store: Store = None,
) -> None:
    """Check an adapter's signature against the key that is expected. Exit code 1 when it is refused."""
    from lorax_vlm.sharing.signing import verify_signature as check

    adapters, name = find_adapter(store, name)
    check(adapters.get(name).folder, name, key)
    say(f"{name} is signed by the owner of {os.fspath(key)}, and unchanged.")
