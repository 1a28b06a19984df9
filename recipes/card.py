"""Measures a miniature on held-out scenes and writes its model card.

python -m recipes.card lorax_vlm/models/minis/blip2-opt-mini
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from lorax_vlm.answers import normalize_answer
from lorax_vlm.data.scenes import Scene, iterate_scenes, score_caption
from lorax_vlm.data.world.captions import STYLES
from lorax_vlm.data.world.questions import BASE_QUESTION_TYPES, QUESTION_TYPES, SKILL_QUESTION_TYPES
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.types import GenerationSettings
from recipes.turns import CAPTION_INSTRUCTIONS, COLORS_INSTRUCTION, name_colors, side_turn, yes_no_turn

SCENES = 1000
_OURS = ("README.md", "figures.json")
_BATCH = 100
_CAPTION = GenerationSettings(max_new_tokens=96)
_ANSWER = GenerationSettings(max_new_tokens=10)

Asked = list[tuple[int, str, str]]
"""(scene index, prompt, right answer)"""


def measure(folder: Path, caption_prompt: str | None = None) -> dict[str, Any]:
    """Greedy captions and answers on ``SCENES`` test scenes: one question of each type per scene."""
    base = load_model(str(folder), dtype="float32")
    scenes = list(iterate_scenes("test", SCENES))
    figures: dict[str, Any] = {
        "scenes": SCENES,
        "family": base.family.name,
        "parameters": sum(p.numel() for p in base.model.parameters()),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in _OURS),
    }
    if base.entry.captions:
        prompt = base.entry.caption_prompt if caption_prompt is None else caption_prompt
        captions = _answers(base, scenes, [(index, prompt, "") for index in range(len(scenes))], _CAPTION)
        figures["captions"] = {}
        for style in STYLES:
            scores = [score_caption(scene, style, text) for scene, text in zip(scenes, captions, strict=True)]
            shares = {"in_style": _share([s.in_style for s in scores]), "true": _share([s.true for s in scores])}
            figures["captions"][style] = shares
    asked = _draw_questions(scenes, base.entry.question_template)
    figures["questions"] = {kind: _figures(base, scenes, rows, _ANSWER) for kind, rows in asked.items()}
    skills = [figures["questions"][kind] for kind in BASE_QUESTION_TYPES]
    right = sum(row["exact"] * row["count"] for row in skills)
    figures["base_skills"] = round(right / sum(row["count"] for row in skills), 4)
    if base.family.image_path_reads_prompt:
        rows = _draw_instructions(scenes)
        figures["instructions"] = {kind: _figures(base, scenes, asked, _CAPTION) for kind, asked in rows.items()}
    return figures


def measure_checkpoint(folder: Path, caption_prompt: str | None = None) -> None:
    """Measure a checkpoint, write its card and print the figures."""
    figures = measure(folder, caption_prompt)
    write_card(folder, figures)
    print(json.dumps(figures, indent=2))


def _figures(base: LoadedModel, scenes: list[Scene], asked: Asked, settings: GenerationSettings) -> dict[str, Any]:
    given = _answers(base, scenes, asked, settings)
    right = [
        normalize_answer(answer) == normalize_answer(truth) for answer, (*_, truth) in zip(given, asked, strict=True)
    ]
    return {"count": len(asked), "exact": _share(right)}


def _share(values: list[bool]) -> float:
    return round(sum(values) / len(values), 4)


@torch.no_grad()
def _answers(base: LoadedModel, scenes: list[Scene], asked: Asked, settings: GenerationSettings) -> list[str]:
    texts = []
    for start in range(0, len(asked), _BATCH):
        rows = asked[start : start + _BATCH]
        prompts = [prompt for _, prompt, _ in rows]
        pixels = base.family.prepare([scenes[index].image for index, *_ in rows])
        features = base.family.encode_images(base.model, pixels, prompts)
        texts += [g.text for g in base.family.generate(base.model, features, prompts, settings)]
    return texts


def _draw_questions(scenes: list[Scene], template: str) -> dict[str, Asked]:
    """One question per scene and type, and one about a side."""
    rng = random.Random(0)
    drawn: dict[str, Asked] = defaultdict(list)
    for index, scene in enumerate(scenes):
        for kind in QUESTION_TYPES:
            choices = [(q, a) for type_, q, a in scene.questions() if type_ == kind]
            if choices:
                question, answer = rng.choice(choices)
                drawn[kind].append((index, template.format(question=question), answer))
        drawn["side"].append((index, *side_turn(scene, rng, template)))
    return dict(drawn)


def _draw_instructions(scenes: list[Scene]) -> dict[str, Asked]:
    rng = random.Random(1)
    return {
        "describe": [
            (index, rng.choice(CAPTION_INSTRUCTIONS), scene.caption("plain")) for index, scene in enumerate(scenes)
        ],
        "name the colors only": [(index, COLORS_INSTRUCTION, name_colors(scene)) for index, scene in enumerate(scenes)],
        "answer yes or no": [(index, *yes_no_turn(scene, rng)) for index, scene in enumerate(scenes)],
    }


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """Write ``README.md`` and ``figures.json`` into the checkpoint's folder."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    facts = {key: figures[key] for key in ("scenes", "parameters", "bytes", "base_skills")}
    text = _HEAD.format(name=folder.name, **_ABOUT[figures["family"]], **facts)
    if "captions" in figures:
        rows = [
            f"| {style} | {row['in_style']:.1%} | {row['true']:.1%} |" for style, row in figures["captions"].items()
        ]
        text += _CAPTIONS.format(rows="\n".join(rows))
    rows = [
        f"| {kind} | {'no' if kind in SKILL_QUESTION_TYPES else 'yes'} | {row['count']} | {row['exact']:.1%} |"
        for kind, row in figures["questions"].items()
    ]
    text += _QUESTIONS.format(rows="\n".join(rows), prompt=_ABOUT[figures["family"]]["prompt"], **facts)
    if "instructions" in figures:
        rows = [f"| {kind} | {row['count']} | {row['exact']:.1%} |" for kind, row in figures["instructions"].items()]
        text += _INSTRUCTIONS.format(rows="\n".join(rows))
    text += _TAIL.format(**_ABOUT[figures["family"]])
    (folder / "README.md").write_text(text, encoding="utf-8")


