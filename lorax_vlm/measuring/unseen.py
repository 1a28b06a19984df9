"""Which images adapters may be asked about, and what they are called beside their base."""

from collections.abc import Iterable, Mapping, Sequence

from lorax_vlm.adapters.seen import read_seen
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.data.asked import require_examples
from lorax_vlm.data.examples import Example
from lorax_vlm.errors import LoraxError
from lorax_vlm.evaluation.seen import Asked, comparable, leave_out_seen
from lorax_vlm.types import require_flag


def unseen_examples(
    adapters: Mapping[str, StoredAdapter], examples: Sequence[Example], *, include_seen: bool = False
) -> Asked:
    """The examples whose images none of several adapters was trained on, and how many each has seen.

    Args:
        adapters: Those that are to be compared, by what they are called in the report.
        examples: What they may be asked.
        include_seen: Only count.

    Raises:
        UsageError: Nothing would be left, or they are no examples.
    """
    require_flag("include_seen", include_seen)
    require_examples(examples)
    seen = {
        name: comparable(read_seen(stored.folder, stored.manifest), stored.manifest, examples)
        for name, stored in adapters.items()
    }
    return leave_out_seen(examples, seen, include=include_seen)


def shown_names(store: AdapterStore, base: str, stored: Iterable[StoredAdapter]) -> list[str]:
    """What adapters of a base may be called beside it: without its name, where that means the same adapter."""
    names = [adapter.name for adapter in stored]
    short = [name.removeprefix(f"{base}.") for name in names]
    return [
        own if own == name or _means(store, base, own, name) else name for own, name in zip(short, names, strict=True)
    ]


def _means(store: AdapterStore, base: str, asked: str, name: str) -> bool:
    try:
        return store.resolve(asked, base) == name
    except LoraxError:  # it is no name, or means several
        return False
