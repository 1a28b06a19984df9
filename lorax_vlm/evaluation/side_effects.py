"""What an adapter does to skills that it was not trained for: measured beside the base, on drawn scenes."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lorax_vlm.answers import exact_match
from lorax_vlm.data.examples import Example
from lorax_vlm.data.scenes import Scene, iterate_scenes, score_caption
from lorax_vlm.data.world.examples import scene_questions
from lorax_vlm.data.world.questions import QUESTION_TYPES
from lorax_vlm.evaluation.intervals import mean_interval, paired_difference
from lorax_vlm.types import Interval

QUESTIONS, CAPTIONS = 32, 60
"""Questions of each type, and captions: enough of each for a verdict, see ``types.ENOUGH``."""
_UNSEEN_FROM, _LOOKED_AT = 40_000, 3 * QUESTIONS
"""First test scene that is looked at, and how many are: evaluations take those before it."""
PLAIN = "plain captions"

AskQuestions = Callable[[str | None, Sequence[Example]], Sequence[str]]
WriteCaptions = Callable[[str | None, Sequence[Scene]], Sequence[str]]


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
        said = ", ".join(f"{s.name} {s.base:.0%} -> {s.adapter.percent()}" for s in worse)
        return [f"other skills became worse (use it for what it was trained for): {said}"]


def measure_side_effects(
    adapter: str, trained_kinds: Sequence[str], ask: AskQuestions, write: WriteCaptions | None
) -> SideEffects:
    """Ask the base and an adapter what the adapter was not trained for.

    Args:
        adapter: Its name.
        trained_kinds: Types of question that it was trained on.
        ask: Answers of the base (for None) or the adapter to questions.
        write: Their captions of scenes. None: they are not a skill to look at.
    """
    skills: list[OtherSkill] = []
    kinds = [kind for kind in QUESTION_TYPES if kind not in trained_kinds]
    if kinds:
        examples = [example for kind in kinds for example in _some_questions(kind)]
        scores = {name: _by_kind(examples, ask(name, examples)) for name in (None, adapter)}
        skills += [_compared(kind, scores[None][kind], scores[adapter][kind]) for kind in sorted(scores[None])]
    if write is not None:
        scenes = list(iterate_scenes("test", CAPTIONS, _UNSEEN_FROM))
        own = [_true_captions(scenes, write(name, scenes)) for name in (None, adapter)]
        skills.append(_compared(PLAIN, *own))
    return SideEffects(tuple(skills))


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
