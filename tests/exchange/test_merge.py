"""Merging: exact where it says so, PEFT's own numbers where PEFT does it, and a preview worked by hand."""

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorax_vlm.adapters.factors import Update, read_updates, total_distance
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import AdapterExists, IncompatibleAdapter, UsageError
from lorax_vlm.exchange.merge import (
    METHODS,
    Method,
    exact_sum,
    merge_adapters,
    merge_updates,
    preview_merge,
    preview_stored,
)
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.workshop.intake import take_in
from tests.adapters_for_tests import identify, write_manifest, write_random_adapter

MINI = "blip2-opt-mini"


def random_updates(seed: int, rank: int, sites: tuple[str, ...] = ("a", "b")) -> dict[str, Update]:
    rng = np.random.default_rng(seed)
    return {site: Update(rng.standard_normal((rank, 12)), rng.standard_normal((10, rank))) for site in sites}


def whole(update: Update) -> np.ndarray:
    return update.b @ update.a


def test_cat_is_the_weighted_sum_of_different_ranks_and_sites() -> None:
    one, other = random_updates(0, 3), random_updates(1, 5, ("b", "c"))
    merged = merge_updates([one, other], [0.5, -2.0], "cat")
    assert np.allclose(whole(merged["a"]), 0.5 * whole(one["a"]))
    assert np.allclose(whole(merged["b"]), 0.5 * whole(one["b"]) - 2 * whole(other["b"]))
    assert np.allclose(whole(merged["c"]), -2 * whole(other["c"]))
    assert (merged["a"].rank, merged["b"].rank) == (3, 8)


def test_svd_is_the_best_sum_of_that_rank() -> None:
    updates = [random_updates(seed, 4) for seed in (0, 1)]
    merged = merge_updates(updates, [1, 1], "svd", rank=5)
    for site, update in merged.items():
        u, s, vt = np.linalg.svd(whole(updates[0][site]) + whole(updates[1][site]))
        assert np.allclose(whole(update), (u[:, :5] * s[:5]) @ vt[:5])


def test_linear_is_the_sum_without_cross_terms() -> None:
    """PEFT's plain ``linear`` adds products of one adapter's A with another's B; on whole updates it does not."""
    updates = [random_updates(seed, 2) for seed in (0, 1)]
    merged = merge_updates(updates, [0.7, 0.3], "linear", rank=4)
    for site, update in merged.items():
        assert np.allclose(whole(update), 0.7 * whole(updates[0][site]) + 0.3 * whole(updates[1][site]), atol=1e-4)


def test_ties_by_hand() -> None:
    """One place each: kept are the larger half of the values, then only the side whose sum is larger counts."""
    a = np.array([[4.0, -3.0, 0.1, 2.0]])
    b = np.array([[-1.0, -3.5, 5.0, 0.2]])
    one, other = ({"s": Update(row, np.ones((1, 1)))} for row in (a, b))
    merged = whole(merge_updates([one, other], [1.0, 1.0], "ties", rank=1, density=0.5)["s"])
    # Kept of a: 4 and -3; of b: -3.5 and 5. Where both stay with one sign they are averaged.
    assert np.allclose(merged, [[4.0, -3.25, 5.0, 0.0]], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_with_one_that_does_nothing_it_is_an_identity(method: Method) -> None:
    """PEFT alone fails this for rsLoRA, DoRA and biases, without an error; here everything is folded first."""
    one = random_updates(0, 4)
    nothing = {site: update * 0.0 for site, update in one.items()}
    weights = [1.0, 1.0]
    merged = merge_updates([one, nothing], weights, method, rank=8, density=1.0)
    for site, update in merged.items():
        assert np.allclose(whole(update), whole(one[site]), atol=1e-4), method


def test_the_preview_by_hand() -> None:
    one = {"s": Update(np.array([[1.0, 0.0]]), np.array([[3.0], [0.0]]))}  # 3 at (0, 0)
    other = {"s": Update(np.array([[1.0, 1.0]]), np.array([[-4.0], [0.0]]))}  # -4 at (0, 0) and (0, 1)
    preview = preview_merge({"one": one, "other": other}, [1.0, 0.5])
    assert preview.norm_shares == pytest.approx({"one": 9 / 17, "other": 8 / 17})
    (pair,) = preview.pairs
    assert pair.cosine == pytest.approx(-6 / (3 * 8**0.5))
    assert pair.cosine_by_layer == pytest.approx({"s": pair.cosine})
    assert pair.sign_conflicts == 1.0, "the only place where both are not zero"
    assert (preview.exact_rank, preview.rank_95) == (2, 1)
    unrelated = preview_merge({"a": random_updates(0, 4), "b": random_updates(1, 4)}, [1, 1]).pairs[0]
    assert unrelated.sign_conflicts == pytest.approx(0.5, abs=0.08)
    assert any("cosine" in line for line in preview.lines())


def test_bad_orders() -> None:
    one = random_updates(0, 2)
    for arguments in (([one], [1.0, 2.0], "cat"), ([], [], "cat"), ([one], [1.0], "average")):
        with pytest.raises(ValueError, match=r"weight per adapter|Unknown method"):
            merge_updates(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 1e300, 0, True, "1", None])
