"""Every adapter with every base: where it belongs, and how far away the others are. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lorax_vlm.adapters.compatibility import CompatibilityReport, Level, check_compatibility
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import LoraxError
from lorax_vlm.exchange.plan import why_not_distilled
from lorax_vlm.models.description import BaseDescription
from lorax_vlm.types import require_texts

LEGEND = {
    "exact": "made for this base",
    "L0": "every weight, the configuration and the tokenizer are the same",
    "L1": "the adapted weights are the very same, others differ: can be copied",
    "L2": "of one lineage: can be copied, the result is measured",
    "L3": "other weights or shapes: can only be distilled",
    "L4": "one writes, the other chooses among answers: can only be distilled",
    "L5": "cannot be moved",
    "?": "unknown: nothing says which weights it was trained on, or the base's were never read",
}


@dataclass(frozen=True)
class CompatibilityMatrix:
    """One report per readable adapter and base."""

    adapters: tuple[str, ...]
    bases: tuple[str, ...]
    reports: Mapping[tuple[str, str], CompatibilityReport]
    broken: Mapping[str, str]
    """Why an adapter could not be read, by name."""
    unteachable: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Why an adapter cannot be distilled into a base; what can be is not named."""

    def word(self, adapter: str, base: str) -> str:
        """``exact``, the level of the farthest component, or ``?``."""
        report = self.reports[adapter, base]
        if report.verdict == "exact":
            return "exact"
        if report.level in (Level.SAME_INTERFACE, Level.OTHER_INTERFACE) and (adapter, base) in self.unteachable:
            return str(Level.REFUSED)
        return str(report.level) if report.level is not None else "?"

    def rows(self) -> list[tuple[str, ...]]:
        """One row per adapter: its name and a word per base."""
        return [(adapter, *(self.word(adapter, base) for base in self.bases)) for adapter in self.adapters]

    @property
    def legend(self) -> dict[str, str]:
        """What the words that occur in it mean."""
        used = {word for _, *words in self.rows() for word in words}
        return {word: meaning for word, meaning in LEGEND.items() if word in used}

    def lines(self) -> list[str]:
        """For people."""
        width = max([len(name) for name in self.adapters] + [7])
        lines = [" " * width + "".join(f"  {base:>18}" for base in self.bases)]
        lines += [f"{name:<{width}}" + "".join(f"  {word:>18}" for word in words) for name, *words in self.rows()]
        lines += [f"{word:>5}  {meaning}" for word, meaning in self.legend.items()]
        return [*lines, *(f"broken: {name}: {reason}" for name, reason in self.broken.items())]


def build_matrix(
    store: AdapterStore, bases: Sequence[BaseDescription], names: Sequence[str] | None = None
) -> CompatibilityMatrix:
    """Compare stored adapters with bases.

    Args:
        store: Where the adapters are.
        bases: To compare with.
        names: Of adapters. None: all; those that cannot be read are listed apart.
    """
    reports: dict[tuple[str, str], CompatibilityReport] = {}
    broken: dict[str, str] = {}
    unteachable: dict[tuple[str, str], str] = {}
    good = []
    chosen = store.names() if names is None else names
    require_texts("names", chosen)
    for name in chosen:
        try:
            stored, files = store.read(name)
        except LoraxError as error:
            broken[name] = str(error)
            continue
        good.append(name)
        for base in bases:
            reports[name, base.name] = check_compatibility(files, stored.manifest, base)
            reason = why_not_distilled(files, stored.manifest, base)
            if reason is not None:
                unteachable[name, base.name] = reason
    return CompatibilityMatrix(tuple(good), tuple(base.name for base in bases), reports, broken, unteachable)
