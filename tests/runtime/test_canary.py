"""The canary: recorded when an adapter is stored, and heard when it no longer answers the same."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.runtime.canary import check_canary
from lorax_vlm.runtime.library import AdapterLibrary
from tests.adapters_for_tests import write_manifest, write_random_adapter

MINIS = ("blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini")


@pytest.fixture(params=MINIS)
def library(
    request: pytest.FixtureRequest, load_shared: Callable[[str], LoadedModel], store: AdapterStore, tmp_path: Path
) -> Iterator[AdapterLibrary]:
    base = load_shared(request.param)
    library = AdapterLibrary(base.entry, lambda: base, store)
    folder = write_random_adapter(base, tmp_path / "one", scale=1.0)
    write_manifest(base, folder, prompt=base.entry.question_template)
    library.load(folder)
    library.restore_base()
    yield library
    library.restore_base()


def test_it_is_recorded_and_answers_the_same(library: AdapterLibrary) -> None:
    stored = library.store.get("one")
    canary = stored.manifest.canary
    assert canary is not None
    assert canary.largest_change > 0.01
    assert canary.base.digest != canary.adapted.digest
    attached = AttachedAdapters(library.base)
    report = check_canary(attached, stored.folder, stored.manifest)
    attached.detach_all()
    assert report is not None
    assert report.agrees
    assert report.exact or library.base.family.name == "vilt", "ViLT shuffles its patches"


def test_an_adapter_that_answers_otherwise_is_heard(library: AdapterLibrary, tmp_path: Path) -> None:
    stored = library.store.get("one")
    folder = write_random_adapter(library.base, tmp_path / "other", seed=5, scale=1.0)
    attached = AttachedAdapters(library.base)
    unsealed = dataclasses.replace(stored.manifest, files={})
    report = check_canary(attached, folder, unsealed)
    assert report is not None
    assert not report.agrees
    assert "of the largest" in report.reason
    silent = dataclasses.replace(unsealed, canary=None)
    assert check_canary(attached, folder, silent) is None
    attached.detach_all()


def test_the_adapted_weights_are_recorded(library: AdapterLibrary) -> None:
    manifest = library.store.get("one").manifest
    assert manifest.base is not None
    assert set(manifest.base.adapted) == set(manifest.sites)
    names = [f"{site}.weight" for site in library.store.files("one").sites]
    (part,) = manifest.base.adapted.values()
    assert part.digest == library.base.fingerprint.digest_of(names)
