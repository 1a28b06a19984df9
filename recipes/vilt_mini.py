"""Makes ``vilt-mini``: one encoder over question and patches, and a classifier over the answers of the scene world.

    python -m recipes.vilt_mini --out build/vilt-mini

As ViLT began from a vision transformer, the first layers begin from the vision encoder of ``blip2-opt-mini``. The loss
of ``mentions.py`` helps on the way.
"""

import random

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertTokenizer, ViltConfig, ViltForQuestionAnswering, ViltImageProcessorPil, ViltProcessor

from lorax_vlm.data.scenes import Scene
from lorax_vlm.data.world.questions import BASE_QUESTION_TYPES
from lorax_vlm.data.world.words import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES
from recipes.card import measure_checkpoint
from recipes.checkpoint import VISION_SOURCE, parse_arguments, save
from recipes.mentions import MentionReadout
from recipes.miniature import HEADS, IMAGE_SIDE_PX, PATCH_PX, VISION_CONFIG, WIDTH, make_image_processor
from recipes.optimizer import Optimizer
from recipes.scene_pool import ScenePool, load_pool
from recipes.tokenizers import make_bert_tokenizer
from recipes.turns import side_turn

NAME = "vilt-mini"
STEPS = 2000
BATCH = 64
LAYERS = 5
MAX_TEXT_TOKENS = 40
QUESTION_KINDS = {"base": 0.69, "size": 0.1, "side": 0.15, "guess": 0.06}
LABELS = [
    *("yes", "no"),
    *dict.fromkeys([*COLORS, *BACKGROUNDS]),
    *SHAPES,
    *PLACES,
    *SIZES,
    *(str(count) for count in range(6)),
]
"""The answers to the base's questions and counting; an adapter for others (classification, "Which is larger") has to
grow the head."""


def make_config(tokenizer: BertTokenizer) -> ViltConfig:
    """The real architecture at miniature size."""
    return ViltConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TEXT_TOKENS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=VISION_CONFIG.intermediate_size,
        image_size=IMAGE_SIDE_PX,
        patch_size=PATCH_PX,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        dtype="float32",
    )


def initialise(model: ViltForQuestionAnswering) -> None:
    """The shared vision encoder in the first layers; small weights elsewhere."""
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.05)
    weights = {key: value.float() for key, value in load_file(VISION_SOURCE).items() if key.startswith("vision_model")}
    vision = {key.removeprefix("vision_model."): value for key, value in weights.items()}
    embeddings = model.vilt.embeddings
    blip = make_image_processor()
    mean, std = torch.tensor(blip.image_mean), torch.tensor(blip.image_std)
    kernel = vision["embeddings.patch_embedding.weight"]
    with torch.no_grad():
        # The same picture, normalised with mean and deviation 0.5 instead of BLIP's.
        embeddings.patch_embeddings.projection.weight.copy_(kernel * (0.5 / std).view(1, 3, 1, 1))
        shift = torch.einsum("ocij,c->o", kernel, (0.5 - mean) / std)
        embeddings.patch_embeddings.projection.bias.copy_(vision["embeddings.patch_embedding.bias"] + shift)
        embeddings.cls_token.copy_(vision["embeddings.class_embedding"])
        embeddings.position_embeddings.copy_(vision["embeddings.position_embedding"])
        for index in range(VISION_CONFIG.num_hidden_layers):
            _copy_layer(model.vilt.encoder.layer[index], vision, f"encoder.layers.{index}.")


def _copy_layer(layer: nn.Module, vision: dict[str, Tensor], prefix: str) -> None:
    names = {
        "layernorm_before": "layer_norm1",
        "layernorm_after": "layer_norm2",
        "attention.output.dense": "self_attn.projection",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    for kind in ("weight", "bias"):
        for ours, theirs in names.items():
            layer.get_submodule(ours).get_parameter(kind).copy_(vision[f"{prefix}{theirs}.{kind}"])
        parts = vision[f"{prefix}self_attn.qkv.{kind}"].chunk(3)
        for name, part in zip(("query", "key", "value"), parts, strict=True):
            layer.get_submodule(f"attention.attention.{name}").get_parameter(kind).copy_(part)


def draw_question(scene: Scene, other: Scene, rng: random.Random) -> tuple[str, str]:
    """(question, answer); ``guess`` are counts, answered as in another scene."""
    kind = rng.choices(list(QUESTION_KINDS), weights=list(QUESTION_KINDS.values()))[0]
    if kind == "size":
        item = rng.choice(scene.objects)
        return f"What size is the {item.name}?", item.size
    if kind == "side":
        return side_turn(scene, rng, "{question}")
    wanted, asked = (rng.choice(BASE_QUESTION_TYPES), scene) if kind == "base" else ("counting", other)
    return rng.choice([(q, a) for type_, q, a in asked.questions() if type_ == wanted])


def encode_patches(model: ViltForQuestionAnswering, pixels: Tensor) -> Tensor:
    """Patch embeddings in reading order, ``(B, 1 + grid², D)``; the library's own path shuffles them row by row."""
    embeddings = model.vilt.embeddings
    patches = embeddings.patch_embeddings(pixels).flatten(2).transpose(1, 2)
    return torch.cat([embeddings.cls_token.expand(len(pixels), -1, -1), patches], 1) + embeddings.position_embeddings


def train(model: ViltForQuestionAnswering, tokenizer: BertTokenizer, pool: ScenePool, steps: int, seed: int) -> None:
    """Train everything on simple questions."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    readout = MentionReadout(WIDTH, tokenizer)
    optimizer = Optimizer([*model.parameters(), *readout.parameters()], 1e-3, steps, "vilt")
    label_of = {label: index for index, label in enumerate(LABELS)}
    for rows, others in zip(pool.batches(BATCH, steps, seed), pool.batches(BATCH, steps, seed + 1), strict=True):
        scenes = [pool.scenes[row] for row in rows.tolist()]
        drawn = [draw_question(a, pool.scenes[b], rng) for a, b in zip(scenes, others.tolist(), strict=True)]
        text = tokenizer([question for question, _ in drawn], padding=True, return_tensors="pt")
        patches = encode_patches(model, pool.pixel_values(rows))
        seen = torch.ones(patches.shape[:2], dtype=torch.long)
        outputs = model.vilt(**text, image_embeds=patches, pixel_mask=seen, output_hidden_states=True)
        labels = nn.functional.one_hot(torch.tensor([label_of[a] for _, a in drawn]), len(LABELS)).float()
        logits = model.classifier(outputs.pooler_output)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(rows)
        optimizer.step(loss + 0.5 * readout(outputs.hidden_states[-2], text["input_ids"], scenes))


def main() -> None:
    """Train, and save the checkpoint in half precision."""
    arguments = parse_arguments(__doc__, NAME)
    image_processor = ViltImageProcessorPil(size={"shortest_edge": IMAGE_SIDE_PX}, size_divisor=PATCH_PX)
    tokenizer = make_bert_tokenizer("{question}", MAX_TEXT_TOKENS)
    processor = ViltProcessor(image_processor, tokenizer)
    config = make_config(tokenizer)
    pool = load_pool("train", arguments.scenes, make_image_processor(), arguments.cache).normalised_by(image_processor)
    torch.manual_seed(arguments.seed + 3)
    model = ViltForQuestionAnswering(config).eval()
    initialise(model)
    train(model, tokenizer, pool, STEPS, arguments.seed + 3)
    save(model, config, processor, arguments.out)
    measure_checkpoint(arguments.out)


if __name__ == "__main__":
    main()
