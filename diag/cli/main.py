"""The `diag` command: finds the subcommand, runs it, and turns errors into words and exit codes.

Only the invoked command's module is imported, and each of those imports what is heavy inside its
functions, so that `diag --help` answers at once.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import diag
from diag.cli import arguments
from diag.cli.text import format_error
from diag.errors import DiagError, ExitCode

# Each is a module of diag.cli, whose docstring is the help, and a signature in diag.cli.arguments.
COMMANDS = ("run", "scaling-report", "hang", "runs", "doctor")


class Commands(TyperGroup):
    """Imports a command when it is asked for, and catches what it raises."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            if _is_usage_error(error) and args and hasattr(error, "message"):
                error.message = unknown_command(args[0], COMMANDS)
            raise

    def invoke(self, ctx: Any) -> Any:
        debug = bool(ctx.params.get("debug"))
        try:
            return super().invoke(ctx)
        except DiagError as error:
            _show(error.slug, error.what, error.hint, debug)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(ExitCode.INTERRUPTED) from error
        except BrokenPipeError:  # `diag … | head`: typer ends it quietly
            raise
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if _is_usage_error(error):
                raise
            _show("internal", f"{type(error).__name__}: {error}", _REPORT_IT, debug)
            raise typer.Exit(ExitCode.DIAG_FAILED) from error


def unknown_command(word: str, commands: Sequence[str]) -> str:
    """What is said of a command that is none: those it may have meant, or all there are."""
    # A part of the name ("report") is nearer than any misspelling.
    near = [name for name in commands if word and word.lower() in name]
    near = near or get_close_matches(word.lower(), commands, cutoff=0.5)
    if word.endswith(".py"):
        near = [f"run {word}"]
    if near:
        return f"No such command {word!r}. Did you mean {' or '.join(map(repr, near))}?"
    return f"No such command {word!r}. The commands are: {', '.join(commands)}."


_REPORT_IT = "this is a bug in diag; `diag --debug …` shows where, please report that"


def _is_usage_error(error: Exception) -> bool:
    # typer brought click along as a dependency once and carries its own copy now; both name the
    # root class so, and both print these errors themselves.
    return any(base.__name__ == "ClickException" for base in type(error).__mro__)


def _show(slug: str, what: str, hint: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(format_error(slug, what, hint), file=sys.stderr)


def load_command(name: str) -> Any:
    """The typer command of `name`, one of COMMANDS; what it returns is the exit code."""
    word = name.replace("-", "_")
    function = getattr(arguments, word)

    @wraps(function)
    def exiting(*args: Any, **options: Any) -> NoReturn:
        raise typer.Exit(function(*args, **options))

    app = _app()
    help_text = import_module(f"diag.cli.{word}").__doc__
    app.command(name, help=help_text, **arguments.SETTINGS.get(word, {}))(exiting)
    return typer.main.get_command(app)


def _app(**settings: Any) -> typer.Typer:
    # Rich would add 0.2 s to every start and boxes to every error.
    return typer.Typer(
        add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **settings
    )


def _version(wanted: bool) -> None:
    if wanted:
        print(f"diag {diag.__version__}")
        raise typer.Exit


def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Where did the speed-up go? Run PyTorch training on N ranks, then explain what N cost."""


def build() -> Any:
    """The whole command line, as typer's group."""
    app = _app(cls=Commands, no_args_is_help=True)
    app.callback()(_root)
    return typer.main.get_command(app)


def main() -> NoReturn:
    """Entry point of the `diag` script."""
    build()(prog_name="diag")
    raise AssertionError("typer exits by itself")


if __name__ == "__main__":
    main()
