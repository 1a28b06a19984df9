"""An option that nothing would come of is refused, with what it belongs to."""

import json
from pathlib import Path

import pytest

from lorax_vlm.settings import left_out_dir
from tests.data_for_tests import captioned, numbered, write_json, write_pictures, write_rows

DATA_OPTIONS = (
    ("--held-out", "0.2"),
    ("--skip-bad-rows",),
    ("--images", "photos"),
    ("--annotations", "a.json"),
    ("--columns", "image=a"),
    ("--group-by", "clip"),
)


@pytest.mark.parametrize("option", [*DATA_OPTIONS, ("--streaming",)], ids=lambda option: option[0])
@pytest.mark.parametrize(
    "command", [("train", "x", "--style", "plain"), ("doctor",), ("doctor", "--style", "plain"), ("evaluate",)]
)
def test_what_is_said_of_data_needs_data(run, command: tuple[str, ...], option: tuple[str, ...]) -> None:
    if command[0] == "evaluate" and option == ("--streaming",):
        pytest.skip("evaluate reads no stream")
    assert run(*command, *option, code=2) == f"{option[0]} says something about --data, which is not given.\n"


def test_defaults_of_a_file_are_for_its_adapters_with_data(run, tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("one: {style: plain}\ntwo: {style: concise}")
    assert "--held-out says something" in run("train", "--adapters", tmp_path / "none.yaml", "--held-out", 0.2, code=2)
    (tmp_path / "some.yaml").write_text("one: {style: plain}\ntwo: {style: concise, data: gone}")
    assert "no such folder" in run("train", "--adapters", tmp_path / "some.yaml", "--held-out", 0.2, code=1)
    (tmp_path / "own.yaml").write_text("one: {style: plain, held_out: 0.1}\ntwo: {style: concise, data: gone}")
    assert "--held-out says something" in run("train", "--adapters", tmp_path / "own.yaml", code=2)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("doctor --style plain --task color", "Give --style for captions or --task for answers, not both"),
        ("doctor --rows 8", "--rows is of the batch to look into: give --data, --style or --task"),
        ("doctor --style plain --model vilt-mini", "it cannot write captions"),
        ("train x --style plain --model vilt-mini", "cannot write captions"),
        ("evaluate --split train", "--split chooses among the examples of --data, which is not given"),
        ("evaluate --data photos --count 5", "--count is the number of drawn scenes"),
        ("evaluate --task color --no-base", "--no-base leaves nothing to measure"),
        ("caption photos/0.png --compare --adapter one", "leave --adapter out, or --compare"),
        ("ask photos/0.png what? --beams 3 --model vilt-mini", "vilt-mini chooses among fixed answers"),
        ("adapters alias one stable --drop --version 3", "leave --version out"),
        ("adapters push one file:///tmp/one.lorax --private", "--private is of a new repository on the hub"),
        ("exchange merge one two --name both --preview --replace", "--preview writes nothing"),
        ("exchange merge one two --name both --rank 4", "cat keeps the exact sum, so it takes no rank"),
        ("train x --style plain --data photos --annotations a.json", "photos is a folder"),
        ("train x --style plain --data photos/metadata.jsonl --annotations a.json", "metadata.jsonl is a table"),
        ("train x --style plain --data hub:photos --annotations a.json", "hub:photos is a data set of the hub"),
        ("train x --style plain --data hub:photos --images photos", "hub:photos is a data set of the hub"),
        ("train x --style plain --data photos --streaming", "--streaming reads data sets of the hub"),
        ("train x --style plain --sites ,", "sites (--sites) must be names such as vision,lm, got ','"),
        ("train x --style plain --sites=", "sites (--sites) must be names such as vision,lm, got ''"),
        ("train x --style plain --data photos --columns image=a,image=b", "--columns names a field twice"),
        ("train x --style plain --data photos --columns=", "--columns must look like"),
        ("train x --style plain --data=", "the path has no letters"),
        ("adapters show one@", "'one@' cannot be an adapter's name"),
        ("train x --task y --data list.json --images photos --annotations a.json", "it is a list of rows"),
    ],
)
def test_options_that_contradict_each_other(
    run, stored: object, command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "photos", numbered(4))
    write_rows(tmp_path / "photos", captioned(numbered(4)))
    rows = [{"image": name, "question": "what?", "answer": "a"} for name in numbered(4)]
    write_json(tmp_path / "list.json", rows)
    write_json(tmp_path / "a.json", {"annotations": []})
    assert said in run(*command.split(), code=(1, 2))


@pytest.mark.parametrize(
    "command", ["exchange transfer one --to opt --steps 0", "exchange plan one --to opt --images -1"]
)
def test_numbers_below_the_least(run, command: str) -> None:
    assert "should be greater than or equal to" in run(*command.split(), code=(1, 2))


