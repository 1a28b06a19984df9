"""Folders of runs: one's own, and gone when the run is, even one that was killed."""

from pathlib import Path

from filelock import FileLock

from lorax_vlm.adapters.durable import run_folder


def test_what_a_killed_run_left_is_removed_and_what_one_at_work_holds_is_not(tmp_path: Path) -> None:
    left, held = tmp_path / "run-left", tmp_path / "run-held"
    for folder in (left, held):
        folder.mkdir()
        (folder / "checkpoint").write_text("large")
        Path(f"{folder}.lock").touch()
    with FileLock(f"{held}.lock"), run_folder(tmp_path) as own, run_folder(tmp_path) as other:
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted(
            [held.name, own.name, other.name]
        )
        assert own != other
    assert sorted(path.name for path in tmp_path.iterdir()) == [held.name, f"{held.name}.lock"]
