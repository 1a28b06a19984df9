"""Which adapter is meant by what people type, and whose it is."""

import dataclasses
from pathlib import Path

import pytest

from lorax_vlm.adapters.manifest import BaseIdentity, Manifest
from lorax_vlm.adapters.names import DEMO_TAG
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import (
    AdapterExists,
    AdapterNameError,
    AdapterNotFound,
    AmbiguousAdapter,
    LoraxError,
    PathError,
    UntrainedAdapter,
)
from lorax_vlm.skills import answer, caption

STORED = {
    "concise": "blip2-opt-mini",
    "counting": "blip2-flan-mini",
    "blip2-opt-mini.counting": "blip2-opt-mini",
    "vilt-mini.counting": "vilt-mini",
    "vilt-mini.yes_no": "vilt-mini",
    "blip2-opt-2.7b.colours": "Salesforce/blip2-opt-2.7b",
    "instructblip-mini.shape": "instructblip-mini",
    "vilt-mini.shape": "vilt-mini",
    "my.own.name": "vilt-mini",
    "foreign": None,
}


def manifest(base: str | None, **changes: object) -> Manifest:
    identity = BaseIdentity(base, "vilt", {}, {}) if base is not None else None
    made = Manifest(name="a", skill=answer("counting"), base=identity, trained=True)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def filled(store: AdapterStore, adapter_folder: Path) -> AdapterStore:
    for name, base in STORED.items():
        store.add(name, adapter_folder, manifest(base))
    return store


@pytest.mark.parametrize(
    ("typed", "model", "meant"),
    [
        ("concise", None, "concise"),
        ("concise@2", None, "concise@2"),
        ("concise@stable", None, "concise@stable"),
        ("blip2-opt-mini.concise", None, "concise"),
        ("counting", None, "counting"),
        ("counting", "blip2-opt-mini", "blip2-opt-mini.counting"),
        ("counting@3", "blip2-opt-mini", "blip2-opt-mini.counting@3"),
        ("counting", "vilt-mini", "vilt-mini.counting"),
        ("counting", "blip2-flan-mini", "counting"),
        ("blip2-flan-mini.counting", None, "counting"),
        ("blip2-opt-mini.counting", None, "blip2-opt-mini.counting"),
        ("blip2-opt-mini.counting", "vilt-mini", "blip2-opt-mini.counting"),
        ("yes_no", None, "vilt-mini.yes_no"),
        ("colours", None, "blip2-opt-2.7b.colours"),
        ("colours", "blip2_opt", "blip2-opt-2.7b.colours"),
        ("colours", "Salesforce/blip2-opt-2.7b", "blip2-opt-2.7b.colours"),
        ("colours", "blip2-opt-2.7b", "blip2-opt-2.7b.colours"),
        ("shape", "instructblip-mini", "instructblip-mini.shape"),
        ("counting", "instructblip-mini", "counting"),
        ("foreign", "vilt-mini", "foreign"),
        ("my.own.name", None, "my.own.name"),
    ],
)
def test_what_is_meant(filled: AdapterStore, typed: str, model: str | None, meant: str) -> None:
    assert filled.resolve(typed, model) == meant


@pytest.mark.parametrize(
    ("typed", "model"),
    [
        ("countin", None),
        ("own.name", None),
        ("name", None),
        ("7b.colours", None),
        ("vilt-mini.concise", None),
        ("yes_no", "blip2-opt-mini"),
        ("vilt-mini.foreign", None),
    ],
)
def test_what_is_not_there_names_the_nearest(filled: AdapterStore, typed: str, model: str | None) -> None:
    with pytest.raises(AdapterNotFound, match=f"Nearest of {len(STORED)}: [^,]+, [^,]+, [^,]+[.] See"):
        filled.resolve(typed, model)


def test_the_nearest_come_first(filled: AdapterStore) -> None:
    with pytest.raises(AdapterNotFound, match="Nearest of 10: counting, "):
        filled.resolve("countin")
    with pytest.raises(AdapterNotFound, match=r"Nearest of 10: vilt-mini\.yes_no, "):
        filled.get("yes-no")


def test_what_may_be_several(filled: AdapterStore) -> None:
    with pytest.raises(AmbiguousAdapter, match=r"any of instructblip-mini\.shape, vilt-mini\.shape") as caught:
        filled.resolve("shape")
    assert caught.value.meant == ["instructblip-mini.shape", "vilt-mini.shape"]
    with pytest.raises(AdapterNameError):
        filled.resolve("../shape")


def test_a_damaged_entry_is_still_meant(filled: AdapterStore) -> None:
    (filled.get("counting").folder / "exchange.json").write_text("{")
    assert filled.resolve("counting") == "counting"
    assert filled.resolve("counting", "vilt-mini") == "vilt-mini.counting"


def test_a_demonstration_replaces_only_its_own(store: AdapterStore, adapter_folder: Path) -> None:
    store.add("mine", adapter_folder, manifest(None))
    demo = AdapterStore(store.root)
    with pytest.raises(AdapterExists, match="no demonstration made it"):
        demo.claim(["new", "mine"])
    demo.claim(["new"])
    assert demo.add("new", adapter_folder, manifest(None), replace=True).tags == (DEMO_TAG,)
    store.tag("new", add=["liked"])
    again = AdapterStore(store.root)
    again.claim(["new"])
    stored = again.add("new", adapter_folder, manifest(None, skill=caption("other")), replace=True)
    assert (stored.version, stored.tags) == (2, (DEMO_TAG, "liked"))


def test_a_name_that_somebody_took_meanwhile_is_left_alone(store: AdapterStore, adapter_folder: Path) -> None:
    demo = AdapterStore(store.root)
    demo.claim(["one", "two"])
    store.add("one", adapter_folder, manifest(None))
    with pytest.raises(AdapterExists, match="another store"):
        demo.add("one", adapter_folder, manifest(None, skill=caption("demo")), replace=True)
    demo.add("two", adapter_folder, manifest(None))
    own = store.add("two", adapter_folder, manifest(None, skill=caption("own")), replace=True)
    assert own.tags == (), "what somebody trained over a demonstration's is theirs"
    with pytest.raises(AdapterExists):
        AdapterStore(store.root).claim(["two"])


def test_a_store_is_tried_before_a_run(tmp_path: Path) -> None:
    AdapterStore(tmp_path / "new").require_writable()
    assert AdapterStore(tmp_path / "new").verify().leftovers == ()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/store")):
        with pytest.raises(PathError):
            AdapterStore(place).require_writable()


@pytest.mark.parametrize(
    "error",
    [
        AdapterNotFound("a", "store", ["b"]),
        AmbiguousAdapter("a", "store", ["x.a", "y.a"]),
        AdapterExists("a", "store"),
        AdapterExists("a", "store", "base"),
        AdapterExists("a", "store", taken=True),
        UntrainedAdapter("a"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_to_do_next_is_said_to_programs_too(error: LoraxError) -> None:
    assert error.next
    assert str(error).endswith(error.next)
    assert error.facts["adapter"] == "a"
