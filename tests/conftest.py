"""Every test has its own home folder; the miniature is loaded once and must be left plain."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import by the hub's client
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of several processes, and for those that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.scenes import Scene, iterate_scenes
from lorax_vlm.models.loading import LoadedModel, load_model
from tests.adapters_for_tests import write_random_adapter
from tests.workspaces_for_tests import shared_workspace


@pytest.fixture(autouse=True)
def isolated_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("LORAX_VLM_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def _loaded() -> dict[str, LoadedModel]:
    return {}


@pytest.fixture
def load_shared(_loaded: dict[str, LoadedModel]) -> Iterator[Callable[[str], LoadedModel]]:
    """Loads a miniature once per session; every test must leave it plain."""

    def load(name: str) -> LoadedModel:
        if name not in _loaded:
            _loaded[name] = load_model(name)
        return _loaded[name]

    yield load
    for base in _loaded.values():
        assert not any("lora_" in name for name, _ in base.model.named_modules()), "the test left adapters behind"
        assert not base.model.training
        assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.fixture(scope="session")
def shared_mini(_loaded: dict[str, LoadedModel]) -> LoadedModel:
    return _loaded.setdefault("blip2-opt-mini", load_model("blip2-opt-mini"))


@pytest.fixture
def mini(load_shared: Callable[[str], LoadedModel]) -> LoadedModel:
    return load_shared("blip2-opt-mini")


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    return list(iterate_scenes("test", 12))


@pytest.fixture
def system(load_shared: Callable[[str], LoadedModel], tmp_path: Path) -> Iterator[BLIP2CaptioningSystem]:
    """A captioning system on the shared miniature with a store of its own."""
    with shared_workspace(load_shared, tmp_path / "store", batch_size=8) as workspace:
        yield BLIP2CaptioningSystem("blip2-opt-mini", workspace=workspace)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


@pytest.fixture
def adapter_folder(mini: LoadedModel, tmp_path: Path) -> Path:
    """A random medium adapter saved as plain PEFT saves it."""
    return write_random_adapter(mini, tmp_path / "saved" / "random-medium")


@pytest.fixture(autouse=True)
def two_threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
