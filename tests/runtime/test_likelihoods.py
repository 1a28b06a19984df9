"""How likely texts are: what transformers' own generation says of their tokens, with different adapters by row."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import AdapterNotFound
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.requests import Request, ScoringEngine
from lorax_vlm.runtime.engine import BaseEngine
from tests.adapters_for_tests import write_manifest, write_random_adapter


@torch.no_grad()
def by_library(base: LoadedModel, model: object, scene: Scene, question: str) -> tuple[str, float]:
    """A greedy answer, and the geometric mean of the probabilities that its tokens were chosen with."""
    processor = base.family.processor
    inputs = processor(
        images=scene.image, text=base.entry.question_template.format(question=question), return_tensors="pt"
    )
    wanted = {"max_new_tokens": 10, "num_beams": 1, "do_sample": False}
    said = model.generate(**inputs, **wanted, output_scores=True, return_dict_in_generate=True)  # type: ignore[attr-defined]
    tokens = said.sequences[0, -len(said.scores) :]
    text = processor.decode(tokens, skip_special_tokens=True).strip()
    logs = [scores[0].log_softmax(-1)[token] for scores, token in zip(said.scores, tokens, strict=True)]
    return text, float(torch.stack(logs).mean().exp())


@pytest.mark.parametrize("name", ["blip2-opt-mini", "blip2-flan-mini", "instructblip-mini"])
def test_the_likelihood_of_what_was_said_is_the_librarys(
    name: str, load_shared: Callable[[str], LoadedModel], scenes: list[Scene], tmp_path: Path
) -> None:
    base, store = load_shared(name), AdapterStore(tmp_path / "store")
    for number, adapter in enumerate("ab"):
        folder = write_random_adapter(base, tmp_path / adapter, seed=number, scale=0.05)
        store.add(adapter, folder, write_manifest(base, folder, prompt=base.entry.question_template))
    engine, question = BaseEngine(base, store), "How many shapes are there?"
    rows = [(scene, adapter) for scene in scenes[:4] for adapter in (None, "a", "b")]
    expected = {None: base.model}
    for adapter in "ab":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft_model = PeftModel.from_pretrained(copy.deepcopy(base.model), str(store.get(adapter).folder)).eval()
        expected[adapter] = peft_model.base_model.model
    known = [by_library(base, expected[adapter], scene, question) for scene, adapter in rows]
    requests = [Request.about(scene.image, question, adapter) for scene, adapter in rows]
    found = engine.likelihoods(requests, [text for text, _ in known])
    assert found == pytest.approx([likelihood for _, likelihood in known], rel=1e-4)
    assert len({round(likelihood, 5) for likelihood in found}) > 6, "they are not all alike"


def test_what_was_not_said_is_less_likely_and_nothing_is_never(
    mini: LoadedModel, scenes: list[Scene], tmp_path: Path
) -> None:
    engine: ScoringEngine = BaseEngine(mini, AdapterStore(tmp_path))
    requests = [Request.about(scene.image) for scene in scenes[:3] for _ in range(3)]
    texts = [text for scene in scenes[:3] for text in (scene.caption("plain"), "a zebra on a bicycle", " ")]
    found = engine.likelihoods(requests, texts)
    for right, wrong, nothing in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert 1 >= right > 100 * wrong > 0 == nothing
    with pytest.raises(AdapterNotFound):
        engine.likelihoods([Request.about(scenes[0].image, None, "nobody")], ["a cat"])
