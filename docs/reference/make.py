"""Writes the reference pages from the code, so that they cannot differ: `python docs/reference/make.py`."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from gristmill.app.settings import PREFIX, Settings
from gristmill.cli.main import root
from gristmill.core import errors, recipe
from gristmill.ports import discovery
from gristmill.server import errors as server_errors

FOLDER = Path(__file__).parent
NOTE = "<!-- made by docs/reference/make.py -->\n\n"


def cli() -> str:
    """Every command with its help."""
    parts = [
        "# Command line\n",
        "Every command takes `--home` and `--json`. Exit codes: 0 ok, 1 failed, 2 usage, ",
    ]
    parts.append("3 a gate refused, 4 a quota or wallet is used up.\n")
    context = click.Context(root, info_name="gristmill")
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            parts.append(f"\n## gristmill {name}\n\n{command.help}\n")
            parts += [
                _command(f"gristmill {name} {verb}", each, "###") for verb, each in command.commands.items()
            ]
        else:
            parts.append(_command(f"gristmill {name}", command, "##"))
    return NOTE + "".join(parts)


def _command(path: str, command: click.Command, heading: str) -> str:
    words = [p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)]
    lines = [f"\n{heading} {' '.join([path, *words])}\n\n{command.help}\n"]
    options = [p for p in command.params if isinstance(p, click.Option) and p.name not in ("home", "as_json")]
    if options:
        lines.append("\n| option | meaning |\n|---|---|\n")
        lines += [f"| `{'`, `'.join(p.opts + p.secondary_opts)}` | {p.help or ''} |\n" for p in options]
    return "".join(lines)


def settings() -> str:
    """Every setting."""
    rows = []
    for name, field in Settings.model_fields.items():
        rows.append(
            f"| `{name}` | `{PREFIX}{name.upper()}` | {_default(field.default)} | {field.description} |\n"
        )
    head = "# Settings\n\nA flag of `gristmill serve` wins over the environment, the environment over "
    head += "`settings.toml` in the home. `GRISTMILL_HOME` names the home itself.\n\n"
    head += "| in settings.toml | environment | default | meaning |\n|---|---|---|---|\n"
    return NOTE + head + "".join(rows)


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    return f"`{str(value) if isinstance(value, Decimal) else value!r}`".replace("'", '"')


def error_codes() -> str:
    """Every error code."""
    head = '# Errors\n\nOver HTTP an error is `{"error": {"message", "type", "param", "code"}}`; '
    head += "`param` names the field.\n\n"
    head += "| code | HTTP status | exit code | type | when |\n|---|---|---|---|---|\n"
    assert server_errors.__name__  # imported for its error classes
    rows, todo = [], [errors.GristmillError]
    while todo:
        cls = todo.pop(0)
        todo += [each for each in cls.__subclasses__() if each.__module__.startswith("gristmill.")]
        summary = (cls.__doc__ or "").split("\n")[0]
        rows.append(f"| `{cls.code}` | {cls.status} | {cls.exit_code} | `{cls.type}` | {summary} |\n")
    return NOTE + head + "".join(sorted(rows))


def recipes() -> str:
    """Every key of gristmill.toml."""
    parts = [
        "# Recipe\n\nOne product as a file, `gristmill.toml`. ",
        "Unknown keys are refused with the nearest known name.\n",
    ]
    sections = {
        "product": recipe.Product,
        "data": recipe.Data,
        "data.source, data.test": recipe.Source,
        "base": recipe.Base,
        "train": recipe.Train,
        "gates (a list)": recipe.GateSpec,
        "serve": recipe.Serve,
        "plans (a list)": recipe.PlanSpec,
        "plans.prices (a list)": recipe.PriceSpec,
    }
    for name, model in sections.items():
        doc = " ".join((model.__doc__ or "").split())
        parts.append(f"\n## {name}\n\n{doc}\n\n| key | type | default |\n|---|---|---|\n")
        parts += [_key(key, model) for key in model.model_fields]
    parts.append("\n## Plug-ins\n\n| kind | name | summary |\n|---|---|---|\n")
    for kind in ("tasks", "trainers", "engines", "pricing"):
        parts += [f"| {kind} | `{m.name}` | {m.summary} |\n" for m in discovery.manifests(kind).values()]
    return NOTE + "".join(parts)


def _key(name: str, model: type[BaseModel]) -> str:
    field = model.model_fields[name]
    kind = (
        getattr(field.annotation, "__name__", None)
        if not getattr(field.annotation, "__args__", None)
        else None
    )
    shown = (kind or str(field.annotation)).replace("gristmill.core.recipe.", "").replace("typing.", "")
    default = field.get_default(call_default_factory=True)
    text = "…" if isinstance(default, BaseModel) else _default(default)
    return f"| `{name}` | {shown.replace('|', 'or')} | {text} |\n"


PAGES = {"cli.md": cli, "settings.md": settings, "errors.md": error_codes, "recipe.md": recipes}

if __name__ == "__main__":
    for file, make in PAGES.items():
        (FOLDER / file).write_text(make(), encoding="utf-8")
