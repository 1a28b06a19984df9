"""What is found out about a chat template before anything is asked through it: its file, form, faults and ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lorax_vlm.errors import CheckpointError, ExampleError
from lorax_vlm.models.families.chat_template import ChatTemplate
from lorax_vlm.models.families.chat_template_file import TemplateText, read_end_ids, read_template
from tests.chats_for_tests import (
    GEMMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    SHAPES,
    STRINGS,
    THINKING,
    TILES,
    assistant,
    make_tokenizer,
    open_text,
    system,
    user,
)


def refused(call: Callable[[], Any], *words: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    assert caught.value.next, "it says what to do"
    assert all(word in str(caught.value) for word in words), str(caught.value)
    return str(caught.value)


# --- where it is found ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's folder without a template."""
    make_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def tokenizer_of(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def found_in(folder: Path) -> TemplateText:
    return read_template(folder, tokenizer_of(folder), "tiny-vlm")


def test_a_template_of_its_own_file(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TILES)
    assert found_in(folder) == TemplateText(TILES, "chat_template.jinja")


def test_the_legacy_file_which_the_tokenizer_does_not_read(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TILES}))
    assert tokenizer_of(folder).chat_template is None, "the trap is gone"
    assert found_in(folder) == TemplateText(TILES, "chat_template.json")


def test_the_tokenizers_own(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TILES
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    assert not (folder / "chat_template.jinja").exists()
    assert found_in(folder) == TemplateText(TILES, "tokenizer")


def test_of_several_files_the_one_that_a_processor_of_transformers_takes(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = QWEN2
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    (folder / "chat_template.jinja").write_text(QWEN3)
    assert found_in(folder).text == QWEN3
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TILES}))
    assert found_in(folder) == TemplateText(TILES, "chat_template.json")
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_len": 64}))
    assert found_in(folder).text == TILES
    (folder / "processor_config.json").write_text(json.dumps({"chat_template": GEMMA}))
    assert found_in(folder) == TemplateText(GEMMA, "processor_config.json")


@pytest.mark.parametrize("as_list", [True, False])
def test_of_several_by_name_the_default_one(folder: Path, as_list: bool) -> None:
    named = {"tool_use": "x", "default": TILES}
    value: Any = [{"name": name, "template": text} for name, text in named.items()] if as_list else named
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": value}))
    assert found_in(folder) == TemplateText(TILES, "chat_template.json")


def test_several_of_which_none_is_the_default_one(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"tool_use": TILES, "rag": TILES}
    tokenizer.save_pretrained(folder)
    refused(lambda: found_in(folder), "tiny-vlm", "none is named default", "rag, tool_use")


def test_none(folder: Path) -> None:
    message = refused(lambda: found_in(folder), "tiny-vlm", "no chat template", "chat_template.jinja")
    assert str(folder) in message


@pytest.mark.parametrize(
    ("file", "data", "words"),
    [
        ("chat_template.jinja", b"\x80\x81", ["chat_template.jinja", "cannot be read", "not UTF-8"]),
        ("chat_template.jinja", b" \n", ["chat_template.jinja", "no text"]),
        ("chat_template.json", b"{", ["chat_template.json", "cannot be read", "not JSON"]),
        ("chat_template.json", b"[1]", ["chat_template.json", "not an object"]),
        ("chat_template.json", b'{"chat_template": 7}', ["chat_template.json", "is 7, no text"]),
        ("chat_template.json", b'{"chat_template": [7]}', ["chat_template.json", "none is named default"]),
    ],
)
def test_a_file_that_holds_no_template(folder: Path, file: str, data: bytes, words: list[str]) -> None:
    tokenizer = tokenizer_of(folder)
    (folder / file).write_bytes(data)
    refused(lambda: read_template(folder, tokenizer, "tiny-vlm"), "tiny-vlm", *words)


def test_line_ends_of_another_system_make_no_other_template(folder: Path) -> None:
    text = QWEN3.replace("{% for", "\n{% for")
    (folder / "chat_template.jinja").write_bytes(text.replace("\n", "\r\n").encode())
    assert found_in(folder).text == text


# --- its faults -----------------------------------------------------------------------------------------------------


def test_one_that_does_not_compile() -> None:
    refused(lambda: open_text(QWEN3 + "\n{% if %}"), "tiny-vlm", "chat_template.jinja", "line 2 is no template")


