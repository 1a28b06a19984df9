"""The canary: recorded when an adapter is stored, and heard when it no longer answers the same."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import PromptError
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.runtime.canary import CanaryReport, check_canary, take_canary
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.workshop.intake import take_in
from tests.adapters_for_tests import edit_config, edit_weights, identify, write_manifest, write_random_adapter

MINIS = ("blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini")


@pytest.fixture(params=MINIS)
def engine(
    request: pytest.FixtureRequest, load_shared: Callable[[str], LoadedModel], store: AdapterStore, tmp_path: Path
) -> Iterator[BaseEngine]:
    base = load_shared(request.param)
    engine = BaseEngine(base, store)
    folder = write_random_adapter(base, tmp_path / "one", scale=1.0)
    write_manifest(base, folder, prompt=base.entry.question_template)
    take_in(engine, folder)
    engine.restore_base()
    yield engine
    engine.restore_base()


def test_it_is_recorded_and_answers_the_same(engine: BaseEngine) -> None:
    stored = engine.store.get("one")
    canary = stored.manifest.canary
    assert canary is not None
    assert canary.largest_change > 0.01
    assert canary.base.digest != canary.adapted.digest
    attached = AttachedAdapters(engine.base)
    report = check_canary(attached, stored.folder, stored.manifest)
    attached.detach_all()
    assert report is not None
    assert report.agrees
    assert report.exact or engine.base.family.name == "vilt", "ViLT shuffles its patches"


def test_an_adapter_that_answers_otherwise_is_heard(engine: BaseEngine, tmp_path: Path) -> None:
    stored = engine.store.get("one")
    folder = write_random_adapter(engine.base, tmp_path / "other", seed=5, scale=1.0)
    attached = AttachedAdapters(engine.base)
    unsealed = dataclasses.replace(stored.manifest, files={})
    report = check_canary(attached, folder, unsealed)
    assert report is not None
    assert not report.agrees
    assert "of its size from the recorded one" in report.reason
    silent = dataclasses.replace(unsealed, canary=None)
    assert check_canary(attached, folder, silent) is None
    attached.detach_all()


def test_the_adapted_weights_are_recorded(engine: BaseEngine) -> None:
    manifest = engine.store.get("one").manifest
    assert manifest.base is not None
    assert set(manifest.base.adapted) == set(manifest.sites)
    names = [f"{site}.weight" for site in engine.store.read("one")[1].sites]
    (part,) = manifest.base.adapted.values()
    assert part.digest == engine.base.fingerprint.digest_of(names)


# --- what it adds, not what the base says -----------------------------------------------------------------------------


@pytest.fixture(
    scope="module", params=[("blip2-opt-mini", "float32"), ("blip2-opt-mini", "bfloat16"), ("vilt-mini", "bfloat16")]
)
def attached(request: pytest.FixtureRequest) -> AttachedAdapters:
    name, dtype = request.param
    return AttachedAdapters(load_model(name, dtype=dtype))


def record(attached: AttachedAdapters, folder: Path, **changes: object) -> Manifest:
    base = attached.base
    manifest = Manifest("x", None, identify(base), True, prompt=base.entry.question_template)
    manifest = dataclasses.replace(manifest, training={"best_step": 0})
    canary = take_canary(attached, folder, manifest)
    return dataclasses.replace(manifest, canary=dataclasses.replace(canary, **changes))  # type: ignore[arg-type]


def ask(attached: AttachedAdapters, folder: Path, manifest: Manifest) -> CanaryReport:
    report = check_canary(attached, folder, manifest)
    assert report is not None
    return report


@pytest.mark.parametrize("scale", [0.01, 0.05, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("old", [False, True], ids=["", "recorded by an older version"])
def test_only_the_adapter_itself_agrees(attached: AttachedAdapters, scale: float, old: bool, tmp_path: Path) -> None:
    """Whatever it changes, one that does nothing, does half, or the opposite, never answers as recorded."""
    own = write_random_adapter(attached.base, tmp_path / "own", scale=scale)
    manifest = record(attached, own, **({"change": None} if old else {}))
    assert manifest.canary is not None
    again = ask(attached, own, manifest)
    assert again.agrees or not again.tells or attached.base.family.name == "vilt"
    nothing = write_random_adapter(attached.base, tmp_path / "nothing", scale=1e-6)
    for report in (ask(attached, nothing, manifest), ask(attached, write(attached, tmp_path, -1.0, scale), manifest)):
        assert not report.agrees
    if scale >= 0.6 and not old:
        assert ask(attached, nothing, manifest).tells, "such a change is larger than what rounding makes"
        assert not ask(attached, write(attached, tmp_path, 0.5, scale), manifest).agrees


def write(attached: AttachedAdapters, folder: Path, factor: float, scale: float) -> Path:
    """The adapter of a scale, its whole update times a factor."""
    made = write_random_adapter(attached.base, folder / f"times {factor}", scale=scale)
    edit_config(made, lora_alpha=json.loads((made / "adapter_config.json").read_text())["lora_alpha"] * factor)
    return made


def test_what_changed_nothing_when_it_was_recorded_is_not_told(attached: AttachedAdapters, tmp_path: Path) -> None:
    """As of a training that found nothing better than the base."""
    folder = write_random_adapter(attached.base, tmp_path / "identity")
    names = load_file(folder / "adapter_model.safetensors")
    edit_weights(folder, {key: tensor * 0 for key, tensor in names.items() if "lora_B" in key})
    report = ask(attached, folder, record(attached, folder))
    assert not report.agrees
    assert not report.tells
    assert "changed no logit" in report.reason


def test_a_record_in_32_bits_holds_in_16(mini: LoadedModel, tmp_path: Path) -> None:
    exact, coarse = AttachedAdapters(mini), AttachedAdapters(load_model("blip2-opt-mini", dtype="bfloat16"))
    for scale, tells in ((1.0, True), (0.02, False)):
        folder = write_random_adapter(mini, tmp_path / f"{scale}", scale=scale)
        report = ask(coarse, folder, record(exact, folder))
        assert (report.agrees, report.tells) == (tells, tells), report.reason
    exact.detach_all()


ODD = {
    "no places": {"change": []},
    "places that are none": {"change": [(-1, 1.0), (10**9, 1.0)]},
    "no largest logits": {"change": None, "base": None},
    "a prompt of a thousand words": {"prompt": "word " * 1000},
}


@pytest.mark.parametrize("changes", ODD.values(), ids=ODD)
def test_records_of_anybody(changes: dict, mini: LoadedModel, tmp_path: Path) -> None:
    attached = AttachedAdapters(mini)
    folder = write_random_adapter(mini, tmp_path / "a", scale=1.0)
    manifest = record(attached, folder)
    assert manifest.canary is not None
    changes = {**changes, **({"base": dataclasses.replace(manifest.canary.base, top=[])} if "base" in changes else {})}
    manifest = dataclasses.replace(manifest, canary=dataclasses.replace(manifest.canary, **changes))
    try:
        assert not ask(attached, folder, manifest).agrees or not manifest.canary.prompt.startswith("word")
    except PromptError:
        assert manifest.canary is not None
        assert manifest.canary.prompt.startswith("word")
    attached.detach_all()
