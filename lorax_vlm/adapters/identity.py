"""What an adapter remembers of the base's weights that it changes. No torch."""

from collections.abc import Iterable

from lorax_vlm.adapters.manifest import AdaptedPart
from lorax_vlm.models.components import group_by_component
from lorax_vlm.models.fingerprint import Fingerprint


def describe_adapted(fingerprint: Fingerprint, sites: Iterable[str]) -> dict[str, AdaptedPart]:
    """Digest and sketch of the base's own weights at some sites, by component.

    Raises:
        KeyError: The base has no weight of a site.
    """
    parts = {}
    for component, own in sorted(group_by_component(f"{site}.weight" for site in sites).items()):
        sketch = fingerprint.sketch_of(own)
        parts[component] = AdaptedPart(fingerprint.digest_of(own), len(own), sketch.norm, sketch.to_text())
    return parts
