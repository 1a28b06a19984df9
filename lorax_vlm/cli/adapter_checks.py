"""``lorax-vlm adapters``: does it belong to that base? what is in it? No torch.

Only ``check --canary`` loads a base, and torch for it, when it runs.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorax_vlm.adapters.compatibility import check_compatibility
from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.inspection import inspect_adapter
from lorax_vlm.adapters.manifest import Manifest, read_manifest
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.cli.options import AsJson, Model, Store
from lorax_vlm.cli.output import flag, print_json, print_table, say, say_wrote
from lorax_vlm.errors import AdapterNameError, AdapterNotFound, PathError, UsageError
from lorax_vlm.models.local import describe_local
from lorax_vlm.paths import naming, require_new_file
from lorax_vlm.types import percent

if TYPE_CHECKING:
    from lorax_vlm.runtime.canary import CanaryReport

Adapter = Annotated[str, typer.Argument(help="Name in the store, or a PEFT folder.")]


def _find(adapter: str, store: Path | None, model: str = "") -> Path:
    """The folder of a stored adapter, or the folder itself; a name means the store's, even beside a folder called so.

    Raises:
        PathError: It is written as a path, and no folder is there.
    """
    path, adapters = Path(adapter).expanduser(), AdapterStore(store)
    if path.name != adapter:
        if not os.path.isdir(path):
            raise PathError(str(path), "it is no folder")
        return path
    if os.path.isdir(path):
        try:
            adapters.resolve(adapter, model or None)
        except (AdapterNotFound, AdapterNameError):
            return path
    return adapters.get(adapters.resolve(adapter, model or None)).folder


def check(
    adapter: Adapter,
    model: Model = "",
    canary: Annotated[
        bool, typer.Option("--canary", help="Also load the base and repeat the adapter's recorded check (canary).")
    ] = False,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Compare an adapter with a base, without loading either. Exit code 1 when it is refused or answers otherwise.

    Without --model the base is the one it says it was made for. With --canary the exit code is 1, too, when nothing
    tells whether it answers as recorded.
    """
    folder = _find(adapter, store, model)
    manifest = read_manifest(folder, adapter)
    if not model and manifest.base is None:
        raise UsageError(f"Adapter {adapter!r} does not say which base it was made for. Name one with --model.")
    asked = model or manifest.base.name  # type: ignore[union-attr]
    base = describe_local(asked)
    report = check_compatibility(read_adapter_files(folder, adapter, manifest.files), manifest, base)
    refused, heard = report.verdict == "refused", None
    if canary and not refused:
        heard = _ask_canary(asked, folder, manifest, store)
    if as_json:
        facts = {"adapter": adapter, "base": base.name, "level": report.level, "report": report}
        print_json(facts | {"canary": heard} if canary else facts)
    else:
        said = {
            "exact": ("green", "exact: it was made for this base"),
            "unverified": ("yellow", "loadable but unverified"),
            "refused": ("red", "refused"),
        }
        style, words = said[report.verdict]
        say(f"{adapter} on {base.name}: {words}", style=style)
        rows = [
            (p.component, p.sites, p.level if p.level is not None else "unknown", p.reason) for p in report.components
        ]
        print_table(["component", "sites ", "level", "why"], rows)
        for reason in report.reasons:
            say(f"  {reason}")
        if base.fingerprint is None and any(part.level is None for part in report.components):
            say(f"so that its weights are known: lorax-vlm models fingerprint {base.name}")
        if canary and not refused:
            say(f"canary: {_canary_text(heard)}")
    if refused or (canary and (heard is None or not heard.agrees)):
        raise typer.Exit(1)


def _canary_text(heard: "CanaryReport | None") -> str:
    if heard is None:
        return "nothing was recorded"
    said = "answers as recorded" if heard.agrees else "answers not as recorded" if heard.tells else "cannot tell"
    return f"{said}: {heard.reason}"


def _ask_canary(model: str, folder: Path, manifest: Manifest, store: Path | None) -> "CanaryReport | None":
    from lorax_vlm.runtime.bases import Bases

    with Bases({}, AdapterStore(store)).use(model) as engine:
        return engine.check_canary(folder, manifest)


def matrix(
    models: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Base; repeat. By default the miniatures.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw it into this file, too.", show_default=False)] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Compare every adapter with every base, without loading any."""
    from lorax_vlm.exchange.matrix import build_matrix
    from lorax_vlm.models.catalog import list_models

    png = require_new_file(png, ".png")
    names = models or [entry.name for entry in list_models() if entry.miniature]
    bases = [describe_local(name) for name in names]
    found = build_matrix(AdapterStore(store), bases)
    if as_json:
        print_json({"bases": found.bases, "adapters": found.rows(), "broken": found.broken})
    else:
        print_table(["adapter", *found.bases], found.rows())
        for word, meaning in found.legend.items():
            say(f"{word:>5}  {meaning}")
        unread = [base.name for base in bases if base.fingerprint is None]
        if unread and any("?" in row for row in found.rows()):
            say(f"so that weights are known: {'; '.join(f'lorax-vlm models fingerprint {name}' for name in unread)}")
        for name, reason in found.broken.items():
            flag("red", "broken", f"{name}: {reason}")
    if png is not None:
        from lorax_vlm.reports.pictures import draw_matrix

        with naming(png):
            say_wrote(draw_matrix(found, png), as_json=as_json)


def inspect(
    adapter: Adapter,
    png: Annotated[Path | None, typer.Option(help="Draw norms and ranks into this file.", show_default=False)] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show what is in an adapter's file, whoever made it: sites, ranks, norms, dead layers, likely base."""
    png = require_new_file(png, ".png")
    found = inspect_adapter(_find(adapter, store))
    if as_json:
        print_json(found)
    else:
        say(f"{adapter}: {found.size_bytes:,} bytes, {len(found.sites)} sites, {', '.join(found.dtypes)}")
        say(
            f"declared base: {found.claimed_base or 'none'}; "
            f"matching catalogue entries: {', '.join(found.likely_bases) or 'none'}"
        )
        for feature in found.features:
            flag("yellow", "not plain LoRA", feature)
        for tensor in found.others:
            say(f"no LoRA factor: {tensor}")
        for component, sites in found.by_component.items():
            print_table(
                ["site", "rank ", "effective ", "95 % ", "norm ", "shape", ""],
                [
                    (
                        site.site,
                        site.rank,
                        f"{site.effective_rank:.1f}",
                        site.rank_95,
                        f"{site.norm:.3g}",
                        f"{site.shape[1]} -> {site.shape[0]}",
                        "dead" if site.dead else "",
                    )
                    for site in sites
                ],
                f"{component}: {percent(found.share(component))} of the squared norm",
            )
    if png is not None:
        from lorax_vlm.reports.pictures import draw_inspection

        with naming(png):
            say_wrote(draw_inspection(found, png, title=adapter), as_json=as_json)
