"""The caption styles of the scene world, and the judge that reads a caption back. No torch.

Writing and judging are separate on purpose: ``write_caption`` composes a sentence from the objects, ``score_caption``
parses *any* text and compares what it claims with the objects. A caption is judged twice: on its form (``in_style``)
and on its content (``true``), because an adapter can learn either without the other.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from lorax_vlm.data.world.words import (
    BACKGROUNDS,
    COLORS,
    NUMBER_WORDS,
    PLACES,
    SHAPES,
    SIZES,
    SceneObject,
    article,
    join_phrases,
    place_phrase,
)
from lorax_vlm.errors import UsageError
from lorax_vlm.types import require_text

STYLES = ("plain", "detailed", "concise", "creative")
CONCISE_MAX_WORDS = 5

# The background sets the opening and the first object's shape sets the ending, so the pattern can be seen in the image.
CREATIVE_OPENINGS = {
    "white": "in the fresh snow",
    "gray": "on a foggy morning",
    "black": "at midnight",
    "pink": "in a candy dream",
}
CREATIVE_ENDINGS = {
    "circle": ("rolls into town", "roll into town"),
    "square": ("builds a castle", "build a castle"),
    "triangle": ("sails the sea", "sail the sea"),
    "star": ("dances all night", "dance all night"),
}


class CaptionScore(NamedTuple):
    """The judgement of one caption; unpacks as ``(in_style, true)``."""

    in_style: bool
    true: bool


def write_caption(objects: Sequence[SceneObject], background: str, style: str) -> str:
    """Compose the reference caption of one style.

    Raises:
        UsageError: ``style`` is not one of ``STYLES``.
    """
    require_style(style)
    if style == "detailed":
        items = [f"{article(o.size)} {o.size} {o.name} {place_phrase(o.place)}" for o in objects]
        return f"{join_phrases(items)}, on a {background} background"
    if style == "concise":
        return _write_concise(objects)
    named = join_phrases([f"{article(o.color)} {o.name}" for o in objects])
    if style == "creative":
        singular, plural = CREATIVE_ENDINGS[objects[0].shape]
        return f"{CREATIVE_OPENINGS[background]}, {named} {singular if len(objects) == 1 else plural}"
    return named


def _write_concise(objects: Sequence[SceneObject]) -> str:
    if len(objects) == 1:
        return f"one {objects[0].name}"
    if len(objects) == 2:
        return f"{objects[0].name} and {objects[1].name}"
    count = NUMBER_WORDS[len(objects)]
    if len({o.shape for o in objects}) == 1:
        return f"{count} {objects[0].shape}s"
    if len({o.color for o in objects}) == 1:
        return f"{count} {objects[0].color} shapes"
    return f"{count} mixed shapes"


def require_style(style: str) -> str:
    """Return ``style`` when it is one of ``STYLES``.

    Raises:
        UsageError: It is none of them.
    """
    require_text("style", style)
    if style not in STYLES:
        raise UsageError(f"Unknown caption style {style!r}. Known styles: {', '.join(STYLES)}.")
    return style


# --- judging -------------------------------------------------------------------------------------------------------

_COLOR = "|".join(COLORS)
_SHAPE = "|".join(SHAPES)
_SIZE = "|".join(SIZES)
_PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
_BACKGROUND = "|".join(BACKGROUNDS)
_NUMBER = "|".join(NUMBER_WORDS[1:])
_OPENING = "|".join(CREATIVE_OPENINGS.values())
_ENDING_ONE = "|".join(one for one, _ in CREATIVE_ENDINGS.values())
_ENDING_MANY = "|".join(many for _, many in CREATIVE_ENDINGS.values())

_NAMED = rf"an? (?:{_COLOR}) (?:{_SHAPE})"
_PLACED = rf"an? (?:{_SIZE}) (?:{_COLOR}) (?:{_SHAPE}) (?:at|in) the (?:{_PLACE})"


def _list_of(item: str) -> str:
    return rf"{item}(?:(?:, {item})* and {item})?"


def _list_of_two_or_more(item: str) -> str:
    return rf"{item}(?:, {item})* and {item}"


_FORMS = {
    "plain": re.compile(_list_of(_NAMED)),
    "detailed": re.compile(rf"{_list_of(_PLACED)}, on an? (?:{_BACKGROUND}) background"),
    "concise": re.compile(
        rf"one (?:{_COLOR}) (?:{_SHAPE})"
        rf"|(?:{_COLOR}) (?:{_SHAPE}) and (?:{_COLOR}) (?:{_SHAPE})"
        rf"|(?:{_NUMBER}) (?:(?:{_SHAPE})s|(?:{_COLOR}|mixed) shapes)"
    ),
    "creative": re.compile(
        rf"(?:{_OPENING}), (?:{_NAMED} (?:{_ENDING_ONE})|{_list_of_two_or_more(_NAMED)} (?:{_ENDING_MANY}))"
    ),
}

_GROUP = re.compile(rf"\b({_NUMBER}) (?:({_SHAPE})s|({_COLOR}|mixed) shapes)\b")
_MENTION = re.compile(rf"\b(?:({_SIZE}) )?({_COLOR}) ({_SHAPE})\b(?: (?:at|in) the ({_PLACE})\b)?")
_ON_BACKGROUND = re.compile(rf"\b({_BACKGROUND}) background\b")
_CLAIM_WORD = re.compile(
    rf"\b(?:{_COLOR}|(?:{_SHAPE})s?|{_SIZE}|{_PLACE}|{_BACKGROUND}|mixed|shapes?|zero|{_NUMBER}|background)\b"
)


def score_caption(objects: Sequence[SceneObject], background: str, style: str, text: str) -> CaptionScore:
    """Judge a caption against the truth.

    ``in_style`` says whether the text has the form of the style (for *detailed*: every object with size, colour, shape
    and place, then the background; for *concise*: at most five words). ``true`` says whether every claim in the text
    holds and the objects are all there; *concise* may summarise them by a correct count instead. A colour, shape,
    size, place or number that belongs to no readable claim makes the text untrue: what cannot be checked is not true.

    Raises:
        UsageError: ``style`` is not one of ``STYLES``.
    """
    require_style(style)
    words = " ".join(text.lower().split()).rstrip(".! ")
    in_style = _FORMS[style].fullmatch(words) is not None
    if style == "concise":
        in_style = in_style and len(words.split()) <= CONCISE_MAX_WORDS
    return CaptionScore(in_style, _is_true(objects, background, words, summary_allowed=style == "concise"))


def _is_true(objects: Sequence[SceneObject], background: str, words: str, *, summary_allowed: bool) -> bool:
    rest = words
    for opening_background, opening in CREATIVE_OPENINGS.items():
        if rest.startswith(opening) and opening_background != background:
            return False
    grounds = _ON_BACKGROUND.findall(rest)
    rest = _ON_BACKGROUND.sub(" ", rest)
    groups = _GROUP.findall(rest)
    rest = _GROUP.sub(" ", rest)
    mentions = _MENTION.findall(rest)
    rest = _MENTION.sub(" ", rest)
    if len(mentions) == 1 and rest.startswith("one "):
        rest, groups = rest.removeprefix("one "), []
        if len(objects) != 1:
            return False
    if _CLAIM_WORD.search(rest) or any(ground != background for ground in grounds):
        return False
    if groups:
        return summary_allowed and not mentions and all(_group_is_true(objects, *group) for group in groups)
    return _mentions_are_true(objects, mentions)


def _group_is_true(objects: Sequence[SceneObject], number: str, shape: str, kind: str) -> bool:
    if NUMBER_WORDS.index(number) != len(objects):
        return False
    shapes, colors = {o.shape for o in objects}, {o.color for o in objects}
    if shape:
        return shapes == {shape}
    if kind == "mixed":
        return len(shapes) > 1 and len(colors) > 1
    return colors == {kind}


def _mentions_are_true(objects: Sequence[SceneObject], mentions: list[tuple[str, str, str, str]]) -> bool:
    by_name = {o.name: o for o in objects}
    if Counter(f"{color} {shape}" for _, color, shape, _ in mentions) != Counter(by_name.keys()):
        return False
    for size, color, shape, place in mentions:
        truth = by_name[f"{color} {shape}"]
        if (size and size != truth.size) or (place and place != truth.place):
            return False
    return True
