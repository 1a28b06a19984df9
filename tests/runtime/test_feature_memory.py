"""An image seen before is not encoded again; what is remembered is the image's, and bounded."""

import pytest
import torch
from PIL import Image

from lorax_vlm.data.scenes import Scene
from lorax_vlm.models.families.image_path import Blip2ImagePath
from lorax_vlm.models.families.pictures import Features, Picture
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.runtime.feature_memory import FeatureMemory
from lorax_vlm.types import GenerationSettings
from tests.adapters_for_tests import EVERYWHERE, write_random_adapter


def test_the_least_recently_used_leave_and_equal_images_are_encoded_once() -> None:
    encoded: list[list[int]] = []

    def encode(places: list[int]) -> list[Features]:
        encoded.append(places)
        return [Features(torch.full((1, 25), float(place))) for place in places]  # 100 bytes each

    memory = FeatureMemory(budget_bytes=200)
    first = memory.features(["a", "b", "a"], encode)
    assert [int(row.values[0, 0]) for row in first] == [2, 1, 2]
    memory.features(["a"], encode)
    memory.features(["c"], encode)
    memory.features(["a", "b"], encode)
    assert encoded == [[2, 1], [0], [1]], "b left when c came, a had been used since"


def test_one_that_stays_does_not_keep_its_batch() -> None:
    batch = torch.zeros(50, 4, 25)
    [kept] = FeatureMemory().features(["a"], lambda places: [Features(batch[0])])
    assert kept.values.untyped_storage().nbytes() == kept.nbytes


def test_the_key_is_the_content() -> None:
    pixels = torch.rand(3, 4, 4)
    one = Picture({"pixel_values": pixels})
    others = [
        Picture({"pixel_values": pixels + 1e-6}),
        Picture({"pixel_values": pixels}, (1, 2)),
        Picture({"p": pixels}),
    ]
    assert one.digest("x") == Picture({"pixel_values": pixels.clone()}).digest("x")
    assert len({one.digest("x"), one.digest("y"), *(other.digest("x") for other in others)}) == 5


def test_an_image_is_encoded_once_for_all_calls(
    mini: LoadedModel, scenes: list[Scene], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    original = Blip2ImagePath.encode_images

    def counted(self, model, pixels, prompts=()):
        counts.append(len(pixels))
        return original(self, model, pixels, prompts)

    monkeypatch.setattr(Blip2ImagePath, "encode_images", counted)
    settings, attached = GenerationSettings(max_new_tokens=12), AttachedAdapters(mini)
    attached.attach("words", write_random_adapter(mini, tmp_path / "words"))
    attached.attach("eyes", write_random_adapter(mini, tmp_path / "eyes", EVERYWHERE, seed=3, scale=1.0))
    image, other = scenes[0].image, scenes[1].image

    def ask(rows: list[str | None], pictures: list[Image.Image]) -> list[str]:
        return [text.text for text in attached.generate(rows, pictures, [""] * len(rows), settings)]

    try:
        plain, words = ask([None, "words"], [image, image])
        assert counts == [1]
        assert ask(["words"], [image.copy()]) == [words]
        assert counts == [1], "an equal image, another object"
        ask([None], [other])
        eyes = ask(["eyes"], [image])
        assert counts == [1, 1, 1], "an adapter that changes the image path looks for itself"
        assert ask([None], [image]) == [plain] != eyes
        assert counts == [1, 1, 1]
    finally:
        attached.detach_all()