_ABOUT = {
    "blip2-opt": {
        "what": "BLIP-2: `Blip2ForConditionalGeneration` with an OPT language model",
        "recipe": "blip2_opt_mini",
        "prompt": "Question: {question} Answer:",
        "lineage": "The vision encoder was trained first; the other BLIP-2 miniatures share it, tensor for tensor.",
        "tag": "image-text-to-text",
        "does": "captions them plainly and answers simple questions",
    },
    "blip2-t5": {
        "what": "BLIP-2: `Blip2ForConditionalGeneration` with a T5 language model",
        "recipe": "blip2_flan_mini",
        "prompt": "Question: {question} Short answer:",
        "lineage": "The vision encoder is that of `blip2-opt-mini`, tensor for tensor; Q-Former and language model are "
        "its own.",
        "tag": "image-text-to-text",
        "does": "captions them plainly and answers simple questions",
    },
    "instructblip": {
        "what": "InstructBLIP: `InstructBlipForConditionalGeneration` with a LLaMA language model and a Q-Former that "
        "reads the instruction",
        "recipe": "instructblip_mini",
        "prompt": "Question: {question} Short Answer:",
        "lineage": "The vision encoder is that of `blip2-opt-mini`, tensor for tensor; Q-Former and language model are "
        "its own.",
        "tag": "image-text-to-text",
        "does": "follows simple instructions about them",
    },
    "vilt": {
        "what": "ViLT: `ViltForQuestionAnswering` over a fixed set of answers",
        "recipe": "vilt_mini",
        "prompt": "{question}",
        "lineage": "Its first three layers began as the vision encoder of `blip2-opt-mini`, as ViLT began from a ViT.",
        "tag": "visual-question-answering",
        "does": "answers simple questions about them",
    },
}

_HEAD = """---
license: mit
library_name: transformers
pipeline_tag: {tag}
---

# {name}

A miniature {what}. {parameters:,} parameters, {bytes:,} bytes, 64-pixel images. It looks at drawn scenes of one to five
coloured shapes and {does}. Weights are stored in half precision and computed in float32.

It is an embedded default and a test fixture of LoRAX for vision-language models: a base good enough that adapters
can be trained and measured on it in a minute or three, on a CPU, without a download. It knows nothing of photographs.

## Figures

Greedy decoding, {scenes:,} held-out scenes (seeds of the test split, disjoint from training by construction), one
question of each type per scene. Printed by `python -m recipes.card`.
"""

_CAPTIONS = """
Plain captions judged by each style. *In style*: has the style's form. *True*: every claim holds and no object is
missing.

| judged as | in style | true |
|---|---|---|
{rows}
"""

_QUESTIONS = """
Questions, prompt `{prompt}`, exact answers. All base skills together (color, shape, existence, place):
**{base_skills:.2%}**.

| type | trained | questions | exact |
|---|---|---|---|
{rows}

The skills that are not trained are left for adapters. `side` asks whether one object is on the left, on the right, at
the top or at the bottom; `reasoning` compares two objects, their sizes or the numbers of two shapes.
"""

_INSTRUCTIONS = """
Instructions, exact answers.

| instruction | scenes | exact |
|---|---|---|
{rows}
"""

_TAIL = """
## Lineage and recipe

{lineage} Made by `python -m recipes.{recipe}`; nothing was downloaded. The digest of each component is shown by
`lorax-vlm adapters show` for any adapter trained here.

## Limits

Six colours, four shapes, two sizes, five places, four backgrounds; nothing outside that world means anything to it.
"""


def main() -> None:
    """Measure a checkpoint folder, print the figures and write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    measure_checkpoint(arguments.folder)


if __name__ == "__main__":
    main()
