"""A page of the texts that the model itself finds least likely, with their images: those to look at first. No torch."""

import heapq
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.journal import Journal, Said
from lorax_vlm.bulk.order import BulkOrder
from lorax_vlm.bulk.standing import holding, looked_up
from lorax_vlm.bulk.wording import marks
from lorax_vlm.data.images import decode_image
from lorax_vlm.reports.page import thumbnail, write_page

_SIDE_PX = 240


def write_review(order: BulkOrder, journal: Journal) -> Path | None:
    """Write the page; None where none is asked for, or nothing has a likelihood.

    Raises:
        PathError: It cannot be written, or somebody else's file is there.
    """
    least = heapq.nsmallest(order.review, _scored(order, journal), key=lambda one: one[0])
    if not least:
        return None
    return write_page(
        "review.html",
        order.review_page,
        "The least likely texts",
        texts=[_shown(likelihood, item, label, said) for likelihood, item, label, said in least],
        count=sum(1 for _ in _scored(order, journal)),
    )


def _scored(order: BulkOrder, journal: Journal) -> Iterator[tuple[float, Item, str, Said]]:
    for item, before in looked_up(order.items, journal):
        for label, said in holding(item, order.columns, before).items():
            if said.likelihood is not None:
                yield said.likelihood, item, label, said


def _shown(likelihood: float, item: Item, label: str, said: Said) -> dict[str, object]:
    notes = ", ".join(marks(said.text, said.finish))
    return {
        "image": thumbnail(_Pictures(item), item.name, _SIDE_PX, "jpeg"),
        "name": item.place or item.name,
        "question": item.question or "",
        "by": label,
        "text": said.text or "(nothing)",
        "likelihood": f"{likelihood:.4f}",
        "notes": notes,
    }


class _Pictures(dict[str, Image.Image]):
    """The picture of one item, opened when it is looked up."""

    def __init__(self, item: Item) -> None:
        self._item = item

    def __missing__(self, name: str) -> Image.Image:
        return decode_image(self._item.read(), repr(name))
