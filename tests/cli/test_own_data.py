"""Training, looking and measuring agree on what a person's own data are: same rows, same limits, same refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.data.scenes import Scene, iterate_scenes
from lorax_vlm.evaluation.intervals import mean_interval
from tests.data_for_tests import write_rows

COLOR = "What color is the background?"
QUICK = ("--steps", 2, "--batch-size", 16, "--eval-every", 2, "--recipe", "light")


def write(folder: Path, scenes: list[Scene], **extra: Any) -> Path:
    """A folder of questions about their backgrounds."""
    folder.mkdir(parents=True)
    rows = []
    for scene in scenes:
        scene.image.save(folder / f"{scene.seed}.png")
        rows.append({"file_name": f"{scene.seed}.png", "question": COLOR, "answer": scene.background, **extra})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return list(iterate_scenes("test", 40))


def test_every_row_that_was_not_trained_on_is_asked(run, many: list[Scene], tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", many)
    run("train", "mine", "--task", "backgrounds", "--data", photos, "--held-out", "0.3", *QUICK)
    manifest = json.loads(run("adapters", "show", "blip2-opt-mini.mine", "--json"))["manifest"]
    counts = manifest["training"]["data_identity"]
    assert counts["train"] + counts["validation"] == 40

    def asked(*options: object) -> dict[str, Any]:
        found = json.loads(run("evaluate", "mine", "--data", photos, "--json", "--no-base", *options))["reports"]
        assert [report["adapter"] for report in found] == ["mine"]
        return {"count": len(found[0]["records"]), **found[0]["seen"]}

    unseen = {
        "adapter": "blip2-opt-mini.mine",
        "images": 40,
        "seen": counts["train"],
        "left_out": True,
        "complete": True,
    }
    assert asked() == {"count": counts["validation"], **unseen}
    assert asked("--include-seen") == {"count": 40, **unseen, "left_out": False}
    assert asked("--split", "held-out", "--held-out", "0.3")["count"] == counts["validation"]
    assert asked("--split", "train", "--held-out", "0.3")["count"] == counts["train"]
    printed = run("evaluate", "mine", "--data", photos, "--no-base")
    assert f"blip2-opt-mini.mine: trained on {counts['train']} of these 40 images; they are left out" in printed
    elsewhere = write(tmp_path / "test", many[:2] + list(iterate_scenes("validation", 30)))
    base, mine = json.loads(run("evaluate", "mine", "--data", elsewhere, "--json"))["reports"]
    known = mine["seen"]["seen"]
    assert len(mine["records"]) == 32 - known, "all of another folder, less the same images under other names"
    assert len(base["records"]) == 32 - known, "the base is asked the same"


def test_groups_stay_together(run, many: list[Scene], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write(photos, many)
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    rows = [{**row, "clip": f"clip {n // 4}"} for n, row in enumerate(rows)]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for command in (("evaluate", "--model", "vilt-mini"), ("doctor", "--task", "backgrounds")):
        found = json.loads(run(*command, "--data", photos, "--group-by", "clip", "--json"))
        assert found
    held_out = json.loads(
        run("evaluate", "--data", photos, "--group-by", "clip", "--split", "held-out", "--held-out", "0.3", "--json")
    )["reports"][0]["records"]
    lines = {int(record["example"].rpartition(":")[2]) - 1 for record in held_out}
    assert lines
    assert {line // 4 for line in lines} == {
        line // 4 for line in lines if {4 * (line // 4) + k for k in range(4)} <= lines
    }
    assert "no column" in run("doctor", "--data", photos, "--group-by", "patient", code=1)


def test_doctor_takes_the_answers_that_training_would_add(run, many: list[Scene], tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", many[:12])
    rows = (photos / "metadata.jsonl").read_text().replace('"answer": "', '"answer": "spacesuit ', 6)
    (photos / "metadata.jsonl").write_text(rows)
    batch = json.loads(run("doctor", "--data", photos, "--task", "suits", "--model", "vilt-mini", "--json"))["batch"]
    assert batch["verdict"] == "depends"
    run("train", "suits", "--data", photos, "--task", "suits", "--model", "vilt-mini", *QUICK)


@pytest.mark.parametrize("damage", ["long", "cut", "mixed"])
def test_doctor_refuses_what_training_would_refuse(run, damage: str, many: list[Scene], tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", many[:12])
    file = photos / f"{many[3].seed}.png"
    if damage == "long":
        (photos / "metadata.jsonl").write_text((photos / "metadata.jsonl").read_text().replace(COLOR, "why " * 3000))
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        with (photos / "metadata.jsonl").open("a") as rows:
            rows.write("\n" + json.dumps({"file_name": file.name, "caption": "a red star"}))
    options = ("--data", photos, "--task", "backgrounds")
    said = [run("doctor", *options, code=1), run("train", "mine", *options, *QUICK, code=1)]
    assert said[0] == said[1]
    assert said[0].startswith("DataError")


def test_questions_are_looked_at_as_questions(run, many: list[Scene], tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", many[:12])
    assert "these are questions: train them with --task NAME" in run("doctor", "--data", photos)
    assert "--task NAME" in run("train", "mine", "--data", photos, *QUICK, code=1)


def test_intervals_are_over_groups_where_data_are_grouped(run, tmp_path: Path, scenes: list[Scene]) -> None:
    """Twelve images of two patients are two independent ones, and say nothing."""
    rows = []
    for number, scene in enumerate(scenes):
        scene.image.save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "question": COLOR, "answer": "white", "patient": number % 2})
    write_rows(tmp_path, rows)
    asked = ["evaluate", "--task", "x", "--data", str(tmp_path), "--json"]
    (alone,), (grouped,) = (json.loads(run(*asked, *more))["reports"] for more in ([], ["--group-by", "patient"]))
    assert (alone["accuracy"]["groups"], grouped["accuracy"]["groups"]) == (12, 2)
    assert alone["accuracy"]["value"] == grouped["accuracy"]["value"]
    by_hand = mean_interval([r["score"] for r in grouped["records"]], [n % 2 for n in range(12)])
    assert (grouped["accuracy"]["low"], grouped["accuracy"]["high"]) == (by_hand.low, by_hand.high)


def test_evaluate_leaves_out_what_training_leaves_out(run, tmp_path: Path, scenes: list[Scene]) -> None:
    rows = []
    for number, scene in enumerate(scenes):
        scene.image.save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "caption": "a star " * (3000 if number == 5 else 1)})
    write_rows(tmp_path, rows)
    assert "11" in run("evaluate", "--data", str(tmp_path), "--skip-bad-rows")


def test_the_test_part_alone_can_be_asked(run, tmp_path: Path, scenes: list[Scene]) -> None:
    """By default validation and test are asked, which is said: training chose its best step by the former."""
    for part, some in (("train", scenes[:6]), ("validation", scenes[6:8]), ("test", scenes[8:])):
        write(tmp_path / "data" / part, some)
    asked = ["evaluate", "--task", "x", "--data", tmp_path / "data"]
    printed = run(*asked)
    assert "asked about are 2 validation examples, which training chooses its best step by, and 4 of test" in printed
    for split, count in (("test", 4), ("validation", 2), ("held-out", 6), ("train", 6), ("all", 12)):
        (report,) = json.loads(run(*asked, "--split", split, "--json"))["reports"]
        assert len(report["records"]) == count
    assert "validation examples, which" not in run(*asked, "--split", "test")
