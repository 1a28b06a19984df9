"""``lorax-vlm data``: what it prints, and when it fails."""

import json
from pathlib import Path

from lorax_vlm.data.scenes import Scene
from tests.data_for_tests import write_rows


def test_a_folder_is_checked_and_stays_as_it_is(run, scenes: list[Scene], tmp_path: Path) -> None:
    for number, scene in enumerate(scenes):
        scene.image.save(tmp_path / f"{number}.png")
    write_rows(tmp_path, [{"file_name": f"{n}.png", "caption": f"a photo of {n}"} for n in range(len(scenes) - 1)])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    printed = run("data", "check", tmp_path)
    assert "captions, " in printed
    assert "100 % of the captions have 'a photo of'" in printed
    assert "1 image without a text that can be used\n  11.png" in printed
    found = json.loads(run("data", "check", tmp_path, "--json", "--no-near"))
    assert {finding["kind"]: finding["count"] for finding in found["findings"]} == {"without text": 1, "phrase": 11}
    run("data", "check", tmp_path, "--strict", code=1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_data_are_written_anew_and_without_what_is_there_twice(run, scenes: list[Scene], tmp_path: Path) -> None:
    source = tmp_path / "own"
    source.mkdir()
    for number, scene in enumerate(scenes):
        scene.image.save(source / f"{number}.png")
    scenes[0].image.convert("RGB").save(source / "again.jpg", quality=60)
    names = [*(f"{n}.png" for n in range(len(scenes))), "again.jpg"]
    write_rows(source, [{"file_name": name, "caption": f"called {name}"} for name in names])
    before = {path: path.read_bytes() for path in source.iterdir()}
    printed = run("data", "export", source, "--to", "coco", "--out", tmp_path / "coco")
    assert printed.splitlines()[0] == f"Wrote 13 rows about 13 images to {tmp_path / 'coco'}"
    options = printed.splitlines()[1].partition("NAME ")[2].split()
    assert "13 different images" in run("data", "check", *options[1:], "--no-near")
    planned = json.loads(run("data", "dedupe", source, "--near", "--dry-run", "--json"))
    assert planned == {"groups": [["own/metadata.jsonl:1", "own/metadata.jsonl:13"]], "copies": [], "repeated": 0}
    run("data", "dedupe", source, code=2)
    assert "13 rows about 12 images" in run("data", "dedupe", source, "--near", "--out", tmp_path / "once")
    assert {path: path.read_bytes() for path in source.iterdir()} == before


def test_texts_are_changed_in_a_copy(run, scenes: list[Scene], tmp_path: Path) -> None:
    source = tmp_path / "own"
    source.mkdir()
    for number, scene in enumerate(scenes[:4]):
        scene.image.save(source / f"{number}.png")
    write_rows(source, [{"file_name": f"{n}.png", "caption": f"a photo of {n}"} for n in range(4)])
    before = {path: path.read_bytes() for path in source.iterdir()}
    change = ("data", "edit", source, "--find", "a photo of ", "--replace", "number ")
    planned = json.loads(run(*change, "--dry-run", "--json"))
    assert sorted(planned["changes"])[0] == ["own/metadata.jsonl:1", "a photo of 0", "number 0"]
    printed = run(*change, "--out", tmp_path / "new", "--to", "sidecars")
    assert printed.startswith("4 texts changed\n")
    assert (tmp_path / "new" / "2.txt").read_text() == "number 2"
    assert {path: path.read_bytes() for path in source.iterdir()} == before


def test_copies_of_a_file_are_named_before_they_go(run, scenes: list[Scene], tmp_path: Path) -> None:
    source = tmp_path / "own"
    source.mkdir()
    for name, scene in zip(("a", "b", "copy"), (scenes[0], scenes[1], scenes[0]), strict=True):
        scene.image.save(source / f"{name}.png")
        (source / f"{name}.txt").write_text(f"text of {name}")
    said = run("data", "dedupe", source, "--dry-run")
    assert "1 image under several names, of which one stays:" in said
    assert "copy.png" in said
    assert "3 rows about 2 images" in run("data", "dedupe", source, "--out", tmp_path / "once")
