"""What was measured how: part of every report, because only figures of one protocol can be compared."""

from importlib.metadata import version
from typing import Any

from lorax_vlm.types import GenerationSettings


def describe_protocol(data: str, settings: GenerationSettings) -> dict[str, Any]:
    """Data, decoding and versions."""
    return {
        "data": data,
        "decoding": {name: getattr(settings, name) for name in GenerationSettings.__dataclass_fields__},
        "versions": {package: version(package) for package in ("lorax-vlm", "transformers", "torch")},
    }
