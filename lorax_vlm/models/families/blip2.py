"""BLIP-2 with a decoder-only language model (OPT).

A row is ``[<image> * Q] [bos] prompt target [eos]``. Three things differ from what a caller of transformers writes by
hand, each because the obvious way fails silently:

- Text is tokenised once, prompt and target together, and labels are cut by character offset; tokenising the prompt
  alone can disagree by one token at the boundary.
- Image tokens and bos are added as ids, and user text is tokenised with special tokens split into ordinary pieces, so
  a caption that contains ``<image>`` cannot claim another row's image features.
- Training pads on the right, generation on the left, and the mask is always passed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorax_vlm.errors import CheckpointError, ExampleError, PromptError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.families.base import IGNORED_LABEL, Batch, target_loss
from lorax_vlm.models.families.decoding import logits_processors, make_generation_config
from lorax_vlm.models.families.image_path import Blip2ImagePath
from lorax_vlm.models.families.image_tokens import (
    embed_with_image,
    image_token_problems,
    require_image_tokens,
    special_id_problems,
)
from lorax_vlm.models.families.pictures import Features, Look, stacked
from lorax_vlm.models.families.text import (
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


class Blip2DecoderFamily(Blip2ImagePath, WritingFamily):
    """Formats batches for, and generates with, ``Blip2ForConditionalGeneration`` over a decoder-only model."""

    name = "blip2-opt"

    def __init__(self, processor: Any, config: Any, checkpoint: str) -> None:
        """Check that processor and configuration agree.

        Raises:
            CheckpointError: They do not: the model would ignore its image, or never stop.
        """
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        self.image_token_id: int = config.image_token_index
        self.query_tokens: int = config.num_query_tokens
        self.bos_id, self.eos_id, self.pad_id = self._special_ids(config.text_config)
        self.ends = frozenset({self.eos_id})
        self.max_positions: int = config.text_config.max_position_embeddings
        problems = [
            *image_token_problems(processor, config),
            *special_id_problems(self.tokenizer, bos=self.bos_id, eos=self.eos_id, pad=self.pad_id),
        ]
        # OPT ends a caption with a line break (id 50118), not with the tokenizer's </s>.
        if not problems and self.tokenizer.decode([self.eos_id]) not in ("\n", self.tokenizer.eos_token):
            problems.append(
                f"eos id {self.eos_id} decodes to {self.tokenizer.decode([self.eos_id])!r}, not a line break"
            )
        if problems:
            raise CheckpointError(
                checkpoint,
                problems,
                "Old revisions of the hub checkpoints miss the image token; use the newest revision of the repository.",
            )

    def _special_ids(self, text_config: Any) -> tuple[int, int, int]:
        """The ids of bos, eos and pad that the language model was trained with."""
        return text_config.bos_token_id, text_config.eos_token_id, text_config.pad_token_id

    # --- text to tensors ------------------------------------------------------------------------------------------

    def training_row(self, prompt: str, target: str, name: str) -> tuple[list[int], list[int]]:
        """Ids and labels of one row, unpadded.

        Raises:
            ExampleError: The target is empty, or the row is longer than the model's positions.
        """
        prompt, target = clean_text(prompt), clean_text(target)
        if not target:
            raise ExampleError(name, "its target text is empty.")
        # Tokens carry their leading space, so it belongs to the target; at the end of the prompt it would become a
        # token of its own.
        ids, offsets = token_ids(self.tokenizer, f"{prompt} {target}" if prompt else target)
        labels = [token if end > len(prompt) else IGNORED_LABEL for token, (_, end) in zip(ids, offsets, strict=True)]
        head = [self.image_token_id] * self.query_tokens + [self.bos_id]
        row_ids = [*head, *ids, self.eos_id]
        if len(row_ids) > self.max_positions:
            raise ExampleError(name, f"{len(row_ids)} tokens, the language model has {self.max_positions} positions.")
        return row_ids, [IGNORED_LABEL] * len(head) + labels + [self.eos_id]

    def text_batch(
        self,
        looks: Sequence[Look],
        prompts: Sequence[str],
        targets: Sequence[str],
        *,
        answers: Sequence[Sequence[str]] = (),
        names: Sequence[str] = (),
    ) -> Batch:
        """Right-padded rows with labels on the target and its end token only; see ``Family.text_batch``."""
        names = names or [f"row {index}" for index in range(len(prompts))]
        rows = [self.training_row(*row) for row in zip(prompts, targets, names, strict=True)]
        batch = {
            **row_batch([ids for ids, _ in rows], self.pad_id),
            "labels": pad_rows([labels for _, labels in rows], IGNORED_LABEL),
        }
        require_image_tokens(batch["input_ids"], self.image_token_id, self.query_tokens)
        return batch

    def _prompt_row(self, prompt: str) -> list[int]:
        ids, _ = token_ids(self.tokenizer, clean_text(prompt))
        row = [self.image_token_id] * self.query_tokens + [self.bos_id] + ids
        if len(row) >= self.max_positions:
            raise PromptError(
                quoted(prompt),
                f"with its image it has {len(row)} tokens, which leave no room for an answer in "
                f"{self.max_positions} positions.",
            )
        return row

    def check_prompt(self, prompt: str) -> None:
        """Raise ``PromptError`` when a prompt leaves no position for an answer."""
        self._prompt_row(prompt)

    def check_example(self, prompt: str, target: str, answers: Sequence[str], name: str) -> None:
        """Raise ``ExampleError`` when a row's texts do not fit; see ``Family.check_example``."""
        self.training_row(prompt, target, name)

    def prompt_batch(self, prompts: Sequence[str]) -> Batch:
        """Left-padded rows ``[pad] [<image> * Q] [bos] prompt`` for generation.

        Raises:
            PromptError: A prompt leaves no position for an answer.
        """
        rows = [self._prompt_row(prompt) for prompt in prompts]
        batch = row_batch(rows, self.pad_id, left=True)
        require_image_tokens(batch["input_ids"], self.image_token_id, self.query_tokens)
        return batch

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
        """Continue each prompt given its image's features; see ``Family.generate``.

        The language model is called directly with embeddings, as BLIP-2's authors did. It then returns new tokens
        only, and the image is encoded once however often its features are used.
        """
        require_equal_rows(features=len(features), prompts=len(prompts))
        seen = stacked(features)
        batch = {key: value.to(seen.device) for key, value in self.prompt_batch(prompts).items()}
        embeddings = embed_with_image(model, batch["input_ids"], seen, self.image_token_id)
        special_ids = {"bos_token_id": self.bos_id, "eos_token_id": self.eos_id, "pad_token_id": self.pad_id}
        room = self.max_positions - embeddings.shape[1]
        ids = model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=batch["attention_mask"],
            generation_config=make_generation_config(settings, room, **special_ids),
            logits_processor=logits_processors(settings, len(prompts), self.tokenizer, seeds),
        )
        return [decode_new_tokens(self.tokenizer, row, self.ends, self.pad_id) for row in ids.tolist()]

    @torch.no_grad()
    def answer_logits(self, model: Any, features: Sequence[Features], prompts: Sequence[str]) -> Tensor:
        """Logits after the prompt; see ``Family.answer_logits``."""
        require_equal_rows(features=len(features), prompts=len(prompts))
        seen = stacked(features)
        batch = {key: value.to(seen.device) for key, value in self.prompt_batch(prompts).items()}
        embeddings = embed_with_image(model, batch["input_ids"], seen, self.image_token_id)
        mask = batch["attention_mask"]
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        output = model.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False
        )
        return output.logits[:, -1].float()

    def loss(self, logits: Tensor, labels: Tensor, normalizer: Tensor | int | None = None) -> Tensor:
        """Next-token cross-entropy; see ``Family.loss``."""
        return target_loss(logits, labels, normalizer)

    def explain_row(self, batch: Batch, index: int) -> list[tuple[str, bool]]:
        """Every token of a row with whether it carries loss."""
        kept = batch["attention_mask"][index].bool()
        ids, labels = batch["input_ids"][index][kept].tolist(), batch["labels"][index][kept].tolist()
        pieces = [show_token(self.tokenizer, token) for token in ids]
        return [(piece, label != IGNORED_LABEL) for piece, label in zip(pieces, labels, strict=True)]
