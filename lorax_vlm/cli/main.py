"""The ``lorax-vlm`` command. Each command's file is beside this one; torch is imported by those that need it."""

import logging
import sys
from typing import Annotated

import typer

from lorax_vlm import __version__
from lorax_vlm.cli import adapters, captions, doctor, evaluation, exchange, models, questions, scenes, training
from lorax_vlm.errors import LoraxError


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
app.add_typer(scenes.app, name="scenes")


def main() -> None:
    """Run the command line: an expected error is a message and exit code 1, never a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except (LoraxError, ValueError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
