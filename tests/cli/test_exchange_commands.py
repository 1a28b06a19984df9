"""Checking, versions, files and signatures from the command line: what it prints, and its exit codes."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.cli.main import main
from lorax_vlm.models.fingerprint import read_fingerprint
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.multimodal import MultiModalLoRAExchange
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.skills import caption
from lorax_vlm.workshop.intake import take_in
from tests.adapters_for_tests import identify, write_manifest, write_random_adapter


@pytest.fixture
def known(load_shared) -> None:
    """The weights of two miniatures have been read."""
    for name in ("blip2-opt-mini", "blip2-flan-mini"):
        read_fingerprint(load_shared(name).folder)


def test_check(run, stored: AdapterStore, known: None, tmp_path: Path, mini: LoadedModel) -> None:
    assert "exact: it was made for this base" in run("adapters", "check", "one")
    plain = write_random_adapter(mini, tmp_path / "plain", "light")
    assert "loadable but unverified" in run("adapters", "check", plain, "--model", "blip2-opt-mini")
    assert "does not say which base" in run("adapters", "check", plain, code=2)
    assert "No adapter 'missing'" in run("adapters", "check", "missing", code=1)
    assert "lorax-vlm models fingerprint" in run("adapters", "check", "one", "--model", "blip2-opt-2.7b", code=1)


def test_the_canary_tells_who_answers_otherwise(run, known: None, tmp_path: Path, mini: LoadedModel) -> None:
    store = AdapterStore()
    engine = BaseEngine(mini, store)
    for seed, name in enumerate(("one", "other")):
        folder = write_random_adapter(mini, tmp_path / name, seed=seed, scale=1.0)
        write_manifest(mini, folder, prompt=mini.entry.question_template)
        take_in(engine, folder, name)
    engine.restore_base()
    one, other = (store.get(name).manifest for name in ("one", "other"))
    assert "answers as recorded: byte for byte" in run("adapters", "check", "one", "--canary")
    assert json.loads(run("adapters", "check", "one", "--canary", "--json"))["canary"]["exact"]
    store.add("liar", store.get("other").folder, dataclasses.replace(other, name="liar", canary=one.canary))
    run("adapters", "check", "liar")
    run("adapters", "check", "liar", "--canary", code=1)
    store.add("silent", store.get("other").folder, dataclasses.replace(other, name="silent", canary=None))
    run("adapters", "check", "silent", "--canary", code=1)


def test_an_opt_adapter_is_refused_on_flan_with_every_reason(
    stored: AdapterStore, known: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT loads this one as a silent no-op."""
    command = ["lorax-vlm", "adapters", "check", "one", "--model", "blip2-flan-mini", "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["verdict"] == "refused"
    sites = stored.read("one")[1].sites
    assert sum("no linear layer of this base" in reason for reason in report["reasons"]) == len(sites)


def test_weights_that_were_never_read_are_unknown(run, stored: AdapterStore) -> None:
    printed = run("adapters", "check", "one")
    assert "loadable but unverified" in printed
    assert "lorax-vlm models fingerprint blip2-opt-mini" in printed
    assert "vision" in run("models", "fingerprint", "blip2-opt-mini")
    assert "exact" in run("adapters", "check", "one")


def test_matrix_and_pictures(run, stored: AdapterStore, known: None, tmp_path: Path) -> None:
    printed = run("adapters", "matrix", "-m", "blip2-opt-mini", "-m", "blip2-flan-mini", "--png", tmp_path / "m.png")
    assert "exact" in printed
    assert "L3" in printed
    record = json.loads(run("adapters", "matrix", "-m", "blip2-opt-mini", "--json"))
    assert record["adapters"] == [["one", "exact"], ["two", "exact"]]
    inspected = run("adapters", "inspect", "one", "--png", tmp_path / "i.png")
    assert "100.0 % of the squared norm" in inspected
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("m.png", "i.png"))
    assert json.loads(run("adapters", "inspect", "one", "--json"))["likely_bases"] == ["blip2-opt-mini"]


def test_versions_and_aliases(run, stored: AdapterStore, mini: LoadedModel, tmp_path: Path) -> None:
    folder = write_random_adapter(mini, tmp_path / "newer", seed=9)
    stored.add("one", folder, dataclasses.replace(write_manifest(mini, folder), skill=caption("new")), replace=True)
    assert "one@stable is version 1" in run("adapters", "alias", "one", "stable", "--version", 1)
    printed = run("adapters", "versions", "one")
    assert "in use" in printed
    assert "stable" in printed
    assert "one is version 1 now" in run("adapters", "rollback", "one")
    assert "forgotten" in run("adapters", "alias", "one", "stable", "--drop")
    assert "one: good, zoo" in run("adapters", "tag", "one", "zoo", "good")
    assert [a["name"] for a in json.loads(run("adapters", "search", "zoo", "--json"))["adapters"]] == ["one"]
    differs = run("adapters", "diff", "one@1", "one@2")
    assert "concise" in differs
    assert "cosine" in differs
    assert [v["number"] for v in json.loads(run("adapters", "versions", "one", "--json"))["versions"]] == [1, 2]


