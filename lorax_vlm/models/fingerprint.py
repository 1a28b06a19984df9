"""Which weights a base has, told apart per component.

PEFT does not check the base: an adapter loads without a word on any model of the same shapes. The fingerprint makes
"same shapes, other weights" visible. It samples the first and last values of every tensor, so it costs milliseconds
on a checkpoint of any size and changes under any further training; it is no protection against someone who forges it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lorax_vlm.errors import CheckpointError
from lorax_vlm.models.components import component_of

_SAMPLED_VALUES = 512


def read_fingerprint(folder: Path) -> dict[str, str]:
    """Digest of each component of a checkpoint folder.

    Values that survive a round trip through half precision are hashed in half precision, so the same weights stored
    in another precision have the same digest.

    Raises:
        CheckpointError: The folder holds no safetensors weights.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(str(folder), ["it holds no *.safetensors weights"])
    samples: dict[str, list[tuple[str, str]]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                component = component_of(name) or "other"
                samples.setdefault(component, []).append((name, _sample_digest(tensors.get_tensor(name))))
    return {
        component: hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()[:32]
        for component, rows in sorted(samples.items())
    }


def _sample_digest(tensor: Tensor) -> str:
    flat = tensor.reshape(-1)
    sample = torch.cat([flat[:_SAMPLED_VALUES], flat[-_SAMPLED_VALUES:]]).float()
    half = sample.half()
    stored = half if torch.equal(half.float(), sample) else sample
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + stored.numpy().tobytes()).hexdigest()


# What decides names, shapes and the function computed. Everything else in a configuration (paths, versions, defaults
# that a release adds, settings that a call leaves behind) may differ between two loads of the same base.
_ARCHITECTURE = frozenset(
    {
        *("model_type", "num_query_tokens", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "vocab_size", "max_position_embeddings"),
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


def architecture_digest(config: Any) -> str:
    """Digest of what a configuration says about names, shapes and activations."""

    def choose(value: dict[str, Any]) -> dict[str, Any]:
        nested = {
            key: choose(item) for key, item in value.items() if key.endswith("_config") and isinstance(item, dict)
        }
        return nested | {key: item for key, item in value.items() if key in _ARCHITECTURE}

    return hashlib.sha256(json.dumps(choose(config.to_dict()), sort_keys=True).encode()).hexdigest()[:32]
