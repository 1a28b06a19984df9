"""Adapters attached to one loaded base, and which of them each row of a call uses.

An adapter is checked against the base before anything of it is loaded. Its effect is limited to a ``with`` block;
threads that share the base do not see each other's.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lorax_vlm.adapters.compatibility import CompatibilityReport, check_compatibility
from lorax_vlm.adapters.files import AdapterFiles, read_adapter_files
from lorax_vlm.adapters.manifest import Manifest, read_manifest
from lorax_vlm.adapters.peft_config import HEAD
from lorax_vlm.adapters.recipe import touches_image_path
from lorax_vlm.errors import AdapterNotFound, IncompatibleAdapter, UntrainedAdapter
from lorax_vlm.models.families.text import require_equal_rows
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.feature_memory import FeatureMemory, feature_key
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


class AttachedAdapters:
    """The adapters on one base. The base itself is never changed beyond layers that can be taken off again."""

    def __init__(
        self, base: LoadedModel, locate: Callable[[str], Path] | None = None, budget_bytes: int | None = None
    ) -> None:
        """Start with the plain base.

        Args:
            base: The loaded base.
            locate: Where the adapter of a name is now; it is loaded from there on first use, again after it left
                memory, and anew when the place has changed. None: only what ``attach`` was told.
            budget_bytes: Most memory for adapters. None: no limit.
        """
        self.base = base
        self._locate = locate
        self._folders: dict[str, Path] = {}
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

    def check(self, name: str, folder: Path, manifest: Manifest) -> tuple[AdapterFiles, CompatibilityReport]:
        """Read a PEFT directory and compare it with the base; nothing is loaded.

        Raises:
            DamagedAdapter: Its files are not sound.
            UnsupportedAdapter: It is not plain LoRA.
            IncompatibleAdapter: It does not fit this base, or was trained on other weights.
            UntrainedAdapter: It changes nothing and is not marked untrained.
        """
        files = read_adapter_files(folder, name, manifest.files)
        if files.changes_nothing and manifest.trained and manifest.training.get("best_step") != 0:
            raise UntrainedAdapter(name)
        description = self.base.description
        if manifest.base is not None:  # only then there is something to compare the weights with
            description = dataclasses.replace(description, fingerprint=self.base.fingerprint)
        report = check_compatibility(files, manifest, description)
        if report.verdict == "refused":
            raise IncompatibleAdapter(name, self.base.name, report.reasons)
        return files, report

    def attach(self, name: str, folder: Path, manifest: Manifest | None = None) -> Attachment:
        """Load a PEFT directory onto the base; one of the same name is replaced.

        Args:
            name: What it is called from now on.
            folder: With the adapter's files.
            manifest: None: what the folder holds, if any.

        Raises:
            AdapterError: As ``check``; the base and its other adapters are unchanged.
        """
        with self._lease([name], {name: folder}, manifest) as found:
            self._folders[name] = folder
            return found[name]

    def get(self, name: str) -> Attachment:
        """An adapter, loaded if it is not in memory.

        Raises:
            AdapterNotFound: There is none.
            AdapterError: As ``check``.
        """
        with self._lease([name]) as found:
            return found[name]

    def detach(self, name: str) -> None:
        """Take an adapter out of memory; calls that use it end undisturbed.

        Raises:
            AdapterNotFound: It is not attached.
        """
        if self._resident.get(name) is None and name not in self._folders:
            raise self._not_found(name)
        self._folders.pop(name, None)
        self._resident.remove(name)

    def detach_all(self) -> None:
        """Restore the plain base, when the calls that use it have ended."""
        with self._resident.idle():
            self._folders.clear()
            self._resident.clear()
            for name, module in list(self.base.model.named_modules()):
                if isinstance(module, RoutedLinear | RoutedHead):
                    self.base.model.set_submodule(name, module.base_layer)

    def pin(self, name: str) -> None:
        """Load an adapter and keep it in memory until ``unpin``."""
        with self._lease([name]):
            self._resident.pin(name)

    def unpin(self, name: str) -> None:
        """Let a pinned adapter leave when room is needed."""
        self._resident.unpin(name)

    @contextmanager
    def routed(self, rows: Sequence[str | None]) -> Iterator[Any]:
        """Run a block in which row ``b`` of every batch uses adapter ``rows[b]``, None for the plain base.

        Yields the model. The adapters stay in memory for the block; a thread must not open another one inside it.

        Raises:
            AdapterNotFound: There is no such adapter: an unknown name never means the base.
            AdapterMemoryExceeded: They do not fit the budget together.
        """
        with ExitStack() as stack:
            found = stack.enter_context(self._lease([name for name in rows if name is not None]))
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
        with self._lease([name for name in rows if name is not None]) as found:
            features = self._look([found[name] if name is not None else None for name in rows], pictures, prompts)
            with routed([found[name].weights if name is not None else None for name in rows]):
                return family.generate(model, features, prompts, settings)

    def answer_logits(self, name: str | None, picture: Image.Image, prompt: str) -> Tensor:
        """What the first token of an answer is chosen by, ``(V,)`` float32 on the CPU; see ``Family.answer_logits``."""
        with self._lease([name] if name is not None else []) as found, torch.no_grad():
            row = found[name] if name is not None else None
            features = self._look([row], [picture], [prompt])
            with routed([row.weights if row is not None else None]):
                return self.base.family.answer_logits(self.base.model, features, [prompt])[0].cpu()

    def _look(
        self, rows: Sequence[Attachment | None], pictures: Sequence[Image.Image], prompts: Sequence[str]
    ) -> Tensor:
        """Features of each row's picture; a new one is encoded once for all rows that see it alike."""
        family, model = self.base.family, self.base.model
        looking = [row.weights if row is not None and row.touches_image_path else None for row in rows]
        reading = list(prompts) if family.image_path_reads_prompt else [""] * len(rows)
        looks = list(zip(map(id, pictures), looking, reading, strict=True))
        unique = {look: row for row, look in reversed(list(enumerate(looks)))}
        chosen = sorted(unique.values())
        pixels = family.pixel_values([pictures[row] for row in chosen])

        def encode(places: Sequence[int]) -> Tensor:
            seen = [chosen[place] for place in places]
            with routed([looking[row] for row in seen]):
                return family.encode_images(model, pixels[places].to(self.base.device), [prompts[row] for row in seen])

        if family.takes_features and not any(looking):
            keys = [feature_key(image, reading[row]) for image, row in zip(pixels, chosen, strict=True)]
            features = torch.stack(self._seen.features(keys, encode))
        else:
            features = encode(range(len(chosen)))
        return features[[chosen.index(unique[look]) for look in looks]]

    @contextmanager
    def using(self, name: str | None) -> Iterator[Any]:
        """Run a block with one adapter in effect for all rows, or with the plain base for ``None``; see ``routed``."""
        with self.routed([name]) as model:
            yield model

    @contextmanager
    def _lease(
        self, names: Sequence[str], folders: dict[str, Path] | None = None, given: Manifest | None = None
    ) -> Iterator[dict[str, Attachment]]:
        wanted = {name: (folders or {}).get(name) or self._folder(name) for name in names}
        checked: dict[str, tuple[Manifest, AdapterFiles, CompatibilityReport]] = {}

        def measure(name: str) -> int:
            manifest = given or read_manifest(wanted[name], name)
            files, report = self.check(name, wanted[name], manifest)
            checked[name] = manifest, files, report
            return weights_nbytes(files, self.base.compute_dtype)

        def load(name: str) -> Attachment:
            manifest, files, report = checked[name]
            self._install(files)
            head = self._plain_head() if files.head else None
            weights = load_weights(files, self.base.compute_dtype, self.base.device, head, manifest.labels)
            return Attachment(name, manifest, files, report, weights)

        with self._resident.lease(wanted, measure, load) as found:
            yield found

    def _folder(self, name: str) -> Path:
        if name in self._folders:
            return self._folders[name]
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
            head = getattr(self.base.model, HEAD, None)
            if files.head and not isinstance(head, RoutedHead):
                setattr(self.base.model, HEAD, RoutedHead(head).eval())

    def _plain_head(self) -> nn.Sequential:
        head: Any = self.base.model.get_submodule(HEAD)
        return head.base_layer if isinstance(head, RoutedHead) else head
