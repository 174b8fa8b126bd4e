"""The command line: each subcommand parses, calls one function, and prints what was written and where.

Exit codes: 0 done; 1 done, but more inputs were skipped than ``--max-skipped``, there is no score at all, or a trained model
does not heed its captions; 2 cannot run; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Annotated

import typer
from rich.text import Text

from .. import __version__
from ..errors import AuscultError
from ..interrupts import end_at_second_interrupt, leave
from .commands import audit, compare, dedup, demo, index, info, report
from .datastores import datastore
from .evaluating import evaluate
from .generating import generate
from .printing import err, out
from .progress import print_notes
from .reviewing import review
from .studies import study
from .training import train

app = typer.Typer(
    name="auscult",
    help="Find out whether a text-to-audio model replicates its training audio.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (demo, index, audit, dedup, compare, review, report, evaluate, datastore, train, generate, info):
    app.command()(command)
app.add_typer(study)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"auscult {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is being done.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(message)s", stream=sys.stderr)


def main() -> None:
    """Entry point: user errors become one line and exit code 2, never a stack trace (set AUSCULT_DEBUG=1 to see one)."""
    try:
        app()
    except (AuscultError, ValueError, OSError) as error:
        if os.environ.get("AUSCULT_DEBUG"):
            raise
        err.print(Text(f"auscult: {explain(error)}"))
        print_notes(error)
        sys.exit(2)


def run() -> None:
    """The program: :func:`main`, where a second Ctrl-C ends at once, and what was stopped or refused ends without delay.

    Threads of native libraries that are still at work when Python tears itself down now and then abort the process, and with
    it the exit code that a script was promised.
    """
    end_at_second_interrupt()
    try:
        main()
    except SystemExit as end:
        if end.code:
            leave(end.code if isinstance(end.code, int) else 2)
        raise


def explain(error: Exception) -> str:
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return f"{place}no space left to write ({error.strerror}); free some and give the same command again"
        return f"{place}{error.strerror or error}"
    return str(error)
