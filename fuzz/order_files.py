"""Files of ``lorax-vlm train --adapters``: YAML of other people, damaged in structure, in values and in bytes.

What must hold of whatever is taken: every name was written as text and can be an adapter's, none got lost, every number
is of its kind and finite, and the message about a refused one is short enough to be read.
"""

import math
import os
import random
import sys
from pathlib import Path
from typing import Any

import yaml

from fuzz.harness import Fuzzer, main
from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.cli.order_file import AskedAdapter, Options, read_order_file
from lorax_vlm.errors import DataError
from lorax_vlm.training.config import TrainConfig

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2.5, 1e308, math.inf, math.nan, 10**30, 10**400, "", " ", "x" * 4000, "2e-4"),
    *("hub:a/b", "../x", "~nobody/x", "/dev/zero", "\u202e", "a\0b", "no", "010", "2024-01-01", "1:30:00", "0x1F"),
    *([], {}, [[]], ["vision"], ["vision", 3], [None], {"a": {}}, "concise", "counting", ["x" * 3000] * 3),
)
_SCALARS = (
    *("no", "010", "0x1F", "2024-01-01", "2024-99-99", "1:30:00", "1" + ":59" * 3000, "9" * 5000, ".inf", ".nan", "~"),
    *("!!binary aGk=", "!!python/object/apply:os.system [ls]", "!!set {a, b}", "!!timestamp x", "!!int x", "!<x> y"),
    *("&a [1]", "*a", "<<", "? [a]", "{a: *a}", "!!float 1_0", "0b" + "1" * 9000, "1e99999", "|\n  text", "- a\n- b"),
    *("!!omap [a: 1]", "!!pairs [a: 1]", "!!str 3", "!!null x", "!!bool x", "!!merge <<", "%YAML 9.9", "--- a\n--- b"),
)


def _order(rng: random.Random) -> dict[Any, Any]:
    return {f"name{number}": _entry(rng) for number in range(rng.choice((1, 2, 2, 5)))}


def _entry(rng: random.Random) -> dict[str, Any]:
    entry: dict[Any, Any] = {rng.choice(("style", "task")): "concise"}
    sound = {"recipe": "light", "steps": 3, "rank": 4, "sites": ["vision"], "dropout": 0.1, "learning_rate": 1e-3}
    sound |= {"data": "folder", "images": "pictures", "streaming": True, "held_out": 0.2, "seed": 1, "batch_size": 2}
    for key in rng.sample(sorted(sound), rng.randrange(5)):
        entry[key] = sound[key]
    if rng.random() < 0.5:
        entry[rng.choice((*Options.model_fields, "style", "odd", "x" * 500, 7, None))] = rng.choice(_VALUES)
    return entry


def _text(rng: random.Random) -> str:
    order: Any = _order(rng)
    if rng.random() < 0.2:
        order[rng.choice((None, True, 3, 0.5, "", "base", "a/b", "x" * 300, "no", "..", "é", "\0"))] = _entry(rng)
    if rng.random() < 0.1:
        order = rng.choice(([order], "text", None, {}, {"a": order}, {"a": [order]}))
    text = yaml.safe_dump(order, allow_unicode=True, default_flow_style=rng.choice((None, True, False)))
    way = rng.random()
    if way < 0.25:
        words = [word for word in ("concise", "light", "folder", "vision", "name0") if word in text]
        text = text.replace(rng.choice(words or ["a"]), rng.choice(_SCALARS), rng.choice((1, -1)))
    elif way < 0.33:
        text += text
    return text


def _huge(rng: random.Random) -> str:
    """Much of something."""
    count = rng.choice((300, 3000, 100_000))
    lines = (
        lambda: "".join(f"n{number}: {{style: a}}\n" for number in range(count)),
        lambda: "a: " + "[" * count,
        lambda: "a: " + "{a: " * count,
        lambda: "- " * count,
        lambda: "a: {sites: [" + "x, " * count + "]}",
        lambda: "a: {style: " + "x" * count * 5 + "}",
        lambda: "a: 1" + ":1" * count,
        lambda: "a: " + "7" * count,
        lambda: "a: 0x" + "f" * count,
        lambda: "? " * count,
        lambda: "".join(f"{number}: a\n" for number in range(count)),
        lambda: "a: {style: a}\n" + "#" * count,
        lambda: "x: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(9)),
        lambda: "a: '" + "''" * count + "'",
        lambda: 'a: "' + "\\x41" * count + '"',
        lambda: " " * count + "a: b",
        lambda: "a: {style: " + "!!str " * count + "x}",
        lambda: "<<: {a: {style: b}}\n" * count,
    )
    return rng.choice(lines)()


def _write(rng: random.Random, path: Path) -> None:
    way = rng.random()
    if way < 0.02:
        path.mkdir()
    elif way < 0.04:
        os.mkfifo(path)
    elif way < 0.06:
        path.symlink_to(rng.choice(("/dev/zero", path.name, "gone")))
    elif way < 0.1:
        path.write_text(_huge(rng), encoding="utf-8")
    else:
        encoding = rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "latin-1"])
        data = bytearray(_text(rng).encode(encoding, "replace"))
        if data and rng.random() < 0.3:
            for _ in range(rng.choice((1, 1, 3, 9))):
                data[rng.randrange(len(data))] = rng.choice(b"{}[]:,&*!|>'\"%@`#-? \n\t\0\xff0aN")
        path.write_bytes(data)


def attempt(rng: random.Random, folder: Path) -> None:
    """Read one."""
    path = folder / "adapters.yaml"
    _write(rng, path)
    try:
        asked = read_order_file(path, {"steps": 5, "recipe": "medium", "data": None})
    except DataError as error:
        _check_message(error)
        raise
    assert asked
    assert len({adapter.name for adapter in asked}) == len(asked)
    for adapter in asked:
        _check(adapter)


def _check_message(error: DataError) -> None:
    assert len(str(error)) < 20_000, f"a message of {len(str(error)):,} characters"
    assert error.problems


def _check(adapter: AskedAdapter) -> None:
    assert isinstance(adapter.name, str)
    require_adapter_name(adapter.name)
    assert (adapter.style is None) != (adapter.task is None)
    config = TrainConfig(**adapter.config)
    assert type(config.max_steps) is int
    assert 0 < config.learning_rate < math.inf
    for key, value in {**adapter.changes, **adapter.data}.items():
        assert value is not None, key
        assert not isinstance(value, float) or math.isfinite(value), key
        assert not isinstance(value, str) or "\0" not in value, key


FUZZER = Fuzzer("order_files", attempt)

if __name__ == "__main__":
    sys.exit(main(FUZZER))
