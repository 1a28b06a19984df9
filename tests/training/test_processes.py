"""Several processes train what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import TrainingError
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.training.joint import train_adapters
from tests.training.joint_run import uneven_plans

TOLERANCE = 1e-7  # in double precision


def run_processes(count: int, module: str, *arguments: object, code: int = 0, **variables: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", module]
    ended = subprocess.run(
        [*command, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode != 0) == bool(code), ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blip2-opt-mini", pytest.param("vilt-mini", marks=pytest.mark.slow)])
def test_two_processes_train_the_adapters_of_one(name: str, tmp_path: Path) -> None:
    run_processes(2, "tests.training.joint_run", name, tmp_path / "two")
    base = load_model(name, dtype="float32")
    base.model.double()
    for key, result in train_adapters(base, uneven_plans(base), tmp_path / "one", progress=False).items():
        expected = load_file(result.folder / WEIGHTS_FILE)
        found = load_file(tmp_path / "two" / result.folder.relative_to(tmp_path / "one") / WEIGHTS_FILE)
        assert expected.keys() == found.keys()
        for tensor, value in expected.items():
            assert value.allclose(found[tensor], atol=TOLERANCE), (key, tensor)


def test_a_launcher_that_asks_for_sharding_is_refused(mini: LoadedModel, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainingError, match="every process holds the whole frozen base"):
        train_adapters(mini, uneven_plans(mini), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_whose_process_dies_continues_with_one_process(tmp_path: Path) -> None:
    run_processes(2, "tests.training.joint_run", "blip2-opt-mini", tmp_path / "killed", code=1, DIE_AT_STEP="3")
    base = load_model("blip2-opt-mini", dtype="float32")
    base.model.double()
    train_adapters(base, uneven_plans(base), tmp_path / "killed", progress=False, resume=True)
    for result in train_adapters(base, uneven_plans(base), tmp_path / "whole", progress=False).values():
        found = tmp_path / "killed" / result.folder.relative_to(tmp_path / "whole") / WEIGHTS_FILE
        resumed = load_file(found)
        for tensor, value in load_file(result.folder / WEIGHTS_FILE).items():
            assert value.allclose(resumed[tensor], atol=TOLERANCE), tensor


@pytest.mark.slow
def test_the_command_under_two_processes_prints_and_stores_once(tmp_path: Path) -> None:
    printed = run_processes(
        2, "lorax_vlm.cli.main", "train", "one", "--style", "concise", "--steps", 2, "--eval-every", 2,
        "--batch-size", 3, "--store", tmp_path / "store", LORAX_VLM_HOME=str(tmp_path),
    )  # fmt: skip
    assert printed.count("one, version 1") == 1
    assert AdapterStore(tmp_path / "store").names() == ["one"]
