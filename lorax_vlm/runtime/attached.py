"""Adapters attached to one loaded base, and which of them is in effect.

PEFT computes the LoRA layers. What is added: an adapter is checked against the base before PEFT sees it, its effect
is limited to a ``with`` block that cannot leave anything behind, and one lock per base keeps threads apart.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from lorax_vlm.adapters.compatibility import BaseDescription, CompatibilityReport, check_compatibility
from lorax_vlm.adapters.files import HEAD, WEIGHTS_FILE, AdapterFiles, read_adapter_files
from lorax_vlm.adapters.manifest import Manifest, read_manifest
from lorax_vlm.adapters.peft_layers import add_peft_layers
from lorax_vlm.adapters.recipe import touches_image_path
from lorax_vlm.errors import AdapterNotFound, IncompatibleAdapter, UntrainedAdapter
from lorax_vlm.models.families.vilt import AnswerHead, resize_head
from lorax_vlm.models.loading import LoadedModel


@dataclass(frozen=True)
class Attachment:
    """An adapter on a base."""

    name: str
    slot: str
    """PEFT's name for it; PEFT names are attribute names, so they cannot contain a dot."""
    manifest: Manifest
    files: AdapterFiles
    report: CompatibilityReport
    head: AnswerHead | None = None
    """Its own head, with the answers the outputs stand for; takes the place of the base's while it is in effect."""

    @property
    def touches_image_path(self) -> bool:
        """Whether the image must be encoded anew for this adapter."""
        return touches_image_path(self.files.sites)


class AttachedAdapters:
    """The adapters on one base. The base itself is never changed beyond PEFT's removable layers."""

    def __init__(self, base: LoadedModel) -> None:
        self.base = base
        self._peft: PeftModel | None = None
        self._attachments: dict[str, Attachment] = {}
        self._lock = threading.RLock()
        self._slots_made = 0

    @property
    def names(self) -> list[str]:
        """Names of the attached adapters, in order of attachment."""
        return list(self._attachments)

    def get(self, name: str) -> Attachment:
        """An attached adapter.

        Raises:
            AdapterNotFound: It is not attached.
        """
        if name not in self._attachments:
            raise AdapterNotFound(name, f"the adapters attached to {self.base.name}", self.names)
        return self._attachments[name]

    def check(self, name: str, folder: Path, manifest: Manifest) -> tuple[AdapterFiles, CompatibilityReport]:
        """Read a PEFT directory and compare it with the base; nothing is loaded.

        Raises:
            DamagedAdapter: Its files are not sound.
            UnsupportedAdapter: It is not plain LoRA.
            IncompatibleAdapter: It does not fit this base, or was trained on other weights.
            UntrainedAdapter: It changes nothing and is not marked untrained.
        """
        files = read_adapter_files(folder, name)
        if files.changes_nothing and manifest.trained:
            raise UntrainedAdapter(name)
        report = check_compatibility(files, manifest, describe_base(self.base))
        if report.verdict == "refused":
            raise IncompatibleAdapter(name, self.base.name, report.reasons)
        return files, report

    def attach(self, name: str, folder: Path) -> Attachment:
        """Load a PEFT directory, with or without a manifest, onto the base; one of the same name is replaced.

        Raises:
            AdapterError: As ``check``; the base and its other adapters are unchanged.
        """
        manifest = read_manifest(folder, name)
        files, report = self.check(name, folder, manifest)
        with self._lock:
            if name in self._attachments:
                self.detach(name)
            slot = f"slot_{self._slots_made}"
            self._slots_made += 1
            try:
                self._inject(slot, folder)
            except BaseException:
                self._remove_slot(slot)
                raise
            head = self._load_head(files, manifest) if files.head else None
            attachment = Attachment(name, slot, manifest, files, report, head)
            self._attachments[name] = attachment
        return attachment

    def _inject(self, slot: str, folder: Path) -> None:
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        config.modules_to_save = None  # PEFT would leave the adapter's head on the base; see _load_head
        if self._peft is None:
            self._peft = add_peft_layers(self.base.model, config, slot)
        else:
            self._peft.add_adapter(slot, config)
        outcome = set_peft_model_state_dict(self._peft, _lora_tensors(folder), adapter_name=slot)
        self._rest()
        missing = [key for key in outcome.missing_keys if f".{slot}." in key]
        if missing or outcome.unexpected_keys:
            raise IncompatibleAdapter(slot, self.base.name, [*missing, *outcome.unexpected_keys])

    def _load_head(self, files: AdapterFiles, manifest: Manifest) -> AnswerHead:
        head = resize_head(self.base.model.get_submodule(HEAD), manifest.labels)
        prefix = f"base_model.model.{HEAD}."
        stored = {
            key.removeprefix(prefix): value
            for key, value in load_file(files.folder / WEIGHTS_FILE).items()
            if key.startswith(prefix)
        }
        head.load_state_dict(stored)
        return head.to(self.base.device).eval().requires_grad_(False)

    def detach(self, name: str) -> None:
        """Take an adapter off the base.

        Raises:
            AdapterNotFound: It is not attached.
        """
        with self._lock:
            attachment = self.get(name)
            del self._attachments[name]
            self._remove_slot(attachment.slot)

    def detach_all(self) -> None:
        """Restore the plain base."""
        with self._lock:
            self._attachments.clear()
            if self._peft is not None:
                self._peft.unload()
                self._peft = None

    def _remove_slot(self, slot: str) -> None:
        if self._peft is None:
            return
        if not self._attachments:
            self.detach_all()
        elif slot in self._peft.peft_config:
            self._peft.delete_adapter(slot)

    @contextmanager
    def using(self, name: str | None) -> Iterator[Any]:
        """Run a block with one adapter in effect, or with the plain base for ``None``; yields the model.

        Raises:
            AdapterNotFound: The adapter is not attached: an unknown name never means the base.
        """
        with self._lock:
            if name is None or self._peft is None:
                if name is not None:
                    self.get(name)
                yield self.base.model
                return
            attachment, own_head = self.get(name), getattr(self.base.model, HEAD, None)
            self._peft.set_adapter(attachment.slot, inference_mode=True)
            self._peft.base_model.enable_adapter_layers()
            try:
                if attachment.head is not None:
                    setattr(self.base.model, HEAD, attachment.head)
                yield self.base.model
            finally:
                if attachment.head is not None:
                    setattr(self.base.model, HEAD, own_head)
                self._rest()

    def _rest(self) -> None:
        """Between blocks no adapter is in effect: the bare model answers as the base."""
        if self._peft is not None:
            self._peft.base_model.disable_adapter_layers()
        self.base.model.eval().requires_grad_(False)


def describe_base(base: LoadedModel) -> BaseDescription:
    """Names and shapes of the base's linear layers, adapters already on it left aside."""
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in base.model.named_modules():
        if ".lora_" in name:
            continue
        if isinstance(module, nn.Linear):
            shapes[name.removesuffix(".base_layer")] = (module.out_features, module.in_features)
    head = getattr(base.model, HEAD, None)
    head_shapes = {f"{HEAD}.{name}": tuple(p.shape) for name, p in head.named_parameters()} if head is not None else {}
    return BaseDescription(base.name, shapes, base.architecture, base.fingerprint, head_shapes)


def _lora_tensors(folder: Path) -> dict[str, Tensor]:
    return {key: value for key, value in load_file(folder / WEIGHTS_FILE).items() if ".lora_" in key}
