"""What the shipped miniatures promise."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lorax_vlm.models.catalog import CATALOG, MINIATURE_KEYS, MINIS_DIR

MINIS = [entry for entry in CATALOG if entry.miniature]


def vision_of(name: str) -> dict[str, torch.Tensor]:
    weights = load_file(MINIS_DIR / name / "model.safetensors")
    return {key: value for key, value in weights.items() if key.startswith("vision_model.")}


@pytest.mark.parametrize("name", ["blip2-flan-mini", "instructblip-mini"])
def test_the_kin_share_the_vision_encoder_bit_for_bit(name: str) -> None:
    first, other = vision_of("blip2-opt-mini"), vision_of(name)
    assert len(first) > 40
    assert first.keys() == other.keys()
    assert all(torch.equal(first[key], other[key]) for key in first)


def test_together_they_are_small_and_hold_no_pickles() -> None:
    files = [path for path in MINIS_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20_000_000
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    assert {entry.name for entry in MINIS} == set(MINIATURE_KEYS.values())


@pytest.mark.parametrize("entry", MINIS, ids=lambda entry: entry.name)
def test_cards_and_catalogue_agree(entry) -> None:
    figures = json.loads((MINIS_DIR / entry.name / "figures.json").read_text())
    assert entry.parameters == figures["parameters"]
    assert figures["base_skills"] >= (0.90 if entry.family == "vilt" else 0.95)
    assert figures["questions"]["counting"]["exact"] < 0.5
    card = (MINIS_DIR / entry.name / "README.md").read_text()
    assert f"{figures['base_skills']:.2%}" in card
