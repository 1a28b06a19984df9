"""Questions about pictures of one colour each, answered by somebody who looks, or by somebody who does not."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lorax_vlm.data.examples import Example, answered
from lorax_vlm.data.images import ImageSource, load_image
from lorax_vlm.errors import ImageError, LoraxError, RowFailed, UsageError
from lorax_vlm.evaluation.ablation import draw_others
from lorax_vlm.evaluation.cost import benchmark_questions
from lorax_vlm.evaluation.opening import pictures_in_turn, sources_in_turn
from lorax_vlm.evaluation.protocol import Subject
from lorax_vlm.evaluation.questions import (
    EXACT_MATCH,
    VQA_ACCURACY,
    compare_reports,
    evaluate_questions,
    image_numbers,
    score_answers,
    shares_by_metric,
)
from lorax_vlm.evaluation.results import VQAReport
from lorax_vlm.evaluation.summary import metrics_line, missing_line, table_rows
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.types import Answer, Generated, GenerationSettings
from lorax_vlm.vqa import VQASystem
from lorax_vlm.workspace import Workspace

COLOURS = {f"colour {number}": (5 * number, 250 - 5 * number, 100 + number) for number in range(40)}
GREY = (127, 127, 127)


def looking(images: Sequence[ImageSource], questions: Sequence[str]) -> list[Answer | LoraxError]:
    """Says which colour a picture has, and nothing of one that cannot be read."""
    names = {colour: name for name, colour in COLOURS.items()}
    said: list[Answer | LoraxError] = []
    for image in images:
        try:
            said.append(Answer(names.get(load_image(image).getpixel((0, 0)), "grey")))  # type: ignore[arg-type]
        except ImageError as error:
            said.append(error)
    return said


def blind(images: Sequence[ImageSource], questions: Sequence[str]) -> list[Answer | LoraxError]:
    """Answers from the question alone."""
    return [Answer(question.removeprefix("what is ").removesuffix("?")) for question in questions]


def about(name: str, folder: Path, file: str | None = None) -> Example:
    """A question about the picture of a colour, in a file of its own."""
    path = folder / (file or f"{name}.png")
    if not path.exists():
        Image.new("RGB", (8, 8), COLOURS[name]).save(path)
    return answered(path, f"what is {name}?", [name], path.name)


def report_of(ask, examples: Sequence[Example], seed: int = 0, ablations: bool = True) -> VQAReport:
    return evaluate_questions(
        ask, examples, Subject("b", None, GenerationSettings()), source="s", ablations=ablations, seed=seed
    )


# --- another image ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [1, 2, 7])
def test_another_image_is_never_the_own_one(each: int, tmp_path: Path) -> None:
    """In order of the images as VQAv2 has them, each image several times, by name, by copy and as pixels."""
    examples = []
    for number, name in enumerate(COLOURS):
        if number % 3:
            rows = [about(name, tmp_path) for _ in range(each)]
            rows[-1] = about(name, tmp_path, f"copy of {name}.png")
        else:
            drawn = [Image.new("RGB", (8, 8), COLOURS[name]) for _ in range(each)]
            rows = [answered(image, f"what is {name}?", [name], f"drawn {name}") for image in drawn]
        examples += rows
    report = report_of(looking, examples)
    assert (report.accuracy.value, report.shuffled, report.blank) == (1.0, 0.0, 0.0)
    assert report.image_effect is not None
    assert (report.image_effect.verdict, report.image_effect.without_another) == ("depends", 0)
    from_the_question = report_of(blind, examples)
    assert (from_the_question.accuracy.value, from_the_question.shuffled, from_the_question.blank) == (1.0, 1.0, 1.0)
    assert from_the_question.image_effect is not None
    assert from_the_question.image_effect.verdict == "ignored"


def test_every_other_image_may_be_drawn_and_the_seed_says_which() -> None:
    images = [0, 0, 0, 1, 2, 2, 3]
    drawn = [draw_others(images, seed) for seed in range(200)]
    assert drawn[7] == draw_others(images, 7)
    for row, image in enumerate(images):
        others = {images[other] for rows in drawn if (other := rows[row]) is not None}
        assert others == {0, 1, 2, 3} - {image}
    assert draw_others([5, 5, 5], 0) == [None, None, None]


def test_where_there_is_no_other_image_nothing_is_concluded(tmp_path: Path) -> None:
    """One picture under forty names is one picture."""
    examples = [about("colour 3", tmp_path, f"{number}.png") for number in range(40)]
    assert image_numbers(examples) == [0] * 40
    report = report_of(looking, examples)
    assert report.shuffled is None
    assert report.image_effect is not None
    assert report.image_effect.verdict == "cannot tell"
    assert report.image_effect.without_another == 40
    assert missing_line([report]) == "40 questions had no other image to take and are left out of that column."


def test_few_questions_get_no_verdict(tmp_path: Path) -> None:
    report = report_of(looking, [about(name, tmp_path) for name in list(COLOURS)[:29]])
    assert report.image_effect is not None
    assert report.image_effect.verdict == "cannot tell"
    assert "too few to tell: 29 examples" in report.image_effect.reason


def test_an_unreadable_image_is_wrong_and_shown_to_nobody(tmp_path: Path) -> None:
    examples = [about(name, tmp_path) for name in list(COLOURS)[:31]]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    examples.insert(4, answered(tmp_path / "broken.png", "what is it?", ["it"], "broken"))
    report = report_of(looking, examples)
    assert report.accuracy.value == pytest.approx(31 / 32)
    assert "broken.png" in report.records[4].error
    assert report.image_effect is not None
    assert (report.image_effect.verdict, report.image_effect.without_another) == ("depends", 0)


def test_a_function_that_fails_to_draw_fails_its_row_alone(tmp_path: Path) -> None:
    def fails() -> Image.Image:
        raise ZeroDivisionError("of somebody")

    examples = [about(name, tmp_path) for name in list(COLOURS)[:31]]
    examples.insert(4, Example(fails, "it", "drawn", question="what is it?", answers=("it",)))
    report = report_of(looking, examples)
    assert report.accuracy.value == pytest.approx(31 / 32)
    assert "ZeroDivisionError: of somebody" in report.records[4].error
    with pytest.raises(ImageError, match="the function that draws it failed: ZeroDivisionError: of somebody"):
        examples[4].image_digest()


def test_captions_are_not_asked_about(tmp_path: Path) -> None:
    examples = [about("colour 1", tmp_path), Example(tmp_path / "colour 1.png", "a caption", "row 2")]
    with pytest.raises(UsageError, match="1 of 2 examples have no question, the first: row 2"):
        report_of(looking, examples)


# --- which metric -----------------------------------------------------------------------------------------------------

RED = ["red"] * 9 + ["blue"]


@pytest.mark.parametrize(
    ("annotators", "said", "expected"),
    [
        ([RED] * 99, "blue", {VQA_ACCURACY: (0.3, 99)}),
        ([*[RED] * 99, ["blue"]], "blue", {VQA_ACCURACY: (0.3, 99), EXACT_MATCH: (1.0, 1)}),
        ([["blue"], *[RED] * 2], "red", {VQA_ACCURACY: (1.0, 2), EXACT_MATCH: (0.0, 1)}),
        ([["blue"], ["red"], RED], "red", {EXACT_MATCH: (0.5, 2), VQA_ACCURACY: (1.0, 1)}),
        ([["red", "red", "blue"]] * 4, "blue", {EXACT_MATCH: (0.0, 4)}),  # three annotators give at most 2/3
        ([["red", "red", "blue"]] * 4, "Red.", {EXACT_MATCH: (1.0, 4)}),
        ([["red"] * 4], "red", {VQA_ACCURACY: (1.0, 1)}),
        ([["A"]] * 3, "", {EXACT_MATCH: (0.0, 3)}),
        ([["A"]] * 3, "the", {EXACT_MATCH: (0.0, 3)}),
        ([["A"]] * 3, "a", {EXACT_MATCH: (1.0, 3)}),
        ([["A"] * 9 + [""]], "", {VQA_ACCURACY: (0.0, 1)}),
    ],
)
def test_each_question_is_judged_by_its_own_metric(
    annotators: list[list[str]], said: str, expected: dict[str, tuple[float, int]], tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    examples = [answered(tmp_path / "a.png", "what?", texts, f"q{row}") for row, texts in enumerate(annotators)]
    records = score_answers([Answer(said)] * len(examples), examples)
    shares = shares_by_metric(records)
    assert {metric: (pytest.approx(share.value), share.count) for metric, share in shares.items()} == expected
    assert list(shares) == list(expected)
    with pytest.raises(UsageError, match="an answer to each"):
        score_answers([], examples)


def test_two_metrics_are_reported_apart(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [*[RED] * 40, ["red"], ["blue"]]
    examples = [answered(tmp_path / "a.png", "what is red?", texts, f"q{row}") for row, texts in enumerate(rows)]
    report = report_of(blind, examples, ablations=False)
    assert metrics_line(report) == (
        "Questions are judged 40 by vqa accuracy (several annotators) and 2 by exact match (few or one); "
        "the two are not mixed."
    )
    assert [(name, share.value) for name, (share,) in table_rows([report])] == [(VQA_ACCURACY, 1.0), (EXACT_MATCH, 0.5)]
    again = compare_reports(report, report, EXACT_MATCH)
    assert (again.value, again.few) == (0.0, True)
    with pytest.raises(UsageError, match="No question of these reports is judged by"):
        compare_reports(report_of(blind, examples[:3], ablations=False), report_of(blind, examples[:3]), EXACT_MATCH)


# --- large photographs ------------------------------------------------------------------------------------------------


class Memory:
    """The most memory of this process while a block runs, above what it had before, in MB."""

    def __enter__(self) -> "Memory":
        self.most, self._before, self._done = 0.0, self._now(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            self.most = max(self.most, self._now() - self._before)
            time.sleep(0.002)

    def _now(self) -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of the process from /proc")
def test_photographs_are_let_go(mini: LoadedModel, tmp_path: Path) -> None:
    """Twelve of 12 megapixels have 432 MB when they are decoded; one needs about 250 to be made small."""
    paths = [tmp_path / f"{number}.jpg" for number in range(12)]
    for number, path in enumerate(paths):
        Image.new("RGB", (4000, 3000), (20 * number, 100, 100)).save(path, quality=40)
    models = {"blip2_opt": "blip2-opt-mini"}
    system = VQASystem(workspace=Workspace(models, store=tmp_path / "store", load=lambda _: mini))
    examples = [answered(path, "What color is the background?", ["red"], path.name) for path in paths]
    with Memory() as memory:
        report = system.evaluate("blip2_opt", examples=examples)
    assert not any(record.error for record in report.records)
    assert memory.most < 400


@pytest.mark.parametrize("in_turn", [pictures_in_turn, sources_in_turn])
def test_no_more_pictures_are_open_than_a_chunk_has(
    in_turn: Callable[..., Iterator[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 megapixels one at a time, of 3 megapixels four, however many rows there are."""
    for megapixels, most in ((12, 1), (3, 4)):
        open_now: list[int] = []
        most_open = 0

        def opened(source: Image.Image, alive: list[int] = open_now) -> Image.Image:
            picture, number = load_image(source), len(alive)
            alive.append(number)
            weakref.finalize(picture, alive.remove, number)
            return picture

        monkeypatch.setattr("lorax_vlm.data.examples.load_image", opened)
        draw = partial(Image.new, "L", (1000, 1000 * megapixels))
        examples = [Example(partial(draw, row), "", str(row)) for row in range(30)]
        for chunk in in_turn(examples, *([range(30)] if in_turn is sources_in_turn else [])):
            most_open = max(most_open, len(open_now))
            del chunk
        assert 1 <= most_open <= most
        assert open_now == []


