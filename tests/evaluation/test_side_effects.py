"""What an adapter does to skills that it was not trained for, against known answers and the ordinary evaluation."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.examples import Example
from lorax_vlm.data.scenes import Scene
from lorax_vlm.data.world.questions import QUESTION_TYPES
from lorax_vlm.evaluation import side_effects
from lorax_vlm.evaluation.side_effects import (
    CAPTIONS,
    QUESTIONS,
    SideEffects,
    compare_answers,
    compare_captions,
    other_questions,
    other_scenes,
)
from lorax_vlm.measuring import effects as measuring
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.skills import answer
from lorax_vlm.types import ENOUGH
from lorax_vlm.vqa import VQASystem
from lorax_vlm.workspace import Workspace
from tests.adapters_for_tests import write_manifest, write_random_adapter


def ask(adapter: str | None, examples: Sequence[Example]) -> list[str]:
    """The base knows everything, the adapter everything but colours, and of shapes only half."""
    if adapter is None:
        return [example.target for example in examples]
    wrong = {"color": 1, "shape": 2}
    return ["?" if e.kind in wrong and n % wrong[e.kind] == 0 else e.target for n, e in enumerate(examples)]


def write(adapter: str | None, scenes: Sequence[Scene]) -> list[str]:
    return [scene.caption("plain" if adapter is None else "concise") for scene in scenes]


def measured(
    trained: Sequence[str], knows: Sequence[str | None] = (None, "mine"), captions: bool = True
) -> SideEffects:
    """The base and an adapter, each answering as ``ask`` and ``write`` do for a name."""
    examples, scenes = other_questions(trained), other_scenes()
    skills = compare_answers(examples, *(ask(name, examples) for name in knows)) if examples else []
    if captions:
        skills.append(compare_captions(scenes, *(write(name, scenes) for name in knows)))
    return SideEffects(tuple(skills))


def test_every_other_skill_is_compared_with_the_base() -> None:
    found = {skill.name: skill for skill in measured(["counting"]).skills}
    assert set(found) == {*QUESTION_TYPES, "plain captions"} - {"counting"}
    assert {name: skill.count for name, skill in found.items()} == {
        name: CAPTIONS if name == "plain captions" else QUESTIONS for name in found
    }
    assert min(QUESTIONS, CAPTIONS) >= ENOUGH, "fewer would be too few to tell"
    assert {skill.base for skill in found.values()} == {1.0}
    values = {name: skill.adapter.value for name, skill in found.items()}
    assert values.pop("color") == 0
    assert values.pop("shape") == 0.5
    assert values.pop("plain captions") == 0, "true, but not in the plain style"
    assert set(values.values()) == {1.0}


def test_what_became_worse_is_said() -> None:
    effects = measured(["counting"])
    assert effects.harmful
    (line,) = effects.lines()
    assert line.startswith("other skills became worse")
    assert "color 100 % -> 0.0 % (0.0 to 10.9), shape 100 % -> 50.0 %" in line
    assert "plain captions 100 % -> 0.0 %" in line
    assert "existence" not in line


def test_what_it_was_trained_for_is_no_side_effect() -> None:
    assert not measured(["color", "shape"], captions=False).harmful
    everything = measured(QUESTION_TYPES, captions=False)
    assert everything.skills == ()
    assert everything.lines() == ["other skills: it was trained for all of them"]


def test_one_as_good_as_its_base_does_no_harm() -> None:
    effects = measured([], (None, None), captions=False)
    assert not effects.harmful
    assert "none is worse beyond the noise (224 questions" in effects.lines()[0]


def test_they_are_those_of_the_version(load_shared: Callable[[str], LoadedModel], tmp_path: Path) -> None:
    vilt, store = load_shared("vilt-mini"), AdapterStore()
    for seed, scale in ((1, 1.0), (2, 1e-6)):
        folder = write_random_adapter(vilt, tmp_path / f"made-{seed}", seed=seed, scale=scale)
        manifest = write_manifest(vilt, folder, skill=answer("counting"), prompt="{question}")
        store.add("skill", folder, manifest, replace=True)
    engine = BaseEngine(vilt, store)
    former, current = (measuring.side_effects(engine, store.get(name)) for name in ("skill@1", "skill"))
    engine.restore_base()
    assert former is not None
    assert former.harmful
    assert current is not None
    assert all(skill.base == skill.adapter.value for skill in current.skills)


@pytest.mark.parametrize("model", ["blip2-opt-mini", "vilt-mini"])
def test_the_figures_are_those_of_the_evaluation(
    model: str, load_shared: Callable[[str], LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_effects, "QUESTIONS", 6)
    monkeypatch.setattr(side_effects, "CAPTIONS", 4)
    base, prompt = load_shared(model), "{question}" if model == "vilt-mini" else "Question: {question} Answer:"
    folder = write_random_adapter(base, tmp_path / "made" / "odd", "light", scale=0.8)
    AdapterStore().add("odd", folder, write_manifest(base, folder, skill=answer("counting"), prompt=prompt))
    system = VQASystem(workspace=Workspace("mini", load=lambda _: base))
    found = system.side_effects(model, "odd")
    assert found is not None
    kinds = [skill for skill in found.skills if skill.name in QUESTION_TYPES]
    assert len(kinds) == len(QUESTION_TYPES) - 1
    for skill in kinds:
        examples = side_effects._some_questions(skill.name)
        alone, adapted = (system.evaluate(model, name, examples=examples) for name in (None, "odd"))
        assert (skill.base, skill.adapter.value) == (alone.accuracy.value, adapted.accuracy.value), skill.name
    system.workspace.bases.clear()
