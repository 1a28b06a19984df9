"""What a name in a store stands for: its versions, which one is in use, aliases and tags. No torch."""

import re
from collections.abc import Iterable
from dataclasses import field

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lorax_vlm.errors import AdapterExists, AdapterNameError
from lorax_vlm.foreign import quoted

DEMO_TAG = "demo"
"""Of adapters that a demonstration made, and may make anew."""
_STRICT = ConfigDict(extra="forbid", strict=True)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# What results and reports call the base without an adapter.
_RESERVED = ("base",)
# What Windows opens as a device, with any ending.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
_NUMBER = re.compile(r"[0-9]{1,9}")


def require_adapter_name(name: str) -> str:
    """Return ``name`` when it can be a file's name in the store.

    Raises:
        AdapterNameError: It is empty, too long, or contains separators, ``..`` or other characters.
    """
    sound = isinstance(name, str) and NAME.fullmatch(name) and ".." not in name and not name.endswith(".")
    if not sound or name in _RESERVED:
        raise AdapterNameError(name if isinstance(name, str) else quoted(name))
    return name


def split_name(name: str) -> tuple[str, str, str]:
    """The name, ``@``, and the version or alias behind it; the latter two are empty where there is none.

    Raises:
        AdapterNameError: It is no text, the name cannot be one, or nothing follows the ``@``.
    """
    plain, at, version = name.partition("@") if isinstance(name, str) else (name, "", "")
    if at and not version:
        raise AdapterNameError(name)
    return require_adapter_name(plain), at, version


def require_new_name(name: str, taken: Iterable[str]) -> str:
    """Return ``name`` when a new adapter can have it wherever the store may be copied to.

    Args:
        name: Of the new adapter.
        taken: Names that are in use.

    Raises:
        AdapterNameError: It cannot be a name, or is that of a device on Windows.
        AdapterExists: It differs from one in use by capitals only, which other file systems do not tell apart.
    """
    if require_adapter_name(name).split(".")[0].lower() in _DEVICES:
        raise AdapterNameError(name)
    alike = next((other for other in taken if other != name and other.casefold() == name.casefold()), None)
    if alike is not None:
        raise AdapterExists(name, f"this store as {alike!r}, which differs by capitals only")
    return name


@dataclass(frozen=True, config=_STRICT)
class Version:
    """One version of a name."""

    number: int
    object: str
    """Digest of its manifest, and name of its folder."""
    stored: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, config=_STRICT)
class NameRecord:
    """What a name stands for."""

    name: str
    current: int
    versions: list[Version]
    aliases: dict[str, int] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> list[int]:
        """Of all versions, oldest first."""
        return [version.number for version in self.versions]

    @property
    def references(self) -> list[str]:
        """What versions may be called: ``NAME@NUMBER`` and ``NAME@ALIAS``."""
        return [f"{self.name}@{wanted}" for wanted in (*self.numbers, *self.aliases)]

    def choose(self, wanted: str = "") -> Version | None:
        """The version of a number or an alias; without either the one in use."""
        number = int(wanted) if _NUMBER.fullmatch(wanted) else self.aliases.get(wanted) if wanted else self.current
        return next((version for version in self.versions if version.number == number), None)


_RECORD = TypeAdapter(NameRecord)


def parse_record(text: bytes, name: str) -> NameRecord:
    """The record of a name.

    Raises:
        ValueError: It is none, or contradicts itself.
    """
    try:
        found: NameRecord = _RECORD.validate_json(text)
    except ValidationError as error:
        raise ValueError(
            f"it is no record of an adapter: {error.errors(include_input=False)[0]['msg'][:200]}"
        ) from None
    sound = found.name == name and found.current in found.numbers and set(found.aliases.values()) <= set(found.numbers)
    if not sound or not all(_DIGEST.fullmatch(version.object) for version in found.versions):
        raise ValueError("its record contradicts itself")
    return found
