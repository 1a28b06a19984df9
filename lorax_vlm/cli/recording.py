"""Records of the commands that take long, so that they can be seen, stopped and given again. No torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from lorax_vlm.cli.config_file import given, name_of
from lorax_vlm.commands import Recording, recorded
from lorax_vlm.settings import commands_dir, process_rank


@contextmanager
def recording(context: typer.Context, about: str, ignored: Sequence[str] = ()) -> Iterator[Recording | None]:
    """Run a command's work with a record of it; None in all processes but the first.

    Args:
        context: Of the command.
        about: What it works on, for people.
        ignored: Options that make no other command, such as ``resume``.
    """
    if process_rank() > 0:
        yield None
        return
    with recorded(commands_dir(), name_of(context), given(context), about, ignored) as record:
        yield record
