"""The ``lorax-vlm`` command. Each command's file is beside this one; torch is imported by those that need it.

No torch.
"""

import atexit
import logging
import os
import re
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from lorax_vlm import __version__
from lorax_vlm.cli import (
    adapters,
    captions,
    data,
    doctor,
    evaluation,
    exchange,
    models,
    questions,
    runs,
    scenes,
    training,
)
from lorax_vlm.cli.config_file import add_config_option
from lorax_vlm.cli.output import end_output
from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.foreign import printable

_BUG = (
    "This is a bug in lorax-vlm, not yours. What had been printed and stored before stays. Please report it with the "
    "lines above and what `lorax-vlm doctor` prints."
)

_KEYWORD = re.compile(r"\((\w+)=(?:True)?\)")
"""How messages say what an argument of Python would do about it."""
_WRONG = re.compile(r"(\w+) (?=(?:must be|is|are|takes) )")
"""How they say that one is wrong."""


def print_version(asked: bool) -> None:
    """Print the version and exit when ``asked``."""
    if asked:
        sys.stdout.write(f"lorax-vlm {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="lorax-vlm",
    help="LoRA adapters for BLIP-2, InstructBLIP and ViLT: train, compare, evaluate, keep.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """LoRA adapters for BLIP-2, InstructBLIP and ViLT: train, compare, evaluate, keep."""


app.command("caption")(captions.caption)
app.command("train")(training.train)
app.command("ask")(questions.ask)
app.command("evaluate")(evaluation.evaluate)
app.command("benchmark")(questions.benchmark)
app.command("doctor")(doctor.doctor)
app.add_typer(adapters.app, name="adapters")
app.add_typer(exchange.app, name="exchange")
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.add_typer(scenes.app, name="scenes")


def new_command() -> Any:
    """The command line as click's command, with ``--config`` for each."""
    return add_config_option(typer.main.get_command(app))


command = cache(new_command)
"""The one of this process."""


def main() -> None:
    """Run the command line: an error of ours is a message; anything else is a bug and shows as one.

    Exit codes: 0, 1 for what failed, 2 for what was asked wrongly, 130 when interrupted.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # advises a package that nothing here uses
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # no letter of a caption ends a command
    atexit.register(end_output)
    try:
        command()()
    except LoraxError as error:
        sys.stderr.write(f"{describe(error)}\n")
        sys.exit(error.exit_code)
    except Exception:
        sys.stderr.write(f"{printable(traceback.format_exc())}\n{_BUG}\n")
        sys.exit(1)


def _open_what_is_closed() -> None:
    """Give a program that was started with a closed input or output, as by ``>&-``, an empty one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for the whole run


def describe(error: LoraxError) -> str:
    """An error for people: its kind, where that says more than its message, and the message."""
    kind, text = "" if isinstance(error, UsageError) else f"{type(error).__name__}: ", str(error)
    options = _options()
    text = _KEYWORD.sub(lambda found: f"({options[found[1]]})" if found[1] in options else found[0], text)
    if isinstance(error, UsageError) and (found := _WRONG.match(text)) and found[1] in options:
        text = f"{options[found[1]]} {text[found.end() :]}"
    return printable(f"{kind}{text}")


def _options() -> dict[str, str]:
    """Those of the command that was given, by their names in Python."""
    given = command()
    for word in sys.argv[1:]:
        if word not in getattr(given, "commands", {}):
            break
        given = given.commands[word]
    return {
        str(parameter.name): next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
        for parameter in given.params
        if parameter.param_type_name == "option"
    }


if __name__ == "__main__":
    main()
