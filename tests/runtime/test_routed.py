"""A batch may mix any adapters and plain rows: every row is what it would be alone, merged, or in plain PEFT."""

import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.data.scenes import Scene
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime import routed as routed_module
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.runtime.weights import AdapterWeights
from lorax_vlm.types import GenerationSettings
from tests.adapters_for_tests import EVERYWHERE, write_random_adapter

TOLERANCE = 2e-4  # float32, products in another order, over logits of about 10
FAMILIES = ["blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini"]
ROWS = ["small", None, "large", "small", "everywhere", None, "large"]
STRATEGIES = {"concatenated": 10**6, "gathered": 0}
QUESTIONS = ["Where is the red circle?", "How many shapes are there?", "What color is it?"]


@pytest.fixture(params=FAMILIES)
def base(request, load_shared: Callable[[str], LoadedModel]) -> LoadedModel:
    return load_shared(request.param)


@pytest.fixture
def folders(base: LoadedModel, tmp_path: Path) -> dict[str, Path]:
    """Three ranks, and sites that differ."""
    recipes = {
        "small": Recipe("small", rank=2, groups=("lm-qv",), alpha=5),
        "large": Recipe("large", rank=12, groups=("lm-attention", "lm-mlp")),
        "everywhere": Recipe("everywhere", rank=3, groups=("lm-mlp",)) if base.family.name == "vilt" else EVERYWHERE,
    }
    return {
        name: write_random_adapter(base, tmp_path / name, recipe, seed=seed)
        for seed, (name, recipe) in enumerate(recipes.items(), start=1)
    }


@pytest.fixture
def adapters(base: LoadedModel, folders: dict[str, Path]) -> Iterator[AttachedAdapters]:
    attached = AttachedAdapters(base)
    for name, folder in folders.items():
        attached.attach(name, folder)
    yield attached
    attached.detach_all()


def make_batch(base: LoadedModel, scenes: list[Scene], rows: int = len(ROWS)) -> dict[str, Tensor]:
    pixels = base.family.prepare([scene.image for scene in scenes[:rows]])
    prompts = [QUESTIONS[index % 3] for index in range(rows)]
    batch = base.family.training_batch(pixels, prompts, ["yes"] * rows)
    batch.pop("labels")
    return batch


@torch.no_grad()
def logits(model, batch: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)  # ViLT shuffles its patches
    return model(**batch).logits


