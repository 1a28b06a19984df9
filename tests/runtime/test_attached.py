"""Adapters on a base: checked first, in effect within their block only, apart between threads."""

import gc
import shutil
import threading
from pathlib import Path

import pytest
import torch

from lorax_vlm.adapters.compatibility import check_compatibility
from lorax_vlm.adapters.files import AdapterBytes
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.recipe import get_recipe
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import AdapterNotFound, DamagedAdapter, IncompatibleAdapter, UntrainedAdapter
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.training.copies import write_untrained_adapter
from lorax_vlm.types import GenerationSettings
from tests.adapters_for_tests import EVERYWHERE, edit_config, write_manifest, write_random_adapter


@pytest.fixture
def adapters(mini: LoadedModel):
    attached = AttachedAdapters(mini)
    yield attached
    attached.detach_all()


@torch.no_grad()
def logits(mini: LoadedModel, scenes: list[Scene]) -> torch.Tensor:
    batch = mini.family.training_batch(
        mini.family.prepare([scene.image for scene in scenes[:3]]), ["", "a", "b c"], ["x", "y", "z"]
    )
    batch.pop("labels")
    return mini.model(**batch).logits


def test_in_effect_inside_the_block_only(adapters, mini, scenes, tmp_path: Path) -> None:
    base = logits(mini, scenes)
    adapters.attach("one", write_random_adapter(mini, tmp_path / "one", seed=1))
    adapters.attach("two", write_random_adapter(mini, tmp_path / "two", EVERYWHERE, seed=2))
    assert torch.equal(logits(mini, scenes), base), "attaching alone changes nothing"
    seen = {}
    for name in ("one", "two", "one"):
        with adapters.using(name):
            now = logits(mini, scenes)
        assert torch.equal(seen.setdefault(name, now), now)
        assert torch.equal(logits(mini, scenes), base)
    assert (seen["one"] - base).abs().max() > 0.01
    assert (seen["one"] - seen["two"]).abs().max() > 0.01
    with adapters.using(None):
        assert torch.equal(logits(mini, scenes), base)
    adapters.detach_all()
    assert torch.equal(logits(mini, scenes), base)


def test_an_exception_leaves_nothing_behind(adapters, mini, scenes, tmp_path: Path) -> None:
    base = logits(mini, scenes)
    adapters.attach("one", write_random_adapter(mini, tmp_path / "one"))
    with pytest.raises(RuntimeError, match="boom"), adapters.using("one"):
        raise RuntimeError("boom")
    assert torch.equal(logits(mini, scenes), base)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in mini.model.modules())


