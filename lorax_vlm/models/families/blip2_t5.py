"""BLIP-2 with an encoder-decoder language model (FLAN-T5).

The encoder reads ``[<image> * Q] prompt </s>``, the decoder learns ``target </s>`` and starts from the pad token.
Padding is on the right on both sides. Two things need care:

- Labels line up with the decoder's outputs; nothing is shifted when the loss is taken, unlike in a decoder-only model.
- FLAN-T5's output head is its own matrix. transformers 5 nevertheless declares it tied to the input embeddings, and
  leaves it alone only because the stored weights differ: ``tie_weights`` or ``resize_token_embeddings`` would overwrite
  it. ``keep_head_untied`` takes the declaration back after loading.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lorax_vlm.errors import CheckpointError, ExampleError, PromptError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.families.base import IGNORED_LABEL, Batch, token_loss
from lorax_vlm.models.families.decoding import logits_processors, make_generation_config
from lorax_vlm.models.families.image_path import IMAGE_PATH_MODULES, Blip2ImagePath
from lorax_vlm.models.families.image_tokens import (
    embed_with_image,
    image_token_problems,
    require_image_tokens,
    special_id_problems,
)
from lorax_vlm.models.families.pictures import Features, Look, stacked
from lorax_vlm.models.families.text import (
    break_special_tokens,
    clean_text,
    decode_new_tokens,
    pad_rows,
    require_equal_rows,
    row_batch,
    show_token,
    token_ids,
)
from lorax_vlm.models.families.writing import WritingFamily
from lorax_vlm.types import Generated, GenerationSettings

MAX_TEXT_TOKENS = 512
"""What T5's tokenizer was trained with. Its positions are relative, so the model itself sets no limit."""


