"""A bulk job: texts about many images, written as they come, gone on with where it ended. No torch.

What is said is kept in the journal before any file is written, a batch at a time. So whoever is killed loses the batch
that was being said, and the next run writes what was said and not written.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from lorax_vlm.bulk.answering import Answered, Answering
from lorax_vlm.bulk.counts import BulkPlan, BulkReport
from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.journal import AT_ONCE, Journal, Said, Written
from lorax_vlm.bulk.order import BulkOrder
from lorax_vlm.bulk.review import write_review
from lorax_vlm.bulk.sidecars import (
    Found,
    Sidecar,
    chosen_label,
    content_of,
    digest_of,
    look_at,
    sidecars_of,
    still_holds,
    write_text,
)
from lorax_vlm.bulk.standing import Standing, looked_up, standing_of
from lorax_vlm.bulk.tables import require_own_source, require_own_tables, write_failures, write_tables
from lorax_vlm.bulk.wording import marks
from lorax_vlm.bulk.xmp import require_library, settle, with_described, write_descriptions
from lorax_vlm.errors import LoraxError, PathError
from lorax_vlm.paths import OWN_FOLDER, remove_abandoned, require_replaceable


class BulkProgress(Protocol):
    """Is told how a job goes, on the thread that runs it; what it raises ends the job."""

    def started(self, plan: BulkPlan) -> None:
        """What is to be done is known."""
        ...

    def said(self, name: str, texts: Mapping[str, str]) -> None:
        """An image has its texts, by column; they are written. Empty where they were known."""
        ...

    def failed(self, name: str, error: LoraxError) -> None:
        """An image has not."""
        ...

    def described(self, name: str) -> None:
        """It was an image's turn to have its text written into it."""
        ...

    def ended(self, report: BulkReport) -> None:
        """The job has ended, well or not; this is what it did. What goes to an address is sent after it."""
        ...


