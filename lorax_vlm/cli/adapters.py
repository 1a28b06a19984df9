"""``lorax-vlm adapters``: what is in the store. No torch.

Only ``import`` loads a base, and torch for it, when it runs.
"""

import datetime
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from lorax_vlm.adapters.manifest import Manifest, read_manifest
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.cli import adapter_checks, adapter_versions, remotes
from lorax_vlm.cli.checks import find_adapter
from lorax_vlm.cli.options import DEFAULT_MODEL, AsJson, Store
from lorax_vlm.cli.output import flag, print_json, print_table, say
from lorax_vlm.errors import UsageError

app = typer.Typer(
    help="List, show, import, export and remove stored adapters.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(help="Name of the adapter.")]


@app.command("list")
def list_adapters(store: Store = None, as_json: AsJson = False) -> None:
    """List every adapter of the store, those that cannot be read included."""
    good, broken = AdapterStore(store).list()
    if as_json:
        print_json(
            {
                "adapters": [
                    {"name": a.name, "version": a.version, "folder": a.folder, **_facts(a.manifest)} for a in good
                ],
                "broken": [{"name": b.name, "error": str(b.error)} for b in broken],
            }
        )
        return
    if not good and not broken:
        say(f"No adapters in {AdapterStore(store).root}. Train one: lorax-vlm train my-style --style concise")
        return
    rows = [(a.name, a.version, *_facts(a.manifest).values()) for a in good]
    print_table(["name", "version ", "does", "base", "state", "rank ", "sites", "loss ", "created"], rows)
    for entry in broken:
        flag("red", "broken", f"{entry.name}: {entry.error}")


def _facts(manifest: Manifest) -> dict[str, object]:
    return {
        "does": str(manifest.skill or "unknown"),
        "base": manifest.base.name if manifest.base else "unknown",
        "state": state_of(manifest),
        "rank": manifest.rank or "?",
        "sites": ", ".join(f"{count} {component}" for component, count in manifest.sites.items()) or "?",
        "loss": _losses(manifest.training),
        "created": _when(manifest.created),
    }


def state_of(manifest: Manifest) -> str:
    """``trained``, ``untrained``, or that training found nothing better than what it began with."""
    if not manifest.trained:
        return "untrained"
    return f"no better than {manifest.begun_with or 'its base'}" if manifest.no_better else "trained"


def _losses(training: Mapping[str, object]) -> str:
    first, best = training.get("first_validation_loss"), training.get("best_validation_loss")
    return f"{first:.3g} -> {best:.3g}" if isinstance(first, float) and isinstance(best, float) else "-"


def _when(created: str) -> str:
    """Local time to the minute."""
    try:
        return datetime.datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return created or "?"


@app.command("show")
def show_adapter(name: Name, store: Store = None, as_json: AsJson = False) -> None:
    """Show one adapter: its files, its base, how it was trained and with what losses."""
    adapters, name = find_adapter(store, name)
    stored, files = adapters.read(name)
    if as_json:
        print_json(
            {
                "folder": stored.folder,
                "version": stored.version,
                "size_bytes": files.size_bytes,
                "manifest": stored.manifest.record(),
            }
        )
        return
    manifest, training = stored.manifest, dict(stored.manifest.training)
    rows: list[tuple[str, object]] = [
        ("folder", stored.folder),
        ("version", stored.version),
        *_facts(manifest).items(),
        ("ranks", ", ".join(map(str, files.ranks))),
        ("size", f"{files.size_bytes:,} bytes"),
        ("prompt", repr(manifest.prompt)),
        ("effect", "none: every product is zero" if files.changes_nothing else "yes"),
    ]
    if manifest.base:
        rows.append(("base weights", ", ".join(f"{c} {d[:8]}" for c, d in manifest.base.components.items())))
    rows += [(key, value) for key, value in training.items() if key != "config"]
    rows += [(f"config.{key}", value) for key, value in training.get("config", {}).items()]
    print_table([name, ""], rows)


@app.command("export")
def export_adapter(
    name: Name, folder: Annotated[Path, typer.Argument(help="New or empty folder.")], store: Store = None
) -> None:
    """Copy an adapter out as a plain PEFT directory."""
    adapters, name = find_adapter(store, name)
    say(f"Wrote {adapters.export(name, folder)}")


@app.command("import")
def import_adapter(
    source: Annotated[str, typer.Argument(help="A PEFT directory, saved here or by plain PEFT, or hf://owner/name.")],
    name: Annotated[str | None, typer.Option(help="Name in the store; by default its own.", show_default=False)] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Make a new version when the name exists.")] = False,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Put before the names of all modules, for LoRA of a part of the base, such as language_model.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The base to check it against. By default the one that it says it is for, else blip2-opt-mini.",
            show_default=False,
        ),
    ] = None,
    store: Store = None,
) -> None:
    """Check a PEFT directory against a base and take it into the store."""
    from lorax_vlm.multimodal import MultiModalLoRAExchange
    from lorax_vlm.sharing.remotes import fetched, is_remote

    system = MultiModalLoRAExchange(store=store)
    remote = is_remote(source)
    if remote and name is None:
        raise UsageError("Importing from an address requires --name.")
    with fetched(source) if remote else nullcontext(Path(source)) as folder:
        owner = model
        if owner is None and os.path.isdir(folder):  # which says no where the system refuses a name
            said = read_manifest(folder, name or folder.name).base
            owner = said.name if said is not None else DEFAULT_MODEL
        key = system.load_adapter(folder, name, model=owner, replace=replace, prefix=prefix)
    stored = system.store.get(key)
    say(f"Stored {stored.name}, version {stored.version}: {stored.folder}")


@app.command("remove")
def remove_adapter(
    name: Name, store: Store = None, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Remove an adapter with all its versions."""
    adapters, name = find_adapter(store, name)
    if not yes:
        typer.confirm(f"Remove {name} with all its versions from {adapters.root}?", abort=True)
    adapters.remove(name)
    say(f"Removed {name}.")


for command in (
    adapter_checks.check,
    adapter_checks.matrix,
    adapter_checks.inspect,
    adapter_versions.versions,
    adapter_versions.rollback,
    adapter_versions.alias,
    adapter_versions.tag,
    adapter_versions.search,
    adapter_versions.diff,
    adapter_versions.verify,
    remotes.pack,
    remotes.unpack,
    remotes.push,
    remotes.pull,
    remotes.sign,
    remotes.verify_signature,
):
    app.command()(command)
