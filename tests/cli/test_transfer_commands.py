"""Moving adapters from the command line: what is written for programs, and the exit codes."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.cli.main import main
from lorax_vlm.data.examples import Example
from lorax_vlm.data.world.examples import draw_scene_image
from lorax_vlm.exchange.teacher import answer
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.skills import answer as answers
from lorax_vlm.workshop.intake import take_in
from tests.adapters_for_tests import write_manifest, write_random_adapter

QUESTION = "What is this?"


@pytest.fixture
def asked(tmp_path: Path, mini: LoadedModel, load_shared) -> AdapterStore:
    """A random adapter on each of two miniatures; and a folder with what the first says to some images."""
    store = AdapterStore()
    flan = load_shared("blip2-flan-mini")
    engines = {base.name: BaseEngine(base, store) for base in (mini, flan)}
    for (base_name, engine), name in zip(engines.items(), ("words", "other"), strict=True):
        folder = write_random_adapter(engine.base, tmp_path / name, scale=1.0)
        write_manifest(engine.base, folder, skill=answers("vqa"), prompt=engine.entry.question_template)
        take_in(engine, folder, f"{base_name}.{name}")
    for split, seeds in (("train", range(2)), ("validation", range(2, 80))):
        examples = [Example(draw_scene_image(seed), "", str(seed), question=QUESTION) for seed in seeds]
        own = engines[mini.name]
        said = answer(own, f"{mini.name}.words", examples, own.entry.answer_settings)
        (tmp_path / "asked" / split).mkdir(parents=True)
        rows = []
        for example, text in zip(examples, said, strict=True):
            if not text.strip():  # a random adapter may say nothing
                continue
            example.open_image().save(tmp_path / "asked" / split / f"{example.name}.png")
            rows.append({"file_name": f"{example.name}.png", "question": QUESTION, "answer": text})
        (tmp_path / "asked" / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for engine in engines.values():
        engine.restore_base()
    return store


def run_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, dict]:
    monkeypatch.setattr(sys, "argv", ["lorax-vlm", "exchange", *map(str, words), "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    got = capsys.readouterr()
    assert got.out, got.err
    return int(stop.value.code or 0), json.loads(got.out)


def test_a_copy_onto_the_same_weights_is_the_adapter(asked, tmp_path: Path, mini, capsys, monkeypatch) -> None:
    """The right answers are the source's own, so it keeps nearly all, whatever rounding does to a random adapter."""
    twin = shutil.copytree(mini.folder, tmp_path / "twin")
    words = ("transfer", "blip2-opt-mini.words", "--to", twin, "--development", tmp_path / "asked")
    code, record = run_json(capsys, monkeypatch, *words)
    assert code == 0, record["reasons"]
    assert (record["label"], record["chosen"], record["adapter"]) == ("exact", "copy", "twin.words")
    scores = {row["name"]: row["scores"] for row in (record["alone"], record["source"], *record["candidates"])}
    count = len(scores["copy"])
    assert count >= 70
    assert scores["source on its own base"] == [1] * count
    for name, mean in record["means"].items():
        if name in scores:
            assert mean["value"] == pytest.approx(sum(scores[name]) / count)
    assert record["gain"]["value"] == pytest.approx((sum(scores["copy"]) - sum(scores["target alone"])) / count)
    assert record["of_source"]["value"] > 0.5, "none without it; how rounding changes words depends on the processor"
    assert record["agreement"]["value"] == record["means"]["copy"]["value"]
    assert asked.get("twin.words").manifest.lineage[0].name == "blip2-opt-mini.words"


def test_a_version_is_moved_as_it_is(asked, tmp_path: Path, mini, capsys, monkeypatch) -> None:
    """The right answers are those of the first version; another one is in use."""
    name = "blip2-opt-mini.words"
    folder = write_random_adapter(mini, tmp_path / "later", seed=7, scale=1.0)
    asked.add(
        name,
        folder,
        write_manifest(mini, folder, skill=answers("vqa"), prompt=mini.entry.question_template),
        replace=True,
    )
    twin = shutil.copytree(mini.folder, tmp_path / "twin")
    words = ("transfer", f"{name}@1", "--to", twin, "--development", tmp_path / "asked")
    code, record = run_json(capsys, monkeypatch, *words)
    assert code == 0, record["reasons"]
    assert record["adapter"] == "twin.words"
    assert set(record["source"]["scores"]) == {1}
    assert asked.get("twin.words").manifest.lineage[0].manifest == asked.get(f"{name}@1").digest


def test_neither_of_two_is_stored(asked, tmp_path: Path, capsys, monkeypatch) -> None:
    """One step teaches nothing: both are refused, with reasons, and the exit code says so."""
    before = asked.names()
    words = ("swap", "blip2-opt-mini.words", "blip2-flan-mini.other", "--unlabelled", tmp_path / "asked" / "validation")
    code, record = run_json(capsys, monkeypatch, *words, "--steps", 1)
    assert (code, record["accepted"]) == (1, False)
    for way in ("there", "back"):
        assert record[way]["label"] == "refused"
        assert record[way]["reasons"]
        assert record[way]["cost"]["steps"] == 1
        assert record[way]["measured_by"] == "agreement"
    assert asked.names() == before


def test_two_of_one_base_have_nothing_to_exchange(run, stored: AdapterStore) -> None:
    said = run("exchange", "swap", "one", "two", code=1)
    assert "TransferRefused: Adapter 'one' cannot be moved to blip2-opt-mini; nothing was changed." in said
    assert "'two' is of that base, too" in said
    assert stored.names() == ["one", "two"]
