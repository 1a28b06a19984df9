"""What an adapter does to skills that it was not trained for: measured beside the base, on drawn scenes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorax_vlm.answers import exact_match
from lorax_vlm.data.examples import Example
from lorax_vlm.data.scenes import Scene, iterate_scenes, score_caption
from lorax_vlm.data.world.examples import scene_questions
from lorax_vlm.data.world.questions import QUESTION_TYPES
from lorax_vlm.evaluation.intervals import mean_interval, paired_difference
from lorax_vlm.types import Interval, percent

QUESTIONS, CAPTIONS = 32, 60
"""Questions of each type, and captions: enough of each for a verdict, see ``types.ENOUGH``."""
_UNSEEN_FROM, _LOOKED_AT = 40_000, 3 * QUESTIONS
"""First test scene that is looked at, and how many are: evaluations take those before it."""
PLAIN = "plain captions"


@dataclass(frozen=True)
class OtherSkill:
    """One skill that the adapter was not trained for. Shares of right answers, 0 to 1."""

    name: str
    count: int
    base: float
    adapter: Interval
    difference: Interval
    """Adapter minus base, paired."""


@dataclass(frozen=True)
class SideEffects:
    """Every skill that the adapter was not trained for."""

    skills: tuple[OtherSkill, ...]

    @property
    def harmful(self) -> bool:
        """Whether any skill became worse beyond the noise."""
        return any(skill.difference.below_zero for skill in self.skills)

    def lines(self) -> list[str]:
        """For people: the skills that became worse, or that none did."""
        worse = [skill for skill in self.skills if skill.difference.below_zero]
        if not self.skills:
            return ["other skills: it was trained for all of them"]
        if not worse:
            asked = sum(skill.count for skill in self.skills)
            return [f"other skills: none is worse beyond the noise ({asked} questions and captions about drawn scenes)"]
        said = ", ".join(f"{s.name} {percent(s.base, 0)} -> {s.adapter.percent()}" for s in worse)
        return [f"other skills became worse (use it for what it was trained for): {said}"]


def other_questions(trained_kinds: Sequence[str]) -> list[Example]:
    """Questions of every type but those that an adapter was trained on."""
    kinds = [kind for kind in QUESTION_TYPES if kind not in trained_kinds]
    return [example for kind in kinds for example in _some_questions(kind)]


def compare_answers(examples: Sequence[Example], base: Sequence[str], adapter: Sequence[str]) -> list[OtherSkill]:
    """How an adapter answers ``other_questions`` beside its base, by type."""
    before, after = (_by_kind(examples, texts) for texts in (base, adapter))
    return [_compared(kind, before[kind], after[kind]) for kind in sorted(before)]


def other_scenes() -> list[Scene]:
    """Scenes to be captioned plainly."""
    return list(iterate_scenes("test", CAPTIONS, _UNSEEN_FROM))


def compare_captions(scenes: Sequence[Scene], base: Sequence[str], adapter: Sequence[str]) -> OtherSkill:
    """How an adapter captions ``other_scenes`` plainly beside its base."""
    return _compared(PLAIN, _true_captions(scenes, base), _true_captions(scenes, adapter))


def _some_questions(kind: str) -> list[Example]:
    return scene_questions(kind, "test", _LOOKED_AT, start=_UNSEEN_FROM)[:QUESTIONS]


def _true_captions(scenes: Sequence[Scene], texts: Sequence[str]) -> list[float]:
    return [float(_is_true(scene, text)) for scene, text in zip(scenes, texts, strict=True)]


def _is_true(scene: Scene, text: str) -> bool:
    score = score_caption(scene, "plain", text)
    return score.in_style and score.true


def _by_kind(examples: Sequence[Example], texts: Sequence[str]) -> Mapping[str, list[float]]:
    scores: dict[str, list[float]] = defaultdict(list)
    for example, text in zip(examples, texts, strict=True):
        scores[example.kind].append(float(exact_match(text, example.answers)))
    return scores


def _compared(name: str, base: Sequence[float], adapter: Sequence[float]) -> OtherSkill:
    return OtherSkill(name, len(base), sum(base) / len(base), mean_interval(adapter), paired_difference(base, adapter))
