"""Caption-style adapters on one BLIP-2: create, train, caption, compare, evaluate. Composition only."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace as replaced
from functools import partial
from pathlib import Path
from typing import Any

from lorax_vlm import asking
from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.recipe import Recipe, get_recipe
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.data.examples import Choice, DataSplits, Example
from lorax_vlm.data.images import ImageSource, load_image
from lorax_vlm.data.scene_captions import STYLES, require_style
from lorax_vlm.data.scene_examples import drawn_example
from lorax_vlm.data.scene_tasks import skill_splits
from lorax_vlm.data.scenes import Scene, iterate_scenes
from lorax_vlm.data.sources import read_parts
from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.evaluation.captions import (
    grouped_by_image,
    judge_reference_captions,
    judge_scene_captions,
    style_on_scenes,
)
from lorax_vlm.evaluation.opening import readable, sources_in_turn
from lorax_vlm.evaluation.reference_loss import reference_loss
from lorax_vlm.evaluation.reports import CaptionReport, ReferenceReport
from lorax_vlm.evaluation.seen import Asked
from lorax_vlm.evaluation.side_effects import SideEffects
from lorax_vlm.measuring import side_effects, unseen_examples
from lorax_vlm.models.catalog import CatalogEntry, get_model_entry
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.models.placement import Device, Precision, Quantization
from lorax_vlm.paths import named_path
from lorax_vlm.runtime.library import AdapterLibrary
from lorax_vlm.runtime.rows import Row, answer_rows
from lorax_vlm.skills import caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.defaults import skill_config
from lorax_vlm.types import Caption, GenerationSettings, require_texts, require_whole
from lorax_vlm.workshop.making import AdapterWorkshop
from lorax_vlm.workshop.orders import AdapterKind, AdapterOrder, by_name, training_examples

BASE = "base"


class BLIP2CaptioningSystem:
    """Captioning styles as adapters on one frozen BLIP-2.

    >>> system = BLIP2CaptioningSystem("blip2-opt-mini")                       # doctest: +SKIP
    >>> system.create_captioning_adapter("detailed_captions", "detailed")      # doctest: +SKIP
    >>> system.compare_captioning_styles("photo.png")                          # doctest: +SKIP
    {'base': 'a red circle', 'detailed_captions': 'a small red circle at the top left, on a gray background'}
    """

    def __init__(
        self,
        model: str = "Salesforce/blip2-opt-2.7b",
        *,
        store: str | Path | None = None,
        device: Device = "auto",
        dtype: Precision = "auto",
        quantize: Quantization = "auto",
        batch_size: int | None = None,
        adapter_memory_bytes: int | None = None,
    ) -> None:
        """Choose the base; it is loaded on first use.

        Args:
            model: Catalogue name, hub id or folder.
            store: Where adapters live, by default the store of ``LORAX_VLM_HOME``.
            device: ``auto`` takes CUDA when there is one.
            dtype: ``auto``: see ``models/placement.py``.
            quantize: ``auto``: 4 bits on CUDA, none on a CPU.
            batch_size: Images per forward pass. None: 32, of a miniature 128.
            adapter_memory_bytes: Most memory for adapters; the least recently used leave first. None: no limit.

        Raises:
            UnknownModel: ``model`` is nothing known.
            UsageError: ``model`` cannot write captions (ViLT).
        """
        self.entry = get_model_entry(model)
        asking.require_captions(self.entry)
        self.store = AdapterStore(store)
        self.batch_size = batch_size if batch_size is not None else 128 if self.entry.miniature else 32
        require_whole("batch_size", self.batch_size, 1)
        load = partial(load_model, model, device=device, dtype=dtype, quantize=quantize)
        self._library = AdapterLibrary(self.entry, load, self.store, adapter_memory_bytes)
        self._workshop = AdapterWorkshop(self._library)

    @property
    def base(self) -> LoadedModel:
        """The base, loaded on first use.

        Raises:
            UsageError: It cannot write captions, which only loading tells of what is not on this machine.
        """
        base = self._library.base
        asking.require_captions(base.entry)
        self.entry = base.entry
        return base

    def _described(self) -> CatalogEntry:
        """The base with its prompts; one that is not on this machine is loaded for them."""
        return self.entry if self.entry.family else self.base.entry

    @property
    def default_config(self) -> TrainConfig:
        """Training settings when none are given."""
        return skill_config(self.entry, caption("plain"))

    def create_captioning_adapter(
        self,
        name: str,
        style: str,
        complexity: str | Recipe = "medium",
        *,
        data: str | Path | DataSplits | None = None,
        config: TrainConfig | None = None,
        replace: bool = False,
        progress: bool = True,
    ) -> StoredAdapter:
        """Create an adapter and train it at once when examples of the style are at hand.

        The miniatures always have their scenes. Any other base needs ``data``; without it the adapter is stored
        untrained, which is the identity, and every listing says so. An adapter of this name that was made with the same
        style, recipe, data and settings is used as it is.

        Args:
            name: Name in the store.
            style: Caption style: ``detailed``, ``concise``, ``creative`` or ``plain``; with ``data`` any word.
            complexity: ``light``, ``medium``, ``heavy`` or a ``Recipe``.
            data: As for ``train_adapter``.
            config: As for ``train_adapter``.
            replace: Make a new version when the name exists.
            progress: Show a progress bar.

        Raises:
            AdapterExists: The name is taken by a different adapter and ``replace`` is false.
            UsageError: The style (without ``data``) or the complexity is unknown.
        """
        splits = self.training_data(style, data) if data is not None or self.entry.miniature else None
        if splits is None:
            require_style(style)
        return self._workshop.create(
            name,
            self._kind(style),
            get_recipe(complexity),
            splits,
            self.default_config if config is None else config,
            replace=replace,
            progress=progress,
        )

    def train_adapter(
        self,
        name: str,
        style: str | None = None,
        *,
        data: str | Path | DataSplits | None = None,
        complexity: str | Recipe = "medium",
        config: TrainConfig | None = None,
        replace: bool = False,
        resume: bool = False,
        skip_bad_rows: bool = False,
        progress: bool = True,
    ) -> StoredAdapter:
        """Train an adapter and store it; an untrained adapter of that name becomes trained.

        Args:
            name: Name in the store.
            style: Caption style. None: the stored adapter's.
            data: What ``read_data`` recognises, or splits made by hand. None: the scenes of the miniature world.
            complexity: ``light``, ``medium``, ``heavy`` or a ``Recipe``.
            config: Steps and rates. None: defaults for the base.
            replace: Make a new version of an adapter that is already trained.
            resume: Continue the run of this name that was interrupted.
            skip_bad_rows: Leave out malformed rows, and texts that do not fit the model.
            progress: Show a progress bar.

        Raises:
            AdapterExists: The name is taken by a trained adapter and ``replace`` is false.
            DataError: The folder has malformed rows.
            LoraxError: Training failed; see ``training.trainer.train_adapter``.
        """
        order = self.order(name, style, data=data, complexity=complexity, config=config, skip_bad_rows=skip_bad_rows)
        return self._workshop.train(order, replace=replace, resume=resume, progress=progress)

    def train_adapters(
        self,
        styles: Mapping[str, str],
        *,
        data: str | Path | DataSplits | Mapping[str, str | Path | DataSplits | None] | None = None,
        complexity: str | Recipe = "medium",
        config: TrainConfig | Mapping[str, TrainConfig] | None = None,
        replace: bool = False,
        resume: bool = False,
        skip_bad_rows: bool = False,
        progress: bool = True,
    ) -> list[StoredAdapter]:
        """Train several styles in one run: every pass through the frozen base serves all of them.

        Each adapter is the one that ``train_adapter`` would have made, but for rounding. Arguments are those, and:

        Args:
            styles: Style by name of the adapter.
            data: One for all, or by name.
            config: One for all, or by name. None: defaults for the base.

        Raises:
            UsageError: ``data`` or ``config`` goes by name and says nothing of one, or something of another.
            AdapterExists: A name is taken by a trained adapter and ``replace`` is false; nothing is trained.
            LoraxError: As ``train_adapter``; none of the adapters is stored.
        """
        sources, configs = by_name("data", data, styles), by_name("config", config, styles)
        orders = [
            self.order(
                name,
                style,
                data=sources[name],
                complexity=complexity,
                config=configs[name],
                skip_bad_rows=skip_bad_rows,
            )
            for name, style in styles.items()
        ]
        return self._workshop.train_together(orders, replace=replace, resume=resume, progress=progress)

    def order(
        self,
        name: str,
        style: str | None = None,
        *,
        data: str | Path | DataSplits | None = None,
        complexity: str | Recipe = "medium",
        config: TrainConfig | None = None,
        skip_bad_rows: bool = False,
    ) -> AdapterOrder:
        """What ``train_adapter`` would train, with the same arguments; nothing is loaded but the data."""
        if style is None:
            style = self.store.get(name).manifest.skill_name if name in self.store else ""
        splits = self.training_data(style, data, skip_bad_rows=skip_bad_rows)
        config = self.default_config if config is None else config
        return AdapterOrder(name, self._kind(style), get_recipe(complexity), splits, config, skip_bad_rows)

    def _kind(self, style: str) -> AdapterKind:
        entry = self._described()
        return AdapterKind(caption(style), asking.ask_for(entry, caption(style)))

    def training_data(
        self, style: str = "", data: str | Path | DataSplits | None = None, *, skip_bad_rows: bool = False
    ) -> DataSplits:
        """The examples that ``train_adapter`` would train on, with the base's caption prompt.

        Raises:
            DataError: The data have malformed rows, or are questions.
            UsageError: There is no ``data`` and this base has no scenes, or the style is unknown.
        """
        drawn = partial(skill_splits, caption(require_style(style))) if data is None and self.entry.miniature else None
        return training_examples(self._described(), "captions", data, drawn, skip_bad_rows=skip_bad_rows)

    def training_curve(self, name: str) -> Path:
        """Where the last finished training of this name drew its curve."""
        return self._workshop.training_curve(name)

    def save_adapter(self, name: str, folder: str | Path) -> Path:
        """Copy an adapter out of the store as a plain PEFT directory (plus its manifest).

        Raises:
            AdapterNotFound: There is none.
            AdapterExists: ``folder`` is not empty.
        """
        return self.store.export(name, named_path("folder", folder))

    def load_adapter(
        self, folder: str | Path, name: str | None = None, *, replace: bool = False, prefix: str | None = None
    ) -> StoredAdapter:
        """Check a PEFT directory against this base and take it into the store; see ``AdapterLibrary.load``."""
        return self._library.load(named_path("folder", folder), name, replace=replace, prefix=prefix)

    def list_adapters(self) -> list[StoredAdapter]:
        """The store's adapters that caption and were made for this base, and those that do not say for which.

        Adapters that answer questions or instructions are left out.
        """
        return [stored for stored in self._library.list() if not asking.answers_questions(stored.manifest)]

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter from the store.

        Raises:
            AdapterNotFound: There is none.
        """
        self._library.remove(name)

    def caption_image(self, image: ImageSource, adapter: str | None = None, **decoding: Any) -> Caption:
        """Caption one image, by the plain base or by an adapter.

        Args:
            image: A path, an http(s) URL, bytes, a PIL image or a numpy array.
            adapter: Name in the store, None for the base.
            decoding: Fields of ``GenerationSettings`` to change, such as ``num_beams=5``.

        Raises:
            ImageError: The image cannot be read.
            AdapterNotFound: There is no such adapter; an unknown name never means the base.
        """
        return _captions(self.caption_images([image], adapter, **decoding))[0]

    def caption_images(
        self,
        images: Sequence[ImageSource],
        adapter: str | None = None,
        *,
        return_errors: bool = False,
        **decoding: Any,
    ) -> list[Caption | LoraxError]:
        """Caption images in batches; each caption is what the image alone would get. See ``caption_image``.

        Args:
            images: As for ``caption_image``; they are opened as their batches come.
            adapter: As for ``caption_image``.
            return_errors: Put the error of a bad image in its place instead of raising it.
            decoding: As for ``caption_image``.
        """
        images = asking.require_rows(images, "images", "caption_image")
        self._library.require(adapter)
        return self._caption(images, [adapter] * len(images), decoding, return_errors=return_errors)

    def compare_captioning_styles(
        self, image: ImageSource, adapters: Sequence[str] | None = None, **decoding: Any
    ) -> dict[str, Caption]:
        """Caption one image by the base and by each adapter, in one batch. The image is encoded once.

        Only adapters that change the image path itself look at the image anew.

        Args:
            image: As for ``caption_image``.
            adapters: Names. None: all of ``list_adapters``.
            decoding: Fields of ``GenerationSettings`` to change for all; otherwise each style has its own.

        Returns:
            ``{"base": ..., name: ...}``, in that order.
        """
        names = [stored.name for stored in self.list_adapters()] if adapters is None else adapters
        require_texts("adapters", names)
        rows = [None, *names]
        captions = _captions(self._caption([load_image(image)] * len(rows), rows, decoding))
        return {name or BASE: caption for name, caption in zip(rows, captions, strict=True)}

    def _caption(
        self,
        images: Sequence[ImageSource],
        adapters: Sequence[str | None],
        decoding: Mapping[str, Any],
        *,
        return_errors: bool = False,
    ) -> list[Caption | LoraxError]:
        """One caption per image and its adapter; rows of equal settings share batches."""
        base = self.base
        asked = {name: self._asked(name) for name in asking.distinct_adapters(adapters)}
        asks = {n: asking.caption_ask(base.entry, manifest) for n, manifest in asked.items()}
        settings = {name: how.settings.replace(**decoding) for name, how in asks.items()}
        rows = [Row(image, n, asks[n].prompt(), settings[n]) for image, n in zip(images, adapters, strict=True)]
        said = answer_rows(self._library, rows, batch_size=self.batch_size, return_errors=return_errors)
        return [
            text if isinstance(text, LoraxError) else Caption.of(text, base.name, name)
            for text, name in zip(said, adapters, strict=True)
        ]

    def _asked(self, adapter: str | None) -> Manifest | None:
        attachment = self._library.find(adapter)
        return attachment.manifest if attachment is not None else None

    def _settings(self, adapter: str | None) -> GenerationSettings:
        return asking.ask_of(self.base.entry, self._asked(adapter), question=False).settings

    def evaluate_adapter(
        self,
        name: str | None = None,
        style: str | None = None,
        *,
        data: str | Path | DataSplits | None = None,
        count: int = 300,
        split: Choice = "all",
        include_seen: bool = False,
    ) -> CaptionReport | ReferenceReport:
        """Measure an adapter, or the base for None.

        On the miniatures' test scenes form and content of every caption are judged against the truth. With ``data``
        captions are compared with its own, of all images that the adapter was not trained on.

        Args:
            name: Adapter, or None for the base.
            style: Style to judge by. None: the adapter's own, ``plain`` for the base.
            data: Folder or splits with reference captions.
            count: Number of test scenes.
            split: With ``data``: which of its examples, as training divides them.
            include_seen: Caption the images that the adapter was trained on, too.

        Raises:
            UsageError: There is neither ``data`` nor a miniature world for this base, or the adapter has a style of its
                own and ``style`` is None, or it was trained on all images.
        """
        given: dict[str, Any] = {"data": data, "count": count, "split": split, "include_seen": include_seen}
        return self.evaluate_adapters([name] if name is not None else [], style, with_base=name is None, **given)[0]

    def evaluate_adapters(
        self,
        names: Sequence[str] | None = None,
        style: str | None = None,
        *,
        data: str | Path | DataSplits | None = None,
        count: int = 300,
        with_base: bool = True,
        split: Choice = "all",
        include_seen: bool = False,
    ) -> list[CaptionReport | ReferenceReport]:
        """Measure several adapters and, beside them, the base judged by each of their styles, on the same images.

        Args:
            names: Adapters. None: all of ``list_adapters``, less ``own_styles`` without ``data`` and ``style``.
            style: As for ``evaluate_adapter``.
            data: As for ``evaluate_adapter``.
            count: As for ``evaluate_adapter``.
            with_base: Measure the plain base too.
            split: As for ``evaluate_adapter``.
            include_seen: As for ``evaluate_adapter``; images that any of them was trained on are left out for all.

        Raises:
            UsageError: As for ``evaluate_adapter``.
        """
        if names is None:
            own = set() if style or data is not None else set(self.own_styles())
            names = [stored.name for stored in self.list_adapters() if stored.name not in own]
        require_texts("names", names)
        if data is not None:
            splits = data if isinstance(data, DataSplits) else read_parts(data)
            splits = splits.require_kind("captions").with_prompt(self._described().caption_prompt)
            asked = self._unseen(names, list(splits.select(split)), include_seen)
            every = ([None] if with_base else []) + [*names]
            return [self._evaluate_on_references(name, asked, splits.source) for name in every]
        scenes = self._test_scenes(count)  # drawn once for all
        drawn = self._unseen(names, [drawn_example(scene.seed) for scene in scenes], include_seen)
        left = {example.name for example in drawn.examples}
        scenes = [scene for scene in scenes if drawn_example(scene.seed).name in left]
        styles = {name: style or self._style(name) for name in names}
        reports = [
            replaced(report, seen=drawn.of(name))
            for name in names
            for report in self._evaluate_on_scenes(name, [styles[name]], scenes)
        ]
        judged = list(dict.fromkeys(["plain", *styles.values()] if names else [style or "plain"]))
        return [*(self._evaluate_on_scenes(None, judged, scenes) if with_base else []), *reports]

    def _unseen(self, names: Sequence[str], examples: Sequence[Example], include_seen: bool) -> Asked:
        return unseen_examples([(self._library, name) for name in names], examples, include_seen=include_seen)

    def own_styles(self) -> list[str]:
        """Those of ``list_adapters`` whose style drawn scenes have no captions in, so that they need ``data``."""
        return [stored.name for stored in self.list_adapters() if stored.manifest.skill_name not in STYLES]

    def side_effects(self, name: str) -> SideEffects | None:
        """What an adapter does to skills that it was not trained for; see ``measuring.side_effects``."""
        return side_effects(self._library, self.store.get(self._library.resolve(name)))

    def _style(self, name: str | None) -> str:
        attachment = self._library.find(name)
        return style_on_scenes(name or BASE, attachment.manifest.skill_name) if attachment else "plain"

    def _test_scenes(self, count: int) -> list[Scene]:
        if not self.entry.miniature:
            raise UsageError(f"{self.entry.name} has no built-in test scenes. Pass data=FOLDER with a metadata.jsonl.")
        return list(iterate_scenes("test", count))

    def _evaluate_on_scenes(
        self, name: str | None, styles: Sequence[str], scenes: Sequence[Scene]
    ) -> list[CaptionReport]:
        start = time.monotonic()
        captions = _captions(self.caption_images([scene.image for scene in scenes], name))
        facts = self._report_facts(name, time.monotonic() - start)
        return [judge_scene_captions(captions, scenes, style, **facts) for style in styles]

    def _evaluate_on_references(self, name: str | None, asked: Asked, source: str) -> ReferenceReport:
        images, start, captions = grouped_by_image(asked.examples), time.monotonic(), []
        firsts = [same[0] for same in images]
        for chunk in sources_in_turn(firsts, range(len(firsts))):
            captions += _captions(self.caption_images([readable(source) for _, source in chunk], name))
        facts = self._report_facts(name, time.monotonic() - start)
        prompt = asking.caption_ask(self.base.entry, self._asked(name)).prompt()
        references = [example for same in images for example in same]
        loss = reference_loss(self.base, lambda: self._library.using(name), prompt, references, self.batch_size)
        report = judge_reference_captions(captions, loss, images, source=source, **facts)
        return replaced(report, seen=asked.of(name))

    def _report_facts(self, name: str | None, time_s: float) -> dict[str, Any]:
        return {"base": self.entry.name, "adapter": name, "settings": self._settings(name), "time_s": time_s}


def _captions(said: Sequence[Caption | LoraxError]) -> list[Caption]:
    """Captions of a call that raises its errors."""
    return [caption for caption in said if isinstance(caption, Caption)]