class BulkJob:
    """Texts about many images."""

    def __init__(self, order: BulkOrder, answering: Answering) -> None:
        """Nothing is done.

        Args:
            order: What is wanted.
            answering: What answers; asked when there is something to be said.
        """
        self._order, self._answering = order, answering
        self._stopping = threading.Event()
        self._tidied: set[Path] = set()

    def stop(self) -> None:
        """End after the batches that are being said; what was said is written. Any thread may ask for it."""
        self._stopping.set()

    def plan(self) -> BulkPlan:
        """What would be done; nothing is written.

        Raises:
            PathError: Something cannot be read, or another process works there.
            RemoteError: An address cannot be reached.
        """
        if (mirror := self._order.mirror) is not None:
            with mirror.held():
                mirror.fetch(self._wanted())
                return self._look()
        return self._look()

    def _look(self) -> BulkPlan:
        with Journal(self._order.journal, look=True) as journal:
            return self._plan(journal)

    def run(self, progress: BulkProgress | None = None) -> BulkReport:
        """Do what is to be done.

        Raises:
            PathError: Something cannot be read or written, such as on a full disk; what was said until then is kept.
            RemoteError: An address cannot be reached; what was said until then is kept here, and sent the next time.
            AdapterError: An adapter cannot be used on the base.
            UsageError: The base cannot do what is asked.
        """
        mirror = self._order.mirror
        if mirror is None:
            return self._run(progress)
        with mirror.held(), mirror.claimed(self._order.journal.name):
            wanted = self._wanted()
            mirror.fetch(wanted)
            report = self._run(progress)
            mirror.finish(wanted, self._order.journal, [self._order.failed])
        return report

    def _wanted(self) -> Callable[[str], bool]:
        """Which files of an output behind an address are this job's: its journal, its lists and tables, its texts."""
        order = self._order
        own = {f"{OWN_FOLDER}/{order.journal.name}"}
        own |= {path.name for path in (*map(order.table, order.tables), order.failed, order.review_page)}
        if "txt" in order.write:
            picked = order.pick is not None
            own |= {one.path for item in order.items for one in sidecars_of(item, order.labels, picked=picked)}
        return own.__contains__

    def _run(self, progress: BulkProgress | None) -> BulkReport:
        order, start = self._order, time.monotonic()
        with Journal(order.journal) as journal:
            require_own_tables(order, journal)
            require_own_source(order, journal)
            if order.review:
                require_replaceable(order.review_page)
            if "xmp" in order.write:
                require_library()
                settle(order, journal)
            there = order.mirror.remote.url if order.mirror is not None else order.out
            report = BulkReport(self._plan(journal), there)
            try:
                if progress is not None:
                    progress.started(report.plan)
                if report.plan.to_ask or report.plan.to_write:
                    self._work(journal, report, progress)
                more = self._describe(journal, report, progress) if "xmp" in order.write else []
                report.seconds = time.monotonic() - start
                report.tables = write_tables(order, journal, order.identity(report.plan.names))
                report.failed, report.failures = write_failures(order, journal, lambda: self._missing(journal), more)
                report.review = write_review(order, journal)
                self._name_there(report)
            finally:
                report.seconds = report.seconds or time.monotonic() - start
                if progress is not None:
                    progress.ended(report)
        return report

    def _name_there(self, report: BulkReport) -> None:
        """Where outputs lie behind an address, name them so."""
        if (mirror := self._order.mirror) is None:
            return
        report.tables = {mirror.address(Path(path)): rows for path, rows in report.tables.items()}
        report.failures, report.review = (
            mirror.address(Path(path)) if path is not None else None for path in (report.failures, report.review)
        )

    # --- what is to be done -----------------------------------------------------------------------------------------

    def _standings(self, journal: Journal) -> Iterator[Standing]:
        order, failed = self._order, frozenset(journal.failures())
        texts, picked = "txt" in order.write, order.pick is not None
        source = looked_up(order.items, journal)
        while some := list(islice(source, AT_ONCE)):
            sidecars = [sidecars_of(item, order.labels, picked=picked) if texts else [] for item, _ in some]
            files = journal.files([sidecar.path for own in sidecars for sidecar in own])
            for (listed, before), own in zip(some, sidecars, strict=True):
                item = listed
                try:
                    found = [(sidecar, look_at(order.out, sidecar, files.get(sidecar.path))) for sidecar in own]
                except PathError as error:
                    if not _is_of_a_name(error):
                        raise
                    item, found = replace(item, problem=error), [(sidecar, Found("nothing")) for sidecar in own]
                yield standing_of(order, item, before, found, failed)

    def _missing(self, journal: Journal) -> Iterator[Item]:
        """The items about which something is still to be said."""
        return (standing.item for standing in self._standings(journal) if standing.wanted)

    def _plan(self, journal: Journal) -> BulkPlan:
        plan = BulkPlan("row" if self._order.file else "image")
        standings: Iterable[tuple[Standing, bool]] = ((standing, True) for standing in self._standings(journal))
        if "xmp" in self._order.write:
            standings = with_described(self._order, journal, self._standings(journal))
        for standing, described in standings:
            plan.count(standing, writes=bool(self._changes(standing, standing.known)), describes=not described)
        return plan

    def _changes(self, standing: Standing, said: Mapping[str, Said]) -> list[tuple[Sidecar, bytes, bytes | None]]:
        """The text files of an item that are to be written now, with what goes in and what that was added to."""
        changes = []
        for sidecar, found in standing.write:
            if all(label in said for label in sidecar.labels):
                content, before = self._content(standing.item, sidecar, found, said)
                if not (found.holds == "ours" and found.written and found.written.digest == digest_of(content)):
                    changes.append((sidecar, content, before))
        return changes

    def _content(
        self, item: Item, sidecar: Sidecar, found: Found, said: Mapping[str, Said]
    ) -> tuple[bytes, bytes | None]:
        order = self._order
        label = chosen_label({label: said[label] for label in sidecar.labels}, order.pick)
        return content_of(order.text(item, label, said[label].text), found, order.existing)

    # --- doing it ---------------------------------------------------------------------------------------------------

    def _work(self, journal: Journal, report: BulkReport, progress: BulkProgress | None) -> None:
        todo = (
            standing
            for standing in self._standings(journal)
            if standing.wanted or self._changes(standing, standing.known)
        )
        with (
            ThreadPoolExecutor(1, thread_name_prefix="writing") as writing,
            closing(self._answering.answers(todo, self._order, self._stopping.is_set)) as batches,
        ):
            before: tuple[Future[None], Sequence[Answered]] | None = None
            done = 0
            for batch in batches:  # is said while the one before is written
                if before is not None:
                    _tell(progress, *before)
                before = writing.submit(self._keep, journal, batch, report), batch
                done += len(batch)
            if before is not None:
                _tell(progress, *before)
        report.interrupted = self._stopping.is_set() and done < report.plan.to_ask + report.plan.to_write

    def _describe(
        self, journal: Journal, report: BulkReport, progress: BulkProgress | None
    ) -> list[tuple[str, str, str]]:
        """Write texts into images; item, kind and reason of each that it went wrong with."""
        told = progress.described if progress is not None else str
        done = write_descriptions(self._order, journal, self._stopping.is_set, told)
        report.described, report.described_left = done.written, done.left
        report.interrupted = report.interrupted or done.stopped
        return done.failures

    def _keep(self, journal: Journal, batch: Sequence[Answered], report: BulkReport) -> None:
        """Keep a batch in the journal, then write its text files, then note what they look like."""
        written: list[tuple[Sidecar, bytes, Written]] = []
        with journal.changing():
            for one in batch:
                name, new = one.standing.item.name, one.said
                found_of = {sidecar.path: found for sidecar, found in one.standing.write}
                if one.seen is not None:
                    journal.note_image(name, one.seen)
                journal.note_texts(name, new)
                if one.error is not None:
                    journal.note_failed(name, one.error)
                for sidecar, content, before in self._changes(one.standing, {**one.standing.known, **new}):
                    if not still_holds(self._order.out, sidecar, found_of[sidecar.path]):
                        report.left += 1
                        continue
                    note = Written(sidecar.about, digest_of(content), before, None)
                    journal.note_file(sidecar.path, note)
                    written.append((sidecar, content, note))
                made = {label: text for label, text in new.items() if label not in one.standing.unscored}
                report.scored += len(new) - len(made)
                report.images += bool(made)
                report.texts += len(made)
                report.tokens += sum(text.tokens for text in made.values())
                report.marks.update(mark for text in made.values() for mark in marks(text.text, text.finish))
        for folder in {(self._order.out / sidecar.path).parent for sidecar, _, _ in written} - self._tidied:
            remove_abandoned(folder)
            self._tidied.add(folder)
        stamps = [write_text(self._order.out, sidecar.path, content) for sidecar, content, _ in written]
        if self._order.mirror is not None:
            self._order.mirror.written([sidecar.path for sidecar, _, _ in written], journal)
        report.written += len(stamps)
        with journal.changing():
            for (sidecar, _, note), stamp in zip(written, stamps, strict=True):
                journal.note_file(sidecar.path, Written(note.labels, note.digest, note.before, stamp))


def _is_of_a_name(error: PathError) -> bool:
    """Whether it befalls one file for what it is called: a folder in its place, a name too long."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)


def _tell(progress: BulkProgress | None, written: Future[None], batch: Sequence[Answered]) -> None:
    """Say what came of a batch, once it is written."""
    written.result()
    if progress is None:
        return
    for one in batch:
        if one.error is not None:
            progress.failed(one.standing.item.name, one.error)
        else:
            progress.said(one.standing.item.name, {label: said.text for label, said in one.said.items()})
