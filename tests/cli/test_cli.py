"""The command line, in process: what it prints, and that every expected error is one message and exit code 1."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.scenes import Scene
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import answer, caption
from tests.adapters_for_tests import write_random_adapter


@pytest.fixture
def image(scenes: list[Scene], tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    scenes[0].image.save(path)
    return path


def test_caption(run, image: Path) -> None:
    assert run("caption", image).strip() == "a red star"
    record = json.loads(run("caption", image, "--json"))
    assert record == {"model": "blip2-opt-mini", "captions": {str(image): {"base": "a red star"}}}


def test_compare_and_sheet(run, image: Path, stored: AdapterStore, tmp_path: Path) -> None:
    sheet = tmp_path / "out" / "sheet.png"
    printed = run("caption", image, "--compare", "--sheet", sheet)
    assert "a red star" in printed
    assert all(name in printed for name in ("base", "one", "two"))
    assert sheet.read_bytes().startswith(b"\x89PNG")
    captions = json.loads(run("caption", image, "-a", "two", "-a", "one", "--json"))["captions"][str(image)]
    assert list(captions) == ["base", "two", "one"]
    assert list(json.loads(run("caption", image, "-a", "two", "--json"))["captions"][str(image)]) == ["two"]


def test_list_show_export_remove(run, stored: AdapterStore, tmp_path: Path) -> None:
    (stored.root / "names" / "two.json").write_text("nonsense")
    printed = run("adapters", "list")
    assert "one" in printed
    assert "broken two" in printed
    record = json.loads(run("adapters", "list", "--json"))
    assert [a["name"] for a in record["adapters"]] == ["one"]
    assert record["adapters"][0]["state"] == "trained"
    assert record["broken"][0]["name"] == "two"
    assert "12 lm" in run("adapters", "show", "one")
    assert json.loads(run("adapters", "show", "one", "--json"))["manifest"]["skill"]["name"] == "concise"
    run("adapters", "export", "one", tmp_path / "exported")
    assert (tmp_path / "exported" / "adapter_config.json").is_file()
    run("adapters", "remove", "one", "--yes")
    assert "Stored again, version 1" in run("adapters", "import", tmp_path / "exported", "--name", "again")
    assert "AdapterExists" in run("adapters", "import", tmp_path / "exported", "--name", "again", code=1)
    run("adapters", "remove", "again", "--yes")
    run("adapters", "remove", "two", "--yes")
    assert "No adapters in" in run("adapters", "list")


def test_version(run) -> None:
    assert run("--version").startswith("lorax-vlm 0.")


def test_models(run) -> None:
    printed = run("models", "list")
    assert "3,744,761,856" in printed
    assert "7.5 GB" in printed
    assert {m["name"] for m in json.loads(run("models", "list", "--json"))["models"]} >= {"blip2-opt-mini"}


def test_train_evaluate_show(run) -> None:
    printed = run("train", "mine", "--style", "concise", "--steps", 4, "--batch-size", 16, "--eval-every", 2)
    assert "12 lm layers, rank 8, 30,720 parameters" in printed
    assert "miniature scenes, style 'concise'" in printed
    assert "curve.png" in printed
    assert "other skills" in printed
    record = json.loads(run("evaluate", "mine", "--count", 20, "--json"))
    judged = [(report["adapter"], report["style"]) for report in record["reports"]]
    assert judged == [(None, "plain"), (None, "concise"), ("mine", "concise")]
    printed = run("evaluate", "--count", 20)
    assert "judged as" in printed
    assert "mine" in printed
    shown = json.loads(run("adapters", "show", "mine", "--json"))["manifest"]
    assert shown["training"]["config"]["max_steps"] == 4
    assert shown["base"]["name"] == "blip2-opt-mini"


def test_scenes_as_a_data_set(run, tmp_path: Path) -> None:
    run("scenes", "export", tmp_path / "drawn", "--style", "creative", "--count", 12)
    rows = [json.loads(line) for line in (tmp_path / "drawn" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    run("train", "mine", "--data", tmp_path / "drawn", "--steps", 2, "--batch-size", 16, "--eval-every", 2)
    page = tmp_path / "captions.html"
    printed = run("evaluate", "mine", "--data", tmp_path / "drawn", "--html", page)
    assert "exact match" in printed
    assert "differ from their references" in page.read_text()
    run("evaluate", "mine", "--style", "creative", "--count", 4, "--html", page)
    assert "are not creative and true" in page.read_text()
    assert "it is not empty" in run("scenes", "export", tmp_path / "drawn", code=1)


def test_doctor(run) -> None:
    printed = run("doctor")
    for expected in ("cpu, float32", "blip2-opt-mini", "transformers", "fits", "0 adapters"):
        assert expected in printed
    record = json.loads(run("doctor", "--json", "--model", "blip2_opt"))
    assert record["machine"]["model"] == "blip2-opt-2.7b (Salesforce/blip2-opt-2.7b)"
    assert record["batch"] is None


def test_doctor_shows_what_carries_loss_and_that_images_matter(run) -> None:
    printed = run("doctor", "--style", "plain", "--rows", 3)
    assert "<image>x16" in printed
    assert "it depends on the image" in printed
    batch = json.loads(run("doctor", "--style", "plain", "--json"))["batch"]
    assert batch["shuffled_loss"] > batch["loss"] + 1
    for row in batch["rows"]:
        carrying = "".join(token for token, carries in row["tokens"] if carries)
        assert carrying.endswith("\n")
        assert row["ends_with_eos"]


ERRORS = [
    (("caption", "gone.png"), "ImageError: Cannot use image 'gone.png': no such file"),
    (("caption", "x.png", "--model", "nothing"), "UnknownModel"),
    (("caption", "a.png", "b.png", "--sheet", "s.png"), "--sheet shows one image"),
    (("caption", "x.png", "--adapter", "nobody"), "AdapterNotFound"),
    (("adapters", "show", "../../etc"), "AdapterNameError"),
    (("adapters", "remove", "nobody", "--yes"), "AdapterNotFound"),
    (("train", "mine", "--style", "baroque"), "Unknown caption style 'baroque'"),
    (("train", "mine"), "Nothing says what to train"),
    (("train", "mine", "--style", "plain", "--recipe", "huge"), "Known: light, medium, heavy"),
    (("train", "mine", "--style", "plain", "--resume"), "NothingToResume"),
    (("train", "mine", "--data", "no/such/folder"), "no such folder"),
    (("train", "a/b", "--style", "plain"), "AdapterNameError"),
    (("evaluate", "nobody"), "AdapterNotFound"),
    (("doctor", "--device", "cuda"), "no CUDA device"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[" ".join(a) for a, _ in ERRORS])
def test_errors_are_one_message(run, arguments: tuple[str, ...], message: str) -> None:
    printed = run(*arguments, code=(1, 2))
    assert message in printed
    assert "Traceback" not in printed


def test_usage_errors(run) -> None:
    assert "No such command" in run("dance", code=2)
    assert "'tpu' is not one of" in run("caption", "x.png", "--device", "tpu", code=2)


def test_an_interruption_says_how_to_go_on(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lorax_vlm.workshop.making.train_adapter", interrupted)
    assert "--resume" in run("train", "mine", "--style", "plain", "--steps", 2, code=130)


# --- questions ------------------------------------------------------------------------------------------------------


def test_ask(run, image: Path) -> None:
    assert run("ask", image, "What color is the star?").strip() == "red"
    asked = ["What color is the star?", "Is there a square?"]
    record = json.loads(run("ask", image, *asked, "--model", "vilt-mini", "--json"))
    assert record == {"model": "vilt-mini", "questions": asked, "answers": {"base": ["red", "no"]}}
    assert "PromptError: Cannot ask" in run("ask", image, "red " * 400, code=1)


def test_train_and_evaluate_a_task(run, tmp_path: Path) -> None:
    few = ("--steps", 2, "--batch-size", 16, "--eval-every", 2, "--recipe", "light")
    printed = run("train", "counts", "--task", "counting", *few)
    assert "blip2-opt-mini.counts, version 1" in printed
    assert "training by type: counting" in printed
    assert "Question: How many" in printed
    page = tmp_path / "report.html"
    printed = run("evaluate", "counts", "--count", 20, "--ablations", "--html", page)
    assert "counts against base: " in printed
    assert "Does the image matter?" in printed
    assert page.read_text().startswith("<!doctype html>")
    record = json.loads(run("evaluate", "counts", "--count", 20, "--json"))
    assert [report["adapter"] for report in record["reports"]] == [None, "counts"]
    assert len(record["reports"][1]["records"]) == 20
    assert {skill["name"] for skill in record["side_effects"]["counts"]["skills"]} >= {"color", "plain captions"}
    assert set(record["differences"]["counts"]) == {"value", "low", "high", "count", "groups"}
    assert "counts" in run("adapters", "list")


def test_evaluate_own_questions(run, scenes: list[Scene], tmp_path: Path) -> None:
    rows = []
    for scene in scenes:
        scene.image.save(tmp_path / f"{scene.seed}.png")
        row = {"file_name": f"{scene.seed}.png", "question": "What color is the background?"}
        rows.append(json.dumps({**row, "answers": [scene.background] * 9 + ["beige"], "type": "color"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    printed = run("evaluate", "--data", tmp_path, "--model", "vilt-mini")
    assert "vqa accuracy" in printed
    assert "100.0 % (73.4 to 100.0)" in printed
    assert "ignored" not in run("doctor", "--data", tmp_path, "--model", "vilt-mini")


def test_benchmark(run) -> None:
    printed = run("benchmark", "vilt-mini", "--count", 12, "--alone", 2)
    assert "vilt-mini" in printed
    assert "questions/s" in printed
    record = json.loads(run("benchmark", "vilt-mini", "--count", 12, "--alone", 2, "--json"))
    assert record["rows"][0]["model"] == "vilt-mini"


def test_captions_of_vilt_are_refused(run, image: Path) -> None:
    assert "it cannot write captions" in run("caption", image, "--model", "vilt-mini", code=2)
    assert "--ablations belongs to questions" in run("evaluate", "--ablations", code=2)


def test_questions_are_not_put_to_a_style_unasked(run, tmp_path: Path, stored: AdapterStore) -> None:
    run("scenes", "export", tmp_path / "questions", "--task", "color", "--count", 12)
    refused = run("evaluate", "one", "--data", tmp_path / "questions", code=2)
    assert "questions holds questions, and one captions" in refused
    asked = run("evaluate", "one", "--data", tmp_path / "questions", "--task", "color", "--html", tmp_path / "p.html")
    assert "one against base" in asked
    page = (tmp_path / "p.html").read_text()
    assert "one: not known whether it was trained on any of these 12 images" in page
    assert "training and" in page, "what was read"


def test_what_an_adapter_is_for_need_not_be_known_to_measure_it(
    run, tmp_path: Path, load_shared: Callable[[str], LoadedModel]
) -> None:
    """A plain PEFT folder does not say; on a model that only answers there is no doubt."""
    run("scenes", "export", tmp_path / "questions", "--task", "color", "--count", 12)
    for model in ("vilt-mini", "blip2-opt-mini"):
        folder = write_random_adapter(load_shared(model), tmp_path / model, scale=0.6)
        run("adapters", "import", folder, "--name", "plain", "--model", model, "--replace")
        printed = run("evaluate", "plain", "--data", tmp_path / "questions", "--model", model)
        assert "plain against base" in printed


@pytest.mark.parametrize("several", [False, True])
def test_captions_are_not_read_for_a_model_that_writes_none(run, tmp_path: Path, several: bool) -> None:
    (tmp_path / "all.yaml").write_text(f"mine: {{data: {tmp_path / 'none'}}}")
    asked = (
        ("--adapters", tmp_path / "all.yaml") if several else ("mine", "--style", "mine", "--data", tmp_path / "none")
    )
    assert "cannot write captions" in run("train", *asked, "--model", "vilt-mini", code=2)


def test_columns_must_be_pairs(run, tmp_path: Path) -> None:
    assert "--columns must look like" in run("evaluate", "--data", "hub:a/b", "--columns", "image", code=2)


@pytest.mark.timeout(400)
def test_train_several_adapters_together(run, mini: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "styles.yaml"
    file.write_text("brief: {style: concise}\ncounts: {task: counting, steps: 3}\n", encoding="utf-8")
    options = ("--adapters", file, "--steps", 2, "--batch-size", 16, "--eval-every", 2)
    printed = run("train", *options)
    assert "brief: " in printed
    assert "2 steps" in printed
    assert "3 steps" in printed
    brief, counts = AdapterStore().get("brief"), AdapterStore().get("blip2-opt-mini.counts")
    assert (brief.manifest.skill, brief.manifest.rank) == (caption("concise"), 8)
    assert (counts.manifest.skill, counts.manifest.rank) == (answer("counting"), 16)
    assert "AdapterExists" in run("train", *options, code=1)
    records = json.loads(run("train", *options, "--replace", "--json"))["adapters"]
    assert [record["version"] for record in records] == [2, 2]
    assert "Name one adapter" in run("train", code=2)
    assert "Name one adapter" in run("train", "one", "--adapters", file, code=2)
    assert "of each entry" in run("train", "--adapters", file, "--style", "concise", code=2)
