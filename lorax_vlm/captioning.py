"""Caption-style adapters on one BLIP-2: create, train, caption, compare, evaluate. Translation to ``Workspace``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions, require_captions, require_rows
from lorax_vlm.data.examples import Choice, DataSplits
from lorax_vlm.data.images import ImageSource, load_image
from lorax_vlm.data.world.captions import STYLES
from lorax_vlm.errors import LoraxError
from lorax_vlm.evaluation.results import CaptionReport, ReferenceReport
from lorax_vlm.evaluation.side_effects import SideEffects
from lorax_vlm.exchange.arrival import load_adapter
from lorax_vlm.measuring.captions import CaptionMeasurement, measure_captions, plan_captions
from lorax_vlm.measuring.effects import side_effects_on
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.paths import named_path
from lorax_vlm.requests import Request
from lorax_vlm.skills import caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.defaults import skill_config
from lorax_vlm.training.progress import Show
from lorax_vlm.types import Caption, GenerationSettings, require_flag, require_known, require_texts
from lorax_vlm.workshop.orders import AdapterOrder, Data, Making, as_splits, examples_for, orders_by_name
from lorax_vlm.workspace import BASE, Options, Workspace


class BLIP2CaptioningSystem:
    """Captioning styles as adapters on one frozen BLIP-2; ``Workspace`` says what is not said here.

    >>> system = BLIP2CaptioningSystem("blip2-opt-mini")                       # doctest: +SKIP
    >>> system.create_captioning_adapter("detailed_captions", "detailed")      # doctest: +SKIP
    >>> system.compare_captioning_styles("photo.png")                          # doctest: +SKIP
    {'base': 'a red circle', 'detailed_captions': 'a small red circle at the top left, on a gray background'}
    """

    def __init__(
        self,
        model: str = "Salesforce/blip2-opt-2.7b",
        *,
        workspace: Workspace | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Choose the base; it is loaded on first use.

        Args:
            model: Catalogue name, hub id or folder.
            workspace: One that others use, too. None: one of its own.
            options: Of its own workspace, such as ``store`` and ``device``; see ``workspace.Options``.

        Raises:
            UnknownModel: ``model`` is nothing known.
            UsageError: ``model`` cannot write captions (ViLT).
        """
        self.workspace = Workspace.shared(workspace, "hub", options)
        self.model, self.store = model, self.workspace.store
        require_captions(self.entry)

    @property
    def entry(self) -> CatalogEntry:
        """The base's row of the catalogue."""
        return self.workspace.bases.entry(self.model)

    @property
    def base(self) -> LoadedModel:
        """The base, loaded on first use.

        Raises:
            UsageError: It cannot write captions, which only loading tells of what is not on this machine.
        """
        with self.workspace.bases.use(self.model) as engine:
            require_captions(engine.entry)
            return engine.base

    def default_config(self, *, own_data: bool = False) -> TrainConfig:
        """Training settings when none are given; the miniatures' scenes need less than ``data`` of somebody's own."""
        return skill_config(self.entry, caption("plain"), own_data=own_data)

    # --- making -----------------------------------------------------------------------------------------------------

    def create_captioning_adapter(
        self, name: str, style: str, complexity: str | Recipe = "medium", **how: Unpack[Making]
    ) -> StoredAdapter:
        """Create an adapter, and train it at once when examples of the style are at hand; see ``Workspace.create``.

        Args:
            name: Name in the store.
            style: ``detailed``, ``concise``, ``creative`` or ``plain``; with ``data`` any word.
            complexity: ``light``, ``medium``, ``heavy`` or a ``Recipe``.
            how: ``data``, ``config``, ``replace`` and others; see ``workshop.orders.Making``.
        """
        require_known(how, Making.__annotations__)
        return self.workspace.create(name, caption(style), base=self.model, recipe=complexity, **how)

    def train_adapter(
        self,
        name: str,
        style: str | None = None,
        *,
        replace: bool = False,
        resume: bool = False,
        progress: Show = True,
        **wanted: Any,
    ) -> StoredAdapter:
        """Train an adapter and store it; an untrained adapter of that name becomes trained.

        Args:
            name: Name in the store.
            style: Caption style. None: the stored adapter's.
            replace: Make a new version of an adapter that is already trained.
            resume: Continue the run of this name that was interrupted.
            progress: True: a progress bar. Or a ``training.progress.Progress`` that is told.
            wanted: ``data`` (what ``read_data`` recognises, or splits; None: the miniature's scenes), ``complexity``
                (a recipe), ``config`` (steps and rates) and ``skip_bad_rows``.

        Raises:
            AdapterExists: The name is taken by a trained adapter and ``replace`` is false.
            DataError: The data have malformed rows.
            LoraxError: Training failed; see ``training.trainer.train_adapter``.
        """
        orders = [self.order(name, style, **wanted)]
        return self.workspace.train_orders(self.model, orders, replace=replace, resume=resume, progress=progress)[0]

    def train_adapters(
        self,
        styles: Mapping[str, str],
        *,
        data: Data | Mapping[str, Data | None] | None = None,
        config: TrainConfig | Mapping[str, Any] | None = None,
        replace: bool = False,
        resume: bool = False,
        progress: Show = True,
        **wanted: Any,
    ) -> list[StoredAdapter]:
        """Train several styles (by name of the adapter) in one run: passes through the frozen base serve all of them.

        Each adapter is the one that ``train_adapter`` would have made, but for rounding. Arguments are those; ``data``
        and ``config`` may go by name.

        Raises:
            UsageError: ``data`` or ``config`` goes by name and says nothing of one, or something of another.
            AdapterExists: A name is taken by a trained adapter and ``replace`` is false; nothing is trained.
            LoraxError: As ``train_adapter``; none of the adapters is stored.
        """
        orders = orders_by_name(self.order, styles, data, config, **wanted)
        return self.workspace.train_orders(self.model, orders, replace=replace, resume=resume, progress=progress)

    def order(
        self, name: str, style: str | None = None, *, complexity: str | Recipe = "medium", **wanted: Any
    ) -> AdapterOrder:
        """What ``train_adapter`` would train, with the same arguments; nothing is loaded but the data."""
        if style is None:
            style = self.store.get(name).manifest.skill_name if name in self.store else ""
        return self.workspace.workshop(self.model).order(name, caption(style), recipe=complexity, **wanted)

    def training_data(self, style: str = "", data: Data | None = None, *, skip_bad_rows: bool = False) -> DataSplits:
        """The examples that ``train_adapter`` would train on; see ``workshop.orders.examples_for``."""
        entry = self.workspace.bases.described(self.model)
        return examples_for(entry, caption(style), data, skip_bad_rows=skip_bad_rows)

    def training_curve(self, name: str) -> Path:
        """Where the last finished training of this name drew its curve."""
        return self.workspace.workshop(self.model).training_curve(name)

    # --- the store --------------------------------------------------------------------------------------------------

    def save_adapter(self, name: str, folder: str | Path) -> Path:
        """Copy an adapter out of the store as a plain PEFT directory (plus its manifest)."""
        return self.store.export(name, named_path("folder", folder))

    def load_adapter(
        self, folder: str | Path, name: str | None = None, *, replace: bool = False, prefix: str | None = None
    ) -> StoredAdapter:
        """Check a PEFT directory against this base and take it into the store; see ``workshop.intake.take_in``."""
        return load_adapter(self.workspace.bases, folder, name, base=self.model, replace=replace, prefix=prefix)

    def list_adapters(self) -> list[StoredAdapter]:
        """The store's adapters that caption and were made for this base, and those that do not say for which."""
        return [own for own in self.workspace.adapters(self.model) if not answers_questions(own.manifest)]

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter from the store, and from memory."""
        self.store.remove(name)
        self.workspace.bases.forget(name)

    # --- asking -----------------------------------------------------------------------------------------------------

    def caption_image(self, image: ImageSource, adapter: str | None = None, **decoding: Any) -> Caption:
        """Caption one image, by the plain base or by an adapter; see ``Workspace.ask``."""
        GenerationSettings.require_fields(decoding)
        return Caption.by(self.workspace.ask(image, adapter=adapter, base=self.model, **decoding), adapter)

    def caption_images(
        self, images: Sequence[ImageSource], adapter: str | None = None, *, return_errors: bool = False, **decoding: Any
    ) -> list[Caption | LoraxError]:
        """Caption images in batches, opened as their batches come; each caption is what the image alone would get.

        Args:
            images: As for ``Workspace.ask``.
            adapter: As for ``Workspace.ask``.
            return_errors: Put the error of a bad image in its place instead of raising it.
            decoding: As for ``Workspace.ask``.
        """
        require_flag("return_errors", return_errors)
        images = require_rows(images, "images", "caption_image")
        GenerationSettings.require_fields(decoding)
        self.workspace.require_adapters([adapter], self.model, rows=len(images))
        requests = [Request.about(image, None, adapter, **decoding) for image in images]
        results = self.workspace.answers(requests, self.model, return_errors=return_errors)
        return [said if isinstance(said, LoraxError) else Caption.by(said, adapter) for said in results]

    def compare_captioning_styles(
        self, image: ImageSource, adapters: Sequence[str] | None = None, **decoding: Any
    ) -> dict[str, Caption]:
        """Caption one image by the base and by each adapter (None: all of ``list_adapters``), in one batch.

        Returns:
            ``{"base": ..., name: ...}``, in that order.
        """
        names = [stored.name for stored in self.list_adapters()] if adapters is None else adapters
        require_texts("adapters", names)
        GenerationSettings.require_fields(decoding)
        said = self.workspace.compare(load_image(image), [None, *names], base=self.model, **decoding)
        return {name: Caption.by(text, None if name == BASE else name) for name, text in said.items()}

    # --- measuring --------------------------------------------------------------------------------------------------

    def evaluate_adapter(
        self, name: str | None = None, style: str | None = None, **asked: Any
    ) -> CaptionReport | ReferenceReport:
        """Measure an adapter, or the base for None; arguments as for ``evaluate_adapters``."""
        return self.evaluate_adapters([name] if name is not None else [], style, with_base=name is None, **asked)[0]

    def evaluate_adapters(
        self,
        names: Sequence[str] | None = None,
        style: str | None = None,
        *,
        data: Data | None = None,
        count: int = 300,
        with_base: bool = True,
        split: Choice = "all",
        include_seen: bool = False,
    ) -> list[CaptionReport | ReferenceReport]:
        """Measure several adapters and, beside them, the base judged by each of their styles, on the same images.

        On the miniatures' test scenes form and content of every caption are judged against the truth. With ``data``
        captions are compared with its own.

        Args:
            names: Adapters. None: all of ``list_adapters``, less ``own_styles`` without ``data`` and ``style``.
            style: Style to judge by. None: the adapter's own, ``plain`` for the base.
            data: Folder or splits with reference captions.
            count: Number of test scenes.
            with_base: Measure the plain base too.
            split: With ``data``: which of its examples, as training divides them.
            include_seen: Caption the images that one of them was trained on, too.

        Raises:
            UsageError: There is neither ``data`` nor a miniature world for this base, an adapter has a style of its own
                and ``style`` is None, or all images were trained on.
        """
        if names is None:
            own = set() if style or data is not None else set(self.own_styles())
            names = [stored.name for stored in self.list_adapters() if stored.name not in own]
        require_texts("names", names)
        adapters = {name: self.workspace.stored(name, self.model) for name in names}
        splits = as_splits(data) if data is not None else None
        wanted = CaptionMeasurement(adapters, style, splits, split, count, with_base, include_seen)
        planned = plan_captions(self.entry, wanted)
        with self.workspace.bases.use(self.model) as engine:
            return measure_captions(engine, planned)

    def own_styles(self) -> list[str]:
        """Those of ``list_adapters`` whose style drawn scenes have no captions in, so that they need ``data``."""
        return [stored.name for stored in self.list_adapters() if stored.manifest.skill_name not in STYLES]

    def side_effects(self, name: str) -> SideEffects | None:
        """What an adapter does to skills that it was not trained for; see ``measuring.effects``."""
        return side_effects_on(self.workspace.bases, self.model, self.workspace.stored(name, self.model))
