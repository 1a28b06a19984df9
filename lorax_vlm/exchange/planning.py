"""What moving a stored adapter would take, with as many images as a transfer would draw if it is given none."""

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.exchange.plan import TransferPlan, plan_transfer
from lorax_vlm.exchange.scene_data import drawn_images
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.models.description import BaseDescription
from lorax_vlm.types import require_whole


def plan_stored(
    store: AdapterStore,
    name: str,
    entry: CatalogEntry,
    target: BaseDescription,
    *,
    images: int | None = None,
    allow_partial: bool = False,
) -> TransferPlan:
    """What moving an adapter would take; nothing is loaded, fetched or changed.

    Args:
        store: Where it is.
        name: Of the adapter.
        entry: The target.
        target: The same, described.
        images: Unlabelled images at hand. None: those that a transfer draws between miniatures, else none.
        allow_partial: Leave out what cannot be moved.

    Raises:
        AdapterError: It is not there, or damaged.
        UsageError: ``images`` is no number of images.
    """
    stored, adapter = store.read_bytes(name)
    if images is None:
        images = drawn_images(stored.manifest, entry)
    require_whole("images", images, 0)
    return plan_transfer(adapter, stored.manifest, target, images=images, allow_partial=allow_partial)
