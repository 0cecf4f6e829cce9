"""Builds click commands from operations: parameters become arguments and options, descriptions the help."""

from __future__ import annotations

import types
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gristmill.app.operations import operations
from gristmill.app.operations.base import Operation
from gristmill.cli import serve
from gristmill.cli.invoke import invoke

_COMMON: list[click.Parameter] = [
    click.Option(["--home"], type=click.Path(path_type=Path), help="Folder that holds everything."),
    click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
]


def command(name: str, summary: str) -> click.Command:
    """The click command or group of one name of the root."""
    if name == "serve":
        return serve.command(summary)
    found = [each for (noun, _), each in operations().items() if noun == name]
    if len(found) == 1 and not found[0].verb:
        return _command(found[0], name)
    group = click.Group(name, help=summary + ".")
    for each in found:
        group.add_command(_command(each, each.verb))
    return group


def _command(operation: Operation, name: str) -> click.Command:
    parameters: list[click.Parameter] = []
    for field_name, field in operation.params.model_fields.items():
        parameters.append(_parameter(field_name, field, operation))

    def callback(home: Path | None, as_json: bool, **values: Any) -> None:
        given = {key: _plain(value) for key, value in values.items() if value is not None and value != ()}
        invoke(operation, given, home=home, as_json=as_json)

    return click.Command(
        name, params=parameters + _COMMON, callback=callback, help=(operation.function.__doc__ or "").strip()
    )


def _parameter(name: str, field: FieldInfo, operation: Operation) -> click.Parameter:
    kind, is_multiple = _click_type(field.annotation)
    if name in operation.params.positional:
        return click.Argument([name], required=field.is_required(), type=kind)
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=None, help=field.description)
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, PydanticUndefined, "", [], {}) else f" [default: {default}]"
    return click.Option(
        [flag],
        type=kind,
        multiple=is_multiple,
        required=field.is_required(),
        help=(field.description or "") + shown,
    )


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """The click type of a field's annotation, and whether it may be given several times."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    origin = get_origin(annotation)
    if origin is Literal:
        return click.Choice([str(each) for each in get_args(annotation)]), False
    if origin in (list, dict):
        return str, True
    if annotation is Path:
        return click.Path(path_type=Path, resolve_path=True), False
    if annotation in (int, float, bool):
        return annotation, False
    return str, False


def _plain(value: Any) -> Any:
    """A JSON-able form: paths as text, `name=value` pairs stay text for the operation to split."""
    if isinstance(value, Path | Decimal):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
