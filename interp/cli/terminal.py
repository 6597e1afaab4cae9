"""What commands show on the terminal: tables on standard output, and a bar of their steps on standard error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def terminal(stderr: bool = False) -> Console:
    """rich's console on standard output, or on standard error."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def task_bar() -> Iterator[Callable[[str, int], None]]:
    """A progress bar on standard error: `advance(name, total)` begins the next of `total` steps."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from interp.progress import quiet

    # Loading a model would show progress bars of its own and break this one.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    columns = (TextColumn("{task.description:<20}"), BarColumn(), TimeElapsedColumn())
    screen = terminal(stderr=True)
    # In a file or a pipe the bar would leave empty lines.
    hidden = not screen.is_terminal
    with quiet(), Progress(*columns, console=screen, transient=True, disable=hidden) as bar:
        task = bar.add_task("starting", total=None)
        done = 0

        def advance(name: str, total: int) -> None:
            nonlocal done
            bar.update(task, description=name, completed=done, total=total)
            done += 1

        yield advance


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of texts under the names of their columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text, so that brackets are not read as markup
    terminal().print(table)
