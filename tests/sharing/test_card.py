"""The model card, read back by the hub's own library."""

import dataclasses

import pytest
from huggingface_hub import ModelCard

from lorax_vlm.adapters.manifest import Manifest, Measurement
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.sharing.card import write_card
from lorax_vlm.skills import answer, caption
from tests.adapters_for_tests import identify


@pytest.fixture
def manifest(mini: LoadedModel) -> Manifest:
    measured = Measurement("exact match", 'scenes, counting: "500" held out', 0.984, 0.969, 0.993, 500)
    return Manifest("counting", answer("counting"), identify(mini), trained=True, metrics=(measured,), licence="MIT")


def test_the_hub_lists_it_under_its_base_with_its_figures(manifest: Manifest) -> None:
    data = ModelCard(write_card(manifest)).data
    assert (data.base_model, data.base_model_relation, data.library_name) == ("blip2-opt-mini", "adapter", "peft")
    assert (data.pipeline_tag, data.license) == ("visual-question-answering", "mit")
    assert {"lora", "lorax-vlm", "answer"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("exact match", 0.984)
    assert result.dataset_name == manifest.metrics[0].data


def test_what_is_not_known_is_not_said(manifest: Manifest) -> None:
    bare = dataclasses.replace(manifest, skill=None, base=None, metrics=(), licence="Research only")
    data = ModelCard(write_card(bare)).data
    assert data.base_model is None
    assert data.eval_results is None
    assert (data.license, data.license_name) == ("other", "Research only")
    assert (
        ModelCard(write_card(dataclasses.replace(bare, skill=caption("concise")))).data.pipeline_tag == "image-to-text"
    )
