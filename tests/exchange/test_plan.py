"""What moving an adapter would take: a table of cases, decided without loading anything."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from lorax_vlm.adapters.files import read_adapter
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.exchange.plan import TransferPlan, plan_transfer
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import answer
from tests.adapters.test_compatibility import with_changed
from tests.adapters_for_tests import write_manifest, write_random_adapter

FAMILIES = ("blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini")
PAIRS = [(source, target) for source in FAMILIES for target in FAMILIES if source != target]

Load = Callable[[str], LoadedModel]


def described(base: LoadedModel):
    return dataclasses.replace(base.description, fingerprint=base.fingerprint)


def plan(source: LoadedModel, target, folder: Path, recipe: str | Recipe = "medium", **options: object) -> TransferPlan:
    if not folder.exists():
        write_random_adapter(source, folder, recipe)
    manifest = write_manifest(source, folder, skill=answer("vqa"), prompt="Question: {question} Answer:")
    return plan_transfer(read_adapter(folder, "a"), manifest, target, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("source", "target"), PAIRS, ids="-".join)
def test_every_pair_needs_images_and_can_be_distilled_with_them(
    source: str, target: str, load_shared: Load, tmp_path: Path
) -> None:
    bases = load_shared(source), described(load_shared(target))
    without = plan(*bases, tmp_path / "a")
    assert without.refused
    assert "without unlabelled images" in without.reasons[0]
    with_images = plan(*bases, tmp_path / "a", images=100)
    assert with_images.label == ("distilled-mapped" if "vilt-mini" in (source, target) else "distilled")
    assert with_images.student_groups == ("lm-attention",)
    assert with_images.kept_share == 0
    assert with_images.copied_sites == ()


def test_the_same_base_is_loaded(mini: LoadedModel, tmp_path: Path) -> None:
    found = plan(mini, described(mini), tmp_path / "a")
    assert (found.label, found.kept_share, found.needs_images) == ("exact", 1.0, False)


def test_a_vision_adapter_is_copied_to_the_kin(load_shared: Load, mini: LoadedModel, tmp_path: Path) -> None:
    found = plan(mini, described(load_shared("blip2-flan-mini")), tmp_path / "a", "portable")
    assert found.label == "component-copy"
    assert found.kept_share == pytest.approx(1)
    assert len(found.copied_sites) == 6


def test_a_mixed_adapter_is_split(load_shared: Load, mini: LoadedModel, tmp_path: Path) -> None:
    recipe, flan = Recipe("mixed", 4, ("lm-qv", "vision")), described(load_shared("blip2-flan-mini"))
    refused = plan(mini, flan, tmp_path / "a", recipe)
    assert refused.label == "refused"
    assert any("allow_partial" in reason for reason in refused.reasons)
    partial = plan(mini, flan, tmp_path / "a", recipe, allow_partial=True)
    assert partial.label == "component-copy"
    assert {part.component: part.strategy for part in partial.parts} == {"lm": "drop", "vision": "copy"}
    shares = {part.component: part.share for part in partial.parts}
    assert sum(shares.values()) == pytest.approx(1)
    assert partial.kept_share == pytest.approx(shares["vision"])
    both = plan(mini, flan, tmp_path / "a", recipe, images=10)
    assert {part.component: part.strategy for part in both.parts} == {"lm": "distil", "vision": "copy"}
    assert both.label == "distilled"


@pytest.mark.parametrize(("distance", "label"), [(0.05, "approximate"), (0.5, "refused")])
def test_close_weights_are_copied_and_far_ones_are_not(
    mini: LoadedModel, tmp_path: Path, distance: float, label: str
) -> None:
    folder = write_random_adapter(mini, tmp_path / "a")
    sites = read_adapter(folder, "a").files.sites
    target = with_changed(described(mini), *(f"{site}.weight" for site in sites), distance=distance)
    assert plan(mini, target, folder).label == label


def test_untrained_and_unknown_ones_are_refused(mini: LoadedModel, load_shared: Load, tmp_path: Path) -> None:
    folder = write_random_adapter(mini, tmp_path / "a", "portable")
    files, flan = read_adapter(folder, "a"), described(load_shared("blip2-flan-mini"))
    untrained = write_manifest(mini, folder, trained=False)
    assert any("never trained" in reason for reason in plan_transfer(files, untrained, flan).reasons)
    unknown = dataclasses.replace(untrained, trained=True, base=None)
    found = plan_transfer(files, unknown, flan, images=100)
    assert found.refused
    assert any("nothing says which base" in reason for reason in found.reasons)


def test_it_can_be_printed(load_shared: Load, mini: LoadedModel, tmp_path: Path) -> None:
    found = plan(mini, described(load_shared("blip2-flan-mini")), tmp_path / "a", images=100)
    assert found.lines()[0] == "a: blip2-opt-mini -> blip2-flan-mini: distilled"
    assert "100.0 % of the update" in found.lines()[1]
