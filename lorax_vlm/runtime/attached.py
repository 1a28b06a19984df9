"""Adapters attached to one loaded base, and which of them each row of a call uses.

An adapter is read once: the bytes that are checked against the base are those that are loaded. Its effect is limited to
a ``with`` block; threads that share the base do not see each other's.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from lorax_vlm.adapters.compatibility import CompatibilityReport, check_compatibility
from lorax_vlm.adapters.files import AdapterBytes, AdapterFiles, read_adapter
from lorax_vlm.adapters.manifest import Manifest, read_manifest
from lorax_vlm.adapters.recipe import touches_image_path
from lorax_vlm.errors import AdapterNotFound, IncompatibleAdapter, UntrainedAdapter
from lorax_vlm.models.families.pictures import Features
from lorax_vlm.models.families.text import require_equal_rows
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.models.spec import HEAD
from lorax_vlm.runtime.feature_memory import FeatureMemory
from lorax_vlm.runtime.residency import Residency
from lorax_vlm.runtime.routed import RoutedHead, RoutedLinear, routed
from lorax_vlm.runtime.weights import AdapterWeights, load_weights, weights_nbytes
from lorax_vlm.types import Generated, GenerationSettings


@dataclass(frozen=True)
class Attachment:
    """An adapter in memory."""

    name: str
    manifest: Manifest
    files: AdapterFiles
    report: CompatibilityReport
    weights: AdapterWeights

    @property
    def touches_image_path(self) -> bool:
        """Whether the image must be encoded anew for this adapter."""
        return touches_image_path(self.files.sites)

    @property
    def prompt(self) -> str | None:
        """The prompt that it was trained on; None where nothing says."""
        return self.manifest.prompt if self.manifest.base is not None else None


Read = Callable[[str], tuple[Manifest, AdapterBytes]]
"""The record and the files of the adapter of a name, both of one version."""


@dataclass(frozen=True)
class _Told:
    """What ``attach`` was told: where an adapter is, and what it is."""

    folder: Path
    manifest: Manifest
    """With the digests of the files that were read then, so that they are the same whenever they are read again."""
    serial: int


class AttachedAdapters:
    """The adapters on one base. The base itself is never changed beyond layers that can be taken off again."""

    def __init__(
        self,
        base: LoadedModel,
        locate: Callable[[str], Path] | None = None,
        budget_bytes: int | None = None,
        read: Read | None = None,
    ) -> None:
        """Start with the plain base.

        Args:
            base: The loaded base.
            locate: Where the adapter of a name is now; it is loaded from there on first use, again after it left
                memory, and anew when the place has changed. None: only what ``attach`` was told.
            budget_bytes: Most memory for adapters. None: no limit.
            read: Reads the adapter of a name. None: what is in its folder, which ``locate`` tells.
        """
        self.base = base
        self._locate = locate
        self._read = read if read is not None else lambda name: _read_folder(self._place(name), name)
        self._told: dict[str, _Told] = {}
        self._serial = itertools.count()
        self._resident: Residency[Attachment] = Residency(budget_bytes)
        self._seen = FeatureMemory()

    @property
    def names(self) -> list[str]:
        """Adapters in memory, least recently used first."""
        return self._resident.names

    @property
    def used_bytes(self) -> int:
        """Memory that adapters take."""
        return self._resident.used_bytes

    def check(
        self, name: str, source: Path | AdapterBytes, manifest: Manifest
    ) -> tuple[AdapterBytes, CompatibilityReport]:
        """Compare a PEFT directory with the base; nothing is loaded.

        Args:
            name: For errors.
            source: The directory, or what was read from it.
            manifest: Of the adapter.

        Raises:
            DamagedAdapter: Its files are not sound, or not those that the manifest names.
            UnsupportedAdapter: It is not plain LoRA.
            IncompatibleAdapter: It does not fit this base, or was trained on other weights.
            UntrainedAdapter: It changes nothing and is not marked untrained.
        """
        adapter = source if isinstance(source, AdapterBytes) else read_adapter(source, name, manifest.files)
        if adapter.files.changes_nothing and manifest.trained and not manifest.no_better:
            raise UntrainedAdapter(name)
        description = self.base.description
        if manifest.base is not None:  # only then there is something to compare the weights with
            description = dataclasses.replace(description, fingerprint=self.base.fingerprint)
        report = check_compatibility(adapter.files, manifest, description)
        if report.verdict == "refused":
            raise IncompatibleAdapter(name, self.base.name, report.reasons)
        return adapter, report

    def attach(self, name: str, source: Path | AdapterBytes, manifest: Manifest | None = None) -> Attachment:
        """Load a PEFT directory onto the base; one of the same name is replaced.

        Args:
            name: What it is called from now on.
            source: The directory, or what was read from it.
            manifest: None: what the folder holds, if any.

        Raises:
            AdapterError: As ``check``; the base and its other adapters are unchanged.
        """
        folder = source.files.folder if isinstance(source, AdapterBytes) else source
        manifest = manifest or read_manifest(folder, name)
        adapter = source if isinstance(source, AdapterBytes) else read_adapter(source, name, manifest.files)
        told = _Told(folder, dataclasses.replace(manifest, files=dict(adapter.files.records)), next(self._serial))
        with self._lease({name: told.serial}, lambda _: (told.manifest, adapter)) as found:
            self._told[name] = told
            return dataclasses.replace(found[name], manifest=manifest)

    def get(self, name: str) -> Attachment:
        """An adapter, loaded if it is not in memory.

        Raises:
            AdapterNotFound: There is none.
            AdapterError: As ``check``.
        """
        with self._lease_now([name]) as found:
            return found[name]

    def detach(self, name: str) -> None:
        """Take an adapter out of memory; calls that use it end undisturbed.

        Raises:
            AdapterNotFound: It is not attached.
        """
        if self._resident.get(name) is None and name not in self._told:
            raise self._not_found(name)
        self._told.pop(name, None)
        self._resident.remove(name)

    def detach_all(self) -> None:
        """Restore the plain base, when the calls that use it have ended."""
        with self._resident.idle():
            self._told.clear()
            self._resident.clear()
            for name, module in list(self.base.model.named_modules()):
                if isinstance(module, RoutedLinear | RoutedHead):
                    self.base.model.set_submodule(name, module.base_layer)

    @contextmanager
    def routed(self, rows: Sequence[str | None]) -> Iterator[Any]:
        """Run a block in which row ``b`` of every batch uses adapter ``rows[b]``, None for the plain base.

        Yields the model. The adapters stay in memory for the block; a thread must not open another one inside it.

        Raises:
            AdapterNotFound: There is no such adapter: an unknown name never means the base.
            AdapterMemoryExceeded: They do not fit the budget together.
        """
        with ExitStack() as stack:
            found = stack.enter_context(self._lease_now([name for name in rows if name is not None]))
            stack.enter_context(routed([found[name].weights if name is not None else None for name in rows]))
            yield self.base.model

    @torch.no_grad()
    def generate(
        self,
        rows: Sequence[str | None],
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        settings: GenerationSettings,
    ) -> list[Generated]:
        """Answer each prompt about its picture, each row with its adapter or, for None, with the plain base.

        A picture is encoded once, however many rows and calls it comes in, except where an adapter, or for InstructBLIP
        the prompt, makes it look different.

        Raises:
            ValueError: The numbers of rows differ.
            AdapterNotFound: There is no such adapter.
            AdapterMemoryExceeded: The adapters do not fit the budget together.
        """
        require_equal_rows(adapters=len(rows), pictures=len(pictures), prompts=len(prompts))
        family, model = self.base.family, self.base.model
        with self._lease_now([name for name in rows if name is not None]) as found:
            features = self._look([found[name] if name is not None else None for name in rows], pictures, prompts)
            with routed([found[name].weights if name is not None else None for name in rows]):
                seeds = _sampling_seeds(settings, pictures, prompts)
                return family.generate(model, features, prompts, settings, seeds)

    def answer_logits(self, name: str | None, picture: Image.Image, prompt: str) -> Tensor:
        """What the first token of an answer is chosen by, ``(V,)`` float32 on the CPU; see ``Family.answer_logits``."""
        with self._lease_now([name] if name is not None else []) as found, torch.no_grad():
            row = found[name] if name is not None else None
            features = self._look([row], [picture], [prompt])
            with routed([row.weights if row is not None else None]):
                return self.base.family.answer_logits(self.base.model, features, [prompt])[0].cpu()

    @torch.no_grad()
    def confidences(
        self,
        rows: Sequence[str | None],
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        texts: Sequence[str],
    ) -> list[float]:
        """How sure each row's adapter, or the plain base, is of a text; see ``Family.confidences``; errors as there."""
        require_equal_rows(adapters=len(rows), pictures=len(pictures), prompts=len(prompts), texts=len(texts))
        family, model = self.base.family, self.base.model
        with self._lease_now([name for name in rows if name is not None]) as found:
            features = self._look([found[name] if name is not None else None for name in rows], pictures, prompts)
            with routed([found[name].weights if name is not None else None for name in rows]):
                return family.confidences(model, features, prompts, texts)

    def _look(
        self, rows: Sequence[Attachment | None], pictures: Sequence[Image.Image], prompts: Sequence[str]
    ) -> list[Features]:
        """Features of each row's picture; a new one is encoded once for all rows that see it alike."""
        family, model = self.base.family, self.base.model
        looking = [row.weights if row is not None and row.touches_image_path else None for row in rows]
        reading = list(prompts) if family.image_path_reads_prompt else [""] * len(rows)
        looks = list(zip(map(id, pictures), looking, reading, strict=True))
        unique = {look: row for row, look in reversed(list(enumerate(looks)))}
        chosen = sorted(unique.values())
        prepared = family.prepare([pictures[row] for row in chosen])

        def encode(places: Sequence[int]) -> list[Features]:
            rows, some = [chosen[place] for place in places], [prepared[place] for place in places]
            with routed([looking[row] for row in rows], family.lengths(some)):
                return family.encode_images(model, some, [prompts[row] for row in rows])

        if family.takes_features and not any(looking):
            keys = [picture.digest(reading[row]) for picture, row in zip(prepared, chosen, strict=True)]
            features = self._seen.features(keys, encode)
        else:
            features = encode(range(len(chosen)))
        return [features[chosen.index(unique[look])] for look in looks]

    @contextmanager
    def using(self, name: str | None) -> Iterator[Any]:
        """Run a block with one adapter in effect for all rows, or with the plain base for ``None``; see ``routed``."""
        with self.routed([name]) as model:
            yield model

    def _lease_now(self, names: Sequence[str]) -> AbstractContextManager[dict[str, Attachment]]:
        """Lease adapters in the versions that are theirs now."""
        told = {name: self._told.get(name) for name in names}
        versions = {name: own.serial if own is not None else self._place(name) for name, own in told.items()}

        def read(name: str) -> tuple[Manifest, AdapterBytes]:
            own = told[name]
            if own is None:
                return self._read(name)
            return own.manifest, read_adapter(own.folder, name, own.manifest.files)

        return self._lease(versions, read)

    @contextmanager
    def _lease(self, versions: Mapping[str, Hashable], read: Read) -> Iterator[dict[str, Attachment]]:
        checked: dict[str, tuple[Manifest, AdapterBytes, CompatibilityReport]] = {}

        def measure(name: str) -> int:
            manifest, adapter = read(name)
            checked[name] = manifest, *self.check(name, adapter, manifest)
            return weights_nbytes(adapter.files, self.base.compute_dtype)

        def load(name: str) -> Attachment:
            manifest, adapter, report = checked.pop(name)  # the bytes go as soon as the weights are there
            self._install(adapter.files)
            head = self._plain_head() if adapter.files.head else None
            weights = load_weights(adapter, self.base.compute_dtype, self.base.device, head, manifest.labels)
            return Attachment(name, manifest, adapter.files, report, weights)

        with self._resident.lease(versions, measure, load) as found:
            checked.clear()  # of those that another call brought into memory meanwhile
            yield found

    def _place(self, name: str) -> Path:
        if self._locate is None:
            raise self._not_found(name)
        return self._locate(name)

    def _not_found(self, name: str) -> AdapterNotFound:
        return AdapterNotFound(name, f"the adapters attached to {self.base.name}", self.names)

    def _install(self, files: AdapterFiles) -> None:
        """Put routed layers where this adapter has sites and there are none yet; alone they change nothing."""
        with self.base.changing:
            for site in files.sites:
                module = self.base.model.get_submodule(site)
                if not isinstance(module, RoutedLinear):
                    self.base.model.set_submodule(site, RoutedLinear(module, site).eval())
            head: Any = getattr(self.base.model, HEAD, None)
            if files.head and not isinstance(head, RoutedHead):
                setattr(self.base.model, HEAD, RoutedHead(head).eval())

    def _plain_head(self) -> nn.Sequential:
        head: Any = self.base.model.get_submodule(HEAD)
        return cast(nn.Sequential, head.base_layer if isinstance(head, RoutedHead) else head)


def _read_folder(folder: Path, name: str) -> tuple[Manifest, AdapterBytes]:
    manifest = read_manifest(folder, name)
    return manifest, read_adapter(folder, name, manifest.files)


def _sampling_seeds(
    settings: GenerationSettings, pictures: Sequence[Image.Image], prompts: Sequence[str]
) -> list[int] | None:
    """What each row's noise is drawn from: the seed that was asked for, the picture, the prompt; None without a seed.

    So a row's sample is the same alone and in any batch, and rows about different pictures draw different noise.
    """
    if settings.temperature is None or settings.seed is None:
        return None
    known = {id(p): f"{p.size} {hashlib.sha256(p.tobytes()).hexdigest()}" for p in pictures}
    return [
        int.from_bytes(hashlib.sha256(repr((settings.seed, known[id(p)], prompt)).encode()).digest()[:7])
        for p, prompt in zip(pictures, prompts, strict=True)
    ]