def test_weights_that_are_none(weight: Any) -> None:
    with pytest.raises(UsageError, match="Weights are numbers"):
        merge_updates([random_updates(0, 2)], [weight], "cat")


@pytest.mark.parametrize(
    ("rank", "density"), [(-3, 0.5), (0, 0.5), (True, 0.5), (2.0, 0.5), (2, 0), (2, 1.5), (2, math.nan)]
)
def test_ranks_and_densities_that_are_none(rank: Any, density: Any) -> None:
    with pytest.raises(UsageError, match=r"rank is|density is"):
        merge_updates([random_updates(0, 2)] * 2, [1, 1], "ties", rank=rank, density=density)


# --- on a base --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bases(mini: LoadedModel, store: AdapterStore, tmp_path: Path) -> Iterator[Bases]:
    bases = Bases({}, store, load=lambda _: mini)
    for seed, (name, recipe) in enumerate((("one", "light"), ("two", Recipe("wide", 6, ("lm-attention",))))):
        folder = write_random_adapter(mini, tmp_path / name, recipe, seed=seed)
        write_manifest(mini, folder)
        with bases.use(MINI) as engine:
            take_in(engine, folder)
    yield bases
    bases.clear()


@torch.no_grad()
def logits(engine: BaseEngine, name: str | None, scene: Scene) -> torch.Tensor:
    base = engine.base
    features = base.family.encode_images(base.model, base.family.prepare([scene.image]))
    with engine.using(name) as model:
        return base.family.answer_logits(model, features, ["Question: How many? Answer:"])


def test_a_merged_adapter_does_what_both_weights_do(bases: Bases, scenes: list[Scene], tmp_path: Path) -> None:
    """Against the same sum merged into the base's weights by hand."""
    stored, report = merge_adapters(bases, MINI, ["one", "two"], "both", weights=[1.0, 0.5], run_dir=tmp_path / "run")
    assert (report.rank, report.error) == (10, pytest.approx(0, abs=1e-6))
    assert [(p.name, p.method, p.parameters) for p in stored.manifest.lineage] == [
        ("one", "merge-cat", {"weight": 1.0}),
        ("two", "merge-cat", {"weight": 0.5}),
    ]
    with bases.use(MINI) as engine:
        merged = logits(engine, "both", scenes[0])
    from lorax_vlm.models.loading import load_model

    plain = load_model("blip2-opt-mini")
    updates = [read_updates(bases.store.read_bytes(name)[1]) for name in ("one", "two")]
    for site, update in exact_sum([updates[0], {s: u * 0.5 for s, u in updates[1].items()}]).items():
        plain.model.get_submodule(site).weight.data += torch.as_tensor(whole(update), dtype=torch.float32)
    other = BaseEngine(plain, bases.store)
    assert torch.allclose(merged, logits(other, None, scenes[0]), atol=2e-4)
    with bases.use(MINI) as engine:
        assert not torch.allclose(merged, logits(engine, None, scenes[0]), atol=1e-2)


def test_refusals_change_nothing(
    bases: Bases, load_shared: Callable[[str], LoadedModel], mini: LoadedModel, tmp_path: Path
) -> None:
    merge = partial(merge_adapters, bases, MINI, run_dir=tmp_path / "run")
    with pytest.raises(AdapterExists):
        merge(["one", "two"], "one")
    with pytest.raises(ValueError, match="at least two"):
        merge(["one"], "x")
    flan = load_shared("blip2-flan-mini")
    folder = write_random_adapter(mini, tmp_path / "foreign", "light")
    bases.store.add(
        "foreign", folder, dataclasses.replace(write_manifest(mini, folder), base=identify(flan), name="foreign")
    )
    with pytest.raises(IncompatibleAdapter, match="another base"):
        merge(["one", "foreign"], "x")
    assert bases.store.names() == ["foreign", "one", "two"]


def test_merges_at_one_time_do_not_mix(bases: Bases, mini: LoadedModel, tmp_path: Path) -> None:
    """Two threads merge different pairs, in one place: each result is the sum of its own pair."""
    for seed, name in enumerate(("three", "four"), start=7):
        folder = write_random_adapter(mini, tmp_path / name, "light", seed=seed)
        write_manifest(mini, folder)
        with bases.use(MINI) as engine:
            take_in(engine, folder)
    pairs, failed = {"a": ["one", "two"], "b": ["three", "four"]}, []
    start = threading.Barrier(2)

    def merge(pair: str) -> None:
        own = Bases({}, AdapterStore(bases.store.root), load=lambda _: mini)
        start.wait()
        for number in range(4):
            try:
                merge_adapters(own, MINI, pairs[pair], f"{pair}{number}", run_dir=tmp_path / "run")
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=merge, args=(pair,)) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert not list((tmp_path / "run").iterdir()), "each has removed its own folder"
    updates = {name: read_updates(bases.store.read_bytes(name)[1]) for name in bases.store.names()}
    for pair, names in pairs.items():
        expected = exact_sum([updates[name] for name in names])
        for number in range(4):
            assert total_distance(expected, updates[f"{pair}{number}"]) < 1e-6


def test_no_weights_are_not_weights_of_one(store: AdapterStore) -> None:
    with pytest.raises(UsageError, match="One weight per adapter is needed, got 0 for 2"):
        preview_stored(store, ["one", "two"], [], "cat", None)
