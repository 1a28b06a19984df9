"""What an adapter answers to images nobody labelled: the examples another base learns it from.

The teacher's words are the interface, so it does not matter which tokenizer, width or kind of model either side has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.errors import UsageError
from lorax_vlm.models.families.base import IGNORED_LABEL
from lorax_vlm.models.families.image_tokens import batch_with_features
from lorax_vlm.models.families.vilt import ViltFamily
from lorax_vlm.runtime.library import AdapterLibrary
from lorax_vlm.types import GenerationSettings

_HELD_OUT_SHARE = 0.1
DROPPED_SHARE = 0.1
"""Of the examples the teacher is least sure of; it is wrong there most often."""
_BATCH = 64


@dataclass(frozen=True)
class TeacherAnswer:
    """What the teacher says to one example."""

    text: str
    confidence: float
    """Mean probability of its tokens (geometric); ViLT's of its answer."""


@dataclass(frozen=True)
class Lesson:
    """Examples with the teacher's answers as targets."""

    splits: DataSplits
    kept: int
    asked: int


def prompt_for(library: AdapterLibrary, example: Example, template: str | None = None) -> str:
    """An example's prompt on a base: its question in the template's or the base's own words, or the caption prompt.

    Args:
        library: Of the base.
        example: What is asked.
        template: Such as an adapter's prompt. None, or one of the other kind: the base's own.
    """
    if template is None or ("{question}" in template) != bool(example.question):
        template = library.entry.question_template if example.question else library.entry.caption_prompt
    return template.replace("{question}", example.question)


def _of_its_family(library: AdapterLibrary, manifest: Manifest) -> bool:
    return manifest.base is not None and manifest.base.family == library.base.family.name


def template_on(library: AdapterLibrary, manifest: Manifest) -> str:
    """The prompt of an adapter that is moved to a base: its own on a base of its family, else the base's."""
    if _of_its_family(library, manifest):
        return manifest.prompt
    return library.entry.question_template if "{question}" in manifest.prompt else library.entry.caption_prompt


def settings_of(library: AdapterLibrary, manifest: Manifest) -> GenerationSettings:
    """How an adapter's text is decoded: as it says, else as its base's for captions or for answers."""
    entry = library.entry
    usual = entry.answer_settings if "{question}" in manifest.prompt or not entry.captions else entry.caption_settings
    return manifest.generation or usual


def settings_on(library: AdapterLibrary, source: AdapterLibrary, manifest: Manifest) -> GenerationSettings:
    """Decoding of an adapter that is moved to a base: as at its source within one family, else as usual there.

    Args:
        library: Where it goes.
        source: Where it is from.
        manifest: Of the adapter.
    """
    if _of_its_family(library, manifest):
        return settings_of(source, manifest)
    return settings_of(library, replace(manifest, generation=None))


def answer(
    library: AdapterLibrary,
    name: str | None,
    examples: Sequence[Example],
    settings: GenerationSettings,
    template: str | None = None,
) -> list[str]:
    """What a base, or an adapter on it, answers to examples, whatever their targets.

    Args:
        library: Of the base.
        name: Of the adapter, None for the plain base.
        examples: Images, with or without questions.
        settings: Decoding.
        template: Of the prompt. None: the adapter's, or the base's own.
    """
    template = template if template is not None else _own_template(library, name)
    texts: list[str] = []
    for start in range(0, len(examples), _BATCH):
        some = examples[start : start + _BATCH]
        prompts = [prompt_for(library, example, template) for example in some]
        pictures = [example.open_image() for example in some]
        texts += [g.text for g in library.generate([name] * len(some), pictures, prompts, settings)]
    return texts


def _own_template(library: AdapterLibrary, name: str | None) -> str | None:
    attachment = library.find(name)
    return attachment.prompt if attachment is not None else None


def ask_teacher(
    library: AdapterLibrary, name: str, examples: Sequence[Example], settings: GenerationSettings
) -> list[TeacherAnswer]:
    """The adapter's greedy answers, each with how sure it is of them."""
    texts = answer(library, name, examples, settings.replace(num_beams=1, temperature=None))
    confidences: list[float] = []
    for start in range(0, len(examples), _BATCH):
        some = slice(start, start + _BATCH)
        confidences += _confidences(library, name, examples[some], texts[some])
    return [TeacherAnswer(text, sure) for text, sure in zip(texts, confidences, strict=True)]


@torch.no_grad()
def _confidences(library: AdapterLibrary, name: str, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    base, template = library.base, _own_template(library, name)
    prompts = [prompt_for(library, example, template) for example in examples]
    pixels = base.family.pixel_values([example.open_image() for example in examples]).to(base.device)
    with library.using(name) as model:
        features = base.family.encode_images(model, pixels, prompts)
        if isinstance(base.family, ViltFamily):
            logits = base.family.answer_logits(model, features, prompts)
            return [float(share) for share in torch.sigmoid(logits).amax(dim=1)]
        said = [text if text.strip() else "nothing" for text in texts]
        batch = base.family.training_batch(torch.empty(len(said), 0), prompts, said)
        labels = batch.pop("labels").to(base.device)
        batch = {key: value.to(base.device) if hasattr(value, "to") else value for key, value in batch.items()}
        logits = model(**batch_with_features(batch, features)).logits
    found = []
    for row, text in enumerate(texts):
        own = labels[row : row + 1]
        count = int((own != IGNORED_LABEL).sum())
        loss = float(base.family.loss(logits[row : row + 1], own, count))
        found.append(float(torch.exp(torch.tensor(-loss))) if text.strip() else 0.0)
    return found


def make_lesson(examples: Sequence[Example], answers: Sequence[TeacherAnswer], *, fewest_held_out: int = 1) -> Lesson:
    """Examples with the teacher's answers for targets, without those it is least sure of, and some held out.

    Those about the last images are held out, so that checkpoints are chosen by agreement with the teacher and no label
    is needed.

    Args:
        examples: That the teacher was asked.
        answers: To each.
        fewest_held_out: Hold out so many images, though no more than half of them, where the usual share is less.

    Raises:
        UsageError: The teacher said nothing.
    """
    sure = sorted((a.confidence for a in answers if a.text.strip()), reverse=True)
    if not sure:
        raise UsageError("The teacher answered nothing to any example.")
    threshold = sure[max(0, round((1 - DROPPED_SHARE) * len(sure)) - 1)]
    kept = [
        replace(example, target=answer.text, answers=(answer.text,), prompt="", name=f"{example.name} (distilled)")
        for example, answer in zip(examples, answers, strict=True)
        if answer.text.strip() and answer.confidence >= threshold
    ]
    images = list(dict.fromkeys(example.image_digest() for example in kept))
    count = max(1, round(_HELD_OUT_SHARE * len(images)), min(fewest_held_out, len(images) // 2))
    held_out = set(images[-count:])
    train = [example for example in kept if example.image_digest() not in held_out]
    validation = [example for example in kept if example.image_digest() in held_out]
    splits = DataSplits(train or kept, validation, f"{len(kept)} answers of the source")
    return Lesson(splits, len(kept), len(examples))
