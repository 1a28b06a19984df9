"""Chat templates of our own in the shapes that checkpoints have, and a tokenizer that they can all be read with."""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lorax_vlm.models.families.chat_template import ChatTemplate
from lorax_vlm.models.families.chat_template_file import TemplateText
from lorax_vlm.requests import ImagePart, Turn

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>"),
    *("<row_1_col_1>", "<global-img>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
    *("<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<s>", "</s>"),
)
WORDS = (
    "What is in the image?\n\n",
    "A red circle and a blue square.\n\n",
    "user\nassistant\nsystem\nmodel\nUser: Assistant: System: [INST] [/INST]",
    "Answering: What color is it? Red. Who is it? Yes",
    'He said:"No." Room 47 <| <|',
)

TILES = (
    "<|im_start|>{% for turn in messages %}"
    "{{ turn.role | capitalize }}{{ ':' if turn.content[0].type == 'image' else ': ' }}"
    "{% for part in turn.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "<end_of_utterance>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Idefics3 and SmolVLM: a space before the answer; strings are lost without a word."""

_MARKED = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}{{ '\\n' }}"
    "{% if turn.content is string %}{{ turn.content }}{% else %}{% for part in turn.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
QWEN3 = _MARKED
"""Qwen3-VL."""
QWEN2 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system{{ '\\n' }}You see.<|im_end|>{{ '\\n' }}{% endif %}"
    + _MARKED
)
"""Qwen2-VL and Qwen2.5-VL: a turn of the system where there is none."""

MISTRAL = (
    "{% for turn in messages %}"
    "{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}"
    "{% if turn.role == 'user' %}[INST] "
    "{% for part in turn.content if part.type == 'image' %}<image>{{ '\\n' }}{% endfor %}"
    "{% for part in turn.content if part.type == 'text' %}{{ part.text }}{% endfor %} [/INST]"
    "{% else %} {% for part in turn.content %}{{ part.text }}{% endfor %}</s> {% endif %}{% endfor %}"
)
"""LLaVA-NeXT with Mistral: images before texts wherever they stand; nothing but the turns of two sides."""

GEMMA = (
    "{{ bos_token }}{% set system = messages[0].role == 'system' %}"
    "{% for turn in messages[1 if system else 0:] %}"
    "{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}"
    "<start_of_turn>{{ 'model' if turn.role == 'assistant' else 'user' }}{{ '\\n' }}"
    "{{ messages[0].content[0].text + '\\n\\n' if system and loop.first else '' }}"
    "{% for part in turn.content %}"
    "{{ '<start_of_image>' if part.type == 'image' else part.text | trim }}{% endfor %}"
    "<end_of_turn>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model{{ '\\n' }}{% endif %}"
)
"""Gemma 3: bos in the text, another name for the assistant, white space trimmed, the system within the user's turn."""

THINKING = (
    "{% set asked = namespace(last=-1) %}"
    "{% for turn in messages %}{% if turn.role == 'user' %}{% set asked.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for turn in messages %}<|im_start|>{{ turn.role }}{{ '\\n' }}"
    "{% if turn.role == 'assistant' and loop.index0 > asked.last %}"
    "<think>{{ '\\n\\n' }}</think>{{ '\\n\\n' }}{% endif %}"
    "{% set said = namespace(text='') %}{% for part in turn.content %}"
    "{% if part.type == 'image' %}{% set said.text = said.text + '<|vision_start|><|image_pad|><|vision_end|>' %}"
    "{% else %}{% set said.text = said.text + part.text %}{% endif %}{% endfor %}"
    "{{ said.text | trim }}<|im_end|>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>{{ '\\n\\n' }}</think>{{ '\\n\\n' }}"
    "{% else %}<think>{{ '\\n' }}{% endif %}{% endif %}"
)
"""Qwen3.5: thinks unless told not to, and leaves the thinking out of earlier turns."""

STRINGS = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}{{ '\\n' }}"
    "{% if turn.content is string %}{{ turn.content }}{% endif %}<|im_end|>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
"""LFM2: lists are lost without a word."""

MIXED = MISTRAL.replace("{% for part in turn.content %}{{ part.text }}{% endfor %}</s>", "{{ turn.content + '</s>' }}")
"""Pixtral: a list from the user, a string from the assistant."""

SHAPES = {
    "idefics3": TILES,
    "qwen2_5_vl": QWEN2,
    "qwen3_vl": QWEN3,
    "llava_next": MISTRAL,
    "gemma3": GEMMA,
    "qwen3_5": THINKING,
    "lfm2": STRINGS,
    "pixtral": MIXED,
}
IMAGE = {
    "idefics3": "<image>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "llava_next": "<image>",
    "gemma3": "<start_of_image>",
    "qwen3_5": "<|vision_start|><|image_pad|><|vision_end|>",
    "lfm2": "<image>",
    "pixtral": "<image>",
}
"""What a template writes for an image; for ``lfm2``, which writes nothing, what a test puts there."""


def make_tokenizer(*, adds_bos: bool = False, keeps_lines: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few sentences. ``<think>`` and ``</think>`` are added, and not special, as Qwen's.

    Args:
        adds_bos: Whether it puts ``<s>`` before a text by itself.
        keeps_lines: Whether line breaks are one piece whatever follows, as Qwen's; GPT-2's splits off the last one
            where a word follows.
    """
    bpe = Tokenizer(models.BPE())
    lines = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(lines), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not keeps_lines)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, plain]) if keeps_lines else plain
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(WORDS * 4, trainer)
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>" if adds_bos else "<bos>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    return tokenizer


def open_text(text: str, tokenizer: Any = None, **options: Any) -> ChatTemplate:
    """A template that is tried with the tokenizer above, or another."""
    source = TemplateText(text, "chat_template.jinja")
    return ChatTemplate(source, make_tokenizer() if tokenizer is None else tokenizer, "tiny-vlm", **options)


def user(*parts: str | None) -> Turn:
    """What the user says; None is an image."""
    return Turn("user", tuple(ImagePart(None) if part is None else part for part in parts))


def assistant(text: str) -> Turn:
    """An answer."""
    return Turn("assistant", (text,))


def system(text: str) -> Turn:
    """What the system says."""
    return Turn("system", (text,))
