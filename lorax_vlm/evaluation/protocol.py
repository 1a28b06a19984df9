"""What was measured how: part of every report, because only figures of one protocol can be compared. No torch."""

from dataclasses import asdict, dataclass
from typing import Any

from lorax_vlm.types import GenerationSettings
from lorax_vlm.versions import package_versions


@dataclass(frozen=True)
class Subject:
    """What is measured, as reports name it, and how its text is decoded."""

    base: str
    """Name of the base."""
    adapter: str | None
    """Name of the adapter, None for the base."""
    settings: GenerationSettings

    def protocol(self, data: str) -> dict[str, Any]:
        """Data, decoding and versions."""
        return {
            "data": data,
            "decoding": asdict(self.settings),
            "versions": package_versions(("lorax-vlm", "transformers", "torch")),
        }
