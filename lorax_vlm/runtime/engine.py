"""What answers requests: one base with the adapters of a store, or whatever stands in for it.

Every request has its own adapter, prompt and decoding; rows that can run together do. Images are opened when their
batch comes, and a row fails alone.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any, Self

from PIL import Image

from lorax_vlm.adapters.compatibility import CompatibilityReport
from lorax_vlm.adapters.files import AdapterBytes, read_adapter
from lorax_vlm.adapters.manifest import Canary, Manifest
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import (
    Ask,
    ask_of,
    caption_ask,
    captions_only,
    distinct_adapters,
    require_captions,
    require_decoding,
    require_question,
)
from lorax_vlm.data.images import load_image
from lorax_vlm.errors import LoraxError, RowFailed
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.models.families.text import require_equal_rows
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.requests import Request, Result, ScoringEngine
from lorax_vlm.runtime.attached import AttachedAdapters, Attachment
from lorax_vlm.runtime.canary import CanaryReport, check_canary, take_canary
from lorax_vlm.runtime.rows import BatchSize, Row, all_good, answer_rows, as_fits
from lorax_vlm.types import Generated, GenerationSettings, ModelText, require_whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    """An adapter as all rows of a call use it: found once, in one version."""

    reference: str | None
    manifest: Manifest | None


class _Reference(str):
    """``NAME@VERSION`` of an adapter that was found, with what was found: so it is read once, and never another one."""

    stored: StoredAdapter

    @classmethod
    def of(cls, stored: StoredAdapter) -> Self:
        reference = cls(stored.reference)
        reference.stored = stored
        return reference


class Found(dict[str | None, "_Asked | LoraxError"]):
    """The adapters of some calls by what they were called: found once, in one version."""


class BaseEngine:
    """A loaded base with the adapters of one store, which come into memory on first use."""

    def __init__(
        self,
        base: LoadedModel,
        store: AdapterStore,
        *,
        adapter_memory_bytes: int | None = None,
        batch_size: int = 64,
    ) -> None:
        """Start with the plain base.

        Args:
            base: The base.
            store: Where adapters are kept.
            adapter_memory_bytes: Most memory for adapters; the least recently used leave first. None: no limit.
            batch_size: Most rows per forward pass; half as many from the time on that memory does not suffice.

        Raises:
            UsageError: A number is none.
        """
        if adapter_memory_bytes is not None:
            require_whole("adapter_memory_bytes", adapter_memory_bytes, 1)
        require_whole("batch_size", batch_size, 1)
        self.base, self.store, self._size = base, store, BatchSize(batch_size)
        self._attached = AttachedAdapters(base, self._place, adapter_memory_bytes, self._read)
        self._in_use: dict[str, str] = {}
        """What names meant when they were last asked."""
        self._said: set[str] = set()
        """Adapters about which a warning was given."""
        self._trials: set[str] = set()
        self._trial_numbers = itertools.count()

    @property
    def entry(self) -> CatalogEntry:
        """The base's row of the catalogue."""
        return self.base.entry

    @property
    def batch_size(self) -> int:
        """Most rows per forward pass, as memory has allowed so far."""
        return self._size.rows

    @property
    def in_memory(self) -> list[str]:
        """``NAME@VERSION`` of the adapters in memory, least recently used first."""
        return self._attached.names

    # --- requests ---------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """A text, or an error, for each request, in their order; an adapter that cannot be used fails its own rows.

        Each text is what its request alone would get. An image that several rows name is encoded once.
        """
        return self._generate(requests, Found())

    def steady(self, found: "Found | None" = None) -> ScoringEngine:
        """This engine for several calls in which every adapter stays the version that it is when it is first asked.

        Args:
            found: What was found in former calls, to go on with. None: nothing.
        """
        return _Steady(self, Found() if found is None else found)

    def require_askable(self, requests: Sequence[Request]) -> None:
        """Raise what is wrong with the first of some requests that cannot be asked; images are not opened.

        Raises:
            LoraxError: As the result of that request would.
        """
        all_good(self._rows(requests, Found()))

    def _generate(self, requests: Sequence[Request], found: "Found") -> list[Result]:
        said = self.answer(self._rows(requests, found))
        return [
            Result(None, text)
            if isinstance(text, LoraxError)
            else Result(ModelText.of(text, self.base.name, request.adapter))
            for text, request in zip(said, requests, strict=True)
        ]

    def likelihoods(self, requests: Sequence[Request], texts: Sequence[str]) -> list[float]:
        """How likely each text is as the answer to its request; see ``ScoringEngine.likelihoods``."""
        return self._likelihoods(requests, texts, Found())

    def _likelihoods(self, requests: Sequence[Request], texts: Sequence[str], found: "Found") -> list[float]:
        require_equal_rows(requests=len(requests), texts=len(texts))
        return self.confidences(all_good(self._rows(requests, found)), texts)

    def _rows(self, requests: Sequence[Request], found: "Found") -> list[Row | LoraxError]:
        for name in distinct_adapters([request.adapter for request in requests]):
            if name not in found:
                found[name] = self._found(name)
        rows: list[Row | LoraxError] = []
        for request in requests:
            asked = found[request.adapter]
            try:
                rows.append(asked if isinstance(asked, LoraxError) else self._row(request, asked))
            except LoraxError as error:
                rows.append(error)
        return rows

    def _found(self, name: str | None) -> _Asked | LoraxError:
        """An adapter, loaded and checked, in the version that is in use now."""
        if name is None:
            return _Asked(None, None)
        try:
            reference = self._reference(name)
            asked = _Asked(reference, self._attached.get(reference).manifest)
        except LoraxError as error:
            return error
        former = self._in_use.get(name)
        self._in_use[name] = reference
        if former is not None and former != reference and former in self._attached.names:
            self._attached.detach(former)  # another version is in use now
        return asked

    def _row(self, request: Request, asked: _Asked) -> Row:
        image, question = request.single()
        how = self.ask(asked.manifest, question=question is not None)
        prompt = how.prompt() if question is None else how.prompt(require_question(question))
        self.base.family.check_prompt(prompt)
        settings = how.settings.replace(**request.decoding)
        require_decoding(self.entry, how.settings, settings)
        return Row(image, asked.reference, prompt, settings)

    def ask(self, manifest: Manifest | None, *, question: bool) -> Ask:
        """How a base or an adapter on it is asked a question, or for a caption.

        Raises:
            PromptError: An adapter that answers questions is asked for a caption.
            UsageError: A base that writes no captions is.
        """
        if question:
            if manifest is not None and captions_only(manifest):
                self._say_once(manifest.name, f"was made to write {manifest.skill}, and is asked a question")
            return ask_of(self.entry, manifest, question=True)
        require_captions(self.entry)
        return caption_ask(self.entry, manifest)

    def _say_once(self, name: str, what: str) -> None:
        if name not in self._said:
            self._said.add(name)
            logger.warning("Adapter %r %s: the base may answer better.", name, what)

    # --- adapters ---------------------------------------------------------------------------------------------------

    def reference(self, name: str) -> str:
        """``NAME@VERSION`` of an adapter in the version that is in use now, or that ``name`` asks for.

        Raises:
            AdapterNotFound: There is no such adapter; an unknown name never means the base.
            DamagedAdapter: Its entry cannot be read.
        """
        return str(self._reference(name))

    def _reference(self, name: str) -> str:
        if isinstance(name, _Reference):
            return name
        return name if name in self._trials else _Reference.of(self.store.find(name, self.entry.name))

    def _references(self, rows: Sequence[str | None]) -> list[str | None]:
        found = {name: self._reference(name) for name in distinct_adapters(rows) if name is not None}
        return [found[name] if name is not None else None for name in rows]

    def _place(self, reference: str) -> Path:
        stored = reference.stored if isinstance(reference, _Reference) else self.store.get(reference)
        return stored.folder

    def _read(self, reference: str) -> tuple[Manifest, AdapterBytes]:
        if isinstance(reference, _Reference):
            stored = reference.stored
            return stored.manifest, read_adapter(stored.folder, stored.name, stored.manifest.files)
        stored, adapter = self.store.read_bytes(reference)
        return stored.manifest, adapter

    def find(self, name: str | None) -> Attachment | None:
        """An adapter in memory, loaded and checked; None for the plain base.

        Raises:
            AdapterNotFound: There is no such adapter; an unknown name never means the base.
            AdapterError: It is damaged or does not fit the base.
        """
        return None if name is None else self._attached.get(self._reference(name))

    @contextmanager
    def trial(self, folder: Path, labels: Sequence[str] = ()) -> Iterator[str]:
        """Run a block in which a PEFT directory outside the store can be used by the name that is yielded.

        Args:
            folder: The directory.
            labels: The answers of an own head.

        Raises:
            AdapterError: It is damaged or does not fit the base.
        """
        name = f"trial of {folder.name} {next(self._trial_numbers)}"
        manifest = Manifest(name=name, skill=None, base=None, trained=True, labels=tuple(labels))
        # What is tried may turn out to do nothing: its score will say so.
        manifest = replaced(manifest, training={"best_step": 0})
        self._attached.attach(name, folder, manifest)
        self._trials.add(name)
        try:
            yield name
        finally:
            self._trials.discard(name)
            self._attached.detach(name)

    def using(self, name: str | None) -> AbstractContextManager[Any]:
        """The model with one adapter in effect, or plain for None; see ``AttachedAdapters.using``."""
        return self._attached.routed(self._references([name]))

    def routed(self, rows: Sequence[str | None]) -> AbstractContextManager[Any]:
        """The model with an adapter of its own for each row; see ``AttachedAdapters.routed``."""
        return self._attached.routed(self._references(rows))

    def answer(self, rows: Sequence[Row | LoraxError]) -> list[Generated | LoraxError]:
        """Answer prompts as they stand, in batches that memory suffices for; see ``rows.answer_rows``."""
        return answer_rows(self.generate_batch, rows, size=self._size)

    def say(self, rows: Sequence[Row]) -> list[str]:
        """The texts of ``answer``.

        Raises:
            Exception: What a batch raised; of rows that cannot be answered the first one's error.
        """
        return [text.text for text in all_good(answer_rows(self.generate_batch, rows, size=self._size, alone=False))]

    def confidences(self, rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
        """How likely each text is as the answer to its row, in batches that memory suffices for.

        Raises:
            OutOfMemory: It does not suffice for one of them.
            LoraxError: See ``ScoringEngine.likelihoods``.
        """

        def score(some: Sequence[tuple[Row, str]]) -> list[float]:
            names, prompts = [row.adapter for row, _ in some], [row.prompt for row, _ in some]
            pictures = [load_image(row.image) for row, _ in some]
            return self._attached.confidences(self._references(names), pictures, prompts, [text for _, text in some])

        return all_good(as_fits(score, list(zip(rows, texts, strict=True)), self._size))

    def generate_batch(
        self,
        rows: Sequence[str | None],
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        settings: GenerationSettings,
    ) -> list[Generated]:
        """Answer prompts as they stand, each row with its own adapter; see ``AttachedAdapters.generate``."""
        return self._attached.generate(self._references(rows), pictures, prompts, settings)

    def check(self, name: str, folder: Path, manifest: Manifest) -> tuple[AdapterBytes, CompatibilityReport]:
        """Compare a PEFT directory with the base; see ``AttachedAdapters.check``."""
        return self._attached.check(name, folder, manifest)

    def take_canary(self, adapter: AdapterBytes, manifest: Manifest) -> Canary:
        """What an adapter answers to a fixed input, to be asked again elsewhere; see ``runtime.canary``."""
        return take_canary(self._attached, adapter, manifest)

    def check_canary(self, folder: Path, manifest: Manifest) -> CanaryReport | None:
        """Ask an adapter's directory what it was asked when it was stored; None when nothing was recorded.

        Raises:
            AdapterError: It is damaged or does not fit the base.
        """
        return check_canary(self._attached, folder, manifest)

    def forget(self, name: str) -> None:
        """Take all versions of a stored adapter out of memory; calls that use them end undisturbed."""
        for reference in self._attached.names:
            if reference.rpartition("@")[0] == name:
                self._attached.detach(reference)

    def restore_base(self) -> None:
        """Take every adapter off the base; they come back on first use."""
        self._attached.detach_all()


class _Steady:
    """See ``BaseEngine.steady``."""

    def __init__(self, engine: BaseEngine, found: Found) -> None:
        self._engine, self._found = engine, found

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """See ``Engine.generate``."""
        return self._engine._generate(requests, self._found)

    def likelihoods(self, requests: Sequence[Request], texts: Sequence[str]) -> list[float]:
        """See ``ScoringEngine.likelihoods``."""
        return self._engine._likelihoods(requests, texts, self._found)


def stream(
    generate: Callable[[Sequence[Request]], Sequence[Result]], requests: Iterable[Request], window: int
) -> Iterator[Result]:
    """Results in the order of the requests, of which a window is read and answered at a time.

    Args:
        generate: Answers some; see ``Engine.generate``.
        requests: As many as there are; they may come from a file that does not fit memory.
        window: Requests that are answered together: some batches of the engine.
    """
    source, before = iter(requests), 0
    while some := list(itertools.islice(source, window)):
        yield from (_numbered(result, before) for result in generate(some))
        before += len(some)


def _numbered(result: Result, before: int) -> Result:
    """A row that failed by a fault of ours goes by its number among all, not in its window."""
    error = result.error
    return Result(None, RowFailed(before + error.row, error.error)) if isinstance(error, RowFailed) else result
