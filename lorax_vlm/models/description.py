"""What must be known of a base to say whether an adapter belongs to it, read from its folder alone. No torch."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorax_vlm.errors import CheckpointError
from lorax_vlm.models.fingerprint import Fingerprint, find_fingerprint, read_shapes

# What decides names, shapes and the function computed. Everything else in a configuration (paths, versions, settings
# that a call leaves behind) may differ between two loads of the same base.
_DECIDING = frozenset(
    {
        *("model_type", "num_query_tokens", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "vocab_size", "max_position_embeddings", "image_token_index"),
        *("image_size", "patch_size", "hidden_act", "layer_norm_eps", "qkv_bias"),
        *("cross_attention_frequency", "encoder_hidden_size", "use_qformer_text_input"),
        *("ffn_dim", "word_embed_proj_dim", "activation_function", "do_layer_norm_before"),
        # T5
        *("d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "is_gated_act", "dense_act_fn"),
        *("relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon"),
        # LLaMA
        *("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "attention_bias", "mlp_bias"),
        # ViLT
        *("type_vocab_size", "modality_type_vocab_size", "num_channels", "max_image_length"),
    }
)
_FAMILY_OF_TYPES = {
    ("blip-2", "opt"): "blip2-opt",
    ("blip-2", "t5"): "blip2-t5",
    ("instructblip", "llama"): "instructblip",
    ("vilt", None): "vilt",
}
# Matrices that are looked up in, not multiplied with.
_TABLES = re.compile(
    r"(.*\.)?(embed_\w+|shared|\w+_embeddings?|relative_attention_bias|(word|position|token_type)_embeddings)\.weight"
)
_IMAGE_SETTINGS = ("size", "image_mean", "image_std", "rescale_factor", "resample", "do_normalize", "do_rescale")


@dataclass(frozen=True)
class BaseDescription:
    """A base, as far as adapters are concerned."""

    name: str
    family: str
    linear_shapes: Mapping[str, tuple[int, int]]
    """``(D_out, D_in)`` of every linear layer, by module name."""
    configuration: Mapping[str, Any]
    """What decides names, shapes and the function, by dotted name."""
    fingerprint: Fingerprint | None
    """None: its weights were never read."""
    tokenizer: str | None = None
    """Digest of the vocabulary. None: unknown."""
    processor: str | None = None
    """Digest of how images are prepared. None: unknown."""
    head_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensors of a head over fixed answers, such as ``classifier.3.weight``; empty without one."""


def describe_checkpoint(folder: Path, name: str) -> BaseDescription:
    """Describe a checkpoint folder without reading its weights; its fingerprint is there if it was made before.

    Raises:
        CheckpointError: The folder has no configuration of a supported family, or no sound safetensors files.
    """
    configuration = _read_configuration(folder, name)
    family = find_family_name(configuration)
    if family is None:
        types = (configuration.get("model_type"), configuration.get("text_config.model_type"))
        raise CheckpointError(name, [f"its architecture is {types[0]} with text model {types[1]}"])
    try:
        tokenizer, processor = tokenizer_digest(folder), processor_digest(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(name, [f"its tokenizer or processor cannot be read: {error!r}"]) from error
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
        tokenizer=tokenizer,
        processor=processor,
        head_shapes={tensor: shape for tensor, shape in shapes.items() if tensor.startswith("classifier.")},
    )


def find_family_name(configuration: Mapping[str, Any]) -> str | None:
    """The family of a checkpoint with this chosen configuration; None for one that is not supported."""
    types = (configuration.get("model_type"), configuration.get("text_config.model_type"))
    return _FAMILY_OF_TYPES.get(types)  # type: ignore[arg-type]


def _read_configuration(folder: Path, name: str) -> dict[str, Any]:
    try:
        return choose_configuration(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(name, [f"{folder / 'config.json'} cannot be read: {error}"]) from error


def choose_configuration(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What a configuration says about names, shapes and activations, by dotted name."""
    chosen: dict[str, Any] = {}
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, Mapping):
            chosen |= choose_configuration(value, f"{prefix}{key}.")
        elif key in _DECIDING:
            chosen[f"{prefix}{key}"] = value
    return chosen


def tokenizer_digest(folder: Path) -> str | None:
    """Digest of a tokenizer's vocabulary with its special tokens, None where the folder holds none."""
    path = folder / "tokenizer.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        model = stored["model"]
        added = sorted((token["id"], token["content"]) for token in stored.get("added_tokens", []))
        return _digest([model.get("type"), model.get("vocab"), model.get("merges"), added])
    for file in ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"):
        if (folder / file).is_file():
            return hashlib.sha256((folder / file).read_bytes()).hexdigest()[:32]
    return None


def processor_digest(folder: Path) -> str | None:
    """Digest of how images are prepared, None where the folder does not say."""
    for file in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / file).is_file():
            continue
        stored = json.loads((folder / file).read_text(encoding="utf-8"))
        settings = stored.get("image_processor", stored)
        if "size" in settings:
            return _digest({key: settings.get(key) for key in _IMAGE_SETTINGS})
    return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
