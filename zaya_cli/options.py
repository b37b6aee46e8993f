"""A stage's dataclass as click parameters, and back: which source gives each option its value.

Precedence: flag > `--config` file > environment `ZAYA_<FIELD>` > the dataclass's default. It refuses to judge values:
bounds and choices are held by the dataclass, for every caller alike.
"""

import os
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource

from zaya_cli.config_file import read_config_file
from zaya_core.errors import ConfigError
from zaya_core.option import flag_name, option_type

SIMPLE_TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING, Path: click.Path(path_type=Path)}


@dataclass(frozen=True)
class Output:
    """How the user wants to be told: `--json`, `--quiet`, `--verbose`."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False


def parameters(config_class: type) -> list[click.Parameter]:
    """Click's arguments and options for every field made with `option(...)`, then the options that all stages share."""
    own = [_parameter(config_class, item) for item in option_fields(config_class)]
    return [*own, *_common()]


def option_fields(config_class: type) -> list[Field[Any]]:
    """The fields that a user can set, in their order in the dataclass."""
    return [item for item in fields(config_class) if "help" in item.metadata]


def argument_rows(config_class: type) -> list[tuple[str, str]]:
    """(metavar, help) of the positional arguments, for --help."""
    arguments = [item for item in option_fields(config_class) if item.metadata["argument"]]
    return [(_argument_metavar(config_class, item), item.metadata["help"]) for item in arguments]


def read_output(context: click.Context) -> Output:
    """The shared options of a parsed command line."""
    given = context.params
    return Output(as_json=given["as_json"], quiet=given["quiet"], verbose=given["verbose"])


def read_config(config_class: type, context: click.Context) -> Any:
    """The stage's config from flags, file, environment and defaults; a usage error when a required one is in none."""
    path = context.params["config_file"]
    from_file = read_config_file(path, config_class) if path else {}
    by_name = {parameter.name: parameter for parameter in context.command.params}
    values = {}
    for item in option_fields(config_class):
        name, variable = item.name, f"ZAYA_{item.name.upper()}"
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            values[name] = context.params[name]
        elif name in from_file:
            values[name] = from_file[name]
        elif os.environ.get(variable):
            values[name] = _from_environment(variable, by_name[name], context)
        elif _is_required(item):
            raise click.MissingParameter(ctx=context, param=by_name[name])
    return config_class(**values)


def _from_environment(variable: str, parameter: click.Parameter, context: click.Context) -> Any:
    text = os.environ[variable]
    is_many = parameter.multiple or parameter.nargs == -1
    try:
        return parameter.type_cast_value(context, text.split() if is_many else text)
    except click.BadParameter as error:
        raise ConfigError(f"environment variable {variable}: {error.message.rstrip('.')}") from None


def _parameter(config_class: type, item: Field[Any]) -> click.Parameter:
    return _argument(config_class, item) if item.metadata["argument"] else _option(config_class, item)


def _argument(config_class: type, item: Field[Any]) -> click.Argument:
    kind, _ = option_type(config_class, item.name)
    # Never required for click: the value may still come from the file or the environment.
    return click.Argument(
        [item.name],
        type=_click_type(kind),
        required=False,
        nargs=-1 if get_origin(kind) is tuple else 1,
        metavar=_argument_metavar(config_class, item),
    )


def _argument_metavar(config_class: type, item: Field[Any]) -> str:
    metavar = item.metadata["metavar"] or item.name.upper()
    if get_origin(option_type(config_class, item.name)[0]) is tuple:
        metavar += "..."
    return metavar if _is_required(item) else f"[{metavar}]"


def _option(config_class: type, item: Field[Any]) -> click.Option:
    kind, _ = option_type(config_class, item.name)
    flag = flag_name(item.name)
    short = [f"-{item.metadata['short'].lstrip('-')}"] if item.metadata["short"] else []
    if kind is bool:
        # `--no-tokenizer` has no opposite: `--tokenizer` may well be another option.
        is_negative = item.name.startswith("no_")
        names = [flag if is_negative else f"{flag}/--no-{flag[2:]}"]
        shape = {"type": click.BOOL, "is_flag": True}
    else:
        names, shape = [flag], {"type": _click_type(kind), "metavar": item.metadata["metavar"]}
    return click.Option(
        [item.name, *short, *names],
        help=item.metadata["help"] + (" [required]" if _is_required(item) else ""),
        default=None if _is_required(item) else item.default,
        show_default=True,
        multiple=get_origin(kind) is tuple,
        **shape,
    )


def _click_type(kind: Any) -> click.ParamType:
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    return SIMPLE_TYPES[get_args(kind)[0] if get_origin(kind) is tuple else kind]


def _is_required(item: Field[Any]) -> bool:
    return item.default is MISSING


def _common() -> list[click.Parameter]:
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    return [
        click.Option(["config_file", "-c", "--config"], type=file, metavar="FILE.yaml", help="Take options from here."),
        click.Option(["as_json", "--json"], is_flag=True, help="Results as JSON on stdout, one object a line."),
        click.Option(["quiet", "-q", "--quiet"], is_flag=True, help="Hide notes and progress."),
        click.Option(["verbose", "-v", "--verbose"], is_flag=True, help="Show the traceback of an error."),
    ]
