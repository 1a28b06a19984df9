"""The miniatures' tokenizers: each of its family's own class, with every word of the scene world as one token."""

import json
import string
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast, T5Tokenizer

from recipes.turns import CAPTION_INSTRUCTIONS, COLORS_INSTRUCTION, REPEAT_PROMPT, STYLE_WORDS, YES_NO_INSTRUCTION


def make_opt_tokenizer(question_prompt: str) -> GPT2Tokenizer:
    """A byte-level BPE. Ids 0 to 3 are OPT's."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    prompts = [question_prompt.format(question="What size is the shape?"), REPEAT_PROMPT.format(words="")]
    words = [text for word in STYLE_WORDS for text in (word, f" {word}")]
    bpe.train_from_iterator((prompts + words) * 2, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = GPT2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
        model_max_length=256,
    )
    tokenizer.add_tokens(["<s>"], special_tokens=True)
    return tokenizer


_IMAGE_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>")
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<end_of_utterance>", *_IMAGE_TOKENS)
"""Ids 0 to 5: pad, what begins a conversation, what ends a turn, and what stands for an image and around it."""


def make_chat_tokenizer(prompts: Sequence[str], tags: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the added tokens of SmolVLM; its template is a file beside it.

    Args:
        prompts: Whose words are tokens, too.
        tags: Further added tokens, such as those of rows and columns of tiles.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        special_tokens=list(CHAT_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = [text for word in STYLE_WORDS for text in (word, f" {word}")]
    turns = ["User:", " Assistant:", REPEAT_PROMPT.format(words=""), "What size is the shape?", *prompts]
    bpe.train_from_iterator((turns + words) * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=CHAT_TOKENS[1],
        eos_token=CHAT_TOKENS[2],
        unk_token=CHAT_TOKENS[0],
        pad_token=CHAT_TOKENS[0],
        additional_special_tokens=list(_IMAGE_TOKENS),
        model_max_length=512,
    )
    tokenizer.add_tokens(list(tags))
    return tokenizer


def make_t5_tokenizer(question_prompt: str) -> T5Tokenizer:
    """A unigram model: pad 0, ``</s>`` 1, unknown 2, then characters, and words that always beat their characters.

    Beside the words of all miniatures it knows those of ``BESIDE_FORMS``.
    """
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(character, -10.0) for character in sorted(string.ascii_letters + string.digits + string.punctuation)]
    for word in [*_words(question_prompt), "not", "Not"]:
        pieces += [(f"▁{word}", -6.0), (word, -7.0)] if len(word) > 1 else [(f"▁{word}", -6.0)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=512)
    tokenizer.padding_side = "right"
    return tokenizer


def make_llama_tokenizer(question_prompt: str) -> LlamaTokenizer:
    """A BPE with bytes to fall back on; as Vicuna's, ``</s>`` (2) begins and ends, and ``[PAD]`` is added after all."""
    special = ["<unk>", "<s>", "</s>"]
    bpe = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    alphabet = sorted(string.ascii_letters + string.digits + string.punctuation + "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator([word for word in _words(question_prompt) for _ in range(2)], trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = LlamaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        add_bos_token=True,
        model_max_length=256,
    )
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def make_bert_tokenizer(question_prompt: str, limit: int) -> BertTokenizer:
    """A lower-case word-piece model with characters to fall back on."""
    characters = sorted(string.ascii_lowercase + string.digits + string.punctuation)
    words = sorted({word.lower() for word in _words(question_prompt)} - set(characters))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *words]
    pieces += [f"##{character}" for character in characters]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=limit)


def _words(question_prompt: str) -> list[str]:
    """Every word and mark of the scene world and of the prompts, sorted."""
    prompts = [question_prompt, REPEAT_PROMPT, YES_NO_INSTRUCTION, COLORS_INSTRUCTION, *CAPTION_INSTRUCTIONS, "size"]
    words = set(STYLE_WORDS)
    for prompt in prompts:
        plain = "".join(character if character.isalpha() else " " for character in prompt)
        words.update(plain.split())
    return sorted((words - {"question", "words"}) | {"Question", "question", "words"})
