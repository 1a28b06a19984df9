"""ViLT: one encoder over question and image patches, and a classifier over a fixed set of answers.

Nothing of the image is computed without the question, so the "features" of an image are its pixels. An answer that is
not in the label set cannot be learnt or given; how many of the data's answers are, is reported before training. An
adapter may bring a larger set with a head of its own.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoTokenizer, ViltForQuestionAnswering, ViltImageProcessorPil, ViltProcessor

from lorax_vlm.answers import most_frequent_answer, normalize_answer, soft_score
from lorax_vlm.errors import CheckpointError, ExampleError, PromptError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.families.base import Batch, LabelPlan, TrainingBatches
from lorax_vlm.models.families.heads import row_labels
from lorax_vlm.models.families.pictures import Features, Look, Picture
from lorax_vlm.models.families.text import clean_text, require_equal_rows
from lorax_vlm.models.families.vilt_patches import choose_patches_in_order
from lorax_vlm.types import Generated, GenerationSettings


class ViltFamily(TrainingBatches):
    """Formats batches for, and answers with, ``ViltForQuestionAnswering``."""

    name = "vilt"
    model_class: ClassVar[Any] = ViltForQuestionAnswering
    unquantized: ClassVar[tuple[str, ...]] = ("vilt.pooler", "classifier")
    image_path_reads_prompt = False
    takes_features = False
    packs = False

    def __init__(self, processor: Any, config: Any, checkpoint: str, labels: Sequence[str] | None = None) -> None:
        """Check the label set.

        Args:
            processor: Image processor and tokenizer.
            config: The model's configuration.
            checkpoint: Named in errors.
            labels: The answers to train on; by default the checkpoint's own.

        Raises:
            CheckpointError: The labels are not numbered without gaps.
        """
        self.processor = processor
        self.config = config
        self.tokenizer: Any = processor.tokenizer
        self.max_text_tokens: int = config.max_position_embeddings
        found = config.id2label or {}
        if sorted(map(int, found)) != list(range(len(found))) or not found:
            raise CheckpointError(checkpoint, [f"its {len(found)} answer labels are not numbered from 0 without gaps"])
        self.labels = tuple(labels if labels is not None else (found[index] for index in range(len(found))))
        self._index = {normalize_answer(label): index for index, label in reversed(list(enumerate(self.labels)))}

    @staticmethod
    def load_processor(folder: Path) -> ViltProcessor:
        """See ``Family.load_processor``."""
        return ViltProcessor(
            ViltImageProcessorPil.from_pretrained(folder, trust_remote_code=False),
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        )

    @staticmethod
    def after_loading(model: Any, checkpoint: str) -> None:
        """Take the patches in order; see ``vilt_patches``."""
        choose_patches_in_order(model)

    def with_labels(self, labels: Sequence[str]) -> Self:
        """The same family over another set of answers; itself where there are none."""
        return type(self)(self.processor, self.config, "", labels) if labels else self

    def plan_labels(self, answers: Sequence[Sequence[str]], min_count: int = 2) -> LabelPlan:
        """Add to the checkpoint's answers those that are the most frequent one of at least ``min_count`` examples.

        Args:
            answers: The annotators' answers per example.
            min_count: Rarer answers are left out: one example teaches a classifier nothing (VQAv2 took nine).
        """
        known = {normalize_answer(label) for label in self.labels}
        counts = Counter(normalize_answer(most_frequent_answer(given)) for given in answers)
        added = tuple(
            answer for answer, count in counts.items() if answer and answer not in known and count >= min_count
        )
        covered = known | set(added)
        hits = sum(any(normalize_answer(answer) in covered for answer in given) for given in answers)
        return LabelPlan((*self.labels, *added), added, hits / len(answers))

    def can_answer(self, answers: Sequence[str]) -> bool:
        """Whether any of an example's answers is among the labels."""
        return bool(self.label_scores(answers))

    # --- images ---------------------------------------------------------------------------------------------------

    def prepare(self, images: Sequence[Image.Image]) -> list[Picture]:
        """``pixel_values`` ``(3, H, W)``, each image with a size of its own."""
        drawn = [self._within_proportions(image) for image in images]
        encoded = self.processor.image_processor(drawn, return_tensors="pt")
        heights, widths = (encoded["pixel_mask"].amax(dim=axis).sum(dim=1).tolist() for axis in (2, 1))
        return [
            Picture({"pixel_values": row[:, :height, :width].clone()})
            for row, height, width in zip(encoded["pixel_values"], heights, widths, strict=True)
        ]

    def _within_proportions(self, image: Image.Image) -> Image.Image:
        """An image so long that its short side would be less than a patch, squeezed until it is one.

        The library limits the long side (to 1333 / 800 of the usual short side), which leaves of a banner's short side
        less than one patch: it asks for an image of no height, and the whole batch fails.
        """
        settings = self.processor.image_processor
        longest = int(1333 / 800 * settings.size["shortest_edge"])
        most = longest / settings.size_divisor
        width, height = image.size
        if max(width, height) <= most * min(width, height) * 0.98:  # rounding may cost a pixel
            return image
        short, long = settings.size_divisor, longest // settings.size_divisor * settings.size_divisor
        return image.resize((long, short) if width > height else (short, long), Image.Resampling.BICUBIC)

    def pixel_batch(self, pictures: Sequence[Picture]) -> Batch:
        """``pixel_values`` ``(B, 3, H, W)``, smaller images padded on the right and at the bottom, and where they are.

        Without the mask, ``pixel_mask`` ``(B, H, W)``, padding would be looked at.
        """
        rows = [picture.tensors["pixel_values"] for picture in pictures]
        height, width = (max(row.shape[axis] for row in rows) for axis in (1, 2))
        around = [(0, width - row.shape[2], 0, height - row.shape[1]) for row in rows]
        masks = [torch.ones(row.shape[1:], dtype=torch.long, device=row.device) for row in rows]
        return {
            "pixel_values": torch.stack([pad(row, size) for row, size in zip(rows, around, strict=True)]),
            "pixel_mask": torch.stack([pad(mask, size) for mask, size in zip(masks, around, strict=True)]),
        }

    def lengths(self, pictures: Sequence[Picture]) -> list[int]:
        """One each: all are padded to one size."""
        return [1] * len(pictures)

    def encode_images(self, model: Any, pictures: Sequence[Picture], prompts: Sequence[str] = ()) -> list[Features]:
        """The pixels themselves: in ViLT the text enters with the first layer."""
        return [Features(picture.tensors["pixel_values"].to(model.device)) for picture in pictures]

    def encode_batch(self, model: Any, pictures: Sequence[Picture], batch: Batch) -> list[Features]:
        """The pixels themselves."""
        return self.encode_images(model, pictures)

    def with_features(self, batch: Batch, features: Sequence[Features]) -> dict[str, Any]:
        """Texts and pixels: they are what an image's features are here."""
        return {**batch, **self.pixel_batch([Picture({"pixel_values": one.values}) for one in features])}

    # --- text to tensors ------------------------------------------------------------------------------------------

    def check_prompt(self, prompt: str) -> None:
        """Raise ``PromptError`` when a question is longer than the model's positions."""
        problem = self._length_problem(prompt)
        if problem:
            raise PromptError(quoted(prompt), problem)

    def check_example(self, prompt: str, target: str, answers: Sequence[str], name: str) -> None:
        """Raise ``ExampleError`` when a question does not fit; see ``Family.check_example``.

        Which answers can be learnt is decided over all examples together by ``plan_labels``.
        """
        for text in (target, *filter(None, answers)):
            clean_text(text)
        problem = self._length_problem(prompt)
        if problem:
            raise ExampleError(name, problem)

    def _length_problem(self, prompt: str) -> str | None:
        count = len(self.tokenizer(clean_text(prompt), split_special_tokens=True, verbose=False)["input_ids"])
        if count <= self.max_text_tokens:
            return None
        return f"its question has {count} tokens, ViLT reads {self.max_text_tokens}."

    def prompt_batch(self, prompts: Sequence[str]) -> Batch:
        """Right-padded questions.

        Raises:
            PromptError: A question is longer than the model's positions: cut off it would be another one.
        """
        for prompt in prompts:
            self.check_prompt(prompt)
        questions = [clean_text(prompt) for prompt in prompts]
        encoded = self.tokenizer(questions, split_special_tokens=True, padding=True, verbose=False, return_tensors="pt")
        return {key: encoded[key] for key in ("input_ids", "attention_mask", "token_type_ids")}

    def _asked(self, model: Any, features: Sequence[Features], prompts: Sequence[str]) -> dict[str, Any]:
        """What the model takes of questions about images."""
        require_equal_rows(features=len(features), prompts=len(prompts))
        batch = {key: value.to(model.device) for key, value in self.prompt_batch(prompts).items()}
        return self.with_features(batch, features)

    def text_batch(
        self,
        looks: Sequence[Look],
        prompts: Sequence[str],
        targets: Sequence[str],
        *,
        answers: Sequence[Sequence[str]] = (),
        names: Sequence[str] = (),
    ) -> Batch:
        """Questions with a soft score per label, ``(B, L)``; see ``Family.text_batch``.

        One answer alone scores 1. Of several annotators' answers each scores 0, 0.3, 0.6, 0.9 or 1 for 0, 1, 2, 3 or
        more who gave it, as ViLT was trained (``get_score`` in its data writer).

        Raises:
            ExampleError: None of a row's answers is a label.
        """
        names = names or [f"row {index}" for index in range(len(prompts))]
        labels = torch.zeros(len(targets), len(self.labels))
        for row, (target, name) in enumerate(zip(targets, names, strict=True)):
            given = (answers[row] if answers else ()) or (target,)
            for answer, score in self.label_scores(given).items():
                labels[row, answer] = score
            if not labels[row].any():
                raise ExampleError(name, f"its answer {target!r} is none of the {len(self.labels)} labels.")
        return {**self.prompt_batch(prompts), "labels": labels}

    def label_scores(self, answers: Sequence[str]) -> dict[int, float]:
        """Soft score by label index; answers outside the label set have none."""
        counts = Counter(normalize_answer(answer) for answer in answers if answer.strip())
        alone = counts.total() == 1
        return {
            self._index[answer]: 1.0 if alone else soft_score(count)
            for answer, count in counts.items()
            if answer in self._index
        }

    # --- answers and loss -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        features: Sequence[Features],
        prompts: Sequence[str],
        settings: GenerationSettings,
        seeds: Sequence[int] | None = None,
    ) -> list[Generated]:
        """The most probable label of each row; decoding settings do not apply. See ``Family.generate``."""
        best = model(**self._asked(model, features, prompts)).logits.argmax(dim=-1).tolist()
        # A row whose adapter has a head of its own chooses among its own answers.
        own = row_labels(model.classifier, len(best))
        return [Generated((labels or self.labels)[index], "eos", 1) for index, labels in zip(best, own, strict=True)]

    def confidences(
        self, model: Any, features: Sequence[Features], prompts: Sequence[str], texts: Sequence[str]
    ) -> list[float]:
        """The probability of each row's most probable label; see ``Family.confidences``."""
        return [float(share) for share in torch.sigmoid(self.answer_logits(model, features, prompts)).amax(dim=1)]

    @torch.no_grad()
    def answer_logits(self, model: Any, features: Sequence[Features], prompts: Sequence[str]) -> Tensor:
        """One logit per label; see ``Family.answer_logits``."""
        return model(**self._asked(model, features, prompts)).logits.float()

    def loss(self, logits: Tensor, labels: Tensor, normalizer: Tensor | int | None = None) -> Tensor:
        """Binary cross-entropy summed over labels, averaged over rows, as ViLT was trained; see ``Family.loss``."""
        labels = labels.to(logits.device)
        total = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")
        return total * labels.shape[1] / (normalizer if normalizer is not None else labels.numel())

    def explain_row(self, batch: Batch, index: int) -> list[tuple[str, bool]]:
        """The question's tokens, then the answers with their scores; only the latter carry loss."""
        read = batch["input_ids"][index][batch["attention_mask"][index].bool()].tolist()
        scores = batch["labels"][index]
        pieces = [(f"{token} ", False) for token in self.tokenizer.convert_ids_to_tokens(read)]
        return pieces + [
            (f"{self.labels[label]}={scores[label]:g} ", True) for label in scores.nonzero()[:, 0].tolist()
        ]

    def ends_with_eos(self, batch: Batch, index: int) -> bool:
        """A classifier always ends."""
        return True
