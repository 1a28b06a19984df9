"""What is to be done about each image: nothing, write what was said before, or ask again. No torch."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from lorax_vlm.bulk.columns import Column
from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.journal import AT_ONCE, NOTHING, Journal, Known, Said, SeenImage
from lorax_vlm.bulk.order import BulkOrder
from lorax_vlm.bulk.sidecars import Found, Sidecar, may_write
from lorax_vlm.errors import LoraxError

Why = Literal["new", "another image", "another adapter", "other settings", "failed before", "no likelihood"]
WHYS: tuple[Why, ...] = ("new", "another image", "another adapter", "other settings", "failed before", "no likelihood")


@dataclass(frozen=True)
class Standing:
    """Where an item stands."""

    item: Item
    known: dict[str, Said]
    """What was said of it and still holds, by label."""
    wanted: dict[str, Why] = field(default_factory=dict)
    """Labels of the columns that are to be asked, and why."""
    unscored: dict[str, Said] = field(default_factory=dict)
    """What was said and still holds of columns that are asked for its likelihood only."""
    write: tuple[tuple[Sidecar, Found], ...] = ()
    """The text files that may be written."""
    kept: tuple[tuple[Sidecar, Found], ...] = ()
    """Those that are there and stay."""


def looked_up(items: Iterable[Item], journal: Journal) -> Iterator[tuple[Item, Known]]:
    """Items with what was read and said of them before, some of them ahead.

    Raises:
        PathError: The journal cannot be read.
    """
    source = iter(items)
    while some := list(islice(source, AT_ONCE)):
        known = journal.known([item.name for item in some])
        yield from ((item, known.get(item.name, NOTHING)) for item in some)


def standing_of(
    order: BulkOrder,
    item: Item,
    before: Known,
    sidecars: Sequence[tuple[Sidecar, Found]],
    failed: Collection[str] = (),
) -> Standing:
    """Where an item stands.

    Args:
        order: The job's.
        item: The item.
        before: What was read and said of it before.
        sidecars: Its text files, and what is in their place.
        failed: Names of the items of which something went wrong the last time.
    """
    existing = order.existing
    write = tuple(one for one in sidecars if may_write(one[1], existing))
    kept = tuple(one for one in sidecars if not may_write(one[1], existing))
    needed = {label for sidecar, _ in write for label in sidecar.labels}
    asked = [column for column in order.columns if order.all_asked or column.label in needed]
    known, wanted = _divided(item, asked, before)
    unscored = {label: said for label, said in known.items() if order.likelihood and said.likelihood is None}
    for label in unscored:
        del known[label]
        wanted[label] = "no likelihood"
    if item.name in failed:
        wanted = {label: "failed before" if why == "new" else why for label, why in wanted.items()}
    return Standing(item, known, wanted, unscored, write, kept)


def holding(item: Item, columns: Sequence[Column], before: Known) -> dict[str, Said]:
    """What was said of an item and still holds, by label."""
    return _divided(item, columns, before)[0]


def _divided(item: Item, columns: Sequence[Column], before: Known) -> tuple[dict[str, Said], dict[str, Why]]:
    """What holds, and why the rest does not."""
    said = before.said
    image = _same_image(item, before.seen) if said else None
    known, wanted = dict[str, Said](), dict[str, Why]()
    for column in columns:
        why = _why(column, column.how_about(item.question), said.get(column.label), image)
        if why is None:
            known[column.label] = said[column.label]
        else:
            wanted[column.label] = why
    return known, wanted


def _why(column: Column, how: str, said: Said | None, image: str | None) -> Why | None:
    """Why a text does not hold; None when it does."""
    if said is None:
        return "new"
    if said.image != image:
        return "another image"
    if said.adapter != column.digest:
        return "another adapter"
    return None if said.how == how else "other settings"


def _same_image(item: Item, seen: SeenImage | None) -> str | None:
    """The digest of its image now, of its bytes unless its file looks the same; None where it cannot be read."""
    stamp = item.stamp()
    if seen is not None and stamp is not None and seen.stamp == stamp:
        return seen.digest
    try:
        return item.digest()
    except LoraxError:
        return None
