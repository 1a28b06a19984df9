"""An entry of the store as it was found. No torch."""

from dataclasses import dataclass
from pathlib import Path

from lorax_vlm.adapters.integrity import SIGNATURE_FILE
from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.errors import LoraxError


@dataclass(frozen=True)
class StoredAdapter:
    """One readable adapter of a store."""

    name: str
    version: int
    folder: Path
    """A plain PEFT directory."""
    manifest: Manifest
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    """Those of this version."""

    @property
    def reference(self) -> str:
        """``name@version``: it means this very adapter, whatever version comes into use."""
        return f"{self.name}@{self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 of its ``exchange.json`` as it is stored; it names all other files by theirs."""
        return self.folder.name

    @property
    def signed(self) -> bool:
        """Whether a signature lies beside it; by whom, only verifying tells."""
        return (self.folder / SIGNATURE_FILE).is_file()


@dataclass(frozen=True)
class BrokenAdapter:
    """An entry that cannot be read, with the reason; it never hides the others."""

    name: str
    error: LoraxError
