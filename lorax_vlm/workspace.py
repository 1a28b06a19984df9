"""A store of adapters and the bases that use them: what scripts, commands and the three classes are made with.

Composition only: what is done lies in the rooms below. A base is named by key, catalogue name, hub id or folder.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from lorax_vlm.adapters.ownership import adapters_of
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import require_rows
from lorax_vlm.bulk.answering import LocalAnswers, Pace
from lorax_vlm.bulk.job import BulkJob
from lorax_vlm.bulk.order import BulkWishes, Source, bulk_order
from lorax_vlm.data.images import ImageSource
from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.evaluation.results import Comparison
from lorax_vlm.exchange.merge import MergeReport, MergeWishes, merge_adapters
from lorax_vlm.exchange.moving import TransferWishes, own_base, transfer
from lorax_vlm.exchange.report import TransferReport
from lorax_vlm.measuring.comparing import compare_with_base
from lorax_vlm.models.catalog import checkpoints_by_key
from lorax_vlm.requests import Engine, Request, Result
from lorax_vlm.runtime.bases import BaseOptions, Bases
from lorax_vlm.runtime.engine import Found, stream
from lorax_vlm.settings import runs_dir
from lorax_vlm.skills import Skill
from lorax_vlm.training.progress import Show
from lorax_vlm.types import GenerationSettings, ModelText, require_known, require_texts
from lorax_vlm.workshop.making import AdapterWorkshop
from lorax_vlm.workshop.orders import AdapterOrder, Data, Wanted

BASE = "base"


class Options(BaseOptions, total=False):
    """What may be said of a workspace: of its bases, its store, and who answers instead of them."""

    store: str | Path | None
    """Where adapters live, by default the store of ``LORAX_VLM_HOME``."""
    engine: Engine | None
    """Answers all requests in the place of bases; see ``runtime.fake.FakeEngine``."""


class Workspace:
    """One store, and the bases over it.

    >>> workspace = Workspace("mini")                                                              # doctest: +SKIP
    >>> workspace.train("short", caption("concise"), base="blip2_opt")                             # doctest: +SKIP
    >>> workspace.ask("photo.png", adapter="short")                                                # doctest: +SKIP
    'a red circle'
    """

    def __init__(self, models: str | Mapping[str, str] = "hub", **options: Unpack[Options]) -> None:
        """Nothing is loaded.

        Args:
            models: What keys such as ``blip2_opt`` stand for: ``hub``, ``mini``, or other checkpoints by key.
            options: See ``Options``.

        Raises:
            UsageError: ``models`` is another word or has an unknown key, an option is unknown, or a number is none.
        """
        require_known(options, Options.__annotations__)
        self.models = checkpoints_by_key(models)
        self.store, self._engine = AdapterStore(options.get("store")), options.get("engine")
        of_bases: dict[str, Any] = {name: value for name, value in options.items() if name not in ("store", "engine")}
        self.bases = Bases(self.models, self.store, **of_bases)

    @classmethod
    def shared(cls, workspace: "Workspace | None", models: str | Mapping[str, str], options: "Options") -> "Workspace":
        """The workspace that is given, or one of its own; options beside a given one are a ``UsageError``."""
        if workspace is not None and (options or models != "hub"):
            given = ", ".join(["models"] * (models != "hub") + list(options))
            raise UsageError(f"{given}: the workspace that is given has its own. Give them to Workspace(...).")
        return workspace or cls(models, **options)

    def stored(self, name: str, base: str | None = None) -> StoredAdapter:
        """An adapter by its full name or, where only one is meant, by its own; see ``AdapterStore.resolve``."""
        return self.store.find(name, self.bases.entry(base).name if base is not None else None)

    def resolve(self, name: str, base: str | None = None) -> str:
        """The full name of an adapter, with the version that was asked for, if any."""
        return self.store.resolve(name, self.bases.entry(base).name if base is not None else None)

    def adapters(self, base: str | None = None) -> list[StoredAdapter]:
        """All adapters that can be read, or those that were made for a base or do not say for which."""
        return list(self.store.list()[0]) if base is None else adapters_of(self.store, self.bases.owner(base))

    def require_adapters(self, names: Sequence[str | None], base: str, *, rows: int = 1) -> None:
        """See ``Bases.require_adapters``; whoever answers instead of bases finds out by itself."""
        if self._engine is None:
            self.bases.require_adapters(names, base, rows=rows)

    # --- asking -----------------------------------------------------------------------------------------------------

    @contextmanager
    def engine(self, base: str, found: Found | None = None) -> Iterator[Engine]:
        """What answers requests to a base; every adapter stays the version that it is, or was ``found`` to be."""
        if self._engine is not None:
            yield self._engine
        else:
            with self.bases.use(base) as engine:
                yield engine.steady(found)

    def stream(self, requests: Iterable[Request], *, base: str, batches: int = 8) -> Iterator[Result]:
        """A text or an error for each of any number of requests to a base, in order, in bounded memory.

        Every adapter stays one version. ``batches`` are read at a time, so that rows of equal settings come together.
        """
        found = Found()

        def generate(some: Sequence[Request]) -> list[Result]:
            with self.engine(base, found) as engine:  # and lets it go while results are looked at
                return engine.generate(some)

        yield from stream(generate, requests, batches * self.bases.batch_size(self.bases.entry(base)))

    def answers(self, requests: Sequence[Request], base: str, *, return_errors: bool) -> list[ModelText | LoraxError]:
        """A text for each of some requests to a base; with ``return_errors`` the error of a bad row in its place.

        Raises:
            LoraxError: The first error; what cannot be asked is found before anything is answered. With
                ``return_errors`` one that says nothing about the row; see ``Result.text_or_error``.
        """
        alike = len({request.adapter for request in requests}) < 2
        if not return_errors and self._engine is None:
            with self.bases.use(base) as engine:
                engine.require_askable(requests)
        results = self.stream(requests, base=base, batches=1 if alike and not return_errors else 8)
        return [result.text_or_error() if return_errors else result.text for result in results]

    def ask(
        self,
        image: ImageSource,
        question: str | None = None,
        *,
        adapter: str | None = None,
        base: str | None = None,
        **decoding: Any,
    ) -> ModelText:
        """A caption of an image, or the answer to a question, by an adapter or by a base.

        Args:
            image: A path, an http(s) URL, bytes, a PIL image or a numpy array.
            question: None: a caption is asked for.
            adapter: Its name. None: the plain base.
            base: None: the adapter's own.
            decoding: Fields of ``GenerationSettings`` to change, such as ``num_beams=5``.

        Raises:
            UsageError: There is neither an adapter nor a base.
            LoraxError: It cannot be answered; why.
        """
        if adapter is not None and base is None:
            base = own_base(self.bases, self.stored(adapter))
        if base is None:
            raise UsageError("Name an adapter, or a base.")
        return self.compare(image, [adapter], question, base=base, **decoding)[adapter or BASE]

    def compare(
        self,
        image: ImageSource,
        adapters: Sequence[str | None],
        question: str | None = None,
        *,
        base: str,
        **decoding: Any,
    ) -> dict[str, ModelText]:
        """What a base (None) and adapters on it say of one image, in one batch: ``{"base": ..., name: ...}``."""
        GenerationSettings.require_fields(decoding)
        adapters = require_rows(adapters, "adapters", "ask(adapter=...)")
        self.require_adapters(adapters, base)
        with self.engine(base) as engine:
            results = engine.generate([Request.about(image, question, name, **decoding) for name in adapters])
        return {name or BASE: result.text for name, result in zip(adapters, results, strict=True)}

    def bulk(self, source: Source, adapters: Sequence[str] = (), *, base: str, **wishes: Unpack[BulkWishes]) -> BulkJob:
        """Texts about a folder, rows or a list, written as they come once the job is run; see ``bulk.order``."""
        entry = self.bases.entry(base)
        order = bulk_order(entry, self.store, source, adapters, **wishes)
        return BulkJob(order, LocalAnswers(partial(self.engine, base), Pace(self.bases.batch_size(entry))))

    # --- making -----------------------------------------------------------------------------------------------------

    def workshop(self, base: str) -> AdapterWorkshop:
        """Where adapters of a base are ordered and made, and where their runs lie."""
        return AdapterWorkshop(self.bases, base)

    def create(
        self,
        name: str,
        skill: Skill,
        *,
        base: str,
        replace: bool = False,
        progress: Show = True,
        **wanted: Unpack[Wanted],
    ) -> StoredAdapter:
        """Create an adapter for a skill, and train it at once when examples are at hand.

        The miniatures always have their scenes. Without ``data`` an adapter of any other base is stored untrained,
        which every listing says. One of this name that was made with the same skill, recipe, data and settings is used.

        Args:
            name: In the store.
            skill: ``caption("concise")``, ``answer("counting")``, ``instruct()``, ...
            base: What it is for.
            replace: Make a new version when the name exists.
            progress: True: a progress bar. Or a ``training.progress.Progress`` that is told.
            wanted: Data, recipe, settings; see ``workshop.orders.Wanted``.

        Raises:
            AdapterExists: The name is taken by a different adapter and ``replace`` is false.
            UsageError: The skill (without ``data``) or the recipe is unknown, or the base cannot learn it.
            DataError: The data have malformed rows, or are of the other kind.
            LoraxError: Training failed.
        """
        return self.workshop(base).make(name, skill, replace=replace, progress=progress, **wanted)

    def train(
        self,
        name: str,
        skill: Skill,
        *,
        base: str,
        replace: bool = False,
        resume: bool = False,
        progress: Show = True,
        **wanted: Unpack[Wanted],
    ) -> StoredAdapter:
        """Train an adapter and store it; an untrained one of that name becomes trained.

        Arguments and errors are those of ``create``; a trained adapter of that name is ``AdapterExists``, however it
        was made. ``resume`` continues the run of this name that was interrupted.
        """
        order = self.workshop(base).order(name, skill, **wanted)
        return self.train_orders(base, [order], replace=replace, resume=resume, progress=progress)[0]

    def train_orders(
        self,
        base: str,
        orders: Sequence[AdapterOrder],
        *,
        replace: bool = False,
        resume: bool = False,
        progress: Show = True,
    ) -> list[StoredAdapter]:
        """Train what was ordered for a base in one run; each adapter is what it would have become alone."""
        return self.workshop(base).train_together(orders, replace=replace, resume=resume, progress=progress)

    # --- measuring, moving ------------------------------------------------------------------------------------------

    def evaluate(
        self,
        name: str,
        *,
        data: Data | None = None,
        base: str | None = None,
        count: int = 300,
        include_seen: bool = False,
    ) -> Comparison:
        """Measure an adapter and its base on the same images, by what the adapter is for.

        Args:
            name: Of the adapter.
            data: With answers or references. None: held-out scenes, on a miniature.
            base: None: the adapter's own, which adapters of plain PEFT may not name.
            count: Of scenes.
            include_seen: Ask about images that it was trained on, too.

        Raises:
            UsageError: There is neither ``data`` nor a miniature world for its base, or it has seen all images.
        """
        stored = self.stored(name, base)
        base = base or own_base(self.bases, stored)
        return compare_with_base(self.bases, base, name, stored, data, count=count, include_seen=include_seen)

    def transfer(
        self, name: str, to: str, new_name: str | None = None, **wishes: Unpack[TransferWishes]
    ) -> TransferReport:
        """Move an adapter to another base, and keep it if it is worth anything; see ``exchange.moving.transfer``."""
        return transfer(self.bases, self.resolve(name), to, new_name, **wishes)

    def merge(
        self, names: Sequence[str], new_name: str, *, replace: bool = False, **wishes: Unpack[MergeWishes]
    ) -> tuple[StoredAdapter, MergeReport]:
        """Merge adapters of one base and store the result; see ``exchange.merge.merge_adapters``."""
        require_texts("names", names)
        if not names:
            raise UsageError("Merging needs at least two adapters, got none.")
        full = [self.resolve(name) for name in names]
        base, run_dir = own_base(self.bases, self.store.get(full[0])), runs_dir() / "merge"
        return merge_adapters(self.bases, base, full, new_name, run_dir=run_dir, replace=replace, **wishes)
