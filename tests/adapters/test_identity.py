"""Two bases are the same only if all that may change an answer is: every entry, every file, known on both sides."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.adapters.compatibility import CompatibilityReport, check_compatibility
from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.manifest import read_manifest
from lorax_vlm.models.catalog import MINIS_DIR
from lorax_vlm.models.description import describe_checkpoint
from lorax_vlm.models.fingerprint import read_fingerprint
from lorax_vlm.models.loading import load_model
from tests.adapters_for_tests import write_manifest, write_random_adapter

FAMILIES = ("blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini")
IDLE = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "init_std", "initializer_range"),
    *("initializer_factor", "use_cache", "layerdrop", "output_attentions", "output_hidden_states", "return_dict"),
}
"""By hand: entries of the miniatures' configurations that change no answer of a loaded model; any dropout, too."""
PREPARATION = (
    ("processor_config.json", ("image_processor", "do_resize"), False),
    ("processor_config.json", ("image_processor", "do_convert_rgb"), False),
    ("processor_config.json", ("image_processor", "resample"), 0),
    ("processor_config.json", ("image_processor", "image_mean"), [0.5, 0.5, 0.25]),
    ("processor_config.json", ("image_processor", "size_divisor"), 3),
    ("tokenizer.json", ("normalizer",), {"type": "Lowercase"}),
    ("tokenizer.json", ("pre_tokenizer",), None),
    ("tokenizer_config.json", ("model_max_length",), 7),
    ("generation_config.json", ("bos_token_id",), 9),
)


class Twin:
    """A copy of a miniature, and an adapter of the original."""

    def __init__(self, name: str, folder: Path) -> None:
        base = load_model(name)
        self.folder = Path(shutil.copytree(MINIS_DIR / name, folder / "twin"))
        self._adapter = write_random_adapter(base, folder / "adapter", "light")
        write_manifest(base, self._adapter)

    def check(self) -> CompatibilityReport:
        read_fingerprint(self.folder)
        files, manifest = read_adapter_files(self._adapter, "a"), read_manifest(self._adapter, "a")
        described = describe_checkpoint(self.folder, "twin")
        return check_compatibility(
            files, manifest, dataclasses.replace(described, dtype="float32", quantization="none")
        )


def entries(config: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        if isinstance(value, dict) and value and key not in ("id2label", "label2id"):
            yield from entries(value, (*path, key))
        else:
            yield (*path, key)


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, dict) and len(value) > 1:
        keys = list(value)
        return {**value, keys[0]: value[keys[1]], keys[1]: value[keys[0]]}
    return 1


@pytest.mark.parametrize("name", FAMILIES)
def test_every_entry_of_the_configuration_counts(name: str, tmp_path: Path) -> None:
    """Changed, taken away, or added; one at a time."""
    twin = Twin(name, tmp_path)
    assert twin.check().verdict == "exact"
    path = twin.folder / "config.json"
    text = path.read_text()
    wrong = []
    for place in entries(json.loads(text)):
        idle = place[-1] in IDLE or "dropout" in place[-1]
        for way in ("change", "remove", "add"):
            config = json.loads(text)
            holder = config
            for key in place[:-1]:
                holder = holder[key]
            if way == "change":
                holder[place[-1]] = other(holder[place[-1]])
            elif way == "remove":
                del holder[place[-1]]
            else:
                holder["new_entry_of_a_later_version"], idle = True, False
            if "model_type" in place:  # another architecture, refused elsewhere
                continue
            path.write_text(json.dumps(config))
            verdict = twin.check().verdict
            expected = "exact" if idle else "refused" if way == "change" else "unverified"
            if verdict != expected:
                wrong.append((".".join(place), way, verdict))
    assert not wrong


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("file", "place", "value"), PREPARATION, ids=lambda part: str(part)[:40])
def test_every_file_that_prepares_text_and_images_counts(
    name: str, file: str, place: tuple[str, ...], value: Any, tmp_path: Path
) -> None:
    path = MINIS_DIR / name / file
    if not path.is_file():
        pytest.skip("this family has none")
    twin = Twin(name, tmp_path)
    content = json.loads(path.read_text())
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    assert holder.get(place[-1]) != value
    holder[place[-1]] = value
    (twin.folder / file).write_text(json.dumps(content))
    report = twin.check()
    assert report.verdict == "refused"
    assert any(file in reason for reason in report.reasons)
    (twin.folder / file).write_text(path.read_text().replace("\n", "\n "))
    assert twin.check().verdict == "exact", "how it is laid out does not matter"


def test_what_a_record_leaves_out_is_unknown(tmp_path: Path) -> None:
    """Weights, components, configuration, preparation: none of it may be left out and the base be called exact."""
    twin = Twin("blip2-opt-mini", tmp_path)
    base = describe_checkpoint(twin.folder, "twin")
    read_fingerprint(twin.folder)
    base = describe_checkpoint(twin.folder, "twin")
    files, manifest = read_adapter_files(tmp_path / "adapter", "a"), read_manifest(tmp_path / "adapter", "a")
    assert manifest.base is not None
    one = dict(list(manifest.base.components.items())[1:])
    for missing in (
        {"components": {}},
        {"components": one},
        {"configuration": {}},
        {"preparation": {}},
        {"preparation": None},
        {"adapted": {}, "components": {}},
        {"quantization": "4bit"},
    ):
        record = dataclasses.replace(manifest, base=dataclasses.replace(manifest.base, **missing))
        assert check_compatibility(files, record, base).verdict == "unverified", missing
    assert check_compatibility(files, manifest, dataclasses.replace(base, dtype="bfloat16")).verdict == "unverified"
    assert check_compatibility(files, manifest, dataclasses.replace(base, fingerprint=None)).verdict == "unverified"


def test_what_a_foreign_record_says_is_cut_short(tmp_path: Path) -> None:
    twin = Twin("blip2-opt-mini", tmp_path)
    base = describe_checkpoint(twin.folder, "twin")
    files, manifest = read_adapter_files(tmp_path / "adapter", "a"), read_manifest(tmp_path / "adapter", "a")
    assert manifest.base is not None
    long = "\x1b[2J" + "x" * 100_000
    record = dataclasses.replace(
        manifest.base, name=long, family=long, dtype=long, quantization=long, components={long: "0"}, preparation={}
    )
    report = check_compatibility(files, dataclasses.replace(manifest, base=record), base)
    assert report.verdict == "refused"
    assert all(len(reason) < 1000 and "\x1b" not in reason for reason in report.reasons)
