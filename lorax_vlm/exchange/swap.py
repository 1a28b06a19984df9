"""Two adapters of two bases, each moved to the other's base: both, or neither.

Both results are stored in one step of the store, so that not even a process that is killed leaves one of them.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from dataclasses import replace as replaced

from lorax_vlm.adapters.ownership import require_storable
from lorax_vlm.errors import TransferRefused, UsageError
from lorax_vlm.exchange.direction import Direction
from lorax_vlm.exchange.report import TransferReport
from lorax_vlm.exchange.transfer import PreparedTransfer, prepared_transfer
from lorax_vlm.runtime.bases import Bases


@dataclass(frozen=True)
class ExchangeReport:
    """What exchanging two adapters did."""

    there: TransferReport
    back: TransferReport

    @property
    def accepted(self) -> bool:
        """Whether both were stored; otherwise neither was."""
        return self.there.accepted and self.back.accepted

    @property
    def adapters(self) -> Mapping[str, str]:
        """Names of the new adapters, by name of the base; empty when nothing was stored."""
        reports = (self.there, self.back) if self.accepted else ()
        return {report.plan.target: str(report.adapter) for report in reports}

    def record(self) -> dict[str, object]:
        """All of it for JSON."""
        return {"accepted": self.accepted, "there": self.there.record(), "back": self.back.record()}

    def lines(self) -> list[str]:
        """For people."""
        return [*self.there.lines(), *self.back.lines()]


def exchange_adapters(bases: Bases, there: Direction, back: Direction, *, replace: bool = False) -> ExchangeReport:
    """Move both adapters, and store the results only if both are worth it.

    Raises:
        TransferRefused: One of them cannot be moved at all, or both are of one base; nothing was changed.
        UsageError: Both results would have one name.
        AdapterExists: A new name is taken.
        PathError: The store cannot be written; nothing was worked out.
    """
    if there.new_name == back.new_name:
        raise UsageError(f"Both results would be called {there.new_name!r}; give them different names.")
    if bases.entry(there.source).identity == bases.entry(there.target).identity:
        reason = f"{back.name!r} is of that base, too. One batch may mix them; lorax-vlm exchange merge joins them"
        raise TransferRefused(there.name, bases.entry(there.target).name, [reason])
    for way in (there, back):
        require_storable(bases.store, bases.owner(way.target), way.new_name, replace=replace)
    with ExitStack() as stack:
        prepared = [stack.enter_context(prepared_transfer(bases, way)) for way in (there, back)]
        if any(one.refused for one in prepared):
            first, second = (_not_kept(one) for one in prepared)
            return ExchangeReport(first, second)
        additions = [
            one.addition(way.new_name, replace=replace) for one, way in zip(prepared, (there, back), strict=True)
        ]
        bases.store.add_all(additions, replace=replace)
        return ExchangeReport(prepared[0].kept_as(there.new_name), prepared[1].kept_as(back.new_name))


def _not_kept(prepared: PreparedTransfer) -> TransferReport:
    if prepared.refused:
        return prepared.report
    return replaced(prepared.report, label="refused", reasons=("the other adapter of the exchange was refused",))
