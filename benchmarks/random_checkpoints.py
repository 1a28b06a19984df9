"""Checkpoints of the true dimensions with random weights: the real path, its memory and its speed, without a download.

Configurations are those of the hub checkpoints (dimensions, vocabulary sizes, and of the four older ones the ids).
Tokenizers are the miniatures', of the older ones filled up to the true vocabulary, with every special token at its true
id.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    GPT2Tokenizer,
    Idefics3Config,
    InstructBlipConfig,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    OPTConfig,
    SmolVLMConfig,
    T5Config,
    T5Tokenizer,
    ViltConfig,
    ViltImageProcessorPil,
    ViltProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from lorax_vlm.models.catalog import MINIS_DIR, get_model_entry
from lorax_vlm.models.families.registry import family_class, find_architecture
from lorax_vlm.models.families.tiles import TILE_TAGS
from recipes.smolvlm_checkpoint import save_preparation
from recipes.tokenizers import make_chat_tokenizer

_SHARD_BYTES = 1_000_000_000
_VISION = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
}
_QFORMER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "encoder_hidden_size": 1408}


def _vocabulary(name: str, file: str = "tokenizer.json") -> dict[str, Any]:
    return dict(json.loads((MINIS_DIR / name / file).read_text(encoding="utf-8"))["model"])


def _filled(known: dict[str, int], fixed: dict[str, int], size: int) -> dict[str, int]:
    """Token to id: ``fixed`` ones at their ids, the others and fillers in the ids that remain."""
    free = iter(sorted(set(range(size)) - set(fixed.values())))
    placed = fixed | {token: next(free) for token in sorted(known, key=lambda t: known[t]) if token not in fixed}
    return placed | {f"<filler-{index}>": index for index in free}


def _opt() -> tuple[Any, Any]:
    model = _vocabulary("blip2-opt-mini")
    fixed = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "Ċ": 50118}
    tokenizer = GPT2Tokenizer(
        vocab=_filled(model["vocab"], fixed, 50265),
        merges=[tuple(merge) for merge in model["merges"]],
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
    )
    text = OPTConfig(
        vocab_size=50304,
        hidden_size=2560,
        word_embed_proj_dim=2560,
        ffn_dim=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=2048,
        bos_token_id=2,
        eos_token_id=50118,
        pad_token_id=1,
    )
    return _blip2(text, tokenizer, 50265)


def _flan() -> tuple[Any, Any]:
    pieces = [tuple(piece) for piece in _vocabulary("blip2-flan-mini")["vocab"] if piece[0] != "<image>"]
    pieces += [(f"<filler-{index}>", -100.0) for index in range(32100 - len(pieces))]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=512)
    text = T5Config(
        vocab_size=32128,
        d_model=2048,
        d_kv=64,
        d_ff=5120,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=32,
        feed_forward_proj="gated-gelu",
        dense_act_fn="gelu",
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    return _blip2(text, tokenizer, 32100)


def _blip2(text: Any, tokenizer: Any, image_token_index: int) -> tuple[Any, Any]:
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**_VISION),
        qformer_config=Blip2QFormerConfig(**_QFORMER),
        text_config=text,
        num_query_tokens=32,
        image_token_index=image_token_index,
    )
    return config, Blip2Processor(_image_processor(), tokenizer, num_query_tokens=32)


def _instructblip() -> tuple[Any, Any]:
    model = _vocabulary("instructblip-mini")
    known = {token: index for token, index in model["vocab"].items() if token not in ("[PAD]", "<image>")}
    tokenizer = LlamaTokenizer(
        vocab=_filled(known, {"<unk>": 0, "<s>": 1, "</s>": 2}, 32000),
        merges=[tuple(merge) for merge in model["merges"]],
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        add_bos_token=True,
    )
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    qformer_tokenizer = _bert("instructblip-mini", "qformer_tokenizer/tokenizer.json", 512)
    qformer_tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**_VISION),
        qformer_config=InstructBlipQFormerConfig(**_QFORMER, vocab_size=30523),
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
            rms_norm_eps=1e-6,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=32000,
        ),
        num_query_tokens=32,
        image_token_index=32001,
    )
    return config, InstructBlipProcessor(_image_processor(), tokenizer, qformer_tokenizer, num_query_tokens=32)


def _image_processor() -> BlipImageProcessorPil:
    return BlipImageProcessorPil(size={"height": 224, "width": 224})


def _vilt() -> tuple[Any, Any]:
    answers = ["yes", "no", *(str(count) for count in range(10)), *(f"answer {index}" for index in range(3117))]
    config = ViltConfig(pad_token_id=0, id2label=dict(enumerate(answers)))
    return config, ViltProcessor(ViltImageProcessorPil(), _bert("vilt-mini", "tokenizer.json", 40))


def _bert(name: str, file: str, limit: int) -> BertTokenizer:
    known = _vocabulary(name, file)["vocab"]
    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    return BertTokenizer(vocab=_filled(known, fixed, 30522), do_lower_case=True, model_max_length=limit)


_SIGLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_SIGLIP_LARGE = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}


@dataclass(frozen=True)
class _Preparation:
    """Tokenizer and image processor of a chat checkpoint, with the miniature's template."""

    tokenizer: Any
    image_processor: Any

    def save_pretrained(self, folder: Path) -> None:
        """Write them."""
        save_preparation(folder, self.tokenizer, self.image_processor)


