"""Everything asked of ``B A`` without forming it, against numpy on the formed matrix."""

import numpy as np
import pytest

from lorax_vlm.adapters.factors import Update, read_updates, total_distance, total_norm
from lorax_vlm.adapters.files import read_adapter
from lorax_vlm.models.loading import LoadedModel
from tests.adapters_for_tests import edit_config, write_random_adapter


def random_update(rng: np.random.Generator, width_out: int, width_in: int, rank: int) -> Update:
    return Update(rng.standard_normal((rank, width_in)), rng.standard_normal((width_out, rank)))


@pytest.mark.parametrize(("width_out", "width_in", "rank"), [(9, 7, 3), (4, 12, 6), (5, 5, 1), (3, 20, 8)])
def test_against_the_formed_matrix(width_out: int, width_in: int, rank: int) -> None:
    rng = np.random.default_rng(rank)
    one, other = (random_update(rng, width_out, width_in, rank) for _ in range(2))
    first, second = one.b @ one.a, other.b @ other.a
    expected = np.linalg.svd(first, compute_uv=False)
    count = min(rank, width_out, width_in)
    assert np.allclose(np.sort(one.singular_values)[::-1][:count], expected[:count])
    assert one.norm == pytest.approx(np.linalg.norm(first))
    assert one.dot(other) == pytest.approx((first * second).sum())
    assert one.cosine(other) == pytest.approx((first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second))
    assert one.distance(other) == pytest.approx(np.linalg.norm(first - second) / np.linalg.norm(first))
    both = one + other * -0.5
    assert np.allclose(both.b @ both.a, first - 0.5 * second)
    assert both.rank == 2 * rank


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_truncation_is_the_best_there_is(kept: int) -> None:
    update = random_update(np.random.default_rng(0), 10, 8, 5)
    u, s, vt = np.linalg.svd(update.b @ update.a)
    best = (u[:, :kept] * s[:kept]) @ vt[:kept]
    short = update.truncated(kept)
    assert np.allclose(short.b @ short.a, best)
    assert short.rank == kept
    assert np.allclose(np.linalg.norm(short.a), np.linalg.norm(short.b)), "the factors are of equal size"


def test_effective_rank_and_rank_by_hand() -> None:
    """Singular values 3 and 4: shares of the energy 9/25 and 16/25."""
    update = Update(np.diag([3.0, 4.0]), np.eye(2))
    shares = np.array([9, 16]) / 25
    assert update.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert (update.rank_for(0.64), update.rank_for(0.65), update.rank_for(1.0)) == (1, 2, 2)
    equal = Update(np.eye(4), np.eye(4))
    assert equal.effective_rank == pytest.approx(4)
    nothing = Update(np.zeros((2, 3)), np.zeros((4, 2)))
    assert (nothing.norm, nothing.effective_rank, nothing.rank_for(), nothing.cosine(update * 1)) == (0, 0, 0, 0)


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"alpha_pattern": {"layers.0.self_attn.q_proj": 3}}])
def test_updates_of_a_file_are_pefts_deltas(mini: LoadedModel, tmp_path, config: dict) -> None:
    import warnings

    from peft import PeftModel

    from lorax_vlm.models.loading import load_model

    folder = write_random_adapter(mini, tmp_path / "a")
    edit_config(folder, **config)
    updates = read_updates(read_adapter(folder, "a"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load_model("blip2-opt-mini").model, str(folder))
    norm = 0.0
    for site, update in updates.items():
        delta = model.base_model.model.get_submodule(site).get_delta_weight("default").double().numpy()
        assert np.allclose(update.b @ update.a, delta, atol=1e-6), site
        norm += float(np.linalg.norm(delta) ** 2)
    assert total_norm(updates) == pytest.approx(norm**0.5, rel=1e-5)


def test_nothing_is_infinitely_far_from_something() -> None:
    one = random_update(np.random.default_rng(0), 6, 5, 2)
    nothing = Update(one.a, one.b * 0)
    assert total_distance({"site": nothing}, {"site": one}) == np.inf
    assert total_distance({"site": one}, {"site": nothing}) == pytest.approx(1.0)
    assert total_distance({"site": nothing}, {"site": nothing}) == 0
