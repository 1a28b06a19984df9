"""What was measured how: part of every report, because only figures of one protocol can be compared. No torch."""

from typing import Any

from lorax_vlm.types import GenerationSettings
from lorax_vlm.versions import package_versions


def describe_protocol(data: str, settings: GenerationSettings) -> dict[str, Any]:
    """Data, decoding and versions."""
    return {
        "data": data,
        "decoding": {name: getattr(settings, name) for name in GenerationSettings.__dataclass_fields__},
        "versions": package_versions(("lorax-vlm", "transformers", "torch")),
    }