def _smolvlm(
    kind: type[Any], processor: type[Any], tower: dict[str, int], cut: tuple[int, int, int], text: tuple[int, ...]
) -> tuple[Any, Any]:
    """One of its sizes.

    Args:
        kind: The class of its configuration.
        processor: That of its image processor.
        tower: Its vision encoder.
        cut: Side of a tile, side of a patch, and how many of these in a row make one token.
        text: Width, inner width, layers, heads, and heads for keys and values of its language model.
    """
    tokenizer = make_chat_tokenizer(["Describe the image."], TILE_TAGS)
    (side, patch, scale), (width, inner, layers, heads, key_value_heads) = cut, text
    config = kind(
        scale_factor=scale,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
        vision_config={**tower, "image_size": side, "patch_size": patch},
        text_config={
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    settings = processor(size={"longest_edge": 4 * side}, max_image_size={"longest_edge": side})
    return config, _Preparation(tokenizer, settings)


_IDEFICS = Idefics3Config, Idefics3ImageProcessorPil
_SMOL = SmolVLMConfig, SmolVLMImageProcessorPil
_SIZES: dict[str, Any] = {
    "256m": (_SIGLIP, (512, 16, 4), (576, 1536, 30, 9, 3)),
    "500m": (_SIGLIP, (512, 16, 4), (960, 2560, 32, 15, 5)),
    "2.2b": (_SIGLIP_LARGE, (384, 14, 3), (2048, 8192, 24, 32, 32)),
}
CHECKPOINTS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "blip2-opt-2.7b": _opt,
    "blip2-flan-t5-xl": _flan,
    "instructblip-vicuna-7b": _instructblip,
    "vilt-b32-finetuned-vqa": _vilt,
    **{f"smolvlm-{size}": partial(_smolvlm, *_IDEFICS, *own) for size, own in _SIZES.items()},
    **{f"smolvlm2-{size}": partial(_smolvlm, *_SMOL, *own) for size, own in _SIZES.items()},
}


def write_random_checkpoint(name: str, folder: Path) -> Path:
    """Write configuration, processor and bfloat16 weights, in shards, without ever holding the model in memory."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config, processor = CHECKPOINTS[name]()
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    if name == "blip2-flan-t5-xl":  # T5's configuration class calls every head tied; the hub's file says it is not
        _edit_json(folder / "config.json", lambda stored: stored["text_config"].update(tie_word_embeddings=False))
    model_class = family_class(find_architecture(config, name)).model_class
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in model_class(config).state_dict().items()}
    if name == "blip2-opt-2.7b":
        shapes = {key: shape for key, shape in shapes.items() if not key.endswith("lm_head.weight")}  # tied
    noise = (0.02 * torch.randn(2**24 + 12347)).bfloat16()
    shard: dict[str, torch.Tensor] = {}
    index: dict[str, str] = {}
    size = number = offset = 0
    for key, shape in shapes.items():
        count = torch.Size(shape).numel()
        if len(shape) == 1:
            tensor = torch.full(shape, 1.0 if key.endswith("weight") else 0.0)  # a norm's weight, or a bias
        else:
            repeats = -(-(offset + count) // len(noise))
            tensor = noise.repeat(repeats)[offset : offset + count].reshape(shape)
        offset = (offset + count) % len(noise)
        shard[key] = tensor.bfloat16().contiguous().clone()
        size += shard[key].nbytes
        index[key] = f"model-{number:05d}.safetensors"
        if size > _SHARD_BYTES:
            save_file(shard, folder / index[key], metadata={"format": "pt"})
            shard, size, number = {}, 0, number + 1
    if shard:
        save_file(shard, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
    record = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def checkpoint_of(name: str, folder: Path, *, anew: bool = False) -> Path:
    """The folder of a checkpoint: one of full size with random weights, written where it is missing, or a miniature's.

    Args:
        name: One of ``CHECKPOINTS``, or a shipped miniature.
        folder: Where those of full size lie.
        anew: Write it even where it is.
    """
    if name not in CHECKPOINTS:
        return Path(get_model_entry(name).source)
    if anew or not (folder / name / "model.safetensors.index.json").exists():
        write_random_checkpoint(name, folder / name)
    return folder / name


def _edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    change(stored)
    path.write_text(json.dumps(stored, indent=2), encoding="utf-8")
