"""What ``lorax-vlm train`` is asked for: by its options, or by the file of ``--adapters``. No torch.

```yaml
detailed_captions: {style: detailed}
concise_captions: {style: concise, data: my_captions/concise, steps: 200}
counting: {task: counting, recipe: heavy, learning_rate: 1e-3}
```

The file is other people's text: names must be text (YAML makes a truth value of ``no`` and a number of ``010``), and
everything wrong is listed at once.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.cli.yaml_files import read_yaml
from lorax_vlm.errors import AdapterNameError, DataError
from lorax_vlm.foreign import quoted, text_problem
from lorax_vlm.training.config import SEED_LIMIT

_HINT = "The file is YAML: one entry per adapter, NAME: {style: detailed} or NAME: {task: counting}."


def _number(value: Any) -> Any:
    """YAML takes 2e-4, without a dot, for a string."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _sound_text(value: str) -> str:
    if problem := text_problem(value):
        raise ValueError(problem)
    return value


_Word = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(_sound_text),
    Field(description="text (in quotes, where YAML reads something else)"),
]
_Count = Annotated[int, Field(ge=1, lt=2**31, description="a whole number from 1")]
_Seed = Annotated[int, Field(ge=0, lt=SEED_LIMIT, description=f"a whole number from 0, below {SEED_LIMIT}")]
_Rate = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False, description="a number above 0")]
_Share = Annotated[
    float, BeforeValidator(_number), Field(ge=0, lt=1, allow_inf_nan=False, description="a number from 0 up to 1")
]
_Flag = Annotated[bool, Field(description="true or false")]
_Sites = Annotated[
    list[Annotated[str, Field(min_length=1)]], Field(min_length=1, description="a list of names, [vision, lm]")
]


class Options(BaseModel):
    """The options of ``lorax-vlm train`` for one adapter; None where nothing was said."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    style: _Word | None = None
    task: _Word | None = None
    recipe: _Word | None = None
    init_from: _Word | None = None
    rank: _Count | None = None
    alpha: _Rate | None = None
    dropout: _Share | None = None
    sites: _Sites | None = None
    data: _Word | None = None
    images: _Word | None = None
    annotations: _Word | None = None
    columns: _Word | None = None
    streaming: _Flag | None = None
    skip_bad_rows: _Flag | None = None
    held_out: _Share | None = None
    group_by: _Word | None = None
    steps: _Count | None = None
    batch_size: _Count | None = None
    accumulate: _Count | None = None
    learning_rate: _Rate | None = None
    eval_every: _Count | None = None
    patience: _Count | None = None
    seed: _Seed | None = None
    mixed_precision: _Flag | None = None
    gradient_checkpointing: _Flag | None = None
    report_to: _Sites | None = None
    samples: _Seed | None = None


# Of the whole run, so no entry of a file may say them.
_OF_THE_RUN = ("init_from", "eval_every", "mixed_precision", "gradient_checkpointing", "report_to")
_KNOWN = [name for name in Options.model_fields if name not in _OF_THE_RUN]
_RECIPE = ("rank", "alpha", "dropout", "sites")
_DATA = ("data", "images", "annotations", "columns", "streaming", "skip_bad_rows", "held_out", "group_by")
_PATHS = ("data", "images", "annotations")
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
    "report_to": "report_to",
    "samples": "samples",
}


@dataclass(frozen=True)
class AskedAdapter:
    """An adapter as the options of ``lorax-vlm train``, or an entry of the file, ask for it."""

    name: str
    style: str | None = None
    task: str | None = None
    recipe: str | None = None
    init_from: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Rank, alpha, dropout and sites that are not the recipe's; see ``change_recipe``."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """For ``read_asked_data``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``TrainConfig`` that are not the default."""


def ask(name: str, options: Mapping[str, Any]) -> AskedAdapter:
    """Sort options, named as in the file; what is None was not given."""
    given = {key: value for key, value in options.items() if value is not None}
    return AskedAdapter(
        name,
        **{key: given[key] for key in ("style", "task", "recipe", "init_from") if key in given},
        changes={key: given[key] for key in _RECIPE if key in given},
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
    content = read_yaml(path, _HINT)
    if not isinstance(content, dict) or not content:
        raise DataError(str(path), ["has no adapters"], _HINT)
    problems: list[str] = []
    # What the command line says about data is for those that have some, if there are any.
    own = any(isinstance(entry, dict) and entry.get("data") is not None for entry in content.values())
    about_data = [key for key in _DATA if own and defaults.get("data") is None]
    asked = [
        _entry(name, entry, path, _without(defaults, about_data if _has_none(entry) else ()), problems)
        for name, entry in content.items()
    ]
    if problems:
        raise DataError(str(path), problems, _HINT)
    return [adapter for adapter in asked if adapter is not None]


def _has_none(entry: Any) -> bool:
    return not isinstance(entry, dict) or entry.get("data") is None


def _without(defaults: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in defaults.items() if key not in names}


def _entry(name: Any, entry: Any, path: Path, defaults: Mapping[str, Any], problems: list[str]) -> AskedAdapter | None:
    if not isinstance(name, str):
        problems.append(f"the name {quoted(name)} is no text to YAML; put it in quotes")
        return None
    label = quoted(name)[1:-1]
    try:
        require_adapter_name(name)
    except AdapterNameError as error:
        problems.append(str(error) if len(name) <= 200 else f"{label}... is too long for a name")
    if not isinstance(entry, dict):
        problems.append(f"{label}: expected settings such as {{style: detailed}}, got {quoted(entry)}")
        return None
    known = {key: value for key, value in entry.items() if key in _KNOWN}
    problems += [
        f"{label}: unknown setting {quoted(key)}; known: {', '.join(_KNOWN)}" for key in entry if key not in _KNOWN
    ]
    named = [key for key in ("style", "task", "data") if entry.get(key) is not None]
    if "style" in named and "task" in named:
        problems.append(f"{label}: it has a style and a task; it learns one of them")
    elif not named and defaults.get("data") is None:
        problems.append(f"{label}: give it a style, a task or data")
    try:
        given = Options(**known).model_dump(exclude_none=True)
    except ValidationError as error:
        wrong = dict.fromkeys(str(e["loc"][0]) for e in error.errors(include_url=False))
        for key in wrong:
            said = Options.model_fields[key].annotation
            problems.append(f"{label}: {key} must be {_in_words(said)}, got {quoted(known[key])}")
        return None
    for key in _PATHS:
        if key in given and not given[key].startswith("hub:"):
            given[key] = str(path.parent / os.path.expanduser(given[key]))
    for key in ("images", "annotations"):
        if key in given:
            given[key] = Path(given[key])
    return ask(name, {**defaults, **given})


def _in_words(annotation: Any) -> str:
    """The description of ``X | None``."""
    (inner, *_) = annotation.__args__
    return next(str(part.description) for part in inner.__metadata__ if getattr(part, "description", None))
