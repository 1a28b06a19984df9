"""Chat models that see: the turns of a conversation by the template of the checkpoint, images in the places it gives.

What differs from one architecture to another is how an image is prepared and what stands for it in a row of ids; a
file of its own says that, such as ``tiles.py``. All else is done here, once:

- Rows are ids from the template on, never one text, so that nothing in a user's text is a special token; labels are
  measured, not searched (``chat_template.py``).
- The outer model generates and is given the features of its images, as ``mm_encoder_outputs``: its inner language model
  would lose positions and layers that belong to the image. It takes them in the order of the rows, and generation with
  beams changes what it is given, so every call gets its own.
- Prompts are padded on the left, training rows on the right; each row must have exactly the places that its image has
  features, because the model deals features out to whatever places there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from lorax_vlm.errors import CheckpointError, ExampleError, PromptError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.families.base import IGNORED_LABEL, Batch, target_loss
from lorax_vlm.models.families.chat_template import ChatTemplate
from lorax_vlm.models.families.decoding import logits_processors, make_generation_config
from lorax_vlm.models.families.pictures import Features, Look
from lorax_vlm.models.families.text import (
    clean_text,
    decode_new_tokens,
    pad_rows,
    require_equal_rows,
    row_batch,
    show_token,
)
from lorax_vlm.models.families.writing import WritingFamily
from lorax_vlm.requests import ImagePart, Turn
from lorax_vlm.types import Generated, GenerationSettings


@dataclass(frozen=True)
class ChatProcessor:
    """What reads texts and images. The library's own processors want torchvision, and count a user's ``<image>``."""

    tokenizer: Any
    image_processor: Any
    folder: Path
    """Of the checkpoint, whose template is read from there."""


class ChatFamily(WritingFamily, ABC):
    """Formats batches for, and generates with, a model that is given conversations."""

    image_path_reads_prompt = False
    takes_features = True
    packs = False
    unquantized: ClassVar[tuple[str, ...]]
    markers: ClassVar[tuple[str, ...]]
    """The added tokens that stand for an image or around one, which no text may write."""

    def __init__(self, processor: ChatProcessor, config: Any, checkpoint: str) -> None:
        """Try the template, and whether processor and configuration agree.

        Raises:
            CheckpointError: The template cannot be used, or the model would ignore or mix up its images.
        """
        self.processor, self.tokenizer, self.checkpoint = processor, processor.tokenizer, checkpoint
        self.image_token_id: int = config.image_token_id
        self.max_positions: int = config.text_config.max_position_embeddings
        problems = self.problems(config)
        shown = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        if shown not in self.markers:
            problems.append(f"its image token is {self.image_token_id}, which the tokenizer calls {shown!r}")
        if problems:
            raise CheckpointError(checkpoint, problems)
        self.template = ChatTemplate.open(processor.folder, self.tokenizer, checkpoint, markers=self.markers)
        self.ends = self.template.end_ids
        pad: int | None = self.tokenizer.pad_token_id
        self.pad_id = self.template.end_id if pad is None else pad

    @staticmethod
    def after_loading(model: Any, checkpoint: str) -> None:
        """Nothing is wrong."""

    # --- what an architecture says ----------------------------------------------------------------------------------

    @abstractmethod
    def problems(self, config: Any) -> list[str]:
        """How processor and configuration disagree about images."""

    @abstractmethod
    def image_ids(self, grid: tuple[int, ...]) -> list[int]:
        """What stands for an image in a row of ids, with what is around it."""

    @abstractmethod
    def encoded(self, features: Sequence[Features]) -> Any:
        """The images of some rows in the form in which the model's own ``get_image_features`` gives them, made anew."""

    # --- text to tensors --------------------------------------------------------------------------------------------

    def training_row(self, prompt: str, target: str, look: Look | None, name: str) -> tuple[list[int], list[int]]:
        """Ids and labels of one row, unpadded.

        Args:
            prompt: What the user says about the image.
            target: What is to be answered.
            look: The image; None for one that takes as little room as any.
            name: Of the row, for errors.

        Raises:
            ExampleError: The target is empty, the template does not take the row, or it is longer than the model's
                positions.
        """
        turns = (_asked(clean_text(prompt)), Turn("assistant", (clean_text(target),)))
        if not turns[1].parts[0]:
            raise ExampleError(name, "its target text is empty.")
        image = self.image_ids(look.grid if look is not None else ())
        [row] = self.template.training_rows(turns, [image], name=name)
        self._require_places(row.ids, image, name)
        if len(row.ids) > self.max_positions:
            raise ExampleError(name, self._too_long(len(row.ids), image))
        labels = [token if learnt else IGNORED_LABEL for token, learnt in zip(row.ids, row.learnt, strict=True)]
        return row.ids, labels

    def text_batch(
        self,
        looks: Sequence[Look],
        prompts: Sequence[str],
        targets: Sequence[str],
        *,
        answers: Sequence[Sequence[str]] = (),
        names: Sequence[str] = (),
    ) -> Batch:
        """Right-padded rows with labels on the answer and its end token only; see ``Family.text_batch``."""
        names = names or [f"row {index}" for index in range(len(prompts))]
        rows = [self.training_row(*row) for row in zip(prompts, targets, looks, names, strict=True)]
        batch = {
            **row_batch([ids for ids, _ in rows], self.pad_id),
            "labels": pad_rows([labels for _, labels in rows], IGNORED_LABEL),
        }
        return batch | self.row_extras(batch["input_ids"], looks)

    def row_extras(self, input_ids: Tensor, looks: Sequence[Look]) -> Batch:
        """What else an architecture is given of some rows."""
        return {}

    def _prompt_row(self, prompt: str, look: Look | None) -> list[int]:
        image = self.image_ids(look.grid if look is not None else ())
        ids = self.template.prompt([_asked(clean_text(prompt))], [image])
        self._require_places(ids, image, quoted(prompt))
        if len(ids) >= self.max_positions:
            raise PromptError(quoted(prompt), f"{self._too_long(len(ids), image)} None are left for an answer.")
        return ids

    def _require_places(self, ids: Sequence[int], image: Sequence[int], name: str) -> None:
        """Raise ``ValueError`` unless a row has as many places for features as its image."""
        found, needed = ids.count(self.image_token_id), image.count(self.image_token_id)
        if found != needed:
            raise ValueError(f"{name}: {found} places for an image with {needed} tokens.")

    def _too_long(self, count: int, image: Sequence[int]) -> str:
        places = image.count(self.image_token_id)
        return f"{count} tokens, {places} of them its image's; the language model has {self.max_positions} positions."

    def check_prompt(self, prompt: str) -> None:
        """Raise ``PromptError`` when a prompt, with the smallest image, leaves no position for an answer."""
        self._prompt_row(prompt, None)

    def check_example(self, prompt: str, target: str, answers: Sequence[str], name: str) -> None:
        """Raise ``ExampleError`` when a row's texts do not fit; see ``Family.check_example``."""
        self.training_row(prompt, target, None, name)

    def prompt_batch(self, looks: Sequence[Look], prompts: Sequence[str]) -> Batch:
        """Left-padded rows up to where the model goes on.

        Raises:
            PromptError: A prompt leaves no position for an answer, or the template does not take it.
        """
        rows = [self._prompt_row(prompt, look) for prompt, look in zip(prompts, looks, strict=True)]
        batch = row_batch(rows, self.pad_id, left=True)
        return batch | self.row_extras(batch["input_ids"], looks)

    def with_features(self, batch: Batch, features: Sequence[Features]) -> dict[str, Any]:
        """See ``Family.with_features``."""
        return {**batch, "mm_encoder_outputs": {"image": self.encoded(features)}}

    # --- generation and loss ----------------------------------------------------------------------------------------

    def _asked_of(self, model: Any, features: Sequence[Features], prompts: Sequence[str]) -> dict[str, Any]:
        require_equal_rows(features=len(features), prompts=len(prompts))
        batch = {key: value.to(model.device) for key, value in self.prompt_batch(features, prompts).items()}
        return self.with_features(batch, features)

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        features: Sequence[Features],
        prompts: Sequence[str],
        settings: GenerationSettings,
        seeds: Sequence[int] | None = None,
    ) -> list[Generated]:
        """Answer each prompt given its image's features; see ``Family.generate``.

        Tokens that stand for an image are never generated: the next step would look for features in their places.
        """
        asked = self._asked_of(model, features, prompts)
        before = asked["input_ids"].shape[1]
        config = make_generation_config(
            settings,
            self.max_positions - before,
            eos_token_id=sorted(self.ends),
            pad_token_id=self.pad_id,
            suppress_tokens=[i for i in self.tokenizer.convert_tokens_to_ids(list(self.markers)) if i is not None],
        )
        processors = logits_processors(settings, len(prompts), self.tokenizer, seeds)
        ids = model.generate(
            **asked,
            generation_config=config,
            logits_processor=LogitsProcessorList(_OfNewTokens(one, before) for one in processors),
        )
        return [decode_new_tokens(self.tokenizer, row[before:], self.ends, self.pad_id) for row in ids.tolist()]

    @torch.no_grad()
    def answer_logits(self, model: Any, features: Sequence[Features], prompts: Sequence[str]) -> Tensor:
        """Logits after the prompt; see ``Family.answer_logits``."""
        asked = self._asked_of(model, features, prompts)
        asked |= self.positions(asked["attention_mask"])
        return model(**asked, logits_to_keep=1, use_cache=False).logits[:, -1].float()

    def positions(self, mask: Tensor) -> Batch:
        """``position_ids`` ``(B, T)`` of left-padded rows, as generation counts them; nothing where the model does."""
        return {"position_ids": (mask.cumsum(dim=1) - 1).clamp_min(0)}

    def loss(self, logits: Tensor, labels: Tensor, normalizer: Tensor | int | None = None) -> Tensor:
        """Next-token cross-entropy; see ``Family.loss``."""
        return target_loss(logits, labels, normalizer)

    def explain_row(self, batch: Batch, index: int) -> list[tuple[str, bool]]:
        """Every token of a row with whether it carries loss; the places of an image as one."""
        kept = batch["attention_mask"][index].bool()
        ids, labels = batch["input_ids"][index][kept].tolist(), batch["labels"][index][kept].tolist()
        pieces = []
        for (token, learnt), same in groupby(zip(ids, [label != IGNORED_LABEL for label in labels], strict=True)):
            count, shown = len(list(same)), show_token(self.tokenizer, token)
            pieces += [(f"{shown} x {count}", learnt)] if token == self.image_token_id else [(shown, learnt)] * count
        return pieces


class _OfNewTokens(LogitsProcessor):
    """Lets a processor see what was generated, without the prompt before it."""

    def __init__(self, inner: LogitsProcessor, before: int) -> None:
        self._inner, self._before = inner, before

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """See ``LogitsProcessor``."""
        return self._inner(input_ids[:, self._before :], scores)


def _asked(prompt: str) -> Turn:
    return Turn("user", (ImagePart(None), prompt) if prompt else (ImagePart(None),))
