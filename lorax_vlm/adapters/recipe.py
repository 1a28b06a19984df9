"""What an adapter adapts: rank and sites. No torch.

A site is a linear layer. Sites are always chosen by a full pattern over the whole module name, because a bare
``q_proj`` or ``fc1`` also names layers of other components: in BLIP-2, ``fc1`` alone matches the language model *and*
the vision encoder.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorax_vlm.adapters.peft_config import MAX_ALPHA
from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.components import IMAGE_PATH_COMPONENTS, component_of, group_by_component
from lorax_vlm.models.spec import ARCHITECTURES, site_groups
from lorax_vlm.types import require_number, require_text, require_whole

_MOST_RANKS = 1024


@dataclass(frozen=True)
class Recipe:
    """Rank and sites of a new adapter."""

    name: str
    rank: int
    groups: tuple[str, ...]
    """Names from ``Architecture.site_groups``."""
    alpha: float | None = None
    """The update is scaled by alpha / rank. None: twice the rank."""
    dropout: float = 0.0
    """Dropout on the adapter's input during training; helps with few examples."""
    modules: tuple[str, ...] = ()
    """Further sites by their whole module names."""

    def __post_init__(self) -> None:
        for text in (self.name, *self.groups, *self.modules):
            require_text("a recipe's name, group or module", text)
        require_whole("rank", self.rank, 1)
        if self.rank > _MOST_RANKS:
            raise UsageError(f"rank must be from 1 to {_MOST_RANKS}, got {self.rank}.")
        if self.alpha is not None:
            require_number("alpha", self.alpha, lambda value: 0 < value <= MAX_ALPHA, f"above 0, at most {MAX_ALPHA:g}")
        require_number("dropout", self.dropout, lambda value: 0 <= value < 1, "from 0 up to 1")
        if not self.groups and not self.modules:
            raise UsageError("An adapter needs at least one group of sites.")

    @property
    def effective_alpha(self) -> float:
        """``alpha``, or its default."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for records; equal for equal recipes."""
        return {
            "name": self.name,
            "rank": self.rank,
            "alpha": self.effective_alpha,
            "dropout": self.dropout,
            "sites": [*self.groups, *self.modules],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], family: str) -> "Recipe":
        """What ``to_dict`` recorded of a recipe for a family.

        Raises:
            UsageError: It is no such record.
        """
        sites = record.get("sites")
        if set(record) != {"name", "rank", "alpha", "dropout", "sites"} or not isinstance(sites, list | tuple):
            raise UsageError(f"{quoted(dict(record))} is no record of a recipe.")
        groups = tuple(site for site in sites if site in site_groups(family))
        modules = tuple(site for site in sites if site not in site_groups(family))
        name, rank, alpha, dropout = (record[part] for part in ("name", "rank", "alpha", "dropout"))
        return cls(name, rank, groups, alpha, dropout, modules)

    def pattern(self, family: str) -> str:
        """One pattern over whole module names.

        Raises:
            UsageError: The family or a group is unknown.
        """
        groups = site_groups(family)
        if not groups:
            raise UsageError(f"No sites are defined for family {family!r}. Known: {', '.join(ARCHITECTURES)}.")
        unknown = [group for group in self.groups if group not in groups]
        if unknown:
            known = ", ".join([*groups, *SITE_ALIASES])
            raise UsageError(f"Unknown sites {', '.join(unknown)} for {family}. Known: {known}.")
        patterns = [f"(?:{groups[group]})" for group in self.groups]
        return "|".join([*patterns, *map(re.escape, self.modules)])

    def sites(self, family: str, module_names: Iterable[str]) -> list[str]:
        """The modules this recipe adapts.

        Raises:
            UsageError: A group or a name matches nothing: the adapter would be smaller than asked for, or empty.
        """
        pattern = self.pattern(family)
        names = list(module_names)
        for group in self.groups:
            if not any(re.fullmatch(site_groups(family)[group], name) for name in names):
                raise UsageError(f"Sites {group!r} match no module of this model.")
        if missing := set(self.modules) - set(names):
            raise UsageError(f"No modules of this model: {', '.join(sorted(missing))}.")
        return [name for name in names if re.fullmatch(pattern, name)]