def test_a_fault_of_ours_is_no_wrong_answer_like_others() -> None:
    examples = [Example(Image.new("RGB", (8, 8), (n, 0, 0)), "red", f"{n}", question="?") for n in range(3)]
    answers = [RowFailed(0, KeyError("x")), ImageError("a.png", "it is empty."), "red"]
    records = score_answers(answers, examples)  # type: ignore[arg-type]
    assert [(record.score, bool(record.error), record.bug) for record in records] == [
        (0.0, True, True),
        (0.0, True, False),
        (1.0, False, False),
    ]


def test_what_could_not_be_asked_is_counted_and_takes_no_time() -> None:
    examples = [Example(Image.new("RGB", (8, 8), (n, 0, 0)), "red", f"{n}", question="?") for n in range(8)]

    def ask(images: Sequence[Any], questions: Sequence[str]) -> list[Any]:
        found = []
        for image in images:
            if image.getpixel((0, 0))[0] % 2:
                time.sleep(0.2)
                found.append(ImageError("it", "it is broken."))
            else:
                found.append(Answer.of(Generated("red", "eos", 1), "base", None))
        return found

    options: dict[str, Any] = {"model": "m", "adapter": None, "judged": True}
    row = benchmark_questions(ask, examples, torch.device("cpu"), **options)
    assert row.failed == 4
    assert "it is broken" in row.first_failure
    assert row.latency_p95_s < 0.1
    assert row.accuracy == 0.5
    with pytest.raises(ImageError, match="broken"):
        benchmark_questions(ask, examples[1::2], torch.device("cpu"), **options)
