"""The manifest: strict, canonical, and as its published schema says."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorax_vlm.adapters.integrity import check_object
from lorax_vlm.adapters.manifest import (
    MANIFEST_FILE,
    Canary,
    CanaryAnswer,
    FileRecord,
    Manifest,
    Measurement,
    Parent,
    canonical_json,
    manifest_schema,
    parse_manifest,
    read_manifest,
)
from lorax_vlm.errors import DamagedAdapter
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import Skill
from lorax_vlm.types import GenerationSettings
from tests.adapters_for_tests import identify, write_random_adapter

DIGEST = "0123456789abcdef" * 4
SCHEMA = Path(__file__).parents[2] / "docs" / "exchange.schema.json"


@pytest.fixture
def full(mini: LoadedModel, tmp_path: Path) -> Manifest:
    """A manifest in which nothing is left out."""
    answer = CanaryAnswer(DIGEST, [(3, 1.5), (7, -0.25)])
    return Manifest(
        name="full",
        skill=Skill("answer", "counting"),
        base=identify(mini, write_random_adapter(mini, tmp_path / "a")),
        trained=True,
        recipe="medium",
        rank=8,
        sites={"lm": 12},
        prompt="Question: {question} Answer:",
        generation=GenerationSettings(max_new_tokens=10, num_beams=5),
        labels=("yes", "no"),
        training={"data": "some", "config": {"max_steps": 5}},
        metrics=(Measurement("exact", "test", 0.5, 0.4, 0.6, 100),),
        lineage=(Parent("parent", DIGEST, "distilled", {"steps": 5}),),
        licence="MIT",
        canary=Canary(5, "What?", answer, answer, 0.5),
        files={"adapter_config.json": FileRecord(10, DIGEST)},
        versions={"torch": "2"},
        created="2026-01-01T00:00:00+00:00",
    )


def test_it_survives_its_text(full: Manifest) -> None:
    again = parse_manifest(full.to_json())
    assert again == full
    assert again.to_json() == full.to_json()
    assert again.digest == full.digest
    assert dataclasses.replace(full, rank=9).digest != full.digest


@pytest.mark.parametrize(
    ("task", "style", "skill"),
    [
        ("captioning", "concise", Skill("caption", "concise")),
        ("captioning", "captioning", Skill("caption", "detailed")),
        ("vqa", "counting", Skill("answer", "counting")),
        ("vqa", "vqa", Skill("answer", "vqa")),
        ("complex_reasoning", "complex_reasoning", Skill("answer", "reasoning")),
        ("instruction_following", "instruction_following", Skill("instruct", "instructions")),
        ("general", "general", Skill("answer", "general")),
        ("general", "counting+reasoning", Skill("answer", "counting+reasoning")),
        ("captioning", "", Skill("caption", "")),
        ("unknown", "", None),
        ("singing", "loud", None),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
def test_the_two_words_of_older_versions_are_a_skill(
    full: Manifest, version: int, task: str, style: str, skill: Skill | None
) -> None:
    """They are written again as they were, so that digests stay."""
    record = json.loads(full.to_json()) | {"schema_version": version, "task": task, "style": style}
    del record["skill"]
    if version == 2:
        del record["base"]["preparation"], record["canary"]["change"]
    text = canonical_json(record)
    manifest = parse_manifest(text)
    assert manifest.skill == skill
    assert manifest.to_json() == text
    for changes in ({"skill": {"mode": "answer", "name": "x"}}, {"task": None}):
        with pytest.raises(ValueError, match=r"skill|task"):
            parse_manifest(json.dumps(record | changes))
    with pytest.raises(ValueError, match="task: there is no such entry in version 4"):
        parse_manifest(json.dumps(json.loads(full.to_json()) | {"task": task, "style": style}))


def test_the_published_schema_is_fresh_and_accepts_what_is_written(full: Manifest) -> None:
    published = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert published == manifest_schema(), "run: make docs"
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(json.loads(full.to_json()), published)


def changed(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for part in parents:
            record = record[part] if isinstance(record, dict) else record[int(part)]
        if value is KeyError:
            del record[last]
        else:
            record[last] = value

    return change


WRONG = {
    "another version": changed("schema_version", 1),
    "a version that is text": changed("schema_version", "2"),
    "no version": changed("schema_version", KeyError),
    "no name": changed("name", KeyError),
    "a name that is a number": changed("name", 5),
    "an unknown entry": changed("surprise", 1),
    "an unknown entry inside": changed("base.surprise", 1),
    "trained in words": changed("trained", "yes"),
    "a negative rank": changed("rank", -1),
    "a rank with a fraction": changed("rank", 8.5),
    "a negative size": changed("files", {"a": {"size_bytes": -1, "sha256": DIGEST}}),
    "a short digest": changed("files", {"a": {"size_bytes": 1, "sha256": "abc"}}),
    "a sketch of something else": changed("base.adapted.lm.sketch", "AAAA"),
    "labels that are one text": changed("labels", "yes"),
    "decoding with an unknown option": changed("generation.surprise", 1),
    "a base that is text": changed("base", "blip2-opt-mini"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_anything_else_is_refused_by_us_and_by_the_schema(full: Manifest, change: Callable, tmp_path: Path) -> None:
    record = json.loads(full.to_json())
    change(record)
    with pytest.raises(ValueError):  # noqa: PT011 (the library's words)
        parse_manifest(json.dumps(record))
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(record))
    with pytest.raises(DamagedAdapter):
        read_manifest(tmp_path, "x")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "NaN", '{"schema_version": 2, "schema_version": 2}', '{"schema_version": NaN}', "9" * 5000],
)
def test_text_that_is_no_manifest(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_manifest(text)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([f.name for f in dataclasses.fields(Manifest)]) | st.text(max_size=3), inner
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_it_holds_reading_it_ends_in_a_manifest_or_our_error(value: Any) -> None:
    try:
        manifest = parse_manifest(json.dumps(value))
    except ValueError:
        return
    assert parse_manifest(manifest.to_json()) == manifest


def test_a_folder_is_what_its_manifest_says_or_it_is_said_what_is_not(
    mini: LoadedModel, store, adapter_folder: Path, tmp_path: Path
) -> None:
    folder = store.add("a", adapter_folder, Manifest("a", None, None, trained=True)).folder
    assert check_object(folder)[0] == []
    (folder / "notes.txt").write_text("x")
    assert check_object(folder)[0] == [f"notes.txt is not named by {MANIFEST_FILE}"]
    (folder / "notes.txt").unlink()
    (folder / "adapter_config.json").rename(tmp_path / "elsewhere.json")
    assert check_object(folder)[0] == ["adapter_config.json does not exist"]
    (folder / "adapter_config.json").symlink_to(tmp_path / "elsewhere.json")
    assert check_object(folder)[0] == ["adapter_config.json is no ordinary file"]
    assert check_object(tmp_path / "nothing")[0] == ["its folder does not exist"]
