"""``lorax-vlm runs``: trainings and bulk jobs that run, wait to be gone on with, or are finished. No torch."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from lorax_vlm.cli.config_file import arguments_of, as_command, as_yaml
from lorax_vlm.cli.options import DEFAULT_MODEL, AsJson
from lorax_vlm.cli.output import flag, print_json, print_table, say
from lorax_vlm.commands import GivenCommand, State, find_command, list_commands, stop_command
from lorax_vlm.errors import NothingToResume, UsageError
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.settings import commands_dir, runs_dir
from lorax_vlm.training.run_list import RunState, find_run, list_runs, stop_run

Name = Annotated[str, typer.Argument(help="Id, name of the adapter, or folder or table that is gone through.")]
As = Annotated[
    Literal["command", "yaml"] | None,
    typer.Option(
        "--as", help="Print only what was asked: as a command, or as a file for --config.", show_default=False
    ),
]

app = typer.Typer(help="Trainings and bulk jobs: what runs, what waits, what was asked.", no_args_is_help=True)


@app.callback()
def runs() -> None:
    """A group of commands."""


@app.command("list")
def list_all(
    every: Annotated[bool, typer.Option("--all", help="Those that are finished, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List trainings and bulk jobs that run or wait to be gone on with (runs resume)."""
    trainings, broken = list_runs(runs_dir())
    commands, odd = list_commands(commands_dir())
    shown = [command for command in commands if every or command.state != "finished"]
    shown = [command for command in shown if not any(_is_of(command, run) for run in trainings)]
    if as_json:
        found = {"trainings": [_of_training(run) for run in trainings], "commands": [_of_command(c) for c in shown]}
        print_json({**found, "broken": [*broken, *odd]})
        return
    if not trainings and not shown and not broken:
        say(f"Nothing runs or waits in {runs_dir().parent}." + ("" if every else " --all shows what is finished, too."))
    rows = [_row_of_training(run, commands) for run in trainings]
    rows += [(c.id, f"{c.name} {c.about}", c.state, c.progress, (c.ended or c.began)[:19]) for c in shown]
    if rows:
        print_table(["id", "what", "state", "done", "changed (UTC)"], rows)
    for run in broken:
        flag("red", "broken", f"{run.folder}: {run.reason}")
    for text in odd:
        flag("red", "broken", text)


@app.command()
def show(name: Name, as_: As = None, as_json: AsJson = False) -> None:
    """Show a training or a bulk job: where it is, what was asked."""
    run, command = _find(name)
    if as_ is not None:
        asked = _require(command, name)
        words = arguments_of(_click_command(asked), asked.values)
        sys.stdout.write(as_yaml(asked.name, asked.values) if as_ == "yaml" else f"{as_command(asked.name, words)}\n")
        return
    record = _of_training(run) if run is not None else _of_command(_require(command, name))
    if run is not None and command is not None:
        record["command"] = command.id
    if as_json:
        print_json({**record, "settings": run.settings} if run is not None else record)
        return
    for what, value in record.items():
        if value not in (None, ""):
            say(f"{what}: {', '.join(value) if isinstance(value, tuple) else value}")
    for adapter, settings in run.settings.items() if run is not None else ():
        for key, value in settings.get("config", {}).items():
            say(f"{adapter + ' ' if run is not None and len(run.settings) > 1 else ''}{key}: {value}")


@app.command()
def resume(name: Name) -> None:
    """Give a command again where it was given: a training goes on from its last checkpoint, a bulk job where it ended.

    Its exit code is that of the command.
    """
    run, found = _find(name, ("interrupted", "failed"))
    command = _require(found, name)
    if command.state == "running":
        raise UsageError(f"{command.name} {command.about} is running: {command.worker}.")
    if "-" in (command.values.get("images"), *_listed(command.values.get("images"))):
        raise UsageError(f"{command.name} {command.about} had its list on standard input: give the command again.")
    words = arguments_of(_click_command(command), command.values)
    if command.name == "train" and run is not None and run.step and "--resume" not in words:
        words.append("--resume")
    say(f"{command.folder}$ {as_command(command.name, words)}")
    from lorax_vlm.cli.main import command as root

    with contextlib.chdir(command.folder):
        code = root().main(args=[*command.name.split(), *words], prog_name="lorax-vlm", standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)


@app.command()
def stop(
    name: Name,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it has ended.")] = 60.0,
) -> None:
    """Interrupt a training or a bulk job of this machine, as Ctrl-C does; runs resume goes on with it.

    Exit code 1 when it goes on all the same.
    """
    run, command = _find(name, ("running",))
    if run is None:
        command = _require(command, name)
        stop_command(command, wait)
        left = find_command(commands_dir(), command.id)
        done = f" {left.progress} done." if left.progress else ""
        say(f"Interrupted {command.name} {command.about}, process {command.process}.{done}")
        return
    stop_run(run, wait)
    left_of = next((found for found in list_runs(runs_dir())[0] if found.folder == run.folder), None)
    kept = f"Its last checkpoint is of step {left_of.step}." if left_of else "It had just ended, and is stored."
    say(f"Interrupted {run.name}, {run.holder}. {kept}")


def _find(name: str, states: Sequence[State] = ()) -> tuple[RunState | None, GivenCommand | None]:
    """A training, the command that began it where one did, or another command; see ``find_command``."""
    try:
        run = find_run(runs_dir(), name)
    except NothingToResume:
        run = None
    if run is not None:
        return run, _command_of(run, list_commands(commands_dir())[0])
    command = find_command(commands_dir(), name, states)
    runs = [run for run in list_runs(runs_dir())[0] if _is_of(command, run)]
    return (runs[0] if runs else None), command


def _require(command: GivenCommand | None, name: str) -> GivenCommand:
    if command is None:
        raise UsageError(f"{name} was started from Python: nothing says what was asked.")
    return command


def _command_of(run: RunState, commands: list[GivenCommand]) -> GivenCommand | None:
    return next((command for command in commands if _is_of(command, run)), None)


def _is_of(command: GivenCommand, run: RunState) -> bool:
    """Whether a training was begun by a command."""
    if command.name != "train" or command.about != run.name:
        return False
    return get_model_entry(str(command.values.get("model", DEFAULT_MODEL))).name == run.base


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _click_command(command: GivenCommand) -> Any:
    from lorax_vlm.cli.main import command as root

    found: Any = root()
    for word in command.name.split():
        found = found.commands[word]
    return found


def _row_of_training(run: RunState, commands: list[GivenCommand]) -> tuple[str, ...]:
    command = _command_of(run, commands)
    what, kept = f"train {run.name} on {run.base}", f"{run.step} of {run.steps} steps"
    return (command.id if command is not None else "-", what, run.state, kept, run.changed)


def _of_training(run: RunState) -> dict[str, Any]:
    record = {field.name: getattr(run, field.name) for field in dataclasses.fields(run) if field.name != "settings"}
    return {**record, "state": run.state}


def _of_command(command: GivenCommand) -> dict[str, Any]:
    return {**dataclasses.asdict(command), "state": command.state}
