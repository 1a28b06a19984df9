"""The matrix says of every adapter and base what a plan with images then finds."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.exchange.matrix import build_matrix
from lorax_vlm.exchange.plan import plan_transfer
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.models.spec import site_groups
from lorax_vlm.skills import Skill, answer, caption
from tests.adapters_for_tests import write_manifest, write_random_adapter
from tests.exchange.test_plan import FAMILIES

SKILLS = [caption("concise"), answer("vqa"), None]
MOVED = {
    "exact": {"exact"},
    "L0": {"exact"},
    "L1": {"component-copy"},
    "L2": {"approximate"},
    "L3": {"distilled"},
    "L4": {"distilled-mapped"},
    "L5": {"refused"},
    "?": {"refused"},
}


@pytest.mark.parametrize("recipe", ["light", "portable"])
@pytest.mark.parametrize("named", [True, False], ids=["of a base", "of plain PEFT"])
@pytest.mark.parametrize("skill", SKILLS, ids=str)
def test_the_matrix_promises_what_the_plan_keeps(
    load_shared: Callable[[str], LoadedModel],
    store: AdapterStore,
    tmp_path: Path,
    skill: Skill | None,
    named: bool,
    recipe: str,
) -> None:
    bases = [load_shared(name) for name in FAMILIES]
    prompt = "Question: {question} Answer:" if skill is not None and skill.asked else ""
    adapted = [base for base in bases if recipe == "light" or "vision" in site_groups(base.entry.family)]
    for base in adapted:
        folder = write_random_adapter(base, tmp_path / base.entry.name, recipe)
        manifest = write_manifest(base, folder, skill=skill, prompt=prompt)
        if not named:
            manifest = dataclasses.replace(manifest, base=None)
        store.add(folder.name, folder, manifest)
    described = [dataclasses.replace(base.description, fingerprint=base.fingerprint) for base in bases]
    matrix = build_matrix(store, described)
    assert len(matrix.adapters) == len(adapted) >= 3
    words = set()
    for name in matrix.adapters:
        stored, files = store.read_bytes(name)
        for base in described:
            word = matrix.word(name, base.name)
            plan = plan_transfer(files, stored.manifest, base, images=100)
            assert plan.label in MOVED[word], (name, base.name, plan.lines())
            words.add(word)
    assert words <= {"L5", "?"} if not named else "exact" in words
