"""Visual question answering on several bases, with task adapters: create, train, ask, measure. Composition only."""

from collections.abc import Mapping, Sequence
from dataclasses import replace as replaced
from functools import partial
from pathlib import Path
from typing import Any

from lorax_vlm import asking
from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.data.asked import asked_examples
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.images import ImageSource
from lorax_vlm.data.scene_examples import GENERAL, require_task
from lorax_vlm.data.scene_tasks import skill_examples, skill_splits
from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.evaluation.cost import benchmark_questions
from lorax_vlm.evaluation.questions import evaluate_questions
from lorax_vlm.evaluation.reports import BenchmarkRow, VQAReport
from lorax_vlm.evaluation.seen import Asked
from lorax_vlm.evaluation.side_effects import SideEffects
from lorax_vlm.measuring import shown_names, side_effects, unseen_examples
from lorax_vlm.models.catalog import CatalogEntry, checkpoints_by_key
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.models.placement import Device, Precision, Quantization
from lorax_vlm.runtime.library import AdapterLibrary
from lorax_vlm.runtime.rows import Row, answer_rows
from lorax_vlm.runtime.shelf import BaseShelf
from lorax_vlm.skills import answer
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.defaults import question_config, question_defaults
from lorax_vlm.types import Answer, require_texts, require_texts_by_name, require_whole
from lorax_vlm.workshop.making import AdapterWorkshop
from lorax_vlm.workshop.orders import AdapterKind, AdapterOrder, by_name, training_examples


