"""InstructBLIP with a decoder-only language model (Vicuna, a LLaMA).

As BLIP-2 with OPT, and:

- The Q-Former reads the instruction, so an image's features belong to an (image, instruction) pair. It reads the
  instruction *alone*: the library's processor feeds it whatever text it gets, and prompt plus target would leak the
  answer into the image features.
- The ids of bos, eos and pad are the tokenizer's (2, 2, 32000). The configuration on the hub says 0, 1 and -1: it would
  start with the wrong token, never stop, and fail where one row ends before another.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import (
    AutoTokenizer,
    BlipImageProcessorPil,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)

from lorax_vlm.errors import ExampleError, PromptError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.families.base import Batch
from lorax_vlm.models.families.blip2 import Blip2DecoderFamily
from lorax_vlm.models.families.pictures import Features, Look, Picture
from lorax_vlm.models.families.text import clean_text, pad_rows, require_equal_rows


class InstructBlipFamily(Blip2DecoderFamily):
    """Formats batches for, and generates with, ``InstructBlipForConditionalGeneration`` over LLaMA."""

    name = "instructblip"
    model_class: ClassVar[Any] = InstructBlipForConditionalGeneration
    image_path_reads_prompt = True

    @staticmethod
    def load_processor(folder: Path) -> InstructBlipProcessor:
        """Put together by hand: the hub's files name InstructBlipVideoProcessor, which makes four images of one."""
        file = folder / "processor_config.json"
        stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return InstructBlipProcessor(
            BlipImageProcessorPil.from_pretrained(folder, trust_remote_code=False),
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
            AutoTokenizer.from_pretrained(folder / "qformer_tokenizer", trust_remote_code=False),
            num_query_tokens=stored.get("num_query_tokens"),
        )

    def __init__(self, processor: Any, config: Any, checkpoint: str) -> None:
        """Check that processor and configuration agree; see ``Blip2DecoderFamily``."""
        super().__init__(processor, config, checkpoint)
        self.qformer_tokenizer: Any = processor.qformer_tokenizer
        self.max_instruction_tokens: int = config.qformer_config.max_position_embeddings

    def _special_ids(self, text_config: Any) -> tuple[int, int, int]:
        return self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id

    def _instruction_row(self, prompt: str) -> list[int]:
        ids = self.qformer_tokenizer(clean_text(prompt), split_special_tokens=True, verbose=False)["input_ids"]
        if len(ids) > self.max_instruction_tokens:
            raise PromptError(
                quoted(prompt), f"it has {len(ids)} tokens, the Q-Former has {self.max_instruction_tokens} positions."
            )
        return ids

    def check_prompt(self, prompt: str) -> None:
        """Raise ``PromptError`` when an instruction does not fit the Q-Former or the language model."""
        self._instruction_row(prompt)
        super().check_prompt(prompt)

    def check_example(self, prompt: str, target: str, answers: Sequence[str], name: str) -> None:
        """As BLIP-2, and the instruction must fit the Q-Former; see ``Family.check_example``."""
        try:
            self._instruction_row(prompt)
        except PromptError as error:
            raise ExampleError(name, error.reason) from error
        super().check_example(prompt, target, answers, name)

    def instruction_batch(self, prompts: Sequence[str]) -> Batch:
        """The Q-Former's text: ``qformer_input_ids`` and ``qformer_attention_mask``, padded on the right.

        Raises:
            PromptError: An instruction is longer than the Q-Former's positions.
        """
        rows = [self._instruction_row(prompt) for prompt in prompts]
        return {
            "qformer_input_ids": pad_rows(rows, self.qformer_tokenizer.pad_token_id),
            "qformer_attention_mask": pad_rows([[1] * len(row) for row in rows], 0),
        }

    def encode_images(self, model: Any, pictures: Sequence[Picture], prompts: Sequence[str] = ()) -> list[Features]:
        """Vision encoder, Q-Former with the instruction, and projection; see ``Family.encode_images``."""
        require_equal_rows(pictures=len(pictures), prompts=len(prompts))
        return self.encode_batch(model, pictures, self.instruction_batch(prompts))

    def text_batch(
        self,
        looks: Sequence[Look],
        prompts: Sequence[str],
        targets: Sequence[str],
        *,
        answers: Sequence[Sequence[str]] = (),
        names: Sequence[str] = (),
    ) -> Batch:
        """As BLIP-2, with the instruction alone for the Q-Former; see ``Family.text_batch``."""
        batch = super().text_batch(looks, prompts, targets, answers=answers, names=names)
        return batch | self.instruction_batch(prompts)