def test_one_that_raises_whatever_it_is_given() -> None:
    refused(lambda: open_text("{{ raise_exception('Not today.') }}"), "Not today", "lists of parts", "strings")


def test_one_that_would_leave_its_sandbox(tmp_path: Path) -> None:
    reach = "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "written") + "') }}"
    refused(lambda: open_text(reach + QWEN3), "does not take these turns")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "filters",
    [
        *("upper", "lower", "capitalize", "title", "e", "tojson", "wordwrap(8)", "reverse", "truncate(8)"),
        *("replace('\\n', ' ')", "replace('  ', ' ')", "replace('<', '')"),
    ],
)
def test_one_that_changes_texts(filters: str) -> None:
    for whose in ("user", "assistant"):
        changed = f"{{{{ (part.text | {filters}) if turn.role == '{whose}' else part.text }}}}"
        shown = f"{{% if part.type == 'image' %}}<image>{{% else %}}{changed}{{% endif %}}"
        text = TILES.replace("{{ '<image>' if part.type == 'image' else part.text }}", shown)
        assert text != TILES
        refused(lambda text=text: open_text(text), "chat_template.jinja", "changes the letters of a text")


def test_one_that_cuts_a_text_says_so() -> None:
    text = TILES.replace("part.text }}", "part.text[:12] }}")
    refused(lambda: open_text(text), "given lists of parts: the template changes the letters of a text")


def test_one_that_loses_texts() -> None:
    lost = QWEN3.replace("{{ part.text }}", "").replace("{{ turn.content }}", "")
    refused(
        lambda: open_text(lost),
        "given lists of parts: the template has no place for a text of turn 1 (user)",
        "given strings: the template has no place for",
    )
    answers = QWEN3.replace("in messages %}", "in messages if turn.role == 'user' %}")
    refused(lambda: open_text(answers), "no place for a text of turn 2 (assistant)")


def test_one_that_writes_a_text_twice() -> None:
    refused(lambda: open_text(TILES.replace("part.text }}", "part.text * 2 }}")), "a text of turn 1 (user) 2 times")


def test_one_without_a_place_for_an_image() -> None:
    blind = TILES.replace("'<image>' if part.type == 'image' else part.text", "part.text")
    refused(lambda: open_text(blind), "no place for an image of turn 1 (user)")


def test_one_whose_image_is_no_token() -> None:
    refused(lambda: open_text(TILES.replace("<image>", "(image)")), "no place for an image of turn 1 (user)")


def test_one_that_writes_more_images_than_there_are() -> None:
    text = TILES.replace("in messages %}", "in messages %}{{ '<image>' if turn.role == 'assistant' else '' }}")
    refused(lambda: open_text(text), "writes 2 images where there are 1")


def test_one_that_asks_otherwise_than_it_trains() -> None:
    text = QWEN3.replace("<|im_start|>assistant", "<|im_start|>model")
    refused(lambda: open_text(text), "before an answer", "something else than the prompt")


def test_one_that_asks_without_the_question() -> None:
    """What it writes then is how a whole conversation begins, too; the question would be learnt."""
    text = "{% if add_generation_prompt %}<|im_start|>{% else %}" + QWEN3 + "{% endif %}"
    refused(lambda: open_text(text), "given strings: the template has no place for an image of turn 1 (user)")


@pytest.mark.parametrize(
    ("head", "near"), [("assistant said:", ':"'), ("assistant of Room 4", "47")], ids=["a mark", "a digit"]
)
def test_one_whose_prompt_joins_an_answer(head: str, near: str) -> None:
    """Not any answer: the first probe would pass."""
    tokenizer = make_tokenizer(keeps_lines=False)
    text = QWEN3.replace("<|im_start|>assistant{{ '\\n' }}", f"<|im_start|>{head}").replace(
        "<|im_start|>{{ turn.role }}{{ '\\n' }}",
        f"<|im_start|>{{{{ '{head}' if turn.role == 'assistant' else 'user\\n' }}}}",
    )
    refused(lambda: open_text(text, tokenizer), "other tokens than the whole text", near)


@pytest.mark.parametrize("end", ["", " END"])
def test_one_without_an_end(end: str) -> None:
    refused(lambda: open_text(MISTRAL.replace("</s>", end)), "no special token behind an answer")


