"""Adapters across models: create, save, load, check, exchange, transfer, merge.

Translation to ``Workspace`` and to the room ``exchange`` only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from lorax_vlm.adapters.compatibility import CompatibilityReport, check_compatibility
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions
from lorax_vlm.data.examples import Example
from lorax_vlm.data.images import ImageSource, load_image
from lorax_vlm.data.world.skills import require_exchange_task
from lorax_vlm.errors import PromptError
from lorax_vlm.evaluation.results import TaskReport
from lorax_vlm.exchange.arrival import load_adapter, save_adapter
from lorax_vlm.exchange.matrix import CompatibilityMatrix, build_matrix
from lorax_vlm.exchange.merge import MergeReport, MergeWishes
from lorax_vlm.exchange.moving import TransferWishes, Wishes, exchange, own_base
from lorax_vlm.exchange.plan import TransferPlan
from lorax_vlm.exchange.planning import plan_stored
from lorax_vlm.exchange.report import TransferReport
from lorax_vlm.exchange.swap import ExchangeReport
from lorax_vlm.exchange.tasks import choose_examples, measure_task
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.paths import named_path
from lorax_vlm.reports.exchange_page import write_exchange_page
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.defaults import skill_config
from lorax_vlm.types import GenerationSettings, ModelText, require_known, require_text, require_texts
from lorax_vlm.workshop.orders import Making
from lorax_vlm.workspace import BASE, Options, Workspace


class MultiModalLoRAExchange:
    """Adapters of several models in one store: checked against every base, moved between them with a measured result.

    >>> system = MultiModalLoRAExchange(models="mini")                                             # doctest: +SKIP
    >>> key = system.create_adapter("blip2_opt", "image_caption", "captioning", "medium")           # doctest: +SKIP
    >>> key                                                                                         # doctest: +SKIP
    'blip2-opt-mini.image_caption'
    >>> system.cross_model_adapter_transfer(key, "blip2_flan").lines()                              # doctest: +SKIP

    A key is the adapter's name in the store, ``MODEL.NAME``, or ``NAME`` where one is meant. ``Workspace`` says what is
    not said here.
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
        self.workspace = Workspace.shared(workspace, models, options)
        self.models, self.store = self.workspace.models, self.workspace.store

    def entry(self, model: str) -> CatalogEntry:
        """The checkpoint behind a key, a catalogue name, a hub id or a folder."""
        return self.workspace.bases.entry(model)

    def base(self, model: str) -> LoadedModel:
        """A base, loaded on first use; one that would not fit is refused before anything is downloaded."""
        with self.workspace.bases.use(model) as engine:
            return engine.base

    def default_config(self, model: str, task: str, steps: int | None = None, *, own_data: bool = False) -> TrainConfig:
        """Training settings when none are given, perhaps with another number of steps.

        The miniatures' scenes need less than ``data`` of somebody's own.
        """
        config = skill_config(self.entry(model), require_exchange_task(task), own_data=own_data)
        return config.with_steps(steps) if steps is not None else config

    # --- the store --------------------------------------------------------------------------------------------------

    def create_adapter(
        self, model: str, name: str, task: str, complexity: str | Recipe = "medium", **how: Unpack[Making]
    ) -> str:
        """Create an adapter, train it at once when examples are at hand, and return its key; see ``Workspace.create``.

        Args:
            model: Key, catalogue name, hub id or folder.
            name: Name of the adapter; several models may have one of the same name.
            task: ``captioning``, ``vqa``, ``instruction_following``, ``complex_reasoning`` or ``general``.
            complexity: ``light`` (rank 4, query and value), ``medium`` (8, attention), ``heavy`` (16, and the MLP),
                ``portable`` (8, vision encoder only) or a ``Recipe``.
            how: ``data``, ``config``, ``replace`` and others; see ``workshop.orders.Making``.

        Raises:
            UsageError: The task or the complexity is unknown, or the model cannot do the task.
        """
        require_known(how, Making.__annotations__)
        entry = self.workspace.bases.described(model)
        skill = require_exchange_task(task, writes=entry.captions)
        return self.workspace.create(f"{entry.name}.{name}", skill, base=model, recipe=complexity, **how).name

    def save_adapter(self, key: str, target: str | Path) -> Path:
        """Copy an adapter out of the store: a plain PEFT folder, or one file called ``....lorax``."""
        place = named_path("target", target)
        return save_adapter(self.store, self.workspace.resolve(key), place)

    def load_adapter(
        self,
        source: str | Path,
        name: str | None = None,
        *,
        model: str | None = None,
        replace: bool = False,
        prefix: str | None = None,
    ) -> str:
        """Take a folder or a ``.lorax`` bundle into the store, checked; returns its key. See ``exchange.arrival``."""
        bases = self.workspace.bases
        return load_adapter(bases, source, name, base=model, replace=replace, prefix=prefix).name

    def list_adapters(self, model: str | None = None, task: str | None = None) -> list[StoredAdapter]:
        """The store's adapters: all, or those of a model or a task."""
        base = self.entry(model).identity if model is not None else None
        owned = {adapter.name for adapter in self.workspace.adapters(model)}
        return [adapter for adapter in self.store.search(base=base, task=task) if adapter.name in owned]

    def remove_adapter(self, key: str) -> None:
        """Remove an adapter with all its versions, from memory too."""
        name = self.workspace.resolve(key)
        self.store.remove(name)
        self.workspace.bases.forget(name)

    # --- asking and measuring ---------------------------------------------------------------------------------------

    def generate_with_adapter(
        self,
        key: str,
        image: ImageSource,
        text: str = "",
        *,
        compare: bool = False,
        model: str | None = None,
        **decoding: Any,
    ) -> ModelText | dict[str, ModelText]:
        """Caption an image, or answer a question or an instruction about it, with an adapter on its own base.

        Args:
            key: Of the adapter.
            image: A path, an http(s) URL, bytes, a PIL image or a numpy array.
            text: The question or instruction; empty for a caption.
            compare: Give the plain base's text beside it, as ``{"base": ..., key: ...}``.
            model: None: the adapter's own base, which adapters of plain PEFT may not name.
            decoding: Fields of ``GenerationSettings`` to change, such as ``num_beams=5``.

        Raises:
            ImageError: The image cannot be read.
            PromptError: The adapter answers questions and there is none, or the base writes no captions.
            AdapterNotFound: There is no such adapter.
        """
        require_text("text", text)
        GenerationSettings.require_fields(decoding)
        stored, bases = self.workspace.stored(key, model), self.workspace.bases
        base = model or own_base(bases, stored)
        if not text.strip() and (answers_questions(stored.manifest) or not bases.described(base).captions):
            raise PromptError("an empty question", f"adapter {key!r} answers questions; pass one.")
        names, question = [None, key] if compare else [key], text.strip() or None
        said = self.workspace.compare(load_image(image), names, question, base=base, **decoding)
        return said if compare else said[key]

    def evaluate_adapter(
        self,
        key: str,
        *,
        task: str | None = None,
        examples: Sequence[Example] | None = None,
        count: int = 300,
        include_seen: bool = False,
        model: str | None = None,
    ) -> TaskReport:
        """Measure an adapter and its base on the same examples: exact answers, with paired intervals.

        Args:
            key: Of the adapter.
            task: Task of the scenes. None: the adapter's own.
            examples: With targets. None: ``count`` held-out scenes of the miniature world.
            count: Number of scenes.
            include_seen: Ask about images that it was trained on, too.
            model: As for ``generate_with_adapter``.

        Raises:
            UsageError: There are neither ``examples`` nor a miniature world for this base, or it has seen all of them.
        """
        stored = self.workspace.stored(key, model)
        skill = require_exchange_task(task) if task is not None else None
        base = model or own_base(self.workspace.bases, stored)
        asked = choose_examples(self.entry(base), stored, skill or stored.manifest.skill, examples, count)
        with self.workspace.bases.use(base) as engine:
            return measure_task(engine, stored, asked, name=key, skill=skill, include_seen=include_seen)

    # --- between models ---------------------------------------------------------------------------------------------

    def check_adapter(self, key: str, model: str) -> CompatibilityReport:
        """Whether an adapter belongs to a base, and how far away it is if not; nothing is loaded or fetched."""
        stored, files = self.store.read(self.workspace.resolve(key))
        return check_compatibility(files, stored.manifest, self.workspace.bases.describe(model))

    def compatibility_matrix(
        self, keys: Sequence[str] | None = None, models: Sequence[str] | None = None
    ) -> CompatibilityMatrix:
        """Every adapter (None: all) with every base (None: all four); nothing is loaded or fetched.

        Raises:
            CheckpointError: A base is not on this machine.
        """
        chosen = list(self.models) if models is None else models
        require_texts("models", chosen)
        if keys is not None:
            require_texts("keys", keys)
            keys = [self.workspace.resolve(key) for key in keys]
        return build_matrix(self.store, [self.workspace.bases.describe(model) for model in chosen], keys)

    def plan_transfer(
        self, key: str, model: str, *, images: int | None = None, allow_partial: bool = False
    ) -> TransferPlan:
        """What moving an adapter to a model would take; nothing is loaded, fetched or changed.

        See ``exchange.planning.plan_stored``.

        Raises:
            CheckpointError: The model is not on this machine.
        """
        name, bases = self.workspace.resolve(key), self.workspace.bases
        entry, target = bases.entry(model), bases.describe(model)
        return plan_stored(self.store, name, entry, target, images=images, allow_partial=allow_partial)

    def cross_model_adapter_transfer(
        self, key: str, model: str, name: str | None = None, **wishes: Unpack[TransferWishes]
    ) -> TransferReport:
        """Move an adapter to another model, measure the result, and store it if it is worth anything there.

        What both bases share is taken over; the rest is learnt from the source's answers to images that nobody
        labelled, in a quarter of the target's usual steps. See ``exchange.moving.transfer`` for arguments and errors.
        """
        return self.workspace.transfer(key, model, name, **wishes)

    def exchange_adapters(self, key: str, other_key: str, **wishes: Unpack[Wishes]) -> ExchangeReport:
        """Move two adapters to each other's base: both results are stored, or neither; each keeps its short name.

        See ``exchange.moving.exchange`` for arguments and errors.
        """
        require_known(wishes, Wishes.__annotations__)
        own, other = (self.workspace.resolve(name) for name in (key, other_key))
        return exchange(self.workspace.bases, own, other, **wishes)

    def merge_adapters(
        self, keys: Sequence[str], name: str, *, replace: bool = False, **wishes: Unpack[MergeWishes]
    ) -> tuple[str, MergeReport]:
        """Merge adapters of one base, store the result, and return its key and what merging lost.

        See ``exchange.merge.merge_adapters``.
        """
        require_texts("keys", keys)
        base = own_base(self.workspace.bases, self.workspace.stored(keys[0])) if keys else BASE
        full = f"{self.entry(base).name}.{name}" if keys else name
        stored, report = self.workspace.merge(keys, full, replace=replace, **wishes)
        return stored.name, report

    def write_report(
        self, path: str | Path, transfers: Sequence[TransferReport], tasks: Sequence[TaskReport] = ()
    ) -> Path:
        """Write one HTML page: the matrix of all adapters, what the transfers did, and how good adapters are."""
        return write_exchange_page(self.compatibility_matrix(), transfers, named_path("path", path), tasks=tasks)
