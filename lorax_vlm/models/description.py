"""What must be known of a base to say whether an adapter belongs to it, read from its folder alone. No torch."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorax_vlm.errors import CheckpointError
from lorax_vlm.foreign import parse_json, quoted
from lorax_vlm.models.fingerprint import Fingerprint, find_fingerprint, read_shapes
from lorax_vlm.models.spec import HEAD, architecture_of

PATHS_AND_VERSIONS = frozenset(
    {
        *("_name_or_path", "name_or_path", "_commit_hash", "_from_model_config", "transformers_version"),
        *("tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file"),
    }
)
"""Entries that say where files were, or what wrote them."""
WITHOUT_EFFECT = PATHS_AND_VERSIONS | {
    *("dtype", "torch_dtype", "initializer_range", "initializer_factor", "init_std"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict", "return_dict_in_generate"),
    *("gradient_checkpointing", "layerdrop", "encoder_layerdrop", "decoder_layerdrop", "drop_path_rate"),
}
"""Entries of a configuration that change no answer, besides those with ``dropout`` in their name. All others count."""
_LABELS = frozenset({"id2label", "label2id"})
_MOST_ENTRIES = 5000
_LONG_VALUE = 200
# What says how text and images are prepared, and how text is generated, in a checkpoint's folder.
_PREPARATION = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model"),
    *("chat_template.json", "chat_template.jinja"),
    *("processor_config.json", "preprocessor_config.json", "generation_config.json"),
)
_PREPARATION_FOLDERS = ("", "qformer_tokenizer")
_MAX_PREPARATION_BYTES = 256 * 1024**2
# Matrices that are looked up in, not multiplied with.
_TABLES = re.compile(
    r"(.*\.)?(embed_\w+|shared|\w+_embeddings?|relative_attention_bias|(word|position|token_type)_embeddings)\.weight"
)
# What manifests up to version 2 recorded of an image processor.
_IMAGE_SETTINGS = ("size", "image_mean", "image_std", "rescale_factor", "resample", "do_normalize", "do_rescale")


@dataclass(frozen=True)
class BaseDescription:
    """A base, as far as adapters are concerned."""

    name: str
    family: str
    linear_shapes: Mapping[str, tuple[int, int]]
    """``(D_out, D_in)`` of every linear layer, by module name."""
    configuration: Mapping[str, Any]
    """All that may change an answer, by dotted name."""
    fingerprint: Fingerprint | None
    """None: its weights were never read."""
    preparation: Mapping[str, str] = field(default_factory=dict)
    """Digest of each file that says how text and images are prepared and text is generated."""
    tokenizer: str | None = None
    """Digest of the vocabulary alone. None: unknown."""
    processor: str | None = None
    """Digest of some settings of the image processor. None: unknown."""
    head_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensors of a head over fixed answers, such as ``classifier.3.weight``; empty without one."""
    quantization: str | None = None
    """How the base is quantised, ``none`` if not. None: not known before it is loaded."""
    dtype: str | None = None
    """What the base computes in. None: not known before it is loaded."""


def describe_checkpoint(folder: Path, name: str) -> BaseDescription:
    """Describe a checkpoint folder without reading its weights; its fingerprint is there if it was made before.

    Raises:
        CheckpointError: The folder has no configuration of a supported family, or no sound safetensors files.
    """
    require_no_adapter(folder, name)
    configuration = _read_configuration(folder, name)
    family = find_family_name(configuration)
    if family is None:
        types = (configuration.get("model_type"), configuration.get("text_config.model_type"))
        raise CheckpointError(name, [f"its architecture is {types[0]} with text model {types[1]}"])
    try:
        tokenizer, processor = tokenizer_digest(folder), processor_digest(folder)
        preparation = preparation_digests(folder)
    except Exception as error:  # files of anybody
        reason = quoted(f"{type(error).__name__}: {error}", 200)[1:-1]
        raise CheckpointError(name, [f"its tokenizer or processor cannot be read: {reason}"]) from error
    shapes = read_shapes(folder)
    linear = {
        tensor.removesuffix(".weight"): (shape[0], shape[1])
        for tensor, shape in shapes.items()
        if tensor.endswith(".weight") and len(shape) == 2 and not _TABLES.fullmatch(tensor)
    }
    return BaseDescription(
        name=name,
        family=family,
        linear_shapes=linear,
        configuration=configuration,
        fingerprint=find_fingerprint(folder),
        preparation=preparation,
        tokenizer=tokenizer,
        processor=processor,
        head_shapes={tensor: shape for tensor, shape in shapes.items() if tensor.startswith(f"{HEAD}.")},
    )


