"""What the miniatures are taught must be true."""

import random

import pytest

from lorax_vlm.data.scenes import make_scene
from lorax_vlm.data.world.questions import SKILL_QUESTION_TYPES
from recipes.mentions import find_mentions
from recipes.turns import (
    GUESSED_WITH_SIDES,
    caption_turns,
    instruction_turns,
    name_colors,
    side_turn,
    with_sides,
    yes_no_turn,
)

PROMPT = "{question}"


def test_sides_are_those_of_the_places() -> None:
    seen = set()
    for seed in range(300):
        scene = make_scene(seed)
        question, answer = side_turn(scene, random.Random(seed), PROMPT)
        name, _, side = question.removeprefix("Is the ").removesuffix("?").partition(" on the ")
        if not side:
            name, _, side = question.removeprefix("Is the ").removesuffix("?").partition(" at the ")
        place = next(item.place for item in scene.objects if item.name == name)
        assert answer == ("yes" if side in place.split() else "no"), (question, place)
        seen.add((side, answer))
    assert seen == {(side, answer) for side in ("left", "right", "top", "bottom") for answer in ("yes", "no")}


def test_a_second_object_in_a_side_question_is_not_the_one_asked_about() -> None:
    forms = set()
    for seed in range(300):
        scene = make_scene(seed)
        question, answer = side_turn(scene, random.Random(seed), PROMPT, beside_share=1.0)
        named = [item for item in scene.objects if item.name in question]
        excluded = [item for item in named if f"ot the {item.name}" in question]
        (asked,) = (item for item in named if item not in excluded)
        side = next(side for side in ("left", "right", "top", "bottom") if f" {side}" in question)
        assert answer == ("yes" if side in asked.place.split() else "no"), question
        forms.add((question.startswith("Not "), question.index(" the ") < question.find(", not"), len(excluded)))
    assert {count for *_, count in forms} == {0, 1}, "a scene of one object has no other"
    assert len(forms) >= 3


def test_yes_or_no_is_about_what_is_there() -> None:
    answers = []
    for seed in range(200):
        scene = make_scene(seed)
        prompt, answer = yes_no_turn(scene, random.Random(seed))
        answers.append(answer)
        for item in scene.objects:
            if f"Is the {item.name} " in prompt:
                assert answer == ("yes" if f"the {item.place}?" in prompt else "no")
    assert 60 < answers.count("yes") < 140


def test_colors_in_reading_order() -> None:
    scene = make_scene(2_000_000_131)
    assert name_colors(scene) == "blue, yellow, purple and red"


@pytest.mark.parametrize("make_turns", [caption_turns, instruction_turns])
def test_beside_sides_no_spatial_question_is_guessed(make_turns) -> None:
    spatial = (" left of ", " right of ", " above ", " below ")
    assert set(GUESSED_WITH_SIDES) < set(SKILL_QUESTION_TYPES)
    asked = []
    for seed in range(60):
        turns = with_sides(make_turns)(make_scene(seed), make_scene(seed + 1000), random.Random(seed), PROMPT)
        asked += [next(turns)[0] for _ in range(20)]
    assert not [prompt for prompt in asked if any(word in prompt for word in spatial) and "Repeat" not in prompt]
    assert [prompt for prompt in asked if prompt.endswith((" on the left?", " at the top?"))]


def test_mentions_are_found_where_they_end() -> None:
    scene = make_scene(2_000_000_131)
    by_name = {item.name: item for item in scene.objects}
    words = ["is", "the", "red", "square", "above", "the", "blue", "triangle", "?", "the", "purple", "one"]
    assert find_mentions(words, scene.objects) == [
        (3, by_name["red square"]),
        (7, None),
        (10, by_name["purple triangle"]),
    ]
    # "square" alone is no one object: there are three.
    assert find_mentions(["the", "square"], scene.objects) == []
    assert find_mentions(["the", "triangle"], scene.objects) == [(1, by_name["purple triangle"])]
