"""Whoever answers on a base while adapters are trained on it notices nothing."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.data.scenes import Scene
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.training.joint import train_adapters
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter
from lorax_vlm.types import GenerationSettings
from tests.adapters_for_tests import write_random_adapter
from tests.training.test_joint import FAMILIES, make_plans

SETTINGS = GenerationSettings(max_new_tokens=6)


def state_of(base: LoadedModel) -> dict[str, object]:
    """Everything about a model that a training might leave behind."""
    modules = {name: type(module) for name, module in base.model.named_modules()}
    flags = {name: (module.training, "forward" in vars(module)) for name, module in base.model.named_modules()}
    attention = base.model.language_model.config._attn_implementation if base.entry.captions else ""
    return {
        "modules": modules,
        "flags": flags,
        "attention": attention,
        "tensors": {name: t.clone() for name, t in base.model.state_dict().items()},
        "trained": [name for name, p in base.model.named_parameters() if p.requires_grad],
    }


def assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    tensors, now = before.pop("tensors"), after.pop("tensors")
    assert isinstance(tensors, dict)
    assert isinstance(now, dict)
    assert all(torch.equal(tensor, now[name]) for name, tensor in tensors.items())
    assert before == after


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
def test_answers_are_the_same_during_a_training_and_after_it(
    name: str, together: bool, load_shared: Callable[[str], LoadedModel], scenes: list[Scene], tmp_path: Path
) -> None:
    base = load_shared(name)
    attached = AttachedAdapters(base)
    attached.attach("other", write_random_adapter(base, tmp_path / "other", "light"))
    question = base.entry.question_prompt("How many shapes are there?")
    rows: list[str | None] = [None, "other", None]

    def ask() -> list[str]:
        # New objects each time, so that features are not those remembered from before the training.
        pictures = [scene.image.copy() for scene in scenes[:3]]
        return [said.text for said in attached.generate(rows, pictures, [question] * 3, SETTINGS)]

    expected, before = ask(), state_of(base)
    assert ask() == expected
    ended, failures = threading.Event(), []

    def train() -> None:
        try:
            plans = make_plans(base)
            if together:
                longer = [dataclasses.replace(p, config=dataclasses.replace(p.config, max_steps=8)) for p in plans]
                train_adapters(base, longer, tmp_path / "run", progress=False)
            else:
                recipe = Recipe("sees", 4, ("lm-qv", "vision") if base.entry.captions else ("lm-qv",))
                train_adapter(
                    base,
                    AdapterPlan("adapter", recipe, plans[0].data, plans[0].config),
                    tmp_path / "run",
                    progress=False,
                )
        except Exception as error:
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=train)
    thread.start()
    answers = []
    while not ended.is_set():
        attached._seen._known.clear()  # every picture is looked at again
        answers.append(ask())
    thread.join()
    assert not failures
    assert len(answers) > 2
    assert all(answer == expected for answer in answers)
    assert ask() == expected
    assert_same(before, state_of(base))
    attached.detach_all()


def test_a_copy_has_the_bases_tensors_and_none_of_its_modules(mini: LoadedModel, tmp_path: Path) -> None:
    attached = AttachedAdapters(mini)
    attached.attach("other", write_random_adapter(mini, tmp_path / "other", "heavy"))
    twin = mini.plain_copy()
    own, theirs = dict(mini.model.named_parameters()), dict(twin.model.named_parameters())
    assert {name.replace(".base_layer", "") for name in own} == set(theirs)
    assert all(theirs[name.replace(".base_layer", "")] is parameter for name, parameter in own.items())
    assert not set(map(id, mini.model.modules())) & set(map(id, twin.model.modules()))
    assert twin.model.config is not mini.model.config
    assert twin.fingerprint is mini.fingerprint
    attached.detach_all()