def test_detaching_one_keeps_the_others(adapters, mini, scenes, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two"), start=1):
        adapters.attach(name, write_random_adapter(mini, tmp_path / name, seed=seed))
    with adapters.using("two"):
        before = logits(mini, scenes)
    adapters.detach("one")
    assert adapters.names == ["two"]
    with adapters.using("two"):
        assert torch.equal(logits(mini, scenes), before)
    with pytest.raises(AdapterNotFound, match="There: two"):
        adapters.detach("one")


def test_attaching_a_name_again_replaces_it(adapters, mini, scenes, tmp_path: Path) -> None:
    adapters.attach("one", write_random_adapter(mini, tmp_path / "a", seed=1))
    with adapters.using("one"):
        first = logits(mini, scenes)
    adapters.attach("one", write_random_adapter(mini, tmp_path / "b", seed=2))
    with adapters.using("one"):
        assert not torch.equal(logits(mini, scenes), first)
    assert adapters.names == ["one"]


def test_an_unknown_name_never_means_the_base(adapters) -> None:
    with pytest.raises(AdapterNotFound), adapters.using("nobody"):
        pass


def test_a_refused_adapter_leaves_base_and_others_unchanged(adapters, mini, scenes, tmp_path: Path) -> None:
    adapters.attach("good", write_random_adapter(mini, tmp_path / "good"))
    with adapters.using("good"):
        before = logits(mini, scenes)
    bad = write_random_adapter(mini, tmp_path / "bad")
    edit_config(bad, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1"])
    with pytest.raises(IncompatibleAdapter, match="named by its target_modules, but not in the adapter"):
        adapters.attach("bad", bad)
    assert adapters.names == ["good"]
    with adapters.using("good"):
        assert torch.equal(logits(mini, scenes), before)


def test_an_adapter_that_changes_nothing(adapters, mini, scenes, tmp_path: Path) -> None:
    folder = write_untrained_adapter(mini, get_recipe("light"), tmp_path / "zero")
    with pytest.raises(UntrainedAdapter, match="changes nothing"):
        adapters.attach("zero", folder)
    write_manifest(mini, folder, trained=False)
    adapters.attach("zero", folder)
    base = logits(mini, scenes)
    with adapters.using("zero"):
        assert torch.equal(logits(mini, scenes), base)


def test_threads_see_their_own_adapter(adapters, mini, scenes, tmp_path: Path) -> None:
    names = ["one", "two", None]
    for seed, name in enumerate(names[:2], start=1):
        adapters.attach(name, write_random_adapter(mini, tmp_path / name, seed=seed))
    expected = {}
    for name in names:
        with adapters.using(name):
            expected[name] = logits(mini, scenes)
    wrong: list[object] = []

    def ask(name: str | None) -> None:
        for _ in range(8):
            with adapters.using(name):
                if not torch.equal(logits(mini, scenes), expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_an_adapter_on_every_component(adapters, mini, scenes, tmp_path: Path, beams: int) -> None:
    """Beam search repeats rows inside the language model; the adapter must follow."""
    adapters.attach("all", write_random_adapter(mini, tmp_path / "all", EVERYWHERE, scale=0.8))
    settings = GenerationSettings(max_new_tokens=12, num_beams=beams)
    pixels = mini.family.prepare([scene.image for scene in scenes[:4]])
    with adapters.using("all") as model, torch.no_grad():
        features = mini.family.encode_images(model, pixels)
        together = mini.family.generate(model, features, [""] * 4, settings)
        alone = [mini.family.generate(model, features[i : i + 1], [""], settings)[0] for i in range(4)]
    with adapters.using(None) as model:
        plain = mini.family.generate(model, mini.family.encode_images(model, pixels), [""] * 4, settings)
    assert together == alone
    assert together != plain


# --- what is used is what was checked ---------------------------------------------------------------------------------


def test_the_weights_that_answer_are_the_bytes_that_were_checked(
    mini: LoadedModel, scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file comes into the place between the check and the loading: it is not used."""
    folder = write_random_adapter(mini, tmp_path / "a", seed=1)
    other = write_random_adapter(mini, tmp_path / "b", seed=2)
    attached = AttachedAdapters(mini)
    attached.attach("one", folder)
    with attached.using("one"):
        expected = logits(mini, scenes)
    attached.detach_all()

    def check(*arguments: object) -> object:
        report = check_compatibility(*arguments)  # type: ignore[arg-type]
        shutil.copy(other / WEIGHTS_FILE, folder / WEIGHTS_FILE)
        return report

    monkeypatch.setattr("lorax_vlm.runtime.attached.check_compatibility", check)
    attached.attach("one", folder)
    with attached.using("one"):
        assert torch.equal(logits(mini, scenes), expected)
    attached.detach_all()


def test_a_folder_that_changed_is_read_when_it_is_attached_and_refused_when_it_comes_back(
    mini: LoadedModel, scenes: list[Scene], tmp_path: Path
) -> None:
    folder = write_random_adapter(mini, tmp_path / "a", seed=1)
    other = write_random_adapter(mini, tmp_path / "b", seed=2)
    attached = AttachedAdapters(mini)
    attached.attach("one", folder)
    with attached.using("one"):
        first = logits(mini, scenes)
    shutil.copy(other / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    with attached.using("one"):
        assert torch.equal(logits(mini, scenes), first), "what was attached stays"
    attached.attach("one", folder)
    with attached.using("one"):
        assert not torch.equal(logits(mini, scenes), first), "attaching again reads again"
    attached._resident.clear()  # as when others need the room
    with attached.using("one"):
        pass
    shutil.copy(write_random_adapter(mini, tmp_path / "c", seed=3) / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    attached._resident.clear()
    with pytest.raises(DamagedAdapter, match="was changed"), attached.using("one"):
        pass
    attached.detach_all()


def test_adapters_that_are_listed_or_in_use_hold_no_file(
    mini: LoadedModel, store: AdapterStore, tmp_path: Path
) -> None:
    """Bytes of files live from the check to the loading, and no longer."""
    folder = write_random_adapter(mini, tmp_path / "a")
    store.add("one", folder, write_manifest(mini, folder))
    engine = BaseEngine(mini, store)
    found = engine.find("one")
    listed, files = store.list(), store.read("one")[1]
    assert found is not None
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is AdapterBytes]
    assert (listed, files.sites) != ([], [])
    engine.restore_base()


def test_a_stored_adapter_whose_record_was_changed_is_not_used(
    mini: LoadedModel, store: AdapterStore, tmp_path: Path
) -> None:
    folder = write_random_adapter(mini, tmp_path / "a")
    stored = store.add("one", folder, write_manifest(mini, folder, prompt="a photo of"))
    file = stored.folder / "exchange.json"
    file.chmod(0o644)
    file.write_text(file.read_text().replace("a photo of", "a drawing of"))
    engine = BaseEngine(mini, store)
    with pytest.raises(DamagedAdapter, match=r"exchange\.json was changed"):
        engine.find("one")
    engine.restore_base()
