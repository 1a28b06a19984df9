"""``lorax-vlm runs``: trainings that are under way, or wait to be gone on with. No torch."""

import dataclasses
from typing import Annotated, Any

import typer

from lorax_vlm.cli.options import AsJson
from lorax_vlm.cli.output import flag, print_json, print_table, say
from lorax_vlm.settings import runs_dir
from lorax_vlm.training.run_list import RunState, find_run, list_runs, stop_run

Name = Annotated[str, typer.Argument(help="Of the adapter, or of the run's folder.")]

app = typer.Typer(help="Trainings that are under way, or wait to be gone on with.", no_args_is_help=True)


@app.callback()
def runs() -> None:
    """A group of commands."""


@app.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List the runs that are not finished and stored. The same command with --resume goes on with one."""
    found, broken = list_runs(runs_dir())
    if as_json:
        print_json({"runs": [_record(run) for run in found], "broken": broken})
        return
    if not found and not broken:
        say(f"No run is under way or waits in {runs_dir()}.")
    if found:
        rows = [(run.name, run.base, run.state, f"{run.step} of {run.steps}", run.changed) for run in found]
        print_table(["name", "base", "state", "steps kept", "changed (UTC)"], rows)
    for run in broken:
        flag("red", "broken", f"{run.folder}: {run.reason}")


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a run: where it is, what it was started with."""
    run = find_run(runs_dir(), name)
    if as_json:
        print_json({**_record(run), "settings": run.settings})
        return
    for what, value in _record(run).items():
        if value is not None:
            say(f"{what}: {', '.join(value) if isinstance(value, tuple) else value}")
    for adapter, settings in run.settings.items():
        for key, value in settings.get("config", {}).items():
            say(f"{adapter + ' ' if len(run.settings) > 1 else ''}{key}: {value}")


@app.command()
def stop(
    name: Name,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it has ended.")] = 60.0,
) -> None:
    """Interrupt a run of this machine, as Ctrl-C does; --resume goes on from its last checkpoint.

    Exit code 1 when it goes on all the same.
    """
    run = find_run(runs_dir(), name)
    stop_run(run, wait)
    left = next((found for found in list_runs(runs_dir())[0] if found.folder == run.folder), None)
    kept = f"Its last checkpoint is of step {left.step}." if left is not None else "It had just ended, and is stored."
    say(f"Interrupted {run.name}, {run.holder}. {kept}")


def _record(run: RunState) -> dict[str, Any]:
    record = {field.name: getattr(run, field.name) for field in dataclasses.fields(run) if field.name != "settings"}
    return {**record, "state": run.state}
