"""Visual question answering on several bases, with task adapters. Translation to ``Workspace`` only."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import captions_only, question_requests
from lorax_vlm.data.asked import asked_examples
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.images import ImageSource
from lorax_vlm.data.world.examples import GENERAL
from lorax_vlm.data.world.skills import skill_examples
from lorax_vlm.errors import LoraxError
from lorax_vlm.evaluation.results import BenchmarkRow, VQAReport
from lorax_vlm.evaluation.seen import Asked
from lorax_vlm.evaluation.side_effects import SideEffects
from lorax_vlm.measuring.effects import side_effects_on
from lorax_vlm.measuring.questions import Answerer, benchmark, built_in_questions, measure_questions, unseen_by
from lorax_vlm.measuring.unseen import shown_names
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import answer
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.defaults import question_config
from lorax_vlm.training.progress import Show
from lorax_vlm.types import (
    Answer,
    require_flag,
    require_known,
    require_texts,
    require_texts_by_name,
    require_whole,
)
from lorax_vlm.workshop.orders import AdapterOrder, Data, Making, examples_for, orders_by_name
from lorax_vlm.workspace import Options, Workspace


class VQASystem:
    """Questions to several bases and to the adapters trained on them; ``Workspace`` says what is not said here.

    >>> system = VQASystem(models="mini")                                     # doctest: +SKIP
    >>> system.create_vqa_adapter("blip2_flan", "counting", "counting")       # doctest: +SKIP
    >>> system.answer_question("photo.png", "How many circles are there?", "blip2_flan", "counting")  # doctest: +SKIP
    'two'

    Models go by key (``blip2_opt``, ``blip2_flan``, ``instructblip``, ``vilt``), catalogue name, hub id or folder.
    """

    def __init__(
        self,
        models: str | Mapping[str, str] = "hub",
        *,
        workspace: Workspace | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Choose what the model keys stand for; bases are loaded on first use, one at a time if memory is short.

        Args:
            models: ``hub``, ``mini``, or other checkpoints (hub ids or folders) by key; other keys stay the hub's.
            workspace: One that others use, too. None: one of its own.
            options: Of its own workspace, such as ``store`` and ``device``; see ``workspace.Options``.

        Raises:
            UsageError: ``models`` is another word, or has an unknown key.
        """
        if workspace is None:
            options.setdefault("batch_size", 32)
        self.workspace = Workspace.shared(workspace, models, options)
        self.models, self.store = self.workspace.models, self.workspace.store

    def entry(self, model: str) -> CatalogEntry:
        """The checkpoint behind a key, a catalogue name, a hub id or a folder."""
        return self.workspace.bases.entry(model)

    def base(self, model: str) -> LoadedModel:
        """A base, loaded on first use; one that would not fit is refused before anything is downloaded."""
        with self.workspace.bases.use(model) as engine:
            return engine.base

    @property
    def loaded(self) -> list[str]:
        """Names of the bases in memory, least recently used first."""
        return self.workspace.bases.loaded

    def default_config(self, model: str, *, own_data: bool = False) -> TrainConfig:
        """Training settings when none are given; the miniatures' scenes need less than ``data`` of somebody's own."""
        return question_config(self.entry(model), own_data=own_data)

    def stored_name(self, model: str, name: str) -> str:
        """The store's name of an adapter of a base, ``MODEL.NAME`` or plain; see ``AdapterStore.resolve``."""
        return self.workspace.resolve(name, model)

    # --- making -----------------------------------------------------------------------------------------------------

    def create_vqa_adapter(
        self, model: str, name: str, task: str, complexity: str | Recipe | None = None, **how: Unpack[Making]
    ) -> StoredAdapter:
        """Create a task adapter, and train it at once when questions are at hand; see ``Workspace.create``.

        Args:
            model: Key, catalogue name, hub id or folder.
            name: Name of the adapter; several models may have one of the same name.
            task: ``counting``, ``reasoning``, ``classification``, ``general`` or a type of the base's own questions;
                with ``data`` any word.
            complexity: ``light``, ``medium``, ``heavy``, ``seeing`` or a ``Recipe``. None: ``heavy``; for ``data`` of
                your own on a miniature ``seeing``, which adapts the image path as well, where the family has one.
            how: ``data``, ``config``, ``replace`` and others; see ``workshop.orders.Making``.
        """
        require_known(how, Making.__annotations__)
        full = f"{self.entry(model).name}.{name}"
        return self.workspace.create(full, answer(task), base=model, recipe=complexity, **how)

    def train_adapter(
        self,
        model: str,
        name: str,
        task: str | None = None,
        *,
        replace: bool = False,
        resume: bool = False,
        progress: Show = True,
        **wanted: Any,
    ) -> StoredAdapter:
        """Train an adapter and store it; an untrained one of that name becomes trained.

        Args:
            model: As for ``create_vqa_adapter``.
            name: As there.
            task: None: the stored adapter's.
            replace: Make a new version of an adapter that is already trained.
            resume: Continue the run of this name that was interrupted.
            progress: True: a progress bar. Or a ``training.progress.Progress`` that is told.
            wanted: ``data``, ``complexity`` and ``config`` as there, and ``skip_bad_rows``, which leaves out malformed
                rows and texts that do not fit the model.

        Raises:
            AdapterExists: The name is taken by a trained adapter and ``replace`` is false.
        """
        orders = [self.order(model, name, task, **wanted)]
        return self.train_orders(model, orders, replace=replace, resume=resume, progress=progress)[0]

    def train_adapters(
        self,
        model: str,
        tasks: Mapping[str, str],
        *,
        data: Data | Mapping[str, Data | None] | None = None,
        config: TrainConfig | Mapping[str, Any] | None = None,
        replace: bool = False,
        resume: bool = False,
        progress: Show = True,
        **wanted: Any,
    ) -> list[StoredAdapter]:
        """Train several tasks (by name of the adapter) in one run; each is what ``train_adapter`` would have made.

        Arguments are those of ``train_adapter``; ``data`` and ``config`` may go by name.

        Raises:
            UsageError: ``data`` or ``config`` goes by name and says nothing of one, or something of another.
            AdapterExists: A name is taken by a trained adapter and ``replace`` is false.
            LoraxError: As ``train_adapter``; none of the adapters is stored.
        """
        orders = orders_by_name(partial(self.order, model), tasks, data, config, **wanted)
        return self.train_orders(model, orders, replace=replace, resume=resume, progress=progress)

    def order(
        self, model: str, name: str, task: str | None = None, *, complexity: str | Recipe | None = None, **wanted: Any
    ) -> AdapterOrder:
        """What ``train_adapter`` would train, with the same arguments; nothing is loaded but the data."""
        full = f"{self.entry(model).name}.{name}"
        if task is None:
            task = self.store.get(full).manifest.skill_name if full in self.store else GENERAL
        return self.workspace.workshop(model).order(full, answer(task), recipe=complexity, **wanted)

    def train_orders(self, model: str, orders: Sequence[AdapterOrder], **how: Any) -> list[StoredAdapter]:
        """Train what was ordered on one model in one run; caption styles of ``BLIP2CaptioningSystem.order`` too."""
        return self.workspace.train_orders(model, orders, **how)

    def training_data(
        self, model: str, task: str, data: Data | None = None, *, skip_bad_rows: bool = False
    ) -> DataSplits:
        """The examples an adapter would be trained on; see ``workshop.orders.examples_for``."""
        entry = self.workspace.bases.described(model)
        return examples_for(entry, answer(task), data, skip_bad_rows=skip_bad_rows)

    def training_curve(self, model: str, name: str) -> Path:
        """Where the last finished training of this name drew its curve."""
        return self.workspace.workshop(model).training_curve(self.stored_name(model, name))

    def list_adapters(self, model: str | None = None) -> list[StoredAdapter]:
        """The store's adapters that answer questions, or do not say what they do, of one model or of all."""
        good = self.workspace.adapters(model)
        return [adapter for adapter in good if not captions_only(adapter.manifest)]

    # --- asking -----------------------------------------------------------------------------------------------------

    def answer_question(
        self, image: ImageSource, question: str, model: str, adapter: str | None = None, **decoding: Any
    ) -> Answer:
        """Answer one question, by the plain base or by an adapter; see ``Workspace.ask``."""
        said = self.answer_questions([image], [question], model, adapter, **decoding)[0]
        assert isinstance(said, Answer)
        return said

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
            questions: One per image, in plain words; the prompt is put around it.
            model: As for ``answer_question``.
            adapter: One for all questions, or a sequence of one per question; None is the base.
            return_errors: Put the error of a bad row (an unreadable image, an overlong question) in its place.
            decoding: Fields of ``GenerationSettings`` to change, such as ``num_beams=1``. ViLT has none.

        Raises:
            UsageError: The numbers of images, questions or adapters differ.
            LoraxError: A row is bad, and ``return_errors`` is false.
        """
        require_flag("return_errors", return_errors)
        requests = question_requests(images, questions, adapter, decoding, sound=not return_errors)
        self.workspace.require_adapters([request.adapter for request in requests], model, rows=len(requests))
        results = self.workspace.answers(requests, model, return_errors=return_errors)
        return [
            said if isinstance(said, LoraxError) else Answer.by(said, request.adapter)
            for said, request in zip(results, requests, strict=True)
        ]

    # --- measuring --------------------------------------------------------------------------------------------------

    def side_effects(self, model: str, name: str) -> SideEffects | None:
        """What an adapter does to skills that it was not trained for; see ``measuring.effects``."""
        return side_effects_on(self.workspace.bases, model, self.workspace.stored(name, model))

    def test_questions(self, task: str, count: int = 500) -> list[Example]:
        """Held-out questions of the scene world, one per scene."""
        return skill_examples(answer(task), "test", count)

    def evaluate(
        self,
        model: str,
        adapter: str | None = None,
        *,
        examples: Sequence[Example] | None = None,
        task: str = GENERAL,
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
            examples, source = built_in_questions(self.entry(model), answer(task), count, instead="examples=")
        who = self._answerer(model, adapter)
        asked, source = unseen_by([who], examples, include_seen=include_seen), source or "examples"
        with self.workspace.bases.use(model) as engine:
            return measure_questions(engine, who, asked, source=source, ablations=ablations, decoding=decoding)

    def unseen_examples(
        self, adapters: Sequence[tuple[str, str | None]], examples: Sequence[Example], *, include_seen: bool = False
    ) -> Asked:
        """Those that no adapter, each given with its model, was trained on; see ``measuring.unseen``."""
        return unseen_by([self._answerer(*one) for one in adapters], examples, include_seen=include_seen)

    def _answerer(self, model: str, name: str | None) -> Answerer:
        return Answerer.of(self.store, self.entry(model).name, name)

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
        who: dict[str, list[Answerer]] = {}
        for model in asked_models:
            base = self.entry(model).name
            names = (
                shown_names(self.store, base, self.list_adapters(model))
                if adapters is None
                else adapters.get(model, ())
            )
            who[model] = [self._answerer(model, name) for name in (None, *names)]
        examples = asked_examples(images, questions, answers, kinds)
        include_seen = include_seen or answers is None
        bases, judged = self.workspace.bases, answers is not None
        return benchmark(bases, who, examples, judged=judged, alone=alone, include_seen=include_seen)