RECIPES = {
    "light": Recipe("light", rank=4, groups=("lm-qv",)),
    "medium": Recipe("medium", rank=8, groups=("lm-attention",)),
    "heavy": Recipe("heavy", rank=16, groups=("lm-attention", "lm-mlp")),
    # For pictures unlike those the base learnt to see: what the image path does not hand on, no language model can use.
    "seeing": Recipe("seeing", rank=16, groups=("lm-attention", "lm-mlp", "projection", "qformer", "vision")),
    # Only what BLIP-2 and InstructBLIP share to the last bit, so that it can be taken over by any of them.
    "portable": Recipe("portable", rank=8, groups=("vision",)),
}


def get_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe by name, or the recipe itself.

    Raises:
        UsageError: The name is unknown.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise UsageError(f"Unknown recipe {quoted(recipe)}. Known: {', '.join(RECIPES)}.")
    return RECIPES[recipe]


def chosen_recipe(recipe: str | Recipe | Mapping[str, Any] | None, usual: Recipe) -> Recipe:
    """What is given: a recipe or its name, or changes of the usual one; None: the usual one.

    Raises:
        UsageError: It is none of these, or there is nothing of that name to change.
    """
    if recipe is None:
        return usual
    if not isinstance(recipe, Mapping):
        return get_recipe(recipe)
    known = ("rank", "alpha", "dropout", "sites")
    if unknown := [name for name in recipe if name not in known]:
        raise UsageError(f"A recipe has no {quoted(unknown[0])} to change; known: {', '.join(known)}.")
    return change_recipe(usual, **recipe)


SITE_ALIASES = {"lm": ("lm-attention", "lm-mlp")}
"""Short words for several groups of sites."""
SEEING_SITES = "vision,qformer,projection,lm"
"""Those of the recipe ``seeing``, as ``--sites`` takes them."""


def change_recipe(
    recipe: Recipe,
    *,
    rank: int | None = None,
    alpha: float | None = None,
    dropout: float | None = None,
    sites: Sequence[str] = (),
) -> Recipe:
    """A recipe with something of it changed; what is None or empty stays.

    Args:
        recipe: To begin with.
        rank: As for ``Recipe``.
        alpha: As for ``Recipe``; with another rank and no alpha it is twice that rank again.
        dropout: As for ``Recipe``.
        sites: Groups of sites (see ``Architecture.site_groups``) or words of ``SITE_ALIASES``; commas may part them.

    Raises:
        UsageError: A value cannot be.
    """
    words = [word.strip() for part in sites for word in part.split(",")]
    if not all(words):
        raise UsageError(f"sites (--sites) must be names such as vision,lm, got {','.join(sites)!r}.")
    groups = tuple(dict.fromkeys(group for word in words for group in SITE_ALIASES.get(word, (word,))))
    changed = replace(
        recipe,
        rank=recipe.rank if rank is None else rank,
        alpha=recipe.alpha if alpha is None else alpha,
        dropout=recipe.dropout if dropout is None else dropout,
        groups=groups or recipe.groups,
        modules=() if groups else recipe.modules,
    )
    return recipe if changed == recipe else replace(changed, name=f"{recipe.name}, changed")


def require_sites(recipe: Recipe, family: str) -> None:
    """Raise ``UsageError`` when a family does not have a recipe's groups of sites; the model is not needed for it."""
    recipe.pattern(family)


def count_by_component(sites: Iterable[str]) -> dict[str, int]:
    """How many sites lie in each component.

    >>> count_by_component(["qformer.encoder.layer.0.attention.attention.query"])
    {'qformer': 1}
    """
    return {component: len(own) for component, own in group_by_component(sites).items()}


def touches_image_path(sites: Iterable[str]) -> bool:
    """Whether any site changes what the image looks like to the language model."""
    return any(component_of(site) in IMAGE_PATH_COMPONENTS for site in sites)
