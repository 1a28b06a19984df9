"""The file of ``lorax-vlm train --adapters``: which adapters to train together, by name.

```yaml
detailed_captions: {style: detailed}
concise_captions: {style: concise, data: my_captions/concise, steps: 200}
counting: {task: counting, recipe: heavy, learning_rate: 1e-3}
```
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.errors import AdapterNameError, DataError


@dataclass(frozen=True)
class AskedAdapter:
    """An adapter as the options of ``lorax-vlm train``, or an entry of the file, ask for it."""

    name: str
    style: str | None = None
    task: str | None = None
    recipe: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    """For ``read_asked_data``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``TrainConfig`` that are not the default."""


def ask(name: str, options: Mapping[str, Any]) -> AskedAdapter:
    """Sort options, named as in the file; what is None was not given."""
    given = {key: value for key, value in options.items() if value is not None}
    return AskedAdapter(
        name,
        **{key: given[key] for key in _KINDS if key in given},
        data={key: given[key] for key in _DATA if key in given},
        config={_CONFIG[key]: given[key] for key in _CONFIG if key in given},
    )


def read_order_file(path: Path, defaults: Mapping[str, Any]) -> list[AskedAdapter]:
    """Read the adapters of a file.

    Args:
        path: YAML. Paths of data in it are relative to its folder.
        defaults: Options of the command line, for adapters that do not say otherwise.

    Raises:
        DataError: Listing everything that is wrong with the file.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _NoKeyTwice)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), [str(error)]) from error
    except yaml.YAMLError as error:
        raise DataError(str(path), [" ".join(str(error).split())]) from error
    if not isinstance(content, dict) or not content:
        raise DataError(str(path), ["has no adapters"], _HINT)
    problems: list[str] = []
    asked = [_entry(str(name), entry, path, defaults, problems) for name, entry in content.items()]
    if problems:
        raise DataError(str(path), problems, _HINT)
    return asked


def _entry(name: str, entry: Any, path: Path, defaults: Mapping[str, Any], problems: list[str]) -> AskedAdapter:
    try:
        require_adapter_name(name)
    except AdapterNameError as error:
        problems.append(str(error))
    if not isinstance(entry, dict):
        problems.append(f"{name}: expected settings such as {{style: detailed}}, got {entry!r}")
        return AskedAdapter(name)
    options = {}
    for key, value in entry.items():
        if key not in _KEYS:
            problems.append(f"{name}: unknown setting {key!r}; known: {', '.join(_KEYS)}")
            continue
        try:
            options[key] = _KEYS[key](value)
        except ValueError:
            problems.append(f"{name}: {key} must be {_WORDS[_KEYS[key]]}, got {value!r}")
    if ("style" in entry) == ("task" in entry):
        problems.append(f"{name}: give it a style or a task, and not both")
    for key in _PATHS & options.keys():
        if not options[key].startswith("hub:"):
            options[key] = str(path.parent / Path(options[key]).expanduser())
    for key in ("images", "annotations"):
        if key in options:
            options[key] = Path(options[key])
    return ask(name, {**defaults, **options})


class _NoKeyTwice(yaml.SafeLoader):
    """YAML of which no adapter can get lost: the usual loader keeps the last of two equal keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if not key.tag.endswith(":merge")]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _word(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError
    return value


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError
    return value


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    number = float(value)  # YAML takes 2e-4, without a dot, for a string
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


_WORDS: dict[Callable[[Any], Any], str] = {
    _word: "text",
    _count: "a whole number from 1",
    _seed: "a whole number from 0",
    _rate: "a number above 0",
    _flag: "true or false",
}
_KINDS: dict[str, Callable[[Any], Any]] = {"style": _word, "task": _word, "recipe": _word}
_DATA: dict[str, Callable[[Any], Any]] = {
    "data": _word,
    "images": _word,
    "annotations": _word,
    "columns": _word,
    "streaming": _flag,
    "skip_bad_rows": _flag,
}
_PATHS = {"data", "images", "annotations"}
_CONFIG = {
    "steps": "max_steps",
    "batch_size": "batch_size",
    "accumulate": "gradient_accumulation",
    "learning_rate": "learning_rate",
    "eval_every": "eval_every",
    "patience": "patience",
    "seed": "seed",
    "mixed_precision": "mixed_precision",
    "gradient_checkpointing": "gradient_checkpointing",
}
_KEYS = {
    **_KINDS,
    **_DATA,
    "steps": _count,
    "batch_size": _count,
    "accumulate": _count,
    "learning_rate": _rate,
    "patience": _count,
    "seed": _seed,
}
_HINT = "The file is YAML: one entry per adapter, NAME: {style: detailed} or NAME: {task: counting}."