class Blip2EncoderDecoderFamily(Blip2ImagePath, WritingFamily):
    """Formats batches for, and generates with, ``Blip2ForConditionalGeneration`` over T5."""

    name = "blip2-t5"
    unquantized: ClassVar[tuple[str, ...]] = (*IMAGE_PATH_MODULES, "lm_head", "wo")

    def __init__(self, processor: Any, config: Any, checkpoint: str) -> None:
        """Check that processor and configuration agree.

        Raises:
            CheckpointError: They do not: the model would ignore its image, or never stop.
        """
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        self.image_token_id: int = config.image_token_index
        self.query_tokens: int = config.num_query_tokens
        self.eos_id: int = config.text_config.eos_token_id
        self.pad_id: int = config.text_config.pad_token_id
        self.ends = frozenset({self.eos_id})
        problems = [
            *image_token_problems(processor, config),
            *special_id_problems(self.tokenizer, eos=self.eos_id, pad=self.pad_id),
        ]
        if not problems and self.tokenizer.eos_token_id != self.eos_id:
            problems.append(f"eos id {self.eos_id} is not the tokenizer's {self.tokenizer.eos_token_id}")
        if problems:
            raise CheckpointError(
                checkpoint,
                problems,
                "Old revisions of the hub checkpoints miss the image token; use the newest revision of the repository.",
            )

    @staticmethod
    def after_loading(model: Any, checkpoint: str) -> None:
        """Keep the output head a matrix of its own."""
        keep_head_untied(model, checkpoint)

    # --- text to tensors ------------------------------------------------------------------------------------------

    def _text_ids(self, text: str) -> list[int]:
        ids, _ = token_ids(self.tokenizer, break_special_tokens(self.tokenizer, clean_text(text)))
        return [*ids, self.eos_id]

    def _prompt_row(self, prompt: str) -> list[int]:
        return [self.image_token_id] * self.query_tokens + self._text_ids(prompt)

    def check_prompt(self, prompt: str) -> None:
        """Raise ``PromptError`` when a prompt is longer than T5 was trained with."""
        count = len(self._text_ids(prompt))
        if count > MAX_TEXT_TOKENS:
            raise PromptError(quoted(prompt), f"it has {count} tokens, T5 was trained with {MAX_TEXT_TOKENS}.")

    def check_example(self, prompt: str, target: str, answers: Sequence[str], name: str) -> None:
        """Raise ``ExampleError`` when a row's texts do not fit; see ``Family.check_example``."""
        if not clean_text(target):
            raise ExampleError(name, "its target text is empty.")
        for text in (prompt, target):
            count = len(self._text_ids(text))
            if count > MAX_TEXT_TOKENS:
                raise ExampleError(name, f"a text of {count} tokens, T5 was trained with {MAX_TEXT_TOKENS}.")

    def prompt_batch(self, prompts: Sequence[str]) -> Batch:
        """Right-padded encoder rows ``[<image> * Q] prompt </s> [pad]``.

        Raises:
            PromptError: A prompt is longer than T5 was trained with.
        """
        for prompt in prompts:
            self.check_prompt(prompt)
        rows = [self._prompt_row(prompt) for prompt in prompts]
        batch = row_batch(rows, self.pad_id)
        require_image_tokens(batch["input_ids"], self.image_token_id, self.query_tokens)
        return batch

    def text_batch(
        self,
        looks: Sequence[Look],
        prompts: Sequence[str],
        targets: Sequence[str],
        *,
        answers: Sequence[Sequence[str]] = (),
        names: Sequence[str] = (),
    ) -> Batch:
        """Encoder rows, and ``target </s>`` as labels; see ``Family.text_batch``."""
        names = names or [f"row {index}" for index in range(len(prompts))]
        for prompt, target, name in zip(prompts, targets, names, strict=True):
            self.check_example(prompt, target, (), name)
        labels = [self._text_ids(target) for target in targets]
        padded = pad_rows(labels, IGNORED_LABEL)
        start = torch.full((len(labels), 1), self.pad_id)
        shifted = torch.cat([start, padded[:, :-1]], dim=1)
        return {
            **self.prompt_batch(prompts),
            # What the model would make of the labels itself; the loss is taken outside of it.
            "decoder_input_ids": shifted.masked_fill(shifted == IGNORED_LABEL, self.pad_id),
            "labels": padded,
        }

    # --- generation and loss --------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        features: Sequence[Features],
        prompts: Sequence[str],
        settings: GenerationSettings,
        seeds: Sequence[int] | None = None,
    ) -> list[Generated]:
        """Answer each prompt given its image's features; see ``Family.generate``."""
        require_equal_rows(features=len(features), prompts=len(prompts))
        seen = stacked(features)
        batch = {key: value.to(seen.device) for key, value in self.prompt_batch(prompts).items()}
        embeddings = embed_with_image(model, batch["input_ids"], seen, self.image_token_id)
        special_ids = {"eos_token_id": self.eos_id, "pad_token_id": self.pad_id, "decoder_start_token_id": self.pad_id}
        ids = model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=batch["attention_mask"],
            generation_config=make_generation_config(settings, MAX_TEXT_TOKENS, **special_ids),
            logits_processor=logits_processors(settings, len(prompts), self.tokenizer, seeds),
        )
        # The decoder's start token is part of what T5 returns.
        return [decode_new_tokens(self.tokenizer, row[1:], self.ends, self.pad_id) for row in ids.tolist()]

    @torch.no_grad()
    def answer_logits(self, model: Any, features: Sequence[Features], prompts: Sequence[str]) -> Tensor:
        """Logits after the decoder's start token; see ``Family.answer_logits``."""
        require_equal_rows(features=len(features), prompts=len(prompts))
        seen = stacked(features)
        batch = {key: value.to(seen.device) for key, value in self.prompt_batch(prompts).items()}
        output = model.language_model(
            inputs_embeds=embed_with_image(model, batch["input_ids"], seen, self.image_token_id),
            attention_mask=batch["attention_mask"],
            decoder_input_ids=torch.full((len(prompts), 1), self.pad_id, device=seen.device),
            use_cache=False,
        )
        return output.logits[:, 0].float()

    def loss(self, logits: Tensor, labels: Tensor, normalizer: Tensor | int | None = None) -> Tensor:
        """Cross-entropy of the decoder's outputs; see ``Family.loss``."""
        return token_loss(logits, labels, normalizer)

    def explain_row(self, batch: Batch, index: int) -> list[tuple[str, bool]]:
        """The encoder's tokens, then the decoder's; only the latter carry loss."""
        read = batch["input_ids"][index][batch["attention_mask"][index].bool()].tolist()
        labels = batch["labels"][index]
        learnt = labels[labels != IGNORED_LABEL].tolist()
        pieces = [(show_token(self.tokenizer, token), False) for token in read]
        return pieces + [(show_token(self.tokenizer, token), True) for token in learnt]


def keep_head_untied(model: Any, checkpoint: str) -> None:
    """Take back the claim that FLAN-T5's output head is tied to its input embeddings.

    Raises:
        CheckpointError: The head already is the embedding matrix.
    """
    language_model = model.language_model
    head, shared = language_model.lm_head.weight, language_model.shared.weight
    if head is shared or (head.device.type != "meta" and torch.equal(head, shared)):
        raise CheckpointError(
            checkpoint, ["the output head of its T5 equals the input embeddings; FLAN-T5's is a matrix of its own"]
        )
    for config in (model.config, model.config.text_config, language_model.config):
        config.tie_word_embeddings = False