def row_of(batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    return {key: value[index : index + 1] for key, value in batch.items()}


@pytest.mark.parametrize("limit", STRATEGIES.values(), ids=STRATEGIES)
def test_every_row_of_a_mixed_batch_is_what_it_is_alone(
    base: LoadedModel, adapters: AttachedAdapters, scenes: list[Scene], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(base, scenes)
    plain = logits(base.model, batch)
    with monkeypatch.context() as patch, adapters.routed(ROWS) as model:
        patch.setattr(routed_module, "MAX_CONCATENATED", limit)
        mixed = logits(model, batch)
    for index, name in enumerate(ROWS):
        if name is None:
            assert torch.equal(mixed[index], plain[index]), "a plain row is the base's to the last bit"
            continue
        assert (mixed[index] - plain[index]).abs().max() > 0.01
        with adapters.using(name) as model:
            assert torch.allclose(logits(model, row_of(batch, index))[0], mixed[index], atol=TOLERANCE)
            assert torch.allclose(logits(model, batch)[index], mixed[index], atol=TOLERANCE)
    assert torch.equal(logits(base.model, batch), plain)


def merged(base: LoadedModel, folder: Path, undo: bool = False) -> None:
    """Add an adapter's product to the base's own weights by hand."""
    files, tensors = read_adapter_files(folder, "it"), load_file(folder / WEIGHTS_FILE)
    scale = files.config["lora_alpha"] / files.config["r"]
    for site in files.sites:
        a, b = (tensors[f"base_model.model.{site}.lora_{factor}.weight"] for factor in "AB")
        base.model.get_submodule(site).weight.data += (-scale if undo else scale) * (b @ a)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_mixed_batch_is_merged_weights_and_plain_peft(
    base: LoadedModel, adapters: AttachedAdapters, folders: dict[str, Path], scenes: list[Scene]
) -> None:
    batch = make_batch(base, scenes)
    with adapters.routed(ROWS) as model:
        mixed = logits(model, batch)
    adapters.detach_all()
    state = {key: value.clone() for key, value in base.model.state_dict().items()}
    for name, folder in folders.items():
        wanted = [index for index, row in enumerate(ROWS) if row == name]
        merged(base, folder)
        by_hand = logits(base.model, batch)[wanted]
        base.model.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft_model = PeftModel.from_pretrained(base.model, str(folder)).eval()
        by_peft = logits(peft_model, batch)[wanted]
        peft_model.unload()
        base.model.requires_grad_(False)
        assert torch.allclose(mixed[wanted], by_hand, atol=TOLERANCE)
        assert torch.allclose(mixed[wanted], by_peft, atol=TOLERANCE)


SETTINGS = {
    "greedy": GenerationSettings(max_new_tokens=8),
    "beams": GenerationSettings(max_new_tokens=8, num_beams=3),
    "sampling": GenerationSettings(max_new_tokens=8, temperature=0.9, seed=3),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_generation(
    base: LoadedModel, adapters: AttachedAdapters, scenes: list[Scene], settings: GenerationSettings
) -> None:
    """Rows are repeated by beam search and flattened by OPT; with a seed, a row draws the same wherever it stands."""
    pixels = base.family.prepare([scene.image for scene in scenes[: len(ROWS)]])
    prompts = [QUESTIONS[index % 3] for index in range(len(ROWS))]

    def answer(rows: list[str | None]) -> list[object]:
        with adapters.routed(rows) as model, torch.no_grad():
            features = base.family.encode_images(model, pixels, prompts)
            seeds = range(len(rows)) if settings.seed is not None else None
            return list(base.family.generate(model, features, prompts, settings, seeds))

    mixed = answer(ROWS)
    for name in dict.fromkeys(ROWS):
        all_rows = answer([name] * len(ROWS))
        wanted = [index for index, row in enumerate(ROWS) if row == name]
        assert [mixed[index] for index in wanted] == [all_rows[index] for index in wanted]
    assert mixed != answer([None] * len(ROWS))


def test_rows_that_cannot_be_dealt_out_are_refused(
    mini: LoadedModel, adapters_of_mini: AttachedAdapters, scenes: list[Scene]
) -> None:
    batch = make_batch(mini, scenes, 3)
    with pytest.raises(ValueError, match=r"positions cannot be those of 7 rows"), adapters_of_mini.routed(["it"] * 7):
        logits(mini.model, batch)
    with pytest.raises(ValueError, match="at least one row"), adapters_of_mini.routed([]):
        pass


@pytest.fixture
def adapters_of_mini(mini: LoadedModel, adapter_folder: Path) -> Iterator[AttachedAdapters]:
    attached = AttachedAdapters(mini)
    attached.attach("it", adapter_folder)
    yield attached
    attached.detach_all()


def test_an_exception_leaves_no_routing_and_no_hook(
    mini: LoadedModel, adapters_of_mini: AttachedAdapters, scenes: list[Scene]
) -> None:
    batch = make_batch(mini, scenes, 2)
    plain = logits(mini.model, batch)
    with pytest.raises(KeyError), adapters_of_mini.routed(["it", None]):
        raise KeyError
    assert torch.equal(logits(mini.model, batch), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in mini.model.modules())
    adapters_of_mini.detach_all()
    assert not any(isinstance(m, routed_module.RoutedLinear) for m in mini.model.modules())


def test_threads_share_a_base_at_the_same_time(
    mini: LoadedModel, adapters_of_mini: AttachedAdapters, scenes: list[Scene]
) -> None:
    """Both are inside their blocks before either computes: a lock around the base would never let them meet."""
    batch = make_batch(mini, scenes, 2)
    expected = {}
    for rows in (("it", None), (None, "it")):
        with adapters_of_mini.routed(rows) as model:
            expected[rows] = logits(model, batch)
    meeting = threading.Barrier(2, timeout=30)
    seen: dict[tuple[str | None, ...], list[Tensor]] = {rows: [] for rows in expected}

    def ask(rows: tuple[str | None, ...]) -> None:
        for _ in range(10):
            with adapters_of_mini.routed(rows) as model:
                meeting.wait()
                seen[rows].append(logits(model, batch))

    threads = [threading.Thread(target=ask, args=(rows,)) for rows in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {rows: len(found) for rows, found in seen.items()} == dict.fromkeys(expected, 10)
    assert all(torch.equal(one, expected[rows]) for rows, found in seen.items() for one in found)


def pair(seed: int, rank: int = 2) -> AdapterWeights:
    """An adapter of one site, ``see``, 6 wide; its B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, 6, generator=generator), torch.randn(6, rank, generator=generator)
    return AdapterWeights({"see": (a, b)})


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("kinds", ["two", "many"])
def test_rows_of_different_lengths_get_their_own_updates(unit: int, kinds: str) -> None:
    """An image path lays images out one after the other: of each as many positions as its size asks for.

    A layer may see a unit of the lengths as several positions, or several units as one.
    """
    one, two, others = pair(1), pair(2, rank=3), [pair(seed) for seed in range(3, 9)]
    rows = [one, None, two, one] if kinds == "two" else [one, None, two, *others]
    lengths = [8, 4, 20, 4, 12, 4, 4, 8, 4][: len(rows)]
    layer = routed_module.RoutedLinear(torch.nn.Linear(6, 6), "see")
    for counts in ([unit * length for length in lengths], [length // 4 for length in lengths]):
        parts = [torch.randn(count, 6) for count in counts]
        with routed_module.routed(rows, lengths), torch.no_grad():
            together = layer(torch.cat(parts)[None])[0].split(counts)
        for row, part, found in zip(rows, parts, together, strict=True):
            with routed_module.routed([row]), torch.no_grad():
                assert torch.allclose(found, layer(part), atol=1e-5)


def test_an_even_share_would_be_wrong_in_silence() -> None:
    rows, lengths = [pair(1), None], [8, 4]
    layer, x = routed_module.RoutedLinear(torch.nn.Linear(6, 6), "see"), torch.randn(1, 12, 6)
    with torch.no_grad():
        with routed_module.routed(rows):
            even = layer(x)
        with routed_module.routed(rows, lengths):
            assert (even - layer(x)).abs().max() > 0.1


def test_positions_that_are_not_those_of_the_lengths_are_refused() -> None:
    layer = routed_module.RoutedLinear(torch.nn.Linear(6, 6), "see")
    with routed_module.routed([pair(1), None], [8, 4]), torch.no_grad():
        with pytest.raises(ValueError, match=r"18 positions cannot be those of rows of the lengths \[8, 4\]"):
            layer(torch.randn(18, 6))
        with pytest.raises(ValueError, match="2 positions cannot be those"):
            layer(torch.randn(2, 6))  # a sixth of 8 is no whole number
    with pytest.raises(ValueError, match="2 rows cannot have 3 lengths"), routed_module.routed([None, None], [1, 2, 3]):
        pass
