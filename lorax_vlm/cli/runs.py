"""``lorax-vlm runs``: trainings that are under way, or wait to be gone on with. No torch."""

import dataclasses
import json
from typing import Annotated, Any

import typer

from lorax_vlm.cli.options import AsJson
from lorax_vlm.cli.output import print_json, print_table, say
from lorax_vlm.settings import runs_dir
from lorax_vlm.training.run_list import RunState, find_run, list_runs, stop_run
from lorax_vlm.training.runs import RUN_FILE

Name = Annotated[str, typer.Argument(help="Of the adapter, or of the run's folder.")]

app = typer.Typer(help="Trainings that are under way, or wait to be gone on with.", no_args_is_help=True)


@app.callback()
def runs() -> None:
    """A group of commands."""


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the runs that are not finished and stored. The same command with --resume goes on with one."""
    found = list(list_runs(runs_dir()))
    if as_json:
        print_json([_record(run) for run in found])
        return
    if not found:
        say(f"No run is under way or waits in {runs_dir()}.")
        return
    rows = [(run.name, run.base, run.state, f"{run.step} of {run.steps}", run.changed) for run in found]
    print_table(["name", "base", "state", "steps kept", "changed (UTC)"], rows)


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a run: where it is, what it was started with."""
    run = find_run(runs_dir(), name)
    settings = json.loads((run.folder / RUN_FILE).read_text(encoding="utf-8"))["settings"]
    if as_json:
        print_json({**_record(run), "settings": settings})
        return
    for what, value in _record(run).items():
        say(f"{what}: {value}")
    for label, part in settings.items() if run.adapters else [("", settings)]:
        for key, value in part.get("config", {}).items():
            say(f"{label + ' ' if label else ''}{key}: {value}")


@app.command()
def stop(name: Name) -> None:
    """Interrupt a run of this machine, as Ctrl-C does; --resume goes on from its last checkpoint."""
    run = find_run(runs_dir(), name)
    stop_run(run)
    say(f"Interrupted {run.name}, {run.held_by}. Its last checkpoint is of step {run.step}.")


def _record(run: RunState) -> dict[str, Any]:
    return {**dataclasses.asdict(run), "state": run.state}
