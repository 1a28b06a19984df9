"""What a base is taught to say: plain captions and answers to simple questions, and nothing more.

What the styles and skills need is present but not practised: sizes can be asked for, and every word of the styles
occurs in repeat-after-me sentences, so an adapter has to learn a way of speaking, not new embeddings.
"""

import random
from collections.abc import Callable, Iterator, Sequence

from lorax_vlm.data.scenes import Scene, make_scene
from lorax_vlm.data.world.captions import CREATIVE_ENDINGS, CREATIVE_OPENINGS, STYLES
from lorax_vlm.data.world.questions import BASE_QUESTION_TYPES, SKILL_QUESTION_TYPES
from lorax_vlm.data.world.words import PLACES, join_phrases, place_phrase

REPEAT_PROMPT = "Repeat: {words} Answer:"
CAPTION_SHARE = 0.35
"""Share of rows that begin with a caption; the others begin with a question."""
QUESTION_KINDS = {"base": 0.74, "size": 0.1, "guess": 0.06, "repeat": 0.1}
"""Shares of the questions. ``guess`` are skills left for adapters, answered as in another scene: the form of an answer
without the skill."""
GUESSED = SKILL_QUESTION_TYPES
GUESSED_WITH_SIDES = ("counting", "classification")
"""Spatial questions are left out beside questions about sides: a base that was taught to guess them cannot use what it
knows of sides, and neither can an adapter."""
CAPTION_INSTRUCTIONS = ("A short image caption.", "Describe the image.", "Write a short description of the image.")
COLORS_INSTRUCTION = "Name the colors only."
YES_NO_INSTRUCTION = "Answer yes or no: {question}"

SIDE_SHARE = 0.25
BESIDE_FORMS = (
    "Is the {name} {side}, not the {other}?",
    "Not the {other}, is the {name} {side}?",
    "Is the {name}, not the {other}, {side}?",
)
"""Questions about one object that name another one: whoever answers has to know which of the two is meant."""

Turn = tuple[str, str]
"""(prompt, target)"""
TurnSource = Callable[..., Iterator[Turn]]
"""Makes endless turns of a scene, another scene, a source of randomness and the question prompt."""


def caption_turns(
    scene: Scene, other: Scene, rng: random.Random, question_prompt: str, guessed: Sequence[str] = GUESSED
) -> Iterator[Turn]:
    """Endless turns about a scene, for the bases that caption without a prompt."""
    if rng.random() < CAPTION_SHARE:
        yield "", scene.caption("plain")
    while True:
        yield question_turn(scene, other, rng, question_prompt, guessed)


def instruction_turns(
    scene: Scene, other: Scene, rng: random.Random, question_prompt: str, guessed: Sequence[str] = GUESSED
) -> Iterator[Turn]:
    """Endless turns about a scene, for a base that follows instructions."""
    if rng.random() < CAPTION_SHARE:
        yield rng.choice(CAPTION_INSTRUCTIONS), scene.caption("plain")
    while True:
        form = rng.random()
        if form < 0.1:
            yield COLORS_INSTRUCTION, name_colors(scene)
        elif form < 0.2:
            yield yes_no_turn(scene, rng)
        else:
            yield question_turn(scene, other, rng, question_prompt, guessed)


def question_turn(
    scene: Scene, other: Scene, rng: random.Random, question_prompt: str, guessed: Sequence[str] = GUESSED
) -> Turn:
    """One question of ``QUESTION_KINDS``."""
    kind = rng.choices(list(QUESTION_KINDS), weights=list(QUESTION_KINDS.values()))[0]
    if kind == "base":
        return _ask(scene, rng.choice(BASE_QUESTION_TYPES), rng, question_prompt)
    if kind == "guess":
        return _ask(other, rng.choice(guessed), rng, question_prompt)
    if kind == "size":
        item = rng.choice(scene.objects)
        return question_prompt.format(question=f"What size is the {item.name}?"), item.size
    # In brackets a word has no space before it, as at the beginning of a caption: another token.
    chosen = rng.choices(STYLE_WORDS, k=rng.randint(2, 6))
    words = " ".join(word if rng.random() < 0.6 else f"({word})" for word in chosen)
    return REPEAT_PROMPT.format(words=words), words


def _ask(scene: Scene, kind: str, rng: random.Random, question_prompt: str) -> Turn:
    question, answer = rng.choice([(q, a) for type_, q, a in scene.questions() if type_ == kind])
    return question_prompt.format(question=question), answer


def with_sides(make_turns: TurnSource, share: float = SIDE_SHARE, beside_share: float = 0.0) -> TurnSource:
    """The same turns, a share of them replaced by questions about the side an object is on; see ``side_turn``."""

    def turns(scene: Scene, other: Scene, rng: random.Random, question_prompt: str) -> Iterator[Turn]:
        for turn in make_turns(scene, other, rng, question_prompt, GUESSED_WITH_SIDES):
            yield side_turn(scene, rng, question_prompt, beside_share) if rng.random() < share else turn

    return turns


def side_turn(scene: Scene, rng: random.Random, question_prompt: str, beside_share: float = 0.0) -> Turn:
    """Whether an object is on the left, on the right, at the top or at the bottom; often it is.

    A share of the questions is asked in ``BESIDE_FORMS``.
    """
    item = rng.choice(scene.objects)
    sides = {
        "on the left": item.column == 0,
        "on the right": item.column == 2,
        "at the top": item.row == 0,
        "at the bottom": item.row == 2,
    }
    wanted = rng.random() < 0.5
    side = rng.choice([side for side, holds in sides.items() if holds == wanted] or list(sides))
    question = f"Is the {item.name} {side}?"
    beside = [other.name for other in scene.objects if other is not item]
    if beside and beside_share and rng.random() < beside_share:
        question = rng.choice(BESIDE_FORMS).format(name=item.name, side=side, other=rng.choice(beside))
    return question_prompt.format(question=question), "yes" if sides[side] else "no"


def name_colors(scene: Scene) -> str:
    """The colours of the objects in reading order, each once."""
    return join_phrases(list(dict.fromkeys(item.color for item in scene.objects)))


def yes_no_turn(scene: Scene, rng: random.Random) -> Turn:
    """A statement about one object, true half of the time, or whether something exists."""
    if rng.random() < 0.5:
        question, answer = rng.choice([(q, a) for type_, q, a in scene.questions() if type_ == "existence"])
        return YES_NO_INSTRUCTION.format(question=question), answer
    item = rng.choice(scene.objects)
    place = item.place if rng.random() < 0.5 else rng.choice([place for place in PLACES if place != item.place])
    question = f"Is the {item.name} {place_phrase(place)}?"
    return YES_NO_INSTRUCTION.format(question=question), "yes" if place == item.place else "no"


def _style_words() -> list[str]:
    """Every word of any caption or question, and of the playful phrases, sorted."""
    words: set[str] = set()
    for seed in range(400):
        scene = make_scene(seed)
        texts = [scene.caption(style) for style in STYLES]
        texts += [text for _, question, answer in scene.questions() for text in (question, answer)]
        words.update(word for text in texts for word in text.replace(",", "").replace("?", "").split())
    for phrase in [*CREATIVE_OPENINGS.values(), *(ending for pair in CREATIVE_ENDINGS.values() for ending in pair)]:
        words.update(phrase.split())
    return sorted(words)


STYLE_WORDS = _style_words()
