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
from PIL import Image
from torch import Tensor
from transformers import Blip2Processor, GenerationConfig, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from lorax_vlm.errors import CheckpointError, ExampleError
from lorax_vlm.models.families.base import IGNORED_LABEL, Batch
from lorax_vlm.types import FinishReason, Generated, GenerationSettings


class Blip2DecoderFamily:
    """Formats batches for, and generates with, ``Blip2ForConditionalGeneration`` over a decoder-only model."""

    name = "blip2-opt"

    def __init__(self, processor: Blip2Processor, config: Any, checkpoint: str) -> None:
        """Check that processor and configuration agree.

        Raises:
            CheckpointError: They do not: the model would ignore its image, or never stop.
        """
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        self.image_token_id: int = config.image_token_index
        self.query_tokens: int = config.num_query_tokens
        text = config.text_config
        self.bos_id: int = text.bos_token_id
        self.eos_id: int = text.eos_token_id
        self.pad_id: int = text.pad_token_id
        self.max_positions: int = text.max_position_embeddings
        problems = self._disagreements()
        if problems:
            raise CheckpointError(
                checkpoint,
                problems,
                "Old revisions of the hub checkpoints miss the image token; use the newest revision of the repository.",
            )

    def _disagreements(self) -> list[str]:
        problems = []
        if self.processor.num_query_tokens != self.query_tokens:
            problems.append(
                f"processor.num_query_tokens is {self.processor.num_query_tokens}, the model has {self.query_tokens}: "
                "the image would be ignored without a word"
            )
        token_id = self.tokenizer.convert_tokens_to_ids("<image>")
        if not isinstance(self.image_token_id, int) or token_id != self.image_token_id:
            problems.append(f"image_token_index is {self.image_token_id}, the tokenizer's <image> is {token_id}")
        for label, value in (("bos", self.bos_id), ("eos", self.eos_id), ("pad", self.pad_id)):
            if not isinstance(value, int) or not 0 <= value < len(self.tokenizer):
                problems.append(f"{label} id {value} is not in the tokenizer's vocabulary of {len(self.tokenizer)}")
        # OPT ends a caption with a line break (id 50118), not with the tokenizer's </s>.
        if not problems and self.tokenizer.decode([self.eos_id]) not in ("\n", self.tokenizer.eos_token):
            problems.append(
                f"eos id {self.eos_id} decodes to {self.tokenizer.decode([self.eos_id])!r}, not a line break"
            )
        return problems

    # --- images ---------------------------------------------------------------------------------------------------

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess RGB images to ``(B, 3, H, W)`` float32."""
        return self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def encode_images(self, model: Any, pixel_values: Tensor) -> Tensor:
        """Vision encoder, Q-Former and projection: ``(B, 3, H, W)`` to ``(B, Q, D)``. No text enters here."""
        return model.get_image_features(pixel_values, return_dict=True).pooler_output

    # --- text to tensors ------------------------------------------------------------------------------------------

    def token_ids(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of user text and their character ranges; special tokens in it are ordinary characters."""
        encoding = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return encoding["input_ids"], encoding["offset_mapping"]

    def training_row(self, prompt: str, target: str, name: str) -> tuple[list[int], list[int]]:
        """Ids and labels of one row, unpadded.

        Raises:
            ExampleError: The target is empty, or the row is longer than the model's positions.
        """
        prompt, target = " ".join(prompt.split()), " ".join(target.split())
        if not target:
            raise ExampleError(name, "its target text is empty.")
        # GPT-2 tokens carry their leading space, so it belongs to the target; at the end of the prompt it would
        # become a token of its own.
        ids, offsets = self.token_ids(f"{prompt} {target}" if prompt else target)
        labels = [token if end > len(prompt) else IGNORED_LABEL for token, (_, end) in zip(ids, offsets, strict=True)]
        head = [self.image_token_id] * self.query_tokens + [self.bos_id]
        row_ids = [*head, *ids, self.eos_id]
        if len(row_ids) > self.max_positions:
            raise ExampleError(name, f"{len(row_ids)} tokens, the language model has {self.max_positions} positions.")
        return row_ids, [IGNORED_LABEL] * len(head) + labels + [self.eos_id]

    def training_batch(
        self, pixel_values: Tensor, prompts: Sequence[str], targets: Sequence[str], *, names: Sequence[str] = ()
    ) -> Batch:
        """Right-padded rows with labels on the target and its end token only; see ``Family.training_batch``."""
        _require_equal_rows(pixel_values=len(pixel_values), prompts=len(prompts), targets=len(targets))
        names = names or [f"row {index}" for index in range(len(prompts))]
        rows = [self.training_row(*row) for row in zip(prompts, targets, names, strict=True)]
        width = max(len(ids) for ids, _ in rows)
        input_ids = [ids + [self.pad_id] * (width - len(ids)) for ids, _ in rows]
        labels = [row + [IGNORED_LABEL] * (width - len(row)) for _, row in rows]
        mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]
        batch = {
            "pixel_values": pixel_values,
            "input_ids": torch.tensor(input_ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels),
        }
        self.require_image_tokens(batch["input_ids"])
        return batch

    def prompt_batch(self, prompts: Sequence[str]) -> Batch:
        """Left-padded rows ``[pad] [<image> * Q] [bos] prompt`` for generation.

        Raises:
            ExampleError: A prompt leaves no position for an answer.
        """
        rows = []
        for prompt in prompts:
            ids, _ = self.token_ids(" ".join(prompt.split()))
            rows.append([self.image_token_id] * self.query_tokens + [self.bos_id] + ids)
            if len(rows[-1]) >= self.max_positions:
                raise ExampleError(f"prompt {prompt[:40]!r}...", f"{len(rows[-1])} tokens leave no room for an answer.")
        width = max(map(len, rows))
        batch = {
            "input_ids": torch.tensor([[self.pad_id] * (width - len(ids)) + ids for ids in rows]),
            "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows]),
        }
        self.require_image_tokens(batch["input_ids"])
        return batch

    def require_image_tokens(self, input_ids: Tensor) -> None:
        """Raise ``ValueError`` unless every row has exactly ``Q`` image tokens.

        transformers consumes image features in order over the whole batch: one row with too few image tokens would
        hand its remaining features to the next row.
        """
        counts = (input_ids == self.image_token_id).sum(dim=1).tolist()
        wrong = {row: count for row, count in enumerate(counts) if count != self.query_tokens}
        if wrong:
            raise ValueError(f"Each row needs {self.query_tokens} image tokens; rows with another number: {wrong}.")

    # --- generation -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self, model: Any, features: Tensor, prompts: Sequence[str], settings: GenerationSettings
    ) -> list[Generated]:
        """Continue each prompt given its image's features; see ``Family.generate``.

        The language model is called directly with embeddings, as BLIP-2's authors did. It then returns new tokens
        only, and the image is encoded once however often its features are used.
        """
        _require_equal_rows(features=len(features), prompts=len(prompts))
        batch = {key: value.to(features.device) for key, value in self.prompt_batch(prompts).items()}
        embeddings = model.get_input_embeddings()(batch["input_ids"])
        image_positions = (batch["input_ids"] == self.image_token_id).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(image_positions, features.to(embeddings.dtype))
        room = self.max_positions - embeddings.shape[1]
        with torch.random.fork_rng(enabled=settings.seed is not None):
            if settings.seed is not None:
                torch.manual_seed(settings.seed)
            ids = model.language_model.generate(
                inputs_embeds=embeddings,
                attention_mask=batch["attention_mask"],
                generation_config=self._generation_config(settings, room),
                logits_processor=_repetition_penalty(settings),
            )
        return [self._decode(row) for row in ids.tolist()]

    def _generation_config(self, settings: GenerationSettings, room: int) -> GenerationConfig:
        sampling = settings.temperature is not None
        return GenerationConfig(
            max_new_tokens=min(settings.max_new_tokens, room),
            min_new_tokens=settings.min_new_tokens,
            num_beams=settings.num_beams,
            length_penalty=settings.length_penalty if settings.num_beams > 1 else 1.0,
            repetition_penalty=1.0,
            do_sample=sampling,
            temperature=settings.temperature if sampling else 1.0,
            top_p=settings.top_p if sampling else 1.0,
            top_k=0 if sampling else 50,
            bos_token_id=self.bos_id,
            eos_token_id=self.eos_id,
            pad_token_id=self.pad_id,
        )

    def _decode(self, ids: list[int]) -> Generated:
        finished = self.eos_id in ids
        kept = ids[: ids.index(self.eos_id)] if finished else [token for token in ids if token != self.pad_id]
        finish: FinishReason = "empty" if finished and not kept else "eos" if finished else "length"
        return Generated(self.tokenizer.decode(kept, skip_special_tokens=True).strip(), finish, len(kept))


def _repetition_penalty(settings: GenerationSettings) -> LogitsProcessorList:
    """The penalty as a processor of its own: it falls on new tokens only, as in BLIP-2's code.

    As a setting the library would warn of just that on every call.
    """
    if settings.repetition_penalty == 1.0:
        return LogitsProcessorList()
    return LogitsProcessorList([RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)])


def _require_equal_rows(**counts: int) -> None:
    if len(set(counts.values())) != 1:
        listing = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"One row each is needed, got {listing}.")