def require_no_adapter(folder: Path, name: str) -> None:
    """Raise ``CheckpointError`` for a folder with an adapter in it: transformers would put it on the base unasked."""
    if (folder / "adapter_config.json").exists():
        reason = "adapter_config.json is in it: it is an adapter, or a base whose answers that adapter would change"
        hint = (
            "Name the base's own folder, and load the adapter by itself: lorax-vlm adapters import FOLDER --model BASE"
        )
        raise CheckpointError(name, [reason], hint)


def read_family_name(folder: Path) -> str | None:
    """The family of the checkpoint in a folder; None where its configuration does not tell, which loading it says."""
    try:
        return find_family_name(_read_configuration(folder, folder.name))
    except CheckpointError:
        return None


def find_family_name(configuration: Mapping[str, Any]) -> str | None:
    """The family of a checkpoint with this flat configuration; None for one that is not supported."""
    row = architecture_of(configuration.get("model_type"), configuration.get("text_config.model_type"))
    return row.name if row is not None else None


def _read_configuration(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = parse_json(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"it holds {quoted(config)}, expected an object")
        return flat_configuration(config)
    except (OSError, ValueError) as error:
        raise CheckpointError(name, [f"{path} cannot be read: {error}"]) from error


def flat_configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """All of a configuration that may change an answer, by dotted name; sets of labels and long values as digests.

    Raises:
        ValueError: It has too many entries.
    """
    flat: dict[str, Any] = {}
    for key, value in _leaves(config, ""):
        if len(flat) == _MOST_ENTRIES:
            raise ValueError(f"it has more than {_MOST_ENTRIES:,} entries")
        flat[key] = value
    return flat


def _leaves(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if key in WITHOUT_EFFECT or "dropout" in key:
            continue
        name = f"{prefix}{json.dumps(key) if '.' in key or not key else key}"
        if isinstance(value, dict) and value and key not in _LABELS:
            yield from _leaves(value, f"{name}.")
        elif key in _LABELS or len(json.dumps(value)) > _LONG_VALUE:
            yield name, f"sha256:{_digest(value)}"
        else:
            yield name, value


def preparation_digests(folder: Path) -> dict[str, str]:
    """Digest of each file that is there; how a JSON file is laid out does not matter, nor where its parts once were.

    Raises:
        ValueError: One is no JSON, or too large.
        OSError: One cannot be read.
    """
    found = {}
    for place in _PREPARATION_FOLDERS:
        for file in _PREPARATION:
            path = folder / place / file
            if not path.is_file():
                continue
            if path.stat().st_size > _MAX_PREPARATION_BYTES:
                raise ValueError(f"{file} has more than {_MAX_PREPARATION_BYTES:,} bytes")
            data = path.read_bytes()
            name = f"{place}/{file}" if place else file
            if file.endswith(".json"):
                idle = WITHOUT_EFFECT if file == "generation_config.json" else PATHS_AND_VERSIONS
                content = parse_json(data)
                found[name] = _digest(content if file == "tokenizer.json" else _without(content, idle))
            else:
                found[name] = hashlib.sha256(data).hexdigest()[:32]
    return found


def _without(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(part, names) for key, part in value.items() if key not in names}
    return [_without(part, names) for part in value] if isinstance(value, list) else value


def tokenizer_digest(folder: Path) -> str | None:
    """Digest of a tokenizer's vocabulary with its special tokens, None where the folder holds none.

    It is what manifests up to version 2 recorded; see ``preparation_digests`` for all of a tokenizer.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        stored = parse_json(path.read_bytes())
        model = stored["model"]
        added = sorted((token["id"], token["content"]) for token in stored.get("added_tokens", []))
        return _digest([model.get("type"), model.get("vocab"), model.get("merges"), added])
    for file in ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"):
        if (folder / file).is_file():
            return hashlib.sha256((folder / file).read_bytes()).hexdigest()[:32]
    return None


def processor_digest(folder: Path) -> str | None:
    """Digest of some settings of the image processor, None where the folder does not say; see ``tokenizer_digest``."""
    for file in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / file).is_file():
            continue
        stored = parse_json((folder / file).read_bytes())
        settings = stored.get("image_processor", stored)
        if "size" in settings:
            return _digest({key: settings.get(key) for key in _IMAGE_SETTINGS})
    return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