def test_verify_fails_when_something_was_changed(run, stored: AdapterStore) -> None:
    assert "All files are what their manifests say" in run("adapters", "verify")
    path = stored.get("two").folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    run("adapters", "verify", code=1)


def test_one_file_and_back(run, stored: AdapterStore, tmp_path: Path) -> None:
    bundle = tmp_path / "one.lorax"
    assert "Wrote" in run("adapters", "pack", "one", bundle)
    assert "Stored again, version 1" in run("adapters", "unpack", bundle, "--name", "again")
    assert "Stored third, version 1" in run("adapters", "pull", f"file://{bundle}", "--name", "third")
    assert "Pushed to memory://x/one.lorax" in run("adapters", "push", "one", "memory://x/one.lorax")
    assert "already exists" in run("adapters", "unpack", bundle, code=1)


def test_signing(run, stored: AdapterStore, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    from tests.sharing.test_signing import make_keys

    private, public = make_keys(tmp_path, "ours", ec.SECP256R1())
    _, theirs = make_keys(tmp_path, "theirs", ec.SECP256R1())
    assert "has no exchange.sig" in run("adapters", "verify-signature", "one", "--key", public, code=1)
    assert "Signed one" in run("adapters", "sign", "one", "--key", private)
    assert "unchanged" in run("adapters", "verify-signature", "one", "--key", public)
    assert "SignatureRefused" in run("adapters", "verify-signature", "one", "--key", theirs, code=1)


def test_plan_merge_and_fold(run, stored: AdapterStore, known: None, mini: LoadedModel, tmp_path: Path) -> None:
    run("exchange", "plan", "one", "--to", "blip2-flan-mini", "--images", 0, code=1)
    planned = json.loads(run("exchange", "plan", "one", "--to", "blip2-flan-mini", "--images", 100, "--json"))
    assert planned["label"] == "distilled"
    assert "cosine" in run("exchange", "merge", "one", "two", "--name", "both", "--preview")
    for name in ("one", "two"):  # adapters that say whose weights they change
        folder = stored.get(name).folder
        manifest = dataclasses.replace(stored.get(name).manifest, base=identify(mini, folder))
        stored.add(name, folder, manifest, replace=True)
    assert "stored as 'blip2-opt-mini.both'" in run("exchange", "merge", "one", "two", "--name", "both")
    from tests.exchange.test_fold import lora, write

    source = write(lora(use_dora=True), tmp_path / "dora", mini)
    assert "DoRA as plain LoRA" in run("exchange", "fold", source, tmp_path / "plain", "--model", "blip2-opt-mini")


def test_a_name_means_the_store(run, known, stored: AdapterStore, mini, tmp_path: Path, monkeypatch) -> None:
    """A folder called like an adapter does not take its place; what is written as a path is one."""
    monkeypatch.chdir(tmp_path)
    write_random_adapter(mini, tmp_path / "one", "light")
    assert "exact: it was made for this base" in run("adapters", "check", "one")
    assert "does not say which base" in run("adapters", "check", "./one", code=2)
    assert "exact" in run("adapters", "check", "blip2-opt-mini.one"), "with its base before it"
    assert "it is no folder" in run("adapters", "check", "./gone", code=1)
    (tmp_path / "one").rename(tmp_path / "only here")
    assert "rank" in run("adapters", "inspect", "only here")


def test_a_fingerprint_that_is_asked_for_is_computed(run, isolated_home: Path) -> None:
    """Whatever was kept: somebody may ask because they doubt it."""
    first = run("models", "fingerprint", "blip2-opt-mini", "--json")
    (kept,) = (isolated_home / "fingerprints").glob("*.json")
    record = json.loads(kept.read_text())
    name = sorted(record["tensors"])[0]
    record["tensors"][name][1] = "0" * 32
    kept.write_text(json.dumps(record))
    assert run("models", "fingerprint", "blip2-opt-mini", "--json") == first
    assert json.loads(kept.read_text())["tensors"][name][1] != "0" * 32


def test_a_plan_knows_the_weights_that_a_transfer_would_read(run, stored: AdapterStore, mini: LoadedModel) -> None:
    """In a new home, where no weights were ever read."""
    folder = stored.get("one").folder
    stored.add(
        "one", folder, dataclasses.replace(stored.get("one").manifest, base=identify(mini, folder)), replace=True
    )
    planned = json.loads(run("exchange", "plan", "one", "--to", "blip2-flan-mini", "--images", 220, "--json"))
    exchange = MultiModalLoRAExchange("mini", store=stored.root)
    assert planned["label"] == exchange.plan_transfer("one", "blip2_flan", images=220).label
    assert "never read" not in json.dumps(planned)
