"""Training on from an adapter: it begins with that one's updates, and what that one has seen counts as seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorax_vlm.adapters.factors import Update, read_updates
from lorax_vlm.adapters.manifest import Parent
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.seen import SeenImages, join_seen
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.noted import NotedStream
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.seen import KNOWN_BY, PARTLY, identities_of
from lorax_vlm.models.spec import site_groups
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.training.copies import linear_names

INIT_FROM = "init_from"


@dataclass(frozen=True)
class Start:
    """What an adapter begins with; by default nothing."""

    updates: Mapping[str, Update] = field(default_factory=dict)
    lineage: tuple[Parent, ...] = ()
    """The adapter that it begins with, and what that one came from; empty for nothing."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest."""
    seen: SeenImages | None = None
    """What that one has seen; None where it does not say."""
    seen_partly: bool = False
    known_by: frozenset[str] = frozenset()

    def joined(self, data: DataSplits, known_by: Sequence[str]) -> tuple[SeenImages | None, dict[str, Any]]:
        """All images that were seen, those of ``data`` among them, and what the manifest says of them."""
        own = _images_of(data)
        if not self.lineage:
            return own, {}
        seen, complete = join_seen([self.seen, own])
        partly = {PARTLY: True} if self.seen_partly or not complete else {}
        return seen, {KNOWN_BY: sorted({*known_by, *self.known_by}), **partly}


NOTHING = Start()


def read_start(engine: BaseEngine, reference: str, recipe: Recipe) -> Start:
    """What an adapter that is to be trained on begins with.

    Args:
        engine: Of its base.
        reference: The adapter, in one version.
        recipe: Of the new one; its sites and ranks must hold the old one's.

    Raises:
        AdapterError: It is not there, is damaged, or does not belong to the base.
        UsageError: It has sites or ranks that the recipe has not, or a head of its own.
    """
    stored, adapter = engine.store.read_bytes(reference)
    engine.check(reference, stored.folder, stored.manifest)
    if adapter.files.head or stored.manifest.labels:
        raise UsageError(
            f"{reference} has answers of its own in a head; training on from such an adapter is not possible."
        )
    updates = read_updates(adapter)
    if left := sorted(set(updates) - set(recipe.sites(engine.base.family.name, linear_names(engine.base.model)))):
        raise UsageError(
            f"{reference} adapts {len(left)} modules that recipe {recipe.name!r} does not, such as {left[0]}. Take its "
            f"recipe ({stored.manifest.recipe or 'unknown'}), or name --sites that hold them."
        )
    if (rank := max(adapter.files.ranks, default=0)) > recipe.rank:
        raise UsageError(f"{reference} has rank {rank}, and recipe {recipe.name!r} {recipe.rank}: --rank {rank}.")
    parent = Parent(stored.name, stored.digest, "trained on", {})
    return Start(
        updates,
        (parent, *stored.manifest.lineage),
        {INIT_FROM: {"adapter": stored.reference, "digest": stored.digest}},
        adapter.seen,
        bool(stored.manifest.training.get(PARTLY)),
        frozenset(identities_of(stored.manifest)),
    )


def recipe_of(stored: StoredAdapter, family: str) -> Recipe | None:
    """The recipe that an adapter of a family was made by; None where it does not say.

    Raises:
        UsageError: What it says is no recipe.
    """
    known = stored.manifest.training.get("recipe")
    if not isinstance(known, Mapping):
        return None
    sites = [str(site) for site in known.get("sites", ())]
    groups = tuple(site for site in sites if site in site_groups(family))
    modules = tuple(site for site in sites if site not in groups)
    facts = {name: known.get(name) for name in ("name", "rank", "alpha", "dropout")}
    return Recipe(**facts, groups=groups, modules=modules)  # type: ignore[arg-type]


def _images_of(splits: DataSplits) -> SeenImages | None:
    """The images that were trained on, None where a stream did not note them; of data in memory all, though a short run
    does not come to each.
    """
    if isinstance(splits.train, NotedStream):
        return SeenImages.of(splits.train.images) if splits.train.images is not None else None
    return SeenImages.of(example.image_digest() for example in splits.train)
