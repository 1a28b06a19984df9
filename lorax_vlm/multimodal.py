"""Adapters across models: create, save, load, check, exchange, transfer, merge. Composition only."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lorax_vlm.adapters.compatibility import CompatibilityReport, check_compatibility
from lorax_vlm.adapters.recipe import Recipe, get_recipe
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions, ask_for, ask_of
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.images import ImageSource, load_image
from lorax_vlm.data.scene_tasks import require_exchange_task, skill_examples, skill_splits
from lorax_vlm.data.sources import read_data
from lorax_vlm.errors import LoraxError, PromptError, UsageError
from lorax_vlm.evaluation.intervals import mean_interval, numbers_of, paired_difference
from lorax_vlm.evaluation.reports import TaskReport
from lorax_vlm.exchange.bundle import SUFFIX, pack, receive, unpacked
from lorax_vlm.exchange.matrix import CompatibilityMatrix, build_matrix
from lorax_vlm.exchange.merge import MergeReport, Method, merge_adapters
from lorax_vlm.exchange.page import write_exchange_page
from lorax_vlm.exchange.plan import TransferPlan, plan_transfer
from lorax_vlm.exchange.report import TransferReport
from lorax_vlm.exchange.scene_data import drawn_images, scene_transfer_data
from lorax_vlm.exchange.swap import Direction, ExchangeReport, exchange_adapters
from lorax_vlm.exchange.teacher import answer as answers_of
from lorax_vlm.exchange.transfer import QUICK_SHARE, TransferOptions, transfer_adapter
from lorax_vlm.exchange.transfer_data import TransferData, judge_all, judge_by_target, read_transfer_data
from lorax_vlm.measuring import unseen_examples
from lorax_vlm.models.catalog import CatalogEntry, checkpoints_by_key
from lorax_vlm.models.description import BaseDescription
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.models.placement import Device, Precision, Quantization
from lorax_vlm.paths import named_path
from lorax_vlm.runtime.library import AdapterLibrary
from lorax_vlm.runtime.shelf import BaseShelf
from lorax_vlm.settings import runs_dir
from lorax_vlm.skills import Skill, answer
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.defaults import skill_config
from lorax_vlm.types import ModelText, require_text, require_texts, require_whole
from lorax_vlm.workshop.making import AdapterWorkshop
from lorax_vlm.workshop.orders import AdapterKind


class MultiModalLoRAExchange:
    """Adapters of several models in one store: checked against every base, moved between them with a measured result.

    >>> system = MultiModalLoRAExchange(models="mini")                                             # doctest: +SKIP
    >>> key = system.create_adapter("blip2_opt", "image_caption", "captioning", "medium")           # doctest: +SKIP
    >>> key                                                                                         # doctest: +SKIP
    'blip2-opt-mini.image_caption'
    >>> system.cross_model_adapter_transfer(key, "blip2_flan").lines()                              # doctest: +SKIP

    A key is the adapter's name in the store: ``MODEL.NAME``.
    """

    def __init__(
        self,
        models: str | Mapping[str, str] = "hub",
        *,
        store: str | Path | None = None,
        device: Device = "auto",
        dtype: Precision = "auto",
        quantize: Quantization = "auto",
        memory_budget_bytes: int | None = None,
        adapter_memory_bytes: int | None = None,
    ) -> None:
        """Choose what the model keys stand for; bases are loaded on first use, one at a time if memory is short.

        Args:
            models: ``hub``, ``mini``, or other checkpoints (hub ids or folders) by key; other keys stay the hub's.
            store: Where adapters live, by default the store of ``LORAX_VLM_HOME``.
            device: ``auto`` takes CUDA when there is one.
            dtype: ``auto``: see ``models/placement.py``.
            quantize: ``auto``: 4 bits on CUDA, none on a CPU.
            memory_budget_bytes: Most memory for all bases; the least recently used leaves. None: what is free.
            adapter_memory_bytes: Most memory for the adapters of each base. None: no limit.

        Raises:
            UsageError: ``models`` is another word, or has an unknown key.
        """
        self.models = checkpoints_by_key(models)
        self.store = AdapterStore(store)
        self._shelf = BaseShelf(
            self.models,
            self.store,
            budget_bytes=memory_budget_bytes,
            adapter_memory_bytes=adapter_memory_bytes,
            device=device,
            dtype=dtype,
            quantize=quantize,
        )

    def entry(self, model: str) -> CatalogEntry:
        """The checkpoint behind a key, a catalogue name, a hub id or a folder.

        Raises:
            UnknownModel: It is none of these.
        """
        return self._shelf.entry(model)

    def base(self, model: str) -> LoadedModel:
        """A base, loaded on first use.

        Raises:
            OutOfMemoryForecast: It would not fit; said before anything is downloaded.
        """
        return self._shelf.load(self._shelf.library(model))

    def default_config(self, model: str, task: str, steps: int | None = None, *, own_data: bool = False) -> TrainConfig:
        """Training settings when none are given, perhaps with another number of steps.

        Args:
            model: Key, catalogue name, hub id or folder.
            task: As for ``create_adapter``.
            steps: Another number of them.
            own_data: Whether there will be ``data``; the miniatures' scenes need less.
        """
        config = skill_config(self.entry(model), require_exchange_task(task), own_data=own_data)
        return config.with_steps(steps) if steps is not None else config

    def _owner(self, stored: StoredAdapter) -> AdapterLibrary:
        """The library of the base that an adapter was made for."""
        base = stored.manifest.base
        if base is None:
            raise LoraxError(
                f"Adapter {stored.name!r} does not say which base it is for. Import it again for one: "
                "lorax-vlm adapters import FOLDER --model MODEL"
            )
        return self._shelf.library_of(base.name)

    def create_adapter(
        self,
        model: str,
        name: str,
        task: str,
        complexity: str | Recipe = "medium",
        *,
        data: str | Path | DataSplits | None = None,
        config: TrainConfig | None = None,
        replace: bool = False,
        progress: bool = True,
    ) -> str:
        """Create an adapter, train it at once when examples are at hand, and return its key.

        The miniatures always have their scenes. Any other base needs ``data``; without it the adapter is stored
        untrained, which is the identity, and every listing says so.

        Args:
            model: Key, catalogue name, hub id or folder.
            name: Name of the adapter; several models may have one of the same name.
            task: ``captioning``, ``vqa``, ``instruction_following``, ``complex_reasoning`` or ``general``.
            complexity: ``light`` (rank 4, query and value), ``medium`` (8, attention), ``heavy`` (16, and the MLP),
                ``portable`` (8, vision encoder only) or a ``Recipe``.
            data: Splits, or what ``read_data`` recognises.
            config: Steps and rates. None: defaults for the base and the task.
            replace: Make a new version when the name exists.
            progress: Show a progress bar.

        Raises:
            AdapterExists: The name is taken by a different adapter and ``replace`` is false.
            UsageError: The task or the complexity is unknown, or the model cannot do the task.
            LoraxError: Training failed.
        """
        entry, recipe = self._shelf.described(model), get_recipe(complexity)
        skill = require_exchange_task(task, writes=entry.captions)
        splits = self._training_data(entry, skill, data)
        return (
            AdapterWorkshop(self._shelf.library(model))
            .create(
                f"{entry.name}.{name}",
                AdapterKind(skill, ask_for(entry, skill)),
                recipe,
                splits,
                self.default_config(model, task, own_data=data is not None) if config is None else config,
                replace=replace,
                progress=progress,
            )
            .name
        )

    def _training_data(
        self, entry: CatalogEntry, skill: Skill, data: str | Path | DataSplits | None
    ) -> DataSplits | None:
        if data is None:
            if not entry.miniature:
                return None
            splits = skill_splits(skill)
        else:
            splits = data.require_trainable() if isinstance(data, DataSplits) else read_data(data)
        splits = splits.require_kind("questions" if skill.asked else "captions")
        return splits.with_prompt(ask_for(entry, skill).template)

    def save_adapter(self, key: str, target: str | Path) -> Path:
        """Copy an adapter out of the store: a plain PEFT folder with its manifest, or one file called ``....lorax``.

        Raises:
            AdapterNotFound: There is none.
            AdapterExists: There is something at ``target`` already.
        """
        path = named_path("target", target)
        return pack(self.store.get(key), path) if path.suffix == SUFFIX else self.store.export(key, path)

    def load_adapter(
        self,
        source: str | Path,
        name: str | None = None,
        *,
        model: str | None = None,
        replace: bool = False,
        prefix: str | None = None,
    ) -> str:
        """Take a folder or a ``.lorax`` bundle into the store, checked; returns its key.

        Args:
            source: Saved here, or by plain PEFT.
            name: Name in the store. None: its own.
            model: The base to check it against at once. It is needed for a folder without a manifest, which does not
                say which base it is for.
            replace: Make a new version when the name exists.
            prefix: As for ``AdapterLibrary.load``; it needs a model.

        Raises:
            UsageError: There is a ``prefix`` and no ``model``.
            AdapterError: It is damaged, unsupported, untrained or for another base; nothing is stored.
        """
        if prefix is not None and model is None:
            raise UsageError("prefix needs the model that the adapter is for: model=NAME.")
        path = named_path("source", source)
        if path.suffix == SUFFIX:
            with unpacked(path) as folder:
                return self._take_in(folder, name, model, replace, prefix)
        return self._take_in(path, name, model, replace, prefix)

    def _take_in(self, folder: Path, name: str | None, model: str | None, replace: bool, prefix: str | None) -> str:
        if model is None:
            return receive(self.store, folder, name, replace=replace).name
        library = self._shelf.library(model)
        self._shelf.load(library)
        return library.load(folder, name, replace=replace, prefix=prefix).name

    def list_adapters(self, model: str | None = None, task: str | None = None) -> list[StoredAdapter]:
        """The store's adapters: all, or those of a model or a task."""
        if model is None:
            return list(self.store.search(task=task))
        known = self._shelf.library(model).known_components
        return list(self.store.search(base=self.entry(model).identity, task=task, components=known))

    def remove_adapter(self, key: str) -> None:
        """Remove an adapter with all its versions.

        Raises:
            AdapterNotFound: There is none.
        """
        self.store.remove(key)

    def generate_with_adapter(
        self, key: str, image: ImageSource, text: str = "", *, compare: bool = False, **decoding: object
    ) -> ModelText | dict[str, ModelText]:
        """Caption an image, or answer a question or an instruction about it, with an adapter on its own base.

        Args:
            key: Of the adapter.
            image: A path, an http(s) URL, bytes, a PIL image or a numpy array.
            text: The question or instruction; empty for a caption.
            compare: Give the plain base's text beside it, as ``{"base": ..., key: ...}``.
            decoding: Fields of ``GenerationSettings`` to change, such as ``num_beams=5``.

        Raises:
            ImageError: The image cannot be read.
            PromptError: The adapter answers questions and there is none, or the base writes no captions.
            AdapterNotFound: There is no such adapter.
        """
        require_text("text", text)
        stored, picture = self.store.get(key), load_image(image)
        library = self._owner(stored)
        if not text.strip() and (answers_questions(stored.manifest) or not library.entry.captions):
            raise PromptError("an empty question", f"adapter {key!r} answers questions; pass one.")
        base = self._shelf.load(library)
        how = ask_of(library.entry, stored.manifest, question=bool(text.strip()))
        rows: list[str | None] = [None, stored.reference] if compare else [stored.reference]
        prompt, settings = how.prompt(text.strip()), how.settings.replace(**decoding)
        base.family.check_prompt(prompt)
        said = library.generate(rows, [picture] * len(rows), [prompt] * len(rows), settings)
        names = [key if row else None for row in rows]
        texts = [ModelText.of(text, base.name, name) for text, name in zip(said, names, strict=True)]
        return {name or "base": text for name, text in zip(names, texts, strict=True)} if compare else texts[0]

    def evaluate_adapter(
        self,
        key: str,
        *,
        task: str | None = None,
        examples: Sequence[Example] | None = None,
        count: int = 300,
        include_seen: bool = False,
    ) -> TaskReport:
        """Measure an adapter and its base on the same examples: exact answers, with paired intervals.

        Args:
            key: Of the adapter.
            task: Task of the scenes. None: the adapter's own.
            examples: With targets. None: ``count`` held-out scenes of the miniature world.
            count: Number of scenes.
            include_seen: Ask about images that it was trained on, too.

        Raises:
            UsageError: There are neither ``examples`` nor a miniature world for this base, or it has seen all of them.
        """
        stored = self.store.get(key)
        library = self._owner(stored)
        skill = require_exchange_task(task) if task is not None else stored.manifest.skill
        if examples is None and skill is None:
            raise UsageError(f"Adapter {key!r} does not say what it is for. Name a task=, or pass examples=.")
        if examples is None and skill is not None:
            if not library.entry.miniature:
                raise UsageError(f"{library.entry.name} has no built-in test examples. Pass examples=.")
            examples = skill_examples(skill, "test", count)
        assert examples is not None
        asked = unseen_examples([(library, key)], examples, include_seen=include_seen)
        examples = asked.examples
        self._shelf.load(library)
        settings = ask_of(library.entry, stored.manifest, question=answers_questions(stored.manifest)).settings
        scores = [
            judge_all(judge_by_target, examples, answers_of(library, name, examples, settings))
            for name in (None, stored.reference)
        ]
        units = numbers_of(example.unit for example in examples)
        return TaskReport(
            adapter=key,
            base=library.entry.name,
            task=str(skill or "examples"),
            count=len(examples),
            before=mean_interval(scores[0], units),
            after=mean_interval(scores[1], units),
            gain=paired_difference(scores[0], scores[1], units),
            seen=asked.of(key),
        )

    def check_adapter(self, key: str, model: str) -> CompatibilityReport:
        """Whether an adapter belongs to a base, and how far away it is if not; nothing is loaded."""
        stored, files = self.store.read(key)
        return check_compatibility(files, stored.manifest, self._describe(model))

    def compatibility_matrix(
        self, keys: Sequence[str] | None = None, models: Sequence[str] | None = None
    ) -> CompatibilityMatrix:
        """Every adapter with every base; nothing is loaded.

        Args:
            keys: Of adapters. None: all.
            models: Keys or names. None: all four.
        """
        chosen = list(self.models) if models is None else models
        require_texts("models", chosen)
        return build_matrix(self.store, [self._describe(model) for model in chosen], keys)

    def plan_transfer(
        self, key: str, model: str, *, images: int | None = None, allow_partial: bool = False
    ) -> TransferPlan:
        """What moving an adapter to a model would take; nothing is loaded or changed.

        Args:
            key: Of the adapter.
            model: Where to.
            images: Unlabelled images at hand. None: those that a transfer draws between miniatures, else none.
            allow_partial: Leave out what cannot be moved.
        """
        if images is None:
            images = drawn_images(self.store.get(key).manifest, self.entry(model))
        require_whole("images", images, 0)
        stored, adapter = self.store.read_bytes(key)
        target = self._describe(model)
        return plan_transfer(adapter, stored.manifest, target, images=images, allow_partial=allow_partial)

    def cross_model_adapter_transfer(
        self,
        key: str,
        model: str,
        name: str | None = None,
        *,
        unlabelled: str | Path | Sequence[Example] | None = None,
        development: str | Path | Sequence[Example] | None = None,
        steps: int | None = None,
        config: TrainConfig | None = None,
        allow_partial: bool = False,
        replace: bool = False,
        progress: bool = True,
    ) -> TransferReport:
        """Move an adapter to another model, measure the result, and store it if it is worth anything there.

        What both bases share is taken over; the rest is learnt from the source's answers to images that nobody
        labelled, in a quarter of the target's usual steps.

        Args:
            key: Of the adapter; it stays as it is.
            model: Where to.
            name: Of the result. None: the source's.
            unlabelled: Images, perhaps with questions, that the target learns from the source's answers to: a folder or
                examples. None, with ``development`` too: scenes that no adapter was trained on, for miniatures' skills.
            development: Labelled data to choose with; nothing is trained on them. None: agreement with the source.
            steps: Of the distillation. None: a quarter of the target's usual ones.
            config: Other settings of the distillation. None: the target's defaults.
            allow_partial: Leave out what cannot be moved, instead of refusing.
            replace: Make a new version when the name exists.
            progress: Show a progress bar.

        Raises:
            TransferRefused: There is no way; nothing was changed.
            AdapterExists: The name is taken.
        """
        config = self._distillation(key, model, steps, config)
        data = read_transfer_data(unlabelled, development, self.store.get(key))
        way = self._direction(key, model, name, data, config, allow_partial, progress)
        return transfer_adapter(way.source, way.target, way.name, way.new_name, way.data, way.options, replace=replace)

    def exchange_adapters(
        self,
        key: str,
        other_key: str,
        *,
        unlabelled: str | Path | Sequence[Example] | None = None,
        steps: int | None = None,
        allow_partial: bool = False,
        replace: bool = False,
        progress: bool = True,
    ) -> ExchangeReport:
        """Move two adapters to each other's base: both results are stored, or neither.

        Arguments are those of ``cross_model_adapter_transfer``; each adapter keeps its short name.

        Raises:
            TransferRefused: One of them cannot be moved at all; nothing was changed.
            AdapterExists: A name is taken.
        """
        first, second = self.store.get(key), self.store.get(other_key)
        data = read_transfer_data(unlabelled, None)
        models = self._owner(second).entry.name, self._owner(first).entry.name
        there, back = (
            self._direction(name, model, None, data, self._distillation(name, model, steps), allow_partial, progress)
            for name, model in zip((key, other_key), models, strict=True)
        )
        return exchange_adapters(there, back, replace=replace)

    def merge_adapters(
        self,
        keys: Sequence[str],
        name: str,
        *,
        weights: Sequence[float] | None = None,
        method: Method = "cat",
        rank: int | None = None,
        replace: bool = False,
    ) -> tuple[str, MergeReport]:
        """Merge adapters of one base, store the result, and return its key and what merging lost.

        See ``exchange.merge.merge_adapters``.
        """
        require_texts("keys", keys)
        if not keys:
            raise UsageError("Merging needs at least two adapters, got none.")
        library = self._owner(self.store.get(keys[0]))
        stored, report = merge_adapters(
            library,
            keys,
            f"{library.entry.name}.{name}",
            weights=weights,
            method=method,
            rank=rank,
            run_dir=runs_dir() / "merge",
            replace=replace,
        )
        return stored.name, report

    def write_report(
        self, path: str | Path, transfers: Sequence[TransferReport], tasks: Sequence[TaskReport] = ()
    ) -> Path:
        """Write one HTML page: the matrix of all adapters, what the transfers did, and how good adapters are."""
        return write_exchange_page(self.compatibility_matrix(), transfers, named_path("path", path), tasks=tasks)

    def _describe(self, model: str) -> BaseDescription:
        return self._shelf.library(model).describe()

    def _direction(
        self,
        key: str,
        model: str,
        name: str | None,
        data: TransferData | None,
        config: TrainConfig,
        allow_partial: bool,
        progress: bool,
    ) -> Direction:
        stored, target = self.store.get(key), self._shelf.library(model)
        source = self._owner(stored)
        if data is None and source.entry.miniature and target.entry.miniature:
            data = scene_transfer_data(stored.manifest, captions=target.entry.captions, config=config)
        short = stored.name.removeprefix(f"{source.entry.name}.")
        return Direction(
            source=source,
            target=target,
            name=key,
            new_name=f"{target.entry.name}.{name or short}",
            data=data or TransferData(),
            options=TransferOptions(
                config=config,
                run_dir=runs_dir() / target.entry.name / f"transfer-{name or short}",
                allow_partial=allow_partial,
                progress=progress,
                load=self._shelf.load,
            ),
        )

    def _distillation(
        self, key: str, model: str, steps: int | None = None, config: TrainConfig | None = None
    ) -> TrainConfig:
        skill = self.store.get(key).manifest.skill or answer("general")
        usual = skill_config(self.entry(model), skill) if config is None else config
        return usual.with_steps(steps if steps is not None else max(1, round(QUICK_SHARE * usual.max_steps)))