def test_doctor_lists_what_is_left_out(run, tmp_path: Path) -> None:
    """A malformed row, a caption that does not fit the model, and for a classifier answers that occur once."""
    write_pictures(tmp_path / "photos", numbered(12))
    rows = captioned(numbered(12))
    rows[3]["caption"], rows[5]["caption"] = "", "word " * 3000
    write_rows(tmp_path / "photos", rows)
    run("doctor", "--data", tmp_path / "photos", "--style", "mine", "--skip-bad-rows")
    listed = [json.loads(line) for line in (left_out_dir() / "photos.jsonl").read_text().splitlines()]
    assert [row["place"].rpartition(":")[2] for row in listed] == ["4", "6"]


@pytest.mark.parametrize("command", ["doctor", "train"])
def test_answers_that_a_classifier_cannot_give_are_said_and_listed(
    run, command: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = numbered(16)
    write_pictures(tmp_path / "photos", names)
    answers = ["red", "glorp", "red", "zwibble", *["red"] * 12]
    rows = [{"file_name": n, "question": "what?", "answer": a} for n, a in zip(names, answers, strict=True)]
    write_rows(tmp_path / "photos", rows)
    options = ("--data", tmp_path / "photos", "--task", "mine", "--model", "vilt-mini")
    if command == "doctor":
        said, file = run("doctor", *options), left_out_dir() / "photos.jsonl"
        assert "2 examples whose answer the base cannot give left out" in said
        assert str(file) in said
    else:
        run("train", "mine", *options, "--steps", 2, "--eval-every", 2, "--batch-size", 16)
        [line] = [record.getMessage() for record in caplog.records if "are left out" in record.getMessage()]
        assert line.startswith("Of photos 2 examples whose answer the base cannot give are left out; see ")
        file = Path(line.rpartition("see ")[2])
    listed = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(row["value"] for row in listed) == ["'glorp'", "'zwibble'"]
    assert {row["field"] for row in listed} == {"answer"}


@pytest.mark.parametrize("model", ["blip2-opt-mini", "owner/unknown"])
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--learning-rate 0", "--learning-rate must be a number above 0"),
        ("--learning-rate nan", "--learning-rate must be a number above 0"),
        ("--dropout 1", "--dropout must be a number from 0 up to 1"),
        ("--alpha -1", "--alpha must be a number above 0"),
        ("--rank 2000", "--rank must be from 1 to 1024"),
    ],
)
def test_values_that_cannot_be_are_found_before_data_are_read(run, option: str, said: str, model: str) -> None:
    command = ("train", "x", "--style", "mine", "--data", "gone", "--model", model)
    assert said in run(*command, *option.split(), code=(1, 2))


def test_a_classifier_lists_the_malformed_rows_of_a_stream(run, tmp_path: Path) -> None:
    """It reads a stream whole, since it must know all answers: every bad row is known then."""
    from datasets import Dataset

    from tests.data_for_tests import png

    rows = [
        {"image": png(n % 250), "question": "" if n % 100 == 7 else f"what is {n}?", "answer": ["a", "b"][n % 2]}
        for n in range(2600)
    ]
    (tmp_path / "set").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "set" / "train.parquet")
    options = ("--streaming", "--skip-bad-rows", "--task", "mine", "--model", "vilt-mini")
    run("doctor", "--data", f"hub:{tmp_path / 'set'}", *options)
    assert len((left_out_dir() / "hub-set.jsonl").read_text().splitlines()) == 26


def test_what_would_leave_nothing_is_not_advised_twice(run, tmp_path: Path) -> None:
    """The one row that is held out is too long: leaving it out was asked for, and is no way."""
    write_pictures(tmp_path / "photos", numbered(3))
    rows = [{**row, "split": "train"} for row in captioned(numbered(3))]
    rows[2] |= {"split": "validation", "caption": "word " * 3000}
    write_rows(tmp_path / "photos", rows)
    options = ("--data", tmp_path / "photos", "--style", "mine")
    assert "leave the rows out with --skip-bad-rows" in run("train", "mine", *options, code=1)
    said = run("train", "mine", *options, "--skip-bad-rows", code=1)
    assert "Without them no validation example is left: shorten these texts." in said
    assert "--skip-bad-rows" not in said


def test_answers_that_contradict_each_other_are_said(run, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", numbered(12))
    rows = [{"file_name": n, "question": "which?", "answer": a} for n in numbered(12) for a in ("red", "blue")]
    write_rows(tmp_path / "photos", rows)
    said = run("doctor", "--data", tmp_path / "photos", "--task", "mine")
    assert "12 questions about an image have different answers in different rows" in said


def test_groups_that_leave_one_side_empty_are_named(run, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", numbered(12))
    write_rows(tmp_path / "photos", [{**row, "type": "one"} for row in captioned(numbered(12))])
    said = run("train", "mine", "--data", tmp_path / "photos", "--style", "mine", "--group-by", "type", code=1)
    assert "--group-by keeps groups on one side, and there are 1" in said


def test_a_folder_that_is_no_checkpoint_is_no_unknown_model(run, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", numbered(2))
    assert "config.json" in run("doctor", "--model", tmp_path / "photos", code=1)
