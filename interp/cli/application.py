"""The application: it runs a command, and turns its outcome into an exit code.

Exit codes: 0 on success, 2 for wrong input or usage, 1 for any other error. An error is one line on standard error; with
``--debug`` it is a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from interp.cli.options import Debug
from interp.errors import InterpError

app = typer.Typer(
    help="Mechanistic interpretability of vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# The exit code that typer returns after Ctrl-C.
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; the `interp` script calls this."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=arguments, prog_name="interp", standalone_mode=False)
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _report_error(error)
    if code == _INTERRUPTED:
        return _complain("interrupted", 1)
    return code if isinstance(code, int) else 0


def _report_error(error: Exception) -> int:
    if isinstance(error, InterpError):
        # A plain InterpError is not about the input: a full disk, another process that stopped.
        return _complain(str(error), 1 if type(error) is InterpError else 2)
    if hasattr(error, "format_message"):  # wrong usage, as typer reports it
        message = error.format_message().strip().rstrip(".")
        # Without any arguments typer has printed the help already.
        return _complain(f"{message}; see 'interp --help'", 2) if message else 2
    if isinstance(error, typer.Abort):
        return _complain("interrupted", 1)
    return _complain(f"{type(error).__name__}: {error}", 1)


def _complain(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_version(value: bool) -> None:
    if value:
        import interp

        print(f"interp {interp.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Debug = False,
) -> None:
    pass
