"""``lorax-vlm caption FOLDER``: the texts are those of ``caption_images``, and outputs load back."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset

from lorax_vlm import make_scene
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.scenes import Scene
from lorax_vlm.data.sources import read_data


@pytest.fixture
def photos(scenes: list[Scene], tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, scene in enumerate(scenes):
        scene.image.save(folder / f"scene{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_a_folder_is_captioned_by_each_adapter_as_alone(run, photos: Path, stored: AdapterStore) -> None:
    printed = run("caption", photos, "-a", "one", "-a", "two", "--max-new-tokens", 6, "--write", "txt,csv,parquet")
    assert f"{2 * 12} texts about 12 images" in printed
    assert "failed: 1, listed in" in printed
    system = BLIP2CaptioningSystem(store=stored.root, model="blip2-opt-mini")
    images = [photos / f"scene{number}.png" for number in range(12)]
    for name in ("one", "two"):
        expected = [str(text) for text in system.caption_images(images, name, max_new_tokens=6)]
        assert [image.with_suffix(f".{name}.txt").read_text() for image in images] == expected
        for kind in ("csv", "parquet"):
            table = load_dataset(kind, data_files=str(photos / f"captions.{kind}"), split="train")
            assert [text or "" for text in table[f"caption_{name}"]] == expected
            assert table["file_name"] == [image.name for image in images]
    again = run("caption", photos, "-a", "one", "-a", "two", "--max-new-tokens", 6, "--write", "txt,csv", "--json")
    assert json.loads(again)["report"]["texts"] == 0
    run("caption", photos, "--strict", code=1)


def test_what_is_written_trains(run, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").unlink()
    (photos / "scene0.png").rename(photos / "same.png")
    (photos / "scene1.png").rename(photos / "same.jpg")
    assert "to be made: 12 texts" in run("caption", photos, "--dry-run")
    run("caption", photos, "--prefix", "ohwx, ")
    sidecars = read_data(photos)
    run("caption", photos, "--prefix", "ohwx, ", "--write", "jsonl")
    table = read_data(photos / "metadata.jsonl")
    run("caption", photos, "--prefix", "ohwx, ", "--write", "jsonl", "--out", tmp_path / "out")
    apart = read_data(tmp_path / "out" / "metadata.jsonl", images=photos)
    said = [sorted((e.digest, e.target) for e in [*s.train, *s.validation]) for s in (sidecars, table, apart)]
    assert said[0] == said[1] == said[2]
    assert len(said[0]) == 12
    assert all(target.startswith("ohwx, ") for _, target in said[0])


def test_options_of_folders_are_not_for_single_images(run, photos: Path) -> None:
    assert "--write: only of a folder" in run("caption", photos / "scene0.png", "--write", "txt", code=2)
    assert "--compare and --sheet are for single images" in run("caption", photos, "--compare", code=2)
    assert "take a temperature" in run("caption", photos, "--samples", 2, code=2)
    assert "Outputs are txt" in run("caption", photos, "--write", "xls", code=2)
    assert "--existing must be one of" in run("caption", photos, "--existing", "keep", code=2), "as it is typed"
    assert "place (--out)" in run("caption", photos, "--write", "xmp", code=2)


def test_programs_are_told_in_json_what_people_are_told(run, photos: Path) -> None:
    planned = json.loads(run("caption", photos, "--dry-run", "--json"))["plan"]
    assert (planned["images"], planned["to_ask"], planned["texts"]) == (13, 13, {"new": 13})
    (photos / "broken.png").rename(photos / "broken.jpg")  # called like a photograph, about which people are told
    said = run("caption", photos, "--json-progress", "--batch-size", 4, code=(0,))  # which gives standard error
    events = [json.loads(line) for line in said.splitlines()]
    report = events[-1]["report"]
    assert (report["texts"], report["failed"], report["written"], report["interrupted"]) == (12, 1, 12, False)
    assert [event["event"] for event in events] == ["started", "failed", *["said"] * 12, "ended"]
    assert events[0]["plan"]["texts"] == {"new": 13}
    assert {event["name"]: event["texts"]["base"] for event in events if event["event"] == "said"} == {
        path.name: path.with_suffix(".txt").read_text() for path in photos.glob("scene*.png")
    }


def test_workers_are_those_of_a_cluster(run, photos: Path) -> None:
    assert "--workers are those of a cluster" in run("caption", photos, "--workers", 3, code=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_job_after_its_batch(photos: Path, number: signal.Signals) -> None:
    """A person at the keyboard, or a scheduler; what was said is kept, and the exit code is that of an interrupt."""
    for copy in range(120):
        make_scene(copy).image.save(photos / f"more{copy}.png")
    command = [sys.executable, "-m", "lorax_vlm", "caption", str(photos), "--json-progress", "--batch-size", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = 0
    for line in process.stderr:
        said += '"said"' in line
        if said == 4:
            process.send_signal(number)
    assert process.wait() == 130
    process.stderr.close()
    assert 4 <= len(list(photos.glob("*.txt"))) < 120
