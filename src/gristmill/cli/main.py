"""The command line: `gristmill <noun> <verb>`; data on stdout, progress on stderr, `--json` everywhere.

Invariant: `gristmill --help` imports neither the platform nor a web framework nor torch; a noun's commands
are built from the operations when they are asked for.

Exit codes: 0 ok, 1 failed, 2 usage, 3 gate refused, 4 quota.
"""

from __future__ import annotations

import sys

import click

NOUNS = {
    "dataset": "Bring data in, as immutable versions",
    "run": "Train",
    "release": "Registered model versions: show, import, promote, roll back",
    "deployment": "What is being served",
    "customer": "Who pays",
    "key": "API keys of customers",
    "plan": "What customers subscribe to",
    "wallet": "Prepaid balances",
    "usage": "What was used",
    "request": "One request, from answer to invoice",
    "invoice": "Preview, issue, print",
    "margin": "What each customer and release earns and costs",
}
COMMANDS = {
    "launch": "Take a recipe from raw data to a released, priced model",
    "serve": "Serve everything in a home on one port",
    "doctor": "Check this machine and this home",
    "backup": "Write one archive of a home",
    "restore": "Make a home from an archive",
}


class _Root(click.Group):
    """The root group: names are known here, their code is imported when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *NOUNS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS and cmd_name not in NOUNS:
            return None
        from gristmill.cli.build import command

        return command(cmd_name, (COMMANDS | NOUNS)[cmd_name])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        with formatter.section("Nouns"):
            formatter.write_dl(list(NOUNS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.message} {_nearest(args[0])}".strip(), ctx) from None


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gristmill")
def root() -> None:
    """From your data to a paid, monitored model API that you run yourself."""


def main() -> None:
    """Entry point: run a command and turn any error into one line and an exit code."""
    try:
        sys.exit(root.main(standalone_mode=False) or 0)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


def _nearest(name: str) -> str:
    from gristmill.core.errors import did_you_mean

    return did_you_mean(name, [*COMMANDS, *NOUNS], "")
