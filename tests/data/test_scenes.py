"""The scene world: deterministic, varied, and judged by content."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from lorax_vlm.data.scenes import (
    QUESTION_TYPES,
    SPLITS,
    STYLES,
    Scene,
    iterate_scenes,
    make_scene,
    score_caption,
    split_seeds,
)
from lorax_vlm.data.world.captions import CONCISE_MAX_WORDS
from lorax_vlm.data.world.drawing import _CELL_CENTERS, _CENTER_JITTER, _RADII
from lorax_vlm.data.world.words import PLACES, SceneObject

THREE = Scene(
    seed=1,
    objects=(
        SceneObject("red", "circle", "large", "top left"),
        SceneObject("blue", "circle", "small", "center"),
        SceneObject("red", "star", "small", "bottom right"),
    ),
    background="gray",
)


def test_a_seed_always_gives_the_same_scene() -> None:
    first, second = make_scene(41), make_scene(41)
    assert first.objects == second.objects
    assert first.questions() == second.questions()
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))


def test_known_scene_guards_against_drift_of_the_generator() -> None:
    # The shipped miniatures were trained on these scenes; a change here makes their model cards untrue.
    assert make_scene(7).caption("detailed") == KNOWN_DETAILED
    assert int(np.asarray(make_scene(7).image, dtype=np.int64).sum()) == KNOWN_PIXEL_SUM


KNOWN_DETAILED = (
    "a large purple star at the top left, a large red star at the top right, a small green star at the bo"
    "ttom left and a small orange star at the bottom right, on a white background"
)
KNOWN_PIXEL_SUM = 33578753


def test_splits_are_disjoint_ranges() -> None:
    ranges = sorted(SPLITS.values(), key=lambda seeds: seeds.start)
    assert all(a.stop <= b.start for a, b in pairwise(ranges))
    with pytest.raises(ValueError, match="not within"):
        split_seeds("train", 2, start=len(SPLITS["train"]) - 1)
    with pytest.raises(ValueError, match="Known splits: train, validation, test"):
        split_seeds("dev", 1)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        make_scene(-1)


def test_scenes_vary_and_hold_their_promises() -> None:
    counts: Counter[int] = Counter()
    for scene in iterate_scenes("train", 400):
        counts[len(scene.objects)] += 1
        assert len({o.name for o in scene.objects}) == len(scene.objects)
        assert len({o.place for o in scene.objects}) == len(scene.objects)
        assert [list(PLACES).index(o.place) for o in scene.objects] == sorted(
            list(PLACES).index(o.place) for o in scene.objects
        )
    assert set(counts) == {1, 2, 3, 4, 5}
    assert min(counts.values()) > 40


def test_equal_objects_are_drawn_differently() -> None:
    a, b = (Scene(seed, THREE.objects, "gray") for seed in (1, 2))
    assert (np.asarray(a.image) != np.asarray(b.image)).mean() > 0.5


def test_shapes_cannot_overlap_or_leave_the_picture() -> None:
    # Nearest places are a corner and the center, one step apart along both axes.
    gap = abs(_CELL_CENTERS[0] - _CELL_CENTERS[1]) * 2**0.5
    assert 2 * _RADII["large"][1] + 2 * _CENTER_JITTER * 2**0.5 <= gap
    assert _CELL_CENTERS[0] - _CENTER_JITTER - _RADII["large"][1] > 0


@pytest.mark.parametrize("style", STYLES)
def test_reference_captions_are_in_style_and_true(style: str) -> None:
    for scene in iterate_scenes("validation", 300):
        text = scene.caption(style)
        assert score_caption(scene, style, text) == (True, True), text


@pytest.mark.parametrize("style", STYLES)
def test_captions_of_other_scenes_are_in_style_but_untrue(style: str) -> None:
    scenes = list(iterate_scenes("validation", 120))
    for scene, other in pairwise(scenes):
        if scene.caption(style) != other.caption(style):
            score = score_caption(scene, style, other.caption(style))
            assert score.in_style
            assert not score.true, (scene.caption(style), other.caption(style))


@pytest.mark.parametrize("judged", STYLES)
@pytest.mark.parametrize("written", STYLES)
def test_a_style_is_told_from_the_others(judged: str, written: str) -> None:
    if judged != written:
        assert not score_caption(THREE, judged, THREE.caption(written)).in_style


# Worked by hand against THREE: style, text, in style, true.
JUDGED = [
    ("plain", "a red circle, a blue circle and a red star", True, True),
    ("plain", "A red circle, a blue circle and a red star.", True, True),
    ("plain", "a red star, a blue circle and a red circle", True, True),
    ("plain", "a red circle and a blue circle", True, False),
    ("plain", "a red circle, a red circle, a blue circle and a red star", True, False),
    ("plain", "a red circle, a blue circle, a red star and a green star", True, False),
    ("plain", "a red circle, a blue circle and a red dragon", False, False),
    ("plain", "a red circle, a blue circle and a star", False, False),
    ("plain", "", False, False),
    ("plain", "a photo of nothing", False, False),
    ("plain", "a large red circle, a blue circle and a red star", False, True),
    ("plain", "a small red circle, a blue circle and a red star", False, False),
    (
        "detailed",
        "a large red circle at the top left, a small blue circle in the center and "
        "a small red star at the bottom right,"
        " on a gray background",
        True,
        True,
    ),
    (
        "detailed",
        "a large red circle at the top left, a small blue circle in the center and a small red star at the bottom left,"
        " on a gray background",
        True,
        False,
    ),
    (
        "detailed",
        "a large red circle at the top left, a large blue circle in the center and "
        "a small red star at the bottom right,"
        " on a gray background",
        True,
        False,
    ),
    (
        "detailed",
        "a large red circle at the top left, a small blue circle in the center and "
        "a small red star at the bottom right,"
        " on a pink background",
        True,
        False,
    ),
    (
        "detailed",
        "a large red circle at the top left, a small blue circle in the center and "
        "a small red star at the bottom right",
        False,
        True,
    ),
    ("concise", "three mixed shapes", True, True),
    ("concise", "four mixed shapes", True, False),
    ("concise", "three circles", True, False),
    ("concise", "three red shapes", True, False),
    ("concise", "red circle and red star", True, False),
    ("concise", "one red circle", True, False),
    ("concise", "three shapes", False, False),
    ("concise", "a red circle, a blue circle and a red star", False, True),
    ("creative", "on a foggy morning, a red circle, a blue circle and a red star roll into town", True, True),
    ("creative", "on a foggy morning, a red circle, a blue circle and a red star sail the sea", True, True),
    ("creative", "at midnight, a red circle, a blue circle and a red star roll into town", True, False),
    ("creative", "on a foggy morning, a red circle and a red star roll into town", True, False),
    ("creative", "on a foggy morning, a red circle, a blue circle and a red star rolls into town", False, True),
    ("creative", "a red circle, a blue circle and a red star roll into town", False, True),
]


@pytest.mark.parametrize(("style", "text", "in_style", "true"), JUDGED)
def test_judgement_by_hand(style: str, text: str, in_style: bool, true: bool) -> None:
    assert score_caption(THREE, style, text) == (in_style, true)


def test_concise_is_short() -> None:
    for scene in iterate_scenes("train", 200):
        assert len(scene.caption("concise").split()) <= CONCISE_MAX_WORDS


def test_unknown_style_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="plain, detailed, concise, creative"):
        THREE.caption("baroque")
    with pytest.raises(ValueError, match="baroque"):
        score_caption(THREE, "baroque", "a red circle")


def answers(scene: Scene) -> dict[str, str]:
    return {question: answer for _, question, answer in scene.questions()}


def test_answers_by_hand() -> None:
    known = answers(THREE)
    expected = {
        "What color is the background?": "gray",
        "What color is the star?": "red",
        "What shape is blue?": "circle",
        "What shape is in the center?": "circle",
        "What color is the shape at the bottom right?": "red",
        "Where is the red star?": "bottom right",
        "How many shapes are there?": "3",
        "How many circles are there?": "2",
        "How many red shapes are there?": "2",
        "What color is the largest shape?": "red",
        "What kind of scene is this?": "mixed",
        "Is the scene sparse or crowded?": "crowded",
    }
    assert {question: known[question] for question in expected} == expected
    # Ambiguous ones are never asked.
    assert "What color is the circle?" not in known
    assert "What shape is red?" not in known


def test_questions_cover_all_types_with_balanced_yes_and_no() -> None:
    types: Counter[str] = Counter()
    yes_no: Counter[tuple[str, str]] = Counter()
    for scene in iterate_scenes("train", 600):
        for kind, _, answer in scene.questions():
            types[kind] += 1
            yes_no[kind, answer] += answer in ("yes", "no")
    assert set(types) == set(QUESTION_TYPES)
    assert yes_no["existence", "yes"] == yes_no["existence", "no"]
    assert 0.45 < yes_no["reasoning", "yes"] / (yes_no["reasoning", "yes"] + yes_no["reasoning", "no"]) < 0.55
