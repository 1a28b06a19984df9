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
