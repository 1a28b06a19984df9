"""The chat template of a checkpoint, found in its files, and what else they say of ends. No torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorax_vlm.errors import CheckpointError
from lorax_vlm.foreign import decode_text, parse_json, printable, quoted

_FILES = ("processor_config.json", "chat_template.json", "chat_template.jinja")
"""Where a template is looked for, in the order of transformers' processors; then in the tokenizer."""
_ANOTHER = (
    "Put the template into its folder as chat_template.jinja: that of the checkpoint which it was made from, or of "
    "another revision."
)


@dataclass(frozen=True)
class TemplateText:
    """A template, not yet tried."""

    text: str
    source: str
    """The file that it is from, or ``tokenizer``."""

    def digest(self, special_tokens: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
        """SHA-256 of all that decides what it writes around texts.

        Args:
            special_tokens: The tokenizer's by name; those count which the template names.
            variables: What is passed to it.
        """
        named = {name: str(token) for name, token in special_tokens.items() if name in self.text}
        record = json.dumps([self.text, named, dict(variables)], sort_keys=True)
        return hashlib.sha256(record.encode()).hexdigest()


def read_template(folder: Path, tokenizer: Any, checkpoint: str) -> TemplateText:
    """The template that transformers' processor of a checkpoint would use; of several by name, the default one.

    ``AutoTokenizer`` reads neither ``chat_template.json`` nor ``processor_config.json``, so that they are read here.

    Raises:
        CheckpointError: There is none, or its file cannot be read.
    """
    source, value = "tokenizer", tokenizer.chat_template
    for file in _FILES:
        try:
            found = _template_in(folder / file)
        except (OSError, ValueError) as error:
            raise CheckpointError(checkpoint, [f"{file} cannot be read: {printable(str(error))}"], _ANOTHER) from error
        if found is not None:
            source, value = file, found
            break
    if value is None:
        raise CheckpointError(checkpoint, [f"there is no chat template in {folder}"], _ANOTHER)
    text = _default(value, source, checkpoint)
    if not isinstance(text, str) or not text.strip():
        raise CheckpointError(checkpoint, [f"its chat template ({source}) is {quoted(text)}, no text"], _ANOTHER)
    return TemplateText(text.replace("\r\n", "\n"), source)


def _default(value: Any, source: str, checkpoint: str) -> Any:
    """The one to be used, of one or of several by name."""
    if isinstance(value, list):
        value = {str(one.get("name")): one.get("template") for one in value if isinstance(one, dict)}
    if isinstance(value, dict):
        if "default" not in value:
            names = ", ".join(sorted(map(str, value))) or "none"
            reason = f"of its chat templates ({source}) none is named default: {printable(names)}"
            raise CheckpointError(checkpoint, [reason], _ANOTHER)
        return value["default"]
    return value


def read_end_ids(folder: Path, checkpoint: str) -> frozenset[int]:
    """``eos_token_id`` of ``generation_config.json``, which is one number or a list of some; empty without one.

    Raises:
        CheckpointError: The file cannot be read, or has no numbers there.
    """
    file = "generation_config.json"
    try:
        value = _record(folder / file).get("eos_token_id") if (folder / file).is_file() else None
    except (OSError, ValueError) as error:
        raise CheckpointError(checkpoint, [f"{file} cannot be read: {printable(str(error))}"]) from error
    ends = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(end, int) or isinstance(end, bool) or end < 0 for end in ends):
        raise CheckpointError(checkpoint, [f"eos_token_id in {file} is {quoted(value)}, no number of a token"])
    return frozenset(ends)


def _template_in(path: Path) -> Any:
    """What a file has for a template; None where it has nothing, or is not there."""
    if not path.is_file():
        return None
    if path.suffix == ".json":
        return _record(path).get("chat_template")
    return decode_text(path.read_bytes())


def _record(path: Path) -> dict[str, Any]:
    record = parse_json(path.read_bytes())
    if not isinstance(record, dict):
        raise ValueError("not an object of names and values")
    return record
