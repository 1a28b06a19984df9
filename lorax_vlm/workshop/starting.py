"""Training on from an adapter: it begins with that one's updates, and what that one has seen counts as seen."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lorax_vlm.adapters.factors import Update, read_updates
from lorax_vlm.adapters.manifest import INIT_FROM, Parent
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.seen import Heritage
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.training.copies import linear_names
from lorax_vlm.training.students import AdapterPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What an adapter begins with; by default nothing."""

    updates: Mapping[str, Update] = field(default_factory=dict)
    lineage: tuple[Parent, ...] = ()
    """The adapter that it begins with, and what that one came from; empty for nothing."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest."""
    heritage: Heritage | None = None
    """What that one has seen; None for nothing."""

    def begun(self, plan: AdapterPlan) -> AdapterPlan:
        """A plan that says what it begins with, validated on nothing that was trained on before.

        Raises:
            UsageError: Nothing is left to validate on.
        """
        if self.heritage is None:
            return plan
        return replace(plan, data=self._unseen(plan.data), purpose={**plan.purpose, **self.facts})

    def _unseen(self, splits: DataSplits) -> DataSplits:
        """Measured on images that were trained on, memory would look like skill, and end the training."""
        name = self.facts[INIT_FROM]["adapter"]
        seen = self.heritage.images if self.heritage is not None else None
        if seen is None or (self.heritage is not None and self.heritage.partly):
            logger.warning("%s does not say all that it was trained on: images may be among those validated on.", name)
        if seen is None:
            return splits
        unseen = [example for example in splits.validation if not seen.contains(example.image_digest())]
        if left := len(splits.validation) - len(unseen):
            count = len(splits.validation)
            logger.warning("%s was trained on %d of %d validation examples; they are left out.", name, left, count)
        if not unseen:
            raise UsageError(
                f"{name} was trained on all validation examples of {splits.source}. Hold out the same share as it did, "
                "or give data that hold out images of their own."
            )
        return replace(splits, validation=unseen)

    def joined(self, own: Heritage) -> Heritage:
        """All that was seen, together with what it was trained on itself."""
        return own if self.heritage is None else Heritage.joined([self.heritage, own])


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
        Heritage.of(stored.manifest, adapter.seen),
    )


def recipe_of(stored: StoredAdapter, family: str) -> Recipe | None:
    """The recipe that an adapter of a family was made by; None where it does not say.

    Raises:
        UsageError: What it says is no recipe.
    """
    known = stored.manifest.training.get("recipe")
    return Recipe.from_dict(known, family) if isinstance(known, Mapping) else None
