"""What is wrong with a data set is found, and nothing else is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageEnhance

from lorax_vlm.curation.check import DataCheck, check_data
from lorax_vlm.curation.phrases import common_phrases
from lorax_vlm.curation.similar import Looks, near_duplicates
from lorax_vlm.data.scenes import Scene, iterate_scenes
from lorax_vlm.data.sources import read_parts
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.models.loading import LoadedModel, load_family


@pytest.fixture(scope="module")
def pictures() -> list[Scene]:
    return list(iterate_scenes("test", 40))


@pytest.fixture
def folder(pictures: list[Scene], tmp_path: Path) -> Path:
    for number, scene in enumerate(pictures):
        scene.image.save(tmp_path / f"{number}.png")
    return tmp_path


def rows_of(pictures: list[Scene]) -> list[dict[str, Any]]:
    return [{"file_name": f"{n}.png", "caption": scene.caption("plain")} for n, scene in enumerate(pictures)]


def checked(folder: Path, rows: list[dict[str, Any]], **wanted: Any) -> DataCheck:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = get_model_entry("blip2-opt-mini")
    splits = read_parts(folder, skip_bad_rows=True)
    return check_data(splits, load_family(entry), entry.caption_prompt, root=folder, **{"near": True, **wanted})


def test_of_sound_data_nothing_is_said(folder: Path, pictures: list[Scene]) -> None:
    found = checked(folder, rows_of(pictures))
    assert found.findings == ()
    assert (found.kind, sum(found.rows.values()), found.images) == ("captions", 40, 40)
    lengths = sorted(len(row["caption"].split()) for row in rows_of(pictures))
    assert found.words == (lengths[0], (lengths[19] + lengths[20]) / 2, lengths[-1])


def test_everything_that_is_wrong_is_found(folder: Path, pictures: list[Scene]) -> None:
    rows = rows_of(pictures)
    Image.open(folder / "1.png").convert("RGB").save(folder / "again.jpg", quality=50)
    shutil.copy(folder / "2.png", folder / "two.png")
    Image.open(folder / "30.png").convert("RGB").save(folder / "31.png", "JPEG")
    (folder / "broken.png").write_bytes(b"nothing")
    pictures[0].image.rotate(90).save(folder / "nobody.png")
    rows[3]["caption"] = "many words " * 1000
    rows[4]["caption"] = " "
    rows += [{"file_name": name, "caption": "a thing"} for name in ("again.jpg", "two.png", "broken.png")]
    found = {finding.kind: finding for finding in checked(folder, rows).findings}
    assert {kind: finding.count for kind, finding in found.items() if not kind.startswith("near")} == {
        "unreadable": 2,
        "without text": 3,
        "endings": 1,
        "not learnable": 1,
        "duplicates": 1,
    }
    assert found["without text"].places == ("4.png", "broken.png", "nobody.png")
    assert found["endings"].places == ("31.png: JPEG",)
    assert "4 tokens" not in found["not learnable"].places[0]
    assert "metadata.jsonl:4" in found["not learnable"].places[0]
    assert found["duplicates"].places == ("2.png, two.png",)
    near = [finding for kind, finding in found.items() if kind.startswith("near")]
    assert any("metadata.jsonl:2, " in place and "metadata.jsonl:41" in place for f in near for place in f.places)
    assert not any(f.kind.startswith("near") for f in checked(folder, rows, near=False).findings)


def test_what_all_texts_share(folder: Path, pictures: list[Scene]) -> None:
    rows = [{**row, "caption": f"A photo of {row['caption']}"} for row in rows_of(pictures)]
    [phrase] = checked(folder, rows).findings
    assert (phrase.kind, phrase.count) == ("phrase", 40)
    assert "'a photo of'" in phrase.text
    for row in rows[:20]:
        row["caption"] = "the same"
    kinds = [finding.kind for finding in checked(folder, rows).findings]
    assert kinds == ["same text"]


def test_answers_that_are_nearly_always_right(folder: Path) -> None:
    rows = [{"file_name": f"{n}.png", "question": "is it so?", "answer": "yes", "type": "yes/no"} for n in range(19)]
    rows.append({"file_name": "19.png", "question": "is it so?", "answer": "no", "type": "yes/no"})
    rows += [
        {"file_name": f"{n}.png", "question": "how many?", "answer": str(n % 3), "type": "count"} for n in range(20)
    ]
    found = [finding for finding in checked(folder, rows).findings if finding.kind != "without text"]
    assert [(finding.kind, finding.count) for finding in found] == [("one answer", 19)]
    assert "95 % of the 20 questions of type 'yes/no' have the answer 'yes'" in found[0].text


def test_the_family_alone_knows_texts_as_the_loaded_model_does(load_shared: Callable[[str], LoadedModel]) -> None:
    for name in ("blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini"):
        alone, loaded = load_family(get_model_entry(name)), load_shared(name).family
        assert (alone.name, alone.labels) == (loaded.name, loaded.labels)
        for text in ("a cat", "word " * 30):
            assert _refusal(alone, text) == _refusal(loaded, text)
        assert _refusal(alone, "word " * 3000)


def _refusal(family: Any, text: str) -> str:
    try:
        family.check_example(f"Question: {text} Answer:", "1", ("1",), "row")
    except Exception as error:
        return str(error)
    return ""


def test_altered_copies_are_found_and_different_images_are_not(pictures: list[Scene]) -> None:
    scenes = [scene.image.convert("RGB") for scene in pictures]
    copies = {
        0: scenes[0].resize((100, 100)),
        7: ImageEnhance.Brightness(scenes[7]).enhance(0.8),
        9: scenes[9].crop((6, 6, 218, 218)),
        11: scenes[11].convert("L").convert("RGB"),
    }
    groups = near_duplicates(map(Looks.of, [*scenes, *copies.values()]))
    assert [0, 40] in groups
    assert [7, 41] in groups
    assert [9, 42] in groups
    assert all(group[-1] >= 40 for group in groups), "no two different scenes are taken for one"
    assert near_duplicates([]) == []


def test_phrases() -> None:
    texts = ["a photo of a cat on a mat"] * 9 + ["A photo of snow"]
    assert common_phrases(texts) == [("a photo of", 10), ("a cat on a mat", 9)]
    assert common_phrases(["one", "two", "three"]) == []