def test_one_that_ends_the_last_answer_only() -> None:
    template = open_text(MISTRAL.replace("</s> ", "{{ '</s>' if loop.last else ' ' }}"))
    talk = [user("Who?"), assistant("Red"), user("Why?"), assistant("No")]
    with pytest.raises(ExampleError, match=r"row 7.*does not end an answer with </s>"):
        template.training_rows(talk, name="row 7")
    [row] = template.training_rows(talk, learn="last")
    assert row.ids[row.learnt.index(True) :][-1] == template.end_id


def test_one_that_thinks_unless_it_is_told_not_to() -> None:
    """Two line breaks are one token, half of it in the prompt."""
    refused(lambda: open_text(THINKING, variables={}), "other tokens than the whole text", "</think>")
    assert open_text(THINKING).prompt([user("Who?")])


def test_a_prompt_that_ends_in_line_breaks_is_no_prompt_for_a_tokenizer_that_splits_them() -> None:
    """GPT-2's tokenises breaks before a word otherwise than at the end: with it the block of no thought fails, too."""
    tokenizer = make_tokenizer(keeps_lines=False)
    refused(lambda: open_text(THINKING, tokenizer), "other tokens than the whole text")
    for shape in sorted(set(SHAPES) - {"qwen3_5"}):
        assert open_text(SHAPES[shape], tokenizer)


# --- ends and digest ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "end"),
    [
        *(("idefics3", "<end_of_utterance>"), ("qwen2_5_vl", "<|im_end|>"), ("llava_next", "</s>")),
        *(("gemma3", "<end_of_turn>"), ("qwen3_5", "<|im_end|>"), ("lfm2", "<|im_end|>"), ("pixtral", "</s>")),
    ],
)
def test_the_end_is_what_stands_behind_an_answer(shape: str, end: str) -> None:
    tokenizer = make_tokenizer()
    template = open_text(SHAPES[shape], tokenizer, ends=[3])
    assert template.end_id == tokenizer.convert_tokens_to_ids(end)
    assert template.end_ids == {template.end_id, 3, tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        (None, []),
        ({}, []),
        ({"eos_token_id": None}, []),
        ({"eos_token_id": 5}, [5]),
        ({"eos_token_id": [5, 6]}, [5, 6]),
    ],
)
def test_the_ends_of_the_generation_settings(folder: Path, settings: Any, ends: list[int]) -> None:
    (folder / "chat_template.jinja").write_text(QWEN3)
    if settings is not None:
        (folder / "generation_config.json").write_text(json.dumps(settings))
    assert read_end_ids(folder, "tiny-vlm") == frozenset(ends)
    tokenizer = tokenizer_of(folder)
    template = ChatTemplate.open(folder, tokenizer, "tiny-vlm")
    assert template.end_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id, *ends}


@pytest.mark.parametrize(
    "data", [b"{", b"[1]", b'{"eos_token_id": "</s>"}', b'{"eos_token_id": [true]}', b'{"eos_token_id": -1}']
)
def test_generation_settings_without_sense(folder: Path, data: bytes) -> None:
    (folder / "chat_template.jinja").write_text(QWEN3)
    (folder / "generation_config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tiny-vlm.*\n.*generation_config\.json"):
        ChatTemplate.open(folder, tokenizer_of(folder), "tiny-vlm")


def test_what_is_opened_says_where_it_is_from(folder: Path) -> None:
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN3}))
    template = ChatTemplate.open(folder, tokenizer_of(folder), "tiny-vlm", max_images=1)
    assert (template.source, template.max_images) == ("chat_template.json", 1)
    assert template.digest == open_text(QWEN3).digest, "wherever it was found"


def test_the_digest_changes_with_all_that_decides_what_is_written() -> None:
    tokenizer = make_tokenizer()
    digests = [open_text(text, tokenizer).digest for text in (QWEN3, QWEN2, QWEN3 + "{# new #}", GEMMA)]
    digests.append(open_text(QWEN3, tokenizer, variables={"enable_thinking": True}).digest)
    tokenizer.bos_token = "<s>"
    digests.append(open_text(GEMMA, tokenizer).digest)
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    assert open_text(QWEN3, tokenizer).digest == digests[0], "it names no bos"


def test_a_system_is_given_in_the_form_that_the_template_takes() -> None:
    tokenizer = make_tokenizer()
    said = open_text(STRINGS, tokenizer).prompt([system("Be short."), user("Who?")])
    assert tokenizer.decode(said).startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWho?")
