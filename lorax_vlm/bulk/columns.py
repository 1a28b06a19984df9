"""Who says something about every image: a base or adapters, each in one version. No torch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.asking import ask_of, caption_ask, require_captions
from lorax_vlm.errors import UsageError
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.types import GenerationSettings

BASE = "base"


@dataclass(frozen=True)
class Column:
    """One text about every image."""

    label: str
    """What outputs call it; without dots."""
    name: str
    """Of the adapter, as it was asked for; ``base`` for none."""
    adapter: str | None
    """``NAME@VERSION``."""
    digest: str
    """Of the adapter, or the name of the base."""
    how: str
    """Digest of what else its texts depend on: base, prompt, decoding."""
    decoding: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def how_about(self, question: str | None) -> str:
        """The same of one item, whose question counts as well."""
        return self.how if question is None else hashlib.sha256(f"{self.how} {question}".encode()).hexdigest()


def columns_for(
    entry: CatalogEntry,
    store: AdapterStore,
    adapters: Sequence[str],
    decoding: Mapping[str, Any],
    *,
    question: bool,
    samples: int = 1,
) -> list[Column]:
    """The columns of a job, whose adapters are found now and stay those versions.

    Args:
        entry: The base.
        store: Of the adapters.
        adapters: Their names, ``base`` for the base alone. None: the base alone.
        decoding: Fields of ``GenerationSettings`` to change.
        question: Whether questions are asked, rather than captions wanted.
        samples: Texts by each, with seeds that count up from that of ``decoding``.

    Raises:
        AdapterNotFound: There is no such adapter.
        PromptError: One answers questions, and captions are wanted.
        UsageError: The base writes no captions, a setting is unknown, or two columns would be called the same.
    """
    GenerationSettings.require_fields(decoding)
    if not question:
        require_captions(entry)
    columns = []
    for name in adapters or [BASE]:
        stored = None if name == BASE else store.find(name, entry.name)
        manifest = stored.manifest if stored is not None else None
        ask = ask_of(entry, manifest, question=True) if question else caption_ask(entry, manifest)
        for number in range(samples):
            own = {**decoding, "seed": decoding["seed"] + number} if samples > 1 else dict(decoding)
            settings = asdict(ask.settings.replace(**own))
            if not settings["forbid"]:
                del settings["forbid"]  # journals that were made before there were any stay as they are
            how = {"base": entry.identity, "template": ask.template, "settings": settings}
            label = name.removeprefix(f"{entry.name}.").replace(".", "-")
            columns.append(
                Column(
                    f"{label}-{number + 1}" if samples > 1 else label,
                    name,
                    stored.reference if stored is not None else None,
                    stored.digest if stored is not None else entry.identity,
                    hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest(),
                    own,
                )
            )
    labels = [column.label for column in columns]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UsageError(f"Two adapters would have one column, {twice!r}: name each once.")
    return columns
