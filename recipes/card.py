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
from torch import Tensor

from lorax_vlm.data.scene_captions import STYLES
from lorax_vlm.data.scene_questions import BASE_QUESTION_TYPES, QUESTION_TYPES
from lorax_vlm.data.scenes import Scene, iterate_scenes, score_caption
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.types import GenerationSettings

QUESTION_PROMPT = "Question: {question} Answer:"

SCENES = 1000
_OURS = ("README.md", "figures.json")
_BATCH = 100
_CAPTION = GenerationSettings(max_new_tokens=96)
_ANSWER = GenerationSettings(max_new_tokens=10)


def measure(folder: Path) -> dict[str, Any]:
    """Greedy captions and answers on ``SCENES`` test scenes: one question of each type per scene."""
    base = load_model(str(folder), dtype="float32")
    scenes = list(iterate_scenes("test", SCENES))
    features = _encode(base, scenes)
    captions = _generate(base, features, [""] * len(scenes), _CAPTION)
    styles = {}
    for style in STYLES:
        scores = [score_caption(scene, style, text) for scene, text in zip(scenes, captions, strict=True)]
        styles[style] = {"in_style": _share([s.in_style for s in scores]), "true": _share([s.true for s in scores])}
    answers: dict[str, list[bool]] = defaultdict(list)
    asked = _draw_questions(scenes)
    given = _generate(base, features[[row for row, *_ in asked]], [prompt for _, _, prompt, _ in asked], _ANSWER)
    for (_, kind, _, truth), answer in zip(asked, given, strict=True):
        answers[kind].append(answer == truth)
    skills = [right for kind in BASE_QUESTION_TYPES for right in answers[kind]]
    return {
        "scenes": SCENES,
        "parameters": sum(p.numel() for p in base.model.parameters()),
        "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.name not in _OURS),
        "captions": styles,
        "questions": {kind: {"count": len(answers[kind]), "exact": _share(answers[kind])} for kind in QUESTION_TYPES},
        "base_skills": _share(skills),
    }


def _share(values: list[bool]) -> float:
    return round(sum(values) / len(values), 4)


@torch.no_grad()
def _encode(base: LoadedModel, scenes: list[Scene]) -> Tensor:
    parts = [
        base.family.encode_images(base.model, base.family.pixel_values([s.image for s in scenes[i : i + _BATCH]]))
        for i in range(0, len(scenes), _BATCH)
    ]
    return torch.cat(parts)


def _generate(base: LoadedModel, features: Tensor, prompts: list[str], settings: GenerationSettings) -> list[str]:
    texts = []
    for start in range(0, len(prompts), _BATCH):
        rows = slice(start, start + _BATCH)
        texts += [g.text for g in base.family.generate(base.model, features[rows], prompts[rows], settings)]
    return texts


def _draw_questions(scenes: list[Scene]) -> list[tuple[int, str, str, str]]:
    """(scene index, type, prompt, answer), one question per scene and type."""
    rng = random.Random(0)
    drawn = []
    for index, scene in enumerate(scenes):
        for kind in QUESTION_TYPES:
            choices = [(q, a) for type_, q, a in scene.questions() if type_ == kind]
            if choices:
                question, answer = rng.choice(choices)
                drawn.append((index, kind, QUESTION_PROMPT.format(question=question), answer))
    return drawn


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """Write ``README.md`` and ``figures.json`` into the checkpoint's folder."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    captions = "\n".join(
        f"| {style} | {row['in_style']:.1%} | {row['true']:.1%} |" for style, row in figures["captions"].items()
    )
    questions = "\n".join(
        f"| {kind} | {'yes' if kind in BASE_QUESTION_TYPES else 'no'} | {row['count']} | {row['exact']:.1%} |"
        for kind, row in figures["questions"].items()
    )
    text = _CARD.format(name=folder.name, captions=captions, questions=questions, **_plain(figures))
    (folder / "README.md").write_text(text, encoding="utf-8")


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: figures[key] for key in ("scenes", "parameters", "bytes", "base_skills")}


_CARD = """---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
---

# {name}

A miniature BLIP-2 that really sees: `Blip2ForConditionalGeneration` with an OPT language model, {parameters:,}
parameters, {bytes:,} bytes, 64-pixel images, 16 query tokens. It looks at drawn scenes of one to five coloured shapes,
captions them plainly and answers simple questions. Weights are stored in half precision and computed in float32.

It is the embedded default and the test fixture of LoRAX for vision-language models: a base good enough that adapters
can be trained and measured on it in a minute, on a CPU, without a download. It knows nothing of photographs.

## Figures

Greedy decoding, {scenes:,} held-out scenes (seeds of the test split, disjoint from training by construction), one
question of each type per scene. Printed by `python -m recipes.card`.

Plain captions, without a prompt, judged by each style. *In style*: has the style's form. *True*: every claim holds
and no object is missing.

| judged as | in style | true |
|---|---|---|
{captions}

Questions, prompt `Question: {{question}} Answer:`, exact answers. All base skills together: **{base_skills:.2%}**.

| type | trained | questions | exact |
|---|---|---|---|
{questions}

The skills that are not trained are left for adapters. The base knows the form of their answers (it saw such questions
with the answers of other scenes), so its share there is what guessing gives.

## Lineage and recipe

The vision encoder was trained first and is shared, tensor for tensor, by the other BLIP-2 miniatures; its component
digest is shown by `lorax-vlm adapters show` for any adapter trained here. Made from random weights by
`python -m recipes.blip2_opt_mini` in three stages (vision, Q-Former, language); nothing was downloaded.

## Limits

Six colours, four shapes, two sizes, five places, four backgrounds; nothing outside that world means anything to it.
"""


def main() -> None:
    """Measure a checkpoint folder, print the figures and write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    figures = measure(arguments.folder)
    write_card(arguments.folder, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
