"""The questions of the scene world, with their true answers. No torch.

``color``, ``shape``, ``existence`` and ``place`` are the base's own skills. ``counting``, ``reasoning`` and
``classification`` are left for adapters: no miniature is trained on them.
"""

import random
from collections import Counter
from collections.abc import Sequence

from lorax_vlm.data.world.words import COLORS, SHAPES, SceneObject, article, place_phrase

BASE_QUESTION_TYPES = ("color", "shape", "existence", "place")
SKILL_QUESTION_TYPES = ("counting", "reasoning", "classification")
QUESTION_TYPES = BASE_QUESTION_TYPES + SKILL_QUESTION_TYPES

Question = tuple[str, str, str]


def write_questions(objects: Sequence[SceneObject], background: str, rng: random.Random) -> list[Question]:
    """Every kind of question that has exactly one right answer in this scene, as ``(type, question, answer)``.

    ``rng`` chooses which absent things and which pairs are asked about, so that yes and no are equally frequent.
    """
    return [
        *_color_and_shape(objects, background),
        *_existence(objects, rng),
        *(("place", f"Where is the {o.name}?", o.place) for o in objects),
        *_counting(objects, rng),
        *_spatial(objects, rng),
        *_comparative(objects, rng),
        *_classification(objects),
    ]


def _color_and_shape(objects: Sequence[SceneObject], background: str) -> list[Question]:
    shapes, colors = Counter(o.shape for o in objects), Counter(o.color for o in objects)
    questions = [("color", "What color is the background?", background)]
    for o in objects:
        questions.append(("color", f"What color is the shape {place_phrase(o.place)}?", o.color))
        questions.append(("shape", f"What shape is {place_phrase(o.place)}?", o.shape))
        if shapes[o.shape] == 1:
            questions.append(("color", f"What color is the {o.shape}?", o.color))
        if colors[o.color] == 1:
            questions.append(("shape", f"What shape is {o.color}?", o.shape))
    return questions


def _existence(objects: Sequence[SceneObject], rng: random.Random) -> list[Question]:
    present = {o.name for o in objects}
    # Near misses: a colour and a shape that both occur somewhere, but not together, are the hard absences.
    near = [f"{a.color} {b.shape}" for a in objects for b in objects if f"{a.color} {b.shape}" not in present]
    absent = [f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" not in present]
    asked_absent = rng.choice(near) if near and rng.random() < 0.5 else rng.choice(absent)
    pairs = [(rng.choice(sorted(present)), "yes"), (asked_absent, "no")]
    present_shapes = sorted({o.shape for o in objects})
    absent_shapes = [s for s in SHAPES if s not in present_shapes]
    if absent_shapes:
        pairs += [(rng.choice(present_shapes), "yes"), (rng.choice(absent_shapes), "no")]
    return [("existence", f"Is there {article(name)} {name}?", answer) for name, answer in pairs]


def _counting(objects: Sequence[SceneObject], rng: random.Random) -> list[Question]:
    shape, color = rng.choice(SHAPES), rng.choice(list(COLORS))
    most_shape = Counter(o.shape for o in objects).most_common(1)[0][0]
    most_color = Counter(o.color for o in objects).most_common(1)[0][0]
    asked = [("shapes", len(objects))]
    asked += [(f"{s}s", sum(o.shape == s for o in objects)) for s in dict.fromkeys((most_shape, shape))]
    asked += [(f"{c} shapes", sum(o.color == c for o in objects)) for c in dict.fromkeys((most_color, color))]
    return [("counting", f"How many {kind} are there?", str(count)) for kind, count in asked]


def _spatial(objects: Sequence[SceneObject], rng: random.Random) -> list[Question]:
    questions = []
    across = [(a, b) for a in objects for b in objects if a.column != b.column]
    if across:
        a, b = rng.choice(across)
        side, holds = ("left", a.column < b.column) if rng.random() < 0.5 else ("right", a.column > b.column)
        questions.append(("reasoning", f"Is the {a.name} {side} of the {b.name}?", "yes" if holds else "no"))
    along = [(a, b) for a in objects for b in objects if a.row != b.row]
    if along:
        a, b = rng.choice(along)
        side, holds = ("above", a.row < b.row) if rng.random() < 0.5 else ("below", a.row > b.row)
        questions.append(("reasoning", f"Is the {a.name} {side} the {b.name}?", "yes" if holds else "no"))
    return questions


def _comparative(objects: Sequence[SceneObject], rng: random.Random) -> list[Question]:
    questions = []
    unequal = [(a, b) for a in objects for b in objects if a.size != b.size]
    if unequal:
        a, b = rng.choice(unequal)
        larger = a if a.size == "large" else b
        questions.append(("reasoning", f"Which is larger, the {a.name} or the {b.name}?", larger.name))
    large = [o for o in objects if o.size == "large"]
    if len(large) == 1 and len(objects) > 1:
        questions.append(("reasoning", "What color is the largest shape?", large[0].color))
    counts = Counter(o.shape for o in objects)
    uneven = [(s, t) for s in SHAPES for t in SHAPES if counts[s] != counts[t]]
    s, t = rng.choice(uneven or [(SHAPES[0], SHAPES[1])])
    questions.append(("reasoning", f"Are there more {s}s than {t}s?", "yes" if counts[s] > counts[t] else "no"))
    return questions


def _classification(objects: Sequence[SceneObject]) -> list[Question]:
    same = len({o.shape for o in objects}) == 1 or len({o.color for o in objects}) == 1
    kind = "single" if len(objects) == 1 else "matching" if same else "mixed"
    return [
        ("classification", "What kind of scene is this?", kind),
        ("classification", "Is the scene sparse or crowded?", "sparse" if len(objects) <= 2 else "crowded"),
    ]
