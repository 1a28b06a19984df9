"""The only place that calls ``from_pretrained`` on a base model."""

import dataclasses
import importlib.util
import platform
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from lorax_vlm.errors import CheckpointError, MissingExtra
from lorax_vlm.models.catalog import CatalogEntry, get_model_entry, with_family_defaults
from lorax_vlm.models.description import BaseDescription, describe_checkpoint, require_no_adapter
from lorax_vlm.models.families.base import Family
from lorax_vlm.models.families.registry import family_class, find_architecture
from lorax_vlm.models.fingerprint import Fingerprint, read_fingerprint, shown_progress, weights_key
from lorax_vlm.models.placement import (
    Device,
    Hardware,
    Placement,
    Precision,
    Quantization,
    plan_placement,
    require_memory,
)
from lorax_vlm.models.structure import plain_copy
from lorax_vlm.settings import local_rank

_DESCRIBED_BY = ["*.json", "*.jinja", "*.txt", "*.model"]
_WEIGHTS = ["*.safetensors"]
_PICKLED_ONLY = (
    "Only safetensors weights are read, because a pickle can run code. Convert a checkpoint you trust once: load it "
    "with its transformers class, call save_pretrained(FOLDER) on model and processor, and pass FOLDER."
)


@dataclass(frozen=True)
class LoadedModel:
    """A frozen base with everything needed to use it."""

    entry: CatalogEntry
    model: Any
    family: Family
    placement: Placement
    folder: Path
    revision: str | None
    """Commit of the hub repository, None for a local folder."""
    changing: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    """Held by whoever puts layers into the module tree, or copies it."""
    weights_key: str | None = None
    """What stood for its files when they were loaded; see ``models.fingerprint.weights_key``."""

    def plain_copy(self) -> "LoadedModel":
        """The same base in a module tree of its own, without adapters; the tensors are shared.

        So a training may put layers on it, whoever answers on the original meanwhile.
        """
        with self.changing:
            twin = dataclasses.replace(self, model=plain_copy(self.model), changing=threading.Lock())
        twin.__dict__.update({key: value for key, value in self.__dict__.items() if key not in twin.__dict__})
        return twin

    @property
    def name(self) -> str:
        """The catalogue's name."""
        return self.entry.name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the layers compute in; a quantised base's weights are expanded to it."""
        dtype: torch.dtype = getattr(torch, self.placement.dtype)
        return dtype

    @cached_property
    def description(self) -> BaseDescription:
        """What adapters must know of it; its fingerprint only where that was made before."""
        described = describe_checkpoint(self.folder, self.name)
        configuration = {**described.configuration, **self.family.chosen}
        return dataclasses.replace(
            described,
            configuration=configuration,
            quantization=self.placement.quantization,
            dtype=self.placement.dtype,
        )

    @property
    def known_components(self) -> Mapping[str, str] | None:
        """Digests of its weights by component, if they were read since it was loaded."""
        fingerprint = self.__dict__.get("fingerprint")
        return fingerprint.components if fingerprint is not None else None

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Digests of its weights. Of a large checkpoint all of them are read the first time, with a bar.

        Raises:
            CheckpointError: Its files are no longer those that were loaded.
        """
        if self.weights_key is not None and weights_key(self.folder) != self.weights_key:
            raise CheckpointError(
                self.name, [f"its files in {self.folder} were written to since it was loaded; load it again"]
            )
        with shown_progress(self.name) as progress:
            return read_fingerprint(self.folder, progress)


def probe_hardware() -> Hardware:
    """Look at this machine."""
    cpu_bfloat16 = bool(torch.cpu._is_avx512_bf16_supported()) or platform.machine().lower() in ("arm64", "aarch64")
    free_ram = psutil.virtual_memory().available
    if not torch.cuda.is_available():
        return Hardware(free_ram, cpu_bfloat16)
    return Hardware(
        free_ram,
        cpu_bfloat16,
        torch.cuda.get_device_name(local_rank()),
        torch.cuda.mem_get_info(local_rank())[0],
        torch.cuda.is_bf16_supported(including_emulation=False),
    )


def load_model(
    name: str,
    *,
    device: Device = "auto",
    dtype: Precision = "auto",
    quantize: Quantization = "auto",
    image_tokens: int | None = None,
) -> LoadedModel:
    """Load a base by catalogue name, hub id or folder, frozen and in evaluation mode.

    Args:
        name: The base.
        device: See ``models/placement.py``, as for ``dtype`` and ``quantize``.
        dtype: What it computes in.
        quantize: In how many bits its language model is kept.
        image_tokens: See ``Family.with_image_tokens``. None: the family's default.

    Raises:
        UsageError: Its images all have the same number of tokens, or more than were asked for.
        UnknownModel: The name is nothing known.
        OutOfMemoryForecast: It would not fit; checked before any download.
        CheckpointError: It cannot be fetched, is of no supported family, or its parts disagree.
        MissingExtra: Quantisation is asked for and bitsandbytes is not installed.
    """
    entry, hardware = get_model_entry(name), probe_hardware()
    if entry.parameters is None:  # not in the catalogue: its configuration says what it is
        entry = _describe(entry)
    placement = plan_placement(entry, hardware, device, dtype, quantize)
    require_memory(entry, placement, hardware)
    folder, revision = _fetch(entry, [*_DESCRIBED_BY, *_WEIGHTS])
    require_no_adapter(folder, entry.name)
    config = _read_config(folder, entry)
    family_type = family_class(find_architecture(config, entry.name))
    family = family_type(_load_processor(folder, family_type, entry), config, entry.name)
    if image_tokens is not None:
        family = family.with_image_tokens(image_tokens)
    key = weights_key(folder) if any(folder.glob("*.safetensors")) else None  # without any, loading says it better
    model = _load_weights(folder, config, family_type, entry, placement)
    family.after_loading(model, entry.name)
    model.eval().requires_grad_(False)
    return LoadedModel(entry, model, family, placement, folder, revision, weights_key=key)


def load_family(entry: CatalogEntry) -> Family:
    """What knows a base's texts and images, without its weights.

    Raises:
        CheckpointError: It cannot be fetched, or is of no supported family.
    """
    folder, _ = _fetch(entry, _DESCRIBED_BY)
    config = _read_config(folder, entry)
    family_type = family_class(find_architecture(config, entry.name))
    return family_type(_load_processor(folder, family_type, entry), config, entry.name)


def describe_model(entry: CatalogEntry, *, anew: bool = False) -> BaseDescription:
    """A base with its fingerprint, without loading it; what is not on this machine is fetched first.

    Args:
        entry: The base.
        anew: Read all of its weights, whatever was kept of them.

    Raises:
        CheckpointError: It cannot be fetched, or is of no supported family.
    """
    folder, _ = _fetch(entry, [*_DESCRIBED_BY, *_WEIGHTS])
    with shown_progress(entry.name) as progress:
        read_fingerprint(folder, progress, anew=anew)
    return describe_checkpoint(folder, entry.name)


def _read_config(folder: Path, entry: CatalogEntry) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # files of anybody
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(entry.name, [f"its configuration cannot be read: {reason}"]) from error


def _load_processor(folder: Path, family: type[Family], entry: CatalogEntry) -> Any:
    try:
        return family.load_processor(folder)
    except MemoryError:
        raise
    except Exception as error:  # files of anybody; one that names Python code of its own is refused here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(entry.name, [f"its tokenizer or processor cannot be loaded: {reason}"]) from error


def describe_entry(entry: CatalogEntry) -> CatalogEntry:
    """An entry with its family, and so with its prompts; of one that the catalogue does not list its files say them.

    Raises:
        CheckpointError: It cannot be fetched, or is of no supported family.
    """
    return entry if entry.family else _describe(entry)


def _describe(entry: CatalogEntry) -> CatalogEntry:
    """Family and number of parameters of a checkpoint that the catalogue does not list."""
    folder, _ = _fetch(entry, _DESCRIBED_BY)
    config = _read_config(folder, entry)
    row = find_architecture(config, entry.name)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in family_class(row).model_class(config).parameters())
    return dataclasses.replace(with_family_defaults(entry, row.name), parameters=parameters)


def _load_weights(folder: Path, config: Any, family: type[Family], entry: CatalogEntry, placement: Placement) -> Any:
    options: dict[str, Any] = {
        "dtype": getattr(torch, placement.dtype),
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    if placement.quantization != "none":
        options["quantization_config"] = _quantization_config(placement, family)
    if placement.device == "cuda":
        options["device_map"] = {"": local_rank()}
    progress_bar, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    if entry.miniature:  # a bar for five milliseconds is noise
        transformers_logging.disable_progress_bar()
    # For FLAN-T5 the library advises to set tie_word_embeddings=False, which would leave the encoder's embeddings
    # random; what is missing is checked below.
    transformers_logging.set_verbosity_error()
    try:
        model, found = family.model_class.from_pretrained(folder, config=config, output_loading_info=True, **options)
    except OSError as error:
        raise CheckpointError(entry.name, [str(error).splitlines()[0]], _PICKLED_ONLY) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress_bar:
            transformers_logging.enable_progress_bar()
    random_weights = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if random_weights:
        shown = ", ".join(random_weights[:5])
        raise CheckpointError(entry.name, [f"{len(random_weights)} of its weights are not in its files: {shown}"])
    if placement.quantization == "4bit" and placement.device == "cpu":
        _avoid_inplace_bias(model)
    return model


def _fetch(entry: CatalogEntry, patterns: list[str]) -> tuple[Path, str | None]:
    if Path(entry.source).is_dir():
        return Path(entry.source), None
    try:
        folder = Path(snapshot_download(entry.source, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "Without a connection, use a miniature: blip2-opt-mini, blip2-flan-mini, ..."
        raise CheckpointError(entry.source, [f"it could not be fetched from the hub: {reason}"], hint) from error
    return folder, folder.name


def _quantization_config(placement: Placement, family: type[Family]) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "quant", f"{placement.quantization} quantisation")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=placement.quantization == "4bit",
        load_in_8bit=placement.quantization == "8bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, placement.dtype),
        llm_int8_skip_modules=list(family.unquantized),
    )


def _avoid_inplace_bias(model: Any) -> None:
    """bitsandbytes' AVX512-BF16 kernel adds biases in place and raises on OPT's; its plain kernel is right."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
