"""The command line in process, and a store with two adapters."""

import sys
from pathlib import Path

import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.cli.main import main
from lorax_vlm.evaluation import side_effects
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.training import probe
from tests.adapters_for_tests import write_manifest, write_random_adapter


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def call(*arguments: object, code: int | tuple[int, ...] = 0) -> str:
        codes = (code,) if isinstance(code, int) else code
        monkeypatch.setattr(sys, "argv", ["lorax-vlm", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert (stop.value.code or 0) in codes, captured.out + captured.err
        return captured.out if code == 0 else captured.err

    return call


@pytest.fixture(autouse=True)
def few_other_skills(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluation ask for other skills, and look at the image path: here a few questions are enough."""
    monkeypatch.setattr(side_effects, "QUESTIONS", 2)
    monkeypatch.setattr(side_effects, "CAPTIONS", 2)
    monkeypatch.setattr(probe, "MOST", probe.FEWEST)
    monkeypatch.setattr(probe, "GROUPS", 1)


@pytest.fixture
def stored(mini: LoadedModel, tmp_path: Path) -> AdapterStore:
    """Two adapters in the default store."""
    store = AdapterStore()
    for seed, name in enumerate(("one", "two")):
        folder = write_random_adapter(mini, tmp_path / "made" / name, seed=seed, scale=0.6)
        store.add(name, folder, write_manifest(mini, folder, rank=8, sites={"lm": 12}))
    return store