class VQASystem:
    """Questions about images, answered by several bases and their task adapters.

    >>> system = VQASystem(models="mini")                                     # doctest: +SKIP
    >>> system.create_vqa_adapter("blip2_flan", "counting", "counting")       # doctest: +SKIP
    >>> system.answer_question("photo.png", "How many stars are there?", "blip2_flan", "counting")  # doctest: +SKIP
    '3'

    Adapters are stored as ``MODEL.NAME``, so several models may have one of the same name.
    """

    def __init__(
        self,
        models: str | Mapping[str, str] = "hub",
        *,
        store: str | Path | None = None,
        device: Device = "auto",
        dtype: Precision = "auto",
        quantize: Quantization = "auto",
        batch_size: int = 32,
        memory_budget_bytes: int | None = None,
        adapter_memory_bytes: int | None = None,
    ) -> None:
        """Choose what the model keys stand for; bases are loaded on first use.

        Args:
            models: ``hub``, ``mini``, or other checkpoints (hub ids or folders) by key, such as
                ``{"blip2_flan": "my-checkpoint"}``; other keys stay the hub's.
            store: Where adapters live, by default the store of ``LORAX_VLM_HOME``.
            device: ``auto`` takes CUDA when there is one.
            dtype: ``auto``: see ``models/placement.py``.
            quantize: ``auto``: 4 bits on CUDA, none on a CPU.
            batch_size: Questions per forward pass.
            memory_budget_bytes: Most memory for all bases; the least recently used leaves. None: what is free.
            adapter_memory_bytes: Most memory for the adapters of each base. None: no limit.

        Raises:
            UsageError: ``models`` is another word, or has an unknown key.
        """
        require_whole("batch_size", batch_size, 1)
        self.models = checkpoints_by_key(models)
        self.store = AdapterStore(store)
        self.batch_size = batch_size
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

    def library(self, model: str) -> AdapterLibrary:
        """The store as far as it concerns a base, which is loaded; for ``measuring`` and ``workshop``."""
        self.base(model)
        return self._shelf.library(model)

    @property
    def loaded(self) -> list[str]:
        """Names of the bases in memory, least recently used first."""
        return self._shelf.loaded

    def default_config(self, model: str, *, own_data: bool = False) -> TrainConfig:
        """Training settings when none are given.

        Args:
            model: Key, catalogue name, hub id or folder.
            own_data: Whether there will be ``data``; the miniatures' scenes need less.
        """
        return question_config(self.entry(model), own_data=own_data)

    def stored_name(self, model: str, name: str) -> str:
        """The store's name of an adapter of a base, ``MODEL.NAME`` or plain; see ``AdapterStore.resolve``.

        Raises:
            AdapterNotFound: There is none.
        """
        return self._shelf.library(model).resolve(name)

    def create_vqa_adapter(
        self,
        model: str,
        name: str,
        task: str,
        complexity: str | Recipe | None = None,
        *,
        data: str | Path | DataSplits | None = None,
        config: TrainConfig | None = None,
        replace: bool = False,
        progress: bool = True,
    ) -> StoredAdapter:
        """Create a task adapter and train it at once when questions are at hand.

        The miniatures always have their scenes. Any other base needs ``data``; without it the adapter is stored
        untrained, which is the identity, and every listing says so.

        Args:
            model: Key, catalogue name, hub id or folder.
            name: Name of the adapter; several models may have one of the same name.
            task: ``counting``, ``reasoning``, ``classification``, ``general`` or a type of the base's own questions;
                with ``data`` any word.
            complexity: ``light``, ``medium``, ``heavy``, ``seeing`` or a ``Recipe``. None: ``heavy``; for ``data`` of
                your own on a miniature ``seeing``, which adapts the image path as well, where the family has one.
            data: As for ``training_data``.
            config: Steps and rates. None: defaults for the base.
            replace: Make a new version when the name exists.
            progress: Show a progress bar.

        Raises:
            AdapterExists: The name is taken by a different adapter and ``replace`` is false.
            UsageError: The task (without ``data``) or the complexity is unknown.
        """
        entry = self._shelf.described(model)
        recipe, config = question_defaults(entry, complexity, config, own_data=data is not None)
        if data is None:
            require_task(task)
        splits = self.training_data(model, task, data) if data is not None or entry.miniature else None
        return self._workshop(model).create(
            f"{entry.name}.{name}", self._kind(model, task), recipe, splits, config, replace=replace, progress=progress
        )

    def train_adapter(
        self,
        model: str,
        name: str,
        task: str | None = None,
        *,
        data: str | Path | DataSplits | None = None,
        complexity: str | Recipe | None = None,
        config: TrainConfig | None = None,
        replace: bool = False,
        resume: bool = False,
        skip_bad_rows: bool = False,
        progress: bool = True,
    ) -> StoredAdapter:
        """Train an adapter and store it; an untrained one of that name becomes trained.

        Arguments are those of ``create_vqa_adapter``, and:

        Args:
            task: None: the stored adapter's.
            replace: Make a new version of an adapter that is already trained.
            resume: Continue the run of this name that was interrupted.
            skip_bad_rows: Leave out malformed rows, and texts that do not fit the model.

        Raises:
            AdapterExists: The name is taken by a trained adapter and ``replace`` is false.
        """
        order = self.order(
            model, name, task, data=data, complexity=complexity, config=config, skip_bad_rows=skip_bad_rows
        )
        return self.train_orders(model, [order], replace=replace, resume=resume, progress=progress)[0]

    def train_adapters(
        self,
        model: str,
        tasks: Mapping[str, str],
        *,
        data: str | Path | DataSplits | Mapping[str, str | Path | DataSplits | None] | None = None,
        complexity: str | Recipe | None = None,
        config: TrainConfig | Mapping[str, TrainConfig] | None = None,
        replace: bool = False,
        resume: bool = False,
        skip_bad_rows: bool = False,
        progress: bool = True,
    ) -> list[StoredAdapter]:
        """Train several tasks on one model in one run; each adapter is what ``train_adapter`` would have made.

        Arguments are those of ``train_adapter``, and:

        Args:
            tasks: Task by name of the adapter.
            data: One for all, or by name; None: drawn scenes, where the base has them.
            config: One for all, or by name.

        Raises:
            UsageError: ``data`` or ``config`` goes by name and says nothing of one, or something of another.
            AdapterExists: A name is taken by a trained adapter and ``replace`` is false.
            LoraxError: As ``train_adapter``; none of the adapters is stored.
        """
        sources, configs = by_name("data", data, tasks), by_name("config", config, tasks)
        orders = [
            self.order(
                model,
                name,
                task,
                data=sources[name],
                complexity=complexity,
                config=configs[name],
                skip_bad_rows=skip_bad_rows,
            )
            for name, task in tasks.items()
        ]
        return self.train_orders(model, orders, replace=replace, resume=resume, progress=progress)

    def order(
        self,
        model: str,
        name: str,
        task: str | None = None,
        *,
        data: str | Path | DataSplits | None = None,
        complexity: str | Recipe | None = None,
        config: TrainConfig | None = None,
        skip_bad_rows: bool = False,
    ) -> AdapterOrder:
        """What ``train_adapter`` would train, with the same arguments; nothing is loaded but the data."""
        stored_name = f"{self.entry(model).name}.{name}"
        if task is None:
            task = self.store.get(stored_name).manifest.skill_name if stored_name in self.store else GENERAL
        splits = self.training_data(model, task, data, skip_bad_rows=skip_bad_rows)
        recipe, config = question_defaults(self._shelf.described(model), complexity, config, own_data=data is not None)
        return AdapterOrder(stored_name, self._kind(model, task), recipe, splits, config, skip_bad_rows)

    def train_orders(
        self,
        model: str,
        orders: Sequence[AdapterOrder],
        *,
        replace: bool = False,
        resume: bool = False,
        progress: bool = True,
    ) -> list[StoredAdapter]:
        """Train what was ordered on one model in one run; caption styles of ``BLIP2CaptioningSystem.order`` too."""
        return self._workshop(model).train_together(orders, replace=replace, resume=resume, progress=progress)

    def training_data(
        self, model: str, task: str, data: str | Path | DataSplits | None = None, *, skip_bad_rows: bool = False
    ) -> DataSplits:
        """The examples an adapter would be trained on, with the base's prompt.

        Args:
            model: Key, catalogue name, hub id or folder.
            task: Type of the scenes' questions, where there is no ``data``.
            data: Splits, or what ``read_data`` recognises. None: the scenes of the miniature world.
            skip_bad_rows: Leave malformed rows out.

        Raises:
            DataError: The data have malformed rows, or are captions.
            UsageError: There is no ``data`` and this base has no scenes, or the task is unknown.
        """
        entry, drawn = self._shelf.described(model), partial(skill_splits, answer(task))
        return training_examples(entry, "questions", data, drawn, skip_bad_rows=skip_bad_rows)

    def side_effects(self, model: str, name: str) -> SideEffects | None:
        """What an adapter does to skills that it was not trained for; see ``measuring.side_effects``."""
        return side_effects(self.library(model), self.store.get(self.stored_name(model, name)))

    def training_curve(self, model: str, name: str) -> Path:
        """Where the last finished training of this name drew its curve."""
        return self._workshop(model).training_curve(self.stored_name(model, name))

    def _workshop(self, model: str) -> AdapterWorkshop:
        return AdapterWorkshop(self._shelf.library(model))

    def _kind(self, model: str, task: str) -> AdapterKind:
        entry = self._shelf.described(model)
        return AdapterKind(answer(task), asking.ask_for(entry, answer(task)))

    def list_adapters(self, model: str | None = None) -> list[StoredAdapter]:
        """The store's adapters that answer questions, or do not say what they do, of one model or of all."""
        good = self._shelf.library(model).list() if model else self.store.list()[0]
        return [a for a in good if a.manifest.skill is None or asking.answers_questions(a.manifest)]

    def answer_question(
        self, image: ImageSource, question: str, model: str, adapter: str | None = None, **decoding: Any
    ) -> Answer:
        """Answer one question, by the plain base or by an adapter.

        Args:
            image: A path, an http(s) URL, bytes, a PIL image or a numpy array.
            question: In plain words; the base's prompt is put around it.
            model: Key, catalogue name, hub id or folder.
            adapter: Name of the adapter, None for the base.
            decoding: Fields of ``GenerationSettings`` to change, such as ``num_beams=1``. ViLT has none.

        Raises:
            ImageError: The image cannot be read.
            PromptError: The question is empty or too long.
            AdapterNotFound: There is no such adapter; an unknown name never means the base.
        """
        answer = self.answer_questions([image], [question], model, adapter, **decoding)[0]
        assert isinstance(answer, Answer)
        return answer

    def answer_questions(
        self,
        images: Sequence[ImageSource],
        questions: Sequence[str],
        model: str,
        adapter: str | Sequence[str | None] | None = None,
        *,
        return_errors: bool = False,
        **decoding: Any,
    ) -> list[Answer | LoraxError]:
        """Answer questions in batches; each answer is what the question alone would get.

        Questions to different adapters share their batches; an image that is asked about again is encoded once.

        Args:
            images: One per question.
            questions: One per image.
            model: As for ``answer_question``.
            adapter: One for all questions, or a sequence of one per question; None is the base.
            return_errors: Put the error of a bad row (an unreadable image, an overlong question) in its place.
            decoding: As for ``answer_question``.

        Raises:
            UsageError: The numbers of images, questions or adapters differ.
            LoraxError: A row is bad, and ``return_errors`` is false.
        """
        images = asking.require_rows(images, "images", "answer_question")
        questions = asking.require_rows(questions, "questions", "answer_question")
        if len(images) != len(questions):
            raise UsageError(f"One image per question is needed, got {len(images)} and {len(questions)}.")
        one = isinstance(adapter, str | None)
        adapters = [adapter] * len(images) if one else asking.require_rows(adapter, "adapters", "a name")
        if len(adapters) != len(images):
            raise UsageError(f"One adapter per question is needed, got {len(adapters)} for {len(images)}.")
        base, library = self.base(model), self._shelf.library(model)
        asked = {own: self._asked(library, model, own) for own in asking.distinct_adapters(adapters)}
        rows: list[Row | LoraxError] = []
        for image, question, own in zip(images, questions, adapters, strict=True):
            name, manifest = asked[own]
            how = asking.ask_of(base.entry, manifest, question=True)
            settings = how.settings.replace(**decoding)
            try:
                prompt = how.prompt(asking.require_question(question))
                base.family.check_prompt(prompt)
                rows.append(Row(image, name, prompt, settings))
            except LoraxError as error:
                if not return_errors:
                    raise
                rows.append(error)
        said = answer_rows(library, rows, batch_size=self.batch_size, return_errors=return_errors)
        return [
            text if isinstance(text, LoraxError) else Answer.of(text, base.name, own)
            for text, own in zip(said, adapters, strict=True)
        ]

    def _asked(self, library: AdapterLibrary, model: str, own: str | None) -> tuple[str | None, Manifest | None]:
        """The store's name of an adapter, and its record; it is loaded and checked."""
        name = self.stored_name(model, own) if own is not None else None
        attachment = library.find(name)
        return name, attachment.manifest if attachment is not None else None

    def test_questions(self, task: str, count: int = 500) -> list[Example]:
        """Held-out questions of the scene world, one per scene."""
        return skill_examples(answer(task), "test", count)

    def evaluate(
        self,
        model: str,
        adapter: str | None = None,
        *,
        examples: Sequence[Example] | None = None,
        task: str = "general",
        count: int = 500,
        source: str = "",
        ablations: bool = False,
        include_seen: bool = False,
        **decoding: Any,
    ) -> VQAReport:
        """Measure an adapter, or the base for None, on questions with known answers.

        Arguments are those of ``answer_question``, and:

        Args:
            examples: Questions with answers. None: ``count`` held-out scenes of the miniature world.
            task: Type of the scenes' questions.
            count: Number of scenes.
            source: What ``examples`` are, for the report.
            ablations: Ask again with grey images and with others; accuracy that stays comes from the question alone.
            include_seen: Ask about images that it was trained on, too. To compare several: ``unseen_examples``.

        Raises:
            UsageError: There are neither ``examples`` nor a miniature world for this base, or it has seen all of them.
        """
        if examples is None:
            if not self.entry(model).miniature:
                raise UsageError(f"{self.entry(model).name} has no built-in test questions. Pass examples=.")
            examples, source = self.test_questions(task, count), f"scenes, {task}, {count} held out"
        _, manifest = self._asked(self.library(model), model, adapter)
        settings = asking.ask_of(self.entry(model), manifest, question=True).settings.replace(**decoding)
        asked = self.unseen_examples([(model, adapter)], examples, include_seen=include_seen)
        report = evaluate_questions(
            partial(self.answer_questions, model=model, adapter=adapter, return_errors=True, **decoding),
            asked.examples,
            ablations=ablations,
            source=source or "examples",
            base=self.entry(model).name,
            adapter=adapter,
            settings=settings,
        )
        return replaced(report, seen=asked.of(self.stored_name(model, adapter) if adapter else None))

    def unseen_examples(
        self, adapters: Sequence[tuple[str, str | None]], examples: Sequence[Example], *, include_seen: bool = False
    ) -> Asked:
        """Those that no adapter, each given with its model, was trained on; see ``measuring.unseen_examples``."""
        named = [(self._shelf.library(m), self.stored_name(m, name)) for m, name in adapters if name is not None]
        return unseen_examples(named, examples, include_seen=include_seen)

    def benchmark_models(
        self,
        images: Sequence[ImageSource],
        questions: Sequence[str],
        *,
        answers: Sequence[str | Sequence[str]] | None = None,
        kinds: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        adapters: Mapping[str, Sequence[str]] | None = None,
        alone: int = 20,
        include_seen: bool = False,
    ) -> list[BenchmarkRow]:
        """Ask every model, and every adapter of it, the same questions.

        Args:
            images: One per question.
            questions: One per image.
            answers: The right answer, or all annotators' answers, per question. None: no accuracy.
            kinds: Type of each question.
            models: Keys or names. None: all four.
            adapters: Names of the adapters to measure, by model. None: every stored one.
            alone: Questions that are asked one by one, for the latency.
            include_seen: Ask about images that one of the adapters was trained on, too.

        Raises:
            UsageError: The numbers of images, questions, answers or kinds differ, all images were trained on, or
                ``adapters`` has a model that is not asked.
            OutOfMemoryForecast: A model would not fit.
        """
        require_whole("alone", alone, 1)
        asked_models = list(self.models) if models is None else models
        require_texts("models", asked_models)
        if adapters is not None:
            require_texts_by_name("adapters", adapters, asked_models)
        chosen: list[tuple[str, str | None]] = []
        for model in asked_models:
            library = self._shelf.library(model)
            every = shown_names(library, self.list_adapters(model)) if adapters is None else adapters.get(model, ())
            chosen += [(model, adapter) for adapter in (None, *every)]
        examples = asked_examples(images, questions, answers, kinds)
        asked = self.unseen_examples(chosen, examples, include_seen=include_seen or answers is None)
        rows = []
        for model, adapter in chosen:
            row = benchmark_questions(
                partial(self.answer_questions, model=model, adapter=adapter, return_errors=True),
                asked.examples,
                self.base(model).device,
                model=self.entry(model).name,
                adapter=adapter,
                judged=answers is not None,
                alone=alone,
            )
            rows.append(replaced(row, seen=asked.of(self.stored_name(model, adapter) if adapter else None)))
        return rows
