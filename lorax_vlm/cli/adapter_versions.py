"""``lorax-vlm adapters``: versions, aliases and tags; what differs between two; whether all is sound. No torch."""

import math
from typing import Annotated, Any

import typer

from lorax_vlm.adapters.compare import compare_adapters
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.cli.checks import find_adapter
from lorax_vlm.cli.options import AsJson, Store
from lorax_vlm.cli.output import flag, print_json, print_table, say
from lorax_vlm.errors import UsageError

Name = Annotated[str, typer.Argument(help="Name of the adapter.")]


def versions(name: Name, store: Store = None, as_json: AsJson = False) -> None:
    """List every version of an adapter, with aliases and the one in use."""
    adapters, name = find_adapter(store, name)
    record = adapters.record(name)
    if as_json:
        print_json(record)
        return
    aliases = {number: [a for a, n in record.aliases.items() if n == number] for number in record.numbers}
    print_table(
        ["version ", "", "aliases", "stored", "digest of exchange.json"],
        [
            (v.number, "in use" if v.number == record.current else "", ", ".join(aliases[v.number]), v.stored, v.object)
            for v in record.versions
        ],
        f"{name}{'  tags: ' + ', '.join(record.tags) if record.tags else ''}",
    )


def rollback(
    name: Name,
    to: Annotated[
        int | None, typer.Option("--to", help="Version; by default the one before.", show_default=False)
    ] = None,
    store: Store = None,
) -> None:
    """Use a former version again; later ones stay."""
    adapters, name = find_adapter(store, name)
    stored = adapters.rollback(name, to)
    say(f"{name} is version {stored.version} now.")


def alias(
    name: Name,
    alias: Annotated[str, typer.Argument(help="Such as stable; NAME@stable then means that version.")],
    version: Annotated[int | None, typer.Option(help="Version; by default the one in use.", show_default=False)] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Forget the alias.")] = False,
    store: Store = None,
) -> None:
    """Let NAME@ALIAS stand for a version."""
    adapters, name = find_adapter(store, name)
    if drop and version is not None:
        raise UsageError("--drop forgets the alias, whichever version it means: leave --version out.")
    if drop:
        adapters.drop_alias(name, alias)
        say(f"{name}@{alias} is forgotten.")
        return
    stored = adapters.set_alias(name, alias, version)
    say(f"{name}@{alias} is version {stored.version}.")


def tag(
    name: Name,
    add: Annotated[list[str] | None, typer.Argument(help="Tags to add.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="Tag to remove; repeat for more.")] = None,
    store: Store = None,
) -> None:
    """Add or remove tags."""
    adapters, name = find_adapter(store, name)
    stored = adapters.tag(name, add=add or (), remove=remove or ())
    say(f"{name}: {', '.join(stored.tags) or 'no tags'}")


def search(
    text: Annotated[str, typer.Argument(help="Words in name, skill, base, data or tags.")] = "",
    base: Annotated[str | None, typer.Option(help="Only for this base.", show_default=False)] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Only for this: caption, answer, instruct, counting, ...", show_default=False),
    ] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="Only with this tag; repeat for more.")] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Find adapters."""
    found = AdapterStore(store).search(text, base=base, task=task, tags=tags or ())
    if as_json:
        print_json({"adapters": [{"name": a.name, "version": a.version, "tags": a.tags} for a in found]})
        return
    print_table(
        ["name", "version ", "does", "base", "tags"],
        [(a.name, a.version, a.manifest.skill or "unknown", _base(a.manifest), ", ".join(a.tags)) for a in found],
    )


def _base(manifest: Any) -> str:
    return manifest.base.name if manifest.base else "unknown"


def diff(
    first: Annotated[str, typer.Argument(help="Adapter, perhaps NAME@3.")],
    second: Annotated[str, typer.Argument(help="Adapter, perhaps NAME@4.")],
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs between two adapters or versions: records, sites, and the updates themselves."""
    adapters = AdapterStore(store)
    first, second = adapters.resolve(first), adapters.resolve(second)
    found = compare_adapters(adapters, first, second)
    if as_json:
        print_json(found)
        return
    print_table(["", first, second], found.facts, "Manifest differences")
    say(
        f"sites: {found.shared} in both, {len(found.only_first)} only in {first}, "
        f"{len(found.only_second)} only in {second}"
    )
    apart = f"distance {found.distance:.3f} of the first" if math.isfinite(found.distance) else "the first does nothing"
    say(f"updates: norms {found.norms[0]:.3g} and {found.norms[1]:.3g}, {apart}, cosine {found.cosine:+.3f}")
    if found.farthest:
        print_table(
            ["site", "cosine ", "distance "],
            [(site, f"{cosine:+.3f}", f"{distance:.3f}") for site, cosine, distance in found.farthest],
            "Farthest apart",
        )


def verify(
    store: Store = None,
    clean: Annotated[bool, typer.Option("--clean", help="Remove what killed writers left behind.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read and hash every file of every version. Exit code 1 if a file is missing, changed or unexpected."""
    adapters = AdapterStore(store)
    report = adapters.verify()
    removed = adapters.clean() if clean else 0
    if as_json:
        print_json(report)
    else:
        say(f"{report.versions} versions, {report.size_bytes:,} bytes read")
        for problem in report.problems:
            flag("red", "damaged", problem)
        if report.leftovers:
            ending = f", {removed} removed" if clean else "; remove them with --clean"
            say(f"{len(report.leftovers)} leftovers of writers that were killed{ending}")
        if not report.problems:
            say("All files are what their manifests say.")
    if report.problems:
        raise typer.Exit(1)
