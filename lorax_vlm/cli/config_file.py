"""``--config FILE``: arguments and options of a command in YAML, and any command line written as such. No torch.

```yaml
command: caption
images: [photos]
adapter: [holiday]
write: txt,csv
max_new_tokens: 40
```
"""

import shlex
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from typer.core import TyperArgument, TyperOption

from lorax_vlm.cli.yaml_files import read_yaml
from lorax_vlm.errors import DataError, UsageError
from lorax_vlm.foreign import quoted

COMMAND = "command"
_HINT = "The file is YAML: names of options without dashes and their values, max_new_tokens: 40."
_GIVEN = ("COMMANDLINE", "DEFAULT_MAP", "ENVIRONMENT")
"""Names of click's ``ParameterSource``."""


def add_config_option(command: Any) -> Any:
    """Give a command of typer's, or every command of a group, the option ``--config``."""
    option, waiting = _config_option(), [command]
    while waiting:
        one = waiting.pop()
        children = getattr(one, "commands", None)
        if children is None:
            one.params.append(option)
        else:
            waiting += children.values()
    return command


def _config_option() -> Any:
    """As typer makes it of a signature."""
    app = typer.Typer()

    @app.command()
    def config(
        config_file: Annotated[
            str | None,
            typer.Option(
                "--config",
                metavar="FILE",
                is_eager=True,
                expose_value=False,
                callback=_use,
                show_default=False,
                help="YAML file of arguments and options; those given here count more.",
            ),
        ] = None,
    ) -> None:
        pass

    command: Any = typer.main.get_command(app)
    return next(parameter for parameter in command.params if parameter.name == "config_file")


def _use(context: typer.Context, path: str | None) -> None:
    if path is not None:
        content = read_yaml(Path(path).expanduser(), _HINT)
        context.default_map = _values(context.command, name_of(context), path, content)


def name_of(context: typer.Context) -> str:
    """What a command is called behind ``lorax-vlm``, such as ``adapters list``."""
    names = []
    while context.parent is not None:
        names.append(str(context.info_name))
        context = context.parent  # type: ignore[assignment]
    return " ".join(reversed(names))


def _values(command: Any, name: str, path: str, content: Any) -> dict[str, Any]:
    """Values by parameter; all that is wrong is listed at once."""
    if not isinstance(content, dict):
        raise DataError(path, ["it has no options"], _HINT)
    by_key = {key: parameter for parameter, key in keys_of(command)}
    problems, values = [], {}
    for word, value in content.items():
        key = word.replace("-", "_") if isinstance(word, str) else word
        if key == COMMAND:
            if value != name:
                problems.append(f"it is for lorax-vlm {quoted(value)[1:-1]}, not for lorax-vlm {name}")
        elif key not in by_key:
            near = get_close_matches(str(key), by_key, 1)
            problems.append(f"{quoted(word)} is no option of lorax-vlm {name}" + "".join(f"; {n}?" for n in near))
        elif problem := _problem(by_key[key], value):
            problems.append(f"{word}: {problem}, got {quoted(value)}")
        elif value is not None:
            several = (by_key[key].multiple or by_key[key].nargs != 1) and not isinstance(value, list)
            values[str(by_key[key].name)] = [value] if several else value
    if problems:
        raise DataError(path, problems, f"{_HINT} lorax-vlm {name} --help lists them.")
    return values


def _problem(parameter: Any, value: Any) -> str:
    """What is wrong with a value; the type and range click looks at itself."""
    several = parameter.multiple or parameter.nargs != 1
    flag = isinstance(parameter, TyperOption) and parameter.is_flag
    if value is None:
        return ""
    if flag:
        return "" if isinstance(value, bool) else "it must be true or false"
    if several and isinstance(value, list):
        odd = [part for part in value if not _is_plain(part)]
        return f"it must be a list of texts or numbers, and {quoted(odd[0])} is none" if odd else ""
    return "" if _is_plain(value) else "it must be one value or a list" if several else "it must be one value"


def _is_plain(value: Any) -> bool:
    """A text or a number; YAML makes truth values of words such as ``no``, which belong in quotes."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def keys_of(command: Any) -> Iterator[tuple[Any, str]]:
    """Every parameter with what it is called in a file: its name, of an option the long one."""
    arguments = {parameter.name for parameter in command.params if isinstance(parameter, TyperArgument)}
    for parameter in command.params:
        if not parameter.expose_value:
            continue
        key = str(parameter.name)
        if isinstance(parameter, TyperOption):
            long = max(parameter.opts, key=len).lstrip("-").replace("-", "_")
            key = key if long in arguments else long
        yield parameter, key


def given(context: Any) -> dict[str, Any]:
    """What a command was given, by what it is called in a file; what is as it would be anyway is left out."""
    return {
        key: _plain(context.params[str(parameter.name)])
        for parameter, key in keys_of(context.command)
        if getattr(context.get_parameter_source(str(parameter.name)), "name", "") in _GIVEN
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, bool | int | float) or value is None else str(value)


def arguments_of(command: Any, values: Mapping[str, Any]) -> list[str]:
    """The same as words of a command line.

    Raises:
        UsageError: The command has no such option: the file is of another version.
    """
    by_key = {key: parameter for parameter, key in keys_of(command)}
    if unknown := [key for key in values if key not in by_key]:
        raise UsageError(f"{', '.join(unknown)}: no option of this version.")
    arguments: list[str] = []
    options: list[str] = []
    for key, value in values.items():
        parameter = by_key[key]
        parts = [str(part) for part in (value if isinstance(value, list) else [value])]
        if isinstance(parameter, TyperArgument):
            arguments += parts
            continue
        name = max(parameter.opts, key=len)
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            no = max(parameter.secondary_opts, key=len, default="")
            options += [name] if value else [no] if no else []
        else:
            options += [word for part in parts for word in ([f"{name}={part}"] if part[:1] == "-" else [name, part])]
    odd = any(part.startswith("-") and part != "-" for part in arguments)
    return [*options, "--", *arguments] if odd else [*arguments, *options]


def as_command(name: str, words: list[str]) -> str:
    """A command line, for a shell."""
    return shlex.join(["lorax-vlm", *name.split(), *words])


def as_yaml(name: str, values: Mapping[str, Any]) -> str:
    """The same as a file for ``--config``."""
    return yaml.safe_dump({COMMAND: name, **values}, sort_keys=False, allow_unicode=True)
